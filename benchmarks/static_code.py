"""Reads machine code: its loops over tiles, and what touches local memory, multiplies matrices or copies."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce


@dataclass(frozen=True)
class Loop:
    """A loop over tiles, everything counted once per turn of it; spinning on a barrier and inner loops count once, too.

    tensor: tensor-core instructions. local: accesses to local memory. copies: asynchronous copies to shared memory, in
    `groups` groups. depth: for how many tiles more copies may be under way where the loop waits for a tile's; -1 where
    it never waits.
    """

    instructions: int
    tensor: int
    local: int
    copies: int
    groups: int
    depth: float


@dataclass(frozen=True)
class Code:
    """A kernel's machine code; `loops` are those over tiles in the order of their first instructions."""

    instructions: int
    tensor: int
    local_in_loops: int
    local_outside: int
    loops: tuple[Loop, ...]


def read(disassembly: str) -> Code:
    """Counts in what nvdisasm prints of one kernel."""
    lines, targets = listing(disassembly)
    spans = natural_loops(lines, targets)
    inside = set().union(*spans)
    local = {i for i, line in enumerate(lines) if is_local(line)}
    # Loops that neither copy nor multiply spin on a barrier or search a row; they belong to the loop around them.
    tiled = [span for span in spans if any(is_copy(lines[i]) or is_tensor(lines[i]) for i in span)]
    innermost = [span for span in tiled if not any(other < span for other in tiled)]
    return Code(
        instructions=len(lines),
        tensor=sum(map(is_tensor, lines)),
        local_in_loops=len(local & inside),
        local_outside=len(local - inside),
        loops=tuple(_loop([lines[i] for i in sorted(span)]) for span in sorted(innermost, key=min)),
    )


def _loop(lines: Sequence[str]) -> Loop:
    groups = sum(line.startswith("LDGDEPBAR") for line in map(_unpredicated, lines))
    waits = [int(wait[1], 16) for line in lines if (wait := re.match(r"DEPBAR\.LE SB0, (0x[0-9a-f]+)", line))]
    return Loop(
        instructions=len(lines),
        tensor=sum(map(is_tensor, lines)),
        local=sum(map(is_local, lines)),
        copies=sum(map(is_copy, lines)),
        groups=groups,
        depth=round(max(waits) / groups, 2) if waits and groups else -1.0,
    )


def _is(*names: str) -> Callable[[str], bool]:
    """Whether an instruction has one of these names, followed by modifiers or not."""
    return lambda line: re.match(rf"({'|'.join(names)})\b", _unpredicated(line)) is not None


is_local = _is("LDL", "STL")
"""Reads or writes local memory: a spilled register."""
is_tensor = _is("HMMA", "HGMMA", "UTC[A-Z]*MMA")
"""Multiplies matrices: of one warp (sm_80, sm_86, sm_120), of four (sm_90), in tensor memory (sm_100)."""
is_copy = _is("LDGSTS", "UTMALDG")
"""Copies from global to shared memory while the program goes on."""


def _unpredicated(line: str) -> str:
    return re.sub(r"^@!?U?P\w+ +", "", line)


def listing(disassembly: str) -> tuple[list[str], dict[str, int]]:
    """The instructions without addresses, and for every label the number of the instruction behind it."""
    lines: list[str] = []
    targets: dict[str, int] = {}
    for line in disassembly.split("\n"):
        if label := re.match(r"\s*(\.L\w+):", line):
            targets[label[1]] = len(lines)
        elif instruction := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s*(.*?)\s*;", line):
            lines.append(instruction[1])
    return lines, targets


def natural_loops(lines: Sequence[str], targets: dict[str, int]) -> list[frozenset[int]]:
    """The instructions of every loop: all that lead back to a header that no path into them goes around.

    An out-of-line block that jumps back (the slow path of a barrier) is no header of a loop of its own.
    """
    blocks = _blocks(lines, targets)
    after = {
        start: [s for s in _successors(lines, targets, block[-1]) if s in blocks] for start, block in blocks.items()
    }
    dominators = _dominators(after)
    bodies: dict[int, set[int]] = {}
    for block, following in after.items():
        for header in following:
            if block in dominators and header in dominators[block]:
                bodies.setdefault(header, set()).update(_body(header, block, after))
    return [frozenset(i for block in body for i in blocks[block]) for body in bodies.values()]


def _blocks(lines: Sequence[str], targets: dict[str, int]) -> dict[int, range]:
    """Instructions that run one after the other, by the first of them."""
    starts = {0, *targets.values()}
    starts |= {i + 1 for i in range(len(lines)) if list(_successors(lines, targets, i)) != [i + 1]}
    ordered = sorted(start for start in starts if start < len(lines))
    return {start: range(start, stop) for start, stop in zip(ordered, [*ordered[1:], len(lines)], strict=True)}


def _successors(lines: Sequence[str], targets: dict[str, int], number: int) -> Iterator[int]:
    """What may run after an instruction. A call of a label is a jump; one of a function comes back."""
    line = lines[number]
    plain = _unpredicated(line)
    jump = re.match(r"(?:BRA|CALL|JMP)[.\w]*\s*(.*?)`\((\.L\w+)\)", plain)
    if jump and jump[2] in targets:
        yield targets[jump[2]]
    ends = plain.startswith(("EXIT", "RET", "BRX")) or (jump is not None and not jump[1])
    if line != plain or not ends:
        yield number + 1


def _dominators(after: dict[int, list[int]]) -> dict[int, set[int]]:
    """For every block that can be reached, the blocks on every path to it."""
    order, todo = [], [0]
    while todo:
        if (block := todo.pop()) not in order:
            order.append(block)
            todo += after[block]
    before = {block: [b for b in order if block in after[b]] for block in order}
    found = {block: set(order) for block in order} | {0: {0}}
    changed = True
    while changed:
        changed = False
        for block in order[1:]:
            kept = reduce(set.intersection, (found[b] for b in before[block])) | {block}
            changed |= kept != found[block]
            found[block] = kept
    return found


def _body(header: int, last: int, after: dict[int, list[int]]) -> set[int]:
    """The blocks from which `last` is reached without passing the header, and the header."""
    body, todo = {header}, [last]
    while todo:
        if (block := todo.pop()) not in body:
            body.add(block)
            todo += [b for b, following in after.items() if block in following]
    return body


def amd_figure(text: str, name: str) -> int:
    """A number of the kernel's metadata in the assembly for an AMD target."""
    found = re.search(rf"\.{name}:\s+(\d+)", text)
    assert found is not None, f"the metadata have {name}"
    return int(found[1])
