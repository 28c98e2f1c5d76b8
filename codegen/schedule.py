"""Which tile, how many warps and how deep a pipeline: a table per target, and a model that keeps what cannot fit out.

Nothing is measured at run time. The table lists configurations best first; the first one whose shared memory and
registers fit by the model is taken, and the smallest fits every target. `benchmarks/static.py` holds the choice for
sm_90 against the compiler's own figures.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from maskc.codegen.columns import columns
from maskc.diagnostics import MaskUnsupportedError

Pass = Literal["forward", "queries", "keys"]
"""The forward kernel, the backward kernel that owns queries (dQ), and the one that owns keys (dK, dV)."""

LARGEST = 256
"""The largest head dim."""
DTYPES = {"fp16": 2, "bf16": 2, "fp32": 4}


@dataclass(frozen=True)
class Target:
    """What a chip offers one program: shared memory in bytes, lanes per warp, registers (32 bits) per lane."""

    name: str
    backend: Literal["cuda", "hip"]
    shared: int
    warp: int
    registers: int

    def __str__(self) -> str:
        return self.name


_KIB = 1024
TARGETS = {
    target.name: target
    for target in (
        Target("sm_80", "cuda", 163 * _KIB, 32, 255),
        Target("sm_86", "cuda", 99 * _KIB, 32, 255),
        Target("sm_89", "cuda", 99 * _KIB, 32, 255),
        Target("sm_90", "cuda", 227 * _KIB, 32, 255),
        Target("sm_100", "cuda", 227 * _KIB, 32, 255),
        Target("sm_103", "cuda", 227 * _KIB, 32, 255),
        Target("sm_120", "cuda", 99 * _KIB, 32, 255),
        Target("gfx942", "hip", 64 * _KIB, 64, 512),
    )
}


@dataclass(frozen=True)
class Configuration:
    """One way to run a kernel: tile of queries and keys, warps, stages of the software pipeline."""

    block_q: int
    block_k: int
    warps: int
    stages: int

    @property
    def tile(self) -> tuple[int, int]:
        """Queries and keys of one tile, as plans have it."""
        return self.block_q, self.block_k

    def __str__(self) -> str:
        return f"{self.block_q} x {self.block_k}, {self.warps} warps, {self.stages} stages"


def target_named(name: str) -> Target:
    """A target by name, `sm_90` or `gfx942`; MaskUnsupportedError lists the known ones."""
    if name not in TARGETS:
        raise MaskUnsupportedError(f"no target '{name}'; known are {', '.join(TARGETS)}")
    return TARGETS[name]


@lru_cache(maxsize=1024)
def configuration(target: Target, dims: tuple[int, int], dtype: str, pass_: Pass, heavy: bool = False) -> Configuration:
    """The configuration for head dims (D_qk, D_v), a dtype (`fp16`, `bf16`, `fp32`) and a kernel.

    heavy: as `KernelSource.heavy`.
    """
    return fitting(target, dims, dtype, pass_, heavy)[0]


def fitting(
    target: Target, dims: tuple[int, int], dtype: str, pass_: Pass, heavy: bool = False
) -> tuple[Configuration, ...]:
    """All configurations of the table that fit, best first; never empty."""
    check(dims, dtype)
    table = [*_preferred(target, max(dims), dtype, pass_, heavy), *_FALLBACK]
    found = tuple(
        c
        for c in dict.fromkeys(table)
        if shared_bytes(c, dims, dtype, pass_) <= target.shared
        and registers(target, c, dims, pass_) <= target.registers
    )
    assert found, "the smallest configuration fits every target"
    return found


def check(dims: tuple[int, int], dtype: str) -> None:
    """Raises MaskUnsupportedError for head dims and dtypes that the kernels do not have."""
    for name, dim in zip(("q and k", "v"), dims, strict=True):
        if not 1 <= dim <= LARGEST:
            raise MaskUnsupportedError(
                f"the head dim of {name} is {dim}; generated kernels have 1 to {LARGEST} "
                "(engines 'tiled' and 'dense' take any)"
            )
    if dtype not in DTYPES:
        raise MaskUnsupportedError(f"q, k and v are {dtype}; generated kernels have {', '.join(DTYPES)}")


def shared_bytes(c: Configuration, dims: tuple[int, int], dtype: str, pass_: Pass) -> int:
    """Shared memory that a kernel needs at most: what it owns, and what it walks once per stage of the pipeline."""
    dim_qk, dim_v = (columns(dim).padded for dim in dims)
    size = DTYPES[dtype]
    queries, keys = c.block_q * size, c.block_k * size
    match pass_:
        case "forward":
            return queries * dim_qk + c.stages * keys * (dim_qk + dim_v)
        case "queries":
            return queries * (dim_qk + dim_v) + c.stages * keys * (dim_qk + dim_v)
        case "keys":
            rows = 2 * 4 * c.block_q
            return keys * (dim_qk + dim_v) + c.stages * (queries * (dim_qk + dim_v) + rows)


def registers(target: Target, c: Configuration, dims: tuple[int, int], pass_: Pass) -> int:
    """Registers per lane that the live tiles of a kernel need: its accumulators, and the tiles of pairs beside them."""
    lanes = c.warps * target.warp
    pairs = c.block_q * c.block_k
    dims = columns(dims[0]).padded, columns(dims[1]).padded
    match pass_:
        case "forward":
            held = c.block_q * dims[1] + 1.5 * pairs
        case "queries":
            held = c.block_q * dims[0] + 2.5 * pairs
        case "keys":
            held = c.block_k * (dims[0] + dims[1]) + 2.5 * pairs
    return int(held / lanes) + 40


_FALLBACK = (
    Configuration(64, 64, 4, 2),
    Configuration(64, 32, 4, 2),
    Configuration(32, 32, 4, 2),
    Configuration(32, 32, 4, 1),
    Configuration(16, 16, 4, 1),
)


def _preferred(target: Target, dim: int, dtype: str, pass_: Pass, heavy: bool) -> list[Configuration]:
    """Best first, before anything is known about what fits."""
    if dtype == "fp32":
        # Dots of float32 run on ordinary multiply-adds, whose operands fill the registers: small tiles.
        return [Configuration(32, 32, 4, 2), Configuration(32, 16, 4, 2)]
    if target.backend == "hip":
        return [Configuration(128, 64, 4, 2), Configuration(64, 64, 4, 2)] if pass_ == "forward" else []
    match pass_:
        case "forward" | "queries":
            owned = [Configuration(128, 64, 8, 3), Configuration(64, 64, 4, 3), Configuration(64, 64, 4, 2)]
            return [Configuration(128, 32, 8, 3), Configuration(64, 32, 4, 3), *owned] if heavy else owned
        case "keys" if dim == 128:
            owned = [Configuration(32, 128, 8, 3), Configuration(32, 64, 8, 2)]
            return [Configuration(32, 64, 8, 3), *owned] if heavy else owned
        case "keys":
            owned = [Configuration(64, 64, 4, 3), Configuration(64, 64, 4, 2)]
            return [Configuration(32, 64, 4, 3), *owned] if heavy else owned
