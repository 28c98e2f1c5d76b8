"""Expressions that the sizes and parameters of a call decide alone: their values, and what is asked of them.

Axis sizes, dims, divisors and preconditions are such expressions. Nothing here reads a tensor's data.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from maskc.diagnostics import MaskInputError
from maskc.evaluate import Pairs, evaluate
from maskc.expr import (
    AxisSize,
    Binary,
    BinaryOp,
    Bound,
    Bucket,
    Coordinate,
    Dot,
    Expr,
    FinalScore,
    Fold,
    FreeSize,
    Index,
    Kept,
    Length,
    Member,
    Offset,
    Parameter,
    Position,
    Read,
    Scalar,
    Scale,
    Score,
    Select,
    Weight,
    children,
    walk,
)
from maskc.spec import Sizes

ROUNDS_LIMIT = 65_536
"""Rounds of nested folds. Each is work for every pair, so that more would hang rather than answer."""

_DIVISIONS = {BinaryOp.DIV, BinaryOp.FLOORDIV, BinaryOp.MOD}
_OF_PAIRS = frozenset({Position, Coordinate, Offset, Index, Kept})
_OF_TENSORS = frozenset({Read, Member, Bucket, Dot, Score, FinalScore, Weight, Scale})


def value(expr: Expr, sizes: Sizes) -> Scalar:
    """The value of an expression of sizes and parameters; offsets that are tensors count as 0.

    Raises MaskInputError where it reads the size of a dim that no tensor has bound.
    """
    unbound = next((e.name for e in walk(expr) if isinstance(e, FreeSize) and e.name not in sizes.free_size), None)
    if unbound is not None:
        raise MaskInputError(f"the size of dim '{unbound}' is missing; it comes with an input that has this dim")
    known = replace(sizes, q_offset=sizes.q_offset or 0, k_offset=sizes.k_offset or 0)
    none = np.zeros((), np.int64)
    found: Scalar = np.asarray(evaluate(expr, Pairs(np, known, {}, none, none, none, none))).item()
    return found


def is_scalar(expr: Expr) -> bool:
    """Whether sizes and parameters alone decide an expression."""
    if not expr.kinds.isdisjoint(_OF_PAIRS | _OF_TENSORS):
        return False
    if Bound not in expr.kinds:
        return True
    own = {fold.index for fold in walk(expr) if isinstance(fold, Fold)}
    return all(e in own for e in walk(expr) if isinstance(e, Bound))


def because(expr: Expr, sizes: Sizes) -> str:
    """The values that an expression reads: ` (window=0, x.size=7)`."""
    values: dict[str, object] = {}
    for node in walk(expr):
        match node:
            case Parameter():
                values[node.name] = sizes.parameter[node.name]
            case AxisSize():
                values[f"{node.axis}.size"] = sizes.axis[node.axis]
            case FreeSize():
                values[node.name] = sizes.free_size[node.name]
            case Length():
                values[f"{node.side.value}_len"] = sizes.length(node.side)
            case Offset() if sizes.offset(node.side) not in (None, 0):
                values[f"{node.side.value}_offset"] = sizes.offset(node.side)
            case _:
                pass
    return f" ({', '.join(f'{name}={value}' for name, value in values.items())})" if values else ""


def written(expr: Expr) -> str:
    """An expression as the spec writes it, on one line."""
    return str(expr) if expr.span is None else " ".join(expr.span.text.split())


def check_scalars(name: str, expr: Expr, sizes: Sizes, checked: set[Expr]) -> None:
    """Raises MaskInputError where an expression of the mask `name` divides by a zero that the call alone decides, or
    where its folds would never end. checked: divisors that were looked at before.
    """
    _rounds(name, expr, sizes)
    for division in _divisions(expr, sizes):
        if division.right in checked:
            continue
        checked.add(division.right)
        if not value(division.right, sizes):
            raise MaskInputError(
                f"mask '{name}' divides by zero in '{written(division)}'{because(division.right, sizes)}"
            )


def _rounds(name: str, expr: Expr, sizes: Sizes) -> int:
    """How often the innermost fold of an expression is evaluated."""
    if Fold not in expr.kinds:
        return 1
    below = max((_rounds(name, child, sizes) for child in children(expr)), default=1)
    if isinstance(expr, Fold):
        below *= max(int(value(expr.count, sizes)), 1)
        if below > ROUNDS_LIMIT:
            raise MaskInputError(
                f"'{written(expr)}' of mask '{name}' is evaluated {below:,} times for every pair"
                f"{because(expr.count, sizes)}; at most {ROUNDS_LIMIT:,} are possible"
            )
    return below


def _divisions(expr: Expr, sizes: Sizes) -> Iterator[Binary]:
    """Divisions by something that the call alone decides, but for those in branches that it never takes."""
    match expr:
        case Select() if is_scalar(expr.condition):
            yield from _divisions(expr.condition, sizes)
            yield from _divisions(expr.then if value(expr.condition, sizes) else expr.otherwise, sizes)
            return
        case Binary(op=BinaryOp.AND | BinaryOp.OR) if is_scalar(expr.left):
            yield from _divisions(expr.left, sizes)
            if bool(value(expr.left, sizes)) == (expr.op is BinaryOp.AND):
                yield from _divisions(expr.right, sizes)
            return
        case Fold():
            yield from _divisions(expr.count, sizes)
            if value(expr.count, sizes) > 0:
                yield from _divisions(expr.body, sizes)
            return
        case _:
            pass
    for child in children(expr):
        yield from _divisions(child, sizes)
    if isinstance(expr, Binary) and expr.op in _DIVISIONS and is_scalar(expr.right):
        yield expr
