"""Gradient of a convolution with respect to its input, for any stride and dilation.

    dx[n, h, v, c] = sum over k, r, s with p stride = h + pad - r dilation (v and s alike) of
        dy[n, p, q, k] w[k, r, s, c]

With a stride, only some taps reach a given row: those with (h + pad - r dilation) divisible
by it. Rows of equal h + pad modulo the stride (a *phase*) share their taps, so each phase is
a convolution of its own, every tap of which counts. One launch computes all phases; a phase
that no tap reaches writes zeros.

It is the forward pass of a transposed convolution as well, and so may end in an epilogue.

A program may compute several tiles in turn (persistent: fewer programs than tiles), and several
programs may share one reduction (splits), each writing its part of dx to a workspace.
"""

import triton
import triton.language as tl

from tconv.kernels.epilogue import store_tile
from tconv.kernels.index import image_strides, load_operands, swizzled_tile
from tconv.kernels.taps import next_step, phase_taps, tap_bits, tap_mask


@triton.jit(do_not_specialize=["batch", "in_h", "in_w", "out_h", "out_w", "splits"])
def implicit_gemm_dgrad(
    dy,  # [batch, out_h, out_w, GROUPS * OUT_CHANNELS], or channels before pixels
    w,  # [GROUPS * OUT_CHANNELS, FILTER_H, FILTER_W, IN_CHANNELS]
    bias,  # [GROUPS * IN_CHANNELS], or None; so may be batch normalization's four
    norm_weight,
    norm_bias,
    norm_mean,
    norm_var,
    residual,  # as dx, or None
    dx,  # [batch, in_h, in_w, GROUPS * IN_CHANNELS], or channels before pixels; or its parts
    kept,  # the activation's argument at each element of the result; or None
    batch,
    in_h,
    in_w,
    out_h,
    out_w,
    splits,  # programs that split one reduction
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
    TAP_STEP_H: tl.constexpr,  # stride / gcd(stride, dilation): between taps of one phase
    TAP_STEP_W: tl.constexpr,
    DY_STEP_H: tl.constexpr,  # dilation / gcd(stride, dilation): between their rows of dy
    DY_STEP_W: tl.constexpr,
    DY_NHWC: tl.constexpr,
    DX_NHWC: tl.constexpr,
    SPLIT: tl.constexpr,  # whether the reduction is split; dx then holds its parts
    EPS: tl.constexpr,  # of the batch normalization
    ACTIVATION: tl.constexpr,  # a name that activations.activate knows, or None
    SLOPE: tl.constexpr,
    RESIDUAL_AFTER: tl.constexpr,  # whether the residual is added after the activation
    ACCUMULATOR: tl.constexpr,
    INDEX: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SWIZZLE: tl.constexpr,
):
    EVEN_K: tl.constexpr = OUT_CHANNELS % BLOCK_K == 0
    EVEN_N: tl.constexpr = IN_CHANNELS % BLOCK_N == 0
    W_STRIDE_FILTER: tl.constexpr = FILTER_H * FILTER_W * IN_CHANNELS
    TAP_STEPS: tl.constexpr = (OUT_CHANNELS + BLOCK_K - 1) // BLOCK_K  # steps of one tap
    LAST_CHANNEL: tl.constexpr = (TAP_STEPS - 1) * BLOCK_K  # first channel of the last of them
    TAPS_H: tl.constexpr = (FILTER_H + TAP_STEP_H - 1) // TAP_STEP_H  # most taps of a phase
    TAPS_W: tl.constexpr = (FILTER_W + TAP_STEP_W - 1) // TAP_STEP_W
    dy_stride_h, dy_stride_w, dy_stride_c = image_strides(
        out_h, out_w, GROUPS * OUT_CHANNELS, DY_NHWC, INDEX
    )

    # Groups, phases and splits share grid axis 0, the only one that may be long.
    # A phase begins at one of the first STRIDE rows; an image of fewer rows has fewer phases.
    phases_w = tl.minimum(in_w, STRIDE_W)
    phases = tl.minimum(in_h, STRIDE_H) * phases_w
    programs = tl.num_programs(0) // (GROUPS * phases * splits)  # of one phase and split
    share = tl.program_id(0) // programs
    group = share % GROUPS
    first_h = share // GROUPS % phases // phases_w
    first_w = share // GROUPS % phases % phases_w
    rows = (in_h - first_h + STRIDE_H - 1) // STRIDE_H  # of dx in this phase
    columns = (in_w - first_w + STRIDE_W - 1) // STRIDE_W
    pixels = batch.to(INDEX) * rows * columns
    tap_h0, taps_h = phase_taps(first_h, FILTER_H, STRIDE_H, PAD_H, DILATION_H, TAP_STEP_H)
    tap_w0, taps_w = phase_taps(first_w, FILTER_W, STRIDE_W, PAD_W, DILATION_W, TAP_STEP_W)
    first_step = 0
    last_step = taps_h * taps_w * TAP_STEPS
    if SPLIT:
        split = share // (GROUPS * phases)
        split_steps = tl.cdiv(last_step, splits)
        first_step = split * split_steps
        last_step = tl.minimum(first_step + split_steps, last_step)
        dx += split.to(tl.int64) * batch * in_h * in_w * (GROUPS * IN_CHANNELS)

    # Every phase has as many programs as the largest needs; in a smaller one the last are idle.
    tiles_m = tl.cdiv(pixels, BLOCK_M).to(tl.int32)
    tiles_n: tl.constexpr = (IN_CHANNELS + BLOCK_N - 1) // BLOCK_N
    tiles = tiles_m * tiles_n
    # disable_licm: values hoisted out of this loop would occupy registers in the inner loop.
    for tile in tl.range(tl.program_id(0) % programs, tiles, programs, disable_licm=True):
        tile_row, tile_column = swizzled_tile(tile, tiles_m, tiles_n, SWIZZLE)
        pixel = tile_row.to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)
        pixel_mask = pixel < pixels
        image = pixel // (rows * columns)
        in_row = first_h + STRIDE_H * (pixel % (rows * columns) // columns)
        in_column = first_w + STRIDE_W * (pixel % (rows * columns) % columns)
        # The row and column of dy under the phase's first tap; exact wherever there is a tap.
        out_row = (in_row + PAD_H - tap_h0 * DILATION_H) // STRIDE_H
        out_column = (in_column + PAD_W - tap_w0 * DILATION_W) // STRIDE_W
        bits, column_bits = tap_bits(
            out_row, out_column, pixel_mask, out_h, out_w, TAPS_H, TAPS_W, -DY_STEP_H, -DY_STEP_W
        )

        out_channel = tl.arange(0, BLOCK_K)
        dy_first = image * (GROUPS * OUT_CHANNELS) * out_h * out_w
        dy_first += out_row * dy_stride_h + out_column * dy_stride_w
        dy_first += group * OUT_CHANNELS * dy_stride_c
        dy_pointers = dy + (dy_first[:, None] + (out_channel * dy_stride_c)[None, :])
        in_channel = tile_column * BLOCK_N + tl.arange(0, BLOCK_N)
        in_channel_mask = in_channel < IN_CHANNELS
        w_first = (group * OUT_CHANNELS + out_channel).to(INDEX) * W_STRIDE_FILTER
        w_pointers = w + (w_first[:, None] + in_channel[None, :])

        accumulator = tl.zeros((BLOCK_M, BLOCK_N), ACCUMULATOR)
        tap_h = first_step // TAP_STEPS // tl.maximum(taps_w, 1)  # counted within the phase
        tap_w = first_step // TAP_STEPS % tl.maximum(taps_w, 1)
        tap_bit = 1 << (tap_h * TAPS_W + tap_w)
        channel0 = first_step % TAP_STEPS * BLOCK_K  # first output channel of the step
        dy_offset = channel0 * dy_stride_c
        dy_offset -= tap_h * DY_STEP_H * dy_stride_h + tap_w * DY_STEP_W * dy_stride_w
        w_tap = (tap_h0 + tap_h * TAP_STEP_H) * FILTER_W + tap_w0 + tap_w * TAP_STEP_W
        w_offset = channel0.to(INDEX) * W_STRIDE_FILTER + w_tap * IN_CHANNELS
        for _ in range(first_step, last_step):
            mask = tap_mask(
                bits, column_bits, out_row, out_column, pixel_mask, out_h, out_w,
                tap_h, tap_w, tap_bit, TAPS_H, TAPS_W, -DY_STEP_H, -DY_STEP_W,
            )  # fmt: skip
            dy_tile, w_tile = load_operands(
                dy_pointers + dy_offset, w_pointers + w_offset, mask, in_channel_mask,
                out_channel + channel0, OUT_CHANNELS, EVEN_N, EVEN_K,
            )  # fmt: skip
            accumulator = tl.dot(
                dy_tile, w_tile, accumulator, input_precision=PRECISION, out_dtype=ACCUMULATOR
            )
            dy_next_tap = -DY_STEP_W * dy_stride_w - LAST_CHANNEL * dy_stride_c
            dy_next_row = dy_next_tap + taps_w * DY_STEP_W * dy_stride_w - DY_STEP_H * dy_stride_h
            w_next_tap = TAP_STEP_W * IN_CHANNELS - LAST_CHANNEL * W_STRIDE_FILTER
            w_row_back = (TAP_STEP_H * FILTER_W - taps_w * TAP_STEP_W) * IN_CHANNELS
            channel0, tap_h, tap_w, tap_bit, dy_offset, w_offset = next_step(
                channel0, tap_h, tap_w, tap_bit, dy_offset, w_offset, taps_w,
                BLOCK_K * dy_stride_c, dy_next_tap, dy_next_row,
                BLOCK_K * W_STRIDE_FILTER, w_next_tap, w_next_tap + w_row_back,
                OUT_CHANNELS, FILTER_H * FILTER_W, TAPS_W, BLOCK_K,
            )  # fmt: skip

        store_tile(
            accumulator, (bias, norm_weight, norm_bias, norm_mean, norm_var, residual),
            (dx, kept, None), image, in_row * in_w + in_column, pixel_mask, in_h, in_w, tile_row,
            batch, group * IN_CHANNELS + in_channel, in_channel_mask, GROUPS * IN_CHANNELS,
            DX_NHWC, True, EPS, ACTIVATION, SLOPE, RESIDUAL_AFTER, False, INDEX, BLOCK_M, BLOCK_N,
        )  # fmt: skip
