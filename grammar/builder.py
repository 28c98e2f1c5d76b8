"""Tokens of one logical line to a node of the syntax tree.

In: the tokens that lexer.py made. Out: what mask.lark makes of them, every rule a method of the builder.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from maskc.diagnostics import Span
from maskc.grammar import syntax
from maskc.grammar.lexer import Word
from maskc.grammar.machine import Machine, machine

Item = syntax.Mask | syntax.Statement


def read(words: Sequence[Word]) -> Item:
    """What a line says. Raises FormError."""
    return cast(Item, _machine().run(words))  # what the builder's method for the line returns


@functools.cache
def _machine() -> Machine:
    return machine(_Builder())


def _covering(first: Any, last: Any) -> Span:
    """From one word, node or part of one to another; words have a span only when they are asked for it."""
    start = first if isinstance(first, Word) else first.span
    end = last if isinstance(last, Word) else last.span
    return Span(start.source, start.start, end.end)


def _nodes(children: Sequence[Any]) -> tuple[Any, ...]:
    """The children that are not tokens."""
    return tuple(c for c in children if not isinstance(c, Word))


def _name(word: Word) -> syntax.Name:
    return syntax.Name(str(word), span=word.span)


def _operator(assignment: Word) -> str | None:
    """The arithmetic operator of `*=`; None of a plain `=`."""
    return str(assignment)[:-1] or None


class _Builder:
    """One method per rule of mask.lark: the children of the rule, tokens and all, to a node."""

    def name(self, children: list[Any]) -> syntax.Name:
        return _name(children[0])

    def integer(self, children: list[Any]) -> syntax.Integer:
        return syntax.Integer(int(children[0], 0), span=children[0].span)

    def floating(self, children: list[Any]) -> syntax.Float:
        return syntax.Float(float(children[0]), span=children[0].span)

    def truth(self, children: list[Any]) -> syntax.Boolean:
        return syntax.Boolean(children[0] == "True", span=children[0].span)

    def bracketed(self, children: list[Any]) -> syntax.Bracketed:
        return syntax.Bracketed(children[1], span=_covering(children[0], children[2]))

    def tuple_display(self, children: list[Any]) -> syntax.Tuple:
        return syntax.Tuple(_nodes(children), span=_covering(children[0], children[-1]))

    def list_display(self, children: list[Any]) -> syntax.List:
        return syntax.List(_nodes(children), span=_covering(children[0], children[-1]))

    def attribute(self, children: list[Any]) -> syntax.Attribute:
        return syntax.Attribute(children[0], _name(children[2]), span=_covering(children[0], children[2]))

    def subscript(self, children: list[Any]) -> syntax.Subscript:
        table, *indices = _nodes(children)
        return syntax.Subscript(table, tuple(indices), span=_covering(children[0], children[-1]))

    def call(self, children: list[Any]) -> syntax.Call:
        function, *arguments = _nodes(children)
        return syntax.Call(function, tuple(arguments), span=_covering(children[0], children[-1]))

    def argument(self, children: list[Any]) -> syntax.Argument:
        return syntax.Argument(None, children[0], span=children[0].span)

    def keyword(self, children: list[Any]) -> syntax.Argument:
        return syntax.Argument(_name(children[0]), children[2], span=_covering(children[0], children[2]))

    def comprehension(self, children: list[Any]) -> syntax.Comprehension:
        element, _, name, _, iterable = children
        return syntax.Comprehension(element, _name(name), iterable, span=_covering(element, iterable))

    def unary(self, children: list[Any]) -> syntax.Unary:
        operator, operand = children
        return syntax.Unary(str(operator), operand, span=_covering(operator, operand))

    def binary(self, children: list[Any]) -> syntax.Binary:
        left, operator, right = children
        return syntax.Binary(str(operator), left, right, span=_covering(left, right))

    def comparator(self, children: list[Any]) -> syntax.Comparator:
        return syntax.Comparator(" ".join(children), span=_covering(children[0], children[-1]))

    def comparison(self, children: list[Any]) -> syntax.Comparison:
        return syntax.Comparison(tuple(children[::2]), tuple(children[1::2]), span=_covering(children[0], children[-1]))

    def boolean(self, children: list[Any]) -> syntax.BooleanOperation:
        return syntax.BooleanOperation(
            str(children[1]), tuple(children[::2]), span=_covering(children[0], children[-1])
        )

    def conditional(self, children: list[Any]) -> syntax.Conditional:
        then, _, condition, _, otherwise = children
        return syntax.Conditional(condition, then, otherwise, span=_covering(then, otherwise))

    def axis(self, children: list[Any]) -> syntax.Axis:
        part = children[2] if len(children) == 3 else None
        return syntax.Axis(_name(children[0]), part, span=_covering(children[0], children[-1]))

    def border(self, children: list[Any]) -> "_Border":
        return _Border(children[1], _covering(children[0], children[1]))

    def axes(self, children: list[Any]) -> syntax.Axes:
        axes = tuple(c for c in children if isinstance(c, syntax.Axis))
        border = children[-1].value if isinstance(children[-1], _Border) else None
        return syntax.Axes(str(children[0]), axes, border, span=_covering(children[0], children[-1]))

    def packed(self, children: list[Any]) -> syntax.Packed:
        return syntax.Packed(_name(children[1]), span=_covering(children[0], children[1]))

    def dims(self, children: list[Any]) -> "_Dims":
        return _Dims(_nodes(children), _covering(children[0], children[-1]))

    def fact(self, children: list[Any]) -> syntax.Fact:
        value = children[1] if len(children) == 2 else None
        return syntax.Fact(str(children[0]), value, span=_covering(children[0], children[-1]))

    def input(self, children: list[Any]) -> syntax.Input:
        dims = next((c.dims for c in children if isinstance(c, _Dims)), ())
        facts = tuple(c for c in children if isinstance(c, syntax.Fact))
        return syntax.Input(
            _name(children[1]), _name(children[3]), dims, facts, span=_covering(children[0], children[-1])
        )

    def let(self, children: list[Any]) -> syntax.Let:
        return syntax.Let(_name(children[1]), children[3], span=_covering(children[0], children[-1]))

    def keep(self, children: list[Any]) -> syntax.Keep:
        return syntax.Keep(children[1], span=_covering(children[0], children[1]))

    def score(self, children: list[Any]) -> syntax.Score:
        return syntax.Score(_operator(children[1]), children[2], span=_covering(children[0], children[2]))

    def mass(self, children: list[Any]) -> syntax.Mass:
        return syntax.Mass(_operator(children[1]), children[2], span=_covering(children[0], children[2]))

    def normalize(self, children: list[Any]) -> syntax.Normalize:
        return syntax.Normalize(children[1], span=_covering(children[0], children[1]))

    def weight(self, children: list[Any]) -> syntax.Weight:
        return syntax.Weight(_operator(children[1]), children[2], span=_covering(children[0], children[2]))

    def slot(self, children: list[Any]) -> syntax.Slot:
        size = children[2] if len(children) == 3 else None
        return syntax.Slot(children[0], size, span=_covering(children[0], children[-1]))

    def slots(self, children: list[Any]) -> "_Slots":
        return _Slots(_nodes(children), _covering(children[0], children[-1]))

    def reduce(self, children: list[Any]) -> syntax.Reduce:
        word, name, *slots, _, value = children
        return syntax.Reduce(
            _name(name),
            slots[0].slots if slots else (),
            value,
            output=word == "output",
            span=_covering(word, value),
        )

    def rows(self, children: list[Any]) -> syntax.Rows:
        word, value, _, default = children
        return syntax.Rows(value, _name(default), span=_covering(word, default))

    def claim(self, children: list[Any]) -> syntax.Claim:
        return syntax.Claim(children[1], span=_covering(children[0], children[1]))

    def pass_(self, children: list[Any]) -> syntax.Pass:
        return syntax.Pass(span=children[0].span)

    def return_(self, children: list[Any]) -> syntax.Return:
        return syntax.Return(children[1], span=_covering(children[0], children[1]))

    def parameter(self, children: list[Any]) -> syntax.Parameter:
        kind = default = None
        for mark, value in zip(children[1::2], children[2::2], strict=True):
            if mark == ":":
                kind = _name(value)
            else:
                default = value
        return syntax.Parameter(_name(children[0]), kind, default, span=_covering(children[0], children[-1]))

    def parameters(self, children: list[Any]) -> "_Parameters":
        return _Parameters(_nodes(children), _covering(children[0], children[-1]))

    def names(self, children: list[Any]) -> "_Names":
        names = tuple(_name(c) for c in children if c.type == "NAME")
        return _Names(names, _covering(children[0], children[-1]))

    def mask(self, children: list[Any]) -> syntax.Mask:
        parameters = next((c.parameters for c in children if isinstance(c, _Parameters)), ())
        body = () if isinstance(children[-1], Word) else (children[-1],)
        return syntax.Mask(_name(children[1]), parameters, body, span=_covering(children[0], children[-1]))

    def function(self, children: list[Any]) -> syntax.Function:
        body = () if isinstance(children[-1], Word) else (children[-1],)
        return syntax.Function(_name(children[1]), children[2].names, body, span=_covering(children[0], children[-1]))


@dataclass(frozen=True)
class _Border:
    value: syntax.Expression
    span: Span


@dataclass(frozen=True)
class _Slots:
    slots: tuple[syntax.Slot, ...]
    span: Span


@dataclass(frozen=True)
class _Dims:
    dims: tuple[syntax.Expression, ...]
    span: Span


@dataclass(frozen=True)
class _Parameters:
    parameters: tuple[syntax.Parameter, ...]
    span: Span


@dataclass(frozen=True)
class _Names:
    names: tuple[syntax.Name, ...]
    span: Span
