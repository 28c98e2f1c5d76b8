"""Every spec that generated kernels run, judged on the GPU through the public interface.

    benchmarks/gpu.sh tests [--json FILE] [--all] [--only NAME ...] [--seconds 400] [--workers N]

The masks of examples/ and examples/gallery/ that the engine does not refuse are called as `maskc.compile_attention`
gives them: output, log-sum-exp and the gradients of q, k and v, in bfloat16 and float16, with query heads in groups of
3, 7 and 1, and 2 batch rows (1 where there are many tokens). `runtime/tolerance.py` judges every quantity against
`dense` in float64, which runs on the CPU.

Plain calls have the sizes of `maskc verify` and a longer one: one token, ragged lengths, more queries than keys and the
other way round with offsets, small and odd grids; q, k and v lie contiguous, in one fused buffer, as [batch, seq, head,
dim], or all batch rows or heads are one. At the longest size 5 equal calls must give equal bits.

A mask of examples/ has ten pairs of head dims (8 to 256, and 192 with 128), dealt out over both dtypes, and 64 and 128
in both. Its units look further, at one pair of head dims per dtype each:

    odd layouts   the other strides of `runtime/layouts.py`, whose rows begin anywhere
    decoding      1 and 4 queries against up to 1030 keys, an offset per batch row; the keys have to be shared out
    plans         indexed kernels: a shuffled order with gaps, residues, lists packed for every tile
    parts         a plan of two parts (alibi, documents)
    graph         forward and backward captured in a CUDA graph, replayed with other contents
    lengths       20 calls of other lengths compile nothing
    far           rows of k 2^25 elements apart, 4.3 GiB, contiguous and packed (causal, documents)

Those of the gallery have plain calls at two pairs of head dims, one per dtype; with --all every mask has every pair in
both. Units of mask, dtype and head dims are dealt to processes that share the GPU, since compiling takes most of the
time. A process that the device or the kernel brought down, or that does not answer, is replaced, and its unit fails.
What `--seconds` leave no time for is listed as not run.

A line per call, a summary, and all of it as JSON. The exit code is 1 where anything missed, failed or was not run;
sizes that a spec refuses are counted, and are no miss; nor is what does not apply to a mask or an engine, which the
summary lists. `--device cpu --sizes tiny` tries the same on the engine `tiled`, and with `--engine interpret` on
kernels under Triton's interpreter.
"""

import argparse
import os
import queue
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from gpu_cases import Options, Unit, units
from gpu_judge import LEFT, Result, results
from gpu_machine import ROOT, lacks, machine, parser, results_path, write
from gpu_worker import LostError, Worker

UNIT_LIMIT = 120.0  # seconds that a unit may take from one result to the next
GRACE = 30.0  # seconds that units have after the last one began
FAILED = ("missed", "error", "not run")


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
    lines += not_applicable(found)
    if judged:
        lines.append(f"largest: {max(judged, key=lambda r: r.share or 0.0)}")
    return "\n".join(lines)


def not_applicable(found: Sequence[Result]) -> list[str]:
    """A line per look and reason: for how many units, of which masks."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for r in found:
        if r.status == "not applicable":
            kinds.setdefault((r.what, r.detail), []).append(r.unit.mask)
    return [
        f"not applicable: {what} ({detail}), {len(names)} times: {', '.join(sorted(set(names)))}"
        for (what, detail), names in kinds.items()
    ]


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    options = parser(__doc__)
    options.add_argument("--engine", choices=("triton", "tiled", "interpret"), help="by default that of the device")
    options.add_argument("--only", nargs="+", default=[], metavar="NAME", help="files or masks")
    options.add_argument("--all", action="store_true", help="every mask at all head dims in both dtypes")
    options.add_argument("--workers", type=int, default=min(16, os.cpu_count() or 1), help="processes; 0: this one")
    return options.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs all of it; 1 where anything failed."""
    chosen = parsed(arguments)
    if lacks(chosen.device):
        return 2
    engine = chosen.engine or ("triton" if chosen.device == "cuda" else "tiled")
    options = Options(chosen.device, engine, chosen.sizes == "tiny")
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
        entry |= {name: entry["unit"][name] for name in ("mask", "dtype", "dims", "group")}
        del entry["unit"], entry["fatal"]
    write(path, {**where, "engine": options.engine, "seconds": round(seconds), "counts": counts, "results": entries})
    print(path)
    return 1 if not found or any(r.status in FAILED for r in found) else 0


if __name__ == "__main__":
    sys.exit(main())
