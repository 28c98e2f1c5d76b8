"""What names stand for while a mask is read: positions, axes, inputs, functions and masks, in nested scopes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from maskc import typed
from maskc.diagnostics import Span
from maskc.grammar import syntax
from maskc.spec import AxisSize, BinaryOp, Claim, Coordinate, Expr, InputSpec, Position, Side, Type


@dataclass(frozen=True)
class Place:
    """A position that may be passed on: its number on the line, and its coordinates by axis."""

    line: Expr
    coordinates: Mapping[str, Expr] = field(default_factory=dict)


@dataclass(frozen=True)
class AxisName:
    """An axis; `y.size` is all that can be asked of it. last: what the bare name means inside dims."""

    name: str
    last: Expr | None = None


@dataclass(frozen=True)
class Table:
    """An input."""

    input: InputSpec


@dataclass(frozen=True)
class Unknown:
    """What a mistake reported elsewhere left behind."""


@dataclass(frozen=True, eq=False)
class FunctionValue:
    """A `def` and the scope in which its body is read."""

    node: syntax.Function
    scope: "Scope"


@dataclass(frozen=True, eq=False)
class MaskValue:
    """A mask of this file or of the library."""

    node: syntax.Mask
    scope: "Scope"


@dataclass(frozen=True, eq=False)
class LetValue:
    """A `let` at file level, read anew in every mask that uses it."""

    node: syntax.Let
    scope: "Scope"


Value = Expr | Place | AxisName | Table | Unknown | FunctionValue | MaskValue | LetValue


@dataclass(eq=False)
class Scope:
    """Names and what they stand for; what is not here is looked up in `parent`.

    spans: where each was defined. later: names that a line further down defines.
    """

    parent: "Scope | None" = None
    names: dict[str, Value] = field(default_factory=dict)
    spans: dict[str, Span] = field(default_factory=dict)
    later: dict[str, Span] = field(default_factory=dict)

    def find(self, name: str) -> Value | None:
        """What a name stands for here, None if nothing."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.names:
                return scope.names[name]
            if name in scope.later:
                return None  # not the meaning that it has further out
            scope = scope.parent
        return None

    def defined_later(self, name: str) -> Span | None:
        """Where a name that cannot be found yet will be defined."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.later:
                return scope.later[name]
            scope = scope.parent
        return None

    def visible(self) -> Iterator[str]:
        """All names that can be found here."""
        scope: Scope | None = self
        while scope is not None:
            yield from scope.names
            scope = scope.parent


@dataclass(eq=False)
class Reading:
    """The mask in which expressions are read: its index space, and what becomes part of the spec.

    axes: of the mask whose text is read; None where no mask is known (a function that nobody calls). inputs and claims
    belong to the mask that is compiled, also while it reads another one as a predicate.
    """

    axes: tuple[str, ...] | None
    q: Place
    k: Place
    inputs: dict[str, InputSpec] = field(default_factory=dict)
    claims: list[Claim] = field(default_factory=list)
    score: Expr | None = None
    lets: dict[int, Value] = field(default_factory=dict)
    statements: list[Span] = field(default_factory=list)  # of the clauses
    structural: set[str] = field(default_factory=set)
    taken: set[str] = field(default_factory=set)  # parameters and axes of the mask that is compiled
    use: Span | None = None  # where that mask uses the one whose text is read


def place(side: Side, axes: tuple[str, ...]) -> Place:
    """The position of the query or key on a grid of `axes`, or on a line where there are none."""
    return Place(Position(Type.INT, side), {a: Coordinate(Type.INT, side, a) for a in axes})


def on_axes(given: Place, axes: tuple[str, ...], all_axes: tuple[str, ...]) -> Place:
    """A position on a grid of `all_axes` as a mask of fewer axes sees it: its number is row-major on those.

    A mask without axes sees the number on the whole grid.
    """
    if not axes or axes == all_axes:
        return given
    line = given.coordinates[axes[0]]
    for axis in axes[1:]:
        line = typed.arithmetic(BinaryOp.MUL, line, AxisSize(Type.INT, axis), None)
        line = typed.arithmetic(BinaryOp.ADD, line, given.coordinates[axis], None)
    return Place(line, {a: given.coordinates[a] for a in axes})
