"""Expressions as written to typed expressions: names are resolved, functions, lets and masks used as predicates
inlined.

In: a syntax tree, the scope of its names and the mask in which it is read. Out: `Expr`, or None where a mistake was
reported. Each mistake is reported once, where it is; what follows from it is passed over in silence.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import assert_never

from maskc import typed
from maskc.diagnostics import Span, did_you_mean
from maskc.grammar import syntax
from maskc.layout import Layout, entry
from maskc.places import Places, named
from maskc.reports import DEPTH_LIMIT, LimitError
from maskc.scope import AxisName, FunctionValue, LetValue, MaskValue, Place, Reading, Scope, Table, Unknown, Value
from maskc.spec import (
    AxisSize,
    Count,
    Dim,
    DimKind,
    Expr,
    Index,
    InputSpec,
    Length,
    Literal,
    Read,
    Side,
    Total,
    Type,
)
from maskc.words import BUILTINS, HABITS, LATER, MODULES, OPTION_HINTS, OPTIONS, PARAMETER_NAMES, PRELUDE

WORK_LIMIT = 50_000
INLINING_LIMIT = 20


@dataclass(eq=False)
class Elaborator(Places):
    """Reads expressions; gathers what is wrong with them in `found`."""

    work: int = 0
    depth: int = 0
    # Functions, masks and lets being inlined; and functions and lets that were read somewhere, by identity.
    active: list[syntax.Mask | syntax.Function | syntax.Let] = field(default_factory=list)
    called: set[int] = field(default_factory=set)

    # ---- expressions

    def value(self, node: syntax.Expression, scope: Scope, reading: Reading) -> Value:
        """What an expression stands for; Unknown where a mistake was reported."""
        while isinstance(node, syntax.Bracketed):
            node = node.inner
        self.work += 1
        if self.work > WORK_LIMIT:
            self.report(f"this file has more than {WORK_LIMIT:,} operations once everything is inlined", node.span)
            raise LimitError
        if self.depth >= DEPTH_LIMIT:
            self.report(f"this expression is more than {DEPTH_LIMIT} levels deep", node.span)
            return Unknown()
        self.depth += 1
        try:
            return self._value(node, scope, reading)
        finally:
            self.depth -= 1

    def _value(self, node: syntax.Expression, scope: Scope, reading: Reading) -> Value:
        match node:
            case syntax.Name():
                return self._named(node, scope, reading)
            case syntax.Integer():
                return Literal(Type.INT, node.value, span=node.span)
            case syntax.Float():
                return Literal(Type.FLOAT, node.value, span=node.span)
            case syntax.Boolean():
                return Literal(Type.BOOL, node.value, span=node.span)
            case syntax.Bracketed():
                raise AssertionError("brackets are taken off before")
            case syntax.Attribute():
                return self._attribute(node, scope, reading)
            case syntax.Subscript():
                return self._subscript(node, scope, reading)
            case syntax.Call():
                return self._call(node, scope, reading)
            case (
                syntax.Unary()
                | syntax.Binary()
                | syntax.Comparison()
                | syntax.BooleanOperation()
                | syntax.Conditional()
            ):
                expr = self.operation(node, scope, reading)
                return Unknown() if expr is None else expr
            case syntax.Tuple():
                self.report("a tuple can only stand behind 'in'", node.span)
                return Unknown()
            case syntax.List():
                self.report("tables of literals are not available in this version", node.span)
                return Unknown()
            case syntax.Unreadable():
                return Unknown()
            case _:
                assert_never(node)

    # ---- names

    def _named(self, node: syntax.Name, scope: Scope, reading: Reading) -> Value:
        found = scope.find(node.text)
        match found:
            case None:
                return self._prelude(node, scope, reading)
            case LetValue():
                return self._file_let(found, reading)
            case MaskValue():
                return self._bare_mask(found, node, reading)
            case Unknown() | Place() | AxisName() | Table() | FunctionValue():
                return found
            case _:
                return found

    def _prelude(self, node: syntax.Name, scope: Scope, reading: Reading) -> Value:
        """A name that the language itself gives a meaning."""
        span = node.span
        match node.text:
            case "q":
                return reading.q
            case "k":
                return reading.k
            case "q_len" | "k_len":
                side = Side(node.text[0])
                layout = reading.layout
                return Length(Type.INT, side, span=span) if layout is None else layout.length(side, span)
            case "head" | "kv_head" | "batch":
                return Index(Type.INT, Count(node.text), span=span)
            case "heads":
                return Total(Type.INT, Count.HEAD, span=span)
            case "inf":
                return Literal(Type.FLOAT, float("inf"), span=span)
            case "score" | "mass" | "weight":
                return self.so_far(node.text, reading)
            case "doc" if reading.layout is not None and reading.layout.documents:
                return reading.layout.documents[Side.Q].number
            case name:
                found = named(reading.layout, name)
                if found is not None:
                    return found
        self._report_unknown(node, scope, reading)
        return Unknown()

    def _report_unknown(self, node: syntax.Name, scope: Scope, reading: Reading, called: bool = False) -> None:
        name = node.text
        if name in LATER:
            self.report(f"'{name}' is not available in this version", node.span)
            return
        if name in OPTIONS:
            self.report(f"'{name}' is an option of the call, not a value", node.span, OPTION_HINTS.get(name))
            return
        if name in BUILTINS:
            self.report(f"'{name}' is a function", node.span, f"call it: '{name}(...)'")
            return
        if self.report_later(node, scope):
            return
        what = "function" if called else "name"
        self.report(f"unknown {what} '{name}'", node.span, self._suggestion(name, scope, reading))

    def report_later(self, node: syntax.Name, scope: Scope) -> bool:
        """Reports a name that is read above the line that defines it; False if there is no such line."""
        later = scope.defined_later(node.text)
        if later is not None:
            line = later.source.position(later.start)[0]
            self.report(f"'{node.text}' is read above line {line}, which defines it", node.span)
        return later is not None

    def _suggestion(self, name: str, scope: Scope, reading: Reading) -> str | None:
        if name in MODULES:
            return "there are no modules; write 'where(...)', 'abs(...)', 'exp(...)' by their bare names"
        if name in HABITS:
            instead = HABITS[name]
            return f"did you mean '{instead}'?" if instead.isidentifier() else f"write '{instead}'"
        known = [*PRELUDE, *BUILTINS, *(reading.axes or ()), *scope.visible()]
        return did_you_mean(name, known) if len(name) > 1 else None

    def _file_let(self, let: LetValue, reading: Reading) -> Value:
        """The value of a let at file level in the mask that reads it."""
        key = (id(let.node), reading.facts, reading.sees_final_score, reading.score, reading.mass, reading.weight)
        if key not in reading.lets:
            if let.node in self.active:
                self.report(f"'{let.node.name.text}' is defined by itself", let.node.name.span)
                return Unknown()
            self.called.add(id(let.node))
            with self._inlining(let.node):
                value = self.value(let.node.value, let.scope, reading)
            reading.lets[key] = value
        return reading.lets[key]

    def bare(self, table: InputSpec, span: Span, reading: Reading) -> Expr | None:
        """An input named without brackets, all of whose dims are filled in."""
        if len(_leading(table)) == len(table.dims):
            return self._read(table, [], span, reading)
        open_dims = table.dims[len(_leading(table)) :]
        example = ", ".join(_example(d) for d in open_dims)
        dims = ", ".join(d.text for d in table.dims)
        self.report(
            f"'{table.name}' has dims [{dims}] and needs an index", span, f"for example '{table.name}[{example}]'"
        )
        return None

    def _attribute(self, node: syntax.Attribute, scope: Scope, reading: Reading) -> Value:
        owner, name = node.owner, node.name.text
        if isinstance(owner, syntax.Name) and owner.text in MODULES and scope.find(owner.text) is None:
            self.report(f"unknown name '{owner.text}'", owner.span, self._suggestion(owner.text, scope, reading))
            return Unknown()
        if reading.axes is None and isinstance(owner, syntax.Name) and scope.find(owner.text) is None:
            return Unknown()  # a function that nobody calls may name the axes of any mask
        match self.value(owner, scope, reading):
            case Unknown():
                return Unknown()
            case AxisName() as axis:
                return self.of_axis(axis, node)
            case Place() as at:
                return self.of_place(node, at, reading)
            case _:
                self.report(f"'{owner.span.text}' has no '.{name}'", node.name.span)
        return Unknown()

    # ---- inputs

    def _subscript(self, node: syntax.Subscript, scope: Scope, reading: Reading) -> Value:
        indices = [(self.value(i, scope, reading), i.span) for i in node.indices]
        match self.value(node.table, scope, reading):
            case Unknown():
                return Unknown()
            case Table(input=table):
                numbers = [self.scalar(v, s, reading) for v, s in indices]
                if any(n is None for n in numbers):
                    return Unknown()
                return self._read(table, [n for n in numbers if n is not None], node.span, reading) or Unknown()
            case _:
                self.report(f"'{node.table.span.text}' is not an input and cannot be indexed", node.table.span)
                return Unknown()

    def _read(self, table: InputSpec, written: list[Expr], span: Span, reading: Reading) -> Expr | None:
        """One entry; leading batch and head dims that are not written are filled in."""
        if not table.dims and not written:
            return Read(table.type, table.name, (), span=span)
        leading = _leading(table)
        missing = len(table.dims) - len(written)
        dims = ", ".join(d.text for d in table.dims)
        if missing > len(leading):
            needed = len(table.dims) - len(leading)
            message = f"'{table.name}' has dims [{dims}] and needs {needed} indices; {len(written)} given"
            hint = "reading a row is not available in this version" if written else None
            self.report(message, span, hint)
            return None
        if missing < 0:
            self.report(f"'{table.name}' has dims [{dims}]; {len(written)} indices are too many", span)
            return None
        for index in written:
            if index.type is Type.FLOAT:
                self.report("an index is an int; this is a float", index.span, "write 'floor(...)'")
                return None
        indices: list[Expr] = [Index(Type.INT, Count(d.kind.value), span=span) for d in leading[:missing]]
        for dim, index in zip(table.dims[missing:], written, strict=True):
            indices.append(entry(dim, typed.cast(index, Type.INT), reading.layout or Layout()))
        return self.made(span, _entry_of, table, tuple(indices))

    # ---- calls

    def _call(self, node: syntax.Call, scope: Scope, reading: Reading) -> Value:
        function = node.function
        if not isinstance(function, syntax.Name):
            if not isinstance(self.value(function, scope, reading), Unknown):
                self.report("only functions and masks can be called", function.span)
            return Unknown()
        match scope.find(function.text):
            case FunctionValue() as value:
                return self._inline(value, node, scope, reading)
            case MaskValue() as value:
                return self._predicate(value, node, scope, reading)
            case Unknown():
                return Unknown()
            case None if function.text in BUILTINS:
                expr = self._builtin(node, function.text, scope, reading)
                return Unknown() if expr is None else expr
            case None if function.text not in PRELUDE:
                self._report_unknown(function, scope, reading, called=True)
            case _:
                self.report(f"'{function.text}' is not a function", function.span)
        return Unknown()

    def positional(self, node: syntax.Call, scope: Scope, reading: Reading) -> list[Expr | None] | None:
        """The arguments of a builtin, in order; None where one is not given by position."""
        numbers: list[Expr | None] = []
        for argument in node.arguments:
            if isinstance(argument, syntax.Comprehension):
                self.report("'... for ... in ...' is not available in this version", argument.span)
                return None
            if argument.name is not None:
                self.report("builtin functions take their arguments in order, without names", argument.span)
                return None
            numbers.append(self.number(argument.value, scope, reading))
        return numbers

    def _builtin(self, node: syntax.Call, name: str, scope: Scope, reading: Reading) -> Expr | None:
        if name == "range":
            self.report("'range' can only stand behind 'in'", node.span)
            return None
        numbers = self.positional(node, scope, reading)
        if numbers is None:
            return None
        least = {"min": 2, "max": 2, "clamp": 3, "where": 3}.get(name, 1)
        variadic = name in ("min", "max")
        if len(numbers) < least or (len(numbers) > least and not variadic):
            wanted = f"at least {least} arguments" if variadic else f"{least} argument{'s' * (least > 1)}"
            self.report(f"'{name}' takes {wanted}; {len(numbers)} given", node.span)
            return None
        known = [n for n in numbers if n is not None]
        if len(known) < len(numbers):
            return None
        return self.made(node.span, typed.builtin, name, known)

    def _inline(self, called: FunctionValue, node: syntax.Call, scope: Scope, reading: Reading) -> Value:
        """The body of a function with the arguments in place of its parameters."""
        function = called.node
        inner = Scope(called.scope)
        names = [p.text for p in function.parameters]
        if not function.readable or not self._bind(node, function.name.text, names, set(names), inner, scope, reading):
            return Unknown()
        if any(f is function for f in self.active):
            self.report(
                f"function '{function.name.text}' calls itself",
                node.span,
                "functions are written out; they cannot recurse",
            )
            return Unknown()
        self.called.add(id(function))
        with self._inlining(function, node.span):
            return self.body(function, inner, reading)

    def function(self, node: syntax.Function, scope: Scope) -> None:
        """Defines a function; its parameters may be called like positions, but not like functions of the language."""
        self.define(node.name, FunctionValue(node, scope), scope)
        names = Scope()
        for parameter in node.parameters:
            self.define(parameter, Unknown(), names, PARAMETER_NAMES)

    def body(self, function: syntax.Function, scope: Scope, reading: Reading) -> Value:
        """What a function returns, its parameters bound in `scope`."""
        result: Value = Unknown()
        for statement in function.body:
            match statement:
                case syntax.Let():
                    self.let(statement, scope, reading)
                case syntax.Return():
                    result = self.value(statement.value, scope, reading)
                case _:
                    raise AssertionError("the parser leaves nothing else in a function")
        return result

    def let(self, node: syntax.Let, scope: Scope, reading: Reading) -> None:
        """Binds a name to a value."""
        value = self.value(node.value, scope, reading)
        self.define(node.name, value, scope)

    def define(self, name: syntax.Name, value: Value, scope: Scope, shadows: frozenset[str] = frozenset()) -> None:
        """Gives a name a meaning in a scope, unless the language or an earlier line already did."""
        text = name.text
        if text in scope.names:
            earlier = scope.spans.get(text)
            where = "" if earlier is None else f" on line {earlier.source.position(earlier.start)[0]}"
            self.report(f"'{text}' is already defined{where}", name.span)
            return
        scope.names[text] = value
        scope.spans[text] = name.span
        scope.later.pop(text, None)
        if text in (PRELUDE | BUILTINS | LATER) - shadows:
            self.report(f"'{text}' has a meaning of its own and cannot be defined", name.span)
        elif text in OPTIONS - shadows:
            self.report(f"'{text}' is an option of every call and cannot be defined", name.span)

    def _bind(
        self,
        node: syntax.Call,
        name: str,
        names: Sequence[str],
        required: set[str],
        inner: Scope,
        scope: Scope,
        reading: Reading,
        also: Sequence[str] = (),
    ) -> bool:
        """Puts the arguments of a call into the scope of what is called; False if they do not fit. `also`: by keyword
        only.
        """
        given: dict[str, Value] = {}
        for position, argument in enumerate(node.arguments):
            if isinstance(argument, syntax.Comprehension):
                self.report("'... for ... in ...' is not available in this version", argument.span)
                return False
            value = self.value(argument.value, scope, reading)
            if argument.name is not None:
                key = argument.name.text
                if key not in names and key not in also:
                    hint = did_you_mean(key, [*names, *also])
                    self.report(f"'{name}' has no parameter '{key}'", argument.name.span, hint)
                    return False
            elif position >= len(names):
                self.report(f"'{name}' takes {_arguments(names)}; {len(node.arguments)} given", node.span)
                return False
            else:
                key = names[position]
            if key in given:
                self.report(f"'{key}' is given twice", argument.span)
                return False
            given[key] = value
            inner.spans[key] = argument.span
        missing = [n for n in names if n in required and n not in given]
        if missing:
            self.report(f"'{name}' takes {_arguments(names)}; '{missing[0]}' is missing", node.span)
            return False
        inner.names.update(given)
        return True

    @contextmanager
    def _inlining(self, node: syntax.Mask | syntax.Function | syntax.Let, call: Span | None = None) -> Iterator[None]:
        if len(self.active) > INLINING_LIMIT:
            self.report(f"functions, masks and lets use each other more than {INLINING_LIMIT} deep", node.name.span)
            raise LimitError
        self.active.append(node)
        if call is not None:
            self.calls.append(call)
        try:
            yield
        finally:
            self.active.pop()
            if call is not None:
                self.calls.pop()

    # ---- masks used as predicates

    def _bare_mask(self, mask: MaskValue, node: syntax.Name, reading: Reading) -> Value:
        """A mask without parameters, named alone."""
        if mask.node.parameters:
            arguments = ", ".join(f"{p.name.text}=..." for p in mask.node.parameters)
            hint = f"write '{node.text}({arguments})'"
            if all(p.default is not None for p in mask.node.parameters):
                hint += f", or '{node.text}()' for its defaults"
            self.report(f"mask '{node.text}' has parameters", node.span, hint)
            return Unknown()
        return self._predicate(mask, syntax.Call(node, (), span=node.span), mask.scope, reading)

    @abstractmethod
    def _predicate(self, mask: MaskValue, node: syntax.Call, scope: Scope, reading: Reading) -> Value:
        """A mask called with its parameters and positions, as a boolean."""


def _leading(table: InputSpec) -> tuple[Dim, ...]:
    """The dims that reading fills in."""
    count = 0
    while count < len(table.dims) and table.dims[count].kind in (DimKind.BATCH, DimKind.HEAD, DimKind.KV_HEAD):
        count += 1
    return table.dims[:count]


def _entry_of(table: InputSpec, indices: tuple[Expr, ...], span: Span | None) -> Expr:
    return Read(table.type, table.name, indices, span=span)


def _example(dim: Dim) -> str:
    """An index that fits a dim, for a hint."""
    match dim.kind:
        case DimKind.SEQ:
            return "q"
        case DimKind.EXTENT if isinstance(dim.extent, AxisSize):
            return f"q.{dim.text}"
        case DimKind.EXTENT if dim.text[:1] in ("q", "k"):
            return dim.text
        case _:
            return "..."


def _arguments(names: Sequence[str]) -> str:
    if not names:
        return "no arguments"
    return f"{len(names)} argument{'s' * (len(names) > 1)} ({', '.join(names)})"
