"""An engine for tests: the interpreter's kernels with plans and shares of our choice."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from maskc.analysis.plan import BlockPlan
from maskc.codegen.schedule import Pass
from maskc.codegen.source import KernelSource
from maskc.runtime import interpreter, passes, tables, variants
from maskc.runtime.inputs import Call
from maskc.runtime.tiles import INTERPRETED

TILE = INTERPRETED.tile


@dataclass
class Engine:
    """Judged like any engine; notes the functions that it calls."""

    plan: Callable[[Call], BlockPlan]
    splits: int
    called: list[str] = field(default_factory=list)

    def run(self, source: KernelSource, function: str, *arguments: Any) -> Any:
        self.called.append(function)
        return interpreter._run(source, function, *arguments)

    def planned(self, call: Call, pass_: Pass, splits: int, *strided: Tensor) -> passes.Plan:
        found = tables.of_plan(self.plan(call), call.q.device, splits)
        config = variants.config(call, INTERPRETED, (call.q, call.k, call.v, *strided))
        return passes.plan(call, pass_, config, found)

    def forward(self, call: Call) -> tuple[Tensor, Tensor]:
        return passes.forward(call, self.planned(call, "forward", self.splits), self.run)

    def backward(self, call: Call, out: Tensor, lse: Tensor, d_out: Tensor, d_lse: Tensor) -> tuple[Tensor, ...]:
        plans = [self.planned(call, pass_, 1, d_out) for pass_ in ("queries", "keys")]
        return passes.backward(call, *plans, out, lse, d_out, d_lse, self.run)
