"""What engines refuse: the part of the spec that stops them is named, where it stands, and who can run it."""

import pytest

from maskc import features, reference
from maskc.analysis.plan import build
from maskc.check import load
from maskc.codegen.source import emit
from maskc.diagnostics import MaskUnsupportedError
from maskc.spec import Sizes

ENGINES = ("tiled", "triton", "interpret")

RUN_BY_TILED = {
    "any(q - k == t[i] for i in range(n))": "input t: int[n]\nkeep any(q - k == t[i] for i in range(n))",
    "any(q - k == 3 * i for i in range(65))": "keep any(q - k == 3 * i for i in range(65))",
    "any(any(q - k == i * j for i in range(9)) for j in range(8))": (
        "keep any(any(q - k == i * j for i in range(9)) for j in range(8))"
    ),
    "total[q]": "input step: float[seq]\nlet total = cumsum(step, seq)\nscore += total[q] - total[k]",
}
RUN_BY_DENSE = {
    "input slope: float[head] learned": "input slope: float[head] learned   # per head\nscore += slope * (k - q)",
    "score": "keep score > 0",
    "dot(query, key)": "score = dot(query, key) * 0.5",
    "mass *= 2": "keep k <= q\nmass *= 2",
    "normalize none(score)": "keep k <= q\nnormalize none(score)",
    "normalize softmax(sink=1.0)": "normalize softmax(sink=1.0)",
    "weight *= 0.5": "weight *= 0.5",
    "output total[q] = sum(score)": "output total[q] = sum(score)",
    "rows q % 2 == 0 else zero": "rows q % 2 == 0 else zero",
}


def spec_of(body: str):
    return load("mask m:\n" + "".join(f"    {line}\n" for line in body.split("\n")))


@pytest.mark.parametrize("text", RUN_BY_TILED)
def test_kernels_refuse_what_tiles_run(text: str) -> None:
    spec = spec_of(RUN_BY_TILED[text])
    assert features.refusal(spec, "tiled") is None
    for engine in features.KERNELS:
        found = features.refusal(spec, engine)
        assert found is not None
        assert found.message == f"engine '{engine}' cannot run '{text}' yet"
        assert found.hint == "engine='tiled' and engine='dense' can"
        assert found.span is not None
        assert " ".join(found.span.text.split()) == text


@pytest.mark.parametrize("text", RUN_BY_DENSE)
def test_every_other_engine_refuses_what_only_the_definition_runs(text: str) -> None:
    spec = spec_of(RUN_BY_DENSE[text])
    assert features.refusal(spec, "dense") is None
    for engine in ENGINES:
        found = features.refusal(spec, engine)
        assert found is not None
        assert (found.message, found.hint) == (f"engine '{engine}' cannot run '{text}' yet", "engine='dense' can")
        assert found.span is not None
        assert found.span.text == text


@pytest.mark.parametrize("body", [*RUN_BY_TILED.values(), *RUN_BY_DENSE.values()])
def test_no_kernel_is_written_for_what_is_refused(body: str) -> None:
    with pytest.raises(MaskUnsupportedError, match="engine 'triton' cannot run"):
        emit(spec_of(body))


@pytest.mark.parametrize(
    "body",
    [
        "keep k <= q",
        "keep [[1, 0], [1, 1]][q % 2, k % 2] == 1",
        "input route: int[q, top] of k // 8\nkeep k // 8 in route[q]",
        "keep k <= q and bucket(q - k, [1, 4]) > 0",
        "keep any(q - k == 3 * i for i in range(64))",
        "keep any(any(q - k == i * j for i in range(8)) for j in range(2 * 4))",
        "score += where(rand(7, q, k) < 0.5, 0, 1)",
        "input start: int[docs] of seq sorted\npacked start\nkeep k <= q",
        "input slope: float[head]\nscore += slope * (k - q)",
        "input bias: float[n]\nscore += bias[q % n] * scale",
        "axes y, x border 1\nkeep abs(q.y - k.y) <= 1",
    ],
)
def test_ordinary_tables_and_sizes_are_run_by_all(body: str) -> None:
    spec = spec_of(body)
    assert [features.refusal(spec, engine) for engine in (*ENGINES, "dense")] == [None] * 4
    assert emit(spec).text


@pytest.mark.parametrize(
    ("text", "clause"), [("score", "score > 0.5"), ("dot(query, key)", "k <= q and dot(query, key) > 0")]
)
def test_nobody_tells_a_mask_of_scores(text: str, clause: str) -> None:
    spec = spec_of(f"keep k >= 0\nkeep {clause}")
    for ask in (
        lambda: reference.mask(spec, Sizes(4, 4)),
        lambda: reference.live_pairs(spec, Sizes(4, 4)),
        lambda: build(spec, Sizes(4, 4), (4, 4)),
    ):
        with pytest.raises(MaskUnsupportedError, match="which pairs are kept depends on") as error:
            ask()
        (found,) = error.value.diagnostics
        assert found.span is not None
        assert found.span.text == text
