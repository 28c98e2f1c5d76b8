"""Syntax tree to checked masks: statements are read in order, every mistake of a file is reported at once.

In: a `File`, or the text or path of one. Out: one `MaskSpec` per mask, in which all names are resolved and all
functions inlined. What depends on the sizes of a call is left to `maskc.sizes`.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from maskc import library
from maskc.checker.masks import Masks
from maskc.checker.reports import ERROR_LIMIT, LimitError
from maskc.diagnostics import Diagnostic, MaskError, Source, Span, did_you_mean
from maskc.grammar import syntax
from maskc.grammar.parser import BYTE_LIMIT, recover
from maskc.spec import MaskSpec


def load(spec: str | os.PathLike[str], mask: str | None = None) -> MaskSpec:
    """A mask from text (a str with a line break) or from a file (any other str, or a path); `file.mask:name` picks one.

    Raises MaskError with every mistake that was found.
    """
    if isinstance(spec, str) and "\n" in spec:
        return load_source(Source("<spec>", spec), mask)
    path, picked = path_and_mask(spec)
    return load_source(read_source(path), picked if mask is None else mask)


def load_source(source: Source, mask: str | None = None) -> MaskSpec:
    """The main mask of a source, its last, or the one that is named. Raises MaskError with every mistake."""
    specs, found = _read(source)
    errors = [d for d in found if d.severity == "error"]
    if errors:
        raise MaskError(errors)
    return _picked(specs, mask, source)


def check(file: syntax.File) -> tuple[MaskSpec, ...]:
    """The masks of a file, in order. Raises MaskError with every mistake."""
    specs, found = _check(file)
    errors = [d for d in found if d.severity == "error"]
    if errors:
        raise MaskError(errors)
    return specs


def diagnose(source: Source) -> list[Diagnostic]:
    """Every mistake and warning of a source, in the order of its lines. Never raises."""
    return _read(source)[1]


def read_source(path: str | os.PathLike[str]) -> Source:
    """The text of a file. Raises MaskError where it cannot be read, is too long or is not UTF-8."""
    try:
        name = os.fsdecode(path)
    except TypeError:
        raise MaskError(f"a spec is text or a path; this is a {type(path).__name__}") from None
    try:
        with open(path, "rb") as stream:
            data = stream.read(BYTE_LIMIT + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise MaskError([Diagnostic(f"cannot read '{name}': {reason}", hint=_near_file(name))]) from None
    return source_of(name, data)


def source_of(name: str, data: bytes) -> Source:
    """Bytes as text, under a name for reports. Raises MaskError where they are too long or not UTF-8."""
    if len(data) > BYTE_LIMIT:
        raise MaskError(f"'{name}' is larger than 1 MiB; a spec is a few lines")
    try:
        return Source(name, data.decode("utf-8"))
    except UnicodeDecodeError as error:
        start = len(data[: error.start].decode("utf-8"))
        span = Span(Source(name, data.decode("utf-8", "replace")), start, start + 1)
        raise MaskError([Diagnostic("this is not UTF-8", span, "save the file as UTF-8")]) from None


def path_and_mask(spec: str | os.PathLike[str]) -> tuple[str | os.PathLike[str], str | None]:
    """`file.mask:name` as path and name; a path alone, or one that has such a name itself, without one."""
    if not isinstance(spec, str):
        return spec, None
    path, colon, name = spec.rpartition(":")
    if colon and name.isidentifier() and not os.path.lexists(spec):
        return path, name
    return spec, None


def _near_file(name: str) -> str | None:
    try:
        neighbours = [p.name for p in Path(name).parent.iterdir() if p.suffix == ".mask"]
    except (OSError, ValueError):
        neighbours = []
    near = did_you_mean(os.path.basename(name), neighbours)
    if near is not None:
        return near
    if name.lstrip().startswith(("mask ", "def ")):
        return "a text with a line break is read as a spec, any other as a path"
    return None


def _picked(specs: Sequence[MaskSpec], name: str | None, source: Source) -> MaskSpec:
    if name is None:
        return specs[-1]
    for spec in specs:
        if spec.name == name:
            return spec
    names = [s.name for s in specs]
    hint = did_you_mean(name, names) or f"its masks are {', '.join(names)}"
    raise MaskError([Diagnostic(f"'{source.name}' has no mask '{name}'", hint=hint)])


def _read(source: Source) -> tuple[tuple[MaskSpec, ...], list[Diagnostic]]:
    file, found = recover(source)
    if len(found) >= ERROR_LIMIT:
        return (), found
    return _check(file, found)


def _check(file: syntax.File, found: Sequence[Diagnostic] = ()) -> tuple[tuple[MaskSpec, ...], list[Diagnostic]]:
    checker = Masks(list(found), given=set(library.inputs()), library=library.scope())
    specs: list[MaskSpec] = []
    try:
        specs += checker.file(file)
    except LimitError:
        pass  # said in what was found
    except RecursionError:  # the caller left too little of Python's stack for what the limits allow
        checker.found.append(Diagnostic("this file is nested too deeply", hint="give parts a name with 'let'"))
    # Warnings inside the standard library are not the user's; a mistake there is shown where it is.
    mine = [d for d in checker.found if d.severity == "error" or d.span is None or d.span.source is file.source]
    return tuple(specs), sorted(mine, key=lambda d: d.span.start if d.span and d.span.source is file.source else -1)
