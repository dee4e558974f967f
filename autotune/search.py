"""Which candidates to try: a strategy is one function of one signature.

``evaluate`` tries choices, in the order given, and returns their trials; ``budget`` is how many
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
from tconv.select import Choice, heuristic
from tconv.target import Target

Evaluate = Callable[[Sequence[Choice]], list[Trial]]
Strategy = Callable[[Problem, Target, Sequence[Choice], Evaluate, int], list[Trial]]


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
    candidates: Sequence[Choice],
    evaluate: Evaluate,
    budget: int,
) -> list[Trial]:
    """The model's first choices, and the rule of thumb's tile, which they must beat."""
    return evaluate(shortlist(problem, target, candidates, budget))


def shortlist(
    problem: Problem, target: Target, candidates: Sequence[Choice], count: int
) -> list[Choice]:
    """``count`` choices by predicted time, no more than ``SAME_SHAPE`` of one family and shape."""
    thumb = heuristic(problem, target)
    chosen = [thumb] if count and broken_rule(thumb, problem, target) is None else []
    order = [
        (*_merit(problem, choice, target), choice.algorithm, choice.tile) for choice in candidates
    ]
    shapes: Counter[tuple[str, int, int, int]] = Counter()
    heapq.heapify(order)
    while order and len(chosen) < count:
        *_, algorithm, tile = heapq.heappop(order)
        choice = Choice(algorithm, tile)
        shape = (algorithm, tile.block_m, tile.block_n, tile.block_k)
        if choice not in chosen and shapes[shape] < SAME_SHAPE:
            shapes[shape] += 1
            chosen.append(choice)
    return chosen


def _merit(problem: Problem, choice: Choice, target: Target) -> tuple[bool, float, bool]:
    """What the least is best of: tiles that would spill come last, for compiling rejects them.

    Where the model sees no difference, the usual swizzle goes first.
    """
    spills = estimated_resources(choice, problem, target).spill_bytes > 0
    milliseconds = predict(problem, choice, target).milliseconds
    return spills, milliseconds, choice.tile.swizzle != DEFAULT_SWIZZLE


STRATEGIES: dict[str, Strategy] = {"ranked": ranked}
