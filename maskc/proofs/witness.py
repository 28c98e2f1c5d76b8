"""Claims at the sizes of one call: the smallest pair that breaks one, and what the spec reads there.

A claim that knows of the pair only its query and how many keys that query keeps (`count(k)`) is about queries, and is
checked at every one, also where no key is kept; `count(q)` with the key alone is about keys in the same way. Any other
claim is about the kept pairs. Memory stays bounded by the rows of one chunk, as in `reference`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskc.evaluate import Pairs, depends, evaluate
from maskc.expr import (
    Binary,
    BinaryOp,
    Bound,
    Bucket,
    Coordinate,
    Expr,
    Kept,
    Member,
    Position,
    Read,
    Row,
    Scalar,
    Side,
    Type,
    walk,
)
from maskc.features import require_mask
from maskc.reference import Inputs, chunks, maps_of, offset_of
from maskc.scalars import written
from maskc.spec import Claim, MaskSpec, Sizes
from maskc.whereabouts import whereabouts

MOST_SHOWN = 8  # entries of a row


@dataclass(frozen=True)
class Witness:
    """Where a claim fails: the smallest position of the query, then of the key, then batch row, then head.

    q, k: None where the claim is about keys or queries alone. places: what there is to say of their tokens. counts: the
    values of `count(k)`, ... entries: what the clauses and the claim read of the inputs there, by name and place.
    """

    claim: Claim
    sizes: Sizes
    batch: int
    head: int
    q: int | None
    k: int | None
    places: tuple[str, str] = ("", "")
    counts: tuple[tuple[str, Scalar], ...] = ()
    entries: tuple[tuple[str, object], ...] = ()

    def __str__(self) -> str:
        ends = ((Side.Q, self.q, self.places[0]), (Side.K, self.k, self.places[1]))
        place = [f"{side.value} = {at}{where}" for side, at, where in ends if at is not None]
        place += [f"head {self.head}", f"batch row {self.batch}"]
        what = "query" if self.k is None else "key" if self.q is None else "kept pair"
        values = [*self.sizes.axes, *self.sizes.parameters, *self.counts, *self.entries]
        known = [
            f"{self.sizes.q_len} queries x {self.sizes.k_len} keys",
            *(f"{name} = {value}" for name, value in values),
        ]
        return f"claim {written(self.claim.expr)} fails for the {what} {', '.join(place)}; {', '.join(known)}"


def about(claim: Claim) -> Side | None:
    """The side that a claim over pairs is about; None for one about kept pairs."""
    if not any(isinstance(e, Kept) for e in walk(claim.expr)):
        return None
    read = {e.side for e in walk(claim.expr) if isinstance(e, Position | Coordinate)}
    counted = {e.along for e in walk(claim.expr) if isinstance(e, Kept)}
    for side, other in ((Side.Q, Side.K), (Side.K, Side.Q)):
        if counted == {other} and other not in read:
            return side
    return None


def refute(spec: MaskSpec, sizes: Sizes, inputs: Inputs | None = None) -> list[Witness]:
    """A witness for every claim over pairs that fails at these sizes; an empty list says that all of them hold.

    inputs: all tables. Raises MaskUnsupportedError where the kept pairs depend on the scores.
    """
    claims = [claim for claim in spec.claims if claim.over_pairs]
    if claims:
        require_mask(spec)
    found = (_Check(spec, claim, sizes, {} if inputs is None else inputs).witness() for claim in claims)
    return [witness for witness in found if witness is not None]


class _Check:
    """One claim at the sizes of one call."""

    def __init__(self, spec: MaskSpec, claim: Claim, sizes: Sizes, inputs: Inputs) -> None:
        self.spec = spec
        self.claim = claim
        self.sizes = sizes
        self.inputs = inputs
        self.about = about(claim)
        self.counts = [e for e in dict.fromkeys(walk(claim.expr)) if isinstance(e, Kept)]

    def witness(self) -> Witness | None:
        """The smallest one; None where the claim holds."""
        both = Binary(Type.BOOL, BinaryOp.AND, self.spec.predicate, self.claim.expr)
        rows, heads = maps_of(depends(both, self.sizes), self.sizes)
        found = [place for b in range(rows) for h in range(heads) for place in self._broken(b, h)]
        if not found:
            return None
        q, k, b, h = min(found)
        return self._described(q, k, b, h)

    def _broken(self, batch: int, head: int) -> Iterator[tuple[int, int, int, int]]:
        """The smallest pair of one matrix that breaks the claim, if any; 0 stands for the side that does not matter."""
        first = [offset_of(self.sizes, self.inputs, side, batch) for side in Side]
        totals = self._queries_of_keys(batch, head) if Kept(Type.INT, Side.Q) in self.counts else None
        if self.about is Side.K:
            assert totals is not None
            wrong = ~self._read(self.claim.expr, batch, head, 0, 1, {Kept(Type.INT, Side.Q): totals})
            for column in np.flatnonzero(wrong[:1])[:1]:
                yield 0, first[1] + int(column), batch, head
            return
        for start, stop in chunks(self.sizes):
            kept = self._read(self.spec.predicate, batch, head, start, stop)
            bound = self._bound(kept, totals, batch, head, start, stop)
            wrong = ~self._read(self.claim.expr, batch, head, start, stop, bound, one_key=self.about is Side.Q)
            wrong = wrong if self.about is Side.Q else wrong & kept
            bad = np.argwhere(wrong)
            if bad.size:
                row, column = (int(i) for i in bad[0])
                yield first[0] + start + row, 0 if self.about is Side.Q else first[1] + column, batch, head
                return

    def _bound(
        self, kept: NDArray[np.bool_], totals: NDArray[np.int64] | None, batch: int, head: int, start: int, stop: int
    ) -> dict[Expr, NDArray[np.int64]]:
        """The counts that the claim reads, at the queries of a chunk."""
        values: dict[Expr, NDArray[np.int64]] = {}
        for node in self.counts:
            match node.along:
                case Side.K:
                    values[node] = kept.sum(axis=1, dtype=np.int64)[:, None]
                case Side.Q:
                    assert totals is not None
                    values[node] = totals
                case _:
                    values[node] = self._heads(kept, batch, head, start, stop)
        return values

    def _heads(self, kept: NDArray[np.bool_], batch: int, head: int, start: int, stop: int) -> NDArray[np.int64]:
        """How many heads keep each pair."""
        if not depends(self.spec.predicate, self.sizes)[1]:
            return kept * np.int64(self.sizes.heads)
        others = (h for h in range(self.sizes.heads) if h != head)
        return sum(
            (self._read(self.spec.predicate, batch, h, start, stop).astype(np.int64) for h in others),
            kept.astype(np.int64),
        )

    def _queries_of_keys(self, batch: int, head: int) -> NDArray[np.int64]:
        """How many queries keep each key: int64 [1, k_len]."""
        totals = np.zeros((1, self.sizes.k_len), np.int64)
        for start, stop in chunks(self.sizes):
            totals[0] += self._read(self.spec.predicate, batch, head, start, stop).sum(axis=0)
        return totals

    def _read(
        self,
        expr: Expr,
        batch: int,
        head: int,
        start: int,
        stop: int,
        bound: Mapping[Expr, NDArray[np.int64]] | None = None,
        one_key: bool = False,
    ) -> NDArray[np.bool_]:
        """A predicate at the queries start to stop, counted from 0, and all keys: bool [stop - start, k_len]; with
        `one_key`, of a predicate that reads no key, [stop - start, 1].
        """
        q = np.arange(start, stop)[:, None] + offset_of(self.sizes, self.inputs, Side.Q, batch)
        keys = 1 if one_key else self.sizes.k_len
        k = np.arange(keys)[None, :] + offset_of(self.sizes, self.inputs, Side.K, batch)
        row, matrix = np.asarray(batch, np.int64), np.asarray(head, np.int64)
        pairs = Pairs(np, self.sizes, self.inputs, row, matrix, q, k, bound={} if bound is None else bound)
        return np.broadcast_to(evaluate(expr, pairs), (stop - start, keys))

    # The report

    def _described(self, q: int, k: int, batch: int, head: int) -> Witness:
        ends = {Side.Q: None if self.about is Side.K else q, Side.K: None if self.about is Side.Q else k}
        row, matrix, query, key = (np.asarray(i, np.int64) for i in (batch, head, q, k))
        counts = tuple((str(node), self._count(node, q, k, batch, head)) for node in self.counts)
        entries = tuple(
            _entries(
                self.spec,
                self.claim,
                Pairs(np, self.sizes, self.inputs, row, matrix, query, key),
                {side for side, at in ends.items() if at is None},
            )
        )
        places = (self._place(Side.Q, ends[Side.Q], batch), self._place(Side.K, ends[Side.K], batch))
        return Witness(self.claim, self.sizes, batch, head, ends[Side.Q], ends[Side.K], places, counts, entries)

    def _place(self, side: Side, position: int | None, batch: int) -> str:
        """What there is to say of a token, behind a space."""
        where = "" if position is None else whereabouts(self.spec, self.sizes, side, position, batch, self.inputs)
        return where and f" {where.strip()}"

    def _count(self, node: Kept, q: int, k: int, batch: int, head: int) -> int:
        """The value of a count at a pair."""
        row = q - offset_of(self.sizes, self.inputs, Side.Q, batch)
        column = k - offset_of(self.sizes, self.inputs, Side.K, batch)
        if node.along is Side.Q:
            return int(self._queries_of_keys(batch, head)[0, column])
        kept = self._read(self.spec.predicate, batch, head, row, row + 1)
        if node.along is Side.K:
            return int(kept.sum())
        return int(self._heads(kept, batch, head, row, row + 1)[0, column])


def _entries(spec: MaskSpec, claim: Claim, pairs: Pairs, missing: set[Side]) -> Iterator[tuple[str, object]]:
    """What the clauses and the claim read of the inputs of the call at one pair, each once.

    missing: the sides that the pair does not have. Entries inside folds depend on more than the pair, and what lies
    outside a table has no entry.
    """
    names = {i.name for i in spec.given}
    exprs = (claim.expr,) if missing else (*spec.clauses, claim.expr)
    shown: dict[str, object] = {}
    for node in (node for expr in exprs for node in walk(expr)):
        read = node if isinstance(node, Read) else node.row if isinstance(node, Member | Bucket) else None
        if read is None or read.input not in names or not _at_the_pair(read, missing):
            continue
        place = tuple(int(np.asarray(evaluate(i, pairs))) for i in read.indices)
        table = pairs.inputs[read.input]
        if all(0 <= i < n for i, n in zip(place, table.shape, strict=False)):
            shown[f"{read.input}[{', '.join(map(str, place))}]" if place else read.input] = _shown(table[place])
    yield from shown.items()


def _at_the_pair(read: Read | Row, missing: set[Side]) -> bool:
    """Whether the pair alone says which entry is read."""
    nodes = [node for index in read.indices for node in walk(index)]
    return not any(isinstance(n, Bound) or (isinstance(n, Position | Coordinate) and n.side in missing) for n in nodes)


def _shown(value: Any) -> object:
    array = np.asarray(value)
    if array.ndim == 0:
        return array.item()
    start = ", ".join(map(str, array[:MOST_SHOWN].tolist()))
    return f"[{start}{', ...' if array.size > MOST_SHOWN else ''}]"
