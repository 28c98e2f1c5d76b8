"""How head dims that are no powers of two are cut into blocks that are."""

from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True)
class Cut:
    """How a head dim is laid out in blocks of powers of two.

    tail: whether a second, smaller block follows the first. ragged: whether the last block reaches past the dim.
    """

    tail: bool = False
    ragged: bool = False

    def __str__(self) -> str:
        blocks = "main + tail" if self.tail else "one block"
        return f"{blocks}, padded" if self.ragged else blocks


WHOLE = Cut()
"""One block that is the head dim itself."""


@dataclass(frozen=True)
class Columns:
    """The blocks of one head dim; tail is 0 where there is one block only."""

    dim: int
    main: int
    tail: int

    @property
    def padded(self) -> int:
        """How many columns are computed."""
        return self.main + self.tail

    @property
    def cut(self) -> Cut:
        """What the text has to know of it."""
        return Cut(self.tail > 0, self.padded > self.dim)


@lru_cache(maxsize=512)
def columns(dim: int) -> Columns:
    """The blocks for a head dim from 1 to 256: one power of two, or two where they are narrower (72 = 64 + 16).

    A dot takes at least 16 columns. Below 64 a second block costs more than its padding, by the static judge.
    """
    whole = max(16, _power_of_two_from(dim))
    main = whole if whole <= dim else whole // 2
    tail = max(16, _power_of_two_from(dim - main)) if main < dim else 0
    if main >= 64 and tail and main + tail < whole:
        return Columns(dim, main, tail)
    return Columns(dim, whole, 0)


def _power_of_two_from(number: int) -> int:
    """The least power of two that is not below a number."""
    return 1 << max(0, number - 1).bit_length()
