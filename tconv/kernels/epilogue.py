"""The epilogue of a convolution, which a kernel applies to its sums before it stores them.

    z = (sums + bias - mean) gamma / sqrt(variance + eps) + beta    bias and batch normalization
    y = activation(z + residual), or activation(z) + residual
    y = max of the 2x2 windows of y

A part whose tensor is None is left out. Everything is computed in the type of the sums. A pooled
tile holds complete windows: its four quarters are the four places of every window, and their
maximum is element-wise.
"""

import triton
import triton.language as tl

from tconv.kernels.activations import activate, relu
from tconv.kernels.index import element_offset

# ---- bias, batch normalization, residual ----------------------------------------------------


@triton.jit
def channel_terms(
    bias,  # [channels] each, or None
    norm_weight,
    norm_bias,
    norm_mean,
    norm_var,
    channel,
    mask,
    EPS: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
):
    """(offset, scale, shift) of each channel, for (sums + offset) scale + shift.

    Subtracting the mean first keeps a channel of no variance at zero, whatever its scale.
    """
    offset = tl.zeros(channel.shape, ACCUMULATOR)
    scale = offset + 1
    shift = offset
    if bias is not None:
        offset = tl.load(bias + channel, mask=mask, other=0.0).to(ACCUMULATOR)
    if norm_mean is not None:
        offset -= tl.load(norm_mean + channel, mask=mask, other=0.0).to(ACCUMULATOR)
        variance = tl.load(norm_var + channel, mask=mask, other=1.0).to(ACCUMULATOR)
        scale = 1.0 / tl.sqrt(variance + EPS)
        if norm_weight is not None:
            scale *= tl.load(norm_weight + channel, mask=mask, other=0.0).to(ACCUMULATOR)
        if norm_bias is not None:
            shift = tl.load(norm_bias + channel, mask=mask, other=0.0).to(ACCUMULATOR)
    return offset, scale, shift


@triton.jit
def activation_argument(
    sums,
    offset,  # the channels' terms, shaped to the sums
    scale,
    shift,
    residual,  # a tile as the sums, or None
    bias,  # only whether it is None matters, as for norm_mean
    norm_mean,
    RESIDUAL_AFTER: tl.constexpr,
):
    """The sums with bias, batch normalization and the residual, unless that comes after."""
    if norm_mean is not None:
        sums = (sums + offset) * scale + shift
    elif bias is not None:
        sums += offset
    if residual is not None and not RESIDUAL_AFTER:
        sums += residual.to(sums.dtype)
    return sums


@triton.jit
def activation_result(
    argument,
    residual,  # a tile as the argument, or None
    ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr,
    RESIDUAL_AFTER: tl.constexpr,
    POOL: tl.constexpr,
):
    """y before any pooling.

    Where a ReLU is pooled, y is its argument: ``best_of_four`` takes the ReLU of the maximum.
    """
    result = argument
    if not (POOL and ACTIVATION == "relu" and not RESIDUAL_AFTER):
        result = activate(argument, ACTIVATION, SLOPE)
    if residual is not None and RESIDUAL_AFTER:
        result += residual.to(argument.dtype)
    return result


@triton.jit
def epilogue(
    sums,
    offset,
    scale,
    shift,
    residual,
    bias,
    norm_mean,
    ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr,
    RESIDUAL_AFTER: tl.constexpr,
    POOL: tl.constexpr,
):
    """(y before any pooling, the activation's argument) of a tile."""
    argument = activation_argument(
        sums, offset, scale, shift, residual, bias, norm_mean, RESIDUAL_AFTER
    )
    return activation_result(argument, residual, ACTIVATION, SLOPE, RESIDUAL_AFTER, POOL), argument


# ---- 2x2 max-pool ---------------------------------------------------------------------------


@triton.jit
def greater(best, offset, value, place: tl.constexpr):
    """(best, offset) after ``value`` at ``place``: the first maximum wins, a NaN over numbers."""
    wins = (value > best) | (value != value)
    return tl.where(wins, value, best), tl.where(wins, place, offset)


@triton.jit
def quarters(tile):
    """Four tiles: the places of each 2x2 window, row by row; windows are the tile's last axes."""
    left, right = tl.split(tile)
    first, third = tl.split(left)
    second, fourth = tl.split(right)
    return first, second, third, fourth


@triton.jit
def window_place(element, columns):
    """(row, column) of element ``element`` of an image in window order, of ``columns`` columns."""
    window, corner = element // 4, element % 4
    windows_w = columns // 2
    row = window // windows_w * 2 + corner // 2
    return row, window % windows_w * 2 + corner % 2


@triton.jit
def pixel_place(pixel, columns, POOL: tl.constexpr):
    """(row, column) of a pixel of an image; with POOL, pixels are in window order."""
    if POOL:
        return window_place(pixel, columns)
    else:
        return pixel // columns, pixel % columns


@triton.jit
def summed_plane(height, width, POOL: tl.constexpr, INDEX: tl.constexpr):
    """Pixels of an image that a pass computes; with POOL, only those of complete windows."""
    if POOL:
        return (height // 2).to(INDEX) * (width // 2) * 4
    else:
        return height.to(INDEX) * width


@triton.jit
def tile_windows(tile, PIXELS_FIRST: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """A tile in window order, reshaped so that its last two axes are the 2x2 windows."""
    if PIXELS_FIRST:
        return tl.permute(tl.reshape(tile, (BLOCK_M // 4, 2, 2, BLOCK_N)), (0, 3, 1, 2))
    else:
        return tl.reshape(tile, (BLOCK_N, BLOCK_M // 4, 2, 2))


@triton.jit
def best_of_four(first, second, third, fourth, RELU: tl.constexpr):
    """The maximum of the places of a 2x2 window, row by row, and which it is.

    With RELU it is the ReLU of the maximum, and a window without a positive element has place
    -1: no gradient goes there.
    """
    offset = tl.zeros(first.shape, tl.int8)
    best, offset = greater(first, offset, second, 1)
    best, offset = greater(best, offset, third, 2)
    best, offset = greater(best, offset, fourth, 3)
    if RELU:
        offset = tl.where(best <= 0, -1, offset)
        best = relu(best)
    return best, offset.to(tl.int8)


@triton.jit
def place_of_four(offset, first, second, third, fourth):
    """The element at place ``offset`` of each 2x2 window."""
    return tl.where(
        offset == 3, fourth, tl.where(offset == 2, third, tl.where(offset == 1, second, first))
    )


@triton.jit
def pooled(
    result,  # windows of y, which are the last two axes
    argument,  # the activation's, likewise
    kept,  # None if the argument is not needed
    ACTIVATION: tl.constexpr,
    RESIDUAL_AFTER: tl.constexpr,
):
    """Of each window the maximum of y, the activation's argument there, and the place."""
    RELU: tl.constexpr = ACTIVATION == "relu" and not RESIDUAL_AFTER
    first, second, third, fourth = quarters(result)
    best, offset = best_of_four(first, second, third, fourth, RELU)
    at_best = best
    if kept is not None:
        first, second, third, fourth = quarters(argument)
        at_best = place_of_four(offset, first, second, third, fourth)
    return best, at_best, offset


# ---- stores ------------------------------------------------------------------------------------


@triton.jit
def store_result(y, kept, offsets, at, mask, result, argument, offset):
    """Store y, and for the gradient the argument and the offsets, if their tensors are given."""
    if kept is not None:
        tl.store(kept + at, argument.to(kept.dtype.element_ty), mask=mask)
    if offsets is not None:
        tl.store(offsets + at, offset, mask=mask)
    tl.store(y + at, result.to(y.dtype.element_ty), mask=mask)


@triton.jit
def across_tile(pixel_value, channel_value, PIXELS_FIRST: tl.constexpr):
    """A value of each pixel and one of each channel, shaped to broadcast over a tile."""
    if PIXELS_FIRST:
        return pixel_value[:, None], channel_value[None, :]
    else:
        return pixel_value[None, :], channel_value[:, None]


@triton.jit
def tile_offsets(image, place, plane, pixel_mask, channel, channel_mask, CHANNELS: tl.constexpr,
                 NHWC: tl.constexpr, PIXELS_FIRST: tl.constexpr, INDEX: tl.constexpr):  # fmt: skip
    """Offset and mask of each element of a tile in a dense tensor."""
    pixel_offset, channel_offset = element_offset(
        image, place, plane, channel, CHANNELS, NHWC, INDEX
    )
    pixel_offset, channel_offset = across_tile(pixel_offset, channel_offset, PIXELS_FIRST)
    pixel_mask, channel_mask = across_tile(pixel_mask, channel_mask, PIXELS_FIRST)
    return pixel_offset + channel_offset, pixel_mask & channel_mask


@triton.jit
def store_tile(
    sums,  # [BLOCK_M, BLOCK_N], pixels by channels; or, not PIXELS_FIRST, its transpose
    inputs,  # (bias, norm_weight, norm_bias, norm_mean, norm_var, residual), each may be None
    outputs,  # (result, kept, offsets), the latter two may be None
    image,  # of each pixel
    place,  # of each pixel within its image of height x width
    pixel_mask,
    height,
    width,
    tile_row,  # which BLOCK_M pixels of all; with POOL they are whole windows
    batch,
    channel,
    channel_mask,
    CHANNELS: tl.constexpr,
    NHWC: tl.constexpr,
    PIXELS_FIRST: tl.constexpr,
    EPS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr,
    RESIDUAL_AFTER: tl.constexpr,
    POOL: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Apply the epilogue to a tile of sums and store what it yields."""
    bias, norm_weight, norm_bias, norm_mean, norm_var, residual = inputs
    result, kept, offsets = outputs
    offset, scale, shift = channel_terms(
        bias, norm_weight, norm_bias, norm_mean, norm_var, channel, channel_mask, EPS, sums.dtype
    )
    _, offset = across_tile(pixel_mask, offset, PIXELS_FIRST)
    _, scale = across_tile(pixel_mask, scale, PIXELS_FIRST)
    _, shift = across_tile(pixel_mask, shift, PIXELS_FIRST)
    at, mask = tile_offsets(
        image, place, height.to(INDEX) * width, pixel_mask, channel, channel_mask, CHANNELS, NHWC,
        PIXELS_FIRST, INDEX,
    )  # fmt: skip
    more = None
    if residual is not None:
        more = tl.load(residual + at, mask=mask, other=0.0)
    total, argument = epilogue(
        sums, offset, scale, shift, more, bias, norm_mean, ACTIVATION, SLOPE, RESIDUAL_AFTER, POOL
    )
    best_place = None
    if POOL:
        total, argument, best_place = pooled(
            tile_windows(total, PIXELS_FIRST, BLOCK_M, BLOCK_N),
            tile_windows(argument, PIXELS_FIRST, BLOCK_M, BLOCK_N),
            kept, ACTIVATION, RESIDUAL_AFTER,
        )  # fmt: skip
        window = tile_row.to(INDEX) * (BLOCK_M // 4) + tl.arange(0, BLOCK_M // 4)
        plane = (height // 2).to(INDEX) * (width // 2)
        at, mask = tile_offsets(
            window // plane, window % plane, plane, window < batch.to(INDEX) * plane, channel,
            channel_mask, CHANNELS, NHWC, PIXELS_FIRST, INDEX,
        )  # fmt: skip
    store_result(result, kept, offsets, at, mask, total, argument, best_place)
