"""Kernels compile for every target with no GPU present, and every stage can be read."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from maskc.check import load
from maskc.codegen.schedule import TENSOR_COLUMNS, configuration, target_named
from maskc.codegen.source import emit
from maskc.codegen.variants import named_form, plainest
from maskc.diagnostics import MaskUnsupportedError
from maskc.runtime import stages

SPEC = load("mask window(w: int = 9):\n    keep 0 <= q - k < w\n    score -= 0.1 * (q - k)\n")
ENTRIES = ("forward_kernel", "backward_rows_kernel", "backward_queries_kernel", "backward_keys_kernel")
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
WORDS = {
    "ttir": "tt.dot",
    "ttgir": "ttg.num-warps",
    "llir": "define",
    "ptx": ".visible .entry",
    "sass": "EXIT",
    "amdgcn": "s_endpgm",
}


@pytest.mark.parametrize(
    ("target", "stage"),
    [("sm_80", "ptx"), ("sm_90", "sass"), ("sm_90", "ttgir"), ("sm_100", "llir"), ("gfx942", "amdgcn")],
)
def test_a_kernel_compiles_for_every_target(target: str, stage: str) -> None:
    text = stages.compile_stage(SPEC, target=target, stage=stage, dim=32)
    assert WORDS[stage] in text


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
def test_every_kernel_compiles_for_every_target(target: str, entry: str, dtype: str) -> None:
    shown = ["ttir", "ttgir", "llir", *(["amdgcn"] if target == "gfx942" else ["ptx", "sass"])]
    for stage in shown:
        text = stages.compile_stage(SPEC, entry=entry, target=target, dtype=dtype, stage=stage)
        assert stage == "ttir" or WORDS[stage] in text


LOOKUPS = {
    "member": "input route: int[batch, n, top] of k // 16\n    keep k // 16 in route[batch, q // 16]",
    "bucket": "input start: int[docs] of seq sorted\n    keep bucket(q, start) == bucket(k, start)",
    "bucket of floats": "input e: float[n] sorted\n    score = score + bucket(score, e) + bucket(q - k, [0, 1, 4])",
    "rand": "keep rand(7, q, k) < 0.9\n    score += rand(k, head)",
    "fold": "keep any(q - k == 3 * i for i in range(4))",
}


@pytest.mark.parametrize("body", LOOKUPS.values(), ids=LOOKUPS)
@pytest.mark.parametrize(("target", "stage"), [("sm_90", "ptx"), ("gfx942", "amdgcn")])
def test_kernels_that_search_rows_compile(target: str, stage: str, body: str) -> None:
    spec = load(f"mask lookups:\n    {body}\n")
    assert WORDS[stage] in stages.compile_stage(spec, target=target, stage=stage, dim=32)


@pytest.mark.slow
@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize(("target", "stage"), [("sm_90", "sass"), ("gfx942", "amdgcn")])
def test_a_kernel_with_all_searches_compiles(target: str, stage: str, entry: str) -> None:
    spec = load("mask lookups:\n" + "".join(f"    {body}\n" for body in LOOKUPS.values()))
    assert WORDS[stage] in stages.compile_stage(spec, entry=entry, target=target, stage=stage, dim=32)


# Everything that the table offers compiles within the limits of the chip.

DIMS = (8, 16, 32, 40, 64, 72, 80, 96, 128, 160, 192, 256)
PAIRS = ((192, 128), (64, 128), (128, 40))
CHIPS = ("sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "gfx942")
OWNERS = ENTRIES[0], ENTRIES[2], ENTRIES[3]
WINDOW = load("mask window(w: int = 9):\n    keep 0 <= q - k < w\n")


def _fits(
    target: str, entry: str, dims: tuple[int, int], dtype: str, monkeypatch: pytest.MonkeyPatch, indexed: bool = False
) -> None:
    """Compiles a kernel in its configuration and holds it against what the chip has."""
    chip, source = target_named(target), emit(WINDOW, named_form(WINDOW, dims, indexed=indexed))
    chosen = configuration(chip, dims, dtype, stages.PASSES[entry], source.heavy, indexed)
    variant = plainest(WINDOW, source.form, dims, dtype)
    compiled = stages.compile_kernel(source, WINDOW, entry, chip, variant, chosen)
    assert compiled.shared <= chip.shared
    if chip.backend == "hip":
        return
    usage = re.search(r"REG:(\d+)", stages.resources(compiled))
    assert usage is not None
    assert int(usage[1]) <= chip.registers
    if columns := re.search(r"tcgen05\.alloc\S* \[\S+\], (\d+);", str(compiled.stages["ptx"])):
        assert int(columns[1]) <= TENSOR_COLUMNS
    if target == "sm_90" and max(dims) <= 128 and dtype != "fp32":
        monkeypatch.syspath_prepend(str(BENCHMARKS))
        assert importlib.import_module("static_code").read(stages.disassembled(compiled)).local_in_loops == 0


@pytest.mark.slow
@pytest.mark.parametrize("entry", OWNERS)
@pytest.mark.parametrize("target", CHIPS)
@pytest.mark.parametrize("dim", DIMS)
def test_every_head_dim_fits_every_chip(target: str, entry: str, dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    _fits(target, entry, (dim, dim), "fp16", monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("entry", OWNERS)
@pytest.mark.parametrize("target", CHIPS)
@pytest.mark.parametrize("dim", [40, 64, 72, 128, 192])
def test_every_head_dim_fits_where_the_plan_gives_positions(
    target: str, entry: str, dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fits(target, entry, (dim, dim), "bf16", monkeypatch, indexed=True)


@pytest.mark.slow
@pytest.mark.parametrize("entry", OWNERS)
@pytest.mark.parametrize("target", ["sm_86", "sm_90", "sm_100", "gfx942"])
@pytest.mark.parametrize("dims", PAIRS, ids=str)
def test_pairs_of_head_dims_fit(
    target: str, entry: str, dims: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    _fits(target, entry, dims, "bf16", monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("entry", OWNERS)
@pytest.mark.parametrize(("target", "dim"), [("sm_80", 256), ("sm_90", 72), ("sm_100", 128), ("gfx942", 64)])
def test_float32_fits(target: str, entry: str, dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    _fits(target, entry, (dim, dim), "fp32", monkeypatch)


def test_copies_are_asynchronous_and_the_pipeline_is_deep() -> None:
    """Without the declared alignment of rows a loop has no asynchronous copy at all."""
    text = stages.compile_stage(SPEC, stage="ptx", dim=64)
    assert "cp.async.cg.shared.global" in text
    assert "wgmma.mma_async" in text
    assert "cp.async.wait_group \t2" in text


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"target": "sm_1"}, "no target 'sm_1'"),
        ({"entry": "kernel"}, "no entry point 'kernel'"),
        ({"stage": "amdgcn"}, "no stage 'amdgcn' for sm_90"),
        ({"target": "gfx942", "stage": "ptx"}, "no stage 'ptx' for gfx942"),
        ({"dim": 257}, "head dim of q and k is 257"),
        ({"dim_v": 0}, "head dim of v is 0"),
        ({"dtype": "fp64"}, "fp64"),
    ],
)
def test_what_cannot_be_compiled_is_refused_by_name(options: dict[str, object], named: str) -> None:
    with pytest.raises(MaskUnsupportedError, match=named):
        stages.compile_stage(SPEC, **options)  # type: ignore[arg-type]


def test_a_process_that_interprets_says_that_it_cannot_compile() -> None:
    program = """
from maskc.check import load
from maskc.diagnostics import MaskError
from maskc.runtime import stages
spec = load("mask a:\\n    keep k <= q\\n")
try:
    stages.compile_stage(spec)
except MaskError as error:
    print(error)
"""
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert "TRITON_INTERPRET=1" in done.stdout
