"""The standard library, `library.mask`: a scope of its names, of which only what a file uses is parsed."""

import functools
import re
from importlib.resources import files
from itertools import pairwise

from maskc.checker.masks import definition
from maskc.checker.scope import Scope, Unknown, Value
from maskc.diagnostics import Source
from maskc.grammar.parser import parse

NAME = "maskc/library.mask"  # in reports

_HEAD = re.compile(r"^(?:mask|def) (\w+)", re.MULTILINE)
_INPUT = re.compile(r"^ +input (\w+)", re.MULTILINE)


@functools.cache
def text() -> str:
    """The library as it was written."""
    return files("maskc").joinpath("library.mask").read_text(encoding="utf-8")


@functools.cache
def scope() -> Scope:
    """The names of the library; what one stands for is parsed when it is first found."""
    found = Scope()
    found.names = _Items(found)
    return found


@functools.cache
def inputs() -> frozenset[str]:
    """The names of the inputs of its masks."""
    return frozenset(_INPUT.findall(text()))


class _Items(dict[str, Value]):
    """Masks and functions by name."""

    def __init__(self, scope: Scope) -> None:
        heads = [(m[1], m.start()) for m in _HEAD.finditer(text())]
        self._scope = scope
        self._unread = {name: (start, end) for (name, start), (_, end) in pairwise([*heads, ("", len(text()))])}
        super().__init__(dict.fromkeys(self._unread, Unknown()))

    def __getitem__(self, name: str) -> Value:
        if name in self._unread:
            (item,) = parse(_part(*self._unread[name])).items
            self[name] = definition(item, self._scope)
            del self._unread[name]
        return super().__getitem__(name)


def _part(start: int, end: int) -> Source:
    """A part of the library, with its lines where they are in the whole."""
    return Source(NAME, "\n" * text().count("\n", 0, start) + text()[start:end])
