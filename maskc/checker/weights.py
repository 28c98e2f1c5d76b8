"""The lines `score`, `mass` and `weight`, and the order in which scores become weights.

Lines run top to bottom, and a `let` keeps the score it saw. Whatever their place, `keep`s come before reductions, the
normaliser and `mass` see the final score, and `weight` is what the normaliser makes. So a reduction of the final score
stands behind every line that could still change it.
"""

from collections.abc import Mapping
from dataclasses import replace

from maskc.checker import typed
from maskc.checker.axes import Axes
from maskc.checker.kinks import degree, kink
from maskc.checker.layout import NO_FACTS
from maskc.checker.scope import Reading, Scope
from maskc.diagnostics import Span
from maskc.expr import (
    ONE,
    Coordinate,
    Dot,
    Expr,
    FinalScore,
    Literal,
    Position,
    Read,
    Score,
    Side,
    Token,
    Type,
    Weight,
    walk,
)
from maskc.grammar import syntax

_IDENTITIES = {"+": 0, "-": 0, "*": 1, "/": 1, "**": 1}
_OF_PAIRS = {Position, Coordinate, Score, FinalScore, Weight, Dot}
_KINK_HINT = "'logsumexp' has a gradient; decisions and outputs may read a max or min"
_AFFINE_HINT = "write 'weight = a * weight + b' with a and b that do not read it; what decides by scores reads 'score'"


class Weights(Axes):
    """Reads what becomes of scores."""

    # ---- score, mass, weight

    def score(self, node: syntax.Score, scope: Scope, reading: Reading) -> bool:
        """Changes the score; False if the line could not be read."""
        if reading.score is None or self.is_behind_the_final_score(node, "score", reading):
            return False
        value = self._operand(node, scope, reading, "score", "write 'where(..., 0, -inf)', or 'keep'")
        if value is None or self.reads_too_late(value, node.value.span, "a 'score' line", reading, final=False):
            return False
        changed = self._changed(node, "score", reading.score, value)
        if changed is None or self.has_kink(changed, node.value.span, reading):
            return False
        reading.score = changed
        return True

    def mass(self, node: syntax.Mass, scope: Scope, reading: Reading) -> bool:
        """Multiplies the mass; False if the line could not be read."""
        if self.is_behind_the_final_score(node, "mass", reading):
            return False
        if node.operator != "*":
            hint = "factors of the unnormalised weight; terms belong to 'score' or 'weight'"
            self.report("a mass is changed by 'mass *= ...' only", node.span, hint)
            return False
        value = self._operand(node, scope, reading, "mass")
        if value is None or self.reads_too_late(value, node.value.span, "a 'mass' line", reading):
            return False
        factor = typed.cast(value, Type.FLOAT)
        if isinstance(factor, Literal) and factor.value < 0:
            self.report("a mass is at least 0", node.value.span, "change signs by 'weight *= ...'")
            return False
        first = reading.mass == ONE
        changed = replace(factor, span=node.span) if first else self._changed(node, "mass", reading.mass, factor)
        if changed is None or self.has_kink(changed, node.value.span, reading):
            return False
        self._lint_identity(node)
        reading.mass = changed
        return True

    def weight(self, node: syntax.Weight, scope: Scope, reading: Reading) -> bool:
        """Changes the weight; False if the line could not be read."""
        value = self._operand(node, scope, reading, "weight")
        if value is None:
            return False
        if node.operator == "**":
            self.report("a weight is changed by sums and products only", node.span, _AFFINE_HINT)
            return False
        changed = self._changed(node, "weight", reading.weight, value)
        if changed is None or self.has_kink(changed, node.value.span, reading):
            return False
        if degree(changed) is None:
            self.report("this is not affine in 'weight'", node.value.span, _AFFINE_HINT)
            return False
        reading.weight = changed
        return True

    def _operand(
        self,
        node: syntax.Score | syntax.Mass | syntax.Weight,
        scope: Scope,
        reading: Reading,
        what: str,
        boolean_hint: str | None = None,
    ) -> Expr | None:
        """The value of a line; a boolean may be a factor but no score of its own."""
        value = self.number(node.value, scope, reading)
        if value is not None and node.operator is None and value.type is Type.BOOL:
            self.report(f"a {what} is a number; this is a boolean", node.value.span, boolean_hint)
            return None
        return value

    def _changed(
        self, node: syntax.Score | syntax.Mass | syntax.Weight, what: str, before: Expr, value: Expr
    ) -> Expr | None:
        """What a line makes of what there was."""
        if node.operator is None:
            return self.made(node.span, as_float, value)
        if node.operator not in _IDENTITIES:
            self.report(f"'{node.operator}=' is for ints; a {what} is a float", node.span)
            return None
        self._lint_identity(node)
        return self.made(node.span, typed.arithmetic, typed.ARITHMETIC[node.operator], before, value)

    def _lint_identity(self, node: syntax.Score | syntax.Mass | syntax.Weight) -> None:
        number = node.value
        while isinstance(number, syntax.Bracketed):
            number = number.inner
        if isinstance(number, syntax.Integer | syntax.Float) and number.value == _IDENTITIES.get(node.operator or ""):
            self.warn("this changes nothing", node.span)

    # ---- what may be read where

    def is_behind_the_final_score(self, node: syntax.Statement, word: str, reading: Reading) -> bool:
        """Reports a line that would change the weights below a reduction that has read them."""
        if not reading.finals:
            return False
        name, span = next(iter(reading.finals.items()))
        line = span.source.position(span.start)[0]
        self.report(
            f"'{name}' on line {line} reads what this '{word}' line changes: the final score or the weight",
            node.span,
            "move this line above it",
        )
        return True

    def reads_too_late(self, expr: Expr, span: Span, what: str, reading: Reading, final: bool = True) -> bool:
        """Reports an expression that reads what only comes out of its own line. final: may it read the final score."""
        if Weight in expr.kinds:
            self.report(f"{what} cannot read 'weight', which is made from it", _at(expr, Weight, span))
        elif not final and FinalScore in expr.kinds:
            self.report(f"{what} cannot read the final score", _at(expr, FinalScore, span))
        elif (name := first_read(expr, reading.finals)) is not None:
            self.report(f"{what} cannot read '{name}', which is made from the final score or the weight", span)
        else:
            return False
        return True

    def has_kink(self, expr: Expr, span: Span, reading: Reading) -> bool:
        """Reports an expression whose gradient would have to pass a reduction that has none."""
        found = kink(expr, reading.reductions, reading.inputs) if reading.reductions else None
        if found is None:
            return False
        node, name = found
        op = reading.reductions[name].op.value
        through = "" if node.input == name else f" through '{node.input}'"
        self.report(f"this reads '{name}'{through}: a '{op}' carries no gradient", inside(node.span, span), _KINK_HINT)
        return True

    def of_row(self, node: syntax.Expression, scope: Scope, reading: Reading, what: str) -> Expr | None:
        """An expression with one value per query: no key, score or weight, and nothing that a `keep` made sure of."""
        known, reading.facts = reading.facts, NO_FACTS
        try:
            value = self.number(node, scope, reading)
        finally:
            reading.facts = known
        if value is None:
            return None
        for e in walk(value) if value.kinds & _OF_PAIRS else ():
            of_key = isinstance(e, Position | Coordinate) and e.side is Side.K
            if of_key or isinstance(e, Score | FinalScore | Weight) or _is_of_tokens(e):
                word = "the key" if of_key else "scores"
                self.report(f"{what} has one value per query and cannot read {word}", inside(e.span, node.span))
                return None
        return value


def as_float(value: Expr, span: Span | None) -> Expr:
    """A number as a float, with a place of its own."""
    return replace(typed.cast(value, Type.FLOAT), span=span)


def first_read(expr: Expr, names: Mapping[str, object]) -> str | None:
    """The first of some tables that an expression reads an entry of."""
    if not names or Read not in expr.kinds:
        return None
    return next((e.input for e in walk(expr) if isinstance(e, Read) and e.input in names), None)


def reads_token(expr: Expr) -> bool:
    """Whether an expression reads the vectors of the query or key."""
    return Dot in expr.kinds and any(map(_is_of_tokens, walk(expr)))


def _is_of_tokens(expr: Expr) -> bool:
    return isinstance(expr, Dot) and any(isinstance(vector, Token) for vector in (expr.left, expr.right))


def _at(expr: Expr, kind: type, around: Span) -> Span:
    """Where the first node of a class stands, if that is inside a statement; else the statement's value."""
    return inside(next(e.span for e in walk(expr) if isinstance(e, kind)), around)


def inside(span: Span | None, around: Span) -> Span:
    """A place if it lies inside another one, else that one."""
    lies_inside = span is not None and span.source is around.source and around.start <= span.start < around.end
    return span if lies_inside and span is not None else around


def line_of(span: Span | None) -> str:
    """The end of a sentence that says on which line something stands."""
    return "" if span is None else f" on line {span.source.position(span.start)[0]}"
