"""Validation of a transposed convolution's arguments, with torch's error types and messages."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from tconv.ops.arguments import TAKE, Numbers, conv_numbers, read
from tconv.ops.conv_check import (
    Sizes,
    Window,
    by,
    check_dimensions,
    check_empty,
    check_groups,
    check_whole,
    check_window,
    checked,
    least_window,
)

FUNCTIONS = {1: torch.conv_transpose1d, 2: torch.conv_transpose2d}


def conv_transpose_window(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: Any,
    dilation: Any,
    axes: int = 2,
) -> tuple[Window, Numbers, Numbers]:
    """Return ``check_conv_transpose`` of a call, cached for repeated arguments.

    Raises:
        TypeError, ValueError, RuntimeError: as ``torch.conv_transpose2d`` does.
    """
    arguments = (input, weight, bias, stride, padding, output_padding, groups, dilation)
    take = TAKE[axes]
    numbers = [take(value) for value in (stride, padding, output_padding, dilation)]
    tensors = isinstance(input, Tensor) and isinstance(weight, Tensor)
    tensors = tensors and (bias is None or isinstance(bias, Tensor))
    if None in numbers or type(groups) is not int or not tensors:
        numbers, groups = _read(axes, arguments)
    try:
        return checked(check_conv_transpose, _known, arguments[:3], *numbers, groups)  # type: ignore[no-any-return]
    except OverflowError:
        _read(axes, arguments)
        raise


def _read(axes: int, arguments: tuple[Any, ...]) -> tuple[list[Numbers | None], int]:
    """Return stride, padding, output padding, dilation and groups, as torch's parser reads them."""
    stride, padding, dilation, _, more, groups = read(FUNCTIONS[axes], *arguments)
    found = {
        "stride": stride,
        "padding": padding,
        "output_padding": more,
        "dilation": dilation,
    }
    return [conv_numbers(name, each, axes) for name, each in found.items()], groups


def check_conv_transpose(
    input: Sizes,
    weight: Sizes,
    bias: Sizes | None,
    strides: Numbers,
    pads: Numbers,
    output_pads: Numbers,
    dilations: Numbers,
    groups: int,
) -> tuple[Window, Numbers, Numbers]:
    """Return the window of the convolution whose input gradient this is, and the extents of y.

        out = (in - 1) stride - 2 padding + dilation (filter - 1) + output_padding + 1

    The last result is the number of pixels by which x must first be padded at the end of each axis:
    an ``output_padding`` of at least the stride, which a dilation allows, reaches windows beyond x.

    Raises:
        RuntimeError: if sizes do not match.
        OverflowError: if a number exceeds 64 bits.
    """
    axes = range(len(strides))
    check_whole(*strides, *pads, *output_pads, *dilations, groups)
    x = check_dimensions(input, weight, len(axes))
    check_window(strides, dilations, groups)
    if min(pads) < 0:
        raise RuntimeError(f"negative padding is not supported: padding={list(pads)}")
    if min(output_pads) < 0:
        raise RuntimeError(f"negative output_padding is not supported: {list(output_pads)}")
    _check_channels(x, weight, bias, groups)
    check_empty(x)
    _check_output_padding(output_pads, strides, dilations)
    size = tuple(
        (x[2 + i] - 1) * strides[i]
        - 2 * pads[i]
        + dilations[i] * (weight[2 + i] - 1)
        + output_pads[i]
        + 1
        for i in axes
    )
    least = 1 if x[0] else 0  # torch lets an empty batch have an empty result
    if any(each < least for each in size):
        raise RuntimeError(
            f"Given input size per channel: ({by(x[2:])}). Calculated output size per channel: "
            f"({by(size)}). Output size is too small"
        )
    more = tuple(output_pads[i] // strides[i] for i in axes)
    y = (x[0], weight[1] * groups, *size)
    return least_window(y, weight, strides, pads, dilations, groups), size, more


def _check_channels(x: Sizes, w: Sizes, bias: Sizes | None, groups: int) -> None:
    check_groups(w, groups)
    if min(w[1:]) == 0:
        raise RuntimeError(f"non-empty weight tensor expected, but got: {list(w)}")
    if x[1] != w[0]:
        raise RuntimeError(
            f"Given transposed=1, weight of size {list(w)}, expected input{list(x)} to have "
            f"{w[0]} channels, but got {x[1]} channels instead"
        )
    filters = w[1] * groups
    if bias is not None and (len(bias) != 1 or bias[0] != filters):
        raise RuntimeError(
            f"Given transposed=1, weight of size {list(w)}, expected bias to be 1-dimensional "
            f"with {filters} elements, but got bias of size {list(bias)} instead"
        )


def _check_output_padding(output_pads: Sizes, strides: Sizes, dilations: Sizes) -> None:
    limits = zip(output_pads, strides, dilations, strict=True)
    if any(more >= max(stride, dilation) for more, stride, dilation in limits):
        named = (
            ("output_padding", output_pads, 0),
            ("stride", strides, 1),
            ("dilation", dilations, 1),
        )
        words = [
            f"{name}_height: {numbers[0] if len(numbers) == 2 else of_a_row} "  # of an image of one
            f"{name}_width: {numbers[-1]}"
            for name, numbers, of_a_row in named
        ]
        raise RuntimeError(
            "output padding must be smaller than either stride or dilation, but got "
            + " ".join(words)
        )


_known = lru_cache(maxsize=4096)(check_conv_transpose)
