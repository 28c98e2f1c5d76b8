"""The table of configurations: what it offers fits, by the model and by the compiler's own figures."""

import itertools
from dataclasses import replace

import pytest

from maskc.check import load
from maskc.codegen import schedule
from maskc.codegen.loads import loads
from maskc.codegen.schedule import (
    DTYPES,
    TARGETS,
    Configuration,
    Loads,
    configuration,
    fits,
    fitting,
    needs,
    splits,
    target_named,
)
from maskc.codegen.table import TABLE
from maskc.codegen.variants import named_form, plainest
from maskc.diagnostics import MaskUnsupportedError
from maskc.runtime import stages

DIMS = (1, 8, 40, 64, 72, 96, 128, 136, 160, 192, 208, 256)
PASSES: tuple[schedule.Pass, ...] = ("forward", "queries", "keys")
ENTRIES = ("forward_kernel", "backward_queries_kernel", "backward_keys_kernel")
SPEC = load("mask window(w: int = 9):\n    keep 0 <= q - k < w\n")
BIAS = load("mask biased:\n    input bias: float[head, q, k]\n    keep k <= q\n    score += bias[q, k]\n")
SMALLEST = Configuration(16, 16, 4, 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("target", TARGETS.values(), ids=str)
def test_nothing_is_offered_that_does_not_fit_and_there_is_always_a_smaller_one(
    target: schedule.Target, dtype: str
) -> None:
    for dim_qk, dim_v, pass_, heavy in itertools.product(DIMS, DIMS, PASSES, (False, True)):
        dims = (dim_qk, dim_v)
        found = fitting(target, dims, dtype, pass_, heavy)
        assert found[0] == configuration(target, dims, dtype, pass_, heavy)
        assert found[-1] == SMALLEST
        for c in found:
            needed = needs(target, c, dims, dtype, pass_)
            assert needed.shared <= target.shared
            assert needed.columns <= schedule.TENSOR_COLUMNS
            assert c == SMALLEST or fits(target, needed, dims)
            assert min(c.tile) >= 16  # what tl.dot needs


def test_a_plan_is_made_for_a_tile_before_it_is_known_to_give_positions() -> None:
    for target, dim, dtype, pass_, heavy in itertools.product(TARGETS.values(), DIMS, DTYPES, PASSES, (False, True)):
        contiguous, indexed = (configuration(target, (dim, dim), dtype, pass_, heavy, i) for i in (False, True))
        assert contiguous.tile == indexed.tile


def test_every_row_of_the_table_is_the_choice_of_some_case() -> None:
    """Also of those for larger dims behind those for smaller ones: a row in the wrong order would never be reached."""
    reached = set()
    for target, dim, dtype, pass_, heavy in itertools.product(TARGETS.values(), range(1, 257), DTYPES, PASSES, (0, 1)):
        kind = schedule.kind_of(target, (dim, dim), dtype, pass_, bool(heavy), False)
        reached.add(next(number for number, row in enumerate(schedule.table()) if row.serves(kind)))
    assert reached == set(range(len(schedule.table())))
    assert len(schedule.table()) == sum("/" in line for line in TABLE.split("\n")) - 1  # the heading has a slash, too


def test_a_smaller_chip_gets_a_smaller_configuration() -> None:
    dims = (128, 128)
    large, small = (configuration(target_named(name), dims, "fp16", "forward") for name in ("sm_80", "sm_86"))
    bytes_ = [needs(target_named("sm_86"), c, dims, "fp16", "forward").shared for c in (large, small)]
    assert bytes_[1] <= target_named("sm_86").shared < bytes_[0]


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


# What the mask reads.


def test_reads_are_counted_by_what_they_depend_on() -> None:
    text = """
mask reads:
    input row: int[batch, q]
    input column: float[k]
    input pair: float[q, k]
    input flag: bool[q, k]
    input head_bias: float[head]
    keep row[q] > 0 and flag[q, k]
    score += column[k] + 2 * column[k] + pair[q, k] + head_bias
"""
    spec = load(text)
    assert loads(spec) == Loads(query=8, key=4, pair=4)
    assert loads(spec, frozenset({"pair", "column"})) == Loads(query=8, key=8, pair=8)
    assert loads(SPEC) == Loads()


def test_what_a_mask_reads_for_every_pair_makes_the_tile_smaller() -> None:
    target = target_named("sm_90")
    for pass_, dim in itertools.product(PASSES, (64, 128, 256)):
        plain, reading = (configuration(target, (dim, dim), "fp16", pass_, loads=x) for x in (Loads(), Loads(pair=16)))
        assert needs(target, reading, (dim, dim), "fp16", pass_, Loads(pair=16)).shared <= target.shared
        assert (reading.block_q * reading.block_k, reading.stages) <= (plain.block_q * plain.block_k, plain.stages)


def test_a_mask_whose_reads_alone_fill_the_chip_is_refused() -> None:
    with pytest.raises(
        MaskUnsupportedError, match="reads 4000 bytes for every pair of a tile, which fits sm_90 at no size"
    ):
        configuration(target_named("sm_90"), (64, 64), "fp16", "forward", loads=Loads(pair=4000))


def test_rows_that_pass_through_registers_make_the_tile_smaller() -> None:
    """Without asynchronous copies the larger one spills in its loops, by the compiler's figures for sm_90."""
    copied, loaded = (
        configuration(target_named("sm_90"), (64, 64), "bf16", "keys", aligned=aligned) for aligned in (True, False)
    )
    assert (copied.tile, loaded.tile) == ((64, 64), (32, 64))


# Shares of keys.


@pytest.mark.parametrize(
    ("programs", "longest", "expected"),
    [
        (0, 100, 1),  # nothing to do
        (66, 1000, 1),  # half of the chip has work
        (65, 1000, 2),
        (32, 1000, 4),
        (1, 1000, 32),  # at most
        (1, 100, 25),  # 4 key tiles each
        (8, 9, 2),
        (8, 7, 1),
        (8, 0, 1),
    ],
)
def test_shares_fill_the_chip_once(programs: int, longest: int, expected: int) -> None:
    assert splits(132, programs, longest) == expected


def test_shares_never_ask_for_more_than_the_chip_runs_at_once() -> None:
    for processors, programs, longest in itertools.product((1, 20, 84, 132, 304), range(1, 400, 7), (0, 3, 64, 4096)):
        found = splits(processors, programs, longest)
        assert found == 1 or found * programs <= processors
        assert 1 <= found <= 32
        assert found == 1 or longest // found >= 4


# The model against the compiler.


def _shared(target: str, entry: str, dim: int, dtype: str, c: Configuration, reading: bool = False) -> tuple[int, int]:
    """Shared memory of a kernel in a configuration, by the compiler and by the model."""
    spec, dims, chip = BIAS if reading else SPEC, (dim, dim), target_named(target)
    source = stages.emit(spec, named_form(spec, dims))
    variant = replace(plainest(spec, source.form, dims, dtype), aligned=True)
    compiled = stages.compile_kernel(source, spec, entry, chip, variant, c)
    return compiled.shared, needs(chip, c, dims, dtype, stages.PASSES[entry], loads(spec)).shared


@pytest.mark.parametrize(
    ("target", "entry", "dim", "c", "reading"),
    [
        ("sm_80", "backward_queries_kernel", 128, Configuration(64, 64, 4, 2), False),
        ("sm_90", "forward_kernel", 64, Configuration(128, 64, 8, 3), True),
        ("sm_90", "backward_keys_kernel", 64, Configuration(64, 64, 4, 3), False),
        ("sm_100", "forward_kernel", 128, Configuration(128, 64, 8, 3), False),
        ("sm_100", "backward_queries_kernel", 72, Configuration(64, 64, 4, 2), False),
        ("gfx942", "forward_kernel", 64, Configuration(64, 64, 4, 2), False),
    ],
)
def test_the_model_covers_what_the_compiler_takes(
    target: str, entry: str, dim: int, c: Configuration, reading: bool
) -> None:
    compiled, model = _shared(target, entry, dim, "fp16", c, reading)
    # A model that asks for far more than there is would keep good configurations out.
    assert compiled <= model <= 1.25 * compiled


@pytest.mark.slow
@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
@pytest.mark.parametrize("c", [Configuration(64, 32, 4, 2), Configuration(32, 32, 4, 2), SMALLEST], ids=str)
def test_the_model_covers_what_everything_ends_in(target: str, entry: str, c: Configuration) -> None:
    compiled, model = _shared(target, entry, 128, "bf16", c)
    assert compiled <= model


@pytest.mark.slow
@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("target", ["sm_86", "sm_90", "sm_100", "gfx942"])
def test_the_model_covers_what_masks_read(target: str, entry: str) -> None:
    chosen = configuration(target_named(target), (64, 64), "fp16", stages.PASSES[entry], loads=loads(BIAS))
    compiled, model = _shared(target, entry, 64, "fp16", chosen, reading=True)
    assert compiled <= model
