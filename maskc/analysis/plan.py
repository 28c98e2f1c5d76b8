"""Which tiles of the attention matrix hold kept pairs, and how a kernel walks them.

`build` turns a spec at given sizes into a `BlockPlan`. Nothing here costs work or memory per pair but `statistics`,
which may count the pairs of partial tiles, and `expand`, which is for tests.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskc.analysis.bounds import Analysis, Chunk, class_chunks, tile_counts
from maskc.analysis.interval import Truth
from maskc.arrays import Array
from maskc.constants import constants
from maskc.evaluate import Pairs, evaluate
from maskc.expr import TRUE, Expr, Side, conjunction
from maskc.features import require_mask
from maskc.spec import MaskSpec, Sizes

Int32 = NDArray[np.int32]


@dataclass(frozen=True)
class Digit:
    """One digit of a token's position: (position // stride) % size along the named axis (or the line, axis '')."""

    axis: str
    stride: int
    size: int


@dataclass(frozen=True)
class TokenOrder:
    """A permutation of tokens: slot = the digits, most significant first, read as one number. No digits: row-major."""

    digits: tuple[Digit, ...] = ()

    def __str__(self) -> str:
        return " ".join(f"{d.axis}/{d.stride}%{d.size}" for d in self.digits) or "row-major"


@dataclass(frozen=True, eq=False)
class TileRuns:
    """For every row of tiles, the runs of live tiles along the other side, ascending and disjoint.

    first: int32 [maps, rows], where a row's runs begin in start and stop.
    tiles: int32 [maps, rows], how many tiles the row's runs hold together.
    start, stop: int32 [runs], the first tile of a run and the one behind its last.
    """

    first: Int32
    tiles: Int32
    start: Int32
    stop: Int32


@dataclass(frozen=True, eq=False)
class Part:
    """Disjoint share of the kept pairs with token orders of its own.

    predicate: what decides a pair inside a partial tile (the conjunction of the clauses that are open in some tile).
    by_query, by_key: (full, partial) runs of key tiles per query tile, and of query tiles per key tile.
    q_positions, k_positions: int32 [maps, slots], original positions where the part is packed; None where slots are
    positions.
    """

    predicate: Expr
    open_clauses: tuple[int, ...]
    by_query: tuple[TileRuns, TileRuns]
    by_key: tuple[TileRuns, TileRuns]
    q_order: TokenOrder = TokenOrder()
    k_order: TokenOrder = TokenOrder()
    q_positions: Int32 | None = None
    k_positions: Int32 | None = None


@dataclass(frozen=True, eq=False)
class BlockPlan:
    """How the kept pairs of one call are tiled.

    tile: (queries, keys). maps: (batch rows, heads) that have a map of their own, 1 where all share one.
    """

    spec: MaskSpec
    sizes: Sizes
    tile: tuple[int, int]
    maps: tuple[int, int]
    parts: tuple[Part, ...] = field(default=())

    def __str__(self) -> str:
        rows, columns = tile_counts(self.sizes, self.tile)
        maps = "one map" if self.maps == (1, 1) else f"{self.maps[0]} x {self.maps[1]} maps (batch rows x heads)"
        lines = [
            f"plan of {self.spec.name}: {self.sizes.q_len} queries x {self.sizes.k_len} keys, {maps}",
            f"  tiles of {self.tile[0]} x {self.tile[1]}: {rows} rows x {columns} columns",
        ]
        for number, part in enumerate(self.parts):
            full, partial = (int(runs.tiles.sum()) for runs in part.by_query)
            empty = math.prod(self.maps) * rows * columns - full - partial
            lines += [
                f"  part {number}: queries {part.q_order}, keys {part.k_order}",
                f"    {full} full, {partial} partial, {empty} empty tiles",
                f"    inside partial tiles: {part.predicate}",
            ]
        return "\n".join(lines)


Inputs = Mapping[str, NDArray[Any]]


def build(spec: MaskSpec, sizes: Sizes, tile: tuple[int, int], inputs: Inputs | None = None) -> BlockPlan:
    """The plan of one call in row-major order. inputs: numpy arrays of all tables that the predicate reads.

    Raises MaskUnsupportedError where the kept pairs depend on the scores.
    """
    require_mask(spec)
    analysis = Analysis(spec.predicate, sizes, inputs)
    clauses = _OpenClauses(spec, sizes, inputs, analysis.maps)
    maps, (q_tiles, k_tiles) = math.prod(analysis.maps), tile_counts(sizes, tile)
    by_query, by_key = (_Rows(), _Rows()), (_Columns(q_tiles), _Columns(q_tiles))
    for chunk in class_chunks(analysis, tile):
        full, partial = _walked(chunk, sizes, tile)
        clauses.look(tile, chunk, partial)
        for live, rows, columns in zip((full, partial), by_query, by_key, strict=True):
            rows.add(chunk, live)
            columns.add(chunk, live)
    open_clauses = clauses.found()
    part = Part(
        predicate=conjunction(tuple(spec.clauses[i] for i in open_clauses)),
        open_clauses=open_clauses,
        by_query=(by_query[0].runs(maps, q_tiles), by_query[1].runs(maps, q_tiles)),
        by_key=(by_key[0].runs(maps, k_tiles), by_key[1].runs(maps, k_tiles)),
    )
    return BlockPlan(spec, sizes, tile, analysis.maps, (part,))


def _walked(chunk: Chunk, sizes: Sizes, tile: tuple[int, int]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Full and partial tiles of a chunk; a tile that crosses the end of a side is partial."""
    full, partial = chunk.classes == Truth.ALWAYS, chunk.classes == Truth.DEPENDS
    # The first tile of each side that is not whole; none has a negative index within the chunk.
    row, column = max(0, sizes.q_len // tile[0] - chunk.row), max(0, sizes.k_len // tile[1] - chunk.column)
    for edge in (np.s_[:, row:], np.s_[:, :, column:]):
        partial[edge] |= full[edge]
        full[edge] = False
    return full, partial


class _OpenClauses:
    """The clauses that some partial tile leaves open; a clause is looked at until one such tile is found."""

    def __init__(self, spec: MaskSpec, sizes: Sizes, inputs: Inputs | None, maps: tuple[int, int]) -> None:
        self._closed = {
            i: Analysis(clause, sizes, inputs, maps=maps)
            for i, clause in enumerate(spec.clauses)
            if constants(clause, sizes) != TRUE
        }
        self._open: set[int] = set()

    def look(self, tile: tuple[int, int], chunk: Chunk, partial: NDArray[np.bool_]) -> None:
        """Classify the partial tiles of one chunk by each clause that was closed in every tile before."""
        if not self._closed or not partial.any():
            return
        maps, rows, columns = np.unravel_index(np.flatnonzero(partial), partial.shape)
        for number, analysis in list(self._closed.items()):
            for piece in _pieces(maps.size, _PIECE):
                place = (maps[piece] + chunk.map, rows[piece] + chunk.row, columns[piece] + chunk.column)
                classes = analysis.classes(tile, *place)
                if (classes != Truth.ALWAYS).any():
                    self._open.add(number)
                    del self._closed[number]
                    break

    def found(self) -> tuple[int, ...]:
        return tuple(sorted(self._open))


_PIECE = 1 << 18
"""Tiles or pairs that are looked at together; the first piece mostly decides."""


def _pieces(total: int, step: int) -> Iterator[slice]:
    return (slice(start, start + step) for start in range(0, total, step))


class _Rows:
    """Collects runs along the rows of chunks that arrive in order."""

    def __init__(self) -> None:
        self._start: list[Int32] = []
        self._stop: list[Int32] = []
        self._count: list[Int32] = []

    def add(self, chunk: Chunk, live: NDArray[np.bool_]) -> None:
        """Runs of live tiles along the rows of a chunk: bool [maps, rows, columns]."""
        maps, rows, columns = live.shape
        edged = np.zeros((maps * rows, columns + 2), np.bool_)
        edged[:, 1:-1] = live.reshape(maps * rows, columns)
        changes = np.flatnonzero(edged[:, 1:] != edged[:, :-1])
        row, column = np.divmod(changes, columns + 1)
        self._start.append(column[0::2].astype(np.int32) + chunk.column)
        self._stop.append(column[1::2].astype(np.int32) + chunk.column)
        self._count.append(np.bincount(row[0::2], minlength=maps * rows).astype(np.int32))

    def runs(self, maps: int, rows: int) -> TileRuns:
        """All of them; `rows` per map."""
        return _tile_runs(_all(self._start), _all(self._stop), _all(self._count), maps, rows)


class _Columns:
    """Collects runs along the columns of chunks of whole rows that arrive in order; `rows` per map."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._changes: list[tuple[Int32, Int32, Int32]] = []
        self._above = (0, np.zeros((1, 0), np.bool_))  # first column and the last row of the chunk before

    def add(self, chunk: Chunk, live: NDArray[np.bool_]) -> None:
        """Note where the columns of bool [maps, rows, columns] change; below its last row nothing of a map is live."""
        maps, rows, width = live.shape
        first, above = self._above if chunk.row else (chunk.column, np.zeros((maps, 0), np.bool_))
        left, right = min(first, chunk.column), max(first + above.shape[1], chunk.column + width)
        last = chunk.row + rows == self._rows
        column = np.zeros((maps, 1 + rows + last, right - left), np.bool_)
        column[:, 0, first - left : first - left + above.shape[1]] = above
        column[:, 1 : rows + 1, chunk.column - left : chunk.column - left + width] = live
        changed = column[:, 1:] != column[:, :-1]
        found = [index.astype(np.int32) for index in np.unravel_index(np.flatnonzero(changed), changed.shape)]
        self._changes.append((found[0] + chunk.map, found[2] + left, found[1] + chunk.row))
        self._above = (chunk.column, live[:, -1])

    def runs(self, maps: int, columns: int) -> TileRuns:
        """All of them; `columns` per map."""
        map_, column, row = (_all([change[i] for change in self._changes]) for i in range(3))
        line = map_.astype(np.int64) * columns + column
        order = np.argsort(line, kind="stable")
        line, row = line[order], row[order]
        count = np.bincount(line[0::2], minlength=maps * columns).astype(np.int32)
        return _tile_runs(row[0::2], row[1::2], count, maps, columns)


def _tile_runs(start: Int32, stop: Int32, count: Int32, maps: int, rows: int) -> TileRuns:
    """Runs in the order of maps and rows, `count` of them in each row."""
    behind = np.cumsum(count, dtype=np.int64)
    tiles = np.concatenate(([0], np.cumsum(stop.astype(np.int64) - start)))
    return TileRuns(
        first=(behind - count).astype(np.int32).reshape(maps, rows),
        tiles=(tiles[behind] - tiles[behind - count]).astype(np.int32).reshape(maps, rows),
        start=np.ascontiguousarray(start),
        stop=np.ascontiguousarray(stop),
    )


def _all(pieces: list[Int32]) -> Int32:
    return np.concatenate(pieces) if pieces else np.zeros(0, np.int32)


def runs_on_device(
    classes: Array, sizes: Sizes, tile: tuple[int, int], xp: Any
) -> tuple[tuple[TileRuns, TileRuns], tuple[TileRuns, TileRuns]]:
    """(by_query, by_key) of a part, as `build` has them, from the classes of all tiles, with no look at the data.

    classes: uint8 [maps, q_tiles, k_tiles] of numpy or torch (module `xp`), from `Analysis.every`. The arrays of
    the runs lie where the classes do. Every row of n tiles has room for ceil(n / 2) runs, the most there can
    be, and `first` steps by that; what lies behind a row's last run is 0. All in all that is 16 bytes a tile.
    """
    full, partial = classes == Truth.ALWAYS, classes == Truth.DEPENDS
    for axis, (length, size) in enumerate(((sizes.q_len, tile[0]), (sizes.k_len, tile[1])), start=1):
        if length % size:
            crosses = _counted(classes, xp, axis) == classes.shape[axis] - 1
            full, partial = full & ~crosses, partial | (full & crosses)
    by_query = (_spaced_runs(full, xp), _spaced_runs(partial, xp))
    return by_query, (_spaced_runs(xp.swapaxes(full, 1, 2), xp), _spaced_runs(xp.swapaxes(partial, 1, 2), xp))


def _spaced_runs(live: Array, xp: Any) -> TileRuns:
    """Runs of bool [maps, rows, tiles]; the n-th run of a row is written to slot n of the row's own room."""
    room = (live.shape[2] + 1) // 2
    gap = xp.zeros_like(live[:, :, :1])
    begins = live & ~xp.concatenate((gap, live[:, :, :-1]), 2)
    ends = live & ~xp.concatenate((live[:, :, 1:], gap), 2)
    slot = xp.where(live, xp.cumsum(begins, 2) - 1, room)
    place = _counted(live, xp, 2)
    start = _placed(xp, xp.where(begins, slot, room), place, room)
    stop = _placed(xp, xp.where(ends, slot, room), place + 1, room)
    first = _counted(live, xp, 0) * live.shape[1] + _counted(live, xp, 1)
    return TileRuns(
        first=_int32(xp, first[:, :, 0] * room),
        tiles=_int32(xp, live.sum(2)),
        start=start,
        stop=stop,
    )


def _placed(xp: Any, slot: Array, value: Array, room: int) -> Array:
    """int32 [maps * rows * room] with value[..., i] at slot[..., i]; slot `room` is thrown away."""
    value = xp.broadcast_to(_int32(xp, value), slot.shape)
    spaces = xp.zeros_like(value[:, :, :1]) + xp.zeros_like(_int32(xp, _counted(slot, xp, 2, room + 1)))
    if xp is np:
        np.put_along_axis(spaces, slot, value, 2)
    else:
        spaces = spaces.scatter(2, slot, value)
    return spaces[:, :, :room].reshape(-1)


def _counted(like: Array, xp: Any, axis: int, length: int | None = None) -> Array:
    """0, 1, ... along one of three axes, on the device of `like`."""
    shape = [1, 1, 1]
    shape[axis] = -1
    count = like.shape[axis] if length is None else length
    numbers = xp.arange(count) if xp is np else xp.arange(count, device=like.device)
    return numbers.reshape(shape)


def _int32(xp: Any, x: Array) -> Array:
    return x.astype(np.int32) if xp is np else x.to(xp.int32)


def tile_map(plan: BlockPlan) -> NDArray[np.uint8]:
    """Class of every tile as the plan walks it, the values of `Truth`: uint8 [maps, q_tiles, k_tiles]."""
    rows, columns = tile_counts(plan.sizes, plan.tile)
    classes = np.zeros((math.prod(plan.maps), rows, columns), np.uint8)
    for part in plan.parts:
        for runs, truth in zip(part.by_query, (Truth.ALWAYS, Truth.DEPENDS), strict=True):
            classes[_marked(runs, columns)] = truth
    return classes


def _marked(runs: TileRuns, columns: int) -> NDArray[np.bool_]:
    """The tiles in runs: bool [maps, rows, columns]."""
    maps, rows = runs.first.shape
    row = np.repeat(np.arange(maps * rows), np.diff(np.append(runs.first.reshape(-1), runs.start.size)))
    change = np.zeros((maps * rows, columns + 1), np.int8)
    change[row, runs.start] += 1
    change[row, runs.stop] -= 1
    return np.cumsum(change[:, :-1], axis=1, dtype=np.int8).reshape(maps, rows, columns) > 0


def expand(plan: BlockPlan, inputs: Inputs | None = None) -> NDArray[np.bool_]:
    """The kept pairs as the plan has them: bool [batch rows, heads, q_len, k_len], 1 in a dim that is shared."""
    sizes = plan.sizes
    classes = tile_map(plan).repeat(plan.tile[0], axis=1).repeat(plan.tile[1], axis=2)[:, : sizes.q_len, : sizes.k_len]
    maps = np.arange(math.prod(plan.maps))[:, None, None]
    q, k = np.arange(sizes.q_len)[None, :, None], np.arange(sizes.k_len)[None, None, :]
    kept = np.zeros(classes.shape, np.bool_)
    for part in plan.parts:
        inside = _kept(plan, part.predicate, inputs, maps, q, k)
        kept |= (classes == Truth.ALWAYS) | ((classes == Truth.DEPENDS) & inside)
    return kept.reshape(*plan.maps, sizes.q_len, sizes.k_len)


def _kept(
    plan: BlockPlan, predicate: Expr, inputs: Inputs | None, map_: NDArray[Any], q: NDArray[Any], k: NDArray[Any]
) -> NDArray[np.bool_]:
    """A predicate at pairs counted from 0; the three index arrays broadcast."""
    sizes, given = plan.sizes, {} if inputs is None else inputs
    batch, head = map_ // plan.maps[1], map_ % plan.maps[1]

    def offset(side: Side) -> Any:
        fixed = sizes.offset(side)
        return given[f"{side.value}_offset"].astype(np.int64)[batch] if fixed is None else fixed

    pairs = Pairs(np, sizes, given, batch, head, q + offset(Side.Q), k + offset(Side.K))
    return np.broadcast_to(evaluate(predicate, pairs), np.broadcast_shapes(map_.shape, q.shape, k.shape))


@dataclass(frozen=True)
class Statistics:
    """What a plan computes and what it has to, summed over its maps (batch rows x heads that differ).

    live_pairs: kept. computed_pairs: in live tiles, whole tiles counted. flex_pairs: in the 128 x 128 row-major tiles
    that hold a live pair, as FlexAttention computes them. gain: flex_pairs / computed_pairs; order_gain: the same with
    tiles of 128 x 128 here too. Ratios without a denominator are 1.
    """

    batch_rows: int
    heads: int
    full_tiles: int
    partial_tiles: int
    empty_tiles: int
    live_pairs: int
    computed_pairs: int
    flex_pairs: int
    efficiency: float
    gain: float
    order_gain: float


_FLEX = (128, 128)


def statistics(plan: BlockPlan, inputs: Inputs | None = None) -> Statistics:
    """Count tiles and pairs exactly; pairs of partial tiles are evaluated where no table counts them."""
    full, partial, empty = _tile_counts(plan)
    wide = plan if plan.tile == _FLEX else build(plan.spec, plan.sizes, _FLEX, inputs)
    wide_full, wide_partial, _ = _tile_counts(wide)
    # Where tables count the pairs they also classify every tile exactly: no partial tile is without a pair.
    counted = Analysis(plan.spec.predicate, plan.sizes, inputs).count()
    holding, inside = _partial_pairs(wide, inputs) if counted is None else (wide_partial, 0)
    live = wide_full * math.prod(_FLEX) + inside if counted is None else counted
    computed = (full + partial) * math.prod(plan.tile)
    flex = (wide_full + holding) * math.prod(_FLEX)
    return Statistics(
        batch_rows=plan.maps[0],
        heads=plan.maps[1],
        full_tiles=full,
        partial_tiles=partial,
        empty_tiles=empty,
        live_pairs=live,
        computed_pairs=computed,
        flex_pairs=flex,
        efficiency=_ratio(live, computed),
        gain=_ratio(flex, computed),
        order_gain=_ratio(flex, (wide_full + wide_partial) * math.prod(_FLEX)),
    )


def _ratio(a: int, b: int) -> float:
    return a / b if b else 1.0


def _tile_counts(plan: BlockPlan) -> tuple[int, int, int]:
    """Full, partial and empty tiles over all maps."""
    full = sum(int(part.by_query[0].tiles.sum(dtype=np.int64)) for part in plan.parts)
    partial = sum(int(part.by_query[1].tiles.sum(dtype=np.int64)) for part in plan.parts)
    return full, partial, math.prod(plan.maps) * math.prod(tile_counts(plan.sizes, plan.tile)) - full - partial


def _partial_pairs(plan: BlockPlan, inputs: Inputs | None) -> tuple[int, int]:
    """How many partial tiles hold a kept pair, and how many pairs they keep."""
    tiles = pairs = 0
    sizes, (height, width) = plan.sizes, plan.tile
    maps, rows, columns = np.nonzero(tile_map(plan) == Truth.DEPENDS)
    for piece in _pieces(maps.size, max(1, _PIECE // (height * width))):
        q = rows[piece, None, None] * height + np.arange(height)[None, :, None]
        k = columns[piece, None, None] * width + np.arange(width)[None, None, :]
        kept = _kept(plan, plan.spec.predicate, inputs, maps[piece, None, None], q, k)
        kept = kept & (q < sizes.q_len) & (k < sizes.k_len)
        tiles += int(np.count_nonzero(kept.any(axis=(1, 2))))
        pairs += int(np.count_nonzero(kept))
    return tiles, pairs
