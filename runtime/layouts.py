"""q, k and v as callers hold them: slices of fused buffers, other orders of dims, expanded rows, odd offsets."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

NAN = float("nan")


def fused(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Slices of one buffer [batch, seq, all heads and dims]; tensors of another length have a buffer of their own."""
    by_length: dict[int, list[Tensor]] = {}
    for x in tensors:
        by_length.setdefault(x.shape[2], []).append(x)
    views = {id(x): view for group in by_length.values() for x, view in zip(group, _slices(group), strict=True)}
    return tuple(views[id(x)] for x in tensors)


def _slices(tensors: list[Tensor]) -> list[Tensor]:
    """Tensors [batch, heads, seq, dim] of equal lengths as views of one buffer."""
    rows = [x.transpose(1, 2).flatten(2) for x in tensors]
    pieces = torch.cat(rows, 2).split([row.shape[2] for row in rows], 2)
    return [row.unflatten(2, x.shape[1::2]).transpose(1, 2) for x, row in zip(tensors, pieces, strict=True)]


def sequence_first(x: Tensor) -> Tensor:
    """A view of [batch, seq, head, dim]."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def turned(x: Tensor) -> Tensor:
    """A view of [batch, head, dim, seq]: rows have stride 1, dims do not."""
    return x.transpose(2, 3).contiguous().transpose(2, 3)


def shifted(x: Tensor) -> Tensor:
    """Contiguous, one element behind the start of the storage: no row begins at a multiple of 16 bytes."""
    return x.new_full((x.numel() + 1,), NAN)[1:].view(x.shape).copy_(x)


def spread(x: Tensor) -> Tensor:
    """Every second element of longer rows; between them lies NaN."""
    return x.new_full((*x.shape[:3], 2 * x.shape[3]), NAN)[..., ::2].copy_(x)


def one_row(x: Tensor) -> Tensor:
    """The first batch row for all: stride 0. These are other values."""
    return x[:1].expand(x.shape)


def one_head(x: Tensor) -> Tensor:
    """The first head for all: stride 0. These are other values."""
    return x[:, :1].expand(x.shape)


ALONE: Mapping[str, Callable[[Tensor], Tensor]] = {
    "bnhd": sequence_first,
    "turned": turned,
    "shifted": shifted,
    "spread": spread,
}
"""Layouts of any tensor [batch, heads, seq, dim] by itself."""

SHARED: Mapping[str, Callable[[Tensor], Tensor]] = {"one-row": one_row, "one-head": one_head}
"""Layouts of k and v, and of the upstream gradient."""

ODD = ("fused", *ALONE, *SHARED)
"""All layouts but `plain`, which leaves tensors as they are."""


def laid_out(layout: str, q: Tensor, k: Tensor, v: Tensor, d_out: Tensor) -> tuple[Tensor, ...]:
    """q, k, v and the upstream gradient in a layout. Laid out a second time they keep their values."""
    if layout in SHARED:
        return q, *(SHARED[layout](x) for x in (k, v, d_out))
    if layout in ALONE:
        return tuple(ALONE[layout](x) for x in (q, k, v, d_out))
    return (*fused(q, k, v), sequence_first(d_out)) if layout == "fused" else (q, k, v, d_out)
