"""What a search strategy sees: configurations, and a function that tells their times."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.float64]


class BudgetSpentError(Exception):
    """No configuration may be tried any more. Ends a strategy; no failure."""


@dataclass(frozen=True, eq=False)
class SearchSpace:
    """Configurations to choose from, a row each."""

    names: tuple[str, ...]  # of the parameters
    values: NDArray[np.float64]  # (configurations, parameters)
    order: tuple[int, ...] | None = None  # a model's, best hopes first, where one knows the kernel
    predicted: Times | None = None  # what that model says of each, in the unit of times

    def __len__(self) -> int:
        return len(self.values)

    @cached_property
    def levels(self) -> NDArray[np.int64]:
        """Each value's place among those that its parameter takes, from 0."""
        columns = (np.unique(column, return_inverse=True)[1] for column in self.values.T)
        return np.column_stack(list(columns)).astype(np.int64)

    def neighbours(self, place: int, most: int = 1) -> NDArray[np.int64]:
        """Configurations that differ from one in no more than ``most`` parameters."""
        differing = (self.levels != self.levels[place]).sum(1)
        return np.flatnonzero((differing > 0) & (differing <= most))


Evaluate = Callable[[Sequence[int]], Times]
"""Times of configurations, by their places in the space; NaN where one failed.

One that was tried before costs nothing. Raises ``BudgetSpentError`` once the budget is spent.
"""

Strategy = Callable[[SearchSpace, Evaluate, np.random.Generator], None]
"""Tries configurations, best hopes first, until the budget or the space is spent."""


def expected_improvement(mean: Times, deviation: Times, best: float) -> Times:
    """E[max(0, best - t)] for normal t: how much lower than ``best`` each may be expected to be."""
    ahead = (best - mean) / deviation
    below = np.array([math.erf(value) for value in ahead / math.sqrt(2)]) / 2 + 0.5
    density = np.exp(-(ahead**2) / 2) / math.sqrt(2 * math.pi)
    return np.asarray(deviation * (ahead * below + density))


class Trials:
    """``Evaluate``, with a memory and a budget."""

    def __init__(self, times_of: Callable[[list[int]], Sequence[float]], budget: int) -> None:
        self.order: list[int] = []  # distinct configurations, as they were tried
        self.times: list[float] = []
        self._times_of = times_of
        self._budget = budget
        self._known: dict[int, float] = {}

    def __call__(self, places: Sequence[int]) -> Times:
        asked = [int(place) for place in places]
        fresh = [place for place in dict.fromkeys(asked) if place not in self._known]
        allowed = fresh[: self._budget - len(self.order)]
        if allowed:  # all at once: they may be compiled side by side
            for place, time in zip(allowed, self._times_of(allowed), strict=True):
                self._known[place] = time
                self.order.append(place)
                self.times.append(time)
        if len(allowed) < len(fresh):
            raise BudgetSpentError
        return np.array([self._known[place] for place in asked])


def search(
    strategy: Strategy,
    space: SearchSpace,
    times_of: Callable[[list[int]], Sequence[float]],
    budget: int,
    seed: int,
) -> Trials:
    """What ``strategy`` tried within ``budget``, and the times; the same for the same seed."""
    trials = Trials(times_of, min(budget, len(space)))
    with contextlib.suppress(BudgetSpentError):
        strategy(space, trials, np.random.default_rng(seed))
    return trials
