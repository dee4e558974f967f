"""Fit the cost model's constants to measured or recorded times.

Least squares of ln(predicted / measured): differences within a problem, weighted towards its best
tile, so that tiles are ordered well; and the ratios of all tiles, so that times are right. Outliers
count less (soft L1). Constants that do not affect the times stay as they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tconv.cost.constants import FITTED, Constants
from tconv.cost.model import milliseconds_of
from tconv.cost.work import Work
from tconv.target import Target

LEAST_RATIO = 1e-3  # of a constant to its upper bound, where its lower is 0
OVERALL = 0.3  # weight of an error of time, relative to an error of order within a problem
STRAY = 0.15  # error beyond which it counts linearly
INERTIA = 0.05  # penalty for moving a constant by a factor of e
EDGE = 1e-6
Array = NDArray[np.float64]


class FitError(ValueError):
    """Constants cannot be fitted; the message says why."""


@dataclass(frozen=True, eq=False)
class Observed:
    """Tiles timed on one target: their demands, times and problems."""

    target: Target
    work: Work
    milliseconds: Array
    problem: NDArray[np.intp]  # numbers from 0

    def take(self, places: NDArray[np.bool_] | NDArray[np.intp]) -> Observed:
        """Return the tiles at ``places``, with their problems renumbered from 0."""
        numbers = np.unique(self.problem[places], return_inverse=True)[1]
        return Observed(self.target, self.work.take(places), self.milliseconds[places], numbers)

    @property
    def best_share(self) -> Array:
        """Best time of each tile's problem over its own."""
        best = np.full(self.problem.max() + 1, np.inf)
        np.minimum.at(best, self.problem, self.milliseconds)
        return np.asarray(best[self.problem] / self.milliseconds)

    def log_ratios(self, known: Constants) -> Array:
        """Return ln(predicted / measured); a large number for a tile that does not fit."""
        times = milliseconds_of(self.work, self.target, known) + known.event_milliseconds
        return np.asarray(np.log(np.minimum(times, 1e6) / self.milliseconds))


def fit(observed: Observed, start: Constants, names: Sequence[str]) -> Constants:
    """Return constants with ``names`` fitted by least squares over their logarithms, in bounds.

    Raises:
        FitError: where scipy is missing.
    """
    try:
        from scipy.optimize import least_squares
    except ImportError as error:
        raise FitError(
            "fitting needs scipy, which comes with python -m pip install 'tconv[search]'"
        ) from error
    bounds = np.array(
        [(max(FITTED[n][0], FITTED[n][1] * LEAST_RATIO), FITTED[n][1]) for n in names]
    )
    low, high = np.log(bounds[:, 0]), np.log(bounds[:, 1])
    values = np.array(
        [max(getattr(start, name), bound[0]) for name, bound in zip(names, bounds, strict=True)]
    )
    begin = np.clip(np.log(values), low + EDGE, high - EDGE)
    problem = observed.problem
    weight = observed.best_share
    total = np.bincount(problem, weight)

    def constants(logs: Array) -> Constants:
        return replace(start, **dict(zip(names, map(float, np.exp(logs)), strict=True)))

    def residuals(logs: Array) -> Array:
        ratios = observed.log_ratios(constants(logs))
        mean = np.bincount(problem, ratios * weight) / total
        order = (ratios - mean[problem]) * weight
        return np.concatenate([order, OVERALL * ratios, INERTIA * (logs - begin)])

    found = least_squares(
        residuals, begin, bounds=(low, high), loss="soft_l1", f_scale=STRAY, diff_step=1e-2,
        max_nfev=40,
    )  # fmt: skip
    return constants(found.x)
