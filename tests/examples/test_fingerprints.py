"""Every published mask whose rule the language expresses has the bits that loops over the paper's rule give."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fingerprints import Case, cases, fingerprint
from numpy.typing import NDArray
from torch import Tensor

from maskc import plan, reference
from maskc.check import load
from maskc.compiler import compile_attention
from maskc.runtime import dense
from maskc.runtime.inputs import prepare
from maskc.sizes import resolve
from maskc.spec import MaskSpec, Sizes

EXAMPLES = Path(__file__).parents[2] / "examples"


@dataclass(frozen=True)
class Entry:
    """Which mask expresses a rule. names: the spec's name of a parameter or input; fixed: parameters the rule lacks."""

    spec: str
    names: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)


DENSE = Entry("gallery/dense")
SWIN = Entry("examples/swin")
KINDS = Entry("gallery/human-guided-patterns:kinds")
SAME_DOCUMENT = Entry("examples/documents:documents_bidirectional")

# What is not listed stands in the gallery, in a file named after the system and a mask named after the variant.
ENTRIES: Mapping[str, Entry] = {
    "itransformer/dense": DENSE,
    "iformer/dense": DENSE,
    "lit/dense": DENSE,
    "token-pooling/dense": DENSE,
    "visctrl/dense": DENSE,
    "colorflow/dense": DENSE,
    "dhvt/dense": DENSE,
    "moat/global": DENSE,
    "tnt/sentences": DENSE,
    "multitab/none": DENSE,
    "maxvit/block": SWIN,
    "mat/windows": SWIN,
    "mat/shifted_windows": SWIN,
    "moat/windows": SWIN,
    "general-shifted-windows/2d": SWIN,
    "vidt/shifted_windows": Entry("gallery/vidt:windows"),
    "mend/prefix": Entry("examples/prefix_lm"),
    "general-prefix-lm/scalar": Entry("examples/prefix_lm"),
    "general-prefix-lm/per_batch": Entry("examples/prefix_lm:prefix_lm_per_row"),
    "duo-attention/duo": Entry("examples/duo_attention"),
    "sparse-transformer/strided": Entry("examples/sparse_transformer_strided"),
    "dinat/neighbourhood_2d": Entry("examples/neighborhood_2d"),
    "medvitv2/neighbourhood_2d": Entry("examples/neighborhood_2d"),
    "human-guided-patterns/four_kinds": KINDS,
    "human-guided-patterns/offset_heads": KINDS,
    "routing-transformer/routing": Entry(
        "examples/routing_transformer", {"q_cluster": "query_cluster", "k_cluster": "key_cluster"}
    ),
    "atf/kept": Entry("gallery/kept"),
    "ia-red2/kept": Entry("gallery/kept"),
    "tlm/token_masking": Entry("gallery/tlm", {"keep": "keep_token"}),
    "biformer/regions": Entry("gallery/lists:biformer"),
    "hip/blocks_sink_window": Entry("gallery/lists:hip"),
    "iceformer/nearest": Entry("gallery/lists:iceformer"),
    "sea/columns": Entry("gallery/lists:sea"),
    "sea/columns_causal": Entry("gallery/lists:sea_causal"),
    "sparse-frontier/block_top": Entry("gallery/lists:block_top"),
    "sparse-frontier/pages": Entry("gallery/lists:pages", {"pages": "page_list", "pages_entries": "page_list_entries"}),
    "general-causal/causal": Entry("examples/causal"),
    "general-sliding-window/causal": Entry("examples/sliding_window"),
    "general-sliding-window/symmetric": Entry("gallery/general:symmetric_window"),
    "general-sink-window/causal": Entry("examples/sink_window"),
    "general-documents/bidirectional": SAME_DOCUMENT,
    "general-documents/causal": Entry("examples/documents"),
    "general-dilated-causal/causal": Entry("examples/dilated_window"),
    "general-longformer-globals/symmetric": Entry("gallery/general:longformer_globals"),
    "general-neighbourhood-2d/clamped": Entry("examples/neighborhood_2d", fixed={"dilation": 1}),
    "general-neighbourhood-2d/clipped": Entry("gallery/general:clipped_neighbourhood"),
    "general-axial-union/2d": Entry("gallery/general:axial_union"),
    "general-cswin-union/2d": Entry("gallery/cswin:union"),
    "general-halonet/2d": Entry("gallery/general:halonet"),
    "general-neighbourhood-3d/clamped": Entry("gallery/general:neighbourhood_3d"),
    "general-block-diagonal/self": Entry("gallery/block-diagonal:self"),
    "general-block-diagonal/causal": Entry("gallery/block-diagonal:causal_self"),
    "general-block-diagonal/cross": Entry("gallery/block-diagonal:cross"),
}

# Rules over long lists: `in` over a row of an input, and clusters given as lists of their tokens.
LONG_LISTS = frozenset(
    {
        "dam/columns_diagonals_bitmap",
        "routing-transformer/balanced",
        "routing-transformer/balanced_causal",
        "sinklora/kept_list",
        "sparse-frontier/vertical_slash",
    }
)


def spec_of(name: str) -> tuple[Entry, MaskSpec]:
    system, variant = name.split("/")
    entry = ENTRIES.get(name, Entry(f"gallery/{system}:{variant}"))
    folder, _, rest = entry.spec.partition("/")
    file, _, mask = rest.partition(":")
    path = (EXAMPLES if folder == "examples" else EXAMPLES / folder) / f"{file}.mask"
    return entry, load(path, mask or None)


def parameters_of(case: Case, entry: Entry, spec: MaskSpec) -> dict[str, Any]:
    given = {entry.names.get(name, name): value for name, value in case.parameters.items()} | dict(entry.fixed)
    if "radius" in given and spec.name == "neighborhood_2d":
        given["window"] = 2 * given.pop("radius") + 1
    known = {parameter.name for parameter in spec.parameters}
    layout = {entry.names.get(name, name): size for name, size in case.layout.items()}
    return given | {name: size for name, size in layout.items() if name in known}


def sized(case: Case, entry: Entry, spec: MaskSpec) -> Sizes:
    axes = {axis: case.axes[axis] for axis in spec.axes}
    heads = case.data.get("heads", 1)
    return resolve(
        spec,
        q_len=case.data["q_len"],
        k_len=case.data["k_len"],
        batch=case.data.get("batch", 1),
        heads=heads,
        kv_heads=heads,
        q_offset=case.data.get("q_offset", 0),
        given=axes | parameters_of(case, entry, spec),
        offset_given=True,
    )


def inputs_of(case: Case, entry: Entry) -> dict[str, NDArray[Any]]:
    return {entry.names.get(name, name): array for name, array in case.inputs().items()}


DIMS = ("batch", "head", "q", "k")
COVERED = [case for case in cases() if case.name not in LONG_LISTS]


@pytest.mark.parametrize("case", COVERED, ids=str)
def test_the_reference_mask_has_the_published_bits(case: Case) -> None:
    entry, spec = spec_of(case.name)
    mask = reference.mask(spec, sized(case, entry, spec), inputs_of(case, entry))
    assert fingerprint(mask) == case.expected


@pytest.mark.parametrize("tile", [(16, 16), (64, 32)], ids=str)
@pytest.mark.parametrize("case", COVERED, ids=str)
def test_the_expanded_plan_has_the_published_bits(case: Case, tile: tuple[int, int]) -> None:
    entry, spec = spec_of(case.name)
    inputs = inputs_of(case, entry)
    block_plan = plan.build(spec, sized(case, entry, spec), tile, inputs)
    expanded = plan.expand(block_plan, inputs)  # [batch?, head?, q, k] with 1 in a dim that is shared
    mask = expanded.reshape(tuple(n for n, dim in zip(expanded.shape, DIMS, strict=True) if dim in case.dims))
    assert fingerprint(mask) == case.expected


def zeros_for(case: Case, dim: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """q and k of zeros, so that all kept keys weigh the same, and random v."""
    batch, heads = case.data.get("batch", 1), case.data.get("heads", 1)
    q, k = (torch.zeros(batch, heads, case.data[length], dim) for length in ("q_len", "k_len"))
    return q, k, torch.randn(k.shape, generator=torch.Generator().manual_seed(0))


def options_of(case: Case, entry: Entry, spec: MaskSpec) -> dict[str, Any]:
    """Everything that a call of this case is given beside q, k and v."""
    axes = {axis: case.axes[axis] for axis in spec.axes}
    tables = {name: torch.from_numpy(np.array(array)) for name, array in inputs_of(case, entry).items()}
    return {**axes, **parameters_of(case, entry, spec), **tables}


@pytest.mark.parametrize("case", COVERED, ids=str)
def test_the_definition_keeps_the_published_pairs(case: Case) -> None:
    entry, spec = spec_of(case.name)
    offset = case.data.get("q_offset", 0)
    call = prepare(spec, *zeros_for(case), options_of(case, entry, spec), q_offset=offset)
    kept = dense.kept_pairs(call).numpy()
    mask = kept[tuple(slice(None) if dim in case.dims else 0 for dim in DIMS)]
    assert fingerprint(mask) == case.expected


def mean_of_the_kept_values(case: Case, engine: str) -> None:
    """For equal scores an engine gives the mean of the values that a query sees, and the logarithm of their number."""
    entry, spec = spec_of(case.name)
    q, k, v = zeros_for(case)
    attend = compile_attention(spec, engine=engine)
    offset = case.data.get("q_offset", 0)
    out, lse = attend(q, k, v, return_lse=True, q_offset=offset, **options_of(case, entry, spec))
    mask = torch.from_numpy(reference.mask(spec, sized(case, entry, spec), inputs_of(case, entry)))
    mask = mask[tuple(slice(None) if dim in case.dims else None for dim in DIMS)].expand(*q.shape[:3], -1)
    count = mask.sum(-1, keepdim=True)
    torch.testing.assert_close(out, mask.to(v) @ v / count.clamp(min=1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lse, count[..., 0].log(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", COVERED, ids=str)
def test_tiles_average_the_published_keys(case: Case) -> None:
    mean_of_the_kept_values(case, "tiled")


@pytest.mark.slow
@pytest.mark.interpret
@pytest.mark.parametrize("case", COVERED, ids=str)
def test_kernels_average_the_published_keys(case: Case) -> None:
    mean_of_the_kept_values(case, "interpret")


def test_every_published_mask_is_covered_or_named_as_missing() -> None:
    names = {case.name for case in cases()}
    assert names >= LONG_LISTS
    assert names >= ENTRIES.keys()


def test_the_leak_of_a_released_kernel_is_refuted_with_a_pair() -> None:
    spec = load(EXAMPLES / "gallery" / "sinklora.mask", "released_leak_claiming_causality")
    shifted = np.array([False, False, True, True])
    sizes = resolve(spec, q_len=136, k_len=136, heads=4, kv_heads=4, given={"groups": 4}, offset_given=True)
    (witness,) = reference.refute(spec, sizes, {"shifted": shifted})
    assert witness.k > witness.q
    assert shifted[witness.head]
