"""What a max-pool refuses, in torch's own error types and words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tconv.geometry import PoolGeometry
from tconv.problem import ITEMSIZE, dtype_name

# torch's position of each argument, and its words for a wrong number of values.
_PAIRS = {
    "kernel_size": (2, "must either be a single int, or a tuple of two ints"),
    "stride": (3, "must either be omitted, a single int, or a tuple of two ints"),
    "padding": (4, "must either be a single int, or a tuple of two ints"),
    "dilation": (5, "must be either a single int, or a tuple of two ints"),
}


def _is_int(value: Any) -> bool:
    return isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool)


def as_pair(name: str, value: Any) -> tuple[int, int]:
    """The argument ``name`` for height and width.

    >>> as_pair("padding", 1)
    (1, 1)
    >>> as_pair("padding", [1, 2])
    (1, 2)
    """
    if _is_int(value):
        return value, value
    place, words = _PAIRS[name]
    must = f"max_pool2d(): argument '{name}' (position {place}) must be tuple of ints"
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"{must}, not {type(value).__name__}")
    for position, part in enumerate(value):
        if not _is_int(part):
            kind = type(part).__name__
            raise TypeError(f"{must}, but found element of type {kind} at pos {position}")
    if len(value) not in (1, 2):
        raise RuntimeError(f"max_pool2d: {name} {words}")
    return value[0], value[-1]


def check_dtype(x: Tensor, operation: str = "max_pool2d") -> None:
    """Floating types only, as torch has it on CUDA."""
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
    """The geometry of a call on (batch, channels, h, w), or without batch.

    Raises:
        RuntimeError: where there is none, as ``pooling_output_shape`` and
            ``pool2d_shape_check`` of ATen/native/Pool.h.
    """
    if len(x_shape) not in (3, 4):
        raise RuntimeError("non-empty 3D or 4D (batch mode) tensor expected for input")
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
