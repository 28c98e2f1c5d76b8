"""Which functions of which kernel files make a forward and a backward, for any number of parts of a plan.

Both engines that run kernel files go by this; they differ in `run`, which calls a function of a file. Parts that are
not alone write float32 results: the outputs of their forward are merged, their gradients are added up.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from maskc.codegen.schedule import Pass
from maskc.codegen.source import KernelSource
from maskc.runtime import variants
from maskc.runtime.inputs import Call
from maskc.runtime.tables import Tables


class Run(Protocol):
    """Calls a function of a kernel file."""

    def __call__(self, source: KernelSource, function: str, *arguments: Any) -> Any:
        """What the function gives."""


Walk = tuple[Any, ...]
"""A walk as the functions of a kernel file take it, `WalkTables.walk`: the number of its shares is last."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What the kernels of one pass go by: its configuration, and for every part the kernel file that serves it and the
    walk of the side that the pass owns.
    """

    config: Mapping[str, Any]
    parts: Sequence[tuple[KernelSource, Walk]]


def plan(call: Call, pass_: Pass, config: Mapping[str, Any], found: Tables) -> Plan:
    """The plan of a pass from the tables of a call."""
    sources = [variants.source(call, part) for part in found.parts]
    return Plan(config, list(zip(sources, walks(pass_, found), strict=True)))


def walks(pass_: Pass, found: Tables) -> list[Walk]:
    """What a pass takes of tables."""
    return [(part.by_key if pass_ == "keys" else part.by_query).walk for part in found.parts]


def forward(call: Call, plan: Plan, run: Run) -> tuple[Tensor, Tensor]:
    """Output [batch, heads, q_len, D_v] and log-sum-exp [batch, heads, q_len]."""
    tensors = call.q, call.k, call.v
    if len(plan.parts) == 1:
        ((source, walk),) = plan.parts
        out, lse = run(source, "forward", *tensors, walk, *_rest(call, source, plan))
        return out, lse
    states = sum(walk[-1] for _, walk in plan.parts)
    (*rows, _), d_v = call.q.shape, call.v.shape[3]
    outs = call.q.new_empty((states, *rows, d_v), dtype=torch.float32)
    lses = call.q.new_full((states, *rows), float("-inf"), dtype=torch.float32)  # a part writes the rows that it holds
    state = 0
    for source, walk in plan.parts:
        share = slice(state, state := state + walk[-1])
        run(source, "forward_part", *tensors, walk, outs[share], lses[share], *_rest(call, source, plan))
    out, lse = run(plan.parts[0][0], "merge", outs, lses, call.q.dtype, plan.config)
    return out, lse


def backward(
    call: Call, queries: Plan, keys: Plan, out: Tensor, lse: Tensor, d_out: Tensor, d_lse: Tensor | None, run: Run
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v. queries, keys: of the kernels that own them. All but d_out contiguous, d_lse float32."""
    rows = run(queries.parts[0][0], "backward_rows", out, lse, d_out, d_lse, queries.config)
    common = call.q, call.k, call.v, d_out, *rows
    of_q, of_k_v = _sums(queries, call.q), _sums(keys, call.k, call.v)
    for source, walk in queries.parts:
        of_q = (run(source, "backward_queries", *common, walk, *_rest(call, source, queries), *of_q),)
    for source, walk in keys.parts:
        of_k_v = run(source, "backward_keys", *common, walk, *_rest(call, source, keys), *of_k_v)
    d_q, d_k, d_v = (x.to(call.q.dtype) for x in (*of_q, *of_k_v))
    return d_q, d_k, d_v


def _rest(call: Call, source: KernelSource, plan: Plan) -> tuple[Any, ...]:
    """arguments, scale and config, as the functions of a kernel file take them."""
    return variants.arguments(call, source), call.scale, plan.config


def _sums(plan: Plan, *owned: Tensor) -> tuple[Tensor, ...]:
    """Where several parts add up their gradients; nothing for a part that is alone."""
    return tuple(x.new_zeros(x.shape, dtype=torch.float32) for x in owned) if len(plan.parts) > 1 else ()
