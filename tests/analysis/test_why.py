"""Why a pair is kept or dropped, judged by the definition, by the plan and by changing what does not decide."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_specs import Draw

from maskc import reference
from maskc.analysis.interval import Truth
from maskc.analysis.plan import build, tile_map
from maskc.check import load
from maskc.commands.why import Pair, why
from maskc.compiler import compile_attention
from maskc.diagnostics import MaskInputError
from maskc.sizes import resolve
from maskc.spec import Sizes


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32), st.data())
def test_answers_agree_with_the_definition_and_the_plan(seed: int, data: st.DataObject) -> None:
    draw = Draw(seed)
    spec, sizes, inputs = draw.spec(), draw.sizes, draw.inputs
    if 0 in (sizes.q_len, sizes.k_len):
        return
    q, k, head, batch = (data.draw(st.integers(0, n - 1)) for n in (sizes.q_len, sizes.k_len, sizes.heads, sizes.batch))
    plan = build(spec, sizes, (8, 16), inputs)
    starts = [
        int(inputs[f"{s}_offset"][batch]) if fixed is None else fixed
        for s, fixed in (("q", sizes.q_offset), ("k", sizes.k_offset))
    ]
    answer = why(plan, Pair(q + starts[0], k + starts[1], head, batch), inputs)
    shape = (sizes.batch, sizes.heads, sizes.q_len, sizes.k_len)
    dims = reference.mask_dims(spec, sizes)
    mask = reference.mask(spec, sizes, inputs)
    whole = mask.reshape((shape[0] if dims[0] else 1, shape[1] if dims[1] else 1, *shape[2:]))
    assert answer.kept == np.broadcast_to(whole, shape)[batch, head, q, k]
    maps = np.broadcast_to(
        tile_map(plan).reshape(*plan.maps, answer.tile.rows, answer.tile.columns),
        (*shape[:2], answer.tile.rows, answer.tile.columns),
    )
    assert answer.tile.truth == maps[batch, head, q // 8, k // 16]
    assert all(verdict.reasons for verdict in answer.verdicts)
    assert str(answer).count("this clause") == sum(v.holds == answer.kept for v in answer.verdicts)


NAMES = ("a", "b", "c", "d")
LOGIC = st.recursive(
    st.sampled_from(NAMES),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(lambda x: f"({x[0]}) {x[1]} ({x[2]})"),
        st.lists(inner, min_size=3, max_size=3).map(lambda x: f"({x[0]}) if ({x[1]}) else ({x[2]})"),
        inner.map(lambda x: f"not ({x})"),
    ),
    max_leaves=6,
)


@settings(deadline=None, max_examples=60)
@given(LOGIC, st.tuples(*[st.booleans()] * 4))
def test_the_reasons_decide_whatever_the_rest_is(text: str, values: tuple[bool, ...]) -> None:
    spec = load(f"mask m({', '.join(f'{n}: bool' for n in NAMES)}):\n    keep {text}\n")
    sizes = resolve(spec, q_len=1, k_len=1, given=dict(zip(NAMES, values, strict=True)))
    (verdict,) = why(build(spec, sizes, (8, 8)), Pair(0, 0)).verdicts
    reasons = {reason.text: reason.holds for reason in verdict.reasons}
    assert reasons.items() <= dict(zip(NAMES, values, strict=True)).items()
    for others in itertools.product((False, True), repeat=len(NAMES)):
        given = {**dict(zip(NAMES, others, strict=True)), **reasons}
        assert eval(text, {}, given) == verdict.holds


def test_offsets_that_differ_between_batch_rows() -> None:
    spec = load("mask causal_line:\n    keep k <= q\n")
    sizes = Sizes(q_len=1, k_len=9, batch=2, q_offset=None)
    inputs = {"q_offset": np.array([3, 8])}
    plan = build(spec, sizes, (4, 4), inputs)
    assert not why(plan, Pair(3, 5, batch=0), inputs).kept
    late = why(plan, Pair(8, 5, batch=1), inputs)
    assert late.kept
    assert late.tile.queries == (8, 8)
    assert late.tile.truth is Truth.DEPENDS
    with pytest.raises(MaskInputError, match="its queries are 8 to 8"):
        why(plan, Pair(3, 5, batch=1), inputs)


def answer(body: str, q: int, k: int, length: int, k_len: int | None = None, **options: Any) -> str:
    """The lines of an answer behind the first mask of a text, with tables made as a call makes them."""
    attention = compile_attention("mask m:\n" + "".join(f"    {line}\n" for line in body.split("\n")))
    _, tables = attention.sizes(length, k_len, **options)
    return str(why(attention.plan(length, k_len, **options), Pair(q, k), tables))


def test_rows_are_shown_with_their_entries() -> None:
    route = np.array([[3, -1, 0]] * 16)
    body = "input route: int[q, top] of k // 4\nkeep k // 4 in route[q]"
    assert "k // 4 in route[q] is false: k // 4 = 1, route[q] = [3, -1, 0]\n" in answer(body, 9, 5, 16, route=route)
    assert "k // 4 in route[q] is true: k // 4 = 3, route[q] = [3, -1, 0]\n" in answer(body, 9, 12, 16, route=route)
    beyond = "input route: int[n, top]\nkeep k // 4 in route[q]"
    assert "route[q] = no row\n" in answer(beyond, 9, 5, 16, route=route[:2])
    long = np.arange(16)[None].repeat(16, 0)
    assert "= [0, 1, 2, 3, 4, 5, 6, 7, ...]\n" in answer(beyond, 9, 5, 16, route=long)


def test_buckets_are_shown_with_what_they_count() -> None:
    body = "input edge: int[n] sorted\nkeep bucket(q - k, edge) < 2"
    found = answer(body, 9, 5, 16, edge=np.array([0, 4, 8]))
    assert "bucket(q - k, edge) < 2 is false: bucket(q - k, edge) = 2, q - k = 4, edge = [0, 4, 8]\n" in found


def test_the_step_that_decides_a_fold_is_shown() -> None:
    body = "input step: int[n]\nkeep any(q - k == step[i] for i in range(n))"
    step = np.array([1, 4, 4])
    text = "any(q - k == step[i] for i in range(n))"
    assert f"{text} is true: i = 1, q - k = 4, step[i] = 4\n" in answer(body, 9, 5, 16, step=step)
    assert f"{text} is false\n" in answer(body, 9, 4, 16, step=step)
    every = body.replace("any", "all").replace("==", ">=")
    found = answer(every, 9, 6, 16, step=step)
    assert f"{text.replace('any', 'all').replace('==', '>=')} is false: i = 1, q - k = 3, step[i] = 4\n" in found


def test_tokens_are_described_by_where_they_lie() -> None:
    parts = "axes cls: 1, patch: (y, x), text: t\nkeep k in patch"
    found = answer(parts, 9, 0, 16, y=3, x=3, t=6)
    assert found.startswith("query 9 (patch y = 2, x = 2), key 0 (cls 0): dropped\n")
    assert "k in patch is false: k = 0" in found
    assert answer(parts, 12, 1, 16, y=3, x=3, t=6).startswith(
        "query 12 (text t = 2), key 1 (patch y = 0, x = 0): kept\n"
    )
    packed = "input start: int[docs] of seq sorted\npacked start\nkeep q // 3 == k // 3"
    found = answer(packed, 9, 5, 16, start=np.array([0, 7, 12]))
    assert found.startswith("query 9 (document 1, token 2), key 5 (document 0, token 5): dropped\n")
    assert "one document is false: that of q = 1, that of k = 0\n" in found
    assert "q // 3 == k // 3 is false: q // 3 = 0, k // 3 = 1\n" in found
    border = "axes y, x border 1\nkeep abs(q.y - k.y) <= 1"
    assert answer(border, 5, 0, 12, y=3, x=4).startswith("query 5 (y = 1, x = 1), key 0 (y = -1, x = -1, virtual): ")
    assert answer(border, 5, 8, 12, y=3, x=4).startswith("query 5 (y = 1, x = 1), key 8 (y = 0, x = 1): kept\n")
