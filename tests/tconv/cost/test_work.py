"""Launches and buffers that the cost model counts are those of the plans."""

from __future__ import annotations

import pytest

from autotune.suites import suite
from tconv.cost.space import case_of, legal_tiles
from tconv.cost.work import work_of
from tconv.families import FAMILIES, serving
from tconv.geometry import PASSES, ConvGeometry
from tconv.problem import ITEMSIZE, Layout, Problem
from tconv.target import TARGETS

RGB = ConvGeometry(32, 3, 64, 64, 64, 7, 7, 2, 2, 3, 3)
DENSE = ConvGeometry(2, 64, 14, 14, 64, 3, 3, pad_h=1, pad_w=1)
DEEP = ConvGeometry(8, 96, 112, 112, 96, 3, 3, pad_h=1, pad_w=1, groups=96)
GROUPS = suite("grouped", 4)[0].geometry
TOLD = 17  # each so many-th legal tile is planned


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("shape", [RGB, DENSE, DEEP, GROUPS], ids=lambda shape: shape.key)
def test_launches_and_buffers_are_those_of_the_plan(shape: ConvGeometry, layout: Layout) -> None:
    target, met = TARGETS["sm_90"], set()
    for direction in PASSES:
        problem = Problem(shape, direction, "float16", layout)
        for family in serving(problem, target):
            tiles = legal_tiles(case_of(problem, family, target))
            work = work_of(problem, family, tiles, target)
            for place in range(0, len(tiles), len(tiles) // TOLD + 1):
                plan = FAMILIES[family.name].plan(problem, tiles.tile(place), target)
                buffers = plan.buffers.values()
                handed_on = sum(each.elements * ITEMSIZE[each.dtype] for each in buffers)
                assert work.launches[place] == len(plan.launches), tiles.tile(place)
                assert work.handed_on[place] == handed_on, tiles.tile(place)
                met.add(len(plan.launches))
    assert len(met) > 1
