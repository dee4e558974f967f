"""``Family``: the interface of a kernel family, and the tile axes that families share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tconv.families.demand import LEAST_DOT, Demand
from tconv.families.matmul import MatmulShape, gathered_matmul
from tconv.launch import Plan
from tconv.problem import PLAIN, Epilogue, Layout, Problem
from tconv.target import Target
from tconv.tile import Count, Tile, Tiles


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


# Axes that several families share.
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


def matmul_axes(problem: Problem) -> Axes:
    """Axes of a gathering matrix product."""
    return WGRAD_AXES if problem.direction == "wgrad" else PIXEL_AXES


def outputs(problem: Problem, tile: Tile | Tiles) -> Count:
    """Outputs that a program computes: block_m x block_n."""
    return tile.block_m * tile.block_n


@dataclass(frozen=True)
class Family:
    """One kernel family: pure arithmetic, without tensors or a GPU.

    Functions of a tile also accept ``Tiles``, many tiles at once.

    Attributes:
        name: under which choices are stored.
        unserved: (problem, target) -> why the family cannot serve the problem, in a line, or None.
        heuristic: (problem, target) -> the tile by rule of thumb.
        product: (problem, tile, target, epilogue, w_layout) -> the launches of fprop and dgrad.
        wgrad: (problem, tile, target, w_layout) -> the launches of wgrad.
        demand: (problem, tile, target) -> estimated registers and instructions of a thread.
        axes: problem -> the values that each field of a tile may take.
        matmul: problem -> the matrix product that the kernel forms.
        matrix_unit: whether products are formed by the matrix unit, from shared memory.
        least_block: smallest extent of a block that is worth a candidate.
        fits: (problem, tile) -> whether the blocks suit the problem, in place of the general rule.
        sums: (problem, tile) -> accumulators of a program.
        results: (problem, tile) -> results that a program writes.
        issued: (problem, tile) -> the tile as the matrix unit sees it.
        stored_bytes: (problem, tile) -> shared memory beside the pipeline's buffers.
        l1_lines: (problem, tile, target) -> lines of L1 that a step reads, where no shared memory
            is used; None where a step reads each byte once.
        copies: whether operands may be copied before the product even where they are channels_last.
        l1_reuse: problem -> steps that read the same bytes one after another, from L1.
    """

    name: str
    unserved: Callable[[Problem, Target], str | None]
    heuristic: Callable[[Problem, Target], Tile]
    product: Callable[[Problem, Tile, Target, Epilogue, Layout], Plan]
    wgrad: Callable[[Problem, Tile, Target, Layout], Plan]
    demand: Callable[[Problem, Tile | Tiles, Target], Demand]
    axes: Callable[[Problem], Axes] = matmul_axes
    matmul: Callable[[Problem], MatmulShape] = gathered_matmul
    matrix_unit: bool = True
    least_block: int = LEAST_DOT
    fits: Callable[[Problem, Tile | Tiles], Count] | None = None
    sums: Callable[[Problem, Tile | Tiles], Count] = outputs
    results: Callable[[Problem, Tile | Tiles], Count] = outputs
    issued: Callable[[Problem, Tile | Tiles], Tile | Tiles] = lambda problem, tile: tile
    stored_bytes: Callable[[Problem, Tile | Tiles], Count] = lambda problem, tile: 0
    l1_lines: Callable[[Problem, Tile | Tiles, Target], Count] | None = None
    copies: bool = False
    l1_reuse: Callable[[Problem], int] | None = None

    def plan(
        self,
        problem: Problem,
        tile: Tile,
        target: Target,
        epilogue: Epilogue = PLAIN,
        w_layout: Layout = "nhwc",
    ) -> Plan:
        """Launches that compute ``problem`` with ``tile``, in order.

        ``w_layout`` is the layout of the filters, or in wgrad of their gradient.
        """
        if problem.direction == "wgrad":
            return self.wgrad(problem, tile, target, w_layout)
        return self.product(problem, tile, target, epilogue, w_layout)
