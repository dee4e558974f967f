"""Search spaces computed by formula, with what makes recorded ones hard."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from autotune.strategies.common import SearchSpace

Times = NDArray[np.float64]
MOST_THREADS, MOST_PIXELS = 1024, 8192  # of a block; more fail


def grid(**axes: Iterable[int]) -> SearchSpace:
    values = np.array(list(itertools.product(*axes.values())), dtype=np.float64)
    return SearchSpace(tuple(axes), values)


def powers_of_two() -> tuple[SearchSpace, Times]:
    """A block width of 16 to 256 that costs 2.5 times unless it is a power of two."""
    space = grid(block_x=range(16, 257, 16), block_y=[1, 2, 4, 8, 16], tile=[1, 2, 3, 4],
                 padded=[0, 1])  # fmt: skip
    block_x, block_y, tile, padded = space.values.T
    threads, log_width = block_x * block_y, np.log2(block_x)
    times = 1 + 0.25 * np.log2(threads / 128) ** 2 + 0.3 * (tile - 2) ** 2 + 0.15 * padded
    times += 0.1 * np.abs(log_width - 6)
    times *= np.where(log_width == np.round(log_width), 1.0, 2.5)
    return space, np.where(threads > MOST_THREADS, np.nan, times)


def deceptive_switches() -> tuple[SearchSpace, Times]:
    """Two switches that are slow one by one and on average; together they hold the optimum.

    The best of the other configurations reaches 0.71 of the optimum.
    """
    space = grid(block_x=range(32, 257, 32), block_y=[1, 2, 4, 8, 16], tile_x=[1, 2, 3, 4],
                 tile_y=[1, 2, 3, 4], cached=[0, 1], shared=[0, 1])  # fmt: skip
    block_x, block_y, tile_x, tile_y, cached, shared = space.values.T
    threads = block_x * block_y
    plain = 1.4 + 0.2 * np.log2(threads / 256) ** 2 + 0.2 * (4 - tile_y) + 0.1 * (tile_x - 1)
    plain += 0.3 * shared
    both = 1 + 0.25 * np.log2(threads / 128) ** 2 + 0.5 * (tile_x - 1) + 0.4 * np.abs(tile_y - 3)
    times = np.where(cached == 1, np.where(shared == 1, both, 2 * plain), plain)
    failed = (threads > MOST_THREADS) | (threads * tile_x * tile_y > MOST_PIXELS)
    return space, np.where(failed, np.nan, times)
