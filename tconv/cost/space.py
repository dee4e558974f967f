"""The search space: for each kernel family its axes, and which tiles are legal.

Every rule is plain arithmetic with its derivation beside it; nothing is compiled here.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from tconv.algorithms import (
    BOXED,
    DEPTHWISE,
    DIRECT,
    FEW_CHANNELS,
    GENERAL,
    GROUPED,
    IN_PLACE,
    depthwise,
)
from tconv.algorithms.common import pack_of
from tconv.choice import Choice, serves
from tconv.cost.product import Product, Strips, cdiv, power_of_two, product_of
from tconv.problem import Problem
from tconv.target import Target
from tconv.tile import Tile


@dataclass(frozen=True)
class Axes:
    """The values that each field of a tile may take."""

    block_m: tuple[int, ...]
    block_n: tuple[int, ...] = (16, 32, 64, 128, 256)
    block_k: tuple[int, ...] = (16, 32, 64, 128)
    stages: tuple[int, ...] = (1, 2, 3, 4, 5)
    warps: tuple[int, ...] = (2, 4, 8)
    swizzle: tuple[int, ...] = (1, 4, 8)
    splits: tuple[int, ...] = (1,)
    persistent: tuple[int, ...] = (0,)


PIXEL_AXES = Axes(
    block_m=(16, 32, 64, 128, 256, 512, 1024), splits=(1, 2, 4, 8, 16), persistent=(0, 1, 2)
)
# wgrad: few rows of tiles, so that no order of programs helps the L2; the reduction is long.
WGRAD_AXES = Axes(
    block_m=(16, 32, 64, 128, 256),
    stages=(2, 3, 4),
    swizzle=(8,),
    splits=(1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 512),
)


def _pointer_axes(problem: Problem) -> Axes:
    return WGRAD_AXES if problem.direction == "wgrad" else PIXEL_AXES


# Channels are the rows of the matrix instruction, and a slice of them a line of shared memory.
TMA_AXES = Axes(
    block_m=(32, 64, 128, 256),
    block_n=(64, 128, 256),
    stages=(2, 3, 4, 5, 6),
    warps=(4, 8),
    splits=PIXEL_AXES.splits,
    persistent=PIXEL_AXES.persistent,
)
TMA_WGRAD_AXES = replace(
    WGRAD_AXES, block_m=(64, 128, 256), block_k=(32, 64, 128), stages=(2, 3, 4, 5), warps=(4, 8)
)


def _tma_axes(problem: Problem) -> Axes:
    if problem.direction == "wgrad":
        return TMA_WGRAD_AXES
    shape = problem.geometry
    if problem.direction == "fprop" and shape.stride_h == 2:  # slices must divide the channels
        divide = tuple(k for k in TMA_AXES.block_k if shape.in_channels % k == 0)
        return replace(TMA_AXES, block_k=divide)
    return TMA_AXES


# Without the matrix unit: any block will do, and no pipeline hides what the L1 delivers.
DIRECT_AXES = Axes(
    block_m=(64, 128, 256, 512, 1024),
    block_n=(1, 2, 4, 8, 16, 32),
    block_k=(1,),
    stages=(1,),
    swizzle=(8,),
)
DIRECT_WGRAD_AXES = replace(
    DIRECT_AXES,
    block_m=(1, 2, 4, 8, 16),
    block_k=(64, 128, 256, 512),
    splits=WGRAD_AXES.splits,
)


def _direct_axes(problem: Problem) -> Axes:
    return DIRECT_WGRAD_AXES if problem.direction == "wgrad" else DIRECT_AXES


# Strips of results by channels: neighbours lie along channels, or down the columns' lines.
DEPTHWISE_AXES = Axes(
    block_m=(1, 2, 4, 8, 16, 32, 64, 128, 256),
    block_n=(1, 2, 4, 8, 16, 32, 64, 128),
    block_k=(1, 2, 4, 8),
    stages=(1,),
    swizzle=(8,),
)


def _depthwise_axes(problem: Problem) -> Axes:
    if problem.direction == "wgrad":
        return replace(DEPTHWISE_AXES, splits=WGRAD_AXES.splits)
    return DEPTHWISE_AXES


def _grouped_axes(problem: Problem) -> Axes:
    return replace(WGRAD_AXES, swizzle=(8,)) if problem.direction == "wgrad" else replace(
        PIXEL_AXES, swizzle=(8,), splits=(1,), persistent=(0,)
    )  # fmt: skip


AXES: dict[str, Callable[[Problem], Axes]] = {
    GENERAL: _pointer_axes,
    IN_PLACE: _pointer_axes,
    FEW_CHANNELS: _pointer_axes,
    DEPTHWISE: _depthwise_axes,
    GROUPED: _grouped_axes,
    DIRECT: _direct_axes,
    BOXED: _tma_axes,
}

SCALAR = (DIRECT, DEPTHWISE)  # the families without the matrix unit
LEAST_BOXED = 64  # rows of the matrix instruction that reads them
LEAST_DOT = 16  # the narrowest operand that tl.dot takes, on each axis
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
    algorithm: str
    product: Product
    target: Target

    def choice(self, tile: Tile) -> Choice:
        return Choice(self.algorithm, tile)


def accumulator_words(problem: Problem) -> int:
    """32-bit registers of one accumulator: fp64 takes two, all else accumulates in fp32."""
    return 2 if problem.dtype == "float64" else 1


def shared_bytes(choice: Choice, problem: Problem, target: Target) -> int:
    """Shared memory of the software pipeline, and of a result that is stored as a box.

    Each buffer holds block_m x block_k of one operand and block_k x block_n of the other.
    From sm_90 the matrix unit reads a buffer that must outlive the step: ``stages`` buffers.
    Before that, and on AMD, operands pass through registers: one buffer fewer.
    """
    if choice.algorithm in SCALAR:
        return 0
    tile = choice.tile
    elements = tile.block_m * tile.block_k + tile.block_k * tile.block_n
    buffers = tile.stages if target.sm >= 90 else max(1, tile.stages - 1)
    stored = 0
    if choice.algorithm == BOXED:
        stored = BARRIERS
        if problem.direction != "wgrad" and problem.layout == "nhwc" and tile.splits == 1:
            stored += tile.block_m * tile.block_n * problem.itemsize
    return buffers * elements * problem.itemsize + stored


BARRIERS = 64  # bytes, at most: eight for each stage


def sums(choice: Choice, problem: Problem) -> int:
    """Sums that a program keeps: its outputs; directly, wgrad's for every pixel of a step."""
    tile = choice.tile
    if choice.algorithm == DEPTHWISE:
        along, _ = depthwise.axes(problem)
        kept = along.filter if problem.direction == "wgrad" else tile.block_k
        return tile.block_m * tile.block_n * kept
    each = tile.block_k if choice.algorithm == DIRECT and problem.direction == "wgrad" else 1
    return tile.block_m * tile.block_n * each


def accumulator_registers(choice: Choice, problem: Problem, target: Target) -> int:
    """Registers a thread that its sums take."""
    words = sums(choice, problem) * accumulator_words(problem)
    return cdiv(words, choice.tile.warps * target.warp_size)


def _dot(tile: Tile, case: Case) -> bool:
    return case.algorithm in SCALAR or min(tile.block_m, tile.block_n, tile.block_k) >= LEAST_DOT


def _within_geometry(tile: Tile, case: Case) -> bool:
    # A block beyond the next power of two of its extent only computes masked elements.
    extents = (case.product.rows, case.product.columns, case.product.depth)
    blocks = (tile.block_m, tile.block_n, tile.block_k)
    if isinstance(case.product, Strips):
        extents = (case.product.rows, case.product.columns, case.product.along)
    if case.algorithm == GROUPED:
        return blocks_of_pack(tile, case.problem)
    least = {BOXED: LEAST_BOXED, DIRECT: 1, DEPTHWISE: 1}.get(case.algorithm, LEAST_DOT)
    return all(b <= max(least, power_of_two(e)) for b, e in zip(blocks, extents, strict=True))


def blocks_of_pack(tile: Tile, problem: Problem) -> bool:
    """Whether a tile is as wide and deep as its pack of groups, and no more."""
    shape = problem.geometry
    wgrad = problem.direction == "wgrad"
    pack = pack_of(problem, min(tile.block_m, tile.block_n) if wgrad else tile.block_n)
    filters = max(LEAST_DOT, power_of_two(pack * shape.group_out_channels))
    channels = max(LEAST_DOT, power_of_two(pack * shape.group_in_channels))
    if wgrad:
        return (tile.block_m, tile.block_n) == (filters, channels)
    if problem.direction == "dgrad":
        filters, channels = channels, filters
    return (tile.block_n, tile.block_k) == (filters, channels)


def _threads(tile: Tile, case: Case) -> bool:
    # A warp without a matrix instruction of its own repeats another warp's work.
    if tile.warps * case.target.warp_size > MOST_THREADS:
        return False
    if case.algorithm in SCALAR:  # a thread without a sum of its own repeats another's
        return sums(case.choice(tile), case.problem) >= tile.warps * case.target.warp_size
    return tile.block_m * tile.block_n >= tile.warps * MMA_OUTPUTS


def _accumulator(tile: Tile, case: Case) -> bool:
    # 128 x 256 outputs over 128 threads are 256 registers each: one more than there are.
    limit = REGISTERS_PER_THREAD.get(case.target.backend, 1 << 30)
    if case.algorithm in SCALAR:
        limit = MOST_SUMS
    return accumulator_registers(case.choice(tile), case.problem, case.target) <= limit


def _shared_memory(tile: Tile, case: Case) -> bool:
    # 3 stages of (128 x 64 + 64 x 128) fp16 are 98,304 B; sm_90 lends a program 232,448 B.
    taken = shared_bytes(case.choice(tile), case.problem, case.target)
    return taken <= case.target.shared_per_program


def _pipeline(tile: Tile, case: Case) -> bool:
    # A stage beyond the last step of the loop is never filled; the shallowest always may be.
    least = min(AXES[case.algorithm](case.problem).stages)
    return tile.stages <= max(least, case.product.steps(tile))


def _hip(tile: Tile, case: Case) -> bool:
    return case.target.backend != "hip" or tile.stages <= HIP_STAGES


def _splits(tile: Tile, case: Case) -> bool:
    # Each split takes ceil(steps / splits) steps; the last must still find one.
    if tile.splits == 1:
        return True
    steps = case.product.all_steps(tile)
    share = math.ceil(steps / tile.splits)
    if (tile.splits - 1) * share >= steps:
        return False
    # One split is always allowed; more only while programs are wanting: wgrad's results are
    # few and its reduction long, the other passes' are not.
    rounds = ROUNDS_OF_SPLITS if case.problem.direction == "wgrad" else 1
    return case.product.programs(tile) <= rounds * case.target.processors


def _persistent(tile: Tile, case: Case) -> bool:
    # Programs that take tiles in turn must find more than one each.
    if not tile.persistent:
        return True
    return case.product.programs(tile) > tile.persistent * case.target.processors


def _swizzle(tile: Tile, case: Case) -> bool:
    # With one column, or one row, of tiles every order is the same order: keep one name for it.
    # Split and persistent reductions keep to the usual order.
    if tile.swizzle == DEFAULT_SWIZZLE:
        return True
    tiles = (case.product.column_tiles(tile), case.product.row_tiles(tile))
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


def _case(problem: Problem, algorithm: str, target: Target) -> Case:
    return Case(problem, algorithm, product_of(problem, algorithm), target)


def broken_rule(choice: Choice, problem: Problem, target: Target) -> str | None:
    """The first rule that ``choice`` breaks, by name; None for a legal one."""
    if not serves(choice.algorithm, problem, target):
        return "serves the problem"
    case = _case(problem, choice.algorithm, target)
    return next((name for name, allows in RULES if not allows(choice.tile, case)), None)


def families(problem: Problem, target: Target) -> list[str]:
    """The kernel families that serve ``problem`` on ``target``."""
    return [name for name in AXES if serves(name, problem, target)]


def candidates(problem: Problem, target: Target) -> list[Choice]:
    """The legal choices for ``problem`` on ``target``."""
    found = []
    for algorithm in families(problem, target):
        case = _case(problem, algorithm, target)
        rules: Sequence[Rule] = [allows for _, allows in RULES]
        tiles = all_tiles(AXES[algorithm](problem))
        legal = (tile for tile in tiles if all(allows(tile, case) for allows in rules))
        found += [Choice(algorithm, tile) for tile in legal]
    return found


def rules_report(problem: Problem, target: Target) -> list[tuple[str, int]]:
    """How many choices remain after each rule, over all families; the first counts them all."""
    report = Counter[str]()
    for algorithm in families(problem, target):
        case = _case(problem, algorithm, target)
        remaining = all_tiles(AXES[algorithm](problem))
        report["every combination"] += len(remaining)
        for name, allows in RULES:
            remaining = tuple(tile for tile in remaining if allows(tile, case))
            report[name] += len(remaining)
    return list(report.items())
