"""The tiled engine on all that decides pairs and adds to scores, against dense in float64.

Tables of every source, rows, buckets, folds, random numbers, parts, packed documents and borders.
"""

from typing import Any

import numpy as np
import pytest
import torch

from maskc import samples
from maskc.check import load
from maskc.runtime import inputs, prologue, tables, tiled, tolerance
from maskc.runtime.inputs import Call
from maskc.runtime.tiles import TILE
from maskc.sizes import resolve

SPECS = {
    "routed blocks": """
        mask routed(block: int = 16, top: int = 3):
            input route: int[batch, kv_head, q, top] of k // block
            keep k // block in route[q] or k // block == q // block
            keep k <= q
        """,
    "routed block rows": """
        mask routed(block: int = 32, top: int = 3):
            input route: int[batch, head, q // block, top] of k // block
            keep k // block in route[q // block] and k <= q
        """,
    "packed": """
        mask packed_windows(window: int = 24):
            input start: int[batch, docs] of seq sorted
            packed start
            keep q // window == k // window
            score += (k - q) / (q_len + 1)
        """,
    "buckets": """
        mask buckets(n: int = 8):
            input bias: float[head, n]
            keep k <= q
            score += bias[bucket(q - k, [1, 2, 4, 8, 16, 32, 64])]
        """,
    "buckets of floats": """
        mask own(n: int = 4):
            input edges: float[head, n] sorted
            keep k <= q and bucket((q - k) / 40, edges) != 2
        """,
    "folds": """
        mask folds:
            input step: int[head, steps]
            let steps_met = sum((q - k) % (s + 2) == 0 for s in range(3))
            keep k <= q and any(0 <= q - k - 20 * step[i] < 9 for i in range(steps))
            score -= steps_met / 2
        """,
    "random": """
        mask random(seed: int = 5):
            keep k <= q and (q - k < 5 or rand(seed, batch, head, q // 16, k // 16) < 0.4)
            score += where(rand(seed, q, k) < 0.5, 0.25, -0.25)
        """,
    "sums": """
        mask sums:
            input step: float[batch, head, seq]
            let total = cumsum(step, seq)
            keep k <= q
            score -= abs(total[q] - total[k])
        """,
    "sums in a bent score": """
        mask bent_sums:
            input step: float[batch, head, seq]
            let total = cumsum(step, seq)
            keep k <= q
            score = 2 * tanh(score) - abs(total[q] - total[k]) * scale
        """,
    "literal tables": """
        mask tables:
            let layout = [[1, 0, 0, 1], [0, 1, 0, 1]]
            keep layout[q // 32 % 2, k // 32 % 4] == 1 or q - k in [0, 1, 70]
            score += [0.5, -0.5][head % 2] * scale
        """,
}
LENGTHS = [(1, 1, 0), (63, 63, 0), (64, 64, 0), (65, 130, 65), (130, 65, 0), (257, 257, 0), (5, 300, 290)]


def call_of(text: str, q_len: int, k_len: int, *, given: dict[str, Any] | None = None, **options: Any) -> Call:
    """A call of two batch rows and four heads in two groups; what is not given is drawn."""
    spec = load(text)
    given = {} if given is None else given
    generator = torch.Generator().manual_seed(q_len)
    q, k, v = (
        torch.randn(2, heads, length, 8, generator=generator) for heads, length in ((4, q_len), (2, k_len), (2, k_len))
    )
    shared: dict[str, Any] = {"batch": 2, "heads": 4, "kv_heads": 2, "offset_given": True}
    shared["free"] = samples.free_extents(spec)
    fixed = {name: o for name, o in options.items() if isinstance(o, int)}
    sizes = resolve(spec, q_len=q_len, k_len=k_len, given=given, **shared, **fixed)
    drawn = samples.draw(spec, sizes, np.random.default_rng(q_len + k_len))
    arrays = {name: torch.from_numpy(x) for name, x in drawn.items()}
    return inputs.prepare(spec, q, k, v, {**arrays, **given}, **options)


def assert_right(call: Call) -> None:
    """Output, log-sum-exp and gradients."""
    generator = torch.Generator().manual_seed(3)
    d_out = torch.randn(*call.q.shape[:3], call.v.shape[3], generator=generator)
    d_lse = torch.randn(call.q.shape[:3], generator=generator)
    out, lse = tiled.forward(call)
    d_q, *rest = tiled.backward(call, out, lse, d_out, d_lse)
    d_k, d_v = (prologue.inner(call.spec, call.sizes, x) for x in rest)
    report = tolerance.check(call, {"out": out, "lse": lse, "dq": d_q, "dk": d_k, "dv": d_v}, d_out, d_lse)
    assert report.passed, f"\n{report}"


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize(("q_len", "k_len", "q_offset"), LENGTHS)
def test_agrees_with_dense(name: str, q_len: int, k_len: int, q_offset: int) -> None:
    assert_right(call_of(SPECS[name], q_len, k_len, q_offset=q_offset))


@pytest.mark.parametrize("name", ["routed blocks", "buckets", "folds", "random", "literal tables"])
def test_masks_are_made_anew_where_batch_rows_begin_elsewhere(name: str) -> None:
    spec = load(SPECS[name])
    call = call_of(SPECS[name], 70, 250, q_offset=180)
    tensors = {i.name: call.inputs[i.name] for i in spec.given}
    offsets = torch.tensor([3, 180])
    assert_right(inputs.prepare(spec, call.q, call.k, call.v, tensors, q_offset=offsets))


@pytest.mark.parametrize(("cls", "y", "x", "text"), [(1, 1, 1, 1), (1, 5, 7, 30), (3, 13, 5, 1), (1, 11, 10, 100)])
def test_parts(cls: int, y: int, x: int, text: int) -> None:
    spec = f"""
        mask parts:
            axes cls: {cls}, patch: (y, x), text: t
            keep (q in patch and k in patch and abs(q.y - k.y) <= 1) or k in cls or (q in text and k <= q)
        """
    length = cls + y * x + text
    assert_right(call_of(spec, length, length, given={"y": y, "x": x, "t": text}))


@pytest.mark.parametrize(("y", "x", "ring"), [(1, 1, 1), (6, 8, 2), (5, 17, 1), (13, 11, 0)])
def test_borders(y: int, x: int, ring: int) -> None:
    spec = f"mask bordered:\n    axes y, x border {ring}\n    keep abs(q.y - k.y) <= 2 and abs(q.x - k.x) <= 2\n"
    assert_right(call_of(spec, y * x, y * x, given={"y": y, "x": x}))


def test_plans_with_tables_of_the_spec_are_kept() -> None:
    """Nothing has to be compared: what the spec says does not change."""
    call = call_of(SPECS["literal tables"], 130, 130)
    assert tables.plan_of(call, TILE) is tables.plan_of(call, TILE)
    assert tables.plan_of(call, TILE).given == {}


def test_masks_that_read_the_scale_are_those_of_the_call() -> None:
    spec = load("mask scaled:\n    keep k <= q\n    score += scale * (k - q)\n")
    q = torch.randn(1, 1, 90, 8)
    for scale in (0.5, 0.25):
        assert_right(inputs.prepare(spec, q, q, q, {}, scale=scale))
