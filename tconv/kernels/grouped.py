"""Grouped convolution, several narrow groups at once.

    y[n, p, q, k] = bias[k] + sum over r, s, c of
        x[n, p stride - pad + r dilation, q stride - pad + s dilation, g C + c] w[k, r, s, c]

with g the group of k, and C the channels that a group sees. A group of 4 channels fills a quarter
of the matrix unit's smallest block. A tile therefore holds PACK neighbouring groups: their pixels
are loaded together, and their filters form a block-diagonal matrix.

Zero times infinity is NaN: an infinity or NaN of one group would turn results of other groups into
NaN, and into nothing else. A tile that holds a NaN is therefore summed again, group by group.

The gradient of x is the same sum with channels and filters exchanged and the taps reversed; with
a stride, each phase of its rows and columns has programs of its own (see dgrad.py).
"""

import triton
import triton.language as tl

from tconv.kernels.epilogue import pixel_place, store_tile, summed_plane
from tconv.kernels.taps import is_inside, phase_taps


@triton.jit
def packed_sum(
    x_pointers,  # [BLOCK_M, BLOCK_K]: the first tap of each pixel
    w_pointers,  # [BLOCK_K, BLOCK_N]: the first tap of each filter
    w_mask,
    pixel_mask,
    in_row,  # under the first tap
    in_column,
    in_h,
    in_w,
    x_stride_h,
    tap_h0,  # the phase's first tap
    tap_w0,
    taps_h,  # of the phase
    taps_w,
    reduced_mask,
    STEP_H: tl.constexpr,
    STEP_W: tl.constexpr,
    TAP_STEP_H: tl.constexpr,
    TAP_STEP_W: tl.constexpr,
    X_STRIDE_W: tl.constexpr,
    W_STRIDE_TAP: tl.constexpr,
    FILTER_W: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Sums of a tile, pixels by filters, over the taps of one phase and the masked channels."""
    accumulator = tl.zeros((BLOCK_M, BLOCK_N), ACCUMULATOR)
    tap_h = taps_h * 0
    tap_w = taps_h * 0
    for _ in range(0, taps_h * taps_w):
        tap_row = tap_h * STEP_H
        tap_column = tap_w * STEP_W
        mask = pixel_mask & is_inside(in_row + tap_row, in_h)
        mask = mask & is_inside(in_column + tap_column, in_w)
        x_tile = tl.load(
            x_pointers + (tap_row * x_stride_h + tap_column * X_STRIDE_W),
            mask=mask[:, None] & reduced_mask[None, :], other=0.0,
        )  # fmt: skip
        tap = (tap_h0 + tap_h * TAP_STEP_H) * FILTER_W + tap_w0 + tap_w * TAP_STEP_W
        w_tile = tl.load(w_pointers + tap * W_STRIDE_TAP, mask=w_mask, other=0.0)
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
    bias,  # [GROUPS * PRODUCED], or None; so may be batch normalization's four
    norm_weight,
    norm_bias,
    norm_mean,
    norm_var,
    residual,  # as the result unpooled, or None
    result,  # y or dx: [batch, out_h, out_w, GROUPS * PRODUCED], or channels before pixels; or y
    # pooled, half as high and wide
    kept,  # the activation's argument at each element of the result; or None
    offsets,  # place (0 to 3) of each window's maximum, of a pooled y; or None
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
    ACTIVATION: tl.constexpr,  # a name that activations.activate knows, or None
    SLOPE: tl.constexpr,
    RESIDUAL_AFTER: tl.constexpr,  # whether the residual is added after the activation
    POOL: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    INDEX: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,  # pixels
    BLOCK_N: tl.constexpr,  # at least PACK * PRODUCED
    BLOCK_K: tl.constexpr,  # at least PACK * REDUCED
):
    PHASES_H: tl.constexpr = 1 if FORWARD else STRIDE_H
    PHASES_W: tl.constexpr = 1 if FORWARD else STRIDE_W
    IN_CHANNELS: tl.constexpr = REDUCED if FORWARD else PRODUCED
    OUT_CHANNELS: tl.constexpr = PRODUCED if FORWARD else REDUCED
    W_STRIDE_FILTER: tl.constexpr = FILTER_H * FILTER_W * IN_CHANNELS
    X_STRIDE_W: tl.constexpr = GROUPS * REDUCED
    packs: tl.constexpr = GROUPS // PACK
    pack = tl.program_id(0) % packs
    tile_row = tl.program_id(0) // packs
    # A phase begins at one of the first STRIDE rows; an image of fewer rows has fewer phases.
    phases_w = tl.minimum(out_w, PHASES_W)
    first_h = tl.program_id(1) // phases_w
    first_w = tl.program_id(1) % phases_w
    tap_h0, taps_h = phase_taps(first_h, FILTER_H, PHASES_H, PAD_H, DILATION_H, TAP_STEP_H)
    tap_w0, taps_w = phase_taps(first_w, FILTER_W, PHASES_W, PAD_W, DILATION_W, TAP_STEP_W)
    rows = (out_h - first_h + PHASES_H - 1) // PHASES_H  # of the result in this phase
    columns = (out_w - first_w + PHASES_W - 1) // PHASES_W
    plane = summed_plane(rows, columns, POOL, INDEX)
    pixel = tile_row.to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)
    pixel_mask = pixel < batch.to(INDEX) * plane
    plane = tl.maximum(plane, 1)  # a phase may be empty
    image_index = pixel // plane
    row, column = pixel_place(pixel % plane, tl.maximum(columns, 1), POOL)
    out_row = first_h + row.to(tl.int32) * PHASES_H
    out_column = first_w + column.to(tl.int32) * PHASES_W
    if FORWARD:
        in_row = out_row * STRIDE_H - PAD_H  # under tap (0, 0)
        in_column = out_column * STRIDE_W - PAD_W
    else:  # under the phase's first tap; exact wherever there is one
        in_row = (out_row + PAD_H - tap_h0 * DILATION_H) // STRIDE_H
        in_column = (out_column + PAD_W - tap_w0 * DILATION_W) // STRIDE_W

    reduced = tl.arange(0, BLOCK_K)
    produced = tl.arange(0, BLOCK_N)
    reduced_group = reduced // REDUCED
    produced_group = produced // PRODUCED
    reduced_mask = reduced < PACK * REDUCED
    produced_mask = produced < PACK * PRODUCED
    x_stride_h = in_w.to(INDEX) * X_STRIDE_W
    x_first = (image_index * in_h + in_row) * in_w + in_column
    x_offset = x_first[:, None] * X_STRIDE_W + (pack * (PACK * REDUCED) + reduced)[None, :]
    # Filters are counted within the pack, the channels of a filter within its group.
    if FORWARD:
        w_offset = produced[None, :] * W_STRIDE_FILTER + (reduced % REDUCED)[:, None]
    else:
        w_offset = reduced[:, None] * W_STRIDE_FILTER + (produced % PRODUCED)[None, :]
    w_pointers = filters + (pack.to(INDEX) * (PACK * OUT_CHANNELS) * W_STRIDE_FILTER + w_offset)
    w_mask = reduced_group[:, None] == produced_group[None, :]
    w_mask &= reduced_mask[:, None] & produced_mask[None, :]
    accumulator = packed_sum(
        image + x_offset, w_pointers, w_mask, pixel_mask, in_row, in_column, in_h, in_w,
        x_stride_h, tap_h0, tap_w0, taps_h, taps_w, reduced_mask, STEP_H, STEP_W, TAP_STEP_H,
        TAP_STEP_W, X_STRIDE_W, IN_CHANNELS, FILTER_W, ACCUMULATOR, PRECISION, BLOCK_M, BLOCK_N,
    )  # fmt: skip
    if PACK > 1:
        has_nan = tl.max((accumulator != accumulator).to(tl.int32))
        for group in range(0, has_nan * PACK):
            group_mask = reduced_mask & (reduced_group == group)
            sums = packed_sum(
                image + x_offset, w_pointers, w_mask, pixel_mask, in_row, in_column, in_h, in_w,
                x_stride_h, tap_h0, tap_w0, taps_h, taps_w, group_mask, STEP_H, STEP_W, TAP_STEP_H,
                TAP_STEP_W, X_STRIDE_W, IN_CHANNELS, FILTER_W, ACCUMULATOR, PRECISION, BLOCK_M,
                BLOCK_N,
            )  # fmt: skip
            accumulator = tl.where((produced_group == group)[None, :], sums, accumulator)

    store_tile(
        accumulator, (bias, norm_weight, norm_bias, norm_mean, norm_var, residual),
        (result, kept, offsets), image_index, out_row * out_w.to(INDEX) + out_column, pixel_mask,
        out_h, out_w, tile_row, batch, pack * (PACK * PRODUCED) + produced, produced_mask,
        GROUPS * PRODUCED, NHWC, True, EPS, ACTIVATION, SLOPE, RESIDUAL_AFTER, POOL, INDEX,
        BLOCK_M, BLOCK_N,
    )  # fmt: skip
