"""The one tolerance by which every engine is judged against `dense` in float64.

    max |x - x64|  <=  2 * max |dense in the same dtype - x64|  +  2 * eps(dtype) * M

M is the largest entry of the same formula on absolute values in float64: without it a perfect engine fails at N = 1,
where dense's own error is 0. P are the weights, s the scale, f' = d score / d first score:

    out  P |V|                      lse  |f'| |Q| |K| s + |score - f' first| + 1     (for plain scores |Q| |K| s + 1)
    dv   P^T |dO|                   dq   (P * (|dO| |V|^T + sum |dO * O| + |dLSE|)) |f'| |K| s, dk alike

For float64, whose dense is the reference itself, dense's own error is that of float32 in proportion to eps.

A reference that is not finite fails (except lse, where -inf is an empty row and has to agree exactly).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from maskc.runtime import dense
from maskc.runtime.inputs import Call

QUANTITIES = ("out", "lse", "dq", "dk", "dv")


@dataclass(frozen=True)
class Judgement:
    """How far one quantity is from the reference. error, bound: absolute; `passed` may fail for another `reason`."""

    quantity: str
    error: float
    bound: float
    reason: str = ""

    @property
    def passed(self) -> bool:
        """Whether the quantity is within the bound and nothing else is wrong with it."""
        return not self.reason and self.error <= self.bound

    def __str__(self) -> str:
        verdict = "ok" if self.passed else f"FAILED{': ' + self.reason if self.reason else ''}"
        return f"{self.quantity:4} error {self.error:.3e}  bound {self.bound:.3e}  {verdict}"


@dataclass(frozen=True)
class Report:
    """All judgements of one comparison."""

    judgements: tuple[Judgement, ...]

    @property
    def passed(self) -> bool:
        """Whether every quantity passed."""
        return all(j.passed for j in self.judgements)

    def __str__(self) -> str:
        return "\n".join(map(str, self.judgements))


@dataclass(frozen=True, eq=False)
class Reference:
    """float64 values of a call, its largest magnitudes M, and dense's own error in the call's dtype, by quantity."""

    values: Mapping[str, Tensor]
    magnitude: Mapping[str, float]
    dense_error: Mapping[str, float]
    eps: float


def reference(call: Call, d_out: Tensor, d_lse: Tensor | None = None) -> Reference:
    """What a call should give. d_out [batch, heads, q_len, D_v] and d_lse [batch, heads, q_len]: upstream gradients."""
    exact_call = _in(torch.float64, call)
    exact = values_of(exact_call, d_out, d_lse)
    eps = torch.finfo(call.q.dtype).eps
    if call.q.dtype is torch.float64:
        rounded = _in(torch.float32, call)
        found = _dense_errors(rounded, values_of(_in(torch.float64, rounded), d_out, d_lse), d_out, d_lse)
        errors = {name: error * eps / torch.finfo(torch.float32).eps for name, error in found.items()}
    else:
        errors = _dense_errors(call, exact, d_out, d_lse)
    return Reference(exact, _magnitudes(exact_call, exact, d_out, d_lse), errors, eps)


def _dense_errors(call: Call, exact: Mapping[str, Tensor], d_out: Tensor, d_lse: Tensor | None) -> dict[str, float]:
    found = values_of(call, d_out, d_lse)
    return {name: _distance(found[name], exact[name]) for name in QUANTITIES}


def values_of(call: Call, d_out: Tensor, d_lse: Tensor | None = None) -> dict[str, Tensor]:
    """Output, lse and gradients of `dense` in the call's own dtype."""
    q, k, v = (x.detach().requires_grad_() for x in (call.q, call.k, call.v))
    with torch.enable_grad():
        out, lse, _ = dense.attention(replace(call, q=q, k=k, v=v))
    assert lse is not None, "only softmax is judged"
    upstream = [(out, d_out.to(out.dtype))] + ([] if d_lse is None else [(lse, d_lse.to(lse.dtype))])
    # A score that does not read the first score leaves lse without a gradient, and those of q and k are 0.
    outputs, given = zip(*((x, g) for x, g in upstream if x.requires_grad), strict=True)
    gradients = torch.autograd.grad(outputs, (q, k, v), given, materialize_grads=True)
    return dict(zip(QUANTITIES, (out.detach(), lse.detach(), *gradients), strict=True))


def compare(actual: Mapping[str, Tensor], expected: Reference) -> Report:
    """Judges the quantities that `actual` holds (`out`, `lse`, `dq`, `dk`, `dv`)."""
    unknown = actual.keys() - set(QUANTITIES)
    if unknown:
        raise ValueError(f"no such quantity: {sorted(unknown)}; expected some of {QUANTITIES}")
    return Report(tuple(_judge(name, actual[name], expected) for name in QUANTITIES if name in actual))


def check(call: Call, actual: Mapping[str, Tensor], d_out: Tensor, d_lse: Tensor | None = None) -> Report:
    """`compare` against the reference of the same call."""
    return compare(actual, reference(call, d_out, d_lse))


def _judge(name: str, actual: Tensor, expected: Reference) -> Judgement:
    value = expected.values[name]
    bound = 2 * expected.dense_error[name] + 2 * expected.eps * expected.magnitude[name]
    reason = ""
    if actual.shape != value.shape:
        return Judgement(name, float("nan"), bound, f"shape {tuple(actual.shape)}, expected {tuple(value.shape)}")
    empty = torch.isneginf(value) if name == "lse" else torch.zeros_like(value, dtype=torch.bool)
    if not bool((torch.isfinite(value) | empty).all()):
        reason = "the reference is not finite"
    elif not bool(torch.isfinite(actual).logical_or(empty).all()):
        reason = "the value is not finite"
    elif not torch.equal(torch.isneginf(actual) & empty, empty):
        reason = "an empty row is not -inf"
    return Judgement(name, _distance(actual, value), bound, reason)


def _distance(actual: Tensor, exact: Tensor) -> float:
    """Largest difference over the finite entries of `exact`; NaN where `actual` holds one there."""
    finite = torch.isfinite(exact)
    difference = (actual.to(exact) - exact)[finite].abs()
    return float(difference.max()) if difference.numel() else 0.0


def _in(dtype: torch.dtype, call: Call) -> Call:
    return replace(call, q=call.q.detach().to(dtype), k=call.k.detach().to(dtype), v=call.v.detach().to(dtype))


def _magnitudes(call: Call, exact: Mapping[str, Tensor], d_out: Tensor, d_lse: Tensor | None) -> dict[str, float]:
    """M of every quantity; call is in float64."""
    sizes, scale = call.sizes, abs(call.scale)
    group = sizes.heads // max(1, sizes.kv_heads)
    q, k, v, d_o = (x.abs() for x in (call.q, call.k, call.v, d_out.to(call.q)))
    k, v = (x.repeat_interleave(group, 1) for x in (k, v))
    kept, weights, slope, rest = _score_facts(call, exact["lse"])
    logits = slope * (q @ k.transpose(-1, -2)) * scale + rest
    gradient = d_o @ v.transpose(-1, -2) + (d_o * exact["out"].abs()).sum(-1, keepdim=True)
    if d_lse is not None:
        gradient = gradient + d_lse.to(q).abs().unsqueeze(-1)
    d_first = weights * gradient * slope * scale
    return {
        "out": _largest(weights @ v),
        "lse": _largest(torch.where(kept, logits, 0)) + 1,
        "dq": _largest(d_first @ k),
        "dk": _largest(_per_kv_head(d_first.transpose(-1, -2) @ q, group)),
        "dv": _largest(_per_kv_head(weights.transpose(-1, -2) @ d_o, group)),
    }


def _score_facts(call: Call, lse: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Kept pairs, weights, |d score / d first score| and |score - (d score / d first) * first|, 0 at dropped pairs."""
    q = call.q.detach().requires_grad_()
    kept = dense.kept_pairs(call)
    with torch.enable_grad():
        first, score = dense.scores_of(replace(call, q=q), kept)
        live = kept & torch.isfinite(score)
        total = torch.where(live, score, 0).sum() + 0 * q.sum()
        (slope,) = torch.autograd.grad(total, first, materialize_grads=True)
    first, score = first.detach(), score.detach()
    empty = torch.isneginf(lse).unsqueeze(-1)
    weights = torch.where(live, torch.exp(score - lse.masked_fill(torch.isneginf(lse), 0).unsqueeze(-1)), 0)
    rest = torch.where(live, score - slope * first, 0).abs()
    return live, weights.masked_fill(empty, 0), slope.abs(), rest


def _per_kv_head(x: Tensor, group: int) -> Tensor:
    batch, heads, *rest = x.shape
    return x.view(batch, heads // group, group, *rest).sum(2)


def _largest(x: Tensor) -> float:
    return float(x.abs().max()) if x.numel() else 0.0
