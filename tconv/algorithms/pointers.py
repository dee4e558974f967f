"""The general implicit matrix product: operands gathered by address, any geometry, any GPU."""

from __future__ import annotations

from math import gcd
from typing import Any

from tconv.algorithms.common import (
    index_type,
    power_of_two,
    shape_constants,
    sizes,
    workspace_dtype,
)
from tconv.ops.launch import Buffer, Launch, Plan, Pointer, cdiv, pointers
from tconv.problem import Layout, Problem
from tconv.target import Target
from tconv.tile import Tile


def unserved(problem: Problem, target: Target) -> str | None:
    """None: this family serves every problem."""
    return None


def plan(
    problem: Problem, tile: Tile, target: Target, bias: bool = False, w_layout: Layout = "nhwc"
) -> Plan:
    """The launches that compute ``problem`` with ``tile``, in order."""
    if problem.direction == "fprop":
        return Plan((_fprop(problem, tile, bias),))
    if problem.direction == "dgrad":
        return Plan((_dgrad(problem, tile),))
    product = _wgrad(problem, tile)
    splits = product.grid[2]
    parts = Buffer(splits * problem.geometry.w_elements, workspace_dtype(problem.dtype))
    total = _filter_sum(problem, splits, taps_first=w_layout == "nhwc")
    return Plan((product, total), {"workspace": parts})


def _constants(problem: Problem, tile: Tile) -> dict[str, Any]:
    return shape_constants(problem) | {
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "BLOCK_K": tile.block_k,
        "SWIZZLE": tile.swizzle,
    }


def _fprop(problem: Problem, tile: Tile, bias: bool) -> Launch:
    """y = x * w + bias: output pixels by filters, a group an axis of its own."""
    shape = problem.geometry
    pixels = shape.batch * shape.out_h * shape.out_w
    tiles = cdiv(pixels, tile.block_m) * cdiv(shape.group_out_channels, tile.block_n)
    names = ("x", "w", "bias", "y") if bias else ("x", "w", "y")
    constants = _constants(problem, tile) | {"Y_NHWC": problem.layout == "nhwc"}
    return Launch(
        "fprop.implicit_gemm_fprop",
        (tiles, shape.groups),
        pointers(problem.dtype, *names),
        sizes(problem),
        constants if bias else constants | {"bias": None},
        tile.warps,
        tile.stages,
    )


def _dgrad(problem: Problem, tile: Tile) -> Launch:
    """dx from dy and w: input pixels of one phase by channels; groups and phases on axes."""
    shape = problem.geometry
    step_h, step_w = gcd(shape.stride_h, shape.dilation_h), gcd(shape.stride_w, shape.dilation_w)
    pixels = shape.batch * cdiv(shape.in_h, shape.stride_h) * cdiv(shape.in_w, shape.stride_w)
    tiles = cdiv(pixels, tile.block_m) * cdiv(shape.group_in_channels, tile.block_n)
    return Launch(
        "dgrad.implicit_gemm_dgrad",
        (tiles, shape.groups, shape.stride_h * shape.stride_w),
        pointers(problem.dtype, "dy", "w", "dx"),
        sizes(problem),
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


def _wgrad(problem: Problem, tile: Tile) -> Launch:
    """Parts of dw from x and dy: filters by (taps, channels); groups and splits on axes."""
    shape = problem.geometry
    columns = shape.taps * shape.group_in_channels
    steps = cdiv(shape.batch * shape.out_h * shape.out_w, tile.block_k)
    split_steps = max(1, cdiv(steps, tile.splits))
    tiles = cdiv(shape.group_out_channels, tile.block_m) * cdiv(columns, tile.block_n)
    splits = max(1, cdiv(steps, split_steps))  # rounding up the steps may empty the last splits
    index = index_type(shape.x_elements, shape.y_elements, splits * shape.w_elements)
    workspace = Pointer("workspace", workspace_dtype(problem.dtype))
    return Launch(
        "wgrad.implicit_gemm_wgrad",
        (tiles, shape.groups, splits),
        pointers(problem.dtype, "x", "dy") | {"workspace": workspace},
        sizes(problem) | {"steps": steps, "split_steps": split_steps},
        _constants(problem, tile) | {"INDEX": index},
        tile.warps,
        tile.stages,
    )


SUM_BLOCK = 1024  # elements a program: four for each thread of four warps, a 16-byte load


def _filter_sum(problem: Problem, splits: int, taps_first: bool) -> Launch:
    """dw from its parts; ``taps_first`` where dw is channels_last."""
    shape = problem.geometry
    elements = shape.w_elements
    workspace = Pointer("workspace", workspace_dtype(problem.dtype))
    return Launch(
        "wgrad.add_splits",
        (cdiv(elements, SUM_BLOCK),),
        {"workspace": workspace, "total": Pointer("dw", problem.dtype)},
        {"elements": elements, "splits": splits},
        {
            "TAPS": shape.taps,
            "CHANNELS": shape.group_in_channels,
            "TAPS_FIRST": taps_first,
            "INDEX": index_type(splits * elements),
            "BLOCK": SUM_BLOCK,
        },
    )


def heuristic(problem: Problem, target: Target) -> Tile:
    """The tile of an untuned layer."""
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
        block_n, block_k = power_of_two(produced, 1, 128), power_of_two(reduced, 1, 128)
        return Tile(power_of_two(pixels, 16, (1 << 19) // max(block_n, block_k)), block_n, block_k)
    # Exact products have no matrix unit, or a narrow one: larger tiles spill.
    exact = problem.arithmetic in ("float32", "float64")
    if exact:
        block_n, block_k = power_of_two(produced, 16, 64), 16
    else:
        block_n = power_of_two(produced, 16, 128)
        block_k = power_of_two(reduced, 16, 128 // problem.itemsize)
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
        block_m, block_n = power_of_two(rows, 1, 128), power_of_two(columns, 1, 256)
        return Tile(block_m, block_n, power_of_two(pixels, 16, (1 << 17) // max(block_m, block_n)))
    most = 128 if problem.itemsize == 2 else 64
    block_m = power_of_two(rows, 16, most)
    block_n = most
    while block_n > 16 and shape.group_in_channels % block_n:
        block_n //= 2  # a tile within one tap needs one address a pixel
    if shape.group_in_channels % block_n:
        block_n = power_of_two(columns, 16, 64)
    block_k = 64 if problem.itemsize == 2 else 16
    programs = -(-rows // block_m) * -(-columns // block_n) * shape.groups
    steps = -(-pixels // block_k)
    splits = max(1, min(2 * target.processors // programs, steps // 8, 256))
    warps = 8 if block_m * block_n >= most * most else 4
    stages = 3 if target.backend == "cuda" else 2
    return Tile(block_m, block_n, block_k, stages=stages, warps=warps, splits=splits)
