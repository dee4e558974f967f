"""Gradient of a convolution with respect to its input, for any stride and dilation.

    dx[n, h, v, c] = sum over k, r, s with p stride = h + pad - r dilation (v and s alike) of
        dy[n, p, q, k] w[k, r, s, c]

With a stride, only some taps reach a given row: those with (h + pad - r dilation) divisible
by it. Rows of equal h + pad modulo the stride (a *phase*) share their taps, so each phase is
a convolution of its own with every tap useful. Phases lie on a program axis of one launch; a
phase that no tap reaches writes its zeros.
"""

import triton
import triton.language as tl

from tconv.kernels.index import inside_bits, is_inside, swizzled_tile


@triton.jit
def first_tap(phase, FILTER: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr,
              STEP: tl.constexpr):  # fmt: skip
    """The smallest tap r < FILTER with r DILATION = phase modulo STRIDE; FILTER where none is."""
    tap = phase * 0 + FILTER
    for r in tl.static_range(STEP):
        if r < FILTER:
            tap = tl.where((r * DILATION) % STRIDE == phase, r, tap)
    return tap


@triton.jit(do_not_specialize=["batch", "in_h", "in_w", "out_h", "out_w"])
def implicit_gemm_dgrad(
    dy,  # [batch, out_h, out_w, GROUPS * OUT_CHANNELS]
    w,  # [GROUPS * OUT_CHANNELS, FILTER_H, FILTER_W, IN_CHANNELS]
    dx,  # [batch, in_h, in_w, GROUPS * IN_CHANNELS], or channels before pixels
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
    TAP_STEP_H: tl.constexpr,  # stride / gcd(stride, dilation): between taps of one phase
    TAP_STEP_W: tl.constexpr,
    DY_STEP_H: tl.constexpr,  # dilation / gcd(stride, dilation): between their rows of dy
    DY_STEP_W: tl.constexpr,
    DX_NHWC: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    INDEX: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SWIZZLE: tl.constexpr,
):
    PIXEL: tl.constexpr = GROUPS * OUT_CHANNELS  # elements of dy from one pixel to the next
    FILTER: tl.constexpr = FILTER_H * FILTER_W * IN_CHANNELS  # elements of one filter
    EVEN_K: tl.constexpr = OUT_CHANNELS % BLOCK_K == 0
    EVEN_N: tl.constexpr = IN_CHANNELS % BLOCK_N == 0
    MOST_TAPS_H: tl.constexpr = (FILTER_H + TAP_STEP_H - 1) // TAP_STEP_H
    MOST_TAPS_W: tl.constexpr = (FILTER_W + TAP_STEP_W - 1) // TAP_STEP_W
    TWO_WORDS: tl.constexpr = MOST_TAPS_H <= 31 and MOST_TAPS_W <= 31

    group = tl.program_id(1)
    phase_h = tl.program_id(2) // STRIDE_W
    phase_w = tl.program_id(2) % STRIDE_W
    first_h = (phase_h + (STRIDE_H - 1) * PAD_H) % STRIDE_H
    first_w = (phase_w + (STRIDE_W - 1) * PAD_W) % STRIDE_W
    rows = (in_h - first_h + STRIDE_H - 1) // STRIDE_H  # of dx in this phase
    columns = (in_w - first_w + STRIDE_W - 1) // STRIDE_W
    pixels = batch.to(INDEX) * rows * columns

    # Every phase has as many programs as the largest needs: the tiles of phase 0.
    most = batch.to(INDEX) * tl.cdiv(in_h, STRIDE_H) * tl.cdiv(in_w, STRIDE_W)
    tiles_m = tl.cdiv(most, BLOCK_M).to(tl.int32)
    tile_row, tile_column = swizzled_tile(
        tl.program_id(0), tiles_m, tl.cdiv(IN_CHANNELS, BLOCK_N), SWIZZLE
    )
    if tile_row.to(INDEX) * BLOCK_M < pixels:
        pixel = tile_row.to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)
        exists = pixel < pixels
        image = pixel // (rows * columns)
        place = pixel % (rows * columns)
        h = first_h + STRIDE_H * (place // columns)
        v = first_w + STRIDE_W * (place % columns)

        tap_h0 = first_tap(phase_h, FILTER_H, STRIDE_H, DILATION_H, TAP_STEP_H)
        tap_w0 = first_tap(phase_w, FILTER_W, STRIDE_W, DILATION_W, TAP_STEP_W)
        taps_h = (FILTER_H - tap_h0 + TAP_STEP_H - 1) // TAP_STEP_H
        taps_w = (FILTER_W - tap_w0 + TAP_STEP_W - 1) // TAP_STEP_W
        p = (h + PAD_H - tap_h0 * DILATION_H) // STRIDE_H  # exact, wherever there is a tap
        q = (v + PAD_W - tap_w0 * DILATION_W) // STRIDE_W
        if TWO_WORDS:
            rows_inside = tl.where(exists, inside_bits(p, out_h, MOST_TAPS_H, -DY_STEP_H), 0)
            columns_inside = inside_bits(q, out_w, MOST_TAPS_W, -DY_STEP_W)

        filter_index = tl.arange(0, BLOCK_K)
        dy_first = ((image * out_h + p) * out_w + q) * PIXEL + group * OUT_CHANNELS
        dy_pointers = dy + (dy_first[:, None] + filter_index[None, :])
        channel = tile_column * BLOCK_N + tl.arange(0, BLOCK_N)
        channel_exists = channel < IN_CHANNELS
        w_first = (group * OUT_CHANNELS + filter_index).to(INDEX) * FILTER
        w_pointers = w + (w_first[:, None] + channel[None, :])

        accumulator = tl.zeros((BLOCK_M, BLOCK_N), ACCUMULATOR)
        k = 0
        tap_h = 0  # counted within the phase
        tap_w = 0
        dy_offset = 0
        w_offset = (tap_h0 * FILTER_W + tap_w0) * IN_CHANNELS
        for _ in range(0, taps_h * taps_w * tl.cdiv(OUT_CHANNELS, BLOCK_K)):
            if TWO_WORDS:
                inside = ((rows_inside >> tap_h) & (columns_inside >> tap_w) & 1) != 0
            else:
                inside = exists & is_inside(p - tap_h * DY_STEP_H, out_h)
                inside &= is_inside(q - tap_w * DY_STEP_W, out_w)
            if EVEN_K:
                dy_tile = tl.load(dy_pointers + dy_offset, mask=inside[:, None], other=0.0)
                if EVEN_N:
                    w_tile = tl.load(w_pointers + w_offset)
                else:
                    w_tile = tl.load(w_pointers + w_offset, mask=channel_exists[None, :], other=0.0)
            else:
                left_over = filter_index + k < OUT_CHANNELS
                dy_mask = inside[:, None] & left_over[None, :]
                dy_tile = tl.load(dy_pointers + dy_offset, mask=dy_mask, other=0.0)
                w_mask = left_over[:, None] & channel_exists[None, :]
                w_tile = tl.load(w_pointers + w_offset, mask=w_mask, other=0.0)
            accumulator = tl.dot(
                dy_tile, w_tile, accumulator, input_precision=PRECISION, out_dtype=ACCUMULATOR
            )
            k += BLOCK_K
            dy_offset += BLOCK_K
            w_offset += BLOCK_K * FILTER
            tap_done = k >= OUT_CHANNELS
            dy_offset = tl.where(tap_done, dy_offset - k - DY_STEP_W * PIXEL, dy_offset)
            next_tap = TAP_STEP_W * IN_CHANNELS - k * FILTER
            w_offset = tl.where(tap_done, w_offset + next_tap, w_offset)
            tap_w = tl.where(tap_done, tap_w + 1, tap_w)
            k = tl.where(tap_done, 0, k)
            row_done = tap_w >= taps_w
            next_row = (taps_w * DY_STEP_W - DY_STEP_H * out_w) * PIXEL
            dy_offset = tl.where(row_done, dy_offset + next_row, dy_offset)
            next_w_row = (TAP_STEP_H * FILTER_W - taps_w * TAP_STEP_W) * IN_CHANNELS
            w_offset = tl.where(row_done, w_offset + next_w_row, w_offset)
            tap_h = tl.where(row_done, tap_h + 1, tap_h)
            tap_w = tl.where(row_done, 0, tap_w)

        x_channel = (group * IN_CHANNELS + channel).to(INDEX)
        if DX_NHWC:
            dx_first = ((image * in_h + h) * in_w + v) * (GROUPS * IN_CHANNELS)
            dx_offset = dx_first[:, None] + x_channel[None, :]
        else:
            dx_first = image * (GROUPS * IN_CHANNELS) * (in_h * in_w) + h * in_w + v
            dx_offset = dx_first[:, None] + x_channel[None, :] * (in_h * in_w)
        dx_mask = exists[:, None] & channel_exists[None, :]
        tl.store(dx + dx_offset, accumulator.to(dx.dtype.element_ty), mask=dx_mask)
