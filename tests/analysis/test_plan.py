"""Plans: what they expand to, the runs that kernels walk, the clauses they leave open, and the figures of a report."""

import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from random_specs import INT, Draw, K, Q, binary, whole

from maskc.analysis import bounds
from maskc.analysis import plan as planning
from maskc.analysis.bounds import Analysis, tile_classes
from maskc.analysis.interval import Truth
from maskc.analysis.plan import BlockPlan, build, expand, statistics, tile_map
from maskc.analysis.runs import TileRuns, runs_on_device
from maskc.expr import TRUE, Coordinate, Count, Index, Parameter, Position, Read, Unary, UnaryOp
from maskc.reference import mask
from maskc.spec import Dim, DimKind, InputSpec, MaskSpec, ParameterSpec, Sizes

torch.set_num_threads(1)
q, k = Position(INT, Q), Position(INT, K)
d = binary("-", q, k)
CAUSAL = MaskSpec("causal", clauses=(binary("<=", k, q),))
WINDOW = MaskSpec("window", clauses=(binary("<=", k, q), binary("<", d, whole(20))))
DOCUMENTS = MaskSpec(
    "documents",
    inputs=(InputSpec("doc", INT, (Dim(DimKind.SEQ, "seq"),), sorted=True),),
    clauses=(binary("<=", k, q), binary("==", Read(INT, "doc", (q,)), Read(INT, "doc", (k,)))),
)


def walked(runs: TileRuns, columns: int) -> NDArray[np.bool_]:
    """The tiles that a kernel visits: it counts down `tiles` and goes to the next run where one ends."""
    maps, rows = runs.first.shape
    seen = np.zeros((maps, rows, columns), np.bool_)
    for m in range(maps):
        for row in range(rows):
            left, run, last = int(runs.tiles[m, row]), int(runs.first[m, row]), -1
            while left > 0:
                start, stop = int(runs.start[run]), int(runs.stop[run])
                assert last < start < stop <= columns, "runs ascend, are disjoint and do not touch"
                seen[m, row, start:stop] = True
                left, run, last = left - (stop - start), run + 1, stop
            assert left == 0
    return seen


def check(plan: BlockPlan, spec: MaskSpec, inputs: dict[str, NDArray[Any]] | None = None) -> None:
    """The plan means what the mask means, row by row and column by column."""
    kept = mask(spec, plan.sizes, inputs).reshape(*plan.maps, plan.sizes.q_len, plan.sizes.k_len)
    np.testing.assert_array_equal(expand(plan, inputs), kept)
    np.testing.assert_array_equal(expand(plan, inputs, K), kept)
    classes = tile_map(plan)
    (part,) = plan.parts
    for truth, runs in part.by_query.kinds:
        np.testing.assert_array_equal(walked(runs, classes.shape[2]), classes == truth)
    for truth, runs in part.by_key.kinds:
        np.testing.assert_array_equal(walked(runs, classes.shape[1]).swapaxes(1, 2), classes == truth)
    for _, runs in (*part.by_query.kinds, *part.by_key.kinds):
        assert {runs.first.dtype, runs.tiles.dtype, runs.start.dtype, runs.stop.dtype} == {np.dtype(np.int32)}
        assert runs.start[-1] == runs.stop[-1] == 0, "kernels read one entry ahead"
    rows, columns = plan.sizes.q_len // plan.tile[0], plan.sizes.k_len // plan.tile[1]
    assert not (classes[:, rows:] == Truth.ALWAYS).any()
    assert not (classes[:, :, columns:] == Truth.ALWAYS).any()


@pytest.mark.parametrize("first", range(0, 240, 60))
def test_random_plans_expand_to_the_mask(first: int) -> None:
    for seed in range(first, first + 60):
        draw = Draw(seed)
        spec = draw.spec()
        check(build(spec, draw.sizes, (7, 16), draw.inputs), spec, draw.inputs)


@pytest.mark.slow
def test_many_random_plans_expand_to_the_mask() -> None:
    for seed in range(20_000, 22_000):
        draw = Draw(seed)
        spec = draw.spec(clauses=3)
        tile = ((1, 1), (5, 3), (16, 16), (64, 32))[seed % 4]
        check(build(spec, draw.sizes, tile, draw.inputs), spec, draw.inputs)


def test_plans_in_small_chunks_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs along both sides are put together over chunks of rows that leave dead columns out."""
    monkeypatch.setattr(bounds, "_MANY", 4)
    monkeypatch.setattr(bounds, "_COARSER", 3)
    monkeypatch.setattr(bounds, "_CELLS", 50)
    monkeypatch.setattr(planning, "_PIECE", 5)
    for seed in range(60):
        draw = Draw(seed)
        spec = draw.spec()
        check(build(spec, draw.sizes, (4, 4), draw.inputs), spec, draw.inputs)
    for spec in (CAUSAL, WINDOW):
        for length in (1, 63, 130):
            check(build(spec, Sizes(length, length), (4, 4)), spec)


@pytest.mark.parametrize("length", [0, 1, 2, 17, 63, 64, 65, 130, 257])
def test_lengths_that_are_no_multiples(length: int) -> None:
    for spec in (MaskSpec("all"), CAUSAL, WINDOW):
        for sizes in (Sizes(length, length), Sizes(length, 40), Sizes(40, length, q_offset=5)):
            for tile in ((16, 64), (64, 16)):
                check(build(spec, sizes, tile), spec)


def test_runs_of_a_window() -> None:
    (part,) = build(WINDOW, Sizes(64, 64), (8, 8)).parts
    full, partial = part.by_query.full, part.by_query.partial
    assert full.tiles[0].tolist() == [0, 1, 1, 1, 1, 1, 1, 1]
    assert full.start.tolist() == [0, 1, 2, 3, 4, 5, 6, 0]
    assert full.stop.tolist() == [1, 2, 3, 4, 5, 6, 7, 0]
    assert partial.tiles[0].tolist() == [1, 1, 2, 3, 3, 3, 3, 3]
    assert partial.first[0].tolist() == [0, 1, 2, 4, 6, 8, 10, 12]
    assert partial.start[4:6].tolist() == [0, 3]
    assert partial.stop[4:6].tolist() == [2, 4]


def test_a_clause_that_is_settled_in_every_partial_tile_is_not_evaluated() -> None:
    never_open = binary("<", d, whole(1000))
    blocks = binary("==", binary("//", q, whole(16)), binary("//", k, whole(16)))
    spec = MaskSpec("m", clauses=(never_open, binary("<=", k, q), blocks))
    (part,) = build(spec, Sizes(64, 64), (16, 16)).parts
    assert part.open_clauses == (1,)
    assert part.predicate == spec.clauses[1]
    (part,) = build(spec, Sizes(64, 64), (32, 32)).parts
    assert part.open_clauses == (1, 2)
    assert build(MaskSpec("m", clauses=(blocks,)), Sizes(64, 64), (16, 16)).parts[0].predicate == TRUE


def test_a_ragged_tail_is_partial_but_opens_no_clause() -> None:
    plan = build(MaskSpec("m", clauses=(binary("<=", whole(0), k),)), Sizes(20, 20), (16, 16))
    assert tile_map(plan).tolist() == [[[2, 1], [1, 1]]]
    assert plan.parts[0].open_clauses == ()


def test_documents_of_one_length_leave_their_clause_closed() -> None:
    doc = {"doc": np.repeat(np.arange(4), 16)}
    (part,) = build(DOCUMENTS, Sizes(64, 64), (16, 16), doc).parts
    assert part.open_clauses == (0,)
    check(build(DOCUMENTS, Sizes(64, 64), (24, 16), doc), DOCUMENTS, doc)


def test_maps_per_batch_row_and_head() -> None:
    label = InputSpec("label", INT, (Dim(DimKind.BATCH, "batch"), Dim(DimKind.HEAD, "head"), Dim(DimKind.SEQ, "seq")))
    lead = (Index(INT, Count.BATCH), Index(INT, Count.HEAD))
    met = binary("==", Read(INT, "label", (*lead, q)), Read(INT, "label", (*lead, k)))
    spec = MaskSpec("m", inputs=(label,), clauses=(met, binary("<=", k, q)))
    labels = {"label": np.sort(np.random.default_rng(0).integers(0, 4, (2, 3, 50)))}
    plan = build(spec, Sizes(50, 50, batch=2, heads=3, kv_heads=3), (8, 8), labels)
    assert plan.maps == (2, 3)
    check(plan, spec, labels)
    assert build(spec, Sizes(50, 50), (8, 8), {"label": labels["label"][:1, :1]}).maps == (1, 1)


def test_runs_made_on_a_device_are_those_of_the_host() -> None:
    for seed in range(40):
        draw = Draw(seed)
        spec, tile, sizes = draw.spec(), (7, 5), draw.sizes
        part = build(spec, sizes, tile, draw.inputs).parts[0]
        tensors = {name: torch.from_numpy(value) for name, value in draw.inputs.items()}
        analysis = Analysis(spec.predicate, sizes, tensors, xp=torch, device="cpu")
        classes = analysis.every(tile)
        for xp, given in ((torch, classes), (np, classes.numpy())):
            by_query, by_key = runs_on_device(given, sizes, tile, xp)
            for found, wanted, columns in (
                (by_query.full, part.by_query.full, classes.shape[2]),
                (by_query.partial, part.by_query.partial, classes.shape[2]),
                (by_key.full, part.by_key.full, classes.shape[1]),
                (by_key.partial, part.by_key.partial, classes.shape[1]),
            ):
                np.testing.assert_array_equal(walked(found, columns), walked(wanted, columns))
                assert found.start.dtype == (torch.int32 if xp is torch else np.int32)
                assert found.start[-1] == found.stop[-1] == 0


def test_runs_on_a_device_never_look_at_the_data() -> None:
    doc = torch.zeros(1000, dtype=torch.int64, device="meta")
    sizes = Sizes(1000, 1000)
    classes = Analysis(DOCUMENTS.predicate, sizes, {"doc": doc}, xp=torch, device="meta").every((64, 32))
    by_query, by_key = runs_on_device(classes, sizes, (64, 32), torch)
    assert [(r.first.shape, r.start.shape) for _, r in by_query.kinds] == [((1, 16), (16 * 16 + 1,))] * 2
    assert [(r.first.shape, r.stop.shape) for _, r in by_key.kinds] == [((1, 32), (32 * 8 + 1,))] * 2


def test_statistics_are_exact() -> None:
    for seed in range(120):
        draw = Draw(seed)
        spec, sizes = draw.spec(), draw.sizes
        plan = build(spec, sizes, (16, 32), draw.inputs)
        found = statistics(plan, draw.inputs)
        classes = tile_map(plan)
        kept = mask(spec, sizes, draw.inputs).reshape(len(classes), sizes.q_len, sizes.k_len)
        wide = [block.any((1, 2)) for row in _bands(kept, 1) for block in _bands(row, 2)]
        assert found.live_pairs == kept.sum(), f"seed {seed}"
        assert found.flex_pairs == 128 * 128 * sum(int(w.sum()) for w in wide), f"seed {seed}"
        assert found.computed_pairs == 16 * 32 * np.count_nonzero(classes)
        assert [found.full_tiles, found.partial_tiles, found.empty_tiles] == [(classes == c).sum() for c in (2, 1, 0)]
        assert (found.batch_rows, found.heads) == plan.maps


def _bands(kept: NDArray[np.bool_], axis: int) -> list[NDArray[np.bool_]]:
    """A mask cut into pieces of 128 along an axis."""
    return [kept.take(range(s, min(s + 128, kept.shape[axis])), axis) for s in range(0, kept.shape[axis], 128)]


def test_ratios_of_a_window() -> None:
    """4096 tokens, window 256: 32 rows of 128 x 128 tiles hold 3 live tiles each but the first two."""
    spec = MaskSpec("m", clauses=(binary("<=", k, q), binary("<", d, whole(256))))
    found = statistics(build(spec, Sizes(4096, 4096), (64, 64)))
    live = sum(min(i + 1, 256) for i in range(4096))
    assert found.live_pairs == live
    assert found.flex_pairs == (1 + 2 + 30 * 3) * 128 * 128
    assert found.computed_pairs == (1 + 2 + 3 + 4 + 60 * 5) * 64 * 64
    assert found.efficiency == live / found.computed_pairs
    assert found.gain == found.flex_pairs / found.computed_pairs
    assert found.order_gain == 1.0


def test_counting_by_tables_equals_counting_pairs() -> None:
    y, x = ((Coordinate(INT, Q, a), Coordinate(INT, K, a)) for a in "yx")
    grid = (("y", 9), ("x", 12))
    near = binary("<=", Unary(INT, UnaryOp.ABS, binary("-", *y)), whole(2))
    column = binary("==", binary("//", x[0], whole(5)), binary("//", x[1], whole(5)))
    left = binary("<", x[1], whole(7))
    cases = [
        (CAUSAL.clauses, Sizes(100, 70, k_offset=20)),
        ((binary("<", k, whole(7)),), Sizes(30, 20)),
        ((binary("==", binary("//", q, whole(7)), binary("//", k, whole(9))),), Sizes(50, 40, q_offset=3)),
        ((near, column), Sizes(108, 108, axes=grid)),
        ((near, left), Sizes(108, 108, axes=grid)),
        ((near,), Sizes(108, 108, axes=grid)),
        ((near,), Sizes(60, 108, axes=grid)),
        ((binary("<", d, Index(INT, Count.HEAD)),), Sizes(40, 40, heads=4, kv_heads=2)),
    ]
    for clauses, sizes in cases:
        spec = MaskSpec("m", axes=tuple(n for n, _ in sizes.axes), clauses=clauses)
        counted = Analysis(spec.predicate, sizes).count()
        assert statistics(build(spec, sizes, (16, 16))).live_pairs == mask(spec, sizes).sum()
        assert counted in (None, mask(spec, sizes).sum())
        assert (counted is None) == (sizes.q_len == 60)


def test_a_plan_is_readable() -> None:
    spec = MaskSpec("window", (ParameterSpec("w", INT, 20),), clauses=(binary("<", d, Parameter(INT, "w")),))
    plan = build(spec, Sizes(130, 64, parameters=(("w", 20),)), (64, 64))
    assert str(plan) == (
        "plan of window: 130 queries x 64 keys, one map\n"
        "  tiles of 64 x 64: 3 rows x 1 columns\n"
        "  part 0: queries row-major, keys row-major\n"
        "    0 full, 2 partial, 1 empty tiles\n"
        "    inside partial tiles: (q - k) < w"
    )


def test_a_long_plan_costs_nothing_per_pair() -> None:
    spec = MaskSpec("m", clauses=(binary("<=", k, q), binary("<", d, whole(512))))
    tracemalloc.start()
    plan = build(spec, Sizes(1 << 20, 1 << 20), (128, 128))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    full, partial = (int(runs.tiles.sum()) for _, runs in plan.parts[0].by_query.kinds)
    assert (full, partial) == (3 * 8192 - 6, 2 * 8192 - 4)
    assert peak < 100e6


def test_classes_and_plan_agree() -> None:
    doc = {"doc": np.sort(np.random.default_rng(1).integers(0, 5, 128))}
    plan = build(DOCUMENTS, Sizes(128, 128), (16, 16), doc)
    classes = tile_classes(DOCUMENTS.predicate, Sizes(128, 128), (16, 16), doc)
    np.testing.assert_array_equal(tile_map(plan), classes[0])
