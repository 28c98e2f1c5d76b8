"""The layouts in which engines are judged: values stay, strides are what their names say."""

import pytest
import torch
from torch import Tensor

from maskc.commands import options
from maskc.runtime import layouts
from maskc.runtime.variants import aligned


@pytest.fixture
def tensors() -> tuple[Tensor, ...]:
    """q, k, v and an upstream gradient, D_qk 16 and D_v 8; rows are aligned."""
    shapes = ((2, 6, 7, 16), (2, 3, 7, 16), (2, 3, 7, 8), (2, 6, 7, 8))
    return tuple(torch.randn(shape) for shape in shapes)


def test_the_command_line_knows_all_layouts() -> None:
    assert list(options.LAYOUTS) == ["plain", "odd", *layouts.ODD]


@pytest.mark.parametrize("layout", ["plain", *layouts.ODD])
def test_values_stay(layout: str, tensors: tuple[Tensor, ...]) -> None:
    found = layouts.laid_out(layout, *tensors)
    q, *others = tensors
    shared = [layouts.SHARED[layout](x) for x in others] if layout in layouts.SHARED else others
    for one, expected in zip(found, (q, *shared), strict=True):
        assert torch.equal(one, expected)
    for one, again in zip(found, layouts.laid_out(layout, *found), strict=True):
        assert torch.equal(one, again)


def test_strides_are_what_the_names_say(tensors: tuple[Tensor, ...]) -> None:
    q, k, v, _ = layouts.laid_out("fused", *tensors)
    assert q.untyped_storage().data_ptr() == k.untyped_storage().data_ptr() == v.untyped_storage().data_ptr()
    assert q.stride() == (7 * 168, 16, 168, 1)
    assert v.storage_offset() == 6 * 16 + 3 * 16
    (q, *_) = layouts.laid_out("bnhd", *tensors)
    assert q.stride() == (7 * 6 * 16, 16, 6 * 16, 1)
    (q, *_) = layouts.laid_out("turned", *tensors)
    assert q.stride()[2:] == (1, 7)
    (q, *_) = layouts.laid_out("shifted", *tensors)
    assert (q.storage_offset(), q.is_contiguous(), aligned(q)) == (1, True, False)
    (q, *_) = layouts.laid_out("spread", *tensors)
    assert q.stride(3) == 2
    q, k, v, d_out = layouts.laid_out("one-row", *tensors)
    assert (q.stride(0) > 0, k.stride(0), v.stride(0), d_out.stride(0)) == (True, 0, 0, 0)
    q, k, v, d_out = layouts.laid_out("one-head", *tensors)
    assert (q.stride(1) > 0, k.stride(1), v.stride(1), d_out.stride(1)) == (True, 0, 0, 0)


def test_tensors_of_other_lengths_have_a_buffer_of_their_own(tensors: tuple[Tensor, ...]) -> None:
    _, k, v, _ = tensors
    longer = torch.randn(2, 6, 9, 16)
    q, k, v, _ = layouts.laid_out("fused", longer, k, v, torch.randn(2, 6, 9, 8))
    assert torch.equal(q, longer)
    assert q.untyped_storage().data_ptr() != k.untyped_storage().data_ptr()
    assert k.untyped_storage().data_ptr() == v.untyped_storage().data_ptr()
