"""One softmax attention over a batch of tiles of equal shape, forward and backward, with log-sum-exp.

On CPU tensors that is torch's own fused kernel, `aten._scaled_dot_product_flash_attention_for_cpu`, as long as this
torch has it under the schema that is written down here; else, and for scores that no additive mask can state, public
matmuls.

Tensors: q [lanes, tiles, queries, D_qk], k [lanes, tiles, keys, D_qk], v [lanes, tiles, keys, D_v], any strides; none
of the sizes is 0 (the fused kernel divides by them). A row whose scores are all -inf gives output 0 and an lse that
means nothing: the caller knows which rows those are.

The fused kernel's traps, all handled here: it refuses D_qk != D_v (the smaller is padded with zeros); it wants unit
stride in the last dim; it rounds a scale that is no power of two into the scores in another way backward than forward,
which the weights of short rows show (the rest of the scale goes into q); it reads the lse of an empty row in its
backward, where -inf would give NaN everywhere (the caller passes 0); it knows no gradient of the lse, which goes in as
one more column (v 0, out -d_lse, d_out 1); masks carry no gradient.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import pad

Pointwise = Callable[[Tensor], Tensor]

_FORWARD = (
    "aten::_scaled_dot_product_flash_attention_for_cpu(Tensor query, Tensor key, Tensor value, float dropout_p=0., "
    "bool is_causal=False, *, Tensor? attn_mask=None, float? scale=None) -> (Tensor output, Tensor logsumexp)"
)
_BACKWARD = (
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward(Tensor grad_out, Tensor query, Tensor key, "
    "Tensor value, Tensor out, Tensor logsumexp, float dropout_p, bool is_causal, *, Tensor? attn_mask=None, "
    "float? scale=None) -> (Tensor grad_query, Tensor grad_key, Tensor grad_value)"
)


@dataclass(frozen=True)
class Scores:
    """How the score of a pair follows from scale * (query . key).

    mask: what is added, -inf for dropped pairs, broadcastable to [lanes, tiles, queries, keys]; None adds nothing.
    final and slope: where given, the score and its derivative as functions of the first score; the mask is added behind
    them.
    """

    scale: float
    mask: Tensor | None = None
    final: Pointwise | None = None
    slope: Pointwise | None = None


@cache
def _schemas_match() -> bool:
    """Whether this torch has the fused kernels in the form that is used here."""
    aten = torch.ops.aten
    try:
        forward = aten._scaled_dot_product_flash_attention_for_cpu.default._schema
        backward = aten._scaled_dot_product_flash_attention_for_cpu_backward.default._schema
    except AttributeError:
        return False
    return str(forward) == _FORWARD and str(backward) == _BACKWARD


def fusible(x: Tensor, scores: Scores) -> bool:
    """Whether the fused kernel takes these scores of tensors like x."""
    return x.device.type == "cpu" and scores.final is None and _schemas_match()


def forward(q: Tensor, k: Tensor, v: Tensor, scores: Scores) -> tuple[Tensor, Tensor]:
    """Output [lanes, tiles, queries, D_v] and lse [lanes, tiles, queries] (float32, float64 for float64)."""
    if not fusible(q, scores):
        return _forward_by_matmul(q, k, v, scores)
    width = max(q.shape[-1], v.shape[-1], 1)
    factor, scale = _factored(scores.scale, q.dtype)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        _padded(_times(q, factor), width), _padded(k, width), _padded(v, width), attn_mask=scores.mask, scale=scale
    )
    return out[..., : v.shape[-1]], lse


def backward(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, d_out: Tensor, d_lse: Tensor | None, scores: Scores
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v. out, lse: of whole rows, of which these keys may be a share; lse 0 for empty rows."""
    if not fusible(q, scores):
        return _backward_by_matmul(q, k, v, out, lse, d_out, d_lse, scores)
    if d_lse is not None:
        out = torch.cat([out, -d_lse.unsqueeze(-1).to(out.dtype)], -1)
        d_out = torch.cat([d_out, torch.ones_like(d_lse, dtype=d_out.dtype).unsqueeze(-1)], -1)
    width = max(q.shape[-1], out.shape[-1], 1)
    factor, scale = _factored(scores.scale, q.dtype)
    d_q, d_k, d_v = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        _padded(d_out, width),
        _padded(_times(q, factor), width),
        _padded(k, width),
        _padded(v, width),
        _padded(out, width),
        lse,
        0.0,
        False,
        attn_mask=scores.mask,
        scale=scale,
    )
    return _times(d_q[..., : q.shape[-1]], factor), d_k[..., : k.shape[-1]], d_v[..., : v.shape[-1]]


def _factored(scale: float, dtype: torch.dtype) -> tuple[float, float]:
    """A factor for q and a power of two that make up the scale; 16-bit q would lose digits by the factor and gets
    none.
    """
    mantissa, exponent = math.frexp(scale)
    if dtype.itemsize == 2 or mantissa == 0:
        return 1.0, scale
    return mantissa * 2, math.ldexp(1.0, exponent - 1)


def _times(x: Tensor, factor: float) -> Tensor:
    return x if factor == 1.0 else x * factor


def _padded(x: Tensor, width: int) -> Tensor:
    """x with zeros up to `width` in the last dim, and unit stride there."""
    if x.shape[-1] != width:
        return pad(x, (0, width - x.shape[-1]))
    return x if x.stride(-1) == 1 or width == 1 else x.contiguous()


def _forward_by_matmul(q: Tensor, k: Tensor, v: Tensor, scores: Scores) -> tuple[Tensor, Tensor]:
    dtype = q.dtype
    q, k, v = (_computing(x) for x in (q, k, v))
    _, final = _final_scores(q, k, scores)
    top = final.amax(-1, keepdim=True)
    weights = torch.exp(final - top.masked_fill(top == -torch.inf, 0))
    total = weights.sum(-1, keepdim=True)
    out = (weights @ v) / total.masked_fill(total == 0, 1)
    return out.to(dtype), (torch.log(total) + top).squeeze(-1)


def _backward_by_matmul(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, d_out: Tensor, d_lse: Tensor | None, scores: Scores
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = q.dtype
    q, k, v, out, d_out = (_computing(x) for x in (q, k, v, out, d_out))
    first, final = _final_scores(q, k, scores)
    weights = torch.exp(final - lse.unsqueeze(-1))
    delta = (d_out * out).sum(-1) if d_lse is None else (d_out * out).sum(-1) - d_lse
    d_score = weights * (d_out @ v.mT - delta.unsqueeze(-1))
    if scores.slope is not None:
        # Where the weight is 0 (dropped, or of score -inf) no derivative passes, whatever the slope is there.
        d_score = torch.where(weights == 0, 0, d_score * scores.slope(first))
    d_score = d_score * scores.scale
    return (d_score @ k).to(dtype), (d_score.mT @ q).to(dtype), (weights.mT @ d_out).to(dtype)


def _final_scores(q: Tensor, k: Tensor, scores: Scores) -> tuple[Tensor, Tensor]:
    first = (q @ k.mT) * scores.scale
    final = first if scores.final is None else scores.final(first)
    if scores.mask is None:
        return first, final
    # A dropped pair may have any score, NaN too: it is replaced, not added to.
    return first, torch.where(scores.mask == -torch.inf, -torch.inf, final + scores.mask)


def _computing(x: Tensor) -> Tensor:
    """16-bit tensors are computed in float32."""
    return x.float() if x.dtype.itemsize == 2 else x
