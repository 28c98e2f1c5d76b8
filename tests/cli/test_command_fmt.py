"""`maskc fmt`: files in place, `--check`, and stdin to stdout."""

import sys
from collections.abc import Callable
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest

Maskc = Callable[..., tuple[int, str, str]]

UNTIDY = b"mask a :\r\n  keep k<=q  # \xc3\xa4"
TIDY = b"mask a:\n    keep k <= q  # \xc3\xa4\n"
WRONG = b"mask a:\n  keep k<=\n"


def test_files_are_changed_in_place(maskc: Maskc) -> None:
    Path("a.mask").write_bytes(UNTIDY)
    before = Path("window.mask").stat().st_mtime_ns
    assert maskc("fmt", "a.mask", "window.mask") == (0, "a.mask: formatted\n", "")
    assert Path("a.mask").read_bytes() == TIDY
    assert Path("window.mask").stat().st_mtime_ns == before
    assert maskc("fmt", "a.mask", "window.mask") == (0, "", "")


def test_check_changes_nothing(maskc: Maskc) -> None:
    Path("a.mask").write_bytes(UNTIDY)
    assert maskc("fmt", "--check", "window.mask", "a.mask") == (1, "a.mask: would change\n", "")
    assert Path("a.mask").read_bytes() == UNTIDY
    assert maskc("fmt", "--check", "window.mask", "grid.mask") == (0, "", "")


@pytest.mark.parametrize("option", [[], ["--check"]])
def test_mistakes_leave_a_file_alone_and_the_others_are_still_formatted(maskc: Maskc, option: list[str]) -> None:
    Path("wrong.mask").write_bytes(WRONG)
    Path("a.mask").write_bytes(UNTIDY)
    status, out, err = maskc("fmt", *option, "wrong.mask", "none.mask", "a.mask")
    assert (status, out) == (1, "a.mask: would change\n" if option else "a.mask: formatted\n")
    assert "wrong.mask:2:11: expected an expression" in err
    assert "cannot read 'none.mask'" in err
    assert Path("wrong.mask").read_bytes() == WRONG


def test_names_and_types_are_not_its_business(maskc: Maskc) -> None:
    Path("a.mask").write_text("mask a:\n    keep unknown+1\n")
    assert maskc("fmt", "a.mask") == (0, "a.mask: formatted\n", "")
    assert Path("a.mask").read_text() == "mask a:\n    keep unknown + 1\n"


def test_a_file_that_cannot_be_written_is_said(maskc: Maskc, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("a.mask").write_bytes(UNTIDY)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert maskc("fmt", "a.mask") == (1, "", "cannot write 'a.mask': it is read-only\n")
    assert Path("a.mask").read_bytes() == UNTIDY


def test_stdin_to_stdout(maskc: Maskc, monkeypatch: pytest.MonkeyPatch) -> None:
    def given(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(data)))

    given(UNTIDY)
    assert maskc("fmt", "-") == (0, TIDY.decode(), "")
    given(UNTIDY)
    assert maskc("fmt", "--check", "-") == (1, "<stdin>: would change\n", "")
    given(TIDY)
    assert maskc("fmt", "--check", "-") == (0, "", "")
    given(WRONG)
    status, out, err = maskc("fmt", "-")
    assert (status, out) == (1, "")
    assert err.startswith("<stdin>:2:11: expected an expression\n")
    given(b"\xff")
    assert "<stdin>:1:1: this is not UTF-8" in maskc("fmt", "-")[2]


def test_stdin_stands_alone(maskc: Maskc) -> None:
    assert maskc("fmt", "-", "window.mask") == (2, "", "maskc fmt: error: '-' is stdin and stands alone\n")
