"""Forward convolution as an implicit matrix product.

    y[n, p, q, k] = bias[k] + sum over r, s, c of
        x[n, p stride - pad + r dilation, q stride - pad + s dilation, c] w[k, r, s, c]

Rows of the product are output pixels (n, p, q), columns are filters k, and the reduction
runs over filter taps (r, s) and channels c. No patch matrix is ever formed: a tile of it is
gathered from x, one tap and BLOCK_K channels a step.

Where x has few channels, it comes widened and with a border of zeros (see relayout.widen), and
a row of the filter counts as one tap: its pixels lie side by side, so that the "channels" of a
tap are FILTER_W pixels, and those of neighbouring taps overlap.

A program may take several tiles in turn (persistent: fewer programs than tiles), and several
programs may share one reduction (splits), each writing its part of y to a workspace.
"""

import triton
import triton.language as tl

from tconv.kernels.epilogue import (
    channel_terms,
    epilogue,
    pooled,
    store_result,
    window_place,
    windows_of_rows,
)
from tconv.kernels.index import element_offset, swizzled_tile
from tconv.kernels.taps import inside_bits, is_inside


@triton.jit(do_not_specialize=["batch", "in_h", "in_w", "out_h", "out_w", "split_steps"])
def implicit_gemm_fprop(
    x,  # [batch, in_h, in_w, GROUPS * IN_CHANNELS], or channels before pixels
    w,  # [GROUPS * OUT_CHANNELS, FILTER_H, FILTER_W, IN_CHANNELS]
    bias,  # [GROUPS * OUT_CHANNELS], or None, as the four of a batch normalization
    norm_weight,
    norm_bias,
    norm_mean,
    norm_var,
    residual,  # as y unpooled, or None
    y,  # [batch, out_h, out_w, GROUPS * OUT_CHANNELS], or channels before pixels; or its parts;
    # or pooled, half as high and wide
    kept,  # the activation's argument at each element of the result; or None
    offsets,  # of y pooled: which of its window's places was the greatest; or None
    batch,
    in_h,
    in_w,
    out_h,
    out_w,
    split_steps,  # steps of the reduction that one split takes
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
    X_NHWC: tl.constexpr,
    X_PIXEL: tl.constexpr,  # elements of x from one pixel to the next, where channels come last
    BORDERED: tl.constexpr,  # whether x has a border that no tap leaves
    Y_NHWC: tl.constexpr,
    SPLIT: tl.constexpr,  # whether the reduction is shared, and y holds parts of it
    EPS: tl.constexpr,  # of the batch normalization
    ACTIVATION: tl.constexpr,  # see epilogue.activate
    SLOPE: tl.constexpr,
    RESIDUAL_AFTER: tl.constexpr,  # whether the residual is added behind the activation
    POOL: tl.constexpr,  # whether 2x2 windows are pooled: pixels are then taken window by window
    ACCUMULATOR: tl.constexpr,
    INDEX: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SWIZZLE: tl.constexpr,
):
    EVEN_K: tl.constexpr = IN_CHANNELS % BLOCK_K == 0
    EVEN_N: tl.constexpr = OUT_CHANNELS % BLOCK_N == 0
    TAPS: tl.constexpr = FILTER_H * FILTER_W
    TAP_STEPS: tl.constexpr = (IN_CHANNELS + BLOCK_K - 1) // BLOCK_K  # steps of one tap
    LAST_STEP: tl.constexpr = (TAP_STEPS - 1) * BLOCK_K  # where the last of them begins
    ONE_WORD: tl.constexpr = TAPS <= 31
    TWO_WORDS: tl.constexpr = FILTER_H <= 31 and FILTER_W <= 31
    if X_NHWC:
        PIXEL: tl.constexpr = X_PIXEL
        x_channel = 1  # elements from one channel to the next
    else:
        PIXEL: tl.constexpr = 1
        x_channel = in_h.to(INDEX) * in_w
    x_row = in_w.to(INDEX) * PIXEL  # and from one row to the next

    if POOL:
        plane = (out_h // 2).to(INDEX) * (out_w // 2) * 4
    else:
        plane = out_h.to(INDEX) * out_w
    pixels = batch.to(INDEX) * plane
    tiles_m = tl.cdiv(pixels, BLOCK_M).to(tl.int32)
    tiles_n: tl.constexpr = (OUT_CHANNELS + BLOCK_N - 1) // BLOCK_N
    group = tl.program_id(1)
    channel = tl.arange(0, BLOCK_K)
    to_next_tap = DILATION_W * PIXEL - LAST_STEP * x_channel
    to_next_row = to_next_tap + DILATION_H * x_row - FILTER_W * DILATION_W * PIXEL
    if SPLIT:
        first_step = tl.program_id(2) * split_steps
        last_step = tl.minimum(first_step + split_steps, TAPS * TAP_STEPS)
        y += tl.program_id(2).to(tl.int64) * pixels * (GROUPS * OUT_CHANNELS)
    else:
        first_step = 0
        last_step = TAPS * TAP_STEPS

    # What a tile needs is computed anew for each: kept, it would take the registers of a program.
    tiles = tiles_m * tiles_n
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), disable_licm=True):
        row, column = swizzled_tile(tile, tiles_m, tiles_n, SWIZZLE)
        pixel = row.to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)
        exists = pixel < pixels
        image = pixel // plane
        place = pixel % plane
        if POOL:
            p, q = window_place(place, out_w)
            top = p * STRIDE_H - PAD_H
            left = q * STRIDE_W - PAD_W
        else:
            top = (place // out_w) * STRIDE_H - PAD_H
            left = (place % out_w) * STRIDE_W - PAD_W
        # Which taps of a pixel's window lie on the image: asked once here, not at every step.
        if BORDERED:
            inside = exists
        elif ONE_WORD:
            columns_inside = inside_bits(left, in_w, FILTER_W, DILATION_W)
            taps_inside = columns_inside * 0
            for r in tl.static_range(FILTER_H):
                row_inside = is_inside(top + r * DILATION_H, in_h) & exists
                taps_inside |= tl.where(row_inside, columns_inside << (r * FILTER_W), 0)
        elif TWO_WORDS:
            rows_inside = tl.where(exists, inside_bits(top, in_h, FILTER_H, DILATION_H), 0)
            columns_inside = inside_bits(left, in_w, FILTER_W, DILATION_W)

        if X_NHWC:
            x_image = image * X_PIXEL * in_h * in_w
        else:
            x_image = image * (GROUPS * IN_CHANNELS) * in_h * in_w
        x_first = x_image + top * x_row + left * PIXEL + group * IN_CHANNELS * x_channel
        x_pointers = x + (x_first[:, None] + (channel * x_channel)[None, :])
        filter_index = column * BLOCK_N + tl.arange(0, BLOCK_N)
        filter_exists = filter_index < OUT_CHANNELS
        w_first = (group * OUT_CHANNELS + filter_index).to(INDEX) * (TAPS * IN_CHANNELS)
        w_pointers = w + (w_first[None, :] + channel[:, None])

        # (tap, c) are carried by increments: a division at every step would cost more than the
        # rest. Offsets from fixed addresses, too, are cheaper to carry than the addresses.
        accumulator = tl.zeros((BLOCK_M, BLOCK_N), ACCUMULATOR)
        tap = first_step // TAP_STEPS
        tap_h = tap // FILTER_W
        tap_w = tap % FILTER_W
        c = first_step % TAP_STEPS * BLOCK_K
        x_offset = tap_h * DILATION_H * x_row + tap_w * DILATION_W * PIXEL + c * x_channel
        w_offset = tap * IN_CHANNELS + c
        tap_bit = 1 << tap
        for _ in range(first_step, last_step):
            if BORDERED:
                pass
            elif ONE_WORD:
                inside = (taps_inside & tap_bit) != 0
            elif TWO_WORDS:
                inside = ((rows_inside >> tap_h) & (columns_inside >> tap_w) & 1) != 0
            else:
                inside = exists & is_inside(top + tap_h * DILATION_H, in_h)
                inside &= is_inside(left + tap_w * DILATION_W, in_w)
            if EVEN_K:
                x_tile = tl.load(x_pointers + x_offset, mask=inside[:, None], other=0.0)
                if EVEN_N:
                    w_tile = tl.load(w_pointers + w_offset)
                else:
                    w_tile = tl.load(w_pointers + w_offset, mask=filter_exists[None, :], other=0.0)
            else:
                left_over = channel + c < IN_CHANNELS
                x_mask = inside[:, None] & left_over[None, :]
                x_tile = tl.load(x_pointers + x_offset, mask=x_mask, other=0.0)
                w_mask = filter_exists[None, :] & left_over[:, None]
                w_tile = tl.load(w_pointers + w_offset, mask=w_mask, other=0.0)
            accumulator = tl.dot(
                x_tile, w_tile, accumulator, input_precision=PRECISION, out_dtype=ACCUMULATOR
            )
            c += BLOCK_K
            if TAPS == 1:  # a plain matrix product: there is no next tap
                x_offset += BLOCK_K * x_channel
                w_offset += BLOCK_K
            else:
                tap_done = c >= IN_CHANNELS
                tap_w += tap_done.to(tl.int32)
                row_done = tap_w >= FILTER_W
                to_next = tl.where(row_done, to_next_row, to_next_tap)
                x_offset += tl.where(tap_done, to_next, BLOCK_K * x_channel)
                w_offset += tl.where(tap_done, BLOCK_K - (c - IN_CHANNELS), BLOCK_K)
                c = tl.where(tap_done, 0, c)
                tap_bit <<= tap_done.to(tl.int32)
                tap_w = tl.where(row_done, 0, tap_w)
                tap_h += row_done.to(tl.int32)

        y_channel = group * OUT_CHANNELS + filter_index
        offset, scale, shift = channel_terms(
            bias, norm_weight, norm_bias, norm_mean, norm_var, y_channel, filter_exists, EPS,
            ACCUMULATOR,
        )  # fmt: skip
        more = None
        if residual is not None:
            if POOL:
                place = p * out_w + q
            pixel_offset, channel_offset = element_offset(
                image,
                place,
                out_h.to(INDEX) * out_w,
                y_channel,
                GROUPS * OUT_CHANNELS,
                Y_NHWC,
                INDEX,
            )
            more = tl.load(
                residual + (pixel_offset[:, None] + channel_offset[None, :]),
                mask=exists[:, None] & filter_exists[None, :], other=0.0,
            )  # fmt: skip
        result, argument = epilogue(
            accumulator, offset[None, :], scale[None, :], shift[None, :], more, bias, norm_mean,
            ACTIVATION, SLOPE, RESIDUAL_AFTER, POOL,
        )  # fmt: skip
        best_place = None
        if POOL:
            result, argument, best_place = pooled(
                windows_of_rows(result, BLOCK_M, BLOCK_N),
                windows_of_rows(argument, BLOCK_M, BLOCK_N), kept, ACTIVATION, RESIDUAL_AFTER,
            )  # fmt: skip
            pixel = row.to(INDEX) * (BLOCK_M // 4) + tl.arange(0, BLOCK_M // 4)
            exists = pixel < pixels // 4
            y_plane = plane // 4
        else:
            y_plane = plane
        pixel_offset, channel_offset = element_offset(
            pixel // y_plane, pixel % y_plane, y_plane, y_channel, GROUPS * OUT_CHANNELS, Y_NHWC,
            INDEX,
        )  # fmt: skip
        store_result(
            y, kept, offsets, pixel_offset[:, None] + channel_offset[None, :],
            exists[:, None] & filter_exists[None, :], result, argument, best_place,
        )  # fmt: skip
