"""Plans of implicit matrix products whose operands are gathered by address.

Families share them: they differ in how x and w are laid out for the product.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import Any

from tconv.families.common import (
    index_type,
    phases_of,
    pixel_box,
    programs,
    shape_constants,
    sizes,
    summed_pixels,
    whole_windows,
)
from tconv.families.epilogue import (
    epilogue_constants,
    epilogue_operands,
    lightened,
    place_words,
    unpooled_constants,
)
from tconv.families.reduce import Shares, workspace
from tconv.families.relayout import Operands
from tconv.geometry import cdiv
from tconv.launch import Launch, Plan, Pointer
from tconv.problem import PLAIN, Epilogue, Layout, Problem
from tconv.target import Target
from tconv.tile import Tile


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
        """Return the number of elements of x, including widening and border."""
        return batch * self.in_h * self.in_w * self.pixel

    @property
    def scalars(self) -> dict[str, int]:
        return {"in_h": self.in_h, "in_w": self.in_w}

    @property
    def constants(self) -> dict[str, Any]:
        """Return the compile-time values that depend on the layout of pixels and on the border."""
        known = {"IN_CHANNELS": self.channels, "FILTER_W": self.taps_w, "X_PIXEL": self.pixel}
        return (
            known
            | {"BORDERED": self.bordered}
            | ({"PAD_H": 0, "PAD_W": 0} if self.bordered else {})
        )


def seen_by(problem: Problem, operands: Operands, w_layout: Layout | None, in_place: bool) -> Seen:
    """Return the operands as the kernel reads them: converted to channels_last, or in place."""
    shape = problem.geometry
    x = "x" if in_place else operands.x(shape, problem.layout)
    w = operands.w(shape, w_layout) if w_layout else ""
    sizes = (shape.in_h, shape.in_w, shape.in_channels, shape.filter_w, shape.group_in_channels)
    return Seen(x, w, *sizes, nhwc=not in_place)


def fprop(
    problem: Problem, tile: Tile, operands: Operands, seen: Seen, epilogue: Epilogue = PLAIN
) -> Plan:
    """y = x * w + bias: output pixels by filters, a group an axis of its own."""
    shape, layout = problem.geometry, problem.layout
    if epilogue.pool:
        tile = whole_windows(tile)
    taps = shape.filter_h * seen.taps_w
    shares = Shares.of(taps * cdiv(seen.channels, tile.block_k), tile.splits)
    split = shares.splits > 1
    stored = PLAIN if split else epilogue  # a split's epilogue runs where its parts are added
    tile = lightened(tile, stored, problem, operands.target)
    pixels = summed_pixels(shape, epilogue)
    tiles = cdiv(pixels, tile.block_m) * cdiv(shape.group_out_channels, tile.block_n)
    taken = {"x": Pointer(seen.x, problem.dtype), "w": Pointer(seen.w, problem.dtype)}
    taken["y"] = workspace(problem) if split else Pointer("y", problem.dtype)
    constants = _constants(problem, tile) | seen.constants
    constants |= {
        "X_NHWC": seen.nhwc,
        "Y_NHWC": split or layout == "nhwc",
        "SPLIT": split,
        "INDEX": index_type(seen.elements(shape.batch), shape.w_elements, shape.y_elements),
    }
    taken |= epilogue_operands(stored, problem.dtype)
    constants |= epilogue_constants(stored)
    others = shape.groups * shares.splits
    product = Launch(
        "fprop.implicit_gemm_fprop",
        (programs(tiles, others, tile, operands.target) * shape.groups, shares.splits),
        taken,
        sizes(problem) | seen.scalars | {"split_steps": shares.steps},
        constants,
        tile.warps,
        tile.stages,
    )
    return operands.plan(product, problem, "y", layout, shares.splits, epilogue)


def dgrad(
    problem: Problem,
    tile: Tile,
    operands: Operands,
    w_layout: Layout,
    in_place: bool,
    epilogue: Epilogue = PLAIN,
) -> Plan:
    """dx from dy and w: input pixels of one phase by channels; groups and phases on axes."""
    shape, layout = problem.geometry, problem.layout
    dy = "dy" if in_place else operands.dy(shape, layout)
    w = operands.w(shape, w_layout)
    step_h, step_w = gcd(shape.stride_h, shape.dilation_h), gcd(shape.stride_w, shape.dilation_w)
    tap_step_h, tap_step_w = shape.stride_h // step_h, shape.stride_w // step_w
    pixels = shape.batch * cdiv(shape.in_h, shape.stride_h) * cdiv(shape.in_w, shape.stride_w)
    most_taps = cdiv(shape.filter_h, tap_step_h) * cdiv(shape.filter_w, tap_step_w)
    shares = Shares.of(most_taps * cdiv(shape.group_out_channels, tile.block_k), tile.splits)
    split = shares.splits > 1
    stored = PLAIN if split else epilogue  # a split's epilogue runs where its parts are added
    tile = lightened(tile, stored, problem, operands.target, beside=place_words(problem))
    tiles = cdiv(pixels, tile.block_m) * cdiv(shape.group_in_channels, tile.block_n)
    taken = {"dy": Pointer(dy, problem.dtype), "w": Pointer(w, problem.dtype)}
    taken["dx"] = workspace(problem) if split else Pointer("dx", problem.dtype)
    taken |= epilogue_operands(stored, problem.dtype)
    others = shape.groups * phases_of(shape) * shares.splits
    product = Launch(
        "dgrad.implicit_gemm_dgrad",
        (programs(tiles, others, tile, operands.target) * others,),
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
            **unpooled_constants(stored),
        },
        tile.warps,
        tile.stages,
    )
    return operands.plan(product, problem, "dx", layout, shares.splits, epilogue)


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
        (tiles * (shape.groups // pack), shares.splits),
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


def scattered(problem: Problem, target: Target) -> bool:
    """Return whether 64 outputs a thread are too many, because each is stored at its own address.

    On sm_100 they are also copied from tensor memory. dgrad keeps most beside them: the phase,
    its taps, and a mask for each.
    """
    crowded = target.sm >= 100 or (target.backend == "cuda" and problem.direction == "dgrad")
    return problem.layout == "nchw" and crowded
