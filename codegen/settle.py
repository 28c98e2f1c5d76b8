"""Expressions rewritten so that little of them is left to be computed for every pair.

`settle` changes no value: constants are folded, comparisons of sums become comparisons of a query's term with a key's,
and floor division becomes C division where that is proven to be the same. `scaled` and `grouped` reorder the products
of a score, which rounds differently; predicates never go through them.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from enum import IntFlag

from maskc.analysis.bounds import value_range
from maskc.constants import written_out
from maskc.expr import (
    COMPARISONS,
    FALSE,
    TRUE,
    Binary,
    BinaryOp,
    Cast,
    Coordinate,
    Expr,
    Literal,
    Parameter,
    Position,
    Score,
    Select,
    Side,
    Type,
    Unary,
    UnaryOp,
    conjuncts,
    rebuild,
    walk,
)
from maskc.spec import MaskSpec

LOG2_E = 1.4426950408889634


class Depends(IntFlag):
    """On which ends of a pair a value depends."""

    NONE = 0
    Q = 1
    K = 2
    PAIR = 3


def depends(expr: Expr) -> Depends:
    """The ends of a pair that an expression reads."""
    found = Depends.NONE
    for node in walk(expr):
        match node:
            case Position() | Coordinate():
                found |= Depends.Q if node.side is Side.Q else Depends.K
            case Score():
                found |= Depends.PAIR
            case _:
                pass
    return found


def reads_score(expr: Expr) -> bool:
    """Whether the score that the pair starts with occurs in it."""
    return any(isinstance(node, Score) for node in walk(expr))


def settle(expr: Expr, spec: MaskSpec) -> Expr:
    """An equal expression: folds written out, constants folded, comparisons and residues taken apart by side, and C
    division where proven.
    """
    return _divided_in_c(_settled(written_out(expr)), spec, promised(spec))


def settled(spec: MaskSpec) -> MaskSpec:
    """The spec with the expressions that its kernels compute: what has to fit their integers."""
    clauses = [settle(c, spec) for c in spec.clauses]
    digits = [d for clause in clauses for part in walk(clause) for d in common_digit(part, spec) or ()]
    widest = Literal(Type.INT, WIDEST_TILE)
    places = [Binary(Type.BOOL, BinaryOp.GE, Binary(Type.INT, BinaryOp.MUL, d, widest), d) for d in digits]
    return replace(spec, clauses=(*clauses, *places), score=settle(spec.score, spec))


WIDEST_TILE = 256
"""Twice the rows of a tile at most: digits times that many rows fit the integers of a kernel."""


def common_digit(expr: Expr, spec: MaskSpec) -> tuple[Expr, Expr] | None:
    """The sides of an equation of a query's digit with a key's: residues, coordinates and quotients of them."""
    match expr:
        case Binary(op=BinaryOp.EQ, left=left, right=right) if (
            _is_digit(left, spec) and _is_digit(right, spec) and depends(left) | depends(right) is Depends.PAIR
        ):
            ends = {depends(left), depends(right)}
            return (left, right) if ends == {Depends.Q, Depends.K} else None
        case _:
            return None


def _is_digit(expr: Expr, spec: MaskSpec) -> bool:
    match expr:
        case Coordinate():
            return expr.axis != spec.axes[0]
        case Binary(type=Type.INT, op=op, left=left, right=right) if op in _IN_C or op in _IN_C.values():
            if depends(right) is not Depends.NONE or value_range(right, promised(spec), spec.inputs)[0] < 1:
                return False
            moving = [term for _, term in terms_of(left) if depends(term) is not Depends.NONE]
            return op in (BinaryOp.MOD, BinaryOp.TRUNCMOD) or all(_is_digit(term, spec) for term in moving)
        case _:
            return False


def _settled(expr: Expr) -> Expr:
    return _sided(_folded(rebuild(expr, _settled)))


def promised(spec: MaskSpec) -> dict[Expr, tuple[float, float]]:
    """Bounds of parameters that the spec claims, as in `claim window >= 1`: every call is checked for them."""
    known: dict[Expr, tuple[float, float]] = {}
    for claim in spec.claims:
        for part in conjuncts(claim.expr) if not claim.over_pairs else ():
            match part:
                case Binary(op=BinaryOp.GE, left=Parameter() as parameter, right=Literal() as limit):
                    low = float(limit.value)
                case Binary(op=BinaryOp.GT, left=Parameter() as parameter, right=Literal() as limit):
                    low = float(limit.value) + 1
                case _:
                    continue
            if parameter.type is Type.INT:
                known[parameter] = (max(low, known.get(parameter, (low,))[0]), float("inf"))
    return known


def _divided_in_c(expr: Expr, spec: MaskSpec, known: Mapping[Expr, tuple[float, float]]) -> Expr:
    """C's division and remainder where the dividend is proven non-negative and the divisor positive."""

    def low(node: Expr) -> float:
        return value_range(node, known, spec.inputs)[0]

    def lowered(node: Expr) -> Expr:
        changed = rebuild(node, lowered)
        match changed:
            case Binary(type=Type.INT, op=BinaryOp.FLOORDIV | BinaryOp.MOD) if low(changed.left) >= 0:
                if low(changed.right) >= 1:
                    return replace(changed, op=_IN_C[changed.op])
                return changed
            case _:
                return changed

    return lowered(expr)


_IN_C = {BinaryOp.FLOORDIV: BinaryOp.TRUNCDIV, BinaryOp.MOD: BinaryOp.TRUNCMOD}

_FOLDS: Mapping[BinaryOp, Callable[..., bool | int | float]] = {
    BinaryOp.ADD: operator.add,
    BinaryOp.SUB: operator.sub,
    BinaryOp.MUL: operator.mul,
    BinaryOp.MIN: min,
    BinaryOp.MAX: max,
    BinaryOp.LT: operator.lt,
    BinaryOp.LE: operator.le,
    BinaryOp.GT: operator.gt,
    BinaryOp.GE: operator.ge,
    BinaryOp.EQ: operator.eq,
    BinaryOp.NE: operator.ne,
}


def _folded(expr: Expr) -> Expr:
    """Constants computed; `and`, `or`, `not` and conditions on a constant resolved."""
    match expr:
        case Cast(operand=Literal() as inner):
            return Literal(expr.type, float(inner.value) if expr.type is Type.FLOAT else int(inner.value))
        case Unary(op=UnaryOp.NEG, operand=Literal() as inner):
            return Literal(expr.type, -inner.value)
        case Unary(op=UnaryOp.NOT, operand=Literal() as inner):
            return Literal(Type.BOOL, not inner.value)
        case Binary(op=BinaryOp.AND, left=left, right=right) if TRUE in (left, right):
            return right if left == TRUE else left
        case Binary(op=BinaryOp.AND, left=left, right=right) if FALSE in (left, right):
            return FALSE
        case Binary(op=BinaryOp.OR, left=left, right=right) if FALSE in (left, right):
            return right if left == FALSE else left
        case Binary(op=BinaryOp.OR, left=left, right=right) if TRUE in (left, right):
            return TRUE
        case Binary(left=Literal() as left, right=Literal() as right) if expr.op in _FOLDS:
            return Literal(expr.type, _FOLDS[expr.op](left.value, right.value))
        case Select(condition=Literal() as condition):
            return expr.then if condition.value else expr.otherwise
        case _:
            return expr


def _sided(expr: Expr) -> Expr:
    """Comparisons of sums and residues of differences with the query's terms on one side and the key's on the other."""
    match expr:
        case Binary(op=op, left=Binary(op=BinaryOp.MOD) as residue, right=Literal(value=0)) if (
            op in (BinaryOp.EQ, BinaryOp.NE) and residue.type is Type.INT and depends(residue.right) is Depends.NONE
        ):
            apart = _apart(terms_of(residue.left))
            if apart is None:
                return expr
            q_residue, k_residue = (replace(residue, left=side) for side in apart)
            return replace(expr, left=q_residue, right=k_residue)
        case Binary(op=BinaryOp.LT | BinaryOp.LE, left=Unary(op=UnaryOp.ABS) as distance) if (
            expr.left.type is Type.INT
            and depends(expr.right) is Depends.NONE
            and _apart(terms_of(distance.operand)) is not None
        ):
            above = replace(expr, left=distance.operand)
            below = replace(expr, left=_negative(distance.operand))
            return Binary(Type.BOOL, BinaryOp.AND, _sided(above), _sided(below))
        case Binary(op=op, left=left, right=right) if op in COMPARISONS and left.type is Type.INT:
            terms = terms_of(left) + [(-sign, term) for sign, term in terms_of(right)]
            if any(sign < 0 and depends(term) is Depends.Q for sign, term in terms):
                op, terms = MIRRORED.get(op, op), [(-sign, term) for sign, term in terms]
            apart = _apart(terms)
            return expr if apart is None else replace(expr, op=op, left=apart[0], right=apart[1])
        case Cast(type=Type.FLOAT, operand=Unary(op=UnaryOp.ABS | UnaryOp.NEG) as inner):
            return replace(inner, type=Type.FLOAT, operand=_sided(replace(expr, operand=inner.operand)))
        case Cast(type=Type.FLOAT, operand=Binary(op=BinaryOp.MIN | BinaryOp.MAX) as inner):
            left, right = (_folded(_sided(replace(expr, operand=x))) for x in (inner.left, inner.right))
            return replace(inner, type=Type.FLOAT, left=left, right=right)
        case _:
            return expr


Terms = list[tuple[int, Expr]]
MIRRORED: Mapping[BinaryOp, BinaryOp] = {
    BinaryOp.LT: BinaryOp.GT,
    BinaryOp.LE: BinaryOp.GE,
    BinaryOp.GT: BinaryOp.LT,
    BinaryOp.GE: BinaryOp.LE,
}
"""What a comparison becomes when its sides change places."""


def terms_of(expr: Expr) -> Terms:
    """The signed terms of an integer sum."""
    match expr:
        case Binary(op=BinaryOp.ADD, left=left, right=right):
            return terms_of(left) + terms_of(right)
        case Binary(op=BinaryOp.SUB, left=left, right=right):
            return terms_of(left) + [(-sign, term) for sign, term in terms_of(right)]
        case Unary(op=UnaryOp.NEG, operand=operand):
            return [(-sign, term) for sign, term in terms_of(operand)]
        case Literal(value=0):
            return []
        case _:
            return [(1, expr)]


def _apart(terms: Terms) -> tuple[Expr, Expr] | None:
    """(a, b) with a - b the sum of the terms, a free of the key, b of the query; None where that cannot be."""
    q_terms = [t for t in terms if depends(t[1]) is not Depends.K]
    k_terms = [(-sign, term) for sign, term in terms if depends(term) is Depends.K]
    ends = [depends(term) for _, term in terms]
    if Depends.PAIR in ends or Depends.Q not in ends or Depends.K not in ends:
        return None
    return _sum(q_terms), _sum(k_terms)


def _sum(terms: Terms) -> Expr:
    """The sum written with a positive term first where there is one."""
    ordered = sorted(terms, key=lambda t: t[0] < 0)
    sign, total = ordered[0]
    if sign < 0:
        total = _negative(total)
    for sign, term in ordered[1:]:
        total = Binary(Type.INT, BinaryOp.ADD if sign > 0 else BinaryOp.SUB, total, term)
    return total


def _negative(expr: Expr) -> Expr:
    return _folded(Unary(Type.INT, UnaryOp.NEG, expr))


def scaled(expr: Expr, factor: float) -> Expr:
    """factor * expr for a float expression, the factor put where it is multiplied fewest times."""
    match expr:
        case Literal():
            return Literal(Type.FLOAT, expr.value * factor)
        case Unary(op=UnaryOp.NEG):
            return replace(expr, operand=scaled(expr.operand, factor))
        case Binary(op=BinaryOp.MUL, left=left, right=right):
            if _cost(left) <= _cost(right):
                return replace(expr, left=scaled(left, factor))
            return replace(expr, right=scaled(right, factor))
        case Binary(op=BinaryOp.DIV) if not reads_score(expr.left):
            return replace(expr, left=scaled(expr.left, factor))
        case _:
            return Binary(Type.FLOAT, BinaryOp.MUL, expr, Literal(Type.FLOAT, factor))


def grouped(expr: Expr) -> Expr:
    """Products of a float32 expression reordered: constants first, then scalars, vectors and pairs.

    Division by a scalar becomes multiplication by its reciprocal. That rounds differently, which only scores may.
    """
    expr = rebuild(expr, grouped)
    if expr.type is not Type.FLOAT or not isinstance(expr, Binary) or expr.op not in (BinaryOp.MUL, BinaryOp.DIV):
        return expr
    above, below = _factors(expr)
    if len(above) + len(below) < 3 and not any(depends(f) is Depends.NONE for f in below):
        return expr
    scalar_below = [f for f in below if depends(f) is Depends.NONE]
    other_below = [f for f in below if depends(f) is not Depends.NONE]
    scalars = [f for f in above if depends(f) is Depends.NONE]
    others = sorted((f for f in above if depends(f) is not Depends.NONE), key=_cost)
    first = [_product(sorted(scalars, key=_cost))] if scalars else []
    if scalar_below:
        first = [_divided(first[0] if first else Literal(Type.FLOAT, 1.0), _product(scalar_below))]
    result = _product(first + others) if first + others else Literal(Type.FLOAT, 1.0)
    return _divided(result, _product(other_below)) if other_below else result


def _factors(expr: Expr) -> tuple[list[Expr], list[Expr]]:
    """The factors above and below the line of a fraction."""
    match expr:
        case Binary(op=BinaryOp.MUL, left=left, right=right):
            a, b = _factors(left), _factors(right)
            return a[0] + b[0], a[1] + b[1]
        case Binary(op=BinaryOp.DIV, left=left, right=right):
            a, b = _factors(left), _factors(right)
            return a[0] + b[1], a[1] + b[0]
        case _:
            return [expr], []


def _product(factors: Sequence[Expr]) -> Expr:
    result = factors[0]
    for factor in factors[1:]:
        result = Binary(Type.FLOAT, BinaryOp.MUL, result, factor)
    return result


def _divided(above: Expr, below: Expr) -> Expr:
    return Binary(Type.FLOAT, BinaryOp.DIV, above, below)


def _cost(expr: Expr) -> int:
    """Order of places to multiply: constants, scalars, vectors, pairs."""
    if isinstance(expr, Literal):
        return -1
    return int(depends(expr)) if not reads_score(expr) else 4
