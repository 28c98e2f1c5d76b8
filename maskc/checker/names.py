"""Names: giving them a meaning, and what is said of those that have none."""

from maskc.checker.reports import Reports
from maskc.checker.scope import Reading, Scope, Value
from maskc.checker.words import ADVICE, BUILTINS, HABITS, MODULES, OPTION_HINTS, OPTIONS, PRELUDE, REDUCTIONS
from maskc.diagnostics import did_you_mean
from maskc.grammar import syntax


class Names(Reports):
    """Defines names and reports unknown ones."""

    def define(self, name: syntax.Name, value: Value, scope: Scope, shadows: frozenset[str] = frozenset()) -> None:
        """Gives a name a meaning in a scope, unless the language or an earlier line already did."""
        text = name.text
        if text in scope.names:
            earlier = scope.spans.get(text)
            where = "" if earlier is None else f" on line {earlier.source.position(earlier.start)[0]}"
            self.report(f"'{text}' is already defined{where}", name.span)
            return
        scope.names[text] = value
        scope.spans[text] = name.span
        scope.later.pop(text, None)
        if text in (PRELUDE | BUILTINS) - shadows:
            self.report(f"'{text}' has a meaning of its own and cannot be defined", name.span)
        elif text in OPTIONS - shadows:
            self.report(f"'{text}' is an option of every call and cannot be defined", name.span)

    def report_unknown(self, node: syntax.Name, scope: Scope, reading: Reading, called: bool = False) -> None:
        """Reports a name that means nothing here."""
        name = node.text
        if name in OPTIONS:
            self.report(f"'{name}' is an option of the call, not a value", node.span, OPTION_HINTS.get(name))
        elif name in BUILTINS:
            self.report(f"'{name}' is a function", node.span, f"call it: '{name}(...)'")
        elif called and name in REDUCTIONS:
            hint = f"'reduce NAME[...] = {name}(...)' gathers it over pairs"
            self.report(f"'{name}' can only stand behind 'reduce' and 'output'", node.span, hint)
        elif not self.report_later(node, scope):
            what = "function" if called else "name"
            self.report(f"unknown {what} '{name}'", node.span, self.suggestion(name, scope, reading, called))

    def report_later(self, node: syntax.Name, scope: Scope) -> bool:
        """Reports a name that is read above the line that defines it; False if there is no such line."""
        later = scope.defined_later(node.text)
        if later is not None:
            line = later.source.position(later.start)[0]
            self.report(f"'{node.text}' is read above line {line}, which defines it", node.span)
        return later is not None

    def suggestion(self, name: str, scope: Scope, reading: Reading, called: bool = False) -> str | None:
        """What may have been meant by a name."""
        if name in MODULES:
            return "there are no modules; write 'where(...)', 'abs(...)', 'exp(...)' by their bare names"
        if name in HABITS:
            instead = HABITS[name]
            return f"did you mean '{instead}'?" if instead.isidentifier() else f"write '{instead}'"
        if name in ADVICE:
            return ADVICE[name]
        parts = () if reading.layout is None else reading.layout.part_names
        values = () if called else (*PRELUDE, *(reading.axes or ()), *parts, *reading.free)
        known = [*values, *BUILTINS, *scope.visible()]
        return did_you_mean(name, known) if len(name) > 1 else None
