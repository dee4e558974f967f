"""Validation of a convolution's arguments, with torch's own error types and messages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from tconv.ops.arguments import (
    INT64,
    TAKE,
    Numbers,
    cached_unless_symbolic,
    conv_numbers,
    fits,
    read,
    untraced,
)
from tconv.problem import ITEMSIZE, dtype_name

Window = tuple[int, ...]  # stride, padding, dilation, each for every axis; groups
Sizes = Sequence[int]
DTYPES = frozenset(getattr(torch, name) for name in ITEMSIZE)


def conv_window(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    axes: int = 2,
) -> tuple[Window, Numbers]:
    """Return ``check_conv`` of a call, cached for repeated arguments.

    Args:
        axes: 2 for images, 1 for sequences.

    Raises:
        TypeError, ValueError, RuntimeError: as ``torch.conv2d`` or ``torch.conv1d`` does.
    """
    take = TAKE[axes]
    steps, gaps = take(stride), take(dilation)
    pads = padding if type(padding) is str else take(padding)
    arguments = (input, weight, bias, stride, padding, dilation, groups)
    if not (steps and pads and gaps and type(groups) is int and _are_tensors(input, weight, bias)):
        steps, pads, gaps, groups = read_conv_arguments(axes, *arguments)
    try:
        return checked(check_conv, _known, (input, weight, bias), steps, pads, gaps, groups)
    except OverflowError:
        read_conv_arguments(axes, *arguments)
        raise


def _are_tensors(input: Any, weight: Any, bias: Any) -> bool:
    return (
        isinstance(input, Tensor)
        and isinstance(weight, Tensor)
        and (bias is None or isinstance(bias, Tensor))
    )


def checked(
    check: Callable[..., Any],
    known: Callable[..., Any],
    tensors: Sequence[Tensor | None],
    *numbers: Any,
) -> Any:
    """Call ``check`` with tensor sizes and plain numbers; ``known`` is its cached version."""
    if torch._C._get_tracing_state() is not None:
        with untraced():
            return checked(check, known, tensors, *numbers)
    sizes = [None if tensor is None else tensor.shape for tensor in tensors]
    return cached_unless_symbolic(check, known, *sizes, *numbers)


def read_conv_arguments(axes: int, *arguments: Any) -> tuple[Numbers, Numbers | str, Numbers, int]:
    """Return stride, padding (or its name), dilation and groups, as torch's parser reads them."""
    function = torch.conv2d if axes == 2 else torch.conv1d
    stride, pads, dilation, _, _, groups = read(function, *arguments)
    padding = arguments[4]
    if isinstance(padding, (str, bytes)):
        pads = padding if isinstance(padding, str) else padding.decode()
    else:
        pads = conv_numbers("padding", pads, axes)
    steps, gaps = (conv_numbers(name, numbers, axes)
                   for name, numbers in (("stride", stride), ("dilation", dilation)))  # fmt: skip
    return steps, pads, gaps, groups


def check_conv(
    input: Sizes,
    weight: Sizes,
    bias: Sizes | None,
    strides: Numbers,
    padding: Numbers | str,
    dilations: Numbers,
    groups: int,
) -> tuple[Window, Numbers]:
    """Return the complete window, or raise an error that names the mismatch.

    The second result is the number of pixels by which x must first be padded at the end of each
    axis, since ``"same"`` may pad by an odd total. Strides and dilations without an effect are
    reduced: a window that fits once takes no step, and a filter of size 1 has no gaps.

    Raises:
        RuntimeError: if sizes do not match.
        OverflowError: if a number exceeds 64 bits.
    """
    axes = range(len(strides))
    check_whole(*strides, *padding, *dilations, groups)
    x = check_dimensions(input, weight, len(axes))
    check_window(strides, dilations, groups)
    pads = (0,) * len(axes) if isinstance(padding, str) else padding
    if min(pads) < 0:
        raise RuntimeError(f"negative padding is not supported: padding={list(pads)}")
    _check_channels(x, weight, bias, groups)
    more: Numbers = (0,) * len(axes)
    if isinstance(padding, str):
        pads, more = _named_padding(weight, strides, padding, dilations)
    grown = (*x[:2], *(x[2 + i] + more[i] for i in axes))
    _check_extent(grown, weight, pads, dilations)
    return least_window(grown, weight, strides, pads, dilations, groups), more


def check_whole(*numbers: Any) -> None:
    """Check that the numbers of a window have at most 64 bits."""
    for number in numbers:
        # Compare instead of looking up a range: a size that Dynamo traces is not a constant.
        if not fits(number, INT64):
            raise OverflowError(f"{number} is beyond 64 bits")


def check_dimensions(input: Sizes, weight: Sizes, axes: int) -> Sizes:
    """Return x's size with a batch; check that x and the filters have ``axes`` + 2 axes."""
    x = (1, *input) if len(input) == axes + 1 else input
    if len(weight) == axes + 2 == len(x):
        return x
    if len(weight) in (axes + 1, axes + 2) and len(weight) > 2:
        raise RuntimeError(
            f"Expected {len(weight)}-dimensional input for {len(weight)}-dimensional weight "
            f"{list(weight)}, but got {len(input)}-dimensional input of size "
            f"{list(input)} instead"
        )
    raise RuntimeError(
        f"weight should have at least three dimensions, {axes + 2} for this convolution, but has "
        f"size {list(weight)}"
    )


def check_window(strides: Numbers, dilations: Numbers, groups: int) -> None:
    """Check that strides, dilations and the number of groups are positive."""
    if groups <= 0:
        raise RuntimeError(f"non-positive groups is not supported: groups={groups}")
    if min(strides) <= 0:
        raise RuntimeError(f"non-positive stride is not supported: stride={list(strides)}")
    if min(dilations) <= 0:
        raise RuntimeError(f"dilation should be greater than zero: dilation={list(dilations)}")


def least_window(
    x: Sizes, weight: Sizes, strides: Sizes, pads: Sizes, dilations: Sizes, groups: int
) -> Window:
    """Return the complete window, with the least strides and dilations of the same effect."""
    axes = range(len(strides))
    gaps = [dilations[i] if weight[2 + i] > 1 else 1 for i in axes]
    steps = [_least_stride(strides[i], x[2 + i] + 2 * pads[i] - gaps[i] * (weight[2 + i] - 1))
             for i in axes]  # fmt: skip
    return (*steps, *pads, *gaps, groups)


def _least_stride(stride: int, places: int) -> int:
    """Return the least stride that gives as many windows, with ``places`` possible starts."""
    return stride if stride <= places else max(places, 1)  # an empty axis has no start


def check_groups(w: Sizes, groups: int) -> None:
    """Check that the groups divide the first dimension of the filters."""
    if w[0] < groups:
        raise RuntimeError(
            f"Given groups={groups}, expected weight to be at least {groups} at dimension 0, "
            f"but got weight of size {list(w)} instead"
        )
    if w[0] % groups:
        raise RuntimeError(
            f"Given groups={groups}, expected weight to be divisible by {groups} at dimension 0, "
            f"but got weight of size {list(w)} instead"
        )


def _check_channels(x: Sizes, w: Sizes, bias: Sizes | None, groups: int) -> None:
    check_groups(w, groups)
    if x[1] != w[1] * groups:
        raise RuntimeError(
            f"Given groups={groups}, weight of size {list(w)}, "
            f"expected input{list(x)} to have {w[1] * groups} channels, "
            f"but got {x[1]} channels instead"
        )
    if bias is not None and (len(bias) != 1 or bias[0] != w[0]):
        raise RuntimeError(
            f"Given weight of size {list(w)}, expected bias to be 1-dimensional with "
            f"{w[0]} elements, but got bias of size {list(bias)} instead"
        )


def _named_padding(
    w: Sizes, stride: Sizes, padding: str, dilation: Sizes
) -> tuple[Numbers, Numbers]:
    """Return the padding for ``valid`` or ``same``, with an odd rest at the end of each axis."""
    if padding == "valid":
        return (0,) * len(stride), (0,) * len(stride)
    if padding != "same":
        raise RuntimeError(f"Invalid padding string: '{padding}'; it is 'valid' or 'same'")
    if max(stride) != 1:
        raise RuntimeError(f"padding='same' is not supported for strided convolutions: {stride}")
    total = [dilation[i] * (w[2 + i] - 1) for i in range(len(stride))]
    return tuple(each // 2 for each in total), tuple(each % 2 for each in total)


def _check_extent(x: Sizes, w: Sizes, pads: Sizes, dilation: Sizes) -> None:
    if min(w[1:]) == 0:
        raise RuntimeError(f"weight should have no dimension of size 0, but has {list(w)}")
    axes = range(len(pads))
    padded = [x[2 + i] + 2 * pads[i] for i in axes]
    reach = [dilation[i] * (w[2 + i] - 1) + 1 for i in axes]
    if any(padded[i] < reach[i] for i in axes):
        raise RuntimeError(
            f"Calculated padded input size per channel: ({by(padded)}). "
            f"Kernel size: ({by(reach)}). "
            "Kernel size can't be greater than actual input size"
        )
    check_empty(x)


def by(sizes: Sequence[Any]) -> str:
    """Format sizes as torch does.

    >>> by([3, 4])
    '3 x 4'
    """
    return " x ".join(map(str, sizes))


def check_empty(x: Sizes) -> None:
    """Check that only the batch is empty: padding alone would allow a result, but torch raises."""
    if x[0] != 0 and 0 in x:
        raise RuntimeError(
            f"Only zero batch or zero channel inputs are supported, but got input shape: {list(x)}"
        )


_known = lru_cache(maxsize=4096)(check_conv)


def check_residual(residual: Sizes, y: Sizes) -> None:
    """Check that a residual has the size of the result."""
    if tuple(residual) != tuple(y):
        raise RuntimeError(
            f"expected residual of the size of the result, {list(y)}, but got {list(residual)}"
        )


def check_types(x: Tensor, w: Tensor, bias: Tensor | None, residual: Tensor | None = None) -> None:
    """Check that all tensors have one device and one dtype that the kernels support."""
    dtype, device = x.dtype, x.device
    for name, other in (("weight", w), ("bias", bias), ("residual", residual)):
        if other is None:
            continue
        if other.dtype is not dtype:
            raise RuntimeError(
                f"Input type ({dtype_name(dtype)}) and {name} type ({dtype_name(other.dtype)}) "
                "should be the same"
            )
        if other.device != device:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but input is on {device} "
                f"and {name} is on {other.device}"
            )
    if dtype not in DTYPES:
        raise NotImplementedError(f"\"tconv::conv2d\" not implemented for '{dtype_name(dtype)}'")


def check_norm(norm: Sequence[Tensor | None], channels: int, device: torch.device) -> None:
    """Check a batch normalization's weight, bias, mean and variance: one number per channel."""
    names = ("norm_weight", "norm_bias", "running_mean", "running_var")
    for name, tensor in zip(names, norm, strict=True):
        if tensor is None:
            continue
        if tensor.dim() != 1 or tensor.shape[0] != channels:
            raise RuntimeError(
                f"expected {name} to be 1-dimensional with {channels} elements, "
                f"but got size {list(tensor.shape)}"
            )
        if tensor.dtype not in DTYPES:
            raise RuntimeError(f"expected {name} of a floating dtype, not {tensor.dtype}")
        if tensor.device != device:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but input is on {device} "
                f"and {name} is on {tensor.device}"
            )


def check_norm_given(
    weight: Tensor | None, bias: Tensor | None, mean: Tensor | None, var: Tensor | None
) -> None:
    """Refuse a batch normalization without both of its statistics.

    Raises:
        ValueError: if one statistic is given alone, or a weight or bias without statistics.
    """
    if (mean is None) != (var is None):
        raise ValueError("running_mean and running_var must be given together")
    if mean is None and (weight is not None or bias is not None):
        raise ValueError("norm_weight and norm_bias need running_mean and running_var")
