"""Specs, inputs and judgement for the tests of the engines."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from maskc.check import load
from maskc.runtime import inputs, tiled, tolerance
from maskc.runtime.inputs import Call
from maskc.spec import DimKind, MaskSpec

SPECS: dict[str, str] = {
    "everything": "mask everything:\n    pass\n",
    "causal": "mask causal_line:\n    keep k <= q\n",
    "window": "mask window(window: int = 100):\n    keep 0 <= q - k < window\n",
    "strided": (
        "mask strided(stride: int = 16):\n    let d = q - k\n    keep d >= 0 and (d < stride or d % stride == 0)\n"
    ),
    "sink": "mask sink_window:\n    keep k <= q and (k < 4 or q - k < 70)\n",
    "far": "mask far:\n    keep q - k > 70 and q % 3 == 0\n",
    "no pairs": "mask none:\n    keep q < 0\n",
    "chunks": "mask chunks(size: int = 48):\n    keep q // size == k // size or (k - 5) // 37 == (q - 200) // 37\n",
    "columns": "mask columns:\n    keep k % 3 == 1\n",
    "documents": "mask docs:\n    input doc: int[batch, seq] sorted\n    keep doc[q] == doc[k] and k <= q\n",
    "clusters": (
        "mask clusters:\n    input cluster: int[batch, head, seq]\n    keep cluster[q] == cluster[k] and k <= q\n"
    ),
    "padding": "mask padded:\n    input valid: bool[batch, seq]\n    keep valid[k] and k <= q\n",
    "per head": (
        "mask duo(window: int = 80):\n    input full: bool[head]\n    keep k <= q\n    keep full or q - k < window\n"
    ),
    "neighbours": (
        "mask near(radius: int = 3):\n    axes y, x\n"
        "    keep abs(k.y - clamp(q.y, radius, y.size - 1 - radius)) <= radius\n"
        "    keep abs(k.x - clamp(q.x, radius, x.size - 1 - radius)) <= radius\n"
    ),
    "alibi": "mask alibi:\n    input slope: float[head]\n    keep k <= q\n    score += slope * (k - q)\n",
    "kv bias": "mask kv:\n    input rel: float[kv_head, 7]\n    keep abs(q - k) < 80\n    score += rel[(q - k) % 7]\n",
    "batch bias": "mask bb:\n    input bias: float[batch, seq]\n    keep k <= q\n    score -= bias[k] * 0.5\n",
    "softcap": "mask softcap(cap: float = 2.0):\n    keep k <= q\n    score = cap * tanh(score / cap)\n",
    "softcap bias": (
        "mask both:\n    input rel: float[kv_head, 7]\n"
        "    score = 2.0 * tanh(score / 2.0) + rel[(q - k) % 7]\n    keep abs(q - k) < 80\n"
    ),
    "kinks": (
        "mask kinks:\n    keep k <= q\n"
        "    score = where(score > 0.25, max(score, 0.5), abs(score)) + relu(score) - min(score, 0.1) ** 2\n"
    ),
    "minus infinity": "mask holes:\n    score += where(k % 5 == 1, -inf, 0.5)\n    keep k <= q and k >= 1\n",
    "bent minus infinity": (
        "mask bent_holes:\n    score = where(k % 5 == 1, -inf, score * abs(score))\n    keep k <= q and k >= 1\n"
    ),
    "ignores score": "mask flat:\n    keep k <= q\n    score = 0.1 * (k % 11)\n",
}


def spec_of(name: str) -> MaskSpec:
    return load(SPECS[name])


def inputs_of(spec: MaskSpec, batch: int, heads: int, kv_heads: int, length: int, seed: int = 0) -> dict[str, Tensor]:
    """Inputs of the right kind for specs of this file; free and extent dims are as the spec's text writes them."""
    generator = torch.Generator().manual_seed(seed)
    counts = {DimKind.BATCH: batch, DimKind.HEAD: heads, DimKind.KV_HEAD: kv_heads, DimKind.SEQ: length}
    found: dict[str, Tensor] = {}
    for entry in spec.inputs:
        shape = [counts[d.kind] if d.kind in counts else int(d.text) for d in entry.dims]
        if entry.type.value == "float":
            # Slopes that decay: scores of hundreds lose digits in any float32 log-sum-exp.
            drawn = torch.randn(shape, generator=generator)
            found[entry.name] = drawn.abs() / 3 if entry.name == "slope" else drawn
        else:
            ids = torch.randint(0, 2 if entry.type.value == "bool" else 5, shape, generator=generator)
            ids = ids.sort(-1).values if entry.sorted else ids
            found[entry.name] = ids.bool() if entry.type.value == "bool" else ids
    return found


def tensors(
    batch: int,
    heads: int,
    kv_heads: int,
    q_len: int,
    k_len: int,
    dims: tuple[int, int],
    dtype: torch.dtype,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(batch, heads, q_len, dims[0], generator=generator, dtype=torch.float64)
    k = torch.randn(batch, kv_heads, k_len, dims[0], generator=generator, dtype=torch.float64)
    v = torch.randn(batch, kv_heads, k_len, dims[1], generator=generator, dtype=torch.float64)
    return q.to(dtype), k.to(dtype), v.to(dtype)


def call_of(
    name: str,
    *,
    batch: int = 1,
    heads: int = 2,
    kv_heads: int = 2,
    q_len: int = 130,
    k_len: int | None = None,
    dims: tuple[int, int] = (8, 8),
    dtype: torch.dtype = torch.float32,
    given: Mapping[str, Any] | None = None,
    scale: float | None = None,
    q_offset: int | Tensor = 0,
    k_offset: int | Tensor = 0,
    seed: int = 0,
) -> Call:
    """A checked call of one of the specs with random tensors."""
    spec = spec_of(name)
    k_len = q_len if k_len is None else k_len
    q, k, v = tensors(batch, heads, kv_heads, q_len, k_len, dims, dtype, seed)
    last = max(_end(q_offset, q_len), _end(k_offset, k_len))
    options = {**inputs_of(spec, batch, heads, kv_heads, last, seed), **(given or {})}
    return inputs.prepare(spec, q, k, v, options, scale=scale, q_offset=q_offset, k_offset=k_offset)


def _end(offset: int | Tensor, length: int) -> int:
    return (int(offset.max()) if isinstance(offset, Tensor) else offset) + length


def upstream(call: Call, seed: int = 7) -> tuple[Tensor, Tensor]:
    """Random gradients of the output and the log-sum-exp."""
    generator = torch.Generator().manual_seed(seed)
    rows = call.q.shape[:3]
    return torch.randn(*rows, call.v.shape[3], generator=generator), torch.randn(rows, generator=generator)


def run_tiled(call: Call, d_out: Tensor, d_lse: Tensor | None) -> dict[str, Tensor]:
    out, lse = tiled.forward(call)
    d_q, d_k, d_v = tiled.backward(call, out, lse, d_out, d_lse)
    return {"out": out, "lse": lse, "dq": d_q, "dk": d_k, "dv": d_v}


def assert_tiled_is_right(call: Call, *, with_lse: bool = True) -> None:
    d_out, d_lse = upstream(call)
    given = d_lse if with_lse else None
    report = tolerance.check(call, run_tiled(call, d_out, given), d_out, given)
    assert report.passed, f"\n{report}"


def with_strides(call: Call, change: Any) -> Call:
    """The call with q, k and v passed through a function that keeps values and changes strides."""
    return replace(call, q=change(call.q), k=change(call.k), v=change(call.v))
