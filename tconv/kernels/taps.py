"""Filter taps: which of them lie inside the image, and the walk from one to the next.

A pixel sees tap (h, w) at (first row + h STEP_H, first column + w STEP_W). Which taps lie inside
the image is found once for each tile and kept as bits: comparing at every step costs more.
"""

import triton
import triton.language as tl


@triton.jit
def is_inside(position, size):
    """Mask of 0 <= position < size."""
    return (position >= 0) & (position < size)


@triton.jit
def inside_bits(first, size, TAPS: tl.constexpr, STEP: tl.constexpr):
    """For each element of ``first``: bit t is set where 0 <= first + t STEP < size.

    TAPS is at most 31, so that the sign bit stays clear.
    """
    bits = (first * 0).to(tl.int32)
    for tap in tl.static_range(TAPS):
        position = first + tap * STEP
        bits |= tl.where((position >= 0) & (position < size), 1 << tap, 0)
    return bits


@triton.jit
def tap_bits(
    row,  # of each pixel's tap (0, 0)
    column,
    pixel_mask,
    height,  # of the image that the taps read
    width,
    TAPS_H: tl.constexpr,
    TAPS_W: tl.constexpr,
    STEP_H: tl.constexpr,
    STEP_W: tl.constexpr,
):
    """(bits, column bits): the taps inside the image, as ``tap_mask`` reads them.

    Up to 31 taps: all of them in ``bits``, row by row. Up to 31 a side: rows and columns apart.
    """
    column_bits = column
    if TAPS_H * TAPS_W <= 31:
        column_bits = inside_bits(column, width, TAPS_W, STEP_W)
        bits = column_bits * 0
        for tap_h in tl.static_range(TAPS_H):
            row_mask = is_inside(row + tap_h * STEP_H, height) & pixel_mask
            bits |= tl.where(row_mask, column_bits << (tap_h * TAPS_W), 0)
    elif TAPS_H <= 31 and TAPS_W <= 31:
        bits = tl.where(pixel_mask, inside_bits(row, height, TAPS_H, STEP_H), 0)
        column_bits = inside_bits(column, width, TAPS_W, STEP_W)
    else:
        bits = row
    return bits, column_bits


@triton.jit
def tap_mask(
    bits,  # of ``tap_bits``
    column_bits,
    row,
    column,
    pixel_mask,
    height,
    width,
    tap_h,
    tap_w,
    tap_bit,  # the bit of tap (tap_h, tap_w) where all taps lie in ``bits``
    TAPS_H: tl.constexpr,
    TAPS_W: tl.constexpr,
    STEP_H: tl.constexpr,
    STEP_W: tl.constexpr,
):
    """Mask of the pixels whose tap (tap_h, tap_w) lies inside the image."""
    if TAPS_H * TAPS_W <= 31:
        mask = (bits & tap_bit) != 0
    elif TAPS_H <= 31 and TAPS_W <= 31:
        mask = ((bits >> tap_h) & (column_bits >> tap_w) & 1) != 0
    else:
        mask = pixel_mask & is_inside(row + tap_h * STEP_H, height)
        mask &= is_inside(column + tap_w * STEP_W, width)
    return mask


@triton.jit
def next_step(
    channel,  # first channel of the step
    tap_h,
    tap_w,
    tap_bit,
    image_offset,  # from the tile's pointers to the step's elements
    filter_offset,
    taps_w,  # taps of a row
    image_step,  # to the next channels of the same tap
    image_next_tap,  # from the tap's last step to the next tap in the row
    image_next_row,  # and to the first tap of the next row
    filter_step,
    filter_next_tap,
    filter_next_row,
    CHANNELS: tl.constexpr,
    TAPS: tl.constexpr,
    TAPS_W: tl.constexpr,  # the most taps of a row
    BLOCK_K: tl.constexpr,
):
    """The first six arguments at the next step: more channels of a tap, or the next tap.

    Carried by increments, since a division at every step costs more than the rest.
    """
    channel += BLOCK_K
    if TAPS == 1:  # a plain matrix product: there is no next tap
        image_offset += image_step
        filter_offset += filter_step
    else:
        tap_done = channel >= CHANNELS
        tap_w += tap_done.to(tl.int32)
        row_done = tap_w >= taps_w
        image_next = tl.where(row_done, image_next_row, image_next_tap)
        image_offset += tl.where(tap_done, image_next, image_step)
        filter_next = tl.where(row_done, filter_next_row, filter_next_tap)
        filter_offset += tl.where(tap_done, filter_next, filter_step)
        channel = tl.where(tap_done, 0, channel)
        tap_bit <<= tap_done.to(tl.int32) + tl.where(row_done, TAPS_W - taps_w, 0)
        tap_w = tl.where(row_done, 0, tap_w)
        tap_h += row_done.to(tl.int32)
    return channel, tap_h, tap_w, tap_bit, image_offset, filter_offset


# ---- phases of a strided gradient -----------------------------------------------------------


@triton.jit
def first_tap(phase, FILTER: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr,
              TAP_STEP: tl.constexpr):  # fmt: skip
    """The smallest tap r < FILTER with r DILATION = phase modulo STRIDE; FILTER if there is none.

    TAP_STEP = STRIDE / gcd(STRIDE, DILATION) is the distance between taps of one phase.
    """
    tap = phase * 0 + FILTER
    for r in tl.static_range(TAP_STEP):
        if r < FILTER:
            tap = tl.where((r * DILATION) % STRIDE == phase, r, tap)
    return tap


@triton.jit
def phase_taps(
    first,  # the first position of dx in the phase
    FILTER: tl.constexpr,
    STRIDE: tl.constexpr,
    PAD: tl.constexpr,
    DILATION: tl.constexpr,
    TAP_STEP: tl.constexpr,
):
    """(first, count) of the taps on one axis that reach dx at first, first + STRIDE, ..."""
    tap = first_tap((first + PAD) % STRIDE, FILTER, STRIDE, DILATION, TAP_STEP)
    return tap, (FILTER - tap + TAP_STEP - 1) // TAP_STEP
