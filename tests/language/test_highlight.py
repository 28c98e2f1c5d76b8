"""Colours in editors: words that are the compiler's, and one reading by Pygments and by the TextMate grammar."""

import json
import re
from collections.abc import Iterator
from itertools import accumulate, product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pygments.lexers import get_lexer_by_name, get_lexer_for_filename
from pygments.token import Comment, Error, Keyword, Name, Number, Operator, Punctuation, Text

import maskc
from maskc.checker.words import BUILTINS, PRELUDE
from maskc.diagnostics import Source
from maskc.expr import Type
from maskc.grammar.highlight import KINDS, MaskLexer
from maskc.grammar.lexer import BORDER, FACTS, OPERATORS, STATEMENTS, TOKEN_LIMIT, WORDS, logical_lines

ROOT = Path(__file__).parents[2]
FILES = sorted(path for folder in ("maskc", "examples", "tests/examples") for path in (ROOT / folder).rglob("*.mask"))
VSCODE = ROOT / "docs" / "editors" / "vscode"
GRAMMAR = json.loads((VSCODE / "syntaxes" / "mask.tmLanguage.json").read_text(encoding="utf-8"))
RULES: dict[str, Any] = GRAMMAR["repository"]

Piece = tuple[str, Any]  # characters and their kind, blanks left out

SCOPES = {
    "comment.line.number-sign.mask": Comment.Single,
    "constant.language.mask": Keyword.Constant,
    "constant.numeric.float.mask": Number.Float,
    "constant.numeric.integer.mask": Number.Integer,
    "entity.name.function.mask": Name.Function,
    "invalid.illegal.character.mask": Error,
    "invalid.illegal.number.mask": Error,
    "keyword.control.mask": Keyword,
    "keyword.operator.logical.mask": Operator.Word,
    "keyword.operator.mask": Operator,
    "punctuation.separator.mask": Punctuation,
    "storage.modifier.mask": Keyword,
    "storage.type.mask": Keyword.Declaration,
    "support.function.mask": Name.Builtin,
    "support.type.mask": Keyword.Type,
    "variable.language.mask": Name.Builtin.Pseudo,
    "variable.other.mask": Name,
    "variable.other.member.mask": Name.Attribute,
}

# What no example holds: words of the language as names, one-line masks, unusual numbers, mistakes.
RARE = """\
mask of(sorted: int = 0x1F, float: bool = True, keep=1_000):  pass  # nothing
mask border: keep not (k <= q) or sorted != sorted and of or keep
mask mask(t : float=.5e-3):
  axes y, x  border  2
  input sorted: int[batch, 2 * x + 1] of (k // 4) sorted   constant
  input of :bool
  let keep = 1. + 2.5E10 - 1e3 + 0b1_0 ** 0o17 // 00 if q.size in range(head) else -inf
  keep(keep_all(min(q . q, of [ 0 ])) >> 2 <= ~3 & 5 | 1 ^ 7 << 2)
  score *= where(q==k,
                 score > 2,
                 keep % 2 < 3,
      score <= 3 % 2)
  score = f(a=1, b = (1,)) for x in [1, 2]
  score **= 2
  claim scores >= 3 !=
  return mask
  keep 12ab + 1__0 + 0x + 08 + 1.5e + 2.q + 1_ + 0b2
  keep q ! k ? "text" ≤ { \\ $
def let(def, x): return def(x)
mask all:
  axes cls: 1, patch : (y, x),text: 2 * keys   border  r
  queries rows
  keys border,x border border
  packed packed
  input reduce: int[docs] of sorted   sorted
  reduce reduce[q // 2, output[k] : 3]=sum(score)
  output mean = count()
  normalize entmax(alpha=1.5)
  normalize  softmax
  rows not(k <= q)else pass
  rows ( q )   else zero
  rows any(queries for rows in range(3)) else mean
  mass*=2
  weight  -= mass if weight > 0 else rows + keys
  weight = [[1, 0], [-1, 2]]
  keep f(
      keys and rows,
      output not in packed,
      packed . y, reduce,
      weight <= 3,
      normalize == mass)
mask d: reduce s = sum(x)
mask e: weight /= 2
mask f(n: int = 2) : normalize none(score)
mask g: rows q else pass
let input = output
 mask
"""


def by_pygments(text: str) -> list[Piece]:
    tokens = list(MaskLexer().get_tokens_unprocessed(text))
    assert "".join(value for *_, value in tokens) == text
    assert all(text.startswith(value, start) for start, _, value in tokens)
    assert [start for start, *_ in tokens] == list(accumulate((len(v) for *_, v in tokens), initial=0))[:-1]
    return [(value, kind) for _, kind, value in tokens if kind not in Text]


COMPILED = [(re.compile(RULES[p["include"].removeprefix("#")]["match"]), p["include"]) for p in GRAMMAR["patterns"]]


def pieces(match: re.Match[str], rule: dict[str, Any]) -> Iterator[Piece]:
    """What a match of a rule colours: its groups where the rule names them, else all of it."""
    spans = {match.span(int(group)): scope["name"] for group, scope in rule.get("captures", {}).items()}
    spans = {span: name for span, name in spans.items() if span != (-1, -1)} or {match.span(): rule["name"]}
    end = match.start()
    for (start, stop), name in sorted(spans.items()):
        assert not match.string[end:start].strip()
        yield match.string[start:stop], SCOPES[name]
        end = stop
    assert not match.string[end : match.end()].strip()


def by_textmate(text: str) -> list[Piece]:
    """As editors read a grammar: line by line, and of all rules the one that matches first, of equals the upper one."""
    found: list[Piece] = []
    for line in text.splitlines(keepends=True):
        at = 0
        while matches := [(m, include) for rule, include in COMPILED if (m := rule.search(line, at))]:
            match, include = min(matches, key=lambda pair: pair[0].start())
            assert not line[at : match.start()].strip()
            assert match.end() > match.start()
            found.extend(pieces(match, RULES[include.removeprefix("#")]))
            at = match.end()
        assert not line[at:].strip()
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_both_read_every_spec_alike(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    read = by_pygments(text)
    assert by_textmate(text) == read
    assert all(kind is not Error for _, kind in read)
    words = [word for line in logical_lines(Source(path.name, text))[0] for word in line.words]
    assert [piece for piece, kind in read if kind is not Comment.Single] == words


def test_there_are_specs_to_read() -> None:
    assert len(FILES) > 40


def test_both_read_rare_forms_and_mistakes_alike() -> None:
    read = by_pygments(RARE)
    assert by_textmate(RARE) == read
    wrong = [piece for piece, kind in read if kind is Error]
    assert wrong == ["12ab", "1__0", "0x", "08", "1.5e", "2.q", "1_", "0b2", *'!?""≤{\\$']
    assert {kind for _, kind in read} == set(SCOPES.values())


def test_kinds() -> None:
    text = (
        "mask near(radius: int = 3):  # a disc\n"
        "    input doc: int[batch, seq] sorted\n"
        "    keep near_by(q.x) <= radius and abs(k) < 2.5 if True else False\n"
    )
    kinds = dict(by_pygments(text))
    assert [word for word, kind in kinds.items() if kind is Keyword.Declaration] == ["mask", "input"]
    assert [word for word, kind in kinds.items() if kind is Keyword] == ["sorted", "keep", "if", "else"]
    assert [word for word, kind in kinds.items() if kind is Name.Function] == ["near", "near_by"]
    assert [word for word, kind in kinds.items() if kind is Name] == ["radius", "doc", "seq"]
    assert [word for word, kind in kinds.items() if kind is Name.Builtin.Pseudo] == ["batch", "q", "k"]
    assert [word for word, kind in kinds.items() if kind in Operator] == ["=", "<=", "and", "<"]
    assert [word for word, kind in kinds.items() if kind in Number] == ["3", "2.5"]
    chosen = ("int", "x", "abs", "True", "# a disc")
    assert [kinds[word] for word in chosen] == [
        *(Keyword.Type, Name.Attribute, Name.Builtin, Keyword.Constant, Comment.Single)
    ]


@given(st.text(alphabet=st.one_of(st.sampled_from("qk ()[]:.=<#\n\t\r1e_+sorted"), st.characters())))
@settings(max_examples=200)
def test_any_text_comes_back_whole(text: str) -> None:
    by_pygments(text)


def test_a_text_of_too_many_words_comes_back_whole_and_plain() -> None:
    text = "mask a: # all\n" + "q " * TOKEN_LIMIT
    assert by_pygments(text) == [("# all", Comment.Single)]


def test_every_terminal_has_a_kind() -> None:
    declared = re.findall(
        r"^%declare (.*)$", (ROOT / "grammar" / "mask.lark").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert set(" ".join(declared).split()) | {"OTHER"} == set(KINDS) | {"NAME"}


def words_of(*names: str) -> set[str]:
    """The words that rules name, and no word twice."""
    groups = [re.findall(r"\((?:\?:)?([A-Za-z_]\w*(?:\|\w+)*)\)", RULES[name]["match"]) for name in names]
    words = [word for group in groups for listed in group for word in listed.split("|")]
    assert len(set(words)) == len(words)
    return set(words)


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        (("statement", "statement-with-name", "change"), STATEMENTS),
        (("statement-behind-colon", "statement-with-name-behind-colon", "change-behind-colon"), STATEMENTS),
        (("fact",), {*FACTS, BORDER}),
        (("logical", "conditional", "constant"), WORDS),
        (("type",), {t.value for t in Type}),
        (("builtin",), BUILTINS),
        (("prelude",), PRELUDE),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_words_of_the_textmate_grammar_are_the_compilers(rules: tuple[str, ...], words: set[str]) -> None:
    assert words_of(*rules) == words


def test_operators_of_the_textmate_grammar_are_the_compilers() -> None:
    signs = re.compile("|".join(RULES[name]["match"] for name in ("operator", "punctuation")))
    alphabet = sorted({character for operator in OPERATORS for character in operator})
    texts = ("".join(text) for length in (1, 2, 3) for text in product(alphabet, repeat=length))
    assert {text for text in texts if signs.fullmatch(text)} == set(OPERATORS)


def test_every_rule_of_the_textmate_grammar_is_used_and_simple() -> None:
    """One `match` each: nothing that would spread from line to line."""
    assert [p["include"] for p in GRAMMAR["patterns"]] == [f"#{name}" for name in RULES]
    for name, rule in RULES.items():
        assert set(rule) in ({"match", "name"}, {"match", "captures"}), name
    assert GRAMMAR["scopeName"] == "source.mask"


def test_pygments_finds_the_lexer() -> None:
    text = "mask causal: keep k <= q\n"
    assert type(get_lexer_by_name("maskc")).__module__ == "maskc.grammar.highlight"
    assert type(get_lexer_for_filename("causal.mask")).__module__ == "maskc.grammar.highlight"
    assert type(get_lexer_for_filename("causal.mask", text)).__module__ == "maskc.grammar.highlight"
    assert (MaskLexer.analyse_text(text), MaskLexer.analyse_text("def mask(a): pass")) == (0.9, 0.0)


def test_the_extension_is_whole() -> None:
    package = json.loads((VSCODE / "package.json").read_text(encoding="utf-8"))
    assert package["version"] == maskc.__version__
    (language,), (grammar,) = package["contributes"]["languages"], package["contributes"]["grammars"]
    assert ["*" + suffix for suffix in language["extensions"]] == MaskLexer.filenames
    assert (grammar["language"], grammar["scopeName"]) == (language["id"], GRAMMAR["scopeName"])
    assert (VSCODE / grammar["path"]).samefile(VSCODE / "syntaxes" / "mask.tmLanguage.json")
    configuration = json.loads((VSCODE / language["configuration"]).read_text(encoding="utf-8"))
    assert configuration["comments"] == {"lineComment": "#"}
    for rule in configuration["onEnterRules"]:
        re.compile(rule["beforeText"])
