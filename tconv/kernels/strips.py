"""Strips of results, as depthwise kernels compute them: offsets, pool windows, the store."""

import triton
import triton.language as tl

from tconv.kernels.epilogue import channel_terms, epilogue, pooled, store_result
from tconv.kernels.taps import is_inside


@triton.jit
def strip_windows(even, odd, NHWC: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """[BLOCK_M / 2, BLOCK_N, 2, 2]: the 2x2 windows of two neighbouring tiles of a strip."""
    tile = tl.reshape(tl.join(even, odd), (BLOCK_M // 2, 2, BLOCK_N, 2))
    if NHWC:  # strips run along rows: a tile's rows are the image's
        return tl.permute(tile, (0, 2, 1, 3))
    else:
        return tl.permute(tile, (0, 2, 3, 1))


@triton.jit
def strip_offset(
    image,
    channel,  # of contiguous tensors, plane
    across,  # place across the strip
    along,  # and along it
    size_along,
    size_across,
    CHANNELS: tl.constexpr,
    NHWC: tl.constexpr,
    INDEX: tl.constexpr,
):
    """Offset of a strip's first place in a dense tensor, and the way to the next."""
    if NHWC:
        step = CHANNELS
        row = (image.to(INDEX) * size_across + across) * size_along + along
        offset = row * CHANNELS + channel[None, :]
    else:
        step = size_across
        row = channel.to(INDEX)[None, :] * size_along + along
        offset = row * size_across + across
    return offset, step


@triton.jit
def store_strip(
    sums,  # STRIP tiles, [BLOCK_M, BLOCK_N] each
    norm,  # (bias, norm_weight, norm_bias, norm_mean, norm_var), each may be None
    residual,
    result,
    kept,
    offsets,
    image_index,
    line,  # of the result, across
    first,  # of the strip's results, along
    mask,
    channel,
    produced,
    produced_mask,
    row,  # which BLOCK_M lines; with POOL they are pairs
    lines,  # across; of channels_last tensors in each image
    batch,
    result_along,
    result_across,
    PRODUCED: tl.constexpr,
    NHWC: tl.constexpr,
    EPS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr,
    RESIDUAL_AFTER: tl.constexpr,
    POOL: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STRIP: tl.constexpr,
):
    """Apply the epilogue to the tiles of a strip and store what it yields."""
    bias, norm_weight, norm_bias, norm_mean, norm_var = norm
    WINDOW: tl.constexpr = 2 if POOL else 1
    offset, scale, shift = channel_terms(
        bias, norm_weight, norm_bias, norm_mean, norm_var, produced, produced_mask, EPS,
        sums[0].dtype,
    )  # fmt: skip
    at, stride_along = strip_offset(
        image_index, channel, line, first, result_along, result_across, PRODUCED, NHWC, INDEX
    )
    results = ()
    arguments = ()
    for j in tl.static_range(STRIP):
        more = None
        if residual is not None:
            along = result_along // WINDOW * WINDOW
            place_mask = mask & is_inside(first + j + mask.to(tl.int32) * 0, along)
            more = tl.load(residual + (at + j * stride_along), mask=place_mask, other=0.0)
        total, argument = epilogue(
            sums[j], offset[None, :], scale[None, :], shift[None, :], more, bias, norm_mean,
            ACTIVATION, SLOPE, RESIDUAL_AFTER, POOL,
        )  # fmt: skip
        results = results + (total,)
        arguments = arguments + (argument,)
    if POOL:  # of a window, two places lie in one tile and two in the next of the strip
        if NHWC:
            position = row.to(INDEX) * (BLOCK_M // 2) + tl.arange(0, BLOCK_M // 2)[:, None]
            line_mask = position < batch.to(INDEX) * (lines // 2)
            image_index = position // (lines // 2)
            line = (position % (lines // 2)).to(tl.int32)
        else:
            line = row * (BLOCK_M // 2) + tl.arange(0, BLOCK_M // 2)[:, None]
            line_mask = line < lines // 2
            image_index = line * 0
        mask = line_mask & produced_mask[None, :]
        first = first // 2
        at, stride_along = strip_offset(
            image_index, channel, line, first, result_along // 2, result_across // 2,
            PRODUCED, NHWC, INDEX,
        )  # fmt: skip
    for j in tl.static_range(STRIP // WINDOW):
        best_place = None
        if POOL:
            total, argument, best_place = pooled(
                strip_windows(results[2 * j], results[2 * j + 1], NHWC, BLOCK_M, BLOCK_N),
                strip_windows(arguments[2 * j], arguments[2 * j + 1], NHWC, BLOCK_M, BLOCK_N),
                kept, ACTIVATION, RESIDUAL_AFTER,
            )  # fmt: skip
        else:
            total = results[j]
            argument = arguments[j]
        place_mask = mask & is_inside(first + j + mask.to(tl.int32) * 0, result_along // WINDOW)
        store_result(
            result, kept, offsets, at + j * stride_along, place_mask, total, argument, best_place
        )
