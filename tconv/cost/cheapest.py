"""The choice for a layer that was never tuned: the least predicted time of the whole legal space.

All tiles of a family are costed at once, as arrays. The tuner compiles what it ranks and drops what
spills; here nothing is compiled, so that tiles are kept to what is known not to spill.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tconv.cost.constants import Constants, calibrated
from tconv.cost.model import Array, milliseconds_of
from tconv.cost.space import DEFAULT_SWIZZLE, Case, broken_rule, case_of, legal_grid
from tconv.cost.work import work_of
from tconv.families import FAMILIES, Family, serving
from tconv.families.demand import accumulator_registers, uses_wgmma
from tconv.problem import Problem
from tconv.target import Target
from tconv.tile import Choice, Count, Tile, Tiles

WGMMA_SUMS = 128  # a thread's registers, of 255
Merit = tuple[bool, float, bool]


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
    problem: Problem, family: Family, tiles: Tiles, target: Target, known: Constants
) -> tuple[Count, Array, Count]:
    """The columns of ``merits``."""
    work = work_of(problem, family, tiles, target)
    times = milliseconds_of(work, target, known)
    return work.spill_bytes > 0, times, tiles.swizzle != DEFAULT_SWIZZLE


def cheapest(problem: Problem, target: Target) -> Choice:
    """The best choice by the model, of all families."""
    known = calibrated(target).constants
    found = [_cheapest_of(problem, family, target, known) for family in serving(problem, target)]
    assert found, "the general family serves every problem"
    return min(found, key=lambda each: each[0])[1]


def _cheapest_of(
    problem: Problem, family: Family, target: Target, known: Constants
) -> tuple[Merit, Choice]:
    case, thumb = case_of(problem, family, target), family.heuristic(problem, target)
    grid = legal_grid(case, lambda blocks: burden_allows(blocks, thumb, case))
    if not grid.legal.any():  # nothing legal is known not to spill
        choice = Choice(family.name, thumb)
        legal = broken_rule(choice, problem, target) is None
        return merits(problem, [choice], target)[0] if legal else (True, np.inf, True), choice
    tiles = grid.deepest().legal_tiles
    spills, times, order = _keys(problem, family, tiles, target, known)
    place = int(np.lexsort((order, times, spills))[0])
    merit = bool(spills[place]), float(times[place]), bool(order[place])
    return merit, Choice(family.name, tiles.tile(place))


def burden_allows(tiles: Tiles, thumb: Tile, case: Case) -> Count:
    """Whether a thread holds no more than is known not to spill.

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
        loads = np.add(*family.demand(problem, tile, target).loads)
        sums = accumulator_registers(problem, tile, target, family.sums(problem, tile))
        return sums, operands, loads

    sums, operands, loads = held(thumb)
    if problem.itemsize == 2:
        wgmma = uses_wgmma(tiles, problem, target)
        if problem.layout == "nhwc" or problem.direction == "wgrad":
            sums = np.where(wgmma, np.maximum(sums, WGMMA_SUMS), sums)
        operands = np.where(wgmma, 1.5 * operands, operands)
        loads = np.where(wgmma, 1.5 * loads, loads)
    kept = held(tiles)
    return (kept[0] <= sums) & (kept[1] <= operands) & (kept[2] <= loads)
