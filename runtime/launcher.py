"""The engine `triton`: picks variant and configuration of the generated kernels, and launches them on the GPU.

Nothing here waits for the device or reads data. A kernel is compiled on its first launch with a new *compile key*: the
hash of its text, its dtypes and its compile-time arguments. Lengths, strides, parameter values and contents are not
part of it; `compile_keys` lists the keys so far.
"""

import hashlib
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from maskc.codegen.schedule import Pass, Target, configuration, target_named
from maskc.codegen.source import KernelSource, emit
from maskc.diagnostics import MaskInputError
from maskc.runtime import loader, tables, variants
from maskc.runtime.inputs import Call


@dataclass(frozen=True)
class CompileKey:
    """What decides whether a kernel has to be compiled. text: hash of the kernel file; inputs: dtypes by name."""

    text: str
    function: str
    target: str
    dtype: str
    dims: tuple[int, int]
    inputs: tuple[tuple[str, str], ...]
    config: tuple[tuple[str, Any], ...]


_keys: dict[CompileKey, None] = {}


def compile_keys() -> tuple[CompileKey, ...]:
    """The keys of every launch of this process so far, in the order of their first use."""
    return tuple(_keys)


def forward(call: Call) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp."""
    source, module = _kernels(call)
    config = _config(call, source, "forward", (call.q, call.k, call.v))
    runs = tables.build(call, _tile(config))
    given = variants.arguments(call, source)
    with _device(call):
        _note(call, source, "forward", given, config)
        out, lse = module.forward(call.q, call.k, call.v, *runs.by_query, runs.maps, given, call.scale, config)
    return out, lse


def backward(
    call: Call, out: Tensor, lse: Tensor, d_out: Tensor, d_lse: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    source, module = _kernels(call)
    given = variants.arguments(call, source)
    if not variants.aligned(d_out):
        d_out = d_out.contiguous()
    if d_lse is not None:
        d_lse = d_lse.to(torch.float32).contiguous()
    strided = (call.q, call.k, call.v, d_out)
    queries, keys = _config(call, source, "queries", strided), _config(call, source, "keys", strided)
    by_query, by_key = tables.build(call, _tile(queries)), tables.build(call, _tile(keys))
    with _device(call):
        _note(call, source, "backward_rows", given, queries)
        delta, bound = module.backward_rows(out, lse, d_out, d_lse, queries)
        common = (call.q, call.k, call.v, d_out, delta, bound)
        _note(call, source, "backward_queries", given, queries)
        d_q = module.backward_queries(*common, *by_query.by_query, by_query.maps, given, call.scale, queries)
        _note(call, source, "backward_keys", given, keys)
        d_k, d_v = module.backward_keys(*common, *by_key.by_key, by_key.maps, given, call.scale, keys)
    return d_q, d_k, d_v


def _kernels(call: Call) -> tuple[KernelSource, ModuleType]:
    """The kernel file of a call and its module; refuses devices, dtypes and head dims that the kernels do not have."""
    _check_device(call)
    variants.dtype_of(call)
    source = emit(call.spec)
    return source, loader.load(source)


def _check_device(call: Call) -> None:
    if call.q.device.type != "cuda":
        raise MaskInputError(f"engine 'triton' takes tensors on a GPU; q is on {call.q.device}")


def _config(call: Call, source: KernelSource, pass_: Pass, strided: tuple[Tensor, ...]) -> dict[str, Any]:
    target = target_of(call.q.device)
    chosen = configuration(target, variants.dims_of(call), variants.dtype_of(call), pass_, source.heavy)
    return variants.config(call, chosen, strided)


def _tile(config: dict[str, Any]) -> tuple[int, int]:
    return config["BLOCK_Q"], config["BLOCK_K"]


def _note(call: Call, source: KernelSource, function: str, given: dict[str, Any], config: dict[str, Any]) -> None:
    """Remembers the compile key of a launch."""
    inputs = [(name, str(given[name].dtype)) for name in source.inputs]
    inputs += [(name, "per row") for name in ("q_offset", "k_offset") if isinstance(given[name], Tensor)]
    dtype, dims = variants.dtype_of(call), variants.dims_of(call)
    key = CompileKey(
        _digest(source.text), function, str(target_of(call.q.device)), dtype, dims, tuple(inputs), tuple(config.items())
    )
    _keys.setdefault(key)


@lru_cache(maxsize=256)
def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@lru_cache(maxsize=64)
def target_of(device: torch.device) -> Target:
    """The chip of a device; MaskUnsupportedError for one that the table does not have."""
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        return target_named(properties.gcnArchName.split(":")[0])
    return target_named(f"sm_{properties.major}{properties.minor}")


def _device(call: Call) -> AbstractContextManager[None]:
    """Makes the device of the tensors the current one: Triton launches on that."""
    return torch.cuda.device(call.q.device)
