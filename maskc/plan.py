"""Which tiles of the attention matrix hold kept pairs, and how a kernel walks them."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from maskc.spec import Expr, MaskSpec, Sizes

Int32 = NDArray[np.int32]


@dataclass(frozen=True)
class Digit:
    """One digit of a token's position: (position // stride) % size along the named axis (or the line, axis '')."""

    axis: str
    stride: int
    size: int


@dataclass(frozen=True)
class TokenOrder:
    """A permutation of tokens: slot = the digits read in the given significance, most significant first. No digits: row-major."""

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
    q_positions, k_positions: int32 [maps, slots] original positions where the part is packed; None where slots are positions.
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
    """How the kept pairs of one call are tiled. tile: (queries, keys). maps: (batch rows, heads) with a map of their own, 1 where all share one."""

    spec: MaskSpec
    sizes: Sizes
    tile: tuple[int, int]
    maps: tuple[int, int]
    parts: tuple[Part, ...] = field(default=())
