"""Text to `File`: logical lines are read by the grammar one by one and put into blocks by their indentation.

A line that cannot be read costs one diagnosis and leaves as much behind as is known (the name it defines), so that the
rest of the file can still be checked. Names, types and the meaning of statements are the checker's part.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from maskc.diagnostics import Diagnostic, MaskError, Source, Span
from maskc.grammar import syntax
from maskc.grammar.builder import Item, read
from maskc.grammar.lexer import CHANGES, STATEMENTS, Line, Word, logical_lines
from maskc.grammar.machine import FormError
from maskc.grammar.mistakes import explained, no_statement

ERROR_LIMIT = 100
BLOCK_LIMIT = 8
BYTE_LIMIT = 1 << 20  # bytes of UTF-8

_KINDS = {word.upper() for word in STATEMENTS}


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

    def _block(self, parent: int, level: int | None) -> Iterator[Item]:
        """The lines indented deeper than `parent`; the first one sets the level where none is given."""
        self.depth += 1
        if self.depth > BLOCK_LIMIT and self.at < len(self.lines) and self.lines[self.at].indent > parent:
            self.report(f"blocks are nested more than {BLOCK_LIMIT} deep", self.lines[self.at].words[0].span)
            while self.at < len(self.lines) and self.lines[self.at].indent > parent:
                self.at += 1
        yield from self._level(parent, level)
        self.depth -= 1

    def _level(self, parent: int, level: int | None) -> Iterator[Item]:
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

    def _unindented(self, head: _Head, line: Line) -> Iterator[Item]:
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

    def _mask_body(self, body: list[Item]) -> Iterator[syntax.Statement]:
        for item in body:
            match item:
                case syntax.Mask():
                    self.report("a mask cannot stand inside a mask", item.span, "begin its line at the margin")
                case syntax.Return():
                    self.report("'return' stands outside a function", item.span, "a mask says 'keep'")
                case _:
                    yield item

    def _function_body(self, head: syntax.Function, body: list[Item]) -> Iterator[syntax.Statement]:
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

    def _line(self, line: Line) -> Item | None:
        """What a line says; None where nothing can be made of it."""
        first = line.words[0]
        if line.broken:
            return _salvaged(line)
        if first.type not in _KINDS:
            self.found.append(no_statement(line))
            return _salvaged(line)
        try:
            return read(line.words)
        except FormError as error:
            self.found.append(explained(line, error))
            if error.at == len(line.words) and first.type in ("MASK", "DEF") and "COLON" in error.expected:
                return self._without_colon(line)
            return _salvaged(line)

    def _without_colon(self, line: Line) -> Item | None:
        last = line.words[-1]
        colon = Word.make("COLON", ":", last.source, last.end - 1)
        try:
            return read((*line.words, colon))
        except FormError:
            return _salvaged(line)


def _may_stand_in(head: _Head, line: Line) -> bool:
    """Whether a line that is not indented may be meant for the body of the head above it."""
    kind = line.words[0].type
    return kind in ("LET", "RETURN") if isinstance(head, syntax.Function) else kind not in ("MASK", "DEF")


def _salvaged(line: Line) -> Item | None:
    """What is known of an unreadable line: its kind, and the name it defines, whose uses are no mistakes."""
    words, span = line.words, line.span
    kind, unreadable = words[0].type, syntax.Unreadable(span=span)
    if len(words) > 1 and words[1].type == "EQUAL" and str(words[0]) not in CHANGES:
        return syntax.Let(_name(words[0]), unreadable, span=span)  # `let` was forgotten
    match kind:
        case "KEEP":
            return syntax.Keep(unreadable, span=span)
        case "SCORE":
            return syntax.Score(None, unreadable, span=span)
        case "MASS":
            return syntax.Mass("*", unreadable, span=span)
        case "WEIGHT":
            return syntax.Weight("*", unreadable, span=span)
        case "NORMALIZE":
            return syntax.Normalize(unreadable, span=span)
        case "ROWS":
            return syntax.Rows(unreadable, syntax.Name("zero", span=span), span=span)
        case "CLAIM":
            return syntax.Claim(unreadable, span=span)
        case "RETURN":
            return syntax.Return(unreadable, span=span)
    return _salvaged_definition(line)


def _salvaged_definition(line: Line) -> Item | None:
    """The same of a line that is there for the name behind its first word; None where it has none."""
    words, span = line.words, line.span
    if len(words) < 2 or words[1].type != "NAME":
        return None
    name, unreadable = _name(words[1]), syntax.Unreadable(span=span)
    match words[0].type:
        case "MASK" | "DEF":
            return _salvaged_head(line)
        case "LET":
            return syntax.Let(name, unreadable, span=span)
        case "INPUT":
            return syntax.Input(name, None, (), (), span=span)
        case "PACKED":
            return syntax.Packed(name, span=span)
        case "REDUCE" | "OUTPUT" as word:
            return syntax.Reduce(name, (), unreadable, output=word == "OUTPUT", span=span)
        case "AXES" | "QUERIES" | "KEYS":
            return syntax.Axes(str(words[0]), tuple(_salvaged_axes(line)), None, span=span)
        case _:
            return None


def _salvaged_head(line: Line) -> _Head:
    """A mask or a function with the names of its parameters, and what stands behind it on its line."""
    end = next((i for i, word in enumerate(line.words) if i > 0 and word.type in _KINDS), len(line.words))
    name = _name(line.words[1])
    rest = [_name(w) for w in line.words[2:end] if w.type == "NAME" and w not in ("bool", "int", "float")]
    behind = _salvaged(Line(line.indent, line.words[end:])) if end < len(line.words) else None
    body = () if behind is None or isinstance(behind, syntax.Mask) else (behind,)
    if line.words[0].type == "DEF":
        return syntax.Function(name, tuple(rest), body, readable=False, span=line.span)
    parameters = tuple(syntax.Parameter(n, None, None, span=n.span) for n in rest)
    return syntax.Mask(name, parameters, body, readable=False, span=line.span)


def _salvaged_axes(line: Line) -> Iterator[syntax.Axis]:
    """The axes and parts of a line by their names; what the parts are laid out as is lost."""
    depth = 0
    for place, word in enumerate(line.words):
        if word.type in ("LPAR", "LSQB"):
            depth += 1
        elif word.type in ("RPAR", "RSQB"):
            depth -= 1
        elif word.type == "NAME" and depth == 0 and (place == 1 or line.words[place - 1].type == "COMMA"):
            is_part = place + 1 < len(line.words) and line.words[place + 1].type == "COLON"
            yield syntax.Axis(_name(word), syntax.Unreadable(span=line.span) if is_part else None, span=word.span)


def _name(word: Word) -> syntax.Name:
    return syntax.Name(str(word), span=word.span)
