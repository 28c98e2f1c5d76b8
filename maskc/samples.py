"""Random inputs of the right kind for a spec, drawn from what it says about them: type, dims, `of`, `sorted` and
`packed`, and whether a value is read where only positive numbers make sense.

They stand in for real inputs where only the shape of the problem matters: the command line, `maskc verify`, tests.
"""

from collections.abc import Mapping
from dataclasses import replace
from math import isqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskc.expr import Binary, BinaryOp, Bucket, Cast, Expr, Read, Row, Select, Type, Unary, UnaryOp, walk
from maskc.grids import line_length
from maskc.scalars import value
from maskc.shapes import dots, free_sizes, input_shape
from maskc.spec import DimKind, InputSpec, MaskSpec, PrefixSum, Sizes

Array = NDArray[Any]

FREE_EXTENT = 4  # of a dim that only a tensor would fix
PADDING = 1 / 8  # share of entries that are -1 where `of` allows it


def free_extents(
    spec: MaskSpec, shapes: Mapping[str, tuple[int, ...]] | None = None, width: int = FREE_EXTENT
) -> dict[str, int]:
    """Sizes for all dims that are bare names: those that shapes of some inputs fix, the `width` of q and k for rows of
    which an inner product is taken, and 4 for the rest.
    """
    names = {dim.text: FREE_EXTENT for i in spec.inputs for dim in i.dims if dim.kind is DimKind.FREE}
    rows = {vector.input for dot in dots(spec) for vector in (dot.left, dot.right) if isinstance(vector, Row)}
    widths = {spec.input(name).dims[-1].text: width for name in rows}
    return names | {name: size for name, size in widths.items() if name in names} | free_sizes(spec, shapes or {})


def draw(spec: MaskSpec, sizes: Sizes, generator: np.random.Generator) -> dict[str, Array]:
    """One array per input that a call or a compilation gives: bool, int64 or float32, of the shape that the call's
    sizes ask for. Dims that are bare names have 4 entries where `sizes` has no size for them.

    Ids that have no range lie in a small one, so that they repeat; sorted ids ascend with repeats, as the numbers of
    packed documents do; starts of documents begin at 0. Floats are normal, or lie in [0, 1) where a power, a root or
    a mass is made of them.
    """
    sizes = replace(sizes, free=tuple({**free_extents(spec), **sizes.free_size}.items()))
    return {i.name: draw_input(spec, sizes, i, generator) for i in spec.given}


def draw_input(spec: MaskSpec, sizes: Sizes, wanted: InputSpec, generator: np.random.Generator) -> Array:
    """One input; see `draw`."""
    shape = input_shape(spec, sizes, wanted.name)
    if wanted.name == spec.packed:
        return draw_starts(shape, line_length(spec, sizes), generator)
    match wanted.type:
        case Type.BOOL:
            return generator.random(shape) < 0.5
        case Type.INT:
            entries: Array = draw_ids(shape, id_bound(wanted, sizes, shape), generator, padded=wanted.below is not None)
        case Type.FLOAT:
            positive = wanted.name in _positive(spec)
            entries = (generator.random(shape) if positive else generator.standard_normal(shape)).astype(np.float32)
    return np.sort(entries, axis=-1) if wanted.sorted or wanted.name in _bucketed(spec) else entries


def draw_ids(shape: tuple[int, ...], bound: int, generator: np.random.Generator, *, padded: bool) -> NDArray[np.int64]:
    """Integers in [0, bound), some of them -1 where they are `padded`; all -1 where the range is empty."""
    if bound <= 0:
        return np.full(shape, -1 if padded else 0, np.int64)
    ids = generator.integers(0, bound, shape)
    return np.where(generator.random(shape) < PADDING, -1, ids) if padded else ids


def draw_starts(shape: tuple[int, ...], length: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Where packed documents begin: ascending from 0; where two are equal, one document is empty."""
    starts = np.sort(generator.integers(0, max(1, length), shape), axis=-1)
    starts[..., :1] = 0
    return starts


def id_bound(wanted: InputSpec, sizes: Sizes, shape: tuple[int, ...]) -> int:
    """What the entries of an integer input lie below: `of`, or for entries along tokens the root of their number."""
    if wanted.below is not None:
        return int(value(wanted.below, sizes))
    along_tokens = any(dim.kind in (DimKind.SEQ, DimKind.EXTENT) for dim in wanted.dims)
    return max(2, isqrt(max(shape)) if along_tokens and shape else max(sizes.q_len, sizes.k_len) // 2)


def _positive(spec: MaskSpec) -> set[str]:
    """Floats of which a power, a logarithm, a root or a mass is made: negative ones would only give NaN."""
    found = _tables(spec.mass)
    for node in (node for expr in spec.exprs for node in walk(expr)):
        match node:
            case Binary(op=BinaryOp.POW, type=Type.FLOAT):
                found |= _tables(node.left)
            case Unary(op=UnaryOp.LOG | UnaryOp.SQRT):
                found |= _tables(node.operand)
            case _:
                pass
    sums = {i.name: i.source.table for i in spec.inputs if isinstance(i.source, PrefixSum)}
    return found | {sums[name] for name in found if name in sums}


def _tables(expr: Expr) -> set[str]:
    """The tables of which an expression is made by arithmetic."""
    match expr:
        case Read():
            return {expr.input}
        case Binary(type=Type.FLOAT):
            return _tables(expr.left) | _tables(expr.right)
        case Unary(type=Type.FLOAT) | Cast():
            return _tables(expr.operand)
        case Select():
            return _tables(expr.then) | _tables(expr.otherwise)
        case _:
            return set()


def _bucketed(spec: MaskSpec) -> set[str]:
    """Tables whose rows must ascend, whether or not they say so."""
    return {node.row.input for expr in spec.exprs for node in walk(expr) if isinstance(node, Bucket)}
