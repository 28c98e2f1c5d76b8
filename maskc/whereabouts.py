"""Where a token lies, in the words of its mask: coordinates on a grid, the part it is in, its document."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskc.evaluate import coordinate, whole
from maskc.expr import Side
from maskc.spec import MaskSpec, Part, Sizes


def whereabouts(
    spec: MaskSpec, sizes: Sizes, side: Side, position: int, batch: int, inputs: Mapping[str, NDArray[Any]]
) -> str:
    """What there is to say of the token at a position, as `(y = 1, x = 2)`; empty for a plain line."""
    if spec.axes:
        return _bracketed([f"{axis} = {coordinate(position, axis, sizes)}" for axis in spec.axes])
    if spec.packed is not None:
        starts = inputs[spec.packed]
        return _in_document(starts[batch] if starts.ndim == 2 else starts, position)
    parts = spec.queries if side is Side.Q else spec.keys
    if spec.border is not None and side is Side.K:
        return _inside_border(parts[0].axes, sizes, whole(spec.border, sizes), position)
    return _in_part(parts, sizes, position)


def _in_document(starts: NDArray[Any], position: int) -> str:
    document = int(np.searchsorted(starts, position, side="right")) - 1
    if document < 0:
        return _bracketed(["before the first document"])
    return _bracketed([f"document {document}", f"token {position - int(starts[document])}"])


def _inside_border(axes: Sequence[str], sizes: Sizes, ring: int, position: int) -> str:
    shape = [sizes.axis[axis] for axis in axes]
    digits = [digit - ring for digit in _digits(position, [size + 2 * ring for size in shape])]
    real = all(0 <= digit < size for digit, size in zip(digits, shape, strict=True))
    words = [f"{axis} = {digit}" for axis, digit in zip(axes, digits, strict=True)]
    return _bracketed(words if real else [*words, "virtual"])


def _in_part(parts: Sequence[Part], sizes: Sizes, position: int) -> str:
    for part in parts:
        tokens = whole(part.tokens, sizes)
        if position < tokens or part is parts[-1]:
            name = "" if part.name is None else f"{part.name} "
            if not part.axes:
                return _bracketed([f"{name}{position}"])
            digits = _digits(position, [sizes.axis[axis] for axis in part.axes])
            words = [f"{axis} = {digit}" for axis, digit in zip(part.axes, digits, strict=True)]
            return _bracketed([f"{name}{words[0]}", *words[1:]])
        position -= tokens
    return ""


def _digits(position: int, shape: Sequence[int]) -> list[int]:
    """The row-major coordinates of a number; the first takes what lies beyond the grid."""
    strides = [max(1, math.prod(shape[place + 1 :])) for place in range(len(shape))]
    first, *rest = zip(strides, shape, strict=True)
    return [position // first[0], *(position // stride % max(1, size) for stride, size in rest)]


def _bracketed(words: Sequence[str]) -> str:
    return f" ({', '.join(words)})"
