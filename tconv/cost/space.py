"""The search space: which tiles of a kernel family are legal for a problem on a target.

Every rule is plain arithmetic with its derivation beside it; nothing is compiled here.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from tconv.families import FAMILIES, Axes, Family, MatmulShape, matmul_shape, serves, serving
from tconv.families.demand import LEAST_DOT, accumulator_registers
from tconv.geometry import power_of_two
from tconv.problem import Problem
from tconv.target import Target
from tconv.tile import Choice, Tile

MOST_THREADS = 1024  # a program, on NVIDIA and AMD alike
MMA_OUTPUTS = 16 * 8  # of the smallest matrix instruction that a warp issues (m16n8)
# A thread's architectural registers: 255 on NVIDIA (CUDA C++ Programming Guide, "Compute
# Capabilities"); 512 vector and accumulation registers on CDNA3.
REGISTERS_PER_THREAD = {"cuda": 255, "hip": 512}
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

    def accumulators(self, tile: Tile) -> int:
        """Registers of a thread that its sums take."""
        sums = self.family.sums(self.problem, tile)
        return accumulator_registers(self.problem, tile, self.target, sums)


def shared_bytes(choice: Choice, problem: Problem, target: Target) -> int:
    """Shared memory of the software pipeline, and of a result that is stored as a box.

    Each buffer holds block_m x block_k of one operand and block_k x block_n of the other.
    From sm_90 the matrix unit reads a buffer that must outlive the step: ``stages`` buffers.
    Before that, and on AMD, operands pass through registers: one buffer fewer.
    """
    family, tile = FAMILIES[choice.family], choice.tile
    if not family.matrix_unit:
        return 0
    elements = tile.block_m * tile.block_k + tile.block_k * tile.block_n
    buffers = tile.stages if target.sm >= 90 else max(1, tile.stages - 1)
    return buffers * elements * problem.itemsize + family.stored_bytes(problem, tile)


def _dot(tile: Tile, case: Case) -> bool:
    least = min(tile.block_m, tile.block_n, tile.block_k)
    return not case.family.matrix_unit or least >= LEAST_DOT


def _within_geometry(tile: Tile, case: Case) -> bool:
    # A block beyond the next power of two of its extent only computes masked elements.
    family, blocks = case.family, (tile.block_m, tile.block_n, tile.block_k)
    if family.fits is not None:
        return family.fits(case.problem, tile)
    pairs = zip(blocks, case.matmul.extents, strict=True)
    return all(block <= power_of_two(extent, family.least_block) for block, extent in pairs)


def _threads(tile: Tile, case: Case) -> bool:
    # A warp without a matrix instruction of its own repeats another warp's work.
    if tile.warps * case.target.warp_size > MOST_THREADS:
        return False
    if not case.family.matrix_unit:  # a thread without a sum of its own repeats another's
        return case.family.sums(case.problem, tile) >= tile.warps * case.target.warp_size
    return tile.block_m * tile.block_n >= tile.warps * MMA_OUTPUTS


def _accumulator(tile: Tile, case: Case) -> bool:
    # 128 x 256 outputs over 128 threads are 256 registers each: one more than there are.
    limit = REGISTERS_PER_THREAD.get(case.target.backend, 1 << 30)
    if not case.family.matrix_unit:
        limit = MOST_SUMS
    return case.accumulators(tile) <= limit


def _shared_memory(tile: Tile, case: Case) -> bool:
    # 3 stages of (128 x 64 + 64 x 128) fp16 are 98,304 B; sm_90 lends a program 232,448 B.
    taken = shared_bytes(Choice(case.family.name, tile), case.problem, case.target)
    return taken <= case.target.shared_per_program


def _pipeline(tile: Tile, case: Case) -> bool:
    # A stage beyond the last step of the loop is never filled; the shallowest always may be.
    least = min(case.family.axes(case.problem).stages)
    return tile.stages <= max(least, case.matmul.steps(tile))


def _hip(tile: Tile, case: Case) -> bool:
    return case.target.backend != "hip" or tile.stages <= HIP_STAGES


def _splits(tile: Tile, case: Case) -> bool:
    # Each split takes ceil(steps / splits) steps; the last must still find one.
    if tile.splits == 1:
        return True
    steps = case.matmul.all_steps(tile)
    share = math.ceil(steps / tile.splits)
    if (tile.splits - 1) * share >= steps:
        return False
    # One split is always allowed; more only while programs are wanting: wgrad's results are
    # few and its reduction long, the other passes' are not.
    rounds = ROUNDS_OF_SPLITS if case.problem.direction == "wgrad" else 1
    return case.matmul.programs(tile) <= rounds * case.target.processors


def _persistent(tile: Tile, case: Case) -> bool:
    # Programs that take tiles in turn must find more than one each.
    if not tile.persistent:
        return True
    return case.matmul.programs(tile) > tile.persistent * case.target.processors


def _swizzle(tile: Tile, case: Case) -> bool:
    # With one column, or one row, of tiles every order is the same order: keep one name for it.
    # Split and persistent reductions keep to the usual order.
    if tile.swizzle == DEFAULT_SWIZZLE:
        return True
    tiles = (case.matmul.column_tiles(tile), case.matmul.row_tiles(tile))
    return min(tiles) > 1 and tile.splits == 1 and not tile.persistent


Rule = Callable[[Tile, Case], bool]
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


@lru_cache(maxsize=16)
def all_tiles(axes: Axes) -> tuple[Tile, ...]:
    """Every combination of the axes, legal or not; but no split reduction is persistent too."""
    fields = (axes.block_m, axes.block_n, axes.block_k, axes.stages, axes.warps)
    rest = (axes.swizzle, axes.splits, axes.persistent)
    tiles = (Tile(*values) for values in itertools.product(*fields, *rest))
    # A reduction is split where tiles are too few, and shared out in turn where they are many.
    return tuple(tile for tile in tiles if tile.splits == 1 or not tile.persistent)


def _case(problem: Problem, family: Family, target: Target) -> Case:
    return Case(problem, family, matmul_shape(problem, family.name), target)


def broken_rule(choice: Choice, problem: Problem, target: Target) -> str | None:
    """The first rule that ``choice`` breaks, by name; None for a legal one."""
    if not serves(choice.family, problem, target):
        return "serves the problem"
    case = _case(problem, FAMILIES[choice.family], target)
    return next((name for name, allows in RULES if not allows(choice.tile, case)), None)


def candidates(problem: Problem, target: Target) -> list[Choice]:
    """The legal choices for ``problem`` on ``target``."""
    found = []
    for family in serving(problem, target):
        case = _case(problem, family, target)
        rules: Sequence[Rule] = [allows for _, allows in RULES]
        tiles = all_tiles(family.axes(problem))
        legal = (tile for tile in tiles if all(allows(tile, case) for allows in rules))
        found += [Choice(family.name, tile) for tile in legal]
    return found


def rules_report(problem: Problem, target: Target) -> list[tuple[str, int]]:
    """How many choices remain after each rule, over all families; the first counts them all."""
    report = Counter[str]()
    for family in serving(problem, target):
        case = _case(problem, family, target)
        remaining = all_tiles(family.axes(problem))
        report["every combination"] += len(remaining)
        for name, allows in RULES:
            remaining = tuple(tile for tile in remaining if allows(tile, case))
            report[name] += len(remaining)
    return list(report.items())
