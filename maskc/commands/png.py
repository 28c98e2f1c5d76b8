"""Maps of tiles or pairs -> a PNG file, drawn by matplotlib without a display. matplotlib is imported on first use."""

import io
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskc.analysis.plan import BlockPlan, tile_map
from maskc.commands.picture import MOST_MAPS, cell_size, heading, level_names, levels, same_maps
from maskc.commands.tokens import Borders, TokenMaps
from maskc.diagnostics import Diagnostic, MaskError

CELLS = 512  # along a side, so that none is lost between pixels; larger maps are drawn in squares of tiles or pairs
COLOURS = ("#f4f4f2", "#9dc3e6", "#4a86c5", "#17375e")  # from empty to full
INCHES = 5.0  # of one map
DPI = 160


@dataclass(frozen=True, eq=False)
class Panel:
    """One map: the level of every cell [rows, columns], what it is about, and the positions of its edges."""

    cells: NDArray[np.int64]
    heading: str
    queries: tuple[float, float]
    keys: tuple[float, float]
    borders: tuple[Borders, Borders] = ((), ())


@dataclass(frozen=True, eq=False)
class Picture:
    """Maps side by side, under one title. levels: the names of the values of cells, from empty to full."""

    title: str
    panels: tuple[Panel, ...]
    levels: tuple[str, ...]
    note: str


def block_picture(plan: BlockPlan, title: str) -> Picture:
    """The tiles of a plan, one map for each that differs."""
    maps = tile_map(plan)
    cell = cell_size(maps.shape[1], maps.shape[2], CELLS, CELLS)
    ends = [
        (float(first), float(first + count * tile))
        for first, count, tile in zip(_offsets(plan), maps.shape[1:], plan.tile, strict=True)
    ]
    panels = _panels(maps, plan.maps)
    drawn = tuple(Panel(levels(tiles, cell), said, ends[0], ends[1]) for tiles, said in panels if 0 not in tiles.shape)
    unit = f"tiles of {plan.tile[0]} queries x {plan.tile[1]} keys"
    return Picture(title, drawn, level_names(cell), unit if cell == 1 else f"squares of {cell} x {cell} {unit}")


def _offsets(plan: BlockPlan) -> tuple[int, int]:
    return plan.sizes.q_offset or 0, plan.sizes.k_offset or 0


def token_png(tokens: TokenMaps, title: str) -> Picture:
    """The pairs of a call, one map for each that differs."""
    queries, keys = (
        (first - 0.5, first + n - 0.5) for first, n in zip(tokens.first, tokens.kept.shape[1:], strict=True)
    )
    cell = cell_size(tokens.kept.shape[1], tokens.kept.shape[2], CELLS, CELLS)
    panels = tuple(
        Panel(
            kept.astype(np.int64) if cell == 1 else levels(kept.astype(np.uint8) * 2, cell),
            said,
            queries,
            keys,
            tokens.borders,
        )
        for kept, said in _panels(tokens.kept, tokens.maps)
        if 0 not in kept.shape
    )
    if cell == 1:
        return Picture(title, panels, ("dropped", "kept"), "pairs of a query and a key")
    names = ("all dropped", "at most half kept", "more than half kept", "all kept")
    return Picture(title, panels, names, f"squares of {cell} x {cell} pairs")


def _panels(maps: NDArray[Any], counts: tuple[int, int]) -> list[tuple[NDArray[Any], str]]:
    """The first maps that differ, and whose they are."""
    groups = same_maps(maps.view(np.uint8))
    more = f"; {len(groups) - MOST_MAPS} more maps differ" if len(groups) > MOST_MAPS else ""
    shown = groups[:MOST_MAPS]
    last = len(shown) - 1
    return [
        (maps[owners[0]], heading(counts, owners) + (more if i == last else "") if len(groups) > 1 else "")
        for i, owners in enumerate(shown)
    ]


def save(picture: Picture, path: str) -> None:
    """Writes the picture to a file, which holds the old contents or the new ones at any time.

    Raises MaskError where matplotlib is missing or there is nothing to draw, OSError where the file cannot be written.
    """
    if not picture.panels:
        raise MaskError("there is nothing to draw: there are no queries or no keys")
    data = _rendered(picture)
    target = os.path.realpath(path)
    temporary = os.path.join(os.path.dirname(target), f".maskc-{uuid.uuid4().hex}.png")
    try:
        with open(temporary, "xb") as stream:
            stream.write(data)
        os.replace(temporary, target)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise


def _rendered(picture: Picture) -> bytes:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.colors import BoundaryNorm, ListedColormap
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch
        from matplotlib.ticker import MaxNLocator
    except ModuleNotFoundError as error:
        message = f"--png needs matplotlib, which is not installed here ({error})"
        raise MaskError([Diagnostic(message, hint="pip install 'maskc[png]'")]) from None
    count = len(picture.panels)
    figure = Figure(figsize=(INCHES * count, INCHES + 1.2), layout="constrained")
    FigureCanvasAgg(figure)
    colours = _colours(len(picture.levels))
    norm = BoundaryNorm(np.arange(len(colours) + 1) - 0.5, len(colours))
    for place, (axes, panel) in enumerate(
        zip(figure.subplots(1, count, squeeze=False)[0], picture.panels, strict=True)
    ):
        axes.imshow(
            panel.cells,
            cmap=ListedColormap(colours),
            norm=norm,
            extent=(*panel.keys, panel.queries[1], panel.queries[0]),
            interpolation="nearest",
            aspect="equal" if _similar(panel) else "auto",
        )
        axes.set_xlabel("position of the key")
        axes.set_ylabel("position of the query" if place == 0 else "")
        axes.set_title(panel.heading, fontsize=9)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        _draw_borders(axes, panel)
    figure.suptitle(picture.title, fontsize=10, wrap=True)
    patches = [
        Patch(facecolor=c, edgecolor="#555555", label=name) for c, name in zip(colours, picture.levels, strict=True)
    ]
    figure.legend(handles=patches[::-1], loc="outside lower center", ncols=len(patches), fontsize=9, title=picture.note)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def _colours(count: int) -> Sequence[str]:
    """From empty to full, as far apart as they can be."""
    return {2: (COLOURS[0], COLOURS[3]), 3: (COLOURS[0], COLOURS[1], COLOURS[3]), 4: COLOURS}[count]


def _similar(panel: Panel) -> bool:
    """Whether both sides are long enough to be drawn to one scale."""
    q, k = panel.queries[1] - panel.queries[0], panel.keys[1] - panel.keys[0]
    return 1 / 4 <= q / k <= 4


def _draw_borders(axes: Any, panel: Panel) -> None:
    """Lines between parts, their names beside the map."""
    for horizontal, borders, (first, last) in zip(
        (True, False), panel.borders, (panel.queries, panel.keys), strict=True
    ):
        for start, name in borders:
            place = first + start
            if start > 0:
                (axes.axhline if horizontal else axes.axvline)(place, color="#c00000", linewidth=0.8)
            share = (place - first) / (last - first)
            if horizontal:
                axes.text(1.01, 1 - share, name, transform=axes.transAxes, fontsize=7, va="top", rotation=270)
            else:
                axes.text(share, 1.01, name, transform=axes.transAxes, fontsize=7, ha="left")
