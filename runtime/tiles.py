"""The tiles of the engines that need no GPU; apart from the engines, so that their plans can be shown without torch."""

from maskc.codegen.schedule import Configuration
from maskc.spec import MaskSpec, Sizes

TILE = (64, 64)
"""Queries and keys of `tiled`. Of 32, 64, 128 and 256 the forward was fastest at 64 for a causal window of 256."""

INTERPRETED = Configuration(32, 32, 4, 1)
"""The interpreter's time goes by programs and steps, whatever the tile; this one keeps tests of short rows honest."""


def tile_of(spec: MaskSpec, sizes: Sizes) -> tuple[int, int]:
    """The tile for which `tiled` plans a call."""
    return TILE
