"""Masks used in another mask as a predicate: their parameters, positions, axes, parts, inputs and preconditions."""

from abc import abstractmethod
from dataclasses import replace

from maskc.checker import typed
from maskc.checker.inputs import TYPES
from maskc.checker.layout import Layout, Place, seen
from maskc.checker.reductions import Reductions
from maskc.checker.scope import MaskValue, Reading, Scope, Unknown, Value
from maskc.diagnostics import Span
from maskc.expr import FINAL_SCORE, BinaryOp, Expr, Side, Type, conjunction, placed
from maskc.grammar import syntax
from maskc.spec import Claim, Part

_OF_SCORES = {
    syntax.Score: "score",
    syntax.Mass: "mass",
    syntax.Weight: "weight",
    syntax.Normalize: "normalize",
    syntax.Reduce: "reduce",
    syntax.Rows: "rows",
}

PREDICATE_WORK = 10  # of reading a mask's head and index space, in operations


class Predicates(Reductions):
    """Reads masks that other masks use."""

    @abstractmethod
    def statements(self, node: syntax.Mask, scope: Scope, reading: Reading) -> list[Expr]:
        """The clauses of a mask whose axes and parameters are in scope."""

    def _predicate(self, mask: MaskValue, node: syntax.Call, scope: Scope, reading: Reading) -> Value:
        used, name = mask.node, mask.node.name.text
        arguments = Scope()
        names = [p.name.text for p in used.parameters]
        required = {p.name.text for p in used.parameters if p.default is None}
        if not used.readable or not self._bind(node, name, names, required, arguments, scope, reading, ("q", "k")):
            return Unknown()
        if any(m is used for m in self.active):
            self.report(f"mask '{name}' uses itself", node.span)
            return Unknown()
        if not self._is_predicate(used, node.span) or reading.layout is None:
            return Unknown()  # of a function that nobody calls, the grid is not known
        self.spend(PREDICATE_WORK, node.span)
        with self._inlining(used, node.span):
            inside = self._inside(used, node, reading)
            inner = Scope(mask.scope)
            for parameter in used.parameters:
                self._argument(parameter, name, arguments, mask.scope, inner, inside)
            if not self._place(used, inner, arguments, node.span, reading, inside):
                return Unknown()
            clauses = self.statements(used, inner, inside)
        if len(clauses) < sum(isinstance(s, syntax.Keep | syntax.Packed) for s in used.body):
            return Unknown()  # a clause that could not be read
        reading.claims += [c for c in inside.claims if not c.over_pairs]
        return placed(conjunction(tuple(clauses)), node.span)

    def _is_predicate(self, used: syntax.Mask, span: Span) -> bool:
        """Whether only `keep`s say what a mask does; reports the first line that says more."""
        line = next((s for s in used.body if type(s) in _OF_SCORES), None)
        if line is None:
            return True
        word = "output" if isinstance(line, syntax.Reduce) and line.output else _OF_SCORES[type(line)]
        number = line.span.source.position(line.span.start)[0]
        self.report(
            f"mask '{used.name.text}' cannot be used as a predicate: line {number} is a '{word}' line",
            span,
            "move its 'keep' lines into a mask of their own",
        )
        return False

    def _inside(self, used: syntax.Mask, node: syntax.Call, reading: Reading) -> Reading:
        """How a mask is read where another one uses it, before its axes are known."""
        return Reading(
            reading.layout,
            reading.q,
            reading.k,
            facts=reading.facts,
            inputs=reading.inputs,
            made=reading.made,
            structural=reading.structural,
            taken=reading.taken,
            use=reading.use or node.span,
            packs=any(isinstance(s, syntax.Packed) for s in used.body),
            score=FINAL_SCORE if reading.sees_final_score else reading.score,
            mass=reading.mass,
            weight=reading.weight,
        )

    # ---- where it is read

    def _place(
        self, used: syntax.Mask, inner: Scope, arguments: Scope, span: Span, reading: Reading, inside: Reading
    ) -> bool:
        """Puts a mask on the axes and parts of the one that uses it; False if they do not fit."""
        here = reading.layout or Layout()
        layout = Layout() if inside.packs else self.layout(used, inner, inside)
        if layout is None:
            return False
        if not self._has_names(used.name.text, layout, here, span) or not self._has_lines(used, layout, here, span):
            return False
        for side in Side:
            if not self._fits_side(used.name.text, layout.parts(side), here.parts(side), span, reading):
                return False
        places = []
        for side in Side:
            given = self._given_place(side, layout, arguments, used.name.text, reading)
            if given is None:
                return False
            places.append(given)
        inside.q, inside.k = places
        inside.layout = replace(
            layout, separate=here.separate, border=here.border, documents=here.documents, around=here
        )
        self.name_axes(used, inner, inside)
        return True

    def _has_names(self, name: str, layout: Layout, here: Layout, span: Span) -> bool:
        """Whether a mask has no axes and parts but those of the one that uses it."""
        for word, own, known in (
            ("axis", layout.axis_names, here.axis_names),
            ("part", layout.part_names, here.part_names),
        ):
            missing = [a for a in own if a not in known]
            if missing:
                plural = {"axis": "axes", "part": "parts"}[word]
                hint = None if known or word == "part" else f"add 'axes {', '.join(own)}'"
                message = f"mask '{name}' has the {plural} {', '.join(own)}; this mask has no {word} '{missing[0]}'"
                self.report(message, span, hint)
                return False
        return True

    def _has_lines(self, used: syntax.Mask, layout: Layout, here: Layout, span: Span) -> bool:
        """Whether the lines of queries and keys are like those of the mask that uses this one."""
        name = used.name.text
        words = {type(statement) for statement in used.body}
        if syntax.Packed in words and (here.separate or here.border is not None):
            self.report(f"mask '{name}' is packed: its documents lie on one shared line", span)
        elif {syntax.Packed, syntax.Axes} <= words:
            self.report(f"mask '{name}' has a grid in every document and cannot be used as a predicate", span)
        elif layout.border is not None and layout.border != here.border:
            hint = "write the same border here"
            self.report(f"mask '{name}' has a border, which decides how many keys there are", span, hint)
        elif layout.separate and not here.separate:
            message = f"mask '{name}' has separate lines of queries and keys; this mask has one that both share"
            self.report(message, span)
        else:
            return True
        return False

    def _fits_side(
        self, name: str, parts: tuple[Part, ...], here: tuple[Part, ...], span: Span, reading: Reading
    ) -> bool:
        """Whether the parts of one side match those of the mask that uses this one; equal sizes are claimed."""
        for part in parts:
            known = next((p for p in here if p.name == part.name), None)
            if part.name is None:
                strange = [axis for axis in part.axes if all(axis not in p.axes for p in here)]
                if strange:
                    self.report(
                        f"mask '{name}' reads '{strange[0]}' of queries and keys; here one of them has none", span
                    )
                    return False
                continue
            if known is None or known.axes != part.axes:
                shape = f"({', '.join(part.axes)})" if part.axes else str(part.size)
                self.report(f"part '{part.name}' of mask '{name}' is {shape}; here it is not", span)
                return False
            if part.size is not None and known.size is not None and part.size != known.size:
                same = Claim(typed.comparison(BinaryOp.EQ, part.size, known.size, span), False, span=span)
                reading.claims += [same] if same not in reading.claims else []
        return True

    def _given_place(self, side: Side, layout: Layout, arguments: Scope, name: str, reading: Reading) -> Place | None:
        """Where a mask sees the query or the key."""
        key = side.value
        own = reading.q if side is Side.Q else reading.k
        given = arguments.names.get(key, own)
        if isinstance(given, Place):
            return seen(given, layout.parts(side), reading.layout or Layout(), reading.facts, name)
        span = arguments.spans[key]
        number = self.scalar(given, span, reading)
        if number is None:
            return None
        if number.type is not Type.INT:
            self.report(f"'{key}' is a position, an int; this is {typed.TYPE_WORDS[number.type]}", span)
            return None
        if layout.axis_names or layout.part_names:
            self.report(f"mask '{name}' reads coordinates; '{key}' cannot be a number", span)
            return None
        return Place(number)

    def _argument(
        self, parameter: syntax.Parameter, name: str, arguments: Scope, file_scope: Scope, inner: Scope, inside: Reading
    ) -> None:
        """Binds a parameter of a mask used as a predicate to its argument or default."""
        text = parameter.name.text
        kind = TYPES.get(parameter.type.text) if parameter.type is not None else None
        value: Expr | None
        if text in arguments.names:
            span = arguments.spans[text]
            value = self.scalar(arguments.names[text], span, inside)
            if value is not None and kind is not None and not typed.converts(value.type, kind):
                words = typed.TYPE_WORDS
                self.report(f"'{text}' of mask '{name}' is {words[kind]}; this is {words[value.type]}", span)
                value = None
        else:
            assert parameter.default is not None
            value = self.number(parameter.default, file_scope, inside)
            if value is not None and kind is not None and not typed.converts(value.type, kind):
                value = None
        bound: Value = Unknown() if value is None or kind is None else typed.cast(value, kind)
        self.define(parameter.name, bound, inner)
