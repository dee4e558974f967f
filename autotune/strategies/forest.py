"""A surrogate: extremely randomised trees on log time, and the improvement they promise.

Features are the parameters, and sums and differences of the logarithms of those that grow by
factors: products and quotients, as threads, bytes and tiles are. Needs scikit-learn, the extra
``tconv[search]``.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autotune.strategies.common import SearchSpace, Times

TREES = 40
FEATURE_SHARE = 0.7  # that a tree looks at for each split
LEAST_SPREAD = 0.05  # of a prediction, in standard deviations of log time: trees agree too soon
SLOW_WEIGHT = 0.5  # of what lies above the median: the fast end is to be known best
FAILED_BEYOND = 0.1  # that a failed configuration lies above the slowest, in log time


def features(space: SearchSpace) -> NDArray[np.float32]:
    """Of each configuration."""
    columns, grown = [], []
    for column in space.values.T:
        low, high = column.min(), column.max()
        if low == high:
            continue
        if low > 0 and high >= 4 * low:
            grown.append(np.log2(column))
        columns.append(grown[-1] if low > 0 and high >= 4 * low else column)
    for one, other in itertools.combinations(grown, 2):
        columns += [one + other, one - other]
    if not columns:
        columns = [np.zeros(len(space))]
    return np.column_stack(columns).astype(np.float32)


def scores(times: Times) -> Times:
    """Log times with mean 0 and deviation 1; slow and failed ones drawn nearer.

    >>> scores(np.array([1.0, np.e, np.nan])).round(2).tolist()
    [-1.41, 0.64, 0.77]
    """
    succeeded = ~np.isnan(times)
    logs = np.log(np.where(succeeded, times, 1.0))
    logs = np.where(succeeded, logs, logs[succeeded].max() + FAILED_BEYOND)
    median = float(np.median(logs[succeeded]))
    logs = np.where(logs > median, median + SLOW_WEIGHT * (logs - median), logs)
    deviation = float(logs.std())
    return np.asarray((logs - logs.mean()) / (deviation if deviation > 0 else 1.0))


def expected_improvement(
    known: NDArray[np.float32], score: Times, asked: NDArray[np.float32], seed: int
) -> Times:
    """How much better than the best of ``score`` each of ``asked`` may be expected to be."""
    return improvement(predictions(known, score, asked, seed), float(score.min()))


def predictions(
    known: NDArray[np.float32], values: Times, asked: NDArray[np.float32], seed: int
) -> NDArray[np.float64]:
    """(trees, asked): what each tree of a forest grown on ``known`` says."""
    from sklearn.ensemble import ExtraTreesRegressor

    model: Any = ExtraTreesRegressor(
        TREES, bootstrap=True, max_features=FEATURE_SHARE, random_state=seed
    )
    model.fit(known, values)
    return np.stack([tree.tree_.predict(asked)[:, 0] for tree in model.estimators_])


def improvement(each: NDArray[np.float64], best: float) -> Times:
    """The expected improvement on ``best``, where trees say ``each`` (trees, configurations)."""
    from scipy.stats import norm

    spread = each.std(0) + LEAST_SPREAD
    ahead = (best - each.mean(0)) / spread
    return np.asarray(spread * (ahead * norm.cdf(ahead) + norm.pdf(ahead)))
