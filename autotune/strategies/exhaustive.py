"""Every configuration, in the order of the space."""

from __future__ import annotations

import numpy as np

from autotune.strategies.common import Evaluate, SearchSpace


def exhaustive(space: SearchSpace, evaluate: Evaluate, generator: np.random.Generator) -> None:
    """Try all configurations; the random generator is unused."""
    evaluate(range(len(space)))
