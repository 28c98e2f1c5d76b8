"""What an expression is asked to be, and the operators: arithmetic, comparisons, `in`, `and`, `or`, conditionals.

In: a syntax tree, the scope of its names and the mask in which it is read. Out: `Expr`, or None where a mistake was
reported.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import assert_never

from maskc.checker import folds, typed
from maskc.checker.layout import Place
from maskc.checker.names import Names
from maskc.checker.scope import AxisName, FunctionValue, LetValue, MaskValue, Reading, Scope, Table, Unknown, Value
from maskc.diagnostics import Span
from maskc.expr import BinaryOp, Expr, Side, Token, children, placed
from maskc.grammar import syntax


class Operators(Names, ABC):
    """Reads operators; what stands between them is read by `value`."""

    @abstractmethod
    def value(self, node: syntax.Expression, scope: Scope, reading: Reading) -> Value:
        """What an expression stands for; Unknown where a mistake was reported."""

    def assuming(self, condition: Expr | None, holds: bool, reading: Reading) -> AbstractContextManager[None]:
        """While this is entered, expressions are read that are evaluated only where `condition` is what `holds` says;
        `condition` is None where it could not be read.
        """
        return nullcontext()

    @abstractmethod
    def entry(self, table: Table, span: Span, reading: Reading) -> Expr | None:
        """A table as a number: one entry of it."""

    @abstractmethod
    def in_row(self, item: Expr | None, value: Value, where: Span, span: Span, reading: Reading) -> Expr | None:
        """`item in row`; where: the place of the row."""

    @abstractmethod
    def positional(self, node: syntax.Call, scope: Scope, reading: Reading) -> list[Expr | None] | None:
        """The arguments of a builtin, in order; None where one is not given by position."""

    # ---- what is asked for

    def boolean(self, node: syntax.Expression, scope: Scope, reading: Reading, what: str) -> Expr | None:
        """A boolean; `what` begins the sentence that is said if it is none."""
        expr = self.number(node, scope, reading)
        return None if expr is None else self.made(node.span, typed.boolean, expr, what)

    def number(self, node: syntax.Expression, scope: Scope, reading: Reading) -> Expr | None:
        """A boolean, int or float. The span of a name is where it is read, that of more where it is written."""
        expr = self.scalar(self.value(node, scope, reading), node.span, reading)
        return expr if expr is None or children(expr) else placed(expr, node.span)

    def scalar(self, value: Value, span: Span, reading: Reading) -> Expr | None:
        """A value as a boolean, int or float."""
        match value:
            case Unknown():
                return None
            case Place():
                if value.numberless is not None:
                    self.report(
                        value.numberless, reading.use or span, "compare coordinates, for example 'q.x' and 'k.x'"
                    )
                    return None
                return value.line
            case Table():
                return self.entry(value, span, reading)
            case Token():
                word = "query" if value.side is Side.Q else "key"
                self.report(f"'{word}' is a vector, not a number", span, "'dot(query, key)' is the product of two")
                return None
            case AxisName(last=None):
                self.report(
                    f"'{value.name}' is {'a part' if value.part else 'an axis'}, not a number",
                    span,
                    f"write 'q.{value.name}', 'k.{value.name}' or '{value.name}.size'",
                )
                return None
            case AxisName():
                return value.last
            case FunctionValue():
                name = value.node.name.text
                arguments = ", ".join(p.text for p in value.node.parameters)
                self.report(f"'{name}' is a function", span, f"call it: '{name}({arguments})'")
                return None
            case MaskValue() | LetValue():
                raise AssertionError("masks and lets are inlined where their name is read")
            case _:
                return value

    @abstractmethod
    def part_named(self, node: syntax.Expression, scope: Scope, reading: Reading) -> AxisName | None:
        """The part or axis that an expression names, if it is such a name."""

    @abstractmethod
    def in_part(self, item: Value, part: AxisName, node: syntax.Comparison, reading: Reading) -> Expr | None:
        """`item in part`."""

    # ---- operators

    def operation(
        self,
        node: syntax.Unary | syntax.Binary | syntax.Comparison | syntax.BooleanOperation | syntax.Conditional,
        scope: Scope,
        reading: Reading,
    ) -> Expr | None:
        """An operator with its operands."""
        span = node.span
        match node:
            case syntax.Unary():
                operand = self.number(node.operand, scope, reading)
                if operand is None:
                    return None
                apply = {"-": typed.minus, "+": typed.plus, "~": typed.inverted, "not": typed.negation}[node.operator]
                return self.made(span, apply, operand)
            case syntax.Binary():
                left, right = self.number(node.left, scope, reading), self.number(node.right, scope, reading)
                if left is None or right is None:
                    return None
                op = typed.ARITHMETIC[node.operator]
                return self.made(span, typed.arithmetic, op, left, right)
            case syntax.Comparison():
                return self._comparison(node, scope, reading)
            case syntax.BooleanOperation():
                return self._boolean_operation(node, scope, reading)
            case syntax.Conditional():
                self._lint_conditional(node)
                return self.select(span, node.condition, node.then, node.otherwise, scope, reading)
            case _:
                assert_never(node)

    def select(
        self,
        span: Span,
        condition: syntax.Expression,
        then: syntax.Expression,
        otherwise: syntax.Expression,
        scope: Scope,
        reading: Reading,
    ) -> Expr | None:
        """`then if condition else otherwise`, `where(condition, then, otherwise)`."""
        test = self.boolean(condition, scope, reading, "a condition is a boolean")
        with self.assuming(test, True, reading):
            chosen = self.number(then, scope, reading)
        with self.assuming(test, False, reading):
            other = self.number(otherwise, scope, reading)
        if test is None or chosen is None or other is None:
            return None
        return self.made(span, typed.select, test, chosen, other)

    def _boolean_operation(self, node: syntax.BooleanOperation, scope: Scope, reading: Reading) -> Expr | None:
        """`a and b and c`; where `b` is read, `a` holds (with `or`: does not hold)."""
        operands: list[Expr | None] = []
        with ExitStack() as assumptions:
            for operand in node.operands:
                operands.append(self.boolean(operand, scope, reading, f"'{node.operator}' takes booleans"))
                assumptions.enter_context(self.assuming(operands[-1], node.operator == "and", reading))
        return self._chain(BinaryOp(node.operator), operands, node.span)

    def _chain(self, op: BinaryOp, operands: Sequence[Expr | None], span: Span) -> Expr | None:
        """`a and b and c`, as a balanced tree (there may be many); None if one operand is."""
        if len(operands) == 1:
            return operands[0]
        middle = (len(operands) + 1) // 2
        left, right = self._chain(op, operands[:middle], span), self._chain(op, operands[middle:], span)
        if left is None or right is None:
            return None
        return self.made(span, typed.logical, op, left, right)

    def _comparison(self, node: syntax.Comparison, scope: Scope, reading: Reading) -> Expr | None:
        """`a < b <= c` is `a < b and b <= c`."""
        self._lint_comparison(node)
        if len(node.comparators) == 1 and node.comparators[0].text.endswith("in"):
            part = self.part_named(node.operands[1], scope, reading)
            if part is not None:
                found = self.in_part(self.value(node.operands[0], scope, reading), part, node, reading)
                negated = found is not None and node.comparators[0].text == "not in"
                return self.made(node.span, typed.negation, found) if found is not None and negated else found
        operands: list[Expr | None] = []
        for position, operand in enumerate(node.operands):
            is_container = position > 0 and node.comparators[position - 1].text.endswith("in")
            operands.append(None if is_container else self.number(operand, scope, reading))
        links: list[Expr | None] = []
        for position, comparator in enumerate(node.comparators):
            left, right = operands[position], operands[position + 1]
            left_node, right_node = node.operands[position], node.operands[position + 1]
            span = Span(node.span.source, left_node.span.start, right_node.span.end)
            if comparator.text.endswith("in"):
                if position + 1 < len(node.comparators):
                    self.report("no comparison can follow 'in'", node.comparators[position + 1].span, "add brackets")
                    return None
                link = self._membership(left, right_node, span, scope, reading)
                if link is not None and comparator.text == "not in":
                    link = self.made(span, typed.negation, link)
                links.append(link)
            elif left is None or right is None:
                links.append(None)
            else:
                op = typed.COMPARATORS[comparator.text]
                links.append(self.made(span, typed.comparison, op, left, right))
        return self._chain(BinaryOp.AND, links, node.span)

    def _membership(
        self, item: Expr | None, container: syntax.Expression, span: Span, scope: Scope, reading: Reading
    ) -> Expr | None:
        """`item in range(...)`, `item in (a, b)`, `item in row`."""
        while isinstance(container, syntax.Bracketed):
            container = container.inner
        match container:
            case syntax.Tuple(items=items):
                options = [self.number(i, scope, reading) for i in items]
                if not options:
                    self.report("an empty tuple holds nothing", container.span)
                    return None
                if item is None:
                    return None
                links = [
                    None if o is None else self.made(span, typed.comparison, BinaryOp.EQ, item, o) for o in options
                ]
                return self._chain(BinaryOp.OR, links, span)
            case syntax.Call(function=syntax.Name(text="range")) if scope.find("range") is None:
                parts = self.positional(container, scope, reading)
                known = [p for p in parts or () if p is not None]
                if item is None or parts is None or len(known) < len(parts):
                    return None
                return self.made(span, folds.in_range, item, known, container.span)
            case syntax.Unreadable():
                return None
            case _:
                return self.in_row(item, self.value(container, scope, reading), container.span, span, reading)

    # ---- lints

    def _lint_conditional(self, node: syntax.Conditional) -> None:
        if isinstance(node.otherwise, syntax.BooleanOperation):
            operator = node.otherwise.operator
            self.warn(
                f"everything behind 'else' belongs to it, '{operator}' included",
                node.otherwise.span,
                "put brackets around the conditional, or around what follows 'else'",
            )

    def _lint_comparison(self, node: syntax.Comparison) -> None:
        if len(node.comparators) < 2:
            return
        for operand in node.operands[1:-1]:
            if isinstance(operand, syntax.Binary) and operand.operator in ("&", "|", "^"):
                instead = {"&": "and", "|": "or", "^": "!="}[operand.operator]
                self.warn(
                    f"'{operand.operator}' binds tighter than comparisons: "
                    f"this is one chain through '{operand.span.text}'",
                    node.span,
                    f"write '{instead}', or put brackets around each comparison",
                )
