"""Reductions of the `dense` engine: contributions of pairs joined entry by entry of a table."""

from typing import assert_never

import torch
from torch import Tensor

from maskc.spec import ReduceOp


def joined(op: ReduceOp, values: Tensor, place: Tensor, entries: int) -> Tensor:
    """A vector of so many entries: `values` joined where `place`, int64, says. int64 for COUNT, whose values are bool.

    Entries to which nothing contributes are 0 (SUM, MEAN, COUNT), -inf (MAX, LOGSUMEXP) or inf (MIN).
    """
    match op:
        case ReduceOp.SUM:
            return _sum(values, place, entries)
        case ReduceOp.MEAN:
            count = _sum(torch.ones_like(values), place, entries)
            return _sum(values, place, entries) / count.clamp(min=1)
        case ReduceOp.MAX:
            return _extreme(values, place, entries, "amax", -torch.inf)
        case ReduceOp.MIN:
            return _extreme(values, place, entries, "amin", torch.inf)
        case ReduceOp.LOGSUMEXP:
            return _logsumexp(values, place, entries)
        case ReduceOp.COUNT:
            return _sum(values.to(torch.int64), place, entries)
        case _:
            assert_never(op)


def _sum(values: Tensor, place: Tensor, entries: int) -> Tensor:
    return values.new_zeros(entries).index_add(0, place, values)


def _extreme(values: Tensor, place: Tensor, entries: int, word: str, of_none: float) -> Tensor:
    return values.new_full((entries,), of_none).scatter_reduce(0, place, values.detach(), word)


def _logsumexp(values: Tensor, place: Tensor, entries: int) -> Tensor:
    top = _extreme(values, place, entries, "amax", -torch.inf)
    empty = top == -torch.inf
    shift = top.masked_fill(torch.isinf(top), 0)
    total = _sum(torch.exp(values - shift[place]), place, entries)
    return (torch.log(total.masked_fill(empty, 1)) + shift).masked_fill(empty, -torch.inf)
