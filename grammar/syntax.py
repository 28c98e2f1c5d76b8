"""What was written: the syntax tree of a mask file, every node with its span (outside equality). Nothing is resolved or
typed.

Operators are kept as they are spelled. Brackets are nodes of their own, because some warnings are about their absence.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields

from maskc.diagnostics import Source, Span


@dataclass(frozen=True)
class Node:
    """Anything with a place in the text."""

    span: Span = field(compare=False, repr=False, kw_only=True)


@dataclass(frozen=True)
class Name(Node):
    """A name."""

    text: str


@dataclass(frozen=True)
class Integer(Node):
    """An integer of at most 64 bits."""

    value: int


@dataclass(frozen=True)
class Float(Node):
    """A finite float."""

    value: float


@dataclass(frozen=True)
class Boolean(Node):
    """`True` or `False`."""

    value: bool


@dataclass(frozen=True)
class Bracketed(Node):
    """`(expression)`."""

    inner: "Expression"


@dataclass(frozen=True)
class Tuple(Node):
    """`(a, b)`, also of one or no item."""

    items: "tuple[Expression, ...]"


@dataclass(frozen=True)
class List(Node):
    """`[a, b]`."""

    items: "tuple[Expression, ...]"


@dataclass(frozen=True)
class Attribute(Node):
    """`owner.name`."""

    owner: "Expression"
    name: Name


@dataclass(frozen=True)
class Subscript(Node):
    """`table[index, ...]`."""

    table: "Expression"
    indices: "tuple[Expression, ...]"


@dataclass(frozen=True)
class Argument(Node):
    """An argument of a call; `name` where it is given by keyword."""

    name: Name | None
    value: "Expression"


@dataclass(frozen=True)
class Comprehension(Node):
    """`expression for name in range`, as the argument of a call."""

    element: "Expression"
    name: Name
    iterable: "Expression"


@dataclass(frozen=True)
class Call(Node):
    """`function(argument, ...)`."""

    function: "Expression"
    arguments: tuple[Argument | Comprehension, ...]


@dataclass(frozen=True)
class Unary(Node):
    """`-a`, `+a`, `~a`, `not a`."""

    operator: str
    operand: "Expression"


@dataclass(frozen=True)
class Binary(Node):
    """`a + b` and the like."""

    operator: str
    left: "Expression"
    right: "Expression"


@dataclass(frozen=True)
class Comparator(Node):
    """One of `< <= > >= == !=`, `in`, `not in`."""

    text: str


@dataclass(frozen=True)
class Comparison(Node):
    """`a < b <= c`: one comparator fewer than operands."""

    operands: "tuple[Expression, ...]"
    comparators: tuple[Comparator, ...]


@dataclass(frozen=True)
class BooleanOperation(Node):
    """`a and b and c`, or the same with `or`."""

    operator: str
    operands: "tuple[Expression, ...]"


@dataclass(frozen=True)
class Conditional(Node):
    """`then if condition else otherwise`."""

    condition: "Expression"
    then: "Expression"
    otherwise: "Expression"


@dataclass(frozen=True)
class Unreadable(Node):
    """Stands for what a diagnosis already spoke about."""


Expression = (
    Name
    | Integer
    | Float
    | Boolean
    | Bracketed
    | Tuple
    | List
    | Attribute
    | Subscript
    | Call
    | Unary
    | Binary
    | Comparison
    | BooleanOperation
    | Conditional
    | Unreadable
)


@dataclass(frozen=True)
class Axis(Node):
    """A name of an `axes` line; `part` where something follows it behind a colon."""

    name: Name
    part: Expression | None


@dataclass(frozen=True)
class Axes(Node):
    """`axes y, x`, `queries y, x` or `keys y, x`; `border` where one is given."""

    word: str
    axes: tuple[Axis, ...]
    border: Expression | None


@dataclass(frozen=True)
class Packed(Node):
    """`packed name`."""

    name: Name


@dataclass(frozen=True)
class Fact(Node):
    """`of EXPRESSION`, `sorted`, `constant` or `learned` behind an input."""

    word: str
    value: Expression | None


@dataclass(frozen=True)
class Input(Node):
    """`input name: type[dims] facts`; `type` is None where the line could not be read."""

    name: Name
    type: Name | None
    dims: tuple[Expression, ...]
    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class Let(Node):
    """`let name = value`."""

    name: Name
    value: Expression


@dataclass(frozen=True)
class Keep(Node):
    """`keep expression`."""

    value: Expression


@dataclass(frozen=True)
class Score(Node):
    """`score = value`, `score += value`; `operator` is the arithmetic operator, None for a plain `=`."""

    operator: str | None
    value: Expression


@dataclass(frozen=True)
class Mass(Node):
    """`mass *= value`; `operator` as in `Score`."""

    operator: str | None
    value: Expression


@dataclass(frozen=True)
class Normalize(Node):
    """`normalize softmax`, `normalize none(expression)`."""

    value: Expression


@dataclass(frozen=True)
class Weight(Node):
    """`weight *= value`; `operator` as in `Score`."""

    operator: str | None
    value: Expression


@dataclass(frozen=True)
class Slot(Node):
    """An index of a `reduce` line; `size` where it is given behind a colon."""

    index: Expression
    size: Expression | None


@dataclass(frozen=True)
class Reduce(Node):
    """`reduce name[indices] = value`; `output name[indices] = value`."""

    name: Name
    slots: tuple[Slot, ...]
    value: Expression
    output: bool


@dataclass(frozen=True)
class Rows(Node):
    """`rows expression else default`."""

    value: Expression
    default: Name


@dataclass(frozen=True)
class Claim(Node):
    """`claim expression`."""

    value: Expression


@dataclass(frozen=True)
class Pass(Node):
    """`pass`."""


@dataclass(frozen=True)
class Return(Node):
    """`return expression`."""

    value: Expression


@dataclass(frozen=True)
class Parameter(Node):
    """`name: type = default`."""

    name: Name
    type: Name | None
    default: Expression | None


@dataclass(frozen=True)
class Function(Node):
    """`def name(parameters):` and its body; `readable` is False where the head could not be read."""

    name: Name
    parameters: tuple[Name, ...]
    body: "tuple[Statement, ...]"
    readable: bool = True


@dataclass(frozen=True)
class Mask(Node):
    """`mask name(parameters):` and its body; `readable` is False where the head could not be read."""

    name: Name
    parameters: tuple[Parameter, ...]
    body: "tuple[Statement, ...]"
    readable: bool = True


Statement = (
    Axes
    | Packed
    | Input
    | Let
    | Keep
    | Score
    | Mass
    | Normalize
    | Weight
    | Reduce
    | Rows
    | Claim
    | Pass
    | Return
    | Function
)


@dataclass(frozen=True)
class File:
    """A whole file: masks, functions and lets in the order in which they stand."""

    source: Source
    items: tuple[Mask | Function | Let, ...]

    def __str__(self) -> str:
        return "\n".join([f"File {self.source.name}", *(line for item in self.items for line in _outline(item, 1))])


def _outline(node: Node, depth: int, role: str = "") -> Iterator[str]:
    """A line for a node with the fields that are plain values, then its children, one step further in; no spans."""
    everything = {f.name: getattr(node, f.name) for f in fields(node)}
    values = {name: value for name, value in everything.items() if not isinstance(value, Span | None)}
    children = {name: value for name, value in values.items() if isinstance(value, Node | tuple)}
    plain = "".join(f" {name}={value!r}" for name, value in values.items() if name not in children)
    yield f"{'  ' * depth}{role}{type(node).__name__}{plain}"
    for name, value in children.items():
        for child in value if isinstance(value, tuple) else (value,):
            yield from _outline(child, depth + 1, f"{name}: ")


def names(node: Node) -> Iterator[Name]:
    """Every name that is read in an expression, `y` of `y.size` among them, `size` not."""
    pending = [node]
    while pending:
        match pending.pop():
            case Name() as name:
                yield name
            case Attribute(owner=owner):
                pending.append(owner)
            case Argument(value=value):
                pending.append(value)
            case other:
                for entry in fields(other):
                    value = getattr(other, entry.name)
                    pending += [v for v in (value if isinstance(value, tuple) else (value,)) if isinstance(v, Node)]
