"""Speed of the generated kernels on dense patterns, beside FlexAttention and scaled_dot_product_attention, on one GPU.

    benchmarks/gpu.sh dense [--json FILE] [--lengths 8192 32768] [--dims 64 128] [--only PATTERN ...] [--budget 1.5]

Causal, a window of 1024, a prefix of a quarter, eight packed documents, capped scores and ALiBi; bfloat16, one batch
row, 2048 / D heads, forward and backward. Candidates, in the same process:

    maskc    the examples through maskc.compile_attention, as they stand
    flex     torch.compile(flex_attention, dynamic=False) with create_block_mask, made beforehand
    flash, cudnn    scaled_dot_product_attention(is_causal=True) with that backend; causal only

A round is one forward with leaves that need gradients and one backward by torch.autograd.grad; candidates take turns
round by round until `--budget` seconds are over, at least 3 times. Each part is timed by CUDA events. Before every
round a buffer larger than the L2 cache is overwritten, which empties that and gives the host a lead, so that the events
hold the device's time and not that of launching; the host's own time is in `host_ms`. The first run of a candidate,
with compiling, is in `first_seconds`; making FlexAttention's block mask in `block_mask_seconds`.

TFLOP/s count live pairs only: 4 * pairs * D per head forward and 10 * pairs * D backward, for every candidate, whatever
it computes. maskc's output and gradients are compared with FlexAttention's: `differs` is the largest difference over
the largest entry.

A candidate that fails is recorded with its error and the run goes on, in a new process where the device failed or did
not answer; cases for which `--seconds` leave no time are recorded as such. All of it goes to
benchmarks/results/gpu-dense-DEVICE.json, with device, driver and versions. The exit code is 1 where maskc failed or
differs by more than 3 in 100. `--device cpu --sizes tiny` tries the same on the CPU with the `tiled` engine, host
times, and FlexAttention not compiled and forward only; such figures mean nothing.
"""

import argparse
import statistics as averages
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch
from gpu_machine import ROOT, lacks, machine, one_line, parser, results_path, write
from gpu_worker import LostError, Worker, is_fatal
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

import maskc
from maskc.analysis.plan import statistics

WIDTH = 2048  # heads * D
LENGTHS, DIMS = (8192, 32768), (64, 128)
TINY_LENGTHS, TINY_DIMS = (96,), (16,)
WINDOW, CAP = 1024, 50.0
DOCUMENTS = (0.04, 0.06, 0.08, 0.1, 0.12, 0.15, 0.2, 0.25)  # shares of the sequence
AGREEMENT = 0.03
SCRATCH = 2**30  # bytes
LEAST_ROUNDS, MOST_ROUNDS = 3, 100
UNIT_LIMIT = 100.0  # seconds that a case may take
GRACE = 40.0  # seconds that a case has after the last one began
PATTERNS = ("causal", "window", "prefix", "documents", "softcap", "alibi")
OUTPUTS = ("out", "dq", "dk", "dv")

Run = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Pattern:
    """A mask of examples/, what a call gives it, and the same as FlexAttention takes it: mask_mod and score_mod."""

    name: str
    spec: str
    given: Mapping[str, Any]
    mask_mod: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    score_mod: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor] | None = None


@dataclass
class Entry:
    """One candidate at one case. Times are medians in ms; tflops from live pairs; error: why there are none."""

    pattern: str
    length: int
    dim: int
    heads: int
    candidate: str
    live_pairs: int = 0  # over all heads
    forward_ms: float | None = None
    backward_ms: float | None = None
    forward_tflops: float | None = None
    backward_tflops: float | None = None
    host_ms: float | None = None
    rounds: int = 0
    first_seconds: float | None = None
    block_mask_seconds: float | None = None
    differs: dict[str, float] = field(default_factory=dict)
    error: str | None = None

    def __str__(self) -> str:
        title = f"{self.pattern:10} {self.length:6} D={self.dim:<4}{self.candidate:6}"
        if self.error is not None:
            return f"{title} {self.error}"
        passes = ((self.forward_ms, self.forward_tflops), (self.backward_ms, self.backward_tflops))
        shown = "".join(f" {ms:10.3f} ms {rate:7.1f} TFLOP/s" for ms, rate in passes if ms is not None)
        off = f"  differs by {max(self.differs.values()):.4f}" if self.differs else ""
        return f"{title}{shown}  {self.rounds} rounds{off}"


def patterns(length: int, heads: int, device: str) -> list[Pattern]:
    """All patterns at one length."""
    prefix = length // 4
    bounds = torch.tensor(DOCUMENTS, dtype=torch.float64).cumsum(0)[:-1] * length
    doc = torch.bucketize(torch.arange(length, dtype=torch.float64), bounds, right=True).to(device)
    slope = (2.0 ** (-8 * torch.arange(1, heads + 1, dtype=torch.float64) / heads)).float().to(device)

    def causal(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return q >= k

    def window(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q >= k) & (q - k < WINDOW)

    def prefix_lm(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k < prefix) | (k <= q)

    def documents(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q >= k) & (doc[q] == doc[k])

    def capped(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return CAP * torch.tanh(score / CAP)

    def biased(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return score - slope[h] * (q - k)

    return [
        Pattern("causal", "causal", {}, causal),
        Pattern("window", "sliding_window", {"window": WINDOW}, window),
        Pattern("prefix", "prefix_lm", {"prefix": prefix}, prefix_lm),
        Pattern("documents", "documents", {"doc": doc[None]}, documents),
        Pattern("softcap", "softcap", {"cap": CAP}, causal, capped),
        Pattern("alibi", "alibi", {}, causal, biased),
    ]


def spec_path(pattern: Pattern) -> str:
    """Where the pattern's mask stands."""
    return str(ROOT / "examples" / f"{pattern.spec}.mask")


def live_pairs(pattern: Pattern, length: int, heads: int) -> int:
    """Kept pairs over all heads of one batch row."""
    attention = maskc.compile_attention(spec_path(pattern))
    given: dict[str, Any] = {name: x.cpu() if isinstance(x, Tensor) else x for name, x in pattern.given.items()}
    plan = attention.plan(length, tile=(128, 128), batch=1, heads=heads, kv_heads=heads, **given)
    found = statistics(plan, {name: x.numpy() for name, x in given.items() if isinstance(x, Tensor)})
    return found.live_pairs * heads // found.heads


def with_maskc(pattern: Pattern, entry: Entry, device: str) -> Run:
    """The generated kernels."""
    attention = maskc.compile_attention(spec_path(pattern), engine="triton" if device == "cuda" else "tiled")
    given = dict(pattern.given)
    return lambda q, k, v: attention(q, k, v, **given)


def with_flex(pattern: Pattern, entry: Entry, device: str) -> Run:
    """FlexAttention, compiled for this length alone; on a CPU as it is, without gradients."""
    begin = time.perf_counter()
    block_mask = create_block_mask(pattern.mask_mod, None, None, entry.length, entry.length, device=device)
    synchronize(device)
    entry.block_mask_seconds = time.perf_counter() - begin
    if device == "cuda":
        call = torch.compile(flex_attention, dynamic=False)
        return lambda q, k, v: call(q, k, v, score_mod=pattern.score_mod, block_mask=block_mask)

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.detach() for x in (q, k, v))
        return flex_attention(q, k, v, score_mod=pattern.score_mod, block_mask=block_mask)

    return plain


def with_sdpa(backend: SDPBackend, pattern: Pattern, entry: Entry, device: str) -> Run:
    """torch's own causal attention by one of its backends; on a CPU by the one it has."""

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel([backend]) if device == "cuda" else nullcontext():
            return scaled_dot_product_attention(q, k, v, is_causal=True)

    return call


CANDIDATES: dict[str, Callable[[Pattern, Entry, str], Run]] = {
    "maskc": with_maskc,
    "flex": with_flex,
    "flash": partial(with_sdpa, SDPBackend.FLASH_ATTENTION),
    "cudnn": partial(with_sdpa, SDPBackend.CUDNN_ATTENTION),
}


class Clock:
    """Marks on the device's time line: CUDA events, or the host's clock on a CPU."""

    def __init__(self, device: str):
        self.device = device
        self.scratch = torch.empty(SCRATCH if device == "cuda" else 1, dtype=torch.int8, device=device)

    def lead(self) -> None:
        """Work before what is timed; it also empties the L2 cache."""
        for _ in range(6):
            self.scratch.zero_()

    def mark(self) -> Any:
        """Now, on the device's time line."""
        if self.device != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def ms(self, one: Any, other: Any) -> float:
        """Milliseconds between two marks that the device has passed."""
        return float(one.elapsed_time(other)) if self.device == "cuda" else 1e3 * (other - one)


def synchronize(device: str) -> None:
    """Waits for the device, where that is needed."""
    if device == "cuda":
        torch.cuda.synchronize()


@dataclass
class Times:
    """Milliseconds of every round."""

    forward: list[float] = field(default_factory=list)
    backward: list[float] = field(default_factory=list)
    host: list[float] = field(default_factory=list)


def once(run: Run, leaves: Sequence[Tensor], d_out: Tensor) -> dict[str, Tensor]:
    """Output and gradients; the output alone where a candidate has no gradients."""
    out = run(*leaves)
    gradients = torch.autograd.grad(out, leaves, d_out) if out.requires_grad else ()
    return dict(zip(OUTPUTS, (out.detach(), *gradients), strict=False))


def timed_round(run: Run, leaves: Sequence[Tensor], d_out: Tensor, clock: Clock, times: Times) -> None:
    """One forward and one backward."""
    clock.lead()
    begin = time.perf_counter()
    marks = [clock.mark()]
    out = run(*leaves)
    marks.append(clock.mark())
    if out.requires_grad:
        torch.autograd.grad(out, leaves, d_out)
        marks.append(clock.mark())
    times.host.append(1e3 * (time.perf_counter() - begin))
    synchronize(clock.device)
    times.forward.append(clock.ms(marks[0], marks[1]))
    if len(marks) > 2:
        times.backward.append(clock.ms(marks[1], marks[2]))


def started(
    pattern: Pattern, entry: Entry, tensors: Sequence[Tensor], device: str
) -> tuple[Run | None, dict[str, Tensor], bool]:
    """A candidate that ran once, and what it found; None, its error in the entry, and whether the device failed."""
    begin = time.perf_counter()
    try:
        run = CANDIDATES[entry.candidate](pattern, entry, device)
        values = once(run, tensors[:3], tensors[3])
        synchronize(device)
    except Exception as error:  # compilers and drivers raise what they like
        entry.error = one_line(error)
        return None, {}, is_fatal(error)
    entry.first_seconds = time.perf_counter() - begin
    return run, values, False


def measure(
    runs: Mapping[str, tuple[Entry, Run]], tensors: Sequence[Tensor], clock: Clock, budget: float
) -> tuple[dict[str, Times], bool]:
    """Rounds in turn until `budget` seconds are over, the first of them not counted; and whether the device failed."""
    found: dict[str, Times] = {name: Times() for name in runs}
    end = time.perf_counter() + budget
    for number in range(-1, MOST_ROUNDS):
        if number >= LEAST_ROUNDS and time.perf_counter() > end:
            break
        for name, (entry, run) in runs.items():
            if entry.error is not None:
                continue
            try:
                timed_round(run, tensors[:3], tensors[3], clock, Times() if number < 0 else found[name])
            except Exception as error:  # as above
                entry.error = one_line(error)
                if is_fatal(error):
                    return found, True
    return found, False


def fill(entry: Entry, times: Times) -> None:
    """Medians and rates."""
    work = 4e-9 * entry.live_pairs * entry.dim  # GFLOP of a forward; per ms they are TFLOP/s
    if times.forward:
        entry.forward_ms = averages.median(times.forward)
        entry.forward_tflops = work / entry.forward_ms
    if times.backward:
        entry.backward_ms = averages.median(times.backward)
        entry.backward_tflops = 2.5 * work / entry.backward_ms
    if times.host:
        entry.host_ms, entry.rounds = averages.median(times.host), len(times.host)


def differences(values: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> dict[str, float]:
    """The largest difference of each quantity over the other's largest entry; NaN counts as infinite."""
    found: dict[str, float] = {}
    for name in values.keys() & others.keys():
        one, other = values[name].float(), others[name].float()
        share = float((one - other).abs().max() / other.abs().max().clamp_min(1e-30))
        found[name] = share if share == share else float("inf")
    return found


@dataclass(frozen=True)
class Unit:
    """A case: a pattern by name, and the candidates to time on it."""

    pattern: str
    length: int
    dim: int
    heads: int
    candidates: tuple[str, ...]

    def failed(self, why: str) -> list[Entry]:
        """Entries that say why there is nothing."""
        return [Entry(self.pattern, self.length, self.dim, self.heads, name, error=why) for name in self.candidates]


@dataclass(frozen=True)
class Options:
    """What every process has to know. budget: seconds of timing per case."""

    device: str
    budget: float


@dataclass(frozen=True)
class Answer:
    """The entries of a unit. fatal: the device failed, and with it those that come after the first error."""

    entries: list[Entry]
    fatal: bool = False


def case(unit: Unit, options: Options) -> Answer:
    """All candidates on one pattern at one length and head dim."""
    device = options.device
    torch.compiler.reset()  # else compiled functions of earlier cases count against the limit of one function
    pattern = next(p for p in patterns(unit.length, unit.heads, device) if p.name == unit.pattern)
    pairs = live_pairs(pattern, unit.length, unit.heads)
    clock, tensors = Clock(device), drawn(unit, device)
    runs: dict[str, tuple[Entry, Run]] = {}
    values: dict[str, dict[str, Tensor]] = {}
    entries = [Entry(unit.pattern, unit.length, unit.dim, unit.heads, name, pairs) for name in unit.candidates]
    for entry in entries:
        run, values[entry.candidate], fatal = started(pattern, entry, tensors, device)
        if run is not None:
            runs[entry.candidate] = (entry, run)
        if fatal:
            return Answer(entries, fatal=True)
    if {"maskc", "flex"} <= runs.keys():
        runs["maskc"][0].differs = differences(values["maskc"], values["flex"])
    values.clear()
    times, fatal = measure(runs, tensors, clock, options.budget)
    for name, found in times.items():
        fill(runs[name][0], found)
    return Answer(entries, fatal)


def drawn(unit: Unit, device: str) -> list[Tensor]:
    """q, k, v, which need gradients, and the gradient of the output: [1, heads, length, dim] in bfloat16."""
    generator = torch.Generator(device).manual_seed(unit.length + unit.dim)
    shape = (1, unit.heads, unit.length, unit.dim)
    *leaves, d_out = (torch.randn(shape, generator=generator, device=device).bfloat16() for _ in range(4))
    return [*(x.requires_grad_() for x in leaves), d_out]


def work(unit: Unit, options: Options) -> Iterator[Answer]:
    """`case`, whatever happens in it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield case(unit, options)
    except Exception as error:  # a report has to name what failed and go on
        yield Answer(unit.failed(one_line(error)), is_fatal(error))


def entries_of(unit: Unit, crew: "Crew") -> list[Entry]:
    """The entries of a unit. Where a candidate brought the device down, the others get a process of their own."""
    answer = crew.answer(unit)
    broken = next((e for e in answer.entries if e.error is not None), None)
    if not answer.fatal or broken is None or len(answer.entries) == 1:
        return answer.entries
    rest = tuple(name for name in unit.candidates if name != broken.candidate)
    return [broken, *entries_of(replace(unit, candidates=rest), crew)]


class Crew:
    """A process for all units as long as it lives, then another. own: no process but this one."""

    def __init__(self, options: Options, end: float, *, own: bool):
        self.options, self.end, self.own = options, end, own
        self.worker: Worker | None = None

    def answer(self, unit: Unit) -> Answer:
        """What became of a unit."""
        if time.monotonic() > self.end:
            return Answer(unit.failed("not run: out of time"))
        if self.own:
            return next(work(unit, self.options))
        if self.worker is None:
            self.worker = Worker(work, self.options)
        try:
            (answer,) = self.worker.answers(unit, UNIT_LIMIT, self.end + GRACE)
            assert isinstance(answer, Answer)
        except LostError as error:
            self.stop()
            answer = Answer(unit.failed(str(error)))
        return answer

    def stop(self) -> None:
        """Ends the process."""
        if self.worker is not None:
            self.worker.stop()
            self.worker = None


def units(lengths: Sequence[int], dims: Sequence[int], heads: int | None, only: Sequence[str]) -> Iterator[Unit]:
    """All cases, the longest first. heads: as many as make 2048 columns where None."""
    for length in sorted(lengths, reverse=True):
        for dim in sorted(dims, reverse=True):
            for name in only or PATTERNS:
                candidates = tuple(CANDIDATES) if name == "causal" else ("maskc", "flex")
                yield Unit(name, length, dim, heads or max(1, WIDTH // dim), candidates)


def passed(entries: Sequence[Entry]) -> bool:
    """Whether maskc ran everywhere and agrees with FlexAttention."""
    own = [e for e in entries if e.candidate == "maskc"]
    return bool(own) and all(e.error is None and max(e.differs.values(), default=0.0) <= AGREEMENT for e in own)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    options = parser(__doc__)
    options.add_argument("--lengths", type=int, nargs="+")
    options.add_argument("--dims", type=int, nargs="+")
    options.add_argument("--only", nargs="+", choices=PATTERNS, default=[], metavar="PATTERN")
    options.add_argument("--budget", type=float, default=1.5, help="seconds of timing per case")
    return options.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Times all of it; 1 where maskc failed or disagrees."""
    chosen = parsed(arguments)
    if lacks(chosen.device):
        return 2
    tiny = chosen.sizes == "tiny"
    lengths, dims = chosen.lengths or (TINY_LENGTHS if tiny else LENGTHS), chosen.dims or (TINY_DIMS if tiny else DIMS)
    where = machine(chosen.device)
    path = chosen.json or results_path("gpu-dense", where)
    begin = time.monotonic()
    crew = Crew(Options(chosen.device, chosen.budget), begin + chosen.seconds, own=chosen.device == "cpu")
    found: list[Entry] = []
    for unit in units(lengths, dims, 2 if tiny else None, chosen.only):
        entries = entries_of(unit, crew)
        print("\n".join(map(str, entries)), flush=True)
        found += entries
        report = {**where, "dtype": "bfloat16", "batch": 1, "budget_seconds": chosen.budget}
        write(path, {**report, "seconds": round(time.monotonic() - begin), "entries": [asdict(e) for e in found]})
    crew.stop()
    print(path)
    return 0 if passed(found) else 1


if __name__ == "__main__":
    sys.exit(main())
