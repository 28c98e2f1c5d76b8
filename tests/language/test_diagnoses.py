"""Every mistake as a user sees it: text, place, caret, sentence and hint, exactly (`diagnoses/`, a file per topic).

After a sentence changed, `python tests/language/test_diagnoses.py --write` rewrites the reports, with names of topics
behind it only theirs; read the difference.
"""

import sys
from pathlib import Path

import pytest

from maskc.check import diagnose, load, load_source
from maskc.diagnostics import Diagnostic, MaskError, Source, Span

FILES = sorted(Path(__file__).with_name("diagnoses").glob("*.txt"))
RULE, BAR = "=" * 20, "-" * 20


def cases(path: Path) -> list[tuple[str, str, str]]:
    """(title, spec, report) of every case of a topic."""
    found = []
    for block in path.read_text(encoding="utf-8").split(RULE + " ")[1:]:
        title, _, rest = block.partition("\n")
        spec, _, report = rest.partition(BAR + "\n")
        found.append((title, spec, report))
    return found


def report(spec: str) -> str:
    """All that is said about a spec."""
    return "".join(f"{d}\n" for d in diagnose(Source("a.mask", spec)))


CASES = [pytest.param(*case[1:], id=f"{path.stem}: {case[0]}") for path in FILES for case in cases(path)]


def test_there_are_cases() -> None:
    assert len(CASES) > 50


@pytest.mark.parametrize(("spec", "expected"), CASES)
def test_report(spec: str, expected: str) -> None:
    assert report(spec) == expected


def test_errors_are_raised_all_at_once_and_warnings_are_not() -> None:
    text = "mask a:\n    keep True\n    keep q - k\n    keep windw\n"
    with pytest.raises(MaskError) as raised:
        load_source(Source("a.mask", text))
    assert [d.message for d in raised.value.diagnostics] == [
        "'keep' takes a boolean; this is an int",
        "unknown name 'windw'",
    ]
    assert str(raised.value) == "\n".join(map(str, raised.value.diagnostics))


def test_a_tab_is_underlined_where_it_stands() -> None:
    (found,) = diagnose(Source("a.mask", "mask a:\n\tkeep k <= q\n\tkeep q - k < 9\n"))
    assert str(found) == (
        "a.mask:2:1: this line is indented with a tab\n  2 | \tkeep k <= q\n    | ^\nhint: indent with spaces"
    )


def test_tabs_before_a_mistake_keep_the_caret_below_it() -> None:
    (found,) = diagnose(Source("a.mask", "mask a:\n    keep\t\tx\n"))
    assert str(found).splitlines()[1:] == ["  2 |     keep\t\tx", "    |         \t\t^"]


@pytest.mark.parametrize(
    ("character", "name"),
    [("\0", "U+0000"), ("\x0b", "U+000B"), ("\x0c", "U+000C"), ("\u2028", "U+2028"), ("\ud800", "U+D800")],
)
def test_unprintable_characters_are_named(character: str, name: str) -> None:
    found = diagnose(Source("a.mask", f"mask a:\n    keep k <= q{character}\n"))
    assert [d.message for d in found] == [f"unexpected character {name}"]
    assert (
        str(found[0]).encode("utf-8").decode("utf-8").splitlines()[1]
        == "  2 |     keep k <= q\N{REPLACEMENT CHARACTER}"
    )


@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_line_breaks_and_byte_order_marks_change_nothing(line_break: str, mark: str) -> None:
    text = line_break.join(["mask a:", "    keep k <= q", "    keep x"])
    (found,) = diagnose(Source("a.mask", mark + text))
    assert str(found) == "a.mask:3:10: unknown name 'x'\n  3 |     keep x\n    |          ^"


def test_a_long_line_is_shown_around_the_mistake() -> None:
    line = "    keep " + " and ".join(f"q - k < {i + 10_000}" for i in range(30)) + " and k < windw"
    (found,) = diagnose(Source("a.mask", f"mask a:\n{line}\n"))
    message, shown, caret = str(found).splitlines()[:3]
    assert message == f"a.mask:2:{line.index('windw') + 1}: unknown name 'windw'"
    assert len(shown) < 180
    assert shown[caret.index("^") : caret.rindex("^") + 1] == "windw"


def test_a_report_can_be_printed_whatever_its_path() -> None:
    span = Span(Source("dir\udcff/a.mask", "mask a\n"), 0, 4)
    assert str(Diagnostic("wrong", span)).encode("utf-8").startswith(b"dir?/a.mask:1:1: wrong")


def test_at_most_a_hundred_mistakes_are_said() -> None:
    found = diagnose(Source("a.mask", "mask a:\n" + "".join(f"    keep x{i} == 0\n" for i in range(300))))
    assert len(found) == 100


def test_load_from_text_and_the_name_of_a_mask() -> None:
    text = "mask a:\n    keep k <= q\nmask b:\n    keep k < q\n"
    assert load(text).name == "b"
    assert load(text, "a").name == "a"
    with pytest.raises(MaskError, match=r"^'<spec>' has no mask 'c'\nhint: its masks are a, b$"):
        load(text, "c")


def test_load_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "window.mask"
    path.write_text("mask window:\n    keep 0 <= q - k < 9\nmask full:\n    pass\n")
    assert load(path).name == load(str(path)).name == "full"
    assert load(f"{path}:window").name == load(path, "window").name == "window"
    with pytest.raises(MaskError, match=r"has no mask 'windw'\nhint: did you mean 'window'\?$"):
        load(f"{path}:windw")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "window.mask").write_text("mask window:\n    pass\n")
    with pytest.raises(MaskError, match=r"^cannot read '.*/windw.mask': No such file or directory\nhint: did you mean"):
        load(str(tmp_path / "windw.mask"))
    with pytest.raises(MaskError, match=r"^cannot read '.*': Is a directory"):
        load(tmp_path)
    with pytest.raises(MaskError, match=r"^cannot read 'a\0b': embedded null byte"):
        load("a\0b")
    with pytest.raises(MaskError, match=r"hint: a text with a line break is read as a spec, any other as a path"):
        load("mask a: keep k <= q")


def test_what_is_neither_text_nor_path() -> None:
    with pytest.raises(MaskError, match=r"^a spec is text or a path; this is a list$"):
        load([])  # type: ignore[arg-type]
    with pytest.raises(MaskError, match=r"^cannot read 'no.mask': No such file"):
        load(b"no.mask")  # type: ignore[arg-type]


def test_a_file_that_is_not_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "latin.mask"
    path.write_bytes("mask a:  # é\n    keep k <= q  # ".encode() + b"\xe9\n")
    with pytest.raises(MaskError) as raised:
        load(path)
    assert str(raised.value) == (
        f"{path}:2:20: this is not UTF-8\n"
        "  2 |     keep k <= q  # \N{REPLACEMENT CHARACTER}\n"
        "    |                    ^\n"
        "hint: save the file as UTF-8"
    )


def test_a_file_over_a_mebibyte_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "large.mask"
    path.write_text("mask a:\n    pass\n" + "#" * (1 << 20))
    with pytest.raises(MaskError, match=r"^'.*large.mask' is larger than 1 MiB; a spec is a few lines$"):
        load(path)
    with pytest.raises(MaskError, match=r"^'<spec>' is larger than 1 MiB"):
        load(path.read_text())
    path.write_text("mask a:\n    pass\n" + "#" * ((1 << 20) - 17))
    assert load(path).name == "a"


def write(path: Path) -> None:
    """Rewrites the reports of a topic."""
    path.write_text("".join(f"{RULE} {t}\n{s}{BAR}\n{report(s)}" for t, s, _ in cases(path)), encoding="utf-8")


if __name__ == "__main__" and sys.argv[1:2] == ["--write"]:
    for file in FILES:
        if file.stem in (sys.argv[2:] or [file.stem]):
            write(file)
