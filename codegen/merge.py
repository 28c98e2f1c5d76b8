"""The text of the kernel that joins what several kernels, or several shares of one, found of the same rows."""

from collections.abc import Mapping

from maskc.codegen.form import Form
from maskc.codegen.template import Lines, fill

TEMPLATE = '''
# No value of an argument is specialised on: new lengths, strides and parameters never compile anything.
@triton.jit(do_not_specialize=<<plain>>)
def merge_kernel(
    outs, lses, out, lse, states: tl.int32, rows: tl.int64,
    D_V: tl.constexpr, PADDED_V: tl.constexpr, BLOCK_Q: tl.constexpr, INTEGER: tl.constexpr,
):
    """Of every row the normalised outputs of all states, weighted by their shares of the sum of exponentials."""
    first_row = tl.program_id(0).to(tl.int64) * BLOCK_Q
    lanes = tl.arange(0, BLOCK_Q)
    exists = lanes < rows - first_row
    dims_v = tl.arange(0, PADDED_V)
    inside = exists[:, None] & (dims_v < D_V)[None, :]
    offsets = lanes.to(INTEGER)[:, None] * D_V + dims_v[None, :]

    row_max = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    row_sum = tl.zeros((BLOCK_Q,), tl.float32)
    accumulator = tl.zeros((BLOCK_Q, PADDED_V), tl.float32)
    start = first_row
    for _ in range(states):
        statistic = tl.load(lses + start + lanes, mask=exists, other=float("-inf"))
        # What a state without keys holds as output is not looked at.
        seen = statistic > float("-inf")
        highest = tl.maximum(row_max, statistic)
        base = tl.where(highest == float("-inf"), 0.0, highest)
        weight = tl.exp(statistic - base)
        decay = tl.exp(row_max - base)
        part = tl.load(outs + start * D_V + offsets, mask=inside & seen[:, None], other=0.0)
        row_sum = row_sum * decay + weight
        accumulator = accumulator * decay[:, None] + part * weight[:, None]
        row_max = highest
        start += rows

    empty = row_sum == 0.0
    divisor = tl.where(empty, 1.0, row_sum)
    result = accumulator / divisor[:, None]
    statistic = tl.where(empty, float("-inf"), row_max + tl.log(divisor))
    tl.store(out + first_row * D_V + offsets, result.to(out.dtype.element_ty), mask=inside)
    tl.store(lse + first_row + lanes, statistic, mask=exists)
'''


def kernel(plain: str) -> str:
    """The text of the kernel; plain: the arguments that are never specialised on."""
    blanks: Mapping[str, str | Lines] = {"plain": plain}
    return fill(TEMPLATE, Form(), blanks)
