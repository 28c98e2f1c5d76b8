"""Normalisers of the definition against the formulas of their papers, values and gradients."""

import dense_cases as cases
import pytest
import torch

BIG = pytest.mark.parametrize("big", [1, 50], ids=["plain", "logits x50"])


def softmax_with(extra, kept, q, k, v):
    """Softmax over the kept scores and one more logit [batch, heads, q_len, 1] that has no value."""
    s = cases.scores(q, k).masked_fill(~kept, -torch.inf)
    weights = torch.softmax(torch.cat([s, extra.expand(*s.shape[:3], 1)], -1), -1)[..., :-1]
    return weights @ v


@BIG
def test_learned_sink(big):
    text = (
        "mask m:\n    input sink: float[head] learned\n    keep k <= q\n    keep q != 2\n"
        "    normalize softmax(sink=sink)\n"
    )
    q, k, v = cases.tensors(2, 2, 6, 3, big=big)
    kept = cases.causal(6) & (torch.arange(6) != 2).view(-1, 1)
    sink = cases.learned(2)
    cases.assert_same(text, lambda q, k, v, sink: softmax_with(sink.view(2, 1, 1), kept, q, k, v), q, k, v, sink=sink)
    out, lse, _ = cases.attend(text, q, k, v, sink=sink)
    assert bool((out[:, :, 2] == 0).all())
    torch.testing.assert_close(lse[:, :, 2], sink.expand(2, 2))


def test_off_by_one():
    q, k, v = cases.tensors(1, 1, 5, 3)
    text = "mask m:\n    keep k <= q\n    normalize softmax(sink=0.0)\n"

    def off_by_one(q, k, v):
        parts = torch.exp(cases.scores(q, k)) * cases.causal(5)
        return parts / (1 + parts.sum(-1, keepdim=True)) @ v

    cases.assert_same(text, off_by_one, q, k, v)


def test_sink_of_minus_infinity_is_none():
    q, k, v = cases.tensors(1, 1, 5, 3)
    out, lse, _ = cases.attend("mask m:\n    keep k < q\n    normalize softmax(sink=-inf)\n", q, k, v)
    plain, expected, _ = cases.attend("mask m:\n    keep k < q\n", q, k, v)
    torch.testing.assert_close(out, plain)
    torch.testing.assert_close(lse, expected)
    assert all(bool(torch.isfinite(x).all()) for x in torch.autograd.grad(out.sum() + lse[..., 1:].sum(), (q, k, v)))


@BIG
def test_sigmoid_attention(big):
    q, k, v = cases.tensors(1, 2, 6, 3, big=big)
    text = "mask m:\n    input bias: float learned\n    keep k <= q\n    normalize none(sigmoid(score + bias))\n"

    def sigmoid(q, k, v, bias):
        return (torch.sigmoid(cases.scores(q, k) + bias) * cases.causal(6)) @ v

    cases.assert_same(text, sigmoid, q, k, v, bias=cases.learned())


@BIG
def test_squared_relu_by_row_sum(big):
    q, k, v = cases.tensors(1, 2, 6, 3, big=big)
    text = "mask m:\n    keep k <= q\n    normalize rowsum(relu(score) ** 2)\n"

    def oracle(q, k, v):
        parts = torch.relu(cases.scores(q, k)) ** 2 * cases.causal(6)
        total = parts.sum(-1, keepdim=True)
        return torch.where(total > 0, parts / torch.where(total > 0, total, 1), 0) @ v

    cases.assert_same(text, oracle, q, k, v)


def test_a_row_sum_of_zero_gives_zero():
    q, k, v = cases.tensors(1, 1, 4, 3)
    learned = cases.learned(4)
    text = (
        "mask m:\n    input b: float[seq] learned\n    keep k <= q\n"
        "    normalize rowsum(where(q == 2, 0.0 * score, softplus(score + b[k])))\n    weight += 1.0\n"
    )
    out, lse, _ = cases.attend(text, q, k, v, b=learned)
    assert lse is None
    assert bool((out[0, 0, 2] == 0).all())
    gradients = torch.autograd.grad(out[0, 0, 2].sum(), (q, k, v, learned))
    assert all(bool((x == 0).all()) for x in gradients)
    cases.assert_derivatives(text.replace("    weight += 1.0\n", ""), q, k, v, b=learned)


def test_row_sum_with_a_sink():
    q, k, v = cases.tensors(1, 2, 5, 3)
    text = "mask m:\n    input z: float[head] learned\n    keep k < q\n    normalize rowsum(softplus(score), sink=z)\n"

    def oracle(q, k, v, z):
        query, key = cases.grid(5)
        parts = torch.nn.functional.softplus(cases.scores(q, k)) * (key < query)
        return parts / (parts.sum(-1, keepdim=True) + z.view(2, 1, 1)) @ v

    cases.assert_same(text, oracle, q, k, v, z=torch.tensor([0.5, 2.0], dtype=torch.float64, requires_grad=True))


def test_retention_does_not_evaluate_dropped_decays():
    """Sun et al. 2023: (Q K^T * D) V with D = decay ** (q - k); on q < k the power would overflow."""
    length = 700
    q, k, v = cases.tensors(1, 2, length, 3)
    decay = torch.tensor([0.3, 0.9], dtype=torch.float64, requires_grad=True)
    text = (
        "mask m:\n    input decay: float[head] learned\n    keep k <= q\n    normalize none(score * decay ** (q - k))\n"
    )
    out, _, _ = cases.attend(text, q, k, v, decay=decay)
    query, key = cases.grid(length)
    powers = torch.where(key <= query, decay.view(2, 1, 1) ** (query - key).clamp(min=0), 0)
    expected = (cases.scores(q, k) * powers) @ v
    torch.testing.assert_close(out, expected)
    over = (q, k, v, decay)
    torch.testing.assert_close(torch.autograd.grad(out.sum(), over), torch.autograd.grad(expected.sum(), over))


# ---- entmax


def sparsemax(s):
    """Martins and Astudillo 2016, by sorting."""
    z = s.sort(descending=True).values
    sums, rank = z.cumsum(0), torch.arange(1, len(z) + 1)
    size = int((1 + rank * z > sums).sum())
    return torch.relu(s - (sums[size - 1] - 1) / size)


def entmax15(s):
    """Peters et al. 2019, algorithm 2, by sorting."""
    x = s / 2
    z, rank = x.sort(descending=True).values, torch.arange(1, len(x) + 1)
    mean, square = z.detach().cumsum(0) / rank, (z.detach() ** 2).cumsum(0) / rank
    tau = mean - torch.sqrt(torch.relu((1 - rank * (square - mean**2)) / rank))
    support = z[: int((tau <= z).sum())]
    threshold = support.mean() - torch.sqrt((1 - ((support - support.mean()) ** 2).sum()) / len(support))
    return torch.relu(x - threshold) ** 2


def by_rows(function, kept, q, k, v):
    """Rows of weights by a function of their kept scores."""
    s = cases.scores(q, k)
    rows = [
        [
            torch.stack([(function(s[b, h, i][kept[i]])[:, None] * v[b, h][kept[i]]).sum(0) for i in range(len(kept))])
            for h in range(s.shape[1])
        ]
        for b in range(s.shape[0])
    ]
    return torch.stack([torch.stack(row) for row in rows])


@BIG
@pytest.mark.parametrize(("alpha", "function"), [(1.5, entmax15), (2.0, sparsemax)])
def test_entmax_by_sorting(alpha, function, big):
    q, k, v = cases.tensors(1, 2, 7, 3, big=big)
    text = f"mask m:\n    keep k <= q\n    normalize entmax(alpha={alpha})\n"
    cases.assert_same(text, lambda q, k, v: by_rows(function, cases.causal(7), q, k, v), q, k, v)


def test_entmax_differentiates_its_alpha():
    q, k, v = cases.tensors(2, 3, 6, 3)
    text = "mask m:\n    input a: float[head] learned\n    keep k < q\n    normalize entmax(alpha=1.0 + sigmoid(a))\n"
    alpha = cases.learned(3)
    cases.assert_derivatives(text, q, k, v, a=alpha)
    out, lse, _ = cases.attend(text, q, k, v, a=alpha)
    assert lse is None
    assert bool((out[:, :, 0] == 0).all())


def test_entmax_sums_to_one_at_every_alpha():
    q, k, _ = cases.tensors(1, 2, 40, 3, big=20)
    ones = torch.ones(1, 2, 40, 1, dtype=torch.float64)
    for alpha in (1.02, 1.1, 1.25, 1.5, 1.75, 2.0):
        text = f"mask m:\n    keep k < q\n    normalize entmax(alpha={alpha})\n    output total[q] = sum(weight)\n"
        out, _, aux = cases.attend(text, q, k, ones)
        torch.testing.assert_close(out[0, :, 1:, 0], torch.ones(2, 39, dtype=torch.float64), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(aux["total"], out.squeeze(-1))


def test_entmax_near_one_is_softmax():
    q, k, v = cases.tensors(1, 1, 6, 3)
    out, _, _ = cases.attend(
        "mask m:\n    input a: float\n    normalize entmax(alpha=a)\n", q, k, v, a=torch.tensor(1 + 1e-6)
    )
    torch.testing.assert_close(out, torch.softmax(cases.scores(q, k), -1) @ v, rtol=1e-3, atol=1e-3)


def test_entmax_of_a_mass_is_that_of_repeated_keys():
    q, k, v = cases.tensors(1, 1, 5, 3)
    count = torch.tensor([1.0, 3.0, 2.0, 0.0, 1.0], dtype=torch.float64, requires_grad=True)
    text = "mask m:\n    input n: float[k] learned\n    mass *= n[k]\n    normalize entmax(alpha=1.5)\n"
    out, _, _ = cases.attend(text, q, k, v, n=count)
    repeats = count.detach().long()
    long_k, long_v = (x.repeat_interleave(repeats, 2) for x in (k, v))
    expected, _, _ = cases.attend("mask m:\n    normalize entmax(alpha=1.5)\n", q, long_k, long_v)
    torch.testing.assert_close(out, expected)
    n = (count.detach() + 0.5).requires_grad_()
    cases.assert_derivatives(text, q, k, v, n=n)


def test_entmax_has_second_derivatives():
    q, k, v = cases.tensors(1, 1, 4, 2)
    alpha = cases.learned()
    text = "mask m:\n    input a: float learned\n    keep k <= q\n    normalize entmax(alpha=1.2 + sigmoid(a) / 2.0)\n"

    def out(q, k, v, a):
        return cases.attend(text, q, k, v, a=a)[0]

    assert torch.autograd.gradgradcheck(out, (q, k, v, alpha), atol=1e-4)


# ---- scores of -inf, in every form


@pytest.mark.parametrize(
    "form",
    ["softmax", "softmax(sink=0.5)", "rowsum(sigmoid(score))", "none(sigmoid(score) + 1.0)", "entmax(alpha=1.5)"],
)
def test_a_score_of_minus_infinity_weighs_nothing(form):
    q, k, v = cases.tensors(1, 2, 6, 3)
    b = cases.learned()
    holes = (
        "mask m:\n    input b: float learned\n    keep k <= q\n"
        "    score = where(k == 1 or q == 3, -inf, score * score + b)\n"
        f"    normalize {form}\n    weight += 0.25\n"
    )
    dropped = (
        "mask m:\n    input b: float learned\n    keep k <= q\n    keep not (k == 1 or q == 3)\n"
        f"    score = score * score + b\n    normalize {form}\n    weight += 0.25\n"
    )
    out, lse, _ = cases.attend(holes, q, k, v, b=b)
    expected, expected_lse, _ = cases.attend(dropped, q, k, v, b=b)
    assert torch.equal(out, expected)
    assert lse is expected_lse or torch.equal(lse, expected_lse)
    over = (q, k, v, b)
    torch.testing.assert_close(torch.autograd.grad(out.sum(), over), torch.autograd.grad(expected.sum(), over))
    assert bool((out[:, :, 3] == 0).all())
    cases.assert_derivatives(holes, q, k, v, b=b)


@pytest.mark.parametrize("form", ["softmax(sink=b)", "rowsum(exp(score) + b)", "none(score * b)", "entmax(alpha=1.5)"])
def test_no_pairs_and_no_keys(form):
    b = torch.ones((), dtype=torch.float64, requires_grad=True)
    text = f"mask m:\n    input b: float learned\n    keep q < 0\n    normalize {form}\n"
    if "exp" in form:
        text = text.replace("exp(score)", "softplus(score)")
    for length in (0, 3):
        q, _, _ = cases.tensors(1, 2, 3, 4)
        _, k, v = cases.tensors(1, 2, length, 4)
        out, lse, _ = cases.attend(text, q, k, v, b=b)
        assert torch.equal(out, torch.zeros(1, 2, 3, 4, dtype=torch.float64))
        assert lse is None or bool((lse == 1).all())
        assert all(bool((x == 0).all()) for x in torch.autograd.grad(out.sum(), (q, k, v, b)))


def test_sixteen_bit_rows_do_not_overflow():
    q, k, v = (x.detach().half() for x in cases.tensors(1, 1, 5, 4))
    text = "mask m:\n    normalize none(relu(score * 300.0) ** 2 * 0.001)\n"
    out, _, _ = cases.attend(text, 8 * q, k, v)
    expected, _, _ = cases.attend(text, 8 * q.double(), k.double(), v.double())
    assert out.dtype is torch.float16
    torch.testing.assert_close(out.double(), expected.half().double(), rtol=2e-3, atol=0.1)
