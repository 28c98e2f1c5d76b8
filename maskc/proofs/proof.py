"""Whether formulas contradict each other in every call: a search through their cases.

In: a `Translation` and the formulas that are to be refuted. A solution of the linear constraints is asked for; a choice
that it breaks is split, and so are facts about products, functions and sorted tables that it breaks. A contradiction
that does not use the last case taken settles the other cases, too. What is refuted has no call that satisfies it; where
the search ends with a solution, or with too much work, nothing is known.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, combinations, permutations

from maskc.expr import Type
from maskc.proofs.formulas import All, Either, Formula, at_least, equal, holds
from maskc.proofs.linear import (
    Conflict,
    Constraint,
    ExhaustedError,
    Linear,
    Model,
    Number,
    Reasoned,
    Work,
    magnitude,
    solve,
)
from maskc.proofs.translation import Translation
from maskc.spec import DimKind, InputSpec, PrefixSum

EFFORT = 200_000
"""Coefficients that a search may read or write: seconds."""

_DEPTH = 120  # cases inside cases


def contradictory(translation: Translation, formulas: list[Formula], effort: int = EFFORT) -> bool:
    """Whether no call satisfies all formulas. False says nothing."""
    search = _Search(translation, Work(effort))
    try:
        return isinstance(search.explore(_State((), ()).extended([*formulas, *translation.facts], 0), 0), Conflict)
    except ExhaustedError:
        return False


@dataclass(frozen=True)
class _State:
    """Constraints, and choices of which one case each must hold; both with the decisions that they are due to."""

    constraints: tuple[Reasoned, ...]
    choices: tuple[tuple[Either, int], ...]

    def extended(self, formulas: list[Formula], reasons: int) -> "_State":
        """With more that must hold."""
        constraints, choices, pending = list(self.constraints), list(self.choices), list(reversed(formulas))
        while pending:
            formula = pending.pop()
            match formula:
                case Constraint():
                    constraints.append((formula, reasons))
                case All():
                    pending += reversed(formula.parts)
                case Either():
                    choices.append((formula, reasons))
        return _State(tuple(constraints), tuple(choices))

    def without(self, choice: tuple[Either, int]) -> "_State":
        """Without a choice, to be replaced by one of its cases."""
        return _State(self.constraints, tuple(c for c in self.choices if c is not choice))


class _Search:
    def __init__(self, translation: Translation, work: Work) -> None:
        self._translation = translation
        self._lemmas = Lemmas(translation, work)
        self._work = work

    def explore(self, state: _State, depth: int) -> Conflict | None:
        """The decisions to blame if every case is contradictory; None where one is not, or is not seen to be."""
        while True:
            found = solve(state.constraints, self._translation.reals, self._work)
            if isinstance(found, Conflict):
                return found
            broken = [c for c in state.choices if not self._holds(c[0], found)]
            if broken:
                return self._split(state, min(broken, key=lambda c: len(c[0].parts)), depth)
            lemma = self._lemmas.broken(found) or _between_wholes(found, state, self._translation.reals)
            if lemma is None:
                return None
            state = state.extended([lemma], 0)

    def _split(self, state: _State, choice: tuple[Either, int], depth: int) -> Conflict | None:
        if depth == _DEPTH:
            raise ExhaustedError
        rest, own = state.without(choice), 1 << depth
        blamed = choice[1]
        for part in choice[0].parts:
            conflict = self.explore(rest.extended([part], own | choice[1]), depth + 1)
            if conflict is None:
                return None
            if not conflict.reasons & own:
                return conflict
            blamed |= conflict.reasons & ~own
        return Conflict(blamed)

    def _holds(self, formula: Formula, model: Model) -> bool:
        self._work.spend(1)
        return holds(formula, model)


def _between_wholes(model: Model, state: _State, reals: set[int]) -> Either | None:
    """Cases for an integer that got a fraction: at most the whole number below, at least the one above."""
    used = sorted({v for constraint, _ in state.constraints for v, _ in constraint.left.terms} - reals)
    for variable in used:
        value = Fraction(model.get(variable, 0))
        if value.denominator != 1:
            place = Linear.variable(variable)
            return Either((at_least(-place, -math.floor(value)), at_least(place, math.ceil(value))))
    return None


class Lemmas:
    """Facts that hold in every call and are stated when a solution breaks them: products grow with their factors, equal
    arguments give equal values, and sorted tables ascend.
    """

    def __init__(self, translation: Translation, work: Work) -> None:
        self._translation = translation
        self._work = work
        self._tables = {i.name: i for i in translation.spec.inputs}
        self._free = {
            dim: translation.extent(dim) for i in translation.spec.inputs for dim in i.dims if dim.kind is DimKind.FREE
        }
        self._lengths = {i.name: translation.extent(i.dims[-1]) for i in translation.spec.inputs if self._ascending(i)}

    def _ascending(self, table: InputSpec) -> bool:
        """Whether the entries never fall along the last dim: by promise, or as they count the true ones of a table."""
        if isinstance(table.source, PrefixSum) and table.source.dim == len(table.dims) - 1:
            return self._tables[table.source.table].type is Type.BOOL
        return table.sorted and table.type is Type.INT

    def broken(self, model: Model) -> Formula | None:
        """One that these values break."""
        for lemma in self._broken(model):
            return lemma
        return None

    def _broken(self, model: Model) -> Iterator[Formula]:
        yield from self._functions(model)
        yield from self._outside(model)
        yield from self._sorted(model)
        yield from self._products(model)

    def _functions(self, model: Model) -> Iterator[Formula]:
        groups: dict[tuple[object, ...], int] = {}
        for variable, application in self._translation.applications.items():
            arguments = [a.at(model) for a in application.arguments]
            first = groups.setdefault((application.name, *arguments), variable)
            if model.get(first, 0) != model.get(variable, 0):
                yield self._congruent(first, variable)

    def _congruent(self, a: int, b: int) -> Formula:
        """Other arguments, or equal values."""
        applications = self._translation.applications
        cases: list[Formula] = [equal(Linear.variable(a), Linear.variable(b))]
        for x, y in zip(applications[a].arguments, applications[b].arguments, strict=True):
            cases += [] if x == y else [at_least(y - x, 1), at_least(x - y, 1)]
        return Either(tuple(cases))

    def _outside(self, model: Model) -> Iterator[Formula]:
        """What is read outside a table is 0; how far a dim reaches is known of those that a tensor binds."""
        for variable, application in self._translation.applications.items():
            table = self._tables.get(application.name)
            if table is None or model.get(variable, 0) == 0:
                continue
            for index, dim in zip(application.arguments, table.dims, strict=True):
                beside = [at_least(-index, 1)]
                beside += [at_least(index - self._free[dim], 0)] if dim.kind is DimKind.FREE else []
                for place in beside:
                    if place.holds(model):
                        inside = at_least(-place.left, 1)
                        yield Either((inside, equal(Linear.variable(variable), Linear())))

    def _sorted(self, model: Model) -> Iterator[Formula]:
        reads = [(v, a) for v, a in self._translation.applications.items() if a.name in self._lengths]
        for (v, a), (w, b) in combinations(reads, 2):
            if a.name != b.name or a.arguments[:-1] != b.arguments[:-1]:
                continue
            lemma = self._ascends(a.name, (a.arguments[-1], Linear.variable(v)), (b.arguments[-1], Linear.variable(w)))
            if not holds(lemma, model):
                yield lemma

    def _ascends(self, table: str, a: tuple[Linear, Linear], b: tuple[Linear, Linear]) -> Formula:
        """A place outside, or values in the order of the places."""
        length = self._lengths[table]
        outside = [c for i, _ in (a, b) for c in (at_least(-i, 1), at_least(i - length, 0))]
        up = All((at_least(b[0] - a[0], 0), at_least(b[1] - a[1], 0)))
        down = All((at_least(a[0] - b[0], 0), at_least(a[1] - b[1], 0)))
        return Either((up, down, *outside))

    def _products(self, model: Model) -> Iterator[Formula]:
        """Of every factor whose products are wrong: multiples compared with each other, then differences of two."""
        translation = self._translation
        wrong = [
            v for v, fs in translation.products.items() if model.get(v, 0) != math.prod(model.get(f, 0) for f in fs)
        ]
        for factor in sorted({f for v in wrong for f in translation.factors(v)}):
            size = model.get(factor, 0)
            multiples = [_Multiple(a, b, a.at(model), b.at(model)) for a, b in self._multiples(factor)]
            differences = ((a.minus(b), c) for a, b, c in permutations(multiples, 3))
            for one, other in chain(combinations(multiples, 2), differences):
                self._work.spend(1)
                if not _rises(size, other.of_value - one.of_value, other.value - one.value):
                    yield _monotone(Linear.variable(factor), one, other)

    def _multiples(self, factor: int) -> Iterator[tuple[Linear, Linear]]:
        """Numbers and what `factor` times them is: 0, 1, -1 and those of its products."""
        translation = self._translation
        yield from ((Linear((), n), Linear.variable(factor) * n) for n in (0, 1, -1))
        for variable, factors in list(translation.products.items()):
            if factor in factors:
                yield translation.cofactor(variable, factor), Linear.variable(variable)


@dataclass(frozen=True)
class _Multiple:
    """A number, what a factor times it is, and the values of both in a solution."""

    of: Linear
    product: Linear
    of_value: Number
    value: Number

    def minus(self, other: "_Multiple") -> "_Multiple":
        """The multiple of the difference."""
        return _Multiple(
            self.of - other.of, self.product - other.product, self.of_value - other.of_value, self.value - other.value
        )


def _rises(factor: Number, run: Number, rise: Number) -> bool:
    """Whether `rise` can be factor * run, as far as `_monotone` tells."""
    if factor == 0 or run == 0:
        return rise == 0
    signed = rise if (factor > 0) == (run > 0) else -rise
    size, distance = magnitude(factor), magnitude(run)
    return size >= 1 and distance >= 1 and signed >= size + distance - 1


def _monotone(factor: Linear, one: _Multiple, other: _Multiple) -> Formula:
    """How factor * x and factor * y differ where x and y do; f d >= f + d - 1 of positive integers."""
    x, y, rise = one.of, other.of, other.product - one.product
    cases: list[Formula] = [
        All((equal(factor, Linear()), equal(rise, Linear()))),
        All((equal(x, y), equal(rise, Linear()))),
    ]
    for sign in (1, -1):
        for less, more, signed in ((x, y, rise * sign), (y, x, rise * -sign)):
            size, run = factor * sign, more - less
            cases.append(All((at_least(size, 1), at_least(run, 1), at_least(signed - size - run, -1))))
    return Either(tuple(cases))
