"""The numbers reading of expressions: what a mask says of given pairs, over numpy or torch arrays.

One function serves both namespaces, so that the meaning of every operator is stated once. It has no data-dependent
control flow: on torch tensors nothing is copied to the host. Where the language leaves an operator open it is closed
here: a shift by a negative count gives 0, a shift by 64 or more what shifting one bit at a time gives, integers wrap at
64 bits, a float that does not fit an integer floors, ceils and rounds to 0, and min and max of NaN are NaN. A row that
breaks the promise to ascend is searched like one that keeps it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, assert_never

import numpy as np

from maskc.spec import (
    AxisSize,
    Binary,
    BinaryOp,
    Bound,
    Bucket,
    Cast,
    Coordinate,
    Count,
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
    Row,
    Scale,
    Score,
    Select,
    Side,
    Sizes,
    Total,
    Type,
    Unary,
    UnaryOp,
    Weight,
    children,
    rebuild,
)

Array = Any
"""A numpy array or a torch tensor."""

_INT64_LIMIT = 2.0**63


@dataclass(frozen=True, eq=False)
class Pairs:
    """The pairs at which an expression is read.

    xp: the numpy or torch module.
    inputs: arrays of all tables by name; `q_offset` and `k_offset` int[batch] where `sizes` holds None.
    batch, head, q, k: int64 index arrays that broadcast against each other; q and k are positions, the offset included.
    score: the initial scores, needed only where an expression reads them.
    float_dtype: of floats in the expression, float64 by default.
    bound: values for leaves: of positions and coordinates they replace what would follow from q and k; the scale,
    counts of kept pairs and what follows from the weights of a call are known from here alone.
    """

    xp: Any
    sizes: Sizes
    inputs: Mapping[str, Array]
    batch: Array
    head: Array
    q: Array
    k: Array
    score: Array | None = None
    float_dtype: Any = None
    bound: Mapping[Expr, Array] = field(default_factory=dict)


def evaluate(expr: Expr, pairs: Pairs) -> Array:
    """The value of an expression at every pair: a bool, int64 or float array that broadcasts to the pairs' shape.

    Nothing larger than the broadcast of the index arrays that the expression reads is ever made, however long the rows
    and folds are: these are walked entry by entry.
    """
    with quiet(pairs.xp):
        return _Reader(pairs, _shared(expr)).read(expr)


def depends(expr: Expr, sizes: Sizes) -> tuple[bool, bool]:
    """Whether an expression may differ between batch rows and between heads; offsets given as tensors differ by row."""
    batch = head = False
    for node in _distinct(expr).values():
        match node:
            case Index(count=Count.BATCH):
                batch = True
            case Index():
                head = True
            case Position() | Coordinate() | Offset():
                batch = batch or sizes.offset(node.side) is None
            case _:
                pass
    return batch, head


def coordinate(position: Array, axis: str, sizes: Sizes) -> Array:
    """The coordinate along `axis` of row-major positions on the grid of `sizes`."""
    names = [name for name, _ in sizes.axes]
    place = names.index(axis)
    stride = max(1, math.prod(size for _, size in sizes.axes[place + 1 :]))
    outer = position // stride if stride > 1 else position
    return outer if place == 0 else outer % max(1, sizes.axis[axis])


def constants(expr: Expr, sizes: Sizes) -> Expr:
    """The expression with the call's sizes and parameters written in, and every constant part replaced by its value."""
    done: dict[int, Expr] = {}

    def visit(node: Expr) -> Expr:
        if id(node) not in done:
            done[id(node)] = _folded(rebuild(node, visit), sizes)
        return done[id(node)]

    return visit(expr)


def whole(expr: Expr, sizes: Sizes) -> int:
    """The value of an integer of sizes and parameters."""
    return int(_value_of(expr, sizes).value)


def with_step(body: Expr, index: Bound, step: int) -> Expr:
    """The body of a fold at one value of its index."""
    if body == index:
        return Literal(Type.INT, step)
    return rebuild(body, lambda child: with_step(child, index, step))


def tables_read(expr: Expr) -> frozenset[str]:
    """The tables (inputs and reductions) whose entries, rows or vectors an expression reads."""
    found: set[str] = set()
    for node in _distinct(expr).values():
        match node:
            case Read():
                found.add(node.input)
            case Member() | Bucket():
                found.add(node.row.input)
            case Dot():
                found.update(vector.input for vector in (node.left, node.right) if isinstance(vector, Row))
            case _:
                pass
    return frozenset(found)


def apply_unary(xp: Any, op: UnaryOp, x: Array) -> Array:
    """`op` of an array of the operand's own type; FLOOR, CEIL and ROUND give int64."""
    match op:
        case UnaryOp.NEG:
            return -x
        case UnaryOp.INVERT | UnaryOp.NOT:
            return ~x
        case UnaryOp.ABS:
            return xp.abs(x)
        case UnaryOp.FLOOR:
            return _integer(xp, xp.floor(x))
        case UnaryOp.CEIL:
            return _integer(xp, xp.ceil(x))
        case UnaryOp.ROUND:
            return _integer(xp, xp.round(x))
        case UnaryOp.EXP:
            return xp.exp(x)
        case UnaryOp.LOG:
            return xp.log(x)
        case UnaryOp.TANH:
            return xp.tanh(x)
        case UnaryOp.ERF:
            return _numpy_erf(x) if xp is np else xp.erf(x)
        case UnaryOp.SIGMOID:
            return 1 / (1 + xp.exp(-x))
        case UnaryOp.SOFTPLUS:
            return xp.maximum(x, xp.zeros_like(x)) + xp.log1p(xp.exp(-xp.abs(x)))
        case UnaryOp.RELU:
            return xp.maximum(x, xp.zeros_like(x))
        case UnaryOp.SQRT:
            return xp.sqrt(x)
        case _:
            assert_never(op)


def apply_binary(xp: Any, op: BinaryOp, a: Array, b: Array) -> Array:
    """`a op b` of arrays of one type."""
    match op:
        case BinaryOp.ADD:
            return a + b
        case BinaryOp.SUB:
            return a - b
        case BinaryOp.MUL:
            return a * b
        case BinaryOp.DIV:
            return a / b
        case BinaryOp.FLOORDIV:
            return _divided(xp, a, b, xp.floor_divide)
        case BinaryOp.MOD:
            return _divided(xp, a, b, xp.remainder)
        case BinaryOp.TRUNCDIV:
            return _divided(xp, a, b, _truncated_quotient)
        case BinaryOp.TRUNCMOD:
            return _divided(xp, a, b, lambda x, y: x - y * _truncated_quotient(x, y))
        case BinaryOp.POW:
            return a**b
        case BinaryOp.MIN:
            return xp.minimum(a, b)
        case BinaryOp.MAX:
            return xp.maximum(a, b)
        case BinaryOp.BITAND | BinaryOp.AND:
            return a & b
        case BinaryOp.BITOR | BinaryOp.OR:
            return a | b
        case BinaryOp.BITXOR:
            return a ^ b
        case BinaryOp.SHL:
            return xp.where((b >= 0) & (b < 64), a << _within(xp, b, 63), xp.zeros_like(a))
        case BinaryOp.SHR:
            return xp.where(b >= 0, a >> _within(xp, b, 63), xp.zeros_like(a))
        case BinaryOp.LT:
            return a < b
        case BinaryOp.LE:
            return a <= b
        case BinaryOp.GT:
            return a > b
        case BinaryOp.GE:
            return a >= b
        case BinaryOp.EQ:
            return a == b
        case BinaryOp.NE:
            return a != b
        case _:
            assert_never(op)


def rows_at(row: Row, type_: Type, pairs: Pairs) -> tuple[Array, Array]:
    """All entries of the rows at every pair, [length, ...] of a type, and whether each row exists, [...]."""
    with quiet(pairs.xp):
        length, entry_at, inside = _Reader(pairs, set()).row(row, type_)
        places = pairs.xp.arange(length) if pairs.xp is np else pairs.xp.arange(length, device=pairs.q.device)
        return entry_at(
            places.reshape((-1, *(1,) * max(len(x.shape) for x in (pairs.batch, pairs.q, pairs.k))))
        ), inside


def row_position(xp: Any, row_length: int, item: Array, entry_at: Callable[[Array], Array]) -> Array:
    """How many entries of ascending rows are <= item, int64; 0 for NaN.

    entry_at: the entries at places in [0, row_length), which are given for every item. A binary search whose steps are
    the same for all items.
    """
    count = cast(xp, xp.zeros_like(item), xp.int64)
    step = 1 << max(0, row_length.bit_length() - 1)
    while step and row_length:
        wanted = count + step
        below = (wanted <= row_length) & (entry_at(_within(xp, wanted - 1, row_length - 1)) <= item)
        count = xp.where(below, wanted, count)
        step //= 2
    return count


def cast(xp: Any, x: Array, dtype: Any) -> Array:
    """An array of another dtype, or itself."""
    return x.astype(dtype, copy=False) if xp is np else x.to(dtype)


def full(xp: Any, value: bool | int | float, dtype: Any, device: Any, shape: tuple[int, ...] = ()) -> Array:
    """An array of one value, made on a device of torch without a copy from the host."""
    return xp.full(shape, value, dtype=dtype) if xp is np else xp.full(shape, value, dtype=dtype, device=device)


class _Reader:
    """One evaluation; keeps the values of parts that occur more than once, those in a fold for one of its steps.

    steps: the present index of every fold around what is read.
    """

    def __init__(self, pairs: Pairs, shared: set[int]) -> None:
        self.pairs = pairs
        self.shared = shared
        self.known: dict[int, Array] = {}
        self.steps: dict[str, int] = {}

    def read(self, expr: Expr) -> Array:
        if id(expr) in self.known:
            return self.known[id(expr)]
        value = self._value(expr)
        if id(expr) in self.shared:
            self.known[id(expr)] = value
        return value

    def _value(self, expr: Expr) -> Array:
        pairs = self.pairs
        xp, sizes = pairs.xp, pairs.sizes
        match expr:
            case Literal():
                return self._constant(expr.value, expr.type)
            case Position() | Coordinate():
                return self._place(expr)
            case Offset():
                return self._offset(expr.side)
            case Length():
                return self._constant(sizes.length(expr.side), Type.INT)
            case AxisSize():
                return self._constant(sizes.axis[expr.axis], Type.INT)
            case Index():
                return self._index(expr.count)
            case Total():
                return self._constant(sizes.total(expr.count), Type.INT)
            case Parameter():
                return self._constant(sizes.parameter[expr.name], expr.type)
            case FreeSize():
                return self._constant(sizes.free_size[expr.name], Type.INT)
            case Bound():
                return self._constant(self.steps[expr.name], Type.INT)
            case Read():
                return self._entry(expr)
            case Member():
                return self._member(expr)
            case Bucket():
                return self._bucket(expr)
            case Rand():
                bits = random_bits([self.read(argument) for argument in expr.arguments])
                return self._typed(bits, Type.FLOAT) * 2.0**-24
            case Fold():
                return self._fold(expr)
            case Scale() | Kept() | FinalScore() | Weight():
                assert expr in pairs.bound, f"the value of {expr} must be given"
                return self._typed(pairs.bound[expr], expr.type)
            case Dot():
                raise AssertionError(f"{expr} needs the vectors of the call")
            case Score():
                assert pairs.score is not None, "an expression that reads the score needs scores"
                return self._typed(pairs.score, Type.FLOAT)
            case Unary():
                return apply_unary(xp, expr.op, self.read(expr.operand))
            case Binary():
                return apply_binary(xp, expr.op, self.read(expr.left), self.read(expr.right))
            case Select():
                condition, then = self.read(expr.condition), self.read(expr.then)
                return xp.where(condition, then, self.read(expr.otherwise))
            case Cast():
                return self._typed(self.read(expr.operand), expr.type)
            case _:
                assert_never(expr)

    def _place(self, expr: Position | Coordinate) -> Array:
        if expr in self.pairs.bound:
            return self.pairs.bound[expr]
        position = self.pairs.q if expr.side is Side.Q else self.pairs.k
        return position if isinstance(expr, Position) else coordinate(position, expr.axis, self.pairs.sizes)

    def _offset(self, side: Side) -> Array:
        given = self.pairs.sizes.offset(side)
        if given is not None:
            return self._constant(given, Type.INT)
        rows = self._typed(self.pairs.inputs[f"{side.value}_offset"], Type.INT)
        return self.pairs.xp.take(rows, self.pairs.batch)

    def _index(self, count: Count) -> Array:
        match count:
            case Count.BATCH:
                return self.pairs.batch
            case Count.HEAD:
                return self.pairs.head
            case Count.KV_HEAD:
                return self.pairs.head // (self.pairs.sizes.heads // self.pairs.sizes.kv_heads)
            case _:
                assert_never(count)

    def _entry(self, expr: Read) -> Array:
        """One entry of a table."""
        xp = self.pairs.xp
        table = self.pairs.inputs[expr.input]
        zero = self._constant(0, expr.type)
        if 0 in table.shape:
            return zero
        place, inside = self._located(expr.indices, tuple(int(n) for n in table.shape))
        return xp.where(inside, self._typed(xp.take(table, place), expr.type), zero)

    def _located(self, indices: tuple[Expr, ...], extents: tuple[int, ...]) -> tuple[Array, Array]:
        """Place in row-major order and whether it exists; an index out of range is clamped, so that none wraps."""
        place = self._constant(0, Type.INT)
        inside = self._constant(True, Type.BOOL)
        for index, extent in zip(map(self.read, indices), extents, strict=True):
            inside = inside & (index >= 0) & (index < extent)
            place = place * extent + _within(self.pairs.xp, index, extent - 1)
        return place, inside

    def row(self, row: Row, type_: Type) -> tuple[int, Callable[[int | Array], Array], Array]:
        """Length of a row, its entry at places in [0, length), and whether the row exists."""
        xp, table = self.pairs.xp, self.pairs.inputs[row.input]
        *extents, length = (int(n) for n in table.shape)
        if 0 in table.shape:
            return 0, lambda place: self._constant(0, type_), self._constant(False, Type.BOOL)
        first, inside = self._located(row.indices, tuple(extents))
        return length, lambda place: self._typed(xp.take(table, first * length + place), type_), inside

    def _member(self, expr: Member) -> Array:
        item = self.read(expr.item)
        length, entry_at, inside = self.row(expr.row, Type.INT)
        found = self._constant(False, Type.BOOL)
        for place in range(length):
            entry = entry_at(place)
            found = found | ((entry == item) & (entry >= 0))
        return found & inside

    def _bucket(self, expr: Bucket) -> Array:
        xp, item = self.pairs.xp, self.read(expr.item)
        length, entry_at, inside = self.row(expr.row, expr.item.type)
        count = row_position(xp, length, item, entry_at)
        return xp.where(inside, count, xp.zeros_like(count))

    def _fold(self, expr: Fold) -> Array:
        """Joined in the order of the index, so that sums of floats have the same bits everywhere."""
        total = self._constant(expr.op is FoldOp.ALL, expr.type)
        inner, outer = _parts_of_body(expr)
        self.shared |= outer
        for step in range(whole(expr.count, self.pairs.sizes)):
            self.steps[expr.index.name] = step
            value = self.read(expr.body)
            match expr.op:
                case FoldOp.ANY:
                    total = total | value
                case FoldOp.ALL:
                    total = total & value
                case FoldOp.SUM:
                    total = total + value
                case _:
                    assert_never(expr.op)
            for node in inner:
                self.known.pop(node, None)
        return total

    def _constant(self, value: bool | int | float, type_: Type) -> Array:
        return full(self.pairs.xp, value, self._dtype(type_), None if self.pairs.xp is np else self.pairs.q.device)

    def _typed(self, x: Array, type_: Type) -> Array:
        return cast(self.pairs.xp, x, self._dtype(type_))

    def _dtype(self, type_: Type) -> Any:
        match type_:
            case Type.BOOL:
                return self.pairs.xp.bool_ if self.pairs.xp is np else self.pairs.xp.bool
            case Type.INT:
                return self.pairs.xp.int64
            case Type.FLOAT:
                return self.pairs.xp.float64 if self.pairs.float_dtype is None else self.pairs.float_dtype
            case _:
                assert_never(type_)


_LOW = 2**32 - 1


def random_bits(arguments: Sequence[Array]) -> Array:
    """What `rand` gives for int64 arrays, in units of 2**-24: int64 in [0, 2**24).

    The two halves of every argument are mixed into a state of 32 bits; `_mixed` is the integer hash `lowbias32`.
    """
    state: Array = 0
    for argument in arguments:
        word = (argument & _LOW) ^ ((((argument >> 32) & _LOW) * 0x9E3779B1) & _LOW)
        state = _mixed(((state + 0x9E3779B9) & _LOW) ^ word)
    return state >> 8


def _mixed(x: Array) -> Array:
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _LOW  # a product that wraps at 64 bits keeps its lower half
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _LOW
    return x ^ (x >> 16)


def _within(xp: Any, x: Array, last: int) -> Array:
    """Integers clamped to [0, last]."""
    return xp.clip(x, 0, last)


def _integer(xp: Any, whole: Array) -> Array:
    """Whole floats as int64; NaN, infinities and what does not fit become 0."""
    fits = (whole >= -_INT64_LIMIT) & (whole < _INT64_LIMIT)
    guarded = xp.where(fits, whole, xp.zeros_like(whole))
    return cast(xp, guarded, xp.int64)


def _divided(xp: Any, a: Array, b: Array, divide: Any) -> Array:
    """`divide(a, b)`, and 0 where b is 0. Integers keep away from -2**63 // -1, which traps on some processors."""
    zero = xp.zeros_like(b)
    one = xp.ones_like(b)
    if _is_float(xp, b):
        return xp.where(b == 0, zero, divide(a, xp.where(b == 0, one, b)))
    negative = b == -1
    # a // -1 = -a // 1 and a % -1 = -a % 1, and so for truncation.
    return xp.where(b == 0, zero, divide(xp.where(negative, -a, a), xp.where(negative | (b == 0), one, b)))


def _truncated_quotient(a: Array, b: Array) -> Array:
    """a / b towards zero, from the floored quotient."""
    floored = a // b
    return floored + ((floored * b != a) & ((a < 0) != (b < 0)))


def _is_float(xp: Any, x: Array) -> bool:
    return bool(np.issubdtype(x.dtype, np.floating)) if xp is np else bool(x.dtype.is_floating_point)


def _numpy_erf(x: Array) -> Array:
    """numpy has no erf; the C library's, entry by entry."""
    return np.vectorize(math.erf, otypes=[np.float64])(x)


def quiet(xp: Any) -> AbstractContextManager[Any]:
    """Overflow, NaN and infinities are values here, not events worth a warning."""
    return np.errstate(all="ignore") if xp is np else nullcontext()


def _distinct(expr: Expr) -> dict[int, Expr]:
    """Every node once, however often it is shared."""
    found: dict[int, Expr] = {}
    pending = [expr]
    while pending:
        node = pending.pop()
        if id(node) not in found:
            found[id(node)] = node
            pending.extend(children(node))
    return found


def _parts_of_body(fold: Fold) -> tuple[set[int], set[int]]:
    """By id the nodes of a fold's body that read its index, and the largest parts that do not."""
    reads: dict[int, bool] = {}
    outer: set[int] = set()

    def visit(node: Expr) -> bool:
        if id(node) not in reads:
            below = [(id(child), visit(child)) for child in children(node)]
            reads[id(node)] = node == fold.index or any(does for _, does in below)
            if reads[id(node)]:
                outer.update(child for child, does in below if not does)
        return reads[id(node)]

    visit(fold.body)
    return {node for node, does in reads.items() if does}, outer


def _shared(expr: Expr) -> set[int]:
    """The nodes that more than one node reads."""
    seen: set[int] = set()
    twice: set[int] = set()
    for node in _distinct(expr).values():
        for child in map(id, children(node)):
            (twice if child in seen else seen).add(child)
    return twice


def _folded(expr: Expr, sizes: Sizes) -> Expr:
    """The node's value where the call alone decides it, else the node, without constant operands of logic."""
    match expr:
        case (
            Literal()
            | Position()
            | Coordinate()
            | Read()
            | Member()
            | Bucket()
            | Bound()
            | Score()
            | FinalScore()
            | Weight()
            | Scale()
            | Kept()
            | Dot()
        ):
            return expr
        case Offset():
            return expr if sizes.offset(expr.side) is None else _value_of(expr, sizes)
        case Index():
            return _literal(0, Type.INT) if sizes.total(expr.count) == 1 else expr
        case Length() | AxisSize() | FreeSize() | Total() | Parameter():
            return _value_of(expr, sizes)
        case Rand():
            return _value_of(expr, sizes) if all(isinstance(a, Literal) for a in expr.arguments) else expr
        case Fold():
            return _folded_fold(expr)
        case Unary() | Cast():
            return _value_of(expr, sizes) if isinstance(expr.operand, Literal) else expr
        case Select():
            if isinstance(expr.condition, Literal):
                return expr.then if expr.condition.value else expr.otherwise
            return expr
        case Binary():
            return _folded_binary(expr, sizes)
        case _:
            assert_never(expr)


def _folded_fold(expr: Fold) -> Expr:
    """`any` and `all` of nothing, or of a constant."""
    assert isinstance(expr.count, Literal), "the count of a fold follows from the call"
    if expr.count.value <= 0:
        return _literal({Type.BOOL: expr.op is FoldOp.ALL, Type.INT: 0, Type.FLOAT: 0.0}[expr.type], expr.type)
    return expr.body if isinstance(expr.body, Literal) and expr.op is not FoldOp.SUM else expr


def _folded_binary(expr: Binary, sizes: Sizes) -> Expr:
    left, right = expr.left, expr.right
    if isinstance(left, Literal) and isinstance(right, Literal):
        return _value_of(expr, sizes)
    if expr.op in (BinaryOp.AND, BinaryOp.OR):
        neutral = expr.op is BinaryOp.AND
        if isinstance(left, Literal):
            return right if left.value == neutral else left
        if isinstance(right, Literal):
            return left if right.value == neutral else right
    return expr


def _value_of(expr: Expr, sizes: Sizes) -> Literal:
    none = np.zeros((), np.int64)
    value = evaluate(expr, Pairs(np, sizes, {}, none, none, none, none))
    return _literal(value.item(), expr.type)


def _literal(value: bool | int | float, type_: Type) -> Literal:
    return Literal(type_, value)
