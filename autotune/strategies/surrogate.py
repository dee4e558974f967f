"""A forest alone: the configuration that promises most, one after the other."""

from __future__ import annotations

import numpy as np

from autotune.strategies import forest
from autotune.strategies.common import Evaluate, SearchSpace
from autotune.strategies.forest import expected_improvement, features, scores

STARTS = 8


def surrogate(space: SearchSpace, evaluate: Evaluate, generator: np.random.Generator) -> None:
    """After random starts, the largest expected improvement each time. It may be caught.

    Raises:
        ImportError: where scikit-learn is not installed.
    """
    if not forest.available():
        raise ImportError(f"strategy 'surrogate' needs scikit-learn: {forest.INSTALL}")
    described = features(space)
    tried = generator.permutation(len(space))[:STARTS].tolist()
    times = evaluate(tried).tolist()
    while len(tried) < len(space):
        untried = np.setdiff1d(np.arange(len(space)), tried)
        place = int(generator.choice(untried))
        if not np.isnan(times).all():
            seed = int(generator.integers(1 << 31))
            promise = expected_improvement(
                described[tried], scores(np.array(times)), described[untried], seed
            )
            place = int(untried[promise.argmax()])
        times += evaluate([place]).tolist()
        tried.append(place)
