"""Every example against its paper: the mask, and each engine's output, log-sum-exp and gradients."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import ORACLES, SETTINGS, Setting
from torch import Tensor

import maskc
from maskc import reference
from maskc.check import load
from maskc.runtime import inputs, tolerance

EXAMPLES = Path(__file__).parents[2] / "examples"
DIM = 16
SCALE = DIM**-0.5


CASES = [
    pytest.param(name, setting, id=f"{name}-{setting}") for name, settings in SETTINGS.items() for setting in settings
]


def path_of(name: str) -> str:
    file, colon, mask = name.partition(":")
    return f"{EXAMPLES / file}.mask{colon}{mask}"


def options_of(setting: Setting) -> dict[str, Any]:
    """Everything that a call is given beside q, k and v."""
    axes = {} if setting.grid is None else dict(zip(("y", "x"), setting.grid, strict=True))
    tables = {name: torch.from_numpy(table) for name, table in setting.inputs.items()}
    offsets = {"q_offset": setting.q_offset, "k_offset": setting.k_offset}
    return {**axes, **setting.parameters, **tables, **offsets}


def tensors_of(setting: Setting, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """q, k, v and the upstream gradients of the output and the log-sum-exp."""
    generator = torch.Generator().manual_seed(1 + setting.q_len + setting.k_len)
    query = (setting.batch, setting.heads, setting.q_len)
    key = (setting.batch, setting.kv_heads, setting.k_len)
    shapes = ((*query, DIM), (*key, DIM), (*key, DIM), (*query, DIM), query)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)


def values_of(attend: Any, q: Tensor, k: Tensor, v: Tensor, d_out: Tensor, d_lse: Tensor) -> dict[str, Tensor]:
    """Output, log-sum-exp and gradients of `attend(q, k, v)`."""
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out, lse = attend(*leaves)
    gradients = torch.autograd.grad([out, lse], leaves, [d_out, d_lse.to(lse.dtype)])
    return dict(zip(tolerance.QUANTITIES, (out.detach(), lse.detach(), *gradients), strict=True))


def published(name: str, setting: Setting, tensors: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """What the paper's own formulas give in float64."""
    oracle = ORACLES[name]
    doubles = [x.double() for x in tensors]
    return values_of(lambda q, k, v: oracle.attention(setting, q, k, v, SCALE), *doubles)


@pytest.mark.parametrize(("name", "setting"), CASES)
def test_the_mask_is_the_papers(name: str, setting: Setting) -> None:
    attend = maskc.compile_attention(path_of(name))
    options = {"batch": setting.batch, "heads": setting.heads, "kv_heads": setting.kv_heads, **options_of(setting)}
    mask = attend.mask(setting.q_len, setting.k_len, **options)
    sizes, _ = attend.sizes(setting.q_len, setting.k_len, **options)
    has_dim = (*reference.mask_dims(attend.spec, sizes), True, True)
    expected = ORACLES[name].mask(setting)
    mask = mask.reshape([n if has else 1 for n, has in zip(expected.shape, has_dim, strict=True)])
    assert np.array_equal(np.broadcast_to(mask, expected.shape), expected)


@pytest.mark.parametrize(("name", "setting"), CASES)
def test_the_definition_agrees_with_the_paper(name: str, setting: Setting) -> None:
    tensors = tensors_of(setting, torch.float64)
    attend = maskc.compile_attention(path_of(name), engine="dense")
    actual = values_of(lambda q, k, v: attend(q, k, v, return_lse=True, **options_of(setting)), *tensors)
    for quantity, expected in published(name, setting, tensors).items():
        torch.testing.assert_close(
            actual[quantity], expected, rtol=1e-11, atol=1e-12, msg=lambda m, q=quantity: f"{q}: {m}"
        )


def judged(name: str, setting: Setting, engine: str, dtype: torch.dtype) -> tolerance.Report:
    """An engine against the paper's values, by the one tolerance."""
    tensors = tensors_of(setting, dtype)
    options = options_of(setting)
    offsets = {side: options.pop(side) for side in ("q_offset", "k_offset")}
    attend = maskc.compile_attention(path_of(name), engine=engine)
    actual = values_of(lambda q, k, v: attend(q, k, v, return_lse=True, **options, **offsets), *tensors)
    call = inputs.prepare(load(path_of(name)), *tensors[:3], options, **offsets)
    expected = tolerance.reference(call, *tensors[3:])
    return tolerance.compare(actual, replace(expected, values=published(name, setting, tensors)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "setting"), CASES)
def test_tiles_agree_with_the_paper(name: str, setting: Setting, dtype: torch.dtype) -> None:
    report = judged(name, setting, "tiled", dtype)
    assert report.passed, str(report)


@pytest.mark.interpret
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", SETTINGS)
def test_kernels_agree_with_the_paper(name: str, dtype: torch.dtype) -> None:
    smallest = min(SETTINGS[name], key=lambda setting: setting.q_len * setting.k_len * setting.batch * setting.heads)
    report = judged(name, smallest, "interpret", dtype)
    assert report.passed, str(report)


@pytest.mark.slow
@pytest.mark.interpret
@pytest.mark.parametrize(("name", "setting"), CASES)
def test_kernels_agree_with_the_paper_at_every_setting(name: str, setting: Setting) -> None:
    report = judged(name, setting, "interpret", torch.float32)
    assert report.passed, str(report)


def test_every_example_has_an_oracle_and_settings() -> None:
    files = {path.stem for path in EXAMPLES.glob("*.mask")}
    assert files == {name.partition(":")[0] for name in ORACLES}
    assert ORACLES.keys() == SETTINGS.keys()


@pytest.mark.parametrize("name", ["causal", "routing_transformer"])
def test_some_settings_have_empty_rows(name: str) -> None:
    assert any(not ORACLES[name].mask(setting).any(-1).all() for setting in SETTINGS[name])
