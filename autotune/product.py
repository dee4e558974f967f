"""The matrix product that a pass of a convolution amounts to, and how a tile cuts it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

from tconv.algorithms import BOXED, DIRECT, FEW_CHANNELS, GENERAL, few_channels, tma
from tconv.algorithms.common import pixel_box
from tconv.problem import Problem
from tconv.tile import Tile


def cdiv(a: int, b: int) -> int:
    """``a / b``, rounded up."""
    return -(-a // b)


def power_of_two(value: int) -> int:
    """The smallest power of two that reaches ``value``.

    >>> power_of_two(27)
    32
    """
    return 1 << (max(value, 1) - 1).bit_length()


@dataclass(frozen=True)
class Product:
    """``rows x columns`` outputs, reduced over ``taps`` runs of ``depth``; ``instances`` of it.

    fprop: pixels x filters, over taps and input channels. dgrad: input pixels x input
    channels, over taps and filters, one instance for each phase of the stride. wgrad:
    filters x (taps and input channels), over pixels. Groups are instances.
    """

    rows: int
    columns: int
    depth: int
    taps: float  # the mean over the phases of a strided dgrad, hence no integer
    instances: int
    step_taps: int = 1  # taps of one step, where it does not count them as depth
    # Where pixels come as boxes: how many boxes of so many pixels there are.
    row_boxes: Callable[[int], int] | None = field(default=None, repr=False)
    depth_boxes: Callable[[int], int] | None = field(default=None, repr=False)

    def row_tiles(self, tile: Tile) -> int:
        if self.row_boxes is not None:
            return self.row_boxes(tile.block_m)
        return cdiv(self.rows, tile.block_m)

    def column_tiles(self, tile: Tile) -> int:
        return cdiv(self.columns, tile.block_n)

    def programs(self, tile: Tile) -> int:
        """Programs that one launch takes."""
        return self.row_tiles(tile) * self.column_tiles(tile) * self.instances * tile.splits

    def all_steps(self, tile: Tile) -> float:
        """Steps of one reduction, each ``block_k`` of it; its splits share them."""
        if self.depth_boxes is not None:
            return self.depth_boxes(tile.block_k)
        return self.taps * cdiv(self.depth, tile.block_k)

    def steps(self, tile: Tile) -> float:
        """Steps of a program's loop."""
        if tile.splits == 1:
            return self.all_steps(tile)
        return math.ceil(self.all_steps(tile) / tile.splits)


@lru_cache(maxsize=4096)
def product_of(problem: Problem, algorithm: str = GENERAL) -> Product:
    """The product that ``problem`` is, as kernel family ``algorithm`` forms it.

    >>> from tconv.geometry import ConvGeometry
    >>> layer = ConvGeometry.from_lecture("3x32x32", filters=10, extent=5, padding=2)
    >>> product_of(Problem(layer, "fprop"))
    Product(rows=1024, columns=10, depth=3, taps=25, instances=1, step_taps=1)
    """
    if algorithm == BOXED:
        return _of_boxes(problem)
    if algorithm == DIRECT and problem.direction != "wgrad":
        return _direct(problem)
    shape = problem.geometry
    filters, channels, taps = shape.group_out_channels, shape.group_in_channels, shape.taps
    if algorithm == FEW_CHANNELS:  # a row of the filter counts as one tap
        channels, taps = few_channels.row_length(problem), shape.filter_h
    pixels = shape.batch * shape.out_h * shape.out_w
    if problem.direction == "fprop":
        return Product(pixels, filters, channels, taps, shape.groups)
    if problem.direction == "dgrad":
        phases = shape.stride_h * shape.stride_w
        rows = shape.batch * cdiv(shape.in_h, shape.stride_h) * cdiv(shape.in_w, shape.stride_w)
        mean_taps = taps / phases if phases > 1 else taps
        return Product(rows, channels, filters, mean_taps, shape.groups * phases)

    def boxes(block: int) -> int:
        return pixel_box(block, shape.batch, shape.out_h, shape.out_w).count

    depth_boxes = None if algorithm == DIRECT else boxes
    return Product(filters, taps * channels, pixels, 1, shape.groups, depth_boxes=depth_boxes)


def _of_boxes(problem: Problem) -> Product:
    """Boxes of pixels by channels; of wgrad a tile lies within one tap: each is an instance."""
    shape = problem.geometry
    filters, channels = shape.out_channels, shape.in_channels
    pixels = shape.batch * shape.out_h * shape.out_w
    if problem.direction == "wgrad":

        def boxes_that_divide(block: int) -> int:
            return tma.wgrad_box(problem, block).count

        return Product(filters, channels, pixels, 1, shape.taps, depth_boxes=boxes_that_divide)

    def row_boxes(block: int) -> int:
        return tma.result_box(problem, block).count

    if problem.direction == "dgrad":
        pixels, filters, channels = shape.batch * shape.in_h * shape.in_w, channels, filters
    return Product(pixels, filters, channels, shape.taps, 1, row_boxes=row_boxes)


def _direct(problem: Problem) -> Product:
    """A step is a row of the filter over one channel."""
    shape = problem.geometry
    rows, columns = shape.batch * shape.out_h * shape.out_w, shape.group_out_channels
    depth = shape.group_in_channels
    if problem.direction == "dgrad":
        rows, columns, depth = shape.batch * shape.in_h * shape.in_w, depth, columns
    return Product(rows, columns, depth, shape.filter_h, shape.groups, step_taps=shape.filter_w)
