"""Functions that a kernel file brings along where its expressions call them, as text.

HELPERS compute operators; LOOKUPS search the rows of tables and mix the bits of `rand`.
"""

from collections.abc import Iterable

HELPERS = {
    "_held": '''
@triton.jit
def _held(x, low, high):
    """x where it lies between two row numbers, else the nearer one."""
    return tl.minimum(tl.maximum(x, low), high).to(tl.int32)
''',
    "_between": '''
@triton.jit
def _between(x, first, last):
    """Whether x is at least `first` and at most `last`, by one comparison of unsigned numbers."""
    UNSIGNED: tl.constexpr = tl.uint64 if x.dtype == tl.int64 else tl.uint32
    return (x - first).to(UNSIGNED) < tl.maximum(last - first + 1, 0).to(UNSIGNED)
''',
    "_multiple": '''
@triton.jit
def _multiple(quotient, divisor, low, high):
    """quotient * divisor; a quotient that no number from low to high has is replaced by one just outside theirs."""
    return tl.minimum(tl.maximum(quotient, low // divisor - 2), high // divisor + 2) * divisor
''',
    "_once": '''
@triton.jit
def _once(x, lanes):
    """A vector, each entry computed by one thread and handed to all that need it: `lanes` numbers the entries.

    Without this every thread computes the entries of all the columns that it holds of a tile of pairs.
    """
    if x.dtype == tl.int1:
        return tl.gather(x.to(tl.int8), lanes, 0) != 0
    else:
        return tl.gather(x, lanes, 0)
''',
    "_at_least": '''
@triton.jit
def _at_least(x, INTEGER: tl.constexpr):
    """Integers from memory, at least as wide as INTEGER."""
    if x.dtype.primitive_bitwidth < INTEGER.primitive_bitwidth:
        return x.to(INTEGER)
    else:
        return x
''',
    "_to_integer": '''
@triton.jit
def _to_integer(x, INTEGER: tl.constexpr):
    """Whole floats as integers; NaN, infinities and what needs more than 64 bits become 0."""
    fits = (x >= -9223372036854775808.0) & (x < 9223372036854775808.0)
    return tl.where(fits, x, 0.0).to(tl.int64).to(INTEGER)
''',
    "_round_half_even": '''
@triton.jit
def _round_half_even(x):
    """The nearest whole number; halves go to the even one."""
    below = tl.floor(x)
    above_half = x - below > 0.5
    tie_to_above = (x - below == 0.5) & (tl.floor(below * 0.5) * 2.0 != below)
    return tl.where(above_half | tie_to_above, below + 1.0, below)
''',
    "_floor_divide": '''
@triton.jit
def _floor_divide(a, b):
    """Quotient rounded down, 0 for a divisor of 0; Triton's own // rounds towards 0."""
    divisor = tl.where(b == 0, 1, b)
    quotient = a // divisor
    remainder = a - quotient * divisor
    below = (remainder != 0) & ((remainder < 0) != (divisor < 0))
    return tl.where(b == 0, 0, quotient - below.to(quotient.dtype))
''',
    "_floor_modulo": '''
@triton.jit
def _floor_modulo(a, b):
    """Remainder with the sign of the divisor, 0 for a divisor of 0; Triton's own % has the sign of the dividend."""
    divisor = tl.where(b == 0, 1, b)
    remainder = a % divisor
    moved = (remainder != 0) & ((remainder < 0) != (divisor < 0))
    return tl.where(b == 0, 0, tl.where(moved, remainder + divisor, remainder))
''',
    "_shift_left": '''
@triton.jit
def _shift_left(a, b):
    """a << b; 0 for negative counts and for those that shift everything out."""
    width: tl.constexpr = a.dtype.primitive_bitwidth
    count = tl.minimum(tl.maximum(b, 0), width - 1).to(a.dtype)
    return tl.where((b >= 0) & (b < width), a << count, 0)
''',
    "_shift_right": '''
@triton.jit
def _shift_right(a, b):
    """a >> b with the sign kept; 0 for negative counts."""
    width: tl.constexpr = a.dtype.primitive_bitwidth
    count = tl.minimum(tl.maximum(b, 0), width - 1).to(a.dtype)
    return tl.where(b >= 0, a >> count, 0)
''',
    "_power": '''
@triton.jit
def _power(a, b):
    """a ** b; NaN for negative a and a fraction b."""
    magnitude = tl.exp2(b * tl.log2(tl.abs(a)))
    whole = tl.floor(b) == b
    odd = tl.floor(b * 0.5) * 2.0 != b
    signed = tl.where(a < 0.0, tl.where(whole, tl.where(odd, -magnitude, magnitude), float("nan")), magnitude)
    return tl.where(b == 0.0, 1.0, tl.where(a == 1.0, 1.0, signed))
''',
    "_tanh": '''
@triton.jit
def _tanh(x):
    """Hyperbolic tangent: an odd polynomial near 0, where the quotient of exponentials would lose digits."""
    square = x * x
    near = x + x * square * (-0.333332819422 + square * (0.133314422036 + square * (
        -0.0537397155531 + square * (0.0206390887954 + square * -0.00570498872745))))
    tail = 1.0 - 2.0 / (tl.exp(2.0 * tl.abs(x)) + 1.0)
    return tl.where(tl.abs(x) < 0.625, near, tl.where(x < 0.0, -tail, tail))
''',
    "_tanh_double": '''
@triton.jit
def _tanh_double(x):
    """Hyperbolic tangent of float64; a series near 0, where the quotient of exponentials would lose digits."""
    square = x * x
    near = x * (1.0 + square * (-1.0 / 3.0 + square * (2.0 / 15.0 + square * (
        -17.0 / 315.0 + square * (62.0 / 2835.0)))))
    tail = 1.0 - 2.0 / (tl.exp(2.0 * tl.abs(x)) + 1.0)
    return tl.where(tl.abs(x) < 0.015625, near, tl.where(x < 0.0, -tail, tail))
''',
    "_sigmoid": '''
@triton.jit
def _sigmoid(x):
    """1 / (1 + exp(-x))."""
    return 1.0 / (1.0 + tl.exp(-x))
''',
    "_softplus": '''
@triton.jit
def _softplus(x):
    """log(1 + exp(x)), which never overflows."""
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL) + tl.log(1.0 + tl.exp(-tl.abs(x)))
''',
}

LOOKUPS = {
    "_member": '''
@triton.jit
def _member(item, row, stride, length, exists):
    """Whether the item is an entry of the row that begins at `row`; negative entries match nothing."""
    found = (tl.zeros_like(item) + tl.where(exists, 0, 0)) != 0
    for place in range(length):
        entry = tl.load(row + place * stride, mask=exists, other=-1)
        found |= (entry == item) & (entry >= 0)
    return found
''',
    "_bucket": '''
@triton.jit
def _bucket(item, row, stride, length, exists, INTEGER: tl.constexpr):
    """How many entries of the ascending row that begins at `row` are <= item, by steps of falling powers of 2."""
    passed = (tl.zeros_like(item) + tl.where(exists, 0, 0)).to(INTEGER)
    step = 1
    while step * 2 <= length:
        step *= 2
    while step > 0:
        place = passed + (step - 1)
        inside = exists & (place < length)
        entry = tl.load(row + place * stride, mask=inside, other=0)
        if item.dtype.is_floating():
            entry = entry.to(item.dtype)
        passed += tl.where(inside & (entry <= item), step, 0)
        step = step // 2
    return passed
''',
    "_mix": '''
@triton.jit
def _mix(state, number):
    """The state of `rand`, 32 bits, after one more argument of 64 bits."""
    wide = number + tl.full((), 0, tl.int64)  # a conversion would leave scalars of Triton's interpreter as they are
    low = wide.to(tl.uint32)
    high = (wide >> 32).to(tl.uint32)
    word = (state + 0x9E3779B9) ^ low ^ (high * 0x9E3779B1)
    word = (word ^ (word >> 16)) * 0x7FEB352D
    word = (word ^ (word >> 15)) * 0x846CA68B
    return word ^ (word >> 16)
''',
    "_fraction": '''
@triton.jit
def _fraction(state):
    """The upper 24 bits as a multiple of 2**-24 in [0, 1), which float32 holds exactly."""
    return (state >> 8).to(tl.int32).to(tl.float32) * (1.0 / 16777216.0)
''',
}


def helpers(called: Iterable[str]) -> str:
    """The text of the functions that are called, in one order for all files."""
    wanted = set(called)
    return "\n\n".join(text.strip("\n") + "\n" for h, text in (HELPERS | LOOKUPS).items() if h in wanted)
