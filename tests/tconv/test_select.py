"""Tests of choices for empty problems, to which no cost model applies."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tconv.families import FAMILIES
from tconv.geometry import PASSES, ConvGeometry
from tconv.problem import BIAS, PLAIN, Problem
from tconv.select import choose
from tconv.target import INTERPRETER, TARGETS

SHAPE = ConvGeometry(2, 64, 28, 28, 64, 3, 3)
EMPTY = {
    "batch": replace(SHAPE, batch=0),
    "batch, depthwise": replace(SHAPE, batch=0, groups=64),
    "batch, strided": replace(SHAPE, batch=0, stride_h=2, stride_w=2),
    "in_channels": replace(SHAPE, in_channels=0),
    "out_channels": replace(SHAPE, out_channels=0),
    "all": replace(SHAPE, batch=0, in_channels=0, out_channels=0),
}


@pytest.mark.parametrize("target", [*TARGETS.values(), INTERPRETER], ids=lambda target: target.name)
@pytest.mark.parametrize("shape", EMPTY.values(), ids=EMPTY)
def test_an_empty_extent_has_a_plan(shape: ConvGeometry, target: object) -> None:
    for direction in PASSES:
        for dtype in ("float16", "float64"):
            for layout in ("nhwc", "nchw"):
                problem = Problem(shape, direction, dtype, layout)  # type: ignore[arg-type]
                choice = choose(problem, target)  # type: ignore[arg-type]
                epilogue = BIAS if direction == "fprop" else PLAIN
                plan = FAMILIES[choice.family].plan(problem, choice.tile, target, epilogue, "nhwc")  # type: ignore[arg-type]
                results = {"fprop": shape.y_elements, "dgrad": shape.x_elements}
                written = results.get(direction, shape.w_elements)
                launched = [launch for launch in plan.launches if 0 not in launch.grid]
                assert bool(launched) or written == 0  # a non-empty result is written
