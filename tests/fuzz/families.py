"""Random problems and tiles on every kernel family, held against the fp64 reference."""

from __future__ import annotations

from dataclasses import dataclass

import hypothesis.strategies as st

from tconv.families import FAMILIES
from tconv.geometry import PASSES, ConvGeometry, Pass
from tconv.problem import PLAIN, Epilogue, Layout, Problem
from tconv.tile import Tile
from tests.tconv.families import test_families as drawn


@dataclass(frozen=True)
class Work:
    """One pass by one family."""

    family: str
    direction: Pass
    shape: ConvGeometry
    dtype: str
    layout: Layout
    w_layout: Layout
    tile: Tile
    epilogue: Epilogue
    views: bool


@st.composite
def works(draw: st.DrawFn) -> Work:
    """As the families' own tests draw, from all of them."""
    family = draw(st.sampled_from(sorted(drawn.DRAWN)))
    how = drawn.DRAWN[family]
    direction = draw(st.sampled_from(PASSES))
    return Work(
        family,
        direction,
        draw(drawn.geometries(how)),
        draw(st.sampled_from(drawn.DTYPES)),
        draw(st.sampled_from(how.layouts)),
        draw(st.sampled_from(drawn.LAYOUTS)),
        draw(drawn.tiles(how)),
        draw(st.sampled_from(drawn.EPILOGUES if direction == "fprop" else [PLAIN])),
        draw(st.booleans()),
    )


def check(work: Work) -> bool:
    """Whether the family serves the problem; then its result must be the reference's.

    Raises:
        AssertionError: where it is not.
    """
    problem = Problem(work.shape, work.direction, work.dtype, work.layout)
    if FAMILIES[work.family].unserved(problem, drawn.TARGET) is not None:
        return False
    if work.epilogue.pool and min(work.shape.out_h, work.shape.out_w) < 2:
        return False
    drawn.check(work.family, problem, work.tile, work.w_layout, work.epilogue, work.views)
    return True
