"""Where a mistake is and how it is said: sources, spans, diagnostics, and the errors that carry them."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from itertools import islice
from typing import Literal

LINE_WIDTH = 160  # of a line that a report repeats; of longer ones it shows the part around the mistake


@dataclass(frozen=True)
class Source:
    """The text of a spec and the name under which it is reported (a path, or `<spec>` for text given directly)."""

    name: str
    text: str = field(repr=False)

    @cached_property
    def line_starts(self) -> list[int]:
        """Offset of the first character of every line."""
        return [0, *(i + 1 for i, c in enumerate(self.text) if c == "\n")]

    def position(self, offset: int) -> tuple[int, int]:
        """Line and column of a character, both counted from 1."""
        line = bisect_right(self.line_starts, offset)
        return line, offset - self.line_starts[line - 1] + 1

    def line(self, number: int) -> str:
        """The text of a line counted from 1, without its line break."""
        start = self.line_starts[number - 1]
        end = self.text.find("\n", start)
        return self.text[start : end if end >= 0 else None].rstrip("\r")


@dataclass(frozen=True)
class Span:
    """Characters `start` to `end` (exclusive) of a source."""

    source: Source = field(repr=False)
    start: int
    end: int

    @property
    def text(self) -> str:
        """The characters themselves."""
        return self.source.text[self.start : self.end]


@dataclass(frozen=True)
class Diagnostic:
    """One mistake: a sentence in the user's own words, where it is, and a hint where one is known."""

    message: str
    span: Span | None = None
    hint: str | None = None
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        prefix = "" if self.severity == "error" else "warning: "
        message = prefix + self.message
        lines = [message] if self.span is None else _drawn(self.span, message)
        if self.hint is not None:
            lines.append(f"hint: {self.hint}")
        # A path may hold bytes that are no text; a report can always be printed.
        return "\n".join(lines).encode("utf-8", "replace").decode("utf-8")


def _drawn(span: Span, message: str) -> list[str]:
    """The message behind its place, the line, and the span underlined; of a long span the part on its first line."""
    number, column = span.source.position(span.start)
    line = span.source.line(number)
    width = max(1, min(span.end - span.start, len(line) - column + 1))
    text, before = _window(line, column - 1)
    width = min(width, max(1, len(text) - before))
    margin = f"  {number} | "
    lead = "".join("\t" if c == "\t" else " " for c in text[:before])
    return [
        f"{span.source.name}:{number}:{column}: {message}",
        margin + text,
        " " * (len(margin) - 2) + "| " + lead + "^" * width,
    ]


def _window(line: str, column: int) -> tuple[str, int]:
    """A line, or the part of a long one around a column, with that column's place in it; unprintable characters as one
    sign.
    """
    start = 0 if len(line) <= LINE_WIDTH else max(0, min(column - LINE_WIDTH // 2, len(line) - LINE_WIDTH))
    shown = "".join(
        c if c.isprintable() or c == "\t" else "\N{REPLACEMENT CHARACTER}" for c in line[start : start + LINE_WIDTH]
    )
    head = "..." if start > 0 else ""
    tail = "..." if start + LINE_WIDTH < len(line) else ""
    return head + shown + tail, len(head) + column - start


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The hint that names the known name nearest to `name`; None where none is near.

    cutoff: likeness that is needed, from 0 to 1. Long names and lists are cut, so that no file makes this slow.
    """
    close = get_close_matches(name[:60], list(islice(known, 1000)), 1, cutoff)
    return f"did you mean '{close[0]}'?" if close else None


class MaskError(Exception):
    """Base of every error that maskc raises on purpose; `diagnostics` holds all that was found."""

    def __init__(self, diagnostics: Sequence[Diagnostic] | str) -> None:
        found = [Diagnostic(diagnostics)] if isinstance(diagnostics, str) else list(diagnostics)
        super().__init__("\n".join(str(d) for d in found))
        self.diagnostics: list[Diagnostic] = found


class MaskInputError(MaskError):
    """A call gave a tensor, size or parameter that the spec does not accept; the message names it, what was given and
    what is expected.
    """


class MaskUnsupportedError(MaskError):
    """An engine or target cannot run this spec; the message names the clause or property that stops it."""
