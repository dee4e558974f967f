"""Search strategies: which configurations to try, within a budget. One file, one function each.

They see parameters and times, never a kernel, so a recorded space serves as well as a GPU.
"""

from __future__ import annotations

from autotune.strategies import combined, corrected, exhaustive, random, ranked
from autotune.strategies.common import Strategy

DEFAULT = "combined"
STRATEGIES: dict[str, Strategy] = {
    "combined": combined.combined,
    "corrected": corrected.corrected,
    "exhaustive": exhaustive.exhaustive,
    "random": random.random,
    "ranked": ranked.ranked,
}
