"""Why a pair is kept or dropped, judged by the definition, by the plan and by changing what does not decide."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_specs import Draw

from maskc import reference
from maskc.check import load
from maskc.diagnostics import MaskInputError
from maskc.interval import Truth
from maskc.plan import build, tile_map
from maskc.sizes import resolve
from maskc.spec import Sizes
from maskc.why import Pair, why


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
