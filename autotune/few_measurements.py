"""Replay of a tuner that measures only a few of the recorded tiles.

The default search gets recorded times instead of measured ones, in a space of the timed tiles only.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from autotune.judge import predicted
from autotune.recordings import TILE, Recording
from autotune.strategies import DEFAULT, STRATEGIES
from autotune.strategies.common import SearchSpace, search

MEASURED = (4, 8, 16)


def space_of(recording: Recording) -> SearchSpace:
    """Return the timed tiles as a search space, with the model's figures."""
    rows = [[float(asdict(tile)[name]) for name in TILE] for tile in recording.tiles]
    times = predicted(recording)
    order = tuple(np.argsort(times, kind="stable").tolist())
    return SearchSpace(TILE, np.array(rows), order, times)


def shares_after(
    recording: Recording, counts: Sequence[int] = MEASURED, seed: int = 0, strategy: str = DEFAULT
) -> list[float]:
    """Return the best recorded time over the best one found after each number of measurements."""

    def times_of(places: list[int]) -> list[float]:
        return [float(recording.milliseconds[place]) for place in places]

    with warnings.catch_warnings():  # without scikit-learn the model's order is followed
        warnings.simplefilter("ignore")
        trials = search(STRATEGIES[strategy], space_of(recording), times_of, max(counts), seed)
    return [recording.best / min(trials.times[:count]) for count in counts]
