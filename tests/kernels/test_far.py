"""Tensors whose elements lie further apart than 2^31: 64-bit indices, in kernels that are really run."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from kernels import plans
from kernels.cases import Case, judged, upstream
from kernels.engines import TILE, Engine
from torch import Tensor

from maskc.codegen.source import KernelSource, emit
from maskc.codegen.variants import named_form
from maskc.runtime import loader, tolerance, variants
from maskc.runtime.inputs import Call
from maskc.runtime.tiles import INTERPRETED

ROWS = 66
STRIDE = 2**25  # 66 rows reach past 2^31 elements; only the pages that hold rows take memory


class Here(Engine):
    """Kernels interpreted in this process: what they read does not go through a pipe."""

    def run(self, source: KernelSource, function: str, *arguments: Any) -> Any:
        return getattr(loader.load(source), function)(*arguments)


def _far(x: Tensor) -> Tensor:
    """The same values, rows 2^25 elements apart."""
    batch, heads, rows, dim = x.shape
    memory = torch.empty((rows - 1) * STRIDE + batch * heads * dim, dtype=x.dtype)
    view = memory.as_strided(x.shape, (heads * dim, dim, STRIDE, 1))
    return view.copy_(x)


def _planned(layout: plans.Layout) -> Any:
    return lambda call: plans.plan(call.spec, call.sizes, TILE, None, layout)


@pytest.mark.interpret
@pytest.mark.parametrize("layout", [plans.contiguous(), plans.packed()], ids=["contiguous", "indexed"])
@pytest.mark.parametrize("far", ["q", "k", "v"])
def test_rows_far_apart(far: str, layout: plans.Layout) -> None:
    call = Case("far", "keep 0 <= q - k < 20", lengths=(ROWS, ROWS), heads=(2, 1), dtype=torch.float16).call()
    call = replace(call, **{far: _far(getattr(call, far))})
    assert getattr(call, far).stride(2) * (ROWS - 1) > 2**31
    assert variants.config(call, INTERPRETED, (call.q, call.k, call.v))["WIDE"]
    report = judged(call, Here(_planned(layout), 1))
    assert report.passed, f"\n{report}"


@pytest.mark.interpret
def test_heads_far_apart() -> None:
    """Batch rows and heads are reached by 64-bit arithmetic in every variant."""
    call: Call = Case("heads", "keep k <= q", lengths=(40, 40), heads=(2, 2), dtype=torch.float16).call()
    rows, dim = call.k.shape[2:]
    memory = torch.empty(2**31 + rows * dim, dtype=torch.float16)
    k = memory.as_strided(call.k.shape, (0, 2**31, dim, 1)).copy_(call.k)
    far = replace(call, k=k)
    assert not variants.config(far, INTERPRETED, (far.q, far.k, far.v))["WIDE"]
    report = judged(far, Here(_planned(plans.contiguous()), 1))
    assert report.passed, f"\n{report}"


@pytest.mark.interpret
def test_near_tokens_at_far_positions_in_any_order() -> None:
    """Distances of tokens that lie side by side are exact, however far the tile's number is from their positions."""
    near = Case("near", "keep k <= q\nscore -= 0.1 * (q - k)", lengths=(32, 32), heads=(1, 1), dims=(16, 1)).call()
    q, k, v = (x[:, :, :1] for x in (near.q, near.k, near.v))
    near = replace(near, q=q.expand_as(near.q), k=k.expand_as(near.k), v=v.expand_as(near.v))
    length = 2**25 + 1  # where float32 knows every second number
    far = {name: x.expand(1, 1, length, -1) for name, x in (("q", q), ("k", k), ("v", v))}
    call = replace(near, sizes=replace(near.sizes, q_len=length, k_len=length), **far)
    source = emit(near.spec, named_form(near.spec, (16, 1), indexed=True))
    none = torch.zeros(1, 1, dtype=torch.int32), torch.zeros(1, 1, dtype=torch.int32), torch.zeros(2, dtype=torch.int32)
    one = torch.zeros(1, 1, dtype=torch.int32), torch.ones(1, 1, dtype=torch.int32), torch.zeros(3, dtype=torch.int32)
    last = torch.arange(length - 32, length, dtype=torch.int32)
    walk = none, one, last[None], last, (1, 1), 1, 1
    config = variants.config(call, INTERPRETED, (call.q, call.k, call.v))
    given = variants.arguments(call, source)
    out, lse = loader.load(source).forward(call.q, call.k, call.v, walk, given, call.scale, config)
    found = {"out": out[:, :, -32:], "lse": lse[:, :, -32:]}
    report = tolerance.compare(found, tolerance.reference(near, *upstream(near)))
    assert report.passed, f"\n{report}"
