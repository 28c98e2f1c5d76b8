"""The layout of specs: one for every text, the same again when it is formatted again, and the same meaning."""

import os
import re
import stat
from itertools import groupby
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskc.check import check, diagnose
from maskc.diagnostics import MaskError, Source
from maskc.grammar.format import formatted, replace_file
from maskc.grammar.lexer import logical_lines
from maskc.grammar.parser import parse, recover

ROOT = Path(__file__).parents[2]
FILES = sorted([*ROOT.glob("examples/*.mask"), *ROOT.glob("examples/gallery/*.mask"), ROOT / "maskc" / "library.mask"])

UNTIDY = (
    "\n\n# first  \n\nmask  a( x:int=3 ,y = 2 ,\n  t : bool=True) :  # head\n\n"
    "  axes y,x\n"
    "  input  table:float [ head,2*x+1 ]  of  k//4   sorted# one\n"
    "  input z :int  # two\n"
    "  let d=q.y-  k . y\n\n\n\n"
    "     # inside\n"
    "  rows(d<x)else  pass\n"
    "  keep(d<x)and not-d==- 2**-x or f( a=1,b = (1,) ) if ~ x>1 else True\n"
    "  score-=table[ (d) ]*1.5e3\n"
    "  # end of a\n"
    " # also\n"
    "# of b\n"
    "mask b :pass\n"
    "let one=1\n"
    "let two = 2\n"
    "def f(a,b,):\n"
    "        return a in range(0,b , 2)\n"
    "#last"
)
TIDY = """\
# first

mask a(x: int = 3, y=2,
       t: bool = True):  # head
    axes y, x
    input table: float[head, 2 * x + 1] of k // 4 sorted  # one
    input z: int                                          # two
    let d = q.y - k.y

    # inside
    rows (d < x) else pass
    keep (d < x) and not -d == -2 ** -x or f(a=1, b=(1,)) if ~x > 1 else True
    score -= table[(d)] * 1.5e3
    # end of a

# also
# of b
mask b: pass

let one = 1
let two = 2

def f(a, b,):
    return a in range(0, b, 2)

#last
"""


def layout(text: str) -> str:
    return formatted(Source("a.mask", text))


def meaning(text: str) -> object:
    """The checked masks of a text, or what is said against it."""
    source = Source("a.mask", text)
    try:
        return check(parse(source))
    except MaskError:
        return [re.sub(r"line \d+|\s", "", d.message) for d in diagnose(source)]  # they quote the text


def comments(text: str) -> list[str]:
    return [line[line.index("#") :].rstrip() for line in text.split("\n") if "#" in line]


def judge(text: str) -> str:
    """The layout of a text, after everything that has to hold for any."""
    found = layout(text)
    assert layout(found) == found
    assert parse(Source("a.mask", found)).items == parse(Source("a.mask", text)).items
    assert meaning(found) == meaning(text)
    assert comments(found) == comments(text)
    lines = found.split("\n")
    assert lines == [line.rstrip() for line in lines]
    assert "\n\n\n" not in found
    assert not found.startswith("\n")
    assert lines.pop() == ""
    assert not lines or lines[-1]
    return found


def test_an_untidy_spec_becomes_tidy() -> None:
    assert judge(UNTIDY) == TIDY


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_the_projects_specs_have_the_layout(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert judge(text) == text
    assert layout(text.replace("\n", "\r\n")) == text


@pytest.mark.parametrize(
    ("text", "tidy"),
    [
        ("", ""),
        ("  # alone", "# alone\n"),
        ("\ufeffmask a:\r\n  pass\r", "mask a:\n    pass\n"),
        # a text inside a program
        ("    mask a:\n      pass\n    # a\n", "mask a:\n    pass\n\n# a\n"),
        # what is left as it is written
        ("mask a: keep ((k) <= (q))\n", "mask a: keep ((k) <= (q))\n"),
        ("mask a:\n    keep 1 .x\n", "mask a:\n    keep 1 .x\n"),
        # brackets over several lines
        (
            "mask a:\n keep (\n\n   k # why\n  # and\n <= q\n   # last\n  )\n",
            "mask a:\n    keep (\n        k  # why\n        # and\n        <= q\n        # last\n    )\n",
        ),
        ("mask a:\n keep f(k,\n q\n )\n", "mask a:\n    keep f(k,\n           q\n          )\n"),
        ("mask a:\n keep f(g(\n q\n ))\n", "mask a:\n    keep f(g(\n        q\n    ))\n"),
        # a comment that stands deeper than the next statement ends the block above
        (
            "mask a:\n  def f(x):\n    return x\n    # f\n  # a\n# b\nmask b: pass\n",
            "mask a:\n    def f(x):\n        return x\n        # f\n    # a\n\n# b\nmask b: pass\n",
        ),
        # every statement
        (
            "mask a:\n axes cls :1,patch:( y,x ),t : (n)border(2)\n queries y ,x\n keys t:n  border - 1\n packed  s\n",
            "mask a:\n    axes cls: 1, patch: (y, x), t: (n) border (2)\n    queries y, x\n    keys t: n border -1\n"
            "    packed s\n",
        ),
        (
            "mask a:\n mass*=f( x )\n weight=-weight\n normalize rowsum( score ,sink = s[head])\n normalize  softmax\n",
            "mask a:\n    mass *= f(x)\n    weight = -weight\n    normalize rowsum(score, sink=s[head])\n"
            "    normalize softmax\n",
        ),
        (
            "mask a:\n reduce s=count( )\n output m [q//2,kind[k] :3]=max(x , y=(1))\n rows~q>b else mean\n",
            "mask a:\n    reduce s = count()\n    output m[q // 2, kind[k]: 3] = max(x, y=(1))\n"
            "    rows ~q > b else mean\n",
        ),
        (
            "mask a: keep any( k==q+i for i in range( - 1,2 ))\nlet t=[[ 1,-2 ],\n[3 , 4]]\n",
            "mask a: keep any(k == q + i for i in range(-1, 2))\n\nlet t = [[1, -2],\n         [3, 4]]\n",
        ),
        ("let a = 1\n# of b\nmask b: pass\n", "let a = 1\n\n# of b\nmask b: pass\n"),
        # comments of neighbouring lines, but not behind very long ones
        (
            f"mask a:\n  keep k <= {'q' * 100}#1\n  keep k # 2\n  keep k<q # 3\n",
            f"mask a:\n    keep k <= {'q' * 100}  #1\n    keep k      # 2\n    keep k < q  # 3\n",
        ),
    ],
)
def test_layouts(text: str, tidy: str) -> None:
    assert judge(text) == tidy


def test_mistakes_of_form_are_diagnosed() -> None:
    with pytest.raises(MaskError, match=r"a\.mask:2:13: expected an expression") as raised:
        layout("mask a:\n    keep k <\n    keep q)\n")
    assert len(raised.value.diagnostics) == 2


def test_no_layout_outgrows_what_can_be_read() -> None:
    with pytest.raises(MaskError, match="would be larger than 1 MiB in its layout"):
        layout("mask a:\n    keep (1\n" + "#\n" * 100_000 + ")\n")


def test_a_long_line_does_not_move_what_stands_below_it() -> None:
    text = f"mask a:\n    keep {'q' * 5000}(k,\n{'1,' * 1000}\n1)\n" + "    keep q  #\n" * 1000
    assert len(layout(text)) < 2 * len(text)


def test_how_a_dim_is_spelled_makes_no_difference() -> None:
    first, second = (
        meaning(f"mask a(n: int):\n    input t: int[{dims}]\n    keep t[0, k] == n\n")
        for dims in ("q//n,k // (n+1) #c\n  + 1", "q // n, k // (n + 1) + 1")
    )
    assert first == second


# Random expressions and random blanks, line breaks and comments between their words.

ATOMS = st.sampled_from(["q", "k", "a", "b", "1", "0x1f", "2.5", "True", "t[q]", "q.y", "y.size", "head"])
BINARY = st.sampled_from(
    ["+", "-", "*", "//", "%", "/", "**", "<<", "&", "|", "^", "<", "<=", "==", "!=", "and", "or", "in", "not in"]
)


def larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.tuples(inner, BINARY, inner).map(" ".join),
        st.tuples(st.sampled_from(["-", "~", "not ", "+"]), inner).map("".join),
        st.tuples(inner, inner, inner).map(lambda x: f"{x[0]} if {x[1]} else ({x[2]})"),
        st.tuples(inner, inner).map(lambda x: f"f(a={x[0]}, b={x[1]})"),
        inner.map(lambda x: f"min({x}, k,)"),
        inner.map(lambda x: f"any({x} for i in range(3))"),
        inner.map(lambda x: f"({x})"),
    )


EXPRESSIONS = st.recursive(ATOMS, larger, max_leaves=8)


STATEMENTS = st.sampled_from(
    [
        *("keep {}", "score += {}", "score = {}", "claim {}", "let n{n} = {}", "let n{n} = [[1, -2], [0, 1]]"),
        *("mass *= {}", "weight *= {}", "weight = weight - {}", "rows {} else zero", "rows {} else pass"),
        *(
            "normalize softmax",
            "normalize softmax(sink={})",
            "normalize rowsum({}, sink={})",
            "normalize entmax(alpha=2)",
        ),
        *("reduce n{n} = sum({})", "reduce n{n}[q // a, t[k]: 3] = mean({})", "output n{n}[k,] = count()"),
    ]
)
LAYOUTS = st.sampled_from(
    [
        *("axes y, x", "axes y, x border 2", "axes cls: 1, patch: (y, x), text: a * 2", "queries z\n    keys y, x"),
        *("queries y, x\n    keys cls: 1, patch: (y, x) border (1)", "packed t\n    axes y, x"),
    ]
)


@st.composite
def specs(draw: st.DrawFn) -> str:
    """A mask of random statements, right in its form, with its function and inputs."""
    text = f"def f(a, b):\n    return min(a, b)\nmask m(a: int = 3, b: float = -1.5):\n    {draw(LAYOUTS)}\n"
    text += "    input t: int[seq] sorted\n    input u: bool[q//a, (k+1) // 2]\n"
    for number in range(draw(st.integers(1, 4))):
        form = draw(STATEMENTS)
        line = "    " + form.replace("{n}", str(number)).replace("{}", draw(EXPRESSIONS)) + "\n"
        text += line if not recover(Source("a.mask", text + line))[1] else "    pass\n"
    return text


@st.composite
def scrambled(draw: st.DrawFn, text: str, breaks: bool) -> str:
    """The same words with other blanks; `breaks`: with other line breaks, empty lines and comments too."""
    lines, _ = logical_lines(Source("a.mask", text))
    width = draw(st.integers(1, 9))
    some = st.integers(0, 3).map(lambda n: " " * n)
    noise = st.sampled_from(["", "", "\n", "\n\n\n", "  # c(\n", "#: d \n\n"]) if breaks else st.just("")
    result = ""
    for line in lines:
        result += draw(noise) + " " * (width * (line.indent // 4))
        depth = 0
        for place, word in enumerate(line.words):
            depth += word in ("(", "[")
            depth -= word in (")", "]")
            behind = line.words[place + 1][0] if place + 1 < len(line.words) else "\n"
            result += word + draw(some)
            if depth and breaks and draw(st.integers(0, 3)) == 0:
                result += draw(st.sampled_from(["\n", "\n\n  ", "# e\n", " #\n #f\n  "]))
            elif (word[-1].isalnum() or word[-1] in "_.") and (behind.isalnum() or behind in "_."):
                result += " "
        result += draw(st.sampled_from(["\n", " # g\n", "#h \t\n"])) if breaks else "\n"
    return result + draw(noise)


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_random_specs_keep_their_meaning(data: st.DataObject) -> None:
    text = data.draw(specs())
    tidy = judge(text)
    assert layout(data.draw(scrambled(text, breaks=False))) == tidy
    mixed = data.draw(scrambled(text, breaks=True))
    found = judge(mixed)
    assert meaning(found) == meaning(text)
    assert [line.indent % 4 for line in logical_lines(Source("a.mask", found))[0]] == [0] * text.count("\n")


@settings(deadline=None, max_examples=25)
@given(st.data(), st.sampled_from(FILES))
def test_scrambled_files_keep_their_meaning(data: st.DataObject, path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    judge(data.draw(scrambled(text, breaks=True)))


def test_neighbouring_comments_stand_below_each_other() -> None:
    rows = layout("mask a:\n  pass # 1\n  keep k<q # 2\n  # 3\n  keep k<=q*2 # 4\n").split("\n")
    columns = [row.index("#") for row in rows if "#" in row]
    assert [column for column, _ in groupby(columns)] == [16, 4, 21]


# Files


def test_a_file_is_replaced_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.mask"
    path.write_text("old")
    path.chmod(0o640)
    link = tmp_path / "link.mask"
    link.symlink_to(path)
    replace_file(link, "ä\n")
    assert path.read_bytes() == "ä\n".encode()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert link.is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["a.mask", "link.mask"]


def test_nothing_is_left_behind_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.mask"
    path.write_text("old")

    def full(source: str, target: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        replace_file(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.mask"]


def test_read_only_files_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.mask"
    path.write_text("old")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anything
    with pytest.raises(PermissionError, match="read-only"):
        replace_file(path, "new")
    assert path.read_text() == "old"
