"""Generated kernel files on disk, named by the hash of their content.

The folder is `MASKC_CACHE_DIR`, else `maskc` in the user's cache folder (`XDG_CACHE_HOME`, else `~/.cache`); it is
private (mode 0700) and holds `kernels/` and `triton/`, the cache of the Triton compiler. A file's name is the SHA-256
of its text and of Triton's version: a reader computes it again before it uses a text, so damaged and foreign files are
rebuilt and never run. Files appear complete or not at all (temporary file, then `os.replace`), so any number of
processes may race. Where the folder cannot be written, a private temporary one serves the process.
"""

import atexit
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from maskc.diagnostics import MaskError


@dataclass(frozen=True)
class Usage:
    """What the cache holds: files and bytes of generated kernels and of Triton's own entries."""

    location: Path
    kernels: int
    files: int
    bytes: int

    def __str__(self) -> str:
        return f"{self.location}: {self.kernels} kernel files, {self.files} files, {self.bytes / 2**20:.1f} MiB in all"


def location() -> Path:
    """Where the cache is, whether or not it exists yet."""
    named = os.environ.get("MASKC_CACHE_DIR")
    if named:
        return Path(named).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "maskc"


def name_of(text: str, version: str) -> str:
    """The file name of a kernel text under a version of Triton."""
    return hashlib.sha256(f"triton {version}\n{text}".encode()).hexdigest()[:40] + ".py"


def publish(text: str, version: str) -> Path:
    """The file that holds a kernel text; written where it is missing or holds anything else."""
    name = name_of(text, version)
    for folder in _folders("kernels"):
        path = folder / name
        if _holds(path, text):
            return path
        try:
            _private(folder)
            _write(path, text)
        except OSError:
            continue  # read-only, full, or not ours
        return path
    raise MaskError(f"the kernel file {name} can be written neither to {location()} nor to {_fallback()}")


def read(path: Path, version: str) -> str:
    """The text of a kernel file, proven to be the one that its name stands for; MaskError for any other content."""
    try:
        text = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise MaskError(f"the kernel file {path} cannot be read: {error}") from None
    if name_of(text, version) != path.name:
        raise MaskError(f"the kernel file {path} does not hold the text that its name stands for")
    return text


def triton_folder() -> Path:
    """Where Triton keeps what it compiles; made if need be."""
    for folder in _folders("triton"):
        try:
            _private(folder)
            with tempfile.NamedTemporaryFile(dir=folder):
                return folder
        except OSError:
            continue
    raise MaskError(f"neither {location()} nor {_fallback()} can be written")


def _folders(kind: str) -> Iterator[Path]:
    """Where files of a kind may lie, best first; the temporary folder is made only when the other has failed."""
    yield location() / kind
    yield _fallback() / kind


def usage() -> Usage:
    """What the cache holds now."""
    files = [p for p in location().rglob("*") if p.is_file()]
    kernels = sum(p.parent.name == "kernels" and p.suffix == ".py" for p in files)
    return Usage(location(), kernels, len(files), sum(_size(p) for p in files))


def clear() -> Usage:
    """Removes what the cache holds and says what it was; other files in the folder stay."""
    held = usage()
    for name in ("kernels", "triton"):
        shutil.rmtree(location() / name, ignore_errors=True)
    return held


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # another process removed it
        return 0


def _holds(path: Path, text: str) -> bool:
    try:
        return path.read_bytes() == text.encode()
    except OSError:
        return False


def _private(folder: Path) -> None:
    """Makes the folder, and the cache's own folder above it, for this user alone."""
    folder.parent.parent.mkdir(parents=True, exist_ok=True)
    for level in (folder.parent, folder):
        level.mkdir(mode=0o700, exist_ok=True)


def _write(path: Path, text: str) -> None:
    """Publishes a file in one step: readers see all of it or none."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(text.encode())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@lru_cache(maxsize=1)
def _fallback() -> Path:
    """A private folder of this process, removed at its end."""
    folder = Path(tempfile.mkdtemp(prefix="maskc-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
