"""Estimated registers and instructions of a program's loop, before anything is compiled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tconv.geometry import Pass, cdiv
from tconv.problem import Problem
from tconv.target import Target
from tconv.tile import Count, Tile, Tiles

# A thread's architectural registers: 255 on NVIDIA (CUDA C++ Programming Guide, "Compute
# Capabilities"); 512 vector and accumulation registers on CDNA3.
REGISTERS_PER_THREAD = {"cuda": 255, "hip": 512}
LEAST_DOT = 16  # the narrowest operand that tl.dot takes, on each axis
WGMMA_ROWS = 64  # of one warp group's matrix instruction; it reads both operands from shared memory
# What a warp reads of an operand from shared memory by one instruction: bytes, or elements of 32
# bits where neighbours in memory do not lie along the reduction.
FRAGMENT_BYTES = 512
FRAGMENT_ELEMENTS = 32


@dataclass(frozen=True)
class LoopCosts:
    """Instructions of a step and registers of a thread in one kind of gathering loop.

    Pairs are for the first and the second operand. A load includes its mask and address. A product
    is one multiply instruction. A transposed element is one that wgmma cannot read as it lies.
    """

    instructions: float  # besides those of loads and products
    per_load: tuple[float, float]
    registers: float  # besides those of sums and loads
    registers_per_load: tuple[float, float]
    registers_per_row: float = 0.0  # for each row and each column of a warp's part of the tile
    per_product: float = 1.0
    per_transposed: float = 0.0
    registers_per_transposed: float = 0.0


# How a loop multiplies: by multiply-adds of threads ("exact"), by matrix instructions on registers
# ("mma", or three for each product in "tf32x3"), or by wgmma, which reads shared memory.
Loop = Literal["exact", "mma", "wgmma", "tf32x3"]
Costs = Mapping[Loop, Mapping[Pass, LoopCosts]]
# Fitted to 900 kernels that Triton 3.7 compiled for sm_80 and sm_90; the instructions only to those
# that keep their loop. A loop of few, known steps is unrolled, and then takes some 30 instructions
# a step less. ``python -m benchmarks.estimates`` compares other kernels with these estimates.
GATHERED: Costs = {
    "exact": {
        "fprop": LoopCosts(53, (4.4, 3.7), 62, (12.8, 2.0), 0.3, per_product=1.08),
        "dgrad": LoopCosts(57, (6.6, 3.0), 62, (12.4, 3.2), 0.1, per_product=1.08),
        "wgrad": LoopCosts(80, (5.0, 2.4), 68, (1.9, 0.6), per_product=1.08),
    },
    "mma": {
        "fprop": LoopCosts(37, (5.7, 2.0), 42, (4.4, 3.2), 0.23),
        "dgrad": LoopCosts(39, (5.2, 2.0), 52, (6.6, 3.1), 0.2),
        "wgrad": LoopCosts(48, (10.0, 2.0), 47, (6.8, 1.0), 0.4),
    },
    "wgmma": {
        "fprop": LoopCosts(51, (7.6, 3.2), 44, (3.3, 0.7)),
        "dgrad": LoopCosts(57, (7.5, 2.2), 43, (6.0, 2.7), per_transposed=0.7,
                           registers_per_transposed=1.1),
        "wgrad": LoopCosts(63, (5.0, 0.8), 52, (0.9, 0.7), per_transposed=1.8,
                           registers_per_transposed=1.7),
    },
    "tf32x3": {
        "fprop": LoopCosts(20, (11.0, 7.0), 50, (10.9, 13.3), 0.26, per_product=6.8),
        "dgrad": LoopCosts(31, (13.6, 1.0), 41, (8.9, 13.7), 0.63, per_product=6.8),
        "wgrad": LoopCosts(40, (3.0, 6.0), 54, (14.3, 2.0), 0.75, per_product=6.8),
    },
}  # fmt: skip
MORE_ACROSS_TAPS = 4.0  # further instructions of wgrad's load of one element, if a tile spans taps
SPARED_REGISTERS = 30  # the compiler does without these before it spills


@dataclass(frozen=True)
class Demand:
    """Registers and instructions that one thread of a kernel needs."""

    registers: Count
    instructions: Count  # of one step
    least_registers: Count | None = None  # with fewer, it spills; None: the same as ``registers``
    # Loads of one step for either operand, and the bytes of each; none: boxes, or no shared memory.
    loads: tuple[Count, Count] = (0.0, 0.0)
    load_bytes: tuple[Count, Count] = (16, 16)
    end_instructions: Count = 0.0  # once, behind the loop: sums across threads


def accumulator_words(problem: Problem) -> int:
    """Return the 32-bit registers of one sum: two for fp64, one for all else, summed in fp32."""
    return 2 if problem.dtype == "float64" else 1


def accumulator_registers(
    problem: Problem, tile: Tile | Tiles, target: Target, sums: Count
) -> Count:
    """Return the registers of a thread that hold its share of the program's ``sums``."""
    return cdiv(sums * accumulator_words(problem), tile.warps * target.warp_size)


def uses_wgmma(tile: Tile | Tiles, problem: Problem, target: Target) -> Count:
    """Whether wgmma multiplies: from sm_90 on, for whole warp groups and 64 rows, if not exact."""
    if target.sm < 90 or problem.arithmetic in ("float32", "float64"):
        return np.zeros(np.shape(tile.warps), dtype=bool)
    return (tile.warps % 4 == 0) & (tile.block_m >= WGMMA_ROWS)


def matrix_instructions(tile: Tile | Tiles, problem: Problem, target: Target) -> Count:
    """Return the multiply instructions of a warp in one step."""
    products = tile.block_m * tile.block_n * tile.block_k
    if problem.arithmetic == "float32" and target.backend == "cuda":
        return products / (tile.warps * target.warp_size)  # a multiply-add of each thread
    depth = 32 // problem.itemsize  # m16n8k16 in 16 bits, k8 in tf32, k4 in fp64
    # Where a small tile has no rows or columns left for a warp, it repeats another warp's products.
    # Two warp groups that share 64 rows each multiply half of the columns, by as many instructions.
    by_warp = products / (16 * 8 * depth) / tile.warps
    by_group = tile.block_m * tile.block_k / (WGMMA_ROWS * depth) * 4 / tile.warps
    found = np.where(uses_wgmma(tile, problem, target), by_group, by_warp)
    return np.maximum(found, tile.block_k / depth) * (3 if problem.arithmetic == "tf32x3" else 1)


def warp_grid(tiles: Tile | Tiles) -> tuple[Count, Count]:
    """Return how many warps Triton places (down, across) a tile; each warp's part is near square.

    Each warp reads its rows and its columns of the operands from shared memory. Triton doubles the
    warps along the longer side of a warp's part, and downwards if the sides are equal.

    >>> tiles = Tiles.of([Tile(128, 64, 32, warps=4), Tile(64, 256, 32, warps=4)])
    >>> down, across = warp_grid(tiles)
    >>> down.tolist(), across.tolist()
    ([4, 1], [1, 4])
    """
    taller = np.clip(_log2(tiles.block_m / tiles.block_n), -MOST_DOUBLINGS, MOST_DOUBLINGS)
    down = _WARPS_DOWN[taller + MOST_DOUBLINGS, _log2(tiles.warps)]
    return down, tiles.warps // down


def _log2(value: Count) -> Count:
    """Return the base-2 logarithm of powers of two."""
    return np.frexp(value)[1] - 1


def _warps_down(taller: int, doublings: int) -> int:
    """Return how many of 2^``doublings`` warps go down a tile of height 2^``taller`` x width."""
    down = across = 0
    while down + across < doublings:
        if taller + across >= down:
            down += 1
        else:
            across += 1
    return 1 << down


MOST_DOUBLINGS = 10  # of one warp: a processor holds fewer than 1024
_WARPS_DOWN = np.array(
    [
        [_warps_down(taller, doublings) for doublings in range(MOST_DOUBLINGS + 1)]
        for taller in range(-MOST_DOUBLINGS, MOST_DOUBLINGS + 1)
    ]
)


def load_width(problem: Problem, neighbours: int, block: Count) -> Count:
    """Return how many of ``neighbours`` elements side by side one load fetches: up to 16 bytes."""
    widest = 16 // problem.itemsize
    return np.where(neighbours % block, np.gcd(widest, neighbours), np.minimum(widest, block))


def gathered_loads(
    tile: Tile | Tiles, target: Target, widths: tuple[Count, Count]
) -> tuple[Count, Count]:
    """Return a thread's loads of each operand in one step, from the elements of each load."""
    threads = tile.warps * target.warp_size
    first = tile.block_m * tile.block_k / widths[0] / threads
    return first, tile.block_k * tile.block_n / widths[1] / threads


def gathered_demand(
    problem: Problem,
    tile: Tile | Tiles,
    target: Target,
    widths: tuple[Count, Count],
    across_taps: Count = False,
    costs: Costs = GATHERED,
) -> Demand:
    """Return the demand of a kernel that gathers both operands of a matrix product.

    Args:
        problem: the pass.
        tile: the tile, or many.
        target: the GPU.
        widths: elements that one load fetches, for the first and the second operand.
        across_taps: whether the columns of wgrad's tile span filter taps, so that each element has
            its own mask.
        costs: the costs of the kernel's loop; by default those of tconv's kernels.
    """
    loads = gathered_loads(tile, target, widths)
    exact = problem.arithmetic in ("float32", "float64")
    loop: Loop = "exact" if exact else "tf32x3" if problem.arithmetic == "tf32x3" else "mma"
    registers, instructions = _loop_demand(problem, tile, target, loads, costs, loop)
    wgmma = uses_wgmma(tile, problem, target)
    if np.any(wgmma) and loop == "mma":
        others = _loop_demand(problem, tile, target, loads, costs, "wgmma")
        registers = np.where(wgmma, others[0], registers)
        instructions = np.where(wgmma, others[1], instructions)
    registers = np.rint(registers)
    instructions = instructions + np.where(across_taps, MORE_ACROSS_TAPS * loads[1], 0.0)
    bytes_of = (widths[0] * problem.itemsize, widths[1] * problem.itemsize)
    return Demand(registers, instructions, registers - SPARED_REGISTERS, loads, bytes_of)


def _loop_demand(
    problem: Problem,
    tile: Tile | Tiles,
    target: Target,
    loads: tuple[Count, Count],
    costs: Costs,
    loop: Loop,
) -> tuple[Count, Count]:
    """Return a thread's registers, and its instructions in one step, for one kind of loop."""
    cost = costs[loop][problem.direction]
    registers = cost.registers + accumulator_registers(
        problem, tile, target, tile.block_m * tile.block_n
    )
    instructions: Count = cost.instructions
    for count, each, held in zip(loads, cost.per_load, cost.registers_per_load, strict=True):
        instructions = instructions + each * count
        registers = registers + held * count
    instructions = instructions + cost.per_product * matrix_instructions(tile, problem, target)
    if loop == "wgmma":
        transposed = _transposed_elements(problem, tile) / (tile.warps * target.warp_size)
        instructions = instructions + cost.per_transposed * transposed
        return registers + cost.registers_per_transposed * transposed, instructions
    down, across = warp_grid(tile)
    rows, columns = tile.block_m / down, tile.block_n / across
    if loop != "exact":
        instructions = instructions + _fragments(problem, tile, rows, columns)
    return registers + cost.registers_per_row * (rows + columns), instructions


def _transposed_elements(problem: Problem, tile: Tile | Tiles) -> Count:
    """Return how many elements of a step wgmma cannot read as they lie.

    It reads elements of 32 bits only from operands that lie along the reduction in memory.
    """
    if problem.itemsize != 4 or problem.direction == "fprop":
        return 0.0
    return (tile.block_n + tile.block_m * (problem.direction == "wgrad")) * tile.block_k


def _fragments(problem: Problem, tile: Tile | Tiles, rows: Count, columns: Count) -> Count:
    """Return a warp's reads of shared memory in one step, for ``rows`` x ``columns`` of a tile."""
    along = problem.itemsize / FRAGMENT_BYTES
    apart = along if problem.itemsize < 4 else 1 / FRAGMENT_ELEMENTS
    first = apart if problem.direction == "wgrad" else along
    second = along if problem.direction == "fprop" else apart
    return tile.block_k * (first * rows + second * columns)
