"""Fingerprints of published attention masks that were computed from loops over the papers' rules, without any spec.

`tests/data/oracles.json` tells in its header how to build a case's inputs and how a mask is hashed; here it is done.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DATA = Path(__file__).parents[1] / "data" / "oracles.json"
DTYPES: Mapping[str, type] = {"bool": np.bool_, "int": np.int64, "float": np.float64}


@dataclass(frozen=True)
class Fingerprint:
    """What identifies a mask: its shape, its counts over all batch rows and heads, and a hash of its bits."""

    shape: tuple[int, ...]
    allowed: int
    empty_rows: int
    empty_columns: int
    sha256_16: str


def fingerprint(mask: NDArray[np.bool_]) -> Fingerprint:
    """The fingerprint of a mask [batch?, head?, q, k]."""
    bits = np.packbits(np.ascontiguousarray(mask).reshape(-1)).tobytes()
    return Fingerprint(
        shape=mask.shape,
        allowed=int(mask.sum()),
        empty_rows=int((~mask.any(-1)).sum()),
        empty_columns=int((~mask.any(-2)).sum()),
        sha256_16=hashlib.sha256(bits).hexdigest()[:16],
    )


@dataclass(frozen=True)
class Case:
    """One size of one published mask."""

    name: str  # id/variant
    number: int
    data: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.name}-{self.number}"

    @property
    def expected(self) -> Fingerprint:
        """The fingerprint that a mask of this case must have."""
        counts = {name: self.data[name] for name in ("allowed", "empty_rows", "empty_columns", "sha256_16")}
        return Fingerprint(shape=tuple(self.data["mask_shape"]), **counts)

    @property
    def dims(self) -> tuple[str, ...]:
        """The dims that the mask has."""
        return tuple(self.data["mask_dims"])

    @property
    def parameters(self) -> dict[str, Any]:
        """The numbers of the rule."""
        return dict(self.data.get("params", {}))

    @property
    def axes(self) -> dict[str, int]:
        """The sizes of the grid, where the tokens stand on one."""
        return dict(self.data.get("axes", {}))

    @property
    def layout(self) -> dict[str, int]:
        """Sizes that a spec may want as parameters: `part` tokens, `part_axis` of a part's grid, `query_axis`,
        `key_axis`, and `input_entries` in the last dim of an input.
        """
        sizes: dict[str, int] = {}
        for part in self.data.get("parts", ()):
            sizes[part["name"]] = math.prod(part["axes"].values())
            sizes |= {f"{part['name']}_{axis}": size for axis, size in part["axes"].items()}
        sizes |= {f"{name}_entries": given["shape"][-1] for name, given in self.data.get("inputs", {}).items()}
        sizes |= {f"query_{axis}": size for axis, size in self.axes.items()}
        return sizes | {f"key_{axis}": size for axis, size in self.data.get("key_axes", {}).items()}

    def inputs(self) -> dict[str, NDArray[Any]]:
        """The tensors of the rule."""
        return {name: _built(given) for name, given in self.data.get("inputs", {}).items()}


def _built(given: Mapping[str, Any]) -> NDArray[Any]:
    shape = tuple(given["shape"])
    if "values" in given:
        entries = np.asarray(given["values"])
    else:
        names = dict(zip(given["index"], np.indices(shape, dtype=np.int64), strict=True))
        entries = eval(given["formula"], {"np": np, **names})  # the file is the project's own test data
    array = np.broadcast_to(entries, shape).astype(DTYPES[given["type"]])
    if array.sum() != given["sum"]:
        raise ValueError(f"an input was built wrongly: its sum is {array.sum()}, the file says {given['sum']}")
    return array


@cache
def cases() -> tuple[Case, ...]:
    """Every case of the file."""
    masks = json.loads(DATA.read_text(encoding="utf-8"))["masks"]
    return tuple(
        Case(f"{mask['id']}/{mask['variant']}", number, data)
        for mask in masks
        for number, data in enumerate(mask["cases"])
    )
