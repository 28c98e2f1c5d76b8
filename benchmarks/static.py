"""What the compiler says of every example's kernels for sm_90, with no GPU: registers, spills, copies in flight.

    python benchmarks/static.py [--examples NAME ...] [--json FILE]

Two requirements, for fp16 and bf16 at head dims 64 and 128: no access to local memory inside a loop, and as many tiles
in flight as in the mask-free kernel (the same skeleton with no mask and no plan, at the same configuration). The
figures go to benchmarks/results/static.json.
"""

import argparse
import itertools
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from textwrap import indent

from maskc.check import load
from maskc.codegen.schedule import Configuration, configuration, target_named
from maskc.codegen.source import KernelSource, emit
from maskc.codegen.template import walk_next, walk_start
from maskc.codegen.variants import plainest
from maskc.expr import Side
from maskc.runtime import stages
from maskc.spec import MaskSpec

ROOT = Path(__file__).resolve().parent.parent
ENTRIES = ("forward_kernel", "backward_queries_kernel", "backward_keys_kernel")


@dataclass(frozen=True)
class Loop:
    """One innermost loop of a kernel: instructions, tensor-core instructions, accesses to local memory.

    copies: asynchronous copies issued per turn, in `groups` groups. waits: how many groups may still be under way where
    the loop waits for older ones (DEPBAR.LE SB0).
    """

    instructions: int
    tensor: int
    local: int
    copies: int
    groups: int
    waits: tuple[int, ...]


@dataclass(frozen=True)
class Figures:
    """What the compiler made of one kernel. local_in_loops counts every loop, not only the innermost."""

    registers: int
    stack: int
    shared: int
    tensor: int
    local: int
    local_in_loops: int
    loops: tuple[Loop, ...]


def figures(source: KernelSource, spec: MaskSpec, entry: str, dim: int, dtype: str, chosen: Configuration) -> Figures:
    """Compiles an entry point for sm_90 as the launcher would and reads its machine code."""
    target = target_named("sm_90")
    variant = plainest(spec, source.form, (dim, dim), dtype)
    compiled = stages.compile_kernel(source, spec, entry, target, variant, chosen)
    usage = re.search(r"REG:(\d+) STACK:(\d+)", stages.resources(compiled))
    assert usage is not None, "cuobjdump reports registers and stack"
    lines = [line for line in stages.disassembled(compiled).split("\n") if line.strip()]
    spans = list(loop_spans(lines))
    inside = {i for start, stop in spans for i in range(start, stop)}
    innermost = [s for s in spans if not any(t != s and s[0] <= t[0] and t[1] <= s[1] for t in spans)]
    return Figures(
        registers=int(usage[1]),
        stack=int(usage[2]),
        shared=compiled.shared,
        tensor=sum(map(is_tensor, lines)),
        local=sum(map(is_local, lines)),
        local_in_loops=sum(is_local(lines[i]) for i in inside),
        loops=tuple(loop(lines[start:stop]) for start, stop in innermost),
    )


def loop_spans(lines: list[str]) -> Iterator[tuple[int, int]]:
    """The lines of every loop: from a label to the last branch back to it."""
    labels = {m[1]: i for i, line in enumerate(lines) if (m := re.match(r"(\.L_x_\d+):", line.strip()))}
    last: dict[int, int] = {}
    for i, line in enumerate(lines):
        branch = re.search(r"BRA\S* .*?`\((\.L_x_\d+)\)", line)
        # A jump to itself behind the end of the program is padding, no loop.
        if branch and i - labels.get(branch[1], i) > 1:
            last[labels[branch[1]]] = i + 1
    yield from last.items()


def is_local(line: str) -> bool:
    """Whether an instruction reads or writes local memory."""
    return re.search(r"\b(LDL|STL)\b", line) is not None


def is_tensor(line: str) -> bool:
    """Whether an instruction multiplies matrices."""
    return re.search(r"\b(HGMMA|HMMA)\b", line) is not None


def loop(lines: list[str]) -> Loop:
    """The figures of a loop."""
    waits = (re.search(r"DEPBAR\.LE SB0, (0x[0-9a-f]+)", line) for line in lines)
    return Loop(
        instructions=sum("/*" in line for line in lines),
        tensor=sum(map(is_tensor, lines)),
        local=sum(map(is_local, lines)),
        copies=sum("LDGSTS" in line for line in lines),
        groups=sum("LDGDEPBAR" in line for line in lines),
        waits=tuple(int(w[1], 16) for w in waits if w),
    )


def mask_free(spec: MaskSpec) -> tuple[KernelSource, MaskSpec]:
    """The skeleton with no mask and no plan: its loops walk all tiles in order."""
    bare = replace(spec, name="mask_free", clauses=(), claims=(), inputs=(), parameters=(), axes=(), score=PLAIN.score)
    source = emit(bare)
    text = source.text
    for runs, walked in itertools.product(("full", "partial"), Side):
        start = f"tiles = tl.load({runs}_tiles)\ntile = 0\n"
        for lines, free in ((walk_start, start), (walk_next, "tile += 1\n")):
            for margin in ("    ", "        ", "            "):
                text = text.replace(_block(lines(runs, source.form, walked), margin), indent(free, margin))
    assert "ends = " not in text, "every walk over runs is replaced"
    return replace(source, text=text), bare


def _block(lines: Sequence[str], indent: str) -> str:
    return "".join(f"{indent}{line}\n" for line in lines)


PLAIN = MaskSpec("plain")


def main() -> int:
    """Prints one line per kernel and writes all figures; 1 where a requirement is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", nargs="*", default=sorted(p.stem for p in (ROOT / "examples").glob("*.mask")))
    parser.add_argument("--dims", nargs="*", type=int, default=[64, 128])
    parser.add_argument("--dtypes", nargs="*", default=["fp16", "bf16"])
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "static.json")
    chosen = parser.parse_args()
    results, missed = [], 0
    free_source, free_spec = mask_free(PLAIN)
    for entry, dim, dtype in itertools.product(ENTRIES, chosen.dims, chosen.dtypes):
        baselines: dict[Configuration, Figures] = {}
        for name in chosen.examples:
            spec = load(ROOT / "examples" / f"{name}.mask")
            source = emit(spec)
            tile = configuration(target_named("sm_90"), (dim, dim), dtype, stages.PASSES[entry], source.heavy)
            row = {"mask": name, "entry": entry, "dim": dim, "dtype": dtype, "configuration": str(tile)}
            if tile not in baselines:
                baselines[tile] = figures(free_source, free_spec, entry, dim, dtype, tile)
                results.append(row | {"mask": "mask_free"} | asdict(baselines[tile]))
                print(f"{'(mask-free)':28} {entry:24} {dim:3} {dtype} {summary(baselines[tile])}", flush=True)
            found = figures(source, spec, entry, dim, dtype, tile)
            problems = failures(found, baselines[tile])
            missed += bool(problems)
            results.append(row | asdict(found) | {"missed": problems})
            print(f"{name:28} {entry:24} {dim:3} {dtype} {summary(found)} {'; '.join(problems)}", flush=True)
    chosen.json.parent.mkdir(parents=True, exist_ok=True)
    chosen.json.write_text(json.dumps(results, indent=1) + "\n")
    print(f"{missed} kernels miss a requirement")
    return int(missed > 0)


def summary(f: Figures) -> str:
    """The figures in a few words."""
    loops = " ".join(
        f"[{x.instructions} ins {x.tensor} mma {x.copies}/{x.groups} cp w{list(x.waits)}]" for x in f.loops
    )
    return f"{f.registers:3} reg {f.stack:3} stack {f.shared:6} B local {f.local}/{f.local_in_loops} {loops}"


def failures(found: Figures, baseline: Figures) -> list[str]:
    """The requirements that a kernel misses."""
    problems = []
    if found.local_in_loops:
        problems.append(f"{found.local_in_loops} accesses to local memory inside loops")
    if depth(found) != depth(baseline):
        problems.append(f"pipeline depth {depth(found)}, mask-free {depth(baseline)}")
    return problems


def depth(f: Figures) -> list[float]:
    """How many tiles ahead of a wait copies may be under way, for each loop that multiplies; -1 without any wait."""
    return [max(x.waits) / x.groups if x.waits and x.groups else -1.0 for x in f.loops if x.tensor]


if __name__ == "__main__":
    sys.exit(main())
