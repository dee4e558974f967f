"""The search space: which tiles of a kernel family are legal for a problem on a target.

Every rule is plain arithmetic with its derivation beside it; nothing is compiled here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from tconv.families import FAMILIES, Axes, Family, MatmulShape, matmul_shape, serves, serving
from tconv.families.demand import LEAST_DOT, REGISTERS_PER_THREAD, accumulator_registers
from tconv.geometry import power_of_two
from tconv.problem import Problem
from tconv.target import Target
from tconv.tile import FIELDS, Choice, Count, Tile, Tiles

MOST_THREADS = 1024  # a program, on NVIDIA and AMD alike
MMA_OUTPUTS = 16 * 8  # of the smallest matrix instruction that a warp issues (m16n8)
MOST_SUMS = 96  # a thread's, where the same thread loads for them
ROUNDS_OF_SPLITS = 8  # splits may fill the processors so many times; beyond, they only add traffic
HIP_STAGES = 3  # local memory of 64 KiB holds no deeper pipeline of useful tiles
DEFAULT_SWIZZLE = 8


@dataclass(frozen=True)
class Case:
    """What a rule looks at besides the tile."""

    problem: Problem
    family: Family
    matmul: MatmulShape
    target: Target

    def accumulators(self, tiles: Tiles) -> Count:
        """Registers of a thread that its sums take."""
        sums = self.family.sums(self.problem, tiles)
        return accumulator_registers(self.problem, tiles, self.target, sums)


def shared_bytes(problem: Problem, family: Family, tiles: Tile | Tiles, target: Target) -> Count:
    """Shared memory of the software pipeline, and of a result that is stored as a box.

    Each buffer holds block_m x block_k of one operand and block_k x block_n of the other.
    """
    if not family.matrix_unit:
        return 0 * tiles.block_m
    elements = tiles.block_m * tiles.block_k + tiles.block_k * tiles.block_n
    buffers = buffers_of(tiles, target)
    return buffers * elements * problem.itemsize + family.stored_bytes(problem, tiles)


def buffers_of(tiles: Tile | Tiles, target: Target) -> Count:
    """Buffers of a pipeline.

    From sm_90 the matrix unit reads a buffer that must outlive the step: ``stages`` buffers.
    Before that, and on AMD, operands pass through registers: one buffer fewer.
    """
    return tiles.stages if target.sm >= 90 else np.maximum(1, tiles.stages - 1)


def _dot(tiles: Tiles, case: Case) -> Count:
    if not case.family.matrix_unit:
        return tiles.block_m > 0
    return np.minimum(np.minimum(tiles.block_m, tiles.block_n), tiles.block_k) >= LEAST_DOT


def _within_geometry(tiles: Tiles, case: Case) -> Count:
    # A block beyond the next power of two of its extent only computes masked elements.
    if case.family.fits is not None:
        return case.family.fits(case.problem, tiles)
    m, n, k = (power_of_two(each, case.family.least_block) for each in case.matmul.extents)
    return (tiles.block_m <= m) & (tiles.block_n <= n) & (tiles.block_k <= k)


def _threads(tiles: Tiles, case: Case) -> Count:
    threads = tiles.warps * case.target.warp_size
    if not case.family.matrix_unit:  # a thread without a sum of its own repeats another's
        busy = case.family.sums(case.problem, tiles) >= threads
    else:  # a warp without a matrix instruction of its own repeats another warp's work
        busy = tiles.block_m * tiles.block_n >= tiles.warps * MMA_OUTPUTS
    return (threads <= MOST_THREADS) & busy


def _accumulator(tiles: Tiles, case: Case) -> Count:
    # 128 x 256 outputs over 128 threads are 256 registers each: one more than there are.
    limit = REGISTERS_PER_THREAD.get(case.target.backend, 1 << 30)
    if not case.family.matrix_unit:
        limit = MOST_SUMS
    return case.accumulators(tiles) <= limit


def _shared_memory(tiles: Tiles, case: Case) -> Count:
    # 3 stages of (128 x 64 + 64 x 128) fp16 are 98,304 B; sm_90 lends a program 232,448 B.
    taken = shared_bytes(case.problem, case.family, tiles, case.target)
    return taken <= case.target.shared_per_program


def _pipeline(tiles: Tiles, case: Case) -> Count:
    # A stage beyond the last step of the loop is never filled; the shallowest always may be.
    least = min(case.family.axes(case.problem).stages)
    return tiles.stages <= np.maximum(least, case.matmul.steps(tiles))


def _hip(tiles: Tiles, case: Case) -> Count:
    return (tiles.stages <= HIP_STAGES) | (case.target.backend != "hip")


def _splits(tiles: Tiles, case: Case) -> Count:
    # Each split takes ceil(steps / splits) steps; the last must still find one.
    steps = case.matmul.all_steps(tiles)
    last = (tiles.splits - 1) * np.ceil(steps / tiles.splits) < steps
    # One split is always allowed; more only while programs are wanting: wgrad's results are
    # few and its reduction long, the other passes' are not.
    rounds = ROUNDS_OF_SPLITS if case.problem.direction == "wgrad" else 1
    wanting = case.matmul.programs(tiles) <= rounds * case.target.processors
    return (tiles.splits == 1) | (last & wanting)


def _persistent(tiles: Tiles, case: Case) -> Count:
    # Programs that take tiles in turn must find more than one each.
    several = case.matmul.programs(tiles) > tiles.persistent * case.target.processors
    return (tiles.persistent == 0) | several


def _swizzle(tiles: Tiles, case: Case) -> Count:
    # With one column, or one row, of tiles every order is the same order: keep one name for it.
    # Split and persistent reductions keep to the usual order.
    least = np.minimum(case.matmul.column_tiles(tiles), case.matmul.row_tiles(tiles))
    plain = (least > 1) & (tiles.splits == 1) & (tiles.persistent == 0)
    return (tiles.swizzle == DEFAULT_SWIZZLE) | plain


Rule = Callable[[Tiles, Case], Count]  # which of the tiles it allows
RULES: tuple[tuple[str, Rule], ...] = (
    ("dot extents", _dot),
    ("within the geometry", _within_geometry),
    ("threads", _threads),
    ("accumulator registers", _accumulator),
    ("shared memory", _shared_memory),
    ("pipeline depth", _pipeline),
    ("AMD limits", _hip),
    ("splits", _splits),
    ("persistent", _persistent),
    ("swizzle", _swizzle),
)


@lru_cache(maxsize=64)
def all_tiles(axes: Axes) -> Tiles:
    """Every combination of the axes, legal or not; but no split reduction is persistent too."""
    grids = np.meshgrid(*(getattr(axes, name) for name in FIELDS), indexing="ij")
    tiles = Tiles(*(grid.ravel() for grid in grids))
    # A reduction is split where tiles are too few, and shared out in turn where they are many.
    return tiles.take((tiles.splits == 1) | (tiles.persistent == 0))


def case_of(problem: Problem, family: Family, target: Target) -> Case:
    """What the rules look at."""
    return Case(problem, family, matmul_shape(problem, family.name), target)


def legal_tiles(tiles: Tiles, case: Case) -> Tiles:
    """Those of ``tiles`` that keep every rule."""
    for _, allows in RULES:
        tiles = tiles.take(allows(tiles, case))
    return tiles


def broken_rule(choice: Choice, problem: Problem, target: Target) -> str | None:
    """The first rule that ``choice`` breaks, by name; None for a legal one."""
    if not serves(choice.family, problem, target):
        return "serves the problem"
    case, tiles = case_of(problem, FAMILIES[choice.family], target), Tiles.of([choice.tile])
    return next((name for name, allows in RULES if not allows(tiles, case)[0]), None)


def candidates(problem: Problem, target: Target) -> list[Choice]:
    """The legal choices for ``problem`` on ``target``."""
    found = []
    for family in serving(problem, target):
        legal = legal_tiles(all_tiles(family.axes(problem)), case_of(problem, family, target))
        found += [Choice(family.name, legal.tile(place)) for place in range(len(legal))]
    return found


def rules_report(problem: Problem, target: Target) -> list[tuple[str, int]]:
    """How many choices remain after each rule, over all families; the first counts them all."""
    report = Counter[str]()
    for family in serving(problem, target):
        case = case_of(problem, family, target)
        remaining = all_tiles(family.axes(problem))
        report["every combination"] += len(remaining)
        for name, allows in RULES:
            remaining = remaining.take(allows(remaining, case))
            report[name] += len(remaining)
    return list(report.items())
