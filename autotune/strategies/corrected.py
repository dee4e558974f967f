"""A model's times, corrected by what was measured: for kernels whose cost can be computed.

A random forest learns the factor by which the model errs, depending on the parameters. The next
configuration is the one with the largest expected improvement by the model's figure times that
factor. There is so little to learn that a few measurements suffice. Needs scikit-learn.
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from autotune.strategies import forest
from autotune.strategies.common import Evaluate, SearchSpace, Times, expected_improvement
from autotune.strategies.forest import features, predictions
from autotune.strategies.ranked import ranked

STARTS = 6  # first choices of the model, tried before it is corrected
TRUST = 0.6  # in what the forest says of one place; the rest is the mean of all corrections
LEAST_SPREAD = 0.05  # deviation of a prediction, ln: trees agree too soon
FAILED_BEYOND = 0.1  # how far a failed configuration lies above the slowest, ln
WORTH_ASKING = 1.5  # ln of how far behind the best prediction one may be, if the model is right


def corrected(space: SearchSpace, evaluate: Evaluate, generator: np.random.Generator) -> None:
    """Try configurations until the space is spent; the first in the model's order.

    Raises:
        ValueError: where no model knows the kernel.
    """
    if space.order is None or space.predicted is None:
        raise ValueError("strategy 'corrected' corrects a model's figures, and this space has none")
    if not forest.available():
        warnings.warn(
            "scikit-learn is not installed, so that the model's order is followed as it stands: "
            f"{forest.INSTALL}",
            stacklevel=2,
        )
        return ranked(space, evaluate, generator)
    base = _logs(space.predicted)
    described = np.column_stack([features(space), base]).astype(np.float32)
    untried = np.ones(len(space), dtype=bool)
    tried: list[int] = []
    logs: list[float] = []  # NaN where one failed

    def attempt(places: list[int]) -> None:
        untried[places] = False
        logs.extend(np.log(evaluate(places)).tolist())
        tried.extend(places)

    attempt(list(space.order[:STARTS]))
    while untried.any():
        rest = np.flatnonzero(untried)
        if np.isnan(logs).all():
            attempt([int(rest[base[rest].argmin()])])
            continue
        known = np.array(logs)
        known = np.where(np.isnan(known), np.nanmax(known) + FAILED_BEYOND, known)
        off = known - base[tried]
        asked = rest[base[rest] <= base[rest].min() + WORTH_ASKING + 3 * off.std()]
        each = predictions(
            described[tried], off, described[asked], int(generator.integers(1 << 31))
        )
        factor = TRUST * each + (1 - TRUST) * off.mean()
        guess = base[asked] + factor
        spread = guess.std(0) + LEAST_SPREAD
        promise = expected_improvement(guess.mean(0), spread, float(np.nanmin(logs)))
        attempt([int(asked[promise.argmax()])])


def _logs(predicted: Times) -> NDArray[np.float64]:
    """Return logarithms; configurations that are impossible by the model come after all others."""
    finite = np.isfinite(predicted) & (predicted > 0)
    logs = np.log(np.where(finite, predicted, 1.0))
    return np.where(finite, logs, logs[finite].max(initial=0.0) + 2 * WORTH_ASKING)
