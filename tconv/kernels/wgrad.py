"""Gradient of a convolution with respect to its filters.

    dw[k, r, s, c] = sum over n, p, q of
        dy[n, p, q, k] x[n, p stride - pad + r dilation, q stride - pad + s dilation, c]

A matrix product whose rows are filters k, whose columns are (r, s, c), and whose reduction
runs over the output pixels. That reduction is long and the result small, so it may be split
among programs: each writes its part to a workspace, and a second kernel adds the parts in
order. The result is the same from run to run.

A step reads a box of pixels: BOX_N images by BOX_H rows by BOX_W columns of dy, and the pixels of
x that the tap multiplies them with. A thread keeps its place within the box, so that a step
changes only a few scalars.
"""

import triton
import triton.language as tl

from tconv.kernels.index import (
    image_strides,
    next_box,
    store_filter_gradient,
    swizzled_tile,
)
from tconv.kernels.taps import is_inside


@triton.jit
def offset_to_next_box(row_done, image_done, stride_n, width, stride_w, boxes_h, boxes_w,
                       BOX_N: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """Elements from a box to the next; boxes lie ROWS rows and COLUMNS columns apart.

    A row of boxes may overhang the image, and then has gone further than a row of pixels.
    """
    next_row = (ROWS * width - (boxes_w - 1) * COLUMNS) * stride_w
    next_image = next_row + BOX_N * stride_n - boxes_h * (ROWS * stride_w) * width
    return tl.where(row_done, tl.where(image_done, next_image, next_row), COLUMNS * stride_w)


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
    boxes,  # boxes of pixels, in total
    split_boxes,  # boxes of one split
    IN_CHANNELS: tl.constexpr,  # of one group, as OUT_CHANNELS is
    OUT_CHANNELS: tl.constexpr,
    GROUPS: tl.constexpr,
    PACK: tl.constexpr,  # narrow groups multiplied as one; their diagonal blocks are stored
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
    BORDERED: tl.constexpr,  # whether x has a border of zeros, so that taps need no mask
    DW_NHWC: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    INDEX: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BOX_N: tl.constexpr,
    BOX_H: tl.constexpr,
    BOX_W: tl.constexpr,
    EXACT: tl.constexpr,  # whether boxes divide the batch and its images without remainder
    SWIZZLE: tl.constexpr,
):
    TAPS: tl.constexpr = FILTER_H * FILTER_W
    # A tile within one tap needs one address a pixel; one across taps, an address an element.
    ONE_TAP: tl.constexpr = IN_CHANNELS % BLOCK_N == 0
    x_stride_h, x_stride_w, x_stride_c = image_strides(in_h, in_w, X_PIXEL, NHWC, INDEX)
    dy_stride_h, dy_stride_w, dy_stride_c = image_strides(
        out_h, out_w, GROUPS * OUT_CHANNELS, NHWC, INDEX
    )
    x_stride_n = in_h.to(INDEX) * in_w * X_PIXEL
    dy_stride_n = out_h.to(INDEX) * out_w * (GROUPS * OUT_CHANNELS)

    tiles_m: tl.constexpr = (OUT_CHANNELS + BLOCK_M - 1) // BLOCK_M
    tiles_n: tl.constexpr = (TAPS * IN_CHANNELS + BLOCK_N - 1) // BLOCK_N
    tile_row, tile_column = swizzled_tile(
        tl.program_id(0) % (tiles_m * tiles_n), tiles_m, tiles_n, SWIZZLE
    )
    group = tl.program_id(0) // (tiles_m * tiles_n)
    split = tl.program_id(1)
    out_channel = tile_row * BLOCK_M + tl.arange(0, BLOCK_M)
    out_channel_mask = out_channel < OUT_CHANNELS
    column = tile_column * BLOCK_N + tl.arange(0, BLOCK_N)
    column_mask = column < TAPS * IN_CHANNELS
    if ONE_TAP:
        tap = (tile_column * BLOCK_N) // IN_CHANNELS
    else:
        tap = column // IN_CHANNELS
    tap_row = (tap // FILTER_W) * DILATION_H - PAD_H  # where output pixel (0, 0) sees the tap
    tap_column = (tap % FILTER_W) * DILATION_W - PAD_W

    # Each pixel's place within its box, and its addresses in the first box.
    element = tl.arange(0, BOX_N * BOX_H * BOX_W)
    image = element // (BOX_W * BOX_H)
    out_row = element // BOX_W % BOX_H
    out_column = element % BOX_W
    x_first = image * x_stride_n + out_row * STRIDE_H * x_stride_h
    x_first += out_column * STRIDE_W * x_stride_w
    x_column = (column - tap * IN_CHANNELS + group * IN_CHANNELS).to(INDEX) * x_stride_c
    x_column += tap_row * x_stride_h + tap_column * x_stride_w
    x_pointers = x + (x_first[:, None] + x_column[None, :])
    dy_first = image * dy_stride_n + out_row * dy_stride_h + out_column * dy_stride_w
    dy_channel = (group * OUT_CHANNELS + out_channel).to(INDEX) * dy_stride_c
    dy_pointers = dy + (dy_first[:, None] + dy_channel[None, :])
    if ONE_TAP:
        in_row = (out_row * STRIDE_H + tap_row)[:, None]
        in_column = (out_column * STRIDE_W + tap_column)[:, None]
    else:
        in_row = (out_row * STRIDE_H)[:, None] + tap_row[None, :]
        in_column = (out_column * STRIDE_W)[:, None] + tap_column[None, :]

    # The box (image0, row0, column0) and the offsets to it are carried from step to step.
    boxes_w = tl.cdiv(out_w, BOX_W).to(INDEX)
    boxes_h = tl.cdiv(out_h, BOX_H).to(INDEX)
    first = split * split_boxes
    image0 = first // (boxes_w * boxes_h) * BOX_N
    row0 = first // boxes_w % boxes_h * BOX_H
    column0 = first % boxes_w * BOX_W
    x_offset = image0 * x_stride_n + row0 * STRIDE_H * x_stride_h + column0 * STRIDE_W * x_stride_w
    dy_offset = image0 * dy_stride_n + row0 * dy_stride_h + column0 * dy_stride_w
    accumulator = tl.zeros((BLOCK_M, BLOCK_N), ACCUMULATOR)
    for _ in range(first, tl.minimum(first + split_boxes, boxes)):
        pixel_mask = (image + image0 < batch) & (out_row + row0 < out_h)
        pixel_mask = (pixel_mask & (out_column + column0 < out_w))[:, None]
        if EXACT:
            pixel_mask = (element >= 0)[:, None]
        x_mask = pixel_mask
        if not BORDERED:
            x_mask &= is_inside(in_row + row0 * STRIDE_H, in_h)
            x_mask &= is_inside(in_column + column0 * STRIDE_W, in_w)
        if not ONE_TAP:
            x_mask &= column_mask[None, :]
        x_tile = tl.load(x_pointers + x_offset, mask=x_mask, other=0.0)
        if EXACT and OUT_CHANNELS % BLOCK_M == 0:
            dy_tile = tl.load(dy_pointers + dy_offset)
        elif OUT_CHANNELS % BLOCK_M == 0:
            dy_tile = tl.load(dy_pointers + dy_offset, mask=pixel_mask, other=0.0)
        else:
            dy_mask = out_channel_mask[None, :]
            if not EXACT:
                dy_mask &= pixel_mask
            dy_tile = tl.load(dy_pointers + dy_offset, mask=dy_mask, other=0.0)
        accumulator = tl.dot(
            tl.trans(dy_tile), x_tile, accumulator,
            input_precision=PRECISION, out_dtype=ACCUMULATOR,
        )  # fmt: skip
        image0, row0, column0, row_done, image_done = next_box(
            image0, row0, column0, out_h, out_w, BOX_N, BOX_H, BOX_W
        )
        x_offset += offset_to_next_box(
            row_done, image_done, x_stride_n, in_w, x_stride_w, boxes_h, boxes_w,
            BOX_N, BOX_H * STRIDE_H, BOX_W * STRIDE_W,
        )  # fmt: skip
        dy_offset += offset_to_next_box(
            row_done, image_done, dy_stride_n, out_w, dy_stride_w, boxes_h, boxes_w,
            BOX_N, BOX_H, BOX_W,
        )  # fmt: skip

    store_filter_gradient(
        dw, accumulator, split, group, out_channel, out_channel_mask, column, column_mask, tap,
        IN_CHANNELS, OUT_CHANNELS, GROUPS, TAPS, PACK, DW_NHWC, INDEX,
    )  # fmt: skip
