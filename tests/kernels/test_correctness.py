"""Generated kernels under Triton's interpreter against dense attention in float64, by the one tolerance."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from kernels.cases import Case, judged, upstream, with_views

from maskc.runtime import interpreter
from maskc.runtime.inputs import Call

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

SLOPE = torch.tensor([0.5, -0.25, 1.0, 0.0, 2.0])
WINDOW = "keep 0 <= q - k < 20"

CASES = (
    # Lengths: shorter than a tile, one token, one more than a tile, unequal, no keys at all in some tiles.
    Case("no mask", "pass"),
    Case("one token", "keep k <= q", lengths=(1, 1)),
    Case("one query", "pass", lengths=(1, 65)),
    Case("one key", "pass", lengths=(65, 1)),
    Case("whole tiles", "keep k <= q", lengths=(64, 64)),
    Case("short", "keep k <= q", lengths=(17, 17)),
    Case("more queries", WINDOW, lengths=(97, 40), offsets={"q_offset": 0}),
    Case("more keys", "keep k <= q", lengths=(40, 97), offsets={"q_offset": 57}),
    Case("empty key tiles", "keep k < 3", lengths=(40, 130)),
    # Rows without keys: first, last, in between, all.
    Case("empty first rows", "keep k < q - 5"),
    Case("empty last rows", "keep q < 30"),
    Case("empty rows between", "keep q % 3 != 1 and k <= q"),
    Case("all rows empty", "keep q < 0"),
    # Heads and dims.
    Case("six heads on two", "keep k <= q or k % 3 == head", heads=(6, 2)),
    Case("seven heads on one", WINDOW, heads=(7, 1), lengths=(33, 33)),
    Case("batch", "input row: int[batch]\nkeep k < row + 5", batch=3, heads=(2, 1), lengths=(35, 35)),
    Case("wider values", WINDOW, dims=(16, 64)),
    Case("wider keys", WINDOW, dims=(128, 32), lengths=(40, 40)),
    # Kinds of number.
    Case("half precision", "keep k <= q", dtype=torch.float16, heads=(4, 2), dims=(32, 32)),
    Case("large scores", "keep k <= q", amplitude=3.0),
    Case("negative scale", WINDOW, scale=-0.4),
    Case("scale of one", "pass", scale=1.0),
    Case("scale of zero", WINDOW, scale=0.0),
    # Arithmetic of predicates.
    Case("negative floor", "keep (k - q) // 7 % 2 == 0 and (q - 40) // 9 <= (k - 30) // 5"),
    Case("negative modulo", "keep (q - k) % 5 <= 2 and (k - 50) % 3 != 1"),
    Case("zero divisor", "keep k // (q % 3) == 0 or (k - q) % (k % 2 - 1) == 1"),
    Case("negative divisor", "mask case(d: int):\n    keep (q - 3 * k) % d == 0 or q // d == k // d", given={"d": -4}),
    Case("bits", "keep (q & k) == 0 or (q ^ k) >> 3 == 1 or ~q << 1 == -2 - 2 * k"),
    Case("distance", "keep abs(q - k) <= 9 or min(q, k) < 3"),
    Case("float64", "mask case(s: float):\n    keep floor(q * s) == floor(k * s)", given={"s": 0.1}),
    Case("rounding", "keep round((q - k) * 0.5) % 2 == 0"),
    Case("division of floats", "keep floor(q * 0.7 / 1.1) == ceil(k * 0.3) or q / 7 > 9.5"),
    Case("scalar of floats", "mask case(s: float):\n    keep s > 0.5 or k <= q", given={"s": 0.25}),
    Case("choice", "keep (k <= q) if q % 2 == 0 else (k % 4 == q % 4)"),
    Case("parameter", "mask case(on: bool):\n    keep on or k <= q", given={"on": False}),
    Case("grid", "axes y, x\nkeep abs(q.y - k.y) <= 2 and (q.x + k.x) % 2 == 0", given={"y": 7, "x": 10}),
    # Tables of the spec itself, sizes of their dims, parts and borders.
    Case("literal table", "keep k <= q\nscore += [0.5, -1.0, 2.0][(q - k) % 3]"),
    Case("literal matrix", "keep [[1, 0, 1], [0, 1, 1]][q % 2, k % 4] == 1 and k <= q"),
    Case("literal booleans", "let on = [True, False, True]\nkeep on[(q - k) % 3] or on[k - q]"),
    Case("size of a dim", "input slope: float[n]\nkeep k <= q + n\nscore += slope[q % n] - n", given={"slope": SLOPE}),
    Case("scale in a score", "keep k <= q\nscore = score / scale * 0.2 + scale", scale=0.3),
    Case(
        "parts",
        "axes cls: 1, patch: (y, x), text: t\n"
        "keep (q in patch and k in patch and abs(q.y - k.y) <= 1) or k in cls or (q in text and k <= q)",
        lengths=(40, 40),
        given={"y": 4, "x": 6, "t": 15},
    ),
    Case(
        "border",
        "axes y, x border 2\nkeep abs(q.y - k.y) <= 2 and abs(q.x - k.x) <= 2",
        lengths=(48, 48),
        given={"y": 6, "x": 8},
    ),
    Case("three axes", "axes z, y, x\nkeep q.z == k.z or (q.y == k.y and q.x <= k.x)", given={"z": 2, "y": 5, "x": 7}),
    Case(
        "offset per row",
        "keep q - 30 <= k <= q",
        batch=2,
        lengths=(20, 60),
        offsets={"q_offset": torch.tensor([7, 40])},
    ),
    # Tables.
    Case("table out of range", "input t: int[9]\nkeep t[q - 3] == t[k + 2 - q // 8]"),
    Case("table per pair", "input t: bool[head, 141]\nkeep t[head, q - k + 70]"),
    Case("nested tables", "input parent: int[seq] of seq\nkeep parent[parent[q]] == parent[k] or k == q"),
    Case("booleans", "input valid: bool[batch, seq]\nkeep valid[k] and k <= q", batch=2),
    # Scores.
    Case("added", "score += 0.05 * (k - q)\nkeep k <= q", heads=(4, 2)),
    Case("added per key", "input b: float[batch, k]\nscore += b[k]", batch=2),
    Case("added per query", "input b: float[head, q]\nscore -= 3 * b[q]\nkeep k <= q"),
    Case("added per distance", "input b: float[head, 141]\nscore += b[q - k + 70]\nkeep k <= q"),
    Case("added minus infinity", "score += (-inf if k % 3 == 1 else 0.0)\nkeep k <= q"),
    Case("rows of minus infinity", "score += (-inf if q < 9 else 0.0)"),
    Case("capped", "mask case(cap: float):\n    score = cap * tanh(score / cap)\n    keep k <= q", given={"cap": 1.5}),
    Case("capped and biased", "score = 2 * tanh(score / 2) - 0.1 * abs(q - k)", heads=(2, 1)),
    Case("score squared", "score = score * abs(score) * 0.3\nkeep k <= q"),
    Case("score chosen", "score = score if q % 2 == 0 else 0.5 * score\nkeep k <= q"),
    Case("score compared", "score = (score if score > 0 else 0.1 * score)"),
    Case("score forgotten", "score = -0.1 * abs(q - k)"),
    Case(
        "functions", "score = softplus(score) + sigmoid(score) * erf(score) - exp(-relu(score)) + sqrt(abs(score) + 1)"
    ),
    Case("power", "score = score + 0.9 ** (q - k) - (score / 3) ** 3\nkeep k <= q"),
    Case("padded pairs overflow", "score += exp(3.0 * (k - 60))\nkeep k < 62", lengths=(70, 70)),
    Case("score of padded pairs", "score = score / (70 - k)", lengths=(70, 70)),
)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_interpreted_kernels_agree_with_dense(case: Case) -> None:
    report = judged(case.call(), interpreter)
    assert report.passed, f"\n{report}"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.mask")), ids=lambda p: p.stem)
def test_examples_agree_with_dense(path: Path) -> None:
    given = {"y": 6, "x": 11} if "axes" in path.read_text() else {}
    sizes = {"window": 12, "sink": 3, "stride": 8, "prefix": 20, "dilation": 2}
    case = Case(path.stem, str(path), lengths=(66, 66), heads=(4, 2), given=given)
    names = {p.name for p in case.call().spec.parameters}
    given |= {name: value for name, value in sizes.items() if name in names}
    report = judged(replace(case, given=given).call(), interpreter)
    assert report.passed, f"\n{report}"


def test_strided_views_give_the_same_bits() -> None:
    call = Case("views", "keep k <= q", heads=(4, 2), lengths=(50, 50)).call()
    for one, other in zip(_results(call), _results(with_views(call)), strict=True):
        assert torch.equal(one, other)


def test_equal_calls_give_equal_bits() -> None:
    call = Case("twice", "keep k <= q", heads=(6, 2), lengths=(50, 50)).call()
    for one, other in zip(_results(call), _results(call), strict=True):
        assert torch.equal(one, other)


def test_memory_behind_the_tensors_is_not_read() -> None:
    """Keys, values and queries end inside a tile; what lies behind them is NaN."""
    call = Case("guards", "keep k <= q", lengths=(37, 37)).call()

    def guarded(x: torch.Tensor) -> torch.Tensor:
        batch, heads, length, dim = x.shape
        wide = torch.full((batch, heads, length + 40, dim), float("nan"))
        wide[:, :, :length] = x
        return wide[:, :, :length]

    plain = _results(call)
    strided = replace(call, q=guarded(call.q), k=guarded(call.k), v=guarded(call.v))
    for one, other in zip(plain, _results(strided), strict=True):
        assert torch.equal(one, other)


def test_expanded_upstream_gradient() -> None:
    call = Case("expanded", "keep k <= q", lengths=(40, 40)).call()
    out, lse = interpreter.forward(call)
    ones = torch.ones(()).expand(out.shape)
    expected = interpreter.backward(call, out, lse, ones.contiguous(), None)
    for one, other in zip(interpreter.backward(call, out, lse, ones, None), expected, strict=True):
        assert torch.equal(one, other)


def test_an_empty_row_changes_no_other_row() -> None:
    full = Case("rows", "mask case(hole: int):\n    keep k <= q and q != hole", lengths=(40, 40), given={"hole": -1})
    holed = replace(full, given={"hole": 7})
    (out, lse, d_q, *_), (holed_out, holed_lse, holed_d_q, *_) = _results(full.call()), _results(holed.call())
    others = torch.arange(40) != 7
    assert torch.equal(out[:, :, others], holed_out[:, :, others])
    assert torch.equal(lse[:, :, others], holed_lse[:, :, others])
    assert torch.equal(d_q[:, :, others], holed_d_q[:, :, others])
    assert torch.isneginf(holed_lse[:, :, 7]).all()
    assert (holed_out[:, :, 7] == 0).all()
    assert (holed_d_q[:, :, 7] == 0).all()


def _results(call: Call) -> tuple[torch.Tensor, ...]:
    d_out, d_lse = upstream(call)
    out, lse = interpreter.forward(call)
    return out, lse, *interpreter.backward(call, out, lse, d_out, d_lse)
