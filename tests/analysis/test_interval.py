"""Interval arithmetic operator by operator: values within bounds give values within the bounds of the result."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from random_specs import BOOL, FLOAT, INT, binary, whole

from maskc.analysis.interval import Interval, Ranges, Truth
from maskc.arrays import apply_binary, apply_unary, full
from maskc.expr import Binary, BinaryOp, Expr, Literal, Parameter, Select, Type, Unary, UnaryOp

torch.set_num_threads(1)
BOXES, VALUES = 600, 12
COMPARED = [BinaryOp.LT, BinaryOp.LE, BinaryOp.GT, BinaryOp.GE, BinaryOp.EQ, BinaryOp.NE]
WHOLE = [
    *(BinaryOp.ADD, BinaryOp.SUB, BinaryOp.MUL, BinaryOp.FLOORDIV, BinaryOp.MOD, BinaryOp.TRUNCDIV, BinaryOp.TRUNCMOD),
    *(BinaryOp.MIN, BinaryOp.MAX, BinaryOp.BITAND, BinaryOp.BITOR, BinaryOp.BITXOR, BinaryOp.SHL, BinaryOp.SHR),
]
REAL = [
    *(BinaryOp.ADD, BinaryOp.SUB, BinaryOp.MUL, BinaryOp.DIV, BinaryOp.FLOORDIV, BinaryOp.MOD, BinaryOp.POW),
    *(BinaryOp.MIN, BinaryOp.MAX),
]
ROUNDING = (UnaryOp.FLOOR, UnaryOp.CEIL, UnaryOp.ROUND)
FUNCTIONS = [op for op in UnaryOp if op not in (UnaryOp.NOT, UnaryOp.INVERT, *ROUNDING)]

Samples = tuple[Interval, NDArray[Any]]


def integers(rng: np.random.Generator) -> Samples:
    """Bounds around 0, small, large and of one value, with values in them: int64 [boxes, values]."""
    scale = 2 ** rng.integers(0, 50, (BOXES, 1))
    ends = np.sort(rng.integers(-4, 5, (BOXES, 2)) * np.where(rng.random((BOXES, 1)) < 0.6, 1, scale), axis=1)
    values = rng.integers(ends[:, :1], ends[:, 1:] + 1, (BOXES, VALUES))
    values[:, :2] = ends
    return Interval(ends[:, :1].astype(np.float64), ends[:, 1:].astype(np.float64)), values


def floats(rng: np.random.Generator) -> Samples:
    """The same for floats, with infinities, signed zeros, and NaN where the bounds say so: float64 [boxes, values]."""
    special = np.array([0.0, -0.0, 1.0, -1.0, 0.5, 3.0, -2.5, 1e-300, 1e300, -1e300, 700.0, math.inf, -math.inf])
    ends = np.where(rng.random((BOXES, 2)) < 0.6, rng.choice(special, (BOXES, 2)), rng.normal(size=(BOXES, 2)) * 5)
    ends = np.sort(ends, axis=1)
    low, high = ends[:, :1], ends[:, 1:]
    finite = np.clip(ends, -1e308, 1e308)
    inside = finite[:, :1] / 2 + rng.random((BOXES, VALUES)) * (finite[:, 1:] / 2 - finite[:, :1] / 2)
    values = np.clip(2 * inside, low, high)
    values[:, :2] = ends
    nan = rng.random((BOXES, 1)) < 0.2
    values[:, 2:3][nan] = math.nan
    return Interval(low, high, nan), values


X, Y = Parameter(INT, "x"), Parameter(INT, "y")
U, V = Parameter(FLOAT, "u"), Parameter(FLOAT, "v")


def ranges(xp: Any, wraps: bool = True, **known: Interval) -> Ranges:
    def answer(expr: Expr) -> Interval | None:
        return known[expr.name] if isinstance(expr, Parameter) else None

    return Ranges(xp, answer, lambda value, dtype: full(xp, value, dtype, None), wraps)


def on(xp: Any, interval: Interval) -> Interval:
    """The same bounds as arrays of numpy or torch."""
    if xp is np:
        return interval
    nan = interval.nan if isinstance(interval.nan, bool) else torch.from_numpy(interval.nan)
    return Interval(torch.from_numpy(interval.low), torch.from_numpy(interval.high), nan)


def hold(found: Interval, values: NDArray[Any], what: object) -> None:
    """Every value is inside, or is a NaN that was announced."""
    low, high, nan = (np.broadcast_to(np.asarray(x), values.shape) for x in (found.low, found.high, found.nan))
    missing = np.isnan(values)
    assert (nan | ~missing).all(), f"{what} gave an unannounced NaN"
    inside = (low <= values) & (values <= high)
    bad = ~(inside | missing)
    assert not bad.any(), f"{what}: {values[bad][:3]} outside [{low[bad][:3]}, {high[bad][:3]}]"


@pytest.mark.parametrize("xp", [np, torch], ids=["numpy", "torch"])
@pytest.mark.parametrize("op", WHOLE, ids=lambda op: op.name)
def test_operators_of_integers(op: BinaryOp, xp: Any) -> None:
    rng = np.random.default_rng(1)
    (a, x), (b, y) = integers(rng), integers(rng)
    with np.errstate(all="ignore"):
        values = apply_binary(np, op, x[:, :, None], y[:, None, :]).reshape(BOXES, -1).astype(np.float64)
    hold(ranges(xp, x=on(xp, a), y=on(xp, b)).interval(binary(op, X, Y)), values, op)


@pytest.mark.parametrize("divisor", [-7, -1, 0, 1, 3, 64])
@pytest.mark.parametrize("op", [BinaryOp.FLOORDIV, BinaryOp.MOD], ids=lambda op: op.name)
def test_division_by_a_constant_is_tight(op: BinaryOp, divisor: int) -> None:
    """The least and the greatest value are attained where the operand takes every value between its bounds."""
    low = np.repeat(np.arange(-30.0, 31), 12)
    high = low + np.tile(np.arange(12.0), 61)
    found = ranges(np, x=Interval(low, high)).interval(binary(op, X, whole(divisor)))
    steps = np.minimum(low[:, None] + np.arange(12), high[:, None]).astype(np.int64)
    values = apply_binary(np, op, steps, np.asarray(divisor))
    hold(found, values.T.astype(np.float64), op)
    if op is BinaryOp.FLOORDIV:
        np.testing.assert_array_equal(found.low, values.min(1))
        np.testing.assert_array_equal(found.high, values.max(1))
    single = values.min(1) == values.max(1)
    if op is BinaryOp.MOD and abs(divisor) > 1:
        one = single & (low == high)
        np.testing.assert_array_equal(found.low[one], found.high[one])


@pytest.mark.parametrize("exponent", range(5))
def test_powers_of_integers(exponent: int) -> None:
    a, x = integers(np.random.default_rng(2))
    with np.errstate(all="ignore"):
        values = (x**exponent).astype(np.float64)
    hold(ranges(np, x=a).interval(binary("**", X, whole(exponent))), values, f"** {exponent}")


@pytest.mark.parametrize("xp", [np, torch], ids=["numpy", "torch"])
@pytest.mark.parametrize("op", REAL, ids=lambda op: op.name)
def test_operators_of_floats(op: BinaryOp, xp: Any) -> None:
    rng = np.random.default_rng(3)
    (a, x), (b, y) = floats(rng), floats(rng)
    with np.errstate(all="ignore"):
        values = apply_binary(np, op, x[:, :, None], y[:, None, :]).reshape(BOXES, -1)
    hold(ranges(xp, u=on(xp, a), v=on(xp, b)).interval(binary(op, U, V)), values, op)


@pytest.mark.parametrize("xp", [np, torch], ids=["numpy", "torch"])
@pytest.mark.parametrize("op", FUNCTIONS, ids=lambda op: op.name)
def test_functions_of_floats(op: UnaryOp, xp: Any) -> None:
    """In both namespaces, for their libraries round differently."""
    a, x = floats(np.random.default_rng(4))
    found = ranges(xp, u=on(xp, a)).interval(Unary(FLOAT, op, U))
    with np.errstate(all="ignore"):
        hold(found, apply_unary(np, op, x), op)
    hold(found, apply_unary(torch, op, torch.from_numpy(x)).numpy(), op)


@pytest.mark.parametrize("op", ROUNDING, ids=lambda op: op.name)
def test_rounding(op: UnaryOp) -> None:
    a, x = floats(np.random.default_rng(5))
    values = apply_unary(np, op, x).astype(np.float64)
    hold(ranges(np, u=a).interval(Unary(INT, op, U)), values, op)


@pytest.mark.parametrize("op", [UnaryOp.NEG, UnaryOp.ABS, UnaryOp.INVERT, UnaryOp.RELU], ids=lambda op: op.name)
def test_functions_of_integers_are_tight(op: UnaryOp) -> None:
    a, x = integers(np.random.default_rng(6))
    found = ranges(np, x=a).interval(Unary(INT, op, X))
    values = apply_unary(np, op, x).astype(np.float64)
    hold(found, values, op)
    np.testing.assert_array_equal(np.maximum(-found.low, found.high)[:, 0], np.maximum(-values.min(1), values.max(1)))


@pytest.mark.parametrize("type_", [INT, FLOAT], ids=["int", "float"])
@pytest.mark.parametrize("op", COMPARED, ids=lambda op: op.name)
def test_comparisons(op: BinaryOp, type_: Type) -> None:
    rng = np.random.default_rng(7)
    draw = integers if type_ is INT else floats
    (a, x), (b, y) = draw(rng), draw(rng)
    held = apply_binary(np, op, x[:, :, None], y[:, None, :]).reshape(BOXES, -1)
    left, right = (X, Y) if type_ is INT else (U, V)
    found = ranges(np, x=a, y=b, u=a, v=b).truth(binary(op, left, right))[:, 0]
    assert not held[found == Truth.NEVER].any()
    assert held[found == Truth.ALWAYS].all()
    assert set(found.tolist()) >= ({0, 1, 2} if type_ is INT else {1})


def test_integers_that_may_wrap_are_unknown() -> None:
    large = Interval(np.float64(0), np.float64(2**52))
    found = ranges(np, x=large, y=large).interval(binary("*", X, Y))
    assert (found.low, found.high) == (-math.inf, math.inf)
    kept = ranges(np, wraps=False, x=large, y=large).interval(binary("*", X, Y))
    assert (kept.low, kept.high) == (0, 2.0**104)
    assert ranges(np).interval(whole(2**60)).high == math.inf


def test_literals_that_are_no_number() -> None:
    nan, one = Literal(FLOAT, math.nan), Literal(FLOAT, 1.0)
    for op in COMPARED:
        wanted = Truth.ALWAYS if op is BinaryOp.NE else Truth.NEVER
        assert ranges(np).truth(binary(op, nan, one)) == wanted
    either = Select(FLOAT, Parameter(BOOL, "b"), nan, one)
    held = Ranges(np, lambda e: np.uint8(1) if isinstance(e, Parameter) else None, lambda v, d: d(v)).interval(either)
    assert (held.low, held.high, bool(held.nan)) == (1.0, 1.0, True)


def test_logic_of_three_values() -> None:
    """Against all that the operands can be."""
    cases: dict[int, tuple[bool, ...]] = {0: (False,), 1: (False, True), 2: (True,)}

    def class_of(values: set[bool]) -> int:
        return 1 if len(values) == 2 else 2 * int(values.pop())

    a, b, c = (Parameter(BOOL, name) for name in "abc")
    for i in range(27):
        given = {"a": i % 3, "b": i // 3 % 3, "c": i // 9}
        every = [(x, y, z) for x in cases[given["a"]] for y in cases[given["b"]] for z in cases[given["c"]]]
        reading = Ranges(
            np,
            lambda e, given=given: np.uint8(given[e.name]) if isinstance(e, Parameter) else None,  # type: ignore[misc]
            lambda v, d: d(v),
        )
        assert reading.truth(binary("and", a, b)) == class_of({x and y for x, y, _ in every})
        assert reading.truth(binary("or", a, b)) == class_of({x or y for x, y, _ in every})
        assert reading.truth(Unary(BOOL, UnaryOp.NOT, a)) == class_of({not x for x, _, _ in every})
        assert reading.truth(Binary(BOOL, BinaryOp.EQ, a, b)) == class_of({x == y for x, y, _ in every})
        assert reading.truth(Binary(BOOL, BinaryOp.LT, a, b)) == class_of({x < y for x, y, _ in every})
        assert reading.truth(Binary(BOOL, BinaryOp.BITXOR, a, b)) == class_of({x != y for x, y, _ in every})
        assert reading.truth(Select(BOOL, c, a, b)) == class_of({x if z else y for x, y, z in every})
