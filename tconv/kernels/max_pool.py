"""Max-pool, its gradient, and the selection by offsets that the second gradient needs.

    y[n, p, q, c] = max over r, s of
        x[n, p stride - pad + r dilation, q stride - pad + s dilation, c]

Tensors are [images, height, width, CHANNELS]. A tensor with channels before pixels is read as
batch * channels images of one channel, so that one kernel reads both layouts in place. Rows
of a tile are pixels, columns are channels; an element lies at pixel * CHANNELS + channel.

The offset of an output is the place r * WINDOW_W + s, within its window, of the element that won:
a byte, where torch keeps eight for the element's place on the image. The first maximum wins; a NaN
wins over all numbers, the last over others.
"""

import triton
import triton.language as tl

from tconv.kernels.taps import is_inside


@triton.jit
def tile_of(
    program,
    CHANNELS: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Pixels [BLOCK_M, 1] and channels [1, BLOCK_N] of a program; channels vary fastest."""
    blocks = tl.cdiv(CHANNELS, BLOCK_N)
    row, column = program.to(INDEX) // blocks, program.to(INDEX) % blocks
    pixel = row * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    channel = column * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    return pixel, channel


@triton.jit
def first_inside(position, DILATION: tl.constexpr, PAD: tl.constexpr):
    """The first tap that is no padding, of the window that starts at ``position`` >= -PAD."""
    if PAD == 0:
        return position * 0
    return (tl.maximum(-position, 0) + DILATION - 1) // DILATION


@triton.jit
def greater_row(
    best,
    offset,
    corner,  # pointers to the window's first element
    tap,  # the first that is taken
    top,
    left,
    pixel_mask,
    down,  # from the window's first row to this one
    start,  # from the window's first column to the first that is taken
    IN_H: tl.constexpr,
    IN_W: tl.constexpr,
    CHANNELS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DILATION_W: tl.constexpr,
    EDGES: tl.constexpr,
    WRITE_OFFSETS: tl.constexpr,
):
    """(best, offset) after COLUMNS elements of one row of the window."""
    row_mask = pixel_mask
    if EDGES:
        row_mask = pixel_mask & (top >= -down) & (top < IN_H - down)
    for s in tl.static_range(COLUMNS):
        right = start + s * DILATION_W
        mask = row_mask
        if EDGES:
            mask = row_mask & ((left >= -right) & (left < IN_W - right))
        step = down * IN_W + right
        value = tl.load(corner + step * CHANNELS, mask=mask, other=float("-inf")).to(best.dtype)
        # PTX has no max.NaN of float64, and its emulation is twice as long as this.
        if WRITE_OFFSETS or best.dtype == tl.float64:
            wins = (value > best) | (value != value)
            best = tl.where(wins, value, best)
            offset = tl.where(wins, tap + s, offset)
        else:
            best = tl.maximum(best, value, propagate_nan=tl.PropagateNan.ALL)
    return best, offset


@triton.jit(do_not_specialize=["pixels"])
def max_pool_fprop(
    x,  # [images, IN_H, IN_W, CHANNELS]
    y,  # [images, OUT_H, OUT_W, CHANNELS]
    offsets,  # as y, or None
    pixels,  # images * OUT_H * OUT_W
    CHANNELS: tl.constexpr,
    IN_H: tl.constexpr,
    IN_W: tl.constexpr,
    OUT_H: tl.constexpr,
    OUT_W: tl.constexpr,
    WINDOW_H: tl.constexpr,
    WINDOW_W: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    EDGES: tl.constexpr,  # whether some window hangs over the border
    UNROLL: tl.constexpr,
    WRITE_OFFSETS: tl.constexpr,
    COMPUTE: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    pixel, channel = tile_of(tl.program_id(0), CHANNELS, INDEX, BLOCK_M, BLOCK_N)
    pixel_mask = (pixel < pixels) & (channel < CHANNELS)
    image, within = pixel // (OUT_H * OUT_W), pixel % (OUT_H * OUT_W)
    top = within // OUT_W * STRIDE_H - PAD_H
    left = within % OUT_W * STRIDE_W - PAD_W
    corner = x + (((image * IN_H + top) * IN_W + left) * CHANNELS + channel)

    best = tl.full([BLOCK_M, BLOCK_N], float("-inf"), COMPUTE)
    # A window of nothing but -inf has no winner: its first element stands for it.
    first = first_inside(top, DILATION_H, PAD_H) * WINDOW_W + first_inside(left, DILATION_W, PAD_W)
    offset = first.to(tl.int32) + tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    zero = tl.program_id(0).to(INDEX) * 0  # rows times their length are counted in INDEX
    if UNROLL:
        for r in tl.static_range(WINDOW_H):
            best, offset = greater_row(
                best, offset, corner, r * WINDOW_W, top, left, pixel_mask, r * DILATION_H + zero, 0,
                IN_H, IN_W, CHANNELS, WINDOW_W, DILATION_W, EDGES, WRITE_OFFSETS,
            )  # fmt: skip
    else:
        for tap in range(WINDOW_H * WINDOW_W):
            down, right = tap // WINDOW_W * DILATION_H + zero, tap % WINDOW_W * DILATION_W
            best, offset = greater_row(
                best, offset, corner, tap, top, left, pixel_mask, down, right,
                IN_H, IN_W, CHANNELS, 1, DILATION_W, EDGES, WRITE_OFFSETS,
            )  # fmt: skip

    target = pixel * CHANNELS + channel
    tl.store(y + target, best.to(y.dtype.element_ty), mask=pixel_mask)
    if WRITE_OFFSETS:
        tl.store(offsets + target, offset.to(offsets.dtype.element_ty), mask=pixel_mask)


@triton.jit
def add_windows(
    total,
    dy,  # pointers to the last window that reaches the element
    offsets,
    reach_h,  # rows from that window's first element to this one
    reach_w,
    last_h,
    last_w,
    pixel_mask,
    up,  # rows of windows from the last to this one
    start,  # columns of windows from the last to the first that is taken
    OUT_H: tl.constexpr,
    OUT_W: tl.constexpr,
    CHANNELS: tl.constexpr,
    WINDOW_H: tl.constexpr,
    WINDOW_W: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """``total`` with the gradient of those of COLUMNS windows of one row that the element won."""
    down = reach_h + up * STRIDE_H
    row_mask = pixel_mask & (last_h >= up) & (last_h < OUT_H + up)
    row_mask = row_mask & (down <= (WINDOW_H - 1) * DILATION_H) & (down % DILATION_H == 0)
    for count in tl.static_range(COLUMNS):
        back = start - count
        right = reach_w + back * STRIDE_W
        mask = row_mask & ((last_w >= back) & (last_w < OUT_W + back))
        mask = mask & (right <= (WINDOW_W - 1) * DILATION_W) & (right % DILATION_W == 0)
        step = (up * OUT_W + back) * CHANNELS
        winner = tl.load(offsets - step, mask=mask, other=-1).to(tl.int32)
        gradient = tl.load(dy - step, mask=mask, other=0.0).to(total.dtype)
        won = winner == down // DILATION_H * WINDOW_W + right // DILATION_W
        total += tl.where(won, gradient, 0.0)
    return total


@triton.jit(do_not_specialize=["pixels"])
def max_pool_dgrad(
    dy,  # [images, OUT_H, OUT_W, CHANNELS]
    offsets,  # as dy
    dx,  # [images, IN_H, IN_W, CHANNELS]
    pixels,  # images * IN_H * IN_W
    CHANNELS: tl.constexpr,
    IN_H: tl.constexpr,
    IN_W: tl.constexpr,
    OUT_H: tl.constexpr,
    OUT_W: tl.constexpr,
    WINDOW_H: tl.constexpr,
    WINDOW_W: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    WINDOWS_H: tl.constexpr,  # most windows that reach one row of x
    WINDOWS_W: tl.constexpr,
    UNROLL: tl.constexpr,
    COMPUTE: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Each element of dx gathers from the windows that reach it, in order: no atomics."""
    pixel, channel = tile_of(tl.program_id(0), CHANNELS, INDEX, BLOCK_M, BLOCK_N)
    pixel_mask = (pixel < pixels) & (channel < CHANNELS)
    image, place = pixel // (IN_H * IN_W), pixel % (IN_H * IN_W)
    padded_h, padded_w = (place // IN_W).to(tl.int32) + PAD_H, (place % IN_W).to(tl.int32) + PAD_W
    last_h, last_w = padded_h // STRIDE_H, padded_w // STRIDE_W
    reach_h, reach_w = padded_h % STRIDE_H, padded_w % STRIDE_W
    source = ((image * OUT_H + last_h) * OUT_W + last_w) * CHANNELS + channel

    total = tl.zeros([BLOCK_M, BLOCK_N], COMPUTE)
    zero = tl.program_id(0).to(INDEX) * 0  # rows times their length are counted in INDEX
    if UNROLL:
        for count in tl.static_range(WINDOWS_H):
            total = add_windows(
                total, dy + source, offsets + source, reach_h, reach_w, last_h, last_w, pixel_mask,
                WINDOWS_H - 1 - count + zero, WINDOWS_W - 1, OUT_H, OUT_W, CHANNELS, WINDOW_H,
                WINDOW_W, STRIDE_H, STRIDE_W, DILATION_H, DILATION_W, WINDOWS_W,
            )  # fmt: skip
    else:
        for count in range(WINDOWS_H * WINDOWS_W):
            behind = WINDOWS_H * WINDOWS_W - 1 - count + zero
            total = add_windows(
                total, dy + source, offsets + source, reach_h, reach_w, last_h, last_w, pixel_mask,
                behind // WINDOWS_W, behind % WINDOWS_W, OUT_H, OUT_W, CHANNELS, WINDOW_H, WINDOW_W,
                STRIDE_H, STRIDE_W, DILATION_H, DILATION_W, 1,
            )  # fmt: skip
    tl.store(dx + pixel * CHANNELS + channel, total.to(dx.dtype.element_ty), mask=pixel_mask)


@triton.jit(do_not_specialize=["pixels"])
def max_pool_pick(
    x,  # [images, IN_H, IN_W, CHANNELS]; or None
    offsets,  # [images, OUT_H, OUT_W, CHANNELS]
    y,  # as offsets; or None
    indices,  # as offsets; or None
    pixels,  # images * OUT_H * OUT_W
    CHANNELS: tl.constexpr,
    IN_H: tl.constexpr,
    IN_W: tl.constexpr,
    OUT_H: tl.constexpr,
    OUT_W: tl.constexpr,
    WINDOW_H: tl.constexpr,
    WINDOW_W: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """y = x where the maxima lay, zero where a window held only padding; or torch's indices.

    Those are row * IN_W + column within an image and channel.
    """
    pixel, channel = tile_of(tl.program_id(0), CHANNELS, INDEX, BLOCK_M, BLOCK_N)
    pixel_mask = (pixel < pixels) & (channel < CHANNELS)
    target = pixel * CHANNELS + channel
    tap = tl.load(offsets + target, mask=pixel_mask, other=0).to(INDEX)
    row = pixel // OUT_W % OUT_H * STRIDE_H - PAD_H + tap // WINDOW_W * DILATION_H
    column = pixel % OUT_W * STRIDE_W - PAD_W + tap % WINDOW_W * DILATION_W
    if indices is not None:
        tl.store(indices + target, (row * IN_W + column).to(tl.int64), mask=pixel_mask)
    if y is not None:
        chosen = pixel_mask & is_inside(row, IN_H) & is_inside(column, IN_W)
        image = pixel // (OUT_H * OUT_W)
        source = ((image * IN_H + row) * IN_W + column) * CHANNELS + channel
        tl.store(y + target, tl.load(x + source, mask=chosen, other=0.0), mask=pixel_mask)
