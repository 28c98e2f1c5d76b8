"""Operators and their precedence are Python's: random expressions against Python's own `eval`."""

import ast
import math
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskc.check import diagnose, load
from maskc.diagnostics import MaskInputError, Source
from maskc.evaluate import Pairs, evaluate
from maskc.expr import Binary, Cast, Expr, Literal, Type
from maskc.grammar import syntax
from maskc.grammar.parser import parse, recover
from maskc.sizes import resolve
from maskc.spec import MaskSpec

Q, K = 5, 3
NAMES = {"q": Q, "k": K, "a": 7, "b": -2, "f": 1.5, "t": True, "u": False}
HEAD = "mask m(a: int = 7, b: int = -2, f: float = 1.5, t: bool = True, u: bool = False):\n"


def typed(text: str, boolean: bool) -> tuple[Expr, MaskSpec]:
    """An expression as the checker understands it, and the mask it stands in."""
    spec = load(f"{HEAD}    keep {text}\n" if boolean else f"{HEAD}    keep ({text}) != q + 1000\n")
    (clause,) = spec.clauses
    if boolean:
        return clause, spec
    assert isinstance(clause, Binary)
    return clause.left, spec


def value(expr: Expr, spec: MaskSpec) -> Any:
    """The value of an expression at the pair (Q, K)."""
    sizes = resolve(spec, q_len=8, k_len=8, given={})
    zero, q, k = np.zeros((), np.int64), np.asarray(Q), np.asarray(K)
    return np.asarray(evaluate(expr, Pairs(np, sizes, {}, zero, zero, q, k))).item()


# Tokens glued together without brackets, so that the value depends on how they are grouped. Python is the judge of it;
# what this language refuses by a rule of its own (BY_RULE) is left out.
ATOMS = st.sampled_from(["q", "k", "a", "b", "t", "u", "1", "2", "3", "10", "True", "(q - k)", "abs(b)", "min(a, q)"])
NUMBERS = ["+", "-", "*", "//", "%", "&", "|", "^", "<<", ">>"]
COMPARISONS = ["<", "<=", ">", ">=", "==", "!="]
PREFIXES = st.sampled_from(["", "", "", "-", "+", "~", "- ~"])


@st.composite
def arithmetic(draw: st.DrawFn, most: int = 5) -> str:
    """Numbers joined by number operators, unbracketed."""
    parts = [draw(PREFIXES) + draw(ATOMS)]
    for _ in range(draw(st.integers(0, most))):
        operator = draw(st.sampled_from(NUMBERS))
        parts.append(f"{operator} {draw(PREFIXES)}{draw(ATOMS)}")
    if draw(st.integers(0, 4)) == 0:
        parts.append(f"** {draw(st.integers(0, 3))}")
    return " ".join(parts)


@st.composite
def logic(draw: st.DrawFn) -> str:
    """Comparisons, chained and not, joined by `and`, `or` and `not`, with conditional expressions."""
    parts = []
    for _ in range(draw(st.integers(1, 4))):
        chain = draw(arithmetic(2))
        for _ in range(draw(st.integers(1, 3))):
            if draw(st.integers(0, 6)) == 0:
                chain += f" {draw(st.sampled_from(['in', 'not in']))} {draw(containers())}"
                break
            chain += f" {draw(st.sampled_from(COMPARISONS))} {draw(arithmetic(2))}"
        parts.append(draw(st.sampled_from(["", "not ", "not not "])) + chain)
    text = parts[0]
    for part in parts[1:]:
        text += f" {draw(st.sampled_from(['and', 'or', 'and not', 'or not']))} {part.removeprefix('not ')}"
    if draw(st.integers(0, 3)) == 0:
        text = f"{text} if {draw(st.sampled_from(['t', 'not u', 'q < k', 'q > k and t']))} else {parts[-1]}"
    return text


@st.composite
def containers(draw: st.DrawFn) -> str:
    """What may stand behind `in`."""
    numbers = draw(st.lists(st.integers(-4, 9), min_size=1, max_size=3))
    if draw(st.booleans()):
        return f"({', '.join(map(str, numbers))},)"
    if len(numbers) == 3 and numbers[2] == 0:
        numbers[2] = -2
    return f"range({', '.join(map(str, numbers))})"


def python(text: str) -> Any:
    """Python's own value; None where it raises (division by zero, negative shift) or leaves 64 bits."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = eval(text, {"__builtins__": {}, "abs": abs, "min": min, "range": range}, dict(NAMES))
    except (ZeroDivisionError, ValueError, OverflowError):
        return None
    return result if abs(result) < 2**62 else None


def refusals(text: str) -> list[str]:
    """Errors of a mask that holds an expression as a boolean."""
    return [d.message for d in diagnose(Source("m", text)) if d.severity == "error"]


# What the language refuses although Python has a value for it.
BY_RULE = (
    "'~' of a boolean",
    "this divides by zero",
    "a shift is by",
    "this does not fit into 64 bits",
    "takes booleans",
)


@settings(max_examples=250)
@given(arithmetic())
def test_numbers(text: str) -> None:
    expected = python(text)
    if expected is None or (any(w in text for w in ("<<", ">>")) and _shifts_far(text)):
        return
    spec_text = f"{HEAD}    keep ({text}) == q + 0\n"
    wrong = refusals(spec_text)
    if wrong:
        assert all(w.startswith(BY_RULE) for w in wrong), wrong
        return
    spec = load(spec_text)
    (clause,) = spec.clauses
    assert isinstance(clause, Binary)
    assert value(clause.left, spec) == int(expected)


def _shifts_far(text: str) -> bool:
    """Whether a part of the expression may leave 64 bits on the way to a result that fits."""
    return sum(text.count(w) for w in ("<<", "*", "10")) > 2


@settings(max_examples=250)
@given(logic())
def test_logic(text: str) -> None:
    expected = python(text)
    if expected is None or _shifts_far(text):
        return
    spec_text = f"{HEAD}    keep {text}\n"
    wrong = refusals(spec_text)
    if wrong:
        assert all(w.startswith(BY_RULE) for w in wrong), wrong
        return
    spec = load(spec_text)
    if not _divides_by_a_parameter(spec):  # 0 in a link of a chain that Python never comes to
        assert value(spec.predicate, spec) is bool(expected)


def _divides_by_a_parameter(spec: MaskSpec) -> bool:
    try:
        resolve(spec, q_len=8, k_len=8, given={})
    except MaskInputError as error:
        return "divides by zero" in str(error)
    return False


@pytest.mark.parametrize(
    "text",
    [
        "-2 ** 2",
        "2 ** -1 * 4",
        "2 ** 3 ** 2",
        "-7 // 2",
        "-7 % 3",
        "7 // -2",
        "7 % -3",
        "-7 // 2 * 2 + -7 % 2",
        "1 - 2 - 3",
        "2 * 3 % 4",
        "8 / 4 / 2",
        "1 + 2 << 3",
        "1 << 2 + 3",
        "6 & 3 == 3",
        "6 | 1 ^ 3 & 2",
        "~3 + 1",
        "-q ** 2",
        "q - k - 1",
        "q if q > k else k if k > 3 else 1",
        "1 < 2 < 3",
        "1 < 3 > 2",
        "1 == 1 != 2 <= 2",
        "not 1 == 2",
        "not 1 < 2 or 3 < 4",
        "1 < 2 or 2 < 1 and 2 < 1",
        "1 < 2 in (1, 2)",
        "3 not in range(0, 10, 2)",
        "4 in range(10, 0, -2)",
        "3 in range(10, 0, -2)",
        "True + True",
        "True == 1",
        "t & u | t",
        "t ^ t",
        "abs(-3) + min(4, 2, 3)",
        "1_000 + 0x1F + 0b101 + 0o17",
        ".5 + 1. + 2e3 + 1.5E-3",
        "q * f - a / b",
        "f ** 2",
        "2 ** f",
        "a ** k * 1.0",
    ],
)
def test_python_agrees(text: str) -> None:
    expected = eval(text, {}, NAMES | {"abs": abs, "min": min})
    expr, spec = typed(text, isinstance(expected, bool))
    assert value(expr, spec) == pytest.approx(expected, rel=1e-15)
    assert (expr.type is Type.FLOAT) == isinstance(expected, float)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3 * 4 - 5", 7),
        ("-7 // 2", -4),
        ("-(2 ** 62) * 2", -(2**63)),
        ("2 ** 62 - 1 + 2 ** 62", 2**63 - 1),
        ("0x7fff_ffff_ffff_ffff", 2**63 - 1),
        ("1 / 8", 0.125),
        ("3 < 4", True),
        ("min(3, 1.5)", 1.5),
        ("-inf", -math.inf),
        ("1 << 62", 2**62),
        ("~0", -1),
        ("6 & 3 | 8", 10),
        ("abs(-3)", 3),
        ("(-1) ** 1_000_000_000_001", -1),
    ],
)
def test_constants_are_folded(text: str, expected: float) -> None:
    expr, _ = typed(text, isinstance(expected, bool))
    literal = expr.operand if isinstance(expr, Cast) else expr
    assert isinstance(literal, Literal)
    assert literal.value == expected
    kind = type(expected).__name__
    default = load(f"mask m(c: {kind} = {text}):\n    pass\n").parameters[0].default
    assert default == expected


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("clamp(q, 1, 3)", 3),
        ("clamp(q, 7, 6)", 6),  # min(max(x, lo), hi)
        ("max(q, k, 6)", 6),
        ("floor(q / 2)", 2),
        ("ceil(q / 2)", 3),
        ("round(q / 2)", 2),  # half to even
        ("round((q + 2) / 2)", 4),
        ("round(-q / 2)", -2),
        ("floor(q)", 5),
        ("relu(k - q)", 0),
        ("relu(q - k)", 2),
        ("abs(k - q)", 2),
        ("where(q > k, q, k)", 5),
        ("sqrt(4)", 2.0),
        ("exp(0)", 1.0),
        ("log(1)", 0.0),
        ("tanh(0)", 0.0),
        ("erf(0)", 0.0),
        ("sigmoid(0)", 0.5),
        ("softplus(0)", math.log(2)),
    ],
)
def test_builtins(call: str, expected: float) -> None:
    expr, spec = typed(call, boolean=False)
    assert value(expr, spec) == pytest.approx(expected, rel=1e-15)
    assert (expr.type is Type.FLOAT) == isinstance(expected, float)


# The shape of a tree, whatever its types: everything bracketed, Python has to read the same tree as without brackets.

OPERANDS = st.sampled_from(["q", "k", "1", "2.5", "True", "rows", "t[q]", "f(k)", "q.y", "keys", "()", "[1, 2]"])
OPERATORS = st.sampled_from([*NUMBERS, *COMPARISONS, "/", "**", "in", "not in", "and", "or"])


def deeper(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.tuples(inner, OPERATORS, inner).map(" ".join),
        st.tuples(inner, OPERATORS, inner, OPERATORS, inner).map(" ".join),
        st.tuples(st.sampled_from(["-", "~", "+", "not "]), inner).map("".join),
        st.tuples(inner, inner, inner).map(lambda x: f"{x[0]} if {x[1]} else {x[2]}"),
        st.tuples(inner, inner).map(lambda x: f"any({x[0]} for i in range({x[1]}))"),
        st.tuples(inner, inner).map(lambda x: f"min({x[0]}, b={x[1]})"),
        st.tuples(inner, inner).map(lambda x: f"t[{x[0]}, {x[1]}]"),
        st.tuples(inner, inner).map(lambda x: f"[{x[0]}, ({x[1]})]"),
    )


def bracketed(node: syntax.Node) -> str:
    """The text of an expression with brackets around every part."""
    match node:
        case syntax.Bracketed(inner=inner):
            return bracketed(inner)
        case syntax.Tuple(items=items):
            return f"({''.join(bracketed(i) + ', ' for i in items)})"
        case syntax.List(items=items):
            return f"[{', '.join(map(bracketed, items))}]"
        case syntax.Attribute(owner=owner, name=name):
            return f"({bracketed(owner)}).{name.text}"
        case syntax.Subscript(table=table, indices=indices):
            return f"({bracketed(table)})[{', '.join(map(bracketed, indices))}]"
        case syntax.Call(function=function, arguments=arguments):
            return f"({bracketed(function)})({', '.join(map(bracketed, arguments))})"
        case syntax.Argument(name=name, value=value):
            return bracketed(value) if name is None else f"{name.text}={bracketed(value)}"
        case syntax.Comprehension(element=element, name=name, iterable=iterable):
            return f"{bracketed(element)} for {name.text} in {bracketed(iterable)}"
        case syntax.Unary(operator=operator, operand=operand):
            return f"({operator} {bracketed(operand)})"
        case syntax.Binary(operator=operator, left=left, right=right):
            return f"({bracketed(left)} {operator} {bracketed(right)})"
        case syntax.Comparison(operands=(first, *others), comparators=comparators):
            links = (f"{c.text} {bracketed(o)}" for c, o in zip(comparators, others, strict=True))
            return f"({' '.join([bracketed(first), *links])})"
        case syntax.BooleanOperation(operator=operator, operands=operands):
            return f"({f' {operator} '.join(map(bracketed, operands))})"
        case syntax.Conditional(condition=condition, then=then, otherwise=otherwise):
            return f"({bracketed(then)} if {bracketed(condition)} else {bracketed(otherwise)})"
        case _:
            return node.span.text


def shape(text: str) -> str:
    """Python's tree of an expression."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.dump(ast.parse(text, mode="eval"))


@settings(max_examples=400)
@given(st.recursive(OPERANDS, deeper, max_leaves=12))
def test_shapes(text: str) -> None:
    file, found = recover(Source("a.mask", f"mask a:\n    keep {text}\n    rows ({text}) else zero\n"))
    try:
        shape(text)
    except SyntaxError:  # `-not q`
        assert len(found) == 2
        return
    assert not found
    (mask,) = file.items
    assert isinstance(mask, syntax.Mask)
    keep, rows = mask.body
    assert isinstance(keep, syntax.Keep)
    assert isinstance(rows, syntax.Rows)
    assert shape(bracketed(keep.value)) == shape(bracketed(rows.value)) == shape(text)


@pytest.mark.parametrize("text", ["q or k", "not q in (1, 2)", "q < 3 and k", "any(q if k else i for i in range(2))"])
def test_rows_need_no_brackets(text: str) -> None:
    (mask,) = parse(Source("a.mask", f"mask a: rows {text} else pass\n")).items
    assert isinstance(mask, syntax.Mask)
    (rows,) = mask.body
    assert isinstance(rows, syntax.Rows)
    assert shape(bracketed(rows.value)) == shape(text)
    assert rows.default.text == "pass"
