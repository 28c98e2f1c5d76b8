"""Tables and ranges over the tiles of one call: what a part of a predicate says of boxes of queries and keys.

All of it runs on numpy or torch arrays without a look at their contents. Arrays over boxes have any shape, as long as
they broadcast against each other; arrays over maps (batch row x head) have those in their first dim, which is 1 where
all maps share the values.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskc.analysis.interval import EXACT, Interval
from maskc.analysis.support import Dim, leaf, span
from maskc.arrays import Array, cast, full
from maskc.evaluate import Pairs, coordinate, evaluate
from maskc.expr import Bound, Coordinate, Count, Expr, Index, Offset, Position, Read, Side, Type, walk
from maskc.spec import Sizes


@dataclass(frozen=True, eq=False)
class Scene:
    """The call that is looked at: numpy or torch (`xp`) with all inputs on `device`; maps: (batch rows, heads)."""

    xp: Any
    device: Any
    sizes: Sizes
    inputs: Mapping[str, Array]
    maps: tuple[int, int]

    def full(self, value: float, dtype: Any = None, shape: tuple[int, ...] = ()) -> Array:
        """An array of one value, int64 unless told otherwise."""
        return full(self.xp, value, self.xp.int64 if dtype is None else dtype, self.device, shape)

    def counted(self, length: int) -> Array:
        """0, 1, ... up to `length`."""
        return self.xp.arange(length) if self.xp is np else self.xp.arange(length, device=self.device)

    def indices(self, rank: int) -> tuple[Array, Array]:
        """Batch row and head of every map, with `rank` dims behind; 0-d where there is one map."""
        if self.maps == (1, 1):
            return self.full(0), self.full(0)
        map_ = self.counted(math.prod(self.maps)).reshape((-1, *(1,) * rank))
        return map_ // self.maps[1], map_ % self.maps[1]

    def leaf(self, expr: Index | Offset, map_: Array) -> Array:
        """The value of an index or an offset in maps."""
        batch, head = map_ // self.maps[1], map_ % self.maps[1]
        if isinstance(expr, Offset):
            return self.offset(expr.side, batch)
        if expr.count is Count.BATCH:
            return batch
        return head if expr.count is Count.HEAD else head // (self.sizes.heads // self.sizes.kv_heads)

    def offset(self, side: Side, batch: Array) -> Array:
        """The offset of a side at batch rows; 0-d where all rows share it."""
        given = self.sizes.offset(side)
        if given is not None:
            return self.full(given)
        return self.xp.take(cast(self.xp, self.inputs[f"{side.value}_offset"], self.xp.int64), batch)


@dataclass(frozen=True, eq=False)
class Box:
    """Boxes of one side: first and last position counted from 0, the offset to add, and whether they hold any."""

    scene: Scene
    first: Array
    last: Array
    offset: Array
    valid: Array

    def ends(self, axis: str) -> tuple[Array, Array]:
        """First and last coordinate along an axis; on the line first and last position, counted from 0."""
        if axis == "":
            return self.first, self.last
        sizes, clip = self.scene.sizes, self.scene.xp.clip
        low, high = (coordinate(end + self.offset, axis, sizes) for end in (self.first, self.last))
        # An offset given as a tensor may point outside of the grid, which nobody can see here: stay within the tables.
        return clip(low, 0, sizes.axis[axis] - 1), clip(high, 0, sizes.axis[axis] - 1)


_HEAD, _BODY, _TAIL = range(3)


def boxes(scene: Scene, side: Side, tile: int, index: Array, map_: Array, boxed: bool) -> Iterator[Box]:
    """Tiles of one side as boxes: themselves on a line, else as many as any tile needs (up to 2 * rank - 1)."""
    sizes, offset = scene.sizes, scene.offset(side, map_ // scene.maps[1])
    first = index * tile
    last = scene.xp.clip(first + (tile - 1), 0, max(0, sizes.length(side) - 1))
    for cuts in _needed_cuts(sizes, side, tile) if boxed else ((),):
        if not cuts:
            yield Box(scene, first, last, offset, first <= last)
            continue
        low, high = _cut(scene.xp, sizes, first + offset, last + offset, cuts)
        valid = low <= high
        # An empty box stands at the first position, so that whatever is looked up for it lies within its table.
        low, high = (scene.xp.where(valid, end - offset, 0) for end in (low, high))
        yield Box(scene, low, high, offset, valid)


def _cut(xp: Any, sizes: Sizes, first: Array, last: Array, cuts: tuple[int, ...]) -> tuple[Array, Array]:
    """One box of the positions first to last: at each axis but the fastest the head, the body or the tail is kept.

    The body is all that begins and ends with whole slices of the axis; where there is no border between slices all is
    head. What a tile does not have comes out empty: last < first.
    """
    for place, cut in enumerate(cuts):
        stride = max(1, math.prod(size for _, size in sizes.axes[place + 1 :]))
        up, down = -(-first // stride) * stride, (last + 1) // stride * stride
        crosses = (up <= down) & (first <= last)
        match cut:
            case _ if cut == _HEAD:
                last = xp.where(crosses, up - 1, last)
            case _ if cut == _BODY:
                first, last = xp.where(crosses, up, first), xp.where(crosses, down - 1, first - 1)
            case _:
                first, last = xp.where(crosses, down, first), xp.where(crosses, last, first - 1)
    return first, last


@lru_cache(maxsize=256)
def _needed_cuts(sizes: Sizes, side: Side, tile: int) -> tuple[tuple[int, ...], ...]:
    """The boxes that some tile of a side needs. A body is a box already: it is not cut further."""
    every = product(range(3), repeat=len(sizes.axes) - 1)
    cuts = tuple(c for c in every if _BODY not in c or set(c[c.index(_BODY) :]) == {_BODY})
    offset, length = sizes.offset(side), sizes.length(side)
    if offset is None or length == 0:
        return cuts
    first = np.arange(0, length, tile)
    last = np.minimum(first + tile, length) - 1
    found = {cut: _cut(np, sizes, first + offset, last + offset, cut) for cut in cuts}
    return tuple(cut for cut, (low, high) in found.items() if (low <= high).any())


class Table:
    """A predicate at every value of the few numbers that decide it, summed up: exact for every box.

    The sums are int32 or int64 [maps or 1, *(extent + 1)], flattened.
    """

    def __init__(self, scene: Scene, expr: Expr, dims: tuple[Dim, ...]) -> None:
        self.dims = dims
        self._scene = scene
        shapes = [dim.extent(scene.sizes) for dim in dims]
        self._origin, self._extent = tuple(s[0] for s in shapes), tuple(s[1] for s in shapes)
        xp = scene.xp
        wide = xp.int32 if math.prod(self._extent) < 2**31 else xp.int64
        sums = cast(xp, self._kept(expr), wide)
        for axis in range(1, len(dims) + 1):
            none = scene.full(0, wide, (*sums.shape[:axis], 1, *sums.shape[axis + 1 :]))
            sums = xp.concatenate((none, xp.cumsum(sums, axis, dtype=wide)), axis)
        self._maps = int(sums.shape[0])
        self._sums = sums.reshape(-1)

    def _kept(self, expr: Expr) -> Array:
        """The predicate itself: bool [maps or 1, *extent]."""
        scene, rank = self._scene, len(self.dims)
        batch, head = scene.indices(rank)
        bound: dict[Expr, Array] = {}
        places = {side: scene.full(0) for side in Side}
        for number, (dim, origin, extent) in enumerate(zip(self.dims, self._origin, self._extent, strict=True)):
            shape = [1] * (rank + 1)
            shape[number + 1] = -1
            value = (scene.counted(extent) - origin).reshape(shape) * dim.divisor
            if dim.side is None:
                # A function of the difference has the same value wherever the key is: take 0.
                shift = scene.offset(Side.Q, batch) - scene.offset(Side.K, batch) if dim.axis == "" else 0
                bound[leaf(Side.Q, dim.axis)] = value + shift
                bound[leaf(Side.K, dim.axis)] = scene.full(0)
            elif dim.axis == "":
                given = scene.sizes.offset(dim.side)
                places[dim.side] = value if given is not None else value + scene.offset(dim.side, batch)
            else:
                bound[leaf(dim.side, dim.axis)] = value
        q, k = places[Side.Q], places[Side.K]
        kept = evaluate(expr, Pairs(scene.xp, scene.sizes, scene.inputs, batch, head, q, k, bound=bound))
        maps = kept.shape[0] if len(kept.shape) == rank + 1 else 1
        return scene.xp.broadcast_to(kept, (maps, *self._extent))

    def classes(self, map_: Array, q: Box, k: Box) -> Array:
        """Class of boxes, uint8: never where the sum over a box is 0, always where it is the box's size."""
        xp = self._scene.xp
        base = map_ * math.prod(n + 1 for n in self._extent) if self._maps > 1 else None
        corners: list[tuple[int, Array]] = [(1, base)]
        size: Array = 1
        for number, dim in enumerate(self.dims):
            start, stop = self._ends(dim, self._origin[number], q, k)
            stride = math.prod(n + 1 for n in self._extent[number + 1 :])
            size = size * (stop - start)
            above = [(sign, _stepped(index, stop, stride)) for sign, index in corners]
            corners = above + [(-sign, _stepped(index, start, stride)) for sign, index in corners]
        count = 0
        for sign, index in corners:
            value = xp.take(self._sums, self._scene.full(0) if index is None else index)
            count = count + value if sign > 0 else count - value
        return cast(xp, count > 0, xp.uint8) + cast(xp, count == size, xp.uint8)

    def _ends(self, dim: Dim, origin: int, q: Box, k: Box) -> tuple[Array, Array]:
        """Indices of the least value of a number over boxes, and of the one behind the greatest."""
        if dim.side is None:
            (q_low, q_high), (k_low, k_high) = q.ends(dim.axis), k.ends(dim.axis)
            return (q_low + origin) - k_high, (q_high + (origin + 1)) - k_low
        low, high = (q if dim.side is Side.Q else k).ends(dim.axis)
        first = dim.first(self._scene.sizes)
        return (low + first) // dim.divisor + origin, (high + first) // dim.divisor + (origin + 1)

    def weighed(self, expr: Expr) -> NDArray[np.int64]:
        """How many pairs of the table's own axes the predicate keeps: int64 [maps or 1]; numpy only."""
        sizes = self._scene.sizes
        kept = self._kept(expr)
        for dim in reversed(self.dims):
            kept = kept @ _weights(dim, sizes)
        read = {(side, dim.axis) for dim in self.dims for side in (Side if dim.side is None else (dim.side,))}
        unread = {(side, dim.axis) for dim in self.dims for side in Side} - read
        counts: NDArray[np.int64] = kept.astype(np.int64)
        return counts * math.prod(span(sizes, side, axis) for side, axis in unread)


def _stepped(index: Array | None, steps: Array, stride: int) -> Array:
    """An index moved along one dim of a flattened table."""
    moved = steps * stride if stride > 1 else steps
    return moved if index is None else index + moved


def _weights(dim: Dim, sizes: Sizes) -> NDArray[np.int64]:
    """How many pairs of positions or coordinates, or how many of one side, have each value of a number."""
    origin, extent = dim.extent(sizes)
    if dim.side is None:
        q, k = (span(sizes, side, dim.axis) for side in Side)
        difference = np.arange(extent) - origin
        overlap: NDArray[np.int64] = np.minimum(q, k + difference) - np.maximum(0, difference)
        return overlap.clip(min=0)
    places = dim.first(sizes) + np.arange(span(sizes, dim.side, dim.axis))
    return np.bincount(places // dim.divisor + origin, minlength=extent)


class Column:
    """A number that depends on one side or on none, as its range in every tile of that side."""

    def __init__(self, scene: Scene, expr: Expr, side: Side | None) -> None:
        self._scene = scene
        self._side = side
        self._whole = expr.type is Type.INT
        self._values = self._evaluated(expr)
        self._tiles: dict[int, tuple[int, Interval]] = {}

    def _evaluated(self, expr: Expr) -> Array:
        """The number at every position of its side: [maps or 1, positions]."""
        scene = self._scene
        length = 1 if self._side is None else max(1, scene.sizes.length(self._side))
        batch, head = scene.indices(1)
        place = scene.counted(length).reshape((1, -1))
        q, k = (place + scene.offset(side, batch) if side is self._side else scene.full(0) for side in Side)
        values = evaluate(expr, Pairs(scene.xp, scene.sizes, scene.inputs, batch, head, q, k))
        maps = values.shape[0] if len(values.shape) == 2 else 1
        return scene.xp.broadcast_to(values, (maps, length))

    def at(self, tile: tuple[int, int], map_: Array, q_tile: Array, k_tile: Array) -> Interval:
        """The range in tiles."""
        match self._side:
            case None:
                size, index = 1, self._scene.full(0)
            case Side.Q:
                size, index = tile[0], q_tile
            case Side.K:
                size, index = tile[1], k_tile
        if size not in self._tiles:
            self._tiles[size] = self._ranges(size)
        maps, ranges = self._tiles[size]
        if maps > 1:
            index = index + map_ * (ranges.low.shape[0] // maps)
        take = self._scene.xp.take
        nan = take(ranges.nan, index) if not self._whole else False
        return Interval(take(ranges.low, index), take(ranges.high, index), nan)

    def _ranges(self, size: int) -> tuple[int, Interval]:
        """How many maps there are, and the ranges of all tiles of a size: float64 [maps * tiles]."""
        xp, values = self._scene.xp, self._values
        maps, length = values.shape
        missing = -length % size
        if missing:
            values = xp.concatenate((values, xp.broadcast_to(values[:, -1:], (maps, missing))), 1)
        return int(maps), value_span(xp, values.reshape((maps * ((length + missing) // size), size)), self._whole)


def value_span(xp: Any, values: Array, whole: bool) -> Interval:
    """The range of each row of values [rows, n], n > 0, as float64; integers too large to be exact are unknown."""
    if not whole:
        known = values == values
        infinite = xp.full_like(values, math.inf)
        return Interval(
            xp.amin(xp.where(known, values, infinite), 1),
            xp.amax(xp.where(known, values, -infinite), 1),
            xp.any(~known, 1),
        )
    low, high = (cast(xp, bound, xp.float64) for bound in (xp.amin(values, 1), xp.amax(values, 1)))
    exact = (low > -EXACT) & (high < EXACT)
    infinite = xp.full_like(low, math.inf)
    return Interval(xp.where(exact, low, -infinite), xp.where(exact, high, infinite))


def table_span(scene: Scene, name: str, type_: Type) -> Interval:
    """The range of every entry of an input and of 0, which a read out of range gives."""
    xp = scene.xp
    dtype = xp.int64 if type_ is not Type.FLOAT else xp.float64
    entries = cast(xp, scene.inputs[name], dtype).reshape((1, -1))
    entries = xp.concatenate((entries, scene.full(0, dtype, (1, 1))), 1)
    found = value_span(xp, entries, type_ is not Type.FLOAT)
    nan = found.nan if type_ is not Type.FLOAT else found.nan[0]
    return Interval(found.low[0], found.high[0], nan)


def entry_span(scene: Scene, expr: Read, indices: Sequence[Interval]) -> Interval:
    """The range of a read over boxes, given those of its indices.

    Of the corners where no index takes more than two values, else of the whole table.
    """
    xp = scene.xp
    table = scene.inputs[expr.input]
    every = table_span(scene, expr.input, expr.type)
    moving = [any(isinstance(n, Position | Coordinate | Bound) for n in walk(index)) for index in expr.indices]
    if 0 in table.shape or sum(moving) > _MOVING:
        return every
    places: list[tuple[Array, Array]] = [(scene.full(0), scene.full(True, xp.bool_ if xp is np else xp.bool))]
    few: Array = True
    for index, moves, extent in zip(indices, moving, table.shape, strict=True):
        few = few & (index.high - index.low <= 1) & (xp.abs(index.low) < EXACT)
        ends = [cast(xp, xp.clip(end, -1.0, float(extent)), xp.int64) for end in (index.low, index.high)[: 1 + moves]]
        places = [
            (place * int(extent) + xp.clip(end, 0, int(extent) - 1), inside & (end >= 0) & (end < int(extent)))
            for place, inside in places
            for end in ends
        ]
    whole = expr.type is not Type.FLOAT
    entries = cast(xp, table, xp.int64 if whole else xp.float64)
    read = [xp.where(inside, xp.take(entries, place), 0) for place, inside in places]
    shape = np.broadcast_shapes(*(tuple(x.shape) for x in read))
    corners = value_span(xp, xp.stack([xp.broadcast_to(x, shape).reshape(-1) for x in read], -1), whole)
    low, high = (
        xp.where(few, end.reshape(shape), bound)
        for end, bound in ((corners.low, every.low), (corners.high, every.high))
    )
    nan = False if whole else xp.where(few, corners.nan.reshape(shape), every.nan)
    return Interval(low, high, nan)


_MOVING = 3
"""Indices that differ between the pairs of a box, up to which all corners are read."""
