"""What statements ask of checked expressions: through what a gradient reaches them, and whether they are affine."""

from collections.abc import Iterator, Mapping, Sequence

from maskc.expr import (
    Binary,
    BinaryOp,
    Bucket,
    Dot,
    Expr,
    FinalScore,
    Fold,
    FoldOp,
    Member,
    Read,
    Row,
    Score,
    Select,
    Type,
    Unary,
    UnaryOp,
    Weight,
    children,
)
from maskc.spec import InputSpec, PrefixSum, ReduceOp, Reduction


def sources(expr: Expr) -> Iterator[Expr]:
    """The scores, weights, products and entries of tables that a gradient of `expr` would reach.

    Comparisons, integers and conditions pass none on.
    """
    if expr.type is not Type.FLOAT:
        return
    match expr:
        case Score() | FinalScore() | Weight() | Dot() | Read():
            yield expr
        case Select():
            yield from sources(expr.then)
            yield from sources(expr.otherwise)
        case _:
            for child in children(expr):
                yield from sources(child)


def kink(expr: Expr, reductions: Mapping[str, Reduction], inputs: Mapping[str, InputSpec]) -> tuple[Read, str] | None:
    """The read of a reduction through which a gradient would have to pass a `max` or `min`, and that reduction's name;
    None where there is none.
    """
    for node in sources(expr):
        if isinstance(node, Read) and node.input in reductions:
            reduction = reductions[node.input]
            if reduction.op in (ReduceOp.MAX, ReduceOp.MIN):
                if any(_has_gradient(s, reductions, inputs) for s in sources(reduction.value)):
                    return node, node.input
            else:
                behind = kink(reduction.value, reductions, inputs)
                if behind is not None:
                    return node, behind[1]
    return None


def _has_gradient(source: Expr, reductions: Mapping[str, Reduction], inputs: Mapping[str, InputSpec]) -> bool:
    match source:
        case Read() if source.input in reductions:
            return any(_has_gradient(s, reductions, inputs) for s in sources(reductions[source.input].value))
        case Read():
            return _is_learned(source.input, inputs)
        case Dot():
            rows = _rows(source)
            return len(rows) < 2 or any(_is_learned(row.input, inputs) for row in rows)
        case _:
            return True


def _is_learned(table: str, inputs: Mapping[str, InputSpec]) -> bool:
    return any(inputs[name].learned for name in {table} | _behind({table}, list(inputs.values())))


def tables(expr: Expr, inputs: Sequence[InputSpec]) -> set[str]:
    """The tables that an expression reads, those behind prefix sums among them."""
    found: set[str] = set()
    for node in _distinct(expr):
        match node:
            case Read():
                found.add(node.input)
            case Member() | Bucket():
                found.add(node.row.input)
            case Dot():
                found |= {row.input for row in _rows(node)}
            case _:
                pass
    return found | _behind(found, inputs)


def tables_with_gradient(expr: Expr, inputs: Sequence[InputSpec]) -> set[str]:
    """The tables that a gradient of an expression reaches."""
    found: set[str] = set()
    for node in sources(expr):
        found |= {node.input} if isinstance(node, Read) else {row.input for row in _rows(node)}
    return found | _behind(found, inputs)


def _distinct(expr: Expr) -> Iterator[Expr]:
    """Every node, one that occurs several times once."""
    seen: set[int] = set()
    pending = [expr]
    while pending:
        node = pending.pop()
        if id(node) not in seen:
            seen.add(id(node))
            yield node
            pending += children(node)


def _behind(names: set[str], inputs: Sequence[InputSpec]) -> set[str]:
    """The tables whose prefix sums some tables are."""
    made = {entry.name: entry.source.table for entry in inputs if isinstance(entry.source, PrefixSum)}
    behind: set[str] = set()
    for name in names:
        while name in made:
            name = made[name]
            behind.add(name)
    return behind


def _rows(expr: Expr) -> list[Row]:
    return [v for v in (expr.left, expr.right) if isinstance(v, Row)] if isinstance(expr, Dot) else []


def degree(expr: Expr) -> int | None:
    """1 for an expression affine in `Weight`, 0 where it does not occur, None for any other."""
    if Weight not in expr.kinds:
        return 0
    match expr:
        case Weight():
            return 1
        case Unary(op=UnaryOp.NEG):
            return degree(expr.operand)
        case Select():
            branches = (degree(expr.then), degree(expr.otherwise))
            return 1 if degree(expr.condition) == 0 and None not in branches else None
        case Binary(op=BinaryOp.ADD | BinaryOp.SUB):
            return 1 if None not in (degree(expr.left), degree(expr.right)) else None
        case Binary(op=BinaryOp.MUL):
            return 1 if {degree(expr.left), degree(expr.right)} == {0, 1} else None
        case Binary(op=BinaryOp.DIV):
            return degree(expr.left) if degree(expr.right) == 0 else None
        case Fold(op=FoldOp.SUM):
            return degree(expr.body)
        case _:
            return None
