"""The numbers reading in numpy and in torch against plain Python, value by value."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_specs import BOOL, FLOAT, INT, Draw, K, Q, binary, whole

from maskc.constants import constants
from maskc.evaluate import Pairs, depends, evaluate
from maskc.expr import (
    FALSE,
    SCORE,
    TRUE,
    Binary,
    BinaryOp,
    Cast,
    Coordinate,
    Count,
    Expr,
    Index,
    Literal,
    Offset,
    Parameter,
    Position,
    Read,
    Select,
    Total,
    Type,
    Unary,
    UnaryOp,
)
from maskc.spec import Sizes

torch.set_num_threads(1)
WORD = 2**64
EDGES = [0, 1, -1, 2, -2, 3, 7, 63, 64, 65, -64, 2**31, -(2**31), 2**53 + 1, 2**62, 2**63 - 1, -(2**63)]
REALS = [0.0, -0.0, 0.5, 1.5, 2.5, -0.5, -1.5, 1e-310, 3.7, -3.7, 1e19, -1e19, 1e308, math.inf, -math.inf, math.nan]


def wrapped(value: int) -> int:
    """An integer as 64 bits hold it."""
    return (value + 2**63) % WORD - 2**63


INTEGERS: dict[BinaryOp, Callable[[int, int], int | bool]] = {
    BinaryOp.ADD: lambda a, b: a + b,
    BinaryOp.SUB: lambda a, b: a - b,
    BinaryOp.MUL: lambda a, b: a * b,
    BinaryOp.FLOORDIV: lambda a, b: a // b if b else 0,
    BinaryOp.MOD: lambda a, b: a % b if b else 0,
    BinaryOp.TRUNCDIV: lambda a, b: abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1) if b else 0,
    BinaryOp.TRUNCMOD: lambda a, b: abs(a) % abs(b) * (-1 if a < 0 else 1) if b else 0,
    BinaryOp.MIN: min,
    BinaryOp.MAX: max,
    BinaryOp.BITAND: lambda a, b: a & b,
    BinaryOp.BITOR: lambda a, b: a | b,
    BinaryOp.BITXOR: lambda a, b: a ^ b,
    BinaryOp.SHL: lambda a, b: a << min(b, 64) if b >= 0 else 0,
    BinaryOp.SHR: lambda a, b: a >> min(b, 64) if b >= 0 else 0,
    BinaryOp.LT: lambda a, b: a < b,
    BinaryOp.LE: lambda a, b: a <= b,
    BinaryOp.GT: lambda a, b: a > b,
    BinaryOp.GE: lambda a, b: a >= b,
    BinaryOp.EQ: lambda a, b: a == b,
    BinaryOp.NE: lambda a, b: a != b,
}


def at(expr: Expr, xp: Any, inputs: dict[str, Any] | None = None, **changes: Any) -> Any:
    """An expression at one pair, or at the pairs given."""
    sizes = changes.pop("sizes", Sizes(4, 4))
    place = {name: changes.get(name, 0) for name in ("batch", "head", "q", "k")}
    arrays = {name: np.asarray(value, np.int64) for name, value in place.items()}
    given_ = inputs or {}
    if xp is torch:
        arrays = {name: torch.from_numpy(value) for name, value in arrays.items()}  # type: ignore[misc]
        given_ = {name: torch.from_numpy(value) for name, value in given_.items()}
    value = evaluate(expr, Pairs(xp, sizes, given_, **arrays))
    return np.asarray(value)


def same(found: Any, wanted: float) -> bool:
    """Equal, NaN included."""
    return bool(found == wanted) or (math.isnan(wanted) and math.isnan(float(found)))


@pytest.mark.parametrize("xp", [np, torch], ids=["numpy", "torch"])
@pytest.mark.parametrize("op", INTEGERS, ids=lambda op: op.name)
def test_integers_are_python_s_in_64_bits(op: BinaryOp, xp: Any) -> None:
    a, b = np.meshgrid(np.array(EDGES), np.array(EDGES))
    table = {"a": a.reshape(-1), "b": b.reshape(-1)}
    operands = Read(INT, "a", (Position(INT, Q),)), Read(INT, "b", (Position(INT, Q),))
    found = at(binary(op, *operands), xp, table, q=np.arange(a.size))
    wanted = [INTEGERS[op](int(x), int(y)) for x, y in zip(table["a"], table["b"], strict=True)]
    assert found.dtype == (np.int64 if binary(op, *operands).type is INT else np.bool_)
    assert found.tolist() == [w if isinstance(w, bool) else wrapped(w) for w in wanted]


@given(a=st.integers(-(2**63), 2**63 - 1), b=st.integers(-(2**63), 2**63 - 1))
@settings(max_examples=60)
def test_random_integers_are_python_s_in_64_bits(a: int, b: int) -> None:
    for op, python in INTEGERS.items():
        wanted = python(a, b)
        for xp in (np, torch):
            found = at(binary(op, whole(a), whole(b)), xp).item()
            assert found == (wanted if isinstance(wanted, bool) else wrapped(wanted)), (op, xp)


@pytest.mark.parametrize("xp", [np, torch], ids=["numpy", "torch"])
@pytest.mark.parametrize("x", REALS)
def test_float_functions_are_those_of_float64(x: float, xp: Any) -> None:
    finite = math.isfinite(x) and abs(x) < 2**63
    wanted: dict[UnaryOp, float | int] = {
        UnaryOp.FLOOR: math.floor(x) if finite else 0,
        UnaryOp.CEIL: math.ceil(x) if finite else 0,
        UnaryOp.ROUND: round(x) if finite else 0,
        UnaryOp.ABS: abs(x),
        UnaryOp.NEG: -x,
        UnaryOp.RELU: x if math.isnan(x) else max(x, 0.0),
        UnaryOp.ERF: math.erf(x),
        UnaryOp.TANH: math.tanh(x),
        UnaryOp.EXP: math.exp(x) if not x > 709 else math.inf,
        UnaryOp.LOG: math.nan if x < 0 else -math.inf if x == 0 else math.log(x),
        UnaryOp.SQRT: math.nan if x < 0 else math.sqrt(x),
        UnaryOp.SIGMOID: 1 / (1 + math.exp(-x)) if not x < -700 else 0.0,
        UnaryOp.SOFTPLUS: x if x > 40 else math.log1p(math.exp(x)),
    }
    for op, value in wanted.items():
        type_ = INT if op in (UnaryOp.FLOOR, UnaryOp.CEIL, UnaryOp.ROUND) else FLOAT
        found = at(Unary(type_, op, Literal(FLOAT, x)), xp)
        assert found.dtype == (np.int64 if type_ is INT else np.float64)
        assert same(found, value) or np.isclose(found, value, rtol=4e-16, atol=0), op


@pytest.mark.parametrize("xp", [np, torch], ids=["numpy", "torch"])
def test_float_operators_follow_ieee(xp: Any) -> None:
    a, b = np.meshgrid(np.array(REALS), np.array(REALS))
    table = {"a": a.reshape(-1), "b": b.reshape(-1)}
    left, right = Read(FLOAT, "a", (Position(INT, Q),)), Read(FLOAT, "b", (Position(INT, Q),))
    with np.errstate(all="ignore"):
        wanted = {
            BinaryOp.ADD: a + b,
            BinaryOp.SUB: a - b,
            BinaryOp.MUL: a * b,
            BinaryOp.DIV: a / b,
            BinaryOp.LT: a < b,
            BinaryOp.EQ: a == b,
            BinaryOp.NE: a != b,
            BinaryOp.MIN: np.where(np.isnan(a + b) & (np.isnan(a) | np.isnan(b)), np.nan, np.minimum(a, b)),
        }
    for op, values in wanted.items():
        found = at(binary(op, left, right), xp, table, q=np.arange(a.size))
        np.testing.assert_array_equal(found, values.reshape(-1))


@pytest.mark.parametrize("xp", [np, torch], ids=["numpy", "torch"])
def test_division_of_floats_by_zero_is_infinite_and_floored_division_gives_zero(xp: Any) -> None:
    one, zero = Literal(FLOAT, 1.0), Literal(FLOAT, 0.0)
    assert at(binary("/", one, zero), xp) == math.inf
    assert at(binary("//", one, zero), xp) == 0
    assert at(binary("%", Literal(FLOAT, -7.5), Literal(FLOAT, 2.0)), xp) == 0.5


@pytest.mark.parametrize("xp", [np, torch], ids=["numpy", "torch"])
def test_reads_out_of_range_give_zero_and_never_wrap(xp: Any) -> None:
    table = {"t": np.arange(10, 16).reshape(2, 3), "on": np.array([True])}
    indices = [(0, 0), (1, 2), (-1, 0), (0, -1), (2, 0), (0, 3), (-(2**63), 0), (0, 2**63 - 1)]
    found = [at(Read(INT, "t", (whole(i), whole(j))), xp, table).item() for i, j in indices]
    assert found == [10, 15, 0, 0, 0, 0, 0, 0]
    assert [at(Read(BOOL, "on", (whole(i),)), xp, table).item() for i in (0, 1, -1)] == [True, False, False]
    assert at(Read(FLOAT, "none", (whole(0),)), xp, {"none": np.zeros(0, np.float32)}) == 0.0


@pytest.mark.parametrize("xp", [np, torch], ids=["numpy", "torch"])
def test_tables_of_every_dtype_are_read_as_64_bits(xp: Any) -> None:
    for dtype in (np.int8, np.uint8, np.int16, np.int32, np.int64):
        found = at(binary("*", Read(INT, "t", (whole(0),)), whole(1 << 40)), xp, {"t": np.array([100], dtype)})
        assert found == 100 << 40
    for dtype in (np.float16, np.float32, np.float64):
        found = at(Read(FLOAT, "t", (whole(0),)), xp, {"t": np.array([0.1], dtype)})
        assert found.dtype == np.float64
        assert found == np.float64(dtype(0.1))


@pytest.mark.parametrize("xp", [np, torch], ids=["numpy", "torch"])
def test_the_branch_not_taken_never_counts(xp: Any) -> None:
    """1 / 0, log(-1) and a read out of range stand in branches that are not taken."""
    d = Cast(FLOAT, Position(INT, Q))
    bad = binary("/", Unary(FLOAT, UnaryOp.LOG, binary("-", Literal(FLOAT, -1.0), d)), Literal(FLOAT, 0.0))
    chosen = Select(FLOAT, binary(">=", Position(INT, Q), whole(0)), d, bad)
    np.testing.assert_array_equal(at(chosen, xp, q=np.arange(5)), np.arange(5.0))


@pytest.mark.parametrize("xp", [np, torch], ids=["numpy", "torch"])
def test_places_heads_and_totals(xp: Any) -> None:
    sizes = Sizes(24, 24, batch=3, heads=6, kv_heads=2, q_offset=None, axes=(("z", 2), ("y", 3), ("x", 4)))
    inputs = {"q_offset": np.array([5, 7, 9])}
    grid = at(binary("+", Coordinate(INT, Q, "z"), whole(0)), xp, inputs, sizes=sizes, q=np.arange(24))
    np.testing.assert_array_equal(grid, np.arange(24) // 12)
    for axis, wanted in (("y", np.arange(24) // 4 % 3), ("x", np.arange(24) % 4)):
        found = at(Coordinate(INT, K, axis), xp, inputs, sizes=sizes, k=np.arange(24))
        np.testing.assert_array_equal(found, wanted)
    heads = at(Index(INT, Count.KV_HEAD), xp, inputs, sizes=sizes, head=np.arange(6))
    assert heads.tolist() == [0, 0, 0, 1, 1, 1]
    assert at(Offset(INT, Q), xp, inputs, sizes=sizes, batch=np.arange(3)).tolist() == [5, 7, 9]
    assert at(Offset(INT, K), xp, inputs, sizes=sizes) == 0
    assert at(Total(INT, Count.HEAD), xp, inputs, sizes=sizes) == 6


def test_numpy_and_torch_agree_on_random_predicates() -> None:
    for seed in range(60):
        draw = Draw(seed)
        predicate, sizes = draw.spec().predicate, draw.sizes
        q, k = np.arange(sizes.q_len)[:, None] + 3, np.arange(sizes.k_len)[None, :] + 2
        pairs = [np.asarray(x, np.int64) for x in (sizes.batch - 1, sizes.heads - 1)] + [q, k]
        tensors = {name: torch.from_numpy(value) for name, value in draw.inputs.items()}
        ours = evaluate(predicate, Pairs(np, sizes, draw.inputs, *pairs))
        theirs = evaluate(predicate, Pairs(torch, sizes, tensors, *map(torch.from_numpy, pairs)))
        np.testing.assert_array_equal(ours, theirs.numpy(), err_msg=str(predicate))


def test_constants_keep_the_meaning() -> None:
    for seed in range(60):
        draw = Draw(seed)
        predicate, sizes = draw.spec().predicate, draw.sizes
        pairs = Pairs(
            np,
            sizes,
            draw.inputs,
            np.asarray(0),
            np.asarray(0),
            np.arange(sizes.q_len)[:, None],
            np.arange(sizes.k_len)[None, :],
        )
        shape = (sizes.q_len, sizes.k_len)
        before = np.broadcast_to(evaluate(predicate, pairs), shape)
        np.testing.assert_array_equal(before, np.broadcast_to(evaluate(constants(predicate, sizes), pairs), shape))


def test_constants_write_sizes_and_parameters_in() -> None:
    sizes = Sizes(4, 6, parameters=(("w", 3),))
    d = binary("-", Position(INT, Q), Position(INT, K))
    expr = binary("<", d, binary("*", Parameter(INT, "w"), whole(2)))
    assert constants(expr, sizes) == binary("<", d, whole(6))
    assert constants(binary("and", expr, FALSE), sizes) == FALSE
    assert constants(binary("or", FALSE, TRUE), sizes) == TRUE
    assert constants(Index(INT, Count.HEAD), sizes) == whole(0)


def test_a_shared_part_is_evaluated_once() -> None:
    """An expression of 2**60 nodes when written out has only 61."""
    expr: Expr = Position(INT, Q)
    for _ in range(60):
        expr = Binary(INT, BinaryOp.ADD, expr, expr)
    assert at(expr, np, q=1) == 2**60
    assert at(constants(expr, Sizes(1, 1)), np, q=1) == 2**60


def test_dependence_on_batch_rows_and_heads() -> None:
    sizes = Sizes(4, 4, batch=2, heads=2)
    assert depends(binary("<", Position(INT, Q), Position(INT, K)), sizes) == (False, False)
    assert depends(Index(INT, Count.KV_HEAD), sizes) == (False, True)
    moved = Sizes(4, 4, batch=2, k_offset=None)
    assert depends(Position(INT, K), moved) == (True, False)
    assert depends(Position(INT, Q), moved) == (False, False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_are_read_in_the_dtype_that_the_caller_chose(dtype: torch.dtype) -> None:
    score = torch.tensor([0.1, 2.0], dtype=dtype)
    zero = torch.zeros((), dtype=torch.int64)
    expr = Binary(FLOAT, BinaryOp.ADD, Binary(FLOAT, BinaryOp.MUL, SCORE, Literal(FLOAT, 2.0)), Cast(FLOAT, whole(1)))
    found = evaluate(expr, Pairs(torch, Sizes(1, 1), {}, zero, zero, zero, zero, score, float_dtype=dtype))
    assert found.dtype == dtype
    torch.testing.assert_close(found, 2 * score + 1)


def test_gradients_reach_the_score() -> None:
    score = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros((), dtype=torch.int64)
    expr = Unary(FLOAT, UnaryOp.TANH, SCORE)
    evaluate(expr, Pairs(torch, Sizes(1, 1), {}, zero, zero, zero, zero, score)).sum().backward()
    torch.testing.assert_close(score.grad, 1 - torch.tanh(score.detach()) ** 2)


def test_nothing_looks_at_the_data() -> None:
    """Reading a value of a meta tensor raises."""
    for seed in range(30):
        draw = Draw(seed)
        inputs = {name: torch.from_numpy(value).to("meta") for name, value in draw.inputs.items()}
        q = torch.arange(draw.sizes.q_len, device="meta")[:, None]
        k = torch.arange(draw.sizes.k_len, device="meta")[None, :]
        row = torch.zeros((), dtype=torch.int64, device="meta")
        value = evaluate(draw.spec().predicate, Pairs(torch, draw.sizes, inputs, row, row, q, k))
        assert value.device.type == "meta"


def test_every_type_has_one_dtype() -> None:
    for type_, value, dtype in ((BOOL, True, np.bool_), (INT, 3, np.int64), (FLOAT, 3.0, np.float64)):
        assert at(Literal(type_, value), np).dtype == dtype
    assert at(Cast(INT, TRUE), np).dtype == np.int64
    assert {Type.BOOL, Type.INT, Type.FLOAT} == set(Type)
