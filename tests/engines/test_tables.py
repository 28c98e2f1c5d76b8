"""Host plans that are kept and tables that are made where the data is."""

from dataclasses import replace

import engine_cases as cases
import numpy as np
import pytest
import torch

import maskc
from maskc.analysis import plan as planning
from maskc.runtime import tables
from maskc.runtime.tables import Masks

TILE = (32, 16)
DATA = ["documents", "clusters", "padding", "per head"]


def classes(found, call):
    """Class of every tile, from tables: uint8 [maps, q_tiles, k_tiles], 2 full and 1 partial; and by key."""
    rows, columns = -(-call.sizes.q_len // TILE[0]), -(-call.sizes.k_len // TILE[1])
    maps = found.maps[0] * found.maps[1]
    by_query, by_key = np.zeros((maps, rows, columns), int), np.zeros((maps, columns, rows), int)
    for side, into in ((found.by_query, by_query), (found.by_key, by_key)):
        for runs, truth in zip(side, (2, 1), strict=True):
            first, tiles, start, stop = (x.numpy() for x in runs)
            for m in range(maps):
                for row in range(into.shape[1]):
                    at, left = first[m, row], tiles[m, row]
                    while left > 0:
                        assert (into[m, row, start[at] : stop[at]] == 0).all(), "runs are disjoint"
                        into[m, row, start[at] : stop[at]] = truth
                        left -= stop[at] - start[at]
                        at += 1
    assert (by_query == by_key.transpose(0, 2, 1)).all()
    return by_query


@pytest.mark.parametrize("name", [name for name in cases.SPECS if name != "neighbours"])
def test_tables_are_the_plan(name):
    call = cases.call_of(name, batch=2, q_len=150, k_len=170, q_offset=20)
    found = tables.build(call, TILE)
    plan = planning.build(call.spec, call.sizes, TILE, {n: x.numpy() for n, x in call.inputs.items()})
    assert found.maps == plan.maps
    assert (classes(found, call) == planning.tile_map(plan)).all()
    assert all(x.dtype is torch.int32 for side in (found.by_query, found.by_key) for runs in side for x in runs)


@pytest.mark.parametrize("name", [*DATA, "window", "sink"])
def test_tables_made_on_the_device_hold_what_those_of_the_host_do(name):
    call = cases.call_of(name, batch=2, q_len=150, k_len=170, q_offset=20)
    made = classes(tables._on_device(call, TILE), call)
    exact = classes(tables.build(call, TILE), call)
    # Without a budget for a second look a tile may be partial that the host knows better.
    assert ((made == exact) | (made == 1)).all()


@pytest.mark.parametrize("name", DATA)
def test_tables_never_peek_at_data_on_a_device(name):
    call = cases.call_of(name, batch=2, q_len=150)
    there = {n: x.to("meta") for n, x in call.inputs.items()}
    call = replace(call, q=call.q.to("meta"), k=call.k.to("meta"), v=call.v.to("meta"), inputs=there)
    found = tables.build(call, TILE)
    assert {x.device.type for side in (found.by_query, found.by_key) for runs in side for x in runs} == {"meta"}


@pytest.mark.parametrize("name", ["window", "documents", "alibi"])
def test_offsets_on_a_device_are_not_peeked_at(name):
    call = cases.call_of(name, batch=2, q_len=50, k_len=100, q_offset=torch.tensor([0, 50]))
    there = {n: x.to("meta") for n, x in call.inputs.items()}
    call = replace(call, q=call.q.to("meta"), k=call.k.to("meta"), v=call.v.to("meta"), inputs=there)
    assert tables.build(call, TILE).maps[0] == 2


def test_static_tables_are_uploaded_once():
    call = cases.call_of("window", q_len=150)
    there = replace(call, q=call.q.to("meta"), k=call.k.to("meta"), v=call.v.to("meta"))
    first = tables.build(there, TILE)
    assert tables.build(there, TILE) is first
    assert first.by_query[0].first.device.type == "meta"
    assert tables.build(call, TILE) is not first


def test_plans_are_made_once(monkeypatch):
    made = []
    build = planning.build
    monkeypatch.setattr(tables.planning, "build", lambda *x: made.append(1) or build(*x))
    attention = maskc.compile_attention(cases.SPECS["window"])
    q, k, v = (x.requires_grad_() for x in cases.tensors(1, 2, 2, 200, 200, (4, 4), torch.float32))
    for _ in range(3):
        attention(q, k, v).sum().backward()
    assert len(made) == 1
    attention(q, k, v, window=7)
    assert len(made) == 2


def test_a_plan_from_data_serves_equal_contents_only(monkeypatch):
    made = []
    build = planning.build
    monkeypatch.setattr(tables.planning, "build", lambda *x: made.append(1) or build(*x))
    attention, reference = (maskc.compile_attention(cases.SPECS["documents"], engine=e) for e in ("tiled", "dense"))
    q, k, v = cases.tensors(1, 2, 2, 200, 200, (4, 4), torch.float32)
    doc = (torch.arange(200) // 50).unsqueeze(0)
    attention(q, k, v, doc=doc)
    attention(q, k, v, doc=doc.clone())
    assert len(made) == 1
    doc[:, 150:] += 1
    doc[:, 75:] += 1  # in place, at the same address
    torch.testing.assert_close(attention(q, k, v, doc=doc), reference(q, k, v, doc=doc))
    assert len(made) == 2


def test_biases_that_change_are_read_again():
    attention, reference = (maskc.compile_attention(cases.SPECS["alibi"], engine=e) for e in ("tiled", "dense"))
    q, k, v = cases.tensors(1, 2, 2, 200, 200, (4, 4), torch.float32)
    slope = torch.tensor([0.1, 0.2])
    for _ in range(2):
        torch.testing.assert_close(attention(q, k, v, slope=slope), reference(q, k, v, slope=slope))
        slope *= 2


def test_masks_that_are_kept_are_bounded():
    masks, made = Masks(keeps=True), []
    big = torch.zeros(tables._MASK_BYTES // 4 // 2)

    def make():
        made.append(1)
        return big, None

    for key in "abcabc":
        masks.get(key, make)
    assert len(made) == 4, "a and b fit, c is made anew"
    forgetful = Masks(keeps=False)
    forgetful.get("a", make)
    forgetful.get("a", make)
    assert len(made) == 6


def test_plans_that_are_kept_are_bounded():
    attention = maskc.compile_attention(cases.SPECS["window"])
    for length in range(1, 50):
        attention(*cases.tensors(1, 1, 1, length, length, (4, 4), torch.float32))
    assert len(tables._plans) <= tables._PLANS
