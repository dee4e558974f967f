"""Local search: from the best so far to its neighbours, and to crosses of the best."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autotune.strategies.common import Evaluate, SearchSpace

STARTS = 8  # random ones, before the first step
CROSS_SHARE = 0.4  # of the steps that mix two good configurations, rather than change one
ELITE = 3.0  # mean rank of the configurations that steps begin from
RESTART_SHARE = 0.1  # of the steps that go anywhere


def local(space: SearchSpace, evaluate: Evaluate, generator: np.random.Generator) -> None:
    """One configuration a step, none twice, until the space is spent. Failed ones come last."""
    untried = np.ones(len(space), dtype=bool)
    tried: list[int] = []
    times: list[float] = []

    def attempt(place: int) -> None:
        untried[place] = False
        (time,) = evaluate([place])
        tried.append(place)
        times.append(np.inf if np.isnan(time) else float(time))

    for place in generator.permutation(len(space))[:STARTS]:
        attempt(int(place))
    while untried.any():
        candidates = np.flatnonzero(untried)
        if generator.random() >= RESTART_SHARE:
            best = np.array(tried)[np.argsort(times)]
            first, second = (elite(best, generator, ELITE) for _ in range(2))
            near = space.neighbours(first)
            if generator.random() < CROSS_SHARE:
                near = space.crosses(first, second)
            near = near[untried[near]]
            candidates = near if len(near) else candidates
        attempt(int(generator.choice(candidates)))


def elite(best: NDArray[np.int64], generator: np.random.Generator, mean_rank: float) -> int:
    """One of the configurations ``best``, which are in order: the better, the likelier."""
    return int(best[min(int(generator.exponential(mean_rank)), len(best) - 1)])
