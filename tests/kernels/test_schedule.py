"""The table of configurations: what it offers fits, by the model and by the compiler's own figures."""

import itertools

import pytest

from maskc.check import load
from maskc.codegen import schedule
from maskc.codegen.schedule import DTYPES, TARGETS, configuration, fitting, shared_bytes, target_named
from maskc.codegen.source import emit
from maskc.codegen.variants import plainest
from maskc.diagnostics import MaskUnsupportedError
from maskc.runtime import stages

DIMS = (1, 8, 40, 64, 72, 128, 160, 192, 256)
PASSES: tuple[schedule.Pass, ...] = ("forward", "queries", "keys")
SPEC = load("mask window(w: int = 9):\n    keep 0 <= q - k < w\n")


@pytest.mark.parametrize("target", TARGETS.values(), ids=str)
def test_every_case_has_a_configuration_that_fits(target: schedule.Target) -> None:
    for dim_qk, dim_v, dtype, pass_, heavy in itertools.product(DIMS, DTYPES, PASSES, (False, True)):
        found = fitting(target, (dim_qk, dim_v), dtype, pass_, heavy)
        assert found[0] == configuration(target, (dim_qk, dim_v), dtype, pass_, heavy)
        assert all(shared_bytes(c, (dim_qk, dim_v), dtype, pass_) <= target.shared for c in found)
        assert all(c.block_q >= 16 and c.block_k >= 16 for c in found)  # what tl.dot needs


def test_a_smaller_chip_gets_a_smaller_configuration() -> None:
    large = configuration(target_named("sm_90"), (128, 128), "fp16", "forward")
    small = configuration(target_named("sm_86"), (128, 128), "fp16", "forward")
    assert shared_bytes(small, (128, 128), "fp16", "forward") < shared_bytes(large, (128, 128), "fp16", "forward")


@pytest.mark.parametrize(
    ("dims", "dtype", "named"),
    [
        ((0, 16), "fp16", "head dim of q and k is 0"),
        ((64, 257), "fp16", "head dim of v is 257"),
        ((64, 64), "fp64", "fp64"),
    ],
)
def test_what_kernels_do_not_have_is_refused_by_name(dims: tuple[int, int], dtype: str, named: str) -> None:
    with pytest.raises(MaskUnsupportedError, match=named):
        configuration(target_named("sm_90"), dims, dtype, "forward")


def test_unknown_targets_are_refused_by_name() -> None:
    with pytest.raises(MaskUnsupportedError, match="no target 'sm_10'; known are sm_80"):
        target_named("sm_10")


def _compiled_shared(target: str, entry: str, dim: int, dtype: str) -> tuple[int, int]:
    """Bytes by the model and by the compiler."""
    chip, source = target_named(target), emit(SPEC)
    chosen = configuration(chip, (dim, dim), dtype, stages.PASSES[entry])
    compiled = stages.compile_kernel(source, SPEC, entry, chip, plainest(SPEC, source.form, (dim, dim), dtype), chosen)
    return shared_bytes(chosen, (dim, dim), dtype, stages.PASSES[entry]), compiled.shared


@pytest.mark.parametrize("entry", ["forward_kernel", "backward_keys_kernel"])
def test_the_model_covers_what_the_compiler_takes(entry: str) -> None:
    model, real = _compiled_shared("sm_90", entry, 64, "fp16")
    assert real <= model


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "gfx942"])
@pytest.mark.parametrize("entry", ["forward_kernel", "backward_queries_kernel", "backward_keys_kernel"])
@pytest.mark.parametrize(("dtype", "dim"), [("fp16", 16), ("bf16", 128), ("fp32", 64)])
def test_every_configuration_compiles_and_fits(target: str, entry: str, dim: int, dtype: str) -> None:
    _, real = _compiled_shared(target, entry, dim, dtype)
    assert real <= TARGETS[target].shared
