"""What each form of expression becomes: tables, rows, vectors, folds, buckets, prefix sums, rand and sizes."""

import pytest

from maskc.check import diagnose, load
from maskc.diagnostics import Source
from maskc.expr import (
    SCORE,
    AxisSize,
    Binary,
    BinaryOp,
    Bound,
    Bucket,
    Cast,
    Coordinate,
    Count,
    Dot,
    Expr,
    Fold,
    FoldOp,
    FreeSize,
    Index,
    Kept,
    Length,
    Literal,
    Member,
    Offset,
    Parameter,
    Position,
    Rand,
    Read,
    Row,
    Scale,
    Side,
    Token,
    Type,
    Unary,
    UnaryOp,
    children,
)
from maskc.spec import DimKind, MaskSpec, PrefixSum, Values

Q, K = Position(Type.INT, Side.Q), Position(Type.INT, Side.K)
HEAD, BATCH, KV_HEAD = (Index(Type.INT, count) for count in (Count.HEAD, Count.BATCH, Count.KV_HEAD))
OWN = Binary(Type.INT, BinaryOp.SUB, Q, Offset(Type.INT, Side.Q))  # the query's number in the call

LINES = """
    input route: int[batch, kv_head, q, top]
    input start: int[batch, docs] sorted
    input edge: float[bins] sorted
    input level: float[head, y]
    input centre: float[head, c, 64]
    input vector: float[head, 64]
    input flag: bool[seq]
    let pattern = [[1, 0, 1], [0, 1, 1]]
"""


def n(value: int) -> Literal:
    """An int."""
    return Literal(Type.INT, value)


def op(name: str, left: Expr, right: Expr, kind: Type = Type.INT) -> Binary:
    """`left name right`."""
    return Binary(kind, BinaryOp(name), left, right)


def same(left: Expr, right: Expr) -> Binary:
    """`left == right`."""
    return op("==", left, right, Type.BOOL)


def table(name: str, *indices: Expr, kind: Type = Type.INT) -> Read:
    """An entry."""
    return Read(kind, name, indices)


def mask(*lines: str, head: str = "mask m:", above: str = "") -> MaskSpec:
    """The mask of some lines, with inputs to read."""
    body = "".join(f"    {line}\n" for line in lines)
    return load(f"{above}{head}\n    axes y, x\n{LINES}{body}")


def clause(text: str, **given: str) -> Expr:
    """What `keep text` becomes."""
    return mask(f"keep {text}", **given).clauses[-1]


def plus(text: str) -> Expr:
    """What is added to the score by `score += text`."""
    score = mask(f"score += {text}").score
    assert isinstance(score, Binary)
    assert score.left == SCORE
    return score.right


ROUTE = Row("route", (BATCH, KV_HEAD, OWN))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("k in route[q]", Member(Type.BOOL, K, ROUTE)),
        ("k in (route[q])", Member(Type.BOOL, K, ROUTE)),
        ("k not in route[q]", Unary(Type.BOOL, UnaryOp.NOT, Member(Type.BOOL, K, ROUTE))),
        ("k in route[kv_head, q]", Member(Type.BOOL, K, ROUTE)),
        ("k in route[batch, kv_head, q]", Member(Type.BOOL, K, ROUTE)),
        ("(q == k) in route[q]", Member(Type.BOOL, Cast(Type.INT, same(Q, K)), ROUTE)),
        ("k in pattern[q]", Member(Type.BOOL, K, Row("pattern", (Q,)))),
        ("k in [1, 4, 16]", Member(Type.BOOL, K, Row("table", ()))),
        ("route[q, 0] == k", same(table("route", BATCH, KV_HEAD, OWN, n(0)), K)),
        ("route[q][0] == k", same(table("route", BATCH, KV_HEAD, OWN, n(0)), K)),
        ("pattern[q, k] == 1", same(table("pattern", Q, K), n(1))),
        ("pattern[q][k] == 1", same(table("pattern", Q, K), n(1))),
        ("[1, 4, 16][q] == k", same(table("table", Q), K)),
        ("bucket(q, start) == k", same(Bucket(Type.INT, Q, Row("start", (BATCH,))), K)),
        ("bucket(q, start[batch]) == k", same(Bucket(Type.INT, Q, Row("start", (BATCH,))), K)),
        ("bucket(q, edge) == k", same(Bucket(Type.INT, Cast(Type.FLOAT, Q), Row("edge", ())), K)),
        ("bucket(q, [0, 8, 64]) == k", same(Bucket(Type.INT, Q, Row("table", ())), K)),
        ("rand(7, head, q == k) < 0.5", None),
        ("docs == q", same(FreeSize(Type.INT, "docs"), Q)),
        ("top * 2 == k", same(op("*", FreeSize(Type.INT, "top"), n(2)), K)),
    ],
)
def test_decisions(text: str, expected: Expr | None) -> None:
    if expected is None:
        mixed = Rand(Type.FLOAT, (n(7), HEAD, Cast(Type.INT, same(Q, K))))
        expected = op("<", mixed, Literal(Type.FLOAT, 0.5), Type.BOOL)
    assert clause(text) == expected


QUERY, KEY = Token(Side.Q), Token(Side.K)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dot(query, key)", Dot(Type.FLOAT, QUERY, KEY)),
        ("dot(key, key)", Dot(Type.FLOAT, KEY, KEY)),
        ("dot(query, vector)", Dot(Type.FLOAT, QUERY, Row("vector", (HEAD,)))),
        ("dot(centre[q], centre[head, k])", Dot(Type.FLOAT, Row("centre", (HEAD, Q)), Row("centre", (HEAD, K)))),
        ("dot(query, [0.5, 1])", Dot(Type.FLOAT, QUERY, Row("table", ()))),
        ("scale", Scale(Type.FLOAT)),
        ("score", SCORE),
        ("rand(0)", Rand(Type.FLOAT, (n(0),))),
    ],
)
def test_numbers(text: str, expected: Expr) -> None:
    assert plus(text) == expected


def fold(kind: FoldOp, count: Expr, body: Expr, name: str = "i") -> Fold:
    return Fold(body.type, kind, Bound(Type.INT, name), count, body)


AT_I, AT_J = Bound(Type.INT, "i"), Bound(Type.INT, "j")
N = Parameter(Type.INT, "n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("any(k == i for i in range(3))", fold(FoldOp.ANY, n(3), same(K, AT_I))),
        ("any(k == i for i in (range(3)))", fold(FoldOp.ANY, n(3), same(K, AT_I))),
        ("all(k == i for i in range(n))", fold(FoldOp.ALL, N, same(K, AT_I))),
        ("all(k == i for i in range(n == 3))", fold(FoldOp.ALL, Cast(Type.INT, same(N, n(3))), same(K, AT_I))),
        ("any(k == i for i in range(2, 5))", fold(FoldOp.ANY, n(3), same(K, op("+", n(2), AT_I)))),
        ("any(k == i for i in range(5, 2))", fold(FoldOp.ANY, n(-3), same(K, op("+", n(5), AT_I)))),
        (
            "any(k == i for i in range(9, 0, -2))",  # 9 7 5 3 1
            fold(FoldOp.ANY, n(5), same(K, op("+", n(9), op("*", AT_I, n(-2))))),
        ),
        ("any(k == i for i in range(0, 7, 3))", fold(FoldOp.ANY, n(3), same(K, op("*", AT_I, n(3))))),
        ("sum(k for i in range(q_len)) == 3", same(fold(FoldOp.SUM, Length(Type.INT, Side.Q), K), n(3))),
        (
            "sum(k == i for i in range(top)) == 3",
            same(fold(FoldOp.SUM, FreeSize(Type.INT, "top"), Cast(Type.INT, same(K, AT_I))), n(3)),
        ),
        (
            "any(any(k == i + j for j in range(x.size)) for i in range(3))",
            fold(
                FoldOp.ANY,
                n(3),
                fold(FoldOp.ANY, AxisSize(Type.INT, "x"), same(K, op("+", AT_I, AT_J)), "j"),
            ),
        ),
        (
            "any(route[q, i] == k for i in range(top))",
            fold(FoldOp.ANY, FreeSize(Type.INT, "top"), same(table("route", BATCH, KV_HEAD, OWN, AT_I), K)),
        ),
    ],
)
def test_folds(text: str, expected: Expr) -> None:
    assert clause(text, head="mask m(n: int = 3):") == expected


def names_within(expr: Expr, around: tuple[str, ...] = ()) -> None:
    """Every index is bound by exactly one of the folds around it."""
    match expr:
        case Bound():
            assert around.count(expr.name) == 1
        case Fold():
            assert expr.index.name not in around
            names_within(expr.body, (*around, expr.index.name))
        case _:
            for child in children(expr):
                names_within(child, around)


@pytest.mark.parametrize(
    "lines",
    [
        ("keep any(any(k == i for i in range(3)) and i > 1 for i in range(4))",),
        ("let s = any(k == i for i in range(3))", "keep all(s or k == i for i in range(4))"),
        (
            "let s = any(k == i for i in range(3))",
            "let t = all(s or k == i for i in range(4))",
            "keep all(all(t or i + j == k for j in range(2)) and t for i in range(5))",
        ),
        ("keep all(f(i) for i in range(4))",),
        ("keep any(inner(n=i) for i in range(4))",),
    ],
)
def test_indices_of_folds_inside_folds_have_names_of_their_own(lines: tuple[str, ...]) -> None:
    above = "def f(a):\n    return any(a == i + k for i in range(3))\n"
    above += "mask inner(n: int):\n    keep any(n == i + k for i in range(3))\n"
    (found,) = mask(*lines, above=above).clauses
    names_within(found)


def test_a_fold_hides_names_around_it() -> None:
    lines = ("let i = 7", "keep any(k == i for i in range(3)) and k == i")
    both = op("and", fold(FoldOp.ANY, n(3), same(K, AT_I)), same(K, n(7)), Type.BOOL)
    assert mask(*lines).clauses == (both,)


# ---- tables of the spec itself


def test_literal_tables_are_inputs_with_values() -> None:
    spec = mask("keep pattern[q, k] == 1", "score += [0.5, 1, True][q]")
    made = [t for t in spec.inputs if t.source is not None]
    assert [(t.name, t.type, t.source) for t in made] == [
        ("pattern", Type.INT, Values((2, 3), (1, 0, 1, 0, 1, 1))),
        ("table", Type.FLOAT, Values((3,), (0.5, 1.0, 1.0))),
    ]
    assert [[(d.kind, d.extent) for d in t.dims] for t in made] == [
        [(DimKind.EXTENT, n(2)), (DimKind.EXTENT, n(3))],
        [(DimKind.EXTENT, n(3))],
    ]
    assert "pattern" not in [t.name for t in spec.given]


@pytest.mark.parametrize(
    ("text", "kind", "entries"),
    [
        ("[True, False]", Type.BOOL, (True, False)),
        ("[True, 2]", Type.INT, (1, 2)),
        ("[-1, +2, (3), - 4]", Type.INT, (-1, 2, 3, -4)),
        ("[1, -0.5, -inf]", Type.FLOAT, (1.0, -0.5, float("-inf"))),
        ("[2 * 3, 7 // 2, 2 ** 5, 1 << 4, ~1]", Type.INT, (6, 3, 32, 16, -2)),
        ("[2 ** -1, 1 / 4, sqrt(16), exp(0), min(3, 2)]", Type.FLOAT, (0.5, 0.25, 4.0, 1.0, 2.0)),
        ("[floor(2.5), 3 if 1 < 2 else 4, clamp(9, 1, 5)]", Type.INT, (2, 3, 5)),
        ("[1 < 2, not True]", Type.BOOL, (True, False)),
        ("[-9223372036854775807, 9223372036854775807]", Type.INT, (-(2**63) + 1, 2**63 - 1)),
    ],
)
def test_entries_of_literal_tables(text: str, kind: Type, entries: tuple[object, ...]) -> None:
    compared = {Type.BOOL: "== True", Type.INT: "== 1", Type.FLOAT: "== 1"}[kind]
    spec = load(f"mask m:\n    keep {text}[q] {compared}\n")
    assert [(t.type, t.source) for t in spec.inputs] == [(kind, Values((len(entries),), entries))]  # type: ignore[arg-type]
    (made,) = spec.inputs
    assert isinstance(made.source, Values)
    assert [type(e) for e in made.source.entries] == [type(e) for e in entries]


@pytest.mark.parametrize(
    ("text", "is_sorted"),
    [("[1, 4, 4]", True), ("[4, 1]", False), ("[[1, 2], [0, 3]]", True), ("[[0, 3], [2, 1]]", False), ("[7]", True)],
)
def test_ascending_rows_are_noticed(text: str, is_sorted: bool) -> None:
    index = "[q, k]" if text.startswith("[[") else "[q]"
    assert [t.sorted for t in load(f"mask m:\n    keep {text}{index} == 1\n").inputs] == [is_sorted]


def test_a_table_is_brought_where_something_reads_it() -> None:
    text = "let far = [1, 2]\nlet near = [3, 4]\nmask m:\n    let own = [5, 6]\n    keep k in near\n"
    assert [t.name for t in load(text).inputs] == ["near"]
    assert [t.name for t in load(text + "    keep k in own\n    keep near[q] == k\n").inputs] == ["near", "own"]


def test_equal_tables_are_one_and_names_are_not_shared() -> None:
    text = """
let near = [1, 2]
mask inner:
    let near = [3, 4]
    let table = [5, 6]
    keep k in near and k in table
mask m(table: int = 3):
    input seen: int[seq]
    let doc = [7, 8]
    let sums = cumsum(seen, seq)
    keep k in near and k in inner_tables(q) and inner and inner
    keep k in [1, 2] and k in [9, 10] and k in doc and documents
    keep cumsum(seen, seq)[q] == sums[k] and cumsum(sums, seq)[q] == 3
    score += [1.0, 2.0][q]
def inner_tables(i):
    return [[1, 2], [3, 4]][i]
"""
    spec = load(text)
    assert {t.name: t.source for t in spec.inputs} == {
        "seen": None,
        "near": Values((2,), (1, 2)),
        "table_2": Values((2, 2), (1, 2, 3, 4)),
        "near_2": Values((2,), (3, 4)),
        "table_3": Values((2,), (5, 6)),
        "table_4": Values((2,), (9, 10)),
        "doc_2": Values((2,), (7, 8)),
        "doc": None,
        "cumsum_seen": PrefixSum("seen", 0),
        "cumsum_cumsum_seen": PrefixSum("cumsum_seen", 0),
        "table_5": Values((2,), (1.0, 2.0)),
    }


def test_tables_and_rows_are_arguments() -> None:
    text = """
def entry(t, i):
    return t[i]
def holds(row, x):
    let r = row
    return x in r and r[0] < x
def both(t, i, x):
    return holds(t[i], x) or entry(t, i)[1] == x
"""
    row = Row("route", (BATCH, KV_HEAD, OWN))
    expected = op(
        "or",
        op(
            "and",
            Member(Type.BOOL, K, row),
            op("<", table("route", BATCH, KV_HEAD, OWN, n(0)), K, Type.BOOL),
            Type.BOOL,
        ),
        same(table("route", BATCH, KV_HEAD, OWN, n(1)), K),
        Type.BOOL,
    )
    assert clause("both(route, q, k)", above=text) == expected


# ---- prefix sums


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (("let sums = cumsum(level, y)", "score += sums[q.y]"), ("sums", Type.FLOAT, False, PrefixSum("level", 1))),
        (("score += cumsum(level, y)[q.y]",), ("cumsum_level", Type.FLOAT, False, PrefixSum("level", 1))),
        (("score += cumsum(level, head)[q.y]",), ("cumsum_level", Type.FLOAT, False, PrefixSum("level", 0))),
        (("score += cumsum(flag, seq)[q]",), ("cumsum_flag", Type.INT, True, PrefixSum("flag", 0))),
        (("score += cumsum(route, top)[q, 0]",), ("cumsum_route", Type.INT, False, PrefixSum("route", 3))),
        (("score += cumsum(route, q)[q, 0]",), ("cumsum_route", Type.INT, False, PrefixSum("route", 2))),
        (("score += bucket(q, cumsum(flag, seq))",), ("cumsum_flag", Type.INT, True, PrefixSum("flag", 0))),
    ],
)
def test_prefix_sums(lines: tuple[str, ...], expected: tuple[object, ...]) -> None:
    spec = mask(*lines)
    made = spec.inputs[-1]
    assert (made.name, made.type, made.sorted, made.source) == expected
    assert isinstance(made.source, PrefixSum)
    assert made.dims == spec.input(made.source.table).dims


def test_a_prefix_sum_is_read_with_its_tables_dims() -> None:
    assert plus("cumsum(level, y)[q.y]") == table(
        "cumsum_level", HEAD, Coordinate(Type.INT, Side.Q, "y"), kind=Type.FLOAT
    )


# ---- counts


def test_counts_of_kept_pairs_stand_in_claims() -> None:
    spec = mask("claim count(k) <= 3 and count(q) <= 3 and count(head) <= 3")
    counts = [e for e in spec.claims[0].expr.kinds if e is Kept]
    assert counts == [Kept]
    text = str(spec.claims[0].expr)
    assert [word in text for word in ("count(k)", "count(q)", "count(head)")] == [True] * 3
    assert spec.claims[0].over_pairs


def test_a_let_that_counts_is_read_by_claims_alone() -> None:
    text = "def few(n):\n    let c = count(k)\n    return c <= n\nmask m:\n    claim few(3)\n"
    assert load(text).claims[0].expr == op("<=", Kept(Type.INT, Side.K), n(3), Type.BOOL)
    above = "let c = count(k)\nmask m:\n    claim c < 3\n"
    assert diagnose(Source("a.mask", above)) == []
    (found,) = diagnose(Source("a.mask", above + "    keep c < 3\n"))
    assert found.message == "'count' can only stand in a 'claim'"
