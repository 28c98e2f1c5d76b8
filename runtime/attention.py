"""The callable that `maskc.compile_attention` returns."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskc import features, prologue, reference, sizes
from maskc.analysis import plan as planning
from maskc.analysis.plan import BlockPlan
from maskc.diagnostics import Diagnostic, MaskInputError, MaskUnsupportedError
from maskc.expr import Scalar, Scale, Score
from maskc.runtime import autograd, dense, inputs
from maskc.runtime.prologue import joined
from maskc.runtime.tiles import tile_of
from maskc.shapes import check_shapes, free_sizes
from maskc.spec import DimKind, Form, MaskSpec, Sizes

Keys = Tensor | Sequence[Tensor]
"""k or v: one tensor, or one per part of the keys."""

_CASTABLE = (torch.float32, torch.float16, torch.bfloat16)
ENGINES = ("auto", "triton", "tiled", "interpret", "dense")


class Attention:
    """Attention with one mask: `out = attn(q, k, v)`, differentiable. `str()` shows the spec.

    spec: the checked mask. engine: as asked for; "auto" picks by the tensors' device (`triton` on a GPU, else `tiled`).
    given: the contents of `constant` inputs, and axis sizes and parameters that were settled at compile time; a call
    may override the latter.
    """

    def __init__(
        self,
        spec: MaskSpec,
        *,
        engine: str = "auto",
        scale: float | None = None,
        given: Mapping[str, Any] | None = None,
    ):
        if engine not in ENGINES:
            raise MaskInputError(f"there is no engine '{engine}'; expected one of {', '.join(ENGINES)}")
        settled = dict(given or {})
        constants = {i.name: settled.pop(i.name) for i in prologue.constants(spec) if i.name in settled}
        spec = prologue.bind(spec, {name: _array(value) for name, value in constants.items()})
        if engine != "auto":
            features.require(spec, engine)
        if scale is not None and not _reads_scale(spec):
            raise MaskInputError(f"scale is given, but mask '{spec.name}' makes its scores without it; leave it out")
        self.spec = spec
        self.engine = engine
        self.scale = scale
        self.given: dict[str, Scalar] = {name: inputs.number(spec, name, value) for name, value in settled.items()}
        self._refused = {name: features.refusal(spec, name) for name in autograd.ENGINES}
        self._programs = {name: autograd.number_of(spec, name, scale) for name in autograd.ENGINES}

    @overload
    def __call__(
        self,
        q: Tensor,
        k: Keys,
        v: Keys,
        *,
        return_lse: Literal[False] = ...,
        aux: Literal[False] = ...,
        **options: Any,
    ) -> Tensor: ...

    @overload
    def __call__(
        self, q: Tensor, k: Keys, v: Keys, *, return_lse: Literal[True], aux: Literal[False] = ..., **options: Any
    ) -> tuple[Tensor, Tensor]: ...

    @overload
    def __call__(
        self, q: Tensor, k: Keys, v: Keys, *, return_lse: Literal[False] = ..., aux: Literal[True], **options: Any
    ) -> tuple[Tensor, dict[str, Tensor]]: ...

    @overload
    def __call__(
        self, q: Tensor, k: Keys, v: Keys, *, return_lse: Literal[True], aux: Literal[True], **options: Any
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]: ...

    def __call__(
        self,
        q: Tensor,
        k: Keys,
        v: Keys,
        *,
        return_lse: bool = False,
        aux: bool = False,
        q_offset: int | Tensor | None = None,
        k_offset: int | Tensor | None = None,
        validate: bool | None = None,
        **given: Any,
    ) -> Any:
        """Attends.

        q: (batch, heads, q_len, D_qk); k: (batch, kv_heads, k_len, D_qk); v: (batch, kv_heads, k_len, D_v), any
        strides; where the keys have several parts, k and v may be tuples, one tensor a part. given: the spec's inputs
        (tensors) and run-time parameters and axis sizes (numbers) by name. q_offset, k_offset: position of the first
        query and key, an int or integers (batch,). validate: check the promises `of`, `sorted` and `packed` of the
        inputs, by default on the CPU only.

        Returns (batch, heads, q_len, D_v) in the dtype of q; with return_lse also the log-sum-exp (batch, heads,
        q_len), natural log, float32 (float64 for float64 q), -inf for rows without keys; with aux last of all the
        spec's outputs by name, each (batch, heads, ...).

        Raises MaskInputError for anything that does not fit, MaskUnsupportedError for what the engine cannot run.
        """
        engine = self.engine_for(q)
        if return_lse and self.spec.normalizer.form is not Form.SOFTMAX:
            raise MaskUnsupportedError([_without_lse(self.spec)])
        if torch._C._is_any_autocast_enabled():
            q, k, v = _under_autocast(q, k, v)
        k, v, key_parts = _joined(k, v)
        check = q.is_cpu if validate is None else validate
        options = {**self.given, **given}
        lse: Tensor | None
        if engine == "dense":
            call = inputs.prepare(
                self.spec,
                q,
                k,
                v,
                options,
                scale=self.scale,
                q_offset=q_offset,
                k_offset=k_offset,
                key_parts=key_parts,
            )
            if check:
                inputs.validate(call)
            out, lse, outputs = dense.attention(call)
        else:
            refused = self._refused[engine]
            if refused is not None:
                raise MaskUnsupportedError([refused])
            if q_offset is not None:
                options["q_offset"] = q_offset
            if k_offset is not None:
                options["k_offset"] = k_offset
            tensors, scalars = inputs.separate(options, q)
            out, lse = autograd.run(self._programs[engine], q, k, v, tensors, scalars, key_parts, check)
            outputs = {}  # no engine that refuses reductions has any
        if not return_lse and not aux:
            return out
        return (out, *((lse,) if return_lse else ()), *((outputs,) if aux else ()))

    def engine_for(self, q: Tensor) -> str:
        """The engine that a call with this tensor takes."""
        if not isinstance(q, Tensor):
            raise MaskInputError(f"q is a {type(q).__name__}; expected a tensor (batch, head, seq, dim)")
        if self.engine != "auto":
            return self.engine
        return "triton" if q.is_cuda else "tiled"

    def mask(self, q_len: int, k_len: int | None = None, **options: Any) -> NDArray[np.bool_]:
        """The kept pairs as a dense boolean array [batch?, head?, q_len, k_len] (dims that it does not depend on are
        left out); the virtual keys of a border are among the keys.

        options as for `plan`. Raises MaskUnsupportedError where it depends on scores.
        """
        features.require_mask(self.spec)
        size, tables = self.sizes(q_len, k_len, **options)
        return reference.mask(self.spec, size, tables)

    def plan(
        self, q_len: int, k_len: int | None = None, *, tile: tuple[int, int] | None = None, **options: Any
    ) -> BlockPlan:
        """The tiles of a call and how an engine walks them.

        k_len: q_len by default. tile: (queries, keys), by default that of the `tiled` engine. options: the spec's
        inputs (arrays or tensors), parameters and axis sizes by name, q_offset, k_offset, and batch, heads, kv_heads
        (by default what the inputs' dims say, else 1). Raises MaskUnsupportedError where the kept pairs depend on
        scores.
        """
        features.require_mask(self.spec)
        size, tables = self.sizes(q_len, k_len, **options)
        return planning.build(self.spec, size, tile_of(self.spec, size) if tile is None else tile, tables)

    def source(self, dim: int | None = None, dim_v: int | None = None, *, indexed: bool = False) -> str:
        """The generated kernel file: it imports torch and triton only, and its launch functions take the plan's
        tables.

        dim, dim_v: head dims of q and k, and of v (by default the same), where they are no powers of two. indexed: the
        file for plans that give positions of tokens. Raises MaskUnsupportedError for head dims beyond 256, and where
        kernels cannot run the spec.
        """
        from maskc.codegen.source import emit
        from maskc.codegen.variants import named_form

        dim = 64 if dim is None else dim
        return emit(self.spec, named_form(self.spec, (dim, dim if dim_v is None else dim_v), indexed=indexed)).text

    def sizes(self, q_len: int, k_len: int | None = None, **options: Any) -> tuple[Sizes, dict[str, NDArray[Any]]]:
        """The resolved sizes and all tables as arrays; options as for `plan`."""
        given = {**self.given, **options}
        said: dict[str, int] = {name: given.pop(name) for name in ("batch", "heads", "kv_heads") if name in given}
        offsets = {name: given.pop(name, None) for name in ("q_offset", "k_offset")}
        tables = {i.name: _array(given.pop(i.name)) for i in self.spec.given if i.name in given}
        shapes = {name: table.shape for name, table in tables.items()}
        starts = {name: _array(o) for name, o in offsets.items() if isinstance(o, Tensor | np.ndarray)}
        counts = _counts(self.spec, tables | prologue.held(self.spec) | starts) | said
        heads = counts.get("heads", 1)
        found = sizes.resolve(
            self.spec,
            q_len=q_len,
            k_len=q_len if k_len is None else k_len,
            batch=counts.get("batch", 1),
            heads=heads,
            kv_heads=counts.get("kv_heads", heads),
            q_offset=None if "q_offset" in starts else int(offsets["q_offset"] or 0),
            k_offset=None if "k_offset" in starts else int(offsets["k_offset"] or 0),
            given=given,
            offset_given=any(o is not None for o in offsets.values()),
            free=free_sizes(self.spec, shapes),
        )
        check_shapes(self.spec, found, shapes, prologue.needed(self.spec, self.spec.clauses))
        return found, prologue.complete(self.spec, tables) | starts

    def __reduce__(self) -> tuple[Any, ...]:
        # Numbers of programs hold in one process only.
        return _rebuilt, (self.spec, self.engine, self.scale, self.given)

    def __str__(self) -> str:
        return str(self.spec)

    def __repr__(self) -> str:
        settled = "".join(f", {name}={value!r}" for name, value in self.given.items())
        return f"<attention {self.spec.name}, engine={self.engine}{settled}>"


def _rebuilt(spec: MaskSpec, engine: str, scale: float | None, given: Mapping[str, Scalar]) -> Attention:
    return Attention(spec, engine=engine, scale=scale, given=given)


def _reads_scale(spec: MaskSpec) -> bool:
    """Whether the call's scale has a place in what a spec computes."""
    return any(Score in expr.kinds or Scale in expr.kinds for expr in spec.exprs)


def _without_lse(spec: MaskSpec) -> Diagnostic:
    form = spec.normalizer.form.value
    return Diagnostic(
        f"return_lse: 'normalize {form}' has no log-sum-exp, only softmax has one",
        spec.normalizer.span,
        hint="an `output` line returns what a row sums to: output total[q] = sum(...)",
    )


def _under_autocast(q: Tensor, k: Keys, v: Keys) -> tuple[Tensor, Keys, Keys]:
    """Inside an autocast region q, k and v take its dtype, as torch's own attention does; float64 stays."""
    if not torch.is_autocast_enabled(q.device.type):
        return q, k, v
    dtype = torch.get_autocast_dtype(q.device.type)

    def cast(x: Any) -> Any:
        if isinstance(x, tuple | list):
            return tuple(map(cast, x))
        return x.to(dtype) if isinstance(x, Tensor) and x.dtype in _CASTABLE else x

    return cast(q), cast(k), cast(v)


def _joined(k: Keys, v: Keys) -> tuple[Tensor, Tensor, list[int] | None]:
    """k and v as one tensor each, and the lengths of the parts where they were given part by part."""
    if isinstance(k, Tensor) and isinstance(v, Tensor):
        return k, v, None
    k, key_parts = joined("k", k)
    v, value_parts = joined("v", v)
    inputs.check_tensor("k", k)
    inputs.check_tensor("v", v)
    if key_parts != value_parts:
        lengths = {name: "one tensor" if p is None else str(p) for name, p in (("k", key_parts), ("v", value_parts))}
        raise MaskInputError(
            f"the parts of k and v differ: {lengths['k']} and {lengths['v']}; expected equal lengths, part by part"
        )
    return k, v, key_parts


def _array(value: object) -> NDArray[Any]:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        array = (value.float() if value.dtype is torch.bfloat16 else value).numpy()
    else:
        array = np.asarray(value)
    return array.astype(np.int64) if array.dtype.kind in "iu" else array


def _counts(spec: MaskSpec, tables: Mapping[str, NDArray[Any]]) -> dict[str, int]:
    """How many batch rows and heads the inputs' own dims speak of."""
    names = {DimKind.BATCH: "batch", DimKind.HEAD: "heads", DimKind.KV_HEAD: "kv_heads"}
    found: dict[str, int] = {}
    for entry in spec.inputs:
        table = tables.get(entry.name)
        if table is not None and table.ndim == len(entry.dims):
            found |= {names[d.kind]: n for d, n in zip(entry.dims, table.shape, strict=True) if d.kind in names}
    for name in ("q_offset", "k_offset"):
        if name in tables:
            found["batch"] = len(tables[name])
    return found
