"""Oracles of papers that change weights after the softmax, count keys, gate heads or leave queries out."""

import numpy as np
import torch
from papers import (
    Shapes,
    causal,
    flags,
    grid,
    learned,
    lines,
    per_query_head,
    positive,
    published,
    scaled,
    softmax,
    whole,
)
from torch import Tensor

Aux = tuple[Tensor, dict[str, Tensor]]


# ---- weights after the softmax


@published("var-sinks", Shapes(14, heads=3), kind=whole(3, 2, 14), given=0.6, least=0.3, most=0.5)
def var_sinks(q: Tensor, k: Tensor, v: Tensor, kind: Tensor, given: float, least: float, most: float) -> Tensor:
    weights = softmax(scaled(q, k), causal(q, k))
    rows = weights.clone()
    for b, h, i in np.ndindex(*weights.shape[:3]):
        row, sink, seen = weights[b, h, i], kind[b] == 2, kind[b] == 1
        on_sinks, on_others = row[sink].sum(), row[seen].sum()
        if on_sinks + on_others >= least and on_sinks <= most * (on_sinks + on_others) and on_others > 0:
            freed = given * on_sinks
            rows[b, h, i] = torch.where(sink, (1 - given) * row, row) + freed * torch.where(seen, row, 0) / on_others
    assert (rows != weights).any()
    return rows @ v


@published("act-calibration", Shapes(16), threshold=0.11, beta=0.4)
def act_calibration(q: Tensor, k: Tensor, v: Tensor, threshold: float, beta: float) -> Tensor:
    weights = softmax(scaled(q, k), causal(q, k))
    number = weights.shape[-1]
    received = weights.sum(-2) / (number - torch.arange(number))
    sinks = received > threshold
    sinks[..., 0] = False
    assert sinks.any()
    chosen = sinks[:, :, None] & torch.ones_like(weights, dtype=torch.bool)
    rest = torch.where(chosen, 0, weights)
    freed = (1 - beta) * torch.where(chosen, weights, 0).sum(-1, keepdim=True)
    return (torch.where(chosen, beta * weights, 0) + rest + freed * rest / rest.sum(-1, keepdim=True)) @ v


@published("illama", Shapes(13), softness=0.0)
@published("illama", Shapes(13), softness=0.3)
def illama(q: Tensor, k: Tensor, v: Tensor, softness: float) -> Tensor:
    triangle = causal(q, k).double()
    return (softmax(scaled(q, k)) * (softness + (1 - softness) * triangle)) @ v


@published("relaxed-attention", Shapes(9, 12), gamma=0.2, valid=flags(2, 12, share=0.7))
def relaxed_attention(q: Tensor, k: Tensor, v: Tensor, gamma: float, valid: Tensor) -> Tensor:
    alone = softmax(scaled(q, k), valid[:, None, None].expand(2, 2, 9, 12)) @ v
    mean = (v * valid[:, None, :, None]).sum(-2, keepdim=True) / valid.sum(-1)[:, None, None, None]
    return (1 - gamma) * alone + gamma * mean


@published("convit", Shapes(20), y=4, x=5, offset=learned(2, 3), gate=learned(2))
def convit(q: Tensor, k: Tensor, v: Tensor, y: int, x: int, offset: Tensor, gate: Tensor) -> Tensor:
    rows, columns = grid(y, x)
    dx, dy = columns - columns[:, None], rows - rows[:, None]
    features = torch.stack([dx, dy, dx**2 + dy**2], -1).double()
    position = softmax(torch.einsum("ijf,hf->hij", features, offset))
    mixed = (1 - torch.sigmoid(gate))[:, None, None] * softmax(scaled(q, k)) + torch.sigmoid(gate)[
        :, None, None
    ] * position
    return mixed / mixed.sum(-1, keepdim=True) @ v


def streamed(q: Tensor, k: Tensor, sink: int, window: int) -> Tensor:
    i, j = lines(q, k)
    return (j <= i) & ((j < sink) | (i - j < window))


@published("duo-training:mixed", Shapes(17, heads=4, kv_heads=2), sink=2, window=3, gate=learned(4))
def duo_mixed(q: Tensor, k: Tensor, v: Tensor, sink: int, window: int, gate: Tensor) -> Tensor:
    scores, v = scaled(q, k), per_query_head(v, q)
    full, stream = softmax(scores, causal(q, k)) @ v, softmax(scores, streamed(q, k, sink, window)) @ v
    return gate[:, None, None] * full + (1 - gate)[:, None, None] * stream


HARD = torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64).requires_grad_()


@published("duo-training:by_mass", Shapes(17, heads=3), sink=2, window=3, gate=HARD)
def duo_by_mass(q: Tensor, k: Tensor, v: Tensor, sink: int, window: int, gate: Tensor) -> Tensor:
    count = torch.where(streamed(q, k, sink, window), 1.0, gate[:, None, None]) * causal(q, k)
    weights = count * scaled(q, k).exp()
    return weights / weights.sum(-1, keepdim=True) @ v


# ---- keys that count more or less than once


KINDS = torch.nn.functional.one_hot(whole(3, 2, 1, 15), 3).double().requires_grad_()
ENDS = torch.tensor(
    [
        [[min([e for e in range(j + 1, 15) if row[e, 0] == 1], default=15) for j in range(15)] for row in heads]
        for heads in KINDS
    ]
)


@published("nats", Shapes(15, kv_heads=1), window=2, kind=KINDS, next_global=ENDS)
def nats(q: Tensor, k: Tensor, v: Tensor, window: int, kind: Tensor, next_global: Tensor) -> Tensor:
    i, j = lines(q, k)
    local, sliding = i <= next_global[:, :, None], i <= j + window
    mask = kind[:, :, None, :, 0] + kind[:, :, None, :, 1] * local + kind[:, :, None, :, 2] * sliding
    weights = mask * scaled(q, k).exp() * causal(q, k)
    return weights / weights.sum(-1, keepdim=True) @ per_query_head(v, q)


KEPT = flags(2, 12, share=0.6).double().requires_grad_()
MERGED = whole(4, 2, 12, low=1).double()


@published("token-merging:ltmp", Shapes(9, 12), size=MERGED, kept=KEPT)
def ltmp(q: Tensor, k: Tensor, v: Tensor, size: Tensor, kept: Tensor) -> Aux:
    weights = torch.exp(scaled(q, k) + size.log()[:, None, None]) * kept[:, None, None]
    weights = weights / weights.sum(-1, keepdim=True)
    return weights @ v, {"importance": weights.mean(-2)}


@published("token-merging:mctf", Shapes(9, 12), size=MERGED)
def mctf(q: Tensor, k: Tensor, v: Tensor, size: Tensor) -> Aux:
    """Every merged token written out as often as it counts."""
    outputs, importance = [], []
    for b in range(q.shape[0]):
        copies = torch.repeat_interleave(torch.arange(12), size[b].long())
        weights = softmax(scaled(q[b : b + 1], k[b : b + 1][:, :, copies]))
        outputs.append(weights @ v[b : b + 1][:, :, copies])
        importance.append(torch.zeros(1, 2, 9, 12).double().index_add(-1, copies, weights).mean(-2))
    return torch.cat(outputs), {"importance": torch.cat(importance)}


SELECTED = torch.clamp(learned(2, 1, 14), 0, 1).detach().requires_grad_()


@published("key-gates:sparsek", Shapes(14, kv_heads=1), window=3, selected=SELECTED)
def sparsek(q: Tensor, k: Tensor, v: Tensor, window: int, selected: Tensor) -> Tensor:
    i, j = lines(q, k)
    near = i - j < window
    weights = softmax(scaled(q, k), (j <= i) & (near | (selected[:, :, None] > 0)))
    return (weights * torch.where(near, 1.0, selected[:, :, None])) @ per_query_head(v, q)


@published("key-gates:selective", Shapes(13), temperature=positive(2, 2, 13), gain=learned(2, 2, 13))
def selective(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor, gain: Tensor) -> Tensor:
    return softmax(temperature[..., None] * scaled(q, k), causal(q, k)) @ (gain[..., None] * v)


@published("key-gates:designedit", Shapes(9, 12), region=flags(2, 12))
def designedit(q: Tensor, k: Tensor, v: Tensor, region: Tensor) -> Tensor:
    return softmax(scaled(q, k * ~region[:, None, :, None])) @ v


@published("key-gates:motionclr", Shapes(9, 6), word=2, first=3, last=6, more=0.7, options={"q_offset": 0})
def motionclr(q: Tensor, k: Tensor, v: Tensor, word: int, first: int, last: int, more: float) -> Tensor:
    weights = softmax(scaled(q, k)).clone()
    weights[:, :, first : last + 1, word] += more
    return weights @ v


@published("key-gates:headmask", Shapes(9, heads=3), gate=torch.tensor([1.0, 0.0, 1.2]).double().requires_grad_())
def headmask(q: Tensor, k: Tensor, v: Tensor, gate: Tensor) -> Tensor:
    return torch.stack([gate[h] * (softmax(scaled(q, k))[:, h] @ v[:, h]) for h in range(3)], 1)


@published("key-gates:tempscale", Shapes(9), temperature=0.4)
def tempscale(q: Tensor, k: Tensor, v: Tensor, temperature: float) -> Tensor:
    return softmax(scaled(q, k) / temperature) @ v


@published("key-gates:top_theta", Shapes(15), theta=torch.tensor([0.1, -0.4]).double())
def top_theta(q: Tensor, k: Tensor, v: Tensor, theta: Tensor) -> Tensor:
    scores = scaled(q, k)
    return softmax(scores, causal(q, k) & (scores >= theta[:, None, None])) @ v


# ---- queries and heads that are left out


@published("moh", Shapes(13, heads=4, kv_heads=2), active=flags(2, 4, 13), gate=learned(2, 4, 13))
def moh(q: Tensor, k: Tensor, v: Tensor, active: Tensor, gate: Tensor) -> Tensor:
    return (gate * active)[..., None] * (softmax(scaled(q, k), causal(q, k)) @ per_query_head(v, q))


@published("informer", Shapes(11), active=torch.stack([torch.randperm(11)[:4] for _ in range(4)]).view(2, 2, 4))
def informer(q: Tensor, k: Tensor, v: Tensor, active: Tensor) -> Tensor:
    out = v.mean(-2, keepdim=True).expand_as(v).clone()
    for b, h in np.ndindex(2, 2):
        rows = active[b, h]
        out[b, h, rows] = (softmax(scaled(q[b : b + 1], k[b : b + 1])) @ v[b : b + 1])[0, h, rows]
    return out


@published("ee-mllm", Shapes(14), v_tokens=6)
def ee_mllm(q: Tensor, k: Tensor, v: Tensor, v_tokens: int) -> Tensor:
    i, j = lines(q, k)
    text = softmax(scaled(q, k), (j < v_tokens) | (j <= i)) @ v
    return torch.cat([v[:, :, :v_tokens], text[:, :, v_tokens:]], 2)


def mixed_bits(*numbers: int) -> float:
    """The documented hash of integers, as a number in [0, 1)."""
    word = 2**32

    def mix(x: int) -> int:
        x = (x ^ x >> 16) * 0x7FEB352D % word
        x = (x ^ x >> 15) * 0x846CA68B % word
        return x ^ x >> 16

    state = 0
    for number in numbers:
        low, high = number % word, number % 2**64 >> 32
        state = mix((state + 0x9E3779B9) % word ^ low ^ high * 0x9E3779B1 % word)
    return (state >> 8) * 2.0**-24


@published("dropout", Shapes(12), seed=7, p=0.3)
def dropout(q: Tensor, k: Tensor, v: Tensor, seed: int, p: float) -> Tensor:
    weights = softmax(scaled(q, k), causal(q, k))
    stays = torch.tensor([mixed_bits(seed, *index) >= p for index in np.ndindex(*weights.shape)]).view(weights.shape)
    return weights * stays / (1 - p) @ v
