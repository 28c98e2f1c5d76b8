"""Every spec that generated kernels run, judged on the GPU through the public interface.

    benchmarks/gpu.sh tests [--json FILE] [--all] [--only NAME ...] [--seconds 400] [--workers N]

The masks of examples/ and examples/gallery/ that the engine does not refuse are called as `maskc.compile_attention`
gives them: output, log-sum-exp and the gradients of q, k and v, in bfloat16 and float16, with 6 query heads on 2 KV
heads and 2 batch rows (1 where there are many tokens). `runtime/tolerance.py` judges every quantity against `dense` in
float64, which runs on the CPU.

Sizes are those of `maskc verify` and a longer one: one token, ragged lengths, more queries than keys and the other way
round with offsets, small and odd grids. q, k and v are contiguous or, every other time, views of wider tensors; the
masks of examples/ are also called with views whose rows are not aligned and not dense, and with an offset per batch
row. At the longest size 5 equal calls must give equal bits.

The masks of examples/ run in both dtypes at head dims 16, 32, 64 and 128; those of the gallery at two dims per dtype,
which together are all four (all in both with --all). Units of mask, dtype and dim are dealt to processes that share the
GPU, since compiling takes most of the time. A process that the device or the kernel brought down, or that does not
answer, is replaced, and its unit fails. What `--seconds` leave no time for is listed as not run.

A line per case, a summary, and all of it as JSON. The exit code is 1 where anything missed, failed or was not run;
sizes that a spec refuses are counted, and are no miss. `--device cpu --sizes tiny` tries the same on the
`tiled` engine.
"""

import argparse
import os
import queue
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from gpu_machine import ROOT, machine, one_line, results_path, write
from gpu_worker import LostError, Worker, is_fatal
from torch import Tensor

import maskc
from maskc import features, prologue, samples
from maskc.check import check, load, read_source
from maskc.diagnostics import MaskInputError
from maskc.expr import Side
from maskc.grammar.parser import recover
from maskc.grids import grid_length
from maskc.runtime import tolerance, verify
from maskc.runtime.verify import Case, Outcome, Problem
from maskc.sizes import parameters
from maskc.spec import MaskSpec

DIMS = (16, 32, 64, 128)
DTYPES = ("bfloat16", "float16")
LENGTHS = (1, 65, 257)
LONG = 390  # tokens of the longest case; three tiles of 128 and a rest
LONG_GRID = (19, 23)
RUNS = 5
ROW_OFFSETS = (67, 31)
UNIT_LIMIT = 120.0  # seconds that a unit may take from one result to the next
GRACE = 30.0  # seconds that units have after the last one began
LEFT = "all that is left"
FAILED = ("missed", "error", "not run")


class Grouped(Case):
    """A case with 6 query heads on 2 KV heads."""

    @property
    def heads(self) -> tuple[int, int, int]:
        """Batch rows, query heads and KV heads."""
        return (1 if max(self.q_len, self.k_len) >= LONG else 2), 6, 2


@dataclass(frozen=True)
class Unit:
    """What one process does in one go: a mask of a file, at one head dim in one dtype."""

    path: str
    mask: str
    dtype: str
    dim: int

    @property
    def is_example(self) -> bool:
        """Whether the mask stands in examples/ itself."""
        return Path(self.path).parent.name == "examples"

    def __str__(self) -> str:
        return f"{Path(self.path).stem}:{self.mask} {self.dtype} D={self.dim}"


@dataclass(frozen=True)
class Result:
    """One line of the report. share: the largest error over its bound, of `quantity`; None where nothing ran.

    status: ok, missed, error, refused (sizes that the spec does not take) or not run. fatal: the process cannot go on.
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
        return f"{self.status:8}{self.unit} at {self.what}{worst}{'  ' if self.detail else ''}{self.detail}"


@dataclass(frozen=True)
class Options:
    """What every process has to know."""

    device: str
    tiny: bool

    @property
    def engine(self) -> str:
        """The engine that is judged."""
        return "triton" if self.device == "cuda" else "tiled"


def masks(engine: str) -> Iterator[tuple[Path, MaskSpec]]:
    """Every mask of the examples and the gallery that an engine runs, with its file."""
    for path in (*sorted(ROOT.glob("examples/*.mask")), *sorted(ROOT.glob("examples/gallery/*.mask"))):
        for spec in check(recover(read_source(path))[0]):
            if features.refusal(spec, "triton") is None and features.refusal(spec, engine) is None:
                yield path, spec


def units(options: Options, only: Sequence[str], every: bool) -> list[Unit]:
    """All units; those that come first look at every mask once."""
    rounds: list[list[Unit]] = [[] for _ in range(len(DTYPES) * len(DIMS))]
    for number, (path, spec) in enumerate(masks(options.engine)):
        if only and not {path.stem, spec.name} & set(only):
            continue
        pairs = [(dtype, DIMS[(2 + turn + number) % 4]) for turn in range(4) for dtype in DTYPES]
        whole = every or path.parent.name == "examples"
        chosen = [pairs[i] for i in (range(8) if whole else (0, 3, 4, 7))]
        for turn, (dtype, dim) in enumerate(chosen[:1] if options.tiny else chosen):
            rounds[turn].append(Unit(str(path), spec.name, dtype, 16 if options.tiny else dim))
    return [unit for turn in rounds for unit in turn]


def cases(spec: MaskSpec, tiny: bool) -> list[Case]:
    """Sizes to judge at, the longest one last."""
    wanted = {(n, n) for n in LENGTHS} | {(q, k) for q, k, _ in verify.RECTANGLES}
    small = tuple(verify.parameter_sets(spec, {})[-1].items())
    found = [c for c in verify.cases(spec, {}) if set(small) <= set(c.given)]
    if not spec.axis_names:
        found = [c for c in found if (c.q_len, c.k_len) in wanted] + [Case(LONG, LONG, None, ())]
    elif len(spec.axis_names) == 2 and not spec.parameters:
        found += _grid(spec)
    found = [Grouped(c.q_len, c.k_len, c.q_offset, c.given) for c in found]
    return sorted(found, key=lambda c: c.q_len * c.k_len)[: 5 if tiny else None]


def _grid(spec: MaskSpec) -> list[Case]:
    """A longer grid of two axes, where both sides of the mask have both."""
    axes = verify.axis_sets(spec)
    if not axes or len(axes[0]) != 2:
        return []
    sizes = dict(zip(axes[0], LONG_GRID, strict=True))
    q_len, k_len = (grid_length(spec, side, sizes, parameters(spec, {})) for side in Side)
    return [] if q_len is None or k_len is None else [Case(q_len, k_len, None, tuple(sizes.items()))]


def accepted(spec: MaskSpec, found: Sequence[Case], dim: int) -> tuple[list[Case], list[tuple[Case, str]]]:
    """The cases whose sizes the spec takes, and the others with its reason."""
    taken: list[Case] = []
    refused: list[tuple[Case, str]] = []
    for case in found:
        try:
            case.sizes(spec, dim)
            taken.append(case)
        except MaskInputError as error:
            refused.append((case, one_line(error)))
    return taken, refused


def problem_of(spec: MaskSpec, case: Case, dim: int) -> Problem:
    """The tensors of a case, in float32 on the CPU."""
    sizes = case.sizes(spec, dim)
    drawn = samples.draw(spec, sizes, np.random.default_rng(dim))
    bound = prologue.bind(spec, drawn)
    return verify.random_problem(bound, sizes, prologue.complete(bound, drawn), dim, seed=case.q_len)


def wider(x: Tensor) -> Tensor:
    """The same values as a view of [batch, seq, head, 2 * dim]; rows stay aligned. Between them lies NaN."""
    batch, heads, length, dim = x.shape
    buffer = x.new_full((batch, length, heads, 2 * dim), float("nan"))
    buffer[..., :dim] = x.transpose(1, 2)
    return buffer[..., :dim].transpose(1, 2)


def unaligned(x: Tensor) -> Tensor:
    """The same values as a view whose rows begin at odd places and are not dense. Between them lies NaN."""
    batch, heads, length, dim = x.shape
    buffer = x.new_full((batch, heads, length, 2 * dim + 1), float("nan"))
    buffer[..., 1::2] = x
    return buffer[..., 1::2]


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {"contiguous": lambda x: x, "wider": wider, "unaligned": unaligned}


def variants(unit: Unit, spec: MaskSpec, found: Sequence[Case]) -> Iterator[tuple[Case, str, bool]]:
    """The calls of a unit: case, layout of q, k and v, and whether every batch row has an offset of its own."""
    for number, case in enumerate(found):
        yield case, ("contiguous", "wider")[number % 2], False
    if unit.is_example and found:
        yield found[-1], "unaligned", False
        for case in found:
            if case.q_offset == ROW_OFFSETS[0]:
                yield case, "contiguous", True


def results(unit: Unit, options: Options) -> Iterator[Result]:
    """Everything about one unit."""
    try:
        yield from _results(unit, options)
    except Exception as error:  # as in `guarded`
        yield Result(unit, LEFT, "error", detail=one_line(error), fatal=is_fatal(error))


def _results(unit: Unit, options: Options) -> Iterator[Result]:
    torch.set_num_threads(1)  # the reference; there is a process per core
    spec = load(unit.path, unit.mask)
    found, refused = accepted(spec, cases(spec, options.tiny), unit.dim)
    yield from (Result(unit, str(case), "refused", detail=why) for case, why in refused)
    for case, layout, per_row in variants(unit, spec, found):
        what = f"{case}, {layout}{', an offset per row' if per_row else ''}"
        yield guarded(unit, what, partial(judge, unit, spec, options, case, layout, per_row))
    if found:
        what = f"{found[-1]}, {RUNS} times"
        yield guarded(unit, what, partial(repeat, unit, spec, options, found[-1]))


def guarded(unit: Unit, what: str, run: Callable[[], tuple[str, float | None, str, str]]) -> Result:
    """The result of a run, whatever happens in it: a report has to name what failed and go on."""
    begin = time.perf_counter()
    try:
        found = Result(unit, what, *run())
    except Exception as error:  # compilers and drivers raise what they like
        found = Result(unit, what, "error", detail=one_line(error), fatal=is_fatal(error))
    return replace(found, seconds=round(time.perf_counter() - begin, 3))


def judge(
    unit: Unit, spec: MaskSpec, options: Options, case: Case, layout: str, per_row: bool
) -> tuple[str, float, str, str]:
    """Status, largest share of a bound, whose, and all misses."""
    problem = problem_of(spec, case, unit.dim)
    if per_row:
        problem = replace(problem, given={**problem.given, "q_offset": torch.tensor(ROW_OFFSETS)})
    here = problem.to(verify.DTYPES[unit.dtype])
    there = here.to(verify.DTYPES[unit.dtype], options.device)
    view = LAYOUTS[layout]
    attention = maskc.compile_attention(problem.spec, engine=options.engine)  # with the constant inputs of the case
    there = replace(there, q=view(there.q), k=view(there.k), v=view(there.v))
    values = {name: x.cpu() for name, x in there.run(attention).items()}
    report = tolerance.compare(values, tolerance.reference(here.call, here.d_out, here.d_lse))
    share, quantity = Outcome(spec, case, options.engine, unit.dtype, report).worst
    misses = "; ".join(str(j) for j in report.judgements if not j.passed)
    return "ok" if report.passed else "missed", share, quantity, misses


def repeat(unit: Unit, spec: MaskSpec, options: Options, case: Case) -> tuple[str, None, str, str]:
    """Whether equal calls give equal bits."""
    problem = problem_of(spec, case, unit.dim).to(verify.DTYPES[unit.dtype], options.device)
    attention = maskc.compile_attention(problem.spec, engine=options.engine)
    first, *others = ({name: bits(x) for name, x in problem.run(attention).items()} for _ in range(RUNS))
    differing = [name for name, x in first.items() if not all(torch.equal(x, other[name]) for other in others)]
    return "missed" if differing else "ok", None, "", f"bits differ: {', '.join(differing)}" if differing else ""


def bits(x: Tensor) -> Tensor:
    """The bits of a tensor as integers, so that NaN equals itself."""
    return x.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def tend(waiting: "queue.Queue[Unit]", found: "queue.Queue[Result | None]", options: Options, end: float) -> None:
    """A thread with a process: takes units until there are none; None when it is done. end: by time.monotonic."""
    worker: Worker | None = None
    while True:
        try:
            unit = waiting.get_nowait()
        except queue.Empty:
            break
        if time.monotonic() > end:
            found.put(Result(unit, "all sizes", "not run", detail="out of time"))
            continue
        if worker is None or not worker.alive:
            worker = Worker(results, options)
        try:
            for result in worker.answers(unit, UNIT_LIMIT, end + GRACE):
                found.put(result)
        except LostError as error:
            found.put(Result(unit, LEFT, "error", detail=str(error)))
    if worker is not None:
        worker.stop()
    found.put(None)


def run(todo: Sequence[Unit], options: Options, workers: int, seconds: float) -> Iterator[Result]:
    """The results of all units as they come. workers: processes; 0: this one."""
    end = time.monotonic() + seconds
    if workers == 0:
        for unit in todo:
            yield from results(unit, options)
        return
    waiting: queue.Queue[Unit] = queue.Queue()
    found: queue.Queue[Result | None] = queue.Queue()
    for unit in todo:
        waiting.put(unit)
    for _ in range(workers):
        threading.Thread(target=tend, args=(waiting, found, options, end), daemon=True).start()
    left = workers
    while left:
        result = found.get()
        if result is None:
            left -= 1
        else:
            yield result


def summary(found: Sequence[Result], seconds: float) -> str:
    """How many of each kind, where the errors are largest, and everything that failed."""
    counts = Counter(r.status for r in found)
    masks_seen = {(r.unit.path, r.unit.mask) for r in found}
    lines = [f"  {r}" for r in found if r.status in FAILED]
    kinds = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    lines.append(f"{len(masks_seen)} masks, {len(found)} results in {seconds:.0f} s: {kinds}")
    judged = [r for r in found if r.share is not None]
    if judged:
        lines.append(f"largest: {max(judged, key=lambda r: r.share or 0.0)}")
    return "\n".join(lines)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--sizes", choices=("full", "tiny"), default="full")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="files or masks")
    parser.add_argument("--all", action="store_true", help="the gallery, too, at every head dim in every dtype")
    parser.add_argument("--seconds", type=float, default=400.0, help="no unit begins later")
    parser.add_argument("--workers", type=int, default=min(16, os.cpu_count() or 1), help="processes; 0: this one")
    parser.add_argument("--json", type=Path, help="by default in benchmarks/results")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs all of it; 1 where anything failed."""
    chosen = parsed(arguments)
    if chosen.device == "cuda" and not torch.cuda.is_available():
        print("torch finds no GPU here; --device cpu tries the command on the CPU", file=sys.stderr)
        return 2
    options = Options(chosen.device, chosen.sizes == "tiny")
    where = machine(chosen.device)
    begin = time.monotonic()
    found: list[Result] = []
    for result in run(units(options, chosen.only, chosen.all), options, chosen.workers, chosen.seconds):
        found.append(result)
        print(result, flush=True)
    seconds = time.monotonic() - begin
    print(summary(found, seconds))
    path = chosen.json or results_path("gpu-tests", where)
    counts = dict(Counter(r.status for r in found))
    entries = [asdict(r) | {"path": Path(r.unit.path).relative_to(ROOT).as_posix()} for r in found]
    for entry in entries:
        entry |= {name: entry["unit"][name] for name in ("mask", "dtype", "dim")}
        del entry["unit"], entry["fatal"]
    write(path, {**where, "engine": options.engine, "seconds": round(seconds), "counts": counts, "results": entries})
    print(path)
    return 1 if not found or any(r.status in FAILED for r in found) else 0


if __name__ == "__main__":
    sys.exit(main())
