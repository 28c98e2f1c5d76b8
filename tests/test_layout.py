"""The shape of the project: who may import whom, what an import costs, what the wheel and the type check hold."""

import ast
import importlib.util
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"maskc": "maskc", "grammar": "maskc.grammar", "codegen": "maskc.codegen", "runtime": "maskc.runtime"}

# What a module may import beyond the standard library. A name stands for itself and all below it; the longest name on
# the left that fits a module decides.
EVERYTHING = {"maskc"}
TABLE: dict[str, set[str]] = {
    "maskc.diagnostics": set(),
    "maskc.spec": {"maskc.diagnostics"},
    "maskc.grammar": {"maskc.diagnostics", "maskc.grammar", "lark"},
    "maskc.grammar.highlight": {"maskc.diagnostics", "maskc.grammar", "maskc.spec", "maskc.words", "pygments"},
    "maskc.words": {"maskc.spec"},
    "maskc.typed": {"maskc.diagnostics", "maskc.spec", "maskc.words"},
    "maskc.lint": {"maskc.diagnostics", "maskc.signs", "maskc.spec"},
    "maskc.layout": {"maskc.diagnostics", "maskc.spec", "maskc.typed"},
    "maskc.scope": {"maskc.diagnostics", "maskc.spec", "maskc.grammar", "maskc.layout"},
    "maskc.reports": {"maskc.diagnostics", "maskc.spec", "maskc.typed"},
    "maskc.rand": set(),
    "maskc.rows": {"maskc.diagnostics", "maskc.spec", "maskc.typed"},
    "maskc.folds": {"maskc.diagnostics", "maskc.spec", "maskc.typed"},
    "maskc.names": {
        *("maskc.diagnostics", "maskc.grammar", "maskc.words"),
        *("maskc.reports", "maskc.scope"),
    },
    "maskc.operators": {
        *("maskc.diagnostics", "maskc.grammar", "maskc.spec"),
        *("maskc.folds", "maskc.layout", "maskc.names", "maskc.scope", "maskc.typed"),
    },
    "maskc.places": {
        *("maskc.diagnostics", "maskc.grammar", "maskc.spec"),
        *("maskc.layout", "maskc.operators", "maskc.scope"),
    },
    "maskc.subscripts": {
        *("maskc.diagnostics", "maskc.grammar", "maskc.spec", "maskc.typed"),
        *("maskc.layout", "maskc.places", "maskc.rows", "maskc.scope"),
    },
    "maskc.functions": {
        *("maskc.diagnostics", "maskc.grammar", "maskc.spec", "maskc.typed"),
        *("maskc.folds", "maskc.rows", "maskc.scope", "maskc.subscripts"),
    },
    "maskc.elaborate": {
        *("maskc.diagnostics", "maskc.grammar", "maskc.spec", "maskc.words"),
        *("maskc.functions", "maskc.layout", "maskc.places", "maskc.reports", "maskc.scope"),
    },
    "maskc.dims": {
        *("maskc.diagnostics", "maskc.grammar", "maskc.spec", "maskc.typed"),
        *("maskc.elaborate", "maskc.layout", "maskc.scope"),
    },
    "maskc.inputs": {
        *("maskc.diagnostics", "maskc.grammar", "maskc.spec", "maskc.typed"),
        *("maskc.dims", "maskc.scope"),
    },
    "maskc.axes": {
        *("maskc.grammar", "maskc.spec", "maskc.typed", "maskc.words"),
        *("maskc.inputs", "maskc.layout", "maskc.places", "maskc.scope"),
    },
    "maskc.kinks": {"maskc.spec"},
    "maskc.weights": {
        *("maskc.diagnostics", "maskc.grammar", "maskc.spec", "maskc.typed"),
        *("maskc.axes", "maskc.kinks", "maskc.layout", "maskc.scope"),
    },
    "maskc.normalizers": {
        *("maskc.diagnostics", "maskc.grammar", "maskc.spec"),
        *("maskc.scope", "maskc.weights"),
    },
    "maskc.reductions": {
        *("maskc.diagnostics", "maskc.grammar", "maskc.spec", "maskc.typed"),
        *("maskc.dims", "maskc.layout", "maskc.normalizers", "maskc.scope", "maskc.weights"),
    },
    "maskc.predicates": {
        *("maskc.diagnostics", "maskc.grammar", "maskc.spec", "maskc.typed"),
        *("maskc.inputs", "maskc.layout", "maskc.reductions", "maskc.scope"),
    },
    "maskc.signs": {"maskc.spec"},
    "maskc.masks": {
        *("maskc.diagnostics", "maskc.grammar", "maskc.spec", "maskc.typed"),
        *("maskc.kinks", "maskc.layout", "maskc.lint", "maskc.predicates", "maskc.reports", "maskc.scope"),
        "maskc.weights",
    },
    "maskc.library": {"maskc.diagnostics", "maskc.grammar", "maskc.masks", "maskc.scope"},
    "maskc.check": {
        *("maskc.diagnostics", "maskc.grammar", "maskc.spec"),
        *("maskc.library", "maskc.masks", "maskc.reports"),
    },
    "maskc.features": {"maskc.diagnostics", "maskc.spec"},
    "maskc.arrays": {"maskc.spec", "numpy"},
    "maskc.evaluate": {"maskc.spec", "maskc.arrays", "numpy"},
    "maskc.constants": {"maskc.spec", "maskc.evaluate", "numpy"},
    "maskc.scalars": {"maskc.diagnostics", "maskc.spec", "maskc.evaluate", "numpy"},
    "maskc.grids": {"maskc.diagnostics", "maskc.spec", "maskc.scalars"},
    "maskc.shapes": {"maskc.diagnostics", "maskc.spec", "maskc.grids", "maskc.scalars"},
    "maskc.prologue": {"maskc.diagnostics", "maskc.spec", "maskc.shapes", "numpy"},
    "maskc.promises": {"maskc.diagnostics", "maskc.spec", "maskc.grids", "maskc.scalars", "numpy"},
    "maskc.sizes": {
        *("maskc.diagnostics", "maskc.spec"),
        *("maskc.grids", "maskc.prologue", "maskc.scalars", "numpy"),
    },
    "maskc.reference": {"maskc.spec", "maskc.evaluate", "maskc.features", "numpy"},
    "maskc.witness": {
        *("maskc.spec", "maskc.evaluate", "maskc.features", "maskc.reference"),
        *("maskc.scalars", "maskc.whereabouts", "numpy"),
    },
    "maskc.linear": set(),
    "maskc.formulas": {"maskc.spec", "maskc.linear"},
    "maskc.translation": {"maskc.spec", "maskc.formulas", "maskc.interval", "maskc.linear", "numpy"},
    "maskc.proof": {"maskc.spec", "maskc.formulas", "maskc.linear", "maskc.translation"},
    "maskc.claims": {
        *("maskc.diagnostics", "maskc.spec", "maskc.evaluate", "maskc.features", "maskc.formulas", "maskc.grids"),
        *("maskc.linear", "maskc.prologue", "maskc.proof", "maskc.samples", "maskc.scalars", "maskc.sizes"),
        *("maskc.translation", "maskc.witness", "numpy"),
    },
    "maskc.derivative": {"maskc.spec"},
    "maskc.interval": {"maskc.spec", "maskc.arrays"},
    "maskc.shift": {"maskc.spec"},
    "maskc.support": {"maskc.spec", "maskc.constants", "maskc.shift"},
    "maskc.tabulate": {"maskc.spec", "maskc.arrays", "maskc.evaluate", "maskc.interval", "maskc.support", "numpy"},
    "maskc.searches": {"maskc.spec", "maskc.arrays", "maskc.evaluate", "maskc.interval", "maskc.tabulate", "numpy"},
    "maskc.bounds": {
        *("maskc.spec", "maskc.arrays", "maskc.constants", "maskc.evaluate"),
        *("maskc.interval", "maskc.searches", "maskc.support", "maskc.tabulate"),
        "numpy",
    },
    "maskc.plan": {
        *("maskc.spec", "maskc.arrays", "maskc.constants", "maskc.evaluate"),
        *("maskc.features", "maskc.interval", "maskc.bounds", "numpy"),
    },
    "maskc.explain": {
        "maskc.diagnostics",
        "maskc.options",
        "maskc.spec",
        "maskc.plan",
        "maskc.codegen",
        "maskc.runtime",
        "numpy",
    },
    "maskc.whereabouts": {"maskc.spec", "maskc.evaluate", "numpy"},
    "maskc.why": {
        *("maskc.diagnostics", "maskc.grammar", "maskc.spec"),
        *("maskc.constants", "maskc.evaluate", "maskc.interval", "maskc.plan", "maskc.whereabouts", "numpy"),
    },
    "maskc.picture": {"maskc.plan", "numpy"},
    "maskc.tokens": {"maskc.spec", "maskc.evaluate", "maskc.picture", "maskc.reference", "numpy"},
    "maskc.png": {"maskc.diagnostics", "maskc.picture", "maskc.plan", "maskc.tokens", "numpy", "matplotlib"},
    "maskc.options": {
        *("maskc.diagnostics", "maskc.spec", "maskc.grids", "maskc.shapes", "maskc.promises"),
        *("maskc.prologue", "maskc.sizes", "maskc.samples", "numpy"),
    },
    "maskc.samples": {"maskc.spec", "maskc.grids", "maskc.scalars", "maskc.shapes", "numpy"},
    "maskc.codegen": {
        "maskc.codegen",
        "maskc.diagnostics",
        "maskc.spec",
        "maskc.derivative",
        "maskc.features",
        "maskc.bounds",
        "maskc.plan",
    },
    "maskc.runtime": EVERYTHING | {"numpy", "torch", "triton"},
    "maskc.runtime.dense": {
        *("maskc.spec", "maskc.runtime.inputs"),
        *("maskc.runtime.dense_normalize", "maskc.runtime.dense_read", "maskc.runtime.dense_reduce"),
        "torch",
    },
    "maskc.runtime.dense_read": {"maskc.spec", "maskc.runtime.inputs", "maskc.runtime.dense_operators", "torch"},
    "maskc.runtime.dense_operators": {"maskc.spec", "torch"},
    "maskc.runtime.dense_normalize": {"torch"},
    "maskc.runtime.dense_reduce": {"maskc.spec", "torch"},
    "maskc.compiler": EVERYTHING | {"numpy"},
    "maskc.cli": EVERYTHING | {"numpy"},
    "maskc.cli_show": {
        *("maskc.check", "maskc.explain", "maskc.options", "maskc.picture", "maskc.png", "maskc.tokens"),
    },
    "maskc.cli_check": {
        *("maskc.check", "maskc.claims", "maskc.diagnostics", "maskc.features", "maskc.grammar"),
        *("maskc.options", "maskc.spec", "maskc.witness"),
    },
    "maskc": {"maskc.diagnostics", "maskc.compiler"},  # maskc/__init__.py
}
FORBIDDEN: dict[str, set[str]] = {"maskc.runtime": {"maskc.grammar", "maskc.check", "maskc.cli", "maskc.cli_check"}}
LAZY: dict[str, set[str]] = {  # only inside functions
    "maskc.compiler": {"maskc.runtime"},
    "maskc.cli": {"maskc.runtime"},
    "maskc.explain": {"maskc.runtime"},
    "maskc.png": {"matplotlib"},
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
        ("maskc.plan", "from .spec import Expr", "maskc.plan, line 1, may not import .spec"),
        ("maskc.plan", "import runtime.tiled", "maskc.plan, line 1, may not import runtime.tiled"),
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


def test_every_module_is_in_the_wheel_mapping() -> None:
    """No folder below the four: packages are listed by hand in pyproject.toml."""
    nested = [p for folder in FOLDERS for p in (ROOT / folder).glob("*/**/*.py")]
    assert nested == []


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
def test_wheel_holds_the_four_packages_and_their_data(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for folder in FOLDERS:
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
