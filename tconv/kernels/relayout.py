"""Conversions of memory layout before a product: memory-bound, one pass each."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["plane"])
def to_channels_last(
    contiguous,  # [images, CHANNELS, plane]
    last,  # [images, plane, CHANNELS]
    plane,  # pixels of an image, or taps of a filter
    CHANNELS: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr,  # pixels
    BLOCK_N: tl.constexpr,  # channels
):
    """Copy a tile, reading and writing full lines of memory."""
    tiles_n: tl.constexpr = (CHANNELS + BLOCK_N - 1) // BLOCK_N
    tiles = tl.cdiv(plane, BLOCK_M) * tiles_n  # of one image
    image = (tl.program_id(0) // tiles).to(INDEX)
    tile = tl.program_id(0) % tiles
    pixel = tile // tiles_n * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = tile % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    first = image * plane * CHANNELS
    mask = (channel < CHANNELS)[:, None] & (pixel < plane)[None, :]
    offset = channel.to(INDEX)[:, None] * plane + pixel[None, :]
    block = tl.load(contiguous + first + offset, mask=mask, other=0.0)
    offset = pixel.to(INDEX)[:, None] * CHANNELS + channel[None, :]
    tl.store(last + first + offset, tl.trans(block), mask=tl.trans(mask))


@triton.jit(do_not_specialize=["rows", "columns", "wide_rows", "wide_columns", "elements"])
def widen(
    narrow,  # [images, rows, columns, CHANNELS], or channels before rows
    wide,  # [images, wide_rows, wide_columns, WIDTH], elements in all
    rows,
    columns,
    wide_rows,
    wide_columns,
    elements,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    CHANNELS: tl.constexpr,
    WIDTH: tl.constexpr,  # at least CHANNELS
    CHANNELS_FIRST: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Images of few channels with a border of zeros, and each pixel widened with zeros.

    A kernel that reads them needs no mask for padding, and the pixels under a filter's row are
    adjacent.
    """
    element = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    channel = element % WIDTH
    pixel = element // WIDTH
    row = pixel // wide_columns % wide_rows - PAD_H
    column = pixel % wide_columns - PAD_W
    image = pixel // wide_columns // wide_rows
    image_mask = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    if CHANNELS_FIRST:
        source = ((image * CHANNELS + channel) * rows + row) * columns + column
    else:
        source = ((image * rows + row) * columns + column) * CHANNELS + channel
    element_mask = element < elements
    mask = image_mask & (channel < CHANNELS) & element_mask
    tl.store(wide + element, tl.load(narrow + source, mask=mask, other=0.0), mask=element_mask)
