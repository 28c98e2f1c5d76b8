"""Generated kernel files on disk, named by the hash of their content.

The folder is `MASKC_CACHE_DIR`, else `maskc` in the user's cache folder (`XDG_CACHE_HOME`, else `~/.cache`). It holds
`kernels/` and `triton/`, the cache of the Triton compiler, both for this user alone (mode 0700). A file's name is the
SHA-256 of its text and of Triton's version: a reader computes it again before it uses a text, so damaged and foreign
files are rebuilt and never run. Files appear complete or not at all (temporary file, then `os.replace`), so any number
of processes may race. Where the folder cannot be written, or others can write to it, a private temporary one serves
the process, which says so once.
"""

import atexit
import contextlib
import errno
import hashlib
import os
import shutil
import stat
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from maskc.diagnostics import MaskError

Kind = Literal["kernels", "triton"]

UNFINISHED = ".new-"
"""How the names of files begin that are not complete yet, or never will be."""

_ROOM = 2**22  # bytes; the files that Triton writes for one kernel take less


def location() -> Path:
    """Where the cache is, whether or not it exists yet; FileNotFoundError where there is no home folder."""
    named = os.environ.get("MASKC_CACHE_DIR")
    if named:
        return Path(os.path.expanduser(named)).absolute()
    folder = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if folder.startswith("~"):
        raise FileNotFoundError(errno.ENOENT, "this user has no home folder; MASKC_CACHE_DIR can name one", folder)
    return Path(folder).absolute() / "maskc"


def name_of(text: str, version: str) -> str:
    """The file name of a kernel text under a version of Triton."""
    return hashlib.sha256(f"triton {version}\n{text}".encode()).hexdigest()[:40] + ".py"


def publish(text: str, version: str) -> Path:
    """The file that holds a kernel text; written where it is missing or holds anything else."""
    name = name_of(text, version)

    def published(folder: Path) -> Path:
        path = folder / name
        if not _holds(path, text):
            _write(path, text)
        return path

    return _somewhere("kernels", published)


def read(path: Path, version: str) -> str:
    """The text of a kernel file, proven to be the one that its name stands for; MaskError for any other content."""
    try:
        text = _bytes(path).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise MaskError(f"the kernel file {path} cannot be read: {error}") from None
    if name_of(text, version) != path.name:
        raise MaskError(f"the kernel file {path} does not hold the text that its name stands for")
    return text


def triton_folder() -> Path:
    """Where Triton keeps what it compiles; made if need be, and with room for more."""
    return _somewhere("triton", _with_room)


def check_private(folder: Path) -> None:
    """PermissionError where another user (root aside) owns a folder of the cache or can change what lies in it.

    The folder around it must be this user's, too. Others may add files of their own there if, as in `/tmp`, they
    cannot move ours.
    """
    for level in (folder.parent, folder):
        found = level.stat()
        if {level.lstat().st_uid, found.st_uid} - {os.geteuid(), 0}:
            raise PermissionError(errno.EPERM, "it belongs to another user", str(level))
        guarded = level != folder and found.st_mode & stat.S_ISVTX
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not guarded:
            raise PermissionError(errno.EPERM, "other users can write to it", str(level))


def _somewhere(kind: Kind, attempt: Callable[[Path], Path]) -> Path:
    """What an attempt makes of the cache's folder of a kind or, where that fails, of a temporary one."""
    try:
        return attempt(_private(location() / kind))
    except OSError as error:
        refused = error
    try:
        return attempt(_private(_temporary(refused) / kind))
    except OSError as error:
        raise MaskError(
            f"generated kernels can be kept neither in the cache ({refused}) nor elsewhere ({error})"
        ) from None


def _private(folder: Path) -> Path:
    """A folder of the cache, made if need be, for this user alone whatever the umask."""
    for level in (*reversed(folder.parents), folder):
        if not level.is_dir():
            level.mkdir(mode=0o700, exist_ok=True)
            level.chmod(0o700)
    check_private(folder)
    if stat.S_IMODE(folder.stat().st_mode) != 0o700:
        with contextlib.suppress(OSError):  # root's, or read-only: it may still be read
            folder.chmod(0o700)
    return folder


def _with_room(folder: Path) -> Path:
    """The folder, once it has shown that it takes what Triton writes for a kernel."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=UNFINISHED) as file:
        os.posix_fallocate(file.fileno(), 0, _ROOM)
    return folder


def _bytes(path: Path) -> bytes:
    """What a file holds."""
    try:
        return path.read_bytes()
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
        return path.read_bytes()  # another machine has replaced it on a network disk: now the new one is found


def _holds(path: Path, text: str) -> bool:
    try:
        return _bytes(path) == text.encode()
    except OSError:
        return False


def _write(path: Path, text: str) -> None:
    """Publishes a file in one step: readers see all of it or none."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=UNFINISHED)
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(handle, 0o600)  # whatever the umask
            file.write(text.encode())
        try:
            os.replace(temporary, path)
        except IsADirectoryError:
            shutil.rmtree(path, ignore_errors=True)
            os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


_temporaries: list[Path] = []


def _temporary(reason: OSError) -> Path:
    """A private folder of this process, removed at its end; that it is used, and why, is said when it is made."""
    if not _temporaries:
        folder = Path(tempfile.mkdtemp(prefix="maskc-"))
        _temporaries.append(folder)
        atexit.register(_remove, folder, os.getpid())
        warnings.warn(
            f"the cache of generated kernels cannot be used: {reason}. "
            f"This process compiles into {folder}; MASKC_CACHE_DIR can name another folder",
            RuntimeWarning,
            stacklevel=2,
        )
    return _temporaries[0]


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # not a fork of the process that made it
        shutil.rmtree(folder, ignore_errors=True)
