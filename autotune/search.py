"""Search one problem's candidates; strategies see only parameter vectors and times.

What the model knows of the kernels reaches a strategy as an order of the candidates, the most
promising first (see ``autotune.strategies``).
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from autotune.strategies import STRATEGIES
from autotune.strategies.common import SearchSpace, search
from autotune.trial import Trial
from tconv.cost.cheapest import Merit, merits
from tconv.cost.space import broken_rule
from tconv.families import FAMILIES
from tconv.problem import Problem
from tconv.select import heuristic
from tconv.target import Target
from tconv.tile import Choice, Tile
from tconv.winners import Kind

Evaluate = Callable[[Sequence[Choice]], list[Trial]]
# Predictions follow the model's order exactly; measurements may deviate from it.
DEFAULT_STRATEGY: dict[Kind, str] = {"predicted": "ranked", "measured": "combined"}
DEFAULT_CANDIDATES: dict[Kind, int] = {"predicted": 8, "measured": 16}
MOST_WORKERS = 8
SEED = 0  # random seed of a strategy: a repeated run finds its trials in the store


@dataclass(frozen=True)
class Effort:
    """How much a run spends; the only definition of its defaults."""

    candidates: int = DEFAULT_CANDIDATES[
        "predicted"
    ]  # per problem: compiled, and on a GPU measured
    finalists: int = 3  # checked against the reference until one passes
    compile_seconds: float = 60.0  # limit for one candidate
    gate_seconds: float = 60.0  # limit for one check
    warmup_milliseconds: float = 20.0
    measure_milliseconds: float = 100.0  # spent on the repeats of one candidate
    least_repeats: int = 10
    most_repeats: int = 200
    workers: int = min(MOST_WORKERS, os.cpu_count() or 1)


DEFAULT_EFFORT = Effort()
WITHIN_REACH = 3.0  # times the best prediction, up to which a family's best candidate is tried
SAME_SHAPE = 2  # how many of the tried tiles may share one block shape


def explore(
    strategy: str,
    problem: Problem,
    target: Target,
    candidates: Sequence[Choice],
    evaluate: Evaluate,
    budget: int,
) -> list[Trial]:
    """Return the trials that ``strategy`` made, in order, at most ``budget``.

    The model's most promising candidates come first, among them the rule of thumb's choice, which
    the others must beat.
    """
    choices, space = space_of(problem, target, candidates, budget)
    if not choices:
        return []
    trials: dict[int, Trial] = {}

    def times_of(places: list[int]) -> list[float]:
        made = evaluate([choices[place] for place in places])
        trials.update(zip(places, made, strict=True))
        return [math.nan if trial.searched is None else trial.searched for trial in made]

    search(STRATEGIES[strategy], space, times_of, budget, SEED)
    return list(trials.values())


PARAMETERS = ("family", *(field.name for field in fields(Tile)))


def parameters_of(choices: Sequence[Choice]) -> NDArray[np.float64]:
    """Return a row of ``PARAMETERS`` for each choice."""
    families, of_tile = list(FAMILIES), attrgetter(*PARAMETERS[1:])
    rows = [(families.index(each.family), *of_tile(each.tile)) for each in choices]
    return np.array(rows, dtype=np.float64)


def space_of(
    problem: Problem, target: Target, candidates: Sequence[Choice], count: int
) -> tuple[list[Choice], SearchSpace]:
    """Return the choices and the space a strategy searches, the ``count`` most promising first."""
    by_choice = dict(zip(candidates, merits(problem, candidates, target), strict=True))
    promising = _most_promising(problem, target, by_choice, count)
    # the rule of thumb's tile may not be on the grid of candidates
    choices = list(dict.fromkeys([*promising, *candidates]))
    # A tile that the model expects to spill counts as infeasible: compiling would reject it.
    predicted = [
        math.inf if spills else milliseconds
        for spills, milliseconds, _ in merits(problem, choices, target)
    ]
    order = tuple(range(len(promising)))
    return choices, SearchSpace(PARAMETERS, parameters_of(choices), order, np.array(predicted))


def shortlist(
    problem: Problem, target: Target, candidates: Sequence[Choice], count: int
) -> list[Choice]:
    """Return ``count`` choices by predicted time, at most ``SAME_SHAPE`` per family and shape.

    The first half includes every family whose best candidate is within reach, because the model may
    misjudge a whole family.
    """
    by_choice = dict(zip(candidates, merits(problem, candidates, target), strict=True))
    return _most_promising(problem, target, by_choice, count)


def _most_promising(
    problem: Problem, target: Target, known: Mapping[Choice, Merit], count: int
) -> list[Choice]:
    thumb = heuristic(problem, target)
    chosen = [thumb] if count and broken_rule(thumb, problem, target) is None else []
    order = [(*merit, choice.family, choice.tile) for choice, merit in known.items()]
    ranked = sorted(order)
    best = {family: (spills, time, tile) for spills, time, _, family, tile in reversed(ranked)}
    quickest = min((time for spills, time, _ in best.values() if not spills), default=math.inf)
    hopeful = sorted(
        (time, family, tile)
        for family, (spills, time, tile) in best.items()
        if not spills and time <= WITHIN_REACH * quickest
    )
    for _, family, tile in hopeful[: max(0, count // 2 - len(chosen))]:
        choice = Choice(family, tile)
        if choice not in chosen:
            chosen.append(choice)
    shapes = Counter(_shape(choice) for choice in chosen)
    for *_, family, tile in ranked:
        if len(chosen) >= count:
            break
        choice = Choice(family, tile)
        if choice not in chosen and shapes[_shape(choice)] < SAME_SHAPE:
            shapes[_shape(choice)] += 1
            chosen.append(choice)
    return chosen


def _shape(choice: Choice) -> tuple[str, int, int, int]:
    tile = choice.tile
    return choice.family, tile.block_m, tile.block_n, tile.block_k
