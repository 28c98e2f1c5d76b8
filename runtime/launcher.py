"""The engine `triton`: picks variant and configuration of the generated kernels, and launches them on the GPU.

A call is recorded (`records`) when its key is seen for the first time, and replayed from then on: a warm call allocates
and launches, nothing else. The key holds everything that checks, plan, variant and arguments follow from but the data:
shapes, strides, alignment, dtypes, devices, and the numbers of the call. Where the plan depends on data, its tables are
made on the device by every call.

Nothing here waits for the device or reads data. A kernel is compiled when it is recorded with a new *compile key*: the
hash of its text, its types and its compile-time arguments. Lengths, strides, parameter values and contents are not
part of it; `compile_keys` lists the keys so far.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from maskc.analysis.bounds import reads_data, tile_counts
from maskc.codegen.loads import loads
from maskc.codegen.schedule import Configuration, Pass, Target, fitting, splits, target_named
from maskc.codegen.source import emit
from maskc.diagnostics import Diagnostic, MaskError, MaskInputError, MaskUnsupportedError
from maskc.runtime import inputs, passes, prologue, tables, variants
from maskc.runtime.inputs import Call, Given
from maskc.runtime.stages import PASSES
from maskc.runtime.tables import Tables
from maskc.spec import MaskSpec, Values

if TYPE_CHECKING:
    from maskc.runtime.records import CompileKey, KernelError, Record


class MaskMemoryError(MaskError, torch.OutOfMemoryError):
    """The device has no memory left for a call; `except torch.OutOfMemoryError` catches it, too."""


_What = Literal["forward", "backward"]
_PASSES: dict[_What, tuple[Pass, ...]] = {"forward": ("forward",), "backward": ("queries", "keys")}
_keys: dict["CompileKey", None] = {}


def compile_keys() -> tuple["CompileKey", ...]:
    """The keys of every kernel that this process asked for, in the order of their first use."""
    return tuple(_keys)


def forward(call: Call) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp, recorded anew."""
    out, lse = _anew(call, "forward")
    return out, lse


def backward(
    call: Call, out: Tensor, lse: Tensor, d_out: Tensor, d_lse: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, recorded anew."""
    d_q, d_k, d_v = _anew(call, "backward", _upstream(out, lse, d_out, d_lse))
    return d_q, d_k, d_v


def recall_forward(given: Given) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp; of a call whose like has been seen nothing is looked at but the key."""
    out, lse = _recalled(given, "forward", _key(given))
    return out, lse


def recall_backward(
    given: Given, out: Tensor, lse: Tensor, d_out: Tensor, d_lse: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, without the virtual keys of a border."""
    key = *_key(given), d_out.stride(), d_out.data_ptr() % 16, d_lse is None
    d_q, d_k, d_v = _recalled(given, "backward", key, _upstream(out, lse, d_out, d_lse))
    if given.program.spec.border is not None:
        call = given.call()
        d_k, d_v = (prologue.inner(call.spec, call.sizes, x) for x in (d_k, d_v))
    return d_q, d_k, d_v


def _upstream(out: Tensor, lse: Tensor, d_out: Tensor, d_lse: Tensor | None) -> tuple[Tensor, ...]:
    """What a backward takes beside the call: d_out of any strides; None for the gradient of lse is left out."""
    rest = () if d_lse is None else (d_lse.to(torch.float32).contiguous(),)
    return out.contiguous(), lse.contiguous(), d_out, *rest


def _copied(upstream: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The same with a contiguous d_out."""
    out, lse, d_out, *rest = upstream
    return out, lse, d_out.contiguous(), *rest


# ---- warm calls


@dataclass(eq=False)
class _Known:
    """How calls of one key run.

    names: the inputs among the record's tensors, in order. direct: whether those and q, k and v are the tensors that
    were given; else something is made of these first, so every call is checked. tables: those that every call makes
    anew, as pass, tile and splits. copies: whether kernels want other strides of the upstream gradient. used: whether
    it was, since it was last considered for being thrown away.
    """

    record: "Record"
    names: Sequence[str]
    direct: bool
    tables: Sequence[tuple[Pass, tuple[int, int], int]]
    copies: bool
    used: bool = False


_records: OrderedDict[Hashable, _Known] = OrderedDict()
_RECORDS = 512
"""How many are kept; each keeps the tables of its plan on the device."""
_lock = Lock()


def _key(given: Given) -> tuple[Hashable, ...]:
    """All that a record follows from, but upstream gradients."""
    q, k, v, tensors, scalars, names, program = given
    # Numbers as text, which tells 1 from True and 1.0, and -0.0 from 0.0. One flat tuple is made fastest.
    return (
        program, names, repr(scalars) if scalars else "",
        q.shape, q.stride(), q.dtype, q.device,
        k.shape, k.stride(), k.dtype, k.device,
        v.shape, v.stride(), v.dtype, v.device,
        (q.data_ptr() | k.data_ptr() | v.data_ptr()) & 15,
        tuple([(x.shape, x.stride(), x.dtype, x.device, x.requires_grad) for x in tensors]) if tensors else (),
        q.dtype is torch.float32 and variants.allows_tf32(),
    )  # fmt: skip


def _recalled(
    given: Given, what: _What, key: tuple[Hashable, ...], upstream: tuple[Tensor, ...] = ()
) -> tuple[Tensor, ...]:
    """The results of a call, replayed where its like has been seen."""
    known = _records.get((what, key))
    try:
        if known is None or not known.direct:
            return _looked_at(given, what, key, known, upstream)
        known.used = True
        if known.copies:
            upstream = _copied(upstream)
        return known.record.replay([given.q, given.k, given.v, *given.tensors, *upstream])
    except torch.OutOfMemoryError as error:
        raise _no_memory(given.program.spec, given.q, given.k, error) from error


def _looked_at(
    given: Given, what: _What, key: Hashable, known: _Known | None, upstream: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """The results of a call that is new, or for which something is made first."""
    with inputs.without_autocast(given.q.device):
        call = given.call()
        if known is None:
            known = _new(call, what, upstream, given)
            _keep((what, key), known)
        return _replayed(call, known, upstream)


def _keep(key: Hashable, known: _Known) -> None:
    """Keeps how a call runs; where that is too much, the oldest goes that has not been used of late."""
    with _lock:
        _records[key] = known
        while len(_records) > _RECORDS:
            key, oldest = _records.popitem(last=False)
            if oldest.used:
                oldest.used = False
                _records[key] = oldest


def _replayed(call: Call, known: _Known, upstream: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The results of a checked call."""
    if known.copies:
        upstream = _copied(upstream)
    found = [passes.walks(pass_, tables.build(call, tile, splits)) for pass_, tile, splits in known.tables]
    named = (call.inputs[name] for name in known.names)
    return known.record.replay([call.q, call.k, call.v, *named, *upstream, *_tensors(found)])


def _anew(call: Call, what: _What, upstream: tuple[Tensor, ...] = ()) -> tuple[Tensor, ...]:
    """The results of a checked call that is recorded for this once."""
    try:
        return _replayed(call, _new(call, what, upstream), upstream)
    except torch.OutOfMemoryError as error:
        raise _no_memory(call.spec, call.q, call.k, error) from error


# ---- new calls


def _new(call: Call, what: _What, upstream: tuple[Tensor, ...] = (), given: Given | None = None) -> _Known:
    """Records a call. given: the call as it came."""
    _check_device(call)
    if _is_capturing(call.q.device):
        raise MaskUnsupportedError([_cold(call)])
    from maskc.runtime.records import KernelError

    copies = what == "backward" and not variants.aligned(upstream[2])
    upstream = _copied(upstream) if copies else upstream
    names, direct = _changing(call, given)
    while True:
        chosen = {pass_: _chosen(call, pass_) for pass_ in _PASSES[what]}
        try:
            record = _record(call, names, upstream, chosen)
            break
        except KernelError as error:
            _go_smaller(call, chosen[PASSES[error.entry]], error)
    anew = reads_data(call.spec, call.sizes)
    made = [(choice.pass_, choice.configuration.tile, choice.splits) for choice in chosen.values()] if anew else []
    return _Known(record, names, direct and not anew, made, copies)


def _changing(call: Call, given: Given | None) -> tuple[list[str], bool]:
    """The inputs that differ from call to call, and whether they, q, k and v are just what is given, in its order."""
    fixed = {i.name for i in call.spec.inputs if isinstance(i.source, Values)}
    names = [name for name in call.inputs if name not in fixed]
    if given is None or not (call.q is given.q and call.k is given.k and call.v is given.v):
        return names, False
    as_given = dict(zip(given.tensor_names, given.tensors, strict=True))
    if any(call.inputs[name] is not as_given.get(name) for name in names):
        return names, False
    return [*as_given], True


def _record(call: Call, names: Sequence[str], upstream: Sequence[Tensor], chosen: dict[Pass, "_Choice"]) -> "Record":
    """Runs the passes of a call on twins of its tensors."""
    from maskc.runtime.records import Recorder

    recorder = Recorder(call.q.device, str(target_of(call.q.device)), lambda key: _keys.setdefault(key))
    strided = call.q, call.k, call.v, *upstream[2:3]
    q, k, v = (recorder.twin(x) for x in strided[:3])
    twin = replace(call, q=q, k=k, v=v, inputs={**call.inputs, **{n: recorder.twin(call.inputs[n]) for n in names}})
    back = [recorder.twin(x) for x in upstream]
    anew = reads_data(call.spec, call.sizes)
    plans = []
    for pass_, choice in chosen.items():
        plan = passes.plan(call, pass_, variants.config(call, choice.configuration, strided), choice.found)
        plans.append(replace(plan, parts=_mapped(plan.parts, recorder.twin)) if anew else plan)
    with _device(call):
        if not back:
            return recorder.record(lambda: passes.forward(twin, plans[0], recorder.run))
        out, lse, d_out, *rest = back
        d_lse, (queries, keys) = rest[0] if rest else None, plans
        return recorder.record(lambda: passes.backward(twin, queries, keys, out, lse, d_out, d_lse, recorder.run))


def _tensors(value: Any) -> list[Tensor]:
    """All tensors in nested sequences, in the order in which `_mapped` changes them."""
    found: list[Tensor] = []

    def note(x: Tensor) -> Tensor:
        found.append(x)
        return x

    _mapped(value, note)
    return found


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Nested sequences with every tensor changed."""
    if isinstance(value, tuple | list):
        return tuple(_mapped(x, change) for x in value)
    return change(value) if isinstance(value, Tensor) else value


def _check_device(call: Call) -> None:
    if call.q.device.type != "cuda":
        raise MaskInputError(f"engine 'triton' takes tensors on a GPU; q is on {call.q.device}")


def _is_capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured, in which nothing may be compiled or uploaded."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _device(call: Call) -> AbstractContextManager[None]:
    """Makes the device of the tensors the current one: Triton compiles for that."""
    return torch.cuda.device(call.q.device)


@lru_cache(maxsize=64)
def target_of(device: torch.device) -> Target:
    """The chip of a device; MaskUnsupportedError for one that the table does not have."""
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        return target_named(properties.gcnArchName.split(":")[0])
    return target_named(f"sm_{properties.major}{properties.minor}")


# ---- configurations


@dataclass(frozen=True, eq=False)
class _Choice:
    """What a pass of a call runs with: the n-th of the configurations that fit, best first; and the tables for it."""

    pass_: Pass
    indexed: bool
    options: tuple[Configuration, ...]
    number: int
    splits: int
    found: Tables

    @property
    def configuration(self) -> Configuration:
        """The configuration itself."""
        return self.options[self.number]


_too_large: dict[Hashable, int] = {}
"""How many configurations of a pass, best first, have turned out to ask for more than the chip has."""


def _chosen(call: Call, pass_: Pass, indexed: bool = False) -> _Choice:
    """Which configuration serves a pass, and the plan for its tile. That the plan is indexed is known by the plan."""
    options = _fitting(call, pass_, indexed)
    number = _too_large.get(_kind(call, pass_, indexed), 0)
    tile = options[number].tile
    splits = _splits(call, tile) if pass_ == "forward" else 1
    found = tables.build(call, tile, splits)
    if not indexed and any(part.by_query.owned is not None for part in found.parts):
        return _chosen(call, pass_, indexed=True)
    return _Choice(pass_, indexed, options, number, splits, found)


def _fitting(call: Call, pass_: Pass, indexed: bool) -> tuple[Configuration, ...]:
    target, dims, dtype = target_of(call.q.device), variants.dims_of(call), variants.dtype_of(call)
    doubles = frozenset(name for name, x in call.inputs.items() if x.dtype is torch.float64)
    read = loads(call.spec, doubles)
    return fitting(target, dims, dtype, pass_, emit(call.spec).heavy, indexed, read, _rows_aligned(call))


def _rows_aligned(call: Call) -> bool:
    return all(map(variants.aligned, (call.q, call.k, call.v)))


def _kind(call: Call, pass_: Pass, indexed: bool) -> Hashable:
    facts = call.spec, target_of(call.q.device), variants.dims_of(call), call.q.dtype, pass_
    return *facts, indexed, _rows_aligned(call)


def _splits(call: Call, tile: tuple[int, int]) -> int:
    """Into how many shares the forward deals the keys of every query tile."""
    rows, columns = tile_counts(call.sizes, tile)
    programs = rows * call.sizes.heads * call.sizes.batch
    if not reads_data(call.spec, call.sizes):
        walks = [part.by_query for part in tables.plan_of(call, tile).plan.parts]
        columns = max(int((walk.full.tiles + walk.partial.tiles).max(initial=0)) for walk in walks)
    return splits(processors_of(call.q.device), programs, longest=columns)


@lru_cache(maxsize=64)
def processors_of(device: torch.device) -> int:
    """How many multiprocessors a device has."""
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def _go_smaller(call: Call, choice: _Choice, error: "KernelError") -> None:
    """Goes on to the next configuration of a pass whose kernel asks for too much; raises for everything else."""
    from triton.runtime.errors import OutOfResources

    if not isinstance(error.__cause__, OutOfResources):
        raise MaskError([_failed(call, choice.configuration, error, "does not compile")]) from error.__cause__
    if choice.number + 1 == len(choice.options):
        raise MaskUnsupportedError([_failed(call, choice.configuration, error, "does not fit")]) from error.__cause__
    _too_large[_kind(call, choice.pass_, choice.indexed)] = choice.number + 1


# ---- reports


def _failed(call: Call, configuration: Configuration, error: "KernelError", what: str) -> Diagnostic:
    cause = error.__cause__
    target, dims, dtype = target_of(call.q.device), variants.dims_of(call), variants.dtype_of(call)
    return Diagnostic(
        f"kernel '{error.entry}' of mask '{call.spec.name}' {what} for {target} with head dims {dims[0]} and {dims[1]} "
        f"in {dtype}, {configuration}: {str(cause).strip() or type(cause).__name__}",
        call.spec.span,
        hint="engine='tiled' runs without kernels of its own",
    )


def _cold(call: Call) -> Diagnostic:
    return Diagnostic(
        f"mask '{call.spec.name}' is called in a CUDA graph with shapes, strides or numbers that are new to it",
        call.spec.span,
        hint="one such call before the capture, its backward included, compiles the kernels and uploads the plan",
    )


def _no_memory(spec: MaskSpec, q: Tensor, k: Tensor, error: torch.OutOfMemoryError) -> MaskMemoryError:
    shapes = f"q {tuple(q.shape)} and k {tuple(k.shape)} of {q.dtype}"
    message = f"no memory left on {q.device} for mask '{spec.name}' with {shapes}: {error}"
    return MaskMemoryError([Diagnostic(message, spec.span)])
