"""What a call was given, checked against the spec: tensors, sizes, parameters, offsets.

`prepare` answers with a `Call`, which every engine takes, or raises `MaskInputError` with a sentence that names the
input, what was given and what the spec says. Checks that read data (`of`, `sorted`, `packed`) are in `validate`: they
wait for the device.
"""

import numbers
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from maskc import promises
from maskc import sizes as sizing
from maskc.diagnostics import MaskInputError, did_you_mean
from maskc.expr import Scalar, Type
from maskc.runtime import prologue
from maskc.shapes import check_shapes, check_vectors, declaration, free_sizes, missing
from maskc.spec import InputSpec, MaskSpec, Sizes

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_NUMBERS = (bool, int, float)
_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@dataclass(frozen=True, eq=False)
class Call:
    """One checked call.

    q: [batch, heads, q_len, D_qk]; k: [batch, kv_heads, k_len, D_qk]; v: [batch, kv_heads, k_len, D_v]; any strides,
    one dtype and device; the parts of the keys are joined, and the virtual keys of a border are there. inputs: every
    table by name, those that are made among them, as many dims as the spec declares; integers are int64, floats keep
    their dtype, sums and tables of the spec are float64. `q_offset` and `k_offset` are among the inputs, int64 [batch],
    contiguous, where they were given as tensors. scale: factor on the dot product of query and key.
    """

    spec: MaskSpec
    sizes: Sizes
    scale: float
    q: Tensor
    k: Tensor
    v: Tensor
    inputs: Mapping[str, Tensor]


Offset = int | Tensor | None


class SizesMemo:
    """The last few `Sizes` by everything they follow from, so that a warm call does no work in Python for them."""

    def __init__(self, capacity: int = 64) -> None:
        self._capacity = capacity
        self._known: OrderedDict[Hashable, Sizes] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Hashable, make: Callable[[], Sizes]) -> Sizes:
        """The sizes of the key, made on first use."""
        with self._lock:
            found = self._known.get(key)
        if found is None:
            found = make()
        with self._lock:
            self._known[key] = found
            self._known.move_to_end(key)
            if len(self._known) > self._capacity:
                self._known.popitem(last=False)
        return found


@dataclass(frozen=True, eq=False)
class Program:
    """What `compile_attention` settles: everything of a call that is not a tensor or a number."""

    spec: MaskSpec
    engine: str
    scale: float | None
    memo: SizesMemo = field(default_factory=SizesMemo, repr=False)


class Given(NamedTuple):
    """A call as the operators take it, nothing checked yet.

    tensors: inputs, and offsets given as tensors. scalars: parameters, axis sizes, the other offsets, and the lengths
    `k[0]`, `k[1]`, ... of parts of the keys. names: those of the tensors, then of the scalars, with blanks between.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    tensors: Sequence[Tensor]
    scalars: Sequence[Scalar]
    names: str
    program: Program

    @property
    def tensor_names(self) -> list[str]:
        """The names of `tensors`."""
        return self.names.split(" ")[: len(self.tensors)]

    def call(self) -> Call:
        """The call, checked."""
        values: list[Any] = [*self.tensors, *self.scalars]
        given = dict(zip(self.names.split(" "), values, strict=True)) if values else {}
        offsets = {name: given.pop(name, None) for name in ("q_offset", "k_offset")}
        key_parts = [given.pop(name) for name in [*given] if name.startswith("k[")] or None
        program = self.program
        return prepare(
            program.spec,
            self.q,
            self.k,
            self.v,
            given,
            scale=program.scale,
            key_parts=key_parts,
            memo=program.memo,
            **offsets,
        )


def prepare(
    spec: MaskSpec,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    given: Mapping[str, object],
    *,
    scale: float | None = None,
    q_offset: Offset = None,
    k_offset: Offset = None,
    key_parts: Sequence[int] | None = None,
    memo: SizesMemo | None = None,
) -> Call:
    """Checks everything that needs no data. given: inputs, axis sizes and parameters by name; an offset of None was not
    given. key_parts: how many keys each part has, where k and v were given part by part. memo: where sizes are kept.
    """
    check_qkv(q, k, v)
    tensors, scalars = split(spec, given)
    declared = {i.name: _checked_input(i, tensors[i.name], q.device) for i in spec.given}
    shapes = {name: tuple(t.shape) for name, t in declared.items()}
    offsets = {"q_offset": q_offset, "k_offset": k_offset}
    tables = {name: _checked_offset(name, o, q) for name, o in offsets.items() if isinstance(o, Tensor)}
    starts = {name: _scalar_offset(name, o) for name, o in offsets.items()}
    offset_given = q_offset is not None or k_offset is not None

    def resolved() -> Sizes:
        batch, heads, q_len, _ = q.shape
        sizes = sizing.resolve(
            spec,
            q_len=q_len,
            k_len=k.shape[2],
            batch=batch,
            heads=heads,
            kv_heads=k.shape[1],
            given=scalars,
            offset_given=offset_given,
            free=free_sizes(spec, shapes),
            key_parts=key_parts,
            **starts,
        )
        check_shapes(spec, sizes, shapes)
        check_vectors(spec, shapes, q.shape[-1])
        return sizes

    # Types are part of the key: True == 1 == 1.0, but they are not the same parameter.
    numbers_key = tuple((name, type(value), value) for name, value in scalars.items())
    parts_key = None if key_parts is None else tuple(key_parts)
    key = (q.shape, k.shape[:3], parts_key, tuple(starts.values()), offset_given, numbers_key, tuple(shapes.values()))
    sizes = resolved() if memo is None else memo.get(key, resolved)
    k, v = (prologue.bordered(spec, sizes, x) for x in (k, v))
    made = prologue.complete(spec, declared, q.device)
    return Call(spec, sizes, default_scale(q) if scale is None else scale, q, k, v, made | tables)


def default_scale(q: Tensor) -> float:
    """1 / sqrt(D_qk), and 1 for D_qk = 0."""
    return 1.0 if q.shape[-1] == 0 else float(q.shape[-1]) ** -0.5


def check_qkv(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Shapes, dtypes and devices of q, k and v against each other."""
    for name, x in (("q", q), ("k", k), ("v", v)):
        check_tensor(name, x)
        if x.dim() != 4:
            raise MaskInputError(f"{name} has {x.dim()} dims, {_shape(x)}; expected 4: (batch, head, seq, dim)")
    if q.dtype not in _FLOATS:
        raise MaskInputError(f"q has dtype {_dtype(q)}; expected float32, float64, float16 or bfloat16")
    if not q.dtype == k.dtype == v.dtype:
        raise MaskInputError(
            f"q is {_dtype(q)}, k is {_dtype(k)} and v is {_dtype(v)}; expected one dtype for all three"
        )
    if not q.device == k.device == v.device:
        raise MaskInputError(
            f"q is on {q.device}, k on {k.device} and v on {v.device}; expected one device for all three"
        )
    if not q.shape[0] == k.shape[0] == v.shape[0]:
        raise MaskInputError(
            f"q, k and v have batch sizes {q.shape[0]}, {k.shape[0]} and {v.shape[0]}; expected one for all"
        )
    if k.shape[1:3] != v.shape[1:3]:
        raise MaskInputError(f"k is {_shape(k)} and v is {_shape(v)}; expected equal heads and lengths (dims 1 and 2)")
    if q.shape[3] != k.shape[3]:
        raise MaskInputError(f"q has head dim {q.shape[3]} and k has {k.shape[3]}; expected the same")
    heads, kv_heads = q.shape[1], k.shape[1]
    if heads != kv_heads and (kv_heads == 0 or heads % kv_heads != 0):
        raise MaskInputError(f"q has {heads} heads and k has {kv_heads}; expected a multiple of k's heads")


def check_tensor(name: str, x: object) -> None:
    """Refuses everything but tensors by name."""
    if not isinstance(x, Tensor):
        raise MaskInputError(f"{name} is a {type(x).__name__}; expected a tensor (batch, head, seq, dim)")


def split(spec: MaskSpec, given: Mapping[str, object]) -> tuple[dict[str, Tensor], dict[str, Scalar]]:
    """The keyword arguments of a call as (inputs, axis sizes and parameters); unknown, misplaced and missing ones are
    named.
    """
    declared = {i.name: i for i in spec.given}
    for name, entry in ((name, declared[name]) for name in given if name in declared):
        if not isinstance(given[name], Tensor):
            raise MaskInputError(
                f"input '{name}' is a {type(given[name]).__name__}; expected a tensor {declaration(entry)}"
            )
    for entry in (i for i in spec.inputs if i.constant and i.source is not None and i.name in given):
        raise MaskInputError(f"input '{entry.name}' is constant; it is given to compile_attention, not at the call")
    tensors = {name: value for name, value in given.items() if name in declared and isinstance(value, Tensor)}
    scalars = {name: number(spec, name, value) for name, value in given.items() if name not in declared}
    for entry in spec.given:
        if entry.name not in tensors:
            raise missing(spec, entry)
    return tensors, scalars


def number(spec: MaskSpec, name: str, value: object) -> Scalar:
    """An axis size or parameter as a Python scalar."""
    scalars = {*spec.axis_names, *(p.name for p in spec.parameters)}
    if name in {i.name for i in spec.given}:
        raise MaskInputError(f"input '{name}' is a tensor {declaration(spec.input(name))}; it is given at the call")
    if name not in scalars:
        known = scalars | {i.name for i in spec.given}
        near = did_you_mean(name, sorted(known))
        hint = "" if near is None else f"; {near}"
        raise MaskInputError(f"mask '{spec.name}' has no input, parameter or axis '{name}'{hint}")
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    kind = "axis" if name in spec.axis_names else "parameter"
    raise MaskInputError(f"{kind} '{name}' is a {type(value).__name__}; expected a number")


def separate(given: Mapping[str, object], q: Tensor) -> tuple[dict[str, Tensor], dict[str, Scalar]]:
    """Tensors and numbers among the keyword arguments, for the operators, which check the rest.

    Refuses everything else, and tensors on another device: they would decide which kernel the operator takes.
    """
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Scalar] = {}
    for name, value in given.items():
        if isinstance(value, Tensor):
            if value.device != q.device:
                raise MaskInputError(f"'{name}' is on {value.device}; expected {q.device}, where q is")
            tensors[name] = value
        elif isinstance(value, _NUMBERS):
            scalars[name] = value
        elif isinstance(value, np.generic) and isinstance(value.item(), _NUMBERS):
            scalars[name] = value.item()
        else:
            raise MaskInputError(f"'{name}' is a {type(value).__name__}; expected a tensor or a number")
    return tensors, scalars


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """An autocast region of the caller would send an engine's own float32 arithmetic to 16 bits."""
    entered = torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if entered else nullcontext()


def validate(call: Call) -> None:
    """Checks the promises `of`, `sorted` and `packed`, which plans rely on; names the first entry that breaks one.
    Reads the data.
    """
    promises.check(call.spec, call.sizes, call.inputs)


def _checked_input(entry: InputSpec, table: Tensor, device: torch.device) -> Tensor:
    allowed = {Type.BOOL: (torch.bool,), Type.INT: _INTEGERS, Type.FLOAT: _FLOATS}[entry.type]
    if table.dtype not in allowed:
        raise MaskInputError(f"input '{entry.name}' has dtype {_dtype(table)}; the spec declares {declaration(entry)}")
    if table.device != device:
        raise MaskInputError(f"input '{entry.name}' is on {table.device}; expected {device}, where q is")
    if table.dim() != len(entry.dims):
        raise MaskInputError(
            f"input '{entry.name}' has {table.dim()} dims, {_shape(table)}; the spec declares {declaration(entry)}"
        )
    if table.requires_grad and not entry.learned:
        raise MaskInputError(
            f"input '{entry.name}' requires a gradient, but the spec does not declare it learned; "
            f"pass {entry.name}.detach()"
        )
    return table.to(torch.int64) if entry.type is Type.INT else table


def _checked_offset(name: str, offset: Tensor, q: Tensor) -> Tensor:
    if offset.dtype not in _INTEGERS or tuple(offset.shape) != (q.shape[0],):
        raise MaskInputError(
            f"{name} is a tensor {_shape(offset)} of {_dtype(offset)}; "
            f"expected an int, or integers ({q.shape[0]},), one per batch row"
        )
    if offset.device != q.device:
        raise MaskInputError(f"{name} is on {offset.device}; expected {q.device}, where q is")
    return offset.to(torch.int64).contiguous()


def _scalar_offset(name: str, offset: Offset) -> int | None:
    if isinstance(offset, Tensor):
        return None
    if offset is None:
        return 0
    if isinstance(offset, bool) or not isinstance(offset, int | np.integer):
        raise MaskInputError(f"{name} is {offset!r}; expected an int, or a tensor of integers, one per batch row")
    return int(offset)


def _shape(x: Tensor) -> str:
    return f"({', '.join(map(str, x.shape))})"


def _dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")
