"""The closed set of compiled variants that a spec's kernels can ask for, known before any call.

A call's plan, lengths, parameter values and contents choose among them and never add one: no kernel is specialised on
the value of an argument.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, product
from typing import Any

from maskc.codegen.columns import columns
from maskc.codegen.form import Form, form
from maskc.codegen.form import announced as announced_clauses
from maskc.codegen.schedule import DTYPES, check
from maskc.codegen.source import MaskArguments
from maskc.diagnostics import MaskUnsupportedError
from maskc.expr import Type, conjunction
from maskc.spec import InputSpec, MaskSpec

INPUT_DTYPES = ("fp32", "fp64", "fp16", "bf16")
"""Of a float input that calls give. Integers are int64 before a kernel sees them, tables of a spec's own float64."""


@dataclass(frozen=True)
class Variant:
    """What a kernel is compiled for, beside the target's configuration.

    form: the text. dims: (D_qk, D_v). dtype: of q, k and v. aligned: whether rows of q, k, v and of the gradient that
    comes back begin at multiples of 16 bytes and have stride 1. alike: whether rows of k and of v have one stride, so
    that one product serves both. wide: whether indices take 64 bits. offsets: those of `q_offset` and `k_offset` that
    are given per batch row. inputs: dtypes of the float inputs, by name. parts: whether results are float32, to be
    merged with others or added to them. d_lse: whether a gradient of the log-sum-exp comes back. tf32: whether dots of
    float32 may round to it.
    """

    form: Form
    dims: tuple[int, int]
    dtype: str
    aligned: bool = True
    alike: bool = True
    wide: bool = False
    offsets: tuple[str, ...] = ()
    inputs: tuple[tuple[str, str], ...] = ()
    parts: bool = False
    d_lse: bool = False
    tf32: bool = False

    @property
    def align(self) -> int:
        """How many elements strides count by."""
        return 16 // DTYPES[self.dtype] if self.aligned else 1

    @property
    def precision(self) -> str:
        """Of dots, in Triton's words."""
        return "tf32" if self.tf32 else "ieee"


def announced(spec: MaskSpec, dims: tuple[int, int], dtype: str) -> tuple[Variant, ...]:
    """All variants for head dims and a dtype (`fp16`, `bf16`, `fp32`), the plainest first."""
    return tuple(v for form_ in forms(spec, dims) for v in of_form(spec, form_, dims, dtype))


def forms(spec: MaskSpec, dims: tuple[int, int]) -> tuple[Form, ...]:
    """The forms for head dims: contiguous and indexed, each with every announced set of clauses."""
    return tuple(
        named_form(spec, dims, indexed=indexed, clauses=clauses)
        for indexed in (False, True)
        for clauses in announced_clauses(spec)
    )


def named_form(
    spec: MaskSpec, dims: tuple[int, int], *, indexed: bool = False, clauses: Sequence[int] | None = None
) -> Form:
    """The form whose partial tiles evaluate the clauses with these numbers, by default all.

    MaskUnsupportedError for head dims that kernels do not have, and for a set of clauses that is not announced.
    """
    check(dims, "fp32")
    if clauses is None:
        return Form(None, indexed, columns(dims[0]).cut, columns(dims[1]).cut)
    chosen = tuple(sorted(set(clauses)))
    if chosen not in announced_clauses(spec):
        known = " | ".join(clauses_text(known) for known in announced_clauses(spec))
        raise MaskUnsupportedError(
            f"no kernel of mask '{spec.name}' evaluates clauses {clauses_text(chosen)} in partial tiles; "
            f"there are kernels for {known}"
        )
    return form(spec, conjunction(tuple(spec.clauses[i] for i in chosen)), chosen, indexed, dims)


def clauses_text(clauses: Sequence[int]) -> str:
    """The numbers of clauses: `0,2`, or `none`."""
    return ",".join(map(str, clauses)) or "none"


def of_form(spec: MaskSpec, form_: Form, dims: tuple[int, int], dtype: str) -> tuple[Variant, ...]:
    """All variants of one kernel file."""
    given = choices(spec, form_, dtype)
    return tuple(Variant(form_, dims, dtype, **dict(zip(given, v, strict=True))) for v in product(*given.values()))


def plainest(spec: MaskSpec, form_: Form, dims: tuple[int, int], dtype: str) -> Variant:
    """The variant of aligned rows, 32-bit indices, offsets that are numbers and float32 inputs."""
    return Variant(form_, dims, dtype, **{name: values[0] for name, values in choices(spec, form_, dtype).items()})


def choices(spec: MaskSpec, form_: Form, dtype: str) -> Mapping[str, tuple[Any, ...]]:
    """What calls choose among for one kernel file: the values of each such field of `Variant`, the plainest first."""
    offsets, inputs = reads(spec, form_)
    dtypes = [[(name, as_) for as_ in input_dtypes(spec.input(name))] for name in inputs]
    return {
        "aligned": (True, False),
        "alike": (True, False),
        "wide": (False, True),
        "offsets": tuple(c for size in range(len(offsets) + 1) for c in combinations(offsets, size)),
        "inputs": tuple(product(*dtypes)),
        "parts": (False, True),
        "d_lse": (False, True),
        "tf32": (False, True) if dtype == "fp32" else (False,),
    }


@lru_cache(maxsize=512)
def reads(spec: MaskSpec, form_: Form) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Which of `q_offset` and `k_offset`, and which float inputs, a kernel file reads."""
    mask = MaskArguments(spec, spec.predicate if form_.predicate is None else form_.predicate)
    return mask.offsets, tuple(name for name in mask.inputs if spec.input(name).type is Type.FLOAT)


def input_dtypes(entry: InputSpec) -> tuple[str, ...]:
    """The dtypes in which kernels may see a float input: what is constant, or made from others, is float64."""
    return ("fp64",) if entry.constant or entry.source is not None else INPUT_DTYPES
