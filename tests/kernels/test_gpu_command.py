"""`benchmarks/gpu.sh`: both parts at toy sizes on a CPU, and what they make of processes that fail."""

import importlib
import json
import subprocess
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
VERSIONS = {"device", "driver", "maskc", "python", "torch", "triton", "numpy", "cuda"}
WORK = """
import os, time
from types import SimpleNamespace

def work(unit, options):
    yield SimpleNamespace(fatal=False, text=f"{unit} {options}")
    if unit == "dies":
        os._exit(3)
    if unit == "hangs":
        time.sleep(60)
    if unit == "fails":
        yield SimpleNamespace(fatal=True, text="failed")
"""


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def test_the_command_names_its_parts() -> None:
    answer = subprocess.run(["bash", str(BENCHMARKS / "gpu.sh"), "both"], capture_output=True, text=True, check=False)
    assert answer.returncode == 2
    assert "tests | dense" in answer.stderr


def test_specs_are_judged(load: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tests.json"
    only = ["causal", "documents", "swin", "levels", "maxvit", "steps"]
    options = ["--device", "cpu", "--sizes", "tiny", "--workers", "0", "--json", str(path), "--only", *only]
    assert load("gpu_tests").main(options) == 0, capsys.readouterr().out
    report = json.loads(path.read_text())
    assert VERSIONS | {"engine", "seconds", "counts"} <= report.keys()
    found = report["results"]
    assert {r["mask"] for r in found} == {
        "causal",
        "documents",
        "documents_bidirectional",
        "swin",
        "levels",
        "grid",
        "steps",
    }
    assert report["counts"] == {status: sum(r["status"] == status for r in found) for status in ("ok", "refused")}
    assert all(0 <= r["share"] <= 1 for r in found if r["status"] == "ok" and "times" not in r["what"])
    for what in ("unaligned", "wider", "an offset per row", "5 times", "1 x 65 from 64"):
        assert any(what in r["what"] for r in found), what
    assert "7 masks" in capsys.readouterr().out


def test_a_miss_is_told_and_the_run_goes_on(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module: ModuleType = load("gpu_tests")
    monkeypatch.setitem(module.LAYOUTS, "wider", lambda x: x / 0)
    monkeypatch.setitem(module.LAYOUTS, "unaligned", lambda x: x + 1)
    path = tmp_path / "tests.json"
    options = ["--device", "cpu", "--sizes", "tiny", "--workers", "0", "--json", str(path), "--only", "causal"]
    assert module.main(options) == 1
    counts = json.loads(path.read_text())["counts"]
    assert counts == {"ok": 5, "missed": 3}
    assert "not finite" in capsys.readouterr().out


def test_an_error_is_told_and_the_run_goes_on(load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load("gpu_tests")
    monkeypatch.setitem(module.LAYOUTS, "unaligned", lambda x: x.no_such_view)
    path = tmp_path / "tests.json"
    options = ["--device", "cpu", "--sizes", "tiny", "--workers", "0", "--json", str(path), "--only", "causal"]
    assert module.main(options) == 1
    assert json.loads(path.read_text())["counts"] == {"ok": 7, "error": 1}


def test_every_mask_is_looked_at_before_any_is_again(load: Any) -> None:
    module = load("gpu_tests")
    found = module.units(module.Options("cuda", False), [], False)
    masks = {(u.path, u.mask) for u in found}
    assert len({(u.path, u.mask) for u in found[: len(masks)]}) == len(masks) > 80
    for path, mask in masks:
        own = [(u.dtype, u.dim) for u in found if (u.path, u.mask) == (path, mask)]
        assert {dim for _, dim in own} == {16, 32, 64, 128}
        assert {dtype for dtype, _ in own} == {"bfloat16", "float16"}
        assert len(set(own)) == len(own) == (8 if Path(path).parent.name == "examples" else 4)


def test_patterns_are_timed(load: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "dense.json"
    options = ["--device", "cpu", "--sizes", "tiny", "--budget", "0", "--json", str(path)]
    assert load("gpu_dense").main(options) == 0, capsys.readouterr().out
    report = json.loads(path.read_text())
    assert VERSIONS | {"dtype", "entries"} <= report.keys()
    entries = {(e["pattern"], e["candidate"]): e for e in report["entries"]}
    assert len(entries) == 6 * 2 + 2
    assert all(e["error"] is None and e["rounds"] >= 3 and e["forward_tflops"] > 0 for e in entries.values())
    assert all(e["backward_ms"] > 0 for (_, name), e in entries.items() if name != "flex")
    assert all(e["differs"]["out"] < 0.02 for (_, name), e in entries.items() if name == "maskc")
    assert entries["causal", "maskc"]["live_pairs"] == 2 * 96 * 97 // 2


def test_a_candidate_that_fails_is_recorded(load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load("gpu_dense")

    def broken(pattern: Any, entry: Any, device: str) -> Any:
        raise RuntimeError("no such backend\nand more")

    monkeypatch.setitem(module.CANDIDATES, "flash", broken)
    path = tmp_path / "dense.json"
    options = ["--device", "cpu", "--sizes", "tiny", "--budget", "0", "--only", "causal", "--json", str(path)]
    assert module.main(options) == 0
    errors = {e["candidate"]: e["error"] for e in json.loads(path.read_text())["entries"]}
    assert errors == {"maskc": None, "flex": None, "flash": "RuntimeError: no such backend", "cudnn": None}


def test_where_the_device_fails_the_other_candidates_run_again(load: Any) -> None:
    module = load("gpu_dense")

    class Crew:
        def answer(self, unit: Any) -> Any:
            entries = [module.Entry(unit.pattern, 1, 1, 1, name) for name in unit.candidates]
            if "flex" not in unit.candidates:
                return module.Answer(entries)
            entries[unit.candidates.index("flex")].error = "CUDA error"
            return module.Answer(entries, fatal=True)

    found = module.entries_of(module.Unit("causal", 1, 1, 1, ("maskc", "flex", "flash")), Crew())
    assert {e.candidate: e.error for e in found} == {"maskc": None, "flex": "CUDA error", "flash": None}


def test_processes_that_die_or_hang_are_told(load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = load("gpu_worker")
    (tmp_path / "toy_work.py").write_text(WORK)
    monkeypatch.syspath_prepend(str(tmp_path))
    work = importlib.import_module("toy_work").work
    end = time.monotonic() + 60
    one = worker.Worker(work, "there")
    assert [a.text for a in one.answers("hello", 60, end)] == ["hello there"]
    assert [a.text for a in one.answers("again", 60, end)] == ["again there"]
    found = one.answers("dies", 60, end)
    assert next(found).text == "dies there"
    with pytest.raises(worker.LostError, match="ended with code 3"):
        next(found)
    assert not one.alive
    other = worker.Worker(work, "there")
    found = other.answers("hangs", 60, end)
    assert next(found).text == "hangs there"
    with pytest.raises(worker.LostError, match="no answer"):
        list(other.answers("hangs", 0.2, end))
    assert not other.alive


def test_the_results_of_a_gpu_bear_its_name(load: Any) -> None:
    module = load("gpu_machine")
    assert module.results_path("gpu-dense", {"device": "x86_64", "driver": None}).name == "gpu-dense.json"
    path = module.results_path("gpu-dense", {"device": "NVIDIA H200", "driver": "570.1"})
    assert path.name == "gpu-dense-nvidia-h200.json"
