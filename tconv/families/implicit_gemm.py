"""The general implicit matrix product: operands gathered by address, any geometry, any GPU.

It reads channels_last operands, and converts contiguous ones to that layout first. A second family
reads contiguous operands in place, so that the tuner can compare the two.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from tconv.families import gathered
from tconv.families.common import phases_of
from tconv.families.demand import Demand, gathered_demand, load_width
from tconv.families.family import Family
from tconv.families.gathered import scattered
from tconv.families.reduce import LEAST_SPLIT_STEPS, splits_to_fill
from tconv.families.relayout import Operands
from tconv.geometry import cdiv, power_of_two
from tconv.launch import Plan
from tconv.problem import Epilogue, Layout, Problem
from tconv.target import Target
from tconv.tile import Count, Tile, Tiles

EXACT_WARPS = 8  # where a thread of 32 exact sums and their addresses spills
GATHERED = 8  # elements of a step that a thread fetches one by one


def unserved(problem: Problem, target: Target) -> str | None:
    """Return None: this family serves every problem."""
    return None


def unserved_in_place(problem: Problem, target: Target) -> str | None:
    """Return None for contiguous tensors; the general family reads channels_last ones in place."""
    return None if problem.layout == "nchw" else "tensors are channels_last already"


def product(
    problem: Problem,
    tile: Tile,
    target: Target,
    epilogue: Epilogue,
    w_layout: Layout,
    in_place: bool = False,
) -> Plan:
    """y = x * w and the epilogue, or dx from dy and w.

    With ``in_place`` x and dy are read as they are, channels before pixels.
    """
    operands = Operands(target, problem.dtype)
    if problem.direction == "dgrad":
        return gathered.dgrad(problem, tile, operands, w_layout, in_place, epilogue)
    seen = gathered.seen_by(problem, operands, w_layout, in_place)
    return gathered.fprop(problem, tile, operands, seen, epilogue)


def wgrad(
    problem: Problem, tile: Tile, target: Target, w_layout: Layout, in_place: bool = False
) -> Plan:
    """dw from x and dy."""
    operands = Operands(target, problem.dtype)
    seen = gathered.seen_by(problem, operands, None, in_place)
    return gathered.wgrad(problem, tile, operands, seen, w_layout)


# ---- estimates ------------------------------------------------------------------------------


def _spans_taps(problem: Problem, tile: Tile | Tiles) -> Count:
    """Return whether a tile of wgrad's columns spans filter taps, with a mask for each element."""
    across = problem.geometry.group_in_channels % tile.block_n != 0
    return across & (problem.direction == "wgrad")


def demand(problem: Problem, tile: Tile | Tiles, target: Target) -> Demand:
    """Return a thread's estimated registers and instructions.

    Neighbours in memory lie along channels. If these end within 16 bytes, or a tile spans several
    taps, a load fetches less.
    """
    shape = problem.geometry
    reduced, produced = shape.group_in_channels, shape.group_out_channels
    across = _spans_taps(problem, tile)
    if problem.direction == "fprop":
        widths = (load_width(problem, reduced, tile.block_k),) * 2
    elif problem.direction == "dgrad":
        first = load_width(problem, produced, tile.block_k)
        widths = first, load_width(problem, reduced, tile.block_n)
    else:
        widths = (
            load_width(problem, produced, tile.block_m),
            load_width(problem, reduced, tile.block_n),
        )
    return gathered_demand(problem, tile, target, widths, across)


def demand_in_place(problem: Problem, tile: Tile | Tiles, target: Target) -> Demand:
    """Return ``demand`` for contiguous tensors: a load fetches one element; rows begin anywhere."""
    filters = 1
    if problem.direction != "wgrad":
        block = tile.block_k if problem.direction == "fprop" else tile.block_n
        filters = load_width(problem, problem.geometry.group_in_channels, block)
    return gathered_demand(problem, tile, target, (1, filters), _spans_taps(problem, tile))


# ---- the tile of an untuned layer -----------------------------------------------------------


def heuristic(problem: Problem, target: Target) -> Tile:
    """Return the rule-of-thumb tile."""
    if problem.direction == "wgrad":
        return _wgrad_tile(problem, target)
    return _pixel_tile(problem, target)


def heuristic_in_place(problem: Problem, target: Target) -> Tile:
    """Return the rule-of-thumb tile with shorter steps: each element takes its own address."""
    tile = heuristic(problem, target)
    if target.backend == "interpreter":
        return tile
    gathered = tile.block_m + (tile.block_n if problem.direction == "wgrad" else 0)
    most = GATHERED * tile.warps * target.warp_size
    block_m, block_k = tile.block_m, tile.block_k
    while block_k > 16 and gathered * block_k > most:
        block_k //= 2
    while problem.direction != "wgrad" and block_m > 32 and block_m * block_k > most:
        block_m //= 2
    exact = problem.arithmetic == "float32" and problem.direction != "wgrad"
    warps = EXACT_WARPS if exact and target.backend == "cuda" else tile.warps
    return replace(tile, block_m=block_m, block_k=block_k, warps=warps)


def _pixel_tile(problem: Problem, target: Target) -> Tile:
    """Return the tile of fprop or dgrad: pixels x channels, reduced over channels."""
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
    # The operands of three products wait in registers, before sm_90.
    crowded = problem.precision == "tf32x3" and target.sm < 90
    if exact:
        block_n, block_k = power_of_two(produced, 16, 64), 16
    else:
        block_n = power_of_two(produced, 16, 128)
        block_k = power_of_two(reduced, 16, 128 // problem.itemsize)
        if crowded or scattered(problem, target):
            block_n = min(block_n, 64)
    thin = block_n * block_k <= 16 * 16  # all addresses, no products: registers run out first
    block_m = 64 if exact or thin or crowded or (block_n == 128 and problem.itemsize == 4) else 128
    phased = problem.layout == "nchw" and phases_of(shape) > 1
    crammed = problem.direction == "dgrad" and problem.arithmetic == "float32"
    crammed = crammed and (target.sm >= 100 or (phased and target.backend == "cuda"))
    if crammed and phased and target.sm >= 100:
        block_m = 32
    programs = -(-pixels // block_m) * -(-produced // block_n) * shape.groups
    while block_m > 32 and programs < target.processors:
        block_m, programs = block_m // 2, programs * 2
    # Small images leave processors idle even so: the reduction is shared.
    steps = shape.taps * cdiv(reduced, block_k)
    if problem.direction == "dgrad":
        programs *= phases_of(shape)
        steps = cdiv(steps, shape.stride_h * shape.stride_w)
    splits = splits_to_fill(target.processors, programs, steps // LEAST_SPLIT_STEPS, 16)
    warps = 8 if block_m * block_n >= 128 * (64 if scattered(problem, target) else 128) else 4
    if crammed:
        warps = EXACT_WARPS
    stages = 3 if target.backend == "cuda" else 2
    return Tile(block_m, block_n, block_k, stages=stages, warps=warps, splits=splits)


def _wgrad_tile(problem: Problem, target: Target) -> Tile:
    """Return the tile of wgrad: filters x (taps x channels), reduced over pixels by ``splits``."""
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
    splits = splits_to_fill(2 * target.processors, programs, steps // 8, 256)
    warps = 8 if block_m * block_n >= most * most else 4
    stages = 3 if target.backend == "cuda" else 2
    return Tile(block_m, block_n, block_k, stages=stages, warps=warps, splits=splits)


FAMILY = Family(
    name="implicit_gemm",
    unserved=unserved,
    heuristic=heuristic,
    product=product,
    wgrad=wgrad,
    demand=demand,
)
IN_PLACE = replace(
    FAMILY,
    name="implicit_gemm_in_place",
    unserved=unserved_in_place,
    heuristic=heuristic_in_place,
    product=partial(product, in_place=True),
    wgrad=partial(wgrad, in_place=True),
    demand=demand_in_place,
)
