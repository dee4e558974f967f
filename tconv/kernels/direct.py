"""Convolution without the matrix unit, for layers of few channels and few filters.

    y[n, p, q, k] = bias[k] + sum over r, s, c of
        x[n, p stride - pad + r dilation, q stride - pad + s dilation, c] w[k, r, s, c]

The matrix unit multiplies blocks of at least 16: for a layer with 1 channel and 6 filters, such
as LeNet's first, most of its products would be zero. Here a thread keeps a few pixels by a few
filters in registers, and a step adds the products of one tap and one channel, each an exact fused
multiply-add. Neighbouring threads hold neighbouring pixels, so that their loads coalesce.

The gradient of x at stride 1 is the same sum with the filter transposed and its taps reversed.
"""

import triton
import triton.language as tl

from tconv.kernels.epilogue import pixel_place, store_tile, summed_plane
from tconv.kernels.index import group_share, image_strides, store_filter_gradient
from tconv.kernels.taps import is_inside


@triton.jit(do_not_specialize=["batch", "in_h", "in_w", "out_h", "out_w"])
def direct(
    image,  # x or dy: [batch, in_h, in_w, GROUPS * REDUCED], or channels before pixels
    filters,  # [GROUPS * OUT_CHANNELS, FILTER_H, FILTER_W, IN_CHANNELS], or channels before taps
    bias,  # [GROUPS * PRODUCED], or None; so may be batch normalization's four
    norm_weight,
    norm_bias,
    norm_mean,
    norm_var,
    residual,  # as the result unpooled, or None
    result,  # y or dx: [batch, out_h, out_w, GROUPS * PRODUCED], laid out as the image is; or y
    # pooled, half as high and wide
    kept,  # the activation's argument at each element of the result; or None
    offsets,  # place (0 to 3) of each window's maximum, of a pooled y; or None
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
    ACTIVATION: tl.constexpr,  # a name that activations.activate knows, or None
    SLOPE: tl.constexpr,
    RESIDUAL_AFTER: tl.constexpr,  # whether the residual is added after the activation
    POOL: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr,  # pixels
    BLOCK_N: tl.constexpr,  # channels of the result
):
    TAPS: tl.constexpr = FILTER_H * FILTER_W
    IN_CHANNELS: tl.constexpr = REDUCED if FORWARD else PRODUCED
    W_STRIDE_TAP: tl.constexpr = IN_CHANNELS if W_NHWC else 1
    W_STRIDE_C: tl.constexpr = 1 if W_NHWC else TAPS
    W_STRIDE_FILTER: tl.constexpr = TAPS * IN_CHANNELS
    W_STRIDE_REDUCED: tl.constexpr = W_STRIDE_C if FORWARD else W_STRIDE_FILTER
    W_STRIDE_PRODUCED: tl.constexpr = W_STRIDE_FILTER if FORWARD else W_STRIDE_C
    stride_h, stride_w, stride_c = image_strides(in_h, in_w, GROUPS * REDUCED, NHWC, INDEX)

    group, tile_row, _ = group_share(GROUPS)
    pixel = tile_row.to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)
    plane = summed_plane(out_h, out_w, POOL, INDEX)
    pixel_mask = pixel < batch.to(INDEX) * plane
    image_index = pixel // plane
    out_row, out_column = pixel_place(pixel % plane, out_w, POOL)
    in_row = out_row.to(tl.int32) * STRIDE_H + FIRST_H  # under tap (0, 0)
    in_column = out_column.to(tl.int32) * STRIDE_W + FIRST_W
    produced = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    produced_mask = produced < PRODUCED
    first = image_index * (GROUPS * REDUCED) * in_h * in_w + group * REDUCED * stride_c
    pixels = image + (first + in_row * stride_h + in_column * stride_w)
    group_first = group.to(INDEX) * ((PRODUCED if FORWARD else REDUCED) * W_STRIDE_FILTER)
    weights = filters + (group_first + produced.to(INDEX) * W_STRIDE_PRODUCED)

    accumulator = tl.zeros((BLOCK_N, BLOCK_M), ACCUMULATOR)
    for tap_h in range(FILTER_H):
        row_mask = pixel_mask & is_inside(in_row + tap_h * STEP_H, in_h)
        for reduced in range(REDUCED):
            offset = tap_h * STEP_H * stride_h + reduced * stride_c
            for tap_w in tl.static_range(FILTER_W):
                mask = row_mask & is_inside(in_column + tap_w * STEP_W, in_w)
                value = tl.load(pixels + (offset + tap_w * STEP_W * stride_w), mask=mask, other=0.0)
                w_offset = (tap_h * FILTER_W + tap_w) * W_STRIDE_TAP + reduced * W_STRIDE_REDUCED
                weight = tl.load(weights + w_offset, mask=produced_mask, other=0.0)
                accumulator += weight.to(ACCUMULATOR)[:, None] * value.to(ACCUMULATOR)[None, :]

    store_tile(
        accumulator, (bias, norm_weight, norm_bias, norm_mean, norm_var, residual),
        (result, kept, offsets), image_index, out_row * out_w + out_column, pixel_mask,
        out_h, out_w, tile_row, batch, group * PRODUCED + produced, produced_mask,
        GROUPS * PRODUCED, NHWC, False, EPS, ACTIVATION, SLOPE, RESIDUAL_AFTER, POOL, INDEX,
        BLOCK_M, BLOCK_N,
    )  # fmt: skip


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
    """dw: each thread sums its own pixels, for a few filters by a few taps; then threads add up."""
    TAPS: tl.constexpr = FILTER_H * FILTER_W
    x_stride_h, x_stride_w, x_stride_c = image_strides(
        in_h, in_w, GROUPS * IN_CHANNELS, NHWC, INDEX
    )
    _, dy_stride_w, dy_stride_c = image_strides(out_h, out_w, GROUPS * OUT_CHANNELS, NHWC, INDEX)
    plane = out_h.to(INDEX) * out_w

    tiles_m: tl.constexpr = (OUT_CHANNELS + BLOCK_M - 1) // BLOCK_M
    group, program, _ = group_share(GROUPS)
    split = tl.program_id(1)
    out_channel = program % tiles_m * BLOCK_M + tl.arange(0, BLOCK_M)
    out_channel_mask = out_channel < OUT_CHANNELS
    column = program // tiles_m * BLOCK_N + tl.arange(0, BLOCK_N)
    column_mask = column < TAPS * IN_CHANNELS
    tap = column // IN_CHANNELS
    tap_row = (tap // FILTER_W) * DILATION_H - PAD_H  # where output pixel (0, 0) sees the tap
    tap_column = (tap % FILTER_W) * DILATION_W - PAD_W
    x_column = (column % IN_CHANNELS + group * IN_CHANNELS).to(INDEX) * x_stride_c
    x_column += tap_row * x_stride_h + tap_column * x_stride_w
    dy_channel = (group * OUT_CHANNELS + out_channel).to(INDEX) * dy_stride_c
    pixels = batch * plane
    first = split.to(INDEX) * split_steps * BLOCK_K

    accumulator = tl.zeros((BLOCK_M, BLOCK_N, BLOCK_K), ACCUMULATOR)
    for step in range(0, split_steps):
        pixel = first + step * BLOCK_K + tl.arange(0, BLOCK_K)
        pixel_mask = pixel < pixels
        image = pixel // plane
        place = pixel % plane
        in_row = (place // out_w).to(tl.int32) * STRIDE_H
        in_column = (place % out_w).to(tl.int32) * STRIDE_W
        x_first = image * (GROUPS * IN_CHANNELS) * in_h * in_w
        x_first += in_row * x_stride_h + in_column * x_stride_w
        dy_first = image * (GROUPS * OUT_CHANNELS) * plane + place * dy_stride_w
        x_mask = is_inside(tap_row[:, None] + in_row[None, :], in_h)
        x_mask &= is_inside(tap_column[:, None] + in_column[None, :], in_w)
        x_mask &= pixel_mask[None, :] & column_mask[:, None]
        x_tile = tl.load(x + (x_column[:, None] + x_first[None, :]), mask=x_mask, other=0.0)
        dy_mask = out_channel_mask[:, None] & pixel_mask[None, :]
        dy_tile = tl.load(dy + (dy_channel[:, None] + dy_first[None, :]), mask=dy_mask, other=0.0)
        accumulator += dy_tile.to(ACCUMULATOR)[:, None, :] * x_tile.to(ACCUMULATOR)[None, :, :]

    store_filter_gradient(
        dw, tl.sum(accumulator, axis=2), split, group, out_channel, out_channel_mask,
        column, column_mask, tap, IN_CHANNELS, OUT_CHANNELS, GROUPS, TAPS, 1, DW_NHWC, INDEX,
    )  # fmt: skip
