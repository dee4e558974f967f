"""Estimate on simulated GPUs how close a few measurements come to the best of a whole space.

    python -m benchmarks.few_measurements --suite vgg16 --evaluations 16

A simulated GPU, the judge, is the cost model with randomly disturbed constants, plus an error
shared by all configurations of one shape (each family, block and pipeline depth has its own
factor). The tuner receives the judge's times and knows only the undisturbed model. Shares are of
the judge's best over all candidates. Nothing here is measured on a GPU; ``autotune calibrate``
measures how far a real one is from the model.
"""

from __future__ import annotations

import math
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from autotune.search import space_of
from autotune.strategies import STRATEGIES
from autotune.strategies.common import search
from autotune.suites import suite as layers_of
from tconv.command_line import command_line
from tconv.cost.constants import FITTED, Constants
from tconv.cost.model import predict
from tconv.cost.space import candidates
from tconv.geometry import PASSES
from tconv.problem import Problem
from tconv.select import heuristic
from tconv.target import TARGETS, Target
from tconv.tile import Choice

SUITES = ("lenet5", "vgg16", "resnet50", "mobilenet_v2")
TARGET = TARGETS["sm_90"]


class Judge:
    """A simulated GPU: the model's times with the kinds of error that a model has."""

    def __init__(self, seed: int, constants_error: float, shape_error: float) -> None:
        generator = np.random.default_rng(seed)
        assumed = Constants()
        disturbed = {}
        for name, (low, high) in FITTED.items():
            value = getattr(assumed, name) * math.exp(generator.normal(0, constants_error))
            disturbed[name] = min(max(value, low), high)
        self._constants = replace(assumed, **disturbed)
        self._seed, self._shape_error = seed, shape_error
        self._errors: dict[str, float] = {}

    def milliseconds(self, problem: Problem, choice: Choice, target: Target) -> float:
        time = predict(problem, choice, target, None, self._constants).milliseconds
        family, tile = choice.family, choice.tile
        shapes = (
            (family,),
            (family, tile.block_m, tile.block_n),
            (family, tile.block_k, tile.stages),
            (family, tile.warps, tile.block_m),
        )
        return time * math.exp(sum(self._error_of(problem.key, shape) for shape in shapes))

    def _error_of(self, key: str, shape: tuple[object, ...]) -> float:
        """Return a random error that depends only on the seed, the problem and the shape."""
        text = f"{self._seed}/{key}/{shape}"
        if text not in self._errors:
            drawn = np.random.default_rng(list(text.encode())).normal(0, self._shape_error / 2)
            self._errors[text] = float(drawn)
        return self._errors[text]


def shares(
    problem: Problem,
    seed: int,
    budgets: tuple[int, ...],
    constants_error: float,
    shape_error: float,
) -> list[float]:
    """Return the judge's best time over the heuristic's, then over each budget's best."""
    judge = Judge(seed, constants_error, shape_error)
    space = candidates(problem, TARGET)
    times = {choice: judge.milliseconds(problem, choice, TARGET) for choice in space}
    thumb = heuristic(problem, TARGET)
    untuned = times.get(thumb) or judge.milliseconds(problem, thumb, TARGET)
    best = min(times.values())
    most = max(budgets)
    choices, known = space_of(problem, TARGET, space, most)
    times.setdefault(thumb, untuned)

    def times_of(places: list[int]) -> list[float]:
        return [times[choices[place]] for place in places]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trials = search(STRATEGIES["combined"], known, times_of, most, 0)
    found = [min(trials.times[:budget]) for budget in budgets]
    return [best / time for time in (untuned, *found)]


def main(
    suite: Annotated[
        list[str] | None, typer.Option(help="model whose layers to use; repeatable")
    ] = None,
    evaluations: Annotated[
        list[int] | None, typer.Option(min=1, help="measurements per problem")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="number of simulated GPUs")] = 3,
    constants_error: Annotated[
        float, typer.Option(min=0, help="deviation of ln of the model's constants")
    ] = 0.3,
    shape_error: Annotated[
        float, typer.Option(min=0, help="deviation of ln of each shape's factor")
    ] = 0.1,
) -> None:
    """Print geometric means over layers, passes and simulated GPUs."""
    budgets = tuple(sorted(evaluations or [4, 8, 16, 32]))
    table = Table(
        "suite", "problems", "none", *map(str, budgets),
        title=f"share of the judge's best after so many measurements; the model errs by "
        f"{constants_error:g} and {shape_error:g} (ln)",
    )  # fmt: skip
    every: list[list[float]] = []
    with ProcessPoolExecutor() as pool:
        for name in suite or SUITES:
            problems = [Problem(layer.geometry, d) for layer in layers_of(name) for d in PASSES]
            work = [(problem, seed) for problem in problems for seed in range(seeds)]
            one = partial(
                shares, budgets=budgets, constants_error=constants_error, shape_error=shape_error
            )
            rows = list(pool.map(one, *zip(*work, strict=True), chunksize=4))
            every += rows
            table.add_row(name, str(len(problems)), *_means(rows))
    table.add_section()
    table.add_row("all", str(len(every) // seeds), *_means(every))
    Console().print(table)


def _means(rows: list[list[float]]) -> list[str]:
    return [f"{math.exp(mean):.3f}" for mean in np.log(rows).mean(0)]


if __name__ == "__main__":
    with command_line():
        typer.run(main)
