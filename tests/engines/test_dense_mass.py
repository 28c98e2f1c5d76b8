"""Masses, weights and rows that are not computed, in the definition."""

import dense_cases as cases
import pytest
import torch

# ---- mass


@pytest.mark.parametrize("big", [1, 50], ids=["plain", "logits x50"])
def test_masses_count_keys(big):
    q, k, v = cases.tensors(1, 2, 5, 3, big=big)
    text = "mask m:\n    input n: float[k] learned\n    keep k <= q\n    mass *= n[k]\n"

    def weighted(q, k, v, n):
        parts = n * torch.exp(cases.scores(q, k) - 60) * cases.causal(5)
        return parts / parts.sum(-1, keepdim=True) @ v

    n = torch.tensor([1.0, 3.0, 0.25, 2.0, 5.0], dtype=torch.float64, requires_grad=True)
    cases.assert_same(text, weighted, q, k, v, n=n)
    _, lse, _ = cases.attend(text, q, k, v, n=n)
    expected = torch.log((n * torch.exp(cases.scores(q, k) - 60) * cases.causal(5)).sum(-1)) + 60
    torch.testing.assert_close(lse, expected)


@pytest.mark.parametrize("form", ["softmax", "softmax(sink=0.5)", "rowsum(softplus(score))", "none(sigmoid(score))"])
def test_masses_of_zero_have_the_derivative_of_the_formula(form):
    q, k, v = cases.tensors(1, 1, 5, 3)
    text = (
        "mask m:\n    input n: float[k] learned\n    keep k <= q\n    mass *= n[k] * n[k + 1] if k == 4 else n[k]\n"
        f"    normalize {form}\n    weight = 1.5 * weight\n"
    )
    n = torch.tensor([1.0, 0.0, 2.0, 0.0, 1.0], dtype=torch.float64, requires_grad=True)
    part = {
        "softmax": torch.exp,
        "softmax(sink=0.5)": torch.exp,
        "rowsum(softplus(score))": torch.nn.functional.softplus,
        "none(sigmoid(score))": torch.sigmoid,
    }[form]

    def oracle(q, k, v, n):
        # The mass of key 4 reads out of range: 0.
        parts = torch.cat([n[:4], 0 * n[4:]]) * part(cases.scores(q, k)) * cases.causal(5)
        total = parts.sum(-1, keepdim=True) + (torch.tensor(0.5).double().exp() if "sink" in form else 0)
        return 1.5 * (parts if form.startswith("none") else parts / total) @ v

    out, _, _ = cases.attend(text, q, k, v, n=n)
    expected = oracle(q, k, v, n)
    torch.testing.assert_close(out, expected)
    over = (q, k, v, n)
    d_out = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=out.dtype)
    found = torch.autograd.grad(out, over, d_out)
    torch.testing.assert_close(found, torch.autograd.grad(expected, over, d_out))
    assert float(found[-1][1].abs()) > 1e-3
    cases.assert_derivatives(text, q, k, v, n=n)


def test_scores_at_mass_zero_do_not_stabilise_and_do_not_overflow():
    q, k, v = cases.tensors(1, 1, 4, 3)
    text = (
        "mask m:\n    input n: float[k] learned\n    input b: float[k] learned\n    score += b[k]\n    mass *= n[k]\n"
    )
    n = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([0.0, 5000.0, 0.0, -5000.0], dtype=torch.float64, requires_grad=True)
    out, lse, _ = cases.attend(text, q, k, v, n=n, b=b)
    expected, expected_lse, _ = cases.attend("mask m:\n    keep k % 2 == 0\n", q, k, v)
    torch.testing.assert_close((out, lse), (expected, expected_lse))
    gradients = torch.autograd.grad(out.sum() + lse.sum(), (q, k, v, n, b))
    assert not any(bool(torch.isnan(x).any()) for x in gradients)
    assert float(gradients[3][1].abs()) > 1e300
    assert float(gradients[3][3]) == 0
    assert gradients[4][[1, 3]].tolist() == [0, 0]


def test_values_at_mass_zero_may_overflow():
    q, k, v = cases.tensors(1, 1, 4, 3)
    text = (
        "mask m:\n    input n: float[k] learned\n    mass *= n[k]\n"
        "    normalize none(sigmoid(score) * 10.0 ** (1000.0 * (k % 2)))\n"
    )
    n = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64, requires_grad=True)
    out, _, _ = cases.attend(text, q, k, v, n=n)
    expected, _, _ = cases.attend("mask m:\n    keep k % 2 == 0\n    normalize none(sigmoid(score))\n", q, k, v)
    torch.testing.assert_close(out, expected)
    gradients = torch.autograd.grad(out.sum(), (q, k, v, n))
    assert not any(bool(torch.isnan(x).any()) for x in gradients)


def test_rows_of_mass_zero_are_empty():
    q, k, v = cases.tensors(1, 1, 3, 3)
    n = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64, requires_grad=True)
    text = "mask m:\n    input n: float[k] learned\n    keep k <= q\n    mass *= n[k]\n    weight += 1.0\n"
    out, lse, _ = cases.attend(text, q, k, v, n=n)
    assert bool((out[0, 0, :2] == 0).all())
    assert bool(torch.isneginf(lse[0, 0, :2]).all())
    torch.testing.assert_close(out[0, 0, 2], 2 * v[0, 0, 2])
    gradients = torch.autograd.grad(out[0, 0, :2].sum(), (q, k, v, n))
    assert all(bool((x == 0).all()) for x in gradients)
    gradients = torch.autograd.grad(cases.attend(text, q, k, v, n=n)[0].sum(), (q, k, v, n))
    assert all(bool(torch.isfinite(x).all()) for x in gradients)


def test_hard_gates_pass_the_gradient_of_soft_ones():
    """Straight-through: the value of the hard gate, the derivative of the soft one."""
    q, k, v = cases.tensors(1, 1, 5, 3)
    logits = cases.learned(5)
    soft = torch.sigmoid(logits)
    hard = (logits.detach() > 0).double()
    gate = hard + soft - soft.detach()
    text = "mask m:\n    input gate: float[k] learned\n    mass *= gate[k]\n"
    out, _, _ = cases.attend(text, q, k, v, gate=gate)
    s = cases.scores(q, k)
    parts = hard * torch.exp(s)
    weights = parts / parts.sum(-1, keepdim=True)
    torch.testing.assert_close(out, weights @ v)
    d_out = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=out.dtype)
    (found,) = torch.autograd.grad(out, logits, d_out)
    # d out / d gate_j = sum over queries of exp(s_j) / total * (v_j - out), of open and of closed gates alike.
    through = (d_out.unsqueeze(-2) * (v.unsqueeze(-3) - (weights @ v).unsqueeze(-2))).sum(-1)
    slopes = (torch.exp(s) / parts.sum(-1, keepdim=True) * through).sum((0, 1, 2))
    torch.testing.assert_close(found, slopes * soft * (1 - soft))


def test_a_mass_may_read_the_score():
    q, k, v = cases.tensors(1, 1, 5, 3)
    text = "mask m:\n    keep k <= q\n    score *= 2.0\n    mass *= relu(score)\n    mass *= 0.5\n"

    def oracle(q, k, v):
        s = 2 * cases.scores(q, k)
        parts = 0.5 * torch.relu(s) * torch.exp(s) * cases.causal(5)
        total = parts.sum(-1, keepdim=True)
        return torch.where(total > 0, parts / torch.where(total > 0, total, 1), 0) @ v

    cases.assert_same(text, oracle, q, k, v)


# ---- weight


def test_weights_are_affine():
    """iLLaMA: a learned mixture of softmax and of a plain average."""
    q, k, v = cases.tensors(1, 2, 5, 3)
    text = (
        "mask m:\n    input a: float[head] learned\n    keep k <= q\n"
        "    weight *= a\n    weight += (1.0 - a) / (q + 1)\n"
    )

    def oracle(q, k, v, a):
        w = torch.softmax(cases.scores(q, k).masked_fill(~cases.causal(5), -torch.inf), -1)
        a = a.view(2, 1, 1)
        return (a * w + (1 - a) * cases.causal(5) / torch.arange(1, 6).view(-1, 1)) @ v

    cases.assert_same(text, oracle, q, k, v, a=cases.learned(2))


def test_a_weight_of_zero_still_divides():
    q, k, v = cases.tensors(1, 1, 5, 3)
    text = "mask m:\n    keep k <= q\n    weight *= 0.0 if k == 1 else 1.0\n"

    def oracle(q, k, v):
        w = torch.softmax(cases.scores(q, k).masked_fill(~cases.causal(5), -torch.inf), -1)
        return w * (torch.arange(5) != 1) @ v

    cases.assert_same(text, oracle, q, k, v)


def test_constant_weights():
    q, k, v = cases.tensors(1, 1, 4, 3)
    out, lse, _ = cases.attend("mask m:\n    keep k <= q\n    weight = 1.0 / (q + 1)\n", q, k, v)
    torch.testing.assert_close(out, v.cumsum(2) / torch.arange(1, 5).view(-1, 1))
    assert all(bool((x == 0).all()) for x in torch.autograd.grad(out.sum(), (q, k), retain_graph=True))
    torch.testing.assert_close(lse, torch.logsumexp(cases.scores(q, k).masked_fill(~cases.causal(4), -torch.inf), -1))


def test_dropout():
    q, k, v = cases.tensors(2, 2, 8, 3)
    text = (
        "mask m(p: float = 0.25):\n    input seed: int\n    keep k <= q\n"
        "    weight *= where(rand(seed, batch, head, q, k) < p, 0.0, 1.0 / (1.0 - p))\n"
        "    output dropped = count(rand(seed, batch, head, q, k) < p)\n"
    )
    mask = torch.tensor(
        [
            [[[cases.drawn(7, b, h, i, j) < 0.25 for j in range(8)] for i in range(8)] for h in range(2)]
            for b in range(2)
        ]
    )

    def dropout(q, k, v, seed):
        w = torch.softmax(cases.scores(q, k).masked_fill(~cases.causal(8), -torch.inf), -1)
        return torch.where(mask, 0, w / 0.75) @ v

    cases.assert_same(text, dropout, q, k, v, seed=torch.tensor(7))
    _, _, aux = cases.attend(text, q, k, v, seed=torch.tensor(7))
    assert aux["dropped"].tolist() == (mask & cases.causal(8)).sum((2, 3)).tolist()


# ---- rows


def test_rows_that_take_the_mean():
    """Informer: queries that are not active give the mean of the values."""
    q, k, v = cases.tensors(2, 2, 6, 3)
    active = torch.rand(2, 2, 6, generator=torch.Generator().manual_seed(0)) < 0.5
    text = (
        "mask m:\n    input active: bool[batch, head, q]\n    keep k <= q and q != 3\n"
        "    rows active[q] else mean\n    output seen[k] = count()\n"
    )

    def informer(q, k, v, active):
        query, _ = cases.grid(6)
        kept = cases.causal(6) & (query != 3)
        w = torch.softmax(cases.scores(q, k).masked_fill(~kept, -torch.inf), -1)
        w = torch.where(active.unsqueeze(-1), w, kept / kept.sum(-1, keepdim=True))
        return torch.where(query == 3, 0, w) @ v

    clean = [x.detach().clone() for x in (q, k, v)]
    expected = torch.nan_to_num(informer(q, k, v, active))
    out, lse, aux = cases.attend(text, q, k, v, active=active)
    torch.testing.assert_close(out[:, :, [0, 1, 2, 4, 5]], expected[:, :, [0, 1, 2, 4, 5]])
    assert bool((out[:, :, 3] == 0).all())
    query, _ = cases.grid(6)
    computed = active & (query.view(-1) != 3)
    assert torch.equal(torch.isfinite(lse), computed)
    assert torch.equal(aux["seen"], (computed.unsqueeze(-1) & cases.causal(6)).sum(-2))
    cases.assert_derivatives(text, q, k, v, active=active)
    # What a query that is not computed holds does not matter.
    clean[0][~active] = torch.nan
    again, _, _ = cases.attend(text, *clean, active=active)
    torch.testing.assert_close(again, out)


def test_rows_that_are_zero_or_pass_their_value_on():
    _, k, v = cases.tensors(1, 2, 6, 3)
    q, _, _ = cases.tensors(1, 2, 4, 3)
    body = "keep k <= q\n    normalize softmax(sink=0.0)\n    rows q % 2 == 0 else"
    out, lse, _ = cases.attend(f"mask m:\n    {body} pass\n", q, k, v, q_offset=3)
    zero, _, _ = cases.attend(f"mask m:\n    {body} zero\n", q, k, v, q_offset=3)
    plain, plain_lse, _ = cases.attend(
        "mask m:\n    keep k <= q\n    normalize softmax(sink=0.0)\n", q, k, v, q_offset=3
    )
    torch.testing.assert_close(out[:, :, [1, 3]], plain[:, :, [1, 3]])
    torch.testing.assert_close(zero[:, :, [1, 3]], plain[:, :, [1, 3]])
    # Positions 3, 4, 5 and 6, of which the last has no key.
    assert torch.equal(out[:, :, 0], v[:, :, 3])
    assert torch.equal(out[:, :, 2], v[:, :, 5])
    assert bool((zero[:, :, [0, 2]] == 0).all())
    assert torch.equal(torch.isneginf(lse), torch.tensor([True, False, True, False]).expand(1, 2, 4))
    torch.testing.assert_close(lse[:, :, [1, 3]], plain_lse[:, :, [1, 3]])
    cases.assert_derivatives(f"mask m:\n    {body} pass\n", q, k, v, q_offset=3)
    cases.assert_derivatives(f"mask m:\n    {body} zero\n", q, k, v, q_offset=3)


def test_a_position_without_a_key_passes_zero():
    q, k, v = cases.tensors(1, 1, 3, 3)
    out, _, _ = cases.attend("mask m:\n    keep k <= q\n    rows q < 0 else pass\n", q, k, v, q_offset=1)
    assert torch.equal(out[:, :, :2], v[:, :, 1:])
    assert bool((out[:, :, 2] == 0).all())


def test_gradients_reach_everything_that_may_have_one():
    """Zeros where the result is not made of it, as the operators of other engines give them."""
    q, k, v = cases.tensors(1, 1, 3, 3)
    b = cases.learned(3)
    text = "mask m:\n    input b: float[k] learned\n    keep k <= q\n    score += b[k]\n    normalize none(1.0)\n"
    out, _, _ = cases.attend(text, q, k, v, b=b)
    torch.testing.assert_close(out, v.cumsum(2))
    gradients = torch.autograd.grad(out.sum(), (q, k, v, b))
    assert [bool((x == 0).all()) for x in gradients] == [True, True, False, True]
