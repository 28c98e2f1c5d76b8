"""Every engine of this machine against `dense` in float64: output, log-sum-exp and gradients, over a list of sizes."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, isnan, prod
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskc import reference, samples
from maskc.compiler import compile_attention
from maskc.diagnostics import MaskInputError, MaskUnsupportedError
from maskc.runtime import tolerance
from maskc.runtime.attention import Attention
from maskc.runtime.inputs import Call, default_scale
from maskc.runtime.tolerance import Judgement, Report
from maskc.sizes import resolve
from maskc.spec import MaskSpec, Scalar, Sizes, Type

LENGTHS = (1, 2, 17, 63, 64, 65, 130, 257)
GRIDS = {
    1: tuple((length,) for length in LENGTHS),
    2: ((1, 1), (2, 5), (7, 7), (13, 17), (3, 65)),
    3: ((1, 1, 1), (2, 1, 5), (3, 4, 5), (2, 7, 7), (5, 3, 13)),
}
RECTANGLES = ((1, 65, 64), (63, 130, 67), (130, 17, 0))  # queries, keys, position of the first query
DTYPES = {name: getattr(torch, name) for name in ("float64", "float32", "float16", "bfloat16")}
CPU_ENGINES = ("tiled", "interpret", "dense")
LARGE = 100  # tokens from which fewer heads do


@dataclass(frozen=True)
class Case:
    """One call: lengths, the position of the first query (None: not said), and axis sizes and parameters by name."""

    q_len: int
    k_len: int
    q_offset: int | None = None
    given: tuple[tuple[str, Scalar], ...] = ()

    @property
    def heads(self) -> tuple[int, int, int]:
        """Batch rows, query heads and KV heads."""
        return (1, 2, 1) if max(self.q_len, self.k_len) >= LARGE else (2, 4, 2)

    def sizes(self, spec: MaskSpec) -> Sizes:
        """The sizes of the call; raises `MaskInputError` where the spec does not accept them."""
        batch, heads, kv_heads = self.heads
        return resolve(
            spec,
            q_len=self.q_len,
            k_len=self.k_len,
            batch=batch,
            heads=heads,
            kv_heads=kv_heads,
            q_offset=self.q_offset or 0,
            offset_given=self.q_offset is not None,
            given=dict(self.given),
        )

    def __str__(self) -> str:
        lengths = f"{self.q_len}" if self.q_len == self.k_len else f"{self.q_len} x {self.k_len}"
        offset = "" if self.q_offset is None else f" from {self.q_offset}"
        return lengths + offset + "".join(f" {name}={value}" for name, value in self.given)


@dataclass(frozen=True)
class Outcome:
    """What one engine did with one case. report is None where the engine, or the spec (engine ''), refused it."""

    spec: MaskSpec
    case: Case
    engine: str
    dtype: str
    report: Report | None = None
    refused: str = ""

    @property
    def passed(self) -> bool:
        """False where a quantity missed; what was refused did not miss."""
        return self.report is None or self.report.passed

    @property
    def worst(self) -> tuple[float, str]:
        """The largest share of its bound that an error takes, and whose; NaN counts as infinite."""
        assert self.report is not None
        return max((share(j), j.quantity) for j in self.report.judgements)

    def __str__(self) -> str:
        verdict = f"not run: {self.refused}" if self.report is None else "ok" if self.passed else "FAILED"
        return f"{self.spec.name} at {self.case} {self.engine} {self.dtype}: {verdict}"


def share(judgement: Judgement) -> float:
    """error / bound; infinite where the judgement failed for another reason, or the error is not a number."""
    if judgement.reason or isnan(judgement.error):
        return inf
    if judgement.error == 0:
        return 0.0
    return inf if judgement.bound == 0 else judgement.error / judgement.bound


@dataclass(frozen=True)
class Summary:
    """What one engine did with one mask in one dtype. judged: the cases that ran; refused: those that did not."""

    mask: str
    engine: str
    dtype: str
    judged: tuple[Outcome, ...]
    refused: tuple[Outcome, ...]

    @property
    def misses(self) -> list[str]:
        """A line per quantity that missed."""
        return [
            f"{self.mask} at {o.case}, {self.engine} {self.dtype}: {judgement}"
            for o in self.judged
            if o.report is not None
            for judgement in o.report.judgements
            if not judgement.passed
        ]

    @property
    def row(self) -> tuple[str, ...]:
        """The cells of `table`."""
        missed = sum(not o.passed for o in self.judged)
        if self.judged:
            outcome = max(self.judged, key=lambda o: o.worst)
            worst = f"{outcome.worst[0]:.2f} of the bound, {outcome.worst[1]} at {outcome.case}"
        else:
            worst = f"not run: {self.refused[-1].refused}"
        return (self.mask, self.engine, self.dtype, str(len(self.judged)), str(len(self.refused)), str(missed), worst)


HEADINGS = ("mask", "engine", "dtype", "cases", "not run", "missed", "worst error")


def summarise(mask: str, outcomes: Iterable[Outcome]) -> list[Summary]:
    """One summary per engine and dtype of the outcomes of one mask; cases that the mask refused count in each."""
    by_mask: list[Outcome] = []
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        (groups.setdefault((outcome.engine, outcome.dtype), []) if outcome.engine else by_mask).append(outcome)
    return [
        Summary(
            mask,
            engine,
            dtype,
            tuple(o for o in group if o.report is not None),
            (*by_mask, *(o for o in group if o.report is None)),
        )
        for (engine, dtype), group in groups.items() or {("", ""): []}.items()
    ]


def table(summaries: Sequence[Summary]) -> str:
    """One line per mask, engine and dtype under a heading."""
    rows = [HEADINGS, *(s.row for s in summaries)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS) - 1)]
    return "\n".join("  ".join((*map(str.ljust, row, widths), row[-1])).rstrip() for row in rows)


def cases(spec: MaskSpec, given: Mapping[str, Scalar]) -> list[Case]:
    """The sizes to look at: the spec's own parameter values, then smaller ones that bite at these lengths."""
    found: list[Case] = []
    for parameters in parameter_sets(spec, given):
        if spec.axes:
            for shape in GRIDS[len(spec.axes)]:
                axes = dict(zip(spec.axes, shape, strict=True))
                found.append(Case(prod(shape), prod(shape), None, tuple({**axes, **parameters}.items())))
        else:
            values = tuple(parameters.items())
            found += [Case(length, length, None, values) for length in LENGTHS]
            found += [Case(q_len, k_len, offset, values) for q_len, k_len, offset in RECTANGLES]
    return found


def parameter_sets(spec: MaskSpec, given: Mapping[str, Scalar]) -> list[dict[str, Scalar]]:
    """The values given, with defaults for the rest; and the same with large integer defaults made small.

    A window of 256 tells little at 130 tokens.
    """
    small = {
        p.name: max(2, p.default // 24)
        for p in spec.parameters
        if p.type is Type.INT and isinstance(p.default, int) and p.default > 8 and p.name not in given
    }
    return [dict(given)] + ([{**given, **small}] if small else [])


def available_engines() -> tuple[str, ...]:
    """The engines that this machine can run."""
    return CPU_ENGINES + (("triton",) if torch.cuda.is_available() else ())


def device_named(name: str) -> torch.device:
    """A torch device; `MaskUnsupportedError` where this machine or this build of torch does not have it."""
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError):  # torch raises either for a device that is not there
        raise MaskUnsupportedError(f"device {name}: torch finds no such device here") from None


def dtypes_of(engine: str) -> tuple[str, ...]:
    """The dtypes in which an engine is judged unless the caller names them."""
    return ("float32", "float16", "bfloat16") if engine == "triton" else ("float32",)


def verify(
    spec: MaskSpec,
    *,
    engines: Sequence[str],
    dtypes: Sequence[str] | None = None,
    given: Mapping[str, Scalar] | None = None,
    dim: int = 16,
    seed: int = 0,
) -> Iterator[Outcome]:
    """Runs every case on every engine in every dtype. given: parameter values instead of the spec's defaults."""
    compiled = {engine: compile_attention(spec, engine=engine) for engine in engines}
    for number, case in enumerate(cases(spec, given or {})):
        try:
            sizes = case.sizes(spec)
        except MaskInputError as error:
            yield Outcome(spec, case, "", "", refused=str(error))
            continue
        generator = np.random.default_rng([seed, number])
        arrays = samples.draw(spec, sizes, generator)
        broken = reference.refute(spec, sizes, arrays)
        if broken:
            raise MaskInputError(f"mask {spec.name!r} at {case}: {broken[0]}")
        yield from _judged(spec, case, compiled, dtypes, random_problem(spec, sizes, arrays, dim, seed + number))


def _judged(
    spec: MaskSpec,
    case: Case,
    compiled: Mapping[str, Attention],
    dtypes: Sequence[str] | None,
    problem: "Problem",
) -> Iterator[Outcome]:
    """One case on every engine; the reference of a dtype is made once."""
    wanted = {engine: dtypes or dtypes_of(engine) for engine in compiled}
    for dtype in DTYPES:
        engines = [engine for engine in compiled if dtype in wanted[engine]]
        if not engines:
            continue
        here = problem.to(DTYPES[dtype])
        expected = tolerance.reference(here.call, here.d_out, here.d_lse)
        for engine in engines:
            try:
                device = device_named("cuda" if engine == "triton" else "cpu")
                values = here.to(DTYPES[dtype], device).run(compiled[engine])
            except MaskUnsupportedError as error:
                yield Outcome(spec, case, engine, dtype, refused=str(error))
                continue
            report = tolerance.compare({name: x.cpu() for name, x in values.items()}, expected)
            yield Outcome(spec, case, engine, dtype, report)


@dataclass(frozen=True, eq=False)
class Problem:
    """A call and the upstream gradients of its output and log-sum-exp."""

    call: Call
    d_out: Tensor
    d_lse: Tensor

    def to(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> "Problem":
        """The same problem, q, k, v and d_out rounded to a dtype, on a device."""
        call = self.call
        q, k, v, d_out = (x.to(device, dtype) for x in (call.q, call.k, call.v, self.d_out))
        moved = {name: table.to(device) for name, table in call.inputs.items()}
        exact = torch.float64 if dtype is torch.float64 else torch.float32
        return Problem(replace(call, q=q, k=k, v=v, inputs=moved), d_out, self.d_lse.to(device, exact))

    def named(self) -> dict[str, Any]:
        """Inputs, axis sizes, parameters and offsets as a call takes them."""
        sizes = self.call.sizes
        scalars = {**sizes.axis, **sizes.parameter, "q_offset": sizes.q_offset, "k_offset": sizes.k_offset}
        return {**scalars, **self.call.inputs}

    def run(self, attention: Attention) -> dict[str, Tensor]:
        """Output, lse, dq, dk and dv of an engine, by the public interface."""
        q, k, v = (x.detach().requires_grad_() for x in (self.call.q, self.call.k, self.call.v))
        out, lse = attention(q, k, v, return_lse=True, **self.named())
        gradients = torch.autograd.grad((out, lse), (q, k, v), (self.d_out, self.d_lse))
        return dict(zip(tolerance.QUANTITIES, (out.detach(), lse.detach(), *gradients), strict=True))


def random_problem(spec: MaskSpec, sizes: Sizes, inputs: Mapping[str, NDArray[Any]], dim: int, seed: int) -> Problem:
    """Normal q, k, v and upstream gradients in float32 on the CPU; the scale is the usual 1 / sqrt(dim)."""
    generator = torch.Generator().manual_seed(seed)

    def normal(heads: int, length: int, *last: int) -> Tensor:
        return torch.randn(sizes.batch, heads, length, *last, generator=generator)

    q = normal(sizes.heads, sizes.q_len, dim)
    k, v = (normal(sizes.kv_heads, sizes.k_len, dim) for _ in range(2))
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    call = Call(spec, sizes, default_scale(q), q, k, v, tensors)
    return Problem(call, normal(sizes.heads, sizes.q_len, dim), normal(sizes.heads, sizes.q_len))


def median_seconds(problem: Problem, attention: Attention, budget: float = 1.0) -> tuple[float, float]:
    """Median time of a forward and of a backward pass; as many runs as fit into about `budget` seconds, at least 3."""
    call = problem.call
    cuda = call.q.device.type == "cuda"
    forward: list[float] = []
    backward: list[float] = []
    begin = perf_counter()
    while len(forward) < 3 or (perf_counter() - begin < budget and len(forward) < 50):
        marks = [_now(cuda)]
        q, k, v = (x.detach().requires_grad_() for x in (call.q, call.k, call.v))
        out, lse = attention(q, k, v, return_lse=True, **problem.named())
        marks.append(_now(cuda))
        torch.autograd.grad((out, lse), (q, k, v), (problem.d_out, problem.d_lse))
        marks.append(_now(cuda))
        forward.append(marks[1] - marks[0])
        backward.append(marks[2] - marks[1])
    return median(forward), median(backward)


def _now(cuda: bool) -> float:
    if cuda:
        torch.cuda.synchronize()
    return perf_counter()
