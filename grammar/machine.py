"""The tables that lark makes of mask.lark, and the loop that follows them: the only place that knows lark.

lark's own loop takes one step per level of precedence for every operand, most of them for rules that hand their only
child on. Here all of those in a row are one step, looked up once it was found.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from lark import Lark, Token
from lark.lexer import Lexer
from lark.parse_tree_builder import ExpandSingleChild
from lark.parsers.lalr_analysis import Reduce, Shift

from maskc.grammar.lexer import Word

END = "$END"  # lark's terminal behind the last token


class FormError(Exception):
    """A line that the grammar cannot read: from its word number `at` on, or as long as it is where it goes no further.

    expected: the terminals that the grammar knows there.
    """

    def __init__(self, at: int, expected: set[str]) -> None:
        super().__init__(at, expected)
        self.at = at
        self.expected = expected


@dataclass(frozen=True)
class Reduction:
    """So many values become one of a rule; `build` is None where the rule hands its only child on."""

    size: int
    rule: str
    build: Callable[[list[Any]], Any] | None


@dataclass(frozen=True)
class Machine:
    """An LALR automaton.

    following: of a state, the state behind a terminal or a rule. reductions: of a state, what is to be done before a
    terminal. ascents: what `_ascent` has found.
    """

    start: int
    end: int
    following: dict[int, dict[str, int]]
    reductions: dict[int, dict[str, Reduction]]
    ascents: dict[tuple[int, int, str], int] = field(default_factory=dict)

    def run(self, words: Sequence[Word]) -> Any:
        """What the builder makes of a line. Raises FormError."""
        states: list[int] = [self.start]
        values: list[Any] = []
        for at, word in enumerate(words):
            self._reduce(states, values, word.type)
            state = self.following[states[-1]].get(word.type)
            if state is None:
                raise FormError(at, self._expected(states[-1]))
            states.append(state)
            values.append(word)
        self._reduce(states, values, END)
        if states[-1] != self.end:
            raise FormError(len(words), self._expected(states[-1]))
        return values[-1]

    def _reduce(self, states: list[int], values: list[Any], terminal: str) -> None:
        """Everything that is finished where a terminal follows."""
        while (reduction := self.reductions[states[-1]].get(terminal)) is not None:
            if reduction.build is None:
                states[-1] = self._ascent(states[-2], states[-1], terminal)
            else:
                children = values[-reduction.size :]
                del states[-reduction.size :], values[-reduction.size :]
                values.append(reduction.build(children))
                states.append(self.following[states[-1]][reduction.rule])

    def _ascent(self, below: int, top: int, terminal: str) -> int:
        """The state in place of `top` after all rules in a row that hand their only child on."""
        known = self.ascents.get((below, top, terminal))
        if known is not None:
            return known
        state = top
        while (reduction := self.reductions[state].get(terminal)) is not None and reduction.build is None:
            state = self.following[below][reduction.rule]
        self.ascents[below, top, terminal] = state
        return state

    def _expected(self, state: int) -> set[str]:
        return {name for name in (*self.following[state], *self.reductions[state]) if name.isupper()}


def machine(builder: object) -> Machine:
    """The automaton of mask.lark; rules are built by the builder's methods of their names, each given its children."""
    text = files("maskc.grammar").joinpath("mask.lark").read_text(encoding="utf-8")
    lark = Lark(
        text,
        parser="lalr",
        lexer=_NoLexer,
        start="line",
        transformer=builder,
        keep_all_tokens=True,
        maybe_placeholders=False,
    )
    tables = lark.parse_interactive("").parser_state.parse_conf

    following: dict[int, dict[str, int]] = {}
    reductions: dict[int, dict[str, Reduction]] = {}
    for state, row in tables.states.items():
        following[state] = {str(name): argument for name, (action, argument) in row.items() if action is Shift}
        reductions[state] = {
            str(name): _reduction(rule, tables.callbacks[rule])
            for name, (action, rule) in row.items()
            if action is Reduce
        }
    return Machine(tables.start_state, tables.end_state, following, reductions)


def _reduction(rule: Any, build: Callable[[list[Any]], Any]) -> Reduction:
    size = len(rule.expansion)
    assert size > 0
    hands_on = size == 1 and isinstance(build, ExpandSingleChild)
    return Reduction(size, str(rule.origin.name), None if hands_on else build)


class _NoLexer(Lexer):
    """In place of lark's own: lexer.py makes the tokens."""

    def __init__(self, lexer_conf: Any) -> None:
        pass

    def lex(self, lexer_state: Any, parser_state: Any) -> Iterator[Token]:
        """None: lark is never run."""
        return iter(())
