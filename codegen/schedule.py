"""Which tile, how many warps and how deep a pipeline: a table per target, and a model that keeps what cannot fit out.

Nothing is measured at run time. The table (`table.py`) lists configurations best first; the first one whose shared
memory, tensor memory and registers fit by the model is taken, and the smallest fits every target. The model is held
against the compiler's own figures by `tests/kernels/test_schedule.py` and `benchmarks/static.py`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, assert_never

from maskc.codegen.columns import columns
from maskc.codegen.table import FALLBACK, TABLE
from maskc.diagnostics import MaskUnsupportedError

Pass = Literal["forward", "queries", "keys"]
"""The forward kernel, the backward kernel that owns queries (dQ), and the one that owns keys (dK, dV)."""

LARGEST = 256
"""The largest head dim."""
DTYPES = {"fp16": 2, "bf16": 2, "fp32": 4}


@dataclass(frozen=True)
class Target:
    """What a chip offers one program: shared memory in bytes, lanes per warp, registers (32 bits) per lane.

    dots: where dots have their operands. `mma`: registers, through shared memory. `wgmma`: shared memory, also for
    copies under way. `tcgen05`: the same, with results in tensor memory. `mfma`: registers, AMD.
    processors: multiprocessors of a usual chip, for what is said without one; launches ask the device.
    """

    name: str
    backend: Literal["cuda", "hip"]
    dots: Literal["mma", "wgmma", "tcgen05", "mfma"]
    shared: int
    warp: int
    registers: int
    processors: int

    def __str__(self) -> str:
        return self.name


_KIB = 1024
TARGETS = {
    target.name: target
    for target in (
        Target("sm_80", "cuda", "mma", 163 * _KIB, 32, 255, 108),
        Target("sm_86", "cuda", "mma", 99 * _KIB, 32, 255, 84),
        Target("sm_89", "cuda", "mma", 99 * _KIB, 32, 255, 128),
        Target("sm_90", "cuda", "wgmma", 227 * _KIB, 32, 255, 132),
        Target("sm_100", "cuda", "tcgen05", 227 * _KIB, 32, 255, 148),
        Target("sm_103", "cuda", "tcgen05", 227 * _KIB, 32, 255, 148),
        Target("sm_120", "cuda", "mma", 99 * _KIB, 32, 255, 170),
        Target("gfx942", "hip", "mfma", 64 * _KIB, 64, 512, 304),
    )
}

TENSOR_COLUMNS = 512
"""Columns of tensor memory, where a target has it: 128 rows of 32 bits each."""


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


@dataclass(frozen=True)
class Loads:
    """Bytes that a mask reads from its inputs: for every query, for every key and for every pair of a tile."""

    query: int = 0
    key: int = 0
    pair: int = 0


NO_LOADS = Loads()


@dataclass(frozen=True)
class Needs:
    """What a program needs at most: bytes of shared memory, registers per lane, columns of tensor memory."""

    shared: int
    registers: int
    columns: int


def target_named(name: str) -> Target:
    """A target by name, `sm_90` or `gfx942`; MaskUnsupportedError lists the known ones."""
    if name not in TARGETS:
        raise MaskUnsupportedError(f"no target '{name}'; known are {', '.join(TARGETS)}")
    return TARGETS[name]


@lru_cache(maxsize=1024)
def configuration(
    target: Target,
    dims: tuple[int, int],
    dtype: str,
    pass_: Pass,
    heavy: bool = False,
    indexed: bool = False,
    loads: Loads = NO_LOADS,
    aligned: bool = True,
) -> Configuration:
    """The configuration for head dims (D_qk, D_v), a dtype (`fp16`, `bf16`, `fp32`) and a kernel.

    heavy: as `KernelSource.heavy`. indexed: whether the plan gives positions. loads: what the mask reads, by `loads`.
    aligned: as `Variant.aligned`.
    """
    return fitting(target, dims, dtype, pass_, heavy, indexed, loads, aligned)[0]


def fitting(
    target: Target,
    dims: tuple[int, int],
    dtype: str,
    pass_: Pass,
    heavy: bool = False,
    indexed: bool = False,
    loads: Loads = NO_LOADS,
    aligned: bool = True,
) -> tuple[Configuration, ...]:
    """All configurations that fit, best first, down to the smallest, which fits every chip.

    MaskUnsupportedError for a mask that reads so much from inputs that its reads alone fill the shared memory.
    """
    check(dims, dtype)
    kind = kind_of(target, dims, dtype, pass_, heavy, indexed)
    row = next((row.best for row in table() if row.serves(kind)), ())
    offered = dict.fromkeys((*row, *_configurations(FALLBACK)))
    needed = {c: needs(target, c, dims, dtype, pass_, loads, aligned) for c in offered}
    found = [c for c in offered if fits(target, needed[c], dims, aligned)]
    smallest = min(offered, key=lambda c: c.block_q * c.block_k)
    if needed[smallest].shared > target.shared:
        raise MaskUnsupportedError(
            f"the mask reads {loads.pair} bytes for every pair of a tile, which fits {target} at no size of tiles"
        )
    # Too few registers cost time where too little memory refuses a launch: the smallest one is always there.
    return tuple(dict.fromkeys((*found, smallest)))


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


def splits(processors: int, programs: int, longest: int) -> int:
    """Into how many shares the forward deals the key tiles of every query tile, so that few programs fill a chip.

    processors: of the chip. programs: without shares. longest: key tiles of the longest row of the plan. 1 where half
    of the processors have work; else as many as fill the chip once, of at least 4 key tiles each, at most 32.
    """
    if programs == 0 or 2 * programs >= processors:
        return 1
    return max(1, min(processors // programs, longest // _LEAST_SHARE, _MOST_SHARES))


_LEAST_SHARE = 4
_MOST_SHARES = 32


def fits(target: Target, need: Needs, dims: tuple[int, int], aligned: bool = True) -> bool:
    """Whether a target has what a program needs.

    Registers: on sm_90 nothing is taken that spills in a loop, up to 128 columns, or 64 where rows are not copied
    asynchronously. Beyond, and on other chips, a few spills cost less than the smaller tile does.
    """
    widest = max(columns(dim).padded for dim in dims)
    strict = target.dots in ("wgmma", "mfma") and widest <= (_STRICT if aligned else _STRICT_UNALIGNED)
    registers = target.registers if strict else target.registers + _SPILLED
    return need.shared <= target.shared and need.columns <= TENSOR_COLUMNS and need.registers <= registers


_STRICT = 128
_STRICT_UNALIGNED = 64
_SPILLED = 36


@dataclass(frozen=True)
class _Tile:
    """Sizes that the model is made of, in elements; the pipeline holds what is walked.

    rows: owned by the program. owned, walked: of one tile of the side. pairs. accumulators: float32 results.
    """

    rows: int
    owned: int
    walked: int
    pairs: int
    accumulators: int


def _tile(c: Configuration, dims: tuple[int, int], pass_: Pass) -> _Tile:
    qk, v = (columns(dim).padded for dim in dims)
    pairs = c.block_q * c.block_k
    match pass_:
        case "forward":
            return _Tile(c.block_q, c.block_q * qk, c.block_k * (qk + v), pairs, c.block_q * v)
        case "queries":
            return _Tile(c.block_q, c.block_q * (qk + v), c.block_k * (qk + v), pairs, c.block_q * qk)
        case "keys":
            return _Tile(c.block_k, c.block_k * (qk + v), c.block_q * (qk + v), pairs, c.block_k * (qk + v))
        case _:
            assert_never(pass_)


def needs(
    target: Target,
    c: Configuration,
    dims: tuple[int, int],
    dtype: str,
    pass_: Pass,
    loads: Loads = NO_LOADS,
    aligned: bool = True,
) -> Needs:
    """What a kernel needs by the model: upper bounds for memory, an estimate for registers."""
    held = _registers(target, c, dims, dtype, pass_)
    held += 2 * (loads.query if pass_ == "keys" else loads.key) + 4 * loads.pair
    if not aligned:
        # What is not copied asynchronously passes through registers on its way to shared memory.
        held += _tile(c, dims, pass_).walked * DTYPES[dtype] // (4 * c.warps * target.warp)
    return Needs(
        _shared(target, c, dims, dtype, pass_) + _read_ahead(c, pass_, loads),
        held,
        _tensor_columns(target, c, dims, dtype, pass_),
    )


def _shared(target: Target, c: Configuration, dims: tuple[int, int], dtype: str, pass_: Pass) -> int:
    """Bytes of shared memory: what is owned, what is walked once per stage, and what goes through it between dots."""
    size, tile = DTYPES[dtype], _tile(c, dims, pass_)
    owned, walked, pairs = size * tile.owned, size * tile.walked, size * tile.pairs
    if pass_ == "keys":
        walked += 2 * 4 * c.block_q  # delta and bound of every query
    if c.stages == 1 and size == 2:
        # Without a pipeline what two dots take in different layouts lies there once for each.
        walked += {"forward": 0, "queries": size * c.block_k * columns(dims[0]).padded, "keys": walked}[pass_]
    # Vectors over queries or keys change their layout through it.
    vectors = 8 * (c.block_q + c.block_k) + 4 * tile.rows * c.warps
    # Dots that take operands from registers get tiles of pairs through it, where their layout has to change.
    through_registers = target.dots == "mma" or tile.rows < _WARP_GROUP_ROWS or size > 2
    staged = pairs if through_registers else 0
    match target.dots:
        case "mma":
            return owned + max(1, c.stages - 1) * walked + staged + vectors
        case "wgmma":
            return owned + c.stages * walked + staged + vectors
        case "tcgen05":
            return owned + c.stages * walked + _staged_for_tensor_memory(c, dims, size, pass_) + staged + vectors
        case "mfma":
            # What is owned goes to registers before the loop begins.
            return max(owned, max(1, c.stages - 1) * walked + pairs) + vectors
        case _:
            assert_never(target.dots)


_WARP_GROUP_ROWS = 64
"""Rows of the least tile that `wgmma` and `tcgen05` multiply; smaller ones run as `mma`."""


def _staged_for_tensor_memory(c: Configuration, dims: tuple[int, int], size: int, pass_: Pass) -> int:
    """Bytes of operands that are copied once more for `tcgen05`, and of barriers.

    Whatever is multiplied twice, once transposed, is; with a tail of columns tiles of pairs are, too.
    """
    qk, v = (columns(dim) for dim in dims)
    pairs = size * c.block_q * c.block_k if qk.tail or v.tail else 0
    match pass_:
        case "forward":
            return _KIB
        case "queries":
            return _KIB + size * c.block_k * qk.padded + pairs
        case "keys":
            return _KIB + size * c.block_q * (qk.padded + v.padded) + 8 * c.block_q + 2 * pairs
        case _:
            assert_never(pass_)


def _read_ahead(c: Configuration, pass_: Pass, loads: Loads) -> int:
    """Bytes of shared memory for what the mask reads in a loop: the pipeline copies it ahead, as it does keys."""
    walked = c.block_q * loads.query if pass_ == "keys" else c.block_k * loads.key
    return max(1, c.stages - 1) * (walked + c.block_q * c.block_k * loads.pair)


def _tensor_columns(target: Target, c: Configuration, dims: tuple[int, int], dtype: str, pass_: Pass) -> int:
    """Columns of tensor memory: results, tiles of pairs (again for a tail), and the weights as an operand."""
    if target.dots != "tcgen05" or _tile(c, dims, pass_).rows < _WARP_GROUP_ROWS or dtype == "fp32":
        return 0
    qk, v = (columns(dim) for dim in dims)
    match pass_:
        case "forward":
            return v.padded + c.block_k * (1 + bool(qk.tail)) + c.block_k // 2
        case "queries":
            return qk.padded + c.block_k * (2 + bool(qk.tail) + bool(v.tail))
        case "keys":
            return qk.padded + v.padded + c.block_q * (2 + bool(qk.tail) + bool(v.tail))
        case _:
            assert_never(pass_)


def _registers(target: Target, c: Configuration, dims: tuple[int, int], dtype: str, pass_: Pass) -> int:
    """Registers per lane: fitted so that what the compiler spills in loops for sm_90 lies above 255, the rest below."""
    tile = _tile(c, dims, pass_)
    lanes = c.warps * target.warp
    if target.dots == "mfma":
        return _mfma_registers(c, dims, dtype, pass_, lanes)
    # Warps beyond the rows of the tile share rows: each of them holds the tile of pairs.
    holders = min(lanes, max(4, tile.rows // 16) * target.warp)
    copied = tile.walked * DTYPES[dtype] / 16 / lanes  # addresses of 16 bytes each
    weight, base = _HELD[pass_]
    accumulators = tile.accumulators / lanes
    if target.dots == "tcgen05" and tile.rows >= _WARP_GROUP_ROWS:
        accumulators /= 2  # they are in tensor memory and pass through registers
    held = accumulators + weight * tile.pairs / holders + copied + base
    if dtype == "fp32":
        # An ordinary multiply-add takes its operands from registers: rows and columns of the lane's pairs.
        held += tile.pairs / lanes * max(columns(dim).padded for dim in dims) / 5
    return int(held)


_HELD: dict[Pass, tuple[float, int]] = {"forward": (1.5, 97), "queries": (1.5, 93), "keys": (3.5, 65)}
"""How many registers each pair takes, and how many all else does."""


def _mfma_registers(c: Configuration, dims: tuple[int, int], dtype: str, pass_: Pass, lanes: int) -> int:
    """The same for CDNA: every warp loads all that is walked, in each layout that a dot wants it in."""
    tile = _tile(c, dims, pass_)
    qk, v = (columns(dim).padded for dim in dims)
    walked = {"forward": tile.walked, "queries": c.block_k * (2 * qk + v), "keys": 2 * tile.walked}[pass_]
    operands = walked * DTYPES[dtype] / 4 / 64
    ahead = 1.9 if pass_ == "forward" or c.stages == 1 else 2.3
    pairs = (1.5 if pass_ == "forward" else 2.5) * tile.pairs
    used = int(ahead * ((tile.accumulators + pairs) / lanes + operands))
    # Eight warps have half of the registers each.
    return used * c.warps // 4


@dataclass(frozen=True)
class Kind:
    """What a row of the table is looked up by."""

    dots: str
    pass_: str
    dims: int
    bits: int
    mask: str
    plan: str


@dataclass(frozen=True)
class Row:
    """A row of the table."""

    kind: Kind
    best: tuple[Configuration, ...]

    def serves(self, asked: Kind) -> bool:
        """Whether the row speaks of a kind."""
        own = self.kind
        words = ((own.dots, asked.dots), (own.pass_, asked.pass_), (own.mask, asked.mask), (own.plan, asked.plan))
        return all(a in ("any", b) for a, b in words) and own.bits == asked.bits and asked.dims <= own.dims


def kind_of(target: Target, dims: tuple[int, int], dtype: str, pass_: Pass, heavy: bool, indexed: bool) -> Kind:
    """What the table is asked for a kernel."""
    widest = max(columns(dim).padded for dim in dims)
    mask, plan = "heavy" if heavy else "", "indexed" if indexed else ""
    return Kind(target.dots, pass_, widest, 8 * DTYPES[dtype], mask, plan)


@lru_cache(maxsize=1)
def table() -> tuple[Row, ...]:
    """The rows of the table, in its order."""
    return tuple(_rows())


def _rows() -> Iterator[Row]:
    for line in TABLE.strip().split("\n")[1:]:
        if line:
            dots, pass_, dims, bits, mask, plan, best = line.split(maxsplit=6)
            yield Row(Kind(dots, pass_, int(dims), int(bits), mask, plan), _configurations(best))


@lru_cache(maxsize=64)
def _configurations(text: str) -> tuple[Configuration, ...]:
    """Configurations as the table writes them: queries x keys / warps / stages."""
    return tuple(Configuration(*map(int, re.split("[x/]", word))) for word in text.split())
