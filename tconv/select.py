"""From a problem to the kernel and tile that serve it.

In order: the user's own table of measured winners, the table shipped for this GPU, the
user's predictions for this architecture, and at last a rule of thumb.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Literal

from tconv.problem import PoolProblem, Problem
from tconv.table import Winner, load_table, shipped_table, user_table
from tconv.target import Target
from tconv.tile import Tile

Ground = Literal["tuned", "shipped", "predicted", "heuristic"]

ALGORITHMS = ("implicit_gemm",)


@dataclass(frozen=True)
class Choice:
    """A kernel, its tile, and why they were taken."""

    algorithm: str
    tile: Tile
    ground: Ground = "heuristic"


@cache
def _tables(name: str, arch: str) -> tuple[tuple[Ground, dict[str, Winner]], ...]:
    tables: list[tuple[Ground, dict[str, Winner]]] = [
        ("tuned", load_table(user_table(name))),
        ("shipped", load_table(shipped_table(name))),
    ]
    if name != arch:
        tables.append(("predicted", load_table(user_table(arch))))
    return tuple(tables)


@lru_cache(maxsize=4096)
def choose(problem: Problem | PoolProblem, target: Target) -> Choice:
    """The kernel and tile for ``problem`` on ``target``."""
    if target.backend != "interpreter" and isinstance(problem, Problem):
        # The kernels read channels_last in either case, so its winners serve both layouts.
        nhwc_key = replace(problem, layout="nhwc").key
        for ground, table in _tables(target.name, target.arch):
            winner = table.get(problem.key) or table.get(nhwc_key)
            if winner is not None and winner.algorithm in ALGORITHMS:
                grounded: Ground = "predicted" if winner.kind == "predicted" else ground
                return Choice(winner.algorithm, winner.tile, grounded)
    algorithm = "max_pool" if isinstance(problem, PoolProblem) else ALGORITHMS[0]
    return Choice(algorithm, heuristic(problem, target))


def forget() -> None:
    """Read the tables anew at the next choice."""
    choose.cache_clear()
    _tables.cache_clear()


def _power_of_two(value: int, least: int, most: int) -> int:
    """The smallest power of two that reaches ``value``, within bounds."""
    return min(max(1 << (max(value, 1) - 1).bit_length(), least), most)


def heuristic(problem: Problem | PoolProblem, target: Target) -> Tile:
    """A tile for a problem that was never tuned."""
    if isinstance(problem, PoolProblem):
        return _pool_tile(problem, target)
    if problem.direction == "wgrad":
        return _wgrad_tile(problem, target)
    return _pixel_tile(problem, target)


def _pixel_tile(problem: Problem, target: Target) -> Tile:
    """fprop and dgrad: pixels x channels, reduced over channels."""
    shape = problem.geometry
    produced, reduced = shape.group_out_channels, shape.group_in_channels
    pixels = shape.batch * shape.out_h * shape.out_w
    if problem.direction == "dgrad":
        produced, reduced = reduced, produced
        pixels = shape.batch * shape.in_h * shape.in_w // (shape.stride_h * shape.stride_w)
    if target.backend == "interpreter":
        # It costs per program and step, not per element: one program, if it may be.
        # Nor does it ask for 16 of anything, as a matrix unit does.
        block_n, block_k = _power_of_two(produced, 1, 128), _power_of_two(reduced, 1, 128)
        return Tile(_power_of_two(pixels, 16, (1 << 19) // max(block_n, block_k)), block_n, block_k)
    # Exact products have no matrix unit, or a narrow one: larger tiles spill.
    exact = problem.arithmetic in ("float32", "float64")
    if exact:
        block_n, block_k = _power_of_two(produced, 16, 64), 16
    else:
        block_n = _power_of_two(produced, 16, 128)
        block_k = _power_of_two(reduced, 16, 128 // problem.itemsize)
    thin = block_n * block_k <= 16 * 16  # all addresses, no products: registers run out first
    block_m = 64 if exact or thin or (block_n == 128 and problem.itemsize == 4) else 128
    programs = -(-pixels // block_m) * -(-produced // block_n) * shape.groups
    while block_m > 32 and programs < target.processors:
        block_m, programs = block_m // 2, programs * 2
    warps = 8 if block_m * block_n >= 128 * 128 else 4
    stages = 3 if target.backend == "cuda" else 2
    return Tile(block_m, block_n, block_k, stages=stages, warps=warps)


def _wgrad_tile(problem: Problem, target: Target) -> Tile:
    """Filters x (taps x channels), reduced over pixels by ``splits`` programs."""
    shape = problem.geometry
    rows, columns = shape.group_out_channels, shape.taps * shape.group_in_channels
    pixels = shape.batch * shape.out_h * shape.out_w
    if target.backend == "interpreter":
        block_m, block_n = _power_of_two(rows, 1, 128), _power_of_two(columns, 1, 256)
        return Tile(block_m, block_n, _power_of_two(pixels, 16, (1 << 17) // max(block_m, block_n)))
    most = 128 if problem.itemsize == 2 else 64
    block_m = _power_of_two(rows, 16, most)
    block_n = most
    while block_n > 16 and shape.group_in_channels % block_n:
        block_n //= 2  # a tile within one tap needs one address a pixel
    if shape.group_in_channels % block_n:
        block_n = _power_of_two(columns, 16, 64)
    block_k = 64 if problem.itemsize == 2 else 16
    programs = -(-rows // block_m) * -(-columns // block_n) * shape.groups
    steps = -(-pixels // block_k)
    splits = max(1, min(2 * target.processors // programs, steps // 8, 256))
    warps = 8 if block_m * block_n >= most * most else 4
    stages = 3 if target.backend == "cuda" else 2
    return Tile(block_m, block_n, block_k, stages=stages, warps=warps, splits=splits)


def _pool_tile(problem: PoolProblem, target: Target) -> Tile:
    """Outputs x channels; neighbouring threads take what lies side by side in memory."""
    shape = problem.geometry
    pixels = shape.batch * shape.out_h * shape.out_w
    if problem.direction == "dgrad":
        pixels = shape.batch * shape.in_h * shape.in_w
    if target.backend == "interpreter":
        block_n = _power_of_two(shape.channels, 1, 128)
        return Tile(_power_of_two(pixels, 16, (1 << 19) // block_n), block_n, 1, stages=1, warps=4)
    block_n = _power_of_two(shape.channels, 1, 64) if problem.layout == "nhwc" else 1
    return Tile(_power_of_two(pixels, 16, 1024 // block_n), block_n, 1, stages=1, warps=4)


def bias_tile(pixels: int, channels: int, target: Target) -> Tile:
    """The bias gradient sums dy over pixels: memory-bound, so a fixed shape and enough programs."""
    block_n = _power_of_two(channels, 1, 128)
    if target.backend == "interpreter":
        return Tile(1, block_n, _power_of_two(pixels, 1, (1 << 19) // block_n))
    block_k = max(4096 // block_n, 32)
    splits = max(1, min(4 * target.processors, pixels // (4 * block_k)))
    return Tile(1, block_n, block_k, stages=1, warps=4, splits=splits)
