"""Dims of inputs and reductions, and the sizes of parts and borders: expressions of numbers, parameters and sizes.

A dim that is written with positions covers the values that the expression takes in a call.
"""

from collections.abc import Iterable

from maskc.checker import typed
from maskc.checker.elaborate import Elaborator
from maskc.checker.layout import VIRTUAL, Cell, Layout, Place, before, end, line_end
from maskc.checker.scope import AxisName, FunctionValue, MaskValue, Reading, Scope, Value
from maskc.diagnostics import did_you_mean
from maskc.expr import (
    TRUE,
    BinaryOp,
    Bucket,
    Coordinate,
    Count,
    Dot,
    Expr,
    Index,
    Length,
    Literal,
    Member,
    Parameter,
    Position,
    Rand,
    Read,
    Score,
    Side,
    Total,
    Type,
    placed,
    walk,
)
from maskc.grammar import syntax
from maskc.grammar.format import expression_text
from maskc.spec import Dim, DimKind, Part

_COUNTS = {c.value: c for c in Count}
_UNSIZED = (Position, Coordinate, Index, Read, Score, Member, Bucket, Dot, Rand)
_NOT_FREE = {"score", "mass", "weight", "query", "key", "scale", "inf"}


class Dims(Elaborator):
    """Reads dims and sizes."""

    def dim(self, node: syntax.Expression, scope: Scope, reading: Reading, range_: bool = False) -> Dim | None:
        """One dim of a table, or with `range_` what stands behind `of`."""
        layout = reading.layout or Layout()
        match node:
            case syntax.Name(text=name) if name in _COUNTS:
                return Dim(DimKind(name), name)
            case syntax.Name(text="heads"):
                self.report("a dim with one entry per head is written 'head'", node.span, "write 'head' or 'kv_head'")
                return None
            case syntax.Name(text="seq" | "q" | "k" as name):
                return self._line_dim(node, name, layout)
            case syntax.Name(text="q_len" | "k_len" as name) if layout.length(Side(name[0]), None) == Length(
                Type.INT, Side(name[0])
            ):
                side = name[0]
                hint = f"'{side}' is a dim with one entry per {'query' if side == 'q' else 'key'} of the call"
                self.warn(
                    f"entries of a dim '{name}' are counted from position 0, whatever the offset", node.span, hint
                )
                return self._extent(node, scope, reading, range_)
            case syntax.Name(text=name) if isinstance(found := scope.find(name), AxisName) and found.size is not None:
                if _changes_between_pairs(found.size):
                    self.report(f"'{name}' has a size of its own in every document", node.span, _IN_DOCUMENTS)
                    return None
                return Dim(DimKind.EXTENT, name, placed(found.size, node.span))
            case syntax.Name(text=name) if _is_free(scope.find(name)) and name not in _NOT_FREE:
                return None if self.report_later(node, scope) else self._free(node)
            case _:
                return self._extent(node, scope, reading, range_)

    def _line_dim(self, node: syntax.Name, name: str, layout: Layout) -> Dim | None:
        """`q`, `k`, `seq`: one entry per query, key or position."""
        if layout.border is not None and name != "q":
            self.report(
                f"a dim '{name}' counts the keys of a line; inside a border they have coordinates only",
                node.span,
                f"write the axes: '[{', '.join(layout.axis_names)}]'",
            )
            return None
        if name == "seq":
            if layout.separate:
                message = "'seq' is the line that queries and keys share; here they have lines of their own"
                self.report(message, node.span, "write 'q' or 'k'")
                return None
            return Dim(DimKind.SEQ, "seq")
        return Dim(DimKind.EXTENT, name, Length(Type.INT, Side(name), span=node.span))

    def _free(self, node: syntax.Name) -> Dim:
        near = did_you_mean(node.text, [*_COUNTS, "seq"], 0.8)
        if near is not None:
            self.warn(f"'{node.text}' is a size of its own, bound by the tensor", node.span, near)
        return Dim(DimKind.FREE, node.text)

    def _extent(self, node: syntax.Expression, scope: Scope, reading: Reading, range_: bool) -> Dim | None:
        """A dim that covers the values of an expression, or is as long as one of sizes and parameters."""
        layout, text = reading.layout or Layout(), expression_text(node.span)
        inner, axes = _last_values(scope, layout)
        extent = self._int(node, inner, reading, "a dim")
        if extent is None:
            return None
        if extent.kinds & set(_UNSIZED):
            self.report("a dim is sized by numbers, parameters, positions and axes", node.span)
            return None
        if _follows_positions(node, axes):
            if reading.packs and not range_:
                self.report(f"'{text}' counts from the start of each document", node.span, _IN_DOCUMENTS)
                return None
            if not _rises(node, axes):
                hint = f"write '{text}: n'" if reading.line == "reduce" else "write the size itself"
                self.report(f"how many values '{text}' takes is not clear", node.span, hint)
                return None
            extent = typed.arithmetic(BinaryOp.ADD, extent, typed.integer(1), node.span)
        if isinstance(extent, Literal) and extent.value < 0:
            self.report("a dim cannot be negative", node.span)
            return None
        return Dim(DimKind.EXTENT, text, placed(extent, node.span))

    def _int(self, node: syntax.Expression, scope: Scope, reading: Reading, what: str) -> Expr | None:
        """An int; `what` begins the sentence that is said if it is none."""
        number = self.number(node, scope, reading)
        if number is not None and number.type is not Type.INT:
            self.report(f"{what} is an int; this is {typed.TYPE_WORDS[number.type]}", node.span)
            return None
        return number

    def fixed_size(self, node: syntax.Expression, scope: Scope, reading: Reading, what: str) -> Expr | None:
        """A size that numbers, parameters and other sizes decide; `what` begins the sentence said if it is none."""
        size = self._int(node, scope, reading, what)
        if size is None:
            return None
        if size.kinds & set(_UNSIZED):
            self.report(f"{what} is sized by numbers and parameters", node.span)
            return None
        if isinstance(size, Literal) and size.value < 0:
            self.report(f"{what} cannot be negative", node.span)
            return None
        return size

    def range_of(self, dim: Dim, fact: syntax.Fact) -> Expr | None:
        """How many values the dim behind `of` can take."""
        match dim.kind:
            case DimKind.BATCH | DimKind.HEAD | DimKind.KV_HEAD:
                return Total(Type.INT, Count(dim.kind.value), span=fact.span)
            case DimKind.SEQ:
                return placed(line_end(), fact.span)
            case DimKind.EXTENT if dim.text in ("q", "k"):
                return end(Side(dim.text))
            case DimKind.EXTENT:
                return dim.extent
            case DimKind.FREE:
                self.report(
                    f"the size of '{dim.text}' is not known to the spec",
                    fact.span,
                    "write a number, a parameter, 'seq' or 'k // block'",
                )
                return None


_IN_DOCUMENTS = "below 'packed', write a dim of its own, for example 'docs', and index it with 'doc'"


def structural(dims: Iterable[Dim]) -> set[str]:
    """The parameters that size dims."""
    sizes = [e for dim in dims if dim.extent is not None for e in walk(dim.extent)]
    return {e.name for e in sizes if isinstance(e, Parameter)}


def _changes_between_pairs(size: Expr) -> bool:
    return bool(size.kinds & set(_UNSIZED))


def _is_free(found: Value | None) -> bool:
    """Whether a name in dims is a size of its own; masks and functions are no sizes, so their names may be taken."""
    return found is None or isinstance(found, MaskValue | FunctionValue)


def _last_values(scope: Scope, layout: Layout) -> tuple[Scope, tuple[str, ...]]:
    """A scope in which positions, axes and parts stand for their last values; and the names of axes and parts."""
    inner = Scope(scope)
    last = layout.last
    for side in Side:
        numberless = VIRTUAL if layout.border is not None and side is Side.K else None
        inner.names[side.value] = Place(before(end(side)), (Cell(Part(None), TRUE, last),), None, numberless)
    inner.names["seq"] = before(line_end())
    for name, value in last.items():
        inner.names[name] = AxisName(name, layout.sizes[name], last=value)
    return inner, (*layout.axis_names, *layout.part_names)


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
