"""Claims: proven for all calls, refuted by the smallest call that breaks one, or neither.

A proof shows that what is kept and the opposite of the claim contradict each other (`proof.py`), whatever the lengths,
offsets, sizes, parameters and contents of inputs; it relies on the preconditions and on what inputs promise, as plans
do. Where there is none, small calls are tried, the smallest first, so that a witness is as small as possible.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import islice, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskc.diagnostics import Diagnostic, MaskInputError
from maskc.evaluate import depends
from maskc.expr import FALSE, Coordinate, Expr, Index, Kept, Position, Read, Row, Scalar, Side, Type, walk
from maskc.features import reads_scores
from maskc.grids import grid_length, open_axis
from maskc.prologue import bind, complete
from maskc.proofs.formulas import Formula, at_least
from maskc.proofs.linear import ExhaustedError
from maskc.proofs.proof import contradictory
from maskc.proofs.translation import Translation
from maskc.proofs.witness import Witness, about, refute
from maskc.samples import draw, free_extents
from maskc.scalars import written
from maskc.sizes import parameters, resolve
from maskc.spec import Claim, MaskSpec, Sizes

LENGTHS = (*range(1, 11), 12, 16, 24, 33)
MOST_CALLS = 1000
MOST_PARAMETERS = 36  # sets of values
MOST_PLACES = 64  # on a grid
DRAWS = 3  # of the inputs of one call
SMALL = (1, 2, 3, 0, -1)  # values of integer parameters beside their defaults

_BY_SCORES = "which pairs are kept depends on the scores of a call"


class Status(Enum):
    """What is known of a claim."""

    PROVEN = "proven for all sizes"
    HOLDS = "not proven"
    REFUTED = "refuted"


@dataclass(frozen=True)
class Verdict:
    """What is known of one claim. looked: at which calls it was checked, where it is not proven."""

    claim: Claim
    status: Status
    witness: Witness | None = None
    looked: str = ""

    def __str__(self) -> str:
        place = ""
        if self.claim.span is not None:
            line, _ = self.claim.span.source.position(self.claim.span.start)
            place = f"{self.claim.span.source.name}:{line}: "
        said = f"not proven; {self.looked}" if self.status is Status.HOLDS else self.status.value
        return f"{place}claim {written(self.claim.expr)}: {said}"


def judge(spec: MaskSpec, given: Mapping[str, Scalar] | None = None) -> list[Verdict]:
    """Every claim over pairs, proven or looked at in small calls. given: parameters and axis sizes of those calls."""
    claims = [claim for claim in spec.claims if claim.over_pairs]
    verdicts = {claim: Verdict(claim, Status.PROVEN) for claim in claims if proven(spec, claim)}
    left = [claim for claim in claims if claim not in verdicts]
    if left:
        verdicts |= _searched(spec, left, given or {})
    return [verdicts[claim] for claim in claims]


def judge_at(spec: MaskSpec, sizes: Sizes, inputs: Mapping[str, NDArray[Any]]) -> list[Verdict]:
    """Every claim over pairs, proven or checked at one call. inputs: all its tables."""
    claims = [claim for claim in spec.claims if claim.over_pairs]
    verdicts = {claim: Verdict(claim, Status.PROVEN) for claim in claims if proven(spec, claim)}
    left = tuple(claim for claim in claims if claim not in verdicts)
    if left and reads_scores(spec):
        return [verdicts.get(claim, Verdict(claim, Status.HOLDS, looked=_BY_SCORES)) for claim in claims]
    broken = {w.claim: w for w in refute(replace(spec, claims=left), sizes, inputs)}
    for claim in left:
        if claim in broken:
            verdicts[claim] = Verdict(claim, Status.REFUTED, broken[claim])
        else:
            verdicts[claim] = Verdict(claim, Status.HOLDS, looked="holds at the given sizes")
    return [verdicts[claim] for claim in claims]


# Proofs


def proven(spec: MaskSpec, claim: Claim) -> bool:
    """Whether a claim over pairs is shown to hold in every call. False says nothing."""
    clauses = () if about(claim) is not None else spec.clauses
    near = tuple(clause for clause in clauses if _leaves(clause) & _leaves(claim.expr))
    return any(_excluded(spec, claim.expr, some) for some in dict.fromkeys((near, clauses)))


def _excluded(spec: MaskSpec, claim: Expr, clauses: tuple[Expr, ...]) -> bool:
    """Whether the preconditions and some clauses leave no pair that breaks a claim."""
    translation = Translation(spec)
    try:
        formulas: list[Formula] = [translation.truth(claim, False), *map(translation.truth, clauses)]
        formulas += [translation.truth(c.expr) for c in spec.claims if not c.over_pairs]
        if clauses:  # the pair itself counts
            counts = [translation.term(e) for e in dict.fromkeys(walk(claim)) if isinstance(e, Kept)]
            formulas += [at_least(count, 1) for count in counts]
    except ExhaustedError:
        return False
    return contradictory(translation, formulas)


def _leaves(expr: Expr) -> set[object]:
    """What an expression reads that differs between pairs: two that share something may have to do with each other."""
    found: set[object] = set()
    for node in walk(expr):
        match node:
            case Position() | Coordinate() | Index() | Kept():
                found.add(node)
            case Read():
                found.add(node.input)
            case _:
                row = getattr(node, "row", None)
                found |= {row.input} if isinstance(row, Row) else set()
    return found


def lints(spec: MaskSpec) -> list[Diagnostic]:
    """What is proven of preconditions and clauses that nobody can have meant."""
    found = []
    preconditions = [claim for claim in spec.claims if not claim.over_pairs]
    for number, claim in enumerate(preconditions):
        alone = replace(spec, claims=())
        if _excluded(alone, FALSE, (claim.expr,)):
            found.append(Diagnostic("this precondition never holds", claim.expr.span, severity="warning"))
        elif _excluded(alone, claim.expr, ()):
            found.append(Diagnostic("this precondition always holds", claim.expr.span, severity="warning"))
        elif _excluded(alone, FALSE, tuple(c.expr for c in preconditions[: number + 1])):
            message = "this precondition contradicts those above it"
            found.append(Diagnostic(message, claim.expr.span, severity="warning"))
    if found:
        return found
    if spec.clauses and _excluded(spec, FALSE, spec.clauses):
        return [Diagnostic(f"mask {spec.name!r} keeps no pair, so its claims say nothing", severity="warning")]
    for number, clause in enumerate(spec.clauses):
        others = spec.clauses[:number] + spec.clauses[number + 1 :]
        if others and clause.span is not None and _excluded(spec, clause, others):
            message = "the other 'keep's already say this; it changes nothing"
            found.append(Diagnostic(message, clause.span, severity="warning"))
    return found


# Small calls


@dataclass(frozen=True)
class _Call:
    """Lengths, position of the first query (None: not said), sizes of axes and parameters."""

    q_len: int
    k_len: int
    q_offset: int | None
    given: Mapping[str, Scalar]


def _searched(spec: MaskSpec, claims: Sequence[Claim], given: Mapping[str, Scalar]) -> dict[Claim, Verdict]:
    """Verdicts on claims that are not proven, from calls of growing size."""
    if reads_scores(spec):
        return {claim: Verdict(claim, Status.HOLDS, looked=_BY_SCORES) for claim in claims}
    verdicts: dict[Claim, Verdict] = {}
    largest, tried = (0, 0), 0
    for call in islice(_calls(spec, given), MOST_CALLS):
        left = tuple(claim for claim in claims if claim not in verdicts)
        if not left:
            break
        found = _broken(replace(spec, claims=(*(c for c in spec.claims if not c.over_pairs), *left)), call)
        if found is not None:
            verdicts |= {w.claim: Verdict(w.claim, Status.REFUTED, w) for w in found}
            largest, tried = max(largest, (call.q_len, call.k_len)), tried + 1
    looked = f"holds in {tried} small calls, up to {largest[0]} queries x {largest[1]} keys"
    if not tried:
        looked = "no small call meets the preconditions; give --seq N to check one"
    return {claim: verdicts.get(claim, Verdict(claim, Status.HOLDS, looked=looked)) for claim in claims}


def _broken(spec: MaskSpec, call: _Call) -> list[Witness] | None:
    """Witnesses at one call; None for a call that the spec does not accept."""
    by_row, by_head = depends(spec.predicate, Sizes(0, 0))
    tables = bool(spec.given)
    try:
        sizes = resolve(
            spec,
            q_len=call.q_len,
            k_len=call.k_len,
            batch=2 if by_row and tables else 1,
            heads=4 if by_head else 1,
            kv_heads=2 if by_head else 1,
            q_offset=call.q_offset or 0,
            offset_given=call.q_offset is not None,
            given=call.given,
            free=free_extents(spec),
        )
    except MaskInputError:
        return None
    found: dict[Claim, Witness] = {}
    for seed in range(DRAWS if tables else 1):
        drawn = draw(spec, sizes, np.random.default_rng(seed))
        bound = bind(spec, drawn)
        for witness in refute(bound, sizes, complete(bound, drawn)):
            before = found.setdefault(witness.claim, witness)
            if _place(witness) < _place(before):
                found[witness.claim] = witness
    return list(found.values())


def _place(witness: Witness) -> tuple[int, int, int, int]:
    return witness.q or 0, witness.k or 0, witness.batch, witness.head


def _calls(spec: MaskSpec, given: Mapping[str, Scalar]) -> Iterator[_Call]:
    """Calls in order of their size; at each size the defaults of parameters come first."""
    sets = list(_parameter_sets(spec, given))
    if not sets:
        return
    fixed = parameters(spec, sets[0])
    for axes in _grids(spec, given):
        q_len, k_len = (grid_length(spec, side, axes, fixed) for side in Side)
        lengths = LENGTHS if q_len is None or k_len is None else (0,)
        for length in lengths:
            for values in sets:
                chosen = parameters(spec, values)
                ends = [grid_length(spec, side, axes, chosen) for side in Side]
                q, k = (length if n is None else n for n in ends)
                yield _Call(q, k, None, {**axes, **values})
                if ends == [None, None] and length > 1:
                    yield _Call(1, k, k - 1, {**axes, **values})


def _grids(spec: MaskSpec, given: Mapping[str, Scalar]) -> list[dict[str, int]]:
    """Small sizes of all axes but those that every document has for itself, in order of their product."""
    names = [name for name in spec.axis_names if name != open_axis(spec)]
    most = {0: 0, 1: 12, 2: 6, 3: 4}.get(len(names), 2)
    ranges = [(int(given[name]),) if name in given else range(1, most + 1) for name in names]
    shapes = (shape for shape in product(*ranges) if math.prod(shape) <= MOST_PLACES)
    return [dict(zip(names, shape, strict=True)) for shape in sorted(shapes, key=lambda s: (math.prod(s), s))]


def _parameter_sets(spec: MaskSpec, given: Mapping[str, Scalar]) -> Iterator[dict[str, Scalar]]:
    """The defaults, then small values: few enough that lengths can grow."""
    choices: list[list[Scalar]] = []
    for p in spec.parameters:
        if p.name in given:
            choices.append([given[p.name]])
            continue
        small: dict[Type, tuple[Scalar, ...]] = {Type.INT: SMALL, Type.BOOL: (False, True), Type.FLOAT: (0.5, 2.0)}
        choices.append(list(dict.fromkeys([*([] if p.default is None else [p.default]), *small[p.type]])))
    for values in islice(product(*choices), MOST_PARAMETERS):
        yield dict(zip((p.name for p in spec.parameters), values, strict=True))
