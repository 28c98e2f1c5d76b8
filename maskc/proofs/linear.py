"""Systems of linear constraints over integers and reals: a solution, or the proof that there is none.

Equations are solved away first (Euclid's algorithm on their coefficients keeps integers integers), then variables are
eliminated one by one as Fourier and Motzkin do, every constraint over integers tightened to the next whole number. What
is shown to have no solution has none; a solution may give fractions to integers, when no whole one was met on the way.
Every constraint carries a set of reasons, the bits of a number, and those of a contradiction are the answer.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from itertools import product

Number = int | Fraction
Terms = tuple[tuple[int, Number], ...]
Model = dict[int, Number]
"""Values by variable."""


class ExhaustedError(Exception):
    """The work that was allowed is used up."""


class Work:
    """How much may still be done, in coefficients that are read or written: the same on every machine."""

    def __init__(self, left: int) -> None:
        self.left = left

    def spend(self, amount: int) -> None:
        """Raises `ExhaustedError` when more was used than allowed."""
        self.left -= amount
        if self.left < 0:
            raise ExhaustedError


@dataclass(frozen=True)
class Linear:
    """A sum of multiples of variables, which are numbers, and a constant. No coefficient is 0; ordered by variable."""

    terms: Terms = ()
    constant: Number = 0

    @staticmethod
    def variable(number: int) -> "Linear":
        """One variable."""
        return Linear(((number, 1),))

    def __add__(self, other: "Linear | Number") -> "Linear":
        right = other if isinstance(other, Linear) else Linear((), other)
        return _combined(self, 1, right, 1)

    def __sub__(self, other: "Linear | Number") -> "Linear":
        right = other if isinstance(other, Linear) else Linear((), other)
        return _combined(self, 1, right, -1)

    def __neg__(self) -> "Linear":
        return self * -1

    def __mul__(self, factor: Number) -> "Linear":
        if factor == 0:
            return Linear()
        return Linear(tuple((v, c * factor) for v, c in self.terms), self.constant * factor)

    def at(self, model: Mapping[int, Number]) -> Number:
        """The value; variables of which the model says nothing are 0."""
        return sum((c * model.get(v, 0) for v, c in self.terms), self.constant)

    def without(self, variable: int) -> "Linear":
        """All but the multiple of one variable."""
        return Linear(tuple(t for t in self.terms if t[0] != variable), self.constant)

    def coefficient(self, variable: int) -> Number:
        """Of one variable."""
        return next((c for v, c in self.terms if v == variable), 0)


def _combined(a: Linear, fa: Number, b: Linear, fb: Number) -> Linear:
    """fa * a + fb * b."""
    terms = {v: c * fa for v, c in a.terms}
    for v, c in b.terms:
        terms[v] = terms.get(v, 0) + c * fb
    return Linear(tuple(sorted((v, c) for v, c in terms.items() if c)), a.constant * fa + b.constant * fb)


class Relation(Enum):
    """How the left side of a constraint relates to 0."""

    ZERO = "== 0"
    POSITIVE = "> 0"
    NON_NEGATIVE = ">= 0"


@dataclass(frozen=True)
class Constraint:
    """`left relation`."""

    left: Linear
    relation: Relation

    def holds(self, model: Mapping[int, Number]) -> bool:
        """Whether it is true of these values."""
        value = self.left.at(model)
        match self.relation:
            case Relation.ZERO:
                return value == 0
            case Relation.POSITIVE:
                return value > 0
            case Relation.NON_NEGATIVE:
                return value >= 0


@dataclass(frozen=True)
class Conflict:
    """No values satisfy the constraints that carry these reasons."""

    reasons: int


@dataclass(frozen=True)
class _Solved:
    """variable = value / divisor."""

    variable: int
    value: Linear
    divisor: Number


@dataclass(frozen=True)
class _Bounded:
    """What was known of a variable when it was eliminated."""

    variable: int
    constraints: tuple[Constraint, ...]


class _Contradiction(Exception):  # noqa: N818 - an answer, not an error
    def __init__(self, reasons: int) -> None:
        super().__init__()
        self.reasons = reasons


Reasoned = tuple[Constraint, int]


def solve(constraints: Iterable[Reasoned], reals: Collection[int], work: Work) -> Model | Conflict:
    """Values that satisfy all constraints, or the reasons of some that contradict each other.

    reals: the variables that need not be whole; the others get fractions only where no whole value was met. Raises
    `ExhaustedError`.
    """
    system = _System(reals, work)
    try:
        for constraint, reasons in constraints:
            system.add(constraint, reasons)
        system.eliminate()
    except _Contradiction as found:
        return Conflict(found.reasons)
    return system.model()


class _System:
    """Constraints, and the variables that are gone from them."""

    def __init__(self, reals: Collection[int], work: Work) -> None:
        self._reals = reals
        self._work = work
        self._fresh = -1  # number of the next variable that only this system has
        self._equations: list[tuple[Linear, int]] = []
        self._bounds: dict[Terms, Reasoned] = {}  # the tightest for every left side
        self._steps: list[_Solved | _Bounded] = []

    def add(self, constraint: Constraint, reasons: int) -> None:
        """One more constraint, divided by what its coefficients share. Raises `_Contradiction`."""
        self._work.spend(1 + len(constraint.left.terms))
        left = _primitive(constraint.left)
        if not left.terms:
            if not constraint.holds({}):
                raise _Contradiction(reasons)
            return
        whole = not any(v in self._reals for v, _ in left.terms)
        if constraint.relation is not Relation.ZERO:
            tight = _tightened(left, constraint.relation) if whole else Constraint(left, constraint.relation)
            self._bound(tight, reasons)
        elif whole and Fraction(left.constant).denominator != 1:
            raise _Contradiction(reasons)
        else:
            self._equations.append((left, reasons))

    def eliminate(self) -> None:
        """Solve until no variable is left. Raises `_Contradiction`."""
        while self._equations or self._bounds:
            if self._equations:
                self._solve_equation(*min(self._equations, key=_effort))
            else:
                self._eliminate_bounded()

    def model(self) -> Model:
        """Values of all variables, found backwards."""
        values: Model = {}
        for step in reversed(self._steps):
            match step:
                case _Solved():
                    values[step.variable] = _plain(Fraction(step.value.at(values)) / step.divisor)
                case _Bounded():
                    values[step.variable] = _between(step, values)
        return values

    def _bound(self, constraint: Constraint, reasons: int) -> None:
        """Keep the tightest constraint of its left side; two that leave one value become an equation."""
        left = constraint.left
        known = self._bounds.get(left.terms)
        if known is not None and not _tighter(constraint, known[0]):
            return
        self._bounds[left.terms] = constraint, reasons
        other = self._bounds.get((-left).terms)
        if other is None:
            return
        opposite, both = other[0], other[1] | reasons
        room = left.constant + opposite.left.constant
        strict = Relation.POSITIVE in (constraint.relation, opposite.relation)
        if room < 0 or (room == 0 and strict):
            raise _Contradiction(both)
        if room == 0:
            del self._bounds[left.terms], self._bounds[opposite.left.terms]
            self.add(Constraint(left, Relation.ZERO), both)

    def _solve_equation(self, equation: Linear, reasons: int) -> None:
        """Get rid of an equation, or take one step of Euclid's algorithm on its coefficients."""
        real = next(((v, c) for v, c in equation.terms if v in self._reals), None)
        variable, coefficient = real or min(equation.terms, key=lambda t: magnitude(t[1]))
        rest = equation.without(variable)
        if real is not None or magnitude(coefficient) == 1:
            self._equations.remove((equation, reasons))
            self._substitute(_Solved(variable, -rest, coefficient), reasons)
            return
        # x = new - sum floor(a_i / a) x_i - floor(c / a) leaves coefficients below |a|; it holds of any equation.
        floors = Linear(
            tuple((v, c // coefficient) for v, c in rest.terms if c // coefficient), rest.constant // coefficient
        )
        self._substitute(_Solved(variable, Linear.variable(self._fresh) - floors, 1), 0)
        self._fresh -= 1

    def _substitute(self, step: _Solved, reasons: int) -> None:
        self._steps.append(step)
        variable, scale, sign = step.variable, magnitude(step.divisor), 1 if step.divisor > 0 else -1
        old = [(Constraint(e, Relation.ZERO), why) for e, why in self._equations] + list(self._bounds.values())
        changed = [(c, why) for c, why in old if c.left.coefficient(variable)]
        self._equations = [(e, why) for e, why in self._equations if not e.coefficient(variable)]
        for constraint, _ in changed:
            self._bounds.pop(constraint.left.terms, None)
        for constraint, why in changed:
            factor = constraint.left.coefficient(variable) * sign
            left = _combined(constraint.left.without(variable), scale, step.value, factor)
            self.add(Constraint(left, constraint.relation), why | reasons)

    def _eliminate_bounded(self) -> None:
        """Eliminate the variable that makes the fewest new constraints."""
        lower: dict[int, int] = {}
        upper: dict[int, int] = {}
        for terms in self._bounds:
            for v, c in terms:
                side = lower if c > 0 else upper
                side[v] = side.get(v, 0) + 1
        variable = min(lower.keys() | upper.keys(), key=lambda v: (_growth(lower.get(v, 0), upper.get(v, 0)), v))
        about = [(c, why) for c, why in self._bounds.values() if c.left.coefficient(variable)]
        for constraint, _ in about:
            del self._bounds[constraint.left.terms]
        self._steps.append(_Bounded(variable, tuple(c for c, _ in about)))
        below = [(c, why) for c, why in about if c.left.coefficient(variable) > 0]
        above = [(c, why) for c, why in about if c.left.coefficient(variable) < 0]
        for (low, why_low), (high, why_high) in product(below, above):
            a, b = low.left.coefficient(variable), -high.left.coefficient(variable)
            strict = Relation.POSITIVE in (low.relation, high.relation)
            left = _combined(low.left, b, high.left, a)
            self.add(Constraint(left, Relation.POSITIVE if strict else Relation.NON_NEGATIVE), why_low | why_high)


def _between(step: _Bounded, values: Model) -> Number:
    """A value within the bounds of an eliminated variable: whole and near 0 where there is one."""
    low = high = None
    open_low = open_high = False
    for constraint in step.constraints:
        factor = constraint.left.coefficient(step.variable)
        end = Fraction(-constraint.left.without(step.variable).at(values)) / factor
        strict = constraint.relation is Relation.POSITIVE
        if factor > 0 and (low is None or (end, strict) > (low, open_low)):
            low, open_low = end, strict
        if factor < 0 and (high is None or (end, not strict) < (high, not open_high)):
            high, open_high = end, strict
    first = None if low is None else math.floor(low) + 1 if open_low else math.ceil(low)
    last = None if high is None else math.ceil(high) - 1 if open_high else math.floor(high)
    if low is not None and high is not None and first is not None and last is not None and first > last:
        return (low + high) / 2
    near = 0 if first is None else max(0, first)
    return near if last is None else min(near, last)


def _effort(equation: tuple[Linear, int]) -> tuple[Number, int]:
    """The equation with the smallest coefficient comes first, so that Euclid's algorithm stays with one to its end."""
    terms = equation[0].terms
    return min(magnitude(c) for _, c in terms), len(terms)


def _growth(low: int, high: int) -> int:
    return low * high - low - high


def _tighter(new: Constraint, old: Constraint) -> bool:
    """Whether a constraint with the same left side but for the constant says more."""
    return (new.left.constant, new.relation is not Relation.POSITIVE) < (
        old.left.constant,
        old.relation is not Relation.POSITIVE,
    )


def _primitive(left: Linear) -> Linear:
    """The same sign with whole coefficients that share no divisor; the constant may become a fraction."""
    numbers = [c for _, c in left.terms]
    if not all(type(c) is int for c in numbers):
        left = left * math.lcm(*(Fraction(c).denominator for c in numbers))
    common = math.gcd(*(int(c) for _, c in left.terms))
    if common <= 1:
        return left
    terms = tuple((v, int(c) // common) for v, c in left.terms)
    return Linear(terms, _plain(Fraction(left.constant) / common))


def _tightened(left: Linear, relation: Relation) -> Constraint:
    """A bound on a sum of integers: its constant as the next whole number that says the same."""
    strict = relation is Relation.POSITIVE
    constant = math.ceil(left.constant) - 1 if strict else math.floor(left.constant)
    return Constraint(Linear(left.terms, constant), Relation.NON_NEGATIVE)


def magnitude(value: Number) -> Number:
    """Its absolute value."""
    return -value if value < 0 else value


def _plain(value: Fraction) -> Number:
    return value.numerator if value.denominator == 1 else value
