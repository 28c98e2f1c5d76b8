"""The form of every statement: what the parser makes of it, and what is left of a line that it cannot read."""

import random
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from lark import Lark, UnexpectedToken
from lark.lexer import Lexer

from maskc.diagnostics import Source
from maskc.grammar import syntax
from maskc.grammar.builder import _Builder, read
from maskc.grammar.lexer import STATEMENTS, Line, Word, logical_lines
from maskc.grammar.machine import FormError
from maskc.grammar.parser import parse, recover

ROOT = Path(__file__).parents[2]
FILES = sorted(path for folder in ("maskc", "examples") for path in (ROOT / folder).rglob("*.mask"))

NOWHERE = syntax.Span(Source("", ""), 0, 0)


def name(text: str) -> syntax.Name:
    return syntax.Name(text, span=NOWHERE)


def integer(value: int) -> syntax.Integer:
    return syntax.Integer(value, span=NOWHERE)


def tuple_of(*items: syntax.Expression) -> syntax.Tuple:
    return syntax.Tuple(items, span=NOWHERE)


def call(function: str, *arguments: syntax.Expression, **named: syntax.Expression) -> syntax.Call:
    given = [syntax.Argument(None, value, span=NOWHERE) for value in arguments]
    given += [syntax.Argument(name(key), value, span=NOWHERE) for key, value in named.items()]
    return syntax.Call(name(function), tuple(given), span=NOWHERE)


def axis(text: str, part: syntax.Expression | None = None) -> syntax.Axis:
    return syntax.Axis(name(text), part, span=NOWHERE)


def axes(word: str, *found: syntax.Axis, border: syntax.Expression | None = None) -> syntax.Axes:
    return syntax.Axes(word, found, border, span=NOWHERE)


def slot(index: syntax.Expression, size: syntax.Expression | None = None) -> syntax.Slot:
    return syntax.Slot(index, size, span=NOWHERE)


def binary(operator: str, left: syntax.Expression, right: syntax.Expression) -> syntax.Binary:
    return syntax.Binary(operator, left, right, span=NOWHERE)


def body(text: str) -> tuple[syntax.Statement, ...]:
    """The statements of a mask that is right in its form."""
    (mask,) = parse(Source("a.mask", "mask a:\n" + "".join(f"    {line}\n" for line in text.split("\n")))).items
    assert isinstance(mask, syntax.Mask)
    return mask.body


STATEMENT_TREES: list[tuple[str, syntax.Statement]] = [
    ("axes y, x", axes("axes", axis("y"), axis("x"))),
    ("axes y, x border r + 1", axes("axes", axis("y"), axis("x"), border=binary("+", name("r"), integer(1)))),
    (
        "axes cls: 1, patch: (y, x), text: t",
        axes("axes", axis("cls", integer(1)), axis("patch", tuple_of(name("y"), name("x"))), axis("text", name("t"))),
    ),
    ("axes border, x: border border 2", axes("axes", axis("border"), axis("x", name("border")), border=integer(2))),
    ("queries t", axes("queries", axis("t"))),
    ("queries cls: 1, t", axes("queries", axis("cls", integer(1)), axis("t"))),
    ("keys y, x", axes("keys", axis("y"), axis("x"))),
    ("keys patch: (y,) border (1)", axes("keys", axis("patch", tuple_of(name("y"))), border=integer(1))),
    ("packed start", syntax.Packed(name("start"), span=NOWHERE)),
    ("packed packed", syntax.Packed(name("packed"), span=NOWHERE)),
    ("mass *= 2", syntax.Mass("*", integer(2), span=NOWHERE)),
    ("mass = 2", syntax.Mass(None, integer(2), span=NOWHERE)),
    ("weight *= mass", syntax.Weight("*", name("mass"), span=NOWHERE)),
    ("weight += weight", syntax.Weight("+", name("weight"), span=NOWHERE)),
    ("weight = 1", syntax.Weight(None, integer(1), span=NOWHERE)),
    ("weight //= 1", syntax.Weight("//", integer(1), span=NOWHERE)),
    ("normalize softmax", syntax.Normalize(name("softmax"), span=NOWHERE)),
    ("normalize softmax(sink=s)", syntax.Normalize(call("softmax", sink=name("s")), span=NOWHERE)),
    ("normalize rowsum(score, sink=1)", syntax.Normalize(call("rowsum", name("score"), sink=integer(1)), span=NOWHERE)),
    ("normalize none()", syntax.Normalize(call("none"), span=NOWHERE)),
    ("normalize entmax(alpha=2,)", syntax.Normalize(call("entmax", alpha=integer(2)), span=NOWHERE)),
    ("reduce n = count()", syntax.Reduce(name("n"), (), call("count"), output=False, span=NOWHERE)),
    (
        "reduce s[q] = sum(score)",
        syntax.Reduce(name("s"), (slot(name("q")),), call("sum", name("score")), output=False, span=NOWHERE),
    ),
    (
        "output m[k // b, kind: 3,] = max(score)",
        syntax.Reduce(
            name("m"),
            (slot(binary("//", name("k"), name("b"))), slot(name("kind"), integer(3))),
            call("max", name("score")),
            output=True,
            span=NOWHERE,
        ),
    ),
    ("rows t else zero", syntax.Rows(name("t"), name("zero"), span=NOWHERE)),
    ("rows t else pass", syntax.Rows(name("t"), name("pass"), span=NOWHERE)),
    (
        "keep any(i for i in range(3))",
        syntax.Keep(
            syntax.Call(
                name("any"),
                (syntax.Comprehension(name("i"), name("i"), call("range", integer(3)), span=NOWHERE),),
                span=NOWHERE,
            ),
            span=NOWHERE,
        ),
    ),
    (
        "let t = [[1, 2], []]",
        syntax.Let(
            name("t"),
            syntax.List(
                (syntax.List((integer(1), integer(2)), span=NOWHERE), syntax.List((), span=NOWHERE)), span=NOWHERE
            ),
            span=NOWHERE,
        ),
    ),
]


def unbracketed(node: Any) -> Any:
    """A tree without its brackets' nodes where they stand for one number."""
    match node:
        case syntax.Axes(border=syntax.Bracketed(inner=inner)):
            return syntax.Axes(node.word, node.axes, inner, span=node.span)
    return node


@pytest.mark.parametrize(("text", "tree"), STATEMENT_TREES, ids=[text for text, _ in STATEMENT_TREES])
def test_statements(text: str, tree: syntax.Statement) -> None:
    (found,) = body(text)
    assert unbracketed(found) == tree
    assert found.span.text == text
    (mask,) = parse(Source("a.mask", f"mask a: {text}")).items  # on one line with its head
    assert isinstance(mask, syntax.Mask)
    assert mask.body == (found,)


def test_every_statement_has_a_tree() -> None:
    """Those that are not listed above are the older ones, which other tests read."""
    older = {"mask", "def", "input", "let", "keep", "score", "claim", "pass", "return"}
    assert {text.split()[0] for text, _ in STATEMENT_TREES} | older == STATEMENTS


@pytest.mark.parametrize("word", sorted({*STATEMENTS, "of", "sorted", "constant", "learned", "border"}))
def test_words_of_statements_are_names_elsewhere(word: str) -> None:
    text = f"""\
def f({word}):
    return {word}
mask {word}({word}: int):
    keep {word} + {word}[{word}] == {word}({word}={word}).{word}
    let {word} = q
    input {word}: int[{word}, 2 * {word}] of {word}
    axes {word}, x: {word}
    reduce {word}[{word}, {word}: {word}] = {word}({word})
    packed {word}
    rows {word} else {word}
    normalize {word}
    keep f(
        {word},
        {word} and {word} in {word},
        {word}=1,
        {word} if q else k)
"""
    file = parse(Source("a.mask", text))
    assert [type(item).__name__ for item in file.items] == ["Function", "Mask"]
    assert isinstance(file.items[1], syntax.Mask)
    assert [type(s).__name__ for s in file.items[1].body] == [
        *("Keep", "Let", "Input", "Axes", "Reduce", "Packed", "Rows", "Normalize", "Keep")
    ]


# Lines that cannot be read


def salvaged(text: str) -> tuple[list[str], tuple[syntax.Statement, ...]]:
    """What is said of the lines of a mask, and what is left of them."""
    file, found = recover(Source("a.mask", "mask a:\n" + "".join(f"    {line}\n" for line in text.split("\n"))))
    (mask,) = file.items
    assert isinstance(mask, syntax.Mask)
    return [d.message for d in found], mask.body


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("mass *=", "Mass"),
        ("mass 2", "Mass"),
        ("weight", "Weight"),
        ("normalize", "Normalize"),
        ("normalize 2", "Normalize"),
        ("rows q", "Rows"),
        ("rows q else", "Rows"),
        ("rows (q else zero", "Rows"),
        ("packed start, end", "Packed start"),
        ("reduce s", "Reduce s"),
        ("reduce s[q] sum(score)", "Reduce s"),
        ("output s[q] = sum(score", "Reduce s"),
        ("output s = 2 * sum(score)", "Reduce s"),
        ("packed = 3", "Let packed"),
        ("rows = 3", "Let rows"),
        ("weights = 3", "Let weights"),
        ("queries y,", "Axes queries y"),
        ("keys y, x border", "Axes keys y x"),
        ("axes cls: 1, patch: (y, x), text: border 2", "Axes axes cls: patch: text:"),
        ("axes patch: (y, x, border 2", "Axes axes patch:"),
        ("packed", None),
        ("reduce", None),
        ("reduce [q] = sum(score)", None),
        ("output = ", "Let output"),
        ("queries", None),
    ],
)
def test_what_is_left_of_unreadable_lines(text: str, left: str | None) -> None:
    messages, statements = salvaged(text)
    assert len(messages) == 1
    assert [outline(s) for s in statements] == ([] if left is None else [left])
    (_, *rest) = salvaged(f"{text}\nkeep k <= q")  # the next line is read as ever
    assert [type(s).__name__ for s in rest[0]][-1] == "Keep"
    assert isinstance(rest[0][-1].value, syntax.Comparison)  # type: ignore[union-attr]


def outline(node: syntax.Statement) -> str:
    """The kind of a statement, and the names that are left of it; parts with a colon."""
    match node:
        case syntax.Axes():
            parts = (a.name.text + ":" * isinstance(a.part, syntax.Unreadable) for a in node.axes)
            return " ".join(["Axes", node.word, *parts])
        case syntax.Packed() | syntax.Reduce() | syntax.Let():
            return f"{type(node).__name__} {node.name.text}"
        case _:
            assert isinstance(node.value, syntax.Unreadable)  # type: ignore[union-attr]
            return type(node).__name__


@pytest.mark.parametrize(
    ("line", "parameters", "kind"),
    [
        ("mask a(n: int): rows n", ["n"], "Rows"),
        ("mask a(n int): rows n else zero", ["n"], "Rows"),
        ("mask a: reduce s = 3", [], "Reduce"),
        ("mask a: keep q <", [], "Keep"),
        ("mask a: normalize", [], "Normalize"),
    ],
)
def test_an_unreadable_line_behind_a_head_is_salvaged_too(line: str, parameters: list[str], kind: str) -> None:
    file, found = recover(Source("a.mask", line))
    (mask,) = file.items
    assert len(found) == 1
    assert isinstance(mask, syntax.Mask)
    assert [type(s).__name__ for s in mask.body] == [kind]
    assert [p.name.text for p in mask.parameters] == parameters


@pytest.mark.parametrize("line", ["mask int = 16):", "def float x:"])
def test_a_head_may_have_the_name_of_a_type(line: str) -> None:
    file, found = recover(Source("a.mask", f"{line}\n    pass"))
    (head,) = file.items
    assert len(found) >= 1
    assert head.name.text == line.split()[1]


@pytest.mark.parametrize(
    "line",
    [
        "rows q > 3 else zero",
        "rows (q > 3) else zero",
        "normalize none(score)",
        "reduce s[q] = sum(score)",
        "output s = count()",
        "queries t",
        "keys y, x",
        "packed start",
        "mass *= 2",
        "mass = 2",
        "weight = 2",
        "weight //= 2",
        "weight >>= 2",
        "score += 1",
        "keep not x",
        "pass",
    ],
)
def test_a_statement_ends_an_open_bracket(line: str) -> None:
    messages, statements = salvaged(f"keep f(q\n{line}")
    assert messages == ["'(' is never closed"]
    assert [s.span.text for s in statements] == ["keep f(q", line]


@pytest.mark.parametrize(
    "line",
    [
        "rows (q)",
        "rows(q)",
        "keys and q",
        "keys not in (1, 2)",
        "weight = 2",
        "mass=2",
        "weight <= 2",
        "weight == 2",
        "mass >= 2",
        "pass",
        "output",
        "packed.y",
        "packed[q]",
        "queries in range(3)",
        "rows if q else k",
        "reduce for reduce in range(3)",
    ],
)
def test_what_an_open_bracket_goes_on_with(line: str) -> None:
    (statement,) = body(f"keep f(\n        {line}\n    )")
    assert isinstance(statement, syntax.Keep)


# The loop over lark's tables


class Given(Lexer):
    """Hands lark the tokens of lexer.py."""

    def __init__(self, lexer_conf: Any) -> None:
        pass

    def lex(self, lexer_state: Any, parser_state: Any = None) -> Any:
        return iter(lexer_state)


def test_the_machine_does_what_lark_does() -> None:
    """The same trees and the same mistakes, over the lines of all specs and over those lines spoiled."""
    options: dict[str, Any] = {"parser": "lalr", "lexer": Given, "start": "line", "transformer": _Builder()}
    text = files("maskc.grammar").joinpath("mask.lark").read_text(encoding="utf-8")
    lark = Lark(text, **options, keep_all_tokens=True, maybe_placeholders=False)

    def judged(words: tuple[Word, ...]) -> Any:
        try:
            return lark.parse(words)  # type: ignore[arg-type]
        except UnexpectedToken as error:
            at = next((i for i, word in enumerate(words) if word is error.token), len(words))
            return at, set(error.expected)

    def found(words: tuple[Word, ...]) -> Any:
        try:
            return read(words)
        except FormError as error:
            return error.at, error.expected

    specs = [*(path.read_text(encoding="utf-8") for path in FILES), *(text for text, _ in STATEMENT_TREES)]
    lines, _ = logical_lines(Source("a.mask", "\n".join(specs)))
    rng = random.Random(1)
    wrong = 0
    for line in (*(line.words for line in lines), *(spoiled(rng.choice(lines), lines, rng) for _ in range(1500))):
        words = tuple(Word.make(word.type, str(word), word.source, word.start) for word in line)  # none twice
        assert found(words) == judged(words)
        wrong += isinstance(found(words), tuple)
    assert wrong > 800


def spoiled(line: Line, lines: list[Line], rng: random.Random) -> list[Word]:
    """The words of a line with one or two left out, put in or replaced."""
    words = list(line.words)
    for _ in range(rng.randint(1, 2)):
        start = rng.randrange(len(words))
        words[start : start + rng.randint(0, 1)] = rng.sample(rng.choice(lines).words, rng.randint(0, 1))
        if not words:
            return [line.words[0]]
    return words


def test_two_hundred_lines_are_read_soon() -> None:
    """The best of a few readings, in processor time; 10 ms are usual."""
    texts = (path.read_text(encoding="utf-8") for path in sorted((ROOT / "examples" / "gallery").glob("*.mask")))
    source = Source("a.mask", "".join("".join(texts).splitlines(keepends=True)[:200]))
    seconds = []
    for _ in range(5):
        start = time.process_time()
        recover(source)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.025
