"""Compile every kernel for one target with the tiles that an untuned layer gets.

Run in a process of its own, since Triton's interpreter and compiler do not share one:
``python -m tests.tconv.kernels.compile_all sm_90`` prints a JSON object, case -> resources.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from dataclasses import replace

from autotune.compile import compile_launch
from tconv.algorithms import ALGORITHMS, bias
from tconv.geometry import PASSES, ConvGeometry, PoolGeometry
from tconv.ops import max_pool2d as pool
from tconv.ops.launch import Launch
from tconv.problem import PoolProblem, Problem
from tconv.select import Choice, choose
from tconv.target import TARGETS, Target

WIDE = {
    "vgg-conv3": ConvGeometry(64, 256, 56, 56, 256, 3, 3, pad_h=1, pad_w=1),
    "vgg-conv1": ConvGeometry(64, 3, 224, 224, 64, 3, 3, pad_h=1, pad_w=1),
}
MORE = {
    "lenet-c3": ConvGeometry(64, 6, 14, 14, 16, 5, 5),
    "stride-2": ConvGeometry(32, 128, 56, 56, 256, 3, 3, 2, 2, 1, 1),
    "7x7-stride-2": ConvGeometry(64, 3, 224, 224, 64, 7, 7, 2, 2, 3, 3),
    "grouped": ConvGeometry(32, 128, 56, 56, 128, 3, 3, pad_h=1, pad_w=1, groups=32),
    "depthwise-dilated": ConvGeometry(8, 96, 28, 28, 96, 3, 3, 1, 1, 2, 2, 2, 2, groups=96),
}
POOLS = {
    "2x2": PoolGeometry(64, 64, 112, 112, 2, 2, 2, 2),
    "3x3-overlapping": PoolGeometry(64, 64, 112, 112, 3, 3, 2, 2, 1, 1),
}


def serving(problem: Problem, target: Target) -> Iterator[Choice]:
    """Every family that serves, with the tile of an untuned layer."""
    for algorithm, family in ALGORITHMS.items():
        if family.unserved(problem, target) is None:
            yield Choice(algorithm, family.heuristic(problem, target))


def launches(problem: Problem, choice: Choice, target: Target) -> Iterator[tuple[str, Launch]]:
    plan = ALGORITHMS[choice.algorithm].plan(problem, choice.tile, target, bias=True)
    for launch in plan.launches:
        yield f"{choice.algorithm} {problem.key} {choice.tile}", launch


def cases(target: Target) -> Iterator[tuple[str, Launch]]:
    arithmetics = [("float16", "ieee"), ("bfloat16", "ieee"), ("float32", "ieee"),
                   ("float32", "tf32"), ("float64", "ieee")]  # fmt: skip
    if target.backend == "cuda":
        arithmetics.append(("float32", "tf32x3"))
    for name, shape in (WIDE | MORE).items():
        for dtype, precision in arithmetics if name in WIDE else arithmetics[:1]:
            for direction in PASSES:
                problem = Problem(shape, direction, dtype, "nhwc", precision)  # type: ignore[arg-type]
                yield from launches(problem, choose(problem, target), target)
                if name not in WIDE or dtype != "float16":
                    continue
                contiguous = replace(problem, layout="nchw")
                for other in serving(contiguous, target):
                    yield from launches(contiguous, other, target)
    for name, pooling in POOLS.items():
        for dtype in ("float16", "float32"):
            for layout in ("nhwc", "nchw"):
                label = f"{name} {dtype} {layout}"
                for direction in ("fprop", "dgrad"):
                    task = PoolProblem(pooling, direction, dtype, layout)  # type: ignore[arg-type]
                    tile = choose(task, target).tile
                    if direction == "dgrad":
                        yield f"{label} dgrad", pool.dgrad_launch(task, tile)
                        continue
                    yield f"{label} pick", pool.pick_launch(task, tile)
                    for indices in (True, False):
                        yield f"{label} indices={indices}", pool.fprop_launch(task, tile, indices)
    for layout in ("nhwc", "nchw"):
        for launch in bias.plan("float16", layout, 64, 256, 56 * 56, target).launches:  # type: ignore[arg-type]
            yield f"float16 {layout}", launch


def expected(target: Target) -> int:
    """How many kernels there are: three products by address, two direct; the sum of parts and two
    changes of layout; two of the bias; max-pool forward, backward, picking. And two of boxes,
    where there are boxes.
    """
    return 13 + 2 * (target.sm >= 90)


def main(name: str) -> None:
    target = TARGETS[name]
    found = {}
    for label, launch in cases(target):
        found[f"{launch.kernel} {label}"] = dataclasses.asdict(compile_launch(launch, target))
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
