"""The meaning of a mask at given sizes, pair by pair: obvious and slow. Everything else is judged against it.

Memory stays bounded by the rows of one chunk, so that only `mask` itself returns something of the size of all pairs.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskc.evaluate import Pairs, depends, evaluate
from maskc.features import require_mask
from maskc.spec import Binary, BinaryOp, Claim, Expr, MaskSpec, Side, Sizes, Type, Unary, UnaryOp

Inputs = Mapping[str, NDArray[Any]]

_CHUNK = 1 << 20
"""Pairs that are evaluated at once."""


@dataclass(frozen=True)
class Witness:
    """A kept pair that breaks a claim: the smallest query position, then key position, then batch row, then head."""

    claim: Claim
    batch: int
    head: int
    q: int
    k: int

    def __str__(self) -> str:
        place = f"q = {self.q}, k = {self.k}, head {self.head}, batch row {self.batch}"
        return f"claim {self.claim.expr} fails for the kept pair {place}"


def mask_dims(spec: MaskSpec, sizes: Sizes) -> tuple[bool, bool]:
    """Whether the mask has a batch dim and a head dim: only where the predicate reads what differs along them."""
    return depends(spec.predicate, sizes)


def mask(spec: MaskSpec, sizes: Sizes, inputs: Inputs | None = None) -> NDArray[np.bool_]:
    """The kept pairs, bool [batch?, head?, q_len, k_len]; `mask_dims` says which of the first two dims it has.

    Raises MaskUnsupportedError where they depend on the scores.
    """
    require_mask(spec)
    batch, head = mask_dims(spec, sizes)
    rows, heads = _maps((batch, head), sizes)
    kept = np.zeros((rows, heads, sizes.q_len, sizes.k_len), np.bool_)
    for b, h, start, stop in _chunks((rows, heads), sizes):
        kept[b, h, start:stop] = _at(spec.predicate, sizes, inputs or {}, b, h, start, stop)
    return kept.reshape((rows,) * batch + (heads,) * head + kept.shape[2:])


def live_pairs(spec: MaskSpec, sizes: Sizes, inputs: Inputs | None = None) -> NDArray[np.int64]:
    """How many pairs are kept: int64 [batch rows, heads], 1 in a dim that the predicate does not depend on.

    Raises MaskUnsupportedError where they depend on the scores.
    """
    require_mask(spec)
    maps = _maps(mask_dims(spec, sizes), sizes)
    count = np.zeros(maps, np.int64)
    for b, h, start, stop in _chunks(maps, sizes):
        count[b, h] += np.count_nonzero(_at(spec.predicate, sizes, inputs or {}, b, h, start, stop))
    return count


def refute(spec: MaskSpec, sizes: Sizes, inputs: Inputs | None = None) -> list[Witness]:
    """A witness for every claim over pairs that fails at these sizes; an empty list says that all of them hold."""
    found = (_witness(spec, claim, sizes, inputs or {}) for claim in spec.claims if claim.over_pairs)
    return [witness for witness in found if witness is not None]


def _witness(spec: MaskSpec, claim: Claim, sizes: Sizes, inputs: Inputs) -> Witness | None:
    broken = Binary(Type.BOOL, BinaryOp.AND, spec.predicate, Unary(Type.BOOL, UnaryOp.NOT, claim.expr))
    found: list[tuple[int, int, int, int]] = []
    for b, h, start, stop in _chunks(_maps(depends(broken, sizes), sizes), sizes):
        bad = np.flatnonzero(_at(broken, sizes, inputs, b, h, start, stop))
        if bad.size:
            row, column = divmod(int(bad[0]), sizes.k_len)
            q = start + row + _offset(sizes, inputs, Side.Q, b)
            found.append((q, column + _offset(sizes, inputs, Side.K, b), b, h))
    if not found:
        return None
    q, k, b, h = min(found)
    return Witness(claim, b, h, q, k)


def _maps(dims: tuple[bool, bool], sizes: Sizes) -> tuple[int, int]:
    batch, head = dims
    return (sizes.batch if batch else 1, sizes.heads if head else 1)


def _chunks(maps: tuple[int, int], sizes: Sizes) -> Iterator[tuple[int, int, int, int]]:
    """Batch row, head, first query and the one behind the last, queries counted from 0."""
    step = max(1, _CHUNK // max(1, sizes.k_len))
    for b in range(maps[0]):
        for h in range(maps[1]):
            for start in range(0, sizes.q_len, step):
                yield b, h, start, min(start + step, sizes.q_len)


def _at(expr: Expr, sizes: Sizes, inputs: Inputs, batch: int, head: int, start: int, stop: int) -> NDArray[np.bool_]:
    """A predicate at the queries start to stop and all keys: bool [stop - start, k_len]."""
    q = np.arange(start, stop, dtype=np.int64)[:, None] + _offset(sizes, inputs, Side.Q, batch)
    k = np.arange(sizes.k_len, dtype=np.int64)[None, :] + _offset(sizes, inputs, Side.K, batch)
    row, matrix = np.asarray(batch, np.int64), np.asarray(head, np.int64)
    value = evaluate(expr, Pairs(np, sizes, inputs, row, matrix, q, k))
    return np.broadcast_to(value, (stop - start, sizes.k_len))


def _offset(sizes: Sizes, inputs: Inputs, side: Side, batch: int) -> int:
    given = sizes.offset(side)
    return int(inputs[f"{side.value}_offset"][batch]) if given is None else given
