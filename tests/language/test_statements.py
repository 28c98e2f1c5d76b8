"""The lines that make weights out of scores, as they stand in a checked mask."""

import pytest

from maskc.check import diagnose, load
from maskc.checker.kinks import degree
from maskc.checker.signs import is_nonnegative
from maskc.diagnostics import Source
from maskc.expr import ONE, SCORE, WEIGHT, Expr, FinalScore, Score, Type, walk
from maskc.spec import DimKind, Form, MaskSpec, Normalizer, ReduceOp, RowDefault


def mask(*lines: str, parameters: str = "") -> MaskSpec:
    """A checked mask of these lines."""
    return load(f"mask m{parameters}:\n" + "".join(f"    {line}\n" for line in lines))


def errors(*lines: str) -> list[str]:
    """What is wrong with these lines."""
    text = "mask m:\n" + "".join(f"    {line}\n" for line in lines)
    return [d.message for d in diagnose(Source("a.mask", text)) if d.severity == "error"]


def warnings(*lines: str) -> list[str]:
    """What these lines probably do not mean."""
    text = "mask m:\n" + "".join(f"    {line}\n" for line in lines)
    return [d.message for d in diagnose(Source("a.mask", text)) if d.severity == "warning"]


def reads(expr: Expr, kind: type) -> bool:
    return any(isinstance(e, kind) for e in walk(expr))


def test_a_mask_of_keeps_alone_is_a_plain_softmax() -> None:
    spec = mask("keep k <= q")
    assert (spec.score, spec.mass, spec.normalizer, spec.weight) == (SCORE, ONE, Normalizer(), WEIGHT)
    assert (spec.reductions, spec.rows, spec.packed, spec.border, spec.separate) == ((), None, None, None, False)


# ---- mass


def test_masses_are_multiplied_and_see_the_final_score() -> None:
    spec = mask(
        "input gate: float[k] learned",
        "mass *= gate[k]",
        "mass *= 2 if score > 3 else 0",
        "score *= 2",
        "mass *= k <= q",
    )
    assert str(spec.score) == "score * 2.0"
    decided = "where(final_score > 3.0, 2, 0)"
    assert str(spec.mass) == f"(gate[k - k_offset] * float({decided})) * float(int(k <= q))"
    assert spec.mass.type is Type.FLOAT


def test_lets_keep_the_score_that_they_saw() -> None:
    spec = mask("let before = score", "score += 1", "let after = score", "mass *= before * after * score")
    assert str(spec.mass) == "(score * (score + 1.0)) * final_score"


@pytest.mark.parametrize("operator", ["=", "+=", "-=", "/=", "**="])
def test_masses_are_factors(operator: str) -> None:
    assert errors(f"mass {operator} 2") == ["a mass is changed by 'mass *= ...' only"]


# ---- weight


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["weight *= 2"], "weight * 2.0"),
        (["weight += 0.5"], "weight + 0.5"),
        (["weight -= q == k"], "weight - float(int(q == k))"),
        (["weight /= 3", "weight = 1 - weight"], "1.0 - (weight / 3.0)"),
        (["weight = where(q == k, 1, -weight)"], "where(q == k, 1.0, -weight)"),
        (["weight = 3"], "3.0"),
        (["weight *= score"], "weight * final_score"),
        (["weight = sum(weight * i for i in range(3))"], "sum(weight * float(i) for i in range(3))"),
    ],
)
def test_weights_are_changed_in_order(lines: list[str], expected: str) -> None:
    assert str(mask(*lines).weight) == expected


@pytest.mark.parametrize(
    "line",
    [
        "weight *= weight",
        "weight = exp(weight)",
        "weight = 1 / weight",
        "weight = relu(weight)",
        "weight = max(weight, 0.1)",
        "weight = where(weight > 0.1, weight, 0)",
        "weight = abs(weight - 1)",
        "weight = weight ** 2",
    ],
)
def test_weights_stay_affine(line: str) -> None:
    assert errors(line) == ["this is not affine in 'weight'"]


def test_degrees() -> None:
    assert degree(SCORE) == 0
    assert degree(WEIGHT) == 1


def test_the_weight_may_be_read_by_reductions_and_weight_lines_only() -> None:
    assert errors("score += weight") == ["a 'score' line cannot read 'weight', which is made from it"]
    assert errors("mass *= weight") == ["a 'mass' line cannot read 'weight', which is made from it"]
    assert errors("normalize none(weight)") == ["a normaliser cannot read 'weight', which is made from it"]
    assert errors("let w = weight", "score -= w") == ["a 'score' line cannot read 'weight', which is made from it"]
    assert errors("keep weight > 0") == ["a 'keep' cannot read the weight, which the pairs that are kept decide"]
    assert errors("claim weight > 0") == ["a 'claim' cannot read the weight, which the pairs that are kept decide"]


# ---- normalize


@pytest.mark.parametrize(
    ("line", "form", "value", "sink", "alpha"),
    [
        ("softmax", Form.SOFTMAX, None, None, None),
        ("softmax(sink=0)", Form.SOFTMAX, None, "0.0", None),
        ("softmax(sink=offset + q)", Form.SOFTMAX, None, "offset[head] + float(q)", None),
        ("rowsum(relu(score))", Form.ROWSUM, "relu(final_score)", None, None),
        ("rowsum(abs(score), sink=1)", Form.ROWSUM, "abs(final_score)", "1.0", None),
        ("none(sigmoid(score - 2))", Form.NONE, "sigmoid(final_score - 2.0)", None, None),
        ("none(k <= q)", Form.NONE, "float(int(k <= q))", None, None),
        ("entmax(alpha=1.5)", Form.ENTMAX, None, None, "1.5"),
        ("entmax(alpha=2)", Form.ENTMAX, None, None, "2.0"),
        ("entmax(alpha=offset)", Form.ENTMAX, None, None, "offset[head]"),
    ],
)
def test_normalizers(line: str, form: Form, value: str | None, sink: str | None, alpha: str | None) -> None:
    normalizer = mask("input offset: float[head] learned", "score += offset", f"normalize {line}").normalizer
    shown = [None if e is None else str(e) for e in (normalizer.value, normalizer.sink, normalizer.alpha)]
    assert (normalizer.form, shown) == (form, [value, sink, alpha])
    assert all(e is None or e.type is Type.FLOAT for e in (normalizer.value, normalizer.sink, normalizer.alpha))


def test_the_normalizer_sees_the_final_score_wherever_it_stands() -> None:
    spec = mask("normalize none(score)", "score += 1")
    assert str(spec.normalizer.value) == "final_score"
    assert str(spec.score) == "score + 1.0"


@pytest.mark.parametrize(
    ("value", "warned"),
    [
        ("relu(score)", False),
        ("relu(score) ** 2", False),
        ("score ** 2", False),
        ("score * score", False),
        ("abs(score) + 1", False),
        ("exp(score) * k", True),  # nothing says that positions of a float are positive
        ("exp(score) + softplus(score)", False),
        ("where(score > 0, score + 1, exp(score))", False),
        ("where(score < 0, exp(score), score)", False),
        ("where(score > -1, score, 0)", True),
        ("max(score, 0)", False),
        ("min(score, 0)", True),
        ("min(relu(score), sigmoid(score))", False),
        ("sum(relu(score - i) for i in range(3))", False),
        ("sqrt(score) / exp(score)", False),
        ("rand(1, q, k)", False),
        ("(k <= q) * 1.0", False),
        ("tanh(relu(score))", False),
        ("tanh(score)", True),
        ("score", True),
        ("score ** 3", True),
        ("-exp(score)", True),
    ],
)
def test_row_sums_that_can_be_negative_are_warned_of(value: str, warned: bool) -> None:
    assert warnings(f"normalize rowsum({value})") == (["this can be negative"] if warned else [])


def test_signs_of_parts() -> None:
    assert not is_nonnegative(SCORE)
    assert is_nonnegative(ONE)


# ---- reductions


@pytest.mark.parametrize(
    ("slot", "text", "index", "size"),
    [
        ("q", "q", "q - q_offset", "q_len"),
        ("k", "k", "k - k_offset", "k_len"),
        ("q // b", "q // b", "q // b", "(((q_offset + q_len) - 1) // b) + 1"),
        ("k // 4", "k // 4", "k // 4", "(((k_offset + k_len) - 1) // 4) + 1"),
        ("kind[k]: 3", "3", "kind[k]", "3"),
        ("q - k: 2 * b", "2 * b", "q - k", "2 * b"),
        ("k <= q: 2", "2", "int(k <= q)", "2"),
    ],
)
def test_slots(slot: str, text: str, index: str, size: str) -> None:
    spec = mask("input kind: int[seq]", "keep kind[k] > b", f"reduce r[{slot}] = sum(score)", parameters="(b: int = 8)")
    (reduction,) = spec.reductions
    (dim,) = reduction.dims
    assert (dim.kind, dim.text, str(dim.extent)) == (DimKind.EXTENT, text, size)
    assert [str(i) for i in reduction.indices] == [index]
    assert spec.parameters[0].structural == ("b" in slot)


def test_slots_of_coordinates() -> None:
    spec = mask("axes y, x", "reduce r[q.y, k.x] = sum(score)", "score -= r[q.y, k.x] + r[k.y, q.x]")
    (reduction,) = spec.reductions
    assert [d.text for d in reduction.dims] == ["y", "x"]
    assert [str(d.extent) for d in reduction.dims] == ["y.size", "x.size"]
    assert [str(i) for i in reduction.indices] == ["q.y", "k.x"]
    assert str(spec.score) == "score - (r[batch, head, q.y, k.x] + r[batch, head, k.y, q.x])"


def test_reductions_read_the_score_so_far_and_are_read_like_inputs() -> None:
    spec = mask(
        "score += 1",
        "reduce column[k] = logsumexp(score)",
        "reduce total = mean(column[k] * 2)",
        "score -= column[k] + total",
        "output late[q] = max(score)",
    )
    column, total, late = spec.reductions
    assert (str(column.value), str(total.value)) == ("score + 1.0", "column[batch, head, k - k_offset] * 2.0")
    assert (column.op, total.op, late.op) == (ReduceOp.LOGSUMEXP, ReduceOp.MEAN, ReduceOp.MAX)
    assert (column.output, total.output, late.output) == (False, False, True)
    assert total.dims == total.indices == ()
    assert str(spec.score) == "(score + 1.0) - (column[batch, head, k - k_offset] + total[batch, head])"
    assert late.value == spec.score
    assert not reads(late.value, FinalScore)


def test_counts_are_ints_of_booleans() -> None:
    spec = mask("reduce n[q] = count()", "reduce m[k] = count(score > 0)", "score /= n[q] + m[k]")
    n, m = spec.reductions
    assert (str(n.value), str(m.value)) == ("True", "score > 0.0")
    assert {n.value.type, m.value.type} == {Type.BOOL}
    assert str(spec.score) == "score / float(n[batch, head, q - q_offset] + m[batch, head, k - k_offset])"


def test_final_reductions() -> None:
    """What reads the weight or the final score stands behind everything that makes them."""
    lines = ["output c[k] = sum(weight)", "reduce s[q] = sum(c[k])"]
    spec = mask(*lines, "weight /= s[q]", "output d[k] = sum(weight)")
    assert [r.name for r in spec.reductions] == ["c", "s", "d"]
    for line, word in (("score += 1", "score"), ("mass *= 2", "mass"), ("normalize none(score)", "normalize")):
        said = f"'c' on line 2 reads what this '{word}' line changes: the final score or the weight"
        assert errors(*lines, line) == [said]
    said = ["'m' on line 3 reads what this 'score' line changes: the final score or the weight"]
    assert errors("mass *= score", "reduce m[q] = sum(mass)", "score += 1") == said
    assert errors("mass *= 2", "reduce m[q] = sum(mass)", "score += 1") == []


def test_keeps_come_first_and_read_no_reduction() -> None:
    lines = ["reduce n[q] = count()", "keep k <= q"]
    assert [str(c) for c in mask(*lines).clauses] == ["k <= q"]
    assert warnings(*lines) == ["this 'keep' also decides which pairs 'n' on line 2 gathers"]
    assert errors("reduce n[q] = count()", "keep n[q] > 3") == [
        "a 'keep' cannot read 'n': reductions gather the pairs that are kept"
    ]


def test_decisions_may_read_scores() -> None:
    spec = mask("score += 1", "keep score > 0.5", "score *= 2")
    assert [str(c) for c in spec.clauses] == ["(score + 1.0) > 0.5"]
    assert reads(spec.clauses[0], Score)


@pytest.mark.parametrize("op", ["max", "min"])
def test_max_and_min_are_for_decisions_and_outputs(op: str) -> None:
    reduction = f"reduce m[q] = {op}(score)"
    said = f"this reads 'm': a '{op}' carries no gradient"
    for line in ("score -= m[q]", "mass *= m[q]", "normalize none(score - m[q])", "weight *= m[q]"):
        assert errors(reduction, line) == [said]
    assert errors(reduction, "normalize softmax(sink=m[q])") == [said]
    through = f"this reads 'm' through 'z': a '{op}' carries no gradient"
    assert errors(reduction, "reduce z[q] = sum(exp(score - m[q]))", "score -= z[q]") == [through]
    for line in (
        "weight *= where(score < m[q], 0, 1)",
        "score += floor(m[q])",
        "output o[q] = sum(m[q] - score)",
        "score *= 2 if m[q] > 1 else 3",
    ):
        assert errors(reduction, line) == []
    assert errors(f"reduce far[q] = {op}(q - k)", "score += far[q]") == []  # depends on nothing that learns
    learned = ["input t: float[seq] learned", f"reduce m[q] = {op}(t[k])", "score += m[q]"]
    assert errors(*learned) == [said]
    assert errors("input t: float[seq]", *learned[1:]) == []


def test_tables_of_all_pairs_are_refused() -> None:
    said = ["'w' would have an entry for every pair: as large as all weights"]
    assert errors("output w[q, k] = sum(weight)") == said
    assert errors("output w[k, 0: 1, q] = sum(weight)") == said
    assert errors("axes y, x", "output w[q.y, q.x, k.x, k.y] = sum(weight)") == said
    assert errors("axes y, x", "output w[q.y, k.x, k.y] = sum(weight)") == []
    assert errors("output w[q // 2, k] = sum(weight)") == []


# ---- rows


@pytest.mark.parametrize("default", RowDefault)
def test_rows(default: RowDefault) -> None:
    spec = mask("input important: bool[batch, q]", f"rows important[q] and q > 3 else {default.value}")
    assert spec.rows is not None
    assert (str(spec.rows.computed), spec.rows.default) == ("important[batch, q - q_offset] and (q > 3)", default)


def test_a_conditional_of_rows_needs_brackets() -> None:
    spec = mask("rows (q > 3 if head == 0 else q > 5) else mean")
    assert spec.rows is not None
    assert str(spec.rows.computed) == "where(head == 0, q > 3, q > 5)"


# ---- learned inputs


def test_a_learned_input_must_be_read_where_gradients_flow() -> None:
    declared = "input t: float[k] learned"
    said = ["'t' is learned, but decisions alone read it, and these pass on no gradient"]
    for line in ("keep t[k] > 0", "score += floor(t[k])", "mass *= where(t[k] > 0, 1, 2)", "weight *= t[k] > 0"):
        assert errors(declared, line) == said
    for line in ("score += t[k]", "mass *= t[k]", "weight += t[k]", "output o[q] = sum(t[k])", "score += dot(t, t)"):
        assert errors(declared, line) == []
    assert errors("input t: float[k] learned", "let s = cumsum(t, k)", "keep s[k] > 0") == said
    assert errors("input t: float[k] learned", "let s = cumsum(t, k)", "score += s[k]") == []
    assert errors(declared, "keep t[k] > 0", "score += t[k]") == []


# ---- names


def test_statement_words_are_names_where_nothing_else_could_stand() -> None:
    spec = mask("let rows = 3", "let keys = rows + 1", "let output = 2", "keep q - k < keys * output")
    assert str(spec.clauses[0]) == "(q - k) < 8"


def test_what_nothing_reads_is_warned_of() -> None:
    text = (
        "let far = 3\nmask m(a: int = 1, b: int = 2):\n    input t: float[seq]\n    let near = 4\n    keep q - k < b\n"
    )
    found = diagnose(Source("a.mask", text))
    assert [d.message for d in found] == [
        "'far' is never read",
        "parameter 'a' is never read",
        "input 't' is never read",
        "'near' is never read",
    ]
    read = "mask m(a: int = 1):\n    input t: float[a]\n    input start: int[docs] sorted\n    packed start\n"
    assert diagnose(Source("a.mask", read + "    claim a > 1\n    keep t[0] > 1\n")) == []
