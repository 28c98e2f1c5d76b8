"""A checked mask, and the sizes at which it is read: what the checker makes and everything behind it takes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from maskc.diagnostics import Span
from maskc.expr import (
    ONE,
    SCORE,
    WEIGHT,
    AxisSize,
    Binary,
    BinaryOp,
    Count,
    Expr,
    Scalar,
    Side,
    Type,
    Word,
    conjunction,
    hash_once,
)


@dataclass(frozen=True)
class ParameterSpec:
    """A scalar of the mask, given at compile or call time. `structural`: it sizes a dim of an input."""

    name: str
    type: Type
    default: Scalar | None
    structural: bool = False
    span: Span | None = field(default=None, compare=False, repr=False)


class DimKind(Word):
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
class Values:
    """The contents of a table that the spec itself holds: a literal, or a `constant` input given at compile time."""

    shape: tuple[int, ...]
    entries: tuple[Scalar, ...]  # row-major


@dataclass(frozen=True)
class PrefixSum:
    """`cumsum`: inclusive sums of another table along one of its dims."""

    table: str
    dim: int


@hash_once
@dataclass(frozen=True)
class InputSpec:
    """A table: a tensor given at call time, unless `source` says where its contents come from.

    below: the promise `of`, entries lie in [0, below) or are -1. sorted: ascending along the last dim. constant: given
    at compile time, after which `source` holds its contents. learned: gets a gradient.
    """

    name: str
    type: Type
    dims: tuple[Dim, ...]
    below: Expr | None = None
    sorted: bool = False
    constant: bool = False
    learned: bool = False
    source: Values | PrefixSum | None = None
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Claim:
    """A statement to be checked. `over_pairs`: it must hold for every kept pair; else it is a precondition on sizes and
    parameters.
    """

    expr: Expr
    over_pairs: bool
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Part:
    """A run of positions on a line: a row-major grid of `axes`, or without axes `size` tokens. `name` is None where the
    whole line is one grid.
    """

    name: str | None
    axes: tuple[str, ...] = ()
    size: Expr | None = None

    @property
    def tokens(self) -> Expr:
        """How many positions it has."""
        if self.size is not None:
            return self.size
        product: Expr = AxisSize(Type.INT, self.axes[0])
        for axis in self.axes[1:]:
            product = Binary(Type.INT, BinaryOp.MUL, product, AxisSize(Type.INT, axis))
        return product


class Form(Word):
    """How a row of scores becomes weights."""

    SOFTMAX = "softmax"
    ROWSUM = "rowsum"
    NONE = "none"
    ENTMAX = "entmax"


@dataclass(frozen=True)
class Normalizer:
    """`normalize FORM(...)`. Everything below is FLOAT and reads the final score as `FinalScore`.

    value: of `rowsum` and `none`, the weight before the division. sink: of `softmax` a logit beside the scores of a row
    (natural logarithm), of `rowsum` what is added to the row's sum; without a value of its own. alpha: of `entmax`.
    """

    form: Form = Form.SOFTMAX
    value: Expr | None = None
    sink: Expr | None = None
    alpha: Expr | None = None
    span: Span | None = field(default=None, compare=False, repr=False)


class ReduceOp(Word):
    """How a `Reduction` joins what pairs contribute; of none: 0, 0, -inf, inf, -inf, 0."""

    SUM = "sum"
    MEAN = "mean"
    MAX = "max"
    MIN = "min"
    LOGSUMEXP = "logsumexp"
    COUNT = "count"


@dataclass(frozen=True)
class Reduction:
    """`reduce name[indices] = op(value)`: every kept pair of a row that is computed contributes `value` to one entry of
    a table [batch, head, *dims], one per attention matrix; contributions out of range are dropped. Later expressions
    read it as `Read`. MAX, MIN and COUNT carry no gradient.

    value: FLOAT; BOOL of COUNT (the pairs that are counted). output: it is returned, too.
    """

    name: str
    dims: tuple[Dim, ...]
    indices: tuple[Expr, ...]
    op: ReduceOp
    value: Expr
    output: bool = False
    span: Span | None = field(default=None, compare=False, repr=False)


class RowDefault(Word):
    """The output of a query that is not computed: 0; the mean of the values that it would see (0 of none); the value of
    the key at its own position (0 where there is none).
    """

    ZERO = "zero"
    MEAN = "mean"
    PASS = "pass"


@dataclass(frozen=True)
class Rows:
    """`rows computed else default`; a query that is not computed has lse -inf and takes part in no reduction."""

    computed: Expr
    default: RowDefault
    span: Span | None = field(default=None, compare=False, repr=False)


@hash_once
@dataclass(frozen=True)
class MaskSpec:
    """What one mask means.

    axes: names of the shared row-major grid, slowest first; empty for a line and for a line of parts.
    queries, keys: the parts of each side's line, in order; equal where they share one. Coordinates on them are written
    out in the expressions, as are positions inside `packed` documents.
    separate: each side counts its own positions.
    border: rings of virtual keys around the grid of keys. The keys of a call are the real ones and these, row-major on
    the larger grid, and expressions count them so.
    packed: the input with the first position of every document.
    clauses: the `keep`s in order; a pair is kept where all hold, none keeps every pair.
    score: the final score as an expression of `Score`; `SCORE` itself when the spec does not change it.
    mass: factor on the unnormalised weight. weight: the weight that multiplies v, affine in `Weight`.
    reductions: in order; each reads only those before it. One that reads `Weight` stands behind everything that makes
    the weight.
    """

    name: str
    parameters: tuple[ParameterSpec, ...] = ()
    axes: tuple[str, ...] = ()
    inputs: tuple[InputSpec, ...] = ()
    clauses: tuple[Expr, ...] = ()
    score: Expr = SCORE
    claims: tuple[Claim, ...] = ()
    queries: tuple[Part, ...] = ()
    keys: tuple[Part, ...] = ()
    separate: bool = False
    border: Expr | None = None
    packed: str | None = None
    mass: Expr = ONE
    normalizer: Normalizer = Normalizer()
    weight: Expr = WEIGHT
    reductions: tuple[Reduction, ...] = ()
    rows: Rows | None = None
    span: Span | None = field(default=None, compare=False, repr=False)

    @cached_property
    def predicate(self) -> Expr:
        """All clauses at once."""
        return conjunction(self.clauses)

    @cached_property
    def given(self) -> tuple[InputSpec, ...]:
        """The inputs that a call gives; the others are made from the spec or from these."""
        return tuple(i for i in self.inputs if i.source is None)

    @cached_property
    def axis_names(self) -> tuple[str, ...]:
        """Every axis that has a size, each once."""
        parts = [axis for part in (*self.queries, *self.keys) for axis in part.axes]
        return tuple(dict.fromkeys((*self.axes, *parts)))

    @cached_property
    def exprs(self) -> tuple[Expr, ...]:
        """Everything that decides the result of a call: no claims, no dims."""
        normalizer = (self.normalizer.value, self.normalizer.sink, self.normalizer.alpha)
        reductions = [e for r in self.reductions for e in (*r.indices, r.value)]
        rows = () if self.rows is None else (self.rows.computed,)
        rest = (*normalizer, *reductions, *rows)
        return (*self.clauses, self.score, self.mass, self.weight, *(e for e in rest if e is not None))

    def input(self, name: str) -> InputSpec:
        """The input of that name."""
        return next(i for i in self.inputs if i.name == name)

    def reduction(self, name: str) -> Reduction | None:
        """The reduction of that name, if it is one."""
        return next((r for r in self.reductions if r.name == name), None)

    def __str__(self) -> str:
        return "\n".join([f"mask {self.name}", *(f"  {line}" for line in _outline(self))])


def _outline(spec: MaskSpec) -> Iterator[str]:
    """The lines of a spec's text."""
    for p in spec.parameters:
        default = "" if p.default is None else f" = {p.default!r}"
        yield f"parameter {p.name}: {p.type.value}{default}{' (structural)' if p.structural else ''}"
    if spec.axes:
        yield f"axes {', '.join(spec.axes)}"
    for word, parts in (("queries", spec.queries), ("keys", spec.keys)):
        if parts:
            yield f"{word} {', '.join(map(_part, parts))}"
    if spec.separate:
        yield "separate lines"
    if spec.border is not None:
        yield f"border {spec.border}"
    if spec.packed is not None:
        yield f"packed {spec.packed}"
    yield from map(_declaration, spec.inputs)
    yield from (f"keep {c}" for c in spec.clauses)
    yield f"score {spec.score}"
    if spec.mass != ONE:
        yield f"mass {spec.mass}"
    if spec.normalizer != Normalizer():
        yield f"normalize {_normalizer(spec.normalizer)}"
    if spec.weight != WEIGHT:
        yield f"weight {spec.weight}"
    yield from map(_reduction, spec.reductions)
    if spec.rows is not None:
        yield f"rows {spec.rows.computed} else {spec.rows.default.value}"
    yield from (f"claim {c.expr} ({'pairs' if c.over_pairs else 'sizes'})" for c in spec.claims)


def _part(part: Part) -> str:
    shape = str(part.size) if part.size is not None else f"({', '.join(part.axes)})"
    return f"{part.name or 'grid'}: {shape}"


def _declaration(entry: InputSpec) -> str:
    below = "" if entry.below is None else f" below {entry.below}"
    facts = "".join(f" {word}" for word in ("sorted", "constant", "learned") if getattr(entry, word))
    match entry.source:
        case None:
            source = ""
        case Values(entries=entries):
            shown = ", ".join(map(repr, entries[:8]))
            source = f" = [{shown}{', ...' if len(entries) > 8 else ''}]"
        case PrefixSum(table=table, dim=dim):
            source = f" = cumsum({table}, dim {dim})"
    return f"input {entry.name}: {entry.type.value}[{', '.join(d.text for d in entry.dims)}]{below}{facts}{source}"


def _normalizer(normalizer: Normalizer) -> str:
    value = [] if normalizer.value is None else [str(normalizer.value)]
    named = [f"{n}={e}" for n in ("sink", "alpha") if (e := getattr(normalizer, n)) is not None]
    arguments = ", ".join([*value, *named])
    return f"{normalizer.form.value}({arguments})" if arguments else normalizer.form.value


def _reduction(reduction: Reduction) -> str:
    indices = ", ".join(map(str, reduction.indices))
    word = "output" if reduction.output else "reduce"
    return f"{word} {reduction.name}[{indices}] = {reduction.op.value}({reduction.value})"


@hash_once
@dataclass(frozen=True)
class Sizes:
    """The sizes and scalars of one call, all resolved; hashable, so that plans can be cached by it.

    q_offset and k_offset are None when they were given as a tensor int[batch]; then `inputs["q_offset"]` holds them.
    axes are in the order of `MaskSpec.axis_names`; given sizes may exceed the length (a prefix of the grid). parameters
    are in the order of `MaskSpec.parameters`. free: sizes of dims that are names of their own. k_len counts the virtual
    keys of a border, too.
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
    free: tuple[tuple[str, int], ...] = ()

    @cached_property
    def free_size(self) -> Mapping[str, int]:
        """Size of each dim that is a name of its own."""
        return dict(self.free)

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
