"""The line `normalize`: how a row of scores becomes weights."""

from maskc.checker.scope import Reading, Scope
from maskc.checker.weights import Weights, as_float, line_of
from maskc.diagnostics import Span, did_you_mean
from maskc.expr import Expr, Literal, Unary, UnaryOp
from maskc.grammar import syntax
from maskc.spec import Form, Normalizer

_SMALLEST_ALPHA, _LARGEST_ALPHA = 1.01, 2.0
_FORMS = {form.value: form for form in Form}
_SHAPES = {
    Form.SOFTMAX: "'softmax' or 'softmax(sink=...)'",
    Form.ROWSUM: "'rowsum(...)' or 'rowsum(..., sink=...)'",
    Form.NONE: "'none(...)', for example 'none(sigmoid(score))'",
    Form.ENTMAX: "'entmax(alpha=...)', for example 'entmax(alpha=1.5)'",
}
_HABITS = {
    "sparsemax": "entmax(alpha=2)",
    "linear": "none(score)",
    "sigmoid": "none(sigmoid(score))",
    "relu": "none(relu(score))",
    "off_by_one": "softmax(sink=0)",
    "softmax1": "softmax(sink=0)",
    "sum": "rowsum(...)",
    "l1": "rowsum(abs(score))",
}


class Normalizers(Weights):
    """Reads normalisers."""

    def normalize(self, node: syntax.Normalize, scope: Scope, reading: Reading) -> bool:
        """Sets the normaliser; False if the line could not be read."""
        if self.is_behind_the_final_score(node, "normalize", reading):
            return False
        if reading.normalizer is not None:
            line = line_of(reading.normalizer.span)
            self.report(f"the weights are normalised already{line}", node.span, "one mask has one; sum two calls")
            return False
        named = self._form(node.value)
        if named is None:
            return False
        form, call = named
        arguments = self._form_arguments(form, call, node.value)
        if arguments is None:
            return False
        parts = {n: self._form_part(form, n, a, scope, reading) for n, a in arguments.items()}
        if any(part is None for part in parts.values()):
            return False
        reading.normalizer = Normalizer(form, **parts, span=node.span)
        return True

    def _form(self, value: syntax.Expression) -> tuple[Form, syntax.Call | None] | None:
        """How a row of scores becomes weights, and the arguments of that."""
        function = value.function if isinstance(value, syntax.Call) else value
        hint = "write softmax, rowsum(...), none(...) or entmax(alpha=...)"
        if not isinstance(function, syntax.Name):
            if not isinstance(function, syntax.Unreadable):
                self.report("this is no way to normalise", value.span, hint)
            return None
        if function.text not in _FORMS:
            instead = _HABITS.get(function.text)
            near = f"write '{instead}'" if instead else did_you_mean(function.text, _FORMS) or hint
            self.report(f"unknown normaliser '{function.text}'", function.span, near)
            return None
        return _FORMS[function.text], value if isinstance(value, syntax.Call) else None

    def _form_arguments(
        self, form: Form, call: syntax.Call | None, node: syntax.Expression
    ) -> dict[str, syntax.Expression] | None:
        """The arguments of a normaliser by the fields of `Normalizer`."""
        positional = ("value",) if form in (Form.ROWSUM, Form.NONE) else ()
        by_name = {Form.SOFTMAX: ("sink",), Form.ROWSUM: ("sink",), Form.NONE: (), Form.ENTMAX: ("alpha",)}[form]
        given: dict[str, syntax.Expression] = {}
        for place, argument in enumerate(() if call is None else call.arguments):
            if isinstance(argument, syntax.Comprehension):
                self.report("a normaliser takes an expression", argument.span, "write 'sum(...)' around it")
                return None
            name = argument.name
            if name is None and place < len(positional):
                given[positional[place]] = argument.value
            elif name is not None and name.text in by_name and name.text not in given:
                given[name.text] = argument.value
            else:
                self.report(f"'{form.value}' is written {_SHAPES[form]}", node.span)
                return None
        needed = (*positional, *(("alpha",) if form is Form.ENTMAX else ()))
        if any(name not in given for name in needed):
            self.report(f"'{form.value}' is written {_SHAPES[form]}", node.span)
            return None
        return given

    def _form_part(self, form: Form, name: str, node: syntax.Expression, scope: Scope, reading: Reading) -> Expr | None:
        """The value, sink or alpha of a normaliser."""
        if name == "value":
            value = self.number(node, scope, reading)
            if value is None or self.reads_too_late(value, node.span, "a normaliser", reading):
                return None
            if form is Form.ROWSUM and isinstance(value, Unary) and value.op is UnaryOp.EXP:
                self.report(
                    "a row sum of exponentials overflows; this is a softmax",
                    node.span,
                    "write 'normalize softmax', and factors of the exponential as 'mass *= ...'",
                )
                return None
        else:
            value = self.of_row(node, scope, reading, f"'{name}'")
            if value is None or (name == "alpha" and not self._is_alpha(value, node.span)):
                return None
        value = self.made(node.span, as_float, value)
        return None if value is None or self.has_kink(value, node.span, reading) else value

    def _is_alpha(self, value: Expr, span: Span) -> bool:
        if not isinstance(value, Literal) or _SMALLEST_ALPHA < value.value <= _LARGEST_ALPHA:
            return True
        hint = "1 is 'softmax', 2 is sparsemax; near 1 entmax is too close to softmax to be told from it"
        self.report(f"alpha is {value.value!r}; entmax is defined here for 1.01 < alpha <= 2", span, hint)
        return False
