"""Gradient of a convolution with respect to its input, for any stride and dilation.

    dx[n, h, v, c] = sum over k, r, s with p stride = h + pad - r dilation (v and s alike) of
        dy[n, p, q, k] w[k, r, s, c]

With a stride, only some taps reach a given row: those with (h + pad - r dilation) divisible
by it. Rows of equal h + pad modulo the stride (a *phase*) share their taps, so each phase is
a convolution of its own with every tap useful. Phases lie on a program axis of one launch; a
phase that no tap reaches writes its zeros.

It is the forward pass of a transposed convolution, and so may end in an epilogue.

A program may take several tiles in turn (persistent: fewer programs than tiles), and several
programs may share one reduction (splits), each writing its part of dx to a workspace.
"""

import triton
import triton.language as tl

from tconv.kernels.epilogue import channel_terms, epilogue, store_result
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


@triton.jit(do_not_specialize=["batch", "in_h", "in_w", "out_h", "out_w", "splits"])
def implicit_gemm_dgrad(
    dy,  # [batch, out_h, out_w, GROUPS * OUT_CHANNELS], or channels before pixels
    w,  # [GROUPS * OUT_CHANNELS, FILTER_H, FILTER_W, IN_CHANNELS]
    bias,  # [GROUPS * IN_CHANNELS], or None, as the four of a batch normalization
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
    splits,  # programs that share one reduction
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
    SPLIT: tl.constexpr,  # whether the reduction is shared, and dx holds parts of it
    EPS: tl.constexpr,  # of the batch normalization
    ACTIVATION: tl.constexpr,  # see epilogue.activate
    SLOPE: tl.constexpr,
    RESIDUAL_AFTER: tl.constexpr,  # whether the residual is added behind the activation
    ACCUMULATOR: tl.constexpr,
    INDEX: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SWIZZLE: tl.constexpr,
):
    FILTER: tl.constexpr = FILTER_H * FILTER_W * IN_CHANNELS  # elements of one filter
    EVEN_K: tl.constexpr = OUT_CHANNELS % BLOCK_K == 0
    EVEN_N: tl.constexpr = IN_CHANNELS % BLOCK_N == 0
    TAP_STEPS: tl.constexpr = (OUT_CHANNELS + BLOCK_K - 1) // BLOCK_K  # steps of one tap
    LAST_STEP: tl.constexpr = (TAP_STEPS - 1) * BLOCK_K  # where the last of them begins
    MOST_TAPS_H: tl.constexpr = (FILTER_H + TAP_STEP_H - 1) // TAP_STEP_H
    MOST_TAPS_W: tl.constexpr = (FILTER_W + TAP_STEP_W - 1) // TAP_STEP_W
    ONE_WORD: tl.constexpr = MOST_TAPS_H * MOST_TAPS_W <= 31
    TWO_WORDS: tl.constexpr = MOST_TAPS_H <= 31 and MOST_TAPS_W <= 31
    if DY_NHWC:
        PIXEL: tl.constexpr = GROUPS * OUT_CHANNELS  # elements of dy from one pixel to the next
        dy_channel = 1  # and from one channel to the next
    else:
        PIXEL: tl.constexpr = 1
        dy_channel = out_h.to(INDEX) * out_w
    dy_row = out_w.to(INDEX) * PIXEL  # and from one row to the next

    # Groups, phases and splits lie on the one axis of the grid that may be long.
    # A phase begins at one of the first STRIDE rows; an image of fewer rows has fewer phases.
    phases_w = tl.minimum(in_w, STRIDE_W)
    phases = tl.minimum(in_h, STRIDE_H) * phases_w
    lanes = tl.num_programs(0) // (GROUPS * phases * splits)  # programs that share tiles
    lane = tl.program_id(0) % lanes
    share = tl.program_id(0) // lanes
    group = share % GROUPS
    first_h = share // GROUPS % phases // phases_w
    first_w = share // GROUPS % phases % phases_w
    phase_h = (first_h + PAD_H) % STRIDE_H
    phase_w = (first_w + PAD_W) % STRIDE_W
    rows = (in_h - first_h + STRIDE_H - 1) // STRIDE_H  # of dx in this phase
    columns = (in_w - first_w + STRIDE_W - 1) // STRIDE_W
    pixels = batch.to(INDEX) * rows * columns
    tap_h0 = first_tap(phase_h, FILTER_H, STRIDE_H, DILATION_H, TAP_STEP_H)
    tap_w0 = first_tap(phase_w, FILTER_W, STRIDE_W, DILATION_W, TAP_STEP_W)
    taps_h = (FILTER_H - tap_h0 + TAP_STEP_H - 1) // TAP_STEP_H
    taps_w = (FILTER_W - tap_w0 + TAP_STEP_W - 1) // TAP_STEP_W
    steps = taps_h * taps_w * TAP_STEPS
    filter_index = tl.arange(0, BLOCK_K)
    if SPLIT:
        split = share // (GROUPS * phases)
        split_steps = tl.cdiv(steps, splits)
        first_step = split * split_steps
        last_step = tl.minimum(first_step + split_steps, steps)
        dx += split.to(tl.int64) * batch * in_h * in_w * (GROUPS * IN_CHANNELS)
    else:
        first_step = 0
        last_step = steps

    # Every phase has as many programs as the largest needs; in a smaller one the last are idle.
    tiles_m = tl.cdiv(pixels, BLOCK_M).to(tl.int32)
    tiles_n: tl.constexpr = (IN_CHANNELS + BLOCK_N - 1) // BLOCK_N
    # What a tile needs is computed anew for each: kept, it would take the registers of a program.
    tiles = tiles_m * tiles_n
    for tile in tl.range(lane, tiles, lanes, disable_licm=True):
        tile_row, tile_column = swizzled_tile(tile, tiles_m, tiles_n, SWIZZLE)
        pixel = tile_row.to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)
        exists = pixel < pixels
        image = pixel // (rows * columns)
        place = pixel % (rows * columns)
        h = first_h + STRIDE_H * (place // columns)
        v = first_w + STRIDE_W * (place % columns)
        p = (h + PAD_H - tap_h0 * DILATION_H) // STRIDE_H  # exact, wherever there is a tap
        q = (v + PAD_W - tap_w0 * DILATION_W) // STRIDE_W
        if ONE_WORD:
            columns_inside = inside_bits(q, out_w, MOST_TAPS_W, -DY_STEP_W)
            taps_inside = columns_inside * 0
            for r in tl.static_range(MOST_TAPS_H):
                row_inside = is_inside(p - r * DY_STEP_H, out_h) & exists
                taps_inside |= tl.where(row_inside, columns_inside << (r * MOST_TAPS_W), 0)
        elif TWO_WORDS:
            rows_inside = tl.where(exists, inside_bits(p, out_h, MOST_TAPS_H, -DY_STEP_H), 0)
            columns_inside = inside_bits(q, out_w, MOST_TAPS_W, -DY_STEP_W)

        dy_image = image * (GROUPS * OUT_CHANNELS) * out_h * out_w
        dy_first = dy_image + p * dy_row + q * PIXEL + group * OUT_CHANNELS * dy_channel
        dy_pointers = dy + (dy_first[:, None] + (filter_index * dy_channel)[None, :])
        channel = tile_column * BLOCK_N + tl.arange(0, BLOCK_N)
        channel_exists = channel < IN_CHANNELS
        w_first = (group * OUT_CHANNELS + filter_index).to(INDEX) * FILTER
        w_pointers = w + (w_first[:, None] + channel[None, :])

        accumulator = tl.zeros((BLOCK_M, BLOCK_N), ACCUMULATOR)
        tap = first_step // TAP_STEPS
        tap_h = tap // tl.maximum(taps_w, 1)  # counted within the phase
        tap_w = tap % tl.maximum(taps_w, 1)
        tap_bit = 1 << (tap_h * MOST_TAPS_W + tap_w)
        k = first_step % TAP_STEPS * BLOCK_K
        dy_offset = k * dy_channel - tap_h * DY_STEP_H * dy_row - tap_w * DY_STEP_W * PIXEL
        w_row = (tap_h0 + tap_h * TAP_STEP_H) * FILTER_W
        w_offset = k.to(INDEX) * FILTER + (w_row + tap_w0 + tap_w * TAP_STEP_W) * IN_CHANNELS
        for _ in range(first_step, last_step):
            if ONE_WORD:
                inside = (taps_inside & tap_bit) != 0
            elif TWO_WORDS:
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
            if FILTER_H * FILTER_W == 1:  # a plain matrix product: there is no next tap
                dy_offset += BLOCK_K * dy_channel
                w_offset += BLOCK_K * FILTER
            else:
                tap_done = k >= OUT_CHANNELS
                tap_w += tap_done.to(tl.int32)
                row_done = tap_w >= taps_w
                dy_next_tap = -DY_STEP_W * PIXEL - LAST_STEP * dy_channel
                dy_next_row = dy_next_tap + taps_w * DY_STEP_W * PIXEL - DY_STEP_H * dy_row
                dy_next = tl.where(row_done, dy_next_row, dy_next_tap)
                dy_offset += tl.where(tap_done, dy_next, BLOCK_K * dy_channel)
                w_next_tap = TAP_STEP_W * IN_CHANNELS - LAST_STEP * FILTER
                w_row_back = (TAP_STEP_H * FILTER_W - taps_w * TAP_STEP_W) * IN_CHANNELS
                w_next = tl.where(row_done, w_next_tap + w_row_back, w_next_tap)
                w_offset += tl.where(tap_done, w_next, BLOCK_K * FILTER)
                k = tl.where(tap_done, 0, k)
                tap_bit <<= tap_done.to(tl.int32) + tl.where(row_done, MOST_TAPS_W - taps_w, 0)
                tap_w = tl.where(row_done, 0, tap_w)
                tap_h += row_done.to(tl.int32)

        x_channel = (group * IN_CHANNELS + channel).to(INDEX)
        if DX_NHWC:
            dx_first = ((image * in_h + h) * in_w + v) * (GROUPS * IN_CHANNELS)
            dx_offset = dx_first[:, None] + x_channel[None, :]
        else:
            dx_plane = in_h.to(INDEX) * in_w
            dx_first = image * (GROUPS * IN_CHANNELS) * dx_plane + h * in_w + v
            dx_offset = dx_first[:, None] + x_channel[None, :] * dx_plane
        dx_mask = exists[:, None] & channel_exists[None, :]
        more = None
        if residual is not None:
            more = tl.load(residual + dx_offset, mask=dx_mask, other=0.0)
        offset, scale, shift = channel_terms(
            bias, norm_weight, norm_bias, norm_mean, norm_var, x_channel, channel_exists, EPS,
            ACCUMULATOR,
        )  # fmt: skip
        result, argument = epilogue(
            accumulator, offset[None, :], scale[None, :], shift[None, :], more, bias, norm_mean,
            ACTIVATION, SLOPE, RESIDUAL_AFTER, False,
        )  # fmt: skip
        store_result(dx, kept, None, dx_offset, dx_mask, result, argument, None)
