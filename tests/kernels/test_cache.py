"""The cache of kernel files: complete or absent, proven before use, survived by whatever the disk does."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from maskc.check import load
from maskc.codegen.source import emit
from maskc.diagnostics import MaskError
from maskc.runtime import cache, loader

TEXT = "value = 1\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MASKC_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_files_are_named_by_content_and_version(folder: Path) -> None:
    path = cache.publish(TEXT, "3.7.1")
    assert path.parent == folder / "kernels"
    assert path.read_text() == TEXT
    assert cache.publish(TEXT, "3.7.1") == path
    assert cache.publish(TEXT, "3.6.0") != path
    assert cache.publish(TEXT + " ", "3.7.1") != path
    assert cache.read(path, "3.7.1") == TEXT


def test_the_folder_is_private(folder: Path) -> None:
    cache.publish(TEXT, "3.7.1")
    for made in (folder, folder / "kernels"):
        assert stat.S_IMODE(made.stat().st_mode) == 0o700


@pytest.mark.parametrize("damage", [b"", b"value", b"value = 2\n", b"\xff\xfe"])
def test_damaged_files_are_never_run_and_rebuilt(folder: Path, damage: bytes) -> None:
    path = cache.publish(TEXT, "3.7.1")
    path.write_bytes(damage)
    with pytest.raises(MaskError, match="kernel file"):
        cache.read(path, "3.7.1")
    assert cache.publish(TEXT, "3.7.1") == path
    assert path.read_text() == TEXT


def test_a_foreign_file_under_a_kernel_s_name_is_not_run(folder: Path, tmp_path: Path) -> None:
    source = emit(load("mask foreign:\n    keep k <= q + 1\n"))
    path = folder / "kernels" / cache.name_of(source.text, loader.triton_version())
    path.parent.mkdir(parents=True)
    path.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(MaskError, match="does not hold the text"):
        loader.load_file(path)
    assert loader.load(source).forward is not None
    assert path.read_text() == source.text
    assert not (tmp_path / "ran").exists()


def test_loading_leaves_no_bytecode(folder: Path) -> None:
    loader.load(emit(load("mask bytecode:\n    keep k <= q + 2\n")))
    assert [p.suffix for p in (folder / "kernels").iterdir()] == [".py"]


@pytest.mark.parametrize("obstacle", ["file", "read-only"])
def test_a_folder_that_cannot_be_written_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, obstacle: str
) -> None:
    blocked = tmp_path / "blocked"
    if obstacle == "file":
        blocked.write_text("not a folder")
    else:
        blocked.mkdir()
        # Root may write anywhere, so the refusal is made by hand.
        monkeypatch.setattr(cache, "_private", _refusing(blocked))
    monkeypatch.setenv("MASKC_CACHE_DIR", str(blocked))
    path = cache.publish(TEXT, "3.7.1")
    assert path.read_text() == TEXT
    assert blocked not in path.parents
    assert blocked not in cache.triton_folder().parents


def _refusing(blocked: Path):  # type: ignore[no-untyped-def]
    real = cache._private

    def private(folder: Path) -> None:
        if blocked in folder.parents:
            raise PermissionError(13, "Permission denied", str(folder))
        real(folder)

    return private


def test_a_full_disk_leaves_no_half_written_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.replace

    def full(source: str, target: Path) -> None:
        if folder in Path(target).parents:
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", full)
    path = cache.publish(TEXT, "3.7.1")
    assert path.read_text() == TEXT
    assert folder not in path.parents
    assert list((folder / "kernels").iterdir()) == []


def test_many_processes_may_race(folder: Path) -> None:
    program = """
from maskc.runtime import cache
text = "value = 1\\n" * 20000
for _ in range(50):
    path = cache.publish(text, "3.7.1")
    assert cache.read(path, "3.7.1") == text
    path.write_text("damaged") if _ % 10 == 9 else None
    assert cache.publish(text, "3.7.1") == path
print(path)
"""
    running = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(8)
    ]
    ended = [(process.communicate(), process.returncode) for process in running]
    # A reader may meet the damage that another process has just done; it says so and runs nothing.
    errors = [output[1].decode().strip().split("\n")[-1] for output, code in ended if code]
    assert all("does not hold the text" in error for error in errors), errors
    assert len(errors) < len(running)
    assert all(not p.name.startswith(".new-") for p in (folder / "kernels").iterdir())


def test_usage_and_clear(folder: Path) -> None:
    assert cache.usage() == cache.Usage(folder, 0, 0, 0)
    cache.publish(TEXT, "3.7.1")
    (folder / "triton").mkdir()
    (folder / "triton" / "entry").write_bytes(bytes(100))
    (folder / "mine").write_text("stays")
    held = cache.clear()
    assert (held.kernels, held.files) == (1, 3)
    assert held.bytes == len(TEXT) + 100 + len("stays")
    assert [p.name for p in folder.iterdir()] == ["mine"]
    assert str(folder) in str(held)


def test_triton_s_own_cache_lies_inside(folder: Path) -> None:
    program = """
from maskc.check import load
from maskc.codegen.source import emit
from maskc.runtime import loader
loader.load(emit(load("mask a:\\n    keep k <= q\\n")))
import triton
print(triton.knobs.cache.dir)
"""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_CACHE_DIR"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == str(folder / "triton")
