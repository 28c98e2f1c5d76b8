"""The static judge: how it reads machine code, its requirements, and the committed figures against the compiler's."""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import triton

from maskc.codegen.schedule import TARGETS, Configuration
from maskc.codegen.variants import named_form

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
RESULTS = json.loads((BENCHMARKS / "results" / "static.json").read_text())
RECORDS = RESULTS["records"]


@pytest.fixture(scope="module")
def static() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("static")


@pytest.fixture(scope="module")
def kernels(static: Any) -> Any:
    return importlib.import_module("static_kernels")


@pytest.fixture(scope="module")
def code(static: Any) -> Any:
    return importlib.import_module("static_code")


@pytest.fixture(scope="module")
def chips(static: Any) -> Any:
    return importlib.import_module("static_chips")


# The committed figures.


# What misses a requirement, and is to be mended: mask, kernel, head dim, dtype, whether keys are indexed.
MISSED = {
    ("alibi", "backward_keys_kernel", 128, "bf16", True): "5 accesses to local memory inside loops",
    ("neighborhood_2d", "backward_keys_kernel", 128, "bf16", False): "full loop 1.051",
    ("neighborhood_2d", "backward_keys_kernel", 128, "fp16", False): "full loop 1.051",
    ("routing_transformer", "backward_keys_kernel", 128, "bf16", True): "full loop 1.155",
    ("causal", "backward_queries_kernel", 8, "bf16", False): "full loop 1.052",
    ("causal", "backward_queries_kernel", 16, "bf16", False): "full loop 1.053",
    ("causal", "backward_keys_kernel", 16, "bf16", False): "full loop 1.050",
    ("causal", "forward_kernel", 32, "bf16", False): "full loop 1.056",
    ("causal", "forward_kernel", 96, "bf16", False): "full loop 1.055",
    ("dilated_window", "forward_kernel", 96, "bf16", False): "full loop 1.055",
    ("dilated_window", "backward_queries_kernel", 72, "bf16", False): "partial loop 2.36",
}


def test_every_record_meets_the_requirements_but_those_that_are_named(static: Any) -> None:
    found = {}
    for judged in map(static.parsed, RECORDS):
        case = judged.case
        for problem in static.failures(judged):
            found[case.mask, case.entry, case.dims[0], case.dtype, case.indexed] = problem.split(" of ")[0]
    assert found == MISSED


def test_the_records_are_those_of_the_kernels_and_configurations_that_there_are(static: Any, kernels: Any) -> None:
    assert [static.parsed(row).case for row in RECORDS] == static.with_baselines(kernels.matrix())


def test_what_records_say_of_figures_follows_from_them(static: Any) -> None:
    known = {(j := static.parsed(row)).case: j.figures for row in RECORDS}
    for row in RECORDS:
        assert static.record(static.judge(static.parsed(row).case, known)) == row


def compare(static: Any, kernels: Any, row: dict[str, Any]) -> None:
    """Figures by another Triton may differ, but they have to meet the requirements, too."""
    recorded = static.parsed(row)
    case = recorded.case
    found = kernels.figures(case)
    if triton.__version__ == RESULTS["versions"]["triton"]:
        assert found == recorded.figures, f"{case}: `python benchmarks/static.py` writes the figures anew"
    else:
        known = {c: kernels.figures(c) for c in (case.plain, case.baseline)} | {case: found}
        assert static.failures(static.judge(case, known)) == []


def record_of(mask: str, entry: str, dim: int, indexed: bool) -> dict[str, Any]:
    wanted = {"mask": mask, "entry": entry, "target": "sm_90", "dims": [dim, dim], "dtype": "bf16", "indexed": indexed}
    wanted |= {"clauses": None, "choice": "", "free": False}
    (found,) = (row for row in RECORDS if wanted.items() <= row.items())
    return found  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("mask", "entry", "dim", "indexed"),
    [
        ("causal", "forward_kernel", 64, False),
        ("causal", "forward_kernel", 64, True),
        ("documents", "backward_queries_kernel", 128, False),
        ("dilated_window", "backward_keys_kernel", 64, False),
    ],
)
def test_the_compiler_says_what_the_records_say(
    static: Any, kernels: Any, mask: str, entry: str, dim: int, indexed: bool
) -> None:
    compare(static, kernels, record_of(mask, entry, dim, indexed))


@pytest.mark.slow
@pytest.mark.parametrize("row", RECORDS[::16], ids=lambda row: f"{row['mask']}-{row['entry']}-{row['target']}")
def test_the_compiler_says_what_more_records_say(static: Any, kernels: Any, row: dict[str, Any]) -> None:
    compare(static, kernels, row)


@pytest.mark.slow
def test_the_command_judges_a_part_and_writes_it(
    static: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "static.json"
    assert static.main(["--only", "^causal  .*forward +sm_90 +64 bf16", "--jobs", "1", "--json", str(path)]) == 0
    assert "full" in capsys.readouterr().out
    written = json.loads(path.read_text())
    assert written["versions"]["triton"] == triton.__version__
    assert [static.parsed(row).case.free for row in written["records"]] == [True, False]


# Requirements.


def test_each_requirement_can_be_missed(static: Any) -> None:
    row = record_of("dilated_window", "forward_kernel", 64, False)
    row = row | {"full_ratio": 1.05, "partial_ratio": 2.0, "local_in_loops": 0, "free_depth": [1.0, 1.0]}
    row |= {"full": row["full"] | {"depth": 1.0}, "partial": row["partial"] | {"depth": 1.0}}

    def missed(**changes: Any) -> list[str]:
        return static.failures(static.parsed(row | changes))  # type: ignore[no-any-return]

    assert missed() == []
    assert "local memory" in missed(local_in_loops=1)[0]
    assert "depth" in missed(partial=row["partial"] | {"depth": 0.5})[0]
    assert "full loop 1.051" in missed(full_ratio=1.051)[0]
    assert missed(full_ratio=1.1, indexed=True) == []
    assert "full loop 1.101" in missed(full_ratio=1.101, indexed=True)[0]
    assert "partial loop 2.01" in missed(partial_ratio=2.01)[0]
    assert missed(partial_ratio=2.01, mask="causal") == []
    assert missed(partial_ratio=2.01, target="sm_80") == []
    assert "do not fit" in missed(programs=0, target="sm_80")[0]


# Mask-free kernels.


@pytest.mark.parametrize("dims", [(64, 64), (40, 40), (72, 72), (160, 160), (192, 128), (8, 80)])
def test_there_is_a_mask_free_kernel_for_every_cut_of_head_dims(kernels: Any, dims: tuple[int, int]) -> None:
    spec = kernels.example("alibi")
    source, bare = kernels.mask_free(spec, named_form(spec, dims))
    assert bare.clauses == ()
    assert bare.score == spec.score
    assert source.text.count("tile = 0\n") == source.text.count("tile += 1\n") == 6
    assert "ends = " not in source.text
    compile(source.text, "mask_free.py", "exec")


def test_mask_free_kernels_of_masks_without_a_score_are_one(kernels: Any) -> None:
    chosen = Configuration(128, 64, 8, 3)
    causal, alibi = (
        kernels.Case(mask, "forward_kernel", "sm_90", (64, 64), "bf16", chosen, indexed=True)
        for mask in ("causal", "alibi")
    )
    assert causal.baseline == causal.plain == alibi.plain
    assert alibi.baseline != alibi.plain
    assert not alibi.baseline.indexed


# Machine code.

TWO_LOOPS = dedent("""\
    \t.section\t.text.kernel
    .text.kernel:
            /*0000*/                   STL [R1], R2 ;
    .L_x_3:
            /*0010*/                   LDL R2, [R1] ;
            /*0020*/              @!P0 BRA `(.L_x_0) ;
    .L_x_1:
            /*0030*/                   DEPBAR.LE SB0, 0x4 ;
            /*0040*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24 ;
            /*0050*/               @P1 LDGSTS.E.BYPASS.128 [R6], desc[UR4][R2.64] ;
            /*0060*/                   LDGDEPBAR ;
            /*0070*/                   LDGDEPBAR ;
            /*0080*/         @!P2 CALL.REL.NOINC `(.L_x_0) ;
            /*0090*/                   BRA `(.L_x_1) ;
    .L_x_0:
            /*00a0*/                   DEPBAR.LE SB0, 0x0 ;
    .L_x_2:
            /*00b0*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24 ;
            /*00c0*/                   STL [R1], R2 ;
            /*00d0*/                   BRA.U UP0, `(.L_x_2) ;
            /*00e0*/              @!P3 BRA `(.L_x_3) ;
            /*00f0*/                   EXIT ;
    .L_x_4:
            /*0100*/                   BRA `(.L_x_4);
            /*0110*/                   NOP ;
    """)


def test_loops_over_tiles_are_found_inside_a_loop_over_heads(code: Any) -> None:
    found = code.read(TWO_LOOPS)
    assert found.loops == (
        code.Loop(instructions=7, tensor=1, local=0, copies=1, groups=2, depth=2.0),
        code.Loop(instructions=3, tensor=1, local=1, copies=0, groups=0, depth=-1.0),
    )
    assert (found.instructions, found.tensor) == (18, 2)
    assert (found.local_in_loops, found.local_outside) == (2, 1)


def test_a_barrier_behind_the_end_belongs_to_the_loop_that_spins_on_it(code: Any) -> None:
    """As kernels for sm_100 wait: the slow path lies behind the kernel's end and jumps into the middle of the loop."""
    found = code.read(
        dedent("""\
        .L_x_0:
                /*0000*/                   FADD R1, R2, R3 ;
                /*0010*/              @!P1 BRA `(.L_x_1) ;
        .L_x_2:
                /*0020*/                   UTCHMMA gdesc[UR10], gdesc[UR14], tmem[UR9], tmem[UR32], idesc[UR33], !UPT ;
                /*0030*/               @P0 BRA `(.L_x_0) ;
                /*0040*/                   CALL.REL.NOINC `($trap) ;
                /*0050*/                   EXIT ;
        .L_x_1:
                /*0060*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [UR20], R4 ;
                /*0070*/              @!P1 BRA `(.L_x_1) ;
                /*0080*/                   BRA `(.L_x_2) ;
        """)
    )
    assert [loop.instructions for loop in found.loops] == [7]
    assert found.loops[0].tensor == 1


def test_numbers_are_read_from_assembly_for_amd(code: Any) -> None:
    text = "    .vgpr_count:     450\n    .vgpr_spill_count: 7\n"
    assert code.amd_figure(text, "vgpr_count") == 450
    assert code.amd_figure(text, "vgpr_spill_count") == 7


# Chips.


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("sm_90", 8, 128, 64 << 10), 2),  # registers: 4 warps of each scheduler
        (("sm_90", 8, 129, 64 << 10), 1),  # 136 are held
        (("sm_90", 4, 255, 65 << 10), 2),
        (("sm_90", 4, 64, 75 << 10), 3),  # 228 KiB hold three times 76 KiB
        (("sm_90", 4, 64, 227 << 10), 1),
        (("sm_90", 4, 64, 228 << 10), 0),
        (("sm_86", 4, 16, 1 << 10), 12),
        (("sm_100", 4, 64, 16 << 10, 256), 2),
        (("gfx942", 4, 450, 24 << 10), 1),
        (("gfx942", 4, 128, 16 << 10), 4),
    ],
)
def test_programs_that_run_at_a_time(chips: Any, given: tuple[Any, ...], expected: int) -> None:
    assert chips.programs(*given) == expected


def test_every_target_has_limits_that_agree_with_the_schedule(chips: Any) -> None:
    assert chips.LIMITS.keys() == TARGETS.keys()
    for name, limits in chips.LIMITS.items():
        assert limits.shared - limits.reserved == TARGETS[name].shared


def test_clocks_follow_from_published_peaks(chips: Any) -> None:
    assert {c.name: round(c.clock / 1e6) for c in chips.CHIPS} == {
        "A100": 1411,
        "H100": 1830,
        "H200": 1830,
        "B200": 1856,
    }


def test_a_roofline_by_hand(chips: Any) -> None:
    chip = chips.Chip("c", "sm_90", multiprocessors=10, flops=4e12, flops_per_clock=400, bandwidth=1e12)
    work = chips.Work(full=1000, partial=500, bytes=2_000_000)
    found = chips.roofline(chip, work, "backward_keys_kernel", (64, 72), (128, 64), 8, (300, 600))
    # 72 columns are computed as 64 + 16: two products of each; 10 multiprocessors issue 4 instructions at 1 GHz.
    assert found.tensor == pytest.approx(2 * 1500 * 128 * 64 * (2 * 64 + 2 * 80) / 4e6, abs=0.1)
    assert found.issue == pytest.approx((1000 * 300 + 500 * 600) * 8 / (10 * 4 * 1e3), abs=0.1)
    assert found.memory == 2.0
    assert found.bound == "tensor"


def test_work_of_plans(kernels: Any) -> None:
    """Causal, tiles of 128 x 64: row i has 2 i full tiles and 2 partial ones, of 16 heads."""
    case = kernels.Case("causal", "forward_kernel", "sm_90", (64, 64), "bf16", Configuration(128, 64, 8, 3))
    work = kernels.work(case)
    assert (work.full, work.partial) == (16 * 64 * 63, 16 * 64 * 2)
    assert work.bytes == 16 * 8192 * (4 * 64 * 2 + 4)
    free = kernels.work(case.plain)
    assert (free.full, free.partial) == (16 * 64 * 128, 0)
