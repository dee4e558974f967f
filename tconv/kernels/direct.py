"""Convolution without the matrix unit, for layers of few channels and few filters.

    y[n, p, q, k] = bias[k] + sum over r, s, c of
        x[n, p stride - pad + r dilation, q stride - pad + s dilation, c] w[k, r, s, c]

The matrix unit multiplies blocks of 16 at least: of a layer with 1 channel and 6 filters, as
LeNet's first, it would mostly multiply zeros. Here a thread keeps a few pixels by a few filters
in registers, and a step adds the products of one tap and one channel, each an exact fused
multiply-add. Pixels run along the threads, so that neighbours load neighbours.

The gradient of x at stride 1 is the same sum with the filter transposed and its taps reversed.
"""

import triton
import triton.language as tl

from tconv.kernels.epilogue import (
    channel_terms,
    epilogue,
    pooled,
    store_result,
    window_place,
)
from tconv.kernels.index import element_offset
from tconv.kernels.taps import is_inside


@triton.jit(do_not_specialize=["batch", "in_h", "in_w", "out_h", "out_w"])
def direct(
    image,  # x or dy: [batch, in_h, in_w, GROUPS * REDUCED], or channels before pixels
    filters,  # [GROUPS * OUT_CHANNELS, FILTER_H, FILTER_W, IN_CHANNELS], or channels before taps
    bias,  # [GROUPS * PRODUCED], or None, as the four of a batch normalization
    norm_weight,
    norm_bias,
    norm_mean,
    norm_var,
    residual,  # as the result unpooled, or None
    result,  # y or dx: [batch, out_h, out_w, GROUPS * PRODUCED], laid out as the image is; or y
    # pooled, half as high and wide
    kept,  # the activation's argument at each element of the result; or None
    offsets,  # of y pooled: which of its window's places was the greatest; or None
    batch,
    in_h,
    in_w,
    out_h,
    out_w,
    REDUCED: tl.constexpr,  # channels of the image, in one group
    PRODUCED: tl.constexpr,  # channels of the result, in one group
    GROUPS: tl.constexpr,
    FILTER_H: tl.constexpr,
    FILTER_W: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    FIRST_H: tl.constexpr,  # where the first tap of output 0 lies
    FIRST_W: tl.constexpr,
    STEP_H: tl.constexpr,  # from tap to tap; negative for a gradient
    STEP_W: tl.constexpr,
    FORWARD: tl.constexpr,  # whether filters, and not their channels, are what is produced
    NHWC: tl.constexpr,
    W_NHWC: tl.constexpr,
    EPS: tl.constexpr,  # of the batch normalization
    ACTIVATION: tl.constexpr,  # see epilogue.activate
    SLOPE: tl.constexpr,
    RESIDUAL_AFTER: tl.constexpr,  # whether the residual is added behind the activation
    POOL: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr,  # pixels
    BLOCK_N: tl.constexpr,  # channels of the result
):
    TAPS: tl.constexpr = FILTER_H * FILTER_W
    IN_CHANNELS: tl.constexpr = REDUCED if FORWARD else PRODUCED
    W_TAP: tl.constexpr = IN_CHANNELS if W_NHWC else 1
    W_CHANNEL: tl.constexpr = 1 if W_NHWC else TAPS
    W_REDUCED: tl.constexpr = W_CHANNEL if FORWARD else TAPS * IN_CHANNELS
    W_PRODUCED: tl.constexpr = TAPS * IN_CHANNELS if FORWARD else W_CHANNEL
    if NHWC:
        PIXEL: tl.constexpr = GROUPS * REDUCED
        channel_step = 1  # elements from one channel to the next
    else:
        PIXEL: tl.constexpr = 1
        channel_step = in_h.to(INDEX) * in_w
    x_row = in_w.to(INDEX) * PIXEL  # and from one row to the next

    group = tl.program_id(2)
    pixel = tl.program_id(0).to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)
    if POOL:
        plane = (out_h // 2).to(INDEX) * (out_w // 2) * 4
    else:
        plane = out_h.to(INDEX) * out_w
    pixels = batch.to(INDEX) * plane
    exists = pixel < pixels
    n = pixel // plane
    place = pixel % plane
    if POOL:
        p, q = window_place(place, out_w)
    else:
        p, q = place // out_w, place % out_w
    top = p.to(tl.int32) * STRIDE_H + FIRST_H
    left = q.to(tl.int32) * STRIDE_W + FIRST_W
    produced = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    produced_exists = produced < PRODUCED
    first = n * (GROUPS * REDUCED) * in_h * in_w + group * REDUCED * channel_step
    corner = image + (first + top * x_row + left * PIXEL)
    group_first = group.to(INDEX) * ((PRODUCED if FORWARD else REDUCED) * TAPS * IN_CHANNELS)
    weights = filters + (group_first + produced.to(INDEX) * W_PRODUCED)

    accumulator = tl.zeros((BLOCK_N, BLOCK_M), ACCUMULATOR)
    for r in range(FILTER_H):
        row_inside = exists & is_inside(top + r * STEP_H, in_h)
        for c in range(REDUCED):
            offset = r * STEP_H * x_row + c * channel_step
            for s in tl.static_range(FILTER_W):
                mask = row_inside & is_inside(left + s * STEP_W, in_w)
                taken = tl.load(corner + (offset + s * STEP_W * PIXEL), mask=mask, other=0.0)
                w_offset = (r * FILTER_W + s) * W_TAP + c * W_REDUCED
                w = tl.load(weights + w_offset, mask=produced_exists, other=0.0)
                accumulator += w.to(ACCUMULATOR)[:, None] * taken.to(ACCUMULATOR)[None, :]

    channel = group * PRODUCED + produced
    offset, scale, shift = channel_terms(
        bias, norm_weight, norm_bias, norm_mean, norm_var, channel, produced_exists, EPS,
        ACCUMULATOR,
    )  # fmt: skip
    pixel_offset, channel_offset = element_offset(
        n, p * out_w + q, out_h.to(INDEX) * out_w, channel, GROUPS * PRODUCED, NHWC, INDEX
    )
    at = pixel_offset[None, :] + channel_offset[:, None]
    mask = produced_exists[:, None] & exists[None, :]
    more = None
    if residual is not None:
        more = tl.load(residual + at, mask=mask, other=0.0)
    total, argument = epilogue(
        accumulator, offset[:, None], scale[:, None], shift[:, None], more, bias, norm_mean,
        ACTIVATION, SLOPE, RESIDUAL_AFTER, POOL,
    )  # fmt: skip
    best_place = None
    if POOL:
        total, argument, best_place = pooled(
            tl.reshape(total, (BLOCK_N, BLOCK_M // 4, 2, 2)),
            tl.reshape(argument, (BLOCK_N, BLOCK_M // 4, 2, 2)), kept, ACTIVATION, RESIDUAL_AFTER,
        )  # fmt: skip
        pixel = tl.program_id(0).to(INDEX) * (BLOCK_M // 4) + tl.arange(0, BLOCK_M // 4)
        windows = plane // 4
        pixel_offset, channel_offset = element_offset(
            pixel // windows, pixel % windows, windows, channel, GROUPS * PRODUCED, NHWC, INDEX
        )
        at = pixel_offset[None, :] + channel_offset[:, None]
        mask = produced_exists[:, None] & (pixel < pixels // 4)[None, :]
    store_result(result, kept, offsets, at, mask, total, argument, best_place)


@triton.jit(do_not_specialize=["batch", "in_h", "in_w", "out_h", "out_w", "split_steps"])
def direct_wgrad(
    x,  # [batch, in_h, in_w, GROUPS * IN_CHANNELS], or channels before pixels
    dy,  # [batch, out_h, out_w, GROUPS * OUT_CHANNELS], laid out as x is
    dw,  # [GROUPS * OUT_CHANNELS, FILTER_H, FILTER_W, IN_CHANNELS], or channels before taps; or
    # its parts, one after the other
    batch,
    in_h,
    in_w,
    out_h,
    out_w,
    split_steps,  # of BLOCK_K pixels each
    IN_CHANNELS: tl.constexpr,  # of one group, as OUT_CHANNELS is
    OUT_CHANNELS: tl.constexpr,
    GROUPS: tl.constexpr,
    FILTER_H: tl.constexpr,
    FILTER_W: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    NHWC: tl.constexpr,
    DW_NHWC: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr,  # filters
    BLOCK_N: tl.constexpr,  # (taps, channels)
    BLOCK_K: tl.constexpr,  # pixels
):
    """Each thread sums its own pixels, for a few filters by a few taps; threads add up at last."""
    COLUMNS: tl.constexpr = FILTER_H * FILTER_W * IN_CHANNELS
    if NHWC:
        PIXEL: tl.constexpr = GROUPS * IN_CHANNELS
        Y_PIXEL: tl.constexpr = GROUPS * OUT_CHANNELS
        x_channel = 1  # elements from one channel to the next
        y_channel = 1
    else:
        PIXEL: tl.constexpr = 1
        Y_PIXEL: tl.constexpr = 1
        x_channel = in_h.to(INDEX) * in_w
        y_channel = out_h.to(INDEX) * out_w
    x_row = in_w.to(INDEX) * PIXEL  # and from one row to the next
    plane = out_h.to(INDEX) * out_w

    tiles_m: tl.constexpr = (OUT_CHANNELS + BLOCK_M - 1) // BLOCK_M
    group = tl.program_id(1)
    split = tl.program_id(2)
    filter_index = tl.program_id(0) % tiles_m * BLOCK_M + tl.arange(0, BLOCK_M)
    filter_exists = filter_index < OUT_CHANNELS
    column = tl.program_id(0) // tiles_m * BLOCK_N + tl.arange(0, BLOCK_N)
    column_exists = column < COLUMNS
    tap = column // IN_CHANNELS
    down = (tap // FILTER_W) * DILATION_H - PAD_H
    right = (tap % FILTER_W) * DILATION_W - PAD_W
    x_column = (column % IN_CHANNELS + group * IN_CHANNELS).to(INDEX) * x_channel
    x_column += down * x_row + right * PIXEL
    y_column = (group * OUT_CHANNELS + filter_index).to(INDEX) * y_channel
    pixels = batch * plane
    first = split.to(INDEX) * split_steps * BLOCK_K

    accumulator = tl.zeros((BLOCK_M, BLOCK_N, BLOCK_K), ACCUMULATOR)
    for step in range(0, split_steps):
        pixel = first + step * BLOCK_K + tl.arange(0, BLOCK_K)
        exists = pixel < pixels
        n = pixel // plane
        place = pixel % plane
        top = (place // out_w).to(tl.int32) * STRIDE_H
        left = (place % out_w).to(tl.int32) * STRIDE_W
        x_first = n * (GROUPS * IN_CHANNELS) * in_h * in_w + top * x_row + left * PIXEL
        y_first = n * (GROUPS * OUT_CHANNELS) * plane + place * Y_PIXEL
        inside = is_inside(down[:, None] + top[None, :], in_h)
        inside &= is_inside(right[:, None] + left[None, :], in_w)
        inside &= exists[None, :] & column_exists[:, None]
        x_tile = tl.load(x + (x_column[:, None] + x_first[None, :]), mask=inside, other=0.0)
        mask = filter_exists[:, None] & exists[None, :]
        dy_tile = tl.load(dy + (y_column[:, None] + y_first[None, :]), mask=mask, other=0.0)
        accumulator += dy_tile.to(ACCUMULATOR)[:, None, :] * x_tile.to(ACCUMULATOR)[None, :, :]

    total = tl.sum(accumulator, axis=2)
    part_row = (split.to(INDEX) * GROUPS + group) * OUT_CHANNELS + filter_index
    place = column
    if not DW_NHWC:
        place = (column - tap * IN_CHANNELS) * (FILTER_H * FILTER_W) + tap
    mask = filter_exists[:, None] & column_exists[None, :]
    dw_offset = part_row[:, None] * COLUMNS + place[None, :]
    tl.store(dw + dw_offset, total.to(dw.dtype.element_ty), mask=mask)
