"""Rows, buckets, folds and random numbers: their values by Python itself, and what plans know of them."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from random_specs import BOOL, FLOAT, INT, Arrays, K, Q, binary, whole

from maskc import rand
from maskc.analysis import searches, support
from maskc.analysis.bounds import Analysis, reads_data, tile_classes
from maskc.analysis.interval import Truth
from maskc.analysis.support import arrange
from maskc.arrays import random_bits
from maskc.evaluate import Pairs, evaluate, tables_read
from maskc.expr import (
    TRUE,
    Bound,
    Bucket,
    Cast,
    Count,
    Expr,
    Fold,
    FoldOp,
    FreeSize,
    Index,
    Literal,
    Member,
    Position,
    Rand,
    Read,
    Row,
)
from maskc.reference import mask
from maskc.spec import Dim, DimKind, InputSpec, MaskSpec, PrefixSum, Sizes, Values

q, k = Position(INT, Q), Position(INT, K)
d = binary("-", q, k)
i, j = Bound(INT, "i"), Bound(INT, "j")
BATCH, HEAD, KV_HEAD = (Index(INT, count) for count in Count)


def value(expr: Expr, xp: Any, inputs: Arrays | None = None, free: tuple[tuple[str, int], ...] = ()) -> list[Any]:
    """At queries 0 to 7 of key 3."""
    places = [np.zeros((), np.int64)] * 2 + [np.arange(8), np.full((), 3)]
    arrays: dict[str, Any] = inputs or {}
    if xp is torch:
        places, arrays = ([torch.from_numpy(x) for x in places], {n: torch.from_numpy(x) for n, x in arrays.items()})
    found = evaluate(expr, Pairs(xp, Sizes(8, 8, free=free), arrays, *places))
    listed: list[Any] = (found + np.zeros(8, found.dtype) if xp is np else found.expand(8)).tolist()
    return listed


XP = pytest.mark.parametrize("xp", [np, torch], ids=["numpy", "torch"])


@XP
def test_padding_matches_nothing_and_rows_out_of_range_are_empty(xp: Any) -> None:
    table = {"row": np.array([[-1, 3, 3], [0, -2, 5], [-1, -1, -1]])}
    row = Row("row", (binary("-", q, whole(1)),))
    assert value(Member(BOOL, k, row), xp, table) == [False, True, False, False] + [False] * 4
    assert value(Member(BOOL, whole(-1), row), xp, table) == [False] * 8
    assert value(Member(BOOL, whole(0), row), xp, table) == [False, False, True] + [False] * 5
    assert value(Bucket(INT, whole(4), row), xp, {"row": np.array([[1, 4, 9], [5, 6, 7]])}) == [0, 2, 0] + [0] * 5


@XP
@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
def test_empty_rows_hold_nothing(xp: Any, shape: tuple[int, ...]) -> None:
    row = Row("row", (q,) * (len(shape) - 1))
    table = {"row": np.zeros(shape, np.int64)}
    assert value(Member(BOOL, whole(0), row), xp, table) == [False] * 8
    assert value(Bucket(INT, whole(0), row), xp, table) == [0] * 8


@XP
@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 9])
def test_buckets_count_entries(xp: Any, length: int) -> None:
    """Repeats included, for ints and floats; nothing is <= NaN."""
    entries = sorted(np.random.default_rng(length).integers(-2, 7, length).tolist())
    wanted = [sum(entry <= item for entry in entries) for item in range(8)]
    assert value(Bucket(INT, q, Row("row", ())), xp, {"row": np.array(entries)}) == wanted
    halves = Bucket(INT, Cast(FLOAT, q), Row("row", ()))
    assert value(halves, xp, {"row": np.array(entries, np.float32)}) == wanted
    nothing = Literal(FLOAT, math.nan)
    assert value(Bucket(INT, nothing, Row("row", ())), xp, {"row": np.array(entries, np.float64)}) == [0] * 8


ARGUMENTS = [0, 1, -1, 7, 2**31, 2**32 - 1, 2**32, 2**63 - 1, -(2**63), -(2**32) - 5, 123456789012345]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_random_numbers_are_the_published_ones(count: int) -> None:
    """The pure-Python mix, numpy and torch, bit for bit, also where float32 holds the value."""
    for chosen in itertools.islice(itertools.product(ARGUMENTS, repeat=count), 0, None, 7 ** (count - 1)):
        wanted = rand.rand(chosen)
        ours = random_bits([np.array([a], np.int64) for a in chosen])
        theirs = random_bits([torch.tensor([a], dtype=torch.int64) for a in chosen])
        assert ours.tolist() == theirs.tolist() == [wanted * 2**24]
        expr = Rand(FLOAT, tuple(whole(a) for a in chosen))
        assert value(expr, np) == value(expr, torch) == [wanted] * 8
        assert np.float32(wanted) == wanted


def test_random_numbers_do_not_depend_on_the_default_dtype() -> None:
    before = torch.get_default_dtype()
    expr = Rand(FLOAT, (whole(3), q))
    try:
        torch.set_default_dtype(torch.float16)
        assert value(expr, torch) == [rand.rand((3, n)) for n in range(8)]
    finally:
        torch.set_default_dtype(before)


@XP
def test_folds_join_their_steps(xp: Any) -> None:
    equal = binary("==", q, binary("*", i, whole(2)))
    assert value(Fold(BOOL, FoldOp.ANY, i, whole(3), equal), xp) == [n in (0, 2, 4) for n in range(8)]
    assert value(Fold(BOOL, FoldOp.ALL, i, whole(3), binary(">=", q, i)), xp) == [n >= 2 for n in range(8)]
    product = binary("*", i, binary("+", q, j))
    twice = Fold(INT, FoldOp.SUM, i, whole(3), Fold(INT, FoldOp.SUM, j, FreeSize(INT, "n"), product))
    wanted = [sum(a * (n + b) for a in range(3) for b in range(4)) for n in range(8)]
    assert value(twice, xp, free=(("n", 4),)) == wanted
    for op, empty in ((FoldOp.ANY, False), (FoldOp.ALL, True)):
        assert value(Fold(BOOL, op, i, whole(0), TRUE), xp) == [empty] * 8
        assert value(Fold(BOOL, op, i, whole(-3), TRUE), xp) == [empty] * 8
    assert value(Fold(INT, FoldOp.SUM, i, whole(0), q), xp) == [0] * 8


@XP
def test_what_a_fold_shares_is_read_anew_at_every_step(xp: Any) -> None:
    """The same node twice in a body, and one fold inside of two steps of another."""
    square = binary("*", i, i)
    body = binary("+", square, binary("+", square, binary("*", q, q)))
    wanted = [sum(2 * a * a + n * n for a in range(4)) for n in range(8)]
    assert value(Fold(INT, FoldOp.SUM, i, whole(4), body), xp) == wanted
    inner = Fold(INT, FoldOp.SUM, j, whole(3), binary("*", square, binary("+", j, j)))
    wanted = [sum(2 * 6 * a * a for a in range(4))] * 8
    assert value(Fold(INT, FoldOp.SUM, i, whole(4), binary("+", inner, inner)), xp) == wanted


def test_long_rows_take_no_memory_per_entry_and_pair() -> None:
    import tracemalloc

    size, length = 400, 300
    table = np.random.default_rng(0).integers(0, size, (size, length))
    zero = np.zeros((), np.int64)
    pairs = Pairs(np, Sizes(size, size), {"row": table}, zero, zero, np.arange(size)[:, None], np.arange(size)[None, :])
    tracemalloc.start()
    found = evaluate(Member(BOOL, k, Row("row", (q,))), pairs)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (found == np.stack([np.isin(np.arange(size), row) for row in table])).all()
    assert peak < 8 * size * size


# ---- plans


@pytest.fixture
def no_tables(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As for long lines: no table over pairs of numbers is affordable."""
    arrange.cache_clear()
    monkeypatch.setattr(support, "numbers", lambda expr, sizes: None)
    yield
    arrange.cache_clear()


def exact(predicate: Expr, sizes: Sizes, inputs: Arrays, tile: tuple[int, int]) -> NDArray[np.uint8]:
    kept = mask(MaskSpec("m", clauses=(predicate,)), sizes, inputs)
    found = np.zeros((*kept.shape[:-2], -(-sizes.q_len // tile[0]), -(-sizes.k_len // tile[1])), np.uint8)
    for row, column in np.ndindex(found.shape[-2:]):
        block = kept[..., row * tile[0] :, column * tile[1] :][..., : tile[0], : tile[1]]
        found[..., row, column] = np.where(block.all((-1, -2)), 2, block.any((-1, -2)))
    return found


def assert_exact(predicate: Expr, sizes: Sizes, inputs: Arrays) -> None:
    """By numpy and by torch."""
    tensors = {name: torch.from_numpy(x) for name, x in inputs.items()}
    for tile in ((16, 16), (32, 8), (7, 50)):
        wanted = exact(predicate, sizes, inputs, tile)
        found = tile_classes(predicate, sizes, tile, inputs)
        np.testing.assert_array_equal(found.reshape(wanted.shape), wanted, err_msg=f"{predicate} {tile}")
        on_torch = tile_classes(predicate, sizes, tile, tensors, xp=torch)
        np.testing.assert_array_equal(on_torch.numpy(), found)


@pytest.mark.usefixtures("no_tables")
@pytest.mark.parametrize("block", [1, 4, 16, 20, 64])
def test_tiles_of_routed_rows_are_exact(block: int) -> None:
    """Rows per query, of each batch row and KV head, with padding, repeats and queries behind the last row."""
    generator = np.random.default_rng(block)
    sizes = Sizes(90, 130, batch=2, heads=4, kv_heads=2)
    blocks = -(-130 // block)
    near = np.arange(80)[None, None, :, None] // 20 * 20 // block
    route = np.clip(near + generator.integers(-1, 2, (2, 2, 80, 4)), -1, blocks)
    item = binary("//", k, whole(block))
    assert_exact(Member(BOOL, item, Row("route", (BATCH, KV_HEAD, q))), sizes, {"route": route})


@pytest.mark.usefixtures("no_tables")
def test_tiles_whose_queries_read_whole_ranges_are_full() -> None:
    route = np.stack([np.arange(n // 16 * 16, n // 16 * 16 + 16) for n in range(128)])
    generator = np.random.default_rng(0)
    inputs = {"route": generator.permuted(route, axis=1)}
    predicate = Member(BOOL, k, Row("route", (q,)))
    found = tile_classes(predicate, Sizes(128, 128), (16, 16), inputs)
    np.testing.assert_array_equal(found[0, 0], np.where(np.eye(8, dtype=bool), 2, 0))


@pytest.mark.usefixtures("no_tables")
def test_one_row_for_all_is_decided_exactly() -> None:
    for entries in ([1, 4, 16, 17, 18, 19], [0], [-1, -1], [*range(40)]):
        inputs = {"row": np.array(entries)}
        assert_exact(Member(BOOL, Cast(INT, binary("<", k, whole(20))), Row("row", ())), Sizes(60, 60), inputs)
        assert_exact(Member(BOOL, d, Row("row", ())), Sizes(60, 60), inputs)


@pytest.mark.usefixtures("no_tables")
@pytest.mark.parametrize("reached", range(6))
def test_buckets_grow_with_their_item(reached: int) -> None:
    inputs = {"edges": np.array([-20, -3, 0, 0, 25]), "own": np.array([[0, 10, 30], [5, 5, 60]])}
    assert_exact(binary("<=", Bucket(INT, d, Row("edges", ())), whole(reached)), Sizes(70, 90), inputs)
    per_head = binary(">", Bucket(INT, d, Row("own", (HEAD,))), whole(reached))
    assert_exact(per_head, Sizes(70, 70, heads=2, kv_heads=2), inputs)


def test_packed_documents_are_exact() -> None:
    inputs = {"start": np.array([[0, 13, 13, 64, 100], [0, 1, 2, 50, 129]])}

    def document(place: Expr) -> Expr:
        return Bucket(INT, place, Row("start", (BATCH,)))

    assert_exact(binary("==", document(q), document(k)), Sizes(130, 130, batch=2), inputs)


def test_short_folds_are_written_out() -> None:
    """Dilated neighbours on a grid too large for a table of two differences: each step is two tables."""
    near = Read(INT, "steps", (i,))
    inputs = {"steps": np.array([0, 3, 40])}
    offset = binary("==", d, near)
    assert_exact(Fold(BOOL, FoldOp.ANY, i, whole(3), offset), Sizes(90, 90), inputs)
    count = Fold(INT, FoldOp.SUM, i, whole(3), Cast(INT, binary(">=", d, near)))
    assert_exact(binary(">=", count, whole(2)), Sizes(90, 90), inputs)


@pytest.mark.usefixtures("no_tables")
def test_long_folds_are_bounded_over_all_steps() -> None:
    """any(d == 2 * i), i < 100: only differences in [0, 198] can be."""
    steps = Fold(BOOL, FoldOp.ANY, i, whole(100), binary("==", d, binary("*", whole(2), i)))
    found = tile_classes(steps, Sizes(600, 600), (50, 50))[0, 0]
    wanted = exact(steps, Sizes(600, 600), {}, (50, 50))
    assert ((found > 0) >= (wanted > 0)).all()
    assert (found[wanted == 0] == 0).sum() == (wanted == 0).sum()


def test_random_numbers_are_below_one() -> None:
    for limit, truth in ((1.0, Truth.ALWAYS), (0.0, Truth.NEVER), (0.5, Truth.DEPENDS)):
        predicate = binary("<", Rand(FLOAT, (q, k)), Literal(FLOAT, limit))
        assert (tile_classes(predicate, Sizes(900, 900), (64, 64)) == truth).all()


@pytest.mark.usefixtures("no_tables")
def test_blocks_of_a_given_layout_are_read_at_the_corners_of_a_tile() -> None:
    layout = np.random.default_rng(5).random((2, 9, 9)) < 0.3
    predicate = Read(BOOL, "layout", (HEAD, binary("//", q, whole(16)), binary("//", k, whole(16))))
    sizes = Sizes(140, 140, heads=2, kv_heads=2)
    for tile in ((16, 16), (8, 16), (32, 32), (16, 8)):
        found = tile_classes(predicate, sizes, tile, {"layout": layout})
        np.testing.assert_array_equal(found[0], exact(predicate, sizes, {"layout": layout}, tile))


def test_more_rows_than_can_be_looked_at_decide_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    arrange.cache_clear()
    monkeypatch.setattr(searches, "_ENTRIES", 10)
    monkeypatch.setattr(support, "numbers", lambda expr, sizes: None)
    inputs = {"route": np.full((32, 2), 1)}
    found = Analysis(Member(BOOL, k, Row("route", (q,))), Sizes(32, 32), inputs).every((8, 8))
    arrange.cache_clear()
    assert (found == Truth.DEPENDS).all()


def test_tables_of_the_spec_are_no_data() -> None:
    one = Dim(DimKind.EXTENT, "2", whole(2))
    given = InputSpec("given", INT, (one,))
    held = InputSpec("held", INT, (one,), source=Values((2,), (1, 2)))
    summed = InputSpec("summed", INT, (one,), source=PrefixSum("held", 0))
    late = InputSpec("late", INT, (one,), source=PrefixSum("given", 0))
    for table, expected in (("held", False), ("summed", False), ("given", True), ("late", True)):
        clause = Member(BOOL, k, Row(table, ()))
        spec = MaskSpec("m", inputs=(given, held, summed, late), clauses=(clause,))
        assert reads_data(spec, Sizes(4, 4)) == expected
        assert tables_read(clause) == {table}
