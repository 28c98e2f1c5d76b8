"""`maskc emit`: every stage of the way from a spec to machine code, and the closed set of its kernels."""

import json
import sys
from argparse import Namespace

from maskc.check import load, path_and_mask, read_source
from maskc.codegen.source import emit
from maskc.codegen.variants import named_form
from maskc.commands import options
from maskc.commands.explain import DEFAULT_TARGET, kernel_dtype, planned_call
from maskc.commands.options import UsageError
from maskc.commands.variants import announced_object, announced_text, announcement
from maskc.grammar.parser import parse
from maskc.spec import MaskSpec

COMMENT = {"ttir": "//", "ttgir": "//", "llir": ";", "ptx": "//", "amdgcn": ";", "sass": "//"}  # of the machine stages
BEFORE_KERNELS = ("tree", "spec", "plan")
STAGES = (*BEFORE_KERNELS, "kernel", *COMMENT)


def emit_command(chosen: Namespace) -> int:
    """One stage as text, or the variants."""
    _check_options(chosen)
    print((variants_text(chosen) if chosen.variants else stage_text(chosen)).rstrip("\n"))
    return 0


def _check_options(chosen: Namespace) -> None:
    """Refuses options that would change nothing."""
    if chosen.json and not chosen.variants:
        raise UsageError("--json goes with --variants")
    if (chosen.indexed or chosen.open is not None) and (chosen.variants or chosen.stage in BEFORE_KERNELS):
        raise UsageError("--indexed and --open go with --stage kernel and the stages behind it")
    if chosen.kernel is not None and chosen.stage not in COMMENT:
        raise UsageError("--kernel goes with the stages behind the kernel file")
    if chosen.tile is not None and chosen.stage != "plan":
        raise UsageError("--tile goes with --stage plan; the tile of compiled kernels is the table's")


def variants_text(chosen: Namespace) -> str:
    """The kernels that calls can ask for."""
    target = chosen.target or DEFAULT_TARGET
    found = announcement(load(chosen.spec), options.dims(chosen), kernel_dtype(target, chosen), target)
    return json.dumps(announced_object(found), indent=2) if chosen.json else announced_text(found)


def stage_text(chosen: Namespace) -> str:
    """The text of the stage that was asked for."""
    match chosen.stage:
        case "tree":
            return str(parse(read_source(path_and_mask(chosen.spec)[0])))
        case "spec":
            return str(load(chosen.spec))
        case "plan":
            return str(planned_call(load(chosen.spec), chosen).plan)
        case "kernel":
            spec = load(chosen.spec)
            return emit(spec, named_form(spec, options.dims(chosen), indexed=chosen.indexed, clauses=chosen.open)).text
        case _:
            return machine_text(load(chosen.spec), chosen)


def machine_text(spec: MaskSpec, chosen: Namespace) -> str:
    """A stage behind the kernel file, for every kernel or the one that is named, each under its name."""
    from maskc.runtime.stages import compile_stage

    dim, dim_v = options.dims(chosen)
    target = chosen.target or DEFAULT_TARGET
    texts = []
    for entry in [chosen.kernel] if chosen.kernel else [kernel.name for kernel in emit(spec).kernels]:
        print(f"compiling {entry} for {target} ...", file=sys.stderr, flush=True)
        text = compile_stage(
            spec,
            entry=entry,
            target=target,
            dim=dim,
            dim_v=dim_v,
            dtype=kernel_dtype(target, chosen),
            stage=chosen.stage,
            indexed=chosen.indexed,
            clauses=chosen.open,
        )
        texts.append(f"{COMMENT[chosen.stage]} {entry}\n{text}")
    return "\n".join(texts)
