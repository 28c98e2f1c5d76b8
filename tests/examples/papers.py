"""What the gallery's papers compute, in plain torch and float64: a register of oracles and the few tools they share.

An oracle is a function of q [batch, heads, q_len, dim], k and v [batch, kv_heads, k_len, dim] and of what the mask is
given by name. It answers with the output, or with the output and the mask's named outputs. It is written from the
paper, in whole matrices; nothing here or in the oracles reads a spec or imports maskc.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

Oracle = Callable[..., Tensor | tuple[Tensor, dict[str, Tensor]]]
GENERATOR = torch.Generator().manual_seed(20)


@dataclass(frozen=True)
class Shapes:
    """Sizes of q, k and v. k_len, kv_heads: those of q by default; key_parts: k and v as tuples of these lengths."""

    q_len: int
    k_len: int | None = None
    batch: int = 2
    heads: int = 2
    kv_heads: int | None = None
    dim: int = 4
    key_parts: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Paper:
    """One call of a gallery's mask. given: parameters, axis sizes and tensors; options: of the call itself."""

    mask: str
    oracle: Oracle
    shapes: Shapes
    given: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.mask


PAPERS: list[Paper] = []


def published(mask: str, shapes: Shapes, *, options: dict[str, Any] | None = None, **given: Any) -> Any:
    """Registers the function below it as the oracle of a gallery's mask `file` or `file:name`."""

    def register(oracle: Oracle) -> Oracle:
        PAPERS.append(Paper(mask, oracle, shapes, given, options or {}))
        return oracle

    return register


# ---- what a mask is given


def learned(*shape: int) -> Tensor:
    """A random parameter of the model; it gets a gradient."""
    return torch.randn(shape, generator=GENERATOR, dtype=torch.float64).requires_grad_()


def positive(*shape: int) -> Tensor:
    """The same between 0.2 and 1.2."""
    return (torch.rand(shape, generator=GENERATOR, dtype=torch.float64) + 0.2).requires_grad_()


def whole(high: int, *shape: int, low: int = 0) -> Tensor:
    """Random integers from low to high - 1."""
    return torch.randint(low, high, shape, generator=GENERATOR)


def flags(*shape: int, share: float = 0.5) -> Tensor:
    """Random booleans."""
    return torch.rand(shape, generator=GENERATOR) < share


# ---- what attention is made of


def dots(q: Tensor, k: Tensor) -> Tensor:
    """Products of every query with every key [batch, heads, q_len, k_len]; KV heads are repeated."""
    return q @ per_query_head(k, q).mT


def scaled(q: Tensor, k: Tensor) -> Tensor:
    """The usual scores."""
    return dots(q, k) * q.shape[-1] ** -0.5


def per_query_head(x: Tensor, q: Tensor) -> Tensor:
    """x [batch, kv_heads, ...] with one head per query head."""
    return x.repeat_interleave(q.shape[1] // x.shape[1], 1)


def softmax(scores: Tensor, kept: Tensor | None = None) -> Tensor:
    """Weights of rows; a row without keys has none."""
    if kept is None:
        return torch.softmax(scores, -1)
    some = kept.any(-1, keepdim=True)
    lowest = scores.masked_fill(~kept, -torch.inf)
    return torch.where(some, torch.softmax(torch.where(some, lowest, 0), -1), 0)


def lines(q: Tensor, k: Tensor, offset: int = 0) -> tuple[Tensor, Tensor]:
    """Positions of queries [q_len, 1] and keys [k_len]."""
    return offset + torch.arange(q.shape[-2])[:, None], torch.arange(k.shape[-2])


def causal(q: Tensor, k: Tensor) -> Tensor:
    """Which keys are not ahead of a query, [q_len, k_len]."""
    i, j = lines(q, k)
    return j <= i


def grid(y: int, x: int, margin: int = 0) -> tuple[Tensor, Tensor]:
    """Row and column of every token of a picture with a margin around it, both [tokens]."""
    rows, columns = np.indices((y + 2 * margin, x + 2 * margin)).reshape(2, -1) - margin
    return torch.from_numpy(rows), torch.from_numpy(columns)


def with_margin(x: Tensor, y_size: int, x_size: int, margin: int) -> Tensor:
    """k or v of a picture with zeros around it."""
    image = x.unflatten(-2, (y_size, x_size))
    return torch.nn.functional.pad(image, (0, 0, margin, margin, margin, margin)).flatten(-3, -2)
