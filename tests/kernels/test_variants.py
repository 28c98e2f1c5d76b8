"""The announced variants of a spec: a closed set, from which calls choose whatever they look like."""

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from kernels import plans
from kernels.cases import Case
from torch import Tensor

from maskc.check import load
from maskc.codegen import variants as announcing
from maskc.codegen.form import announced as clause_sets
from maskc.codegen.loads import loads
from maskc.codegen.schedule import Configuration, configuration, fitting, target_named
from maskc.codegen.source import emit
from maskc.codegen.variants import Variant
from maskc.diagnostics import MaskUnsupportedError
from maskc.runtime import launcher, records, stages, tables, variants
from maskc.runtime.inputs import Call
from maskc.spec import MaskSpec

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from stub import StubDriver, in_place_of_gpu

SPECS = {
    "window": "mask case(w: int):\n    keep 0 <= q - k < w",
    "dilated": "mask case(w: int, d: int):\n    keep 0 <= q - k < w\n    keep (q - k) % d == 0",
    "three digits": "mask case(w: int):\n    keep q // w == k // w\n    keep q % w >= k % w\n    keep (q + k) % w < 5",
    "documents": "mask case(w: int):\n    input doc: int[batch, seq] sorted\n    keep doc[q] == doc[k]\n"
    "    keep k - q < w",
    "biases": "mask case(w: int):\n    input a: float[head, q]\n    input b: float[batch, k]\n    let c = [0.5, 1.0]\n"
    "    keep q - k < w\n    score += a[q] + b[k] + c[k % 2]",
    "keys alone": "mask case(w: int):\n    input valid: bool[batch, k]\n    keep valid[k]\n"
    "    score += 0.1 * w * (k % 7)",
}
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
CALLS = 100
SM_90 = target_named("sm_90")


@pytest.mark.parametrize(
    ("dtype", "dims"), [(torch.float16, (64, 64)), (torch.float32, (16, 72)), (torch.bfloat16, (5, 96))]
)
@pytest.mark.parametrize("name", SPECS)
def test_calls_choose_among_the_announced_variants(name: str, dtype: torch.dtype, dims: tuple[int, int]) -> None:
    spec = load(SPECS[name])
    known = dict.fromkeys(announcing.announced(spec, dims, variants.DTYPES[dtype]), 0)
    draw = Random(name)
    for number in range(CALLS):
        call = drawn(name, dtype, dims, draw, number)
        splits, d_lse = draw.choice((1, 3)), draw.random() < 0.5
        strided = [view(x, draw) for x in (call.q, call.k, call.v)]
        for part in planned(call, draw, splits).parts:
            known[variants.variant_of(call, part, strided, parts=splits > 1, d_lse=d_lse)] += 1  # KeyError: a new one
    # The calls do go through the set: every value of every choice is met, but dtypes of inputs and sets of clauses.
    met = [v for v, calls in known.items() if calls]
    for field in ("aligned", "wide", "offsets", "parts", "d_lse"):
        assert {getattr(v, field) for v in met} == {getattr(v, field) for v in known}, field
    assert {v.form.indexed for v in met} == {False, True}
    assert {v.alike for v in met} >= ({False, True} if dims[0] == dims[1] else {False})


def drawn(name: str, dtype: torch.dtype, dims: tuple[int, int], draw: Random, number: int) -> Call:
    """A call with lengths, heads, parameters, offsets, contents and dtypes of inputs of its own."""
    q_len, k_len = draw.randrange(1, 90), draw.randrange(1, 90)
    batch = draw.choice((1, 2, 3))
    given: dict[str, Any] = {"w": draw.choice((1, 2, 9, 64, 2**40))}
    if name == "dilated":
        given["d"] = draw.choice((1, 3, 8))
    if name == "documents":
        k_len = q_len
        given["doc"] = torch.arange(q_len).div(draw.randrange(1, 20), rounding_mode="floor").expand(batch, -1)
        given["doc"] = given["doc"].to(draw.choice((torch.int32, torch.int64)))
    starts = (draw.randrange(40), torch.tensor([draw.randrange(40) for _ in range(batch)]))
    offsets = {} if name == "documents" else {side: draw.choice(starts) for side in ("q_offset", "k_offset")}
    if name == "documents":
        offsets = {"q_offset": draw.choice((0, torch.zeros(batch, dtype=torch.int64)))}
        offsets["k_offset"] = draw.choice((0, torch.zeros(batch, dtype=torch.int64)))
    heads = draw.choice(((1, 1), (4, 2), (7, 1)))
    call = Case(f"call {number}", SPECS[name], (q_len, k_len), heads, batch, dims, dtype, None, offsets, given).call()
    floats = {i.name for i in call.spec.given if i.type.value == "float"}
    inputs = {n: x.to(draw.choice(FLOATS)) if n in floats else x for n, x in call.inputs.items()}
    return replace(call, inputs=inputs)


def view(x: Tensor, draw: Random, *, far: bool = True) -> Tensor:
    """The shape of a tensor with other strides; none of them is ever read."""
    rows = (*x.shape[:2], x.shape[2], 2 * x.shape[3] + 16)
    match draw.randrange(8):
        case 0:
            return x.new_zeros(rows)[..., 1 : x.shape[3] + 1]
        case 1:
            return x.new_zeros(rows)[..., : 2 * x.shape[3] : 2]
        case 2 if far and x.shape[2] > 1:
            return x.new_empty(0, device="meta").as_strided(x.shape, (0, 16, 2**31, 1))
        case _:
            width = -(-x.shape[3] // 16) * 16
            return x.new_zeros((x.shape[0], x.shape[2], x.shape[1], width))[..., : x.shape[3]].transpose(1, 2)


def planned(call: Call, draw: Random, splits: int) -> tables.Tables:
    """The plan that engines make, or one in another order of tokens."""
    if draw.random() < 0.8:
        return tables.build(call, (32, 32), splits)
    orders = (plans.shuffled(n, draw.randrange(99), gaps=3) for n in (call.sizes.q_len, call.sizes.k_len))
    given = {n: x.to(torch.float64 if x.is_floating_point() else x.dtype).numpy() for n, x in call.inputs.items()}
    return tables.of_plan(plans.plan(call.spec, call.sizes, (32, 32), given, plans.ordered(*orders)), call.q.device)


@pytest.fixture
def _without_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A stub in the place of the GPU; nothing is compiled or launched."""
    compiled = SimpleNamespace(run=lambda *arguments: None, function=0, packed_metadata=())
    monkeypatch.setattr(records, "_compiled", lambda *arguments: compiled)
    with in_place_of_gpu(StubDriver()):
        yield


@pytest.mark.usefixtures("_without_device")
@pytest.mark.parametrize("name", ["dilated", "documents", "biases"])
def test_compile_keys_are_those_of_the_announced_variants(name: str) -> None:
    """What the launcher asks the compiler for, in a hundred calls: kernels of the set with tiles of the table."""
    spec, dims, draw = load(SPECS[name]), (72, 40), Random(name)
    known = {key for variant in announcing.announced(spec, dims, "fp16") for key in keys_of(spec, variant)}
    for number in range(CALLS):
        call = drawn(name, torch.float16, dims, draw, number)
        call = replace(call, q=view(call.q, draw, far=False), k=view(call.k, draw), v=view(call.v, draw))
        out, lse = call.q.new_empty(*call.q.shape[:3], dims[1]), call.q.new_empty(call.q.shape[:3], dtype=torch.float32)
        launcher.forward(call)
        launcher.backward(call, out, lse, view(out, draw, far=False), draw.choice((None, lse)))
    asked = launcher.compile_keys()
    assert {key.entry for key in asked} >= {kernel.name for kernel in emit(spec).kernels} - {"merge_kernel"}
    for key in asked:
        given = dict(key.signature)
        blocks = {block: int(given.pop(block)) for block in ("BLOCK_Q", "BLOCK_K") if block in given}
        assert (key.text, key.entry, tuple(given.items())) in known, key
        assert any(blocks.items() <= c.items() for c in configurations(spec, dims, key.entry)), key


def keys_of(spec: MaskSpec, variant: Variant) -> Iterator[tuple[str, str, tuple[tuple[str, str], ...]]]:
    """Hash, entry point and signature of every kernel of a variant, as compile keys have them, but for the tile."""
    source = emit(spec, variant.form)
    text = hashlib.sha256(source.text.encode()).hexdigest()
    for kernel in source.kernels:
        types, constants = stages.signature(kernel, spec, variant, Configuration(16, 16, 4, 1))
        said = {n: str(constants[n]) if n in constants else TYPES.get(type_, type_) for n, type_ in types.items()}
        yield text, kernel.name, tuple((n, type_) for n, type_ in said.items() if not n.startswith("BLOCK_"))


def configurations(spec: MaskSpec, dims: tuple[int, int], entry: str) -> list[dict[str, int]]:
    """The tiles that the table has for an entry point, whatever the dtypes of inputs."""
    floats = [i.name for i in spec.inputs if i.type.value == "float"]
    reads = [loads(spec, frozenset(some)) for n in range(len(floats) + 1) for some in combinations(floats, n)]
    table = product((False, True), reads)
    found = [fitting(SM_90, dims, "fp16", stages.PASSES[entry], emit(spec).heavy, *facts) for facts in table]
    return [{"BLOCK_Q": c.block_q, "BLOCK_K": c.block_k} for group in found for c in group]


TYPES = {"*i1": "*torch.bool", "*i32": "*torch.int32", "*i64": "*torch.int64", "*fp64": "*torch.float64"} | {
    f"*{name}": f"*{dtype}" for dtype, name in variants.DTYPES.items()
}


def test_only_costly_clauses_are_left_out() -> None:
    assert clause_sets(load(SPECS["window"])) == ((0,),)
    assert clause_sets(load(SPECS["dilated"])) == ((0, 1), (0,))
    assert len(clause_sets(load(SPECS["three digits"]))) == 8


def test_a_set_of_clauses_is_named_or_refused() -> None:
    spec = load(SPECS["dilated"])
    assert announcing.named_form(spec, (64, 64)).predicate is None
    assert str(announcing.named_form(spec, (64, 64), clauses=(0,)).predicate) == str(spec.clauses[0])
    with pytest.raises(MaskUnsupportedError, match=r"evaluates clauses 1 in partial tiles; there are kernels for 0,1"):
        announcing.named_form(spec, (64, 64), clauses=(1,))
    with pytest.raises(MaskUnsupportedError, match="head dim of v is 257"):
        announcing.named_form(spec, (64, 257))


def test_tables_of_the_spec_itself_have_one_dtype() -> None:
    spec = load(SPECS["biases"])
    found = {name for v in announcing.announced(spec, (16, 16), "fp16") for name in v.inputs}
    own = {name for name, dtype in found if dtype == "fp64"} - {"a", "b"}
    assert len(own) == 1
    assert {dtype for name, dtype in found if name in own} == {"fp64"}
    assert {dtype for name, dtype in found if name == "a"} == set(announcing.INPUT_DTYPES)


@pytest.fixture
def _tf32_allowed() -> Iterator[None]:
    torch.backends.cuda.matmul.allow_tf32 = True
    yield
    torch.backends.cuda.matmul.allow_tf32 = False


@pytest.mark.usefixtures("_tf32_allowed")
@pytest.mark.parametrize("dtype", variants.DTYPES, ids=str)
def test_tf32_is_a_variant_of_float32_only(dtype: torch.dtype) -> None:
    call = Case("tf32", SPECS["window"], dtype=dtype, given={"w": 9}).call()
    (part,) = tables.build(call, (32, 32)).parts
    found = variants.variant_of(call, part, (call.q, call.k, call.v))
    assert found.tf32 == (dtype is torch.float32)
    assert found in announcing.announced(call.spec, (16, 16), variants.DTYPES[dtype])


def test_config_and_variant_agree() -> None:
    draw = Random(3)
    chosen = configuration(target_named("sm_90"), (64, 64), "fp16", "forward")
    for number in range(20):
        call = drawn("window", torch.float16, (64, 64), draw, number)
        strided = [view(x, draw) for x in (call.q, call.k, call.v)]
        (part,) = tables.build(call, (32, 32)).parts
        variant, config = variants.variant_of(call, part, strided), variants.config(call, chosen, strided)
        assert (config["ALIGN"], config["WIDE"]) == (variant.align, variant.wide)
        assert config["PRECISION"] == variant.precision


BARE = load(SPECS["biases"])
FIRST, *_, LAST = announcing.announced(BARE, (32, 72), "fp16")


@pytest.mark.slow
@pytest.mark.parametrize("variant", [FIRST, LAST], ids=["plainest", "furthest"])
def test_variants_compile(variant: Variant) -> None:
    source, target = emit(BARE, variant.form), target_named("sm_90")
    for kernel in source.kernels:
        chosen = configuration(target, variant.dims, variant.dtype, stages.PASSES[kernel.name], source.heavy)
        text = stages.compile_kernel(source, BARE, kernel.name, target, variant, chosen).stages["ttir"]
        assert isinstance(text, str)
        assert f"@{kernel.name}" in text
        if kernel.name == "forward_kernel":
            results = "f32" if variant.parts else "f16"
            assert f"%out: !tt.ptr<{results}>" in text
            assert ("%q_offsets: !tt.ptr<i64>" in text) == bool(variant.offsets)


def test_every_read_of_a_form_is_in_its_choices() -> None:
    """A form that evaluates fewer clauses reads fewer things, and has fewer variants."""
    spec = load("mask case:\n    input a: float[q]\n    keep a[q] * 0.5 ** k > 1\n    keep k <= q\n")
    every, fewer = announcing.forms(spec, (64, 64))[:2]
    assert announcing.reads(spec, every) == (("q_offset", "k_offset"), ("a",))
    assert announcing.reads(spec, fewer)[1] == ()
    assert np.prod([len(c) for c in announcing.choices(spec, fewer, "fp16").values()]) == 128
