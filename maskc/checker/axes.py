"""The lines `axes`, `queries`, `keys` and `packed`: the index space of a mask, as a `Layout`."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from maskc.checker import typed
from maskc.checker.inputs import Inputs
from maskc.checker.layout import Layout, document, line_end
from maskc.checker.places import named
from maskc.checker.scope import AxisName, LetValue, Reading, Scope, Table, Unknown
from maskc.checker.words import PRELUDE
from maskc.expr import BinaryOp, Count, Expr, Index, Side, Type
from maskc.grammar import syntax
from maskc.spec import Dim, DimKind, InputSpec, Part

AXES_LIMIT = 3
PARTS_LIMIT = 32


class Axes(Inputs):
    """Reads where tokens lie."""

    def layout(self, node: syntax.Mask, scope: Scope, reading: Reading) -> Layout | None:
        """The index space of a mask without its documents; its parameters are in scope. None where its lines contradict
        each other.
        """
        lines = self._axes_lines(node)
        if lines is None:
            return None
        border: Expr | None = None
        parts: dict[str, tuple[Part, ...]] = {}
        sizes = _with_lets(node, scope)
        for word, line in lines.items():
            if line.border is not None:
                border = self._border(line, line.border, sizes, reading)
            parts[word] = self._parts(line, sizes, reading)
        if "axes" not in parts:
            return Layout(
                queries=parts.get("queries", ()), keys=parts.get("keys", ()), separate=bool(parts), border=border
            )
        shared = parts["axes"]
        if border is None and len(shared) == 1 and shared[0].name is None and not reading.packs:
            return Layout(axes=shared[0].axes)
        return Layout(queries=shared, keys=shared, border=border)

    def _axes_lines(self, node: syntax.Mask) -> dict[str, syntax.Axes] | None:
        """The lines of a mask by their words; None where they do not go together."""
        lines: dict[str, syntax.Axes] = {}
        for line in (s for s in node.body if isinstance(s, syntax.Axes)):
            if line.word in lines:
                self.report(f"a mask has one '{line.word}' line", line.span)
            elif lines and "axes" in (line.word, *lines):
                self.report(
                    "'axes' is the grid that queries and keys share; 'queries' and 'keys' give each its own",
                    line.span,
                    "write either one",
                )
                return None
            else:
                lines[line.word] = line
        if len(lines) == 1 and "axes" not in lines:
            (line,) = lines.values()
            other = "keys" if line.word == "queries" else "queries"
            self.report(f"'{line.word}' needs a line '{other}'", line.span, f"for example '{other} {_shown(line)}'")
            return None
        packed = next((s for s in node.body if isinstance(s, syntax.Packed)), None)
        return lines if packed is None or not lines or self._is_packable(next(iter(lines.values())), packed) else None

    def _is_packable(self, line: syntax.Axes, packed: syntax.Packed) -> bool:
        """Whether a line can say the axes of packed documents."""
        if line.word != "axes":
            message = f"'{line.word}' and 'packed' do not go together: documents lie on one shared line"
            self.report(message, line.span, "write 'axes' below 'packed'")
        elif line.border is not None or any(axis.part is not None for axis in line.axes):
            what = "a border" if line.border is not None else "parts"
            self.report(f"the grid of a packed document cannot have {what}", line.span, "name axes only")
        elif line.span.start < packed.span.start:
            self.report("the axes of packed documents are said below 'packed'", line.span, "move this line down")
        else:
            return True
        return False

    # ---- parts

    def _parts(self, line: syntax.Axes, scope: Scope, reading: Reading) -> tuple[Part, ...]:
        """The parts of a line; one without a name where it lists axes only."""
        if all(axis.part is None for axis in line.axes):
            whole = self._gridded(None, [axis.name for axis in line.axes])
            return () if whole is None else (whole,)
        if len(line.axes) > PARTS_LIMIT:
            self.report(f"a line has at most {PARTS_LIMIT} parts", line.axes[PARTS_LIMIT].span)
        parts = [self._part(axis, scope, reading) for axis in line.axes[:PARTS_LIMIT]]
        return tuple(part for part in parts if part is not None)

    def _gridded(self, part: str | None, names: Sequence[syntax.Name]) -> Part | None:
        """A part that is one grid; None where none of its axes can be one."""
        if len(names) > AXES_LIMIT:
            self.report(f"a grid has 1 to {AXES_LIMIT} axes", names[AXES_LIMIT].span)
        known: list[str] = []
        for name in names[:AXES_LIMIT]:
            if name.text in known:
                self.report(f"this grid already has an axis '{name.text}'", name.span)
            elif name.text == "segment":
                self.report("'segment' is the number of a token's part and cannot be an axis", name.span)
            else:
                known.append(name.text)
        return Part(part, tuple(known)) if known else None

    def _part(self, node: syntax.Axis, scope: Scope, reading: Reading) -> Part | None:
        name, shape = node.name, node.part
        while isinstance(shape, syntax.Bracketed):
            shape = shape.inner
        match shape:
            case None:
                hint = f"write '{name.text}: n', '{name.text}: (y, x)' or '{name.text}: 1'"
                self.report(f"part '{name.text}' needs a size or axes", name.span, hint)
                return None
            case syntax.Tuple(items=items):
                axes = [item for item in items if isinstance(item, syntax.Name)]
                if len(axes) < len(items) or not items:
                    self.report("the axes of a part are names", shape.span, "for example '(y, x)'")
                    return None
                return self._gridded(name.text, axes)
            case syntax.Name() if scope.find(shape.text) is None:
                return self._gridded(name.text, [shape])
            case syntax.Unreadable():
                return None
            case _:
                size = self.fixed_size(shape, scope, reading, "a part")
                return None if size is None else Part(name.text, (), size)

    def _border(self, line: syntax.Axes, node: syntax.Expression, scope: Scope, reading: Reading) -> Expr | None:
        if line.word == "queries":
            self.report("a border surrounds the keys", node.span, "write it behind the 'keys' line")
            return None
        if any(axis.part is not None for axis in line.axes):
            self.report("a border surrounds one grid, not parts", node.span, "name axes only: 'axes y, x border 1'")
            return None
        return self.fixed_size(node, scope, reading, "a border")

    def name_axes(self, node: syntax.Mask, scope: Scope, reading: Reading) -> None:
        """Puts the names of axes and parts into scope."""
        layout = reading.layout or Layout()
        for name, part in _names(node, layout):
            if name.text in layout.part_names and part not in (None, name.text):
                message = f"'{name.text}' is a part; an axis of another part needs a name of its own"
                self.report(message, name.span)
            if not isinstance(scope.names.get(name.text), AxisName):
                value = named(layout, name.text)
                define = self.define_given if name.text in layout.axis_names else self.define
                define(name, Unknown() if value is None else value, scope)

    # ---- packed documents

    def packed(self, node: syntax.Packed, mask: syntax.Mask, scope: Scope, reading: Reading) -> Expr | None:
        """Enters the documents: from here on positions are theirs. The clause that keeps pairs inside a document."""
        table = self._starts(node.name, mask, scope, reading)
        layout, outside = self.layout(mask, scope, reading), reading.layout
        if outside is not None and outside.documents:
            message = "documents inside documents: the mask that uses this one is packed already"
            self.report(message, reading.use or node.span)
            layout = None
        if table is None or layout is None:
            reading.layout = None  # nothing more is known of positions, so nothing more is said about them
            for line in (s for s in mask.body if isinstance(s, syntax.Axes)):
                for axis in line.axes:
                    scope.later.pop(axis.name.text, None)
            return None
        leading = tuple(Index(Type.INT, Count.BATCH, span=node.name.span) for _ in table.dims[1:])
        tokens = {Side.Q: reading.q.line, Side.K: reading.k.line}
        documents = {s: document(line, table.name, leading, node.name.span) for s, line in tokens.items()}
        layout = replace(layout, documents=documents, around=None if outside is None else outside.around)
        reading.layout, reading.packed = layout, table.name
        reading.q, reading.k = layout.place(Side.Q), layout.place(Side.K)
        self.name_axes(mask, scope, reading)
        return typed.comparison(BinaryOp.EQ, documents[Side.Q].number, documents[Side.K].number, node.span)

    def _starts(self, name: syntax.Name, mask: syntax.Mask, scope: Scope, reading: Reading) -> InputSpec | None:
        """The input with the starts of the documents: declared above, further down, or by this line itself."""
        found = scope.find(name.text)
        if found is None and name.text not in PRELUDE:
            line = next((s for s in mask.body if isinstance(s, syntax.Input) and s.name.text == name.text), None)
            if line is not None:
                reading.early.add(id(line))
                self.input(line, scope, reading)
            else:
                reading.free.add("docs")
                dims = (Dim(DimKind.FREE, "docs"),)
                table = InputSpec(name.text, Type.INT, dims, below=line_end(), sorted=True, span=name.span)
                self.declare(table, name, scope, reading)
            found = scope.find(name.text)
        match found:
            case Table(input=table, written=()) if name.text in reading.inputs:
                return self._checked_starts(table, name)
            case Unknown():
                return None
            case _:
                self.report(f"'{name.text}' is not an input", name.span, f"add '{_STARTS.format('start')}'")
                return None

    def _checked_starts(self, table: InputSpec, name: syntax.Name) -> InputSpec | None:
        kinds = [dim.kind for dim in table.dims]
        is_list = len(kinds) in (1, 2) and kinds[:-1] in ([], [DimKind.BATCH]) and kinds[-1] in _LISTS
        if table.type is Type.INT and is_list and table.sorted:
            return table
        what = "is not sorted" if table.type is Type.INT and is_list else "is no list of starts"
        message = f"'{table.name}' {what}: 'packed' needs the first position of every document, ascending"
        self.report(message, name.span, f"declare '{_STARTS.format(table.name)}'")
        return None


_STARTS = "input {}: int[docs] of seq sorted"
_LISTS = (DimKind.FREE, DimKind.EXTENT)


def _with_lets(node: syntax.Mask, scope: Scope) -> Scope:
    """A scope that also has the lets of a mask, which sizes may read wherever they stand."""
    inner = Scope(scope)
    for statement in node.body:
        if isinstance(statement, syntax.Let) and statement.name.text not in scope.names:
            inner.names[statement.name.text] = LetValue(statement, scope)
    return inner


def _names(node: syntax.Mask, layout: Layout) -> Iterator[tuple[syntax.Name, str | None]]:
    """The names of the axes and parts of a mask; beside an axis of a part the name of the part."""
    for line in node.body:
        if not isinstance(line, syntax.Axes):
            continue
        for axis in line.axes:
            yield axis.name, None
            shape = axis.part
            while isinstance(shape, syntax.Bracketed):
                shape = shape.inner
            for item in shape.items if isinstance(shape, syntax.Tuple) else (shape,):
                if isinstance(item, syntax.Name) and item.text in layout.axis_names:
                    yield item, axis.name.text


def _shown(line: syntax.Axes) -> str:
    """The axes of a line as they are written."""
    return line.span.source.text[line.axes[0].span.start : line.axes[-1].span.end]
