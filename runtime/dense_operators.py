"""Operators of expressions on tensors, as the `dense` engine means them: integers are int64, and a kink has the
derivative that the language gives it.
"""

from collections.abc import Sequence
from typing import assert_never

import torch
from torch import Tensor

from maskc.expr import COMPARISONS, BinaryOp, UnaryOp


def unary(op: UnaryOp, x: Tensor) -> Tensor:
    """`op x`, element by element."""
    match op:
        case UnaryOp.NEG:
            return -x
        case UnaryOp.INVERT | UnaryOp.NOT:
            return ~x
        case UnaryOp.ABS:
            # The derivative at 0 is 0; abs of an integer and of NaN as torch has them.
            return torch.where(x == 0, torch.zeros_like(x), torch.abs(x)) if x.is_floating_point() else torch.abs(x)
        case UnaryOp.RELU:
            return torch.where((x > 0) | (x != x), x, torch.zeros_like(x))
        case UnaryOp.FLOOR:
            return _integer(torch.floor(x))
        case UnaryOp.CEIL:
            return _integer(torch.ceil(x))
        case UnaryOp.ROUND:
            return _integer(torch.round(x))
        case UnaryOp.EXP:
            return torch.exp(x)
        case UnaryOp.LOG:
            return torch.log(x)
        case UnaryOp.TANH:
            return torch.tanh(x)
        case UnaryOp.ERF:
            return torch.erf(x)
        case UnaryOp.SIGMOID:
            return torch.sigmoid(x)
        case UnaryOp.SOFTPLUS:
            return torch.logaddexp(x, torch.zeros_like(x))
        case UnaryOp.SQRT:
            return torch.sqrt(x)
        case _:
            assert_never(op)


def _integer(x: Tensor) -> Tensor:
    """A rounded float as an integer; NaN and what does not fit 64 bits become 0."""
    return torch.where(x.abs() < 2.0**63, x, torch.zeros_like(x)).to(torch.int64)


def binary(op: BinaryOp, a: Tensor, b: Tensor) -> Tensor:
    """`a op b`, element by element."""
    if op in COMPARISONS:
        return _COMPARE[op](a, b)
    match op:
        case BinaryOp.ADD:
            return a + b
        case BinaryOp.SUB:
            return a - b
        case BinaryOp.MUL:
            return a * b
        case BinaryOp.DIV:
            return a / b
        case BinaryOp.FLOORDIV:
            return floor_divide(a, b)
        case BinaryOp.MOD:
            return modulo(a, b)
        case BinaryOp.TRUNCDIV:
            return torch.div(a, b, rounding_mode="trunc")
        case BinaryOp.TRUNCMOD:
            return torch.fmod(a, b)
        case BinaryOp.POW:
            return torch.pow(a, b)
        case BinaryOp.MIN:
            # Not torch.minimum: at a tie the derivative goes to the second operand, and NaN in either is kept.
            return torch.where((a < b) | (a != a), a, b)
        case BinaryOp.MAX:
            return torch.where((a > b) | (a != a), a, b)
        case BinaryOp.BITAND | BinaryOp.AND:
            return a & b
        case BinaryOp.BITOR | BinaryOp.OR:
            return a | b
        case BinaryOp.BITXOR:
            return a ^ b
        case BinaryOp.SHL:
            return torch.where((b >= 0) & (b < 64), a << b.clamp(0, 63), 0)
        case BinaryOp.SHR:
            return torch.where(b >= 0, a >> b.clamp(0, 63), 0)
        case BinaryOp.LT | BinaryOp.LE | BinaryOp.GT | BinaryOp.GE | BinaryOp.EQ | BinaryOp.NE:
            raise AssertionError("comparisons are answered above")
        case _:
            assert_never(op)


_COMPARE = {
    BinaryOp.LT: torch.lt,
    BinaryOp.LE: torch.le,
    BinaryOp.GT: torch.gt,
    BinaryOp.GE: torch.ge,
    BinaryOp.EQ: torch.eq,
    BinaryOp.NE: torch.ne,
}


def floor_divide(a: Tensor, b: Tensor) -> Tensor:
    """Quotient rounded down; 0 for a divisor of 0."""
    zero = b == 0
    return torch.where(zero, torch.zeros_like(a), torch.div(a, torch.where(zero, 1, b), rounding_mode="floor"))


def modulo(a: Tensor, b: Tensor) -> Tensor:
    """Remainder with the divisor's sign; 0 for a divisor of 0."""
    zero = b == 0
    return torch.where(zero, torch.zeros_like(a), torch.remainder(a, torch.where(zero, 1, b)))


_WORD = 0xFFFFFFFF


def rand(arguments: Sequence[Tensor]) -> Tensor:
    """The 24 bits of `rand` as integers in [0, 2**24): a mix of the two 32-bit words of every int64 argument, in order.

    The finalizer is `lowbias32` (Wellons 2018).
    """
    h = torch.zeros((), dtype=torch.int64, device=arguments[0].device)
    for a in arguments:
        word = (a & _WORD) ^ (((a >> 32) & _WORD) * 0x9E3779B1 & _WORD)
        h = _mix(((h + 0x9E3779B9) & _WORD) ^ word)
    return h >> 8


def _mix(x: Tensor) -> Tensor:
    """On 32-bit words in int64, whose products wrap at 64 bits and so keep the lower word exact."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _WORD
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _WORD
    return x ^ (x >> 16)
