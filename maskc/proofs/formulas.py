"""Formulas over linear constraints, and the variables that stand for what no sum expresses: `a // b`, `min`, products,
functions. Their defining facts are collected beside them, and equal terms get the same variable.
"""

from dataclasses import dataclass

from maskc.expr import BinaryOp, Type
from maskc.proofs.linear import Constraint, ExhaustedError, Linear, Model, Number, Relation

_TERMS = 64  # of a product that is multiplied out
_DEGREE = 4
_PARTS = 50_000  # of all formulas together


@dataclass(frozen=True, eq=False)
class All:
    """Every part holds."""

    parts: tuple["Formula", ...] = ()


@dataclass(frozen=True, eq=False)
class Either:
    """At least one part holds."""

    parts: tuple["Formula", ...] = ()


Formula = Constraint | All | Either

TRUE = All()
FALSE = Either()


def holds(formula: Formula, model: Model) -> bool:
    """Whether a formula is true of these values."""
    match formula:
        case Constraint():
            return formula.holds(model)
        case All():
            return all(holds(part, model) for part in formula.parts)
        case Either():
            return any(holds(part, model) for part in formula.parts)


@dataclass(frozen=True)
class Application:
    """A function of integers that nothing more is known of than that equal arguments give equal values."""

    name: str
    arguments: tuple[Linear, ...]


class Variables:
    """The variables of a problem.

    facts: what holds of them in every case. reals: those that are no integers. products: of one that stands for a
    product, its factors. applications: of one that stands for the value of a function, which.
    """

    def __init__(self) -> None:
        self.facts: list[Formula] = []
        self.reals: set[int] = set()
        self.products: dict[int, tuple[int, ...]] = {}
        self.applications: dict[int, Application] = {}
        self._numbers: dict[tuple[int, ...], int] = {}
        self._applied: dict[Application, int] = {}
        self._parts = 0
        self.count = 0

    def both(self, *parts: Formula) -> Formula:
        """Every part holds."""
        self._spend(len(parts))
        if any(p is FALSE for p in parts):
            return FALSE
        kept = [p for p in parts if p is not TRUE]
        return kept[0] if len(kept) == 1 else All(tuple(kept)) if kept else TRUE

    def either(self, *parts: Formula) -> Formula:
        """At least one part holds."""
        self._spend(len(parts))
        if any(p is TRUE for p in parts):
            return TRUE
        kept = [p for p in parts if p is not FALSE]
        return kept[0] if len(kept) == 1 else Either(tuple(kept)) if kept else FALSE

    def compared(self, op: BinaryOp, a: Linear, b: Linear) -> Formula:
        """a op b."""
        match op:
            case BinaryOp.LT:
                return self._decided(Constraint(b - a, Relation.POSITIVE))
            case BinaryOp.LE:
                return self._decided(Constraint(b - a, Relation.NON_NEGATIVE))
            case BinaryOp.GT:
                return self.compared(BinaryOp.LT, b, a)
            case BinaryOp.GE:
                return self.compared(BinaryOp.LE, b, a)
            case BinaryOp.EQ:
                return self._decided(equal(a, b))
            case BinaryOp.NE:
                return self.either(self.compared(BinaryOp.LT, a, b), self.compared(BinaryOp.LT, b, a))
            case _:
                raise AssertionError(f"{op} compares no numbers")

    def _decided(self, constraint: Constraint) -> Formula:
        self._spend(1)
        if constraint.left.terms:
            return constraint
        return TRUE if constraint.holds({}) else FALSE

    def _spend(self, parts: int) -> None:
        self._parts += parts
        if self._parts > _PARTS:
            raise ExhaustedError

    def new(self, type_: Type = Type.INT) -> Linear:
        """One more variable; a boolean is 0 or 1."""
        self._spend(1)
        self.count += 1
        if type_ is Type.FLOAT:
            self.reals.add(self.count)
        result = Linear.variable(self.count)
        if type_ is Type.BOOL:
            self.fact(at_least(result, 0), at_least(-result, -1))
        return result

    def fact(self, *formulas: Formula) -> None:
        """What holds in every case."""
        self.facts += [f for f in formulas if f is not TRUE]

    def apply(self, application: Application, type_: Type) -> Linear:
        """The value of a function of integers."""
        if application not in self._applied:
            variable = self.new(type_).terms[0][0]
            self._applied[application] = variable
            self.applications[variable] = application
        return Linear.variable(self._applied[application])

    def chosen(self, *cases: tuple[Formula, Linear]) -> Linear:
        """A number that is given case by case; exactly one case holds."""
        if cases[0][1] == cases[1][1]:
            return cases[0][1]
        for condition, value in cases:
            if condition is TRUE:
                return value
        result = self.new()
        self.facts.append(self.either(*(self.both(condition, equal(result, value)) for condition, value in cases)))
        return result

    def multiplied(self, a: Linear, b: Linear) -> Linear:
        """A product, multiplied out where that is short."""
        short = len(a.terms) * len(b.terms) <= _TERMS
        if not short or any(
            len(self.factors(v)) + len(self.factors(w)) > _DEGREE for v, _ in a.terms for w, _ in b.terms
        ):
            return self.apply(Application("*", tuple(sorted((a, b), key=lambda x: (x.terms, x.constant)))), Type.INT)
        result = a * b.constant + Linear(b.terms) * a.constant
        for v, c in a.terms:
            for w, d in b.terms:
                result = result + self._product(self.factors(v) + self.factors(w)) * (c * d)
        return result

    def factors(self, variable: int) -> tuple[int, ...]:
        """The variables whose product it is."""
        return self.products.get(variable, (variable,))

    def cofactor(self, variable: int, factor: int) -> Linear:
        """What is left of a product without one of its factors."""
        rest = list(self.factors(variable))
        rest.remove(factor)
        return self._product(tuple(rest))

    def _product(self, factors: tuple[int, ...]) -> Linear:
        factors = tuple(sorted(factors))
        if len(factors) == 1:
            return Linear.variable(factors[0])
        if factors not in self._numbers:
            result = self.new()
            self._numbers[factors] = result.terms[0][0]
            self.products[self._numbers[factors]] = factors
        return Linear.variable(self._numbers[factors])

    def quotient(self, a: Linear, b: Linear) -> Linear:
        """a // b, floored; 0 where b is 0."""
        return self._division(a, b)[0]

    def remainder(self, a: Linear, b: Linear) -> Linear:
        """a % b, with the sign of b; 0 where b is 0."""
        return self._division(a, b)[1]

    def _division(self, a: Linear, b: Linear) -> tuple[Linear, Linear]:
        """a // b and a % b, both floored, and 0 where b is 0."""
        if not b.terms and b.constant in (-1, 0, 1):
            return a * b.constant, Linear()
        if not a.terms and not b.terms:
            return Linear((), a.constant // b.constant), Linear((), a.constant % b.constant)
        known = Application("//", (a, b))
        new = known not in self._applied
        quotient = self.apply(known, Type.INT)
        if not b.terms:
            remainder = a - quotient * b.constant
            if new:
                sign = 1 if b.constant > 0 else -1
                self.fact(at_least(remainder * sign, 0), at_least(b * sign - remainder * sign, 1))
            return quotient, remainder
        remainder = self.apply(Application("%", (a, b)), Type.INT)
        if new:
            rest = equal(remainder, a - self.multiplied(b, quotient))
            positive = self.both(at_least(b, 1), at_least(remainder, 0), at_least(b - remainder, 1), rest)
            negative = self.both(at_least(-b, 1), at_least(-remainder, 0), at_least(remainder - b, 1), rest)
            none = self.both(equal(b, Linear()), equal(quotient, Linear()), equal(remainder, Linear()))
            self.facts.append(self.either(positive, negative, none))
        return quotient, remainder

    def bits(self, op: BinaryOp, a: Linear, b: Linear) -> Linear:
        """Bit by bit: of numbers that are not negative it is known how large it can be."""
        known = Application(op.value, (a, b))
        new = known not in self._applied
        value = self.apply(known, Type.INT)
        if new:
            ends = [at_least(a - value, 0), at_least(b - value, 0)]
            if op is not BinaryOp.BITAND:
                ends = [at_least(a + b - value, 0)]
            if op is BinaryOp.BITOR:
                ends += [at_least(value - a, 0), at_least(value - b, 0)]
            inside = self.both(at_least(value, 0), *ends)
            self.facts.append(self.either(at_least(-a, 1), at_least(-b, 1), inside))
        return value


def equal(a: Linear, b: Linear) -> Constraint:
    """a == b."""
    return Constraint(a - b, Relation.ZERO)


def at_least(a: Linear, least: Linear | Number) -> Constraint:
    """a >= least."""
    return Constraint(a - least, Relation.NON_NEGATIVE)
