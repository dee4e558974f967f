"""Index arithmetic that the kernels share: tiles of programs, strides, addresses, loads."""

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
def image_strides(height, width, PIXEL: tl.constexpr, NHWC: tl.constexpr, INDEX: tl.constexpr):
    """Strides of a row, a column and a channel: of pixels of PIXEL channels, or of planes."""
    if NHWC:
        return width.to(INDEX) * PIXEL, PIXEL, 1
    else:
        return width.to(INDEX), 1, height.to(INDEX) * width


@triton.jit
def element_offset(image, place, plane, channel, CHANNELS: tl.constexpr, NHWC: tl.constexpr,
                   INDEX: tl.constexpr):  # fmt: skip
    """Elements from the start of a dense tensor to a pixel's first channel, and on to a channel.

    ``place`` is the pixel's within its image of ``plane`` pixels.
    """
    if NHWC:
        pixel_offset = (image.to(INDEX) * plane + place) * CHANNELS
        channel_offset = channel.to(INDEX)
    else:
        pixel_offset = image.to(INDEX) * CHANNELS * plane + place
        channel_offset = channel.to(INDEX) * plane
    return pixel_offset, channel_offset


@triton.jit
def load_operands(
    pixels,  # pointers [BLOCK_M, BLOCK_K]
    filters,  # pointers [BLOCK_K, BLOCK_N]
    pixel_mask,
    column_mask,
    channel,  # of the reduction, [BLOCK_K]
    CHANNELS: tl.constexpr,
    EVEN_N: tl.constexpr,  # whether every column exists
    EVEN_K: tl.constexpr,  # whether every step has BLOCK_K channels
):
    """Both operands of one step of an implicit matrix product; zero where a mask is false."""
    if EVEN_K:
        pixel_tile = tl.load(pixels, mask=pixel_mask[:, None], other=0.0)
        if EVEN_N:
            filter_tile = tl.load(filters)
        else:
            filter_tile = tl.load(filters, mask=column_mask[None, :], other=0.0)
    else:
        channel_mask = channel < CHANNELS
        tile_mask = pixel_mask[:, None] & channel_mask[None, :]
        pixel_tile = tl.load(pixels, mask=tile_mask, other=0.0)
        filter_mask = channel_mask[:, None] & column_mask[None, :]
        filter_tile = tl.load(filters, mask=filter_mask, other=0.0)
    return pixel_tile, filter_tile
