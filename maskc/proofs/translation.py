"""Typed expressions -> linear formulas over all calls at once: what a prover reasons about.

Every number becomes a sum of multiples of variables: positions, sizes and parameters are variables, and so is what no
sum expresses (`a // b`, `min`, products, entries of tables, functions of floats), beside facts that hold of it in every
call. Equal terms get the same variable. Integers are exact here: what is said of all calls is said of those in which no
integer leaves 64 bits, or 53 bits where it is compared with a float.
"""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, assert_never

import numpy as np

from maskc.analysis.interval import Interval, Ranges, Truth
from maskc.expr import (
    AxisSize,
    Binary,
    BinaryOp,
    Bound,
    Bucket,
    Cast,
    Coordinate,
    Count,
    Expr,
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
    Row,
    Select,
    Side,
    Total,
    Type,
    Unary,
    UnaryOp,
    rebuild,
    walk,
)
from maskc.proofs.formulas import FALSE, TRUE, Application, Formula, Variables, at_least, equal
from maskc.proofs.linear import Linear, Number
from maskc.spec import Dim, DimKind, InputSpec, MaskSpec, PrefixSum, Values

_UNROLLED = 16  # turns of a fold that are written out
_LISTED = 16  # entries of a literal table that are told apart
_POWER = 4
_EXACT = 2.0**53


class Translation(Variables):
    """The expressions of one spec as formulas. leaves: the variables of positions, sizes, ..."""

    def __init__(self, spec: MaskSpec) -> None:
        super().__init__()
        self.spec = spec
        self.leaves: dict[Expr, int] = {}
        self._terms: dict[Expr, Linear] = {}
        self._floating: dict[Expr, Linear] = {}
        self._formulas: dict[tuple[Expr, bool], Formula] = {}
        self._tied: set[Side] = set()
        self._ranges = Ranges(np, _known, lambda value, dtype: np.asarray(value, dtype), wraps=False)

    # Predicates

    def truth(self, expr: Expr, holds_: bool = True) -> Formula:
        """A predicate, or that it does not hold."""
        key = (expr, holds_)
        if key not in self._formulas:
            self._formulas[key] = self._truth(expr, holds_)
        return self._formulas[key]

    def _truth(self, expr: Expr, yes: bool) -> Formula:
        match expr:
            case Literal():
                return TRUE if bool(expr.value) == yes else FALSE
            case Unary(op=UnaryOp.NOT | UnaryOp.INVERT):
                return self.truth(expr.operand, not yes)
            case Select():
                then = self.both(self.truth(expr.condition), self.truth(expr.then, yes))
                otherwise = self.both(self.truth(expr.condition, False), self.truth(expr.otherwise, yes))
                return self.either(then, otherwise)
            case Binary() if expr.left.type is Type.BOOL:
                return self._logic(expr, yes)
            case Binary() if expr.left.type is Type.FLOAT:
                return self._floats(expr, yes)
            case Binary():
                relation = expr.op if yes else _OPPOSITE[expr.op]
                return self.compared(relation, self.term(expr.left), self.term(expr.right))
            case Fold():
                return self._folded(expr, yes)
            case _:
                value = self.term(expr)
                return equal(value, Linear((), 1 if yes else 0))

    def _logic(self, expr: Binary, yes: bool) -> Formula:
        """Operators of booleans; False counts as less than True."""
        a, b = expr.left, expr.right
        match expr.op:
            case BinaryOp.AND | BinaryOp.BITAND | BinaryOp.MIN | BinaryOp.MUL:
                joined = self.both if yes else self.either
                return joined(self.truth(a, yes), self.truth(b, yes))
            case BinaryOp.OR | BinaryOp.BITOR | BinaryOp.MAX:
                joined = self.either if yes else self.both
                return joined(self.truth(a, yes), self.truth(b, yes))
            case BinaryOp.EQ | BinaryOp.NE | BinaryOp.BITXOR:
                same = yes == (expr.op is BinaryOp.EQ)
                first = self.both(self.truth(a), self.truth(b, same))
                return self.either(first, self.both(self.truth(a, False), self.truth(b, not same)))
            case BinaryOp.LT | BinaryOp.GE:
                less = yes == (expr.op is BinaryOp.LT)
                joined = self.both if less else self.either
                return joined(self.truth(a, not less), self.truth(b, less))
            case BinaryOp.LE | BinaryOp.GT:
                less = yes == (expr.op is BinaryOp.LE)
                joined = self.either if less else self.both
                return joined(self.truth(a, not less), self.truth(b, less))
            case _:
                raise AssertionError(f"{expr.op} gives no truth")

    def _floats(self, expr: Binary, yes: bool) -> Formula:
        """A comparison of floats: false of NaN, but for `!=`."""
        whole = [whole_number(side) for side in (expr.left, expr.right)]
        if whole[0] is not None and whole[1] is not None:
            return self.truth(Binary(Type.BOOL, expr.op, whole[0], whole[1]), yes)
        known = int(self._ranges.truth(expr))
        if known != Truth.DEPENDS:
            return TRUE if (known == Truth.ALWAYS) == yes else FALSE
        a, b = self.real(expr.left), self.real(expr.right)
        nans = [n for n in (self._nan(expr.left), self._nan(expr.right)) if n is not None]
        if yes == (expr.op is not BinaryOp.NE):
            op: BinaryOp = BinaryOp.EQ if expr.op is BinaryOp.NE else expr.op
            return self.both(self.compared(op, a, b), *(equal(n, Linear()) for n in nans))
        op = expr.op if expr.op is BinaryOp.NE else _OPPOSITE[expr.op]
        return self.either(self.compared(op, a, b), *(equal(n, Linear((), 1)) for n in nans))

    def _nan(self, expr: Expr) -> Linear | None:
        """1 where a float is NaN, else 0; None for one that never is."""
        if isinstance(expr, Unary) and expr.op is UnaryOp.NEG:
            return self._nan(expr.operand)
        if whole_number(expr) is not None or not np.any(self._ranges.interval(expr).nan):
            return None
        if isinstance(expr, Read):
            return self.applied(f"{expr.input} is NaN", expr.indices, Type.BOOL)
        return self._opaque(Unary(Type.BOOL, UnaryOp.NOT, expr))  # a key that no predicate has

    def _folded(self, fold: Fold, yes: bool) -> Formula:
        turns = self._turns(fold)
        if turns is not None:
            parts = [self.truth(turn, yes) for turn in turns]
            return self.either(*parts) if (fold.op is FoldOp.ANY) == yes else self.both(*parts)
        value = equal(self._opaque(fold), Linear((), 1 if yes else 0))
        if (fold.op is FoldOp.ANY) != yes:
            return value
        # Some turn decides.
        turn = Bound(Type.INT, f"{fold.index.name}#{self.count}")
        index = self.term(turn)
        inside = self.compared(BinaryOp.LT, index, self.term(fold.count))
        return self.both(value, at_least(index, 0), inside, self.truth(substituted(fold.body, {fold.index: turn}), yes))

    def _turns(self, fold: Fold) -> list[Expr] | None:
        """The body at every index of a short fold."""
        count = self.term(fold.count)
        if count.terms or count.constant > _UNROLLED:
            return None
        return [
            substituted(fold.body, {fold.index: Literal(Type.INT, i)})
            for i in range(max(0, math.floor(count.constant)))
        ]

    # Numbers

    def term(self, expr: Expr) -> Linear:
        """An integer, or a boolean as 0 or 1."""
        if expr not in self._terms:
            self._terms[expr] = self._term(expr)
        return self._terms[expr]

    def real(self, expr: Expr) -> Linear:
        """A float; of NaN nothing is said."""
        if expr not in self._floating:
            self._floating[expr] = self._real(expr)
        return self._floating[expr]

    def _real(self, expr: Expr) -> Linear:
        whole = whole_number(expr)
        if whole is not None:
            return self.term(whole)
        match expr:
            case Literal() if math.isfinite(expr.value):
                return Linear((), _plain(float(expr.value)))
            case Unary(op=UnaryOp.NEG):
                return -self.real(expr.operand)
            case Read():
                return self.applied(expr.input, expr.indices, Type.FLOAT)
            case Rand():
                value = self.applied("rand", expr.arguments, Type.FLOAT)
                self.fact(at_least(value, 0), at_least(-value, Fraction(1, 2**24) - 1))
                return value
            case _:
                return self._opaque(expr)

    def _term(self, expr: Expr) -> Linear:
        match expr:
            case Literal():
                return Linear((), int(expr.value))
            case (
                Position()
                | Coordinate()
                | Offset()
                | Length()
                | AxisSize()
                | Index()
                | Total()
                | Parameter()
                | FreeSize()
                | Bound()
                | Kept()
            ):
                return self._leaf(expr)
            case Read():
                return self._entry(expr)
            case Member():
                return self._member(expr)
            case Bucket():
                return self._bucket(expr)
            case Fold(op=FoldOp.SUM) if expr.type is Type.INT and (turns := self._turns(expr)) is not None:
                return sum((self.term(turn) for turn in turns), Linear())
            case Select() if expr.type is Type.INT:
                return self.chosen(
                    (self.truth(expr.condition), self.term(expr.then)),
                    (self.truth(expr.condition, False), self.term(expr.otherwise)),
                )
            case Cast() if expr.operand.type is Type.BOOL:
                one, zero = Linear((), 1), Linear()
                return self.chosen((self.truth(expr.operand), one), (self.truth(expr.operand, False), zero))
            case Unary() if expr.type is Type.INT:
                return self._unary(expr)
            case Binary() if expr.type is Type.INT:
                return self._binary(expr)
            case _:
                return self._opaque(expr)

    def _unary(self, expr: Unary) -> Linear:
        if expr.op in (UnaryOp.FLOOR, UnaryOp.CEIL, UnaryOp.ROUND):
            whole = _rounded(expr)
            return self._opaque(expr) if whole is None else self.term(whole)
        x = self.term(expr.operand)
        match expr.op:
            case UnaryOp.NEG:
                return -x
            case UnaryOp.INVERT:
                return -x - 1
            case UnaryOp.ABS:
                return self.chosen((at_least(x, 0), x), (at_least(-x, 1), -x))
            case UnaryOp.RELU:
                return self.chosen((at_least(x, 0), x), (at_least(-x, 1), Linear()))
            case _:
                return self._opaque(expr)

    def _binary(self, expr: Binary) -> Linear:
        a, b = self.term(expr.left), self.term(expr.right)
        match expr.op:
            case BinaryOp.ADD:
                return a + b
            case BinaryOp.SUB:
                return a - b
            case BinaryOp.MUL:
                return self.multiplied(a, b)
            case BinaryOp.FLOORDIV:
                return self.quotient(a, b)
            case BinaryOp.MOD:
                return self.remainder(a, b)
            case BinaryOp.MIN:
                return self.chosen((at_least(b - a, 0), a), (at_least(a - b, 1), b))
            case BinaryOp.MAX:
                return self.chosen((at_least(a - b, 0), a), (at_least(b - a, 1), b))
            case BinaryOp.POW if not b.terms and 0 <= b.constant <= _POWER:
                power = Linear((), 1)
                for _ in range(int(b.constant)):
                    power = self.multiplied(power, a)
                return power
            case BinaryOp.SHL if not b.terms and 0 <= b.constant < 64:
                return a * (1 << int(b.constant))
            case BinaryOp.SHR if not b.terms and 0 <= b.constant < 64:
                return self.quotient(a, Linear((), 1 << int(b.constant)))
            case BinaryOp.BITAND if not b.terms and b.constant >= 0 and not (int(b.constant) + 1) & int(b.constant):
                return self.remainder(a, b + 1)
            case BinaryOp.BITAND | BinaryOp.BITOR | BinaryOp.BITXOR:
                return self.bits(expr.op, a, b)
            case _:
                return self._opaque(expr)

    # Tables

    def _entry(self, read: Read) -> Linear:
        value = self.applied(read.input, read.indices, read.type)
        if read.type is Type.INT:
            self._entry_facts(read, value)
        return value

    def _entry_facts(self, read: Read, value: Linear) -> None:
        table = self._table(read.input)
        if table is None:
            return
        if table.below is not None:
            below = self.term(table.below)
            self.fact(at_least(value, -1), self.either(at_least(below - value, 1), equal(value, Linear())))
        match table.source:
            case Values(shape=shape, entries=entries) if entries:
                whole = [int(e) for e in entries]
                self.fact(at_least(value, min(0, *whole)), at_least(-value, -max(0, *whole)))
                if len(entries) <= _LISTED:
                    self._listed(value, [self.term(i) for i in read.indices], shape, whole)
            case PrefixSum(table=of) if (summed := self._table(of)) is not None and summed.type is Type.BOOL:
                self.fact(at_least(value, 0))
            case _:
                pass

    def _listed(self, value: Linear, indices: list[Linear], shape: tuple[int, ...], entries: list[int]) -> None:
        """One case per entry of a small table, and those beside it."""
        cases = []
        for place, entry in zip(np.ndindex(shape), entries, strict=True):
            at = [equal(i, Linear((), p)) for i, p in zip(indices, place, strict=True)]
            cases.append(self.both(*at, equal(value, Linear((), entry))))
        outside = [self.either(at_least(-i, 1), at_least(i, n)) for i, n in zip(indices, shape, strict=True)]
        cases.append(self.both(self.either(*outside), equal(value, Linear())))
        self.fact(self.either(*cases))

    def _member(self, expr: Member) -> Linear:
        found = self.applied(f"in {expr.row.input}", (expr.item, *expr.row.indices), Type.BOOL)
        self.fact(self.either(equal(found, Linear()), at_least(self.term(expr.item), 0)))
        return found

    def _bucket(self, expr: Bucket) -> Linear:
        """Between 0 and the row's length; the entries of an ascending row say where the item lies."""
        if expr.item.type is not Type.INT:
            return self._opaque(expr)
        value = self.applied(f"bucket {expr.row.input}", (expr.item, *expr.row.indices), Type.INT)
        self.fact(at_least(value, 0))
        table = self._table(expr.row.input)
        if table is None:
            return value
        *outer, last = table.dims
        if table.sorted and table.type is Type.INT:
            item, length = self.term(expr.item), self.extent(last)
            before, behind = (self._neighbour(expr.row, value + step) for step in (-1, 0))
            indices = [self.term(i) for i in expr.row.indices]
            outside = [
                self.either(at_least(-i, 1), at_least(i - self.extent(dim), 0))
                for i, dim in zip(indices, outer, strict=True)
            ]
            self.fact(self.either(equal(value, Linear()), at_least(item - before, 0)))
            self.fact(self.either(at_least(value - length, 0), at_least(behind - item, 1), *outside))
        return value

    def _neighbour(self, row: Row, place: Linear) -> Linear:
        return self.apply(Application(row.input, (*(self.term(i) for i in row.indices), place)), Type.INT)

    def _table(self, name: str) -> InputSpec | None:
        return next((i for i in self.spec.inputs if i.name == name), None)

    def extent(self, dim: Dim) -> Linear:
        """How many entries a dim has at least; with offsets that are tensors a call may have more."""
        match dim.kind:
            case DimKind.BATCH:
                return self.term(Total(Type.INT, Count.BATCH))
            case DimKind.HEAD:
                return self.term(Total(Type.INT, Count.HEAD))
            case DimKind.KV_HEAD:
                return self.term(Total(Type.INT, Count.KV_HEAD))
            case DimKind.SEQ:
                return self._line()
            case DimKind.FREE:
                return self.term(FreeSize(Type.INT, dim.text))
            case DimKind.EXTENT:
                assert dim.extent is not None
                return self.term(dim.extent)
            case _:
                assert_never(dim.kind)

    def _line(self) -> Linear:
        """The position behind the last query or key of the call."""
        ends = [Binary(Type.INT, BinaryOp.ADD, Offset(Type.INT, s), Length(Type.INT, s)) for s in Side]
        return self.term(Binary(Type.INT, BinaryOp.MAX, ends[0], ends[1]))

    def _opaque(self, expr: Expr) -> Linear:
        """A variable for an expression of which only its range is known."""
        if expr not in self._terms:
            value = self._terms[expr] = self.new(expr.type)
            if expr.type is not Type.BOOL:
                self._bounded(value, self._ranges.interval(expr), expr.type)
        return self._terms[expr]

    def _bounded(self, value: Linear, range_: Interval, type_: Type) -> None:
        low, high = float(range_.low), float(range_.high)
        if not low <= high:  # only NaN
            return
        if math.isfinite(low) and (type_ is Type.FLOAT or abs(low) < _EXACT):
            self.fact(at_least(value, _plain(low)))
        if math.isfinite(high) and (type_ is Type.FLOAT or abs(high) < _EXACT):
            self.fact(at_least(-value, -_plain(high)))

    def applied(self, name: str, arguments: Sequence[Expr], type_: Type) -> Linear:
        """The value of a function of integers."""
        return self.apply(Application(name, tuple(self.term(a) for a in arguments)), type_)

    # Leaves

    def _leaf(self, expr: Expr) -> Linear:
        value = self._terms[expr] = self.new(expr.type)
        self.leaves[expr] = value.terms[0][0]
        match expr:
            case Position():
                self._placed(expr.side, value)
            case Coordinate():
                size = self.term(AxisSize(Type.INT, expr.axis))
                self.fact(at_least(value, 0), at_least(size - value, 1))
                self._row_major(expr.side)
            case Offset() | Length() | FreeSize():
                self.fact(at_least(value, 0))
            case AxisSize():
                self.fact(at_least(value, 1 if expr.axis in self.spec.axes else 0))
            case Total():
                self.fact(at_least(value, 1))
                if expr.count is Count.KV_HEAD:
                    self.fact(at_least(self.term(Total(Type.INT, Count.HEAD)) - value, 0))
            case Index():
                self.fact(at_least(value, 0), at_least(self.term(Total(Type.INT, expr.count)) - value, 1))
                if expr.count is Count.KV_HEAD:
                    self.fact(at_least(self.term(Index(Type.INT, Count.HEAD)) - value, 0))
            case Kept():
                self._counted(expr, value)
            case _:
                pass
        return value

    def _placed(self, side: Side, place: Linear) -> None:
        """A position lies behind the offset of its side, on the line and on its grid."""
        offset, length = self.term(Offset(Type.INT, side)), self.term(Length(Type.INT, side))
        self.fact(at_least(place - offset, 0), at_least(offset + length - place, 1))
        self._row_major(side)
        parts = self.spec.queries if side is Side.Q else self.spec.keys
        if parts and self.spec.packed is None and not (side is Side.K and self.spec.border is not None):
            tokens = sum((self.term(part.tokens) for part in parts), Linear())
            self.fact(at_least(tokens - place, 1))

    def _row_major(self, side: Side) -> None:
        """Ties the position of a side to its coordinates once both occur."""
        axes = self.spec.axes
        own = [e for e in self.leaves if isinstance(e, Position | Coordinate) and e.side is side]
        if not axes or len({type(e) for e in own}) < 2 or side in self._tied:
            return
        self._tied.add(side)
        place = Linear()
        for axis in axes:
            size, own_place = self.term(AxisSize(Type.INT, axis)), self.term(Coordinate(Type.INT, side, axis))
            place = self.multiplied(place, size) + own_place
        self.fact(equal(self.term(Position(Type.INT, side)), place))

    def _counted(self, kept: Kept, value: Linear) -> None:
        """Kept pairs are at most as many as there are indices, and as lie between the first and the last of them."""
        self.fact(at_least(value, 0))
        predicate = self.spec.predicate
        if not isinstance(kept.along, Side):
            total = self.term(Total(Type.INT, kept.along))
            self.fact(at_least(total - value, 0))
            if not any(isinstance(e, Index) and e.count is not Count.BATCH for e in walk(predicate)):
                self.fact(self.either(equal(value, Linear()), equal(value, total)))
            return
        side = kept.along
        self.fact(at_least(self.term(Length(Type.INT, side)) - value, 0))
        if any(isinstance(e, Coordinate) and e.side is side for e in walk(predicate)):
            return
        first, last = (self._another(side, predicate) for _ in range(2))
        spread = at_least(last[0] - first[0] - value, -1)
        self.fact(self.either(equal(value, Linear()), self.both(first[1], last[1], spread)))

    def _another(self, side: Side, predicate: Expr) -> tuple[Linear, Formula]:
        """Some other position of a side, and that the pair with it is kept."""
        name = Bound(Type.INT, f"{side.value}#{self.count}")
        place = self.term(name)
        offset, length = self.term(Offset(Type.INT, side)), self.term(Length(Type.INT, side))
        kept = self.truth(substituted(predicate, {Position(Type.INT, side): name}))
        return place, self.both(at_least(place - offset, 0), at_least(offset + length - place, 1), kept)


_OPPOSITE = {
    BinaryOp.LT: BinaryOp.GE,
    BinaryOp.LE: BinaryOp.GT,
    BinaryOp.GT: BinaryOp.LE,
    BinaryOp.GE: BinaryOp.LT,
    BinaryOp.EQ: BinaryOp.NE,
    BinaryOp.NE: BinaryOp.EQ,
}


def substituted(expr: Expr, values: Mapping[Expr, Expr]) -> Expr:
    """The expression with some nodes replaced."""
    done: dict[int, Expr] = {}

    def visit(node: Expr) -> Expr:
        if id(node) not in done:
            done[id(node)] = values[node] if node in values else rebuild(node, visit)
        return done[id(node)]

    return visit(expr)


def whole_number(expr: Expr) -> Expr | None:
    """The integer that a float always is, where only exact operations make it."""
    match expr:
        case Cast() if expr.operand.type is Type.INT:
            return expr.operand
        case Cast() if expr.operand.type is Type.BOOL:
            return Cast(Type.INT, expr.operand)
        case Literal() if math.isfinite(expr.value) and float(expr.value).is_integer():
            return Literal(Type.INT, int(expr.value))
        case Unary(op=UnaryOp.NEG | UnaryOp.ABS | UnaryOp.RELU):
            inner = whole_number(expr.operand)
            return None if inner is None else Unary(Type.INT, expr.op, inner)
        case Binary(op=BinaryOp.ADD | BinaryOp.SUB | BinaryOp.MUL | BinaryOp.MIN | BinaryOp.MAX):
            left, right = whole_number(expr.left), whole_number(expr.right)
            return None if left is None or right is None else Binary(Type.INT, expr.op, left, right)
        case Select():
            then, otherwise = whole_number(expr.then), whole_number(expr.otherwise)
            return None if then is None or otherwise is None else Select(Type.INT, expr.condition, then, otherwise)
        case _:
            return None


def _rounded(expr: Unary) -> Expr | None:
    """A rounded whole number, or a rounded-down quotient of two, as an integer."""
    whole = whole_number(expr.operand)
    if whole is not None:
        return whole
    match expr.operand:
        case Binary(op=BinaryOp.DIV) if expr.op is UnaryOp.FLOOR:
            left, right = whole_number(expr.operand.left), whole_number(expr.operand.right)
            # Rounding a quotient of numbers below 2**52 never reaches the next whole number.
            return None if left is None or right is None else Binary(Type.INT, BinaryOp.FLOORDIV, left, right)
        case _:
            return None


def _known(expr: Expr) -> Interval | Any | None:
    """Ranges over all calls of what is no operation."""
    match expr:
        case Literal() | Unary() | Binary() | Select() | Cast():
            return None
        case Rand():
            return Interval(np.asarray(0.0), np.asarray(1.0))
        case Parameter() | Read() | Fold() if expr.type is Type.INT:
            return Interval(np.asarray(-math.inf), np.asarray(math.inf))
        case _ if expr.type is Type.INT:
            return Interval(np.asarray(0.0), np.asarray(math.inf))
        case _ if expr.type is Type.FLOAT:
            return Interval(np.asarray(-math.inf), np.asarray(math.inf), nan=True)
        case _:
            return np.asarray(int(Truth.DEPENDS), np.uint8)


def _plain(value: float) -> Number:
    exact = Fraction(value)
    return exact.numerator if exact.denominator == 1 else exact
