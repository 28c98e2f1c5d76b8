"""The launcher with a stub in the place of the GPU: grids, arguments, variants, compile keys, and no look at data.

Most tests leave the compiler out and note launches by name; the last ones go through Triton's own launch path, which
compiles for sm_90 and stops where the binary would go to the device.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import triton
from kernels.cases import Case, upstream
from triton.runtime.errors import OutOfResources

import maskc
from maskc.codegen import schedule
from maskc.codegen.schedule import configuration, fitting, target_named
from maskc.codegen.source import emit
from maskc.diagnostics import MaskError, MaskInputError, MaskUnsupportedError
from maskc.runtime import launcher, loader, records
from maskc.runtime.inputs import Call

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from stub import StubDriver, in_place_of_gpu

WINDOW = "mask case(w: int):\n    keep 0 <= q - k < w"
DOCUMENTS = "mask case:\n    input doc: int[batch, seq]\n    keep doc[q] == doc[k] and k <= q"
SM_90 = target_named("sm_90")
KERNELS = ["forward_kernel", "backward_rows_kernel", "backward_queries_kernel", "backward_keys_kernel"]


@dataclass
class Launch:
    """One launch: the kernel, its grid and its arguments by name; tensors are addresses."""

    kernel: str
    grid: tuple[int, ...]
    arguments: dict[str, Any]


@pytest.fixture
def stub() -> Iterator[StubDriver]:
    stub = StubDriver()
    with in_place_of_gpu(stub):
        yield stub


@pytest.fixture
def launches(stub: StubDriver, monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """Every launch from now on; nothing is compiled."""
    found: list[Launch] = []

    def compiled(noted: Any, grid: Any, given: Any, named: Any) -> Any:
        names = [a.name for a in noted.source.kernel(noted.entry).arguments]

        def run(x: int, y: int, z: int, *rest: Any) -> None:
            found.append(Launch(noted.entry, (x, y, z), dict(zip(names, rest[6:], strict=True))))

        return SimpleNamespace(run=run, function=0, packed_metadata=())

    monkeypatch.setattr(records, "_compiled", compiled)
    return found


def by_kernel(launches: list[Launch], call: Call) -> dict[str, Launch]:
    """The launches of a forward and a backward that are recorded anew, by kernel."""
    launches.clear()
    out, lse = launcher.forward(call)
    d_out, d_lse = (x.to(call.q.device) for x in upstream(call))
    launcher.backward(call, out, lse, d_out, d_lse)
    return {launch.kernel: launch for launch in launches}


def test_grids_cover_the_outputs(launches: list[Launch]) -> None:
    call = Case("grid", WINDOW, batch=2, heads=(6, 2), lengths=(300, 500), dtype=torch.float16, dims=(64, 64),
                given={"w": 40}, offsets={"q_offset": 200}).call()  # fmt: skip
    found = by_kernel(launches, call)
    assert list(found) == KERNELS
    tiles = {p: configuration(SM_90, (64, 64), "fp16", p) for p in ("forward", "queries", "keys")}
    rows, columns = -(-300 // tiles["forward"].block_q), -(-500 // tiles["keys"].block_k)
    assert found["forward_kernel"].grid == (rows * 6 * 2, 1, 1)
    assert found["backward_queries_kernel"].grid == (-(-300 // tiles["queries"].block_q) * 6 * 2, 1, 1)
    assert found["backward_keys_kernel"].grid == (columns * 2 * 2, 1, 1)


def test_arguments_say_what_the_call_is(launches: list[Launch]) -> None:
    call = Case("arguments", WINDOW, heads=(6, 2), lengths=(40, 60), dtype=torch.float16, dims=(32, 64),
                scale=0.3, given={"w": 7}, offsets={"q_offset": 20}).call()  # fmt: skip
    given = by_kernel(launches, call)["forward_kernel"].arguments
    expected = {"heads": 6, "group": 3, "q_len": 40, "k_len": 60, "scale": 0.3, "w": 7, "q_offset": 20, "k_offset": 0}
    assert {name: given[name] for name in expected} == expected
    assert (given["D_QK"], given["D_V"], given["PRECISION"]) == (32, 64, "ieee")
    assert given["q_row_stride"] * given["ALIGN"] == call.q.stride(2)
    assert given["k_dim_stride"] == 1
    assert given["q"] == call.q.data_ptr()


def test_alignment_chooses_the_variant(launches: list[Launch]) -> None:
    call = Case("aligned", WINDOW, dtype=torch.float16, given={"w": 7}).call()
    assert by_kernel(launches, call)["forward_kernel"].arguments["ALIGN"] == 8
    wide = torch.zeros(*call.q.shape[:3], call.q.shape[3] + 1, dtype=torch.float16)
    for odd in (wide[..., 1:], wide[..., :-1], call.q.transpose(2, 3).contiguous().transpose(2, 3)):
        assert by_kernel(launches, replace(call, q=odd))["forward_kernel"].arguments["ALIGN"] == 1
    one_token = replace(call, q=wide[:, :, :1, :-1].as_strided((1, 2, 1, 16), (32, 16, 3, 1)))
    sizes = replace(call.sizes, q_len=1)
    assert by_kernel(launches, replace(one_token, sizes=sizes))["forward_kernel"].arguments["ALIGN"] == 8


def test_far_elements_choose_wide_indices(launches: list[Launch]) -> None:
    import triton.language as tl

    call = Case("far", WINDOW, dtype=torch.float16, given={"w": 7}, lengths=(70, 70)).call()
    assert by_kernel(launches, call)["forward_kernel"].arguments["INTEGER"] is tl.int32
    far = torch.empty(0, dtype=torch.float16, device="meta").as_strided(call.k.shape, (0, 16, 2**25, 1))
    meta = replace(call, q=call.q.to("meta"), k=far, v=call.v.to("meta"))
    assert by_kernel(launches, meta)["forward_kernel"].arguments["INTEGER"] is tl.int64
    large = Case("large parameter", WINDOW, given={"w": 2**40}).call()
    assert by_kernel(launches, large)["forward_kernel"].arguments["INTEGER"] is tl.int64


@pytest.fixture
def tf32() -> Iterator[Callable[[bool], None]]:
    before = torch.backends.cuda.matmul.fp32_precision
    yield lambda on: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32" if on else "ieee")
    torch.backends.cuda.matmul.fp32_precision = before


def test_tf32_only_where_torch_allows_it(launches: list[Launch], tf32: Callable[[bool], None]) -> None:
    call = Case("tf32", WINDOW, given={"w": 7}).call()
    for on, precision in ((False, "ieee"), (True, "tf32")):
        tf32(on)
        assert by_kernel(launches, call)["backward_keys_kernel"].arguments["PRECISION"] == precision


@pytest.mark.parametrize("body", [DOCUMENTS, "keep k <= q"])
def test_nothing_looks_at_data(body: str, launches: list[Launch]) -> None:
    """On meta tensors there is none to be had: a copy to the host or a branch on a value raises."""
    call = Case("meta", body, batch=2, heads=(2, 1)).call()
    moved = {name: x.to("meta") for name, x in call.inputs.items()}
    meta = replace(call, q=call.q.to("meta"), k=call.k.to("meta"), v=call.v.to("meta"), inputs=moved)
    assert list(by_kernel(launches, meta)) == KERNELS


@pytest.mark.parametrize(
    ("text", "lengths", "longest"),
    [
        ("pass", (1, 8192), 8192),
        ("pass", (128, 4096), 4096),
        ("pass", (128, 1100), 1100),
        ("pass", (4096, 4096), 0),
        ("keep q - 300 < k", (1, 4096), 4096),
        ("keep k < 300", (1, 4096), 300),
    ],
)
def test_few_query_tiles_share_out_their_keys(
    text: str, lengths: tuple[int, int], longest: int, launches: list[Launch]
) -> None:
    """By the keys of the longest row, where there are processors left."""
    call = Case("shares", text, batch=2, heads=(4, 2), lengths=lengths, dtype=torch.float16, dims=(64, 64),
                offsets={"q_offset": 0}).call()  # fmt: skip
    out, lse = launcher.forward(call)
    tile, tile_k = configuration(SM_90, (64, 64), "fp16", "forward").tile
    splits = schedule.splits(132, -(-lengths[0] // tile) * 8, -(-longest // tile_k))
    assert (splits > 1) == (longest > 300)
    assert launches[0].arguments["splits"] == splits
    assert launches[0].grid == (-(-lengths[0] // tile) * 8 * splits, 1, 1)
    assert [x.kernel for x in launches] == ["forward_kernel", "merge_kernel"][: 1 + (splits > 1)]
    last = launches[-1].arguments
    assert (last["out"], last["lse"]) == (out.data_ptr(), lse.data_ptr())
    assert (out.shape, out.dtype, lse.shape) == (call.q.shape, call.q.dtype, call.q.shape[:3])


def test_no_launch_for_nothing(launches: list[Launch]) -> None:
    call = Case("nothing", "keep k <= q", lengths=(5, 5)).call()
    empty = replace(call, q=call.q[:, :, :0], sizes=replace(call.sizes, q_len=0))
    out, lse = launcher.forward(empty)
    assert out.shape == (1, 2, 0, 16)
    assert lse.shape == (1, 2, 0)
    assert not launches


def test_cpu_tensors_are_refused_by_name() -> None:
    with pytest.raises(MaskInputError, match="engine 'triton' takes tensors on a GPU; q is on cpu"):
        launcher.forward(Case("cpu", "pass").call())


# ---- replay


def tensors(length: int = 40, heads: int = 2, dtype: torch.dtype = torch.float16, dim: int = 16) -> list[torch.Tensor]:
    return [torch.randn(1, heads, length, dim, dtype=dtype).requires_grad_() for _ in range(3)]


def attention(text: str = WINDOW) -> Any:
    return maskc.compile_attention(text, engine="triton")


def train(attend: Any, given: list[torch.Tensor], **options: Any) -> list[torch.Tensor]:
    """Forward and backward: the output and the gradients."""
    out = attend(*given, validate=False, **options)
    return [out, *torch.autograd.grad(out, given, torch.ones_like(out))]


def plain(launch: Launch, *own: str) -> dict[str, Any]:
    """The arguments of a launch but the addresses of the call's own tensors."""
    return {name: x for name, x in launch.arguments.items() if name not in own}


OWN = ("q", "k", "v", "out", "lse", "d_out", "delta", "bound", "d_q", "d_k", "d_v")


def test_a_replay_launches_what_was_recorded_on_its_own_tensors(launches: list[Launch]) -> None:
    attend = attention()
    train(attend, tensors(), w=3)
    first, second = list(launches), tensors()
    launches.clear()
    out, d_q, d_k, d_v = train(attend, second, w=3)
    assert len(launcher._records) == 2
    assert [x.kernel for x in launches] == [x.kernel for x in first] == KERNELS
    for old, new in zip(first, launches, strict=True):
        assert old.grid == new.grid
        assert plain(old, *OWN) == plain(new, *OWN)
    q, k, v = second
    forward, rows, queries, keys = (x.arguments for x in launches)
    expected = {"q": q, "k": k, "v": v}
    for given, results in ((forward, {"out": out}), (queries, {"d_q": d_q}), (keys, {"d_k": d_k, "d_v": d_v})):
        assert {n: given[n] for n in expected | results} == {n: x.data_ptr() for n, x in (expected | results).items()}
    assert (rows["out"], rows["lse"]) == (out.data_ptr(), forward["lse"])
    assert queries["delta"] == keys["delta"] == rows["delta"]
    assert queries["bound"] == keys["bound"] == rows["bound"]
    assert (out.shape, out.dtype, d_q.shape) == (q.shape, q.dtype, q.shape)


def test_one_tensor_in_two_places_is_two_in_the_next_call(launches: list[Launch]) -> None:
    attend = attention(
        "mask case:\n    input one: float[head]\n    input two: float[head]\n    score += one[head] + two[head]"
    )
    q, k, v = (x.detach() for x in tensors())
    a, b = torch.zeros(2), torch.zeros(2)
    attend(q, q, q, one=a, two=a, validate=False)
    attend(q, k, v, one=a, two=b, validate=False)
    assert len(launcher._records) == 1
    given = launches[-1].arguments
    assert [given[n] for n in ("q", "k", "v", "one", "two")] == [x.data_ptr() for x in (q, k, v, a, b)]


def test_what_differs_is_another_record(launches: list[Launch], tf32: Callable[[bool], None]) -> None:
    attend = attention("mask case(w: int, s: float = 1.0):\n    keep 0 <= q - k < w\n    score *= s")
    q, k, v = (x.detach() for x in tensors(dim=32, dtype=torch.float32))
    narrow = torch.randn(1, 2, 40, 33)
    turned = q.transpose(1, 2).contiguous().transpose(1, 2)
    calls: list[tuple[tuple[torch.Tensor, ...], dict[str, Any]]] = [
        ((q, k, v), {"w": 3}),
        ((q, k, v), {"w": 4}),
        ((q, k, v), {"w": 1}),
        ((q, k, v), {"w": 3, "s": 0.5}),
        ((q, k, v), {"w": 3, "s": 0.0}),
        ((q, k, v), {"w": 3, "s": -0.0}),
        ((q, k, v), {"w": 3, "q_offset": 0}),
        ((q, k, v), {"w": 3, "q_offset": torch.zeros(1, dtype=torch.int64)}),
        ((q[:, :, :20], k[:, :, :20], v[:, :, :20]), {"w": 3}),
        ((turned, k, v), {"w": 3}),
        ((narrow[..., 1:], k, v), {"w": 3}),
        ((narrow[..., :-1], k, v), {"w": 3}),
        ((q.half(), k.half(), v.half()), {"w": 3}),
        ((q, k, v[..., :16]), {"w": 3}),
    ]
    for number, (given, options) in enumerate(calls, start=1):
        attend(*given, validate=False, **options)
        attend(*given, validate=False, **options)
        assert len(launcher._records) == number
    tf32(True)
    attend(q, k, v, w=3, validate=False)
    assert len(launcher._records) == len(calls) + 1
    assert len(launches) == 2 * len(calls) + 1


def test_upstream_gradients_of_any_strides(launches: list[Launch]) -> None:
    attend = attention()
    given = tensors()
    for turned in (False, True, True):
        out = attend(*given, w=3, validate=False)
        d_out = torch.randn(1, 40, 2, 16, dtype=torch.float16).transpose(1, 2) if turned else torch.ones_like(out)
        torch.autograd.grad(out, given, d_out)
        assert launches[-1].arguments["d_out"] == d_out.data_ptr()
        assert launches[-1].arguments["d_out_row_stride"] * 8 == d_out.stride(2)
    out = attend(*given, w=3, validate=False)
    for _ in range(2):
        torch.autograd.grad(out, given, torch.ones(1, dtype=torch.float16).expand_as(out), retain_graph=True)
        assert launches[-1].arguments["d_out_row_stride"] * 8 == 16  # a copy with rows that can be read fast
    out, lse = attend(*given, w=3, return_lse=True, validate=False)
    torch.autograd.grad((out, lse), given, (torch.ones_like(out), torch.ones_like(lse)))
    assert launches[-3].kernel == "backward_rows_kernel"
    assert launches[-3].arguments["d_lse"] is not None


def test_tables_that_depend_on_data_are_those_of_the_call(launches: list[Launch]) -> None:
    attend = attention(DOCUMENTS)
    given = tensors(length=200)
    for dtype in (torch.int64, torch.int32):
        for width in (10, 50):
            launches.clear()
            doc = (torch.arange(200)[None] // width).to(dtype)
            train(attend, given, doc=doc)
            assert [x.kernel for x in launches] == KERNELS
            assert (launches[0].arguments["doc"] == doc.data_ptr()) == (dtype is torch.int64)
    assert len(launcher._records) == 4


def test_calls_in_between_are_checked(launches: list[Launch]) -> None:
    attend = attention()
    q, k, v = (x.detach() for x in tensors())
    attend(q, k, v, w=3)
    for bad, message in (((q, k, v[:, :, :5]), "equal heads and lengths"), ((q, k.float(), v), "one dtype for all")):
        with pytest.raises(MaskInputError, match=message):
            attend(*bad, w=3)
    with pytest.raises(MaskInputError, match="no input, parameter or axis 'x'"):
        attend(q, k, v, w=3, x=4)
    assert len(launcher._records) == 1


def test_records_are_bounded_and_those_in_use_stay(launches: list[Launch], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "_RECORDS", 4)
    attend = attention()
    q, k, v = (x.detach() for x in tensors())
    attend(q, k, v, w=1)
    known = next(iter(launcher._records.values()))
    for w in range(2, 20):
        attend(q, k, v, w=w)
        attend(q, k, v, w=1)
    assert len(launcher._records) == 4
    assert known in launcher._records.values()


def test_the_device_of_the_tensors_is_the_current_one(launches: list[Launch], monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[torch.device] = []

    class Guard:
        def __init__(self, device: torch.device) -> None:
            self.device = device

        def __enter__(self) -> None:
            entered.append(self.device)
            monkeypatch.setattr(StubDriver, "get_current_device", lambda self: 1)

        def __exit__(self, *_: object) -> None:
            monkeypatch.undo()

    call = Case("device", WINDOW, given={"w": 3}).call()
    record = replace(launcher._new(call, "forward").record, device=torch.device("cuda", 1), steps=())
    monkeypatch.setattr(torch.cuda, "device", Guard)
    record.replay([call.q] * 9)
    assert entered == [torch.device("cuda", 1)]


# ---- compile keys


def test_new_values_are_no_new_compile_keys(launches: list[Launch]) -> None:
    """Lengths, parameters and contents of a hundred calls, forward and backward."""
    text = "mask case(w: int):\n    input doc: int[batch, seq]\n    keep doc[q] == doc[k] and q - k < w"
    attend = attention(text)
    for number in range(100):
        length = (64, 65, 16, 1, 257, 33, 128)[number % 7] + number // 7
        doc = torch.arange(length)[None] // (number % 9 + 1)
        train(attend, tensors(length), w=(3, 100, 1, 5, -7)[number % 5], doc=doc)
        if number == 6:
            first = launcher.compile_keys()
    assert launcher.compile_keys() == first
    assert [key.entry for key in first] == KERNELS
    train(attend, tensors(dtype=torch.float32), w=3, doc=torch.zeros(1, 40, dtype=torch.int64))
    assert len(launcher.compile_keys()) == 8


def test_a_compile_key_says_what_is_compiled(launches: list[Launch]) -> None:
    attend = attention("mask case(s: float):\n    input slope: float[head]\n    score += slope[head] * s * k")
    q, k, v = (x.detach() for x in tensors())
    attend(q, k, v, s=1.0, slope=torch.ones(2))
    (key,) = launcher.compile_keys()
    signature = dict(key.signature)
    assert (signature["q"], signature["lse"], signature["slope"]) == (
        "*torch.float16",
        "*torch.float32",
        "*torch.float32",
    )
    assert (signature["s"], signature["q_len"], signature["D_QK"]) == ("fp64", "i32", "16")
    assert dict(key.options)["num_warps"] == configuration(SM_90, (16, 16), "fp16", "forward").warps
    attend(q, k, v, s=2.0, slope=torch.ones(2, dtype=torch.float64))
    assert len(launcher.compile_keys()) == 2


# ---- what goes wrong


def failing(monkeypatch: pytest.MonkeyPatch, error: Callable[[dict[str, Any]], Exception | None]) -> None:
    """Kernels whose compilation fails where `error` says so of its compile-time arguments."""
    works = records._compiled

    def compiled(noted: Any, grid: Any, given: Any, named: Any) -> Any:
        cause = error(named)
        if cause is not None:
            raise records.KernelError(noted.entry) from cause
        return works(noted, grid, given, named)

    monkeypatch.setattr(records, "_compiled", compiled)


def test_a_compiler_that_fails_is_reported_with_the_mask(
    launches: list[Launch], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, lambda named: RuntimeError("PassManager::run failed"))
    with pytest.raises(MaskError) as caught:
        attention()(*tensors(), w=3)
    chosen = configuration(SM_90, (16, 16), "fp16", "forward")
    assert str(caught.value) == (
        "<spec>:1:1: kernel 'forward_kernel' of mask 'case' does not compile for sm_90 "
        f"with head dims 16 and 16 in fp16, {chosen}: PassManager::run failed\n"
        "  1 | mask case(w: int):\n"
        "    | ^^^^^^^^^^^^^^^^^^\n"
        "hint: engine='tiled' runs without kernels of its own"
    )
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_what_does_not_fit_gives_way_to_the_next_configuration(
    launches: list[Launch], monkeypatch: pytest.MonkeyPatch
) -> None:
    def error(named: dict[str, Any]) -> Exception | None:
        return OutOfResources(300000, 232448, "shared memory") if named.get("BLOCK_K", 0) > 32 else None

    failing(monkeypatch, error)
    attend = attention()
    given = tensors()
    train(attend, given, w=3)
    for launch, pass_ in zip((launches[0], launches[2], launches[3]), ("forward", "queries", "keys"), strict=True):
        fits = next(c for c in fitting(SM_90, (16, 16), "fp16", pass_) if c.block_k <= 32)
        assert (launch.arguments["BLOCK_Q"], launch.arguments["BLOCK_K"]) == fits.tile
    asked = len(launcher.compile_keys())
    assert asked > 4  # those that did not fit are there, too
    train(attend, tensors(length=50), w=3)
    assert len(launcher.compile_keys()) == asked


def test_where_nothing_fits(launches: list[Launch], monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, lambda named: OutOfResources(300000, 232448, "shared memory"))
    with pytest.raises(
        MaskUnsupportedError, match=r"does not fit .* 16 x 16, 4 warps, 1 stages: out of resource: shared"
    ):
        attention()(*tensors(), w=3)


@pytest.mark.parametrize("warm", [False, True])
def test_memory_that_runs_out_is_reported_with_the_mask(
    warm: bool, launches: list[Launch], monkeypatch: pytest.MonkeyPatch
) -> None:
    attend, given = attention(), tensors()
    if warm:
        attend(*given, w=3)

    def allocate(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(records.Allocate, "__call__", allocate)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        attend(*given, w=3)
    assert isinstance(caught.value, MaskError)
    text = str(caught.value)
    assert text.startswith("<spec>:1:1: no memory left on cpu for mask 'case' with q (1, 2, 40, 16)")
    assert "CUDA out of memory. Tried to allocate 20.00 GiB." in text
    assert "  1 | mask case(w: int):" in text


def test_a_graph_replays_what_is_warm_and_refuses_what_is_not(
    launches: list[Launch], monkeypatch: pytest.MonkeyPatch
) -> None:
    attend, given = attention(), tensors()
    train(attend, given, w=3)
    monkeypatch.setattr(launcher, "_is_capturing", lambda device: True)
    train(attend, given, w=3)
    assert len(launches) == 8
    with pytest.raises(MaskUnsupportedError) as caught:
        attend(*given, w=4)
    assert "is called in a CUDA graph" in str(caught.value)
    assert "hint: one such call before the capture" in str(caught.value)
    assert len(launches) == 8


def test_operators_that_a_record_cannot_hold_are_named(stub: StubDriver) -> None:
    recorder = records.Recorder(torch.device("cpu"), "sm_90", lambda key: None)
    x = recorder.twin(torch.zeros(4))
    with pytest.raises(MaskError, match=r"calls aten\.mul\.Tensor, which cannot be recorded"):
        recorder.record(lambda: [x * 2])


def test_allocations_and_casts_are_replayed(stub: StubDriver) -> None:
    recorder = records.Recorder(torch.device("cpu"), "sm_90", lambda key: None)
    x = recorder.twin(torch.zeros(2, 3))

    def work() -> list[torch.Tensor]:
        zeros, ones = x.new_zeros((2, 3)), x.new_full((3,), 1.0, dtype=torch.float64)
        return [zeros, ones, x.to(torch.float16), torch.empty((1, 6), device="meta")[0]]

    given = torch.randn(2, 3)
    zeros, ones, half, view = recorder.record(work).replay([given])
    assert torch.equal(zeros, torch.zeros(2, 3))
    assert torch.equal(ones, torch.ones(3, dtype=torch.float64))
    assert torch.equal(half, given.half())
    assert view.shape == (6,)


def test_what_is_timed_against_calls_is_their_own_bare_work(launches: list[Launch]) -> None:
    import overhead

    for spec in overhead.SPECS:
        launches.clear()
        rows = overhead.rows(spec, rounds=1, calls=1)
        assert [(row.spec, row.launches) for row in rows] == [(spec.name, 1), (spec.name, 1), (spec.name, 4)]
        # A first call of each kind, and two rounds of a call and its bare work.
        assert len(launches) == 4 + 2 * 2 * (1 + 1 + 4)


# ---- through Triton


def test_triton_compiles_once_for_all_values(stub: StubDriver) -> None:
    """Through Triton's own launch path: lengths, strides, parameters and contents never compile again."""
    attend = attention("mask case(w: int):\n    input doc: int[batch, seq]\n    keep doc[q] == doc[k] and q - k < w")
    for length, window in ((33, 1), (64, 16), (1, 2**30), (100, -7)):
        train(attend, tensors(length), w=window, doc=torch.arange(length)[None] // 9)
        if length == 33:
            compiled = list(stub.binaries)
    assert stub.binaries == compiled == [key.entry for key in launcher.compile_keys()]
    assert len(stub.launches) == 4 * 4
    # A replay goes by addresses: nothing that is compiled may follow from the values of arguments.
    steps = [step for known in launcher._records.values() for step in known.record.steps]
    assert not any(any(step.kernel.src.attrs.values()) for step in steps if isinstance(step, records.Launch))


def test_profilers_see_warm_launches(stub: StubDriver) -> None:
    attend, given = attention(), [x.detach() for x in tensors()]
    attend(*given, w=3)
    seen: list[dict[str, Any]] = []

    def hook(metadata: Any) -> None:
        seen.append(metadata.get())

    triton.knobs.runtime.launch_enter_hook.add(hook)
    try:
        attend(*given, w=3)
        *_, metadata, enter, leave = stub.launches[-1][:9]
    finally:
        triton.knobs.runtime.launch_enter_hook.remove(hook)
    assert metadata.get()["name"] == "forward_kernel"
    assert enter is triton.knobs.runtime.launch_enter_hook
    assert leave is triton.knobs.runtime.launch_exit_hook
    attend(*given, w=3)
    assert stub.launches[-1][6:9] == (None, None, None)


def test_modules_are_loaded_once() -> None:
    source = emit(Case("loaded", "keep k <= q + 4").call().spec)
    module = loader.load(source)
    assert isinstance(module, ModuleType)
    assert loader.load(source) is module
