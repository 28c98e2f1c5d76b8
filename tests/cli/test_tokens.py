"""`maskc show --tokens` and `--png`: pictures of pairs, and files of pixels."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from maskc.check import load
from maskc.commands import png
from maskc.commands.picture import ASCII, UNICODE
from maskc.commands.tokens import token_maps, token_picture
from maskc.diagnostics import MaskError, MaskUnsupportedError
from maskc.reference import mask
from maskc.sizes import resolve
from maskc.spec import Sizes

Maskc = Callable[..., tuple[int, str, str]]

PAIRS = """\
window, width=3: 6 queries x 6 keys
  0         5
0 ██··········
1 ████········
2 ██████······
3 ··██████····
4 ····██████··
5 ······██████
one cell: a pair of a query (row) and a key (column)
█ kept   · dropped
"""
PARTS = """\
mask parts:
    axes cls: 1, patch: (y, x), text: t
    keep k in text and q in text and k <= q or q not in text and k not in text
"""
PARTS_DRAWN = """\
parts: 8 queries x 8 keys, y=2, x=2, t=3
  cl patch    text
  0           5
cls ┼────────┼──────
0 ██│████████│······
patch ───────┼──────
1 ██│████████│······
2 ██│████████│······
3 ██│████████│······
4 ██│████████│······
text ────────┼──────
5 ··│········│██····
6 ··│········│████··
7 ··│········│██████
one cell: a pair of a query (row) and a key (column)
█ kept   · dropped
"""


def test_every_pair_is_a_cell(maskc: Maskc) -> None:
    assert maskc("show", "window.mask", "--tokens", "--seq", "6", "-p", "width=3") == (0, PAIRS, "")


def test_cells_are_single_where_double_ones_do_not_fit(maskc: Maskc) -> None:
    lines = maskc("show", "window.mask", "--tokens", "--seq", "12", "-p", "width=2", "--width", "20")[1].splitlines()
    assert lines[1:4] == ["   0         10", " 0 █···········", " 1 ██··········"]


def test_positions_begin_at_the_offset(maskc: Maskc) -> None:
    arguments = ["--q-len", "2", "--k-len", "12", "--q-offset", "10", "--tokens"]
    lines = maskc("show", "window.mask", *arguments)[1].splitlines()
    assert [line[:3] for line in lines[2:4]] == ["10 ", "11 "]


def test_parts_have_borders_and_names(maskc: Maskc) -> None:
    Path("parts.mask").write_text(PARTS)
    status, out, err = maskc("show", "parts.mask", "--tokens", "--grid", "y=2,x=2,t=3")
    assert (status, err) == (0, "")
    assert out == PARTS_DRAWN


def test_documents_have_borders() -> None:
    spec = load("mask m:\n    input start: int[docs] of seq sorted\n    packed start\n    keep k <= q\n")
    sizes = resolve(spec, q_len=6, k_len=6, given={}, free={"docs": 3})
    tokens = token_maps(spec, sizes, {"start": np.array([0, 2, 2])})
    assert tokens.borders[0] == ((0, "document at 0"), (2, "document at 2"))
    text = token_picture(tokens, width=80, shades=ASCII).splitlines()
    assert text[2:5] == ["document at 0 -", "0 ##..|........", "1 ####|........"]


def test_heads_that_differ_are_drawn_apart(maskc: Maskc) -> None:
    Path("mixed.mask").write_text("mask mixed:\n    input full: bool[head]\n    keep full or q == k\n")
    np.save("full.npy", np.array([True, False, True]))
    arguments = ["--seq", "2", "--heads", "3", "--input", "full=full.npy", "--tokens"]
    out = maskc("show", "mixed.mask", *arguments)[1]
    assert "head 0, 2\n  0\n0 ████\n1 ████\nhead 1\n  0\n0 ██··\n1 ··██\n" in out


def test_the_cells_are_the_mask() -> None:
    spec = load("mask m:\n    axes y, x\n    keep abs(q.y - k.y) <= 1 and q.x >= k.x\n")
    sizes = resolve(spec, q_len=20, k_len=20, given={"y": 4, "x": 5})
    lines = token_picture(token_maps(spec, sizes, {}), width=30, shades=ASCII).splitlines()[1:21]
    drawn = np.array([[c == "#" for c in line[3:]] for line in lines])
    np.testing.assert_array_equal(drawn, mask(spec, sizes))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--seq", "100"], "100 keys need 103 columns, and there are 80; give --width 103 or --png FILE"),
        (["--seq", "600", "--width", "700"], "--tokens draws a line per query: 600 are too many, at most 512"),
        (["--seq", "9000", "--png", "x.png"], "--tokens draws every pair, and 81,000,000 are too many"),
    ],
)
def test_too_many_pairs_are_refused(maskc: Maskc, arguments: list[str], sentence: str) -> None:
    status, out, err = maskc("show", "window.mask", "--tokens", *arguments)
    assert (status, out) == (2, "")
    assert sentence in err


def test_no_tokens_no_pairs(maskc: Maskc) -> None:
    assert "no pairs: there are no queries or no keys" in maskc("show", "window.mask", "--tokens", "--seq", "0")[1]
    status, _, err = maskc("show", "window.mask", "--tokens", "--seq", "0", "--png", "x.png")
    assert (status, err) == (1, "there is nothing to draw: there are no queries or no keys\n")


def test_pairs_that_depend_on_scores_are_not_drawn() -> None:
    with pytest.raises(MaskUnsupportedError, match="depends on 'score'"):
        token_maps(load("mask m:\n    keep score > 0\n"), Sizes(4, 4), {})


# --- files ----------------------------------------------------------------------------------------------------------


def pixels(path: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    image = pytest.importorskip("matplotlib.image")
    read: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = image.imread(path)
    return read


def share(path: str, colour: str) -> float:
    """How much of the inner part of a picture has a colour."""
    wanted = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return float((np.abs(pixels(path)[..., :3] - wanted).max(-1) < 0.01).mean())


def test_the_map_of_pairs_as_a_file(maskc: Maskc) -> None:
    pytest.importorskip("matplotlib")
    said = (0, "window, width=4: 8 queries x 8 keys\nwrote the map of pairs to map.png\n", "")
    assert maskc("show", "window.mask", "--tokens", "--seq", "8", "-p", "width=4", "--png", "map.png") == said
    kept = np.tri(8, dtype=bool) & ~np.tri(8, k=-4, dtype=bool)
    dark, light = share("map.png", png.COLOURS[-1]), share("map.png", png.COLOURS[0])
    assert dark / (dark + light) == pytest.approx(kept.mean(), abs=0.03)
    assert [p.name for p in Path().glob("*.png")] == ["map.png"]


def test_the_map_of_tiles_as_a_file(maskc: Maskc) -> None:
    pytest.importorskip("matplotlib")
    status, out, err = maskc("show", "window.mask", "--seq", "64", "--tile", "16", "-p", "width=64", "--png", "map.png")
    assert (status, err) == (0, "")
    assert out.endswith("wrote the map of tiles to map.png\n")
    found = [share("map.png", png.COLOURS[i]) for i in (0, 1, 3)]
    assert np.array(found) / sum(found) == pytest.approx(np.array([6, 4, 6]) / 16, abs=0.03)


def test_large_maps_are_drawn_in_squares() -> None:
    spec = load("mask m:\n    keep k <= q\n")
    picture = png.token_png(token_maps(spec, Sizes(1500, 1500), {}), "m")
    (panel,) = picture.panels
    assert panel.cells.shape == (500, 500)
    assert set(np.unique(panel.cells)) == {0, 2, 3}
    assert picture.levels[2] == "more than half kept"


def test_several_maps_share_a_picture(maskc: Maskc) -> None:
    spec = load("mask m:\n    keep k <= q + head\n")
    sizes = resolve(spec, q_len=8, k_len=8, heads=6, kv_heads=6, given={})
    picture = png.token_png(token_maps(spec, sizes, {}), "m")
    assert [panel.heading for panel in picture.panels] == ["head 0", "head 1", "head 2", "head 3; 2 more maps differ"]


def test_a_file_that_cannot_be_written_leaves_nothing(maskc: Maskc) -> None:
    pytest.importorskip("matplotlib")
    status, _, err = maskc("show", "window.mask", "--seq", "8", "--png", "nowhere/map.png")
    assert status == 1
    assert "nowhere" in err
    Path("taken").mkdir()
    assert maskc("show", "window.mask", "--seq", "8", "--png", "taken")[0] == 1
    assert [p.name for p in Path().iterdir() if p.name.startswith(".maskc-")] == []


def test_without_matplotlib_the_way_to_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib", "matplotlib.backends", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    panel = png.Panel(np.zeros((1, 1), np.int64), "", (0, 1), (0, 1))
    with pytest.raises(MaskError, match=r"--png needs matplotlib.*\nhint: pip install 'maskc\[png\]'"):
        png.save(png.Picture("", (panel,), ("dropped", "kept"), ""), "map.png")


def test_matplotlib_is_loaded_for_files_only() -> None:
    program = "import sys, maskc.cli; print('matplotlib' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "False\n"
    )


def test_shades_have_lines() -> None:
    assert [len(shades.lines) for shades in (UNICODE, ASCII)] == [3, 3]
