"""Forward convolution as an implicit matrix product.

    y[n, p, q, k] = bias[k] + sum over r, s, c of
        x[n, p stride - pad + r dilation, q stride - pad + s dilation, c] w[k, r, s, c]

Rows of the product are output pixels (n, p, q), columns are filters k, and the reduction
runs over filter taps (r, s) and channels c. No patch matrix is ever formed: each
step gathers a tile of it from x, for one tap and BLOCK_K channels.

x with few channels is first widened and given a border of zeros (see relayout.widen), and a row
of the filter then counts as one tap: its pixels lie side by side, so that the "channels" of a tap
are FILTER_W pixels, and those of neighbouring taps overlap.

A program may compute several tiles in turn (persistent: fewer programs than tiles), and several
programs may share one reduction (splits), each writing its part of y to a workspace.
"""

import triton
import triton.language as tl

from tconv.kernels.epilogue import pixel_place, store_tile, summed_plane
from tconv.kernels.index import group_share, image_strides, load_operands, swizzled_tile
from tconv.kernels.taps import next_step, tap_bits, tap_mask


@triton.jit(do_not_specialize=["batch", "in_h", "in_w", "out_h", "out_w", "split_steps"])
def implicit_gemm_fprop(
    x,  # [batch, in_h, in_w, GROUPS * IN_CHANNELS], or channels before pixels
    w,  # [GROUPS * OUT_CHANNELS, FILTER_H, FILTER_W, IN_CHANNELS]
    bias,  # [GROUPS * OUT_CHANNELS], or None; so may be batch normalization's four
    norm_weight,
    norm_bias,
    norm_mean,
    norm_var,
    residual,  # as y unpooled, or None
    y,  # [batch, out_h, out_w, GROUPS * OUT_CHANNELS], or channels before pixels; or its parts;
    # or pooled, half as high and wide
    kept,  # the activation's argument at each element of the result; or None
    offsets,  # place (0 to 3) of each window's maximum, of a pooled y; or None
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
    BORDERED: tl.constexpr,  # whether x has a border of zeros, so that taps need no mask
    Y_NHWC: tl.constexpr,
    SPLIT: tl.constexpr,  # whether the reduction is split; y then holds its parts
    EPS: tl.constexpr,  # of the batch normalization
    ACTIVATION: tl.constexpr,  # a name that activations.activate knows, or None
    SLOPE: tl.constexpr,
    RESIDUAL_AFTER: tl.constexpr,  # whether the residual is added after the activation
    POOL: tl.constexpr,  # whether y is pooled 2x2; pixels are then in window order
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
    LAST_CHANNEL: tl.constexpr = (TAP_STEPS - 1) * BLOCK_K  # first channel of the last of them
    x_stride_h, x_stride_w, x_stride_c = image_strides(in_h, in_w, X_PIXEL, X_NHWC, INDEX)
    x_next_tap = DILATION_W * x_stride_w - LAST_CHANNEL * x_stride_c
    x_next_row = x_next_tap + DILATION_H * x_stride_h - FILTER_W * DILATION_W * x_stride_w

    group, program, programs = group_share(GROUPS)
    plane = summed_plane(out_h, out_w, POOL, INDEX)
    pixels = batch.to(INDEX) * plane
    tiles_m = tl.cdiv(pixels, BLOCK_M).to(tl.int32)
    tiles_n: tl.constexpr = (OUT_CHANNELS + BLOCK_N - 1) // BLOCK_N
    first_step = 0
    last_step = TAPS * TAP_STEPS
    if SPLIT:
        first_step = tl.program_id(1) * split_steps
        last_step = tl.minimum(first_step + split_steps, TAPS * TAP_STEPS)
        y += tl.program_id(1).to(tl.int64) * pixels * (GROUPS * OUT_CHANNELS)

    # disable_licm: values hoisted out of this loop would occupy registers in the inner loop.
    tiles = tiles_m * tiles_n
    for tile in tl.range(program, tiles, programs, disable_licm=True):
        tile_row, tile_column = swizzled_tile(tile, tiles_m, tiles_n, SWIZZLE)
        pixel = tile_row.to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)
        pixel_mask = pixel < pixels
        image = pixel // plane
        place = pixel % plane
        out_row, out_column = pixel_place(place, out_w, POOL)
        if POOL:
            place = out_row * out_w + out_column
        in_row = out_row * STRIDE_H - PAD_H  # under tap (0, 0)
        in_column = out_column * STRIDE_W - PAD_W
        bits, column_bits = tap_bits(
            in_row, in_column, pixel_mask, in_h, in_w, FILTER_H, FILTER_W, DILATION_H, DILATION_W
        )
        in_channel = tl.arange(0, BLOCK_K)
        x_first = image * X_PIXEL * in_h * in_w + in_row * x_stride_h + in_column * x_stride_w
        x_first += group * IN_CHANNELS * x_stride_c
        x_pointers = x + (x_first[:, None] + (in_channel * x_stride_c)[None, :])
        out_channel = tile_column * BLOCK_N + tl.arange(0, BLOCK_N)
        out_channel_mask = out_channel < OUT_CHANNELS
        w_first = (group * OUT_CHANNELS + out_channel).to(INDEX) * (TAPS * IN_CHANNELS)
        w_pointers = w + (w_first[None, :] + in_channel[:, None])

        accumulator = tl.zeros((BLOCK_M, BLOCK_N), ACCUMULATOR)
        tap = first_step // TAP_STEPS
        tap_h = tap // FILTER_W
        tap_w = tap % FILTER_W
        tap_bit = 1 << tap
        channel0 = first_step % TAP_STEPS * BLOCK_K  # first input channel of the step
        x_offset = tap_h * DILATION_H * x_stride_h + tap_w * DILATION_W * x_stride_w
        x_offset += channel0 * x_stride_c
        w_offset = tap * IN_CHANNELS + channel0
        for _ in range(first_step, last_step):
            mask = pixel_mask
            if not BORDERED:
                mask = tap_mask(
                    bits, column_bits, in_row, in_column, pixel_mask, in_h, in_w,
                    tap_h, tap_w, tap_bit, FILTER_H, FILTER_W, DILATION_H, DILATION_W,
                )  # fmt: skip
            x_tile, w_tile = load_operands(
                x_pointers + x_offset, w_pointers + w_offset, mask, out_channel_mask,
                in_channel + channel0, IN_CHANNELS, EVEN_N, EVEN_K,
            )  # fmt: skip
            accumulator = tl.dot(
                x_tile, w_tile, accumulator, input_precision=PRECISION, out_dtype=ACCUMULATOR
            )
            channel0, tap_h, tap_w, tap_bit, x_offset, w_offset = next_step(
                channel0, tap_h, tap_w, tap_bit, x_offset, w_offset, FILTER_W,
                BLOCK_K * x_stride_c, x_next_tap, x_next_row,
                BLOCK_K, IN_CHANNELS - channel0, IN_CHANNELS - channel0,
                IN_CHANNELS, TAPS, FILTER_W, BLOCK_K,
            )  # fmt: skip

        store_tile(
            accumulator, (bias, norm_weight, norm_bias, norm_mean, norm_var, residual),
            (y, kept, offsets), image, place, pixel_mask, out_h, out_w,
            tile_row, batch, group * OUT_CHANNELS + out_channel, out_channel_mask,
            GROUPS * OUT_CHANNELS, Y_NHWC, True, EPS, ACTIVATION, SLOPE, RESIDUAL_AFTER, POOL,
            INDEX, BLOCK_M, BLOCK_N,
        )  # fmt: skip
