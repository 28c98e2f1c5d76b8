"""The tiled engine against dense in float64, forward, log-sum-exp and gradients, by the one tolerance."""

import engine_cases as cases
import pytest
import torch

from maskc.runtime import tables, tiled
from maskc.runtime.batches import batches

ONE_LINE = [name for name in cases.SPECS if name != "neighbours"]
LENGTHS = [(1, 1), (2, 2), (63, 63), (64, 64), (65, 130), (130, 65), (257, 257)]


@pytest.mark.parametrize("name", ONE_LINE)
@pytest.mark.parametrize(("q_len", "k_len"), LENGTHS)
def test_agrees_with_dense(name, q_len, k_len):
    cases.assert_tiled_is_right(cases.call_of(name, q_len=q_len, k_len=k_len, dims=(8, 5)))


@pytest.mark.parametrize("name", ONE_LINE)
def test_agrees_over_several_batch_rows_and_grouped_heads(name):
    cases.assert_tiled_is_right(cases.call_of(name, batch=2, heads=4, kv_heads=2, q_len=140))


@pytest.mark.parametrize("name", ["window", "documents", "alibi", "softcap", "sink", "strided"])
def test_long_rows_are_split_and_merged(name):
    cases.assert_tiled_is_right(cases.call_of(name, heads=2, kv_heads=1, q_len=1100, given={}), with_lse=False)


@pytest.mark.parametrize("name", ["causal", "everything", "softcap", "alibi", "ignores score", "columns"])
def test_rows_of_more_keys_than_one_call_takes(name):
    cases.assert_tiled_is_right(cases.call_of(name, heads=1, kv_heads=1, q_len=70, k_len=2300, q_offset=2230))


@pytest.mark.parametrize("grid", [(1, 1), (2, 5), (7, 7), (13, 17), (3, 65)])
def test_agrees_on_grids(grid):
    y, x = grid
    call = cases.call_of("neighbours", q_len=y * x, given={"y": y, "x": x})
    cases.assert_tiled_is_right(call)


def test_agrees_on_a_grid_longer_than_the_sequence():
    cases.assert_tiled_is_right(cases.call_of("neighbours", q_len=150, given={"y": 20, "x": 9}))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["window", "documents", "clusters", "alibi", "softcap bias", "minus infinity", "sink"])
def test_agrees_in_every_dtype(name, dtype):
    cases.assert_tiled_is_right(cases.call_of(name, batch=2, q_len=200, dtype=dtype))


@pytest.mark.parametrize(
    "dims", [(1, 1), (3, 3), (8, 31), (31, 8), (40, 40), (64, 64), (72, 16), (192, 128), (64, 128)]
)
@pytest.mark.parametrize("name", ["window", "softcap"])
def test_agrees_at_every_head_dim(name, dims):
    cases.assert_tiled_is_right(cases.call_of(name, q_len=100, dims=dims))


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (2, 1), (3, 1), (7, 1), (6, 2), (6, 3), (12, 4), (14, 2)])
@pytest.mark.parametrize("name", ["window", "clusters", "kv bias"])
def test_groups_of_query_heads(name, heads, kv_heads):
    cases.assert_tiled_is_right(cases.call_of(name, batch=2, heads=heads, kv_heads=kv_heads, q_len=90))


@pytest.mark.parametrize("name", ["window", "documents", "batch bias", "softcap", "neighbours"])
def test_offsets_of_their_own_for_every_batch_row(name):
    given = {"y": 20, "x": 20} if name == "neighbours" else {}
    offset = torch.tensor([3, 150])
    cases.assert_tiled_is_right(cases.call_of(name, batch=2, q_len=70, k_len=250, q_offset=offset, given=given))
    keys = torch.tensor([0, 40], dtype=torch.int32)
    cases.assert_tiled_is_right(cases.call_of(name, batch=2, q_len=70, k_len=100, k_offset=keys, given=given))


@pytest.mark.parametrize("scale", [0.0, 1.0, -0.3, 1.7])
def test_any_scale(scale):
    cases.assert_tiled_is_right(cases.call_of("window", q_len=150, scale=scale))


@pytest.mark.parametrize(("q_len", "k_len"), [(0, 5), (5, 0), (0, 0)])
def test_nothing_to_attend_to(q_len, k_len):
    call = cases.call_of("everything", q_len=q_len, k_len=k_len)
    d_out, d_lse = cases.upstream(call)
    found = cases.run_tiled(call, d_out, d_lse)
    assert torch.equal(found["out"], torch.zeros(1, 2, q_len, 8))
    assert torch.equal(found["lse"], torch.full((1, 2, q_len), -torch.inf))
    for name, x in (("dq", call.q), ("dk", call.k), ("dv", call.v)):
        assert torch.equal(found[name], torch.zeros_like(x))


@pytest.mark.parametrize("name", ["window", "documents", "clusters", "sink", "causal", "softcap bias"])
def test_same_bits_in_every_run(name):
    call = cases.call_of(name, batch=2, heads=4, q_len=300)
    d_out, d_lse = cases.upstream(call)
    first = cases.run_tiled(call, d_out, d_lse)
    for _ in range(3):
        again = cases.run_tiled(call, d_out, d_lse)
        assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize(
    "name", ["window", "causal", "documents", "sink", "strided", "clusters", "neighbours", "chunks"]
)
@pytest.mark.parametrize("plain", [True, False])
def test_batches_cover_every_live_tile_once(name, plain):
    given = {"y": 50, "x": 20} if name == "neighbours" else {}
    call = cases.call_of(name, heads=1, kv_heads=1, q_len=1000, k_len=1000, given=given)
    plan = tables.plan_of(call, tiled.TILE).plan
    kept = torch.zeros(1000, 1000, dtype=torch.int)
    reached = torch.zeros(1000, 1000, dtype=torch.int)
    (part,) = plan.parts
    for batch in batches(plan, part, 0, lanes=1, plain=plain):
        for t in range(batch.tiles):
            queries, keys = _places(batch, t, plan.tile)
            reached[queries[:, None], keys] += 1
            kept[queries[:, None], keys] += 1 if batch.masked else 2
    mask = torch.from_numpy(_mask(call))
    assert reached.max() == 1, "no pair is computed twice"
    assert bool((reached[mask] == 1).all()), "every kept pair is computed"
    assert bool(mask[kept == 2].all()), "without a mask only kept pairs are computed"


def _places(batch, t, tile):
    first = batch.q_first + t * batch.q_step if batch.q_tiles is None else int(batch.q_tiles[t]) * tile[0]
    queries = first + torch.arange(batch.queries)
    if batch.k_tiles is None:
        return queries, batch.k_first + t * batch.k_step + torch.arange(batch.keys)
    keys = (torch.from_numpy(batch.k_tiles[t])[:, None] * tile[1] + torch.arange(tile[1])).flatten()
    return queries, keys[keys < 1000]


def _mask(call):
    from maskc import reference

    found = reference.mask(call.spec, call.sizes, {name: x.numpy() for name, x in call.inputs.items()})
    return found.reshape(1000, 1000)


def test_windows_share_one_mask_and_are_read_in_place(monkeypatch):
    made = []
    original = tiled._Share._made_mask

    def counted(self, lanes, tiles):
        made.append(self.batch)
        return original(self, lanes, tiles)

    monkeypatch.setattr(tiled._Share, "_made_mask", counted)
    call = cases.call_of("window", heads=3, kv_heads=3, q_len=4096, dims=(4, 4))
    tiled.forward(call)
    assert len(made) <= 4, "the first rows, and one mask for all others"
    assert all(batch.k_tiles is None for batch in made)
    assert max(batch.tiles for batch in made) >= 60
    made.clear()
    tiled.forward(call)
    assert not made, "the plan keeps them"


def test_fallback_without_the_fused_kernel(monkeypatch):
    monkeypatch.setattr("maskc.runtime.fused._schemas_match", lambda: False)
    for name in ("window", "documents", "alibi", "minus infinity", "far"):
        cases.assert_tiled_is_right(cases.call_of(name, batch=2, q_len=200, dims=(8, 5)))
    cases.assert_tiled_is_right(cases.call_of("window", q_len=200, dtype=torch.bfloat16))


def test_this_torch_has_the_fused_kernel():
    from maskc.runtime import fused

    assert fused._schemas_match()
