"""Memory formats: which one torch would give a result, and tensors brought into it."""

from __future__ import annotations

import torch
from torch import Tensor

from tconv.problem import Layout


def prefers_channels_last(tensor: Tensor) -> bool:
    """Whether torch takes a (batch, channels, h, w) tensor for a channels_last one.

    By its strides, as ``suggest_memory_format`` in c10/core/MemoryFormat.h: channels vary
    fastest, then columns, then rows. Where both formats fit (one channel, say), torch says
    contiguous, as it does of channels that are expanded from one.
    """
    if tensor.dim() != 4 or tensor.stride(1) == 0:
        return False
    least = 0
    for dim in (1, 3, 2, 0):
        size, stride = tensor.size(dim), tensor.stride(dim)
        if size == 0 or stride < least:
            return False
        if dim == 0 and least == tensor.stride(1):
            return False
        least = stride * size if size > 1 else stride
    return True


def layout_of(channels_last: bool) -> Layout:
    return "nhwc" if channels_last else "nchw"


def memory_format(layout: Layout) -> torch.memory_format:
    return torch.channels_last if layout == "nhwc" else torch.contiguous_format


def nhwc(tensor: Tensor) -> Tensor:
    """The tensor dense in channels_last order, which the convolution kernels read."""
    return tensor.contiguous(memory_format=torch.channels_last)
