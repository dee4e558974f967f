"""The interface of a search strategy: a space of configurations, and a function that times them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.float64]
FEW_VALUES = 5  # up to which a parameter's values are codes or steps rather than sizes


class BudgetSpentError(Exception):
    """Raised when the budget is spent; it ends a strategy and is not a failure."""


@dataclass(frozen=True, eq=False)
class SearchSpace:
    """The configurations to choose from, one in each row."""

    names: tuple[str, ...]  # of the parameters
    values: NDArray[np.float64]  # (configurations, parameters)
    order: tuple[int, ...] | None = None  # a model's, if one knows the kernel: most promising first
    predicted: Times | None = None  # that model's time of each, in the unit of times

    def __len__(self) -> int:
        return len(self.values)

    @cached_property
    def levels(self) -> NDArray[np.int64]:
        """Return each value's place among the values of its parameter, from 0."""
        columns = (np.unique(column, return_inverse=True)[1] for column in self.values.T)
        return np.column_stack(list(columns)).astype(np.int64)

    @cached_property
    def oddness(self) -> NDArray[np.float64]:
        """Return log2 of the product of a configuration's odd parts: 0 for powers of two.

        Warps, cache lines and banks of memory come in powers of two, so that a size with a small
        odd part fits them. Sizes are the positive whole parameters of more than ``FEW_VALUES``
        values.
        """
        sizes = (column for column in self.values.T if is_size(column))
        return sum(map(log2_odd_part, sizes), np.zeros(len(self)))

    def neighbours(self, place: int, most: int = 1) -> NDArray[np.int64]:
        """Return the configurations that differ from one in at most ``most`` parameters."""
        differing = (self.levels != self.levels[place]).sum(1)
        return np.flatnonzero((differing > 0) & (differing <= most))


def is_size(column: NDArray[np.float64]) -> bool:
    """Return whether a parameter takes many positive whole values."""
    values = np.unique(column)
    return bool(values[0] > 0 and (values == np.round(values)).all() and len(values) > FEW_VALUES)


def log2_even_part(column: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the exponent of the largest power of two that divides each whole number.

    >>> log2_even_part(np.array([1.0, 8.0, 48.0])).tolist()
    [0.0, 3.0, 4.0]
    """
    whole = column.astype(np.int64)
    return np.log2((whole & -whole).astype(np.float64))


def log2_odd_part(column: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return log2 of each whole number without its factors of two.

    >>> log2_odd_part(np.array([1.0, 8.0, 48.0])).round(3).tolist()
    [0.0, 0.0, 1.585]
    """
    return np.log2(column) - log2_even_part(column)


Evaluate = Callable[[Sequence[int]], Times]
"""Times of configurations, by their places in the space; NaN where one failed.

One that was tried before costs nothing. Raises ``BudgetSpentError`` once the budget is spent.
"""

Strategy = Callable[[SearchSpace, Evaluate, np.random.Generator], None]
"""Tries configurations, the most promising first, until the budget or the space is spent."""


def expected_improvement(mean: Times, deviation: Times, best: float) -> Times:
    """Return E[max(0, best - t)] for normal t, the expected improvement on ``best``."""
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
    """Return the trials of ``strategy`` within ``budget``; the same for the same seed."""
    trials = Trials(times_of, min(budget, len(space)))
    with contextlib.suppress(BudgetSpentError):
        strategy(space, trials, np.random.default_rng(seed))
    return trials
