"""The lines `reduce`, `output` and `rows`: what pairs give to tables, and which queries are computed at all."""

from maskc.checker import typed
from maskc.checker.dims import structural
from maskc.checker.layout import Layout, entry
from maskc.checker.normalizers import Normalizers
from maskc.checker.scope import AxisName, Reading, Scope, Table, Unknown
from maskc.checker.weights import as_float, first_read, line_of
from maskc.diagnostics import did_you_mean
from maskc.expr import TRUE, Expr, FinalScore, Score, Type, Weight
from maskc.grammar import syntax
from maskc.grammar.format import expression_text
from maskc.spec import Dim, DimKind, InputSpec, ReduceOp, Reduction, RowDefault, Rows

_REDUCTIONS = {op.value: op for op in ReduceOp}
_REDUCTION_HINT = "a reduction is sum, mean, max, min, logsumexp or count of something, for example 'sum(weight)'"

_PER_MATRIX = (Dim(DimKind.BATCH, "batch"), Dim(DimKind.HEAD, "head"))


class Reductions(Normalizers):
    """Reads reductions and rows."""

    def reduce(self, node: syntax.Reduce, scope: Scope, reading: Reading) -> bool:
        """Adds a reduction; False if the line could not be read."""
        reduction = self._gathered(node, scope, reading)
        if reduction is None:
            self.define(node.name, Unknown(), scope)
            return False
        name, value = reduction.name, reduction.value
        kind = Type.INT if reduction.op is ReduceOp.COUNT else Type.FLOAT
        table = InputSpec(name, kind, (*_PER_MATRIX, *reduction.dims), span=node.span)
        self.define(node.name, Table(table, reduction=True), scope)
        if name in reading.inputs:
            word = "output" if node.output else "reduction"
            self.report(f"this mask has an input '{name}' already", node.name.span, f"give the {word} another name")
            return False
        reading.structural |= structural(reduction.dims)
        reading.reductions[name] = reduction
        if {Weight, FinalScore} & value.kinds or first_read(value, reading.finals) is not None:
            reading.finals[name] = node.span
        return True

    def _gathered(self, node: syntax.Reduce, scope: Scope, reading: Reading) -> Reduction | None:
        """What a line gathers from pairs."""
        call = self._reduction(node.value)
        slots = [self._slot(slot, scope, reading) for slot in node.slots]
        if call is None:
            return None
        op, argument = call
        value = self._contribution(op, argument, scope, reading)
        known = [slot for slot in slots if slot is not None]
        if value is None or len(known) < len(slots):
            return None
        if self._is_of_all_pairs(node, reading):
            return None
        dims, indices = tuple(dim for dim, _ in known), tuple(index for _, index in known)
        return Reduction(node.name.text, dims, indices, op, value, node.output, span=node.span)

    def _is_of_all_pairs(self, node: syntax.Reduce, reading: Reading) -> bool:
        """Reports a table with an entry for every pair."""
        if len(node.slots) < 2:
            return False
        axes = reading.axes or ()
        written = {expression_text(slot.index.span) for slot in node.slots if slot.size is None}
        for side in ("q", "k"):
            if side not in written and not (axes and {f"{side}.{axis}" for axis in axes} <= written):
                return False
        hint = "gather blocks: '[q // 64, k // 64]', or look at a few pairs with 'maskc show --tokens'"
        self.report(f"'{node.name.text}' would have an entry for every pair: as large as all weights", node.span, hint)
        return True

    def _reduction(self, node: syntax.Expression) -> tuple[ReduceOp, syntax.Expression | None] | None:
        """The operation of a reduction and what it joins."""
        while isinstance(node, syntax.Bracketed):
            node = node.inner
        if isinstance(node, syntax.Unreadable):
            return None
        if not (isinstance(node, syntax.Call) and isinstance(node.function, syntax.Name)):
            self.report("this is no reduction", node.span, _REDUCTION_HINT)
            return None
        name = node.function.text
        if name not in _REDUCTIONS:
            hint = did_you_mean(name, _REDUCTIONS) or _REDUCTION_HINT
            self.report(f"'{name}' is no reduction", node.function.span, hint)
            return None
        arguments = [a for a in node.arguments if isinstance(a, syntax.Argument) and a.name is None]
        if len(arguments) < len(node.arguments) or len(arguments) > 1 or (not arguments and name != "count"):
            takes = "nothing or one boolean" if name == "count" else "one expression"
            hint = f"a fold stands inside: '{name}(sum(... for i in range(n)))'"
            folds = any(isinstance(a, syntax.Comprehension) for a in node.arguments)
            self.report(f"the reduction '{name}' takes {takes}", node.span, hint if folds else None)
            return None
        return _REDUCTIONS[name], arguments[0].value if arguments else None

    def _contribution(
        self, op: ReduceOp, node: syntax.Expression | None, scope: Scope, reading: Reading
    ) -> Expr | None:
        """What a kept pair contributes."""
        if node is None:
            return TRUE
        if op is ReduceOp.COUNT:
            return self.boolean(node, scope, reading, "'count' takes a boolean, or nothing")
        value = self.number(node, scope, reading)
        return None if value is None else self.made(node.span, as_float, value)

    def _slot(self, slot: syntax.Slot, scope: Scope, reading: Reading) -> tuple[Dim, Expr] | None:
        """A dim of a reduction, and the index of a pair along it."""
        node = slot.index
        if isinstance(node, syntax.Name) and node.text in ("batch", "head", "kv_head"):
            hint = "leave it out: there is one of each per batch row and head"
            self.report(f"a reduction has a dim '{node.text}' already", node.span, hint)
            return None
        index = self.number(node, scope, reading)
        if index is None:
            return None
        if index.type is Type.FLOAT:
            self.report("an index is an int; this is a float", node.span, "write 'floor(...)'")
            return None
        if {Score, FinalScore, Weight} & index.kinds or first_read(index, reading.reductions) is not None:
            self.report("an index cannot read scores, weights or reductions", node.span)
            return None
        dim = self._slot_dim(slot, scope, reading)
        return None if dim is None else (dim, entry(dim, typed.cast(index, Type.INT), reading.layout or Layout()))

    def _slot_dim(self, slot: syntax.Slot, scope: Scope, reading: Reading) -> Dim | None:
        if slot.size is not None:
            size = self.fixed_size(slot.size, scope, reading, "a dim")
            return None if size is None else Dim(DimKind.EXTENT, expression_text(slot.size.span), size)
        node = slot.index
        match node:
            case syntax.Attribute(owner=syntax.Name(text="q" | "k"), name=axis) if isinstance(
                scope.find(axis.text), AxisName
            ):
                return self.dim(axis, scope, reading)
            case _ if not any(n.text in ("q", "k") for n in syntax.names(node)):
                text = expression_text(node.span)
                self.report(f"how many entries '{text}' needs is not clear", node.span, f"write '{text}: n'")
                return None
            case _:
                return self.dim(node, scope, reading)

    # ---- rows

    def rows(self, node: syntax.Rows, scope: Scope, reading: Reading) -> bool:
        """Sets which queries are computed; False if the line could not be read."""
        if reading.rows is not None:
            self.report(f"a mask has one 'rows' line; the other is{line_of(reading.rows.span)}", node.span)
            return False
        words = [default.value for default in RowDefault]
        if node.default.text not in words:
            hint = did_you_mean(node.default.text, words) or "a row is zero, mean or pass by default"
            self.report(f"unknown default '{node.default.text}'", node.default.span, hint)
            return False
        value = self.of_row(node.value, scope, reading, "'rows'")
        computed = None if value is None else self.made(node.value.span, typed.boolean, value, "'rows' takes a boolean")
        if computed is None:
            return False
        if (name := first_read(computed, reading.reductions)) is not None:
            self.report(
                f"'rows' cannot read '{name}': reductions are made from the rows that are computed", node.value.span
            )
            return False
        layout = reading.layout or Layout()
        if node.default.text == "pass" and (layout.separate or layout.border is not None):
            hint = "write 'zero' or 'mean'"
            self.report("'pass' needs the key at the query's own position: one shared line", node.default.span, hint)
            return False
        reading.rows = Rows(computed, RowDefault(node.default.text), span=node.span)
        return True
