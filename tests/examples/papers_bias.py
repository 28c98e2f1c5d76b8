"""Oracles of papers that change the scores: biases, relative terms, decays along paths, networks of the distance."""

import math

import torch
from papers import (
    Shapes,
    causal,
    dots,
    grid,
    learned,
    lines,
    per_query_head,
    positive,
    published,
    scaled,
    softmax,
)
from torch import Tensor
from torch.nn.functional import softplus

# ---- one learned number per relation


def t5_bucket(relative: int, buckets: int, distance: int, both_ways: bool) -> int:
    """T5's bucket of `key - query`: the logarithms of its code as comparisons of whole powers."""
    first = 0
    if both_ways:
        buckets //= 2
        first = buckets if relative > 0 else 0
    steps = abs(relative) if both_ways else max(-relative, 0)
    exact = buckets // 2
    if steps < exact:
        return first + steps
    spread = buckets - exact
    reached = [j for j in range(spread) if steps**spread >= exact ** (spread - j) * distance**j]
    return first + exact + max(reached)


def t5(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, buckets: int, distance: int, both_ways: bool) -> Tensor:
    relative = torch.arange(k.shape[2]) - torch.arange(q.shape[2])[:, None]
    numbers = [[t5_bucket(int(r), buckets, distance, both_ways) for r in row] for row in relative]
    scores = dots(q, k) + bias[:, torch.tensor(numbers)]
    return softmax(scores, None if both_ways else causal(q, k)) @ v


@published("t5:encoder", Shapes(71), bias=learned(2, 8), buckets=8, distance=32)
@published("t5:encoder", Shapes(9, batch=1), bias=learned(2, 32), buckets=32, distance=128)
def t5_encoder(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, buckets: int, distance: int) -> Tensor:
    return t5(q, k, v, bias, buckets, distance, both_ways=True)


@published("t5:decoder", Shapes(71), bias=learned(2, 8), buckets=8, distance=32)
def t5_decoder(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, buckets: int, distance: int) -> Tensor:
    return t5(q, k, v, bias, buckets, distance, both_ways=False)


def swin_windows(y: int, x: int, window: int, shift: int) -> tuple[Tensor, Tensor]:
    """Which tokens share a window, and the entry of the bias table, both [tokens, tokens]."""
    rows, columns = grid(y, x)
    number = torch.stack([(c - shift).div(window, rounding_mode="floor") for c in (rows, columns)])
    together = (number[:, :, None] == number[:, None]).all(0)
    dy, dx = (c[:, None] - c + window - 1 for c in (rows, columns))
    return together, (dy * (2 * window - 1) + dx).where(together, 0)


@published("swin-bias:swin_v1", Shapes(42), y=6, x=7, window=3, shift=1, bias=learned(2, 25))
def swin_v1(q: Tensor, k: Tensor, v: Tensor, y: int, x: int, window: int, shift: int, bias: Tensor) -> Tensor:
    together, entry = swin_windows(y, x, window, shift)
    return softmax(scaled(q, k) + bias[:, entry], together) @ v


@published(
    "swin-bias:swin_v2",
    Shapes(42),
    y=6,
    x=7,
    window=3,
    shift=0,
    bias=learned(2, 25),
    log_scale=torch.tensor([2.0, 5.0]).double().requires_grad_(),
)
def swin_v2(
    q: Tensor, k: Tensor, v: Tensor, y: int, x: int, window: int, shift: int, bias: Tensor, log_scale: Tensor
) -> Tensor:
    together, entry = swin_windows(y, x, window, shift)
    cosine = torch.nn.functional.normalize(q, dim=-1) @ torch.nn.functional.normalize(k, dim=-1).mT
    factor = torch.clamp(log_scale, max=math.log(100.0)).exp()
    return softmax(cosine * factor[:, None, None] + bias[:, entry], together) @ v


@published("learned-alibi", Shapes(16, heads=3), behind=positive(3), ahead=positive(3))
def learned_alibi(q: Tensor, k: Tensor, v: Tensor, behind: Tensor, ahead: Tensor) -> Tensor:
    i, j = lines(q, k)
    distance = (i - j).double()
    bias = -behind[:, None, None] * distance.tril() + ahead[:, None, None] * distance.triu()
    return softmax(scaled(q, k) + bias) @ v


@published("kerple:logarithmic", Shapes(17, heads=4, kv_heads=2), r1=positive(4), r2=positive(4))
def kerple_logarithmic(q: Tensor, k: Tensor, v: Tensor, r1: Tensor, r2: Tensor) -> Tensor:
    i, j = lines(q, k)
    kernel = -r1[:, None, None] * torch.log1p(r2[:, None, None] * (i - j).abs())
    return softmax(scaled(q, k) + kernel, causal(q, k)) @ per_query_head(v, q)


@published("kerple:power", Shapes(17), r1=positive(2), r2=positive(2))
def kerple_power(q: Tensor, k: Tensor, v: Tensor, r1: Tensor, r2: Tensor) -> Tensor:
    i, j = lines(q, k)
    far = (i - j).abs().clamp(min=1).double()
    kernel = torch.where(i == j, 0.0, -r1[:, None, None] * far ** r2[:, None, None])
    return softmax(scaled(q, k) + kernel, causal(q, k)) @ v


@published(
    "fire",
    Shapes(19),
    hidden=5,
    c=learned(),
    threshold=torch.tensor(6.5).double().requires_grad_(),
    w1=learned(2, 5),
    b1=learned(2, 5),
    w2=learned(2, 5),
)
def fire(
    q: Tensor, k: Tensor, v: Tensor, hidden: int, c: Tensor, threshold: Tensor, w1: Tensor, b1: Tensor, w2: Tensor
) -> Tensor:
    i, j = lines(q, k)
    behind = (i - j).clamp(min=0).double()
    share = (c.abs() * behind + 1).log() / (c.abs() * torch.maximum(i.double(), threshold) + 1).log()
    inner = torch.relu(share[None, :, :, None] * w1[:, None, None] + b1[:, None, None])
    return softmax(scaled(q, k) + (inner * w2[:, None, None]).sum(-1), causal(q, k)) @ v


def paths_in_two_trees(nodes: int, longest: int, kinds: int) -> tuple[Tensor, Tensor]:
    """Lengths and kinds of edges of shortest paths in two binary trees, which do not reach each other; for 2 rows."""
    half = nodes // 2
    joined = torch.zeros(nodes, nodes, dtype=torch.bool)
    for root in (0, half):
        for child in range(1, half):
            parent = (child - 1) // 2
            joined[root + parent, root + child] = joined[root + child, root + parent] = True
    lengths = torch.full((nodes, nodes), -1)
    edges = torch.full((nodes, nodes, longest), -1)
    for start in range(nodes):
        reached, lengths[start, start] = [start], 0
        for node in reached:
            steps = int(lengths[start, node])
            for other in range(nodes):
                if joined[node, other] and lengths[start, other] < 0:
                    lengths[start, other] = steps + 1
                    edges[start, other] = edges[start, node]
                    edges[start, other, steps] = node * other % kinds
                    reached.append(other)
    return lengths.repeat(2, 1, 1), edges.repeat(2, 1, 1, 1)


LENGTHS, EDGES = paths_in_two_trees(14, 4, 3)


@published(
    "graphormer",
    Shapes(14),
    longest=4,
    kinds=3,
    length=LENGTHS,
    path=EDGES,
    spatial=learned(2, 5),
    unreachable=learned(2),
    edge=learned(2, 4, 3),
)
def graphormer(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    longest: int,
    kinds: int,
    length: Tensor,
    path: Tensor,
    spatial: Tensor,
    unreachable: Tensor,
    edge: Tensor,
) -> Tensor:
    batch, heads, nodes, _ = q.shape
    bias = []
    for b in range(batch):
        for h in range(heads):
            for i in range(nodes):
                for j in range(nodes):
                    steps = int(length[b, i, j])
                    term = unreachable[h] if steps < 0 else spatial[h, steps]
                    for step in range(max(steps, 0)):
                        term = term + edge[h, step, path[b, i, j, step]] / steps
                    bias.append(term)
    return softmax(scaled(q, k) + torch.stack(bias).view(batch, heads, nodes, nodes)) @ v


@published("levit:shrink", Shapes(12, 35, heads=3), small_y=3, small_x=4, y=5, x=7, bias=learned(3, 5, 7))
def levit(q: Tensor, k: Tensor, v: Tensor, small_y: int, small_x: int, y: int, x: int, bias: Tensor) -> Tensor:
    (qy, qx), (ky, kx) = grid(small_y, small_x), grid(y, x)
    return softmax(scaled(q, k) + bias[:, (2 * qy[:, None] - ky).abs(), (2 * qx[:, None] - kx).abs()]) @ v


@published("crossformer:short_distance", Shapes(36), y=6, x=6, group=3, bias=learned(2, 5, 5))
def crossformer_short(q: Tensor, k: Tensor, v: Tensor, y: int, x: int, group: int, bias: Tensor) -> Tensor:
    out = torch.zeros_like(q)
    picture = torch.arange(y * x).view(y, x)
    for top in range(0, y, group):
        for left in range(0, x, group):
            out = attend_in_group(out, q, k, v, picture[top : top + group, left : left + group], bias, group)
    return out


@published("crossformer:long_distance", Shapes(54), y=6, x=9, group=3, bias=learned(2, 5, 5))
def crossformer_long(q: Tensor, k: Tensor, v: Tensor, y: int, x: int, group: int, bias: Tensor) -> Tensor:
    out = torch.zeros_like(q)
    picture = torch.arange(y * x).view(y, x)
    for top in range(y // group):
        for left in range(x // group):
            out = attend_in_group(out, q, k, v, picture[top :: y // group, left :: x // group], bias, group)
    return out


def attend_in_group(out: Tensor, q: Tensor, k: Tensor, v: Tensor, cells: Tensor, bias: Tensor, group: int) -> Tensor:
    """Attention among the tokens of a group [group, group], with the bias of offsets in the group's own steps."""
    tokens = cells.reshape(-1)
    rows, columns = grid(group, group)
    offsets = bias[:, rows[:, None] - rows + group - 1, columns[:, None] - columns + group - 1]
    return out.index_add(2, tokens, softmax(scaled(q[:, :, tokens], k[:, :, tokens]) + offsets) @ v[:, :, tokens])


# ---- terms of the query or the key and a distance


@published("relative-terms:shaw", Shapes(13), limit=4, relative=learned(9, 4))
def shaw(q: Tensor, k: Tensor, v: Tensor, limit: int, relative: Tensor) -> Tensor:
    i, j = lines(q, k)
    a = relative[(j - i).clamp(-limit, limit) + limit]
    return softmax((dots(q, k) + torch.einsum("bhid,ijd->bhij", q, a)) / math.sqrt(q.shape[-1])) @ v


@published("relative-terms:music_transformer", Shapes(13), e=learned(2, 7, 4))
def music_transformer(q: Tensor, k: Tensor, v: Tensor, e: Tensor) -> Tensor:
    i, j = lines(q, k)
    term = torch.einsum("bhid,hijd->bhij", q, e[:, (i - j).clamp(0, e.shape[1] - 1)])
    return softmax((dots(q, k) + term) / math.sqrt(q.shape[-1]), causal(q, k)) @ v


@published(
    "relative-terms:transformer_xl",
    Shapes(6, 15, heads=4, kv_heads=2),
    options={"q_offset": 9},
    r=learned(4, 15, 4),
    content=learned(4, 4),
    position=learned(4, 4),
)
def transformer_xl(q: Tensor, k: Tensor, v: Tensor, r: Tensor, content: Tensor, position: Tensor) -> Tensor:
    i, j = lines(q, k, offset=9)
    far = r[:, (i - j).clamp(min=0)]
    by_content = dots(q + content[:, None], k)
    by_position = torch.einsum("bhid,hijd->bhij", q + position[:, None], far)
    return softmax((by_content + by_position) / math.sqrt(q.shape[-1]), j <= i) @ per_query_head(v, q)


@published(
    "relative-terms:deberta", Shapes(15), limit=5, key_position=learned(2, 10, 4), query_position=learned(2, 10, 4)
)
def deberta(q: Tensor, k: Tensor, v: Tensor, limit: int, key_position: Tensor, query_position: Tensor) -> Tensor:
    def delta(a: int, b: int) -> int:
        return 0 if a - b <= -limit else (2 * limit - 1 if a - b >= limit else a - b + limit)

    length = q.shape[2]
    ahead = torch.tensor([[delta(i, j) for j in range(length)] for i in range(length)])
    behind = torch.tensor([[delta(j, i) for j in range(length)] for i in range(length)])
    content_to_position = torch.einsum("bhid,hijd->bhij", q, key_position[:, ahead])
    position_to_content = torch.einsum("bhjd,hijd->bhij", k, query_position[:, behind])
    scores = dots(q, k) + content_to_position + position_to_content
    return softmax(scores / math.sqrt(3 * q.shape[-1])) @ v


@published(
    "relative-terms:tupe",
    Shapes(10),
    query_position=learned(2, 9, 4),
    key_position=learned(2, 9, 4),
    from_cls=learned(2),
    to_cls=learned(2),
)
def tupe(
    q: Tensor, k: Tensor, v: Tensor, query_position: Tensor, key_position: Tensor, from_cls: Tensor, to_cls: Tensor
) -> Tensor:
    untied = query_position @ key_position.mT / math.sqrt(2 * q.shape[-1])
    columns = torch.cat([to_cls[:, None, None].expand(-1, 9, 1), untied], -1)
    positions = torch.cat([from_cls[:, None, None].expand(-1, 1, 10), columns], -2)
    return softmax(dots(q, k) / math.sqrt(2 * q.shape[-1]) + positions) @ v


@published("halonet", Shapes(30), y=5, x=6, block=2, halo=1, rows=learned(5, 4), columns=learned(5, 4))
def halonet(
    q: Tensor, k: Tensor, v: Tensor, y: int, x: int, block: int, halo: int, rows: Tensor, columns: Tensor
) -> Tensor:
    row, column = grid(y, x)
    kept = torch.zeros(y * x, y * x, dtype=torch.bool)
    for i in range(y * x):
        top, left = int(row[i]) // block * block, int(column[i]) // block * block
        kept[i] = (
            (row >= top - halo) & (row < top + block + halo) & (column >= left - halo) & (column < left + block + halo)
        )
    reach = block + halo - 1
    dy, dx = ((c - c[:, None]).clamp(-reach, reach) + reach for c in (row, column))
    terms = torch.einsum("bhid,ijd->bhij", q, rows[dy] + columns[dx])
    return softmax((dots(q, k) + terms) / math.sqrt(q.shape[-1]), kept) @ v


# ---- decay


def polyline_decay(alpha: Tensor, beta: Tensor) -> Tensor:
    """The paper's L [batch, heads, tokens, tokens], by adding up the steps of every path."""
    y, x = alpha.shape[-2:]

    def along(steps: Tensor, a: int, b: int) -> Tensor:
        return steps[..., min(a, b) + 1 : max(a, b) + 1].sum(-1)

    entries = [
        along(alpha[..., qy, :], qx, kx).abs() + along(beta[..., :, kx], qy, ky).abs()
        for qy in range(y) for qx in range(x) for ky in range(y) for kx in range(x)
    ]  # fmt: skip
    return -torch.stack(entries, -1).unflatten(-1, (y * x, y * x))


ALPHA, BETA = ((-softplus(learned(2, 2, 3, 4))).detach().requires_grad_() for _ in range(2))


@published("ppma:row_first", Shapes(12), y=3, x=4, alpha=ALPHA, beta=BETA)
def ppma_row_first(q: Tensor, k: Tensor, v: Tensor, y: int, x: int, alpha: Tensor, beta: Tensor) -> Tensor:
    return softmax(scaled(q, k) + polyline_decay(alpha, beta)) @ v


@published("ppma:column_first", Shapes(12), y=3, x=4, alpha=ALPHA, beta=BETA)
def ppma_column_first(q: Tensor, k: Tensor, v: Tensor, y: int, x: int, alpha: Tensor, beta: Tensor) -> Tensor:
    return softmax(scaled(q, k) + polyline_decay(alpha, beta).mT) @ v


@published("forgetting", Shapes(70), log_forget=(-softplus(learned(2, 2, 70))).detach().requires_grad_())
def forgetting(q: Tensor, k: Tensor, v: Tensor, log_forget: Tensor) -> Tensor:
    length = q.shape[2]
    rows = []
    for i in range(length):
        between = log_forget[..., : i + 1].flip(-1).cumsum(-1).flip(-1)  # from every key to the query, both included
        decay = torch.cat([between[..., 1:], torch.zeros_like(between[..., :1])], -1)
        weights = torch.softmax(scaled(q[:, :, i : i + 1], k[:, :, : i + 1])[:, :, 0] + decay, -1)
        rows.append((weights[..., None] * v[:, :, : i + 1]).sum(-2))
    return torch.stack(rows, -2)


@published("gmm-mask", Shapes(20), y=4, x=5, mixtures=3, amplitude=learned(2, 3), sigma=learned(2, 3))
def gmm_mask(
    q: Tensor, k: Tensor, v: Tensor, y: int, x: int, mixtures: int, amplitude: Tensor, sigma: Tensor
) -> Tensor:
    rows, columns = grid(y, x)
    squared = (rows[:, None] - rows) ** 2 + (columns[:, None] - columns) ** 2
    factor = sum(
        amplitude[:, m, None, None] * torch.exp(-squared / (2 * (sigma[:, m, None, None] ** 2 + 1e-5)))
        for m in range(mixtures)
    )
    return softmax(scaled(q, k) * factor) @ v
