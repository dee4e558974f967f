"""A Gaussian process on log time, for spaces of parameters of which only the values are known.

The kernel is a Matern 5/2 with a weight for each coordinate (automatic relevance determination;
Rasmussen and Williams, "Gaussian Processes for Machine Learning", 2006, chapters 4 and 5). The
weights are not fitted but sampled from their posterior by Metropolis steps (Snoek, Larochelle and
Adams, "Practical Bayesian Optimization", 2012, section 3.2): with few measurements one best fit is
overconfident. Needs numpy alone.
"""

from __future__ import annotations

import itertools
import math
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autotune.strategies.common import (
    FEW_VALUES,
    SearchSpace,
    Times,
    is_size,
    log2_even_part,
    log2_odd_part,
)

Matrix = NDArray[np.float64]

GROWTH = 4.0  # largest / smallest value from which a parameter's logarithm is taken
WEIGHT_DEVIATION = 1.5  # prior of ln weight, mean 0; coordinates span [0, 1]
NOISE, NOISE_DEVIATION = -5.0, 1.0  # prior of ln (noise variance / signal variance)
AMPLITUDE_COUNT = 4.0  # observations that the prior of the signal variance, mean 1, counts for
WIDE, NARROW = 1.0, 0.4  # deviations of a Metropolis step, taken in turn by chance
CHANGED_SHARE = 0.25  # of the hyperparameters that one step moves, on average
SLOW_WEIGHT = 0.3  # of log time above the median: the fast end has to be known best
FAILED_BEYOND = 0.1  # how far a failed configuration lies above the slowest, in log time


def coordinates(space: SearchSpace) -> Matrix:
    """Return (configurations, coordinates), each coordinate from 0 to 1.

    A parameter that grows by factors counts by its logarithm. The products of two such parameters,
    as threads and tiles are, are coordinates too, and so are the even and the odd part of a size.
    Unordered codes have one coordinate for each code.
    """
    columns: list[Matrix] = []
    grown: list[Matrix] = []
    for column in space.values.T:
        values = np.unique(column)
        if values[0] <= 0 and 2 < len(values) <= FEW_VALUES:
            columns += [(column == value) / math.sqrt(2) for value in values]
            continue
        if values[0] > 0 and values[-1] >= GROWTH * values[0]:
            grown.append(np.log2(column))
            columns.append(_unit(grown[-1]))
        else:
            columns.append(_unit(column))
        if is_size(column):
            columns += [_unit(log2_even_part(column)), _unit(log2_odd_part(column))]
    columns += [_unit(one + other) for one, other in itertools.combinations(grown, 2)]
    kept = [column for column in columns if np.ptp(column) > 0]
    return np.column_stack(kept) if kept else np.zeros((len(space), 1))


def scores(times: Times) -> Times:
    """Return log times of mean 0 and deviation 1, slow and failed ones moved nearer.

    >>> scores(np.array([1.0, np.e, np.nan])).round(2).tolist()
    [-1.4, 0.55, 0.85]
    """
    succeeded = ~np.isnan(times)
    logs = np.log(np.where(succeeded, times, 1.0))
    median = float(np.median(logs[succeeded]))
    logs = np.where(logs > median, median + SLOW_WEIGHT * (logs - median), logs)
    logs = np.where(succeeded, logs, logs[succeeded].max() + FAILED_BEYOND)
    deviation = float(logs.std())
    return np.asarray((logs - logs.mean()) / (deviation if deviation > 0 else 1.0))


def one_thread() -> AbstractContextManager[object]:
    """Keep the linear algebra on one core: for matrices this small its threads only wait.

    Needs threadpoolctl, which scikit-learn brings; without it only the speed differs.
    """
    libraries = _libraries()
    return nullcontext() if libraries is None else libraries.limit(limits=1)


@cache
def _libraries() -> Any:
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return None
    return ThreadpoolController()


class GaussianProcess:
    """A model of scores, whose hyperparameters wander over their posterior from fit to fit.

    They are the ln weight of each coordinate and the ln of the relative noise. ``trend`` is the
    variance of a line and parabola along each coordinate, relative to that of the Matern kernel.
    """

    def __init__(self, dimensions: int, trend: float, generator: np.random.Generator) -> None:
        self._trend = trend
        self._generator = generator
        self._state = np.append(generator.normal(0, NARROW, dimensions), NOISE)

    def fit(self, known: Matrix, score: Times, steps: int) -> None:
        """Take Metropolis steps on the posterior given ``score`` at ``known``."""
        draw = self._generator
        density, factor = self._log_posterior(self._state, known, score)
        for _ in range(steps):
            moved = draw.random(len(self._state)) < CHANGED_SHARE
            moved[draw.integers(len(self._state))] = True
            step = draw.normal(0, draw.choice((WIDE, NARROW)), len(self._state))
            proposed = self._state + moved * step
            other, other_factor = self._log_posterior(proposed, known, score)
            if math.log(1 - draw.random()) < other - density:
                self._state, density, factor = proposed, other, other_factor
        self._known, self._inverse = known, np.linalg.inv(factor)
        self._white = self._inverse @ score
        self._variance = _signal_variance(self._white)

    def predict(self, asked: Matrix) -> tuple[Times, Times]:
        """Return mean and standard deviation at ``asked``."""
        projected = self._inverse @ self._covariance(self._known, asked, self._state)
        prior = 1 + self._trend * (_trend(asked) ** 2).sum(1)
        left = np.maximum(prior - np.einsum("ij,ij->j", projected, projected), 1e-8)
        return self._white @ projected, np.sqrt(self._variance * left)

    def _covariance(self, one: Matrix, other: Matrix, state: Times) -> Matrix:
        local = _matern(one, other, state[:-1])
        return local + self._trend * (_trend(one) @ _trend(other).T)

    def _log_posterior(self, state: Times, known: Matrix, score: Times) -> tuple[float, Matrix]:
        """Return the log posterior up to a constant, without signal variance, and the factor."""
        covariance = self._covariance(known, known, state)
        covariance[np.diag_indices_from(covariance)] += math.exp(state[-1]) + 1e-6
        factor = np.linalg.cholesky(covariance)
        white = np.linalg.solve(factor, score)
        likelihood = -np.log(np.diag(factor)).sum() - 0.5 * (
            len(score) + AMPLITUDE_COUNT
        ) * math.log(_signal_variance(white))
        prior = ((state[:-1] / WEIGHT_DEVIATION) ** 2).sum()
        prior += ((state[-1] - NOISE) / NOISE_DEVIATION) ** 2
        return float(likelihood - prior / 2), np.asarray(factor, dtype=np.float64)


def _matern(one: Matrix, other: Matrix, ln_weights: Times) -> Matrix:
    """Return (1 + d + d^2/3) exp(-d), d = sqrt(5) times the weighted distance."""
    scale = np.sqrt(5 * np.exp(ln_weights))
    one, other = one * scale, other * scale
    squares = -2 * (one @ other.T)
    squares += (one * one).sum(1)[:, None]
    squares += (other * other).sum(1)
    np.maximum(squares, 0, out=squares)
    distance = np.sqrt(squares)
    squares /= 3
    squares += distance
    squares += 1
    np.negative(distance, out=distance)
    squares *= np.exp(distance, out=distance)
    return np.asarray(squares)


def _trend(places: Matrix) -> Matrix:
    """Return two Legendre polynomials of each coordinate, scaled to a mean variance near 1."""
    centred = 2 * places - 1
    scale = math.sqrt(places.shape[1])
    return np.hstack([centred * math.sqrt(3), (3 * centred**2 - 1) / 2 * math.sqrt(5)]) / scale


def _signal_variance(white: Times) -> float:
    return float((white @ white + AMPLITUDE_COUNT) / (len(white) + AMPLITUDE_COUNT))


def _unit(column: Matrix) -> Matrix:
    """Return values shifted and scaled to [0, 1]; zeros if nothing varies."""
    spread = float(np.ptp(column))
    return np.asarray((column - column.min()) / (spread if spread > 0 else 1.0))
