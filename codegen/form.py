"""Forms of a spec's kernels: what changes their text, and the closed set of it that a spec can ask for.

Everything else of a variant (dtypes, head dims, strides that are multiples of 16 bytes or not, 32 or 64 bits of index)
is decided by compile-time arguments and types, with the text as it is.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

from maskc.codegen.columns import WHOLE, Cut, columns
from maskc.codegen.settle import Depends, depends, settle
from maskc.expr import Binary, BinaryOp, Bucket, Coordinate, Expr, Member, Position, Rand, Read, conjunction, walk
from maskc.spec import MaskSpec


@dataclass(frozen=True)
class Form:
    """What changes the text of a spec's kernels.

    predicate: what partial tiles evaluate; None for all that the spec asks. indexed: whether the plan gives the
    positions of queries and keys; else slots are positions. qk, v: how the head dims are cut.
    """

    predicate: Expr | None = None
    indexed: bool = False
    qk: Cut = WHOLE
    v: Cut = WHOLE

    def __str__(self) -> str:
        keys = "indexed" if self.indexed else "contiguous"
        decides = "every clause" if self.predicate is None else str(self.predicate)
        return f"{keys} keys, head dims {self.qk} | {self.v}, partial tiles evaluate {decides}"


def form(spec: MaskSpec, predicate: Expr, open_clauses: tuple[int, ...], indexed: bool, dims: tuple[int, int]) -> Form:
    """The form that serves a part of a plan: of the announced predicates the smallest one with its open clauses.

    A part with a predicate that is not made of the spec's clauses has it as it is.
    """
    qk, v = columns(dims[0]).cut, columns(dims[1]).cut
    if predicate != conjunction(tuple(spec.clauses[i] for i in open_clauses)):
        return Form(predicate, indexed, qk, v)
    chosen = min((clauses for clauses in announced(spec) if set(open_clauses) <= set(clauses)), key=len)
    whole = len(chosen) == len(spec.clauses)
    kept = None if whole else conjunction(tuple(spec.clauses[i] for i in chosen))
    return Form(kept, indexed, qk, v)


@lru_cache(maxsize=256)
def announced(spec: MaskSpec) -> tuple[tuple[int, ...], ...]:
    """The sets of clauses, by number, that partial tiles of some plan evaluate; all of them first.

    A cheap clause is always evaluated: leaving it out would save less than another compiled kernel costs.
    """
    every = tuple(range(len(spec.clauses)))
    costly = [i for i in every if _cost(spec.clauses[i], spec) > _CHEAP]
    found = [every]
    for kept in _kept(costly):
        found.append(tuple(i for i in every if i in kept or i not in costly))
    return tuple(dict.fromkeys(found))


def _kept(costly: list[int]) -> Iterator[tuple[int, ...]]:
    """Subsets of the costly clauses: all of them while they are few, else none and each one alone."""
    sizes = range(len(costly)) if len(costly) <= _FEW else (1, 0)
    for size in reversed(sizes):
        yield from combinations(costly, size)


_FEW = 3
_CHEAP = 2.0


def _cost(clause: Expr, spec: MaskSpec) -> float:
    """Instructions per pair, roughly: those of the walked side are shared by the rows that a lane holds."""
    nodes = set(walk(settle(clause, spec)))
    pairs = sum(_work(node) for node in nodes if depends(node) is Depends.PAIR)
    keys = sum(_work(node) for node in nodes if depends(node) is Depends.K)
    return pairs + keys / 4


def _work(node: Expr) -> float:
    match node:
        case Member() | Bucket() | Rand():
            return 32.0
        case Read():
            return 4.0
        case Coordinate():
            return 16.0
        case Binary(op=BinaryOp.FLOORDIV | BinaryOp.MOD | BinaryOp.TRUNCDIV | BinaryOp.TRUNCMOD):
            return 16.0
        case Binary(op=BinaryOp.AND) | Position():
            return 0.0
        case _:
            return 1.0
