"""The general implicit matrix product: operands gathered by address, any geometry, any GPU.

It reads channels_last operands, and brings contiguous ones into that layout first; or reads
those where they lie, as a family of its own, so that the tuner can tell which is faster.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd
from typing import Any

from tconv.algorithms.common import (
    index_type,
    pixel_box,
    power_of_two,
    programs,
    shape_constants,
    sizes,
    summed_pixels,
    whole_windows,
)
from tconv.algorithms.epilogue import epilogue_constants, epilogue_operands
from tconv.algorithms.reduce import LEAST_SPLIT_STEPS, Shares, splits_to_fill, workspace
from tconv.algorithms.relayout import Operands
from tconv.launch import Launch, Plan, Pointer, cdiv
from tconv.problem import PLAIN, Epilogue, Layout, Problem
from tconv.target import Target
from tconv.tile import Tile


def unserved(problem: Problem, target: Target) -> str | None:
    """None: this family serves every problem."""
    return None


def unserved_in_place(problem: Problem, target: Target) -> str | None:
    """None for contiguous tensors; channels_last ones are the general family's already."""
    return None if problem.layout == "nchw" else "tensors are channels_last already"


def plan(
    problem: Problem,
    tile: Tile,
    target: Target,
    epilogue: Epilogue = PLAIN,
    w_layout: Layout = "nhwc",
) -> Plan:
    """The launches that compute ``problem`` with ``tile``, in order."""
    return _PLANS[problem.direction](problem, tile, target, epilogue, w_layout, in_place=False)


def plan_in_place(
    problem: Problem,
    tile: Tile,
    target: Target,
    epilogue: Epilogue = PLAIN,
    w_layout: Layout = "nhwc",
) -> Plan:
    """The same; x and dy are read where they lie, channels before pixels."""
    return _PLANS[problem.direction](problem, tile, target, epilogue, w_layout, in_place=True)


def _constants(problem: Problem, tile: Tile) -> dict[str, Any]:
    return shape_constants(problem) | {
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "BLOCK_K": tile.block_k,
        "SWIZZLE": tile.swizzle,
    }


@dataclass(frozen=True)
class Seen:
    """x and w as a product sees them."""

    x: str  # names of the tensors
    w: str
    in_h: int
    in_w: int
    pixel: int  # elements from one pixel to the next
    taps_w: int
    channels: int  # of one tap, in one group
    nhwc: bool = True
    bordered: bool = False  # by zeros, so that no tap leaves the image

    def elements(self, batch: int) -> int:
        """Of x, with all that it was widened by."""
        return batch * self.in_h * self.in_w * self.pixel

    @property
    def scalars(self) -> dict[str, int]:
        return {"in_h": self.in_h, "in_w": self.in_w}

    @property
    def constants(self) -> dict[str, Any]:
        """What a border changes, and what a product without padding is compiled for."""
        known = {"IN_CHANNELS": self.channels, "FILTER_W": self.taps_w, "X_PIXEL": self.pixel}
        return (
            known
            | {"BORDERED": self.bordered}
            | ({"PAD_H": 0, "PAD_W": 0} if self.bordered else {})
        )


def seen_by(problem: Problem, operands: Operands, w_layout: Layout | None, in_place: bool) -> Seen:
    """As they are; brought channels_last first, unless read in place."""
    shape = problem.geometry
    x = "x" if in_place else operands.x(shape, problem.layout)
    w = operands.w(shape, w_layout) if w_layout else ""
    sizes = (shape.in_h, shape.in_w, shape.in_channels, shape.filter_w, shape.group_in_channels)
    return Seen(x, w, *sizes, nhwc=not in_place)


def _fprop(
    problem: Problem,
    tile: Tile,
    target: Target,
    epilogue: Epilogue,
    w_layout: Layout,
    in_place: bool,
) -> Plan:
    operands = Operands(target, problem.dtype)
    return fprop(problem, tile, operands, seen_by(problem, operands, w_layout, in_place), epilogue)


def fprop(
    problem: Problem, tile: Tile, operands: Operands, seen: Seen, epilogue: Epilogue = PLAIN
) -> Plan:
    """y = x * w + bias: output pixels by filters, a group an axis of its own."""
    shape, layout = problem.geometry, problem.layout
    if epilogue.pool:
        tile = whole_windows(tile)
    pixels = summed_pixels(shape, epilogue)
    tiles = cdiv(pixels, tile.block_m) * cdiv(shape.group_out_channels, tile.block_n)
    taps = shape.filter_h * seen.taps_w
    shares = Shares.of(taps * cdiv(seen.channels, tile.block_k), tile.splits)
    split = shares.splits > 1
    taken = {"x": Pointer(seen.x, problem.dtype), "w": Pointer(seen.w, problem.dtype)}
    taken["y"] = workspace(problem) if split else Pointer("y", problem.dtype)
    constants = _constants(problem, tile) | seen.constants
    constants |= {
        "X_NHWC": seen.nhwc,
        "Y_NHWC": split or layout == "nhwc",
        "SPLIT": split,
        "INDEX": index_type(seen.elements(shape.batch), shape.w_elements, shape.y_elements),
    }
    ending = PLAIN if split else epilogue  # parts are ended when they are added
    taken |= epilogue_operands(ending, problem.dtype)
    constants |= epilogue_constants(ending)
    others = shape.groups * shares.splits
    product = Launch(
        "fprop.implicit_gemm_fprop",
        (programs(tiles, others, tile, operands.target), shape.groups, shares.splits),
        taken,
        sizes(problem) | seen.scalars | {"split_steps": shares.steps},
        constants,
        tile.warps,
        tile.stages,
    )
    return operands.plan(product, problem, "y", layout, shares.splits, epilogue)


def _dgrad(
    problem: Problem,
    tile: Tile,
    target: Target,
    epilogue: Epilogue,
    w_layout: Layout,
    in_place: bool,
) -> Plan:
    """dx from dy and w: input pixels of one phase by channels; groups and phases on axes."""
    shape, layout = problem.geometry, problem.layout
    operands = Operands(target, problem.dtype)
    dy = "dy" if in_place else operands.dy(shape, layout)
    w = operands.w(shape, w_layout)
    step_h, step_w = gcd(shape.stride_h, shape.dilation_h), gcd(shape.stride_w, shape.dilation_w)
    tap_step_h, tap_step_w = shape.stride_h // step_h, shape.stride_w // step_w
    pixels = shape.batch * cdiv(shape.in_h, shape.stride_h) * cdiv(shape.in_w, shape.stride_w)
    tiles = cdiv(pixels, tile.block_m) * cdiv(shape.group_in_channels, tile.block_n)
    most_taps = cdiv(shape.filter_h, tap_step_h) * cdiv(shape.filter_w, tap_step_w)
    shares = Shares.of(most_taps * cdiv(shape.group_out_channels, tile.block_k), tile.splits)
    split, phases = shares.splits > 1, shape.stride_h * shape.stride_w
    taken = {"dy": Pointer(dy, problem.dtype), "w": Pointer(w, problem.dtype)}
    taken["dx"] = workspace(problem) if split else Pointer("dx", problem.dtype)
    others = shape.groups * phases * shares.splits
    product = Launch(
        "dgrad.implicit_gemm_dgrad",
        (programs(tiles, others, tile, target), shape.groups, phases * shares.splits),
        taken,
        sizes(problem) | {"splits": shares.splits},
        _constants(problem, tile)
        | {
            "TAP_STEP_H": tap_step_h,
            "TAP_STEP_W": tap_step_w,
            "DY_STEP_H": shape.dilation_h // step_h,
            "DY_STEP_W": shape.dilation_w // step_w,
            "DY_NHWC": not in_place,
            "DX_NHWC": split or layout == "nhwc",
            "SPLIT": split,
        },
        tile.warps,
        tile.stages,
    )
    return operands.plan(product, problem, "dx", layout, shares.splits)


def _wgrad(
    problem: Problem,
    tile: Tile,
    target: Target,
    epilogue: Epilogue,
    w_layout: Layout,
    in_place: bool,
) -> Plan:
    operands = Operands(target, problem.dtype)
    seen = seen_by(problem, operands, None, in_place)
    return wgrad(problem, tile, operands, seen, w_layout)


def wgrad(
    problem: Problem,
    tile: Tile,
    operands: Operands,
    seen: Seen,
    w_layout: Layout,
    pack: int = 1,
) -> Plan:
    """dw from x and dy: filters by (taps, channels); groups and splits of the pixels on axes.

    ``pack`` narrow groups count as one, of whose product only the diagonal blocks are kept.
    """
    shape = problem.geometry
    dy = operands.dy(shape, problem.layout) if seen.nhwc else "dy"
    columns = shape.filter_h * seen.taps_w * seen.channels * pack
    box = pixel_box(tile.block_k, shape.batch, shape.out_h, shape.out_w)
    shares = Shares.of(box.count, tile.splits)
    in_parts = shares.splits > 1 or seen.bordered  # widened channels are dropped from the parts
    parts = shares.splits * shape.out_channels * columns // pack
    tiles = cdiv(pack * shape.group_out_channels, tile.block_m) * cdiv(columns, tile.block_n)
    constants = _constants(problem, tile) | seen.constants
    constants |= {
        "IN_CHANNELS": seen.channels * pack,
        "OUT_CHANNELS": shape.group_out_channels * pack,
        "GROUPS": shape.groups // pack,
        "PACK": pack,
        "BOX_N": box.images,
        "BOX_H": box.rows,
        "BOX_W": box.columns,
        "EXACT": box.exact,
        "NHWC": seen.nhwc,
        "DW_NHWC": in_parts or w_layout == "nhwc",
        "INDEX": index_type(seen.elements(shape.batch), shape.y_elements, parts),
    }
    del constants["BLOCK_K"]
    product = Launch(
        "wgrad.implicit_gemm_wgrad",
        (tiles, shape.groups // pack, shares.splits),
        {
            "x": Pointer(seen.x, problem.dtype),
            "dy": Pointer(dy, problem.dtype),
            "dw": workspace(problem) if in_parts else Pointer("dw", problem.dtype),
        },
        sizes(problem) | seen.scalars | {"boxes": box.count, "split_boxes": shares.steps},
        constants,
        tile.warps,
        tile.stages,
    )
    width = seen.pixel if seen.bordered else None
    return operands.plan(product, problem, "dw", w_layout, shares.splits, width=width)


_PLANS = {"fprop": _fprop, "dgrad": _dgrad, "wgrad": _wgrad}


def heuristic(problem: Problem, target: Target) -> Tile:
    """The tile of an untuned layer."""
    if problem.direction == "wgrad":
        return _wgrad_tile(problem, target)
    return _pixel_tile(problem, target)


def scattered(problem: Problem, target: Target) -> bool:
    """Whether 64 outputs a thread are too many: an address for each, and a copy from sm_100's
    tensor memory.
    """
    return problem.layout == "nchw" and target.sm >= 100


def heuristic_in_place(problem: Problem, target: Target) -> Tile:
    """The same with shorter steps: each gathered element takes an address of its own."""
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
    return replace(tile, block_m=block_m, block_k=block_k)


GATHERED = 8  # elements of a step that a thread fetches one by one


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
    programs = -(-pixels // block_m) * -(-produced // block_n) * shape.groups
    while block_m > 32 and programs < target.processors:
        block_m, programs = block_m // 2, programs * 2
    # Small images leave processors idle even so: the reduction is shared.
    steps = shape.taps * cdiv(reduced, block_k)
    if problem.direction == "dgrad":
        phases = shape.stride_h * shape.stride_w
        programs, steps = programs * phases, cdiv(steps, phases)
    splits = splits_to_fill(target.processors, programs, steps // LEAST_SPLIT_STEPS, 16)
    warps = 8 if block_m * block_n >= 128 * (64 if scattered(problem, target) else 128) else 4
    stages = 3 if target.backend == "cuda" else 2
    return Tile(block_m, block_n, block_k, stages=stages, warps=warps, splits=splits)


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
    splits = splits_to_fill(2 * target.processors, programs, steps // 8, 256)
    warps = 8 if block_m * block_n >= most * most else 4
    stages = 3 if target.backend == "cuda" else 2
    return Tile(block_m, block_n, block_k, stages=stages, warps=warps, splits=splits)
