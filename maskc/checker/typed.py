"""Typed expressions from typed parts: conversions, exact folding of constants, and the rules of each operator.

In: operands that are already typed. Out: a node of `maskc.spec`, its operands converted by explicit `Cast`s. A rule
that an operand breaks is raised as `OperandError`, which the caller reports at the right place.
"""

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from maskc.checker.words import FUNCTIONS
from maskc.diagnostics import Span
from maskc.expr import COMPARISONS, Binary, BinaryOp, Cast, Expr, Literal, Rand, Scalar, Select, Type, Unary, UnaryOp

SMALLEST_INT, LARGEST_INT = -(2**63), 2**63 - 1
TYPE_WORDS = {Type.BOOL: "a boolean", Type.INT: "an int", Type.FLOAT: "a float"}
PLURALS = {Type.BOOL: "booleans", Type.INT: "ints", Type.FLOAT: "floats"}


@dataclass
class OperandError(Exception):
    """A sentence about operands, where it should be underlined, and a hint."""

    message: str
    span: Span | None
    hint: str | None = None


ARITHMETIC = {
    "+": BinaryOp.ADD,
    "-": BinaryOp.SUB,
    "*": BinaryOp.MUL,
    "/": BinaryOp.DIV,
    "//": BinaryOp.FLOORDIV,
    "%": BinaryOp.MOD,
    "**": BinaryOp.POW,
    "&": BinaryOp.BITAND,
    "|": BinaryOp.BITOR,
    "^": BinaryOp.BITXOR,
    "<<": BinaryOp.SHL,
    ">>": BinaryOp.SHR,
}
COMPARATORS = {op.value: op for op in COMPARISONS}
_BITWISE = {BinaryOp.BITAND, BinaryOp.BITOR, BinaryOp.BITXOR}
_FLOAT_FUNCTIONS = {
    UnaryOp.EXP,
    UnaryOp.LOG,
    UnaryOp.TANH,
    UnaryOp.ERF,
    UnaryOp.SIGMOID,
    UnaryOp.SOFTPLUS,
    UnaryOp.SQRT,
}
# Folded operators whose result is exact in 64 bits, or the one IEEE rounding that evaluating them would do.
FOLDED: Mapping[BinaryOp, Callable[[Scalar, Scalar], Scalar]] = {
    BinaryOp.ADD: operator.add,
    BinaryOp.SUB: operator.sub,
    BinaryOp.MUL: operator.mul,
    BinaryOp.FLOORDIV: operator.floordiv,
    BinaryOp.MOD: operator.mod,
    BinaryOp.DIV: operator.truediv,
    BinaryOp.LT: operator.lt,
    BinaryOp.LE: operator.le,
    BinaryOp.GT: operator.gt,
    BinaryOp.GE: operator.ge,
    BinaryOp.EQ: operator.eq,
    BinaryOp.NE: operator.ne,
    BinaryOp.MIN: min,
    BinaryOp.MAX: max,
}


def integer(value: int, span: Span | None = None) -> Literal:
    """A literal of type INT."""
    return Literal(Type.INT, value, span=span)


def cast(expr: Expr, target: Type) -> Expr:
    """The expression as another type; only from BOOL to INT to FLOAT."""
    match expr, expr.type, target:
        case _, source, _ if source is target:
            return expr
        case Literal(), _, Type.INT:
            return replace(expr, type=Type.INT, value=int(expr.value))
        case Literal(), _, Type.FLOAT:
            return replace(expr, type=Type.FLOAT, value=float(expr.value))
        case _, Type.BOOL, Type.FLOAT:
            return Cast(Type.FLOAT, cast(expr, Type.INT), span=expr.span)
        case (_, Type.BOOL, Type.INT) | (_, Type.INT, Type.FLOAT):
            return Cast(target, expr, span=expr.span)
        case _:
            raise AssertionError(f"no conversion from {expr.type} to {target}")


def converts(source: Type, target: Type) -> bool:
    """Whether an argument of one type may be given for a parameter of another."""
    return source is target or (source is Type.INT and target is Type.FLOAT)


def boolean(expr: Expr, what: str, span: Span | None) -> Expr:
    """The expression, which must be a boolean; `what` begins the sentence that says so."""
    if expr.type is not Type.BOOL:
        hint = "compare it with something, for example '!= 0'"
        raise OperandError(f"{what}; this is {TYPE_WORDS[expr.type]}", span, hint)
    return expr


def arithmetic(op: BinaryOp, left: Expr, right: Expr, span: Span | None) -> Expr:
    """`left op right` for the operators of `ARITHMETIC`, `min` and `max`."""
    match op:
        case BinaryOp.BITAND | BinaryOp.BITOR | BinaryOp.BITXOR | BinaryOp.SHL | BinaryOp.SHR:
            return _bitwise(op, left, right, span)
        case BinaryOp.POW:
            return _power(left, right, span)
        case BinaryOp.DIV:
            _no_zero(right, span)
            return _folded(Binary(Type.FLOAT, op, cast(left, Type.FLOAT), cast(right, Type.FLOAT), span=span))
        case BinaryOp.FLOORDIV | BinaryOp.MOD:
            for operand in (left, right):
                if operand.type is Type.FLOAT:
                    hint = "write 'floor(a / b)'" if op is BinaryOp.FLOORDIV else "write 'a - b * floor(a / b)'"
                    raise OperandError(f"'{op.value}' divides ints; this is a float", operand.span, hint)
            _no_zero(right, span)
    target = _common(left, right, at_least=Type.INT)
    return _folded(Binary(target, op, cast(left, target), cast(right, target), span=span))


def comparison(op: BinaryOp, left: Expr, right: Expr, span: Span | None) -> Expr:
    """`left op right` for a comparison; booleans compare as 0 and 1."""
    target = _common(left, right, at_least=Type.INT)
    return _folded(Binary(Type.BOOL, op, cast(left, target), cast(right, target), span=span))


def logical(op: BinaryOp, left: Expr, right: Expr, span: Span | None) -> Expr:
    """`left and right`, `left or right`."""
    for operand in (left, right):
        boolean(operand, f"'{op.value}' takes booleans", operand.span)
    return Binary(Type.BOOL, op, left, right, span=span)


def negation(operand: Expr, span: Span | None) -> Expr:
    """`not operand`."""
    boolean(operand, "'not' takes a boolean", operand.span)
    if isinstance(operand, Literal):
        return Literal(Type.BOOL, not operand.value, span=span)
    return Unary(Type.BOOL, UnaryOp.NOT, operand, span=span)


def minus(operand: Expr, span: Span | None) -> Expr:
    """`-operand`."""
    number = cast(operand, Type.INT) if operand.type is Type.BOOL else operand
    if isinstance(number, Literal):
        return _in_range(replace(number, value=-number.value, span=span))
    return Unary(number.type, UnaryOp.NEG, number, span=span)


def plus(operand: Expr, span: Span | None) -> Expr:
    """`+operand`."""
    number = cast(operand, Type.INT) if operand.type is Type.BOOL else operand
    return replace(number, span=span)


def inverted(operand: Expr, span: Span | None) -> Expr:
    """`~operand`, the bits of an int."""
    if operand.type is Type.BOOL:
        raise OperandError("'~' of a boolean is -1 or -2, both true", span, "write 'not'")
    if operand.type is Type.FLOAT:
        raise OperandError("'~' takes an int; this is a float", operand.span)
    if isinstance(operand, Literal):
        return replace(operand, value=~int(operand.value), span=span)
    return Unary(Type.INT, UnaryOp.INVERT, operand, span=span)


def function(op: UnaryOp, operand: Expr, span: Span | None) -> Expr:
    """A builtin of one argument."""
    if op in _FLOAT_FUNCTIONS:
        return Unary(Type.FLOAT, op, cast(operand, Type.FLOAT), span=span)
    number = cast(operand, Type.INT) if operand.type is Type.BOOL else operand
    if op in (UnaryOp.FLOOR, UnaryOp.CEIL, UnaryOp.ROUND):
        return number if number.type is Type.INT else Unary(Type.INT, op, number, span=span)
    if op is UnaryOp.RELU and number.type is Type.INT:
        return arithmetic(BinaryOp.MAX, number, integer(0), span)
    if op is UnaryOp.ABS and isinstance(number, Literal):
        return _in_range(replace(number, value=abs(number.value), span=span))
    return Unary(number.type, op, number, span=span)


def select(condition: Expr, then: Expr, otherwise: Expr, span: Span | None) -> Expr:
    """`then if condition else otherwise`; both branches become one type."""
    boolean(condition, "a condition is a boolean", condition.span)
    target = _common(then, otherwise, at_least=Type.BOOL)
    return Select(target, condition, cast(then, target), cast(otherwise, target), span=span)


def within(item: Expr, start: Expr, stop: Expr, step: Expr, span: Span | None) -> Expr:
    """Python's `item in range(start, stop, step)` of ints; of a step that is no literal either sign is provided for."""
    item, start, stop, step = (cast(e, Type.INT) for e in (item, start, stop, step))

    def ordered(low: Expr, low_op: BinaryOp, high: Expr, high_op: BinaryOp) -> Expr:
        lower = comparison(low_op, low, item, span)
        return logical(BinaryOp.AND, lower, comparison(high_op, item, high, span), span)

    rising = ordered(start, BinaryOp.LE, stop, BinaryOp.LT)
    falling = ordered(stop, BinaryOp.LT, start, BinaryOp.LE)
    zero = integer(0, span)
    if isinstance(step, Literal):
        inside = rising if step.value > 0 else falling
        if abs(step.value) == 1:
            return inside
    else:
        up = logical(BinaryOp.AND, comparison(BinaryOp.GT, step, zero, span), rising, span)
        down = logical(BinaryOp.AND, comparison(BinaryOp.LT, step, zero, span), falling, span)
        inside = logical(BinaryOp.OR, up, down, span)
    distance = arithmetic(BinaryOp.SUB, item, start, span)
    on_step = comparison(BinaryOp.EQ, arithmetic(BinaryOp.MOD, distance, step, span), zero, span)
    return logical(BinaryOp.AND, inside, on_step, span)


def rand(numbers: list[Expr], span: Span | None) -> Expr:
    """`rand(seed, ...)`."""
    if not numbers:
        raise OperandError("'rand' takes at least 1 argument", span, "for example 'rand(seed, head, q, k)'")
    for number in numbers:
        if number.type is Type.FLOAT:
            raise OperandError("'rand' mixes ints; this is a float", number.span, "write 'floor(...)'")
    return Rand(Type.FLOAT, tuple(cast(n, Type.INT) for n in numbers), span=span)


def builtin(name: str, numbers: list[Expr], span: Span | None) -> Expr:
    """A builtin function of the language, its arguments as many as it takes."""
    match name:
        case "min" | "max":
            op = BinaryOp(name)
            result = numbers[0]
            for number in numbers[1:]:
                result = arithmetic(op, result, number, span)
            return result
        case "clamp":
            number, low, high = numbers
            return arithmetic(BinaryOp.MIN, arithmetic(BinaryOp.MAX, number, low, span), high, span)
        case _:
            return function(FUNCTIONS[name], numbers[0], span)


def _common(left: Expr, right: Expr, at_least: Type) -> Type:
    present = (left.type, right.type, at_least)
    return Type.FLOAT if Type.FLOAT in present else Type.INT if Type.INT in present else Type.BOOL


def _bitwise(op: BinaryOp, left: Expr, right: Expr, span: Span | None) -> Expr:
    for operand in (left, right):
        if operand.type is Type.FLOAT:
            raise OperandError(f"'{op.value}' takes ints; this is a float", operand.span)
    if left.type is right.type is Type.BOOL and op in _BITWISE:  # a boolean again, as in Python
        match op:
            case BinaryOp.BITAND:
                return logical(BinaryOp.AND, left, right, span)
            case BinaryOp.BITOR:
                return logical(BinaryOp.OR, left, right, span)
            case _:
                return comparison(BinaryOp.NE, left, right, span)
    left, right = cast(left, Type.INT), cast(right, Type.INT)
    if op in (BinaryOp.SHL, BinaryOp.SHR) and isinstance(right, Literal) and not 0 <= right.value < 64:
        raise OperandError("a shift is by 0 to 63 bits", right.span)
    if isinstance(left, Literal) and isinstance(right, Literal):
        python = {
            BinaryOp.BITAND: operator.and_,
            BinaryOp.BITOR: operator.or_,
            BinaryOp.BITXOR: operator.xor,
            BinaryOp.SHL: operator.lshift,
            BinaryOp.SHR: operator.rshift,
        }[op]
        return _in_range(integer(python(int(left.value), int(right.value)), span))
    return Binary(Type.INT, op, left, right, span=span)


def _power(base: Expr, exponent: Expr, span: Span | None) -> Expr:
    """Of ints an int for an exponent that is a literal >= 0; else of floats."""
    whole = base.type is not Type.FLOAT and isinstance(exponent, Literal) and exponent.type is not Type.FLOAT
    if whole and isinstance(exponent, Literal) and exponent.value >= 0:
        base, exponent = cast(base, Type.INT), cast(exponent, Type.INT)
        assert isinstance(exponent, Literal)
        if isinstance(base, Literal):
            if abs(base.value) > 1 and exponent.value > 63:
                raise OperandError("this does not fit into 64 bits", span)
            return _in_range(integer(int(base.value) ** int(exponent.value), span))
        return Binary(Type.INT, BinaryOp.POW, base, exponent, span=span)
    if isinstance(base, Literal) and base.value == 0 and isinstance(exponent, Literal) and exponent.value < 0:
        raise OperandError("this divides by zero", span)
    return Binary(Type.FLOAT, BinaryOp.POW, cast(base, Type.FLOAT), cast(exponent, Type.FLOAT), span=span)


def _no_zero(divisor: Expr, span: Span | None) -> None:
    if isinstance(divisor, Literal) and divisor.value == 0:
        raise OperandError("this divides by zero", divisor.span or span)


def _folded(expr: Binary) -> Expr:
    """The value itself where both operands are literals."""
    if not (isinstance(expr.left, Literal) and isinstance(expr.right, Literal)):
        return expr
    try:
        value = FOLDED[expr.op](expr.left.value, expr.right.value)
    except OverflowError:
        return expr
    if expr.type is Type.INT:
        return _in_range(integer(int(value), expr.span))
    if isinstance(value, float) and math.isnan(value):
        return expr
    return Literal(expr.type, value, span=expr.span)


def _in_range(literal: Literal) -> Literal:
    if literal.type is Type.INT and not SMALLEST_INT <= literal.value <= LARGEST_INT:
        raise OperandError("this does not fit into 64 bits", literal.span)
    return literal
