"""A mask at small sizes, one cell per pair: for a terminal, and as what a file of pixels is drawn from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskc import reference
from maskc.commands.picture import MOST_MAPS, Shades, heading, same_maps
from maskc.evaluate import whole
from maskc.expr import Side
from maskc.reference import Inputs
from maskc.spec import MaskSpec, Sizes

MOST_ROWS = 512  # queries in a terminal
MOST_CELLS = 2**26  # of all maps together

Borders = tuple[tuple[int, str], ...]
"""Where runs of tokens begin, counted from the first token of the call, and their names."""


class TooLargeError(Exception):
    """The sizes are too large to draw every pair; the message says what would do."""


@dataclass(frozen=True, eq=False)
class TokenMaps:
    """kept: bool [maps, q_len, k_len]. maps: how many batch rows and heads have one of their own, heads fastest. first:
    positions of the first query and key. borders: of the queries and of the keys.
    """

    kept: NDArray[np.bool_]
    maps: tuple[int, int]
    first: tuple[int, int]
    borders: tuple[Borders, Borders]


def token_maps(spec: MaskSpec, sizes: Sizes, inputs: Inputs) -> TokenMaps:
    """All pairs of a call. Raises `TooLargeError`, and MaskUnsupportedError where the kept pairs depend on scores."""
    by_row, by_head = reference.mask_dims(spec, sizes)
    maps = (sizes.batch if by_row else 1, sizes.heads if by_head else 1)
    cells = maps[0] * maps[1] * sizes.q_len * sizes.k_len
    if cells > MOST_CELLS:
        raise TooLargeError(f"--tokens draws every pair, and {cells:,} are too many: at most {MOST_CELLS:,}")
    kept = reference.mask(spec, sizes, inputs).reshape(maps[0] * maps[1], sizes.q_len, sizes.k_len)
    borders = (_borders(spec, sizes, inputs, Side.Q), _borders(spec, sizes, inputs, Side.K))
    return TokenMaps(kept, maps, (sizes.q_offset or 0, sizes.k_offset or 0), borders)


def _borders(spec: MaskSpec, sizes: Sizes, inputs: Inputs, side: Side) -> Borders:
    """The first token of every part, or of every document where all batch rows have the same."""
    offset, length = sizes.offset(side) or 0, sizes.length(side)
    if spec.packed is not None:
        starts = np.unique(inputs[spec.packed].reshape(-1)) if _one_line(inputs[spec.packed]) else np.zeros(0, int)
        names = [f"document at {start}" for start in starts]
    else:
        parts = spec.queries if side is Side.Q else spec.keys
        parts = tuple(part for part in parts if part.name is not None)
        starts = np.cumsum([0, *(whole(part.tokens, sizes) for part in parts)])[:-1]
        names = [str(part.name) for part in parts]
    found = [(max(0, int(start) - offset), name) for start, name in zip(starts, names, strict=True)]
    shown = {start: name for start, name in found if start < length}  # the last of several at one place
    return tuple(sorted(shown.items()))


def _one_line(starts: NDArray[Any]) -> bool:
    return starts.ndim == 1 or len(starts) == 1


def token_picture(tokens: TokenMaps, *, width: int, shades: Shades) -> str:
    """The pairs of every map that differs, queries downwards and keys to the right, in at most `width` columns.

    Raises `TooLargeError` where they do not fit.
    """
    queries, keys = tokens.kept.shape[1:]
    if 0 in (queries, keys):
        return "no pairs: there are no queries or no keys"
    frame = _Frame(tokens, width, shades)
    groups = same_maps(tokens.kept.view(np.uint8))
    lines: list[str] = []
    for owners in groups[:MOST_MAPS]:
        if len(groups) > 1:
            lines.append(heading(tokens.maps, owners))
        lines += frame.drawn(tokens.kept[owners[0]])
    if len(groups) > MOST_MAPS:
        lines.append(f"and {len(groups) - MOST_MAPS} more maps that differ")
    lines.append("one cell: a pair of a query (row) and a key (column)")
    lines.append(f"{shades.full} kept   {shades.empty} dropped")
    return "\n".join(lines)


class _Frame:
    """The margins of a picture: positions along both sides, and lines between parts."""

    def __init__(self, tokens: TokenMaps, width: int, shades: Shades) -> None:
        queries, keys = tokens.kept.shape[1:]
        self._first = tokens.first
        self._shades = shades
        self._rows, self._columns = (dict(borders) for borders in tokens.borders)
        self._label = len(str(tokens.first[0] + queries - 1)) + 1
        lines = sum(1 for start in self._columns if start > 0)
        needed = self._label + keys + lines
        if queries > MOST_ROWS:
            raise TooLargeError(f"--tokens draws a line per query: {queries} are too many, at most {MOST_ROWS}")
        if needed > width:
            raise TooLargeError(
                f"--tokens draws a column per key: {keys} keys need {needed} columns, and there are {width}; "
                f"give --width {needed} or --png FILE, or leave --tokens out for the map of tiles"
            )
        self._cell = 2 if self._label + 2 * keys + lines <= width else 1
        self._keys = keys

    def drawn(self, kept: NDArray[np.bool_]) -> list[str]:
        """The lines of one map."""
        lines = [*self._names(), self._numbers()]
        for row, cells in enumerate(kept):
            if row in self._rows:
                lines.append(self._rule(self._rows[row]))
            texts = [(self._shades.full if cell else self._shades.empty) * self._cell for cell in cells]
            lines.append(f"{self._first[0] + row:>{self._label - 1}} {self._joined(texts)}")
        return lines

    def _joined(self, texts: Sequence[str], line: str | None = None) -> str:
        """The cells of a row, with a line in front of every part but the first."""
        line = self._shades.lines[0] if line is None else line
        return "".join((line if key in self._columns and key > 0 else "") + text for key, text in enumerate(texts))

    def _rule(self, name: str) -> str:
        """A line between parts of the queries; the name of the part begins it."""
        across, cross = self._shades.lines[1], self._shades.lines[2]
        rule = across * self._label + self._joined([across * self._cell] * self._keys, cross)
        return f"{name} {rule[len(name) + 1 :]}" if len(name) + 1 < len(rule) else rule

    def _places(self) -> list[int]:
        """The column of the text at which each key begins."""
        places, place = [], self._label
        for key in range(self._keys):
            place += key in self._columns and key > 0
            places.append(place)
            place += self._cell
        return places

    def _names(self) -> list[str]:
        """The names of the parts of the keys above their first columns, cut to the room that they have."""
        if not self._columns:
            return []
        places = self._places()
        ends = [*(places[start] for start in sorted(self._columns)), places[-1] + self._cell]
        line = " " * ends[0]
        for start, end in zip(sorted(self._columns), ends[1:], strict=True):
            line += self._columns[start][: end - places[start] - 1].ljust(end - places[start])
        return [line.rstrip()]

    def _numbers(self) -> str:
        """Positions of keys above their columns, as many as have room."""
        step = 5 if self._cell == 2 else 10
        line = ""
        for key, place in enumerate(self._places()):
            if key % step == 0 and len(line) < place:
                line = line.ljust(place) + str(self._first[1] + key)
        return line
