"""Estimated registers and instructions of a program's loop, before anything is compiled."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tconv.geometry import cdiv
from tconv.problem import Problem
from tconv.target import Target
from tconv.tile import Tile

LEAST_DOT = 16  # the narrowest operand that tl.dot takes, on each axis
WGMMA_ROWS = 64  # of one warp group's matrix instruction; it reads both operands from shared memory
# Fitted to 126 compiled kernels (sm_90, layers of LeNet-5 and VGG-16, random tiles). A load
# brings its mask and address; wgrad finds both for each pixel of x anew at every step.
LOOP_INSTRUCTIONS = {"fprop": 60.0, "dgrad": 66.0, "wgrad": 70.0}
INSTRUCTIONS_PER_LOAD = {"fprop": (6.0, 6.0), "dgrad": (8.0, 6.0), "wgrad": (9.0, 34.0)}
INSTRUCTIONS_ACROSS_TAPS = 20.0  # of wgrad's load of one element, where a tile spans taps
REGISTERS_BESIDE_ACCUMULATOR = 40
REGISTERS_PER_LOAD = {"fprop": 4, "dgrad": 8, "wgrad": 4}
REGISTERS_ACROSS_TAPS = 7  # as Triton 3.6 compiles wgrad; later ones make do with 3


@dataclass(frozen=True)
class Demand:
    """What one thread of a kernel needs for its loop."""

    registers: int
    instructions: float  # of one step
    least_registers: int | None = None  # without which it spills; None: all of ``registers``


def accumulator_words(problem: Problem) -> int:
    """32-bit registers of one accumulator: fp64 takes two, all else accumulates in fp32."""
    return 2 if problem.dtype == "float64" else 1


def accumulator_registers(problem: Problem, tile: Tile, target: Target, sums: int) -> int:
    """Registers of a thread that the ``sums`` of its program take."""
    return cdiv(sums * accumulator_words(problem), tile.warps * target.warp_size)


def uses_wgmma(tile: Tile, problem: Problem, target: Target) -> bool:
    """Whether the matrix unit reads shared memory itself: a warp group, 64 rows, not fp64."""
    if target.sm < 90:
        return False
    suitable = problem.arithmetic not in ("float32", "float64")
    return suitable and tile.warps % 4 == 0 and tile.block_m >= WGMMA_ROWS


def matrix_instructions(tile: Tile, problem: Problem, target: Target) -> float:
    """Multiply instructions of a warp in one step."""
    products = tile.block_m * tile.block_n * tile.block_k
    if problem.arithmetic == "float32" and target.backend == "cuda":
        return products / (tile.warps * target.warp_size)  # one multiply-add a thread
    if uses_wgmma(tile, problem, target):
        return max(1.0, products * problem.itemsize / (WGMMA_ROWS * tile.block_n * 32)) / (
            tile.warps / 4
        )
    depth = 32 // problem.itemsize  # m16n8k16 in 16 bits, k8 in tf32, k4 in fp64
    return products / (16 * 8 * depth) / tile.warps


def load_width(problem: Problem, neighbours: int, block: int) -> int:
    """Elements that one load fetches, up to 16 bytes, of ``neighbours`` that lie side by side."""
    widest = 16 // problem.itemsize
    return math.gcd(widest, neighbours) if neighbours % block else min(widest, block)


def gathered_loads(tile: Tile, target: Target, widths: tuple[int, int]) -> tuple[float, float]:
    """Load instructions of a thread in one step, for either operand, by elements of a load."""
    threads = tile.warps * target.warp_size
    first = tile.block_m * tile.block_k / widths[0] / threads
    return first, tile.block_k * tile.block_n / widths[1] / threads


def gathered_demand(
    problem: Problem,
    tile: Tile,
    target: Target,
    loads: tuple[float, float],
    across_taps: bool = False,
) -> Demand:
    """Of a matrix product whose operands are gathered by ``loads`` of a thread and step.

    ``across_taps``: a tile of wgrad's columns spans filter taps, each element with its own mask.
    """
    direction = problem.direction
    per_first, per_second = INSTRUCTIONS_PER_LOAD[direction]
    per_load: int = REGISTERS_PER_LOAD[direction]
    if across_taps:
        per_second, per_load = INSTRUCTIONS_ACROSS_TAPS, REGISTERS_ACROSS_TAPS
    first, second = loads
    instructions = LOOP_INSTRUCTIONS[direction] + per_first * first + per_second * second
    instructions += matrix_instructions(tile, problem, target)
    sums = accumulator_registers(problem, tile, target, tile.block_m * tile.block_n)
    registers = sums + REGISTERS_BESIDE_ACCUMULATOR + round(per_load * (first + second))
    return Demand(registers, instructions)
