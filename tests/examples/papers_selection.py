"""Oracles of papers whose keys are chosen: blocks, neighbours, masks of an earlier layer, coarse and fine keys."""

import numpy as np
import torch
from papers import Shapes, causal, dots, grid, learned, lines, per_query_head, published, scaled, softmax, whole
from torch import Tensor


def chosen(q_len: int, k_len: int, lists: Tensor, block: int) -> Tensor:
    """The keys of the blocks in lists [batch, heads, q_len, top]; -1 is no block."""
    kept = torch.zeros(*lists.shape[:2], q_len, k_len, dtype=torch.bool)
    for b, h, i in np.ndindex(*lists.shape[:3]):
        for number in lists[b, h, i].tolist():
            if number >= 0:
                kept[b, h, i, number * block : (number + 1) * block] = True
    return kept


@published("moba", Shapes(19, heads=2), block=4, route=whole(5, 2, 2, 19, 2, low=-1))
def moba(q: Tensor, k: Tensor, v: Tensor, block: int, route: Tensor) -> Tensor:
    own = (torch.arange(19) // block)[None, None, :, None].expand(2, 2, 19, 1)
    return softmax(scaled(q, k), chosen(19, 19, torch.cat([route, own], -1), block) & causal(q, k)) @ v


@published("nsa:compressed", Shapes(30, 6, heads=4, kv_heads=2), length=8, stride=4)
def nsa_compressed(q: Tensor, k: Tensor, v: Tensor, length: int, stride: int) -> Tensor:
    last = torch.arange(k.shape[2]) * stride + length - 1
    return softmax(scaled(q, k), last <= torch.arange(q.shape[2])[:, None]) @ per_query_head(v, q)


@published("nsa:selected", Shapes(19, heads=4, kv_heads=2), block=4, route=whole(5, 2, 2, 19, 2, low=-1))
def nsa_selected(q: Tensor, k: Tensor, v: Tensor, block: int, route: Tensor) -> Tensor:
    kept = chosen(19, 19, route, block).repeat_interleave(2, 1) & causal(q, k)
    return softmax(scaled(q, k), kept) @ per_query_head(v, q)


@published("nsa:window", Shapes(19, heads=4, kv_heads=2), window=5)
def nsa_window(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    i, j = lines(q, k)
    return softmax(scaled(q, k), (j <= i) & (j > i - window)) @ per_query_head(v, q)


NEAR = whole(11, 2, 9, 4)


@published("roitr:local", Shapes(9, 11), neighbours=NEAR, pair=learned(2, 9, 11, 4).detach())
def roitr(q: Tensor, k: Tensor, v: Tensor, neighbours: Tensor, pair: Tensor) -> Tensor:
    rows = []
    for b in range(q.shape[0]):
        for i in range(q.shape[2]):
            near = neighbours[b, i].unique()
            keys = k[b][:, near] + pair[b, i, near]
            weights = torch.softmax((q[b][:, i, None] * keys).sum(-1) * q.shape[-1] ** -0.5, -1)
            rows.append((weights[..., None] * v[b][:, near]).sum(-2))
    return torch.stack(rows).view(2, 9, 2, 4).transpose(1, 2)


LOGIT = torch.where(torch.arange(5)[:, None] == 3, -1.0, learned(2, 5, 12).detach())


@published("mask2former", Shapes(5, 12), y=3, x=4, logit=LOGIT)
def mask2former(q: Tensor, k: Tensor, v: Tensor, y: int, x: int, logit: Tensor) -> Tensor:
    inside = logit.sigmoid() >= 0.5
    inside[~inside.any(-1)] = True
    return softmax(scaled(q, k), inside[:, None].expand(2, 2, 5, 12)) @ v


EXACT = whole(5, 2, 2, 5, 2, low=-1)


@published("mra", Shapes(20, 25, key_parts=(20, 5)), block=4, exact=EXACT)
def mra(q: Tensor, k: tuple[Tensor, ...], v: tuple[Tensor, ...], block: int, exact: Tensor) -> Tensor:
    """The paper's matrix of exp(score), whose coarse blocks are filled with the value of the pooled key."""
    (raw, pooled), (values, pooled_values) = k, v
    fine, coarse = dots(q, raw).mul(0.5).exp(), dots(q, pooled).mul(0.5).exp().repeat_interleave(block, -1)
    per_query = exact.repeat_interleave(block, -2)
    refined = chosen(20, 20, per_query, block)
    total = torch.where(refined, fine, coarse).sum(-1, keepdim=True)
    spread = pooled_values.repeat_interleave(block, -2)
    return (torch.where(refined, fine, 0.0) @ values + torch.where(refined, 0.0, coarse) @ spread) / total


@published("biformer", Shapes(30), y=5, x=6, regions=3, route=whole(9, 2, 9, 2))
def biformer(q: Tensor, k: Tensor, v: Tensor, y: int, x: int, regions: int, route: Tensor) -> Tensor:
    """Region by region with gathered keys, as the code does it."""
    rows, columns = grid(y, x)
    region = rows // 2 * regions + columns // 2  # 5 x 6 tokens in 3 x 3 regions of at most 2 x 2
    out = torch.zeros_like(q)
    for b in range(2):
        for r in range(regions**2):
            mine = (region == r).nonzero()[:, 0]
            keys = torch.cat([(region == other).nonzero()[:, 0] for other in route[b, r].unique()])
            weights = softmax(scaled(q[b : b + 1][:, :, mine], k[b : b + 1][:, :, keys]))
            found = weights @ v[b : b + 1][:, :, keys]
            out = out.index_put((torch.tensor([[b]]), torch.arange(2)[:, None], mine), found[0])
    return out


CACHED = torch.tensor([[9, 1, 6, 7, 0, 8, -1, 2], [4, 9, 2, 7, 3, 8, -1, 6]])


@published(
    "duo-attention",
    Shapes(1, 8),
    options={"q_offset": 9},
    sink=2,
    window=3,
    full=torch.tensor([False, True]),
    k_pos=CACHED,
)
def ring_buffer(q: Tensor, k: Tensor, v: Tensor, sink: int, window: int, full: Tensor, k_pos: Tensor) -> Tensor:
    """The token at position 9; the streaming head keeps 2 sinks and the last 3 tokens, and a few that are outdated."""
    slots = [[place for place in range(8) if int(k_pos[0, place]) in (0, 1, 7, 8, 9)], [0, 1, 2, 3, 4, 5, 7]]
    rows = [softmax(scaled(q, k)[:, h, :, s]) @ v[:, h, s] for h, s in enumerate(slots)]
    return torch.stack(rows, 1)
