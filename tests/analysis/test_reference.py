"""The meaning, pair by pair, against masks written out in plain numpy."""

import tracemalloc

import numpy as np
import pytest
from random_specs import BOOL, INT, Draw, K, Q, binary, whole

from maskc import reference
from maskc.expr import Coordinate, Count, Index, Position, Read
from maskc.proofs.witness import refute
from maskc.reference import live_pairs, mask, mask_dims
from maskc.spec import Claim, Dim, DimKind, InputSpec, MaskSpec, Sizes

q, k = Position(INT, Q), Position(INT, K)
d = binary("-", q, k)


def test_a_window_at_offsets() -> None:
    spec = MaskSpec("m", clauses=(binary("<=", whole(0), d), binary("<", d, whole(3))))
    q_at, k_at = np.arange(4)[:, None] + 5, np.arange(7)[None, :] + 2
    wanted = (q_at >= k_at) & (q_at - k_at < 3)
    np.testing.assert_array_equal(mask(spec, Sizes(4, 7, q_offset=5, k_offset=2)), wanted)
    moved = Sizes(4, 7, batch=2, q_offset=None, k_offset=2)
    both = mask(spec, moved, {"q_offset": np.array([5, 0])})
    assert mask_dims(spec, moved) == (True, False)
    assert both.shape == (2, 4, 7)
    np.testing.assert_array_equal(both[0], wanted)
    np.testing.assert_array_equal(both[1], (q_at - 5 >= k_at) & (q_at - 5 - k_at < 3))


def test_no_clause_keeps_every_pair_and_empty_sides_have_none() -> None:
    assert mask(MaskSpec("m"), Sizes(3, 2)).all()
    assert mask(MaskSpec("m"), Sizes(0, 5)).shape == (0, 5)
    assert live_pairs(MaskSpec("m"), Sizes(5, 0)).tolist() == [[0]]


def test_dims_follow_what_the_predicate_reads() -> None:
    label = InputSpec("label", INT, (Dim(DimKind.BATCH, "batch"), Dim(DimKind.HEAD, "head"), Dim(DimKind.SEQ, "seq")))
    lead = (Index(INT, Count.BATCH), Index(INT, Count.HEAD))
    met = binary("==", Read(INT, "label", (*lead, q)), Read(INT, "label", (*lead, k)))
    spec = MaskSpec("m", inputs=(label,), clauses=(met,))
    labels = np.random.default_rng(0).integers(0, 3, (2, 3, 9))
    sizes = Sizes(9, 9, batch=2, heads=3, kv_heads=3)
    kept = mask(spec, sizes, {"label": labels})
    np.testing.assert_array_equal(kept, labels[..., :, None] == labels[..., None, :])
    np.testing.assert_array_equal(live_pairs(spec, sizes, {"label": labels}), kept.sum((2, 3)))
    first = MaskSpec("m", clauses=(binary("<=", Index(INT, Count.KV_HEAD), d),))
    assert mask(first, Sizes(4, 4, batch=2, heads=4, kv_heads=2)).shape == (4, 4, 4)


def test_counts_in_chunks_equal_counts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(20):
        draw = Draw(seed)
        spec = draw.spec()
        whole_ = mask(spec, draw.sizes, draw.inputs)
        monkeypatch.setattr(reference, "_CHUNK", 7)
        np.testing.assert_array_equal(mask(spec, draw.sizes, draw.inputs), whole_)
        assert live_pairs(spec, draw.sizes, draw.inputs).sum() == whole_.sum()
        monkeypatch.undo()


def test_counting_needs_no_memory_per_pair() -> None:
    tracemalloc.start()
    count = live_pairs(MaskSpec("m", clauses=(binary("<=", k, q),)), Sizes(8192, 8192))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count.tolist() == [[8192 * 8193 // 2]]
    assert peak < 40e6


def test_a_claim_is_refuted_by_the_smallest_kept_pair() -> None:
    kept = binary("<", d, whole(4))
    holds = Claim(binary("<=", d, whole(3)), over_pairs=True)
    fails = Claim(binary("<=", k, q), over_pairs=True)
    sizes_only = Claim(binary("<", whole(1), whole(0)), over_pairs=False)
    spec = MaskSpec("m", clauses=(kept,), claims=(holds, fails, sizes_only))
    (witness,) = refute(spec, Sizes(5, 5, q_offset=2, k_offset=1))
    assert (witness.claim, witness.batch, witness.head, witness.q, witness.k) == (fails, 0, 0, 2, 3)
    place = "q = 2, k = 3, head 0, batch row 0; 5 queries x 5 keys"
    assert str(witness) == f"claim k <= q fails for the kept pair {place}"


def test_a_witness_names_the_head_that_breaks_the_claim() -> None:
    claim = Claim(binary("!=", binary("+", d, Index(INT, Count.HEAD)), whole(2)), over_pairs=True)
    (witness,) = refute(MaskSpec("m", clauses=(binary("<=", k, q),), claims=(claim,)), Sizes(3, 3, heads=4, kv_heads=4))
    assert (witness.q, witness.k, witness.head) == (0, 0, 2)


def test_coordinates_of_a_grid() -> None:
    axes = (("y", 3), ("x", 5))
    near = [
        binary("<=", binary("max", binary("-", a, b), binary("-", b, a)), whole(1))
        for a, b in ((Coordinate(INT, Q, n), Coordinate(INT, K, n)) for n, _ in axes)
    ]
    y, x = np.divmod(np.arange(15), 5)
    wanted = (abs(y[:, None] - y) <= 1) & (abs(x[:, None] - x) <= 1)
    np.testing.assert_array_equal(
        mask(MaskSpec("m", axes=("y", "x"), clauses=tuple(near)), Sizes(15, 15, axes=axes)), wanted
    )


def test_a_predicate_that_reads_no_position_fills_the_mask() -> None:
    on = MaskSpec("m", clauses=(Read(BOOL, "on", (Index(INT, Count.HEAD),)),))
    kept = mask(on, Sizes(2, 3, heads=2, kv_heads=2), {"on": np.array([True, False])})
    assert kept.tolist() == [[[True] * 3] * 2, [[False] * 3] * 2]
