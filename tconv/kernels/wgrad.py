"""Gradient of a convolution with respect to its filters.

    dw[k, r, s, c] = sum over n, p, q of
        dy[n, p, q, k] x[n, p stride - pad + r dilation, q stride - pad + s dilation, c]

A matrix product whose rows are filters k, whose columns are (r, s, c), and whose reduction
runs over the output pixels. That reduction is long and the result small, so it is split among
programs: each writes its part to a workspace, and a second kernel adds the parts in order.
The result is the same from run to run.
"""

import triton
import triton.language as tl

from tconv.kernels.index import is_inside, swizzled_tile


@triton.jit(do_not_specialize=["batch", "in_h", "in_w", "out_h", "out_w", "steps", "split_steps"])
def implicit_gemm_wgrad(
    x,  # [batch, in_h, in_w, GROUPS * IN_CHANNELS]
    dy,  # [batch, out_h, out_w, GROUPS * OUT_CHANNELS]
    workspace,  # [splits, GROUPS * OUT_CHANNELS, FILTER_H * FILTER_W * IN_CHANNELS]
    batch,
    in_h,
    in_w,
    out_h,
    out_w,
    steps,  # of BLOCK_K pixels, in all
    split_steps,  # of one split
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
    ACCUMULATOR: tl.constexpr,
    INDEX: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SWIZZLE: tl.constexpr,
):
    COLUMNS: tl.constexpr = FILTER_H * FILTER_W * IN_CHANNELS
    X_PIXEL: tl.constexpr = GROUPS * IN_CHANNELS
    Y_PIXEL: tl.constexpr = GROUPS * OUT_CHANNELS
    # A tile within one tap needs one address a pixel; one across taps, an address an element.
    ONE_TAP: tl.constexpr = IN_CHANNELS % BLOCK_N == 0

    tile_row, tile_column = swizzled_tile(
        tl.program_id(0), tl.cdiv(OUT_CHANNELS, BLOCK_M), tl.cdiv(COLUMNS, BLOCK_N), SWIZZLE
    )
    group = tl.program_id(1)
    split = tl.program_id(2)

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
    x_column = (down * in_w + right) * X_PIXEL + column - tap * IN_CHANNELS + group * IN_CHANNELS

    accumulator = tl.zeros((BLOCK_M, BLOCK_N), ACCUMULATOR)
    pixels = batch.to(INDEX) * out_h * out_w
    first = split * split_steps
    pixel = first.to(INDEX) * BLOCK_K + tl.arange(0, BLOCK_K)
    image = pixel // (out_h * out_w)
    place = (pixel % (out_h * out_w)).to(tl.int32)
    p = place // out_w
    q = place % out_w
    # (image, p, q) are carried from step to step: three divisions a step cost twice the rest.
    step_q = BLOCK_K % out_w
    step_p = (BLOCK_K // out_w) % out_h
    step_image = BLOCK_K // (out_w * out_h)
    for _ in range(first, tl.minimum(first + split_steps, steps)):
        exists = pixel < pixels
        top = p * STRIDE_H
        left = q * STRIDE_W
        x_offset = (((image * in_h + top) * in_w + left) * X_PIXEL)[:, None] + x_column[None, :]
        if ONE_TAP:
            inside = exists & is_inside(top + down, in_h) & is_inside(left + right, in_w)
            x_tile = tl.load(x + x_offset, mask=inside[:, None], other=0.0)
        else:
            inside = is_inside(top[:, None] + down[None, :], in_h)
            inside &= is_inside(left[:, None] + right[None, :], in_w)
            inside &= exists[:, None] & column_exists[None, :]
            x_tile = tl.load(x + x_offset, mask=inside, other=0.0)
        dy_channel = group * OUT_CHANNELS + filter_index
        dy_offset = pixel[:, None] * Y_PIXEL + dy_channel[None, :]
        if OUT_CHANNELS % BLOCK_M == 0:
            dy_tile = tl.load(dy + dy_offset, mask=exists[:, None], other=0.0)
        else:
            dy_mask = exists[:, None] & filter_exists[None, :]
            dy_tile = tl.load(dy + dy_offset, mask=dy_mask, other=0.0)
        accumulator = tl.dot(
            tl.trans(dy_tile), x_tile, accumulator,
            input_precision=PRECISION, out_dtype=ACCUMULATOR,
        )  # fmt: skip
        pixel += BLOCK_K
        q += step_q
        row_done = q >= out_w
        q = tl.where(row_done, q - out_w, q)
        p += step_p + row_done.to(tl.int32)
        image_done = p >= out_h
        p = tl.where(image_done, p - out_h, p)
        image += step_image + image_done.to(tl.int32)

    part = split.to(INDEX) * (GROUPS * OUT_CHANNELS)
    part_row = (part + group * OUT_CHANNELS + filter_index) * COLUMNS
    mask = filter_exists[:, None] & column_exists[None, :]
    tl.store(workspace + part_row[:, None] + column[None, :], accumulator, mask=mask)


@triton.jit(do_not_specialize=["elements", "splits"])
def add_splits(
    workspace,  # [splits, rows, TAPS, CHANNELS], elements = rows TAPS CHANNELS
    total,  # [rows, TAPS, CHANNELS], or channels before taps
    elements,
    splits,
    TAPS: tl.constexpr,
    CHANNELS: tl.constexpr,
    TAPS_FIRST: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Adds the parts of a split reduction, always in the same order."""
    element = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    exists = element < elements
    sums = tl.zeros((BLOCK,), workspace.dtype.element_ty)
    parts = workspace + element
    for _ in range(0, splits):
        sums += tl.load(parts, mask=exists, other=0.0)
        parts += elements
    if TAPS_FIRST:
        place = element
    else:
        channel = element % CHANNELS
        tap = (element // CHANNELS) % TAPS
        place = (element // (CHANNELS * TAPS) * CHANNELS + channel) * TAPS + tap
    tl.store(total + place, sums.to(total.dtype.element_ty), mask=exists)
