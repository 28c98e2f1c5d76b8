"""What a call asks of the generated kernels: what they support, the variant that fits its tensors, their arguments."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from maskc.analysis import bounds
from maskc.codegen.columns import columns
from maskc.codegen.form import Form, form
from maskc.codegen.schedule import Configuration, check
from maskc.codegen.settle import settled
from maskc.codegen.source import KernelSource, emit
from maskc.codegen.variants import Variant, reads
from maskc.runtime.inputs import Call
from maskc.runtime.tables import PartTables
from maskc.spec import DimKind, MaskSpec, Sizes

DTYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
"""The names that kernels and the table of configurations have for dtypes."""


def dtype_of(call: Call) -> str:
    """The dtype of q, k and v; MaskUnsupportedError where kernels do not have it, or not these head dims."""
    name = DTYPES.get(call.q.dtype, str(call.q.dtype).removeprefix("torch."))
    check(dims_of(call), name)
    return name


def dims_of(call: Call) -> tuple[int, int]:
    """(D_qk, D_v)."""
    return call.q.shape[3], call.v.shape[3]


def form_of(call: Call, part: PartTables) -> Form:
    """The form that serves a part of a call's plan."""
    indexed = part.by_query.owned is not None
    return form(call.spec, part.predicate, part.open_clauses, indexed, dims_of(call))


def source(call: Call, part: PartTables) -> KernelSource:
    """The kernel file that serves a part of a call's plan."""
    return emit(call.spec, form_of(call, part))


def variant_of(
    call: Call, part: PartTables, tensors: Sequence[Tensor], *, parts: bool = False, d_lse: bool = False
) -> Variant:
    """The variant that serves a part of a call's plan: one of those announced for the spec, whatever the call.

    tensors, parts, d_lse: as `config` and `Variant` have them.
    """
    form_ = form_of(call, part)
    offsets, inputs = reads(call.spec, form_)
    return Variant(
        form_,
        dims_of(call),
        dtype_of(call),
        aligned=all(map(aligned, tensors)),
        alike=_alike(tensors),
        wide=_wide(call, tensors),
        offsets=tuple(name for name in offsets if name in call.inputs),
        inputs=tuple((name, _FLOATS[call.inputs[name].dtype]) for name in inputs),
        parts=parts,
        d_lse=d_lse,
        tf32=_tf32(call),
    )


_FLOATS = DTYPES | {torch.float64: "fp64"}


def arguments(call: Call, source: KernelSource) -> dict[str, Any]:
    """What the launch functions of the kernel file take by name: inputs, parameters, axis sizes, offsets."""
    given: dict[str, Any] = {name: call.inputs[name] for name in source.inputs}
    given |= call.sizes.parameter
    given |= call.sizes.axis
    for name, offset in (("q_offset", call.sizes.q_offset), ("k_offset", call.sizes.k_offset)):
        given[name] = call.inputs[name] if offset is None else offset
    return given


def config(call: Call, chosen: Configuration, tensors: Sequence[Tensor]) -> dict[str, Any]:
    """The launch's `config` for tensors that the kernel addresses by stride: q, k, v and, backward, the gradient."""
    size = call.q.element_size()
    return {
        "BLOCK_Q": chosen.block_q,
        "BLOCK_K": chosen.block_k,
        "num_warps": chosen.warps,
        "num_stages": chosen.stages,
        "WIDTHS": tuple((c.main, c.tail) for c in map(columns, dims_of(call))),
        "ALIGN": 16 // size if all(map(aligned, tensors)) else 1,
        "ALIKE": _alike(tensors),
        "WIDE": _wide(call, tensors),
        "PRECISION": "tf32" if _tf32(call) else "ieee",
    }


def _tf32(call: Call) -> bool:
    """Whether dots may round float32; of other dtypes there is nothing to round."""
    return call.q.dtype is torch.float32 and allows_tf32()


def _alike(tensors: Sequence[Tensor]) -> bool:
    """Whether rows of k and of v, the second tensor and the third, have one stride."""
    _, k, v = tensors[:3]
    return k.shape[2] <= 1 or k.stride(2) == v.stride(2)


def _wide(call: Call, tensors: Sequence[Tensor]) -> bool:
    """Whether integers, or offsets in tensors, need 64 bits."""
    return not (_narrow_spec(call.spec, call.sizes) and _narrow_tensors(call, tensors))


def allows_tf32() -> bool:
    """Whether torch lets products of float32 be computed in TF32, by whichever of its two settings."""
    return bool(torch.backends.cuda.matmul.fp32_precision == "tf32")  # `allow_tf32` raises where this one was set


@lru_cache(maxsize=256)
def _narrow_spec(spec: MaskSpec, sizes: Sizes) -> bool:
    return bounds.fits_32_bits(settled(spec), sizes)


def _narrow_tensors(call: Call, tensors: Sequence[Tensor]) -> bool:
    """Whether offsets within one head, and within one row of an input's table, fit 32 bits."""
    rows = max(call.sizes.q_len, call.sizes.k_len) + _SPARE
    if rows * max(dims_of(call)) >= 2**31 or not all(_reach(x.shape[2:], x.stride()[2:]) < 2**31 for x in tensors):
        return False
    for entry in call.spec.inputs:
        table = call.inputs[entry.name]
        counted = sum(dim.kind in _COUNTED for dim in entry.dims)
        if _reach(table.shape[counted:], table.stride()[counted:]) >= 2**31:
            return False
    return True


def _reach(shape: Sequence[int], strides: Sequence[int]) -> int:
    """The largest offset of an element from the first one, with a tile to spare along every dim."""
    return sum((size + _SPARE) * stride for size, stride in zip(shape, strides, strict=True) if size > 1)


_COUNTED = (DimKind.BATCH, DimKind.HEAD, DimKind.KV_HEAD)
_SPARE = 128
"""Rows by which a tile may reach past the end of a tensor; those are never read, but their addresses are computed."""


def aligned(x: Tensor) -> bool:
    """Whether every row begins at a multiple of 16 bytes and has stride 1."""
    *outer, last = [(size, stride) for size, stride in zip(x.shape, x.stride(), strict=True)]
    size = x.element_size()
    return (
        x.data_ptr() % 16 == 0
        and (last[1] == 1 or last[0] == 1)
        and all(stride * size % 16 == 0 for extent, stride in outer if extent > 1)
    )
