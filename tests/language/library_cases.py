"""What tests of the library share: masks made from rules that are asked for every pair, and the library's own."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskc import library, reference
from maskc.analysis.plan import build, expand
from maskc.check import check, load
from maskc.diagnostics import Source
from maskc.grammar.parser import parse
from maskc.sizes import resolve
from maskc.spec import MaskSpec

Bits = NDArray[np.bool_]
Grid = tuple[int, ...]
Rule = Callable[[int, int], bool]

REFUSED = r"claims '|divides by zero"  # divisors are looked at first
AXES = {1: ("x",), 2: ("y", "x"), 3: ("z", "y", "x")}
GRIDS = [(1, 1), (2, 5), (7, 7), (13, 17), (3, 5, 4), (1, 9, 2), (1,), (2,), (11,), (40,)]


@functools.cache
def masks() -> Mapping[str, MaskSpec]:
    return {spec.name: spec for spec in check(parse(Source("library.mask", library.text())))}


def kept(
    spec: MaskSpec, length: int, /, inputs: Mapping[str, NDArray[Any]] | None = None, heads: int = 1, **given: object
) -> Bits:
    """The mask of the first batch row, [length, length] or [heads, length, length] where heads differ.

    Its plan in small tiles has to mean the same.
    """
    batch = max((len(t) for name, t in (inputs or {}).items() if spec.input(name).dims[0].text == "batch"), default=1)
    sizes = resolve(spec, q_len=length, k_len=length, batch=batch, heads=heads, kv_heads=heads, given=given)
    found = reference.mask(spec, sizes, inputs)
    planned = expand(build(spec, sizes, (4, 8), inputs), inputs)
    np.testing.assert_array_equal(planned.reshape(found.shape), found)
    return found[0] if reference.mask_dims(spec, sizes)[0] else found


def both_ways(
    name: str, axes: tuple[str, ...], sizes: Grid, /, heads: int = 1, inputs: Any = None, **parameters: Any
) -> Bits:
    """A mask of the library with its parameters at the call, which must equal its use as a predicate with constants."""
    length = int(np.prod(sizes))
    own = masks()[name].axes
    here = dict(zip(axes, sizes, strict=True)) if axes else {}
    use = name + (f"({', '.join(f'{p}={v}' for p, v in parameters.items())})" if masks()[name].parameters else "")
    line = f"    axes {', '.join(axes)}\n" if axes else ""
    used = kept(load(f"mask user:\n{line}    keep {use}\n"), length, inputs, heads, **here)
    if tuple(own) == axes or not own:
        alone = kept(masks()[name], length, inputs, heads, **parameters, **(here if own else {}))
        np.testing.assert_array_equal(alone, used)
    return used


def coordinates(sizes: Grid) -> list[NDArray[np.int64]]:
    """Each token's coordinate along every axis of a row-major grid."""
    return [c.ravel() for c in np.meshgrid(*(np.arange(s) for s in sizes), indexing="ij")]


def pairs(length: int, rule: Rule) -> Bits:
    """[length, length]: a rule asked for every pair."""
    return np.array([[rule(i, j) for j in range(length)] for i in range(length)], bool).reshape(length, length)


def on_grid(sizes: Grid, rules: list[Rule]) -> Bits:
    """The pairs that every axis's own rule keeps."""
    found = np.ones((int(np.prod(sizes)),) * 2, bool)
    for size, rule, at in zip(sizes, rules, coordinates(sizes), strict=True):
        found &= pairs(size, rule)[np.ix_(at, at)]
    return found


def groups(numbers: NDArray[np.int64]) -> Bits:
    """Pairs of equal numbers."""
    return numbers[:, None] == numbers[None, :]


def composed(lines: str, sizes: Grid, axes: tuple[str, ...] = (), heads: int = 1) -> Bits:
    """The mask of a body on a grid or, without axes, on a line."""
    head = f"    axes {', '.join(axes)}\n" if axes else ""
    body = "".join(f"    {line}\n" for line in lines.strip().split("\n"))
    given = dict(zip(axes, sizes, strict=True)) if axes else {}
    return kept(load(f"mask m:\n{head}{body}"), int(np.prod(sizes)), heads=heads, **given)


def natten_start(index: int, length: int, kernel: int, stride: int, causal: bool) -> int:
    """Where NATTEN's reference kernel lets a window begin, in one residue class of at least `kernel` members."""
    if causal:
        leader = min(index // stride * stride + stride - 1, length - 1)
        return max(leader - kernel + 1, 0)
    left, right = kernel // 2, kernel // 2 + kernel % 2 - 1
    leader = min(index // stride * stride + stride // 2, length - 1)
    start = max(leader - left, 0)
    return start + (length - right - leader - 1) if leader + right >= length else start


def natten_rule(size: int, kernel: int, dilation: int, stride: int, causal: bool) -> Rule:
    """Which coordinates see each other along an axis. A class shorter than the window is seen as a whole."""

    def rule(q: int, k: int) -> bool:
        members = list(range(q % dilation, size, dilation))
        if k not in members:
            return False
        own, other = members.index(q), members.index(k)
        if causal:
            return natten_start(own, len(members), kernel, stride, True) <= other <= own
        if len(members) <= kernel:
            return True
        start = natten_start(own, len(members), kernel, stride, False)
        return start <= other < start + kernel

    return rule
