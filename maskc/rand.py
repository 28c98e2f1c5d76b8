"""`rand` in pure Python: what every engine gives, bit for bit.

A counter-based mix of 64-bit integers and of nothing else, so that a value is the same in the forward and backward pass
and in every tiling. It needs no more than multiplication, exclusive or and shifts of 32 bits.
"""

from collections.abc import Iterable

STEP = 0x9E3779B9  # added before each argument, so that zeros in front count; 2**32 divided by the golden ratio
UPPER = 0x9E3779B1  # takes the upper half of an argument into the lower one; small arguments have none
FACTORS = (0x7FEB352D, 0x846CA68B)
SHIFTS = (16, 15, 16)
WORD = 0xFFFFFFFF


def rand(arguments: Iterable[int]) -> float:
    """The value for these arguments, a multiple of 2**-24 in [0, 1); each is read as a 64-bit integer."""
    state = 0
    for argument in arguments:
        low, high = argument & WORD, argument >> 32 & WORD
        state = mix((state + STEP & WORD) ^ low ^ (high * UPPER & WORD))
    return (state >> 8) * 2.0**-24


def mix(word: int) -> int:
    """A permutation of 32-bit words under which every bit depends on every other."""
    word ^= word >> SHIFTS[0]
    word = word * FACTORS[0] & WORD
    word ^= word >> SHIFTS[1]
    word = word * FACTORS[1] & WORD
    return word ^ word >> SHIFTS[2]
