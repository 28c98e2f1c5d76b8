"""`maskc emit --variants`: every kernel that calls with a mask can ask for, before there is any call."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

from maskc.codegen import variants
from maskc.codegen.form import Form, announced
from maskc.codegen.loads import loads
from maskc.codegen.schedule import Configuration, Pass, configuration, target_named
from maskc.codegen.source import emit
from maskc.commands.explain import source_text
from maskc.spec import MaskSpec

PASSES: dict[Pass, str] = {"forward": "forward", "queries": "dQ", "keys": "dK, dV"}
DTYPE_NAMES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32", "fp64": "float64"}
SHOWN = 12
"""Digits of a file's name in a table."""


@dataclass(frozen=True)
class File:
    """A kernel file. name: as the cache has it. clauses: what partial tiles evaluate. count: of its variants."""

    name: str
    form: Form
    clauses: tuple[int, ...]
    count: int


@dataclass(frozen=True)
class Announced:
    """The closed set of a mask's variants for head dims and a dtype.

    configurations: how each pass is run on the target, with contiguous keys and with indexed ones.
    """

    spec: MaskSpec
    dims: tuple[int, int]
    dtype: str
    target: str
    files: tuple[File, ...]
    configurations: dict[Pass, tuple[Configuration, Configuration]]

    @property
    def count(self) -> int:
        """How many variants there are."""
        return sum(file.count for file in self.files)


def announcement(spec: MaskSpec, dims: tuple[int, int], dtype: str, target: str) -> Announced:
    """Raises MaskUnsupportedError for a target, head dim or dtype that there is not, and for a mask without kernels."""
    from maskc.runtime import cache, loader

    chip = target_named(target)
    heavy, read = emit(spec).heavy, loads(spec)

    def chosen(pass_: Pass, indexed: bool) -> Configuration:
        return configuration(chip, dims, dtype, pass_, heavy, indexed, read)

    version = loader.triton_version()
    files = []
    for indexed in (False, True):
        for clauses in announced(spec):
            form = variants.named_form(spec, dims, indexed=indexed, clauses=clauses)
            count = math.prod(map(len, variants.choices(spec, form, dtype).values()))
            files.append(File(cache.name_of(emit(spec, form).text, version), form, clauses, count))
    configurations = {pass_: (chosen(pass_, False), chosen(pass_, True)) for pass_ in PASSES}
    return Announced(spec, dims, dtype, chip.name, tuple(files), configurations)


def announced_text(found: Announced) -> str:
    """For a reader: the files, what their variants differ in, and the configurations."""
    spec = found.spec
    files = [("file", "variants", "keys", "partial tiles evaluate")]
    for file in found.files:
        files.append((file.name[:SHOWN], str(file.count), _keys(file.form), _evaluated(file.clauses, spec)))
    clauses = [(f"clause {n}", shorten(text, 96, placeholder=" ...")) for n, text in enumerate(_clause_texts(spec))]
    dims = " | ".join(map(str, found.dims))
    lines = [
        f"{spec.name}: {found.count:,} variants of {len(found.files)} kernel files; {DTYPE_NAMES[found.dtype]}, "
        f"head dims {dims}",
        *_table(files),
        *_table(clauses),
        "",
        "the variants of a file differ in",
        *_table(_differences(found)),
        "",
        f"tiles of queries x keys on {found.target}",
        *_table(list(_configurations(found))),
        "",
        "Each is compiled when a call first asks for it. Lengths, batch size, heads, values of parameters and offsets,",
        "other strides, contents and plans choose among them and add none.",
    ]
    return "\n".join(lines)


def _configurations(found: Announced) -> Iterator[tuple[str, str]]:
    """A line per pass, or one each for contiguous and for indexed keys."""
    for pass_, (contiguous, indexed) in found.configurations.items():
        if contiguous == indexed:
            yield PASSES[pass_], str(contiguous)
        else:
            yield f"{PASSES[pass_]}, contiguous", str(contiguous)
            yield f"{PASSES[pass_]}, indexed", str(indexed)


def _clause_texts(spec: MaskSpec) -> list[str]:
    """The clauses as the spec writes them; written out where several come from one function."""
    texts = [source_text(clause) for clause in spec.clauses]
    return [str(c) if texts.count(text) > 1 else text for c, text in zip(spec.clauses, texts, strict=True)]


def announced_object(found: Announced) -> dict[str, Any]:
    """What --json prints."""
    return {
        "mask": found.spec.name,
        "dtype": DTYPE_NAMES[found.dtype],
        "dims": list(found.dims),
        "target": found.target,
        "variants": found.count,
        "clauses": _clause_texts(found.spec),
        "files": [_file_object(file, found) for file in found.files],
    }


def _file_object(file: File, found: Announced) -> dict[str, Any]:
    configurations = {pass_: chosen[file.form.indexed] for pass_, chosen in found.configurations.items()}
    inputs = {name: _input_dtypes(found.spec, name) for name in _inputs(found.spec, file.form)}
    return {
        "file": file.name,
        "keys": _keys(file.form),
        "clauses": list(file.clauses),
        "variants": file.count,
        "choices": {**variants.choices(found.spec, file.form, found.dtype), "inputs": inputs},
        "configurations": {
            pass_: {"tile": list(c.tile), "warps": c.warps, "stages": c.stages} for pass_, c in configurations.items()
        },
    }


def _keys(form: Form) -> str:
    return "indexed" if form.indexed else "contiguous"


def _evaluated(clauses: Sequence[int], spec: MaskSpec) -> str:
    if not clauses:
        return "only whether tokens exist"
    if len(clauses) == len(spec.clauses):
        return "every clause"
    return f"clause{'s' if len(clauses) > 1 else ''} {', '.join(map(str, clauses))}"


def _differences(found: Announced) -> list[tuple[str, str, str]]:
    """What a file's variants differ in: names, values, meaning. A file that reads less has less of them."""
    spec, form = found.spec, found.files[0].form
    choices = variants.choices(spec, form, found.dtype)
    offsets = ["+".join(name.removesuffix("_offset") for name in given) or "numbers" for given in choices["offsets"]]
    lines = [
        ("rows", "aligned | any", "aligned: every row of q, k, v, dO at a multiple of 16 bytes, stride 1"),
        ("k and v", "alike | any", "alike: their rows have one stride"),
        ("indices", "32 | 64 bits", "64: strides, or integers that decide pairs, reach that far"),
        ("offsets", " | ".join(offsets), "named: q_offset or k_offset is given per batch row"),
        ("results", "whole | parts", "parts: float32, of parts of a plan or shares of keys, to be joined"),
        ("dLSE", "none | given", "given: the log-sum-exp has a gradient (backward_rows_kernel alone)"),
    ]
    if len(choices["tf32"]) > 1:
        lines.append(("dots", "ieee | tf32", "tf32: torch allows it"))
    for name in _inputs(spec, form):
        lines.append((name, " | ".join(_input_dtypes(spec, name)), "dtype of the input"))
    return lines


def _inputs(spec: MaskSpec, form: Form) -> list[str]:
    """The float inputs that calls give."""
    return [name for name in variants.reads(spec, form)[1] if len(variants.input_dtypes(spec.input(name))) > 1]


def _input_dtypes(spec: MaskSpec, name: str) -> list[str]:
    return [DTYPE_NAMES[dtype] for dtype in variants.input_dtypes(spec.input(name))]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with aligned columns."""
    if not rows:
        return []
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return ["  " + "  ".join((*map(str.ljust, row, widths), row[-1])) for row in rows]
