"""Average-pool and its gradient, built as max-pool is.

    y[n, p, q, c] = 1 / count(p, q) * sum over r, s of
        x[n, p stride - pad + r, q stride - pad + s, c]

count is a given divisor, or the number of the window's elements, with or without padding. Elements
beyond the padding's far border, in a size that was rounded up, are never counted.
"""

import triton
import triton.language as tl

from tconv.kernels.max_pool import tile_of


@triton.jit
def counted(position, OUT_STEP: tl.constexpr, PAD: tl.constexpr, WINDOW: tl.constexpr,
            IN: tl.constexpr, COUNT_PAD: tl.constexpr):  # fmt: skip
    """Counted elements, along one axis, of the window at ``position``."""
    first = position * OUT_STEP - PAD
    last = tl.minimum(first + WINDOW, IN + PAD)
    if not COUNT_PAD:
        first = tl.maximum(first, 0)
        last = tl.minimum(last, IN)
    return last - first


@triton.jit(do_not_specialize=["pixels"])
def avg_pool_fprop(
    x,  # [images, IN_H, IN_W, CHANNELS]
    y,  # [images, OUT_H, OUT_W, CHANNELS]
    pixels,  # images * OUT_H * OUT_W
    CHANNELS: tl.constexpr,
    IN_H: tl.constexpr,
    IN_W: tl.constexpr,
    OUT_H: tl.constexpr,
    OUT_W: tl.constexpr,
    WINDOW_H: tl.constexpr,
    WINDOW_W: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    COUNT_PAD: tl.constexpr,
    DIVISOR: tl.constexpr,  # in place of the count, where it is not 0
    COMPUTE: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    pixel, channel = tile_of(tl.program_id(0), CHANNELS, INDEX, BLOCK_M, BLOCK_N)
    pixel_mask = (pixel < pixels) & (channel < CHANNELS)
    image, place = pixel // (OUT_H * OUT_W), pixel % (OUT_H * OUT_W)
    out_row, out_column = (place // OUT_W).to(tl.int32), (place % OUT_W).to(tl.int32)
    zero = tl.program_id(0).to(INDEX) * 0  # rows times their length are counted in INDEX
    top, left = out_row * STRIDE_H - PAD_H, out_column * STRIDE_W - PAD_W
    corner = x + (((image * IN_H + top) * IN_W + left) * CHANNELS + channel)
    total = tl.zeros([BLOCK_M, BLOCK_N], COMPUTE)
    for r in range(WINDOW_H):
        row_mask = pixel_mask & (top >= -r) & (top < IN_H - r)
        for s in tl.static_range(WINDOW_W):
            mask = row_mask & (left >= -s) & (left < IN_W - s)
            step = ((r + zero) * IN_W + s) * CHANNELS
            total += tl.load(corner + step, mask=mask, other=0.0).to(COMPUTE)
    if DIVISOR == 0:
        count = counted(out_row, STRIDE_H, PAD_H, WINDOW_H, IN_H, COUNT_PAD)
        count = count * counted(out_column, STRIDE_W, PAD_W, WINDOW_W, IN_W, COUNT_PAD)
        total = total / count.to(COMPUTE)
    else:
        total = total / DIVISOR
    tl.store(y + pixel * CHANNELS + channel, total.to(y.dtype.element_ty), mask=pixel_mask)


@triton.jit(do_not_specialize=["pixels"])
def avg_pool_dgrad(
    dy,  # [images, OUT_H, OUT_W, CHANNELS]
    dx,  # [images, IN_H, IN_W, CHANNELS]
    pixels,  # images * IN_H * IN_W
    CHANNELS: tl.constexpr,
    IN_H: tl.constexpr,
    IN_W: tl.constexpr,
    OUT_H: tl.constexpr,
    OUT_W: tl.constexpr,
    WINDOW_H: tl.constexpr,
    WINDOW_W: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    COUNT_PAD: tl.constexpr,
    DIVISOR: tl.constexpr,
    COMPUTE: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Each element of dx gathers its share from the windows that reach it: no atomics."""
    WINDOWS_H: tl.constexpr = (WINDOW_H + STRIDE_H - 1) // STRIDE_H
    WINDOWS_W: tl.constexpr = (WINDOW_W + STRIDE_W - 1) // STRIDE_W
    pixel, channel = tile_of(tl.program_id(0), CHANNELS, INDEX, BLOCK_M, BLOCK_N)
    pixel_mask = (pixel < pixels) & (channel < CHANNELS)
    image, place = pixel // (IN_H * IN_W), pixel % (IN_H * IN_W)
    padded_h, padded_w = (place // IN_W).to(tl.int32) + PAD_H, (place % IN_W).to(tl.int32) + PAD_W
    zero = tl.program_id(0).to(INDEX) * 0  # rows times their length are counted in INDEX
    last_h, last_w = padded_h // STRIDE_H, padded_w // STRIDE_W
    reach_h, reach_w = padded_h % STRIDE_H, padded_w % STRIDE_W
    source = dy + (((image * OUT_H + last_h) * OUT_W + last_w) * CHANNELS + channel)
    total = tl.zeros([BLOCK_M, BLOCK_N], COMPUTE)
    for up in range(WINDOWS_H):
        row_mask = pixel_mask & (last_h >= up) & (last_h < OUT_H + up)
        row_mask = row_mask & (reach_h < WINDOW_H - up * STRIDE_H)
        for back in tl.static_range(WINDOWS_W):
            mask = row_mask & (last_w >= back) & (last_w < OUT_W + back)
            mask = mask & (reach_w < WINDOW_W - back * STRIDE_W)
            step = ((up + zero) * OUT_W + back) * CHANNELS
            share = tl.load(source - step, mask=mask, other=0.0).to(COMPUTE)
            if DIVISOR == 0:
                count = counted(last_h - up, STRIDE_H, PAD_H, WINDOW_H, IN_H, COUNT_PAD)
                count = count * counted(last_w - back, STRIDE_W, PAD_W, WINDOW_W, IN_W, COUNT_PAD)
                share = share / tl.where(mask, count, 1).to(COMPUTE)
            else:
                share = share / DIVISOR
            total += share
    tl.store(dx + pixel * CHANNELS + channel, total.to(dx.dtype.element_ty), mask=pixel_mask)
