"""From a problem to the kernel and tile that serve it.

In order: the user's own table of measured winners, the table shipped for this GPU, the
user's predictions for this architecture, and at last a rule of thumb.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from typing import Literal

from tconv.algorithms import ALGORITHMS, BOXED, DEPTHWISE, DIRECT, FEW_CHANNELS, GENERAL, GROUPED
from tconv.algorithms.common import power_of_two
from tconv.problem import PoolProblem, Problem
from tconv.table import Winner, load_table, shipped_table, user_table
from tconv.target import Target
from tconv.tile import Tile

# Of untuned layers, the first family that serves; the general one serves them all.
PREFERENCE = (DIRECT, DEPTHWISE, GROUPED, FEW_CHANNELS, BOXED, GENERAL)
FEW_PRODUCTS = 64  # of a pixel and tap: a quarter of the matrix unit's least block, 16 x 16

Ground = Literal["tuned", "shipped", "predicted", "heuristic"]


@dataclass(frozen=True)
class Choice:
    """A kernel, its tile, and why they were taken."""

    algorithm: str
    tile: Tile
    ground: Ground = field(default="heuristic", compare=False)


@cache
def _tables(name: str, arch: str) -> tuple[tuple[Ground, dict[str, Winner]], ...]:
    tables: list[tuple[Ground, dict[str, Winner]]] = [
        ("tuned", load_table(user_table(name))),
        ("shipped", load_table(shipped_table(name))),
    ]
    if name != arch:
        tables.append(("predicted", load_table(user_table(arch))))
    return tuple(tables)


@lru_cache(maxsize=4096)
def choose(problem: Problem | PoolProblem, target: Target) -> Choice:
    """The kernel and tile for ``problem`` on ``target``."""
    if isinstance(problem, PoolProblem):
        return Choice("max_pool", _pool_tile(problem, target))
    if target.backend != "interpreter":
        # Every kernel serves both layouts of a geometry: what won for one is a good guess.
        nhwc_key = replace(problem, layout="nhwc").key
        for ground, table in _tables(target.name, target.arch):
            winner = table.get(problem.key) or table.get(nhwc_key)
            if winner is not None and serves(winner.algorithm, problem, target):
                grounded: Ground = "predicted" if winner.kind == "predicted" else ground
                return Choice(winner.algorithm, winner.tile, grounded)
    return heuristic(problem, target)


def serves(algorithm: str, problem: Problem, target: Target) -> bool:
    """Whether kernel family ``algorithm`` exists and can compute ``problem``."""
    family = ALGORITHMS.get(algorithm)
    return family is not None and family.unserved(problem, target) is None


def heuristic(problem: Problem, target: Target) -> Choice:
    """The kernel and tile of a problem that was never tuned."""
    algorithm = GENERAL
    if target.backend != "interpreter":  # there, large blocks of addresses cost least
        shape = problem.geometry
        few = shape.group_in_channels * shape.group_out_channels <= FEW_PRODUCTS
        direct = few and shape.groups == 1
        preferred = PREFERENCE if direct else PREFERENCE[1:]
        algorithm = next(name for name in preferred if serves(name, problem, target))
    return Choice(algorithm, ALGORITHMS[algorithm].heuristic(problem, target))


def passed_over(problem: Problem, target: Target) -> dict[str, str]:
    """The kernel families that cannot serve ``problem``, and why."""
    reasons = {name: family.unserved(problem, target) for name, family in ALGORITHMS.items()}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def forget() -> None:
    """Read the tables anew at the next choice."""
    choose.cache_clear()
    _tables.cache_clear()
    for clear in _when_forgotten:
        clear()


_when_forgotten: list[Callable[[], None]] = []


def when_forgotten(clear: Callable[[], None]) -> None:
    """Have ``clear`` called by ``forget``: it empties a cache of what choices led to."""
    _when_forgotten.append(clear)


def _pool_tile(problem: PoolProblem, target: Target) -> Tile:
    """Outputs x channels; neighbouring threads take what lies side by side in memory."""
    shape = problem.geometry
    pixels = shape.batch * shape.out_h * shape.out_w
    if problem.direction == "dgrad":
        pixels = shape.batch * shape.in_h * shape.in_w
    if target.backend == "interpreter":
        block_n = power_of_two(shape.channels, 1, 128)
        return Tile(power_of_two(pixels, 16, (1 << 19) // block_n), block_n, 1, stages=1, warps=4)
    block_n = power_of_two(shape.channels, 1, 64) if problem.layout == "nhwc" else 1
    return Tile(power_of_two(pixels, 16, 1024 // block_n), block_n, 1, stages=1, warps=4)
