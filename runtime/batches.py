"""Block plan -> batches of tiles of equal shape, the form in which the `tiled` engine runs a plan.

A query tile of 64 is small beside a long run of keys, and one call per tile is dear beside a short one. So:

- Neighbouring query tiles that see the same keys become one tile. Where rows are long, 2, 4 or 8 neighbours become one
if that is cheaper by the cost model below: the key tiles that all of them see in full need no mask, the rest is masked.
- Tiles that see the same number of keys, each row's shifted by as much as its queries are, become one batch of strided
views. What is left over is batched by the number of its key tiles and gathered.

Nothing here looks at a pair: the work is proportional to the runs of the plan.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from maskc.analysis.plan import BlockPlan, Part
from maskc.analysis.runs import TileRuns
from maskc.diagnostics import MaskUnsupportedError

Runs = tuple[tuple[int, int], ...]
"""Ascending, disjoint and not touching: (first tile, tile behind the last)."""

# Costs, in the time of one 64 x 64 tile of one head at 8 heads (about 80 us on one core).
_CALL = 1.0  # one more call
_MASKED = 1.15  # a tile with a mask
_NARROW = 1.15  # tiles of fewer than 192 queries, which the fused kernel cuts more finely

_GROUP = 8  # rows of tiles that are considered together
_LONG = 12  # key tiles from which on a row may be widened or split
_RUN = 4  # full key tiles that are worth a call without a mask
_MOST_KEYS = 2048  # keys of one masked call: its mask has queries x keys entries
_MOST_QUERIES = 1024
_SMALL = 4096  # lanes x keys below which a tile is too small for a call of its own


@dataclass(frozen=True, eq=False)
class Batch:
    """Tiles that run together: equally many queries and keys in each.

    tiles: how many. Tile t has its queries from q_first + t * q_step, or the tile q_tiles[t] of the plan. Its keys
    begin at k_first + t * k_step, or are the key tiles k_tiles[t] of the plan (int64 [tiles, n]). masked: some pair may
    be dropped. exact: every tile of the plan that it covers is live, so the part's own predicate decides; else the
    whole one does. fresh: no batch before it wrote its queries.
    """

    queries: int
    keys: int
    tiles: int
    q_first: int
    k_first: int
    q_step: int = 0
    k_step: int = 0
    q_tiles: NDArray[np.int64] | None = None
    k_tiles: NDArray[np.int64] | None = None
    masked: bool = True
    exact: bool = True
    fresh: bool = True


@dataclass(frozen=True)
class _Piece:
    """Some of the key tiles of a row of query tiles, which may be `height` tiles high."""

    row: int
    height: int
    runs: Runs
    masked: bool
    exact: bool

    @property
    def tiles(self) -> int:
        return _count(self.runs)


def batches(plan: BlockPlan, part: Part, map_: int, lanes: int, *, plain: bool) -> tuple[Batch, ...]:
    """The batches of one map of one part, in the order in which they run.

    lanes: heads that share each batch. plain: full tiles need no mask; else their scores are changed, and long runs of
    them are cut too. MaskUnsupportedError for an indexed part: tiles of it are no rows of tensors.
    """
    if part.by_query.owned is not None:
        raise MaskUnsupportedError("batches of tiles need a plan whose slots are positions; this one is indexed")
    # A tile that is dead here may hold pairs of another part: only the whole plan may widen rows over dead tiles.
    pieces = list(_pieces(_rows(part, map_), plan.tile, plain, widens=len(plan.parts) == 1))
    found = _with_fresh(_batched(plan, pieces, lanes), plan)
    return tuple(batch if part is plan.parts[0] else replace(batch, fresh=False) for batch in found)


def complete(found: Sequence[Batch], plan: BlockPlan) -> bool:
    """Whether every query is written by a fresh batch."""
    return sum(b.tiles * b.queries for b in found if b.fresh) == plan.sizes.q_len


@dataclass(frozen=True)
class _Row:
    """Live key tiles of one row of query tiles, and those among them that are full."""

    live: Runs
    full: Runs


def _rows(part: Part, map_: int) -> list[_Row]:
    full, partial = (_runs_of_rows(runs, map_) for _, runs in part.by_query.kinds)
    return [_Row(_union(f, p), f) for f, p in zip(full, partial, strict=True)]


def _runs_of_rows(runs: TileRuns, map_: int) -> list[Runs]:
    rows = runs.first.shape[1]
    ends = np.append(runs.first.reshape(-1), runs.start.size - 1)[map_ * rows : (map_ + 1) * rows + 1].tolist()
    pairs = list(zip(runs.start.tolist(), runs.stop.tolist(), strict=True))
    return [tuple(pairs[a:b]) for a, b in pairwise(ends)]


def _pieces(rows: list[_Row], tile: tuple[int, int], plain: bool, *, widens: bool) -> Iterator[_Piece]:
    """Rows as pieces: equal neighbours together, long rows widened where that pays."""
    highest, widest = max(1, _MOST_QUERIES // tile[0]), max(1, _MOST_KEYS // tile[1])
    start = 0
    while start < len(rows):
        height = 1
        while height < highest and start + height < len(rows) and rows[start + height] == rows[start]:
            height += 1
        if height == 1:
            group = rows[start : start + (_GROUP - start % _GROUP if widens else 1)]
            yield from _cheapest(start, group, tile, widest, plain)
            start += len(group)
        else:
            yield from _split(start, rows[start : start + height], widest, plain)
            start += height


def _cheapest(start: int, rows: list[_Row], tile: tuple[int, int], widest: int, plain: bool) -> list[_Piece]:
    """The pieces of a few rows at the height that costs least; short rows stay as they are."""
    long = sum(_count(row.live) for row in rows) >= _LONG * len(rows)
    heights = [h for h in (1, 2, 4, 8) if h == 1 or (long and h <= len(rows))]
    found = [
        [p for i in range(0, len(rows), h) for p in _split(start + i, rows[i : i + h], widest, plain)] for h in heights
    ]
    return min(found, key=lambda pieces: sum(_cost(piece, tile) for piece in pieces))


def _cost(piece: _Piece, tile: tuple[int, int]) -> float:
    work = piece.tiles * piece.height * (tile[0] * tile[1] / 4096)
    return _CALL + work * (_MASKED if piece.masked else 1.0) * (_NARROW if piece.height * tile[0] < 192 else 1.0)


def _split(start: int, rows: list[_Row], widest: int, plain: bool) -> Iterator[_Piece]:
    """Rows as one: long runs that all of them see in full without a mask, the rest with one."""
    live = _union(*(row.live for row in rows))
    full = _common([row.full for row in rows])
    exact = all(row.live == live for row in rows)
    few = _count(live) <= widest
    bare: list[Runs] = []
    rest: Runs = live
    if full == live and (few or (plain and len(live) == 1)):
        bare, rest = [live] if live else [], ()
    elif _count(live) > _LONG:
        long = tuple(run for run in full if run[1] - run[0] >= _RUN)
        bare = [(run,) for run in long] if plain else list(_chunks(long, widest))
        rest = _without(live, long)
    for runs in bare:
        yield _Piece(start, len(rows), runs, masked=False, exact=True)
    for runs in _chunks(rest, widest):
        yield _Piece(start, len(rows), runs, masked=True, exact=exact)


def _batched(plan: BlockPlan, pieces: list[_Piece], lanes: int) -> Iterator[Batch]:
    """Strided batches, then gathered ones, then what is alone."""
    alone: list[_Piece] = []
    contiguous = [p for p in pieces if len(p.runs) == 1]
    for _, similar in _grouped(contiguous, lambda p: (p.height, p.masked, p.exact, _extent(plan, p))):
        for line in _in_step(similar):
            if len(line) > 1:
                yield _strided(plan, line)
            else:
                alone += line
    left = alone + [p for p in pieces if len(p.runs) > 1]
    fit = [p for p in left if _whole(plan, p) and (len(p.runs) > 1 or lanes * p.tiles * plan.tile[1] < _SMALL)]
    groups = [similar for _, similar in _grouped(fit, lambda p: (p.tiles, p.masked, p.exact)) if len(similar) > 1]
    yield from (_gathered(plan, similar) for similar in groups)
    gathered = {id(p) for similar in groups for p in similar}
    for piece in (p for p in left if id(p) not in gathered):
        yield _strided(plan, [piece]) if len(piece.runs) == 1 else _scattered(plan, piece)


def _grouped(pieces: list[_Piece], key: Callable[[_Piece], Hashable]) -> list[tuple[Hashable, list[_Piece]]]:
    """Pieces by key, keys and pieces in the order in which they come."""
    groups: dict[Hashable, list[_Piece]] = {}
    for piece in pieces:
        groups.setdefault(key(piece), []).append(piece)
    return list(groups.items())


def _extent(plan: BlockPlan, piece: _Piece) -> tuple[int, int, int]:
    """Queries, keys, and how far the first key is behind the first query."""
    first, last = piece.runs[0][0] * plan.tile[1], piece.runs[-1][1] * plan.tile[1]
    q_first = piece.row * plan.tile[0]
    queries = min(piece.height * plan.tile[0], plan.sizes.q_len - q_first)
    return queries, min(last, plan.sizes.k_len) - first, first - q_first


def _in_step(pieces: list[_Piece]) -> Iterator[list[_Piece]]:
    """Maximal sequences in which each piece begins where the one before it ends."""
    line: list[_Piece] = []
    for piece in pieces:
        if line and piece.row != line[-1].row + line[-1].height:
            yield line
            line = []
        line.append(piece)
    if line:
        yield line


def _whole(plan: BlockPlan, piece: _Piece) -> bool:
    """Whether a piece is one whole row of the plan, as gathering by tile numbers needs it."""
    return piece.height == 1 and (piece.row + 1) * plan.tile[0] <= plan.sizes.q_len


def _strided(plan: BlockPlan, line: list[_Piece]) -> Batch:
    first = line[0]
    queries, keys, shift = _extent(plan, first)
    q_first, step = first.row * plan.tile[0], first.height * plan.tile[0]
    return Batch(queries, keys, len(line), q_first, q_first + shift, step, step, masked=first.masked, exact=first.exact)


def _gathered(plan: BlockPlan, pieces: list[_Piece]) -> Batch:
    tiles = np.array([_tiles(p.runs) for p in pieces], np.int64)
    rows = np.array([p.row for p in pieces], np.int64)
    queries, keys = plan.tile[0], tiles.shape[1] * plan.tile[1]
    masked, exact = pieces[0].masked, pieces[0].exact
    return Batch(queries, keys, len(pieces), 0, 0, q_tiles=rows, k_tiles=tiles, masked=masked, exact=exact)


def _scattered(plan: BlockPlan, piece: _Piece) -> Batch:
    tiles = np.array([_tiles(piece.runs)], np.int64)
    queries, keys = _extent(plan, piece)[0], tiles.shape[1] * plan.tile[1]
    q_first = piece.row * plan.tile[0]
    return Batch(queries, keys, 1, q_first, 0, k_tiles=tiles, masked=piece.masked, exact=piece.exact)


def _with_fresh(found: Iterable[Batch], plan: BlockPlan) -> Iterator[Batch]:
    written = np.zeros(plan.sizes.q_len, np.bool_)
    for batch in found:
        queries = first_queries(batch, plan)[:, None] + np.arange(batch.queries)
        yield replace(batch, fresh=not written[queries].any())
        written[queries] = True


def first_queries(batch: Batch, plan: BlockPlan) -> NDArray[np.int64]:
    """The first query of every tile, int64 [tiles]."""
    if batch.q_tiles is not None:
        return batch.q_tiles * plan.tile[0]
    return batch.q_first + np.arange(batch.tiles, dtype=np.int64) * batch.q_step


# Runs of tiles.


def _count(runs: Runs) -> int:
    return sum(stop - start for start, stop in runs)


def _tiles(runs: Runs) -> list[int]:
    return [tile for start, stop in runs for tile in range(start, stop)]


def _union(*many: Runs) -> Runs:
    joined: list[tuple[int, int]] = []
    for start, stop in sorted(run for runs in many for run in runs):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return tuple(joined)


def _common(many: Sequence[Runs]) -> Runs:
    return reduce(_overlap, many)


def _overlap(left: Runs, right: Runs) -> Runs:
    found = ((max(a, c), min(b, d)) for a, b in left for c, d in right)
    return tuple((start, stop) for start, stop in found if start < stop)


def _without(runs: Runs, taken: Runs) -> Runs:
    rest = list(runs)
    for start, stop in taken:
        rest = [(a, b) for x, y in rest for a, b in ((x, min(y, start)), (max(x, stop), y)) if a < b]
    return tuple(rest)


def _chunks(runs: Runs, most: int) -> Iterator[Runs]:
    """Runs cut into shares of at most `most` tiles."""
    share: list[tuple[int, int]] = []
    room = most
    for start, stop in runs:
        while start < stop:
            taken = min(stop - start, room)
            share.append((start, start + taken))
            start, room = start + taken, room - taken
            if room == 0:
                yield tuple(share)
                share, room = [], most
    if share:
        yield tuple(share)
