"""What the launches of all kernel families share: index and accumulator types, constants."""

from __future__ import annotations

from typing import Any

import triton.language as tl

from tconv.problem import Problem

# Offsets are counted in elements; a tile may reach this far past the end before its mask stops it.
OFFSET_LIMIT = 2**31 - 2**22


def index_type(*elements: int) -> Any:
    """32-bit offsets while every tensor allows them, 64-bit beyond.

    >>> index_type(64 * 64 * 56 * 56).name
    'int32'
    >>> index_type(2**31).name
    'int64'
    """
    return tl.int32 if max(elements) < OFFSET_LIMIT else tl.int64


def accumulator_type(dtype: str) -> Any:
    """Sums are kept in float32, of float64 in float64."""
    return tl.float64 if dtype == "float64" else tl.float32


def workspace_dtype(dtype: str) -> str:
    """The same, of sums that wait in memory."""
    return "float64" if dtype == "float64" else "float32"


def sizes(problem: Problem) -> dict[str, int]:
    """The run-time integers of a convolution: batch and image sizes."""
    shape = problem.geometry
    return {
        "batch": shape.batch,
        "in_h": shape.in_h,
        "in_w": shape.in_w,
        "out_h": shape.out_h,
        "out_w": shape.out_w,
    }


def shape_constants(problem: Problem) -> dict[str, Any]:
    """The compile-time values of a convolution's geometry, types and precision."""
    shape = problem.geometry
    return {
        "IN_CHANNELS": shape.group_in_channels,
        "OUT_CHANNELS": shape.group_out_channels,
        "GROUPS": shape.groups,
        "FILTER_H": shape.filter_h,
        "FILTER_W": shape.filter_w,
        "STRIDE_H": shape.stride_h,
        "STRIDE_W": shape.stride_w,
        "PAD_H": shape.pad_h,
        "PAD_W": shape.pad_w,
        "DILATION_H": shape.dilation_h,
        "DILATION_W": shape.dilation_w,
        "ACCUMULATOR": accumulator_type(problem.dtype),
        "INDEX": index_type(shape.x_elements, shape.w_elements, shape.y_elements),
        "PRECISION": problem.precision,
    }


def power_of_two(value: int, least: int, most: int) -> int:
    """The smallest power of two that reaches ``value``, within bounds."""
    return min(max(1 << (max(value, 1) - 1).bit_length(), least), most)
