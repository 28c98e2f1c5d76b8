"""Every engine of this machine against `dense` in float64: output, log-sum-exp and gradients, over a list of sizes."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf, isnan
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskc import prologue, samples
from maskc.compiler import compile_attention
from maskc.diagnostics import MaskInputError, MaskUnsupportedError
from maskc.expr import Scalar, Side, Type
from maskc.features import reads_scores
from maskc.grids import grid_length, open_axis, real_keys
from maskc.proofs import witness
from maskc.runtime import inputs, layouts, tolerance
from maskc.runtime.attention import Attention
from maskc.runtime.inputs import Call
from maskc.runtime.tolerance import Judgement, Report
from maskc.sizes import parameters, resolve
from maskc.spec import Form, MaskSpec, Sizes

LENGTHS = (1, 2, 17, 63, 64, 65, 130, 257)
GRIDS = {
    1: tuple((length,) for length in LENGTHS),
    2: ((1, 1), (2, 5), (7, 7), (13, 17), (3, 65)),
    3: ((1, 1, 1), (2, 1, 5), (3, 4, 5), (2, 7, 7), (5, 3, 13)),
}
MANY_AXES = ((1,), (2, 3), (3, 1, 4), (5, 2), (4, 3, 5))  # in turn, where there are more than 3
RECTANGLES = ((1, 65, 64), (63, 130, 67), (130, 17, 0))  # queries, keys, position of the first query
DTYPES = {name: getattr(torch, name) for name in ("float64", "float32", "float16", "bfloat16")}
CPU_ENGINES = ("tiled", "interpret", "dense")
LARGE = 100  # tokens from which fewer heads do


@dataclass(frozen=True)
class Case:
    """One call: lengths, the position of the first query (None: not said), and axis sizes and parameters by name.

    grouped: query heads and KV heads; None: few. layout: of q, k and v, as `layouts` names them.
    """

    q_len: int
    k_len: int
    q_offset: int | None = None
    given: tuple[tuple[str, Scalar], ...] = ()
    grouped: tuple[int, int] | None = None
    layout: str = "plain"

    @property
    def heads(self) -> tuple[int, int, int]:
        """Batch rows, query heads and KV heads."""
        batch, *few = (1, 2, 1) if max(self.q_len, self.k_len) >= LARGE else (2, 4, 2)
        return (batch, *(self.grouped or few))

    def sizes(self, spec: MaskSpec, dim: int = samples.FREE_EXTENT) -> Sizes:
        """The sizes of the call; dim: width of a row of q and k. Raises `MaskInputError` where the spec does not accept
        them.
        """
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
            free=samples.free_extents(spec, width=dim),
        )

    def __str__(self) -> str:
        lengths = f"{self.q_len}" if self.q_len == self.k_len else f"{self.q_len} x {self.k_len}"
        offset = "" if self.q_offset is None else f" from {self.q_offset}"
        layout = "" if self.layout == "plain" else f" {self.layout}"
        return lengths + offset + "".join(f" {name}={value}" for name, value in self.given) + layout


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


def cases(
    spec: MaskSpec,
    given: Mapping[str, Scalar],
    grouped: tuple[int, int] | None = None,
    strides: str = "plain",
) -> list[Case]:
    """The calls to look at: the spec's own parameter values, then smaller ones that bite at these lengths.

    grouped: query heads and KV heads. strides: a layout, or `odd` for all but the plain one in turn.
    """
    turns = layouts.ODD if strides == "odd" else (strides,)
    return [
        replace(case, grouped=grouped, layout=turns[number % len(turns)])
        for number, case in enumerate(_sizes_of(spec, given))
    ]


def _sizes_of(spec: MaskSpec, given: Mapping[str, Scalar]) -> list[Case]:
    found: list[Case] = []
    for chosen in parameter_sets(spec, given):
        values = tuple(chosen.items())
        for number, axes in enumerate(axis_sets(spec)):
            q_len, k_len = (grid_length(spec, side, axes, parameters(spec, chosen)) for side in Side)
            other = LENGTHS[(2 + number) % len(LENGTHS)]  # of a side that has no axes
            lengths = (other if q_len is None else q_len, other if k_len is None else k_len)
            found.append(Case(*lengths, None, (*axes.items(), *values)))
        if not spec.axis_names:
            found += [Case(length, length, None, values) for length in LENGTHS]
            found += [Case(q_len, k_len, offset, values) for q_len, k_len, offset in RECTANGLES]
    return found


def axis_sets(spec: MaskSpec) -> list[dict[str, int]]:
    """Sizes for all axes of a spec but those that every document has for itself."""
    names = [name for name in spec.axis_names if name != open_axis(spec)]
    if not spec.axis_names:
        return []
    shapes = GRIDS.get(len(names)) or [tuple(row[i % len(row)] for i in range(len(names))) for row in MANY_AXES]
    return [dict(zip(names, shape, strict=True)) for shape in shapes]


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
    calls: Iterable[Case],
    *,
    engines: Sequence[str],
    dtypes: Sequence[str] | None = None,
    dim: int = 16,
    dim_v: int | None = None,
    seed: int = 0,
) -> Iterator[Outcome]:
    """Runs every call on every engine in every dtype. dim_v: head dim of v where it differs."""
    for number, case in enumerate(calls):
        try:
            sizes = case.sizes(spec, dim)
        except MaskInputError as error:
            yield Outcome(spec, case, "", "", refused=str(error))
            continue
        drawn = samples.draw(spec, sizes, np.random.default_rng([seed, number]))
        bound = prologue.bind(spec, drawn)
        tables = prologue.complete(bound, drawn)
        broken = [] if reads_scores(bound) else witness.refute(bound, sizes, tables)
        if broken:
            raise MaskInputError(f"mask {spec.name!r} at {case}: {broken[0]}")
        problem = random_problem(bound, sizes, tables, dim, seed + number, dim_v)
        yield from _judged(case, engines, dtypes, problem)


def _judged(case: Case, engines: Sequence[str], dtypes: Sequence[str] | None, problem: "Problem") -> Iterator[Outcome]:
    """One case on every engine; the reference of a dtype is made once."""
    spec = problem.spec
    wanted = {engine: dtypes or dtypes_of(engine) for engine in engines}
    for dtype in DTYPES:
        expected: tolerance.Reference | None = None
        for engine in (engine for engine in engines if dtype in wanted[engine]):
            here = problem.to(DTYPES[dtype]).laid_out(case.layout)
            try:
                device = device_named("cuda" if engine == "triton" else "cpu")
                there = here.to(DTYPES[dtype], device).laid_out(case.layout)
                values = there.run(compile_attention(spec, engine=engine))
            except MaskUnsupportedError as error:
                yield Outcome(spec, case, engine, dtype, refused=sentence(error))
                continue
            expected = expected or tolerance.reference(here.call, here.d_out, here.d_lse)
            report = tolerance.compare({name: x.cpu() for name, x in values.items()}, expected)
            yield Outcome(spec, case, engine, dtype, report)


def sentence(error: MaskUnsupportedError) -> str:
    """Why something cannot run, on one line."""
    return error.diagnostics[0].message


@dataclass(frozen=True, eq=False)
class Problem:
    """The tensors of a call, and the upstream gradients of its output and log-sum-exp.

    given: inputs, axis sizes, parameters and offsets by name, as a call takes them.
    """

    spec: MaskSpec
    q: Tensor
    k: Tensor
    v: Tensor
    given: Mapping[str, Any]
    d_out: Tensor
    d_lse: Tensor

    @cached_property
    def call(self) -> Call:
        """The call itself."""
        return inputs.prepare(self.spec, self.q, self.k, self.v, **_with_offsets(self.given))

    def to(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> "Problem":
        """The same problem, q, k, v and d_out rounded to a dtype, on a device."""
        q, k, v, d_out = (x.to(device, dtype) for x in (self.q, self.k, self.v, self.d_out))
        moved = {name: x.to(device) if isinstance(x, Tensor) else x for name, x in self.given.items()}
        exact = torch.float64 if dtype is torch.float64 else torch.float32
        return Problem(self.spec, q, k, v, moved, d_out, self.d_lse.to(device, exact))

    def laid_out(self, layout: str) -> "Problem":
        """The problem with its tensors in a layout; for some of them the values of k, v and d_out change."""
        q, k, v, d_out = layouts.laid_out(layout, self.q, self.k, self.v, self.d_out)
        return replace(self, q=q, k=k, v=v, d_out=d_out)

    def forward(self, attention: Attention) -> tuple[dict[str, Tensor], tolerance.Found]:
        """The leaves of a graph, and output, log-sum-exp and outputs of an engine, by the public interface."""
        leaves = tolerance.leaves_of(self.spec, {"q": self.q, "k": self.k, "v": self.v, **self.given})
        learned = {name: x for name, x in leaves.items() if name in self.given}
        tensors = (leaves["q"], leaves["k"], leaves["v"])
        options = {**self.given, **learned}
        if self.spec.normalizer.form is Form.SOFTMAX:
            return leaves, attention(*tensors, return_lse=True, aux=True, **options)
        out, aux = attention(*tensors, aux=True, **options)
        return leaves, (out, None, aux)

    def run(self, attention: Attention) -> dict[str, Tensor]:
        """All values of an engine by name, as `tolerance` compares them."""
        leaves, found = self.forward(attention)
        return tolerance.quantities(found, leaves, self.d_out, self.d_lse)


def _with_offsets(given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `prepare` behind q, k and v."""
    offsets = {name: given[name] for name in ("q_offset", "k_offset") if name in given}
    return {"given": {name: x for name, x in given.items() if name not in offsets}, **offsets}


def random_problem(
    spec: MaskSpec, sizes: Sizes, tables: Mapping[str, NDArray[Any]], dim: int, seed: int, dim_v: int | None = None
) -> Problem:
    """Normal q, k, v and upstream gradients in float32 on the CPU. tables: at least the inputs that a call gives.

    dim_v: head dim of v where it differs.
    """
    dim_v = dim if dim_v is None else dim_v
    generator = torch.Generator().manual_seed(seed)

    def normal(heads: int, length: int, *last: int) -> Tensor:
        return torch.randn(sizes.batch, heads, length, *last, generator=generator)

    q = normal(sizes.heads, sizes.q_len, dim)
    k, v = (normal(sizes.kv_heads, real_keys(spec, sizes), width) for width in (dim, dim_v))
    tensors = {i.name: torch.from_numpy(np.array(tables[i.name])) for i in spec.given}
    offsets = {"q_offset": sizes.q_offset, "k_offset": sizes.k_offset}
    given = {**sizes.axis, **sizes.parameter, **offsets, **tensors}
    d_out, d_lse = normal(sizes.heads, sizes.q_len, dim_v), normal(sizes.heads, sizes.q_len)
    return Problem(spec, q, k, v, given, d_out, d_lse)


def median_seconds(problem: Problem, attention: Attention, budget: float = 1.0) -> tuple[float, float]:
    """Median time of a forward and of a backward pass; as many runs as fit into about `budget` seconds, at least 3."""
    cuda = problem.q.device.type == "cuda"
    forward: list[float] = []
    backward: list[float] = []
    begin = perf_counter()
    while len(forward) < 3 or (perf_counter() - begin < budget and len(forward) < 50):
        marks = [_now(cuda)]
        leaves, found = problem.forward(attention)
        marks.append(_now(cuda))
        tolerance.quantities(found, leaves, problem.d_out, problem.d_lse)
        marks.append(_now(cuda))
        forward.append(marks[1] - marks[0])
        backward.append(marks[2] - marks[1])
    return median(forward), median(backward)


def _now(cuda: bool) -> float:
    if cuda:
        torch.cuda.synchronize()
    return perf_counter()
