"""The operators under autograd, torch.compile, checkpointing and autocast, and what they refuse."""

import engine_cases as cases
import pytest
import torch
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import maskc
from maskc import MaskInputError, MaskUnsupportedError
from maskc.runtime import autograd, tiled

TEXT = cases.SPECS["window"]


def leaves(length=100, dtype=torch.float32):
    q, k, v = cases.tensors(2, 4, 2, length, length, (8, 8), dtype)
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_()


def both():
    return maskc.compile_attention(TEXT, engine="tiled"), maskc.compile_attention(TEXT, engine="dense")


def test_gradients_in_float64():
    attention = maskc.compile_attention(TEXT, window=4)
    q, k, v = cases.tensors(1, 4, 2, 7, 7, (3, 2), torch.float64)
    tensors = [x.requires_grad_() for x in (q, k, v)]
    assert torch.autograd.gradcheck(lambda *x: attention(*x, return_lse=True), tensors)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2), (1, 2)])
def test_only_what_requires_a_gradient_gets_one(wanted):
    attention, reference = both()
    tensors = [x.detach() for x in leaves()]
    for i in wanted:
        tensors[i].requires_grad_()
    attention(*tensors).square().sum().backward()
    assert [x.grad is not None for x in tensors] == [i in wanted for i in range(3)]
    expected = torch.autograd.grad(reference(*tensors).square().sum(), [tensors[i] for i in wanted])
    for i, gradient in zip(wanted, expected, strict=True):
        torch.testing.assert_close(tensors[i].grad, gradient, atol=1e-5, rtol=1e-4)


def test_no_graph_without_gradients():
    attention, _ = both()
    assert attention(*(x.detach() for x in leaves())).grad_fn is None
    with torch.no_grad():
        assert attention(*leaves()).grad_fn is None
    with torch.inference_mode():
        assert attention(*leaves()).shape == (2, 4, 100, 8)


def test_lse_alone_has_a_gradient():
    attention, reference = both()
    tensors = leaves()
    found = [torch.autograd.grad(a(*tensors, return_lse=True)[1].sum(), tensors[:2]) for a in (attention, reference)]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_traces_as_one_graph():
    attention, reference = both()
    tensors = leaves()

    def step(attend, q, k, v):
        out, lse = attend(q * 2, k, v, window=30, q_offset=5, k_offset=2, return_lse=True)
        return (out * out).sum() + lse.sum()

    compiled = torch.compile(lambda q, k, v: step(attention, q, k, v), fullgraph=True, backend="aot_eager")
    found, expected = compiled(*tensors), step(reference, *tensors)
    torch.testing.assert_close(found, expected)
    for a, b in zip(torch.autograd.grad(found, tensors), torch.autograd.grad(expected, tensors), strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-4)


def test_traces_with_inputs_and_lengths_that_change():
    attention = maskc.compile_attention(cases.SPECS["documents"])
    compiled = torch.compile(lambda q, k, v, doc: attention(q, k, v, doc=doc), fullgraph=True, backend="aot_eager")
    for length in (40, 70, 100, 130):
        q, k, v = (x.detach() for x in leaves(length))
        doc = torch.arange(length).repeat(2, 1) // 30
        torch.testing.assert_close(compiled(q, k, v, doc), attention(q, k, v, doc=doc))


def test_a_wrong_shape_is_refused_while_tracing():
    attention, _ = both()
    q, k, v = (x.detach() for x in leaves())
    compiled = torch.compile(lambda q, k, v: attention(q, k, v), backend="aot_eager")
    with pytest.raises(MaskInputError, match="expected equal heads and lengths"):
        compiled(q, k, v[:, :, :50])


def test_operators_pass_torch_own_checks():
    attention = maskc.compile_attention(TEXT, window=4)
    q, k, v = leaves(9)
    arguments = (q, k, v, [], [4], "window", attention._programs["tiled"], True)
    torch.library.opcheck(torch.ops.maskc.forward.default, arguments, test_utils=("test_schema", "test_faketensor"))


def test_second_derivatives_are_refused():
    attention, reference = both()
    q, k, v = leaves(20)
    (gradient,) = torch.autograd.grad(attention(q, k, v).square().sum(), q, create_graph=True)
    with pytest.raises(MaskUnsupportedError, match="second derivatives"):
        gradient.sum().backward()
    (gradient,) = torch.autograd.grad(reference(q, k, v).square().sum(), q, create_graph=True)
    gradient.sum().backward()
    assert q.grad is not None


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own, on first use of forward mode
@pytest.mark.parametrize("argument", [0, 1, 2])
def test_forward_mode_is_refused(argument):
    attention, reference = both()
    tensors = [x.detach() for x in leaves(20)]
    with forward_ad.dual_level():
        tensors[argument] = forward_ad.make_dual(tensors[argument], torch.ones_like(tensors[argument]))
        with pytest.raises(MaskUnsupportedError, match="forward-mode"):
            attention(*tensors)
        assert forward_ad.unpack_dual(reference(*tensors)).tangent is not None


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_forward_mode_through_the_backward_is_refused():
    attention, _ = both()
    tensors = leaves(20)
    out = attention(*tensors)
    with forward_ad.dual_level():
        upstream = forward_ad.make_dual(torch.ones_like(out), torch.ones_like(out))
        with pytest.raises(MaskUnsupportedError, match="forward-mode"):
            torch.autograd.grad(out, tensors, upstream)


class Seen(TorchDispatchMode):
    """Notes the operators of maskc that come by."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op.namespace == "maskc":
            self.names.append(op._opname)
        return op(*args, **(kwargs or {}))


def test_modes_see_the_operators():
    """Selective checkpointing and tracing go by what a dispatch mode sees."""
    attention, _ = both()
    tensors = leaves(20)
    with Seen() as seen:
        attention(*tensors).sum().backward()
        attention(*(x.detach() for x in tensors))
    assert seen.names == ["forward", "backward", "forward"]


def test_function_transforms_are_refused():
    attention, reference = both()
    q, k, v = leaves(20)
    with pytest.raises(MaskUnsupportedError, match=r"torch\.func"):
        torch.func.grad(lambda q: attention(q, k, v).sum())(q)
    assert torch.func.grad(lambda q: reference(q, k, v).square().sum())(q.detach()).shape == q.shape


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(reentrant):
    attention, _ = both()
    tensors = leaves()
    plain = torch.autograd.grad(attention(*tensors).square().sum(), tensors)
    attention_again = checkpoint(lambda *x: attention(*x), *tensors, use_reentrant=reentrant)
    attention_again.square().sum().backward()
    assert all(torch.equal(x.grad, expected) for x, expected in zip(tensors, plain, strict=True))


def test_autocast_takes_its_dtype():
    attention, reference = both()
    q, k, v = leaves()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = attention(q, k.bfloat16(), v)
        slow = reference(q, k.bfloat16(), v)
    assert out.dtype is slow.dtype is torch.bfloat16
    (gradient,) = torch.autograd.grad(out.float().sum(), q)
    assert gradient.dtype is torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert attention(q.double(), k.double(), v.double()).dtype is torch.float64


def test_autocast_does_not_reach_into_the_engine(monkeypatch):
    attention = maskc.compile_attention(cases.SPECS["softcap"])
    q, k, v = (x.double() for x in leaves())
    plain = attention(q, k, v)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(attention(q, k, v), plain)
        tensors = [x.detach().requires_grad_() for x in (q, k, v)]
        inside = torch.autograd.grad(attention(*tensors).sum(), tensors)
    assert all(x.dtype is torch.float64 for x in inside)


def test_the_backward_reads_every_argument_of_the_forward(monkeypatch):
    seen = []
    original = tiled.backward

    def spy(call, *rest):
        seen.append(call)
        return original(call, *rest)

    monkeypatch.setattr(tiled, "backward", spy)
    attention = maskc.compile_attention(cases.SPECS["alibi"], scale=0.2)
    q, k, v = cases.tensors(2, 2, 2, 9, 9, (4, 4), torch.float32)
    slope = torch.tensor([0.5, 0.25])
    offset = torch.tensor([3, 4])
    out = attention(q.requires_grad_(), k, v, slope=slope, q_offset=offset, k_offset=1)
    out.sum().backward()
    (call,) = seen
    assert call.scale == 0.2
    assert call.sizes.q_offset is None
    assert call.sizes.k_offset == 1
    assert torch.equal(call.inputs["slope"], slope)
    assert torch.equal(call.inputs["q_offset"], offset)


def test_equal_programs_have_one_number():
    first, again = (maskc.compile_attention(TEXT) for _ in range(2))
    other = maskc.compile_attention(TEXT, scale=0.5)
    assert first._programs == again._programs
    assert set(first._programs.values()).isdisjoint(other._programs.values())
    assert set(first._programs) == set(autograd.ENGINES)
