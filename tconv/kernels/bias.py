"""Gradient of the bias: dy summed over all but its channels, dbias[k] = sum of dy[n, k, p, q].

One pass over dy, split among programs: each adds its share of the pixels into a workspace,
and the last step adds the shares in order, so that the result is the same from run to run.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["pixels", "split_pixels"])
def bias_grad_parts(
    dy,  # [images, plane, CHANNELS], or channels before the plane; pixels = images plane
    workspace,  # [splits, CHANNELS]
    pixels,
    split_pixels,
    PLANE: tl.constexpr,
    CHANNELS: tl.constexpr,
    DY_NHWC: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Sums of dy over the pixels of one split, for each channel."""
    channel = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    exists = channel < CHANNELS
    first = tl.program_id(1).to(INDEX) * split_pixels
    last = tl.minimum(first + split_pixels, pixels)
    total = tl.zeros((BLOCK_N,), ACCUMULATOR)
    pixel = first + tl.arange(0, BLOCK_K)
    for _ in range(first, last, BLOCK_K):
        if DY_NHWC:
            offset = pixel[:, None] * CHANNELS + channel[None, :]
        else:
            image = pixel // PLANE * (CHANNELS * PLANE) + pixel % PLANE
            offset = image[:, None] + channel[None, :].to(INDEX) * PLANE
        mask = (pixel < last)[:, None] & exists[None, :]
        tile = tl.load(dy + offset, mask=mask, other=0.0)
        total += tl.sum(tile.to(ACCUMULATOR), axis=0)
        pixel += BLOCK_K
    tl.store(workspace + tl.program_id(1) * CHANNELS + channel, total, mask=exists)


@triton.jit(do_not_specialize=["splits"])
def bias_grad_sum(
    workspace,  # [splits, CHANNELS]
    dbias,  # [CHANNELS]
    splits,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Adds the shares, always in the same order."""
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = channel < CHANNELS
    total = tl.zeros((BLOCK,), workspace.dtype.element_ty)
    for split in range(0, splits):
        total += tl.load(workspace + split * CHANNELS + channel, mask=exists, other=0.0)
    tl.store(dbias + channel, total.to(dbias.dtype.element_ty), mask=exists)
