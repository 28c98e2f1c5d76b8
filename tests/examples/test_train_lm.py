"""The language model of the examples: its text, its command line, and its losses against a run with the definition."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def train_lm() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_lm", EXAMPLES / "train_lm.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def small(train_lm: ModuleType, **changes: Any) -> Any:
    settings = {
        "steps": 6,
        "context": 70,
        "batch": 2,
        "layers": 2,
        "heads": 2,
        "width": 32,
        "parameters": {"window": 9},
    }
    return train_lm.Config(**{**settings, **changes})


def largest_difference(a: list[float], b: list[float]) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def test_the_text_is_the_standard_librarys_own(train_lm: ModuleType) -> None:
    text = train_lm.standard_library(limit=100_000)
    assert len(text.train) == 90_000
    assert len(text.validation) == 10_000
    assert "def " in text.spell(text.train)
    assert text.alphabet.isascii()


def test_a_few_losses_equal_those_of_the_definition(train_lm: ModuleType) -> None:
    text = train_lm.standard_library(limit=100_000)
    tiles = train_lm.losses(small(train_lm, engine="tiled"), text)
    definition = train_lm.losses(small(train_lm, engine="dense"), text)
    assert largest_difference(tiles, definition) < 1e-4


def test_the_mask_matters(train_lm: ModuleType) -> None:
    text = train_lm.standard_library(limit=100_000)
    narrow = train_lm.losses(small(train_lm, parameters={"window": 1, "sink": 0}), text)
    wide = train_lm.losses(small(train_lm), text)
    assert largest_difference(narrow, wide) > 1e-3


def test_runs_with_one_seed_are_equal(train_lm: ModuleType) -> None:
    text = train_lm.standard_library(limit=100_000)
    assert train_lm.losses(small(train_lm), text) == train_lm.losses(small(train_lm), text)


@pytest.mark.slow
def test_fifty_losses_equal_those_of_the_definition(train_lm: ModuleType) -> None:
    text = train_lm.standard_library()
    settings = {"steps": 50, "parameters": {"window": 64}}
    tiles = train_lm.losses(train_lm.Config(engine="tiled", **settings), text)
    definition = train_lm.losses(train_lm.Config(engine="dense", **settings), text)
    assert largest_difference(tiles, definition) < 1e-3


def test_it_tells_how_it_goes(train_lm: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        train_lm.main(["-p", "window=16", str(EXAMPLES / "sliding_window.mask"), "--steps", "2", "--context", "32"])
        == 0
    )
    shown = capsys.readouterr().out
    assert "step    2/2  loss " in shown
    assert "validation loss " in shown
    assert "def " in shown


def test_a_sample_is_longer_than_the_context(train_lm: ModuleType) -> None:
    text = train_lm.standard_library(limit=100_000)
    config = small(train_lm, context=12)
    written = train_lm.sample(train_lm.new_model(config, text), text, config, "import ", length=20)
    assert written.startswith("import ")
    assert len(written) == 27


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["-p", "windw=3"], "windw"),
        (["no_such.mask"], "no_such.mask"),
        ([str(EXAMPLES / "documents.mask")], "input 'doc' is missing"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_masks_that_cannot_be_used_are_named(
    train_lm: ModuleType, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    assert train_lm.main([*arguments, "--steps", "1", "--context", "16"]) == 1
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("value", ["window", "3=4", "window=wide"])
def test_values_that_make_no_sense_are_refused(train_lm: ModuleType, value: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        train_lm.main(["-p", value])
    assert stopped.value.code == 2


def test_values_have_the_type_they_look_like(train_lm: ModuleType) -> None:
    values = [train_lm.parameter(text)[1] for text in ("a=3", "a=0.5", "a=true", "a=-2")]
    assert values == [3, 0.5, True, -2]
    assert [type(value) for value in values] == [int, float, bool, int]


def test_rotation_keeps_lengths(train_lm: ModuleType) -> None:
    x = torch.randn(2, 3, 11, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(train_lm.rotated(x).norm(dim=-1), x.norm(dim=-1))
