"""A good choice for a layer that was never tuned: downhill on the cost model, from a rule of thumb.

Ranking a whole space takes seconds; a descent asks the model a few hundred times, which takes less
than the compilation of the kernel that it chooses.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields, replace
from itertools import combinations, product

from tconv.cost.estimate import estimated_resources
from tconv.cost.model import predict
from tconv.cost.space import DEFAULT_SWIZZLE, broken_rule
from tconv.families import FAMILIES, Axes, Family, serving
from tconv.families.demand import accumulator_registers, uses_wgmma
from tconv.problem import Problem
from tconv.target import Target
from tconv.tile import Choice, Tile

WGMMA_SUMS = 128  # a thread's registers, of 255
Merit = tuple[bool, float, bool]


def merit(problem: Problem, choice: Choice, target: Target) -> Merit:
    """What the least is best of: tiles that would spill come last, for compiling rejects them.

    Where the model sees no difference, the usual swizzle goes first.
    """
    spills = estimated_resources(choice, problem, target).spill_bytes > 0
    milliseconds = predict(problem, choice, target).milliseconds
    return spills, milliseconds, choice.tile.swizzle != DEFAULT_SWIZZLE


def cheapest(problem: Problem, target: Target) -> Choice:
    """The best choice that steps along the axes reach, from each family's rule of thumb."""
    best: tuple[Merit, Choice] | None = None
    for family in serving(problem, target):
        found = _descend(problem, family, target)
        if best is None or found[0] < best[0]:
            best = found
    assert best is not None, "the general family serves every problem"
    return best[1]


def _descend(problem: Problem, family: Family, target: Target) -> tuple[Merit, Choice]:
    """Steps to a better neighbour, while there is one."""
    axes = family.axes(problem)
    start = Choice(family.name, family.heuristic(problem, target))
    # A start that breaks a rule will do where nothing legal is near.
    legal = broken_rule(start, problem, target) is None
    best = merit(problem, start, target) if legal else (True, math.inf, True)
    choice, seen, improved = start, {start.tile}, True
    while improved:
        improved = False
        far = best[1] == math.inf
        for tile in _along(choice.tile, axes) if far else _neighbours(choice.tile, axes):
            step = Choice(family.name, tile)
            if tile in seen or _burden_exceeds(step, start, problem, target):
                continue
            if broken_rule(step, problem, target) is not None:
                continue
            seen.add(tile)
            value = merit(problem, step, target)
            if value < best:
                best, choice, improved = value, step, True
    return best, choice


def _burden_exceeds(step: Choice, thumb: Choice, problem: Problem, target: Target) -> bool:
    """Whether a thread of ``step`` may hold so much that it spills.

    The tuner compiles what it ranks and drops what spills; here nothing is compiled. The rule of
    thumb's tiles are known not to spill (``tests/tconv/kernels/compile_all.py``), nor do tiles of
    twice its sums where the matrix unit reads both operands from shared memory, in 16 bits.
    """

    def held(choice: Choice) -> tuple[float, float]:
        tile, threads = choice.tile, choice.tile.warps * target.warp_size
        operands = (tile.block_m + tile.block_n) * tile.block_k / threads
        sums = FAMILIES[choice.family].sums(problem, tile)
        return accumulator_registers(problem, tile, target, sums), operands

    sums, operands = held(thumb)
    if problem.itemsize == 2 and uses_wgmma(step.tile, problem, target):
        sums, operands = max(sums, WGMMA_SUMS), 1.5 * operands
    return held(step)[0] > sums or held(step)[1] > operands


def _along(tile: Tile, axes: Axes) -> Iterator[Tile]:
    """Any two fields at any value of their axes: the way back from where no rule is kept."""
    values = {each.name: getattr(axes, each.name) for each in fields(axes)}
    for first, second in combinations(values, 2):
        for one, other in product(values[first], values[second]):
            yield replace(tile, **{first: one, second: other})


def _neighbours(tile: Tile, axes: Axes) -> Iterator[Tile]:
    """One field a step up or down its axis, and pairs of blocks traded for each other."""
    steps: dict[str, list[int]] = {}
    for each in fields(axes):
        value, axis = getattr(tile, each.name), getattr(axes, each.name)
        reach = len(axis) if each.name == "splits" else 1  # waves make it rough: any may be best
        below = [other for other in axis if other < value][-reach:]
        above = [other for other in axis if other > value][:reach]
        steps[each.name] = below + above
        for other in steps[each.name]:
            yield replace(tile, **{each.name: other})
    for first, second in PAIRS:
        for one in steps[first]:
            for other in steps[second]:
                yield replace(tile, **{first: one, second: other})


# A larger block wants more warps, a deeper one fewer stages: one alone would be uphill.
PAIRS = (
    ("block_m", "block_n"), ("block_m", "warps"), ("block_n", "warps"), ("block_k", "stages"),
    ("block_m", "stages"), ("block_m", "splits"), ("block_n", "splits"), ("block_m", "block_k"),
)  # fmt: skip
