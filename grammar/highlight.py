"""Text to coloured tokens, for Pygments: the compiler's own tokens, so that the two agree on what is a word.

In: any text. Out: all of its characters in order, each with a kind. What the compiler refuses as a character or as a
number is an error here; nothing else is checked.
"""

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, ClassVar

from pygments.lexer import Lexer
from pygments.token import Comment, Error, Keyword, Name, Number, Operator, Punctuation, Text, Whitespace, _TokenType

from maskc.checker.words import BUILTINS, PRELUDE
from maskc.diagnostics import Source
from maskc.expr import Type
from maskc.grammar.lexer import BORDER, FACTS, OPERATORS, STATEMENTS, WORDS, Line, logical_lines

TYPES = frozenset(t.value for t in Type)

KINDS: Mapping[str, _TokenType] = {  # of the terminals of mask.lark, names aside
    **dict.fromkeys((word.upper() for word in {*WORDS, *STATEMENTS, *FACTS, BORDER}), Keyword),
    **dict.fromkeys(("MASK", "DEF", "AXES", "QUERIES", "KEYS", "PACKED"), Keyword.Declaration),
    **dict.fromkeys(("INPUT", "LET", "REDUCE", "OUTPUT"), Keyword.Declaration),
    **dict.fromkeys(("AND", "OR", "NOT", "IN"), Operator.Word),
    **dict.fromkeys(("TRUE", "FALSE"), Keyword.Constant),
    **dict.fromkeys(OPERATORS.values(), Operator),
    **dict.fromkeys(("LPAR", "RPAR", "LSQB", "RSQB", "COMMA", "COLON", "DOT"), Punctuation),
    "INTEGER": Number.Integer,
    "FLOAT": Number.Float,
    "OTHER": Error,
}

_HEAD = re.compile(r"^mask[ \t]+[A-Za-z_][A-Za-z0-9_]*[ \t]*[(:]", re.MULTILINE)
_BETWEEN = re.compile(r"(?P<comment>#[^\n]*)|(?P<blank>[ \t\n]+)|[^# \t\n]+")


class MaskLexer(Lexer):
    """Mask files for Pygments.

    Names are told apart by their places: those behind `mask` and `def` and those in front of a bracket are functions,
    those behind a dot are attributes. A text of more tokens than the compiler reads stays without colours.
    """

    name = "maskc"
    aliases: ClassVar[list[str]] = ["maskc", "mask"]  # by `mask` alone Pygments finds a template language of its own
    filenames: ClassVar[list[str]] = ["*.mask"]
    priority = 0.1  # above that language, which claims the same suffix

    def analyse_text(text: str) -> float:  # noqa: N805  # Pygments makes it static
        """How surely a text is a mask file, from 0 to 1."""
        return 0.9 if _HEAD.search(text) else 0.0

    def get_tokens_unprocessed(self, text: str) -> Iterator[tuple[int, _TokenType, str]]:
        """(start, kind, characters) of every token, blanks and comments included; together they are the text."""
        lines, found = logical_lines(Source("", text))
        wrong = {diagnostic.span.start for diagnostic in found if diagnostic.span is not None}
        end = 0
        for line in lines:
            for word, kind in zip(line.words, _kinds(line), strict=True):
                yield from _between(text, end, word.start)
                yield word.start, Error if kind in Number and word.start in wrong else kind, str(word)
                end = word.end
        yield from _between(text, end, len(text))


def _kinds(line: Line) -> Iterator[_TokenType]:
    """The kind of each word of a line."""
    terminals = ["", *(word.type for word in line.words), ""]
    for word, (before, _), (_, after) in zip(line.words, pairwise(terminals), pairwise(terminals[1:]), strict=False):
        yield _name_kind(word, before, after) if word.type == "NAME" else KINDS[word.type]


def _name_kind(text: str, before: str, after: str) -> _TokenType:
    """The kind of a name between two terminals."""
    if before == "DOT":
        return Name.Attribute
    if before in ("MASK", "DEF"):
        return Name.Function
    if before == "COLON" and text in TYPES:
        return Keyword.Type
    if text in BUILTINS:
        return Name.Builtin
    if text in PRELUDE:
        return Name.Builtin.Pseudo
    return Name.Function if after == "LPAR" else Name


def _between(text: str, start: int, end: int) -> Iterator[tuple[int, _TokenType, str]]:
    """Blanks and comments of a stretch of text without words."""
    kinds: Mapping[Any, _TokenType] = {"comment": Comment.Single, "blank": Whitespace, None: Text}
    for match in _BETWEEN.finditer(text, start, end):
        yield match.start(), kinds[match.lastgroup], match[0]
