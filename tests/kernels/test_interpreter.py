"""The helper process of engine `interpret`: reused, replaced when it dies, and clear about what it cannot run."""

import os
import subprocess
import sys
import threading
from typing import Any

import pytest
import torch
from kernels.cases import Case

from maskc.diagnostics import MaskError, MaskUnsupportedError
from maskc.runtime import cache, helper, interpreter, loader

CASE = Case("small", "keep k <= q", lengths=(9, 9))


def request(file: str, function: str = "") -> dict[str, Any]:
    return {"file": file, "function": function, "arguments": ()}


def test_one_helper_serves_all_calls() -> None:
    call = CASE.call()
    interpreter.forward(call)
    process = interpreter._running[0].process
    interpreter.forward(call)
    assert interpreter._running[0].process is process
    interpreter.stop()
    assert process.poll() is not None


def test_a_dead_helper_is_an_error_and_then_replaced() -> None:
    call = CASE.call()
    out, _ = interpreter.forward(call)
    interpreter._running[0].process.kill()
    # The call that meets the death says so; one that comes after it has been noticed just works.
    with pytest.raises(MaskError, match="helper process of engine 'interpret' ended with code -9"):
        interpreter._running[0].ask(request(""))
    assert torch.equal(interpreter.forward(call)[0], out)


def test_an_error_in_a_kernel_is_reported_and_survived() -> None:
    call = CASE.call()
    interpreter.forward(call)
    process = interpreter._running[0].process
    file = cache.publish("def forward():\n    raise ValueError('no such tile')\n", loader.triton_version())
    with pytest.raises(MaskError, match="ValueError: no such tile"):
        interpreter._ask(request(str(file), "forward"))
    interpreter.forward(call)
    assert interpreter._running[0].process is process


def test_only_the_functions_of_kernel_files_run() -> None:
    file = cache.publish("import os\n", loader.triton_version())
    with pytest.raises(MaskError, match="no function 'system'"):
        interpreter._ask(request(str(file), "system"))


def test_a_file_that_is_not_what_its_name_says_is_not_run() -> None:
    file = cache.publish("def forward():\n    return 1\n", loader.triton_version())
    file.write_text("def forward():\n    return 2\n")
    with pytest.raises(MaskError, match="does not hold the text"):
        interpreter._ask(request(str(file), "forward"))


def test_calls_from_several_threads() -> None:
    cases = [Case(f"thread {n}", "keep k <= q", lengths=(5 + n, 5 + n)) for n in range(4)]
    calls = [case.call() for case in cases]
    expected = [interpreter.forward(call)[0] for call in calls]
    found: dict[int, torch.Tensor] = {}

    def run(number: int) -> None:
        found[number] = interpreter.forward(calls[number])[0]

    threads = [threading.Thread(target=run, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[n], expected[n]) for n in range(4))


@pytest.mark.parametrize(
    ("dtype", "dims", "named"),
    [
        (torch.bfloat16, (16, 16), "no bfloat16"),
        (torch.float64, (16, 16), "q, k and v are float64"),
        (torch.float32, (257, 16), "head dim of q and k is 257"),
        (torch.float32, (16, 300), "head dim of v is 300"),
    ],
)
def test_what_it_cannot_run_is_refused_by_name(dtype: torch.dtype, dims: tuple[int, int], named: str) -> None:
    with pytest.raises(MaskUnsupportedError, match=named):
        interpreter.forward(Case("refused", "pass", dtype=dtype, dims=dims, lengths=(3, 3)).call())


@pytest.mark.parametrize(("triton", "numpy", "works"), [("3.6.0", "2.4.6", False), ("3.6.0", "2.3.1", True)])
def test_versions_that_break_are_named(triton: str, numpy: str, works: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "triton_version", lambda: triton)
    monkeypatch.setattr(interpreter.metadata, "version", lambda name: numpy)
    if works:
        interpreter._check_versions()
    else:
        with pytest.raises(MaskUnsupportedError, match=r"triton >= 3\.7 with NumPy >= 2\.4; here are triton 3\.6\.0"):
            interpreter._check_versions()


def test_messages_keep_what_they_carry() -> None:
    """Strides, dtypes, empty tensors and extreme numbers come out as they went in."""
    base = torch.arange(24, dtype=torch.float16).reshape(2, 3, 4)
    tensors = (base.transpose(0, 2), base[:, 1:2], torch.ones(()).expand(3, 4), torch.zeros(0, 5), torch.tensor([True]))
    value = (tensors, {"x": (2**62, -1.5e-300, float("-inf"), None, "text", True, torch.float16)})
    program = """
import sys
from maskc.runtime import helper
helper.send(sys.stdout.buffer, helper.receive(sys.stdin.buffer))
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    helper.send(process.stdin, value)
    back, numbers = helper.receive(process.stdout)
    process.communicate()
    assert numbers == value[1]
    for one, other in zip(back, tensors, strict=True):
        assert torch.equal(one, other)
        assert one.dtype == other.dtype
        assert one.stride() == other.stride()


def test_the_process_ends_with_its_parent() -> None:
    program = """
import sys
sys.path.insert(0, "tests")
from kernels.cases import Case
from maskc.runtime import interpreter
interpreter.forward(Case("end", "pass", lengths=(3, 3)).call())
print(interpreter._running[0].process.pid)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)
