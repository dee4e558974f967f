"""Adds the parts of a split reduction, always in the same order: the same bits from run to run."""

import triton
import triton.language as tl

from tconv.kernels.epilogue import relu


@triton.jit(do_not_specialize=["elements", "splits"])
def add_splits(
    workspace,  # [splits, rows, PLANE, WIDTH]
    bias,  # [CHANNELS], or None
    residual,  # as the total, or None
    total,  # [rows, PLANE, CHANNELS], elements in all, or channels before the plane
    elements,
    splits,
    PLANE: tl.constexpr,  # pixels of an image, or taps of a filter
    CHANNELS: tl.constexpr,
    WIDTH: tl.constexpr,  # at least CHANNELS: what lies beyond is dropped
    PLANE_FIRST: tl.constexpr,
    RELU: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """total = sum of the parts + bias, and the rest of an epilogue."""
    element = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    exists = element < elements
    sums = tl.zeros((BLOCK,), workspace.dtype.element_ty)
    channel = element % CHANNELS
    parts = workspace + (element // CHANNELS * WIDTH + channel)
    for _ in range(0, splits):
        sums += tl.load(parts, mask=exists, other=0.0)
        parts += elements // CHANNELS * WIDTH
    if bias is not None:
        sums += tl.load(bias + channel, mask=exists, other=0.0).to(sums.dtype)
    if PLANE_FIRST:
        offset = element
    else:
        place = (element // CHANNELS) % PLANE
        offset = (element // (CHANNELS * PLANE) * CHANNELS + channel) * PLANE + place
    if residual is not None:
        sums += tl.load(residual + offset, mask=exists, other=0.0).to(sums.dtype)
    if RELU:
        sums = relu(sums)
    tl.store(total + offset, sums.to(total.dtype.element_ty), mask=exists)
