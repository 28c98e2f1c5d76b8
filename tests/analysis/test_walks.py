"""Walks: positions of both sides, equal shares of rows of tiles, several parts, and what reads them back."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from kernels import plans
from numpy.typing import NDArray
from random_specs import INT, Draw, K, Q, binary, whole

from maskc.analysis.bounds import Analysis
from maskc.analysis.interval import Truth
from maskc.analysis.plan import BlockPlan, Part, build, class_at, expand, part_pairs, part_tiles, statistics, tile_map
from maskc.analysis.runs import TileRuns, Walk, listed, marked, own_tiles, runs_on_device, split
from maskc.commands.explain import Planned, explanation
from maskc.expr import Position
from maskc.reference import mask
from maskc.spec import MaskSpec, Sizes

torch.set_num_threads(1)
q, k = Position(INT, Q), Position(INT, K)
d = binary("-", q, k)
CAUSAL = MaskSpec("causal", clauses=(binary("<=", k, q),))
WINDOW = MaskSpec("window", clauses=(binary("<=", k, q), binary("<", d, whole(20))))
DILATED = MaskSpec("dilated", clauses=(*WINDOW.clauses, binary("==", binary("%", d, whole(4)), whole(0))))
TILE = (7, 16)


def layouts(seed: int, maps: int, lengths: tuple[int, int]) -> dict[str, plans.Layout]:
    """All kinds of layouts of random orders, some of them with an order for every map."""
    q_len, k_len = lengths
    q_order, k_order = (plans.shuffled(n, seed, gaps=seed % 4 * 3) for n in lengths)
    q_orders, k_orders = (plans.shuffled(n, seed, gaps=seed % 3, maps=maps) for n in lengths)
    return {
        "contiguous": plans.contiguous(),
        "ascending": plans.ordered(None, None),
        "residues": plans.ordered(plans.residues(q_len, 4), plans.residues(k_len, 4)),
        "shuffled": plans.ordered(q_order, k_order),
        "shuffled maps": plans.ordered(q_orders, k_orders),
        "packed": plans.packed(),
        "packed in order": plans.packed(q_order, k_order),
        "packed maps": plans.packed(q_orders, k_orders),
    }


def check(plan: BlockPlan, kept: plans.Mask, inputs: dict[str, NDArray[Any]] | None = None) -> None:
    """Both walks hold the kept pairs, and what reads the plan back is sound."""
    for owned in (Q, K):
        np.testing.assert_array_equal(expand(plan, inputs, owned).reshape(kept.shape), kept)
    classes = tile_map(plan)
    for map_, row, column in np.ndindex(classes.shape):
        inside = kept[map_][row * plan.tile[0] :, column * plan.tile[1] :][: plan.tile[0], : plan.tile[1]]
        assert not (classes[map_, row, column] == Truth.NEVER and inside.any())
        assert not (classes[map_, row, column] == Truth.ALWAYS and not inside.all())
    assert sum(part_pairs(plan, part, inputs) for part in plan.parts) == kept.sum()


def cut(part: Part, queries: int, keys: int) -> Part:
    """A part whose rows of both walks are cut into shares."""
    return replace(part, by_query=split(part.by_query, queries), by_key=split(part.by_key, keys))


@pytest.mark.parametrize("first", range(0, 48, 12))
def test_indexed_plans_expand_to_the_mask(first: int) -> None:
    for seed in range(first, first + 12):
        draw = Draw(seed)
        spec, sizes = draw.spec(), draw.sizes
        kept = plans.kept_by(spec, spec.predicate, sizes, draw.inputs)
        for layout in layouts(seed, len(kept), (sizes.q_len, sizes.k_len)).values():
            check(plans.plan(spec, sizes, TILE, draw.inputs, layout), kept, draw.inputs)


@pytest.mark.parametrize("lengths", [(0, 0), (0, 9), (9, 0), (1, 1), (64, 64), (65, 40), (13, 130)])
def test_lengths_that_are_no_multiples(lengths: tuple[int, int]) -> None:
    sizes = Sizes(*lengths)
    for spec in (MaskSpec("all"), DILATED, MaskSpec("none", clauses=(binary("<", q, whole(0)),))):
        kept = plans.kept_by(spec, spec.predicate, sizes, None)
        for layout in layouts(sum(lengths), 1, lengths).values():
            plan = plans.plan(spec, sizes, (16, 8), None, layout)
            check(plan, kept)
            check(replace(plan, parts=(cut(plan.parts[0], 3, 2),)), kept)


def test_brute_force_and_analysis_make_the_same_contiguous_plan() -> None:
    for spec in (MaskSpec("all"), CAUSAL, WINDOW):
        for sizes in (Sizes(64, 64), Sizes(50, 33, q_offset=4), Sizes(0, 5)):
            (found,), (made,) = build(spec, sizes, TILE).parts, plans.plan(spec, sizes, TILE).parts
            for ours, theirs in ((found.by_query, made.by_query), (found.by_key, made.by_key)):
                for (_, a), (_, b) in zip(ours.kinds, theirs.kinds, strict=True):
                    for x, y in ((a.first, b.first), (a.tiles, b.tiles), (a.start, b.start), (a.stop, b.stop)):
                        np.testing.assert_array_equal(x, y)


def test_parts_hold_the_pairs_together() -> None:
    near = binary("<", binary("%", binary("+", q, binary("*", k, whole(3))), whole(5)), whole(3))
    for seed in range(24):
        draw = Draw(seed)
        spec, sizes = draw.spec(), draw.sizes
        kept = plans.kept_by(spec, spec.predicate, sizes, draw.inputs)
        choice = list(layouts(seed, len(kept), (sizes.q_len, sizes.k_len)).values())
        pair = (choice[seed % len(choice)], choice[(seed * 3 + 1) % len(choice)])
        check(plans.divided_plan(spec, sizes, TILE, draw.inputs, near, pair), kept, draw.inputs)


def test_a_wrong_plan_is_seen() -> None:
    sizes = Sizes(40, 40)
    plan = plans.plan(WINDOW, sizes, TILE, layout=plans.packed())
    (part,) = plan.parts
    with pytest.raises(ValueError, match="computed twice"):
        expand(replace(plan, parts=(part, part)))
    walk = part.by_query
    assert walk.walked is not None
    for owned, side in ((Q, "by_query"), (K, "by_key")):
        walk = getattr(part, side)
        as_full = replace(part, **{side: replace(walk, full=walk.partial, partial=walk.full)})
        with pytest.raises(ValueError, match="do not exist"):
            expand(replace(plan, parts=(as_full,)), None, owned)


def test_the_class_of_a_pair_is_that_of_its_tile() -> None:
    sizes = Sizes(40, 45)
    kept = plans.kept_by(DILATED, DILATED.predicate, sizes, None)[0]
    for layout in layouts(2, 1, (40, 45)).values():
        plan = plans.plan(DILATED, sizes, TILE, None, layout)
        shared = replace(plan, parts=(cut(plan.parts[0], 2, 2),))
        for i, j in np.ndindex(40, 45):
            if (i + j) % 3:
                continue
            found = class_at(plan, 0, i, j)
            assert found == class_at(shared, 0, i, j)
            assert found != (Truth.NEVER if kept[i, j] else Truth.ALWAYS)
    contiguous = build(DILATED, sizes, TILE)
    classes = tile_map(contiguous)[0]
    assert all(class_at(contiguous, 0, i, j) == classes[i // 7, j // 16] for i, j in np.ndindex(40, 45))


def test_residue_order_packs_a_dilated_window() -> None:
    """16 tokens of one residue see 5 keys each: one or two tiles of a residue instead of all."""
    sizes = Sizes(256, 256)
    order = plans.residues(256, 4)
    ordered = plans.plan(DILATED, sizes, (16, 16), layout=plans.ordered(order, order))
    assert part_tiles(ordered, ordered.parts[0]) == (0, 28, 228)
    assert ordered.parts[0].by_query.tiles == ordered.parts[0].by_key.tiles == 28
    found = statistics(ordered)
    assert (found.full_tiles, found.partial_tiles, found.empty_tiles) == (0, 28, 228)
    assert found.live_pairs == mask(DILATED, sizes).sum()
    assert found.computed_pairs == 28 * 256
    assert "    slots: 256 of queries, 256 of keys\n" in str(ordered)
    assert "slots" not in str(build(DILATED, sizes, (16, 16)))


def test_statistics_do_not_depend_on_the_layout() -> None:
    near = binary("<", binary("%", k, whole(3)), whole(1))
    usual = statistics(build(WINDOW, Sizes(130, 130), (128, 128)))
    for pair in ((plans.contiguous(), plans.packed()), (plans.packed(), plans.ordered(None, None))):
        found = statistics(plans.divided_plan(WINDOW, Sizes(130, 130), (128, 128), None, near, pair))
        assert (found.live_pairs, found.flex_pairs) == (usual.live_pairs, usual.flex_pairs)


def test_an_explanation_counts_every_part_for_itself() -> None:
    sizes = Sizes(64, 64)
    even = binary("==", binary("%", k, whole(2)), whole(0))
    plan = plans.divided_plan(CAUSAL, sizes, (16, 16), None, even, (plans.packed(), plans.contiguous()))
    found = explanation(Planned(CAUSAL, sizes, {}, "triton", "sm_90", plan, 0.0))
    packed, contiguous = found["parts"]
    # 8, 16, 24 and 32 even keys in tiles of 16; of them the first 0, 8, 16 and 24 are kept by all queries of the row.
    assert [packed[f"{kind}_tiles"] for kind in ("full", "partial", "empty")] == [2, 4, 10]
    assert [contiguous[f"{kind}_tiles"] for kind in ("full", "partial", "empty")] == [0, 10, 6]
    assert packed["efficiency"] == sum(i // 2 + 1 for i in range(64)) / (6 * 256)
    assert contiguous["efficiency"] == sum((i + 1) // 2 for i in range(64)) / (10 * 256)
    assert found["computed_pairs"] == packed["computed_pairs"] + contiguous["computed_pairs"]
    assert found["live_pairs"] == 64 * 65 // 2


# Shares.


def rows_of(runs: TileRuns) -> list[list[int]]:
    """The tiles of every row, as a kernel goes through them."""
    found = []
    for first, tiles in zip(runs.first.reshape(-1).tolist(), runs.tiles.reshape(-1).tolist(), strict=True):
        row: list[int] = []
        run = first
        while len(row) < tiles:
            start, stop = int(runs.start[run]), int(runs.stop[run])
            assert start < stop
            row += range(start, stop)
            run += 1
        assert len(row) == tiles, "a run belongs to one row"
        found.append(row)
    return found


def random_runs(rng: np.random.Generator, maps: int, rows: int, columns: int) -> TileRuns:
    lines = [np.flatnonzero(rng.random(columns) < rng.choice([0, 0.1, 0.6, 1])).tolist() for _ in range(maps * rows)]
    return plans.runs_of(lines, (maps, rows))


def random_walks() -> Iterator[Walk]:
    rng = np.random.default_rng(0)
    for maps, rows, columns in ((1, 1, 1), (1, 5, 9), (3, 4, 20), (2, 0, 5), (2, 3, 0), (1, 30, 7)):
        for _ in range(8):
            yield Walk(random_runs(rng, maps, rows, columns), random_runs(rng, maps, rows, columns))


@pytest.mark.parametrize("splits", [1, 2, 3, 4, 7, 16])
def test_shares_are_even_and_in_order(splits: int) -> None:
    for walk in random_walks():
        divided = split(walk, splits)
        shares = {}
        for (truth, runs), (_, whole_runs) in zip(divided.kinds, walk.kinds, strict=True):
            maps, rows = whole_runs.first.shape
            assert runs.first.shape == runs.tiles.shape == (maps, rows * splits)
            assert {x.dtype for x in (runs.first, runs.tiles, runs.start, runs.stop)} == {np.dtype(np.int32)}
            assert runs.start[-1] == runs.stop[-1] == 0
            found = rows_of(runs)
            shares[truth] = [found[i : i + splits] for i in range(0, len(found), splits)]
            assert [list(chain(*row)) for row in shares[truth]] == rows_of(whole_runs)
        for full, partial in zip(*shares.values(), strict=True):
            sizes = np.array([[len(share) for share in kind] for kind in (full, partial)])
            for counts in (*sizes, sizes.sum(0)):
                assert counts.max() - counts.min() <= 1


def test_runs_are_cut_only_where_a_share_ends() -> None:
    runs = plans.runs_of([[0, 1, 2, 3, 4, 5, 8], [2]], (1, 2))
    none = plans.runs_of([[], []], (1, 2))
    found = split(Walk(runs, none), 3).full
    assert found.tiles.tolist() == [[3, 2, 2, 1, 0, 0]]
    assert (found.start.tolist(), found.stop.tolist()) == ([0, 3, 5, 8, 2, 0], [3, 5, 6, 9, 3, 0])
    assert found.first.tolist() == [[0, 1, 2, 4, 5, 5]]


def test_a_cut_plan_means_the_same() -> None:
    for seed in range(12):
        draw = Draw(seed)
        spec, sizes = draw.spec(), draw.sizes
        kept = plans.kept_by(spec, spec.predicate, sizes, draw.inputs)
        for layout in layouts(seed, len(kept), (sizes.q_len, sizes.k_len)).values():
            plan = plans.plan(spec, sizes, TILE, draw.inputs, layout)
            check(replace(plan, parts=(cut(plan.parts[0], 3, 5),)), kept, draw.inputs)


def test_a_long_plan_is_cut_without_work_per_tile() -> None:
    part = build(MaskSpec("causal", clauses=CAUSAL.clauses), Sizes(1 << 18, 1 << 18), (64, 64)).parts[0]
    full = split(part.by_query, 8).full
    assert part.by_query.full.start.size == 4096
    assert full.start.size <= 8 * 4096
    assert full.tiles.sum() == part.by_query.full.tiles.sum() == 4096 * 4095 // 2


def test_tiles_of_runs_are_read_back() -> None:
    for walk in random_walks():
        for _, runs in walk.kinds:
            rows = rows_of(runs)
            maps, count = runs.first.shape
            listing = [(m, r, t) for m in range(maps) for r in range(count) for t in rows[m * count + r]]
            assert list(zip(*(x.tolist() for x in listed(runs)), strict=True)) == listing
            assert [own_tiles(runs, *place).tolist() for place in np.ndindex(maps, count)] == rows
            assert list(map(tuple, np.argwhere(marked(runs, 20)).tolist())) == listing


@pytest.mark.parametrize("splits", [1, 2, 3, 5])
def test_shares_made_on_a_device_are_ranges_of_keys(splits: int) -> None:
    for seed in range(24):
        draw = Draw(seed)
        spec, sizes = draw.spec(), draw.sizes
        tensors = {name: torch.from_numpy(value) for name, value in draw.inputs.items()}
        classes = Analysis(spec.predicate, sizes, tensors, xp=torch, device="cpu").every(TILE)
        uncut = runs_on_device(classes.numpy(), sizes, TILE, np)
        for xp, given in ((torch, classes), (np, classes.numpy())):
            by_query, by_key = runs_on_device(given, sizes, TILE, xp, splits)
            width = -(-classes.shape[2] // splits)
            for (_, runs), (_, rows) in zip(by_query.kinds, uncut[0].kinds, strict=True):
                expected = [[t for t in row if t // max(1, width) == s] for row in rows_of(rows) for s in range(splits)]
                assert rows_of(runs) == expected
            for (_, runs), (_, rows) in zip(by_key.kinds, uncut[1].kinds, strict=True):
                assert rows_of(runs) == rows_of(rows)


@pytest.mark.parametrize("lengths", [(1000, 1000), (1, 1), (0, 64), (64, 0), (0, 0)])
def test_shares_are_made_on_a_device_with_no_look_at_the_data(lengths: tuple[int, int]) -> None:
    rows, columns = -(-lengths[0] // 64), -(-lengths[1] // 32)
    classes = torch.zeros((2, rows, columns), dtype=torch.uint8, device="meta")
    by_query, by_key = runs_on_device(classes, Sizes(*lengths), (64, 32), torch, 3)
    room = (-(-columns // 3) + 1) // 2
    for _, runs in by_query.kinds:
        assert (runs.first.shape, runs.start.shape) == ((2, rows * 3), (2 * rows * 3 * room + 1,))
        assert runs.start.device.type == "meta"
    for _, runs in by_key.kinds:
        assert (runs.first.shape, runs.stop.shape) == ((2, columns), (2 * columns * ((rows + 1) // 2) + 1,))
