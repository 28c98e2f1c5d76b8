"""The text of the backward kernels: row terms, then dQ owned by query tiles, then dK and dV owned by key tiles.

Each gradient tile has one owner that walks its runs of tiles in order, so nothing is accumulated by atomics and equal
calls give equal bits. The kernel that owns keys computes S^T = K Q^T and never transposes an accumulator.
"""

from maskc.codegen.expression import Names, Symbols, Writer, shown
from maskc.codegen.form import Form
from maskc.codegen.settle import LOG2_E
from maskc.codegen.template import (
    Lines,
    Score,
    columns_lines,
    exponent,
    fill,
    full_rows,
    keep_lines,
    score_lines,
    walk_next,
    walk_start,
    widths_text,
)
from maskc.expr import Side
from maskc.spec import MaskSpec

ROWS = '''
# No value of an argument is specialised on: new lengths, strides and parameters never compile anything.
@triton.jit(do_not_specialize=<<plain>>)
def backward_rows_kernel(
    out, d_out, lse, d_lse, delta, bound,
    d_out_batch_stride: tl.int64, d_out_head_stride: tl.int64, d_out_row_stride: tl.int64, d_out_dim_stride: tl.int64,
    heads: tl.int32, q_len: tl.int32,
    D_V: tl.constexpr, PADDED_V: tl.constexpr, BLOCK_Q: tl.constexpr, ALIGN: tl.constexpr, INTEGER: tl.constexpr,
):
    """Of every row delta = dO . O - dLSE, and bound = log-sum-exp in base 2, +inf for empty rows."""
    q_tiles = tl.cdiv(q_len, BLOCK_Q)
    program = tl.program_id(0)
    head = program // q_tiles % heads
    batch = program // (q_tiles * heads)
    q_rows = program % q_tiles * BLOCK_Q + tl.arange(0, BLOCK_Q)
    q_exists = q_rows < q_len
    dims_v = tl.arange(0, PADDED_V)
    exists = q_exists[:, None] & (dims_v < D_V)[None, :]
    first_row = (batch * heads + head).to(tl.int64) * q_len

    out_pointers = out + first_row * D_V + q_rows.to(INTEGER)[:, None] * D_V + dims_v[None, :]
    d_out += (batch.to(tl.int64) * d_out_batch_stride + head.to(tl.int64) * d_out_head_stride) * ALIGN
    d_out_columns = dims_v if ALIGN > 1 else dims_v * d_out_dim_stride.to(INTEGER)
    d_out_rows = q_rows.to(INTEGER)[:, None] * (d_out_row_stride.to(INTEGER) * ALIGN)
    out_tile = tl.load(out_pointers, mask=exists, other=0.0).to(tl.float32)
    d_out_tile = tl.load(d_out + d_out_rows + d_out_columns[None, :], mask=exists, other=0.0).to(tl.float32)
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
    <<contiguous>>full_first, full_tiles, full_runs, partial_first, partial_tiles, partial_runs,
    <<indexed>>full_first, full_tiles, full_list, partial_first, partial_tiles, partial_list,
    <<indexed>>q_positions, k_positions, positions_stride: tl.int64,
    map_batch_stride: tl.int32, map_head_stride: tl.int32, q_tiles: tl.int32,
    q_batch_stride: tl.int64, q_head_stride: tl.int64, q_row_stride: tl.int64, q_dim_stride: tl.int64,
    k_batch_stride: tl.int64, k_head_stride: tl.int64, k_row_stride: tl.int64, k_dim_stride: tl.int64,
    v_batch_stride: tl.int64, v_head_stride: tl.int64, v_row_stride: tl.int64, v_dim_stride: tl.int64,
    d_out_batch_stride: tl.int64, d_out_head_stride: tl.int64, d_out_row_stride: tl.int64, d_out_dim_stride: tl.int64,
    batches: tl.int32, heads: tl.int32, group: tl.int32, q_len: tl.int32, k_len: tl.int32, scale: tl.float32,
    <<mask_arguments>>
    D_QK: tl.constexpr, D_V: tl.constexpr, <<widths>>BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    ALIGN: tl.constexpr, INTEGER: tl.constexpr, PRECISION: tl.constexpr, ADD: tl.constexpr,
    ALIKE: tl.constexpr,
):
    """The gradient of one tile of queries of one head."""
    program = tl.program_id(0)
    q_tile_index = program % q_tiles
    head = program // q_tiles % heads
    batch = program // (q_tiles * heads)
    kv_head = head // group
    map_ = batch * map_batch_stride + head * map_head_stride
    map_row = map_ * q_tiles + q_tile_index

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
    <<v>>d_out_columns~ = dims_v~ if ALIGN > 1 else dims_v~ * d_out_dim_stride.to(INTEGER)
    <<qk>>q_pointers~ = q + q_rows.to(INTEGER)[:, None] * q_row_stride + q_columns~[None, :]
    <<contiguous>><<qk>>k_pointers~ = k + key_lanes.to(INTEGER)[:, None] * k_row_stride + k_columns~[None, :]
    <<contiguous>><<v>>v_pointers~ = v + key_lanes.to(INTEGER)[:, None] * v_row_stride + v_columns~[None, :]
    <<v>>d_out_pointers~ = d_out + q_rows.to(INTEGER)[:, None] * d_out_row_stride + d_out_columns~[None, :]
    <<qk>>q_tile~ = tl.load(q_pointers~<<where q_exists[:, None]>>)
    <<v>>d_out_tile~ = tl.load(d_out_pointers~<<where q_exists[:, None]>>)
    first_row = (batch * heads + head).to(tl.int64) * q_len
    row_delta = tl.load(delta + first_row + q_rows, mask=q_exists, other=0.0)
    row_bound = tl.load(bound + first_row + q_rows, mask=q_exists, other=float("inf"))

    <<prelude>>
    <<outer>>

    scale_log2 = tl.full((), scale, tl.float32) * <<log2_e>>
    <<qk>>d_q_tile~ = tl.zeros((BLOCK_Q, <<width>>), tl.float32)

    # Full tiles: every pair is kept and exists. What the next tile needs from the plan is loaded one tile ahead.
    <<full_start>>
    for step in range(tiles):
        <<full_keys>>
        <<full_inner>>
        <<contiguous>>k_rows_at = tile.to(INTEGER) * (BLOCK_K * k_row_stride)
        <<contiguous>><<qk>>k_tile~ = tl.load(k_pointers~ + k_rows_at<<where>>)
        <<contiguous>>v_rows_at = k_rows_at if ALIKE else tile.to(INTEGER) * (BLOCK_K * v_row_stride)
        <<contiguous>><<v>>v_tile~ = tl.load(v_pointers~ + v_rows_at<<where>>)
        <<indexed>>k_rows_at = k_rows.to(INTEGER)[:, None] * k_row_stride
        <<indexed>><<qk>>k_row_pointers~ = k + k_rows_at + k_columns~[None, :]
        <<indexed>><<qk>>k_tile~ = tl.load(k_row_pointers~<<where>>)
        <<indexed>>v_rows_at = k_rows_at if ALIKE else k_rows.to(INTEGER)[:, None] * v_row_stride
        <<indexed>><<v>>v_row_pointers~ = v + v_rows_at + v_columns~[None, :]
        <<indexed>><<v>>v_tile~ = tl.load(v_row_pointers~<<where>>)
        <<qk>>products = tl.dot(q_tile~, tl.trans(k_tile~)<<after products>>, input_precision=PRECISION)
        <<full_pair>>
        weights = tl.exp2(<<full_exponent>>)
        <<v>>d_weights = tl.dot(d_out_tile~, tl.trans(v_tile~)<<after d_weights>>, input_precision=PRECISION)
        d_products = <<full_gradient>>
        <<qk>>d_q_tile~ = tl.dot(d_products.to(k_tile~.dtype), k_tile~, d_q_tile~, input_precision=PRECISION)
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
        <<contiguous>>v_rows_at = k_rows_at if ALIKE else tile.to(INTEGER) * (BLOCK_K * v_row_stride)
        <<contiguous>><<v>>v_row_pointers~ = v_pointers~ + v_rows_at
        <<indexed>>k_rows_at = k_rows.to(INTEGER)[:, None] * k_row_stride
        <<indexed>><<qk>>k_row_pointers~ = k + k_rows_at + k_columns~[None, :]
        <<indexed>>v_rows_at = k_rows_at if ALIKE else k_rows.to(INTEGER)[:, None] * v_row_stride
        <<indexed>><<v>>v_row_pointers~ = v + v_rows_at + v_columns~[None, :]
        <<qk>>k_tile~ = tl.load(k_row_pointers~<<where k_exists[:, None]>>)
        <<v>>v_tile~ = tl.load(v_row_pointers~<<where k_exists[:, None]>>)
        <<qk>>products = tl.dot(q_tile~, tl.trans(k_tile~)<<after products>>, input_precision=PRECISION)
        <<partial_pair>>
        <<keep>>
        weights = tl.where(keep, tl.exp2(<<partial_exponent>>), 0.0)
        <<v>>d_weights = tl.dot(d_out_tile~, tl.trans(v_tile~)<<after d_weights>>, input_precision=PRECISION)
        d_products = <<partial_gradient>>
        <<qk>>d_q_tile~ = tl.dot(d_products.to(k_tile~.dtype), k_tile~, d_q_tile~, input_precision=PRECISION)
        <<partial_next>>

    d_q += first_row * D_QK
    if D_QK % 8 == 0:
        d_q = tl.multiple_of(d_q, 16)
    <<qk>>d_q_pointers~ = d_q + q_rows.to(INTEGER)[:, None] * D_QK + dims_qk~[None, :]
    <<qk>>d_q_tile~ *= scale
    if ADD:
        <<qk>>d_q_tile~ += tl.load(d_q_pointers~<<where q_exists[:, None]>>)
    <<qk>>tl.store(d_q_pointers~, d_q_tile~.to(d_q.dtype.element_ty)<<rows q_exists[:, None]>>)
'''

KEYS = '''
# No value of an argument is specialised on: new lengths, strides and parameters never compile anything.
@triton.jit(do_not_specialize=<<plain>>)
def backward_keys_kernel(
    q, k, v, d_out, delta, bound, d_k, d_v,
    <<contiguous>>full_first, full_tiles, full_runs, partial_first, partial_tiles, partial_runs,
    <<indexed>>full_first, full_tiles, full_list, partial_first, partial_tiles, partial_list,
    <<indexed>>q_positions, k_positions, positions_stride: tl.int64,
    map_batch_stride: tl.int32, map_head_stride: tl.int32, k_tiles: tl.int32,
    q_batch_stride: tl.int64, q_head_stride: tl.int64, q_row_stride: tl.int64, q_dim_stride: tl.int64,
    k_batch_stride: tl.int64, k_head_stride: tl.int64, k_row_stride: tl.int64, k_dim_stride: tl.int64,
    v_batch_stride: tl.int64, v_head_stride: tl.int64, v_row_stride: tl.int64, v_dim_stride: tl.int64,
    d_out_batch_stride: tl.int64, d_out_head_stride: tl.int64, d_out_row_stride: tl.int64, d_out_dim_stride: tl.int64,
    batches: tl.int32, heads: tl.int32, group: tl.int32, q_len: tl.int32, k_len: tl.int32, scale: tl.float32,
    <<mask_arguments>>
    D_QK: tl.constexpr, D_V: tl.constexpr, <<widths>>BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    ALIGN: tl.constexpr, INTEGER: tl.constexpr, PRECISION: tl.constexpr, ADD: tl.constexpr,
):
    """The gradients of one tile of keys and values of one KV head: sums over the query heads that share it.

    Tiles of pairs have keys as rows and queries as columns.
    """
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

    <<contiguous>>k_rows = k_tile_index * BLOCK_K + tl.arange(0, BLOCK_K)
    <<contiguous>>k_exists = k_rows < k_len
    <<indexed>># The query heads that share keys share their order.
    <<indexed>>k_slots = k_tile_index * BLOCK_K + tl.arange(0, BLOCK_K)
    <<indexed>>first_map = batch * map_batch_stride + kv_head * group * map_head_stride
    <<indexed>>k_rows = tl.load(k_positions + first_map * positions_stride + k_slots)
    <<indexed>>k_exists = k_rows >= 0
    query_lanes = tl.arange(0, BLOCK_Q)
    <<indexed>>q_position_pointers = q_positions + query_lanes
    <<columns>>
    <<qk>>q_columns~ = dims_qk~ if ALIGN > 1 else dims_qk~ * q_dim_stride.to(INTEGER)
    <<qk>>k_columns~ = dims_qk~ if ALIGN > 1 else dims_qk~ * k_dim_stride.to(INTEGER)
    <<v>>v_columns~ = dims_v~ if ALIGN > 1 else dims_v~ * v_dim_stride.to(INTEGER)
    <<v>>d_out_columns~ = dims_v~ if ALIGN > 1 else dims_v~ * d_out_dim_stride.to(INTEGER)
    <<contiguous>><<qk>>q_offsets_in_tile~ = query_lanes.to(INTEGER)[:, None] * q_row_stride + q_columns~[None, :]
    <<contiguous>>d_out_rows = query_lanes.to(INTEGER)[:, None] * d_out_row_stride
    <<contiguous>><<v>>d_out_offsets_in_tile~ = d_out_rows + d_out_columns~[None, :]
    <<qk>>k_pointers~ = k + k_rows.to(INTEGER)[:, None] * k_row_stride + k_columns~[None, :]
    <<v>>v_pointers~ = v + k_rows.to(INTEGER)[:, None] * v_row_stride + v_columns~[None, :]
    <<qk>>k_tile~ = tl.load(k_pointers~<<where k_exists[:, None]>>)
    <<v>>v_tile~ = tl.load(v_pointers~<<where k_exists[:, None]>>)

    <<prelude>>

    scale_log2 = tl.full((), scale, tl.float32) * <<log2_e>>
    <<qk>>d_k_tile~ = tl.zeros((BLOCK_K, <<width>>), tl.float32)
    <<v>>d_v_tile~ = tl.zeros((BLOCK_K, <<width>>), tl.float32)

    for member in range(group):
        head = kv_head * group + member
        head_q = q + (batch.to(tl.int64) * q_batch_stride + head.to(tl.int64) * q_head_stride) * ALIGN
        head_d_out = d_out + (batch.to(tl.int64) * d_out_batch_stride + head.to(tl.int64) * d_out_head_stride) * ALIGN
        if ALIGN > 1:
            head_q = tl.multiple_of(head_q, 16)
            head_d_out = tl.multiple_of(head_d_out, 16)
        <<contiguous>><<qk>>q_pointers~ = head_q + q_offsets_in_tile~
        <<contiguous>><<v>>d_out_pointers~ = head_d_out + d_out_offsets_in_tile~
        first_row = (batch * heads + head).to(tl.int64) * q_len
        <<contiguous>>delta_pointers = delta + first_row + query_lanes
        <<contiguous>>bound_pointers = bound + first_row + query_lanes
        map_row = (batch * map_batch_stride + head * map_head_stride) * k_tiles + k_tile_index

        <<outer>>

        # Full tiles: every pair is kept and exists. What the next tile needs from the plan is loaded one tile ahead.
        <<full_start>>
        for step in range(tiles):
            <<full_keys>>
            <<full_inner>>
            <<contiguous>><<qk>>q_tile~ = tl.load(q_pointers~ + tile.to(INTEGER) * (BLOCK_Q * q_row_stride)<<where>>)
            <<indexed>><<qk>>q_row_pointers~ = head_q + q_rows.to(INTEGER)[:, None] * q_row_stride + q_columns~[None, :]
            <<indexed>><<qk>>q_tile~ = tl.load(q_row_pointers~<<where>>)
            <<qk>>products = tl.dot(k_tile~, tl.trans(q_tile~)<<after products>>, input_precision=PRECISION)
            <<contiguous>>row_bound = tl.load(bound_pointers + tile * BLOCK_Q)
            <<indexed>>row_bound = tl.load(bound + first_row + q_rows)
            <<full_pair>>
            weights = tl.exp2(<<full_exponent>>)
            <<contiguous>><<v>>d_out_row_pointers~ = d_out_pointers~ + tile.to(INTEGER) * (BLOCK_Q * d_out_row_stride)
            <<contiguous>><<v>>d_out_tile~ = tl.load(d_out_row_pointers~<<where>>)
            <<indexed>>d_out_offsets = q_rows.to(INTEGER)[:, None] * d_out_row_stride
            <<indexed>><<v>>d_out_row_pointers~ = head_d_out + d_out_offsets + d_out_columns~[None, :]
            <<indexed>><<v>>d_out_tile~ = tl.load(d_out_row_pointers~<<where>>)
            <<v>>d_v_tile~ = tl.dot(weights.to(d_out_tile~.dtype), d_out_tile~, d_v_tile~, input_precision=PRECISION)
            <<contiguous>>row_delta = tl.load(delta_pointers + tile * BLOCK_Q)
            <<indexed>>row_delta = tl.load(delta + first_row + q_rows)
            <<v>>d_weights = tl.dot(v_tile~, tl.trans(d_out_tile~)<<after d_weights>>, input_precision=PRECISION)
            d_products = <<full_gradient>>
            <<qk>>d_k_tile~ = tl.dot(d_products.to(q_tile~.dtype), q_tile~, d_k_tile~, input_precision=PRECISION)
            <<full_next>>

        # Partial tiles: the predicate decides each pair. Queries that do not exist are read as 0 and never kept.
        <<partial_start>>
        for step in range(tiles):
            <<contiguous>>q_rows = tile * BLOCK_Q + query_lanes
            <<contiguous>>q_exists = q_rows < q_len
            <<indexed>>q_exists = q_rows >= 0
            <<partial_inner>>
            <<contiguous>><<qk>>q_row_pointers~ = q_pointers~ + tile.to(INTEGER) * (BLOCK_Q * q_row_stride)
            <<indexed>><<qk>>q_row_pointers~ = head_q + q_rows.to(INTEGER)[:, None] * q_row_stride + q_columns~[None, :]
            <<qk>>q_tile~ = tl.load(q_row_pointers~<<where q_exists[:, None]>>)
            <<qk>>products = tl.dot(k_tile~, tl.trans(q_tile~)<<after products>>, input_precision=PRECISION)
            <<contiguous>>row_bound = tl.load(bound_pointers + tile * BLOCK_Q, mask=q_exists, other=float("inf"))
            <<indexed>>row_bound = tl.load(bound + first_row + q_rows, mask=q_exists, other=float("inf"))
            <<partial_pair>>
            <<keep>>
            weights = tl.where(keep, tl.exp2(<<partial_exponent>>), 0.0)
            <<contiguous>><<v>>d_out_row_pointers~ = d_out_pointers~ + tile.to(INTEGER) * (BLOCK_Q * d_out_row_stride)
            <<indexed>>d_out_offsets = q_rows.to(INTEGER)[:, None] * d_out_row_stride
            <<indexed>><<v>>d_out_row_pointers~ = head_d_out + d_out_offsets + d_out_columns~[None, :]
            <<v>>d_out_tile~ = tl.load(d_out_row_pointers~<<where q_exists[:, None]>>)
            <<v>>d_v_tile~ = tl.dot(weights.to(d_out_tile~.dtype), d_out_tile~, d_v_tile~, input_precision=PRECISION)
            <<contiguous>>row_delta = tl.load(delta_pointers + tile * BLOCK_Q, mask=q_exists, other=0.0)
            <<indexed>>row_delta = tl.load(delta + first_row + q_rows, mask=q_exists, other=0.0)
            <<v>>d_weights = tl.dot(v_tile~, tl.trans(d_out_tile~)<<after d_weights>>, input_precision=PRECISION)
            d_products = <<partial_gradient>>
            <<qk>>d_k_tile~ = tl.dot(d_products.to(q_tile~.dtype), q_tile~, d_k_tile~, input_precision=PRECISION)
            <<partial_next>>

    first_row = (batch * kv_heads + kv_head).to(tl.int64) * k_len
    d_k += first_row * D_QK
    d_v += first_row * D_V
    if D_QK % 8 == 0:
        d_k = tl.multiple_of(d_k, 16)
    if D_V % 8 == 0:
        d_v = tl.multiple_of(d_v, 16)
    <<qk>>d_k_pointers~ = d_k + k_rows.to(INTEGER)[:, None] * D_QK + dims_qk~[None, :]
    <<v>>d_v_pointers~ = d_v + k_rows.to(INTEGER)[:, None] * D_V + dims_v~[None, :]
    <<qk>>d_k_tile~ *= scale
    if ADD:
        <<qk>>d_k_tile~ += tl.load(d_k_pointers~<<where k_exists[:, None]>>)
        <<v>>d_v_tile~ += tl.load(d_v_pointers~<<where k_exists[:, None]>>)
    <<qk>>tl.store(d_k_pointers~, d_k_tile~.to(d_k.dtype.element_ty)<<rows k_exists[:, None]>>)
    <<v>>tl.store(d_v_pointers~, d_v_tile~.to(d_v.dtype.element_ty)<<rows k_exists[:, None]>>)
'''


def rows_kernel(plain: str) -> str:
    """The text of the kernel that computes what the others need of each row."""
    return fill(ROWS, Form(), {"plain": plain, "log2_e": repr(LOG2_E)})


def owned_kernel(
    spec: MaskSpec, form: Form, owner: Side, symbols: Symbols, names: Names, arguments: Lines, plain: str
) -> tuple[str, bool]:
    """The text of the kernel whose programs own tiles of one side, and whether float64 arithmetic decides pairs in it.

    arguments: the lines that declare what the mask reads; plain: the arguments that are never specialised on.
    """
    score = Score(spec, spec.predicate if form.predicate is None else form.predicate)
    writer = Writer(spec, owner, symbols, names, indexed=form.indexed)
    bound = "row_bound[:, None]" if owner is Side.Q else "row_bound[None, :]"
    delta = bound.replace("row_bound", "row_delta")
    walked = Side.K if owner is Side.Q else Side.Q
    blanks: dict[str, str | Lines] = {"plain": plain, "mask_arguments": arguments, "log2_e": repr(LOG2_E)}
    blanks |= {"widths": widths_text(form), "columns": columns_lines(form)}
    for part in ("full", "partial"):
        body = writer.body(score.predicate if part == "partial" else None, score.changed, score.slope)
        if part == "partial":
            blanks["keep"] = keep_lines(score, writer, f"{walked.value}_exists")
        blanks[f"{part}_exponent"] = exponent(score, writer, owner, bound)
        blanks[f"{part}_gradient"] = gradient(score, writer, delta)
        blanks[f"{part}_inner"] = [str(a) for a in body.inner]
        blanks[f"{part}_pair"] = [*score_lines(score), *(str(a) for a in body.pair)]
        blanks[f"{part}_start"] = walk_start(part, form, walked)
        blanks[f"{part}_next"] = walk_next(part, form, walked)
        if part == "full":
            blanks["full_keys"] = full_rows(form, walked) if body.inner else []
    blanks["prelude"] = [str(a) for a in writer.prelude]
    blanks["outer"] = [str(a) for a in writer.outer]
    return fill(QUERIES if owner is Side.Q else KEYS, form, blanks), writer.double


def gradient(score: Score, writer: Writer, delta: str) -> str:
    """The gradient of the scaled products; through a weight of 0 there is none, whatever the slope of the score."""
    if score.slope is None:
        return f"weights * (d_weights - {delta})"
    return (
        f"tl.where(weights == 0.0, 0.0, weights * (d_weights - {delta}) * {shown(writer.number(score.slope, 'slope'))})"
    )
