"""What an engine cannot run, and which masks nobody can tell without the scores of a call.

Both answers name the part of the spec that stops it: an expression where that is written, or the line of a statement.
An engine that gets a spec which `refusal` lets through runs all of it; nothing falls back.
"""

from collections.abc import Iterator

from maskc.constants import steps_of
from maskc.diagnostics import Diagnostic, MaskUnsupportedError, Span
from maskc.expr import ONE, WEIGHT, Bucket, Dot, Expr, Fold, Member, Read, Row, Scale, Score, children, render, walk
from maskc.spec import MaskSpec, Normalizer, PrefixSum

KERNELS = ("triton", "interpret")
"""Engines that run generated kernels."""

STEPS_WRITTEN = 64
"""Steps of nested folds that kernels write out."""

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
    for expr, kinds in (*((clause, _OF_SCORES) for clause in spec.clauses), (spec.score, (Dot,))):
        found = _first(expr, kinds)
        if found is not None:
            yield _written(found, expr)
        if engine in KERNELS:
            yield from (_written(fold, expr) for fold in walk(expr) if isinstance(fold, Fold) and _is_long(fold))
    if engine in KERNELS:
        yield from _prefix_sums(spec)
    yield from _statements(spec)


def _is_long(fold: Fold) -> bool:
    """Whether a fold, with those inside it, has more steps than kernels write out, or as many as a call says."""
    steps = _steps(fold)
    return steps is None or steps > STEPS_WRITTEN


def _steps(expr: Expr) -> int | None:
    """How often the innermost fold of an expression is evaluated; None where that differs between calls."""
    below = [_steps(child) for child in children(expr)] if Fold in expr.kinds else []
    own = steps_of(expr) if isinstance(expr, Fold) else 1
    if own is None or None in below:
        return None
    return own * max((steps for steps in below if steps is not None), default=1)


def _prefix_sums(spec: MaskSpec) -> Iterator[tuple[str, Span | None]]:
    """Entries and rows of `cumsum`: a kernel's floats are too narrow for differences of long sums."""
    sums = {entry.name for entry in spec.inputs if isinstance(entry.source, PrefixSum)}
    for expr in (*spec.clauses, spec.score):
        for node in walk(expr):
            match node:
                case Read(input=table) | Member(row=Row(input=table)) | Bucket(row=Row(input=table)) if table in sums:
                    yield _written(node, expr)
                case _:
                    pass


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
