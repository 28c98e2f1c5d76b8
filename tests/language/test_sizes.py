"""Sizes of a call: what is inferred, what is converted, and every refusal with its sentence."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from maskc.check import load
from maskc.diagnostics import MaskInputError
from maskc.grids import line_length
from maskc.shapes import check_shapes, free_sizes, input_shape
from maskc.sizes import reads_position, resolve
from maskc.spec import MaskSpec, Sizes

CAUSAL = load("mask causal:\n    keep k <= q\n")
PLAIN = load("mask plain:\n    keep k < 4\n")
GRID = load(
    "mask grid(radius: int = 1):\n    axes y, x\n"
    "    claim 2 * radius < min(y.size, x.size)\n    keep abs(q.y - k.y) <= radius\n"
)
SCALARS = load("mask scalars(n: int, f: float = 0.5, on: bool = True):\n    keep q % n == 0 and on\n    score *= f\n")
TABLES = load(
    """
mask tables(block: int = 4, top: int = 2):
    input doc: int[batch, seq]
    input full: bool[head]
    input gate: float[kv_head, k]
    input route: int[batch, head, q // block, top]
    input size: int[n, 2 * top - 1]
    input order: int[n]
    keep doc[q] == doc[k] and full and gate[k] > 0 and route[q // block, 0] > size[0, 0] + order[1]
"""
)


def sizes(spec: MaskSpec, length: int = 12, **options: Any) -> Sizes:
    """Resolved with equal lengths and nothing given, but for the options."""
    free = {"n": 5} if spec is TABLES else {}
    return resolve(spec, **{"q_len": length, "k_len": length, "given": {}, "free": free, **options})


def refusal(spec: MaskSpec, length: int = 12, **options: Any) -> str:
    """The sentence of the error that the sizes raise."""
    with pytest.raises(MaskInputError) as raised:
        sizes(spec, length, **options)
    return str(raised.value)


@pytest.mark.parametrize(
    ("given", "length", "axes"),
    [
        ({"x": 4}, 12, (("y", 3), ("x", 4))),
        ({"y": 4}, 12, (("y", 4), ("x", 3))),
        ({"y": 3, "x": 4}, 12, (("y", 3), ("x", 4))),
        ({"y": 5, "x": 4}, 12, (("y", 5), ("x", 4))),  # a prefix of the grid
        ({"x": np.int64(4)}, 12, (("y", 3), ("x", 4))),
        ({"x": 3}, 0, (("y", 0), ("x", 3))),
    ],
)
def test_axes(given: dict[str, object], length: int, axes: tuple[tuple[str, int], ...]) -> None:
    found = sizes(GRID, length, given=given)
    assert found.axes == axes
    assert all(type(size) is int for _, size in found.axes)


def test_an_axis_is_inferred_from_the_whole_line() -> None:
    assert sizes(GRID, q_len=2, k_len=12, q_offset=10, given={"x": 4}).axes == (("y", 3), ("x", 4))
    assert sizes(GRID, q_len=6, k_len=6, q_offset=0, k_offset=6, given={"x": 4}).axes == (("y", 3), ("x", 4))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, "mask 'grid' has the axes y, x; give the sizes of all but one, for example x=..."),
        ({"x": 5}, "axis 'y' of mask 'grid' is not given, and the length 12 is no multiple of x = 5"),
        ({"y": 2, "x": 5}, "the grid y=2 x x=5 has 10 places; queries and keys need 12"),
        ({"x": 0}, "axis 'x' of mask 'grid' is 0; expected an int >= 1"),
        ({"x": 2.0}, "axis 'x' of mask 'grid' is 2.0; expected an int >= 1"),
        ({"x": True}, "axis 'x' of mask 'grid' is True; expected an int >= 1"),
        ({"x": "4"}, "axis 'x' of mask 'grid' is '4'; expected an int >= 1"),
        ({"x": 4, "radios": 2}, "mask 'grid' has no parameter or axis 'radios'; did you mean 'radius'?"),
        ({"x": 4, "t": 2}, "mask 'grid' has no parameter or axis 't'; it has radius, y, x"),
        (
            {"x": 4, "radius": 2},
            "mask 'grid' claims '2 * radius < min(y.size, x.size)', which does not hold (radius=2, y.size=3, x.size=4)",
        ),
    ],
)
def test_axes_refused(given: dict[str, object], sentence: str) -> None:
    assert refusal(GRID, given=given) == sentence


def test_an_axis_is_not_inferred_from_an_offset_that_is_a_tensor() -> None:
    assert refusal(GRID, q_offset=None, given={"x": 4}) == (
        "give y=...: the size of an axis cannot be inferred where an offset is a tensor"
    )
    assert sizes(GRID, q_offset=None, given={"x": 4, "y": 9}).q_offset is None


@pytest.mark.parametrize(
    ("given", "parameters"),
    [
        ({"n": 3}, (("n", 3), ("f", 0.5), ("on", True))),
        ({"n": np.int32(3), "f": 2, "on": np.bool_(False)}, (("n", 3), ("f", 2.0), ("on", False))),
        ({"n": -3, "f": np.float32(0.25)}, (("n", -3), ("f", 0.25), ("on", True))),
        ({"n": 3, "f": float("inf")}, (("n", 3), ("f", float("inf")), ("on", True))),
    ],
)
def test_parameters(given: dict[str, object], parameters: tuple[tuple[str, object], ...]) -> None:
    found = sizes(SCALARS, given=given).parameters
    assert found == parameters
    assert [type(v) for _, v in found] == [int, float, bool]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, "parameter 'n' of mask 'scalars' has no default; give n=..."),
        ({"n": 1.0}, "parameter 'n' of mask 'scalars' is 1.0; expected an int"),
        ({"n": True}, "parameter 'n' of mask 'scalars' is True; expected an int"),
        ({"n": None}, "parameter 'n' of mask 'scalars' is None; expected an int"),
        ({"n": np.array([1])}, "parameter 'n' of mask 'scalars' is array([1]); expected an int"),
        ({"n": 2**63}, "parameter 'n' of mask 'scalars' does not fit into 64 bits"),
        ({"n": 1, "f": "x"}, "parameter 'f' of mask 'scalars' is 'x'; expected a float"),
        ({"n": 1, "f": True}, "parameter 'f' of mask 'scalars' is True; expected a float"),
        ({"n": 1, "on": 1}, "parameter 'on' of mask 'scalars' is 1; expected a bool"),
        ({"n": 0}, "mask 'scalars' divides by zero in 'q % n' (n=0)"),
        ({"m": 1}, "mask 'scalars' has no parameter or axis 'm'; it has n, f, on"),
    ],
)
def test_parameters_refused(given: dict[str, object], sentence: str) -> None:
    assert refusal(SCALARS, given=given) == sentence


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"q_len": -1}, "q_len is -1; expected an int >= 0"),
        ({"k_len": 2.0}, "k_len is 2.0; expected an int >= 0"),
        ({"q_offset": -1}, "q_offset is -1; expected an int >= 0"),
        ({"k_offset": 2**62 + 1}, f"k_offset is {2**62 + 1}; expected at most {2**62}"),
        ({"heads": 6, "kv_heads": 4}, "6 query heads and 4 KV heads; expected a multiple of the KV heads"),
        ({"heads": 6, "kv_heads": 0}, "6 query heads and 0 KV heads; expected a multiple of the KV heads"),
        ({"given": {"window": 2}}, "mask 'causal' has no parameter or axis 'window'; it has none"),
    ],
)
def test_counts_refused(options: dict[str, Any], sentence: str) -> None:
    assert refusal(CAUSAL, **options) == sentence


def test_empty_sequences_are_sizes_too() -> None:
    assert sizes(CAUSAL, 0).q_len == 0
    assert sizes(GRID, 0, given={"x": 1}).axes == (("y", 0), ("x", 1))


def test_lengths_that_differ_need_an_offset() -> None:
    assert refusal(CAUSAL, q_len=1, k_len=10) == (
        "q_len is 1 and k_len is 10, and mask 'causal' reads q as a position: "
        "give q_offset=9 to align the ends, or q_offset=0 to align the starts"
    )
    assert "give k_offset=2 to align the ends, or k_offset=0" in refusal(CAUSAL, q_len=12, k_len=10)
    assert sizes(CAUSAL, q_len=1, k_len=10, q_offset=9).q_offset == 9
    assert sizes(CAUSAL, q_len=1, k_len=10, offset_given=True).q_offset == 0
    assert sizes(CAUSAL, q_len=1, k_len=10, q_offset=None).q_offset is None
    assert sizes(PLAIN, q_len=1, k_len=10).k_len == 10
    assert "align" in refusal(CAUSAL, q_len=1, k_len=10, q_offset=9, offset_given=False)


@pytest.mark.parametrize(
    ("line", "reads"),
    [
        ("keep k < 4", False),
        ("input t: int[q]\n    keep t[q] == k", False),
        ("input t: int[q]\n    keep t[q] == q", True),
        ("input t: int[seq]\n    keep t[q] == 1", True),
        ("score -= q", True),
        ("claim k <= q", True),
        ("axes x\n    keep q.x == k.x", True),
        ("keep q_len == k_len", False),
    ],
)
def test_what_reads_the_position_of_the_query(line: str, reads: bool) -> None:
    assert reads_position(load(f"mask m:\n    {line}\n")) == reads


@pytest.mark.parametrize(
    ("clause", "divides"),
    [
        ("q % n == 0", True),
        ("q // (n * 2) == 0", True),
        ("(n > 0 and q % n == 0)", False),
        ("(n == 0 or q % n == 0)", False),
        ("(q % n == 0 if n != 0 else True)", False),
        ("where(n > 0, q % n, 0) == 0", False),
        ("where(k > 0, q % n, 0) == 0", True),
        ("7 // n == 0", True),
        ("q / n > 1", True),
        ("q // (k + n) == 0", False),  # not a scalar: 0 where the divisor is 0
    ],
)
def test_scalar_divisors_are_looked_at_where_they_are_reached(clause: str, divides: bool) -> None:
    spec = load(f"mask m(n: int = 0):\n    keep {clause}\n")
    if divides:
        assert refusal(spec).startswith("mask 'm' divides by zero in '")
    else:
        sizes(spec)


def test_divisors_in_dims() -> None:
    spec = load("mask m(b: int = 0):\n    input t: int[q // b]\n    keep t[q] == 1\n")
    assert refusal(spec) == "mask 'm' divides by zero in 'q // b' (b=0)"


def shapes(call: Sizes, **changed: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Right shapes for `TABLES`, but for those that are given."""
    right = {i.name: input_shape(TABLES, call, i.name) for i in TABLES.inputs}
    return right | changed


def test_shapes() -> None:
    call = sizes(TABLES, batch=2, heads=6, kv_heads=3)
    assert shapes(call) == {
        "doc": (2, 12),
        "full": (6,),
        "gate": (3, 12),
        "route": (2, 6, 3, 2),
        "size": (5, 3),
        "order": (5,),
    }
    check_shapes(TABLES, call, shapes(call))
    larger = shapes(call, size=(7, 3), order=(7,))
    check_shapes(TABLES, replace(call, free=tuple(free_sizes(TABLES, larger).items())), larger)


def test_shapes_follow_the_offsets() -> None:
    call = sizes(TABLES, q_len=3, k_len=12, q_offset=9)
    assert shapes(call) == {
        "doc": (1, 12),
        "full": (1,),
        "gate": (1, 12),
        "route": (1, 1, 3, 2),  # block 2 of the last query, position 11
        "size": (5, 3),
        "order": (5,),
    }
    assert shapes(sizes(TABLES, q_len=3, k_len=12, q_offset=14))["doc"] == (1, 17)
    assert shapes(sizes(TABLES, q_len=3, k_len=2, q_offset=3, k_offset=20))["doc"] == (1, 22)
    assert line_length(TABLES, call) == 12


def test_shapes_with_offsets_that_are_tensors_have_a_least_size() -> None:
    call = sizes(TABLES, q_len=3, k_len=12, q_offset=None)
    check_shapes(TABLES, call, shapes(call))
    check_shapes(TABLES, call, shapes(call, doc=(1, 40), route=(1, 1, 9, 2)))
    with pytest.raises(MaskInputError, match=r"dim 1 \('seq'\) should be at least 12, the length of the shared line"):
        check_shapes(TABLES, call, shapes(call, doc=(1, 11)))
    with pytest.raises(MaskInputError, match=r"dim 1 \('k'\) should be 12"):
        check_shapes(TABLES, call, shapes(call, gate=(1, 40)))


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (
            {"doc": (2, 11)},
            "input 'doc' has shape (2, 11); the spec declares int[batch, seq], so dim 1 ('seq') should be 12,"
            " the length of the shared line of queries and keys",
        ),
        (
            {"doc": (12,)},
            "input 'doc' has shape (12), 1 dims; the spec declares int[batch, seq]",
        ),
        (
            {"full": (3,)},
            "input 'full' has shape (3); the spec declares bool[head], so dim 0 ('head') should be 6",
        ),
        (
            {"route": (2, 6, 3, 4)},
            "input 'route' has shape (2, 6, 3, 4); the spec declares int[batch, head, q // block, top],"
            " so dim 3 ('top') should be 2 (top=2)",
        ),
        (
            {"route": (2, 6, 4, 2)},
            "input 'route' has shape (2, 6, 4, 2); the spec declares int[batch, head, q // block, top],"
            " so dim 2 ('q // block') should be 3 (q_len=12, block=4)",
        ),
        (
            {"order": (7,)},
            "input 'order' has shape (7); the spec declares int[n], so dim 0 ('n') should be 5,"
            " the size that input 'size' gives it",
        ),
    ],
)
def test_shapes_refused(changed: dict[str, tuple[int, ...]], sentence: str) -> None:
    call = sizes(TABLES, batch=2, heads=6, kv_heads=3)
    with pytest.raises(MaskInputError) as raised:
        check_shapes(TABLES, call, shapes(call, **changed))
    assert str(raised.value) == sentence


def test_shapes_that_are_missing_or_negative() -> None:
    call = sizes(TABLES)
    with pytest.raises(MaskInputError, match=r"^input 'doc' is missing; mask 'tables' declares it int\[batch, seq\]$"):
        check_shapes(TABLES, call, {})
    with pytest.raises(MaskInputError, match=r"^the size of dim 'n' of input 'order' is missing$"):
        input_shape(TABLES, replace(call, free=()), "order")
    spec = load("mask m(r: int = 3):\n    input t: int[r - 4]\n    keep t[0] == 1\n")
    with pytest.raises(MaskInputError, match=r"^dim 'r - 4' of input 't' would be -1 \(r=3\)$"):
        input_shape(spec, sizes(spec), "t")


def test_claims_over_pairs_are_not_preconditions() -> None:
    spec = load("mask m:\n    keep k <= q + 1\n    claim k <= q\n    claim heads > 1\n")
    assert refusal(spec) == "mask 'm' claims 'heads > 1', which does not hold"
    assert sizes(spec, heads=2).heads == 2


def test_names_of_dims_are_numbers_too() -> None:
    spec = load("mask m:\n    input t: int[n]\n    claim n > 2\n    keep t[q % n] == q // (n - 4)\n")
    assert refusal(spec) == "the size of dim 'n' is missing; it comes with an input that has this dim"
    assert refusal(spec, free={"n": 2}) == "mask 'm' claims 'n > 2', which does not hold (n=2)"
    assert refusal(spec, free={"n": 4}) == "mask 'm' divides by zero in 'q // (n - 4)' (n=4)"
    assert sizes(spec, free={"n": 5}).free_size == {"n": 5}


@pytest.mark.parametrize(
    ("clause", "sentence"),
    [
        ("any(q == i * k for i in range(n))", None),
        ("any(q % n == i for i in range(n))", None),  # no step, no division
        ("any(q % (i - i) == 0 for i in range(3))", None),  # not a scalar: 0 where the divisor is 0
        ("any(q // (i + k) == n // n for i in range(3))", "mask 'm' divides by zero in 'n // n' (n=0)"),
        ("q % sum(i for i in range(1)) == 0", "mask 'm' divides by zero in 'q % sum(i for i in range(1))'"),
        (
            "all(q < i for i in range(n - 5, 2**40))",
            "'all(q < i for i in range(n - 5, 2**40))' of mask 'm' is evaluated 1,099,511,627,781 times for every pair"
            " (n=0); at most 65,536 are possible",
        ),
        (
            "q // sum(sum(1 for j in range(n + 300)) for i in range(300)) == 0",
            "'sum(sum(1 for j in range(n + 300)) for i in range(300))' of mask 'm' is evaluated 90,000 times",
        ),
    ],
)
def test_folds_are_looked_at_before_they_run(clause: str, sentence: str | None) -> None:
    spec = load(f"mask m(n: int = 0):\n    keep {clause}\n")
    if sentence is None:
        sizes(spec)
    else:
        assert refusal(spec).startswith(sentence)


@pytest.mark.parametrize(
    ("line", "divides"),
    [
        ("score += 1 / n", True),
        ("mass *= abs(q % n)", True),
        ("normalize softmax(sink=1 / n)", True),
        ("weight *= 1 / n", True),
        ("output t[q // n: 4] = count()", True),
        ("rows q % n == 0 else zero", True),
        ("claim k % n == 0", True),
        ("weight *= 1 / n if n > 0 else 0.0", False),
    ],
)
def test_divisors_of_every_statement(line: str, divides: bool) -> None:
    spec = load(f"mask m(n: int = 0):\n    {line}\n")
    if divides:
        assert refusal(spec).startswith("mask 'm' divides by zero in '")
    else:
        sizes(spec)


def test_rows_that_pass_read_the_position_of_the_query() -> None:
    assert reads_position(load("mask m:\n    rows seen else pass\n".replace("seen", "True")))
    assert not reads_position(load("mask m:\n    input on: bool[q]\n    rows on[q] else mean\n"))
    assert reads_position(load("mask m:\n    weight *= q\n"))
