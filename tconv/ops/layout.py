"""Memory formats: which one torch gives a result, and conversion of tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tconv.problem import Layout


def prefers_channels_last(tensor: Tensor) -> bool:
    """Return whether torch treats a (batch, channels, h, w) tensor as channels_last.

    The strides decide, as in ``suggest_memory_format`` in c10/core/MemoryFormat.h: channels vary
    fastest, then columns, then rows. If both formats fit (for example with one channel), torch
    chooses contiguous, as it does for channels expanded from one.
    """
    return strides_prefer_channels_last(tensor.shape, tensor.stride())


def strides_prefer_channels_last(size: Sequence[int], strides: Sequence[int]) -> bool:
    """Return the same for a tensor with this ``size`` and these ``strides``."""
    if len(size) != 4 or strides[1] == 0:
        return False
    least = 0
    for dim in (1, 3, 2, 0):
        if size[dim] == 0 or strides[dim] < least:
            return False
        if dim == 0 and least == strides[1]:
            return False
        least = strides[dim] * size[dim] if size[dim] > 1 else strides[dim]
    return True


def layout_of(channels_last: bool) -> Layout:
    return "nhwc" if channels_last else "nchw"


def memory_format(layout: Layout) -> torch.memory_format:
    return torch.channels_last if layout == "nhwc" else torch.contiguous_format


def strides_of(size: Sequence[int], layout: Layout) -> tuple[int, ...]:
    """Return the strides that torch gives a fresh four-dimensional tensor in ``layout``.

    >>> strides_of((2, 3, 5, 7), "nhwc")
    (105, 1, 21, 3)
    """
    return torch.empty(size, device="meta", memory_format=memory_format(layout)).stride()


def empty(
    like: Tensor, size: Sequence[int], layout: Layout, dtype: torch.dtype | None = None
) -> Tensor:
    """Return a fresh tensor in ``layout`` with the device, and by default the dtype, of another."""
    return torch.empty(
        tuple(size),
        dtype=dtype or like.dtype,
        device=like.device,
        memory_format=memory_format(layout),
    )


def dense(tensor: Tensor, layout: Layout) -> Tensor:
    """Return the tensor itself if it is dense in ``layout``, otherwise a dense copy."""
    return tensor.contiguous(memory_format=memory_format(layout))
