"""The one tolerance by which every engine is judged against `dense` in float64.

    max |x - x64|  <=  2 * max |dense in the same dtype - x64|  +  2 * eps(dtype) * M

M is the largest entry of the same formula on absolute values in float64: without it a perfect engine fails at N = 1,
where dense's own error is 0. P are the weights, s the scale, f' = d score / d first score:

    out  P |V|                      lse  |f'| |Q| |K| s + |score - f' first| + 1     (for plain scores |Q| |K| s + 1)
    dv   P^T |dO|                   dq   (P * (|dO| |V|^T + sum |dO * O| + |dLSE|)) |f'| |K| s, dk alike

    a learned input   sum over pairs of |dS * d score / d entry|, whatever stage of the spec reads it

The other quantities of a spec that only `dense` runs have their own largest entry as M.

For float64, whose dense is the reference itself, dense's own error is that of float32 in proportion to eps.

A reference that is not finite fails (except lse, where -inf is an empty row, and outputs, where infinities are what
reductions make of no pair; these have to agree exactly).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from maskc import features
from maskc.expr import Type
from maskc.runtime import dense, prologue
from maskc.runtime.inputs import Call
from maskc.spec import MaskSpec

QUANTITIES = ("out", "lse", "dq", "dk", "dv")
"""What every softmax has. Outputs of the spec are `output NAME`, gradients of its learned inputs `d NAME`."""

Found = tuple[Tensor, Tensor | None, Mapping[str, Tensor]]
"""Output, log-sum-exp where there is one, and the spec's outputs by name."""


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
    return {name: _distance(found[name], value) for name, value in exact.items()}


def values_of(
    call: Call, d_out: Tensor, d_lse: Tensor | None = None, shares: dict[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Output, lse, outputs of the spec and gradients of `dense` in the call's own dtype. shares: as in `dense`."""
    leaves = leaves_of(call.spec, {"q": call.q, "k": call.k, "v": call.v, **call.inputs})
    given = {name: table for name, table in (*call.inputs.items(), *leaves.items()) if name in call.inputs}
    with torch.enable_grad():
        # Sums are made anew, so that gradients reach what they are made of.
        tables = prologue.complete(call.spec, given, call.q.device)
        here = replace(call, q=leaves["q"], k=leaves["k"], v=leaves["v"], inputs=tables)
        values = quantities(dense.attention(here, shares), leaves, d_out, d_lse)
    # Virtual keys of a border are nobody's input.
    return values | {name: prologue.inner(call.spec, call.sizes, values[name]) for name in ("dk", "dv")}


def leaves_of(spec: MaskSpec, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those tensors of a call that have a gradient, as leaves of a new graph: q, k, v and the learned inputs."""
    names = ["q", "k", "v", *(i.name for i in spec.given if i.learned)]
    return {name: tensors[name].detach().requires_grad_() for name in names}


def quantities(
    found: Found,
    leaves: Mapping[str, Tensor],
    d_out: Tensor,
    d_lse: Tensor | None,
) -> dict[str, Tensor]:
    """All values of a call by name: output, lse where there is one, outputs, and the gradients of the leaves."""
    out, lse, aux = found
    values = {"out": out} | ({} if lse is None else {"lse": lse}) | {f"output {name}": x for name, x in aux.items()}
    upstream = [(out, d_out.to(out.dtype))]
    if lse is not None and d_lse is not None:
        upstream.append((lse, d_lse.to(lse.dtype)))
    # A score that does not read the first score leaves lse without a gradient, and those of q and k are 0.
    outputs, given = zip(*((x, g) for x, g in upstream if x.requires_grad), strict=True)
    gradients = torch.autograd.grad(outputs, tuple(leaves.values()), given, materialize_grads=True)
    names = (f"d{name}" if name in ("q", "k", "v") else f"d {name}" for name in leaves)
    return {name: x.detach() for name, x in values.items()} | dict(zip(names, gradients, strict=True))


def compare(actual: Mapping[str, Tensor], expected: Reference) -> Report:
    """Judges the quantities that `actual` holds, in the order of the reference."""
    unknown = actual.keys() - expected.values.keys()
    if unknown:
        raise ValueError(f"no such quantity: {sorted(unknown)}; expected some of {list(expected.values)}")
    return Report(tuple(_judge(name, actual[name], expected) for name in expected.values if name in actual))


def check(call: Call, actual: Mapping[str, Tensor], d_out: Tensor, d_lse: Tensor | None = None) -> Report:
    """`compare` against the reference of the same call."""
    return compare(actual, reference(call, d_out, d_lse))


def _judge(name: str, actual: Tensor, expected: Reference) -> Judgement:
    value = expected.values[name]
    bound = 2 * expected.dense_error[name] + 2 * expected.eps * expected.magnitude[name]
    reason = ""
    if actual.shape != value.shape:
        return Judgement(name, float("nan"), bound, f"shape {tuple(actual.shape)}, expected {tuple(value.shape)}")
    empty = _empty(name, value)
    if not bool((torch.isfinite(value) | empty).all()):
        reason = "the reference is not finite"
    elif not bool(torch.isfinite(actual).logical_or(empty).all()):
        reason = "the value is not finite"
    elif not torch.equal(actual[empty].to(value), value[empty]):
        reason = "an empty row is not -inf" if name == "lse" else "an infinite entry differs"
    return Judgement(name, _distance(actual, value), bound, reason)


def _empty(name: str, value: Tensor) -> Tensor:
    """Entries that may be infinite: rows without keys, and what reductions make of no pair at all."""
    if name == "lse":
        return torch.isneginf(value)
    return torch.isinf(value) if name.startswith("output ") else torch.zeros_like(value, dtype=torch.bool)


def _distance(actual: Tensor, exact: Tensor) -> float:
    """Largest difference over the finite entries of `exact`; NaN where `actual` holds one there."""
    finite = torch.isfinite(exact)
    difference = (actual.to(exact) - exact)[finite].abs()
    return float(difference.max()) if difference.numel() else 0.0


def _in(dtype: torch.dtype, call: Call) -> Call:
    """The call in another dtype; learned inputs are made as wide as their gradients should be."""
    wide = {i.name: call.inputs[i.name].to(dtype) for i in call.spec.given if i.learned and dtype is torch.float64}
    q, k, v = (x.detach().to(dtype) for x in (call.q, call.k, call.v))
    return replace(call, q=q, k=k, v=v, inputs={**call.inputs, **wide})


def _magnitudes(call: Call, exact: Mapping[str, Tensor], d_out: Tensor, d_lse: Tensor | None) -> dict[str, float]:
    """M of every quantity; call is in float64."""
    if features.refusal(call.spec, "tiled") is not None:
        own = {name: _largest(torch.where(torch.isfinite(x), x, 0)) for name, x in exact.items()}
        return own | {f"d {name}": _largest(x) for name, x in _shares(call, d_out, d_lse).items()}
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


def _shares(call: Call, d_out: Tensor, d_lse: Tensor | None) -> dict[str, Tensor]:
    """For every learned input, entry by entry: the sum of the sizes of what pairs give to its gradient."""
    tables = {i.name: call.inputs[i.name] for i in call.spec.inputs if i.type is Type.FLOAT}
    shares = {name: torch.zeros_like(table.detach()) for name, table in tables.items()}
    values_of(call, d_out, d_lse, shares)
    learned = {i.name: call.inputs[i.name].detach().requires_grad_() for i in call.spec.given if i.learned}
    if not learned:
        return {}
    with torch.enable_grad():  # prefix sums hand on to what they are made of
        made = prologue.complete(call.spec, {**call.inputs, **learned}, call.q.device)
        reached = {name: share for name, share in shares.items() if made[name].requires_grad}
    sums, given = tuple(made[name] for name in reached), tuple(reached.values())
    gradients = torch.autograd.grad(sums, tuple(learned.values()), given, materialize_grads=True)
    return dict(zip(learned, gradients, strict=True))


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
