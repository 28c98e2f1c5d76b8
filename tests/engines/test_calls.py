"""What a call of the whole language gives and gets: learned inputs, outputs, refusals, promises of packed documents."""

from itertools import pairwise

import pytest
import torch

import maskc
from maskc import MaskInputError, MaskUnsupportedError

LEARNED = "mask biased:\n    input bias: float[head, q] learned\n    keep k <= q\n    score += bias[q]\n"
DECAYED = (
    "mask decayed:\n    input rate: float[head, seq] learned\n    let total = cumsum(rate, seq)\n"
    "    keep k <= q\n    score -= total[q] - total[k]\n"
)
SUMMED = "mask summed:\n    keep k <= q\n    output seen[k] = sum(weight)\n    output pairs = count()\n"
ROWSUM = "mask squares:\n    keep k <= q\n    normalize rowsum(relu(score) ** 2)\n"
PLAIN = "mask plain:\n    keep k <= q\n"
OWN_SCALE = "mask own:\n    keep k <= q\n    score = dot(query, key) * 0.25\n"
PACKED = "mask packed:\n    input start: int[batch, docs] sorted\n    packed start\n    keep k <= q\n"


def qkv(length=6, batch=1, heads=2, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, heads, length, 4, generator=generator, dtype=dtype) for _ in range(3)]


def test_learned_inputs_get_gradients():
    q, k, v = qkv(dtype=torch.float64)
    rate = torch.rand(2, 6, dtype=torch.float64, requires_grad=True)
    attention = maskc.compile_attention(DECAYED, engine="dense")
    assert torch.autograd.gradcheck(lambda rate: attention(q, k, v, rate=rate), rate)
    (gradient,) = torch.autograd.grad(attention(q, k, v, rate=rate).sin().sum(), rate)
    steps = gradient.abs()
    assert steps[:, 0].max() < 1e-12 < steps[:, 1:].min()  # the first step stands before every key


def test_a_learned_input_keeps_its_dtype():
    bias = torch.zeros(2, 6, dtype=torch.bfloat16, requires_grad=True)
    maskc.compile_attention(LEARNED, engine="dense")(*qkv(), bias=bias).sum().backward()
    assert bias.grad.dtype is torch.bfloat16


@pytest.mark.parametrize(
    ("text", "clause"),
    [
        (LEARNED, "input bias: float[head, q] learned"),
        (SUMMED, "output seen[k] = sum(weight)"),
        (ROWSUM, "normalize rowsum(relu(score) ** 2)"),
    ],
)
def test_what_an_engine_cannot_run_is_refused_by_name(text, clause):
    for engine in ("tiled", "triton", "interpret"):
        with pytest.raises(MaskUnsupportedError) as error:
            maskc.compile_attention(text, engine=engine)
        assert f"engine '{engine}' cannot run '{clause}' yet" in str(error.value)
        assert str(error.value).endswith("hint: engine='dense' can")
    attention = maskc.compile_attention(text)
    with pytest.raises(MaskUnsupportedError, match="engine 'tiled' cannot run"):
        attention(*qkv(), **({"bias": torch.zeros(2, 6)} if text is LEARNED else {}))


def test_outputs_are_returned_by_name():
    q, k, v = qkv()
    attention = maskc.compile_attention(SUMMED, engine="dense")
    out, aux = attention(q, k, v, aux=True)
    weights = (q @ k.transpose(-1, -2) / 2).masked_fill(~torch.ones(6, 6).tril().bool(), -torch.inf).softmax(-1)
    torch.testing.assert_close(out, weights @ v)
    torch.testing.assert_close(aux["seen"], weights.sum(-2))
    assert aux["pairs"].tolist() == [[21, 21]]
    again, lse, same = attention(q, k, v, aux=True, return_lse=True)
    assert torch.equal(out, again)
    assert lse.shape == (1, 2, 6)
    assert same.keys() == aux.keys()


@pytest.mark.parametrize("engine", ["tiled", "dense"])
def test_a_spec_without_outputs_returns_none_of_them(engine):
    attention = maskc.compile_attention(PLAIN, engine=engine)
    out, aux = attention(*qkv(), aux=True)
    assert aux == {}
    assert torch.equal(out, attention(*qkv()))
    assert len(attention(*qkv(), aux=True, return_lse=True)) == 3


def test_a_log_sum_exp_is_that_of_softmax_alone():
    attention = maskc.compile_attention(ROWSUM, engine="dense")
    assert attention(*qkv()).shape == (1, 2, 6, 4)
    with pytest.raises(MaskUnsupportedError) as error:
        attention(*qkv(), return_lse=True)
    assert "return_lse: 'normalize rowsum' has no log-sum-exp, only softmax has one" in str(error.value)
    assert "hint: an `output` line" in str(error.value)


def test_a_scale_without_a_place_is_refused():
    with pytest.raises(
        MaskInputError, match="scale is given, but mask 'own' makes its scores without it; leave it out"
    ):
        maskc.compile_attention(OWN_SCALE, scale=0.5)
    q, k, v = qkv()
    torch.testing.assert_close(
        maskc.compile_attention(OWN_SCALE, engine="dense")(q, k, v),
        maskc.compile_attention(PLAIN, engine="dense", scale=0.25)(q, k, v),
    )
    assert (
        maskc.compile_attention("mask m:\n    score = dot(query, key) * scale\n", engine="dense", scale=2.0).scale == 2
    )


def test_masks_and_plans_of_scores_are_refused():
    attention = maskc.compile_attention("mask m:\n    keep score > 0\n", engine="dense")
    assert attention(*qkv()).shape == (1, 2, 6, 4)
    for ask in (attention.mask, attention.plan):
        with pytest.raises(MaskUnsupportedError, match="depends on 'score'"):
            ask(6)


def test_masks_and_plans_need_the_inputs_that_they_read():
    attention = maskc.compile_attention(
        "mask m:\n    input c: int[q]\n    input s: float[head]\n    keep c[q] == 1\n    score += s\n"
    )
    assert attention.mask(3, c=[1, 0, 1]).tolist() == [[True] * 3, [False] * 3, [True] * 3]
    with pytest.raises(MaskInputError, match=r"input 'c' is missing; mask 'm' declares it int\[q\]"):
        attention.mask(3)
    with pytest.raises(MaskInputError, match=r"input 'c' has shape \(2\)"):
        attention.plan(3, c=[1, 0])
    row = maskc.compile_attention("mask m:\n    input r: int[q, n]\n    keep k in r[q]\n")
    with pytest.raises(MaskInputError, match="input 'r' is missing"):
        row.mask(3)


@pytest.mark.parametrize("engine", ["tiled", "dense"])
@pytest.mark.parametrize(
    ("start", "message"),
    [
        ([[1, 3, 4], [0, 3, 4]], "holds where documents begin, the first at 0, but start[0, 0] is 1"),
        ([[0, 3, 4], [0, 3, 2]], "is declared sorted, but start[1, 2] is 2 and follows 3"),
        ([[0, 3, 4], [0, 3, 7]], "none behind the line's 6 tokens, but start[1, 2] is 7"),
        ([[], []], "holds where documents begin, but there are none; expected a 0"),
    ],
)
def test_starts_of_documents_are_checked(engine, start, message):
    attention = maskc.compile_attention(PACKED, engine=engine)
    with pytest.raises(MaskInputError) as error:
        attention(*qkv(batch=2), start=torch.tensor(start, dtype=torch.int64))
    assert message in str(error.value)
    assert str(error.value).startswith("input 'start' ")


@pytest.mark.parametrize("engine", ["tiled", "dense"])
def test_packed_documents_are_attended_one_by_one(engine):
    q, k, v = qkv(batch=2)
    out = maskc.compile_attention(PACKED, engine=engine)(q, k, v, start=torch.tensor([[0, 2, 2], [0, 5, 6]]))
    for row, ends in enumerate(([0, 2, 6], [0, 5, 6])):
        for first, last in pairwise(ends):
            here = [x[row : row + 1, :, first:last] for x in (q, k, v)]
            expected = torch.nn.functional.scaled_dot_product_attention(*here, is_causal=True)
            torch.testing.assert_close(out[row : row + 1, :, first:last], expected)


def test_a_sorted_row_ascends_even_where_it_is_not_a_number():
    attention = maskc.compile_attention(
        "mask m:\n    input edges: float[n] sorted\n    keep bucket(k / 2, edges) > 0\n"
    )
    with pytest.raises(MaskInputError, match=r"declared sorted, but edges\[1\] is nan and follows 0.0"):
        attention(*qkv(), edges=torch.tensor([0.0, torch.nan, 2.0]))


@pytest.mark.parametrize("engine", ["tiled", "dense"])
def test_rows_that_are_searched_ascend(engine):
    text = "mask m:\n    input edges: int[n]\n    keep bucket(q - k, edges) > 0\n"
    attention = maskc.compile_attention(text, engine=engine)
    assert attention(*qkv(), edges=torch.tensor([0, 2, 2])).shape == qkv()[0].shape
    with pytest.raises(MaskInputError, match=r"searched by 'bucket', which needs ascending rows, but edges\[2\] is 1"):
        attention(*qkv(), edges=torch.tensor([0, 2, 1]))
    text = "mask m:\n    input step: int[n]\n    keep bucket(q - k, cumsum(step, n)) > 0\n"
    with pytest.raises(MaskInputError, match="ascending rows"):
        maskc.compile_attention(text, engine=engine)(*qkv(), step=torch.tensor([3, -1]))


@pytest.mark.parametrize("engine", ["tiled", "dense"])
def test_promises_follow_offsets_that_are_tensors(engine):
    attention = maskc.compile_attention(
        "mask m:\n    input owner: int[batch, seq] of seq\n    keep owner[q] == owner[k]\n", engine=engine
    )
    q, k, v = qkv(batch=2)
    offset = torch.tensor([0, 3])
    owner = torch.arange(9).repeat(2, 1)
    assert attention(q, k, v, owner=owner, q_offset=offset, k_offset=offset).shape == q.shape
    with pytest.raises(MaskInputError, match=r"in \[0, 9\) or -1, but owner\[1, 8\] is 9"):
        attention(q, k, v, owner=owner + (owner == 8) * torch.tensor([[0], [1]]), q_offset=offset, k_offset=offset)


@pytest.mark.parametrize("engine", ["tiled", "dense"])
def test_sides_of_their_own_have_offsets_of_their_own(engine):
    attention = maskc.compile_attention("mask m:\n    queries a\n    keys b\n    keep k.b == 2 * q.a\n", engine=engine)
    q, k, v = qkv(2, batch=2, heads=1)
    k, v = torch.cat([k, k], 2), torch.arange(2.0 * 4 * 4).view(2, 1, 4, 4)
    whole = attention(q, k, v)
    assert torch.equal(whole, v[:, :, [0, 2]])
    shifted = attention(q, k, v, q_offset=torch.tensor([0, 1]), k_offset=torch.tensor([0, 2]), a=9, b=9)
    assert torch.equal(shifted, v[:, :, [0, 2]])
    assert torch.equal(attention(q[:, :, 1:], k, v, q_offset=1), v[:, :, 2:3])
