"""`maskc emit`: every stage as text."""

import ast
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from maskc.check import load
from maskc.codegen import variants
from maskc.codegen.source import emit
from maskc.runtime import loader

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


DILATED = """\
mask dilated(window: int = 8, dilation: int = 2):
    input bias: float[head, q]
    keep 0 <= q - k < window * dilation
    keep (q - k) % dilation == 0
    score += bias[q]
"""


def test_kernel_files_of_every_form(maskc: Maskc) -> None:
    Path("dilated.mask").write_text(DILATED)
    spec = load("dilated.mask")
    whole = variants.named_form(spec, (64, 64))
    for options, form in (
        ([], whole),
        (["--indexed"], variants.named_form(spec, (64, 64), indexed=True)),
        (["--open", "0"], variants.named_form(spec, (64, 64), clauses=(0,))),
        (["--open", "0,1"], whole),
        (["--dim", "192", "--dim-v", "128"], variants.named_form(spec, (192, 128))),
    ):
        assert maskc("emit", "dilated.mask", "--stage", "kernel", *options) == (0, emit(spec, form).text, "")
    assert len({emit(spec, form).text for form in variants.forms(spec, (192, 128))}) == 4


def test_variants_are_a_table(maskc: Maskc) -> None:
    Path("dilated.mask").write_text(DILATED)
    status, out, err = maskc("emit", "dilated.mask", "--variants", "--dim", "192", "--dim-v", "128")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    announced = variants.announced(load("dilated.mask"), (192, 128), "fp16")
    assert lines[0] == f"dilated: {len(announced):,} variants of 4 kernel files; float16, head dims 192 | 128"
    assert [line.split()[1:] for line in lines[2:6]] == [
        ["512", "contiguous", "every", "clause"],
        ["512", "contiguous", "clause", "0"],
        ["512", "indexed", "every", "clause"],
        ["512", "indexed", "clause", "0"],
    ]
    assert "  clause 1  (q - k) % dilation == 0" in lines
    assert any(line.startswith("  bias ") and "float32 | float64 | float16 | bfloat16" in line for line in lines)
    assert "tiles of queries x keys on sm_90" in lines
    assert not any(line.startswith("  dots ") for line in lines)
    assert "  dots " in maskc("emit", "dilated.mask", "--variants", "--dtype", "float32")[1]


def test_variants_are_an_object_and_name_files_of_the_cache(maskc: Maskc) -> None:
    status, out, err = maskc("emit", "documents.mask", "--variants", "--json", "--target", "gfx942")
    assert (status, err) == (0, "")
    found = json.loads(out)
    spec = load("documents.mask")
    assert found["variants"] == len(variants.announced(spec, (64, 64), "fp16"))
    assert [file["keys"] for file in found["files"]] == ["contiguous", "indexed"]
    assert found["clauses"] == ["doc[q] == doc[k]"]
    assert found["target"] == "gfx942"
    assert all(file["configurations"].keys() == {"forward", "queries", "keys"} for file in found["files"])
    loaded = loader.load(emit(spec)).__file__
    assert loaded is not None
    assert os.path.basename(loaded) == found["files"][0]["file"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--stage", "ptx", "--target", "sm_91"], "no target 'sm_91'; known are sm_80"),
        (["--stage", "ptx", "--target", "gfx942"], "no stage 'ptx' for gfx942; it has ttir, ttgir, llir, amdgcn"),
        (["--stage", "amdgcn"], "no stage 'amdgcn' for sm_90; it has ttir, ttgir, llir, ptx, sass"),
        (["--stage", "ptx", "--kernel", "main"], "no entry point 'main'; the kernel file has forward_kernel"),
        (["--stage", "ptx", "--dim", "257"], "the head dim of q and k is 257; generated kernels have 1 to 256"),
        (["--stage", "kernel", "--dim-v", "257"], "the head dim of v is 257; generated kernels have 1 to 256"),
        (["--stage", "kernel", "--open", "1"], "no kernel of mask 'window' evaluates clauses 1 in partial tiles"),
        (["--stage", "ptx", "--open", "none"], "no kernel of mask 'window' evaluates clauses none in partial tiles"),
        (["--variants", "--dtype", "float64"], "q, k and v are float64; generated kernels have fp16, bf16, fp32"),
        (["--variants", "--target", "sm_91"], "no target 'sm_91'; known are sm_80"),
        (["--stage", "ptx", "--dtype", "float64"], "q, k and v are float64; generated kernels have fp16, bf16, fp32"),
    ],
)
def test_what_cannot_be_compiled_is_one_sentence(maskc: Maskc, options: list[str], sentence: str) -> None:
    status, out, err = maskc("emit", "window.mask", *options)
    assert (status, out) == (1, "")
    assert sentence in err
