"""Tiles that a kernel walks, as runs: how they are collected, cut into equal shares, read back, and made on a device.

A program owns one tile of one side of the attention matrix, the *owned* side, and loops over tiles of the other, the
*walked* side. All costs are in runs and rows of tiles, never in pairs; on a device they are in tiles.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskc.analysis.bounds import Chunk
from maskc.analysis.interval import Truth
from maskc.arrays import Array
from maskc.spec import Sizes

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class TileRuns:
    """For every row of tiles, the runs of live tiles along the other side, ascending and disjoint.

    first: int32 [maps, rows], where a row's runs begin in start and stop.
    tiles: int32 [maps, rows], how many tiles the row's runs hold together.
    start, stop: int32 [runs + 1], the first tile of a run and the one behind its last; 0 behind the last run, because
    kernels read one entry ahead.
    """

    first: Int32
    tiles: Int32
    start: Int32
    stop: Int32


@dataclass(frozen=True, eq=False)
class Walk:
    """The tiles of the walked side for every tile of the owned side.

    full: tiles whose slots all exist and whose pairs are all kept. partial: the other live ones.
    owned: int32 [maps or 1, slots], the position of every slot of the owned side, -1 for none; whole tiles.
    walked: int32 [slots], the same of the walked side for all maps. The runs number the tiles of this array, so that
    one order for all rows and a list for every row, one behind the other, are the same thing.
    Both are None where slots are positions (*contiguous*) and given where not (*indexed*). Positions count from the
    call's first token.

    There is a row of runs for every tile of the owned side, or `splits` rows for each, one behind the other.
    """

    full: TileRuns
    partial: TileRuns
    owned: Int32 | None = None
    walked: Int32 | None = None

    @property
    def kinds(self) -> tuple[tuple[Truth, TileRuns], ...]:
        """The runs with the class of their tiles."""
        return (Truth.ALWAYS, self.full), (Truth.DEPENDS, self.partial)

    @property
    def tiles(self) -> int:
        """How many tiles are walked over all maps."""
        return sum(int(runs.tiles.sum(dtype=np.int64)) for _, runs in self.kinds)


# Collecting.


class Rows:
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


class Columns:
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
        start=np.append(start, np.int32(0)),
        stop=np.append(stop, np.int32(0)),
    )


def _all(pieces: list[Int32]) -> Int32:
    return np.concatenate(pieces) if pieces else np.zeros(0, np.int32)


# Reading back.


def marked(runs: TileRuns, columns: int) -> NDArray[np.bool_]:
    """The tiles in runs: bool [maps, rows, columns]."""
    maps, rows = runs.first.shape
    row = np.repeat(np.arange(maps * rows), np.diff(np.append(runs.first.reshape(-1), runs.start.size - 1)))
    live = np.flatnonzero(runs.stop > runs.start)
    change = np.zeros((maps * rows, columns + 1), np.int8)
    change[row[live], runs.start[live]] += 1
    change[row[live], runs.stop[live]] -= 1
    return np.cumsum(change[:, :-1], axis=1, dtype=np.int8).reshape(maps, rows, columns) > 0


def listed(runs: TileRuns) -> tuple[Int64, Int64, Int64]:
    """The tiles in runs, one by one and in order: maps, rows and tiles, int64 [n] each."""
    tiles = runs.tiles.reshape(-1).astype(np.int64)
    line = np.repeat(np.arange(tiles.size), tiles)
    numbers = _before(runs).reshape(-1)[line] + np.arange(line.size) - np.repeat(np.cumsum(tiles) - tiles, tiles)
    return (*np.divmod(line, max(1, runs.first.shape[1])), _numbered(runs, numbers))


def own_tiles(runs: TileRuns, map_: int, row: int) -> Int64:
    """The tiles of one row, int64 [n]."""
    return _numbered(runs, _before(runs)[map_, row] + np.arange(runs.tiles[map_, row]))


def _before(runs: TileRuns) -> Int64:
    """How many tiles the runs before a row's first hold: int64 [maps, rows]."""
    length, behind = _lengths(runs)
    found: Int64 = (behind - length)[runs.first]
    return found


def _numbered(runs: TileRuns, numbers: Int64) -> Int64:
    """The tiles with these numbers, where the tiles of all runs are numbered through."""
    length, behind = _lengths(runs)
    run = np.searchsorted(behind, numbers, side="right")
    found: Int64 = runs.start[run] + numbers - (behind - length)[run]
    return found


def _lengths(runs: TileRuns) -> tuple[Int64, Int64]:
    """Tiles of every run, and of all runs up to its end: int64 [runs + 1]."""
    length = runs.stop.astype(np.int64) - runs.start
    return length, np.cumsum(length)


# Shares.


def split(walk: Walk, splits: int) -> Walk:
    """Every row as `splits` rows, its tiles dealt out in order and evenly: those of each kind, and all together.

    Row r becomes the rows r * splits + s. A run is cut where a share ends inside it.
    """
    if splits == 1:
        return walk
    full = _cut(walk.full, np.zeros_like(walk.full.tiles), splits)
    # What is left over when the partial tiles are dealt out goes on where that of the full ones ended.
    partial = _cut(walk.partial, walk.full.tiles % splits, splits)
    return Walk(full, partial, walk.owned, walk.walked)


def _cut(runs: TileRuns, leader: Int32, splits: int) -> TileRuns:
    """Runs of `splits` shares of every row. leader: int32 [maps, rows], the share that is the first to get one more."""
    length, behind = _lengths(runs)
    dealt = _before(runs)[:, :, None] + _dealt(runs.tiles, leader, splits)
    # The tiles of all runs are numbered through: a run begins where one did before, and where a share does.
    begins, total = dealt[:, :, :-1], int(length.sum())
    bounds = np.unique(np.concatenate(((behind - length)[length > 0], begins[begins < total])))
    start = _numbered(runs, bounds)
    stop = start + np.diff(np.append(bounds, total))
    maps, rows = runs.first.shape
    return TileRuns(
        first=np.searchsorted(bounds, begins).astype(np.int32).reshape(maps, rows * splits),
        tiles=np.diff(dealt, axis=2).astype(np.int32).reshape(maps, rows * splits),
        start=np.append(start, 0).astype(np.int32),
        stop=np.append(stop, 0).astype(np.int32),
    )


def _dealt(tiles: Int32, leader: Int32, splits: int) -> Int64:
    """How many of a row's tiles lie before each share and before the end: int64 [maps, rows, splits + 1]."""
    share = np.arange(splits + 1, dtype=np.int64)
    each, over = np.divmod(tiles[:, :, None], splits)
    # The shares leader .. leader + over - 1, counted in a circle, get one more.
    around = np.maximum(leader[:, :, None] + over - splits, 0)
    found: Int64 = share * each + np.clip(share - leader[:, :, None], 0, over) + np.minimum(share, around)
    return found


# On a device.


def runs_on_device(classes: Array, sizes: Sizes, tile: tuple[int, int], xp: Any, splits: int = 1) -> tuple[Walk, Walk]:
    """(by_query, by_key) of a part, as `plan.build` has them, from the classes of all tiles, with no look at the data.

    classes: uint8 [maps, q_tiles, k_tiles] of numpy or torch (module `xp`), from `Analysis.every`. The arrays of
    the runs lie where the classes do. Every row of n tiles has room for ceil(n / 2) runs, the most there can
    be, and `first` steps by that; what lies behind a row's last run is 0. All in all that is 16 bytes a tile.

    splits: by_query has that many rows for each row of tiles, which share the key tiles in ranges of one length.
    """
    full, partial = classes == Truth.ALWAYS, classes == Truth.DEPENDS
    for axis, (length, size) in enumerate(((sizes.q_len, tile[0]), (sizes.k_len, tile[1])), start=1):
        if length % size:
            crosses = _counted(classes, xp, axis) == classes.shape[axis] - 1
            full, partial = full & ~crosses, partial | (full & crosses)
    by_query = Walk(_spaced_runs(full, xp, splits), _spaced_runs(partial, xp, splits))
    return by_query, Walk(_spaced_runs(xp.swapaxes(full, 1, 2), xp), _spaced_runs(xp.swapaxes(partial, 1, 2), xp))


def _spaced_runs(live: Array, xp: Any, splits: int = 1) -> TileRuns:
    """Runs of bool [maps, rows, tiles]; the n-th run of a row is written to slot n of the row's own room."""
    live, range_ = _ranges(live, xp, splits)
    room = (live.shape[2] + 1) // 2
    gap = xp.zeros_like(live[:, :, :1])
    begins = live & ~xp.concatenate((gap, live[:, :, :-1]), 2)
    ends = live & ~xp.concatenate((live[:, :, 1:], gap), 2)
    slot = xp.where(live, xp.cumsum(begins, 2) - 1, room)
    place = range_ * live.shape[2] + _counted(live, xp, 2)
    start = _placed(xp, xp.where(begins, slot, room), place, room)
    stop = _placed(xp, xp.where(ends, slot, room), place + 1, room)
    first = _counted(live, xp, 0) * live.shape[1] + _counted(live, xp, 1)
    return TileRuns(
        first=_int32(xp, first[:, :, 0] * room),
        tiles=_int32(xp, live.sum(2)),
        start=start,
        stop=stop,
    )


def _ranges(live: Array, xp: Any, splits: int) -> tuple[Array, Array]:
    """Every row of bool [maps, rows, tiles] as `splits` rows of equally many tiles, and the number of each row's range.

    [maps, rows * splits, tiles / splits, rounded up] and [1, rows * splits, 1]; tiles that are missing are dead.
    """
    maps, rows, tiles = live.shape
    width = -(-tiles // splits)
    missing = xp.broadcast_to(xp.zeros_like(live[:, :, :1]), (maps, rows, splits * width - tiles))
    cut = xp.concatenate((live, missing), 2).reshape((maps, rows * splits, width))
    return cut, _counted(cut, xp, 1) % splits


def _placed(xp: Any, slot: Array, value: Array, room: int) -> Array:
    """int32 [maps * rows * room + 1] with value[..., i] at slot[..., i], 0 elsewhere; slot `room` is thrown away."""
    value = xp.broadcast_to(_int32(xp, value), slot.shape)
    spaces = xp.zeros_like(value[:, :, :1]) + xp.zeros_like(_int32(xp, _counted(slot, xp, 2, room + 1)))
    if xp is np:
        np.put_along_axis(spaces, slot, value, 2)
    else:
        spaces = spaces.scatter(2, slot, value)
    behind = _int32(xp, _counted(slot, xp, 0, 1).reshape(-1))
    return xp.concatenate((spaces[:, :, :room].reshape(-1), behind))


def _counted(like: Array, xp: Any, axis: int, length: int | None = None) -> Array:
    """0, 1, ... along one of three axes, on the device of `like`."""
    shape = [1, 1, 1]
    shape[axis] = -1
    count = like.shape[axis] if length is None else length
    numbers = xp.arange(count) if xp is np else xp.arange(count, device=like.device)
    return numbers.reshape(shape)


def _int32(xp: Any, x: Array) -> Array:
    return x.astype(np.int32) if xp is np else x.to(xp.int32)
