"""Why a pair of tokens is kept or dropped: the `keep` lines that decide, what they read there, and the pair's tile.

In: the plan of a call and one pair. Out: an `Answer`, which prints itself. A clause is read from left to right, as the
language does: of `and` the first operand that is false decides, of `or` the first that is true, else all of them do.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskc.analysis.interval import Truth
from maskc.analysis.plan import BlockPlan, class_at
from maskc.constants import with_step
from maskc.diagnostics import Diagnostic, MaskInputError, Span
from maskc.evaluate import Pairs, evaluate, rows_at, whole
from maskc.expr import (
    Binary,
    BinaryOp,
    Bucket,
    Cast,
    Expr,
    Fold,
    FoldOp,
    Index,
    Literal,
    Member,
    Read,
    Row,
    Scalar,
    Select,
    Side,
    Type,
    Unary,
    UnaryOp,
    children,
    render,
)
from maskc.grammar import syntax
from maskc.grammar.format import expression_text
from maskc.grammar.parser import recover
from maskc.spec import MaskSpec, Sizes
from maskc.whereabouts import whereabouts

Inputs = Mapping[str, NDArray[Any]]

_COMPARISONS = (BinaryOp.LT, BinaryOp.LE, BinaryOp.GT, BinaryOp.GE, BinaryOp.EQ, BinaryOp.NE)
_SHOWN = 8
"""Entries of a row that are shown."""
_CLASSES = {Truth.ALWAYS: "full", Truth.DEPENDS: "partial", Truth.NEVER: "empty"}


@dataclass(frozen=True)
class Pair:
    """One query and one key by their positions, the offsets of the call included, of one head and batch row."""

    q: int
    k: int
    head: int = 0
    batch: int = 0


@dataclass(frozen=True)
class Reason:
    """A condition that decides a clause, its truth, and the values of what it compares or looks up, rows as texts.

    text: as it is written; `line` and `file` where, if that is not in the clause itself.
    """

    text: str
    holds: bool
    values: tuple[tuple[str, Scalar | str], ...]
    file: str | None = None
    line: int | None = None

    def __str__(self) -> str:
        where = "" if self.line is None else f" (line {self.line}{f' of {self.file}' if self.file else ''})"
        values = ", ".join(f"{text} = {value}" for text, value in self.values)
        return f"{self.text} is {'true' if self.holds else 'false'}{where}{f': {values}' if values else ''}"


@dataclass(frozen=True)
class Verdict:
    """What one clause says of the pair. `span`: of the expression behind `keep`, None for a mask without a text."""

    clause: Expr
    span: Span | None
    holds: bool
    reasons: tuple[Reason, ...]

    def __str__(self) -> str:
        message = "this clause lets the pair in" if self.holds else "this clause drops the pair"
        if self.span is None:
            message = f"keep {self.clause}: {message}"
        return "\n".join([str(Diagnostic(message, self.span)), *(f"    {reason}" for reason in self.reasons)])


@dataclass(frozen=True)
class Tile:
    """The tile of a pair and its class in the plan; queries and keys are positions, both ends included."""

    row: int
    column: int
    rows: int
    columns: int
    queries: tuple[int, int]
    keys: tuple[int, int]
    truth: Truth

    def __str__(self) -> str:
        queries, keys = (f"{first} to {last}" for first, last in (self.queries, self.keys))
        place = f"tile row {self.row} of {self.rows}, column {self.column} of {self.columns}"
        return f"{place}, queries {queries}, keys {keys}: {_CLASSES[self.truth]}"


@dataclass(frozen=True)
class Answer:
    """Whether a pair is kept, what every clause says of it, and its tile. described: the pair in words."""

    pair: Pair
    described: str
    verdicts: tuple[Verdict, ...]
    tile: Tile

    @property
    def kept(self) -> bool:
        """Whether the pair takes part in attention."""
        return all(verdict.holds for verdict in self.verdicts)

    def __str__(self) -> str:
        lines = [f"{self.described}: {'kept' if self.kept else 'dropped'}"]
        if not self.verdicts:
            lines.append("the mask has no 'keep' line: every pair is kept")
        lines += [str(verdict) for verdict in self.verdicts if verdict.holds == self.kept]
        return "\n".join([*lines, str(self.tile)])


def why(plan: BlockPlan, pair: Pair, inputs: Inputs | None = None) -> Answer:
    """What decides a pair of the plan's call. inputs: all tables.

    Raises MaskInputError for a pair that the call does not have.
    """
    given = {} if inputs is None else inputs
    _check_pair(plan.sizes, pair, given)
    reader = _Reader(plan, pair, given)
    clauses = zip(plan.spec.clauses, _keep_spans(plan.spec), strict=True)
    verdicts = tuple(reader.verdict(clause, span) for clause, span in clauses)
    return Answer(pair, _described(plan, pair, given), verdicts, _tile(plan, pair, given))


def _check_pair(sizes: Sizes, pair: Pair, inputs: Inputs) -> None:
    _check_index("batch row", "batch rows", pair.batch, 0, sizes.batch)
    _check_index("head", "heads", pair.head, 0, sizes.heads)
    _check_index("query", "queries", pair.q, _offset(sizes, inputs, Side.Q, pair.batch), sizes.q_len)
    _check_index("key", "keys", pair.k, _offset(sizes, inputs, Side.K, pair.batch), sizes.k_len)


def _check_index(one: str, many: str, index: int, first: int, count: int) -> None:
    if not first <= index < first + count:
        has = f"its {many} are {first} to {first + count - 1}" if count else f"it has no {many}"
        raise MaskInputError(f"{one} {index} is not part of this call: {has}")


def _offset(sizes: Sizes, inputs: Inputs, side: Side, batch: int) -> int:
    given = sizes.offset(side)
    return int(inputs[f"{side.value}_offset"][batch]) if given is None else given


def _keep_spans(spec: MaskSpec) -> list[Span | None]:
    """Where the expressions behind `keep` stand, and `packed` lines, which are clauses, too; the clauses themselves
    know where an inlined function or let does.
    """
    start = spec.span
    if start is None:
        return [clause.span for clause in spec.clauses]
    masks = (item for item in recover(start.source)[0].items if isinstance(item, syntax.Mask))
    mask = next(item for item in masks if item.span.start == start.start)
    stated = (s for s in mask.body if isinstance(s, syntax.Keep | syntax.Packed))
    return [s.value.span if isinstance(s, syntax.Keep) else s.span for s in stated]


def _described(plan: BlockPlan, pair: Pair, inputs: Inputs) -> str:
    """The pair and where its tokens lie; head and batch row where there are several."""
    sizes = plan.sizes
    words = [
        f"{token} {position}{whereabouts(plan.spec, sizes, side, position, pair.batch, inputs)}"
        for token, side, position in (("query", Side.Q, pair.q), ("key", Side.K, pair.k))
    ]
    if sizes.heads > 1:
        group = sizes.heads // sizes.kv_heads
        words.append(f"head {pair.head}" + (f" (KV head {pair.head // group})" if group > 1 else ""))
    if sizes.batch > 1:
        words.append(f"batch row {pair.batch}")
    return ", ".join(words)


def _tile(plan: BlockPlan, pair: Pair, inputs: Inputs) -> Tile:
    sizes = plan.sizes

    def along(side: Side, position: int, tile: int) -> tuple[int, int, tuple[int, int]]:
        """Number of the tile, how many there are, and its first and last position."""
        first, length = _offset(sizes, inputs, side, pair.batch), sizes.length(side)
        place = (position - first) // tile
        return place, -(-length // tile), (first + place * tile, first + min(length, (place + 1) * tile) - 1)

    row, rows, queries = along(Side.Q, pair.q, plan.tile[0])
    column, columns, keys = along(Side.K, pair.k, plan.tile[1])
    batch_rows, heads = plan.maps
    map_ = (pair.batch if batch_rows > 1 else 0) * heads + (pair.head if heads > 1 else 0)
    q, k = (p - _offset(sizes, inputs, side, pair.batch) for side, p in ((Side.Q, pair.q), (Side.K, pair.k)))
    return Tile(row, column, rows, columns, queries, keys, class_at(plan, map_, q, k))


class _Reader:
    """Reads clauses at one pair."""

    def __init__(self, plan: BlockPlan, pair: Pair, inputs: Inputs) -> None:
        self.given = {entry.name for entry in plan.spec.given}
        self.packed = plan.spec.packed
        batch, head, q, k = (np.asarray(i, np.int64) for i in (pair.batch, pair.head, pair.q, pair.k))
        self.pairs = Pairs(np, plan.sizes, inputs, batch, head, q, k)

    def value(self, expr: Expr) -> Scalar:
        """The value of an expression."""
        found: Scalar = np.asarray(evaluate(expr, self.pairs)).item()
        return found

    def verdict(self, clause: Expr, span: Span | None) -> Verdict:
        """What a clause says, and the conditions that decide it, each once."""
        if isinstance(clause, Binary) and self._is_packed(clause.left) and self._is_packed(clause.right):
            holds = bool(self.value(clause))
            documents = tuple((f"that of {s}", self.value(d)) for s, d in (("q", clause.left), ("k", clause.right)))
            return Verdict(clause, span, holds, (Reason("one document", holds, documents),))
        reasons = dict.fromkeys(self._reason(condition, span) for condition in self._deciding(clause))
        return Verdict(clause, span, bool(self.value(clause)), tuple(reasons))

    def _is_packed(self, expr: Expr) -> bool:
        """Whether an expression is the number of a packed document."""
        match expr:
            case Binary(op=BinaryOp.SUB, left=Bucket(row=Row(input=table)), right=Literal(value=1)):
                return table == self.packed
            case _:
                return False

    def _deciding(self, expr: Expr) -> Iterator[Expr]:
        """The conditions inside a boolean that make it what it is."""
        match expr:
            case Binary(op=BinaryOp.AND | BinaryOp.OR) if _is_written_out(expr):
                ends = expr.op is BinaryOp.OR  # the value at which the reading stops
                operands = _operands(expr)
                last = next((o for o in operands if self.value(o) == ends), None)
                for operand in operands if last is None else (last,):
                    yield from self._deciding(operand)
            case Unary(op=UnaryOp.NOT) if expr.span is None or expr.span != expr.operand.span:
                yield from self._deciding(expr.operand)
            case Select():
                yield from self._deciding(expr.condition)
                yield from self._deciding(expr.then if self.value(expr.condition) else expr.otherwise)
            case _:
                yield expr

    def _reason(self, condition: Expr, clause: Span | None) -> Reason:
        text = _text(condition)
        values = tuple(dict.fromkeys(part for part in self._values(condition) if part[0] != text))
        return Reason(text, bool(self.value(condition)), values, *_elsewhere(condition.span, clause))

    def _values(self, condition: Expr) -> Iterator[tuple[str, Scalar | str]]:
        """What a condition compares, the entries and rows that it reads, and the places that it works out for that."""
        looked_up: tuple[Expr, ...] = ()
        match condition:
            case Read(input=table) | Bucket(row=Row(input=table)) if table == self.packed:
                return  # what `packed` made of a position
            case Fold():
                yield from self._step_values(condition)
                return
            case Binary() if condition.op in _COMPARISONS:
                yield from self._shown((condition.left, condition.right))
            case Member():
                yield from self._shown((condition.item,))
                yield from self._row(condition.row, Type.INT)
                looked_up = condition.row.indices
            case Bucket():
                yield from self._shown((condition, condition.item))
                yield from self._row(condition.row, condition.item.type)
                looked_up = condition.row.indices
            case Read():
                yield from self._shown((condition,))
                looked_up = condition.indices
            case _:
                pass
        yield from self._shown(i for i in map(_uncast, looked_up) if children(i) and not _text(i).isidentifier())
        for child in children(condition):
            yield from self._values(child)

    def _shown(self, parts: Iterable[Expr]) -> Iterator[tuple[str, Scalar]]:
        return ((_text(p), self.value(p)) for p in map(_uncast, parts) if not isinstance(p, Literal))

    def _row(self, row: Row, type_: Type) -> Iterator[tuple[str, str]]:
        """A row that an input holds, with its first entries; one that is written in the spec is seen there."""
        if row.input not in self.given:
            return
        entries, exists = rows_at(row, type_, self.pairs)
        written = [_text(i) for i in row.indices if not isinstance(i, Index)]
        first = ", ".join(str(entry) for entry in entries[:_SHOWN].reshape(-1).tolist())
        more = ", ..." if len(entries) > _SHOWN else ""
        name = f"{row.input}[{', '.join(written)}]" if written else row.input
        yield name, f"[{first}{more}]" if exists.all() else "no row"

    def _step_values(self, fold: Fold) -> Iterator[tuple[str, Scalar | str]]:
        """The values at the step that decides a fold; none where all of them do."""
        if fold.op is FoldOp.SUM:
            return
        ends = fold.op is FoldOp.ANY
        for step in range(whole(fold.count, self.pairs.sizes)):
            body = with_step(fold.body, fold.index, step)
            if bool(self.value(body)) == ends:
                yield fold.index.name, step
                yield from self._values(body)
                return


def _operands(expr: Binary) -> list[Expr]:
    """The operands of a chain of `and` or of `or` that is written as one."""
    found: list[Expr] = []
    for child in (expr.left, expr.right):
        inner = isinstance(child, Binary) and child.op is expr.op and child.span in (None, expr.span)
        found += _operands(child) if inner and isinstance(child, Binary) else [child]
    return found


def _is_written_out(expr: Binary) -> bool:
    """Whether the operands have texts of their own; those that `in` stands for have not."""
    return expr.span is None or any(operand.span not in (None, expr.span) for operand in _operands(expr))


def _uncast(expr: Expr) -> Expr:
    return expr.operand if isinstance(expr, Cast) else expr


def _text(expr: Expr) -> str:
    """An expression as it is written; a name that stands for another, such as an argument, as what it stands for."""
    return (
        render(expr)
        if expr.span is None or not (children(expr) or isinstance(expr, Read))
        else expression_text(expr.span)
    )


def _elsewhere(span: Span | None, clause: Span | None) -> tuple[str | None, int | None]:
    """File and line of a condition; no file where it is that of the clause, neither where it stands in the clause."""
    if span is None or (
        clause is not None and span.source is clause.source and clause.start <= span.start < clause.end
    ):
        return None, None
    file = None if clause is not None and span.source is clause.source else span.source.name
    return file, span.source.position(span.start)[0]
