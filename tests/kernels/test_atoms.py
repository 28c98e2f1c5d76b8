"""Conditions as bounds on the rows of a walk: solved by hand against the definition, and in kernels against dense."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from kernels import plans
from kernels.cases import Case, judged
from kernels.engines import TILE, Engine

from maskc.analysis.bounds import fits_32_bits
from maskc.check import load
from maskc.codegen.atoms import Negated, Plus, RowBound, Times, row_bounds
from maskc.codegen.form import Form
from maskc.codegen.settle import common_digit, settle, settled
from maskc.codegen.source import emit
from maskc.evaluate import Pairs, evaluate
from maskc.expr import Binary, BinaryOp, Expr, Side, conjuncts
from maskc.runtime import interpreter
from maskc.runtime.inputs import Call
from maskc.spec import MaskSpec, Sizes

GRID = "axes z, y, x\n    "
SOLVED = (
    "q - k < w",
    "0 <= q - k < w * d",
    "k - 3 == q",
    "w - k <= q",
    "-k - 2 > d - q",
    "k // d == q // d",
    "(k + 5) // d <= q - w",
    "q < (k - 40) // d",
    "(k + 2) // d != q",  # no bound, but must not become a wrong one
    "k // (w + 1) // d == q // (w + 1) // d",
    "k >= w and q <= 30",
    "k_len - k <= q + w",
    GRID + "keep q.z - w <= k.z <= q.z + 1",
    GRID + "keep (q.z + w) // d == (k.z + w) // d",
    GRID + "keep k.z // d < q.x",
)


def _spec(text: str) -> MaskSpec:
    *axes, condition = text.split("keep ")
    body = f"{axes[0] if axes else ''}claim w >= 1 and d >= 1\n    keep {condition}"
    return load(f"mask case(w: int, d: int):\n    {body}\n")


def _pairs(spec: MaskSpec, offsets: tuple[int, int], given: dict[str, int]) -> Pairs:
    axes = (("z", 5), ("y", 4), ("x", 6)) if spec.axes else ()
    sizes = Sizes(60, 50, q_offset=offsets[0], k_offset=offsets[1], axes=axes, parameters=tuple(given.items()))
    q = np.arange(60, dtype=np.int64)[:, None] + offsets[0]
    k = np.arange(50, dtype=np.int64)[None, :] + offsets[1]
    zero = np.zeros((1, 1), np.int64)
    return Pairs(np, sizes, {}, zero, zero, q, k)


def _bound_holds(bound: RowBound, pairs: Pairs, rows: np.ndarray) -> np.ndarray:
    """What a kernel does with a bound: the steps in 64 bits, held to the rows, then one comparison."""

    def number(expr: Expr) -> np.ndarray:
        return np.asarray(evaluate(expr, pairs))

    value = number(bound.start)
    for step in bound.steps:
        match step:
            case Plus():
                value = value + step.sign * number(step.scalar)
            case Negated():
                value = -value
            case Times():
                low, high = (np.fix(number(end) / number(step.factor)) for end in (step.low, step.high))
                value = np.clip(value, low.astype(np.int64) - 2, high.astype(np.int64) + 2) * number(step.factor)
    compare = {
        BinaryOp.LT: np.less,
        BinaryOp.LE: np.less_equal,
        BinaryOp.GT: np.greater,
        BinaryOp.GE: np.greater_equal,
        BinaryOp.EQ: np.equal,
        BinaryOp.NE: np.not_equal,
    }
    return np.asarray(compare[bound.op](rows, value))


@pytest.mark.parametrize("walked", list(Side))
@pytest.mark.parametrize("text", SOLVED)
def test_bounds_hold_where_the_condition_does(text: str, walked: Side) -> None:
    spec = _spec(text)
    solved = 0
    for clause in conjuncts(settle(spec.predicate, spec)):
        bounds = row_bounds(clause, spec, walked)
        solved += len(bounds)
        for offsets in ((0, 0), (7, 31), (55, 3)):
            for w, d in ((1, 1), (4, 3), (9, 100), (2**40, 2**33), (3, 2**62)):
                if spec.axes and max(offsets) > 31:
                    continue
                pairs = _pairs(spec, offsets, {"w": w, "d": d})
                rows = np.arange(50)[None, :] if walked is Side.K else np.arange(60)[:, None]
                expected = np.broadcast_to(np.asarray(evaluate(clause, pairs)), (60, 50))
                if bounds and d < 2**62:
                    held = [np.broadcast_to(_bound_holds(bound, pairs, rows), (60, 50)) for bound in bounds]
                    assert np.array_equal(np.logical_and.reduce(held), expected)
    assert solved or "!=" in text or (walked is Side.Q and ".z" in text) or "(w + 1)" in text


def test_equal_quotients_are_two_bounds() -> None:
    spec = _spec("k // d == q // d")
    (clause,) = conjuncts(settle(spec.predicate, spec))
    assert {bound.op for bound in row_bounds(clause, spec, Side.K)} == {BinaryOp.GE, BinaryOp.LT}
    assert {bound.op for bound in row_bounds(clause, spec, Side.Q)} == {BinaryOp.GE, BinaryOp.LT}


@pytest.mark.parametrize(
    "text", ["k // (w - d) == q", "k * k < q", "k + q * k < 5", "t[k] < q", "k.y == q.y", "k % d == q", "k // q == 3"]
)
def test_what_has_no_bound_stays(text: str) -> None:
    body = "input t: int[seq]\n    axes x, y\n    claim w >= 1 and d >= 1\n    keep "
    spec = load(f"mask case(w: int, d: int):\n    {body}{text}\n")
    (clause,) = conjuncts(settle(spec.predicate, spec))
    assert not row_bounds(clause, spec, Side.K)


def test_common_digits_are_small_and_their_places_have_to_fit() -> None:
    spec = load("mask case(d: int):\n    claim d >= 1\n    keep (q - k) % d == 0 and k <= q\n")
    digits = [common_digit(c, spec) for c in conjuncts(settle(spec.predicate, spec))]
    assert sum(digit is not None for digit in digits) == 1
    for divisor, fits in ((1000, True), (2**23 - 1, True), (2**24, False)):
        assert fits_32_bits(settled(spec), Sizes(2**25, 2**25, parameters=(("d", divisor),))) is fits
    unknown = load("mask case(d: int):\n    keep (q - k) % d == 0\n")
    (clause,) = conjuncts(settle(unknown.predicate, unknown))
    assert isinstance(clause, Binary)
    assert common_digit(clause, unknown) is None


def _loop(text: str, kernel: str = "forward_kernel", form: Form | None = None) -> str:
    """The loop over partial tiles of a kernel."""
    written = emit(load(text), form).text.split(f"def {kernel}")[1].split("@triton.jit")[0]
    return written.split("# Partial tiles")[1].split("for step in range(tiles):")[1].split("\n\n")[0]


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("kernel", ["forward_kernel", "backward_queries_kernel", "backward_keys_kernel"])
def test_a_window_costs_two_comparisons(kernel: str, indexed: bool) -> None:
    loop = _loop("mask window(w: int):\n    keep 0 <= q - k < w\n", kernel, Form(indexed=indexed))
    kept = [line.strip() for line in loop.split("\n") if line.strip().startswith("keep ")]
    assert len(kept) == 2
    assert "exists" not in "".join(kept)
    assert not any(name in loop for name in ("position_q", "position_k", "q_offset", "k_offset"))


def test_rows_that_do_not_exist_are_left_out_without_a_bound() -> None:
    assert "keep &= k_exists[None, :]" in _loop("mask after(w: int):\n    keep q - k < w\n")
    indexed = _loop("mask causal:\n    keep k <= q\n", form=Form(indexed=True))
    assert "keep &= k_rows_once[None, :] >= 0" in indexed


def test_a_division_per_row_is_computed_once() -> None:
    loop = _loop("mask case(w: int):\n    keep k % 7 * w < q % 5 or k // 3 + k % 11 == q\n")
    assert loop.count("_once(") == 2


def test_four_conditions_are_not_joined_at_once() -> None:
    loop = _loop(
        "mask case:\n    input t: int[4, seq]\n    keep " + " and ".join(f"t[{i}, q] == t[{i}, k]" for i in range(4))
    )
    assert "tl.where(kept_qk" in loop
    assert loop.count("keep &=") + loop.count("kept_qk &=") < 4


DILATED = "mask case(w: int, d: int):\n    claim d >= 1\n    keep 0 <= q - k < w * d\n    keep (q - k) % d == 0"
STRIDED = "mask case(d: int):\n    claim d >= 1\n    keep q >= k and (q - k <= d or (q - k) % d == 0)"
BOXES = (
    "mask case(w: int, s: int):\n    claim w >= 1\n    axes y, x\n"
    "    keep (q.y + w - s) // w == (k.y + w - s) // w\n    keep (q.x + w - s) // w == (k.x + w - s) // w"
)
PER_ROW = {"q_offset": torch.tensor([3, 61, 0]), "k_offset": torch.tensor([0, 30, 50])}
NEIGHBOURS = "examples/neighborhood_2d.mask"
CASES = (
    Case("dilated by one", DILATED, given={"w": 9, "d": 1}),
    Case("dilated", DILATED, lengths=(50, 81), given={"w": 5, "d": 7}, offsets={"q_offset": 31, "k_offset": 4}),
    Case("dilated past the end", DILATED, given={"w": 3, "d": 300}),
    Case("dilated by more than 24 bits", DILATED, given={"w": 1, "d": 2**24 + 1}, lengths=(40, 40)),
    Case("dilated by more than 32 bits", DILATED, given={"w": 3, "d": 2**31}, lengths=(40, 40)),
    Case("dilated, far away", DILATED, given={"w": 3, "d": 2}, offsets={"q_offset": 2**33, "k_offset": 2**33 - 9}),
    Case("dilated per row", DILATED, batch=3, lengths=(40, 40), given={"w": 8, "d": 3}, offsets=PER_ROW),
    Case("dilated backwards", "mask case(d: int):\n    keep (q - k) % d == 0 and q * d <= k * d", given={"d": -3}),
    Case("strided", STRIDED, lengths=(66, 70), given={"d": 8}, offsets={"q_offset": 5}),
    Case("strided per row", STRIDED, batch=3, lengths=(40, 40), given={"d": 6}, offsets=PER_ROW),
    Case("blocks, far apart", "keep q // 9 == k // 9", batch=3, lengths=(40, 40), offsets=PER_ROW),
    Case("blocks of all", "mask case(w: int):\n    claim w >= 1\n    keep q // w == k // w", given={"w": 2**62}),
    Case("before all", "mask case(w: int):\n    keep k - q > w", given={"w": -(2**40)}),
    Case("behind all", "mask case(w: int):\n    keep k - q > w", given={"w": 2**40}),
    Case("only rows", "keep 3 <= k < 40 and q < 50"),
    Case("only a row", "keep k == 17 or k == q"),
    Case("mirrored", "keep q + k < 60 and 8 - k <= q"),
    Case("quotient of a difference", "keep (k - 20) // 7 < q // 5 and (9 - k) // 4 <= 2"),
    Case("grid one wide", BOXES, given={"y": 70, "x": 1, "w": 6, "s": 3}),
    Case("grid one high", BOXES, given={"y": 1, "x": 70, "w": 6, "s": 0}),
    Case("grid with a large shift", BOXES, given={"y": 7, "x": 10, "w": 3, "s": 50}),
    Case("grid per row", BOXES, batch=3, lengths=(20, 20), given={"y": 10, "x": 9, "w": 4, "s": 1}, offsets=PER_ROW),
    Case("neighbours", NEIGHBOURS, given={"y": 5, "x": 14, "window": 5, "dilation": 2}),
    Case("neighbours, one column", NEIGHBOURS, given={"y": 70, "x": 1, "window": 3, "dilation": 4}),
    Case(
        "boxes of columns, in a band",
        f"{BOXES} and q % 5 >= k % 3 and abs(q.y - k.y) <= 4",
        given={"y": 7, "x": 10, "w": 4, "s": 9},
    ),
    Case("column and past", "axes y, x\nkeep q.x == k.x and k <= q and q.y - k.y < 4", given={"y": 10, "x": 7}),
    Case(
        "four tables", "input t: int[4, seq]\nkeep " + " and ".join(f"t[{i}, q] % 3 >= t[{i}, k] % 3" for i in range(4))
    ),
    Case("six conditions", "keep " + " and ".join(f"q % {i} <= k % {i} + 2" for i in range(3, 9)) + " and k <= q"),
)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels_agree_with_dense(case: Case) -> None:
    report = judged(case.call(), interpreter)
    assert report.passed, f"\n{report}"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_indexed_kernels_agree_with_dense(case: Case) -> None:
    def plan(call: Call) -> plans.BlockPlan:
        inputs = {name: x.numpy() for name, x in call.inputs.items()}
        return plans.plan(call.spec, call.sizes, TILE, inputs, plans.packed())

    report = judged(case.call(), Engine(plan, splits=1))
    assert report.passed, f"\n{report}"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_random_bounds_agree_with_dense(seed: int) -> None:
    draw = random.Random(seed)
    sides = ["k", "k - 5", "3 - k", "(k + 4) // d", "k.y", "(k.y - 2) // w", "k.x", "k % d", "k // w // d"]
    owned = ["q", "q - w", "q % d", "q // d", "q.y", "2", "q.x + 1", "w"]
    clauses = [
        f"{draw.choice(owned)} {draw.choice(('<', '<=', '>', '>=', '==', '!='))} {draw.choice(sides)}" for _ in range(5)
    ]
    body = f"{clauses[0]} or {clauses[1]}\n    keep {clauses[2]} or {clauses[3]} and {clauses[4]}"
    text = f"mask case(w: int, d: int):\n    claim w >= 1 and d >= 1\n    axes y, x\n    keep {body}"
    given = {"y": 9, "x": 8, "w": draw.choice((1, 3, 40)), "d": draw.choice((1, 2, 2**35))}
    case = Case("random", text, lengths=(50, 60), given=given, offsets={"q_offset": draw.choice((0, 20))})
    for one in (case, replace(case, heads=(2, 1))):
        report = judged(one.call(), interpreter)
        assert report.passed, f"\n{one.text}\n{report}"
