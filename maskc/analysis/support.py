"""Which few numbers decide a predicate: how it is cut into parts that tables and ranges can answer.

A part that reads one side alone, the difference of both sides, the coordinates of one axis, or positions divided by a
block size depends on few numbers, so a table over them holds all that the part can say. This module finds those numbers
from the expression and the sizes of a call; it sees no array.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from maskc.analysis.shift import along, growth
from maskc.constants import constants, joined, steps_written
from maskc.expr import (
    Binary,
    BinaryOp,
    Bound,
    Bucket,
    Coordinate,
    Expr,
    Fold,
    Index,
    Literal,
    Member,
    Offset,
    Position,
    Read,
    Side,
    Type,
    children,
    rebuild,
    walk,
)
from maskc.spec import Sizes

_TABLE = 1 << 16
"""Entries that a table of several numbers may always have; it may also have `_SHARE` per query and key."""

_SHARE = 8

_STEPS = 64
"""Steps of a fold that are written out, if all of them together have at most `_WRITTEN` nodes."""

_WRITTEN = 1 << 12


@dataclass(frozen=True)
class Dim:
    """One number that a table is indexed by.

    side: whose number it is, None for the difference query - key, in which the call's offsets are left out.
    axis: of a grid, "" for the line. divisor: the number is a position or coordinate divided by it, rounded down.
    """

    side: Side | None
    axis: str
    divisor: int = 1

    def extent(self, sizes: Sizes) -> tuple[int, int]:
        """The index of value 0 in a table, and how many values there are."""
        if self.side is None:
            q, k = (span(sizes, side, self.axis) for side in Side)
            return max(0, k - 1), max(1, q + k - 1)
        length = max(1, span(sizes, self.side, self.axis))
        first = self.first(sizes)
        low, high = first // self.divisor, (first + length - 1) // self.divisor
        return -low, high - low + 1

    def first(self, sizes: Sizes) -> int:
        """The first position that a number of one side stands for; a tensor of offsets is added elsewhere."""
        assert self.side is not None
        return (sizes.offset(self.side) or 0) if self.axis == "" else 0


@dataclass(frozen=True, eq=False)
class Arrangement:
    """A predicate with the call's constants written in and its operands grouped, and how its parts are answered.

    tables: the numbers that decide a part, by the id of the part's node. columns: likewise the side that a number
    reads, or None. rows: the side that the row of a `Member` or `Bucket` reads, where it does not read both. boxed:
    whether some part is read by coordinates, so that tiles must be cut into boxes.
    """

    predicate: Expr
    tables: Mapping[int, tuple[Dim, ...]]
    columns: Mapping[int, Side | None]
    rows: Mapping[int, Side | None]
    boxed: bool


@lru_cache(maxsize=64)
def arrange(predicate: Expr, sizes: Sizes) -> Arrangement:
    """Cut a predicate into parts. Kept for the next call of the same sizes: it is most of the host's work."""
    arranger = _Arranger(sizes)
    expr = arranger.arranged(_on_line(_unrolled(constants(predicate, sizes), sizes), sizes))
    return Arrangement(expr, arranger.tables, arranger.columns, arranger.rows, arranger.boxed(expr))


def span(sizes: Sizes, side: Side, axis: str) -> int:
    """Number of positions of a side, or of coordinates along an axis."""
    return sizes.length(side) if axis == "" else sizes.axis[axis]


def leaf(side: Side, axis: str) -> Expr:
    """The node that reads a position or coordinate."""
    return Position(Type.INT, side) if axis == "" else Coordinate(Type.INT, side, axis)


class _Arranger:
    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self.tables: dict[int, tuple[Dim, ...]] = {}
        self.columns: dict[int, Side | None] = {}
        self.rows: dict[int, Side | None] = {}
        self._alive: list[Expr] = []  # no id may be given to another node while this works

    def arranged(self, expr: Expr) -> Expr:
        """The expression with its conjunctions and disjunctions grouped; what answers its parts is noted on the way."""
        self._alive.append(expr)
        if isinstance(expr, Literal):
            return expr
        if expr.type is Type.BOOL:
            dims = self._dims(expr)
            if dims is not None:
                self.tables[id(expr)] = dims
                return expr
            if isinstance(expr, Binary) and expr.op in (BinaryOp.AND, BinaryOp.OR):
                return self._grouped(expr)
        elif _is_column(expr):
            self.columns[id(expr)] = next(iter(_sides(expr)), None)
            return expr
        changed = rebuild(expr, self.arranged)
        if isinstance(changed, Member | Bucket) and not any(map(_is_open, changed.row.indices)):
            sides = {side for index in changed.row.indices for side in _sides(index)}
            if len(sides) <= 1:
                self.rows[id(changed)] = next(iter(sides), None)
                self._alive.append(changed)
        return changed

    def boxed(self, expr: Expr) -> bool:
        """Whether a part is read by coordinates."""
        if id(expr) in self.tables:
            return any(dim.axis != "" for dim in self.tables[id(expr)])
        if id(expr) in self.columns:
            return False
        if isinstance(expr, Member | Bucket):
            return self.boxed(expr.item)
        return isinstance(expr, Coordinate) or any(map(self.boxed, children(expr)))

    def _grouped(self, expr: Binary) -> Expr:
        """Operands over the same axes become one part where a table decides it, else those over the same numbers."""
        groups = _groups(_chain(expr, expr.op), _axes)
        parts = [part for group in groups for part in self._merged(group, expr.op)]
        return joined(expr.op, [self.arranged(part) for part in parts])

    def _merged(self, parts: list[Expr], op: BinaryOp) -> list[Expr]:
        """The parts as one where a table decides them together, else in smaller groups or one by one."""
        if len(parts) == 1 or self._dims(joined(op, parts)) is not None:
            return [joined(op, parts)]
        groups = _groups(parts, self._dims)
        return parts if len(groups) == 1 else [part for group in groups for part in self._merged(group, op)]

    def _dims(self, expr: Expr) -> tuple[Dim, ...] | None:
        """The numbers that decide a predicate, if a table over them is affordable."""
        dims = None if _is_open(expr) else numbers(expr, self.sizes)
        if dims is None or len(dims) <= 1:
            return dims
        entries = math.prod(dim.extent(self.sizes)[1] for dim in dims)
        return dims if entries <= max(_TABLE, _SHARE * (self.sizes.q_len + self.sizes.k_len)) else None


def numbers(expr: Expr, sizes: Sizes) -> tuple[Dim, ...] | None:
    """The fewest numbers that decide an expression; None where line and axes are mixed over both sides."""
    places = _places(expr)
    sides, axes = {side for side, _ in places}, sorted({axis for _, axis in places})
    if len(sides) <= 1:
        return tuple(Dim(side, "") for side in sides)
    if "" in axes and len(axes) > 1:
        return None
    dims: list[Dim] = []
    for axis in axes:
        both = all((side, axis) in places for side in Side)
        if both and growth(expr, along(axis)) == 0:
            dims.append(Dim(None, axis))
        elif axis == "" and (sizes.q_offset is None or sizes.k_offset is None):
            return None  # which blocks the positions fall into is not known here
        else:
            dims += [Dim(side, axis, _divisor(expr, leaf(side, axis))) for side in Side if (side, axis) in places]
    return tuple(dims)


def _divisor(expr: Expr, place: Expr) -> int:
    """The largest d for which the expression reads `place` only as place // d; 0 where it does not read it."""
    if expr == place:
        return 1
    if isinstance(expr, Binary) and expr.op is BinaryOp.FLOORDIV and expr.left == place:
        by = expr.right
        if isinstance(by, Literal) and by.value > 0:
            return int(by.value)
    return math.gcd(*(_divisor(child, place) for child in children(expr)))


def _is_column(expr: Expr) -> bool:
    """A number of one side at most, worth reading at every position; coordinates alone are better read box by box."""
    if isinstance(expr, Position | Coordinate) or len(_sides(expr)) > 1 or _is_open(expr):
        return False
    nodes = list(walk(expr))
    looked_up = any(isinstance(n, Read | Member | Bucket | Index | Offset) for n in nodes)
    return looked_up or not any(isinstance(n, Coordinate) for n in nodes)


def _is_open(expr: Expr) -> bool:
    """Whether the index of a fold around the expression decides it."""
    return bool(_indices(expr))


def _indices(expr: Expr) -> frozenset[str]:
    """The indices of folds that an expression reads and does not run itself."""
    if isinstance(expr, Bound):
        return frozenset((expr.name,))
    found: frozenset[str] = frozenset().union(*map(_indices, children(expr)))
    return found - {expr.index.name} if isinstance(expr, Fold) else found


def _unrolled(expr: Expr, sizes: Sizes) -> Expr:
    """Short folds written out, so that tables and ranges answer each of their steps."""

    def visit(node: Expr) -> Expr:
        node = rebuild(node, visit)
        if not isinstance(node, Fold) or not isinstance(node.count, Literal):
            return node
        steps = int(node.count.value)
        if steps > _STEPS or steps * node.body.size > _WRITTEN:
            return node
        return steps_written(node, steps)

    return constants(visit(expr), sizes)


def _on_line(expr: Expr, sizes: Sizes) -> Expr:
    """The coordinates of a grid of one axis are positions."""
    if len(sizes.axes) != 1:
        return expr
    if isinstance(expr, Coordinate):
        return Position(Type.INT, expr.side)
    return rebuild(expr, lambda child: _on_line(child, sizes))


def _places(expr: Expr) -> frozenset[tuple[Side, str]]:
    """The sides and axes that an expression reads; "" is the line."""
    found = set()
    for node in walk(expr):
        if isinstance(node, Position):
            found.add((node.side, ""))
        elif isinstance(node, Coordinate):
            found.add((node.side, node.axis))
    return frozenset(found)


def _sides(expr: Expr) -> frozenset[Side]:
    return frozenset(side for side, _ in _places(expr))


def _axes(expr: Expr) -> frozenset[str]:
    return frozenset(axis for _, axis in _places(expr))


def _chain(expr: Expr, op: BinaryOp) -> list[Expr]:
    """The operands of a chain of one associative operator."""
    if isinstance(expr, Binary) and expr.op is op:
        return _chain(expr.left, op) + _chain(expr.right, op)
    return [expr]


def _groups(parts: list[Expr], key: Callable[[Expr], Any]) -> list[list[Expr]]:
    """Parts with equal keys together, in the order in which they first occur."""
    groups: dict[Any, list[Expr]] = {}
    for part in parts:
        groups.setdefault(key(part), []).append(part)
    return list(groups.values())
