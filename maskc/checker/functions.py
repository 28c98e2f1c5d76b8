"""Calls of the language's own functions."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeGuard

from maskc.checker import folds, rows, typed
from maskc.checker.scope import Reading, Scope, Unknown, Value
from maskc.checker.subscripts import Subscripts
from maskc.diagnostics import Span
from maskc.expr import Bound, Count, Expr, FoldOp, Kept, Side, Type, placed
from maskc.grammar import syntax
from maskc.grammar.format import expression_text

_FOLDS = {op.value: op for op in FoldOp}
_COUNTED: dict[str, Side | Count] = {"k": Side.K, "q": Side.Q, "head": Count.HEAD}
_NUMBERS = {"min": 2, "max": 2, "clamp": 3, "where": 3}  # arguments of functions of numbers; of the others one


@dataclass(eq=False)
class Functions(Subscripts):
    """Reads calls of builtins. bound: the names of the folds around what is being read."""

    bound: list[str] = field(default_factory=list)

    def builtin(self, node: syntax.Call, name: str, scope: Scope, reading: Reading) -> Value:
        """A call of a builtin; most give numbers, `cumsum` gives a table."""
        match name:
            case "range":
                self.report("'range' can only stand behind 'in'", node.span)
                return Unknown()
            case "any" | "all" | "sum":
                return self._fold(node, _FOLDS[name], scope, reading) or Unknown()
            case "cumsum":
                return self._cumsum(node, scope, reading)
            case "dot":
                return self._dot(node, scope, reading) or Unknown()
            case "bucket":
                return self._bucket(node, scope, reading) or Unknown()
            case "rand":
                return self._rand(node, scope, reading) or Unknown()
            case "count":
                return self._count(node, reading) or Unknown()
            case _:
                return self._numbers(node, name, scope, reading) or Unknown()

    # ---- arguments

    def arguments(self, node: syntax.Call, name: str) -> list[syntax.Expression] | None:
        """The arguments of a builtin; None where one is not simply given in order."""
        given: list[syntax.Expression] = []
        for argument in node.arguments:
            if isinstance(argument, syntax.Comprehension):
                self.report_loop(name, argument)
                return None
            if argument.name is not None:
                self.report("builtin functions take their arguments in order, without names", argument.span)
                return None
            given.append(argument.value)
        return given

    def report_loop(self, name: str, loop: syntax.Comprehension) -> None:
        """Reports `... for ... in ...` where nothing runs over it."""
        self.report(f"'{name}' does not run over a range", loop.span, "'any', 'all' and 'sum' do")

    def positional(self, node: syntax.Call, scope: Scope, reading: Reading) -> list[Expr | None] | None:
        """The arguments of a builtin of numbers, in order."""
        given = self.arguments(node, node.function.span.text)
        return None if given is None else [self.number(argument, scope, reading) for argument in given]

    def _exactly(self, node: syntax.Call, name: str, wanted: int, what: str) -> list[syntax.Expression] | None:
        """The arguments of a builtin that takes so many of them; what: their names."""
        given = self.arguments(node, name)
        if given is not None and len(given) != wanted:
            self.report(f"'{name}' takes {wanted} arguments ({what}); {len(given)} given", node.span)
            return None
        return given

    # ---- functions of numbers

    def _numbers(self, node: syntax.Call, name: str, scope: Scope, reading: Reading) -> Expr | None:
        given = self.arguments(node, name)
        if given is None:
            return None
        least = _NUMBERS.get(name, 1)
        variadic = name in ("min", "max")
        if len(given) < least or (len(given) > least and not variadic):
            wanted = f"at least {least} arguments" if variadic else f"{least} argument{'s' * (least > 1)}"
            self.report(f"'{name}' takes {wanted}; {len(given)} given", node.span)
            return None
        if name == "where":
            return self.select(node.span, given[0], given[1], given[2], scope, reading)
        numbers = [self.number(argument, scope, reading) for argument in given]
        return self.made(node.span, typed.builtin, name, numbers) if _all_known(numbers) else None

    def _rand(self, node: syntax.Call, scope: Scope, reading: Reading) -> Expr | None:
        numbers = self.positional(node, scope, reading)
        return self.made(node.span, typed.rand, numbers) if numbers is not None and _all_known(numbers) else None

    def _count(self, node: syntax.Call, reading: Reading) -> Expr | None:
        """`count(k)`: how many pairs are kept along an index."""
        given = self.arguments(node, "count")
        if given is None:
            return None
        along = _COUNTED.get(given[0].text) if len(given) == 1 and isinstance(given[0], syntax.Name) else None
        if reading.line not in ("claim", ""):
            hint = "over pairs: 'reduce NAME[...] = count(...)'; over a range: 'sum(... for i in range(n))'"
            self.report("'count' can only stand in a 'claim'", node.span, hint)
        elif along is None:
            hint = "'count(k)' is how many keys the query keeps"
            self.report("'count' takes 'k', 'q' or 'head'", node.span, hint)
        else:
            return Kept(Type.INT, along, span=node.span)
        return None

    # ---- functions of tables

    def _cumsum(self, node: syntax.Call, scope: Scope, reading: Reading) -> Value:
        given = self._exactly(node, "cumsum", 2, "table, dim")
        if given is None:
            return Unknown()
        table = self.value(given[0], scope, reading)
        return self.prefix_sums(table, given[1], expression_text(given[1].span), given[0].span, reading)

    def _dot(self, node: syntax.Call, scope: Scope, reading: Reading) -> Expr | None:
        given = self._exactly(node, "dot", 2, "vector, vector")
        if given is None:
            return None
        vectors = [self.vector(self.value(argument, scope, reading), argument.span, reading) for argument in given]
        left, right = vectors
        if left is None or right is None:
            return None
        lengths = [None if table is None else table.dims[-1].extent for table, _ in (left, right)]
        return self.made(node.span, rows.dot, left[1], right[1], lengths)

    def _bucket(self, node: syntax.Call, scope: Scope, reading: Reading) -> Expr | None:
        given = self._exactly(node, "bucket", 2, "number, row")
        if given is None:
            return None
        item = self.number(given[0], scope, reading)
        where = given[1].span
        found = self.row(self.value(given[1], scope, reading), where, reading)
        if item is None or found is None:
            return None
        table = found[0]
        made = self.made(where, rows.bucket, item, *found)
        if made is not None and table.source is None and not table.sorted:
            hint = f"say so: 'input {table.name}: ... sorted'"
            self.warn(f"'bucket' needs ascending rows, and '{table.name}' is not said to have them", where, hint)
        return None if made is None else placed(made, node.span)

    # ---- folds

    def _fold(self, node: syntax.Call, op: FoldOp, scope: Scope, reading: Reading) -> Expr | None:
        """`any/all/sum(E for i in range(...))`."""
        match node.arguments:
            case (syntax.Comprehension() as loop,):
                pass
            case _:
                instead = {
                    FoldOp.ANY: "; 'x in row' asks whether a row holds x",
                    FoldOp.ALL: "",
                    FoldOp.SUM: "; over pairs: 'reduce NAME[...] = sum(...)'",
                }
                hint = f"write '{op.value}(... for i in range(n))'{instead[op]}"
                self.report(f"'{op.value}' needs a range to run over", node.span, hint)
                return None
        limits = self._limits(loop.iterable, scope, reading)
        index = Bound(Type.INT, folds.unique(loop.name.text, self.bound), span=loop.name.span)
        inner = Scope(scope)
        start, stop, step = limits or (typed.integer(0), index, typed.integer(1))
        self.define(loop.name, folds.value(start, step, index, loop.name.span), inner)
        with self._binding(index.name):
            body = self.number(loop.element, inner, reading)
        if limits is None or body is None:
            return None
        self.spend(body.size, node.span)
        count = self.tried(loop.iterable.span, folds.rounds, start, stop, step)
        return None if count is None else self.made(node.span, folds.fold, op, index, count, body, self.bound)

    def _limits(self, iterable: syntax.Expression, scope: Scope, reading: Reading) -> tuple[Expr, Expr, Expr] | None:
        """Start, stop and step of the range of a fold."""
        while isinstance(iterable, syntax.Bracketed):
            iterable = iterable.inner
        match iterable:
            case syntax.Unreadable():
                return None
            case syntax.Call(function=syntax.Name(text="range")) if scope.find("range") is None:
                parts = self.positional(iterable, scope, reading)
            case _:
                hint = "'x in row' asks whether a row holds x; 'row[i]' reads an entry"
                self.report("a fold runs over a range: 'for i in range(n)'", iterable.span, hint)
                return None
        if parts is None or not _all_known(parts):
            return None
        steady = [self.tried(part.span or iterable.span, _steady, part) for part in parts]
        return self.tried(iterable.span, folds.bounds, steady) if _all_known(steady) else None

    @contextmanager
    def _binding(self, name: str) -> Iterator[None]:
        self.bound.append(name)
        try:
            yield
        finally:
            self.bound.pop()


def _all_known(numbers: list[Expr | None]) -> TypeGuard[list[Expr]]:
    return all(number is not None for number in numbers)


def _steady(part: Expr, _: Span | None) -> Expr:
    return folds.steady(part)
