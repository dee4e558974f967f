"""Compare compiled kernels with the cost model's estimates of their resources.

    python -m benchmarks.estimates --tiles 100 --seed 0 [--json]

Random legal tiles of every family are compiled for sm_80 and sm_90; nothing is executed, and no GPU
is needed. Each family and pass has a row:

- register error: a thread's estimated minus its compiled registers;
- instruction ratio: estimated / compiled instructions of a step;
- spilled, expected to spill: how many of the kernels did, and how many were expected to.

Errors and ratios are quantiles: 10 %, 50 % and 90 %.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from autotune.compile import compile_choice
from tconv.command_line import command_line
from tconv.cost.cheapest import burden_allows
from tconv.cost.estimate import Resources, estimated_resources
from tconv.cost.space import case_of, legal_grid
from tconv.families import serving
from tconv.families.demand import REGISTERS_PER_THREAD
from tconv.geometry import PASSES, ConvGeometry
from tconv.problem import Problem
from tconv.target import EMULATED, TARGETS, Target
from tconv.tile import Choice

LAYERS = (
    ConvGeometry(16, 256, 28, 28, 256, 3, 3, 1, 1, 1, 1),
    ConvGeometry(16, 128, 28, 28, 512, 1, 1),
    ConvGeometry(16, 64, 56, 56, 128, 3, 3, 2, 2, 1, 1),
    ConvGeometry(64, 6, 14, 14, 16, 5, 5),
    ConvGeometry(64, 3, 32, 32, 64, 3, 3, 1, 1, 1, 1),
    ConvGeometry(16, 512, 14, 14, 512, 3, 3, 1, 1, 1, 1),
    ConvGeometry(16, 128, 28, 28, 128, 3, 3, 1, 1, 1, 1, groups=8),
    ConvGeometry(16, 128, 28, 28, 128, 3, 3, 1, 1, 1, 1, groups=128),
)
ARITHMETICS = ("float16", "tf32", "tf32x3", "float32")
CONSIDERED = 0.7  # share of draws that take only tiles which ``choose`` considers


@dataclass(frozen=True)
class Pair:
    """Resources of one kernel, compiled and estimated."""

    family: str
    direction: str
    compiled: Resources
    estimated: Resources


def drawn(draw: random.Random) -> tuple[Problem, Choice, Target] | None:
    """Return a random problem with a random legal choice; None if no drawn tile is legal."""
    target = TARGETS[draw.choice(list(EMULATED))]
    layout = draw.choice(("nhwc", "nhwc", "nhwc", "nchw"))
    geometry, direction = draw.choice(LAYERS), draw.choice(PASSES)
    problem = Problem.of(geometry, direction, draw.choice(ARITHMETICS), layout)  # type: ignore[arg-type]
    family = draw.choice(serving(problem, target))
    case, thumb = case_of(problem, family, target), family.heuristic(problem, target)
    usual = draw.random() < CONSIDERED
    grid = legal_grid(case, (lambda blocks: burden_allows(blocks, thumb, case)) if usual else None)
    tiles = grid.deepest().spread
    if not len(tiles):
        return None
    return problem, Choice(family.name, tiles.tile(draw.randrange(len(tiles)))), target


def pairs(count: int, seed: int) -> Iterator[Pair]:
    """Compile ``count`` random choices; yield each beside its estimate."""
    draw = random.Random(seed)
    while count:
        if (found := drawn(draw)) is None:
            continue
        problem, choice, target = found
        estimated = estimated_resources(choice, problem, target)
        compiled = compile_choice(problem, choice, target).resources
        yield Pair(choice.family, problem.direction, compiled, estimated)
        count -= 1


def summary(found: list[Pair]) -> dict[str, object]:
    """Return the figures of one family and pass."""
    # A kernel at the limit of registers may need more than it has, so its error is unknown.
    below = [each for each in found if each.compiled.registers < REGISTERS_PER_THREAD["cuda"]]
    looped = [each for each in found if each.compiled.instructions]
    errors = [int(each.estimated.registers) - int(each.compiled.registers) for each in below]
    ratios = [
        float(each.estimated.instructions) / float(each.compiled.instructions) for each in looped
    ]
    return {
        "kernels": len(found),
        "register_error": quantiles(errors),
        "instruction_ratio": quantiles(ratios),
        "spilled": sum(int(each.compiled.spill_bytes) > 0 for each in found),
        "expected_to_spill": sum(int(each.estimated.spill_bytes) > 0 for each in found),
    }


def quantiles(values: list[int] | list[float]) -> list[float] | None:
    """Return the 10 %, 50 % and 90 % quantiles; None without values."""
    if not values:
        return None
    return [round(float(each), 2) for each in np.quantile(values, [0.1, 0.5, 0.9])]


def main(
    tiles: Annotated[int, typer.Option(min=1, help="How many kernels to compile.")] = 100,
    seed: Annotated[int, typer.Option(help="Seed of the random tiles.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare compiled kernels with the cost model's estimates of their resources."""
    grouped: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs(tiles, seed):
        grouped[f"{pair.family}/{pair.direction}"].append(pair)
    figures = {name: summary(found) for name, found in sorted(grouped.items())}
    if as_json:
        print(json.dumps(figures, indent=1))
        return
    columns = list(next(iter(figures.values())))
    table = Table("kernel", *(column.replace("_", " ") for column in columns))
    for name, each in figures.items():
        table.add_row(name, *(str(each[column]) for column in columns))
    Console(width=140).print(table)


if __name__ == "__main__":
    with command_line():
        typer.run(main)
