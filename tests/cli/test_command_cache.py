"""`maskc cache`: what is kept, listed and deleted."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from maskc.check import load
from maskc.codegen.source import emit
from maskc.commands.cache import age, delete, entries, size
from maskc.runtime import cache

Maskc = Callable[..., tuple[int, str, str]]
ENTRY = "MZXW6YTBOI" * 5 + "AA"  # as Triton names its folders
DAY = 86400


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with a kernel file of today, an entry of Triton's that is 40 days old, and a file that is the user's."""
    place = tmp_path / "cache"
    monkeypatch.setenv("MASKC_CACHE_DIR", str(place))
    cache.publish(emit(load("mask recent:\n    keep k <= q\n")).text, "3.7.1")
    (cache.triton_folder() / ENTRY).mkdir()
    (place / "triton" / ENTRY / "kernel.ptx").write_bytes(bytes(3 * 2**20))
    old(place / "triton" / ENTRY / "kernel.ptx", 40 * DAY)
    old(place / "triton" / ENTRY, 40 * DAY)
    (place / "mine.txt").write_text("not the cache's\n")
    return place


def old(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds, time.time() - seconds))


def names(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_an_empty_cache(maskc: Maskc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKC_CACHE_DIR", str(tmp_path / "none"))
    assert maskc("cache") == (0, f"{tmp_path / 'none'}\n  nothing\n", "")
    assert maskc("cache", "--clear") == (0, f"deleted from {tmp_path / 'none'}\n  nothing\n", "")
    assert maskc("cache", "--list") == (0, "", "")
    assert json.loads(maskc("cache", "--json")[1])["oldest"] is None
    assert not (tmp_path / "none").exists()


def test_location_counts_sizes_and_ages(maskc: Maskc, folder: Path) -> None:
    (kernel,) = (folder / "kernels").iterdir()
    old(kernel, 125)
    status, output, _ = maskc("cache")
    assert status == 0
    assert output.splitlines() == [
        str(folder),
        f"  1 kernel file, {size(kernel.stat().st_size)}",
        "  1 entry of Triton's, 3.0 MiB",
        "  written 2m to 40d ago",
    ]


def test_json(maskc: Maskc, folder: Path) -> None:
    found = json.loads(maskc("cache", "--json")[1])
    assert found["location"] == str(folder)
    assert found["deleted"] is False
    assert found["kernels"]["count"] == 1
    assert found["triton"] == {"count": 1, "bytes": 3 * 2**20}
    assert found["unfinished"] == {"count": 0, "bytes": 0}
    assert found["oldest"] < found["newest"]
    assert "files" not in found
    (listed,) = json.loads(maskc("cache", "--json", "--list")[1])["files"]
    assert (listed["mask"], listed["bytes"]) == ("recent", found["kernels"]["bytes"])
    assert (folder / "kernels" / listed["name"]).exists()


def test_list_names_the_masks(maskc: Maskc, folder: Path) -> None:
    (kernel,) = (folder / "kernels").iterdir()
    damaged = folder / "kernels" / ("0" * 40 + ".py")
    damaged.write_bytes(b"\xff")
    old(damaged, 2 * DAY)
    first, second = maskc("cache", "--list")[1].splitlines()
    assert first.split() == ["0" * 40, "1", "B", "2d", "?"]
    assert second.split()[0] == kernel.stem
    assert second.split()[-1] == "recent"


def test_clear_deletes_what_is_the_cache_s(maskc: Maskc, folder: Path) -> None:
    for foreign in ("kernels/attention.py", "triton/README", "triton/python/setup.py"):
        (folder / foreign).parent.mkdir(exist_ok=True)
        (folder / foreign).write_text("a project of the user's that has folders of these names\n")
    status, output, _ = maskc("cache", "--clear")
    assert status == 0
    assert output.startswith(f"deleted from {folder}\n  1 kernel file, ")
    assert names(folder) == ["kernels/attention.py", "mine.txt", "triton/README", "triton/python/setup.py"]
    assert maskc("cache")[1] == f"{folder}\n  nothing\n"


def test_clear_of_what_is_older(maskc: Maskc, folder: Path) -> None:
    assert maskc("cache", "--older", "41d")[1] == f"{folder}\n  nothing\n"
    assert maskc("cache", "--older", "30d", "--clear")[1].splitlines()[1:3] == [
        "  0 kernel files, 0 B",
        "  1 entry of Triton's, 3.0 MiB",
    ]
    assert [Path(name).parent.name for name in names(folder)] == ["kernels", ""]


def test_files_of_a_clock_that_is_ahead(maskc: Maskc, folder: Path) -> None:
    (kernel,) = (folder / "kernels").iterdir()
    old(kernel, -DAY)
    assert "  written 0s to 40d ago\n" in maskc("cache")[1]
    assert "  0 kernel files, 0 B\n" in maskc("cache", "--clear", "--older", "0s")[1]
    assert "  1 kernel file, " in maskc("cache", "--clear")[1]


@pytest.mark.parametrize("given", ["30", "d", "-1d", "1.5h", "1y", ""])
def test_ages_that_are_none(maskc: Maskc, given: str) -> None:
    status, _, error = maskc("cache", "--clear", f"--older={given}")
    assert status == 2
    assert "such as 30d" in error


def test_leftovers_of_killed_processes(maskc: Maskc, folder: Path) -> None:
    """They are counted; they are deleted once nobody can be writing them any more."""
    for path in (folder / "kernels" / ".new-killed", folder / "triton" / ".old-killed" / "x"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(100))
        old(path, 2 * 3600)
    old(path.parent, 2 * 3600)
    (folder / "kernels" / ".new-written-now").write_bytes(bytes(50))
    assert "  3 left unfinished, 250 B\n" in maskc("cache")[1]
    assert "  2 left unfinished, 200 B\n" in maskc("cache", "--clear")[1]
    assert names(folder) == ["kernels/.new-written-now", "mine.txt"]


def test_a_folder_under_a_kernel_s_name_is_deleted(maskc: Maskc, folder: Path) -> None:
    (folder / "kernels" / ("1" * 40 + ".py") / "x").mkdir(parents=True)
    assert maskc("cache", "--clear")[0] == 0
    assert list((folder / "kernels").iterdir()) == []


def test_what_others_delete_meanwhile_is_not_missed(
    maskc: Maskc, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between listing a folder, looking at its files and deleting them, another process may have been quicker."""
    real = Path.iterdir
    gone = (".new-gone", "0" * 40 + ".py", "GONE" * 13)
    monkeypatch.setattr(Path, "iterdir", lambda self: iter([*real(self), *(self / name for name in gone)]))
    assert "  1 kernel file, " in maskc("cache")[1]
    monkeypatch.setattr(Path, "iterdir", real)
    held = entries()
    delete(held)
    delete(held)
    assert names(folder) == ["mine.txt"]


def test_entries_of_triton_s_vanish_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton in another process takes an entry of which a part is left for a whole one, and breaks."""
    left: list[list[str]] = []
    monkeypatch.setattr(shutil, "rmtree", lambda path, **_: left.append(os.listdir(folder / "triton")))
    delete([entry for entry in entries() if entry.kind == "triton"])
    ((name,),) = left
    assert name.startswith(".old-")


def test_folders_of_others_are_not_touched(maskc: Maskc, folder: Path) -> None:
    before = names(folder)
    (folder / "triton").chmod(0o777)
    status, output, error = maskc("cache", "--clear")
    assert (status, output) == (1, "")
    assert "other users can write to it" in error
    assert names(folder) == before


def test_without_a_home_folder(maskc: Maskc, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MASKC_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    status, _, error = maskc("cache")
    assert status == 1
    assert "MASKC_CACHE_DIR" in error


def test_units() -> None:
    assert [size(n) for n in (0, 1023, 1024, 1536, 2**20, 5 * 2**30)] == [
        *("0 B", "1023 B", "1.0 KiB", "1.5 KiB", "1.0 MiB", "5.0 GiB"),
    ]
    assert [age(s) for s in (-1.0, 0.5, 59, 60, 3599, 3600, DAY - 1, DAY, 400 * DAY)] == [
        *("0s", "0s", "59s", "1m", "59m", "1h", "23h", "1d", "400d"),
    ]
