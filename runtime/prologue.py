"""What is made from the tensors of a call before any engine sees them: tables of the spec itself, prefix sums, keys in
one tensor, and the virtual keys around a grid. All of it is differentiable.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from maskc.diagnostics import MaskInputError
from maskc.grids import border_axes, border_of
from maskc.prologue import BLOCK, values_of
from maskc.spec import InputSpec, MaskSpec, PrefixSum, Sizes, Values


def complete(spec: MaskSpec, given: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """All tables of a call by name, as `maskc.prologue.complete` makes them from arrays: int64 or float64 sums."""
    tables = dict(given)
    for entry in spec.inputs:
        match entry.source:
            case Values():
                tables[entry.name] = _held(entry, device)
            case PrefixSum(table=table, dim=dim):
                tables[entry.name] = prefix_sum(tables[table], dim)
            case None:
                pass
    return tables


@lru_cache(maxsize=256)
def _held(entry: InputSpec, device: torch.device) -> Tensor:
    """A table that the spec holds, on a device; not to be written to. It outlives the mode in which it is asked for."""
    with torch.inference_mode(False):
        return torch.from_numpy(values_of(entry).copy()).to(device)


def prefix_sum(table: Tensor, dim: int) -> Tensor:
    """Inclusive sums along a dim, int64 for bools and integers, else float64; in blocks, so that errors do not pile
    up.
    """
    exact = table.to(torch.float64 if table.is_floating_point() else torch.int64)
    lines = exact.movedim(dim, -1)
    *outer, length = lines.shape
    blocks = -(-length // BLOCK)
    padded = functional.pad(lines, (0, blocks * BLOCK - length))
    within = padded.reshape(*outer, blocks, BLOCK).cumsum(-1)
    bases = functional.pad(within[..., -1].cumsum(-1), (1, 0))[..., :blocks]
    return (bases.unsqueeze(-1) + within).reshape(padded.shape)[..., :length].movedim(-1, dim)


def joined(name: str, parts: Tensor | Sequence[Tensor]) -> tuple[Tensor, list[int] | None]:
    """k or v as one tensor, and the lengths of its parts where it was a tuple of them."""
    if not isinstance(parts, tuple | list):
        return parts, None  # type: ignore[return-value]
    for place, part in enumerate(parts):
        if not isinstance(part, Tensor) or part.dim() != 4:
            what = f"{part.dim()} dims" if isinstance(part, Tensor) else f"a {type(part).__name__}"
            raise MaskInputError(f"{name}[{place}] is {what}; expected a tensor (batch, head, seq, dim)")
    first = parts[0] if parts else None
    for place, part in enumerate(parts):
        assert first is not None
        same = part.dtype == first.dtype and part.device == first.device
        if not same or part.shape[:2] != first.shape[:2] or part.shape[3] != first.shape[3]:
            raise MaskInputError(
                f"{name}[{place}] is {_described(part)} and {name}[0] is {_described(first)}; "
                "expected them to differ in length (dim 2) alone"
            )
    if first is None:
        raise MaskInputError(f"{name} is an empty {type(parts).__name__}; expected a tensor, or one per part")
    return torch.cat(list(parts), 2), [part.shape[2] for part in parts]


def bordered(spec: MaskSpec, sizes: Sizes, x: Tensor) -> Tensor:
    """k or v [batch, heads, keys, dim] with the virtual keys of a border, which are zeros."""
    if spec.border is None:
        return x
    r = border_of(spec, sizes)
    grid = [sizes.axis[a] for a in border_axes(spec)]
    padded = functional.pad(x.reshape(*x.shape[:2], *grid, x.shape[3]), (0, 0, *[r, r] * len(grid)))
    return padded.flatten(2, -2)


def inner(spec: MaskSpec, sizes: Sizes, x: Tensor) -> Tensor:
    """The real keys of a tensor [batch, heads, keys, dim] that has virtual ones, too."""
    if spec.border is None:
        return x
    r = border_of(spec, sizes)
    axes = border_axes(spec)
    grid = x.reshape(*x.shape[:2], *(sizes.axis[a] + 2 * r for a in axes), x.shape[3])
    for dim, axis in enumerate(axes, 2):
        grid = grid.narrow(dim, r, sizes.axis[axis])
    return grid.flatten(2, -2)


def _described(x: Tensor) -> str:
    return f"({', '.join(map(str, x.shape))}) {str(x.dtype).removeprefix('torch.')} on {x.device}"
