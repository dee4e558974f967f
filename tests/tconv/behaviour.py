"""Digest of what the library decides: legal tiles, predictions, plans and stored keys.

A change of structure must leave every line of ``behaviour.txt`` as it is. One line stands for one
suite on one target in one arithmetic, with one hash for each kind of decision:

    keys         keys under which choices are stored
    legal        first broken rule, or none, of tiles drawn from each family's axes
    predicted    estimated resources and predicted milliseconds of the legal ones
    plans        launches, grids, constants and buffers, with each epilogue and filter layout
    chosen       choice for a layer that was never tuned (float16 and channels_last only)

After a deliberate change, write the file anew and look at which columns differ:

    python -m tests.tconv.behaviour --write
"""

from __future__ import annotations

import hashlib
import os
import random
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from autotune.suites import names, pools, suite
from tconv.cost.estimate import estimated_resources
from tconv.cost.model import predict
from tconv.cost.space import broken_rule
from tconv.families import FAMILIES, serving
from tconv.geometry import PASSES, ConvGeometry
from tconv.launch import Descriptor, Plan
from tconv.problem import ARITHMETICS, PLAIN, Epilogue, PoolProblem, Problem
from tconv.select import choose, heuristic
from tconv.target import TARGETS, Target
from tconv.tile import Choice, Tile

FILE = Path(__file__).with_suffix(".txt")
COLUMNS = ("keys", "legal", "predicted", "plans", "chosen")
DRAWN = 8  # tiles of each family and problem that are drawn from its axes, and as many neighbours
COMMON, SAMPLED = ("float16", "tf32"), 4  # the others take each fourth geometry of a suite
EPILOGUES = (
    PLAIN,
    Epilogue(bias=True, residual=True, activation="relu"),
    Epilogue(bias=True, activation="relu", pool=True, offsets=True),
)
ODD = (  # windows, strides and groups that no suite has
    ConvGeometry(3, 5, 13, 11, 7, 3, 2, 2, 1, 1, 0, 1, 2),
    ConvGeometry(2, 24, 9, 17, 36, 1, 3, 1, 3, 0, 2, 2, 1, groups=3),
    ConvGeometry(1, 12, 30, 30, 24, 5, 5, 3, 2, 2, 2, groups=12),
    ConvGeometry(5, 64, 8, 8, 96, 1, 1, 2, 2),
)


UNHASHED = ("unet", "audio")  # suites whose kinds of layers others and ODD have


def geometries(name: str) -> list[ConvGeometry]:
    """Geometries of suite ``name`` that no earlier suite has."""
    if name == "odd":
        return list(ODD)
    earlier = names()[: names().index(name)]
    known = {layer.geometry for other in earlier for layer in suite(other)}
    return [layer.geometry for layer in suite(name) if layer.geometry not in known]


def groups() -> list[tuple[str, Target, str]]:
    """Suite, target and arithmetic of every line."""
    return [
        (name, target, arithmetic)
        for name in (*names(), "odd")
        if name not in UNHASHED and geometries(name)
        for target in TARGETS.values()
        for arithmetic in ARITHMETICS
        if target.backend == "cuda" or arithmetic != "tf32x3"
    ]


def tiles(problem: Problem, family: str, target: Target) -> Iterator[Tile]:
    """The rule of thumb's tile, tiles from all over the axes, and its neighbours."""
    chance = random.Random(f"{problem.key} {family} {target.name}")
    axes = FAMILIES[family].axes(problem)
    thumb = FAMILIES[family].heuristic(problem, target)
    yield thumb
    chosen = [field.name for field in fields(axes)]
    for _ in range(DRAWN):
        yield Tile(**{name: chance.choice(getattr(axes, name)) for name in chosen})
    for _ in range(DRAWN):
        some = chance.sample(chosen, 2)
        yield replace(thumb, **{name: chance.choice(getattr(axes, name)) for name in some})


def described(plan: Plan) -> list[Any]:
    """Everything of a plan that a kernel is launched with."""
    launches = [
        [
            launch.kernel,
            launch.grid,
            sorted(
                (name, operand.tensor, operand.dtype, *_box(operand))
                for name, operand in launch.operands.items()
            ),
            sorted(launch.scalars.items()),
            sorted((name, str(value)) for name, value in launch.constants.items()),
            launch.warps,
            launch.stages,
        ]
        for launch in plan.launches
    ]
    buffers = sorted((name, each.elements, each.dtype) for name, each in plan.buffers.items())
    return [launches, buffers, plan.product]


def _box(operand: Any) -> tuple[Any, ...]:
    if isinstance(operand, Descriptor):
        return operand.shape, operand.strides, operand.box
    return ()


def line(name: str, target: Target, arithmetic: str) -> str:
    """One line of the file."""
    found: dict[str, Any] = {column: hashlib.sha256() for column in COLUMNS}

    def note(column: str, *what: object) -> None:
        found[column].update(repr(what).encode())

    shapes = geometries(name)
    if arithmetic not in COMMON:
        shapes = shapes[::SAMPLED]
    for geometry in shapes:
        for direction in PASSES:
            for layout in ("nhwc", "nchw"):
                problem = Problem.of(geometry, direction, arithmetic, layout)  # type: ignore[arg-type]
                note("keys", problem.key)
                _note_problem(problem, target, note)
    if arithmetic == "float16":
        problem = Problem.of(shapes[0], "fprop", arithmetic)
        for direction in PASSES:
            choice = heuristic(replace(problem, direction=direction), target)
            note("chosen", choice.family, str(choice.tile))
    if arithmetic in ("float16", "bfloat16", "float32", "float64") and name != "odd":
        for layer in pools(name):
            for layout in ("nhwc", "nchw"):
                pool = PoolProblem(layer.geometry, "fprop", arithmetic, layout)  # type: ignore[arg-type]
                note("keys", pool.key)
                for each in (pool, replace(pool, direction="dgrad")):
                    note("chosen", str(choose(each, target).tile))
    hashes = " ".join(f"{column}={found[column].hexdigest()[:10]}" for column in COLUMNS)
    return f"{name} {target.name} {arithmetic} layers={len(shapes)} {hashes}"


def _note_problem(problem: Problem, target: Target, note: Any) -> None:
    served = sorted(family.name for family in serving(problem, target))
    note("legal", served)
    for family in served:
        for place, tile in enumerate(tiles(problem, family, target)):
            choice = Choice(family, tile)
            rule = broken_rule(choice, problem, target)
            note("legal", family, str(tile), rule)
            if place and rule is not None:
                continue
            resources = estimated_resources(choice, problem, target)
            prediction = predict(problem, choice, target)
            note("predicted", resources, f"{prediction.milliseconds:.6g}", prediction.bound)
            note("predicted", prediction.programs, f"{prediction.waves:.6g}")
            epilogues = EPILOGUES if problem.direction == "fprop" else (PLAIN,)
            layouts = ("nhwc", "nchw") if place == 0 else ("nhwc",)
            for epilogue in epilogues:
                for w_layout in layouts:
                    plan = FAMILIES[family].plan(problem, tile, target, epilogue, w_layout)  # type: ignore[arg-type]
                    note("plans", described(plan))


def main(arguments: list[str]) -> None:
    """Print every line, or write them to the file."""
    os.environ["TCONV_HOME"] = tempfile.gettempdir()  # nobody's own tables or constants
    text = "".join(f"{line(*group)}\n" for group in groups())
    if arguments == ["--write"]:
        FILE.write_text(text, encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main(sys.argv[1:])
