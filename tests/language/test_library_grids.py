"""The library's masks on grids against rules of papers and of their authors' code, written by hand, pair by pair."""

import numpy as np
import pytest
from library_cases import (
    AXES,
    GRIDS,
    REFUSED,
    Bits,
    Grid,
    Rule,
    both_ways,
    coordinates,
    groups,
    kept,
    masks,
    natten_rule,
    on_grid,
)

from maskc.diagnostics import MaskInputError

# ---- neighbourhoods


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
