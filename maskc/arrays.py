"""Operators over numpy or torch arrays, one function for both, so that the meaning of every operator is stated once.

Nothing has data-dependent control flow: on torch tensors nothing is copied to the host. Where the language leaves an
operator open it is closed here: a shift by a negative count gives 0, a shift by 64 or more what shifting one bit at a
time gives, integers wrap at 64 bits, a float that does not fit an integer floors, ceils and rounds to 0, and min and
max of NaN are NaN. A row that breaks the promise to ascend is searched like one that keeps it.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, assert_never

import numpy as np

from maskc.expr import BinaryOp, UnaryOp

Array = Any
"""A numpy array or a torch tensor."""

_INT64_LIMIT = 2.0**63
_WORD = 2**32 - 1


def apply_unary(xp: Any, op: UnaryOp, x: Array) -> Array:
    """`op` of an array of the operand's own type; FLOOR, CEIL and ROUND give int64."""
    match op:
        case UnaryOp.NEG:
            return -x
        case UnaryOp.INVERT | UnaryOp.NOT:
            return ~x
        case UnaryOp.ABS:
            return xp.abs(x)
        case UnaryOp.FLOOR:
            return _integer(xp, xp.floor(x))
        case UnaryOp.CEIL:
            return _integer(xp, xp.ceil(x))
        case UnaryOp.ROUND:
            return _integer(xp, xp.round(x))
        case UnaryOp.EXP:
            return xp.exp(x)
        case UnaryOp.LOG:
            return xp.log(x)
        case UnaryOp.TANH:
            return xp.tanh(x)
        case UnaryOp.ERF:
            return _numpy_erf(x) if xp is np else xp.erf(x)
        case UnaryOp.SIGMOID:
            return 1 / (1 + xp.exp(-x))
        case UnaryOp.SOFTPLUS:
            return xp.maximum(x, xp.zeros_like(x)) + xp.log1p(xp.exp(-xp.abs(x)))
        case UnaryOp.RELU:
            return xp.maximum(x, xp.zeros_like(x))
        case UnaryOp.SQRT:
            return xp.sqrt(x)
        case _:
            assert_never(op)


def apply_binary(xp: Any, op: BinaryOp, a: Array, b: Array) -> Array:
    """`a op b` of arrays of one type."""
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
            return _divided(xp, a, b, xp.floor_divide)
        case BinaryOp.MOD:
            return _divided(xp, a, b, xp.remainder)
        case BinaryOp.TRUNCDIV:
            return _divided(xp, a, b, _truncated_quotient)
        case BinaryOp.TRUNCMOD:
            return _divided(xp, a, b, lambda x, y: x - y * _truncated_quotient(x, y))
        case BinaryOp.POW:
            return a**b
        case BinaryOp.MIN:
            return xp.minimum(a, b)
        case BinaryOp.MAX:
            return xp.maximum(a, b)
        case BinaryOp.BITAND | BinaryOp.AND:
            return a & b
        case BinaryOp.BITOR | BinaryOp.OR:
            return a | b
        case BinaryOp.BITXOR:
            return a ^ b
        case BinaryOp.SHL:
            return xp.where((b >= 0) & (b < 64), a << within(xp, b, 63), xp.zeros_like(a))
        case BinaryOp.SHR:
            return xp.where(b >= 0, a >> within(xp, b, 63), xp.zeros_like(a))
        case BinaryOp.LT:
            return a < b
        case BinaryOp.LE:
            return a <= b
        case BinaryOp.GT:
            return a > b
        case BinaryOp.GE:
            return a >= b
        case BinaryOp.EQ:
            return a == b
        case BinaryOp.NE:
            return a != b
        case _:
            assert_never(op)


def row_position(xp: Any, row_length: int, item: Array, entry_at: Callable[[Array], Array]) -> Array:
    """How many entries of ascending rows are <= item, int64; 0 for NaN.

    entry_at: the entries at places in [0, row_length), which are given for every item. A binary search whose steps are
    the same for all items.
    """
    count = cast(xp, xp.zeros_like(item), xp.int64)
    step = 1 << max(0, row_length.bit_length() - 1)
    while step and row_length:
        wanted = count + step
        below = (wanted <= row_length) & (entry_at(within(xp, wanted - 1, row_length - 1)) <= item)
        count = xp.where(below, wanted, count)
        step //= 2
    return count


def random_bits(arguments: Sequence[Array]) -> Array:
    """What `rand` gives for int64 arrays, in units of 2**-24: int64 in [0, 2**24).

    The two halves of every argument are mixed into a state of 32 bits; `_mixed` is the integer hash `lowbias32`.
    """
    state: Array = 0
    for argument in arguments:
        word = (argument & _WORD) ^ ((((argument >> 32) & _WORD) * 0x9E3779B1) & _WORD)
        state = _mixed(((state + 0x9E3779B9) & _WORD) ^ word)
    return state >> 8


def cast(xp: Any, x: Array, dtype: Any) -> Array:
    """An array of another dtype, or itself."""
    return x.astype(dtype, copy=False) if xp is np else x.to(dtype)


def full(xp: Any, value: bool | int | float, dtype: Any, device: Any, shape: tuple[int, ...] = ()) -> Array:
    """An array of one value, made on a device of torch without a copy from the host."""
    return xp.full(shape, value, dtype=dtype) if xp is np else xp.full(shape, value, dtype=dtype, device=device)


def quiet(xp: Any) -> AbstractContextManager[Any]:
    """Overflow, NaN and infinities are values here, not events worth a warning."""
    return np.errstate(all="ignore") if xp is np else nullcontext()


def within(xp: Any, x: Array, last: int) -> Array:
    """Integers clamped to [0, last]."""
    return xp.clip(x, 0, last)


def _mixed(x: Array) -> Array:
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _WORD  # a product that wraps at 64 bits keeps its lower half
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _WORD
    return x ^ (x >> 16)


def _integer(xp: Any, whole: Array) -> Array:
    """Whole floats as int64; NaN, infinities and what does not fit become 0."""
    fits = (whole >= -_INT64_LIMIT) & (whole < _INT64_LIMIT)
    guarded = xp.where(fits, whole, xp.zeros_like(whole))
    return cast(xp, guarded, xp.int64)


def _divided(xp: Any, a: Array, b: Array, divide: Any) -> Array:
    """`divide(a, b)`, and 0 where b is 0. Integers keep away from -2**63 // -1, which traps on some processors."""
    zero = xp.zeros_like(b)
    one = xp.ones_like(b)
    if _is_float(xp, b):
        return xp.where(b == 0, zero, divide(a, xp.where(b == 0, one, b)))
    negative = b == -1
    # a // -1 = -a // 1 and a % -1 = -a % 1, and so for truncation.
    return xp.where(b == 0, zero, divide(xp.where(negative, -a, a), xp.where(negative | (b == 0), one, b)))


def _truncated_quotient(a: Array, b: Array) -> Array:
    """a / b towards zero, from the floored quotient."""
    floored = a // b
    return floored + ((floored * b != a) & ((a < 0) != (b < 0)))


def _is_float(xp: Any, x: Array) -> bool:
    return bool(np.issubdtype(x.dtype, np.floating)) if xp is np else bool(x.dtype.is_floating_point)


def _numpy_erf(x: Array) -> Array:
    """numpy has no erf; the C library's, entry by entry."""
    return np.vectorize(math.erf, otypes=[np.float64])(x)
