"""The gradient of a bias: memory-bound, so a fixed shape of tile and enough programs."""

from __future__ import annotations

from tconv.algorithms.common import (
    accumulator_type,
    index_type,
    power_of_two,
    workspace_dtype,
)
from tconv.ops.launch import Buffer, Launch, Plan, Pointer, cdiv
from tconv.problem import Layout
from tconv.target import Target

SUM_BLOCK = 128  # channels a program of the second step


def plan(dtype: str, layout: Layout, batch: int, channels: int, plane: int, target: Target) -> Plan:
    """dbias from dy, dense in ``layout``: sums over pixels in splits, then over the splits."""
    pixels = batch * plane
    block_n, block_k, most = _block(pixels, channels, layout, target)
    split_pixels = max(1, cdiv(cdiv(pixels, most), block_k)) * block_k
    splits = max(1, cdiv(pixels, split_pixels))
    sums = workspace_dtype(dtype)
    parts = Launch(
        "bias.bias_grad_parts",
        (cdiv(channels, block_n), splits),
        {"dy": Pointer("dy", dtype), "workspace": Pointer("workspace", sums)},
        {"pixels": pixels, "split_pixels": split_pixels},
        {
            "PLANE": plane,
            "CHANNELS": channels,
            "DY_NHWC": layout == "nhwc",
            "ACCUMULATOR": accumulator_type(dtype),
            "INDEX": index_type(pixels * channels),
            "BLOCK_N": block_n,
            "BLOCK_K": block_k,
        },
    )
    total = Launch(
        "bias.bias_grad_sum",
        (cdiv(channels, SUM_BLOCK),),
        {"workspace": Pointer("workspace", sums), "dbias": Pointer("dbias", dtype)},
        {"splits": splits},
        {"CHANNELS": channels, "BLOCK": SUM_BLOCK},
    )
    return Plan((parts, total), {"workspace": Buffer(splits * channels, sums)})


def _block(pixels: int, channels: int, layout: Layout, target: Target) -> tuple[int, int, int]:
    """Channels and pixels of a program's tile, and how many splits at most."""
    if target.backend == "interpreter":
        block_n = power_of_two(channels, 1, 128)
        return block_n, power_of_two(pixels, 1, (1 << 19) // block_n), 1
    if layout == "nchw":  # pixels lie side by side: a channel a program
        return 1, 4096, max(1, min(4 * target.processors // channels, pixels // (4 * 4096)))
    block_n = power_of_two(channels, 1, 128)
    block_k = max(4096 // block_n, 32)
    return block_n, block_k, max(1, min(4 * target.processors, pixels // (4 * block_k)))
