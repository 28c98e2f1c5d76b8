"""The `dense` engine: every kept pair by the textbook formulas. It is the meaning, and every other engine is judged by
it.

Scores of kept pairs, then weights as the spec's normaliser and its `weight` lines say, then weights times V; all of it
differentiable by torch's own autograd. It has a reading of `Expr` of its own (`dense_read`) and shares no code with the
analysis, the plans or the kernels. Memory is O(q_len x k_len) per head, times the length of the vectors where an
expression has a dot product other than query with key.

What is guaranteed: a dropped pair and a branch not taken are never evaluated, for values or gradients: operands are
restricted to the pairs that count, so no finished NaN needs to be masked away. A kept pair of score -inf or of mass 0
weighs 0, whatever the normaliser and the `weight` lines; the derivative by a mass of 0 is exact, every derivative
through a score of -inf is 0. A row without pairs that weigh anything has output 0, lse -inf (that of its sink, where it
has one) and zero gradients.

Floats that decide a pair or an integer are float64, read from scores as they were computed. Scores are computed in the
dtype of q; for 16-bit q, expressions run in float32 and a plain softmax works on scores rounded to the dtype, all other
forms in float32 throughout. Expressions that read `cumsum` tables run in float64 and are rounded.
"""

import math
from collections.abc import Iterator
from functools import cached_property
from typing import assert_never

import torch
from torch import Tensor

from maskc.expr import ONE, SCORE, WEIGHT, Bucket, Dot, Expr, Member, Read, Row, Side, Type, walk
from maskc.runtime.dense_normalize import Normalized, entmax, rowsum, softmax
from maskc.runtime.dense_read import Pairs, Planes, for_query_heads, read, wide
from maskc.runtime.dense_reduce import joined
from maskc.runtime.inputs import Call
from maskc.spec import Dim, Form, Normalizer, PrefixSum, Reduction, RowDefault


def attention(call: Call, shares: dict[str, Tensor] | None = None) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
    """Output, log-sum-exp and the spec's outputs by name.

    The output is [batch, heads, q_len, D_v] in the dtype of q. lse, [batch, heads, q_len], and outputs, [batch, heads,
    *dims], are float32 (float64 for float64 q; counts are int64); lse is None where the normaliser is no softmax.

    shares: zeros of the shape of inputs, by name. A backward pass adds to them the sizes of what the pairs give to the
    gradients of these inputs, for judgements of rounding errors.
    """
    flow = Flow(call, shares=shares)
    lse = flow.normalized.lse
    if lse is not None:
        lse = _reached(wide(lse), call)
    aux = {r.name: flow.table(r.name) for r in call.spec.reductions if r.output}
    return _reached(flow.out.to(call.q.dtype), call), lse, aux


def kept_pairs(call: Call) -> Tensor:
    """The predicate at every pair: bool [batch, heads, q_len, k_len]."""
    return read(call.spec.predicate, Pairs.all(Planes(call))).broadcast_to(_shape(call))


def scores_of(call: Call, kept: Tensor) -> tuple[Tensor, Tensor]:
    """First and final score, [batch, heads, q_len, k_len]; the final one is -inf where a pair is not in `kept`.

    Both are differentiable; the final one is made of the first wherever it reads it.
    """
    flow = Flow(call, kept)
    return flow.first, flow.final


def _shape(call: Call) -> tuple[int, int, int, int]:
    return call.sizes.batch, call.sizes.heads, call.sizes.q_len, call.sizes.k_len


def _reached(result: Tensor, call: Call) -> Tensor:
    """The same values, with derivative 0 by whatever of the call they were not made of."""
    everywhere = torch.ones_like(result, dtype=torch.bool)
    for x in (call.q, call.k, call.v, *call.inputs.values()):
        if x.requires_grad:
            corner = x[(slice(0, 1),) * x.dim()].sum()
            result = torch.where(everywhere, result, corner.to(result.dtype))
    return result


class Flow(Planes):
    """One call from its predicate to its output. Every stage is computed when something asks for it: a `weight` line
    may read a reduction that reads the normalised weight.

    kept: the pairs to take instead of those of the spec.
    """

    def __init__(self, call: Call, kept: Tensor | None = None, shares: dict[str, Tensor] | None = None):
        super().__init__(call, shares)
        self._given_kept = kept
        self._reduced: dict[str, Tensor] = {}
        spec = call.spec
        changed = spec.normalizer != Normalizer() or spec.mass != ONE or spec.weight != WEIGHT or spec.reductions
        self._float = wide(call.q).dtype
        self._dtype = self._float if changed else call.q.dtype
        self._exact_tables = {i.name for i in spec.inputs if isinstance(i.source, PrefixSum) and i.type is Type.FLOAT}

    # ---- pairs

    @cached_property
    def predicate(self) -> Tensor:
        """Which pairs the `keep` lines keep."""
        return kept_pairs(self.call) if self._given_kept is None else self._given_kept

    @cached_property
    def computed(self) -> Tensor | None:
        """Bool column of the rows that are computed; None for all."""
        rows = self.call.spec.rows
        if rows is None:
            return None
        return read(rows.computed, Pairs.rows(Planes(self.call))).broadcast_to((*_shape(self.call)[:3], 1))

    @cached_property
    def kept(self) -> Tensor:
        """The pairs that take part."""
        return self.predicate if self.computed is None else self.predicate & self.computed

    @cached_property
    def live(self) -> Tensor:
        """Those with a score above -inf."""
        return self.kept & (self.final.detach() != -torch.inf)

    # ---- scores

    @cached_property
    def dots(self) -> Tensor:
        """query . key of rows that occur in a pair."""
        q = _seen(self.call.q, self.kept, dim=-1)
        k = _seen(for_query_heads(self.call.k, self.call), self.kept, dim=-2)
        return q.to(self._dtype) @ k.to(self._dtype).transpose(-1, -2)

    @cached_property
    def final(self) -> Tensor:
        """The score behind all `score` lines; -inf where no pair takes part."""
        score = self.call.spec.score
        if score == SCORE:
            return self.first.masked_fill(~self.kept, -torch.inf)
        # Every derivative through a pair of score -inf is 0: such pairs do not enter the differentiable evaluation.
        value = self._plane(score, self.kept, of_others=-torch.inf, graph=False)
        return self._plane(score, self.kept & (value != -torch.inf), of_others=-torch.inf)

    # ---- weights

    @cached_property
    def mass(self) -> Tensor | None:
        """Factor on the unnormalised weight, 0 where no pair takes part; None for 1."""
        mass = self.call.spec.mass
        return None if mass == ONE else self._plane(mass, self.live)

    @cached_property
    def normalized(self) -> Normalized:
        """What the normaliser gives."""
        normalizer = self.call.spec.normalizer
        match normalizer.form:
            case Form.SOFTMAX:
                return softmax(self.final, self.mass, self._column(normalizer.sink, of_others=-torch.inf))
            case Form.ROWSUM:
                return rowsum(self._parts(normalizer), self._column(normalizer.sink, of_others=0.0))
            case Form.NONE:
                parts = self._parts(normalizer)
                return Normalized(parts, None, parts.new_zeros((*parts.shape[:3], 1), dtype=torch.bool))
            case Form.ENTMAX:
                alpha = self._column(normalizer.alpha, of_others=2.0)
                assert alpha is not None, "the checker gives entmax its alpha"
                return entmax(self.final, alpha, self.mass)
            case _:
                assert_never(normalizer.form)

    def _parts(self, normalizer: Normalizer) -> Tensor:
        """Unnormalised weights of a form that says them."""
        assert normalizer.value is not None, "the checker gives the form its value"
        if self.mass is None:
            return self._plane(normalizer.value, self.live)
        # At mass 0 the value is a factor of the derivative by the mass and nothing else; 0 * inf must not arise.
        without = self.live & (self.mass == 0)
        largest = torch.finfo(self._dtype).max
        factor = self._plane(normalizer.value, without, graph=False).clamp(-largest, largest)
        return self.mass * torch.where(without, factor, self._plane(normalizer.value, self.live & ~without))

    @cached_property
    def weight(self) -> Tensor:
        """The weight as the normaliser gives it."""
        return self.normalized.weights

    @cached_property
    def applied(self) -> Tensor:
        """The weight that multiplies v."""
        weight = self.call.spec.weight
        if weight == WEIGHT:
            return self.weight
        counted = self.live & ~self.normalized.empty
        if self.mass is None:
            return self._plane(weight, counted)
        # What weighs 0 stays 0 under `weight += ...`; only the derivative by the mass passes through its factor.
        pruned = (counted & (self.mass == 0)).nonzero(as_tuple=True)
        zeros = self._values(weight, pruned) - self._values(weight, pruned, fixed_weight=True)
        return self._plane(weight, counted & (self.mass != 0)).index_put(pruned, zeros)

    @cached_property
    def out(self) -> Tensor:
        """Weights times v, and the default of rows that are not computed."""
        v = for_query_heads(self.call.v, self.call).to(self._dtype)
        out = self.applied @ _seen(v, self.live, dim=-2)
        rows = self.call.spec.rows
        if rows is None or self.computed is None:
            return out
        match rows.default:
            case RowDefault.ZERO:
                default = torch.zeros_like(out)
            case RowDefault.MEAN:
                default = _mean(v, self.predicate & ~self.computed)
            case RowDefault.PASS:
                default = self._own_value(v)
            case _:
                assert_never(rows.default)
        return torch.where(self.computed, out, default)

    def _own_value(self, v: Tensor) -> Tensor:
        """v of the key at each query's position, 0 where there is none."""
        pairs = Pairs.rows(Planes(self.call))
        key = pairs.position(Side.Q) - pairs.offset(Side.K)
        key = key.broadcast_to((*v.shape[:2], self.call.sizes.q_len, 1)).squeeze(-1)
        inside = (key >= 0) & (key < v.shape[2])
        if v.shape[2] == 0:
            return v.new_zeros((*key.shape, v.shape[3]))
        own = v.gather(2, key.masked_fill(~inside, 0).unsqueeze(-1).expand(-1, -1, -1, v.shape[3]))
        return torch.where(inside.unsqueeze(-1), own, 0)

    # ---- reductions

    def table(self, name: str) -> Tensor:
        """An input, or a reduction [batch, heads, *dims]."""
        reduction = self.call.spec.reduction(name)
        if reduction is None:
            return super().table(name)
        if name not in self._reduced:
            self._reduced[name] = self._reduce(reduction)
        return self._reduced[name]

    def _reduce(self, reduction: Reduction) -> Tensor:
        shape = (*_shape(self.call)[:2], *(self._extent(dim) for dim in reduction.dims))
        index = self.kept.nonzero(as_tuple=True)
        place = index[0] * shape[1] + index[1]
        inside = torch.ones_like(place, dtype=torch.bool)
        pairs = self._pairs(index, graph=False)
        for slot, extent in zip(reduction.indices, shape[2:], strict=True):
            at = read(slot, pairs)
            inside = inside & (at >= 0) & (at < extent)
            place = place * extent + at
        index = tuple(x[inside] for x in index)
        return joined(reduction.op, self._contributions(reduction, index), place[inside], math.prod(shape)).view(shape)

    def _contributions(self, reduction: Reduction, index: tuple[Tensor, ...]) -> Tensor:
        """What the listed pairs contribute, those that weigh 0 too; differentiable but for pairs of score -inf.

        For a reduction that the score itself reads, those are the pairs that contribute -inf.
        """
        values = self._values(reduction.value, index, graph=False)
        if reduction.value.type is not Type.FLOAT:
            return values
        derived = values != -torch.inf
        if reduction.name not in self._behind_score:
            derived = derived & self.live[index]
        chosen = tuple(x[derived] for x in index)
        return values.index_put((derived,), self._values(reduction.value, chosen))

    @cached_property
    def _behind_score(self) -> frozenset[str]:
        """The reductions that the score is made of."""
        found: set[str] = set()
        waiting = [self.call.spec.score]
        while waiting:
            for name in set(_tables(waiting.pop())) - found:
                reduction = self.call.spec.reduction(name)
                if reduction is not None:
                    found.add(name)
                    waiting += [*reduction.indices, reduction.value]
        return frozenset(found)

    def _extent(self, dim: Dim) -> int:
        """Entries along a dim, enough for every batch row where an offset is a tensor."""
        assert dim.extent is not None, "the checker gives every dim of a reduction an extent"
        extent = read(dim.extent, Pairs.all(Planes(self.call)))
        return max(int(extent.max()), 0) if extent.numel() else 0

    # ---- expressions

    def _plane(self, expr: Expr, at: Tensor, of_others: float = 0.0, *, graph: bool = True) -> Tensor:
        """A float expression at the pairs, or at the rows, where `at` holds."""
        index = at.nonzero(as_tuple=True)
        plane = torch.full(at.shape, of_others, dtype=self._dtype, device=at.device)
        return plane.index_put(index, self._values(expr, index, graph=graph))

    def _column(self, expr: Expr | None, of_others: float) -> Tensor | None:
        """A float expression at the rows that are computed, as a column."""
        if expr is None:
            return None
        if self.computed is None:
            rows = torch.ones(_shape(self.call)[:3], dtype=torch.bool, device=self.call.q.device)
        else:
            rows = self.computed.squeeze(-1)
        return self._plane(expr, rows, of_others).unsqueeze(-1)

    def _values(
        self, expr: Expr, index: tuple[Tensor, ...], *, graph: bool = True, fixed_weight: bool = False
    ) -> Tensor:
        """An expression at listed pairs or rows: bool, int64 or, rounded, the dtype of planes."""
        pairs = self._pairs(index, graph, fixed_weight, exact=not self._exact_tables.isdisjoint(_tables(expr)))
        value = read(expr, pairs).broadcast_to(index[0].shape)
        return value.to(self._dtype) if expr.type is Type.FLOAT else value

    def _pairs(self, index: tuple[Tensor, ...], graph: bool, fixed_weight: bool = False, exact: bool = False) -> Pairs:
        batch, head, query, *key = index
        dtype = torch.float64 if exact else self._float
        return Pairs(self, batch, head, query, key[0] if key else None, dtype, graph, fixed_weight)


def _tables(expr: Expr) -> Iterator[str]:
    """The tables that an expression reads."""
    for node in walk(expr):
        match node:
            case Read():
                yield node.input
            case Member() | Bucket():
                yield node.row.input
            case Dot():
                yield from (vector.input for vector in (node.left, node.right) if isinstance(vector, Row))
            case _:
                pass


def _seen(x: Tensor, kept: Tensor, dim: int) -> Tensor:
    """The rows of x that occur in a kept pair, 0 elsewhere, so that what they hold cannot reach a sum as 0 * inf."""
    return torch.where(kept.any(dim).unsqueeze(-1), x, torch.zeros((), dtype=x.dtype, device=x.device))


def _mean(v: Tensor, kept: Tensor) -> Tensor:
    """Mean of the rows of v that each query sees, 0 of none."""
    chosen = kept.to(v.dtype)
    return (chosen @ _seen(v, kept, dim=-2)) / chosen.sum(-1, keepdim=True).clamp(min=1)
