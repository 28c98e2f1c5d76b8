"""What is made before any pair is looked at: tables that the spec itself holds, constants, and prefix sums.

`complete` adds them to the inputs that a call gives, so that every reading of a spec finds all its tables by name.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskc.diagnostics import MaskInputError
from maskc.expr import Bucket, Expr, Member, Read, Type, walk
from maskc.shapes import declaration
from maskc.spec import InputSpec, MaskSpec, PrefixSum, Values

Array = NDArray[Any]

BLOCK = 64
"""Entries that are summed one by one; the sums of whole blocks are summed apart, so that errors do not pile up."""

_DTYPES = {Type.BOOL: np.bool_, Type.INT: np.int64, Type.FLOAT: np.float64}


def complete(spec: MaskSpec, given: Mapping[str, Array]) -> dict[str, Array]:
    """All tables of a call by name: those given, and those that are made from the spec or from these.

    Sums are int64 or float64. A sum of a table that was not given is left out.
    """
    tables = {**given, **held(spec)}
    for entry in spec.inputs:
        match entry.source:
            case PrefixSum(table=table, dim=dim) if table in tables:
                tables[entry.name] = prefix_sum(tables[table], dim)
            case _:
                pass
    return tables


def needed(spec: MaskSpec, exprs: Iterable[Expr]) -> set[str]:
    """The inputs that have to be given for some expressions: those that they read, and those that sums are made of."""
    nodes = [node for expr in exprs for node in walk(expr)]
    names = {node.input for node in nodes if isinstance(node, Read)}
    names |= {node.row.input for node in nodes if isinstance(node, Member | Bucket)}
    sums = {i.name: i.source.table for i in spec.inputs if isinstance(i.source, PrefixSum)}
    while made := names & sums.keys():
        names = names - made | {sums[name] for name in made}
    return names & {i.name for i in spec.given}


def held(spec: MaskSpec) -> dict[str, Array]:
    """The tables that the spec itself holds."""
    return {i.name: values_of(i) for i in spec.inputs if isinstance(i.source, Values)}


@lru_cache(maxsize=256)
def values_of(entry: InputSpec) -> Array:
    """The contents of a table that the spec holds; not to be written to."""
    assert isinstance(entry.source, Values)
    array: Array = np.array(entry.source.entries, _DTYPES[entry.type]).reshape(entry.source.shape)
    array.flags.writeable = False
    return array


def prefix_sum(table: Array, dim: int) -> Array:
    """Inclusive sums along a dim: int64 for bools and integers, else float64."""
    exact = table.astype(np.float64 if table.dtype.kind == "f" else np.int64)
    lines = np.moveaxis(exact, dim, -1)
    *outer, length = lines.shape
    blocks = -(-length // BLOCK)
    padded = np.pad(lines, [(0, 0)] * len(outer) + [(0, blocks * BLOCK - length)])
    within = np.cumsum(padded.reshape(*outer, blocks, BLOCK), axis=-1)
    bases = np.zeros_like(within[..., :1])
    bases[..., 1:, :] = np.cumsum(within[..., :-1, -1:], axis=-2)
    return np.moveaxis((bases + within).reshape(padded.shape)[..., :length], -1, dim)


def constants(spec: MaskSpec) -> tuple[InputSpec, ...]:
    """The inputs that have to be given before a call, when the spec is compiled."""
    return tuple(i for i in spec.given if i.constant)


def bind(spec: MaskSpec, contents: Mapping[str, Array]) -> MaskSpec:
    """The spec with the contents of its constant inputs written in. contents: by name, all of `constants`.

    Raises MaskInputError for one that is missing or does not have the type and the number of dims that the spec says;
    the sizes of its dims are checked at the call, which knows them.
    """
    return replace(spec, inputs=tuple(_bound(spec, entry, contents) for entry in spec.inputs))


def _bound(spec: MaskSpec, entry: InputSpec, contents: Mapping[str, Array]) -> InputSpec:
    if not entry.constant or entry.source is not None:
        return entry
    if entry.name not in contents:
        raise MaskInputError(
            f"input '{entry.name}' of mask '{spec.name}' is constant, {declaration(entry)}; "
            f"give {entry.name}=... to compile_attention"
        )
    array = contents[entry.name]
    kinds = {Type.BOOL: "b", Type.INT: "iu", Type.FLOAT: "f"}
    if array.dtype.kind not in kinds[entry.type] or array.ndim != len(entry.dims):
        raise MaskInputError(
            f"input '{entry.name}' is {array.dtype} with {array.ndim} dims; the spec declares {declaration(entry)}"
        )
    return replace(entry, source=Values(array.shape, tuple(array.reshape(-1).tolist())))
