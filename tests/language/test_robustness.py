"""Any bytes give a spec or a diagnosis, in bounded time: no traceback, no recursion error, no hang."""

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskc.check import diagnose, load, load_source
from maskc.diagnostics import Diagnostic, MaskError, Source
from maskc.grammar.parser import recover

SECONDS = 4.0  # of processor time; one at most is usual
READING_SECONDS = 3.0  # the part of the parser; one at most is usual


def outcome(text: str) -> str:
    """ "spec" or "error"; every report can be printed, and errors are raised exactly where they are diagnosed."""
    source = Source("a.mask", text)
    found = diagnose(source)
    for diagnostic in found:
        str(diagnostic).encode("utf-8")
        if diagnostic.span is not None:
            assert 0 <= diagnostic.span.start <= len(diagnostic.span.source.text)
    errors = [d for d in found if d.severity == "error"]
    raised: list[Diagnostic] = []
    try:
        str(load_source(source))
    except MaskError as error:
        raised = error.diagnostics
    assert raised == errors
    return "error" if errors else "spec"


PIECES = st.sampled_from(
    [
        *"""
mask a:
mask b(n: int = 3, f: float = 0.5):
mask c(t: bool = True): keep t
def f(x, y):
mask
def
axes y, x
axes y
input t: int[batch, seq]
input u: float[head]
input w: bool[y, x]
input z: int
input r: int[q // n, k] of k // n sorted
input v2: int[seq] learned
input p: float[q % 2, heads]
let d = q - k
let e = f(q, k)
let d = score
let
pass
return x + y
return neighborhood()
return documents
return a(q=x)
return x.y
return
keep k <= q
keep t[q] == t[k]
keep w[q.y, q.x]
keep causal
keep a
keep b(n=d)
keep d
keep sliding_window(window=n, q=k, k=q)
keep neighborhood()
keep documents
keep u > 0.5
keep
score += u * d
score = where(causal, score, -inf)
score **= 2
score //= 2
score
claim n > 2
claim y.size > 3
claim d >= 0
keep q in range(1, n, d)
keep q not in (1, k)
keep 1 < q < k in (3,)
if q:
else:
axes cls: 1, patch: (y, x), text: n
axes y, x border n
queries y, x
queries cls: 1, text: n * 2
keys z
keys y, x border 1
keys text: n, patch: (y, x)
axes cls:, y
queries
packed t
packed
input start: int[docs] sorted
packed start
keep q.y == k.y if q in patch and k in patch else True
keep not q in text or q.text > 1
keep q.segment == k.segment and doc < 3
keep y.size > q.z
mass *= u
mass = 2
mass
weight = weight * 2 + 1
weight **= 2
weight *= where(rand(1, q, k) < 0.5, 0, 2)
normalize softmax(sink=u)
normalize rowsum(relu(score), sink=2)
normalize none(score * u ** (q - k))
normalize entmax(alpha=1.5)
normalize softmax
normalize 3
reduce s[q] = sum(score)
reduce z[q // n, t[k]: 3] = mean(score)
reduce s = max(score)
reduce s = 2
output o[k] = logsumexp(score)
output o = count()
output o[q: n, k, head] = sum(weight)
score -= s[q]
weight /= s
rows t[q] > 0 else mean
rows q in range(3) else pass
rows q > k else nothing
rows q
claim count(k) <= n
keep any(k == q + i for i in range(-n, n))
score += sum(t[i] for i in range(q_len))
keep all(any(i == j for i in range(j)) for j in range(3))
keep q for i in range(3)
let c = cumsum(t, seq)
let c = cumsum(u, head)[head]
let l = [[1, 0], [0, 1]]
let l = [1, [2]]
keep l[q % 2, k % 2] == 1
keep k in l[q]
keep bucket(q, t) == bucket(k, c)
keep k in t
input e: float[seq, n] learned
score += dot(query, e[k])
score = scale * dot(query, key)
keep dot(query, key) > 0.5
keep score > 0 or weight > 0
keep rand(1, q, k, u) < 0.5
keep (q
keep q)
keep [1]
keep q // 0
keep 9 ** 99
keep 1 << 70
keep q.z
keep y
keep t
keep any(i for i in range(3))
keep f(1)
keep f
keep q = k
keep q && k
x = 3
# words
""".strip().split("\n"),
        *("\t", ""),
    ]
)
INDENTS = st.sampled_from(["", "", "    ", "    ", "    ", "        ", "  ", "\t"])
LINES = st.lists(st.tuples(INDENTS, PIECES).map("".join), max_size=14).map("\n".join)
VOCABULARY = """
q k y x n score head batch seq t f causal inf True min where range + - * / // % ** & | ^ ~ << >> < <= == != = += ( )
[ ] , : . and or not in if else for of sorted 0 1 2.5 1e400 mask keep let def input axes keys packed mass weight
normalize reduce output rows border any int float #
"""
WORDS = st.lists(
    st.sampled_from([*VOCABULARY.split(), "\n", "\n    ", "\r", "\x00", "\ud800", "é", "\\"]), max_size=40
).map(" ".join)


@settings(max_examples=150)
@given(st.text(max_size=200))
def test_any_text(text: str) -> None:
    outcome(text)


@settings(max_examples=150)
@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    outcome(data.decode("utf-8", "surrogateescape"))


@settings(max_examples=300)
@given(WORDS)
def test_any_words(text: str) -> None:
    outcome(text)
    outcome("mask a:\n    keep " + text)


@settings(max_examples=300)
@given(LINES)
def test_any_lines(text: str) -> None:
    outcome(text)
    outcome("mask a(n: int = 2):\n    axes y, x\n    input t: int[batch, seq]\n" + text)


LIBRARY = (Path(__file__).parents[2] / "maskc" / "library.mask").read_text(encoding="utf-8")
RIGHT_MASKS = LIBRARY.split("\n\n")


@settings(max_examples=150)
@given(st.data())
def test_broken_examples(data: st.DataObject) -> None:
    """A right spec with a piece cut out, doubled or replaced."""
    text = data.draw(st.sampled_from(RIGHT_MASKS))
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 30)))
    piece = data.draw(st.sampled_from(["", text[start:end] * 2, "(", ")", "\n", ":", " = ", "    ", "0", "q", "\x00"]))
    outcome(text[:start] + piece + text[end:])


@pytest.mark.parametrize("text", ["mask a:\n    axes segment: 3, rest: (segment)\n    keep q in rest\n"])
def test_what_fuzzing_found(text: str) -> None:
    assert outcome(text) == "error"


def test_any_bytes_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.mask"
    for data in (b"\xff", b"mask a:\n    keep \xc3\x28\n", b"\xef\xbb\xbf\xff", bytes(range(256)), b"\xf0\x9f\x98"):
        path.write_bytes(data)
        with pytest.raises(MaskError):
            load(path)


KEEP = "mask a:\n    keep "
CHAIN = 60
LARGE = {
    "brackets": KEEP + "(" * 500_000 + "q" + ")" * 500_000,
    "signs": KEEP + "-" * 1_000_000 + "q",
    "nots": KEEP + "not " * 200_000 + "q",
    "sums": KEEP + "+".join(["q"] * 9_000) + " == k",
    "ands": KEEP + " and ".join(["q == k"] * 9_000),
    "comparisons": KEEP + " < ".join(["q"] * 9_000),
    "conditionals": KEEP + "q == k " + "if q == k else q == k " * 2_000,
    "powers": KEEP + "2" + " ** 2" * 9_000 + " == q",
    "tower": KEEP + "9 ** 9 ** 9 ** 9 ** 9 == q",
    "tuple": KEEP + "q in (" + ",".join(map(str, range(9_000))) + ")",
    "digits": KEEP + "1" * 1_000_000,
    "arguments": KEEP + "min(" + ",".join(["q"] * 9_000) + ") == 3",
    "subscripts": KEEP + "q" + "[q]" * 6_000,
    "attributes": KEEP + "q" + ".q" * 9_000,
    "calls": KEEP + "q" + "(q)" * 6_000,
    "keeps": "mask a:\n" + "    keep q == k\n" * 8_000,
    "no statements": "mask a:\n" + "    x\n" * 45_000,
    "lets": "mask a:\n" + "".join(f"    let a{i} = {i}\n" for i in range(5_000)) + "    keep q == k\n",
    "unknown names": "mask a:\n"
    + "".join(f"    let abcdef{i} = {i}\n" for i in range(5_000))
    + "".join(f"    keep abcdex{i} == q\n" for i in range(200)),
    "masks": "".join(f"mask m{i}:\n    keep q == k\n" for i in range(3_000)),
    "dims": "mask a:\n    input x: int[" + ",".join(["seq"] * 9_000) + "]\n    keep x[q] == 1\n",
    "axes": "mask a:\n    axes " + ",".join(f"a{i}" for i in range(9_000)) + "\n    keep q == k\n",
    "doubling lets": "mask a:\n    let a0 = q\n"
    + "".join(f"    let a{i + 1} = a{i} + a{i}\n" for i in range(CHAIN))
    + f"    keep a{CHAIN} == k\n",
    "doubling functions": "def f0(x):\n    return x\n"
    + "".join(f"def f{i + 1}(x):\n    let a = f{i}(x)\n    let b = f{i}(x)\n    return 1\n" for i in range(CHAIN))
    + f"mask a:\n    keep f{CHAIN}(q) == k\n",
    "doubling masks": "mask m0:\n    keep q == k\n"
    + "".join(f"mask m{i + 1}:\n    keep m{i} or m{i}\n" for i in range(CHAIN)),
    "chain of functions": "def f0(x):\n    return x\n"
    + "".join(f"def f{i + 1}(x):\n    return f{i}(x)\n" for i in range(1_000))
    + "mask a:\n    keep f1000(q) == k\n",
    "chain of masks": "mask m0:\n    keep q == k\n" + "".join(f"mask m{i + 1}:\n    keep m{i}\n" for i in range(1_000)),
    "chain of lets": "let a0 = 1\n"
    + "".join(f"let a{i + 1} = a{i}\n" for i in range(1_000))
    + "mask a:\n    keep a1000 == k\n",
    "parts": "mask a:\n    axes " + ", ".join(f"a{i}: (b{i}, c{i})" for i in range(3_000)) + "\n    keep q == k\n",
    "part": "mask a:\n    keys a: (" + ",".join(f"a{i}" for i in range(9_000)) + ")\n    keep q == k\n",
    "reductions": "mask a:\n" + "".join(f"    reduce r{i}[q] = sum(score)\n" for i in range(3_000)),
    "slots": "mask a:\n    output r[" + ",".join(["k: 2"] * 9_000) + "] = count()\n",
    "masses": "mask a:\n" + "    mass *= 2\n" * 5_000,
    "weights": "mask a:\n" + "    weight = weight + weight\n" * 5_000,
    "normalizers": "mask a:\n" + "    normalize softmax(sink=1)\n" * 5_000,
    "rows": "mask a:\n" + "    rows q > 1 else mean\n" * 5_000,
    "packed": "mask a:\n" + "    packed start\n" * 9_000,
    "folds in folds": KEEP + "any(" * 90 + "q == k" + "".join(f" for i{i} in range(9))" for i in range(90)),
    "folds": KEEP + " or ".join(f"any(k == i for i in range({n}))" for n in range(3_000)),
    "long fold": KEEP + "any(k == i * i for i in range(2 ** 62))",
    "table": "let t = [" + ",".join(["[1, 2]"] * 8_000) + "]\n" + KEEP + "t[q, 0] == k",
    "tables": "".join(f"let t{i} = [1, 2]\n" for i in range(5_000)) + KEEP + "t1[q] == k",
    "nested tables": "let t = " + "[" * 90 + "1" + "]" * 90 + "\n" + KEEP + "q == k",
    "cumulated": "mask a:\n    input a0: int[seq]\n"
    + "".join(f"    let a{i + 1} = cumsum(a{i}, seq)\n" for i in range(2_000))
    + "    keep a2000[q] == k\n",
    "unfinished statements": "mask a:\n" + "    reduce r[q\n    rows q\n    normalize\n    weight\n" * 3_000,
    "nested masks": "".join("  " * i + "mask a:\n" for i in range(700)),
    "nested functions": "".join(" " * i + f"def a{i}():\n" for i in range(1_000)),
    "nested ifs": "".join(" " * i + "if x:\n" for i in range(1_000)),
    "signs that are none": "@\n" * 45_000,
    "words": "q " * 500_000,
    "lines": "mask a:\n" + "    keep q == k\n" * 60_000,
    "empty lines": "\n" * 1_000_000,
    "comments": "#\n" * 500_000,
    "blanks": " " * 1_000_000,
    "too long": "#" * 2_000_000,
}


# Those that only go on for long.
RIGHT = {"lets", "masks", "reductions", "slots", "masses", "folds", "table", "tables", "cumulated"}


@pytest.mark.parametrize("name", LARGE)
def test_large_files_end_soon(name: str) -> None:
    start = time.process_time()
    found = diagnose(Source("a.mask", LARGE[name]))
    assert time.process_time() - start < SECONDS
    assert any(d.severity == "error" for d in found) == (name not in RIGHT)


@pytest.mark.parametrize("name", LARGE)
def test_large_files_are_read_soon(name: str) -> None:
    start = time.process_time()
    _, found = recover(Source("a.mask", LARGE[name]))
    assert time.process_time() - start < READING_SECONDS
    assert len(found) <= 100


def test_a_caller_deep_in_its_own_stack_gets_a_diagnosis() -> None:
    text = KEEP + "(" * 90 + "-(" * 5 + "q" + ")" * 95 + " + 1" * 70 + " == k\n"

    def descend(levels: int) -> str:
        return outcome(text) if levels == 0 else descend(levels - 1)

    assert descend(0) == "spec"
    outcomes = {descend(levels) for levels in range(0, 900, 20)}
    assert outcomes == {"spec", "error"}
