"""From a spec to a callable: the whole way in one place."""

import os
from typing import TYPE_CHECKING

from maskc.check import load
from maskc.spec import MaskSpec, Scalar

if TYPE_CHECKING:
    from maskc.runtime.attention import Attention


def compile_attention(
    spec: str | os.PathLike[str] | MaskSpec,
    *,
    engine: str = "auto",
    scale: float | None = None,
    mask: str | None = None,
    **sizes_and_parameters: Scalar,
) -> "Attention":
    """Compiles a mask to a differentiable attention.

    spec: a path (a str without a line break; `file.mask:name` picks a mask), the text itself, or a checked `MaskSpec`.
    engine: "auto" (by the tensors' device), "triton", "tiled", "interpret" or "dense". scale: factor on query . key, by
    default 1 / sqrt(D). mask: the mask of a text that holds several, by default its last. Everything else is an axis
    size or a parameter of the mask; those that are left out can be given at the call.

    Raises MaskError with all that is wrong with the spec, MaskInputError for a name or value that it does not accept.
    """
    checked = spec if isinstance(spec, MaskSpec) else load(spec, mask)
    from maskc.runtime.attention import Attention

    return Attention(checked, engine=engine, scale=scale, given=sizes_and_parameters)
