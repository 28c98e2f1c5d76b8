"""The `dense` engine: every kept pair by the textbook formulas. It is the meaning, and every other engine is judged by
it.

out = softmax(score over kept pairs) V and lse = logsumexp(score over kept pairs), differentiable by torch's own
autograd. It has a reading of `Expr` of its own and shares no code with the analysis, the plans or the kernels. Memory
is O(q_len x k_len) per head.

What is guaranteed: a dropped pair and a branch not taken are never evaluated, for values or gradients: operands are
restricted to the pairs that count, so no finished NaN needs to be masked away. A row without kept pairs, or whose kept
pairs all have score -inf, has output 0, lse -inf and zero gradients. Floats that decide a pair or an integer are
float64. Scores are computed in the dtype of q; for 16-bit q, `score` expressions run in float32 and are rounded to the
dtype.
"""

from dataclasses import dataclass, replace
from typing import assert_never

import torch
from torch import Tensor

from maskc.runtime.inputs import Call
from maskc.spec import (
    COMPARISONS,
    SCORE,
    AxisSize,
    Binary,
    BinaryOp,
    Cast,
    Coordinate,
    Count,
    Expr,
    Index,
    Length,
    Literal,
    Offset,
    Parameter,
    Position,
    Read,
    Score,
    Select,
    Side,
    Total,
    Type,
    Unary,
    UnaryOp,
)


def attention(call: Call) -> tuple[Tensor, Tensor]:
    """Output [batch, heads, q_len, D_v] in the dtype of q and lse [batch, heads, q_len] in float32 (float64 for float64
    q).
    """
    kept = kept_pairs(call)
    _, scores = scores_of(call, kept)
    v = _seen(_for_query_heads(call.v, call), kept, dim=-2)
    return _softmax(scores, v)


def kept_pairs(call: Call) -> Tensor:
    """The predicate at every pair: bool [batch, heads, q_len, k_len]."""
    pairs = Pairs.all(call)
    shape = (call.sizes.batch, call.sizes.heads, call.sizes.q_len, call.sizes.k_len)
    return _read(call.spec.predicate, pairs).broadcast_to(shape)


def scores_of(call: Call, kept: Tensor) -> tuple[Tensor, Tensor]:
    """First and final score, [batch, heads, q_len, k_len]; the final one is -inf where a pair is dropped.

    Both are differentiable; the first is a node of the final one's graph.
    """
    q = _seen(call.q, kept, dim=-1)
    k = _seen(_for_query_heads(call.k, call), kept, dim=-2)
    first = (q @ k.transpose(-1, -2)) * call.scale
    if call.spec.score == SCORE:
        return first, first.masked_fill(~kept, -torch.inf)
    with torch.no_grad():
        value = _final_score(call, first, kept)
    # Every derivative through a pair of score -inf is 0: such pairs do not enter the differentiable evaluation.
    return first, _final_score(call, first, kept & (value != -torch.inf))


def _final_score(call: Call, first: Tensor, kept: Tensor) -> Tensor:
    index = kept.nonzero(as_tuple=True)
    float_dtype = torch.float32 if first.dtype.itemsize == 2 else first.dtype
    score = first[index].to(float_dtype)
    pairs = Pairs.at(call, index, float_dtype, score)
    value = _read(call.spec.score, pairs).broadcast_to(index[0].shape)
    # Also a score that does not read the first one is a node of its graph, with derivative 0.
    value = torch.where(torch.ones_like(value, dtype=torch.bool), value, score)
    return torch.full_like(first, -torch.inf).index_put(index, value.to(first.dtype))


def _softmax(scores: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Weights times v, and log-sum-exp; rows of -inf alone give 0 and -inf, with zero gradients."""
    if scores.shape[-1] == 0:
        lse = scores.sum(-1) - torch.inf
    else:
        top = scores.detach().amax(-1, keepdim=True)
        empty = top == -torch.inf
        weights = torch.exp(scores - top.masked_fill(empty, 0))
        total = weights.sum(-1, keepdim=True).masked_fill(empty, 1)
        lse = (torch.log(total) + top).squeeze(-1)
        scores = weights / total
    return scores @ v, lse.to(torch.float64 if lse.dtype is torch.float64 else torch.float32)


def _for_query_heads(x: Tensor, call: Call) -> Tensor:
    """K or V with one entry per query head."""
    return (
        x
        if call.sizes.heads == call.sizes.kv_heads
        else x.repeat_interleave(call.sizes.heads // call.sizes.kv_heads, 1)
    )


def _seen(x: Tensor, kept: Tensor, dim: int) -> Tensor:
    """The rows of x that occur in a kept pair, 0 elsewhere, so that what they hold cannot reach a sum as 0 * inf."""
    return torch.where(kept.any(dim).unsqueeze(-1), x, torch.zeros((), dtype=x.dtype, device=x.device))


@dataclass(frozen=True)
class Pairs:
    """Pairs at which expressions are read: int64 index tensors that broadcast against each other.

    query and key count from the call's first query and key; positions add the offsets. float_dtype: the dtype of float
    expressions outside of decisions. score: the first score of these pairs where `score` may be read; then the index
    tensors are vectors, one entry per pair.
    """

    call: Call
    batch: Tensor
    head: Tensor
    query: Tensor
    key: Tensor
    float_dtype: torch.dtype = torch.float64
    score: Tensor | None = None

    @classmethod
    def all(cls, call: Call) -> "Pairs":
        """All pairs of the call, as a box."""
        s, device = call.sizes, call.q.device
        return cls(
            call,
            torch.arange(s.batch, device=device).view(-1, 1, 1, 1),
            torch.arange(s.heads, device=device).view(-1, 1, 1),
            torch.arange(s.q_len, device=device).view(-1, 1),
            torch.arange(s.k_len, device=device),
        )

    @classmethod
    def at(cls, call: Call, index: tuple[Tensor, ...], float_dtype: torch.dtype, score: Tensor) -> "Pairs":
        """The pairs listed by index vectors (batch, head, query, key)."""
        batch, head, query, key = index
        return cls(call, batch, head, query, key, float_dtype, score)

    def offset(self, side: Side) -> Tensor:
        """Offset of the queries or keys of each pair's batch row."""
        offset = self.call.sizes.offset(side)
        if offset is None:
            return self.call.inputs[f"{side.value}_offset"].to(torch.int64)[self.batch]
        return torch.tensor(offset, device=self.batch.device)

    def position(self, side: Side) -> Tensor:
        """Original position of the query or key."""
        return (self.query if side is Side.Q else self.key) + self.offset(side)

    def where(self, chosen: Tensor) -> "Pairs":
        """The sublist of pairs at which a bool vector holds; `score` must be given."""
        assert self.score is not None, "only lists of pairs have sublists"
        return replace(
            self,
            batch=self.batch[chosen],
            head=self.head[chosen],
            query=self.query[chosen],
            key=self.key[chosen],
            score=self.score[chosen],
        )

    def deciding(self) -> "Pairs":
        """The same pairs for an expression that decides: floats are float64, nothing is differentiated."""
        score = None if self.score is None else self.score.detach().to(torch.float64)
        return replace(self, float_dtype=torch.float64, score=score)


def _read(expr: Expr, pairs: Pairs) -> Tensor:
    """The expression at the pairs: bool, int64 or `float_dtype`, broadcastable to them."""
    if expr.type is not Type.FLOAT and pairs.float_dtype is not torch.float64:
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
            return pairs.head // (s.heads // s.kv_heads)
        case Total():
            return torch.tensor(s.total(expr.count), device=device)
        case Parameter():
            return _constant(s.parameter[expr.name], expr.type, pairs)
        case Read():
            return _entry(expr, pairs)
        case Score():
            assert pairs.score is not None, "the checker lets only `score` lines read the score"
            return pairs.score
        case Unary():
            return _unary(expr, _read(expr.operand, pairs))
        case Binary():
            return _binary(expr, _read(expr.left, pairs), _read(expr.right, pairs))
        case Select():
            return _select(expr, pairs)
        case Cast():
            target = torch.int64 if expr.type is Type.INT else pairs.float_dtype
            return _read(expr.operand, pairs).to(target)
        case _:
            assert_never(expr)


def _constant(value: bool | int | float, type_: Type, pairs: Pairs) -> Tensor:
    dtype = {Type.BOOL: torch.bool, Type.INT: torch.int64, Type.FLOAT: pairs.float_dtype}[type_]
    return torch.tensor(value, dtype=dtype, device=pairs.batch.device)


def _coordinate(expr: Coordinate, pairs: Pairs) -> Tensor:
    """The axes behind it are the position's lower digits; the first axis takes what is left."""
    axes = pairs.call.sizes.axes
    place = [name for name, _ in axes].index(expr.axis)
    stride = 1
    for _, size in axes[place + 1 :]:
        stride *= size
    position = pairs.position(expr.side)
    quotient = _floor_divide(position, position.new_tensor(stride))
    return quotient if place == 0 else _modulo(quotient, position.new_tensor(axes[place][1]))


def _entry(expr: Read, pairs: Pairs) -> Tensor:
    """An input's entry; 0 or False where an index is out of range."""
    table = pairs.call.inputs[expr.input]
    indices = torch.broadcast_tensors(*(_read(i, pairs.deciding()) for i in expr.indices)) if expr.indices else ()
    dtype = {Type.BOOL: torch.bool, Type.INT: torch.int64, Type.FLOAT: pairs.float_dtype}[expr.type]
    if not indices:
        return table.to(dtype)
    inside = torch.ones((), dtype=torch.bool, device=table.device)
    for index, size in zip(indices, table.shape, strict=True):
        inside = inside & (index >= 0) & (index < size)
    if 0 in table.shape:
        return torch.zeros(indices[0].shape, dtype=dtype, device=table.device)
    entry = table[tuple(index.masked_fill(~inside, 0) for index in indices)]
    return entry.to(dtype).masked_fill(~inside, 0)


def _select(expr: Select, pairs: Pairs) -> Tensor:
    condition = _read(expr.condition, pairs)
    if pairs.score is None or expr.type is not Type.FLOAT:
        # Nothing is differentiated: a value that is computed and thrown away is as good as one never computed.
        return torch.where(condition, _read(expr.then, pairs), _read(expr.otherwise, pairs))
    chosen = condition.broadcast_to(pairs.score.shape)
    result = pairs.score.new_zeros(pairs.score.shape)
    for branch, place in ((expr.then, chosen), (expr.otherwise, ~chosen)):
        part = pairs.where(place)
        assert part.score is not None
        result = result.index_put((place,), _read(branch, part).broadcast_to(part.score.shape))
    return result


def _unary(expr: Unary, x: Tensor) -> Tensor:
    match expr.op:
        case UnaryOp.NEG:
            return -x
        case UnaryOp.INVERT | UnaryOp.NOT:
            return ~x
        case UnaryOp.ABS:
            # The derivative at 0 is 0; abs of an integer and of NaN as torch has them.
            return torch.where(x == 0, torch.zeros_like(x), torch.abs(x)) if x.is_floating_point() else torch.abs(x)
        case UnaryOp.RELU:
            return torch.where((x > 0) | (x != x), x, torch.zeros_like(x))
        case UnaryOp.FLOOR:
            return _integer(torch.floor(x))
        case UnaryOp.CEIL:
            return _integer(torch.ceil(x))
        case UnaryOp.ROUND:
            return _integer(torch.round(x))
        case UnaryOp.EXP:
            return torch.exp(x)
        case UnaryOp.LOG:
            return torch.log(x)
        case UnaryOp.TANH:
            return torch.tanh(x)
        case UnaryOp.ERF:
            return torch.erf(x)
        case UnaryOp.SIGMOID:
            return torch.sigmoid(x)
        case UnaryOp.SOFTPLUS:
            return torch.logaddexp(x, torch.zeros_like(x))
        case UnaryOp.SQRT:
            return torch.sqrt(x)
        case _:
            assert_never(expr.op)


def _integer(x: Tensor) -> Tensor:
    """A rounded float as an integer; NaN and what does not fit 64 bits become 0."""
    return torch.where(x.abs() < 2.0**63, x, torch.zeros_like(x)).to(torch.int64)


def _binary(expr: Binary, a: Tensor, b: Tensor) -> Tensor:
    if expr.op in COMPARISONS:
        return _COMPARE[expr.op](a, b)
    match expr.op:
        case BinaryOp.ADD:
            return a + b
        case BinaryOp.SUB:
            return a - b
        case BinaryOp.MUL:
            return a * b
        case BinaryOp.DIV:
            return a / b
        case BinaryOp.FLOORDIV:
            return _floor_divide(a, b)
        case BinaryOp.MOD:
            return _modulo(a, b)
        case BinaryOp.TRUNCDIV:
            return torch.div(a, b, rounding_mode="trunc")
        case BinaryOp.TRUNCMOD:
            return torch.fmod(a, b)
        case BinaryOp.POW:
            return torch.pow(a, b)
        case BinaryOp.MIN:
            # Not torch.minimum: at a tie the derivative goes to the second operand, and NaN in either is kept.
            return torch.where((a < b) | (a != a), a, b)
        case BinaryOp.MAX:
            return torch.where((a > b) | (a != a), a, b)
        case BinaryOp.BITAND | BinaryOp.AND:
            return a & b
        case BinaryOp.BITOR | BinaryOp.OR:
            return a | b
        case BinaryOp.BITXOR:
            return a ^ b
        case BinaryOp.SHL:
            return torch.where((b >= 0) & (b < 64), a << b.clamp(0, 63), 0)
        case BinaryOp.SHR:
            return torch.where(b >= 0, a >> b.clamp(0, 63), 0)
        case BinaryOp.LT | BinaryOp.LE | BinaryOp.GT | BinaryOp.GE | BinaryOp.EQ | BinaryOp.NE:
            raise AssertionError("comparisons are answered above")
        case _:
            assert_never(expr.op)


_COMPARE = {
    BinaryOp.LT: torch.lt,
    BinaryOp.LE: torch.le,
    BinaryOp.GT: torch.gt,
    BinaryOp.GE: torch.ge,
    BinaryOp.EQ: torch.eq,
    BinaryOp.NE: torch.ne,
}


def _floor_divide(a: Tensor, b: Tensor) -> Tensor:
    """Quotient rounded down; 0 for a divisor of 0."""
    zero = b == 0
    return torch.where(zero, torch.zeros_like(a), torch.div(a, torch.where(zero, 1, b), rounding_mode="floor"))


def _modulo(a: Tensor, b: Tensor) -> Tensor:
    """Remainder with the divisor's sign; 0 for a divisor of 0."""
    zero = b == 0
    return torch.where(zero, torch.zeros_like(a), torch.remainder(a, torch.where(zero, 1, b)))
