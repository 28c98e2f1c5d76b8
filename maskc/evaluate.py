"""The numbers reading of expressions: what a mask says of given pairs, over numpy or torch arrays.

It has no data-dependent control flow: on torch tensors nothing is copied to the host. `maskc/arrays.py` says what each
operator gives.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, assert_never

import numpy as np

from maskc.arrays import Array, apply_binary, apply_unary, cast, full, quiet, random_bits, row_position, within
from maskc.expr import (
    AxisSize,
    Binary,
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
    Total,
    Type,
    Unary,
    Weight,
    children,
)
from maskc.spec import Sizes


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


def whole(expr: Expr, sizes: Sizes) -> int:
    """The value of an integer of sizes and parameters."""
    none = np.zeros((), np.int64)
    return int(evaluate(expr, Pairs(np, sizes, {}, none, none, none, none)))


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


def rows_at(row: Row, type_: Type, pairs: Pairs) -> tuple[Array, Array]:
    """All entries of the rows at every pair, [length, ...] of a type, and whether each row exists, [...]."""
    with quiet(pairs.xp):
        length, entry_at, inside = _Reader(pairs, set()).row(row, type_)
        places = pairs.xp.arange(length) if pairs.xp is np else pairs.xp.arange(length, device=pairs.q.device)
        return entry_at(
            places.reshape((-1, *(1,) * max(len(x.shape) for x in (pairs.batch, pairs.q, pairs.k))))
        ), inside


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
            place = place * extent + within(self.pairs.xp, index, extent - 1)
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
