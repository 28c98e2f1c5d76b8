"""Plans made by brute force from dense masks, to judge walks and kernels: in any order of tokens, packed, in parts."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskc.analysis.plan import BlockPlan, Part
from maskc.analysis.runs import Int32, TileRuns, Walk
from maskc.evaluate import depends
from maskc.expr import Binary, BinaryOp, Expr, Type, Unary, UnaryOp
from maskc.reference import mask
from maskc.spec import MaskSpec, Sizes

Mask = NDArray[np.bool_]
"""Pairs, [maps, q_len, k_len]."""

Order = NDArray[np.int64] | None
"""Positions in the order of their slots, [slots] or [maps, slots], -1 for slots without a token; None: ascending."""

Layout = Callable[[Mask, tuple[int, int]], tuple[Walk, Walk]]
"""By query and by key, from the kept pairs and the tile (queries, keys)."""

Inputs = dict[str, NDArray[Any]]


# Plans.


def plan(
    spec: MaskSpec, sizes: Sizes, tile: tuple[int, int], inputs: Inputs | None = None, layout: Layout | None = None
) -> BlockPlan:
    """A plan of one part; contiguous by default."""
    share = Share(kept_by(spec, spec.predicate, sizes, inputs), spec.predicate, layout or contiguous())
    return plan_of(spec, sizes, tile, [share])


@dataclass(frozen=True, eq=False)
class Share:
    """A part of a plan: its pairs, what decides them inside partial tiles, and how they are walked."""

    kept: Mask
    predicate: Expr
    layout: Layout


def plan_of(spec: MaskSpec, sizes: Sizes, tile: tuple[int, int], shares: Iterable[Share]) -> BlockPlan:
    """A plan of several parts."""
    parts = []
    for share in shares:
        by_query, by_key = share.layout(share.kept, tile)
        parts.append(Part(share.predicate, tuple(range(len(spec.clauses))), by_query, by_key))
    return BlockPlan(spec, sizes, tile, maps_of(spec, sizes), tuple(parts))


def divided_plan(
    spec: MaskSpec,
    sizes: Sizes,
    tile: tuple[int, int],
    inputs: Inputs | None,
    by: Expr,
    layouts: tuple[Layout, Layout],
) -> BlockPlan:
    """A plan of two parts: the kept pairs where `by` holds, and the others."""
    sides = (by, Unary(Type.BOOL, UnaryOp.NOT, by))
    predicates = [Binary(Type.BOOL, BinaryOp.AND, spec.predicate, side) for side in sides]
    shares = [Share(kept_by(spec, p, sizes, inputs), p, lay) for p, lay in zip(predicates, layouts, strict=True)]
    return plan_of(spec, sizes, tile, shares)


def maps_of(spec: MaskSpec, sizes: Sizes) -> tuple[int, int]:
    """(batch rows, heads) that have a map of their own."""
    rows, heads = depends(spec.predicate, sizes)
    return sizes.batch if rows else 1, sizes.heads if heads else 1


def kept_by(spec: MaskSpec, predicate: Expr, sizes: Sizes, inputs: Inputs | None) -> Mask:
    """The pairs of which a predicate holds, for every map of the spec."""
    found = mask(replace(spec, clauses=(predicate,)), sizes, inputs)
    maps = maps_of(spec, sizes)
    own = tuple(n if d else 1 for n, d in zip(maps, depends(predicate, sizes), strict=True))
    shape = (sizes.q_len, sizes.k_len)
    return np.broadcast_to(found.reshape(*own, *shape), (*maps, *shape)).reshape(math.prod(maps), *shape)


# Orders.


def residues(length: int, divisor: int) -> NDArray[np.int64]:
    """All multiples first, then all that leave a rest of 1, and so on."""
    return np.argsort(np.arange(length) % divisor, kind="stable")


def shuffled(length: int, seed: int, *, gaps: int = 0, maps: int | None = None) -> NDArray[np.int64]:
    """A random order with empty slots anywhere; one for each of some maps."""
    rng = np.random.default_rng(seed)
    slots = np.concatenate((np.arange(length), np.full(gaps, -1)))
    return rng.permutation(slots) if maps is None else np.stack([rng.permutation(slots) for _ in range(maps)])


# Layouts.


def contiguous() -> Layout:
    """Slots are positions; a tile that crosses the end of a side is partial."""

    def lay(kept: Mask, tile: tuple[int, int]) -> tuple[Walk, Walk]:
        q, k = (_in_order(None, n, size) for n, size in zip(kept.shape[1:], tile, strict=True))
        by_query = _walk(kept, q, k, tile, whole=True)
        by_key = _walk(kept.swapaxes(1, 2), k, q, tile[::-1], whole=True)
        return replace(by_query, owned=None, walked=None), replace(by_key, owned=None, walked=None)

    return lay


def ordered(q_order: Order, k_order: Order) -> Layout:
    """Both sides in an order of their own, the same for all rows of tiles."""

    def lay(kept: Mask, tile: tuple[int, int]) -> tuple[Walk, Walk]:
        orders = zip((q_order, k_order), kept.shape[1:], tile, strict=True)
        q, k = (_in_order(order, n, size) for order, n, size in orders)
        return _walk(kept, q, k, tile), _walk(kept.swapaxes(1, 2), k, q, tile[::-1])

    return lay


def packed(q_order: Order = None, k_order: Order = None) -> Layout:
    """Every tile of one side lists the tokens of the other with which it has a pair: those of full tiles first."""

    def lay(kept: Mask, tile: tuple[int, int]) -> tuple[Walk, Walk]:
        orders = zip((q_order, k_order), kept.shape[1:], tile, strict=True)
        q, k = (_in_order(order, n, size) for order, n, size in orders)
        return _packed_walk(kept, q, k, tile), _packed_walk(kept.swapaxes(1, 2), k, q, tile[::-1])

    return lay


def _in_order(order: Order, length: int, size: int) -> NDArray[np.int64]:
    """An order filled up with -1 to whole tiles: [maps or 1, slots]."""
    found = np.atleast_2d(np.arange(length) if order is None else order)
    assert all(np.array_equal(np.sort(line[line >= 0]), np.arange(length)) for line in found), "every token once"
    return np.pad(found, ((0, 0), (0, -found.shape[1] % size)), constant_values=-1)


def _walk(
    kept: Mask, owned: NDArray[np.int64], walked: NDArray[np.int64], tile: tuple[int, int], *, whole: bool = False
) -> Walk:
    """The walk of [maps, owned, walked] pairs along orders of the walked side, one behind the other.

    tile: (owned, walked). whole: a full tile has all slots of the owned side, too.
    """
    count = walked.shape[1] // tile[1]

    def reach(map_: int, row: int) -> range:
        first = map_ % len(walked) * count
        return range(first, first + count)

    return _classified(kept, owned, walked.reshape(-1), reach, tile, whole)


def _packed_walk(kept: Mask, owned: NDArray[np.int64], order: NDArray[np.int64], tile: tuple[int, int]) -> Walk:
    """The walk of [maps, owned, walked] pairs along a list for every row of tiles, in the order of the walked side."""
    lists: dict[tuple[int, int], range] = {}
    walked: list[int] = []
    for map_ in range(len(kept)):
        for row, tokens in enumerate(owned[map_ % len(owned)].reshape(-1, tile[0])):
            pairs = kept[map_, tokens[tokens >= 0]]
            line = [t for t in order[map_ % len(order)] if t >= 0 and pairs[:, t].any()]
            line.sort(key=lambda t: not pairs[:, t].all())
            first = len(walked) // tile[1]
            walked += [*line, *[-1] * (-len(line) % tile[1])]
            lists[map_, row] = range(first, len(walked) // tile[1])
    return _classified(kept, owned, np.array(walked, np.int64), lambda *place: lists[place], tile, whole=False)


def _classified(
    kept: Mask,
    owned: NDArray[np.int64],
    walked: NDArray[np.int64],
    reach: Callable[[int, int], range],
    tile: tuple[int, int],
    whole: bool,
) -> Walk:
    """Looks at every pair of the tiles in the reach of a row, by map and row."""
    rows = owned.shape[1] // tile[0]
    full: list[list[int]] = []
    partial: list[list[int]] = []
    for map_ in range(len(kept)):
        for row in range(rows):
            own = owned[map_ % len(owned)].reshape(-1, tile[0])[row]
            full.append([])
            partial.append([])
            for number in reach(map_, row):
                other = walked.reshape(-1, tile[1])[number]
                pairs = kept[map_][np.ix_(own[own >= 0], other[other >= 0])]
                if pairs.any():
                    exists = (other >= 0).all() and (not whole or (own >= 0).all())
                    (full if exists and pairs.all() else partial)[-1].append(number)
    shape = (len(kept), rows)
    return Walk(runs_of(full, shape), runs_of(partial, shape), owned.astype(np.int32), walked.astype(np.int32))


def runs_of(lines: Sequence[Sequence[int]], shape: tuple[int, int]) -> TileRuns:
    """Ascending tiles of every row as runs; shape: (maps, rows)."""
    first: list[int] = []
    runs: list[list[int]] = []
    for line in lines:
        first.append(len(runs))
        for tile in line:
            if len(runs) > first[-1] and runs[-1][1] == tile:
                runs[-1][1] = tile + 1
            else:
                runs.append([tile, tile + 1])

    def array(values: Sequence[int]) -> Int32:
        return np.array(values, np.int32)

    return TileRuns(
        first=array(first).reshape(shape),
        tiles=array([len(line) for line in lines]).reshape(shape),
        start=array([*(start for start, _ in runs), 0]),
        stop=array([*(stop for _, stop in runs), 0]),
    )
