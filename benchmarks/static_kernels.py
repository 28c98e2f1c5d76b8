"""The kernels that the static judge looks at: which there are, and what the compiler makes of them."""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from textwrap import indent

import numpy as np
from static_chips import Work, moved
from static_code import Loop, amd_figure, read

from maskc.analysis.plan import build
from maskc.check import load
from maskc.codegen.form import Form, announced
from maskc.codegen.loads import loads
from maskc.codegen.schedule import Configuration, configuration, target_named
from maskc.codegen.source import KernelSource, emit
from maskc.codegen.template import walk_next, walk_start
from maskc.codegen.variants import clauses_text, named_form, plainest
from maskc.expr import Side
from maskc.runtime import stages
from maskc.samples import draw
from maskc.sizes import resolve
from maskc.spec import MaskSpec

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = tuple(sorted(path.stem for path in (ROOT / "examples").glob("*.mask")))
ENTRIES = ("forward_kernel", "backward_queries_kernel", "backward_keys_kernel")
NONE = "none"
"""The mask that keeps every pair and leaves the score as it is."""
LENGTH, HEADS = 8192, 16
"""Of the call whose plan the rooflines count."""


@dataclass(frozen=True)
class Case:
    """One kernel.

    mask: the name of an example, or NONE. free: with no clause of the mask and no plan: its loops walk all tiles in
    order. clauses: the numbers of those that partial tiles evaluate; None for all. choice: what else is chosen when it
    is compiled: "wide" (64-bit indices), "unaligned" (rows), "parts" (float32 results) or "".
    """

    mask: str
    entry: str
    target: str
    dims: tuple[int, int]
    dtype: str
    configuration: Configuration
    indexed: bool = False
    clauses: tuple[int, ...] | None = None
    choice: str = ""
    free: bool = False

    @property
    def plain(self) -> "Case":
        """The mask-free kernel with the plain score, the same configuration, head dims and dtype."""
        return replace(self, mask=NONE, indexed=False, clauses=None, free=True)

    @property
    def baseline(self) -> "Case":
        """The mask-free kernel with the same score: what is more in the loop of full tiles is the mask's doing."""
        return self.plain if example(self.mask).score == MaskSpec(NONE).score else replace(self.plain, mask=self.mask)

    def __str__(self) -> str:
        dims = f"{self.dims[0]}" if self.dims[0] == self.dims[1] else f"{self.dims[0]}/{self.dims[1]}"
        words = [f"{'mask-free, score of ' * self.free}{self.mask}"] if self.mask != NONE else ["mask-free"]
        words += ["indexed"] if self.indexed else []
        words += [self.choice] if self.choice else []
        words += [f"clauses {clauses_text(self.clauses)}"] if self.clauses is not None else []
        entry = self.entry.removesuffix("_kernel")
        return f"{' '.join(words):32} {entry:16} {self.target:6} {dims:>7} {self.dtype} {self.configuration}"


@dataclass(frozen=True)
class Figures:
    """What the compiler made of a kernel.

    registers: of a lane. stack: bytes of a lane in local memory. shared: bytes. columns: of tensor memory. tensor:
    tensor-core instructions. full, partial: the loops, where they are read (not on AMD, where local_outside counts
    registers that are spilled anywhere).
    """

    registers: int
    stack: int
    shared: int
    columns: int
    tensor: int
    local_in_loops: int
    local_outside: int
    full: Loop | None
    partial: Loop | None


@lru_cache
def example(mask: str) -> MaskSpec:
    """A spec by the name of its file."""
    return MaskSpec(NONE) if mask == NONE else load(ROOT / "examples" / f"{mask}.mask")


def matrix() -> Iterator[Case]:
    """Every kernel that is judged."""
    for mask, dim, dtype in itertools.product(EXAMPLES, (64, 128), ("bf16", "fp16")):
        yield from _cases(mask, "sm_90", dim, dtype)
        if dtype == "bf16" or mask in _SAMPLE:
            yield from _cases(mask, "sm_90", dim, dtype, indexed=True)
    for mask in EXAMPLES:
        for clauses in announced(example(mask))[1:]:
            yield from _cases(mask, "sm_90", 64, "bf16", clauses=clauses)
    for dim in (64, 128):
        yield from _cases("dilated_window", "sm_90", dim, "bf16", indexed=True, clauses=(0,))
    for dims in _OTHER_DIMS:
        for indexed in (False, True):
            yield from _cases("causal", "sm_90", dims, "bf16", indexed=indexed)
    for dim in (40, 72, 96):
        yield from _cases("dilated_window", "sm_90", dim, "bf16")
    for target, dim in itertools.product(("sm_80", "sm_86", "sm_100", "sm_120", "gfx942"), (64, 128)):
        for mask in _SAMPLE if dim == 128 else ("causal",):
            yield from _cases(mask, target, dim, "bf16")
        yield from _cases("causal", target, dim, "bf16", indexed=True)
    for choice in ("wide", "unaligned", "parts"):
        yield from _cases("causal", "sm_90", 64, "bf16", choice=choice)
    yield from _cases("causal", "sm_90", 64, "fp32")


_SAMPLE = ("causal", "dilated_window")
_OTHER_DIMS: tuple[int | tuple[int, int], ...] = (8, 16, 32, 40, 72, 80, 96, 160, 192, 256, (192, 128))


def _cases(
    mask: str,
    target: str,
    dims: int | tuple[int, int],
    dtype: str,
    indexed: bool = False,
    clauses: tuple[int, ...] | None = None,
    choice: str = "",
) -> Iterator[Case]:
    """The three kernels of one form, with the configurations of the table."""
    pair = (dims, dims) if isinstance(dims, int) else dims
    heavy = emit(example(mask)).heavy
    for entry in ENTRIES:
        pass_, read = stages.PASSES[entry], loads(example(mask))
        chosen = configuration(target_named(target), pair, dtype, pass_, heavy, indexed, read, choice != "unaligned")
        yield Case(mask, entry, target, pair, dtype, chosen, indexed, clauses, choice)


def source(case: Case) -> tuple[KernelSource, MaskSpec]:
    """The kernel file of a case and its spec."""
    spec = example(case.mask)
    form = named_form(spec, case.dims, indexed=case.indexed, clauses=case.clauses)
    return mask_free(spec, form) if case.free else (emit(spec, form), spec)


def mask_free(spec: MaskSpec, form: Form) -> tuple[KernelSource, MaskSpec]:
    """The skeleton with the score of a spec, no mask and no plan: its loops walk all tiles in order."""
    bare = replace(spec, name="mask_free", clauses=(), claims=())
    found = emit(bare, form)
    text, replaced = found.text, 0
    for runs in ("full", "partial"):
        start = f"tiles = tl.load({runs}_tiles)\ntile = 0\n"
        walks = {(walk_start, Side.K): start, **{(walk_next, side): "tile += 1\n" for side in Side}}
        for (lines, walked), free in walks.items():
            first, *rest = (re.escape(line) + "\n" for line in lines(runs, form, walked))
            block = "".join([f"(?m)^( *){first}", *(rf"\1{line}" for line in rest)])
            text, number = re.subn(block, lambda found, free=free: indent(free, found[1]), text)  # type: ignore[misc]
            replaced += number
    assert replaced == 4 * len(ENTRIES), "every walk over runs is replaced"
    return replace(found, text=text), bare


def figures(case: Case) -> Figures:
    """Compiles a kernel as the launcher would and reads its machine code."""
    text, spec = source(case)
    variant = plainest(spec, text.form, case.dims, case.dtype)
    match case.choice:
        case "wide":
            variant = replace(variant, wide=True)
        case "unaligned":
            variant = replace(variant, aligned=False)
        case "parts":
            variant = replace(variant, parts=True)
    target = target_named(case.target)
    compiled = stages.compile_kernel(text, spec, case.entry, target, variant, case.configuration)
    if "amdgcn" in compiled.stages:
        return _amd_figures(str(compiled.stages["amdgcn"]), compiled.shared)
    usage = re.search(r"REG:(\d+) STACK:(\d+)", stages.resources(compiled))
    assert usage is not None, "cuobjdump reports registers and stack"
    code = read(stages.disassembled(compiled))
    assert len(code.loops) == 2, f"{case} has {len(code.loops)} loops over tiles instead of two"
    allocated = re.search(r"tcgen05\.alloc\S* \[\S+\], (\d+);", str(compiled.stages["ptx"]))
    return Figures(
        registers=int(usage[1]),
        stack=int(usage[2]),
        shared=compiled.shared,
        columns=int(allocated[1]) if allocated else 0,
        tensor=code.tensor,
        local_in_loops=code.local_in_loops,
        local_outside=code.local_outside,
        full=code.loops[0],
        partial=code.loops[1],
    )


def _amd_figures(text: str, shared: int) -> Figures:
    return Figures(
        registers=amd_figure(text, "vgpr_count"),
        stack=amd_figure(text, "private_segment_fixed_size"),
        shared=shared,
        columns=0,
        tensor=len(re.findall(r"^\s+v_mfma_", text, re.MULTILINE)),
        local_in_loops=0,
        local_outside=amd_figure(text, "vgpr_spill_count"),
        full=None,
        partial=None,
    )


def work(case: Case) -> Work:
    """What a kernel does in a call of LENGTH queries and keys, one batch row and HEADS heads, walked row-major."""
    side = Side.K if case.entry == "backward_keys_kernel" else Side.Q
    full, partial = _tiles(case.mask, case.free, case.configuration.tile, side)
    return Work(full, partial, moved(case.entry, case.dims, case.dtype, LENGTH * HEADS))


@lru_cache
def _tiles(mask: str, free: bool, tile: tuple[int, int], owned: Side) -> tuple[int, int]:
    """Full and partial tiles of all heads; inputs are drawn at random, grids are 64 x 128."""
    spec = replace(example(mask), clauses=(), claims=()) if free else example(mask)
    axes = dict(zip(spec.axis_names, (64, LENGTH // 64), strict=False))
    sizes = resolve(spec, q_len=LENGTH, k_len=LENGTH, heads=HEADS, kv_heads=HEADS, given=axes)
    plan = build(spec, sizes, tile, draw(spec, sizes, np.random.default_rng(0)))
    walks = [part.walk(owned) for part in plan.parts]
    repeats = HEADS // plan.maps[1]
    full = sum(int(walk.full.tiles.sum()) for walk in walks)
    partial = sum(int(walk.partial.tiles.sum()) for walk in walks)
    return full * repeats, partial * repeats
