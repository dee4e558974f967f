"""Replay a search strategy on recorded times, without running a kernel."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from autotune.recorded import RecordedSpace, read_space
from autotune.strategies import STRATEGIES
from autotune.strategies.common import Strategy, search

# numbers of evaluations after which the best so far is reported
MILESTONES = (10, 25, 50, 100, 200)


@dataclass(frozen=True)
class Replay:
    """How close a strategy came to the optimum, averaged over repeats."""

    strategy: str
    space: str
    repeats: int
    seed: int
    # optimum / best so far, by number of evaluations; 0 before a success
    optimum_share: dict[int, float]
    curve: tuple[float, ...]  # the same share after each evaluation

    def as_json(self) -> dict[str, object]:
        share = {str(count): round(value, 6) for count, value in self.optimum_share.items()}
        return {"strategy": self.strategy, "space": self.space, "repeats": self.repeats,
                "seed": self.seed, "optimum_share": share}  # fmt: skip


def shares(recorded: RecordedSpace, strategy: Strategy, budget: int, seed: int) -> list[float]:
    """Return the share of the optimum after each evaluation of one run.

    A strategy that ends early keeps its best result for the rest of the budget.
    """

    def times_of(places: list[int]) -> list[float]:
        return [float(recorded.times[place]) for place in places]

    trials = search(strategy, recorded.space, times_of, budget, seed)
    times = np.array(trials.times + [np.nan] * (budget - len(trials.times)))
    best = np.fmin.accumulate(np.where(np.isnan(times), np.inf, times))
    return [float(share) for share in recorded.optimum / best]


def _one(path: Path, strategy: str, budget: int, seed: int) -> list[float]:
    return shares(read_space(path), STRATEGIES[strategy], budget, seed)


def replay(
    path: Path, strategy: str, budget: int, repeats: int, seed: int, workers: int | None = None
) -> Replay:
    """Run a strategy ``repeats`` times in parallel, with consecutive seeds from ``seed``."""
    read_space(path)  # reports errors in the file once, before the runs
    run = partial(_one, path, strategy, budget)
    seeds = range(seed, seed + repeats)
    workers = min(workers or os.cpu_count() or 1, repeats)
    if workers == 1:
        runs = [run(each) for each in seeds]
    else:
        with ProcessPoolExecutor(workers) as pool:
            runs = list(pool.map(run, seeds))
    curve = np.mean(runs, axis=0)
    counts = [count for count in MILESTONES if count <= budget] or [budget]
    noted = {count: float(curve[count - 1]) for count in counts}
    return Replay(strategy, path.name, repeats, seed, noted, tuple(map(float, curve)))
