"""From a spec to a callable: the whole way in one place."""

import os
from typing import TYPE_CHECKING, Any

from maskc.check import load
from maskc.spec import MaskSpec

if TYPE_CHECKING:
    from maskc.runtime.attention import Attention


def compile_attention(
    spec: str | os.PathLike[str] | MaskSpec,
    *,
    engine: str = "auto",
    scale: float | None = None,
    mask: str | None = None,
    **given: Any,
) -> "Attention":
    """Compiles a mask to a differentiable attention.

    spec: a path (a str without a line break; `file.mask:name` picks a mask), the text itself, or a checked `MaskSpec`.
    engine: "auto" (by the tensors' device), "triton", "tiled", "interpret" or "dense". scale: factor on query . key, by
    default 1 / sqrt(D). mask: the mask of a text that holds several, by default its last. Everything else is a
    `constant` input, an axis size or a parameter of the mask; the latter two can be left to the call.

    Raises MaskError with all that is wrong with the spec, MaskInputError for a name or value that it does not accept,
    MaskUnsupportedError for what a named engine cannot run.
    """
    checked = spec if isinstance(spec, MaskSpec) else load(spec, mask)
    from maskc.runtime.attention import Attention

    return Attention(checked, engine=engine, scale=scale, given=given)
