"""Command-line text -> the things a command works on: specs, sizes, inputs, a plan.

What the command line itself gets wrong raises `UsageError` (exit status 2); what a spec does not accept raises
`MaskError` (exit status 1).
"""

import json
import re
from argparse import ArgumentTypeError, Namespace
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskc import promises
from maskc.diagnostics import Diagnostic, MaskInputError, did_you_mean
from maskc.expr import Scalar, Side, Type
from maskc.grids import grid_length, open_axis
from maskc.prologue import bind, complete
from maskc.samples import FREE_EXTENT, draw, free_extents
from maskc.shapes import check_shapes
from maskc.sizes import parameters, resolve
from maskc.spec import InputSpec, MaskSpec, ParameterSpec, Sizes

Array = NDArray[Any]

LONGEST = 2**31 - 1  # tokens; positions are 32-bit where a plan lists them
DTYPES = ("float32", "float16", "bfloat16", "float64")
ENGINES = ("triton", "tiled", "interpret", "dense")
AGES = {"d": 86400, "h": 3600, "m": 60, "s": 1}  # seconds
PLANNING_ENGINES = ("auto", "triton", "tiled", "interpret")  # `dense` computes every pair
LAYOUTS = ("plain", "odd", "fused", "bnhd", "turned", "shifted", "spread", "one-row", "one-head")
"""Of q, k and v in memory; `odd` is each behind it in turn."""


class UsageError(Exception):
    """The command line makes no sense; the message says which option and why."""


def count(text: str) -> int:
    """A whole number from 0."""
    try:
        number = int(text)
    except ValueError:
        raise ArgumentTypeError(f"expected a whole number, got {text!r}") from None
    if not 0 <= number <= LONGEST:
        raise ArgumentTypeError(f"expected a number from 0 to {LONGEST}, got {text}")
    return number


def positive(text: str) -> int:
    """A whole number from 1."""
    number = count(text)
    if number == 0:
        raise ArgumentTypeError("expected a number from 1, got 0")
    return number


def assignment(text: str) -> tuple[str, str]:
    """`name=value`."""
    name, equals, value = text.partition("=")
    if not (equals and name.strip().isidentifier() and value.strip()):
        raise ArgumentTypeError(f"expected name=value, got {text!r}")
    return name.strip(), value.strip()


def grid(text: str) -> dict[str, int]:
    """`y=64,x=64`."""
    sizes: dict[str, int] = {}
    for name, value in map(assignment, text.split(",")):
        if name in sizes:
            raise ArgumentTypeError(f"{name!r} is given twice")
        sizes[name] = positive(value)
    return sizes


def numbers(text: str) -> tuple[int, ...]:
    """`0,2`: whole numbers; `none` for none."""
    return () if text == "none" else tuple(map(count, text.split(",")))


def tile(text: str) -> tuple[int, int]:
    """`64` or `64x32`: queries x keys."""
    if not re.fullmatch(r"\d+(x\d+)?", text):
        raise ArgumentTypeError(f"expected a number or QUERIESxKEYS, got {text!r}")
    q, _, k = text.partition("x")
    return positive(q), positive(k or q)


def age(text: str) -> int:
    """`90s`, `30m`, `12h` or `30d`: seconds."""
    if not re.fullmatch("[0-9]{1,9}[smhd]", text):
        raise ArgumentTypeError(f"expected a number of seconds, minutes, hours or days such as 30d, got {text!r}")
    return int(text[:-1]) * AGES[text[-1]]


def device(text: str) -> str:
    """The name of a torch device: `cpu`, `cuda`, `cuda:1`, ..."""
    if not re.fullmatch(r"(cpu|cuda|xpu)(:\d+)?", text):
        raise ArgumentTypeError(f"expected cpu, cuda, xpu or a numbered one such as cuda:1, got {text!r}")
    return text


def parameter_value(parameter: ParameterSpec, text: str) -> Scalar:
    """The value of a parameter as its type reads it."""
    try:
        match parameter.type:
            case Type.INT:
                return int(text)
            case Type.FLOAT:
                return float(text)
            case Type.BOOL:
                return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
    except (ValueError, KeyError):
        raise UsageError(f"-p {parameter.name}={text}: {parameter.name!r} is of type {parameter.type.value}") from None


def given_parameters(spec: MaskSpec, arguments: Namespace) -> dict[str, Scalar]:
    """The values of -p by name."""
    known = {p.name: p for p in spec.parameters}
    values: dict[str, Scalar] = {}
    for name, text in arguments.parameter:
        if name in values:
            raise UsageError(f"-p {name}: given twice")
        if name in spec.axis_names:
            raise UsageError(f"-p {name}={text}: {name!r} is an axis; its size is given by --grid {name}={text}")
        if name not in known:
            raise MaskInputError(
                [Diagnostic(f"mask {spec.name!r} has no parameter {name!r}", hint=_nearest(name, known))]
            )
        values[name] = parameter_value(known[name], text)
    return values


def _nearest(name: str, known: Collection[str]) -> str:
    return did_you_mean(name, known) or (f"it has {', '.join(known)}" if known else "it has none")


def dims(arguments: Namespace) -> tuple[int, int]:
    """Head dims: of q and k, and of v."""
    return arguments.dim, arguments.dim if arguments.dim_v is None else arguments.dim_v


def grouped_heads(arguments: Namespace) -> tuple[int, int] | None:
    """Query heads and KV heads, where they are said."""
    if arguments.heads is None:
        if arguments.kv_heads is not None:
            raise UsageError("--kv-heads needs --heads, the number of query heads")
        return None
    kv_heads = arguments.heads if arguments.kv_heads is None else arguments.kv_heads
    if arguments.heads % kv_heads:
        raise UsageError(f"--heads {arguments.heads} is no multiple of --kv-heads {kv_heads}")
    return arguments.heads, kv_heads


def has_sizes(arguments: Namespace) -> bool:
    """Whether the options say how long the call is."""
    return bool(arguments.grid) or any(n is not None for n in (arguments.seq, arguments.q_len, arguments.k_len))


@dataclass(frozen=True, eq=False)
class Given:
    """What the options describe: the spec, its constant inputs written in; sizes; and all tables by name."""

    spec: MaskSpec
    sizes: Sizes
    inputs: dict[str, Array]


def given_call(spec: MaskSpec, arguments: Namespace) -> Given:
    """The call that the options describe: inputs named by --input are read, the others drawn from the seed."""
    files = dict(arguments.input)
    read = {i.name: read_input(i, files.pop(i.name)) for i in spec.given if i.name in files}
    if files:
        names = ", ".join(i.name for i in spec.given) or "none"
        raise MaskInputError(f"mask {spec.name!r} has no input {next(iter(files))!r}; its inputs: {names}")
    sizes = call_sizes(spec, arguments, {name: array.shape for name, array in read.items()})
    inputs = draw(spec, sizes, np.random.default_rng(arguments.seed)) | read
    check_shapes(spec, sizes, {name: array.shape for name, array in inputs.items()})
    promises.check(spec, sizes, read)
    bound = bind(spec, inputs)
    return Given(bound, sizes, complete(bound, inputs))


def call_sizes(spec: MaskSpec, arguments: Namespace, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Sizes:
    """The sizes of the call that the options describe; a grid alone gives the lengths too. shapes: of the inputs that
    are known.
    """
    given = {**given_parameters(spec, arguments), **arguments.grid}
    q_len, k_len = call_lengths(spec, arguments, given)
    offset = arguments.q_offset
    return resolve(
        spec,
        q_len=q_len,
        k_len=k_len,
        batch=arguments.batch,
        heads=arguments.heads,
        kv_heads=arguments.heads if arguments.kv_heads is None else arguments.kv_heads,
        q_offset=0 if offset is None else offset,
        offset_given=offset is not None,
        given=given,
        free=free_extents(spec, shapes, getattr(arguments, "dim", FREE_EXTENT)),
    )


def call_lengths(spec: MaskSpec, arguments: Namespace, given: Mapping[str, Scalar]) -> tuple[int, int]:
    """How many queries and keys there are: what is said, else what the sizes of all axes of a side come to."""
    lengths: list[int] = []
    for side, own in ((Side.Q, arguments.q_len), (Side.K, arguments.k_len)):
        length = own if own is not None else arguments.seq
        if length is None:
            length = grid_length(spec, side, arguments.grid, parameters(spec, given))
        if length is None:
            raise UsageError(f"no size: give --seq N{_example_grid(spec)}")
        lengths.append(length)
    return lengths[0], lengths[1]


def _example_grid(spec: MaskSpec) -> str:
    """What else says how long a call is, or how long a packed one is not."""
    own = open_axis(spec)
    axes = ",".join(f"{axis}=64" for axis in spec.axis_names if axis != own)
    return f" {'or' if spec.packed is None else 'and'} --grid {axes}" if axes else ""


def read_input(wanted: InputSpec, text: str) -> Array:
    """An array of the type that the spec asks for: from an .npy file, or written out as `[[0, 0, 1]]`."""
    array = _written(wanted, text) if text.startswith("[") else _loaded(wanted, text)
    kinds = {Type.BOOL: "b", Type.INT: "iu", Type.FLOAT: "f"}
    if array.dtype.kind not in kinds[wanted.type]:
        raise MaskInputError(f"input {wanted.name!r} is of type {wanted.type.value}, but {text} holds {array.dtype}")
    return array.astype(np.int64) if wanted.type is Type.INT else array


def _written(wanted: InputSpec, text: str) -> Array:
    try:
        array = np.array(json.loads(text))
    except (ValueError, RecursionError) as error:
        reason = f"expected rows of equal length, as in [[0, 1], [2, 3]]: {error}"
        raise MaskInputError(f"--input {wanted.name}={text}: {reason}") from None
    return array.astype(np.float64) if wanted.type is Type.FLOAT and array.dtype.kind in "iu" else array


def _loaded(wanted: InputSpec, path: str) -> Array:
    try:
        array = np.load(Path(path), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise MaskInputError(f"--input {wanted.name}={path}: cannot be read as an .npy file: {error}") from None
    if not isinstance(array, np.ndarray):
        raise MaskInputError(f"--input {wanted.name}={path}: expected one array in an .npy file, got an archive")
    return array
