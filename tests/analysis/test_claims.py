"""Claims: what is proven holds in every call that brute force tries, and what fails has the smallest witness."""

import itertools
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from maskc.check import load
from maskc.diagnostics import MaskInputError
from maskc.prologue import bind, complete
from maskc.proofs.claims import LENGTHS, SMALL, Status, judge, judge_at, lints, proven
from maskc.proofs.linear import Conflict, Constraint, ExhaustedError, Linear, Relation, Work, solve
from maskc.proofs.witness import refute
from maskc.samples import draw, free_extents
from maskc.sizes import resolve
from maskc.spec import MaskSpec, Sizes

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"


# --- linear systems -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_systems_without_a_solution_have_none_and_solutions_are_solutions(seed: int) -> None:
    r = random.Random(seed)
    unsolvable = 0
    for _ in range(60):
        count = r.randint(1, 3)
        system = [
            Constraint(
                Linear(tuple((v, c) for v in range(count) if (c := r.randint(-4, 4))), r.randint(-6, 6)),
                r.choice(list(Relation)),
            )
            for _ in range(r.randint(1, 6))
        ]
        box = [Constraint(Linear(((v, s),), 5), Relation.NON_NEGATIVE) for v in range(count) for s in (1, -1)]
        found = solve([(c, 1 << i) for i, c in enumerate((*system, *box))], (), Work(10**6))
        points = [dict(enumerate(p)) for p in itertools.product(range(-5, 6), repeat=count)]
        if isinstance(found, Conflict):
            unsolvable += 1
            blamed = [c for i, c in enumerate((*system, *box)) if found.reasons >> i & 1]
            assert not any(all(c.holds(p) for c in blamed) for p in points)
        else:
            assert all(c.holds(found) for c in (*system, *box))
    assert unsolvable > 10


def test_integers_see_parities_and_reals_do_not() -> None:
    odd = Constraint(Linear(((0, 2), (1, -4)), 1), Relation.ZERO)
    assert isinstance(solve([(odd, 1)], (), Work(100)), Conflict)
    assert not isinstance(solve([(odd, 1)], (0, 1), Work(100)), Conflict)
    between = [Constraint(Linear(((0, s),), c), Relation.POSITIVE) for s, c in ((3, -1), (-3, 2))]
    assert isinstance(solve([(c, 1) for c in between], (), Work(100)), Conflict)
    assert solve([(c, 1) for c in between], (0,), Work(100)) != Conflict(1)


def test_work_is_counted() -> None:
    with pytest.raises(ExhaustedError):
        solve([(Constraint(Linear(((v, 1),)), Relation.ZERO), 0) for v in range(9)], (), Work(10))


# --- proofs that must be found --------------------------------------------------------------------------------------


def with_claims(text: str, mask: str, *claims: str) -> MaskSpec:
    """A mask of a file with further claims at the end of its body."""
    start = re.search(rf"^mask {mask}\b.*$", text, re.MULTILINE)
    assert start is not None
    body = re.compile(r"(\n(?=\s*\n|[ ]).*)*").match(text, start.end())
    assert body is not None
    added = "".join(f"\n    claim {claim}" for claim in claims)
    return load(text[: body.end()].rstrip() + added + "\n" + text[body.end() :], mask)


PROOFS = [
    ("causal.mask", "causal", ["k <= q", "count(k) <= q + 1", "count(head) == heads"]),
    (
        "sliding_window.mask",
        "sliding_window",
        ["k <= q", "q - k < window", "abs(q - k) <= max(window, 1)", "window > 0"],
    ),
    ("dilated_window.mask", "dilated_window", ["(q - k) % dilation == 0", "k <= q", "q - k <= window * dilation"]),
    ("sink_window.mask", "sink_window", ["k <= q", "k < sink or q < k + window"]),
    ("duo_attention.mask", "duo_attention", ["q >= k", "full or k < sink or q < window + k"]),
    ("documents.mask", "documents", ["doc[k] <= doc[q]", "doc[(q + k) // 2] == doc[q]", "count(k) <= q + 1"]),
    ("prefix_lm.mask", "prefix_lm", ["k <= max(q, prefix - 1)"]),
    ("routing_transformer.mask", "routing_transformer", ["k <= q", "not local or q - k < window"]),
    (
        "sparse_transformer_strided.mask",
        "sparse_transformer_strided",
        ["q >= k", "q - k <= stride or q - k >= 2 * stride"],
    ),
    ("swin.mask", "swin", ["abs(q.y - k.y) < window", "abs(q.x - k.x) < window"]),
    ("neighborhood_2d.mask", "neighborhood_2d", ["q.y % dilation == k.y % dilation"]),
    ("gallery/general.mask", "symmetric_window", ["count(k) <= 2 * radius + 1 or radius < 0", "q - k <= radius"]),
    ("gallery/general.mask", "axial_union", ["q.y == k.y or q.x == k.x", "q != k or q.x == k.x"]),
    ("gallery/general.mask", "halonet", ["abs(q.y - k.y) < block + max(halo, 0)"]),
]


@pytest.mark.parametrize(("file", "mask", "claims"), PROOFS, ids=lambda x: x if isinstance(x, str) else "")
def test_true_claims_of_examples_are_proven(file: str, mask: str, claims: list[str]) -> None:
    spec = with_claims((EXAMPLES / file).read_text(), mask, *claims)
    pairs = [c for c in spec.claims if c.over_pairs]
    assert [str(c.expr) for c in pairs if not proven(spec, c)] == []


def test_the_claims_of_the_examples_themselves_are_proven() -> None:
    spec = load(EXAMPLES / "duo_attention.mask")
    assert [v.status for v in judge(spec)] == [Status.PROVEN]


@pytest.mark.parametrize(
    ("keeps", "claim"),
    [
        ("q // w == k // w", "abs(q - k) < w"),
        ("q // w == k // w", "k // w * w <= q < (k // w + 1) * w"),
        ("q // w >= k // w", "k < q + w"),
        ("q % w == k % w", "(q - k) % w == 0"),
        ("q - k == 2 * w", "q != k"),
        ("(q - k) % 2 == 0", "q - k != 7"),
        ("q & 1 == k & 1", "(q + k) % 2 == 0"),
        ("q >> 2 == k >> 2", "abs(q - k) <= 3"),
        ("where(head == 0, k <= q, k == q)", "k <= q"),
        ("k in (q, q - 1)", "0 <= q - k < 2"),
        ("any(q - k == i for i in range(w))", "0 <= q - k < w"),
        ("not any(k == i for i in range(w)) and any(k == i for i in range(3))", "k < 3"),
        ("k <= clamp(q, 2, 5)", "k <= 5"),
        ("k == floor(q / 2)", "k <= q"),
        ("w * s > 0.5 and k <= q", "q - k >= 0"),
        ("rand(q, k) < 0.5 and k <= q", "rand(q, k) < 0.75"),
        ("k <= q", "q < k or q < q_len + k_len or True"),
        ("tanh(s) * (k - q) >= 0 or k < q", "tanh(s) <= 1.0 or s != s"),
    ],
)
def test_a_proof_is_found(keeps: str, claim: str) -> None:
    spec = load(f"mask m(w: int = 3, s: float = 0.5):\n    claim w >= 1\n    keep {keeps}\n    claim {claim}\n")
    assert proven(spec, spec.claims[-1])


@pytest.mark.parametrize(
    ("lines", "claim"),
    [
        ("input route: int[batch, q, top] of k\n    keep k in route[q]", "k >= 0"),
        ("input t: int[batch, seq] of 9\n    keep t[q] == k", "k < 9 or k == 0"),
        ("input t: bool[seq]\n    let c = cumsum(t, seq)\n    keep k <= q", "c[k] <= c[q]"),
        ("let t = [1, 4, 16]\n    keep q - k == t[head % 3]", "q > k"),
        ("input start: int[docs] of seq sorted\n    packed start\n    keep q - k <= 4", "k >= q - 4 and k >= 0"),
        ("input t: int[head]\n    keep t == q - k", "t == q - k"),
        ("axes y, x\n    keep q.y > k.y", "q > k"),
        ("axes a: 4, b: (y, x)\n    keep q in a and k in b", "q < k"),
    ],
)
def test_a_proof_reads_tables_and_layouts(lines: str, claim: str) -> None:
    spec = load(f"mask m:\n    {lines}\n    claim {claim}\n")
    assert proven(spec, spec.claims[-1])


@pytest.mark.parametrize(
    ("lines", "claim"),
    [
        ("keep q // w == k // w", "abs(q - k) < w"),  # w = 0
        ("keep q - k < s", "q - k <= s"),  # holds, but NaN: see below
        ("keep k <= q", "s == s or q < 0"),  # NaN
        ("keep not (q - k < s)", "q - k >= s"),
        ("keep k <= q", "q // w * w + q % w == q"),
        ("keep k <= q", "count(k) >= 2"),
        ("keep k <= q", "q < q_len"),  # not with an offset
        ("keep 0 <= q - k < w", "count(k) <= w"),  # w = -1
    ],
)
def test_what_fails_somewhere_is_not_proven(lines: str, claim: str) -> None:
    spec = load(f"mask m(w: int = 3, s: float = 0.5):\n    {lines}\n    claim {claim}\n")
    expected = claim == "q - k <= s"
    assert proven(spec, spec.claims[-1]) == expected


# --- soundness ------------------------------------------------------------------------------------------------------


LAYOUTS: dict[str, tuple[list[str], list[str]]] = {  # lines, and what numbers read
    "line": ([], []),
    "counts": ([], []),
    "grid": (["axes y, x"], ["q.y", "k.y", "q.x", "k.x", "y.size", "x.size"]),
    "parts": (["axes a: 2, b: (y, x)"], ["q.segment", "k.segment", "y.size", "(k.y if k in b else -1)"]),
    "packed": (["input start: int[3] of seq sorted", "packed start"], ["doc"]),
}


class Text:
    """Random specs as text: small numbers, so that nothing leaves 64 bits."""

    def __init__(self, seed: int) -> None:
        self.r = random.Random(seed)
        self.layout = self.r.choice(list(LAYOUTS))

    def number(self, depth: int) -> str:
        r = self.r
        leaves = ("q", "k", "q", "k", "w", "u", "q_len", "k_len", "head", "d[q]", "d[k]", "ids[k]", "t[q % 4]")
        leaves = (*leaves, *LAYOUTS[self.layout][1] * 2)
        if depth == 0 or r.random() < 0.25:
            return r.choice((*leaves, str(r.randint(-3, 5))))
        a, b = self.number(depth - 1), self.number(depth - 1)
        operations = (f"({a} + {b})", f"({a} - {b})", f"({a} - {b})", f"{a} * {r.randint(-2, 3)}", f"({a} * {b})")
        divided = (f"{a} // {r.choice((2, 3, -2))}", f"{a} % {r.choice((2, 3, -3))}", f"({a}) // w", f"({a}) % (k - q)")
        others = (
            f"min({a}, {b})",
            f"max({a}, {b})",
            f"abs({a})",
            f"where({self.truth(depth - 1)}, {a}, {b})",
            f"({a} & 3)",
        )
        text = r.choice((*operations, *divided, *others))
        return f"({text})"

    def truth(self, depth: int) -> str:
        r = self.r
        if depth == 0 or r.random() < 0.6:
            comparison = r.choice(("<", "<=", ">", ">=", "==", "!="))
            return r.choice(
                (
                    f"({self.number(depth)} {comparison} {self.number(depth)})",
                    f"(0 <= q - k < {self.number(0)})",
                    "(k <= q)",
                    "valid[k]",
                    "on",
                    f"(s * (q - k) {comparison} {r.choice(('1.5', '0.0', 's'))})",
                    f"({self.number(0)} in route[q])",
                )
            )
        a, b = self.truth(depth - 1), self.truth(depth - 1)
        return r.choice((f"({a} and {b})", f"({a} or {b})", f"(not {a})", f"({a} == {b})"))

    def spec(self) -> str:
        keeps = [self.truth(2) for _ in range(self.r.randint(1, 3))]
        weaker = self.r.choice(keeps)
        claims = [self.truth(1), self.truth(2), f"{weaker} or {self.truth(1)}", f"not {weaker} or {self.truth(1)}"]
        claims += [f"not ({self.truth(2)}) or {self.number(1)} <= {self.number(1)}", self._loosened(keeps)]
        if self.layout == "counts":
            ends = {
                "k": ("w", "q", "q_len", "d[q]"),
                "q": ("w", "k", "k_len", "ids[k]"),
                "head": ("w", "heads", "q", "k"),
            }
            claims += [f"count({n}) {self.r.choice(('<=', '>=', '=='))} {self.r.choice(e)}" for n, e in ends.items()]
        lines = [
            "mask m(w: int = 2, u: int = 1, s: float = 0.5, on: bool = True):",
            *LAYOUTS[self.layout][0],
            *("input d: int[batch, seq] sorted", "input ids: int[k] of 3", "input valid: bool[batch, seq]"),
            *("input route: int[batch, q, 3] of k", "let t = [2, -1, 3, 0]"),
            *(f"keep {keep}" for keep in keeps),
            *(f"claim {claim}" if "count" in claim else f"claim {claim} or q < 0 and k < 0" for claim in claims),
        ]
        return "\n    ".join(lines) + "\n"

    def _loosened(self, keeps: list[str]) -> str:
        """Something near what is kept."""
        a, b = self.number(1), self.number(1)
        keeps.append(f"{a} <= {b}")
        return self.r.choice(
            (f"{a} < {b} + 1", f"{a} <= {b} + 1", f"{a} < {b}", f"2 * {a} <= 2 * {b}", f"{b} - {a} >= 0")
        )


def calls(spec: MaskSpec, r: random.Random) -> Iterator[tuple[Sizes, dict[str, NDArray[Any]]]]:
    """Small calls with random parameters, offsets and inputs."""
    for _ in range(12):
        q_len, k_len = r.randint(1, 9), r.randint(1, 9)
        axes = {axis: r.randint(1, 4) for axis in spec.axis_names}
        given = {
            "w": r.randint(-3, 4),
            "u": r.randint(-9, 9),
            "s": r.choice((0.5, -2.0, 0.0, float("inf"))),
            "on": r.random() < 0.5,
        }
        try:
            sizes = resolve(
                spec,
                q_len=q_len,
                k_len=k_len,
                batch=2,
                heads=4,
                kv_heads=2,
                q_offset=r.choice((0, 0, 3)),
                offset_given=True,
                given={**given, **axes},
                free=free_extents(spec),
            )
        except MaskInputError:
            continue
        drawn = draw(spec, sizes, np.random.default_rng(r.randint(0, 10**6)))
        yield sizes, complete(bind(spec, drawn), drawn)


@pytest.mark.parametrize("seed", range(40))
def test_nothing_is_proven_that_a_call_refutes(seed: int) -> None:
    spec = load(Text(seed).spec())
    shown = [claim for claim in spec.claims if claim.over_pairs and proven(spec, claim)]
    only = replace(spec, claims=tuple(shown))
    for sizes, inputs in calls(only, random.Random(seed)):
        assert [str(w) for w in refute(only, sizes, inputs)] == []


def test_random_claims_are_proven_often_enough_to_tell() -> None:
    specs = [load(Text(seed).spec()) for seed in range(12)]
    shown = sum(proven(spec, claim) for spec in specs for claim in spec.claims)
    assert shown >= 20


# --- witnesses ------------------------------------------------------------------------------------------------------


Rule = Callable[[int, int, int], bool]  # of a query, a key and the window


@pytest.mark.parametrize(
    ("keep", "claim", "kept", "claimed"),
    [
        ("0 <= q - k < window", "q - k < window - 1", lambda q, k, w: 0 <= q - k < w, lambda q, k, w: q - k < w - 1),
        (
            "q // window == k // window",
            "k <= q",
            lambda q, k, w: (w != 0 and q // w == k // w) or w == 0,
            lambda q, k, w: k <= q,
        ),
        ("k <= q", "q - k != 5", lambda q, k, w: k <= q, lambda q, k, w: q - k != 5),
        ("k <= q", "q * k < 70", lambda q, k, w: k <= q, lambda q, k, w: q * k < 70),
        ("abs(q - k) <= window", "(q + k) % 7 != 6", lambda q, k, w: abs(q - k) <= w, lambda q, k, w: (q + k) % 7 != 6),
    ],
)
def test_the_witness_is_the_smallest(keep: str, claim: str, kept: Rule, claimed: Rule) -> None:
    spec = load(f"mask m(window: int = 8):\n    claim window != 0\n    keep {keep}\n    claim {claim}\n")
    found = next(
        (n, w, q, k)
        for n in LENGTHS
        for w in (8, *SMALL)
        if w != 0
        for q in range(n)
        for k in range(n)
        if kept(q, k, w) and not claimed(q, k, w)
    )
    (verdict,) = judge(spec)
    witness = verdict.witness
    assert verdict.status is Status.REFUTED
    assert witness is not None
    assert (witness.sizes.q_len, witness.sizes.parameter["window"], witness.q, witness.k) == found


def test_a_witness_shows_what_was_read() -> None:
    spec = load(
        "mask m(n: int = 2):\n    input doc: int[batch, seq]\n    keep doc[q] == doc[k] + n - 2\n    claim k <= q\n"
    )
    sizes = resolve(spec, q_len=3, k_len=3, given={})
    (verdict,) = judge_at(spec, sizes, {"doc": np.array([[4, 7, 4]])})
    place = "q = 0, k = 2, head 0, batch row 0; 3 queries x 3 keys, n = 2, doc[0, 0] = 4, doc[0, 2] = 4"
    assert str(verdict.witness) == f"claim k <= q fails for the kept pair {place}"


def test_a_witness_shows_rows_and_coordinates() -> None:
    spec = load(
        "mask m:\n    axes y, x\n    input route: int[q, n] of k\n    keep k in route[q]\n    claim k.x == q.x\n"
    )
    sizes = resolve(spec, q_len=4, k_len=4, given={"y": 2, "x": 2}, free={"n": 2})
    (witness,) = refute(spec, sizes, {"route": np.array([[0, -1], [3, 1], [3, 0], [2, -1]])})
    assert str(witness).endswith(
        "q = 2 (y = 1, x = 0), k = 3 (y = 1, x = 1), head 0, batch row 0; "
        "4 queries x 4 keys, y = 2, x = 2, route[2] = [3, 0]"
    )


def test_a_claim_that_is_not_proven_says_where_it_was_looked_for() -> None:
    spec = load("mask m:\n    keep k <= q\n    claim q * q * q + k != 1000006\n")
    (verdict,) = judge(spec)
    assert verdict.status is Status.HOLDS
    assert verdict.looked == "holds in 27 small calls, up to 33 queries x 33 keys"
    (verdict,) = judge_at(spec, resolve(spec, q_len=101, k_len=101, given={}), {})
    assert (verdict.status, verdict.witness and (verdict.witness.q, verdict.witness.k)) == (Status.REFUTED, (100, 6))


# --- counts ---------------------------------------------------------------------------------------------------------


COUNTED = """
mask m(window: int = 3):
    input off: bool[batch, seq]
    keep 0 <= q - k < window + head and not off[q]
    claim {claim}
"""


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("claim", "along"),
    [("count(k) <= window", "q"), ("count(k) > 0", "q"), ("count(q) <= 2", "k"), ("count(head) == heads", "pair")],
)
def test_counts_agree_with_numpy(claim: str, along: str, seed: int) -> None:
    spec = load(COUNTED.format(claim=claim))
    off = np.random.default_rng(seed).random((2, 9)) < 0.4
    sizes = resolve(spec, q_len=9, k_len=9, batch=2, heads=3, kv_heads=3, given={})
    d = np.arange(9)[:, None] - np.arange(9)
    kept = (d >= 0) & (d < 3 + np.arange(3)[None, :, None, None]) & ~off[:, None, :, None]
    by_query, by_key, by_head = kept.sum(3), kept.sum(2), kept.sum(1)
    wrong = {
        "count(k) <= window": [(q, 0, b, h) for b, h, q in np.argwhere(by_query > 3)],
        "count(k) > 0": [(q, 0, b, h) for b, h, q in np.argwhere(by_query == 0)],
        "count(q) <= 2": [(0, k, b, h) for b, h, k in np.argwhere(by_key > 2)],
        "count(head) == heads": [(q, k, b, h) for b, h, q, k in np.argwhere(kept & (by_head != 3)[:, None])],
    }[claim]
    (witness,) = refute(spec, sizes, {"off": off})
    q, k, b, h = min(wrong)
    expected = {"q": (q, None), "k": (None, k), "pair": (q, k)}[along]
    assert (witness.q, witness.k, witness.batch, witness.head) == (*expected, b, h)
    value = {"q": by_query[b, h, q], "k": by_key[b, h, k], "pair": by_head[b, q, k]}[along]
    assert [v for _, v in witness.counts] == [value]


def test_counts_in_chunks_equal_counts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = load("mask m:\n    keep k <= q and q % 3 != 1\n    claim count(q) <= 4\n    claim count(k) <= 5\n")
    sizes = resolve(spec, q_len=20, k_len=20, given={})
    at_once = refute(spec, sizes)
    monkeypatch.setattr("maskc.reference._CHUNK", 40)
    assert refute(spec, sizes) == at_once
    assert [(w.q, w.k) for w in at_once] == [(None, 0), (5, None)]


def test_rows_without_keys_count() -> None:
    spec = load("mask m:\n    keep k < q\n    claim count(k) >= 1\n")
    (witness,) = refute(spec, resolve(spec, q_len=4, k_len=4, given={}))
    assert (
        str(witness)
        == "claim count(k) >= 1 fails for the query q = 0, head 0, batch row 0; 4 queries x 4 keys, count(k) = 0"
    )


# --- lints ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claims", "said"),
    [
        (["n >= 1"], []),
        (["n > 3 and n < 4"], ["this precondition never holds"]),
        (["n * n >= 0 or n < 0 or n > 0"], ["this precondition always holds"]),
        (["n >= 4", "n < 3"], ["this precondition contradicts those above it"]),
        (["q_len >= 0"], ["this precondition always holds"]),
    ],
)
def test_preconditions_that_say_nothing(claims: list[str], said: list[str]) -> None:
    text = "mask m(n: int = 4):\n" + "".join(f"    claim {c}\n" for c in claims) + "    keep k <= q\n"
    assert [d.message for d in lints(load(text))] == said


def test_a_mask_that_keeps_nothing() -> None:
    found = lints(load("mask m:\n    keep k < q\n    keep q < k\n    claim k == 7\n"))
    assert [d.message for d in found] == ["mask 'm' keeps no pair, so its claims say nothing"]


@pytest.mark.parametrize(
    ("keeps", "idle"),
    [
        (["k <= q", "k <= q + 1"], ["k <= q + 1"]),
        (["k <= q", "q - k < 9"], []),
        (["q // 4 == k // 4", "abs(q - k) < 4"], ["abs(q - k) < 4"]),
        (["k < 5 and k < 3", "k < 4"], ["k < 4"]),
        (["k < 5", "k <= 4"], ["k < 5", "k <= 4"]),  # each of them: one is enough
    ],
)
def test_keeps_that_change_nothing(keeps: list[str], idle: list[str]) -> None:
    found = lints(load("mask m:\n" + "".join(f"    keep {keep}\n" for keep in keeps)))
    assert [d.span.text for d in found if d.span is not None] == idle
