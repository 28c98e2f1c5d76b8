"""The callable that compile_attention returns, besides the call itself."""

import copy
import pathlib
import pickle
import subprocess
import sys

import engine_cases as cases
import numpy as np
import pytest
import torch

import maskc
from maskc import MaskInputError, MaskUnsupportedError
from maskc.check import load
from maskc.codegen.source import emit
from maskc.codegen.variants import named_form

ROOT = pathlib.Path(__file__).parents[2]


def test_a_spec_is_a_path_a_text_or_checked(tmp_path):
    path = tmp_path / "two.mask"
    path.write_text(cases.SPECS["causal"] + cases.SPECS["window"], encoding="utf-8")
    q, k, v = cases.tensors(1, 1, 1, 20, 20, (4, 4), torch.float32)
    expected = maskc.compile_attention(cases.SPECS["window"], window=3)(q, k, v)
    for spec in (str(path), path, load(cases.SPECS["window"])):
        assert torch.equal(maskc.compile_attention(spec, window=3)(q, k, v), expected)
    causal = maskc.compile_attention(cases.SPECS["causal"])(q, k, v)
    assert torch.equal(maskc.compile_attention(path, mask="causal_line")(q, k, v), causal)
    assert torch.equal(maskc.compile_attention(f"{path}:causal_line")(q, k, v), causal)


def test_shows_its_spec():
    attention = maskc.compile_attention(cases.SPECS["window"], window=3, engine="tiled")
    assert str(attention).startswith("mask window\n  parameter window: int = 100\n")
    assert repr(attention) == "<attention window, engine=tiled, window=3>"


def test_scale():
    q, k, v = cases.tensors(1, 1, 1, 20, 20, (4, 4), torch.float32)
    text = cases.SPECS["causal"]
    torch.testing.assert_close(
        maskc.compile_attention(text, scale=0.5)(q, k, v), maskc.compile_attention(text)(q, k, v)
    )
    torch.testing.assert_close(
        maskc.compile_attention(text, scale=0.0)(q, k, v), v.cumsum(2) / torch.arange(1, 21).view(-1, 1)
    )


@pytest.mark.parametrize("name", [name for name in cases.SPECS if name != "neighbours"])
def test_mask_and_plan_take_what_a_call_takes(name):
    call = cases.call_of(name, batch=2, heads=4, kv_heads=2, q_len=70, k_len=90, q_offset=20)
    attention = maskc.compile_attention(call.spec)
    options = {**call.inputs, "batch": 2, "heads": 4, "kv_heads": 2, "q_offset": 20}
    mask = attention.mask(70, 90, **options)
    plan = attention.plan(70, 90, **options)
    assert mask.dtype == np.bool_
    assert mask.shape[-2:] == (70, 90)
    assert (plan.sizes.q_len, plan.sizes.k_len, plan.tile) == (70, 90, (64, 64))
    from maskc.analysis.plan import expand

    arrays = {name: x.numpy() for name, x in call.inputs.items()}
    assert (expand(plan, arrays).squeeze() == mask).all()
    assert str(plan).startswith(f"plan of {call.spec.name}: 70 queries x 90 keys")


def test_counts_follow_from_the_inputs():
    attention = maskc.compile_attention(cases.SPECS["clusters"])
    cluster = np.zeros((3, 5, 16), np.int32)
    assert attention.mask(16, cluster=cluster).shape == (3, 5, 16, 16)
    assert attention.plan(16, cluster=torch.from_numpy(cluster)).maps == (3, 5)
    offsets = maskc.compile_attention(cases.SPECS["causal"])
    assert offsets.mask(1, 9, q_offset=np.array([3, 8])).sum(-1).tolist() == [[4], [9]]
    assert offsets.plan(128, tile=(32, 16)).tile == (32, 16)


def test_source_is_a_kernel_file():
    text = maskc.compile_attention(cases.SPECS["window"]).source()
    assert "import triton" in text
    assert text == maskc.compile_attention(cases.SPECS["window"], window=7).source()
    compile(text, "kernel.py", "exec")


def test_source_is_that_of_the_head_dims_and_keys():
    attention = maskc.compile_attention(cases.SPECS["window"])
    spec = attention.spec
    assert attention.source() == attention.source(128) == emit(spec).text
    assert attention.source(72, 40) == emit(spec, named_form(spec, (72, 40))).text
    assert attention.source(indexed=True) == emit(spec, named_form(spec, (64, 64), indexed=True)).text
    assert len({attention.source(64, dim, indexed=i) for dim in (64, 72) for i in (False, True)}) == 4
    with pytest.raises(MaskUnsupportedError, match="head dim of v is 257"):
        attention.source(dim_v=257)


def test_engine_follows_the_device():
    attention = maskc.compile_attention(cases.SPECS["window"])
    assert attention.engine_for(torch.zeros(1)) == "tiled"
    assert attention.engine_for(torch.zeros(1, device="meta")) == "tiled"
    with pytest.raises((MaskInputError, MaskUnsupportedError), match="triton"):
        maskc.compile_attention(cases.SPECS["window"], engine="triton")(
            *cases.tensors(1, 1, 1, 16, 16, (16, 16), torch.float32)
        )


def test_importing_maskc_loads_neither_torch_nor_triton():
    program = "import sys, maskc, maskc.compiler; print(sorted({'torch', 'triton', 'sympy'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "[]"


def test_runs_without_triton():
    program = (
        "import sys; sys.modules['triton'] = None; import torch, maskc; "
        "a = maskc.compile_attention('mask m:\\n    keep k <= q\\n'); "
        "x = torch.ones(1, 1, 5, 4, requires_grad=True); a(x, x, x).sum().backward(); print(a(x, x, x).shape)"
    )
    found = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "torch.Size([1, 1, 5, 4])"


def test_goes_to_another_process(tmp_path):
    attention = maskc.compile_attention(cases.SPECS["window"], window=3, scale=0.5)
    (tmp_path / "attention").write_bytes(pickle.dumps(attention))
    program = (
        "import pickle, pathlib, sys, torch; a = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes()); "
        "x = torch.arange(20.0).view(1, 1, 5, 4); print(repr(a), a(x, x, x)[0, 0, 4].tolist())"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "attention")]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    x = torch.arange(20.0).view(1, 1, 5, 4)
    assert found.stdout.strip() == f"{attention!r} {attention(x, x, x)[0, 0, 4].tolist()}"
    copied = copy.deepcopy(attention)
    assert torch.equal(copied(x, x, x), attention(x, x, x))


@pytest.mark.slow
def test_long_sequences_take_little_memory():
    command = [sys.executable, ROOT / "benchmarks" / "cpu.py", "--memory", "--threads", "1"]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    assert float(found.stdout) < 200, "MB at 65,536 tokens, window 512, plan, forward and backward"
