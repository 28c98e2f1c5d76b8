"""Kernel skeletons: filling their blanks, walking a plan's runs of tiles, and the ways in which a score is written."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from textwrap import dedent, indent

from maskc.analysis.derivative import ZERO, derivative, is_additive
from maskc.codegen.expression import Writer, name, shown, unparsed
from maskc.codegen.settle import LOG2_E, Depends, depends, grouped, reads_score, scaled, settle
from maskc.expr import SCORE, Expr, Side
from maskc.spec import MaskSpec

Lines = Sequence[str]

_BLANK = re.compile(r"<<(\w+)>>")


def fill(template: str, blanks: Mapping[str, str | Lines]) -> str:
    """The template with its blanks filled: a text in place, lines (or none) for a blank that has a line of its own."""
    filled: list[str] = []
    for line in template.strip("\n").split("\n"):
        alone = _BLANK.fullmatch(line.strip())
        if alone and not isinstance(blanks[alone[1]], str):
            block = "\n".join(blanks[alone[1]])
            filled += indent(block, line[: len(line) - len(line.lstrip())]).split("\n") if block else []
        else:
            filled.append(_BLANK.sub(lambda blank: str(blanks[blank[1]]), line))
    return _without_double_gaps(filled)


def without_blanks(template: str) -> str:
    """The template with the names of its blanks in their place: text that still reads as Python's tokens."""
    return _BLANK.sub(r"\1", template)


def _without_double_gaps(lines: list[str]) -> str:
    """The lines with at most one empty line in a row, and none after an opening of a block or at a block's end."""
    kept: list[str] = []
    for line in lines:
        if line or (kept and kept[-1]):
            kept.append(line)
    return "\n".join(kept) + "\n"


def walk_start(runs: str) -> Lines:
    """Loads the first run of a row of tiles: `tiles` in all its runs, and the first `tile` and the `stop` of one."""
    return dedent(f"""\
        tiles = tl.load({runs}_tiles + map_row)
        run = tl.load({runs}_first + map_row)
        tile = tl.load({runs}_start + run, mask=tiles > 0, other=0)
        stop = tl.load({runs}_stop + run, mask=tiles > 0, other=0)""").split("\n")


def walk_next(runs: str) -> Lines:
    """Goes to the next tile, and where a run ends to the run behind it."""
    return dedent(f"""\
        tile += 1
        ends = (tile == stop) & (step + 1 < tiles)
        run += ends.to(tl.int32)
        tile = tl.where(ends, tl.load({runs}_start + run, mask=ends, other=0), tile)
        stop = tl.where(ends, tl.load({runs}_stop + run, mask=ends, other=0), stop)""").split("\n")


@dataclass(frozen=True)
class Score:
    """The score of a spec as the kernels compute it: in base 2, its additive part apart where it has that form."""

    spec: MaskSpec

    @cached_property
    def plain(self) -> bool:
        """Whether the spec leaves the score as it starts."""
        return self.spec.score == SCORE or is_additive(self.spec.score) == ZERO

    @cached_property
    def bias(self) -> Expr | None:
        """What is added to the score, times log2(e); None where the score has another form."""
        added = is_additive(self.spec.score)
        return None if added is None else grouped(scaled(settle(added, self.spec), LOG2_E))

    @cached_property
    def final(self) -> Expr:
        """The final score times log2(e)."""
        return grouped(scaled(settle(self.spec.score, self.spec), LOG2_E))

    @cached_property
    def final_reads_score(self) -> bool:
        """Whether the initial score takes part."""
        return reads_score(self.final)

    @cached_property
    def full_shape(self) -> bool:
        """Whether the final score is computed pair by pair."""
        return reads_score(self.final) or depends(self.final) is Depends.PAIR

    @cached_property
    def slope(self) -> Expr | None:
        """d final score / d initial score; None where it is 1."""
        if is_additive(self.spec.score) is not None:
            return None
        return grouped(settle(derivative(self.spec.score), self.spec))

    @cached_property
    def predicate(self) -> Expr:
        """What decides a pair."""
        return settle(self.spec.predicate, self.spec)

    @cached_property
    def changed(self) -> Expr | None:
        """What the score takes beyond the products; None where nothing."""
        return None if self.plain else self.bias if self.bias is not None else self.final


def score_lines(score: Score) -> Lines:
    """What has to stand before a changed score: the score that the pair starts with."""
    return ["score = products * scale"] if score.bias is None and score.final_reads_score else []


def scores_text(score: Score, writer: Writer, owner: Side) -> str:
    """The final scores of a tile in base 2, for a spec that changes them."""
    if score.bias is not None:
        return f"tl.fma(products, scale_log2, {unparsed(writer.number(score.bias, 'bias'))})"
    value = unparsed(writer.number(score.final, "final"))
    if score.full_shape:
        return value
    shape = "(BLOCK_Q, BLOCK_K)" if owner is Side.Q else "(BLOCK_K, BLOCK_Q)"
    return f"tl.zeros({shape}, tl.float32) + {value}"


def exponent(score: Score, writer: Writer, owner: Side, bound: str) -> str:
    """What the weights of a tile are 2 to the power of, given the rows' log-sum-exp in base 2."""
    if score.plain:
        return f"tl.fma(products, scale_log2, -{bound})"
    if score.bias is not None:
        return f"tl.fma(products, scale_log2, {shown(writer.number(score.bias, 'bias'))} - {bound})"
    return f"{scores_text(score, writer, owner)} - {bound}"


def keep_lines(score: Score, writer: Writer, end: Depends, exists: str) -> Lines:
    """The assignments of `keep`, one for each thing that has to hold; `exists` says which of the walked side do."""
    parts = [unparsed(part) for part in writer.predicate(score.predicate, {end: name(exists)})]
    return [f"keep = {part}" if number == 0 else f"keep &= {part}" for number, part in enumerate(parts)]
