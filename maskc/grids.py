"""The lines on which queries and keys lie, and the sizes of their axes.

A line is one grid or several parts laid end to end. Of its axes one may be left open: it follows from the length. A
given size may exceed what the call needs (a prefix of the grid), never fall short; the keys of a border and the tensors
that a caller gives part by part fill theirs exactly.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from maskc.diagnostics import MaskInputError
from maskc.expr import Scalar, Side
from maskc.scalars import because, value
from maskc.spec import MaskSpec, Part, Sizes

Known = Mapping[str, int]


@dataclass(frozen=True)
class Line:
    """Parts laid end to end, and how many positions on them the call uses.

    what: those positions, in the plural. exact: they fill the line. tensor: an offset that is a tensor decides the
    length, which then is the least that is possible.
    """

    what: str
    parts: tuple[Part, ...]
    length: int
    exact: bool = False
    tensor: bool = False


def line_length(spec: MaskSpec, sizes: Sizes) -> int:
    """Length of the shared line: the position behind the last query or key. Offsets that are tensors count as 0."""
    k_len = real_keys(spec, sizes)
    return max((sizes.q_offset or 0) + sizes.q_len, (sizes.k_offset or 0) + k_len)


def real_keys(spec: MaskSpec, sizes: Sizes) -> int:
    """How many keys there are without the virtual ones of a border."""
    return sizes.k_len if spec.border is None else math.prod(sizes.axis[a] for a in border_axes(spec))


def border_axes(spec: MaskSpec) -> tuple[str, ...]:
    """The axes of the grid of keys that has a border."""
    return spec.axes or spec.keys[0].axes


def open_axis(spec: MaskSpec) -> str | None:
    """The slowest axis of packed documents: each document has its own size."""
    return spec.keys[0].axes[0] if spec.packed is not None and spec.keys else None


def side_parts(spec: MaskSpec, side: Side) -> tuple[Part, ...]:
    """The line of a side as parts; none where it is a plain sequence or where every document has its own grid."""
    if spec.packed is not None:
        return ()
    if spec.axes:
        return (Part(None, spec.axes),)
    return spec.queries if side is Side.Q else spec.keys


def grid_length(spec: MaskSpec, side: Side, axes: Known, parameters: tuple[tuple[str, Scalar], ...]) -> int | None:
    """How many positions the line of a side has; None where the sizes of axes and the parameters do not tell."""
    parts = side_parts(spec, side)
    if not parts or any(axis not in axes for part in parts for axis in part.axes):
        return None
    sizes = Sizes(0, 0, parameters=parameters)
    return sum(_tokens(part, axes, sizes) for part in parts)


def axis_sizes(
    spec: MaskSpec, sizes: Sizes, given: Known, key_parts: Sequence[int] | None
) -> tuple[tuple[str, int], ...]:
    """The sizes of the axes in order, those that are not given inferred. `sizes` has everything else.

    key_parts: lengths of the tensors that hold the parts of the keys. Raises MaskInputError.
    """
    open_ = open_axis(spec)
    if open_ is not None and open_ in given:
        raise MaskInputError(
            f"axis '{open_}' of mask '{spec.name}' has a size of its own in every document; leave it out"
        )
    names = [name for name in spec.axis_names if name != open_]
    known = dict(given)
    lines = [*_key_lines(spec, sizes, key_parts), *_lines(spec, sizes)]
    while (line := next((each for each in lines if len(_unknown(each, known)) == 1), None)) is not None:
        (axis,) = _unknown(line, known)
        known[axis] = _inferred(spec, line, axis, known, sizes)
    missing = [name for name in names if name not in known]
    if missing:
        raise MaskInputError(_missing(spec, lines, missing))
    for line in lines:
        _check(line, known, sizes)
    return tuple((name, known[name]) for name in names)


def padded_keys(spec: MaskSpec, sizes: Sizes) -> int:
    """How many keys there are together with the virtual ones; `sizes` has the axes. Raises MaskInputError."""
    if spec.border is None:
        return sizes.k_len
    return math.prod(size + 2 * border_of(spec, sizes) for size in (sizes.axis[a] for a in border_axes(spec)))


def border_of(spec: MaskSpec, sizes: Sizes) -> int:
    """How many rings of virtual keys there are."""
    if spec.border is None:
        return 0
    rings = int(value(spec.border, sizes))
    if rings < 0:
        raise MaskInputError(
            f"the border of mask '{spec.name}' is {rings}{because(spec.border, sizes)}; expected at least 0"
        )
    return rings


def _lines(spec: MaskSpec, sizes: Sizes) -> list[Line]:
    """The lines of a call that have parts."""
    ends = {side: (sizes.offset(side) or 0) + sizes.length(side) for side in Side}
    tensor = {side: sizes.offset(side) is None for side in Side}
    keys = Line("keys", side_parts(spec, Side.K), ends[Side.K], spec.border is not None, tensor[Side.K])
    queries = Line("queries", side_parts(spec, Side.Q), ends[Side.Q], False, tensor[Side.Q])
    if spec.separate or spec.border is not None:
        lines = [keys, queries]
    else:
        lines = [Line("queries and keys", queries.parts, max(ends.values()), tensor=any(tensor.values()))]
    return [line for line in lines if line.parts]


def _key_lines(spec: MaskSpec, sizes: Sizes, key_parts: Sequence[int] | None) -> list[Line]:
    """One line per tensor that was given for a part of the keys."""
    if key_parts is None:
        return []
    parts = side_parts(spec, Side.K)
    if len(parts) < 2:
        raise MaskInputError(
            f"k and v are tuples of {len(key_parts)}, but the keys of mask '{spec.name}' have no parts; "
            "expected one tensor each"
        )
    if len(parts) != len(key_parts):
        names = ", ".join(str(part.name) for part in parts)
        raise MaskInputError(f"k and v are tuples of {len(key_parts)}; expected one tensor per part: {names}")
    if sizes.k_offset != 0:
        raise MaskInputError("k and v are tuples, one tensor a part, so the keys begin at 0; leave k_offset out")
    return [
        Line(f"the keys k[{place}]", (part,), length, exact=True)
        for place, (part, length) in enumerate(zip(parts, key_parts, strict=True))
    ]


def _unknown(line: Line, known: Known) -> list[str]:
    """The axes of a line that have no size yet."""
    return list(dict.fromkeys(axis for part in line.parts for axis in part.axes if axis not in known))


def _inferred(spec: MaskSpec, line: Line, axis: str, known: Known, sizes: Sizes) -> int:
    """The size of the one axis without a size: with it the line is filled."""
    if line.tensor:
        raise MaskInputError(f"give {axis}=...: the size of an axis cannot be inferred where an offset is a tensor")
    if line.length == 0:
        return 0
    along = [part for part in line.parts if axis in part.axes]
    others = [part for part in line.parts if axis not in part.axes]
    fixed = sum(_tokens(part, known, sizes) for part in others)
    step = sum(_tokens(part, {**known, axis: 1}, sizes) for part in along)
    problem = f"axis '{axis}' of mask '{spec.name}' is not given, and"
    if line.length < fixed:
        raise MaskInputError(f"{problem} the length {line.length} is less than the {fixed} places of the other parts")
    if step == 0 or (line.length - fixed) % step:
        rest = "" if fixed == 0 else f" less the {fixed} places of the other parts"
        factor = " + ".join(" x ".join(a for a in part.axes if a != axis) or "1" for part in along)
        raise MaskInputError(f"{problem} the length {line.length}{rest} is no multiple of {factor} = {step}")
    return (line.length - fixed) // step


def _missing(spec: MaskSpec, lines: Sequence[Line], missing: Sequence[str]) -> str:
    axes = ", ".join(spec.axis_names)
    if spec.packed is not None:
        needed = ", ".join(f"{a}=..." for a in missing)
        return (
            f"mask '{spec.name}' has the axes {axes} in every document; give the sizes of all but the first: {needed}"
        )
    unknown = next(u for line in lines if len(u := [a for a in missing if a in _unknown(line, {})]) > 1)
    example = ", ".join(f"{a}=..." for a in unknown[1:])
    return f"mask '{spec.name}' has the axes {axes}; give the sizes of all but one, for example {example}"


def _check(line: Line, known: Known, sizes: Sizes) -> None:
    places = sum(_tokens(part, known, sizes) for part in line.parts)
    if places == line.length or (places > line.length and not line.exact):
        return
    shapes = " + ".join(_shape(part, known, sizes) for part in line.parts)
    kind = "grid" if line.parts[0].name is None else "part" if len(line.parts) == 1 else "line"
    verb = "have" if line.exact else "need"
    raise MaskInputError(f"the {kind} {shapes} has {places} places; {line.what} {verb} {line.length}")


def _shape(part: Part, known: Known, sizes: Sizes) -> str:
    if part.size is not None:
        return f"{part.name}={_tokens(part, known, sizes)}"
    grid = " x ".join(f"{axis}={known[axis]}" for axis in part.axes)
    return grid if part.name is None else f"{part.name} ({grid})"


def _tokens(part: Part, known: Known, sizes: Sizes) -> int:
    """How many positions a part has, at the sizes of its axes."""
    if part.size is None:
        return math.prod(known[axis] for axis in part.axes)
    size = int(value(part.size, replace(sizes, axes=tuple(known.items()))))
    if size < 0:
        raise MaskInputError(f"part '{part.name}' would be {size}{because(part.size, sizes)}; expected at least 0")
    return size
