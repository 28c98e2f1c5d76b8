"""Inputs: their types, dims and the facts that are promised about them."""

from keyword import iskeyword

from maskc.checker import typed
from maskc.checker.dims import Dims, structural
from maskc.checker.scope import Reading, Scope, Table, Unknown, Value
from maskc.diagnostics import did_you_mean
from maskc.expr import Expr, Type
from maskc.grammar import syntax
from maskc.spec import DimKind, InputSpec

TYPES = {t.value: t for t in Type}
_UNNAMABLE = {"v", "spec"}  # arguments of every call besides those that expressions know
_HEADS = (DimKind.BATCH, DimKind.HEAD, DimKind.KV_HEAD)


class Inputs(Dims):
    """Reads `input` lines."""

    def input(self, node: syntax.Input, scope: Scope, reading: Reading) -> None:
        """Declares an input."""
        kind = None if node.type is None else self.type_named(node.type)
        dims = [self.dim(d, scope, reading) for d in node.dims]
        below = self._facts(node, kind, scope, reading)
        known = tuple(d for d in dims if d is not None)
        reading.free |= {d.text for d in known if d.kind is DimKind.FREE}
        if kind is None or len(known) < len(dims):
            self.define_given(node.name, Unknown(), scope)
            return
        counts = [d.kind for d in known if d.kind in _HEADS]
        if len(set(counts)) < len(counts) or {DimKind.HEAD, DimKind.KV_HEAD} <= set(counts):
            self.report("'batch', 'head' and 'kv_head' can be a dim once, and only one of the heads", node.span)
        reading.structural |= structural(known)
        words = {fact.word for fact in node.facts}
        is_sorted, constant, learned = (word in words for word in ("sorted", "constant", "learned"))
        table = InputSpec(node.name.text, kind, known, below, is_sorted, constant, learned, span=node.span)
        self.declare(table, node.name, scope, reading)

    def type_named(self, node: syntax.Name) -> Type | None:
        """The type of that name."""
        if node.text not in TYPES:
            hint = did_you_mean(node.text, TYPES, 0.4) or "types are bool, int and float"
            self.report(f"unknown type '{node.text}'", node.span, hint)
            return None
        return TYPES[node.text]

    def define_given(self, name: syntax.Name, value: Value, scope: Scope) -> None:
        """A name that the caller gives a value by keyword."""
        self.define(name, value, scope)
        if name.text in _UNNAMABLE:
            self.report(f"'{name.text}' is an argument of every call and cannot be defined", name.span)
        elif iskeyword(name.text):
            self.report(f"'{name.text}' is a word of Python and cannot be given by keyword", name.span)

    def declare(self, table: InputSpec, name: syntax.Name, scope: Scope, reading: Reading) -> None:
        """Gives an input its name and makes it part of the mask that is compiled."""
        self.define_given(name, Table(table), scope)
        earlier = reading.inputs.setdefault(table.name, table)
        if earlier != table:
            self.report(
                f"this mask already has an input '{table.name}' that is declared differently", reading.use or name.span
            )
        elif table.name in reading.taken and reading.use is not None:
            self.report(
                f"the mask used here has an input '{table.name}', a name this mask gives to something else", reading.use
            )

    def _facts(self, node: syntax.Input, kind: Type | None, scope: Scope, reading: Reading) -> Expr | None:
        """Checks what is promised of an input; how many values its entries can take, if `of` says it."""
        below: Expr | None = None
        words: set[str] = set()
        for fact in node.facts:
            if fact.word in words:
                self.report(f"'{fact.word}' is said twice", fact.span)
            words.add(fact.word)
            match fact.word:
                case "learned" if kind not in (Type.FLOAT, None):
                    message = f"'learned' is for floats; this input is {typed.TYPE_WORDS[kind]}"
                    self.report(message, fact.span, "gradients reach floats only")
                case "of":
                    if kind not in (Type.INT, None):
                        self.report(f"'of' is for ints; this input is {typed.TYPE_WORDS[kind]}", fact.span)
                    assert fact.value is not None
                    dim = self.dim(fact.value, scope, reading, range_=True)
                    below = self.range_of(dim, fact) if dim is not None else None
                case "sorted":
                    if kind is Type.BOOL:
                        self.report("'sorted' is for numbers; this input is a boolean", fact.span)
                    if not node.dims:
                        self.report("'sorted' needs a dim", fact.span)
                case _:
                    pass
        if {"constant", "learned"} <= words:
            span = next(fact.span for fact in node.facts if fact.word == "learned")
            self.report("a constant is folded into the mask and cannot be learned", span, "drop one of the two")
        return below
