"""`maskc cache`: what the cache of generated files holds, and how it is emptied.

Only what maskc and Triton have made under their own kinds of names is counted and deleted, whatever else lies there.
"""

import contextlib
import json
import re
import shutil
import stat
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from maskc.commands.options import AGES
from maskc.runtime import cache

HOUR = 3600.0  # seconds after which nobody still writes a file

_NAMES: dict[cache.Kind, re.Pattern[str]] = {
    "kernels": re.compile(r"[0-9a-f]{40}\.py"),
    "triton": re.compile("[A-Z2-7]{26,}"),  # base 32 of a hash
}
_WORDS = {"kernels": ("kernel file", "kernel files"), "triton": ("entry of Triton's", "entries of Triton's")}
_REMOVED = ".old-"


@dataclass(frozen=True)
class Entry:
    """A kernel file, or a folder of Triton's with what it keeps of one kernel.

    unfinished: it has another name until it is complete, or until it is gone. written: seconds since the epoch.
    """

    kind: cache.Kind
    unfinished: bool
    path: Path
    bytes: int
    written: float

    def mask(self) -> str | None:
        """The mask that a kernel file names in its first line."""
        with contextlib.suppress(OSError), self.path.open("rb") as file:
            named = re.search(rb"mask `(\w+)`", file.readline(1000))
            return named and named[1].decode()
        return None


def entries() -> list[Entry]:
    """What the cache holds, the oldest first; PermissionError where other users can write to it."""
    return sorted(_entries(cache.location()), key=lambda entry: entry.written)


def _entries(location: Path) -> Iterator[Entry]:
    for kind, name in _NAMES.items():
        folder = location / kind
        if not folder.is_dir():
            continue
        cache.check_private(folder)
        for path in folder.iterdir():
            unfinished = path.name.startswith((cache.UNFINISHED, _REMOVED))
            if unfinished or name.fullmatch(path.name):
                with contextlib.suppress(FileNotFoundError):  # another process has just deleted it
                    found = [p.lstat() for p in (path, *path.rglob("*"))]
                    size = sum(s.st_size for s in found if not stat.S_ISDIR(s.st_mode))
                    yield Entry(kind, unfinished, path, size, max(s.st_mtime for s in found))


def delete(held: Sequence[Entry]) -> None:
    """Deletes entries, each as a whole: Triton in another process finds all of one or nothing."""
    for entry in held:
        with contextlib.suppress(FileNotFoundError):
            if entry.path.is_dir() and not entry.path.is_symlink():
                path = entry.path
                if not entry.unfinished:
                    path = path.rename(path.with_name(f"{_REMOVED}{time.time_ns()}-{path.name}"))
                shutil.rmtree(path, ignore_errors=True)
            else:
                entry.path.unlink()


def cache_command(chosen: Namespace) -> int:
    """Where generated files are kept and what there is; with --clear, what was deleted."""
    now = time.time()
    held = [entry for entry in entries() if chosen.older is None or now - entry.written >= chosen.older]
    if chosen.clear:  # what is not finished yet may be so in a moment
        held = [entry for entry in held if not entry.unfinished or now - entry.written > HOUR]
    files = [(e, e.mask()) for e in held if chosen.list and e.kind == "kernels" and not e.unfinished]
    if chosen.clear:
        delete(held)
    if chosen.json:
        print(json.dumps(_object(held, files if chosen.list else None, chosen.clear), indent=2))
    elif chosen.list:
        for entry, mask in files:
            print(f"{entry.path.stem}  {size(entry.bytes):>10}  {age(now - entry.written):>4}  {mask or '?'}")
    else:
        print("\n  ".join([f"{'deleted from ' * chosen.clear}{cache.location()}", *_summary(held, now)]))
    return 0


def _summary(held: Sequence[Entry], now: float) -> Iterator[str]:
    """A line for each kind of entries, and one for their age."""
    if not held:
        yield "nothing"
        return
    for kind, words in _WORDS.items():
        yield _counted([e for e in held if e.kind == kind and not e.unfinished], words)
    unfinished = [e for e in held if e.unfinished]
    if unfinished:
        yield _counted(unfinished, ("left unfinished", "left unfinished"))
    yield f"written {age(now - held[-1].written)} to {age(now - held[0].written)} ago"


def _counted(held: Sequence[Entry], words: tuple[str, str]) -> str:
    return f"{len(held)} {words[len(held) != 1]}, {size(sum(e.bytes for e in held))}"


def _object(held: Sequence[Entry], files: Sequence[tuple[Entry, str | None]] | None, deleted: bool) -> dict[str, Any]:
    """What --json prints; `files` only where they are listed."""
    groups: dict[str, list[Entry]] = {kind: [] for kind in (*_NAMES, "unfinished")}
    for entry in held:
        groups["unfinished" if entry.unfinished else entry.kind].append(entry)
    found: dict[str, Any] = {"location": str(cache.location()), "deleted": deleted}
    found |= {name: {"count": len(group), "bytes": sum(e.bytes for e in group)} for name, group in groups.items()}
    found |= {"oldest": _date(held[0]) if held else None, "newest": _date(held[-1]) if held else None}
    if files is not None:
        found["files"] = [
            {"name": e.path.name, "mask": mask, "bytes": e.bytes, "written": _date(e)} for e, mask in files
        ]
    return found


def _date(entry: Entry) -> str:
    return datetime.fromtimestamp(entry.written, UTC).isoformat(timespec="seconds")


def size(count: int) -> str:
    """Bytes as people read them."""
    for unit, bits in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if count >> bits:
            return f"{count / 2**bits:.1f} {unit}"
    return f"{count} B"


def age(seconds: float) -> str:
    """Seconds in the largest unit of which they are at least one, as --older takes them."""
    whole = max(int(seconds), 0)
    unit = next((u for u, length in AGES.items() if whole >= length), "s")
    return f"{whole // AGES[unit]}{unit}"
