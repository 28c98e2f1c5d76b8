"""What the analysis found for a call: the plan that an engine would really run, and what is worth saying about it."""

import math
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from maskc.analysis.plan import BlockPlan, Part, Statistics, build, part_pairs, part_tiles, statistics
from maskc.codegen.loads import loads
from maskc.codegen.schedule import TARGETS, configuration, target_named
from maskc.codegen.source import emit
from maskc.commands import options
from maskc.commands.options import Array
from maskc.diagnostics import MaskInputError
from maskc.expr import Expr
from maskc.features import refusal
from maskc.spec import MaskSpec, Sizes

MOST_TILES = 2**30  # two million tokens squared in tiles of 64 x 64
DEFAULT_TARGET = "sm_90"
KERNEL_DTYPES = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}


@dataclass(frozen=True, eq=False)
class Planned:
    """A call and its plan.

    target: what the engine's code is made for: `cpu`, `sm_90`, ... seconds: the time it took to build the plan.
    """

    spec: MaskSpec
    sizes: Sizes
    inputs: dict[str, Array]
    engine: str
    target: str
    plan: BlockPlan
    seconds: float


def planned_call(spec: MaskSpec, chosen: Namespace) -> Planned:
    """The plan of the call that the options describe, on the engine that they choose."""
    given = options.given_call(spec, chosen)
    spec, sizes, inputs = given.spec, given.sizes, given.inputs
    engine = engine_of(chosen)
    target = target_of(engine, chosen)
    tile = chosen.tile or engine_tile(spec, sizes, engine, target, chosen)
    check_number_of_tiles(sizes, tile)
    begin = perf_counter()
    plan = build(spec, sizes, tile, inputs)
    return Planned(spec, sizes, inputs, engine, target, plan, perf_counter() - begin)


def check_number_of_tiles(sizes: Sizes, tile: tuple[int, int]) -> None:
    """Raises `MaskInputError` where a plan would be a matter of hours and hundreds of gigabytes."""
    number = -(-sizes.q_len // tile[0]) * -(-sizes.k_len // tile[1])
    if number > MOST_TILES:
        raise MaskInputError(
            f"{sizes.q_len} x {sizes.k_len} tokens are {number:,} tiles of {tile[0]} x {tile[1]}; "
            f"expected at most {MOST_TILES:,}: give a larger --tile"
        )


def engine_of(chosen: Namespace) -> str:
    """The engine that a call would take."""
    if chosen.engine == "auto":
        return "tiled" if chosen.device == "cpu" and chosen.target is None else "triton"
    return str(chosen.engine)


def target_of(engine: str, chosen: Namespace) -> str:
    """What the engine's code is made for: the target that is named, else the device's, else sm_90."""
    if engine != "triton":
        return "cpu" if engine == "interpret" else str(chosen.device)
    if chosen.target is not None:
        return target_named(chosen.target).name
    if chosen.device == "cpu":
        return DEFAULT_TARGET
    from maskc.runtime import launcher, verify

    return launcher.target_of(verify.device_named(chosen.device)).name


def dtype_of(target: str, chosen: Namespace) -> str:
    """The dtype that is named, else float16 for a GPU and float32 elsewhere."""
    if chosen.dtype is not None:
        return str(chosen.dtype)
    return "float16" if target in TARGETS else "float32"


def kernel_dtype(target: str, chosen: Namespace) -> str:
    """The dtype as generated kernels name it; a name that they do not have stays, for their own check to refuse."""
    return KERNEL_DTYPES.get(dtype_of(target, chosen), dtype_of(target, chosen))


def engine_tile(spec: MaskSpec, sizes: Sizes, engine: str, target: str, chosen: Namespace) -> tuple[int, int]:
    """The tile that the engine takes for the forward pass of such a call."""
    from maskc.runtime import tiles

    match engine:
        case "tiled":
            return tiles.tile_of(spec, sizes)
        case "interpret":
            return tiles.INTERPRETED.tile
        case _:
            dims, dtype = options.dims(chosen), kernel_dtype(target, chosen)
            heavy = refusal(spec, "triton") is None and emit(spec).heavy
            return configuration(target_named(target), dims, dtype, "forward", heavy, loads=loads(spec)).tile


def explanation(planned: Planned) -> dict[str, Any]:
    """The fields of `maskc explain --json`. Pairs are counted per head and batch row, summed where those differ."""
    plan, sizes = planned.plan, planned.sizes
    found = statistics(plan, planned.inputs)
    return {
        "mask": planned.spec.name,
        "engine": planned.engine,
        "target": planned.target,
        "q_len": sizes.q_len,
        "k_len": sizes.k_len,
        "tile": list(plan.tile),
        "batch_rows": found.batch_rows,
        "heads": found.heads,
        "live_pairs": found.live_pairs,
        "computed_pairs": found.computed_pairs,
        "efficiency": found.efficiency,
        "flex_pairs": found.flex_pairs,
        "gain": found.gain,
        "order_gain": found.order_gain,
        "analysis_seconds": planned.seconds,
        "parts": [part_fields(planned, part, found) for part in plan.parts],
    }


def part_fields(planned: Planned, part: Part, whole: Statistics) -> dict[str, Any]:
    """What is said about a part. The pairs of the only part are those of the plan."""
    plan = planned.plan
    full, partial, empty = part_tiles(plan, part)
    computed = (full + partial) * math.prod(plan.tile)
    live = whole.live_pairs if len(plan.parts) == 1 else part_pairs(plan, part, planned.inputs)
    return {
        "predicate": str(part.predicate),
        "q_order": str(part.q_order),
        "k_order": str(part.k_order),
        "full_tiles": full,
        "partial_tiles": partial,
        "empty_tiles": empty,
        "computed_pairs": computed,
        "efficiency": live / computed if computed else 1.0,
    }


def explanation_text(planned: Planned, fields: Mapping[str, Any]) -> str:
    """The same for a reader."""
    lines = [title(planned)]
    maps = fields["batch_rows"] * fields["heads"]
    if maps > 1:
        lines.append(
            f"  the mask differs between {fields['batch_rows']} batch rows x {fields['heads']} heads; all are counted"
        )
    lines += [
        f"  live pairs      {fields['live_pairs']:,}",
        f"  computed pairs  {fields['computed_pairs']:,}, of which {fields['efficiency']:.1%} are live",
        f"  FlexAttention   {fields['flex_pairs']:,} pairs in row-major tiles of 128 x 128",
        f"  gain            {fields['gain']:.2f}x; {fields['order_gain']:.2f}x with the same tiles",
        f"  analysis        {1000 * fields['analysis_seconds']:.1f} ms",
    ]
    for number, (part, found) in enumerate(zip(planned.plan.parts, fields["parts"], strict=True), start=1):
        lines += [
            f"part {number}: queries {found['q_order']}, keys {found['k_order']}",
            f"  tiles           {class_counts(*(found[f'{kind}_tiles'] for kind in ('full', 'partial', 'empty')))}",
        ]
        lines += [f"  open            {source_text(planned.spec.clauses[i])}" for i in part.open_clauses]
    return "\n".join(lines)


def title(planned: Planned) -> str:
    """Mask, sizes, engine and tile in a line."""
    q, k = planned.plan.tile
    return f"{call_title(planned.spec, planned.sizes)}; {planned.engine} on {planned.target}, tiles of {q} x {k}"


def call_title(spec: MaskSpec, sizes: Sizes) -> str:
    """Mask and sizes."""
    grid = "".join(f", {name}={size}" for name, size in sizes.axes)
    values = "".join(f", {name}={value}" for name, value in sizes.parameters)
    offset = f" from {sizes.q_offset}" if sizes.q_offset else ""
    return f"{spec.name}{values}: {sizes.q_len} queries{offset} x {sizes.k_len} keys{grid}"


def class_counts(full: int, partial: int, empty: int) -> str:
    """How many tiles of each class."""
    return f"{full:,} full, {partial:,} partial, {empty:,} empty"


def source_text(expr: Expr) -> str:
    """An expression in the user's own words, where they are known."""
    return str(expr) if expr.span is None else " ".join(expr.span.text.split())
