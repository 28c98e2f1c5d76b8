"""The table of configurations: what each generation of chips runs best, by kernel and head dims.

    dots     how the chip's dots take their operands, see `schedule.Target`
    pass     as `schedule.Pass`
    dims     for head dims up to this many columns, as they are computed (`columns`); the wider one of both counts
    bits     of an element
    mask     `heavy` as `KernelSource.heavy`; `any` for the rest
    plan     `indexed` where the plan gives positions; `any` for the rest

A row with several words that fit is the first one that does. Configurations are queries x keys / warps / stages, best
first; `schedule` takes the first one that fits the chip and goes on to smaller ones behind the last. The tile is the
same whether the plan gives positions or not, because a plan is made for a tile.

Where the figures come from. For sm_90 `benchmarks/static.py`: instructions per pair of the loop of full tiles, without
accesses to local memory, at full depth of the pipeline. 64 keys: 128 save up to a fifth of the instructions at head dim
64, but tiles of sparse masks are crossed by borders, and every second one of a window would hold twice what it needs;
they spill, too, where the predicate or the gather takes registers. 128 queries of the forward and of dQ read keys half
as often as 64 do. Of head dims beyond 128 on sm_90, and of other chips, the compiled loops with the fewest instructions
per pair, those in local memory counted; FlexAttention's tables name the same tiles or neighbours of them. Dots of
float32 run on ordinary multiply-adds in NVIDIA chips, whose operands fill the registers, and take seconds to compile
where tiles are larger.
"""

TABLE = """
dots     pass      dims  bits  mask   plan     queries x keys / warps / stages

wgmma    forward    128    16  any    any      128x64/8/3 64x64/4/3
wgmma    forward    192    16  any    any      128x64/8/3 128x64/8/2 128x32/8/2
wgmma    forward    256    16  any    any      128x64/8/2 128x32/8/2

wgmma    queries    128    16  any    any      128x64/8/3 64x64/4/3
wgmma    queries    192    16  any    any      128x64/8/3 128x64/8/2 128x32/8/2
wgmma    queries    256    16  any    any      128x32/8/2

wgmma    keys        64    16  heavy  any      32x64/4/3 64x64/4/3
wgmma    keys        64    16  any    any      64x64/4/3 32x64/4/3
wgmma    keys       144    16  any    any      32x128/8/3
wgmma    keys       192    16  any    any      32x128/8/2 16x128/8/2
wgmma    keys       256    16  any    any      32x64/8/2

mma      forward     64    16  any    any      128x64/8/3 64x64/4/3
mma      forward    128    16  any    any      128x64/8/3 128x64/8/2 64x64/4/2
mma      forward    192    16  any    any      128x64/8/2 128x32/8/2 64x32/4/2
mma      forward    256    16  any    any      64x64/8/2 64x32/4/2

mma      queries     96    16  any    any      128x64/8/3 64x64/4/3 64x64/4/2
mma      queries    128    16  any    any      128x64/8/3 128x32/8/2 64x64/4/2
mma      queries    192    16  any    any      64x32/4/2
mma      queries    256    16  any    any      32x32/4/2

mma      keys        64    16  heavy  any      32x64/4/3 64x128/8/2
mma      keys        64    16  any    any      64x128/8/2 64x64/4/2 32x64/4/2
mma      keys       128    16  any    any      32x128/8/2 64x64/8/2 32x64/4/2
mma      keys       256    16  any    any      32x32/4/2

tcgen05  forward    192    16  any    any      128x64/8/3 128x64/8/2
tcgen05  forward    256    16  any    any      128x64/8/2 128x32/8/2

tcgen05  queries    128    16  any    any      128x64/8/3 64x64/4/3
tcgen05  queries    192    16  any    any      128x32/8/2 64x32/4/2
tcgen05  queries    256    16  any    any      64x32/4/2

tcgen05  keys        64    16  heavy  any      64x64/8/2 64x64/4/2
tcgen05  keys        64    16  any    any      64x64/4/2
tcgen05  keys       128    16  any    any      64x128/8/2 64x64/8/2
tcgen05  keys       256    16  any    any      32x32/4/2

mfma     forward    128    16  any    any      128x64/4/2 64x64/4/2
mfma     forward    192    16  any    any      64x64/4/2 64x32/4/2
mfma     forward    256    16  any    any      64x32/4/2
mfma     queries    128    16  any    any      64x64/4/2 64x32/4/2
mfma     queries    256    16  any    any      64x32/4/2 32x32/4/1
mfma     keys        64    16  any    any      32x64/4/2
mfma     keys       128    16  any    any      32x64/4/1 32x32/4/1
mfma     keys       256    16  any    any      16x32/4/1

any      any         64    32  any    any      32x32/4/2
any      any        256    32  any    any      32x32/8/2 16x32/4/2
"""

FALLBACK = "64x64/4/2 64x32/4/2 32x32/4/2 32x32/4/1 16x32/4/1 16x16/4/1"
"""What follows every row of the table; the last one fits all chips, dims and dtypes."""
