"""What searches in the rows that a tile reads give: of `item in row` its truth, of `bucket(item, row)` its range.

Rows follow from the positions of one side, or from none. For every tile of that side their entries are merged: sorted,
so that counting those in a range takes two binary searches, and as the least and greatest entry at each place of a row.
All of it runs on numpy or torch arrays without a look at their contents.
"""

import math
from typing import Any

import numpy as np

from maskc.analysis.interval import EXACT, Interval
from maskc.analysis.tabulate import Scene
from maskc.arrays import Array, cast, row_position
from maskc.evaluate import Pairs, rows_at
from maskc.expr import Row, Side, Type

_ENTRIES = 1 << 26
"""Entries of all rows together that are looked at; of more nothing is known."""


def affordable(scene: Scene, row: Row, side: Side | None) -> bool:
    """Whether the rows of all positions and maps have some entries, and few enough to be looked at."""
    positions = 1 if side is None else scene.sizes.length(side)
    shape = scene.inputs[row.input].shape
    return 0 not in shape and math.prod(scene.maps) * positions * int(shape[-1]) <= _ENTRIES


class _Rows:
    """The rows of one side (or of none) at every position.

    entries: [maps or 1, positions, length]. exists: [maps or 1, positions].
    """

    def __init__(self, scene: Scene, row: Row, side: Side | None, type_: Type) -> None:
        self.scene = scene
        self.side = side
        positions = 1 if side is None else max(1, scene.sizes.length(side))
        batch, head = scene.indices(1)
        place = scene.counted(positions).reshape((1, -1))
        q, k = (place + scene.offset(s, batch) if s is side else scene.full(0) for s in Side)
        entries, exists = rows_at(row, type_, Pairs(scene.xp, scene.sizes, scene.inputs, batch, head, q, k))
        self.length = int(entries.shape[0])
        self.maps = int(exists.shape[0]) if len(exists.shape) == 2 else 1
        spread = scene.xp.broadcast_to
        entries = entries.reshape((self.length, *(1,) * (3 - len(entries.shape)), *entries.shape[1:]))
        self.entries = scene.xp.moveaxis(spread(entries, (self.length, self.maps, positions)), 0, -1)
        self.exists = spread(exists, (self.maps, positions))

    def size(self, tile: tuple[int, int]) -> int:
        """How many positions a tile has."""
        return 1 if self.side is None else tile[0] if self.side is Side.Q else tile[1]

    def number(self, size: int, map_: Array, q_tile: Array, k_tile: Array) -> Array:
        """The place of tiles among all tiles of that many positions of all maps."""
        index = self.scene.full(0) if self.side is None else q_tile if self.side is Side.Q else k_tile
        return index + map_ * self._tiles(size) if self.maps > 1 else index

    def tiled(self, x: Array, size: int, fill: Array) -> Array:
        """Arrays over positions [maps, positions, ...] as [maps * tiles, size, ...], the last tile filled up."""
        missing = -x.shape[1] % size
        if missing:
            xp = self.scene.xp
            x = xp.concatenate((x, xp.broadcast_to(fill, (x.shape[0], missing, *x.shape[2:]))), 1)
        return x.reshape((self.maps * self._tiles(size), size, *x.shape[2:]))

    def _tiles(self, size: int) -> int:
        return -(-int(self.exists.shape[1]) // size)


class Members:
    """`item in row`."""

    def __init__(self, scene: Scene, row: Row, side: Side | None) -> None:
        self._rows = rows = _Rows(scene, row, side, Type.INT)
        xp, none = scene.xp, scene.xp.full_like(rows.entries, -1)
        # Each entry once; -1 stands for padding, for what occurs again, and for rows that do not exist.
        entries = ascending(xp, xp.where(rows.exists[..., None], rows.entries, none))
        again = xp.zeros_like(entries[..., :1]) == 1
        again = xp.concatenate((again, entries[..., 1:] == entries[..., :-1]), 2)
        self._entries = xp.where(again | (entries < 0), none, entries)
        self._sorted: dict[int, tuple[Array, Array]] = {}

    def classes(self, item: Interval, tile: tuple[int, int], map_: Array, q_tile: Array, k_tile: Array) -> Array:
        """Class of tiles in which the item takes its values from [item.low, item.high]: uint8."""
        rows, xp = self._rows, self._rows.scene.xp
        size = rows.size(tile)
        if size not in self._sorted:
            self._sorted[size] = self._by_tile(size)
        entries, counts = self._sorted[size]
        number = rows.number(size, map_, q_tile, k_tile)
        low, high = (cast(xp, xp.clip(end, 0.0, EXACT), xp.int64) for end in (item.low, item.high))
        first, length = number * (size * rows.length), size * rows.length
        found = _up_to(xp, entries, first, length, high) - _up_to(xp, entries, first, length, low - 1)
        # What is too large to be known exactly may be anywhere.
        possible = ((found > 0) & (item.high >= 0)) | (item.high >= EXACT)
        every = found == (item.high - item.low + 1) * xp.take(counts, number)
        return cast(xp, possible, xp.uint8) + cast(xp, possible & every, xp.uint8)

    def _by_tile(self, size: int) -> tuple[Array, Array]:
        """The entries of all rows of each tile, ascending, and how many rows there are: both flattened."""
        rows, xp = self._rows, self._rows.scene.xp
        filled = rows.tiled(self._entries, size, rows.scene.full(-1))
        entries = ascending(xp, filled.reshape((filled.shape[0], -1)))
        real = rows.tiled(xp.ones_like(rows.exists), size, xp.zeros_like(rows.exists[:, :1]))
        return entries.reshape(-1), cast(xp, real.sum(1), xp.float64)


class Buckets:
    """`bucket(item, row)`."""

    def __init__(self, scene: Scene, row: Row, side: Side | None, type_: Type) -> None:
        self._rows = rows = _Rows(scene, row, side, type_)
        xp = scene.xp
        entries = cast(xp, rows.entries, xp.float64)
        odd = entries != entries
        if type_ is Type.INT:
            odd = odd | (entries <= -EXACT) | (entries >= EXACT)
        self._open = odd.any(-1) | ~rows.exists
        self._entries = xp.where(self._open[..., None], xp.full_like(entries, math.inf), entries)
        self._ends: dict[int, tuple[Array, Array, Array]] = {}

    def interval(self, item: Interval, tile: tuple[int, int], map_: Array, q_tile: Array, k_tile: Array) -> Interval:
        """The range over tiles in which the item lies in [item.low, item.high]: the count grows with it."""
        rows, xp = self._rows, self._rows.scene.xp
        size = rows.size(tile)
        if size not in self._ends:
            self._ends[size] = self._by_tile(size)
        lowest, highest, open_ = self._ends[size]
        number = rows.number(size, map_, q_tile, k_tile)
        low = _up_to(xp, highest, number * rows.length, rows.length, item.low)
        high = _up_to(xp, lowest, number * rows.length, rows.length, item.high)
        unknown = xp.take(open_, number)
        low = xp.where(unknown | item.nan, xp.zeros_like(low), low)
        high = xp.where(unknown, xp.full_like(high, rows.length), high)
        return Interval(cast(xp, low, xp.float64), cast(xp, high, xp.float64))

    def _by_tile(self, size: int) -> tuple[Array, Array, Array]:
        """The least and greatest entry at every place of the rows of each tile, and whether one of them is unknown."""
        rows, xp = self._rows, self._rows.scene.xp
        entries = rows.tiled(self._entries, size, self._entries[:, -1:])
        open_ = rows.tiled(self._open, size, self._open[:, -1:])
        return xp.amin(entries, 1).reshape(-1), xp.amax(entries, 1).reshape(-1), open_.any(-1)


def ascending(xp: Any, x: Array) -> Array:
    """An array sorted along its last dim."""
    return np.sort(x, -1) if xp is np else xp.sort(x, -1).values


def _up_to(xp: Any, entries: Array, first: Array, length: int, item: Array) -> Array:
    """How many of the ascending entries from `first` on are <= item."""
    item = item + xp.zeros_like(first)
    return row_position(xp, length, item, lambda place: xp.take(entries, first + place))
