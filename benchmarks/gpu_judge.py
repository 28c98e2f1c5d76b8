"""How `gpu_tests.py` judges: everything about one unit, each call by `runtime/tolerance.py` or by what it adds."""

import importlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, assert_never
from unittest import mock

import torch
from gpu_cases import Grouped, Look, Options, Unit, accepted, cases, look_cases, problem_of
from gpu_machine import ROOT, one_line
from gpu_worker import is_fatal
from torch import Tensor

import maskc
from maskc import reference
from maskc.analysis.plan import BlockPlan
from maskc.check import load
from maskc.runtime import autograd, launcher, prologue, tables, tolerance, verify
from maskc.runtime.inputs import Call
from maskc.runtime.tables import Tables
from maskc.runtime.verify import Problem
from maskc.spec import MaskSpec

# The tests make plans by brute force, and a checkout has both folders. Not `kernels.plans`: machines with GPUs may have
# a package of that name.
sys.path.append(str(ROOT / "tests" / "kernels"))
import plans

RUNS = 5
FAR_STRIDE = 2**25  # elements from row to row; 66 rows reach past 2^31
LARGEST_TILE = 128  # keys
LEAST_SHARE = 4  # key tiles
EVERY_THIRD = load("mask thirds:\n    keep k % 3 == 0").predicate
LEFT_OUT: dict[Look, tuple[tuple[str, ...], str]] = {
    "plans": (("triton", "interpret"), "runs no kernels"),
    "parts": (("triton", "interpret"), "runs no kernels"),
    "graph": (("triton",), "runs without a GPU"),
    "lengths": (("triton",), "compiles nothing"),
    "far": (("triton",), "runs without a GPU"),
}
"""The engines of the looks that are not for all of them, and what the others are like."""

Planner = Callable[[Call, tuple[int, int]], BlockPlan]
"""The plan of a call for a tile."""


class Verdict(NamedTuple):
    """What is said of one call. share: the largest error over its bound, of `quantity`; None where nothing is held
    against numbers.
    """

    status: str
    share: float | None = None
    quantity: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Result:
    """One line of the report. share, quantity: as `Verdict` has them.

    status: ok, missed, error, refused (sizes that the spec does not take), not applicable, or not run. fatal: the
    process cannot go on.
    """

    unit: Unit
    what: str
    status: str
    share: float | None = None
    quantity: str = ""
    detail: str = ""
    seconds: float = 0.0
    fatal: bool = False

    def __str__(self) -> str:
        worst = "" if self.share is None else f"  {self.share:.2f} of the bound, {self.quantity}"
        return f"{self.status:7} {self.unit} at {self.what}{worst}{'  ' if self.detail else ''}{self.detail}"


@dataclass(frozen=True)
class Job:
    """A unit at work."""

    unit: Unit
    spec: MaskSpec
    options: Options

    def placed(self, case: Grouped, seed: int = 0) -> tuple[Problem, Problem]:
        """The tensors of a case, on the CPU and on the device."""
        dtype = verify.DTYPES[self.unit.dtype]
        here = problem_of(self.spec, case, self.unit.dims, seed).to(dtype).laid_out(case.layout)
        return here, here.to(dtype, self.options.device).laid_out(case.layout)

    def run(self, problem: Problem) -> dict[str, Tensor]:
        """All values by the public interface."""
        # The spec of the problem has the constant inputs of the case.
        return problem.run(maskc.compile_attention(problem.spec, engine=self.options.engine))


LEFT = "all that is left"


def results(unit: Unit, options: Options) -> Iterator[Result]:
    """Everything about one unit."""
    try:
        yield from _results(unit, options)
    except Exception as error:  # as in `guarded`
        yield Result(unit, LEFT, "error", detail=one_line(error), fatal=is_fatal(error))


def _results(unit: Unit, options: Options) -> Iterator[Result]:
    torch.set_num_threads(1)  # the reference; there is a process per core
    job = Job(unit, load(unit.path, unit.mask), options)
    found, refused = accepted(job.spec, cases(job.spec, unit, tiny=options.tiny), unit.dims[0])
    yield from (Result(unit, str(case), "refused", detail=why) for case, why in refused)
    for case in found:
        yield guarded(unit, str(case), partial(called, job, case))
    if found:
        yield guarded(unit, f"{found[-1]}, {RUNS} times", partial(repeated, job, found[-1]))
    for look in unit.looks:
        yield from looked(job, look)


def looked(job: Job, look: Look) -> Iterator[Result]:
    """Everything about one look."""
    engines, why = LEFT_OUT.get(look, ((job.options.engine,), ""))
    if job.options.engine not in engines:
        yield Result(job.unit, look, "not applicable", detail=f"engine '{job.options.engine}' {why}")
        return
    chosen = look_cases(job.spec, job.unit, look, tiny=job.options.tiny)
    if not chosen:
        yield Result(job.unit, look, "not applicable", detail="a grid has all its tokens on both sides")
        return
    found, refused = accepted(job.spec, chosen, job.unit.dims[0])
    yield from (Result(job.unit, f"{look}, {case}", "refused", detail=why) for case, why in refused)
    for what, run in judgements(job, look, found):
        yield guarded(job.unit, what, run)


def judgements(job: Job, look: Look, found: list[Grouped]) -> Iterator[tuple[str, Callable[[], Verdict]]]:
    """What a look judges, each with its name."""
    match look:
        case "odd layouts":
            yield from ((str(case), partial(called, job, case)) for case in found)
        case "decoding":
            yield from ((f"decoding, {case}", partial(decoded, job, case)) for case in found)
        case "plans":
            for name, planner in PLANS.items():
                yield from ((f"{name}, {case}", partial(planned, job, case, planner)) for case in found)
        case "parts":
            yield from ((f"two parts, {case}", partial(planned, job, case, in_two_parts)) for case in found)
        case "graph":
            yield from ((f"a captured graph, {case}", partial(captured, job, case)) for case in found)
        case "lengths":
            yield f"{len(found)} other lengths", partial(steady, job, found)
        case "far":
            for case in found:
                yield f"rows of k far apart, {case}", partial(called, job, case, far)
                yield f"rows of k far apart, packed, {case}", partial(planned, job, case, PLANS["packed"], far)
        case _:
            assert_never(look)


def guarded(unit: Unit, what: str, run: Callable[[], Verdict]) -> Result:
    """The result of a run, whatever happens in it: a report has to name what failed and go on."""
    begin = time.perf_counter()
    try:
        found = Result(unit, what, *run())
    except Exception as error:  # compilers and drivers raise what they like
        found = Result(unit, what, "error", detail=one_line(error), fatal=is_fatal(error))
    return replace(found, seconds=round(time.perf_counter() - begin, 3))


def verdict(here: Problem, values: Mapping[str, Tensor], note: str = "") -> Verdict:
    """Status, largest share of a bound, whose, and all misses."""
    expected = tolerance.reference(here.call, here.d_out, here.d_lse)
    report = tolerance.compare({name: x.cpu() for name, x in values.items()}, expected)
    share, quantity = max((verify.share(j), j.quantity) for j in report.judgements)
    misses = "; ".join(str(j) for j in report.judgements if not j.passed)
    return Verdict("missed" if misses else "ok", share, quantity, misses or note)


# Calls by the public interface.


def called(job: Job, case: Grouped, view: Callable[[Problem], Problem] = lambda x: x) -> Verdict:
    """A call. view: the problem on the device with other strides."""
    here, there = job.placed(case)
    return verdict(here, job.run(view(there)))


def repeated(job: Job, case: Grouped) -> Verdict:
    """Whether equal calls give equal bits."""
    _, there = job.placed(case)
    first, *others = ({name: bits(x) for name, x in job.run(there).items()} for _ in range(RUNS))
    differing = [name for name, x in first.items() if not all(torch.equal(x, other[name]) for other in others)]
    return Verdict("missed", detail=f"bits differ: {', '.join(differing)}") if differing else Verdict("ok")


def bits(x: Tensor) -> Tensor:
    """The bits of a tensor as integers, so that NaN equals itself."""
    return x.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def far(problem: Problem) -> Problem:
    """The same with rows of k so far apart that their offsets need 64 bits; memory between them is not touched."""
    batch, heads, rows, dim = problem.k.shape
    memory = problem.k.new_empty((rows - 1) * FAR_STRIDE + batch * heads * dim)
    return replace(problem, k=memory.as_strided(problem.k.shape, (heads * dim, dim, FAR_STRIDE, 1)).copy_(problem.k))


def decoded(job: Job, case: Grouped) -> Verdict:
    """A call of few queries. Where one sees keys for several shares, they have to be dealt out."""
    here, there = job.placed(case)
    shares: list[int] = []
    build = tables.build

    def noted(call: Call, tile: tuple[int, int], splits: int = 1) -> Tables:
        shares.append(splits)
        return build(call, tile, splits)

    with mock.patch.object(tables, "build", noted):
        values = job.run(there)
    found = verdict(here, values, f"{max(shares, default=0)} shares" if job.options.engine == "triton" else "")
    needed = most_keys(here.call) // LARGEST_TILE >= 2 * LEAST_SHARE and case.q_len <= LEAST_SHARE
    if found.status == "ok" and needed and job.options.engine == "triton" and max(shares, default=0) < 2:
        return found._replace(status="missed", detail="the keys were not shared out")
    return found


def most_keys(call: Call) -> int:
    """How many keys the query sees that sees most."""
    return int(reference.mask(call.spec, call.sizes, arrays(call)).sum(-1).max(initial=0))


def arrays(call: Call) -> dict[str, Any]:
    """The inputs of a call on the host."""
    return {name: x.cpu().numpy() for name, x in call.inputs.items()}


def captured(job: Job, case: Grouped) -> Verdict:
    """A forward and a backward in a CUDA graph, replayed with other contents of the same tensors."""
    _, static = job.placed(case)
    here, other = job.placed(case, seed=1)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        job.run(static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        values = job.run(static)
    for name, x in tensors(other).items():
        tensors(static)[name].copy_(x)
    graph.replay()
    torch.cuda.synchronize()
    return verdict(here, values)


def tensors(problem: Problem) -> dict[str, Tensor]:
    """All tensors of a problem by name."""
    named = {name: getattr(problem, name) for name in ("q", "k", "v", "d_out", "d_lse")}
    return named | {name: x for name, x in problem.given.items() if isinstance(x, Tensor)}


def steady(job: Job, found: list[Grouped]) -> Verdict:
    """Whether calls of other lengths compile nothing, once the plain ones ran."""
    known = len(launcher.compile_keys())
    for case in found:
        job.run(job.placed(case)[1])
    added = [key.entry for key in launcher.compile_keys()[known:]]
    return Verdict("missed", detail=f"compiled: {', '.join(added)}") if added else Verdict("ok")


# Plans of our choice.


def planned(job: Job, case: Grouped, planner: Planner, view: Callable[[Problem], Problem] = lambda x: x) -> Verdict:
    """A call with a plan of our choice, by the engine's own functions, which record it for this once."""
    here, there = job.placed(case)
    there = view(there)
    engine = importlib.import_module(autograd.ENGINES[job.options.engine])
    with with_plans(planner) as asked:
        out, lse = engine.forward(there.call)
        d_q, *rest = engine.backward(there.call, out, lse, there.d_out, there.d_lse)
    assert asked, "the engine asked for no plan"
    d_k, d_v = (prologue.inner(here.call.spec, here.call.sizes, x) for x in rest)
    return verdict(here, {"out": out, "lse": lse, "dq": d_q, "dk": d_k, "dv": d_v})


@contextmanager
def with_plans(planner: Planner) -> Iterator[dict[Any, Tables]]:
    """Engines that run kernels get these plans of a call, even where data decide it. The tables by what was asked."""
    made: dict[Any, Tables] = {}

    def build(call: Call, tile: tuple[int, int], splits: int = 1) -> Tables:
        if (tile, splits) not in made:
            made[tile, splits] = tables.of_plan(planner(call, tile), call.q.device, splits)
        return made[tile, splits]

    with mock.patch.object(tables, "build", build):
        yield made


def in_order(order: Callable[[Call], plans.Layout]) -> Planner:
    """Plans of one part."""
    return lambda call, tile: plans.plan(call.spec, call.sizes, tile, arrays(call), order(call))


def in_two_parts(call: Call, tile: tuple[int, int]) -> BlockPlan:
    """Every third key packed, the others row-major."""
    layouts = plans.packed(), plans.contiguous()
    return plans.divided_plan(call.spec, call.sizes, tile, arrays(call), EVERY_THIRD, layouts)


def shuffled(call: Call) -> plans.Layout:
    """Another order of either side, with empty slots in between."""
    q_order, k_order = (plans.shuffled(n, seed, gaps=7) for seed, n in enumerate(lengths(call)))
    return plans.ordered(q_order, k_order)


def residues(call: Call) -> plans.Layout:
    """Every third token, then those that follow them."""
    q_order, k_order = (plans.residues(n, 3) for n in lengths(call))
    return plans.ordered(q_order, k_order)


def lengths(call: Call) -> tuple[int, int]:
    """Queries and keys."""
    return call.sizes.q_len, call.sizes.k_len


PLANS: dict[str, Planner] = {
    "shuffled with gaps": in_order(shuffled),
    "in residues": in_order(residues),
    "packed": in_order(lambda call: plans.packed()),
}
