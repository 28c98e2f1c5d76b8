"""`benchmarks/gpu.sh`: both parts at toy sizes on a CPU, and what they make of processes that fail."""

import importlib
import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from maskc.runtime import layouts, records

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


def judged(load: Any, tmp_path: Path, *options: str) -> tuple[int, dict[str, Any]]:
    """Exit code and report of the first part at toy sizes."""
    path = tmp_path / "tests.json"
    common = ["--device", "cpu", "--sizes", "tiny", "--workers", "0", "--json", str(path)]
    code = load("gpu_tests").main([*common, *options])
    return code, json.loads(path.read_text())


def test_specs_are_judged(load: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    only = ["causal", "documents", "swin", "levels", "maxvit", "steps"]
    code, report = judged(load, tmp_path, "--only", *only)
    said = capsys.readouterr().out
    assert code == 0, said
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
    kinds = ("ok", "refused", "not applicable")
    assert report["counts"] == {status: sum(r["status"] == status for r in found) for status in kinds}
    assert all(0 <= r["share"] <= 1 for r in found if r["status"] == "ok" and "times" not in r["what"])
    for what in (*layouts.ODD, "rows from [69, 62]", "5 times", "1 x 65 from 64"):
        assert any(what in r["what"] for r in found), what
    assert "7 masks" in said
    assert "not applicable: decoding (a grid has all its tokens on both sides), 1 times: swin" in said
    assert "not applicable: parts (engine 'tiled' runs no kernels), 1 times: documents" in said


def test_a_miss_is_told_and_the_run_goes_on(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(layouts.ALONE, "bnhd", lambda x: x / 0)
    monkeypatch.setitem(layouts.ALONE, "shifted", lambda x: x + 1)  # laid out twice, the values differ
    code, report = judged(load, tmp_path, "--only", "causal")
    assert code == 1
    assert {r["what"].split()[-1] for r in report["results"] if r["status"] == "missed"} == {"bnhd", "shifted"}
    assert report["counts"] == {"ok": 10, "missed": 2, "not applicable": 4}
    assert "not finite" in capsys.readouterr().out


def test_an_error_is_told_and_the_run_goes_on(load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(layouts.ALONE, "spread", lambda x: x.no_such_view)
    code, report = judged(load, tmp_path, "--only", "causal")
    assert code == 1
    assert report["counts"] == {"ok": 11, "error": 1, "not applicable": 4}


def test_every_mask_is_looked_at_before_any_is_again(load: Any) -> None:
    cases = load("gpu_cases")
    found = cases.units(cases.Options("cuda", "triton", False), [], False)
    masks = {(u.path, u.mask) for u in found}
    assert len({(u.path, u.mask) for u in found[: len(masks)]}) == len(masks) > 80
    for path, mask in masks:
        own = [u for u in found if (u.path, u.mask) == (path, mask)]
        runs = {(u.dtype, u.dims) for u in own}
        assert len(runs) == len(own)
        assert {dtype for dtype, _ in runs} == {"bfloat16", "float16"}
        if Path(path).parent.name != "examples":
            assert len({dims for _, dims in runs}) == 2
            continue
        assert {dims for _, dims in runs} == set(cases.DIMS)
        assert {dims for dims in cases.DIMS if {("bfloat16", dims), ("float16", dims)} <= runs} == {
            (64, 64),
            (128, 128),
        }
        looks = {"odd layouts", "decoding", "plans", "graph", "lengths"}
        for dtype in ("bfloat16", "float16"):
            assert looks <= {look for u in own if u.dtype == dtype for look in u.looks}
    for dims in cases.DIMS:
        for dtype in ("bfloat16", "float16"):
            assert any(u.dims == dims and u.dtype == dtype for u in found)
    every = cases.units(cases.Options("cuda", "triton", False), [], True)
    assert len(every) == len(set(every)) == len(masks) * 20


def job_of(load: Any, engine: str, mask: str, dtype: str = "float16") -> Any:
    """A unit of a file of examples/ with one mask, at toy sizes."""
    cases, judge = load("gpu_cases"), load("gpu_judge")
    path = BENCHMARKS.parent / "examples" / f"{mask}.mask"
    unit = cases.Unit(str(path), mask, dtype, cases.TINY_DIMS, cases.TINY_GROUP)
    return judge.Job(unit, judge.load(unit.path, mask), cases.Options("cpu", engine, True))


def test_kernels_get_plans_of_our_choice(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = load("gpu_judge")
    job = job_of(load, "interpret", "prefix_lm")
    indexed: list[bool] = []
    of_plan = judge.tables.of_plan

    def noted(plan: Any, *rest: Any) -> Any:
        indexed.extend(part.by_query.owned is not None for part in plan.parts)
        return of_plan(plan, *rest)

    monkeypatch.setattr(judge.tables, "of_plan", noted)
    for look, calls, parts in (("plans", 3, [True] * 3), ("parts", 1, [True, False])):
        indexed.clear()
        found = list(judge.looked(job, look))
        assert [r.status for r in found] == ["ok"] * calls, found
        assert indexed == parts


def test_a_plan_that_lacks_pairs_is_a_miss(load: Any) -> None:
    judge = load("gpu_judge")
    job = job_of(load, "interpret", "causal")
    (case,) = judge.look_cases(job.spec, job.unit, "plans", tiny=True)
    window = judge.load("mask window:\n    keep 0 <= q - k < 9")

    def too_few(call: Any, tile: tuple[int, int]) -> Any:
        return judge.plans.plan(window, call.sizes, tile)

    found = judge.planned(job, case, too_few)
    assert found.status == "missed"
    assert "FAILED" in found.detail


class Streams:
    """What `torch.cuda` has for captures, on the CPU: streams do nothing, and a replay repeats the last run of a job,
    where it is told to.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, judge: ModuleType, *, replays: bool) -> None:
        self.runs: list[tuple[Any, Any, Any]] = []
        self.replays = replays
        self.run = run = judge.Job.run

        def noted(job: Any, problem: Any) -> Any:
            self.runs.append((job, problem, run(job, problem)))
            return self.runs[-1][-1]

        monkeypatch.setattr(judge.Job, "run", noted)
        for name in ("Stream", "current_stream", "CUDAGraph"):
            monkeypatch.setattr(judge.torch.cuda, name, lambda: self)
        monkeypatch.setattr(judge.torch.cuda, "stream", nullcontext)
        monkeypatch.setattr(judge.torch.cuda, "graph", lambda graph, stream: nullcontext())
        monkeypatch.setattr(judge.torch.cuda, "synchronize", lambda: None)

    def wait_stream(self, other: Any) -> None:
        assert other is self

    def replay(self) -> None:
        job, problem, values = self.runs[-1]
        for name, x in self.run(job, problem).items() if self.replays else ():
            values[name].copy_(x)


@pytest.mark.parametrize("replays", [True, False])
def test_a_graph_is_replayed_with_other_contents(load: Any, monkeypatch: pytest.MonkeyPatch, replays: bool) -> None:
    judge = load("gpu_judge")
    job = job_of(load, "tiled", "documents")
    streams = Streams(monkeypatch, judge, replays=replays)
    (case,) = judge.look_cases(job.spec, job.unit, "graph", tiny=True)
    found = judge.captured(job, case)
    assert found.status == ("ok" if replays else "missed"), found
    assert len(streams.runs) == 2  # one warm, one in the graph


def test_rows_of_k_lie_far_apart(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = load("gpu_judge")
    job = job_of(load, "tiled", "causal")
    (case,) = judge.look_cases(job.spec, job.unit, "far", tiny=True)
    assert (case.k_len - 1) * judge.FAR_STRIDE > 2**31
    monkeypatch.setattr(judge, "FAR_STRIDE", 1000)
    assert judge.far(job.placed(case)[1]).k.stride(2) == 1000
    assert judge.called(job, case, judge.far).status == "ok"


@pytest.fixture
def no_device(load: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The engine `triton` with a stub in the place of the GPU: nothing is compiled, every result counts as right."""
    stub, judge = load("stub"), load("gpu_judge")
    nothing = SimpleNamespace(run=lambda *_: None, function=0, packed_metadata=())
    monkeypatch.setattr(records, "_compiled", lambda *_: nothing)
    monkeypatch.setattr(judge, "verdict", lambda here, values, note="": judge.Verdict("ok", 0.0, "out", note))
    with stub.in_place_of_gpu(stub.StubDriver()):
        yield judge


def test_keys_that_are_not_shared_out_are_a_miss(
    load: Any, no_device: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(load, "triton", "causal")
    cases = no_device.look_cases(job.spec, job.unit, "decoding", tiny=False)
    assert [str(case) for case in cases][-1] == "4 x 1030 from 1026, rows from [1026, 1019]"
    assert [no_device.decoded(job, case).detail for case in cases] == [*["1 shares"] * 3, *["4 shares"] * 2]
    no_device.launcher._records.clear()
    monkeypatch.setattr(no_device.launcher, "_splits", lambda call, tile: 1)
    found = [no_device.decoded(job, case) for case in cases]
    assert [f.status for f in found] == [*["ok"] * 3, *["missed"] * 2]
    assert found[-1].detail == "the keys were not shared out"


def test_kernels_that_lengths_compile_are_a_miss(load: Any, no_device: ModuleType) -> None:
    job = job_of(load, "triton", "softcap")
    cases = no_device.look_cases(job.spec, job.unit, "lengths", tiny=True)
    assert len({case.q_len for case in cases}) == 20
    cold = no_device.steady(job, cases)
    assert cold.status == "missed"
    assert "backward_keys_kernel" in cold.detail
    assert no_device.steady(job, cases).status == "ok"


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
