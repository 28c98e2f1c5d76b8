"""Block plans of calls, made on the host and kept for the next call.

Where the kept pairs do not depend on data a plan is known by its sizes and tile. Where they do, it is kept together
with a copy of the tensors that it was made from and serves again only for equal contents: never by their address, which
may be used again.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskc import plan as planning
from maskc.plan import BlockPlan
from maskc.runtime.inputs import Call
from maskc.spec import Expr, Read, walk

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
    """A plan and what an engine derived from it. notes: by name; masks: of its batches of tiles."""

    plan: BlockPlan
    given: Mapping[str, NDArray[Any]]
    masks: Masks
    notes: dict[Hashable, Any] = field(default_factory=dict)

    def serves(self, call: Call) -> bool:
        """Whether the tensors from which the plan was made hold what those of the call hold."""
        return self.plan.spec is call.spec and all(_equal(x, call.inputs[name]) for name, x in self.given.items())


_plans: OrderedDict[Hashable, HostPlan] = OrderedDict()


def plan_of(call: Call, tile: tuple[int, int]) -> HostPlan:
    """The plan of a call on the host."""
    # By identity of the spec, whose hash would walk all of it; the entry keeps the spec alive.
    key = (id(call.spec), call.sizes, tile)
    found = _plans.get(key)
    if found is None or not found.serves(call):
        found = _plans[key] = _made(call, tile)
        if len(_plans) > _PLANS:
            _plans.popitem(last=False)
    _plans.move_to_end(key)
    return found


def _made(call: Call, tile: tuple[int, int]) -> HostPlan:
    spec, sizes = call.spec, call.sizes
    read = _read(spec.predicate) | (call.inputs.keys() & {"q_offset", "k_offset"})
    in_scores = _read(spec.score)
    small = {name for name in in_scores if call.inputs[name].numel() <= _COMPARED}
    given = {name: _on_host(call.inputs[name]) for name in sorted(read | small)}
    plan = planning.build(spec, sizes, tile, given)
    return HostPlan(plan, given, Masks(keeps=in_scores <= read | small))


def _read(expr: Expr) -> set[str]:
    return {node.input for node in walk(expr) if isinstance(node, Read)}


def _on_host(x: Tensor) -> NDArray[Any]:
    """A copy as an array; 16-bit floats that numpy lacks as float32."""
    x = x.detach().cpu()
    return np.array((x.float() if x.dtype is torch.bfloat16 else x).numpy())


def _equal(known: NDArray[Any], x: Tensor) -> bool:
    return known.shape == tuple(x.shape) and np.array_equal(known, _on_host(x), equal_nan=known.dtype.kind == "f")
