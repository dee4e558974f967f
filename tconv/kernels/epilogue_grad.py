"""Gradients of an epilogue: bias, activation and 2x2 max-pool, in one pass over dy.

dbias[k] is the sum of dz[n, k, p, q] over all but k, and dz is

    dy[n, k, p, q] activation'(z[n, k, p, q])                 of y = activation(z)
    dy[n, k, p / 2, q / 2] at its window's maximum, else 0    of y = pool(z), or pool(relu(z))

The pass is split among programs: each writes dz and stores the sums of its pixels in a workspace.
A last kernel adds these in order, so that the result is the same from run to run.
"""

import triton
import triton.language as tl

from tconv.kernels.activations import activation_grad


@triton.jit
def add_sums(workspace, channel, total, channel_mask, CHANNELS: tl.constexpr):
    """Store this split's part of dbias."""
    tl.store(workspace + tl.program_id(1) * CHANNELS + channel, total, mask=channel_mask)


@triton.jit(do_not_specialize=["pixels", "split_pixels"])
def epilogue_grad(
    dy,  # [images, plane, CHANNELS], or channels before the plane; pixels = images plane
    value,  # as dy: the activation's result or its argument; or None
    dz,  # as dy; or None
    workspace,  # [splits, CHANNELS]; or None
    pixels,
    split_pixels,
    PLANE: tl.constexpr,
    CHANNELS: tl.constexpr,
    NHWC: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr,
    FROM_RESULT: tl.constexpr,  # whether value is the activation's result
    ACCUMULATOR: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """dz of one split's pixels, and their sums for each channel."""
    channel = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    channel_mask = channel < CHANNELS
    first = tl.program_id(1).to(INDEX) * split_pixels
    last = tl.minimum(first + split_pixels, pixels)
    total = tl.zeros((BLOCK_N,), ACCUMULATOR)
    pixel = first + tl.arange(0, BLOCK_K)
    for _ in range(first, last, BLOCK_K):
        if NHWC:
            offset = pixel[:, None] * CHANNELS + channel[None, :]
        else:
            image = pixel // PLANE * (CHANNELS * PLANE) + pixel % PLANE
            offset = image[:, None] + channel[None, :].to(INDEX) * PLANE
        mask = (pixel < last)[:, None] & channel_mask[None, :]
        tile = tl.load(dy + offset, mask=mask, other=0.0)
        tile = tile.to(ACCUMULATOR)
        if value is not None:
            at = tl.load(value + offset, mask=mask, other=0.0).to(ACCUMULATOR)
            tile = activation_grad(tile, at, ACTIVATION, SLOPE, FROM_RESULT)
            tl.store(dz + offset, tile.to(dz.dtype.element_ty), mask=mask)
        if workspace is not None:
            total += tl.sum(tile, axis=0)
        pixel += BLOCK_K
    if workspace is not None:
        add_sums(workspace, channel, total, channel_mask, CHANNELS)


@triton.jit(do_not_specialize=["windows", "split_windows"])
def pool_epilogue_grad(
    dy,  # [images, OUT_H / 2, OUT_W / 2, CHANNELS], or channels before pixels
    offsets,  # as dy: place (0 to 3) of each window's maximum; -1 for none
    dz,  # [images, OUT_H, OUT_W, CHANNELS], laid out as dy
    workspace,  # [splits, CHANNELS]; or None
    windows,  # of all images, those that overhang an odd border among them
    split_windows,
    OUT_H: tl.constexpr,
    OUT_W: tl.constexpr,
    CHANNELS: tl.constexpr,
    NHWC: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """dz and its sums behind a pool: a window's gradient goes to its maximum, zero to the rest."""
    ROWS: tl.constexpr = (OUT_H + 1) // 2
    COLUMNS: tl.constexpr = (OUT_W + 1) // 2
    if NHWC:
        pixel_step: tl.constexpr = CHANNELS
        channel_step: tl.constexpr = 1
        y_channel_step: tl.constexpr = 1
    else:
        pixel_step: tl.constexpr = 1
        channel_step: tl.constexpr = OUT_H * OUT_W
        y_channel_step: tl.constexpr = (OUT_H // 2) * (OUT_W // 2)
    channel = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    channel_mask = channel < CHANNELS
    first = tl.program_id(1).to(INDEX) * split_windows
    last = tl.minimum(first + split_windows, windows)
    total = tl.zeros((BLOCK_N,), ACCUMULATOR)
    window = first + tl.arange(0, BLOCK_K)
    for _ in range(first, last, BLOCK_K):
        image = window // (ROWS * COLUMNS)
        row = window // COLUMNS % ROWS
        column = window % COLUMNS
        window_mask = (window < last)[:, None] & channel_mask[None, :]
        pool_mask = window_mask & ((row < OUT_H // 2) & (column < OUT_W // 2))[:, None]
        y_place = image * ((OUT_H // 2) * (OUT_W // 2) * CHANNELS)
        y_place += (row * (OUT_W // 2) + column) * pixel_step
        y_offset = y_place[:, None] + channel.to(INDEX)[None, :] * y_channel_step
        winner = tl.load(offsets + y_offset, mask=pool_mask, other=-1)
        gradient = tl.load(dy + y_offset, mask=pool_mask, other=0.0)
        place = image * (OUT_H * OUT_W * CHANNELS) + (row * 2 * OUT_W + column * 2) * pixel_step
        offset = place[:, None] + channel.to(INDEX)[None, :] * channel_step
        for corner in tl.static_range(4):
            place_mask = (row * 2 + corner // 2 < OUT_H) & (column * 2 + corner % 2 < OUT_W)
            step = (corner // 2 * OUT_W + corner % 2) * pixel_step
            value = tl.where(winner == corner, gradient, 0.0)
            tl.store(dz + (offset + step), value, mask=window_mask & place_mask[:, None])
        if workspace is not None:
            counted = tl.where(winner >= 0, gradient, 0.0)
            total += tl.sum(counted.to(ACCUMULATOR), axis=0)
        window += BLOCK_K
    if workspace is not None:
        add_sums(workspace, channel, total, channel_mask, CHANNELS)


@triton.jit(do_not_specialize=["splits"])
def bias_grad_sum(
    workspace,  # [splits, CHANNELS]
    dbias,  # [CHANNELS]
    splits,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add the parts of dbias, always in the same order."""
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel_mask = channel < CHANNELS
    total = tl.zeros((BLOCK,), workspace.dtype.element_ty)
    for split in range(0, splits):
        total += tl.load(workspace + split * CHANNELS + channel, mask=channel_mask, other=0.0)
    tl.store(dbias + channel, total.to(dbias.dtype.element_ty), mask=channel_mask)
