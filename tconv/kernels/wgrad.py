"""Gradient of a convolution with respect to its filters.

    dw[k, r, s, c] = sum over n, p, q of
        dy[n, p, q, k] x[n, p stride - pad + r dilation, q stride - pad + s dilation, c]

A matrix product whose rows are filters k, whose columns are (r, s, c), and whose reduction
runs over the output pixels. That reduction is long and the result small, so it may be split
among programs: each writes its part to a workspace, and a second kernel adds the parts in
order. The result is the same from run to run.

A step takes a box of pixels: BOX_N images by BOX_H rows by BOX_W columns of dy, and of x what
the tap sees through it. Where a pixel lies within its box never changes, so that a step moves
only a few scalars.
"""

import triton
import triton.language as tl

from tconv.kernels.index import swizzled_tile
from tconv.kernels.taps import is_inside


@triton.jit(do_not_specialize=["batch", "in_h", "in_w", "out_h", "out_w", "boxes", "split_boxes"])
def implicit_gemm_wgrad(
    x,  # [batch, in_h, in_w, GROUPS * IN_CHANNELS], or channels before pixels, as dy may be
    dy,  # [batch, out_h, out_w, GROUPS * OUT_CHANNELS]
    dw,  # [GROUPS * OUT_CHANNELS, FILTER_H, FILTER_W, IN_CHANNELS], or channels before taps; or
    # its parts, one after the other
    batch,
    in_h,
    in_w,
    out_h,
    out_w,
    boxes,  # of pixels, in all
    split_boxes,  # of one split
    IN_CHANNELS: tl.constexpr,  # of one group, as OUT_CHANNELS is
    OUT_CHANNELS: tl.constexpr,
    GROUPS: tl.constexpr,
    PACK: tl.constexpr,  # narrow groups taken for one, of which the diagonal blocks are stored
    FILTER_H: tl.constexpr,
    FILTER_W: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    NHWC: tl.constexpr,
    X_PIXEL: tl.constexpr,  # elements of x from one pixel to the next, where channels come last
    BORDERED: tl.constexpr,  # whether x has a border that no tap leaves
    DW_NHWC: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    INDEX: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BOX_N: tl.constexpr,
    BOX_H: tl.constexpr,
    BOX_W: tl.constexpr,
    EXACT: tl.constexpr,  # whether boxes divide the batch and its images without a rest
    SWIZZLE: tl.constexpr,
):
    COLUMNS: tl.constexpr = FILTER_H * FILTER_W * IN_CHANNELS
    # A tile within one tap needs one address a pixel; one across taps, an address an element.
    ONE_TAP: tl.constexpr = IN_CHANNELS % BLOCK_N == 0
    if NHWC:
        PIXEL: tl.constexpr = X_PIXEL
        Y_PIXEL: tl.constexpr = GROUPS * OUT_CHANNELS
        x_channel = 1  # elements from one channel to the next
        y_channel = 1
    else:
        PIXEL: tl.constexpr = 1
        Y_PIXEL: tl.constexpr = 1
        x_channel = in_h.to(INDEX) * in_w
        y_channel = out_h.to(INDEX) * out_w
    x_row = in_w.to(INDEX) * PIXEL  # and from one row to the next
    y_row = out_w.to(INDEX) * Y_PIXEL

    tiles_m: tl.constexpr = (OUT_CHANNELS + BLOCK_M - 1) // BLOCK_M
    tiles_n: tl.constexpr = (COLUMNS + BLOCK_N - 1) // BLOCK_N
    tile_row, tile_column = swizzled_tile(
        tl.program_id(0) % (tiles_m * tiles_n), tiles_m, tiles_n, SWIZZLE
    )
    group = tl.program_id(0) // (tiles_m * tiles_n)
    split = tl.program_id(1)

    filter_index = tile_row * BLOCK_M + tl.arange(0, BLOCK_M)
    filter_exists = filter_index < OUT_CHANNELS
    column = tile_column * BLOCK_N + tl.arange(0, BLOCK_N)
    column_exists = column < COLUMNS
    if ONE_TAP:
        tap = (tile_column * BLOCK_N) // IN_CHANNELS
    else:
        tap = column // IN_CHANNELS
    down = (tap // FILTER_W) * DILATION_H - PAD_H
    right = (tap % FILTER_W) * DILATION_W - PAD_W

    # Each pixel's place within its box, and the addresses that the first box would have.
    element = tl.arange(0, BOX_N * BOX_H * BOX_W)
    n = element // (BOX_W * BOX_H)
    p = element // BOX_W % BOX_H
    q = element % BOX_W
    if NHWC:
        x_image = in_h.to(INDEX) * in_w * X_PIXEL
    else:
        x_image = in_h.to(INDEX) * in_w * (GROUPS * IN_CHANNELS)
    y_image = out_h.to(INDEX) * out_w * (GROUPS * OUT_CHANNELS)
    x_first = n * x_image + p * STRIDE_H * x_row + q * STRIDE_W * PIXEL
    x_column = (column - tap * IN_CHANNELS + group * IN_CHANNELS).to(INDEX) * x_channel
    x_column += down * x_row + right * PIXEL
    x_pointers = x + (x_first[:, None] + x_column[None, :])
    y_first = n * y_image + p * y_row + q * Y_PIXEL
    y_column = (group * OUT_CHANNELS + filter_index).to(INDEX) * y_channel
    dy_pointers = dy + (y_first[:, None] + y_column[None, :])
    if ONE_TAP:
        row = (p * STRIDE_H + down)[:, None]
        col = (q * STRIDE_W + right)[:, None]
    else:
        row = (p * STRIDE_H)[:, None] + down[None, :]
        col = (q * STRIDE_W)[:, None] + right[None, :]

    # The box (image0, p0, q0) and the offsets to it are carried from step to step.
    boxes_w = tl.cdiv(out_w, BOX_W).to(INDEX)
    boxes_h = tl.cdiv(out_h, BOX_H).to(INDEX)
    first = split * split_boxes
    image0 = first // (boxes_w * boxes_h) * BOX_N
    p0 = first // boxes_w % boxes_h * BOX_H
    q0 = first % boxes_w * BOX_W
    x_offset = image0 * x_image + p0 * STRIDE_H * x_row + q0 * STRIDE_W * PIXEL
    y_offset = image0 * y_image + p0 * y_row + q0 * Y_PIXEL
    accumulator = tl.zeros((BLOCK_M, BLOCK_N), ACCUMULATOR)
    for _ in range(first, tl.minimum(first + split_boxes, boxes)):
        if EXACT:
            exists = (element >= 0)[:, None]
        else:
            exists = ((n + image0 < batch) & (p + p0 < out_h) & (q + q0 < out_w))[:, None]
        mask = exists
        if not BORDERED:
            mask &= is_inside(row + p0 * STRIDE_H, in_h) & is_inside(col + q0 * STRIDE_W, in_w)
        if not ONE_TAP:
            mask &= column_exists[None, :]
        x_tile = tl.load(x_pointers + x_offset, mask=mask, other=0.0)
        if OUT_CHANNELS % BLOCK_M == 0:
            if EXACT:
                dy_tile = tl.load(dy_pointers + y_offset)
            else:
                dy_tile = tl.load(dy_pointers + y_offset, mask=exists, other=0.0)
        else:
            mask = filter_exists[None, :]
            if not EXACT:
                mask &= exists
            dy_tile = tl.load(dy_pointers + y_offset, mask=mask, other=0.0)
        accumulator = tl.dot(
            tl.trans(dy_tile), x_tile, accumulator,
            input_precision=PRECISION, out_dtype=ACCUMULATOR,
        )  # fmt: skip
        q0 += BOX_W
        row_done = q0 >= out_w
        p0 += tl.where(row_done, BOX_H, 0)
        image_done = p0 >= out_h
        # A row of boxes that overhangs out_w has gone further than the row of pixels.
        x_next_row = (BOX_H * STRIDE_H * in_w - (boxes_w - 1) * BOX_W * STRIDE_W) * PIXEL
        y_next_row = (BOX_H * out_w - (boxes_w - 1) * BOX_W) * Y_PIXEL
        x_next_image = x_next_row + BOX_N * x_image - boxes_h * (BOX_H * STRIDE_H * PIXEL) * in_w
        y_next_image = y_next_row + BOX_N * y_image - boxes_h * (BOX_H * Y_PIXEL) * out_w
        x_next = tl.where(image_done, x_next_image, x_next_row)
        y_next = tl.where(image_done, y_next_image, y_next_row)
        x_offset += tl.where(row_done, x_next, BOX_W * STRIDE_W * PIXEL)
        y_offset += tl.where(row_done, y_next, BOX_W * Y_PIXEL)
        image0 += tl.where(image_done, BOX_N, 0)
        q0 = tl.where(row_done, 0, q0)
        p0 = tl.where(image_done, 0, p0)

    part = split.to(INDEX) * (GROUPS * OUT_CHANNELS)
    part_row = (part + group * OUT_CHANNELS + filter_index) * (COLUMNS // PACK)
    mask = filter_exists[:, None] & column_exists[None, :]
    place = column
    if PACK > 1:
        channel = column - tap * IN_CHANNELS
        own = (filter_index // (OUT_CHANNELS // PACK))[:, None]
        mask &= own == (channel // (IN_CHANNELS // PACK))[None, :]
        place = tap * (IN_CHANNELS // PACK) + channel % (IN_CHANNELS // PACK)
    if not DW_NHWC:
        channel = (column - tap * IN_CHANNELS) % (IN_CHANNELS // PACK)
        place = channel * (FILTER_H * FILTER_W) + tap
    dw_offset = part_row[:, None] + place[None, :]
    tl.store(dw + dw_offset, accumulator.to(dw.dtype.element_ty), mask=mask)
