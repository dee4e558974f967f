"""Compile every kernel for one target with the tiles that an untuned layer gets.

Run in a process of its own, since Triton's interpreter and compiler do not share one:
``python -m tests.tconv.kernels.compile_all sm_90`` prints a JSON object, case -> resources. With
``--every 4``, it compiles the first, fifth, ... case of each kernel; with ``--drawn 120``, the
choices for so many layers drawn from the suites.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

from autotune.compile import compile_launch
from autotune.suites import suite
from tconv.families import FAMILIES, epilogue_grad
from tconv.geometry import PASSES, AdaptiveGeometry, ConvGeometry, PoolGeometry
from tconv.launch import Launch
from tconv.ops import max_pool2d as pool
from tconv.ops.adaptive_pool2d import adaptive_launch, index_launch
from tconv.ops.avg_pool2d import avg_pool_launch
from tconv.problem import (
    ACTIVATIONS,
    BIAS,
    FROM_RESULT,
    PLAIN,
    AdaptiveProblem,
    BatchNorm,
    Epilogue,
    PoolProblem,
    Problem,
)
from tconv.select import choose, heuristic
from tconv.target import TARGETS, Target
from tconv.tile import Choice

WIDE = {
    "vgg-conv3": ConvGeometry(64, 256, 56, 56, 256, 3, 3, pad_h=1, pad_w=1),
    "vgg-conv1": ConvGeometry(64, 3, 224, 224, 64, 3, 3, pad_h=1, pad_w=1),
}
MORE = {
    "lenet-c1": ConvGeometry(64, 1, 32, 32, 6, 5, 5),
    "lenet-c3": ConvGeometry(64, 6, 14, 14, 16, 5, 5),
    "stride-2": ConvGeometry(32, 128, 56, 56, 256, 3, 3, 2, 2, 1, 1),
    "7x7-stride-2": ConvGeometry(64, 3, 224, 224, 64, 7, 7, 2, 2, 3, 3),
    "two-groups": ConvGeometry(64, 96, 27, 27, 256, 5, 5, pad_h=2, pad_w=2, groups=2),
    "grouped-stride-2": ConvGeometry(32, 256, 56, 56, 256, 3, 3, 2, 2, 1, 1, groups=32),
    "grouped": ConvGeometry(32, 128, 56, 56, 128, 3, 3, pad_h=1, pad_w=1, groups=32),
    "depthwise-dilated": ConvGeometry(8, 96, 28, 28, 96, 3, 3, 1, 1, 2, 2, 2, 2, groups=96),
}
DEPTHWISE = {
    "3x3": ConvGeometry(32, 144, 56, 56, 144, 3, 3, 1, 1, 1, 1, groups=144),
    "3x3-stride-2": ConvGeometry(32, 144, 56, 56, 144, 3, 3, 2, 2, 1, 1, groups=144),
    "5x5-multiplier": ConvGeometry(32, 64, 28, 28, 128, 5, 5, 1, 1, 2, 2, groups=64),
    "7x7": ConvGeometry(32, 96, 56, 56, 96, 7, 7, 1, 1, 3, 3, groups=96),
    "9x9": ConvGeometry(32, 96, 28, 28, 96, 9, 9, 1, 1, 4, 4, groups=96),
    "31x31": ConvGeometry(8, 128, 32, 32, 128, 31, 31, 1, 1, 15, 15, groups=128),
}
LARGEST_INT32 = (1 << 31) - 1
HELPERS = ("reduce.add_splits", "relayout.to_channels_last", "relayout.widen")
EPILOGUE_DTYPES = (("float16", "ieee"), ("float32", "tf32"))
EPILOGUES = [
    Epilogue(bias=True, residual=True, activation="relu"),
    Epilogue(bias=True, activation="relu", pool=True, offsets=True),
]
NORM = BatchNorm("float32", 1e-5)
FUSED = [
    *(
        Epilogue(norm=NORM, residual=True, activation=name, kept=name not in FROM_RESULT)
        for name in ACTIVATIONS
    ),
    Epilogue(True, NORM, True, "silu", residual_after=True, pool=True, offsets=True, kept=True),
]
# Forward passes of transposed convolutions: those of a U-Net and of a generator first.
TRANSPOSED = {
    "2x2": ConvGeometry(16, 256, 64, 64, 512, 2, 2, 2, 2),
    "4x4": ConvGeometry(64, 128, 32, 32, 256, 4, 4, 2, 2, 1, 1),
    "boxes": WIDE["vgg-conv3"],
    "direct": MORE["lenet-c3"],
    "grouped": MORE["grouped-stride-2"],
    "depthwise": DEPTHWISE["3x3-stride-2"],
}
DECODERS = [
    Epilogue(norm=NORM, activation="relu"),
    Epilogue(norm=NORM, residual=True, activation="relu"),
    Epilogue(True, NORM, True, "silu", residual_after=True, kept=True),
]
POOLS = {
    "2x2": PoolGeometry(64, 64, 112, 112, 2, 2, 2, 2),
    "3x3-overlapping": PoolGeometry(64, 64, 112, 112, 3, 3, 2, 2, 1, 1),
}
ADAPTIVE = AdaptiveGeometry(8, 64, 50, 50, 7, 7)


# Their untuned choices once spilled on sm_90: 2,368 bytes a thread for 16 loads a step, each with
# an address; 680 bytes for 128 sums, each stored at an address of its own.
SPILLED = (
    "dgrad/float16/nchw/n16c64h112w112-k32f5x5-s2x2-p2x2-d1x1-g1",
    "fprop/float16/nchw/n64c384h13w13-k256f3x3-s1x1-p1x1-d1x1-g1",
)
# Exact products, whose rules of thumb once spilled on sm_100: 32 sums a thread, or 16 of a phase.
EXACT = {
    "1x1": ConvGeometry(64, 128, 28, 28, 512, 1, 1),
    "stride-2": ConvGeometry(16, 64, 57, 57, 96, 3, 3, 2, 2, 1, 1),
}
SUITES = ("lenet5", "vgg16", "resnet50", "mobilenet_v2", "alexnet", "grouped", "depthwise")


def drawn(target: Target, count: int) -> Iterator[tuple[str, Launch]]:
    """The choices for ``count`` untuned layers of the suites: passes, dtypes and layouts drawn."""
    problems = {
        problem.key: problem
        for name in SUITES
        for layer in suite(name)
        for direction in PASSES
        for arithmetic in ("float16", "float32", "tf32")
        for layout in ("nhwc", "nchw")
        for problem in [Problem.of(layer.geometry, direction, arithmetic, layout)]  # type: ignore[arg-type]
    }
    for key in random.Random(target.name).sample(sorted(problems), count):
        problem = problems[key]
        epilogue = BIAS if problem.direction == "fprop" else PLAIN
        yield from launches(problem, heuristic(problem, target), target, epilogue)


def serving(problem: Problem, target: Target) -> Iterator[Choice]:
    """Every family that serves, with the tile of an untuned layer."""
    for name, family in FAMILIES.items():
        if family.unserved(problem, target) is None:
            yield Choice(name, family.heuristic(problem, target))


def launches(
    problem: Problem, choice: Choice, target: Target, epilogue: Epilogue = BIAS
) -> Iterator[tuple[str, Launch]]:
    plan = FAMILIES[choice.family].plan(problem, choice.tile, target, epilogue)
    for launch in plan.launches:
        fused = "" if epilogue == BIAS else f" {epilogue}"
        yield f"{choice.family} {problem.key} {choice.tile}{fused}", launch


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
                if name in WIDE and (dtype, precision) in EPILOGUE_DTYPES and direction == "fprop":
                    for epilogue in EPILOGUES + FUSED if dtype == "float16" else EPILOGUES:
                        yield from launches(problem, choose(problem, target), target, epilogue)
                if name not in WIDE or dtype != "float16":
                    continue
                contiguous = replace(problem, layout="nchw")
                for other in serving(contiguous, target):
                    yield from launches(contiguous, other, target)
    for known in map(Problem.from_key, SPILLED):
        yield from launches(known, choose(known, target), target)
    for shape in EXACT.values():
        for direction in PASSES:
            exact = Problem(shape, direction, "float32", "nchw")
            for other in serving(exact, target):
                yield from launches(exact, other, target)
    yield from drawn(target, 4)
    most = target.name == "sm_90"  # of the variants; every kernel is compiled for every target
    for shape in DEPTHWISE.values():
        for direction in PASSES:
            for layout in ("nhwc", "nchw")[: 2 if shape.filter_h <= (7 if most else 3) else 1]:
                problem = Problem(shape, direction, "float16", layout)  # type: ignore[arg-type]
                yield from launches(problem, choose(problem, target), target)
        for dtype in ("float32", "float64") if most and shape.filter_h in (3, 7) else ():
            problem = Problem(shape, "fprop", dtype)
            yield from launches(problem, choose(problem, target), target)
    for epilogue in EPILOGUES + FUSED[-5:]:
        for name in ("3x3", "lenet-c1", "grouped"):
            problem = Problem((DEPTHWISE | MORE)[name], "fprop")
            yield from launches(problem, choose(problem, target), target, epilogue)
    yield from transposed(target)
    for name, pooling in POOLS.items():
        for dtype in ("float16", "float32") if most and pooling.window_h == 3 else ("float16",):
            for layout in ("nhwc", "nchw"):
                label = f"{name} {dtype} {layout}"
                for direction in ("fprop", "dgrad"):
                    task = PoolProblem(pooling, direction, dtype, layout)  # type: ignore[arg-type]
                    tile = choose(task, target).tile
                    yield f"{label} mean", avg_pool_launch(task, tile, True, 0)
                    if direction == "dgrad":
                        yield f"{label} dgrad", pool.dgrad_launch(task, tile)
                        continue
                    for asked in (True, False):
                        yield f"{label} indices={asked}", pool.pick_launch(task, tile, asked)
                        yield f"{label} offsets={asked}", pool.fprop_launch(task, tile, asked)
    for layout in ("nhwc", "nchw") if most else ("nhwc",):
        for direction in ("fprop", "dgrad"):
            adaptive = AdaptiveProblem(ADAPTIVE, direction, "float16", layout)  # type: ignore[arg-type]
            tile = choose(adaptive, target).tile
            for asked in (True, False):
                yield f"adaptive {layout} max={asked}", adaptive_launch(adaptive, tile, asked)
                if direction == "fprop":
                    yield f"index {layout} claim={asked}", index_launch(adaptive, tile, asked)
    for layout in ("nhwc", "nchw"):
        for activation in (None, *map(epilogue_grad.Activation, ACTIVATIONS)):
            plan = epilogue_grad.plan("float16", layout, (64, 256, 56 * 56), target, activation)  # type: ignore[arg-type]
            for launch in plan.launches:
                yield f"float16 {layout} {activation}", launch
        for launch in epilogue_grad.pool_plan(
            "float16", layout, (64, 64, 55, 56), target, True
        ).launches:  # type: ignore[arg-type]
            yield f"float16 {layout} pooled", launch


def transposed(target: Target) -> Iterator[tuple[str, Launch]]:
    """Transposed convolutions with batch normalization, residual and activation."""
    for name, shape in TRANSPOSED.items():
        for dtype, precision in EPILOGUE_DTYPES if name in ("2x2", "4x4") else EPILOGUE_DTYPES[:1]:
            for layout in ("nhwc", "nchw"):
                problem = Problem(shape, "dgrad", dtype, layout, precision)  # type: ignore[arg-type]
                for epilogue in DECODERS:
                    yield from launches(problem, choose(problem, target), target, epilogue)


def expected(target: Target) -> int:
    """How many kernels there are: three products by address, two direct, two depthwise
    and one grouped; the sum of parts and two changes of layout; three of an ending's gradient;
    max-pool forward, backward, picking; the mean forward and backward; adaptive pools likewise,
    and two by index. And two of boxes, where there are boxes.
    """
    return 25 + 2 * (target.sm >= 90)


def sampled(found: Iterable[tuple[str, Launch]], every: int) -> Iterator[tuple[str, Launch]]:
    """The first of ``every`` cases of each kernel, and the cases that once spilled."""
    seen: Counter[str] = Counter()
    for label, launch in found:
        if seen[launch.kernel] % every == 0 or any(key in label for key in SPILLED):
            yield label, launch
        seen[launch.kernel] += 1


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--drawn", type=int)
    asked = parser.parse_args()
    target = TARGETS[asked.target]
    found: dict[str, dict[str, int]] = {}
    known: dict[str, dict[str, int]] = {}
    chosen = cases(target) if asked.drawn is None else drawn(target, asked.drawn)
    for label, launch in sampled(chosen, asked.every):
        source = code(launch)
        if source not in known:
            known[source] = dataclasses.asdict(compile_launch(launch, target, steps=0))
        found[f"{launch.kernel} {label}"] = known[source]
    print(json.dumps(found))


def code(launch: Launch) -> str:
    """What the compiler makes code from: launches that agree in it need not be compiled twice."""
    operands = {
        name: getattr(operand, "box", operand.dtype) for name, operand in launch.operands.items()
    }
    wide = {name: abs(value) > LARGEST_INT32 for name, value in launch.scalars.items()}
    constants = {name: str(value) for name, value in launch.constants.items()}
    if launch.kernel in HELPERS:  # they only move: sizes change no instruction that could spill
        constants = {}
    dtypes = {name: operand.dtype for name, operand in launch.operands.items()}
    parts = (launch.kernel, operands, dtypes, wide, constants, launch.warps, launch.stages)
    return repr([sorted(part.items()) if isinstance(part, dict) else part for part in parts])


if __name__ == "__main__":
    main()
