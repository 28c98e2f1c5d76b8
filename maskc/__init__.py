"""maskc compiles an attention pattern, written as text, to a specialised and differentiable attention kernel.

`maskc.compile_attention` is the way in. Importing this package loads neither torch nor triton: what needs them
is imported when it is first used.
"""

from typing import TYPE_CHECKING, Any

from maskc.diagnostics import MaskError, MaskInputError, MaskUnsupportedError

if TYPE_CHECKING:
    from maskc.compiler import compile_attention

__all__ = ["MaskError", "MaskInputError", "MaskUnsupportedError", "compile_attention"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "compile_attention":
        from maskc.compiler import compile_attention

        return compile_attention
    raise AttributeError(f"module 'maskc' has no attribute {name!r}")
