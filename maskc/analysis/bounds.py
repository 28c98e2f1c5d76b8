"""Truth over tiles: which tiles of the attention matrix hold kept pairs, and which hold nothing else.

No work is done per pair. A predicate is cut into its largest parts that a table decides exactly: functions of one side,
of differences between query and key (of the line or per axis), of the coordinates of one axis, and of positions divided
by a block size. The table holds the part at every value of those few numbers; its prefix sums say for any box whether
the part holds nowhere, somewhere or everywhere. Parts that no affordable table decides are read by interval arithmetic,
in which every number that depends on one side alone (a read of an input, above all) enters as its range in the tile.

A tile of consecutive positions on a grid is a union of at most 2 * rank - 1 boxes of coordinates and is classified by
them. All of this runs on numpy or torch arrays without a look at their contents, so that plans that depend on data can
be built on the device that holds the data: `Analysis(predicate, sizes, tensors, xp=torch, device=device).every(tile)`.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskc.analysis.interval import Interval, Ranges, Truth
from maskc.analysis.searches import Buckets, Members, affordable
from maskc.analysis.support import arrange, span
from maskc.analysis.tabulate import Box, Column, Scene, Table, boxes, entry_span
from maskc.arrays import Array, cast
from maskc.constants import constants
from maskc.evaluate import depends, tables_read
from maskc.expr import (
    AxisSize,
    Binary,
    BinaryOp,
    Bucket,
    Coordinate,
    Count,
    Dot,
    Expr,
    FinalScore,
    Fold,
    FreeSize,
    Index,
    Kept,
    Length,
    Literal,
    Member,
    Offset,
    Parameter,
    Position,
    Read,
    Row,
    Scale,
    Score,
    Side,
    Total,
    Type,
    Weight,
    walk,
)
from maskc.spec import InputSpec, MaskSpec, PrefixSum, Sizes, Values

_CELLS = 1 << 20
"""Tiles that are classified at once."""

_COARSER = 16
"""How many tiles along each side a coarse tile joins."""

_MANY = 1 << 14
"""From this many tiles on coarse tiles are classified first."""


class Analysis:
    """One predicate at one call's sizes, ready for tiles of any size.

    inputs: arrays of numpy, or of torch (xp=torch) on `device`; those that the predicate reads, and the offsets that
    were given as tensors. maps: (batch rows, heads) with a map of their own; by default where the predicate differs.
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
        rows, heads = depends(predicate, sizes)
        self.sizes = sizes
        self.maps = (sizes.batch if rows else 1, sizes.heads if heads else 1) if maps is None else maps
        self._scene = Scene(xp, device, sizes, {} if inputs is None else inputs, self.maps)
        self._arrangement = arrange(predicate, sizes)
        self._tables: dict[int, Table] = {}
        self._columns: dict[int, Column] = {}
        self._members: dict[int, Members] = {}
        self._buckets: dict[int, Buckets] = {}

    def _table(self, part: Expr) -> Table:
        if id(part) not in self._tables:
            self._tables[id(part)] = Table(self._scene, part, self._arrangement.tables[id(part)])
        return self._tables[id(part)]

    def _column(self, part: Expr) -> Column:
        if id(part) not in self._columns:
            self._columns[id(part)] = Column(self._scene, part, self._arrangement.columns[id(part)])
        return self._columns[id(part)]

    def _looks_at(self, part: Member | Bucket) -> bool:
        """Whether the rows that a part searches are known tile by tile."""
        rows = self._arrangement.rows
        return id(part) in rows and affordable(self._scene, part.row, rows[id(part)])

    def _member(self, part: Member) -> Members:
        if id(part) not in self._members:
            self._members[id(part)] = Members(self._scene, part.row, self._arrangement.rows[id(part)])
        return self._members[id(part)]

    def _bucket(self, part: Bucket) -> Buckets:
        if id(part) not in self._buckets:
            side = self._arrangement.rows[id(part)]
            self._buckets[id(part)] = Buckets(self._scene, part.row, side, part.item.type)
        return self._buckets[id(part)]

    def every(self, tile: tuple[int, int]) -> Array:
        """The classes of all tiles at once: uint8 [maps, q_tiles, k_tiles]."""
        rows, _ = tile_counts(self.sizes, tile)
        return self.block(tile, range(math.prod(self.maps)), range(rows))

    def block(self, tile: tuple[int, int], maps: range, rows: range) -> Array:
        """The classes of whole rows of tiles: uint8 [maps, rows, k_tiles]."""
        scene, columns = self._scene, tile_counts(self.sizes, tile)[1]
        shape = (len(maps), len(rows), columns)
        if 0 in shape:
            return scene.full(0, scene.xp.uint8, shape)
        map_ = (scene.counted(len(maps)) + maps.start).reshape((-1, 1, 1))
        row = (scene.counted(len(rows)) + rows.start).reshape((1, -1, 1))
        return scene.xp.broadcast_to(self.classes(tile, map_, row, scene.counted(columns).reshape((1, 1, -1))), shape)

    def classes(self, tile: tuple[int, int], map_: Array, q_tile: Array, k_tile: Array) -> Array:
        """Class of tiles: uint8 that broadcasts to the common shape of the three index arrays.

        map_ counts the maps, heads fastest. A tile that crosses the end of a side stands for the pairs that exist.
        """
        xp, boxed = self._scene.xp, self._arrangement.boxed
        possible, certain = self._scene.full(False, xp.bool_ if xp is np else xp.bool), None
        for q in boxes(self._scene, Side.Q, tile[0], q_tile, map_, boxed):
            for k in boxes(self._scene, Side.K, tile[1], k_tile, map_, boxed):
                found = self._boxed(tile, map_, q_tile, k_tile, q, k)
                if not boxed:
                    return found
                valid = q.valid & k.valid
                every = (found == Truth.ALWAYS) | ~valid
                possible = possible | ((found != Truth.NEVER) & valid)
                certain = every if certain is None else certain & every
        return cast(xp, possible, xp.uint8) + cast(xp, possible & certain, xp.uint8)

    def _boxed(self, tile: tuple[int, int], map_: Array, q_tile: Array, k_tile: Array, q: Box, k: Box) -> Array:
        """Class of one box of queries and one of keys in each tile."""
        scene, arrangement = self._scene, self._arrangement
        tiles = (tile, map_, q_tile, k_tile)

        def known(expr: Expr) -> Interval | Array | None:
            if id(expr) in arrangement.tables:
                return self._table(expr).classes(map_, q, k)
            if id(expr) in arrangement.columns:
                return self._column(expr).at(*tiles)
            match expr:
                case Position() | Coordinate():
                    box = q if expr.side is Side.Q else k
                    axis = expr.axis if isinstance(expr, Coordinate) else ""
                    shift = box.offset if axis == "" else 0
                    low, high = box.ends(axis)
                    return self._bounds(low + shift, high + shift)
                case Index() | Offset():
                    value = scene.leaf(expr, map_)
                    return self._bounds(value, value)
                case Read():
                    entries = entry_span(scene, expr, [ranges.interval(index) for index in expr.indices])
                    return entries if expr.type is not Type.BOOL else _truth(scene.xp, entries)
                case Member() if self._looks_at(expr):
                    return self._member(expr).classes(ranges.interval(expr.item), *tiles)
                case Bucket() if self._looks_at(expr):
                    return self._bucket(expr).interval(ranges.interval(expr.item), *tiles)
                case Bucket():
                    return self._bounds(scene.full(0), scene.full(self._row_length(expr.row)))
                case _:
                    return None

        ranges = Ranges(scene.xp, known, scene.full)
        return ranges.truth(arrangement.predicate)

    def _bounds(self, low: Array, high: Array) -> Interval:
        """Integers that are exact as floats."""
        xp = self._scene.xp
        return Interval(cast(xp, low, xp.float64), cast(xp, high, xp.float64))

    def _row_length(self, row: Row) -> int:
        return int(self._scene.inputs[row.input].shape[-1])

    def count(self) -> int | None:
        """How many pairs are kept over all maps, where tables over separate axes decide the predicate; numpy only."""
        parts = self._conjuncts(self._arrangement.predicate)
        if not all(id(part) in self._arrangement.tables for part in parts):
            return None
        axes = [axis for part in parts for axis in {dim.axis for dim in self._table(part).dims}]
        on_grid = len(axes) > 0 and axes != [""]
        if len(set(axes)) < len(axes) or (on_grid and ("" in axes or not self._is_whole_grid)):
            return None
        free = set(self.sizes.axis if on_grid else [""]) - set(axes)
        total: Any = math.prod(span(self.sizes, side, axis) for side in Side for axis in free)
        for part in parts:
            total = total * self._table(part).weighed(part)
        return int(np.broadcast_to(total, (math.prod(self.maps),)).sum())

    def _conjuncts(self, expr: Expr) -> list[Expr]:
        """The operands of `and`, down to those that a table decides."""
        if id(expr) in self._arrangement.tables or not (isinstance(expr, Binary) and expr.op is BinaryOp.AND):
            return [expr]
        return self._conjuncts(expr.left) + self._conjuncts(expr.right)

    @property
    def _is_whole_grid(self) -> bool:
        """Whether queries and keys are all tokens of the grid."""
        sizes = self.sizes
        tokens = math.prod(sizes.axis.values())
        return (sizes.q_len, sizes.k_len, sizes.q_offset, sizes.k_offset) == (tokens, tokens, 0, 0)


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


def _truth(xp: Any, entries: Interval) -> Array:
    """The class of a read of booleans."""
    return cast(xp, entries.high > 0, xp.uint8) + cast(xp, entries.low > 0, xp.uint8)


def tile_counts(sizes: Sizes, tile: tuple[int, int]) -> tuple[int, int]:
    """How many tiles cover the queries and the keys."""
    return -(-sizes.q_len // tile[0]), -(-sizes.k_len // tile[1])


@lru_cache(maxsize=256)
def reads_data(spec: MaskSpec, sizes: Sizes) -> bool:
    """Whether which pairs are kept depends on the contents of tensors of the call: inputs, or offsets given so."""
    nodes = walk(spec.predicate)
    moved = any(isinstance(n, Position | Coordinate | Offset) and sizes.offset(n.side) is None for n in nodes)
    return moved or not tables_read(spec.predicate) <= constant_tables(spec)


def constant_tables(spec: MaskSpec) -> frozenset[str]:
    """The tables whose contents the spec itself decides."""
    found: set[str] = set()
    for entry in spec.inputs:
        match entry.source:
            case Values():
                found.add(entry.name)
            case PrefixSum(table=table) if table in found:
                found.add(entry.name)
            case _:
                pass
    return frozenset(found)


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
    nodes = [node for part in (*spec.clauses, spec.score) for node in walk(constants(part, sizes))]
    for node in nodes:
        if isinstance(node, Fold) and isinstance(node.count, Literal):
            known[node.index] = (0.0, max(float(node.count.value), *known.get(node.index, (0.0,))))
    ranges = _scalar_ranges(known, inputs)
    return all(
        ranges.interval(node).low >= -(2**31) and ranges.interval(node).high < 2**31
        for node in nodes
        if node.type is Type.INT and not isinstance(node, Read)
    )


def _local(side: Side) -> Expr:
    """The number of a query or key within its call."""
    return Binary(Type.INT, BinaryOp.SUB, Position(Type.INT, side), Offset(Type.INT, side))


def _scalar_ranges(known: Mapping[Expr, Bounds], inputs: tuple[InputSpec, ...]) -> Ranges:
    """The interval reading over every pair of every call that `known` describes."""
    below = {i.name: i.below for i in inputs}
    values = {i.name: i.source for i in inputs if isinstance(i.source, Values)}
    natural = {_local(side) for side in Side}

    def interval(bounds: Bounds) -> Interval:
        return Interval(np.float64(bounds[0]), np.float64(bounds[1]))

    def promised(expr: Read) -> Bounds:
        if expr.input in values:
            entries = (0.0, *map(float, values[expr.input].entries))
            return min(entries), max(entries)
        limit = below.get(expr.input)
        return (-math.inf, math.inf) if limit is None else (-1.0, max(0.0, float(ranges.interval(limit).high) - 1))

    def answer(expr: Expr) -> Interval | Array | None:
        if expr in known:
            return interval(known[expr])
        match expr:
            case Position() | Coordinate() | Offset() | Length() | AxisSize() | FreeSize() | Index() | Total() | Kept():
                return interval(_NATURAL)
            case Bucket() if expr.row.input in values:
                return interval((0.0, float(values[expr.row.input].shape[-1])))
            case Parameter() | Read() if expr.type is Type.BOOL:
                return np.uint8(Truth.DEPENDS)
            case Read() if expr.type is Type.INT:
                return interval(promised(expr))
            case Parameter() | Read() | Score() | FinalScore() | Weight() | Scale() | Dot():
                return replace(interval((-math.inf, math.inf)), nan=expr.type is Type.FLOAT)
            case Binary(op=BinaryOp.SUB) if expr in natural:
                return interval(_NATURAL)
            case _:
                return None

    ranges = Ranges(np, answer, lambda value, dtype: dtype(value), wraps=False)
    return ranges
