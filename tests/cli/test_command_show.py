"""`maskc show` and `maskc explain`: the plan in a picture, in words and as JSON."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskc.check import load
from maskc.codegen.schedule import configuration, target_named
from maskc.commands.picture import ASCII

Maskc = Callable[..., tuple[int, str, str]]

PICTURE = """\
window, width=3: 10 queries x 10 keys; tiled on cpu, tiles of 2 x 2
▒▒········
▒▒▒▒······
··▒▒▒▒····
····▒▒▒▒··
······▒▒▒▒
one cell: a tile of 2 queries x 2 keys
█ full   ▒ partial   · empty
tiles: 0 full, 9 partial, 16 empty
"""


def test_show_draws_the_block_map(maskc: Maskc) -> None:
    assert maskc("show", "window.mask", "--seq", "10", "-p", "width=3", "--tile", "2") == (0, PICTURE, "")


def test_a_large_map_is_drawn_in_squares_of_tiles(maskc: Maskc) -> None:
    status, out, err = maskc("show", "window.mask", "--seq", "4096", "--tile", "16", "--width", "40")
    lines = out.splitlines()
    assert (status, err) == (0, "")
    assert len(lines[1]) <= 40
    assert set("".join(lines[1:-3])) <= set("·░▓█")
    assert lines[-3] == "one cell: 7 x 7 tiles of 16 queries x 16 keys"


def test_one_axis_of_a_grid_gives_the_length(maskc: Maskc) -> None:
    status, out, _ = maskc("show", "grid.mask", "--grid", "y=3,x=5", "--tile", "8")
    assert status == 0
    assert out.startswith("near, radius=1: 15 queries x 15 keys, y=3, x=5; ")


def test_offset_and_lengths(maskc: Maskc) -> None:
    status, out, _ = maskc("show", "window.mask", "--q-len", "2", "--k-len", "9", "--q-offset", "7", "--tile", "4")
    assert status == 0
    assert out.startswith("window, width=8: 2 queries from 7 x 9 keys; ")


def test_no_tokens_no_tiles(maskc: Maskc) -> None:
    status, out, err = maskc("show", "window.mask", "--seq", "0", "--tile", "4")
    assert (status, err) == (0, "")
    assert "no tiles: there are no queries or no keys" in out


def test_maps_that_differ_are_drawn_apart(maskc: Maskc) -> None:
    Path("mixed.mask").write_text("mask mixed:\n    input full: bool[head]\n    keep full or q == k\n")
    np.save("full.npy", np.array([True, False, True]))
    for full in ("full.npy", "[true, false, true]"):
        call = ("--seq", "4", "--heads", "3", "--tile", "2", "--input", f"full={full}")
        status, out, _ = maskc("show", "mixed.mask", *call)
        assert status == 0
        assert "head 0, 2\n████\n████\nhead 1\n▒▒··\n··▒▒\n" in out
        assert "tiles: 8 full, 2 partial, 2 empty" in out


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[[0, 0], [1]]", "--input doc=[[0, 0], [1]]: expected rows of equal length, as in [[0, 1], [2, 3]]: "),
        ("[[0, 0", "--input doc=[[0, 0: expected rows of equal length, as in [[0, 1], [2, 3]]: "),
        ("[[0.5, 1]]", "input 'doc' is of type int, but [[0.5, 1]] holds float64"),
        ("[[0, 0, 1]]", "input 'doc' has shape (1, 3); the spec declares int[batch, seq]"),
    ],
)
def test_inputs_that_are_written_out(maskc: Maskc, text: str, sentence: str) -> None:
    status, out, err = maskc("show", "documents.mask", "--seq", "8", "--input", f"doc={text}")
    assert (status, out) == (1, "")
    assert sentence in err


def test_plain_characters_where_the_output_takes_no_others(maskc: Maskc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskc.commands.show.shades_for", lambda encoding: ASCII)
    assert "# full   + partial   . empty" in maskc("show", "window.mask", "--seq", "8", "--tile", "4")[1]


@pytest.mark.parametrize(
    ("array", "sentence"),
    [
        (np.zeros((1, 5), np.int64), "input 'doc' has shape (1, 5); the spec declares int[batch, seq]"),
        (np.zeros(8, np.int64), "input 'doc' has shape (8), 1 dims; the spec declares int[batch, seq]"),
        (np.zeros((1, 8)), "input 'doc' is of type int, but doc.npy holds float64"),
        (np.array([[3, 2, 1, 0, 0, 0, 0, 0]]), "input 'doc' is declared sorted, but doc[0, 1] is 2 and follows 3"),
    ],
)
def test_inputs_from_files_are_checked(maskc: Maskc, array: Any, sentence: str) -> None:
    np.save("doc.npy", array)
    status, out, err = maskc("show", "documents.mask", "--seq", "8", "--input", "doc=doc.npy")
    assert (status, out) == (1, "")
    assert sentence in err


def test_pickles_are_never_loaded(maskc: Maskc) -> None:
    np.save("doc.npy", np.array([object()]), allow_pickle=True)
    status, out, err = maskc("show", "documents.mask", "--seq", "8", "--input", "doc=doc.npy")
    assert (status, out) == (1, "")
    assert "--input doc=doc.npy: cannot be read as an .npy file" in err


def explained(maskc: Maskc, *arguments: str) -> dict[str, Any]:
    status, out, err = maskc("explain", *arguments, "--json")
    assert (status, err) == (0, "")
    found: dict[str, Any] = json.loads(out)
    return found


def test_explain_counts_by_the_rules_of_the_interface(maskc: Maskc) -> None:
    found = explained(maskc, "window.mask", "--seq", "300", "-p", "width=20", "--tile", "32x64")
    live = sum(min(q + 1, 20) for q in range(300))
    parts = found.pop("parts")
    assert found.pop("analysis_seconds") > 0
    assert found == {
        "mask": "window",
        "engine": "tiled",
        "target": "cpu",
        "q_len": 300,
        "k_len": 300,
        "tile": [32, 64],
        "batch_rows": 1,
        "heads": 1,
        "live_pairs": live,
        "computed_pairs": 14 * 32 * 64,
        "efficiency": live / (14 * 32 * 64),
        "flex_pairs": 5 * 128 * 128,
        "gain": 5 * 128 * 128 / (14 * 32 * 64),
        "order_gain": 1.0,
    }
    assert parts == [
        {
            "predicate": "(0 <= (q - k)) and ((q - k) < width)",
            "q_order": "row-major",
            "k_order": "row-major",
            "full_tiles": 0,
            "partial_tiles": 14,
            "empty_tiles": 36,
            "computed_pairs": found["computed_pairs"],
            "efficiency": found["efficiency"],
        }
    ]


def test_explain_in_words(maskc: Maskc) -> None:
    status, out, err = maskc("explain", "window.mask", "--seq", "4096", "-p", "width=256", "--tile", "64")
    assert (status, err) == (0, "")
    lines = [line for line in out.splitlines() if not line.startswith("  analysis ")]
    assert lines == [
        "window, width=256: 4096 queries x 4096 keys; tiled on cpu, tiles of 64 x 64",
        "  live pairs      1,015,936",
        "  computed pairs  1,269,760, of which 80.0% are live",
        "  FlexAttention   1,523,712 pairs in row-major tiles of 128 x 128",
        "  gain            1.20x; 1.00x with the same tiles",
        "part 1: queries row-major, keys row-major",
        "  tiles           186 full, 124 partial, 3,786 empty",
        "  open            0 <= q - k < width",
    ]


def test_inputs_per_batch_row_are_summed(maskc: Maskc) -> None:
    np.save("doc.npy", np.array([[0] * 8, [0] * 4 + [1] * 4]))
    found = explained(maskc, "documents.mask", "--seq", "8", "--batch", "2", "--input", "doc=doc.npy")
    assert (found["batch_rows"], found["heads"]) == (2, 1)
    assert found["live_pairs"] == 64 + 32


def test_the_seed_decides_what_is_drawn(maskc: Maskc) -> None:
    call = ["documents.mask", "--seq", "200", "--tile", "8"]
    first, again, other = (explained(maskc, *call, "--seed", seed) for seed in ("1", "1", "2"))
    assert first["live_pairs"] == again["live_pairs"] != other["live_pairs"]


def test_explain_shows_plans_of_masks_that_kernels_refuse(maskc: Maskc) -> None:
    Path("learned.mask").write_text("mask learned:\n    input c: float[] learned\n    keep k <= q\n    score += c\n")
    assert maskc("emit", "learned.mask", "--stage", "kernel")[0] == 1
    assert explained(maskc, "learned.mask", "--seq", "300", "--target", "sm_90")["live_pairs"] == 300 * 301 // 2


@pytest.mark.parametrize(("dtype", "name"), [("float16", "fp16"), ("float32", "fp32")])
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
def test_explain_shows_the_tile_of_the_target(maskc: Maskc, target: str, dtype: str, name: Any) -> None:
    found = explained(maskc, "window.mask", "--seq", "300", "--target", target, "--dim", "128", "--dtype", dtype)
    expected = configuration(target_named(target), (128, 128), name, "forward").tile
    assert (found["engine"], found["target"], tuple(found["tile"])) == ("triton", target, expected)


@pytest.mark.parametrize("engine", ["tiled", "interpret"])
def test_explain_shows_the_tile_of_the_plan_that_the_engine_runs(
    maskc: Maskc, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from maskc.analysis import plan
    from maskc.compiler import compile_attention

    built = []
    build = plan.build

    def watched(spec: Any, sizes: Any, tile: tuple[int, int], *rest: Any) -> Any:
        built.append(tile)
        return build(spec, sizes, tile, *rest)

    found = explained(maskc, "window.mask", "--seq", "70", "--engine", engine)
    monkeypatch.setattr(plan, "build", watched)
    q = torch.randn(1, 1, 70, 16)
    compile_attention(load("window.mask"), engine=engine)(q, q, q)
    assert {tuple(found["tile"])} == set(built)
