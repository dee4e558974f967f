"""Boxes of pixels that tensor memory access (TMA) moves, and the descriptors of their tensors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from tconv.families.common import PixelBox, pixel_box
from tconv.geometry import cdiv
from tconv.launch import Descriptor
from tconv.problem import Problem

SPARE_BOXES = 0.05  # part of the boxes of a result that a usual shape of box may add
LONGEST_SIDE = 256  # elements of a box along each dimension


def is_flat(problem: Problem) -> bool:
    """Return whether all pixels form one row: one tap, no stride, no padding."""
    shape = problem.geometry
    window = (shape.filter_h, shape.filter_w, shape.stride_h, shape.stride_w)
    in_order = problem.layout == "nhwc" or problem.direction == "wgrad"
    return window == (1, 1, 1, 1) and shape.pad_h == shape.pad_w == 0 and in_order


Size = tuple[int, int, int]  # batch, rows, columns


def image_sizes(problem: Problem, flat: bool) -> tuple[Size, Size]:
    """Return the sizes of x and y (or their gradients); if ``flat``, all pixels form one row."""
    shape = problem.geometry
    if flat:
        size = (1, 1, shape.batch * shape.in_h * shape.in_w)
        return size, size
    return (shape.batch, shape.in_h, shape.in_w), (shape.batch, shape.out_h, shape.out_w)


def whole_slice(channels: int, block_k: int) -> int:
    """Return the largest slice, up to ``block_k``, that divides ``channels``.

    >>> whole_slice(48, 64)
    16
    """
    return min(block_k, channels & -channels)


def result_box(problem: Problem, pixels: int, pool: bool = False) -> PixelBox:
    """Return the box of result pixels that a program of fprop or dgrad computes.

    With a pool it holds whole 2x2 windows.
    """
    if pool:
        shape = problem.geometry
        sides = (shape.batch, shape.out_h // 2, shape.out_w // 2)
        box = pixel_box(pixels // 4, *sides, LONGEST_SIDE // 2)
        return replace(box, rows=2 * box.rows, columns=2 * box.columns)
    x_size, y_size = image_sizes(problem, is_flat(problem) and pixels <= LONGEST_SIDE)
    size = x_size if problem.direction == "dgrad" else y_size
    return pixel_box(pixels, *size, LONGEST_SIDE, SPARE_BOXES)


@lru_cache(maxsize=4096)
def wgrad_box(problem: Problem, pixels: int) -> PixelBox:
    """Return the box of dy's pixels that a step of wgrad takes; it divides the rows and columns.

    Pixels along one dimension reach the matrix unit without passing through registers. Such a
    box is preferred if it costs less than a tenth more boxes.
    """
    _, (batch, out_h, out_w) = image_sizes(problem, is_flat(problem))
    if is_flat(problem):
        return pixel_box(pixels, batch, out_h, out_w, LONGEST_SIDE)
    along_batch = PixelBox(pixels, 1, 1, cdiv(batch, pixels) * out_h * out_w, batch % pixels == 0)
    found = [] if pixels > LONGEST_SIDE else [along_batch]
    if out_w % pixels == 0 and pixels <= LONGEST_SIDE:
        found.append(PixelBox(1, 1, pixels, batch * out_h * (out_w // pixels), True))
    for log_h in range(pixels.bit_length()):
        for log_w in range(pixels.bit_length() - log_h):
            rows, columns = 1 << log_h, 1 << log_w
            images = pixels // rows // columns
            if out_h % rows or out_w % columns or max(rows, columns, images) > LONGEST_SIDE:
                continue
            count = cdiv(batch, images) * (out_h // rows) * (out_w // columns)
            found.append(PixelBox(images, rows, columns, count, batch % images == 0))

    def cost(box: PixelBox) -> float:
        one_sided = pixels in (box.images, box.columns)
        return box.count * (1.0 if one_sided else 1.1)

    return min(found, key=cost)


@dataclass(frozen=True)
class Views:
    """Tensor descriptors of one problem, from which its boxes are loaded."""

    problem: Problem
    box: PixelBox
    along_batch: bool = False  # dimensions in the order rows, columns, batch, channels

    def pixels(self, name: str, size: tuple[int, int, int], channels: int, block: int,
               stride: int = 1) -> Descriptor:  # fmt: skip
        """Return the descriptor of a tensor of pixels; at stride 2, rows and columns in pairs."""
        batch, rows, columns = size
        images = (batch, rows * columns * channels, self.box.images)
        row = columns * channels
        if stride == 1:
            down = [(rows, row, self.box.rows)]
            across = [(columns, channels, self.box.columns)]
            last = (channels, 1, block)
        else:
            down = [(rows // 2, 2 * row, self.box.rows), (2, row, 1)]
            across = [(columns // 2, 2 * channels, self.box.columns)]
            last = (2 * channels, 1, block)
        order = [*down, *across, images] if self.along_batch else [images, *down, *across]
        shape, strides, box = zip(*order, last, strict=True)
        return Descriptor(name, self.problem.dtype, shape, strides, box)

    def filters(self, name: str, box: tuple[int, int]) -> Descriptor:
        """Return the descriptor of w as [taps, filters, channels], without a copy."""
        shape = self.problem.geometry
        channels = shape.group_in_channels
        size = (shape.taps, shape.out_channels, channels)
        strides = (channels, shape.taps * channels, 1)
        return Descriptor(name, self.problem.dtype, size, strides, (1, *box))
