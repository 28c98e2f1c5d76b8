"""Comparisons solved for a position of the walked side: what is left in a loop compares row numbers with a bound.

`q - k < window` with the query's side owned says `k > q - window`, and `(k.y + 4) // 8 == (q.y + 4) // 8` says
`low <= k < high`: bounds that are computed once for an owned row, where a division per walked row would cost a loop
more than all else that decides its pairs.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import reduce

from maskc.analysis.bounds import value_range
from maskc.codegen.settle import MIRRORED, Depends, depends, promised, terms_of
from maskc.expr import (
    COMPARISONS,
    AxisSize,
    Binary,
    BinaryOp,
    Coordinate,
    Expr,
    Length,
    Literal,
    Offset,
    Position,
    Side,
    Type,
)
from maskc.spec import MaskSpec


@dataclass(frozen=True)
class Plus:
    """Adds a scalar of the launch, or takes it away."""

    sign: int
    scalar: Expr


@dataclass(frozen=True)
class Negated:
    """Turns the sign around."""


@dataclass(frozen=True)
class Times:
    """Multiplies by a positive scalar what a quotient by it is compared with; its dividends lie between low and high.

    Past the quotients that occur one value is as good as another, so it can be held among them first.
    """

    factor: Expr
    low: Expr
    high: Expr


Step = Plus | Negated | Times


@dataclass(frozen=True)
class RowBound:
    """`row op value`: a row number of the walked side (its position less the offset) against what the others know.

    The value is `start` after the steps, in 64 bits: their results may lie far outside the rows.
    """

    op: BinaryOp
    start: Expr
    steps: tuple[Step, ...] = ()


def row_bounds(expr: Expr, spec: MaskSpec, walked: Side) -> tuple[RowBound, ...]:
    """The bounds that a settled predicate is equal to, one or (equal quotients) two; none where it has another form."""
    inner = Depends.Q if walked is Side.Q else Depends.K
    match expr:
        case Binary(op=op, left=left, right=right) if op in COMPARISONS and left.type is Type.INT:
            if depends(left) is inner and not depends(right) & inner:
                found = _solved(RowBound(op, right), left, spec, inner)
            elif depends(right) is inner and not depends(left) & inner:
                found = _solved(RowBound(MIRRORED.get(op, op), left), right, spec, inner)
            else:
                found = ()
            return tuple(found or ())
        case _:
            return ()


_ONE = Literal(Type.INT, 1)


def _solved(bound: RowBound, expr: Expr, spec: MaskSpec, inner: Depends) -> tuple[RowBound, ...] | None:
    """`expr op value` solved for the row in `expr`, which depends on nothing but the walked side and the launch."""
    apart = _apart(expr, inner)
    if apart is None:
        return None
    sign, term, scalars = apart
    for plus in scalars:
        bound = _then(bound, Plus(-plus.sign, plus.scalar))
    if sign < 0:
        bound = _then(replace(bound, op=MIRRORED.get(bound.op, bound.op)), Negated())
    match term:
        case Position():
            return (_then(bound, Plus(-1, Offset(Type.INT, term.side))),)
        case _:
            quotient = _quotient(term, spec)
            extent = None if quotient is None else _extent(quotient[0], spec, inner)
            if quotient is None or extent is None or bound.op is BinaryOp.NE:
                return None
            solved = (_solved(b, quotient[0], spec, inner) for b in _undivided(bound, quotient[1], extent))
            return _joined(solved)


def _joined(parts: Iterator[tuple[RowBound, ...] | None]) -> tuple[RowBound, ...] | None:
    found: tuple[RowBound, ...] = ()
    for part in parts:
        if part is None:
            return None
        found += part
    return found


def _then(bound: RowBound, *steps: Step) -> RowBound:
    return replace(bound, steps=(*bound.steps, *steps))


def _undivided(bound: RowBound, divisor: Expr, extent: tuple[Expr, Expr]) -> Iterator[RowBound]:
    """`dividend // divisor op value` as comparisons of the dividend, which lies within the extent.

    A quotient is at least t where the dividend is at least t * divisor, and at most t where it is less than
    (t + 1) * divisor.
    """
    times = Times(divisor, *extent)
    if bound.op in (BinaryOp.GE, BinaryOp.EQ):
        yield _then(replace(bound, op=BinaryOp.GE), times)
    if bound.op is BinaryOp.GT:
        yield _then(replace(bound, op=BinaryOp.GE), Plus(1, _ONE), times)
    if bound.op is BinaryOp.LT:
        yield _then(bound, times)
    if bound.op in (BinaryOp.LE, BinaryOp.EQ):
        yield _then(replace(bound, op=BinaryOp.LT), Plus(1, _ONE), times)


def _apart(expr: Expr, inner: Depends) -> tuple[int, Expr, list[Plus]] | None:
    """The one term of a sum that depends on the walked side, with its sign, and the scalars of the launch."""
    terms = terms_of(expr)
    rows = [(sign, term) for sign, term in terms if depends(term) is inner]
    if len(rows) != 1:
        return None
    sign, term = rows[0]
    return sign, term, [Plus(s, t) for s, t in terms if t is not term]


def _quotient(expr: Expr, spec: MaskSpec) -> tuple[Expr, Expr] | None:
    """(dividend, divisor) of a quotient rounded down by a positive scalar: a division, or the first coordinate."""
    match expr:
        case Binary(op=BinaryOp.FLOORDIV | BinaryOp.TRUNCDIV, left=left, right=right):
            # A division became C's only where that is the same.
            if depends(right) is not Depends.NONE or value_range(right, promised(spec), spec.inputs)[0] < 1:
                return None
            return left, right
        case Coordinate() if expr.axis == spec.axes[0]:
            sizes: list[Expr] = [AxisSize(Type.INT, axis) for axis in spec.axes[1:]]
            row = reduce(lambda a, b: Binary(Type.INT, BinaryOp.MUL, a, b), sizes or [_ONE])
            return Position(Type.INT, expr.side), row
        case _:
            return None


def _extent(expr: Expr, spec: MaskSpec, inner: Depends) -> tuple[Expr, Expr] | None:
    """Scalars between which a value of the walked side lies for all rows of a call."""
    apart = _apart(expr, inner)
    if apart is None:
        return None
    sign, term, scalars = apart
    match term:
        case Position(side=side):
            first = Offset(Type.INT, side)
            length = Binary(Type.INT, BinaryOp.SUB, Length(Type.INT, side), _ONE)
            ends: tuple[Expr, Expr] = first, Binary(Type.INT, BinaryOp.ADD, length, first)
        case Coordinate():
            quotient = _quotient(term, spec)
            inside = None if quotient is None else _extent(quotient[0], spec, inner)
            if quotient is None or inside is None:
                return None
            low, high = (Binary(Type.INT, BinaryOp.TRUNCDIV, end, quotient[1]) for end in inside)
            ends = low, high
        case _:
            return None
    if sign < 0:
        return None
    for plus in scalars:
        op = BinaryOp.ADD if plus.sign > 0 else BinaryOp.SUB
        ends = Binary(Type.INT, op, ends[0], plus.scalar), Binary(Type.INT, op, ends[1], plus.scalar)
    return ends
