"""The library's masks inside others: algebra, other positions, some of the axes, parts, packed documents, borders."""

import numpy as np
import pytest
from library_cases import Rule, composed, coordinates, groups, kept, natten_rule, on_grid, pairs

from maskc import reference
from maskc.check import diagnose, load
from maskc.diagnostics import MaskError, Source
from maskc.sizes import resolve


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
