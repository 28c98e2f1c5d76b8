"""Random masks in the language: generated kernels under the interpreter against dense attention in float64."""

import random

import pytest
from kernels.cases import Case, judged

from maskc.diagnostics import MaskInputError
from maskc.runtime import interpreter

LENGTHS = ((33, 33), (1, 1), (17, 40), (40, 17), (32, 64))
INTEGERS = ("q", "k", "q", "k", "w", "head", "batch", "3", "7", "t[q]", "t[k]", "q_len")
SCORES = ("score", "score", "0.5", "s", "b[head, k]", "0.1 * (q - k)", "(q + 0.0) / 30")


class Draw:
    """Draws the text of expressions from a seed, `depth` operators deep."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def integer(self, depth: int) -> str:
        if depth == 0 or self.random.random() < 0.25:
            return self.random.choice(INTEGERS)
        a, b = self.integer(depth - 1), self.integer(depth - 1)
        forms = [f"({a} {op} {b})" for op in ("+", "-", "//", "%", "&", "|", "^")]
        forms += [f"min({a}, {b})", f"max({a}, {b})", f"abs({a} - {b})", f"clamp({a}, 2, 40)"]
        forms += [f"({a} * {self.random.choice('23')})", f"({a} << 2)", f"({a} >> {self.random.choice('13')})"]
        forms += [f"floor({a} * 0.3)", f"round({a} * 0.5)", f"ceil({a} * s)"]
        forms += [f"({a} if {self.predicate(depth - 1)} else {b})"]
        return self.random.choice(forms)

    def predicate(self, depth: int) -> str:
        comparison = self.random.choice(("<", "<=", ">", ">=", "==", "!="))
        forms = [f"({self.integer(min(depth, 2))} {comparison} {self.integer(min(depth, 2))})"] * 4
        if depth:
            forms += [f"not {self.predicate(depth - 1)}", "ok[k]", "(u[head, q - k + 33])"]
            for op in ("and", "or"):
                forms += [f"({self.predicate(depth - 1)} {op} {self.predicate(depth - 1)})"] * 2
        return self.random.choice(forms)

    def score(self, depth: int) -> str:
        if depth == 0 or self.random.random() < 0.3:
            return self.random.choice(SCORES)
        a, b = self.score(depth - 1), self.score(depth - 1)
        forms = [f"({a} {op} {b})" for op in "+-*"] + [
            f"{f}({a})" for f in ("tanh", "sigmoid", "relu", "abs", "softplus")
        ]
        forms += [
            f"({a} / (1.5 + abs({b})))",
            f"exp(-abs({a}))",
            f"min({a}, {b})",
            f"({a} if {self.predicate(1)} else {b})",
        ]
        return self.random.choice(forms)

    def case(self) -> Case:
        lines = [
            "input t: int[seq]",
            "input ok: bool[batch, seq]",
            "input u: bool[head, 66]",
            "input b: float[head, seq]",
        ]
        lines += [f"keep {self.predicate(3)}" for _ in range(self.random.randrange(3))]
        if self.random.random() < 0.6:
            lines.append(f"score {self.random.choice(('=', '+='))} {self.score(2)}")
        text = "mask case(w: int, s: float = 0.37):\n" + "".join(f"    {line}\n" for line in lines or ["pass"])
        return Case(
            "random",
            text,
            lengths=self.random.choice(LENGTHS),
            heads=self.random.choice(((2, 1), (2, 2), (3, 1))),
            batch=self.random.choice((1, 2)),
            offsets={"q_offset": self.random.choice((0, 5))},
            given={"w": self.random.choice((-3, 1, 5, 8, 2**40))},  # the last one needs 64-bit indices
        )


def _judge(seed: int) -> None:
    case = Draw(seed).case()
    try:
        call = case.call()
    except MaskInputError as error:
        if "divides by zero" in str(error) or "64 bits" in str(error):
            pytest.skip(str(error))
        raise
    report = judged(call, interpreter)
    assert report.passed, f"\n{case.text}\n{call.sizes}\n{report}"


@pytest.mark.parametrize("seed", range(6))
def test_random_masks_agree_with_dense(seed: int) -> None:
    _judge(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6, 100))
def test_more_random_masks_agree_with_dense(seed: int) -> None:
    _judge(seed)
