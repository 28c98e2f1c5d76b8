"""KernelSource -> compiled text of any stage for any target, with no GPU present."""

import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskc.codegen.columns import columns
from maskc.codegen.loads import loads
from maskc.codegen.schedule import Configuration, Pass, Target, check, configuration, target_named
from maskc.codegen.source import Argument, Kernel, KernelSource, emit
from maskc.codegen.variants import Variant, named_form, plainest
from maskc.diagnostics import MaskError, MaskUnsupportedError
from maskc.expr import Type
from maskc.runtime import loader
from maskc.spec import MaskSpec

STAGES = ("ttir", "ttgir", "llir", "ptx", "amdgcn", "sass")
"""What `compile_stage` answers with; `ptx` and `sass` for NVIDIA targets, `amdgcn` for AMD ones."""

PASSES: Mapping[str, Pass] = {
    "forward_kernel": "forward",
    "merge_kernel": "forward",
    "backward_rows_kernel": "queries",
    "backward_queries_kernel": "queries",
    "backward_keys_kernel": "keys",
}
"""The pass that an entry point belongs to."""


@dataclass(frozen=True)
class Compiled:
    """One compiled kernel: the text or bytes of each stage, and bytes of shared memory."""

    stages: Mapping[str, str | bytes]
    shared: int


def compile_kernel(
    source: KernelSource, spec: MaskSpec, entry: str, target: Target, variant: Variant, chosen: Configuration
) -> Compiled:
    """Compiles a variant of an entry point in a configuration for a target, through Triton's compiler and the assembler
    that it ships. source: that of the variant's form, or one with the same arguments.
    """
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise MaskError("kernels cannot be compiled while TRITON_INTERPRET=1 is set: Triton then interprets them")
    check(variant.dims, variant.dtype)
    module = loader.load(source)
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types, constants = signature(source.kernel(entry), spec, variant, chosen)
    options = {"num_warps": chosen.warps, "num_stages": chosen.stages}
    if source.double:
        options["enable_fp_fusion"] = False
    arch = int(target.name.removeprefix("sm_")) if target.backend == "cuda" else target.name
    compiled = triton.compile(
        ASTSource(getattr(module, entry), types, constants, {}),
        target=GPUTarget(target.backend, arch, target.warp),
        options=options,
    )
    return Compiled(compiled.asm, compiled.metadata.shared)


def signature(
    kernel: Kernel, spec: MaskSpec, variant: Variant, chosen: Configuration
) -> tuple[dict[str, str], dict[str, Any]]:
    """The types of a kernel's arguments in Triton's words, and the values of those that are `constexpr`, by name."""
    types = {argument.name: _type(argument, spec, variant, kernel.name) for argument in kernel.arguments}
    return types, {name: _constant(name, variant, chosen) for name, type_ in types.items() if type_ == "constexpr"}


def _type(argument: Argument, spec: MaskSpec, variant: Variant, entry: str) -> str:
    """The type of an argument of an entry point in Triton's words."""
    if argument.type == "*T":
        return "*fp32" if variant.parts and (entry, argument.name) in _RESULTS else f"*{variant.dtype}"
    if argument.type == "offsets":
        return "*i64" if argument.name.removesuffix("s") in variant.offsets else "constexpr"
    if argument.name == "d_lse" and not variant.d_lse:
        return "constexpr"
    if argument.type.startswith("input:"):
        name = argument.type.removeprefix("input:")
        return f"*{dict(variant.inputs).get(name) or _INPUT_TYPES[spec.input(name).type]}"
    return argument.type


_RESULTS = {
    ("forward_kernel", "out"),
    ("backward_queries_kernel", "d_q"),
    ("backward_keys_kernel", "d_k"),
    ("backward_keys_kernel", "d_v"),
}
"""What is float32 where it is one of several parts."""

_INPUT_TYPES = {Type.BOOL: "i1", Type.INT: "i64"}


def _constant(name: str, variant: Variant, chosen: Configuration) -> Any:
    import triton
    import triton.language as tl

    qk, v = (columns(dim) for dim in variant.dims)
    constants = {
        "D_QK": qk.dim,
        "D_V": v.dim,
        "WIDTH_QK": qk.main,
        "WIDTH_V": v.main,
        "TAIL_QK": qk.tail,
        "TAIL_V": v.tail,
        "PADDED_V": triton.next_power_of_2(v.dim),
        "ADD": variant.parts,
        "BLOCK_Q": chosen.block_q,
        "BLOCK_K": chosen.block_k,
        "ALIGN": variant.align,
        "ALIKE": variant.alike,
        "INTEGER": tl.int64 if variant.wide else tl.int32,
        "PRECISION": variant.precision,
    }
    return constants.get(name)


def compile_stage(
    spec: MaskSpec,
    *,
    entry: str = "forward_kernel",
    target: str = "sm_90",
    dim: int = 64,
    dim_v: int | None = None,
    dtype: str = "fp16",
    stage: str = "ptx",
    indexed: bool = False,
    clauses: Sequence[int] | None = None,
) -> str:
    """The text of a stage of an entry point, compiled with the configuration that the table has for it.

    dtype: `fp16`, `bf16` or `fp32`. indexed: the form for plans that give positions. clauses: what partial tiles
    evaluate, by default all. MaskUnsupportedError for a target, entry, stage, dim, dtype or set of clauses that there
    is not.
    """
    chip = target_named(target)
    dims = (dim, dim if dim_v is None else dim_v)
    check(dims, dtype)
    source = emit(spec, named_form(spec, dims, indexed=indexed, clauses=clauses))
    entries = [kernel.name for kernel in source.kernels]
    if entry not in entries:
        raise MaskUnsupportedError(f"no entry point '{entry}'; the kernel file has {', '.join(entries)}")
    stages = [s for s in STAGES if s not in (("amdgcn",) if chip.backend == "cuda" else ("ptx", "sass"))]
    if stage not in stages:
        raise MaskUnsupportedError(f"no stage '{stage}' for {target}; it has {', '.join(stages)}")
    variant = plainest(spec, source.form, dims, dtype)
    chosen = configuration(chip, dims, dtype, PASSES[entry], source.heavy, source.form.indexed, loads(spec))
    compiled = compile_kernel(source, spec, entry, chip, variant, chosen)
    if stage == "sass":
        return disassembled(compiled)
    text = compiled.stages[stage]
    return text if isinstance(text, str) else text.decode()


def disassembled(compiled: Compiled) -> str:
    """The machine code of a kernel for an NVIDIA target as text."""
    return _binary_tool("nvdisasm", compiled, "-c")


def resources(compiled: Compiled) -> str:
    """Registers, stack and shared memory of a kernel for an NVIDIA target, as cuobjdump reports them."""
    return _binary_tool("cuobjdump", compiled, "-res-usage")


def _binary_tool(tool: str, compiled: Compiled, *options: str) -> str:
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / tool
    if not path.exists():
        raise MaskUnsupportedError(f"this build of triton does not bring {tool}")
    binary = compiled.stages["cubin"]
    assert isinstance(binary, bytes)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        done = subprocess.run([path, *options, file.name], capture_output=True, text=True, check=False)
    if done.returncode:
        raise MaskError(f"{tool} failed: {done.stderr.strip()}")
    return done.stdout
