"""Block plans of calls, made on the host and kept for the next call.

Where the kept pairs do not depend on data a plan is known by its sizes and tile. Where they do, it is kept together
with a copy of the tensors that it was made from and serves again only for equal contents: never by their address, which
may be used again.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from threading import Lock
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskc.analysis import plan as planning
from maskc.analysis import runs as walks
from maskc.analysis.bounds import Analysis, constant_tables, reads_data
from maskc.analysis.plan import BlockPlan, Part
from maskc.analysis.runs import TileRuns, Walk, runs_on_device, split
from maskc.evaluate import tables_read
from maskc.expr import Expr
from maskc.runtime.inputs import Call

_PLANS = 32  # host plans that are kept
_MASK_BYTES = 1 << 23  # of masks that are kept with each
_COMPARED = 1 << 16  # entries of an input that is compared to find out whether masks can be used again


class Masks:
    """Masks that were made for a plan; kept while there is room, and only where they follow from what the plan
    knows.
    """

    def __init__(self, *, keeps: bool) -> None:
        self._room = _MASK_BYTES if keeps else 0
        self._known: dict[Hashable, tuple[Tensor, Tensor | None]] = {}

    def get(self, key: Hashable, make: Callable[[], tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor | None]:
        """The mask of a key and its empty rows."""
        if key in self._known:
            return self._known[key]
        found = make()
        size = sum(x.numel() * x.element_size() for x in found if x is not None)
        if size <= self._room:
            self._room -= size
            self._known[key] = found
        return found


@dataclass(frozen=True, eq=False)
class HostPlan:
    """A plan and what an engine derived from it. given: copies of the tensors that it was made from. notes: by name;
    masks: of its batches of tiles.
    """

    plan: BlockPlan
    given: Mapping[str, NDArray[Any]]
    masks: Masks
    notes: dict[Hashable, Any] = field(default_factory=dict)

    def serves(self, call: Call) -> bool:
        """Whether the tensors from which the plan was made hold what those of the call hold."""
        return self.plan.spec is call.spec and all(_equal(x, call.inputs[name]) for name, x in self.given.items())


_plans: OrderedDict[Hashable, HostPlan] = OrderedDict()
_lock = Lock()


def plan_of(call: Call, tile: tuple[int, int]) -> HostPlan:
    """The plan of a call on the host."""
    # By identity of the spec, whose hash would walk all of it; the entry keeps the spec alive.
    key = (id(call.spec), call.sizes, tile)
    with _lock:
        found = _plans.get(key)
    if found is None or not found.serves(call):
        found = _made(call, tile)
    with _lock:
        _plans[key] = found
        _plans.move_to_end(key)
        if len(_plans) > _PLANS:
            _plans.popitem(last=False)
    return found


class Runs(NamedTuple):
    """The runs of live tiles of every row of tiles, as `runs.TileRuns` has them: int32 tensors."""

    first: Tensor
    tiles: Tensor
    start: Tensor
    stop: Tensor

    def table(self) -> tuple[Tensor, Tensor, Tensor]:
        """As kernels load them: start in the low half of an int64, stop in the high one."""
        return self.first, self.tiles, torch.stack((self.start, self.stop), 1).view(torch.int64).squeeze(1)


class Listing(NamedTuple):
    """The live tiles of every row of tiles one by one: int32 tensors.

    first, tiles: [maps, rows], where a row's begin in numbers, and how many they are. numbers: [tiles + 2], the tiles,
    and 0 behind the last one, because kernels read two entries ahead.
    """

    first: Tensor
    tiles: Tensor
    numbers: Tensor

    def table(self) -> tuple[Tensor, Tensor, Tensor]:
        """As kernels load them."""
        return self.first, self.tiles, self.numbers


@dataclass(frozen=True, eq=False)
class WalkTables:
    """A `runs.Walk` as tensors; the tiles of indexed ones are listed, since their rows are packed or few.

    maps: (batch rows, heads) that have runs of their own, 1 where all share them. tiles: of the owned side. splits: how
    many rows of runs each of them has.
    """

    full: Runs | Listing
    partial: Runs | Listing
    owned: Tensor | None
    walked: Tensor | None
    maps: tuple[int, int]
    tiles: int
    splits: int

    @cached_property
    def walk(self) -> tuple[Any, ...]:
        """What the functions of a kernel file take for a walk: the fields, as a plain tuple of plain tuples."""
        full, partial = (tiles.table() for tiles in (self.full, self.partial))
        return full, partial, self.owned, self.walked, self.maps, self.tiles, self.splits


@dataclass(frozen=True, eq=False)
class PartTables:
    """A part of a plan. predicate: what decides a pair inside a partial tile."""

    predicate: Expr
    open_clauses: tuple[int, ...]
    by_query: WalkTables
    by_key: WalkTables


@dataclass(frozen=True, eq=False)
class Tables:
    """A plan as tensors on the device of the call.

    tile: (queries, keys). maps: (batch rows, heads) that have runs of their own, 1 where all share them.
    """

    tile: tuple[int, int]
    maps: tuple[int, int]
    parts: tuple[PartTables, ...]


def build(call: Call, tile: tuple[int, int], splits: int = 1) -> Tables:
    """The tables of a call. Uploaded once where the plan is made on the host; else made on the device at every call.

    splits: the keys of every query tile are shared out to that many rows of runs; those of key tiles stay whole.
    """
    device = call.q.device
    if device.type != "cpu" and reads_data(call.spec, call.sizes):
        return _on_device(call, tile, splits)
    return _of_host(plan_of(call, tile), device, splits)


def of_plan(plan: BlockPlan, device: torch.device, splits: int = 1) -> Tables:
    """The tables of any plan, made anew."""
    return _of_host(HostPlan(plan, {}, Masks(keeps=False)), device, splits)


def _of_host(host: HostPlan, device: torch.device, splits: int) -> Tables:
    key = ("tables", device, splits)
    if key not in host.notes:
        plan = host.plan
        if splits == 1:
            parts = tuple(_uploaded(part, plan.maps, device) for part in plan.parts)
        else:
            whole = _of_host(host, device, 1).parts
            parts = tuple(_cut(part, uncut, splits) for part, uncut in zip(plan.parts, whole, strict=True))
        host.notes[key] = Tables(plan.tile, plan.maps, parts)
    found: Tables = host.notes[key]
    return found


def _uploaded(part: Part, maps: tuple[int, int], device: torch.device) -> PartTables:
    by_query, by_key = (_walk(walk, maps, 1, _upload(device)) for walk in (part.by_query, part.by_key))
    return PartTables(part.predicate, part.open_clauses, by_query, by_key)


def _cut(part: Part, uncut: PartTables, splits: int) -> PartTables:
    """The tables of a part with the rows of its queries cut; all else is shared with the uncut ones."""
    known = uncut.by_query
    upload = _upload(known.full.first.device)
    full, partial = (
        _tiles(runs, upload, listed=known.owned is not None) for _, runs in split(part.by_query, splits).kinds
    )
    return replace(uncut, by_query=replace(known, full=full, partial=partial, splits=splits))


def _on_device(call: Call, tile: tuple[int, int], splits: int) -> Tables:
    spec, sizes = call.spec, call.sizes
    analysis = Analysis(spec.predicate, sizes, call.inputs, xp=torch, device=call.q.device)
    found = runs_on_device(analysis.every(tile), sizes, tile, torch, splits)
    by_query, by_key = (
        _walk(walk, analysis.maps, s, lambda x: cast(Tensor, x)) for walk, s in zip(found, (splits, 1), strict=True)
    )
    part = PartTables(spec.predicate, tuple(range(len(spec.clauses))), by_query, by_key)
    return Tables(tile, analysis.maps, (part,))


def _upload(device: torch.device) -> Callable[[Any], Tensor]:
    return lambda x: torch.from_numpy(x).to(device)


def _walk(walk: Walk, maps: tuple[int, int], splits: int, put: Callable[[Any], Tensor]) -> WalkTables:
    """The tables of a walk that has `splits` rows for every tile. put: makes a tensor of an array."""
    full, partial = (_tiles(runs, put, listed=walk.owned is not None) for _, runs in walk.kinds)
    owned, walked = (None if x is None else put(x) for x in (walk.owned, walk.walked))
    return WalkTables(full, partial, owned, walked, maps, walk.full.first.shape[1] // splits, splits)


def _tiles(runs: TileRuns, put: Callable[[Any], Tensor], *, listed: bool) -> Runs | Listing:
    """The tables of one kind of tiles; those that are listed lie on the host."""
    if not listed:
        return Runs(put(runs.first), put(runs.tiles), put(runs.start), put(runs.stop))
    counts = runs.tiles.reshape(-1).astype(np.int64)
    first = (np.cumsum(counts) - counts).astype(np.int32).reshape(runs.tiles.shape)
    _, _, numbers = walks.listed(runs)
    return Listing(put(first), put(runs.tiles), put(np.append(numbers.astype(np.int32), np.zeros(2, np.int32))))


def _made(call: Call, tile: tuple[int, int]) -> HostPlan:
    spec, sizes = call.spec, call.sizes
    fixed = constant_tables(spec)
    read = tables_read(spec.predicate) | (call.inputs.keys() & {"q_offset", "k_offset"})
    in_scores = tables_read(spec.score) - fixed
    small = {name for name in in_scores if call.inputs[name].numel() <= _COMPARED}
    given = {name: _on_host(call.inputs[name]) for name in sorted(read | small)}
    plan = planning.build(spec, sizes, tile, given)
    compared = {name: table for name, table in given.items() if name not in fixed}
    return HostPlan(plan, compared, Masks(keeps=in_scores <= read | small))


def _on_host(x: Tensor) -> NDArray[Any]:
    """A copy as an array; 16-bit floats that numpy lacks as float32."""
    x = x.detach().cpu()
    return np.array((x.float() if x.dtype is torch.bfloat16 else x).numpy())


def _equal(known: NDArray[Any], x: Tensor) -> bool:
    return known.shape == tuple(x.shape) and np.array_equal(known, _on_host(x), equal_nan=known.dtype.kind == "f")
