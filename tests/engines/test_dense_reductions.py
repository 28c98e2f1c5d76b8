"""Reductions of the definition: published mechanisms that need more than one pass over a row, and each operator."""

import dense_cases as cases
import pytest
import torch

NEVER = -torch.inf


@pytest.mark.parametrize("big", [1, 50], ids=["plain", "logits x50"])
def test_column_softmax(big):
    """dependencyvit: every key divides its attention among the queries."""
    q, k, v = cases.tensors(2, 2, 6, 3, big=big)
    text = "mask m:\n    keep k < q\n    reduce c[k] = logsumexp(score)\n    normalize none(exp(score - c[k]))\n"

    def oracle(q, k, v):
        query, key = cases.grid(6)
        s = cases.scores(q, k)[..., :5].masked_fill(~(key < query)[:, :5], NEVER)
        return torch.softmax(s, -2) @ v[:, :, :5]

    cases.assert_same(text, oracle, q, k, v)


@pytest.mark.parametrize("rounds", [1, 3])
def test_sinkhorn(rounds):
    q, k, v = cases.tensors(1, 2, 5, 3)
    lines = ["keep k <= q"]
    u, w = "", ""
    for i in range(rounds):
        lines.append(f"reduce row{i}[q] = logsumexp(score{w})")
        u = f" - row{i}[q]"
        lines.append(f"reduce column{i}[k] = logsumexp(score{u})")
        w = f" - column{i}[k]"
    text = "mask m:\n" + "".join(f"    {line}\n" for line in [*lines, f"normalize none(exp(score{u}{w}))"])

    def sinkhorn(q, k, v):
        s = cases.scores(q, k).masked_fill(~cases.causal(5), NEVER)
        u = w = 0
        for _ in range(rounds):
            u = -torch.logsumexp(s + w, -1, keepdim=True)
            w = -torch.logsumexp(s + u, -2, keepdim=True)
        return torch.exp(s + u + w) @ v

    cases.assert_same(text, sinkhorn, q, k, v)


def test_second_row_sum():
    """LSSAR: softplus attention, re-weighted by a power above a threshold, divided by a second row sum."""
    q, k, v = cases.tensors(1, 2, 7, 3)
    text = (
        "mask m:\n    keep k <= q\n    let a = softplus(2.0 * score)\n    reduce total[q] = sum(a)\n"
        "    normalize rowsum(relu(3.0 * a / total[q] - 0.5) ** 3)\n"
    )

    def lssar(q, k, v):
        a = torch.nn.functional.softplus(2 * cases.scores(q, k)) * cases.causal(7)
        b = torch.relu(3 * a / a.sum(-1, keepdim=True) - 0.5) ** 3
        total = b.sum(-1, keepdim=True)
        return torch.where(total > 0, b / torch.where(total > 0, total, 1), 0) @ v

    cases.assert_same(text, lssar, q, k, v)


def test_grouped_softmax():
    """Landmark attention (Mohtashami and Jaggi 2023): past blocks through the gate of their last key."""
    size, length = 3, 9
    q, k, v = cases.tensors(1, 2, length, 3)
    text = (
        "mask m(size: int = 3):\n    keep k <= q\n    let own = k // size == q // size\n"
        "    let gate = k % size == size - 1\n"
        "    reduce inner[q, k // size] = logsumexp(where(gate, -inf, score))\n"
        "    reduce door[q, k // size] = sum(where(gate, score, 0.0))\n"
        "    let past = score - inner[q, k // size] + door[q, k // size]\n"
        "    score = score if own else where(gate, -inf, past)\n"
    )

    def landmark(q, k, v):
        s = cases.scores(q, k)
        out = []
        for i in range(length):
            logits = [s[..., i, j] for j in range(i - i % size, i + 1)]
            keys = list(range(i - i % size, i + 1))
            for block in range(i // size):
                members = [block * size + j for j in range(size - 1)]
                inside = torch.log_softmax(torch.stack([s[..., i, j] for j in members], -1), -1)
                logits += [inside[..., j] + s[..., i, block * size + size - 1] for j in range(size - 1)]
                keys += members
            out.append((torch.softmax(torch.stack(logits, -1), -1).unsqueeze(-2) @ v[:, :, keys]).squeeze(-2))
        return torch.stack(out, -2)

    cases.assert_same(text, landmark, q, k, v)


def test_standardised_scores():
    q, k, v = cases.tensors(1, 2, 6, 3)
    text = (
        "mask m(eps: float = 0.01):\n    input gain: float[head] learned\n    keep k <= q\n"
        "    reduce mu[q] = mean(score)\n    reduce var[q] = mean((score - mu[q]) ** 2)\n"
        "    normalize none(gain * (score - mu[q]) / sqrt(var[q] + eps))\n"
    )

    def standardised(q, k, v, gain):
        s, kept = cases.scores(q, k), cases.causal(6)
        rows = [(s[..., i, : i + 1] - s[..., i, : i + 1].mean(-1, keepdim=True)) for i in range(6)]
        rows = [x / torch.sqrt((x**2).mean(-1, keepdim=True) + 0.01) for x in rows]
        weights = torch.stack([torch.nn.functional.pad(x, (0, 6 - x.shape[-1])) for x in rows], -2)
        return gain.view(2, 1, 1) * weights * kept @ v

    cases.assert_same(text, standardised, q, k, v, gain=cases.learned(2))


def test_classes_change_each_others_weights():
    """VAR: what sinks give up of a row's mass goes to the visible class in proportion."""
    q, k, v = cases.tensors(1, 2, 7, 3)
    kind = torch.tensor([0, 1, 2, 0, 1, 1, 2])
    text = (
        "mask m(a: float = 0.6):\n    input kind: int[seq]\n    keep k <= q\n"
        "    reduce m[q, kind[k]: 3] = sum(weight)\n"
        "    weight *= a if kind[k] == 0 else "
        "(where(m[q, 1] > 0.0, 1.0 + (1.0 - a) * m[q, 0] / m[q, 1], 1.0) if kind[k] == 1 else 1.0)\n"
    )

    def var(q, k, v, kind):
        w = torch.softmax(cases.scores(q, k).masked_fill(~cases.causal(7), NEVER), -1)
        sinks, visible = (w[..., kind == c].sum(-1, keepdim=True) for c in (0, 1))
        gain = torch.where(visible > 0, 1 + 0.4 * sinks / torch.where(visible > 0, visible, 1), 1)
        return torch.where(kind == 0, 0.6 * w, torch.where(kind == 1, gain * w, w)) @ v

    cases.assert_same(text, var, q, k, v, kind=kind)


def test_every_operator_against_loops():
    q, k, v = cases.tensors(2, 2, 6, 3)
    ops = ("sum", "mean", "max", "min", "logsumexp")
    text = (
        "mask m:\n    input kind: int[batch, seq]\n    keep k <= q and kind[k] != 3\n"
        + "".join(f"    output {op}_of[q // 2, kind[k]: 4] = {op}(score)\n" for op in ops)
        + "    output how_many[q // 2, kind[k]: 4] = count(score > 0.0)\n    output all_of[k] = count()\n"
        "    output whole = sum(score)\n"
    )
    kind = torch.tensor([[0, 1, 3, 1, 7, 0], [2, 2, -1, 0, 1, 3]])
    out, _, aux = cases.attend(text, q, k, v, kind=kind)
    plain = {
        "sum": (sum, 0.0),
        "mean": (lambda x: sum(x) / len(x), 0.0),
        "max": (max, -torch.inf),
        "min": (min, torch.inf),
        "logsumexp": (lambda x: torch.logsumexp(torch.stack(x), 0), -torch.inf),
    }
    s = cases.scores(q, k).detach()
    for b in range(2):
        for h in range(2):
            pairs = [(i, j) for i in range(6) for j in range(i + 1) if kind[b, j] != 3]
            assert aux["whole"][b, h].item() == pytest.approx(sum(float(s[b, h, i, j]) for i, j in pairs))
            assert aux["all_of"][b, h].tolist() == [sum(j == x for _, x in pairs) for j in range(6)]
            for group in range(3):
                for c in range(4):
                    found = [s[b, h, i, j] for i, j in pairs if i // 2 == group and kind[b, j] == c]
                    assert int(aux["how_many"][b, h, group, c]) == sum(float(x) > 0 for x in found)
                    for op, (function, of_none) in plain.items():
                        expected = function(found) if found else of_none
                        assert aux[f"{op}_of"][b, h, group, c].item() == pytest.approx(float(expected))
    assert aux["all_of"].dtype is torch.int64
    assert {n for n, x in aux.items() if x.requires_grad} == {"sum_of", "mean_of", "logsumexp_of", "whole"}
    assert out.shape == v.shape
    cases.assert_derivatives(text, q, k, v, kind=kind)


def test_outputs_of_the_weight():
    q, k, v = cases.tensors(1, 2, 5, 3)
    text = (
        "mask m:\n    keep k <= q\n    output before[k] = sum(weight)\n    weight *= 1.0 + k\n"
        "    output after[k] = sum(weight)\n    output diagonal[q] = sum(where(q == k, weight, 0.0))\n"
    )
    _, _, aux = cases.attend(text, q, k, v)
    w = torch.softmax(cases.scores(q, k).masked_fill(~cases.causal(5), NEVER), -1)
    changed = w * (1 + torch.arange(5))
    torch.testing.assert_close(aux["before"], w.sum(-2))
    torch.testing.assert_close(aux["after"], changed.sum(-2))
    torch.testing.assert_close(aux["diagonal"], changed.diagonal(dim1=-2, dim2=-1))
    cases.assert_derivatives(text, q, k, v)


def test_slots_count_from_the_call():
    """`q` and `k` name the call's own rows and columns; groups of positions stay those of the line."""
    q, k, v = cases.tensors(2, 1, 3, 3)
    _, k, v = cases.tensors(2, 1, 7, 3)
    offset = torch.tensor([4, 1])
    text = "mask m:\n    keep k <= q\n    output row[q] = count()\n    output group[q // 2] = count()\n"
    _, _, aux = cases.attend(text, q, k, v, q_offset=offset)
    assert aux["row"][:, 0].tolist() == [[5, 6, 7], [2, 3, 4]]
    assert aux["group"][:, 0].tolist() == [[0, 0, 11, 7], [2, 7, 0, 0]]


def test_a_reduction_is_read_where_nothing_was_added():
    q, k, v = cases.tensors(1, 1, 4, 3)
    text = "mask m:\n    keep k <= q\n    reduce c[q] = sum(sigmoid(score))\n    score += c[q - 1] + c[q + 1] + c[k]\n"

    def oracle(q, k, v):
        s = cases.scores(q, k)
        c = (torch.sigmoid(s) * cases.causal(4)).sum(-1)
        padded = torch.nn.functional.pad(c, (1, 1))
        s = s + (padded[..., :-2] + padded[..., 2:]).unsqueeze(-1) + c.unsqueeze(-2)
        return torch.softmax(s.masked_fill(~cases.causal(4), NEVER), -1) @ v

    cases.assert_same(text, oracle, q, k, v)


def test_no_derivative_through_pairs_of_minus_infinity():
    """sqrt has no finite derivative at 0, which is what the pairs that the score drops would contribute."""
    q, k, v = cases.tensors(1, 1, 5, 3)
    text = (
        "mask m:\n    keep k <= q\n    score = where(k == 1, -inf, score)\n"
        "    output roots[q] = sum(sqrt(where(k == 1, 0.0 * relu(score), score * score)))\n"
    )
    _, _, aux = cases.attend(text, q, k, v)
    expected = (cases.scores(q, k).abs() * cases.causal(5))[..., [0, 2, 3, 4]].sum(-1)
    torch.testing.assert_close(aux["roots"], expected)
    cases.assert_derivatives(text, q, k, v)
