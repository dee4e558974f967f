"""Which candidates to try: a strategy is one function of one signature.

``evaluate`` tries tiles, in the order given, and returns their trials; ``budget`` is how many
it may be given. A strategy sees nothing else of compilers or GPUs, so that recorded trials
can stand in for them.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from autotune.estimate import estimated_resources
from autotune.model import predict
from autotune.space import DEFAULT_SWIZZLE, broken_rule
from autotune.trial import Trial
from tconv.problem import Problem
from tconv.select import heuristic
from tconv.target import Target
from tconv.tile import Tile

Evaluate = Callable[[Sequence[Tile]], list[Trial]]
Strategy = Callable[[Problem, Target, Sequence[Tile], Evaluate, int], list[Trial]]


@dataclass(frozen=True)
class Effort:
    """How much a run spends; the one place where its defaults stand."""

    candidates: int = 8  # tried for each problem: compiled, and on a GPU measured
    finalists: int = 3  # of them, checked against the reference until one passes
    compile_seconds: float = 60.0  # limit for one candidate
    gate_seconds: float = 60.0  # limit for one check
    warmup_milliseconds: float = 20.0
    measure_milliseconds: float = 100.0  # spent on the repeats of one candidate
    least_repeats: int = 10
    most_repeats: int = 200
    workers: int = 2


DEFAULT_EFFORT = Effort()
SAME_SHAPE = 2  # of the tiles tried, how many may share one shape of block


def ranked(
    problem: Problem,
    target: Target,
    candidates: Sequence[Tile],
    evaluate: Evaluate,
    budget: int,
) -> list[Trial]:
    """The model's first choices, and the rule of thumb's tile, which they must beat."""
    tiles = shortlist(problem, target, candidates, budget)
    return evaluate(tiles)


def shortlist(
    problem: Problem, target: Target, candidates: Sequence[Tile], count: int
) -> list[Tile]:
    """``count`` tiles by predicted time, no more than ``SAME_SHAPE`` of one shape."""
    thumb = heuristic(problem, target).tile
    chosen = [thumb] if count and broken_rule(thumb, problem, target) is None else []
    order = [(*_merit(problem, tile, target), tile) for tile in candidates]
    shapes: Counter[tuple[int, int, int]] = Counter()
    heapq.heapify(order)
    while order and len(chosen) < count:
        tile = heapq.heappop(order)[-1]
        shape = (tile.block_m, tile.block_n, tile.block_k)
        if tile not in chosen and shapes[shape] < SAME_SHAPE:
            shapes[shape] += 1
            chosen.append(tile)
    return chosen


def _merit(problem: Problem, tile: Tile, target: Target) -> tuple[bool, float, bool]:
    """What the least is best of: tiles that would spill come last, for compiling rejects them.

    Where the model sees no difference, the usual swizzle goes first.
    """
    spills = estimated_resources(tile, problem, target).spill_bytes > 0
    milliseconds = predict(problem, tile, target).milliseconds
    return spills, milliseconds, tile.swizzle != DEFAULT_SWIZZLE


STRATEGIES: dict[str, Strategy] = {"ranked": ranked}
