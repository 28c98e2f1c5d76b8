"""Truth over tiles: sound for random predicates, exact where the design promises it, and blind to data on devices."""

import math
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from random_specs import BOOL, INT, Arrays, Draw, K, Q, binary, whole

from maskc.analysis import bounds, support
from maskc.analysis.bounds import Analysis, fits_32_bits, tile_classes, value_range
from maskc.analysis.interval import Truth
from maskc.analysis.shift import along, by_positions, growth
from maskc.analysis.support import arrange
from maskc.constants import constants
from maskc.expr import (
    SCORE,
    Coordinate,
    Count,
    Expr,
    Index,
    Length,
    Offset,
    Parameter,
    Position,
    Read,
    Unary,
    UnaryOp,
    walk,
)
from maskc.reference import mask
from maskc.spec import Dim, DimKind, InputSpec, MaskSpec, ParameterSpec, Sizes

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def nothing_is_remembered() -> Iterator[None]:
    """Tests that change how predicates are cut leave no trace."""
    yield
    arrange.cache_clear()


q, k = Position(INT, Q), Position(INT, K)
d = binary("-", q, k)
Classes = NDArray[np.uint8]


def distance(a: Expr, b: Expr) -> Expr:
    return Unary(INT, UnaryOp.ABS, binary("-", a, b))


def both(*parts: Expr) -> Expr:
    result = parts[0]
    for part in parts[1:]:
        result = binary("and", result, part)
    return result


def exact_classes(kept: NDArray[np.bool_], tile: tuple[int, int]) -> Classes:
    """Class of every tile from the pairs themselves: [..., q_tiles, k_tiles]."""
    rows, columns = (range(0, n, t) for n, t in zip(kept.shape[-2:], tile, strict=True))
    classes = np.zeros((*kept.shape[:-2], len(rows), len(columns)), np.uint8)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            block = kept[..., row : row + tile[0], column : column + tile[1]]
            classes[..., i, j] = np.where(block.all((-1, -2)), 2, block.any((-1, -2)))
    return classes


def brute_force(predicate: Expr, sizes: Sizes, tile: tuple[int, int], inputs: Arrays | None = None) -> Classes:
    spec = MaskSpec("m", axes=tuple(n for n, _ in sizes.axes), clauses=(predicate,))
    return exact_classes(mask(spec, sizes, inputs), tile)


def check_sound(draw: Draw, tile: tuple[int, int]) -> None:
    """A tile is NEVER or ALWAYS only where the pairs say so."""
    predicate = draw.spec().predicate
    found = tile_classes(predicate, draw.sizes, tile, draw.inputs)
    wanted = brute_force(predicate, draw.sizes, tile, draw.inputs).reshape(found.shape)
    wrong = (found != wanted) & (found != Truth.DEPENDS)
    assert not wrong.any(), f"seed {draw.seed}: {predicate} at {draw.sizes}, tiles {np.argwhere(wrong)[:3].tolist()}"


def tile_of(seed: int) -> tuple[int, int]:
    return (1, 3, 7, 16, 32, 64)[seed % 6], (1, 4, 5, 16, 33, 128)[seed // 6 % 6]


@pytest.mark.parametrize("first", range(0, 240, 40))
def test_random_predicates_are_classified_soundly(first: int) -> None:
    for seed in range(first, first + 40):
        check_sound(Draw(seed), tile_of(seed))


def without_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave every predicate to interval arithmetic."""
    arrange.cache_clear()
    monkeypatch.setattr(support, "numbers", lambda expr, sizes: None)


def without_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave reads of inputs and numbers of one side to interval arithmetic, too."""
    without_tables(monkeypatch)
    monkeypatch.setattr(support, "_is_column", lambda expr: not support._sides(expr) and not support._is_open(expr))


def with_coarse_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Classify coarse tiles first even where there are few."""
    monkeypatch.setattr(bounds, "_MANY", 4)
    monkeypatch.setattr(bounds, "_COARSER", 3)
    monkeypatch.setattr(bounds, "_CELLS", 50)


def without_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave folds to intervals over all their steps at once."""
    arrange.cache_clear()
    monkeypatch.setattr(support, "_STEPS", -1)


def without_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave what no table decides of rows to what holds for every row."""
    without_tables(monkeypatch)
    monkeypatch.setattr(bounds, "affordable", lambda scene, row, side: False)


CHANGES = [without_tables, without_columns, with_coarse_tiles, without_steps, without_searches]


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_every_way_to_classify_is_sound(
    change: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    change(monkeypatch)
    for seed in range(1000, 1080):
        check_sound(Draw(seed), tile_of(seed))


@pytest.mark.slow
@pytest.mark.parametrize("change", [None, *CHANGES])
def test_a_long_sweep_is_sound(
    change: Callable[[pytest.MonkeyPatch], None] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if change is not None:
        change(monkeypatch)
    for seed in range(10_000, 12_000):
        check_sound(Draw(seed), tile_of(seed))


SIZES = [Sizes(n, n) for n in (1, 2, 17, 63, 64, 65, 130, 257)] + [
    Sizes(37, 200, q_offset=163),
    Sizes(1, 300, q_offset=299),
    Sizes(64, 100, q_offset=500, k_offset=431),
]
DIFFERENCES = {
    "causal": binary(">=", q, k),
    "window": both(binary("<=", whole(0), d), binary("<", d, whole(20))),
    "shifted": binary(">", binary("+", k, whole(9)), q),
    "dilated": both(binary("<", distance(q, k), whole(40)), binary("==", binary("%", d, whole(7)), whole(0))),
    "residues": binary("==", binary("%", q, whole(5)), binary("%", k, whole(5))),
    "max": binary("<", binary("-", binary("max", q, k), binary("min", q, k)), whole(11)),
    "strided": both(
        binary("<=", k, q), binary("or", binary("<", d, whole(8)), binary("==", binary("%", d, whole(32)), whole(0)))
    ),
    "floored": binary("==", binary("%", binary("//", d, whole(6)), whole(3)), whole(1)),
    "scaled": binary("<=", binary("*", whole(3), q), binary("+", binary("*", k, whole(3)), whole(17))),
}
ONE_SIDED = {
    "prefix": binary("<", k, whole(30)),
    "rows": binary("==", binary("%", q, whole(17)), whole(3)),
    "both sides": both(binary("<", k, whole(30)), binary("<", whole(3), q)),
    "blocks": binary("==", binary("//", q, whole(24)), binary("//", k, whole(24))),
    "odd blocks": binary("<=", binary("//", q, whole(24)), binary("//", k, whole(13))),
}
TILES = [(64, 64), (16, 32), (7, 5)]


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("name", [*DIFFERENCES, *ONE_SIDED])
def test_differences_and_sides_are_exact(name: str, tile: tuple[int, int]) -> None:
    predicate = {**DIFFERENCES, **ONE_SIDED}[name]
    for sizes in SIZES:
        found = tile_classes(predicate, sizes, tile)
        np.testing.assert_array_equal(found[0, 0], brute_force(predicate, sizes, tile), err_msg=str(sizes))


GRIDS: list[tuple[tuple[str, int], ...]] = [
    (("y", 1), ("x", 1)),
    (("y", 2), ("x", 5)),
    (("y", 7), ("x", 7)),
    (("y", 13), ("x", 17)),
    (("y", 3), ("x", 65)),
]
GRIDS += [(("y", 32), ("x", 8)), (("z", 3), ("y", 4), ("x", 5)), (("z", 5), ("y", 2), ("x", 13)), (("t", 100),)]


def clamped(axis: str, size: int, radius: int) -> Expr:
    """A window that slides inwards at the border (NATTEN): |k - clamp(q, radius, size - 1 - radius)| <= radius."""
    a, b = Coordinate(INT, Q, axis), Coordinate(INT, K, axis)
    centre = binary("min", binary("max", a, whole(radius)), whole(size - 1 - radius))
    return binary("<=", distance(b, centre), whole(radius))


def per_axis(rule: Callable[[str, int], Expr], axes: tuple[tuple[str, int], ...]) -> Expr:
    return both(*(rule(name, size) for name, size in axes))


RULES: dict[str, Callable[[str, int], Expr]] = {
    "clamped window": lambda a, n: clamped(a, n, 2),
    "window": lambda a, n: binary("<=", distance(Coordinate(INT, Q, a), Coordinate(INT, K, a)), whole(2)),
    "swin": lambda a, n: binary(
        "==", binary("//", Coordinate(INT, Q, a), whole(4)), binary("//", Coordinate(INT, K, a), whole(4))
    ),
    "residues": lambda a, n: binary(
        "==", binary("%", Coordinate(INT, Q, a), whole(3)), binary("%", Coordinate(INT, K, a), whole(3))
    ),
    "shifted": lambda a, n: binary(
        "==",
        binary("//", binary("%", binary("+", Coordinate(INT, Q, a), whole(2)), whole(max(1, n))), whole(4)),
        binary("//", binary("%", binary("+", Coordinate(INT, K, a), whole(2)), whole(max(1, n))), whole(4)),
    ),
}


@pytest.mark.parametrize("axes", GRIDS, ids=lambda axes: "x".join(str(n) for _, n in axes))
@pytest.mark.parametrize("name", RULES)
def test_separable_predicates_on_grids_are_exact(name: str, axes: tuple[tuple[str, int], ...]) -> None:
    predicate = per_axis(RULES[name], axes)
    tokens = math.prod(n for _, n in axes)
    for q_len, k_len in {(tokens, tokens), (max(1, tokens // 2), tokens)}:
        sizes = Sizes(q_len, k_len, q_offset=tokens - q_len, axes=axes)
        for tile in ((16, 16), (7, 5)):
            found = tile_classes(predicate, sizes, tile)
            np.testing.assert_array_equal(found[0, 0], brute_force(predicate, sizes, tile), err_msg=f"{sizes} {tile}")


def test_a_diamond_on_a_grid_is_exact() -> None:
    """|dy| + |dx| <= 4 is not separable, but a function of two differences."""
    axes = (("y", 13), ("x", 17))
    steps = [distance(Coordinate(INT, Q, a), Coordinate(INT, K, a)) for a in "yx"]
    predicate = binary("<=", binary("+", *steps), whole(4))
    sizes = Sizes(221, 221, axes=axes)
    for tile in TILES:
        np.testing.assert_array_equal(tile_classes(predicate, sizes, tile)[0, 0], brute_force(predicate, sizes, tile))


def test_a_prefix_of_a_grid_is_exact() -> None:
    """The grid may be larger than the sequence."""
    axes = (("y", 20), ("x", 9))
    sizes = Sizes(100, 100, axes=axes)
    predicate = per_axis(lambda a, n: clamped(a, n, 1), axes)
    np.testing.assert_array_equal(tile_classes(predicate, sizes, (16, 8))[0, 0], brute_force(predicate, sizes, (16, 8)))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_sorted_documents_are_exact(sizes: Sizes) -> None:
    """Also under causality, with ids that skip values and documents of any length."""
    generator = np.random.default_rng(3)
    line = max(sizes.q_len + (sizes.q_offset or 0), sizes.k_len + (sizes.k_offset or 0))
    doc = {"doc": np.sort(generator.integers(0, 9, line) ** 2)}
    same = binary("==", Read(INT, "doc", (q,)), Read(INT, "doc", (k,)))
    for predicate in (same, both(binary("<=", k, q), same)):
        for tile in ((16, 16), (32, 8)):
            found = tile_classes(predicate, sizes, tile, doc)
            np.testing.assert_array_equal(found[0, 0], brute_force(predicate, sizes, tile, doc))


def test_heads_and_rows_have_maps_of_their_own_only_where_they_differ() -> None:
    sizes = Sizes(40, 40, batch=2, heads=6, kv_heads=3)
    reach = Read(INT, "reach", (Index(INT, Count.KV_HEAD),))
    inputs = {"reach": np.array([1, 9, 40]), "valid": np.random.default_rng(0).random((2, 40)) < 0.5}
    near, alive = binary("<", distance(q, k), reach), Read(BOOL, "valid", (Index(INT, Count.BATCH), k))
    for predicate, shape in ((near, (1, 6)), (alive, (2, 1)), (both(near, alive), (2, 6)), (binary("<", q, k), (1, 1))):
        found = tile_classes(predicate, sizes, (8, 8), inputs)
        assert found.shape == (*shape, 5, 5)
        wanted = brute_force(predicate, sizes, (8, 8), inputs).reshape(found.shape)
        if predicate in (near, alive):
            np.testing.assert_array_equal(found, wanted)
        else:
            assert ((found == wanted) | (found == Truth.DEPENDS)).all()


def test_offsets_per_batch_row_are_exact_for_differences() -> None:
    sizes = Sizes(20, 90, batch=3, q_offset=None)
    inputs = {"q_offset": np.array([0, 33, 70])}
    predicate = both(binary("<=", k, q), binary("<", d, whole(25)))
    found = tile_classes(predicate, sizes, (8, 16), inputs)
    assert found.shape == (3, 1, 3, 6)
    np.testing.assert_array_equal(found[:, 0], brute_force(predicate, sizes, (8, 16), inputs))


def test_offsets_outside_of_the_grid_read_no_table_out_of_range() -> None:
    """An offset given as a tensor cannot be checked on a device; its tiles are wrong, but nothing else breaks."""
    axes = (("y", 4), ("x", 5))
    sizes = Sizes(8, 20, batch=2, q_offset=None, axes=axes)
    predicate = per_axis(RULES["clamped window"], axes)
    good = {"q_offset": np.array([0, 12])}
    found = tile_classes(predicate, sizes, (4, 4), good)
    np.testing.assert_array_equal(found[:, 0], brute_force(predicate, sizes, (4, 4), good))
    bad = tile_classes(predicate, sizes, (4, 4), {"q_offset": np.array([0, 10**6])})
    np.testing.assert_array_equal(bad[0], found[0])


def test_a_table_of_blocks_gives_the_list_of_tiles() -> None:
    """`layout[q // 16, k // 16]`: a block mask given as a tensor."""
    layout = np.random.default_rng(5).random((8, 8)) < 0.3
    predicate = Read(BOOL, "layout", (binary("//", q, whole(16)), binary("//", k, whole(16))))
    found = tile_classes(predicate, Sizes(128, 128), (16, 16), {"layout": layout})
    np.testing.assert_array_equal(found[0, 0], np.where(layout, 2, 0))


@pytest.mark.parametrize("change", [None, with_coarse_tiles])
def test_coarse_tiles_change_nothing(
    change: Callable[[pytest.MonkeyPatch], None] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if change is not None:
        change(monkeypatch)
    for predicate in DIFFERENCES.values():
        for sizes in (Sizes(130, 130), Sizes(37, 200, q_offset=163), Sizes(0, 5), Sizes(5, 0)):
            np.testing.assert_array_equal(
                tile_classes(predicate, sizes, (4, 4))[0, 0], brute_force(predicate, sizes, (4, 4))
            )


def test_torch_classifies_as_numpy_does_and_never_looks_at_data() -> None:
    for seed in range(24):
        draw = Draw(seed)
        predicate, tile = draw.spec().predicate, (7, 16)
        tensors = {name: torch.from_numpy(value) for name, value in draw.inputs.items()}
        found = tile_classes(predicate, draw.sizes, tile, tensors, xp=torch, device="cpu")
        np.testing.assert_array_equal(found.numpy(), tile_classes(predicate, draw.sizes, tile, draw.inputs))
        meta = {name: tensor.to("meta") for name, tensor in tensors.items()}
        blind = tile_classes(predicate, draw.sizes, tile, meta, xp=torch, device="meta")
        assert (blind.shape, blind.dtype, blind.device.type) == (found.shape, torch.uint8, "meta")


@pytest.mark.parametrize("length", [1 << 16, 1 << 20])
def test_a_long_window_takes_little_time_and_memory(length: int) -> None:
    """Measured alone on one core: 0.01 s and 0.2 s. The bounds leave room for a busy machine."""
    predicate = both(binary("<=", whole(0), d), binary("<", d, whole(512)))
    tracemalloc.start()
    began = time.perf_counter()
    live = 0
    for chunk in bounds.class_chunks(Analysis(predicate, Sizes(length, length)), (128, 128)):
        live += int(np.count_nonzero(chunk.classes))
    seconds = time.perf_counter() - began
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert live == sum(min(i, 4) + 1 for i in range(length // 128))
    assert seconds < 10
    assert peak < 100e6


def test_growth() -> None:
    y, x = Coordinate(INT, Q, "y"), Coordinate(INT, K, "x")
    five = whole(5)
    cases: list[tuple[Expr, str, int | None]] = [
        (q, "", 1),
        (q, "y", 0),
        (y, "y", 1),
        (binary("-", y, x), "x", -1),
        (d, "", 0),
        (binary("*", five, q), "", 5),
        (binary("//", binary("*", five, q), five), "", 1),
        (binary("//", q, five), "", None),
        (binary("%", binary("*", q, five), five), "", 0),
        (binary("max", q, binary("+", k, five)), "", 1),
        (binary("max", q, five), "", None),
        (binary("<", q, binary("+", k, five)), "", 0),
        (binary("<", q, five), "", None),
        (binary("==", binary("%", q, five), binary("%", k, five)), "", 0),
        (binary("==", binary("%", q, five), binary("%", k, whole(6))), "", None),
        (Read(INT, "t", (d,)), "", 0),
        (Read(INT, "t", (q,)), "", None),
        (binary("*", d, d), "", 0),
        (binary("*", q, k), "", None),
    ]
    for expr, axis, wanted in cases:
        assert growth(expr, along(axis)) == wanted, str(expr)


def test_growth_by_positions_on_a_grid() -> None:
    sizes = Sizes(60, 60, axes=(("z", 3), ("y", 4), ("x", 5)))
    steps = {1: (None, None, None), 5: (None, None, 0), 20: (1, 0, 0), 40: (2, 0, 0), 7: (None, None, None)}
    for step, expected in steps.items():
        grown = tuple(growth(Coordinate(INT, Q, axis), by_positions(step, sizes)) for axis in "zyx")
        assert grown == tuple(expected), step
        assert growth(q, by_positions(step, sizes)) == step


def test_ranges_that_hold_in_every_call() -> None:
    window = Parameter(INT, "window")
    assert value_range(q) == (0, math.inf)
    assert value_range(binary("%", q, whole(8))) == (0, 7)
    assert value_range(d) == (-math.inf, math.inf)
    assert value_range(binary("-", q, Offset(INT, Q))) == (0, math.inf)
    assert value_range(window) == (-math.inf, math.inf)
    assert value_range(binary("+", window, whole(1)), {window: (0, 9)}) == (1, 10)
    route = InputSpec("route", INT, (Dim(DimKind.FREE, "n"),), below=whole(5))
    assert value_range(Read(INT, "route", (q,)), inputs=(route,)) == (-1, 4)
    assert value_range(Read(INT, "route", (q,))) == (-math.inf, math.inf)
    assert value_range(binary("*", binary("+", q, whole(3)), binary("+", k, whole(2)))) == (6, math.inf)


def fits(*clauses: Expr, length: int = 1000, inputs: tuple[InputSpec, ...] = (), **changes: Any) -> bool:
    spec = MaskSpec("m", (ParameterSpec("w", INT, None),), (), inputs, clauses, SCORE)
    return fits_32_bits(spec, Sizes(length, length, parameters=(("w", 5),), **changes))


def test_32_bits_suffice_where_bounds_prove_it() -> None:
    square = binary("<", binary("*", q, k), whole(7))
    assert fits(binary("<=", k, q), binary("<", d, Parameter(INT, "w")))
    assert fits(square, length=46_341)
    assert not fits(square, length=46_342)
    assert not fits(binary("<", q, whole(2**31)))
    assert not fits(binary("<=", k, q), length=10, q_offset=2**31)
    assert fits(binary("<=", k, q), q_offset=None)
    assert not fits(binary("<", binary("*", q, whole(2)), k), q_offset=None)


def test_entries_of_inputs_are_not_computed_but_what_follows_from_them_is() -> None:
    label = InputSpec("label", INT, (Dim(DimKind.SEQ, "seq"),))
    bounded = InputSpec("label", INT, (Dim(DimKind.SEQ, "seq"),), below=Length(INT, K))
    read = Read(INT, "label", (q,))
    assert fits(binary("==", read, k), inputs=(label,))
    assert not fits(binary("==", binary("+", read, whole(1)), k), inputs=(label,))
    assert fits(binary("==", binary("+", read, whole(1)), k), inputs=(bounded,))


def test_32_bits_are_enough_whenever_it_is_said() -> None:
    """Every integer part of random predicates, evaluated in 64 bits, stays below 2**31 where the bounds say so."""
    said = 0
    for seed in range(150):
        draw = Draw(seed)
        spec = draw.spec()
        if not fits_32_bits(spec, draw.sizes):
            continue
        said += 1
        for node in walk(constants(spec.predicate, draw.sizes)):
            if node.type is INT and not isinstance(node, Read) and not support._is_open(node):
                large = binary(">=", binary("max", node, Unary(INT, UnaryOp.INVERT, node)), whole(2**31))
                probe = MaskSpec("m", spec.parameters, spec.axes, spec.inputs, (large,))
                assert not mask(probe, draw.sizes, draw.inputs).any(), str(node)
    assert said > 20
