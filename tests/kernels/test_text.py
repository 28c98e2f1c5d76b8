"""The kernel file as text: golden for two small specs, the same for equal specs, and what never stands in it."""

import ast
from pathlib import Path

import pytest

from maskc.check import load
from maskc.codegen.source import emit
from maskc.spec import MaskSpec

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.mask"))

WINDOW = "mask sliding_window(window: int = 256):\n    keep 0 <= q - k < window\n"
DOCUMENTS = (
    "mask biased_documents:\n    input doc: int[batch, seq] sorted\n    keep doc[q] == doc[k]\n"
    "    score -= 0.5 * abs(q - k)\n"
)


def test_golden(request: pytest.FixtureRequest) -> None:
    """The whole file of one mask, and of another one the lines that are its own; `--update-golden` writes them anew."""
    window, documents = emit(load(WINDOW)).text, emit(load(DOCUMENTS)).text
    common = set(window.split("\n"))
    own = "".join(f"{line}\n" for line in documents.split("\n") if line not in common)
    for name, text in (("sliding_window", window), ("biased_documents_own_lines", own)):
        path = Path(__file__).parent / "golden" / f"{name}.txt"
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        assert text == path.read_text(), f"{path} differs; look at the change, then run pytest with --update-golden"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_equal_specs_give_equal_bytes(path: Path) -> None:
    first = emit(load(path)).text
    emit.cache_clear()
    assert emit(load(path)).text == first


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_files_stand_alone_and_avoid_what_breaks(path: Path) -> None:
    source = emit(load(path))
    tree = ast.parse(source.text)
    imports = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert imports == ["torch", "triton", "triton.language"]
    assert not any(isinstance(node, ast.ImportFrom) for node in ast.walk(tree))
    for word in ("make_block_ptr", "atomic", "autotune", "advance", "make_tensor_descriptor", "libdevice"):
        assert word not in source.text
    dots = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "tl.dot"]
    assert dots
    assert all(any(k.arg == "input_precision" for k in dot.keywords) for dot in dots)
    # An accumulator is never transposed: only loaded tiles are.
    turned = {
        ast.unparse(n.args[0]) for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "tl.trans"
    }
    assert turned <= {"q_tile", "k_tile", "v_tile", "d_out_tile"}


def test_kernel_signatures_agree_with_the_text() -> None:
    source = emit(load(ROOT / "examples" / "routing_transformer.mask"))
    functions = {node.name: node for node in ast.parse(source.text).body if isinstance(node, ast.FunctionDef)}
    for kernel in source.kernels:
        arguments = [a.arg for a in functions[kernel.name].args.args]
        assert arguments == [a.name for a in kernel.arguments]
        plain = sum(a.type != "constexpr" for a in kernel.arguments)
        assert f"do_not_specialize=[*range({plain})]" in ast.unparse(functions[kernel.name].decorator_list[0])


def test_values_are_not_part_of_the_text() -> None:
    """A default is part of the spec's text in the header, and of nothing else."""

    def code(default: int) -> str:
        text = emit(load(f"mask window(w: int = {default}):\n    keep q - k < w\n")).text
        return "\n".join(line for line in text.split("\n") if not line.startswith("#"))

    assert code(3) == code(1000)


@pytest.mark.parametrize(
    "name", ["tile", "lse", "heads_", "tl", "out", "maps", "stop", "config", "products", "weights", "full", "term_q"]
)
def test_names_of_the_user_never_clash(name: str) -> None:
    body = f"    input {name}_: int[head]\n    keep q - k < {name} + {name}_ and k % 5 != {name}\n"
    text = f"mask clash({name}: int):\n{body}"
    source = emit(load(text))
    functions = [node for node in ast.parse(source.text).body if isinstance(node, ast.FunctionDef)]
    for function in functions:
        names = [a.arg for a in function.args.args]
        assert len(names) == len(set(names))
    used = {a.name for kernel in source.kernels for a in kernel.arguments if a.type in ("i64", "input:" + name + "_")}
    assert used


def test_shared_parts_are_computed_once() -> None:
    spec = load("mask shared:\n    let near = tanh(score)\n    score = near * near + exp(near)\n    keep k <= q\n")
    forward = emit(spec).text.split("def forward_kernel")[1].split("@triton.jit")[0]
    assert forward.count("_tanh(") == 2  # once in the loop over full tiles, once in that over partial ones


def test_one_sided_parts_leave_the_loop() -> None:
    spec = load("mask sides(w: int):\n    keep q // w == k // w and q % 7 != 3\n")
    forward = emit(spec).text.split("def forward_kernel")[1].split("@triton.jit")[0]
    before, inside = forward.split("# Partial tiles", 1)
    assert "% 7" in before
    assert "% 7" not in inside
    assert inside.count("_floor_divide(") == 1  # the key's


def test_float64_decides_only_where_asked() -> None:
    assert not emit(MaskSpec("plain")).double
    assert not emit(load("mask a:\n    score -= 0.5 * (q - k)\n")).double
    exact = emit(load("mask a(s: float):\n    keep floor(q * s) == floor(k * s)\n"))
    assert exact.double
    assert "enable_fp_fusion" in exact.text
