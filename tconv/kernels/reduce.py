"""Sum of the parts of a split reduction, in a fixed order: the same bits from run to run."""

import triton
import triton.language as tl

from tconv.kernels.epilogue import channel_terms, epilogue, store_result


@triton.jit(do_not_specialize=["elements", "splits", "plane"])
def add_splits(
    workspace,  # [splits, rows, plane, WIDTH]
    bias,  # [CHANNELS], or None; so may be batch normalization's four
    norm_weight,
    norm_bias,
    norm_mean,
    norm_var,
    residual,  # as the total, or None
    total,  # [rows, plane, CHANNELS], elements in all, or channels before the plane
    kept,  # the activation's argument, as the total; or None
    elements,
    splits,
    plane,  # pixels of an image, or taps of a filter
    CHANNELS: tl.constexpr,
    WIDTH: tl.constexpr,  # at least CHANNELS: what lies beyond is dropped
    PLANE_FIRST: tl.constexpr,
    EPS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr,
    RESIDUAL_AFTER: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """total = the epilogue of the sum of the parts."""
    element = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    mask = element < elements
    sums = tl.zeros((BLOCK,), workspace.dtype.element_ty)
    channel = element % CHANNELS
    parts = workspace + (element // CHANNELS * WIDTH + channel)
    for _ in range(0, splits):
        sums += tl.load(parts, mask=mask, other=0.0)
        parts += (elements // CHANNELS).to(INDEX) * WIDTH
    if PLANE_FIRST:
        offset = element
    else:
        pixel = element // CHANNELS
        offset = (pixel // plane * CHANNELS + channel) * plane + pixel % plane
    more = None
    if residual is not None:
        more = tl.load(residual + offset, mask=mask, other=0.0)
    add, scale, shift = channel_terms(
        bias, norm_weight, norm_bias, norm_mean, norm_var, channel, mask, EPS, sums.dtype
    )
    result, argument = epilogue(
        sums, add, scale, shift, more, bias, norm_mean, ACTIVATION, SLOPE, RESIDUAL_AFTER, False
    )
    store_result(total, kept, None, offset, mask, result, argument, None)
