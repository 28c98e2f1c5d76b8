"""The shapes of tables: what a spec asks for at the sizes of a call, and whether what was given fits."""

from collections.abc import Collection, Iterator, Mapping, Sequence

from maskc.diagnostics import MaskInputError
from maskc.expr import Count, Dot, Offset, Row, Vector, render, walk
from maskc.grids import line_length
from maskc.scalars import because, value
from maskc.spec import Dim, DimKind, InputSpec, MaskSpec, PrefixSum, Sizes, Values

Shape = tuple[int, ...]

_COUNTS = {DimKind.BATCH: Count.BATCH, DimKind.HEAD: Count.HEAD, DimKind.KV_HEAD: Count.KV_HEAD}


def declaration(entry: InputSpec) -> str:
    """How a spec declares an input: `int[batch, seq]`."""
    return f"{entry.type.value}[{', '.join(d.text for d in entry.dims)}]"


def free_sizes(spec: MaskSpec, shapes: Mapping[str, Shape]) -> dict[str, int]:
    """The sizes of dims that are names of their own, each bound by the first table that has it. shapes: of the inputs
    that a call gives; those whose number of dims is wrong bind nothing.
    """
    bound: dict[str, int] = {}
    for entry in spec.inputs:
        shape = _own_shape(entry, shapes)
        for dim, size in zip(entry.dims, shape, strict=True) if len(shape) == len(entry.dims) else ():
            if dim.kind is DimKind.FREE:
                bound.setdefault(dim.text, size)
    return bound


def check_shapes(
    spec: MaskSpec, sizes: Sizes, shapes: Mapping[str, Shape], needed: Collection[str] | None = None
) -> None:
    """Raises MaskInputError for the first input that is missing or whose shape does not fit the spec at these sizes.

    shapes: of the inputs that the call gives; `sizes` holds the free sizes that follow from them. needed: the inputs
    that must be there, by default all.
    """
    for entry in spec.inputs:
        if isinstance(entry.source, PrefixSum):
            continue
        if entry.source is None and entry.name not in shapes:
            if needed is None or entry.name in needed:
                raise missing(spec, entry)
            continue
        shape = _own_shape(entry, shapes)
        if len(shape) != len(entry.dims):
            raise MaskInputError(
                f"input '{entry.name}' has shape {_text(shape)}, {len(shape)} dims; "
                f"the spec declares {declaration(entry)}"
            )
        for place, (dim, size) in enumerate(zip(entry.dims, shape, strict=True)):
            _check_dim(spec, entry, place, dim, size, shape, sizes)


def check_vectors(spec: MaskSpec, shapes: Mapping[str, Shape], width: int) -> None:
    """Raises MaskInputError for the first `dot` of two vectors whose lengths differ. shapes: those of the inputs, as
    `check_shapes` accepts them; width: of a row of q and k.
    """
    for dot in dots(spec):
        (left, right) = (_vector_length(spec, vector, shapes, width) for vector in (dot.left, dot.right))
        if left[0] != right[0]:
            raise MaskInputError(
                f"mask '{spec.name}' takes '{render(dot)}', but {left[1]} and {right[1]}; expected one length"
            )


def dots(spec: MaskSpec) -> Iterator[Dot]:
    """Every inner product that a call computes."""
    return (node for expr in spec.exprs for node in walk(expr) if isinstance(node, Dot))


def _vector_length(spec: MaskSpec, vector: Vector, shapes: Mapping[str, Shape], width: int) -> tuple[int, str]:
    """How many entries a vector has, and that in words."""
    if not isinstance(vector, Row):
        return width, f"q and k are {width} wide"
    entry = spec.input(vector.input)
    table = entry if not isinstance(entry.source, PrefixSum) else spec.input(entry.source.table)
    length = _own_shape(table, shapes)[-1]
    return length, f"a row of '{vector.input}' has {length} entries"


def missing(spec: MaskSpec, entry: InputSpec) -> MaskInputError:
    """What is said of an input that a call does not give."""
    return MaskInputError(f"input '{entry.name}' is missing; mask '{spec.name}' declares it {declaration(entry)}")


def input_shape(spec: MaskSpec, sizes: Sizes, name: str) -> Shape:
    """The shape that a table must have.

    With an offset given as a tensor, dims that depend on it have the least size that is accepted. Raises MaskInputError
    where a free size is missing or a size is negative.
    """
    entry = spec.input(name)
    match entry.source:
        case None:
            return tuple(_size(spec, entry, dim, sizes) for dim in entry.dims)
        case Values(shape=shape):
            return shape
        case PrefixSum(table=table):
            return input_shape(spec, sizes, table)


def _own_shape(entry: InputSpec, shapes: Mapping[str, Shape]) -> Shape:
    return entry.source.shape if isinstance(entry.source, Values) else shapes.get(entry.name, ())


def _size(spec: MaskSpec, entry: InputSpec, dim: Dim, sizes: Sizes) -> int:
    match dim.kind:
        case DimKind.FREE if dim.text in sizes.free_size:
            return sizes.free_size[dim.text]
        case DimKind.FREE:
            raise MaskInputError(f"the size of dim '{dim.text}' of input '{entry.name}' is missing")
        case DimKind.SEQ:
            return line_length(spec, sizes)
        case DimKind.EXTENT:
            assert dim.extent is not None
            size = int(value(dim.extent, sizes))
            if size < 0:
                raise MaskInputError(
                    f"dim '{dim.text}' of input '{entry.name}' would be {size}{because(dim.extent, sizes)}"
                )
            return size
        case _:
            return sizes.total(_COUNTS[dim.kind])


def _check_dim(spec: MaskSpec, entry: InputSpec, place: int, dim: Dim, size: int, shape: Shape, sizes: Sizes) -> None:
    expected = _size(spec, entry, dim, sizes)
    at_least = _follows_tensor(dim, sizes)
    if size == expected or (at_least and size > expected):
        return
    wanted = f"at least {expected}" if at_least else str(expected)
    raise MaskInputError(
        f"input '{entry.name}' has shape {_text(shape)}; the spec declares {declaration(entry)}, "
        f"so dim {place} ('{dim.text}') should be {wanted}{_reason(spec, dim, sizes)}"
    )


def _follows_tensor(dim: Dim, sizes: Sizes) -> bool:
    """Whether an offset that is a tensor decides the size of a dim."""
    if dim.kind is DimKind.SEQ:
        return sizes.q_offset is None or sizes.k_offset is None
    return dim.extent is not None and any(
        isinstance(e, Offset) and sizes.offset(e.side) is None for e in walk(dim.extent)
    )


def _reason(spec: MaskSpec, dim: Dim, sizes: Sizes) -> str:
    match dim.kind:
        case DimKind.SEQ:
            return ", the length of the shared line of queries and keys"
        case DimKind.EXTENT:
            assert dim.extent is not None
            return because(dim.extent, sizes)
        case DimKind.FREE:
            first = next(i.name for i in spec.inputs if any(d == dim for d in i.dims))
            return f", the size that input '{first}' gives it"
        case _:
            return ""


def _text(shape: Sequence[int]) -> str:
    return f"({', '.join(map(str, shape))})"
