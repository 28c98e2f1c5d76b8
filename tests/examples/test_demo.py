"""`make demo`: its parts at small sizes, and all of it as it is run."""

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("demo")


def test_its_parts_work_at_small_sizes(demo: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    attend = demo.compile_and_run(seq=300)
    demo.draw(attend, seq=300)
    assert demo.compare_with_the_definition(attend, seq=101)
    demo.time_against_masked_sdpa(attend, seq=130, rounds=1)
    shown = capsys.readouterr().out
    assert "keep k < sink or q - k < window" in shown
    assert "gradients (1, 8, 300, 64)" in shown
    assert "full" in shown
    assert "forward + backward  masked SDPA" in shown


@pytest.mark.slow
def test_all_of_it_runs() -> None:
    ran = subprocess.run([sys.executable, EXAMPLES / "demo.py"], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "validation loss" in ran.stdout
