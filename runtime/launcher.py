"""The engine `triton`: picks variant and configuration of the generated kernels, and launches them on the GPU.

Nothing here waits for the device or reads data. A kernel is compiled on its first launch with a new *compile key*: the
hash of its text, its dtypes and its compile-time arguments. Lengths, strides, parameter values and contents are not
part of it; `compile_keys` lists the keys so far.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Hashable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
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
    _check_device(call)
    config = _config(call, emit(call.spec), "forward", (call.q, call.k, call.v))
    (part,) = tables.build(call, _tile(config)).parts
    source = variants.source(call, part)
    module = loader.load(source)
    given = variants.arguments(call, source)
    with _device(call):
        out, lse = module.forward(call.q, call.k, call.v, part.by_query.walk, given, call.scale, config)
    return out, lse


def backward(
    call: Call, out: Tensor, lse: Tensor, d_out: Tensor, d_lse: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    _check_device(call)
    source = emit(call.spec)
    d_out = d_out if variants.aligned(d_out) else d_out.contiguous()
    d_lse = None if d_lse is None else d_lse.to(torch.float32).contiguous()
    strided = (call.q, call.k, call.v, d_out)
    queries, keys = _config(call, source, "queries", strided), _config(call, source, "keys", strided)
    (by_query,), (by_key,) = (tables.build(call, _tile(config)).parts for config in (queries, keys))
    source = variants.source(call, by_query)
    module = loader.load(source)
    given = variants.arguments(call, source)
    with _device(call):
        delta, bound = module.backward_rows(out.contiguous(), lse.contiguous(), d_out, d_lse, queries)
        common = (call.q, call.k, call.v, d_out, delta, bound)
        d_q = module.backward_queries(*common, by_query.by_query.walk, given, call.scale, queries)
        d_k, d_v = module.backward_keys(*common, by_key.by_key.walk, given, call.scale, keys)
    return d_q, d_k, d_v


def _check_device(call: Call) -> None:
    if call.q.device.type != "cuda":
        raise MaskInputError(f"engine 'triton' takes tensors on a GPU; q is on {call.q.device}")


_configs: OrderedDict[Hashable, dict[str, Any]] = OrderedDict()
_CONFIGS = 1024
"""Launches that are remembered with everything that their configuration follows from."""


def _config(call: Call, source: KernelSource, pass_: Pass, strided: tuple[Tensor, ...]) -> dict[str, Any]:
    """The configuration and variant of a pass, from the facts that decide it; a warm call only looks it up."""
    device, dtype = call.q.device, call.q.dtype
    facts = tuple((x.shape, x.stride(), x.data_ptr() % 16) for x in strided)
    tables_ = tuple((name, x.dtype, x.shape, x.stride()) for name, x in call.inputs.items())
    key = (call.spec, call.sizes, pass_, device, dtype, facts, tables_, torch.backends.cuda.matmul.allow_tf32)
    if key not in _configs:
        name, target = variants.dtype_of(call), target_of(device)
        chosen = configuration(target, variants.dims_of(call), name, pass_, source.heavy)
        _configs[key] = variants.config(call, chosen, strided)
        _note(call, source, pass_, name, target, _configs[key])
        if len(_configs) > _CONFIGS:
            _configs.popitem(last=False)
    return _configs[key]


def _tile(config: dict[str, Any]) -> tuple[int, int]:
    return config["BLOCK_Q"], config["BLOCK_K"]


_LAUNCHED: dict[Pass, tuple[str, ...]] = {
    "forward": ("forward",),
    "queries": ("backward_rows", "backward_queries"),
    "keys": ("backward_keys",),
}


def _note(call: Call, source: KernelSource, pass_: Pass, dtype: str, target: Target, config: dict[str, Any]) -> None:
    """Remembers the compile keys of a pass."""
    inputs = [(name, str(call.inputs[name].dtype)) for name in source.inputs]
    inputs += [(name, "per row") for name in ("q_offset", "k_offset") if name in call.inputs]
    text = hashlib.sha256(source.text.encode()).hexdigest()
    for function in _LAUNCHED[pass_]:
        dims = variants.dims_of(call)
        _keys.setdefault(CompileKey(text, function, str(target), dtype, dims, tuple(inputs), tuple(config.items())))


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
