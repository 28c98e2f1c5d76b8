"""What chips offer: how many programs of a kernel run on one multiprocessor, and the least time of a kernel's work."""

from collections.abc import Mapping
from dataclasses import dataclass

from maskc.codegen.columns import columns
from maskc.codegen.schedule import DTYPES


@dataclass(frozen=True)
class Limits:
    """One multiprocessor (AMD: compute unit): four schedulers, each with 512 registers of 32 bits for every lane.

    shared: bytes, of which every program takes `reserved` for the system. warps: of one scheduler. granularity: what
    the registers of a lane are rounded up to. columns: of tensor memory.
    """

    shared: int
    reserved: int
    warps: int
    granularity: int = 8
    columns: int = 512


SCHEDULERS = 4
REGISTERS = 512

# CUDA programming guide, "Technical Specifications per Compute Capability" (resident warps, registers and shared memory
# of a multiprocessor), and tuning guides (1 KiB of every block's shared memory belongs to the system); PTX ISA, "Tensor
# Memory". Limits of blocks (16 to 32) never bind with four warps and more in each. gfx942: CDNA 3 ISA guide.
LIMITS: Mapping[str, Limits] = {
    "sm_80": Limits(164 << 10, 1 << 10, 16),
    "sm_86": Limits(100 << 10, 1 << 10, 12),
    "sm_89": Limits(100 << 10, 1 << 10, 12),
    "sm_90": Limits(228 << 10, 1 << 10, 16),
    "sm_100": Limits(228 << 10, 1 << 10, 16),
    "sm_103": Limits(228 << 10, 1 << 10, 16),
    "sm_120": Limits(100 << 10, 1 << 10, 12),
    "gfx942": Limits(64 << 10, 0, 8),
}


def programs(target: str, warps: int, registers: int, shared: int, tensor_columns: int = 0) -> int:
    """How many programs of a kernel run on one multiprocessor at a time; 0 where not even one fits.

    registers: of a lane. shared: bytes of a program. tensor_columns: of tensor memory.
    """
    limits = LIMITS[target]
    held = -(-max(registers, 1) // limits.granularity) * limits.granularity
    found = [SCHEDULERS * min(limits.warps, REGISTERS // held) // warps, limits.shared // (shared + limits.reserved)]
    return min(found + ([limits.columns // tensor_columns] if tensor_columns else []))


@dataclass(frozen=True)
class Chip:
    """flops: of tensor cores a second, 16-bit operands, dense. bandwidth: of memory, bytes a second.

    flops_per_clock: of one multiprocessor; it gives the clock that the other peak is meant for.
    """

    name: str
    target: str
    multiprocessors: int
    flops: float
    flops_per_clock: int
    bandwidth: float

    @property
    def clock(self) -> float:
        """Cycles a second."""
        return self.flops / (self.multiprocessors * self.flops_per_clock)


# A100 (SXM, 80 GB): datasheet and "NVIDIA A100 Tensor Core GPU Architecture": 1410 MHz follow.
# H100 (SXM): datasheet and "NVIDIA H100 Tensor Core GPU Architecture", table 3: 1830 MHz follow, as it says.
# H200 (SXM): datasheet; the multiprocessors are those of the H100.
# B200 (1000 W): Blackwell datasheet (2.25 PFLOP/s, 8 TB/s). 148 multiprocessors, as the driver reports; 8192 per clock
# is twice Hopper's, and 1.86 GHz follow.
CHIPS = (
    Chip("A100", "sm_80", 108, 312e12, 2048, 2.039e12),
    Chip("H100", "sm_90", 132, 989.4e12, 4096, 3.35e12),
    Chip("H200", "sm_90", 132, 989.4e12, 4096, 4.8e12),
    Chip("B200", "sm_100", 148, 2250e12, 8192, 8.0e12),
)


@dataclass(frozen=True)
class Work:
    """What a kernel does in a whole call: tiles of pairs in its full and in its partial loop, bytes it has to move."""

    full: int
    partial: int
    bytes: int


@dataclass(frozen=True)
class Roofline:
    """Microseconds that a kernel takes at least, were each of these all that it did. The longest is its bound."""

    tensor: float
    issue: float
    memory: float

    @property
    def bound(self) -> str:
        """What takes the longest."""
        return max(("tensor", "issue", "memory"), key=lambda name: float(getattr(self, name)))


# How many products of pairs with columns of (q or k, v) a pass computes.
DOTS: Mapping[str, tuple[int, int]] = {
    "forward_kernel": (1, 1),
    "backward_queries_kernel": (2, 1),
    "backward_keys_kernel": (2, 2),
}


def roofline(
    chip: Chip, work: Work, entry: str, dims: tuple[int, int], tile: tuple[int, int], warps: int, loops: tuple[int, int]
) -> Roofline:
    """The least times of a kernel with 16-bit operands; loops: instructions of a turn of the full and the partial loop.

    Instructions are issued one per cycle and scheduler; what a program does outside its loops is left out.
    """
    depth = sum(n * columns(dim).padded for n, dim in zip(DOTS[entry], dims, strict=True))
    flops = 2 * (work.full + work.partial) * tile[0] * tile[1] * depth
    issued = (work.full * loops[0] + work.partial * loops[1]) * warps
    return Roofline(
        tensor=round(1e6 * flops / chip.flops, 1),
        issue=round(1e6 * issued / (chip.multiprocessors * SCHEDULERS * chip.clock), 1),
        memory=round(1e6 * work.bytes / chip.bandwidth, 1),
    )


def moved(entry: str, dims: tuple[int, int], dtype: str, rows: int) -> int:
    """Bytes that a pass reads and writes once: q, k, v, the output and their gradients, and numbers of rows.

    rows: of q, and of k and v as well.
    """
    qk, v = (rows * dim * DTYPES[dtype] for dim in dims)
    match entry:
        case "forward_kernel":
            return 2 * qk + 2 * v + 4 * rows
        case "backward_queries_kernel":
            return 3 * qk + 2 * v + 8 * rows
        case _:
            return 3 * qk + 3 * v + 8 * rows
