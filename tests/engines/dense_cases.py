"""Calls of the definition for the tests of it."""

from typing import Any

import torch
from torch import Tensor

from maskc import check
from maskc.runtime import dense, inputs
from maskc.runtime.inputs import Call


def tensors(
    batch: int, heads: int, length: int, dim: int, *, kv_heads: int | None = None, seed: int = 0, big: float = 1
):
    """q, k and v of one length in float64, which require gradients; q is `big` times a normal."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, h, length, dim) for h in (heads, kv_heads or heads, kv_heads or heads)]
    q, k, v = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return tuple(x.requires_grad_() for x in (big * q, k, v))


def learned(*shape: int, seed: int = 1, shift: float = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) + shift).requires_grad_()


def call_of(text: str, q: Tensor, k: Tensor, v: Tensor, q_offset: int | Tensor = 0, **given: Any) -> Call:
    return inputs.prepare(check.load(text), q, k, v, given, q_offset=q_offset)


def attend(text: str, q: Tensor, k: Tensor, v: Tensor, **given: Any) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
    return dense.attention(call_of(text, q, k, v, **given))


def scores(q: Tensor, k: Tensor) -> Tensor:
    """The first score, written out."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    return torch.einsum("bhqd,bhkd->bhqk", q, k) / q.shape[-1] ** 0.5


def grid(length: int) -> tuple[Tensor, Tensor]:
    """Positions of queries and of keys, as a column and a row."""
    return torch.arange(length).view(-1, 1), torch.arange(length)


def causal(length: int) -> Tensor:
    query, key = grid(length)
    return key <= query


def leaves(*tensors: Any) -> list[Tensor]:
    return [x for x in tensors if isinstance(x, Tensor) and x.requires_grad]


def assert_same(text: str, oracle: Any, q: Tensor, k: Tensor, v: Tensor, **given: Any) -> None:
    """Output and every gradient are those of `oracle(q, k, v, **given)`, and torch's finite differences agree."""
    expected = oracle(q, k, v, **given)
    out, _, _ = attend(text, q, k, v, **given)
    torch.testing.assert_close(out, expected)
    over = leaves(q, k, v, *given.values())
    d_out = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=out.dtype)
    found = torch.autograd.grad(out, over, d_out)
    wanted = torch.autograd.grad(expected, over, d_out, materialize_grads=True)
    torch.testing.assert_close(found, wanted)
    assert_derivatives(text, q, k, v, **given)


def assert_derivatives(text: str, q: Tensor, k: Tensor, v: Tensor, **given: Any) -> None:
    """Gradients of output, log-sum-exp and outputs by everything that has one are finite and those of differences."""
    names = [name for name, x in given.items() if isinstance(x, Tensor) and x.requires_grad]

    def results(q: Tensor, k: Tensor, v: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        out, lse, aux = attend(text, q, k, v, **{**given, **dict(zip(names, rest, strict=True))})
        found = [out, *([] if lse is None else [lse]), *(x for x in aux.values() if x.requires_grad)]
        return tuple(torch.where(torch.isneginf(x), 0, x) for x in found)

    over = leaves(q, k, v, *given.values())
    assert torch.autograd.gradcheck(results, over, fast_mode=True)  # along random directions
    assert all(bool(torch.isfinite(x).all()) for x in torch.autograd.grad(sum(x.sum() for x in results(*over)), over))


def drawn(*arguments: int) -> float:
    """`rand` in Python's integers."""
    low = 0xFFFFFFFF
    h = 0
    for a in arguments:
        a %= 2**64
        x = ((h + 0x9E3779B9) & low) ^ (a & low) ^ ((a >> 32) * 0x9E3779B1 & low)
        x = ((x ^ (x >> 16)) * 0x7FEB352D) & low
        x = ((x ^ (x >> 15)) * 0x846CA68B) & low
        h = x ^ (x >> 16)
    return (h >> 8) * 2.0**-24
