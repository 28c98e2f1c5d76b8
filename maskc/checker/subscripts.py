"""Subscripts and literal tables as written: entries, rows and vectors, by what is asked for where they stand.

A table that the spec makes itself becomes an input of the mask when something reads it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from keyword import iskeyword

from maskc.checker import rows
from maskc.checker.layout import Layout, Place, entry
from maskc.checker.places import Places
from maskc.checker.scope import AxisName, FunctionValue, Reading, Scope, Table, Unknown, Value
from maskc.checker.typed import OperandError
from maskc.diagnostics import Span
from maskc.expr import Expr, Literal, Node, Read, Row, Token, Type, Vector, placed
from maskc.grammar import syntax
from maskc.spec import Dim, InputSpec, PrefixSum

_Shape = tuple[int, ...]


@dataclass(eq=False)
class Subscripts(Places):
    """Reads tables. given: the names of all inputs of the file and the library, which no made table takes."""

    given: set[str] = field(default_factory=set)

    def subscript(self, node: syntax.Subscript, scope: Scope, reading: Reading) -> Value:
        """A table with indices, as yet neither an entry nor a row."""
        indices = [self._index(index, scope, reading) for index in node.indices]
        match self.value(node.table, scope, reading):
            case Unknown():
                return Unknown()
            case Table() as table:
                known = [index for index in indices if index is not None]
                if len(known) < len(indices):
                    return Unknown()
                read = replace(table, written=(*table.written, *known), span=node.span)
                return read if self._fits(read, node.span) else Unknown()
            case Token() as token:
                word = _word(token)
                hint = f"'dot({word}, ...)' takes it as a whole"
                self.report(f"'{word}' is a vector whose entries cannot be read", node.span, hint)
            case _:
                self.report(f"'{node.table.span.text}' is not a table and cannot be indexed", node.table.span)
        return Unknown()

    def _index(self, node: syntax.Expression, scope: Scope, reading: Reading) -> Expr | None:
        index = self.number(node, scope, reading)
        return None if index is None else self.tried(node.span, lambda expr, _: rows.checked_index(expr), index)

    def _fits(self, table: Table, span: Span) -> bool:
        """Whether a table has as many dims as indices were written; warns of those that are never in range."""
        if len(table.written) > len(table.input.dims):
            self.tried(span, partial(rows.entry, table.input, table.written, lambda dim, index: index))
            return False
        mistake = rows.out_of_range(table.input, table.written)
        if mistake is not None:
            self.warn(mistake.message, mistake.span, mistake.hint)
        return True

    # ---- what is asked for

    def entry(self, table: Table, span: Span, reading: Reading) -> Expr | None:
        """A table as a number: one entry of it."""
        made = self.made(table.span or span, rows.entry, table.input, table.written, self._at(reading))
        return replace(made, input=self._brought(table.input, reading).name) if isinstance(made, Read) else None

    def row(self, value: Value, span: Span, reading: Reading) -> tuple[InputSpec, Row] | None:
        """A value as a row, and the table that it is a row of."""
        match value:
            case Unknown():
                return None
            case Table(input=table):
                made = self.tried(value.span or span, rows.row, table, value.written, self._at(reading))
                return None if made is None else (table, replace(made, input=self._brought(table, reading).name))
            case _:
                self.report(f"this is {_what(value)}, not a row", span)
                return None

    def vector(self, value: Value, span: Span, reading: Reading) -> tuple[InputSpec | None, Vector] | None:
        """A value as a vector; the table that it is a row of, if it is one."""
        return (None, value) if isinstance(value, Token) else self.row(value, span, reading)

    def in_row(self, item: Expr | None, value: Value, where: Span, span: Span, reading: Reading) -> Expr | None:
        """`item in row`; where: the place of the row."""
        if not isinstance(value, Table | Unknown):
            hint = "write a row, range(...), or a tuple such as (1, 2)"
            self.report(f"'in' needs several values on its right; this is {_what(value)}", where, hint)
            return None
        found = self.row(value, where, reading)
        if found is None or item is None:
            return None
        made = self.made(where, rows.member, item, *found)
        return None if made is None else placed(made, span)

    def _at(self, reading: Reading) -> rows.At:
        return partial(_written_index, reading.layout or Layout())

    # ---- tables that the spec makes

    def name_table(self, value: Value, name: str) -> Value:
        """A value behind `let name =`; a made table without a name takes this one."""
        if isinstance(value, Table) and value.input.source is not None and not value.input.name:
            return replace(value, input=replace(value.input, name=name))
        return value

    def _brought(self, table: InputSpec, reading: Reading) -> InputSpec:
        """A table as an input of the mask; one that is made from the same is the same."""
        if table.source is None:
            return table
        key = (table.type, table.source)
        if key not in reading.made:
            default = f"cumsum_{table.source.table}" if isinstance(table.source, PrefixSum) else "table"
            name = next(n for n in _names(table.name or default) if self._is_unused(n, reading))
            reading.made[key] = reading.inputs[name] = replace(table, name=name)
        return reading.made[key]

    def _is_unused(self, name: str, reading: Reading) -> bool:
        return not (name in reading.inputs or name in reading.taken or name in self.given or iskeyword(name))

    def prefix_sums(self, value: Value, dim: syntax.Expression, text: str, span: Span, reading: Reading) -> Value:
        """`cumsum(value, dim)`; text: the dim as it is written."""
        match value:
            case Unknown():
                return value
            case Table(reduction=True):
                self.report("'cumsum' of a reduction is not possible", span, "only what the call gives is summed up")
            case Table() if value.written:
                self.report("'cumsum' takes a whole table", value.span or span, "index its result instead")
            case Table():
                table = self._brought(value.input, reading)
                made = self.tried(span, rows.prefix_sums, table, text, dim.span)
                return Unknown() if made is None else Table(made)
            case _:
                self.report(f"'cumsum' takes a table; this is {_what(value)}", span)
        return Unknown()

    def display(self, node: syntax.List, scope: Scope, reading: Reading) -> Value:
        """`[1, 4, 16]`, `[[1, 0], [1, 1]]`."""
        leaves: list[syntax.Expression] = []
        try:
            shape = _shape(node, leaves, 1)
        except OperandError as mistake:
            self.report(mistake.message, mistake.span, mistake.hint)
            return Unknown()
        self.spend(len(leaves) // 8, node.span)  # plain entries are cheap, and there may be many
        entries = [_plain(leaf) or self._constant(leaf, scope, reading) for leaf in leaves]
        known = [e for e in entries if e is not None]
        return Table(rows.literal(shape, known)) if len(known) == len(entries) else Unknown()

    def _constant(self, node: syntax.Expression, scope: Scope, reading: Reading) -> Literal | None:
        """An entry of a literal table that is worked out."""
        expr = self.number(node, scope, reading)
        found = None if expr is None else rows.constant(expr)
        if expr is not None and found is None:
            hint = "behind 'in', a tuple such as (q, q + 1) may hold anything"
            self.report("the entries of a table are constants; this is none", node.span, hint)
        return found


def _written_index(layout: Layout, dim: Dim, index: Expr) -> Expr:
    return entry(dim, index, layout)


def _names(name: str) -> Iterator[str]:
    """The name, and others like it."""
    yield name
    number = 1
    while True:
        number += 1
        yield f"{name}_{number}"


def _plain(node: syntax.Expression) -> Literal | None:
    """A number or a boolean as it is written, with its sign."""
    match node:
        case syntax.Integer():
            return Literal(Type.INT, node.value, span=node.span)
        case syntax.Float():
            return Literal(Type.FLOAT, node.value, span=node.span)
        case syntax.Boolean():
            return Literal(Type.BOOL, node.value, span=node.span)
        case syntax.Unary(operator="-", operand=syntax.Integer() | syntax.Float() as operand):
            kind = Type.INT if isinstance(operand, syntax.Integer) else Type.FLOAT
            return Literal(kind, -operand.value, span=node.span)
        case _:
            return None


def _shape(node: syntax.List, leaves: list[syntax.Expression], depth: int) -> _Shape:
    """The shape of a table; its entries are added to `leaves`. Raises OperandError where it is not rectangular."""
    if depth > rows.DIMS_LIMIT:
        raise OperandError(f"a table has at most {rows.DIMS_LIMIT} dims", node.span)
    if not node.items:
        raise OperandError("an empty table holds nothing", node.span)
    first: _Shape | None = None
    for item in map(_unbracketed, node.items):
        shape: _Shape = ()
        if isinstance(item, syntax.List):
            shape = _shape(item, leaves, depth + 1)
        else:
            leaves.append(item)
        first = shape if first is None else first
        if len(shape) != len(first):
            raise OperandError("a table holds either numbers or rows", item.span)
        if shape != first:
            message = f"the rows of a table have one shape; this one has {_entries(shape)}, the first {_entries(first)}"
            raise OperandError(message, item.span, "fill up the shorter ones")
    assert first is not None
    return (len(node.items), *first)


def _unbracketed(node: syntax.Expression) -> syntax.Expression:
    while isinstance(node, syntax.Bracketed):
        node = node.inner
    return node


def _entries(shape: _Shape) -> str:
    return "1 entry" if shape == (1,) else f"{' x '.join(map(str, shape))} entries"


def _what(value: Value) -> str:
    """A value that was not expected, in a sentence."""
    match value:
        case Node():
            return {Type.BOOL: "a boolean", Type.INT: "a number", Type.FLOAT: "a number"}[value.type]
        case Place():
            return "a position"
        case AxisName():
            return "a part" if value.part else "an axis"
        case Token():
            return f"the vector '{_word(value)}'"
        case Table():
            return "a table"
        case FunctionValue():
            return "a function"
        case _:
            return "a mask"


def _word(token: Token) -> str:
    return "query" if token.side.value == "q" else "key"
