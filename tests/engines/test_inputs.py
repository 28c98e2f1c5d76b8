"""What a call may not give: each is refused with a sentence that names it, what was given and what is expected."""

import re

import engine_cases as cases
import numpy as np
import pytest
import torch

import maskc
from maskc import MaskInputError
from maskc.runtime.inputs import SizesMemo
from maskc.spec import Sizes

WINDOW = cases.SPECS["window"]


def qkv(heads=2, kv_heads=2, q_len=8, k_len=8, dims=(4, 4), dtype=torch.float32):
    return cases.tensors(1, heads, kv_heads, q_len, k_len, dims, dtype)


@pytest.fixture(params=["tiled", "dense"])
def engine(request):
    return request.param


def bad_tensors():
    q, k, v = qkv()
    yield "q is a list", (q.tolist(), k, v), "q is a list; expected a tensor"
    yield "v is no tensor", (q, k, v.numpy()), "v is a ndarray; expected a tensor"
    yield "three dims", (q[0], k, v), "q has 3 dims, (2, 8, 4); expected 4"
    yield "integers", (q.int(), k.int(), v.int()), "q has dtype int32; expected float32, float64, float16 or bfloat16"
    yield (
        "mixed dtypes",
        (q, k.half(), v.bfloat16()),
        "q is float32, k is float16 and v is bfloat16; expected one dtype",
    )
    yield "devices", (q, k.to("meta"), v), "q is on cpu, k on meta and v on cpu; expected one device"
    yield "batch sizes", (q.repeat(2, 1, 1, 1), k, v), "q, k and v have batch sizes 2, 1 and 1"
    yield "lengths", (q, k, v[:, :, :5]), "k is (1, 2, 8, 4) and v is (1, 2, 5, 4); expected equal heads and lengths"
    yield "head dims", (q[..., :3], k, v), "q has head dim 3 and k has 4; expected the same"
    yield "heads", (torch.cat([q, q[:, :1]], 1), k, v), "q has 3 heads and k has 2; expected a multiple"
    yield "no kv heads", (q, k[:, :0], v[:, :0]), "q has 2 heads and k has 0; expected a multiple"


@pytest.mark.parametrize(
    ("tensors", "message"), [case[1:] for case in bad_tensors()], ids=[c[0] for c in bad_tensors()]
)
def test_bad_tensors(engine, tensors, message):
    with pytest.raises(MaskInputError) as error:
        maskc.compile_attention(WINDOW, engine=engine)(*tensors)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"windw": 3}, "mask 'window' has no input, parameter or axis 'windw'; did you mean 'window'?"),
        ({"windw": torch.ones(3)}, "has no input, parameter or axis 'windw'"),
        ({"window": "3"}, "'window' is a str; expected a"),
        ({"window": torch.tensor(3)}, "parameter 'window' is a Tensor; expected a number"),
        ({"window": 2.5}, "window"),
        ({"q_offset": 1.5}, "q_offset is 1.5; expected an int, or a tensor of integers"),
        ({"q_offset": True}, "q_offset is True; expected an int"),
        (
            {"k_offset": torch.zeros(3, dtype=torch.int64)},
            "k_offset is a tensor (3) of int64; expected an int, or integers (1,)",
        ),
        ({"q_offset": torch.zeros(1)}, "q_offset is a tensor (1) of float32"),
        ({"q_offset": torch.zeros(1, dtype=torch.int64, device="meta")}, "is on meta; expected cpu, where q is"),
    ],
)
def test_bad_numbers(engine, given, message):
    with pytest.raises(MaskInputError) as error:
        maskc.compile_attention(WINDOW, engine=engine)(*qkv(), **given)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "input 'doc' is missing; mask 'docs' declares it int[batch, seq]"),
        ({"doc": [0] * 8}, "'doc' is a list; expected a tensor"),
        ({"doc": torch.zeros(1, 8)}, "input 'doc' has dtype float32; the spec declares int[batch, seq]"),
        ({"doc": torch.zeros(1, 8, dtype=torch.bool)}, "input 'doc' has dtype bool; the spec declares int[batch, seq]"),
        ({"doc": torch.zeros(8, dtype=torch.int64)}, "input 'doc' has 1 dims, (8); the spec declares int[batch, seq]"),
        ({"doc": torch.zeros(1, 7, dtype=torch.int64)}, "doc"),
        ({"doc": torch.zeros(2, 8, dtype=torch.int64)}, "doc"),
        ({"doc": torch.zeros(1, 8, dtype=torch.int64, device="meta")}, "is on meta; expected cpu, where q is"),
    ],
)
def test_bad_inputs(engine, given, message):
    with pytest.raises(MaskInputError) as error:
        maskc.compile_attention(cases.SPECS["documents"], engine=engine)(*qkv(), **given)
    assert message in str(error.value)


def test_an_input_that_requires_a_gradient_is_refused(engine):
    slope = torch.ones(2, requires_grad=True)
    with pytest.raises(MaskInputError, match=r"input 'slope' requires a gradient.*pass slope.detach\(\)"):
        maskc.compile_attention(cases.SPECS["alibi"], engine=engine)(*qkv(), slope=slope)


def test_sizes_that_do_not_fit_the_axes(engine):
    attention = maskc.compile_attention(cases.SPECS["neighbours"], engine=engine, y=3)
    with pytest.raises(MaskInputError, match="x"):
        attention(*qkv())
    with pytest.raises(MaskInputError):
        attention(*qkv(), x=2)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("score += dot(query, rows[q])", "q and k are 4 wide and a row of 'rows' has 3 entries; expected one length"),
        ("score += dot(rows[q], two[k])", "a row of 'rows' has 3 entries and a row of 'two' has 5 entries"),
        ("mass *= exp(dot(sums[q], key))", "a row of 'sums' has 3 entries and q and k are 4 wide"),
    ],
)
def test_vectors_of_different_lengths(line, message):
    text = f"""mask m:
    input rows: float[q, n]
    input two: float[k, m]
    let sums = cumsum(rows, q)
    {line}
"""
    with pytest.raises(MaskInputError, match=re.escape(message)):
        maskc.compile_attention(text, engine="dense")(*qkv(), rows=torch.ones(8, 3), two=torch.ones(8, 5))


def test_lengths_that_differ_need_an_offset(engine):
    attention = maskc.compile_attention(WINDOW, engine=engine)
    with pytest.raises(MaskInputError, match="q_offset=7"):
        attention(*qkv(q_len=1))
    assert attention(*qkv(q_len=1), q_offset=7).shape == (1, 2, 1, 4)
    relative = maskc.compile_attention("mask m:\n    keep k % 2 == 0\n", engine=engine)
    assert relative(*qkv(q_len=1)).shape == (1, 2, 1, 4)


def test_promises_are_checked(engine):
    attention = maskc.compile_attention(cases.SPECS["documents"], engine=engine)
    doc = torch.tensor([[0, 0, 1, 1, 0, 2, 2, 1]])
    with pytest.raises(MaskInputError, match=r"'doc' is declared sorted, but doc\[0, 4\] is 0 and follows 1"):
        attention(*qkv(), doc=doc)
    assert attention(*qkv(), doc=doc, validate=False).shape == (1, 2, 8, 4)


def test_ranges_are_checked(engine):
    text = "mask routed(block: int = 4):\n    input owner: int[seq] of k // block\n    keep owner[q] == k // block\n"
    attention = maskc.compile_attention(text, engine=engine)
    attention(*qkv(), owner=torch.tensor([0, 1, -1, 0, 1, 1, -1, 0]))
    for bad in (2, -2):
        owner = torch.tensor([0, 1, 0, 0, bad, 1, 0, 7])
        with pytest.raises(MaskInputError, match=rf"in \[0, 2\) or -1, but owner\[4\] is {bad}"):
            attention(*qkv(), owner=owner)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.uint8])
def test_any_integers_will_do(engine, dtype):
    attention = maskc.compile_attention(cases.SPECS["documents"], engine=engine)
    doc = torch.tensor([[0, 0, 1, 1, 2, 2, 2, 3]])
    assert torch.equal(attention(*qkv(), doc=doc.to(dtype)), attention(*qkv(), doc=doc))


def test_numpy_numbers_will_do(engine):
    attention = maskc.compile_attention(WINDOW, engine=engine)
    assert torch.equal(attention(*qkv(), window=np.int32(3)), attention(*qkv(), window=3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"engine": "fast"}, "there is no engine 'fast'; expected one of auto, triton, tiled, interpret, dense"),
        ({"windw": 3}, "did you mean 'window'?"),
        ({"window": torch.tensor(3)}, "parameter 'window' is a Tensor; expected a number"),
    ],
)
def test_bad_arguments_of_compile_attention(arguments, message):
    with pytest.raises(MaskInputError) as error:
        maskc.compile_attention(WINDOW, **arguments)
    assert message in str(error.value)


def test_inputs_are_not_given_to_compile_attention():
    with pytest.raises(MaskInputError, match=r"input 'doc' is a tensor int\[batch, seq\]; it is given at the call"):
        maskc.compile_attention(cases.SPECS["documents"], doc=torch.zeros(1, 8))


def test_a_call_overrides_what_was_settled_at_compile_time(engine):
    narrow, wide = (maskc.compile_attention(WINDOW, engine=engine, window=w) for w in (2, 5))
    assert torch.equal(narrow(*qkv(), window=5), wide(*qkv()))
    assert not torch.equal(narrow(*qkv()), wide(*qkv()))


def test_memo_is_bounded_and_keeps_the_latest():
    memo, made = SizesMemo(capacity=2), []

    def make(n):
        made.append(n)
        return Sizes(n, n)

    for n in (1, 2, 1, 3, 1, 2):
        assert memo.get(n, lambda n=n: make(n)) == Sizes(n, n)
    assert made == [1, 2, 3, 2]
