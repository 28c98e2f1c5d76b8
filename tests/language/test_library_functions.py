"""The library's relative positions and biases against the formulas of the papers and their authors' code."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from library_cases import AXES, Grid, coordinates, natten_start
from numpy.typing import NDArray

from maskc.check import load
from maskc.evaluate import Pairs, evaluate
from maskc.sizes import resolve


def scores(
    text: str, sizes: Grid, heads: int = 1, inputs: Mapping[str, NDArray[Any]] | None = None, above: str = ""
) -> NDArray[np.float64]:
    """What `score = text` gives: [heads, length, length]. above: further lines of the mask."""
    axes = AXES[len(sizes)]
    spec = load(f"mask m:\n    axes {', '.join(axes)}\n{above}    score = {text}\n")
    length = int(np.prod(sizes))
    call = resolve(
        spec, q_len=length, k_len=length, heads=heads, kv_heads=heads, given=dict(zip(axes, sizes, strict=True))
    )
    head, q, k = np.ogrid[:heads, :length, :length]
    found = evaluate(spec.score, Pairs(np, call, inputs or {}, np.zeros((), np.int64), head, q, k))
    return np.broadcast_to(np.asarray(found, np.float64), (heads, length, length))


DISTANCE = np.subtract.outer(np.arange(40), np.arange(40))  # q - k


def test_relative_positions() -> None:
    table = np.arange(79)
    np.testing.assert_array_equal(table[scores("relative(q, k, 40)", (40,))[0].astype(int)], DISTANCE + 39)
    expected = [[max(-7, min(7, d)) + 7 for d in row] for row in DISTANCE.tolist()]
    np.testing.assert_array_equal(scores("clipped_relative(q, k, 7)", (40,))[0], expected)


@pytest.mark.parametrize("window", [(1, 1), (2, 3), (7, 7), (3, 1), (2, 3, 4), (1, 2, 2)])
def test_swins_table(window: Grid) -> None:
    """The index as Swin and Video Swin build it: differences moved to begin at 0, each times the sizes behind it."""
    offsets = np.stack([np.subtract.outer(c, c) for c in coordinates(window)], axis=-1)
    for axis, size in enumerate(window):
        offsets[..., axis] += size - 1
    for axis in range(len(window) - 1):
        offsets[..., axis] *= math.prod(2 * size - 1 for size in window[axis + 1 :])
    expected = offsets.sum(-1)
    axes = AXES[len(window)]
    name = {2: "swin_relative", 3: "swin_relative_3d"}[len(window)]
    differences = ", ".join(f"q.{a} - k.{a}" for a in axes)
    found = scores(f"{name}({differences}, {', '.join(map(str, window))})", window)[0]
    np.testing.assert_array_equal(found, expected)
    assert len(np.unique(found)) == math.prod(2 * size - 1 for size in window)


@pytest.mark.parametrize(("size", "kernel", "dilation"), [(9, 3, 1), (9, 9, 1), (17, 5, 2), (20, 3, 4), (7, 1, 3)])
def test_nattens_table(size: int, kernel: int, dilation: int) -> None:
    """Entry `first + i` belongs to the i-th key of a window, and `first` is what NATTEN finds for its query."""
    found = scores(f"natten_relative(q.x, k.x, {kernel}, {dilation})", (size,))[0]
    half = kernel // 2
    for q in range(size):
        members = list(range(q % dilation, size, dilation))
        start = natten_start(members.index(q), len(members), kernel, 1, False)
        if q < half * dilation:
            first = kernel - 1 - q // dilation
        elif q + half * dilation >= size:
            first = (size - q - 1) // dilation
        else:
            first = half
        assert [int(found[q, members[start + i]]) for i in range(kernel)] == [first + i for i in range(kernel)]


def alibi_slopes(heads: int) -> list[float]:
    """The slopes by the recursion of the paper's code."""
    if heads & (heads - 1) == 0:
        ratio = 2.0 ** -(2.0 ** -(math.log2(heads) - 3))
        return [ratio * ratio**i for i in range(heads)]
    below = 2 ** math.floor(math.log2(heads))
    return alibi_slopes(below) + alibi_slopes(2 * below)[0::2][: heads - below]


@pytest.mark.parametrize("heads", [*range(1, 34), 48, 63, 64, 65, 71, 96, 112, 127, 128, 129])
def test_alibi(heads: int) -> None:
    found = scores("-alibi_slope(head, heads) * (q - k)", (3,), heads)
    expected = -np.multiply.outer(alibi_slopes(heads), np.subtract.outer(np.arange(3), np.arange(3)))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def t5_buckets(relative: torch.Tensor, bidirectional: bool, buckets: int, distance: int) -> torch.Tensor:
    """T5's formula in float32, as the published models were trained with it."""
    first = torch.zeros_like(relative)
    if bidirectional:
        buckets //= 2
        first = (relative > 0).long() * buckets
        steps = relative.abs()
    else:
        steps = -torch.minimum(relative, torch.zeros_like(relative))
    exact = buckets // 2
    far = torch.log(steps.float() / exact) / math.log(distance / exact) * (buckets - exact)
    far = torch.minimum(exact + far.long(), torch.full_like(steps, buckets - 1))
    return first + torch.where(steps < exact, steps, far)


T5 = [
    (32, 128),
    (32, 256),
    (64, 128),
    (16, 128),
    (32, 64),
    (32, 512),
    (128, 512),
    (32, 20),
    (12, 100),
    (10, 37),
    (4, 9),
]


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "distance"), T5)
def test_t5(buckets: int, distance: int, bidirectional: bool) -> None:
    relative = np.arange(-700, 701)
    name = "t5_bucket" if bidirectional else "t5_bucket_causal"
    spec = load(f"mask m:\n    input d: int[q]\n    score = {name}(d[q], {buckets}, {distance})\n")
    sizes = resolve(spec, q_len=1401, k_len=1401, given={})
    zero = np.zeros((), np.int64)
    found = evaluate(spec.score, Pairs(np, sizes, {"d": relative}, zero, zero, np.arange(1401), zero))
    expected = t5_buckets(torch.from_numpy(relative), bidirectional, buckets, distance)
    np.testing.assert_array_equal(found, expected.numpy())


@pytest.mark.parametrize(("buckets", "distance"), T5)
def test_t5_borders_between_buckets_are_exact(buckets: int, distance: int) -> None:
    """Bucket exact + j holds the distances with (d / exact) ** (buckets - exact) >= (distance / exact) ** j."""
    exact = buckets // 2
    if distance <= exact:
        pytest.skip("a range of distances that the exact buckets cover")
    found = scores(f"t5_bucket_causal(k - q, {buckets}, {distance})", (600,))[0][:, 0]
    powers = buckets - exact
    for d in range(exact, 600):
        j = sum(d**powers * exact**i >= distance**i * exact**powers for i in range(1, powers))
        assert found[d] == exact + j


def test_kerple() -> None:
    """Both kernels with numbers of their own for every head, and their slopes at distance 0."""
    above = "    input r1: float[head]\n    input r2: float[head]\n"
    r1, r2 = np.array([0.5, 2.0, 1e-3]), np.array([0.25, 1.0, 2.0])
    d = abs(DISTANCE)
    given = {"r1": r1, "r2": r2}
    found = scores("kerple_log(q - k, r1, r2)", (40,), 3, given, above)
    np.testing.assert_allclose(found, -r1[:, None, None] * np.log1p(r2[:, None, None] * d), rtol=1e-12)
    found = scores("kerple_power(q - k, r1, r2)", (40,), 3, given, above)
    np.testing.assert_allclose(found, -r1[:, None, None] * d ** r2[:, None, None], rtol=1e-12)


def test_cosine() -> None:
    x = np.concatenate([np.linspace(-20, 20, 997), [0.0, np.pi, -np.pi, np.pi / 2, 1e4, -12345.678, 1e6]])
    spec = load("mask m:\n    input x: float[q]\n    score = cosine(x[q])\n")
    sizes = resolve(spec, q_len=len(x), k_len=len(x), given={})
    zero = np.zeros((), np.int64)
    found = evaluate(spec.score, Pairs(np, sizes, {"x": x}, zero, zero, np.arange(len(x)), zero))
    np.testing.assert_allclose(found, np.cos(x), atol=1e-9)
    np.testing.assert_allclose(found[abs(x) < 100], np.cos(x[abs(x) < 100]), atol=1e-13)


@pytest.mark.parametrize(("dims", "heads"), [(128, 12), (8, 1), (2, 3)])
def test_sandwich(dims: int, heads: int) -> None:
    """Products of sinusoidal embeddings, each head's over its compression ratio, as in the paper's listing."""
    frequency = 1e4 ** (-2 * np.arange(dims // 2) / dims)
    angle = np.arange(40)[:, None] * frequency
    embedding = np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)
    ratio = np.arange(1, heads + 1) * 8 / heads
    found = scores(f"sandwich(q - k, {dims}, head, heads)", (40,), heads)
    np.testing.assert_allclose(found, embedding @ embedding.T / ratio[:, None, None], atol=1e-12)


def test_retention() -> None:
    """RetNet: gamma = 1 - 2 ** (-5 - arange(heads)), D[n, m] = gamma ** (n - m)."""
    gamma = 1 - 2 ** (-5 - np.arange(6, dtype=np.float64))
    found = scores("retention_decay(head) ** abs(q - k)", (40,), 6)
    np.testing.assert_allclose(found, gamma[:, None, None] ** abs(DISTANCE), rtol=1e-12)


def test_paths() -> None:
    """What lies between two tokens, added up step by step."""
    rng = np.random.default_rng(0)
    step = rng.standard_normal(40)
    found = scores("path(sums, q, k)", (40,), 1, {"sums": step.cumsum()}, "    input sums: float[seq]\n")[0]
    for q, k in [(0, 0), (5, 5), (9, 2), (39, 0), (30, 29)]:
        assert math.isclose(found[q, k], sum(step[k + 1 : q + 1].tolist()), abs_tol=1e-12)
    np.testing.assert_allclose(found, -found.T)


def test_polyline_paths() -> None:
    """PPMA: from the query along its row to the key's column, then along that column."""
    rng = np.random.default_rng(0)
    across, down = -rng.random((5, 7)), -rng.random((5, 7))
    above = "    input rows: float[y, x]\n    input columns: float[y, x]\n"
    sums = {"rows": across.cumsum(1), "columns": down.cumsum(0)}
    found = scores("-polyline(rows, columns, q, k)", (5, 7), 1, sums, above)[0]
    y, x = coordinates((5, 7))
    for q in range(35):
        for k in range(35):
            row = range(min(x[q], x[k]) + 1, max(x[q], x[k]) + 1)
            column = range(min(y[q], y[k]) + 1, max(y[q], y[k]) + 1)
            walked = sum(across[y[q], i] for i in row) + sum(down[i, x[k]] for i in column)
            assert math.isclose(found[q, k], walked, abs_tol=1e-12)
