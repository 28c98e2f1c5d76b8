"""The helper process of the `interpret` engine: runs functions of kernel files on tensors that come through a pipe.

Triton decides when it is imported whether kernels are interpreted or compiled, so interpretation needs a process of
its own. Messages are a length, a JSON header and the tensors' bytes; no code and no pickles travel. A request names a
kernel file of the cache, whose content is proven before it runs, and one of its functions.
"""

import json
import os
import struct
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import torch
from torch import Tensor

FUNCTIONS = ("forward", "forward_part", "merge", "backward_rows", "backward_queries", "backward_keys")
WRITES = {"forward_part": (4, 5)}
"""Where the functions that give nothing back have the arguments that they write to; those travel back."""

_LENGTH = struct.Struct("<Q")


def send(stream: IO[bytes], value: Any) -> None:
    """Writes one message: numbers, strings, None, dtypes, tensors, and tuples and dicts of them."""
    tensors: list[Tensor] = []
    header = {"value": _encoded(value, tensors), "tensors": [_layout(x) for x in tensors]}
    text = json.dumps(header).encode()
    stream.write(_LENGTH.pack(len(text)))
    stream.write(text)
    for x in tensors:
        stream.write(_bytes(x))
    stream.flush()


def receive(stream: IO[bytes]) -> Any:
    """Reads one message; EOFError where the other side is gone."""
    header = json.loads(_exactly(stream, _LENGTH.unpack(_exactly(stream, _LENGTH.size))[0]))
    tensors = [_tensor(layout, _exactly(stream, layout["bytes"])) for layout in header["tensors"]]
    return _decoded(header["value"], tensors)


def _exactly(stream: IO[bytes], count: int) -> bytearray:
    data = bytearray()
    while len(data) < count:
        part = stream.read(count - len(data))
        if not part:
            raise EOFError("the other side closed the pipe")
        data += part
    return data


def _encoded(value: Any, tensors: list[Tensor]) -> Any:
    """JSON for a value, its tensors replaced by their numbers."""
    match value:
        case Tensor():
            tensors.append(value)
            return {"tensor": len(tensors) - 1}
        case torch.dtype():
            return {"dtype": _name(value)}
        case tuple():
            return {"tuple": [_encoded(v, tensors) for v in value]}
        case dict():
            return {"dict": {k: _encoded(v, tensors) for k, v in value.items()}}
        case _:
            return value


def _decoded(value: Any, tensors: Sequence[Tensor]) -> Any:
    match value:
        case {"tensor": number}:
            return tensors[number]
        case {"dtype": name}:
            return getattr(torch, name)
        case {"tuple": items}:
            return tuple(_decoded(v, tensors) for v in items)
        case {"dict": items}:
            return {k: _decoded(v, tensors) for k, v in items.items()}
        case _:
            return value


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _span(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Elements from the first one of a tensor to its last."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


def _layout(x: Tensor) -> dict[str, Any]:
    """What the other side needs to see the same tensor, strides included."""
    size = _span(x.shape, x.stride()) * x.element_size()
    return {"dtype": _name(x.dtype), "shape": list(x.shape), "stride": list(x.stride()), "bytes": size}


def _bytes(x: Tensor) -> bytes:
    span = _span(x.shape, x.stride())
    return x.detach().as_strided((span,), (1,)).numpy().tobytes() if span else b""


def _tensor(layout: dict[str, Any], data: bytearray) -> Tensor:
    dtype = getattr(torch, layout["dtype"])
    flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
    return flat.as_strided(layout["shape"], layout["stride"])


def serve() -> None:
    """Answers requests until the other side closes the pipe. What kernels print goes to stderr."""
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    import numpy as np

    np.seterr(all="ignore")
    modules: dict[str, ModuleType] = {}
    send(answers, {"ready": True})
    while True:
        try:
            request = receive(requests)
        except EOFError:
            return
        try:
            send(answers, {"result": _run(request, modules)})
        except Exception as error:  # reported to the caller, whatever it is
            print(traceback.format_exc(), file=sys.stderr, flush=True)
            send(answers, {"error": f"{type(error).__name__}: {error}"})


def _run(request: dict[str, Any], modules: dict[str, ModuleType]) -> tuple[Any, tuple[Tensor, ...]]:
    """What the function gives, and what it wrote to."""
    from maskc.runtime import loader

    path, function = request["file"], request["function"]
    if function not in FUNCTIONS:
        raise ValueError(f"no function {function!r}")
    if path not in modules:
        modules[path] = loader.load_file(Path(path))
    arguments = request["arguments"]
    result = getattr(modules[path], function)(*arguments)
    return result, tuple(arguments[place] for place in WRITES.get(function, ()))
