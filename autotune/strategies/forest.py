"""A random forest over a space's parameters: extremely randomised trees. Needs scikit-learn.

Features are the parameters, and sums and differences of the logarithms of those that grow by
factors: products and quotients, as threads, bytes and tiles are. scikit-learn comes with the extra
``tconv[search]``.
"""

from __future__ import annotations

import importlib.util
import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autotune.strategies.common import SearchSpace, Times

TREES = 40
FEATURE_SHARE = 0.7  # that a tree looks at for each split
INSTALL = "python -m pip install 'tconv[search]'"


def available() -> bool:
    """Return whether scikit-learn is installed."""
    return importlib.util.find_spec("sklearn") is not None


def features(space: SearchSpace) -> NDArray[np.float32]:
    """Return the features of each configuration."""
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


def predictions(
    known: NDArray[np.float32], values: Times, asked: NDArray[np.float32], seed: int
) -> NDArray[np.float64]:
    """Return the predictions of each tree, (trees, asked), of a forest grown on ``known``."""
    from sklearn.ensemble import ExtraTreesRegressor

    model: Any = ExtraTreesRegressor(
        TREES, bootstrap=True, max_features=FEATURE_SHARE, random_state=seed
    )
    model.fit(known, values)
    return np.stack([tree.tree_.predict(asked)[:, 0] for tree in model.estimators_])
