"""Speed and memory of the `tiled` engine on the CPU, beside what torch offers there.

A causal window of 256, 8 heads, D = 64, float32. Candidates: maskc, FlexAttention under torch.compile (forward only: it
has no backward on the CPU), scaled_dot_product_attention with a boolean mask, and causal scaled_dot_product_attention,
which computes far more pairs and serves as a yardstick. They take turns in one process, so that other load of the
machine meets all of them alike; medians are reported. Before anything is timed the results are compared.

    python benchmarks/cpu.py [--lengths 4096 16384] [--rounds 15] [--threads N] [--json FILE]
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

import maskc

HEADS, DIM, WINDOW = 8, 64, 256
MASK = "mask sliding_window(window: int = 256):\n    keep 0 <= q - k < window\n"
MEMORY_LENGTH, MEMORY_WINDOW, MEMORY_LIMIT = 65536, 512, 200.0
MASKED_LIMIT = 8192
"""Longest sequence at which candidates run that compute all pairs with a mask, or backward."""

TARGETS = {
    ("forward", 4096, "flex"): 0.9,
    ("forward", 16384, "flex"): 0.85,
    ("forward", 4096, "masked"): 7.0,
    ("forward+backward", 4096, "masked"): 5.5,
}
"""How many times as fast as a candidate maskc has to be."""


@dataclass(frozen=True)
class Row:
    """Median and least milliseconds of one candidate, and how many times as fast maskc's median is."""

    what: str
    length: int
    candidate: str
    median_ms: float
    least_ms: float
    maskc_is_faster_by: float


def timed(candidates: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every candidate in every round; they take turns."""
    for run in candidates.values():
        run()
    found: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            found[name].append((time.perf_counter() - start) * 1e3)
    return found


def rows(what: str, length: int, times: Mapping[str, list[float]]) -> list[Row]:
    own = statistics.median(times["maskc"])
    return [
        Row(what, length, name, statistics.median(found), min(found), statistics.median(found) / own)
        for name, found in times.items()
    ]


def window_mask(length: int) -> Tensor:
    position = torch.arange(length)
    distance = position[:, None] - position
    return (distance >= 0) & (distance < WINDOW)


def flex(q: Tensor, k: Tensor, v: Tensor) -> Callable[[], Tensor]:
    """FlexAttention, compiled, with its block mask made beforehand."""
    block_mask = create_block_mask(
        lambda b, h, i, j: (i >= j) & (i - j < WINDOW), None, None, q.shape[2], k.shape[2], device="cpu"
    )
    compiled = torch.compile(flex_attention)
    return lambda: compiled(q, k, v, block_mask=block_mask)


def measure(length: int, rounds: int) -> list[Row]:
    """All candidates at one length, forward and, where torch can, forward and backward."""
    attention = maskc.compile_attention(MASK)
    torch.manual_seed(0)
    q, k, v, d_out = (torch.randn(1, HEADS, length, DIM) for _ in range(4))
    forward: dict[str, Callable[[], Any]] = {
        "maskc": lambda: attention(q, k, v),
        "flex": flex(q, k, v),
        "causal": lambda: scaled_dot_product_attention(q, k, v, is_causal=True),
    }
    if length <= MASKED_LIMIT:
        mask = window_mask(length)
        forward["masked"] = lambda: scaled_dot_product_attention(q, k, v, attn_mask=mask)
        torch.testing.assert_close(forward["masked"](), forward["maskc"](), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(forward["flex"](), forward["maskc"](), atol=1e-5, rtol=1e-5)
    found = rows("forward", length, timed(forward, rounds))

    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    both: dict[str, Callable[[], Any]] = {
        "maskc": lambda: torch.autograd.grad(attention(*leaves), leaves, d_out),
    }
    if length <= MASKED_LIMIT:
        both["causal"] = lambda: torch.autograd.grad(
            scaled_dot_product_attention(*leaves, is_causal=True), leaves, d_out
        )
        both["masked"] = lambda: torch.autograd.grad(
            scaled_dot_product_attention(*leaves, attn_mask=mask), leaves, d_out
        )
        for expected, actual in zip(both["masked"](), both["maskc"](), strict=True):
            torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
    return found + rows("forward+backward", length, timed(both, max(3, rounds // 3)))


def status_mb(entry: str) -> float:
    """VmRSS (held now) or VmHWM (the most ever held) of this process, as Linux tells it.

    Not ru_maxrss: a child process inherits that of the one which started it.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(entry)) / 1024


def peak_extra_memory() -> float:
    """MB by which the peak of a process exceeds what it held before plan, forward and backward of one long head.

    An upper bound: the peak may stem from before, from importing torch.
    """
    attention = maskc.compile_attention(MASK, window=MEMORY_WINDOW)
    before = 0.0
    for length in (1024, MEMORY_LENGTH):
        q, k, v = (torch.randn(1, 1, length, DIM, requires_grad=True) for _ in range(3))
        d_out = torch.randn(1, 1, length, DIM)
        before = status_mb("VmRSS")
        torch.autograd.grad(attention(q, k, v), (q, k, v), d_out)
    return status_mb("VmHWM") - before


def memory_in_own_process() -> float:
    command = [sys.executable, __file__, "--memory", "--threads", str(torch.get_num_threads())]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def table(found: list[Row]) -> str:
    lines = [f"{'':17} {'N':>6} {'candidate':10} {'median ms':>10} {'least ms':>10} {'maskc faster by':>16}"]
    for row in found:
        target = TARGETS.get((row.what, row.length, row.candidate))
        wanted = (
            "" if target is None else f"  target {target}: {'met' if row.maskc_is_faster_by >= target else 'MISSED'}"
        )
        lines.append(
            f"{row.what:17} {row.length:6} {row.candidate:10} {row.median_ms:10.1f} {row.least_ms:10.1f} "
            f"{row.maskc_is_faster_by:15.2f}x{wanted}"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 16384])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--memory", action="store_true", help="print the peak extra memory in MB and nothing else")
    options = parser.parse_args()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if options.memory:
        print(peak_extra_memory())
        return 0
    warnings.filterwarnings("ignore", category=UserWarning)
    found = [row for length in options.lengths for row in measure(length, options.rounds)]
    megabytes = memory_in_own_process()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {HEADS} heads, D = {DIM}, float32, ", end="")
    print(f"causal window of {WINDOW}")
    print(table(found))
    print(
        f"N = {MEMORY_LENGTH}, window {MEMORY_WINDOW}, one head: plan, forward and backward add {megabytes:.0f} MB to "
        f"the peak; target under {MEMORY_LIMIT:.0f}: {'met' if megabytes < MEMORY_LIMIT else 'MISSED'}"
    )
    if options.json is not None:
        report = {"torch": torch.__version__, "threads": torch.get_num_threads(), "peak_extra_mb": megabytes}
        options.json.write_text(json.dumps(report | {"rows": [asdict(row) for row in found]}, indent=2) + "\n")
    missed = any(row.maskc_is_faster_by < TARGETS.get((row.what, row.length, row.candidate), 0.0) for row in found)
    return 1 if missed or megabytes >= MEMORY_LIMIT else 0


if __name__ == "__main__":
    sys.exit(main())
