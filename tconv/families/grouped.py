"""Narrow groups, several to a tile of the matrix unit."""

from __future__ import annotations

from dataclasses import replace
from math import gcd
from typing import Any

import numpy as np

from tconv.families import gathered
from tconv.families.common import (
    accumulator_type,
    filter_constants,
    index_type,
    pack_of,
    phases_of,
    pixel_box,
    summed_pixels,
    whole_windows,
)
from tconv.families.demand import (
    Demand,
    gathered_demand,
    load_width,
)
from tconv.families.epilogue import (
    epilogue_constants,
    epilogue_operands,
    lightened,
    place_words,
)
from tconv.families.family import PIXEL_AXES, WGRAD_AXES, Axes, Family
from tconv.families.matmul import Packed, out_box, phased_rows
from tconv.families.reduce import splits_to_fill
from tconv.families.relayout import Operands
from tconv.geometry import cdiv, power_of_two
from tconv.launch import Launch, Plan, Pointer
from tconv.problem import Epilogue, Layout, Problem
from tconv.target import Target
from tconv.tile import Count, Tile, Tiles, for_each

WIDE = 32  # channels or filters of a group, from which on one alone fills a tile
LEAST = 16  # of the matrix unit, on each axis
# Before sm_90 a thread holds the elements gathered for narrow groups in registers, with their
# addresses (fitted to 6 kernels compiled for sm_80 by Triton 3.9; 3.7 takes a tenth less).
REGISTERS_BESIDE_GATHERED = 40
REGISTERS_PER_GATHERED = 14


def unserved(problem: Problem, target: Target) -> str | None:
    """Return why groups cannot be packed for ``problem``, in a line, or None."""
    shape = problem.geometry
    if shape.groups == 1:
        return "there is one group"
    if shape.group_in_channels == 1:
        return "a group of one channel has nothing to multiply"
    widest = max(shape.group_in_channels, shape.group_out_channels)
    if widest >= WIDE:
        return f"a group of {widest} fills a tile alone"
    return None


def _extents(problem: Problem) -> tuple[int, int]:
    """Return one group's channels that are summed over, and those that are produced."""
    shape = problem.geometry
    pair = (shape.group_in_channels, shape.group_out_channels)
    return pair if problem.direction == "fprop" else pair[::-1]


def product(
    problem: Problem, tile: Tile, target: Target, epilogue: Epilogue, w_layout: Layout
) -> Plan:
    """y = x * w and the epilogue, or dx from dy and w; block_n sets how many groups fit."""
    shape, dtype, layout = problem.geometry, problem.dtype, problem.layout
    forward = problem.direction == "fprop"
    if epilogue.pool:
        tile = whole_windows(tile)
    if not forward:
        tile = lightened(tile, epilogue, problem, target, beside=place_words(problem))
    operands = Operands(target, dtype)
    image, result = (operands.x, "y") if forward else (operands.dy, "dx")
    taken: dict[str, Any] = {
        "image": Pointer(image(shape, layout), dtype),
        "filters": Pointer(operands.w(shape, w_layout), dtype),
        "result": Pointer(result, dtype),
    }
    taken |= epilogue_operands(epilogue, dtype)
    pack, (reduced, produced) = pack_of(problem, tile.block_n), _extents(problem)
    sizes = [(shape.in_h, shape.in_w), (shape.out_h, shape.out_w)]
    (in_h, in_w), (out_h, out_w) = sizes if forward else sizes[::-1]
    common = gcd(shape.stride_h, shape.dilation_h), gcd(shape.stride_w, shape.dilation_w)
    steps = {
        "TAP_STEP_H": 1 if forward else shape.stride_h // common[0],
        "TAP_STEP_W": 1 if forward else shape.stride_w // common[1],
        "STEP_H": shape.dilation_h if forward else -shape.dilation_h // common[0],
        "STEP_W": shape.dilation_w if forward else -shape.dilation_w // common[1],
    }
    phases, pixels = 1, summed_pixels(shape, epilogue)
    if not forward:
        phases = phases_of(shape)
        pixels = shape.batch * cdiv(out_h, shape.stride_h) * cdiv(out_w, shape.stride_w)
    launch = Launch(
        "grouped.grouped",
        (cdiv(pixels, tile.block_m) * (shape.groups // pack), phases),
        taken,
        {"batch": shape.batch, "in_h": in_h, "in_w": in_w, "out_h": out_h, "out_w": out_w},
        {
            **steps,
            **epilogue_constants(epilogue),
            "REDUCED": reduced,
            "PRODUCED": produced,
            "GROUPS": shape.groups,
            "PACK": pack,
            "FORWARD": forward,
            **filter_constants(shape),
            "NHWC": layout == "nhwc",
            "ACCUMULATOR": accumulator_type(dtype),
            "INDEX": index_type(shape.x_elements, shape.w_elements, shape.y_elements),
            "PRECISION": problem.precision,
            "BLOCK_M": tile.block_m,
            "BLOCK_N": power_of_two(pack * produced, LEAST, 1 << 20),
            "BLOCK_K": power_of_two(pack * reduced, LEAST, 1 << 20),
        },
        tile.warps,
        tile.stages,
    )
    return operands.plan(launch, problem, result, layout, 1)


def wgrad(problem: Problem, tile: Tile, target: Target, w_layout: Layout) -> Plan:
    """dw from x and dy: the diagonal blocks of a pack's filters by its channels."""
    pack = pack_of(problem, min(tile.block_m, tile.block_n))
    operands = Operands(target, problem.dtype)
    seen = gathered.seen_by(problem, operands, None, in_place=False)
    return gathered.wgrad(problem, tile, operands, seen, w_layout, pack)


def heuristic(problem: Problem, target: Target) -> Tile:
    """Return the tile that packs as many groups as fill 32 columns; more only multiply zeros."""
    shape = problem.geometry
    # wgrad runs for each pack and tap: fewer, larger ones load x and dy less often.
    block = 64 if problem.direction == "wgrad" or target.backend == "interpreter" else 32
    pack = pack_of(problem, block)
    reduced, produced = _extents(problem)
    stages = 3 if target.backend == "cuda" else 2
    exact = problem.arithmetic in ("float32", "float64")
    block_n = power_of_two(pack * max(reduced, produced), LEAST, 1 << 20)
    if target.backend == "interpreter":
        return Tile(1024, block_n, block_n)
    if problem.direction == "wgrad":
        rows = power_of_two(pack * shape.group_out_channels, LEAST, 128)
        columns = power_of_two(pack * shape.group_in_channels, LEAST, 128)
        block_k = 16 if exact else 128 // problem.itemsize
        boxes = pixel_box(block_k, shape.batch, shape.out_h, shape.out_w).count
        tiles = shape.groups // pack * shape.taps
        splits = splits_to_fill(2 * target.processors, tiles, boxes // 8, 256)
        return Tile(rows, columns, block_k, stages=stages, warps=4, splits=splits)
    crowded = target.backend == "cuda" and target.sm < 90  # operands pass through registers
    block_m = 64 if exact or crowded else 128
    return Tile(block_m, block_n, block_n, stages=stages, warps=8 if crowded else 4)


# ---- axes and estimates ---------------------------------------------------------------------


def tile_axes(problem: Problem) -> Axes:
    """Return the values that each field of a tile may take."""
    if problem.direction == "wgrad":
        return replace(WGRAD_AXES, swizzle=(8,))
    return replace(PIXEL_AXES, swizzle=(8,), splits=(1,), persistent=(0,))


def fits(problem: Problem, tile: Tile | Tiles) -> Count:
    """Return whether a tile is exactly as wide and deep as its pack of groups."""
    shape = problem.geometry
    wgrad = problem.direction == "wgrad"
    block = np.minimum(tile.block_m, tile.block_n) if wgrad else tile.block_n

    def extent(of_one: int) -> Count:
        return for_each(lambda each: power_of_two(pack_of(problem, each) * of_one, LEAST), block)

    filters, channels = extent(shape.group_out_channels), extent(shape.group_in_channels)
    if wgrad:
        return (tile.block_m == filters) & (tile.block_n == channels)
    if problem.direction == "dgrad":
        filters, channels = channels, filters
    return (tile.block_n == filters) & (tile.block_k == channels)


def matmul(problem: Problem) -> Packed:
    """Return the product of narrow groups side by side; a step takes one tap of any depth."""
    shape = problem.geometry
    pixels = shape.batch * shape.out_h * shape.out_w
    if problem.direction == "fprop":
        return Packed(pixels, shape.out_channels, LEAST, shape.taps, 1, problem=problem)
    if problem.direction == "dgrad":
        phases, rows = phased_rows(problem)
        taps = shape.taps / (shape.stride_h * shape.stride_w)
        return Packed(rows, shape.in_channels, LEAST, taps, phases, problem=problem)
    columns = shape.taps * shape.in_channels
    box = out_box(problem)
    return Packed(shape.out_channels, columns, pixels, 1, 1, depth_box=box, problem=problem)


def demand(problem: Problem, tile: Tile | Tiles, target: Target) -> Demand:
    """Return a thread's estimated registers and instructions."""
    shape = problem.geometry
    if problem.direction == "wgrad":
        filters = load_width(problem, shape.group_out_channels, tile.block_m)
        channels = load_width(problem, shape.group_in_channels, tile.block_n)
        return gathered_demand(problem, tile, target, (filters, channels))
    widest = 16 // problem.itemsize
    groups = gcd(widest, shape.group_in_channels)  # filters lie group by group, pixels do not
    found = gathered_demand(problem, tile, target, (widest, groups))
    if target.backend == "cuda" and target.sm < 90:
        gathered = tile.block_m * tile.block_n / (tile.warps * target.warp_size)
        registers = REGISTERS_BESIDE_GATHERED + np.rint(REGISTERS_PER_GATHERED * gathered)
        return replace(found, registers=registers, least_registers=registers)
    return found


FAMILY = Family(
    name="grouped",
    unserved=unserved,
    heuristic=heuristic,
    product=product,
    wgrad=wgrad,
    axes=tile_axes,
    matmul=matmul,
    demand=demand,
    fits=fits,
)
