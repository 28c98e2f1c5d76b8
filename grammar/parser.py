"""Text to `File`: logical lines are read by the grammar one by one and put into blocks by their indentation.

A line that cannot be read costs one diagnosis and leaves as much behind as is known (the name it defines), so that the
rest of the file can still be checked. Names, types and the meaning of statements are the checker's part.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any, cast

from lark import Lark, Token, Transformer, UnexpectedToken
from lark.lexer import Lexer

from maskc.diagnostics import Diagnostic, MaskError, Source, Span, did_you_mean
from maskc.grammar import syntax
from maskc.grammar.lexer import STATEMENTS, Line, Word, logical_lines

ERROR_LIMIT = 100
BLOCK_LIMIT = 8
BYTE_LIMIT = 1 << 20  # bytes of UTF-8

# Statements of the language that this version does not have yet.
LATER = {"packed", "mass", "weight", "normalize", "reduce", "output", "rows", "queries", "keys"}
LATER_NAMES = {"packed", "reduce", "output"}  # those that define the name behind them

_STATEMENT_KINDS = {word.upper() for word in STATEMENTS}
_CONDITIONS = "write 'A if condition else B', or join conditions with 'and' and 'or'"
_STATEMENT_HINTS = {
    "if": _CONDITIONS,
    "elif": _CONDITIONS,
    "else": _CONDITIONS,
    "for": "there are no loops; a spec says which pairs to keep",
    "while": "there are no loops; a spec says which pairs to keep",
    "import": "nothing can be imported; the standard library is always there",
    "from": "nothing can be imported; the standard library is always there",
    "assert": "write 'claim'",
    "function": "write 'def'",
    "allow": "write 'keep'",
    "drop": "write 'keep not (...)'",
}
_OPERATOR_HINTS = {
    "is": "write '=='",
    "AND": "write 'and'",
    "OR": "write 'or'",
    "NOT": "write 'not'",
    "then": "write 'A if condition else B'",
    "xor": "write '!='",
    "mod": "write '%'",
    "div": "write '//'",
}


def parse(source: Source) -> syntax.File:
    """The syntax tree of a source. Raises MaskError with every mistake in its form."""
    file, found = recover(source)
    if found:
        raise MaskError(found)
    return file


def recover(source: Source) -> tuple[syntax.File, list[Diagnostic]]:
    """What could be read of a source, and every mistake in its form. Never raises."""
    text = source.text
    if len(text) > BYTE_LIMIT or len(text.encode("utf-8", "surrogatepass")) > BYTE_LIMIT:
        too_long = Diagnostic(f"'{source.name}' is larger than 1 MiB; a spec is a few lines")
        return syntax.File(Source(source.name, ""), ()), [too_long]
    if "\r" in text or text.startswith("\ufeff"):
        source = Source(source.name, text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n"))
    lines, found = logical_lines(source)
    blocks = _Blocks(lines, found)
    items = tuple(blocks.file())
    found.sort(key=lambda d: d.span.start if d.span else 0)
    return syntax.File(source, items), found[:ERROR_LIMIT]


class _Given(Lexer):
    """Hands lark the tokens that lexer.py has made."""

    def __init__(self, lexer_conf: Any) -> None:
        pass

    def lex(self, lexer_state: Any, parser_state: Any = None) -> Iterator[Token]:
        """The tokens themselves; lark passes on whatever `parse` was given."""
        return iter(lexer_state)


@functools.cache
def _grammar() -> Lark:
    text = files("maskc.grammar").joinpath("mask.lark").read_text(encoding="utf-8")
    return Lark(
        text,
        parser="lalr",
        lexer=_Given,
        start="line",
        transformer=_Builder(),
        keep_all_tokens=True,
        maybe_placeholders=False,
    )


def _covering(first: Any, last: Any) -> Span:
    return Span(first.span.source, first.span.start, last.span.end)


def _nodes(children: Sequence[Any]) -> tuple[Any, ...]:
    """The children that are not tokens."""
    return tuple(c for c in children if not isinstance(c, Word))


def _name(word: Word) -> syntax.Name:
    return syntax.Name(str(word), span=word.span)


class _Builder(Transformer[Any, Any]):
    """One method per rule of mask.lark: the children of the rule, tokens and all, to a node."""

    def name(self, children: list[Any]) -> syntax.Name:
        return _name(children[0])

    def integer(self, children: list[Any]) -> syntax.Integer:
        return syntax.Integer(int(children[0], 0), span=children[0].span)

    def floating(self, children: list[Any]) -> syntax.Float:
        return syntax.Float(float(children[0]), span=children[0].span)

    def truth(self, children: list[Any]) -> syntax.Boolean:
        return syntax.Boolean(children[0] == "True", span=children[0].span)

    def bracketed(self, children: list[Any]) -> syntax.Bracketed:
        return syntax.Bracketed(children[1], span=_covering(children[0], children[2]))

    def tuple_display(self, children: list[Any]) -> syntax.Tuple:
        return syntax.Tuple(_nodes(children), span=_covering(children[0], children[-1]))

    def list_display(self, children: list[Any]) -> syntax.List:
        return syntax.List(_nodes(children), span=_covering(children[0], children[-1]))

    def attribute(self, children: list[Any]) -> syntax.Attribute:
        return syntax.Attribute(children[0], _name(children[2]), span=_covering(children[0], children[2]))

    def subscript(self, children: list[Any]) -> syntax.Subscript:
        table, *indices = _nodes(children)
        return syntax.Subscript(table, tuple(indices), span=_covering(children[0], children[-1]))

    def call(self, children: list[Any]) -> syntax.Call:
        function, *arguments = _nodes(children)
        return syntax.Call(function, tuple(arguments), span=_covering(children[0], children[-1]))

    def argument(self, children: list[Any]) -> syntax.Argument:
        return syntax.Argument(None, children[0], span=children[0].span)

    def keyword(self, children: list[Any]) -> syntax.Argument:
        return syntax.Argument(_name(children[0]), children[2], span=_covering(children[0], children[2]))

    def comprehension(self, children: list[Any]) -> syntax.Comprehension:
        element, _, name, _, iterable = children
        return syntax.Comprehension(element, _name(name), iterable, span=_covering(element, iterable))

    def unary(self, children: list[Any]) -> syntax.Unary:
        operator, operand = children
        return syntax.Unary(str(operator), operand, span=_covering(operator, operand))

    def binary(self, children: list[Any]) -> syntax.Binary:
        left, operator, right = children
        return syntax.Binary(str(operator), left, right, span=_covering(left, right))

    def comparator(self, children: list[Any]) -> syntax.Comparator:
        return syntax.Comparator(" ".join(children), span=_covering(children[0], children[-1]))

    def comparison(self, children: list[Any]) -> syntax.Comparison:
        return syntax.Comparison(tuple(children[::2]), tuple(children[1::2]), span=_covering(children[0], children[-1]))

    def boolean(self, children: list[Any]) -> syntax.BooleanOperation:
        return syntax.BooleanOperation(
            str(children[1]), tuple(children[::2]), span=_covering(children[0], children[-1])
        )

    def conditional(self, children: list[Any]) -> syntax.Conditional:
        then, _, condition, _, otherwise = children
        return syntax.Conditional(condition, then, otherwise, span=_covering(then, otherwise))

    def axis(self, children: list[Any]) -> syntax.Axis:
        part = children[2] if len(children) == 3 else None
        return syntax.Axis(_name(children[0]), part, span=_covering(children[0], children[-1]))

    def border(self, children: list[Any]) -> "_Border":
        return _Border(children[1], _covering(children[0], children[1]))

    def axes(self, children: list[Any]) -> syntax.Axes:
        axes = tuple(c for c in children if isinstance(c, syntax.Axis))
        border = children[-1].value if isinstance(children[-1], _Border) else None
        return syntax.Axes(str(children[0]), axes, border, span=_covering(children[0], children[-1]))

    def dims(self, children: list[Any]) -> "_Dims":
        return _Dims(_nodes(children), _covering(children[0], children[-1]))

    def fact(self, children: list[Any]) -> syntax.Fact:
        value = children[1] if len(children) == 2 else None
        return syntax.Fact(str(children[0]), value, span=_covering(children[0], children[-1]))

    def input(self, children: list[Any]) -> syntax.Input:
        dims = next((c.dims for c in children if isinstance(c, _Dims)), ())
        facts = tuple(c for c in children if isinstance(c, syntax.Fact))
        return syntax.Input(
            _name(children[1]), _name(children[3]), dims, facts, span=_covering(children[0], children[-1])
        )

    def let(self, children: list[Any]) -> syntax.Let:
        return syntax.Let(_name(children[1]), children[3], span=_covering(children[0], children[-1]))

    def keep(self, children: list[Any]) -> syntax.Keep:
        return syntax.Keep(children[1], span=_covering(children[0], children[1]))

    def score(self, children: list[Any]) -> syntax.Score:
        _, assign, value = children
        return syntax.Score(str(assign)[:-1] or None, value, span=_covering(children[0], value))

    def claim(self, children: list[Any]) -> syntax.Claim:
        return syntax.Claim(children[1], span=_covering(children[0], children[1]))

    def pass_(self, children: list[Any]) -> syntax.Pass:
        return syntax.Pass(span=children[0].span)

    def return_(self, children: list[Any]) -> syntax.Return:
        return syntax.Return(children[1], span=_covering(children[0], children[1]))

    def parameter(self, children: list[Any]) -> syntax.Parameter:
        kind = default = None
        for mark, value in zip(children[1::2], children[2::2], strict=True):
            if mark == ":":
                kind = _name(value)
            else:
                default = value
        return syntax.Parameter(_name(children[0]), kind, default, span=_covering(children[0], children[-1]))

    def parameters(self, children: list[Any]) -> "_Parameters":
        return _Parameters(_nodes(children), _covering(children[0], children[-1]))

    def names(self, children: list[Any]) -> "_Names":
        names = tuple(_name(c) for c in children if c.type == "NAME")
        return _Names(names, _covering(children[0], children[-1]))

    def mask(self, children: list[Any]) -> syntax.Mask:
        parameters = next((c.parameters for c in children if isinstance(c, _Parameters)), ())
        body = () if isinstance(children[-1], Word) else (children[-1],)
        return syntax.Mask(_name(children[1]), parameters, body, span=_covering(children[0], children[-1]))

    def function(self, children: list[Any]) -> syntax.Function:
        body = () if isinstance(children[-1], Word) else (children[-1],)
        return syntax.Function(_name(children[1]), children[2].names, body, span=_covering(children[0], children[-1]))


@dataclass(frozen=True)
class _Border:
    value: syntax.Expression
    span: Span


@dataclass(frozen=True)
class _Dims:
    dims: tuple[syntax.Expression, ...]
    span: Span


@dataclass(frozen=True)
class _Parameters:
    parameters: tuple[syntax.Parameter, ...]
    span: Span


@dataclass(frozen=True)
class _Names:
    names: tuple[syntax.Name, ...]
    span: Span


_Item = syntax.Mask | syntax.Statement
_Head = syntax.Mask | syntax.Function


@dataclass
class _Blocks:
    """Puts lines into blocks by their indentation; `at` is the next line."""

    lines: list[Line]
    found: list[Diagnostic]
    at: int = 0
    depth: int = 0

    def report(self, message: str, span: Span, hint: str | None = None) -> None:
        self.found.append(Diagnostic(message, span, hint))

    def file(self) -> Iterator[syntax.Mask | syntax.Function | syntax.Let]:
        """Everything at the margin, which lies further in where the whole text does (a text inside a program)."""
        margin = min((line.indent for line in self.lines), default=0)
        for item in self._block(-1, margin):
            if isinstance(item, syntax.Mask | syntax.Function | syntax.Let):
                yield item
            else:
                word = item.span.text.split(None, 1)[0]
                self.report(f"'{word}' stands outside a mask", item.span, "put it below 'mask NAME:', indented")

    def _block(self, parent: int, level: int | None) -> Iterator[_Item]:
        """The lines indented deeper than `parent`; the first one sets the level where none is given."""
        self.depth += 1
        if self.depth > BLOCK_LIMIT and self.at < len(self.lines) and self.lines[self.at].indent > parent:
            self.report(f"blocks are nested more than {BLOCK_LIMIT} deep", self.lines[self.at].words[0].span)
            while self.at < len(self.lines) and self.lines[self.at].indent > parent:
                self.at += 1
        yield from self._level(parent, level)
        self.depth -= 1

    def _level(self, parent: int, level: int | None) -> Iterator[_Item]:
        complained = False
        while self.at < len(self.lines) and len(self.found) <= ERROR_LIMIT:
            line = self.lines[self.at]
            if line.indent <= parent:
                return
            if level is None:
                level = line.indent
            if line.indent != level and not complained:
                complained = True
                what = "unexpected indentation" if line.indent > level else "this indentation matches no line above"
                self.report(what, line.words[0].span)
            self.at += 1
            item = self._line(line)
            if isinstance(item, syntax.Mask | syntax.Function):
                yield self._with_body(item, line)
            elif item is not None:
                yield item
            elif line.words[-1].type == "COLON":  # the lines below `if ...:` are deeper, and that is no second mistake
                below = list(self._block(line.indent, None))
                yield from () if line.words[0].type in ("MASK", "DEF") else below

    def _with_body(self, head: _Head, line: Line) -> _Head:
        """A head with the block below it."""
        start = self.at
        body = [*head.body, *self._block(line.indent, None)]
        if not body and self.at == start:
            body = list(self._unindented(head, line))
        if isinstance(head, syntax.Function):
            return replace(head, body=tuple(self._function_body(head, body)))
        return replace(head, body=tuple(self._mask_body(body)))

    def _unindented(self, head: _Head, line: Line) -> Iterator[_Item]:
        """The body of a head that was forgotten to be indented."""
        following = self.lines[self.at] if self.at < len(self.lines) else None
        if following is None or not _may_stand_in(head, following):
            hint = "indent its lines below it; an empty body is 'pass'"
            self.report(f"'{head.name.text}' has no body", head.span, hint)
            return
        self.report(f"expected an indented line below '{head.span.text}'", following.words[0].span)
        while self.at < len(self.lines) and _may_stand_in(head, self.lines[self.at]):
            if self.lines[self.at].indent != following.indent:
                return
            self.at += 1
            item = self._line(self.lines[self.at - 1])
            if item is not None:
                yield item

    def _mask_body(self, body: list[_Item]) -> Iterator[syntax.Statement]:
        for item in body:
            match item:
                case syntax.Mask():
                    self.report("a mask cannot stand inside a mask", item.span, "begin its line at the margin")
                case syntax.Return():
                    self.report("'return' stands outside a function", item.span, "a mask says 'keep'")
                case _:
                    yield item

    def _function_body(self, head: syntax.Function, body: list[_Item]) -> Iterator[syntax.Statement]:
        returned = False
        for item in body:
            if returned:
                self.report("this line stands behind 'return'", item.span)
                return
            match item:
                case syntax.Let():
                    yield item
                case syntax.Return():
                    returned = True
                    yield item
                case _:
                    word = item.span.text.split(None, 1)[0]
                    self.report(
                        f"'{word}' cannot stand in a function", item.span, "a function has 'let' lines and one 'return'"
                    )
        if not returned and body and head.readable:
            self.report(f"function '{head.name.text}' returns nothing", head.span, "end it with 'return EXPRESSION'")

    def _line(self, line: Line) -> _Item | None:
        """What a line says; None where nothing can be made of it."""
        first = line.words[0]
        if line.broken:
            return _salvaged(line)
        if first.type not in _STATEMENT_KINDS:
            self.found.append(_no_statement(line))
            return _salvaged(line)
        try:
            return _read(line.words)
        except UnexpectedToken as error:
            self.found.append(_explained(line, error))
            if error.token.type == "$END" and first.type in ("MASK", "DEF") and "COLON" in error.expected:
                return self._without_colon(line)
            return _salvaged(line)

    def _without_colon(self, line: Line) -> _Item | None:
        last = line.words[-1]
        colon = Word.make("COLON", ":", last.source, last.end - 1)
        try:
            return _read((*line.words, colon))
        except UnexpectedToken:
            return _salvaged(line)


def _may_stand_in(head: _Head, line: Line) -> bool:
    """Whether a line that is not indented may be meant for the body of the head above it."""
    kind = line.words[0].type
    return kind in ("LET", "RETURN") if isinstance(head, syntax.Function) else kind not in ("MASK", "DEF")


def _read(words: tuple[Word, ...]) -> _Item:
    item: Any = _grammar().parse(words)  # whatever the builder's method for the line returns
    return cast(_Item, item)


def _salvaged(line: Line) -> _Item | None:
    """What is known of an unreadable line: its kind, and the name it defines, whose uses are no mistakes."""
    words, span = line.words, line.span
    unreadable = syntax.Unreadable(span=span)
    match words[0].type:
        case "KEEP":
            return syntax.Keep(unreadable, span=span)
        case "SCORE":
            return syntax.Score(None, unreadable, span=span)
        case "CLAIM":
            return syntax.Claim(unreadable, span=span)
        case "RETURN":
            return syntax.Return(unreadable, span=span)
    names = [_name(w) for w in words[1:] if w.type == "NAME" and w not in ("bool", "int", "float")]
    if words[0].type == "NAME" and len(words) > 1 and words[1].type == "EQUAL":
        return syntax.Let(_name(words[0]), unreadable, span=span)
    if not names or words[1].type != "NAME":
        return None
    match words[0].type:
        case "MASK":
            parameters = tuple(syntax.Parameter(n, None, None, span=n.span) for n in names[1:])
            return syntax.Mask(names[0], parameters, (), readable=False, span=span)
        case "DEF":
            return syntax.Function(names[0], tuple(names[1:]), (), readable=False, span=span)
        case "LET":
            return syntax.Let(names[0], unreadable, span=span)
        case "INPUT":
            return syntax.Input(names[0], None, (), (), span=span)
        case "AXES":
            return syntax.Axes(str(words[0]), tuple(syntax.Axis(n, None, span=n.span) for n in names), None, span=span)
        case _:
            return syntax.Let(names[0], unreadable, span=span) if words[0] in LATER_NAMES else None


def _no_statement(line: Line) -> Diagnostic:
    first = line.words[0]
    text = str(first)
    if text in LATER:
        return Diagnostic(f"'{text}' is not available in this version", first.span)
    second = line.words[1] if len(line.words) > 1 else None
    hint = _STATEMENT_HINTS.get(text)
    if hint is None and second is not None and first.type == "NAME" and second.type == "EQUAL":
        hint = f"write 'let {text} = ...'"
    elif hint is None and second is not None and first.type == "NAME" and second.type == "ASSIGN":
        hint = "only 'score' can be changed"
    elif hint is None:
        hint = did_you_mean(text.lower(), sorted(STATEMENTS))
    shown = text if len(text) <= 40 else text[:37] + "..."
    return Diagnostic(f"'{shown}' does not begin a statement", first.span, hint)


def _explained(line: Line, error: UnexpectedToken) -> Diagnostic:
    """What is wrong with the form of a line, in a sentence."""
    expected = set(error.expected)
    if error.token.type == "$END":
        return _ends_early(line, expected)
    at = next(i for i, w in enumerate(line.words) if w is error.token)
    word = line.words[at]
    before = line.words[at - 1]
    touching = before.end == word.start
    if word == before and touching and word.type in ("AMPERSAND", "BAR"):
        instead = "and" if word.type == "AMPERSAND" else "or"
        return Diagnostic(f"unexpected '{word}{word}'", _covering(before, word), f"write '{instead}'")
    if before == "<" and word == ">" and touching:
        return Diagnostic("unexpected '<>'", _covering(before, word), "write '!='")
    shown = str(word) if len(word) <= 40 else word[:37] + "..."
    if expected == {"NAME"}:
        return Diagnostic(f"expected a name, found '{shown}'", word.span)
    if word.type == "EQUAL" and "COMPARE" in expected:
        following = line.words[at + 1] if at + 1 < len(line.words) else None
        if following is not None and following in ("<", ">") and following.start == word.end:
            return Diagnostic(f"unexpected '={following}'", _covering(word, following), f"write '{following}='")
        return Diagnostic("unexpected '='", word.span, "'==' compares")
    if word.type in ("RPAR", "RSQB") and "INTEGER" not in expected:
        return Diagnostic(f"unexpected '{shown}'", word.span, "no bracket is open here" if _closed(line, at) else None)
    if "INTEGER" in expected:
        return Diagnostic(f"expected an expression, found '{shown}'", word.span)
    return Diagnostic(f"unexpected '{shown}'", word.span, _OPERATOR_HINTS.get(str(word)))


def _closed(line: Line, at: int) -> bool:
    """Whether no bracket is open before a token."""
    kinds = [w.type for w in line.words[:at]]
    return sum(k in ("LPAR", "LSQB") for k in kinds) <= sum(k in ("RPAR", "RSQB") for k in kinds)


def _ends_early(line: Line, expected: set[str]) -> Diagnostic:
    last = line.words[-1].span
    behind = Span(last.source, last.end, last.end + 1)
    kind = line.words[0].type
    if "INTEGER" in expected:
        return Diagnostic("expected an expression", behind)
    if "ELSE" in expected and "COLON" not in expected:
        word = next(w for w in reversed(line.words) if w.type == "IF")
        return Diagnostic("'if' without 'else'", word.span, "write 'A if condition else B'")
    if kind in ("MASK", "DEF") and "COLON" in expected:
        return Diagnostic("expected ':' at the end of the line", behind)
    forms = {
        "MASK": "mask NAME(parameter: type = default):",
        "DEF": "def NAME(a, b):",
        "INPUT": "input NAME: TYPE[DIM, ...]",
        "LET": "let NAME = EXPRESSION",
        "SCORE": "score += EXPRESSION",
        "AXES": "axes y, x",
    }
    form = forms.get(kind)
    return Diagnostic("the line ends too early", behind, None if form is None else f"the form is '{form}'")
