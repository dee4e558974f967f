"""Grouped convolution, several narrow groups at once.

    y[n, p, q, k] = bias[k] + sum over r, s, c of
        x[n, p stride - pad + r dilation, q stride - pad + s dilation, g C + c] w[k, r, s, c]

with g the group of k, and C the channels that a group sees. A group of 4 channels fills a quarter
of the matrix unit's least block. So a tile takes PACK groups that lie side by side: their pixels
are loaded as one, and their filters become a matrix of blocks along the diagonal, zero elsewhere.

Zero times infinity is no zero: an infinity or NaN of one group would make NaN of another's
results. It can make nothing else of them. So a tile that holds a NaN is summed again, group by
group.

The gradient of x is the same sum with channels and filters exchanged and the taps reversed; with
a stride, each phase of its rows and columns has programs of its own (see dgrad.py).
"""

import triton
import triton.language as tl

from tconv.kernels.epilogue import (
    channel_terms,
    epilogue,
    pooled,
    store_result,
    tile_windows,
    window_place,
)
from tconv.kernels.index import element_offset
from tconv.kernels.taps import first_tap, is_inside


@triton.jit
def packed_sum(
    x_pointers,  # [BLOCK_M, BLOCK_K]: the first tap of each pixel
    w_pointers,  # [BLOCK_K, BLOCK_N]: the first tap of each filter
    w_mask,
    exists,
    top,  # where the first tap lies
    left,
    in_h,
    in_w,
    x_row,  # elements from one row to the next
    tap_h0,  # the phase's first tap
    tap_w0,
    taps_h,  # of the phase
    taps_w,
    channel_exists,  # of the reduction
    STEP_H: tl.constexpr,
    STEP_W: tl.constexpr,
    TAP_STEP_H: tl.constexpr,
    TAP_STEP_W: tl.constexpr,
    PIXEL: tl.constexpr,
    W_TAP: tl.constexpr,  # elements of w from tap to tap
    FILTER_W: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Pixels by filters, over the taps of one phase and the channels that exist."""
    accumulator = tl.zeros((BLOCK_M, BLOCK_N), ACCUMULATOR)
    tap_h = taps_h * 0
    tap_w = taps_h * 0
    for _ in range(0, taps_h * taps_w):
        down = tap_h * STEP_H
        right = tap_w * STEP_W
        inside = exists & is_inside(top + down, in_h) & is_inside(left + right, in_w)
        x_tile = tl.load(
            x_pointers + (down * x_row + right * PIXEL),
            mask=inside[:, None] & channel_exists[None, :], other=0.0,
        )  # fmt: skip
        tap = (tap_h0 + tap_h * TAP_STEP_H) * FILTER_W + tap_w0 + tap_w * TAP_STEP_W
        w_tile = tl.load(w_pointers + tap * W_TAP, mask=w_mask, other=0.0)
        accumulator = tl.dot(
            x_tile, w_tile, accumulator, input_precision=PRECISION, out_dtype=ACCUMULATOR
        )
        tap_w += 1
        row_done = tap_w >= taps_w
        tap_h += row_done.to(tl.int32)
        tap_w = tl.where(row_done, 0, tap_w)
    return accumulator


@triton.jit(do_not_specialize=["batch", "in_h", "in_w", "out_h", "out_w"])
def grouped(
    image,  # x or dy: [batch, in_h, in_w, GROUPS * REDUCED]
    filters,  # [GROUPS * OUT_CHANNELS, FILTER_H, FILTER_W, IN_CHANNELS]
    bias,  # [GROUPS * PRODUCED], or None, as the four of a batch normalization
    norm_weight,
    norm_bias,
    norm_mean,
    norm_var,
    residual,  # as the result unpooled, or None
    result,  # y or dx: [batch, out_h, out_w, GROUPS * PRODUCED], or channels before pixels; or y
    # pooled, half as high and wide
    kept,  # the activation's argument at each element of the result; or None
    offsets,  # of y pooled: which of its window's places was the greatest; or None
    batch,
    in_h,  # of the image
    in_w,
    out_h,  # of the result
    out_w,
    REDUCED: tl.constexpr,  # channels of the image, in one group
    PRODUCED: tl.constexpr,  # channels of the result, in one group
    GROUPS: tl.constexpr,
    PACK: tl.constexpr,  # groups of a tile; it divides GROUPS
    FORWARD: tl.constexpr,
    FILTER_H: tl.constexpr,
    FILTER_W: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    TAP_STEP_H: tl.constexpr,  # between the taps of one phase, of a gradient
    TAP_STEP_W: tl.constexpr,
    STEP_H: tl.constexpr,  # between the places that they read
    STEP_W: tl.constexpr,
    NHWC: tl.constexpr,  # whether the result's channels come last
    EPS: tl.constexpr,  # of the batch normalization
    ACTIVATION: tl.constexpr,  # see epilogue.activate
    SLOPE: tl.constexpr,
    RESIDUAL_AFTER: tl.constexpr,  # whether the residual is added behind the activation
    POOL: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    INDEX: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,  # pixels
    BLOCK_N: tl.constexpr,  # at least PACK * PRODUCED
    BLOCK_K: tl.constexpr,  # at least PACK * REDUCED
):
    TAPS: tl.constexpr = FILTER_H * FILTER_W
    PHASES_H: tl.constexpr = 1 if FORWARD else STRIDE_H
    PHASES_W: tl.constexpr = 1 if FORWARD else STRIDE_W
    IN_CHANNELS: tl.constexpr = REDUCED if FORWARD else PRODUCED
    PIXEL: tl.constexpr = GROUPS * REDUCED
    packs: tl.constexpr = GROUPS // PACK
    pack = tl.program_id(0) % packs
    tile_row = tl.program_id(0) // packs
    # A phase begins at one of the first STRIDE rows; an image of fewer rows has fewer phases.
    phases_w = tl.minimum(out_w, PHASES_W)
    phase_h = (tl.program_id(1) // phases_w + PAD_H) % PHASES_H
    phase_w = (tl.program_id(1) % phases_w + PAD_W) % PHASES_W
    if FORWARD:
        first_h = 0
        first_w = 0
        tap_h0 = 0
        tap_w0 = 0
    else:
        first_h = tl.program_id(1) // phases_w
        first_w = tl.program_id(1) % phases_w
        tap_h0 = first_tap(phase_h, FILTER_H, STRIDE_H, DILATION_H, TAP_STEP_H)
        tap_w0 = first_tap(phase_w, FILTER_W, STRIDE_W, DILATION_W, TAP_STEP_W)
    taps_h = (FILTER_H - tap_h0 + TAP_STEP_H - 1) // TAP_STEP_H + phase_h * 0
    taps_w = (FILTER_W - tap_w0 + TAP_STEP_W - 1) // TAP_STEP_W + phase_w * 0
    if POOL:
        plane = (out_h // 2).to(INDEX) * (out_w // 2) * 4
        columns = out_w
    else:
        columns = (out_w - first_w + PHASES_W - 1) // PHASES_W
        plane = ((out_h - first_h + PHASES_H - 1) // PHASES_H).to(INDEX) * columns
    pixels = batch.to(INDEX) * plane
    pixel = tile_row.to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)
    exists = pixel < pixels
    each = tl.maximum(plane, 1)  # a phase may be empty
    n = pixel // each
    place = pixel % each
    if POOL:
        h, v = window_place(place, out_w)
        h, v = h.to(tl.int32), v.to(tl.int32)
    else:
        across = tl.maximum(columns, 1)
        h = first_h + (place // across).to(tl.int32) * PHASES_H
        v = first_w + (place % across).to(tl.int32) * PHASES_W
    if FORWARD:
        top = h * STRIDE_H - PAD_H
        left = v * STRIDE_W - PAD_W
    else:
        top = (h + PAD_H - tap_h0 * DILATION_H) // STRIDE_H  # exact, wherever there is a tap
        left = (v + PAD_W - tap_w0 * DILATION_W) // STRIDE_W

    reduced = tl.arange(0, BLOCK_K)
    produced = tl.arange(0, BLOCK_N)
    reduced_group = reduced // REDUCED
    produced_group = produced // PRODUCED
    reduced_exists = reduced < PACK * REDUCED
    produced_exists = produced < PACK * PRODUCED
    x_row = in_w.to(INDEX) * PIXEL
    x_first = (n * in_h + top) * in_w + left
    x_offset = x_first[:, None] * PIXEL + (pack * (PACK * REDUCED) + reduced)[None, :]
    # Both are counted within the pack: a filter's number spans it, a channel's only its group.
    if FORWARD:
        w_filter = produced[None, :] * (TAPS * IN_CHANNELS) + (reduced % REDUCED)[:, None]
    else:
        w_filter = reduced[:, None] * (TAPS * IN_CHANNELS) + (produced % PRODUCED)[None, :]
    w_first = pack.to(INDEX) * (PACK * (PRODUCED if FORWARD else REDUCED)) * (TAPS * IN_CHANNELS)
    w_mask = reduced_group[:, None] == produced_group[None, :]
    w_mask &= reduced_exists[:, None] & produced_exists[None, :]
    accumulator = packed_sum(
        image + x_offset, filters + (w_first + w_filter), w_mask, exists, top, left, in_h, in_w,
        x_row, tap_h0, tap_w0, taps_h, taps_w, reduced_exists, STEP_H, STEP_W, TAP_STEP_H,
        TAP_STEP_W, PIXEL, IN_CHANNELS, FILTER_W, ACCUMULATOR, PRECISION, BLOCK_M, BLOCK_N,
    )  # fmt: skip
    if PACK > 1:
        suspect = tl.max((accumulator != accumulator).to(tl.int32))
        for group in range(0, suspect * PACK):
            alone = reduced_exists & (reduced_group == group)
            sums = packed_sum(
                image + x_offset, filters + (w_first + w_filter), w_mask, exists, top, left,
                in_h, in_w, x_row, tap_h0, tap_w0, taps_h, taps_w, alone, STEP_H, STEP_W,
                TAP_STEP_H, TAP_STEP_W, PIXEL, IN_CHANNELS, FILTER_W, ACCUMULATOR, PRECISION,
                BLOCK_M, BLOCK_N,
            )  # fmt: skip
            accumulator = tl.where((produced_group == group)[None, :], sums, accumulator)

    channel = pack * (PACK * PRODUCED) + produced
    offset, scale, shift = channel_terms(
        bias, norm_weight, norm_bias, norm_mean, norm_var, channel, produced_exists, EPS,
        ACCUMULATOR,
    )  # fmt: skip
    result_plane = out_h.to(INDEX) * out_w
    pixel_offset, channel_offset = element_offset(
        n, h * out_w.to(INDEX) + v, result_plane, channel, GROUPS * PRODUCED, NHWC, INDEX
    )
    at = pixel_offset[:, None] + channel_offset[None, :]
    mask = exists[:, None] & produced_exists[None, :]
    more = None
    if residual is not None:
        more = tl.load(residual + at, mask=mask, other=0.0)
    total, argument = epilogue(
        accumulator, offset[None, :], scale[None, :], shift[None, :], more, bias, norm_mean,
        ACTIVATION, SLOPE, RESIDUAL_AFTER, POOL,
    )  # fmt: skip
    best_place = None
    if POOL:
        total, argument, best_place = pooled(
            tile_windows(total, True, BLOCK_M, BLOCK_N),
            tile_windows(argument, True, BLOCK_M, BLOCK_N),
            kept, ACTIVATION, RESIDUAL_AFTER,
        )  # fmt: skip
        pixel = tile_row.to(INDEX) * (BLOCK_M // 4) + tl.arange(0, BLOCK_M // 4)
        result_plane = plane // 4
        pixel_offset, channel_offset = element_offset(
            pixel // result_plane, pixel % result_plane, result_plane, channel, GROUPS * PRODUCED,
            NHWC, INDEX,
        )  # fmt: skip
        at = pixel_offset[:, None] + channel_offset[None, :]
        mask = (pixel < pixels // 4)[:, None] & produced_exists[None, :]
    store_result(result, kept, offsets, at, mask, total, argument, best_place)
