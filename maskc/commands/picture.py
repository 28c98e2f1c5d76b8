"""Block plan -> a picture of its tiles for a terminal, one cell per tile or per square of tiles."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from maskc.analysis.plan import BlockPlan, tile_map

MOST_MAPS = 4  # different maps drawn before the rest is only counted


@dataclass(frozen=True)
class Shades:
    """The characters of a picture. mixed: cells that stand for several tiles, from few live tiles to many. lines:
    between columns, between rows, and where they cross.
    """

    empty: str
    partial: str
    full: str
    mixed: str
    lines: str

    def legend(self, tiles_per_cell: int) -> str:
        """What the characters mean."""
        signs = (self.empty, self.partial, self.full) if tiles_per_cell == 1 else (self.empty, *self.mixed, self.full)
        named = zip(signs, level_names(tiles_per_cell), strict=True)
        return "   ".join(f"{sign} {name}" for sign, name in reversed(list(named)))


UNICODE = Shades(empty="·", partial="▒", full="█", mixed="░▓", lines="│─┼")
ASCII = Shades(empty=".", partial="+", full="#", mixed="-*", lines="|-+")


def shades_for(encoding: str | None) -> Shades:
    """Block characters where an output with that encoding can print them."""
    try:
        "".join((UNICODE.empty, UNICODE.partial, UNICODE.full, UNICODE.mixed, UNICODE.lines)).encode(
            encoding or "ascii"
        )
    except (LookupError, UnicodeEncodeError):
        return ASCII
    return UNICODE


def picture(plan: BlockPlan, *, width: int = 80, height: int = 64, shades: Shades = UNICODE) -> str:
    """The block maps of a plan, queries downwards and keys to the right, at most `width` by `height` characters each.

    Batch rows and heads with the same map share a picture.
    """
    maps = tile_map(plan)
    if 0 in maps.shape:
        return "no tiles: there are no queries or no keys"
    cell = cell_size(maps.shape[1], maps.shape[2], width, height)
    groups = same_maps(maps)
    lines: list[str] = []
    for owners in groups[:MOST_MAPS]:
        if len(groups) > 1:
            lines.append(heading(plan.maps, owners))
        lines += draw(maps[owners[0]], cell, width, shades)
    if len(groups) > MOST_MAPS:
        lines.append(f"and {len(groups) - MOST_MAPS} more maps that differ")
    lines.append(scale(plan, cell))
    lines.append(shades.legend(cell))
    return "\n".join(lines)


def cell_size(rows: int, columns: int, width: int, height: int) -> int:
    """The smallest square of tiles per cell that makes the picture fit."""
    return max(1, -(-columns // max(1, width)), -(-rows // max(1, height)))


def same_maps(maps: NDArray[np.uint8]) -> list[list[int]]:
    """The indices of equal maps, grouped, in order of their first."""
    groups: dict[bytes, list[int]] = {}
    for index, tiles in enumerate(maps):
        groups.setdefault(tiles.tobytes(), []).append(index)
    return list(groups.values())


def heading(maps: tuple[int, int], owners: Collection[int]) -> str:
    """Which batch rows and heads a picture is about; map m belongs to batch row m // heads and head m % heads.

    maps: how many batch rows and heads have a map of their own.
    """
    batch, heads = maps
    rows = sorted({owner // heads for owner in owners})
    columns = sorted({owner % heads for owner in owners})
    if batch == 1:
        return f"head {listed(columns)}"
    if heads == 1:
        return f"batch row {listed(rows)}"
    return f"(batch row, head) {listed(f'({o // heads}, {o % heads})' for o in owners)}"


def listed(items: Iterable[object], most: int = 8) -> str:
    """The items with commas between them, cut short behind `most`."""
    texts = [str(item) for item in items]
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")


def draw(tiles: NDArray[np.uint8], cell: int, width: int, shades: Shades) -> list[str]:
    """The lines of a map [q_tiles, k_tiles] (0 empty, 1 partial, 2 full); cells two characters wide where they fit."""
    characters = single(tiles, shades) if cell == 1 else squares(tiles, cell, shades)
    if 2 * characters.shape[1] <= width:
        characters = np.repeat(characters, 2, axis=1)
    return ["".join(row) for row in characters]


def single(tiles: NDArray[np.uint8], shades: Shades) -> NDArray[np.str_]:
    """One character per tile."""
    return np.array([shades.empty, shades.partial, shades.full]).take(tiles)


def squares(tiles: NDArray[np.uint8], cell: int, shades: Shades) -> NDArray[np.str_]:
    """One character per square of `cell` by `cell` tiles, by the share of them that is live."""
    return np.array([shades.empty, *shades.mixed, shades.full]).take(levels(tiles, cell))


def levels(tiles: NDArray[np.uint8], cell: int) -> NDArray[np.int64]:
    """What `level_names` calls every square of `cell` by `cell` tiles; of one tile, its class."""
    if cell == 1:
        return tiles.astype(np.int64)
    rows, columns = (np.diff(np.append(np.arange(0, n, cell), n)) for n in tiles.shape)
    total = rows[:, None] * columns
    live, full = _sums(tiles > 0, cell), _sums(tiles == 2, cell)
    return np.select([live == 0, full == total, 2 * live <= total], [0, 3, 1], default=2)


def level_names(tiles_per_cell: int) -> tuple[str, ...]:
    """The levels of cells from empty to full."""
    if tiles_per_cell == 1:
        return "empty", "partial", "full"
    return "all empty", "at most half live", "more than half live", "all full"


def _sums(values: NDArray[np.bool_], cell: int) -> NDArray[np.int32]:
    rows = np.add.reduceat(values, np.arange(0, values.shape[0], cell), axis=0, dtype=np.int32)
    sums: NDArray[np.int32] = np.add.reduceat(rows, np.arange(0, values.shape[1], cell), axis=1)
    return sums


def scale(plan: BlockPlan, cell: int) -> str:
    """How many pairs a cell stands for."""
    q, k = plan.tile
    if cell == 1:
        return f"one cell: a tile of {q} queries x {k} keys"
    return f"one cell: {cell} x {cell} tiles of {q} queries x {k} keys"
