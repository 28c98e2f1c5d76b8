"""Random inputs keep what a spec promises of them."""

import numpy as np
import pytest

from maskc import promises, samples
from maskc.check import load
from maskc.diagnostics import MaskInputError
from maskc.sizes import resolve
from maskc.spec import MaskSpec, Sizes

SPEC = """\
mask many(block: int = 16, top: int = 3):
    input doc: int[batch, seq] sorted
    input cluster: int[batch, head, q]
    input valid: bool[batch, seq]
    input slope: float[head]
    input span: int[head]
    input group: int[batch, seq] of k // block
    input table: float[n, n]
    input limit: int
    keep doc[q] == doc[k] and cluster[q] == cluster[k % q_len] and valid[k] and group[q] == group[k]
    keep q - k < span and k < limit
    score += slope + table[q % 2, k % 2]
"""


def drawn(seed: int = 0) -> tuple[MaskSpec, Sizes, dict[str, samples.Array]]:
    spec = load(SPEC)
    sizes = resolve(spec, q_len=100, k_len=100, batch=2, heads=4, kv_heads=2, given={}, free={"n": 5})
    return spec, sizes, samples.draw(spec, sizes, np.random.default_rng(seed))


def test_shapes_and_types() -> None:
    _, _, found = drawn()
    assert {name: (array.shape, array.dtype) for name, array in found.items()} == {
        "doc": ((2, 100), np.int64),
        "cluster": ((2, 4, 100), np.int64),
        "valid": ((2, 100), np.bool_),
        "slope": ((4,), np.float32),
        "span": ((4,), np.int64),
        "group": ((2, 100), np.int64),
        "table": ((5, 5), np.float32),
        "limit": ((), np.int64),
    }


def test_sorted_ids_ascend_with_repeats() -> None:
    doc = drawn()[2]["doc"]
    assert (np.diff(doc) >= 0).all()
    assert 1 < len(np.unique(doc)) < 50


def test_ids_of_a_range_lie_in_it_or_are_padding() -> None:
    group = drawn()[2]["group"]
    assert set(np.unique(group)) == {-1, *range(7)}


def test_both_booleans_occur() -> None:
    assert set(np.unique(drawn()[2]["valid"])) == {False, True}


def test_the_seed_decides() -> None:
    first, again, other = (drawn(seed)[2] for seed in (1, 1, 2))
    assert all((first[name] == again[name]).all() for name in first)
    assert (first["slope"] != other["slope"]).any()


def test_an_empty_range_leaves_padding_alone() -> None:
    assert (samples.draw_ids((3, 4), 0, np.random.default_rng(0), padded=True) == -1).all()


@pytest.mark.parametrize(
    ("name", "place", "value", "sentence"),
    [
        ("group", (1, 3), 7, "declared with entries of k // block, in [0, 7) or -1, but group[1, 3] is 7"),
        ("group", (0, 0), -2, "declared with entries of k // block, in [0, 7) or -1, but group[0, 0] is -2"),
        ("doc", (1, 99), -1, "input 'doc' is declared sorted, but doc[1, 99] is -1 and follows 9"),
    ],
)
def test_a_broken_promise_is_named(name: str, place: tuple[int, ...], value: int, sentence: str) -> None:
    spec, sizes, found = drawn()
    promises.check(spec, sizes, found)
    found[name][place] = value
    with pytest.raises(MaskInputError) as caught:
        promises.check(spec, sizes, found)
    assert sentence in str(caught.value)


def test_starts_of_documents_ascend_from_0_on_the_line() -> None:
    spec = load("mask m:\n    input start: int[batch, docs] of seq sorted\n    packed start\n    keep k <= q\n")
    sizes = resolve(spec, q_len=30, k_len=40, q_offset=10, batch=50, given={}, free={"docs": 5})
    start = samples.draw(spec, sizes, np.random.default_rng(0))["start"]
    assert start.shape == (50, 5)
    promises.check(spec, sizes, {"start": start})
    assert 30 < start.max() < 40
    empty = resolve(spec, q_len=0, k_len=0, given={}, free={"docs": 5})
    assert (samples.draw(spec, empty, np.random.default_rng(0))["start"] == 0).all()


def test_floats_are_positive_where_only_these_make_sense() -> None:
    spec = load(
        "mask m:\n    input decay: float[head]\n    input gate: float[k]\n    input rate: float[q]\n"
        "    input bias: float[q]\n    let total = cumsum(rate, q)\n"
        "    score += bias[q] * sqrt(total[q])\n    mass *= gate[k] * 2\n    weight *= decay ** (q - k)\n"
    )
    sizes = resolve(spec, q_len=200, k_len=200, heads=200, kv_heads=200, given={})
    found = samples.draw(spec, sizes, np.random.default_rng(0))
    assert {name for name, array in found.items() if array.min() >= 0} == {"decay", "gate", "rate"}
    assert all(array.max() < 1 for name, array in found.items() if name != "bias")


def test_rows_of_buckets_ascend() -> None:
    spec = load("mask m:\n    input edges: float[n]\n    keep bucket(q / 4, edges) == bucket(k / 4, edges)\n")
    sizes = resolve(spec, q_len=8, k_len=8, given={}, free={"n": 9})
    assert (np.diff(samples.draw(spec, sizes, np.random.default_rng(0))["edges"]) >= 0).all()


def test_free_dims_have_one_size() -> None:
    spec = load("mask some:\n    input a: bool[n, m]\n    input b: int[m]\n    keep a[q % n, k % m] and b[0] == 1\n")
    assert samples.free_extents(spec) == {"n": 4, "m": 4}
    assert samples.free_extents(spec, {"b": (7,)}) == {"n": 4, "m": 7}
    found = samples.draw(
        spec, resolve(spec, q_len=8, k_len=8, given={}, free={"m": 7, "n": 4}), np.random.default_rng(0)
    )
    assert {name: array.shape for name, array in found.items()} == {"a": (4, 7), "b": (7,)}


def test_rows_of_inner_products_are_as_wide_as_q_and_k() -> None:
    spec = load("mask m:\n    input rows: float[n, w]\n    input n_: bool[n]\n    score += dot(query, rows[k % n])\n")
    assert samples.free_extents(spec, width=16) == {"n": 4, "w": 16}


def test_factors_of_masses_are_positive_in_conditions_too() -> None:
    spec = load("mask m:\n    input gate: float[k]\n    mass *= 1 if k <= q else gate[k]\n")
    sizes = resolve(spec, q_len=99, k_len=99, given={})
    assert (samples.draw(spec, sizes, np.random.default_rng(0))["gate"] >= 0).all()
