"""What the sizes and parameters of a call make of an expression: constants written in, folds one step at a time."""

from typing import assert_never

import numpy as np

from maskc.evaluate import Pairs, evaluate, whole
from maskc.expr import (
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
    FoldOp,
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
    Weight,
    children,
    rebuild,
    walk,
)
from maskc.spec import Sizes


def constants(expr: Expr, sizes: Sizes) -> Expr:
    """The expression with the call's sizes and parameters written in, and every constant part replaced by its value."""
    done: dict[int, Expr] = {}

    def visit(node: Expr) -> Expr:
        if id(node) not in done:
            done[id(node)] = _folded(rebuild(node, visit), sizes)
        return done[id(node)]

    return visit(expr)


def with_step(body: Expr, index: Bound, step: int) -> Expr:
    """The body of a fold at one value of its index."""
    if body == index:
        return Literal(Type.INT, step)
    return rebuild(body, lambda child: with_step(child, index, step))


def steps_of(fold: Fold) -> int | None:
    """How many steps a fold has in every call; None where that differs."""
    if any(not isinstance(node, Literal) for node in walk(fold.count) if not children(node)):
        return None
    return max(0, whole(fold.count, _ANY_CALL))


def steps_written(fold: Fold, steps: int) -> Expr:
    """A fold of that many steps without it: its body once per step."""
    bodies = [with_step(fold.body, fold.index, step) for step in range(steps)]
    match fold.op:
        case FoldOp.ANY | FoldOp.ALL:
            if not bodies:
                return _literal(fold.op is FoldOp.ALL, Type.BOOL)
            return joined(BinaryOp.OR if fold.op is FoldOp.ANY else BinaryOp.AND, bodies)
        case FoldOp.SUM:
            total: Expr = Literal(fold.type, 0.0 if fold.type is Type.FLOAT else 0)
            for body in bodies:
                total = Binary(fold.type, BinaryOp.ADD, total, body)
            return total
        case _:
            assert_never(fold.op)


def written_out(expr: Expr) -> Expr:
    """The expression with every fold whose number of steps is the same in all calls written out, constants computed."""
    if Fold not in expr.kinds:
        return expr
    changed = rebuild(expr, written_out)
    steps = steps_of(changed) if isinstance(changed, Fold) else None
    if steps is None or not isinstance(changed, Fold):
        return changed
    return _with_values(steps_written(changed, steps))


def _with_values(expr: Expr) -> Expr:
    """What is computed from literals alone, computed."""
    changed = rebuild(expr, _with_values)
    if not isinstance(changed, Unary | Cast | Binary | Select | Rand):
        return changed
    if any(not isinstance(operand, Literal) for operand in children(changed)):
        return changed
    return _value_of(changed, _ANY_CALL)


def joined(op: BinaryOp, parts: list[Expr]) -> Expr:
    """`and` or `or` of all parts, as a balanced tree: there may be many."""
    if len(parts) == 1:
        return parts[0]
    middle = (len(parts) + 1) // 2
    return Binary(Type.BOOL, op, joined(op, parts[:middle]), joined(op, parts[middle:]))


_ANY_CALL = Sizes(0, 0)


def _folded(expr: Expr, sizes: Sizes) -> Expr:
    """The node's value where the call alone decides it, else the node, without constant operands of logic."""
    match expr:
        case (
            Literal()
            | Position()
            | Coordinate()
            | Read()
            | Member()
            | Bucket()
            | Bound()
            | Score()
            | FinalScore()
            | Weight()
            | Scale()
            | Kept()
            | Dot()
        ):
            return expr
        case Offset():
            return expr if sizes.offset(expr.side) is None else _value_of(expr, sizes)
        case Index():
            return _literal(0, Type.INT) if sizes.total(expr.count) == 1 else expr
        case Length() | AxisSize() | FreeSize() | Total() | Parameter():
            return _value_of(expr, sizes)
        case Rand():
            return _value_of(expr, sizes) if all(isinstance(a, Literal) for a in expr.arguments) else expr
        case Fold():
            return _folded_fold(expr)
        case Unary() | Cast():
            return _value_of(expr, sizes) if isinstance(expr.operand, Literal) else expr
        case Select():
            if isinstance(expr.condition, Literal):
                return expr.then if expr.condition.value else expr.otherwise
            return expr
        case Binary():
            return _folded_binary(expr, sizes)
        case _:
            assert_never(expr)


def _folded_fold(expr: Fold) -> Expr:
    """`any` and `all` of nothing, or of a constant."""
    assert isinstance(expr.count, Literal), "the count of a fold follows from the call"
    if expr.count.value <= 0:
        return _literal({Type.BOOL: expr.op is FoldOp.ALL, Type.INT: 0, Type.FLOAT: 0.0}[expr.type], expr.type)
    return expr.body if isinstance(expr.body, Literal) and expr.op is not FoldOp.SUM else expr


def _folded_binary(expr: Binary, sizes: Sizes) -> Expr:
    left, right = expr.left, expr.right
    if isinstance(left, Literal) and isinstance(right, Literal):
        return _value_of(expr, sizes)
    if expr.op in (BinaryOp.AND, BinaryOp.OR):
        neutral = expr.op is BinaryOp.AND
        if isinstance(left, Literal):
            return right if left.value == neutral else left
        if isinstance(right, Literal):
            return left if right.value == neutral else right
    return expr


def _value_of(expr: Expr, sizes: Sizes) -> Literal:
    none = np.zeros((), np.int64)
    value = evaluate(expr, Pairs(np, sizes, {}, none, none, none, none))
    return _literal(value.item(), expr.type)


def _literal(value: bool | int | float, type_: Type) -> Literal:
    return Literal(type_, value)
