"""From a problem and a choice to the launches that compute it: arithmetic, no tensors."""

from __future__ import annotations

from math import gcd
from typing import Any

import triton.language as tl

from tconv.ops.launch import Launch, cdiv
from tconv.problem import Problem
from tconv.select import Choice, bias_tile
from tconv.target import Target
from tconv.tile import Tile

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


def launches(
    problem: Problem, choice: Choice, has_bias: bool = False, taps_first: bool = True
) -> tuple[Launch, ...]:
    """What ``choice`` launches for ``problem``, in order; ``taps_first``: a channels_last dw."""
    assert choice.algorithm == "implicit_gemm", choice
    if problem.direction == "fprop":
        return (fprop_launch(problem, choice.tile, has_bias),)
    if problem.direction == "dgrad":
        return (dgrad_launch(problem, choice.tile),)
    product = wgrad_launch(problem, choice.tile)
    return product, wgrad_sum_launch(problem, product.grid[2], taps_first)


def _scalars(problem: Problem) -> dict[str, int]:
    shape = problem.geometry
    return {
        "batch": shape.batch,
        "in_h": shape.in_h,
        "in_w": shape.in_w,
        "out_h": shape.out_h,
        "out_w": shape.out_w,
    }


def _constants(problem: Problem, tile: Tile) -> dict[str, Any]:
    """The compile-time values that all three passes share."""
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
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "BLOCK_K": tile.block_k,
        "SWIZZLE": tile.swizzle,
    }


def fprop_launch(problem: Problem, tile: Tile, has_bias: bool) -> Launch:
    """y = x * w + bias: output pixels by filters, a group an axis of its own."""
    shape = problem.geometry
    pixels = shape.batch * shape.out_h * shape.out_w
    tiles = cdiv(pixels, tile.block_m) * cdiv(shape.group_out_channels, tile.block_n)
    names = ("x", "w", "bias", "y") if has_bias else ("x", "w", "y")
    constants = _constants(problem, tile) | {"Y_NHWC": problem.layout == "nhwc"}
    return Launch(
        "fprop.implicit_gemm_fprop",
        (tiles, shape.groups),
        dict.fromkeys(names, problem.dtype),
        _scalars(problem),
        constants if has_bias else constants | {"bias": None},
        tile.warps,
        tile.stages,
    )


def dgrad_launch(problem: Problem, tile: Tile) -> Launch:
    """dx from dy and w: input pixels of one phase by channels; groups and phases on axes."""
    shape = problem.geometry
    step_h, step_w = gcd(shape.stride_h, shape.dilation_h), gcd(shape.stride_w, shape.dilation_w)
    pixels = shape.batch * cdiv(shape.in_h, shape.stride_h) * cdiv(shape.in_w, shape.stride_w)
    tiles = cdiv(pixels, tile.block_m) * cdiv(shape.group_in_channels, tile.block_n)
    return Launch(
        "dgrad.implicit_gemm_dgrad",
        (tiles, shape.groups, shape.stride_h * shape.stride_w),
        dict.fromkeys(("dy", "w", "dx"), problem.dtype),
        _scalars(problem),
        _constants(problem, tile)
        | {
            "TAP_STEP_H": shape.stride_h // step_h,
            "TAP_STEP_W": shape.stride_w // step_w,
            "DY_STEP_H": shape.dilation_h // step_h,
            "DY_STEP_W": shape.dilation_w // step_w,
            "DX_NHWC": problem.layout == "nhwc",
        },
        tile.warps,
        tile.stages,
    )


def wgrad_launch(problem: Problem, tile: Tile) -> Launch:
    """Parts of dw from x and dy: filters by (taps, channels); groups and splits on axes."""
    shape = problem.geometry
    columns = shape.taps * shape.group_in_channels
    steps = cdiv(shape.batch * shape.out_h * shape.out_w, tile.block_k)
    split_steps = max(1, cdiv(steps, tile.splits))
    tiles = cdiv(shape.group_out_channels, tile.block_m) * cdiv(columns, tile.block_n)
    splits = max(1, cdiv(steps, split_steps))  # rounding up the steps may empty the last splits
    workspace = splits * shape.w_elements
    index = index_type(shape.x_elements, shape.y_elements, workspace)
    return Launch(
        "wgrad.implicit_gemm_wgrad",
        (tiles, shape.groups, splits),
        {"x": problem.dtype, "dy": problem.dtype, "workspace": workspace_dtype(problem.dtype)},
        _scalars(problem) | {"steps": steps, "split_steps": split_steps},
        _constants(problem, tile) | {"INDEX": index},
        tile.warps,
        tile.stages,
    )


def workspace_dtype(dtype: str) -> str:
    return "float64" if dtype == "float64" else "float32"


SUM_BLOCK = 1024  # elements a program: four for each thread of four warps, a 16-byte load


def wgrad_sum_launch(problem: Problem, splits: int, taps_first: bool) -> Launch:
    """dw from its parts; ``taps_first`` where dw is channels_last."""
    shape = problem.geometry
    rows, channels = shape.out_channels, shape.group_in_channels
    return _sum_launch(problem.dtype, rows, shape.taps, channels, splits, taps_first)


def _sum_launch(
    dtype: str, rows: int, taps: int, channels: int, splits: int, taps_first: bool
) -> Launch:
    elements = rows * taps * channels
    return Launch(
        "wgrad.add_splits",
        (cdiv(elements, SUM_BLOCK),),
        {"workspace": workspace_dtype(dtype), "total": dtype},
        {"elements": elements, "splits": splits},
        {
            "TAPS": taps,
            "CHANNELS": channels,
            "TAPS_FIRST": taps_first,
            "INDEX": index_type(splits * elements),
            "BLOCK": SUM_BLOCK,
        },
    )


def bias_launches(dtype: str, pixels: int, channels: int, target: Target) -> tuple[Launch, Launch]:
    """The bias gradient: dy summed over pixels in splits, then the splits."""
    tile = bias_tile(pixels, channels, target)
    split_pixels = max(1, cdiv(cdiv(pixels, tile.splits), tile.block_k)) * tile.block_k
    splits = max(1, cdiv(pixels, split_pixels))
    parts = Launch(
        "wgrad.bias_wgrad",
        (cdiv(channels, tile.block_n), splits),
        {"dy": dtype, "workspace": workspace_dtype(dtype)},
        {"pixels": pixels, "split_pixels": split_pixels},
        {
            "CHANNELS": channels,
            "ACCUMULATOR": accumulator_type(dtype),
            "INDEX": index_type(pixels * channels),
            "BLOCK_N": tile.block_n,
            "BLOCK_K": tile.block_k,
        },
        tile.warps,
    )
    return parts, _sum_launch(dtype, 1, 1, channels, splits, taps_first=True)
