"""The derivative of a score expression with respect to the score it starts from, as an expression.

Forward mode over `Expr`, simplified on the way: factors 0 and 1 and terms 0 disappear, and a derivative that is 0 on
one branch of a condition stays 0 there whatever it is multiplied by (`sqrt(relu(score))` has derivative 0, not 0 * inf,
at score < 0). Integers, booleans, inputs and parameters carry none. At the kinks: abs'(0) = 0; a tie of min or max
gives the derivative to the second operand; relu'(0) = 0.
"""

import math
from dataclasses import replace
from typing import assert_never

from maskc.expr import (
    SCORE,
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
    UnaryOp,
    Weight,
    walk,
)

ZERO = Literal(Type.FLOAT, 0.0)
ONE = Literal(Type.FLOAT, 1.0)


def derivative(expr: Expr, wrt: Score | FinalScore | Weight = SCORE) -> Expr:
    """d expr / d wrt for a float expression, as a float expression over the same names.

    Of the first score, the final one and the weight, those that are not `wrt` are held fixed.
    """
    match expr:
        case Score() | FinalScore() | Weight():
            return ONE if expr == wrt else ZERO
        case Unary():
            return _unary(expr, derivative(expr.operand, wrt))
        case Binary():
            return _binary(expr, derivative(expr.left, wrt), derivative(expr.right, wrt))
        case Select():
            return select(expr.condition, derivative(expr.then, wrt), derivative(expr.otherwise, wrt))
        case Fold():
            return _folded(expr, derivative(expr.body, wrt))
        case (
            Literal()
            | Position()
            | Coordinate()
            | Offset()
            | Length()
            | AxisSize()
            | FreeSize()
            | Index()
            | Total()
            | Parameter()
            | Bound()
            | Scale()
            | Kept()
            | Read()
            | Member()
            | Bucket()
            | Dot()
            | Rand()
            | Cast()
        ):
            return ZERO
        case _:
            assert_never(expr)


def is_additive(score: Expr) -> Expr | None:
    """b when score is SCORE + b with b free of SCORE (the literal 0.0 for SCORE itself), else None."""
    if not _reads_score(score):
        return None
    match score:
        case Score():
            return ZERO
        case Binary(op=BinaryOp.ADD) if not _reads_score(score.right):
            rest = is_additive(score.left)
            return None if rest is None else add(rest, score.right)
        case Binary(op=BinaryOp.ADD) if not _reads_score(score.left):
            rest = is_additive(score.right)
            return None if rest is None else add(score.left, rest)
        case Binary(op=BinaryOp.SUB) if not _reads_score(score.right):
            rest = is_additive(score.left)
            return None if rest is None else subtract(rest, score.right)
        case Select() if not _reads_score(score.condition):
            then, otherwise = is_additive(score.then), is_additive(score.otherwise)
            return None if then is None or otherwise is None else select(score.condition, then, otherwise)
        case _:
            return None


def _reads_score(expr: Expr) -> bool:
    return any(isinstance(node, Score) for node in walk(expr))


def _folded(expr: Fold, inner: Expr) -> Expr:
    """The sum of the derivatives; `any` and `all` are no floats."""
    return ZERO if inner == ZERO or expr.op is not FoldOp.SUM else replace(expr, body=inner)


def _unary(expr: Unary, inner: Expr) -> Expr:
    if inner == ZERO or expr.type is not Type.FLOAT:
        return ZERO
    x = expr.operand
    match expr.op:
        case UnaryOp.NEG:
            return negate(inner)
        case UnaryOp.ABS:
            return select(compare(BinaryOp.GT, x), inner, select(compare(BinaryOp.LT, x), negate(inner), ZERO))
        case UnaryOp.RELU:
            return select(compare(BinaryOp.GT, x), inner, ZERO)
        case UnaryOp.EXP:
            return multiply(inner, expr)
        case UnaryOp.LOG:
            return divide(inner, x)
        case UnaryOp.TANH:
            return multiply(inner, subtract(ONE, multiply(expr, expr)))
        case UnaryOp.ERF:
            bell = Unary(Type.FLOAT, UnaryOp.EXP, negate(multiply(x, x)))
            return multiply(inner, multiply(number(2.0 / math.sqrt(math.pi)), bell))
        case UnaryOp.SIGMOID:
            return multiply(inner, multiply(expr, subtract(ONE, expr)))
        case UnaryOp.SOFTPLUS:
            return multiply(inner, Unary(Type.FLOAT, UnaryOp.SIGMOID, x))
        case UnaryOp.SQRT:
            return divide(inner, multiply(number(2.0), expr))
        case UnaryOp.INVERT | UnaryOp.NOT | UnaryOp.FLOOR | UnaryOp.CEIL | UnaryOp.ROUND:
            return ZERO
        case _:
            assert_never(expr.op)


def _binary(expr: Binary, left: Expr, right: Expr) -> Expr:
    if (left == ZERO and right == ZERO) or expr.type is not Type.FLOAT:
        return ZERO
    a, b = expr.left, expr.right
    match expr.op:
        case BinaryOp.ADD:
            return add(left, right)
        case BinaryOp.SUB:
            return subtract(left, right)
        case BinaryOp.MUL:
            return add(multiply(left, b), multiply(right, a))
        case BinaryOp.DIV:
            return subtract(divide(left, b), divide(multiply(right, expr), b))
        case BinaryOp.MIN:
            return select(compare(BinaryOp.LT, a, b), left, right)
        case BinaryOp.MAX:
            return select(compare(BinaryOp.GT, a, b), left, right)
        case BinaryOp.MOD:
            return subtract(left, multiply(right, Binary(Type.FLOAT, BinaryOp.FLOORDIV, a, b)))
        case BinaryOp.POW:
            return add(_of_base(expr, left), _of_exponent(expr, right))
        case (
            BinaryOp.FLOORDIV
            | BinaryOp.TRUNCDIV
            | BinaryOp.TRUNCMOD
            | BinaryOp.BITAND
            | BinaryOp.BITOR
            | BinaryOp.BITXOR
            | BinaryOp.SHL
            | BinaryOp.SHR
            | BinaryOp.LT
            | BinaryOp.LE
            | BinaryOp.GT
            | BinaryOp.GE
            | BinaryOp.EQ
            | BinaryOp.NE
            | BinaryOp.AND
            | BinaryOp.OR
        ):
            return ZERO
        case _:
            assert_never(expr.op)


def _of_base(power: Binary, inner: Expr) -> Expr:
    """d (a ** b) through a: b * a ** (b - 1), and 0 for b = 0, where a = 0 would give 0 * inf."""
    a, b = power.left, power.right
    if isinstance(b, Literal):
        lowered = Binary(Type.FLOAT, BinaryOp.POW, a, number(float(b.value) - 1.0))
        slope = b if b.value in (0, 1) else multiply(b, a if b.value == 2 else lowered)
        return multiply(inner, slope)
    lowered = Binary(Type.FLOAT, BinaryOp.POW, a, subtract(b, ONE))
    return select(compare(BinaryOp.EQ, b), ZERO, multiply(inner, multiply(b, lowered)))


def _of_exponent(power: Binary, inner: Expr) -> Expr:
    """d (a ** b) through b: a ** b * log(a), and 0 for a = 0, where it would be 0 * -inf."""
    a = power.left
    return select(compare(BinaryOp.EQ, a), ZERO, multiply(inner, multiply(power, Unary(Type.FLOAT, UnaryOp.LOG, a))))


# Constructors that simplify. They never look inside operands except at literals and at conditions with a zero branch.


def number(value: float) -> Literal:
    """A float literal."""
    return Literal(Type.FLOAT, value)


def compare(op: BinaryOp, left: Expr, right: Expr = ZERO) -> Expr:
    """`left op right`, by default against 0."""
    return Binary(Type.BOOL, op, left, right)


def add(left: Expr, right: Expr) -> Expr:
    """left + right."""
    if left == ZERO:  # 0 + x -> x
        return right
    if right == ZERO:  # x + 0 -> x
        return left
    if isinstance(left, Literal) and isinstance(right, Literal):
        return number(float(left.value) + float(right.value))
    return Binary(Type.FLOAT, BinaryOp.ADD, left, right)


def negate(x: Expr) -> Expr:
    """-x."""
    match x:
        case Literal():
            return ZERO if x == ZERO else number(-float(x.value))
        case Unary(op=UnaryOp.NEG):  # -(-x) -> x
            return x.operand
        case Select() if ZERO in (x.then, x.otherwise):
            return select(x.condition, negate(x.then), negate(x.otherwise))
        case _:
            return Unary(Type.FLOAT, UnaryOp.NEG, x)


def subtract(left: Expr, right: Expr) -> Expr:
    """left - right."""
    if right == ZERO:  # x - 0 -> x
        return left
    if left == ZERO:  # 0 - x -> -x
        return negate(right)
    if isinstance(left, Literal) and isinstance(right, Literal):
        return number(float(left.value) - float(right.value))
    return Binary(Type.FLOAT, BinaryOp.SUB, left, right)


def multiply(left: Expr, right: Expr) -> Expr:
    """left * right, 0 wherever one of them is the literal 0 or a branch that is it."""
    if ZERO in (left, right):  # 0 * x -> 0
        return ZERO
    if left == ONE:  # 1 * x -> x
        return right
    if right == ONE:  # x * 1 -> x
        return left
    if isinstance(right, Literal):  # constants to the left
        left, right = right, left
    if isinstance(left, Literal) and isinstance(right, Literal):
        return number(float(left.value) * float(right.value))
    match left, right:
        case Literal(), Binary(op=BinaryOp.MUL, left=Literal() as inner):  # a * (b * x) -> (a * b) * x
            return multiply(number(float(left.value) * float(inner.value)), right.right)
    if isinstance(left, Select) and ZERO in (left.then, left.otherwise):
        return select(left.condition, multiply(left.then, right), multiply(left.otherwise, right))
    if isinstance(right, Select) and ZERO in (right.then, right.otherwise):
        return select(right.condition, multiply(left, right.then), multiply(left, right.otherwise))
    return Binary(Type.FLOAT, BinaryOp.MUL, left, right)


def divide(left: Expr, right: Expr) -> Expr:
    """left / right, 0 wherever left is the literal 0 or a branch that is it."""
    if left == ZERO:  # 0 / x -> 0
        return ZERO
    if right == ONE:  # x / 1 -> x
        return left
    if isinstance(left, Select) and ZERO in (left.then, left.otherwise):
        return select(left.condition, divide(left.then, right), divide(left.otherwise, right))
    if isinstance(left, Literal) and isinstance(right, Literal) and right.value != 0:
        return number(float(left.value) / float(right.value))
    return Binary(Type.FLOAT, BinaryOp.DIV, left, right)


def select(condition: Expr, then: Expr, otherwise: Expr) -> Expr:
    """`then if condition else otherwise`."""
    return then if then == otherwise else Select(Type.FLOAT, condition, then, otherwise)
