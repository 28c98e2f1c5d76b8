"""Lines of parts, separate lines, borders, packed documents: what is inferred, and every refusal with its sentence."""

from typing import Any

import numpy as np
import pytest

from maskc.check import load
from maskc.diagnostics import MaskInputError
from maskc.grids import line_length, real_keys
from maskc.prologue import complete
from maskc.reference import mask
from maskc.shapes import input_shape
from maskc.sizes import resolve
from maskc.spec import MaskSpec, Sizes

PARTS = load(
    "mask parts(n: int = 1):\n    axes cls: n, patch: (y, x), text: t\n    input bias: float[patch, text]\n"
    "    keep q in cls or k in text or (q in patch and k in patch and q.y == k.y)\n"
)
TWICE = load("mask twice:\n    axes left: (y, x), right: (y, x)\n    keep q in left or k in right\n")
CROSS = load(
    "mask cross:\n    queries y, x\n    keys pooled: (i, j), text: t\n    input w: float[q, k]\n"
    "    keep k in text or (k.i == q.y and k.j == q.x)\n"
)
SHARED = load("mask shared:\n    queries y, x\n    keys y, z\n    keep q.y == k.y\n")
BORDER = load("mask ring(r: int = 1):\n    axes y, x border r\n    keep abs(q.y - k.y) <= r and abs(q.x - k.x) <= r\n")
PACKED = load(
    "mask packed_grid:\n    input start: int[docs] sorted\n    packed start\n    axes z, y, x\n    keep q.y == k.y\n"
)
PACKED_LINE = load("mask packed_line:\n    input start: int[docs] sorted\n    packed start\n    keep k <= q\n")


def sizes(spec: MaskSpec, q_len: int, k_len: int | None = None, **options: Any) -> Sizes:
    lengths = {"q_len": q_len, "k_len": q_len if k_len is None else k_len}
    given = {name: options.pop(name) for name in list(options) if len(name) == 1}
    return resolve(spec, **lengths, given=given, **options)


def refusal(spec: MaskSpec, q_len: int, k_len: int | None = None, **options: Any) -> str:
    with pytest.raises(MaskInputError) as raised:
        sizes(spec, q_len, k_len, **options)
    return str(raised.value)


def test_one_open_axis_of_a_line_of_parts_follows_from_the_length() -> None:
    assert sizes(PARTS, 18, x=4, y=3).axis == {"y": 3, "x": 4, "t": 5}
    assert sizes(PARTS, 18, x=4, t=5).axis == {"y": 3, "x": 4, "t": 5}
    assert sizes(PARTS, 20, n=3, x=4, t=5).axis["y"] == 3
    assert sizes(PARTS, 0, x=4, t=5).axis["y"] == 0
    assert sizes(TWICE, 24, x=4).axis == {"y": 3, "x": 4}


def test_given_sizes_may_exceed_the_length() -> None:
    assert sizes(PARTS, 10, x=4, y=3, t=5).axis == {"y": 3, "x": 4, "t": 5}
    assert line_length(PARTS, sizes(PARTS, 3, 10, q_offset=2, x=4, y=3, t=5)) == 10


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "mask 'parts' has the axes y, x, t; give the sizes of all but one, for example x=..., t=..."),
        (
            {"x": 4, "t": 4},
            "axis 'y' of mask 'parts' is not given, and the length 18 less the 5 places of the other parts"
            " is no multiple of x = 4",
        ),
        (
            {"y": 5, "x": 4},
            "axis 't' of mask 'parts' is not given, and the length 18 is less than the 21 places of the other parts",
        ),
        (
            {"y": 3, "x": 4, "t": 2},
            "the line cls=1 + patch (y=3 x x=4) + text (t=2) has 15 places; queries and keys need 18",
        ),
        ({"n": -1, "x": 4, "y": 3}, "part 'cls' would be -1 (n=-1); expected at least 0"),
        (
            {"x": 4, "y": 3, "q_offset": None},
            "give t=...: the size of an axis cannot be inferred where an offset is a tensor",
        ),
    ],
)
def test_parts_refused(options: dict[str, Any], sentence: str) -> None:
    assert refusal(PARTS, 18, **options) == sentence


def test_a_size_that_two_grids_share_counts_twice() -> None:
    assert refusal(TWICE, 24, x=5) == (
        "axis 'y' of mask 'twice' is not given, and the length 24 is no multiple of x + x = 10"
    )


def test_separate_lines_need_no_alignment_and_are_inferred_each() -> None:
    found = sizes(CROSS, 12, 11, x=4, j=2, t=5)
    assert found.axis == {"y": 3, "x": 4, "i": 3, "j": 2, "t": 5}
    assert (found.q_offset, found.k_offset) == (0, 0)
    assert input_shape(CROSS, found, "w") == (12, 11)
    assert sizes(CROSS, 4, 11, q_offset=8, x=4, j=2, t=5).axis["y"] == 3
    assert sizes(SHARED, 12, 6, x=4).axis == {"y": 3, "x": 4, "z": 2}
    assert sizes(SHARED, 12, 6, z=2).axis == {"y": 3, "x": 4, "z": 2}


def test_separate_lines_refused() -> None:
    assert refusal(CROSS, 12, 11, x=4, y=3) == (
        "mask 'cross' has the axes y, x, i, j, t; give the sizes of all but one, for example j=..., t=..."
    )
    assert refusal(CROSS, 12, 11, x=4, y=2, j=2, t=5) == "the grid y=2 x x=4 has 8 places; queries need 12"
    assert refusal(CROSS, 12, 11, x=4, i=1, j=2, t=5) == (
        "the line pooled (i=1 x j=2) + text (t=5) has 7 places; keys need 11"
    )


def test_tensors_of_parts_bind_the_sizes_of_axes() -> None:
    assert sizes(CROSS, 12, 11, x=4, j=2, key_parts=(6, 5)).axis == {"y": 3, "x": 4, "i": 3, "j": 2, "t": 5}
    assert sizes(PARTS, 18, x=4, key_parts=[1, 12, 5]).axis == {"y": 3, "x": 4, "t": 5}
    assert sizes(PARTS, 1, x=4, key_parts=[1, 0, 0]).axis == {"y": 0, "x": 4, "t": 0}


@pytest.mark.parametrize(
    ("spec", "options", "sentence"),
    [
        (CROSS, {"x": 4, "i": 3, "j": 2, "t": 4}, "the part text (t=4) has 4 places; the keys k[1] have 5"),
        (
            CROSS,
            {"x": 4, "j": 4},
            "axis 'i' of mask 'cross' is not given, and the length 6 is no multiple of j = 4",
        ),
        (
            CROSS,
            {"x": 4, "j": 2, "key_parts": (11,)},
            "k and v are tuples of 1; expected one tensor per part: pooled, text",
        ),
        (
            CROSS,
            {"x": 4, "j": 2, "k_offset": 3},
            "k and v are tuples, one tensor a part, so the keys begin at 0; leave k_offset out",
        ),
        (
            SHARED,
            {"x": 4},
            "k and v are tuples of 2, but the keys of mask 'shared' have no parts; expected one tensor each",
        ),
    ],
)
def test_tensors_of_parts_refused(spec: MaskSpec, options: dict[str, Any], sentence: str) -> None:
    assert refusal(spec, 12, 11, **{"key_parts": (6, 5), **options}) == sentence


def test_a_border_adds_virtual_keys() -> None:
    found = sizes(BORDER, 12, x=4)
    assert (found.axis, found.k_len, real_keys(BORDER, found)) == ({"y": 3, "x": 4}, 5 * 6, 12)
    assert sizes(BORDER, 12, x=4, r=2).k_len == 7 * 8
    assert sizes(BORDER, 12, x=4, r=0).k_len == 12
    assert sizes(BORDER, 4, 12, x=4).k_len == 30  # the first queries of the grid, without a word about an offset
    assert line_length(BORDER, sizes(BORDER, 4, 12, q_offset=8, x=4)) == 12


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"x": 4, "y": 4}, "the grid y=4 x x=4 has 16 places; keys have 12"),
        ({"x": 4, "y": 2}, "the grid y=2 x x=4 has 8 places; keys have 12"),
        ({"x": 4, "k_offset": 4}, "mask 'ring' has a border, so the keys are the whole grid; leave k_offset out"),
        ({"x": 4, "r": -1}, "the border of mask 'ring' is -1 (r=-1); expected at least 0"),
        ({"x": 4, "q_offset": 4}, "the grid y=3 x x=4 has 12 places; queries need 16"),
    ],
)
def test_borders_refused(options: dict[str, Any], sentence: str) -> None:
    assert refusal(BORDER, 12, **options) == sentence


def test_the_slowest_axis_of_packed_documents_is_open() -> None:
    assert sizes(PACKED, 50, y=2, x=3, free={"docs": 4}).axis == {"y": 2, "x": 3}
    assert refusal(PACKED, 50, y=2) == (
        "mask 'packed_grid' has the axes z, y, x in every document; give the sizes of all but the first: x=..."
    )
    assert refusal(PACKED, 50, z=2, y=2, x=3) == (
        "axis 'z' of mask 'packed_grid' has a size of its own in every document; leave it out"
    )


def test_packed_documents_see_themselves() -> None:
    found = sizes(PACKED_LINE, 6, free={"docs": 3})
    start = np.array([0, 2, 2])  # the second document is empty
    kept = mask(PACKED_LINE, found, complete(PACKED_LINE, {"start": start}))
    document = np.array([0, 0, 1, 1, 1, 1])
    assert (kept == ((document[:, None] == document) & np.tri(6, dtype=bool))).all()
