"""Random masks: two readings that share no code agree on every pair, and the tiled engine agrees with dense."""

import engine_cases as cases
import numpy as np
import pytest
import torch
from random_specs import Draw

from maskc import reference
from maskc.runtime import dense, tolerance
from maskc.runtime.inputs import Call


def drawn(seed, **shape):
    draw = Draw(seed)
    spec = draw.spec(**shape)
    sizes = draw.sizes
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(sizes.batch, sizes.heads, sizes.q_len, 8, generator=generator)
    k, v = (torch.randn(sizes.batch, sizes.kv_heads, sizes.k_len, 8, generator=generator) for _ in range(2))
    tables = {name: torch.from_numpy(x) for name, x in draw.inputs.items()}
    return Call(spec, sizes, 8**-0.5, q, k, v, tables), draw.inputs


@pytest.mark.parametrize("seeds", [range(start, start + 25) for start in range(0, 200, 25)], ids=str)
def test_dense_reads_masks_as_the_reference_does(seeds):
    for seed in seeds:
        call, arrays = drawn(seed)
        expected = reference.mask(call.spec, call.sizes, arrays)
        batch, head = reference.mask_dims(call.spec, call.sizes)
        found = dense.kept_pairs(call).numpy()
        sizes = call.sizes
        whole = expected.reshape(sizes.batch if batch else 1, sizes.heads if head else 1, sizes.q_len, sizes.k_len)
        assert (found == np.broadcast_to(whole, found.shape)).all(), f"seed {seed}: {call.spec.predicate}"


@pytest.mark.parametrize("seeds", [range(start, start + 10) for start in range(0, 100, 10)], ids=str)
def test_tiled_agrees_with_dense(seeds):
    for seed in seeds:
        call, _ = drawn(seed, depth=2)
        d_out, d_lse = cases.upstream(call)
        report = tolerance.check(call, cases.run_tiled(call, d_out, d_lse), d_out, d_lse)
        assert report.passed, f"seed {seed}: {call.spec.predicate}\n{report}"
