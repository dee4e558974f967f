"""Peak memory of a layer's forward and backward pass, ours and torch's."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from autotune.suites import Layer, PoolLayer
from reports.rows import MemoryRow, rounded
from tconv import functional

MIB = 2**20


@contextlib.contextmanager
def peak_memory(device: torch.device) -> Iterator[Callable[[], float | None]]:
    """Yield a function that returns the block's peak MiB, beyond what was held before it.

    The function returns None if the device keeps no count, as on a CPU.
    """
    if device.type != "cuda":
        yield lambda: None
        return
    gc.collect()
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    yield lambda: (torch.cuda.max_memory_allocated(device) - before) / MIB


def memory_of(layer: Layer | PoolLayer, dtype: str, device: torch.device) -> MemoryRow | None:
    """Return our peak and torch's, both channels_last; None if the device keeps no count."""
    found = []
    for ours in (True, False):
        call = _conv(layer, ours) if isinstance(layer, Layer) else _pool(layer, ours)
        for _ in range(2):  # the first run compiles, which holds extra memory
            with peak_memory(device) as peak_mib:
                _forward_and_backward(layer, call, getattr(torch, dtype), device)
            peak = peak_mib()
        found.append(peak)
    ours_mib, torch_mib = found
    if ours_mib is None or torch_mib is None:
        return None
    operator = "convolution" if isinstance(layer, Layer) else "max-pool"
    figures = (rounded(ours_mib), rounded(torch_mib))
    return MemoryRow(layer.suite, layer.name, operator, dtype, layer.geometry.batch, *figures)


Call = Callable[..., Tensor]


def _conv(layer: Layer, ours: bool) -> Call:
    shape = layer.geometry
    stride, pad = (shape.stride_h, shape.stride_w), (shape.pad_h, shape.pad_w)
    dilation = (shape.dilation_h, shape.dilation_w)
    compute = functional.conv2d if ours else torch.nn.functional.conv2d
    return partial(compute, stride=stride, padding=pad, dilation=dilation, groups=shape.groups)


def _pool(layer: PoolLayer, ours: bool) -> Call:
    shape = layer.geometry
    compute = functional.max_pool2d if ours else torch.nn.functional.max_pool2d
    return partial(  # type: ignore[return-value,call-arg]
        compute, kernel_size=(shape.window_h, shape.window_w),
        stride=(shape.stride_h, shape.stride_w), padding=(shape.pad_h, shape.pad_w),
        dilation=(shape.dilation_h, shape.dilation_w), ceil_mode=shape.ceil_mode,
    )  # fmt: skip


def _forward_and_backward(
    layer: Layer | PoolLayer, call: Call, dtype: torch.dtype, device: torch.device
) -> None:
    shape = layer.geometry
    channels = shape.in_channels if isinstance(layer, Layer) else shape.channels  # type: ignore[union-attr]
    sizes = [(shape.batch, channels, shape.in_h, shape.in_w)]
    if isinstance(layer, Layer):
        conv = layer.geometry
        sizes.append((conv.out_channels, conv.group_in_channels, conv.filter_h, conv.filter_w))
    operands = [
        torch.randn(size, device=device, dtype=dtype)
        .contiguous(memory_format=torch.channels_last)
        .requires_grad_()
        for size in sizes
    ]
    y = call(*operands)
    y.backward(torch.ones_like(y))
