"""Configurations in random order, which every other strategy must beat."""

from __future__ import annotations

import numpy as np

from autotune.strategies.common import Evaluate, SearchSpace


def random(space: SearchSpace, evaluate: Evaluate, generator: np.random.Generator) -> None:
    """Try all configurations, in random order."""
    evaluate(generator.permutation(len(space)).tolist())
