"""dense against formulas written out pair by pair, its derivatives, and what it must never evaluate."""

import math
from dataclasses import replace

import engine_cases as cases
import pytest
import torch

from maskc.check import load
from maskc.runtime import dense, inputs


def attend(text, q, k, v, **given):
    out, lse, _ = dense.attention(inputs.prepare(load(text), q, k, v, given, q_offset=0))
    return out, lse


@pytest.mark.parametrize("name", [*cases.SPECS])
def test_gradients_are_those_of_the_output(name):
    given = {"y": 3, "x": 3} if name == "neighbours" else {}
    given |= {"window": 4} if name in ("window", "per head") else {}
    call = cases.call_of(name, heads=4, kv_heads=2, q_len=9, dims=(3, 2), dtype=torch.float64, given=given)
    leaves = [x.requires_grad_() for x in (call.q, call.k, call.v)]

    def outputs(q, k, v):
        out, lse, _ = dense.attention(replace(call, q=q, k=k, v=v))
        return out, torch.where(torch.isneginf(lse), 0, lse)

    assert torch.autograd.gradcheck(outputs, leaves)


def test_meaning_pair_by_pair():
    q, k, v = cases.tensors(2, 4, 2, 6, 6, (3, 2), torch.float64)
    slope = torch.tensor([0.1, 0.2, 0.3, 0.4])
    doc = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 2, 2]])
    text = (
        "mask m:\n    input slope: float[head]\n    input doc: int[batch, seq]\n    keep doc[q] == doc[k]\n"
        "    keep k <= q\n    score = 5.0 * tanh(score / 5.0) - slope * (q - k)\n"
    )
    out, lse = attend(text, q, k, v, slope=slope, doc=doc)
    for b in range(2):
        for h in range(4):
            for i in range(6):
                keys = [j for j in range(i + 1) if doc[b, i] == doc[b, j]]
                dots = [float(q[b, h, i] @ k[b, h // 2, j]) / math.sqrt(3) for j in keys]
                scores = [5 * math.tanh(s / 5) - float(slope[h]) * (i - j) for s, j in zip(dots, keys, strict=True)]
                total = sum(math.exp(s) for s in scores)
                expected = sum(math.exp(s) / total * v[b, h // 2, j] for s, j in zip(scores, keys, strict=True))
                torch.testing.assert_close(out[b, h, i], expected)
                assert lse[b, h, i].item() == pytest.approx(math.log(total))


def test_a_dropped_pair_is_not_evaluated():
    q, k, v = (x.requires_grad_() for x in cases.tensors(1, 1, 1, 400, 400, (4, 4), torch.float64))
    # 1.5 ** 1000 and 0 ** -1 at dropped pairs would overflow into gradients.
    text = "mask m:\n    keep k <= q\n    score = score * 1.5 ** (-10.0 * (q - k)) + sqrt(q - k + 0.0)\n"
    out, lse = attend(text, q, k, v)
    gradients = torch.autograd.grad(out.sum() + lse.sum(), (q, k, v))
    assert all(bool(torch.isfinite(x).all()) for x in (out, lse, *gradients))


def test_a_branch_not_taken_is_not_evaluated():
    q, k, v = (x.requires_grad_() for x in cases.tensors(1, 1, 1, 6, 6, (4, 4), torch.float64))
    text = "mask m:\n    score = sqrt(score) if score > 0 else where(score < 0, -sqrt(-score), 0.0)\n"
    out, _ = attend(text, q, k, v)
    gradients = torch.autograd.grad(out.sum(), (q, k, v))
    assert all(bool(torch.isfinite(x).all()) for x in (out, *gradients))


def test_what_padding_holds_cannot_arrive():
    q, k, v = cases.tensors(1, 2, 2, 6, 6, (4, 4), torch.float64)
    text = "mask m:\n    input valid: bool[batch, seq]\n    keep valid[q] and valid[k]\n"
    valid = torch.tensor([[True, True, False, True, True, False]])
    clean = attend(text, q, k, v, valid=valid)
    for x in (q, k, v):
        x[:, :, ~valid[0]] = torch.nan
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out, lse = attend(text, *leaves, valid=valid)
    assert torch.equal(out, clean[0])
    assert torch.equal(lse, clean[1])
    gradients = torch.autograd.grad((out.sum(), lse[:, :, valid[0]].sum()), leaves)
    assert all(bool((x[:, :, ~valid[0]] == 0).all()) for x in gradients)
    assert all(bool(torch.isfinite(x).all()) for x in gradients)


def test_empty_rows():
    q, k, v = (x.requires_grad_() for x in cases.tensors(1, 1, 1, 5, 5, (4, 4), torch.float64))
    out, lse = attend("mask m:\n    keep k < q - 1\n", q, k, v)
    assert torch.equal(torch.isneginf(lse), torch.tensor([[[True, True, False, False, False]]]))
    assert torch.equal(out[:, :, :2], torch.zeros(1, 1, 2, 4, dtype=torch.float64))
    gradients = torch.autograd.grad((out, lse), (q, k, v), (torch.ones_like(out), torch.ones_like(lse)))
    assert all(bool(torch.isfinite(x).all()) for x in gradients)
    assert bool((gradients[0][:, :, :2] == 0).all())


def test_a_row_of_scores_minus_infinity_is_empty():
    q, k, v = (x.requires_grad_() for x in cases.tensors(1, 1, 1, 3, 3, (4, 4), torch.float64))
    out, lse = attend("mask m:\n    score = where(q == 1, -inf, log(exp(score)))\n", q, k, v)
    assert bool(torch.isneginf(lse[0, 0, 1]))
    assert bool((out[0, 0, 1] == 0).all())
    gradients = torch.autograd.grad(out.sum(), (q, k, v))
    assert all(bool(torch.isfinite(x).all()) for x in gradients)
    assert bool((gradients[0][0, 0, 1] == 0).all())


@pytest.mark.parametrize(
    ("score", "at", "slope"),
    [
        ("abs(score)", 0.0, 0.0),
        ("relu(score)", 0.0, 0.0),
        ("max(score, 0.0)", 0.0, 0.0),
        ("max(0.0, score)", 0.0, 1.0),
        ("min(score, 0.0)", 0.0, 0.0),
        ("min(0.0, score)", 0.0, 1.0),
        ("clamp(score, 0.0, 1.0)", 0.0, 0.0),
        ("clamp(score, 0.0, 1.0)", 1.0, 0.0),
        ("clamp(score, 0.0, 1.0)", 0.5, 1.0),
        ("sqrt(relu(score))", -1.0, 0.0),
        ("score ** 2", 3.0, 6.0),
        ("2.0 ** score", 1.0, 2.0 * math.log(2.0)),
    ],
)
def test_kinks(score, at, slope):
    q = torch.tensor([[[[at]]]], dtype=torch.float64, requires_grad=True)
    k = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    _, lse = attend(f"mask m:\n    score = {score}\n", q, k, k)
    (gradient,) = torch.autograd.grad(lse.sum(), q)
    assert gradient.item() == pytest.approx(slope)


def test_infinite_scores_and_nan_propagate():
    q, k, v = cases.tensors(1, 1, 1, 2, 2, (4, 4), torch.float64)
    out, _ = attend("mask m:\n    score = where(k == 0, inf, score)\n", q, k, v)
    assert bool(torch.isnan(out).all())


def test_deciding_floats_are_float64():
    q, k, v = cases.tensors(1, 1, 1, 40, 40, (4, 4), torch.float32)
    text = "mask m:\n    keep 0.1 * (q - k) + 0.2 != 0.3 * 1.0\n"
    call = inputs.prepare(load(text), q, k, v, {}, q_offset=0)
    expected = [[0.1 * (i - j) + 0.2 != 0.3 * 1.0 for j in range(40)] for i in range(40)]
    assert dense.kept_pairs(call)[0, 0].tolist() == expected


@pytest.mark.parametrize(
    ("expression", "python"),
    [
        ("(q - 7) // 3 == (k - 5) // -2", lambda q, k: (q - 7) // 3 == (k - 5) // -2),
        ("(q - 7) % 3 == (k - 9) % 5", lambda q, k: (q - 7) % 3 == (k - 9) % 5),
        ("(q - 7) % -3 == -((k - 5) % 2)", lambda q, k: (q - 7) % -3 == -((k - 5) % 2)),
        ("q & 5 == k | 2", lambda q, k: q & 5 == k | 2),
        ("(q ^ k) < 6", lambda q, k: (q ^ k) < 6),
        ("(1 << q) > (k << 3) >> 1", lambda q, k: (1 << q) > (k << 3) >> 1),
        ("q ** 2 <= k * 5", lambda q, k: q**2 <= k * 5),
        ("~q + 9 > k", lambda q, k: ~q + 9 > k),
        ("floor((q - 4.5) / 2.0) == k - 3", lambda q, k: math.floor((q - 4.5) / 2) == k - 3),
        ("round(q / 2.0) == k", lambda q, k: round(q / 2) == k),
        ("ceil(q / 3.0) <= k", lambda q, k: math.ceil(q / 3) <= k),
        ("(q if q % 2 == 0 else k) > 3", lambda q, k: (q if q % 2 == 0 else k) > 3),
        ("not q == k and (q < 3 or k > 4)", lambda q, k: q != k and (q < 3 or k > 4)),
        ("abs(q - k) in (1, 3)", lambda q, k: abs(q - k) in (1, 3)),
    ],
)
def test_operators_are_those_of_python(expression, python):
    q, k, v = cases.tensors(1, 1, 1, 10, 10, (2, 2), torch.float32)
    call = inputs.prepare(load(f"mask m:\n    keep {expression}\n"), q, k, v, {}, q_offset=0)
    assert dense.kept_pairs(call)[0, 0].tolist() == [[python(i, j) for j in range(10)] for i in range(10)]


def test_a_zero_divisor_gives_zero():
    q, k, v = cases.tensors(1, 1, 1, 4, 4, (2, 2), torch.float32)
    text = "mask m:\n    input n: int[seq]\n    keep 7 // n[q] + 7 % n[q] == k\n"
    call = inputs.prepare(load(text), q, k, v, {"n": torch.tensor([0, 7, 0, 3])}, q_offset=0)
    assert dense.kept_pairs(call)[0, 0].int().argmax(1).tolist() == [0, 1, 0, 3]


def test_reads_out_of_range_give_zero_and_never_wrap():
    q, k, v = cases.tensors(1, 1, 1, 4, 4, (2, 2), torch.float32)
    text = "mask m:\n    input t: int[seq]\n    keep t[q - 1] == 5 or t[q + 2] == 6\n"
    call = inputs.prepare(load(text), q, k, v, {"t": torch.tensor([5, 1, 6, 5])}, q_offset=0)
    assert dense.kept_pairs(call)[0, 0, :, 0].tolist() == [True, True, False, False]


def test_sixteen_bit_scores_use_wide_positions():
    q, k, v = cases.tensors(1, 1, 1, 2, 2, (4, 4), torch.float16)
    call = inputs.prepare(load("mask m:\n    score -= 0.00001 * (q - k)\n"), q, k, v, {}, q_offset=100_000)
    out, lse, _ = dense.attention(call)
    assert out.dtype is torch.float16
    assert bool(torch.isfinite(lse).all())
