"""Depthwise convolution: each channel has filters of its own, MULTIPLIER of them.

    y[n, p, q, k] = bias[k] + sum over r, s of
        x[n, p stride - pad + r dilation, q stride - pad + s dilation, k // MULTIPLIER] w[k, r, s]

A sum of F x F products has no use for the matrix unit: speed comes from loading each element once
and using it often. A thread computes a *strip* of results along one axis of the image, for a vector
of channels: an element that it loads feeds all results of the strip whose windows contain it. A
loop over the taps walks the axis across the strip. Strips run along rows where channels lie
innermost, and down columns where pixels do, so that neighbouring threads load neighbours.

The gradient of x is the same sum with the taps reversed. With a stride, only taps of a result's
*phase* reach it: along the strip the compiler knows which, and across it each phase has programs
of its own.
"""

import triton
import triton.language as tl

from tconv.kernels.strips import store_strip
from tconv.kernels.taps import is_inside, phase_taps


@triton.jit
def add_tap(total, pixel, values, REACH: tl.constexpr, STEP: tl.constexpr, COUNT: tl.constexpr):
    """``total`` with the product of ``pixel`` and value REACH / STEP, if that is one of COUNT."""
    if REACH >= 0 and REACH % STEP == 0 and REACH // STEP < COUNT:
        return total + pixel * values[REACH // STEP]
    else:  # Triton's tracer does not honour an early return
        return total


@triton.jit
def add_taps(
    sums,  # STRIP accumulators, [BLOCK_M, BLOCK_N] each
    step,  # line of the filter, counted within the phase, and filter after filter
    pixels,  # pointers to the image at the phase's first tap and the strip's first place
    weights,  # pointers to the filter's first element
    mask,
    produced_mask,
    image_line,  # which line of the image the phase's first tap reads
    tap0,  # the phase's first tap, across
    begin,  # where the strip begins on the image
    image_along,
    image_across,
    stride_across,
    stride_c,
    FORWARD: tl.constexpr,
    TAPS_ACROSS: tl.constexpr,
    TAP_STEP: tl.constexpr,
    IMAGE_STEP: tl.constexpr,
    X_ALONG: tl.constexpr,
    W_ALONG: tl.constexpr,  # elements of the filter from tap to tap, along and across
    W_ACROSS: tl.constexpr,
    W_FILTER: tl.constexpr,  # and from filter to filter
    FILTER_ALONG: tl.constexpr,
    FILTER_ACROSS: tl.constexpr,
    STRIDE_ALONG: tl.constexpr,
    PAD_ALONG: tl.constexpr,
    DILATION_ALONG: tl.constexpr,
    PHASES: tl.constexpr,
    FIRST: tl.constexpr,  # first place that the strip reads, counted from where it begins
    COUNT: tl.constexpr,
    STRIP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
):
    """``sums`` with the products of one line of the filter."""
    across = step % TAPS_ACROSS * IMAGE_STEP
    tap = tap0 + step % TAPS_ACROSS * TAP_STEP
    mask = mask & is_inside(image_line + across, image_across)
    if not FORWARD and PHASES > 1:  # a phase may have fewer taps than another
        # Compared as vectors: Triton 3.9's interpreter refuses a scalar in a mask.
        mask = mask & (tap + image_line * 0 < FILTER_ACROSS)
        produced_mask = produced_mask & (tap + produced_mask.to(tl.int32) * 0 < FILTER_ACROSS)
    pixels += across * stride_across + step // TAPS_ACROSS * stride_c
    weights += tap * W_ACROSS + step // TAPS_ACROSS * W_FILTER
    values = ()
    for tap_along in tl.static_range(FILTER_ALONG):
        w = tl.load(weights + tap_along * W_ALONG, mask=produced_mask, other=0.0)
        values = values + (w.to(ACCUMULATOR)[None, :],)
    for index in tl.static_range(COUNT):
        place = begin + (FIRST + index) + tl.zeros((BLOCK_M, 1), tl.int32)
        place_mask = mask & is_inside(place, image_along)
        pixel = tl.load(pixels + (FIRST + index) * X_ALONG, mask=place_mask, other=0.0)
        pixel = pixel.to(ACCUMULATOR)
        after = ()
        for j in tl.static_range(STRIP):
            # The tap through which the result at j sees this place, times the dilation.
            if FORWARD:
                total = add_tap(
                    sums[j], pixel, values, FIRST + index + PAD_ALONG - j * STRIDE_ALONG,
                    DILATION_ALONG, FILTER_ALONG,
                )  # fmt: skip
            else:
                total = add_tap(
                    sums[j], pixel, values, j + PAD_ALONG - (FIRST + index) * STRIDE_ALONG,
                    DILATION_ALONG, FILTER_ALONG,
                )  # fmt: skip
            after = after + (total,)
        sums = after
    return sums


@triton.jit(
    do_not_specialize=["batch", "image_along", "image_across", "result_along", "result_across"]
)
def depthwise(
    image,  # x or dy: [batch, in_h, in_w, CHANNELS], or channels before pixels
    filters,  # [filters, FILTER_H, FILTER_W], or taps before filters
    bias,  # [PRODUCED], or None; so may be batch normalization's four
    norm_weight,
    norm_bias,
    norm_mean,
    norm_var,
    residual,  # as the result unpooled, or None
    result,  # y or dx: [batch, out_h, out_w, PRODUCED], laid out as the image; or y pooled
    kept,  # the activation's argument at each element of the result; or None
    offsets,  # place (0 to 3) of each window's maximum, of a pooled y; or None
    batch,
    image_along,  # sizes along the strips and across them
    image_across,
    result_along,
    result_across,
    CHANNELS: tl.constexpr,  # of the image
    PRODUCED: tl.constexpr,  # of the result
    MULTIPLIER: tl.constexpr,  # filters of one channel of x
    FORWARD: tl.constexpr,
    FILTER_ALONG: tl.constexpr,
    FILTER_ACROSS: tl.constexpr,
    STRIDE_ALONG: tl.constexpr,
    STRIDE_ACROSS: tl.constexpr,
    PAD_ALONG: tl.constexpr,
    PAD_ACROSS: tl.constexpr,
    DILATION_ALONG: tl.constexpr,
    DILATION_ACROSS: tl.constexpr,
    TAP_STEP: tl.constexpr,  # across: between taps of one phase, of a gradient
    IMAGE_STEP: tl.constexpr,  # across: between the places that they read
    FIRST: tl.constexpr,  # of the places that a strip reads, from where it begins
    COUNT: tl.constexpr,
    X_ALONG: tl.constexpr,  # elements of the image from place to place along a strip
    W_ALONG: tl.constexpr,  # elements of the filters from tap to tap, along and across
    W_ACROSS: tl.constexpr,
    W_FILTER: tl.constexpr,  # and from filter to filter
    NHWC: tl.constexpr,
    EPS: tl.constexpr,  # of the batch normalization
    ACTIVATION: tl.constexpr,  # a name that activations.activate knows, or None
    SLOPE: tl.constexpr,
    RESIDUAL_AFTER: tl.constexpr,  # whether the residual is added after the activation
    POOL: tl.constexpr,
    UNROLL: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr,  # places across the strips
    BLOCK_N: tl.constexpr,  # channels; of contiguous tensors, planes
    STRIP: tl.constexpr,
):
    PHASES: tl.constexpr = 1 if FORWARD else STRIDE_ACROSS
    TAPS_ACROSS: tl.constexpr = (FILTER_ACROSS + TAP_STEP - 1) // TAP_STEP  # most of one phase
    ROUNDS: tl.constexpr = 1 if FORWARD else MULTIPLIER  # filters that one result sums over
    UNROLLED: tl.constexpr = ROUNDS * TAPS_ACROSS if UNROLL else 1  # steps
    WINDOW: tl.constexpr = 2 if POOL else 1
    if NHWC:
        stride_across = image_along.to(INDEX) * CHANNELS
        stride_c = 1
    else:
        stride_across = 1
        stride_c = image_along.to(INDEX) * image_across

    if FORWARD:
        phase_first = 0
        tap0 = 0
    else:
        phase_first = tl.program_id(1)  # one of the first STRIDE lines, as far as they exist
        tap0, _ = phase_taps(
            phase_first, FILTER_ACROSS, STRIDE_ACROSS, PAD_ACROSS, DILATION_ACROSS, TAP_STEP
        )
    across = result_across // WINDOW * WINDOW
    lines = (across - phase_first + PHASES - 1) // PHASES  # across, of this phase
    least = tl.maximum(lines, 1)  # a phase may be empty
    strips = tl.cdiv(result_along // WINDOW * WINDOW, STRIP)
    program = tl.program_id(0)
    if NHWC:  # channels vary fastest, as in memory
        blocks_n: tl.constexpr = (PRODUCED + BLOCK_N - 1) // BLOCK_N
        column = program % blocks_n
        strip = program // blocks_n % strips
        row = program // (blocks_n * strips)
        position = row.to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
        line_mask = position < batch.to(INDEX) * lines
        image_index = position // least
        line = (position % least).to(tl.int32)
        produced = column * BLOCK_N + tl.arange(0, BLOCK_N)
        produced_mask = produced < PRODUCED
        channel = produced
        image_first = image_index * image_across * stride_across
    else:
        blocks_m = tl.cdiv(least, BLOCK_M)
        row = program % blocks_m
        strip = program // blocks_m % strips
        column = program // (blocks_m * strips)
        line = row * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
        line_mask = line < lines
        channel = column.to(INDEX) * BLOCK_N + tl.arange(0, BLOCK_N)  # of all images
        produced = (channel % PRODUCED).to(tl.int32)
        produced_mask = channel < batch.to(INDEX) * PRODUCED
        image_index = line * 0
        image_first = tl.zeros((1, 1), INDEX)
    if FORWARD:
        image_channel = channel // MULTIPLIER
        first_filter = produced
        begin = strip * (STRIP * STRIDE_ALONG)
        image_line = line * STRIDE_ACROSS - PAD_ACROSS
    else:
        image_channel = channel * MULTIPLIER
        first_filter = produced * MULTIPLIER
        begin = strip * (STRIP // STRIDE_ALONG)
        image_line = line * STRIDE_ACROSS + phase_first + PAD_ACROSS - tap0 * DILATION_ACROSS
        image_line = image_line // STRIDE_ACROSS  # exact, wherever there is a tap
    image_first += image_line * stride_across + begin.to(INDEX) * X_ALONG
    pixels = image + (image_first + (image_channel * stride_c)[None, :])
    weights = filters + first_filter.to(INDEX) * W_FILTER

    mask = line_mask & produced_mask[None, :]
    sums = ()
    for _ in tl.static_range(STRIP):
        sums = sums + (tl.zeros((BLOCK_M, BLOCK_N), ACCUMULATOR),)
    for step in range(0, ROUNDS * TAPS_ACROSS, UNROLLED):
        for unrolled in tl.static_range(UNROLLED):
            sums = add_taps(
                sums, step + unrolled, pixels, weights, mask, produced_mask, image_line, tap0,
                begin, image_along, image_across, stride_across, stride_c,
                FORWARD, TAPS_ACROSS, TAP_STEP, IMAGE_STEP, X_ALONG, W_ALONG, W_ACROSS, W_FILTER,
                FILTER_ALONG, FILTER_ACROSS, STRIDE_ALONG, PAD_ALONG, DILATION_ALONG, PHASES,
                FIRST, COUNT, STRIP, BLOCK_M, ACCUMULATOR,
            )  # fmt: skip
    store_strip(
        sums, (bias, norm_weight, norm_bias, norm_mean, norm_var), residual, result, kept, offsets,
        image_index, phase_first + line * PHASES, strip * STRIP, mask, channel, produced,
        produced_mask, row, lines, batch, result_along, result_across, PRODUCED, NHWC, EPS,
        ACTIVATION, SLOPE, RESIDUAL_AFTER, POOL, INDEX, BLOCK_M, BLOCK_N, STRIP,
    )  # fmt: skip


@triton.jit(do_not_specialize=["batch", "x_along", "x_across", "y_along", "y_across",
                               "steps", "split_steps"])  # fmt: skip
def depthwise_wgrad(
    x,  # [batch, in_h, in_w, CHANNELS], or channels before pixels
    dy,  # [batch, out_h, out_w, FILTERS], laid out as x is
    dw,  # [FILTERS, FILTER_H, FILTER_W], or its parts, one after the other
    batch,
    x_along,  # sizes of x and of dy, along the strips and across them
    x_across,
    y_along,
    y_across,
    steps,  # of the reduction, BLOCK_M strips each
    split_steps,  # steps of one split
    CHANNELS: tl.constexpr,
    FILTERS: tl.constexpr,
    MULTIPLIER: tl.constexpr,
    FILTER_ALONG: tl.constexpr,
    FILTER_ACROSS: tl.constexpr,
    STRIDE_ALONG: tl.constexpr,
    STRIDE_ACROSS: tl.constexpr,
    PAD_ALONG: tl.constexpr,
    PAD_ACROSS: tl.constexpr,
    DILATION_ALONG: tl.constexpr,
    DILATION_ACROSS: tl.constexpr,
    COUNT: tl.constexpr,  # of places of x that a strip of dy reads
    LINES: tl.constexpr,  # of the filter, across the strip, that a program takes
    W_ALONG: tl.constexpr,
    W_ACROSS: tl.constexpr,
    NHWC: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr,  # strips
    BLOCK_N: tl.constexpr,  # channels
    STRIP: tl.constexpr,
):
    """dw[k, r, s] = sum over n, p, q of dy[n, p, q, k] x[n, p stride - pad + r dilation, ...].

    Each thread sums over its own strips, for a vector of channels; then the threads add up.
    """
    BLOCKS_N: tl.constexpr = (FILTERS + BLOCK_N - 1) // BLOCK_N
    column = tl.program_id(0) % BLOCKS_N
    line0 = tl.program_id(0) // BLOCKS_N * LINES
    split = tl.program_id(1)
    out_channel = column * BLOCK_N + tl.arange(0, BLOCK_N)
    out_channel_mask = out_channel < FILTERS
    if NHWC:
        x_stride_along = CHANNELS
        x_stride_across = x_along.to(INDEX) * CHANNELS
        x_stride_c = 1
        dy_stride_along = FILTERS
        dy_stride_across = y_along.to(INDEX) * FILTERS
        dy_stride_c = 1
    else:
        x_stride_along = x_across.to(INDEX)
        x_stride_across = 1
        x_stride_c = x_along.to(INDEX) * x_across
        dy_stride_along = y_across.to(INDEX)
        dy_stride_across = 1
        dy_stride_c = y_along.to(INDEX) * y_across
    strips = tl.cdiv(y_along, STRIP)
    positions = batch.to(INDEX) * y_across * strips
    x_stride_n = x_along.to(INDEX) * x_across * CHANNELS
    dy_stride_n = y_along.to(INDEX) * y_across * FILTERS
    x_pointers = x + (out_channel // MULTIPLIER).to(INDEX)[None, :] * x_stride_c
    dy_pointers = dy + out_channel.to(INDEX)[None, :] * dy_stride_c

    sums = ()
    for _ in tl.static_range(LINES * FILTER_ALONG):
        sums = sums + (tl.zeros((BLOCK_M, BLOCK_N), ACCUMULATOR),)
    first = split * split_steps
    position = first.to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    for _ in range(first, tl.minimum(first + split_steps, steps)):
        # Across before along: the lines that neighbouring threads read overlap.
        line = (position % y_across).to(tl.int32)
        rest = position // y_across
        strip = (rest % strips).to(tl.int32)
        image = rest // strips
        mask = (position < positions) & out_channel_mask[None, :]
        begin = strip * (STRIP * STRIDE_ALONG) - PAD_ALONG
        gradients = ()
        for j in tl.static_range(STRIP):
            place = image * dy_stride_n + line * dy_stride_across
            place += (strip * STRIP + j) * dy_stride_along
            dy_mask = mask & (strip * STRIP + j < y_along)
            gradient = tl.load(dy_pointers + place, mask=dy_mask, other=0.0)
            gradients = gradients + (gradient.to(ACCUMULATOR),)
        after = ()
        for tap_across in tl.static_range(LINES):
            across = line * STRIDE_ACROSS - PAD_ACROSS + (line0 + tap_across) * DILATION_ACROSS
            line_mask = mask & is_inside(across, x_across)
            line_mask = line_mask & (line0 + tap_across + line * 0 < FILTER_ACROSS)
            x_first = image * x_stride_n + across * x_stride_across + begin * x_stride_along
            pixels = x_pointers + x_first
            totals = ()
            for tap_along in tl.static_range(FILTER_ALONG):
                totals = totals + (sums[tap_across * FILTER_ALONG + tap_along],)
            for index in tl.static_range(COUNT):
                x_mask = line_mask & is_inside(begin + index, x_along)
                pixel = tl.load(pixels + index * x_stride_along, mask=x_mask, other=0.0)
                pixel = pixel.to(ACCUMULATOR)
                more = ()
                for tap_along in tl.static_range(FILTER_ALONG):
                    total = add_tap(
                        totals[tap_along], pixel, gradients, index - tap_along * DILATION_ALONG,
                        STRIDE_ALONG, STRIP,
                    )  # fmt: skip
                    more = more + (total,)
                totals = more
            after = after + totals
        sums = after
        position += BLOCK_M

    part = split.to(INDEX) * FILTERS + out_channel
    for tap_across in tl.static_range(LINES):
        for tap_along in tl.static_range(FILTER_ALONG):
            total = tl.sum(sums[tap_across * FILTER_ALONG + tap_along], axis=0)
            target = part * (FILTER_ALONG * FILTER_ACROSS) + (line0 + tap_across) * W_ACROSS
            target += tap_along * W_ALONG
            mask = out_channel_mask & (line0 + tap_across + out_channel * 0 < FILTER_ACROSS)
            tl.store(dw + target, total.to(dw.dtype.element_ty), mask=mask)
