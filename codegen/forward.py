"""The text of the forward kernel: online softmax over the runs of full, then of partial key tiles."""

from maskc.codegen.expression import Names, Symbols, Writer
from maskc.codegen.form import Form
from maskc.codegen.settle import LOG2_E
from maskc.codegen.template import (
    Lines,
    Score,
    columns_lines,
    fill,
    formed,
    full_rows,
    keep_lines,
    score_lines,
    scores_text,
    walk_next,
    walk_start,
    widths_text,
)
from maskc.expr import Side
from maskc.spec import MaskSpec

LN_2 = 0.6931471805599453

TEMPLATE = '''
# No value of an argument is specialised on: new lengths, strides and parameters never compile anything.
@triton.jit(do_not_specialize=<<plain>>)
def forward_kernel(
    q, k, v, out, lse,
    <<contiguous>>full_first, full_tiles, full_runs, partial_first, partial_tiles, partial_runs,
    <<indexed>>full_first, full_tiles, full_list, partial_first, partial_tiles, partial_list,
    <<indexed>>q_positions, k_positions, positions_stride: tl.int64,
    map_batch_stride: tl.int32, map_head_stride: tl.int32, q_tiles: tl.int32, splits: tl.int32,
    q_batch_stride: tl.int64, q_head_stride: tl.int64, q_row_stride: tl.int64, q_dim_stride: tl.int64,
    k_batch_stride: tl.int64, k_head_stride: tl.int64, k_row_stride: tl.int64, k_dim_stride: tl.int64,
    v_batch_stride: tl.int64, v_head_stride: tl.int64, v_row_stride: tl.int64, v_dim_stride: tl.int64,
    batches: tl.int32, heads: tl.int32, group: tl.int32, q_len: tl.int32, k_len: tl.int32, scale: tl.float32,
    <<mask_arguments>>
    D_QK: tl.constexpr, D_V: tl.constexpr, <<widths>>BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    ALIGN: tl.constexpr, INTEGER: tl.constexpr, PRECISION: tl.constexpr, ALIKE: tl.constexpr,
):
    """Output and log-sum-exp of one tile of queries of one head, over one of `splits` shares of its key tiles.

    Online softmax in base 2: of every row the highest score so far, the sum of its weights and the weighted sum of
    values.
    """
    shares = q_tiles * splits
    program = tl.program_id(0)
    q_tile_index = program % shares // splits
    split = program % splits
    head = program // shares % heads
    batch = program // (shares * heads)
    kv_head = head // group
    map_ = batch * map_batch_stride + head * map_head_stride
    map_row = map_ * shares + program % shares

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

    <<contiguous>>q_rows = q_tile_index * BLOCK_Q + tl.arange(0, BLOCK_Q)
    <<contiguous>>q_exists = q_rows < q_len
    <<indexed>>q_slots = q_tile_index * BLOCK_Q + tl.arange(0, BLOCK_Q)
    <<indexed>>q_rows = tl.load(q_positions + map_ * positions_stride + q_slots)
    <<indexed>>q_exists = q_rows >= 0
    key_lanes = tl.arange(0, BLOCK_K)
    <<indexed>>k_position_pointers = k_positions + key_lanes
    <<columns>>
    <<qk>>q_columns~ = dims_qk~ if ALIGN > 1 else dims_qk~ * q_dim_stride.to(INTEGER)
    <<qk>>k_columns~ = dims_qk~ if ALIGN > 1 else dims_qk~ * k_dim_stride.to(INTEGER)
    <<v>>v_columns~ = dims_v~ if ALIGN > 1 else dims_v~ * v_dim_stride.to(INTEGER)
    <<qk>>q_pointers~ = q + q_rows.to(INTEGER)[:, None] * q_row_stride + q_columns~[None, :]
    <<contiguous>><<qk>>k_pointers~ = k + key_lanes.to(INTEGER)[:, None] * k_row_stride + k_columns~[None, :]
    <<contiguous>><<v>>v_pointers~ = v + key_lanes.to(INTEGER)[:, None] * v_row_stride + v_columns~[None, :]
    <<qk>>q_tile~ = tl.load(q_pointers~<<where q_exists[:, None]>>)
    <<flip>>

    <<prelude>>
    <<outer>>

    scale_log2 = <<scale>> * <<log2_e>>
    row_max = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    row_sum = tl.zeros((BLOCK_Q,), tl.float32)
    <<v>>accumulator~ = tl.zeros((BLOCK_Q, <<width>>), tl.float32)

    # Full tiles: every pair is kept and exists. What the next tile needs from the plan is loaded one tile ahead.
    <<full_start>>
    for step in range(tiles):
        <<full_keys>>
        <<full_inner>>
        <<contiguous>>k_rows_at = tile.to(INTEGER) * (BLOCK_K * k_row_stride)
        <<contiguous>><<qk>>k_tile~ = tl.load(k_pointers~ + k_rows_at<<where>>)
        <<indexed>>k_rows_at = k_rows.to(INTEGER)[:, None] * k_row_stride
        <<indexed>><<qk>>k_row_pointers~ = k + k_rows_at + k_columns~[None, :]
        <<indexed>><<qk>>k_tile~ = tl.load(k_row_pointers~<<where>>)
        <<qk>>products = tl.dot(q_tile~, tl.trans(k_tile~)<<after products>>, input_precision=PRECISION)
        <<full_pair>>
        <<full_scores>>
        <<contiguous>>v_rows_at = k_rows_at if ALIKE else tile.to(INTEGER) * (BLOCK_K * v_row_stride)
        <<contiguous>><<v>>v_tile~ = tl.load(v_pointers~ + v_rows_at<<where>>)
        <<indexed>>v_rows_at = k_rows_at if ALIKE else k_rows.to(INTEGER)[:, None] * v_row_stride
        <<indexed>><<v>>v_row_pointers~ = v + v_rows_at + v_columns~[None, :]
        <<indexed>><<v>>v_tile~ = tl.load(v_row_pointers~<<where>>)
        row_sum = row_sum * decay + tl.sum(weights, 1)
        <<v>>accumulator~ *= decay[:, None]
        <<v>>accumulator~ = tl.dot(weights.to(v_tile~.dtype), v_tile~, accumulator~, input_precision=PRECISION)
        row_max = highest
        <<full_next>>

    # Partial tiles: the predicate decides each pair. Keys that do not exist are read as 0 and never kept.
    <<partial_start>>
    for step in range(tiles):
        <<contiguous>>k_rows = tile * BLOCK_K + key_lanes
        <<contiguous>>k_exists = k_rows < k_len
        <<indexed>>k_exists = k_rows >= 0
        <<partial_inner>>
        <<contiguous>>k_rows_at = tile.to(INTEGER) * (BLOCK_K * k_row_stride)
        <<contiguous>><<qk>>k_row_pointers~ = k_pointers~ + k_rows_at
        <<indexed>>k_rows_at = k_rows.to(INTEGER)[:, None] * k_row_stride
        <<indexed>><<qk>>k_row_pointers~ = k + k_rows_at + k_columns~[None, :]
        <<qk>>k_tile~ = tl.load(k_row_pointers~<<where k_exists[:, None]>>)
        <<qk>>products = tl.dot(q_tile~, tl.trans(k_tile~)<<after products>>, input_precision=PRECISION)
        <<partial_pair>>
        <<keep>>
        scores = tl.where(keep, <<partial_scores>>, float("-inf"))
        <<from_scores>>
        <<contiguous>>v_rows_at = k_rows_at if ALIKE else tile.to(INTEGER) * (BLOCK_K * v_row_stride)
        <<contiguous>><<v>>v_row_pointers~ = v_pointers~ + v_rows_at
        <<indexed>>v_rows_at = k_rows_at if ALIKE else k_rows.to(INTEGER)[:, None] * v_row_stride
        <<indexed>><<v>>v_row_pointers~ = v + v_rows_at + v_columns~[None, :]
        <<v>>v_tile~ = tl.load(v_row_pointers~<<where k_exists[:, None]>>)
        row_sum = row_sum * decay + tl.sum(weights, 1)
        <<v>>accumulator~ *= decay[:, None]
        <<v>>accumulator~ = tl.dot(weights.to(v_tile~.dtype), v_tile~, accumulator~, input_precision=PRECISION)
        row_max = highest
        <<partial_next>>

    # Every row is written: one that saw no key has output 0 and log-sum-exp -inf.
    empty = row_sum == 0.0
    divisor = tl.where(empty, 1.0, row_sum)
    statistic = tl.where(empty, float("-inf"), (row_max + tl.log2(divisor)) * <<ln_2>>)
    first_row = ((split.to(tl.int64) * batches + batch) * heads + head) * q_len
    out += first_row * D_V
    if D_V % 8 == 0:
        out = tl.multiple_of(out, 16)
    <<v>>out_pointers~ = out + q_rows.to(INTEGER)[:, None] * D_V + dims_v~[None, :]
    <<v>>result~ = (accumulator~ / divisor[:, None]).to(out.dtype.element_ty)
    <<v>>tl.store(out_pointers~, result~<<rows q_exists[:, None]>>)
    tl.store(lse + first_row + q_rows, statistic, mask=q_exists)
'''


# Without a change of the score the highest score of a row follows from its highest product, and the scale goes into one
# multiply-add. That needs a scale that keeps the order.
_FLIP = [
    "# The highest product gives the highest score only if the scale keeps their order: its sign goes to q, exactly.",
    "<<qk>>q_tile~ = tl.where(scale < 0, -q_tile~, q_tile~)",
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


def kernel(
    spec: MaskSpec, form: Form, symbols: Symbols, names: Names, arguments: Lines, plain: str
) -> tuple[str, bool]:
    """The text of the forward kernel, and whether float64 arithmetic decides something in it.

    arguments: the lines that declare what the mask reads; plain: the arguments that are never specialised on.
    """
    score = Score(spec, spec.predicate if form.predicate is None else form.predicate)
    writer = Writer(spec, Side.Q, symbols, names, indexed=form.indexed)
    full = writer.body(score.changed)
    full_scores = _FROM_PRODUCTS if score.plain else [f"scores = {scores_text(score, writer, Side.Q)}", *_FROM_SCORES]
    partial = writer.body(score.predicate, score.changed)
    keep = keep_lines(score, writer, "k_exists")
    partial_scores = "products * scale_log2" if score.plain else scores_text(score, writer, Side.Q)
    prepared = score_lines(score)
    text = fill(
        TEMPLATE,
        form,
        {
            "plain": plain,
            "mask_arguments": arguments,
            "widths": widths_text(form),
            "columns": columns_lines(form),
            "flip": [*formed(_FLIP, form)] if score.plain else [],
            "scale": "tl.abs(tl.full((), scale, tl.float32))" if score.plain else "tl.full((), scale, tl.float32)",
            "log2_e": repr(LOG2_E),
            "ln_2": repr(LN_2),
            "prelude": [str(a) for a in writer.prelude],
            "outer": [str(a) for a in writer.outer],
            "full_start": walk_start("full", form, Side.K),
            "full_keys": full_rows(form, Side.K) if full.inner else [],
            "full_inner": [str(a) for a in full.inner],
            "full_pair": [*prepared, *(str(a) for a in full.pair)],
            "full_scores": full_scores,
            "full_next": walk_next("full", form, Side.K),
            "partial_start": walk_start("partial", form, Side.K),
            "partial_inner": [str(a) for a in partial.inner],
            "partial_pair": [*prepared, *(str(a) for a in partial.pair)],
            "keep": keep,
            "partial_scores": partial_scores,
            "from_scores": _FROM_SCORES,
            "partial_next": walk_next("partial", form, Side.K),
        },
    )
    return text, writer.double
