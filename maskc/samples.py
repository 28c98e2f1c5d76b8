"""Random inputs of the right kind for a spec, drawn from what it says about them: type, dims, `of` and `sorted`.

They stand in for real inputs where only the shape of the problem matters: the command line, `maskc verify`, tests.
"""

from collections.abc import Mapping
from math import isqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskc.evaluate import Pairs, evaluate
from maskc.sizes import input_shape
from maskc.spec import DimKind, InputSpec, MaskSpec, Sizes, Type

Array = NDArray[Any]

FREE_EXTENT = 4  # of a dim that only a tensor would fix
PADDING = 1 / 8  # share of entries that are -1 where `of` allows it


def draw(
    spec: MaskSpec, sizes: Sizes, generator: np.random.Generator, free: Mapping[str, int] | None = None
) -> dict[str, Array]:
    """One array per input of the spec: bool, int64 or float32, of the shape that the call's sizes ask for.

    free: extents of dims that are bare names; 4 where it says nothing. Ids that have no range lie in a small one, so
    that they repeat; sorted ids ascend with repeats, as the numbers of packed documents do; floats are normal.
    """
    extents = {dim.text: FREE_EXTENT for i in spec.inputs for dim in i.dims if dim.kind is DimKind.FREE}
    extents.update(free or {})
    return {i.name: draw_input(spec, sizes, i, generator, extents) for i in spec.inputs}


def draw_input(
    spec: MaskSpec, sizes: Sizes, wanted: InputSpec, generator: np.random.Generator, free: Mapping[str, int]
) -> Array:
    """One input; see `draw`."""
    shape = input_shape(spec, sizes, wanted.name, free)
    match wanted.type:
        case Type.BOOL:
            return generator.random(shape) < 0.5
        case Type.INT:
            entries: Array = draw_ids(shape, id_bound(wanted, sizes, shape), generator, padded=wanted.below is not None)
        case Type.FLOAT:
            entries = generator.standard_normal(shape).astype(np.float32)
    return np.sort(entries, axis=-1) if wanted.sorted else entries


def draw_ids(shape: tuple[int, ...], bound: int, generator: np.random.Generator, *, padded: bool) -> NDArray[np.int64]:
    """Integers in [0, bound), some of them -1 where they are `padded`; all -1 where the range is empty."""
    if bound <= 0:
        return np.full(shape, -1 if padded else 0, np.int64)
    ids = generator.integers(0, bound, shape)
    return np.where(generator.random(shape) < PADDING, -1, ids) if padded else ids


def id_bound(wanted: InputSpec, sizes: Sizes, shape: tuple[int, ...]) -> int:
    """What the entries of an integer input lie below: `of`, or for entries along tokens the root of their number."""
    if wanted.below is not None:
        zero = np.zeros(1, np.int64)
        pairs = Pairs(xp=np, sizes=sizes, inputs={}, batch=zero, head=zero, q=zero, k=zero)
        return int(np.asarray(evaluate(wanted.below, pairs)).reshape(-1)[0])
    along_tokens = any(dim.kind in (DimKind.SEQ, DimKind.EXTENT) for dim in wanted.dims)
    return max(2, isqrt(max(shape)) if along_tokens and shape else max(sizes.q_len, sizes.k_len) // 2)
