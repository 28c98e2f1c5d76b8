"""The one tolerance: what passes, what fails, and that it cannot be fooled."""

from dataclasses import replace

import engine_cases as cases
import pytest
import torch

from maskc.check import load
from maskc.runtime import tolerance
from maskc.runtime.inputs import prepare


def judged(call, **altered):
    d_out, d_lse = cases.upstream(call)
    values = tolerance.values_of(call, d_out, d_lse)
    for name, alter in altered.items():
        values[name] = alter(values[name])
    return tolerance.check(call, values, d_out, d_lse)


@pytest.mark.parametrize("name", ["window", "far", "softcap bias", "minus infinity", "ignores score"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_dense_passes(name, dtype):
    report = judged(cases.call_of(name, batch=2, q_len=40, dtype=dtype))
    assert report.passed, str(report)
    assert [j.quantity for j in report.judgements] == ["out", "lse", "dq", "dk", "dv"]


@pytest.mark.parametrize("quantity", tolerance.QUANTITIES)
def test_one_wrong_entry_fails(quantity):
    def alter(x):
        x = x.clone()
        x[(-1,) * x.dim()] += 1e-3
        return x

    report = judged(cases.call_of("window", q_len=40), **{quantity: alter})
    assert [j.quantity for j in report.judgements if not j.passed] == [quantity]
    assert "FAILED" in str(report)


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_a_value_that_is_not_finite_fails(poison):
    report = judged(cases.call_of("window", q_len=40), out=lambda x: x.clone().index_fill_(2, torch.tensor(3), poison))
    assert "the value is not finite" in str(report)
    assert not report.passed


def test_a_reference_that_is_not_finite_fails():
    call = cases.call_of("window", q_len=40)
    poisoned = call.v.clone()
    poisoned[0, 0, 5] = torch.nan
    report = judged(replace(call, v=poisoned))
    assert "the reference is not finite" in str(report)
    assert not report.passed


@pytest.mark.parametrize("instead", [0.0, -49994.0, -1e30])
def test_the_lse_of_an_empty_row_is_minus_infinity_exactly(instead):
    report = judged(cases.call_of("far", q_len=90), lse=lambda x: x.masked_fill(torch.isneginf(x), instead))
    assert "an empty row is not -inf" in str(report)
    assert not report.passed


def test_minus_infinity_where_a_row_is_not_empty_fails():
    report = judged(cases.call_of("window", q_len=40), lse=lambda x: x.index_fill(2, torch.tensor(3), -torch.inf))
    assert not report.passed


def test_a_wrong_shape_fails():
    report = judged(cases.call_of("window", q_len=40), dq=lambda x: x[:, :, :39])
    assert "shape (1, 2, 39, 8), expected (1, 2, 40, 8)" in str(report)
    assert not report.passed


def test_an_unknown_quantity_is_refused():
    call = cases.call_of("window", q_len=4)
    d_out, _ = cases.upstream(call)
    with pytest.raises(ValueError, match="dz"):
        tolerance.compare({"dz": d_out}, tolerance.reference(call, d_out))


def test_magnitudes_at_one_key():
    call = cases.call_of("everything", heads=1, kv_heads=1, q_len=1, scale=0.5)
    d_out, d_lse = cases.upstream(call)
    found = tolerance.reference(call, d_out, d_lse).magnitude
    q, k, v, g = (x.double().abs().squeeze() for x in (call.q, call.k, call.v, d_out))
    assert found["out"] == pytest.approx(float(v.max()))
    assert found["lse"] == pytest.approx(float(q @ k) * 0.5 + 1)
    assert found["dv"] == pytest.approx(float(g.max()))
    arriving = float(g @ v) + float(g @ v) + abs(float(d_lse))
    assert found["dq"] == pytest.approx(arriving * 0.5 * float(k.max()))
    assert found["dk"] == pytest.approx(arriving * 0.5 * float(q.max()))


def test_magnitudes_follow_the_slope_of_the_score():
    plain = cases.call_of("everything", q_len=1)
    capped = cases.call_of("softcap", q_len=1, given={"cap": 0.01})
    d_out, _ = cases.upstream(plain)
    assert tolerance.reference(capped, d_out).magnitude["dq"] < 1e-2 * tolerance.reference(plain, d_out).magnitude["dq"]


def test_nothing_to_compare_passes():
    assert judged(cases.call_of("everything", q_len=0, k_len=3)).passed


def test_a_learned_input_weighs_what_every_pair_gives_to_it() -> None:
    text = """
mask m:
    input bias: float[head, 5] learned
    input slope: float[] learned
    input decay: float[head, seq] learned
    let reach = cumsum(decay, seq)
    keep k <= q
    score += bias[min(q - k, 4)] + slope * (q - k) + reach[k]
"""
    generator = torch.Generator().manual_seed(0)
    q, k, v, d_out = (torch.randn(1, 2, 7, 4, generator=generator, dtype=torch.float64) for _ in range(4))
    bias, slope, decay = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((2, 5), (), (2, 7))
    )
    call = prepare(load(text), q, k, v, {"bias": bias, "slope": slope, "decay": decay})
    found = tolerance.reference(call, d_out).magnitude

    query, key = torch.arange(7).view(-1, 1), torch.arange(7)
    distance, kept = query - key, key <= query
    score = q @ k.transpose(-1, -2) / 2 + bias[:, distance.clamp(0, 4)] + slope * distance
    score = score + decay.cumsum(-1).unsqueeze(-2)
    weights = torch.softmax(score.masked_fill(~kept, -torch.inf), -1)
    upstream = d_out @ v.transpose(-1, -2)
    d_score = (weights * (upstream - (weights * upstream).sum(-1, keepdim=True))).abs()[0]
    of_bias = torch.stack([(d_score * (distance.clamp(0, 4) == i) * kept).sum((-1, -2)) for i in range(5)], -1)
    of_reach = d_score.sum(-2)
    assert found["d bias"] == pytest.approx(float(of_bias.max()))
    assert found["d slope"] == pytest.approx(float((d_score * distance.abs()).sum()))
    assert found["d decay"] == pytest.approx(float(of_reach.flip(-1).cumsum(-1).max()))
