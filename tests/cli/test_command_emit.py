"""`maskc emit`: every stage as text."""

import ast
from collections.abc import Callable

import pytest

from maskc.check import load
from maskc.codegen.source import emit

Maskc = Callable[..., tuple[int, str, str]]

TREE = """\
File documents.mask
  Mask readable=True
    name: Name text='whole'
    body: Keep
      value: Comparison
        operands: Name text='k'
        operands: Name text='q'
        comparators: Comparator text='<='
  Mask readable=True
    name: Name text='documents'
    body: Input
      name: Name text='doc'
"""


def test_tree_shows_what_was_written(maskc: Maskc) -> None:
    status, out, err = maskc("emit", "documents.mask", "--stage", "tree")
    assert (status, err) == (0, "")
    assert out.startswith(TREE)


def test_spec_is_the_checked_mask(maskc: Maskc) -> None:
    assert maskc("emit", "window.mask", "--stage", "spec") == (0, str(load("window.mask")) + "\n", "")
    assert maskc("emit", "documents.mask:whole", "--stage", "spec")[1].startswith("mask whole\n  keep k <= q\n")


def test_plan_prints_itself(maskc: Maskc) -> None:
    status, out, err = maskc("emit", "window.mask", "--stage", "plan", "--seq", "100", "--tile", "64")
    assert (status, err) == (0, "")
    assert out.startswith("plan of window: 100 queries x 100 keys, one map\n  tiles of 64 x 64: 2 rows x 2 columns\n")


def test_kernel_is_the_file_that_runs(maskc: Maskc) -> None:
    status, out, err = maskc("emit", "window.mask", "--stage", "kernel")
    assert (status, err) == (0, "")
    assert out == emit(load("window.mask")).text
    modules = {node.names[0].name.split(".")[0] for node in ast.walk(ast.parse(out)) if isinstance(node, ast.Import)}
    assert modules == {"torch", "triton"}


@pytest.mark.parametrize(
    ("stage", "target", "first", "inside"),
    [
        ("ttir", "sm_80", "// forward_kernel", "tt.func public @forward_kernel"),
        ("ptx", "sm_90", "// forward_kernel", ".visible .entry forward_kernel"),
        ("sass", "sm_90", "// forward_kernel", "EXIT"),
        ("amdgcn", "gfx942", "; forward_kernel", "s_endpgm"),
    ],
)
def test_machine_stages_need_no_gpu(maskc: Maskc, stage: str, target: str, first: str, inside: str) -> None:
    options = ["--kernel", "forward_kernel", "--dim", "16"]
    status, out, err = maskc("emit", "window.mask", "--stage", stage, "--target", target, *options)
    assert status == 0
    assert err == f"compiling forward_kernel for {target} ...\n"
    assert out.splitlines()[0] == first
    assert inside in out


@pytest.mark.slow
def test_all_kernels_of_a_spec_are_printed(maskc: Maskc) -> None:
    status, out, _ = maskc("emit", "window.mask", "--stage", "ttir", "--dim", "16")
    assert status == 0
    assert [line.removeprefix("// ") for line in out.splitlines() if line.startswith("// ")] == [
        kernel.name for kernel in emit(load("window.mask")).kernels
    ]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--stage", "ptx", "--target", "sm_91"], "no target 'sm_91'; known are sm_80"),
        (["--stage", "ptx", "--target", "gfx942"], "no stage 'ptx' for gfx942; it has ttir, ttgir, llir, amdgcn"),
        (["--stage", "amdgcn"], "no stage 'amdgcn' for sm_90; it has ttir, ttgir, llir, ptx, sass"),
        (["--stage", "ptx", "--kernel", "main"], "no entry point 'main'; the kernel file has forward_kernel"),
        (["--stage", "ptx", "--dim", "48"], "the head dim of q and k is 48; generated kernels have 16, 32, 64, 128"),
        (["--stage", "ptx", "--dtype", "float64"], "q, k and v are float64; generated kernels have fp16, bf16, fp32"),
    ],
)
def test_what_cannot_be_compiled_is_one_sentence(maskc: Maskc, options: list[str], sentence: str) -> None:
    status, out, err = maskc("emit", "window.mask", *options)
    assert (status, out) == (1, "")
    assert sentence in err
