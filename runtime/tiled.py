"""The `tiled` engine: a plan run batch by batch through torch's fused attention, forward and backward, on any device.

It is the default on the CPU. Memory is O(N x tile): nothing of the size of all pairs is made, and what a batch gathers,
masks or adds up is bounded in bytes. The masks of tiles that are shifted copies of each other are made once. Results
are the same bits in every run: batches are added up one after the other, in the order of the plan.

Scores that add a function of the pair go into the fused kernel's additive mask; scores that bend the first score
(softcap) run by matmuls, with the derivative of the expression. Rows without kept pairs give output 0, lse -inf and
zero gradients.
"""

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from maskc.analysis.derivative import ZERO, derivative, is_additive
from maskc.analysis.plan import Part
from maskc.analysis.shift import by_positions, growth
from maskc.constants import constants
from maskc.evaluate import Pairs, depends, evaluate, tables_read
from maskc.expr import Expr, Scale, Side, Type, children, walk
from maskc.runtime import fused, tables
from maskc.runtime.batches import Batch, batches, complete
from maskc.runtime.fused import Pointwise, Scores
from maskc.runtime.inputs import Call
from maskc.runtime.tables import HostPlan
from maskc.runtime.tiles import TILE, tile_of
from maskc.spec import PrefixSum

_MASK_ENTRIES = 1 << 20  # pairs whose predicate is evaluated at once
_SCORE_ENTRIES = 1 << 19  # scores that the matmul path holds at once
_COPIED_BYTES = 1 << 24  # of gathered keys and values, or of their gradients, at once

T = TypeVar("T")


def forward(call: Call) -> tuple[Tensor, Tensor]:
    """Output [batch, heads, q_len, D_v] in the dtype of q and lse [batch, heads, q_len] in float32 (float64 for it)."""
    rows = call.q.shape[:3]
    statistics = torch.float64 if call.q.dtype is torch.float64 else torch.float32
    if _nothing(call):
        out = call.q.new_zeros((*rows, call.v.shape[3]))
        return out, call.q.new_full(rows, -torch.inf, dtype=statistics)
    work = _Work.of(call)
    if work.complete:
        out = call.q.new_empty((*rows, call.v.shape[3]))
        lse = call.q.new_empty(rows, dtype=statistics)
    else:  # merged in float32
        out = call.q.new_zeros((*rows, call.v.shape[3]), dtype=statistics)
        lse = call.q.new_full(rows, -torch.inf, dtype=statistics)
    for share in work.shares():
        share.forward(out, lse)
    return out.to(call.q.dtype), lse


def backward(
    call: Call, out: Tensor, lse: Tensor, d_out: Tensor, d_lse: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, in their dtypes."""
    if _nothing(call):
        return torch.zeros_like(call.q), torch.zeros_like(call.k), torch.zeros_like(call.v)
    work = _Work.of(call)
    empty = lse == -torch.inf
    d_out = d_out.to(call.q.dtype)
    if bool(empty.any()):
        # Nothing that arrives at an empty row may pass, not even a NaN.
        lse, d_out = lse.masked_fill(empty, 0), d_out.masked_fill(empty.unsqueeze(-1), 0)
        d_lse = None if d_lse is None else d_lse.masked_fill(empty, 0)
    upstream = _Upstream(
        out.contiguous(), lse.contiguous(), d_out.contiguous(), None if d_lse is None else d_lse.to(lse).contiguous()
    )
    sums = lse.dtype
    padded = -(-call.sizes.k_len // TILE[1]) * TILE[1]
    new = torch.empty_like if work.complete else torch.zeros_like
    d_q = new(call.q, dtype=call.q.dtype if work.complete else sums, memory_format=torch.contiguous_format)
    d_k, d_v = (x.new_zeros((*x.shape[:2], padded, x.shape[3]), dtype=sums) for x in (call.k, call.v))
    for share in work.shares():
        share.backward(upstream, d_q, d_k, d_v)
    dtype, k_len = call.q.dtype, call.sizes.k_len
    return d_q.to(dtype), d_k[:, :, :k_len].to(dtype), d_v[:, :, :k_len].to(dtype)


def _nothing(call: Call) -> bool:
    return 0 in (call.sizes.batch, call.sizes.heads, call.sizes.q_len, call.sizes.k_len)


@dataclass(frozen=True, eq=False)
class _Upstream:
    """What a backward reads besides q, k and v: contiguous, one entry per query head; lse is 0 for empty rows."""

    out: Tensor
    lse: Tensor
    d_out: Tensor
    d_lse: Tensor | None


@dataclass(frozen=True)
class _Lanes:
    """Heads that run together: attention matrices with one map and equally strided tensors.

    batch, heads, kv_heads: slices of the call's tensors. map_: number of the map.
    """

    batch: slice
    heads: slice
    kv_heads: slice
    map_: int

    @property
    def first(self) -> tuple[int, int]:
        """The first batch row and head."""
        return self.batch.start or 0, self.heads.start or 0

    def queries(self, x: Tensor) -> Tensor:
        """The lanes of a tensor with one entry per query head, [lanes, ...], a view."""
        return _flat(x[self.batch, self.heads])

    def keys(self, x: Tensor) -> Tensor:
        """The lanes of a tensor with one entry per KV head, [lanes, ...], a view."""
        return _flat(x[self.batch, self.kv_heads])


def _flat(x: Tensor) -> Tensor:
    return x.view(x.shape[0] * x.shape[1], *x.shape[2:])


def _lane_groups(call: Call, maps: tuple[int, int]) -> Iterator[_Lanes]:
    """All heads of all batch rows, as many at a time as one map and the tensors' strides allow.

    The query heads of a KV head run one after the other, so that K and V are never repeated in memory.
    """
    s = call.sizes
    group = s.heads // s.kv_heads
    everything = slice(None)
    per_head = maps[1] > 1
    one_by_one = maps[0] > 1 or not (per_head or (group == 1 and all(_flattens(x) for x in (call.q, call.k, call.v))))
    for b in range(s.batch) if one_by_one else (None,):
        batch = everything if b is None else slice(b, b + 1)
        row = b if b is not None and maps[0] > 1 else 0
        if per_head:
            for h in range(s.heads):
                yield _Lanes(batch, slice(h, h + 1), slice(h // group, h // group + 1), row * maps[1] + h)
        else:
            for g in range(group):
                yield _Lanes(batch, slice(g, None, group), everything, row)


def _flattens(x: Tensor) -> bool:
    """Whether batch rows and heads are one dim of the tensor's memory."""
    return 1 in x.shape[:2] or x.stride(0) == x.shape[1] * x.stride(1)


@dataclass(frozen=True, eq=False)
class _Work:
    """A call and its plan, with the spec's expressions simplified for the call's sizes."""

    call: Call
    host: HostPlan
    _whole: dict[tuple[int, int], tuple[Tensor, Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, call: Call) -> "_Work":
        """Plans a call, or finds its plan."""
        return cls(call, tables.plan_of(call, tile_of(call.spec, call.sizes)))

    def _noted(self, key: Hashable, make: Callable[[], T]) -> T:
        """What follows from the plan alone is worked out once."""
        if key not in self.host.notes:
            self.host.notes[key] = make()
        found: T = self.host.notes[key]
        return found

    @cached_property
    def bias(self) -> Expr | None:
        """What is added to the first score; None for scores that bend it."""

        def make() -> Expr | None:
            bias = is_additive(self.call.spec.score)
            return None if bias is None else constants(bias, self.call.sizes)

        return self._noted("bias", make)

    @cached_property
    def adds(self) -> bool:
        """Whether something is added to the first score."""
        return self.bias is not None and self.bias != ZERO

    @cached_property
    def bent(self) -> tuple[Expr, Expr]:
        """The score and its derivative."""
        score, sizes = self.call.spec.score, self.call.sizes
        return self._noted("bent", lambda: (constants(score, sizes), constants(derivative(score), sizes)))

    def predicates(self, part: Part) -> tuple[Expr, Expr]:
        """What decides pairs of the part's live tiles, and of all tiles."""
        sizes = self.call.sizes
        whole = self.call.spec.predicate
        return self._noted(
            ("predicates", id(part)), lambda: (constants(part.predicate, sizes), constants(whole, sizes))
        )

    @cached_property
    def lanes(self) -> tuple[_Lanes, ...]:
        """All heads of all batch rows."""
        return tuple(_lane_groups(self.call, self.host.plan.maps))

    def batches(self, number: int, lanes: _Lanes) -> tuple[Batch, ...]:
        """The batches of a part, numbered, for some lanes."""
        plan, count = self.host.plan, lanes.queries(self.call.q).shape[0]
        plain = self.bias is not None and not self.adds
        return self._noted(
            ("batches", number, lanes.map_, count),
            lambda: batches(plan, plan.parts[number], lanes.map_, count, plain=plain),
        )

    def whole_keys(self, lanes: _Lanes) -> tuple[Tensor, Tensor]:
        """K and V of some lanes, as long as whole key tiles."""
        if lanes.first not in self._whole:
            missing = -self.call.sizes.k_len % TILE[1]
            k, v = lanes.keys(self.call.k), lanes.keys(self.call.v)
            self._whole[lanes.first] = (pad(k, (0, 0, 0, missing)), pad(v, (0, 0, 0, missing))) if missing else (k, v)
        return self._whole[lanes.first]

    @cached_property
    def complete(self) -> bool:
        """Whether every query is in one batch only."""
        plan = self.host.plan
        return len(plan.parts) == 1 and all(complete(self.batches(0, lanes), plan) for lanes in self.lanes)

    def shares(self) -> Iterator["_Share"]:
        """Everything that is to be run, in order."""
        for number, part in enumerate(self.host.plan.parts):
            for lanes in self.lanes:
                for position, batch in enumerate(self.batches(number, lanes)):
                    yield _Share(self, part, lanes, batch, (number, position))


@dataclass(frozen=True, eq=False)
class _Share:
    """One batch of tiles for some lanes."""

    work: _Work
    part: Part
    lanes: _Lanes
    batch: Batch
    number: tuple[int, int]

    def forward(self, out: Tensor, lse: Tensor) -> None:
        """Write or merge this share into the output and lse of the call."""
        call, batch, queries = self.work.call, self.batch, self.lanes.queries
        q, k, v, out, lse = queries(call.q), *self._keys(), queries(out), queries(lse)
        for lanes, tiles in self._pieces(copies=batch.k_tiles is not None):
            scores, dead = self._scores(lanes, tiles)
            found, statistics = fused.forward(
                self._q(q, lanes, tiles), self._k(k, lanes, tiles), self._k(v, lanes, tiles), scores
            )
            if dead is not None:
                statistics = statistics.masked_fill(dead, -torch.inf)
            if not batch.fresh:
                found, statistics = _merged(self._q(out, lanes, tiles), self._q(lse, lanes, tiles), found, statistics)
            self._put(out, lanes, tiles, found)
            self._put(lse, lanes, tiles, statistics)

    def backward(self, upstream: _Upstream, d_q: Tensor, d_k: Tensor, d_v: Tensor) -> None:
        """Add this share's gradients to those of the call; d_k and d_v are as long as whole key tiles."""
        call, batch, queries = self.work.call, self.batch, self.lanes.queries
        q, k, v = queries(call.q), *self._keys()
        out, lse, d_out = queries(upstream.out), queries(upstream.lse), queries(upstream.d_out)
        d_lse = None if upstream.d_lse is None else queries(upstream.d_lse)
        d_q, d_k, d_v = queries(d_q), self.lanes.keys(d_k), self.lanes.keys(d_v)
        for lanes, tiles in self._pieces(copies=True):
            scores, _ = self._scores(lanes, tiles)
            found_q, found_k, found_v = fused.backward(
                self._q(q, lanes, tiles),
                self._k(k, lanes, tiles),
                self._k(v, lanes, tiles),
                self._q(out, lanes, tiles),
                self._q(lse, lanes, tiles),
                self._q(d_out, lanes, tiles),
                None if d_lse is None else self._q(d_lse, lanes, tiles),
                scores,
            )
            self._put(d_q, lanes, tiles, found_q if batch.fresh else self._q(d_q, lanes, tiles) + found_q)
            self._add_keys(d_k, lanes, tiles, found_k)
            self._add_keys(d_v, lanes, tiles, found_v)

    # Views of the lanes and tiles of this share.

    def _keys(self) -> tuple[Tensor, Tensor]:
        """Lanes of K and V; as long as whole key tiles where they are gathered."""
        if self.batch.k_tiles is not None:
            return self.work.whole_keys(self.lanes)
        return self.lanes.keys(self.work.call.k), self.lanes.keys(self.work.call.v)

    def _q(self, x: Tensor, lanes: slice, tiles: range) -> Tensor:
        """Query tiles of some lanes, [lanes, tiles, queries, ...]: a view, or a copy where they are gathered."""
        batch = self.batch
        if batch.q_tiles is None:
            return _windows(
                x[lanes], batch.q_first + tiles.start * batch.q_step, batch.q_step, len(tiles), batch.queries
            )
        return _tiles(x[lanes], batch.queries).index_select(1, self._index(batch.q_tiles[tiles.start : tiles.stop]))

    def _k(self, x: Tensor, lanes: slice, tiles: range) -> Tensor:
        """Key tiles of some lanes, [lanes, tiles, keys, ...]: overlapping views, or a copy where they are gathered."""
        batch = self.batch
        if batch.k_tiles is None:
            return _windows(x[lanes], batch.k_first + tiles.start * batch.k_step, batch.k_step, len(tiles), batch.keys)
        index = self._index(batch.k_tiles[tiles.start : tiles.stop])
        return _tiles(x[lanes], TILE[1]).index_select(1, index).view(-1, len(tiles), batch.keys, x.shape[-1])

    def _put(self, x: Tensor, lanes: slice, tiles: range, values: Tensor) -> None:
        """Write query tiles."""
        batch = self.batch
        if batch.q_tiles is None:
            self._q(x, lanes, tiles).copy_(values)
        else:
            index = self._index(batch.q_tiles[tiles.start : tiles.stop])
            _tiles(x[lanes], batch.queries).index_copy_(1, index, values.to(x.dtype))

    def _add_keys(self, x: Tensor, lanes: slice, tiles: range, values: Tensor) -> None:
        """Add gradients of key tiles, one shift after the other where they overlap."""
        batch, x = self.batch, x[lanes]
        if batch.k_tiles is not None:
            index = self._index(batch.k_tiles[tiles.start : tiles.stop])
            whole = values.to(x.dtype).reshape(x.shape[0], index.numel(), TILE[1], x.shape[-1])
            _tiles(x, TILE[1]).index_add_(1, index, whole)
            return
        width = batch.k_step if batch.tiles > 1 else batch.keys
        for start in range(0, batch.keys, width):
            size = min(width, batch.keys - start)
            first = batch.k_first + tiles.start * batch.k_step + start
            _windows(x, first, batch.k_step, len(tiles), size).add_(values[:, :, start : start + size])

    def _index(self, tiles: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(tiles.reshape(-1)).to(self.work.call.q.device)

    # Scores.

    def _scores(self, lanes: slice, tiles: range) -> tuple[Scores, Tensor | None]:
        """The scores of some lanes and tiles, and which of their queries keep no key: bool, broadcastable; None:
        none.
        """
        work = self.work
        mask, dead = self._mask(lanes, tiles)
        if work.bias is not None:
            return Scores(work.call.scale, mask), dead
        pairs = self._pairs(lanes, tiles)
        return Scores(work.call.scale, mask, *(self._pointwise(e, pairs) for e in work.bent)), dead

    def _pointwise(self, expr: Expr, pairs: Pairs) -> Pointwise:
        """A score expression as a function of the first score of these pairs."""
        sums = {i.name for i in self.work.call.spec.inputs if isinstance(i.source, PrefixSum)}
        # Then in float64: decisions have the same bits everywhere, and long sums differ by little.
        wide = _decides_by_float(expr) or not sums.isdisjoint(tables_read(expr))

        def value(first: Tensor) -> Tensor:
            dtype = torch.float64 if wide else first.dtype
            found: Tensor = evaluate(expr, replace(pairs, score=first.to(dtype), float_dtype=dtype))
            return found.to(first.dtype).broadcast_to(first.shape)

        return value

    def _mask(self, lanes: slice, tiles: range) -> tuple[Tensor | None, Tensor | None]:
        """What is added to the first scores, and the queries for which that is -inf throughout."""
        if not self._masked:
            return None, None
        if self._shared:
            tiles = range(1)
        owner = (self.lanes.map_, self.lanes.first, lanes.start, lanes.stop) if self._by_lane else ()
        call = self.work.call
        scale = call.scale if any(isinstance(n, Scale) for e in self._mask_expressions for n in walk(e)) else None
        key = (self.number, self.lanes.map_, owner, tiles, call.q.dtype, scale)
        return self.work.host.masks.get(key, lambda: self._made_mask(lanes, tiles))

    @cached_property
    def _masked(self) -> bool:
        return self.batch.masked or self.work.adds

    @cached_property
    def _predicate(self) -> Expr:
        """What decides the pairs of this share: the part's open clauses decide live tiles only."""
        return self.work.predicates(self.part)[0 if self.batch.exact else 1]

    @cached_property
    def _mask_expressions(self) -> tuple[Expr, ...]:
        work = self.work
        return (self._predicate,) * self.batch.masked + ((work.bias,) if work.adds and work.bias is not None else ())

    @cached_property
    def _shared(self) -> bool:
        """Whether all tiles have one mask, each shifted as its positions are."""
        batch, sizes = self.batch, self.work.call.sizes
        if batch.tiles == 1 or batch.q_tiles is not None or batch.k_tiles is not None:
            return False
        move = by_positions(batch.q_step, sizes)
        return all(growth(e, move) == 0 for e in self._mask_expressions)

    @cached_property
    def _by_lane(self) -> bool:
        """Whether masks differ between lanes."""
        return any(True in depends(e, self.work.call.sizes) for e in self._mask_expressions)

    def _made_mask(self, lanes: slice, tiles: range) -> tuple[Tensor, Tensor | None]:
        batch, work = self.batch, self.work
        pairs = self._pairs(lanes, tiles)
        dtype = torch.float64 if work.call.q.dtype is torch.float64 else torch.float32
        mask = torch.zeros((), dtype=dtype, device=pairs.q.device)
        if work.adds and work.bias is not None:
            mask = evaluate(work.bias, pairs).to(dtype)
        if batch.masked:
            kept = evaluate(self._predicate, pairs)
            if batch.k_tiles is not None:  # the last tile may be longer than the keys
                kept = kept & (self._places(tiles)[1] < work.call.sizes.k_len)
            mask = torch.where(kept, mask, -torch.inf)
        mask = mask.broadcast_to(torch.broadcast_shapes(mask.shape, (1, 1, batch.queries, batch.keys))).contiguous()
        dead = (mask == -torch.inf).all(-1)
        return mask, dead if bool(dead.any()) else None

    def _pairs(self, lanes: slice, tiles: range) -> Pairs:
        """Every query of some tiles with every key of theirs."""
        call, own = self.work.call, self.lanes
        device = call.q.device
        rows = torch.arange(call.sizes.batch, device=device)[own.batch]
        heads = torch.arange(call.sizes.heads, device=device)[own.heads]
        batch = rows.repeat_interleave(heads.numel())[lanes].view(-1, 1, 1, 1)
        head = heads.repeat(rows.numel())[lanes].view(-1, 1, 1, 1)
        q, k = self._places(tiles)
        q, k = (x + self._offset(side, batch) for x, side in ((q, Side.Q), (k, Side.K)))
        scale = torch.full((), call.scale, dtype=torch.float64, device=device)
        return Pairs(torch, call.sizes, call.inputs, batch, head, q, k, bound={Scale(Type.FLOAT): scale})

    def _offset(self, side: Side, batch: Tensor) -> int | Tensor:
        offset = self.work.call.sizes.offset(side)
        return self.work.call.inputs[f"{side.value}_offset"][batch] if offset is None else offset

    def _places(self, tiles: range) -> tuple[Tensor, Tensor]:
        """Queries [1, tiles, queries, 1] and keys [1, tiles, 1, keys] of some tiles, counted from the call's first."""
        batch, device = self.batch, self.work.call.q.device
        number = torch.arange(tiles.start, tiles.stop, device=device).view(-1, 1)
        if batch.q_tiles is None:
            q = batch.q_first + number * batch.q_step
        else:
            q = self._index(batch.q_tiles[tiles.start : tiles.stop]).view(-1, 1) * batch.queries
        if batch.k_tiles is None:
            k = batch.k_first + number * batch.k_step + torch.arange(batch.keys, device=device)
        else:
            first = self._index(batch.k_tiles[tiles.start : tiles.stop]).view(len(tiles), -1, 1) * TILE[1]
            k = (first + torch.arange(TILE[1], device=device)).flatten(1)
        q = q + torch.arange(batch.queries, device=device)
        return q.view(1, -1, batch.queries, 1), k.view(1, -1, 1, batch.keys)

    def _pieces(self, *, copies: bool) -> Iterator[tuple[slice, range]]:
        """Lanes and tiles that run at once, so that what they need in memory stays bounded."""
        batch, call = self.batch, self.work.call
        count = self.lanes.queries(call.q).shape[0]
        pairs = batch.queries * batch.keys
        limits = [(count, batch.tiles)]
        if copies:
            size = batch.keys * (call.k.shape[3] + call.v.shape[3]) * call.q.element_size()
            limits.append(_at_once(_COPIED_BYTES // max(1, size), count))
        if self._masked and not self._shared:
            room = _MASK_ENTRIES // pairs
            limits.append(_at_once(room, count) if self._by_lane else (count, max(1, room)))
        if not fused.fusible(call.q, Scores(call.scale, final=None if self.work.bias is not None else torch.neg)):
            limits.append(_at_once(_SCORE_ENTRIES // pairs, count))
        lanes, tiles = min(lanes for lanes, _ in limits), min(tiles for _, tiles in limits)
        for first in range(0, count, lanes):
            for start in range(0, batch.tiles, tiles):
                yield slice(first, min(first + lanes, count)), range(start, min(start + tiles, batch.tiles))


def _at_once(room: int, lanes: int) -> tuple[int, int]:
    """Lanes and tiles for `room` tiles of one lane."""
    return (max(1, min(room, lanes)), max(1, room // lanes))


def _windows(x: Tensor, first: int, step: int, count: int, size: int) -> Tensor:
    """Views [lanes, count, size, ...] of x [lanes, n, ...]: x[:, first + i * step :][:, :size] for each i."""
    assert 0 <= first <= x.shape[1] - (count - 1) * step - size, "a tile leaves its tensor"
    lane, row, *rest = x.stride()
    strides = (lane, step * row, row, *rest)
    return x.as_strided((x.shape[0], count, size, *x.shape[2:]), strides, x.storage_offset() + first * row)


def _tiles(x: Tensor, size: int) -> Tensor:
    """Whole tiles of x [lanes, n, ...] as a view [lanes, n // size, size, ...]."""
    return _windows(x, 0, size, x.shape[1] // size, size)


def _merged(out: Tensor, lse: Tensor, more: Tensor, more_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Two softmaxes over disjoint keys as one; either may be empty (lse -inf)."""
    top = torch.logaddexp(lse, more_lse)
    safe = top.masked_fill(top == -torch.inf, 0)
    out = out * torch.exp(lse - safe).unsqueeze(-1) + more * torch.exp(more_lse - safe).unsqueeze(-1)
    return out, top


def _decides_by_float(expr: Expr) -> bool:
    """Whether a float decides a condition or an integer somewhere inside."""
    return any(
        node.type is not Type.FLOAT and any(child.type is Type.FLOAT for child in children(node)) for node in walk(expr)
    )
