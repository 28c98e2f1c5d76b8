"""Bounded folds, `any/all/sum(E for i in range(start, stop, step))`, from typed parts.

The index of a `Fold` counts from 0, so that every range is one of its length alone.
"""

from collections.abc import Collection, Sequence

from maskc.checker import typed
from maskc.checker.typed import OperandError
from maskc.diagnostics import Span
from maskc.expr import (
    AxisSize,
    Binary,
    BinaryOp,
    Bound,
    Cast,
    Expr,
    Fold,
    FoldOp,
    FreeSize,
    Length,
    Literal,
    Parameter,
    Select,
    Total,
    Type,
    Unary,
    children,
    rebuild,
    walk,
)

ROUNDS_LIMIT = 65_536
_STEADY = Literal | Parameter | Length | AxisSize | Total | FreeSize | Unary | Binary | Select | Cast


def bounds(parts: Sequence[Expr], span: Span | None) -> tuple[Expr, Expr, Expr]:
    """Start, stop and step of `range(...)` with one to three parts, as ints."""
    if not 1 <= len(parts) <= 3:
        raise OperandError(f"'range' takes 1 to 3 arguments; {len(parts)} given", span)
    for part in parts:
        if part.type is Type.FLOAT:
            raise OperandError("a range holds ints; this is a float", part.span)
    start = parts[0] if len(parts) > 1 else typed.integer(0, span)
    stop = parts[1] if len(parts) > 1 else parts[0]
    step = parts[2] if len(parts) > 2 else typed.integer(1, span)
    if isinstance(step, Literal) and step.value == 0:
        raise OperandError("the step of a range cannot be 0", step.span)
    return typed.cast(start, Type.INT), typed.cast(stop, Type.INT), typed.cast(step, Type.INT)


def in_range(item: Expr, parts: Sequence[Expr], where: Span, span: Span | None) -> Expr:
    """Python's `item in range(...)`; where: the place of the range."""
    start, stop, step = bounds(parts, where)
    if item.type is Type.FLOAT:
        raise OperandError("a range holds ints; this is a float", item.span)
    return typed.within(item, start, stop, step, span)


def steady(part: Expr) -> Expr:
    """A part of the range of a fold, which has as many steps for every pair."""
    varying = next((e for e in walk(part) if not isinstance(e, _STEADY)), None)
    if varying is not None:
        outer = isinstance(varying, Bound)
        hint = "run over the longest range and add a condition, for example '... and i < n'"
        message = "the range of an inner fold cannot depend on an outer one" if outer else _VARYING
        raise OperandError(message, part.span, hint)
    return part


_VARYING = "the range of a fold is made of numbers, parameters and sizes; this differs between pairs"


def rounds(start: Expr, stop: Expr, step: Expr, span: Span | None) -> Expr:
    """How many numbers a range holds; not above 0 where it is empty. A step of 0 gives none."""
    length = typed.arithmetic(BinaryOp.SUB, stop, start, span) if start != typed.integer(0) else stop
    if step == typed.integer(1):
        return length
    downwards = typed.minus(length, span)
    return typed.minus(typed.arithmetic(BinaryOp.FLOORDIV, downwards, step, span), span)  # rounds up


def value(start: Expr, step: Expr, index: Expr, span: Span | None) -> Expr:
    """The number of a range at an index."""
    offset = index if step == typed.integer(1) else typed.arithmetic(BinaryOp.MUL, index, step, span)
    return offset if start == typed.integer(0) else typed.arithmetic(BinaryOp.ADD, start, offset, span)


def fold(op: FoldOp, index: Bound, count: Expr, body: Expr, around: Collection[str], span: Span | None) -> Expr:
    """`op(body for index in range(count))`. around: the names of the folds around it."""
    if op is FoldOp.SUM:
        body = typed.cast(body, Type.INT) if body.type is Type.BOOL else body
    else:
        typed.boolean(body, f"'{op.value}' takes booleans", body.span)
    inner = {e.index.name for e in walk(body) if isinstance(e, Fold)}
    if index.name in inner:  # of a fold that was read before this one, so that it knew nothing of its name
        renamed = unique(index.name, inner | set(around))
        body = _renamed(body, index.name, renamed)
        index = Bound(Type.INT, renamed, span=index.span)
    made = Fold(body.type, op, index, count, body, span=span)
    total = _rounds(made)
    if total > ROUNDS_LIMIT:
        message = f"this is evaluated {total:,} times for every pair; at most {ROUNDS_LIMIT:,} are possible"
        raise OperandError(message, span)
    return made


def unique(name: str, taken: Collection[str]) -> str:
    """The name, or one like it that is not taken."""
    if name not in taken:
        return name
    return next(n for number in range(2, len(taken) + 3) if (n := f"{name}_{number}") not in taken)


def _renamed(expr: Expr, name: str, other: str) -> Expr:
    """An expression with a bound index under another name; folds that bind the name themselves stay as they are."""
    if isinstance(expr, Bound):
        return Bound(expr.type, other, span=expr.span) if expr.name == name else expr
    if isinstance(expr, Fold) and expr.index.name == name:
        return expr
    return rebuild(expr, lambda child: _renamed(child, name, other))


def _rounds(expr: Expr) -> int:
    """How often the innermost fold of an expression is evaluated, as far as its counts are numbers."""
    below = max((_rounds(child) for child in children(expr)), default=1)
    match expr:
        case Fold(count=Literal(value=count)):
            return below * max(int(count), 1)
        case _:
            return below
