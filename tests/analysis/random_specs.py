"""Random predicates, sizes and inputs from a seed, to judge the analysis by the meaning of masks."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskc.expr import (
    AxisSize,
    Binary,
    BinaryOp,
    Bound,
    Bucket,
    Cast,
    Coordinate,
    Count,
    Expr,
    Fold,
    FoldOp,
    FreeSize,
    Index,
    Length,
    Literal,
    Member,
    Offset,
    Parameter,
    Position,
    Rand,
    Read,
    Row,
    Select,
    Side,
    Total,
    Type,
    Unary,
    UnaryOp,
)
from maskc.spec import Dim, DimKind, InputSpec, MaskSpec, ParameterSpec, PrefixSum, Sizes, Values

Arrays = dict[str, NDArray[Any]]
BOOL, INT, FLOAT = Type.BOOL, Type.INT, Type.FLOAT
Q, K = Side.Q, Side.K
_LOGIC = (BinaryOp.LT, BinaryOp.LE, BinaryOp.GT, BinaryOp.GE, BinaryOp.EQ, BinaryOp.NE)
_WHOLE = (
    *(BinaryOp.ADD, BinaryOp.SUB, BinaryOp.SUB, BinaryOp.MUL, BinaryOp.FLOORDIV, BinaryOp.FLOORDIV, BinaryOp.MOD),
    *(BinaryOp.MOD, BinaryOp.MIN, BinaryOp.MAX, BinaryOp.BITAND, BinaryOp.BITOR, BinaryOp.BITXOR),
)
_REAL = (BinaryOp.ADD, BinaryOp.SUB, BinaryOp.MUL, BinaryOp.DIV, BinaryOp.POW, BinaryOp.MIN, BinaryOp.MAX)
_INTEGRAL = (UnaryOp.FLOOR, UnaryOp.CEIL, UnaryOp.ROUND)
_FUNCTIONS = tuple(op for op in UnaryOp if op not in (UnaryOp.INVERT, UnaryOp.NOT, *_INTEGRAL))


def binary(op: BinaryOp | str, left: Expr, right: Expr) -> Expr:
    """`left op right` with the type that the operands give."""
    op = BinaryOp(op)
    logic = op in _LOGIC or op in (BinaryOp.AND, BinaryOp.OR)
    return Binary(BOOL if logic else left.type, op, left, right)


def whole(value: int) -> Expr:
    return Literal(INT, value)


@dataclass
class Draw:
    """One random call: sizes, inputs and expressions that fit them."""

    seed: int
    rng: random.Random = field(init=False)
    sizes: Sizes = field(init=False)
    inputs: Arrays = field(init=False)
    specs: tuple[InputSpec, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.sizes, offsets = self._sizes()
        self.specs, self.inputs = self._tables()
        self.inputs |= offsets
        self.sizes = replace(self.sizes, free=(("n", 9), ("m", 5), ("top", 4), ("ends", 6)))
        self.indices: list[Bound] = []  # of the folds around what is drawn

    # Sizes and inputs

    def _sizes(self) -> tuple[Sizes, Arrays]:
        r = self.rng
        rank = r.choice((0, 0, 0, 1, 2, 2, 3))
        axes = tuple((name, r.choice((1, 2, 3, 5, 7, 8, 13))) for name in "zyx"[3 - rank :])
        tokens = math.prod(size for _, size in axes) if axes else r.choice((1, 2, 17, 63, 64, 65, 130, 150))
        q_len, k_len = (tokens if r.random() < 0.5 else r.randint(0, tokens) for _ in Side)
        batch, kv_heads = r.choice((1, 1, 2)), r.choice((1, 1, 2))
        offsets: Arrays = {}
        fixed: dict[str, int | None] = {}
        for name, length in (("q_offset", q_len), ("k_offset", k_len)):
            room = tokens - length
            fixed[name] = r.randint(0, room) if r.random() < 0.7 else None
            if fixed[name] is None:
                offsets[name] = np.array([r.randint(0, room) for _ in range(batch)])
        sizes = Sizes(
            q_len=q_len,
            k_len=k_len,
            batch=batch,
            heads=kv_heads * r.choice((1, 2)),
            kv_heads=kv_heads,
            axes=axes,
            parameters=(("w", r.randint(-3, 40)), ("s", r.choice((0.5, -1.5, 3.0))), ("on", r.random() < 0.5)),
            **fixed,
        )
        return sizes, offsets

    def _tables(self) -> tuple[tuple[InputSpec, ...], Arrays]:
        generator = np.random.default_rng(self.seed)
        line, sizes = self.rng.choice((160, 160, 20)), self.sizes
        one = Dim(DimKind.SEQ, "seq")
        head, row = Dim(DimKind.HEAD, "head"), Dim(DimKind.BATCH, "batch")
        free = Dim(DimKind.FREE, "n")
        specs = (
            InputSpec("doc", INT, (one,), sorted=True),
            InputSpec("label", INT, (row, head, one)),
            InputSpec("valid", BOOL, (row, one)),
            InputSpec("width", INT, (head,)),
            InputSpec("height", FLOAT, (one,)),
            InputSpec("near", BOOL, (free,)),
            InputSpec("grid", INT, (free, Dim(DimKind.FREE, "m"))),
        )
        steps, picks = (-9, -1, 0, 0, 3, 40), generator.integers(0, 9, (3, 4))
        top, ends = Dim(DimKind.FREE, "top"), Dim(DimKind.FREE, "ends")
        specs += (
            InputSpec("route", INT, (row, Dim(DimKind.KV_HEAD, "kv_head"), one, top)),
            InputSpec("starts", INT, (row, ends), sorted=True),
            InputSpec("edges", FLOAT, (one, ends), sorted=True),
            InputSpec("steps", INT, (Dim(DimKind.EXTENT, "6", whole(6)),), sorted=True, source=Values((6,), steps)),
            InputSpec(
                "picks",
                INT,
                (Dim(DimKind.EXTENT, "3", whole(3)), Dim(DimKind.EXTENT, "4", whole(4))),
                source=Values((3, 4), tuple(picks.reshape(-1).tolist())),
            ),
            InputSpec("sums", INT, (one,), source=PrefixSum("doc", 0)),
        )
        documents = np.sort(generator.integers(0, 6, line))
        heights = generator.normal(size=line)
        heights[generator.random(line) < 0.05] = np.nan
        return specs, {
            "doc": documents,
            "sums": np.cumsum(documents),
            "route": generator.integers(-1, 9, (sizes.batch, sizes.kv_heads, line, 4)),
            "starts": np.sort(generator.integers(0, 150, (sizes.batch, 6)), -1),
            "edges": np.sort(generator.normal(size=(line, 6)), -1),
            "steps": np.array(steps),
            "picks": picks,
            "label": generator.integers(-1, 4, (sizes.batch, sizes.heads, line)),
            "valid": generator.random((sizes.batch, line)) < 0.9,
            "width": generator.integers(0, 30, sizes.heads),
            "height": heights,
            "near": generator.random(9) < 0.5,
            "grid": generator.integers(-2, 3, (6, 5)),
        }

    # Expressions

    def spec(self, clauses: int = 2, depth: int = 3) -> MaskSpec:
        parameters = tuple(ParameterSpec(name, type_, None) for name, type_ in (("w", INT), ("s", FLOAT), ("on", BOOL)))
        axes = tuple(name for name, _ in self.sizes.axes)
        kept = tuple(self.truth(depth) for _ in range(self.rng.randint(1, clauses)))
        return MaskSpec("random", parameters, axes, self.specs, kept)

    def truth(self, depth: int) -> Expr:
        r = self.rng
        kind = r.random()
        if depth <= 0:
            return self._simple()
        if kind < 0.3:
            return binary(r.choice(("and", "or")), self.truth(depth - 1), self.truth(depth - 1))
        if kind < 0.37:
            return Unary(BOOL, UnaryOp.NOT, self.truth(depth - 1))
        if kind < 0.44:
            return Select(BOOL, self.truth(depth - 2), self.truth(depth - 1), self.truth(depth - 2))
        if kind < 0.48:
            return binary(r.choice(("==", "!=")), self.truth(depth - 2), self.truth(depth - 2))
        if kind < 0.52:
            return Member(BOOL, self.number(depth - 1), self._row(depth - 1))
        if kind < 0.56:
            return self._fold(r.choice((FoldOp.ANY, FoldOp.ALL)), lambda: self.truth(depth - 1))
        if kind < 0.64:
            return binary(r.choice(_LOGIC), self.real(depth - 1), self.real(depth - 1))
        if kind < 0.75:
            return self._simple()
        return binary(r.choice(_LOGIC), self.number(depth - 1), self.number(depth - 1))

    def _simple(self) -> Expr:
        """The forms that real masks are made of."""
        r = self.rng
        q, k = self._twins()
        d = binary("-", q, k)
        choices = (
            lambda: binary("<=", k, q),
            lambda: binary("<", d, self.constant()),
            lambda: binary("==", binary("%", d, self.constant()), whole(0)),
            lambda: binary("==", binary("//", q, whole(r.randint(1, 9))), binary("//", k, whole(r.randint(1, 9)))),
            lambda: binary("==", self._read("doc", q), self._read("doc", k)),
            lambda: binary("!=", self._read("label", q), self._read("label", k)),
            lambda: self._read("valid", r.choice((q, k))),
            lambda: self._read("near", d),
            lambda: binary("<", Unary(INT, UnaryOp.ABS, d), Read(INT, "width", (Index(INT, Count.HEAD),))),
            lambda: binary("<", self._read("height", q), self._read("height", k)),
            lambda: binary("<=", Unary(INT, UnaryOp.ABS, binary("-", k, self._centre(q))), self.constant()),
            lambda: Member(BOOL, binary("//", k, whole(r.randint(1, 20))), self._route(q)),
            lambda: Member(BOOL, k, self._route(binary("//", q, whole(r.randint(1, 20))))),
            lambda: Member(BOOL, Unary(INT, UnaryOp.ABS, d), Row("picks", (whole(r.randint(0, 2)),))),
            lambda: binary("==", self._start(q), self._start(k)),
            lambda: binary("<", Bucket(INT, d, Row("steps", ())), self.constant()),
            lambda: binary("<", Rand(FLOAT, (whole(7), q, k)), Literal(FLOAT, 0.5)),
            lambda: self._fold(FoldOp.ANY, lambda: binary("==", d, Read(INT, "steps", (self.indices[-1],)))),
            lambda: Literal(BOOL, r.random() < 0.5),
            lambda: Parameter(BOOL, "on"),
        )
        return r.choice(choices)()

    def _route(self, place: Expr) -> Row:
        return Row("route", (Index(INT, Count.BATCH), Index(INT, Count.KV_HEAD), place))

    def _start(self, place: Expr) -> Expr:
        """The number of a packed document."""
        return Bucket(INT, place, Row("starts", (Index(INT, Count.BATCH),)))

    def _row(self, depth: int) -> Row:
        """Of non-negative ints and padding."""
        place = self.number(depth - 1)
        return self.rng.choice((self._route(place), Row("picks", (place,))))

    def _fold(self, op: FoldOp, body: Callable[[], Expr]) -> Expr:
        """Over few steps, none among them; the body may read the index."""
        r = self.rng
        index = Bound(INT, f"i{len(self.indices)}")
        count = r.choice((whole(r.randint(0, 4)), FreeSize(INT, "top"), binary("//", Length(INT, Q), whole(40))))
        self.indices.append(index)
        value = body()
        self.indices.pop()
        return Fold(value.type, op, index, count, value)

    def _centre(self, q: Expr) -> Expr:
        low = self.constant()
        return binary("min", binary("max", q, low), binary("-", Length(INT, K), low))

    def _twins(self) -> tuple[Expr, Expr]:
        if self.sizes.axes and self.rng.random() < 0.7:
            axis = self.rng.choice(self.sizes.axes)[0]
            return Coordinate(INT, Q, axis), Coordinate(INT, K, axis)
        return Position(INT, Q), Position(INT, K)

    def _read(self, name: str, place: Expr) -> Expr:
        table = next(t for t in self.specs if t.name == name)
        lead: list[Expr] = []
        for dim in table.dims[:-1]:
            lead.append(Index(INT, Count.BATCH if dim.kind is DimKind.BATCH else Count.HEAD))
        return Read(table.type, name, (*lead, place))

    def constant(self) -> Expr:
        r = self.rng
        return r.choice((whole(r.randint(0, 12)), whole(r.randint(-5, 70)), Parameter(INT, "w")))

    def number(self, depth: int) -> Expr:
        r = self.rng
        if depth <= 0 or r.random() < 0.2:
            return self._leaf()
        kind = r.random()
        if kind < 0.6:
            return binary(r.choice(_WHOLE), self.number(depth - 1), self.number(depth - 1))
        if kind < 0.65:
            return binary("**", self.number(depth - 1), whole(r.randint(0, 3)))
        if kind < 0.7:
            count = r.choice((whole(r.randint(-1, 66)), self._leaf()))
            return binary(r.choice(("<<", ">>")), self.number(depth - 1), count)
        if kind < 0.8:
            return Unary(
                INT, r.choice((UnaryOp.NEG, UnaryOp.ABS, UnaryOp.INVERT, UnaryOp.RELU)), self.number(depth - 1)
            )
        if kind < 0.86:
            return Select(INT, self.truth(depth - 1), self.number(depth - 1), self.number(depth - 1))
        if kind < 0.88:
            return Cast(INT, self.truth(depth - 1))
        if kind < 0.9:
            return self._fold(FoldOp.SUM, lambda: self.number(depth - 1))
        if kind < 0.92:
            return Bucket(INT, self.number(depth - 1), Row("steps", ()))
        if kind < 0.94:
            return Bucket(INT, self.real(depth - 1), Row("edges", (self.number(depth - 1),)))
        if kind < 0.97:
            return Read(INT, "grid", (self.number(depth - 1), self.number(depth - 2)))
        return Unary(INT, r.choice(_INTEGRAL), self.real(depth - 1))

    def _leaf(self) -> Expr:
        r = self.rng
        q, k = self._twins()
        return r.choice(
            (
                *(q, k, q, k, binary("-", q, k), self.constant(), Index(INT, Count.HEAD), Index(INT, Count.KV_HEAD)),
                *(Index(INT, Count.BATCH), Total(INT, Count.HEAD), Length(INT, Q), Offset(INT, Q), Offset(INT, K)),
                *(self._read("doc", q), self._read("label", k), Read(INT, "width", (Index(INT, Count.HEAD),))),
                AxisSize(INT, self.sizes.axes[0][0]) if self.sizes.axes else whole(2**40),
                *(self._start(q), self._read("sums", k), FreeSize(INT, "m"), *self.indices, *self.indices),
            )
        )

    def real(self, depth: int) -> Expr:
        r = self.rng
        if depth <= 0 or r.random() < 0.3:
            return r.choice(
                (
                    Literal(FLOAT, r.choice((0.0, 0.5, -2.0, math.inf))),
                    Parameter(FLOAT, "s"),
                    Cast(FLOAT, self.number(depth - 1)),
                    self._read("height", r.choice(self._twins())),
                    Rand(FLOAT, (self.number(depth - 1), self.number(depth - 1))),
                )
            )
        kind = r.random()
        if kind < 0.5:
            return binary(r.choice(_REAL), self.real(depth - 1), self.real(depth - 1))
        if kind < 0.87:
            return Unary(FLOAT, r.choice(_FUNCTIONS), self.real(depth - 1))
        if kind < 0.9:
            return self._fold(FoldOp.SUM, lambda: self.real(depth - 1))
        return Select(FLOAT, self.truth(depth - 1), self.real(depth - 1), self.real(depth - 1))
