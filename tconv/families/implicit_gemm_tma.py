"""Implicit matrix products from boxes that the hardware loads (TMA): sm_90 and later."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from tconv.families.boxes import (
    LONGEST_SIDE,
    Views,
    image_sizes,
    is_flat,
    result_box,
    wgrad_box,
    whole_slice,
)
from tconv.families.common import (
    PixelBox,
    accumulator_type,
    index_type,
    pack_of,
    programs,
    tap_constants,
    whole_windows,
)
from tconv.families.demand import (
    SPARED_REGISTERS,
    Demand,
    accumulator_registers,
    matrix_instructions,
)
from tconv.families.epilogue import epilogue_constants, epilogue_operands, lightened
from tconv.families.family import PIXEL_AXES, WGRAD_AXES, Axes, Family
from tconv.families.matmul import MatmulShape, Packed
from tconv.families.reduce import LEAST_SPLIT_STEPS, Shares, splits_to_fill, workspace
from tconv.families.relayout import Operands
from tconv.geometry import cdiv, power_of_two
from tconv.launch import Launch, Operand, Plan, Pointer
from tconv.problem import PLAIN, Epilogue, Layout, Problem
from tconv.target import Target
from tconv.tile import Count, Tile, Tiles

ALIGNMENT = 16  # bytes that every stride of a box's tensor is a multiple of
LEAST_SLICE = 16  # channels, of what the matrix unit takes
LEAST_FILLED = 0.5  # of a box, where boxes must divide the images

LEAST_BLOCK = 64  # rows of the matrix instruction that reads boxes
BARRIERS = 64  # bytes, at most: eight for each stage
MOST_SMALL_PARTS = 16 << 10  # bytes of the pixels' small parts in tf32x3
# Fitted to 9 compiled kernels (sm_90), tf32x3 to 33: no thread computes an address.
LOOP_INSTRUCTIONS, INSTRUCTIONS_PER_PRODUCT, REGISTERS_BESIDE_SUMS = 86.0, 3.0, 27
INSTRUCTIONS_OF_PARTS, INSTRUCTIONS_PER_PART_PRODUCT = 50.0, 15.0
REGISTERS_OF_PARTS, REGISTERS_PER_SUM = 66, 2.2


def unserved(problem: Problem, target: Target) -> str | None:
    """Return why boxes cannot serve ``problem``, in a line, or None."""
    shape, direction = problem.geometry, problem.direction
    if target.backend != "interpreter":
        if target.sm < 90:
            return f"{target.arch} has no tensor memory access; sm_90 and later have"
        if problem.arithmetic in ("float32", "float64"):
            return f"exact {problem.dtype} products have no instruction that reads boxes"
        if problem.itemsize == 4 and direction != "fprop":
            return f"the matrix unit reads {problem.arithmetic} along the reduction only"
    if 0 in (shape.x_elements, shape.w_elements, shape.y_elements):
        return "there is nothing to load"
    step = ALIGNMENT // problem.itemsize
    read = {"fprop": (shape.in_channels, shape.group_in_channels),
            "dgrad": (shape.group_in_channels, shape.out_channels),
            "wgrad": (shape.in_channels, shape.out_channels)}[direction]  # fmt: skip
    odd = [channels for channels in read if channels % step]
    if odd:
        return f"{odd[0]} channels of {problem.dtype} are not a multiple of {ALIGNMENT} bytes"
    strides = (shape.stride_h, shape.stride_w)
    if strides != (1, 1):
        if direction == "dgrad":
            return "phases of a strided gradient are gathered by address"
        if strides != (2, 2) or shape.in_h % 2 or shape.in_w % 2:
            return "boxes step by 1, or by 2 over images of even height and width"
        if direction == "fprop" and shape.group_in_channels % LEAST_SLICE:
            odd_ones = f"{shape.group_in_channels} channels are not a multiple of 16"
            return f"{odd_ones}, and stride 2 pairs pixels"
    reduced = shape.group_out_channels if direction == "dgrad" else shape.group_in_channels
    if shape.groups > 1 and direction != "wgrad" and reduced % LEAST_SLICE:
        return f"a box of 16 channels does not stop at a group's {reduced}"
    if direction == "wgrad":
        return _unfilled(problem)
    return None


def _unfilled(problem: Problem) -> str | None:
    """Return whether boxes that divide the output's rows and columns would be mostly empty."""
    if is_flat(problem):
        return None
    shape = problem.geometry
    pixels = shape.batch * shape.out_h * shape.out_w
    if pixels >= LEAST_FILLED * wgrad_box(problem, 64).count * 64:
        return None
    return f"boxes that divide {shape.out_h} x {shape.out_w} pixels would be mostly empty"


# ---- plans ----------------------------------------------------------------------------------


def _constants(problem: Problem, tile: Tile, box: PixelBox) -> dict[str, Any]:
    shape = problem.geometry
    return {
        "FILTER_H": shape.filter_h,
        "FILTER_W": shape.filter_w,
        "ACCUMULATOR": accumulator_type(problem.dtype),
        "INDEX": index_type(shape.x_elements, shape.w_elements, shape.y_elements),
        "PRECISION": problem.precision,
        "BOX_N": box.images,
        "BOX_H": box.rows,
        "BOX_W": box.columns,
        "GROUPS": shape.groups,
        "BLOCK_N": tile.block_n,
        "SWIZZLE": tile.swizzle,
    }


def product(
    problem: Problem, tile: Tile, target: Target, epilogue: Epilogue, w_layout: Layout
) -> Plan:
    """y = x * w + bias, or dx from dy and w at stride 1: channels by boxes of pixels."""
    shape, dtype = problem.geometry, problem.dtype
    operands = Operands(target, dtype)
    if epilogue.pool:
        tile = whole_windows(tile)
    forward = problem.direction == "fprop"
    reduced, produced = shape.group_in_channels, shape.group_out_channels
    if not forward:
        reduced, produced = produced, reduced
    stride = shape.stride_h if forward else 1
    if shape.groups > 1 or stride > 1:  # beyond the last channel lies another group or pixel
        tile = replace(tile, block_k=whole_slice(reduced, tile.block_k))
    shares = Shares.of(shape.taps * cdiv(reduced, tile.block_k), tile.splits)
    split = shares.splits > 1
    boxes = not split and problem.layout == "nhwc"
    boxes = boxes and produced * problem.itemsize % ALIGNMENT == 0 and not epilogue.pool
    stored = PLAIN if split else epilogue  # a split's epilogue runs where its parts are added
    tile = lightened(tile, stored, problem, target, boxes)
    boxes = boxes and (shape.groups == 1 or produced % tile.block_n == 0)
    box = result_box(problem, tile.block_m, epilogue.pool)
    views = Views(problem, box)
    w = operands.w(shape, w_layout)
    flat = is_flat(problem) and tile.block_m <= LONGEST_SIDE and not epilogue.pool
    x_size, y_size = image_sizes(problem, flat)
    if forward:
        image, read, size, result_name = operands.x(shape, problem.layout), x_size, y_size, "y"
    else:
        image, read, size, result_name = operands.dy(shape, problem.layout), y_size, x_size, "dx"
    result: Operand = Pointer(result_name, dtype)
    if split:
        result = workspace(problem)
    elif boxes:
        result = views.pixels(result_name, size, shape.groups * produced, tile.block_n)
    filters = (tile.block_n, tile.block_k) if forward else (tile.block_k, tile.block_n)
    taken: dict[str, Operand] = {
        "image": views.pixels(image, read, shape.groups * reduced, tile.block_k, stride),
        "filters": views.filters(w, filters),
        "result": result,
    }
    constants = _constants(problem, tile, box) | {
        "REDUCED": reduced,
        "PRODUCED": produced,
        "STRIDE": stride,
        **tap_constants(problem),
        "REDUCED_FIRST": not forward,
        "BOXES": boxes,
        "NHWC": split or problem.layout == "nhwc",
        "SPLIT": split,
        "BLOCK_K": tile.block_k,
    }
    taken |= epilogue_operands(stored, dtype)
    for name in {"residual", "kept"} & taken.keys() if boxes else ():
        taken[name] = views.pixels(name, size, shape.groups * produced, tile.block_n)
    constants |= epilogue_constants(stored)
    tiles, others = box.count * cdiv(produced, tile.block_n), shares.splits * shape.groups
    product = Launch(
        "tma.implicit_gemm_tma",
        (programs(tiles, others, tile, target) * shape.groups, shares.splits),
        taken,
        {"batch": size[0], "rows": size[1], "columns": size[2], "split_steps": shares.steps},
        constants,
        tile.warps,
        tile.stages,
    )
    return operands.plan(product, problem, result_name, problem.layout, shares.splits, epilogue)


def wgrad(problem: Problem, tile: Tile, target: Target, w_layout: Layout) -> Plan:
    """dw from x and dy: filters by channels of one tap, reduced over boxes of pixels."""
    shape = problem.geometry
    operands = Operands(target, problem.dtype)
    x = operands.x(shape, problem.layout)
    dy = operands.dy(shape, problem.layout)
    box = wgrad_box(problem, tile.block_k)
    x_size, y_size = image_sizes(problem, is_flat(problem))
    along_batch = box.images == tile.block_k
    views = Views(problem, box, along_batch)
    shares = Shares.of(box.count, tile.splits)
    split = shares.splits > 1
    pack = pack_of(problem, min(tile.block_m, tile.block_n))  # of narrow groups
    groups, filters = shape.groups // pack, pack * shape.group_out_channels
    channels = pack * shape.group_in_channels
    tiles = cdiv(filters, tile.block_m) * shape.taps * cdiv(channels, tile.block_n)
    product = Launch(
        "tma.implicit_gemm_tma_wgrad",
        (tiles * groups, shares.splits),
        {
            "image": views.pixels(x, x_size, shape.in_channels, tile.block_n, shape.stride_h),
            "gradient": views.pixels(dy, y_size, shape.out_channels, tile.block_m),
            "dw": workspace(problem) if split else Pointer("dw", problem.dtype),
        },
        {
            "batch": y_size[0],
            "out_h": y_size[1],
            "out_w": y_size[2],
            "boxes": box.count,
            "split_boxes": shares.steps,
        },
        _constants(problem, tile, box)
        | {
            "IN_CHANNELS": channels,
            "OUT_CHANNELS": filters,
            "GROUPS": groups,
            "PACK": pack,
            "STRIDE": shape.stride_h,
            "PAD_H": shape.pad_h,
            "PAD_W": shape.pad_w,
            "DILATION_H": shape.dilation_h,
            "DILATION_W": shape.dilation_w,
            "DW_NHWC": split or w_layout == "nhwc",
            "ALONG_BATCH": along_batch,
            "INDEX": index_type(shares.splits * shape.w_elements),
            "BLOCK_M": tile.block_m,
        },
        tile.warps,
        tile.stages,
    )
    return operands.plan(product, problem, "dw", w_layout, shares.splits)


# ---- the tile of an untuned layer -----------------------------------------------------------


def heuristic(problem: Problem, target: Target) -> Tile:
    """Return a large tile that fills the processors, its reduction split where it would not."""
    shape = problem.geometry
    if problem.direction == "wgrad":
        return _wgrad_tile(problem, target)
    reduced, produced = shape.group_in_channels, shape.group_out_channels
    if problem.direction == "dgrad":
        reduced, produced = produced, reduced
    widest = 128 // problem.itemsize  # of a slice of channels: a line of shared memory
    block_k = power_of_two(reduced, 16, widest)
    if shape.groups > 1 or (problem.direction == "fprop" and shape.stride_h == 2):
        block_k = whole_slice(reduced, block_k)
    block_n = power_of_two(produced, 64, 128)  # channels are the rows of the matrix instruction
    block_m = 128
    while block_m > 64 and _tiles(problem, block_m, block_n) < target.processors:
        block_m //= 2
    steps = shape.taps * cdiv(reduced, block_k)
    tiles = _tiles(problem, block_m, block_n)
    splits = splits_to_fill(target.processors, tiles, steps // LEAST_SPLIT_STEPS, 16)
    warps = 8 if block_m * block_n >= 128 * 128 else 4
    return Tile(block_m, block_n, block_k, stages=4, warps=warps, splits=splits)


def _tiles(problem: Problem, block_m: int, block_n: int) -> int:
    shape = problem.geometry
    backward = problem.direction == "dgrad"
    produced = shape.group_in_channels if backward else shape.group_out_channels
    return result_box(problem, block_m).count * cdiv(produced, block_n) * shape.groups


def _wgrad_tile(problem: Problem, target: Target) -> Tile:
    shape = problem.geometry
    pack = pack_of(problem, 128)
    filters, channels = pack * shape.group_out_channels, pack * shape.group_in_channels
    block_m = power_of_two(filters, 64, 128)
    block_n = power_of_two(channels, 16, 128)
    columns = shape.taps * cdiv(channels, block_n) * (shape.groups // pack)
    tiles = cdiv(filters, block_m) * columns
    boxes = wgrad_box(problem, 64).count
    splits = splits_to_fill(2 * target.processors, tiles, boxes // LEAST_SPLIT_STEPS, 256)
    warps = 8 if block_m * block_n >= 128 * 128 else 4
    return Tile(block_m, block_n, 64, stages=4, warps=warps, splits=splits)


# ---- axes and estimates ---------------------------------------------------------------------

# Channels are the rows of the matrix instruction, and a slice of them a line of shared memory.
AXES = Axes(
    block_m=(32, 64, 128, 256),
    block_n=(64, 128, 256),
    stages=(2, 3, 4, 5, 6),
    warps=(4, 8),
    splits=PIXEL_AXES.splits,
    persistent=PIXEL_AXES.persistent,
)
AXES_OF_WGRAD = replace(
    WGRAD_AXES, block_m=(64, 128, 256), block_k=(32, 64, 128), stages=(2, 3, 4, 5), warps=(4, 8)
)


def tile_axes(problem: Problem) -> Axes:
    """Return the values that each field of a tile may take."""
    if problem.direction == "wgrad":
        return AXES_OF_WGRAD
    shape = problem.geometry
    if problem.direction == "fprop" and shape.stride_h == 2:  # slices must divide the channels
        divide = tuple(k for k in AXES.block_k if shape.in_channels % k == 0)
        return replace(AXES, block_k=divide)
    return AXES


def matmul(problem: Problem) -> MatmulShape:
    """Return the product of boxes of pixels by channels; in wgrad each tap is an instance."""
    shape = problem.geometry
    filters, channels = shape.group_out_channels, shape.group_in_channels
    pixels = shape.batch * shape.out_h * shape.out_w
    if problem.direction == "wgrad":
        box = partial(wgrad_box, problem)
        if shape.groups > 1:
            return Packed(
                shape.out_channels, shape.in_channels, pixels, 1, 1,
                depth_box=box, problem=problem, by_taps=True,
            )  # fmt: skip
        return MatmulShape(filters, channels, pixels, 1, shape.taps, depth_box=box)
    if problem.direction == "dgrad":
        pixels, filters, channels = shape.batch * shape.in_h * shape.in_w, channels, filters
    box = partial(result_box, problem)
    return MatmulShape(pixels, filters, channels, shape.taps, shape.groups, row_box=box)


def issued(problem: Problem, tile: Tile | Tiles) -> Tile | Tiles:
    """Return the tile as the matrix unit sees it: its rows are channels, its columns pixels."""
    if problem.direction == "wgrad":
        return tile
    return replace(tile, block_m=tile.block_n, block_n=tile.block_m)


def stored_bytes(problem: Problem, tile: Tile | Tiles) -> Count:
    """Return the shared memory of barriers, and of a result that is stored as a box.

    Three products of tf32 also take the small parts of a step's channels, and of its pixels up to
    16 KiB.
    """
    boxed = problem.direction != "wgrad" and problem.layout == "nhwc"
    stored = tile.block_m * tile.block_n * problem.itemsize * (boxed & (tile.splits == 1))
    if problem.arithmetic == "tf32x3":
        channels = tile.block_n * tile.block_k * problem.itemsize
        operands = channels + tile.block_m * tile.block_k * problem.itemsize
        stored = stored + np.maximum(channels, np.minimum(operands, MOST_SMALL_PARTS))
    return BARRIERS + stored


def demand(problem: Problem, tile: Tile | Tiles, target: Target) -> Demand:
    """Return a thread's estimated registers and instructions."""
    products = matrix_instructions(issued(problem, tile), problem, target)
    sums = accumulator_registers(problem, tile, target, tile.block_m * tile.block_n)
    if problem.arithmetic == "tf32x3":  # operands pass through registers, where they are split
        registers = np.rint(REGISTERS_OF_PARTS + REGISTERS_PER_SUM * sums)
        instructions = INSTRUCTIONS_OF_PARTS + INSTRUCTIONS_PER_PART_PRODUCT * products
        return Demand(registers, instructions, registers - SPARED_REGISTERS)
    instructions = LOOP_INSTRUCTIONS + INSTRUCTIONS_PER_PRODUCT * products
    return Demand(sums + REGISTERS_BESIDE_SUMS, instructions)


FAMILY = Family(
    name="implicit_gemm_tma",
    unserved=unserved,
    heuristic=heuristic,
    product=product,
    wgrad=wgrad,
    axes=tile_axes,
    matmul=matmul,
    demand=demand,
    least_block=LEAST_BLOCK,
    issued=issued,
    stored_bytes=stored_bytes,
)
