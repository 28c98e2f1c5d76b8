"""What `gpu_tests.py` judges: masks, dtypes and head dims, sizes, and the looks at a mask beyond plain calls."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, assert_never

import numpy as np
import torch
from gpu_machine import ROOT, one_line

from maskc import features, prologue, samples
from maskc.check import check, read_source
from maskc.diagnostics import MaskInputError
from maskc.expr import Side
from maskc.grammar.parser import recover
from maskc.grids import grid_length
from maskc.runtime import layouts, verify
from maskc.runtime.verify import Case, Problem
from maskc.sizes import parameters
from maskc.spec import MaskSpec

Look = Literal["odd layouts", "decoding", "plans", "graph", "lengths", "far", "parts"]

DTYPES = ("bfloat16", "float16")
DIMS = ((64, 64), (16, 16), (128, 128), (32, 32), (192, 128), (72, 72), (40, 40), (8, 8), (256, 256), (80, 80))
"""(D_qk, D_v). Five places on from a power of two stands one that is none, and the other way round."""
IN_BOTH = (0, 2)
"""Places of the head dims at which the masks of examples/ run in both dtypes."""
GROUPS = ((6, 2), (7, 1), (4, 4))
"""Query heads and KV heads."""
TINY_DIMS, TINY_GROUP = (24, 16), (2, 1)

LOOKS: tuple[tuple[Look, ...], ...] = (
    ("odd layouts",),
    ("decoding",),
    ("plans",),
    ("graph", "lengths"),
    ("far", "parts"),
)
"""What the units of a mask look at beyond plain calls: two units, one per dtype, take each line."""
ONLY: dict[Look, tuple[str, ...]] = {"far": ("causal", "documents"), "parts": ("alibi", "documents")}
"""The masks of the looks that are not for every mask of examples/."""

ALIGNED = ("plain", "fused", "bnhd", "one-row", "one-head")
UNALIGNED = tuple(layout for layout in layouts.ODD if layout not in ALIGNED)
"""Layouts that take the variant of the kernels for rows that begin anywhere."""

LENGTHS = (1, 65, 257)
LONG = 390  # tokens of the longest case; three tiles of 128 and a rest
LONG_GRID = (19, 23)
RAGGED, RAGGED_GRID = 257, (13, 17)
FAR_ROWS = 66
OTHER_LENGTHS = range(3, 390, 20)


@dataclass(frozen=True)
class Grouped(Case):
    """A case in groups of heads. row_offsets: an offset for every batch row, in the place of the one of the case."""

    row_offsets: tuple[int, ...] = ()

    @property
    def heads(self) -> tuple[int, int, int]:
        """Batch rows, query heads and KV heads."""
        assert self.grouped is not None
        return (len(self.row_offsets) or (1 if max(self.q_len, self.k_len) >= LONG else 2), *self.grouped)

    def __str__(self) -> str:
        return super().__str__() + (f", rows from {list(self.row_offsets)}" if self.row_offsets else "")


@dataclass(frozen=True)
class Options:
    """What every process has to know."""

    device: str
    engine: str
    tiny: bool


@dataclass(frozen=True)
class Unit:
    """What one process does in one go: a mask of a file, at one pair of head dims in one dtype.

    dims: (D_qk, D_v). group: query heads and KV heads. looks: at what, beyond plain calls.
    """

    path: str
    mask: str
    dtype: str
    dims: tuple[int, int]
    group: tuple[int, int] = GROUPS[0]
    looks: tuple[Look, ...] = ()

    def __str__(self) -> str:
        dims = f"{self.dims[0]}" if self.dims[0] == self.dims[1] else f"{self.dims[0]}/{self.dims[1]}"
        return f"{Path(self.path).stem}:{self.mask} {self.dtype} D={dims}"


# Units.


def masks(engine: str) -> Iterator[tuple[Path, MaskSpec]]:
    """Every mask of the examples and the gallery that an engine and kernels run, with its file."""
    for path in (*sorted(ROOT.glob("examples/*.mask")), *sorted(ROOT.glob("examples/gallery/*.mask"))):
        for spec in check(recover(read_source(path))[0]):
            if features.refusal(spec, "triton") is None and features.refusal(spec, engine) is None:
                yield path, spec


def units(options: Options, only: Sequence[str], every: bool) -> list[Unit]:
    """All units; those that come first look at every mask once."""
    rounds: list[list[Unit]] = [[] for _ in range(2 * len(DIMS))]
    for number, (path, spec) in enumerate(masks(options.engine)):
        if only and not {path.stem, spec.name} & set(only):
            continue
        is_example = path.parent.name == "examples"
        if options.tiny:
            looks = tuple(look for line in LOOKS for look in line) if is_example else ()
            pairs = [("float16" if options.engine == "interpret" else DTYPES[number % 2], TINY_DIMS)]
        else:
            looks, pairs = (), _pairs(number, is_example=is_example, every=every)
        for turn, (dtype, dims) in enumerate(pairs):
            own = looks or (LOOKS[turn // 2] if is_example and turn // 2 < len(LOOKS) else ())
            chosen = tuple(look for look in own if spec.name in ONLY.get(look, (spec.name,)))
            group = TINY_GROUP if options.tiny else GROUPS[(number + turn) % len(GROUPS)]
            rounds[turn].append(Unit(str(path), spec.name, dtype, dims, group, chosen))
    return [unit for turn in rounds for unit in turn]


def _pairs(number: int, *, is_example: bool, every: bool) -> list[tuple[str, tuple[int, int]]]:
    """Dtypes and head dims of the units of a mask. Two that follow each other have one dtype each; which head dims a
    mask has in which dtype changes from mask to mask.
    """

    def pair(place: int, other: int = 0) -> tuple[str, tuple[int, int]]:
        return DTYPES[(place + number + other) % 2], DIMS[place]

    count = len(DIMS)
    places = [(number + 5 * (turn % 2) + turn // 2) % count for turn in range(count)]
    if every:
        return [pair(place, other) for other in (0, 1) for place in places]
    if is_example:
        return [*(pair(place) for place in places), *(pair(place, 1) for place in IN_BOTH)]
    return [pair(place) for place in places[:2]]


# Cases.


def cases(spec: MaskSpec, unit: Unit, *, tiny: bool) -> list[Grouped]:
    """Sizes of the plain calls, the longest one last; aligned layouts in turn."""
    wanted = {(n, n) for n in LENGTHS} | {(q, k) for q, k, _ in verify.RECTANGLES}
    small = _small(spec)
    found = [c for c in verify.cases(spec, {}) if set(small) <= set(c.given)]
    if not spec.axis_names:
        found = [c for c in found if (c.q_len, c.k_len) in wanted] + [Case(LONG, LONG)]
    elif len(spec.axis_names) == 2 and not spec.parameters:
        found += _on_grid(spec, LONG_GRID)
    found = sorted(found, key=lambda c: c.q_len * c.k_len)[: 5 if tiny else None]
    return [
        Grouped(c.q_len, c.k_len, c.q_offset, c.given, unit.group, ALIGNED[number % len(ALIGNED)])
        for number, c in enumerate(found)
    ]


def look_cases(spec: MaskSpec, unit: Unit, look: Look, *, tiny: bool) -> list[Grouped]:
    """Sizes of the calls of a look; none where it is not for such masks."""
    match look:
        case "odd layouts":
            return [replace(case, layout=layout) for layout in UNALIGNED for case in _ragged(spec, unit, tiny=tiny)]
        case "plans" | "parts" | "graph":
            return _ragged(spec, unit, tiny=tiny)
        case "decoding":
            return [] if spec.axis_names else _decoding(spec, unit, tiny=tiny)
        case "lengths":
            return _other_lengths(spec, unit)
        case "far":
            return [] if spec.axis_names else [Grouped(FAR_ROWS, FAR_ROWS, None, _small(spec), unit.group)]
        case _:
            assert_never(look)


def _ragged(spec: MaskSpec, unit: Unit, *, tiny: bool) -> list[Grouped]:
    """One size that is no multiple of a tile."""
    if spec.axis_names:
        grid = _on_grid(spec, (5, 9) if tiny else RAGGED_GRID)
        return [Grouped(c.q_len, c.k_len, None, c.given, unit.group) for c in grid]
    length = 45 if tiny else RAGGED
    return [Grouped(length, length, None, _small(spec), unit.group)]


def _decoding(spec: MaskSpec, unit: Unit, *, tiny: bool) -> list[Grouped]:
    """A rectangle, and few queries against many keys, with an offset for every batch row."""

    def rows(q_len: int, k_len: int, first: int, second: int) -> Grouped:
        return Grouped(q_len, k_len, first, _small(spec), unit.group, row_offsets=(first, second))

    rectangle = rows(19, 50, 31, 12) if tiny else rows(63, 130, 67, 31)
    keys = (70,) if tiny else (257, 1030)
    return [rectangle, *(rows(q, k, k - q, k - q - 7) for k in keys for q in (1, 4))]


def _other_lengths(spec: MaskSpec, unit: Unit) -> list[Grouped]:
    """Twenty lengths that no plain call has; grids in which every clause drops pairs, since smaller ones may leave one
    out, and have a variant for that.
    """
    found = [Case(n, n, None, _small(spec)) for n in OTHER_LENGTHS]
    if spec.axis_names:
        found = [case for n in OTHER_LENGTHS for case in _on_grid(spec, (9 + n % 13, 9 + n // 40))]
    return [Grouped(c.q_len, c.k_len, None, c.given, unit.group) for c in found]


def _small(spec: MaskSpec) -> tuple[tuple[str, bool | int | float], ...]:
    """Parameter values that bite at these lengths."""
    return tuple(verify.parameter_sets(spec, {})[-1].items())


def _on_grid(spec: MaskSpec, extents: tuple[int, int]) -> list[Case]:
    """A grid of two axes, where both sides of the mask have both; else nothing."""
    axes = verify.axis_sets(spec)
    if not axes or len(axes[0]) != 2:
        return []
    sizes, small = dict(zip(axes[0], extents, strict=True)), _small(spec)
    q_len, k_len = (grid_length(spec, side, sizes, parameters(spec, dict(small))) for side in Side)
    return [] if q_len is None or k_len is None else [Case(q_len, k_len, None, (*sizes.items(), *small))]


def accepted(spec: MaskSpec, found: Sequence[Grouped], dim: int) -> tuple[list[Grouped], list[tuple[Grouped, str]]]:
    """The cases whose sizes the spec takes, and the others with its reason."""
    taken: list[Grouped] = []
    refused: list[tuple[Grouped, str]] = []
    for case in found:
        try:
            case.sizes(spec, dim)
            taken.append(case)
        except MaskInputError as error:
            refused.append((case, one_line(error)))
    return taken, refused


def problem_of(spec: MaskSpec, case: Grouped, dims: tuple[int, int], seed: int = 0) -> Problem:
    """The tensors of a case, in float32 on the CPU."""
    sizes = case.sizes(spec, dims[0])
    drawn = samples.draw(spec, sizes, np.random.default_rng([dims[0], seed]))
    bound = prologue.bind(spec, drawn)
    tables = prologue.complete(bound, drawn)
    found = verify.random_problem(bound, sizes, tables, dims[0], case.q_len + 1000 * seed, dims[1])
    if not case.row_offsets:
        return found
    return replace(found, given={**found.given, "q_offset": torch.tensor(case.row_offsets)})
