"""`maskc run` and `maskc verify`: what is run on this machine."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from maskc import cli
from maskc.check import load
from maskc.diagnostics import MaskUnsupportedError
from maskc.runtime import tiled, verify
from maskc.runtime.attention import Attention
from maskc.runtime.inputs import Call
from maskc.runtime.variants import aligned

Maskc = Callable[..., tuple[int, str, str]]


@pytest.fixture
def wrong_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine whose gradient of v is off by a thousandth."""
    backward = tiled.backward

    def wrong(call: Call, *rest: torch.Tensor) -> tuple[torch.Tensor, ...]:
        d_q, d_k, d_v = backward(call, *rest)
        return d_q, d_k, d_v * 1.001

    monkeypatch.setattr(tiled, "backward", wrong)


def test_run_checks_times_and_draws(maskc: Maskc) -> None:
    status, out, err = maskc("run", "window.mask", "--seq", "70", "--heads", "4", "--kv-heads", "2", "--dim", "16")
    assert status == 0
    assert err == "running tiled forward and backward ...\ncomputing the definition in float64 ...\n"
    lines = out.splitlines()
    assert lines[0].startswith("window, width=8: 70 queries x 70 keys; tiled on cpu, tiles of ")
    assert [line.split()[0] for line in lines[1:8]] == ["forward", "backward", "out", "lse", "dq", "dk", "dv"]
    assert all(line.endswith(" ok") for line in lines[3:8])
    assert lines[-1].startswith("tiles: ")


def test_run_uses_the_inputs_and_the_offset(maskc: Maskc) -> None:
    assert maskc("run", "documents.mask", "--seq", "40", "--batch", "2", "--dim", "8")[0] == 0
    assert maskc("run", "window.mask", "--q-len", "3", "--k-len", "40", "--q-offset", "37", "--dim", "8")[0] == 0
    assert maskc("run", "grid.mask", "--grid", "y=5,x=7", "--dim", "8")[0] == 0


@pytest.mark.usefixtures("wrong_values")
def test_run_fails_when_a_value_is_wrong(maskc: Maskc) -> None:
    status, out, _ = maskc("run", "window.mask", "--seq", "70", "--dim", "16")
    assert status == 1
    assert [line.split()[-1] for line in out.splitlines()[3:8]] == ["ok", "ok", "ok", "ok", "FAILED"]


def test_run_says_when_the_definition_is_too_large(maskc: Maskc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "MOST_CHECKED", 1000)
    status, out, _ = maskc("run", "window.mask", "--seq", "40", "--dim", "8")
    assert status == 0
    assert "not checked: the definition would hold all 1,600 pairs at once; at most 1,000 are\n" in out


def test_a_device_that_is_not_there_is_one_sentence(maskc: Maskc) -> None:
    status, out, err = maskc("run", "window.mask", "--seq", "8", "--device", "cuda:77")
    assert (status, out) == (1, "")
    assert "device cuda:77: torch finds no such device here\n" in err


def test_verify_is_a_table(maskc: Maskc) -> None:
    status, out, err = maskc("verify", "window.mask", "documents.mask", "grid.mask", "--engine", "tiled")
    assert status == 0
    assert err == "".join(f"verifying {name} ...\n" for name in ("window", "whole", "documents", "near"))
    rows = [line.split() for line in out.splitlines()]
    assert rows[0] == ["mask", "engine", "dtype", "cases", "not", "run", "missed", "worst", "error"]
    assert [row[:6] for row in rows[1:]] == [
        ["window", "tiled", "float32", "11", "0", "0"],
        ["whole", "tiled", "float32", "11", "0", "0"],
        ["documents", "tiled", "float32", "11", "0", "0"],
        ["near", "tiled", "float32", "5", "0", "0"],
    ]


@pytest.mark.usefixtures("wrong_values")
def test_verify_names_each_miss(maskc: Maskc) -> None:
    status, out, err = maskc("verify", "window.mask", "--engine", "tiled", "--engine", "dense")
    assert status == 1
    missed = [line for line in err.splitlines() if line.startswith("window at ")]
    assert all(", tiled float32: dv   error " in line and line.endswith("FAILED") for line in missed)
    rows = {row[1]: row for row in map(str.split, out.splitlines()[1:])}
    assert int(rows["tiled"][5]) == len(missed) > 5
    assert rows["dense"][5] == "0"


def test_verify_takes_parameters_and_dtypes(maskc: Maskc) -> None:
    status, out, _ = maskc("verify", "window.mask", "--engine", "tiled", "-p", "width=30", "--dtype", "float64")
    assert status == 0
    assert out.splitlines()[1].split()[:6] == ["window", "tiled", "float64", "11", "0", "0"]
    status, out, err = maskc("verify", "window.mask", "--engine", "tiled", "-p", "wdth=30")
    assert (status, out) == (1, "")
    assert err == "mask 'window' has no parameter 'wdth'\nhint: did you mean 'width'?\n"


def test_verify_takes_head_dims_heads_and_strides(maskc: Maskc, monkeypatch: pytest.MonkeyPatch) -> None:
    problems: list[verify.Problem] = []
    run = verify.Problem.run

    def noted(problem: verify.Problem, attention: Attention) -> dict[str, torch.Tensor]:
        problems.append(problem)
        return run(problem, attention)

    monkeypatch.setattr(verify.Problem, "run", noted)
    shape = ["--dim", "24", "--dim-v", "10", "--heads", "6", "--kv-heads", "2"]
    status, out, _ = maskc("verify", "window.mask", "--engine", "tiled", *shape, "--strides", "odd")
    assert status == 0
    assert out.splitlines()[1].split()[:6] == ["window", "tiled", "float32", "11", "0", "0"]
    assert {(p.q.shape[1::2], p.k.shape[1::2], p.v.shape[1::2]) for p in problems} == {((6, 24), (2, 24), (2, 10))}
    assert not any(p.k.is_contiguous() and aligned(p.k) for p in problems if p.k.shape[2] > 2)
    status, out, _ = maskc("verify", "window.mask", "--engine", "tiled", "--strides", "turned")
    assert status == 0
    assert out.splitlines()[1].endswith(" turned")


def test_run_takes_the_head_dim_of_v(maskc: Maskc) -> None:
    status, out, _ = maskc("run", "window.mask", "--seq", "40", "--dim", "8", "--dim-v", "20")
    assert status == 0
    assert all(line.endswith(" ok") for line in out.splitlines()[3:8])


def test_a_mask_that_fits_no_size_has_not_passed(maskc: Maskc) -> None:
    Path("long.mask").write_text("mask long:\n    claim q_len > 1000\n    keep k <= q\n")
    status, out, _ = maskc("verify", "long.mask", "--engine", "tiled")
    assert status == 1
    assert out.splitlines()[1].split()[:3] == ["long", "0", "11"]
    assert "not run: mask 'long' claims 'q_len > 1000', which does not hold (q_len=130)" in out


def test_sizes_that_a_mask_refuses_are_counted(maskc: Maskc) -> None:
    Path("short.mask").write_text("mask short:\n    claim q_len < 100\n    keep k <= q\n")
    status, out, _ = maskc("verify", "short.mask", "--engine", "tiled")
    assert status == 0
    assert out.splitlines()[1].split()[:6] == ["short", "tiled", "float32", "8", "3", "0"]


def test_a_broken_claim_fails(maskc: Maskc) -> None:
    Path("claims.mask").write_text("mask claims:\n    keep k <= q + 1\n    claim k <= q\n")
    status, out, err = maskc("verify", "claims.mask", "--engine", "tiled")
    assert (status, out) == (1, "")
    assert "mask 'claims' at 2: claim k <= q fails for the kept pair q = 0, k = 1" in err


def test_an_engine_that_refuses_says_why(maskc: Maskc) -> None:
    status, out, _ = maskc("verify", "window.mask", "--engine", "interpret", "--engine", "dense", "--dtype", "float64")
    assert status == 0
    assert (
        "interpret  float64  0      11       0       not run: q, k and v are float64; generated kernels have fp16"
        in out
    )


def test_an_engine_without_its_device_says_why(maskc: Maskc, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> torch.device:
        if name != "cpu":
            raise MaskUnsupportedError(f"device {name}: torch finds no such device here")
        return torch.device("cpu")

    monkeypatch.setattr(verify, "device_named", missing)
    status, out, _ = maskc("verify", "window.mask", "--engine", "triton", "--dtype", "float16")
    assert status == 1
    assert out.splitlines()[1].endswith("not run: device cuda: torch finds no such device here")


def test_what_torch_cannot_allocate_is_one_sentence(maskc: Maskc, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*arguments: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: ...")

    monkeypatch.setattr(verify, "random_problem", exhausted)
    assert maskc("run", "window.mask", "--seq", "8") == (1, "", "maskc run: not enough memory for these sizes\n")


def test_large_defaults_are_tried_small_too() -> None:
    spec = load("mask m(window: int = 256, sink: int = 4, scaled: bool = True):\n    keep q - k < window or k < sink\n")
    assert verify.parameter_sets(spec, {}) == [{}, {"window": 10}]
    assert verify.parameter_sets(spec, {"window": 64}) == [{"window": 64}]


def test_cases_hold_the_lengths_and_grids() -> None:
    line = [case for case in verify.cases(load("mask m:\n    keep k <= q\n"), {}) if case.q_len == case.k_len]
    assert [case.q_len for case in line] == [1, 2, 17, 63, 64, 65, 130, 257]
    grids = verify.cases(load("mask m:\n    axes y, x\n    keep q.y == k.y\n"), {})
    assert [tuple(dict(case.given).values()) for case in grids] == [(1, 1), (2, 5), (7, 7), (13, 17), (3, 65)]
    assert len(verify.cases(load("mask m:\n    axes z, y, x\n    keep q.y == k.y\n"), {})) == 5
