"""The command line, called in process."""

from collections.abc import Callable
from pathlib import Path

import pytest

from maskc.cli import main

WINDOW = """\
# a window
mask window(width: int = 8):
    keep 0 <= q - k < width
"""
GRID = """\
mask near(radius: int = 1):
    axes y, x
    claim radius <= y.size
    keep abs(q.y - k.y) <= radius
    keep abs(q.x - k.x) <= radius
"""
DOCUMENTS = """\
mask whole:
    keep k <= q

mask documents:
    input doc: int[batch, seq] sorted
    keep doc[q] == doc[k]
"""


Answer = tuple[int, str, str]  # exit status, stdout, stderr


@pytest.fixture
def maskc(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Answer]:
    """Runs a command in a folder with window.mask, grid.mask and documents.mask."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    for name, text in (("window", WINDOW), ("grid", GRID), ("documents", DOCUMENTS)):
        (tmp_path / f"{name}.mask").write_text(text)

    def run(*arguments: str) -> Answer:
        capsys.readouterr()
        status = main(arguments)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run
