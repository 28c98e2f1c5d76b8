"""Where tokens lie: parts laid end to end, grids, borders and packed documents, written out over plain positions.

A `Layout` is what the lines `axes`, `queries`, `keys` and `packed` of a mask say. From it come the `Place`s of the
query and the key, which know their coordinates in every part. `Facts` say in which parts a token may still be.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property

from maskc.checker import typed
from maskc.diagnostics import Span
from maskc.expr import (
    TRUE,
    AxisSize,
    Binary,
    BinaryOp,
    Bucket,
    Coordinate,
    Expr,
    Length,
    Offset,
    Position,
    Read,
    Row,
    Select,
    Side,
    Type,
    Unary,
    UnaryOp,
    placed,
    walk,
)
from maskc.spec import Dim, DimKind, Part

PER_TOKEN = {Side.Q: "q", Side.K: "k"}
"""Dims with one entry per query or key of a call."""
VIRTUAL = "keys inside a border have coordinates only: virtual keys have no number"


@dataclass(frozen=True)
class Cell:
    """A position as one part of its line sees it.

    test: whether it lies in the part. values: its coordinates there by axis, and its number there by the part's name;
    they mean something where `test` holds.
    """

    part: Part
    test: Expr
    values: Mapping[str, Expr]


@dataclass(frozen=True)
class Place:
    """A position that may be passed on: its number on the line, and how each part of the line sees it.

    side: whose position it is, None for one that was computed. numberless: the sentence to be said where the number is
    read of a position that has only coordinates.
    """

    line: Expr
    cells: tuple[Cell, ...] = ()
    side: Side | None = None
    numberless: str | None = None


@dataclass(frozen=True)
class Facts:
    """The parts in which the query and the key may be, by their numbers; None where nothing is known."""

    q: frozenset[int] | None = None
    k: frozenset[int] | None = None

    def possible(self, place: Place) -> frozenset[int]:
        """The numbers of the cells that a position may be in."""
        known = self.q if place.side is Side.Q else self.k if place.side is Side.K else None
        return frozenset(range(len(place.cells))) if known is None else known


NO_FACTS = Facts()


@dataclass(frozen=True)
class Document:
    """The packed document of a token, given by its position on the whole line: its number, the position of its first
    token, and its length.
    """

    token: Expr
    number: Expr
    start: Expr
    length: Expr

    @property
    def local(self) -> Expr:
        """The number of the token in its document."""
        return typed.arithmetic(BinaryOp.SUB, self.token, self.start, None)


@dataclass(frozen=True)
class Layout:
    """The index space of a mask; most fields are those of `MaskSpec`.

    documents: by side, below a `packed` line. around: that of the mask which uses this one as a predicate; sizes and
    lengths are its.
    """

    axes: tuple[str, ...] = ()
    queries: tuple[Part, ...] = ()
    keys: tuple[Part, ...] = ()
    separate: bool = False
    border: Expr | None = None
    documents: Mapping[Side, Document] = field(default_factory=dict)
    around: "Layout | None" = None

    @cached_property
    def axis_names(self) -> tuple[str, ...]:
        """Every axis, each once."""
        return tuple(dict.fromkeys((*self.axes, *(axis for part in (*self.queries, *self.keys) for axis in part.axes))))

    @cached_property
    def part_names(self) -> tuple[str, ...]:
        """Every name of a part, each once."""
        return tuple(dict.fromkeys(p.name for p in (*self.queries, *self.keys) if p.name is not None))

    def axis_size(self, axis: str) -> Expr:
        """`y.size`. The slowest axis of a packed document is as long as the document makes it."""
        if self.around is not None:
            return self.around.axis_size(axis)
        part = self.queries[0] if self.documents and self.queries else None
        if part is None or axis != part.axes[0]:
            return AxisSize(Type.INT, axis)
        length = self.documents[Side.Q].length
        others = [AxisSize(Type.INT, other) for other in part.axes[1:]]
        return _divided(length, _product(others)) if others else length

    def tokens(self, name: str) -> Expr | None:
        """How many tokens the parts of a name have; None where they differ."""
        if self.around is not None:
            return self.around.tokens(name)
        sizes = {p.tokens for p in (*self.queries, *self.keys) if p.name == name}
        return sizes.pop() if len(sizes) == 1 else None

    @cached_property
    def sizes(self) -> Mapping[str, Expr]:
        """The sizes of all axes, and of the parts of every name where they have one size."""
        sizes = {**{a: self.axis_size(a) for a in self.axis_names}, **{p: self.tokens(p) for p in self.part_names}}
        return {name: size for name, size in sizes.items() if size is not None}

    @cached_property
    def last(self) -> Mapping[str, Expr]:
        """The last coordinate along every axis, and in the parts of every name."""
        return {name: before(size) for name, size in self.sizes.items()}

    def parts(self, side: Side) -> tuple[Part, ...]:
        """The parts of one side's line; a plain grid is one without a name."""
        if self.axes:
            return (Part(None, self.axes),)
        return self.queries if side is Side.Q else self.keys

    def place(self, side: Side) -> Place:
        """The position of the query or key."""
        line: Expr = Position(Type.INT, side)
        if self.axes:
            values: dict[str, Expr] = {a: Coordinate(Type.INT, side, a) for a in self.axes}
            return Place(line, (Cell(Part(None, self.axes), TRUE, values),), side)
        if self.documents:
            line = self.documents[side].local
        border = self.border if side is Side.K else None
        return Place(line, tuple(_cells(line, self.parts(side), border)), side, None if border is None else VIRTUAL)

    def length(self, side: Side, span: Span | None) -> Expr:
        """`q_len` or `k_len`: of the document below `packed`, of the real keys inside a border."""
        if self.documents:
            return self.documents[side].length
        if self.around is not None:
            return self.around.length(side, span)
        if self.border is not None and side is Side.K:
            return self.keys[0].tokens
        return Length(Type.INT, side, span=span)


@cache
def end(side: Side) -> Expr:
    """The position behind the last one of a side."""
    return typed.arithmetic(BinaryOp.ADD, Offset(Type.INT, side), Length(Type.INT, side), None)


@cache
def line_end() -> Expr:
    """The position behind the last one of the shared line."""
    return typed.arithmetic(BinaryOp.MAX, end(Side.Q), end(Side.K), None)


def before(position: Expr) -> Expr:
    """The position before another one."""
    return typed.arithmetic(BinaryOp.SUB, position, typed.integer(1), None)


# ---- parts


def _cells(line: Expr, parts: Sequence[Part], border: Expr | None) -> Iterator[Cell]:
    """How each part of a line sees a position on it."""
    start: Expr | None = None  # of the first part, which begins where the line does
    for part in parts:
        stop = part.tokens if start is None else typed.arithmetic(BinaryOp.ADD, start, part.tokens, None)
        index = line if start is None else typed.arithmetic(BinaryOp.SUB, line, start, None)
        values = _coordinates(index, part.axes, border)
        if part.name is not None:
            values.setdefault(part.name, index)
        yield Cell(part, _between(line, start, None if part is parts[-1] else stop), values)
        start = stop


def _between(line: Expr, start: Expr | None, stop: Expr | None) -> Expr:
    """start <= line < stop, without the bounds that hold anyway."""
    lower = None if start is None else typed.comparison(BinaryOp.GE, line, start, None)
    upper = None if stop is None else typed.comparison(BinaryOp.LT, line, stop, None)
    if lower is None or upper is None:
        return lower or upper or TRUE
    return typed.logical(BinaryOp.AND, lower, upper, None)


def _coordinates(index: Expr, axes: tuple[str, ...], border: Expr | None) -> dict[str, Expr]:
    """Row-major coordinates of a number on a grid; of a number on the grid with its border, from -border on."""
    sizes: list[Expr] = [AxisSize(Type.INT, axis) for axis in axes]
    if border is not None:
        ring = typed.arithmetic(BinaryOp.MUL, typed.integer(2), border, None)
        sizes = [typed.arithmetic(BinaryOp.ADD, size, ring, None) for size in sizes]
    values: dict[str, Expr] = {}
    for number, axis in enumerate(axes):
        value = _divided(index, _product(sizes[number + 1 :])) if number < len(axes) - 1 else index
        if number > 0:
            value = typed.arithmetic(BinaryOp.MOD, value, sizes[number], None)
        values[axis] = value if border is None else typed.arithmetic(BinaryOp.SUB, value, border, None)
    return values


def _product(sizes: Sequence[Expr]) -> Expr:
    product = sizes[0]
    for size in sizes[1:]:
        product = typed.arithmetic(BinaryOp.MUL, product, size, None)
    return product


def _divided(number: Expr, divisor: Expr) -> Expr:
    return typed.arithmetic(BinaryOp.FLOORDIV, number, divisor, None)


def segment(place: Place) -> Expr:
    """The number of the part that a position lies in."""
    value: Expr = typed.integer(len(place.cells) - 1)
    for number in reversed(range(len(place.cells) - 1)):
        value = Select(Type.INT, place.cells[number].test, typed.integer(number), value)
    return value


def in_part(place: Place, name: str) -> Expr | None:
    """Whether a position lies in a part of that name; None where its line has no such part."""
    found: Expr | None = None
    for cell in place.cells:
        if cell.part.name == name:
            found = cell.test if found is None else typed.logical(BinaryOp.OR, found, cell.test, None)
    return found


def coordinate(place: Place, name: str, facts: Facts) -> Expr | None:
    """A coordinate of a position, by axis or by the name of a part; None where no part has it.

    Of the parts that have it, those are told apart that the position may be in.
    """
    having = [n for n, cell in enumerate(place.cells) if name in cell.values]
    possible = [n for n in having if n in facts.possible(place)] or having
    if not possible:
        return None
    value = place.cells[possible[-1]].values[name]
    for cell in (place.cells[n] for n in reversed(possible[:-1])):
        value = value if cell.values[name] == value else Select(Type.INT, cell.test, cell.values[name], value)
    return value


def strays(place: Place, name: str, facts: Facts) -> list[Part]:
    """The parts without a coordinate of that name that a position may be in."""
    return [place.cells[n].part for n in sorted(facts.possible(place)) if name not in place.cells[n].values]


# ---- what is known of a token


def assumed(facts: Facts, places: Sequence[Place], condition: Expr, holds: bool) -> Facts:
    """What is known where a condition holds, or does not, beside what was known before."""
    for place in places:
        for number, cell in enumerate(place.cells):
            if cell.test == condition and not isinstance(condition, type(TRUE)):
                before = facts.possible(place)
                after = before & {number} if holds else before - {number}
                return replace(facts, **{"q" if place.side is Side.Q else "k": after})
    match condition:
        case Unary(op=UnaryOp.NOT):
            return assumed(facts, places, condition.operand, not holds)
        case Binary(op=BinaryOp.AND | BinaryOp.OR):
            left = assumed(facts, places, condition.left, holds)
            if (condition.op is BinaryOp.AND) == holds:
                return assumed(left, places, condition.right, holds)
            otherwise = assumed(facts, places, condition.left, not holds)
            return _either(left, assumed(otherwise, places, condition.right, holds))
        case _:
            return facts


def _either(a: Facts, b: Facts) -> Facts:
    """What is known where one of two things is."""
    q = None if a.q is None or b.q is None else a.q | b.q
    return Facts(q, None if a.k is None or b.k is None else a.k | b.k)


# ---- masks used as predicates


def seen(place: Place, parts: tuple[Part, ...], here: Layout, facts: Facts, mask: str) -> Place:
    """A position of the layout `here` as a mask with other `parts` sees it; `mask` is that mask's name.

    A mask without axes sees the number on the whole line. One with a grid of some axes sees the row-major number on
    these, if the position surely has them.
    """
    if not parts:
        return replace(place, cells=())
    if place.side is not None and parts == here.parts(place.side):
        return place
    shapes = {part.name: part.axes for part in parts}
    grid = shapes.get(None)
    cells = tuple(_restricted(cell, shapes.get(cell.part.name, ()) if grid is None else grid) for cell in place.cells)
    changed = replace(place, cells=cells, numberless=f"tokens of other parts have no number in mask '{mask}'")
    if grid is None or place.numberless or any(strays(changed, axis, facts) for axis in grid):
        return changed
    values = [coordinate(changed, axis, facts) for axis in grid]
    line: Expr | None = None
    for axis, value in zip(grid, values, strict=True):
        assert value is not None
        if line is not None:
            line = typed.arithmetic(BinaryOp.MUL, line, here.axis_size(axis), None)
            value = typed.arithmetic(BinaryOp.ADD, line, value, None)
        line = value
    assert line is not None
    return replace(changed, line=line, numberless=None)


def _restricted(cell: Cell, axes: tuple[str, ...]) -> Cell:
    names = {*axes, cell.part.name} if axes else {cell.part.name}
    return replace(cell, values={name: value for name, value in cell.values.items() if name in names})


# ---- packed documents


def document(token: Expr, table: str, leading: tuple[Expr, ...], span: Span) -> Document:
    """The document of a token from the table of starts. leading: its index along `batch`, if it has that dim."""
    one = typed.integer(1)
    preceding = Bucket(Type.INT, token, Row(table, leading), span=span)
    number = typed.arithmetic(BinaryOp.SUB, preceding, one, span)
    following = typed.arithmetic(BinaryOp.ADD, number, one, None)
    start = Read(Type.INT, table, (*leading, number), span=span)
    following_start = Read(Type.INT, table, (*leading, following), span=span)
    # Behind the last document a start reads as 0; that document ends with the line.
    is_inner = typed.comparison(BinaryOp.GT, following_start, start, None)
    stop = Select(Type.INT, is_inner, following_start, line_end())
    return Document(token, number, start, typed.arithmetic(BinaryOp.SUB, stop, start, None))


def position_in_documents(index: Expr, layout: Layout) -> Expr:
    """The position of the token of that number in the document of the pair; -1 outside of the document."""
    sides = {node.side for node in walk(index) if isinstance(node, Position)}
    document = layout.documents[Side.K if sides == {Side.K} else Side.Q]
    if index == document.local:
        return placed(document.token, index.span)
    inside = typed.logical(
        BinaryOp.AND,
        typed.comparison(BinaryOp.GE, index, typed.integer(0), None),
        typed.comparison(BinaryOp.LT, index, document.length, None),
        None,
    )
    position = typed.arithmetic(BinaryOp.ADD, document.start, index, None)
    return Select(Type.INT, inside, position, typed.integer(-1), span=index.span)


# ---- tables


def entry(dim: Dim, index: Expr, layout: Layout) -> Expr:
    """The index along a dim for an index as it is written.

    A dim `q` or `k` counts the tokens of this call, everything else counts positions; below `packed` an index of a
    dim with one entry per token counts the tokens of the document.
    """
    per_token = dim.kind is DimKind.EXTENT and dim.text in PER_TOKEN.values()
    if layout.documents and (per_token or dim.kind is DimKind.SEQ):
        index = position_in_documents(index, layout)
    if per_token:
        return Binary(Type.INT, BinaryOp.SUB, index, Offset(Type.INT, Side(dim.text)), span=index.span)
    return index
