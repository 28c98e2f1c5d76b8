"""Tables: their entries and rows, tables that the spec holds itself, and prefix sums.

In: a table, the indices written so far and typed operands. Out: nodes of `maskc.spec`. A rule that is broken is raised
as `OperandError`.

A subscript says by where it stands whether it is an entry or a row. Leading dims `batch` and `head` or `kv_head` need
not be written; they are filled in with those of the pair.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from maskc.checker import typed
from maskc.checker.typed import OperandError
from maskc.diagnostics import Span
from maskc.expr import (
    AxisSize,
    Binary,
    BinaryOp,
    Bucket,
    Cast,
    Count,
    Dot,
    Expr,
    Index,
    Literal,
    Member,
    Read,
    Row,
    Scalar,
    Select,
    Type,
    Unary,
    UnaryOp,
    Vector,
)
from maskc.spec import Dim, DimKind, InputSpec, PrefixSum, Values

DIMS_LIMIT = 4
COUNTS = (DimKind.BATCH, DimKind.HEAD, DimKind.KV_HEAD)

At = Callable[[Dim, Expr], Expr]
"""The index along a dim for an index as it is written."""


def leading(table: InputSpec) -> tuple[Dim, ...]:
    """The dims that reading fills in."""
    count = 0
    while count < len(table.dims) and table.dims[count].kind in COUNTS:
        count += 1
    return table.dims[:count]


def entry(table: InputSpec, written: Sequence[Expr], at: At, span: Span | None) -> Expr:
    """One entry of a table."""
    missing = len(table.dims) - len(written)
    if missing > len(leading(table)):
        raise OperandError(*_too_few(table, written, span))
    return Read(table.type, table.name, _filled(table, written, missing, at, span), span=span)


def row(table: InputSpec, written: Sequence[Expr], at: At, span: Span | None) -> Row:
    """A table with its last dim open and every other one given.

    Of an index too many it is not plain whether it is one of a leading dim, as in `route[head, q]`, or makes an entry,
    as in `route[q, 0]`. It is the former where it reads `batch`, `head` or `kv_head`.
    """
    name, filled = label(table), leading(table)
    if len(filled) == len(table.dims):
        message = f"{name} has one entry per {filled[-1].text}" if filled else f"{name} is a number"
        raise OperandError(f"{message}, not a row", span)
    missing = len(table.dims) - 1 - len(written)
    if missing > len(filled):
        needed = len(table.dims) - 1 - len(filled)
        raise OperandError(
            f"a row of {name} with dims [{_dims(table)}] needs {_indices(needed)}; {len(written)} given",
            span,
            _example(table, table.dims[len(filled) : -1]),
        )
    if -1 <= missing < len(filled):
        counted = written[: len(filled) - missing]
        if missing == -1 or not all(Index in index.kinds for index in counted):
            hint = _example(table, table.dims[len(filled) : -1], "a row is")
            raise OperandError(f"this is an entry of {name}, not a row", span, hint)
    return Row(table.name, _filled(table, written, missing, at, span))


def _filled(table: InputSpec, written: Sequence[Expr], missing: int, at: At, span: Span | None) -> tuple[Expr, ...]:
    """All indices, those that are not written in front."""
    if missing < 0:
        message = f"{label(table)} has dims [{_dims(table)}]; {_indices(len(written))} are too many"
        raise OperandError(message if table.dims else f"{label(table)} is one number and has no entries", span)
    indices: list[Expr] = [Index(Type.INT, Count(d.kind.value), span=span) for d in leading(table)[:missing]]
    for dim, index in zip(table.dims[missing:], written, strict=False):
        indices.append(at(dim, typed.cast(index, Type.INT)))
    return tuple(indices)


def checked_index(index: Expr) -> Expr:
    """An index as it may be written: an int or a boolean."""
    if index.type is Type.FLOAT:
        raise OperandError("an index is an int; this is a float", index.span, "write 'floor(...)'")
    return index


def out_of_range(table: InputSpec, written: Sequence[Expr]) -> OperandError | None:
    """What is to be said about an index that is plainly never in range."""
    for dim, index in zip(reversed(table.dims), reversed(written), strict=False):
        if not isinstance(index, Literal):
            continue
        size = dim.extent.value if isinstance(dim.extent, Literal) else None
        if index.value < 0:
            last = "size - 1" if size is None else size - 1
            hint = f"indices do not count from the end; the last entry is {last}"
            return OperandError("no entry has this index, which reads as 0", index.span, hint)
        if size is not None and index.value >= size:
            hint = f"the indices of this dim are 0 to {size - 1}"
            return OperandError("no entry has this index, which reads as 0", index.span, hint)
    return None


# ---- what rows are read for


def member(item: Expr, table: InputSpec, row: Row, span: Span | None) -> Expr:
    """`item in row`."""
    if table.type is not Type.INT:
        hint = "compare with its entries: 'any(... for i in range(n))'"
        raise OperandError(f"'in' a row looks for an int; {label(table)} holds {typed.PLURALS[table.type]}", span, hint)
    if item.type is Type.FLOAT:
        raise OperandError("'in' a row looks for an int; this is a float", item.span)
    if isinstance(table.source, Values) and min(table.source.entries) < 0:
        hint = "write a tuple: (-1, 0, 1)" if len(table.dims) == 1 else "repeat an entry to fill up a row"
        raise OperandError("negative entries behind 'in' are padding and match nothing", span, hint)
    return Member(Type.BOOL, typed.cast(item, Type.INT), row, span=span)


def bucket(item: Expr, table: InputSpec, row: Row, span: Span | None) -> Expr:
    """`bucket(item, row)`."""
    if table.type is Type.BOOL:
        raise OperandError(f"'bucket' needs a row of numbers; {label(table)} holds booleans", span)
    if item.type is Type.FLOAT and table.type is Type.INT:
        raise OperandError(
            f"'bucket' in a row of ints takes an int; this is {typed.TYPE_WORDS[item.type]}",
            item.span,
            "write 'floor(...)'",
        )
    if isinstance(table.source, Values) and not table.sorted:
        raise OperandError(f"'bucket' needs ascending rows; those of {label(table)} are not", span)
    return Bucket(Type.INT, typed.cast(item, table.type), row, span=span)


def dot(left: Vector, right: Vector, lengths: Sequence[Expr | None], span: Span | None) -> Expr:
    """`dot(left, right)`. lengths: how many entries each has, None where the call decides."""
    known = [length.value for length in lengths if isinstance(length, Literal)]
    if len(set(known)) > 1:
        raise OperandError(f"'dot' needs vectors of one length; these have {known[0]} and {known[1]} entries", span)
    return Dot(Type.FLOAT, left, right, span=span)


# ---- tables that are made


def literal(shape: Sequence[int], entries: Sequence[Literal]) -> InputSpec:
    """A table without a name that the spec holds itself; its entries become one type."""
    ranks = list(Type)
    kind = ranks[max(ranks.index(e.type) for e in entries)]
    values = tuple(_as(e, kind) for e in entries)
    step = shape[-1]
    ascending = all(a <= b for i in range(0, len(values), step) for a, b in pairwise(values[i : i + step]))
    dims = tuple(Dim(DimKind.EXTENT, str(size), typed.integer(size)) for size in shape)
    return InputSpec("", kind, dims, sorted=ascending and kind is not Type.BOOL, source=Values(tuple(shape), values))


def _as(entry: Literal, kind: Type) -> Scalar:
    converted = typed.cast(entry, kind)
    assert isinstance(converted, Literal)
    return converted.value


def prefix_sums(table: InputSpec, dim: str, dim_span: Span | None, span: Span | None) -> InputSpec:
    """`cumsum(table, dim)`: a table without a name, of ints where the entries are ints or booleans."""
    if isinstance(table.source, Values):
        hint = "write its sums: [1, 4, 16] sums up to [1, 5, 21]"
        raise OperandError("the dims of a literal table have no names", span, hint)
    places = [place for place, known in enumerate(table.dims) if known.text == dim]
    if len(places) != 1:
        message = f"{label(table)} has {'more than one' if places else 'no'} dim '{dim}'"
        hint = f"its dims are [{_dims(table)}]" if table.dims else "it is one number"
        raise OperandError(message, dim_span, hint)
    kind = Type.FLOAT if table.type is Type.FLOAT else Type.INT
    ascending = table.type is Type.BOOL and places[0] == len(table.dims) - 1
    return InputSpec("", kind, table.dims, sorted=ascending, source=PrefixSum(table.name, places[0]))


def constant(expr: Expr) -> Literal | None:
    """What an expression of literals comes to; None where it reads anything else, or has no value."""
    try:
        value = _constant(expr)
    except (ArithmeticError, ValueError):
        return None
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return Literal(expr.type, value, span=expr.span)


_FUNCTIONS: dict[UnaryOp, Callable[[float], Scalar]] = {
    UnaryOp.ABS: abs,
    UnaryOp.FLOOR: math.floor,
    UnaryOp.CEIL: math.ceil,
    UnaryOp.ROUND: round,
    UnaryOp.EXP: math.exp,
    UnaryOp.LOG: math.log,
    UnaryOp.TANH: math.tanh,
    UnaryOp.ERF: math.erf,
    UnaryOp.SQRT: math.sqrt,
    UnaryOp.RELU: lambda x: max(x, 0.0),
    UnaryOp.SIGMOID: lambda x: 1.0 / (1.0 + math.exp(-x)),
    UnaryOp.SOFTPLUS: lambda x: max(x, 0.0) + math.log1p(math.exp(-abs(x))),
    UnaryOp.NEG: lambda x: -x,
    UnaryOp.NOT: lambda x: not x,
}


def _constant(expr: Expr) -> Scalar | None:
    match expr:
        case Literal():
            return expr.value
        case Cast():
            value = _constant(expr.operand)
            return None if value is None else (float(value) if expr.type is Type.FLOAT else int(value))
        case Unary():
            value = _constant(expr.operand)
            return None if value is None or expr.op not in _FUNCTIONS else _FUNCTIONS[expr.op](value)
        case Binary():
            left, right = _constant(expr.left), _constant(expr.right)
            if left is None or right is None:
                return None
            if expr.op is BinaryOp.POW:
                power: Scalar = math.pow(left, right)
                return power
            return typed.FOLDED[expr.op](left, right) if expr.op in typed.FOLDED else None
        case Select():
            condition = _constant(expr.condition)
            return None if condition is None else _constant(expr.then if condition else expr.otherwise)
        case _:
            return None


# ---- words about tables


def label(table: InputSpec) -> str:
    """A table in a sentence."""
    return f"'{table.name}'" if table.name else "this table"


def _too_few(table: InputSpec, written: Sequence[Expr], span: Span | None) -> tuple[str, Span | None, str | None]:
    filled = leading(table)
    needed = len(table.dims) - len(filled)
    if not written:
        message = f"{label(table)} has dims [{_dims(table)}] and needs an index"
        return message, span, _example(table, table.dims[len(filled) :])
    message = f"{label(table)} has dims [{_dims(table)}] and needs {_indices(needed)}; {len(written)} given"
    is_row = len(written) >= needed - 1
    return message, span, "a row can stand behind 'in', and in 'bucket' and 'dot'" if is_row else None


def _dims(table: InputSpec) -> str:
    return ", ".join(d.text for d in table.dims)


def _indices(count: int) -> str:
    return "1 index" if count == 1 else f"{count} indices"


def _example(table: InputSpec, dims: Sequence[Dim], words: str = "for example") -> str | None:
    """How to write indices for some dims, as a hint."""
    indices = f"[{', '.join(map(_example_index, dims))}]" if dims else ""
    return f"{words} '{table.name}{indices}'" if table.name else None


def _example_index(dim: Dim) -> str:
    match dim.kind:
        case DimKind.SEQ:
            return "q"
        case DimKind.EXTENT if isinstance(dim.extent, AxisSize):
            return f"q.{dim.text}"
        case DimKind.EXTENT if dim.text[:1] in ("q", "k"):
            return dim.text
        case _:
            return "..."
