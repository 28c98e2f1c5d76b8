"""Typed expressions over query and key positions, scores and weights.

Everything behind the checker (numbers, truth over boxes, derivatives, torch, Triton) is a reading of `Expr`. Each
reading is one function with one `match` that ends in `assert_never`, so that a new node gives a list of places. Names
are resolved, functions and lets are inlined, and every implicit conversion is a `Cast`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, TypeVar

from maskc.diagnostics import Span

Scalar = bool | int | float


class Word(Enum):
    """A word of the language."""

    __hash__ = object.__hash__  # one object per word; the hash of `Enum` is Python code, and words are hashed often


class Type(Word):
    """Type of an expression, an input's entries or a parameter. Integers have 64 bits."""

    BOOL = "bool"
    INT = "int"
    FLOAT = "float"


class Side(Word):
    """Which end of a pair."""

    Q = "q"
    K = "k"


class Count(Word):
    """An index that is the same for every pair of one attention matrix, or the number of its values."""

    BATCH = "batch"
    HEAD = "head"
    KV_HEAD = "kv_head"


class UnaryOp(Word):
    """Operators of one operand. FLOOR, CEIL and ROUND (half to even) give integers; NaN and infinities become 0."""

    NEG = "-"
    INVERT = "~"
    NOT = "not"
    ABS = "abs"
    FLOOR = "floor"
    CEIL = "ceil"
    ROUND = "round"
    EXP = "exp"
    LOG = "log"
    TANH = "tanh"
    ERF = "erf"
    SIGMOID = "sigmoid"
    SOFTPLUS = "softplus"
    RELU = "relu"
    SQRT = "sqrt"


class BinaryOp(Word):
    """Operators of two operands of equal type.

    FLOORDIV and MOD floor, and give 0 for a divisor of 0. The checker never makes TRUNCDIV and TRUNCMOD (C's division):
    a lowering puts them where both operands are proven non-negative. DIV is true division of floats. MIN, MAX: at a tie
    the derivative goes to the second operand. POW of integers has a non-negative literal exponent.
    """

    ADD = "+"
    SUB = "-"
    MUL = "*"
    DIV = "/"
    FLOORDIV = "//"
    MOD = "%"
    TRUNCDIV = "truncdiv"
    TRUNCMOD = "truncmod"
    POW = "**"
    MIN = "min"
    MAX = "max"
    BITAND = "&"
    BITOR = "|"
    BITXOR = "^"
    SHL = "<<"
    SHR = ">>"
    LT = "<"
    LE = "<="
    GT = ">"
    GE = ">="
    EQ = "=="
    NE = "!="
    AND = "and"
    OR = "or"


COMPARISONS = frozenset({BinaryOp.LT, BinaryOp.LE, BinaryOp.GT, BinaryOp.GE, BinaryOp.EQ, BinaryOp.NE})


_T = TypeVar("_T")


def hash_once(cls: type[_T]) -> type[_T]:
    """Lets objects remember their hash, which walks all that they hold: specs and expressions are keys of caches."""
    compute: Callable[[Any], int] = cls.__hash__

    def once(self: Any) -> int:
        known: int | None = self.__dict__.get("_hash")
        if known is None:
            known = self.__dict__["_hash"] = compute(self)
        return known

    def portable(self: Any) -> dict[str, object]:
        # Strings hash differently in every process.
        return {name: value for name, value in self.__dict__.items() if name not in ("_hash", "_measured")}

    for name, method in (("__hash__", once), ("__getstate__", portable)):
        setattr(cls, name, method)
    return cls


Kind = type
"""A class of nodes."""


class _Singletons(dict[Kind, frozenset[Kind]]):
    """The set of one class, each made once."""

    def __missing__(self, kind: Kind) -> frozenset[Kind]:
        made = self[kind] = frozenset((kind,))
        return made


_KINDS = _Singletons()


@dataclass(frozen=True)
class Node:
    """What every expression node has: a type and the place in the user's text that it came from (outside equality)."""

    type: Type
    span: Span | None = field(default=None, compare=False, repr=False, kw_only=True)

    def __str__(self) -> str:
        return render(self)  # type: ignore[arg-type]

    @property
    def size(self) -> int:
        """Number of nodes when every shared part is written out."""
        return self._measures[0]

    @property
    def depth(self) -> int:
        """Number of nodes on the longest way down."""
        return self._measures[1]

    @property
    def kinds(self) -> frozenset[Kind]:
        """The classes of all its nodes."""
        return self._measures[2]

    @property
    def _measures(self) -> tuple[int, int, frozenset[Kind]]:
        """Size, depth and kinds, found by one walk and kept (without the lock that `cached_property` takes)."""
        known: tuple[int, int, frozenset[Kind]] | None = self.__dict__.get("_measured")
        if known is not None:
            return known
        size, depth, kinds = 1, 0, _KINDS[self.__class__]
        for child in children(self):  # type: ignore[arg-type]
            below = child._measures
            size += below[0]
            depth = max(depth, below[1])
            kinds = kinds if below[2] <= kinds else kinds | below[2]
        known = self.__dict__["_measured"] = size, 1 + depth, kinds
        return known


@dataclass(frozen=True)
class Literal(Node):
    """A constant; floats may be infinite."""

    value: Scalar

    # True == 1 == 1.0 in Python, so the type takes part in equality through the base class's field.


@dataclass(frozen=True)
class Position(Node):
    """The position of the query or key on its index space, the call's offset included (INT)."""

    side: Side


@dataclass(frozen=True)
class Coordinate(Node):
    """One coordinate of that position on the shared row-major grid; the last axis is the fastest (INT)."""

    side: Side
    axis: str


@dataclass(frozen=True)
class Offset(Node):
    """The call's `q_offset` or `k_offset`; differs between batch rows when it was given as a tensor (INT)."""

    side: Side


@dataclass(frozen=True)
class Length(Node):
    """`q_len` or `k_len` (INT)."""

    side: Side


@dataclass(frozen=True)
class AxisSize(Node):
    """`y.size` (INT)."""

    axis: str


@dataclass(frozen=True)
class Index(Node):
    """`batch`, `head` (of the query) or `kv_head`, counted from 0 (INT)."""

    count: Count


@dataclass(frozen=True)
class Total(Node):
    """How many batch rows, query heads (`heads`) or KV heads the call has (INT)."""

    count: Count


@dataclass(frozen=True)
class Parameter(Node):
    """A scalar parameter of the mask."""

    name: str


@dataclass(frozen=True)
class FreeSize(Node):
    """The size of a dim that is a name of its own, bound by the first tensor that has it (INT)."""

    name: str


@hash_once
@dataclass(frozen=True)
class Read(Node):
    """One entry of an input or of a reduction; as many indices as it has dims, `batch` and `head` filled in. Out of
    range: 0 or False.
    """

    input: str
    indices: tuple["Expr", ...]


@hash_once
@dataclass(frozen=True)
class Row:
    """A table with its last dim open: one index fewer than it has dims. A row out of range is empty. No expression
    itself; `Member`, `Bucket` and `Dot` read it.
    """

    input: str
    indices: tuple["Expr", ...]


@dataclass(frozen=True)
class Token:
    """The vector `query` or `key` of the pair, as it was given to the call."""

    side: Side


Vector = Row | Token


@dataclass(frozen=True)
class Score(Node):
    """The score that the pair starts with: scale * (query . key) (FLOAT)."""


@dataclass(frozen=True)
class FinalScore(Node):
    """The score behind all `score` lines (FLOAT). Occurs in the mass, the normaliser, the weight and in reductions that
    read one of these.
    """


@dataclass(frozen=True)
class Weight(Node):
    """The pair's weight as the normaliser gives it (FLOAT). Occurs in `MaskSpec.weight` and in reductions only."""


@dataclass(frozen=True)
class Scale(Node):
    """The call's `scale`, 1 / sqrt(D_qk) by default (FLOAT)."""


@dataclass(frozen=True)
class Bound(Node):
    """The index of an enclosing `Fold`; its name is unique among the folds around it (INT)."""

    name: str


@dataclass(frozen=True)
class Kept(Node):
    """How many kept pairs there are along an index, the others being those of the pair: Side.K, the keys of the query;
    Side.Q, the queries of the key; Count.HEAD, the query heads that keep the pair (INT). Occurs in claims only.
    """

    along: Side | Count


@hash_once
@dataclass(frozen=True)
class Unary(Node):
    """`op operand`."""

    op: UnaryOp
    operand: "Expr"


@hash_once
@dataclass(frozen=True)
class Binary(Node):
    """`left op right`. The untaken right side of `and` and `or` is not evaluated."""

    op: BinaryOp
    left: "Expr"
    right: "Expr"


@hash_once
@dataclass(frozen=True)
class Select(Node):
    """`then if condition else otherwise`; the branch not taken is never evaluated, for values or gradients."""

    condition: "Expr"
    then: "Expr"
    otherwise: "Expr"


@hash_once
@dataclass(frozen=True)
class Cast(Node):
    """BOOL to INT (0 or 1) or INT to FLOAT."""

    operand: "Expr"


@hash_once
@dataclass(frozen=True)
class Member(Node):
    """`item in row` of ints (BOOL). Negative entries are padding and match nothing; duplicates count once."""

    item: "Expr"
    row: Row


@hash_once
@dataclass(frozen=True)
class Bucket(Node):
    """How many entries of an ascending row are <= item; both are ints or both floats (INT)."""

    item: "Expr"
    row: Row


@hash_once
@dataclass(frozen=True)
class Dot(Node):
    """The inner product of two vectors of one length, unscaled (FLOAT)."""

    left: Vector
    right: Vector


@hash_once
@dataclass(frozen=True)
class Rand(Node):
    """A multiple of 2**-24 in [0, 1), a published mix of its INT arguments and of nothing else (FLOAT)."""

    arguments: tuple["Expr", ...]


class FoldOp(Word):
    """How a `Fold` joins its values."""

    ANY = "any"
    ALL = "all"
    SUM = "sum"


@hash_once
@dataclass(frozen=True)
class Fold(Node):
    """`any/all/sum(body for index in range(count))`; nothing of positions, tables or scores is in `count`."""

    op: FoldOp
    index: Bound
    count: "Expr"
    body: "Expr"


Expr = (
    Literal
    | Position
    | Coordinate
    | Offset
    | Length
    | AxisSize
    | Index
    | Total
    | Parameter
    | FreeSize
    | Read
    | Score
    | FinalScore
    | Weight
    | Scale
    | Bound
    | Kept
    | Unary
    | Binary
    | Select
    | Cast
    | Member
    | Bucket
    | Dot
    | Rand
    | Fold
)

TRUE = Literal(Type.BOOL, True)
FALSE = Literal(Type.BOOL, False)
ONE = Literal(Type.FLOAT, 1.0)
SCORE = Score(Type.FLOAT)
FINAL_SCORE = FinalScore(Type.FLOAT)
WEIGHT = Weight(Type.FLOAT)


def children(expr: Expr) -> tuple[Expr, ...]:
    """The operands of a node, in the order in which they are written."""
    match expr:
        case Binary():
            return (expr.left, expr.right)
        case Unary() | Cast():
            return (expr.operand,)
        case Select():
            return (expr.condition, expr.then, expr.otherwise)
        case Read():
            return expr.indices
        case Member() | Bucket():
            return (expr.item, *expr.row.indices)
        case Dot():
            return tuple(i for vector in (expr.left, expr.right) if isinstance(vector, Row) for i in vector.indices)
        case Rand():
            return expr.arguments
        case Fold():
            return (expr.count, expr.body)
        case _:
            return ()


def placed(expr: Expr, span: Span | None) -> Expr:
    """The same expression at another place of the text; what is known of it stays known."""
    if expr.span is span:
        return expr
    copy = object.__new__(expr.__class__)
    copy.__dict__.update(expr.__dict__, span=span)
    return copy


def rebuild(expr: Expr, change: Callable[[Expr], Expr]) -> Expr:
    """The node with `change` applied to each operand; the node itself where nothing changed."""
    before = children(expr)
    after = tuple(change(child) for child in before)
    if all(a is b for a, b in zip(after, before, strict=True)):
        return expr
    match expr:
        case Unary() | Cast():
            return replace(expr, operand=after[0])
        case Binary():
            return replace(expr, left=after[0], right=after[1])
        case Select():
            return replace(expr, condition=after[0], then=after[1], otherwise=after[2])
        case Read():
            return replace(expr, indices=after)
        case Member() | Bucket():
            return replace(expr, item=after[0], row=replace(expr.row, indices=after[1:]))
        case Dot():
            rest = iter(after)
            left, right = (_with_indices(vector, rest) for vector in (expr.left, expr.right))
            return replace(expr, left=left, right=right)
        case Rand():
            return replace(expr, arguments=after)
        case Fold():
            return replace(expr, count=after[0], body=after[1])
        case _:
            raise AssertionError("a leaf has no operands that could change")


def _with_indices(vector: Vector, indices: Iterator[Expr]) -> Vector:
    """A vector with its indices taken from the front of others."""
    return replace(vector, indices=tuple(next(indices) for _ in vector.indices)) if isinstance(vector, Row) else vector


def walk(expr: Expr) -> Iterator[Expr]:
    """Every node of an expression, operands before the node that reads them."""
    for child in children(expr):
        yield from walk(child)
    yield expr


def conjuncts(expr: Expr) -> tuple[Expr, ...]:
    """The operands of a chain of `and`, in order."""
    match expr:
        case Binary(op=BinaryOp.AND):
            return conjuncts(expr.left) + conjuncts(expr.right)
        case _:
            return (expr,)


def conjunction(exprs: tuple[Expr, ...]) -> Expr:
    """All of them, as a balanced tree (a mask may have many clauses); True for none."""
    if not exprs:
        return TRUE
    if len(exprs) == 1:
        return exprs[0]
    middle = (len(exprs) + 1) // 2
    return Binary(Type.BOOL, BinaryOp.AND, conjunction(exprs[:middle]), conjunction(exprs[middle:]))


def render(expr: Expr) -> str:
    """The expression in the mask language, every nested operation in brackets."""
    match expr:
        case Literal():
            return repr(expr.value)
        case Position():
            return expr.side.value
        case Coordinate():
            return f"{expr.side.value}.{expr.axis}"
        case Offset():
            return f"{expr.side.value}_offset"
        case Length():
            return f"{expr.side.value}_len"
        case AxisSize():
            return f"{expr.axis}.size"
        case Index():
            return expr.count.value
        case Total():
            return {Count.BATCH: "batches", Count.HEAD: "heads", Count.KV_HEAD: "kv_heads"}[expr.count]
        case Parameter():
            return expr.name
        case FreeSize():
            return expr.name
        case Score():
            return "score"
        case FinalScore():
            return "final_score"
        case Weight():
            return "weight"
        case Scale():
            return "scale"
        case Bound():
            return expr.name
        case Kept():
            return f"count({expr.along.value})"
        case Read():
            return _entry(expr.input, expr.indices)
        case Member():
            return f"{_bracketed(expr.item)} in {_vector(expr.row)}"
        case Bucket():
            return f"bucket({render(expr.item)}, {_vector(expr.row)})"
        case Dot():
            return f"dot({_vector(expr.left)}, {_vector(expr.right)})"
        case Rand():
            return f"rand({', '.join(map(render, expr.arguments))})"
        case Fold():
            return f"{expr.op.value}({render(expr.body)} for {expr.index.name} in range({render(expr.count)}))"
        case Unary():
            operand = render(expr.operand)
            if expr.op in (UnaryOp.NEG, UnaryOp.INVERT):
                return f"{expr.op.value}{_bracketed(expr.operand)}"
            if expr.op is UnaryOp.NOT:
                return f"not {_bracketed(expr.operand)}"
            return f"{expr.op.value}({operand})"
        case Binary():
            if expr.op in (BinaryOp.MIN, BinaryOp.MAX, BinaryOp.TRUNCDIV, BinaryOp.TRUNCMOD):
                return f"{expr.op.value}({render(expr.left)}, {render(expr.right)})"
            return f"{_bracketed(expr.left)} {expr.op.value} {_bracketed(expr.right)}"
        case Select():
            return f"where({render(expr.condition)}, {render(expr.then)}, {render(expr.otherwise)})"
        case Cast():
            return f"{expr.type.value}({render(expr.operand)})"


def _entry(table: str, indices: tuple[Expr, ...]) -> str:
    return f"{table}[{', '.join(map(render, indices))}]" if indices else table


def _vector(vector: Vector) -> str:
    if isinstance(vector, Row):
        return _entry(vector.input, vector.indices)
    return "query" if vector.side is Side.Q else "key"


_INFIX = frozenset(BinaryOp) - {BinaryOp.MIN, BinaryOp.MAX, BinaryOp.TRUNCDIV, BinaryOp.TRUNCMOD}
_PREFIX = frozenset({UnaryOp.NEG, UnaryOp.INVERT, UnaryOp.NOT})


def _bracketed(expr: Expr) -> str:
    operation = (
        isinstance(expr, Member)
        or (isinstance(expr, Binary) and expr.op in _INFIX)
        or (isinstance(expr, Unary) and expr.op in _PREFIX)
    )
    return f"({render(expr)})" if operation else render(expr)
