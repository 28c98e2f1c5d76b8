"""Run mypy --strict over the package, laid out as it is imported.

`grammar`, `codegen` and `runtime` become `maskc.grammar`, `maskc.codegen` and `maskc.runtime` by a mapping of folders
that mypy cannot follow. So it gets a view, `build/types/maskc/...`: real folders whose files are links. (Linked
folders, and anything below a folder whose name starts with a dot, are skipped without a word and look like "no
errors".) That every file was seen is checked by the number of files that mypy says it read.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"maskc": "maskc", "grammar": "maskc/grammar", "codegen": "maskc/codegen", "runtime": "maskc/runtime"}


def make_view(view: Path) -> int:
    """Lay out the package below `view` (emptied first) and return how many Python files it has."""
    shutil.rmtree(view, ignore_errors=True)
    count = 0
    for folder, package in PACKAGES.items():
        for file in sorted((ROOT / folder).rglob("*")):
            if file.suffix == ".py" or file.name == "py.typed":
                target = view / package / file.relative_to(ROOT / folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(file)
                count += file.suffix == ".py"
    return count


def run_mypy(view: Path) -> subprocess.CompletedProcess[str]:
    """Check the view; paths in the answer are those of the repository."""
    options = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(view.with_name(f"{view.name}-cache"))]
    command = [sys.executable, "-m", "mypy", *options, "maskc"]
    result = subprocess.run(command, cwd=view, capture_output=True, text=True, check=False)
    for folder, package in PACKAGES.items():
        if folder != package:
            result.stdout = result.stdout.replace(f"{package}/", f"{folder}/")
    return result


def files_seen(report: str) -> int:
    """How many files mypy's last line says it checked; 0 when it does not say."""
    found = re.search(r"\(checked (\d+) source files?\)|no issues found in (\d+) source files?", report)
    return 0 if found is None else int(found[1] or found[2])


def main() -> int:
    """Check the package; 0 when it is clean and mypy saw all of it."""
    view = ROOT / "build" / "types"
    expected = make_view(view)
    result = run_mypy(view)
    sys.stdout.write(result.stdout)
    sys.stderr.write(result.stderr)
    seen = files_seen(result.stdout)
    if result.returncode in (0, 1) and seen != expected:
        print(f"mypy saw {seen} of {expected} files: the view in {view} does not show it the package", file=sys.stderr)
        return 1
    return result.returncode


if __name__ == "__main__":
    sys.exit(main())
