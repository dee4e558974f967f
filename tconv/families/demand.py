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
FRAGMENT_BYTES = 512  # of an operand, that a warp reads from shared memory by one instruction
FRAGMENT_ELEMENTS = 32  # the same of 32-bit elements that do not lie along the reduction


@dataclass(frozen=True)
class LoopCosts:
    """What a gathering loop costs besides its sums and products, fitted to compiled kernels.

    Costs of a load are those of the first and of the second operand, mask and address included.
    """

    instructions: float  # of a step
    per_load: tuple[float, float]
    registers: float
    registers_per_load: tuple[float, float]
    registers_per_row: float = 0.0  # and column of a warp's part of the tile
    per_product: float = 1.0  # instructions
    per_transposed: float = 0.0  # instructions for an element that wgmma cannot read as it lies
    registers_per_transposed: float = 0.0


# How a loop multiplies: by multiply-adds of threads, by matrix instructions on registers, or by
# wgmma, which reads shared memory.
Kind = Literal["exact", "mma", "wgmma", "tf32x3"]
Costs = Mapping[Kind, Mapping[Pass, LoopCosts]]
# Fitted to 900 kernels that Triton 3.7 compiled for sm_80 and sm_90, instructions to those of them
# with a loop. One of few, known steps is unrolled and takes some 30 instructions a step less.
# ``python -m benchmarks.estimates`` compares others.
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
MORE_ACROSS_TAPS = 4.0  # instructions of wgrad's load of one element, where a tile spans taps
SPARED_REGISTERS = 30  # that the compiler does without before it spills


@dataclass(frozen=True)
class Demand:
    """Registers and instructions that one thread of a kernel needs."""

    registers: Count
    instructions: Count  # of one step
    least_registers: Count | None = None  # without which it spills; None: all of ``registers``
    # Loads of one step for either operand, and the bytes of each; none: boxes, or no shared memory.
    loads: tuple[Count, Count] = (0.0, 0.0)
    load_bytes: tuple[Count, Count] = (16, 16)
    end_instructions: Count = 0.0  # once, behind the loop: sums across threads


def accumulator_words(problem: Problem) -> int:
    """32-bit registers of one accumulator: fp64 takes two, all else accumulates in fp32."""
    return 2 if problem.dtype == "float64" else 1


def accumulator_registers(
    problem: Problem, tile: Tile | Tiles, target: Target, sums: Count
) -> Count:
    """Registers of a thread that the ``sums`` of its program take."""
    return cdiv(sums * accumulator_words(problem), tile.warps * target.warp_size)


def uses_wgmma(tile: Tile | Tiles, problem: Problem, target: Target) -> Count:
    """Whether the matrix unit reads shared memory itself: a warp group, 64 rows, not fp64."""
    if target.sm < 90 or problem.arithmetic in ("float32", "float64"):
        return np.zeros(np.shape(tile.warps), dtype=bool)
    return (tile.warps % 4 == 0) & (tile.block_m >= WGMMA_ROWS)


def matrix_instructions(tile: Tile | Tiles, problem: Problem, target: Target) -> Count:
    """Multiply instructions of a warp in one step."""
    products = tile.block_m * tile.block_n * tile.block_k
    if problem.arithmetic == "float32" and target.backend == "cuda":
        return products / (tile.warps * target.warp_size)  # one multiply-add a thread
    depth = 32 // problem.itemsize  # m16n8k16 in 16 bits, k8 in tf32, k4 in fp64
    # Warps that a small tile has no rows or columns for compute what others compute too.
    by_warp = np.maximum(products / (16 * 8 * depth) / tile.warps, tile.block_k / depth)
    by_group = np.maximum(1.0, products * problem.itemsize / (WGMMA_ROWS * tile.block_n * 32))
    found = np.where(uses_wgmma(tile, problem, target), by_group * 4 / tile.warps, by_warp)
    return found * (3 if problem.arithmetic == "tf32x3" else 1)


def warp_grid(tiles: Tile | Tiles) -> tuple[Count, Count]:
    """(down, across) that Triton cuts a tile among warps, so that a warp's part is near square.

    Each warp reads its rows and its columns of the operands from shared memory. Warps are doubled
    down the longer side of what one would have, down rather than across.

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
    """Elements that one load fetches, up to 16 bytes, of ``neighbours`` that lie side by side."""
    widest = 16 // problem.itemsize
    return np.where(neighbours % block, np.gcd(widest, neighbours), np.minimum(widest, block))


def gathered_loads(
    tile: Tile | Tiles, target: Target, widths: tuple[Count, Count]
) -> tuple[Count, Count]:
    """Load instructions of a thread in one step, for either operand, by elements of a load."""
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
    """Return the demand of a product that gathers its operands by loads of ``widths`` elements.

    Args:
        problem: the pass.
        tile: the tile, or many.
        target: the GPU.
        widths: elements of one load of either operand.
        across_taps: whether a tile of wgrad's columns spans filter taps, each element with its own
            mask.
        costs: of the kernel's loop; by default those of tconv's kernels.
    """
    loads = gathered_loads(tile, target, widths)
    exact = problem.arithmetic in ("float32", "float64")
    kind: Kind = "exact" if exact else "tf32x3" if problem.arithmetic == "tf32x3" else "mma"
    registers, instructions = _of_loop(problem, tile, target, loads, costs, kind)
    wgmma = uses_wgmma(tile, problem, target)
    if np.any(wgmma) and kind == "mma":
        others = _of_loop(problem, tile, target, loads, costs, "wgmma")
        registers = np.where(wgmma, others[0], registers)
        instructions = np.where(wgmma, others[1], instructions)
    registers = np.rint(registers)
    instructions = instructions + np.where(across_taps, MORE_ACROSS_TAPS * loads[1], 0.0)
    bytes_of = (widths[0] * problem.itemsize, widths[1] * problem.itemsize)
    return Demand(registers, instructions, registers - SPARED_REGISTERS, loads, bytes_of)


def _of_loop(
    problem: Problem,
    tile: Tile | Tiles,
    target: Target,
    loads: tuple[Count, Count],
    known: Costs,
    kind: Kind,
) -> tuple[Count, Count]:
    """Return a thread's registers and its instructions in one step, of a loop of one kind."""
    costs = known[kind][problem.direction]
    registers = costs.registers + accumulator_registers(
        problem, tile, target, tile.block_m * tile.block_n
    )
    instructions: Count = costs.instructions
    for count, each, held in zip(loads, costs.per_load, costs.registers_per_load, strict=True):
        instructions = instructions + each * count
        registers = registers + held * count
    instructions += costs.per_product * matrix_instructions(tile, problem, target)
    if kind == "wgmma":
        turned = _transposed_elements(problem, tile) / (tile.warps * target.warp_size)
        instructions = instructions + costs.per_transposed * turned
        return registers + costs.registers_per_transposed * turned, instructions
    down, across = warp_grid(tile)
    rows, columns = tile.block_m / down, tile.block_n / across
    if kind != "exact":
        instructions = instructions + _fragments(problem, tile, rows, columns)
    return registers + costs.registers_per_row * (rows + columns), instructions


def _transposed_elements(problem: Problem, tile: Tile | Tiles) -> Count:
    """Return a step's elements that wgmma cannot read: 32 bits, not along the reduction."""
    if problem.itemsize != 4 or problem.direction == "fprop":
        return 0.0
    return (tile.block_n + tile.block_m * (problem.direction == "wgrad")) * tile.block_k


def _fragments(problem: Problem, tile: Tile | Tiles, rows: Count, columns: Count) -> Count:
    """Return a warp's reads of operands from shared memory, for its part of a tile, in one step."""
    along = problem.itemsize / FRAGMENT_BYTES
    apart = along if problem.itemsize < 4 else 1 / FRAGMENT_ELEMENTS
    first = apart if problem.direction == "wgrad" else along
    second = along if problem.direction == "fprop" else apart
    return tile.block_k * (first * rows + second * columns)
