"""Mistakes that attention kernels are known for, one test each, through the public interface."""

from dataclasses import replace

import engine_cases as cases
import pytest
import torch
from kernels import plans

import maskc
from maskc.analysis import plan as planning
from maskc.analysis.runs import TileRuns, Walk
from maskc.check import load
from maskc.diagnostics import MaskUnsupportedError
from maskc.runtime import tables, tiled, tolerance


@pytest.fixture(params=["tiled", "dense"])
def engine(request):
    return request.param


def leaves(*shape_or_tensors):
    return [x.detach().requires_grad_() for x in shape_or_tensors]


def qkv(q_len=130, k_len=None, heads=2, kv_heads=2, dim=8, batch=1, dtype=torch.float32):
    return cases.tensors(batch, heads, kv_heads, q_len, k_len or q_len, (dim, dim), dtype)


@pytest.mark.parametrize("rows", [[70], [0], [129], list(range(14)), list(range(64)), list(range(130))])
def test_empty_rows_leave_all_others_as_they_are(engine, rows):
    text = "mask m:\n    input live: bool[head, seq]\n    keep live[q] and q - k < 90 and k <= q\n"
    attention = maskc.compile_attention(text, engine=engine)
    live = torch.ones(2, 130, dtype=torch.bool)
    q, k, v = leaves(*qkv())
    whole, whole_lse = attention(q, k, v, live=live, return_lse=True)
    live[1, rows] = False
    out, lse = attention(q, k, v, live=live, return_lse=True)
    torch.testing.assert_close(out[live[None]], whole[live[None]], atol=2e-7, rtol=1e-6)
    torch.testing.assert_close(lse[live[None]], whole_lse[live[None]])
    assert bool((out[0, 1, rows] == 0).all())
    assert bool(torch.isneginf(lse[0, 1, rows]).all())
    gradients = torch.autograd.grad((out, lse), (q, k, v), (torch.ones_like(out), torch.ones_like(lse)))
    assert all(bool(torch.isfinite(x).all()) for x in gradients)
    assert bool((gradients[0][0, 1, rows] == 0).all())


def test_nothing_that_arrives_at_an_empty_row_passes(engine):
    attention = maskc.compile_attention("mask m:\n    keep k < q - 2\n", engine=engine)
    q, k, v = leaves(*qkv(70))
    out, lse = attention(q, k, v, return_lse=True)
    d_out, d_lse = torch.randn_like(out), torch.zeros_like(lse)
    d_out[:, :, :3] = 0
    clean = torch.autograd.grad((out, lse), (q, k, v), (d_out, d_lse), retain_graph=True)
    d_out[:, :, :3] = torch.randn_like(d_out[:, :, :3])
    d_lse[:, :, :3] = 5.0
    soiled = torch.autograd.grad((out, lse), (q, k, v), (d_out, d_lse))
    assert all(torch.equal(a, b) for a, b in zip(clean, soiled, strict=True))


def test_tiles_without_pairs_are_written_too(engine):
    attention = maskc.compile_attention("mask m:\n    keep 128 <= q < 192 and 64 <= k < 128\n", engine=engine)
    q, k, v = leaves(*qkv(300))
    out = attention(q, k, v)
    d_q, d_k, d_v = torch.autograd.grad(out.sum(), (q, k, v))
    outside, unseen = torch.ones(300, dtype=torch.bool), torch.ones(300, dtype=torch.bool)
    outside[128:192], unseen[64:128] = False, False
    for x, rows in ((out, outside), (d_q, outside), (d_k, unseen), (d_v, unseen)):
        assert bool((x[:, :, rows] == 0).all())
        assert bool((x[:, :, ~rows] != 0).any())


@pytest.mark.parametrize("length", [1, 33, 64, 65, 143])
@pytest.mark.parametrize("name", ["window", "documents", "alibi", "softcap", "strided"])
def test_what_lies_beside_a_tensor_is_never_read(name, length):
    call = cases.call_of(name, q_len=length)

    def guarded(x):
        buffer = torch.full((x.shape[0], x.shape[1], length + 256, x.shape[3]), torch.nan)
        buffer[:, :, 128 : 128 + length] = x
        return buffer[:, :, 128 : 128 + length]

    cases.assert_tiled_is_right(cases.with_strides(call, guarded))


@pytest.mark.parametrize("score", ["score + log(q - k + 1.0)", "score / (q - k + 0.5)", "score * sqrt(q - k + 0.0)"])
def test_scores_that_are_wild_at_dropped_pairs(engine, score):
    attention = maskc.compile_attention(f"mask m:\n    keep k <= q\n    score = {score}\n", engine=engine)
    q, k, v = leaves(*qkv(1025, heads=1, kv_heads=1, dim=4))
    out, lse = attention(q, k, v, return_lse=True)
    gradients = torch.autograd.grad(out.sum() + lse.sum(), (q, k, v))
    assert all(bool(torch.isfinite(x).all()) for x in (out, lse, *gradients))


def test_tables_are_not_read_past_their_end(engine):
    text = "mask m:\n    input t: int[seq]\n    keep t[q + 3] >= 0 and t[k - 2] == 0 or k == q\n"
    attention = maskc.compile_attention(text, engine=engine)
    reference = maskc.compile_attention(text, engine="dense")
    t = (torch.arange(65) % 3 == 0).long()
    torch.testing.assert_close(attention(*qkv(65), t=t), reference(*qkv(65), t=t))


def test_one_attention_serves_every_length():
    attention, reference = (maskc.compile_attention(cases.SPECS["window"], engine=e) for e in ("tiled", "dense"))
    for length in (100, 300, 40, 64, 301, 100):
        torch.testing.assert_close(attention(*qkv(length)), reference(*qkv(length)))


@pytest.mark.parametrize("length", [*range(1, 34, 4), 33])
def test_very_short_sequences(length):
    cases.assert_tiled_is_right(cases.call_of("causal", q_len=length, dims=(64, 64)))


@pytest.mark.parametrize(("q_len", "k_len"), [(200, 300), (3, 128), (1, 611), (64, 65)])
@pytest.mark.parametrize("name", ["causal", "window"])
def test_aligned_ends(name, q_len, k_len):
    cases.assert_tiled_is_right(cases.call_of(name, q_len=q_len, k_len=k_len, q_offset=k_len - q_len))


def test_more_queries_than_keys_aligned_at_the_end(engine):
    attention = maskc.compile_attention("mask m:\n    keep k <= q\n", engine=engine)
    q, k, v = qkv(300, 200)
    out, lse = attention(q, k, v, k_offset=100, return_lse=True)
    assert bool((out[:, :, :100] == 0).all())
    assert bool(torch.isneginf(lse[:, :, :100]).all())
    torch.testing.assert_close(out[:, :, 100:], attention(q[:, :, 100:], k, v))


@pytest.mark.parametrize("name", ["causal", "window", "sink", "strided", "alibi", "softcap"])
def test_decoding_token_by_token_is_the_whole(name):
    call = cases.call_of(name, q_len=70)
    attention = maskc.compile_attention(call.spec)
    whole = attention(call.q, call.k, call.v, **call.inputs)
    for i in (0, 1, 37, 63, 64, 69):
        row = attention(
            call.q[:, :, i : i + 1], call.k[:, :, : i + 1], call.v[:, :, : i + 1], q_offset=i, **call.inputs
        )
        torch.testing.assert_close(row, whole[:, :, i : i + 1])


@pytest.mark.parametrize("shift", [0, 5, 100])
def test_floor_division_of_negative_numbers(shift):
    text = (
        "mask m(c: int = 0):\n    keep (q - c) // 7 == (k - c) // 7 or (k - c) % 5 == 0\n"
        "    score += ((k - c) % 3) * 0.1 + ((k - c) // 9) * 0.01\n"
    )
    attention, reference = (maskc.compile_attention(text, engine=e, c=shift) for e in ("tiled", "dense"))
    torch.testing.assert_close(attention(*qkv(90)), reference(*qkv(90)))
    kept = attention.mask(90)
    expected = [[(q - shift) // 7 == (k - shift) // 7 or (k - shift) % 5 == 0 for k in range(90)] for q in range(90)]
    assert kept.tolist() == expected


def test_windows_at_their_limits(engine):
    window = maskc.compile_attention("mask m(window: int):\n    keep 0 <= q - k < window\n", engine=engine)
    causal = maskc.compile_attention("mask m:\n    keep k <= q\n", engine=engine)
    q, k, v = qkv(130)
    assert bool((window(q, k, v, window=0) == 0).all())
    torch.testing.assert_close(window(q, k, v, window=1), v)
    assert not torch.allclose(window(q, k, v, window=128)[:, :, 128:], causal(q, k, v)[:, :, 128:], atol=1e-4)
    assert torch.allclose(window(q, k, v, window=129)[:, :, :129], causal(q, k, v)[:, :, :129], atol=1e-6)
    for reach in (130, 137):
        torch.testing.assert_close(window(q, k, v, window=reach), causal(q, k, v))


@pytest.mark.parametrize("grid", [(1, 9), (2, 9), (9, 1), (2, 2)])
def test_axes_shorter_than_the_window(grid):
    text = (
        "mask m:\n    axes y, x\n    keep abs(q.y - k.y) <= 3 and (q.y - k.y) % 3 == 0\n"
        "    keep abs(q.x - k.x) <= 9 and (q.x - k.x) % 3 == 0\n"
    )
    attention, reference = (maskc.compile_attention(text, engine=e, y=grid[0], x=grid[1]) for e in ("tiled", "dense"))
    torch.testing.assert_close(attention(*qkv(grid[0] * grid[1])), reference(*qkv(grid[0] * grid[1])))


@pytest.mark.parametrize("name", ["window", "causal", "sink", "neighbours", "everything"])
def test_full_and_partial_tiles_give_the_same(name, monkeypatch):
    given = {"y": 20, "x": 20} if name == "neighbours" else {}
    call = cases.call_of(name, q_len=400, given=given)
    d_out, d_lse = cases.upstream(call)
    usual = cases.run_tiled(call, d_out, d_lse)
    build = planning.build

    def all_partial(spec, sizes, tile, inputs=None):
        plan = build(spec, sizes, tile, inputs)
        (part,) = plan.parts
        full = part.by_query.full
        joined = TileRuns(*_joined(full, part.by_query.partial))
        none = TileRuns(full.first * 0, full.tiles * 0, full.start[-1:], full.stop[-1:])
        return replace(plan, parts=(replace(part, predicate=spec.predicate, by_query=Walk(none, joined)),))

    monkeypatch.setattr(tables.planning, "build", all_partial)
    fresh = replace(call, spec=replace(call.spec, name="all partial"))
    careful = cases.run_tiled(fresh, d_out, d_lse)
    for quantity in usual:
        torch.testing.assert_close(usual[quantity], careful[quantity], atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "lengths", "by"),
    [
        *((name, (400, 400), "(q // 64 + k // 64) % 3 < 2 and k % 5 > 0") for name in ("window", "sink", "documents")),
        ("alibi", (400, 400), "k % 2 == 0"),
        # Neighbouring rows of the first part, worth joining; the second part has what is dead between them.
        ("columns", (300, 1200), "k // 64 < 14 + q // 64 % 2"),
    ],
)
def test_parts_of_a_plan_are_merged(name, lengths, by, monkeypatch):
    call = cases.call_of(name, batch=2, q_len=lengths[0], k_len=lengths[1])
    by = load(f"mask some:\n    keep {by}\n").predicate

    def in_two_parts(spec, sizes, tile, inputs=None):
        return plans.divided_plan(spec, sizes, tile, inputs, by, (plans.contiguous(), plans.contiguous()))

    monkeypatch.setattr(tables.planning, "build", in_two_parts)
    cases.assert_tiled_is_right(call)


def test_indexed_plans_are_refused_by_the_tiled_engine(monkeypatch):
    call = cases.call_of("window", q_len=100)

    def packed(spec, sizes, tile, inputs=None):
        return plans.plan(spec, sizes, tile, inputs, plans.packed())

    monkeypatch.setattr(tables.planning, "build", packed)
    with pytest.raises(MaskUnsupportedError, match="slots are positions"):
        tiled.forward(call)


def _joined(full, partial):
    """Runs of both kinds, row by row, ascending."""
    import numpy as np

    first, start, stop = [], [], []
    for m in range(full.first.shape[0]):
        for row in range(full.first.shape[1]):
            runs = sorted(_runs(full, m, row) + _runs(partial, m, row))
            first.append(len(start))
            start += [a for a, _ in runs]
            stop += [b for _, b in runs]
    shape = full.first.shape
    return (
        np.array(first, np.int32).reshape(shape),
        full.tiles + partial.tiles,
        np.array([*start, 0], np.int32),
        np.array([*stop, 0], np.int32),
    )


def _runs(runs, m, row):
    at, left, found = int(runs.first[m, row]), int(runs.tiles[m, row]), []
    while left:
        found.append((int(runs.start[at]), int(runs.stop[at])))
        left -= found[-1][1] - found[-1][0]
        at += 1
    return found


@pytest.mark.parametrize("changed", [{}, {"q_offset": 40}, {"k_offset": 9}, {"scale": 0.7}, {"window": 33}])
@pytest.mark.parametrize("use_lse", [False, True])
def test_every_option_reaches_the_backward(changed, use_lse):
    options = dict(changed)
    scale = options.pop("scale", None)
    attention, reference = (
        maskc.compile_attention(cases.SPECS["window"], engine=e, scale=scale) for e in ("tiled", "dense")
    )
    q, k, v = leaves(*qkv(100))
    found = []
    for run in (attention, reference):
        out, lse = run(q, k, v, return_lse=True, **options)
        loss = (out * out).sum() + (torch.where(torch.isneginf(lse), 0, lse).sum() if use_lse else 0)
        found.append(torch.autograd.grad(loss, (q, k, v)))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


def test_upstream_gradients_of_any_strides(engine):
    attention = maskc.compile_attention(cases.SPECS["window"], engine=engine)
    q, k, v = leaves(*qkv(100))

    def gradients(loss_of):
        return torch.autograd.grad(loss_of(attention(q, k, v)), (q, k, v))

    def given(d_out):
        return torch.autograd.grad(attention(q, k, v), (q, k, v), d_out)

    weight = torch.randn(1, 100, 2, 8)
    forms = [
        (lambda out: out.sum(), torch.ones(1, 2, 100, 8)),
        (lambda out: (out.transpose(1, 2) * weight).sum(), weight.transpose(1, 2).contiguous()),
        (lambda out: torch.cat([out, torch.zeros(1, 2, 100, 3)], -1)[..., :8].sum(), torch.ones(1, 2, 100, 8)),
        (lambda out: out[..., 0].sum() + out[:, 1].sum(), _sliced()),
        (lambda out: out.mean((0, 1, 2)).sum(), torch.full((1, 2, 100, 8), 1 / 200)),
    ]
    for loss_of, d_out in forms:
        for a, b in zip(gradients(loss_of), given(d_out), strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def _sliced():
    d_out = torch.zeros(1, 2, 100, 8)
    d_out[..., 0] += 1
    d_out[:, 1] += 1
    return d_out


def test_a_score_that_forgets_the_score(engine):
    text = "mask m:\n    input bias: float[seq]\n    keep k <= q\n    score = score * 0.0 + bias[k]\n"
    attention = maskc.compile_attention(text, engine=engine)
    q, k, v = leaves(*qkv(70))
    bias = torch.randn(70)
    d_q, d_k, d_v = torch.autograd.grad(attention(q, k, v, bias=bias).square().sum(), (q, k, v))
    assert bool((d_q == 0).all())
    assert bool((d_k == 0).all())
    assert bool((d_v != 0).any())


def test_large_logits_are_better_than_sixteen_bit_arithmetic():
    call = cases.call_of("causal", q_len=200, dims=(64, 64), scale=6.0)
    d_out, d_lse = cases.upstream(call)
    expected = tolerance.reference(call, d_out, d_lse)
    eager = tolerance.reference(
        replace(call, q=call.q.bfloat16(), k=call.k.bfloat16(), v=call.v.bfloat16()), d_out, d_lse
    )
    for quantity, value in cases.run_tiled(call, d_out, d_lse).items():
        error = (value.double() - expected.values[quantity]).abs().max()
        assert float(error) < 0.05 * eager.dense_error[quantity]


def test_biases_of_minus_infinity_and_of_the_least_float(engine):
    text = "mask m:\n    input bias: float[seq]\n    score += bias[k]\n"
    attention = maskc.compile_attention(text, engine=engine)
    q, k, v = qkv(70)
    least = torch.finfo(torch.float32).min
    torch.testing.assert_close(attention(q, k, v, bias=torch.full((70,), least)), v.mean(2, keepdim=True).expand_as(v))
    bias = torch.zeros(70)
    bias[10:] = least
    torch.testing.assert_close(attention(q, k, v, bias=bias), attention(q, k[:, :, :10], v[:, :, :10], bias=bias))
    bias[10:] = -torch.inf
    torch.testing.assert_close(attention(q, k, v, bias=bias), attention(q, k[:, :, :10], v[:, :, :10], bias=bias))
    assert bool((attention(q, k, v, bias=torch.full((70,), -torch.inf)) == 0).all())


def test_lse_is_the_natural_logarithm(engine):
    attention = maskc.compile_attention("mask m:\n    pass\n", engine=engine, scale=0.3)
    q, k, v = qkv(1)
    out, lse = attention(q, k, v, return_lse=True)
    torch.testing.assert_close(lse, 0.3 * (q * k).sum(-1))
    torch.testing.assert_close(out, v)
    _, lse = maskc.compile_attention("mask m:\n    score = 0.0 * score\n", engine=engine)(*qkv(50), return_lse=True)
    torch.testing.assert_close(lse, torch.full((1, 2, 50), 50.0).log())


@pytest.mark.parametrize("parts", [2, 5])
def test_disjoint_masks_merge_to_their_union(engine, parts):
    text = "mask m(part: int = 0):\n    input owner: int[seq]\n    keep owner[k] == part and k <= q\n"
    attention = maskc.compile_attention(text, engine=engine)
    whole = maskc.compile_attention("mask m:\n    keep k <= q\n", engine=engine)
    q, k, v = leaves(*qkv(150))
    owner = torch.randint(0, parts, (150,), generator=torch.Generator().manual_seed(3))
    found = [attention(q, k, v, owner=owner, part=p, return_lse=True) for p in range(parts)]
    lse = torch.logsumexp(torch.stack([lse for _, lse in found]), 0)
    out = sum(out * torch.exp(one - lse).unsqueeze(-1) for out, one in found)
    expected, expected_lse = whole(q, k, v, return_lse=True)
    torch.testing.assert_close(lse, expected_lse, atol=2e-6, rtol=1e-6)
    torch.testing.assert_close(out, expected, atol=2e-6, rtol=1e-5)
    weight = torch.randn_like(out)
    merged = torch.autograd.grad((out * weight).sum(), (q, k, v))
    for a, b in zip(merged, torch.autograd.grad((expected * weight).sum(), (q, k, v)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_strange_strides():
    call = cases.call_of("window", batch=2, heads=4, kv_heads=2, q_len=130, dims=(8, 8))
    forms = [
        lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        lambda x: torch.stack([x, x], -1).flatten(-2)[..., ::2],
        lambda x: x.flip(2).contiguous().flip(2),
        lambda x: x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    ]
    for form in forms:
        cases.assert_tiled_is_right(cases.with_strides(call, form))
    cases.assert_tiled_is_right(replace(call, k=call.k[:, :1].expand(2, 2, 130, 8), v=call.v[:1].expand(2, 2, 130, 8)))


def test_slices_of_one_buffer_get_their_gradients_in_it(engine):
    attention = maskc.compile_attention(cases.SPECS["window"], engine=engine)
    buffer = torch.randn(2, 90, 3, 4, 8, requires_grad=True)
    q, k, v = (x.transpose(1, 2) for x in buffer.unbind(2))
    (gradient,) = torch.autograd.grad(attention(q, k, v).square().sum(), buffer)
    separate = leaves(q, k, v)
    expected = torch.autograd.grad(attention(*separate).square().sum(), separate)
    torch.testing.assert_close(gradient, torch.stack([x.transpose(1, 2) for x in expected], 2))


def test_masks_that_differ_in_one_number_are_not_mixed_up():
    attention = maskc.compile_attention(cases.SPECS["window"])
    q, k, v = qkv(130)
    results = [attention(q, k, v, window=w) for w in (10, 11, 10)]
    assert torch.equal(results[0], results[2])
    assert not torch.equal(results[0], results[1])
    other = maskc.compile_attention(cases.SPECS["window"].replace("0 <=", "1 <="), window=10)
    assert not torch.equal(other(q, k, v), results[0])


def test_batch_rows_share_what_does_not_name_them():
    attention = maskc.compile_attention("mask m:\n    input doc: int[seq]\n    keep doc[q] == doc[k]\n")
    q, k, v = qkv(90, batch=3)
    doc = torch.arange(90) // 25
    whole = attention(q, k, v, doc=doc)
    for b in range(3):
        torch.testing.assert_close(whole[b : b + 1], attention(q[b : b + 1], k[b : b + 1], v[b : b + 1], doc=doc))
    assert attention.plan(90, batch=3, heads=2, doc=doc).maps == (1, 1)
