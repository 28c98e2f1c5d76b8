"""What a spec promises about the contents of tables, checked entry by entry: `of`, `sorted`, `packed`, and rows that
`bucket` searches.

Plans and engines rely on these promises. Arrays may be of numpy or of torch; looking at the latter waits for their
device.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from maskc.diagnostics import MaskInputError
from maskc.expr import Bucket, walk
from maskc.grids import line_length
from maskc.scalars import value, written
from maskc.spec import InputSpec, MaskSpec, PrefixSum, Sizes

Array = Any
"""A numpy array or a torch tensor."""


def check(spec: MaskSpec, sizes: Sizes, tables: Mapping[str, Array]) -> None:
    """Raises MaskInputError with the first entry that breaks a promise. tables: by name, offsets that are tensors among
    them; those that are not there are not looked at.
    """
    latest = _latest(sizes, tables)
    for entry in spec.inputs:
        if entry.name not in tables:
            continue
        table = tables[entry.name]
        declared = not isinstance(entry.source, PrefixSum)
        if entry.below is not None and declared:
            _check_range(entry, table, int(value(entry.below, latest)))
        if (entry.sorted and declared) or entry.name == spec.packed:
            _check_ascending(entry, table, "is declared sorted")
        elif entry.name in _searched(spec):
            _check_ascending(entry, table, "is searched by 'bucket', which needs ascending rows")
        if entry.name == spec.packed:
            _check_starts(entry, table, line_length(spec, latest))


def _latest(sizes: Sizes, tables: Mapping[str, Array]) -> Sizes:
    """The sizes with offsets that are tensors at their largest, as bounds and lengths are meant."""
    known = {name: int(tables[name].max()) for name in ("q_offset", "k_offset") if name in tables and sizes.batch}
    return replace(
        sizes,
        q_offset=known.get("q_offset", sizes.q_offset),
        k_offset=known.get("k_offset", sizes.k_offset),
    )


def _check_range(entry: InputSpec, table: Array, below: int) -> None:
    assert entry.below is not None
    place = _first((table < -1) | (table >= below))
    if place is not None:
        raise MaskInputError(
            f"input '{entry.name}' is declared with entries of {written(entry.below)}, in [0, {below}) or -1, "
            f"but {_entry(entry, table, place)}"
        )


@lru_cache(maxsize=256)
def _searched(spec: MaskSpec) -> frozenset[str]:
    """The tables in whose rows `bucket` searches."""
    return frozenset(node.row.input for expr in spec.exprs for node in walk(expr) if isinstance(node, Bucket))


def _check_ascending(entry: InputSpec, table: Array, promise: str) -> None:
    """NaN ascends from nothing and to nothing."""
    if not table.ndim:
        return
    place = _first(~(table[..., 1:] >= table[..., :-1]))
    if place is not None:
        *outer, last = place
        before, after = table[place].item(), _entry(entry, table, (*outer, last + 1))
        raise MaskInputError(f"input '{entry.name}' {promise}, but {after} and follows {before}")


def _check_starts(entry: InputSpec, table: Array, length: int) -> None:
    """The first position of every document, of which there is at least one; none lies behind the line."""
    if table.shape[-1] == 0:
        if length > 0 and 0 not in table.shape[:-1]:
            raise MaskInputError(f"input '{entry.name}' holds where documents begin, but there are none; expected a 0")
        return
    place = _first(table[..., :1] != 0)
    if place is not None:
        raise MaskInputError(
            f"input '{entry.name}' holds where documents begin, the first at 0, but {_entry(entry, table, place)}"
        )
    place = _first(table > length)
    if place is not None:
        raise MaskInputError(
            f"input '{entry.name}' holds where documents begin, none behind the line's {length} tokens, "
            f"but {_entry(entry, table, place)}"
        )


def _first(found: Array) -> tuple[int, ...] | None:
    """The first place at which a bool array holds."""
    if 0 in found.shape or not bool(found.any()):
        return None
    return tuple(map(int, np.unravel_index(int((found.reshape(-1) * 1).argmax()), tuple(found.shape))))


def _entry(entry: InputSpec, table: Array, place: tuple[int, ...]) -> str:
    return f"{entry.name}[{', '.join(map(str, place))}] is {table[place].item()}"
