"""Every published mask has the bits that loops over the paper's rule give."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fingerprints import Case, cases, fingerprint
from numpy.typing import NDArray
from torch import Tensor

from maskc import features, prologue, reference
from maskc.analysis import plan
from maskc.check import load
from maskc.compiler import compile_attention
from maskc.proofs.witness import refute
from maskc.runtime import dense
from maskc.runtime.inputs import prepare
from maskc.shapes import free_sizes
from maskc.sizes import resolve
from maskc.spec import MaskSpec, Sizes

EXAMPLES = Path(__file__).parents[2] / "examples"


@dataclass(frozen=True)
class Entry:
    """Which mask expresses a rule. names: the spec's name of a parameter, axis or input; fixed: parameters the rule
    lacks.
    """

    spec: str
    names: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)


DENSE = Entry("gallery/dense")
SWIN = Entry("examples/swin")
KINDS = Entry("gallery/human-guided-patterns:kinds")
STREAMS = {"noise_y": "y", "noise_x": "x", "text_t": "token"}
TASKS = {"task_t": "t", "feature_d": "d"}
PATCHES = {"patch_y": "y", "patch_x": "x", "det_d": "d"}

# What is not listed stands in the gallery, in a file named after the system and a mask named after the variant. A rule
# that can be said in two ways has an entry for each.
ENTRIES: Mapping[str, tuple[Entry, ...]] = {
    "itransformer/dense": (DENSE,),
    "iformer/dense": (DENSE,),
    "lit/dense": (DENSE,),
    "token-pooling/dense": (DENSE,),
    "moat/global": (DENSE,),
    "tnt/sentences": (DENSE,),
    "colorflow/dense": (
        Entry(
            "gallery/colorflow:dense",
            {
                "reference_refs": "refs",
                "reference_y": "ref_y",
                "reference_x": "ref_x",
                "target_y": "y",
                "target_x": "x",
            },
        ),
    ),
    "dhvt/dense": (Entry("gallery/dhvt:dense", {"patch_y": "y", "patch_x": "x", "head_token_h": "h"}),),
    "dit4sr/streams": (Entry("gallery/dit4sr:streams", STREAMS),),
    "multitab/FxT_TxT": (Entry("gallery/multitab:FxT_TxT", TASKS),),
    "multitab/FxT": (Entry("gallery/multitab:FxT", TASKS),),
    "multitab/TxT": (Entry("gallery/multitab:TxT", TASKS),),
    "multitab/none": (Entry("gallery/multitab:none", TASKS),),
    "vidt/windows": (Entry("gallery/vidt:windows", PATCHES),),
    "vidt/shifted_windows": (Entry("gallery/vidt:windows", PATCHES),),
    "maxvit/block": (SWIN,),
    "mat/windows": (SWIN,),
    "mat/shifted_windows": (SWIN,),
    "moat/windows": (SWIN,),
    "general-shifted-windows/2d": (SWIN,),
    "mend/prefix": (Entry("examples/prefix_lm"),),
    "general-prefix-lm/scalar": (Entry("examples/prefix_lm"),),
    "general-prefix-lm/per_batch": (Entry("examples/prefix_lm:prefix_lm_per_row"),),
    "duo-attention/duo": (Entry("examples/duo_attention"),),
    "sparse-transformer/strided": (Entry("examples/sparse_transformer_strided"),),
    "dinat/neighbourhood_2d": (Entry("examples/neighborhood_2d"),),
    "medvitv2/neighbourhood_2d": (Entry("examples/neighborhood_2d"),),
    "human-guided-patterns/four_kinds": (KINDS,),
    "human-guided-patterns/offset_heads": (KINDS,),
    "tic/padded": (
        Entry("gallery/tic:padded"),
        Entry("gallery/tic:padded_by_caller"),
    ),
    "routing-transformer/routing": (
        Entry("examples/routing_transformer", {"q_cluster": "query_cluster", "k_cluster": "key_cluster"}),
    ),
    "atf/kept": (Entry("gallery/kept"),),
    "ia-red2/kept": (Entry("gallery/kept"),),
    "tlm/token_masking": (Entry("gallery/tlm", {"keep": "keep_token"}),),
    "general-causal/causal": (Entry("examples/causal"),),
    "general-sliding-window/causal": (Entry("examples/sliding_window"),),
    "general-sliding-window/symmetric": (Entry("gallery/general:symmetric_window"),),
    "general-sink-window/causal": (Entry("examples/sink_window"),),
    "general-documents/bidirectional": (Entry("examples/documents:documents_bidirectional"),),
    "general-documents/causal": (Entry("examples/documents"),),
    "general-dilated-causal/causal": (Entry("examples/dilated_window"),),
    "general-longformer-globals/symmetric": (Entry("gallery/general:longformer_globals"),),
    "general-neighbourhood-2d/clamped": (Entry("examples/neighborhood_2d", fixed={"dilation": 1}),),
    "general-neighbourhood-2d/clipped": (Entry("gallery/general:clipped_neighbourhood"),),
    "general-axial-union/2d": (Entry("gallery/general:axial_union"),),
    "general-cswin-union/2d": (Entry("gallery/cswin:union"),),
    "general-halonet/2d": (Entry("gallery/general:halonet"),),
    "general-neighbourhood-3d/clamped": (Entry("gallery/general:neighbourhood_3d"),),
    "general-block-diagonal/self": (
        Entry("gallery/block-diagonal:self"),
        Entry("gallery/block-diagonal:packed_self"),
    ),
    "general-block-diagonal/causal": (
        Entry("gallery/block-diagonal:causal_self"),
        Entry("gallery/block-diagonal:packed_causal_self"),
    ),
    "general-block-diagonal/cross": (Entry("gallery/block-diagonal:cross"),),
}


def entries_of(name: str) -> tuple[Entry, ...]:
    system, variant = name.split("/")
    return ENTRIES.get(name, (Entry(f"gallery/{system}:{variant}"),))


@dataclass(frozen=True)
class Given:
    """One size of one published mask in one of its spellings, made ready. sizes: those of its axes and parameters;
    k_len: of the keys that a call passes, without the virtual ones of a border.
    """

    case: Case
    entry: Entry

    def __str__(self) -> str:
        several = len(entries_of(self.case.name)) > 1
        return f"{self.case}-{self.entry.spec.partition(':')[2]}" if several else str(self.case)

    @cached_property
    def inputs(self) -> dict[str, NDArray[Any]]:
        """The tensors of a call, and those that are bound when a spec is compiled."""
        return {self.entry.names.get(name, name): array for name, array in self.case.inputs().items()}

    @cached_property
    def spec(self) -> MaskSpec:
        """The mask, its constants bound."""
        folder, _, rest = self.entry.spec.partition("/")
        file, _, mask = rest.partition(":")
        path = (EXAMPLES if folder == "examples" else EXAMPLES / folder) / f"{file}.mask"
        spec = load(path, mask or None)
        tables = self.inputs
        return prologue.bind(spec, {entry.name: tables[entry.name] for entry in prologue.constants(spec)})

    @cached_property
    def tables(self) -> dict[str, NDArray[Any]]:
        """The tensors of a call."""
        tables = self.inputs
        return {entry.name: tables[entry.name] for entry in self.spec.given}

    @cached_property
    def k_len(self) -> int:
        """Keys that a call passes: on a grid with a border as many as queries."""
        return int(self.case.data["q_len" if self.spec.border is not None else "k_len"])

    @cached_property
    def sizes(self) -> dict[str, Any]:
        """Axis sizes and parameters by the spec's names."""
        spec, names = self.spec, self.entry.names
        layout = self.case.layout | self.case.axes | self.case.parameters
        given = {names.get(name, name): value for name, value in layout.items()} | dict(self.entry.fixed)
        if "radius" in given and spec.name == "neighborhood_2d":
            given["window"] = 2 * given.pop("radius") + 1
        known = {*(parameter.name for parameter in spec.parameters), *spec.axis_names}
        return {name: value for name, value in given.items() if name in known}

    @cached_property
    def resolved(self) -> Sizes:
        """The sizes of the call."""
        data, spec = self.case.data, self.spec
        heads = data.get("heads", 1)
        return resolve(
            spec,
            q_len=data["q_len"],
            k_len=self.k_len,
            batch=data.get("batch", 1),
            heads=heads,
            kv_heads=heads,
            q_offset=data.get("q_offset", 0),
            given=self.sizes,
            offset_given=True,
            free=free_sizes(spec, {name: table.shape for name, table in self.tables.items()}),
        )

    @cached_property
    def complete(self) -> dict[str, NDArray[Any]]:
        """All tables that the spec reads."""
        return prologue.complete(self.spec, self.tables)

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        """The mask by its definition."""
        return reference.mask(self.spec, self.resolved, self.complete)


DIMS = ("batch", "head", "q", "k")
COVERED = [Given(case, entry) for case in cases() for entry in entries_of(case.name)]


def shaped(given: Given, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A mask [batch?, head?, q, k] without the dims on which the rule does not depend."""
    return mask[tuple(slice(None) if dim in given.case.dims else 0 for dim in DIMS)]


@pytest.mark.parametrize("given", COVERED, ids=str)
def test_the_reference_mask_has_the_published_bits(given: Given) -> None:
    assert fingerprint(given.mask) == given.case.expected


@pytest.mark.parametrize("tile", [(16, 16), (64, 32)], ids=str)
@pytest.mark.parametrize("given", COVERED, ids=str)
def test_the_expanded_plan_has_the_published_bits(given: Given, tile: tuple[int, int]) -> None:
    block_plan = plan.build(given.spec, given.resolved, tile, given.complete)
    expanded = plan.expand(block_plan, given.complete)  # 1 in a dim that is shared
    assert fingerprint(shaped(given, expanded)) == given.case.expected


def zeros_for(given: Given, dim: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """q and k of zeros, so that all kept keys weigh the same, and random v."""
    data = given.case.data
    batch, heads = data.get("batch", 1), data.get("heads", 1)
    q, k = (torch.zeros(batch, heads, length, dim) for length in (data["q_len"], given.k_len))
    return q, k, torch.randn(k.shape, generator=torch.Generator().manual_seed(0))


def options_of(given: Given) -> dict[str, Any]:
    """Everything that a call of this case is given beside q, k and v."""
    tables = {name: torch.from_numpy(np.array(array)) for name, array in given.tables.items()}
    return {**given.sizes, **tables}


@pytest.mark.parametrize("given", COVERED, ids=str)
def test_the_definition_keeps_the_published_pairs(given: Given) -> None:
    offset = given.case.data.get("q_offset", 0)
    call = prepare(given.spec, *zeros_for(given), options_of(given), q_offset=offset)
    assert fingerprint(shaped(given, dense.kept_pairs(call).numpy())) == given.case.expected


def values_of_all_keys(given: Given, v: Tensor) -> Tensor:
    """v with the zeros of a border around the image."""
    if given.spec.border is None:
        return v
    axes, padded = given.case.data["axes"], given.case.data["key_axes"]
    (above, left) = ((padded[axis] - axes[axis]) // 2 for axis in ("y", "x"))
    image = v.unflatten(2, (axes["y"], axes["x"]))
    return torch.nn.functional.pad(image, (0, 0, left, left, above, above)).flatten(2, 3)


def mean_of_the_kept_values(given: Given, engine: str) -> None:
    """For equal scores an engine gives the mean of the values that a query sees, and the logarithm of their number."""
    refused = features.refusal(given.spec, engine)
    if refused is not None:
        pytest.skip(refused.message)
    q, k, v = zeros_for(given)
    attend = compile_attention(given.spec, engine=engine)
    offset = given.case.data.get("q_offset", 0)
    out, lse = attend(q, k, v, return_lse=True, q_offset=offset, **options_of(given))
    mask = torch.from_numpy(given.mask)
    mask = mask[tuple(slice(None) if dim in given.case.dims else None for dim in DIMS)].expand(*q.shape[:3], -1)
    count = mask.sum(-1, keepdim=True)
    values = values_of_all_keys(given, v)
    torch.testing.assert_close(out, mask.to(v) @ values / count.clamp(min=1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lse, count[..., 0].log(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("given", COVERED, ids=str)
def test_tiles_average_the_published_keys(given: Given) -> None:
    mean_of_the_kept_values(given, "tiled")


@pytest.mark.slow
@pytest.mark.interpret
@pytest.mark.parametrize("given", COVERED, ids=str)
def test_kernels_average_the_published_keys(given: Given) -> None:
    mean_of_the_kept_values(given, "interpret")


def refused_by(engine: str) -> set[str]:
    return {given.entry.spec for given in COVERED if features.refusal(given.spec, engine) is not None}


def test_tiles_run_every_published_mask() -> None:
    assert refused_by("tiled") == set()


@pytest.mark.parametrize("engine", features.KERNELS)
def test_kernels_refuse_folds_as_long_as_a_call_says_and_nothing_else(engine: str) -> None:
    assert refused_by(engine) == {"gallery/routing-transformer:balanced", "gallery/routing-transformer:balanced_causal"}


def test_every_published_mask_is_covered() -> None:
    names = {case.name for case in cases()}
    assert len(names) == 111
    assert names >= ENTRIES.keys()


def test_the_leak_of_a_released_kernel_is_refuted_with_a_pair() -> None:
    spec = load(EXAMPLES / "gallery" / "sinklora.mask", "released_leak_claiming_causality")
    shifted = np.array([False, False, True, True])
    sizes = resolve(spec, q_len=136, k_len=136, heads=4, kv_heads=4, given={"groups": 4}, offset_given=True)
    (witness,) = refute(spec, sizes, {"shifted": shifted})
    assert witness.k > witness.q
    assert shifted[witness.head]
