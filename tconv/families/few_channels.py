"""Few input channels, as a network's first layer has: a row of the filter counts as one tap.

Pixels are widened to a power of two of channels and the image gets a border of zeros, in one
pass over x. The FILTER_W pixels under a row of the filter then lie side by side, and are
gathered as the channels of one tap without a mask: a 7x7 filter of 3 channels takes 7 steps of
28 products each, in place of 49 steps of 3.
"""

from __future__ import annotations

from dataclasses import replace

from tconv.families import gathered
from tconv.families.common import pixel_box
from tconv.families.demand import Demand, gathered_demand, load_width
from tconv.families.family import Family
from tconv.families.gathered import scattered
from tconv.families.matmul import MatmulShape, gathered_matmul
from tconv.families.reduce import splits_to_fill
from tconv.families.relayout import Operands
from tconv.geometry import cdiv, power_of_two
from tconv.launch import Plan
from tconv.problem import Epilogue, Layout, Problem
from tconv.target import Target
from tconv.tile import Tile, Tiles

MOST_CHANNELS = 8
LONGEST_ROW = 128  # elements: of the longest step
LEAST_COPY = 4  # bytes: what the GPU copies to shared memory on its own


def pixel_width(problem: Problem) -> int:
    """Return the channels of a widened pixel.

    >>> from tconv.geometry import ConvGeometry
    >>> pixel_width(Problem(ConvGeometry.from_lecture("3x32x32", filters=10, extent=5), "fprop"))
    4
    """
    width = power_of_two(problem.geometry.in_channels, 1, MOST_CHANNELS)
    return max(width, LEAST_COPY // problem.itemsize)


def row_length(problem: Problem) -> int:
    """Return the elements under a row of the filter, which are the channels of one tap."""
    return problem.geometry.filter_w * pixel_width(problem)


def unserved(problem: Problem, target: Target) -> str | None:
    """Return why a filter's row cannot be one tap, in a line, or None."""
    shape = problem.geometry
    if problem.direction == "dgrad":
        return "the gradient of x reads dy, whose channels are many"
    if shape.groups > 1:
        return "groups lie side by side in a pixel"
    if shape.in_channels > MOST_CHANNELS:
        return f"{shape.in_channels} input channels are more than {MOST_CHANNELS}"
    if shape.filter_w == 1:
        return "a filter of one column has no row to gather"
    if shape.dilation_w > 1:
        return f"taps {shape.dilation_w} columns apart do not lie side by side"
    if row_length(problem) > LONGEST_ROW:
        return f"a filter's row of {row_length(problem)} elements is longer than {LONGEST_ROW}"
    if 0 in (shape.x_elements, shape.w_elements, shape.y_elements):
        return "there is nothing to gather"
    return None


def product(
    problem: Problem, tile: Tile, target: Target, epilogue: Epilogue, w_layout: Layout
) -> Plan:
    """y = x * w and the epilogue; x and w are widened first."""
    shape, operands = problem.geometry, Operands(target, problem.dtype)
    size = (shape.out_channels, shape.in_channels, shape.filter_h, shape.filter_w)
    seen = _seen(problem, operands)
    w = operands.widened("w", w_layout, size, pixel_width(problem))
    return gathered.fprop(problem, tile, operands, replace(seen, w=w), epilogue)


def wgrad(problem: Problem, tile: Tile, target: Target, w_layout: Layout) -> Plan:
    """dw from x, which is widened first, and dy."""
    operands = Operands(target, problem.dtype)
    return gathered.wgrad(problem, tile, operands, _seen(problem, operands), w_layout)


def _seen(problem: Problem, operands: Operands) -> gathered.Seen:
    """Return x widened, with a border of zeros, and w widened alike."""
    shape, width = problem.geometry, pixel_width(problem)
    size = (shape.batch, shape.in_channels, shape.in_h, shape.in_w)
    x = operands.widened("x", problem.layout, size, width, (shape.pad_h, shape.pad_w))
    in_h, in_w = shape.in_h + 2 * shape.pad_h, shape.in_w + 2 * shape.pad_w
    return gathered.Seen(x, "", in_h, in_w, width, 1, row_length(problem), bordered=True)


def heuristic(problem: Problem, target: Target) -> Tile:
    """Return a tile with a step for each row of the filter; wgrad takes all columns at once."""
    shape, row = problem.geometry, power_of_two(row_length(problem), 16, LONGEST_ROW)
    filters = power_of_two(shape.out_channels, 16, 64)
    exact = problem.arithmetic in ("float32", "float64")
    stages = 3 if target.backend == "cuda" else 2
    if problem.direction == "fprop":
        block_m = 64 if exact else 128
        copied = problem.itemsize == 4 and target.sm >= 100  # from tensor memory, all at once
        warps = 8 if copied or scattered(problem, target) else 4
        return Tile(block_m, filters, min(row, 16) if exact else row, stages=stages, warps=warps)
    columns = power_of_two(shape.filter_h * row_length(problem), 16, 64 if exact else 128)
    block_k = 16 if exact else 128 // problem.itemsize
    boxes = pixel_box(block_k, shape.batch, shape.out_h, shape.out_w).count
    tiles = cdiv(shape.out_channels, filters) * cdiv(shape.filter_h * row_length(problem), columns)
    splits = splits_to_fill(2 * target.processors, tiles, boxes // 8, 256)
    return Tile(filters, columns, block_k, stages=stages, warps=4, splits=splits)


def matmul(problem: Problem) -> MatmulShape:
    """Return the product, in which a row of the filter counts as one tap."""
    return gathered_matmul(problem, row_length(problem), problem.geometry.filter_h)


def demand(problem: Problem, tile: Tile | Tiles, target: Target) -> Demand:
    """Return a thread's estimated registers and instructions; loads begin at widened pixels."""
    pixel = min(16 // problem.itemsize, pixel_width(problem))
    if problem.direction == "fprop":
        widths = pixel, load_width(problem, row_length(problem), tile.block_k)
    else:
        filters = load_width(problem, problem.geometry.group_out_channels, tile.block_m)
        widths = filters, pixel
    return gathered_demand(problem, tile, target, widths)


FAMILY = Family(
    name="few_channels",
    unserved=unserved,
    heuristic=heuristic,
    product=product,
    wgrad=wgrad,
    matmul=matmul,
    demand=demand,
    copies=True,
)
