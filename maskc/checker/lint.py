"""What a mask says that was probably not meant: clauses without effect, divisors that can be zero, integers that can
overflow, row sums of what can be negative.

In: a checked mask. Out: warnings. Everything is judged from intervals of integers and from signs, so a warning is
rarely wrong and a mistake may well go unnoticed. Sizes and parameters are looked at in every call (`maskc.sizes`), not
here.
"""

import math
from collections.abc import Iterator, Sequence
from typing import assert_never

from maskc.checker.signs import is_nonnegative
from maskc.diagnostics import Diagnostic, Span
from maskc.expr import (
    COMPARISONS,
    TRUE,
    AxisSize,
    Binary,
    BinaryOp,
    Bound,
    Bucket,
    Cast,
    Coordinate,
    Dot,
    Expr,
    FinalScore,
    Fold,
    FoldOp,
    FreeSize,
    Index,
    Kept,
    Length,
    Literal,
    Member,
    Offset,
    Parameter,
    Position,
    Rand,
    Read,
    Scale,
    Score,
    Select,
    Total,
    Type,
    Unary,
    UnaryOp,
    Weight,
    children,
)
from maskc.spec import Form, MaskSpec, ReduceOp

Interval = tuple[float, float]
"""Least and greatest value; ints where they are finite."""

_POSITIONS: Interval = (0, 2**31 - 1)
_SIZES: Interval = (1, 2**31 - 1)
_COORDINATES: Interval = (0, 2**20 - 1)  # a grid of three axes has far fewer places than 2 ** 60
_AXES: Interval = (1, 2**20 - 1)
_ANY: Interval = (-math.inf, math.inf)
_LOGICAL = {BinaryOp.AND, BinaryOp.OR}
_DIVISIONS = {BinaryOp.DIV, BinaryOp.FLOORDIV, BinaryOp.MOD}
_VARYING = {Position, Coordinate, Index, Read, Bound, Bucket, Member, Kept}


def lint(spec: MaskSpec, statements: Sequence[Span]) -> Iterator[Diagnostic]:
    """Warnings about a mask. statements: where each clause stands in the text."""
    judge = _Judge(spec)
    for place, (clause, statement) in enumerate(zip(spec.clauses, statements, strict=True)):
        truth = judge.truth(clause)
        if truth is True:
            yield _warning("this holds for every pair and changes nothing", clause.span)
        elif truth is False:
            yield _warning("no pair satisfies this: nothing is ever kept", clause.span)
        elif clause in spec.clauses[:place]:
            yield _warning("this says the same as an earlier line and changes nothing", clause.span)
        else:
            yield from _idle_operands(clause, statement, judge)
    for expr in spec.exprs:
        yield from _arithmetic(expr, judge)
    yield from _rows(spec, judge)
    yield from _row_sum(spec)


def _rows(spec: MaskSpec, judge: "_Judge") -> Iterator[Diagnostic]:
    truth = None if spec.rows is None else judge.truth(spec.rows.computed)
    if spec.rows is not None and truth is not None:
        said = "every query is computed: this changes nothing" if truth else "no query is ever computed"
        yield _warning(said, spec.rows.computed.span)


def _row_sum(spec: MaskSpec) -> Iterator[Diagnostic]:
    """A row sum near 0 makes weights of any size, which terms of both signs easily have."""
    value = spec.normalizer.value
    if spec.normalizer.form is Form.ROWSUM and value is not None and not is_nonnegative(value):
        hint = "its row sum may be near 0; relu, exp, abs or even powers are never negative"
        yield _warning("this can be negative", value.span, hint)


def _warning(message: str, span: Span | None, hint: str | None = None) -> Diagnostic:
    return Diagnostic(message, span, hint, "warning")


def _idle_operands(expr: Expr, statement: Span, judge: "_Judge") -> Iterator[Diagnostic]:
    """Operands of `and` and `or` that are always the same, as far as they are written in the statement itself."""
    if not (isinstance(expr, Binary) and expr.op in _LOGICAL):
        return
    for operand in (expr.left, expr.right):
        truth = judge.truth(operand)
        inside = operand.span is not None and statement.start <= operand.span.start < statement.end
        if truth is None:
            yield from _idle_operands(operand, statement, judge)
        elif inside and operand.span is not None and operand.span.source is statement.source:
            word = "holds for every pair" if truth else "holds for no pair"
            yield _warning(f"this {word}", operand.span)


def _arithmetic(expr: Expr, judge: "_Judge") -> Iterator[Diagnostic]:
    """Divisors that can be zero outside a branch, and results that can leave 64 bits."""
    seen: set[tuple[int, bool]] = set()
    pending = [(expr, False)]  # with whether a branch guards it
    while pending:
        node, guarded = pending.pop()
        if Binary not in node.kinds or (id(node), guarded) in seen:
            continue
        seen.add((id(node), guarded))
        if isinstance(node, Fold):
            judge.enter(node)
        if isinstance(node, Binary):
            if node.op in _DIVISIONS and not guarded:
                yield from _zero_divisor(node, judge)
            if node.type is Type.INT and judge.overflows(node):
                hint = "positions are taken to lie below 2 ** 31, coordinates below 2 ** 20"
                yield _warning("this can leave 64 bits", node.span, hint)
        first, *others = children(node)
        branches = isinstance(node, Select) or (isinstance(node, Binary) and node.op in _LOGICAL)
        pending += [(first, guarded), *((child, guarded or branches) for child in others)]


def _zero_divisor(expr: Binary, judge: "_Judge") -> Iterator[Diagnostic]:
    divisor = expr.right.operand if isinstance(expr.right, Cast) else expr.right
    if divisor.type is not Type.INT or not _varies(divisor):
        return
    low, high = judge.interval(divisor)
    if low <= 0 <= high:
        result = "gives 0" if expr.op is not BinaryOp.DIV else "is infinite or NaN"
        hint = f"division by zero {result}; guard it with 'where' if that is not meant"
        yield _warning("this divisor can be zero", divisor.span, hint)


def _varies(expr: Expr) -> bool:
    """Whether an expression differs between pairs; the others are looked at in every call."""
    return bool(expr.kinds & _VARYING)


class _Judge:
    """Intervals of integers and truth of booleans, each node judged once."""

    def __init__(self, spec: MaskSpec) -> None:
        self._spec = spec
        self._intervals: dict[int, Interval] = {}
        self._kept: list[Expr] = []  # so that no identity is used twice
        self._overflowing: set[int] = set()
        self._bound: dict[str, Interval] = {}  # of the folds that were entered, by name

    def truth(self, expr: Expr) -> bool | None:
        """True or False where a boolean is the same for every pair."""
        match expr:
            case Literal():
                return bool(expr.value)
            case Unary(op=UnaryOp.NOT):
                operand = self.truth(expr.operand)
                return None if operand is None else not operand
            case Binary() if expr.op in _LOGICAL:
                return self._logical(expr)
            case Binary() if expr.op in COMPARISONS:
                return self._comparison(expr)
            case _:
                return None

    def _logical(self, expr: Binary) -> bool | None:
        known = (self.truth(expr.left), self.truth(expr.right))
        decisive = expr.op is BinaryOp.OR
        if decisive in known:
            return decisive
        return None if None in known else not decisive

    def _comparison(self, expr: Binary) -> bool | None:
        op = expr.op
        if expr.left.type is not Type.INT:
            return None
        if expr.left == expr.right:
            return op in (BinaryOp.LE, BinaryOp.GE, BinaryOp.EQ)
        (a, b), (c, d) = self.interval(expr.left), self.interval(expr.right)
        less, less_equal = _order(b < c, a >= d), _order(b <= c, a > d)
        equal = False if b < c or d < a else (True if a == b == c == d else None)
        match op:
            case BinaryOp.LT:
                return less
            case BinaryOp.LE:
                return less_equal
            case BinaryOp.GE:
                return None if less is None else not less
            case BinaryOp.GT:
                return None if less_equal is None else not less_equal
            case BinaryOp.EQ:
                return equal
            case _:
                return None if equal is None else not equal

    def interval(self, expr: Expr) -> Interval:
        """Bounds of an int; floats and booleans are not looked at."""
        if id(expr) not in self._intervals:
            low, high = self._interval(expr)
            if -math.inf < low and high < math.inf and (low < -(2**63) or high >= 2**63):
                self._overflowing.add(id(expr))
                low, high = _ANY  # said once, not again of everything that reads it
            self._intervals[id(expr)] = low, high
            self._kept.append(expr)
        return self._intervals[id(expr)]

    def enter(self, fold: Fold) -> None:
        """Notes what the index of a fold can be, before its body is judged."""
        self._bound[fold.index.name] = 0, max(0, self.interval(fold.count)[1] - 1)

    def overflows(self, expr: Expr) -> bool:
        """Whether an int of bounded operands can leave 64 bits."""
        self.interval(expr)
        return id(expr) in self._overflowing

    def _interval(self, expr: Expr) -> Interval:
        match expr:
            case Literal():
                return (expr.value, expr.value) if expr.type is Type.INT else _ANY
            case Position() | Offset() | Length() | Index():
                return _POSITIONS
            case Coordinate():
                return _COORDINATES
            case AxisSize():
                return _AXES
            case Total():
                return _SIZES
            case Cast():
                return (0, 1) if expr.type is Type.INT else _ANY
            case Bound():
                return self._bound.get(expr.name, _POSITIONS)
            case Bucket() | Kept() | FreeSize():
                return _POSITIONS
            case Fold():
                return self._fold(expr)
            case Read():
                return self._entry(expr)
            case Parameter() | Score() | FinalScore() | Weight() | Scale() | Dot() | Rand() | Member():
                return _ANY
            case Select():
                (a, b), (c, d) = self.interval(expr.then), self.interval(expr.otherwise)
                return min(a, c), max(b, d)
            case Unary():
                return _unary(expr.op, self.interval(expr.operand)) if expr.type is Type.INT else _ANY
            case Binary():
                if expr.type is not Type.INT:
                    return _ANY
                if expr.op is BinaryOp.SUB and _is_start(expr.right):
                    return _SIZES if isinstance(expr.left, Select) else _POSITIONS  # a length or number in a document
                return _binary(expr.op, self.interval(expr.left), self.interval(expr.right))
            case _:
                assert_never(expr)

    def _entry(self, read: Read) -> Interval:
        """A count is not negative, and counts at least the pair itself where it is read at the pair's own index."""
        reduction = self._spec.reduction(read.input)
        if reduction is None or reduction.op is not ReduceOp.COUNT:
            return _ANY
        own = reduction.value == TRUE and read.indices[2:] == reduction.indices
        return _SIZES if own else _POSITIONS

    def _fold(self, fold: Fold) -> Interval:
        """A sum of at most as many terms as the fold has rounds."""
        if fold.type is not Type.INT or fold.op is not FoldOp.SUM:
            return _ANY
        self.enter(fold)
        rounds = max(0, self.interval(fold.count)[1])
        low, high = self.interval(fold.body)
        return min(0, _product(low, rounds)), max(0, _product(high, rounds))


def _is_start(expr: Expr) -> bool:
    """Whether this is the first position of the packed document that a token lies in."""
    match expr:
        case Read(indices=(*_, Binary(op=BinaryOp.SUB, left=Bucket() as preceding))):
            return preceding.row.input == expr.input
        case _:
            return False


def _order(always: bool, never: bool) -> bool | None:
    return True if always else (False if never else None)


def _unary(op: UnaryOp, x: Interval) -> Interval:
    low, high = x
    match op:
        case UnaryOp.NEG:
            return -high, -low
        case UnaryOp.INVERT:
            return -high - 1, -low - 1
        case UnaryOp.ABS:
            least = 0 if low <= 0 <= high else min(abs(low), abs(high))
            return least, max(abs(low), abs(high))
        case _:
            return _ANY


def _binary(op: BinaryOp, x: Interval, y: Interval) -> Interval:
    (a, b), (c, d) = x, y
    match op:
        case BinaryOp.ADD:
            return a + c, b + d
        case BinaryOp.SUB:
            return a - d, b - c
        case BinaryOp.MUL:
            return _hull(_product(s, t) for s in x for t in y)
        case BinaryOp.FLOORDIV if c > 0:
            return _hull(_quotient(s, t) for s in x for t in y)
        case BinaryOp.MOD if c > 0:
            return 0, d - 1
        case BinaryOp.MIN:
            return min(a, c), min(b, d)
        case BinaryOp.MAX:
            return max(a, c), max(b, d)
        case BinaryOp.BITAND if a >= 0 and c >= 0:
            return 0, min(b, d)
        case BinaryOp.SHL if c >= 0 and d < math.inf:
            return _hull(_product(s, 2 ** int(min(t, 64))) for s in x for t in y)
        case BinaryOp.POW if c == d and c >= 0:
            return _power(x, int(c))
        case _:
            return _ANY


def _hull(values: Iterator[float]) -> Interval:
    known = list(values)
    return min(known), max(known)


def _product(x: float, y: float) -> float:
    return 0 if x == 0 or y == 0 else x * y


def _quotient(x: float, y: float) -> float:
    if math.isinf(y):
        return 0 if x >= 0 else -1
    return x if math.isinf(x) else x // y


def _power(x: Interval, exponent: int) -> Interval:
    low, high = x
    if math.inf in (abs(low), abs(high)):
        return (0, math.inf) if exponent % 2 == 0 else _ANY
    exponent = min(exponent, 64 + exponent % 2)  # anything beyond leaves 64 bits as well
    ends = [int(low) ** exponent, int(high) ** exponent]
    least = 0 if exponent % 2 == 0 and exponent > 0 and low <= 0 <= high else min(ends)
    return least, max(ends)
