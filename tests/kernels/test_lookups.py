"""Generated kernels that search rows, count buckets, draw random numbers and write folds out, under the interpreter."""

import math

import pytest
import torch
from kernels.cases import Case, judged

from maskc.rand import rand
from maskc.runtime import interpreter


def ints(*shape: int, low: int = -1, high: int) -> torch.Tensor:
    """Entries from `low` on, below `high`; -1 is padding, and there are duplicates."""
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(5))


BY_BLOCK = "input route: int[batch, kv_head, n, top] of k // 8\nkeep k // 8 in route[batch, kv_head, q // 8]"
EDGES = torch.tensor([-1.5, 0.0, 0.0, 0.25, 2.0])

CASES = (
    # `item in row`: per query, per query block and head, one row for all, searched by columns.
    Case(
        "row per query",
        "input near: int[q, top]\nkeep k in near[q] or k == q",
        lengths=(40, 40),
        given={"near": ints(40, 6, low=-3, high=45)},
    ),
    Case("row per block", BY_BLOCK, heads=(4, 2), batch=2, given={"route": ints(2, 2, 9, 3, high=9)}),
    Case("rows out of range", BY_BLOCK, heads=(2, 1), given={"route": ints(1, 1, 4, 3, high=9)}),
    Case("empty rows", BY_BLOCK, lengths=(33, 33), heads=(2, 1), given={"route": ints(1, 1, 5, 0, high=9)}),
    Case("padding alone", BY_BLOCK, lengths=(33, 33), heads=(1, 1), given={"route": torch.full((1, 1, 5, 2), -1)}),
    Case(
        "row per head",
        "input columns: int[head, top]\nkeep k <= q and (k in columns[head] or q - k in columns[head])",
        heads=(6, 2),
        lengths=(37, 37),
        given={"columns": ints(6, 5, high=40)},
    ),
    Case("shared row", "keep k in [3, 3, 5, 8, 60] or q in [1, 2, 69]"),
    Case("item alone", "input on: int[q, top]\nkeep k <= q and 2 in on[q]", given={"on": ints(70, 2, high=4)}),
    Case(
        "row of a pair",
        "input t: int[n, top]\nkeep head in t[q - k]",
        heads=(3, 1),
        lengths=(20, 20),
        given={"t": ints(12, 2, high=3)},
    ),
    Case(
        "row per key",
        "input t: int[k, top]\nkeep q in t[k]\nscore += (0.5 if q % 4 in t[k] else 0.0)",
        lengths=(24, 40),
        given={"t": ints(40, 9, high=30)},
        offsets={"q_offset": 3, "k_offset": 0},
    ),
    Case(
        "offsets per row",
        "input near: int[batch, n, top]\nkeep k in near[batch, q]",
        batch=2,
        lengths=(20, 60),
        offsets={"q_offset": torch.tensor([7, 40])},
        given={"near": ints(2, 60, 20, high=60)},
    ),
    Case(
        "wide items",
        "mask case(w: int):\n    input near: int[q, top]\n    keep k * w in near[q] or k == q",
        lengths=(20, 20),
        given={"w": 2**33, "near": ints(20, 6, high=20) * 2**33},
    ),
    # Views of longer tables.
    Case(
        "strided rows",
        "input near: int[q, top]\nkeep k in near[q]",
        lengths=(40, 40),
        given={"near": ints(8, 40, high=40).T},
    ),
    # `bucket`.
    Case("bucket of ints", "keep k <= q\nscore += 0.3 * bucket(q - k, [0, 1, 2, 4, 8, 8, 16])"),
    Case("bucket decides", "keep bucket(abs(q - k), [3, 9, 40]) % 2 == 0"),
    Case(
        "bucket of floats",
        "input e: float[n] sorted\ninput x: float[q]\n"
        "keep bucket(x[q] - 0.1 * (k % 7), e) != 2\nscore += bucket(x[q], e)",
        given={"e": EDGES, "x": torch.linspace(-2, 3, 70)},
    ),
    Case(
        "bucket of one number",
        "mask case(s: float):\n    input e: float[n] sorted\n    keep k <= q + bucket(s, e)\n    score += bucket(s, e)",
        given={"e": EDGES, "s": 0.25},
    ),
    Case(
        "bucket of scores",
        "input e: float[n] sorted\nscore = score + 0.5 * bucket(score, e)\nkeep k <= q",
        given={"e": EDGES},
    ),
    Case(
        "bucket per head",
        "input e: int[head, n] sorted\nkeep bucket(q, e[head]) == bucket(k, e[head])",
        heads=(4, 2),
        given={"e": ints(4, 9, low=0, high=75).sort(1).values},
    ),
    Case(
        "bucket of a row",
        "input e: int[n, m] sorted\nkeep bucket(k, e[q // 8 - 1]) % 3 != 1",
        given={"e": ints(6, 7, low=0, high=75).sort(1).values},
    ),
    Case(
        "packed",
        "input start: int[docs] of seq sorted\npacked start\nkeep k <= q",
        given={"start": torch.tensor([0, 1, 1, 20, 50])},
    ),
    # `rand`.
    Case("rand keeps", "keep rand(7, head, q, k) < 0.6", heads=(3, 1)),
    Case(
        "rand per block",
        "keep rand(q // 8, k // 8, batch) < 0.5 or q == k",
        batch=2,
        lengths=(50, 33),
        offsets={"q_offset": 0},
    ),
    Case("rand in a score", "keep k <= q\nscore += 2 * rand(q, k) - rand(-3, head)"),
    Case("rand scales a score", "score = score * rand(k, q) if rand(q) < 0.5 else tanh(score)"),
    Case("rand of large numbers", "mask case(s: int):\n    keep rand(s, q * s, k) < 0.5", given={"s": 2**40 + 5}),
    # Folds.
    Case("any", "keep any(q - k == i * i for i in range(9))"),
    Case("all", "keep all((q + k) % (i + 2) != 1 for i in range(2 + 1))"),
    Case("none", "keep any(k == q + i for i in range(0)) or k <= q"),
    Case("nested", "keep any(all(q - k != 4 * i + 2 * j for j in range(2)) and k % 5 == i for i in range(4))"),
    Case("sum", "keep k <= q\nscore += sum(0.1 * (((q - k) >> i) & 1) for i in range(7))"),
    Case("sum of scores", "score = sum(score * 0.5 ** i - 0.1 * i for i in range(4))\nkeep k <= q"),
    Case(
        "any of a table",
        "input t: int[q, top]\nkeep any(t[q, i] == k and rand(q, i) < 0.9 for i in range(5))",
        given={"t": ints(70, 5, high=70)},
    ),
)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels_agree_with_dense(case: Case) -> None:
    report = judged(case.call(), interpreter)
    assert report.passed, f"\n{report}"


@pytest.mark.parametrize("seed", [0, 1, -1, 2**31, -(2**31) - 1, 2**62 + 12345, -(2**63)])
def test_rand_has_the_published_bits(seed: int) -> None:
    """A pair is kept where the number is the expected one, and every pair has to be."""
    body = "    input e: float[head, q, k]\n    keep rand(s, q, head, -k) == e[head, q, k]\n    score = 0.0"
    expected = [[[rand((seed, q, head, -k)) for k in range(20)] for q in range(20)] for head in range(2)]
    given = {"s": seed, "e": torch.tensor(expected, dtype=torch.float64)}
    _, lse = interpreter.forward(Case("bits", f"mask case(s: int):\n{body}", lengths=(20, 20), given=given).call())
    torch.testing.assert_close(lse, torch.full((1, 2, 20), math.log(20)), rtol=1e-6, atol=0)
