"""Expressions as Triton text: what is computed once, per query, per key or per pair, and how each operator is written.

A `Writer` turns settled expressions into assignments, as Python `ast` nodes that `ast.unparse` prints. Floats that
decide a pair are float64, those of a score are float32; integers have the width INTEGER that the launch chose. Types,
names and ranges are taken to be right.
"""

import ast
import keyword
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import assert_never

from maskc.codegen.atoms import Negated, Plus, RowBound, Times, row_bounds
from maskc.codegen.settle import Depends, common_digit, depends, terms_of
from maskc.expr import (
    COMPARISONS,
    TRUE,
    AxisSize,
    Binary,
    BinaryOp,
    Bound,
    Bucket,
    Cast,
    Coordinate,
    Count,
    Dot,
    Expr,
    FinalScore,
    Fold,
    FreeSize,
    Index,
    Kept,
    Length,
    Literal,
    Member,
    Offset,
    Parameter,
    Position,
    Rand,
    Read,
    Row,
    Scale,
    Score,
    Select,
    Side,
    Total,
    Type,
    Unary,
    UnaryOp,
    Weight,
    children,
    conjuncts,
    rebuild,
)
from maskc.spec import DimKind, MaskSpec


def name(text: str) -> ast.expr:
    """A name."""
    return ast.Name(text)


def parsed(text: str) -> ast.expr:
    """A Python expression given as text."""
    return ast.parse(text, mode="eval").body


def call(function: str, *arguments: ast.expr, **keywords: ast.expr) -> ast.expr:
    """function(arguments, keyword=...)."""
    return ast.Call(parsed(function), list(arguments), [ast.keyword(k, v) for k, v in keywords.items()])


def method(value: ast.expr, attribute: str, *arguments: ast.expr) -> ast.expr:
    """value.attribute(arguments)."""
    return ast.Call(ast.Attribute(value, attribute), list(arguments), [])


def infix(left: ast.expr, op: ast.operator, right: ast.expr) -> ast.expr:
    """Left op right."""
    return ast.BinOp(left, op, right)


def compared(left: ast.expr, op: ast.cmpop, right: ast.expr) -> ast.expr:
    """Left op right."""
    return ast.Compare(left, [op], [right])


def both(parts: Iterable[ast.expr]) -> ast.expr | None:
    """All of them, or None for none."""
    result: ast.expr | None = None
    for part in parts:
        result = part if result is None else infix(result, ast.BitAnd(), part)
    return result


@dataclass(frozen=True)
class Assignment:
    """One line of a kernel; the comment says it in the mask language."""

    target: str
    value: ast.expr
    comment: str = ""
    sign: str = "="

    def __str__(self) -> str:
        text = f"{self.target} {self.sign} {unparsed(self.value)}"
        return f"{text}  # {self.comment}" if self.comment and len(text) + len(self.comment) < 100 else text


@dataclass
class Names:
    """Hands out identifiers that are not taken, and no identifier twice."""

    taken: set[str]
    counts: Counter[str] = field(default_factory=Counter)

    def exact(self, wanted: str) -> str:
        """`wanted`, with underscores behind it while it is taken."""
        while wanted in self.taken or keyword.iskeyword(wanted):
            wanted += "_"
        self.taken.add(wanted)
        return wanted

    def fresh(self, stem: str) -> str:
        """`stem`, or with a number behind it."""
        while True:
            self.counts[stem] += 1
            wanted = stem if self.counts[stem] == 1 else f"{stem}_{self.counts[stem]}"
            if wanted not in self.taken and not keyword.iskeyword(wanted):
                return wanted


@dataclass(frozen=True)
class Symbols:
    """The kernel arguments that stand for a spec's inputs, parameters and axis sizes; the helpers that are called."""

    inputs: Mapping[str, str]
    parameters: Mapping[str, str]
    axes: Mapping[str, str]
    helpers: set[str] = field(default_factory=set)


@dataclass
class Body:
    """The assignments of one loop: vectors of the side that it walks, and pairs.

    memo, named: what has a name already, by expression and by text. costly: vectors that take many instructions.
    """

    names: Names
    inner: list[Assignment] = field(default_factory=list)
    pair: list[Assignment] = field(default_factory=list)
    memo: dict[tuple[int, bool], ast.expr] = field(default_factory=dict)
    named: dict[str, ast.expr] = field(default_factory=dict)
    costly: set[str] = field(default_factory=set)


class Edge(Enum):
    """An end of the rows that bounds keep."""

    FIRST = "first"
    LAST = "last"


EDGES: Mapping[BinaryOp, Edge] = {
    BinaryOp.GT: Edge.FIRST,
    BinaryOp.GE: Edge.FIRST,
    BinaryOp.LT: Edge.LAST,
    BinaryOp.LE: Edge.LAST,
}
"""The end that a comparison `row op value` bounds."""


@dataclass(frozen=True)
class Rows:
    """Numbers of the walked side's rows, and the limits that they are compared with: where the kept ones end.

    closing: the limit that no row keeps that does not exist; `end` where no bound gives it. none: a number behind it.
    placed: whether they are numbered in the order of a digit.
    """

    numbers: ast.expr
    limits: Mapping[Edge, ast.expr]
    closing: Edge
    end: ast.expr
    none: int
    placed: bool = False

    def bounded(self, edge: Edge) -> ast.expr:
        """Whether rows are within a limit."""
        op = ast.GtE() if edge is Edge.FIRST else ast.LtE()
        return compared(self.numbers, op, self.limits.get(edge, self.end))


_Key = tuple[object, ...]

_ARITHMETIC: Mapping[BinaryOp, ast.operator] = {
    BinaryOp.ADD: ast.Add(),
    BinaryOp.SUB: ast.Sub(),
    BinaryOp.MUL: ast.Mult(),
    BinaryOp.DIV: ast.Div(),
    BinaryOp.BITAND: ast.BitAnd(),
    BinaryOp.BITOR: ast.BitOr(),
    BinaryOp.BITXOR: ast.BitXor(),
    BinaryOp.AND: ast.BitAnd(),
    BinaryOp.OR: ast.BitOr(),
    BinaryOp.TRUNCDIV: ast.FloorDiv(),
    BinaryOp.TRUNCMOD: ast.Mod(),
}

_COMPARED: Mapping[BinaryOp, ast.cmpop] = {
    BinaryOp.LT: ast.Lt(),
    BinaryOp.LE: ast.LtE(),
    BinaryOp.GT: ast.Gt(),
    BinaryOp.GE: ast.GtE(),
    BinaryOp.EQ: ast.Eq(),
    BinaryOp.NE: ast.NotEq(),
}
_HELPERS: Mapping[BinaryOp, str] = {
    BinaryOp.FLOORDIV: "_floor_divide",
    BinaryOp.MOD: "_floor_modulo",
    BinaryOp.SHL: "_shift_left",
    BinaryOp.SHR: "_shift_right",
}


class Writer:
    """Writes expressions for one kernel whose programs own tiles of one side and loop over tiles of the other.

    prelude: scalars of the whole launch. outer: scalars of one attention matrix and vectors of the owned side. What a
    loop needs besides goes into a `Body`. Vectors of the owned side are rows ([:, None]) of a tile of pairs, the others
    columns.
    """

    def __init__(self, spec: MaskSpec, owner: Side, symbols: Symbols, names: Names, *, indexed: bool = False) -> None:
        self.spec = spec
        self.owner = Depends.Q if owner is Side.Q else Depends.K
        self.inner = Depends.PAIR ^ self.owner
        self.walked = Side.K if owner is Side.Q else Side.Q
        self.symbols = symbols
        self.indexed = indexed
        self.names = names
        self.prelude: list[Assignment] = []
        self.outer: list[Assignment] = []
        self.double = False  # whether float64 arithmetic decides something
        self._interned: dict[_Key, Expr] = {}
        self._depends: dict[int, Depends] = {}
        self._reads_score: dict[int, bool] = {}
        self._uses: Counter[int] = Counter()
        self._memo: dict[tuple[int, bool], ast.expr] = {}
        self._named: dict[str, ast.expr] = {}
        self._body = Body(Names(names.taken))
        self._in_partial = False  # whether the row numbers of the walked side are at hand: in loops over partial tiles

    # What the kernels ask for.

    def body(self, *exprs: Expr | None) -> Body:
        """A loop that computes these settled expressions; what is written until the next call belongs to it."""
        self._body = Body(Names(self.names.taken))
        self._uses = Counter()
        for expr in exprs:
            if expr is not None:
                self._count(self._intern(expr))
        return self._body

    def predicate(self, expr: Expr, exists: str) -> Sequence[ast.expr]:
        """A settled predicate for a tile of pairs as what has to hold together.

        exists: the vector of which rows of the walked side there are; they alone are kept.
        """
        edges, clauses = self._conditions(expr)
        rows = self._placed(edges, clauses) or self._rows(edges)
        groups = {end: [self._write(clause, False) for clause in found] for end, found in clauses.items()}
        self._in_partial = False
        closing = rows.closing
        count = sum(map(len, (groups[Depends.PAIR], rows.limits))) - (closing in rows.limits)
        count += sum(map(bool, (groups[end] for end in (Depends.NONE, self.owner, self.inner))))
        folds = count >= _AT_ONCE
        plain = closing not in rows.limits and not folds
        if plain and not (self.indexed and rows.limits):
            groups[self.inner].insert(0, name(exists))
        parts = [rows.bounded(edge) for edge in rows.limits if edge is not closing or not folds]
        if plain and self.indexed and rows.limits:
            parts.append(rows.bounded(closing))
        if rows.placed and self.owner is Depends.K and not folds:
            # Here LLVM makes truth vectors of two comparisons; of one it does where a row's highest score is sought.
            parts = [self._helper("_between", rows.numbers, *(rows.limits[edge] for edge in Edge))]
        for end in (Depends.NONE, self.owner, self.inner):
            joined = both(groups[end])
            if joined is not None:
                known = joined if isinstance(joined, ast.Name) else self._bind(joined, end, "kept", "")
                parts.append(self._spread(known, end, Depends.PAIR))
        parts += groups[Depends.PAIR]
        while folds and len(parts) >= _AT_ONCE:
            rows, parts = self._chosen(rows, parts[:_AT_ONCE]), parts[_AT_ONCE:]
        if folds:
            parts.insert(0, rows.bounded(closing))
        # A tile-wide part comes before a scalar, so that the result has the tile's shape from there on.
        return sorted(parts, key=lambda part: isinstance(part, ast.Name))

    def _conditions(self, expr: Expr) -> tuple[dict[Edge, list[RowBound]], dict[Depends, list[Expr]]]:
        """The clauses of a predicate: bounds on the walked side's rows, and the others by what they depend on."""
        edges: dict[Edge, list[RowBound]] = {edge: [] for edge in Edge}
        clauses: dict[Depends, list[Expr]] = {end: [] for end in (Depends.NONE, self.owner, self.inner, Depends.PAIR)}
        self._in_partial = True
        for clause in conjuncts(self._intern(expr)):
            bounds = row_bounds(clause, self.spec, self.walked)
            if bounds and all(bound.op in EDGES for bound in bounds):
                for bound in bounds:
                    edges[EDGES[bound.op]].append(bound)
            elif clause != TRUE:
                clauses[self._depends_on(clause)].append(clause)
        return edges, clauses

    def number(self, expr: Expr, stem: str) -> ast.expr:
        """A settled float32 expression, ready to be combined with a tile of pairs; `stem` names it if it is one."""
        root = self._intern(expr)
        value = self._at(root, Depends.PAIR, False)
        if self._depends_on(root) is not Depends.PAIR or isinstance(value, ast.Name):
            return value
        return self._bind(value, Depends.PAIR, stem, "")

    # Sharing.

    def _intern(self, expr: Expr) -> Expr:
        """The one object that stands for all equal expressions."""
        return self._intern_with(expr, {})

    def _intern_with(self, expr: Expr, seen: dict[int, Expr]) -> Expr:
        if id(expr) in seen:
            return seen[id(expr)]
        node = rebuild(expr, lambda child: self._intern_with(child, seen))
        result = self._interned.setdefault(_key(node), node)
        seen[id(expr)] = result
        return result

    def _count(self, root: Expr) -> None:
        """Count how often each shared node is read."""
        self._uses[id(root)] += 1
        if self._uses[id(root)] == 1:
            for child in children(root):
                self._count(child)

    def _depends_on(self, expr: Expr) -> Depends:
        if id(expr) not in self._depends:
            found = depends(expr) if not children(expr) else Depends.NONE
            for child in children(expr):
                found |= self._depends_on(child)
            self._depends[id(expr)] = found
        return self._depends[id(expr)]

    def _score_in(self, expr: Expr) -> bool:
        if id(expr) not in self._reads_score:
            own = isinstance(expr, Score)
            self._reads_score[id(expr)] = own or any(self._score_in(child) for child in children(expr))
        return self._reads_score[id(expr)]

    # Places.

    def _spread(self, value: ast.expr, end: Depends, wanted: Depends) -> ast.expr:
        """A vector as rows or columns of a tile of pairs."""
        if end is wanted or end is Depends.NONE:
            return value
        if end is self.inner and _is_costly(value, self._body.costly):
            value = self._computed_once(value)
        index = "[:, None]" if end is self.owner else "[None, :]"
        return parsed(
            f"{ast.unparse(value)}{index}" if isinstance(value, ast.Name) else f"({ast.unparse(value)}){index}"
        )

    def _bind(self, value: ast.expr, end: Depends, stem: str, comment: str) -> ast.expr:
        """A name for a value, assigned where values that depend on this end belong; equal values share one."""
        outer = end in (Depends.NONE, self.owner)
        named = self._named if outer else self._body.named
        text = unparsed(value)
        if text not in named:
            names = self.names if outer else self._body.names
            target = names.fresh(stem if stem in _OWN_NAMES else stem + _SUFFIX[end])
            place = self.outer if outer else self._body.pair if end is Depends.PAIR else self._body.inner
            place.append(Assignment(target, value, comment))
            named[text] = name(target)
            if end is self.inner and _is_costly(value, self._body.costly):
                self._body.costly.add(target)
        return named[text]

    def _computed_once(self, value: ast.expr) -> ast.expr:
        """A vector of the walked side, each entry computed by one thread and handed to all that need it.

        A thread holds many columns of a tile of pairs, and every eighth thread the same: written plainly, a division of
        a vector costs a loop nearly as much as one of every pair. It is handed over where pairs are decided, and until
        then takes one register.
        """
        value = value if isinstance(value, ast.Name) else self._bind(value, self.inner, "term", "")
        assert isinstance(value, ast.Name)
        key = f"{value.id} once"
        if key not in self._body.named:
            target = self._body.names.fresh(f"{value.id}_once")
            self._body.pair.append(Assignment(target, self._helper("_once", value, name(self._lanes()))))
            self._body.named[key] = name(target)
        return self._body.named[key]

    def _memo_of(self, end: Depends) -> dict[tuple[int, bool], ast.expr]:
        return self._memo if end in (Depends.NONE, self.owner) else self._body.memo

    def _at(self, expr: Expr, wanted: Depends, double: bool) -> ast.expr:
        """The value of an expression, ready to be combined with values that depend on `wanted`."""
        end = self._depends_on(expr)
        value = self._write(expr, double, hoist=end is not wanted)
        return self._spread(value, end, wanted)

    def _write(self, expr: Expr, double: bool, hoist: bool = False) -> ast.expr:
        """The value of an expression in its own shape; named where it is read twice or computed outside its reader."""
        key = (id(expr), double and expr.type is Type.FLOAT)
        end = self._depends_on(expr)
        memo = self._memo_of(end)
        if key in memo:
            return memo[key]
        value = self._node(expr, double)
        if (
            not isinstance(value, ast.Name | ast.Constant)
            and (hoist or self._uses[id(expr)] > 1 or isinstance(expr, Read | Bucket))
            and not _is_constant(value)
        ):
            value = self._bind(value, end, self._stem(expr, end), str(expr))
        memo[key] = value
        return value

    def _stem(self, expr: Expr, end: Depends) -> str:
        match expr:
            case Read():
                return expr.input if end is not Depends.NONE else f"{expr.input}_value"
            case Parameter():
                return f"{expr.name}_value"
            case Coordinate():
                return expr.axis
            case Bucket():
                return "bucket"
            case Member():
                return "found"
            case Rand():
                return "random"
            case Binary(op=op) if op in COMPARISONS:
                return "holds"
            case Binary(op=BinaryOp.MOD | BinaryOp.TRUNCMOD):
                return "residue"
            case _:
                return "term"

    # One node.

    def _node(self, expr: Expr, double: bool) -> ast.expr:
        end = self._depends_on(expr)
        match expr:
            case Literal():
                return self._literal(expr, double)
            case Position():
                return self._position(expr.side)
            case Coordinate():
                return self._coordinate(expr)
            case Offset():
                return self._offset(expr.side)
            case Length():
                return parsed(f"{expr.side.value}_len.to(INTEGER)")
            case AxisSize():
                return self._argument(self.symbols.axes[expr.axis])
            case FreeSize():
                table, dim = free_size(self.spec, expr.name)
                return self._argument(f"{self.symbols.inputs[table]}_size_{dim}")
            case Index():
                return parsed(f"{expr.count.value}.to(INTEGER)")
            case Total():
                return parsed(_TOTALS[expr.count])
            case Parameter():
                return self._parameter(expr, double)
            case Read():
                return self._read(expr, double)
            case Score():
                return name("score")
            case Scale():
                return self._scale(double)
            case Unary():
                return self._unary(expr, double)
            case Binary(op=BinaryOp.SUB, left=Position() as position, right=Offset() as offset) if (
                position.side is offset.side
            ):
                return parsed(f"{position.side.value}_rows.to(INTEGER)")
            case Binary():
                return self._binary(expr, double)
            case Select():
                branches = (self._at(branch, end, double) for branch in (expr.then, expr.otherwise))
                return call("tl.where", self._at(expr.condition, end, False), *branches)
            case Cast():
                return self._cast(expr, double)
            case Member():
                return self._helper("_member", self._item(expr, False), *self._row(expr.row, end))
            case Bucket():
                item = self._item(expr, expr.item.type is Type.FLOAT and not self._score_in(expr.item))
                return self._helper("_bucket", item, *self._row(expr.row, end), name("INTEGER"))
            case Rand():
                return self._rand(expr, double)
            case Dot() | Fold() | Bound() | FinalScore() | Weight() | Kept():
                raise AssertionError(f"{expr} is refused before a kernel is written")
            case _:
                assert_never(expr)

    def _literal(self, expr: Literal, double: bool) -> ast.expr:
        if expr.type is not Type.FLOAT:
            return ast.Constant(expr.value)
        value = parsed(repr(expr.value)) if abs(expr.value) < float("inf") else parsed(f'float("{expr.value}")')
        if double:
            self.double = True
            return call("tl.full", parsed("()"), value, parsed("tl.float64"))
        return value

    def _argument(self, argument: str) -> ast.expr:
        """A whole number that is an argument of the kernel, in the width of the index arithmetic."""
        if all(a.target != argument for a in self.prelude):
            self.prelude.append(Assignment(argument, parsed(f"{argument}.to(INTEGER)")))
        return name(argument)

    def _offset(self, side: Side) -> ast.expr:
        """Where the call's positions begin; an entry of a tensor where batch rows begin at different ones."""
        offset = f"{side.value}_offset"
        if all(a.target != offset for a in self.prelude):
            chosen = f"({offset} if {offset}s is None else tl.load({offset}s + batch)).to(INTEGER)"
            self.prelude.append(Assignment(offset, parsed(chosen)))
        return name(offset)

    def _position(self, side: Side) -> ast.expr:
        """The positions of the queries or keys at hand."""
        end = Depends.Q if side is Side.Q else Depends.K
        memo, key = self._memo_of(end), (-3 - int(end), False)
        if key not in memo:
            position = infix(parsed(f"{side.value}_rows.to(INTEGER)"), ast.Add(), self._offset(side))
            memo[key] = self._bind(position, end, "position", "")
        return memo[key]

    def _first(self) -> ast.expr:
        """A position of the owned tile: its first one, or where the plan gives positions its last one."""
        side = "q" if self.owner is Depends.Q else "k"
        key = (-9, False)
        if key not in self._memo:
            # The number of an indexed tile says nothing of the positions that it holds.
            begin = f"tl.max({side}_rows, 0)" if self.indexed else f"({side}_tile_index * BLOCK_{side.upper()})"
            value = infix(parsed(f"{begin}.to(INTEGER)"), ast.Add(), self._offset(Side(side)))
            stem, says = ("last_owned", "last") if self.indexed else ("first_owned", "first")
            self._memo[key] = self._bind(value, Depends.NONE, stem, f"position of the tile's {says} row")
        return self._memo[key]

    def _scale(self, double: bool) -> ast.expr:
        """The scale of the call, which every kernel has as a float32."""
        self.double |= double
        return parsed(f"tl.full((), scale, tl.float{64 if double else 32})")

    def _parameter(self, expr: Parameter, double: bool) -> ast.expr:
        argument = self.symbols.parameters[expr.name]
        match expr.type:
            case Type.BOOL:
                return parsed(f"{argument} != 0")
            case Type.INT:
                return self._argument(argument)
            case Type.FLOAT:
                self.double |= double
                return parsed(f"tl.full((), {argument}, tl.float{64 if double else 32})")
            case _:
                assert_never(expr.type)

    def _coordinate(self, expr: Coordinate) -> ast.expr:
        """The digit of a row-major position; positions are never negative, so C division will do."""
        axes = self.spec.axes
        at = axes.index(expr.axis)
        value = self._position(expr.side)
        sizes = [self._argument(self.symbols.axes[axis]) for axis in axes[at + 1 :]]
        for size in reversed(sizes):
            value = infix(value, ast.FloorDiv(), size)
        if at == 0:
            return value
        return infix(value, ast.Mod(), self._argument(self.symbols.axes[expr.axis]))

    def _cast(self, expr: Cast, double: bool) -> ast.expr:
        if expr.type is Type.INT:
            return method(self._write(expr.operand, False), "to", name("INTEGER"))
        if double:
            self.double = True
            return method(self._write(expr.operand, False), "to", parsed("tl.float64"))
        near = self._difference(expr.operand)
        return near if near is not None else method(self._write(expr.operand, False), "to", parsed("tl.float32"))

    def _difference(self, expr: Expr) -> ast.expr | None:
        """float(a - b) of an owned position and the other one as the difference of two vectors of floats.

        Both are taken relative to a position of the owned tile, so that small distances are exact and large
        ones keep the relative error of a float at any length; a conversion per pair would cost as much as the dot
        product.
        """
        terms = terms_of(expr)
        positions = [(sign, term) for sign, term in terms if isinstance(term, Position)]
        others = [t for t in terms if not isinstance(t[1], Position)]
        if sorted(sign for sign, _ in positions) != [-1, 1] or {t.side for _, t in positions} != set(Side):
            return None
        if any(depends(term) is not Depends.NONE for _, term in others):
            return None
        owned, other = sorted(positions, key=lambda t: depends(t[1]) is not self.owner)
        first = self._first()
        lanes = self._vector_from(owned[1], first)
        inner = self._vector_from(other[1], first)
        left, right = (lanes, inner) if owned[0] > 0 else (inner, lanes)
        value = infix(left, ast.Sub(), right)
        for sign, term in others:
            shift = method(self._write(self._intern(term), False, hoist=True), "to", parsed("tl.float32"))
            value = infix(value, ast.Add() if sign > 0 else ast.Sub(), shift)
        return value

    def _vector_from(self, position: Expr, first: ast.expr) -> ast.expr:
        """A position's distance from the first owned one as a vector of floats, spread over the tile of pairs."""
        position = self._intern(position)
        end = self._depends_on(position)
        memo, key = self._memo_of(end), (-1 - int(end), False)
        if key not in memo:
            relative = infix(self._write(position, False), ast.Sub(), first)
            value = method(relative, "to", parsed("tl.float32"))
            stem = "lane" if end is self.owner else "distance"
            memo[key] = self._bind(value, end, stem, f"{position} from there")
        once = end is self.inner  # a conversion to floats for every column that a thread holds would show
        return self._spread(self._computed_once(memo[key]) if once else memo[key], end, Depends.PAIR)

    # Row numbers of the walked side.

    def _rows(self, edges: Mapping[Edge, Sequence[RowBound]]) -> Rows:
        """The rows of a tile beside the first and last ones that an owned row keeps."""
        limits = {edge: self._beside(*self._edge(edge, bounds)) for edge, bounds in edges.items() if bounds}
        if self.indexed:  # -1 stands for no row, which no first row keeps
            return Rows(self._numbers(), limits, Edge.FIRST, ast.Constant(0), -2)
        behind = self._beside(infix(self._length(), ast.Sub(), ast.Constant(1)), Depends.NONE)
        return Rows(self._numbers(), limits, Edge.LAST, behind, 2**31 - 1)

    def _placed(self, edges: Mapping[Edge, Sequence[RowBound]], clauses: dict[Depends, list[Expr]]) -> Rows | None:
        """Rows in the order of a digit that owned and walked rows must have in common, then of the row.

        Those with one digit from a first to a last row lie side by side in it, so that the two bounds decide the digit,
        too. It is no clause any more then. Without both bounds nothing would be gained.
        """
        common = [c for c in clauses[Depends.PAIR] if common_digit(c, self.spec) is not None]
        if self.indexed or not common or not all(edges.values()):
            return None
        clauses[Depends.PAIR].remove(common[0])
        assert isinstance(common[0], Binary)
        mine, other = common[0].left, common[0].right
        if self._depends_on(mine) is not self.owner:
            mine, other = other, mine
        block = name(f"BLOCK_{self.walked.value.upper()}")
        start = self._bind(infix(self._write(mine, False), ast.Mult(), block), self.owner, "place", "")
        places = infix(infix(self._write(other, False), ast.Mult(), block), ast.Add(), name(self._lanes()))
        ends: Mapping[Edge, tuple[ast.expr, ast.expr]] = {
            Edge.FIRST: (ast.Constant(0), block),
            Edge.LAST: (ast.Constant(-1), infix(block, ast.Sub(), ast.Constant(1))),
        }
        limits = {}
        for edge, (low, high) in ends.items():
            inside = self._helper("_held", self._beside_tile(self._edge(edge, edges[edge])[0]), low, high)
            limit = self._body.names.fresh(f"{edge.value}_place")
            self._body.pair.append(Assignment(limit, infix(start, ast.Add(), inside)))
            limits[edge] = self._spread(name(limit), self.owner, Depends.PAIR)
        numbers = self._spread(self._bind(places, self.inner, "place", ""), self.inner, Depends.PAIR)
        return Rows(numbers, limits, Edge.FIRST, limits[Edge.FIRST], -(2**31) + 255, placed=True)

    def _numbers(self) -> ast.expr:
        """What a loop compares with bounds, spread over pairs: numbers within the tile, or rows that the plan gives."""
        numbers = name(self._lanes())
        if self.indexed:
            numbers = self._computed_once(name(f"{self.walked.value}_rows"))
        return self._spread(numbers, self.inner, Depends.PAIR)

    def _lanes(self) -> str:
        """The numbers of the walked side's rows within a tile."""
        return "key_lanes" if self.walked is Side.K else "query_lanes"

    def _beside(self, limit: ast.expr, end: Depends) -> ast.expr:
        """A row number as rows of a tile are compared with it."""
        return self._spread(limit if self.indexed else self._beside_tile(limit), end, Depends.PAIR)

    def _beside_tile(self, limit: ast.expr) -> ast.expr:
        """A row number relative to the tile."""
        return infix(limit, ast.Sub(), infix(name("tile"), ast.Mult(), name(f"BLOCK_{self.walked.value.upper()}")))

    def _chosen(self, rows: Rows, conditions: Sequence[ast.expr]) -> Rows:
        """Rows where the conditions hold, elsewhere a number that no bound keeps.

        LLVM joins four and more conditions to vectors of truth values, which costs far more than the conditions. Behind
        a choice it starts anew; the numbers differ so that two choices do not become one.
        """
        kept, row = (self._body.names.fresh(stem + _SUFFIX[Depends.PAIR]) for stem in ("kept", "row"))
        for number, condition in enumerate(conditions):
            self._body.pair.append(Assignment(kept, condition, sign="&=" if number else "="))
        value = call("tl.where", name(kept), rows.numbers, ast.Constant(rows.none))
        self._body.pair.append(Assignment(row, value))
        return replace(rows, numbers=name(row), none=rows.none - 1)

    def _row_bound(self, expr: Binary) -> ast.expr | None:
        """A comparison within a condition as one of the row number, where it is one; spread over what it depends on."""
        bounds = row_bounds(expr, self.spec, self.walked) if self._in_partial else ()
        if len(bounds) != 1:
            return None
        bound = bounds[0]
        if bound.op in EDGES:
            edge = EDGES[bound.op]
            limit, end = self._edge(edge, bounds)
            op: ast.cmpop = ast.GtE() if edge is Edge.FIRST else ast.LtE()
        else:
            value, end = self._value_of(bound)
            held = self._helper("_held", value, ast.Constant(-1), self._length())
            limit, op = self._bind(held, end, f"that_{self._word()}", ""), _COMPARED[bound.op]
        if end is Depends.NONE:
            rows = name(f"{self.walked.value}_rows" if self.indexed else self._lanes())
            return compared(rows, op, self._beside(limit, end))
        return compared(self._numbers(), op, self._beside(limit, end))

    def _word(self) -> str:
        return "key" if self.walked is Side.K else "query"

    def _length(self) -> ast.expr:
        return name(f"{self.walked.value}_len")

    def _edge(self, edge: Edge, bounds: Sequence[RowBound]) -> tuple[ast.expr, Depends]:
        """The first or last row of the walked side that bounds leave, and on which end that depends.

        Held to the rows that there are and one more, so that it fits 32 bits and so does its distance from a tile.
        """
        first = edge is Edge.FIRST
        extreme = "tl.maximum" if first else "tl.minimum"
        total: ast.expr | None = None
        reach = Depends.NONE
        for bound in bounds:
            value, end = self._value_of(bound)
            reach |= end
            if bound.op in (BinaryOp.GT, BinaryOp.LT):
                value = infix(value, ast.Add() if first else ast.Sub(), ast.Constant(1))
            total = value if total is None else call(extreme, total, value)
        assert total is not None
        before_end = infix(self._length(), ast.Sub(), ast.Constant(1))
        limits = (ast.Constant(0), self._length()) if first else (ast.Constant(-1), before_end)
        held = self._helper("_held", total, *limits)
        return self._bind(held, reach, f"{edge.value}_{self._word()}", ""), reach

    def _value_of(self, bound: RowBound) -> tuple[ast.expr, Depends]:
        """What a row number is compared with, in 64 bits."""
        start = self._intern(bound.start)
        end = self._depends_on(start)
        value = self._wide(start)
        for step in bound.steps:
            match step:
                case Plus():
                    scalar = self._write(self._intern(step.scalar), False)
                    if scalar != ast.Constant(0):
                        value = infix(value, ast.Add() if step.sign > 0 else ast.Sub(), scalar)
                case Negated():
                    value = ast.UnaryOp(ast.USub(), value)
                case Times():
                    factor = self._write(self._intern(step.factor), False)
                    ends = (self._wide(x) for x in (step.low, step.high))
                    reach = (e if isinstance(e, ast.Name) else self._bind(e, Depends.NONE, "edge", "") for e in ends)
                    value = self._bind(self._helper("_multiple", value, factor, *reach), end, "multiple", "")
                case _:
                    assert_never(step)
        return value, end

    def _wide(self, expr: Expr) -> ast.expr:
        """An integer in 64 bits."""
        value = self._write(self._intern(expr), False, hoist=True)
        if isinstance(value, ast.Constant) or _is_constant(value):
            return call("tl.full", parsed("()"), value, parsed("tl.int64"))
        return method(value, "to", parsed("tl.int64"))

    # Operators.

    def _float(self, expr: Expr, end: Depends, double: bool) -> ast.expr:
        """An operand of a function, which must not be a bare number."""
        value = self._at(expr, end, double)
        if isinstance(expr, Literal) and not double:
            return call("tl.full", parsed("()"), value, parsed("tl.float32"))
        return value

    def _unary(self, expr: Unary, double: bool) -> ast.expr:
        end = self._depends_on(expr)
        op = expr.op
        match op:
            case UnaryOp.NEG:
                return ast.UnaryOp(ast.USub(), self._at(expr.operand, end, double))
            case UnaryOp.INVERT | UnaryOp.NOT:
                return ast.UnaryOp(ast.Invert(), self._at(expr.operand, end, False))
            case UnaryOp.ABS:
                return call("tl.abs", self._at(expr.operand, end, double))
            case UnaryOp.FLOOR | UnaryOp.CEIL | UnaryOp.ROUND:
                exact = not self._score_in(expr.operand)
                inner = self._float(expr.operand, end, exact)
                rounded = (
                    self._helper("_round_half_even", inner) if op is UnaryOp.ROUND else call(f"tl.{op.value}", inner)
                )
                return self._helper("_to_integer", rounded, name("INTEGER"))
            case UnaryOp.EXP | UnaryOp.LOG | UnaryOp.ERF:
                return call(f"tl.{op.value}", self._float(expr.operand, end, double))
            case UnaryOp.SQRT:
                return call("tl.sqrt" if double else "tl.sqrt_rn", self._float(expr.operand, end, double))
            case UnaryOp.RELU:
                return self._extreme("tl.maximum", self._float(expr.operand, end, double), ast.Constant(0.0))
            case UnaryOp.TANH:
                return self._helper("_tanh_double" if double else "_tanh", self._float(expr.operand, end, double))
            case UnaryOp.SIGMOID | UnaryOp.SOFTPLUS:
                return self._helper(f"_{op.value}", self._float(expr.operand, end, double))
            case _:
                assert_never(op)

    def _helper(self, function: str, *arguments: ast.expr) -> ast.expr:
        self.symbols.helpers.add(function)
        return call(function, *arguments)

    def _extreme(self, function: str, left: ast.expr, right: ast.expr) -> ast.expr:
        return call(function, left, right, propagate_nan=parsed("tl.PropagateNan.ALL"))

    def _binary(self, expr: Binary, double: bool) -> ast.expr:
        end = self._depends_on(expr)
        op = expr.op
        floats = expr.left.type is Type.FLOAT
        if op in COMPARISONS:
            bound = self._row_bound(expr)
            if bound is not None:
                return bound
            exact = floats and not (self._score_in(expr.left) or self._score_in(expr.right))
            left, right = self._at(expr.left, end, exact), self._at(expr.right, end, exact)
            holds = compared(left, _COMPARED[op], right)
            if floats and end is Depends.NONE:
                # Triton's interpreter gives a scalar comparison of floats the type of its operands when it is spread.
                return compared(call("tl.where", holds, *map(ast.Constant, (1, 0))), ast.NotEq(), ast.Constant(0))
            return holds
        if op is BinaryOp.POW:
            return self._power(expr, double)
        left, right = self._at(expr.left, end, double), self._at(expr.right, end, double)
        self.double |= double and floats
        if op in (BinaryOp.MIN, BinaryOp.MAX):
            function = "tl.minimum" if op is BinaryOp.MIN else "tl.maximum"
            return self._extreme(function, left, right) if floats else call(function, left, right)
        if op in _HELPERS:
            return self._helper(_HELPERS[op], left, right)
        return infix(left, _ARITHMETIC[op], right)

    def _power(self, expr: Binary, double: bool) -> ast.expr:
        """Repeated multiplication for small whole exponents, else through base-2 logarithm and exponential."""
        end = self._depends_on(expr)
        self.double |= double and expr.type is Type.FLOAT
        exponent = expr.right.value if isinstance(expr.right, Literal) else None
        if exponent is not None and exponent == int(exponent) and 0 <= exponent <= 64:
            return self._repeated(expr, int(exponent), double)
        base = self._float(expr.left, end, double)
        return self._helper("_power", base, self._float(expr.right, end, double))

    def _repeated(self, expr: Binary, exponent: int, double: bool) -> ast.expr:
        end = self._depends_on(expr)
        if exponent == 0:
            return self._literal(Literal(expr.type, 1.0 if expr.type is Type.FLOAT else 1), double)
        square = self._at(expr.left, end, double)
        if exponent > 1 and not isinstance(square, ast.Name | ast.Constant | ast.Subscript):
            square = self._bind(square, end, self._stem(expr.left, end), str(expr.left))
        result: ast.expr | None = None
        while True:
            if exponent & 1:
                result = square if result is None else infix(result, ast.Mult(), square)
            exponent >>= 1
            if not exponent:
                assert result is not None
                return result
            square = self._bind(infix(square, ast.Mult(), square), end, "square", "")

    # Inputs.

    def _read(self, expr: Read, double: bool) -> ast.expr:
        """One bounds-checked load: its address and its check are built from what each side contributes."""
        end = self._depends_on(expr)
        address, check = self._place(expr, end)
        return self._loaded(expr, address, check, double)

    def _row(self, row: Row, end: Depends) -> tuple[ast.expr, ...]:
        """Where a row begins, its stride and length, and whether it exists, ready for values that depend on `end`."""
        own = Depends.NONE
        for index in row.indices:
            own |= self._depends_on(index)
        first, check = self._place(row, own)
        if not isinstance(first, ast.Name):
            first = self._bind(first, own, f"{row.input}_row", "")
        pointer, last = self.symbols.inputs[row.input], len(row.indices)
        exists = parsed("tl.full((), 1, tl.int1)") if check is None else check
        if not isinstance(exists, ast.Name | ast.Call):
            exists = self._bind(exists, own, "exists", "")
        return (
            self._spread(first, own, end),
            parsed(f"{pointer}_stride_{last}.to(INTEGER)"),
            name(f"{pointer}_size_{last}"),
            self._spread(exists, own if check is not None else Depends.NONE, end),
        )

    def _item(self, expr: Member | Bucket, double: bool) -> ast.expr:
        """What is searched for, which must not be a bare number."""
        value = self._at(expr.item, self._depends_on(expr), double)
        if not isinstance(value, ast.Constant) and not _is_constant(value):
            return value
        return call("tl.full", parsed("()"), value, parsed("tl.float64") if double else name("INTEGER"))

    def _rand(self, expr: Rand, double: bool) -> ast.expr:
        """The arguments one by one, those in front mixed where they are known."""
        state, known = parsed("tl.full((), 0, tl.uint32)"), Depends.NONE
        for number, argument in enumerate(expr.arguments):
            end = known | self._depends_on(argument)
            value = self._at(argument, end, False)
            if isinstance(value, ast.Constant) or _is_constant(value):
                value = call("tl.full", parsed("()"), value, parsed("tl.int64"))
            if end is not known and number > 0:
                state = self._spread(self._bind(state, known, "state", ""), known, end)
            state, known = self._helper("_mix", state, value), end
        value = self._helper("_fraction", state)
        self.double |= double
        return method(value, "to", parsed("tl.float64")) if double else value

    def _place(self, expr: Read | Row, end: Depends) -> tuple[ast.expr, ast.expr | None]:
        """The address that indices lead to and whether it exists, None where it always does."""
        pointer = self.symbols.inputs[expr.input]
        spec = self.spec.input(expr.input)
        offsets: dict[Depends, list[ast.expr]] = {}
        checks: dict[Depends, list[ast.expr]] = {}
        for dim, (index, kind) in enumerate(zip(expr.indices, (d.kind for d in spec.dims), strict=False)):
            part = self._depends_on(index)
            counter = _is_counter(index, kind)
            value = name(str(index)) if counter else self._write(index, False)
            if not isinstance(value, ast.Name | ast.Constant):
                value = self._bind(value, part, "index", str(index))
            width = "tl.int64" if part is Depends.NONE else "INTEGER"
            wide = call("tl.full", parsed("()"), value, parsed(width)) if isinstance(value, ast.Constant) else value
            if part is Depends.NONE and not isinstance(value, ast.Constant):
                wide = method(value, "to", parsed("tl.int64"))
            stride = parsed(
                f"{pointer}_stride_{dim}" if part is Depends.NONE else f"{pointer}_stride_{dim}.to(INTEGER)"
            )
            offsets.setdefault(part, []).append(infix(wide, ast.Mult(), stride))
            if not counter:
                size = name(f"{pointer}_size_{dim}")
                checks.setdefault(part, []).append(compared(value, ast.GtE(), ast.Constant(0)))
                checks[part].append(compared(value, ast.Lt(), size))
        return self._address(name(pointer), offsets, expr, end), self._check(checks, end)

    def _address(
        self, pointer: ast.expr, offsets: dict[Depends, list[ast.expr]], expr: Read | Row, end: Depends
    ) -> ast.expr:
        for part in sorted(offsets):
            total = offsets[part][0]
            for more in offsets[part][1:]:
                total = infix(total, ast.Add(), more)
            if part is Depends.NONE and end is not Depends.NONE:
                pointer = self._bind(infix(pointer, ast.Add(), total), part, f"{expr.input}_row", "")
                continue
            if part is not end:
                total = self._spread(self._bind(total, part, "offset", ""), part, end)
            pointer = infix(pointer, ast.Add(), total)
        return pointer

    def _check(self, checks: dict[Depends, list[ast.expr]], end: Depends) -> ast.expr | None:
        parts = []
        for part in sorted(checks):
            joined = both(checks[part])
            assert joined is not None
            known = self._bind(joined, part, "exists", "")
            parts.append(self._spread(known, part, end))
        return both(parts)

    def _loaded(self, expr: Read, address: ast.expr, check: ast.expr | None, double: bool) -> ast.expr:
        guard = {} if check is None else {"mask": check, "other": ast.Constant(0)}
        value = call("tl.load", address, **guard)
        match expr.type:
            case Type.BOOL:
                return compared(value, ast.NotEq(), ast.Constant(0))
            case Type.INT:
                return self._helper("_at_least", value, name("INTEGER"))
            case Type.FLOAT:
                self.double |= double
                return method(value, "to", parsed("tl.float64" if double else "tl.float32"))
            case _:
                assert_never(expr.type)


def free_size(spec: MaskSpec, wanted: str) -> tuple[str, int]:
    """The input, and the number of its dim, that gives a free name its size."""
    return next(
        (entry.name, number)
        for entry in spec.inputs
        for number, dim in enumerate(entry.dims)
        if dim.kind is DimKind.FREE and dim.text == wanted
    )


_OWN_NAMES = (
    *("bias", "final", "slope"),
    *(f"{which}_{word}" for which in ("first", "last", "that") for word in ("key", "query")),
)
_AT_ONCE = 3
"""How many conditions LLVM leaves as they are."""
_SUFFIX: Mapping[Depends, str] = {Depends.NONE: "", Depends.Q: "_q", Depends.K: "_k", Depends.PAIR: "_qk"}
_TOTALS: Mapping[Count, str] = {
    Count.BATCH: "batches.to(INTEGER)",
    Count.HEAD: "heads.to(INTEGER)",
    Count.KV_HEAD: "(heads // group).to(INTEGER)",
}
_COUNTER_OF: Mapping[DimKind, Count] = {
    DimKind.BATCH: Count.BATCH,
    DimKind.HEAD: Count.HEAD,
    DimKind.KV_HEAD: Count.KV_HEAD,
}


def _is_counter(index: Expr, kind: DimKind) -> bool:
    """Whether an index is the batch, head or KV head on a dim of that kind, which is always in range."""
    return isinstance(index, Index) and _COUNTER_OF.get(kind) is index.count


def _is_costly(value: ast.expr, costly: Container[str]) -> bool:
    """Whether a value takes many instructions or registers, or is computed from one that does."""
    for node in ast.walk(value):
        match node:
            case ast.BinOp(op=ast.FloorDiv() | ast.Mod()):
                return True
            case ast.Call(func=ast.Name(id=called)) if called.startswith("_") and called not in _CHEAP:
                return True
            case ast.Attribute(
                value=ast.Name(id="tl"), attr="load" | "exp" | "exp2" | "log" | "log2" | "erf" | "float64"
            ):
                return True
            case ast.Name(id=called) if called in costly:
                return True
            case _:
                pass
    return False


_CHEAP = ("_at_least", "_once")


def _is_constant(value: ast.expr) -> bool:
    return isinstance(value, ast.UnaryOp) and isinstance(value.operand, ast.Constant)


def _key(node: Expr) -> _Key:
    """What makes two nodes equal, given that equal operands are one object."""
    operands = tuple(id(child) for child in children(node))
    match node:
        case Literal():
            return (Literal, node.type, repr(node.value))
        case Unary() | Binary():
            return (type(node), node.type, node.op, operands)
        case Read():
            return (Read, node.type, node.input, operands)
        case Select() | Cast():
            return (type(node), node.type, operands)
        case _:
            return (type(node), node)


def unparsed(value: ast.expr) -> str:
    """The text of a value."""
    return ast.unparse(ast.fix_missing_locations(ast.Expression(value)))


def shown(value: ast.expr) -> str:
    """The text of a value, in brackets where it is an operation."""
    text = unparsed(value)
    return f"({text})" if isinstance(value, ast.BinOp | ast.Compare | ast.IfExp) else text
