"""The meaning of a mask at given sizes, pair by pair: obvious and slow. Everything else is judged against it.

Memory stays bounded by the rows of one chunk, so that only `mask` itself returns something of the size of all pairs.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskc.evaluate import Pairs, depends, evaluate
from maskc.expr import Expr, Side
from maskc.features import require_mask
from maskc.spec import MaskSpec, Sizes

Inputs = Mapping[str, NDArray[Any]]

_CHUNK = 1 << 20
"""Pairs that are evaluated at once."""


def mask_dims(spec: MaskSpec, sizes: Sizes) -> tuple[bool, bool]:
    """Whether the mask has a batch dim and a head dim: only where the predicate reads what differs along them."""
    return depends(spec.predicate, sizes)


def mask(spec: MaskSpec, sizes: Sizes, inputs: Inputs | None = None) -> NDArray[np.bool_]:
    """The kept pairs, bool [batch?, head?, q_len, k_len]; `mask_dims` says which of the first two dims it has.

    Raises MaskUnsupportedError where they depend on the scores.
    """
    require_mask(spec)
    batch, head = mask_dims(spec, sizes)
    rows, heads = maps_of((batch, head), sizes)
    kept = np.zeros((rows, heads, sizes.q_len, sizes.k_len), np.bool_)
    for b, h, start, stop in _rows((rows, heads), sizes):
        kept[b, h, start:stop] = _at(spec.predicate, sizes, inputs or {}, b, h, start, stop)
    return kept.reshape((rows,) * batch + (heads,) * head + kept.shape[2:])


def live_pairs(spec: MaskSpec, sizes: Sizes, inputs: Inputs | None = None) -> NDArray[np.int64]:
    """How many pairs are kept: int64 [batch rows, heads], 1 in a dim that the predicate does not depend on.

    Raises MaskUnsupportedError where they depend on the scores.
    """
    require_mask(spec)
    maps = maps_of(mask_dims(spec, sizes), sizes)
    count = np.zeros(maps, np.int64)
    for b, h, start, stop in _rows(maps, sizes):
        count[b, h] += np.count_nonzero(_at(spec.predicate, sizes, inputs or {}, b, h, start, stop))
    return count


def maps_of(dims: tuple[bool, bool], sizes: Sizes) -> tuple[int, int]:
    """How many batch rows and heads have to be looked at, when something may differ along these dims."""
    batch, head = dims
    return (sizes.batch if batch else 1, sizes.heads if head else 1)


def chunks(sizes: Sizes) -> Iterator[tuple[int, int]]:
    """The first query of each chunk and the one behind its last, counted from 0."""
    step = max(1, _CHUNK // max(1, sizes.k_len))
    return ((start, min(start + step, sizes.q_len)) for start in range(0, sizes.q_len, step))


def offset_of(sizes: Sizes, inputs: Inputs, side: Side, batch: int) -> int:
    """The position of the first query or key of a batch row."""
    given = sizes.offset(side)
    return int(inputs[f"{side.value}_offset"][batch]) if given is None else given


def _rows(maps: tuple[int, int], sizes: Sizes) -> Iterator[tuple[int, int, int, int]]:
    """Batch row, head, first query of a chunk and the one behind its last."""
    return ((b, h, *rows) for b in range(maps[0]) for h in range(maps[1]) for rows in chunks(sizes))


def _at(expr: Expr, sizes: Sizes, inputs: Inputs, batch: int, head: int, start: int, stop: int) -> NDArray[np.bool_]:
    """A predicate at the queries start to stop and all keys: bool [stop - start, k_len]."""
    q = np.arange(start, stop, dtype=np.int64)[:, None] + offset_of(sizes, inputs, Side.Q, batch)
    k = np.arange(sizes.k_len, dtype=np.int64)[None, :] + offset_of(sizes, inputs, Side.K, batch)
    row, matrix = np.asarray(batch, np.int64), np.asarray(head, np.int64)
    value = evaluate(expr, Pairs(np, sizes, inputs, row, matrix, q, k))
    return np.broadcast_to(value, (stop - start, sizes.k_len))
