"""The masks of a file: statements are read in order, every mistake is reported at once."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import assert_never

from maskc.checker import typed
from maskc.checker.kinks import tables, tables_with_gradient
from maskc.checker.layout import Layout
from maskc.checker.lint import lint
from maskc.checker.predicates import Predicates
from maskc.checker.reports import SIZE_LIMIT, TOO_LARGE, LimitError
from maskc.checker.scope import FunctionValue, LetValue, MaskValue, Reading, Scope, Unknown, Value
from maskc.checker.weights import first_read, reads_token
from maskc.diagnostics import Span
from maskc.expr import (
    SCORE,
    Bucket,
    Coordinate,
    Dot,
    Expr,
    FinalScore,
    Index,
    Kept,
    Literal,
    Member,
    Offset,
    Parameter,
    Position,
    Rand,
    Read,
    Score,
    Side,
    Type,
    Weight,
)
from maskc.grammar import syntax
from maskc.spec import Claim, MaskSpec, Normalizer, ParameterSpec

_OF_PAIRS = {Position, Coordinate, Index, Read, Offset, Member, Bucket, Dot, Rand, Kept}


def definition(item: syntax.Mask | syntax.Function | syntax.Let, scope: Scope) -> Value:
    """What the name of something at file level stands for."""
    match item:
        case syntax.Mask():
            return MaskValue(item, scope)
        case syntax.Function():
            return FunctionValue(item, scope)
        case syntax.Let():
            return LetValue(item, scope)


@dataclass(eq=False)
class Masks(Predicates):
    """Reads files. library: the names that every file knows."""

    library: Scope = field(default_factory=Scope)

    def file(self, file: syntax.File) -> Iterator[MaskSpec]:
        """Its masks, as far as they could be read."""
        scope = Scope(self.library)
        for item in file.items:
            if isinstance(item, syntax.Function):
                self.function(item, scope)
            else:
                self.define(item.name, definition(item, scope), scope)
        masks = [item for item in file.items if isinstance(item, syntax.Mask)]
        self.given |= {s.name.text for mask in masks for s in mask.body if isinstance(s, syntax.Input)}
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
                self._read_unused(item, scope, nowhere)
            elif isinstance(item, syntax.Let) and id(item) not in self.called:
                self.value(item.value, scope, nowhere)
                self._lint_unread(item.name, scope)

    def _read_unused(self, function: syntax.Function, scope: Scope, reading: Reading) -> None:
        inner = Scope(scope)
        for parameter in function.parameters:
            inner.names[parameter.text] = Unknown()
        self.body(function, inner, reading)

    def body(self, function: syntax.Function, scope: Scope, reading: Reading) -> Value:
        """What a function returns, its parameters bound in `scope`."""
        result = super().body(function, scope, reading)
        for statement in function.body:
            if isinstance(statement, syntax.Let):
                self._lint_unread(statement.name, scope)
        return result

    # ---- masks

    def mask(self, node: syntax.Mask, file_scope: Scope) -> MaskSpec:
        """One mask of the file; what could not be read is left out of it."""
        scope = Scope(file_scope)
        layout = Layout()
        reading = Reading(layout, layout.place(Side.Q), layout.place(Side.K), score=SCORE)
        reading.packs = any(isinstance(s, syntax.Packed) for s in node.body)
        with self._inlining(node):
            parameters = [self._parameter(p, node.readable, file_scope, scope, reading) for p in node.parameters]
            if not reading.packs:
                reading.layout = self.layout(node, scope, reading)
                layout = reading.layout or layout
                reading.q, reading.k = layout.place(Side.Q), layout.place(Side.K)
                self.name_axes(node, scope, reading)
            reductions = {s.name.text for s in node.body if isinstance(s, syntax.Reduce)}
            axes = {axis.name.text for s in node.body if isinstance(s, syntax.Axes) for axis in s.axes}
            reading.taken = {p.name for p in parameters} | {*layout.axis_names} | axes | reductions
            clauses = self.statements(node, scope, reading)
            for statement in node.body:
                if isinstance(statement, syntax.Function) and id(statement) not in self.called:
                    self._read_unused(statement, scope, reading)
        spec = self._spec(node, parameters, clauses, reading)
        if sum(e.size for e in spec.exprs) > SIZE_LIMIT:
            self.report(TOO_LARGE.format("this mask"), node.name.span)
            raise LimitError
        self._check_learned(spec)
        self._lints(node, spec, scope, reading)
        return spec

    def _spec(
        self, node: syntax.Mask, parameters: list[ParameterSpec], clauses: list[Expr], reading: Reading
    ) -> MaskSpec:
        layout = reading.layout or Layout()
        assert reading.score is not None
        return MaskSpec(
            name=node.name.text,
            parameters=tuple(replace(p, structural=p.name in reading.structural) for p in parameters),
            axes=layout.axes,
            inputs=tuple(reading.inputs.values()),
            clauses=tuple(clauses),
            score=reading.score,
            claims=tuple(reading.claims),
            queries=layout.queries,
            keys=layout.keys,
            separate=layout.separate,
            border=layout.border,
            packed=reading.packed,
            mass=reading.mass,
            normalizer=reading.normalizer or Normalizer(),
            weight=reading.weight,
            reductions=tuple(reading.reductions.values()),
            rows=reading.rows,
            span=node.span,
        )

    def _check_learned(self, spec: MaskSpec) -> None:
        """A learned input must be read where gradients flow."""
        learned = [entry for entry in spec.inputs if entry.learned and entry.type is Type.FLOAT and not entry.constant]
        if not learned:
            return
        reached = {table for expr in spec.exprs for table in tables_with_gradient(expr, spec.inputs)}
        lost = [entry for entry in learned if entry.name not in reached]
        read = {table for expr in spec.exprs for table in tables(expr, spec.inputs)} if lost else set()
        for entry in lost:
            if entry.name in read:
                self.report(
                    f"'{entry.name}' is learned, but decisions alone read it, and these pass on no gradient",
                    entry.span,
                    "a gate with a gradient is 'mass *= ...'; or drop 'learned'",
                )

    def _lints(self, node: syntax.Mask, spec: MaskSpec, scope: Scope, reading: Reading) -> None:
        for warning in lint(spec, reading.statements):
            self.warn(warning.message, warning.span, warning.hint)
        for parameter in node.parameters:
            self._lint_unread(parameter.name, scope, "parameter ")
        for statement in node.body:
            if isinstance(statement, syntax.Let | syntax.Input):
                what = "input " if isinstance(statement, syntax.Input) else ""
                self._lint_unread(statement.name, scope, what)

    def _lint_unread(self, name: syntax.Name, scope: Scope, what: str = "") -> None:
        """A name that nothing reads; not said beside mistakes, which may have kept a line from reading it."""
        if name.text not in scope.read and not any(d.severity == "error" for d in self.found):
            self.warn(f"{what}'{name.text}' is never read", name.span)

    # ---- parameters

    def _parameter(
        self, node: syntax.Parameter, readable: bool, file_scope: Scope, scope: Scope, reading: Reading
    ) -> ParameterSpec:
        name = node.name
        kind: Type | None = None
        if readable and node.type is None:
            self.report(f"'{name.text}' needs a type", name.span, f"for example '{name.text}: int = 256'")
        elif readable and node.type is not None:
            kind = self.type_named(node.type)
        self.define_given(name, Parameter(kind, name.text, span=name.span) if kind else Unknown(), scope)
        default = None if node.default is None else self._default(node.default, kind, file_scope, reading)
        return ParameterSpec(name.text, kind or Type.INT, default, span=node.span)

    def _default(
        self, node: syntax.Expression, kind: Type | None, scope: Scope, reading: Reading
    ) -> bool | int | float | None:
        value = self.number(node, scope, reading)
        if value is None or kind is None:
            return None
        if not isinstance(value, Literal):
            self.report("a default is a number or a boolean", node.span)
            return None
        if not typed.converts(value.type, kind):
            message = f"this parameter is {typed.TYPE_WORDS[kind]}; its default is {typed.TYPE_WORDS[value.type]}"
            self.report(message, node.span)
            return None
        converted = typed.cast(value, kind)
        assert isinstance(converted, Literal)
        return converted.value

    # ---- statements

    def statements(self, node: syntax.Mask, scope: Scope, reading: Reading) -> list[Expr]:
        """The clauses of a mask whose axes and parameters are in scope; its functions are known from the first line."""
        for statement in node.body:
            match statement:
                case syntax.Function():
                    self.function(statement, scope)
                case syntax.Let() | syntax.Input() | syntax.Reduce():
                    scope.later.setdefault(statement.name.text, statement.name.span)
                case syntax.Axes() if reading.packs:
                    for axis in statement.axes:
                        scope.later.setdefault(axis.name.text, axis.name.span)
                case _:
                    pass
        clauses: list[Expr] = []
        for statement in node.body:
            reading.line = type(statement).__name__.lower()
            clause = self._statement(statement, node, scope, reading)
            if clause is not None:
                clauses.append(clause)
                reading.statements.append(statement.span)
                self.assume(clause, True, reading)
        return clauses

    def _statement(self, node: syntax.Statement, mask: syntax.Mask, scope: Scope, reading: Reading) -> Expr | None:
        """Does what a statement says; the clause of a `keep` or of `packed`."""
        match node:
            case syntax.Keep():
                clause = self._keep(node, scope, reading)
                self._expect_mistake(clause is None)
                return clause
            case syntax.Packed():
                clause = self.packed(node, mask, scope, reading)
                self._expect_mistake(clause is None)
                return clause
            case syntax.Let():
                self.let(node, scope, reading)
            case syntax.Input():
                if id(node) not in reading.early:
                    self.input(node, scope, reading)
            case syntax.Score():
                self._expect_mistake(not self.score(node, scope, reading))
            case syntax.Mass():
                self._expect_mistake(not self.mass(node, scope, reading))
            case syntax.Normalize():
                self._expect_mistake(not self.normalize(node, scope, reading))
            case syntax.Weight():
                self._expect_mistake(not self.weight(node, scope, reading))
            case syntax.Reduce():
                self._expect_mistake(not self.reduce(node, scope, reading))
            case syntax.Rows():
                self._expect_mistake(not self.rows(node, scope, reading))
            case syntax.Claim():
                self._expect_mistake(not self._claim(node, scope, reading))
            case syntax.Axes() | syntax.Function() | syntax.Pass():
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
        if clause is None or self._reads_weights(clause, "a 'keep'", node.value.span, reading):
            return None
        if reading.reductions:
            name, reduction = next(iter(reading.reductions.items()))
            assert reduction.span is not None
            line = reduction.span.source.position(reduction.span.start)[0]
            message = f"this 'keep' also decides which pairs '{name}' on line {line} gathers"
            self.warn(message, node.span, "'keep' lines come before reductions wherever they stand; write it above")
        return clause

    def _reads_weights(self, expr: Expr, what: str, span: Span, reading: Reading) -> bool:
        """Reports a decision that reads what is made of the pairs it decides about."""
        name = first_read(expr, {n: r for n, r in reading.reductions.items() if n not in reading.inputs})
        if name is not None:
            self.report(f"{what} cannot read '{name}': reductions gather the pairs that are kept", span)
        elif {Weight, FinalScore} & expr.kinds:
            word = "weight" if Weight in expr.kinds else "final score"
            self.report(f"{what} cannot read the {word}, which the pairs that are kept decide", span)
        return name is not None or bool({Weight, FinalScore} & expr.kinds)

    def _claim(self, node: syntax.Claim, scope: Scope, reading: Reading) -> bool:
        """Adds a claim; False if the line could not be read."""
        expr = self.boolean(node.value, scope, reading, "'claim' takes a boolean")
        if expr is None or self._reads_weights(expr, "a 'claim'", node.value.span, reading):
            return False
        if Score in expr.kinds or reads_token(expr):
            self.report("a 'claim' cannot read scores", node.value.span, "claims are checked without q and k tensors")
            return False
        reading.claims.append(Claim(expr, bool(_OF_PAIRS & expr.kinds), span=node.span))
        return True
