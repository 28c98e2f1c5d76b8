"""Decoding: a few queries at the end of many keys give what the whole forward gives, in shares of the keys as well."""

from dataclasses import replace

import pytest
import torch
from kernels.cases import Case, upstream
from kernels.engines import TILE, Engine
from torch import Tensor

from maskc.analysis import plan as planning
from maskc.analysis.plan import BlockPlan
from maskc.runtime import tolerance
from maskc.runtime.inputs import Call, prepare

SPECS = {
    "causal": "keep k <= q",
    "window": "keep 0 <= q - k < 30",
    "sink and window": "keep k <= q and (q - k < 20 or k < 3)",
    "biased": "keep k <= q\nscore -= 0.1 * (q - k)",
}


def _planned(call: Call) -> BlockPlan:
    return planning.build(call.spec, call.sizes, TILE, {name: x.numpy() for name, x in call.inputs.items()})


def _whole(call: Call) -> dict[str, Tensor]:
    """Output and log-sum-exp of all queries, float64."""
    return tolerance.reference(call, *upstream(call)).values


def _judged(call: Call, splits: int, expected: dict[str, Tensor]) -> tolerance.Report:
    """Output and log-sum-exp of a decoding call by the tolerance of that call, against given values."""
    reference = tolerance.reference(call, *upstream(call))
    out, lse = Engine(_planned, splits).forward(call)
    values = {**reference.values, **expected}
    return tolerance.compare({"out": out, "lse": lse}, replace(reference, values=values))


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("spec", SPECS)
def test_token_by_token_equals_the_whole_forward(spec: str, splits: int) -> None:
    whole = Case(spec, SPECS[spec], lengths=(70, 70), heads=(4, 2), dims=(16, 24)).call()
    values = _whole(whole)
    for token in (0, 1, 31, 32, 69):
        seen = slice(0, token + 1)
        q, k, v = whole.q[:, :, token : token + 1], whole.k[:, :, seen], whole.v[:, :, seen]
        call = prepare(whole.spec, q, k, v, {}, q_offset=token)
        report = _judged(call, splits, {name: values[name][:, :, token : token + 1] for name in ("out", "lse")})
        assert report.passed, f"token {token}\n{report}"


@pytest.mark.parametrize("splits", [1, 4])
def test_batch_rows_decode_at_positions_of_their_own(splits: int) -> None:
    whole = Case("rows", SPECS["window"], lengths=(90, 90), heads=(2, 1), batch=3).call()
    values = _whole(whole)
    at = torch.tensor([0, 37, 86])
    rows = at[:, None] + torch.arange(4)

    def few(x: Tensor) -> Tensor:
        return torch.stack([x[b, :, r] for b, r in enumerate(rows)])

    call = prepare(whole.spec, few(whole.q), whole.k, whole.v, {}, q_offset=at)
    report = _judged(call, splits, {name: few(values[name]) for name in ("out", "lse")})
    assert report.passed, f"\n{report}"


def test_rows_without_keys_stay_empty_in_shares() -> None:
    call = Case("empty", "keep k < q - 40", lengths=(60, 60)).call()
    out, lse = Engine(_planned, 3).forward(call)
    assert torch.isneginf(lse[:, :, :41]).all()
    assert (out[:, :, :41] == 0).all()
    assert torch.isfinite(lse[:, :, 41:]).all()
