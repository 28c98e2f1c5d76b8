"""The text of the backward kernels: row terms, then dQ owned by query tiles, then dK and dV owned by key tiles.

Each gradient tile has one owner that walks its runs of tiles in order, so nothing is accumulated by atomics and equal
calls give equal bits. The kernel that owns keys computes S^T = K Q^T and never transposes an accumulator.
"""

from maskc.codegen.expression import Names, Symbols, Writer, shown
from maskc.codegen.settle import LOG2_E, Depends
from maskc.codegen.template import Lines, Score, exponent, fill, keep_lines, score_lines, walk_next, walk_start
from maskc.expr import Side
from maskc.spec import MaskSpec

ROWS = '''
# No value of an argument is specialised on: new lengths, strides and parameters never compile anything.
@triton.jit(do_not_specialize=<<plain>>)
def backward_rows_kernel(
    out, d_out, lse, d_lse, delta, bound,
    d_out_batch_stride: tl.int64, d_out_head_stride: tl.int64, d_out_row_stride: tl.int64, d_out_dim_stride: tl.int64,
    heads: tl.int32, q_len: tl.int32,
    D_V: tl.constexpr, BLOCK_Q: tl.constexpr, ALIGN: tl.constexpr, INTEGER: tl.constexpr,
):
    """Of every row delta = dO . O - dLSE, and bound = log-sum-exp in base 2, +inf for empty rows."""
    q_tiles = tl.cdiv(q_len, BLOCK_Q)
    program = tl.program_id(0)
    head = program // q_tiles % heads
    batch = program // (q_tiles * heads)
    q_rows = program % q_tiles * BLOCK_Q + tl.arange(0, BLOCK_Q)
    q_exists = q_rows < q_len
    dims_v = tl.arange(0, D_V)
    first_row = (batch * heads + head).to(tl.int64) * q_len

    out_pointers = out + first_row * D_V + q_rows.to(INTEGER)[:, None] * D_V + dims_v[None, :]
    d_out += (batch.to(tl.int64) * d_out_batch_stride + head.to(tl.int64) * d_out_head_stride) * ALIGN
    d_out_columns = dims_v if ALIGN > 1 else dims_v * d_out_dim_stride.to(INTEGER)
    d_out_rows = q_rows.to(INTEGER)[:, None] * (d_out_row_stride.to(INTEGER) * ALIGN)
    out_tile = tl.load(out_pointers, mask=q_exists[:, None], other=0.0).to(tl.float32)
    d_out_tile = tl.load(d_out + d_out_rows + d_out_columns[None, :], mask=q_exists[:, None], other=0.0).to(tl.float32)
    row_delta = tl.sum(out_tile * d_out_tile, 1)
    if d_lse is not None:
        row_delta -= tl.load(d_lse + first_row + q_rows, mask=q_exists, other=0.0)
    row_lse = tl.load(lse + first_row + q_rows, mask=q_exists, other=0.0)
    row_bound = tl.where(row_lse == float("-inf"), float("inf"), row_lse * <<log2_e>>)
    tl.store(delta + first_row + q_rows, row_delta, mask=q_exists)
    tl.store(bound + first_row + q_rows, row_bound, mask=q_exists)
'''

QUERIES = '''
# No value of an argument is specialised on: new lengths, strides and parameters never compile anything.
@triton.jit(do_not_specialize=<<plain>>)
def backward_queries_kernel(
    q, k, v, d_out, delta, bound, d_q,
    full_first, full_tiles, full_start, full_stop,
    partial_first, partial_tiles, partial_start, partial_stop,
    map_batch_stride: tl.int32, map_head_stride: tl.int32,
    q_batch_stride: tl.int64, q_head_stride: tl.int64, q_row_stride: tl.int64, q_dim_stride: tl.int64,
    k_batch_stride: tl.int64, k_head_stride: tl.int64, k_row_stride: tl.int64, k_dim_stride: tl.int64,
    v_batch_stride: tl.int64, v_head_stride: tl.int64, v_row_stride: tl.int64, v_dim_stride: tl.int64,
    d_out_batch_stride: tl.int64, d_out_head_stride: tl.int64, d_out_row_stride: tl.int64, d_out_dim_stride: tl.int64,
    batches: tl.int32, heads: tl.int32, group: tl.int32, q_len: tl.int32, k_len: tl.int32, scale: tl.float32,
    <<mask_arguments>>
    D_QK: tl.constexpr, D_V: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    ALIGN: tl.constexpr, INTEGER: tl.constexpr, PRECISION: tl.constexpr,
):
    """The gradient of one tile of queries of one head."""
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
    d_out_row_stride = d_out_row_stride.to(INTEGER) * ALIGN
    q += (batch.to(tl.int64) * q_batch_stride + head.to(tl.int64) * q_head_stride) * ALIGN
    k += (batch.to(tl.int64) * k_batch_stride + kv_head.to(tl.int64) * k_head_stride) * ALIGN
    v += (batch.to(tl.int64) * v_batch_stride + kv_head.to(tl.int64) * v_head_stride) * ALIGN
    d_out += (batch.to(tl.int64) * d_out_batch_stride + head.to(tl.int64) * d_out_head_stride) * ALIGN
    if ALIGN > 1:
        q = tl.multiple_of(q, 16)
        k = tl.multiple_of(k, 16)
        v = tl.multiple_of(v, 16)
        d_out = tl.multiple_of(d_out, 16)

    q_rows = q_tile_index * BLOCK_Q + tl.arange(0, BLOCK_Q)
    q_exists = q_rows < q_len
    key_lanes = tl.arange(0, BLOCK_K)
    dims_qk = tl.arange(0, D_QK)
    dims_v = tl.arange(0, D_V)
    q_columns = dims_qk if ALIGN > 1 else dims_qk * q_dim_stride.to(INTEGER)
    k_columns = dims_qk if ALIGN > 1 else dims_qk * k_dim_stride.to(INTEGER)
    v_columns = dims_v if ALIGN > 1 else dims_v * v_dim_stride.to(INTEGER)
    d_out_columns = dims_v if ALIGN > 1 else dims_v * d_out_dim_stride.to(INTEGER)
    q_pointers = q + q_rows.to(INTEGER)[:, None] * q_row_stride + q_columns[None, :]
    k_pointers = k + key_lanes.to(INTEGER)[:, None] * k_row_stride + k_columns[None, :]
    v_pointers = v + key_lanes.to(INTEGER)[:, None] * v_row_stride + v_columns[None, :]
    d_out_pointers = d_out + q_rows.to(INTEGER)[:, None] * d_out_row_stride + d_out_columns[None, :]
    q_tile = tl.load(q_pointers, mask=q_exists[:, None], other=0.0)
    d_out_tile = tl.load(d_out_pointers, mask=q_exists[:, None], other=0.0)
    first_row = (batch * heads + head).to(tl.int64) * q_len
    row_delta = tl.load(delta + first_row + q_rows, mask=q_exists, other=0.0)
    row_bound = tl.load(bound + first_row + q_rows, mask=q_exists, other=float("inf"))

    <<prelude>>
    <<outer>>

    scale_log2 = tl.full((), scale, tl.float32) * <<log2_e>>
    d_q_tile = tl.zeros((BLOCK_Q, D_QK), tl.float32)
    map_row = (batch * map_batch_stride + head * map_head_stride) * q_tiles + q_tile_index

    # Full tiles: every pair is kept and exists. What the next tile needs from the plan is loaded one tile ahead.
    <<full_start>>
    for step in range(tiles):
        <<full_keys>>
        <<full_inner>>
        k_tile = tl.load(k_pointers + tile.to(INTEGER) * (BLOCK_K * k_row_stride))
        v_tile = tl.load(v_pointers + tile.to(INTEGER) * (BLOCK_K * v_row_stride))
        products = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION)
        <<full_pair>>
        weights = tl.exp2(<<full_exponent>>)
        d_weights = tl.dot(d_out_tile, tl.trans(v_tile), input_precision=PRECISION)
        d_products = <<full_gradient>>
        d_q_tile = tl.dot(d_products.to(k_tile.dtype), k_tile, d_q_tile, input_precision=PRECISION)
        <<full_next>>

    # Partial tiles: the predicate decides each pair. Keys behind the last one are read as 0 and never kept.
    <<partial_start>>
    for step in range(tiles):
        k_rows = tile * BLOCK_K + key_lanes
        k_exists = k_rows < k_len
        <<partial_inner>>
        k_tile = tl.load(k_pointers + tile.to(INTEGER) * (BLOCK_K * k_row_stride), mask=k_exists[:, None], other=0.0)
        v_tile = tl.load(v_pointers + tile.to(INTEGER) * (BLOCK_K * v_row_stride), mask=k_exists[:, None], other=0.0)
        products = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION)
        <<partial_pair>>
        <<keep>>
        weights = tl.where(keep, tl.exp2(<<partial_exponent>>), 0.0)
        d_weights = tl.dot(d_out_tile, tl.trans(v_tile), input_precision=PRECISION)
        d_products = <<partial_gradient>>
        d_q_tile = tl.dot(d_products.to(k_tile.dtype), k_tile, d_q_tile, input_precision=PRECISION)
        <<partial_next>>

    d_q = tl.multiple_of(d_q + first_row * D_QK, 16)
    d_q_pointers = d_q + q_rows.to(INTEGER)[:, None] * D_QK + dims_qk[None, :]
    tl.store(d_q_pointers, (d_q_tile * scale).to(d_q.dtype.element_ty), mask=q_exists[:, None])
'''

KEYS = '''
# No value of an argument is specialised on: new lengths, strides and parameters never compile anything.
@triton.jit(do_not_specialize=<<plain>>)
def backward_keys_kernel(
    q, k, v, d_out, delta, bound, d_k, d_v,
    full_first, full_tiles, full_start, full_stop,
    partial_first, partial_tiles, partial_start, partial_stop,
    map_batch_stride: tl.int32, map_head_stride: tl.int32,
    q_batch_stride: tl.int64, q_head_stride: tl.int64, q_row_stride: tl.int64, q_dim_stride: tl.int64,
    k_batch_stride: tl.int64, k_head_stride: tl.int64, k_row_stride: tl.int64, k_dim_stride: tl.int64,
    v_batch_stride: tl.int64, v_head_stride: tl.int64, v_row_stride: tl.int64, v_dim_stride: tl.int64,
    d_out_batch_stride: tl.int64, d_out_head_stride: tl.int64, d_out_row_stride: tl.int64, d_out_dim_stride: tl.int64,
    batches: tl.int32, heads: tl.int32, group: tl.int32, q_len: tl.int32, k_len: tl.int32, scale: tl.float32,
    <<mask_arguments>>
    D_QK: tl.constexpr, D_V: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    ALIGN: tl.constexpr, INTEGER: tl.constexpr, PRECISION: tl.constexpr,
):
    """The gradients of one tile of keys and values of one KV head: sums over the query heads that share it.

    Tiles of pairs have keys as rows and queries as columns.
    """
    k_tiles = tl.cdiv(k_len, BLOCK_K)
    program = tl.program_id(0)
    k_tile_index = program % k_tiles
    kv_heads = heads // group
    kv_head = program // k_tiles % kv_heads
    batch = program // (k_tiles * kv_heads)

    # Strides count units of ALIGN elements (16 bytes), which tells the compiler that rows may be copied asynchronously.
    q_row_stride = q_row_stride.to(INTEGER) * ALIGN
    k_row_stride = k_row_stride.to(INTEGER) * ALIGN
    v_row_stride = v_row_stride.to(INTEGER) * ALIGN
    d_out_row_stride = d_out_row_stride.to(INTEGER) * ALIGN
    k += (batch.to(tl.int64) * k_batch_stride + kv_head.to(tl.int64) * k_head_stride) * ALIGN
    v += (batch.to(tl.int64) * v_batch_stride + kv_head.to(tl.int64) * v_head_stride) * ALIGN
    if ALIGN > 1:
        k = tl.multiple_of(k, 16)
        v = tl.multiple_of(v, 16)

    k_rows = k_tile_index * BLOCK_K + tl.arange(0, BLOCK_K)
    k_exists = k_rows < k_len
    query_lanes = tl.arange(0, BLOCK_Q)
    dims_qk = tl.arange(0, D_QK)
    dims_v = tl.arange(0, D_V)
    q_columns = dims_qk if ALIGN > 1 else dims_qk * q_dim_stride.to(INTEGER)
    k_columns = dims_qk if ALIGN > 1 else dims_qk * k_dim_stride.to(INTEGER)
    v_columns = dims_v if ALIGN > 1 else dims_v * v_dim_stride.to(INTEGER)
    d_out_columns = dims_v if ALIGN > 1 else dims_v * d_out_dim_stride.to(INTEGER)
    q_offsets_in_tile = query_lanes.to(INTEGER)[:, None] * q_row_stride + q_columns[None, :]
    d_out_offsets_in_tile = query_lanes.to(INTEGER)[:, None] * d_out_row_stride + d_out_columns[None, :]
    k_pointers = k + k_rows.to(INTEGER)[:, None] * k_row_stride + k_columns[None, :]
    v_pointers = v + k_rows.to(INTEGER)[:, None] * v_row_stride + v_columns[None, :]
    k_tile = tl.load(k_pointers, mask=k_exists[:, None], other=0.0)
    v_tile = tl.load(v_pointers, mask=k_exists[:, None], other=0.0)

    <<prelude>>

    scale_log2 = tl.full((), scale, tl.float32) * <<log2_e>>
    d_k_tile = tl.zeros((BLOCK_K, D_QK), tl.float32)
    d_v_tile = tl.zeros((BLOCK_K, D_V), tl.float32)

    for member in range(group):
        head = kv_head * group + member
        head_q = q + (batch.to(tl.int64) * q_batch_stride + head.to(tl.int64) * q_head_stride) * ALIGN
        head_d_out = d_out + (batch.to(tl.int64) * d_out_batch_stride + head.to(tl.int64) * d_out_head_stride) * ALIGN
        if ALIGN > 1:
            head_q = tl.multiple_of(head_q, 16)
            head_d_out = tl.multiple_of(head_d_out, 16)
        q_pointers = head_q + q_offsets_in_tile
        d_out_pointers = head_d_out + d_out_offsets_in_tile
        first_row = (batch * heads + head).to(tl.int64) * q_len
        delta_pointers = delta + first_row + query_lanes
        bound_pointers = bound + first_row + query_lanes
        map_row = (batch * map_batch_stride + head * map_head_stride) * k_tiles + k_tile_index

        <<outer>>

        # Full tiles: every pair is kept and exists. What the next tile needs from the plan is loaded one tile ahead.
        <<full_start>>
        for step in range(tiles):
            <<full_keys>>
            <<full_inner>>
            q_tile = tl.load(q_pointers + tile.to(INTEGER) * (BLOCK_Q * q_row_stride))
            products = tl.dot(k_tile, tl.trans(q_tile), input_precision=PRECISION)
            row_bound = tl.load(bound_pointers + tile * BLOCK_Q)
            <<full_pair>>
            weights = tl.exp2(<<full_exponent>>)
            d_out_tile = tl.load(d_out_pointers + tile.to(INTEGER) * (BLOCK_Q * d_out_row_stride))
            d_v_tile = tl.dot(weights.to(d_out_tile.dtype), d_out_tile, d_v_tile, input_precision=PRECISION)
            row_delta = tl.load(delta_pointers + tile * BLOCK_Q)
            d_weights = tl.dot(v_tile, tl.trans(d_out_tile), input_precision=PRECISION)
            d_products = <<full_gradient>>
            d_k_tile = tl.dot(d_products.to(q_tile.dtype), q_tile, d_k_tile, input_precision=PRECISION)
            <<full_next>>

        # Partial tiles: the predicate decides each pair. Queries behind the last one are read as 0 and never kept.
        <<partial_start>>
        for step in range(tiles):
            q_rows = tile * BLOCK_Q + query_lanes
            q_exists = q_rows < q_len
            <<partial_inner>>
            q_row_pointers = q_pointers + tile.to(INTEGER) * (BLOCK_Q * q_row_stride)
            q_tile = tl.load(q_row_pointers, mask=q_exists[:, None], other=0.0)
            products = tl.dot(k_tile, tl.trans(q_tile), input_precision=PRECISION)
            row_bound = tl.load(bound_pointers + tile * BLOCK_Q, mask=q_exists, other=float("inf"))
            <<partial_pair>>
            <<keep>>
            weights = tl.where(keep, tl.exp2(<<partial_exponent>>), 0.0)
            d_out_row_pointers = d_out_pointers + tile.to(INTEGER) * (BLOCK_Q * d_out_row_stride)
            d_out_tile = tl.load(d_out_row_pointers, mask=q_exists[:, None], other=0.0)
            d_v_tile = tl.dot(weights.to(d_out_tile.dtype), d_out_tile, d_v_tile, input_precision=PRECISION)
            row_delta = tl.load(delta_pointers + tile * BLOCK_Q, mask=q_exists, other=0.0)
            d_weights = tl.dot(v_tile, tl.trans(d_out_tile), input_precision=PRECISION)
            d_products = <<partial_gradient>>
            d_k_tile = tl.dot(d_products.to(q_tile.dtype), q_tile, d_k_tile, input_precision=PRECISION)
            <<partial_next>>

    first_row = (batch * kv_heads + kv_head).to(tl.int64) * k_len
    d_k = tl.multiple_of(d_k + first_row * D_QK, 16)
    d_v = tl.multiple_of(d_v + first_row * D_V, 16)
    d_k_pointers = d_k + k_rows.to(INTEGER)[:, None] * D_QK + dims_qk[None, :]
    d_v_pointers = d_v + k_rows.to(INTEGER)[:, None] * D_V + dims_v[None, :]
    tl.store(d_k_pointers, (d_k_tile * scale).to(d_k.dtype.element_ty), mask=k_exists[:, None])
    tl.store(d_v_pointers, d_v_tile.to(d_v.dtype.element_ty), mask=k_exists[:, None])
'''


def rows_kernel(plain: str) -> str:
    """The text of the kernel that computes what the others need of each row."""
    return fill(ROWS, {"plain": plain, "log2_e": repr(LOG2_E)})


def owned_kernel(
    spec: MaskSpec, owner: Side, symbols: Symbols, names: Names, arguments: Lines, plain: str
) -> tuple[str, bool]:
    """The text of the kernel whose programs own tiles of one side, and whether float64 arithmetic decides pairs in it.

    arguments: the lines that declare what the mask reads; plain: the arguments that are never specialised on.
    """
    score = Score(spec)
    writer = Writer(spec, owner, symbols, names)
    bound = "row_bound[:, None]" if owner is Side.Q else "row_bound[None, :]"
    delta = bound.replace("row_bound", "row_delta")
    walked, end = ("k", Depends.K) if owner is Side.Q else ("q", Depends.Q)
    blanks: dict[str, str | Lines] = {"plain": plain, "mask_arguments": arguments, "log2_e": repr(LOG2_E)}
    for part in ("full", "partial"):
        body = writer.body(score.predicate if part == "partial" else None, score.changed, score.slope)
        if part == "partial":
            blanks["keep"] = keep_lines(score, writer, end, f"{walked}_exists")
        blanks[f"{part}_exponent"] = exponent(score, writer, owner, bound)
        blanks[f"{part}_gradient"] = gradient(score, writer, delta)
        blanks[f"{part}_inner"] = [str(a) for a in body.inner]
        blanks[f"{part}_pair"] = [*score_lines(score), *(str(a) for a in body.pair)]
        blanks[f"{part}_start"] = walk_start(part)
        blanks[f"{part}_next"] = walk_next(part)
        if part == "full":
            lanes = "tile * BLOCK_K + key_lanes" if owner is Side.Q else "tile * BLOCK_Q + query_lanes"
            blanks["full_keys"] = [f"{walked}_rows = {lanes}"] if body.inner else []
    blanks["prelude"] = [str(a) for a in writer.prelude]
    blanks["outer"] = [str(a) for a in writer.outer]
    return fill(QUERIES if owner is Side.Q else KEYS, blanks), writer.double


def gradient(score: Score, writer: Writer, delta: str) -> str:
    """The gradient of the scaled products; through a weight of 0 there is none, whatever the slope of the score."""
    if score.slope is None:
        return f"weights * (d_weights - {delta})"
    return (
        f"tl.where(weights == 0.0, 0.0, weights * (d_weights - {delta}) * {shown(writer.number(score.slope, 'slope'))})"
    )
