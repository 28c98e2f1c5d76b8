"""The reading of expressions by the `dense` engine: torch tensors at given pairs, differentiable.

Pairs come as a box (all of a call, no graph) or as a list (vectors of indices). On a list, a branch that is not taken
is not evaluated: its operands are restricted to the pairs that take it. Everything that decides, which is every
expression of type BOOL or INT, is read in float64 and without a graph. It shares no code with the other readings.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import assert_never

import torch
from torch import Tensor

from maskc.expr import (
    AxisSize,
    Binary,
    Bound,
    Bucket,
    Cast,
    Coordinate,
    Count,
    Dot,
    Expr,
    FinalScore,
    Fold,
    FoldOp,
    FreeSize,
    Index,
    Kept,
    Length,
    Literal,
    Member,
    Offset,
    Parameter,
    Position,
    Rand,
    Read,
    Row,
    Scale,
    Score,
    Select,
    Side,
    Token,
    Total,
    Type,
    Unary,
    Vector,
    Weight,
)
from maskc.runtime.dense_operators import binary, floor_divide, modulo, rand, unary
from maskc.runtime.inputs import Call


class Planes:
    """What expressions read of a call beyond its sizes: tables, and a value for every pair, [batch, heads, q_len,
    k_len].

    These are the call's own numbers, for what decides whether a pair is kept; nothing final exists yet.
    """

    def __init__(self, call: Call, shares: dict[str, Tensor] | None = None):
        self.call = call
        self.shares = shares

    @cached_property
    def dots(self) -> Tensor:
        """query . key; in float32 for 16-bit q."""
        q, k = (wide(x) for x in (self.call.q.detach(), self.call.k.detach()))
        return q @ for_query_heads(k, self.call).transpose(-1, -2)

    @cached_property
    def first(self) -> Tensor:
        """The score that pairs start with."""
        return self.dots * self.call.scale

    @cached_property
    def final(self) -> Tensor:
        """The score behind all `score` lines."""
        raise AssertionError("the checker lets no decision about a pair read its final score")

    @cached_property
    def weight(self) -> Tensor:
        """The weight as the normaliser gives it."""
        raise AssertionError("the checker lets no decision about a pair read its weight")

    def table(self, name: str) -> Tensor:
        """An input or a reduction."""
        return self.call.inputs[name]

    def weigh(self, name: str, entries: Tensor, at: tuple[Tensor, ...]) -> None:
        """Adds to `shares` the size of what each pair will give to the gradient of a table's entries."""
        if self.shares is None or name not in self.shares or not entries.requires_grad:
            return
        share = self.shares[name]

        def add(gradient: Tensor) -> None:
            if at:
                share.index_put_(at, gradient.abs(), accumulate=True)
            else:
                share.add_(gradient.abs().sum_to_size(share.shape))

        entries.register_hook(add)


def wide(x: Tensor) -> Tensor:
    """In float32 if it has 16 bits."""
    return x.to(torch.float32) if x.dtype.itemsize == 2 else x


def for_query_heads(x: Tensor, call: Call) -> Tensor:
    """K or V with one entry per query head."""
    s = call.sizes
    return x if s.heads == s.kv_heads else x.repeat_interleave(s.heads // s.kv_heads, 1)


@dataclass(frozen=True)
class Pairs:
    """Pairs at which expressions are read: int64 index tensors that broadcast against each other.

    query and key count from the call's first query and key; positions add the offsets. key is None where whole rows are
    meant. float_dtype: of float expressions outside of decisions. graph: whether what is read may be differentiated;
    then the index tensors are vectors, one entry per pair. fixed_weight: `weight` is a constant all the same. bound:
    the indices of the folds around.
    """

    planes: Planes
    batch: Tensor
    head: Tensor
    query: Tensor
    key: Tensor | None
    float_dtype: torch.dtype = torch.float64
    graph: bool = False
    fixed_weight: bool = False
    bound: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def all(cls, planes: Planes) -> "Pairs":
        """All pairs of the call, as a box, for what decides."""
        s, device = planes.call.sizes, planes.call.q.device
        return cls(
            planes,
            torch.arange(s.batch, device=device).view(-1, 1, 1, 1),
            torch.arange(s.heads, device=device).view(-1, 1, 1),
            torch.arange(s.q_len, device=device).view(-1, 1),
            torch.arange(s.k_len, device=device),
        )

    @classmethod
    def rows(cls, planes: Planes) -> "Pairs":
        """All rows of the call, as a box one key wide."""
        return replace(cls.all(planes), key=None)

    @property
    def call(self) -> Call:
        """The call that they belong to."""
        return self.planes.call

    @property
    def index(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Where a plane holds their values."""
        assert self.key is not None, "the checker lets nothing that belongs to a row read the key"
        return self.batch, self.head, self.query, self.key

    def of(self, plane: Tensor) -> Tensor:
        """The entries of a plane."""
        return self.leaf(plane)[self.index].to(self.float_dtype)

    def leaf(self, x: Tensor) -> Tensor:
        """A tensor from outside, with its graph only where one is wanted."""
        return x if self.graph else x.detach()

    def offset(self, side: Side) -> Tensor:
        """Offset of the queries or keys of each pair's batch row."""
        offset = self.call.sizes.offset(side)
        if offset is None:
            return self.call.inputs[f"{side.value}_offset"].to(torch.int64)[self.batch]
        return torch.tensor(offset, device=self.batch.device)

    def position(self, side: Side) -> Tensor:
        """Original position of the query or key."""
        return (self.query if side is Side.Q else self.index[-1]) + self.offset(side)

    def where(self, chosen: Tensor) -> "Pairs":
        """The sublist of a list at which a bool vector holds."""
        key = None if self.key is None else self.key[chosen]
        batch, head, query = (x[chosen] for x in (self.batch, self.head, self.query))
        return replace(self, batch=batch, head=head, query=query, key=key)

    def deciding(self) -> "Pairs":
        """The same pairs for an expression that decides: floats are float64, nothing is differentiated."""
        settled = not self.graph and self.float_dtype is torch.float64
        return self if settled else replace(self, float_dtype=torch.float64, graph=False)

    def inside(self, name: str, value: int) -> "Pairs":
        """The same pairs inside a fold."""
        return replace(self, bound={**self.bound, name: value})


def read(expr: Expr, pairs: Pairs) -> Tensor:
    """The expression at the pairs: bool, int64 or `float_dtype`, broadcastable to them."""
    if expr.type is not Type.FLOAT:
        pairs = pairs.deciding()
    device, s = pairs.batch.device, pairs.call.sizes
    match expr:
        case Literal():
            return _constant(expr.value, expr.type, pairs)
        case Position():
            return pairs.position(expr.side)
        case Coordinate():
            return _coordinate(expr, pairs)
        case Offset():
            return pairs.offset(expr.side)
        case Length():
            return torch.tensor(s.length(expr.side), device=device)
        case AxisSize():
            return torch.tensor(s.axis[expr.axis], device=device)
        case Index(count=Count.BATCH):
            return pairs.batch
        case Index(count=Count.HEAD):
            return pairs.head
        case Index():
            return _kv_head(pairs)
        case Total():
            return torch.tensor(s.total(expr.count), device=device)
        case Parameter():
            return _constant(s.parameter[expr.name], expr.type, pairs)
        case FreeSize():
            return torch.tensor(s.free_size[expr.name], device=device)
        case Bound():
            return torch.tensor(pairs.bound[expr.name], device=device)
        case Scale():
            return _constant(pairs.call.scale, expr.type, pairs)
        case Score():
            return pairs.of(pairs.planes.first)
        case FinalScore():
            return pairs.of(pairs.planes.final)
        case Weight():
            weight = pairs.of(pairs.planes.weight)
            return weight.detach() if pairs.fixed_weight else weight
        case Kept():
            raise AssertionError("the checker lets only claims count pairs")
        case Read():
            entry, inside = _entries(expr.input, expr.indices, pairs)
            return entry.to(_dtype(expr.type, pairs)).masked_fill(~inside, 0)
        case Member():
            return _member(expr, pairs)
        case Bucket():
            return _bucket(expr, pairs)
        case Dot():
            return _dot(expr, pairs)
        case Rand():
            return rand([read(a, pairs.deciding()) for a in expr.arguments]).to(pairs.float_dtype) * 2.0**-24
        case Fold():
            return _fold(expr, pairs)
        case Unary():
            return unary(expr.op, read(expr.operand, pairs))
        case Binary():
            return binary(expr.op, read(expr.left, pairs), read(expr.right, pairs))
        case Select():
            return _select(expr, pairs)
        case Cast():
            return read(expr.operand, pairs).to(_dtype(expr.type, pairs))
        case _:
            assert_never(expr)


def _dtype(type_: Type, pairs: Pairs) -> torch.dtype:
    return {Type.BOOL: torch.bool, Type.INT: torch.int64, Type.FLOAT: pairs.float_dtype}[type_]


def _constant(value: bool | int | float, type_: Type, pairs: Pairs) -> Tensor:
    return torch.tensor(value, dtype=_dtype(type_, pairs), device=pairs.batch.device)


def _kv_head(pairs: Pairs) -> Tensor:
    s = pairs.call.sizes
    return pairs.head // (s.heads // s.kv_heads)


def _coordinate(expr: Coordinate, pairs: Pairs) -> Tensor:
    """The axes behind it are the position's lower digits; the first axis takes what is left."""
    axes = pairs.call.spec.axes
    place = axes.index(expr.axis)
    size = pairs.call.sizes.axis
    stride = 1
    for name in axes[place + 1 :]:
        stride *= size[name]
    position = pairs.position(expr.side)
    quotient = floor_divide(position, position.new_tensor(stride))
    return quotient if place == 0 else modulo(quotient, position.new_tensor(size[expr.axis]))


def _select(expr: Select, pairs: Pairs) -> Tensor:
    condition = read(expr.condition, pairs)
    if not pairs.graph:
        # Nothing is differentiated: a value that is computed and thrown away is as good as one never computed.
        return torch.where(condition, read(expr.then, pairs), read(expr.otherwise, pairs))
    chosen = condition.broadcast_to(pairs.batch.shape)
    result = torch.zeros(pairs.batch.shape, dtype=pairs.float_dtype, device=pairs.batch.device)
    for branch, place in ((expr.then, chosen), (expr.otherwise, ~chosen)):
        part = pairs.where(place)
        result = result.index_put((place,), read(branch, part).broadcast_to(part.batch.shape))
    return result


def _fold(expr: Fold, pairs: Pairs) -> Tensor:
    """In the order of the index."""
    joined = _constant(expr.op is FoldOp.ALL, expr.type, pairs)
    for value in range(int(read(expr.count, pairs))):
        term = read(expr.body, pairs.inside(expr.index.name, value))
        match expr.op:
            case FoldOp.ANY:
                joined = joined | term
            case FoldOp.ALL:
                joined = joined & term
            case FoldOp.SUM:
                joined = joined + term
            case _:
                assert_never(expr.op)
    return joined


# ---- tables and vectors


def _entries(name: str, indices: tuple[Expr, ...], pairs: Pairs) -> tuple[Tensor, Tensor]:
    """What a table holds at its first indices, [pairs, *the dims left open], and whether they are in range."""
    table = pairs.leaf(pairs.planes.table(name))
    inside = torch.ones((), dtype=torch.bool, device=table.device)
    if not indices:
        # One entry for every pair: what each gives to it can only be told apart where it has a copy of its own.
        entries = table if pairs.planes.shares is None else table.expand(*pairs.batch.shape, *table.shape)
        pairs.planes.weigh(name, entries, ())
        return entries, inside
    at = torch.broadcast_tensors(*(read(i, pairs.deciding()) for i in indices))
    extents, rest = table.shape[: len(at)], table.shape[len(at) :]
    for index, extent in zip(at, extents, strict=True):
        inside = inside & (index >= 0) & (index < extent)
    if 0 in extents:
        return table.new_zeros((*at[0].shape, *rest)), inside
    guarded = tuple(index.masked_fill(~inside, 0) for index in at)
    entries = table[guarded]
    pairs.planes.weigh(name, entries, guarded)
    return entries, inside


def _member(expr: Member, pairs: Pairs) -> Tensor:
    item = read(expr.item, pairs)
    row, inside = _entries(expr.row.input, expr.row.indices, pairs)
    found = torch.zeros((), dtype=torch.bool, device=item.device)
    for entry in row.unbind(-1):
        found = found | ((entry == item) & (entry >= 0))
    return found & inside


def _bucket(expr: Bucket, pairs: Pairs) -> Tensor:
    item = read(expr.item, pairs)
    row, inside = _entries(expr.row.input, expr.row.indices, pairs)
    passed = torch.zeros((), dtype=torch.int64, device=item.device)
    for entry in row.to(item.dtype).unbind(-1):
        passed = passed + (entry <= item)
    return passed * inside


def _dot(expr: Dot, pairs: Pairs) -> Tensor:
    """By the plane of all dot products where it is that of query and key; else vector by vector."""
    match expr.left, expr.right:
        case Token(side=left), Token(side=right) if left is not right:
            return pairs.of(pairs.planes.dots)
        case _:
            return (_vector(expr.left, pairs) * _vector(expr.right, pairs)).sum(-1)


def _vector(vector: Vector, pairs: Pairs) -> Tensor:
    """[pairs, dim] in `float_dtype`; a row out of range is zeros."""
    match vector:
        case Row():
            row, inside = _entries(vector.input, vector.indices, pairs)
            return row.to(pairs.float_dtype).masked_fill(~inside.unsqueeze(-1), 0)
        case Token(side=Side.Q):
            return pairs.leaf(pairs.call.q)[pairs.batch, pairs.head, pairs.query].to(pairs.float_dtype)
        case Token():
            batch, _, _, key = pairs.index
            return pairs.leaf(pairs.call.k)[batch, _kv_head(pairs), key].to(pairs.float_dtype)
        case _:
            assert_never(vector)
