"""A change of memory layout: channels brought to lie side by side.

    wide[n, p, c] = narrow[n, c, p]   (or narrow[n, p, c], where only the pixel is to be wider)

Every pixel gets WIDTH channels; those that narrow has not are zero. A tile is read along the
one layout and written along the other, so that both sides move whole lines of memory.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["plane"])
def to_channels_last(
    narrow,  # [images, CHANNELS, plane], or channels after the plane
    wide,  # [images, plane, WIDTH]
    plane,  # pixels of an image, or taps of a filter
    CHANNELS: tl.constexpr,
    WIDTH: tl.constexpr,  # at least CHANNELS
    CHANNELS_FIRST: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr,  # pixels
    BLOCK_N: tl.constexpr,  # channels
):
    tiles_n: tl.constexpr = (WIDTH + BLOCK_N - 1) // BLOCK_N
    tiles = tl.cdiv(plane, BLOCK_M) * tiles_n  # of one image
    image = (tl.program_id(0) // tiles).to(INDEX)
    tile = tl.program_id(0) % tiles
    pixel = tile // tiles_n * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = tile % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = pixel < plane
    exists = channel < CHANNELS
    if CHANNELS_FIRST:
        offset = channel.to(INDEX)[:, None] * plane + pixel[None, :]
        source = narrow + image * CHANNELS * plane + offset
        block = tl.trans(tl.load(source, mask=exists[:, None] & inside[None, :], other=0.0))
    else:
        offset = pixel.to(INDEX)[:, None] * CHANNELS + channel[None, :]
        source = narrow + image * plane * CHANNELS + offset
        block = tl.load(source, mask=inside[:, None] & exists[None, :], other=0.0)
    offset = pixel.to(INDEX)[:, None] * WIDTH + channel[None, :]
    mask = inside[:, None] & (channel < WIDTH)[None, :]
    tl.store(wide + image * plane * WIDTH + offset, block, mask=mask)
