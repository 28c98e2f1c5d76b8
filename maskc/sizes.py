"""The sizes of one call: axis sizes are inferred, parameters converted, preconditions checked, shapes of inputs
derived.

In: lengths, offsets and scalars as a caller gives them. Out: `Sizes`, or MaskInputError with a sentence that names the
size or parameter, what was given and what is expected. Nothing here reads a tensor's data.
"""

import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import SupportsFloat, SupportsIndex

import numpy as np

from maskc.diagnostics import MaskInputError, did_you_mean
from maskc.evaluate import Pairs, evaluate
from maskc.spec import (
    AxisSize,
    Binary,
    BinaryOp,
    Coordinate,
    Count,
    Dim,
    DimKind,
    Expr,
    Index,
    InputSpec,
    Length,
    MaskSpec,
    Offset,
    Parameter,
    ParameterSpec,
    Position,
    Read,
    Scalar,
    Score,
    Select,
    Side,
    Sizes,
    Type,
    children,
    walk,
)

_POSITION_LIMIT = 2**62  # sums of positions and lengths stay inside 64 bits
_DIVISIONS = {BinaryOp.DIV, BinaryOp.FLOORDIV, BinaryOp.MOD}
_COUNTS = {DimKind.BATCH: Count.BATCH, DimKind.HEAD: Count.HEAD, DimKind.KV_HEAD: Count.KV_HEAD}


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
) -> Sizes:
    """The sizes of a call, complete and checked.

    given: axis sizes and parameters by name. q_offset, k_offset: None where they are given as tensors. offset_given:
    whether the caller said where queries and keys begin (by default, whether an offset differs from 0); without it,
    q_len and k_len must be equal for a spec that reads q as a position.

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
        parameters=tuple((p.name, _parameter(spec, p, given)) for p in spec.parameters),
    )
    said = q_offset != 0 or k_offset != 0 if offset_given is None else offset_given
    if q_len != k_len and not said and reads_position(spec):
        raise MaskInputError(_alignment(spec, q_len, k_len))
    sizes = replace(sizes, axes=_axes(spec, sizes, given))
    _check_divisors(spec, sizes)
    _check_preconditions(spec, sizes)
    return sizes


def reads_position(spec: MaskSpec) -> bool:
    """Whether a spec reads the position of the query, by number, coordinate or as an index into the whole line."""
    exprs = [*spec.clauses, spec.score, *(c.expr for c in spec.claims if c.over_pairs)]
    return any(_reads_position(e) for e in exprs)


def _reads_position(expr: Expr) -> bool:
    match expr:
        case Position(side=Side.Q) | Coordinate(side=Side.Q):
            return True
        case Binary(op=BinaryOp.SUB, left=Position(side=Side.Q), right=Offset(side=Side.Q)):
            return False  # counts the queries of this call
        case _:
            return any(_reads_position(child) for child in children(expr))


def line_length(sizes: Sizes) -> int:
    """Length of the shared line: the position behind the last query or key; without offsets that are tensors."""
    ends = [(sizes.offset(side) or 0) + sizes.length(side) for side in Side]
    return max(ends)


def check_shapes(spec: MaskSpec, sizes: Sizes, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises MaskInputError for the first input that is missing or whose shape does not fit the spec at these sizes."""
    bound: dict[str, tuple[int, str]] = {}
    for entry in spec.inputs:
        if entry.name not in shapes:
            raise MaskInputError(f"input '{entry.name}' is missing; mask '{spec.name}' declares it {_declared(entry)}")
        shape = shapes[entry.name]
        if len(shape) != len(entry.dims):
            raise MaskInputError(
                f"input '{entry.name}' has shape {_shape(shape)}, {len(shape)} dims; "
                f"the spec declares {_declared(entry)}"
            )
        for place, (dim, size) in enumerate(zip(entry.dims, shape, strict=True)):
            _check_dim(entry, place, dim, size, shape, sizes, bound)


def input_shape(spec: MaskSpec, sizes: Sizes, name: str, free: Mapping[str, int]) -> tuple[int, ...]:
    """The shape that an input must have. free: sizes of the dims that are bound by tensors, by name.

    With an offset given as a tensor, dims that depend on it have the least size that is accepted. Raises MaskInputError
    where a free size is missing or a size is negative.
    """
    return tuple(_size(spec.input(name), dim, sizes, free) for dim in spec.input(name).dims)


def _size(entry: InputSpec, dim: Dim, sizes: Sizes, free: Mapping[str, int]) -> int:
    match dim.kind:
        case DimKind.FREE if dim.text in free:
            return free[dim.text]
        case DimKind.FREE:
            raise MaskInputError(f"the size of dim '{dim.text}' of input '{entry.name}' is missing")
        case DimKind.SEQ:
            return line_length(sizes)
        case DimKind.EXTENT:
            assert dim.extent is not None
            size = int(_value(dim.extent, sizes))
            if size < 0:
                raise MaskInputError(
                    f"dim '{dim.text}' of input '{entry.name}' would be {size}{_because(dim.extent, sizes)}"
                )
            return size
        case _:
            return sizes.total(_COUNTS[dim.kind])


def _check_dim(
    entry: InputSpec,
    place: int,
    dim: Dim,
    size: int,
    shape: tuple[int, ...],
    sizes: Sizes,
    bound: dict[str, tuple[int, str]],
) -> None:
    if dim.kind is DimKind.FREE:
        expected, by = bound.setdefault(dim.text, (size, entry.name))
        at_least, reason = False, f", the size that input '{by}' gives it"
    else:
        expected = _size(entry, dim, sizes, {})
        at_least = _follows_tensor(dim, sizes)
        reason = _reason(dim, sizes)
    if size == expected or (at_least and size > expected):
        return
    wanted = f"at least {expected}" if at_least else str(expected)
    raise MaskInputError(
        f"input '{entry.name}' has shape {_shape(shape)}; the spec declares {_declared(entry)}, "
        f"so dim {place} ('{dim.text}') should be {wanted}{reason}"
    )


def _follows_tensor(dim: Dim, sizes: Sizes) -> bool:
    """Whether an offset that is a tensor decides the size of a dim."""
    if dim.kind is DimKind.SEQ:
        return sizes.q_offset is None or sizes.k_offset is None
    return dim.extent is not None and any(
        isinstance(e, Offset) and sizes.offset(e.side) is None for e in walk(dim.extent)
    )


def _reason(dim: Dim, sizes: Sizes) -> str:
    match dim.kind:
        case DimKind.SEQ:
            return ", the length of the shared line of queries and keys"
        case DimKind.EXTENT:
            assert dim.extent is not None
            return _because(dim.extent, sizes)
        case _:
            return ""


def _declared(entry: InputSpec) -> str:
    return f"{entry.type.value}[{', '.join(d.text for d in entry.dims)}]"


def _shape(shape: Sequence[int]) -> str:
    return f"({', '.join(map(str, shape))})"


# ---- what a caller gives


def _check_counts(
    q_len: int, k_len: int, batch: int, heads: int, kv_heads: int, q_offset: int | None, k_offset: int | None
) -> None:
    counts = {"q_len": q_len, "k_len": k_len, "batch": batch, "heads": heads, "kv_heads": kv_heads}
    offsets = {"q_offset": q_offset, "k_offset": k_offset}
    for name, value in (counts | {n: o for n, o in offsets.items() if o is not None}).items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise MaskInputError(f"{name} is {value!r}; expected an int >= 0")
        if value > _POSITION_LIMIT:
            raise MaskInputError(f"{name} is {value}; expected at most {_POSITION_LIMIT}")
    if heads != kv_heads and (kv_heads == 0 or heads % kv_heads != 0):
        raise MaskInputError(f"{heads} query heads and {kv_heads} KV heads; expected a multiple of the KV heads")


def _check_names(spec: MaskSpec, given: Mapping[str, object]) -> None:
    known = [*spec.axes, *(p.name for p in spec.parameters)]
    for name in given:
        if name in known:
            continue
        hint = did_you_mean(str(name), known) or _known_names(spec)
        raise MaskInputError(f"mask '{spec.name}' has no parameter or axis '{name}'; {hint}")


def _known_names(spec: MaskSpec) -> str:
    names = [*(p.name for p in spec.parameters), *spec.axes]
    return f"it has {', '.join(names)}" if names else "it has none"


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


def _axes(spec: MaskSpec, sizes: Sizes, given: Mapping[str, object]) -> tuple[tuple[str, int], ...]:
    """Sizes of the axes in order; one that is not given follows from the length."""
    known = {a: _axis(spec, a, given[a]) for a in spec.axes if a in given}
    missing = [a for a in spec.axes if a not in known]
    length = line_length(sizes)
    product = math.prod(known.values())
    if len(missing) > 1:
        raise MaskInputError(
            f"mask '{spec.name}' has the axes {', '.join(spec.axes)}; give the sizes of all but one, for example "
            f"{', '.join(f'{a}=...' for a in missing[1:])}"
        )
    if missing:
        known[missing[0]] = _inferred(spec, missing[0], sizes, product)
    elif spec.axes and product < length:
        grid = " x ".join(f"{a}={known[a]}" for a in spec.axes)
        raise MaskInputError(f"the grid {grid} has {product} places; queries and keys need {length}")
    return tuple((a, known[a]) for a in spec.axes)


def _axis(spec: MaskSpec, name: str, value: object) -> int:
    size = _converted(value, Type.INT)
    if size is None or not 1 <= size <= _POSITION_LIMIT:
        raise MaskInputError(f"axis '{name}' of mask '{spec.name}' is {value!r}; expected an int >= 1")
    return int(size)


def _inferred(spec: MaskSpec, axis: str, sizes: Sizes, product: int) -> int:
    if sizes.q_offset is None or sizes.k_offset is None:
        raise MaskInputError(f"give {axis}=...: the size of an axis cannot be inferred where an offset is a tensor")
    length = line_length(sizes)
    if length % product:
        others = " x ".join(f"{a}" for a in spec.axes if a != axis)
        raise MaskInputError(
            f"axis '{axis}' of mask '{spec.name}' is not given, "
            f"and the length {length} is no multiple of {others} = {product}"
        )
    return length // product


# ---- what must hold


def _check_preconditions(spec: MaskSpec, sizes: Sizes) -> None:
    empty = line_length(sizes) == 0
    for claim in spec.claims:
        if claim.over_pairs or (empty and any(isinstance(e, AxisSize | Length) for e in walk(claim.expr))):
            continue
        if not _value(claim.expr, sizes):
            text = str(claim.expr) if claim.span is None else " ".join(claim.span.text.split()).removeprefix("claim ")
            raise MaskInputError(
                f"mask '{spec.name}' claims '{text}', which does not hold{_because(claim.expr, sizes)}"
            )


def _check_divisors(spec: MaskSpec, sizes: Sizes) -> None:
    extents = [d.extent for i in spec.inputs for d in i.dims if d.extent is not None]
    belows = [i.below for i in spec.inputs if i.below is not None]
    checked: set[Expr] = set()
    for expr in (*spec.clauses, spec.score, *(c.expr for c in spec.claims), *extents, *belows):
        for division in _divisions(expr, sizes):
            if division.right in checked:
                continue
            checked.add(division.right)
            if not _value(division.right, sizes):
                shown = str(division) if division.span is None else " ".join(division.span.text.split())
                raise MaskInputError(
                    f"mask '{spec.name}' divides by zero in '{shown}'{_because(division.right, sizes)}"
                )


def _divisions(expr: Expr, sizes: Sizes) -> Iterator[Binary]:
    """Divisions by something that the call alone decides, but for those in branches that it never takes."""
    match expr:
        case Select() if _is_scalar(expr.condition):
            yield from _divisions(expr.condition, sizes)
            yield from _divisions(expr.then if _value(expr.condition, sizes) else expr.otherwise, sizes)
            return
        case Binary(op=BinaryOp.AND | BinaryOp.OR) if _is_scalar(expr.left):
            yield from _divisions(expr.left, sizes)
            if bool(_value(expr.left, sizes)) == (expr.op is BinaryOp.AND):
                yield from _divisions(expr.right, sizes)
            return
        case Binary() if expr.op in _DIVISIONS and _is_scalar(expr.right):
            yield expr
        case _:
            pass
    for child in children(expr):
        yield from _divisions(child, sizes)


def _is_scalar(expr: Expr) -> bool:
    """Whether sizes and parameters alone decide an expression."""
    return not any(isinstance(e, Position | Coordinate | Offset | Index | Read | Score) for e in walk(expr))


def _value(expr: Expr, sizes: Sizes) -> Scalar:
    """The value of an expression of sizes and parameters; offsets that are tensors count as 0."""
    known = replace(sizes, q_offset=sizes.q_offset or 0, k_offset=sizes.k_offset or 0)
    none = np.zeros((), np.int64)
    value: Scalar = np.asarray(evaluate(expr, Pairs(np, known, {}, none, none, none, none))).item()
    return value


def _because(expr: Expr, sizes: Sizes) -> str:
    """The values that an expression reads: ` (window=0, x.size=7)`."""
    values: dict[str, object] = {}
    for node in walk(expr):
        match node:
            case Parameter():
                values[node.name] = sizes.parameter[node.name]
            case AxisSize():
                values[f"{node.axis}.size"] = sizes.axis[node.axis]
            case Length():
                values[f"{node.side.value}_len"] = sizes.length(node.side)
            case Offset() if sizes.offset(node.side) not in (None, 0):
                values[f"{node.side.value}_offset"] = sizes.offset(node.side)
            case _:
                pass
    return f" ({', '.join(f'{name}={value}' for name, value in values.items())})" if values else ""
