"""From a problem to the kernel and tile that serve it.

In order: the user's own table of measured winners, the table shipped for this GPU, the
user's predictions for this architecture, and at last what the cost model finds best.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, lru_cache

from tconv.algorithms import ALGORITHMS, GENERAL
from tconv.algorithms.common import power_of_two
from tconv.choice import Choice, Ground, serves
from tconv.cost.constants import calibrated
from tconv.cost.descent import cheapest
from tconv.cost.neighbour import neighbours_choice
from tconv.problem import PoolProblem, Problem
from tconv.table import Winner, load_table, shipped_table, user_table
from tconv.target import Target
from tconv.tile import Tile


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
        for tune in _tuners:
            if (found := tune(problem, target)) is not None:
                return found
    return heuristic(problem, target)


def heuristic(problem: Problem, target: Target) -> Choice:
    """The kernel and tile of a problem that was never tuned: what the cost model finds best.

    Where the GPU's calibration found tuned neighbours a better guide, the nearest one's winner.
    In the interpreter no model holds: large blocks of addresses cost least there.
    """
    if target.backend == "interpreter":
        return Choice(GENERAL, ALGORITHMS[GENERAL].heuristic(problem, target))
    if calibrated(target.name).untuned == "neighbour":
        tables = (table for _, table in reversed(_tables(target.name, target.arch)))
        winners = {key: winner for table in tables for key, winner in table.items()}
        if (found := neighbours_choice(problem, winners, target)) is not None:
            return found
    return cheapest(problem, target)


def forget() -> None:
    """Read the tables anew at the next choice."""
    choose.cache_clear()
    calibrated.cache_clear()
    _tables.cache_clear()
    for clear in _when_forgotten:
        clear()


Tuner = Callable[[Problem, Target], "Choice | None"]
_tuners: list[Tuner] = []


def when_untuned(tune: Tuner) -> Callable[[], None]:
    """Ask ``tune`` for the choice of a problem that no table holds; None leaves it to the model.

    Returns a function that takes this back. What was chosen before is chosen anew.
    """

    def undo() -> None:
        _tuners[:] = [other for other in _tuners if other is not tune]
        forget()

    _tuners.insert(0, tune)
    forget()
    return undo


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
