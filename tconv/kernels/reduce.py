"""Adds the parts of a split reduction, always in the same order: the same bits from run to run."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["elements", "splits"])
def add_splits(
    workspace,  # [splits, rows, PLANE, CHANNELS], elements = rows PLANE CHANNELS
    bias,  # [CHANNELS], or None
    total,  # [rows, PLANE, CHANNELS], or channels before the plane
    elements,
    splits,
    PLANE: tl.constexpr,  # pixels of an image, or taps of a filter
    CHANNELS: tl.constexpr,
    PLANE_FIRST: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """total = sum of the parts + bias."""
    element = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    exists = element < elements
    sums = tl.zeros((BLOCK,), workspace.dtype.element_ty)
    parts = workspace + element
    for _ in range(0, splits):
        sums += tl.load(parts, mask=exists, other=0.0)
        parts += elements
    channel = element % CHANNELS
    if bias is not None:
        sums += tl.load(bias + channel, mask=exists, other=0.0).to(sums.dtype)
    if PLANE_FIRST:
        offset = element
    else:
        place = (element // CHANNELS) % PLANE
        offset = (element // (CHANNELS * PLANE) * CHANNELS + channel) * PLANE + place
    tl.store(total + offset, sums.to(total.dtype.element_ty), mask=exists)
