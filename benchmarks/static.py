"""What the compiler says of the kernels, with no GPU: registers, spills, copies in flight, instructions, least times.

    python benchmarks/static.py [--only PATTERN ...] [--jobs 2] [--json FILE]

Every example for sm_90 at head dims 64 and 128 in float16 and bfloat16, contiguous and indexed, with all sets of
clauses that plans can leave open; two of them at other head dims and for other targets. Required on sm_90, of 16-bit
kernels with head dims up to 128:

- no access to local memory inside a loop;
- as many tiles in flight as in the mask-free kernel (the same skeleton with no mask and no plan, of the same
  configuration);
- in the loop of full tiles at most 5% more instructions than in the mask-free kernel with the same score, 10% where
  the plan gives the positions;
- in the loop of partial tiles of the dilated window at most twice those of the mask-free kernel's loop of full tiles;
  with indexed keys where the order of the keys closes the modulus.

All figures go to benchmarks/results/static.json, one record per line, with rooflines: for 8192 queries and keys and 16
heads, the microseconds that tensor cores, issuing of instructions and memory need, each by itself. --only (regular
expressions for the lines that are printed) looks at a part and writes nothing unless --json says where. The exit code
is 1 where a requirement is missed.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import triton
from static_chips import CHIPS, Roofline, programs, roofline
from static_code import Loop
from static_kernels import ROOT, Case, Figures, example, figures, matrix, work
from triton.errors import TritonError

from maskc.codegen.loads import loads
from maskc.codegen.schedule import Configuration, needs, target_named
from maskc.runtime import stages

RESULTS = ROOT / "benchmarks" / "results" / "static.json"
FULL_LIMIT, INDEXED_LIMIT, PARTIAL_LIMIT = 1.05, 1.10, 2.0
"""Instructions of the loops of full tiles and, for the dilated window, partial tiles, over the mask-free kernel's."""


@dataclass(frozen=True)
class Judgement:
    """The figures of a kernel beside those of the model and of the mask-free kernel.

    model_registers, model_shared, model_columns: what the model of `schedule` takes it to need. programs: on one
    multiprocessor at a time. full_ratio, partial_ratio: instructions of the loops over those of the mask-free
    kernel's loop of full tiles. free_depth: the depths of the mask-free kernel's loops. rooflines: by chip.
    """

    case: Case
    figures: Figures
    model_registers: int
    model_shared: int
    model_columns: int
    programs: int
    full_ratio: float | None
    partial_ratio: float | None
    free_depth: tuple[float, float] | None
    rooflines: Mapping[str, Roofline]


def judge(case: Case, known: Mapping[Case, Figures]) -> Judgement:
    """The judgement of a kernel; known: the figures of it and of the mask-free ones that it is compared with."""
    found, chosen, target = known[case], case.configuration, target_named(case.target)
    plain, baseline = known[case.plain], known[case.baseline]
    depths = (plain.full.depth, plain.partial.depth) if plain.full and plain.partial else None
    needed = needs(target, chosen, case.dims, case.dtype, stages.PASSES[case.entry], loads(example(case.mask)))
    return Judgement(
        case=case,
        figures=found,
        model_registers=needed.registers,
        model_shared=needed.shared,
        model_columns=needed.columns,
        programs=programs(case.target, chosen.warps, found.registers, found.shared, found.columns),
        full_ratio=_ratio(found.full, baseline.full),
        partial_ratio=_ratio(found.partial, baseline.full),
        free_depth=depths,
        rooflines=_rooflines(case, found),
    )


def _ratio(loop: Loop | None, other: Loop | None) -> float | None:
    return round(loop.instructions / other.instructions, 4) if loop and other else None


def _rooflines(case: Case, found: Figures) -> dict[str, Roofline]:
    if case.free or case.dtype == "fp32" or found.full is None or found.partial is None:
        return {}
    loops, chosen = (found.full.instructions, found.partial.instructions), case.configuration
    return {
        chip.name: roofline(chip, work(case), case.entry, case.dims, chosen.tile, chosen.warps, loops)
        for chip in CHIPS
        if chip.target == case.target
    }


def failures(judged: Judgement) -> list[str]:
    """The requirements that a kernel misses; that it fits is the only one of mask-free ones and for other targets."""
    case, found = judged.case, judged.figures
    if not judged.programs:
        return [f"{found.registers} registers and {found.shared} bytes do not fit"]
    if case.free or case.target != "sm_90" or case.dtype == "fp32" or max(case.dims) > 128:
        return []
    assert found.full is not None, "loops of kernels for sm_90 are read"
    assert found.partial is not None, "loops of kernels for sm_90 are read"
    assert judged.full_ratio is not None, "mask-free kernels are judged alike"
    assert judged.partial_ratio is not None, "mask-free kernels are judged alike"
    assert judged.free_depth is not None, "mask-free kernels are judged alike"
    problems = []
    if found.local_in_loops:
        problems.append(f"{found.local_in_loops} accesses to local memory inside loops")
    depths = found.full.depth, found.partial.depth
    if any(own < free for own, free in zip(depths, judged.free_depth, strict=True)):
        problems.append(f"depth {depths}, mask-free {judged.free_depth}")
    limit = INDEXED_LIMIT if case.indexed else FULL_LIMIT
    if judged.full_ratio > limit:
        problems.append(f"full loop {judged.full_ratio:.3f} of mask-free, at most {limit:.2f}")
    decided = case.mask == "dilated_window" and (not case.indexed or case.clauses is not None)
    if decided and judged.partial_ratio > PARTIAL_LIMIT:
        problems.append(f"partial loop {judged.partial_ratio:.2f} of mask-free, at most {PARTIAL_LIMIT:.2f}")
    return problems


def record(judged: Judgement) -> dict[str, Any]:
    """A judgement as one flat record, its bound beside every roofline."""
    row = asdict(judged)
    lines = {chip: asdict(line) | {"bound": line.bound} for chip, line in judged.rooflines.items()}
    row = row.pop("case") | row.pop("figures") | row | {"rooflines": lines}
    found: dict[str, Any] = json.loads(json.dumps(row))
    return found


def parsed(row: Mapping[str, Any]) -> Judgement:
    """The judgement that a record holds."""
    chosen = Configuration(**row["configuration"])
    case = {name: row[name] for name in Case.__dataclass_fields__} | {
        "configuration": chosen,
        "dims": tuple(row["dims"]),
    }
    case["clauses"] = None if row["clauses"] is None else tuple(row["clauses"])
    loops = {name: row[name] and Loop(**row[name]) for name in ("full", "partial")}
    found = {name: row[name] for name in Figures.__dataclass_fields__} | loops
    rest = {name: row[name] for name in Judgement.__dataclass_fields__ if name not in ("case", "figures")}
    rest["free_depth"] = row["free_depth"] and tuple(row["free_depth"])
    lines = {
        chip: Roofline(**{name: times[name] for name in Roofline.__dataclass_fields__})
        for chip, times in row["rooflines"].items()
    }
    return Judgement(Case(**case), Figures(**found), **(rest | {"rooflines": lines}))


def versions() -> dict[str, str]:
    """Of Triton and of the assemblers that it brings (the second one is for sm_100 and above)."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    return {"triton": triton.__version__} | {name: _release(tools / name) for name in ("ptxas", "ptxas-blackwell")}


def _release(tool: Path) -> str:
    found = re.search(
        r"V(\d[.\d]*)", subprocess.run([tool, "--version"], capture_output=True, text=True, check=True).stdout
    )
    assert found is not None, f"{tool} says its version"
    return found[1]


def with_baselines(cases: Iterable[Case]) -> list[Case]:
    """The kernels, every one behind the mask-free ones that it is compared with, each once."""
    return list(dict.fromkeys(c for case in cases for c in (case.plain, case.baseline, case)))


def judgements(cases: Sequence[Case], jobs: int) -> Iterator[tuple[Case, Judgement | str]]:
    """Every kernel of a list with baselines and its judgement, or why there is none, compiled in several processes."""
    known: dict[Case, Figures] = {}
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        for case, found in zip(cases, pool.map(_attempt, cases), strict=True):
            if isinstance(found, Figures):
                known[case] = found
            missing = [str(c) for c in (case.plain, case.baseline) if c not in known]
            if isinstance(found, str):
                yield case, found
            else:
                yield case, f"there is no {missing[0]}" if missing else judge(case, known)


def _attempt(case: Case) -> Figures | str:
    """The figures of a kernel, or what the compiler has against it."""
    try:
        return figures(case)
    except (TritonError, RuntimeError) as error:
        return " ".join(str(error).split())[:200]


def shown(judged: Judgement) -> str:
    """A judgement on one line."""
    found = judged.figures
    words = [f"{judged.case}: {found.registers} reg, {found.shared >> 10} KiB, {judged.programs} per SM"]
    if found.local_in_loops or found.local_outside:
        words.append(f"local {found.local_in_loops} in loops {found.local_outside} outside")
    for name, loop, ratio in (
        ("full", found.full, judged.full_ratio),
        ("partial", found.partial, judged.partial_ratio),
    ):
        if loop:
            words.append(
                f"{name} {loop.instructions} ({ratio:.2f}), {loop.tensor} mma, {loop.copies} cp, depth {loop.depth:g}"
            )
    words += [f"{chip} {getattr(line, line.bound):g} us ({line.bound})" for chip, line in judged.rooflines.items()]
    return "; ".join(words)


def write(path: Path, judged: Sequence[Judgement]) -> None:
    """The versions and all records, one per line."""
    lines = ",\n".join(json.dumps(record(j)) for j in judged)
    path.write_text(f'{{"versions": {json.dumps(versions())}, "records": [\n{lines}\n]}}\n')


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a line per kernel and writes all figures; 1 where a requirement is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="PATTERN")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args(arguments)
    wanted = [c for c in matrix() if not chosen.only or any(re.search(p, str(c)) for p in chosen.only)]
    cases, begin, missed = with_baselines(wanted), time.perf_counter(), 0
    done: list[Judgement] = []
    for number, (case, judged) in enumerate(judgements(cases, chosen.jobs), start=1):
        problems = [judged] if isinstance(judged, str) else failures(judged)
        missed += bool(problems)
        if isinstance(judged, Judgement):
            done.append(judged)
        line = shown(judged) if isinstance(judged, Judgement) else str(case)
        print(f"[{number}/{len(cases)}] {line}{''.join(f'  MISSED: {p}' for p in problems)}", flush=True)
    path = chosen.json or (None if chosen.only else RESULTS)
    if path:
        write(path, done)
    print(f"{len(cases)} kernels in {time.perf_counter() - begin:.0f} s; {missed} miss a requirement")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
