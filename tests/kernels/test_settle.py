"""Settled expressions against the numbers reading of what they were made from."""

import numpy as np
import pytest

from maskc.check import load
from maskc.codegen.settle import Depends, depends, grouped, scaled, settle
from maskc.evaluate import Pairs, evaluate
from maskc.expr import Binary, BinaryOp, Expr, conjuncts, walk
from maskc.spec import MaskSpec, Sizes

PREDICATES = (
    "0 <= q - k < 9",
    "q - k < 2 * q - 30",
    "k - q > -4",
    "abs(q - k) <= 5",
    "abs(k - q - 3) < 4",
    "abs(q + k - 40) < 7",
    "(q - k) % 4 == 0",
    "(k - q) % 3 != 0",
    "(q + k) % 5 == 0",
    "(q - 2 * k) % 6 == 0",
    "(q - k - 7) % w == 0",
    "-q < -k",
    "q + 3 == k - 2 + w",
    "q // 3 - k // 3 == 0",
    "q // w == k // w",
    "min(q, k) + 3 > max(q, k)",
    "(k <= q) == True",
    "True and k <= q",
    "not (False or k <= q)",
    "(k <= q) if 2 < 1 else (k > q)",
    "q - q < k - q",
    "q % 5 - k % 5 < q - k",
)
SCORES = (
    "-0.5 * abs(q - k)",
    "score * 2.0 / (3.0 * s) * (q - k) / s",
    "s * tanh(score / s)",
    "score / (s * (k + 1)) / 2.0",
    "2.0 * (s * (q - k)) - (min(q - k, 5) * 0.25)",
    "(score if k <= q else 0.0) * s * 3.0",
)


def _spec(body: str) -> MaskSpec:
    return load(f"mask case(w: int = 4, s: float = 1.5):\n    claim w >= 1\n    {body}\n")


def _value(expr: Expr, window: int) -> np.ndarray:
    q, k = np.arange(60, dtype=np.int64)[:, None], np.arange(60, dtype=np.int64)[None, :]
    sizes = Sizes(60, 60, parameters=(("w", window), ("s", 1.5)))
    score = np.random.default_rng(0).normal(size=(60, 60))
    zero = np.zeros((1, 1), np.int64)
    value = evaluate(expr, Pairs(np, sizes, {}, zero, zero, q, k, score=score))
    return np.broadcast_to(value, (60, 60))


@pytest.mark.parametrize("text", PREDICATES)
def test_settled_predicates_keep_the_same_pairs(text: str) -> None:
    spec = _spec(f"keep {text}")
    for window in (1, 4, 7):
        expected = _value(spec.predicate, window)
        assert np.array_equal(_value(settle(spec.predicate, spec), window), expected)


@pytest.mark.parametrize("text", SCORES)
def test_settled_scores_have_the_same_value(text: str) -> None:
    spec = _spec(f"score = {text}")
    settled = settle(spec.score, spec)
    expected = _value(spec.score, 4)
    assert np.allclose(_value(settled, 4), expected, rtol=1e-13, atol=1e-13)
    assert np.allclose(_value(grouped(scaled(settled, 1.5)), 4), 1.5 * expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("text", ["0 <= q - k < 9", "abs(q - k) <= w", "(q - k) % w == 0", "k - q > -4"])
def test_differences_are_compared_side_by_side(text: str) -> None:
    """What is left per pair is one comparison of a query's value with a key's."""
    spec = _spec(f"keep {text}")
    for clause in conjuncts(settle(spec.predicate, spec)):
        per_pair = [node for node in walk(clause) if depends(node) is Depends.PAIR]
        assert len(per_pair) == 1


def test_division_is_that_of_c_only_where_proven() -> None:
    spec = _spec("keep q // w == (q - 9) // w and q // (w - 2) == k % 3")
    operations = [n.op for n in walk(settle(spec.predicate, spec)) if isinstance(n, Binary)]
    assert operations.count(BinaryOp.TRUNCDIV) == 1  # q // w: w >= 1 is claimed
    assert operations.count(BinaryOp.TRUNCMOD) == 1  # k % 3
    assert operations.count(BinaryOp.FLOORDIV) == 2  # a negative dividend; a divisor that may be 0
