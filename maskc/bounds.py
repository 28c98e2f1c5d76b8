"""Truth over tiles: which tiles of the attention matrix hold kept pairs, and which hold nothing else.

No work is done per pair. A predicate is cut into its largest parts that a table decides exactly: functions of one side,
of differences between query and key (of the line or per axis), of the coordinates of one axis, and of positions divided
by a block size. The table holds the part at every value of those few numbers; its prefix sums say for any box whether
the part holds nowhere, somewhere or everywhere. Parts that no affordable table decides are read by interval arithmetic,
in which every number that depends on one side alone (a read of an input, above all) enters as its range in the tile.

A tile of consecutive positions on a grid is a union of at most 2 * rank - 1 boxes of coordinates and is classified by
them. All of this runs on numpy or torch arrays without a look at their contents, so that plans that depend on data can
be built on the device that holds the data.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskc.evaluate import Array, Pairs, constants, coordinate, depends, evaluate
from maskc.interval import Interval, Ranges, Truth
from maskc.spec import (
    COMPARISONS,
    AxisSize,
    Binary,
    BinaryOp,
    Coordinate,
    Count,
    Expr,
    Index,
    InputSpec,
    Length,
    Literal,
    MaskSpec,
    Offset,
    Parameter,
    Position,
    Read,
    Score,
    Select,
    Side,
    Sizes,
    Total,
    Type,
    Unary,
    UnaryOp,
    children,
    rebuild,
    walk,
)

__all__ = [
    "Analysis",
    "Truth",
    "class_chunks",
    "fits_32_bits",
    "lower_division",
    "reads_data",
    "tile_classes",
    "value_range",
]

_TABLE = 1 << 16
"""Entries that a table may always have; a table may also have `_SHARE` per query and key."""

_SHARE = 8

_CELLS = 1 << 20
"""Tiles that are classified at once."""

_COARSER = 16
"""How many tiles along each side a coarse tile joins."""

_MANY = 1 << 14
"""From this many tiles on coarse tiles are classified first."""


@dataclass(frozen=True)
class Dim:
    """One number that a table is indexed by.

    side: whose number it is, None for the difference query - key. axis: of a grid, "" for the line.
    divisor: the number is a position or coordinate divided by it, rounded down.
    """

    side: Side | None
    axis: str
    divisor: int = 1


@dataclass(frozen=True, eq=False)
class _Table:
    """Prefix sums of a predicate over `dims`: int [maps or 1, *(extent + 1)], flattened; `origin`: index of value 0."""

    dims: tuple[Dim, ...]
    maps: int
    origin: tuple[int, ...]
    extent: tuple[int, ...]
    sums: Array


@dataclass(frozen=True, eq=False)
class _Box:
    """Boxes of one side: first and last position counted without the offset, the offset, whether it holds any."""

    first: Array
    last: Array
    offset: Array
    valid: Array


class Analysis:
    """One predicate at one call's sizes, prepared for any tile.

    xp: numpy, or torch with every input on `device`. maps: (batch rows, heads) that have a map of their own.
    """

    def __init__(
        self,
        predicate: Expr,
        sizes: Sizes,
        inputs: Mapping[str, Array] | None = None,
        *,
        xp: Any = np,
        device: Any = None,
        maps: tuple[int, int] | None = None,
    ) -> None:
        self.sizes = sizes
        self.maps = _maps(depends(predicate, sizes), sizes) if maps is None else maps
        self._xp = xp
        self._device = device
        self._inputs = {} if inputs is None else inputs
        self._tables: dict[int, _Table] = {}
        self._columns: dict[int, Side | None] = {}
        self._summaries: dict[tuple[int, int], tuple[int, Interval]] = {}
        self._values: dict[int, Interval] = {}
        self._alive: list[Expr] = []  # what the dictionaries know by id
        self.predicate = self._arranged(_on_line(constants(predicate, sizes), sizes))

    # Preparation

    def _arranged(self, expr: Expr) -> Expr:
        """The predicate with its conjunctions and disjunctions grouped; tables and columns are noted on the way."""
        self._alive.append(expr)
        if isinstance(expr, Literal):
            return expr
        if expr.type is Type.BOOL:
            dims = self._dims(expr)
            if dims is not None:
                self._tables[id(expr)] = self._table(expr, dims)
                return expr
            if isinstance(expr, Binary) and expr.op in (BinaryOp.AND, BinaryOp.OR):
                return self._grouped(expr)
        elif self._is_column(expr):
            self._columns[id(expr)] = _one_side(expr)
            return expr
        if isinstance(expr, Read):
            return expr
        changed = rebuild(expr, self._arranged)
        self._alive.append(changed)
        return changed

    def _grouped(self, expr: Binary) -> Expr:
        """Operands over the same axes become one part where a table decides it, else those over the same numbers."""
        groups = _groups(_chain(expr, expr.op), _axes)
        parts = [part for group in groups for part in self._joined(group, expr.op)]
        return _joined(expr.op, [self._arranged(part) for part in parts])

    def _joined(self, parts: list[Expr], op: BinaryOp) -> list[Expr]:
        """The parts as one where a table decides them together, else in smaller groups or one by one."""
        if len(parts) == 1 or self._dims(_joined(op, parts)) is not None:
            return [_joined(op, parts)]
        groups = _groups(parts, self._dims)
        return parts if len(groups) == 1 else [part for group in groups for part in self._joined(group, op)]

    def _dims(self, expr: Expr) -> tuple[Dim, ...] | None:
        """The numbers that decide a predicate, if a table over them is affordable."""
        dims = _numbers(expr, self.sizes)
        if dims is None:
            return None
        entries = math.prod(self._extent(dim)[1] for dim in dims)
        budget = max(_TABLE, _SHARE * (self.sizes.q_len + self.sizes.k_len))
        return dims if len(dims) <= 1 or entries <= budget else None

    def _extent(self, dim: Dim) -> tuple[int, int]:
        """Index of value 0 and number of values. A number of one side of the line counts from the side's offset."""
        if dim.side is None:
            q, k = (self.sizes.q_len, self.sizes.k_len) if dim.axis == "" else (self.sizes.axis[dim.axis],) * 2
            return max(0, k - 1), max(1, q + k - 1)
        if dim.axis == "":
            first = (self.sizes.offset(dim.side) or 0) // dim.divisor
            last = ((self.sizes.offset(dim.side) or 0) + max(1, self.sizes.length(dim.side)) - 1) // dim.divisor
            return -first, last - first + 1
        return 0, max(1, -(-self.sizes.axis[dim.axis] // dim.divisor))

    def _is_column(self, expr: Expr) -> bool:
        """A number of one side at most, worth reading at every position of that side."""
        if isinstance(expr, Position | Coordinate) or len(_sides(expr)) > 1:
            return False
        return any(isinstance(node, Read | Index | Offset) for node in walk(expr)) or not _grid(expr)

    # Tables

    def _table(self, expr: Expr, dims: tuple[Dim, ...]) -> _Table:
        xp = self._xp
        shapes = [self._extent(dim) for dim in dims]
        origin, extent = tuple(s[0] for s in shapes), tuple(s[1] for s in shapes)
        kept = self._evaluated(expr, dims, origin, extent)
        wide = xp.int32 if math.prod(extent) < 2**31 else xp.int64
        sums = kept.astype(wide) if xp is np else kept.to(wide)
        for axis in range(1, len(dims) + 1):
            sums = xp.cumsum(sums, axis, dtype=wide)
            shape = (*sums.shape[:axis], 1, *sums.shape[axis + 1 :])
            sums = xp.concatenate((self._zeros(shape, wide), sums), axis)
        return _Table(dims, int(sums.shape[0]), origin, extent, sums.reshape(-1))

    def _evaluated(self, expr: Expr, dims: tuple[Dim, ...], origin: tuple[int, ...], extent: tuple[int, ...]) -> Array:
        """The predicate at every value of `dims`: bool [maps or 1, *extent]."""
        rank = len(dims)
        bound: dict[Expr, Array] = {}
        q = k = self._filled(0)
        for place, dim in enumerate(dims):
            shape = [1] * (rank + 1)
            shape[place + 1] = -1
            value = (self._counted(extent[place]) - origin[place]).reshape(shape)
            match dim.side:
                case None:
                    line = self._offset(Side.Q, rank) - self._offset(Side.K, rank) if dim.axis == "" else 0
                    bound[_leaf(Side.Q, dim.axis)] = value + line
                    bound[_leaf(Side.K, dim.axis)] = self._filled(0)
                case Side.Q if dim.axis == "":
                    q = value * dim.divisor + self._tensor_offset(Side.Q, rank)
                case Side.K if dim.axis == "":
                    k = value * dim.divisor + self._tensor_offset(Side.K, rank)
                case _:
                    bound[_leaf(dim.side, dim.axis)] = value * dim.divisor
        batch, head = self._indices(rank)
        pairs = Pairs(self._xp, self.sizes, self._inputs, batch, head, q, k, bound=bound)
        kept = evaluate(expr, pairs)
        maps = kept.shape[0] if len(kept.shape) == rank + 1 else 1
        return self._xp.broadcast_to(kept, (maps, *extent))

    def _looked_up(self, table: _Table, map_: Array, q: _Box, k: _Box) -> Array:
        """Class of a tabulated predicate over boxes: uint8."""
        xp = self._xp
        bounds = [self._span(dim, q, k) for dim in table.dims]
        strides = [math.prod(n + 1 for n in table.extent[i + 1 :]) for i in range(len(table.dims))]
        base = map_ * math.prod(n + 1 for n in table.extent) if table.maps > 1 else self._filled(0)
        total: Array = self._filled(1)
        ends: list[tuple[Array, Array]] = []
        for (low, high), origin, extent, stride in zip(bounds, table.origin, table.extent, strides, strict=True):
            start = xp.clip(low + origin, 0, extent - 1)
            stop = xp.clip(high + origin, 0, extent - 1) + 1
            total = total * (stop - start)
            ends.append((start * stride, stop * stride))
        count: Array = 0
        for corner in range(1 << len(ends)):
            index = base
            sign = 1
            for place, (start, stop) in enumerate(ends):
                lower = corner >> place & 1
                index = index + (start if lower else stop)
                sign = -sign if lower else sign
            count = count + sign * xp.take(table.sums, index)
        return self._byte(count > 0) + self._byte(count == total)

    def _span(self, dim: Dim, q: _Box, k: _Box) -> tuple[Array, Array]:
        """Least and greatest value of a table's number over boxes; a difference on the line excludes the offsets."""
        if dim.side is None:
            (q_low, q_high), (k_low, k_high) = self._place(Side.Q, dim.axis, q), self._place(Side.K, dim.axis, k)
            return q_low - k_high, q_high - k_low
        low, high = self._place(dim.side, dim.axis, q if dim.side is Side.Q else k)
        if dim.axis == "" and self.sizes.offset(dim.side) is not None:
            start = self.sizes.offset(dim.side) or 0
            low, high = low + start, high + start
        return (low, high) if dim.divisor == 1 else (low // dim.divisor, high // dim.divisor)

    def _place(self, side: Side, axis: str, box: _Box) -> tuple[Array, Array]:
        """First and last coordinate of boxes along an axis; on the line counted without the offset."""
        if axis == "":
            return box.first, box.last
        first, last = box.first + box.offset, box.last + box.offset
        return coordinate(first, axis, self.sizes), coordinate(last, axis, self.sizes)

    def count(self) -> int | None:
        """How many pairs are kept over all maps, where tables over separate axes decide the predicate; numpy only."""
        parts = self._conjuncts(self.predicate)
        tables = [(part, self._tables[id(part)].dims) for part in parts if id(part) in self._tables]
        axes = [axis for _, dims in tables for axis in {dim.axis for dim in dims}]
        on_grid = len(axes) > 0 and axes != [""]
        separate = len(set(axes)) == len(axes) and not (on_grid and "" in axes)
        if len(tables) < len(parts) or not separate or (on_grid and not self._whole_grid):
            return None
        free = set(self.sizes.axis if on_grid else [""]) - set(axes)
        total: Any = math.prod(self._span_length(side, axis) for side in Side for axis in free)
        for part, dims in tables:
            total = total * self._weighted(part, dims)
        return int(np.broadcast_to(total, (math.prod(self.maps),)).sum())

    def _conjuncts(self, expr: Expr) -> list[Expr]:
        """The operands of `and`, down to those that a table decides."""
        if id(expr) in self._tables or not (isinstance(expr, Binary) and expr.op is BinaryOp.AND):
            return [expr]
        return self._conjuncts(expr.left) + self._conjuncts(expr.right)

    @property
    def _whole_grid(self) -> bool:
        """Whether queries and keys are all tokens of the grid."""
        sizes = self.sizes
        tokens = math.prod(sizes.axis.values())
        return (sizes.q_len, sizes.k_len, sizes.q_offset, sizes.k_offset) == (tokens, tokens, 0, 0)

    def _span_length(self, side: Side, axis: str) -> int:
        return self.sizes.length(side) if axis == "" else self.sizes.axis[axis]

    def _weighted(self, expr: Expr, dims: tuple[Dim, ...]) -> NDArray[np.int64]:
        """Pairs that a tabulated part keeps along its own axes: int64 [maps or 1]."""
        shapes = [self._extent(dim) for dim in dims]
        kept = self._evaluated(expr, dims, tuple(s[0] for s in shapes), tuple(s[1] for s in shapes))
        for dim in reversed(dims):
            kept = kept @ self._weights(dim)
        sides = {(side, dim.axis) for dim in dims for side in (Side if dim.side is None else (dim.side,))}
        unread = {(side, dim.axis) for dim in dims for side in Side} - sides
        counts: NDArray[np.int64] = kept.astype(np.int64)
        return counts * math.prod(self._span_length(side, axis) for side, axis in unread)

    def _weights(self, dim: Dim) -> NDArray[np.int64]:
        """How many pairs, positions or coordinates have each value of a table's number."""
        origin, extent = self._extent(dim)
        if dim.side is None:
            q, k = (self._span_length(side, dim.axis) for side in Side)
            difference = np.arange(extent) - origin
            overlap: NDArray[np.int64] = np.minimum(q, k + difference) - np.maximum(0, difference)
            return overlap.clip(min=0)
        start = (self.sizes.offset(dim.side) or 0) if dim.axis == "" else 0
        places = start + np.arange(self._span_length(dim.side, dim.axis))
        return np.bincount(places // dim.divisor + origin, minlength=extent)

    # Columns: numbers that depend on one side, or on none

    def _column(self, expr: Expr, tile: int) -> tuple[int, Interval]:
        """How many maps a column has, and its bounds per map and tile of its side, flattened."""
        key = (id(expr), tile)
        if key not in self._summaries:
            side = self._columns[id(expr)]
            values = self._valued(expr, side)
            length = 1 if side is None else self.sizes.length(side)
            step = max(1, length) if side is None else tile
            low = self._reduced(values.low, step, self._xp.amin)
            high = self._reduced(values.high, step, self._xp.amax)
            nan = values.nan if isinstance(values.nan, bool) else self._reduced(values.nan, step, self._any).reshape(-1)
            self._summaries[key] = (int(low.shape[0]), Interval(low.reshape(-1), high.reshape(-1), nan))
        return self._summaries[key]

    def _valued(self, expr: Expr, side: Side | None) -> Interval:
        """A column at every position: float64 [maps or 1, positions]; large integers are unknown."""
        if id(expr) in self._values:
            return self._values[id(expr)]
        xp = self._xp
        length = 1 if side is None else max(1, self.sizes.length(side))
        batch, head = self._indices(1)
        zero = self._filled(0)
        place = self._counted(length).reshape((1, -1))
        q = place + self._offset(Side.Q, 1) if side is Side.Q else zero
        k = place + self._offset(Side.K, 1) if side is Side.K else zero
        value = evaluate(expr, Pairs(xp, self.sizes, self._inputs, batch, head, q, k))
        value = value.astype(np.float64) if xp is np else value.to(xp.float64)
        maps = value.shape[0] if len(value.shape) == 2 else 1
        value = xp.broadcast_to(value, (maps, length))
        infinite = xp.zeros_like(value) + math.inf
        if expr.type is Type.INT:
            exact = (value > -(2.0**53)) & (value < 2.0**53)
            found = Interval(xp.where(exact, value, -infinite), xp.where(exact, value, infinite))
        else:
            known = value == value
            found = Interval(xp.where(known, value, infinite), xp.where(known, value, -infinite), ~known)
        self._values[id(expr)] = found
        return found

    def _reduced(self, values: Array, step: int, reduction: Callable[..., Array]) -> Array:
        """Values [maps, positions] reduced over consecutive `step` positions: [maps, tiles]."""
        xp = self._xp
        maps, length = values.shape
        missing = -length % step
        if missing:
            last = xp.broadcast_to(values[:, -1:], (maps, missing))
            values = xp.concatenate((values, last), 1)
        return reduction(values.reshape((maps, -1, step)), 2)

    def _any(self, values: Array, axis: int) -> Array:
        return self._xp.any(values, axis)

    # Reading

    def classes(self, tile: tuple[int, int], map_: Array, q_tile: Array, k_tile: Array) -> Array:
        """Class of tiles: uint8 that broadcasts to the shape of the three index arrays, which broadcast.

        map_ counts batch rows x heads of `maps`. A tile that crosses the end of a side stands for the pairs that exist.
        """
        xp = self._xp
        possible: Array = None
        certain: Array = None
        for q in self._boxes(Side.Q, tile[0], q_tile, map_):
            for k in self._boxes(Side.K, tile[1], k_tile, map_):
                found = self._boxed(tile, map_, q_tile, k_tile, q, k)
                if not self._gridded:
                    return found
                valid = q.valid & k.valid
                some, every = (found != Truth.NEVER) & valid, (found == Truth.ALWAYS) | ~valid
                possible = some if possible is None else possible | some
                certain = every if certain is None else certain & every
        return xp.where(possible, self._byte(certain) + 1, xp.zeros_like(self._byte(certain)))

    def every(self, tile: tuple[int, int]) -> Array:
        """The classes of all tiles at once: uint8 [maps, q_tiles, k_tiles]."""
        rows, _ = tile_counts(self.sizes, tile)
        return self.block(tile, range(math.prod(self.maps)), range(rows))

    def block(self, tile: tuple[int, int], maps: range, rows: range) -> Array:
        """The classes of whole rows of tiles: uint8 [maps, rows, k_tiles]."""
        columns = tile_counts(self.sizes, tile)[1]
        shape = (len(maps), len(rows), columns)
        map_ = (self._counted(len(maps)) + maps.start).reshape((-1, 1, 1))
        row = (self._counted(len(rows)) + rows.start).reshape((1, -1, 1))
        if 0 in shape:
            return self._zeros(shape, self._xp.uint8)
        found = self.classes(tile, map_, row, self._counted(columns).reshape((1, 1, -1)))
        return self._xp.broadcast_to(found, shape)

    def _boxed(self, tile: tuple[int, int], map_: Array, q_tile: Array, k_tile: Array, q: _Box, k: _Box) -> Array:
        def known(expr: Expr) -> Interval | Array | None:
            if id(expr) in self._tables:
                return self._looked_up(self._tables[id(expr)], map_, q, k)
            if id(expr) in self._columns:
                return self._column_at(expr, tile, map_, q_tile, k_tile)
            match expr:
                case Position():
                    box = q if expr.side is Side.Q else k
                    return Interval(self._float(box.first + box.offset), self._float(box.last + box.offset))
                case Coordinate():
                    low, high = self._place(expr.side, expr.axis, q if expr.side is Side.Q else k)
                    return Interval(self._float(low), self._float(high))
                case Read():
                    return self._table_range(expr)
                case _:
                    return None

        ranges = Ranges(self._xp, known, lambda value, dtype: self._filled(value, dtype))
        return ranges.truth(self.predicate)

    def _column_at(self, expr: Expr, tile: tuple[int, int], map_: Array, q_tile: Array, k_tile: Array) -> Interval:
        xp = self._xp
        side = self._columns[id(expr)]
        maps, bounds = self._column(expr, tile[0] if side is Side.Q else tile[1])
        tiles = bounds.low.shape[0] // maps
        index = self._filled(0) if side is None else q_tile if side is Side.Q else k_tile
        if maps > 1:
            index = index + map_ * tiles
        nan = bounds.nan if isinstance(bounds.nan, bool) else xp.take(bounds.nan, index)
        return Interval(xp.take(bounds.low, index), xp.take(bounds.high, index), nan)

    def _table_range(self, expr: Read) -> Interval | Array:
        """What any entry of an input can be, 0 for a read out of range included."""
        xp = self._xp
        table = self._inputs[expr.input].reshape(-1)
        values = table.astype(np.float64) if xp is np else table.to(xp.float64)
        values = xp.concatenate((values, self._zeros((1,), xp.float64)))
        if expr.type is Type.BOOL:
            return self._byte(xp.amax(values) > 0)
        infinite = xp.zeros_like(values) + math.inf
        known = values == values
        low = xp.amin(xp.where(known, values, infinite))
        high = xp.amax(xp.where(known, values, -infinite))
        if expr.type is Type.FLOAT:
            return Interval(low, high, xp.any(~known))
        exact = (low > -(2.0**53)) & (high < 2.0**53)
        return Interval(xp.where(exact, low, low - math.inf), xp.where(exact, high, high + math.inf))

    # Tiles and boxes

    @cached_property
    def _gridded(self) -> bool:
        """Whether some part is read by coordinates, so that tiles must be cut into boxes."""
        return self._reads_boxes(self.predicate)

    def _reads_boxes(self, expr: Expr) -> bool:
        if id(expr) in self._tables:
            return any(dim.axis != "" for dim in self._tables[id(expr)].dims)
        if id(expr) in self._columns:
            return False
        return isinstance(expr, Coordinate) or any(map(self._reads_boxes, children(expr)))

    def _boxes(self, side: Side, tile: int, index: Array, map_: Array) -> Iterator[_Box]:
        """The boxes of tiles: one for a line, else as many as any tile of this side needs."""
        xp = self._xp
        length = self.sizes.length(side)
        offset = self._offset_at(side, map_)
        first = index * tile
        last = xp.clip(first + (tile - 1), 0, max(0, length - 1))
        whole = _Box(first, last, offset, first <= last)
        if not self._gridded:
            yield whole
            return
        for slots in self._slots(side, tile):
            yield self._cut(whole, slots)

    def _cut(self, box: _Box, slots: tuple[int, ...]) -> _Box:
        """One of the boxes of a tile: at each axis but the fastest the head, the body or the tail is kept."""
        xp = self._xp
        first, last = box.first + box.offset, box.last + box.offset
        valid = box.valid
        for place, slot in enumerate(slots):
            stride = max(1, math.prod(size for _, size in self.sizes.axes[place + 1 :]))
            up = -(-first // stride) * stride
            down = (last + 1) // stride * stride
            crosses = up <= down
            if slot == 0:
                last = xp.where(crosses, up - 1, last)
            elif slot == 1:
                first, last = xp.where(crosses, up, first), xp.where(crosses, down - 1, first - 1)
            else:
                first, last = xp.where(crosses, down, first), xp.where(crosses, last, first - 1)
            valid = valid & (first <= last)
        return _Box(first - box.offset, last - box.offset, box.offset, valid)

    def _slots(self, side: Side, tile: int) -> list[tuple[int, ...]]:
        """The boxes that some tile of this side needs; a body is not cut further, for it is a box already."""
        rank = len(self.sizes.axes)
        every = [slots for slots in np.ndindex(*(3,) * (rank - 1)) if all(s == 1 for s in _after_body(slots))]
        if self.sizes.offset(side) is None:
            return every
        host = Analysis(Literal(Type.BOOL, True), self.sizes)
        length = self.sizes.length(side)
        first = np.arange(0, max(1, length), tile)
        last = np.minimum(first + tile, max(1, length)) - 1
        whole = _Box(first, last, np.asarray(self.sizes.offset(side)), np.asarray(True))
        return [slots for slots in every if host._cut(whole, slots).valid.any()]

    # Arrays

    def _indices(self, rank: int) -> tuple[Array, Array]:
        """Batch row and head of every map, with `rank` dims behind."""
        if self.maps == (1, 1):
            return self._filled(0), self._filled(0)
        map_ = self._counted(self.maps[0] * self.maps[1]).reshape((-1, *(1,) * rank))
        return map_ // self.maps[1], map_ % self.maps[1]

    def _offset(self, side: Side, rank: int) -> Array:
        """The offset of a side per map, with `rank` dims behind, or 0-d."""
        given = self.sizes.offset(side)
        return self._filled(given) if given is not None else self._offset_at(side, self._indices(rank)[0], rows=True)

    def _tensor_offset(self, side: Side, rank: int) -> Array:
        """The offset where it is a tensor: what numbers of one side of the line leave out then."""
        return self._filled(0) if self.sizes.offset(side) is not None else self._offset(side, rank)

    def _offset_at(self, side: Side, index: Array, rows: bool = False) -> Array:
        """The offset of a side at maps (or at batch rows)."""
        given = self.sizes.offset(side)
        if given is not None:
            return self._filled(given)
        offsets = self._inputs[f"{side.value}_offset"]
        offsets = offsets.astype(np.int64) if self._xp is np else offsets.to(self._xp.int64)
        return self._xp.take(offsets, index if rows else index // self.maps[1])

    def _filled(self, value: float, dtype: Any = None) -> Array:
        return self._zeros((), self._xp.int64 if dtype is None else dtype) + value if value else self._zeros((), dtype)

    def _zeros(self, shape: tuple[int, ...], dtype: Any) -> Array:
        xp = self._xp
        dtype = xp.int64 if dtype is None else dtype
        return xp.zeros(shape, dtype=dtype) if xp is np else xp.zeros(shape, dtype=dtype, device=self._device)

    def _counted(self, length: int) -> Array:
        xp = self._xp
        return xp.arange(length, dtype=xp.int64) if xp is np else xp.arange(length, dtype=xp.int64, device=self._device)

    def _byte(self, x: Array) -> Array:
        return x.astype(np.uint8) if self._xp is np else x.to(self._xp.uint8)

    def _float(self, x: Array) -> Array:
        return x.astype(np.float64) if self._xp is np else x.to(self._xp.float64)


def tile_classes(
    predicate: Expr,
    sizes: Sizes,
    tile: tuple[int, int],
    inputs: Mapping[str, Array] | None = None,
    *,
    xp: Any = np,
    device: Any = None,
) -> Array:
    """Truth of a predicate over every tile: uint8 [batch rows, heads, q_tiles, k_tiles], 1 in a dim that is shared.

    With numpy coarse tiles are classified first. With torch nothing is copied to the host: all tiles are classified at
    once, in O(tiles) memory on `device`, where the inputs must be.
    """
    analysis = Analysis(predicate, sizes, inputs, xp=xp, device=device)
    rows, columns = tile_counts(sizes, tile)
    shape = (math.prod(analysis.maps), rows, columns)
    if xp is np:
        classes = np.zeros(shape, np.uint8)
        for chunk in class_chunks(analysis, tile):
            maps, height, width = chunk.classes.shape
            place = np.s_[chunk.map :, chunk.row :, chunk.column :]
            classes[place][:maps, :height, :width] = chunk.classes
    else:
        classes = analysis.every(tile)
    return classes.reshape((*analysis.maps, rows, columns))


@dataclass(frozen=True, eq=False)
class Chunk:
    """Classes of some rows of tiles: uint8 [maps, rows, columns], first map, row and column; NEVER in other columns."""

    map: int
    row: int
    column: int
    classes: NDArray[np.uint8]


def class_chunks(analysis: Analysis, tile: tuple[int, int]) -> Iterator[Chunk]:
    """The classes of all tiles by numpy, row by row and map by map; every row is in just one chunk."""
    maps = math.prod(analysis.maps)
    rows, columns = tile_counts(analysis.sizes, tile)
    if rows == 0:
        return
    if rows * columns < _MANY:
        step = max(1, _CELLS // max(1, rows * columns))
        for first in range(0, maps, step):
            yield Chunk(first, 0, 0, analysis.block(tile, range(first, min(first + step, maps)), range(rows)))
        return
    for coarse in class_chunks(analysis, (tile[0] * _COARSER, tile[1] * _COARSER)):
        for m, classes in enumerate(coarse.classes):
            yield from _refined(analysis, tile, replace(coarse, map=coarse.map + m, classes=classes))


def _refined(analysis: Analysis, tile: tuple[int, int], coarse: Chunk) -> Iterator[Chunk]:
    """The tiles of coarse tiles of one map (uint8 [rows, columns]), without outer columns that hold no live tile."""
    rows, columns = tile_counts(analysis.sizes, tile)
    height, width = coarse.classes.shape
    step = max(1, _CELLS // (max(1, width) * _COARSER**2))
    for start in range(0, height, step):
        band = coarse.classes[start : start + step]
        live = np.flatnonzero(band.any(axis=0))
        left, right = (int(live[0]), int(live[-1]) + 1) if live.size else (0, 0)
        wide = Chunk(coarse.map, coarse.row + start, coarse.column + left, band[:, left:right])
        row, column = wide.row * _COARSER, wide.column * _COARSER
        classes = _refined_tiles(analysis, tile, wide)
        yield Chunk(coarse.map, row, column, classes[None, : rows - row, : columns - column])


def _refined_tiles(analysis: Analysis, tile: tuple[int, int], coarse: Chunk) -> NDArray[np.uint8]:
    """The tiles of coarse tiles: uint8 [rows * coarser, columns * coarser]; only those that depend are classified."""
    rows, columns = tile_counts(analysis.sizes, tile)
    inner = np.arange(_COARSER)
    height, width = coarse.classes.shape
    classes = np.empty((height, _COARSER, width, _COARSER), np.uint8)
    classes[:] = coarse.classes[:, None, :, None]
    open_rows, open_columns = np.divmod(np.flatnonzero(coarse.classes == Truth.DEPENDS), max(1, width))
    step = _CELLS // _COARSER**2
    for start in range(0, open_rows.size, step):
        r, c = open_rows[start : start + step], open_columns[start : start + step]
        q_tile = (coarse.row + r[:, None, None]) * _COARSER + inner[None, :, None]
        k_tile = (coarse.column + c[:, None, None]) * _COARSER + inner[None, None, :]
        found = analysis.classes(
            tile, np.full((1, 1, 1), coarse.map), np.minimum(q_tile, rows - 1), np.minimum(k_tile, columns - 1)
        )
        classes[r, :, c, :] = np.broadcast_to(found, (r.size, _COARSER, _COARSER))
    return classes.reshape(height * _COARSER, width * _COARSER)


def tile_counts(sizes: Sizes, tile: tuple[int, int]) -> tuple[int, int]:
    """How many tiles cover the queries and the keys."""
    return -(-sizes.q_len // tile[0]), -(-sizes.k_len // tile[1])


def reads_data(spec: MaskSpec, sizes: Sizes) -> bool:
    """Whether which pairs are kept depends on the contents of tensors: inputs, or offsets given as tensors."""
    nodes = list(walk(spec.predicate))
    moved = any(isinstance(n, Position | Coordinate | Offset) and sizes.offset(n.side) is None for n in nodes)
    return moved or any(isinstance(n, Read) for n in nodes)


def _maps(dims: tuple[bool, bool], sizes: Sizes) -> tuple[int, int]:
    return sizes.batch if dims[0] else 1, sizes.heads if dims[1] else 1


def _after_body(slots: tuple[int, ...]) -> tuple[int, ...]:
    return slots[slots.index(1) :] if 1 in slots else ()


def _leaf(side: Side, axis: str) -> Expr:
    return Position(Type.INT, side) if axis == "" else Coordinate(Type.INT, side, axis)


def _on_line(expr: Expr, sizes: Sizes) -> Expr:
    """The coordinates of a grid of one axis are positions."""
    if len(sizes.axes) != 1:
        return expr
    if isinstance(expr, Coordinate):
        return Position(Type.INT, expr.side)
    return rebuild(expr, lambda child: _on_line(child, sizes))


def _places(expr: Expr) -> frozenset[tuple[Side, str]]:
    """The sides and axes that an expression reads; "" is the line."""
    found = set()
    for node in walk(expr):
        if isinstance(node, Position):
            found.add((node.side, ""))
        elif isinstance(node, Coordinate):
            found.add((node.side, node.axis))
    return frozenset(found)


def _sides(expr: Expr) -> frozenset[Side]:
    return frozenset(side for side, _ in _places(expr))


def _axes(expr: Expr) -> frozenset[str]:
    return frozenset(axis for _, axis in _places(expr))


def _one_side(expr: Expr) -> Side | None:
    return next(iter(_sides(expr)), None)


def _grid(expr: Expr) -> bool:
    return any(isinstance(node, Coordinate) for node in walk(expr))


def _chain(expr: Expr, op: BinaryOp) -> list[Expr]:
    """The operands of a chain of one associative operator."""
    if isinstance(expr, Binary) and expr.op is op:
        return _chain(expr.left, op) + _chain(expr.right, op)
    return [expr]


def _joined(op: BinaryOp, parts: list[Expr]) -> Expr:
    """`and` or `or` of all parts, as a balanced tree: there may be many."""
    if len(parts) == 1:
        return parts[0]
    middle = (len(parts) + 1) // 2
    return Binary(Type.BOOL, op, _joined(op, parts[:middle]), _joined(op, parts[middle:]))


def _groups(parts: list[Expr], key: Callable[[Expr], Any]) -> list[list[Expr]]:
    """Parts with equal keys together, in the order in which they first occur."""
    groups: dict[Any, list[Expr]] = {}
    for part in parts:
        groups.setdefault(key(part), []).append(part)
    return list(groups.values())


def _numbers(expr: Expr, sizes: Sizes) -> tuple[Dim, ...] | None:
    """The fewest numbers that decide an expression; None where lines and axes, or both sides of a line, are mixed."""
    places = _places(expr)
    axes = sorted({axis for _, axis in places})
    if len({side for side, _ in places}) <= 1:
        return tuple(Dim(side, "") for side in {side for side, _ in places})
    if "" in axes and len(axes) > 1:
        return None
    dims: list[Dim] = []
    for axis in axes:
        sides = [side for side in Side if (side, axis) in places]
        if len(sides) == 2 and slope(expr, axis) == 0:
            dims.append(Dim(None, axis))
        elif axis == "" and (sizes.q_offset is None or sizes.k_offset is None):
            return None
        else:
            dims += [Dim(side, axis, _divisor(expr, _leaf(side, axis))) for side in sides]
    return tuple(dims)


def _divisor(expr: Expr, leaf: Expr) -> int:
    """The largest d for which the expression reads a leaf only as leaf // d."""
    if expr == leaf:
        return 1
    if isinstance(expr, Binary) and expr.op is BinaryOp.FLOORDIV and expr.left == leaf:
        by = expr.right
        if isinstance(by, Literal) and by.value > 0:
            return int(by.value)
    return math.gcd(*(_divisor(child, leaf) for child in children(expr)))


def slope(expr: Expr, axis: str) -> int | None:
    """By how much an expression grows when query and key both move by 1 along an axis; None if that is not constant.

    Slope 0 means: a function of the difference. Operands of `a % m == b % m` of equal slope count as their difference.
    """
    match expr:
        case Position():
            return 1 if axis == "" else 0
        case Coordinate():
            return 1 if axis == expr.axis else 0
        case Binary():
            return _binary_slope(expr, axis)
        case Unary(op=UnaryOp.NEG):
            inner = slope(expr.operand, axis)
            return None if inner is None else -inner
        case Select():
            condition, then, otherwise = (slope(child, axis) for child in children(expr))
            return then if condition == 0 and then == otherwise else None
        case _:
            return 0 if all(slope(child, axis) == 0 for child in children(expr)) else None


def _binary_slope(expr: Binary, axis: str) -> int | None:
    a, b = slope(expr.left, axis), slope(expr.right, axis)
    if a == 0 and b == 0:
        return 0
    if expr.op in (BinaryOp.EQ, BinaryOp.NE) and _congruent(expr, axis):
        return 0
    if a is None or b is None or expr.left.type is not Type.INT:
        return None
    match expr.op:
        case BinaryOp.ADD:
            return a + b
        case BinaryOp.SUB:
            return a - b
        case BinaryOp.MIN | BinaryOp.MAX:
            return a if a == b else None
        case BinaryOp.MUL if isinstance(expr.left, Literal):
            return int(expr.left.value) * b
        case BinaryOp.MUL if isinstance(expr.right, Literal):
            return int(expr.right.value) * a
        case BinaryOp.FLOORDIV if _divides(expr.right, a):
            return a // int(expr.right.value)  # type: ignore[union-attr]
        case BinaryOp.MOD if _divides(expr.right, a):
            return 0
        case _ if expr.op in COMPARISONS:
            return 0 if a == b else None
        case _:
            return None


def _divides(divisor: Expr, number: int) -> bool:
    return isinstance(divisor, Literal) and divisor.value != 0 and number % int(divisor.value) == 0


def _congruent(expr: Binary, axis: str) -> bool:
    """a % m == b % m with a constant m says m divides a - b."""
    left, right = expr.left, expr.right
    if not (isinstance(left, Binary) and isinstance(right, Binary) and left.op is right.op is BinaryOp.MOD):
        return False
    if not (isinstance(left.right, Literal) and left.right == right.right and left.type is Type.INT):
        return False
    a = slope(left.left, axis)
    return a is not None and a == slope(right.left, axis)


Bounds = tuple[float, float]
"""Least and greatest value, infinite where there is none."""

_NATURAL: Bounds = (0.0, math.inf)


def value_range(expr: Expr, known: Mapping[Expr, Bounds] | None = None, inputs: tuple[InputSpec, ...] = ()) -> Bounds:
    """Bounds of a number in every call: positions, coordinates, offsets, lengths, sizes and indices are not negative.

    known: bounds of parts of the expression that hold in the calls in question (parameters, above all). inputs: their
    promises (`of`) count. Integers are taken not to leave 64 bits, which the language promises.
    """
    found = _scalar_ranges(known or {}, inputs).interval(expr)
    return float(found.low), float(found.high)


def lower_division(expr: Expr, inputs: tuple[InputSpec, ...] = ()) -> Expr:
    """The expression with C's division and remainder wherever both operands are non-negative in every call."""
    ranges = _scalar_ranges({}, inputs)

    def lowered(node: Expr) -> Expr:
        changed = rebuild(node, lowered)
        if not (isinstance(node, Binary) and isinstance(changed, Binary) and node.type is Type.INT):
            return changed
        if node.op not in _TRUNCATED or min(ranges.interval(node.left).low, ranges.interval(node.right).low) < 0:
            return changed
        return Binary(Type.INT, _TRUNCATED[node.op], changed.left, changed.right, span=node.span)

    return lowered(expr)


_TRUNCATED = {BinaryOp.FLOORDIV: BinaryOp.TRUNCDIV, BinaryOp.MOD: BinaryOp.TRUNCMOD}


def fits_32_bits(spec: MaskSpec, sizes: Sizes) -> bool:
    """Whether every integer that the predicate and the score compute at these sizes fits 32 bits.

    Entries of inputs are not computed; what is computed from them fits only where the spec bounds them (`of`).
    """
    known: dict[Expr, Bounds] = {}
    for side in Side:
        offset = sizes.offset(side)
        first, last = (0, 2**31 - 1) if offset is None else (offset, offset + max(0, sizes.length(side) - 1))
        known[Position(Type.INT, side)] = (float(first), float(last))
        known[Offset(Type.INT, side)] = (float(first), float(last)) if offset is None else (float(first),) * 2
        known[_local(side)] = (0.0, float(max(0, sizes.length(side) - 1)))
        for axis, size in sizes.axes:
            known[Coordinate(Type.INT, side, axis)] = (0.0, float(max(0, size - 1)))
    for count in Count:
        known[Index(Type.INT, count)] = (0.0, float(max(0, sizes.total(count) - 1)))
    below = {i.name: constants(i.below, sizes) for i in spec.inputs if i.below is not None}
    inputs = tuple(replace(i, below=below.get(i.name)) for i in spec.inputs)
    parts = [constants(part, sizes) for part in (*spec.clauses, spec.score)]
    ranges = _scalar_ranges(known, inputs)
    return all(
        ranges.interval(node).low >= -(2**31) and ranges.interval(node).high < 2**31
        for part in parts
        for node in walk(part)
        if node.type is Type.INT and not isinstance(node, Read)
    )


def _local(side: Side) -> Expr:
    """The number of a query or key within its call."""
    return Binary(Type.INT, BinaryOp.SUB, Position(Type.INT, side), Offset(Type.INT, side))


def _scalar_ranges(known: Mapping[Expr, Bounds], inputs: tuple[InputSpec, ...]) -> Ranges:
    """The interval reading over every pair of every call that `known` describes."""
    below = {i.name: i.below for i in inputs}
    natural = {_local(side) for side in Side}

    def interval(bounds: Bounds) -> Interval:
        return Interval(np.float64(bounds[0]), np.float64(bounds[1]))

    def promised(expr: Read) -> Bounds:
        limit = below.get(expr.input)
        return (-math.inf, math.inf) if limit is None else (-1.0, max(0.0, float(ranges.interval(limit).high) - 1))

    def answer(expr: Expr) -> Interval | Array | None:
        if expr in known:
            return interval(known[expr])
        match expr:
            case Position() | Coordinate() | Offset() | Length() | AxisSize() | Index() | Total():
                return interval(_NATURAL)
            case Parameter() | Read() | Score() if expr.type is Type.BOOL:
                return np.uint8(Truth.DEPENDS)
            case Read() if expr.type is Type.INT:
                return interval(promised(expr))
            case Parameter() | Read() | Score():
                return replace(interval((-math.inf, math.inf)), nan=expr.type is Type.FLOAT)
            case Binary(op=BinaryOp.SUB) if expr in natural:
                return interval(_NATURAL)
            case _:
                return None

    ranges = Ranges(np, answer, lambda value, dtype: dtype(value), wraps=False)
    return ranges
