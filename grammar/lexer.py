"""Text to logical lines of tokens: characters, numbers, brackets that join lines, and indentation.

In: a `Source` of any characters. Out: its logical lines, each a list of tokens with their spans, and what is wrong with
the characters themselves. Nothing is checked here about the order of tokens; that is the grammar's part.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from maskc.diagnostics import Diagnostic, Source, Span

BRACKET_LIMIT = 100
TOKEN_LIMIT = 50_000  # of a file; keeps the time to refuse it within seconds
LARGEST_INT = 2**63 - 1

OPERATORS = {  # as they are called in mask.lark
    "**=": "ASSIGN",
    "//=": "ASSIGN",
    "<<=": "ASSIGN",
    ">>=": "ASSIGN",
    "**": "POWER",
    "//": "PRODUCT",
    "<<": "SHIFT",
    ">>": "SHIFT",
    "<=": "COMPARE",
    ">=": "COMPARE",
    "==": "COMPARE",
    "!=": "COMPARE",
    "+=": "ASSIGN",
    "-=": "ASSIGN",
    "*=": "ASSIGN",
    "/=": "ASSIGN",
    "%=": "ASSIGN",
    "&=": "ASSIGN",
    "|=": "ASSIGN",
    "^=": "ASSIGN",
    "<": "COMPARE",
    ">": "COMPARE",
    "=": "EQUAL",
    "+": "PLUS",
    "-": "MINUS",
    "*": "PRODUCT",
    "/": "PRODUCT",
    "%": "PRODUCT",
    "&": "AMPERSAND",
    "|": "BAR",
    "^": "CARET",
    "~": "TILDE",
    "(": "LPAR",
    ")": "RPAR",
    "[": "LSQB",
    "]": "RSQB",
    ",": "COMMA",
    ":": "COLON",
    ".": "DOT",
}

WORDS = {"and", "or", "not", "in", "if", "else", "for", "True", "False"}
CHANGES = {"score", "mass", "weight"}  # statements whose word is a value: `score += ...`
STATEMENTS = {
    *("mask", "def", "axes", "queries", "keys", "packed", "input", "let", "keep", *CHANGES),
    *("normalize", "reduce", "output", "rows", "claim", "pass", "return"),
}
FACTS = {"of", "sorted", "constant", "learned"}  # words of an `input` line, behind its brackets
BORDER = "border"  # a word of an `axes`, `queries` or `keys` line

_TOKEN = re.compile(
    r"""
      (?P<space>[ \t]+)
    | (?P<comment>\#[^\n]*)
    | (?P<newline>\n)
    | (?P<number>(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)(?:[eE][+-]?[0-9][0-9_]*)?[A-Za-z0-9_]*)
    | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
    | (?P<operator>"""
    + "|".join(re.escape(o) for o in OPERATORS)
    + r""")
    | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_INTEGER = re.compile(r"0|[1-9](?:_?[0-9])*|00*|0[xX](?:_?[0-9a-fA-F])+|0[bB](?:_?[01])+|0[oO](?:_?[0-7])+")
_DIGITS = r"[0-9](?:_?[0-9])*"
_FLOAT = re.compile(
    rf"(?:(?:{_DIGITS})?\.{_DIGITS}|{_DIGITS}\.)(?:[eE][+-]?{_DIGITS})?|{_DIGITS}[eE][+-]?{_DIGITS}",
)
# What a line inside an open bracket begins with if it can only be a statement, so that the bracket was never closed:
# two names in a row are no part of an expression, nor is an assignment with an operator.
_CHANGES = "|".join(sorted(CHANGES))
_STATEMENT_START = re.compile(
    rf"(?:{'|'.join(sorted(STATEMENTS - CHANGES - {'pass'}))})[ \t]+"
    r"(?!(?:and|or|in|not[ \t]+in|if|else|for)\b)[A-Za-z_0-9]"
    rf"|(?:{_CHANGES})[ \t]*(?:\*\*|//|<<|>>|[-+*/%&|^])="
)
# The same if it can be part of an expression too, `f(\n score=1)`: a statement unless it lies further in than its line.
_STATEMENT_PERHAPS = re.compile(rf"(?:keep|claim|return|rows)[ \t]*\(|(?:{_CHANGES})[ \t]*=(?!=)|pass[ \t]*(?:\#|\n|$)")
_HINTS: Mapping[str, str] = {
    "!": "write 'not', or '!=' to compare",
    "≤": "write '<='",
    "≥": "write '>='",
    "≠": "write '!='",
    "∧": "write 'and'",
    "∨": "write 'or'",
    "¬": "write 'not'",
    "−": "write '-'",
    "–": "write '-'",
    "×": "write '*'",
    "·": "write '*'",
    "÷": "write '/'",
    "∞": "write 'inf'",
    "∈": "write 'in'",
    "\\": "a line goes on inside brackets only",
    ";": "write each statement on a line of its own",
    "?": "write 'A if condition else B'",
    '"': "the language has no strings",
    "'": "the language has no strings",
    "“": "the language has no strings",
    "{": "brackets are ( ) and [ ]",
    "}": "brackets are ( ) and [ ]",
    "\u00a0": "this is a no-break space; write a plain one",
}
_CLOSING = {"RPAR": "LPAR", "RSQB": "LSQB"}
_OPERAND_ENDS = {"NAME", "INTEGER", "FLOAT", "RPAR", "RSQB", "SORTED", "CONSTANT", "LEARNED"}
_MODIFIERS = {"INPUT": FACTS, **{w: {BORDER} for w in ("AXES", "QUERIES", "KEYS")}}  # by the word of their line


class Word(str):
    """A token: its text, its terminal in the grammar, and its place in a source."""

    __slots__ = ("end", "source", "start", "type")

    type: str
    source: Source
    start: int
    end: int

    # What else lark looks at when it makes the token that stands for the end of a line.
    start_pos = end_pos = line = column = end_line = end_column = None

    @classmethod
    def make(cls, kind: str, text: str, source: Source, start: int) -> "Word":
        """The token of a terminal at a place."""
        word = cls(text)
        word.type, word.source, word.start, word.end = kind, source, start, start + len(text)
        return word

    @property
    def span(self) -> Span:
        """Its characters."""
        return Span(self.source, self.start, self.end)


@dataclass(frozen=True)
class Line:
    """A logical line: the column of its first character (0 at the margin) and its tokens, at least one.

    broken: a diagnosis already says that this line cannot be read as it stands.
    """

    indent: int
    words: tuple[Word, ...]
    broken: bool = False

    @property
    def span(self) -> Span:
        """From the first token to the last."""
        return Span(self.words[0].source, self.words[0].start, self.words[-1].end)


@dataclass
class _Scan:
    """What is gathered while the text is read."""

    source: Source
    found: list[Diagnostic] = field(default_factory=list)
    words: list[Word] = field(default_factory=list)
    open: list[Word] = field(default_factory=list)  # brackets
    indent: int = 0
    statement: str = ""  # terminal of the last word that began one
    broken: bool = False
    tab_reported: bool = False
    too_long: bool = False

    def report(self, message: str, start: int, end: int, hint: str | None = None) -> None:
        self.found.append(Diagnostic(message, Span(self.source, start, end), hint))
        self.broken = True


def logical_lines(source: Source) -> tuple[list[Line], list[Diagnostic]]:
    """The lines of a source, those joined by brackets as one, without comments and empty lines. None if too long."""
    scan = _Scan(source)
    lines = list(_lines(scan))
    return ([], scan.found[-1:]) if scan.too_long else (lines, scan.found)


def _lines(scan: _Scan) -> Iterator[Line]:
    text = scan.source.text
    line_start = count = 0
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup
        if kind == "space":
            if "\t" in match[0] and match.start() == line_start and not scan.open:
                _report_tab(scan, match)
        elif kind == "newline":
            line_start = match.end()
            if not scan.open or _begins_statement(scan, line_start):
                yield from _finish(scan)
        elif kind != "comment":
            if not scan.words:
                scan.indent = _width(text[line_start : match.start()])
            _add(scan, match)
            count += 1
            if count > TOKEN_LIMIT:
                message = f"this file has more than {TOKEN_LIMIT:,} words and signs; a spec is a few lines"
                scan.report(message, match.start(), match.end())
                scan.too_long = True
                return
    yield from _finish(scan)


def _finish(scan: _Scan) -> Iterator[Line]:
    """The line gathered so far, if it holds a token; a bracket still open is reported."""
    if scan.open:
        bracket = scan.open[0]
        scan.report(f"'{bracket}' is never closed", bracket.start, bracket.end)
    if scan.words:
        yield Line(scan.indent, tuple(scan.words), scan.broken)
    scan.words, scan.open, scan.broken, scan.statement = [], [], False, ""


def _add(scan: _Scan, match: re.Match[str]) -> None:
    """One token that is neither blank nor comment."""
    text, start = match[0], match.start()
    match match.lastgroup:
        case "name":
            kind = _word_kind(scan, text)
        case "operator":
            kind = OPERATORS[text]
        case "number":
            kind = _number_kind(scan, text, start)
        case _:
            scan.report(f"unexpected character {_shown(text)}", start, start + 1, _HINTS.get(text))
            kind = "OTHER"
    word = Word.make(kind, text, scan.source, start)
    scan.words.append(word)
    if kind in ("LPAR", "LSQB"):
        scan.open.append(word)
        if len(scan.open) == BRACKET_LIMIT + 1:
            scan.report(f"brackets are nested more than {BRACKET_LIMIT} deep", start, start + 1)
    elif kind in _CLOSING and scan.open:
        scan.open.pop()


def _word_kind(scan: _Scan, text: str) -> str:
    """Words of the language are words only where they have a meaning; elsewhere they are names."""
    if text in WORDS:
        return text.upper()
    before = scan.words[-1].type if scan.words else ""
    begins = not before or (before == "COLON" and scan.statement in ("MASK", "DEF"))  # `mask causal: keep k <= q`
    if begins and not scan.open and text in STATEMENTS:
        scan.statement = text.upper()
        return scan.statement
    if before in _OPERAND_ENDS and not scan.open and text in _MODIFIERS.get(scan.statement, ()):
        return text.upper()
    return "NAME"


def _number_kind(scan: _Scan, text: str, start: int) -> str:
    """INTEGER or FLOAT; what is neither, or does not fit into 64 bits, is reported."""
    if _INTEGER.fullmatch(text):
        if len(text) > 80 or int(text, 0) > LARGEST_INT:
            scan.report("this integer does not fit into 64 bits", start, start + len(text))
        return "INTEGER"
    if _FLOAT.fullmatch(text):
        if float(text) == float("inf"):
            scan.report("this number is too large for a float", start, start + len(text), "write 'inf' for infinity")
        return "FLOAT"
    digits = re.match(r"[0-9]+", text)
    hint = None
    if digits and text.isdigit():
        hint = f"write '{text.lstrip('0')}'"
    elif digits and text[digits.end() :] in WORDS:
        hint = f"write '{digits[0]} {text[digits.end() :]}'"
    elif digits and text[digits.end() :].isidentifier() and text[digits.end()].isalpha():
        hint = f"write '{digits[0]} * {text[digits.end() :]}' for a product; a name cannot begin with a digit"
    scan.report(f"'{_short(text)}' is not a number", start, start + len(text), hint)
    return "INTEGER"


def _report_tab(scan: _Scan, blank: re.Match[str]) -> None:
    """Once per file: the rest would be the same sentence."""
    if not scan.tab_reported:
        broken = scan.broken
        scan.report("this line is indented with a tab", blank.start(), blank.end(), "indent with spaces")
        scan.tab_reported, scan.broken = True, broken


def _begins_statement(scan: _Scan, start: int) -> bool:
    """Whether the physical line from `start` on, inside an open bracket, is a statement all the same."""
    text, at = scan.source.text, start
    while at < len(text) and text[at] in " \t":
        at += 1
    if _STATEMENT_START.match(text, at):
        return True
    return _width(text[start:at]) <= scan.indent and _STATEMENT_PERHAPS.match(text, at) is not None


def _width(blank: str) -> int:
    return len(blank.expandtabs(4))


def _shown(character: str) -> str:
    return f"'{character}'" if character.isprintable() else f"U+{ord(character):04X}"


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."
