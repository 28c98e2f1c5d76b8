"""What is asked of positions: their coordinates, the part that they lie in, and whether that is known.

A coordinate of a part that the token might not be in is a mistake, unless a membership test guards the place where it
is read. `assuming` is entered wherever the meaning of an expression makes sure of a condition.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from maskc.checker.layout import Layout, Place, assumed, coordinate, in_part, segment, strays
from maskc.checker.operators import Operators
from maskc.checker.scope import AxisName, Reading, Scope, Unknown, Value
from maskc.diagnostics import Span, did_you_mean
from maskc.expr import FINAL_SCORE, Expr, placed
from maskc.grammar import syntax
from maskc.spec import Part


class Places(Operators):
    """Reads coordinates, sizes and memberships."""

    def assuming(self, condition: Expr | None, holds: bool, reading: Reading) -> AbstractContextManager[None]:
        """While this is entered, expressions are read that are evaluated only where `condition` is what `holds` says;
        `condition` is None where it could not be read.
        """
        if condition is None or not _in_parts(reading):
            return nullcontext()
        return self._assuming(condition, holds, reading)

    @contextmanager
    def _assuming(self, condition: Expr, holds: bool, reading: Reading) -> Iterator[None]:
        before = reading.facts
        self.assume(condition, holds, reading)
        try:
            yield
        finally:
            reading.facts = before

    def assume(self, condition: Expr, holds: bool, reading: Reading) -> None:
        """From here on, expressions are read that are evaluated only where `condition` is what `holds` says."""
        places = _in_parts(reading)
        if places:
            reading.facts = assumed(reading.facts, places, condition, holds)

    def so_far(self, name: str, reading: Reading) -> Value:
        """What `score`, `mass` or `weight` stands for in what is being read."""
        if reading.score is None:
            return Unknown()
        if name == "score":
            return FINAL_SCORE if reading.sees_final_score else reading.score
        return reading.mass if name == "mass" else reading.weight

    def of_axis(self, axis: AxisName, node: syntax.Attribute) -> Value:
        """`y.size`, `text.size`."""
        name = node.name.text
        if name != "size":
            what = "a part" if axis.part else "an axis"
            self.report(f"{what} has no '.{name}'", node.name.span, f"write '{axis.name}.size'")
        elif axis.size is None:
            self.report(
                f"the parts named '{axis.name}' have different sizes", node.span, "give them names of their own"
            )
        else:
            return placed(axis.size, node.span)
        return Unknown()

    def of_place(self, node: syntax.Attribute, at: Place, reading: Reading) -> Value:
        """`q.y`, `q.text`, `q.segment`, `q.size` and the like, of a position."""
        name = node.name.text
        if name == "segment":
            return self._segment(node, at)
        value = coordinate(at, name, reading.facts)
        if value is None:
            self._report_axis(node, at, reading)
            return Unknown()
        astray = strays(at, name, reading.facts)
        if astray:
            self._report_stray(node, at, name, astray, reading.use or node.span)
            return Unknown()
        return placed(value, node.span)

    def _segment(self, node: syntax.Attribute, at: Place) -> Value:
        if at.numberless is not None or not any(cell.part.name is not None for cell in at.cells):
            message = f"'{node.owner.span.text}' lies in no named part"
            self.report(at.numberless or message, node.span, "name parts: 'axes cls: 1, patch: (y, x)'")
            return Unknown()
        return placed(segment(at), node.span)

    def _report_stray(self, node: syntax.Attribute, at: Place, name: str, astray: list[Part], span: Span) -> None:
        owner = node.owner.span.text
        others = " or ".join(dict.fromkeys(f"'{part.name}'" for part in astray))
        home = next(str(cell.part.name) for cell in at.cells if name in cell.values)
        self.report(
            f"'{owner}' may lie in {others}, where it has no '{name}'",
            span,
            f"guard it: 'where({owner} in {home}, ..., ...)', '{owner} in {home} and ...', "
            f"or 'keep {owner} in {home}' above",
        )

    def _report_axis(self, node: syntax.Attribute, at: Place, reading: Reading) -> None:
        name, owner = node.name.text, node.owner.span.text
        known = list(dict.fromkeys(n for cell in at.cells for n in cell.values))
        layout = reading.layout
        hint: str | None
        if known:
            has_parts = any(cell.part.name is not None for cell in at.cells)
            names = f"{'its coordinates' if has_parts else 'the axes'} are {', '.join(known)}"
            hint = did_you_mean(name, known) or names
            whose = f"'{owner}'" if layout is not None and layout.separate else "the mask"
            self.report(f"{whose} has no axis '{name}'", node.name.span, hint)
        else:
            hint = f"add 'axes {name}' to the mask" if layout is None or not layout.axis_names else None
            if reading.packs and layout is not None and not layout.documents:
                hint = "coordinates in documents are read below 'packed'"
            self.report(f"'{owner}' has no coordinate '{name}'", node.name.span, hint)

    def part_named(self, node: syntax.Expression, scope: Scope, reading: Reading) -> AxisName | None:
        """The part or axis that an expression names, if it is such a name."""
        while isinstance(node, syntax.Bracketed):
            node = node.inner
        if not isinstance(node, syntax.Name):
            return None
        found = scope.find(node.text) or named(reading.layout, node.text)
        if found is None and reading.layout is None and scope.defined_later(node.text) is None:
            return AxisName(node.text, None, part=True)  # a function that nobody calls may name the parts of any mask
        return found if isinstance(found, AxisName) and found.last is None else None

    def in_part(self, item: Value, part: AxisName, node: syntax.Comparison, reading: Reading) -> Expr | None:
        """`item in part`."""
        if isinstance(item, Unknown) or reading.layout is None:
            return None
        where = node.operands[1].span
        if not part.part:
            example = f"name a part: 'axes tokens: ({part.name})'"
            self.report(f"'{part.name}' is an axis, not a part", where, example)
            return None
        if not isinstance(item, Place):
            self.report("only positions lie in parts", node.span, f"write 'q in {part.name}' or 'k in {part.name}'")
            return None
        found = in_part(item, part.name)
        if found is None:
            names = list(dict.fromkeys(cell.part.name for cell in item.cells if cell.part.name is not None))
            parts = f"its parts are {', '.join(names)}" if names else None
            self.report(f"'{node.operands[0].span.text}' has no part '{part.name}'", where, parts)
            return None
        return placed(found, node.span)


def _in_parts(reading: Reading) -> list[Place]:
    """The query and the key, as far as they may lie in several parts."""
    return [place for place in (reading.q, reading.k) if len(place.cells) > 1 and place.side is not None]


def named(layout: Layout | None, name: str) -> AxisName | None:
    """The axis or part of that name."""
    if layout is None:
        return None
    if name in layout.part_names:
        return AxisName(name, layout.tokens(name), part=True)
    return AxisName(name, layout.axis_size(name)) if name in layout.axis_names else None
