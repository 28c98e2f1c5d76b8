"""Mistakes and warnings, gathered while a file is read; and the limits of what is read."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar, TypeVarTuple

from maskc.checker.typed import OperandError
from maskc.diagnostics import Diagnostic, Span
from maskc.expr import Expr

DEPTH_LIMIT = 100
SIZE_LIMIT = 20_000
WORK_LIMIT = 50_000
ERROR_LIMIT = 100
TOO_LARGE = f"{{}} has more than {SIZE_LIMIT:,} operations once everything is inlined"

Operands = TypeVarTuple("Operands")
Made = TypeVar("Made")


class LimitError(Exception):
    """Ends the reading of a file: enough was reported, or it would take too long."""


@dataclass(eq=False)
class Reports:
    """What was found in a file.

    calls: those of functions and masks that are being inlined. work: how many operations were read so far.
    """

    found: list[Diagnostic] = field(default_factory=list)
    calls: list[Span] = field(default_factory=list)
    work: int = 0

    def report(self, message: str, span: Span | None, hint: str | None = None) -> None:
        """A mistake; the same sentence at the same place is said once."""
        if all((d.message, d.span) != (message, span) for d in self.found):
            self.found.append(Diagnostic(message, span, hint))
        if len(self.found) >= ERROR_LIMIT:
            raise LimitError

    def warn(self, message: str, span: Span | None, hint: str | None = None) -> None:
        """What is allowed and probably not meant."""
        diagnostic = Diagnostic(message, span, hint, "warning")
        if len(self.found) < ERROR_LIMIT and diagnostic not in self.found:
            self.found.append(diagnostic)

    def spend(self, work: int, span: Span | None) -> None:
        """Counts operations; raises LimitError where a file has too many."""
        self.work += work
        if self.work > WORK_LIMIT:
            self.report(f"this file has more than {WORK_LIMIT:,} operations once everything is inlined", span)
            raise LimitError

    def tried(self, span: Span, make: Callable[[*Operands, Span | None], Made], *operands: *Operands) -> Made | None:
        """What `make` gives for operands, with `span`; an `OperandError` is reported."""
        try:
            return make(*operands, span)
        except OperandError as mistake:
            self.report(mistake.message, mistake.span or span, self._with_call(mistake.hint))
            return None

    def made(self, span: Span, make: Callable[[*Operands, Span | None], Expr], *operands: *Operands) -> Expr | None:
        """What `make` gives for operands, with `span`; a mistake, or a result out of bounds, is reported."""
        expr = self.tried(span, make, *operands)
        if expr is None:
            return None
        if expr.size <= DEPTH_LIMIT:
            return expr  # and no deeper than that
        if expr.depth > DEPTH_LIMIT:
            self.report(f"this expression is more than {DEPTH_LIMIT} levels deep once everything is inlined", span)
            return None
        if expr.size > SIZE_LIMIT:
            self.report(TOO_LARGE.format("this expression"), span)
            return None
        return expr

    def _with_call(self, hint: str | None) -> str | None:
        """A hint, with the call that handed over the operands of a function or of a mask used as a predicate."""
        if not self.calls:
            return hint
        source, start = self.calls[0].source, self.calls[0].start
        call = f"called on line {source.position(start)[0]}"
        return call if hint is None else f"{hint}; {call}"
