"""Text to the same text in its one layout: indentation, blanks, empty lines and comments; never a token more or less.

In: a source without mistakes of form. Out: its canonical text. Lines are broken where their author broke them, and
brackets stay as they are written. Names, types and meaning are not looked at.
"""

import os
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from maskc.diagnostics import MaskError, Source, Span
from maskc.grammar.lexer import Line, Word, logical_lines
from maskc.grammar.parser import BYTE_LIMIT, parse

INDENT = 4
ALIGNED = 100  # columns of code up to which the comments of neighbouring lines stand below each other
HANGING = 80  # columns up to which lines inside a bracket are aligned with what follows it

_OPENING = {"LPAR", "LSQB"}
_CLOSING = {"RPAR", "RSQB"}
_NUMBERS = {"INTEGER", "FLOAT"}
_OPERAND_ENDS = {"NAME", "TRUE", "FALSE", *_NUMBERS, *_CLOSING}
_SIGNS = {"PLUS", "MINUS", "TILDE"}
_ITEMS = {"MASK", "DEF"}  # set apart by an empty line


def formatted(source: Source) -> str:
    """The canonical text of a source: the same tokens and comments, and itself when it is formatted again.

    Raises MaskError with every mistake in its form, and where the text would outgrow what can be read.
    """
    plain = parse(source).source  # without a byte order mark, every line ended by a line feed
    lines, _ = logical_lines(plain)
    text = _text(_aligned(list(_Layout(plain, lines).rows())))
    if len(text.encode("utf-8")) > BYTE_LIMIT:
        raise MaskError(f"'{source.name}' would be larger than 1 MiB in its layout; a spec is a few lines")
    assert _content(Source(plain.name, text)) == _content(plain), (
        f"the layout of {source.name} would change its meaning"
    )
    return text


def expression_text(span: Span) -> str:
    """An expression on one line, as the layout writes it, without the comments that it may hold."""
    lines, _ = logical_lines(Source(span.source.name, f"({span.text})"))  # in brackets a line goes on
    words = [word for line in lines for word in line.words][1:-1]
    return "".join(" " * blank + word for blank, word in zip(_blanks(words), words, strict=True))


def replace_file(path: str | os.PathLike[str], text: str) -> None:
    """Gives a file another text at once, as UTF-8: at any time it holds the old text or the new one.

    Links are followed and permissions kept. Raises OSError, the file untouched, where it or its folder cannot be
    written.
    """
    target = os.path.realpath(path)
    mode = stat.S_IMODE(os.stat(target).st_mode)
    if not os.access(target, os.W_OK):
        raise PermissionError("it is read-only")
    handle, temporary = tempfile.mkstemp(prefix=".maskc-", dir=os.path.dirname(target))
    try:
        with open(handle, "wb") as stream:
            stream.write(text.encode("utf-8"))
        os.chmod(temporary, mode)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


@dataclass(frozen=True)
class _Row:
    """A line of output: how deep its block lies, its text, and the comment behind that."""

    depth: int
    code: str
    comment: str = ""


@dataclass(frozen=True)
class _Comment:
    """A comment on a line of its own, its depth once it is placed; `apart` where an empty line stands before it."""

    depth: int
    text: str
    apart: bool


_EMPTY = _Row(0, "")


class _Layout:
    """Rows of a source, statement by statement, with the comments and empty lines between them."""

    def __init__(self, source: Source, lines: Sequence[Line]) -> None:
        self.lines = lines
        self.blocks = list(_blocks(lines))
        self.texts = source.text.split("\n")
        self.comments = dict(_comments(self.texts))
        self.row_of = {id(w): source.position(w.start)[0] - 1 for line in lines for w in line.words}

    def rows(self) -> Iterator[_Row]:
        """All of them, comments not aligned yet."""
        last = -1
        for number, line in enumerate(self.lines):
            yield from self._between(last, self.row_of[id(line.words[0])], number)
            yield from _statement(line, len(self.blocks[number]) - 1, self.row_of, self.comments)
            last = self.row_of[id(line.words[-1])]
        yield from self._between(last, len(self.texts), len(self.lines))

    def _between(self, last: int, first: int, number: int) -> Iterator[_Row]:
        """Comments and empty lines behind physical line `last`, before the statement that begins on `first`."""
        found, apart = self._placed(range(last + 1, first), number)
        if self._stands_apart(number):
            at = next((i for i, c in enumerate(found) if c.depth == 0), None)
            if at is None:
                apart = True
            else:
                found[at] = _Comment(0, found[at].text, True)
        opening = number == 0 or _is_bare_head(self.lines[number - 1])
        for place, comment in enumerate(found):
            if comment.apart and not (opening and place == 0):
                yield _EMPTY
            yield _Row(comment.depth, " " * (INDENT * comment.depth) + comment.text)
        if apart and number < len(self.lines) and (found or not opening):
            yield _EMPTY

    def _placed(self, between: range, number: int) -> tuple[list[_Comment], bool]:
        """The comments before a statement, and whether an empty line follows them."""
        before = self.blocks[number - 1] if number else (0,)
        least = len(self.blocks[number]) - 1 if number < len(self.blocks) else 0
        depth = max(least, len(before) - 1)
        found: list[_Comment] = []
        apart = False
        for row in between:
            text = self.comments.get(row)
            if text is None:
                apart = True
                continue
            column = self.texts[row].index("#")
            # Behind a block a comment belongs to the innermost one that begins no further in; never back into one.
            while depth > least and before[depth] > column:
                depth -= 1
            found.append(_Comment(depth, text, apart))
            apart = False
        return found, apart

    def _stands_apart(self, number: int) -> bool:
        """Whether a mask or function ends or begins before a statement at the margin, or before the end."""
        if number == 0 or (number < len(self.lines) and len(self.blocks[number]) > 1):
            return False
        above = next(i for i in reversed(range(number)) if len(self.blocks[i]) == 1)
        heads = {self.lines[i].words[0].type for i in (above, number) if i < len(self.lines)}
        return bool(heads & _ITEMS)


def _blocks(lines: Sequence[Line]) -> Iterator[tuple[int, ...]]:
    """For every line the columns at which the blocks around it begin, its own last."""
    open_blocks: list[int] = []
    for line in lines:
        while open_blocks and open_blocks[-1] > line.indent:
            open_blocks.pop()
        if not open_blocks or open_blocks[-1] < line.indent:
            open_blocks.append(line.indent)
        yield tuple(open_blocks)


def _comments(texts: Sequence[str]) -> Iterator[tuple[int, str]]:
    """The comment of every physical line that has one. There are no strings that could hold its sign."""
    for row, text in enumerate(texts):
        sign = text.find("#")
        if sign >= 0:
            yield row, text[sign:].rstrip()


def _is_bare_head(line: Line) -> bool:
    return line.words[-1].type == "COLON"


def _statement(line: Line, depth: int, row_of: Mapping[int, int], comments: Mapping[int, str]) -> Iterator[_Row]:
    """The rows of a logical line, with the comments inside its brackets; empty lines there are dropped."""
    blanks = dict(zip(map(id, line.words), _blanks(line.words), strict=True))
    brackets: list[tuple[int, int]] = []  # columns of what is inside and of the closing one, for those that are open
    last: int | None = None
    for row, group in groupby(line.words, key=lambda w: row_of[id(w)]):
        words = list(group)
        indent = INDENT * depth
        if last is not None:
            inside, closing = brackets[-1]
            for between in range(last + 1, row):
                if between in comments:
                    yield _Row(depth, " " * inside + comments[between])
            indent = closing if words[0].type in _CLOSING else inside
        yield _Row(depth, _code(words, indent, blanks, brackets), comments.get(row, ""))
        last = row


def _code(words: Sequence[Word], indent: int, blanks: Mapping[int, bool], brackets: list[tuple[int, int]]) -> str:
    """The words of one row; `brackets` is brought up to date."""
    code = " " * indent
    for place, word in enumerate(words):
        code += " " * (place > 0 and blanks[id(word)])
        if word.type in _OPENING:
            aligned = place + 1 < len(words) and len(code) < HANGING
            brackets.append((len(code) + 1, len(code)) if aligned else (indent + INDENT, indent))
        elif word.type in _CLOSING:
            brackets.pop()
        code += word
    return code


def _blanks(words: Sequence[Word]) -> Iterator[bool]:
    """For each word of a logical line whether a blank stands before it, unless it begins a row."""
    if not words:
        return
    tight = _tight_equals(words)
    yield False
    prefix = words[0].type in _SIGNS
    for place, (before, word) in enumerate(pairwise(words), start=1):
        yield not (
            prefix
            or before.type in _OPENING
            or word.type in (*_CLOSING, "COMMA", "COLON")
            or before.type == "DOT"
            or (word.type == "DOT" and before.type not in _NUMBERS)  # `1 .size` is not a number
            or (word.type in _OPENING and before.type in _OPERAND_ENDS)
            or not tight.isdisjoint((place - 1, place))
        )
        prefix = word.type in _SIGNS and before.type not in _OPERAND_ENDS


def _tight_equals(words: Sequence[Word]) -> set[int]:
    """Where `=` stands without blanks: inside brackets, `f(a=1)`, except behind a type, `mask m(a: int = 1)`."""
    found: set[int] = set()
    depth, typed = 0, False
    for place, word in enumerate(words):
        match word.type:
            case "LPAR" | "LSQB":
                depth += 1
            case "RPAR" | "RSQB":
                depth -= 1
            case "COLON" | "COMMA" if depth == 1:
                typed = word.type == "COLON"
            case "EQUAL" if depth > 1 or (depth == 1 and not typed):
                found.add(place)
    return found


def _aligned(rows: Sequence[_Row]) -> Iterator[str]:
    """The rows with their comments, two blanks behind the longest of neighbouring rows of one depth that have some."""
    for (commented, _), group in groupby(rows, key=lambda r: (bool(r.comment) and len(r.code) <= ALIGNED, r.depth)):
        block = list(group)
        width = max(len(r.code) for r in block) if commented else 0
        for row in block:
            yield f"{row.code:<{width}}  {row.comment}" if row.comment else row.code


def _text(rows: Iterator[str]) -> str:
    return "".join(row + "\n" for row in rows)


def _content(source: Source) -> tuple[list[tuple[int, tuple[str, ...]]], list[str]]:
    """What a layout has to keep: the words of every logical line with the depth of its block, and the comments."""
    lines, found = logical_lines(source)
    assert not found
    words = [(len(b), tuple(map(str, line.words))) for b, line in zip(_blocks(lines), lines, strict=True)]
    return words, [text for _, text in _comments(source.text.split("\n"))]
