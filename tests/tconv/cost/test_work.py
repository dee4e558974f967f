"""Launches and buffers that the cost model counts are those of the plans; blocks count once."""

from __future__ import annotations

import numpy as np
import pytest

from autotune.suites import suite
from tconv.cost.constants import Constants
from tconv.cost.model import milliseconds_of
from tconv.cost.space import case_of, legal_grid, legal_tiles
from tconv.cost.work import NAMES, OF_TILES, work_of
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


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("shape", [RGB, DENSE, DEEP, GROUPS], ids=lambda shape: shape.key)
@pytest.mark.parametrize("name", ["sm_80", "sm_90", "gfx942"])
def test_what_tiles_have_in_common_is_counted_once(
    shape: ConvGeometry, layout: Layout, name: str
) -> None:
    """Whether tiles are counted one by one or spread over blocks, and for the fastest alone."""
    target, known = TARGETS[name], Constants()
    for direction in PASSES:
        problem = Problem(shape, direction, "float16", layout)
        for family in serving(problem, target):
            grid = legal_grid(case_of(problem, family, target)).deepest()
            tiles, spread = grid.legal_tiles, grid.spread
            alone, shared = (work_of(problem, family, each, target) for each in (tiles, spread))
            assert len(spread.blocks) <= len(spread) == len(tiles)
            for count in NAMES:
                found = getattr(shared, count)
                found = found if count in OF_TILES else shared.each(found)
                np.testing.assert_array_equal(found + np.zeros(len(tiles)), getattr(alone, count))
            times = milliseconds_of(alone, target, known)
            assert (milliseconds_of(shared, target, known) == times).all()
            place = len(tiles) // 2
            assert spread.tile(place) == tiles.tile(place)
            fastest = milliseconds_of(shared, target, known, rivals=place)
            least = times[:place].min()
            same = fastest == times
            assert same[place:].all()
            assert same[:place][times[:place] == least].all()
            assert (fastest[:place][~same[:place]] > least).all()
