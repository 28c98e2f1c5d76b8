"""Kernels of every example under the interpreter: head dims, groups of heads and strides of all kinds."""

from itertools import product
from pathlib import Path

import pytest

from maskc.check import check
from maskc.diagnostics import Source
from maskc.grammar.parser import parse
from maskc.runtime import layouts, verify
from maskc.runtime.tiles import INTERPRETED
from maskc.runtime.verify import Case
from maskc.spec import MaskSpec

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.mask"))
MASKS = [spec for path in EXAMPLES for spec in check(parse(Source(str(path), path.read_text(encoding="utf-8"))))]
DIMS = ((8, 8), (16, 16), (40, 40), (64, 64), (72, 72), (128, 128), (192, 128))
GROUPS = ((6, 2), (7, 1), (12, 4))
GRID = (5, 9, 2)

Shape = tuple[MaskSpec, tuple[int, int], tuple[int, int], str]
"""A mask, (D_qk, D_v), query and KV heads, and the layout of q, k and v."""

# Every mask at every head dim, groups and layouts in turn: a period of 21 against rows of 7.
SHAPES = [
    (spec, dims, GROUPS[(row + place) % 3], layouts.ODD[(3 * row + place) % 7])
    for row, spec in enumerate(MASKS)
    for place, dims in enumerate(DIMS)
]


def calls(spec: MaskSpec, group: tuple[int, int], layout: str) -> list[Case]:
    """Lengths that are no multiples of a tile; parameters that bite there."""
    values = tuple(verify.parameter_sets(spec, {})[-1].items())
    if spec.axis_names:
        axes = dict(zip(spec.axis_names, GRID, strict=False))
        return [Case(45, 45, None, (*axes.items(), *values), group, layout)]
    return [Case(45, 45, None, values, group, layout), Case(19, 50, 31, values, group, layout)]


def judge(shape: Shape, longest: int = 99) -> None:
    spec, (dim, dim_v), group, layout = shape
    chosen = [c for c in calls(spec, group, layout) if c.q_len <= longest] or calls(spec, group, layout)
    outcomes = list(verify.verify(spec, chosen, engines=["interpret"], dim=dim, dim_v=dim_v))
    assert outcomes[0].report is not None, outcomes[0].refused
    assert all(o.passed for o in outcomes), "\n".join(f"{o}\n{o.report}" for o in outcomes if not o.passed)


def test_every_pair_of_choices_occurs() -> None:
    choices = [(spec.name, dims, group, layout) for spec, dims, group, layout in SHAPES]
    for one, other in ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)):
        every = product(*({choice[place] for choice in choices} for place in (one, other)))
        assert {(choice[one], choice[other]) for choice in choices} == set(every)
    for spec, _, group, layout in SHAPES:
        assert all(c.q_len % INTERPRETED.block_q and c.k_len % INTERPRETED.block_k for c in calls(spec, group, layout))


def name_of(shape: Shape) -> str:
    spec, dims, group, layout = shape
    return f"{spec.name}-{dims[0]}-{dims[1]}-{group[0]}-{group[1]}-{layout}"


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES, ids=name_of)
def test_examples_agree_with_dense_in_every_shape(shape: Shape) -> None:
    judge(shape)


@pytest.mark.parametrize("shape", SHAPES[4::37], ids=name_of)
def test_some_examples_agree_with_dense_in_some_shapes(shape: Shape) -> None:
    judge(shape, longest=20)
