"""The operators `maskc::forward` and `maskc::backward`: an engine behind torch's dispatcher, so that autograd and
compilers see it.

Both are plain `torch.library` operators with fake kernels, so they trace under `torch.compile(fullgraph=True)`. The
Autograd kernel is registered by hand (a ctx-style Function that redispatches below autograd): less than half the host
time of `custom_op` with `register_autograd`. An eager call that nobody looks at leaves the dispatcher out. Operators
take tensors and numbers only, so what was compiled (spec, engine, scale) stands in a table and is named by its number;
equal programs share one.

Second derivatives and forward-mode AD raise: torch would answer the latter with tangent 0 and not say a word.
"""

import importlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from maskc.diagnostics import MaskUnsupportedError
from maskc.expr import Scalar
from maskc.runtime import inputs, prologue
from maskc.runtime.inputs import Call, Given, Program
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


class Recalling(Protocol):
    """What the module of an engine offers that knows calls again before they are checked."""

    def recall_forward(self, given: Given) -> tuple[Tensor, Tensor]:
        """`Engine.forward`."""

    def recall_backward(
        self, given: Given, out: Tensor, lse: Tensor, d_out: Tensor, d_lse: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`Engine.backward`; the gradients are those of the real keys."""


_programs: list[Program] = []
_numbers: dict[tuple[MaskSpec, str, float | None], int] = {}


def number_of(spec: MaskSpec, engine: str, scale: float | None) -> int:
    """The number under which the operators know a program; equal ones have one number."""
    key = (spec, engine, scale)
    if key not in _numbers:
        _numbers[key] = len(_programs)
        _programs.append(Program(*key))
    return _numbers[key]


_ARGUMENTS = "Tensor q, Tensor k, Tensor v, Tensor[] tensors, Scalar[] scalars, str names, int program"
"""Those of `Given`. One text for all names: lists of texts cost microseconds."""

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
    scalars: dict[str, Scalar],
    key_parts: Sequence[int] | None,
    validate: bool,
) -> tuple[Tensor, Tensor]:
    """One call through the operator: inputs, and offsets given as tensors, among tensors; the other offsets among
    scalars. key_parts: how many keys each part has, where there was one tensor each.
    """
    if key_parts is not None:
        scalars = scalars | {f"k[{place}]": length for place, length in enumerate(key_parts)}
    given = [*tensors.values()]
    rest = [*scalars.values()], " ".join((*tensors, *scalars)), program, validate
    if not q.is_meta and _is_unseen(q, k, v, *given):
        return _attend(q, k, v, given, *rest)
    inputs.check_qkv(q, k, v)  # so that what a compiler traces raises this error, too
    out, lse = torch.ops.maskc.forward.default(q, k, v, given, *rest)
    return out, lse


def _is_unseen(*tensors: Tensor) -> bool:
    """Whether nobody looks at operators and no tensor asks the dispatcher for more than a kernel.

    Then what is registered behind the operators is called straight away: the dispatcher would take 10 us.
    """
    if (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._is_tracing()
        or torch._C._autograd._profiler_enabled()
    ):
        return False
    plain = [type(x) in (Tensor, Parameter) and not x.is_neg() for x in tensors]
    return all(plain)


@cache
def _engine(name: str) -> Engine:
    return cast(Engine, importlib.import_module(ENGINES[name]))


@cache
def _recalling(name: str) -> Recalling | None:
    return cast(Recalling, _engine(name)) if hasattr(_engine(name), "recall_forward") else None


def _forward(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    tensors, scalars, names, number, validate = rest
    given = Given(q, k, v, tensors, scalars, names, _programs[number])
    recalling = _recalling(given.program.engine)
    if recalling is not None:
        if validate:
            inputs.validate(given.call())
        return recalling.recall_forward(given)
    call = given.call()
    if validate:
        inputs.validate(call)
    with inputs.without_autocast(q.device):
        return _engine(given.program.engine).forward(call)


def _backward(
    d_out: Tensor | None, d_lse: Tensor | None, out: Tensor, lse: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v, tensors, scalars, names, number = arguments
    given = Given(q, k, v, tensors, scalars, names, _programs[number])
    if d_out is None:
        d_out = torch.zeros_like(out)
    recalling = _recalling(given.program.engine)
    if recalling is not None:
        return recalling.recall_backward(given, out, lse, d_out, d_lse)
    call = given.call()
    with inputs.without_autocast(out.device):
        d_q, *rest = _engine(given.program.engine).backward(call, out, lse, d_out, d_lse)
    d_k, d_v = (prologue.inner(call.spec, call.sizes, x) for x in rest)
    return d_q, d_k, d_v


def _fake_forward(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    inputs.check_qkv(q, k, v)
    rows = q.shape[:3]
    statistics = torch.float64 if q.dtype is torch.float64 else torch.float32
    return q.new_empty((*rows, v.shape[3])), q.new_empty(rows, dtype=statistics)


def _fake_backward(
    d_out: Tensor | None, d_lse: Tensor | None, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


_Below = Callable[..., tuple[Tensor, Tensor]]
"""What lies below autograd: the operator again, or the function behind it."""


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, below: _Below, q: Tensor, k: Tensor, v: Tensor, tensors: list[Tensor], rest: tuple[Any, ...]
    ) -> tuple[Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            out, lse = below(q, k, v, tensors, *rest)
        ctx.save_for_backward(q, k, v, out, lse, *tensors)
        ctx.rest = rest[:-1]
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    def backward(ctx: Any, d_out: Tensor | None, d_lse: Tensor | None) -> tuple[Tensor | None, ...]:
        if d_out is None and d_lse is None:
            return (None,) * 6
        q, k, v, out, lse, *tensors = saved = ctx.saved_tensors
        seen = [x for x in (d_out, d_lse, *saved) if x is not None]
        _refuse_tangents(*seen)
        twice = torch.is_grad_enabled()  # somebody asks for second derivatives, which the operator refuses
        backward = torch.ops.maskc.backward.default if twice or not _is_unseen(*seen) else _backward
        gradients = backward(d_out, d_lse, out, lse, q, k, v, tensors, *ctx.rest)
        wanted = (g if needed else None for g, needed in zip(gradients, ctx.needs_input_grad[1:], strict=False))
        return (None, *wanted, None, None)


_apply = super(torch.autograd.Function, _Forward).apply
"""`_Forward.apply` but for what concerns `torch.func`, whose transforms are refused before; that takes 1.5 us."""


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


def _attend(
    q: Tensor, k: Tensor, v: Tensor, tensors: list[Tensor], *rest: Any, below: _Below = _forward
) -> tuple[Tensor, Tensor]:
    """The operator `forward` for tensors that autograd knows."""
    _refuse_tangents(q, k, v, *tensors)
    if torch._C._are_functorch_transforms_active():
        raise MaskUnsupportedError(
            "torch.func transforms of attention are not available from this engine; "
            "use torch.autograd, or engine='dense', which is made of torch's own operators"
        )
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        out, lse = _apply(below, q, k, v, tensors, rest)  # type: ignore[no-untyped-call]
    else:
        with torch._C._AutoDispatchBelowAutograd():
            out, lse = below(q, k, v, tensors, *rest)
    return out, lse


def _autograd_forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    return _attend(*arguments, below=torch.ops.maskc.forward.default)


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
