"""Whether an expression stays the same when queries and keys move on together by a fixed number of positions.

Then tiles that are shifted copies of each other share one mask: windows, diagonals and strided patterns at any step,
block patterns at multiples of the block, grids at multiples of a row.
"""

import math
from typing import assert_never

from maskc.spec import (
    COMPARISONS,
    AxisSize,
    Binary,
    BinaryOp,
    Cast,
    Coordinate,
    Expr,
    Index,
    Length,
    Literal,
    Offset,
    Parameter,
    Position,
    Read,
    Score,
    Select,
    Sizes,
    Total,
    Type,
    Unary,
    UnaryOp,
)


def unchanged(expr: Expr, sizes: Sizes, step: int) -> bool:
    """Whether the expression has the same value for (q + step, k + step) as for (q, k), wherever both are positions.

    The expression's parameters and sizes are literals (`evaluate.constants`). False where it cannot be told.
    """
    return growth(expr, sizes, step) == 0


def growth(expr: Expr, sizes: Sizes, step: int) -> int | None:
    """By how much the value grows, if by the same amount at every pair; 0 for booleans that stay; None if not known."""
    match expr:
        case Position():
            return step
        case Coordinate():
            return _of_coordinate(expr, sizes, step)
        case Literal() | Offset() | Length() | AxisSize() | Index() | Total() | Parameter() | Score():
            return 0
        case Cast():
            return growth(expr.operand, sizes, step)
        case Read():
            return 0 if all(growth(i, sizes, step) == 0 for i in expr.indices) else None
        case Unary():
            inner = growth(expr.operand, sizes, step)
            if expr.op is UnaryOp.NEG and inner is not None:
                return -inner
            return 0 if inner == 0 else None
        case Binary():
            return _of_binary(expr, growth(expr.left, sizes, step), growth(expr.right, sizes, step))
        case Select():
            then, otherwise = growth(expr.then, sizes, step), growth(expr.otherwise, sizes, step)
            return then if then == otherwise and growth(expr.condition, sizes, step) == 0 else None
        case _:
            assert_never(expr)


def _of_coordinate(expr: Coordinate, sizes: Sizes, step: int) -> int | None:
    """A step of whole rows moves the axes before it and leaves those behind it."""
    names = [name for name, _ in sizes.axes]
    place = names.index(expr.axis)
    stride = math.prod(size for _, size in sizes.axes[place + 1 :])
    if stride == 0 or step % stride:
        return None
    if place == 0:
        return step // stride
    return 0 if step % (stride * sizes.axes[place][1]) == 0 else None


def _of_binary(expr: Binary, a: int | None, b: int | None) -> int | None:
    if a is None or b is None:
        return None
    if a == 0 and b == 0:
        return 0
    if expr.op in COMPARISONS:
        return 0 if a == b else None
    if expr.left.type is not Type.INT:
        # Floats round: (q + step) * slope - (k + step) * slope need not be what it was.
        return None
    match expr.op:
        case BinaryOp.ADD:
            return a + b
        case BinaryOp.SUB:
            return a - b
        case BinaryOp.MIN | BinaryOp.MAX:
            return a if a == b else None
        case BinaryOp.MUL if isinstance(expr.left, Literal):
            return int(expr.left.value) * b
        case BinaryOp.MUL if isinstance(expr.right, Literal):
            return int(expr.right.value) * a
        case BinaryOp.FLOORDIV if _divides(expr.right, a):
            return a // _literal(expr.right)
        case BinaryOp.MOD if _divides(expr.right, a):
            return 0
        case _:
            return None


def _literal(expr: Expr) -> int:
    return int(expr.value) if isinstance(expr, Literal) else 0


def _divides(divisor: Expr, number: int) -> bool:
    return _literal(divisor) != 0 and number % _literal(divisor) == 0
