"""The operators `maskc::forward` and `maskc::backward`: an engine behind torch's dispatcher, so that autograd and
compilers see it.

Both are plain `torch.library` operators with fake kernels, so they trace under `torch.compile(fullgraph=True)`. The
Autograd kernel is registered by hand (a ctx-style Function that redispatches below autograd): less than half the host
time of `custom_op` with `register_autograd`. Operators take tensors and numbers only, so what was compiled (spec,
engine, scale) stands in a table and is named by its number; equal programs share one.

Second derivatives and forward-mode AD raise: torch would answer the latter with tangent 0 and not say a word.
"""

import importlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad

from maskc.diagnostics import MaskUnsupportedError
from maskc.runtime import inputs, prologue
from maskc.runtime.inputs import Call, SizesMemo
from maskc.spec import MaskSpec

ENGINES = {"tiled": "maskc.runtime.tiled", "interpret": "maskc.runtime.interpreter", "triton": "maskc.runtime.launcher"}


class Engine(Protocol):
    """What an engine's module offers. lse is float32, or float64 for float64 q."""

    def forward(self, call: Call) -> tuple[Tensor, Tensor]:
        """Output [batch, heads, q_len, D_v] and lse [batch, heads, q_len]."""

    def backward(
        self, call: Call, out: Tensor, lse: Tensor, d_out: Tensor, d_lse: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of q, k and v for the upstream gradients of any strides; d_lse is None where lse was not used."""


@dataclass(frozen=True)
class Program:
    """What `compile_attention` settles: everything of a call that is not a tensor or a number."""

    spec: MaskSpec
    engine: str
    scale: float | None
    memo: SizesMemo = field(default_factory=SizesMemo, compare=False, repr=False)


_programs: list[Program] = []
_numbers: dict[Program, int] = {}


def number_of(program: Program) -> int:
    """The number under which the operators know a program; equal programs have one number."""
    if program not in _numbers:
        _numbers[program] = len(_programs)
        _programs.append(program)
    return _numbers[program]


_ARGUMENTS = (
    "Tensor q, Tensor k, Tensor v, Tensor[] tensors, str[] tensor_names, "
    "Scalar[] scalars, str[] scalar_names, int program"
)
_library = torch.library.Library("maskc", "DEF")
_library.define(f"forward({_ARGUMENTS}, bool validate) -> (Tensor, Tensor)")
_library.define(
    f"backward(Tensor? d_out, Tensor? d_lse, Tensor out, Tensor lse, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor)"
)


def run(
    program: int,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tensors: dict[str, Tensor],
    scalars: dict[str, bool | int | float],
    key_parts: Sequence[int] | None,
    validate: bool,
) -> tuple[Tensor, Tensor]:
    """One call through the operator: inputs, and offsets given as tensors, among tensors; the other offsets among
    scalars. key_parts: how many keys each part has, where there was one tensor each.
    """
    parts = {f"k[{place}]": length for place, length in enumerate(key_parts or ())}
    numbers = scalars | parts
    out, lse = torch.ops.maskc.forward.default(
        q, k, v, list(tensors.values()), list(tensors), list(numbers.values()), list(numbers), program, validate
    )
    return out, lse


def _call(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tensors: Sequence[Tensor],
    tensor_names: Sequence[str],
    scalars: Sequence[bool | int | float],
    scalar_names: Sequence[str],
    program: int,
) -> tuple[Call, Engine]:
    given: dict[str, Any] = dict(zip(tensor_names, tensors, strict=True)) | dict(
        zip(scalar_names, scalars, strict=True)
    )
    entry = _programs[program]
    offsets = {name: given.pop(name) for name in ("q_offset", "k_offset") if name in given}
    key_parts = [given.pop(name) for name in [*given] if name.startswith("k[")] or None
    call = inputs.assemble(
        entry.spec, q, k, v, given, scale=entry.scale, key_parts=key_parts, memo=entry.memo, **offsets
    )
    return call, _engine(ENGINES[entry.engine])


@cache
def _engine(module: str) -> Engine:
    return cast(Engine, importlib.import_module(module))


def _without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """An autocast region of the caller would send an engine's own float32 arithmetic to 16 bits."""
    entered = torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if entered else nullcontext()


def _forward(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *arguments, validate = rest
    call, engine = _call(q, k, v, *arguments)
    if validate:
        inputs.validate(call)
    with _without_autocast(q.device):
        return engine.forward(call)


def _backward(
    d_out: Tensor | None, d_lse: Tensor | None, out: Tensor, lse: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor]:
    call, engine = _call(*arguments)
    with _without_autocast(out.device):
        d_q, *rest = engine.backward(call, out, lse, torch.zeros_like(out) if d_out is None else d_out, d_lse)
    d_k, d_v = (prologue.inner(call.spec, call.sizes, x) for x in rest)
    return d_q, d_k, d_v


def _fake_forward(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    rows = q.shape[:3]
    statistics = torch.float64 if q.dtype is torch.float64 else torch.float32
    return q.new_empty((*rows, v.shape[3])), q.new_empty(rows, dtype=statistics)


def _fake_backward(
    d_out: Tensor | None, d_lse: Tensor | None, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, tensors: list[Tensor], rest: tuple[Any, ...]
    ) -> tuple[Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            out, lse = torch.ops.maskc.forward.default(q, k, v, tensors, *rest)
        ctx.save_for_backward(q, k, v, out, lse, *tensors)
        ctx.rest = rest[:-1]
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    def backward(ctx: Any, d_out: Tensor | None, d_lse: Tensor | None) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, *tensors = ctx.saved_tensors
        if d_out is None and d_lse is None:
            return (None,) * 5
        gradients = torch.ops.maskc.backward.default(d_out, d_lse, out, lse, q, k, v, tensors, *ctx.rest)
        wanted = (g if needed else None for g, needed in zip(gradients, ctx.needs_input_grad, strict=False))
        return (*wanted, None, None)


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            d_q, d_k, d_v = torch.ops.maskc.backward.default(*arguments)
        return d_q, d_k, d_v

    @staticmethod
    def backward(ctx: Any, *_: Tensor | None) -> Any:
        raise MaskUnsupportedError(
            "second derivatives of attention are not available from this engine; "
            "engine='dense' has them, through torch's own autograd"
        )


def _autograd_forward(q: Tensor, k: Tensor, v: Tensor, tensors: list[Tensor], *rest: Any) -> tuple[Tensor, Tensor]:
    _refuse_tangents(q, k, v, *tensors)
    if torch._C._are_functorch_transforms_active():
        raise MaskUnsupportedError(
            "torch.func transforms of attention are not available from this engine; "
            "use torch.autograd, or engine='dense', which is made of torch's own operators"
        )
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        out, lse = _Forward.apply(q, k, v, tensors, rest)  # type: ignore[no-untyped-call]
    else:
        with torch._C._AutoDispatchBelowAutograd():
            out, lse = torch.ops.maskc.forward.default(q, k, v, tensors, *rest)
    return out, lse


def _autograd_backward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    _refuse_tangents(*(a for a in arguments if isinstance(a, Tensor)))
    d_q, d_k, d_v = _Backward.apply(*arguments)  # type: ignore[no-untyped-call]
    return d_q, d_k, d_v


def _refuse_tangents(*tensors: Tensor) -> None:
    if forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(t).tangent is not None for t in tensors):
        raise MaskUnsupportedError(
            "forward-mode derivatives of attention are not available from this engine; "
            "engine='dense' has them, through torch's own autograd"
        )


for _name, _kernel, _autograd_kernel, _fake in (
    ("forward", _forward, _autograd_forward, _fake_forward),
    ("backward", _backward, _autograd_backward, _fake_backward),
):
    _library.impl(_name, _kernel, "CompositeExplicitAutograd")
    _library.impl(_name, _autograd_kernel, "Autograd")
    torch.library.register_fake(f"maskc::{_name}", _fake, lib=_library)
