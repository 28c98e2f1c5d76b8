"""Kernels that are given positions of tokens: any order of both sides, packed lists, maps of their own, shares."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from kernels import plans
from kernels.cases import Case, judged, upstream, with_views
from kernels.engines import TILE, Engine

from maskc.runtime.inputs import Call

DILATED = "mask case(w: int = 40, d: int = 3):\n    keep 0 <= q - k < w\n    keep (q - k) % d == 0"
LAYOUTS = {
    "residues": lambda call: plans.ordered(_residues(call.sizes.q_len), _residues(call.sizes.k_len)),
    "shuffled": lambda call: plans.ordered(
        plans.shuffled(call.sizes.q_len, 1, gaps=7), plans.shuffled(call.sizes.k_len, 2)
    ),
    "packed": lambda call: plans.packed(),
    "packed in residues": lambda call: plans.packed(_residues(call.sizes.q_len), _residues(call.sizes.k_len)),
}
CASES = (
    Case("dilated", DILATED, lengths=(77, 77)),
    Case("head dims in two blocks", DILATED, lengths=(45, 70), dims=(72, 80), offsets={"q_offset": 25}),
    Case("padded head dims", DILATED, lengths=(70, 40), dims=(8, 3), heads=(6, 2), offsets={"k_offset": 30}),
    Case("half precision", DILATED, lengths=(50, 50), dims=(32, 40), heads=(4, 2), dtype=torch.float16),
    Case("biased by distance", f"{DILATED}\n    score -= 0.1 * abs(q - k)", lengths=(61, 61), heads=(2, 1)),
    Case("changed score", "keep k <= q\nscore = 2 * tanh(score / 2) - 0.1 * abs(q - k)", lengths=(50, 50), batch=2),
    Case("documents", "input doc: int[batch, seq]\nkeep doc[q] == doc[k] and k <= q", lengths=(60, 60), batch=2),
    Case("one map a head", "keep (k + 2 * head) % 4 == q % 4", lengths=(50, 66), heads=(4, 4), offsets={"q_offset": 3}),
    Case("empty rows", "keep k < q - 20", lengths=(66, 66)),
    Case("all rows empty", "keep q < 0", lengths=(40, 40)),
    Case("every pair", "pass", lengths=(64, 64)),
    Case("grid", "axes y, x\nkeep abs(q.y - k.y) <= 2 and abs(q.x - k.x) <= 2", given={"y": 7, "x": 10}),
    Case("offset per row", DILATED, batch=2, lengths=(20, 60), offsets={"q_offset": torch.tensor([7, 40])}),
)


def _residues(length: int) -> plans.Order:
    return plans.residues(length, 3)


def _engine(layout: str, splits: int = 1) -> Engine:
    def plan(call: Call) -> plans.BlockPlan:
        inputs = {name: x.numpy() for name, x in call.inputs.items()}
        return plans.plan(call.spec, call.sizes, TILE, inputs, LAYOUTS[layout](call))

    return Engine(plan, splits)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_indexed_kernels_agree_with_dense(case: Case, layout: str) -> None:
    report = judged(case.call(), _engine(layout))
    assert report.passed, f"\n{report}"


@pytest.mark.parametrize("layout", ["residues", "packed"])
def test_shares_of_indexed_walks(layout: str) -> None:
    report = judged(CASES[0].call(), _engine(layout, splits=3))
    assert report.passed, f"\n{report}"


def test_strided_views_give_the_same_bits() -> None:
    call = Case("views", DILATED, heads=(4, 2), lengths=(50, 50)).call()
    engine = _engine("packed")
    for one, other in zip(_results(call, engine), _results(with_views(call), engine), strict=True):
        assert torch.equal(one, other)


def test_memory_behind_the_tensors_is_not_read() -> None:
    call = Case("guards", DILATED, lengths=(37, 37)).call()

    def guarded(x: torch.Tensor) -> torch.Tensor:
        batch, heads, length, dim = x.shape
        wide = torch.full((batch, heads, length + 40, dim), float("nan"))
        wide[:, :, :length] = x
        return wide[:, :, :length]

    engine = _engine("shuffled")
    strided = replace(call, q=guarded(call.q), k=guarded(call.k), v=guarded(call.v))
    for one, other in zip(_results(call, engine), _results(strided, engine), strict=True):
        assert torch.equal(one, other)


def test_an_order_changes_no_pair() -> None:
    """The predicate sees original positions: where rows stay in place, so does what they see."""
    call = CASES[0].call()
    outputs = [_engine(layout).forward(call)[0] for layout in LAYOUTS]
    for out in outputs[1:]:
        assert np.abs((out - outputs[0]).numpy()).max() < 1e-5


def _results(call: Call, engine: Engine) -> tuple[torch.Tensor, ...]:
    d_out, d_lse = upstream(call)
    out, lse = engine.forward(call)
    return out, lse, *engine.backward(call, out, lse, d_out, d_lse)
