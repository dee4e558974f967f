"""The choice for an untuned layer: the least predicted time in the whole legal space.

All tiles of a family are costed at once, as arrays. The tuner compiles what it ranks and drops what
spills; here nothing is compiled, so that tiles are kept to what is known not to spill.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tconv.cost.constants import Constants, calibrated
from tconv.cost.model import Array, milliseconds_of
from tconv.cost.space import DEFAULT_SWIZZLE, Case, broken_rule, case_of, legal_grid
from tconv.cost.work import work_of
from tconv.families import FAMILIES, Family, serving
from tconv.families.demand import accumulator_registers, uses_wgmma
from tconv.problem import Problem
from tconv.target import Target
from tconv.tile import Choice, Count, Spread, Tile, Tiles

WGMMA_SUMS = 128  # a thread's registers, of 255
Merit = tuple[bool, float, bool]


@dataclass(frozen=True)
class Best:
    """The best choice of a problem, with predicted milliseconds."""

    choice: Choice
    milliseconds: float
    others: Array  # milliseconds of other choices that were asked for, in their order


def merits(problem: Problem, choices: Sequence[Choice], target: Target) -> list[Merit]:
    """Sort keys, the least is best: tiles that would spill come last, then by predicted time.

    Where the model sees no difference, the usual swizzle goes first.
    """
    found: list[Merit] = [(True, np.inf, True)] * len(choices)
    known = calibrated(target).constants
    for name in dict.fromkeys(choice.family for choice in choices):
        places = [place for place, each in enumerate(choices) if each.family == name]
        tiles = Tiles.of(choices[place].tile for place in places)
        keys = zip(*_keys(problem, FAMILIES[name], tiles, target, known), strict=True)
        for place, (spills, time, order) in zip(places, keys, strict=True):
            found[place] = bool(spills), float(time), bool(order)
    return found


def _keys(
    problem: Problem,
    family: Family,
    tiles: Tiles | Spread,
    target: Target,
    known: Constants,
    rivals: int = 0,
) -> tuple[Count, Array, Count]:
    """Return the columns of ``merits``; among the first ``rivals`` tiles only the best counts."""
    work = work_of(problem, family, tiles, target)
    if np.any(work.spill_bytes):  # the fastest is not always the best
        rivals = 0
    times = milliseconds_of(work, target, known, rivals)
    spills = work.each(work.spill_bytes) > 0
    return spills, times, tiles.swizzle != DEFAULT_SWIZZLE


def _first(spills: Count, times: Array, order: Count) -> int:
    """Return the place of the least row of such columns; among equals the first.

    >>> _first(np.array([True, False, False]), np.array([1.0, 3.0, 3.0]), np.array([0, 1, 0]))
    2
    """
    places = np.arange(len(times))
    for column in (spills, times, order):
        values = column[places]
        places = places[values == values.min()]
    return int(places[0])


def cheapest(problem: Problem, target: Target) -> Choice:
    """Return the model's best choice over all families."""
    return cheapest_beside((), problem, target).choice


def cheapest_beside(others: Sequence[Choice], problem: Problem, target: Target) -> Best:
    """Return ``cheapest`` with its predicted time, and the predicted times of ``others``."""
    known, times = calibrated(target).constants, np.empty(len(others))
    found = []
    for family in serving(problem, target):
        places = [place for place, each in enumerate(others) if each.family == family.name]
        beside = [others[place].tile for place in places]
        merit, choice, times[places] = _cheapest_of(problem, family, target, known, beside)
        found.append((merit, choice))
    assert found, "the general family serves every problem"
    merit, choice = min(found, key=lambda each: each[0])
    return Best(choice, merit[1], times)


def _cheapest_of(
    problem: Problem, family: Family, target: Target, known: Constants, beside: Sequence[Tile]
) -> tuple[Merit, Choice, Array]:
    """Return the best of ``family`` with its sort key, and the times of the tiles ``beside`` it."""
    case, thumb = case_of(problem, family, target), family.heuristic(problem, target)
    grid = legal_grid(case, lambda blocks: burden_allows(blocks, thumb, case))
    if not grid.legal.any():  # nothing legal is known not to spill
        spills, times, order = _keys(problem, family, Tiles.of([thumb, *beside]), target, known)
        choice = Choice(family.name, thumb)
        legal = broken_rule(choice, problem, target) is None
        merit = bool(spills[0]), float(times[0]), bool(order[0])
        return merit if legal else (True, np.inf, True), choice, times[1:]
    tiles = grid.deepest().spread
    rivals = len(tiles)
    if beside:
        tiles = tiles.join(Tiles.of(beside))
    spills, times, order = _keys(problem, family, tiles, target, known, rivals)
    place = _first(spills[:rivals], times[:rivals], order[:rivals])
    merit = bool(spills[place]), float(times[place]), bool(order[place])
    return merit, Choice(family.name, tiles.tile(place)), times[rivals:]


def burden_allows(tiles: Tiles, thumb: Tile, case: Case) -> Count:
    """Return whether a thread holds no more registers than are known not to spill.

    That is its sums, the operands of a step and the loads that bring them, each with an address.
    The rule of thumb's tiles are known not to spill (``tests/tconv/kernels/compile_all.py``), nor
    do tiles of twice its sums where the matrix unit reads both operands from shared memory, in 16
    bits, unless pixels lie side by side in the result: each sum is then stored at an address of
    its own.
    """
    problem, target, family = case.problem, case.target, case.family

    def held(tile: Tile | Tiles) -> tuple[Count, Count, Count]:
        threads = tile.warps * target.warp_size
        operands = (tile.block_m + tile.block_n) * tile.block_k / threads
        first, second = family.demand(problem, tile, target).loads
        sums = accumulator_registers(problem, tile, target, family.sums(problem, tile))
        return sums, operands, first + second

    sums, operands, loads = held(thumb)
    of_tiles = held(tiles)
    if problem.itemsize == 2:
        wgmma = uses_wgmma(tiles, problem, target)
        if problem.layout == "nhwc" or problem.direction == "wgrad":
            sums = np.where(wgmma, np.maximum(sums, WGMMA_SUMS), sums)
        more = np.where(wgmma, 1.5, 1.0)
        operands, loads = more * operands, more * loads
    return (of_tiles[0] <= sums) & (of_tiles[1] <= operands) & (of_tiles[2] <= loads)
