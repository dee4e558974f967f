"""Without the matrix unit: few channels and filters, exact products, tensors where they lie."""

from __future__ import annotations

from typing import Any

from tconv.algorithms.common import (
    accumulator_type,
    index_type,
    power_of_two,
    shape_constants,
    sizes,
    summed_pixels,
    tap_constants,
    whole_windows,
)
from tconv.algorithms.epilogue import epilogue_constants, epilogue_operands
from tconv.algorithms.reduce import Shares, splits_to_fill, workspace
from tconv.algorithms.relayout import Operands
from tconv.launch import Launch, Plan, Pointer, cdiv
from tconv.problem import PLAIN, Epilogue, Layout, Problem
from tconv.target import Target
from tconv.tile import Tile

MOST_CHANNELS = 64  # of a group, in and out: with more, the matrix unit's blocks are well filled
THREAD_OUTPUTS = 32  # sums that a thread keeps: enough products for each load, few registers


def unserved(problem: Problem, target: Target) -> str | None:
    """Why direct sums do not serve ``problem``, in a line; None where they do."""
    shape = problem.geometry
    channels = max(shape.group_in_channels, shape.group_out_channels)
    if channels > MOST_CHANNELS:
        return f"{channels} channels or filters fill the matrix unit"
    if problem.direction == "dgrad" and (shape.stride_h, shape.stride_w) != (1, 1):
        return "of a strided gradient, every tap would be asked whether it counts"
    return None


def plan(
    problem: Problem,
    tile: Tile,
    target: Target,
    epilogue: Epilogue = PLAIN,
    w_layout: Layout = "nhwc",
) -> Plan:
    """The launches that compute ``problem`` with ``tile``, in order."""
    if problem.direction == "wgrad":
        return _wgrad(problem, tile, target, w_layout)
    return Plan((_product(problem, tile, epilogue, w_layout),))


def _product(problem: Problem, tile: Tile, epilogue: Epilogue, w_layout: Layout) -> Launch:
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
    grid = (cdiv(pixels, tile.block_m), cdiv(produced, tile.block_n), shape.groups)
    return Launch("direct.direct", grid, taken, extents, constants, tile.warps)


def _wgrad(problem: Problem, tile: Tile, target: Target, w_layout: Layout) -> Plan:
    """dw from x and dy: filters by (taps, channels), reduced over pixels by splits."""
    shape, operands = problem.geometry, Operands(target, problem.dtype)
    filters, columns = shape.group_out_channels, shape.taps * shape.group_in_channels
    pixels = shape.batch * shape.out_h * shape.out_w
    shares = Shares.of(cdiv(pixels, tile.block_k), tile.splits)
    split = shares.splits > 1
    tiles = cdiv(filters, tile.block_m) * cdiv(columns, tile.block_n)
    product = Launch(
        "direct.direct_wgrad",
        (tiles, shape.groups, shares.splits),
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
    """As many sums a thread as it has registers for, and programs for every processor."""
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
