"""Where tokens lie: parts, separate lines, borders and packed documents, compared with what numpy says of tokens."""

import numpy as np
import pytest
from numpy.typing import NDArray

from maskc import reference
from maskc.check import diagnose, load
from maskc.diagnostics import Source
from maskc.evaluate import Pairs, evaluate
from maskc.expr import Expr
from maskc.sizes import resolve
from maskc.spec import MaskSpec, Part, Sizes

Bools = NDArray[np.bool_]


def kept(
    spec: MaskSpec, q_len: int, k_len: int, inputs: dict[str, NDArray[np.generic]] | None = None, **given: object
) -> Bools:
    """The mask [q_len, k_len] of one head."""
    sizes = resolve(spec, q_len=q_len, k_len=k_len, given=given)
    return mask(spec, sizes, inputs)


def mask(spec: MaskSpec, sizes: Sizes, inputs: dict[str, NDArray[np.generic]] | None = None) -> Bools:
    """The mask [q_len, k_len] of the first row and head."""
    return reference.mask(spec, sizes, inputs or {}).reshape(-1, sizes.q_len, sizes.k_len)[0]


def values(expr: Expr, sizes: Sizes, inputs: dict[str, NDArray[np.generic]] | None = None) -> NDArray[np.generic]:
    """An expression [q_len, k_len] of the first row and head."""
    zero = np.zeros((), np.int64)
    q, k = np.ogrid[: sizes.q_len, : sizes.k_len]
    pairs = Pairs(np, sizes, inputs or {}, zero, zero, q, k, score=np.zeros((1, 1)))
    return np.broadcast_to(evaluate(expr, pairs), (sizes.q_len, sizes.k_len))


def grid(*shape: int) -> list[NDArray[np.int64]]:
    """Coordinates of every place of a row-major grid."""
    return [c.ravel() for c in np.meshgrid(*map(np.arange, shape), indexing="ij")]


# ---- parts

PARTS = """
mask m(registers: int = 2):
    axes cls: registers, patch: (y, x), text: t
    {line}
"""
Y, X = grid(3, 4)
SEGMENT = np.repeat([0, 1, 2], [2, 12, 5])
TOKEN = {
    "cls": np.r_[np.arange(2), np.full(17, -1)],
    "patch": np.r_[np.full(2, -1), np.arange(12), np.full(5, -1)],
    "text": np.r_[np.full(14, -1), np.arange(5)],
    "y": np.r_[np.full(2, -1), Y, np.full(5, -1)],
    "x": np.r_[np.full(2, -1), X, np.full(5, -1)],
}


def of(name: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A coordinate of the query and of the key; -1 where a token has none."""
    return TOKEN[name][:, None], TOKEN[name][None, :]


@pytest.mark.parametrize("name", TOKEN)
def test_coordinates_of_parts(name: str) -> None:
    part = {"y": "patch", "x": "patch"}.get(name, name)
    line = f"keep where(q in {part} and k in {part}, q.{name} <= k.{name}, q in {part} or k in {part})"
    q, k = of(name)
    expected = np.where((q >= 0) & (k >= 0), q <= k, (q >= 0) | (k >= 0))
    np.testing.assert_array_equal(kept(load(PARTS.format(line=line)), 19, 19, y=3, x=4), expected)


def test_segments_count_the_parts() -> None:
    spec = load(PARTS.format(line="keep q.segment >= k.segment"))
    np.testing.assert_array_equal(kept(spec, 19, 19, y=3, x=4), SEGMENT[:, None] >= SEGMENT)
    assert [(p.name, p.axes, str(p.size)) for p in spec.queries] == [
        ("cls", (), "registers"),
        ("patch", ("y", "x"), "None"),
        ("text", ("t",), "None"),
    ]
    assert spec.queries == spec.keys
    assert spec.axes == ()
    assert spec.axis_names == ("y", "x", "t")


def test_parts_have_sizes_and_are_dims() -> None:
    text = """
    input bias: float[patch] learned
    input words: int[text, text // 2]
    claim text.size + cls.size + patch.size == q_len
    keep q not in text or words[q.text, 0] > 0
    score += bias[k.patch] if k in patch else 0"""
    spec = load(PARTS.format(line=text.strip()))
    assert [str(d.extent) for d in (*spec.inputs[0].dims, *spec.inputs[1].dims)] == [
        "y.size * x.size",
        "t.size",
        "((t.size - 1) // 2) + 1",
    ]
    sizes = resolve(spec, q_len=19, k_len=19, given={"y": 3, "x": 4})
    words = np.array([[1, 0, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0], [1, 0, 0]])
    tables = {"bias": np.arange(12.0) + 1, "words": words}
    found = mask(spec, sizes, tables)
    np.testing.assert_array_equal(found, np.repeat(np.r_[np.ones(14, bool), words[:, 0] > 0], 19).reshape(19, 19))
    expected = np.r_[np.zeros(2), tables["bias"], np.zeros(5)]
    np.testing.assert_array_equal(values(spec.score, sizes, tables)[0], expected)


def test_axes_and_names_may_be_shared_by_parts() -> None:
    """Of the parts that have an axis, the token's own is taken; a name that occurs twice holds both."""
    text = "mask m:\n    axes a: (y, x), text: 2, b: (x), text: 3\n"
    spec = load(text + "    keep q not in text and k not in text\n    keep q.x == k.x\n")
    _, x = grid(2, 4)
    x = np.r_[x, -1, -1, np.arange(4), -1, -1, -1]
    expected = (x[:, None] >= 0) & (x[:, None] == x)
    np.testing.assert_array_equal(kept(spec, 17, 17, y=2, x=4), expected)
    spec = load(text + "    keep q in text and k in text\n    keep q.text == k.text\n")
    words = np.r_[np.full(8, -1), 0, 1, np.full(4, -1), 0, 1, 2]
    np.testing.assert_array_equal(kept(spec, 17, 17, y=2, x=4), (words[:, None] >= 0) & (words[:, None] == words))


@pytest.mark.parametrize(
    "guard",
    [
        "keep where(q in patch, q.y > 1, True)",
        "keep q.y > 1 if q in patch else True",
        "keep True if q not in patch else q.y > 1",
        "keep q not in patch or q.y > 1",
        "keep not (q in patch and q.y <= 1)",
        "keep not (q in patch) or q.y > 1",
        "keep (q in text or q in cls) or q.y > 1",
        "keep where(q in text or q in cls, True, q.y > 1)",
        "let inside = q in patch\n    keep not inside or q.y > 1",
        "keep above(q, 1)",
        "keep q in patch\n    keep q.y > 1",
        "keep q in patch and k in cls\n    let high = q.y > 1\n    keep high",
        "keep is_patch(q)\n    keep q.y > 1",
        "keep not (q in cls or q in text)\n    keep q.y > 1",
        "keep q not in text\n    keep q in cls or q.y > 1",
        "keep (q in patch and k in text) or (q in patch and k in cls)\n    keep q.y > 1",
    ],
)
def test_membership_guards_coordinates(guard: str) -> None:
    functions = "def above(p, n):\n    return p not in patch or p.y > n\ndef is_patch(p):\n    return p in patch\n"
    assert [
        str(d) for d in diagnose(Source("a.mask", functions + PARTS.format(line=guard))) if d.severity == "error"
    ] == []


@pytest.mark.parametrize(
    "line",
    [
        "keep q.y > 1",
        "keep q.y > 1 and q in patch",
        "keep q in patch or q.y > 1",
        "keep k in patch and q.y > 1",
        "keep q in patch and k.y > 1",
        "keep where(q in patch, True, q.y > 1)",
        "keep (q in patch or k in patch) and q.y > 1",
        "keep where(q in patch, True, True) and q.y > 1",
        "keep q not in text\n    keep q.y > 1",
        "let y_ = q.y\n    keep q in patch\n    keep y_ > 1",
        "keep q in patch\n    rows q.y > 1 else zero",
        "keep q in patch\n    normalize softmax(sink=q.y)",
    ],
)
def test_other_parts_have_no_such_coordinate(line: str) -> None:
    found = diagnose(Source("a.mask", PARTS.format(line=line)))
    (message,) = [d.message for d in found if d.severity == "error"]
    assert message.endswith("where it has no 'y'")
    assert "may lie in 'cls'" in message


def test_a_let_at_file_level_is_read_where_its_guard_holds() -> None:
    text = "let height = q.y\nmask m:\n    axes text: t, patch: (y, x)\n    keep {}\n"
    assert diagnose(Source("a.mask", text.format("q in patch and height > 1"))) == []
    below = "q in patch and height > 1\n    score += 1 if height > 2 else 3"  # the line above made sure of it
    assert diagnose(Source("a.mask", text.format(below))) == []
    found = diagnose(Source("a.mask", text.format("where(q in patch, height > 1, True)\n    keep height > 1")))
    assert [d.message for d in found] == ["'q' may lie in 'text', where it has no 'y'"]


# ---- separate lines


def test_separate_lines_have_coordinates_of_their_own() -> None:
    spec = load("mask pooled:\n    queries y, x\n    keys v_, u\n    keep q.y // 2 == k.v_ and q.x // 2 == k.u\n")
    assert spec.separate
    assert (spec.queries, spec.keys) == ((Part(None, ("y", "x")),), (Part(None, ("v_", "u")),))
    y, x = grid(4, 6)
    v, u = grid(2, 3)
    expected = (y[:, None] // 2 == v) & (x[:, None] // 2 == u)
    np.testing.assert_array_equal(kept(spec, 24, 6, x=6, u=3), expected)


def test_separate_lines_may_share_axes_and_parts() -> None:
    spec = load("mask m:\n    queries text: t\n    keys image: (y, x), text: t\n    keep k in image or q.t >= k.t\n")
    y, _ = grid(2, 3)
    expected = np.concatenate([np.ones((4, len(y)), bool), np.tri(4, dtype=bool)], axis=1)
    np.testing.assert_array_equal(kept(spec, 4, 10, y=2, x=3, t=4), expected)


# ---- borders


def test_keys_of_a_border_have_coordinates_outside_the_grid() -> None:
    text = """
mask m(r: int = 1):
    axes y, x border r
    input table: int[y, x]
    keep abs(q.y - k.y) <= r and abs(q.x - k.x) <= r
    score += table[k.y, k.x] + k_len"""
    spec = load(text)
    assert str(spec.border) == "r"
    sizes = resolve(spec, q_len=12, k_len=12, given={"y": 3, "x": 4})
    assert sizes.k_len == 5 * 6
    y, x = grid(3, 4)
    v, u = (c - 1 for c in grid(5, 6))
    expected = (abs(y[:, None] - v) <= 1) & (abs(x[:, None] - u) <= 1)
    np.testing.assert_array_equal(mask(spec, sizes), expected)
    assert set(expected.sum(axis=1)) == {9}  # also in the corners
    table = np.arange(12).reshape(3, 4) + 100
    padded = np.pad(table, 1).ravel() + 12
    np.testing.assert_array_equal(values(spec.score, sizes, {"table": table})[0], padded)


def test_a_border_of_separate_keys() -> None:
    spec = load("mask m:\n    queries t\n    keys x border 2\n    keep 0 <= k.x - q.t < 3\n")
    sizes = resolve(spec, q_len=5, k_len=5, given={"t": 5, "x": 5})
    k = np.arange(-2, 7)
    q = np.arange(5)[:, None]
    np.testing.assert_array_equal(mask(spec, sizes), (k - q >= 0) & (k - q < 3))


# ---- packed documents

STARTS = np.array([0, 5, 5, 6, 14])
DOCUMENT = np.repeat([0, 2, 3, 4], [5, 1, 8, 4])
LOCAL = np.arange(18) - STARTS[DOCUMENT]
LENGTH = np.repeat([5, 1, 8, 4], [5, 1, 8, 4])
SAME = DOCUMENT[:, None] == DOCUMENT


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("keep True", SAME),
        ("keep q - k < 2", SAME & (LOCAL[:, None] - LOCAL < 2)),
        ("keep q // 2 == k // 2", SAME & (LOCAL[:, None] // 2 == LOCAL // 2)),
        ("keep q < q_len - 1 and k_len > 1", SAME & (LOCAL < LENGTH - 1)[:, None]),
        ("keep doc % 2 == 0", SAME & (DOCUMENT % 2 == 0)),
        ("keep causal and sliding_window(window=3)", SAME & np.tri(18, dtype=bool) & ~np.tri(18, 18, -3, dtype=bool)),
    ],
)
@pytest.mark.parametrize("batched", [False, True])
def test_positions_of_packed_documents(line: str, expected: Bools, batched: bool) -> None:
    declared = "input start: int[batch, docs] of seq sorted\n    " if batched else ""
    spec = load(f"mask m:\n    {declared}packed start\n    {line}\n")
    assert spec.packed == "start"
    inputs: dict[str, NDArray[np.generic]] = {"start": STARTS[None] if batched else STARTS}
    np.testing.assert_array_equal(kept(spec, 18, 18, inputs), expected)


def test_the_starts_may_be_declared_below_or_by_the_line_itself() -> None:
    declared = "input start: int[docs] of seq sorted"
    texts = [
        f"mask m:\n    {b}\n    keep q - k < 2\n"
        for b in ("packed start", f"packed start\n    {declared}", f"{declared}\n    packed start")
    ]
    first, second, third = map(load, texts)
    assert first == second == third


def test_tables_of_tokens_are_those_of_the_document() -> None:
    """An index counts in the document; outside of it there is nothing, also where the next document has an entry."""
    text = "mask m:\n    packed start\n    input kind: int[seq]\n    input own: int[q]\n    keep True\n"
    spec = load(text + "    score += kind[q] + 100 * kind[k + 1] + 10000 * own[q - 1] + 1000000 * kind[2]\n")
    sizes = resolve(spec, q_len=18, k_len=18, given={})
    kind, own = np.arange(1, 19), np.arange(21, 39)

    def at(table: NDArray[np.int64], local: NDArray[np.int64]) -> NDArray[np.int64]:
        inside = (local >= 0) & (local < LENGTH)
        return np.where(inside, table[np.clip(STARTS[DOCUMENT] + local, 0, 17)], 0)

    found = values(spec.score, sizes, {"start": STARTS, "kind": kind, "own": own})
    per_query = kind + 10000 * at(own, LOCAL - 1) + 1000000 * at(kind, np.full(18, 2))
    expected = per_query[:, None] + 100 * at(kind, LOCAL + 1)
    np.testing.assert_array_equal(np.where(SAME, found, 0), np.where(SAME, expected, 0))


def test_a_plain_index_into_a_packed_table_is_the_position_itself() -> None:
    spec = load("mask m:\n    packed start\n    input level: float[seq]\n    keep True\n    score += level[k]\n")
    assert str(spec.score) == "score + level[k]"


def test_rows_of_packed_documents() -> None:
    text = "mask m:\n    packed start\n    input route: int[seq, 2]\n    keep k in route[q - 1]\n"
    route = np.stack([np.arange(18) % 3, np.full(18, -1)], axis=1)
    inside = LOCAL >= 1
    wanted = np.where(inside, route[np.clip(np.arange(18) - 1, 0, 17), 0], -1)
    found = kept(load(text), 18, 18, {"start": STARTS, "route": route})
    np.testing.assert_array_equal(found, SAME & (wanted[:, None] == LOCAL))


def test_grids_of_packed_documents_have_a_height_of_their_own() -> None:
    text = "mask m:\n    packed start\n    axes y, x\n    keep q.y == k.y or q.x == k.x\n"
    text += "    keep q.y < y.size - 1 or x.size > 9\n"
    spec = load(text)
    assert spec.queries == spec.keys == (Part(None, ("y", "x")),)
    starts = np.array([0, 4, 10])
    document = np.repeat([0, 1, 2], [4, 6, 2])
    local = np.arange(12) - starts[document]
    y, x, height = local // 2, local % 2, np.array([2, 3, 1])[document]
    expected = (document[:, None] == document) & ((y[:, None] == y) | (x[:, None] == x)) & (y < height - 1)[:, None]
    np.testing.assert_array_equal(kept(spec, 12, 12, {"start": starts}, x=2), expected)


def test_lines_above_packed_count_on_the_whole_line() -> None:
    spec = load("mask m:\n    let position = q\n    packed start\n    keep position % 2 == 0 and k == 0\n")
    expected = SAME & (np.arange(18) % 2 == 0)[:, None] & (LOCAL == 0)
    np.testing.assert_array_equal(kept(spec, 18, 18, {"start": STARTS}), expected)


# ---- masks used as predicates


def test_masks_with_parts_are_matched_by_name() -> None:
    text = """
mask near:
    axes patch: (y, x)
    keep q not in patch or k not in patch or abs(q.y - k.y) <= 1
mask m:
    axes cls: 2, patch: (y, x), text: 5
    keep near
    keep {}
"""
    q, k = of("y")
    expected = (q < 0) | (k < 0) | (abs(q - k) <= 1)
    np.testing.assert_array_equal(
        kept(load(text.format("causal")), 19, 19, y=3, x=4), expected & np.tri(19, dtype=bool)
    )
    guarded = "where(q in patch and k in patch, same_row and neighborhood_of_x, True)"
    library = "mask neighborhood_of_x:\n    axes x\n    keep abs(q.x - k.x) <= 1\n"
    spec = load(library + text.format(guarded))
    (qx, kx), (qy, ky) = of("x"), of("y")
    both = (qy >= 0) & (ky >= 0)
    expected = np.where(both, (qy == ky) & (abs(qx - kx) <= 1), True)
    np.testing.assert_array_equal(kept(spec, 19, 19, y=3, x=4), expected)


def test_a_grid_inside_a_part_has_its_own_numbering() -> None:
    text = """
mask raster:
    axes y, x
    keep k <= q
mask m:
    axes cls: 2, patch: (y, x), text: 5
    keep q in patch and k in patch and raster
"""
    q, k = of("patch")
    np.testing.assert_array_equal(kept(load(text), 19, 19, y=3, x=4), (q >= 0) & (k >= 0) & (k <= q))


def test_positions_may_change_sides() -> None:
    text = """
mask below:
    axes patch: (y, x)
    keep q in patch and k not in patch
mask m:
    axes cls: 2, patch: (y, x), text: 5
    keep below(q=k, k=q)
"""
    q, k = of("patch")
    np.testing.assert_array_equal(kept(load(text), 19, 19, y=3, x=4), (k >= 0) & (q < 0))


def test_sizes_of_parts_of_one_name_must_agree() -> None:
    spec = load(
        "mask inner(n: int):\n    axes text: n\n    keep q in text\n"
        "mask m:\n    axes text: 4, rest: r\n    keep inner(n=4)\n    keep inner(n=q_len)\n"
    )
    assert [str(c.expr) for c in spec.claims] == ["q_len == 4"]
    assert not spec.claims[0].over_pairs


def test_a_packed_mask_used_as_a_predicate() -> None:
    text = "mask local(n: int):\n    packed start\n    keep q - k < n\nmask m:\n    keep causal and local(n=2)\n"
    spec = load(text)
    assert spec.packed is None
    expected = SAME & np.tri(18, dtype=bool) & (LOCAL[:, None] - LOCAL < 2)
    np.testing.assert_array_equal(kept(spec, 18, 18, {"start": STARTS}), expected)


def test_a_mask_with_a_border_fits_the_same_border() -> None:
    text = "mask near(r: int):\n    axes y, x border r\n    keep abs(q.x - k.x) <= r\n"
    text += "mask m:\n    axes y, x border 2\n    keep near(r=2)\n"
    assert str(load(text).clauses[0]) == "abs((q % x.size) - ((k % (x.size + 4)) - 2)) <= 2"
