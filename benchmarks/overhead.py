"""Host time of warm calls of the engine `triton` beyond what no launcher can save: the launches and the allocations.

    python benchmarks/overhead.py [--rounds 600] [--calls 10] [--json FILE]

A stub stands in the place of the GPU (`stub.py`), so this runs anywhere and times the host alone. Of every spec: the
forward with and without gradients, and forward and backward together. A round times `calls` calls in a row, then the
bare allocations and launches of as many calls: the same `torch.empty` and the same calls of the compiled kernels, with
arguments that are ready. Processor time of the thread is measured, in microseconds. Reported are medians over the
rounds and, since other load of a machine only ever adds, what the fastest tenth of the rounds keeps below.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import triton
from stub import StubDriver, in_place_of_gpu

import maskc
from maskc.runtime import launcher
from maskc.runtime.records import Allocate, Launch, Record

RESULTS = Path(__file__).parent / "results" / "overhead.json"
LENGTH, DIM = 128, 64
TARGET = 20.0
"""Microseconds that the forward of a plan without data may take, gradients enabled."""


@dataclass(frozen=True)
class Spec:
    """A mask and a call of it. heads: of queries and of keys. depends: whether its plan depends on data."""

    name: str
    text: str
    heads: tuple[int, int] = (8, 8)
    given: Mapping[str, Any] = field(default_factory=dict)
    depends: bool = False


SPECS = (
    Spec("causal", "mask causal:\n    keep k <= q\n"),
    Spec("causal, GQA", "mask causal:\n    keep k <= q\n", heads=(8, 2)),
    Spec("window", "mask window(w: int):\n    keep 0 <= q - k < w\n", given={"w": 40}),
    Spec(
        "bias",
        "mask bias:\n    input slope: float[head]\n    keep k <= q\n    score += slope[head] * (k - q)\n",
        given={"slope": torch.linspace(0, 1, 8)},
    ),
    Spec(
        "documents",
        "mask documents:\n    input doc: int[batch, seq]\n    keep doc[q] == doc[k] and k <= q\n",
        given={"doc": torch.arange(LENGTH)[None] // 30},
        depends=True,
    ),
)


@dataclass(frozen=True)
class Row:
    """Microseconds of one call and of its bare allocations and launches: medians, and the fastest tenth (`quiet`)."""

    spec: str
    what: str
    launches: int
    call: float
    bare: float
    quiet_call: float
    quiet_bare: float

    @property
    def beyond(self) -> float:
        """What the call takes beyond its bare work, in a median round."""
        return self.call - self.bare

    @property
    def quiet_beyond(self) -> float:
        """The same where little else runs."""
        return self.quiet_call - self.quiet_bare


class Idle(StubDriver):
    """Notes no launches either."""

    def launch(self, *launch: Any) -> None:
        """Does nothing."""


def bare(records: list[Record]) -> Callable[[], object]:
    """Allocates and launches what records do, with arguments that are ready."""
    work: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = []
    for step in (step for record in records for step in record.steps):
        match step:
            case Allocate():
                work.append((torch.empty, (step.shape,), {"dtype": step.dtype, "device": step.device}))
            case Launch():
                kernel = step.kernel
                fixed = (0, kernel.function, kernel.packed_metadata, None, None, None)
                work.append((step.run, (*step.grid, *fixed, *step.arguments), {}))
            case _:
                raise AssertionError(step)

    def run() -> object:
        # All of a call is alive at once, as it is in the call.
        return [function(*arguments, **options) for function, arguments, options in work]

    return run


def tensors(spec: Spec) -> tuple[torch.Tensor, ...]:
    heads, kv_heads = spec.heads
    return tuple(torch.randn(1, h, LENGTH, DIM).half().requires_grad_() for h in (heads, kv_heads, kv_heads))


def rows(spec: Spec, rounds: int, calls: int) -> list[Row]:
    """The three measurements of a spec."""
    attend = maskc.compile_attention(spec.text, engine="triton")
    q, k, v = tensors(spec)
    q_, k_, v_ = (x.detach() for x in (q, k, v))
    given = dict(spec.given)
    upstream = torch.ones_like(q)

    def backward() -> object:
        return torch.autograd.grad(attend(q, k, v, validate=False, **given), (q, k, v), upstream)

    launcher._records.clear()
    backward()
    forward_record, backward_record = (known.record for known in launcher._records.values())
    measured: dict[str, tuple[Callable[[], object], list[Record]]] = {
        "forward, no gradients": (lambda: attend(q_, k_, v_, validate=False, **given), [forward_record]),
        "forward": (lambda: attend(q, k, v, validate=False, **given), [forward_record]),
        "forward and backward": (backward, [forward_record, backward_record]),
    }
    return [row(spec.name, what, call, records, rounds, calls) for what, (call, records) in measured.items()]


def row(spec: str, what: str, call: Callable[[], object], records: list[Record], rounds: int, calls: int) -> Row:
    """Times calls and their bare work by turns."""
    candidates = call, bare(records)
    found: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 1):
        for run, times in zip(candidates, found, strict=True):
            start = time.thread_time_ns()
            for _ in range(calls):
                run()
            times.append((time.thread_time_ns() - start) / calls / 1e3)
    (call_times, bare_times) = (sorted(times[1:]) for times in found)
    launches = sum(isinstance(step, Launch) for record in records for step in record.steps)
    medians = statistics.median(call_times), statistics.median(bare_times)
    quiet = call_times[rounds // 10], bare_times[rounds // 10]
    return Row(spec, what, launches, *(round(x, 2) for x in (*medians, *quiet)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=600)
    parser.add_argument("--calls", type=int, default=10)
    parser.add_argument("--json", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    with in_place_of_gpu(Idle()):
        found = [r for spec in SPECS for r in rows(spec, chosen.rounds, chosen.calls)]
    print(f"{'spec':12} {'what':22} launches {'call':>8} {'bare':>8} {'beyond':>8} {'quiet':>8}   us")
    for r in found:
        times = " ".join(f"{x:8.2f}" for x in (r.call, r.bare, r.beyond, r.quiet_beyond))
        print(f"{r.spec:12} {r.what:22} {r.launches:8} {times}")
    versions = {"python": sys.version.split()[0], "torch": torch.__version__, "triton": triton.__version__}
    report = {"versions": versions, "rounds": chosen.rounds, "calls": chosen.calls, "target": TARGET}
    chosen.json.write_text(json.dumps(report | {"rows": [asdict(r) for r in found]}, indent=1) + "\n")
    static = {spec.name for spec in SPECS if not spec.depends}
    missed = [r for r in found if r.what == "forward" and r.spec in static and r.quiet_beyond >= TARGET]
    for r in missed:
        print(f"missed: {r.spec} takes {r.quiet_beyond:.1f} us, not less than {TARGET}", file=sys.stderr)
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
