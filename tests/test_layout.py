"""The shape of the project: who may import whom, what an import costs, what the wheel and the type check hold."""

import ast
import importlib.util
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {
    "maskc": "maskc",
    "maskc/checker": "maskc.checker",
    "maskc/analysis": "maskc.analysis",
    "maskc/proofs": "maskc.proofs",
    "maskc/commands": "maskc.commands",
    "grammar": "maskc.grammar",
    "codegen": "maskc.codegen",
    "runtime": "maskc.runtime",
}

# What a module may import beyond the standard library. A name stands for itself and all below it; the longest name on
# the left that fits a module decides.
EVERYTHING = {"maskc"}
WORDS = {"maskc.diagnostics", "maskc.expr", "maskc.spec"}
NUMBERS = {"maskc.arrays", "maskc.constants", "maskc.evaluate", "maskc.features", "maskc.scalars", "numpy"}
CALLS = {"maskc.grids", "maskc.prologue", "maskc.promises", "maskc.samples", "maskc.shapes", "maskc.sizes"}
TABLE: dict[str, set[str]] = {
    "maskc.diagnostics": set(),
    "maskc.expr": {"maskc.diagnostics"},
    "maskc.spec": {"maskc.diagnostics", "maskc.expr"},
    "maskc.rand": set(),
    "maskc.grammar": {"maskc.diagnostics", "maskc.grammar"},
    "maskc.grammar.machine": {"maskc.grammar", "lark"},
    "maskc.grammar.highlight": {*WORDS, "maskc.grammar", "maskc.checker.words", "pygments"},
    "maskc.checker": {*WORDS, "maskc.grammar", "maskc.checker"},
    "maskc.library": {"maskc.diagnostics", "maskc.grammar", "maskc.checker"},
    "maskc.check": {*WORDS, "maskc.grammar", "maskc.checker", "maskc.library"},
    "maskc.features": {*WORDS, "maskc.constants"},
    "maskc.arrays": {*WORDS, "numpy"},
    "maskc.evaluate": {*WORDS, "maskc.arrays", "numpy"},
    "maskc.constants": {*WORDS, "maskc.evaluate", "numpy"},
    "maskc.scalars": {*WORDS, "maskc.evaluate", "numpy"},
    "maskc.grids": {*WORDS, "maskc.scalars"},
    "maskc.shapes": {*WORDS, "maskc.grids", "maskc.scalars"},
    "maskc.prologue": {*WORDS, "maskc.shapes", "numpy"},
    "maskc.promises": {*WORDS, "maskc.grids", "maskc.scalars", "numpy"},
    "maskc.sizes": {*WORDS, "maskc.grids", "maskc.prologue", "maskc.scalars", "numpy"},
    "maskc.samples": {*WORDS, "maskc.grids", "maskc.scalars", "maskc.shapes", "numpy"},
    "maskc.reference": {*WORDS, "maskc.evaluate", "maskc.features", "numpy"},
    "maskc.whereabouts": {*WORDS, "maskc.evaluate", "numpy"},
    "maskc.analysis": {*WORDS, *NUMBERS, "maskc.analysis"},
    "maskc.analysis.derivative": {"maskc.expr"},
    "maskc.proofs": {
        *(WORDS | NUMBERS | CALLS),
        *("maskc.analysis.interval", "maskc.proofs", "maskc.reference", "maskc.whereabouts"),
    },
    "maskc.commands": {
        *(WORDS | NUMBERS | CALLS),
        *("maskc.analysis", "maskc.check", "maskc.codegen", "maskc.commands", "maskc.grammar", "maskc.proofs"),
        *("maskc.reference", "maskc.runtime", "maskc.whereabouts", "matplotlib"),
    },
    "maskc.codegen": {*WORDS, "maskc.analysis", "maskc.codegen", "maskc.constants", "maskc.features"},
    "maskc.runtime": EVERYTHING | {"numpy", "torch", "triton"},
    # The definition shares no reading of expressions with anything that is judged by it.
    "maskc.runtime.dense": {
        *WORDS,
        *("maskc.runtime.dense_normalize", "maskc.runtime.dense_read", "maskc.runtime.dense_reduce"),
        *("maskc.runtime.inputs", "torch"),
    },
    "maskc.runtime.dense_read": {*WORDS, "maskc.runtime.inputs", "maskc.runtime.dense_operators", "torch"},
    "maskc.runtime.dense_operators": {*WORDS, "torch"},
    "maskc.runtime.dense_normalize": {"torch"},
    "maskc.runtime.dense_reduce": {*WORDS, "torch"},
    "maskc.compiler": EVERYTHING | {"numpy"},
    "maskc.cli": EVERYTHING | {"numpy"},
    "maskc": {"maskc.diagnostics", "maskc.compiler"},  # maskc/__init__.py
}
FORBIDDEN: dict[str, set[str]] = {"maskc.runtime": {"maskc.grammar", "maskc.check", "maskc.cli", "maskc.commands"}}
LAZY: dict[str, set[str]] = {  # only inside functions
    "maskc.compiler": {"maskc.runtime"},
    "maskc.cli": {"maskc.runtime"},
    "maskc.commands.explain": {"maskc.runtime"},
    "maskc.commands.png": {"matplotlib"},
    "maskc": {"maskc.compiler"},
}


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of the project under the name by which it is imported."""
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).glob("*.py")):
            yield (package if path.stem == "__init__" else f"{package}.{path.stem}"), path


def below(name: str, names: set[str]) -> bool:
    """Whether `name` is one of `names` or lies below one."""
    return any(name == n or name.startswith(n + ".") for n in names)


def imports(tree: ast.Module) -> Iterator[tuple[int, str, bool]]:
    """(line, imported module, inside a function or under TYPE_CHECKING) of every import in a module."""

    def visit(node: ast.AST, late: bool) -> Iterator[tuple[int, str, bool]]:
        for child in ast.iter_child_nodes(node):
            match child:
                case ast.Import():
                    yield from ((child.lineno, alias.name, late) for alias in child.names)
                case ast.ImportFrom():
                    module = "." * child.level + (child.module or "")
                    submodules = [f"{module}.{a.name}" for a in child.names if f"{module}.{a.name}" in KNOWN]
                    yield from ((child.lineno, name, late) for name in submodules or [module])
                case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                    yield from visit(child, True)
                case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                    yield from visit(child, True)
                case _:
                    yield from visit(child, late)

    return visit(tree, False)


KNOWN = {name for name, _ in modules()}


def allowed_for(module: str) -> set[str]:
    """The row of the table that speaks about a module."""
    row = max((name for name in TABLE if below(module, {name})), key=len)
    if row == "maskc" and module != "maskc":
        raise AssertionError(
            f"{module} is in no row of the import table of tests/test_layout.py: add what it may import"
        )
    return TABLE[row]


def offences(module: str, source: str) -> Iterator[str]:
    """Each import of a module that the table does not allow, as a sentence."""
    allowed = allowed_for(module)
    forbidden = FORBIDDEN.get(next((row for row in FORBIDDEN if below(module, {row})), ""), set())
    for line, name, late in imports(ast.parse(source)):
        if name.split(".")[0] in sys.stdlib_module_names:
            continue
        if not below(name, allowed) or below(name, forbidden):
            yield f"{module}, line {line}, may not import {name}"
        elif not late and below(name, LAZY.get(module, set())):
            yield f"{module}, line {line}, may import {name} only inside a function"


def test_import_table() -> None:
    found = [offence for module, path in modules() for offence in offences(module, path.read_text(encoding="utf-8"))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source", "sentence"),
    [
        ("maskc.spec", "import numpy", "maskc.spec, line 1, may not import numpy"),
        (
            "maskc.grammar.parser",
            "\nfrom maskc.spec import Expr",
            "maskc.grammar.parser, line 2, may not import maskc.spec",
        ),
        ("maskc.codegen.forward", "def f():\n    import torch", "maskc.codegen.forward, line 2, may not import torch"),
        ("maskc.runtime.tiled", "from maskc import check", "maskc.runtime.tiled, line 1, may not import maskc.check"),
        ("maskc.analysis.plan", "from .spec import Expr", "maskc.analysis.plan, line 1, may not import .spec"),
        ("maskc.analysis.plan", "import runtime.tiled", "maskc.analysis.plan, line 1, may not import runtime.tiled"),
        (
            "maskc.cli",
            "import maskc.runtime.cache",
            "maskc.cli, line 1, may import maskc.runtime.cache only inside a function",
        ),
    ],
)
def test_import_table_names_the_offender(module: str, source: str, sentence: str) -> None:
    assert list(offences(module, source)) == [sentence]


def test_names_of_test_files_are_unique() -> None:
    """Pytest imports them by their bare names."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert sorted(set(names)) == sorted(names)


def test_every_folder_is_a_package_of_the_wheel() -> None:
    """Packages are listed by hand in pyproject.toml."""
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    assert sorted(packages) == sorted(FOLDERS.values())
    tops = {folder.partition("/")[0] for folder in FOLDERS}
    found = {path.parent.relative_to(ROOT).as_posix() for top in tops for path in (ROOT / top).rglob("*.py")}
    assert found == set(FOLDERS)


def test_no_module_imports_itself_by_a_detour() -> None:
    sources = {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in modules()}
    pending = {m: {n for _, n, late in imports(tree) if n in KNOWN and not late} for m, tree in sources.items()}
    while leaves := {module for module, needed in pending.items() if not needed & pending.keys()}:
        pending = {module: needed for module, needed in pending.items() if module not in leaves}
    assert not pending, f"these modules import each other: {', '.join(sorted(pending))}"


IMPORT_WITHOUT_TRITON = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "triton":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
import maskc
assert maskc.MaskError
print([m for m in ("torch", "triton", "sympy", "lark", "matplotlib", "pygments") if m in sys.modules])
maskc.compile_attention
print([m for m in ("torch", "triton") if m in sys.modules])
"""


def test_import_is_light_and_needs_no_triton() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORT_WITHOUT_TRITON], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n[]\n"


@pytest.mark.slow
def test_wheel_holds_the_packages_and_their_data(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for folder in {folder.partition("/")[0] for folder in FOLDERS}:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(tmp_path), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("maskc-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {module.replace(".", "/") + ".py" for module in KNOWN - set(FOLDERS.values())}
    expected |= {package.replace(".", "/") + "/__init__.py" for package in FOLDERS.values()}
    expected |= {"maskc/library.mask", "maskc/py.typed", "maskc/grammar/mask.lark"}
    assert expected <= names, sorted(expected - names)
    assert any(name.endswith("/LICENSE") for name in names)


def check_types() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_types", ROOT / ".ci" / "check_types.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_type_check_sees_every_file(tmp_path: Path) -> None:
    count = check_types().make_view(tmp_path / "view")
    assert count == len(KNOWN)
    for module, path in modules():
        name = module.replace(".", "/") + ("/__init__.py" if path.stem == "__init__" else ".py")
        assert (tmp_path / "view" / name).resolve() == path


@pytest.mark.slow
def test_type_check_reports_a_planted_error_in_each_folder(tmp_path: Path) -> None:
    script = check_types()
    script.make_view(tmp_path / "view")
    for package in FOLDERS.values():
        planted = tmp_path / "view" / package.replace(".", "/") / "planted.py"
        planted.write_text('PLANTED: int = "text"\n')
    report = script.run_mypy(tmp_path / "view").stdout
    for folder in FOLDERS:
        assert f"{folder}/planted.py:1: error: Incompatible types in assignment" in report
    assert script.files_seen(report) == len(KNOWN) + len(FOLDERS)
