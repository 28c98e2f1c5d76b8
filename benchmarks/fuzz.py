"""Coverage-guided fuzzing of everything that reads a spec: any bytes give a spec or diagnoses, and nothing else.

    python benchmarks/fuzz.py [--seconds 1800] [--workers 2] [--corpus FOLDER] [--json FILE]

Needs `pip install atheris` (libFuzzer for Python). Every execution decodes, parses, checks and prints; a text without
a mistake in its form is also formatted, which must keep its tree and be a fixed point; a text without any mistake is
loaded, and its spec printed. Texts start from the examples, the gallery, the standard library and the tests' wrong
specs, and are changed byte by byte and token by token. What fails is kept in `crash-*` files beside the corpus, and
the exit code is 1. The figures go to benchmarks/results/fuzz.json.
"""

import argparse
import json
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LONGEST = 512  # bytes of a text; what longer ones would find is the same, later
HANG = 20  # seconds after which libFuzzer calls an execution a hang; the slowest one is measured apart
_TOKEN = re.compile(r"\s+|\w+|[^\w\s]{1,3}|.", re.DOTALL)


def seeds() -> Iterator[str]:
    """Texts to start from: every mask, function and let of the examples, and the wrong specs of the tests."""
    for path in (*ROOT.glob("examples/**/*.mask"), ROOT / "maskc" / "library.mask"):
        yield from re.split(r"\n(?=mask |def |let |#)", path.read_text(encoding="utf-8"))
    for path in ROOT.glob("tests/language/diagnoses/*.txt"):
        yield from re.split(r"\n(?=mask )", path.read_text(encoding="utf-8"))


def words() -> list[str]:
    """The words of the language and signs that trouble readers."""
    from maskc.checker.words import BUILTINS, PRELUDE
    from maskc.grammar.lexer import FACTS, OPERATORS, STATEMENTS, WORDS

    odd = [
        "\n",
        "\n    ",
        "\t",
        "\r\n",
        "\0",
        "\ufeff",
        "é",
        "\u2028",
        "-1",
        "9223372036854775807",
        "1e400",
        "0x",
        "1_0",
    ]
    return sorted({*OPERATORS, *WORDS, *STATEMENTS, *FACTS, *BUILTINS, *PRELUDE, *odd, "q.y", "k.x", "y.size", "in"})


def mutated(data: bytes, limit: int, seed: int, vocabulary: list[str], atheris: Any) -> bytes:
    """A text with a few tokens dropped, doubled, swapped or replaced; every other time libFuzzer's own change."""
    draw = random.Random(seed)
    if draw.random() < 0.5:
        changed: bytes = atheris.Mutate(data, limit)
        return changed
    tokens = _TOKEN.findall(data.decode("utf-8", "replace")) or [""]
    for _ in range(draw.randint(1, 4)):
        at, other = draw.randrange(len(tokens)), draw.randrange(len(tokens))
        match draw.randrange(5):
            case 0:
                tokens[at] = draw.choice(vocabulary)
            case 1:
                tokens.insert(at, draw.choice(vocabulary))
            case 2:
                tokens[at], tokens[other] = tokens[other], tokens[at]
            case 3:
                tokens[at:at] = tokens[other : other + draw.randint(1, 12)]
            case _:
                del tokens[at : at + draw.randint(1, 4)]
                tokens = tokens or [""]
    return "".join(tokens).encode("utf-8", "replace")[:limit]


def work(corpus: str, seconds: int, seed: int, report: str) -> None:
    """One libFuzzer process; writes the longest time of one execution to `report` when it improves."""
    import atheris

    with atheris.instrument_imports(include=["maskc"]):
        from maskc.check import check, diagnose, source_of
        from maskc.diagnostics import MaskError, Source
        from maskc.grammar.format import formatted
        from maskc.grammar.parser import recover
    vocabulary = words()
    slowest = 0.0

    def once(data: bytes) -> None:
        try:
            source = source_of("fuzz.mask", data)
        except MaskError:
            return
        found = diagnose(source)
        assert all(str(d) for d in found)
        tree, mistakes = recover(source)
        if not mistakes:
            text = formatted(source)
            again = Source("fuzz.mask", text)
            assert formatted(again) == text, "the layout is no fixed point"
            assert recover(again)[0].items == tree.items, "the layout changed the meaning"
        if not any(d.severity == "error" for d in found):
            assert all(str(spec) for spec in check(tree))

    def timed(data: bytes) -> None:
        nonlocal slowest
        begin = time.process_time()
        once(data)
        taken = time.process_time() - begin
        if taken > slowest:
            slowest = taken
            Path(report).write_text(json.dumps({"seconds": taken, "text": data.decode("utf-8", "replace")}))

    options = [f"-max_total_time={seconds}", f"-seed={seed}", f"-max_len={LONGEST}", f"-timeout={HANG}"]
    options += ["-print_final_stats=1", "-reload=30", "-verbosity=0", f"-artifact_prefix={corpus}/../", corpus]

    def mutate(data: bytes, limit: int, mutation_seed: int) -> bytes:
        return mutated(data, limit, mutation_seed, vocabulary, atheris)

    atheris.Setup([sys.argv[0], *options], timed, custom_mutator=mutate)
    atheris.Fuzz()


def fuzz(seconds: int, workers: int, folder: Path) -> dict[str, Any]:
    """Runs the workers on one corpus and gathers their figures."""
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, text in enumerate(seeds()):
        (corpus / f"seed-{number}").write_bytes(text.encode("utf-8", "replace")[:LONGEST])
    reports = [folder / f"slowest-{n}.json" for n in range(workers)]
    running = []
    for number, report in enumerate(reports):
        command = [sys.executable, __file__, "--worker", str(corpus), str(seconds), str(number + 1), str(report)]
        # The workers' own output tells of crashes; the statistics stand at its end.
        log = (folder / f"worker-{number}.log").open("wb")
        running.append(
            (subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"PYTHONHASHSEED": "0"}), log)
        )
    codes = []
    for process, log in running:
        codes.append(process.wait())
        log.close()
    logs = [(folder / f"worker-{n}.log").read_text(errors="replace") for n in range(workers)]
    counts = [re.findall(r"number_of_executed_units:\s*(\d+)", text) for text in logs]
    slowest = max((json.loads(r.read_text()) for r in reports if r.exists()), key=lambda r: r["seconds"], default=None)
    return {
        "executions": sum(int(c[-1]) for c in counts if c),
        "seconds": seconds,
        "workers": workers,
        "corpus": len(list(corpus.iterdir())),
        "crashes": sorted(p.name for p in folder.iterdir() if p.name.startswith(("crash-", "timeout-", "oom-"))),
        "exit_codes": codes,
        "slowest_seconds": slowest and round(slowest["seconds"], 3),
        "python": platform.python_version(),
    }


def main() -> int:
    if sys.argv[1:2] == ["--worker"]:
        corpus, seconds, seed, report = sys.argv[2:]
        work(corpus, int(seconds), int(seed), report)
        return 0
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=int, default=1800)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--corpus", type=Path, help="keep the corpus and what failed in this folder")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "fuzz.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        result = fuzz(options.seconds, options.workers, options.corpus or Path(scratch))
    print(json.dumps(result, indent=2))
    options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 1 if result["crashes"] or any(result["exit_codes"]) else 0


if __name__ == "__main__":
    sys.exit(main())
