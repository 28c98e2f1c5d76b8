"""How the `dense` engine makes weights out of rows: textbook formulas on whole rows, differentiable by torch.

Planes are [batch, heads, q_len, k_len] and columns, one number per row, [batch, heads, q_len, 1]. A score of -inf and a
mass of 0 weigh 0. mass None is 1 everywhere.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_NEWTON_STEPS = 100


@dataclass(frozen=True, eq=False)
class Normalized:
    """Weights of every pair; lse [batch, heads, q_len] where the form has one; bool column of the rows whose output is
    0 whatever happens to the weights.
    """

    weights: Tensor
    lse: Tensor | None
    empty: Tensor


def softmax(scores: Tensor, mass: Tensor | None = None, sink: Tensor | None = None) -> Normalized:
    """M exp(S) / (sum M exp(S) + exp(sink)), and the logarithm of what it divides by.

    sink: column, -inf for none. The derivative by a mass of 0 is that of the formula, but for the rows that are empty.
    """
    counted = scores if mass is None else scores.masked_fill(~(mass > 0), -torch.inf)
    top = _largest(counted.detach())
    if sink is not None:
        top = torch.maximum(top, sink.detach())
    empty = top == -torch.inf
    shift = top.masked_fill(empty, 0)
    if mass is None:
        parts = torch.exp(scores - shift)
    else:
        # Only pairs of mass 0 lie above the largest score that counts; what they would weigh must stay finite.
        ceiling = math.log(torch.finfo(scores.dtype).max)
        parts = (mass * torch.exp((scores - shift).clamp(max=ceiling - 1))).masked_fill(empty, 0)
    total = parts.sum(-1, keepdim=True)
    if sink is not None:
        total = total + torch.exp(sink - shift)
    total = total.masked_fill(empty, 1)
    return Normalized(parts / total, (torch.log(total) + top).squeeze(-1), empty)


def rowsum(parts: Tensor, sink: Tensor | None = None) -> Normalized:
    """parts / (sum of the row + sink); 0 with derivatives 0 where that sum is 0. sink: column."""
    total = parts.sum(-1, keepdim=True)
    if sink is not None:
        total = total + sink
    empty = total == 0
    return Normalized((parts / total.masked_fill(empty, 1)).masked_fill(empty, 0), None, empty)


def entmax(scores: Tensor, alpha: Tensor, mass: Tensor | None = None) -> Normalized:
    """M ((alpha - 1) S - tau)_+ ** (1 / (alpha - 1)) with the tau for which a row sums to 1 (Peters et al. 2019).

    alpha: column. Computed in float64 and rounded. tau is found without a graph; two Newton steps from there leave its
    value and give its first and second derivatives.
    """
    live = scores != -torch.inf
    power = 1 / (alpha.to(torch.float64) - 1)
    z = torch.where(live, scores, torch.zeros_like(scores)).to(torch.float64) / power
    mass = live.to(torch.float64) if mass is None else torch.where(live, mass, 0).to(torch.float64)
    empty = ~(mass > 0).any(-1, keepdim=True)
    tau = _threshold(z.detach(), mass.detach(), power.detach(), empty)
    for _ in range(2):
        total, slope = _entmax_sums(z, mass, power, tau)
        tau = tau + (total.masked_fill(empty, 1) - 1) / (power * slope).masked_fill(empty, 1)
    weights = (mass * _power_above(z, tau, power)).masked_fill(empty, 0)
    return Normalized(weights.to(scores.dtype), None, empty)


def _threshold(z: Tensor, mass: Tensor, power: Tensor, empty: Tensor) -> Tensor:
    """tau to the last bits of float64: Newton on the norm sum(...) ** (1 / power), which is convex and falls, from the
    left; halving where a step would leave the bracket.
    """
    top = _largest(z.masked_fill(~(mass > 0), -torch.inf)).masked_fill(empty, 0)
    z = z - top
    least = torch.where(z == 0, mass, 0).sum(-1, keepdim=True).masked_fill(empty, 1)
    low = -(least ** (-1 / power))
    high = -(mass.sum(-1, keepdim=True).masked_fill(empty, 1) ** (-1 / power))
    tau = low
    for _ in range(_NEWTON_STEPS):
        total, slope = (x.masked_fill(empty, 1) for x in _entmax_sums(z, mass, power, tau))
        low, high = torch.where(total >= 1, tau, low), torch.where(total < 1, tau, high)
        step = tau + (total ** (1 / power) - 1) * total ** (1 - 1 / power) / slope
        step = torch.where((step >= low) & (step <= high), step, (low + high) / 2)
        moved = (step - tau).abs() > 2 * torch.finfo(torch.float64).eps * tau.abs()
        tau = step
        if not bool(moved.any()):
            break
    return tau + top


def _entmax_sums(z: Tensor, mass: Tensor, power: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
    """Columns sum M (z - tau)_+ ** power and sum M (z - tau)_+ ** (power - 1)."""
    powers = (_power_above(z, tau, p) for p in (power, power - 1))
    total, slope = ((mass * x).sum(-1, keepdim=True) for x in powers)
    return total, slope


def _power_above(z: Tensor, tau: Tensor, power: Tensor) -> Tensor:
    """(z - tau) ** power where z lies above tau, 0 with derivative 0 elsewhere."""
    above = z > tau
    return torch.where(above, torch.where(above, z - tau, 1) ** power, 0)


def _largest(scores: Tensor) -> Tensor:
    """Column of the largest score of each row, -inf for none."""
    if scores.shape[-1] == 0:
        return scores.new_full((*scores.shape[:-1], 1), -torch.inf)
    return scores.amax(-1, keepdim=True)
