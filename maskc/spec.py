"""A checked mask: typed expressions over query and key positions, and the sizes at which they are read.

The checker makes a `MaskSpec`; everything behind it (numbers, truth over boxes, derivatives, torch, Triton) is a
reading of `Expr`. Each reading is one function with one `match` that ends in `assert_never`, so that a new node gives a
list of places. Names are resolved, functions and lets are inlined, and every implicit conversion is a `Cast`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from typing import Any, TypeVar

from maskc.diagnostics import Span

Scalar = bool | int | float


class Type(Enum):
    """Type of an expression, an input's entries or a parameter. Integers have 64 bits."""

    BOOL = "bool"
    INT = "int"
    FLOAT = "float"


class Side(Enum):
    """Which end of a pair."""

    Q = "q"
    K = "k"


class Count(Enum):
    """An index that is the same for every pair of one attention matrix, or the number of its values."""

    BATCH = "batch"
    HEAD = "head"
    KV_HEAD = "kv_head"


class UnaryOp(Enum):
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


class BinaryOp(Enum):
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


def _hash_once(cls: type[_T]) -> type[_T]:
    """Lets objects remember their hash, which walks all that they hold: specs and expressions are keys of caches."""
    compute: Callable[[Any], int] = cls.__hash__

    def once(self: Any) -> int:
        known: int | None = self.__dict__.get("_hash")
        if known is None:
            known = self.__dict__["_hash"] = compute(self)
        return known

    def portable(self: Any) -> dict[str, object]:
        # Strings hash differently in every process.
        return {name: value for name, value in self.__dict__.items() if name != "_hash"}

    for name, method in (("__hash__", once), ("__getstate__", portable)):
        setattr(cls, name, method)
    return cls


@dataclass(frozen=True)
class Node:
    """What every expression node has: a type and the place in the user's text that it came from (outside equality)."""

    type: Type
    span: Span | None = field(default=None, compare=False, repr=False, kw_only=True)

    def __str__(self) -> str:
        return render(self)  # type: ignore[arg-type]

    @cached_property
    def size(self) -> int:
        """Number of nodes when every shared part is written out."""
        below: list[int] = [child.size for child in children(self)]  # type: ignore[arg-type]
        return 1 + sum(below)

    @cached_property
    def depth(self) -> int:
        """Number of nodes on the longest way down."""
        below: list[int] = [child.depth for child in children(self)]  # type: ignore[arg-type]
        return 1 + max(below, default=0)


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


@_hash_once
@dataclass(frozen=True)
class Read(Node):
    """One entry of an input; as many indices as the input has dims, `batch` and `head` filled in. Out of range: 0 or
    False.
    """

    input: str
    indices: tuple["Expr", ...]


@dataclass(frozen=True)
class Score(Node):
    """The score that the pair starts with: scale * (query . key) (FLOAT). Occurs in `MaskSpec.score` only."""


@_hash_once
@dataclass(frozen=True)
class Unary(Node):
    """`op operand`."""

    op: UnaryOp
    operand: "Expr"


@_hash_once
@dataclass(frozen=True)
class Binary(Node):
    """`left op right`. The untaken right side of `and` and `or` is not evaluated."""

    op: BinaryOp
    left: "Expr"
    right: "Expr"


@_hash_once
@dataclass(frozen=True)
class Select(Node):
    """`then if condition else otherwise`; the branch not taken is never evaluated, for values or gradients."""

    condition: "Expr"
    then: "Expr"
    otherwise: "Expr"


@_hash_once
@dataclass(frozen=True)
class Cast(Node):
    """BOOL to INT (0 or 1) or INT to FLOAT."""

    operand: "Expr"


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
    | Read
    | Score
    | Unary
    | Binary
    | Select
    | Cast
)

TRUE = Literal(Type.BOOL, True)
FALSE = Literal(Type.BOOL, False)
SCORE = Score(Type.FLOAT)


def children(expr: Expr) -> tuple[Expr, ...]:
    """The operands of a node, in the order in which they are written."""
    match expr:
        case Unary() | Cast():
            return (expr.operand,)
        case Binary():
            return (expr.left, expr.right)
        case Select():
            return (expr.condition, expr.then, expr.otherwise)
        case Read():
            return expr.indices
        case _:
            return ()


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
        case _:
            raise AssertionError("a leaf has no operands that could change")


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
        case Score():
            return "score"
        case Read():
            return f"{expr.input}[{', '.join(map(render, expr.indices))}]" if expr.indices else expr.input
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


_INFIX = frozenset(BinaryOp) - {BinaryOp.MIN, BinaryOp.MAX, BinaryOp.TRUNCDIV, BinaryOp.TRUNCMOD}
_PREFIX = frozenset({UnaryOp.NEG, UnaryOp.INVERT, UnaryOp.NOT})


def _bracketed(expr: Expr) -> str:
    operation = (isinstance(expr, Binary) and expr.op in _INFIX) or (isinstance(expr, Unary) and expr.op in _PREFIX)
    return f"({render(expr)})" if operation else render(expr)


@dataclass(frozen=True)
class ParameterSpec:
    """A scalar of the mask, given at compile or call time. `structural`: it sizes a dim of an input."""

    name: str
    type: Type
    default: Scalar | None
    structural: bool = False
    span: Span | None = field(default=None, compare=False, repr=False)


class DimKind(Enum):
    """How the extent of an input's dim follows from the call."""

    BATCH = "batch"
    HEAD = "head"
    KV_HEAD = "kv_head"
    SEQ = "seq"  # the whole shared line: every position that a query or key of the call can have
    EXTENT = "extent"  # `Dim.extent`, an expression of sizes and parameters
    FREE = "free"  # a name; bound by the first tensor that has it


@dataclass(frozen=True)
class Dim:
    """One dim of an input. `text` is how the spec writes it."""

    kind: DimKind
    text: str
    extent: Expr | None = None


@dataclass(frozen=True)
class InputSpec:
    """A tensor given at call time. `below`: the promise `of`, entries lie in [0, below) or are -1. `sorted`: ascending
    along the last dim.
    """

    name: str
    type: Type
    dims: tuple[Dim, ...]
    below: Expr | None = None
    sorted: bool = False
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Claim:
    """A statement to be checked. `over_pairs`: it must hold for every kept pair; else it is a precondition on sizes and
    parameters.
    """

    expr: Expr
    over_pairs: bool
    span: Span | None = field(default=None, compare=False, repr=False)


@_hash_once
@dataclass(frozen=True)
class MaskSpec:
    """What one mask means.

    axes: names of the shared row-major grid, slowest first; empty for a line.
    clauses: the `keep`s in order; a pair is kept where all hold, none keeps every pair.
    score: the final score as an expression of `Score`; `SCORE` itself when the spec does not change it.
    """

    name: str
    parameters: tuple[ParameterSpec, ...] = ()
    axes: tuple[str, ...] = ()
    inputs: tuple[InputSpec, ...] = ()
    clauses: tuple[Expr, ...] = ()
    score: Expr = SCORE
    claims: tuple[Claim, ...] = ()
    span: Span | None = field(default=None, compare=False, repr=False)

    @cached_property
    def predicate(self) -> Expr:
        """All clauses at once."""
        return conjunction(self.clauses)

    def input(self, name: str) -> InputSpec:
        """The input of that name."""
        return next(i for i in self.inputs if i.name == name)

    def __str__(self) -> str:
        lines = [f"mask {self.name}"]
        for p in self.parameters:
            default = "" if p.default is None else f" = {p.default!r}"
            lines.append(f"  parameter {p.name}: {p.type.value}{default}{' (structural)' if p.structural else ''}")
        if self.axes:
            lines.append(f"  axes {', '.join(self.axes)}")
        for i in self.inputs:
            below = "" if i.below is None else f" below {i.below}"
            dims = ", ".join(d.text for d in i.dims)
            lines.append(f"  input {i.name}: {i.type.value}[{dims}]{below}{' sorted' if i.sorted else ''}")
        lines += [f"  keep {c}" for c in self.clauses]
        lines.append(f"  score {self.score}")
        lines += [f"  claim {c.expr} ({'pairs' if c.over_pairs else 'sizes'})" for c in self.claims]
        return "\n".join(lines)


@_hash_once
@dataclass(frozen=True)
class Sizes:
    """The sizes and scalars of one call, all resolved; hashable, so that plans can be cached by it.

    q_offset and k_offset are None when they were given as a tensor int[batch]; then `inputs["q_offset"]` holds them.
    axes are in the order of `MaskSpec.axes`; given sizes may exceed the length (a prefix of the grid). parameters are
    in the order of `MaskSpec.parameters`.
    """

    q_len: int
    k_len: int
    batch: int = 1
    heads: int = 1
    kv_heads: int = 1
    q_offset: int | None = 0
    k_offset: int | None = 0
    axes: tuple[tuple[str, int], ...] = ()
    parameters: tuple[tuple[str, Scalar], ...] = ()

    @cached_property
    def axis(self) -> Mapping[str, int]:
        """Size of each axis by name."""
        return dict(self.axes)

    @cached_property
    def parameter(self) -> Mapping[str, Scalar]:
        """Value of each parameter by name."""
        return dict(self.parameters)

    def length(self, side: Side) -> int:
        """Number of queries or keys."""
        return self.q_len if side is Side.Q else self.k_len

    def offset(self, side: Side) -> int | None:
        """`q_offset` or `k_offset`."""
        return self.q_offset if side is Side.Q else self.k_offset

    def total(self, count: Count) -> int:
        """Number of batch rows, query heads or KV heads."""
        return {Count.BATCH: self.batch, Count.HEAD: self.heads, Count.KV_HEAD: self.kv_heads}[count]
