"""The cache of kernel files: complete or absent, proven before use, survived by whatever the disk does."""

import errno
import os
import shutil
import stat
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maskc.check import load
from maskc.codegen.source import emit
from maskc.diagnostics import MaskError
from maskc.runtime import cache, loader

TEXT = "value = 1\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MASKC_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_temporaries", [])
    return tmp_path / "cache"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def python(program: str, **environment: str) -> str:
    """What a program prints in a process that has not been told where Triton's cache is."""
    own = {k: v for k, v in os.environ.items() if k not in ("TRITON_CACHE_DIR", "MASKC_TRITON_CACHE_DIR")}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=own | environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# --- names and content ----------------------------------------------------------------------------------------------


def test_files_are_named_by_content_and_version(folder: Path) -> None:
    path = cache.publish(TEXT, "3.7.1")
    assert path.parent == folder / "kernels"
    assert path.read_text() == TEXT
    assert cache.publish(TEXT, "3.7.1") == path
    assert cache.publish(TEXT, "3.6.0") != path
    assert cache.publish(TEXT + " ", "3.7.1") != path
    assert cache.read(path, "3.7.1") == TEXT


def test_a_file_that_is_right_is_not_written_again(folder: Path) -> None:
    path = cache.publish(TEXT, "3.7.1")
    before = path.stat()
    cache.publish(TEXT, "3.7.1")
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("damage", [b"", b"value", b"value = 2\n", b"\xff\xfe"])
def test_damaged_files_are_never_run_and_rebuilt(folder: Path, damage: bytes) -> None:
    path = cache.publish(TEXT, "3.7.1")
    path.write_bytes(damage)
    with pytest.raises(MaskError, match="kernel file"):
        cache.read(path, "3.7.1")
    assert cache.publish(TEXT, "3.7.1") == path
    assert path.read_text() == TEXT


@pytest.mark.parametrize("obstacle", ["folder", "full folder", "dangling link", "link", "unreadable"])
def test_whatever_lies_in_a_file_s_place_is_replaced(folder: Path, tmp_path: Path, obstacle: str) -> None:
    path = cache.publish(TEXT, "3.7.1")
    other = tmp_path / "other"
    match obstacle:
        case "folder" | "full folder":
            path.unlink()
            path.mkdir()
            if obstacle == "full folder":
                (path / "x").write_text("x")
        case "dangling link" | "link":
            path.unlink()
            path.symlink_to(other)
            if obstacle == "link":
                other.write_text("not a kernel")
        case "unreadable":
            path.write_bytes(b"")
            path.chmod(0)
    assert cache.publish(TEXT, "3.7.1") == path
    assert path.is_file()
    assert not path.is_symlink()
    assert path.read_text() == TEXT
    assert not other.exists() or other.read_text() == "not a kernel"
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_foreign_file_under_a_kernel_s_name_is_not_run(folder: Path, tmp_path: Path) -> None:
    source = emit(load("mask foreign:\n    keep k <= q + 1\n"))
    path = folder / "kernels" / cache.name_of(source.text, loader.triton_version())
    path.parent.mkdir(parents=True, mode=0o700)
    path.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    folder.chmod(0o700)
    with pytest.raises(MaskError, match="does not hold the text"):
        loader.load_file(path)
    assert loader.load(source).forward is not None
    assert path.read_text() == source.text
    assert not (tmp_path / "ran").exists()


def test_loading_leaves_no_bytecode(folder: Path) -> None:
    loader.load(emit(load("mask bytecode:\n    keep k <= q + 2\n")))
    assert [p.suffix for p in (folder / "kernels").iterdir()] == [".py"]


# --- who may read and write -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_folders_and_files_are_private_whatever_the_umask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, umask: int
) -> None:
    location = tmp_path / "above" / "cache"
    monkeypatch.setenv("MASKC_CACHE_DIR", str(location))
    before = os.umask(umask)
    try:
        path = cache.publish(TEXT, "3.7.1")
        made = [location.parent, location, path.parent, cache.triton_folder()]
    finally:
        os.umask(before)
    assert path.parent.parent == location
    assert [mode(p) for p in made] == [0o700] * 4
    assert mode(path) == 0o600


@pytest.mark.parametrize("kind", ["kernels", "triton"])
def test_folders_that_others_can_read_are_closed(folder: Path, kind: str) -> None:
    (folder / kind).mkdir(parents=True)
    folder.chmod(0o755)
    (folder / kind).chmod(0o755)
    assert made(kind) == folder / kind
    assert mode(folder / kind) == 0o700


def made(kind: str) -> Path:
    """The folder of a kind that the cache uses now."""
    return cache.publish(TEXT, "3.7.1").parent if kind == "kernels" else cache.triton_folder()


def foreign(path: Path) -> None:
    """Gives a file or a link to another user."""
    if os.geteuid() != 0:
        pytest.skip("only root may give files away")
    os.chown(path, 12345, 12345, follow_symlinks=False)


def writable_by_all(path: Path) -> None:
    path.chmod(0o777)


def writable_by_the_group(path: Path) -> None:
    path.chmod(0o770)


def a_foreign_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))
    foreign(path)


@pytest.mark.parametrize("insecure", [foreign, writable_by_all, writable_by_the_group, a_foreign_link])
@pytest.mark.parametrize("level", ["location", "folder"])
@pytest.mark.parametrize("kind", ["kernels", "triton"])
def test_folders_of_others_are_not_used(folder: Path, kind: str, level: str, insecure: Callable[[Path], None]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert made(kind) == folder / kind
    insecure(folder if level == "location" else folder / kind)
    with pytest.warns(RuntimeWarning, match=r"other users can write to it|belongs to another user"):
        used = made(kind)
    assert folder not in used.parents
    assert mode(used) == 0o700


def test_a_link_of_one_s_own_is_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "disk")
    assert cache.publish(TEXT, "3.7.1").parent == folder / "kernels"
    assert len(list((tmp_path / "disk" / "kernels").iterdir())) == 1


def test_a_location_like_tmp_is_used(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o1777)
    assert cache.triton_folder() == folder / "triton"
    assert mode(folder) == 0o1777
    (folder / "triton").chmod(0o1777)  # there, however, anybody could add entries
    with pytest.warns(RuntimeWarning, match="other users can write"):
        assert folder not in cache.triton_folder().parents


# --- disks that fail ------------------------------------------------------------------------------------------------


def test_a_file_in_the_folder_s_place_is_left_alone(folder: Path) -> None:
    folder.write_text("not a folder")
    with pytest.warns(RuntimeWarning, match=r"cannot be used: .*MASKC_CACHE_DIR"):
        path = cache.publish(TEXT, "3.7.1")
    assert path.read_text() == TEXT
    assert folder.read_text() == "not a folder"
    assert mode(path.parent) == 0o700


def test_the_replacement_is_announced_once_and_removed_at_the_end(folder: Path) -> None:
    folder.write_text("not a folder")
    program = """
import os, warnings
warnings.simplefilter("always")
with warnings.catch_warnings(record=True) as said:
    from maskc.runtime import cache
    paths = [cache.publish(f"value = {i}", "3.7.1") for i in range(3)]
    folder = cache.triton_folder()
assert len(said) == 1, said
assert len({p.parent.parent for p in paths} | {folder.parent}) == 1
child = os.fork()
if not child:
    raise SystemExit  # runs what is registered for the end
os.waitpid(child, 0)
assert all(p.exists() for p in paths)
print(folder.parent)
"""
    used = Path(python(program))
    assert used.name.startswith("maskc-")
    assert not used.exists()


def test_nowhere_to_write_is_an_error_with_both_reasons(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(prefix: str) -> str:
        raise OSError(errno.EROFS, "Read-only file system")

    folder.write_text("not a folder")
    monkeypatch.setattr(cache.tempfile, "mkdtemp", refuse)
    with pytest.raises(MaskError, match=r"neither .*exists.* nor .*Read-only"):
        cache.publish(TEXT, "3.7.1")


def failing(place: Path, code: int, real: Callable[..., Any]) -> Callable[..., Any]:
    """`os.replace` on a disk that has just failed below a place."""

    def fail(source: str, target: Path) -> None:
        if place in Path(target).parents:
            raise OSError(code, os.strerror(code))
        real(source, target)

    return fail


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE])
def test_a_disk_that_fails_leaves_no_half_written_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(os, "replace", failing(folder, code, os.replace))
    with pytest.warns(RuntimeWarning, match=os.strerror(code)):
        path = cache.publish(TEXT, "3.7.1")
    assert path.read_text() == TEXT
    assert folder not in path.parents
    assert list((folder / "kernels").iterdir()) == []


MOUNT = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec"]


def can_mount(place: Path) -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*MOUNT, f"mount -t tmpfs none {place}"], capture_output=True, check=False).returncode == 0


READ_ONLY = """
import subprocess
found = cache.publish("value = 1", "3.7.1")
assert found.parent == cache.triton_folder().parent / "kernels"
found.parent.chmod(0o755)
subprocess.run(["mount", "-o", "remount,ro", cache.location()], check=True)
assert cache.publish("value = 1", "3.7.1") == found  # what is there is used
"""
SURVIVES = """
with warnings.catch_warnings(record=True) as said:
    path = cache.publish("# long\\n" * 20000, "3.7.1")
    folder = cache.triton_folder()
assert cache.location() not in (*path.parents, *folder.parents)
assert not list(cache.location().glob("*/.new-*"))
(warning,) = said
print(warning.message)
"""


@pytest.mark.parametrize(
    ("disk", "before", "reason"),
    [("size=64k", "", "No space left on device"), ("size=16m", READ_ONLY, "Read-only file system")],
    ids=["full", "read-only"],
)
def test_real_disks(tmp_path: Path, disk: str, before: str, reason: str) -> None:
    """A small disk that runs full, and one that holds a kernel file and can only be read."""
    if not can_mount(tmp_path):
        pytest.skip("this user may not mount a disk of their own")
    program = f"import warnings\nfrom maskc.runtime import cache\n{before}{SURVIVES}"
    command = [*MOUNT, f'mount -t tmpfs -o mode=700,{disk} none {tmp_path}; exec "$0" -c "$1"', sys.executable, program]
    environment = os.environ | {"MASKC_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert reason in done.stdout, done.stderr


def test_triton_s_folder_has_room(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.posix_fallocate

    def full(handle: int, start: int, length: int) -> None:
        if str(folder) in os.readlink(f"/proc/self/fd/{handle}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle, start, length)

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.warns(RuntimeWarning, match="No space left"):
        assert folder not in cache.triton_folder().parents
    assert list((folder / "triton").iterdir()) == []


@pytest.mark.parametrize("times", [1, 2])
def test_stale_handles_are_read_again_then_rebuilt(folder: Path, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    path = cache.publish(TEXT, "3.7.1")
    before, real, failures = path.stat().st_ino, Path.read_bytes, [errno.ESTALE] * times

    def stale(self: Path) -> bytes:
        if self == path and failures:
            raise OSError(failures.pop(), "Stale file handle")
        return real(self)

    monkeypatch.setattr(Path, "read_bytes", stale)
    assert cache.publish(TEXT, "3.7.1") == path
    assert (path.stat().st_ino == before) == (times == 1)
    assert path.read_text() == TEXT


def test_without_a_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_temporaries", [])
    for name in ("MASKC_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.location() == tmp_path / ".cache" / "maskc"
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # what it does where nobody knows a home
    with pytest.warns(RuntimeWarning, match="no home folder"):
        assert cache.publish(TEXT, "3.7.1").read_text() == TEXT


def test_the_location_is_asked_for_anew(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = cache.publish(TEXT, "3.7.1")
    monkeypatch.setenv("MASKC_CACHE_DIR", str(tmp_path / "other"))
    assert cache.publish(TEXT, "3.7.1") == tmp_path / "other" / "kernels" / first.name


# --- many processes -------------------------------------------------------------------------------------------------

RACE = """
import contextlib, io, multiprocessing, random, sys
from maskc.cli import main
from maskc.diagnostics import MaskError
from maskc.runtime import cache, loader

TEXTS = [f"value = {i}\\n" + "# filler\\n" * 5000 for i in range(6)]
CLEARING = sys.argv[1] == "clearing"

def work(number, barrier):
    barrier.wait()
    loaded = 0
    for turn in range(12):
        for i in random.Random(100 * number + turn).sample(range(6), 6):
            path = cache.publish(TEXTS[i], loader.triton_version())
            assert path.parent == cache.location() / "kernels"
            if number == 0 and turn % 4 == 3:
                path.write_text("value = 'damaged'")
            try:
                module = loader.load_file(path)
            except MaskError as error:  # damaged or deleted since, which it says
                assert "does not hold" in str(error) or (CLEARING and "No such file" in str(error)), error
            else:
                assert module.value == i
                loaded += 1
    assert loaded

def clear(barrier, done):
    barrier.wait()
    while not done.is_set():
        with contextlib.redirect_stdout(io.StringIO()):
            assert main(["cache", "--clear"]) == 0

context = multiprocessing.get_context("fork")
barrier, done = context.Barrier(16 + CLEARING), context.Event()
workers = [context.Process(target=work, args=(n, barrier)) for n in range(16)]
clearer = [context.Process(target=clear, args=(barrier, done))] * CLEARING
for process in workers + clearer:
    process.start()
for process in workers:
    process.join()
done.set()
for process in clearer:
    process.join()
assert [p.exitcode for p in workers + clearer] == [0] * (16 + CLEARING)
for text in TEXTS:  # what was damaged last is there again
    cache.publish(text, loader.triton_version())
"""


@pytest.mark.parametrize("meanwhile", ["undisturbed", "clearing"])
def test_sixteen_processes_share_an_empty_folder(folder: Path, meanwhile: str) -> None:
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", RACE, meanwhile]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    files = list((folder / "kernels").iterdir())
    assert len(files) == 6
    for path in files:
        assert cache.read(path, loader.triton_version()).startswith("value = ")
        assert mode(path) == 0o600


# --- Triton's own cache ---------------------------------------------------------------------------------------------

WHERE = """
from maskc.runtime import cache, loader
loader.load_file(cache.publish("value = 1", loader.triton_version()))
import triton
print(triton.knobs.cache.dir)
"""


def test_triton_s_own_cache_lies_inside(folder: Path) -> None:
    assert python(WHERE) == str(folder / "triton")
    assert mode(folder / "triton") == 0o700


def test_a_cache_that_the_user_has_given_to_triton_is_left_alone(folder: Path, tmp_path: Path) -> None:
    assert python(WHERE, TRITON_CACHE_DIR=str(tmp_path / "own")) == str(tmp_path / "own")
    assert not (folder / "triton").exists()
    assert python(f"import triton\ntriton.knobs.cache.dir = '/own'\n{WHERE}") == "/own"


def test_processes_that_are_started_find_their_own(folder: Path, tmp_path: Path) -> None:
    """A child with another MASKC_CACHE_DIR must not inherit Triton's folder from its parent."""
    program = f"""
import os, subprocess, sys
{WHERE}
other = os.environ | {{"MASKC_CACHE_DIR": {str(tmp_path / "other")!r}}}
subprocess.run([sys.executable, "-c", {WHERE!r}], env=other, check=True)
"""
    assert python(program).splitlines()[-1] == str(tmp_path / "other" / "triton")


def test_triton_compiles_where_the_cache_cannot_be_written(folder: Path) -> None:
    """Triton itself raises where it cannot write, so it has to be told of another folder before."""
    folder.write_text("not a folder")
    program = f"""
import warnings
warnings.simplefilter("ignore")
{WHERE}
from triton.runtime.cache import get_cache_manager
print(open(get_cache_manager("ab" * 32).put("text", "file.ttir")).read())
"""
    where, text = python(program).splitlines()
    assert Path(where).parent.name.startswith("maskc-")
    assert text == "text"
