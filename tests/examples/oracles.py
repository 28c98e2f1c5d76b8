"""The examples' papers in numpy and torch: which keys a query sees, how its scores change, plain attention over that.

Nothing here reads a spec or imports maskc. Functions answer for one query at a time, as the papers state their sets.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Setting:
    """One call. grid: (height, width) where the tokens stand on one; parameters, inputs: by the example's names."""

    q_len: int
    k_len: int
    batch: int = 1
    heads: int = 1
    kv_heads: int = 1
    q_offset: int = 0
    k_offset: int = 0
    grid: tuple[int, int] | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def __str__(self) -> str:
        name = f"{self.q_len}x{self.k_len}" if self.grid is None else "x".join(map(str, self.grid))
        offset = f"+{self.q_offset}" if self.q_offset else ""
        numbers = "".join(f"-{value}" for value in self.parameters.values())
        return f"{name}{offset}-b{self.batch}-h{self.heads}:{self.kv_heads}{numbers}"


Seen = Callable[
    [Setting, int, int, int], Iterable[int]
]  # setting, batch row, head, position of the query -> positions of keys
Score = Callable[
    [Setting, Tensor, int, Tensor], Tensor
]  # setting, scores [q, k] of a head, the head, q - k [q, k] -> scores


def past(position: int) -> range:
    return range(position + 1)


def causal(setting: Setting, row: int, head: int, position: int) -> Iterable[int]:
    return past(position)


def sliding_window(setting: Setting, row: int, head: int, position: int) -> Iterable[int]:
    return range(position - setting.parameters["window"] + 1, position + 1)


def dilated_window(setting: Setting, row: int, head: int, position: int) -> Iterable[int]:
    window, dilation = setting.parameters["window"], setting.parameters["dilation"]
    return (position - step * dilation for step in range(window))


def sparse_transformer_strided(setting: Setting, row: int, head: int, position: int) -> Iterable[int]:
    stride = setting.parameters["stride"]
    band = set(range(position - stride, position + 1))
    column = {key for key in past(position) if (position - key) % stride == 0}
    return band | column


def prefix_lm(setting: Setting, row: int, head: int, position: int) -> Iterable[int]:
    return {*range(setting.parameters["prefix"]), *past(position)}


def prefix_lm_per_row(setting: Setting, row: int, head: int, position: int) -> Iterable[int]:
    return {*range(setting.inputs["prefix"][row]), *past(position)}


def sink_window(setting: Setting, row: int, head: int, position: int) -> Iterable[int]:
    sinks = {key for key in range(setting.parameters["sink"]) if key <= position}
    return sinks | set(sliding_window(setting, row, head, position))


def documents_bidirectional(setting: Setting, row: int, head: int, position: int) -> Iterable[int]:
    members: dict[int, list[int]] = {}
    for token, number in enumerate(setting.inputs["doc"][row]):
        members.setdefault(int(number), []).append(token)
    return next(document for document in members.values() if position in document)


def documents(setting: Setting, row: int, head: int, position: int) -> Iterable[int]:
    return (token for token in documents_bidirectional(setting, row, head, position) if token <= position)


def neighbors(position: int, length: int, window: int, dilation: int) -> list[int]:
    """Neighbourhood attention along one axis: `window` members of the token's residue class, pushed in at the ends."""
    members = list(range(position % dilation, length, dilation))
    start = members.index(position) - window // 2
    start = max(0, min(start, len(members) - window))
    return members[start : start + window]


def neighborhood_2d(setting: Setting, row: int, head: int, position: int) -> Iterable[int]:
    assert setting.grid is not None
    height, width = setting.grid
    window, dilation = setting.parameters["window"], setting.parameters["dilation"]
    y, x = divmod(position, width)
    columns = neighbors(x, width, window, dilation)
    return [line * width + column for line in neighbors(y, height, window, dilation) for column in columns]


def swin_regions(length: int, window: int, shift: int) -> list[tuple[int, int]]:
    """Swin's own way along one axis: pad to whole windows, roll, cut into windows, keep the rolled border apart."""
    padded = -(-length // window) * window
    groups = []
    for token in range(length):
        rolled = (token - shift) % padded
        in_last_window = shift > 0 and rolled >= padded - window
        came_around = in_last_window and rolled >= padded - shift
        groups.append((rolled // window, in_last_window + came_around))
    return groups


def swin(setting: Setting, row: int, head: int, position: int) -> Iterable[int]:
    assert setting.grid is not None
    height, width = setting.grid
    window, shift = setting.parameters["window"], setting.parameters["shift"]
    lines, columns = swin_regions(height, window, shift), swin_regions(width, window, shift)
    y, x = divmod(position, width)
    return [
        line * width + column
        for line in range(height)
        for column in range(width)
        if lines[line] == lines[y] and columns[column] == columns[x]
    ]


def duo_attention(setting: Setting, row: int, head: int, position: int) -> Iterable[int]:
    if setting.inputs["full"][head]:
        return past(position)
    return sink_window(setting, row, head, position)


def routing_transformer(setting: Setting, row: int, head: int, position: int) -> Iterable[int]:
    if setting.inputs["local"][head]:
        return sliding_window(setting, row, head, position)
    cluster = setting.inputs["query_cluster"][row, head, position - setting.q_offset]
    labels = setting.inputs["key_cluster"][row, head]
    positions = range(setting.k_offset, setting.k_offset + setting.k_len)
    return (key for key, label in zip(positions, labels, strict=True) if label == cluster and key <= position)


def alibi_score(setting: Setting, scores: Tensor, head: int, distance: Tensor) -> Tensor:
    ratio = 2.0 ** (-8.0 / setting.heads)
    slope = 1.0
    for _ in range(head + 1):
        slope *= ratio
    return scores - slope * distance


def softcap_score(setting: Setting, scores: Tensor, head: int, distance: Tensor) -> Tensor:
    cap = setting.parameters["cap"]
    return torch.tanh(scores / cap) * cap


def unchanged(setting: Setting, scores: Tensor, head: int, distance: Tensor) -> Tensor:
    return scores


@dataclass(frozen=True)
class Oracle:
    """A paper's rule: which keys a query sees, and the final score."""

    seen: Seen
    score: Score = unchanged

    def mask(self, setting: Setting) -> NDArray[np.bool_]:
        """Every kept pair, bool [batch, heads, q_len, k_len]."""
        kept = np.zeros((setting.batch, setting.heads, setting.q_len, setting.k_len), bool)
        for row, head, query in np.ndindex(kept.shape[:3]):
            for key in self.seen(setting, row, head, setting.q_offset + query):
                if 0 <= key - setting.k_offset < setting.k_len:
                    kept[row, head, query, key - setting.k_offset] = True
        return kept

    def attention(self, setting: Setting, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Output [batch, heads, q_len, dim], log-sum-exp [batch, heads, q_len]; empty rows give 0 and -inf."""
        mask = torch.from_numpy(self.mask(setting))
        shared = setting.heads // setting.kv_heads
        k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
        distance = (
            torch.arange(setting.q_len)[:, None] + setting.q_offset - torch.arange(setting.k_len) - setting.k_offset
        )
        by_head = [
            self.score(setting, scale * q[:, head] @ k[:, head].mT, head, distance.to(q.dtype))
            for head in range(setting.heads)
        ]
        scores = torch.stack(by_head, 1).masked_fill(~mask, -torch.inf)
        live = mask.any(-1, keepdim=True)
        scores = torch.where(live, scores, 0)
        weights = torch.softmax(scores, -1) * live
        lse = torch.where(live[..., 0], torch.logsumexp(scores, -1), -torch.inf)
        return weights @ v, lse


ORACLES: Mapping[str, Oracle] = {
    "causal": Oracle(causal),
    "sliding_window": Oracle(sliding_window),
    "dilated_window": Oracle(dilated_window),
    "sparse_transformer_strided": Oracle(sparse_transformer_strided),
    "prefix_lm": Oracle(prefix_lm),
    "prefix_lm:prefix_lm_per_row": Oracle(prefix_lm_per_row),
    "sink_window": Oracle(sink_window),
    "documents": Oracle(documents),
    "documents:documents_bidirectional": Oracle(documents_bidirectional),
    "alibi": Oracle(causal, alibi_score),
    "softcap": Oracle(causal, softcap_score),
    "neighborhood_2d": Oracle(neighborhood_2d),
    "swin": Oracle(swin),
    "duo_attention": Oracle(duo_attention),
    "routing_transformer": Oracle(routing_transformer),
}


def _line(length: int, **more: Any) -> Setting:
    return Setting(length, length, **more)


def _grid(height: int, width: int, **more: Any) -> Setting:
    return Setting(height * width, height * width, grid=(height, width), **more)


def _decode(q_len: int, k_len: int, **more: Any) -> Setting:
    return Setting(q_len, k_len, q_offset=k_len - q_len, **more)


def _rows(batch: int, length: int, lengths: int) -> NDArray[np.int64]:
    """Document numbers of every row; the documents of a row differ in length, and the rows in where they start."""
    return np.stack([(np.arange(length) + 5 * row) // lengths + (np.arange(length) >= 50) for row in range(batch)])


def _clusters(setting: dict[str, int], seed: int) -> dict[str, NDArray[np.int64]]:
    generator = np.random.default_rng(seed)
    shape = (setting["batch"], setting["heads"])
    return {
        "query_cluster": generator.integers(0, 7, (*shape, setting["q_len"])),
        "key_cluster": generator.integers(2, 7, (*shape, setting["k_len"])),  # clusters 0 and 1 hold no key: empty rows
    }


def _routing(q_len: int, k_len: int, batch: int, local: list[bool], window: int, kv_heads: int) -> Setting:
    shape = {"batch": batch, "heads": len(local), "q_len": q_len, "k_len": k_len}
    inputs = {"local": np.array(local), **_clusters(shape, q_len)}
    return _decode(batch=batch, heads=len(local), kv_heads=kv_heads, parameters={"window": window}, inputs=inputs,
                   q_len=q_len, k_len=k_len)  # fmt: skip


# No length is a multiple of a tile. There are short cases, grouped KV heads, queries that begin at an offset and, where
# keys lie ahead of the queries, empty rows.
SETTINGS: Mapping[str, tuple[Setting, ...]] = {
    "causal": (
        _line(1),
        _line(77, batch=2, heads=4, kv_heads=2),
        _decode(5, 83, heads=2, kv_heads=1),
        Setting(41, 29, k_offset=17, q_offset=3),
    ),
    "sliding_window": (
        _line(7, parameters={"window": 3}),
        _line(131, batch=2, heads=4, kv_heads=2, parameters={"window": 37}),
        _decode(9, 101, parameters={"window": 50}),
        Setting(53, 31, q_offset=11, k_offset=23, parameters={"window": 9}),
    ),
    "dilated_window": (
        _line(11, parameters={"window": 3, "dilation": 2}),
        _line(109, batch=2, heads=2, kv_heads=1, parameters={"window": 5, "dilation": 7}),
        _decode(6, 97, parameters={"window": 11, "dilation": 3}),
        Setting(40, 33, q_offset=2, k_offset=19, parameters={"window": 3, "dilation": 5}),
    ),
    "sparse_transformer_strided": (
        _line(5, parameters={"stride": 2}),
        _line(131, heads=4, kv_heads=4, parameters={"stride": 11}),
        _decode(7, 89, heads=2, kv_heads=1, parameters={"stride": 9}),
        Setting(37, 22, q_offset=5, k_offset=20, parameters={"stride": 6}),
    ),
    "prefix_lm": (
        _line(6, parameters={"prefix": 0}),
        _line(91, batch=2, heads=2, kv_heads=1, parameters={"prefix": 35}),
        _decode(7, 79, parameters={"prefix": 75}),
        Setting(30, 25, q_offset=4, k_offset=21, parameters={"prefix": 9}),
    ),
    "prefix_lm:prefix_lm_per_row": (
        _line(85, batch=3, heads=2, kv_heads=1, inputs={"prefix": np.array([0, 41, 85])}),
        _decode(7, 79, batch=2, inputs={"prefix": np.array([76, 3])}),
    ),
    "sink_window": (
        _line(9, parameters={"sink": 2, "window": 3}),
        _line(127, batch=2, heads=6, kv_heads=2, parameters={"sink": 4, "window": 29}),
        _decode(6, 99, parameters={"sink": 4, "window": 45}),
        Setting(43, 27, q_offset=7, k_offset=16, parameters={"sink": 18, "window": 5}),
    ),
    "documents": (
        _line(11, batch=2, inputs={"doc": _rows(2, 11, 4)}),
        _line(107, batch=2, heads=4, kv_heads=2, inputs={"doc": _rows(2, 107, 33)}),
        _decode(8, 107, batch=2, inputs={"doc": _rows(2, 107, 19)}),
        Setting(39, 20, batch=1, k_offset=30, inputs={"doc": _rows(1, 50, 13)}),
    ),
    "documents:documents_bidirectional": (
        _line(107, batch=2, heads=4, kv_heads=2, inputs={"doc": _rows(2, 107, 33)}),
        Setting(39, 20, batch=1, k_offset=30, inputs={"doc": _rows(1, 50, 13)}),
    ),
    "alibi": (
        _line(13, heads=1),
        _line(75, batch=2, heads=8, kv_heads=2),
        _decode(5, 93, heads=3, kv_heads=3),
        Setting(25, 19, heads=2, kv_heads=1, q_offset=1, k_offset=14),
    ),
    "softcap": (
        _line(13, parameters={"cap": 1.5}),
        _line(75, batch=2, heads=4, kv_heads=2, parameters={"cap": 0.75}),
        _decode(5, 93, heads=3, kv_heads=1, parameters={"cap": 50.0}),
        Setting(25, 19, q_offset=1, k_offset=14, parameters={"cap": 2.0}),
    ),
    "neighborhood_2d": (
        _grid(3, 5, parameters={"window": 3, "dilation": 1}),
        _grid(11, 9, batch=2, heads=4, kv_heads=2, parameters={"window": 5, "dilation": 1}),
        _grid(13, 10, heads=2, kv_heads=1, parameters={"window": 3, "dilation": 3}),
        _grid(9, 7, parameters={"window": 4, "dilation": 2}),
        _grid(2, 31, parameters={"window": 7, "dilation": 1}),
    ),
    "swin": (
        _grid(3, 5, parameters={"window": 2, "shift": 0}),
        _grid(11, 9, batch=2, heads=4, kv_heads=2, parameters={"window": 4, "shift": 2}),
        _grid(10, 13, heads=2, kv_heads=1, parameters={"window": 7, "shift": 3}),
        _grid(3, 33, parameters={"window": 5, "shift": 2}),
    ),
    "duo_attention": (
        _line(10, heads=2, kv_heads=2, parameters={"sink": 2, "window": 3}, inputs={"full": np.array([True, False])}),
        _line(103, batch=2, heads=4, kv_heads=2, parameters={"sink": 3, "window": 23},
              inputs={"full": np.array([False, False, True, True])}),
        _decode(5, 103, heads=2, kv_heads=1, parameters={"sink": 3, "window": 41},
                inputs={"full": np.array([False, True])}),
    ),
    "routing_transformer": (
        _routing(12, 12, 1, [False, True], 3, kv_heads=2),
        _routing(95, 95, 2, [False, True, False, False], 17, kv_heads=2),
        _routing(7, 95, 2, [True, False], 17, kv_heads=1),
    ),
}  # fmt: skip
