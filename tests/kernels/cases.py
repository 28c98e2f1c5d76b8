"""Calls on which generated kernels are judged: a spec, sizes, and what makes them hard."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskc import samples
from maskc.check import load
from maskc.runtime import prologue, tolerance
from maskc.runtime.inputs import Call, prepare


@dataclass(frozen=True)
class Case:
    """A mask's body (or a file, or the path of one) and the call that it is tried with; lengths are (q_len, k_len)."""

    name: str
    text: str
    lengths: tuple[int, int] = (70, 70)
    heads: tuple[int, int] = (2, 2)
    batch: int = 1
    dims: tuple[int, int] = (16, 16)
    dtype: torch.dtype = torch.float32
    scale: float | None = None
    offsets: Mapping[str, Any] = field(default_factory=dict)
    given: Mapping[str, Any] = field(default_factory=dict)
    amplitude: float = 1.0

    def __str__(self) -> str:
        return self.name

    def source(self) -> str:
        """The text of a file with the mask."""
        if self.text.endswith(".mask") or self.text.startswith(("mask ", "def ", "#")):
            return self.text
        return "mask case:\n" + "".join(f"    {line}\n" for line in self.text.split("\n"))

    def call(self) -> Call:
        """The call, its tensors drawn from a seed."""
        spec = load(self.source())
        generator = torch.Generator().manual_seed(len(self.name))
        (q_len, k_len), (heads, kv_heads), (dim_qk, dim_v) = self.lengths, self.heads, self.dims
        shapes = ((heads, q_len, dim_qk), (kv_heads, k_len, dim_qk), (kv_heads, k_len, dim_v))
        q, k, v = (self.amplitude * torch.randn(self.batch, *shape, generator=generator) for shape in shapes)
        q, k, v = (x.to(self.dtype) for x in (q, k, v / self.amplitude))
        missing = [i.name for i in spec.given if i.name not in self.given]
        given = dict(self.given)
        if missing:
            sizes = _sizes(self, spec, given)
            drawn = samples.draw(spec, sizes, np.random.default_rng(3))
            given |= {name: torch.from_numpy(np.ascontiguousarray(drawn[name])) for name in missing}
        return prepare(spec, q, k, v, given, scale=self.scale, **self.offsets)


def _sizes(case: Case, spec: Any, given: Mapping[str, Any]) -> Any:
    from maskc.sizes import resolve

    return resolve(
        spec,
        q_len=case.lengths[0],
        k_len=case.lengths[1],
        batch=case.batch,
        heads=case.heads[0],
        kv_heads=case.heads[1],
        given={name: value for name, value in given.items() if not isinstance(value, Tensor)},
        offset_given=True,
        **{name: value for name, value in case.offsets.items() if not isinstance(value, Tensor)},
    )


def upstream(call: Call) -> tuple[Tensor, Tensor]:
    """Gradients of output and log-sum-exp that a loss might send back."""
    generator = torch.Generator().manual_seed(11)
    batch, heads, q_len, _ = call.q.shape
    d_out = torch.randn(batch, heads, q_len, call.v.shape[3], generator=generator).to(call.q.dtype)
    return d_out, torch.randn(batch, heads, q_len, generator=generator)


def judged(call: Call, engine: Any) -> tolerance.Report:
    """An engine's output, log-sum-exp and gradients against dense in float64."""
    d_out, d_lse = upstream(call)
    out, lse = engine.forward(call)
    d_q, *rest = engine.backward(call, out, lse, d_out, d_lse)
    d_k, d_v = (prologue.inner(call.spec, call.sizes, x) for x in rest)
    actual = {"out": out, "lse": lse, "dq": d_q, "dk": d_k, "dv": d_v}
    return tolerance.check(call, actual, d_out, d_lse)


def with_views(call: Call) -> Call:
    """The same call with q, k and v as strided views: a fused buffer, rows that are not aligned, a stride of 2."""
    batch, heads, q_len, dim = call.q.shape
    fused = torch.full((batch, q_len, heads, 3 * dim + 1), float("nan"), dtype=call.q.dtype)
    fused[..., 1 : dim + 1] = call.q.transpose(1, 2)
    doubled = torch.full((*call.k.shape[:3], 2 * call.k.shape[3]), float("nan"), dtype=call.k.dtype)
    doubled[..., ::2] = call.k
    turned = call.v.transpose(2, 3).contiguous().transpose(2, 3)
    return replace(call, q=fused[..., 1 : dim + 1].transpose(1, 2), k=doubled[..., ::2], v=turned)
