"""Helpers for the launches of all kernel families: index types, constants, boxes of pixels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import triton.language as tl

from tconv.geometry import ConvGeometry
from tconv.problem import Epilogue, Problem
from tconv.target import Target
from tconv.tile import Tile

# Offsets are counted in elements; a tile may reach this far past the end before its mask stops it.
OFFSET_LIMIT = 2**31 - 2**22


def index_type(*elements: int) -> Any:
    """Return the type of offsets: 32-bit if every tensor allows it, else 64-bit.

    >>> index_type(64 * 64 * 56 * 56).name
    'int32'
    >>> index_type(2**31).name
    'int64'
    """
    return tl.int32 if max(elements) < OFFSET_LIMIT else tl.int64


def accumulator_type(dtype: str) -> Any:
    """Return the type of sums: float64 for float64, else float32."""
    return tl.float64 if dtype == "float64" else tl.float32


def workspace_dtype(dtype: str) -> str:
    """Return the type of the sums that a split reduction writes to memory."""
    return "float64" if dtype == "float64" else "float32"


def sizes(problem: Problem) -> dict[str, int]:
    """Return the run-time integers of a convolution: batch and image sizes."""
    shape = problem.geometry
    return {
        "batch": shape.batch,
        "in_h": shape.in_h,
        "in_w": shape.in_w,
        "out_h": shape.out_h,
        "out_w": shape.out_w,
    }


def filter_constants(shape: ConvGeometry) -> dict[str, int]:
    """Return the compile-time values of a filter's extent, stride, padding and dilation."""
    return {
        "FILTER_H": shape.filter_h,
        "FILTER_W": shape.filter_w,
        "STRIDE_H": shape.stride_h,
        "STRIDE_W": shape.stride_w,
        "PAD_H": shape.pad_h,
        "PAD_W": shape.pad_w,
        "DILATION_H": shape.dilation_h,
        "DILATION_W": shape.dilation_w,
    }


def shape_constants(problem: Problem) -> dict[str, Any]:
    """Return the compile-time values of a convolution's geometry, types and precision."""
    shape = problem.geometry
    return {
        "IN_CHANNELS": shape.group_in_channels,
        "OUT_CHANNELS": shape.group_out_channels,
        "GROUPS": shape.groups,
        **filter_constants(shape),
        "ACCUMULATOR": accumulator_type(problem.dtype),
        "INDEX": index_type(shape.x_elements, shape.w_elements, shape.y_elements),
        "PRECISION": problem.precision,
    }


def tap_constants(problem: Problem) -> dict[str, int]:
    """Return the position of an output's first tap, and the step from tap to tap.

    For fprop, and for dgrad at stride 1, the same sum with the filter rotated by 180 degrees.
    """
    shape, sign = problem.geometry, 1 if problem.direction == "fprop" else -1
    return {
        "FIRST_H": -sign * shape.pad_h,
        "FIRST_W": -sign * shape.pad_w,
        "STEP_H": sign * shape.dilation_h,
        "STEP_W": sign * shape.dilation_w,
    }


def phases_of(shape: ConvGeometry) -> int:
    """Return the number of phases of a strided gradient.

    A phase is a set of rows and columns of dx that share their taps. An image smaller than the
    stride has fewer phases.

    >>> phases_of(ConvGeometry(1, 8, 4, 4, 8, 1, 1, 64, 64))
    16
    """
    return min(shape.stride_h, shape.in_h) * min(shape.stride_w, shape.in_w)


def summed_pixels(shape: ConvGeometry, epilogue: Epilogue) -> int:
    """Return the output pixels that a forward pass sums; with a pool, those of whole windows."""
    if epilogue.pool:
        return shape.batch * (shape.out_h // 2) * (shape.out_w // 2) * 4
    return shape.batch * shape.out_h * shape.out_w


def whole_windows(tile: Tile) -> Tile:
    """Return ``tile`` changed so that programs hold whole windows and whole sums, for a pool."""
    return replace(tile, block_m=max(tile.block_m, 4), splits=1)


def pack_of(problem: Problem, block: int) -> int:
    """Return the groups of a tile: the most that fit ``block`` channels and divide all groups.

    >>> resnext = ConvGeometry(32, 128, 56, 56, 128, 3, 3, pad_h=1, pad_w=1, groups=32)
    >>> pack_of(Problem(resnext, "fprop"), 32)
    8
    """
    shape = problem.geometry
    most = max(1, block // max(shape.group_in_channels, shape.group_out_channels))
    return max(n for n in range(1, min(most, shape.groups) + 1) if shape.groups % n == 0)


@dataclass(frozen=True)
class PixelBox:
    """A box of output pixels that a step or program covers, and the number of such boxes."""

    images: int
    rows: int
    columns: int
    count: int
    exact: bool  # whether boxes divide the images without a remainder


@lru_cache(maxsize=4096)
def pixel_box(
    pixels: int, batch: int, out_h: int, out_w: int, most: int = 1 << 30, spare: float = 0.0
) -> PixelBox:
    """Return the box of ``pixels`` (a power of two) that wastes least, no side above ``most``.

    Along the width where it fits; along the batch where images are small: 64 pixels of a
    batch of 7 x 7 images are one pixel of 64 images. Of boxes that need no more than ``spare`` in
    addition, the one nearest to a square of one image: a kernel is compiled for its box, and images
    of most sizes then share it.

    >>> pixel_box(64, 32, 56, 56)
    PixelBox(images=1, rows=8, columns=8, count=1568, exact=True)
    >>> pixel_box(64, 64, 7, 7)
    PixelBox(images=64, rows=1, columns=1, count=49, exact=True)
    >>> pixel_box(64, 1, 96, 96).rows, pixel_box(64, 1, 96, 96, spare=0.05).rows
    (2, 8)
    """
    found = []  # count of boxes, and logarithms of their sides
    side, longest = pixels.bit_length() - 1, most.bit_length() - 1
    for log_w in range(min(side, longest) + 1):
        columns = -(-out_w >> log_w)
        for log_h in range(max(0, side - log_w - longest), min(side - log_w, longest) + 1):
            log_n = side - log_w - log_h
            rows = -(-out_h >> log_h)
            found.append((-(-batch >> log_n) * rows * columns, log_n, -log_w, log_h))
    least = min(found)
    if spare:
        near = (each for each in found if each[0] <= (1 + spare) * least[0])
        least = min(near, key=lambda each: (each[1], abs(each[2] + each[3]), each))
    count, log_n, log_w, log_h = least
    images, rows, columns = 1 << log_n, 1 << log_h, 1 << -log_w
    exact = not (batch % images or out_h % rows or out_w % columns)
    return PixelBox(images, rows, columns, count, exact)


def programs(tiles: int, others: int, tile: Tile, target: Target) -> int:
    """Return the programs that share ``tiles``, for each of ``others`` groups and splits."""
    if not tile.persistent:
        return tiles
    return min(tiles, max(1, target.processors * tile.persistent // others))
