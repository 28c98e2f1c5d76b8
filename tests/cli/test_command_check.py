"""`maskc check`, and the mistakes that every command answers in the same way."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from maskc.commands import check as cli_check

Maskc = Callable[..., tuple[int, str, str]]

MISTAKE = """\
mask sliding(window: int = 8):
    keep q - k < windw
    keep q + 1
"""
MISTAKE_SAID = """\
wrong.mask:2:18: unknown name 'windw'
  2 |     keep q - k < windw
    |                  ^^^^^
hint: did you mean 'window'?
"""


def test_a_right_spec_is_ok_on_stdout(maskc: Maskc) -> None:
    assert maskc("check", "window.mask", "documents.mask:whole") == (
        0,
        "window.mask: ok\ndocuments.mask:whole: ok\n",
        "",
    )


def test_mistakes_go_to_stderr_and_the_other_files_are_still_checked(maskc: Maskc) -> None:
    Path("wrong.mask").write_text(MISTAKE)
    status, out, err = maskc("check", "wrong.mask", "window.mask")
    assert (status, out) == (1, "window.mask: ok\n")
    assert err.startswith(MISTAKE_SAID)
    assert "wrong.mask:3:10: " in err


def test_warnings_do_not_fail(maskc: Maskc) -> None:
    Path("warn.mask").write_text("mask warn:\n    keep k <= q\n    keep 1 < 2\n")
    status, out, err = maskc("check", "warn.mask")
    assert (status, out) == (0, "warn.mask: ok\n")
    assert err.startswith("warn.mask:3:10: warning: ")


def test_claims_are_checked_when_sizes_are_given(maskc: Maskc) -> None:
    Path("claims.mask").write_text("mask claims:\n    keep k <= q + 1\n    claim k <= q\n")
    assert maskc("check", "claims.mask") == (0, "claims.mask: ok\n", "")
    status, out, err = maskc("check", "claims.mask", "--seq", "5")
    assert (status, out) == (1, "")
    assert err == (
        "claims.mask:3:11: claim k <= q fails for the kept pair q = 0, k = 1, head 0, batch row 0; "
        "5 queries x 5 keys\n"
        "  3 |     claim k <= q\n"
        "    |           ^^^^^^\n"
    )


def test_long_checks_say_so(maskc: Maskc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_check, "LONG_CHECK", 24)
    Path("claims.mask").write_text("mask claims:\n    keep k < q\n    claim k <= q\n")
    said = "looking at 25 pairs for one that breaks a claim of claims ...\n"
    assert maskc("check", "claims.mask", "--seq", "5") == (0, "claims.mask: ok\n", said)


CLAIMED = """\
mask first:
    keep k <= q
    claim k <= q
    claim q * q * q + k != 1000006

mask second(width: int = 8):
    input doc: int[batch, seq] sorted
    keep 0 <= q - k < width and doc[q] == doc[k]
    claim q - k < width
    claim q == k
"""


def test_claims_of_all_masks_are_proven_or_refuted(maskc: Maskc) -> None:
    Path("claims.mask").write_text(CLAIMED)
    status, out, err = maskc("check", "--claims", "claims.mask", "window.mask")
    assert status == 1
    assert out == (
        "claims.mask:3: claim k <= q: proven for all sizes\n"
        "claims.mask:4: claim q * q * q + k != 1000006: not proven; "
        "holds in 27 small calls, up to 33 queries x 33 keys\n"
        "claims.mask:9: claim q - k < width: proven for all sizes\n"
        "claims.mask:10: claim q == k: refuted\n"
        "window.mask: ok\n"
    )
    assert err.startswith("claims.mask:10:11: claim q == k fails for the kept pair q = 1, k = 0, head 0, batch row ")
    assert "; 2 queries x 2 keys, width = 8, doc[" in err
    assert maskc("check", "--claims", "claims.mask:first")[0] == 0


def test_claims_are_proven_or_checked_at_the_sizes_given(maskc: Maskc) -> None:
    Path("claims.mask").write_text(CLAIMED)
    _, out, err = maskc("check", "--claims", "claims.mask:first", "--seq", "30")
    assert "claims.mask:4: claim q * q * q + k != 1000006: not proven; holds at the given sizes\n" in out
    assert err == ""
    status, out, err = maskc("check", "--claims", "claims.mask:first", "--seq", "101")
    assert (status, out.splitlines()[-1]) == (1, "claims.mask:4: claim q * q * q + k != 1000006: refuted")
    assert "fails for the kept pair q = 100, k = 6, head 0, batch row 0; 101 queries x 101 keys" in err


def test_parameters_given_are_those_of_the_calls_tried(maskc: Maskc) -> None:
    Path("claims.mask").write_text("mask m(width: int):\n    keep abs(q - k) < width\n    claim k <= q\n")
    assert "1 queries" not in maskc("check", "--claims", "claims.mask", "-p", "width=1")[2]
    assert "width = 5" in maskc("check", "--claims", "claims.mask", "-p", "width=5")[2]


def test_claims_of_scores_and_preconditions_that_say_nothing(maskc: Maskc) -> None:
    Path("claims.mask").write_text(
        "mask m(n: int = 2):\n    claim n * n >= n\n    keep score > 0 and k <= q\n    claim k <= q\n    claim k < q\n"
    )
    status, out, err = maskc("check", "--claims", "claims.mask")
    assert status == 0
    assert err.startswith("claims.mask:2:11: warning: this precondition always holds\n")
    assert out == (
        "claims.mask:4: claim k <= q: proven for all sizes\n"
        "claims.mask:5: claim k < q: not proven; which pairs are kept depends on the scores of a call\n"
        "claims.mask: ok\n"
    )
    assert maskc("check", "claims.mask", "--seq", "4")[0] == 0


def test_preconditions_are_checked_when_sizes_are_given(maskc: Maskc) -> None:
    assert maskc("check", "grid.mask", "--grid", "y=4,x=4")[0] == 0
    status, out, err = maskc("check", "grid.mask", "--grid", "y=4,x=4", "-p", "radius=5")
    assert (status, out) == (1, "")
    assert err == "mask 'near' claims 'radius <= y.size', which does not hold (radius=5, y.size=4)\n"


@pytest.mark.parametrize("command", ["check", "show", "explain", "emit", "run", "verify"])
@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("nowhere.mask", "cannot read 'nowhere.mask': No such file or directory"),
        (".", "cannot read '.': Is a directory"),
        ("window.mask/x", "cannot read 'window.mask/x': Not a directory"),
        ("a\0b", "cannot read 'a\0b': embedded null byte"),
        ("window.mask:windo", "'window.mask' has no mask 'windo'\nhint: did you mean 'window'?"),
        ("", "cannot read '': No such file or directory"),
        ("latin.mask", "latin.mask:1:3: this is not UTF-8"),
        ("empty.mask", "there is no mask in this file"),
    ],
)
def test_a_spec_that_cannot_be_read_is_one_sentence(maskc: Maskc, command: str, spec: str, sentence: str) -> None:
    Path("latin.mask").write_bytes("# é\nmask a:\n    pass\n".encode("latin-1"))
    Path("empty.mask").write_text("")
    options = {"check": [], "verify": [], "emit": ["--stage", "spec"]}.get(command, ["--seq", "8"])
    status, out, err = maskc(command, spec, *options)
    assert (status, out) == (1, "")
    assert sentence in err


def test_names_that_are_no_text_are_printed(maskc: Maskc) -> None:
    name = os.fsdecode(b"caf\xe9.mask")
    Path(name).write_text("mask a:\n    keep k <= q\n")
    assert maskc("check", name) == (0, "caf\\udce9.mask: ok\n", "")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["chek"], "invalid choice: 'chek'"),
        (["check"], "the following arguments are required: SPEC"),
        (["show", "window.mask"], "maskc show: error: no size: give --seq N"),
        (["show", "grid.mask"], "maskc show: error: no size: give --seq N or --grid y=64,x=64"),
        (["show", "window.mask", "--seq", "many"], "argument --seq: expected a whole number, got 'many'"),
        (["show", "window.mask", "--seq", "-1"], "argument --seq: expected a number from 0 to 2147483647, got -1"),
        (
            ["show", "window.mask", "--seq", "9" * 20],
            "argument --seq: expected a number from 0 to 2147483647, got 9999",
        ),
        (["show", "window.mask", "--seq", "8", "--heads", "0"], "argument --heads: expected a number from 1, got 0"),
        (["show", "window.mask", "--seq", "8", "--tile", "8x"], "argument --tile: expected a number or QUERIESxKEYS"),
        (["show", "window.mask", "--seq", "8", "--tile", "0"], "argument --tile: expected a number from 1, got 0"),
        (["show", "window.mask", "--seq", "8", "-p", "width"], "argument -p: expected name=value, got 'width'"),
        (["show", "window.mask", "--seq", "8", "-p", "width="], "argument -p: expected name=value, got 'width='"),
        (["show", "window.mask", "--seq", "8", "-p", "width=x"], "-p width=x: 'width' is of type int"),
        (["show", "window.mask", "--seq", "8", "-p", "width=1.5"], "-p width=1.5: 'width' is of type int"),
        (["show", "window.mask", "--seq", "8", "-p", "width=1", "-p", "width=2"], "-p width: given twice"),
        (["show", "grid.mask", "--seq", "8", "-p", "y=2"], "'y' is an axis; its size is given by --grid y=2"),
        (["show", "grid.mask", "--grid", "64x64"], "argument --grid: expected name=value, got '64x64'"),
        (["show", "grid.mask", "--grid", "y=0,x=2"], "argument --grid: expected a number from 1, got 0"),
        (["show", "grid.mask", "--grid", "y=2,y=3"], "argument --grid: 'y' is given twice"),
        (["show", "window.mask", "--seq", "8", "--engine", "dense"], "argument --engine: invalid choice: 'dense'"),
        (["show", "window.mask", "--seq", "8", "--device", "gpu"], "argument --device: expected cpu, cuda, xpu or"),
        (["show", "window.mask", "--seq", "8", "--dtype", "int8"], "argument --dtype: invalid choice: 'int8'"),
        (["emit", "window.mask"], "one of the arguments --stage --variants is required"),
        (["emit", "window.mask", "--stage", "ptx", "--variants"], "not allowed with argument --stage"),
        (["emit", "window.mask", "--stage", "kernel", "--json"], "--json goes with --variants"),
        (["emit", "window.mask", "--stage", "plan", "--indexed"], "--indexed and --open go with --stage kernel"),
        (["emit", "window.mask", "--variants", "--open", "0"], "--indexed and --open go with --stage kernel"),
        (["emit", "window.mask", "--stage", "kernel", "--open", "0;1"], "argument --open: expected a whole number"),
        (["emit", "window.mask", "--stage", "kernel", "--kernel", "merge_kernel"], "--kernel goes with the stages"),
        (["verify", "window.mask", "--kv-heads", "2"], "--kv-heads needs --heads"),
        (["verify", "window.mask", "--heads", "7", "--kv-heads", "2"], "--heads 7 is no multiple of --kv-heads 2"),
        (["verify", "window.mask", "--strides", "even"], "argument --strides: invalid choice: 'even'"),
        (["emit", "window.mask", "--stage", "ptx", "--tile", "64"], "--tile goes with --stage plan"),
        (["run", "window.mask", "--seq", "8", "--tile", "64"], "unrecognized arguments: --tile 64"),
        (["emit", "window.mask", "--stage", "exe"], "argument --stage: invalid choice: 'exe'"),
    ],
)
def test_a_wrong_command_line_is_a_usage_error(maskc: Maskc, arguments: list[str], sentence: str) -> None:
    status, out, err = maskc(*arguments)
    assert (status, out) == (2, "")
    assert sentence in err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["window.mask", "--seq", "8", "-p", "widht=2"],
            "mask 'window' has no parameter 'widht'\nhint: did you mean 'width'?",
        ),
        (["grid.mask", "--seq", "8"], "mask 'near' has the axes y, x; give the sizes of all but one"),
        (["grid.mask", "--grid", "y=2,x=2,z=2"], "mask 'near' has no parameter or axis 'z'"),
        (["grid.mask", "--grid", "y=2,x=2", "--seq", "8"], "the grid y=2 x x=2 has 4 places; queries and keys need 8"),
        (["window.mask", "--q-len", "1", "--k-len", "8"], "give q_offset=7 to align the ends"),
        (["window.mask", "--seq", "8", "--heads", "3", "--kv-heads", "2"], "3 query heads and 2 KV heads"),
        (["window.mask", "--seq", "8", "--input", "doc=x.npy"], "mask 'window' has no input 'doc'; its inputs: none"),
        (["documents.mask", "--seq", "8", "--input", "doc=x.npy"], "--input doc=x.npy: cannot be read as an .npy file"),
        (["documents.mask", "--seq", "8", "--input", "doc=."], "--input doc=.: cannot be read as an .npy file"),
        (["window.mask", "--seq", "2147483647"], "are 1,125,899,906,842,624 tiles of 64 x 64; expected at most"),
        (["window.mask", "--seq", "8", "--target", "sm_1"], "no target 'sm_1'; known are sm_80"),
        (["window.mask", "--seq", "8", "--target", "sm_90", "--dim", "257"], "the head dim of q and k is 257"),
        (
            ["window.mask", "--seq", "8", "--target", "sm_90", "--dim-v", "300"],
            "the head dim of v is 300; generated kernels have 1 to 256",
        ),
        (["window.mask", "--seq", "8", "--engine", "triton", "--dtype", "float64"], "q, k and v are float64"),
    ],
)
def test_what_a_spec_does_not_accept_is_one_sentence(maskc: Maskc, arguments: list[str], sentence: str) -> None:
    status, out, err = maskc("show", *arguments)
    assert (status, out) == (1, "")
    assert sentence in err
