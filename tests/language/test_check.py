"""What a checked mask says: names resolved, functions and masks inlined, dims and facts of inputs, claims."""

import pickle
import subprocess
import sys
import time

import numpy as np
import pytest
from numpy.typing import NDArray

from maskc.check import check, diagnose, load, load_source
from maskc.diagnostics import MaskError, Source
from maskc.evaluate import Pairs, evaluate
from maskc.expr import Cast, Expr, Literal, Offset, Read, Select, Type, children, conjunction, walk
from maskc.grammar.parser import parse
from maskc.sizes import resolve
from maskc.spec import DimKind, MaskSpec


def kept(
    spec: MaskSpec, length: int, inputs: dict[str, NDArray[np.generic]] | None = None, heads: int = 1, **given: object
) -> NDArray[np.bool_]:
    """The mask [heads, length, length] of the first batch row, by the numbers reading."""
    sizes = resolve(spec, q_len=length, k_len=length, heads=heads, kv_heads=heads, given=given)
    head, q, k = np.ogrid[:heads, :length, :length]
    found = evaluate(spec.predicate, Pairs(np, sizes, inputs or {}, np.zeros((), np.int64), head, q, k))
    return np.broadcast_to(found, (heads, length, length))


def grid(*sizes: int) -> tuple[NDArray[np.int64], ...]:
    """Coordinates of every place of a row-major grid."""
    return tuple(c.ravel() for c in np.meshgrid(*(np.arange(s) for s in sizes), indexing="ij"))


Q, K = np.ogrid[:24, :24]


@pytest.mark.parametrize(
    ("use", "expected"),
    [
        ("causal", Q >= K),
        ("sliding_window()", (Q >= K) & (Q - K < 256)),
        ("sliding_window(window=5)", (Q >= K) & (Q - K < 5)),
        ("sliding_window(5)", (Q >= K) & (Q - K < 5)),
        ("band(radius=3)", abs(Q - K) <= 3),
        ("dilated_window(window=3, dilation=4)", np.isin(Q - K, [0, 4, 8])),
        ("sink(size=2)", np.broadcast_to(K < 2, (24, 24))),
        ("prefix(length=7)", (K < 7) | (Q >= K)),
        ("blocks(size=5)", Q // 5 == K // 5),
        ("causal and not sliding_window(window=4)", Q - K >= 4),
        ("causal or sink(size=3)", (Q >= K) | (K < 3)),
        ("causal(q=k, k=q)", Q <= K),
        ("sliding_window(window=4, q=q // 3, k=k // 3)", (Q // 3 - K // 3 >= 0) & (Q // 3 - K // 3 < 4)),
        ("causal(q=k + 2)", np.broadcast_to(K + 2 >= K, (24, 24))),
        ("where(q < 6, causal, sink(size=1))", np.where(Q < 6, Q >= K, K < 1)),
    ],
)
def test_library_on_a_line(use: str, expected: NDArray[np.bool_]) -> None:
    np.testing.assert_array_equal(kept(load(f"mask m:\n    keep {use}\n"), 24)[0], expected)


def neighbours(index: NDArray[np.int64], size: int, radius: int, dilation: int) -> NDArray[np.bool_]:
    """[size, size]: for every place the 2 * radius + 1 nearest of its residue class, in NATTEN's words."""
    found = np.zeros((size, size), bool)
    for i in range(size):
        group = np.arange(i % dilation, size, dilation)
        at = int(np.searchsorted(group, i))
        start = min(max(at - radius, 0), len(group) - 2 * radius - 1)
        found[i, group[start : start + 2 * radius + 1]] = True
    return found[index[:, None], index[None, :]]


@pytest.mark.parametrize(("radius", "dilation"), [(1, 1), (1, 2), (2, 1)])
def test_library_on_grids(radius: int, dilation: int) -> None:
    given = f"radius={radius}, dilation={dilation}"
    y, x = grid(6, 7)
    spec = load(f"mask m:\n    axes y, x\n    keep neighborhood({given})\n")
    near_y, near_x = neighbours(y, 6, radius, dilation), neighbours(x, 7, radius, dilation)
    np.testing.assert_array_equal(kept(spec, 42, y=6, x=7)[0], near_y & near_x)
    assert [c.over_pairs for c in spec.claims] == [False]
    line = load(f"mask m:\n    axes x\n    keep neighborhood_1d({given})\n")
    np.testing.assert_array_equal(kept(line, 11)[0], neighbours(np.arange(11), 11, radius, dilation))


def test_library_of_windows_rows_and_columns() -> None:
    y, x = grid(4, 6)
    same = lambda a: a[:, None] == a[None, :]  # noqa: E731
    for use, expected in {
        "same_window(window=3)": same(y // 3) & same(x // 3),
        "same_window(window=4, shift=2)": same((y + 2) // 4) & same((x + 2) // 4),
        "same_row": same(y),
        "same_column": same(x),
        "same_row or same_column": same(y) | same(x),
        "causal": np.arange(24)[:, None] >= np.arange(24),
    }.items():
        spec = load(f"mask m:\n    axes y, x\n    keep {use}\n")
        np.testing.assert_array_equal(kept(spec, 24, y=4)[0], expected, err_msg=use)


def test_a_mask_of_fewer_axes_sees_its_own_numbering() -> None:
    """Axes match by name; without axes of its own a mask sees the number on the whole grid."""
    text = """
mask inner:
    axes y, x
    keep k <= q
mask flat:
    keep k <= q
mask {name}:
    axes t, y, x
    keep {name}r
"""
    t, y, x = grid(2, 3, 4)
    plane = y * 4 + x
    spec = load(text.format(name="inne"))
    np.testing.assert_array_equal(kept(spec, 24, y=3, x=4)[0], plane[:, None] >= plane[None, :])
    spec = load(text.replace("{name}r", "flat").format(name="m"))
    np.testing.assert_array_equal(kept(spec, 24, y=3, x=4)[0], np.tri(24, dtype=bool))
    assert t.max() == 1


def test_inputs_of_a_mask_become_the_users() -> None:
    spec = load("mask m:\n    input full: bool[head]\n    keep documents and valid_keys or full\n    keep documents\n")
    assert [str(i.name) for i in spec.inputs] == ["full", "doc", "valid"]
    assert spec.input("doc").sorted
    doc, valid = np.array([[0, 0, 1, 1, 1, 2]]), np.array([[True, True, False, True, True, False]])
    inputs = {"full": np.array([True, False]), "doc": doc, "valid": valid}
    same = doc[0][:, None] == doc[0]
    found = kept(spec, 6, inputs, heads=2)
    np.testing.assert_array_equal(found[0], same)
    np.testing.assert_array_equal(found[1], same & valid)


def test_the_files_own_names_win_over_the_library() -> None:
    text = "def near(a, b):\n    return abs(a - b) <= 1\n"
    text += "mask causal:\n    keep k < q and near(q, k)\nmask m:\n    keep causal\n"
    np.testing.assert_array_equal(kept(load(text), 24)[0], Q - K == 1)
    text += (
        "mask n:\n    axes x\n    keep neighborhood_1d(radius=1)\n"  # the library's masks keep to their own functions
    )
    np.testing.assert_array_equal(kept(load(text), 9)[0], neighbours(np.arange(9), 9, 1, 1))


def test_functions_take_positions_tables_axes_and_names() -> None:
    text = """
def together(table, a, b):
    return table[a] == table[b]
def wrapped(a, b, axis, reach):
    let d = (a - b) % axis.size
    return min(d, axis.size - d) <= reach
def column(p):
    return p.x
mask m(reach: int = 1):
    axes y, x
    input kind: int[seq]
    def close(a, b):
        return wrapped(column(a), b.x, x, reach)
    let a = q
    keep together(kind, a, k) and close(b=k, a=q)
"""
    kind = np.array([0, 1, 1, 0, 1, 1, 0, 0, 1, 0])
    _, x = grid(2, 5)
    d = (x[:, None] - x[None, :]) % 5
    expected = (kind[:, None] == kind) & (np.minimum(d, 5 - d) <= 1)
    np.testing.assert_array_equal(kept(load(text), 10, {"kind": kind}, x=5)[0], expected)


def test_file_level_lets_are_read_in_the_mask_that_uses_them() -> None:
    text = "let d = q - k\nlet reach = 2 * half\nlet half = 2\nmask a:\n    keep 0 <= d < reach\n"
    text += "mask b:\n    axes x\n    keep abs(d) <= half\n    keep a(q=k, k=q)\n"
    np.testing.assert_array_equal(kept(load(text, "a"), 24)[0], (Q >= K) & (Q - K < 4))
    np.testing.assert_array_equal(kept(load(text, "b"), 24)[0], (K >= Q) & (K - Q <= 2))


def test_several_masks_and_the_last_is_the_main_one() -> None:
    text = "mask a:\n    keep k <= q\nmask b(n: int = 3): keep q - k < n\n"
    assert [s.name for s in check(parse(Source("m", text)))] == ["a", "b"]
    assert load(text).name == "b"
    assert load(text, "a").name == "a"


def test_structure_of_a_spec() -> None:
    text = """
mask routed(block: int = 64, top: int = 8, scale_by: float = 2, on: bool = True):
    axes y, x
    input route: int[batch, head, q // block, top] of k // block sorted
    input bias: float[head, 2 * top - 1, y]
    input seen: bool[kv_head, q, k]
    input near: int[seq, n]
    input gate: float[kv_head]
    input scalar: float
    claim top > 0
    claim k <= q
    keep seen[q, k] and route[q // block, 0] == k // block
    keep near[q, 1] > 0
    score += gate * scalar + bias[0, q.y] * scale_by
"""
    assert str(load(text)) == (
        "mask routed\n"
        "  parameter block: int = 64 (structural)\n"
        "  parameter top: int = 8 (structural)\n"
        "  parameter scale_by: float = 2.0\n"
        "  parameter on: bool = True\n"
        "  axes y, x\n"
        "  input route: int[batch, head, q // block, top]"
        " below (((k_offset + k_len) - 1) // block) + 1 sorted\n"
        "  input bias: float[head, 2 * top - 1, y]\n"
        "  input seen: bool[kv_head, q, k]\n"
        "  input near: int[seq, n]\n"
        "  input gate: float[kv_head]\n"
        "  input scalar: float[]\n"
        "  keep seen[kv_head, q - q_offset, k - k_offset] and (route[batch, head, q // block, 0] == (k // block))\n"
        "  keep near[q, 1] > 0\n"
        "  score score + ((gate[kv_head] * scalar) + (bias[head, 0, q.y] * scale_by))\n"
        "  claim top > 0 (sizes)\n"
        "  claim k <= q (pairs)"
    )
    kinds = [[d.kind for d in i.dims] for i in load(text).inputs]
    assert kinds[0] == [DimKind.BATCH, DimKind.HEAD, DimKind.EXTENT, DimKind.EXTENT]
    assert kinds[3] == [DimKind.SEQ, DimKind.FREE]


def test_leading_dims_may_be_written() -> None:
    text = "mask m:\n    input t: int[batch, head, seq]\n    keep t{} == 1\n"
    for written, filled in {
        "[q]": "t[batch, head, q]",
        "[head, q]": "t[batch, head, q]",
        "[head + 1, q]": "t[batch, head + 1, q]",
        "[0, 1, k]": "t[0, 1, k]",
    }.items():
        (read,) = [e for e in walk(load(text.format(written)).predicate) if isinstance(e, Read)]
        assert str(read) == filled


def test_a_dim_per_token_of_the_call_counts_from_the_offset() -> None:
    spec = load("mask m:\n    input t: int[q]\n    input u: int[seq]\n    keep t[k] == t[q] and u[q] == u[k]\n")
    assert str(spec.predicate) == "(t[k - q_offset] == t[q - q_offset]) and (u[q] == u[k])"
    assert sum(isinstance(e, Offset) for e in walk(spec.predicate)) == 2


def test_lines_run_top_to_bottom() -> None:
    spec = load("mask m:\n    let s = score\n    score *= 2\n    score += s\n    score = score - 1\n")
    assert str(spec.score) == "((score * 2.0) + score) - 1.0"
    assert spec.clauses == ()
    assert spec.predicate == Literal(Type.BOOL, True)


def test_every_conversion_is_a_node() -> None:
    spec = load("mask m(f: float = 1):\n    keep q + (k < 3) > f\n    score += where(q > 3, 1, f) + (q == k)\n")
    for expr in (*spec.clauses, spec.score):
        for node in walk(expr):
            if isinstance(node, Select):
                assert node.then.type is node.otherwise.type is node.type
            if type(node).__name__ == "Binary":
                assert len({child.type for child in children(node)}) == 1
            if isinstance(node, Cast):
                assert (node.operand.type, node.type) in {(Type.BOOL, Type.INT), (Type.INT, Type.FLOAT)}
    assert str(spec.clauses[0]) == "float(q + int(k < 3)) > f"


def test_spans_of_what_was_inlined() -> None:
    source = Source("m.mask", "def f(a):\n    return a < 9\nlet d = q - k\nmask m:\n    keep f(d) and causal\n")
    clause = load_source(source).clauses[0]
    assert clause.span is not None
    assert clause.span.text == "f(d) and causal"
    inlined, used = children(clause)
    assert inlined.span is not None
    assert used.span is not None
    assert (inlined.span.text, used.span.text) == ("a < 9", "causal")
    assert [s.text for e in walk(inlined) if (s := e.span) is not None] == ["q", "k", "q - k", "9", "a < 9"]


def test_booleans_count_as_0_and_1_in_arithmetic() -> None:
    spec = load("mask m:\n    score += k <= q\n    score *= 2 + (q == k)\n")
    assert str(spec.score) == "(score + float(int(k <= q))) * float(2 + int(q == k))"


def test_sizes_of_dims_may_be_named() -> None:
    text = """
let width = 3
mask m(block: int = 2):
    let twice = 2 * block
    input t: int[width, twice, blocks]      # the library has a mask `blocks`; here it is a size of its own
    keep t[0, 1, 2] == 1
"""
    spec = load(text)
    assert [(d.kind, str(d.extent)) for d in spec.inputs[0].dims] == [
        (DimKind.EXTENT, "3"),
        (DimKind.EXTENT, "2 * block"),
        (DimKind.FREE, "None"),
    ]
    assert spec.parameters[0].structural


def test_only_what_sizes_a_dim_is_structural() -> None:
    spec = load("mask m(a: int = 2, b: int = 2):\n    input t: int[q // a] of k // b\n    keep t[q // a] == k // b\n")
    assert [p.structural for p in spec.parameters] == [True, False]


def test_many_clauses_make_a_shallow_predicate() -> None:
    clauses = tuple(load(f"mask m:\n    keep q < {i}\n").clauses[0] for i in range(200))
    predicate = conjunction(clauses)
    assert predicate.depth < 12
    assert [str(e) for e in flat(predicate)] == [str(c) for c in clauses]


def flat(expr: Expr) -> list[Expr]:
    """The operands of nested `and`s in order."""
    if str(getattr(expr, "op", "")) == "BinaryOp.AND":
        left, right = children(expr)
        return flat(left) + flat(right)
    return [expr]


def test_one_line_bodies_comments_and_brackets_over_lines() -> None:
    text = """
# comment
mask m(window: int = 4,   # another
       reach: int = 2,
      ):
    # a third
    keep (k <= q           # inside
          and q - k < window

# at the margin
          )
    keep q - k in (
0,
reach)
def one(x): return x
"""
    np.testing.assert_array_equal(kept(load(text), 24)[0], np.isin(Q - K, [0, 2]))


def test_text_inside_a_program_may_be_indented() -> None:
    spec = load("""
        def before(a, b):
            return a <= b

        mask causal:
            keep before(k, q)
    """)
    np.testing.assert_array_equal(kept(spec, 24)[0], Q >= K)


def test_a_file_of_200_lines_is_read_in_a_moment() -> None:
    body = """
def near{i}(a, b, size, radius):
    let centre = clamp(a, radius, size - 1 - radius)
    return abs(b - centre) <= radius and a % 2 == b % 2
mask m{i}(radius: int = {i}, stride: int = 8):
    axes y, x
    input doc: int[batch, seq] sorted
    keep near{i}(q.y, k.y, y.size, radius) and near{i}(q.x, k.x, x.size, radius)
    keep doc[q] == doc[k] or (q - k) % stride == 0
    score += where(q > k, 0.5 * (q - k), -inf if q == k else 0)
"""
    text = "".join(body.format(i=i) for i in range(20))
    assert text.count("\n") == 200
    source = Source("m.mask", text)
    diagnose(source)
    times = []
    for _ in range(5):
        start = time.process_time()
        assert not [d for d in diagnose(source) if d.severity == "error"]
        times.append(time.process_time() - start)
    assert min(times) < 0.15  # of processor time; 0.05 s on an idle machine


def test_specs_are_keys_of_caches() -> None:
    text = "mask m(n: int = 3):\n    keep (q - k) % n == 0 and k <= q\n"
    first, second = load(text), load(text)
    assert first == second
    assert hash(first) == hash(second) == hash(first)
    assert len({first, second, load(text.replace("n: int", "n: float").replace("% n", "* n"))}) == 2
    code = "import sys, pickle; from maskc.check import load\n"
    code += f"assert {{load({text!r})}} == {{pickle.load(sys.stdin.buffer)}}"
    subprocess.run([sys.executable, "-c", code], input=pickle.dumps(first), check=True)


def test_importing_the_checker_is_light() -> None:
    code = "import sys, maskc.check; print([m for m in ('torch', 'triton', 'sympy', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_parse_raises_on_form_alone() -> None:
    parse(Source("m", "mask m:\n    keep windw\n"))
    with pytest.raises(MaskError, match="unexpected '='"):
        parse(Source("m", "mask m:\n    keep q = k\n"))
