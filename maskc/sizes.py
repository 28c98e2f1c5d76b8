"""The sizes of one call: axis sizes are inferred, parameters converted, preconditions checked.

In: lengths, offsets and scalars as a caller gives them. Out: `Sizes`, or MaskInputError with a sentence that names the
size or parameter, what was given and what is expected. Nothing here reads a tensor's data.
"""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import SupportsFloat, SupportsIndex

import numpy as np

from maskc.diagnostics import MaskInputError, did_you_mean
from maskc.expr import (
    AxisSize,
    Binary,
    BinaryOp,
    Coordinate,
    Expr,
    Length,
    Offset,
    Position,
    Scalar,
    Side,
    Type,
    children,
    walk,
)
from maskc.grids import axis_sizes, line_length, padded_keys
from maskc.scalars import because, check_scalars, value
from maskc.spec import MaskSpec, ParameterSpec, RowDefault, Sizes

_POSITION_LIMIT = 2**62  # sums of positions and lengths stay inside 64 bits


def resolve(
    spec: MaskSpec,
    *,
    q_len: int,
    k_len: int,
    batch: int = 1,
    heads: int = 1,
    kv_heads: int = 1,
    q_offset: int | None = 0,
    k_offset: int | None = 0,
    given: Mapping[str, object],
    offset_given: bool | None = None,
    free: Mapping[str, int] | None = None,
    key_parts: Sequence[int] | None = None,
) -> Sizes:
    """The sizes of a call, complete and checked.

    k_len: of the keys that the call has; the virtual ones of a border are added. given: axis sizes and parameters by
    name. q_offset, k_offset: None where they are given as tensors. offset_given: whether the caller said where queries
    and keys begin (by default, whether an offset differs from 0); without it, q_len and k_len must be equal for a spec
    that reads q as a position on a line that both share. free: sizes of dims that are names of their own. key_parts:
    lengths of the tensors that hold the parts of the keys, where there is one each; their sum is k_len.

    Raises MaskInputError.
    """
    _check_counts(q_len, k_len, batch, heads, kv_heads, q_offset, k_offset)
    _check_names(spec, given)
    sizes = Sizes(
        q_len=q_len,
        k_len=k_len,
        batch=batch,
        heads=heads,
        kv_heads=kv_heads,
        q_offset=q_offset,
        k_offset=k_offset,
        parameters=parameters(spec, given),
        free=tuple((free or {}).items()),
    )
    said = q_offset != 0 or k_offset != 0 if offset_given is None else offset_given
    own_lines = spec.separate or spec.border is not None
    if q_len != k_len and not said and not own_lines and reads_position(spec):
        raise MaskInputError(_alignment(spec, q_len, k_len))
    if spec.border is not None and k_offset != 0:
        raise MaskInputError(f"mask '{spec.name}' has a border, so the keys are the whole grid; leave k_offset out")
    checked: set[Expr] = set()
    for expr in _layout(spec):
        check_scalars(spec.name, expr, sizes, checked)
    axes = {a: _axis(spec, a, given[a]) for a in spec.axis_names if a in given}
    sizes = replace(sizes, axes=axis_sizes(spec, sizes, axes, key_parts))
    sizes = replace(sizes, k_len=padded_keys(spec, sizes))
    _check_preconditions(spec, sizes, checked)
    for expr in _read(spec):
        check_scalars(spec.name, expr, sizes, checked)
    return sizes


def reads_position(spec: MaskSpec) -> bool:
    """Whether a spec reads the position of the query, by number, coordinate or as an index into the whole line."""
    if spec.rows is not None and spec.rows.default is RowDefault.PASS:
        return True
    exprs = [*spec.exprs, *(c.expr for c in spec.claims if c.over_pairs)]
    return any(_reads_position(e) for e in exprs)


def _reads_position(expr: Expr) -> bool:
    match expr:
        case Position(side=Side.Q) | Coordinate(side=Side.Q):
            return True
        case Binary(op=BinaryOp.SUB, left=Position(side=Side.Q), right=Offset(side=Side.Q)):
            return False  # counts the queries of this call
        case _:
            return any(_reads_position(child) for child in children(expr))


# ---- what a caller gives


def _check_counts(
    q_len: int, k_len: int, batch: int, heads: int, kv_heads: int, q_offset: int | None, k_offset: int | None
) -> None:
    counts = {"q_len": q_len, "k_len": k_len, "batch": batch, "heads": heads, "kv_heads": kv_heads}
    offsets = {"q_offset": q_offset, "k_offset": k_offset}
    for name, number in (counts | {n: o for n, o in offsets.items() if o is not None}).items():
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise MaskInputError(f"{name} is {number!r}; expected an int >= 0")
        if number > _POSITION_LIMIT:
            raise MaskInputError(f"{name} is {number}; expected at most {_POSITION_LIMIT}")
    if heads != kv_heads and (kv_heads == 0 or heads % kv_heads != 0):
        raise MaskInputError(f"{heads} query heads and {kv_heads} KV heads; expected a multiple of the KV heads")


def _check_names(spec: MaskSpec, given: Mapping[str, object]) -> None:
    known = [*spec.axis_names, *(p.name for p in spec.parameters)]
    for name in given:
        if name in known:
            continue
        hint = did_you_mean(str(name), known) or _known_names(spec)
        raise MaskInputError(f"mask '{spec.name}' has no parameter or axis '{name}'; {hint}")


def _known_names(spec: MaskSpec) -> str:
    names = [*(p.name for p in spec.parameters), *spec.axis_names]
    return f"it has {', '.join(names)}" if names else "it has none"


def parameters(spec: MaskSpec, given: Mapping[str, object]) -> tuple[tuple[str, Scalar], ...]:
    """The value of every parameter in order: the given one, else its default."""
    return tuple((p.name, _parameter(spec, p, given)) for p in spec.parameters)


def _parameter(spec: MaskSpec, parameter: ParameterSpec, given: Mapping[str, object]) -> Scalar:
    name = parameter.name
    if name not in given:
        if parameter.default is None:
            raise MaskInputError(f"parameter '{name}' of mask '{spec.name}' has no default; give {name}=...")
        return parameter.default
    value = given[name]
    converted = _converted(value, parameter.type)
    if converted is None:
        kind = {Type.BOOL: "a bool", Type.INT: "an int", Type.FLOAT: "a float"}[parameter.type]
        raise MaskInputError(f"parameter '{name}' of mask '{spec.name}' is {value!r}; expected {kind}")
    if parameter.type is Type.INT and not -(2**63) <= converted < 2**63:
        raise MaskInputError(f"parameter '{name}' of mask '{spec.name}' does not fit into 64 bits")
    return converted


def _converted(value: object, kind: Type) -> Scalar | None:
    """A scalar of a type from one that the caller gave; None where it is none."""
    is_bool = isinstance(value, bool | np.bool_)
    match kind:
        case Type.BOOL:
            return bool(value) if is_bool else None
        case Type.INT:
            whole = isinstance(value, SupportsIndex) and not is_bool and not np.ndim(value)  # type: ignore[arg-type]
            return operator.index(value) if whole else None  # type: ignore[arg-type]
        case Type.FLOAT:
            number = isinstance(value, SupportsFloat) and not is_bool and not np.ndim(value)  # type: ignore[arg-type]
            return _float(value) if number else None  # type: ignore[arg-type]


def _float(value: SupportsFloat) -> float | None:
    try:
        return float(value)
    except OverflowError:
        return None


def _alignment(spec: MaskSpec, q_len: int, k_len: int) -> str:
    side, offset = ("q", k_len - q_len) if k_len > q_len else ("k", q_len - k_len)
    return (
        f"q_len is {q_len} and k_len is {k_len}, and mask '{spec.name}' reads q as a position: "
        f"give {side}_offset={offset} to align the ends, or {side}_offset=0 to align the starts"
    )


def _axis(spec: MaskSpec, name: str, value: object) -> int:
    size = _converted(value, Type.INT)
    if size is None or not 1 <= size <= _POSITION_LIMIT:
        raise MaskInputError(f"axis '{name}' of mask '{spec.name}' is {value!r}; expected an int >= 1")
    return int(size)


# ---- what must hold


def _layout(spec: MaskSpec) -> list[Expr]:
    """What the sizes of axes follow from."""
    parts = [part.size for part in (*spec.queries, *spec.keys) if part.size is not None]
    return parts if spec.border is None else [*parts, spec.border]


def _read(spec: MaskSpec) -> list[Expr]:
    """Everything that a call evaluates, or that says how large its tables are and what is in them."""
    dims = [*(d for i in spec.inputs for d in i.dims), *(d for r in spec.reductions for d in r.dims)]
    extents = [d.extent for d in dims if d.extent is not None]
    belows = [i.below for i in spec.inputs if i.below is not None]
    return [*spec.exprs, *(c.expr for c in spec.claims), *extents, *belows]


def _check_preconditions(spec: MaskSpec, sizes: Sizes, checked: set[Expr]) -> None:
    """Before all else that a call evaluates: a claim says more about a wrong number than what goes wrong with it."""
    empty = line_length(spec, sizes) == 0
    for claim in spec.claims:
        if claim.over_pairs or (empty and any(isinstance(e, AxisSize | Length) for e in walk(claim.expr))):
            continue
        check_scalars(spec.name, claim.expr, sizes, checked)
        if not value(claim.expr, sizes):
            text = str(claim.expr) if claim.span is None else " ".join(claim.span.text.split()).removeprefix("claim ")
            raise MaskInputError(f"mask '{spec.name}' claims '{text}', which does not hold{because(claim.expr, sizes)}")
