"""Index arithmetic that the kernels share."""

import triton
import triton.language as tl


@triton.jit
def swizzled_tile(program, tiles_m, tiles_n, SWIZZLE: tl.constexpr):
    """Tile (row, column) of a program: ``SWIZZLE`` rows are walked column by column.

    Programs that run at the same time then share operands in L2.
    """
    stripe = program // (SWIZZLE * tiles_n)
    first_row = stripe * SWIZZLE
    rows = tl.minimum(tiles_m - first_row, SWIZZLE)
    within = program - stripe * (SWIZZLE * tiles_n)
    return first_row + within % rows, within // rows


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
def is_inside(position, size):
    return (position >= 0) & (position < size)
