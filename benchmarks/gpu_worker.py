"""Processes for work that may bring its process down: a kernel that fails on the device spoils all that comes after."""

import multiprocessing
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

Work = Callable[[Any, Any], Iterator[Any]]
"""Takes a unit and the options; the answers have an attribute `fatal`: True where the process cannot go on."""


class LostError(Exception):
    """A process did not finish its unit; says why."""


def is_fatal(error: BaseException) -> bool:
    """Whether an error of the device leaves a process that cannot use it any more; being out of memory does not."""
    text = str(error)
    return isinstance(error, RuntimeError) and ("CUDA error" in text or "HIP error" in text or "Triton Error" in text)


def serve(connection: Connection, work: Work, options: Any) -> None:
    """What the process does: units come in, their answers go out, None after the last; ends after a fatal one."""
    while True:
        unit = connection.recv()
        for answer in work(unit, options):
            connection.send(answer)
            if answer.fatal:
                return
        connection.send(None)


class Worker:
    """A process of its own that works on one unit at a time. work: a function of a module, not one within another."""

    def __init__(self, work: Work, options: Any):
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=serve, args=(other, work, options), daemon=True)
        self._process.start()
        other.close()
        self.alive = True

    def answers(self, unit: Any, limit: float, end: float) -> Iterator[Any]:
        """The answers to a unit. Raises LostError where the process does not finish it; the worker is of no use then.

        limit: seconds from one answer to the next; end: by time.monotonic, of all waiting.
        """
        try:
            self._connection.send(unit)
            while True:
                if not self._connection.poll(max(0.1, min(limit, end - time.monotonic()))):
                    raise LostError(self._stopped("no answer in time"))
                answer = self._connection.recv()
                if answer is None:
                    return
                yield answer
        except (EOFError, OSError):
            self._process.join(10)
            raise LostError(self._stopped(f"the process ended with code {self._process.exitcode}")) from None

    def stop(self) -> None:
        """Ends the process."""
        if self.alive:
            self.alive = False
            self._process.kill()
            self._connection.close()

    def _stopped(self, why: str) -> str:
        self.stop()
        return why
