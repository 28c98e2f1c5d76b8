"""What the documentation shows is what maskc does: every spec compiles, every message is the checker's own."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maskc import cli, compile_attention, library
from maskc.check import check, diagnose, load_source
from maskc.diagnostics import Source
from maskc.grammar.parser import parse
from maskc.runtime.verify import cases, verify
from maskc.samples import draw
from maskc.sizes import resolve

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/language.md", "docs/library.md", "docs/architecture.md", "docs/kernels.md")
BLOCK = re.compile(r"^```(?P<kind>[^\n]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: str) -> list[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return [Block(page, text.count("\n", 0, m.start()) + 1, m["kind"], m["text"]) for m in BLOCK.finditer(text)]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def messages() -> Iterator[tuple[Block, Block]]:
    """Every spec with mistakes, and the block behind it that shows what the checker says."""
    for wrong, answer in pairwise(BLOCKS):
        if wrong.kind == "mask error":
            yield wrong, answer


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.kind == "mask"], ids=str)
def test_specs_compile_without_a_warning(block: Block) -> None:
    source = Source(str(block), block.text)
    assert [str(d) for d in diagnose(source)] == []
    load_source(source)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.kind == "mask"], ids=str)
def test_specs_run_forward_and_backward(block: Block) -> None:
    """Every mask of a page by its definition, in float32 against float64, at the first sizes that suit it."""
    for spec in check(parse(Source(str(block), block.text))):
        given = {p.name: 16 if p.name == "dim" else 4 for p in spec.parameters if p.default is None or p.name == "dim"}
        outcomes = verify(spec, cases(spec, given), engines=("dense",))
        assert next(o for o in outcomes if not o.refused).passed


@pytest.mark.parametrize(("wrong", "answer"), list(messages()), ids=str)
def test_messages_are_the_checkers_own(wrong: Block, answer: Block) -> None:
    assert answer.kind == "text"
    said = "\n".join(str(d) for d in diagnose(Source("window.mask", wrong.text)))
    assert said == answer.text.rstrip("\n")


def test_the_pages_show_specs_and_messages() -> None:
    kinds = [block.kind for block in BLOCKS]
    assert kinds.count("mask") > 10
    assert kinds.count("mask error") >= 2
    assert set(kinds) <= {"mask", "mask error", "text", "python", "console", "ebnf"}


def test_the_quick_start_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    names: dict[str, Any] = {}
    for block in blocks_of("README.md"):
        if block.kind == "python":
            exec(compile(block.text, str(block), "exec"), names)
    assert names["out"].shape == (2, 8, 1000, 64)
    assert names["mask"].shape == (1000, 1000)
    assert "1000 queries x 1000 keys" in capsys.readouterr().out


def without_figures(text: str) -> str:
    """The text with times, errors and names of files, which differ between machines, replaced by '#'."""
    return re.sub(r"[\d.]+ ms|\d\.\d+e[-+]\d+|\b[0-9a-f]{12}\b", "#", text)


SHOWN = [
    block
    for block in BLOCKS
    if block.kind == "console" and block.text.startswith("$ maskc") and not re.search("sass|maskc cache", block.text)
]


@pytest.mark.parametrize("block", SHOWN, ids=str)
def test_commands_print_what_is_shown(
    block: Block, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    command, _, shown = block.text.partition("\n")
    assert cli.main(shlex.split(command)[2:]) == 0
    assert without_figures(capsys.readouterr().out) == without_figures(shown)


@pytest.mark.parametrize("page", PAGES)
def test_links_between_files_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    missing = [target for target in targets if target and not ((ROOT / page).parent / target).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES)
def test_links_inside_a_page_lead_to_a_heading(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    headings = {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    }
    assert [target for target in re.findall(r"\]\(#([^)]+)\)", text) if target not in headings] == []


def test_every_mask_and_function_of_the_library_is_described() -> None:
    """Masks with a heading, a paper and a picture of their own; functions by their names."""
    page = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    sections = {section.split("\n", 1)[0]: section for section in page.split("\n### ")}
    for kind, name in re.findall(r"^(mask|def) (\w+)", library.text(), re.MULTILINE):
        if kind == "def":
            assert f"`{name}(" in page, name
        else:
            assert "$ maskc show --tokens " in sections[name], name
            assert "\n- from: " in sections[name], name


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.page == "docs/library.md" and b.kind == "mask"], ids=str)
def test_biases_of_the_library_run_and_learn(block: Block) -> None:
    """Forward and backward in the definition; every learned table gets a gradient that is finite and not zero."""
    generator = np.random.default_rng(0)
    for spec in check(parse(Source(str(block), block.text))):
        axes = dict(zip(spec.axes, {0: (), 2: (6, 7), 3: (3, 4, 4)}[len(spec.axes)], strict=True))
        length = int(np.prod([*axes.values()])) if axes else 24
        sizes = resolve(spec, q_len=length, k_len=length, batch=2, heads=3, kv_heads=3, given=axes)
        tables = {name: torch.from_numpy(abs(t)).double() for name, t in draw(spec, sizes, generator).items()}
        q, k, v, *_ = leaves = [torch.randn(2, 3, length, 8, dtype=torch.float64) for _ in range(3)] + [
            *tables.values()
        ]
        for leaf in leaves:
            leaf.requires_grad_()
        out = compile_attention(spec, engine="dense", **axes)(q, k, v, **tables)
        out.square().sum().backward()
        for leaf in leaves:
            assert leaf.grad is not None
            assert torch.isfinite(leaf.grad).all()
            assert leaf.grad.any()
