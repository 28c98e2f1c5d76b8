"""Which tiles of the attention matrix hold kept pairs, and how a kernel walks them.

`build` turns a spec at given sizes into a `BlockPlan`. Nothing here costs work or memory per pair but `statistics` and
`part_pairs`, which may count the pairs of partial tiles, `tile_map` of indexed parts, and `expand`, which is for tests.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskc.analysis.bounds import Analysis, Chunk, class_chunks, tile_counts
from maskc.analysis.interval import Truth
from maskc.analysis.runs import Columns, Int64, Rows, Walk, listed, marked, own_tiles
from maskc.constants import constants
from maskc.evaluate import Pairs, evaluate
from maskc.expr import TRUE, Expr, Side, conjunction
from maskc.features import require_mask
from maskc.spec import MaskSpec, Sizes


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
class Part:
    """Disjoint share of the kept pairs with token orders of its own.

    predicate: what decides a pair inside a partial tile (the conjunction of the clauses that are open in some tile).
    by_query, by_key: the key tiles of every query tile, and the query tiles of every key tile. They hold the same pairs
    in slots of their own: packed keys per query tile are not packed queries per key tile.
    """

    predicate: Expr
    open_clauses: tuple[int, ...]
    by_query: Walk
    by_key: Walk
    q_order: TokenOrder = TokenOrder()
    k_order: TokenOrder = TokenOrder()

    def walk(self, owned: Side) -> Walk:
        """The walk of the programs that own tiles of a side."""
        return self.by_query if owned is Side.Q else self.by_key


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
            full, partial, empty = part_tiles(self, part)
            lines.append(f"  part {number}: queries {part.q_order}, keys {part.k_order}")
            lines += [f"    slots: {slots}" for slots in _slots(part.by_query)]
            lines += [
                f"    {full} full, {partial} partial, {empty} empty tiles",
                f"    inside partial tiles: {part.predicate}",
            ]
        return "\n".join(lines)


def _slots(by_query: Walk) -> list[str]:
    """What is said of the slots of an indexed walk; nothing of a contiguous one."""
    if by_query.owned is None or by_query.walked is None:
        return []
    return [f"{by_query.owned.size} of queries, {by_query.walked.size} of keys"]


def part_tiles(plan: BlockPlan, part: Part) -> tuple[int, int, int]:
    """Full, partial and empty tiles of a part over all maps, as its queries walk them.

    Empty are as many as are fewer than all row-major tiles.
    """
    full, partial = (int(runs.tiles.sum(dtype=np.int64)) for _, runs in part.by_query.kinds)
    return full, partial, _empty(plan, full + partial)


def plan_tiles(plan: BlockPlan) -> tuple[int, int, int]:
    """Full, partial and empty tiles of all parts over all maps."""
    counts = [part_tiles(plan, part) for part in plan.parts]
    full, partial = sum(count[0] for count in counts), sum(count[1] for count in counts)
    return full, partial, _empty(plan, full + partial)


def _empty(plan: BlockPlan, live: int) -> int:
    return max(0, math.prod(plan.maps) * math.prod(tile_counts(plan.sizes, plan.tile)) - live)


Inputs = Mapping[str, NDArray[Any]]


def build(spec: MaskSpec, sizes: Sizes, tile: tuple[int, int], inputs: Inputs | None = None) -> BlockPlan:
    """The plan of one call in row-major order. inputs: numpy arrays of all tables that the predicate reads.

    Raises MaskUnsupportedError where the kept pairs depend on the scores.
    """
    require_mask(spec)
    analysis = Analysis(spec.predicate, sizes, inputs)
    clauses = _OpenClauses(spec, sizes, inputs, analysis.maps)
    maps, (q_tiles, k_tiles) = math.prod(analysis.maps), tile_counts(sizes, tile)
    by_query, by_key = (Rows(), Rows()), (Columns(q_tiles), Columns(q_tiles))
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
        by_query=Walk(by_query[0].runs(maps, q_tiles), by_query[1].runs(maps, q_tiles)),
        by_key=Walk(by_key[0].runs(maps, k_tiles), by_key[1].runs(maps, k_tiles)),
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


def tile_map(plan: BlockPlan) -> NDArray[np.uint8]:
    """Class of every row-major tile as the plan walks it, the values of `Truth`: uint8 [maps, q_tiles, k_tiles].

    Tiles of indexed parts lie across several of these; they are looked at pair by pair. A tile is full where one part
    decides none of its pairs, and empty where no part looks at any.
    """
    rows, columns = tile_counts(plan.sizes, plan.tile)
    classes = np.zeros((math.prod(plan.maps), rows, columns), np.uint8)
    for part in plan.parts:
        classes = np.maximum(classes, _part_map(plan, part, classes.shape))
    return classes


def _part_map(plan: BlockPlan, part: Part, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    classes = np.zeros(shape, np.uint8)
    if part.by_query.owned is None:
        for truth, runs in part.by_query.kinds:
            found = marked(runs, shape[2])
            splits = found.shape[1] // max(1, shape[1])
            classes[found.reshape(*shape[:2], splits, shape[2]).any(axis=2)] = truth
        return classes
    full = np.zeros(shape, np.int64)
    for truth, maps, q, k in _tiles(plan, part, Side.Q):
        n, i, j = np.nonzero(_existing(q, k))
        place = maps[n], q[n, i] // plan.tile[0], k[n, j] // plan.tile[1]
        classes[place] = Truth.DEPENDS
        if truth == Truth.ALWAYS:
            np.add.at(full, place, 1)
    classes[full == math.prod(plan.tile)] = Truth.ALWAYS
    return classes


def class_at(plan: BlockPlan, map_: int, q: int, k: int) -> Truth:
    """The class of the tile in which the plan walks a pair; of several the one that says most. Counted from 0."""
    return max((_class_in(plan, part.by_query, map_, q, k) for part in plan.parts), default=Truth.NEVER)


def _class_in(plan: BlockPlan, walk: Walk, map_: int, q: int, k: int) -> Truth:
    own, other = _positions(plan, walk, Side.Q)
    splits = _splits(own, walk)
    for tile in np.flatnonzero((own[map_ % len(own)] == q).any(axis=1)):
        for truth, runs in walk.kinds:
            for row in range(tile * splits, (tile + 1) * splits):
                if (other[own_tiles(runs, map_, row)] == k).any():
                    return truth
    return Truth.NEVER


def expand(plan: BlockPlan, inputs: Inputs | None = None, owned: Side = Side.Q) -> NDArray[np.bool_]:
    """The kept pairs as the plan has them: bool [batch rows, heads, q_len, k_len], 1 in a dim that is shared.

    owned: the side whose walks are read. ValueError where a pair is computed twice or a full tile has walked slots
    that do not exist.
    """
    sizes = plan.sizes
    times = np.zeros((math.prod(plan.maps), sizes.q_len, sizes.k_len), np.int8)
    for part in plan.parts:
        for maps, q, k in _kept_pairs(plan, part, inputs, owned):
            np.add.at(times, (maps, q, k), 1)
            if (times[maps, q, k] > 1).any():
                raise ValueError("a pair is computed twice")
    return (times > 0).reshape(*plan.maps, sizes.q_len, sizes.k_len)


def _kept_pairs(plan: BlockPlan, part: Part, inputs: Inputs | None, owned: Side) -> Iterator[tuple[Int64, ...]]:
    """The kept pairs of a part: maps, queries and keys, int64 [n] each, in pieces."""
    for truth, maps, q, k in _tiles(plan, part, owned):
        kept = _existing(q, k)
        if truth == Truth.DEPENDS:
            # Slots without a token are read as token 0 and dropped.
            tokens = (np.maximum(q, 0)[:, :, None], np.maximum(k, 0)[:, None, :])
            kept &= _kept(plan, part.predicate, inputs, maps[:, None, None], *tokens)
        elif ((k if owned is Side.Q else q) < 0).any():
            raise ValueError("a full tile has walked slots that do not exist")
        n, i, j = np.nonzero(kept)
        yield maps[n], q[n, i], k[n, j]


def _existing(q: Int64, k: Int64) -> NDArray[np.bool_]:
    """Where both tokens of a pair exist: bool [n, queries, keys] of positions int64 [n, queries] and [n, keys]."""
    return (q >= 0)[:, :, None] & (k >= 0)[:, None, :]


def _tiles(plan: BlockPlan, part: Part, owned: Side) -> Iterator[tuple[Truth, Int64, Int64, Int64]]:
    """The live tiles of a walk in pieces: class, maps [n], and positions of queries and of keys, int64 [n, tile]."""
    walk = part.walk(owned)
    own, other = _positions(plan, walk, owned)
    splits = _splits(own, walk)
    for truth, runs in walk.kinds:
        maps, rows, tiles = listed(runs)
        for piece in _pieces(maps.size, max(1, _PIECE // math.prod(plan.tile))):
            lines = own[maps[piece] % len(own), rows[piece] // splits], other[tiles[piece]]
            yield truth, maps[piece], *(lines if owned is Side.Q else lines[::-1])


def _positions(plan: BlockPlan, walk: Walk, owned: Side) -> tuple[Int64, Int64]:
    """Positions of every tile's slots, -1 for none: owned int64 [maps or 1, tiles, slots], walked [tiles, slots]."""
    q, k = (_tokens(plan.sizes.length(side), tile) for side, tile in zip(Side, plan.tile, strict=True))
    own, other = (q, k) if owned is Side.Q else (k, q)
    if walk.owned is None or walk.walked is None:
        return own[None], other
    given = walk.owned.astype(np.int64), walk.walked.astype(np.int64)
    return given[0].reshape(len(walk.owned), -1, own.shape[1]), given[1].reshape(-1, other.shape[1])


def _tokens(length: int, tile: int) -> Int64:
    """The positions of tokens in tiles: int64 [tiles, tile]."""
    tokens = np.arange(-(-length // tile) * tile, dtype=np.int64)
    return np.where(tokens < length, tokens, -1).reshape(-1, tile)


def _splits(own: Int64, walk: Walk) -> int:
    """How many rows of runs there are for every tile of the owned side."""
    found: int = walk.full.first.shape[1] // max(1, own.shape[1])
    return found


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
    """What a plan computes and what it has to, summed over its parts and maps (batch rows x heads that differ).

    empty_tiles: how many fewer tiles are computed than all row-major ones. live_pairs: kept. computed_pairs: in live
    tiles, whole tiles counted. flex_pairs: in the 128 x 128 row-major tiles that hold a live pair, as FlexAttention
    computes them. gain: flex_pairs / computed_pairs; order_gain: the same with tiles of 128 x 128 here too. Ratios
    without a denominator are 1.
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
    full, partial, empty = plan_tiles(plan)
    row_major = len(plan.parts) == 1 and plan.parts[0].by_query.owned is None
    wide = plan if plan.tile == _FLEX and row_major else build(plan.spec, plan.sizes, _FLEX, inputs)
    wide_full, wide_partial, _ = plan_tiles(wide)
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


def part_pairs(plan: BlockPlan, part: Part, inputs: Inputs | None = None) -> int:
    """How many pairs a part keeps; every pair of its partial tiles is evaluated."""
    return sum(maps.size for maps, _, _ in _kept_pairs(plan, part, inputs, Side.Q))


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
