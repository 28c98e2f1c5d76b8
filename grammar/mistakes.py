"""What is wrong with the form of a line, in a sentence, with a hint where its author's habit or intent can be guessed.

In: a line that begins no statement, or one and where the grammar could not go on. Out: its diagnosis.
"""

from maskc.diagnostics import Diagnostic, Span, did_you_mean
from maskc.grammar.lexer import FACTS, STATEMENTS, Line, Word
from maskc.grammar.machine import FormError

_CONDITIONS = "write 'A if condition else B', or join conditions with 'and' and 'or'"
_STATEMENT_HINTS = {
    "if": _CONDITIONS,
    "elif": _CONDITIONS,
    "else": _CONDITIONS,
    "for": "there are no loops; a spec says which pairs to keep, and rounds are written out line by line",
    "while": "there are no loops; a spec says which pairs to keep, and rounds are written out line by line",
    "import": "nothing can be imported; the standard library is always there",
    "from": "nothing can be imported; the standard library is always there",
    "assert": "write 'claim'",
    "function": "write 'def'",
    "allow": "write 'keep'",
    "drop": "write 'keep not (...)'",
    "bias": "write 'score += ...'",
    "softmax": "write 'normalize softmax(...)'",
}
_OPERATOR_HINTS = {
    "is": "write '=='",
    "AND": "write 'and'",
    "OR": "write 'or'",
    "NOT": "write 'not'",
    "then": "write 'A if condition else B'",
    "xor": "write '!='",
    "mod": "write '%'",
    "div": "write '//'",
}
_KINDS = {word.upper() for word in STATEMENTS}
_FORMS = {
    "MASK": "the form is 'mask NAME(parameter: type = default):'",
    "DEF": "the form is 'def NAME(a, b):'",
    "INPUT": "the form is 'input NAME: TYPE[DIM, ...]'",
    "LET": "the form is 'let NAME = EXPRESSION'",
    "AXES": "the form is 'axes y, x'",
    "QUERIES": "the form is 'queries y, x'",
    "KEYS": "the form is 'keys y, x'",
    "PACKED": "the form is 'packed NAME', the name of an input that holds where the documents start",
    "SCORE": "the form is 'score += EXPRESSION'",
    "MASS": "the form is 'mass *= EXPRESSION'",
    "WEIGHT": "the form is 'weight *= EXPRESSION'",
    "NORMALIZE": "the forms are 'softmax', 'softmax(sink=E)', 'rowsum(E)', 'none(E)' and 'entmax(alpha=E)'",
    "REDUCE": "the form is 'reduce NAME[INDEX, ...] = sum(EXPRESSION)'",
    "OUTPUT": "the form is 'output NAME[INDEX, ...] = sum(EXPRESSION)'",
    "ROWS": "the form is 'rows CONDITION else zero', or 'else mean', or 'else pass'",
}


def no_statement(line: Line) -> Diagnostic:
    """Of a line whose first word begins no statement."""
    first = line.words[0]
    text = str(first)
    second = line.words[1] if len(line.words) > 1 else None
    hint = _STATEMENT_HINTS.get(text)
    if hint is None and second is not None and first.type == "NAME" and second.type == "EQUAL":
        hint = f"write 'let {text} = ...'"
    elif hint is None and second is not None and first.type == "NAME" and second.type == "ASSIGN":
        hint = "only 'score', 'mass' and 'weight' can be changed"
    elif hint is None:
        hint = did_you_mean(text.lower(), sorted(STATEMENTS))
    return Diagnostic(f"'{_short(first)}' does not begin a statement", first.span, hint)


def explained(line: Line, error: FormError) -> Diagnostic:
    """Of a line that begins a statement and does not go on as one."""
    if error.at == len(line.words):
        return _ends_early(line, error.expected)
    word = line.words[error.at]
    before = line.words[error.at - 1]
    if before.end == word.start and (found := _foreign_operator(before, word)) is not None:
        return found
    if word.type == "EQUAL" and "COMPARE" in error.expected:
        following = line.words[error.at + 1] if error.at + 1 < len(line.words) else None
        if following is not None and following in ("<", ">") and following.start == word.end:
            return Diagnostic(f"unexpected '={following}'", _covering(word, following), f"write '{following}='")
        return Diagnostic("unexpected '='", word.span, "'==' compares")
    return Diagnostic(_unexpected(word, error.expected), word.span, _hint(line, error))


def _foreign_operator(before: Word, word: Word) -> Diagnostic | None:
    """Two signs without a blank that are one operator in other languages."""
    if word == before and word.type in ("AMPERSAND", "BAR"):
        instead = "and" if word.type == "AMPERSAND" else "or"
        return Diagnostic(f"unexpected '{word}{word}'", _covering(before, word), f"write '{instead}'")
    if before == "<" and word == ">":
        return Diagnostic("unexpected '<>'", _covering(before, word), "write '!='")
    return None


def _unexpected(word: Word, expected: set[str]) -> str:
    shown = _short(word)
    if expected == {"NAME"}:
        return f"expected a name, found '{shown}'"
    if expected == {"IN"}:
        return f"expected 'in', found '{shown}'"
    if "INTEGER" in expected:
        return f"expected an expression, found '{shown}'"
    return f"unexpected '{shown}'"


def _hint(line: Line, error: FormError) -> str | None:
    """What the author of an unexpected word may have meant."""
    at, expected = error.at, error.expected
    word, before, statement = line.words[at], line.words[at - 1], _statement(line, at)
    in_expression = "PLUS" in expected
    if word.type == "EQUAL" and before is statement:
        return f"write 'let {before} = ...'"
    if word.type in ("RPAR", "RSQB"):
        return _bracket_hint(line, at, statement)
    if word.type in ("FOR", "IF"):
        return _for_or_if_hint(line, at, statement)
    if word.type == "BORDER":
        return "a border lies around the keys: 'keys y, x border r'"
    if str(word) in _OPERATOR_HINTS and in_expression:
        return _OPERATOR_HINTS[word]
    if expected == {"IN"} and before.type == "NAME":
        return "the form is 'any(EXPRESSION for NAME in range(n))'"
    if "SORTED" in expected and statement.type == "INPUT" and word.type == "NAME":
        return did_you_mean(word, FACTS) or "facts of an input are 'of DIM', 'sorted', 'constant' and 'learned'"
    if expected == {"$END"} and statement.type in ("REDUCE", "OUTPUT"):
        return "a reduction is one call; what it gives can be read below by its name"
    if in_expression or before.type in ("DOT", "FOR", "NOT"):
        return None
    return _FORMS.get(statement.type)


def _bracket_hint(line: Line, at: int, statement: Word) -> str | None:
    if _open_brackets(line, at) <= 0:
        return "no bracket is open here"
    if statement.type in ("REDUCE", "OUTPUT") and line.words[at - 3 : at - 2] == (statement,):
        return f"one number of each matrix has no brackets: '{statement} {line.words[at - 2]} = ...'"
    return None


def _for_or_if_hint(line: Line, at: int, statement: Word) -> str | None:
    inside = _open_brackets(line, at) > 0
    looped = inside and any(word.type == "FOR" for word in line.words[:at])
    if line.words[at].type == "IF":
        if looped:
            return "a 'for' has no condition; join it to the expression in front of 'for'"
        return "put a conditional in brackets: (A if condition else B)" if statement.type == "ROWS" else None
    if looped:
        return "a call has one 'for'; put calls into each other"
    return "a 'for' stands in a call: any(EXPRESSION for i in range(n))"


def _statement(line: Line, at: int) -> Word:
    """The word of the statement before a word: `keep` behind the colon of `mask causal: keep k <= q`."""
    return next(word for word in reversed(line.words[:at]) if word.type in _KINDS)


def _open_brackets(line: Line, at: int) -> int:
    """How many brackets are open before a word."""
    kinds = [w.type for w in line.words[:at]]
    return sum(k in ("LPAR", "LSQB") for k in kinds) - sum(k in ("RPAR", "RSQB") for k in kinds)


def _ends_early(line: Line, expected: set[str]) -> Diagnostic:
    last = line.words[-1].span
    behind = Span(last.source, last.end, last.end + 1)
    statement = _statement(line, len(line.words))
    if "INTEGER" in expected:
        bare = line.words[-1] is statement
        return Diagnostic("expected an expression", behind, _FORMS.get(statement.type) if bare else None)
    if "ELSE" in expected and "COLON" not in expected:
        unfinished = next((w for w in reversed(line.words) if w.type == "IF"), None)
        if unfinished is None:
            return Diagnostic("'rows' without 'else'", statement.span, _FORMS["ROWS"])
        return Diagnostic("'if' without 'else'", unfinished.span, "write 'A if condition else B'")
    if statement.type in ("MASK", "DEF") and "COLON" in expected:
        return Diagnostic("expected ':' at the end of the line", behind)
    return Diagnostic("the line ends too early", behind, _FORMS.get(statement.type))


def _covering(first: Word, last: Word) -> Span:
    return Span(first.source, first.start, last.end)


def _short(word: Word) -> str:
    return str(word) if len(word) <= 40 else word[:37] + "..."
