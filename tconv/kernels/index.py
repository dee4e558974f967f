"""What the kernels share: tiles of programs, strides, offsets, loads of operands, stores of dw."""

import triton
import triton.language as tl


@triton.jit
def group_share(GROUPS: tl.constexpr):
    """Group of this program, its number among the group's programs, and how many these are.

    Groups share grid axis 0, the only one that may have more than 65,535 programs.
    """
    if GROUPS == 1:
        return tl.program_id(0) * 0, tl.program_id(0), tl.num_programs(0)
    else:
        programs = tl.num_programs(0) // GROUPS
        return tl.program_id(0) // programs, tl.program_id(0) % programs, programs


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


@triton.jit
def next_box(image0, row0, column0, rows, columns, BOX_N: tl.constexpr, BOX_H: tl.constexpr,
             BOX_W: tl.constexpr):  # fmt: skip
    """Where the next box begins, and whether this box was the last of a row and of an image."""
    column0 += BOX_W
    row_done = column0 >= columns
    row0 += tl.where(row_done, BOX_H, 0)
    image_done = row0 >= rows
    image0 += tl.where(image_done, BOX_N, 0)
    column0 = tl.where(row_done, 0, column0)
    row0 = tl.where(image_done, 0, row0)
    return image0, row0, column0, row_done, image_done


@triton.jit
def store_filter_gradient(
    dw,  # [filters, taps, channels], or channels before taps; or parts of it, split by split
    sums,  # [BLOCK_M, BLOCK_N]: filters by (tap, channel)
    split,
    group,
    out_channel,
    out_channel_mask,
    column,  # tap * IN_CHANNELS + channel
    column_mask,
    tap,  # of each column, or of all
    IN_CHANNELS: tl.constexpr,
    OUT_CHANNELS: tl.constexpr,
    GROUPS: tl.constexpr,
    TAPS: tl.constexpr,
    PACK: tl.constexpr,  # groups that were multiplied as one
    DW_NHWC: tl.constexpr,
    INDEX: tl.constexpr,
):
    """Store a tile of dw; with PACK groups taken as one, their diagonal blocks only."""
    OWN: tl.constexpr = IN_CHANNELS // PACK  # channels that a filter sees
    dw_row = (split.to(INDEX) * GROUPS + group) * OUT_CHANNELS + out_channel
    mask = out_channel_mask[:, None] & column_mask[None, :]
    channel = column - tap * IN_CHANNELS
    place = column
    if PACK > 1:
        own = (out_channel // (OUT_CHANNELS // PACK))[:, None]
        mask &= own == (channel // OWN)[None, :]
        place = tap * OWN + channel % OWN
    if not DW_NHWC:
        place = channel % OWN * TAPS + tap
    dw_pointers = dw + ((dw_row * (TAPS * OWN))[:, None] + place[None, :])
    tl.store(dw_pointers, sums.to(dw.dtype.element_ty), mask=mask)
