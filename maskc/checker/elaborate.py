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

from maskc.checker.functions import Functions
from maskc.checker.layout import Place
from maskc.checker.places import named
from maskc.checker.reports import DEPTH_LIMIT, LimitError
from maskc.checker.scope import AxisName, FunctionValue, LetValue, MaskValue, Reading, Scope, Table, Unknown, Value
from maskc.checker.words import ATTRIBUTES, BUILTINS, MODULES, PARAMETER_NAMES, PRELUDE
from maskc.diagnostics import Span, did_you_mean
from maskc.expr import Count, FreeSize, Index, Length, Literal, Scale, Side, Token, Total, Type
from maskc.grammar import syntax

INLINING_LIMIT = 20


@dataclass(eq=False)
class Elaborator(Functions):
    """Reads expressions; gathers what is wrong with them in `found`."""

    depth: int = 0
    # Functions, masks and lets being inlined; and functions and lets that were read somewhere, by identity.
    active: list[syntax.Mask | syntax.Function | syntax.Let] = field(default_factory=list)
    called: set[int] = field(default_factory=set)

    # ---- expressions

    def value(self, node: syntax.Expression, scope: Scope, reading: Reading) -> Value:
        """What an expression stands for; Unknown where a mistake was reported."""
        while isinstance(node, syntax.Bracketed):
            node = node.inner
        self.spend(1, node.span)
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
                return self.subscript(node, scope, reading)
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
                self.report("a tuple can only stand behind 'in'", node.span, "tables are written [1, 2]")
                return Unknown()
            case syntax.List():
                return self.display(node, scope, reading)
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
            case Unknown() | Place() | Token() | AxisName() | Table() | FunctionValue():
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
            case "score" | "mass" | "weight" | "query" | "key":
                return self._of_the_pair(node, reading)
            case "scale":
                return Scale(Type.FLOAT, span=span)
            case "doc" if (layout := reading.layout) is None or layout.documents:
                return Unknown() if layout is None else layout.documents[Side.Q].number
            case name if name in reading.free:
                return FreeSize(Type.INT, name, span=span)
            case name:
                found = named(reading.layout, name)
                if found is not None:
                    return found
        self.report_unknown(node, scope, reading)
        return Unknown()

    def _of_the_pair(self, node: syntax.Name, reading: Reading) -> Value:
        """Scores, weights and vectors, which belong to the pair and to no other one."""
        name = node.text
        if reading.q.side is not Side.Q or reading.k.side is not Side.K:
            self.report(f"'{name}' is that of the pair, and this mask is used at other positions", node.span)
            return Unknown()
        if name in ("query", "key"):
            return Token(Side.Q if name == "query" else Side.K)
        return self.so_far(name, reading)

    def _file_let(self, let: LetValue, reading: Reading) -> Value:
        """The value of a let at file level in the mask that reads it."""
        claimed = reading.line == "claim"  # counts of kept pairs can be read there
        seen = (reading.facts, reading.sees_final_score, reading.score, reading.mass, reading.weight)
        key = (id(let.node), claimed, *seen)
        if key not in reading.lets:
            if let.node in self.active:
                self.report(f"'{let.node.name.text}' is defined by itself", let.node.name.span)
                return Unknown()
            self.called.add(id(let.node))
            with self._inlining(let.node):
                value = self.name_table(self.value(let.node.value, let.scope, reading), let.node.name.text)
            reading.lets[key] = value
        return reading.lets[key]

    def _attribute(self, node: syntax.Attribute, scope: Scope, reading: Reading) -> Value:
        owner, name = node.owner, node.name.text
        if isinstance(owner, syntax.Name) and owner.text in MODULES and scope.find(owner.text) is None:
            self.report(f"unknown name '{owner.text}'", owner.span, self.suggestion(owner.text, scope, reading))
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
                self.report(f"'{owner.span.text}' has no '.{name}'", node.name.span, ATTRIBUTES.get(name))
        return Unknown()

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
                return self.builtin(node, function.text, scope, reading)
            case None if function.text not in PRELUDE:
                self.report_unknown(function, scope, reading, called=True)
            case _:
                self.report(f"'{function.text}' is not a function", function.span)
        return Unknown()

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
        value = self.name_table(self.value(node.value, scope, reading), node.name.text)
        self.define(node.name, value, scope)

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
                self.report_loop(name, argument)
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


def _arguments(names: Sequence[str]) -> str:
    if not names:
        return "no arguments"
    return f"{len(names)} argument{'s' * (len(names) > 1)} ({', '.join(names)})"
