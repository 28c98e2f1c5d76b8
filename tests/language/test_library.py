"""The standard library against rules written by hand from the papers and from their authors' code, pair by pair."""

import functools
import inspect
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from maskc import library, reference
from maskc.check import check, diagnose, load
from maskc.diagnostics import MaskError, MaskInputError, Source
from maskc.evaluate import Pairs, evaluate
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
    """The mask of the first batch row: [length, length], or [heads, length, length] where heads differ."""
    batch = max((len(t) for name, t in (inputs or {}).items() if spec.input(name).dims[0].text == "batch"), default=1)
    sizes = resolve(spec, q_len=length, k_len=length, batch=batch, heads=heads, kv_heads=heads, given=given)
    found = reference.mask(spec, sizes, inputs)
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


# ---- the library as a whole


def test_it_checks_without_a_warning() -> None:
    assert [str(d) for d in diagnose(Source("library.mask", library.text()))] == []


def test_every_mask_and_function_has_a_test_here() -> None:
    here = inspect.getsource(inspect.getmodule(test_every_mask_and_function_has_a_test_here))  # type: ignore[arg-type]
    names = re.findall(r"^(?:mask|def) (\w+)", library.text(), re.MULTILINE)
    assert len(names) == len(set(names)) > 50
    assert [name for name in names if not re.search(rf"\b{name}\b", here)] == []


def test_only_what_is_used_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    monkeypatch.setattr(library, "parse", lambda source: read.append(source.text.split()[1]) or parse(source))
    library.scope.cache_clear()
    load("mask m:\n    keep q - k < 5\n")
    assert read == []
    load("mask m:\n    keep causal or sink(size=3)\n")
    assert read == ["causal:", "sink(size:"]
    load("mask m:\n    axes x\n    keep na1d(kernel_x=3)\n")
    assert read[2:] == ["na1d(kernel_x:", "natten(a,"]
    load("mask m:\n    keep causal\n")
    assert len(read) == 4
    with pytest.raises(MaskError, match="did you mean 'causal'"):
        load("mask m:\n    keep casual\n")
    assert len(read) == 4


def test_a_mistake_in_an_argument_is_shown_in_the_users_line() -> None:
    (found,) = diagnose(Source("a.mask", "mask m:\n    keep sliding_window(window=2.5)\n"))
    assert (found.span.source.name, found.span.text) == ("a.mask", "window=2.5")  # type: ignore[union-attr]


# ---- on a line

LINES: dict[str, list[tuple[dict[str, Any], Rule]]] = {
    "causal": [({}, lambda q, k: k in range(q + 1))],
    "sliding_window": [({"window": w}, lambda q, k, w=w: k in range(max(0, q - w + 1), q + 1)) for w in (1, 2, 7, 40)],
    "band": [({"radius": r}, lambda q, k, r=r: k in range(q - r, q + r + 1)) for r in (0, 1, 5, 60)],
    "dilated_window": [
        ({"window": w, "dilation": d}, lambda q, k, w=w, d=d: k in [q - i * d for i in range(w)])
        for w, d in ((1, 1), (3, 4), (5, 1), (2, 50))
    ],
    "sink": [({"size": n}, lambda q, k, n=n: k in range(n)) for n in (0, 1, 4, 99)],
    "prefix": [({"length": n}, lambda q, k, n=n: k in range(n) or k in range(q + 1)) for n in (0, 1, 9, 99)],
    "blocks": [
        ({"size": n}, lambda q, k, n=n: any({q, k} <= set(range(i, i + n)) for i in range(0, q + 1, n)))
        for n in (1, 3, 8, 50)
    ],
    "block_causal": [
        ({"size": n}, lambda q, k, n=n: k < min(i for i in range(n, q + n + 1, n) if i > q)) for n in (1, 4, 7, 50)
    ],
    # Child et al. 2019, section 4.3: A1 = {t, ..., i} with t = max(0, i - l), A2 = {j : (i - j) mod l = 0}.
    "strided_local": [({"stride": n}, lambda q, k, n=n: k in range(max(0, q - n), q + 1)) for n in (1, 6, 40)],
    "strided_columns": [({"stride": n}, lambda q, k, n=n: k in range(q, -1, -n)) for n in (1, 6, 40)],
    "strided": [
        ({"stride": n}, lambda q, k, n=n: k in {*range(max(0, q - n), q + 1), *range(q, -1, -n)}) for n in (1, 6, 40)
    ],
    # A1 = {j : floor(j / l) = floor(i / l)}, A2 = {j : j mod l in {t, ..., l}} with t = l - c; always j <= i.
    "fixed_local": [({"stride": n}, lambda q, k, n=n: k in range(q - q % n, q + 1)) for n in (1, 6, 40)],
    "fixed_columns": [
        ({"stride": n, "width": c}, lambda q, k, n=n, c=c: k <= q and k % n in range(n - c, n + 1))
        for n, c in ((1, 1), (6, 2), (6, 6), (40, 3))
    ],
    "fixed": [
        (
            {"stride": n, "width": c},
            lambda q, k, n=n, c=c: k <= q and (k in range(q - q % n, q + 1) or k % n in range(n - c, n + 1)),
        )
        for n, c in ((1, 1), (6, 2), (40, 3))
    ],
}


@pytest.mark.parametrize("length", [1, 2, 24, 41])
@pytest.mark.parametrize("name", LINES)
def test_on_a_line(name: str, length: int) -> None:
    for parameters, rule in LINES[name]:
        np.testing.assert_array_equal(
            both_ways(name, (), (length,), **parameters), pairs(length, rule), str(parameters)
        )


@pytest.mark.parametrize(("length", "block"), [(1, 1), (6, 2), (7, 3), (8, 8), (5, 9)])
def test_block_diffusion(length: int, block: int) -> None:
    """BD3-LM: a noised block sees itself and the clean blocks before it; clean blocks are causal among themselves."""

    def rule(q: int, k: int) -> bool:
        (q_clean, own), (k_clean, other) = ((p >= length, p % length // block) for p in (q, k))
        diagonal = own == other and q_clean == k_clean
        offset = own > other and k_clean and not q_clean
        causal = own >= other and k_clean and q_clean
        return diagonal or offset or causal

    found = both_ways("block_diffusion", (), (2 * length,), length=length, block=block)
    np.testing.assert_array_equal(found, pairs(2 * length, rule))
    with pytest.raises(MaskInputError, match="k_len <= 2"):
        kept(masks()["block_diffusion"], 2 * length + 1, length=length, block=block)


# ---- with tables


def test_documents_padding_and_global_tokens() -> None:
    doc = np.array([[0, 0, 0, 1, 3, 3, 3, 3, 7]])
    valid = np.array([[True] * 6 + [False] * 3])
    expected = pairs(9, lambda q, k: doc[0, q] == doc[0, k])
    np.testing.assert_array_equal(both_ways("documents", (), (9,), inputs={"doc": doc}), expected)
    found = both_ways("valid_keys", (), (9,), inputs={"valid": valid})
    np.testing.assert_array_equal(found, pairs(9, lambda q, k: k < 6))
    found = both_ways("global_tokens", (), (9,), inputs={"everywhere": ~valid})
    np.testing.assert_array_equal(found, pairs(9, lambda q, k: q >= 6 or k >= 6))


def test_a_prefix_for_every_row() -> None:
    prefix = np.array([0, 3, 9])
    sizes = resolve(masks()["prefix_per_row"], q_len=7, k_len=7, batch=3, given={})
    found = reference.mask(masks()["prefix_per_row"], sizes, {"prefix": prefix})
    for row, length in zip(found, prefix, strict=True):
        np.testing.assert_array_equal(row, pairs(7, lambda q, k, n=length: k < n or k <= q))
    np.testing.assert_array_equal(both_ways("prefix_per_row", (), (7,), inputs={"prefix": prefix}), found[0])


def test_lifetimes() -> None:
    """The keys that are there when each query comes, one after the other; end < k was never there."""
    rng = np.random.default_rng(0)
    end = rng.integers(-1, 14, (1, 3, 12))
    expected = np.zeros((3, 12, 12), bool)
    for head in range(3):
        cache: set[int] = set()
        for q in range(12):
            cache = {k for k in cache | {q} if end[0, head, k] >= q}
            expected[head, q, list(cache)] = True
    np.testing.assert_array_equal(both_ways("lifetimes", (), (12,), 3, {"end": end}), expected)


@pytest.mark.parametrize("clock", ["both", "first", "behind", "last"])
@pytest.mark.parametrize("seed", range(4))
def test_tree(clock: str, seed: int) -> None:
    """Ancestors by walking up; times of one clock, or numbers in preorder with the last below it or the one behind."""
    rng = np.random.default_rng(seed)
    parent = [-1, *(int(rng.integers(-1, i)) for i in range(1, 14))]
    entry, leave = np.zeros((1, 14), np.int64), np.zeros((1, 14), np.int64)
    ticks = {"both": (1, 1), "first": (1, 0), "behind": (1, 0), "last": (1, 0)}[clock]
    time = 0

    def visit(node: int) -> None:
        nonlocal time
        entry[0, node] = time
        time += ticks[0]
        for child in range(14):
            if parent[child] == node:
                visit(child)
        leave[0, node] = time - (clock == "last")
        time += ticks[1]

    for root in range(14):
        if parent[root] < 0:
            visit(root)

    def ancestors(node: int) -> set[int]:
        return set() if node < 0 else {node} | ancestors(parent[node])

    found = both_ways("tree", (), (14,), inputs={"entry": entry, "exit": leave})
    np.testing.assert_array_equal(found, pairs(14, lambda q, k: k in ancestors(q)))


def test_a_tree_of_drafts_behind_a_cache() -> None:
    """Speculative decoding: the cached tokens are a path from the root, and the drafts hang below its last token."""
    parent = {4: 3, 5: 3, 6: 4, 7: 4, 8: 5}
    entry = np.array([[0, 1, 2, 3, 4, 7, 5, 6, 8]])
    leave = np.array([[9, 9, 9, 9, 7, 9, 6, 7, 9]])
    sizes = resolve(masks()["tree"], q_len=5, k_len=9, q_offset=4, given={})
    found = reference.mask(masks()["tree"], sizes, {"entry": entry, "exit": leave})[0]
    for row, q in enumerate(range(4, 9)):
        seen, at = {q}, q
        while at > 3:
            at = parent[at]
            seen.add(at)
        assert set(np.flatnonzero(found[row]).tolist()) == seen | {0, 1, 2, 3}


# ---- neighbourhoods


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


SETTINGS = [  # kernel, dilation, stride, causal, of up to three axes
    ((3, 1, 1, False), (3, 1, 1, False), (3, 1, 1, False)),
    ((7, 1, 1, False), (2, 1, 1, False), (4, 1, 1, False)),
    ((3, 2, 1, False), (4, 3, 1, False), (2, 2, 1, False)),
    ((5, 1, 1, True), (3, 1, 1, False), (4, 2, 1, True)),
    ((1, 1, 1, False), (20, 1, 1, False), (6, 1, 1, True)),
    ((4, 1, 3, False), (5, 2, 2, False), (3, 1, 3, False)),
    ((4, 1, 4, True), (6, 1, 5, False), (2, 2, 2, True)),
    ((1, 1, 1, True), (1, 5, 1, False), (1, 3, 1, True)),
]


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize("sizes", GRIDS, ids=str)
def test_natten(sizes: Grid, setting: tuple[tuple[int, int, int, bool], ...]) -> None:
    axes = AXES[len(sizes)]
    here = setting[-len(sizes) :]
    names = ("kernel", "dilation", "stride", "causal")
    given = {f"{n}_{a}": v for a, values in zip(axes, here, strict=True) for n, v in zip(names, values, strict=True)}
    rules = [natten_rule(size, *values) for size, values in zip(sizes, here, strict=True)]
    name = {1: "na1d", 2: "na2d", 3: "na3d"}[len(sizes)]
    np.testing.assert_array_equal(both_ways(name, axes, sizes, **given), on_grid(sizes, rules))


@pytest.mark.parametrize(("radius", "dilation"), [(0, 1), (1, 1), (3, 1), (1, 2), (2, 3), (0, 4)])
@pytest.mark.parametrize("sizes", GRIDS, ids=str)
def test_neighborhoods_are_nattens_odd_windows(sizes: Grid, radius: int, dilation: int) -> None:
    name = {1: "neighborhood_1d", 2: "neighborhood", 3: "neighborhood_3d"}[len(sizes)]
    if (2 * radius + 1) * dilation > min(sizes):
        with pytest.raises(MaskInputError, match=r"claims '.*2 \* radius \+ 1"):
            both_ways(name, AXES[len(sizes)], sizes, radius=radius, dilation=dilation)
        return
    rules = [natten_rule(size, 2 * radius + 1, dilation, 1, False) for size in sizes]
    found = both_ways(name, AXES[len(sizes)], sizes, radius=radius, dilation=dilation)
    np.testing.assert_array_equal(found, on_grid(sizes, rules))
    assert set(found.sum(axis=1).tolist()) == {(2 * radius + 1) ** len(sizes)}


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize("sizes", GRIDS, ids=str)
def test_windows_cut_at_borders(sizes: Grid, setting: tuple[tuple[int, int, int, bool], ...]) -> None:
    axes = AXES[len(sizes)]
    here = [(kernel, dilation, causal) for kernel, dilation, _, causal in setting[-len(sizes) :]]

    def rule(kernel: int, dilation: int, causal: bool) -> Rule:
        before = kernel - 1 if causal else kernel // 2
        return lambda q, k: k in [q + (i - before) * dilation for i in range(kernel)]

    names = ("kernel", "dilation", "causal")
    given = {f"{n}_{a}": v for a, values in zip(axes, here, strict=True) for n, v in zip(names, values, strict=True)}
    found = both_ways(f"local_{len(sizes)}d", axes, sizes, **given)
    np.testing.assert_array_equal(found, on_grid(sizes, [rule(*values) for values in here]))
    assert found.diagonal().all()


# ---- windows and groups of a grid


def swin_groups(sizes: Grid, window: Grid, shift: Grid) -> Bits:
    """Swin's own way: roll by -shift, cut into windows, and keep apart what only the roll brought together."""
    length = int(np.prod(sizes))
    region = np.zeros(sizes, np.int64)
    number = np.zeros(sizes, np.int64)
    for axis, (size, w, s) in enumerate(zip(sizes, window, shift, strict=True)):
        places = np.arange(size)
        shape = [1] * len(sizes)
        shape[axis] = size
        parts = (places >= size - w).astype(np.int64) + ((places >= size - s) & (s > 0))
        region = region * 3 + parts.reshape(shape)
        number = number * size + (places // w).reshape(shape)
    tokens = np.roll(np.arange(length).reshape(sizes), tuple(-s for s in shift), tuple(range(len(sizes))))
    at = np.empty(length, np.int64)
    at[tokens.ravel()] = np.arange(length)
    return groups(region.ravel()[at]) & groups(number.ravel()[at])


@pytest.mark.parametrize(
    ("sizes", "window", "shift"),
    [
        ((8, 12), (4, 4), (0, 0)),
        ((8, 12), (4, 4), (2, 2)),
        ((14, 21), (7, 7), (3, 3)),
        ((6, 9), (3, 3), (1, 1)),
        ((4, 6), (2, 3), (1, 0)),
        ((12,), (4,), (1,)),
        ((4, 6, 8), (2, 3, 4), (1, 1, 2)),
        ((2, 2, 2), (2, 2, 2), (1, 1, 1)),
    ],
)
def test_shifted_windows_are_swins(sizes: Grid, window: Grid, shift: Grid) -> None:
    axes = AXES[len(sizes)]
    given = {f"window_{a}": w for a, w in zip(axes, window, strict=True)}
    given |= {f"shift_{a}": s for a, s in zip(axes, shift, strict=True)}
    expected = swin_groups(sizes, window, shift)
    np.testing.assert_array_equal(both_ways(f"same_window_{len(sizes)}d", axes, sizes, **given), expected)
    if len(sizes) == 2 and len(set(window)) == len(set(shift)) == 1:
        found = both_ways("same_window", axes, sizes, window=window[0], shift=shift[0])
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("sizes", GRIDS, ids=str)
def test_windows_of_ragged_grids_are_cut(sizes: Grid) -> None:
    """Borders between windows stand at shift, shift + window, ...; the first and last windows may be smaller."""
    axes = AXES[len(sizes)]
    for window, shift in ((4, 0), (4, 1), (3, 2), (5, 5), (50, 7)):
        cuts = [range(shift % window, size + 1, window) for size in sizes]
        rules: list[Rule] = [lambda q, k, c=c: not any(min(q, k) < cut <= max(q, k) for cut in c) for c in cuts]
        given = {f"window_{a}": window for a in axes} | {f"shift_{a}": shift for a in axes}
        found = both_ways(f"same_window_{len(sizes)}d", axes, sizes, **given)
        np.testing.assert_array_equal(found, on_grid(sizes, rules))


@pytest.mark.parametrize(("block", "halo"), [(1, 0), (2, 1), (4, 3), (3, 7), (50, 2)])
@pytest.mark.parametrize("sizes", [g for g in GRIDS if len(g) == 2], ids=str)
def test_halo_blocks(sizes: Grid, block: int, halo: int) -> None:
    """HaloNet: blocks take patches of block + 2 * halo out of the image; what lies outside it is not there."""
    height, width = sizes
    expected = np.zeros((height * width,) * 2, bool)
    number = np.arange(height * width).reshape(height, width)
    for top in range(0, height, block):
        for left in range(0, width, block):
            inside = number[top : top + block, left : left + block].ravel()
            patch = number[max(0, top - halo) : top + block + halo, max(0, left - halo) : left + block + halo].ravel()
            expected[np.ix_(inside, patch)] = True
    np.testing.assert_array_equal(both_ways("halo_blocks", ("y", "x"), sizes, block=block, halo=halo), expected)


@pytest.mark.parametrize(("sizes", "cells"), [((1, 1), 1), ((4, 6), 2), ((6, 9), 3), ((7, 7), 7), ((14, 21), 7)])
def test_grid_groups(sizes: Grid, cells: int) -> None:
    """MaxViT's grid partition: (G, H / G, G, W / G), attention over the two axes of length G."""
    height, width = sizes
    places = np.arange(height * width).reshape(cells, height // cells, cells, width // cells)
    number = np.empty(height * width, np.int64)
    for group, members in enumerate(places.transpose(1, 3, 0, 2).reshape(-1, cells * cells)):
        number[members] = group
    np.testing.assert_array_equal(both_ways("grid_groups", ("y", "x"), sizes, cells=cells), groups(number))


def test_grid_groups_that_do_not_divide_the_grid() -> None:
    for (y, x), cells in (((6, 9), 2), ((4, 4), 8), ((4, 4), 0)):
        with pytest.raises(MaskInputError, match=REFUSED):
            kept(masks()["grid_groups"], y * x, y=y, x=x, cells=cells)


@pytest.mark.parametrize("sizes", [g for g in GRIDS if len(g) == 2], ids=str)
def test_rows_columns_and_stripes(sizes: Grid) -> None:
    y, x = coordinates(sizes)
    axes = ("y", "x")
    np.testing.assert_array_equal(both_ways("same_row", axes, sizes), groups(y))
    np.testing.assert_array_equal(both_ways("same_column", axes, sizes), groups(x))
    np.testing.assert_array_equal(both_ways("axial", axes, sizes), groups(y) | groups(x))
    for width in (1, 3, 30):
        rows = on_grid(sizes, [lambda q, k, w=width: k in range(q - q % w, q - q % w + w), lambda q, k: True])
        columns = on_grid(sizes, [lambda q, k: True, lambda q, k, w=width: k in range(q - q % w, q - q % w + w)])
        np.testing.assert_array_equal(both_ways("row_stripes", axes, sizes, width=width), rows)
        np.testing.assert_array_equal(both_ways("column_stripes", axes, sizes, width=width), columns)
        for heads, first in ((4, 2), (5, 3), (1, 1)):
            found = np.broadcast_to(both_ways("stripes", axes, sizes, heads, width=width), (heads, *rows.shape))
            for head in range(heads):
                np.testing.assert_array_equal(found[head], rows if head < first else columns)


def test_frames() -> None:
    sizes, axes = (3, 2, 4), ("t", "y", "x")
    t, y, x = coordinates(sizes)
    np.testing.assert_array_equal(both_ways("same_frame", axes, sizes), groups(t))
    np.testing.assert_array_equal(both_ways("causal_frames", axes, sizes), t[:, None] >= t[None, :])
    np.testing.assert_array_equal(both_ways("same_place", axes, sizes), groups(y) & groups(x))
    np.testing.assert_array_equal(both_ways("block_causal", axes, sizes, size=8), t[:, None] >= t[None, :])


# ---- relative positions and their biases


def scores(
    text: str, sizes: Grid, heads: int = 1, inputs: Mapping[str, NDArray[Any]] | None = None, above: str = ""
) -> NDArray[np.float64]:
    """What `score = text` gives: [heads, length, length]. above: further lines of the mask."""
    axes = AXES[len(sizes)]
    spec = load(f"mask m:\n    axes {', '.join(axes)}\n{above}    score = {text}\n")
    length = int(np.prod(sizes))
    call = resolve(
        spec, q_len=length, k_len=length, heads=heads, kv_heads=heads, given=dict(zip(axes, sizes, strict=True))
    )
    head, q, k = np.ogrid[:heads, :length, :length]
    found = evaluate(spec.score, Pairs(np, call, inputs or {}, np.zeros((), np.int64), head, q, k))
    return np.broadcast_to(np.asarray(found, np.float64), (heads, length, length))


DISTANCE = np.subtract.outer(np.arange(40), np.arange(40))  # q - k


def test_relative_positions() -> None:
    table = np.arange(79)
    np.testing.assert_array_equal(table[scores("relative(q, k, 40)", (40,))[0].astype(int)], DISTANCE + 39)
    expected = [[max(-7, min(7, d)) + 7 for d in row] for row in DISTANCE.tolist()]
    np.testing.assert_array_equal(scores("clipped_relative(q, k, 7)", (40,))[0], expected)


@pytest.mark.parametrize("window", [(1, 1), (2, 3), (7, 7), (3, 1), (2, 3, 4), (1, 2, 2)])
def test_swins_table(window: Grid) -> None:
    """The index as Swin and Video Swin build it: differences moved to begin at 0, each times the sizes behind it."""
    offsets = np.stack([np.subtract.outer(c, c) for c in coordinates(window)], axis=-1)
    for axis, size in enumerate(window):
        offsets[..., axis] += size - 1
    for axis in range(len(window) - 1):
        offsets[..., axis] *= math.prod(2 * size - 1 for size in window[axis + 1 :])
    expected = offsets.sum(-1)
    axes = AXES[len(window)]
    name = {2: "swin_relative", 3: "swin_relative_3d"}[len(window)]
    differences = ", ".join(f"q.{a} - k.{a}" for a in axes)
    found = scores(f"{name}({differences}, {', '.join(map(str, window))})", window)[0]
    np.testing.assert_array_equal(found, expected)
    assert len(np.unique(found)) == math.prod(2 * size - 1 for size in window)


@pytest.mark.parametrize(("size", "kernel", "dilation"), [(9, 3, 1), (9, 9, 1), (17, 5, 2), (20, 3, 4), (7, 1, 3)])
def test_nattens_table(size: int, kernel: int, dilation: int) -> None:
    """Entry `first + i` belongs to the i-th key of a window, and `first` is what NATTEN finds for its query."""
    found = scores(f"natten_relative(q.x, k.x, {kernel}, {dilation})", (size,))[0]
    half = kernel // 2
    for q in range(size):
        members = list(range(q % dilation, size, dilation))
        start = natten_start(members.index(q), len(members), kernel, 1, False)
        if q < half * dilation:
            first = kernel - 1 - q // dilation
        elif q + half * dilation >= size:
            first = (size - q - 1) // dilation
        else:
            first = half
        assert [int(found[q, members[start + i]]) for i in range(kernel)] == [first + i for i in range(kernel)]


def alibi_slopes(heads: int) -> list[float]:
    """The slopes by the recursion of the paper's code."""
    if heads & (heads - 1) == 0:
        ratio = 2.0 ** -(2.0 ** -(math.log2(heads) - 3))
        return [ratio * ratio**i for i in range(heads)]
    below = 2 ** math.floor(math.log2(heads))
    return alibi_slopes(below) + alibi_slopes(2 * below)[0::2][: heads - below]


@pytest.mark.parametrize("heads", [*range(1, 34), 48, 63, 64, 65, 71, 96, 112, 127, 128, 129])
def test_alibi(heads: int) -> None:
    found = scores("-alibi_slope(head, heads) * (q - k)", (3,), heads)
    expected = -np.multiply.outer(alibi_slopes(heads), np.subtract.outer(np.arange(3), np.arange(3)))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def t5_buckets(relative: torch.Tensor, bidirectional: bool, buckets: int, distance: int) -> torch.Tensor:
    """T5's formula in float32, as the published models were trained with it."""
    first = torch.zeros_like(relative)
    if bidirectional:
        buckets //= 2
        first = (relative > 0).long() * buckets
        steps = relative.abs()
    else:
        steps = -torch.minimum(relative, torch.zeros_like(relative))
    exact = buckets // 2
    far = torch.log(steps.float() / exact) / math.log(distance / exact) * (buckets - exact)
    far = torch.minimum(exact + far.long(), torch.full_like(steps, buckets - 1))
    return first + torch.where(steps < exact, steps, far)


T5 = [
    (32, 128),
    (32, 256),
    (64, 128),
    (16, 128),
    (32, 64),
    (32, 512),
    (128, 512),
    (32, 20),
    (12, 100),
    (10, 37),
    (4, 9),
]


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "distance"), T5)
def test_t5(buckets: int, distance: int, bidirectional: bool) -> None:
    relative = np.arange(-700, 701)
    name = "t5_bucket" if bidirectional else "t5_bucket_causal"
    spec = load(f"mask m:\n    input d: int[q]\n    score = {name}(d[q], {buckets}, {distance})\n")
    sizes = resolve(spec, q_len=1401, k_len=1401, given={})
    zero = np.zeros((), np.int64)
    found = evaluate(spec.score, Pairs(np, sizes, {"d": relative}, zero, zero, np.arange(1401), zero))
    expected = t5_buckets(torch.from_numpy(relative), bidirectional, buckets, distance)
    np.testing.assert_array_equal(found, expected.numpy())


@pytest.mark.parametrize(("buckets", "distance"), T5)
def test_t5_borders_between_buckets_are_exact(buckets: int, distance: int) -> None:
    """Bucket exact + j holds the distances with (d / exact) ** (buckets - exact) >= (distance / exact) ** j."""
    exact = buckets // 2
    if distance <= exact:
        pytest.skip("a range of distances that the exact buckets cover")
    found = scores(f"t5_bucket_causal(k - q, {buckets}, {distance})", (600,))[0][:, 0]
    powers = buckets - exact
    for d in range(exact, 600):
        j = sum(d**powers * exact**i >= distance**i * exact**powers for i in range(1, powers))
        assert found[d] == exact + j


def test_kerple() -> None:
    """Both kernels with numbers of their own for every head, and their slopes at distance 0."""
    above = "    input r1: float[head]\n    input r2: float[head]\n"
    r1, r2 = np.array([0.5, 2.0, 1e-3]), np.array([0.25, 1.0, 2.0])
    d = abs(DISTANCE)
    given = {"r1": r1, "r2": r2}
    found = scores("kerple_log(q - k, r1, r2)", (40,), 3, given, above)
    np.testing.assert_allclose(found, -r1[:, None, None] * np.log1p(r2[:, None, None] * d), rtol=1e-12)
    found = scores("kerple_power(q - k, r1, r2)", (40,), 3, given, above)
    np.testing.assert_allclose(found, -r1[:, None, None] * d ** r2[:, None, None], rtol=1e-12)


def test_cosine() -> None:
    x = np.concatenate([np.linspace(-20, 20, 997), [0.0, np.pi, -np.pi, np.pi / 2, 1e4, -12345.678, 1e6]])
    spec = load("mask m:\n    input x: float[q]\n    score = cosine(x[q])\n")
    sizes = resolve(spec, q_len=len(x), k_len=len(x), given={})
    zero = np.zeros((), np.int64)
    found = evaluate(spec.score, Pairs(np, sizes, {"x": x}, zero, zero, np.arange(len(x)), zero))
    np.testing.assert_allclose(found, np.cos(x), atol=1e-9)
    np.testing.assert_allclose(found[abs(x) < 100], np.cos(x[abs(x) < 100]), atol=1e-13)


@pytest.mark.parametrize(("dims", "heads"), [(128, 12), (8, 1), (2, 3)])
def test_sandwich(dims: int, heads: int) -> None:
    """Products of sinusoidal embeddings, each head's over its compression ratio, as in the paper's listing."""
    frequency = 1e4 ** (-2 * np.arange(dims // 2) / dims)
    angle = np.arange(40)[:, None] * frequency
    embedding = np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)
    ratio = np.arange(1, heads + 1) * 8 / heads
    found = scores(f"sandwich(q - k, {dims}, head, heads)", (40,), heads)
    np.testing.assert_allclose(found, embedding @ embedding.T / ratio[:, None, None], atol=1e-12)


def test_retention() -> None:
    """RetNet: gamma = 1 - 2 ** (-5 - arange(heads)), D[n, m] = gamma ** (n - m)."""
    gamma = 1 - 2 ** (-5 - np.arange(6, dtype=np.float64))
    found = scores("retention_decay(head) ** abs(q - k)", (40,), 6)
    np.testing.assert_allclose(found, gamma[:, None, None] ** abs(DISTANCE), rtol=1e-12)


def test_paths() -> None:
    """What lies between two tokens, added up step by step."""
    rng = np.random.default_rng(0)
    step = rng.standard_normal(40)
    found = scores("path(sums, q, k)", (40,), 1, {"sums": step.cumsum()}, "    input sums: float[seq]\n")[0]
    for q, k in [(0, 0), (5, 5), (9, 2), (39, 0), (30, 29)]:
        assert math.isclose(found[q, k], sum(step[k + 1 : q + 1].tolist()), abs_tol=1e-12)
    np.testing.assert_allclose(found, -found.T)


def test_polyline_paths() -> None:
    """PPMA: from the query along its row to the key's column, then along that column."""
    rng = np.random.default_rng(0)
    across, down = -rng.random((5, 7)), -rng.random((5, 7))
    above = "    input rows: float[y, x]\n    input columns: float[y, x]\n"
    sums = {"rows": across.cumsum(1), "columns": down.cumsum(0)}
    found = scores("-polyline(rows, columns, q, k)", (5, 7), 1, sums, above)[0]
    y, x = coordinates((5, 7))
    for q in range(35):
        for k in range(35):
            row = range(min(x[q], x[k]) + 1, max(x[q], x[k]) + 1)
            column = range(min(y[q], y[k]) + 1, max(y[q], y[k]) + 1)
            walked = sum(across[y[q], i] for i in row) + sum(down[i, x[k]] for i in column)
            assert math.isclose(found[q, k], walked, abs_tol=1e-12)


# ---- by composition


def composed(lines: str, sizes: Grid, axes: tuple[str, ...] = (), heads: int = 1) -> Bits:
    head = f"    axes {', '.join(axes)}\n" if axes else ""
    body = "".join(f"    {line}\n" for line in lines.strip().split("\n"))
    given = dict(zip(axes, sizes, strict=True)) if axes else {}
    return kept(load(f"mask m:\n{head}{body}"), int(np.prod(sizes)), heads=heads, **given)


def test_algebra_of_masks() -> None:
    found = composed("keep causal and not sliding_window(4) or sink(size=2) and k <= q", (30,))
    np.testing.assert_array_equal(found, pairs(30, lambda q, k: (k <= q and q - k >= 4) or (k < 2 and k <= q)))
    found = composed("keep strided(stride=5) if head == 0 else fixed(stride=5, width=1)", (30,), heads=2)
    np.testing.assert_array_equal(found[0], composed("keep strided(stride=5)", (30,)))
    np.testing.assert_array_equal(found[1], composed("keep fixed(stride=5, width=1)", (30,)))


def test_at_other_coordinates() -> None:
    found = composed("keep q % 2 == k % 2 and sliding_window(window=3, q=q // 2, k=k // 2)", (30,))
    np.testing.assert_array_equal(found, pairs(30, lambda q, k: k in (q, q - 2, q - 4)))
    found = composed("keep blocks(size=4, q=q + 2, k=k + 2)", (30,))
    np.testing.assert_array_equal(found, pairs(30, lambda q, k: (q + 2) // 4 == (k + 2) // 4))
    t = coordinates((3, 2, 4))[0]
    found = composed("keep causal(q=q.t, k=k.t)", (3, 2, 4), ("t", "y", "x"))
    np.testing.assert_array_equal(found, t[:, None] >= t[None, :])
    found = composed("keep halo_blocks(block=2, halo=1, q=k, k=q)", (3, 5), ("y", "x"))
    np.testing.assert_array_equal(found, composed("keep halo_blocks(block=2, halo=1)", (3, 5), ("y", "x")).T)


def test_on_some_of_the_axes() -> None:
    sizes, axes = (3, 4, 5), ("t", "y", "x")
    t, y, x = coordinates(sizes)
    found = composed("keep na2d(kernel_y=2, kernel_x=3) and causal_frames", sizes, axes)
    near_y, near_x = (pairs(n, natten_rule(n, w, 1, 1, False)) for n, w in ((4, 2), (5, 3)))
    np.testing.assert_array_equal(found, near_y[np.ix_(y, y)] & near_x[np.ix_(x, x)] & (t[:, None] >= t[None, :]))
    found = composed("keep same_row or local_1d(kernel_x=2)", sizes, axes)
    np.testing.assert_array_equal(found, groups(y) | pairs(5, lambda q, k: k in (q - 1, q))[np.ix_(x, x)])


def test_the_rules_of_one_axis_fit_any_axis() -> None:
    sizes, axes = (6, 5, 4), ("t", "u", "w")
    lines = (
        "keep natten(q.t, k.t, t.size, 3, 1, 1, True) and clipped(q.u, k.u, 3, 1, False)\n"
        "keep window_of(q.w, 3, 1) == window_of(k.w, 3, 1)"
    )
    rules: list[Rule] = [
        lambda q, k: k in (q - 2, q - 1, q),
        lambda q, k: abs(q - k) <= 1,
        lambda q, k: (q == 0) == (k == 0),
    ]
    np.testing.assert_array_equal(composed(lines, sizes, axes), on_grid(sizes, rules))
    found = composed("keep near(q.u, k.u, u.size, 1, 2) and in_halo(q.w, k.w, 2, 1)", sizes, axes)
    rules = [
        lambda q, k: True,
        natten_rule(5, 3, 2, 1, False),
        lambda q, k: k in range(q // 2 * 2 - 1, q // 2 * 2 + 3),
    ]
    np.testing.assert_array_equal(found, on_grid(sizes, rules))


def test_an_axis_that_is_missing_is_named() -> None:
    with pytest.raises(MaskError, match="'na2d' has the axes y, x; this mask has no axis 'y'"):
        load("mask m:\n    axes t, x\n    keep na2d(kernel_y=3, kernel_x=3)\n")


PARTS = "axes cls: 1, patch: (y, x), text: t"


def of_parts() -> list[tuple[str, int, int, int]]:
    """(part, y, x, t) of every token of 1 + 3 * 4 + 5; -1 for what a token does not have."""
    patches = [("patch", y, x, -1) for y in range(3) for x in range(4)]
    return [("cls", -1, -1, -1), *patches, *(("text", -1, -1, t) for t in range(5))]


def test_under_parts_with_guards() -> None:
    """Patches see their window, text its past and all patches, the class token everything."""
    lines = """
    let both = q in patch and k in patch
    keep q in cls or (same_window(window=2) if both else k not in cls and q in text and (k in patch or causal))
    """
    spec = load(f"mask m:\n    {PARTS}\n{lines}\n")
    tokens = of_parts()

    def rule(q: int, k: int) -> bool:
        (own, qy, qx, qt), (other, ky, kx, kt) = tokens[q], tokens[k]
        if own == "cls":
            return True
        if own == "patch":
            return other == "patch" and (qy // 2, qx // 2) == (ky // 2, kx // 2)
        return other == "patch" or (other == "text" and kt <= qt)

    np.testing.assert_array_equal(kept(spec, 18, y=3, x=4, t=5), pairs(18, rule))


@pytest.mark.parametrize("use", ["neighborhood(radius=1)", "na2d(kernel_y=2, kernel_x=3)", "axial", "stripes(width=2)"])
def test_masks_of_a_grid_need_a_guard_under_parts(use: str) -> None:
    found = diagnose(Source("a.mask", f"mask m:\n    {PARTS}\n    keep {use}\n"))
    assert "'q' may lie in 'cls' or 'text', where it has no 'y'" in {d.message for d in found}
    assert {d.span.source.name for d in found if d.span is not None} == {"a.mask"}
    spec = load(f"mask m:\n    {PARTS}\n    keep q in patch and k in patch\n    keep {use}\n")
    inner = composed(f"keep {use}", (3, 4), ("y", "x"), 2)
    expected = np.zeros((*inner.shape[:-2], 18, 18), bool)
    expected[..., 1:13, 1:13] = inner
    np.testing.assert_array_equal(kept(spec, 18, heads=2, y=3, x=4, t=5), expected)


def test_inside_packed_documents() -> None:
    """Windows, blocks and lines count from the beginning of every document, the empty one too."""
    text = "    input start: int[docs] of seq sorted\n    packed start\n"
    ends = [0, 4, 4, 9, 15]
    document = np.searchsorted(ends, np.arange(15), side="right") - 1
    local = np.arange(15) - np.array(ends)[document]
    for use, rule in {
        "sliding_window(window=3)": lambda q, k: k in (q, q - 1, q - 2),
        "blocks(size=2)": lambda q, k: k in (q // 2 * 2, q // 2 * 2 + 1),
        "strided_columns(stride=2)": lambda q, k: k in range(q, -1, -2),
    }.items():
        spec = load(f"mask m:\n{text}    keep {use}\n")
        sizes = resolve(spec, q_len=15, k_len=15, given={}, free={"docs": 4})
        found = reference.mask(spec, sizes, {"start": np.array(ends[:4])})
        expected = groups(document) & pairs(15, rule)[np.ix_(local, local)]
        np.testing.assert_array_equal(found, expected, use)


def test_with_a_border_of_zeros() -> None:
    """HaloNet as published: patches of one size everywhere, with zero keys beyond the image."""
    spec = load("mask m:\n    axes y, x border 2\n    keep halo_blocks(block=3, halo=2)\n")
    sizes = resolve(spec, q_len=54, k_len=54, given={"y": 6, "x": 9})
    found = reference.mask(spec, sizes)
    assert found.shape == (54, 10 * 13)
    assert set(found.sum(axis=1).tolist()) == {49}
    number = np.arange(130).reshape(10, 13)
    np.testing.assert_array_equal(np.flatnonzero(found[0]), number[:7, :7].ravel())
    np.testing.assert_array_equal(np.flatnonzero(found[53]), number[3:, 6:].ravel())


def test_between_queries_and_keys_of_their_own() -> None:
    """Queries on a grid that is coarser than that of the keys, and a query that belongs to no place."""
    text = "mask m:\n    queries pool: 1, patch: (y, x)\n    keys patch: (y, x)\n"
    spec = load(f"{text}    keep q in pool or same_row\n")
    sizes = resolve(spec, q_len=13, k_len=12, given={"y": 3, "x": 4})
    expected = np.vstack([np.ones((1, 12), bool), groups(coordinates((3, 4))[0])])
    np.testing.assert_array_equal(reference.mask(spec, sizes), expected)


def test_inputs_come_along() -> None:
    spec = load("mask m:\n    keep documents and causal\n    keep lifetimes or sink(size=1)\n")
    assert [table.name for table in spec.inputs] == ["doc", "end"]
    assert spec.input("doc").sorted


# ---- preconditions

WRONG = {
    "sliding_window": {"window": 0},
    "band": {"radius": -1},
    "dilated_window": {"window": 4, "dilation": 0},
    "sink": {"size": -1},
    "prefix": {"length": -1},
    "blocks": {"size": 0},
    "block_causal": {"size": 0},
    "block_diffusion": {"length": 6, "block": 0},
    "strided_local": {"stride": 0},
    "strided_columns": {"stride": 0},
    "strided": {"stride": 0},
    "fixed_local": {"stride": 0},
    "fixed_columns": {"stride": 4, "width": 5},
    "fixed": {"stride": 4, "width": 0},
    "neighborhood_1d": {"radius": -1},
    "neighborhood": {"dilation": 0},
    "neighborhood_3d": {"radius": 1},
    "na1d": {"kernel_x": 0},
    "na2d": {"kernel_y": 3, "kernel_x": 3, "stride_x": 4},
    "na3d": {"kernel_z": 1, "kernel_y": 3, "kernel_x": 3, "dilation_y": 0},
    "local_1d": {"kernel_x": 3, "dilation_x": 0},
    "local_2d": {"kernel_y": 0, "kernel_x": 3},
    "local_3d": {"kernel_z": 1, "kernel_y": 1, "kernel_x": 1, "dilation_z": -1},
    "same_window": {"window": 0},
    "same_window_1d": {"window_x": 0},
    "same_window_2d": {"window_y": 2, "window_x": 0},
    "same_window_3d": {"window_z": 0, "window_y": 2, "window_x": 2},
    "halo_blocks": {"block": 2, "halo": -1},
    "grid_groups": {"cells": 5},
    "row_stripes": {"width": 0},
    "column_stripes": {"width": -2},
    "stripes": {"width": 0},
}


@pytest.mark.parametrize("name", WRONG)
def test_preconditions_are_checked_at_every_call(name: str) -> None:
    """Of the mask itself and where it is used; the sizes of the grid are such that nothing else is wrong."""
    axes = masks()[name].axes
    sizes = {"": (12,), "x": (12,), "y": (12,), "yx": (3, 4), "zyx": (3, 2, 2)}["".join(axes)]
    with pytest.raises(MaskError, match=REFUSED):
        both_ways(name, axes, sizes, **WRONG[name])
    with pytest.raises(MaskInputError, match=REFUSED):
        kept(masks()[name], 12, **WRONG[name], **dict(zip(axes, sizes, strict=False)))


def test_every_parameter_is_under_a_precondition() -> None:
    free = {"shift", "shift_x", "shift_y", "shift_z", "causal_x", "causal_y", "causal_z"}
    assert {name for name, spec in masks().items() if {p.name for p in spec.parameters} - free} == set(WRONG)
    for spec in masks().values():
        stated = " ".join(str(claim.expr) for claim in spec.claims)
        assert [p.name for p in spec.parameters if p.name not in free and p.name not in stated] == []
