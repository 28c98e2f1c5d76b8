"""What an engine cannot run, and which masks nobody can tell without the scores of a call.

Both answers name the part of the spec that stops it: an expression where that is written, or the line of a statement.
An engine that gets a spec which `refusal` lets through runs all of it; nothing falls back.
"""

from collections.abc import Iterator

from maskc.diagnostics import Diagnostic, MaskUnsupportedError, Span
from maskc.expr import ONE, WEIGHT, Bucket, Dot, Expr, Fold, Member, Rand, Read, Scale, Score, render, walk
from maskc.spec import MaskSpec, Normalizer, PrefixSum

KERNELS = ("triton", "interpret")
"""Engines that run generated kernels."""

_UNWRITTEN = (Member, Bucket, Rand, Fold)
"""Expressions that kernels have no text for."""

_OF_SCORES = (Score, Dot, Scale)
"""What a mask that is decided without the scores does not read."""


def refusal(spec: MaskSpec, engine: str) -> Diagnostic | None:
    """The first part of a spec that an engine cannot run; None where it runs all of it. `dense` runs everything."""
    found = _first_unrunnable(spec, engine)
    if found is None:
        return None
    text, span = found
    others = [other for other in ("tiled", "dense") if _first_unrunnable(spec, other) is None]
    hint = " and ".join(f"engine='{other}'" for other in others) + " can"
    return Diagnostic(f"engine '{engine}' cannot run '{text}' yet", span, hint=hint)


def require(spec: MaskSpec, engine: str) -> None:
    """Raises MaskUnsupportedError for a spec that an engine cannot run."""
    found = refusal(spec, engine)
    if found is not None:
        raise MaskUnsupportedError([found])


def require_mask(spec: MaskSpec) -> None:
    """Raises MaskUnsupportedError for a spec whose kept pairs depend on the scores of a call."""
    for clause in spec.clauses:
        found = _first(clause, _OF_SCORES)
        if found is not None:
            text, span = _written(found, clause)
            message = f"which pairs are kept depends on '{text}', which only a call with q and k has"
            raise MaskUnsupportedError([Diagnostic(message, span)])


def reads_scores(spec: MaskSpec) -> bool:
    """Whether the kept pairs depend on the scores of a call."""
    return any(_first(clause, _OF_SCORES) is not None for clause in spec.clauses)


def _first_unrunnable(spec: MaskSpec, engine: str) -> tuple[str, Span | None] | None:
    return None if engine == "dense" else next(_unrunnable(spec, engine), None)


def _unrunnable(spec: MaskSpec, engine: str) -> Iterator[tuple[str, Span | None]]:
    """Everything that the engine cannot run, as text and place."""
    for entry in spec.inputs:
        if entry.learned:
            yield _line(entry.span, f"input {entry.name}: {entry.type.value} learned")
    unwritten = _UNWRITTEN if engine in KERNELS else ()
    for expr, kinds in (*((clause, _OF_SCORES) for clause in spec.clauses), (spec.score, (Dot,))):
        found = _first(expr, (*kinds, *unwritten))
        if isinstance(found, Bucket) and found.row.input == spec.packed:
            yield _line(found.span, f"packed {spec.packed}")
        elif found is not None:
            yield _written(found, expr)
    if engine in KERNELS:
        yield from _prefix_sums(spec)
    yield from _statements(spec)


def _prefix_sums(spec: MaskSpec) -> Iterator[tuple[str, Span | None]]:
    """Reads of `cumsum`: a kernel's floats are too narrow for differences of long sums."""
    sums = {entry.name for entry in spec.inputs if isinstance(entry.source, PrefixSum)}
    for expr in (*spec.clauses, spec.score):
        for node in walk(expr):
            if isinstance(node, Read) and node.input in sums:
                yield _written(node, expr)


def _statements(spec: MaskSpec) -> Iterator[tuple[str, Span | None]]:
    """Lines beyond `keep` and `score`."""
    if spec.mass != ONE:
        yield _line(spec.mass.span, f"mass *= {spec.mass}")
    if spec.normalizer != Normalizer():
        yield _line(spec.normalizer.span, f"normalize {spec.normalizer.form.value}")
    if spec.weight != WEIGHT:
        yield _line(spec.weight.span, f"weight = {spec.weight}")
    for reduction in spec.reductions:
        yield _line(reduction.span, f"{'output' if reduction.output else 'reduce'} {reduction.name}")
    if spec.rows is not None:
        yield _line(spec.rows.span, f"rows {spec.rows.computed} else {spec.rows.default.value}")


def _first(expr: Expr, kinds: tuple[type, ...]) -> Expr | None:
    return next((node for node in walk(expr) if isinstance(node, kinds)), None)


def _written(node: Expr, around: Expr) -> tuple[str, Span | None]:
    """A node as it is written, and where; without a place of its own that of the expression around it."""
    if node.span is None:
        return render(node), around.span
    return " ".join(node.span.text.split()), node.span


def _line(span: Span | None, otherwise: str) -> tuple[str, Span | None]:
    """The line on which a statement begins, without its comment."""
    if span is None:
        return otherwise, None
    number, _ = span.source.position(span.start)
    start = span.source.line_starts[number - 1]
    text = span.source.line(number).partition("#")[0].rstrip()
    indent = len(text) - len(text.lstrip())
    return text[indent:], Span(span.source, start + indent, start + len(text))
