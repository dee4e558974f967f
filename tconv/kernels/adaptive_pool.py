"""Pools whose windows share an image out evenly, their gradients, and reads by index.

    y[n, p, q, c] = mean or max over the rows h of span(p) and columns v of span(q) of x[n, h, v, c]
    span(p) = p IN_H // OUT_H, ..., ((p + 1) IN_H - 1) // OUT_H

Neighbouring windows differ in size, and overlap where the sizes do not divide. The outputs whose
window holds row h are the span of h with the two sizes exchanged. Tensors are taken as
[images, height, width, CHANNELS], as those of max-pool; places are counted in INDEX.
"""

import triton
import triton.language as tl

from tconv.kernels.max_pool import tile_of


@triton.jit
def span(place, FROM: tl.constexpr, TO: tl.constexpr):
    """First and (exclusive) last of the FROM places that place ``place`` of TO covers."""
    return place * FROM // TO, ((place + 1) * FROM + TO - 1) // TO


@triton.jit
def covered(pixel, FROM_H: tl.constexpr, FROM_W: tl.constexpr, TO_H: tl.constexpr,
            TO_W: tl.constexpr):  # fmt: skip
    """Image, and the top, bottom, left and right of what a pixel of TO_H x TO_W covers."""
    top, bottom = span(pixel // TO_W % TO_H, FROM_H, TO_H)
    left, right = span(pixel % TO_W, FROM_W, TO_W)
    return pixel // (TO_H * TO_W), top, bottom, left, right


@triton.jit(do_not_specialize=["pixels"])
def adaptive_avg_fprop(
    x,  # [images, IN_H, IN_W, CHANNELS]
    y,  # [images, OUT_H, OUT_W, CHANNELS]
    pixels,  # images * OUT_H * OUT_W
    CHANNELS: tl.constexpr,
    IN_H: tl.constexpr,
    IN_W: tl.constexpr,
    OUT_H: tl.constexpr,
    OUT_W: tl.constexpr,
    MOST_H: tl.constexpr,  # rows of the largest window
    MOST_W: tl.constexpr,
    COMPUTE: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    pixel, channel = tile_of(tl.program_id(0), CHANNELS, INDEX, BLOCK_M, BLOCK_N)
    pixel_mask = (pixel < pixels) & (channel < CHANNELS)
    image, top, bottom, left, right = covered(pixel, IN_H, IN_W, OUT_H, OUT_W)
    corner = x + (((image * IN_H + top) * IN_W + left) * CHANNELS + channel)
    total = tl.zeros([BLOCK_M, BLOCK_N], COMPUTE)
    zero = tl.program_id(0).to(INDEX) * 0  # rows times their length are counted in INDEX
    for tap in range(MOST_H * MOST_W):
        r, s = tap // MOST_W + zero, tap % MOST_W
        mask = pixel_mask & (top + r < bottom) & (left + s < right)
        total += tl.load(corner + (r * IN_W + s) * CHANNELS, mask=mask, other=0.0).to(COMPUTE)
    count = (bottom - top) * (right - left)
    total = total / count.to(COMPUTE)
    tl.store(y + pixel * CHANNELS + channel, total.to(y.dtype.element_ty), mask=pixel_mask)


@triton.jit(do_not_specialize=["pixels"])
def adaptive_avg_dgrad(
    dy,  # [images, OUT_H, OUT_W, CHANNELS]
    dx,  # [images, IN_H, IN_W, CHANNELS]
    pixels,  # images * IN_H * IN_W
    CHANNELS: tl.constexpr,
    IN_H: tl.constexpr,
    IN_W: tl.constexpr,
    OUT_H: tl.constexpr,
    OUT_W: tl.constexpr,
    MOST_H: tl.constexpr,  # rows of windows that hold one row of x, at most
    MOST_W: tl.constexpr,
    COMPUTE: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Each element of dx gathers from the windows that hold it, in order: no atomics."""
    pixel, channel = tile_of(tl.program_id(0), CHANNELS, INDEX, BLOCK_M, BLOCK_N)
    pixel_mask = (pixel < pixels) & (channel < CHANNELS)
    image, top, bottom, left, right = covered(pixel, OUT_H, OUT_W, IN_H, IN_W)
    corner = dy + (((image * OUT_H + top) * OUT_W + left) * CHANNELS + channel)
    total = tl.zeros([BLOCK_M, BLOCK_N], COMPUTE)
    zero = tl.program_id(0).to(INDEX) * 0
    for count in range(MOST_H * MOST_W):
        r, s = count // MOST_W + zero, count % MOST_W
        mask = pixel_mask & (top + r < bottom) & (left + s < right)
        first_h, last_h = span(top + r, IN_H, OUT_H)
        first_w, last_w = span(left + s, IN_W, OUT_W)
        elements = (last_h - first_h) * (last_w - first_w)
        gradient = tl.load(corner + (r * OUT_W + s) * CHANNELS, mask=mask, other=0.0).to(COMPUTE)
        total += gradient / elements.to(COMPUTE)
    tl.store(dx + pixel * CHANNELS + channel, total.to(dx.dtype.element_ty), mask=pixel_mask)


@triton.jit(do_not_specialize=["pixels"])
def adaptive_max_fprop(
    x,  # [images, IN_H, IN_W, CHANNELS]
    y,  # [images, OUT_H, OUT_W, CHANNELS]
    indices,  # as y: row * IN_W + column of each maximum
    pixels,  # images * OUT_H * OUT_W
    CHANNELS: tl.constexpr,
    IN_H: tl.constexpr,
    IN_W: tl.constexpr,
    OUT_H: tl.constexpr,
    OUT_W: tl.constexpr,
    MOST_H: tl.constexpr,  # rows of the largest window
    MOST_W: tl.constexpr,
    COMPUTE: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The first maximum wins; a NaN wins over all numbers, the last over others."""
    pixel, channel = tile_of(tl.program_id(0), CHANNELS, INDEX, BLOCK_M, BLOCK_N)
    pixel_mask = (pixel < pixels) & (channel < CHANNELS)
    image, top, bottom, left, right = covered(pixel, IN_H, IN_W, OUT_H, OUT_W)
    first = top * IN_W + left
    corner = x + ((image * (IN_H * IN_W) + first) * CHANNELS + channel)
    best = tl.full([BLOCK_M, BLOCK_N], float("-inf"), COMPUTE)
    winner = first + tl.zeros([BLOCK_M, BLOCK_N], INDEX)
    zero = tl.program_id(0).to(INDEX) * 0
    for tap in range(MOST_H * MOST_W):
        r, s = tap // MOST_W + zero, tap % MOST_W
        mask = pixel_mask & (top + r < bottom) & (left + s < right)
        step = r * IN_W + s
        value = tl.load(corner + step * CHANNELS, mask=mask, other=float("-inf")).to(COMPUTE)
        wins = (value > best) | (value != value)
        best = tl.where(wins, value, best)
        winner = tl.where(wins, first + step, winner)
    target = pixel * CHANNELS + channel
    tl.store(y + target, best.to(y.dtype.element_ty), mask=pixel_mask)
    tl.store(indices + target, winner.to(tl.int64), mask=pixel_mask)


@triton.jit(do_not_specialize=["pixels"])
def adaptive_max_dgrad(
    dy,  # [images, OUT_H, OUT_W, CHANNELS]
    indices,  # as dy
    dx,  # [images, IN_H, IN_W, CHANNELS]
    pixels,  # images * IN_H * IN_W
    CHANNELS: tl.constexpr,
    IN_H: tl.constexpr,
    IN_W: tl.constexpr,
    OUT_H: tl.constexpr,
    OUT_W: tl.constexpr,
    MOST_H: tl.constexpr,  # rows of windows that hold one row of x, at most
    MOST_W: tl.constexpr,
    COMPUTE: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Each element of dx gathers from the windows that it won, in order: no atomics."""
    pixel, channel = tile_of(tl.program_id(0), CHANNELS, INDEX, BLOCK_M, BLOCK_N)
    pixel_mask = (pixel < pixels) & (channel < CHANNELS)
    image, top, bottom, left, right = covered(pixel, OUT_H, OUT_W, IN_H, IN_W)
    source = ((image * OUT_H + top) * OUT_W + left) * CHANNELS + channel
    place = pixel % (IN_H * IN_W)
    total = tl.zeros([BLOCK_M, BLOCK_N], COMPUTE)
    zero = tl.program_id(0).to(INDEX) * 0
    for count in range(MOST_H * MOST_W):
        r, s = count // MOST_W + zero, count % MOST_W
        mask = pixel_mask & (top + r < bottom) & (left + s < right)
        step = (r * OUT_W + s) * CHANNELS
        winner = tl.load(indices + source + step, mask=mask, other=-1)
        gradient = tl.load(dy + source + step, mask=mask, other=0.0).to(COMPUTE)
        total += tl.where(winner == place, gradient, 0.0)
    tl.store(dx + pixel * CHANNELS + channel, total.to(dx.dtype.element_ty), mask=pixel_mask)


@triton.jit(do_not_specialize=["pixels"])
def pick_by_index(
    source,  # [images, PLANE, CHANNELS]
    indices,  # [images, OWN_PLANE, CHANNELS]: places in a plane of the source
    target,  # as indices
    pixels,  # images * OWN_PLANE
    CHANNELS: tl.constexpr,
    OWN_PLANE: tl.constexpr,
    PLANE: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The source at the indices, and 0 for an index outside of its plane."""
    pixel, channel = tile_of(tl.program_id(0), CHANNELS, INDEX, BLOCK_M, BLOCK_N)
    pixel_mask = (pixel < pixels) & (channel < CHANNELS)
    own = pixel * CHANNELS + channel
    place = tl.load(indices + own, mask=pixel_mask, other=-1).to(INDEX)
    place_mask = pixel_mask & (place >= 0) & (place < PLANE)
    other = (pixel // OWN_PLANE * PLANE + place) * CHANNELS + channel
    tl.store(target + own, tl.load(source + other, mask=place_mask, other=0.0), mask=pixel_mask)


@triton.jit(do_not_specialize=["pixels"])
def claim_by_index(
    indices,  # [images, OWN_PLANE, CHANNELS]: places in a plane of the claims
    claims,  # [images, PLANE, CHANNELS], -1 before
    pixels,  # images * OWN_PLANE
    CHANNELS: tl.constexpr,
    OWN_PLANE: tl.constexpr,
    PLANE: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """For each place of a plane the last pixel whose index names it: the inverse of the indices.

    A maximum does not depend on the order of the programs.
    """
    pixel, channel = tile_of(tl.program_id(0), CHANNELS, INDEX, BLOCK_M, BLOCK_N)
    pixel_mask = (pixel < pixels) & (channel < CHANNELS)
    place = tl.load(indices + (pixel * CHANNELS + channel), mask=pixel_mask, other=-1).to(INDEX)
    place_mask = pixel_mask & (place >= 0) & (place < PLANE)
    claim = claims + ((pixel // OWN_PLANE * PLANE + place) * CHANNELS + channel)
    claimant = (pixel % OWN_PLANE).to(tl.int64) + tl.zeros([BLOCK_M, BLOCK_N], tl.int64)
    tl.atomic_max(claim, claimant, mask=place_mask, sem="relaxed")
