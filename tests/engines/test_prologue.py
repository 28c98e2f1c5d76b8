"""What is made before an engine sees a call: prefix sums, tables of the spec, joined and bordered keys."""

from math import fsum

import numpy as np
import pytest
import torch

import maskc
from maskc import MaskInputError, prologue
from maskc.check import load
from maskc.expr import Type
from maskc.runtime import prologue as on_tensors
from maskc.sizes import resolve
from maskc.spec import InputSpec, MaskSpec, PrefixSum, Values


@pytest.mark.parametrize("shape", [(1,), (64,), (3, 130), (65, 2), (4, 63, 3), (0, 64), (2, 0)])
@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.int16, np.bool_])
def test_sums_of_arrays_and_tensors(shape, dtype):
    table = (10 * np.random.default_rng(0).normal(size=shape)).astype(dtype)
    for dim in range(len(shape)):
        expected = np.cumsum(table.astype(np.float64), dim)
        for found in (prologue.prefix_sum(table, dim), on_tensors.prefix_sum(torch.from_numpy(table), dim).numpy()):
            assert found.dtype == (np.float64 if dtype is np.float32 else np.int64)
            np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-13)


def test_differences_of_sums_are_exact_to_float32_at_a_million_steps():
    table = np.random.default_rng(0).random(2**20, np.float32)
    for sums in (prologue.prefix_sum(table, 0), on_tensors.prefix_sum(torch.from_numpy(table), 0).numpy()):
        for first, last in ((0, 2**20 - 1), (2**20 - 100, 2**20 - 1), (500_000, 500_001), (63, 64)):
            exact = fsum(table[first + 1 : last + 1])
            assert abs(sums[last] - sums[first] - exact) <= 2**-24 * exact


def test_sums_of_infinite_entries():
    sums = prologue.prefix_sum(np.r_[np.zeros(10), -np.inf, np.zeros(200)], 0)
    assert (sums[:10] == 0).all()
    assert (sums[10:] == -np.inf).all()


def test_gradient_of_a_sum():
    table = torch.randn(2, 130, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: on_tensors.prefix_sum(x, 1), table, fast_mode=True)
    narrow = torch.ones(70, requires_grad=True)
    on_tensors.prefix_sum(narrow, 0)[[3, 66]].sum().backward()
    assert narrow.grad.tolist() == [2.0] * 4 + [1.0] * 63 + [0.0] * 3


TABLES = MaskSpec(
    "tables",
    inputs=(
        InputSpec("t", Type.INT, (), source=Values((2, 2), (1, 2, 3, 4))),
        InputSpec("given", Type.BOOL, ()),
        InputSpec("sums", Type.INT, (), source=PrefixSum("given", 0)),
        InputSpec("twice", Type.INT, (), source=PrefixSum("sums", 0)),
    ),
)


def test_tables_are_completed_in_order():
    given = np.array([True, False, True])
    expected = {"t": [[1, 2], [3, 4]], "given": [True, False, True], "sums": [1, 1, 2], "twice": [1, 2, 4]}
    arrays = prologue.complete(TABLES, {"given": given})
    tensors = on_tensors.complete(TABLES, {"given": torch.from_numpy(given)}, torch.device("cpu"))
    assert {name: x.tolist() for name, x in arrays.items()} == expected
    assert {name: x.tolist() for name, x in tensors.items()} == expected
    assert prologue.needed(TABLES, ()) == set()


def test_a_table_of_the_spec_outlives_inference_mode():
    text = "mask m:\n    let t = [0.5, 2.0, 7.25]\n    score *= t[q % 3]\n"
    attention = maskc.compile_attention(text, engine="dense")
    x = torch.randn(1, 1, 5, 4, requires_grad=True)
    with torch.inference_mode():
        attention(x, x, x)
    attention(x, x, x).sum().backward()
    assert bool(torch.isfinite(x.grad).all())


PARTS = (
    "mask cross:\n    queries a\n    keys left: (y, x), right: b\n"
    "    keep k in right or k.y <= q.a\n    score += 0.5 if k in right else 0.0\n"
)


def tensors(*lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 2, n, 4, generator=generator).requires_grad_() for n in lengths]


@pytest.mark.parametrize("engine", ["tiled", "dense"])
def test_parts_of_keys_are_joined(engine):
    (q,), keys, values = tensors(7), tensors(6, 5, seed=1), tensors(6, 5, seed=2)
    attention = maskc.compile_attention(PARTS, engine=engine, x=2)
    out, lse = attention(q, tuple(keys), values, return_lse=True)
    whole = attention(q, torch.cat(keys, 2), torch.cat(values, 2), b=5, return_lse=True)
    assert torch.equal(out, whole[0])
    assert torch.equal(lse, whole[1])
    leaves = (q, *keys, *values)
    for got, expected in zip(*(torch.autograd.grad(x.sin().sum(), leaves) for x in (out, whole[0])), strict=True):
        assert torch.equal(got, expected)
        assert bool(got.any())


@pytest.mark.parametrize(
    ("k", "v", "message"),
    [
        ((6, 5), (5, 6), "the parts of k and v differ: [6, 5] and [5, 6]; expected equal lengths, part by part"),
        ((6, 5), 11, "the parts of k and v differ: [6, 5] and one tensor; expected"),
        ((6, 5, 1), (6, 5, 1), "k and v are tuples of 3; expected one tensor per part: left, right"),
        ((), (), "k is an empty tuple; expected a tensor, or one per part"),
        ((6, 5), (6, "x"), "v[1] is a str; expected a tensor (batch, head, seq, dim)"),
    ],
)
def test_parts_that_do_not_fit(k, v, message):
    def made(lengths):
        if isinstance(lengths, int):
            return tensors(lengths)[0]
        return tuple(tensors(n)[0] if isinstance(n, int) else n for n in lengths)

    with pytest.raises(MaskInputError) as error:
        maskc.compile_attention(PARTS, x=2)(tensors(7)[0], made(k), made(v))
    assert message in str(error.value)


def test_parts_differ_in_length_alone():
    (q,), (left, right) = tensors(7), tensors(6, 5)
    with pytest.raises(MaskInputError, match=r"k\[1\] is \(2, 2, 5, 4\) float64 on cpu and k\[0\] is .* float32"):
        maskc.compile_attention(PARTS, x=2)(q, (left, right.double()), (left, right))


def test_autocast_reaches_every_part():
    (q,), keys = tensors(7), tensors(6, 5)
    attention = maskc.compile_attention(PARTS, x=2)
    with torch.autocast("cpu", torch.bfloat16):
        assert attention(q, keys, (keys[0].bfloat16(), keys[1])).dtype is torch.bfloat16


RING = "mask ring(r: int = 1):\n    axes y, x border r\n    keep abs(q.y - k.y) <= r and abs(q.x - k.x) <= r\n"


def padded_by_hand(q, k, v, shape, r):
    """Zero padding as convolutions have it: softmax over all (2r + 1)^2 neighbours, in float64."""
    y, x = shape
    q, k, v = (t.double().unflatten(2, shape) for t in (q, k, v))
    k, v = (torch.nn.functional.pad(t, (0, 0, r, r, r, r)) for t in (k, v))
    rows = []
    for i in range(y):
        for j in range(x):
            near = [t[:, :, i : i + 2 * r + 1, j : j + 2 * r + 1].flatten(2, 3) for t in (k, v)]
            score = torch.einsum("bhd,bhnd->bhn", q[:, :, i, j], near[0]) * q.shape[-1] ** -0.5
            rows.append(torch.einsum("bhn,bhnd->bhd", score.softmax(-1), near[1]))
    return torch.stack(rows, 2)


@pytest.mark.parametrize("engine", ["tiled", "dense"])
@pytest.mark.parametrize(("shape", "r"), [((3, 4), 1), ((2, 5), 2), ((1, 1), 3), ((4, 4), 0)])
def test_virtual_keys_keep_their_mass(engine, shape, r):
    leaves = tensors(*[shape[0] * shape[1]] * 3)
    out = maskc.compile_attention(RING, engine=engine, r=r, x=shape[1])(*leaves)
    expected = padded_by_hand(*leaves, shape, r)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-6)
    got, wanted = (torch.autograd.grad(x.double().sin().sum(), leaves) for x in (out, expected))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_the_mask_of_a_border_has_the_virtual_keys():
    attention = maskc.compile_attention(RING)
    assert attention.mask(12, x=4).shape == (12, 30)
    assert (attention.mask(12, x=4).sum(-1) == 9).all()
    assert attention.plan(12, x=4).sizes.k_len == 30


CONSTANT = "mask linked:\n    input links: bool[n, n] constant\n    keep links[q % n, k % n]\n"


@pytest.mark.parametrize("engine", ["tiled", "dense"])
@pytest.mark.parametrize("kind", [torch.tensor, np.array, list])
def test_constants_are_given_when_compiling(engine, kind):
    attention = maskc.compile_attention(CONSTANT, engine=engine, links=kind([[True, False], [False, True]]))
    x = tensors(6)[0]
    parity = torch.arange(6) % 2
    kept = parity[:, None] == parity
    expected = torch.nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=kept)
    torch.testing.assert_close(attention(x, x, x), expected)
    assert (attention.mask(6) == kept.numpy()).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "input 'links' of mask 'linked' is constant, bool[n, n]; give links=... to compile_attention"),
        ({"links": torch.ones(2, 2)}, "input 'links' is float32 with 2 dims; the spec declares bool[n, n]"),
        ({"links": torch.ones(2, dtype=torch.bool)}, "input 'links' is bool with 1 dims; the spec declares bool[n, n]"),
    ],
)
def test_constants_refused(given, message):
    with pytest.raises(MaskInputError) as error:
        maskc.compile_attention(CONSTANT, **given)
    assert message in str(error.value)


def test_constants_are_not_given_at_the_call():
    x, links = tensors(6)[0], torch.eye(2, dtype=torch.bool)
    attention = maskc.compile_attention(CONSTANT, links=links)
    with pytest.raises(MaskInputError, match="'links' is constant; it is given to compile_attention, not at the call"):
        attention(x, x, x, links=links)
    square = maskc.compile_attention(CONSTANT, links=torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(MaskInputError, match=r"dim 1 \('n'\) should be 2, the size that input 'links' gives it"):
        square(x, x, x)


def test_constants_of_any_dtype():
    spec = load("mask m:\n    input t: float[n] constant\n    keep t[0] > 0\n")
    bound = maskc.compile_attention(spec, t=torch.tensor([1.5, 2.0], dtype=torch.bfloat16)).spec
    assert bound.input("t").source == Values((2,), (1.5, 2.0))
    assert resolve(bound, q_len=1, k_len=1, given={}, free={"n": 2}).free_size == {"n": 2}
