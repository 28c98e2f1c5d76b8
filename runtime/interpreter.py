"""The engine `interpret`: the generated kernels under Triton's interpreter, for CPU tensors of float32 and float16.

For tests and for reading along, not for speed. The kernels run in a helper process that is started on first use,
reused, and ended with this one; if it dies, the call raises and the next one starts another.
"""

import atexit
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from importlib import metadata
from typing import IO, Any

import torch
from torch import Tensor

from maskc.codegen.schedule import Pass
from maskc.codegen.source import KernelSource
from maskc.diagnostics import MaskError, MaskInputError, MaskUnsupportedError
from maskc.runtime import cache, helper, loader, passes, tables, variants
from maskc.runtime.inputs import Call
from maskc.runtime.tables import Tables
from maskc.runtime.tiles import INTERPRETED

_START = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from maskc.runtime.helper import serve
serve()
"""


@dataclass
class _Helper:
    """One helper process and what it wrote to stderr."""

    process: "subprocess.Popen[bytes]"
    stderr: IO[bytes]
    owner: int = field(default_factory=os.getpid)

    @classmethod
    def started(cls) -> "_Helper":
        """A helper that has said that it is ready."""
        _check_versions()
        stderr = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", _START, json.dumps(sys.path)]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, env=environment
        )
        found = cls(process, stderr)
        found.answer()
        return found

    def ask(self, request: dict[str, Any]) -> Any:
        """The result of a request."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the answer tells why
            helper.send(self.process.stdin, request)
        answer = self.answer()
        if "error" in answer:
            raise MaskError(f"a generated kernel failed under Triton's interpreter: {answer['error']}")
        return answer["result"]

    def answer(self) -> Any:
        """The next message; MaskError with the end of what the process said where it died."""
        assert self.process.stdout is not None
        try:
            return helper.receive(self.process.stdout)
        except EOFError:
            self.process.wait()
            self.stderr.seek(0)
            said = self.stderr.read().decode(errors="replace").strip().splitlines()[-5:]
            self.end()
            detail = ": " + " | ".join(said) if said else ""
            raise MaskError(
                f"the helper process of engine 'interpret' ended with code {self.process.returncode}{detail}"
            ) from None

    def end(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.stderr):
            assert stream is not None
            with contextlib.suppress(OSError):
                stream.close()


_lock = threading.Lock()
_running: list[_Helper] = []


def _ask(request: dict[str, Any]) -> Any:
    """Asks the helper process; it is started if there is none, or if this process is a fork of the one that has it."""
    with _lock:
        if _running and (_running[0].owner != os.getpid() or _running[0].process.poll() is not None):
            _running.clear()
        if not _running:
            _running.append(_Helper.started())
        try:
            return _running[0].ask(request)
        except BaseException as error:
            # After anything but an answer the pipe may hold half a message.
            if not isinstance(error, MaskError) or _running[0].process.poll() is not None:
                stop()
            raise


def stop() -> None:
    """Ends the helper process, if there is one; the next call starts another."""
    while _running:
        last = _running.pop()
        if last.owner == os.getpid():
            last.end()


atexit.register(stop)


def _check_versions() -> None:
    """The interpreter of Triton before 3.7 breaks on NumPy 2.4 and later."""
    version = loader.triton_version()
    if importlib.util.find_spec("triton.runtime.interpreter") is None:
        raise MaskUnsupportedError("this build of triton has no interpreter")
    numpy = metadata.version("numpy")
    if _leading(version) < (3, 7) and _leading(numpy) >= (2, 4):
        raise MaskUnsupportedError(
            f"engine 'interpret' needs triton >= 3.7 with NumPy >= 2.4; here are triton {version} and NumPy {numpy}"
        )


def _leading(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def _check(call: Call) -> None:
    """Refuses what the interpreter cannot run."""
    if call.q.device.type != "cpu":
        raise MaskInputError(f"engine 'interpret' takes CPU tensors; q is on {call.q.device}")
    if call.q.dtype is torch.bfloat16:
        raise MaskUnsupportedError("engine 'interpret' has no bfloat16 (Triton's interpreter has none); use float16")
    variants.dtype_of(call)


def _run(source: KernelSource, function: str, *arguments: Any) -> Any:
    file = str(cache.publish(source.text, loader.triton_version()))
    result, written = _ask({"file": file, "function": function, "arguments": arguments})
    for place, x in zip(helper.WRITES.get(function, ()), written, strict=True):
        arguments[place].copy_(x)
    return result


def _plan(call: Call, pass_: Pass, found: Tables, strided: tuple[Tensor, ...]) -> passes.Plan:
    return passes.plan(call, pass_, variants.config(call, INTERPRETED, strided), found)


def forward(call: Call) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp."""
    _check(call)
    found = tables.build(call, INTERPRETED.tile)
    return passes.forward(call, _plan(call, "forward", found, (call.q, call.k, call.v)), _run)


def backward(
    call: Call, out: Tensor, lse: Tensor, d_out: Tensor, d_lse: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    _check(call)
    found = tables.build(call, INTERPRETED.tile)
    strided = call.q, call.k, call.v, d_out
    queries, keys = _plan(call, "queries", found, strided), _plan(call, "keys", found, strided)
    statistic = None if d_lse is None else d_lse.to(torch.float32).contiguous()
    return passes.backward(call, queries, keys, out, lse, d_out, statistic, _run)
