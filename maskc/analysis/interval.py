"""Two readings of expressions over sets of pairs: between which numbers a value lies, and whether a predicate can hold.

Bounds are float64 arrays of numpy or torch, integers included: they are exact below 2**53, and what could leave that
range becomes unknown, so that wrapping and rounding never make a bound wrong. Float operations that IEEE rounds are
monotone, so their bounds are those of the corners; library functions are widened by more than their error. No reading
peeks at data.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, TypeVar, assert_never

from maskc.arrays import Array, apply_unary, cast, quiet
from maskc.expr import (
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
)


class Truth(IntEnum):
    """What a predicate says of all pairs of a set."""

    NEVER = 0
    DEPENDS = 1
    ALWAYS = 2


@dataclass(frozen=True, eq=False)
class Interval:
    """Every value lies in [low, high] or, where `nan` is true, may be NaN; low > high where there is no other value."""

    low: Array
    high: Array
    nan: Array = False


_Read = TypeVar("_Read")

Known = Callable[[Expr], Interval | Array | None]
"""What is known of a node from elsewhere: an Interval of a number, classes (uint8) of a predicate, None to read it."""

EXACT = 2.0**53
"""Integers below this have a float64 of their own."""

_HUGE = 2.0**64
_DIVISOR = 2.0**60  # divides everything exact to 0 or -1, as every larger divisor does
_WIDE = 2.0**-48


class Ranges:
    """The two readings over one set of pairs.

    known: asked first at every node; it must answer for positions and every other leaf but literals and the indices of
    folds. What it does not know of rows holds for any row.
    scalar: makes a 0-d array of a number, on the device of the other arrays.
    wraps: whether integers that could leave 2**53 count as wrapped (any value) or as merely large.
    """

    def __init__(self, xp: Any, known: Known, scalar: Callable[[float, Any], Array], wraps: bool = True) -> None:
        self._xp = xp
        self._known = known
        self._scalar = scalar
        self._wraps = wraps
        self._intervals: dict[int, Interval] = {}
        self._truths: dict[int, Array] = {}
        self._steps: dict[str, Interval] = {}
        self._alive: list[Expr] = []  # so that no id is given to another node

    def interval(self, expr: Expr) -> Interval:
        """Bounds of a number."""
        if id(expr) not in self._intervals:
            self._alive.append(expr)
            with quiet(self._xp):
                known = self._known(expr)
                self._intervals[id(expr)] = known if isinstance(known, Interval) else self._interval(expr)
        return self._intervals[id(expr)]

    def truth(self, expr: Expr) -> Array:
        """Class of a predicate: uint8, the values of `Truth`."""
        if id(expr) not in self._truths:
            self._alive.append(expr)
            with quiet(self._xp):
                known = self._known(expr)
                self._truths[id(expr)] = self._truth(expr) if known is None else known
        return self._truths[id(expr)]

    # Predicates

    def _truth(self, expr: Expr) -> Array:
        match expr:
            case Literal():
                return self._class(Truth.ALWAYS if expr.value else Truth.NEVER)
            case Unary():
                return 2 - self.truth(expr.operand)
            case Select():
                return self._chosen(self.truth(expr.condition), self.truth(expr.then), self.truth(expr.otherwise))
            case Binary():
                return self._logic(expr)
            case Member():
                return self._class(Truth.DEPENDS)
            case Fold():
                return self._folded_truth(expr)
            case _:
                raise AssertionError(f"{expr} has no truth of its own")

    def _folded_truth(self, expr: Fold) -> Array:
        """The body's class for every index at once; where there may be none, it decides nothing by itself."""
        xp = self._xp
        count, body = self._count(expr), self._body(expr, self.truth)
        neutral = self._class(Truth.ALWAYS if expr.op is FoldOp.ALL else Truth.NEVER)
        some = xp.where(body == neutral, neutral, self._class(Truth.DEPENDS))
        return xp.where(count.low >= 1, body, xp.where(count.high < 1, neutral, some))

    def _count(self, fold: Fold) -> Interval:
        """How many steps a fold has, not negative."""
        count = self.interval(fold.count)
        zero = self._xp.zeros_like(count.low)
        return Interval(self._xp.maximum(count.low, zero), self._xp.maximum(count.high, zero))

    def _body(self, fold: Fold, read: Callable[[Expr], _Read]) -> _Read:
        """A reading of the body over all values of the index; what is found in there holds nowhere else."""
        count = self._count(fold)
        steps, intervals, truths = self._steps, self._intervals, self._truths
        self._steps = {**steps, fold.index.name: Interval(self._xp.zeros_like(count.high), count.high - 1)}
        self._intervals, self._truths = {}, {}
        found = read(fold.body)
        self._steps, self._intervals, self._truths = steps, intervals, truths
        return found

    def _logic(self, expr: Binary) -> Array:
        xp = self._xp
        match expr.op:
            case BinaryOp.AND | BinaryOp.BITAND | BinaryOp.MIN if expr.left.type is Type.BOOL:
                return xp.minimum(self.truth(expr.left), self.truth(expr.right))
            case BinaryOp.OR | BinaryOp.BITOR | BinaryOp.MAX if expr.left.type is Type.BOOL:
                return xp.maximum(self.truth(expr.left), self.truth(expr.right))
            case _ if expr.left.type is Type.BOOL:
                return self._compare(expr.op, self._number(expr.left), self._number(expr.right))
            case _:
                return self._compare(expr.op, self.interval(expr.left), self.interval(expr.right))

    def _compare(self, op: BinaryOp, a: Interval, b: Interval) -> Array:
        ordered = ~(a.nan | b.nan) if _is_array(a.nan | b.nan) else not (a.nan | b.nan)
        match op:
            case BinaryOp.LT:
                return self._classes(a.low < b.high, (a.high < b.low) & ordered)
            case BinaryOp.LE:
                return self._classes(a.low <= b.high, (a.high <= b.low) & ordered)
            case BinaryOp.GT:
                return self._compare(BinaryOp.LT, b, a)
            case BinaryOp.GE:
                return self._compare(BinaryOp.LE, b, a)
            case BinaryOp.EQ:
                meet = (a.low <= b.high) & (b.low <= a.high)
                return self._classes(meet, (a.low == b.high) & (a.high == b.low) & ordered)
            case BinaryOp.NE | BinaryOp.BITXOR:
                return 2 - self._compare(BinaryOp.EQ, a, b)
            case _:
                raise AssertionError(f"{op} gives no truth")

    def _number(self, expr: Expr) -> Interval:
        """A predicate as 0 or 1."""
        truth = self.truth(expr)
        return Interval(self._float(truth == Truth.ALWAYS), self._float(truth != Truth.NEVER))

    def _chosen(self, condition: Array, then: Array, otherwise: Array) -> Array:
        xp = self._xp
        either = xp.where(then == otherwise, then, self._class(Truth.DEPENDS))
        return xp.where(condition == Truth.ALWAYS, then, xp.where(condition == Truth.NEVER, otherwise, either))

    def _classes(self, possible: Array, certain: Array) -> Array:
        """Classes from two boolean arrays; what is certain is possible."""
        return self._byte(possible) + self._byte(certain & possible)

    # Numbers

    def _interval(self, expr: Expr) -> Interval:
        match expr:
            case Literal():
                return self._literal(expr)
            case Cast():
                return self._number(expr.operand) if expr.operand.type is Type.BOOL else self.interval(expr.operand)
            case Unary():
                return self._unary(expr)
            case Binary():
                return self._binary(expr)
            case Select():
                return self._selected(expr)
            case Bound():
                return self._steps[expr.name]
            case Bucket():
                return Interval(self._scalar(0.0, self._xp.float64), self._scalar(math.inf, self._xp.float64))
            case Rand():
                return Interval(self._scalar(0.0, self._xp.float64), self._scalar(1 - 2.0**-24, self._xp.float64))
            case Fold():
                return self._folded_sum(expr)
            case Member():
                raise AssertionError("membership gives no number")
            case (
                Position()
                | Coordinate()
                | Offset()
                | Length()
                | AxisSize()
                | FreeSize()
                | Index()
                | Total()
                | Parameter()
                | Read()
                | Score()
                | FinalScore()
                | Weight()
                | Scale()
                | Kept()
                | Dot()
            ):
                raise AssertionError(f"the range of {expr} must be known")
            case _:
                assert_never(expr)

    def _literal(self, expr: Literal) -> Interval:
        number = float(expr.value)
        if math.isnan(number):
            return Interval(
                self._scalar(math.inf, self._xp.float64), self._scalar(-math.inf, self._xp.float64), nan=True
            )
        value = self._scalar(number, self._xp.float64)
        return self._whole(value, value) if expr.type is Type.INT else Interval(value, value)

    def _folded_sum(self, expr: Fold) -> Interval:
        """Between count times the least and count times the greatest value."""
        count, body = self._count(expr), self._body(expr, self.interval)
        low, high = self._corners(lambda x, y: x * y, count, body)
        if expr.type is Type.INT:
            return self._whole(low, high)
        largest = self._xp.maximum(-body.low, body.high)
        error = count.high * count.high * largest * _WIDE  # every step may round the sum that was reached
        low, high = low - error, high + error
        return self._floating(low, high, body.nan | ((low == -math.inf) & (high == math.inf)))

    def _selected(self, expr: Select) -> Interval:
        xp = self._xp
        condition = self.truth(expr.condition)
        a, b = self.interval(expr.then), self.interval(expr.otherwise)
        always, never = condition == Truth.ALWAYS, condition == Truth.NEVER
        low = xp.where(always, a.low, xp.where(never, b.low, xp.minimum(a.low, b.low)))
        high = xp.where(always, a.high, xp.where(never, b.high, xp.maximum(a.high, b.high)))
        return Interval(low, high, (a.nan & ~never) | (b.nan & ~always))

    def _unary(self, expr: Unary) -> Interval:
        xp, x = self._xp, self.interval(expr.operand)
        match expr.op:
            case UnaryOp.NEG:
                return Interval(-x.high, -x.low, x.nan)
            case UnaryOp.INVERT:
                return Interval(-x.high - 1, -x.low - 1)
            case UnaryOp.ABS:
                zero = xp.zeros_like(x.low)
                return Interval(xp.maximum(xp.maximum(x.low, -x.high), zero), xp.maximum(-x.low, x.high), x.nan)
            case UnaryOp.RELU:
                zero = xp.zeros_like(x.low)
                return Interval(xp.maximum(x.low, zero), xp.maximum(x.high, zero), x.nan)
            case UnaryOp.FLOOR:
                return self._rounded(xp.floor, x)
            case UnaryOp.CEIL:
                return self._rounded(xp.ceil, x)
            case UnaryOp.ROUND:
                return self._rounded(xp.round, x)
            case UnaryOp.LOG | UnaryOp.SQRT:
                zero = xp.zeros_like(x.low)
                held = Interval(xp.maximum(x.low, zero), xp.maximum(x.high, zero), x.nan | (x.low < 0))
                return self._function(expr.op, held)
            case UnaryOp.EXP | UnaryOp.TANH | UnaryOp.ERF | UnaryOp.SIGMOID | UnaryOp.SOFTPLUS:
                return self._function(expr.op, x)
            case UnaryOp.NOT:
                raise AssertionError("not gives no number")
            case _:
                assert_never(expr.op)

    def _function(self, op: UnaryOp, x: Interval) -> Interval:
        """An increasing function whose library error is below the widening."""
        low, high = self._outward(apply_unary(self._xp, op, x.low), apply_unary(self._xp, op, x.high))
        return Interval(low, high, x.nan)

    def _rounded(self, rounding: Callable[[Array], Array], x: Interval) -> Interval:
        """To an integer; NaN, infinities and what does not fit become 0."""
        xp = self._xp
        low, high = rounding(x.low), rounding(x.high)
        zero = xp.zeros_like(low)
        odd = (low <= -(2.0**63)) | (high >= 2.0**63) | x.nan
        return self._whole(xp.where(odd, xp.minimum(low, zero), low), xp.where(odd, xp.maximum(high, zero), high))

    def _binary(self, expr: Binary) -> Interval:
        xp = self._xp
        a, b = self.interval(expr.left), self.interval(expr.right)
        whole = expr.type is Type.INT
        match expr.op:
            case BinaryOp.ADD:
                return self._sum(a, b, whole)
            case BinaryOp.SUB:
                return self._sum(a, Interval(-b.high, -b.low, b.nan), whole)
            case BinaryOp.MUL:
                return self._product(a, b, whole)
            case BinaryOp.MIN:
                return Interval(xp.minimum(a.low, b.low), xp.minimum(a.high, b.high), a.nan | b.nan)
            case BinaryOp.MAX:
                return Interval(xp.maximum(a.low, b.low), xp.maximum(a.high, b.high), a.nan | b.nan)
            case BinaryOp.DIV:
                return self._quotient(a, b)
            case BinaryOp.FLOORDIV:
                return self._floored(a, b) if whole else self._anything(a, b)
            case BinaryOp.MOD:
                return self._remainder(a, b) if whole else self._anything(a, b)
            case BinaryOp.TRUNCDIV:
                return self._truncated(a, b)
            case BinaryOp.TRUNCMOD:
                return self._truncated_remainder(a, b)
            case BinaryOp.POW:
                return self._power(a, b, expr.right) if whole else self._float_power(a, b)
            case BinaryOp.BITAND:
                return self._bits_and(a, b)
            case BinaryOp.BITOR | BinaryOp.BITXOR:
                return self._bits(a, b)
            case BinaryOp.SHL:
                return self._shifted_left(a, b)
            case BinaryOp.SHR:
                return self._shifted_right(a, b)
            case _:
                raise AssertionError(f"{expr.op} gives no number")

    def _sum(self, a: Interval, b: Interval, whole: bool) -> Interval:
        low, high = a.low + b.low, a.high + b.high
        if whole:
            return self._whole(low, high)
        opposite = ((a.low == -math.inf) & (b.high == math.inf)) | ((a.high == math.inf) & (b.low == -math.inf))
        return self._floating(low, high, a.nan | b.nan | opposite)

    def _product(self, a: Interval, b: Interval, whole: bool) -> Interval:
        low, high = self._corners(lambda x, y: x * y, a, b)
        if whole:
            return self._whole(low, high)
        vanishes = self._holds_zero(a) & self._unbounded(b) | self._holds_zero(b) & self._unbounded(a)
        return self._floating(low, high, a.nan | b.nan | vanishes)

    def _quotient(self, a: Interval, b: Interval) -> Interval:
        low, high = self._corners(lambda x, y: x / y, a, b)
        open_ = self._holds_zero(b)
        undefined = (open_ & self._holds_zero(a)) | (self._unbounded(a) & self._unbounded(b))
        low, high = self._where_unknown(open_, low, high)
        return self._floating(low, high, a.nan | b.nan | undefined)

    def _floored(self, a: Interval, b: Interval) -> Interval:
        return self._divided(a, b, self._xp.floor)

    def _truncated(self, a: Interval, b: Interval) -> Interval:
        return self._divided(a, b, self._xp.trunc)

    def _divided(self, a: Interval, b: Interval, rounding: Callable[[Array], Array]) -> Interval:
        """Integer division: the corners over the positive divisors, those over the negative ones, and 0 for 0."""
        xp = self._xp
        a = Interval(self._clipped(a.low, _HUGE), self._clipped(a.high, _HUGE))
        b = Interval(self._clipped(b.low, _DIVISOR), self._clipped(b.high, _DIVISOR))
        one = xp.ones_like(b.low)
        zero = xp.zeros_like(a.low + b.low)
        low, high = zero + math.inf, zero - math.inf
        for divisor, present in (
            (Interval(xp.maximum(b.low, one), xp.maximum(b.high, one)), b.high >= 1),
            (Interval(xp.minimum(b.low, -one), xp.minimum(b.high, -one)), b.low <= -1),
        ):
            part = self._corners(lambda x, y: rounding(x / y), a, divisor)
            low = xp.where(present, xp.minimum(low, part[0]), low)
            high = xp.where(present, xp.maximum(high, part[1]), high)
        by_zero = self._holds_zero(b)
        low = xp.where(by_zero, xp.minimum(low, zero), low)
        return self._whole(low, xp.where(by_zero, xp.maximum(high, zero), high))

    def _remainder(self, a: Interval, b: Interval) -> Interval:
        """Floored: the sign of the divisor; exact where all dividends lie between two multiples of one divisor."""
        xp = self._xp
        zero = xp.zeros_like(b.low)
        low = xp.minimum(b.low + 1, zero)
        high = xp.maximum(b.high - 1, zero)
        one = (b.low == b.high) & (b.low != 0)
        divisor = xp.where(one, b.low, xp.ones_like(b.low))
        base = xp.floor(a.low / divisor)
        between = one & (base == xp.floor(a.high / divisor)) & ~self._unbounded(a)
        first, last = a.low - base * divisor, a.high - base * divisor
        smaller = (a.low >= 0) & (a.high < b.low)
        low = xp.where(between, first, xp.where(smaller, a.low, low))
        high = xp.where(between, last, xp.where(smaller, a.high, high))
        return self._whole(low, high)

    def _truncated_remainder(self, a: Interval, b: Interval) -> Interval:
        """C's: the sign of the dividend, smaller than the divisor."""
        xp = self._xp
        reach = xp.maximum(xp.maximum(-b.low, b.high) - 1, xp.zeros_like(b.low))
        zero = xp.zeros_like(reach + a.low)
        low = xp.maximum(xp.minimum(a.low, zero), -reach)
        return self._whole(low, xp.minimum(xp.maximum(a.high, zero), reach))

    def _power(self, a: Interval, b: Interval, exponent: Expr) -> Interval:
        xp = self._xp
        if not isinstance(exponent, Literal) or exponent.value < 0:
            return self._anything(a, b)
        n = float(exponent.value)
        if exponent.value % 2 == 0:
            zero = xp.zeros_like(a.low)
            a = Interval(xp.maximum(xp.maximum(a.low, -a.high), zero), xp.maximum(-a.low, a.high))
        return self._whole(a.low**n, a.high**n)

    def _float_power(self, a: Interval, b: Interval) -> Interval:
        """For a positive base the logarithm is a product, so the corners bound it; any other base is left unknown."""
        low, high = self._outward(*self._corners(lambda x, y: x**y, a, b))
        unknown = ~((a.low > 0) & ~self._unbounded(a) & ~self._unbounded(b))
        low, high = self._where_unknown(unknown, low, high)
        return self._floating(low, high, a.nan | b.nan | unknown)

    def _bits_and(self, a: Interval, b: Interval) -> Interval:
        """And with a non-negative number lies between 0 and that number."""
        xp = self._xp
        reach = self._reach(a, b)
        zero = xp.zeros_like(reach)
        sure = (a.low >= 0) | (b.low >= 0)
        infinite = zero + math.inf
        high = xp.minimum(xp.where(a.low >= 0, a.high, infinite), xp.where(b.low >= 0, b.high, infinite))
        return self._whole(xp.where(sure, zero, -reach), xp.where(sure, high, reach - 1))

    def _bits(self, a: Interval, b: Interval) -> Interval:
        """Or and exclusive or need no more bits than their operands."""
        reach = self._reach(a, b)
        positive = (a.low >= 0) & (b.low >= 0)
        return self._whole(self._xp.where(positive, self._xp.zeros_like(reach), -reach), reach - 1)

    def _reach(self, a: Interval, b: Interval) -> Array:
        """A power of two above every magnitude."""
        xp = self._xp
        largest = xp.maximum(xp.maximum(-a.low, a.high), xp.maximum(-b.low, b.high))
        return 2.0 ** (xp.floor(xp.log2(xp.maximum(largest, xp.ones_like(largest)))) + 2)

    def _shifted_left(self, a: Interval, b: Interval) -> Interval:
        """A product with a power of two, 0 for counts out of range."""
        counts = Interval(self._clipped(b.low, 64.0), self._clipped(b.high, 64.0))
        low, high = self._corners(lambda x, n: x * 2.0**n, a, counts)
        return self._with_zero(low, high, (b.low < 0) | (b.high >= 64))

    def _shifted_right(self, a: Interval, b: Interval) -> Interval:
        xp = self._xp
        first = xp.maximum(b.low, xp.zeros_like(b.low))
        counts = Interval(self._clipped(first, 63.0), self._clipped(xp.maximum(b.high, first), 63.0))
        held = Interval(self._clipped(a.low, _HUGE), self._clipped(a.high, _HUGE))
        low, high = self._corners(lambda x, n: xp.floor(x / 2.0**n), held, counts)
        low, high = self._where_unknown(self._unbounded(a), low, high)
        return self._with_zero(low, high, b.low < 0)

    def _with_zero(self, low: Array, high: Array, also: Array) -> Interval:
        xp = self._xp
        zero = xp.zeros_like(low)
        return self._whole(xp.where(also, xp.minimum(low, zero), low), xp.where(also, xp.maximum(high, zero), high))

    # Bounds

    def _corners(self, f: Callable[[Array, Array], Array], a: Interval, b: Interval) -> tuple[Array, Array]:
        """Least and greatest of f at the four corners; a corner without a value (0 * inf) counts as 0."""
        xp = self._xp
        values = []
        for x in (a.low, a.high):
            for y in (b.low, b.high):
                value = f(x, y)
                values.append(xp.where(value == value, value, xp.zeros_like(value)))
        low = xp.minimum(xp.minimum(values[0], values[1]), xp.minimum(values[2], values[3]))
        return low, xp.maximum(xp.maximum(values[0], values[1]), xp.maximum(values[2], values[3]))

    def _whole(self, low: Array, high: Array) -> Interval:
        """Bounds of an integer; what is not surely exact is unknown, on both ends if it may have wrapped."""
        if self._wraps:
            return Interval(*self._where_unknown(~((low > -EXACT) & (high < EXACT)), low, high))
        xp = self._xp
        low = xp.where(low == low, low, xp.zeros_like(low) - math.inf)
        return Interval(low, xp.where(high == high, high, xp.zeros_like(high) + math.inf))

    def _floating(self, low: Array, high: Array, nan: Array) -> Interval:
        xp = self._xp
        low = xp.where(low == low, low, xp.zeros_like(low) - math.inf)
        return Interval(low, xp.where(high == high, high, xp.zeros_like(high) + math.inf), nan)

    def _outward(self, low: Array, high: Array) -> tuple[Array, Array]:
        """Wider by more than the error of a library function, also at the ends of the floats."""
        xp = self._xp
        low, high = xp.clip(low, -math.inf, sys.float_info.max), xp.clip(high, -sys.float_info.max, math.inf)
        return (
            xp.where(low == -math.inf, low, low - (xp.abs(low) * _WIDE + 1e-300)),
            xp.where(high == math.inf, high, high + (xp.abs(high) * _WIDE + 1e-300)),
        )

    def _anything(self, a: Interval, b: Interval) -> Interval:
        zero = self._xp.zeros_like(a.low + b.low)
        return Interval(zero - math.inf, zero + math.inf, nan=True)

    def _where_unknown(self, unknown: Array, low: Array, high: Array) -> tuple[Array, Array]:
        xp = self._xp
        infinite = xp.zeros_like(low) + math.inf
        return xp.where(unknown, -infinite, low), xp.where(unknown, infinite, high)

    def _holds_zero(self, x: Interval) -> Array:
        return (x.low <= 0) & (x.high >= 0)

    def _unbounded(self, x: Interval) -> Array:
        return (x.low == -math.inf) | (x.high == math.inf)

    def _clipped(self, x: Array, reach: float) -> Array:
        return self._xp.clip(x, -reach, reach)

    def _class(self, truth: Truth) -> Array:
        return self._scalar(int(truth), self._xp.uint8)

    def _byte(self, x: Array) -> Array:
        return cast(self._xp, x, self._xp.uint8)

    def _float(self, x: Array) -> Array:
        return cast(self._xp, x, self._xp.float64)


def _is_array(x: Any) -> bool:
    return not isinstance(x, bool)
