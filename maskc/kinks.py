"""What statements ask of checked expressions: through what a gradient reaches them, and whether they are affine."""

from collections.abc import Iterator, Mapping

from maskc.spec import (
    Binary,
    BinaryOp,
    Dot,
    Expr,
    FinalScore,
    Fold,
    FoldOp,
    InputSpec,
    Read,
    ReduceOp,
    Reduction,
    Row,
    Score,
    Select,
    Type,
    Unary,
    UnaryOp,
    Weight,
    children,
)


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
            rows = [v for v in (source.left, source.right) if isinstance(v, Row)]
            return len(rows) < 2 or any(_is_learned(row.input, inputs) for row in rows)
        case _:
            return True


def _is_learned(table: str, inputs: Mapping[str, InputSpec]) -> bool:
    entry = inputs[table]
    behind = getattr(entry.source, "table", None)  # of a prefix sum
    return entry.learned or (behind is not None and _is_learned(behind, inputs))


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
