"""How an expression grows when the query and the key of a pair move on together.

What does not grow is a function of the difference: a table over the differences decides it, and tiles that are shifted
copies of each other share one mask. That covers windows, diagonals and strided patterns at any step, block patterns at
multiples of the block, grids along an axis and at multiples of a row.
"""

import math
from collections.abc import Callable
from typing import assert_never

from maskc.expr import (
    COMPARISONS,
    AxisSize,
    Binary,
    BinaryOp,
    Bound,
    Bucket,
    Cast,
    Coordinate,
    Dot,
    Expr,
    FinalScore,
    Fold,
    FreeSize,
    Index,
    Kept,
    Length,
    Literal,
    Member,
    Offset,
    Parameter,
    Position,
    Rand,
    Read,
    Scale,
    Score,
    Select,
    Total,
    Type,
    Unary,
    UnaryOp,
    Weight,
    children,
)
from maskc.spec import Sizes

Move = Callable[[Position | Coordinate], int | None]
"""By how much a position or coordinate grows; None where that differs between pairs."""


def growth(expr: Expr, move: Move) -> int | None:
    """By how much the value grows, if by the same amount at every pair; 0 for booleans that stay; None if not known.

    The expression's parameters and sizes are literals (`evaluate.constants`).
    """
    match expr:
        case Position() | Coordinate():
            return move(expr)
        case (
            Literal()
            | Offset()
            | Length()
            | AxisSize()
            | FreeSize()
            | Index()
            | Total()
            | Parameter()
            | Bound()
            | Score()
            | FinalScore()
            | Weight()
            | Scale()
        ):
            return 0
        case Cast():
            return growth(expr.operand, move)
        case Read() | Member() | Bucket() | Rand() | Fold():
            return 0 if all(growth(child, move) == 0 for child in children(expr)) else None
        case Dot() | Kept():
            return None
        case Unary():
            inner = growth(expr.operand, move)
            if expr.op is UnaryOp.NEG and inner is not None:
                return -inner
            return 0 if inner == 0 else None
        case Binary():
            if expr.op in (BinaryOp.EQ, BinaryOp.NE) and _congruent(expr, move):
                return 0
            return _of_binary(expr, growth(expr.left, move), growth(expr.right, move))
        case Select():
            then, otherwise = growth(expr.then, move), growth(expr.otherwise, move)
            return then if then == otherwise and growth(expr.condition, move) == 0 else None
        case _:
            assert_never(expr)


def along(axis: str) -> Move:
    """One step along an axis of the grid; "" is the line."""
    return lambda place: int((place.axis if isinstance(place, Coordinate) else "") == axis)


def by_positions(step: int, sizes: Sizes) -> Move:
    """`step` positions on; a step of whole rows moves the axes before it and leaves those behind it."""
    names = [name for name, _ in sizes.axes]

    def move(place: Position | Coordinate) -> int | None:
        if isinstance(place, Position):
            return step
        number = names.index(place.axis)
        stride = math.prod(size for _, size in sizes.axes[number + 1 :])
        if stride == 0 or step % stride:
            return None
        if number == 0:
            return step // stride
        return 0 if step % (stride * sizes.axes[number][1]) == 0 else None

    return move


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


def _congruent(expr: Binary, move: Move) -> bool:
    """a % m == b % m with a constant m says that m divides a - b."""
    left, right = expr.left, expr.right
    if not (isinstance(left, Binary) and isinstance(right, Binary) and left.op is right.op is BinaryOp.MOD):
        return False
    if not (isinstance(left.right, Literal) and left.right == right.right and left.type is Type.INT):
        return False
    a = growth(left.left, move)
    return a is not None and a == growth(right.left, move)


def _literal(expr: Expr) -> int:
    return int(expr.value) if isinstance(expr, Literal) else 0


def _divides(divisor: Expr, number: int) -> bool:
    return _literal(divisor) != 0 and number % _literal(divisor) == 0
