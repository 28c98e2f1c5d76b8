"""What the functions of kernel files do, recorded once and replayed.

The functions stay the one place that says which kernels run, on which grids and with which arguments. To record, they
run on tensors of the device `meta`, their kernels replaced by a note: what they allocate and what they launch becomes a
list of steps, in which every tensor is a number. To replay is to go through the steps with the tensors of another call;
nothing is derived anew, so whatever a step follows from has to be part of the key under which a record is kept.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from types import FunctionType
from typing import Any

import torch
import triton
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton.knobs import HookChain
from triton.runtime.driver import driver

from maskc.codegen.source import Argument, KernelSource
from maskc.diagnostics import MaskError
from maskc.runtime import loader

Values = list[Tensor]
"""The tensors of a replay by number: those of the call, then what the steps allocate."""


@dataclass(frozen=True)
class CompileKey:
    """What decides whether a kernel has to be compiled.

    text: hash of the kernel file; signature: name and type of every argument, and the value of compile-time ones;
    options: number of warps and stages, and the like.
    """

    text: str
    entry: str
    target: str
    signature: tuple[tuple[str, str], ...]
    options: tuple[tuple[str, Any], ...]


class KernelError(Exception):
    """A kernel does not compile or cannot be loaded; the cause says why."""

    def __init__(self, entry: str) -> None:
        super().__init__(entry)
        self.entry = entry


@dataclass(frozen=True, eq=False)
class Allocate:
    """Makes a contiguous tensor; fill: what it holds, None for anything."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    fill: float | None = None

    def __call__(self, values: Values, stream: int) -> None:
        """Appends it."""
        x = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        values.append(x if self.fill is None else x.fill_(self.fill))


@dataclass(frozen=True, eq=False)
class Cast:
    """Copies a tensor to another dtype."""

    slot: int
    dtype: torch.dtype

    def __call__(self, values: Values, stream: int) -> None:
        """Appends the copy."""
        values.append(values[self.slot].to(self.dtype))


@dataclass(frozen=True, eq=False)
class Launch:
    """Launches a compiled kernel.

    arguments: all of them in order, tensors that never change as addresses. slots: (place among them, number of the
    tensor whose address belongs there, bytes behind its begin).
    """

    kernel: Any
    run: Callable[..., None]
    grid: tuple[int, int, int]
    arguments: list[Any]
    slots: tuple[tuple[int, int, int], ...]

    def __call__(self, values: Values, stream: int) -> None:
        """Launches."""
        arguments = self.arguments.copy()
        for place, slot, offset in self.slots:
            arguments[place] = values[slot].data_ptr() + offset
        kernel, metadata = self.kernel, None
        enter, leave = _hooks.launch_enter_hook, _hooks.launch_exit_hook
        if _does(enter) or _does(leave):
            metadata = kernel.launch_metadata(self.grid, stream, *arguments)
        else:
            enter = leave = None
        self.run(*self.grid, stream, kernel.function, kernel.packed_metadata, metadata, enter, leave, *arguments)


_hooks = triton.knobs.runtime


def _does(hook: Any) -> bool:
    """Whether a hook of Triton, a chain of functions or one, does anything."""
    return bool(hook.calls) if type(hook) is HookChain else hook is not None


@dataclass(frozen=True, eq=False)
class Record:
    """Steps, the numbers of the tensors that they result in, and the tensors that launches hold addresses of."""

    device: torch.device
    steps: tuple[Allocate | Cast | Launch, ...]
    results: tuple[int, ...]
    held: tuple[Tensor, ...]

    def replay(self, values: Values) -> tuple[Tensor, ...]:
        """Goes through the steps with the tensors of a call; launches are queued on the current stream."""
        current = driver.active.get_current_device()
        if self.device.index not in (current, None):  # Triton launches on the current device
            with torch.cuda.device(self.device):
                return self.replay(values)
        stream = driver.active.get_current_stream(current)
        for step in self.steps:
            step(values, stream)
        return tuple([values[slot] for slot in self.results])


class Recorder(TorchDispatchMode):
    """Records what functions of kernel files do. note: is told the key of every kernel, before it is compiled."""

    def __init__(self, device: torch.device, target: str, note: Callable[[CompileKey], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._device, self._target, self._note = device, target, note
        self._steps: list[Allocate | Cast | Launch] = []
        self._tensors: list[Tensor] = []  # on `meta`, by number; each has a storage of its own and keeps it alive
        self._slots: dict[int, int] = {}  # by storage
        self._made: dict[int, int] = {}  # the steps that make tensors, by the number of these
        self._held: list[Tensor] = []

    def twin(self, x: Tensor) -> Tensor:
        """Stands for the next tensor of the call: all of it but its data."""
        return self._added(torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta"))

    def run(self, source: KernelSource, function: str, *arguments: Any) -> Any:
        """Calls a function of a kernel file on twins, and on tensors that are the same in every call."""
        return _functions(source, self)[function](*arguments)

    def record(self, work: Callable[[], Sequence[Tensor]]) -> Record:
        """What `work` does, which calls `run` and allocates."""
        with self:
            results = work()
        slots = [self._slots[_storage(x)] for x in results]
        for slot, x in zip(slots, results, strict=True):
            made = self._made[slot]
            self._steps[made] = _shaped(self._steps[made], x.shape)
        return Record(self._device, tuple(self._steps), tuple(slots), tuple(self._held))

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Takes notes of an operator of torch; those that a record cannot hold are errors."""
        kwargs = kwargs or {}
        result = op(*args, **kwargs)
        if isinstance(result, Tensor) and _storage(result) in self._slots:
            return result  # a view
        name = op._opname
        if name == "_to_copy" and self._slots.get(_storage(args[0])) is not None:
            self._steps.append(Cast(self._slots[_storage(args[0])], result.dtype))
        elif name in _MAKING and result.is_contiguous():
            fill = args[2 if name == "new_full" else 1] if name in ("full", "new_full") else _MAKING[name]
            self._steps.append(Allocate(tuple(result.shape), result.dtype, self._device, fill))
        else:
            raise MaskError(f"the function of a kernel file calls {op}, which cannot be recorded")
        self._made[len(self._tensors)] = len(self._steps) - 1
        return self._added(result)

    def launch(self, noted: "_Noted", grid: tuple[int, ...], given: Sequence[Any], named: Mapping[str, Any]) -> None:
        """Compiles a kernel, and notes its launch with these arguments and options."""
        declared = noted.source.kernel(noted.entry).arguments
        bound = {**dict(zip((a.name for a in declared), given, strict=False)), **named}
        arguments = [bound.pop(a.name) for a in declared]
        signature = tuple((a.name, _type(a, x)) for a, x in zip(declared, arguments, strict=True))
        options = tuple(sorted(bound.items()))
        self._note(CompileKey(_hash(noted.source.text), noted.entry, self._target, signature, options))
        compiled = _compiled(noted, grid, given, named)
        slots = [(place, *self._address(x)) for place, x in enumerate(arguments) if self._is_ours(x)]
        fixed = [self._kept(x) if isinstance(x, Tensor) and not self._is_ours(x) else x for x in arguments]
        x, y, z = *grid, *(1,) * (3 - len(grid))
        self._steps.append(Launch(compiled, compiled.run, (x, y, z), fixed, tuple(slots)))

    def _added(self, x: Tensor) -> Tensor:
        self._slots[_storage(x)] = len(self._tensors)
        self._tensors.append(x)
        return x

    def _is_ours(self, x: object) -> bool:
        return isinstance(x, Tensor) and _storage(x) in self._slots

    def _address(self, x: Tensor) -> tuple[int, int]:
        return self._slots[_storage(x)], int(x.storage_offset()) * x.element_size()

    def _kept(self, x: Tensor) -> int:
        self._held.append(x)
        return x.data_ptr()


_MAKING: dict[str, float | None] = {
    **dict.fromkeys(("empty", "new_empty", "empty_like", "full", "new_full"), None),
    **dict.fromkeys(("zeros", "new_zeros"), 0.0),
}
"""The operators that allocate, and what they fill with where that is not an argument."""


def _storage(x: Tensor) -> int:
    return int(x.untyped_storage()._cdata)


def _shaped(step: Allocate | Cast | Launch, shape: torch.Size) -> Allocate | Cast | Launch:
    """The step in the shape of the result that it makes. Kernels take addresses, so that it is nobody else's."""
    if not isinstance(step, Allocate):
        return step
    assert math.prod(step.shape) == shape.numel(), "a result is all of what was allocated for it"
    return replace(step, shape=tuple(shape))


def _type(argument: Argument, value: object) -> str:
    """What of an argument is compiled in."""
    if argument.type == "constexpr":
        return str(value)
    if argument.type.startswith(("*", "input:", "offsets")):
        return f"*{value.dtype}" if isinstance(value, Tensor) else str(value)
    return argument.type


def _compiled(noted: "_Noted", grid: tuple[int, ...], given: Sequence[Any], named: Mapping[str, Any]) -> Any:
    """Triton's compiled kernel, loaded on the current device."""
    try:
        compiled = noted.kernel.warmup(*given, grid=grid, **named)
        _ = compiled.run  # loads the binary
    except Exception as error:  # whatever the compiler raises, the report says it
        raise KernelError(noted.entry) from error
    return compiled


@lru_cache(maxsize=256)
def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _functions(source: KernelSource, recorder: Recorder) -> dict[str, Any]:
    """The functions of a kernel file by name, with notes of launches in the place of its kernels."""
    module = vars(loader.load(source))
    names = dict(module)
    for entry in source.kernels:
        names[entry.name] = _Noted(recorder, source, entry.name, module[entry.name])
    for name, function in module.items():
        if isinstance(function, FunctionType):
            names[name] = FunctionType(function.__code__, names, name, function.__defaults__)
    return names


@dataclass(frozen=True)
class _Noted:
    """Stands for a kernel of a file."""

    recorder: Recorder
    source: KernelSource
    entry: str
    kernel: Any

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*given: Any, **named: Any) -> None:
            self.recorder.launch(self, grid, given, named)

        return launch
