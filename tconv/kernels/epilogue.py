"""What follows a convolution's sums in the same kernel: bias, residual, ReLU, 2x2 max-pool.

    y = pool(relu(sums + bias + residual))

each part only where it is asked for. A pooled tile holds whole windows: its four quarters are
the four places of every window, and their maximum is an element-wise one.
"""

import triton
import triton.language as tl


@triton.jit
def relu(value):
    """Zero for what is negative; a NaN stays one."""
    return tl.where(value < 0, 0.0, value)


@triton.jit
def greater(best, offset, value, place: tl.constexpr):
    """(best, offset) after ``value`` at ``place``: the first maximum wins, a NaN over numbers."""
    wins = (value > best) | (value != value)
    return tl.where(wins, value, best), tl.where(wins, place, offset)


@triton.jit
def quarters(tile):
    """The four places of each 2x2 window, row by row, of a tile whose last axes they are."""
    left, right = tl.split(tile)
    first, third = tl.split(left)
    second, fourth = tl.split(right)
    return first, second, third, fourth


@triton.jit
def window_place(element, columns):
    """(row, column) of an element of an image of ``columns``, where 2x2 windows are in order."""
    window, corner = element // 4, element % 4
    windows_w = columns // 2
    row = window // windows_w * 2 + corner // 2
    return row, window % windows_w * 2 + corner % 2


@triton.jit
def best_of_four(first, second, third, fourth, RELU: tl.constexpr):
    """The maximum of the places of a 2x2 window, row by row, and which it is.

    With ReLU a window without a positive element has place -1: no gradient goes there.
    """
    offset = tl.zeros(first.shape, tl.int8)
    best, offset = greater(first, offset, second, 1)
    best, offset = greater(best, offset, third, 2)
    best, offset = greater(best, offset, fourth, 3)
    if RELU:
        offset = tl.where(best <= 0, -1, offset)
        best = relu(best)
    return best, offset.to(tl.int8)
