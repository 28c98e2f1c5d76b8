"""The sequence of functions of kernel files, for one part and for several, judged against dense attention."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from kernels import plans
from kernels.cases import Case, judged
from kernels.engines import TILE, Engine

from maskc.analysis.plan import BlockPlan
from maskc.expr import Binary, BinaryOp, Expr, Literal, Position, Side, Type
from maskc.runtime.inputs import Call

CASE = Case("parts", "keep k <= q or k < 3", heads=(4, 2), lengths=(45, 70), dims=(16, 24), offsets={"q_offset": 25})
EVERY_THIRD = Binary(
    Type.BOOL,
    BinaryOp.EQ,
    Binary(Type.INT, BinaryOp.MOD, Position(Type.INT, Side.K), Literal(Type.INT, 3)),
    Literal(Type.INT, 0),
)
FIRST_ROWS: Expr = Binary(Type.BOOL, BinaryOp.LT, Position(Type.INT, Side.Q), Literal(Type.INT, 50))


def in_parts(by: Expr, *, packed: bool) -> Callable[[Call], BlockPlan]:
    """A plan in two parts: where `by` holds in an order of its own, the other pairs row-major."""
    first = plans.packed() if packed else plans.ordered(None, plans.residues(70, 3))
    return lambda call: plans.divided_plan(call.spec, call.sizes, TILE, None, by, (first, plans.contiguous()))


PLANS = {
    "one part, shares": (lambda call: plans.plan(call.spec, call.sizes, TILE), 3),
    "parts of keys": (in_parts(EVERY_THIRD, packed=False), 1),
    "parts of queries, shares": (in_parts(FIRST_ROWS, packed=True), 2),
}


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, torch.float32) for name in PLANS), ("parts of keys", torch.float16)]
)
def test_parts_and_shares_give_one_result(name: str, dtype: torch.dtype) -> None:
    engine = Engine(*PLANS[name])
    report = judged(replace(CASE, dtype=dtype).call(), engine)
    assert report.passed, report
    parts = 1 if name.startswith("one") else 2
    forward = ["forward"] if parts == 1 else [*["forward_part"] * 2, "merge"]
    assert engine.called == [*forward, "backward_rows", *["backward_queries"] * parts, *["backward_keys"] * parts]
