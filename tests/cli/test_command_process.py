"""The command as a process: what it loads, closed pipes, interrupts."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from maskc import cli
from maskc.commands import check as cli_check
from maskc.commands import show as cli_show

Maskc = Callable[..., tuple[int, str, str]]

WITHOUT_TORCH = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "triton"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
from maskc.cli import main

def status(*arguments):
    return main(arguments)

size = ["--seq", "100"]
assert status("check", "window.mask", *size) == 0
assert status("show", "window.mask", *size) == 0
assert status("explain", "window.mask", *size, "--json") == 0
assert status("explain", "window.mask", *size, "--target", "sm_90") == 0
assert status("explain", "window.mask", *size, "--engine", "interpret") == 0
assert status("emit", "window.mask", "--stage", "kernel") == 0
assert status("cache") == 0
assert status("run", "window.mask", *size) == 1
"""


def test_analysis_and_kernels_need_no_torch(maskc: Maskc, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT_TORCH], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "maskc run needs the package 'torch', which is not installed here\n"


def test_a_closed_pipe_is_no_traceback(maskc: Maskc, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "maskc.cli", "emit", "window.mask", "--stage", "kernel"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert (process.wait(60), err) == (cli.PIPE_CLOSED, b"")


def test_an_interrupt_is_no_traceback(maskc: Maskc, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(path: str) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(cli_check, "read_source", interrupted)
    assert maskc("check", "window.mask") == (cli.INTERRUPTED, "", "interrupted\n")


def test_sizes_that_do_not_fit_into_memory_are_one_sentence(maskc: Maskc, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr(cli_show, "planned_call", exhausted)
    assert maskc("show", "window.mask", "--seq", "8") == (1, "", "maskc show: not enough memory for these sizes\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_sentence(maskc: Maskc, tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "maskc.cli", "check", "window.mask"]
        done = subprocess.run(command, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "maskc check: [Errno 28] No space left on device\n")


def test_help_and_version(maskc: Maskc) -> None:
    status, out, err = maskc("--help")
    assert (status, err) == (0, "")
    assert all(name in out for name in ("check", "show", "explain", "emit", "run", "verify", "cache"))
    assert maskc("--version") == (0, "maskc 0.1.0\n", "")
