"""Expressions that the sizes and parameters of a call decide alone: their values, and what is asked of them.

Axis sizes, dims, divisors and preconditions are such expressions. Nothing here reads a tensor's data.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from maskc.diagnostics import MaskInputError
from maskc.evaluate import Pairs, evaluate
from maskc.spec import (
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
    Sizes,
    Weight,
    children,
    walk,
)

MOST_STEPS = 2**16
"""Steps of one fold. Each is work for every pair, so that more would hang rather than answer."""

_DIVISIONS = {BinaryOp.DIV, BinaryOp.FLOORDIV, BinaryOp.MOD}
_OF_PAIRS = (Position, Coordinate, Offset, Index, Kept)
_OF_TENSORS = (Read, Member, Bucket, Dot, Score, FinalScore, Weight, Scale)


def value(expr: Expr, sizes: Sizes, tables: Mapping[str, Any] | None = None) -> Scalar:
    """The value of an expression of sizes and parameters; offsets that are tensors count as 0.

    tables: those that the spec itself holds, where the expression may read them. Raises MaskInputError where it reads
    the size of a dim that no tensor has bound.
    """
    unbound = next((e.name for e in walk(expr) if isinstance(e, FreeSize) and e.name not in sizes.free_size), None)
    if unbound is not None:
        raise MaskInputError(f"the size of dim '{unbound}' is missing; it comes with an input that has this dim")
    known = replace(sizes, q_offset=sizes.q_offset or 0, k_offset=sizes.k_offset or 0)
    none = np.zeros((), np.int64)
    found: Scalar = np.asarray(evaluate(expr, Pairs(np, known, tables or {}, none, none, none, none))).item()
    return found


def is_scalar(expr: Expr) -> bool:
    """Whether sizes and parameters alone decide an expression."""
    nodes = list(walk(expr))
    own = {fold.index for fold in nodes if isinstance(fold, Fold)}
    return not any(isinstance(e, _OF_PAIRS + _OF_TENSORS) or (isinstance(e, Bound) and e not in own) for e in nodes)


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
    where a fold would take too many steps. checked: divisors and counts that were looked at before.
    """
    for node in _reached(expr, sizes):
        asked = node.count if isinstance(node, Fold) else node.right
        if asked in checked:
            continue
        checked.add(asked)
        number = value(asked, sizes)
        if isinstance(node, Fold):
            if number > MOST_STEPS:
                raise MaskInputError(
                    f"mask '{name}' would take {number} steps in '{written(node)}'{because(asked, sizes)}; "
                    f"expected at most {MOST_STEPS}"
                )
        elif not number:
            raise MaskInputError(f"mask '{name}' divides by zero in '{written(node)}'{because(asked, sizes)}")


def _reached(expr: Expr, sizes: Sizes) -> Iterator[Binary | Fold]:
    """Folds, and divisions by something that the call alone decides, but for those in branches never taken; each
    behind what it is made of, so that nothing is evaluated before it was looked at.
    """
    match expr:
        case Select() if is_scalar(expr.condition):
            yield from _reached(expr.condition, sizes)
            yield from _reached(expr.then if value(expr.condition, sizes) else expr.otherwise, sizes)
            return
        case Binary(op=BinaryOp.AND | BinaryOp.OR) if is_scalar(expr.left):
            yield from _reached(expr.left, sizes)
            if bool(value(expr.left, sizes)) == (expr.op is BinaryOp.AND):
                yield from _reached(expr.right, sizes)
            return
        case Fold():
            yield from _reached(expr.count, sizes)
            yield expr
            if value(expr.count, sizes) > 0:
                yield from _reached(expr.body, sizes)
            return
        case _:
            pass
    for child in children(expr):
        yield from _reached(child, sizes)
    if isinstance(expr, Binary) and expr.op in _DIVISIONS and is_scalar(expr.right):
        yield expr
