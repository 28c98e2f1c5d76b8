"""Command-line text -> the things a command works on: specs, sizes, inputs, a plan.

What the command line itself gets wrong raises `UsageError` (exit status 2); what a spec does not accept raises
`MaskError` (exit status 1).
"""

import re
from argparse import ArgumentTypeError, Namespace
from collections.abc import Collection, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskc.diagnostics import Diagnostic, MaskInputError, did_you_mean
from maskc.samples import draw, id_bound
from maskc.sizes import check_shapes, resolve
from maskc.spec import DimKind, InputSpec, MaskSpec, ParameterSpec, Scalar, Sizes, Type

Array = NDArray[Any]

LONGEST = 2**31 - 1  # tokens; positions are 32-bit where a plan lists them
DTYPES = ("float32", "float16", "bfloat16", "float64")
ENGINES = ("triton", "tiled", "interpret", "dense")
PLANNING_ENGINES = ("auto", "triton", "tiled", "interpret")  # `dense` computes every pair


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


def tile(text: str) -> tuple[int, int]:
    """`64` or `64x32`: queries x keys."""
    if not re.fullmatch(r"\d+(x\d+)?", text):
        raise ArgumentTypeError(f"expected a number or QUERIESxKEYS, got {text!r}")
    q, _, k = text.partition("x")
    return positive(q), positive(k or q)


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
        if name in spec.axes:
            raise UsageError(f"-p {name}={text}: {name!r} is an axis; its size is given by --grid {name}={text}")
        if name not in known:
            raise MaskInputError(
                [Diagnostic(f"mask {spec.name!r} has no parameter {name!r}", hint=_nearest(name, known))]
            )
        values[name] = parameter_value(known[name], text)
    return values


def _nearest(name: str, known: Collection[str]) -> str:
    return did_you_mean(name, known) or (f"it has {', '.join(known)}" if known else "it has none")


def has_sizes(arguments: Namespace) -> bool:
    """Whether the options say how long the call is."""
    return bool(arguments.grid) or any(n is not None for n in (arguments.seq, arguments.q_len, arguments.k_len))


def call_sizes(spec: MaskSpec, arguments: Namespace) -> Sizes:
    """The sizes of the call that the options describe; a grid alone gives the length too."""
    length = arguments.seq
    if length is None and spec.axes and set(spec.axes) <= set(arguments.grid):
        length = prod(arguments.grid[axis] for axis in spec.axes)
    q_len = length if arguments.q_len is None else arguments.q_len
    k_len = length if arguments.k_len is None else arguments.k_len
    if q_len is None or k_len is None:
        raise UsageError("no size: give --seq N" + (f" or --grid {_example_grid(spec)}" if spec.axes else ""))
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
        given={**given_parameters(spec, arguments), **arguments.grid},
    )


def _example_grid(spec: MaskSpec) -> str:
    return ",".join(f"{axis}=64" for axis in spec.axes)


def call_inputs(spec: MaskSpec, sizes: Sizes, arguments: Namespace) -> dict[str, Array]:
    """The inputs of the call: those named by --input from their files, the others drawn from the seed."""
    files = dict(arguments.input)
    read = {i.name: read_input(i, files.pop(i.name)) for i in spec.inputs if i.name in files}
    if files:
        names = ", ".join(i.name for i in spec.inputs) or "none"
        raise MaskInputError(f"mask {spec.name!r} has no input {next(iter(files))!r}; its inputs: {names}")
    generator = np.random.default_rng(arguments.seed)
    inputs = draw(spec, sizes, generator, free_extents(spec, read)) | read
    check_shapes(spec, sizes, {name: array.shape for name, array in inputs.items()})
    for name, array in read.items():
        check_promises(spec.input(name), sizes, array)
    return inputs


def read_input(wanted: InputSpec, path: str) -> Array:
    """An array of the type that the spec asks for, from an .npy file."""
    try:
        array = np.load(Path(path), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise MaskInputError(f"--input {wanted.name}={path}: cannot be read as an .npy file: {error}") from None
    if not isinstance(array, np.ndarray):
        raise MaskInputError(f"--input {wanted.name}={path}: expected one array in an .npy file, got an archive")
    kinds = {Type.BOOL: "b", Type.INT: "iu", Type.FLOAT: "f"}
    if array.dtype.kind not in kinds[wanted.type]:
        raise MaskInputError(f"input {wanted.name!r} is of type {wanted.type.value}, but {path} holds {array.dtype}")
    return array.astype(np.int64) if wanted.type is Type.INT else array


def check_promises(declared: InputSpec, sizes: Sizes, array: Array) -> None:
    """Raises `MaskInputError` with the first entry that breaks `of` or `sorted`, on which the plan relies."""
    if declared.below is not None:
        below = id_bound(declared, sizes, array.shape)
        for place in np.argwhere((array < -1) | (array >= below))[:1]:
            entry = f"{_entry(declared, place)} is {array[tuple(place)]}"
            raise MaskInputError(f"input {declared.name!r} has entries in [0, {below}) or -1, but {entry}")
    if declared.sorted and array.ndim:
        for place in np.argwhere(array[..., 1:] < array[..., :-1])[:1]:
            before, after = array[tuple(place)], array[(*place[:-1], place[-1] + 1)]
            raise MaskInputError(
                f"input {declared.name!r} is sorted, but {after} follows {_entry(declared, place)} = {before}"
            )


def _entry(declared: InputSpec, place: NDArray[np.int64]) -> str:
    return f"{declared.name}[{', '.join(map(str, place))}]"


def free_extents(spec: MaskSpec, read: Mapping[str, Array]) -> dict[str, int]:
    """The extents that arrays given by the user fix for dims that are bare names."""
    return {
        dim.text: extent
        for name, array in read.items()
        for dim, extent in zip(spec.input(name).dims, array.shape, strict=False)
        if dim.kind is DimKind.FREE
    }
