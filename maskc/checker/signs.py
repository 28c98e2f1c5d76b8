"""Which floats are never negative, from the signs of what they are made of."""

from maskc.expr import Binary, BinaryOp, Cast, Expr, Fold, Literal, Rand, Select, Type, Unary, UnaryOp

_NEVER_NEGATIVE = {UnaryOp.EXP, UnaryOp.SIGMOID, UnaryOp.SOFTPLUS, UnaryOp.RELU, UnaryOp.SQRT, UnaryOp.ABS}
_ODD = {UnaryOp.TANH, UnaryOp.ERF}
_UPPER = {BinaryOp.GT, BinaryOp.GE}
_LOWER = {BinaryOp.LT, BinaryOp.LE}


def is_nonnegative(expr: Expr, known: frozenset[Expr] = frozenset()) -> bool:
    """Whether an expression is plainly at least 0 (or NaN). known: expressions that are where it is evaluated."""
    if expr in known:
        return True
    match expr:
        case Literal():
            return expr.value >= 0
        case Cast():
            return expr.operand.type is Type.BOOL or is_nonnegative(expr.operand, known)
        case Rand():
            return True
        case Unary():
            return expr.op in _NEVER_NEGATIVE or (expr.op in _ODD and is_nonnegative(expr.operand, known))
        case Select():
            then = is_nonnegative(expr.then, known | _implied(expr.condition, True))
            return then and is_nonnegative(expr.otherwise, known | _implied(expr.condition, False))
        case Binary():
            return _binary(expr, known)
        case Fold():
            return is_nonnegative(expr.body, known)
        case _:
            return False


def _binary(expr: Binary, known: frozenset[Expr]) -> bool:
    left, right = is_nonnegative(expr.left, known), is_nonnegative(expr.right, known)
    match expr.op:
        case BinaryOp.ADD | BinaryOp.MIN:
            return left and right
        case BinaryOp.MUL | BinaryOp.DIV:
            return (left and right) or (expr.op is BinaryOp.MUL and expr.left == expr.right)
        case BinaryOp.MAX:
            return left or right
        case BinaryOp.POW:
            even = isinstance(expr.right, Literal) and expr.right.value % 2 == 0
            return left or even
        case _:
            return False


def _implied(condition: Expr, holds: bool) -> frozenset[Expr]:
    """What is at least 0 where a comparison with a number holds, or does not."""
    if not (isinstance(condition, Binary) and condition.op in _UPPER | _LOWER):
        return frozenset()
    low, high = (condition.left, condition.right) if condition.op in _LOWER else (condition.right, condition.left)
    if not holds:
        low, high = high, low
    return frozenset((high,)) if isinstance(low, Literal) and low.value >= 0 else frozenset()
