"""How long it takes to read specs: parse and check of 200 lines, and what importing the language costs.

    python benchmarks/language.py [--json FILE]

The 200 lines are the masks of the gallery, each under a name of its own. Times are of the processor, medians of 20 runs
in one process (the first run also builds the parser's tables), and of 5 processes for the imports. The figures go to
benchmarks/results/language.json.
"""

import argparse
import json
import platform
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

from maskc.check import diagnose
from maskc.diagnostics import Source
from maskc.grammar.parser import recover

ROOT = Path(__file__).resolve().parent.parent
LINES = 200
RUNS = 20
IMPORT = """
import sys, time
begin = time.process_time()
import maskc.check
taken = time.process_time() - begin
heavy = [m for m in ("torch", "triton", "sympy", "numpy", "matplotlib") if m in sys.modules]
begin = time.process_time()
maskc.check.load("mask first:\\n    keep k <= q\\n")
print(taken, time.process_time() - begin, ",".join(heavy))
"""


def text() -> str:
    """The first masks of the gallery that fill 200 lines, with their functions."""
    lines: list[str] = []
    for number, path in enumerate(sorted((ROOT / "examples" / "gallery").glob("*.mask"))):
        written = path.read_text(encoding="utf-8").splitlines()
        plain = "\n".join(line for line in written if line.strip() and not line.lstrip().startswith("#"))
        for name in re.findall(r"^(?:mask|def|let) (\w+)", plain, flags=re.MULTILINE):
            plain = re.sub(rf"(?<![\w.]){name}\b(?!=)", f"{name}_{number}", plain)
        if len(lines) + plain.count("\n") < LINES:
            lines += plain.splitlines()
    return "\n".join(lines) + "\n"


def medians(source: Source) -> dict[str, float]:
    """Milliseconds of the parser alone and of parser and checker, and of the first run."""
    begin = time.process_time()
    found = [d for d in diagnose(source) if d.severity == "error"]
    first = time.process_time() - begin
    assert not found, "\n".join(map(str, found))
    taken: dict[str, list[float]] = {"parse": [], "parse_and_check": []}
    for _ in range(RUNS):
        for name, read in (("parse", recover), ("parse_and_check", diagnose)):
            begin = time.process_time()
            read(source)
            taken[name].append(time.process_time() - begin)
    return {name: round(1e3 * statistics.median(t), 1) for name, t in taken.items()} | {"first": round(1e3 * first, 1)}


def imports() -> dict[str, object]:
    """Milliseconds to import the checker in a new process and to read its first spec, and which heavy modules came."""
    runs = [
        subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True) for _ in range(5)
    ]
    rows = [run.stdout.rstrip("\n").split(" ") for run in runs]
    taken, first = (round(1e3 * statistics.median(float(row[i]) for row in rows), 1) for i in (0, 1))
    return {"import": taken, "first_spec": first, "heavy_modules": [m for m in rows[0][2].split(",") if m]}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "language.json")
    options = parser.parse_args()
    spec = text()
    result = {
        "lines": spec.count("\n"),
        "masks": len(re.findall(r"^mask ", spec, flags=re.MULTILINE)),
        "milliseconds": medians(Source("gallery.mask", spec)),
        "new_process_milliseconds": imports(),
        "python": platform.python_version(),
    }
    print(json.dumps(result, indent=2))
    options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
