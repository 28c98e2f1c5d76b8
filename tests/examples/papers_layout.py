"""Oracles of papers whose tokens stand on grids, in parts, on borders or in packed documents."""

import math
from itertools import product

import torch
from papers import (
    Shapes,
    grid,
    learned,
    lines,
    per_query_head,
    published,
    scaled,
    softmax,
    whole,
    with_margin,
)  # fmt: skip
from torch import Tensor
from torch.nn.functional import softplus

Parts = tuple[Tensor, ...]


# ---- zeros around the picture


@published("hat", Shapes(30), y=5, x=6, window=3, overlap=1, bias=learned(2, 7, 7))
def hat(q: Tensor, k: Tensor, v: Tensor, y: int, x: int, window: int, overlap: int, bias: Tensor) -> Tensor:
    """Window by window, as the code unfolds them out of a padded picture."""
    width = x + 2 * overlap
    k, v = (with_margin(t, y, x, overlap) for t in (k, v))
    rows, columns = grid(y, x)
    out = torch.zeros_like(q)
    for top in range(0, y, window):
        for left in range(0, x, window):
            inside = ((rows // window * window == top) & (columns // window * window == left)).nonzero()[:, 0]
            ends = [min(first + window + overlap, size + overlap) for first, size in ((top, y), (left, x))]
            seen = [(a, b) for a in range(top - overlap, ends[0]) for b in range(left - overlap, ends[1])]
            ky, kx = torch.tensor(seen).T
            keys = (ky + overlap) * width + kx + overlap
            reach = window + overlap - 1
            offsets = bias[:, ky - rows[inside, None] + reach, kx - columns[inside, None] + reach]
            weights = softmax(scaled(q[:, :, inside], k[:, :, keys]) + offsets)
            out = out.index_add(2, inside, weights @ v[:, :, keys])
    return out


@published("sasa-vision", Shapes(20), y=4, x=5, radius=1, rows=learned(2, 3, 4), columns=learned(2, 3, 4))
def stand_alone(q: Tensor, k: Tensor, v: Tensor, y: int, x: int, radius: int, rows: Tensor, columns: Tensor) -> Tensor:
    """Pixel by pixel over an unfolded picture."""
    width = 2 * radius + 1
    windows = []
    for tensor in (k, v):
        image = with_margin(tensor, y, x, radius).unflatten(2, (y + 2 * radius, x + 2 * radius))
        windows.append(image.unfold(2, width, 1).unfold(3, width, 1).permute(0, 1, 2, 3, 5, 6, 4).flatten(2, 3))
    keys, values = windows  # [batch, heads, pixels, rows, columns, dim]
    terms = keys + rows[None, :, None, :, None] + columns[None, :, None, None]
    weights = torch.softmax((q[:, :, :, None, None] * terms).sum(-1).flatten(-2), -1)
    return (weights[..., None] * values.flatten(3, 4)).sum(-2)


# ---- queries on one grid, keys on another


AGENTS = {"blocks": learned(2, 2, 3, 2, 3), "rows": learned(2, 2, 3, 4), "columns": learned(2, 2, 3, 6)}


def agent_bias(blocks: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """[heads, agents, pixels]"""
    spread = blocks.repeat_interleave(2, -2).repeat_interleave(2, -1)
    return (spread + rows[..., None] + columns[..., None, :]).flatten(-2).flatten(1, 2)


@published("agent-attention:gather", Shapes(6, 24), ay=2, ax=3, y=4, x=6, coarse=2, **AGENTS)
def agents_gather(
    q: Tensor, k: Tensor, v: Tensor, blocks: Tensor, rows: Tensor, columns: Tensor, **sizes: int
) -> Tensor:
    return softmax(scaled(q, k) + agent_bias(blocks, rows, columns)) @ v


@published("agent-attention:broadcast", Shapes(24, 6), ay=2, ax=3, y=4, x=6, coarse=2, **AGENTS)
def agents_broadcast(
    q: Tensor, k: Tensor, v: Tensor, blocks: Tensor, rows: Tensor, columns: Tensor, **sizes: int
) -> Tensor:
    return softmax(scaled(q, k) + agent_bias(blocks, rows, columns).mT) @ v


@published("stvit", Shapes(48, 12), y=6, x=8, cy=3, cx=4, cell=2)
def stvit(
    q: Tensor, k: Tensor, v: Tensor, y: int, x: int, cy: int, cx: int, cell: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Pixel by pixel over the nine cells around its own, as far as they are there."""
    weights = torch.zeros(*q.shape[:3], cy * cx, dtype=q.dtype)
    scores = scaled(q, k)
    for i in range(y * x):
        row, column = i // x // cell, i % x // cell
        cells = [
            a * cx + b
            for a in range(row - 1, row + 2)
            for b in range(column - 1, column + 2)
            if 0 <= a < cy and 0 <= b < cx
        ]
        weights = weights.index_put(
            (torch.arange(2)[:, None, None], torch.arange(2)[:, None], torch.tensor(i), torch.tensor(cells)),
            torch.softmax(scores[:, :, i, cells], -1),
        )
    return weights @ v, {"size": weights.sum(-2)}


@published("pvt", Shapes(48, 12, heads=4, kv_heads=2), y=6, x=8, sy=3, sx=4, ratio=2, bias=learned(4, 5, 7))
def pvt(q: Tensor, k: Tensor, v: Tensor, y: int, x: int, sy: int, sx: int, ratio: int, bias: Tensor) -> Tensor:
    (qy, qx), (ky, kx) = grid(y, x), grid(sy, sx)
    offsets = bias[:, qy[:, None] // ratio - ky + sy - 1, qx[:, None] // ratio - kx + sx - 1]
    return softmax(scaled(q, k) + offsets) @ per_query_head(v, q)


# ---- several sources of keys


@published("learnable-memory:memory", Shapes(7, key_parts=(7, 3)))
def memory(q: Tensor, k: Parts, v: Parts) -> Tensor:
    return softmax(scaled(q, torch.cat(k, 2))) @ torch.cat(v, 2)


@published("learnable-memory:tasks", Shapes(8, key_parts=(6, 2, 6)), tasks=2, task=2, n=6)
def memory_of_tasks(q: Tensor, k: Parts, v: Parts, tasks: int, task: int, n: int) -> Tensor:
    """One call a task, as if the others were not there."""
    (image, cls, slots), (image_v, cls_v, slots_v) = k, v
    out = [softmax(scaled(q[:, :, :n], image)) @ image_v]
    for t in range(tasks):
        keys, values = (
            torch.cat([a, b[:, :, t : t + 1], c[:, :, 3 * t : 3 * t + 3]], 2)
            for a, b, c in ((image, cls, slots), (image_v, cls_v, slots_v))
        )
        out.append(softmax(scaled(q[:, :, n + t : n + t + 1], keys)) @ values)
    return torch.cat(out, 2)


@published("tcpa", Shapes(9, key_parts=(1, 4, 6, 8)), group=2, groups=whole(8, 2, 9), c=4, p=6)
def tcpa(q: Tensor, k: Parts, v: Parts, group: int, groups: Tensor, c: int, p: int) -> Tensor:
    kept = torch.zeros(2, 2, 9, 19, dtype=torch.bool)
    kept[..., 0] = kept[..., 11:] = True
    for b in range(2):
        for i in range(9):
            first, prompts = (1, c) if i == 0 else (1 + c, p)
            for prompt in range(prompts):
                kept[b, :, i, first + prompt] = bool(int(groups[b, i]) & 1 << prompt // group)
    return softmax(scaled(q, torch.cat(k, 2)), kept) @ torch.cat(v, 2)


@published("cca", Shapes(23, key_parts=(5, 23)), window=6, group=4)
def cca(q: Tensor, k: Parts, v: Parts, window: int, group: int) -> Tensor:
    kept = torch.zeros(23, 28, dtype=torch.bool)
    for i in range(23):
        pooled = max(0, (i + 1 - window) // group)
        kept[i, :pooled] = True
        kept[i, 5 + pooled * group : 5 + i + 1] = True
        assert pooled * group + int(kept[i, 5:].sum()) == i + 1  # every key of the past once
    return softmax(scaled(q, torch.cat(k, 2)), kept) @ torch.cat(v, 2)


@published("combiner", Shapes(19, key_parts=(19, 5)), block=4)
def combiner(q: Tensor, k: Parts, v: Parts, block: int) -> Tensor:
    rows = []
    for i in range(19):
        own = i // block
        keys, values = (torch.cat([x[0][:, :, own * block : i + 1], x[1][:, :, :own]], 2) for x in (k, v))
        rows.append(softmax(scaled(q[:, :, i : i + 1], keys)) @ values)
    return torch.cat(rows, 2)


SEEN_CODES = whole(4, 2, 2, 3, 5).double()


@published(
    "transformer-vq",
    Shapes(14, kv_heads=2, key_parts=(14, 15)),
    block=4,
    cache=3,
    code=5,
    seen=SEEN_CODES,
    bias=learned(2, 8),
)
def transformer_vq(
    q: Tensor, k: Parts, v: Parts, block: int, cache: int, code: int, seen: Tensor, bias: Tensor
) -> Tensor:
    """Query by query; a codeword that was seen n times is there n times."""
    heads = []
    for b in range(2):
        for h in range(2):
            rows = []
            for i in range(14):
                own = i // block
                recent = torch.arange(max(0, (own - 1) * block), i + 1)
                copies = torch.zeros(0, dtype=torch.long)
                if own >= 2:
                    codes = torch.arange((own - 2) * code, (own - 1) * code)
                    copies = codes.repeat_interleave(seen[b, h, own - 2].long())
                scores = torch.cat(
                    [
                        q[b, h, i] @ k[0][b, h, recent].T * 0.5 + bias[h, i - recent],
                        q[b, h, i] @ k[1][b, h, copies].T * 0.5,
                    ]
                )
                rows.append(torch.softmax(scores, 0) @ torch.cat([v[0][b, h, recent], v[1][b, h, copies]]))
            heads.append(torch.stack(rows))
    return torch.stack(heads).view(2, 2, 14, 4)


@published(
    "transnext",
    Shapes(20, key_parts=(20, 6)),
    y=4,
    x=5,
    py=2,
    px=3,
    radius=2,
    embedding=learned(2, 4),
    tau=learned(2),
    window_bias=learned(2, 5, 5),
    pooled_bias=learned(2, 4, 5, 2, 3),
    token=learned(2, 5, 5, 4),
    offset=learned(2, 5, 5),
)
def transnext(
    q: Tensor,
    k: Parts,
    v: Parts,
    y: int,
    x: int,
    py: int,
    px: int,
    radius: int,
    embedding: Tensor,
    tau: Tensor,
    window_bias: Tensor,
    pooled_bias: Tensor,
    token: Tensor,
    offset: Tensor,
) -> Tensor:
    rows = []
    for i in range(y * x):
        top, left = i // x - radius, i % x - radius
        window = product(range(2 * radius + 1), repeat=2)
        places = [(a, b) for a, b in window if 0 <= top + a < y and 0 <= left + b < x]
        dy, dx = torch.tensor(places).T
        near = (top + dy) * x + left + dx
        keys, values = (torch.cat([t[0][:, :, near], t[1]], 2) for t in (k, v))
        factor = softplus(tau) * math.log(len(places) + py * px)
        scores = ((q[:, :, i] + embedding)[:, :, None] * keys).sum(-1) * factor[:, None]
        bias = torch.cat([window_bias[:, dy, dx], pooled_bias[:, i // x, i % x].flatten(1)], -1)
        weights = torch.softmax(scores + bias, -1)
        more = (q[:, :, i, None] * token[:, dy, dx]).sum(-1) + offset[:, dy, dx]
        weights = weights + torch.nn.functional.pad(more, (0, py * px))
        rows.append((weights[..., None] * values).sum(-2))
    return torch.stack(rows, 2)


# ---- documents laid end to end


STARTS = [0, 5, 5, 14, 20]


def of_documents(length: int, starts: list[int]) -> list[slice]:
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], length], strict=True)]


@published("bytetransformer:variable_length", Shapes(23), start=torch.tensor(STARTS))
def variable_length(q: Tensor, k: Tensor, v: Tensor, start: Tensor) -> Tensor:
    parts = of_documents(23, STARTS)
    return torch.cat([softmax(scaled(q[:, :, d], k[:, :, d])) @ v[:, :, d] for d in parts], 2)


ROWS = [[0, 5, 5, 14], [0, 3, 9, 22]]


@published("bytetransformer:causal_with_bias", Shapes(23), window=4, start=torch.tensor(ROWS), bias=learned(2, 4))
def causal_with_bias(q: Tensor, k: Tensor, v: Tensor, window: int, start: Tensor, bias: Tensor) -> Tensor:
    batch = []
    for b, starts in enumerate(ROWS):
        parts = []
        for d in of_documents(23, starts):
            one = [x[b : b + 1, :, d] for x in (q, k, v)]
            i, j = lines(one[0], one[1])
            kept = (j <= i) & (i - j < window)
            parts.append(softmax(scaled(one[0], one[1]) + bias[:, (i - j).clamp(0, window - 1)], kept) @ one[2])
        batch.append(torch.cat(parts, 2))
    return torch.cat(batch)


@published("bytetransformer:pictures", Shapes(24), x=4, window=2, start=torch.tensor([0, 8, 8]))
def pictures(q: Tensor, k: Tensor, v: Tensor, x: int, window: int, start: Tensor) -> Tensor:
    """Pictures of 2 and of 4 rows; the one between them is empty."""
    parts = []
    for d in of_documents(24, [0, 8]):
        rows, columns = grid((d.stop - d.start) // x, x)
        together = (rows[:, None] // window == rows // window) & (columns[:, None] // window == columns // window)
        parts.append(softmax(scaled(q[:, :, d], k[:, :, d]), together) @ v[:, :, d])
    return torch.cat(parts, 2)
