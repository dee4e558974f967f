"""Validation of a pool's arguments, with torch's own error types and messages."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from tconv.geometry import PoolGeometry
from tconv.ops.arguments import INT, Pair, cached_unless_symbolic, fits, pair, pool_pair, read
from tconv.problem import ITEMSIZE, dtype_name


def max_pool_arguments(
    input: Tensor,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: Any,
    with_indices: bool = False,
) -> tuple[Pair, Pair, Pair, Pair, bool]:
    """Return window, stride, padding, dilation and ceil_mode as plain numbers.

    Raises:
        TypeError, ValueError, RuntimeError: as ``torch.nn.functional.max_pool2d`` does.
    """
    window, pads, gaps = pair(kernel_size), pair(padding), pair(dilation)
    steps = window if stride is None else pair(stride)
    if window and steps and pads and gaps and isinstance(input, Tensor):
        plain = type(ceil_mode) is bool
        if plain and max(window + steps + pads + gaps) < INT.stop:
            return window, steps, pads, gaps, ceil_mode
    numbers = (kernel_size, () if stride is None else stride, padding, dilation, ceil_mode)
    function = torch._C._nn.max_pool2d_with_indices if with_indices else torch.max_pool2d
    *given, ceil_mode = read(function, input, *numbers)
    names = ("kernel_size", "stride", "padding", "dilation")
    return *_pairs("max_pool2d", names, given), ceil_mode  # type: ignore[return-value]


def avg_pool_arguments(
    input: Tensor,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    ceil_mode: Any,
    count_include_pad: Any,
    divisor_override: Any,
) -> tuple[Pair, Pair, Pair, bool, bool, int | None]:
    """Return window, stride, padding, the two flags and the divisor as plain numbers.

    Raises:
        TypeError, ValueError, RuntimeError: as ``torch.nn.functional.avg_pool2d`` does.
    """
    window, pads = pair(kernel_size), pair(padding)
    steps = window if stride is None else pair(stride)
    flags = (ceil_mode, count_include_pad, divisor_override)
    if window and steps and pads and divisor_override is None and isinstance(input, Tensor):
        plain = type(ceil_mode) is bool is type(count_include_pad)
        if plain and max(window + steps + pads) < INT.stop:
            return window, steps, pads, *flags
    numbers = (kernel_size, () if stride is None else stride, padding)
    *given, ceil_mode, count_include_pad, divisor_override = read(
        torch._C._nn.avg_pool2d, input, *numbers, *flags
    )
    pairs = _pairs("avg_pool2d", ("kernel_size", "stride", "padding"), given)
    return *pairs, ceil_mode, count_include_pad, divisor_override  # type: ignore[return-value]


def _pairs(operation: str, names: Sequence[str], given: Sequence[Sequence[int]]) -> list[Pair]:
    """Return each argument for height and width; a missing stride is the window's size."""
    absent = names[1] == "stride" and len(given[1]) == 0
    full = [given[0] if place == 1 and absent else numbers for place, numbers in enumerate(given)]
    return [pool_pair(operation, name, numbers) for name, numbers in zip(names, full, strict=True)]


def check_dtype(x: Tensor, operation: str = "max_pool2d") -> None:
    """Check that the type is floating, as torch requires on CUDA."""
    if dtype_name(x.dtype) not in ITEMSIZE:
        name = x.type().split(".")[-1].removesuffix("Tensor")  # torch.LongTensor
        raise NotImplementedError(f"\"{operation}\" not implemented for '{name}'")


def pool_geometry(
    x_shape: Sequence[int],
    window: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> PoolGeometry:
    """Return the geometry of a call on (batch, channels, h, w) or (channels, h, w).

    Raises:
        RuntimeError: if the sizes are invalid, as ``pooling_output_shape`` and
            ``pool2d_shape_check`` in ATen/native/Pool.h.
    """
    numbers = (tuple(window), tuple(stride), tuple(padding), tuple(dilation), ceil_mode)
    if torch._C._get_tracing_state() is not None:
        return _checked_geometry(x_shape, *numbers)
    sizes = tuple(x_shape), *numbers
    return cached_unless_symbolic(_checked_geometry, _known_geometry, *sizes)


def _checked_geometry(
    x_shape: Sequence[int],
    window: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> PoolGeometry:
    if len(x_shape) not in (3, 4):
        raise RuntimeError("non-empty 3D or 4D (batch mode) tensor expected for input")
    for number in (*window, *stride, *padding, *dilation):
        if not fits(number, INT):
            raise RuntimeError("value cannot be converted to type int without overflow")
    for axis in (0, 1):
        _check_axis(window[axis], stride[axis], padding[axis], dilation[axis])
    batch = x_shape[0] if len(x_shape) == 4 else 1
    channels, in_h, in_w = x_shape[-3:]
    shape = PoolGeometry(
        batch,
        channels,
        in_h,
        in_w,
        *(window[0], window[1], stride[0], stride[1]),
        *(padding[0], padding[1], dilation[0], dilation[1]),
        ceil_mode=ceil_mode,
    )
    _check_window(shape)
    if 0 in tuple(x_shape[-3:]):
        raise RuntimeError(
            "Expected 3D or 4D (batch mode) tensor with optional 0 dim batch size for input, "
            f"but got:{list(x_shape)}"
        )
    _check_extent(shape)
    return shape


_known_geometry = lru_cache(maxsize=4096)(_checked_geometry)


def _check_axis(window: int, stride: int, pad: int, dilation: int) -> None:
    if stride == 0:
        raise RuntimeError("stride should not be zero")
    if pad < 0:
        raise RuntimeError(f"pad must be non-negative, but got pad: {pad}")
    if pad > 0 and 2 * pad > dilation * (window - 1) + 1:
        raise RuntimeError(
            "pad should be at most half of effective kernel size, but got "
            f"pad={pad}, kernel_size={window} and dilation={dilation}"
        )


def _check_window(shape: PoolGeometry) -> None:
    if shape.window_h < 1 or shape.window_w < 1:
        raise RuntimeError(
            "kernel size should be greater than zero, but got "
            f"kH: {shape.window_h} kW: {shape.window_w}"
        )
    if shape.stride_h < 1 or shape.stride_w < 1:
        raise RuntimeError(
            f"stride should be greater than zero, but got dH: {shape.stride_h} dW: {shape.stride_w}"
        )
    if shape.dilation_h < 1 or shape.dilation_w < 1:
        raise RuntimeError(
            "dilation should be greater than zero, but got "
            f"dilationH: {shape.dilation_h} dilationW: {shape.dilation_w}"
        )


def _check_extent(shape: PoolGeometry) -> None:
    if 2 * shape.pad_h > shape.window_h or 2 * shape.pad_w > shape.window_w:
        raise RuntimeError(
            "pad should be smaller than or equal to half of kernel size, but got "
            f"padW = {shape.pad_w}, padH = {shape.pad_h}, "
            f"kW = {shape.window_w}, kH = {shape.window_h}"
        )
    if shape.out_h < 1 or shape.out_w < 1:
        planes = shape.channels
        raise RuntimeError(
            f"Given input size: ({planes}x{shape.in_h}x{shape.in_w}). Calculated output size: "
            f"({planes}x{shape.out_h}x{shape.out_w}). Output size is too small"
        )
