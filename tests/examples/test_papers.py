"""The gallery's masks with scores, weights, normalisers, sums and rows of their own against the papers' formulas."""

from pathlib import Path
from typing import Any

import papers_bias
import papers_layout
import papers_normalizers
import papers_selection
import papers_weights
import pytest
import torch
from papers import PAPERS, Paper, Shapes, learned, scaled, softmax
from test_fingerprints import COVERED
from torch import Tensor

import maskc
from maskc.check import diagnose, load, read_source
from maskc.grammar.parser import parse
from maskc.grammar.syntax import Mask

GALLERY = Path(__file__).parents[2] / "examples" / "gallery"
MODULES = (papers_bias, papers_layout, papers_normalizers, papers_selection, papers_weights)  # they fill PAPERS


def path_of(mask: str) -> str:
    file, colon, name = mask.partition(":")
    return f"{GALLERY / file}.mask{colon}{name}"


def tensors_of(shapes: Shapes) -> tuple[Tensor, Any, Any, Tensor]:
    """q, k, v and the upstream gradient of the output; k and v in parts where the shapes say so."""
    generator = torch.Generator().manual_seed(1)

    def drawn(heads: int, length: int) -> Tensor:
        return torch.randn(shapes.batch, heads, length, shapes.dim, generator=generator, dtype=torch.float64)

    heads = shapes.heads if shapes.kv_heads is None else shapes.kv_heads
    q = drawn(shapes.heads, shapes.q_len).requires_grad_()
    if shapes.key_parts is None:
        k, v = (drawn(heads, shapes.k_len or shapes.q_len).requires_grad_() for _ in range(2))
        return q, k, v, drawn(shapes.heads, shapes.q_len)
    ks, vs = (tuple(drawn(heads, length).requires_grad_() for length in shapes.key_parts) for _ in range(2))
    return q, ks, vs, drawn(shapes.heads, shapes.q_len)


def leaves_of(*groups: Any) -> list[Tensor]:
    tensors = [x for group in groups for x in (group if isinstance(group, tuple | list) else (group,))]
    return [x for x in tensors if isinstance(x, Tensor) and x.requires_grad]


def values_of(found: Any, leaves: list[Tensor], upstream: Tensor) -> tuple[Tensor, dict[str, Tensor], list[Tensor]]:
    """Output, named outputs, and the gradients of the leaves."""
    out, aux = found if isinstance(found, tuple) else (found, {})
    gradients = torch.autograd.grad(out, leaves, upstream, materialize_grads=True)
    return out.detach(), {name: x.detach() for name, x in aux.items()}, list(gradients)


def close(actual: Tensor, expected: Tensor, name: str) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10, msg=lambda m: f"{name}: {m}")


@pytest.mark.parametrize("paper", PAPERS, ids=str)
def test_a_mask_computes_what_its_paper_says(paper: Paper) -> None:
    q, k, v, upstream = tensors_of(paper.shapes)
    leaves = leaves_of(q, k, v, list(paper.given.values()))
    spec = load(path_of(paper.mask))
    attend = maskc.compile_attention(spec, engine="dense")
    out, aux, gradients = values_of(attend(q, k, v, aux=True, **paper.given, **paper.options), leaves, upstream)
    expected = values_of(paper.oracle(q, k, v, **paper.given), leaves, upstream)
    close(out, expected[0], "output")
    assert aux.keys() == expected[1].keys()
    for name in aux:
        close(aux[name], expected[1][name], f"output {name}")
    names = [*(f"given {n}" for n, x in paper.given.items() if isinstance(x, Tensor) and x.requires_grad)]
    names = [*(f"leaf {number}" for number in range(len(leaves) - len(names))), *names]
    for name, actual, wanted in zip(names, gradients, expected[2], strict=True):
        close(actual, wanted, f"gradient of {name}")


def test_agents_read_the_picture_and_the_picture_reads_them() -> None:
    """Agent attention is a chain of two calls, and the pooled queries get a gradient from both."""
    q, k, v, upstream = tensors_of(Shapes(24))
    sizes: dict[str, Any] = {"ay": 2, "ax": 3, "y": 4, "x": 6, "coarse": 2}
    masks = [
        maskc.compile_attention(path_of(f"agent-attention:{name}"), engine="dense") for name in ("gather", "broadcast")
    ]
    first, second = ({name: learned(*x.shape) for name, x in papers_layout.AGENTS.items()} for _ in range(2))
    leaves = leaves_of(q, k, v, [*first.values(), *second.values()])

    def pooled(x: Tensor) -> Tensor:
        return x.unflatten(2, (2, 2, 3, 2)).mean((3, 5)).flatten(2, 3)

    def chained() -> Tensor:
        agents = pooled(q)
        gathered = masks[0](agents, k, v, **sizes, **first)
        return masks[1](q, agents, gathered, **sizes, **second)

    def expected() -> Tensor:
        agents = pooled(q)
        to_agents, to_picture = (papers_layout.agent_bias(**biases) for biases in (first, second))
        gathered = softmax(scaled(agents, k) + to_agents) @ v
        return softmax(scaled(q, agents) + to_picture.mT) @ gathered

    actual, wanted = (values_of(found, leaves, upstream) for found in (chained(), expected()))
    close(actual[0], wanted[0], "output")
    for number, pair in enumerate(zip(actual[2], wanted[2], strict=True)):
        close(*pair, f"gradient {number}")


def masks_of_the_gallery() -> set[str]:
    return {
        f"{path.stem}:{mask.name.text}"
        for path in GALLERY.glob("*.mask")
        for mask in parse(read_source(path)).items
        if isinstance(mask, Mask)
    }


def test_every_mask_of_the_gallery_has_an_oracle() -> None:
    tested = {given.entry.spec.removeprefix("gallery/") for given in COVERED}
    tested |= {paper.mask for paper in PAPERS}
    named = {mask if ":" in mask else f"{mask}:{load(path_of(mask)).name}" for mask in tested if "/" not in mask}
    # A claim that fails has a test of its own; the kinds of layer are said once more by `windows` itself.
    assert masks_of_the_gallery() - named == {"sinklora:released_leak_claiming_causality", "streamdit:windows"}


@pytest.mark.parametrize("path", sorted(GALLERY.glob("*.mask")), ids=lambda path: path.stem)
def test_the_gallery_draws_no_warning(path: Path) -> None:
    assert diagnose(read_source(path)) == []
