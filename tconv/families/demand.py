"""Estimated registers and instructions of a program's loop, before anything is compiled."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tconv.geometry import cdiv
from tconv.problem import Problem
from tconv.target import Target
from tconv.tile import Count, Tile, Tiles

# A thread's architectural registers: 255 on NVIDIA (CUDA C++ Programming Guide, "Compute
# Capabilities"); 512 vector and accumulation registers on CDNA3.
REGISTERS_PER_THREAD = {"cuda": 255, "hip": 512}
LEAST_DOT = 16  # the narrowest operand that tl.dot takes, on each axis
WGMMA_ROWS = 64  # of one warp group's matrix instruction; it reads both operands from shared memory
# Fitted to 126 compiled kernels (sm_90, layers of LeNet-5 and VGG-16, random tiles). A load
# includes its mask and address; wgrad recomputes both for each pixel of x at every step.
LOOP_INSTRUCTIONS = {"fprop": 60.0, "dgrad": 66.0, "wgrad": 70.0}
INSTRUCTIONS_PER_LOAD = {"fprop": (6.0, 6.0), "dgrad": (8.0, 6.0), "wgrad": (9.0, 34.0)}
INSTRUCTIONS_ACROSS_TAPS = 20.0  # of wgrad's load of one element, where a tile spans taps
REGISTERS_BESIDE_ACCUMULATOR = 40
REGISTERS_PER_LOAD = {"fprop": 4, "dgrad": 8, "wgrad": 4}
MOST_WAITING = 96  # registers of loads that are issued together
REGISTERS_ACROSS_TAPS = 7  # as Triton 3.6 compiles wgrad; later ones make do with 3


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
    by_warp = products / (16 * 8 * depth) / tile.warps
    by_group = np.maximum(1.0, products * problem.itemsize / (WGMMA_ROWS * tile.block_n * 32))
    return np.where(uses_wgmma(tile, problem, target), by_group * 4 / tile.warps, by_warp)


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
) -> Demand:
    """Return the demand of a product that gathers its operands by loads of ``widths`` elements.

    ``across_taps``: a tile of wgrad's columns spans filter taps, each element with its own mask.
    """
    direction = problem.direction
    per_first, per_other = INSTRUCTIONS_PER_LOAD[direction]
    per_second = np.where(across_taps, INSTRUCTIONS_ACROSS_TAPS, per_other)
    per_load = np.where(across_taps, REGISTERS_ACROSS_TAPS, REGISTERS_PER_LOAD[direction])
    first, second = gathered_loads(tile, target, widths)
    instructions = LOOP_INSTRUCTIONS[direction] + per_first * first + per_second * second
    instructions += matrix_instructions(tile, problem, target)
    sums = accumulator_registers(problem, tile, target, tile.block_m * tile.block_n)
    waiting = np.rint(per_load * (first + second))
    kept = sums + REGISTERS_BESIDE_ACCUMULATOR
    bytes_of = (widths[0] * problem.itemsize, widths[1] * problem.itemsize)
    # For the matrix unit many loads are issued in turns before anything is spilled; without it the
    # operands are held in registers.
    exact = problem.arithmetic in ("float32", "float64")
    least = kept + (waiting if exact else np.minimum(waiting, MOST_WAITING))
    return Demand(kept + waiting, instructions, least, (first, second), bytes_of)
