"""What a mask reads from its inputs while a kernel walks tiles: the compiler keeps such reads in flight, too."""

from functools import lru_cache

from maskc.codegen.schedule import Loads
from maskc.codegen.settle import Depends, depends, settle
from maskc.expr import Read, Type, walk
from maskc.spec import MaskSpec


@lru_cache(maxsize=256)
def loads(spec: MaskSpec, doubles: frozenset[str] = frozenset()) -> Loads:
    """The bytes of all reads of predicate and score, by the ends of a pair that they depend on.

    doubles: the inputs that are given in float64. Single bytes are not copied ahead, so booleans count nothing.
    """
    nodes = {node for expr in (spec.predicate, spec.score) for node in walk(settle(expr, spec))}
    total = {Depends.NONE: 0, Depends.Q: 0, Depends.K: 0, Depends.PAIR: 0}
    for node in nodes:
        if isinstance(node, Read):
            total[depends(node)] += 8 if node.input in doubles else _BYTES[spec.input(node.input).type]
    return Loads(total[Depends.Q], total[Depends.K], total[Depends.PAIR])


_BYTES = {Type.BOOL: 0, Type.INT: 8, Type.FLOAT: 4}
