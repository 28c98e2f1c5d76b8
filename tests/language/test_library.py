"""The standard library as a whole, and its masks on a line against the rules of their papers, pair by pair."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from library_cases import REFUSED, Rule, both_ways, kept, masks, pairs

from maskc import library, reference
from maskc.check import diagnose, load
from maskc.diagnostics import MaskError, MaskInputError, Source
from maskc.grammar.parser import parse
from maskc.sizes import resolve

# ---- the library as a whole


def test_it_checks_without_a_warning() -> None:
    assert [str(d) for d in diagnose(Source("library.mask", library.text()))] == []


def test_every_mask_and_function_has_a_test() -> None:
    here = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_library*.py"))
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
