"""The command line on grids of parts, packed documents, constants, and specs that only `dense` runs."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

Maskc = Callable[..., tuple[int, str, str]]

SPECS = {
    "parts": "mask parts(n: int = 1):\n    axes cls: n, patch: (y, x)\n    keep q in cls or k in cls or q.y == k.y\n",
    "cross": "mask cross:\n    queries y, x\n    keys text: t\n    keep k.t <= q.y\n",
    "ring": "mask ring:\n    axes y, x border 1\n    keep abs(q.y - k.y) <= 1 and abs(q.x - k.x) <= 1\n",
    "packed": "mask packed_rows:\n    input start: int[docs] sorted\n    packed start\n"
    "    axes y, x\n    keep q.x == k.x\n",
    "linked": "mask linked:\n    input links: bool[n, n] constant\n    keep links[q % n, k % n] or k == q\n",
    "learned": "mask learned:\n    input bias: float[q] learned\n    keep k <= q\n    score += bias[q] * score\n"
    "    output seen[k] = sum(weight)\n",
    "sharp": "mask sharp:\n    keep score > 0\n",
}


@pytest.fixture
def specs(maskc: Maskc) -> Maskc:
    """The command, in a folder that has the specs above."""
    for name, text in SPECS.items():
        Path(f"{name}.mask").write_text(text)
    return maskc


def test_a_grid_of_all_axes_says_how_long_both_sides_are(specs: Maskc) -> None:
    for name, grid, begin in (
        ("parts", "y=3,x=4", "parts, n=1: 13 queries x 13 keys, y=3, x=4; "),
        ("cross", "y=3,x=4,t=5", "cross: 12 queries x 5 keys, y=3, x=4, t=5; "),
        ("ring", "y=3,x=4", "ring: 12 queries x 30 keys, y=3, x=4; "),
    ):
        status, out, _ = specs("show", f"{name}.mask", "--grid", grid)
        assert (status, out.startswith(begin)) == (0, True), out


def test_a_grid_and_a_length_leave_one_axis_open(specs: Maskc) -> None:
    assert "13 queries x 13 keys, y=3, x=4; " in specs("show", "parts.mask", "--seq", "13", "--grid", "x=4")[1]
    assert specs("show", "parts.mask", "--seq", "14", "--grid", "x=4")[2] == (
        "axis 'y' of mask 'parts' is not given, and the length 14 less the 1 places of the other parts"
        " is no multiple of x = 4\n"
    )


def test_without_a_size_the_example_fits_the_spec(specs: Maskc) -> None:
    for name, example in (("parts", " or --grid y=64,x=64"), ("packed", " and --grid x=64"), ("sharp", "")):
        assert specs("explain", f"{name}.mask") == (
            2,
            "",
            f"maskc explain: error: no size: give --seq N{example}\n",
        )


def test_constants_are_read_or_drawn(specs: Maskc) -> None:
    np.save("links.npy", np.zeros((3, 3), np.bool_))
    status, out, _ = specs("explain", "linked.mask", "--seq", "30", "--input", "links=links.npy", "--json")
    assert (status, '"live_pairs": 30,' in out) == (0, True)
    assert specs("run", "linked.mask", "--seq", "30", "--dim", "8")[0] == 0
    np.save("links.npy", np.zeros((3, 2), np.bool_))
    status, _, err = specs("explain", "linked.mask", "--seq", "30", "--input", "links=links.npy")
    assert (status, "dim 1 ('n') should be 3" in err) == (1, True)


def test_starts_from_a_file_are_checked(specs: Maskc) -> None:
    np.save("start.npy", np.array([0, 9, 20]))
    arguments = ("show", "packed.mask", "--grid", "x=3", "--input", "start=start.npy", "--seq")
    assert specs(*arguments, "20")[0] == 0
    assert specs(*arguments, "19")[2] == (
        "input 'start' holds where documents begin, none behind the line's 19 tokens, but start[2] is 20\n"
    )


def test_run_names_the_engine_that_cannot(specs: Maskc) -> None:
    status, out, err = specs("run", "learned.mask", "--seq", "20", "--dim", "8")
    assert status == 0
    lines = out.splitlines()
    assert lines[0] == (
        "engine 'tiled' cannot run 'input bias: float[q] learned' yet; running the definition, dense, in its place"
    )
    assert lines[1] == "learned: 20 queries x 20 keys; dense on cpu"
    assert [line.split("error")[0].strip() for line in lines[4:]] == [
        *("out", "lse", "output seen", "dq", "dk", "dv", "d bias")
    ]
    assert all(line.endswith(" ok") for line in lines[4:])
    assert err.startswith("running dense forward and backward ...\n")
    assert specs("run", "sharp.mask", "--seq", "20", "--dim", "8")[0] == 0


def test_run_keeps_to_the_engine_that_is_named(specs: Maskc) -> None:
    status, out, err = specs("run", "learned.mask", "--seq", "20", "--dim", "8", "--engine", "tiled")
    assert (status, out) == (1, "")
    assert "engine 'tiled' cannot run 'input bias: float[q] learned' yet" in err


def test_verify_tells_what_each_engine_did(specs: Maskc) -> None:
    names = ("parts", "cross", "ring", "packed", "linked", "learned")
    status, out, _ = specs("verify", *(f"{n}.mask" for n in names), "--engine", "tiled", "--engine", "dense")
    assert status == 0
    rows = [line.split() for line in out.splitlines()[1:]]
    assert [(row[0], row[1], row[3], row[5]) for row in rows if row[1] == "dense"] == [
        ("parts", "dense", "5", "0"),
        ("cross", "dense", "5", "0"),
        ("ring", "dense", "5", "0"),
        ("packed_rows", "dense", "8", "0"),
        ("linked", "dense", "11", "0"),
        ("learned", "dense", "11", "0"),
    ]
    (refused,) = (line for line in out.splitlines() if line.split()[:4] == ["learned", "tiled", "float32", "0"])
    assert refused.endswith("not run: engine 'tiled' cannot run 'input bias: float[q] learned' yet")
