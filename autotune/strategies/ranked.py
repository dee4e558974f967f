"""The model's first choices: for kernels whose cost can be computed."""

from __future__ import annotations

import numpy as np

from autotune.strategies.common import Evaluate, SearchSpace


def ranked(space: SearchSpace, evaluate: Evaluate, generator: np.random.Generator) -> None:
    """Try configurations in the model's order.

    Raises:
        ValueError: where no model knows the kernel.
    """
    if space.order is None:
        raise ValueError("strategy 'ranked' follows a model's order, and this space has none")
    evaluate(space.order)
