"""A stub in the place of the GPU: Triton compiles for sm_90, and what would go to the device is noted.

Calls of the engine `triton` on CPU tensors then do all that they do on a GPU but the work of the device; tables that
depend on data are made by torch's operators, as there.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from maskc.analysis.bounds import reads_data
from maskc.codegen.schedule import target_named
from maskc.runtime import launcher, tables
from maskc.runtime.inputs import Call
from maskc.runtime.tables import Tables

Launch = tuple[Any, ...]
"""Grid (3), stream, function, metadata, launch metadata, two hooks, and the arguments of the kernel."""


class StubDriver:
    """What Triton asks of a driver; binaries are counted and not loaded, launches noted and not done."""

    def __init__(self) -> None:
        self.binaries: list[str] = []
        self.launches: list[Launch] = []
        self.utils = self

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232448, "multiprocessor_count": 132, "max_num_regs": 65536}

    def load_binary(self, name: str, *_: Any) -> tuple[int, int, int, int, int]:
        self.binaries.append(name)
        return 0, len(self.binaries), 0, 0, 1024

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        return self.launch

    def launch(self, *launch: Any) -> None:
        """Notes a launch; a benchmark puts less in its place."""
        self.launches.append(launch)


def _build(call: Call, tile: tuple[int, int], splits: int = 1) -> Tables:
    if reads_data(call.spec, call.sizes):
        return tables._on_device(call, tile, splits)
    return tables._of_host(tables.plan_of(call, tile), call.q.device, splits)


@contextmanager
def in_place_of_gpu(stub: StubDriver) -> Iterator[None]:
    """The engine `triton` takes CPU tensors, and begins without records and compile keys."""
    changes: dict[str, Any] = {
        "_check_device": lambda call: None,
        "_device": lambda call: nullcontext(),
        "target_of": lambda device: target_named("sm_90"),
        "processors_of": lambda device: 132,
        "_keys": {},
        "_records": type(launcher._records)(),
        "_too_large": {},
    }
    with (
        mock.patch.multiple(launcher, **changes),
        mock.patch.object(tables, "build", _build),
        mock.patch.object(driver, "_active", stub),
    ):
        yield
