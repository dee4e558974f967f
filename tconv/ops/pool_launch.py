"""Launches of the pools' kernels, which run over the pixels of planes in either layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tconv.geometry import PoolGeometry, cdiv
from tconv.launch import Launch, Pointer, target_for
from tconv.problem import AdaptiveProblem, PoolProblem
from tconv.tile import Tile


def tile_for(problem: PoolProblem | AdaptiveProblem, device: torch.device) -> Tile:
    """Return the tile chosen for ``problem`` on ``device``."""
    from tconv.select import choose

    return choose(problem, target_for(device)).tile


def window_constants(shape: PoolGeometry) -> dict[str, int]:
    """Return the sizes and the window that the kernels of max- and average-pool share.

    They are compile-time values, because each element is divided by them and pools do little else.
    """
    return {
        "IN_H": shape.in_h,
        "IN_W": shape.in_w,
        "OUT_H": shape.out_h,
        "OUT_W": shape.out_w,
        "WINDOW_H": shape.window_h,
        "WINDOW_W": shape.window_w,
        "STRIDE_H": shape.stride_h,
        "STRIDE_W": shape.stride_w,
        "PAD_H": shape.pad_h,
        "PAD_W": shape.pad_w,
    }


def pool_launch(
    kernel: str,
    problem: PoolProblem | AdaptiveProblem,
    tile: Tile,
    tensors: str,
    constants: Mapping[str, Any],
    *,
    over_x: bool,
    dtypes: Mapping[str, str] | None = None,
) -> Launch:
    """Return a launch over the pixels of x or of y.

    Contiguous planes are images of one channel, so that a tile is all pixels. ``tensors`` names the
    operands, separated by blanks, and ``dtypes`` the types of those that differ from the problem's.
    """
    shape, nhwc = problem.geometry, problem.layout == "nhwc"
    channels, images = (shape.channels, shape.batch) if nhwc else (1, shape.batch * shape.channels)
    pixels = images * (shape.in_h * shape.in_w if over_x else shape.out_h * shape.out_w)
    block_m, block_n = (tile.block_m, tile.block_n) if nhwc else (tile.block_m * tile.block_n, 1)
    own = dtypes or {}
    return Launch(
        kernel,
        (cdiv(pixels, block_m) * cdiv(channels, block_n),),
        {name: Pointer(name, own.get(name, problem.dtype)) for name in tensors.split()},
        {"pixels": pixels},
        {**constants, "CHANNELS": channels, "BLOCK_M": block_m, "BLOCK_N": block_n},
        tile.warps,
        tile.stages,
    )
