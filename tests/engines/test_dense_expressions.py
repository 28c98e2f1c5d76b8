"""How the definition reads rows, vectors, folds, random numbers, sizes and learned tables."""

import math

import dense_cases as cases
import pytest
import torch

from maskc.runtime import dense


def kept(text, length=8, *, batch=1, heads=1, kv_heads=None, **given):
    """The kept pairs of a call whose q, k and v do not matter."""
    q, k, v = cases.tensors(batch, heads, length, 2, kv_heads=kv_heads)
    return dense.kept_pairs(cases.call_of(text, q, k, v, **given))


# ---- rows of tables


def test_members_of_routed_rows():
    route = torch.tensor([[[[0, 2], [-1, 0], [3, 3], [-1, -1]], [[1, 1], [2, -1], [0, 1], [3, 0]]]])
    text = "mask m:\n    input route: int[batch, kv_head, q // 2, top] of k // 2\n    keep k // 2 in route[q // 2]\n"
    found = kept(text, heads=4, kv_heads=2, route=route)
    for h in range(4):
        for i in range(8):
            assert found[0, h, i].tolist() == [j // 2 in route[0, h // 2, i // 2].tolist() for j in range(8)]


def test_negative_entries_match_nothing_and_rows_out_of_range_are_empty():
    rows = torch.tensor([[-1, 0], [0, -3]])
    found = kept("mask m:\n    input t: int[2, n]\n    keep k - 1 in t[q - 2]\n", t=rows)
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[2, 1] = expected[3, 1] = True
    assert torch.equal(found[0, 0], expected)


def test_rows_without_entries():
    empty = torch.zeros(8, 0, dtype=torch.int64)
    assert not bool(kept("mask m:\n    input t: int[seq, n]\n    keep k in t[q]\n", t=empty).any())
    assert bool(kept("mask m:\n    input t: int[seq, n]\n    keep bucket(k, t[q]) == 0\n", t=empty).all())
    none = torch.zeros(0, 3, dtype=torch.int64)
    assert not bool(kept("mask m:\n    input t: int[n, top]\n    keep k in t[q]\n", t=none).any())


def test_buckets_count_entries_up_to_a_number():
    starts = torch.tensor([[0, 3, 3, 6], [0, 1, 2, 8]])
    text = "mask m:\n    input s: int[batch, n] sorted\n    keep bucket(q, s) == bucket(k, s)\n"
    found = kept(text, batch=2, s=starts)
    for b in range(2):
        of = [sum(x <= i for x in starts[b].tolist()) for i in range(8)]
        assert found[b, 0].tolist() == [[of[i] == of[j] for j in range(8)] for i in range(8)]


def test_buckets_of_floats_and_rows_out_of_range():
    text = "mask m:\n    input t: float[2, n] sorted\n    keep bucket(0.5 * k, t[q]) == 2 or bucket(k, t[q + 6]) > 0\n"
    table = torch.tensor([[0.0, 1.5, 2.5], [1.0, 1.0, 1.25]])
    found = kept(text, t=table)[0, 0]
    assert found[0].tolist() == [2 <= sum(x <= 0.5 * j for x in (0, 1.5, 2.5)) < 3 for j in range(8)]
    assert found[1].tolist() == [sum(x <= 0.5 * j for x in (1, 1, 1.25)) == 2 for j in range(8)]
    assert not bool(found[2:].any())


def test_t5_buckets():
    """Raffel et al. 2020: logarithmic buckets of distance, a learned bias per head and bucket."""
    q, k, v = cases.tensors(1, 2, 12, 3)
    text = (
        "mask m:\n    input bias: float[head, n] learned\n    let edges = [1, 2, 3, 4, 6, 8]\n    keep k <= q\n"
        "    score += bias[bucket(q - k, edges)]\n"
    )

    def t5(q, k, v, bias):
        query, key = cases.grid(12)
        bucket = sum((query - key >= edge).long() for edge in (1, 2, 3, 4, 6, 8))
        s = (cases.scores(q, k) + bias[:, bucket]).masked_fill(~cases.causal(12), -torch.inf)
        return torch.softmax(s, -1) @ v

    cases.assert_same(text, t5, q, k, v, bias=cases.learned(2, 7))


# ---- vectors


def test_relative_positions_of_shaw():
    """Shaw et al. 2018: query . (key + E[clip(q - k)])."""
    q, k, v = cases.tensors(2, 2, 6, 4)
    text = (
        "mask m(reach: int = 2):\n    input rel: float[m, d] learned\n"
        "    score += scale * dot(query, rel[clamp(q - k, -reach, reach) + reach])\n"
    )

    def shaw(q, k, v, rel):
        query, key = cases.grid(6)
        vectors = rel[(query - key).clamp(-2, 2) + 2]
        s = cases.scores(q, k) + torch.einsum("bhqd,qkd->bhqk", q, vectors) / 2
        return torch.softmax(s, -1) @ v

    cases.assert_same(text, shaw, q, k, v, rel=cases.learned(5, 4))


def test_terms_of_transformer_xl():
    """Dai et al. 2019: (q + u) . k + (q + w) . r[q - k]; a distance out of range has the vector 0."""
    q, k, v = cases.tensors(1, 4, 5, 4, kv_heads=2)
    text = (
        "mask m:\n    input u: float[head, d] learned\n    input w: float[head, d] learned\n"
        "    input r: float[kv_head, m, d] learned\n    keep k <= q\n"
        "    score = scale * (dot(query, key) + dot(u, key) + dot(query, r[q - k]) + dot(w, r[q - k]))\n"
    )

    def xl(q, k, v, u, w, r):
        query, key = cases.grid(5)
        k, v, r = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1), r.repeat_interleave(2, 0)
        r = torch.nn.functional.pad(r, (0, 0, 0, 1))[:, torch.where(query >= key, (query - key).clamp(max=3), 3)]
        s = (q + u.unsqueeze(1)) @ k.transpose(-1, -2)
        s = s + torch.einsum("bhqd,hqkd->bhqk", q + w.unsqueeze(1), r)
        return torch.softmax((s / 2).masked_fill(~cases.causal(5), -torch.inf), -1) @ v

    cases.assert_same(text, xl, q, k, v, u=cases.learned(4, 4), w=cases.learned(4, 4, seed=2), r=cases.learned(2, 3, 4))


def test_dots_of_one_side_and_of_tables():
    """Squared distances instead of inner products."""
    q, k, v = cases.tensors(1, 2, 5, 3)
    text = (
        "mask m:\n    input e: float[seq, d] learned\n"
        "    score = dot(query, key) - (dot(query, query) + dot(key, key)) / 2.0 + dot(e[q], e[k])\n"
    )

    def distances(q, k, v, e):
        s = -((q.unsqueeze(-2) - k.unsqueeze(-3)) ** 2).sum(-1) / 2
        return torch.softmax(s + e @ e.T, -1) @ v

    cases.assert_same(text, distances, q, k, v, e=cases.learned(5, 2))


# ---- learned tables


def test_learned_tables_of_every_shape():
    """One number, one per head, a vector read twice, a table of the pairs, and reads out of range."""
    q, k, v = cases.tensors(2, 4, 5, 3, kv_heads=2)
    text = (
        "mask m:\n    input t: float learned\n    input slope: float[head] learned\n    input b: float[seq] learned\n"
        "    input bias: float[batch, kv_head, q, k] learned\n    keep k <= q\n"
        "    score = t * score - slope * (q - k) + b[q] * b[k] + b[k + 2] + bias[q, k]\n"
    )

    def oracle(q, k, v, t, slope, b, bias):
        query, key = cases.grid(5)
        later = torch.nn.functional.pad(b, (0, 2))[2:]
        s = t * cases.scores(q, k) - slope.view(4, 1, 1) * (query - key) + b.view(-1, 1) * b + later
        s = s + bias.repeat_interleave(2, 1)
        weights = torch.softmax(s.masked_fill(~cases.causal(5), -torch.inf), -1)
        return weights @ v.repeat_interleave(2, 1)

    given = {"t": cases.learned(), "slope": cases.learned(4), "b": cases.learned(5), "bias": cases.learned(2, 2, 5, 5)}
    cases.assert_same(text, oracle, q, k, v, **given)


def test_learned_tables_may_have_another_dtype_and_any_strides():
    q, k, v = cases.tensors(1, 2, 4, 3)
    text = "mask m:\n    input bias: float[head, q, k] learned\n    score += bias[q, k]\n"
    whole = torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(3)).requires_grad_()
    bias = whole.transpose(1, 2).expand(2, 4, 4)
    out, _, _ = cases.attend(text, q, k, v, bias=bias)
    expected = torch.softmax(cases.scores(q, k) + bias.double(), -1) @ v
    torch.testing.assert_close(out, expected)
    (found,) = torch.autograd.grad(out.square().sum(), whole)
    (wanted,) = torch.autograd.grad(expected.square().sum(), whole)
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, wanted)


def test_decisions_on_learned_tables_carry_no_gradient():
    q, k, v = cases.tensors(1, 1, 5, 3)
    b = cases.learned(5)
    text = (
        "mask m:\n    input b: float[seq] learned\n    keep b[k] > 0.0 or q == k\n"
        "    score += where(b[q] > 0.0, b[k], 1.0)\n"
    )

    def oracle(q, k, v, b):
        s = cases.scores(q, k) + torch.where((b > 0).view(-1, 1), b, 1)
        return torch.softmax(s.masked_fill(~((b > 0) | torch.eye(5, dtype=torch.bool)), -torch.inf), -1) @ v

    cases.assert_same(text, oracle, q, k, v, b=b)


# ---- prefix sums


def test_polyline_decay_walks_the_path():
    """PPMA: decay summed over the steps along the query's row, then along the key's column."""
    rows, columns = 3, 4
    q, k, v = cases.tensors(1, 2, rows * columns, 3)
    text = (
        "mask m:\n    axes y, x\n    input alpha: float[batch, head, y, x] learned\n"
        "    input beta: float[batch, head, y, x] learned\n    let a = cumsum(alpha, x)\n    let b = cumsum(beta, y)\n"
        "    score -= abs(a[q.y, q.x] - a[q.y, k.x]) + abs(b[q.y, k.x] - b[k.y, k.x])\n"
    )

    def path(i, j, alpha, beta):
        (qy, qx), (ky, kx) = divmod(i, columns), divmod(j, columns)
        along = alpha[:, :, qy, min(qx, kx) + 1 : max(qx, kx) + 1].sum(-1)
        down = beta[:, :, min(qy, ky) + 1 : max(qy, ky) + 1, kx].sum(-1)
        return along.abs() + down.abs()

    def polyline(q, k, v, y, alpha, beta):
        every = range(rows * columns)
        decay = torch.stack([torch.stack([path(i, j, alpha, beta) for j in every], -1) for i in every], -2)
        return torch.softmax(cases.scores(q, k) - decay, -1) @ v

    given = {"alpha": cases.learned(1, 2, rows, columns), "beta": cases.learned(1, 2, rows, columns, seed=5)}
    cases.assert_same(text, polyline, q, k, v, y=rows, **given)


def test_differences_of_prefix_sums_are_exact_in_single_precision():
    """The difference of two sums near 1e7 is read in float64 and rounded once."""
    length = 64
    q, k, v = (x.detach().float().requires_grad_() for x in cases.tensors(1, 1, length, 3))
    steps = torch.rand(length, generator=torch.Generator().manual_seed(0)) * 1e-3
    steps[0] = 1e7
    text = (
        "mask m:\n    input step: float[seq]\n    let a = cumsum(step, seq)\n"
        "    score = (a[q] - a[k]) * 100.0\n    keep k <= q\n"
    )
    call = cases.call_of(text, q, k, v, step=steps)
    _, score = dense.scores_of(call, dense.kept_pairs(call))
    between = [[float(steps[j + 1 : i + 1].double().sum()) * 100 for j in range(length)] for i in range(length)]
    expected = torch.tensor(between).masked_fill(~cases.causal(length), -torch.inf)
    torch.testing.assert_close(score[0, 0], expected, rtol=1e-5, atol=1e-6)


# ---- decisions on scores


def test_keeps_that_read_the_score():
    q, k, v = cases.tensors(1, 2, 6, 3)
    text = "mask m:\n    keep k <= q\n    score *= 2.0\n    keep score > 0.3 and dot(query, key) < 2.5\n"

    def oracle(q, k, v):
        s = 2 * cases.scores(q, k)
        chosen = cases.causal(6) & (s > 0.3) & (q @ k.transpose(-1, -2) < 2.5)
        w = torch.softmax(s.masked_fill(~chosen, -torch.inf), -1)
        return torch.where(chosen.any(-1, keepdim=True), w, 0) @ v

    call = cases.call_of(text, q, k, v)
    chosen = dense.kept_pairs(call)
    s = 2 * cases.scores(q, k)
    assert torch.equal(chosen, cases.causal(6) & (s > 0.3) & (q @ k.transpose(-1, -2) < 2.5))
    out, _, _ = cases.attend(text, q, k, v)
    torch.testing.assert_close(out, torch.nan_to_num(oracle(q, k, v)))
    cases.assert_derivatives(text, q, k, v)


def test_decisions_see_the_score_as_it_was_computed():
    """In float32 for 32- and 16-bit q: the decision is that of the rounded number, read as float64."""
    q = torch.full((1, 1, 1, 1), 0.1)
    k = torch.ones(1, 1, 1, 1)
    text = "mask m:\n    keep score > 0.1\n    score *= 1.0\n"
    for dtype in (torch.float32, torch.float16):
        x = q.to(dtype)
        _, lse, _ = cases.attend(text, x, k.to(dtype), k.to(dtype))
        assert bool(torch.isfinite(lse).all()) == (float(x) > 0.1)


# ---- random numbers, folds, sizes


def test_rand_is_the_published_mix():
    text = (
        "mask m:\n    input seed: int\n    keep rand(seed, q - 3, k * 5000000000) < 0.4\n    keep rand(q == k) < 0.99\n"
    )
    for seed in (0, 2**63 - 1, -(2**63), -7):
        found = kept(text, seed=torch.tensor(seed))[0, 0]
        expected = [
            [cases.drawn(seed, i - 3, j * 5_000_000_000) < 0.4 and cases.drawn(i == j) < 0.99 for j in range(8)]
            for i in range(8)
        ]
        assert found.tolist() == expected


def test_rand_is_exact_in_single_precision():
    q, k, v = (x.detach().float() for x in cases.tensors(1, 1, 40, 3))
    text = "mask m:\n    score = rand(q, k)\n"
    call = cases.call_of(text, q, k, v)
    _, score = dense.scores_of(call, dense.kept_pairs(call))
    assert score[0, 0].tolist() == [[cases.drawn(i, j) for j in range(40)] for i in range(40)]


def test_folds():
    text = (
        "mask m:\n    input at: int[n]\n    keep any(q - k == at[i] for i in range(n))\n"
        "    keep all(k % (i + 2) != 1 for i in range(2)) or sum(k == at[i] for i in range(n)) == 1\n"
    )
    found = kept(text, at=torch.tensor([1, 4]))[0, 0]
    expected = [
        [i - j in (1, 4) and (all(j % (x + 2) != 1 for x in range(2)) or j in (1, 4)) for j in range(8)]
        for i in range(8)
    ]
    assert found.tolist() == expected


def test_folds_inside_folds_and_over_nothing():
    text = (
        "mask m(n: int = 0):\n    keep not any(q == k for i in range(n)) and all(q == k for i in range(n))\n"
        "    keep sum(sum(i * j == q for j in range(3)) for i in range(3)) == k\n"
    )
    found = kept(text)[0, 0]
    ways = [sum(i * j == x for i in range(3) for j in range(3)) for x in range(8)]
    assert found.tolist() == [[ways[i] == j for j in range(8)] for i in range(8)]


def test_sums_of_learned_entries():
    q, k, v = cases.tensors(1, 2, 5, 3)
    text = (
        "mask m:\n    input w: float[head, n] learned\n    keep k <= q\n"
        "    score += sum(w[i] * (q - k) ** 2 / (i + 1) if i > 0 else w[i] for i in range(n))\n"
    )

    def oracle(q, k, v, w):
        query, key = cases.grid(5)
        bias = sum((w[:, i].view(-1, 1, 1) * ((query - key) ** 2 / (i + 1) if i else 1)) for i in range(3))
        return torch.softmax((cases.scores(q, k) + bias).masked_fill(~cases.causal(5), -torch.inf), -1) @ v

    cases.assert_same(text, oracle, q, k, v, w=cases.learned(2, 3))


def test_scale_may_be_read():
    q, k, v = cases.tensors(1, 1, 4, 9)
    out, _, _ = cases.attend("mask m:\n    score = dot(query, key) * scale * scale\n", q, k, v)
    torch.testing.assert_close(out, torch.softmax(cases.scores(q, k) / 3, -1) @ v)


# ---- branches


@pytest.mark.parametrize(
    "score",
    [
        "where(score > 0, log(score), -1.0)",
        "sqrt(score) if score > 0 else (sqrt(-score) if score < 0 else 0.0)",
        "1.0 / b[k] if abs(b[k]) > 0.01 else score",
        "sum(where(score > i, log(score - i), 0.0) for i in range(3))",
        "dot(query, e[k]) / b[k] if abs(b[k]) > 0.01 else dot(query, e[q])",
    ],
)
def test_branches_not_taken_are_not_evaluated(score):
    q, k, v = cases.tensors(1, 2, 5, 3)
    b = torch.tensor([0.0, 2.0, 0.0, -1.0, 0.5], dtype=torch.float64, requires_grad=True)
    text = (
        "mask m:\n    input b: float[seq] learned\n    input e: float[seq, d] learned\n    keep k <= q\n"
        f"    score = {score}\n"
    )
    cases.assert_derivatives(text, q, k, v, b=b, e=cases.learned(5, 3))


def test_powers_of_dropped_pairs_do_not_reach_learned_decays():
    q, k, v = cases.tensors(1, 1, 900, 2)
    decay = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    text = "mask m:\n    input decay: float learned\n    keep 0 <= q - k < 5\n    score += decay ** (q - k)\n"
    out, _, _ = cases.attend(text, q, k, v, decay=decay)
    assert all(bool(torch.isfinite(x).all()) for x in torch.autograd.grad(out.sum(), (q, k, v, decay)))
    assert math.isfinite(float(out.detach().sum()))
