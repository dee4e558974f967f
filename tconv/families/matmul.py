"""The matrix product that a pass of a convolution amounts to, and how a tile cuts it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np

from tconv.families.common import PixelBox, pack_of, phases_of, pixel_box
from tconv.geometry import cdiv
from tconv.problem import Problem
from tconv.tile import Count, EachOnce, Tile, Tiles, for_each


@dataclass(frozen=True)
class MatmulShape:
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
    # Where pixels come as boxes: the box of so many pixels.
    row_box: Callable[[int], PixelBox] | None = field(default=None, repr=False)
    depth_box: Callable[[int], PixelBox] | None = field(default=None, repr=False)

    @cached_property
    def _row_boxes(self) -> EachOnce:
        return EachOnce(lambda pixels: self.row_box(pixels).count)  # type: ignore[misc]

    @cached_property
    def _depth_boxes(self) -> EachOnce:
        return EachOnce(lambda pixels: self.depth_box(pixels).count)  # type: ignore[misc]

    @property
    def extents(self) -> tuple[int, int, int]:
        """Sizes of the product that block_m, block_n and block_k divide."""
        return self.rows, self.columns, self.depth

    @property
    def streamed(self) -> bool:
        """Whether programs that run at the same time share their reads of DRAM."""
        return False

    def row_tiles(self, tile: Tile | Tiles) -> Count:
        if self.row_box is not None:
            return self._row_boxes(tile.block_m)
        return cdiv(self.rows, tile.block_m)

    def column_tiles(self, tile: Tile | Tiles) -> Count:
        return cdiv(self.columns, tile.block_n)

    def programs(self, tile: Tile | Tiles) -> Count:
        """Programs of one launch."""
        return self.row_tiles(tile) * self.column_tiles(tile) * self.instances * tile.splits

    def all_steps(self, tile: Tile | Tiles) -> Count:
        """Steps of one reduction, each ``block_k`` of it; its splits share them."""
        if self.depth_box is not None:
            return self._depth_boxes(tile.block_k)
        return self.taps * cdiv(self.depth, tile.block_k)

    def steps(self, tile: Tile | Tiles) -> Count:
        """Steps of a program's loop."""
        return shared_steps(self.all_steps(tile), tile.splits)

    def step_products(self, tile: Tile | Tiles) -> Count:
        """Multiply-adds of a program's step."""
        return tile.block_m * tile.block_n * tile.block_k * self.step_taps

    def fetched_bytes(self, problem: Problem, tile: Tile | Tiles) -> Count:
        """Bytes that a step reads from L2. Masked elements, beyond the extents, are not read."""

        def filled(extent: int, block: Count) -> Count:
            return extent / cdiv(extent, block)

        rows = filled(self.rows, tile.block_m)
        columns = filled(self.columns, tile.block_n)
        return (rows + columns) * filled(self.depth, tile.block_k) * problem.itemsize


def shared_steps(steps: Count, splits: Count) -> Count:
    """Steps of one of ``splits`` that share ``steps``."""
    return np.where(splits == 1, steps, np.ceil(steps / splits))


@dataclass(frozen=True)
class Packed(MatmulShape):
    """A pass of narrow groups, several to a tile: ``rows`` pixels; a step takes one tap.

    Of wgrad, whose ``depth`` is of pixels, a pack's filters by its channels of all taps, or of
    each tap by itself.
    """

    problem: Problem | None = None
    by_taps: bool = False

    def programs(self, tile: Tile | Tiles) -> Count:
        assert self.problem is not None
        shape, wgrad = self.problem.geometry, self.problem.direction == "wgrad"
        block = np.minimum(tile.block_m, tile.block_n) if wgrad else tile.block_n
        pack = for_each(partial(pack_of, self.problem), block)
        packs = shape.groups // pack * self.instances * tile.splits
        if not wgrad:
            return self.row_tiles(tile) * packs
        channels = pack * shape.group_in_channels
        columns = cdiv(shape.taps * channels, tile.block_n)
        if self.by_taps:
            columns = shape.taps * cdiv(channels, tile.block_n)
        return cdiv(pack * shape.group_out_channels, tile.block_m) * columns * packs


def phased_rows(problem: Problem) -> tuple[int, int]:
    """Return dgrad's phases and the rows of one: input pixels by their place within a stride."""
    shape = problem.geometry
    rows = shape.batch * cdiv(shape.in_h, shape.stride_h) * cdiv(shape.in_w, shape.stride_w)
    return phases_of(shape), rows


def out_box(problem: Problem) -> Callable[[int], PixelBox]:
    """Return the boxes of dy's pixels over which wgrad reduces."""
    shape = problem.geometry
    return lambda pixels: pixel_box(pixels, shape.batch, shape.out_h, shape.out_w)


def gathered_matmul(
    problem: Problem, channels: int | None = None, taps: int | None = None
) -> MatmulShape:
    """Return the product whose operands are gathered by address; each group is an instance.

    ``channels`` and ``taps`` are those of a group, unless the kernel counts them otherwise.

    >>> from tconv.geometry import ConvGeometry
    >>> layer = ConvGeometry.from_lecture("3x32x32", filters=10, extent=5, padding=2)
    >>> gathered_matmul(Problem(layer, "fprop"))
    MatmulShape(rows=1024, columns=10, depth=3, taps=25, instances=1, step_taps=1)
    """
    shape = problem.geometry
    channels = channels or shape.group_in_channels
    taps = taps or shape.taps
    filters, pixels = shape.group_out_channels, shape.batch * shape.out_h * shape.out_w
    if problem.direction == "fprop":
        return MatmulShape(pixels, filters, channels, taps, shape.groups)
    if problem.direction == "dgrad":
        phases, rows = phased_rows(problem)
        strides = shape.stride_h * shape.stride_w
        mean_taps = taps / strides if strides > 1 else taps
        return MatmulShape(rows, channels, filters, mean_taps, shape.groups * phases)
    return MatmulShape(
        filters, taps * channels, pixels, 1, shape.groups, depth_box=out_box(problem)
    )
