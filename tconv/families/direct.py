"""Without the matrix unit: few channels and filters, exact products, tensors where they lie."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from tconv.families.common import (
    accumulator_type,
    index_type,
    shape_constants,
    sizes,
    summed_pixels,
    tap_constants,
    whole_windows,
)
from tconv.families.demand import Demand, accumulator_registers
from tconv.families.epilogue import epilogue_constants, epilogue_operands
from tconv.families.family import WGRAD_AXES, Axes, Family
from tconv.families.matmul import MatmulShape, gathered_matmul
from tconv.families.reduce import Shares, splits_to_fill, workspace
from tconv.families.relayout import Operands
from tconv.geometry import cdiv, power_of_two
from tconv.launch import Launch, Plan, Pointer
from tconv.problem import Epilogue, Layout, Problem
from tconv.target import Target
from tconv.tile import Count, Tile, Tiles

MOST_CHANNELS = 64  # of a group, in and out: with more, the matrix unit's blocks are well filled
# Fitted to 24 compiled kernels (sm_90, LeNet-5's layers): a load brings its mask and, in 16 bits, a
# conversion; all loads of a step wait in registers.
LOOP_INSTRUCTIONS, WGRAD_LOOP_INSTRUCTIONS, INSTRUCTIONS_PER_LOAD = 60.0, 110.0, 1.6
# Fitted to 140 compiled kernels of wgrad (sm_90): a sum of a thread is added up over its warp, by
# five shuffles and five additions, and over warps through shared memory.
END_INSTRUCTIONS, END_INSTRUCTIONS_PER_SUM = 37.0, 12.7
REGISTERS_BESIDE_SUMS = 40
THREAD_OUTPUTS = 32  # sums that a thread keeps: enough products for each load, few registers


def unserved(problem: Problem, target: Target) -> str | None:
    """Return why direct sums cannot serve ``problem``, in a line, or None."""
    shape = problem.geometry
    channels = max(shape.group_in_channels, shape.group_out_channels)
    if channels > MOST_CHANNELS:
        return f"{channels} channels or filters fill the matrix unit"
    if problem.direction == "dgrad" and (shape.stride_h, shape.stride_w) != (1, 1):
        return "in a strided gradient every tap would need a test of whether it counts"
    return None


def product(
    problem: Problem, tile: Tile, target: Target, epilogue: Epilogue, w_layout: Layout
) -> Plan:
    """y = x * w + bias, or dx from dy and w: the taps then run backwards."""
    if epilogue.pool:
        tile = whole_windows(tile)
    shape, dtype = problem.geometry, problem.dtype
    forward, extents = problem.direction == "fprop", sizes(problem)
    reduced, produced = shape.group_in_channels, shape.group_out_channels
    names = ("x", "y")
    if not forward:
        reduced, produced, names = produced, reduced, ("dy", "dx")
        extents |= {"in_h": shape.out_h, "in_w": shape.out_w}
        extents |= {"out_h": shape.in_h, "out_w": shape.in_w}
    taken = {"image": Pointer(names[0], dtype), "filters": Pointer("w", dtype)}
    taken["result"] = Pointer(names[1], dtype)
    constants: dict[str, Any] = {
        "GROUPS": shape.groups,
        "FILTER_H": shape.filter_h,
        "FILTER_W": shape.filter_w,
        "STRIDE_H": shape.stride_h,
        "STRIDE_W": shape.stride_w,
        "NHWC": problem.layout == "nhwc",
        "ACCUMULATOR": accumulator_type(problem.dtype),
        "REDUCED": reduced,
        "PRODUCED": produced,
        "FORWARD": forward,
        "W_NHWC": w_layout == "nhwc",
        "INDEX": index_type(shape.x_elements, shape.w_elements, shape.y_elements),
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        **tap_constants(problem),
    }
    taken |= epilogue_operands(epilogue, dtype)
    constants |= epilogue_constants(epilogue)
    pixels = extents["batch"] * extents["out_h"] * extents["out_w"]
    if epilogue.pool:
        pixels = summed_pixels(shape, epilogue)
    grid = (cdiv(pixels, tile.block_m) * shape.groups, cdiv(produced, tile.block_n))
    return Plan((Launch("direct.direct", grid, taken, extents, constants, tile.warps),))


def wgrad(problem: Problem, tile: Tile, target: Target, w_layout: Layout) -> Plan:
    """dw from x and dy: filters by (taps, channels), reduced over pixels by splits."""
    shape, operands = problem.geometry, Operands(target, problem.dtype)
    filters, columns = shape.group_out_channels, shape.taps * shape.group_in_channels
    pixels = shape.batch * shape.out_h * shape.out_w
    shares = Shares.of(cdiv(pixels, tile.block_k), tile.splits)
    split = shares.splits > 1
    tiles = cdiv(filters, tile.block_m) * cdiv(columns, tile.block_n)
    product = Launch(
        "direct.direct_wgrad",
        (tiles * shape.groups, shares.splits),
        {
            "x": Pointer("x", problem.dtype),
            "dy": Pointer("dy", problem.dtype),
            "dw": workspace(problem) if split else Pointer("dw", problem.dtype),
        },
        sizes(problem) | {"split_steps": shares.steps},
        {name: value for name, value in shape_constants(problem).items() if name != "PRECISION"}
        | {
            "NHWC": problem.layout == "nhwc",
            "DW_NHWC": split or w_layout == "nhwc",
            "INDEX": index_type(
                shape.x_elements, shape.y_elements, shares.splits * shape.w_elements
            ),
            "BLOCK_M": tile.block_m,
            "BLOCK_N": tile.block_n,
            "BLOCK_K": tile.block_k,
        },
        tile.warps,
    )
    return operands.plan(product, problem, "dw", w_layout, shares.splits)


def heuristic(problem: Problem, target: Target) -> Tile:
    """Return the tile with as many sums per thread as fit in registers, and enough programs."""
    shape = problem.geometry
    if target.backend == "interpreter":  # it costs per program
        return Tile(1024, 16, 16 if problem.direction == "wgrad" else 1, stages=1, warps=4)
    threads = 4 * target.warp_size
    if problem.direction == "wgrad":
        columns = shape.taps * shape.group_in_channels
        block_m = power_of_two(shape.group_out_channels, 1, 8)
        block_n = power_of_two(columns, 1, THREAD_OUTPUTS // block_m)
        tiles = cdiv(shape.group_out_channels, block_m) * cdiv(columns, block_n) * shape.groups
        steps = cdiv(shape.batch * shape.out_h * shape.out_w, threads)
        splits = splits_to_fill(4 * target.processors, tiles, steps // 4, 256)
        return Tile(block_m, block_n, threads, stages=1, warps=4, splits=splits)
    pixels, produced = shape.batch * shape.out_h * shape.out_w, shape.group_out_channels
    if problem.direction == "dgrad":
        pixels = shape.batch * shape.in_h * shape.in_w
        produced = shape.group_in_channels
    block_n = power_of_two(produced, 1, 16)
    block_m = threads * power_of_two(THREAD_OUTPUTS // block_n, 1, 4)
    programs = cdiv(pixels, block_m) * cdiv(produced, block_n) * shape.groups
    while block_m > threads and programs < target.processors:
        block_m, programs = block_m // 2, programs * 2
    return Tile(block_m, block_n, 1, stages=1, warps=4)


# ---- axes and estimates ---------------------------------------------------------------------

# Without the matrix unit: any block will do, and no pipeline hides what the L1 delivers.
AXES = Axes(
    block_m=(64, 128, 256, 512, 1024),
    block_n=(1, 2, 4, 8, 16, 32),
    block_k=(1,),
    stages=(1,),
    swizzle=(8,),
)
AXES_OF_WGRAD = replace(
    AXES,
    block_m=(1, 2, 4, 8, 16),
    block_k=(64, 128, 256, 512),
    splits=WGRAD_AXES.splits,
)


def tile_axes(problem: Problem) -> Axes:
    """Return the values that each field of a tile may take."""
    return AXES_OF_WGRAD if problem.direction == "wgrad" else AXES


def sums(problem: Problem, tile: Tile | Tiles) -> Count:
    """Return a program's accumulators: its outputs, in wgrad for each pixel of a step."""
    each = tile.block_k if problem.direction == "wgrad" else 1
    return tile.block_m * tile.block_n * each


def matmul(problem: Problem) -> MatmulShape:
    """Return the product; a step is a filter's row over one channel, or ``block_k`` pixels."""
    shape = problem.geometry
    if problem.direction == "wgrad":
        return replace(gathered_matmul(problem), depth_box=None)
    rows, columns = shape.batch * shape.out_h * shape.out_w, shape.group_out_channels
    depth = shape.group_in_channels
    if problem.direction == "dgrad":
        rows, columns, depth = shape.batch * shape.in_h * shape.in_w, depth, columns
    return MatmulShape(rows, columns, depth, shape.filter_h, shape.groups, step_taps=shape.filter_w)


def _loads(problem: Problem, tile: Tile | Tiles, target: Target) -> tuple[Count, Count]:
    """Loads of a thread in one step, an element each: it loads what its own sums need."""
    threads = tile.warps * target.warp_size
    if problem.direction == "wgrad":
        pixels = np.maximum(1.0, tile.block_k / threads)
        others = tile.block_m * tile.block_n * tile.block_k / threads / pixels
        filters = np.minimum(tile.block_m, others)
        return pixels * filters, pixels * others / filters
    pixels = np.maximum(1.0, tile.block_m / threads)
    channels = sums(problem, tile) / threads / pixels
    taps = problem.geometry.filter_w
    return pixels * taps, channels * taps


def demand(problem: Problem, tile: Tile | Tiles, target: Target) -> Demand:
    """Return a thread's estimated registers and instructions."""
    first, second = _loads(problem, tile, target)
    loads = first + second
    outputs = accumulator_registers(problem, tile, target, sums(problem, tile))
    conversions = loads if problem.itemsize == 2 else 0.0
    wgrad = problem.direction == "wgrad"
    instructions = WGRAD_LOOP_INSTRUCTIONS if wgrad else LOOP_INSTRUCTIONS
    instructions += INSTRUCTIONS_PER_LOAD * loads + conversions
    instructions += outputs * (1 if wgrad else problem.geometry.filter_w)
    end: Count = 0.0
    if wgrad:  # a thread first adds up its own pixels
        pixels = np.maximum(1.0, tile.block_k / (tile.warps * target.warp_size))
        end = END_INSTRUCTIONS + END_INSTRUCTIONS_PER_SUM * outputs / pixels
    # Loads wait for registers before anything is spilled: only the sums must stay.
    kept = REGISTERS_BESIDE_SUMS + outputs
    waiting = np.rint(1.2 * loads)
    return Demand(kept + waiting, instructions, least_registers=kept, end_instructions=end)


def l1_lines(problem: Problem, tile: Tile | Tiles, target: Target) -> Count:
    """Return the lines of L1 that a step reads.

    Threads lie along pixels: a warp's load touches the lines that its pixels lie on.
    """
    shape = problem.geometry
    first, second = _loads(problem, tile, target)
    if problem.layout == "nchw":
        lines = shape.stride_w
    elif problem.direction == "dgrad":
        lines = shape.out_channels
    else:
        lines = shape.stride_w * shape.in_channels
    lines = min(target.warp_size, max(1, lines * problem.itemsize // 4))
    if problem.direction == "wgrad":
        filters = shape.out_channels if problem.layout == "nhwc" else 1
        filters = min(target.warp_size, max(1, filters * problem.itemsize // 4))
        return tile.warps * (first * filters + second * lines)
    return tile.warps * (first * lines + second)


def l1_reuse(problem: Problem) -> int:
    """Return the steps that read the same bytes, the rows under a filter."""
    return 0 if problem.direction == "wgrad" else problem.geometry.filter_h


FAMILY = Family(
    name="direct",
    unserved=unserved,
    heuristic=heuristic,
    product=product,
    wgrad=wgrad,
    axes=tile_axes,
    matmul=matmul,
    demand=demand,
    matrix_unit=False,
    least_block=1,
    sums=sums,
    l1_lines=l1_lines,
    l1_reuse=l1_reuse,
)
