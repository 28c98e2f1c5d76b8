"""derivative() against torch's autograd over the numbers reading, and how it simplifies."""

import numpy as np
import pytest
import torch

from maskc.analysis.derivative import ONE, ZERO, derivative, is_additive
from maskc.check import load
from maskc.evaluate import Pairs, evaluate
from maskc.expr import SCORE, Literal, Type
from maskc.spec import Sizes


def score_of(text):
    return load(f"mask m(p: float = 1.5):\n    score = {text}\n").score


def value(expr, at):
    zero = np.zeros((), np.int64)
    pairs = Pairs(np, Sizes(4, 4, parameters=(("p", 1.5),)), {}, zero, zero, zero + 3, zero + 1, score=np.array(at))
    return float(evaluate(expr, pairs))


SMOOTH = [
    "score",
    "score * 3.0 - 2.0 * score",
    "score * score * score",
    "-score / 4.0 + p",
    "p / score",
    "score / (score * score + 1.0)",
    "score ** 3.0",
    "score ** p",
    "p ** score",
    "score ** score",
    "exp(score) + exp(-score / 2.0)",
    "log(score)",
    "tanh(score / p) * p",
    "erf(score)",
    "sigmoid(score * 2.0)",
    "softplus(score)",
    "sqrt(score)",
    "abs(score - 3.0)",
    "relu(score - 0.1) + relu(0.1 - score)",
    "max(score, 0.3) * min(score, 2.0)",
    "where(score > 0.5, score * score, 2.0 * score)",
    "score if q > k else exp(score)",
    "score * (q - k) + k",
    "tanh(exp(sqrt(score)) / 3.0)",
    "clamp(score, 0.2, 1.9)",
]


@pytest.mark.parametrize("text", SMOOTH)
@pytest.mark.parametrize("at", [0.15, 0.7, 1.3])
def test_slope_is_that_of_a_finite_difference(text, at):
    score, step = score_of(text), 1e-6
    expected = (value(score, at + step) - value(score, at - step)) / (2 * step)
    assert value(derivative(score), at) == pytest.approx(expected, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize(
    ("text", "at", "slope"),
    [
        ("abs(score)", 0.0, 0.0),
        ("relu(score)", 0.0, 0.0),
        ("max(score, 0.0)", 0.0, 0.0),
        ("max(0.0, score)", 0.0, 1.0),
        ("min(score, 0.0)", 0.0, 0.0),
        ("min(0.0, score)", 0.0, 1.0),
        ("clamp(score, 0.0, 1.0)", 1.0, 0.0),
        ("sqrt(relu(score))", -1.0, 0.0),
        ("log(max(score, 0.0))", -1.0, 0.0),
        ("score ** 0.0", 0.0, 0.0),
        ("score ** 2.0", 0.0, 0.0),
        ("score ** 1.0", 0.0, 1.0),
        ("(score * 0.0 + p) ** score", 1.0, 1.5 * np.log(1.5)),
    ],
)
def test_kinks(text, at, slope):
    with np.errstate(all="ignore"):
        assert value(derivative(score_of(text)), at) == pytest.approx(slope)


@pytest.mark.parametrize(
    ("text", "simplified"),
    [
        ("score", "1.0"),
        ("score + k", "1.0"),
        ("score * 0.0 + k", "0.0"),
        ("k * 1.0", "0.0"),
        ("score - k", "1.0"),
        ("-score", "-1.0"),
        ("20.0 * tanh(score / 20.0)", "1.0 - (tanh(score / 20.0) * tanh(score / 20.0))"),
        ("score ** 2.0", "2.0 * score"),
        ("score if q > k else -inf", "where(q > k, 1.0, 0.0)"),
    ],
)
def test_simplifies(text, simplified):
    assert str(derivative(score_of(text))) == simplified


def test_of_a_float_that_is_no_score():
    assert derivative(Literal(Type.FLOAT, 2.0)) == ZERO
    assert derivative(SCORE) == ONE


@pytest.mark.parametrize(
    ("text", "bias"),
    [
        ("score", "0.0"),
        ("score + 2.0", "2.0"),
        ("2.0 + score", "2.0"),
        ("score - k * 0.5", "-(float(k) * 0.5)"),
        ("(score + p) - 1.0", "p - 1.0"),
        ("where(q > k, score + 1.0, score)", "where(q > k, 1.0, 0.0)"),
        ("score * 1.0", None),
        ("score + score", None),
        ("2.0 - score", None),
        ("where(score > 0.0, score, score + 1.0)", None),
        ("tanh(score)", None),
        ("k * 0.5", None),
        ("max(score, 1.0)", None),
    ],
)
def test_additive_scores(text, bias):
    found = is_additive(score_of(text))
    assert (None if found is None else str(found)) == bias


def test_agrees_with_autograd_over_many_scores():
    text = "4.0 * tanh(score / 4.0) + where(score > 0.2, score * abs(score - 1.0), exp(score)) - relu(score) ** 2.0"
    at = torch.linspace(-3, 3, 101, dtype=torch.float64, requires_grad=True)
    zero = torch.zeros((), dtype=torch.int64)
    pairs = Pairs(torch, Sizes(1, 1), {}, zero, zero, zero, zero, score=at)
    (expected,) = torch.autograd.grad(evaluate(score_of(text), pairs).sum(), at)
    torch.testing.assert_close(evaluate(derivative(score_of(text)), pairs), expected)
