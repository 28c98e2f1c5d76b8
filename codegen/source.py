"""MaskSpec -> KernelSource: one readable Python file per form of a spec that imports torch and triton only.

The text follows from the spec and the form alone: sizes, parameter values, tile shapes, dtypes and contents are given
at launch. Equal ones give equal bytes.
"""

import io
import keyword
import tokenize
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from maskc.analysis.derivative import is_additive
from maskc.codegen import backward, forward, merge
from maskc.codegen.columns import Cut
from maskc.codegen.expression import Names, Symbols, free_size
from maskc.codegen.form import Form
from maskc.codegen.helpers import HELPERS, LOOKUPS, helpers
from maskc.codegen.settle import Depends, depends, settle
from maskc.codegen.template import fill, formed, widths, widths_text, without_blanks
from maskc.expr import (
    AxisSize,
    Binary,
    BinaryOp,
    Bucket,
    Coordinate,
    Expr,
    FreeSize,
    Member,
    Offset,
    Parameter,
    Position,
    Read,
    Side,
    Type,
    walk,
)
from maskc.features import require
from maskc.spec import MaskSpec


@dataclass(frozen=True)
class Argument:
    """One argument of a kernel.

    type: `*T` (a tensor of the dtype of q), `*fp32`, `*i32`, `*i64`, `input:NAME` (a tensor of the spec), `offsets`
    (`*i64`, or None where all batch rows begin at one position), `i32`, `i64`, `fp32`, `fp64` or `constexpr`.
    """

    name: str
    type: str


@dataclass(frozen=True)
class Kernel:
    """One entry point and its arguments in order."""

    name: str
    arguments: tuple[Argument, ...]


@dataclass(frozen=True)
class KernelSource:
    """A kernel file.

    form: which of the spec's.
    kernels: its entry points; the file's functions `forward` and `backward` launch them.
    double: whether float64 arithmetic decides pairs; then multiply-adds must not be fused behind the text's back.
    inputs: the tensors of the spec that the kernels read.
    heavy: whether masks or scores take so much arithmetic or so many registers that smaller tiles serve better.
    """

    mask: str
    form: Form
    text: str
    kernels: tuple[Kernel, ...]
    double: bool
    inputs: tuple[str, ...]
    heavy: bool

    def kernel(self, name: str) -> Kernel:
        """The entry point of that name."""
        return next(k for k in self.kernels if k.name == name)

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class MaskArguments:
    """What the predicate and the score of a spec read, as kernel arguments that every kernel and launch name alike.

    kept: the part of the predicate that the kernels evaluate.
    """

    spec: MaskSpec
    kept: Expr

    @cached_property
    def nodes(self) -> tuple[Expr, ...]:
        """Every node of the predicate and the score."""
        return tuple(node for expr in (self.kept, self.spec.score) for node in walk(expr))

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Inputs that are read or whose dims are, in the order of the spec."""
        read = {node.input for node in self.nodes if isinstance(node, Read)}
        read |= {node.row.input for node in self.nodes if isinstance(node, Member | Bucket)}
        read |= {free_size(self.spec, node.name)[0] for node in self.nodes if isinstance(node, FreeSize)}
        return tuple(i.name for i in self.spec.inputs if i.name in read)

    @cached_property
    def parameters(self) -> tuple[tuple[str, Type], ...]:
        """Parameters that are read, in the order of the spec."""
        read = {node.name for node in self.nodes if isinstance(node, Parameter)}
        return tuple((p.name, p.type) for p in self.spec.parameters if p.name in read)

    @cached_property
    def axes(self) -> tuple[str, ...]:
        """Axes whose sizes are read, in the order of the spec; a coordinate reads its own and all faster ones."""
        order = self.spec.axis_names
        read = {node.axis for node in self.nodes if isinstance(node, AxisSize)}
        for node in self.nodes:
            if isinstance(node, Coordinate):
                read.update(order[max(1, order.index(node.axis)) :])
        return tuple(axis for axis in order if axis in read)

    @cached_property
    def offsets(self) -> tuple[str, ...]:
        """`q_offset` and `k_offset` where positions are read."""
        sides = {node.side for node in self.nodes if isinstance(node, Position | Coordinate | Offset)}
        return tuple(f"{side.value}_offset" for side in Side if side in sides)

    @cached_property
    def names(self) -> Names:
        """Names that the skeletons do not use, with those of the arguments taken."""
        return Names(set(_reserved()))

    @cached_property
    def symbols(self) -> Symbols:
        """The arguments' names."""
        inputs = {i: self.names.exact(i) for i in self.inputs}
        parameters = {p: self.names.exact(p) for p, _ in self.parameters}
        axes = {a: self.names.exact(f"{a}_size") for a in self.axes}
        return Symbols(inputs, parameters, axes)

    @cached_property
    def declared(self) -> tuple[Argument, ...]:
        """The arguments in the order of every kernel's signature."""
        found: list[Argument] = []
        for i, argument in self.symbols.inputs.items():
            dims = range(len(self.spec.input(i).dims))
            found.append(Argument(argument, f"input:{i}"))
            found += [Argument(f"{argument}_stride_{d}", "i64") for d in dims]
            found += [Argument(f"{argument}_size_{d}", "i32") for d in dims]
        for p, type_ in self.parameters:
            found.append(Argument(self.symbols.parameters[p], _PARAMETER_TYPES[type_]))
        found += [Argument(axis, "i64") for axis in self.symbols.axes.values()]
        for offset in self.offsets:
            found += [Argument(offset, "i64"), Argument(f"{offset}s", "offsets")]
        return tuple(found)

    @cached_property
    def lines(self) -> Sequence[str]:
        """The declarations, one line for each thing that the mask reads."""
        groups: list[list[str]] = []
        for argument in self.declared:
            text = argument.name if argument.type not in _TYPED else (f"{argument.name}: {_TYPED[argument.type]}")
            starts = "_stride_" not in argument.name and "_size_" not in argument.name
            starts = starts and not argument.name.endswith("_offsets")
            if starts or not groups:
                groups.append([])
            groups[-1].append(text)
        return [", ".join(group) + "," for group in groups]

    @cached_property
    def values(self) -> Sequence[str]:
        """What the launch functions pass for each argument, one line for each thing that the mask reads."""
        lines = []
        for i in self.inputs:
            lines.append(f'arguments["{i}"], *arguments["{i}"].stride(), *arguments["{i}"].shape,')
        for p, type_ in self.parameters:
            read = f'arguments["{p}"]'
            lines.append(f"int({read})," if type_ is not Type.FLOAT else f"float({read}),")
        lines += [f'arguments["{axis}"],' for axis in self.axes]
        lines += [f'*_offset(arguments["{offset}"]),' for offset in self.offsets]
        return lines


_PARAMETER_TYPES = {Type.BOOL: "i32", Type.INT: "i64", Type.FLOAT: "fp64"}
_TYPED = {"i32": "tl.int32", "i64": "tl.int64", "fp32": "tl.float32", "fp64": "tl.float64"}


@lru_cache(maxsize=512)
def emit(spec: MaskSpec, form: Form | None = None) -> KernelSource:
    """The kernel file of a spec in one form; by default contiguous keys, head dims that are powers of two, and a
    predicate that is evaluated whole. Raises MaskUnsupportedError for what kernels cannot compute.
    """
    require(spec, "triton")
    form = Form() if form is None else form
    kept = spec.predicate if form.predicate is None else form.predicate
    mask = MaskArguments(spec, kept)
    symbols, lines = mask.symbols, mask.lines
    templates = (forward.TEMPLATE, merge.TEMPLATE, backward.ROWS, backward.QUERIES, backward.KEYS)
    signatures = tuple(_signature(template, form, mask.declared) for template in templates)
    plain = [f"[*range({sum(a.type != 'constexpr' for a in s.arguments)})]" for s in signatures]
    texts = [
        forward.kernel(spec, form, symbols, _copied(mask.names), lines, plain[0]),
        (merge.kernel(plain[1]), False),
        (backward.rows_kernel(plain[2]), False),
        backward.owned_kernel(spec, form, Side.Q, symbols, _copied(mask.names), lines, plain[3]),
        backward.owned_kernel(spec, form, Side.K, symbols, _copied(mask.names), lines, plain[4]),
    ]
    double = any(decides for _, decides in texts)
    parts = [_header(spec, form), helpers(symbols.helpers), *(text for text, _ in texts), _launches(mask, form, double)]
    text = "\n\n".join(part.strip("\n") + "\n" for part in parts if part)
    return KernelSource(spec.name, form, text, signatures, double, mask.inputs, _heavy(spec))


def _copied(names: Names) -> Names:
    """The names for one kernel."""
    return Names(set(names.taken))


def _heavy(spec: MaskSpec) -> bool:
    """Each lane computes what depends on one end for many positions, and keeps the results until the tile is done; or
    the slope of the score is one more tile of pairs to keep.
    """
    if is_additive(spec.score) is None:
        return True
    exprs = (settle(spec.predicate, spec), settle(spec.score, spec))
    for end in (Depends.Q, Depends.K):
        nodes = {node for expr in exprs for node in walk(expr) if depends(node) is end}
        if sum(_INSTRUCTIONS.get(node.op, 1) for node in nodes if isinstance(node, Binary)) > _HEAVY:
            return True
    return False


_INSTRUCTIONS = {BinaryOp.FLOORDIV: 16, BinaryOp.MOD: 16, BinaryOp.TRUNCDIV: 8, BinaryOp.TRUNCMOD: 8}
_HEAVY = 48


def _signature(template: str, form: Form, declared: tuple[Argument, ...]) -> Kernel:
    """Name and arguments of a skeleton in a form, what the mask reads among them."""
    text = "\n".join(formed(template.split("\n"), form))
    head = text[text.index("def ") + 4 : text.index("):\n")]
    name, rest = head.split("(", 1)
    found: list[Argument] = []
    for item in rest.replace("<<mask_arguments>>", "MASK,").replace("<<widths>>", widths_text(form)).split(","):
        argument, _, annotation = (part.strip() for part in item.partition(":"))
        if argument == "MASK":
            found += declared
        elif argument:
            found.append(Argument(argument, _ARGUMENT_TYPES.get(annotation, "") or _pointer(argument)))
    return Kernel(name, tuple(found))


_ARGUMENT_TYPES = {"tl.int32": "i32", "tl.int64": "i64", "tl.float32": "fp32", "tl.constexpr": "constexpr"}


def _pointer(argument: str) -> str:
    if argument.endswith("_runs"):
        return "*i64"
    if argument.startswith(("full_", "partial_")) or argument.endswith("_positions"):
        return "*i32"
    return "*fp32" if argument in ("lse", "d_lse", "delta", "bound", "outs", "lses") else "*T"


@lru_cache(maxsize=1)
def _reserved() -> frozenset[str]:
    """Every name that the skeletons, the helpers and the launch functions use."""
    templates = (forward.TEMPLATE, merge.TEMPLATE, backward.ROWS, backward.QUERIES, backward.KEYS, _LAUNCH)
    cut = Cut(tail=True, ragged=True)
    forms = [Form(indexed=indexed, qk=cut, v=cut) for indexed in (False, True)]
    texts = ["\n".join(formed(template.split("\n"), form)) for template in templates for form in forms]
    found = set(keyword.kwlist) | {"score", "scores", "keep"}
    for text in (*texts, *HELPERS.values()):
        tokens = tokenize.generate_tokens(io.StringIO(without_blanks(text)).readline)
        found |= {token.string for token in tokens if token.type == tokenize.NAME}
    found |= LOOKUPS.keys()  # what is local to them clashes with nothing
    return frozenset(found | {"highest", "base", "decay", "weights", "tile", "stop", "run", "tiles", "ends", "step"})


def _header(spec: MaskSpec, form: Form) -> str:
    lines = [
        f"# Attention kernels for the mask `{spec.name}`, forward and backward. Generated by maskc from",
        "#",
        *(f"#     {line}" for line in str(spec).split("\n")),
        "#",
        f"# Form: {form}.",
        "# The functions at the end launch the kernels; they take the runs of tiles that a plan of the mask gives. The",
        "# text depends on mask and form alone: sizes, parameter values, dtypes and tile shapes are given at launch.",
        "",
        "import torch",
        "import triton",
        "import triton.language as tl",
    ]
    return "\n".join(lines) + "\n"


_LAUNCH = '''
def _strides(x, align):
    """Strides in units of `align` elements, the last one in elements; 0 where a dim has one entry."""
    *outer, last = [0 if size == 1 else stride for size, stride in zip(x.shape, x.stride())]
    return *(stride // align for stride in outer), last


def _walk(walk, queries_owned):
    """A walk as the kernels take it: the full and the partial tiles, <<positions>>the strides of the tables over batch
    rows and heads, and how many tiles of the owned side there are.
    """
    full, partial, owned, walked, (batch_maps, head_maps), tiles, splits = walk
    strides = (head_maps if batch_maps > 1 else 0), (1 if head_maps > 1 else 0)
    <<indexed>>q_positions, k_positions = (owned, walked) if queries_owned else (walked, owned)
    <<indexed>>owned_stride = owned.shape[1] if owned.shape[0] > 1 else 0
    <<indexed>>return *full, *partial, q_positions, k_positions, owned_stride, *strides, tiles
    <<contiguous>>return *full, *partial, *strides, tiles


def _offset(given):
    """A position offset as a number, or as a tensor with one number per batch row."""
    return (0, given) if isinstance(given, torch.Tensor) else (given, None)


def _variant(config, d_qk, d_v):
    """The compile-time arguments of a launch."""
    options = {name: config[name] for name in ("BLOCK_Q", "BLOCK_K", "ALIGN", "PRECISION", "num_warps", "num_stages")}
    options |= {"D_QK": d_qk, "D_V": d_v, "INTEGER": tl.int64 if config["WIDE"] else tl.int32}
    <<widths>>
    return options<<fusion>>


def _rows_variant(config, d_v):
    """Those of the kernels that go through rows."""
    variant = {name: config[name] for name in ("BLOCK_Q", "num_warps")} | {"D_V": d_v}
    wide = tl.int64 if config["WIDE"] else tl.int32
    return variant | {"PADDED_V": triton.next_power_of_2(d_v), "INTEGER": wide}


def forward(q, k, v, walk, arguments, scale, config):
    """Output [batch, heads, q_len, D_v] in the dtype of q and log-sum-exp [batch, heads, q_len], natural log, float32.

    q: [batch, heads, q_len, D_qk]; k: [batch, kv_heads, k_len, D_qk]; v: [batch, kv_heads, k_len, D_v]; any strides.
    walk: (full, partial, owned, walked, maps, tiles, splits): which key tiles every query tile walks.
    <<contiguous>>full, partial: (first, tiles, runs): a row's runs begin at `first` in runs and hold `tiles` tiles
    <<contiguous>>together, both int32 [maps, query tiles * splits]; a run is an int64 with its first tile in the low 32
    <<contiguous>>bits and the tile behind its last in the high ones; one more entry, 0, stands behind the last run.
    <<contiguous>>owned, walked: None.
    <<indexed>>full, partial: (first, tiles, list): a row's tiles are the `tiles` entries from `first` on in list, all
    <<indexed>>int32, the first two [maps, query tiles * splits]; behind the last entry stand two more, 0.
    <<indexed>>owned, walked: the position of every slot of the queries [maps or 1, slots] and of the keys [slots],
    <<indexed>>int32, -1 for none.
    maps: (batch rows, heads) that have runs of their own, 1 where all share them. tiles: how many tiles the queries
    have. splits: into how many shares the key tiles of each are dealt; more than one are computed apart and merged.
    arguments: <<listed>>, by name.
    config: BLOCK_Q and BLOCK_K (the plan's tile), num_warps, num_stages; WIDTHS: the blocks (main, tail) of the columns
    of D_qk and of D_v; ALIGN: elements in 16 bytes if all rows of q, k and v begin at multiples of 16 bytes and have
    stride 1, else 1; WIDE: whether indices need 64 bits; PRECISION: of dots of float32, "ieee" or "tf32".
    ALIKE: whether rows of k and of v have one stride.
    """
    (batch, heads, q_len, _), d_v, splits = q.shape, v.shape[3], walk[6]
    dtype = q.dtype if splits == 1 else torch.float32
    out = torch.empty((splits, batch, heads, q_len, d_v), dtype=dtype, device=q.device)
    lse = torch.empty((splits, batch, heads, q_len), dtype=torch.float32, device=q.device)
    forward_part(q, k, v, walk, out, lse, arguments, scale, config)
    return (out[0], lse[0]) if splits == 1 else merge(out, lse, q.dtype, config)


def forward_part(q, k, v, walk, out, lse, arguments, scale, config):
    """Writes what `forward` gives to out [splits, batch, heads, q_len, D_v] and lse [splits, batch, heads, q_len].

    Both are contiguous, lse and the out of several splits float32. Rows that no tile holds are not written.
    """
    batch, heads, q_len, d_qk = q.shape
    _, kv_heads, k_len, d_v = v.shape
    tiles, splits = walk[5:]
    programs = tiles * splits * heads * batch
    if programs:
        forward_kernel[(programs,)](
            q, k, v, out, lse, *_walk(walk, True), splits,
            *_strides(q, config["ALIGN"]), *_strides(k, config["ALIGN"]), *_strides(v, config["ALIGN"]),
            batch, heads, heads // kv_heads, q_len, k_len, scale,
            <<values>>
            ALIKE=config["ALIKE"],
            **_variant(config, d_qk, d_v),
        )


def merge(outs, lses, dtype, config):
    """One output in a dtype and one log-sum-exp from several of the same rows, whose keys are disjoint.

    outs: contiguous float32 [states, batch, heads, q_len, D_v]; lses: [states, batch, heads, q_len].
    """
    states, *rows, d_v = outs.shape
    out = torch.empty((*rows, d_v), dtype=dtype, device=outs.device)
    lse = torch.empty(rows, dtype=torch.float32, device=outs.device)
    if lse.numel():
        programs = triton.cdiv(lse.numel(), config["BLOCK_Q"])
        merge_kernel[(programs,)](outs, lses, out, lse, states, lse.numel(), **_rows_variant(config, d_v))
    return out, lse


def backward_rows(out, lse, d_out, d_lse, config):
    """Of every row dO . O - dLSE and the log-sum-exp in base 2, float32 [batch, heads, q_len].

    d_out: any strides; config["ALIGN"] speaks of it too. d_lse: contiguous float32 or None.
    """
    batch, heads, q_len, d_v = out.shape
    delta = torch.empty((batch, heads, q_len), dtype=torch.float32, device=lse.device)
    bound = torch.empty((batch, heads, q_len), dtype=torch.float32, device=lse.device)
    programs = triton.cdiv(q_len, config["BLOCK_Q"]) * heads * batch
    if programs:
        backward_rows_kernel[(programs,)](
            out, d_out, lse, d_lse, delta, bound, *_strides(d_out, config["ALIGN"]), heads, q_len,
            ALIGN=config["ALIGN"], **_rows_variant(config, d_v),
        )
    return delta, bound


def backward_queries(q, k, v, d_out, delta, bound, walk, arguments, scale, config, d_q=None):
    """The gradient of q; arguments as for `forward`, delta and bound from `backward_rows`.

    A contiguous d_q that is given is added to.
    """
    batch, heads, q_len, d_qk = q.shape
    _, kv_heads, k_len, d_v = v.shape
    add = d_q is not None
    if not add:
        d_q = torch.empty((batch, heads, q_len, d_qk), dtype=q.dtype, device=q.device)
    programs = walk[5] * heads * batch
    if programs:
        backward_queries_kernel[(programs,)](
            q, k, v, d_out, delta, bound, d_q, *_walk(walk, True),
            *_strides(q, config["ALIGN"]), *_strides(k, config["ALIGN"]), *_strides(v, config["ALIGN"]),
            *_strides(d_out, config["ALIGN"]), batch, heads, heads // kv_heads, q_len, k_len, scale,
            <<values>>
            ALIKE=config["ALIKE"],
            ADD=add, **_variant(config, d_qk, d_v),
        )
    return d_q


def backward_keys(q, k, v, d_out, delta, bound, walk, arguments, scale, config, d_k=None, d_v=None):
    """The gradients of k and v; the walk says which query tiles every key tile walks. Those given are added to."""
    batch, heads, q_len, d_qk = q.shape
    _, kv_heads, k_len, width = v.shape
    add = d_k is not None
    if not add:
        d_k = torch.empty((batch, kv_heads, k_len, d_qk), dtype=k.dtype, device=k.device)
        d_v = torch.empty((batch, kv_heads, k_len, width), dtype=v.dtype, device=v.device)
    programs = walk[5] * kv_heads * batch
    if programs:
        backward_keys_kernel[(programs,)](
            q, k, v, d_out, delta, bound, d_k, d_v, *_walk(walk, False),
            *_strides(q, config["ALIGN"]), *_strides(k, config["ALIGN"]), *_strides(v, config["ALIGN"]),
            *_strides(d_out, config["ALIGN"]), batch, heads, heads // kv_heads, q_len, k_len, scale,
            <<values>>
            ADD=add, **_variant(config, d_qk, width),
        )
    return d_k, d_v
'''


def _launches(mask: MaskArguments, form: Form, double: bool) -> str:
    """The functions that launch the kernels."""
    listed = [*(f"`{i}`" for i in mask.inputs), *(f"`{p}`" for p, _ in mask.parameters), *(f"`{a}`" for a in mask.axes)]
    listed += [f"`{o}` (a number or int64 [batch])" for o in mask.offsets]
    blocks = {"WIDTH": 0, "TAIL": 1}, {"QK": 0, "V": 1}
    cut = [(name, *(part[word] for part, word in zip(blocks, name.split("_"), strict=True))) for name in widths(form)]
    # Fused multiply-adds would change the bits of the float64 arithmetic that decides pairs.
    return fill(
        _LAUNCH,
        form,
        {
            "fusion": ' | {"enable_fp_fusion": False}' if double else "",
            "positions": "the positions of queries and keys, " if form.indexed else "",
            "widths": [f'options["{name}"] = config["WIDTHS"][{side}][{block}]' for name, block, side in cut],
            "listed": ", ".join(listed) or "none",
            "values": mask.values,
        },
    )
