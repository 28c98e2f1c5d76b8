"""Syntax tree to checked masks: statements are read in order, every mistake of a file is reported at once.

In: a `File`, or the text or path of one. Out: one `MaskSpec` per mask, in which all names are resolved and all
functions inlined. What depends on the sizes of a call is left to `maskc.sizes`.
"""

import functools
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.resources import files
from keyword import iskeyword
from pathlib import Path
from typing import assert_never

from maskc import typed
from maskc.diagnostics import Diagnostic, MaskError, Source, Span, did_you_mean
from maskc.elaborate import Elaborator
from maskc.grammar import syntax
from maskc.grammar.format import expression_text
from maskc.grammar.parser import BYTE_LIMIT, recover
from maskc.layout import Cell, Layout, seen
from maskc.lint import lint
from maskc.reports import ERROR_LIMIT, SIZE_LIMIT, TOO_LARGE, LimitError
from maskc.scope import (
    AxisName,
    FunctionValue,
    LetValue,
    MaskValue,
    Place,
    Reading,
    Scope,
    Table,
    Unknown,
    Value,
)
from maskc.spec import (
    SCORE,
    TRUE,
    AxisSize,
    BinaryOp,
    Claim,
    Coordinate,
    Count,
    Dim,
    DimKind,
    Expr,
    Index,
    InputSpec,
    Length,
    Literal,
    MaskSpec,
    Offset,
    Parameter,
    ParameterSpec,
    Part,
    Position,
    Read,
    Score,
    Side,
    Total,
    Type,
    conjunction,
    walk,
)

AXES_LIMIT = 3
_TYPES = {t.value: t for t in Type}
_COUNTS = {c.value: c for c in Count}
_UNNAMABLE = {"v", "spec"}  # arguments of every call besides those that expressions know


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
    checker = _Checker(list(found))
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


@functools.cache
def _library() -> Scope:
    """The names of the standard library."""
    text = files("maskc").joinpath("library.mask").read_text(encoding="utf-8")
    file, found = recover(Source("maskc/library.mask", text))
    assert not found, "\n".join(map(str, found))
    scope = Scope()
    for item in file.items:
        scope.names[item.name.text] = _definition(item, scope)
    return scope


def _definition(item: syntax.Mask | syntax.Function | syntax.Let, scope: Scope) -> Value:
    match item:
        case syntax.Mask():
            return MaskValue(item, scope)
        case syntax.Function():
            return FunctionValue(item, scope)
        case syntax.Let():
            return LetValue(item, scope)


def _library_masks() -> list[syntax.Mask]:
    return [value.node for value in _library().names.values() if isinstance(value, MaskValue)]


def _names_of_tables(masks: Sequence[syntax.Mask]) -> Iterator[str]:
    """The names of inputs and reductions of masks."""
    for mask in masks:
        yield from (s.name.text for s in mask.body if isinstance(s, syntax.Input | syntax.Reduce))


class _Checker(Elaborator):
    """Reads the statements of a file."""

    def file(self, file: syntax.File) -> Iterator[MaskSpec]:
        """Its masks, as far as they could be read."""
        scope = Scope(_library())
        for item in file.items:
            if isinstance(item, syntax.Function):
                self.function(item, scope)
            else:
                self.define(item.name, _definition(item, scope), scope)
        masks = [item for item in file.items if isinstance(item, syntax.Mask)]
        self.given = {*_names_of_tables(masks), *_names_of_tables(_library_masks())}
        if not masks and not self.found:
            start = Span(file.source, 0, 0) if file.source.text else None
            self.report("there is no mask in this file", start, "begin one with 'mask NAME:'")
        for mask in masks:
            yield self.mask(mask, scope)
        self._uncalled(file, scope)

    def _uncalled(self, file: syntax.File, scope: Scope) -> None:
        """Functions and lets that no mask uses are read too, with parameters of which nothing is known."""
        nowhere = Reading(None, Layout().place(Side.Q), Layout().place(Side.K))
        for item in file.items:
            if isinstance(item, syntax.Function) and id(item) not in self.called:
                inner = Scope(scope)
                self._bind_unknown(item, inner)
                self.body(item, inner, nowhere)
            elif isinstance(item, syntax.Let) and id(item) not in self.called:
                self.value(item.value, scope, nowhere)

    def _bind_unknown(self, function: syntax.Function, scope: Scope) -> None:
        for parameter in function.parameters:
            scope.names[parameter.text] = Unknown()

    # ---- masks

    def mask(self, node: syntax.Mask, file_scope: Scope) -> MaskSpec:
        """One mask of the file; what could not be read is left out of it."""
        scope = Scope(file_scope)
        axes = self._axes(node)
        layout = Layout(axes)
        reading = Reading(layout, layout.place(Side.Q), layout.place(Side.K), score=SCORE)
        with self._inlining(node):
            parameters = [self._parameter(p, node.readable, file_scope, scope, reading) for p in node.parameters]
            reading.taken = {p.name for p in parameters} | set(axes)
            clauses = self._body(node, scope, reading)
            self._uncalled_inside(node, scope, reading)
        assert reading.score is not None
        if sum(c.size for c in (*clauses, reading.score)) > SIZE_LIMIT:
            self.report(TOO_LARGE.format("this mask"), node.name.span)
            raise LimitError
        for warning in lint(clauses, reading.score, reading.statements):
            self.warn(warning.message, warning.span, warning.hint)
        return MaskSpec(
            name=node.name.text,
            parameters=tuple(replace(p, structural=p.name in reading.structural) for p in parameters),
            axes=axes,
            inputs=tuple(reading.inputs.values()),
            clauses=tuple(clauses),
            score=reading.score,
            claims=tuple(reading.claims),
            span=node.span,
        )

    def _uncalled_inside(self, node: syntax.Mask, scope: Scope, reading: Reading) -> None:
        for item in node.body:
            if isinstance(item, syntax.Function) and id(item) not in self.called:
                inner = Scope(scope)
                self._bind_unknown(item, inner)
                self.body(item, inner, reading)

    def _axes(self, node: syntax.Mask) -> tuple[str, ...]:
        lines = [s for s in node.body if isinstance(s, syntax.Axes)]
        for repeated in lines[1:]:
            self.report("a mask has one 'axes' line", repeated.span)
        if not lines:
            return ()
        for axis in lines[0].axes:
            if axis.part is not None:
                self.report("axes laid end to end (parts) are not available in this version", axis.span)
        if lines[0].border is not None:
            self.report("'border' is not available in this version", lines[0].border.span)
        names = [a.name for a in lines[0].axes]
        if len(names) > AXES_LIMIT:
            self.report(f"a grid has 1 to {AXES_LIMIT} axes", names[AXES_LIMIT].span)
        return tuple(dict.fromkeys(n.text for n in names))[:AXES_LIMIT]

    def _parameter(
        self, node: syntax.Parameter, readable: bool, file_scope: Scope, scope: Scope, reading: Reading
    ) -> ParameterSpec:
        name = node.name
        kind: Type | None = None
        if readable and node.type is None:
            self.report(f"'{name.text}' needs a type", name.span, f"for example '{name.text}: int = 256'")
        elif readable and node.type is not None:
            kind = self._type(node.type)
        self._define_given(name, Parameter(kind, name.text, span=name.span) if kind else Unknown(), scope)
        default = None if node.default is None else self._default(node.default, kind, file_scope, reading)
        return ParameterSpec(name.text, kind or Type.INT, default, span=node.span)

    def _type(self, node: syntax.Name) -> Type | None:
        if node.text not in _TYPES:
            hint = did_you_mean(node.text, _TYPES, 0.4) or "types are bool, int and float"
            self.report(f"unknown type '{node.text}'", node.span, hint)
            return None
        return _TYPES[node.text]

    def _default(
        self, node: syntax.Expression, kind: Type | None, scope: Scope, reading: Reading
    ) -> bool | int | float | None:
        value = self.number(node, scope, reading)
        if value is None or kind is None:
            return None
        if not isinstance(value, Literal):
            self.report("a default is a number or a boolean", node.span)
            return None
        if not _converts(value.type, kind):
            message = f"this parameter is {typed.TYPE_WORDS[kind]}; its default is {typed.TYPE_WORDS[value.type]}"
            self.report(message, node.span)
            return None
        converted = typed.cast(value, kind)
        assert isinstance(converted, Literal)
        return converted.value

    def _define_given(self, name: syntax.Name, value: Value, scope: Scope) -> None:
        """A name that the caller gives a value by keyword."""
        self.define(name, value, scope)
        if name.text in _UNNAMABLE:
            self.report(f"'{name.text}' is an argument of every call and cannot be defined", name.span)
        elif iskeyword(name.text):
            self.report(f"'{name.text}' is a word of Python and cannot be given by keyword", name.span)

    # ---- statements

    def _body(self, node: syntax.Mask, scope: Scope, reading: Reading) -> list[Expr]:
        """The clauses of a mask; its axes and functions are known from the first line on."""
        for statement in node.body:
            match statement:
                case syntax.Axes():
                    for axis in statement.axes:
                        self._define_given(
                            axis.name, AxisName(axis.name.text, AxisSize(Type.INT, axis.name.text)), scope
                        )
                case syntax.Function():
                    self.function(statement, scope)
                case syntax.Let() | syntax.Input():
                    scope.later.setdefault(statement.name.text, statement.name.span)
                case _:
                    pass
        clauses: list[Expr] = []
        for statement in node.body:
            clause = self._statement(statement, scope, reading)
            if clause is not None:
                clauses.append(clause)
                reading.statements.append(statement.span)
        return clauses

    def _statement(self, node: syntax.Statement, scope: Scope, reading: Reading) -> Expr | None:
        """Does what a statement says; the clause of a `keep`."""
        match node:
            case syntax.Keep():
                clause = self._keep(node, scope, reading)
                self._expect_mistake(clause is None)
                return clause
            case syntax.Let():
                self.let(node, scope, reading)
            case syntax.Input():
                self._input(node, scope, reading)
            case syntax.Score():
                changed = self._score(node, scope, reading)
                self._expect_mistake(not changed)
            case syntax.Claim():
                added = self._claim(node, scope, reading)
                self._expect_mistake(not added)
            case (
                syntax.Axes()
                | syntax.Function()
                | syntax.Pass()
                | syntax.Packed()
                | syntax.Mass()
                | syntax.Normalize()
                | syntax.Weight()
                | syntax.Reduce()
                | syntax.Rows()
            ):
                pass
            case syntax.Return():
                raise AssertionError("the parser leaves no return in a mask")
            case _:
                assert_never(node)
        return None

    def _expect_mistake(self, lost: bool) -> None:
        """A statement may only be lost if the user is told why; a mask without it would be another mask."""
        if lost and not any(d.severity == "error" for d in self.found):
            raise AssertionError("a statement was lost without a word")

    def _keep(self, node: syntax.Keep, scope: Scope, reading: Reading) -> Expr | None:
        clause = self.boolean(node.value, scope, reading, "'keep' takes a boolean")
        if clause is not None and any(isinstance(e, Score) for e in walk(clause)):
            self.report("a 'keep' that reads 'score' is not available in this version", node.value.span)
            return None
        return clause

    def _score(self, node: syntax.Score, scope: Scope, reading: Reading) -> bool:
        """Changes the score; False if the statement could not be read."""
        value = self.number(node.value, scope, reading)
        if value is None or reading.score is None:
            return False
        if node.operator is None and value.type is Type.BOOL:
            hint = "write 'where(..., 0, -inf)', or 'keep'"
            self.report("a score is a number; this is a boolean", node.value.span, hint)
            return False
        if node.operator is None:
            score = self.made(node.span, _as_float, value)
        elif node.operator in ("+", "-", "*", "/", "**"):
            op = typed.ARITHMETIC[node.operator]
            score = self.made(node.span, typed.arithmetic, op, reading.score, value)
        else:
            self.report(f"'{node.operator}=' is for ints; a score is a float", node.span)
            return False
        reading.score = score or reading.score
        return score is not None

    def _claim(self, node: syntax.Claim, scope: Scope, reading: Reading) -> bool:
        """Adds a claim; False if the statement could not be read."""
        expr = self.boolean(node.value, scope, reading, "'claim' takes a boolean")
        if expr is None:
            return False
        nodes = list(walk(expr))
        if any(isinstance(e, Score) for e in nodes):
            self.report("a 'claim' cannot read 'score'", node.value.span)
            return False
        over_pairs = any(isinstance(e, Position | Coordinate | Index | Read | Offset) for e in nodes)
        reading.claims.append(Claim(expr, over_pairs, span=node.span))
        return True

    # ---- inputs

    def _input(self, node: syntax.Input, scope: Scope, reading: Reading) -> None:
        kind = None if node.type is None else self._type(node.type)
        dims = [self._dim(d, scope, reading) for d in node.dims]
        below, is_sorted = self._facts(node, kind, scope, reading)
        known = tuple(d for d in dims if d is not None)
        if kind is None or len(known) < len(dims):
            self._define_given(node.name, Unknown(), scope)
            return
        counts = [d.kind for d in known if d.kind in (DimKind.BATCH, DimKind.HEAD, DimKind.KV_HEAD)]
        if len(set(counts)) < len(counts) or {DimKind.HEAD, DimKind.KV_HEAD} <= set(counts):
            self.report("'batch', 'head' and 'kv_head' can be a dim once, and only one of the heads", node.span)
        sizes = [e for d in known if d.extent is not None for e in walk(d.extent)]
        reading.structural |= {e.name for e in sizes if isinstance(e, Parameter)}
        table = InputSpec(node.name.text, kind, known, below, is_sorted, span=node.span)
        self._define_given(node.name, Table(table), scope)
        self._bring(table, node.name, reading)

    def _bring(self, table: InputSpec, name: syntax.Name, reading: Reading) -> None:
        """Makes an input part of the mask that is compiled."""
        earlier = reading.inputs.setdefault(table.name, table)
        if earlier != table:
            self.report(
                f"this mask already has an input '{table.name}' that is declared differently", reading.use or name.span
            )
        elif table.name in reading.taken and reading.use is not None:
            self.report(
                f"the mask used here has an input '{table.name}', a name this mask gives to something else", reading.use
            )

    def _facts(self, node: syntax.Input, kind: Type | None, scope: Scope, reading: Reading) -> tuple[Expr | None, bool]:
        below: Expr | None = None
        words: set[str] = set()
        for fact in node.facts:
            if fact.word in words:
                self.report(f"'{fact.word}' is said twice", fact.span)
            words.add(fact.word)
            match fact.word:
                case "constant" | "learned":
                    self.report(f"'{fact.word}' inputs are not available in this version", fact.span)
                case "of":
                    if kind not in (Type.INT, None):
                        self.report(f"'of' is for ints; this input is {typed.TYPE_WORDS[kind]}", fact.span)
                    assert fact.value is not None
                    dim = self._dim(fact.value, scope, reading)
                    below = self._range_of(dim, fact) if dim is not None else None
                case _:
                    if kind is Type.BOOL:
                        self.report("'sorted' is for numbers; this input is a boolean", fact.span)
                    if not node.dims:
                        self.report("'sorted' needs a dim", fact.span)
        return below, "sorted" in words

    def _range_of(self, dim: Dim, fact: syntax.Fact) -> Expr | None:
        """How many values the dim behind `of` can take."""
        match dim.kind:
            case DimKind.BATCH | DimKind.HEAD | DimKind.KV_HEAD:
                return Total(Type.INT, Count(dim.kind.value), span=fact.span)
            case DimKind.SEQ:
                return typed.arithmetic(BinaryOp.MAX, _end(Side.Q), _end(Side.K), fact.span)
            case DimKind.EXTENT if dim.text in ("q", "k"):
                return _end(Side(dim.text))
            case DimKind.EXTENT:
                return dim.extent
            case DimKind.FREE:
                self.report(
                    f"the size of '{dim.text}' is not known to the spec",
                    fact.span,
                    "write a number, a parameter, 'seq' or 'k // block'",
                )
                return None

    def _dim(self, node: syntax.Expression, scope: Scope, reading: Reading) -> Dim | None:
        """One dim of an input, or what stands behind `of`."""
        text = expression_text(node.span)
        match node:
            case syntax.Name(text=name) if name in _COUNTS:
                return Dim(DimKind(name), name)
            case syntax.Name(text="heads"):
                self.report("a dim with one entry per head is written 'head'", node.span, "write 'head' or 'kv_head'")
                return None
            case syntax.Name(text="seq"):
                return Dim(DimKind.SEQ, "seq")
            case syntax.Name(text="q" | "k" as name):
                return Dim(DimKind.EXTENT, name, Length(Type.INT, Side(name), span=node.span))
            case syntax.Name(text="q_len" | "k_len" as name):
                side = name[0]
                hint = f"'{side}' is a dim with one entry per {'query' if side == 'q' else 'key'} of the call"
                self.warn(
                    f"entries of a dim '{name}' are counted from position 0, whatever the offset", node.span, hint
                )
                return self._extent(node, text, scope, reading)
            case syntax.Name(text=name) if reading.axes is not None and name in reading.axes:
                return Dim(DimKind.EXTENT, name, AxisSize(Type.INT, name, span=node.span))
            case syntax.Name(text=name) if _is_free(scope.find(name)) and name not in _NOT_FREE:
                return None if self.report_later(node, scope) else self._free(node)
            case _:
                return self._extent(node, text, scope, reading)

    def _free(self, node: syntax.Name) -> Dim:
        near = did_you_mean(node.text, [*_COUNTS, "seq"], 0.8)
        if near is not None:
            self.warn(f"'{node.text}' is a size of its own, bound by the tensor", node.span, near)
        return Dim(DimKind.FREE, node.text)

    def _extent(self, node: syntax.Expression, text: str, scope: Scope, reading: Reading) -> Dim | None:
        """A dim that covers the values of an expression, or is as long as one of sizes and parameters."""
        line = typed.arithmetic(BinaryOp.MAX, _end(Side.Q), _end(Side.K), node.span)
        inner = Scope(scope)
        one = typed.integer(1)
        axes = reading.axes or ()
        last = {a: typed.arithmetic(BinaryOp.SUB, AxisSize(Type.INT, a), one, None) for a in axes}
        for side in Side:
            line = typed.arithmetic(BinaryOp.SUB, _end(side), one, None)
            inner.names[side.value] = Place(line, (Cell(Part(None, axes), TRUE, last),))
        inner.names["seq"] = typed.arithmetic(BinaryOp.SUB, line, one, None)
        for axis in axes:
            inner.names[axis] = AxisName(axis, AxisSize(Type.INT, axis), last=last[axis])
        extent = self.number(node, inner, reading)
        if extent is None:
            return None
        if extent.type is not Type.INT:
            self.report(f"a dim is an int; this is {typed.TYPE_WORDS[extent.type]}", node.span)
            return None
        nodes = list(walk(extent))
        if any(isinstance(e, Position | Coordinate | Index | Read | Score) for e in nodes):
            self.report("a dim is sized by numbers, parameters, positions and axes", node.span)
            return None
        if _follows_positions(node, axes):
            if not _rises(node, axes):
                self.report(f"how many values '{text}' takes is not clear", node.span, "write the size itself")
                return None
            extent = typed.arithmetic(BinaryOp.ADD, extent, one, node.span)
        if isinstance(extent, Literal) and extent.value < 0:
            self.report("a dim cannot be negative", node.span)
            return None
        return Dim(DimKind.EXTENT, text, replace(extent, span=node.span))

    # ---- masks used as predicates

    def _predicate(self, mask: MaskValue, node: syntax.Call, scope: Scope, reading: Reading) -> Value:
        used, name = mask.node, mask.node.name.text
        arguments = Scope()
        names = [p.name.text for p in used.parameters]
        required = {p.name.text for p in used.parameters if p.default is None}
        if not used.readable or not self._bind(node, name, names, required, arguments, scope, reading, ("q", "k")):
            return Unknown()
        if any(m is used for m in self.active):
            self.report(f"mask '{name}' uses itself", node.span)
            return Unknown()
        if any(isinstance(s, syntax.Score) for s in used.body):
            self.report(f"mask '{name}' changes the score and cannot be used as a predicate", node.span)
            return Unknown()
        if reading.axes is None:
            return Unknown()  # a function that nobody calls: on which grid is not known
        with self._inlining(used, node.span):
            axes = self._axes(used)
            inside = self._inside(used, axes, arguments, node, reading)
            if inside is None:
                return Unknown()
            inner = Scope(mask.scope)
            for parameter in used.parameters:
                self._argument(parameter, name, arguments, mask.scope, inner, inside)
            clauses = self._body(used, inner, inside)
        if len(clauses) < sum(isinstance(s, syntax.Keep) for s in used.body):
            return Unknown()  # a clause that could not be read
        reading.claims += [c for c in inside.claims if not c.over_pairs]
        return replace(conjunction(tuple(clauses)), span=node.span)

    def _inside(
        self, used: syntax.Mask, axes: tuple[str, ...], arguments: Scope, node: syntax.Call, reading: Reading
    ) -> Reading | None:
        """How a mask is read where another one uses it; None where the two do not fit together."""
        here = reading.axes or ()
        missing = [a for a in axes if a not in here]
        if missing:
            self.report(
                f"mask '{used.name.text}' has the axes {', '.join(axes)}; this mask has no axis '{missing[0]}'",
                node.span,
                None if here else f"add 'axes {', '.join(axes)}'",
            )
            return None
        places = []
        for side, key in ((Side.Q, "q"), (Side.K, "k")):
            own = reading.q if side is Side.Q else reading.k
            given = self._given_place(arguments, key, own, axes, used, reading)
            if given is None:
                return None
            places.append(given)
        return Reading(
            Layout(axes),
            places[0],
            places[1],
            inputs=reading.inputs,
            made=reading.made,
            structural=reading.structural,
            score=SCORE,
            taken=reading.taken,
            use=reading.use or node.span,
        )

    def _given_place(
        self, arguments: Scope, key: str, own: Place, axes: tuple[str, ...], used: syntax.Mask, reading: Reading
    ) -> Place | None:
        given = arguments.names.get(key, own)
        if isinstance(given, Place):
            layout = reading.layout or Layout()
            side = given.side or Side.Q
            return seen(given, Layout(axes).parts(side), layout.parts(side), reading.facts, used.name.text)
        span = arguments.spans[key]
        number = self.scalar(given, span, reading)
        if number is None:
            return None
        if number.type is not Type.INT:
            self.report(f"'{key}' is a position, an int; this is {typed.TYPE_WORDS[number.type]}", span)
            return None
        if axes:
            self.report(f"mask '{used.name.text}' reads coordinates; '{key}' cannot be a number", span)
            return None
        return Place(number)

    def _argument(
        self, parameter: syntax.Parameter, name: str, arguments: Scope, file_scope: Scope, inner: Scope, inside: Reading
    ) -> None:
        """Binds a parameter of a mask used as a predicate to its argument or default."""
        text = parameter.name.text
        kind = _TYPES.get(parameter.type.text) if parameter.type is not None else None
        value: Expr | None
        if text in arguments.names:
            span = arguments.spans[text]
            value = self.scalar(arguments.names[text], span, inside)
            if value is not None and kind is not None and not _converts(value.type, kind):
                words = typed.TYPE_WORDS
                self.report(f"'{text}' of mask '{name}' is {words[kind]}; this is {words[value.type]}", span)
                value = None
        else:
            assert parameter.default is not None
            value = self.number(parameter.default, file_scope, inside)
            if value is not None and kind is not None and not _converts(value.type, kind):
                value = None
        bound: Value = Unknown() if value is None or kind is None else typed.cast(value, kind)
        self.define(parameter.name, bound, inner)


_NOT_FREE = {"score", "inf"}


def _is_free(found: Value | None) -> bool:
    """Whether a name in dims is a size of its own; masks and functions are no sizes, so their names may be taken."""
    return found is None or isinstance(found, MaskValue | FunctionValue)


def _as_float(value: Expr, span: Span | None) -> Expr:
    return replace(typed.cast(value, Type.FLOAT), span=span)


def _converts(source: Type, target: Type) -> bool:
    """Whether an argument of one type may be given for a parameter of another."""
    return source is target or (source is Type.INT and target is Type.FLOAT)


def _end(side: Side) -> Expr:
    """The position behind the last one of a side."""
    return typed.arithmetic(BinaryOp.ADD, Offset(Type.INT, side), Length(Type.INT, side), None)


def _follows_positions(node: syntax.Expression, axes: tuple[str, ...]) -> bool:
    """Whether a dim is written with positions or bare axes, whose values it covers."""
    match node:
        case syntax.Attribute(owner=syntax.Name(text=owner)):
            return owner in ("q", "k")
        case syntax.Binary():
            return _follows_positions(node.left, axes) or _follows_positions(node.right, axes)
        case syntax.Bracketed():
            return _follows_positions(node.inner, axes)
        case _:
            return any(n.text in ("q", "k", "seq") or n.text in axes for n in syntax.names(node))


def _rises(node: syntax.Expression, axes: tuple[str, ...]) -> bool:
    """Whether a dim plainly grows with the position, so that its last value is its largest."""
    match node:
        case syntax.Name() | syntax.Attribute():
            return True
        case syntax.Bracketed():
            return _rises(node.inner, axes)
        case syntax.Binary(operator="+"):
            return all(_rises(n, axes) for n in (node.left, node.right) if _follows_positions(n, axes))
        case syntax.Binary(operator="-" | "//"):
            return not _follows_positions(node.right, axes) and _rises(node.left, axes)
        case syntax.Binary(operator="*"):
            following = [n for n in (node.left, node.right) if _follows_positions(n, axes)]
            return len(following) == 1 and _rises(following[0], axes)
        case _:
            return False
