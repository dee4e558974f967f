"""Forward convolution as an implicit matrix product.

    y[n, p, q, k] = bias[k] + sum over r, s, c of
        x[n, p stride - pad + r dilation, q stride - pad + s dilation, c] w[k, r, s, c]

Rows of the product are output pixels (n, p, q), columns are filters k, and the reduction
runs over filter taps (r, s) and channels c. No patch matrix is ever formed: a tile of it is
gathered from x, one tap and BLOCK_K channels a step.
"""

import triton
import triton.language as tl

from tconv.kernels.index import inside_bits, is_inside, swizzled_tile


@triton.jit(do_not_specialize=["batch", "in_h", "in_w", "out_h", "out_w"])
def implicit_gemm_fprop(
    x,  # [batch, in_h, in_w, GROUPS * IN_CHANNELS]
    w,  # [GROUPS * OUT_CHANNELS, FILTER_H, FILTER_W, IN_CHANNELS]
    bias,  # [GROUPS * OUT_CHANNELS], or None
    y,  # [batch, out_h, out_w, GROUPS * OUT_CHANNELS], or channels before pixels
    batch,
    in_h,
    in_w,
    out_h,
    out_w,
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
    Y_NHWC: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    INDEX: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SWIZZLE: tl.constexpr,
):
    PIXEL: tl.constexpr = GROUPS * IN_CHANNELS  # elements of x from one pixel to the next
    EVEN_K: tl.constexpr = IN_CHANNELS % BLOCK_K == 0
    EVEN_N: tl.constexpr = OUT_CHANNELS % BLOCK_N == 0
    ONE_WORD: tl.constexpr = FILTER_H * FILTER_W <= 31
    TWO_WORDS: tl.constexpr = FILTER_H <= 31 and FILTER_W <= 31

    pixels = batch.to(INDEX) * out_h * out_w
    tiles_m = tl.cdiv(pixels, BLOCK_M).to(tl.int32)
    row, column = swizzled_tile(tl.program_id(0), tiles_m, tl.cdiv(OUT_CHANNELS, BLOCK_N), SWIZZLE)
    group = tl.program_id(1)

    pixel = row.to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)
    exists = pixel < pixels
    image = pixel // (out_h * out_w)
    place = pixel % (out_h * out_w)
    top = (place // out_w) * STRIDE_H - PAD_H
    left = (place % out_w) * STRIDE_W - PAD_W
    # Which taps of a pixel's window lie on the image: asked once here, not at every step.
    if ONE_WORD:
        columns_inside = inside_bits(left, in_w, FILTER_W, DILATION_W)
        taps_inside = columns_inside * 0
        for r in tl.static_range(FILTER_H):
            row_inside = is_inside(top + r * DILATION_H, in_h) & exists
            taps_inside |= tl.where(row_inside, columns_inside << (r * FILTER_W), 0)
    elif TWO_WORDS:
        rows_inside = tl.where(exists, inside_bits(top, in_h, FILTER_H, DILATION_H), 0)
        columns_inside = inside_bits(left, in_w, FILTER_W, DILATION_W)

    channel = tl.arange(0, BLOCK_K)
    x_first = ((image * in_h + top) * in_w + left) * PIXEL + group * IN_CHANNELS
    x_pointers = x + (x_first[:, None] + channel[None, :])
    filter_index = column * BLOCK_N + tl.arange(0, BLOCK_N)
    filter_exists = filter_index < OUT_CHANNELS
    w_first = (group * OUT_CHANNELS + filter_index).to(INDEX) * (FILTER_H * FILTER_W * IN_CHANNELS)
    w_pointers = w + (w_first[None, :] + channel[:, None])

    # (tap, c) are carried by increments: a division at every step would cost more than the rest.
    accumulator = tl.zeros((BLOCK_M, BLOCK_N), ACCUMULATOR)
    c = 0
    tap = 0
    tap_h = 0
    tap_w = 0
    x_offset = 0
    for _ in range(0, FILTER_H * FILTER_W * tl.cdiv(IN_CHANNELS, BLOCK_K)):
        if ONE_WORD:
            inside = ((taps_inside >> tap) & 1) != 0
        elif TWO_WORDS:
            inside = ((rows_inside >> tap_h) & (columns_inside >> tap_w) & 1) != 0
        else:
            inside = exists & is_inside(top + tap_h * DILATION_H, in_h)
            inside &= is_inside(left + tap_w * DILATION_W, in_w)
        if EVEN_K:
            x_tile = tl.load(x_pointers + x_offset, mask=inside[:, None], other=0.0)
            if EVEN_N:
                w_tile = tl.load(w_pointers)
            else:
                w_tile = tl.load(w_pointers, mask=filter_exists[None, :], other=0.0)
        else:
            left_over = channel + c < IN_CHANNELS
            x_mask = inside[:, None] & left_over[None, :]
            x_tile = tl.load(x_pointers + x_offset, mask=x_mask, other=0.0)
            w_mask = filter_exists[None, :] & left_over[:, None]
            w_tile = tl.load(w_pointers, mask=w_mask, other=0.0)
        accumulator = tl.dot(
            x_tile, w_tile, accumulator, input_precision=PRECISION, out_dtype=ACCUMULATOR
        )
        c += BLOCK_K
        x_offset += BLOCK_K
        tap_done = c >= IN_CHANNELS
        w_pointers += tl.where(tap_done, BLOCK_K - (c - IN_CHANNELS), BLOCK_K)
        x_offset = tl.where(tap_done, x_offset - c + DILATION_W * PIXEL, x_offset)
        c = tl.where(tap_done, 0, c)
        tap = tl.where(tap_done, tap + 1, tap)
        tap_w = tl.where(tap_done, tap_w + 1, tap_w)
        row_done = tap_w >= FILTER_W
        next_row = (DILATION_H * in_w - FILTER_W * DILATION_W) * PIXEL
        x_offset = tl.where(row_done, x_offset + next_row, x_offset)
        tap_w = tl.where(row_done, 0, tap_w)
        tap_h = tl.where(row_done, tap_h + 1, tap_h)

    y_channel = group * OUT_CHANNELS + filter_index
    if bias is not None:
        bias_tile = tl.load(bias + y_channel, mask=filter_exists, other=0.0)
        accumulator += bias_tile.to(ACCUMULATOR)[None, :]
    if Y_NHWC:
        y_offset = pixel[:, None] * (GROUPS * OUT_CHANNELS) + y_channel[None, :]
    else:
        y_first = image * (GROUPS * OUT_CHANNELS) * (out_h * out_w) + place
        y_offset = y_first[:, None] + y_channel.to(INDEX)[None, :] * (out_h * out_w)
    y_mask = exists[:, None] & filter_exists[None, :]
    tl.store(y + y_offset, accumulator.to(y.dtype.element_ty), mask=y_mask)
