"""Oracles of papers that turn scores into weights by anything but a plain softmax."""

import math

import torch
from papers import Shapes, causal, flags, learned, lines, per_query_head, positive, published, scaled
from torch import Tensor


def relu(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.0)


# ---- no normaliser


def decayed(q: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> Tensor:
    """Retention as the recurrence of its state [dim, dim]."""
    state = torch.zeros(*q.shape[:2], q.shape[-1], v.shape[-1], dtype=q.dtype)
    rows = []
    for i in range(q.shape[2]):
        state = decay[:, None, None] * state + k[:, :, i, :, None] * v[:, :, i, None, :]
        rows.append((q[:, :, i, None] * q.shape[-1] ** -0.5 @ state)[:, :, 0])
    return torch.stack(rows, 2)


@published("retention:retention", Shapes(33, heads=4))
def retention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return decayed(q, k, v, 1 - 2.0 ** (-5.0 - torch.arange(q.shape[1])).double())


@published("retention:learned_decay", Shapes(33), decay=positive(2))
def learned_decay(q: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> Tensor:
    return decayed(q, k, v, decay)


@published("unnormalised:sigmoid_attention", Shapes(9, 14))
def sigmoid_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.sigmoid(scaled(q, k) - math.log(k.shape[2])) @ v


def elu_weights(q: Tensor, k: Tensor) -> Tensor:
    return (torch.nn.functional.elu(scaled(q, k)) + 1) * causal(q, k)


@published("unnormalised:elu_plus_one", Shapes(14))
def elu_plus_one(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return elu_weights(q, k) @ v


@published("unnormalised:elu_plus_one_row_sum", Shapes(14))
def elu_plus_one_row_sum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = elu_weights(q, k)
    return weights @ v / weights.sum(-1, keepdim=True)


def in_chunks(x: Tensor, chunk: int) -> list[Tensor]:
    return list(x.split(chunk, -2))


@published("unnormalised:squared_relu", Shapes(23), chunk=5)
def squared_relu(q: Tensor, k: Tensor, v: Tensor, chunk: int) -> Tensor:
    parts = zip(*(in_chunks(x, chunk) for x in (q, k, v)), strict=True)
    return torch.cat([relu(a @ b.mT / chunk) ** 2 @ c for a, b, c in parts], -2)


@published("unnormalised:laplace", Shapes(23), chunk=6, bias=learned(11))
def laplace(q: Tensor, k: Tensor, v: Tensor, chunk: int, bias: Tensor) -> Tensor:
    outputs = []
    for a, b, c in zip(*(in_chunks(x, chunk) for x in (q, k, v)), strict=True):
        i, j = lines(a, b)
        scores = scaled(a, b) + bias[i - j + chunk - 1]
        outputs.append(0.5 * (1 + torch.erf((scores - math.sqrt(0.5)) / math.sqrt(0.5 / math.pi))) @ c)
    return torch.cat(outputs, -2)


@published("unnormalised:gaussian", Shapes(9, 12))
def gaussian(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    squared = (q[:, :, :, None] - k[:, :, None]).square().sum(-1)
    return torch.exp(-squared / (2 * math.sqrt(q.shape[-1]))) @ v


@published("unnormalised:taylor", Shapes(12))
def taylor(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = scaled(q, k)
    weights = (1 + scores + scores**2 / 2) * causal(q, k)
    return weights @ v / weights.sum(-1, keepdim=True)


# ---- logits without a key


def with_sink(scores: Tensor, sink: Tensor, v: Tensor) -> Tensor:
    """Softmax over the keys and one more that gives no value; sink [heads]."""
    column = sink[:, None, None].expand(*scores.shape[:3], 1)
    return torch.softmax(torch.cat([scores, column], -1), -1)[..., :-1] @ v


@published("sinks:gpt_oss", Shapes(15, heads=4, kv_heads=2), window=4, sink=learned(4))
def gpt_oss(q: Tensor, k: Tensor, v: Tensor, window: int, sink: Tensor) -> Tensor:
    i, j = lines(q, k)
    kept = (j <= i) & (i - j < window)
    return with_sink(scaled(q, k).masked_fill(~kept, -torch.inf), sink, per_query_head(v, q))


@published("sinks:off_by_one", Shapes(8, 11))
def off_by_one(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = scaled(q, k).exp()
    return weights @ v / (1 + weights.sum(-1, keepdim=True))


# ---- entmax


def entmax(scores: Tensor, alpha: Tensor, kept: Tensor | None = None) -> Tensor:
    """Rows relu((alpha - 1) s - tau) ** (1 / (alpha - 1)) that sum to one. tau is found by bisection; one Newton step
    carries its gradient.
    """
    x = (alpha - 1) * scores
    kept = torch.ones_like(x, dtype=torch.bool) if kept is None else kept.expand_as(x)

    def weights(tau: Tensor) -> Tensor:
        inside = kept & (x > tau)
        return torch.where(inside, torch.where(inside, x - tau, 1.0) ** (1 / (alpha - 1)), 0.0)

    highest = x.detach().masked_fill(~kept, -torch.inf).amax(-1, keepdim=True)
    low, high = highest - 1, highest
    with torch.no_grad():
        for _ in range(200):
            middle = (low + high) / 2
            too_low = weights(middle).sum(-1, keepdim=True) >= 1
            low, high = torch.where(too_low, middle, low), torch.where(too_low, high, middle)
    tau = low.clone().requires_grad_()
    total = weights(tau).sum(-1, keepdim=True)
    (slope,) = torch.autograd.grad(total.sum(), tau, retain_graph=True)
    return weights(low - (weights(low).sum(-1, keepdim=True) - 1) / slope)


ALPHA = torch.tensor([1.3, 1.9], dtype=torch.float64).requires_grad_()


@published("entmax:adaptive", Shapes(9, 12), alpha=ALPHA)
def adaptive_entmax(q: Tensor, k: Tensor, v: Tensor, alpha: Tensor) -> Tensor:
    return entmax(scaled(q, k), alpha[:, None, None]) @ v


@published("entmax:entmax15", Shapes(12))
def entmax15(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return entmax(scaled(q, k), torch.tensor(1.5).double(), causal(q, k)) @ v


@published("entmax:gated", Shapes(7, 11), alpha=ALPHA, gate=learned(2))
def gated_entmax(q: Tensor, k: Tensor, v: Tensor, alpha: Tensor, gate: Tensor) -> Tensor:
    return gate[:, None, None] * (entmax(scaled(q, k), alpha[:, None, None]) @ v)


# ---- columns, both sides, two sums


@published(
    "dependencyvit", Shapes(11), valid=flags(2, 11, share=0.8), selector=learned(2, 2, 11), message=learned(2, 11)
)
def dependencyvit(
    q: Tensor, k: Tensor, v: Tensor, valid: Tensor, selector: Tensor, message: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    out, received = torch.zeros_like(q), torch.zeros(q.shape[:3], dtype=q.dtype)
    scores = scaled(q, k)
    for b in range(q.shape[0]):
        live = valid[b].nonzero()[:, 0]
        sent = torch.softmax(scores[b][:, live[:, None], live], -2) * (selector[b][:, None, live] * message[b, live])
        out = out.index_put((torch.tensor([b])[:, None], torch.arange(2)[:, None], live), sent @ v[b][:, live])
        received = received.index_put((torch.tensor([b])[:, None], torch.arange(2)[:, None], live), sent.sum(-2))
    return out, {"received": received}


SEEN = flags(10, 10, share=0.7) | torch.eye(10, dtype=torch.bool)


@published("sinkhorn", Shapes(10), seen=SEEN)
def sinkhorn(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    weights = scaled(q, k).exp() * seen
    for _ in range(3):
        weights = weights / weights.sum(-1, keepdim=True)
        weights = weights / weights.sum(-2, keepdim=True)
    return weights @ v


def softplus_weights(q: Tensor, k: Tensor, dim: int) -> Tensor:
    i, _ = lines(q, k)
    return torch.nn.functional.softplus(math.log(dim) * torch.log1p(i.double()) * scaled(q, k)) * causal(q, k)


@published("lssa:lssa", Shapes(13), dim=4)
def lssa(q: Tensor, k: Tensor, v: Tensor, dim: int) -> Tensor:
    weights = softplus_weights(q, k, dim)
    return weights / weights.sum(-1, keepdim=True) @ v


@published("lssa:lssar", Shapes(13), dim=4, power=3, offset=0.4)
def lssar(q: Tensor, k: Tensor, v: Tensor, dim: int, power: int, offset: float) -> Tensor:
    i, _ = lines(q, k)
    first = softplus_weights(q, k, dim)
    first = first / first.sum(-1, keepdim=True)
    second = relu((i + 1) * first - offset) ** power * causal(q, k)
    return second / second.sum(-1, keepdim=True) @ v


@published("landmark", Shapes(19), block=4)
def landmark(q: Tensor, k: Tensor, v: Tensor, block: int) -> Tensor:
    """Two levels: a softmax over the own block and the past landmarks, and one inside every past block."""
    scores, rows = scaled(q, k), []
    for i in range(q.shape[2]):
        row, first = scores[:, :, i], i // block * block
        own = [j for j in range(first, i + 1) if j % block != block - 1]
        gates = [b * block + block - 1 for b in range(i // block)]
        outer = torch.softmax(row[..., own + gates], -1) if own or gates else None
        out = torch.zeros_like(q[:, :, i])
        if outer is not None:
            out = out + (outer[..., : len(own), None] * v[:, :, own]).sum(-2)
            for number, gate in enumerate(gates, start=len(own)):
                inside = list(range(gate - block + 1, gate))
                inner = torch.softmax(row[..., inside], -1)
                out = out + outer[..., number, None] * (inner[..., None] * v[:, :, inside]).sum(-2)
        rows.append(out)
    return torch.stack(rows, 2)


@published("row-statistics:normalized_attention", Shapes(12), epsilon=1e-3, gain=learned(2), shift=learned(2))
def normalized_attention(q: Tensor, k: Tensor, v: Tensor, epsilon: float, gain: Tensor, shift: Tensor) -> Tensor:
    scores, rows = scaled(q, k), []
    for i in range(q.shape[2]):
        normal = torch.nn.functional.layer_norm(scores[:, :, i, : i + 1], (i + 1,), eps=epsilon)
        rows.append(((gain[:, None] * normal + shift[:, None])[..., None] * v[:, :, : i + 1]).sum(-2))
    return torch.stack(rows, 2)


@published("row-statistics:inline_attention", Shapes(9, 13), valid=flags(2, 13, share=0.7))
def inline_attention(q: Tensor, k: Tensor, v: Tensor, valid: Tensor) -> Tensor:
    """The paper's linear order: a state of the keys, minus what every query shares, plus the mean value."""
    outputs = []
    for b in range(q.shape[0]):
        keys, values = k[b, :, valid[b]], v[b, :, valid[b]]
        number = keys.shape[-2]
        mean = values.mean(-2, keepdim=True)
        state = keys.mT @ values / number - keys.mean(-2, keepdim=True).mT @ mean
        outputs.append(q[b] * q.shape[-1] ** -0.5 @ state + mean)
    return torch.stack(outputs)
