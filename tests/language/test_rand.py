"""`rand`: its published values, and that what evaluates it agrees with them bit for bit."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from maskc.check import load
from maskc.evaluate import Pairs, evaluate
from maskc.rand import mix, rand
from maskc.sizes import resolve

# In units of 2 ** -24. A new value for one of these would change every mask that was ever drawn.
PUBLISHED = {
    (0,): 130277,
    (1,): 10811273,
    (-1,): 4366293,
    (0, 0): 10490235,
    (1, 2, 3): 4242728,
    (3, 2, 1): 5190989,
    (2**40, 7): 563058,
    (-(2**63),): 8551657,
    (2**63 - 1, 2**32): 7651692,
    (12, 3, 4096, 8191): 16390314,
}
INTS = st.integers(-(2**63), 2**63 - 1)


@pytest.mark.parametrize("arguments", PUBLISHED)
def test_published_values(arguments: tuple[int, ...]) -> None:
    assert rand(arguments) == PUBLISHED[arguments] / 2**24


@given(st.lists(INTS, min_size=1, max_size=5))
@example([2**32, 1])
@example([-1, 2**63 - 1, -(2**63)])
def test_evaluation_gives_the_same_bits(arguments: list[int]) -> None:
    parameters = ", ".join(f"a{i}: int" for i in range(len(arguments)))
    names = [f"a{i}" for i in range(len(arguments))]
    spec = load(f"mask m({parameters}):\n    score += rand({', '.join(names)})\n")
    sizes = resolve(spec, q_len=1, k_len=1, given=dict(zip(names, arguments, strict=True)))
    zero = np.zeros((1, 1), np.int64)
    pairs = Pairs(np, sizes, {}, zero, zero, zero, zero, score=np.zeros((1, 1)))
    assert np.asarray(evaluate(spec.score, pairs)).item() == rand(arguments)


def test_positions_give_the_same_bits() -> None:
    spec = load("mask m:\n    score += rand(7, head, q, k)\n")
    sizes = resolve(spec, q_len=9, k_len=11, heads=2, kv_heads=2, q_offset=5, given={})
    head, q, k = np.ogrid[:2, 5:14, :11]
    found = evaluate(spec.score, Pairs(np, sizes, {}, np.zeros((), np.int64), head, q, k, score=np.zeros((2, 9, 11))))
    expected = [[[rand((7, h, i, j)) for j in range(11)] for i in range(5, 14)] for h in range(2)]
    np.testing.assert_array_equal(found, expected)


def test_values_are_spread_evenly() -> None:
    drawn = np.array([rand((3, q, k)) for q in range(64) for k in range(256)])
    assert drawn.min() >= 0
    assert drawn.max() < 1
    counts = np.bincount((drawn * 16).astype(int), minlength=16)
    assert abs(counts - 1024).max() < 5 * 31  # five standard deviations
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.04


def test_mixing_loses_nothing() -> None:
    words = range(0, 2**32, 2**16 + 1)
    assert len({mix(word) for word in words}) == len(words)
    assert all(0 <= mix(word) < 2**32 for word in words)
