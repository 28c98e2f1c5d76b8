"""`maskc why`: what is printed for a pair, and what is said of pairs that are not there."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

Maskc = Callable[..., tuple[int, str, str]]
LIBRARY = Path(__file__).parents[2] / "maskc" / "library.mask"

SINK = """\
# sinks
mask sink(sink: int = 4, window: int = 10):
    keep k <= q
    keep k < sink or q - k < window
"""
EMPTY_TILE = """\
sink, sink=4, window=10: 100 queries x 100 keys; tiled on cpu, tiles of 16 x 8
query 50, key 20: dropped
sink.mask:4:10: this clause drops the pair
  4 |     keep k < sink or q - k < window
    |          ^^^^^^^^^^^^^^^^^^^^^^^^^^
    k < sink is false: k = 20, sink = 4
    q - k < window is false: q - k = 30, window = 10
tile row 3 of 7, column 2 of 13, queries 48 to 63, keys 16 to 23: empty
"""
KEPT = """\
sink, sink=4, window=10: 100 queries x 100 keys; tiled on cpu, tiles of 16 x 8
query 99, key 3: kept
sink.mask:3:10: this clause lets the pair in
  3 |     keep k <= q
    |          ^^^^^^
    k <= q is true: k = 3, q = 99
sink.mask:4:10: this clause lets the pair in
  4 |     keep k < sink or q - k < window
    |          ^^^^^^^^^^^^^^^^^^^^^^^^^^
    k < sink is true: k = 3, sink = 4
tile row 6 of 7, column 0 of 13, queries 96 to 99, keys 0 to 7: partial
"""
GRID = """\
near, radius=1: 15 queries x 15 keys, y=3, x=5; tiled on cpu, tiles of 4 x 4
query 0 (y = 0, x = 0), key 12 (y = 2, x = 2): dropped
grid.mask:4:10: this clause drops the pair
  4 |     keep abs(q.y - k.y) <= radius
    |          ^^^^^^^^^^^^^^^^^^^^^^^^
    abs(q.y - k.y) <= radius is false: abs(q.y - k.y) = 2, radius = 1
grid.mask:5:10: this clause drops the pair
  5 |     keep abs(q.x - k.x) <= radius
    |          ^^^^^^^^^^^^^^^^^^^^^^^^
    abs(q.x - k.x) <= radius is false: abs(q.x - k.x) = 2, radius = 1
tile row 0 of 4, column 3 of 4, queries 0 to 3, keys 12 to 14: empty
"""


def test_a_dropped_pair(maskc: Maskc) -> None:
    Path("sink.mask").write_text(SINK)
    assert maskc("why", "sink.mask", "--seq", "100", "--tile", "16x8", "50", "20") == (0, EMPTY_TILE, "")


def test_a_kept_pair(maskc: Maskc) -> None:
    Path("sink.mask").write_text(SINK)
    assert maskc("why", "sink.mask", "99", "3", "--seq", "100", "--tile", "16x8") == (0, KEPT, "")


def test_every_clause_that_drops_a_pair_of_a_grid(maskc: Maskc) -> None:
    assert maskc("why", "grid.mask", "--grid", "y=3,x=5", "--tile", "4", "0", "12") == (0, GRID, "")


def test_inputs_heads_and_batch_rows(maskc: Maskc) -> None:
    Path("mixed.mask").write_text(
        "mask mixed:\n    input full: bool[kv_head]\n    input doc: int[batch, seq]\n"
        "    keep full or doc[q] == doc[k]\n"
    )
    np.save("full.npy", np.array([True, False]))
    np.save("doc.npy", np.array([[0, 0, 7], [0, 5, 6]]))
    call = ["why", "mixed.mask", "--seq", "3", "--heads", "4", "--kv-heads", "2", "--batch", "2", "1", "2"]
    call += ["--input", "full=full.npy", "--input", "doc=doc.npy"]
    status, out, err = maskc(*call, "--head", "1")
    assert (status, err) == (0, "")
    assert "query 1, key 2, head 1 (KV head 0), batch row 0: kept\n" in out
    assert "    full is true\ntile row 0 of 1, column 0 of 1, queries 0 to 2, keys 0 to 2: partial\n" in out
    out = maskc(*call, "--head", "2", "--batch-row", "1")[1]
    assert "query 1, key 2, head 2 (KV head 1), batch row 1: dropped\n" in out
    assert "    full is false\n    doc[q] == doc[k] is false: doc[q] = 5, doc[k] = 6\n" in out


def test_the_seed_decides_what_is_drawn(maskc: Maskc) -> None:
    answers = {maskc("why", "documents.mask", "--seq", "50", "40", "36", "--seed", str(seed)) for seed in range(8)}
    assert {"kept", "dropped"} <= {word for _, out, _ in answers for word in out.split()}


def test_positions_begin_at_the_offset(maskc: Maskc) -> None:
    call = ["why", "window.mask", "--q-len", "2", "--k-len", "9", "--q-offset", "7", "--tile", "4"]
    out = maskc(*call, "8", "1")[1]
    assert "query 8, key 1: kept\n" in out
    assert "    q - k < width is true: q - k = 7, width = 8\n" in out
    assert "tile row 0 of 1, column 0 of 3, queries 7 to 8, keys 0 to 3: partial\n" in out
    assert maskc(*call, "1", "1") == (1, "", "query 1 is not part of this call: its queries are 7 to 8\n")


def test_conditions_that_stand_elsewhere(maskc: Maskc) -> None:
    Path("far.mask").write_text(
        "def near(a, b):\n    return abs(a - b) < 2\n\nmask far:\n    let close = near(q // 4, k // 4)\n"
        "    keep close or sliding_window(window=3)\n    keep not (close and k in (3, 5))\n"
    )
    out = maskc("why", "far.mask", "--seq", "20", "19", "3")[1]
    assert "  6 |     keep close or sliding_window(window=3)\n" in out
    assert "    abs(a - b) < 2 is false (line 2): abs(a - b) = 4\n" in out
    line = 1 + LIBRARY.read_text(encoding="utf-8").splitlines().index("    keep 0 <= q - k < window")
    assert f"    q - k < window is false (line {line} of maskc/library.mask): q - k = 16\n" in out
    out = maskc("why", "far.mask", "--seq", "20", "6", "5")[1]
    assert "  7 |     keep not (close and k in (3, 5))\n" in out
    assert "    abs(a - b) < 2 is true (line 2): abs(a - b) = 0\n    k in (3, 5) is true: k = 5\n" in out


def test_a_mask_without_clauses(maskc: Maskc) -> None:
    Path("all.mask").write_text("mask all_pairs: pass\n")
    out = maskc("why", "all.mask", "--seq", "4", "--tile", "2", "0", "3")[1]
    assert "kept\nthe mask has no 'keep' line: every pair is kept\n" in out
    assert out.endswith("tile row 0 of 2, column 1 of 2, queries 0 to 1, keys 2 to 3: full\n")


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["--seq", "9", "9", "0"], 1, "query 9 is not part of this call: its queries are 0 to 8\n"),
        (["--seq", "9", "0", "10"], 1, "key 10 is not part of this call: its keys are 0 to 8\n"),
        (["--seq", "0", "0", "0"], 1, "query 0 is not part of this call: it has no queries\n"),
        (["--seq", "9", "0", "0", "--head", "1"], 1, "head 1 is not part of this call: its heads are 0 to 0\n"),
        (["--seq", "9", "0", "0", "--batch-row", "2"], 1, "batch row 2 is not part of this call: its batch rows are "),
        (["--seq", "9", "-1", "0"], 2, "argument Q: expected a number from 0 to 2147483647, got -1\n"),
        (["--seq", "9", "0"], 2, "the following arguments are required: K\n"),
        (["0", "0"], 2, "no size: give --seq N\n"),
    ],
)
def test_pairs_that_are_not_there(maskc: Maskc, arguments: list[str], status: int, sentence: str) -> None:
    found, out, err = maskc("why", "window.mask", *arguments)
    assert (found, out) == (status, "")
    assert sentence in err
