"""What names stand for while a mask is read: positions, axes, inputs, functions and masks, in nested scopes."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from maskc.checker.layout import NO_FACTS, Facts, Layout, Place
from maskc.diagnostics import Span
from maskc.expr import ONE, WEIGHT, Expr, Token, Type
from maskc.grammar import syntax
from maskc.spec import Claim, InputSpec, Normalizer, PrefixSum, Reduction, Rows, Values


@dataclass(frozen=True)
class AxisName:
    """An axis or a part, `size` tokens long (None where parts of that name differ).

    part: whether tokens can be `in` it. last: what the bare name means inside dims.
    """

    name: str
    size: Expr | None
    part: bool = False
    last: Expr | None = None


@dataclass(frozen=True)
class Table:
    """An input, a made table, or a reduction read like one.

    written: the indices so far; where it stands decides whether that is an entry or a row. span: of the subscript.
    """

    input: InputSpec
    reduction: bool = False
    written: tuple[Expr, ...] = ()
    span: Span | None = field(default=None, compare=False)


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


Value = Expr | Token | Place | AxisName | Table | Unknown | FunctionValue | MaskValue | LetValue


@dataclass(eq=False)
class Scope:
    """Names and what they stand for; what is not here is looked up in `parent`.

    spans: where each was defined. later: names that a line further down defines. read: those that something read.
    """

    parent: "Scope | None" = None
    names: dict[str, Value] = field(default_factory=dict)
    spans: dict[str, Span] = field(default_factory=dict)
    later: dict[str, Span] = field(default_factory=dict)
    read: set[str] = field(default_factory=set)

    def find(self, name: str) -> Value | None:
        """What a name stands for here, None if nothing."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.names:
                scope.read.add(name)
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

    layout: of the mask whose text is read; None where no mask is known (a function that nobody calls). q, k: the query
    and the key as this text sees them; facts: where they can be in what is being read. inputs, made tables among them,
    and claims belong to the mask that is compiled, also while it reads another one as a predicate.
    """

    layout: Layout | None
    q: Place
    k: Place
    facts: Facts = NO_FACTS
    inputs: dict[str, InputSpec] = field(default_factory=dict)
    claims: list[Claim] = field(default_factory=list)
    lets: dict[tuple[object, ...], Value] = field(default_factory=dict)
    statements: list[Span] = field(default_factory=list)  # of the clauses
    structural: set[str] = field(default_factory=set)
    taken: set[str] = field(default_factory=set)  # parameters and axes of the mask that is compiled
    use: Span | None = None  # where that mask uses the one whose text is read

    packed: str | None = None  # the table of the `packed` line above
    packs: bool = False  # whether there is a `packed` line, above or below what is being read
    early: set[int] = field(default_factory=set)  # lines that were read before their turn, by identity
    line: str = ""  # the word of the statement that is being read: keep, score, claim, ...
    score: Expr | None = None  # what the names mean so far; None where no mask is known
    mass: Expr = ONE
    weight: Expr = WEIGHT
    normalizer: Normalizer | None = None
    reductions: dict[str, Reduction] = field(default_factory=dict)
    finals: dict[str, Span] = field(default_factory=dict)  # reductions that stand behind the final score, and where
    rows: Rows | None = None
    free: set[str] = field(default_factory=set)  # dims that are names of their own and can be read as numbers
    made: dict[tuple[Type, Values | PrefixSum], InputSpec] = field(default_factory=dict)  # tables among the inputs

    @property
    def axes(self) -> tuple[str, ...] | None:
        """The names of the axes; None where no mask is known."""
        return None if self.layout is None else self.layout.axis_names

    @property
    def sees_final_score(self) -> bool:
        """Whether `score` is the final one in what is being read."""
        return self.line in ("mass", "normalize", "weight")
