"""The launcher with a stub in the place of the GPU: grids, arguments, variants, compile keys, and no look at data.

Two stubs: kernels that only note how they are launched (also on meta tensors, where a look at data raises), and a
driver under Triton's own launch path, which compiles for sm_90 and stops where the binary would go to the device.
"""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

import pytest
import torch
from kernels.cases import Case, upstream
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from maskc.codegen.schedule import configuration, target_named
from maskc.codegen.source import emit
from maskc.diagnostics import MaskInputError
from maskc.runtime import launcher, loader
from maskc.runtime.inputs import Call

WINDOW = "mask case(w: int):\n    keep 0 <= q - k < w"
SM_90 = target_named("sm_90")


@pytest.fixture(autouse=True)
def _without_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "_check_device", lambda call: None)
    monkeypatch.setattr(launcher, "_device", lambda call: nullcontext())
    monkeypatch.setattr(launcher, "target_of", lambda device: SM_90)
    monkeypatch.setattr(launcher, "_keys", {})
    monkeypatch.setattr(launcher, "_configs", OrderedDict())


@dataclass
class Launch:
    """One launch: the kernel, its grid and its arguments by name."""

    kernel: str
    grid: tuple[int, ...]
    arguments: dict[str, Any]


@dataclass
class Recorder:
    """Stands for a kernel and notes how it is launched."""

    name: str
    arguments: tuple[str, ...]
    launches: list[Launch] = field(default_factory=list)

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*positional: Any, **keywords: Any) -> None:
            assert len(positional) + len(keywords) >= len(self.arguments)
            given = dict(zip(self.arguments, positional, strict=False)) | keywords
            self.launches.append(Launch(self.name, grid, given))

        return launch


def _recorded(call: Call, monkeypatch: pytest.MonkeyPatch) -> dict[str, Launch]:
    """Every launch of a forward and a backward."""
    source = emit(call.spec)
    module = loader.load(source)
    recorders = {k.name: Recorder(k.name, tuple(a.name for a in k.arguments)) for k in source.kernels}
    for name, recorder in recorders.items():
        monkeypatch.setattr(module, name, recorder)
    out, lse = launcher.forward(call)
    d_out, d_lse = (x.to(call.q.device) for x in upstream(call))
    launcher.backward(call, out, lse, d_out, d_lse)
    return {name: recorder.launches[-1] for name, recorder in recorders.items()}


def test_grids_cover_the_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    call = Case("grid", WINDOW, batch=2, heads=(6, 2), lengths=(300, 500), dtype=torch.float16, dims=(64, 64),
                given={"w": 40}, offsets={"q_offset": 200}).call()  # fmt: skip
    launches = _recorded(call, monkeypatch)
    tiles = {p: configuration(SM_90, (64, 64), "fp16", p) for p in ("forward", "queries", "keys")}
    rows, columns = -(-300 // tiles["forward"].block_q), -(-500 // tiles["keys"].block_k)
    assert launches["forward_kernel"].grid == (rows * 6 * 2,)
    assert launches["backward_queries_kernel"].grid == (-(-300 // tiles["queries"].block_q) * 6 * 2,)
    assert launches["backward_keys_kernel"].grid == (columns * 2 * 2,)


def test_arguments_say_what_the_call_is(monkeypatch: pytest.MonkeyPatch) -> None:
    call = Case("arguments", WINDOW, heads=(6, 2), lengths=(40, 60), dtype=torch.float16, dims=(32, 64),
                scale=0.3, given={"w": 7}, offsets={"q_offset": 20}).call()  # fmt: skip
    given = _recorded(call, monkeypatch)["forward_kernel"].arguments
    expected = {"heads": 6, "group": 3, "q_len": 40, "k_len": 60, "scale": 0.3, "w": 7, "q_offset": 20, "k_offset": 0}
    assert {name: given[name] for name in expected} == expected
    assert (given["D_QK"], given["D_V"], given["PRECISION"]) == (32, 64, "ieee")
    assert given["q_row_stride"] * given["ALIGN"] == call.q.stride(2)
    assert given["k_dim_stride"] == 1
    assert given["out"].shape == (1, 6, 40, 64)
    assert given["lse"].dtype is torch.float32


def test_alignment_chooses_the_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    call = Case("aligned", WINDOW, dtype=torch.float16, given={"w": 7}).call()
    assert _recorded(call, monkeypatch)["forward_kernel"].arguments["ALIGN"] == 8
    wide = torch.zeros(*call.q.shape[:3], call.q.shape[3] + 1, dtype=torch.float16)
    for odd in (wide[..., 1:], wide[..., :-1], call.q.transpose(2, 3).contiguous().transpose(2, 3)):
        assert _recorded(replace(call, q=odd), monkeypatch)["forward_kernel"].arguments["ALIGN"] == 1
    one_token = replace(call, q=wide[:, :, :1, :-1].as_strided((1, 2, 1, 16), (32, 16, 3, 1)))
    sizes = replace(call.sizes, q_len=1)
    assert _recorded(replace(one_token, sizes=sizes), monkeypatch)["forward_kernel"].arguments["ALIGN"] == 8


def test_far_elements_choose_wide_indices(monkeypatch: pytest.MonkeyPatch) -> None:
    import triton.language as tl

    call = Case("far", WINDOW, dtype=torch.float16, given={"w": 7}, lengths=(70, 70)).call()
    assert _recorded(call, monkeypatch)["forward_kernel"].arguments["INTEGER"] is tl.int32
    far = torch.empty(0, dtype=torch.float16, device="meta").as_strided(call.k.shape, (0, 16, 2**25, 1))
    meta = replace(call, q=call.q.to("meta"), k=far, v=call.v.to("meta"))
    assert _recorded(meta, monkeypatch)["forward_kernel"].arguments["INTEGER"] is tl.int64
    large = Case("large parameter", WINDOW, given={"w": 2**40}).call()
    assert _recorded(large, monkeypatch)["forward_kernel"].arguments["INTEGER"] is tl.int64


def test_tf32_only_where_torch_allows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    call = Case("tf32", WINDOW, given={"w": 7}).call()
    assert _recorded(call, monkeypatch)["backward_keys_kernel"].arguments["PRECISION"] == "ieee"
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        assert _recorded(call, monkeypatch)["backward_keys_kernel"].arguments["PRECISION"] == "tf32"
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False


@pytest.mark.parametrize("body", ["input doc: int[batch, seq]\nkeep doc[q] == doc[k] and k <= q", "keep k <= q"])
def test_nothing_looks_at_data(body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On meta tensors there is none to be had: a copy to the host or a branch on a value raises."""
    call = Case("meta", body, batch=2, heads=(2, 1)).call()
    moved = {name: x.to("meta") for name, x in call.inputs.items()}
    meta = replace(call, q=call.q.to("meta"), k=call.k.to("meta"), v=call.v.to("meta"), inputs=moved)
    launches = _recorded(meta, monkeypatch)
    assert set(launches) == {k.name for k in emit(call.spec).kernels}


def test_new_values_are_no_new_compile_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    def calls() -> Iterator[Call]:
        for length, window in ((64, 3), (65, 100), (16, 1), (1, 5), (257, 64)):
            yield Case(f"keys {length}", WINDOW, lengths=(length, length), given={"w": window}).call()

    for number, call in enumerate(calls()):
        _recorded(call, monkeypatch)
        if number == 0:
            first = launcher.compile_keys()
    assert launcher.compile_keys() == first
    assert len(first) == 4
    _recorded(Case("other dtype", WINDOW, dtype=torch.float16, given={"w": 3}).call(), monkeypatch)
    assert len(launcher.compile_keys()) == 8


def test_no_launch_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    call = Case("nothing", "keep k <= q", lengths=(5, 5)).call()
    source = emit(call.spec)
    module = loader.load(source)
    for kernel in source.kernels:
        monkeypatch.setattr(module, kernel.name, None)
    empty = replace(call, q=call.q[:, :, :0], sizes=replace(call.sizes, q_len=0))
    out, lse = launcher.forward(empty)
    assert out.shape == (1, 2, 0, 16)
    assert lse.shape == (1, 2, 0)


def test_cpu_tensors_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with pytest.raises(MaskInputError, match="engine 'triton' takes tensors on a GPU; q is on cpu"):
        launcher.forward(Case("cpu", "pass").call())


class StubDriver:
    """What Triton asks of a driver; binaries are counted and not loaded, launches noted and not done."""

    def __init__(self) -> None:
        self.binaries: list[str] = []
        self.launches: list[tuple[int, ...]] = []
        self.utils = self

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232448, "multiprocessor_count": 132, "max_num_regs": 65536}

    def load_binary(self, name: str, *_: Any) -> tuple[int, int, int, int, int]:
        self.binaries.append(name)
        return 0, 0, 0, 0, 1024

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        return lambda *arguments: self.launches.append(arguments[:3])


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> StubDriver:
    stub = StubDriver()
    monkeypatch.setattr(driver, "_active", stub)
    return stub


def test_triton_compiles_once_for_all_values(stub: StubDriver) -> None:
    """Through Triton's own launch path: lengths, strides, parameters and contents never compile again."""
    text = "mask case(w: int):\n    input doc: int[batch, seq]\n    keep doc[q] == doc[k] and q - k < w"
    for length, window in ((33, 1), (64, 16), (1, 2**30), (100, -7)):
        case = Case(f"stub {length}", text, lengths=(length, length), dtype=torch.float16, given={"w": window})
        _forward_and_backward(case.call())
        if length == 33:
            compiled = list(stub.binaries)
    assert stub.binaries == compiled
    assert sorted(compiled) == sorted(k.name for k in emit(case.call().spec).kernels)
    assert len(stub.launches) == 4 * 4


def _forward_and_backward(call: Call) -> None:
    out, lse = launcher.forward(call)
    d_out, d_lse = upstream(call)
    launcher.backward(call, out, lse, d_out, d_lse)


def test_modules_are_loaded_once() -> None:
    source = emit(Case("loaded", "keep k <= q + 4").call().spec)
    module = loader.load(source)
    assert isinstance(module, ModuleType)
    assert loader.load(source) is module
