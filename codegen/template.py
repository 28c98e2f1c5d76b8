"""Kernel skeletons: filling their blanks, walking a plan's runs of tiles, and the ways in which a score is written.

A skeleton is the text of a kernel with blanks `<<name>>`. Lines that begin with `<<contiguous>>` or `<<indexed>>` stand
in that form only. Lines that begin with `<<qk>>` or `<<v>>` are repeated for every block of the columns of q and k, or
of v, with `~` as the suffix of the block; in them `<<width>>` is the block's width, `<<where ROWS>>` the mask of a load
of these rows (all, where left out), `<<rows ROWS>>` that of a store, and `<<after NAME>>` passes on what the block
before has summed up under that name.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from textwrap import dedent, indent

from maskc.analysis.derivative import ZERO, derivative, is_additive
from maskc.codegen.columns import Cut
from maskc.codegen.expression import Writer, shown, unparsed
from maskc.codegen.form import Form
from maskc.codegen.settle import LOG2_E, Depends, depends, grouped, reads_score, scaled, settle
from maskc.expr import SCORE, Expr, Side
from maskc.spec import MaskSpec

Lines = Sequence[str]

_BLANK = re.compile(r"<<(\w+)>>")
_MARK = re.compile(r"<<(contiguous|indexed|qk|v)>>")
_OF_BLOCK = re.compile(r"<<(width|where|rows|after)(?: ([^<>]+))?>>")


def fill(template: str, form: Form, blanks: Mapping[str, str | Lines]) -> str:
    """The template with its blanks filled: a text in place, lines (or none) for a blank that has a line of its own."""
    filled: list[str] = []
    for line in formed(template.strip("\n").split("\n"), form):
        alone = _BLANK.fullmatch(line.strip())
        if alone and not isinstance(blanks[alone[1]], str):
            block = "\n".join(blanks[alone[1]])
            filled += indent(block, line[: len(line) - len(line.lstrip())]).split("\n") if block else []
        else:
            filled.append(_BLANK.sub(lambda blank: str(blanks[blank[1]]), line))
    return _without_double_gaps(filled)


def formed(lines: Lines, form: Form) -> Iterator[str]:
    """The lines that stand in a form, those of the columns repeated for every block."""
    kept = "indexed" if form.indexed else "contiguous"
    for line in lines:
        margin, text = line[: len(line) - len(line.lstrip())], line.lstrip()
        marks = []
        while mark := _MARK.match(text):
            marks.append(mark[1])
            text = text[mark.end() :]
        if {"indexed", "contiguous"} & set(marks) <= {kept}:
            side = next((m for m in marks if m in ("qk", "v")), None)
            for repeated in [text] if side is None else _blocks(text, side, form.qk if side == "qk" else form.v):
                yield margin + repeated


def _blocks(text: str, side: str, cut: Cut) -> Iterator[str]:
    """A line for each block of columns."""
    for number in range(1 + cut.tail):
        suffix = "_tail" if number else ""
        inside = f"inside_{side}{suffix}" if cut.ragged and number == cut.tail else None
        width = ("TAIL" if number else "WIDTH" if cut.tail or cut.ragged else "D") + f"_{side.upper()}"

        def of_block(blank: re.Match[str], number: int = number, inside: str | None = inside, w: str = width) -> str:
            kind, words = blank[1], blank[2]
            mask = " & ".join(part for part in (words, inside) if part)
            match kind:
                case "width":
                    return w
                case "where":
                    return f", mask={mask}, other=0.0" if mask else ""
                case "rows":
                    return f", mask={mask}"
                case _:
                    return f", {words}" if number else ""

        yield _OF_BLOCK.sub(of_block, text.replace("~", suffix))


def columns_lines(form: Form) -> Lines:
    """The numbers of the columns of every block, and which of the last one's there are."""
    lines = []
    for side, cut in (("qk", form.qk), ("v", form.v)):
        total = f"D_{side.upper()}"
        main = f"WIDTH_{side.upper()}" if cut.tail or cut.ragged else total
        lines.append(f"dims_{side} = tl.arange(0, {main})")
        if cut.tail:
            lines.append(f"dims_{side}_tail = {main} + tl.arange(0, TAIL_{side.upper()})")
        if cut.ragged:
            last = "_tail" if cut.tail else ""
            lines.append(f"inside_{side}{last} = dims_{side}{last}[None, :] < {total}")
    return lines


def widths(form: Form) -> tuple[str, ...]:
    """The compile-time arguments for the widths of blocks, beyond D_QK and D_V."""
    found = []
    for side, cut in (("QK", form.qk), ("V", form.v)):
        found += [f"WIDTH_{side}"] if cut.tail or cut.ragged else []
        found += [f"TAIL_{side}"] if cut.tail else []
    return tuple(found)


def widths_text(form: Form) -> str:
    """The declarations of `widths`."""
    return "".join(f"{width}: tl.constexpr, " for width in widths(form))


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


def walk_start(kind: str, form: Form, walked: Side) -> Lines:
    """Begins to go through the tiles of a row: loads how many there are, and which one is the first.

    Contiguous walks have runs of tiles: `tile` and the `stop` of its run. Indexed ones have a list of tiles: the rows
    of the first tile, and the number of the second.
    """
    if not form.indexed:
        return dedent(f"""\
            tiles = tl.load({kind}_tiles + map_row)
            run = {kind}_runs + tl.load({kind}_first + map_row)
            bounds = tl.load(run)
            tile, stop = bounds.to(tl.int32), (bounds >> 32).to(tl.int32)""").split("\n")
    side, block = walked.value, f"BLOCK_{walked.name}"
    return dedent(f"""\
        tiles = tl.load({kind}_tiles + map_row)
        ahead = {kind}_list + tl.load({kind}_first + map_row)
        tile = tl.load(ahead).to(tl.int64)
        {side}_rows = tl.load({side}_position_pointers + tile * {block}, mask=tiles > 0, other=-1)
        ahead += 1
        tile = tl.load(ahead).to(tl.int64)""").split("\n")


def walk_next(kind: str, form: Form, walked: Side) -> Lines:
    """Goes to the next tile; behind the last run there is one more entry, behind the last tile of a list two.

    Of equal ways to take the next run each kernel has the one with the fewest instructions, by the static judge.
    """
    if not form.indexed:
        start = ["tile += 1", "ends = tile == stop", "run = tl.where(ends, run + 1, run)"]
        tile = "tile = tl.where(ends, bounds.to(tl.int32), tile)"
        stop = "(bounds >> 32).to(tl.int32)"
        if walked is Side.K:
            return [*start, "bounds = tl.load(run, mask=ends, other=bounds)", tile, f"stop = {stop}"]
        return [*start, "bounds = tl.load(run, mask=ends, other=0)", tile, f"stop = tl.where(ends, {stop}, stop)"]
    side, block = walked.value, f"BLOCK_{walked.name}"
    return dedent(f"""\
        {side}_rows = tl.load({side}_position_pointers + tile * {block})
        ahead += 1
        tile = tl.load(ahead).to(tl.int64)""").split("\n")


def full_rows(form: Form, walked: Side) -> Lines:
    """The tokens of a full tile, where something reads them; indexed walks have them at hand."""
    lanes = {Side.K: "k_rows = tile * BLOCK_K + key_lanes", Side.Q: "q_rows = tile * BLOCK_Q + query_lanes"}
    return [] if form.indexed else [lanes[walked]]


@dataclass(frozen=True)
class Score:
    """The score of a spec as the kernels compute it: in base 2, its additive part apart where it has that form.

    kept: what partial tiles evaluate of the predicate.
    """

    spec: MaskSpec
    kept: Expr

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
        return settle(self.kept, self.spec)

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


def keep_lines(score: Score, writer: Writer, exists: str) -> Lines:
    """The assignments of `keep`, one for each thing that has to hold; `exists` says which of the walked side do."""
    parts = [unparsed(part) for part in writer.predicate(score.predicate, exists)]
    return [f"keep = {part}" if number == 0 else f"keep &= {part}" for number, part in enumerate(parts)]
