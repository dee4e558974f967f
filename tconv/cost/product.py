"""The matrix product that a pass of a convolution amounts to, and how a tile cuts it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

from tconv.algorithms import (
    BOXED,
    DEPTHWISE,
    DIRECT,
    FEW_CHANNELS,
    GENERAL,
    GROUPED,
    depthwise,
    few_channels,
    grouped,
    tma,
)
from tconv.algorithms.common import pack_of, pixel_box
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


@dataclass(frozen=True)
class Strips(Product):
    """A depthwise pass: ``rows`` lines of images, cut into strips, by ``columns`` channels.

    A step takes one line of the filter; of wgrad, whose ``depth`` is positive, ``block_m`` strips.
    """

    problem: Problem | None = None
    along: int = 1  # results of a line
    strided: int = 1  # places that a strip advances for each result
    read: int = 1  # places that one result reads
    whole: int = 1  # results that a strip is a multiple of

    def strips(self, tile: Tile) -> int:
        if self.depth:
            return self.along // depthwise.whole_strip(self.along, tile.block_k)
        return cdiv(self.along, self.strip(tile))

    def strip(self, tile: Tile) -> int:
        """Results of a strip; of a strided gradient, whole phases."""
        return cdiv(tile.block_k, self.whole) * self.whole

    def programs(self, tile: Tile) -> int:
        columns = self.column_tiles(tile) * self.instances
        if not self.depth:
            return self.row_tiles(tile) * self.strips(tile) * columns
        assert self.problem is not None
        _, across = depthwise.axes(self.problem)
        return tile.splits * columns * cdiv(across.filter, depthwise.lines_of(self.problem, tile))

    def all_steps(self, tile: Tile) -> float:
        if self.depth:
            return cdiv(self.rows * self.strips(tile), tile.block_m)
        return self.taps

    def places(self, tile: Tile) -> int:
        """Places that a strip reads, for one line of the filter."""
        return (tile.block_k - 1) * self.strided + self.read


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
    if algorithm == DEPTHWISE:
        return _strips(problem)
    if algorithm == GROUPED:
        return _packed(problem)
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
    filters, channels = shape.group_out_channels, shape.group_in_channels
    pixels = shape.batch * shape.out_h * shape.out_w
    if problem.direction == "wgrad":

        def boxes_that_divide(block: int) -> int:
            return tma.wgrad_box(problem, block).count

        if shape.groups > 1:
            return Packed(
                shape.out_channels, shape.in_channels, pixels, 1, 1,
                depth_boxes=boxes_that_divide, problem=problem, by_taps=True,
            )  # fmt: skip
        return Product(filters, channels, pixels, 1, shape.taps, depth_boxes=boxes_that_divide)

    def row_boxes(block: int) -> int:
        return tma.result_box(problem, block).count

    if problem.direction == "dgrad":
        pixels, filters, channels = shape.batch * shape.in_h * shape.in_w, channels, filters
    return Product(pixels, filters, channels, shape.taps, shape.groups, row_boxes=row_boxes)


def _strips(problem: Problem) -> Strips:
    """Lines of images by channels; of dgrad, a phase across the strips is an instance."""
    shape = problem.geometry
    along, across = depthwise.axes(problem)
    span = (along.filter - 1) * along.dilation + 1
    if problem.direction == "wgrad":
        lines = shape.batch * across.result
        return Strips(
            lines, shape.out_channels, lines, 1, 1, step_taps=shape.taps, problem=problem,
            along=along.result, strided=along.stride, read=span,
        )  # fmt: skip
    if problem.direction == "fprop":
        return Strips(
            shape.batch * across.result, shape.out_channels, 0, across.filter, 1,
            step_taps=along.filter, along=along.result, strided=along.stride, read=span,
        )  # fmt: skip
    phases = across.stride
    rounds = shape.out_channels // shape.in_channels
    return Strips(
        shape.batch * cdiv(across.result, phases), shape.in_channels, 0,
        rounds * across.filter / phases, phases, step_taps=cdiv(along.filter, along.stride),
        along=along.result, read=cdiv(span, along.stride), whole=along.stride,
    )  # fmt: skip


@dataclass(frozen=True)
class Packed(Product):
    """A pass of narrow groups, several to a tile: ``rows`` pixels; a step takes one tap.

    Of wgrad, whose ``depth`` is of pixels, a pack's filters by its channels of all taps, or of
    each tap by itself.
    """

    problem: Problem | None = None
    by_taps: bool = False

    def programs(self, tile: Tile) -> int:
        assert self.problem is not None
        shape, wgrad = self.problem.geometry, self.problem.direction == "wgrad"
        block = min(tile.block_m, tile.block_n) if wgrad else tile.block_n
        pack = pack_of(self.problem, block)
        packs = shape.groups // pack * self.instances * tile.splits
        if not wgrad:
            return self.row_tiles(tile) * packs
        channels = pack * shape.group_in_channels
        columns = cdiv(shape.taps * channels, tile.block_n)
        if self.by_taps:
            columns = shape.taps * cdiv(channels, tile.block_n)
        return cdiv(pack * shape.group_out_channels, tile.block_m) * columns * packs


def _packed(problem: Problem) -> Packed:
    """Narrow groups side by side: a step takes one tap, whatever the tile's depth."""
    shape = problem.geometry
    pixels = shape.batch * shape.out_h * shape.out_w
    if problem.direction == "fprop":
        one = grouped.LEAST
        return Packed(pixels, shape.out_channels, one, shape.taps, 1, problem=problem)
    if problem.direction == "dgrad":
        phases = shape.stride_h * shape.stride_w
        rows = shape.batch * cdiv(shape.in_h, shape.stride_h) * cdiv(shape.in_w, shape.stride_w)
        taps, one = shape.taps / phases, grouped.LEAST
        return Packed(rows, shape.in_channels, one, taps, phases, problem=problem)

    def boxes(block: int) -> int:
        return pixel_box(block, shape.batch, shape.out_h, shape.out_w).count

    columns = shape.taps * shape.in_channels
    return Packed(
        shape.out_channels, columns, pixels, 1, 1, depth_boxes=boxes, problem=problem
    )  # fmt: skip


def _direct(problem: Problem) -> Product:
    """A step is a row of the filter over one channel."""
    shape = problem.geometry
    rows, columns = shape.batch * shape.out_h * shape.out_w, shape.group_out_channels
    depth = shape.group_in_channels
    if problem.direction == "dgrad":
        rows, columns, depth = shape.batch * shape.in_h * shape.in_w, depth, columns
    return Product(rows, columns, depth, shape.filter_h, shape.groups, step_taps=shape.filter_w)
