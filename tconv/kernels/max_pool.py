"""Max-pool, its gradient, and the pick that the gradient of its gradient needs.

    y[n, p, q, c] = max over r, s of
        x[n, p stride - pad + r dilation, q stride - pad + s dilation, c]

Tensors are taken as [images, height, width, CHANNELS]. Memory with channels before pixels is
the same with one channel and batch * channels images, so one kernel reads both in place. Rows
of a tile are pixels, columns are channels; an element lies at pixel * CHANNELS + channel.

The index of an output is torch's: the place row * width + column of the element that won, within
its image and channel. The first maximum wins; a NaN wins over all numbers, the last over others.
"""

import triton
import triton.language as tl

from tconv.kernels.index import is_inside


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
    """The first place that is no padding, of the window that starts at ``position`` >= -PAD."""
    if PAD == 0:
        return position
    steps = (tl.maximum(-position, 0) + DILATION - 1) // DILATION
    return position + steps * DILATION


@triton.jit
def greater_row(
    best,
    place,
    corner,  # pointers to the window's first element
    origin,  # its place
    top,
    left,
    live,
    down,  # from the window's first row to this one
    start,  # from the window's first column to the first that is taken
    IN_H: tl.constexpr,
    IN_W: tl.constexpr,
    CHANNELS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DILATION_W: tl.constexpr,
    EDGES: tl.constexpr,
    WRITE_INDICES: tl.constexpr,
):
    """(best, place) after COLUMNS elements of one row of the window."""
    inside = live
    if EDGES:
        inside = live & (top >= -down) & (top < IN_H - down)
    for s in tl.static_range(COLUMNS):
        right = start + s * DILATION_W
        mask = inside
        if EDGES:
            mask = inside & ((left >= -right) & (left < IN_W - right))
        step = down * IN_W + right
        value = tl.load(corner + step * CHANNELS, mask=mask, other=float("-inf")).to(best.dtype)
        # PTX has no max.NaN of float64, and its emulation is twice as long as this.
        if WRITE_INDICES or best.dtype == tl.float64:
            wins = (value > best) | (value != value)
            best = tl.where(wins, value, best)
            place = tl.where(wins, origin + step, place)
        else:
            best = tl.maximum(best, value, propagate_nan=tl.PropagateNan.ALL)
    return best, place


@triton.jit(do_not_specialize=["pixels"])
def max_pool_fprop(
    x,  # [images, IN_H, IN_W, CHANNELS]
    y,  # [images, OUT_H, OUT_W, CHANNELS]
    indices,  # as y, or None
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
    WRITE_INDICES: tl.constexpr,
    COMPUTE: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    pixel, channel = tile_of(tl.program_id(0), CHANNELS, INDEX, BLOCK_M, BLOCK_N)
    live = (pixel < pixels) & (channel < CHANNELS)
    image, within = pixel // (OUT_H * OUT_W), pixel % (OUT_H * OUT_W)
    top = within // OUT_W * STRIDE_H - PAD_H
    left = within % OUT_W * STRIDE_W - PAD_W
    corner = x + (((image * IN_H + top) * IN_W + left) * CHANNELS + channel)

    best = tl.full([BLOCK_M, BLOCK_N], float("-inf"), COMPUTE)
    # A window of nothing but -inf has no winner: its first element stands for it.
    first = first_inside(top, DILATION_H, PAD_H) * IN_W + first_inside(left, DILATION_W, PAD_W)
    place = first + tl.zeros([BLOCK_M, BLOCK_N], INDEX)
    origin = top * IN_W + left
    if UNROLL:
        for r in tl.static_range(WINDOW_H):
            best, place = greater_row(
                best, place, corner, origin, top, left, live, r * DILATION_H, 0,
                IN_H, IN_W, CHANNELS, WINDOW_W, DILATION_W, EDGES, WRITE_INDICES,
            )  # fmt: skip
    else:
        for tap in range(WINDOW_H * WINDOW_W):
            down, right = tap // WINDOW_W * DILATION_H, tap % WINDOW_W * DILATION_W
            best, place = greater_row(
                best, place, corner, origin, top, left, live, down, right,
                IN_H, IN_W, CHANNELS, 1, DILATION_W, EDGES, WRITE_INDICES,
            )  # fmt: skip

    target = pixel * CHANNELS + channel
    tl.store(y + target, best.to(y.dtype.element_ty), mask=live)
    if WRITE_INDICES:
        tl.store(indices + target, place.to(tl.int64), mask=live)


@triton.jit
def add_windows(
    total,
    dy,  # pointers to the last window that reaches the element
    indices,
    place,
    last_h,
    last_w,
    offset_w,
    live,
    up,  # rows of windows from the last to this one
    start,  # columns of windows from the last to the first that is taken
    OUT_H: tl.constexpr,
    OUT_W: tl.constexpr,
    CHANNELS: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_W: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """``total`` with the gradient of those of COLUMNS windows of one row that the element won."""
    inside = live & (last_h >= up) & (last_h < OUT_H + up)
    for count in tl.static_range(COLUMNS):
        back = start - count
        mask = inside & ((last_w >= back) & (last_w < OUT_W + back))
        if DILATION_W > 1:
            # A dilated window may hold only padding; its index may then name an element of the
            # next row, which lies between the window's columns.
            mask = mask & ((offset_w + back * STRIDE_W) % DILATION_W == 0)
        step = (up * OUT_W + back) * CHANNELS
        winner = tl.load(indices - step, mask=mask, other=-1).to(place.dtype)
        gradient = tl.load(dy - step, mask=mask, other=0.0).to(total.dtype)
        total += tl.where(winner == place, gradient, 0.0)
    return total


@triton.jit(do_not_specialize=["pixels"])
def max_pool_dgrad(
    dy,  # [images, OUT_H, OUT_W, CHANNELS]
    indices,  # as dy
    dx,  # [images, IN_H, IN_W, CHANNELS]
    pixels,  # images * IN_H * IN_W
    CHANNELS: tl.constexpr,
    IN_H: tl.constexpr,
    IN_W: tl.constexpr,
    OUT_H: tl.constexpr,
    OUT_W: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
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
    live = (pixel < pixels) & (channel < CHANNELS)
    image, place = pixel // (IN_H * IN_W), pixel % (IN_H * IN_W)
    padded_h, padded_w = place // IN_W + PAD_H, place % IN_W + PAD_W
    last_h, last_w = padded_h // STRIDE_H, padded_w // STRIDE_W
    offset_w = padded_w % STRIDE_W
    source = ((image * OUT_H + last_h) * OUT_W + last_w) * CHANNELS + channel

    total = tl.zeros([BLOCK_M, BLOCK_N], COMPUTE)
    if UNROLL:
        for count in tl.static_range(WINDOWS_H):
            total = add_windows(
                total, dy + source, indices + source, place, last_h, last_w, offset_w, live,
                WINDOWS_H - 1 - count, WINDOWS_W - 1,
                OUT_H, OUT_W, CHANNELS, STRIDE_W, DILATION_W, WINDOWS_W,
            )  # fmt: skip
    else:
        for count in range(WINDOWS_H * WINDOWS_W):
            behind = WINDOWS_H * WINDOWS_W - 1 - count
            total = add_windows(
                total, dy + source, indices + source, place, last_h, last_w, offset_w, live,
                behind // WINDOWS_W, behind % WINDOWS_W,
                OUT_H, OUT_W, CHANNELS, STRIDE_W, DILATION_W, 1,
            )  # fmt: skip
    tl.store(dx + pixel * CHANNELS + channel, total.to(dx.dtype.element_ty), mask=live)


@triton.jit(do_not_specialize=["pixels"])
def max_pool_pick(
    x,  # [images, IN_H, IN_W, CHANNELS]
    indices,  # [images, OUT_H, OUT_W, CHANNELS]
    y,  # as indices
    pixels,  # images * OUT_H * OUT_W
    CHANNELS: tl.constexpr,
    IN_H: tl.constexpr,
    IN_W: tl.constexpr,
    OUT_H: tl.constexpr,
    OUT_W: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_W: tl.constexpr,
    DILATION_W: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """y = x at the saved indices; zero where a window held only padding."""
    pixel, channel = tile_of(tl.program_id(0), CHANNELS, INDEX, BLOCK_M, BLOCK_N)
    live = (pixel < pixels) & (channel < CHANNELS)
    target = pixel * CHANNELS + channel
    place = tl.load(indices + target, mask=live, other=-1).to(INDEX)
    left = first_inside(pixel % OUT_W * STRIDE_W - PAD_W, DILATION_W, PAD_W)
    chosen = live & is_inside(place, IN_H * IN_W) & (left < IN_W)
    source = (pixel // (OUT_H * OUT_W) * (IN_H * IN_W) + place) * CHANNELS + channel
    value = tl.load(x + source, mask=chosen, other=0.0)
    tl.store(y + target, value, mask=live)
