"""What a call was given, checked against the spec: tensors, sizes, parameters, offsets.

`prepare` answers with a `Call`, which every engine takes, or raises `MaskInputError` with a sentence that names the
input, what was given and what the spec says. Checks that read data (`of` and `sorted`) are in `validate`: they wait for
the device.
"""

import numbers
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from maskc import sizes as sizing
from maskc.diagnostics import MaskInputError, did_you_mean
from maskc.evaluate import Pairs, evaluate
from maskc.spec import InputSpec, MaskSpec, Scalar, Sizes, Type

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@dataclass(frozen=True, eq=False)
class Call:
    """One checked call.

    q: [batch, heads, q_len, D_qk]; k: [batch, kv_heads, k_len, D_qk]; v: [batch, kv_heads, k_len, D_v]; any strides,
    one dtype and device. inputs: by name, as many dims as the spec declares; integers are int64, floats keep their
    dtype. `q_offset` and `k_offset` are among the inputs, int64 [batch], where they were given as tensors. scale:
    factor on the dot product of query and key.
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
) -> Call:
    """Checks everything that needs no data. given: inputs, axis sizes and parameters by name; an offset of None was not
    given.
    """
    check_qkv(q, k, v)
    return assemble(spec, q, k, v, given, scale=scale, q_offset=q_offset, k_offset=k_offset)


def assemble(
    spec: MaskSpec,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    given: Mapping[str, object],
    *,
    scale: float | None,
    q_offset: Offset = None,
    k_offset: Offset = None,
    memo: SizesMemo | None = None,
) -> Call:
    """`prepare` for q, k and v that are checked."""
    tensors, scalars = split(spec, given)
    declared = {i.name: _checked_input(i, tensors[i.name], q.device) for i in spec.inputs}
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
            **starts,
        )
        sizing.check_shapes(spec, sizes, shapes)
        return sizes

    # Types are part of the key: True == 1 == 1.0, but they are not the same parameter.
    numbers_key = tuple((name, type(value), value) for name, value in scalars.items())
    key = (q.shape, k.shape[:3], tuple(starts.values()), offset_given, numbers_key, tuple(shapes.values()))
    sizes = resolved() if memo is None else memo.get(key, resolved)
    return Call(spec, sizes, default_scale(q) if scale is None else scale, q, k, v, declared | tables)


def default_scale(q: Tensor) -> float:
    """1 / sqrt(D_qk), and 1 for D_qk = 0."""
    return 1.0 if q.shape[-1] == 0 else float(q.shape[-1]) ** -0.5


def check_qkv(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Shapes, dtypes and devices of q, k and v against each other."""
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not isinstance(x, Tensor):
            raise MaskInputError(f"{name} is a {type(x).__name__}; expected a tensor (batch, head, seq, dim)")
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


def split(spec: MaskSpec, given: Mapping[str, object]) -> tuple[dict[str, Tensor], dict[str, Scalar]]:
    """The keyword arguments of a call as (inputs, axis sizes and parameters); unknown, misplaced and missing ones are
    named.
    """
    declared = {i.name for i in spec.inputs}
    for name in (n for n in given if n in declared):
        if not isinstance(given[name], Tensor):
            raise MaskInputError(
                f"input '{name}' is a {type(given[name]).__name__}; expected a tensor {declaration(spec.input(name))}"
            )
    tensors = {name: value for name, value in given.items() if name in declared and isinstance(value, Tensor)}
    scalars = {name: number(spec, name, value) for name, value in given.items() if name not in declared}
    for entry in spec.inputs:
        if entry.name not in tensors:
            raise MaskInputError(
                f"input '{entry.name}' is missing; mask '{spec.name}' declares it {declaration(entry)}"
            )
    return tensors, scalars


def number(spec: MaskSpec, name: str, value: object) -> Scalar:
    """An axis size or parameter as a Python scalar."""
    scalars = {*spec.axes, *(p.name for p in spec.parameters)}
    if name in {i.name for i in spec.inputs}:
        raise MaskInputError(f"input '{name}' is a tensor {declaration(spec.input(name))}; it is given at the call")
    if name not in scalars:
        known = scalars | {i.name for i in spec.inputs}
        near = did_you_mean(name, sorted(known))
        hint = "" if near is None else f"; {near}"
        raise MaskInputError(f"mask '{spec.name}' has no input, parameter or axis '{name}'{hint}")
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    kind = "axis" if name in spec.axes else "parameter"
    raise MaskInputError(f"{kind} '{name}' is a {type(value).__name__}; expected a number")


def separate(given: Mapping[str, object], device: torch.device) -> tuple[dict[str, Tensor], dict[str, Scalar]]:
    """Tensors and numbers among the keyword arguments, for the operators, which check the rest.

    Refuses everything else, and tensors on another device: they would decide which kernel the operator takes.
    """
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Scalar] = {}
    for name, value in given.items():
        if isinstance(value, Tensor):
            if value.device != device:
                raise MaskInputError(f"'{name}' is on {value.device}; expected {device}, where q is")
            tensors[name] = value
        elif isinstance(value, bool | int | float):
            scalars[name] = value
        elif isinstance(value, np.generic) and isinstance(value.item(), bool | int | float):
            scalars[name] = value.item()
        else:
            raise MaskInputError(f"'{name}' is a {type(value).__name__}; expected a tensor or a number")
    return tensors, scalars


def declaration(entry: InputSpec) -> str:
    """How a spec declares an input: `int[batch, seq]`."""
    return f"{entry.type.value}[{', '.join(d.text for d in entry.dims)}]"


def validate(call: Call) -> None:
    """Checks the promises `of` and `sorted`, which plans rely on; names the first entry that breaks one. Reads the
    data.
    """
    for entry in call.spec.inputs:
        table = call.inputs[entry.name]
        if entry.below is not None and table.numel():
            _check_range(entry, table, call.sizes)
        if entry.sorted and table.dim() and table.shape[-1] > 1:
            _check_sorted(entry, table)


def _check_range(entry: InputSpec, table: Tensor, sizes: Sizes) -> None:
    assert entry.below is not None
    zero = np.zeros((), np.int64)
    below = int(evaluate(entry.below, Pairs(np, sizes, {}, zero, zero, zero, zero)))
    low, high = (int(x) for x in torch.aminmax(table))
    if low < -1 or high >= below:
        index = _first((table < -1) | (table >= below))
        raise MaskInputError(
            f"input '{entry.name}' is declared with entries of {entry.below}, in [0, {below}) or -1, "
            f"but {_at(entry.name, index)} is {table[index].item()}"
        )


def _check_sorted(entry: InputSpec, table: Tensor) -> None:
    falling = table[..., 1:] < table[..., :-1]
    if bool(falling.any()):
        *outer, last = _first(falling)
        before, after = table[(*outer, last)].item(), table[(*outer, last + 1)].item()
        place = _at(entry.name, (*outer, last + 1))
        raise MaskInputError(f"input '{entry.name}' is declared sorted, but {place} is {after} and follows {before}")


def _first(found: Tensor) -> tuple[int, ...]:
    return tuple(int(i) for i in found.nonzero()[0])


def _at(name: str, index: tuple[int, ...]) -> str:
    return f"{name}[{', '.join(map(str, index))}]"


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
    if table.requires_grad:
        raise MaskInputError(
            f"input '{entry.name}' requires a gradient, but this spec gives it none; pass {entry.name}.detach()"
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
    return offset.to(torch.int64)


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
