"""The text of the forward kernel: online softmax over the runs of full, then of partial key tiles."""

from maskc.codegen.expression import Names, Symbols, Writer
from maskc.codegen.settle import LOG2_E, Depends
from maskc.codegen.template import Lines, Score, fill, keep_lines, score_lines, scores_text, walk_next, walk_start
from maskc.expr import Side
from maskc.spec import MaskSpec

LN_2 = 0.6931471805599453

TEMPLATE = '''
# No value of an argument is specialised on: new lengths, strides and parameters never compile anything.
@triton.jit(do_not_specialize=<<plain>>)
def forward_kernel(
    q, k, v, out, lse,
    full_first, full_tiles, full_start, full_stop,
    partial_first, partial_tiles, partial_start, partial_stop,
    map_batch_stride: tl.int32, map_head_stride: tl.int32,
    q_batch_stride: tl.int64, q_head_stride: tl.int64, q_row_stride: tl.int64, q_dim_stride: tl.int64,
    k_batch_stride: tl.int64, k_head_stride: tl.int64, k_row_stride: tl.int64, k_dim_stride: tl.int64,
    v_batch_stride: tl.int64, v_head_stride: tl.int64, v_row_stride: tl.int64, v_dim_stride: tl.int64,
    batches: tl.int32, heads: tl.int32, group: tl.int32, q_len: tl.int32, k_len: tl.int32, scale: tl.float32,
    <<mask_arguments>>
    D_QK: tl.constexpr, D_V: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    ALIGN: tl.constexpr, INTEGER: tl.constexpr, PRECISION: tl.constexpr,
):
    """Output and log-sum-exp of one tile of queries of one head.

    Online softmax in base 2: of every row the highest score so far, the sum of its weights and the weighted sum of
    values.
    """
    q_tiles = tl.cdiv(q_len, BLOCK_Q)
    program = tl.program_id(0)
    q_tile_index = program % q_tiles
    head = program // q_tiles % heads
    batch = program // (q_tiles * heads)
    kv_head = head // group

    # Strides count units of ALIGN elements (16 bytes), which tells the compiler that rows may be copied asynchronously.
    q_row_stride = q_row_stride.to(INTEGER) * ALIGN
    k_row_stride = k_row_stride.to(INTEGER) * ALIGN
    v_row_stride = v_row_stride.to(INTEGER) * ALIGN
    q += (batch.to(tl.int64) * q_batch_stride + head.to(tl.int64) * q_head_stride) * ALIGN
    k += (batch.to(tl.int64) * k_batch_stride + kv_head.to(tl.int64) * k_head_stride) * ALIGN
    v += (batch.to(tl.int64) * v_batch_stride + kv_head.to(tl.int64) * v_head_stride) * ALIGN
    if ALIGN > 1:
        q = tl.multiple_of(q, 16)
        k = tl.multiple_of(k, 16)
        v = tl.multiple_of(v, 16)

    q_rows = q_tile_index * BLOCK_Q + tl.arange(0, BLOCK_Q)
    q_exists = q_rows < q_len
    key_lanes = tl.arange(0, BLOCK_K)
    dims_qk = tl.arange(0, D_QK)
    dims_v = tl.arange(0, D_V)
    q_columns = dims_qk if ALIGN > 1 else dims_qk * q_dim_stride.to(INTEGER)
    k_columns = dims_qk if ALIGN > 1 else dims_qk * k_dim_stride.to(INTEGER)
    v_columns = dims_v if ALIGN > 1 else dims_v * v_dim_stride.to(INTEGER)
    q_pointers = q + q_rows.to(INTEGER)[:, None] * q_row_stride + q_columns[None, :]
    k_pointers = k + key_lanes.to(INTEGER)[:, None] * k_row_stride + k_columns[None, :]
    v_pointers = v + key_lanes.to(INTEGER)[:, None] * v_row_stride + v_columns[None, :]
    q_tile = tl.load(q_pointers, mask=q_exists[:, None], other=0.0)
    <<flip>>

    <<prelude>>
    <<outer>>

    scale_log2 = <<scale>> * <<log2_e>>
    row_max = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    row_sum = tl.zeros((BLOCK_Q,), tl.float32)
    accumulator = tl.zeros((BLOCK_Q, D_V), tl.float32)
    map_row = (batch * map_batch_stride + head * map_head_stride) * q_tiles + q_tile_index

    # Full tiles: every pair is kept and exists. What the next tile needs from the plan is loaded one tile ahead.
    <<full_start>>
    for step in range(tiles):
        <<full_keys>>
        <<full_inner>>
        k_tile = tl.load(k_pointers + tile.to(INTEGER) * (BLOCK_K * k_row_stride))
        products = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION)
        <<full_pair>>
        <<full_scores>>
        v_tile = tl.load(v_pointers + tile.to(INTEGER) * (BLOCK_K * v_row_stride))
        row_sum = row_sum * decay + tl.sum(weights, 1)
        accumulator = tl.dot(weights.to(v_tile.dtype), v_tile, accumulator * decay[:, None], input_precision=PRECISION)
        row_max = highest
        <<full_next>>

    # Partial tiles: the predicate decides each pair. Keys behind the last one are read as 0 and never kept.
    <<partial_start>>
    for step in range(tiles):
        k_rows = tile * BLOCK_K + key_lanes
        k_exists = k_rows < k_len
        <<partial_inner>>
        k_tile = tl.load(k_pointers + tile.to(INTEGER) * (BLOCK_K * k_row_stride), mask=k_exists[:, None], other=0.0)
        products = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION)
        <<partial_pair>>
        <<keep>>
        scores = tl.where(keep, <<partial_scores>>, float("-inf"))
        <<from_scores>>
        v_tile = tl.load(v_pointers + tile.to(INTEGER) * (BLOCK_K * v_row_stride), mask=k_exists[:, None], other=0.0)
        row_sum = row_sum * decay + tl.sum(weights, 1)
        accumulator = tl.dot(weights.to(v_tile.dtype), v_tile, accumulator * decay[:, None], input_precision=PRECISION)
        row_max = highest
        <<partial_next>>

    # Every row is written: one that saw no key has output 0 and log-sum-exp -inf.
    empty = row_sum == 0.0
    divisor = tl.where(empty, 1.0, row_sum)
    result = accumulator / divisor[:, None]
    statistic = tl.where(empty, float("-inf"), (row_max + tl.log2(divisor)) * <<ln_2>>)
    first_row = (batch * heads + head).to(tl.int64) * q_len
    out = tl.multiple_of(out + first_row * D_V, 16)
    out_pointers = out + q_rows.to(INTEGER)[:, None] * D_V + dims_v[None, :]
    tl.store(out_pointers, result.to(out.dtype.element_ty), mask=q_exists[:, None])
    tl.store(lse + first_row + q_rows, statistic, mask=q_exists)
'''


# Without a change of the score the highest score of a row follows from its highest product, and the scale goes into one
# multiply-add. That needs a scale that keeps the order.
_FLIP = [
    "# The highest product gives the highest score only if the scale keeps their order: its sign goes to q, exactly.",
    "q_tile = tl.where(scale < 0, -q_tile, q_tile)",
]
_FROM_PRODUCTS = [
    "highest = tl.maximum(row_max, tl.max(products, 1) * scale_log2)",
    'base = tl.where(highest == float("-inf"), 0.0, highest)',
    "weights = tl.exp2(tl.fma(products, scale_log2, -base[:, None]))",
    "decay = tl.exp2(row_max - base)",
]
_FROM_SCORES = [
    "highest = tl.maximum(row_max, tl.max(scores, 1))",
    'base = tl.where(highest == float("-inf"), 0.0, highest)',
    "weights = tl.exp2(scores - base[:, None])",
    "decay = tl.exp2(row_max - base)",
]


def kernel(spec: MaskSpec, symbols: Symbols, names: Names, arguments: Lines, plain: str) -> tuple[str, bool]:
    """The text of the forward kernel, and whether float64 arithmetic decides something in it.

    arguments: the lines that declare what the mask reads; plain: the arguments that are never specialised on.
    """
    score = Score(spec)
    writer = Writer(spec, Side.Q, symbols, names)
    full = writer.body(score.changed)
    full_scores = _FROM_PRODUCTS if score.plain else [f"scores = {scores_text(score, writer, Side.Q)}", *_FROM_SCORES]
    partial = writer.body(score.predicate, score.changed)
    keep = keep_lines(score, writer, Depends.K, "k_exists")
    partial_scores = "products * scale_log2" if score.plain else scores_text(score, writer, Side.Q)
    prepared = score_lines(score)
    text = fill(
        TEMPLATE,
        {
            "plain": plain,
            "mask_arguments": arguments,
            "flip": _FLIP if score.plain else [],
            "scale": "tl.abs(tl.full((), scale, tl.float32))" if score.plain else "tl.full((), scale, tl.float32)",
            "log2_e": repr(LOG2_E),
            "ln_2": repr(LN_2),
            "prelude": [str(a) for a in writer.prelude],
            "outer": [str(a) for a in writer.outer],
            "full_start": walk_start("full"),
            "full_keys": ["k_rows = tile * BLOCK_K + key_lanes"] if full.inner else [],
            "full_inner": [str(a) for a in full.inner],
            "full_pair": [*prepared, *(str(a) for a in full.pair)],
            "full_scores": full_scores,
            "full_next": walk_next("full"),
            "partial_start": walk_start("partial"),
            "partial_inner": [str(a) for a in partial.inner],
            "partial_pair": [*prepared, *(str(a) for a in partial.pair)],
            "keep": keep,
            "partial_scores": partial_scores,
            "from_scores": _FROM_SCORES,
            "partial_next": walk_next("partial"),
        },
    )
    return text, writer.double
