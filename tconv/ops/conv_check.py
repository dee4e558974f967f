"""What a convolution refuses, in torch's own error types and words."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from tconv.ops.arguments import INT64, Pair, conv_pair, pair, read, untraced
from tconv.problem import ITEMSIZE, dtype_name

Window = tuple[int, ...]  # stride, padding, dilation, for height and width each; groups
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
) -> tuple[Window, tuple[int, int]]:
    """``check_conv2d`` of a call, found again where the same was asked before.

    Raises:
        TypeError, ValueError, RuntimeError: as ``torch.conv2d`` does.
    """
    steps, gaps = pair(stride), pair(dilation)
    pads = padding if type(padding) is str else pair(padding)
    if not (steps and pads and gaps and type(groups) is int) or not (
        isinstance(input, Tensor)
        and isinstance(weight, Tensor)
        and (bias is None or isinstance(bias, Tensor))
    ):
        arguments = (input, weight, bias, stride, padding, dilation, groups)
        steps, pads, gaps, groups = read_conv_arguments(*arguments)
    if torch._C._get_tracing_state() is not None:
        with untraced():
            return conv_window(input, weight, bias, steps, pads, gaps, groups)
    bias_size = None if bias is None else bias.shape
    try:
        # Plain numbers only: to the cache 2.0 and True would be 2 and 1.
        check = check_conv2d if torch.compiler.is_compiling() else _known
        return check(input.shape, weight.shape, bias_size, steps, pads, gaps, groups)
    except TypeError:  # a symbolic size has no hash
        return check_conv2d(input.shape, weight.shape, bias_size, steps, pads, gaps, groups)
    except OverflowError:
        read_conv_arguments(input, weight, bias, stride, padding, dilation, groups)
        raise


def read_conv_arguments(*arguments: Any) -> tuple[Pair, Pair | str, Pair, int]:
    """Stride, padding (or its name), dilation and groups, as torch's parser reads them."""
    stride, pads, dilation, _, _, groups = read(torch.conv2d, *arguments)
    padding = arguments[4]
    if isinstance(padding, (str, bytes)):
        pads = padding if isinstance(padding, str) else padding.decode()
    else:
        pads = conv_pair("padding", pads)
    return conv_pair("stride", stride), pads, conv_pair("dilation", dilation), groups


def check_conv2d(
    input: Sizes,
    weight: Sizes,
    bias: Sizes | None,
    strides: Pair,
    padding: Pair | str,
    dilations: Pair,
    groups: int,
) -> tuple[Window, tuple[int, int]]:
    """The window in full, or an error that names what does not fit.

    Beside it: by how many rows at the bottom and columns at the right x must grow first, since
    ``"same"`` may pad by an odd number. Strides and dilations that move nothing are made small:
    a window that fits once takes no step, and a filter of extent 1 has no gaps.

    Raises:
        RuntimeError: for sizes that do not go together.
        OverflowError: for a number beyond 64 bits.
    """
    for number in (*strides, *padding, *dilations, groups):
        # Compared, not looked up in a range: a size that Dynamo traces is no constant.
        if type(number) is int and not INT64.start <= number < INT64.stop:
            raise OverflowError(f"{number} is beyond 64 bits")
    x = (1, *input) if len(input) == 3 else input
    if len(weight) != 4 or len(x) != 4:
        if len(weight) in (3, 4):
            raise RuntimeError(
                f"Expected {len(weight)}-dimensional input for {len(weight)}-dimensional weight "
                f"{list(weight)}, but got {len(input)}-dimensional input of size "
                f"{list(input)} instead"
            )
        raise RuntimeError(f"weight should have 4 dimensions, but has size {list(weight)}")
    if groups <= 0:
        raise RuntimeError(f"non-positive groups is not supported: groups={groups}")
    if min(strides) <= 0:
        raise RuntimeError(f"non-positive stride is not supported: stride={list(strides)}")
    if min(dilations) <= 0:
        raise RuntimeError(f"dilation should be greater than zero: dilation={list(dilations)}")
    pads = (0, 0) if isinstance(padding, str) else padding
    if min(pads) < 0:
        raise RuntimeError(f"negative padding is not supported: padding={list(pads)}")
    _check_channels(x, weight, bias, groups)
    more = (0, 0)
    if isinstance(padding, str):
        pads, more = _named_padding(weight, strides, padding, dilations)
    grown = (*x[:2], x[2] + more[0], x[3] + more[1])
    _check_extent(grown, weight, pads, dilations)
    gaps = [dilations[i] if weight[2 + i] > 1 else 1 for i in range(2)]
    steps = [_least_stride(strides[i], grown[2 + i] + 2 * pads[i] - gaps[i] * (weight[2 + i] - 1))
             for i in range(2)]  # fmt: skip
    return (*steps, *pads, *gaps, groups), more


def _least_stride(stride: int, places: int) -> int:
    """The least stride that gives as many windows, of so many places where one may begin."""
    return stride if stride <= places else places


def _check_channels(x: Sizes, w: Sizes, bias: Sizes | None, groups: int) -> None:
    filters = w[0]
    if filters < groups:
        raise RuntimeError(
            f"Given groups={groups}, expected weight to be at least {groups} at dimension 0, "
            f"but got weight of size {list(w)} instead"
        )
    if filters % groups:
        raise RuntimeError(
            f"Given groups={groups}, expected weight to be divisible by {groups} at dimension 0, "
            f"but got weight of size {list(w)} instead"
        )
    if x[1] != w[1] * groups:
        raise RuntimeError(
            f"Given groups={groups}, weight of size {list(w)}, "
            f"expected input{list(x)} to have {w[1] * groups} channels, "
            f"but got {x[1]} channels instead"
        )
    if bias is not None and (len(bias) != 1 or bias[0] != filters):
        raise RuntimeError(
            f"Given weight of size {list(w)}, expected bias to be 1-dimensional with "
            f"{filters} elements, but got bias of size {list(bias)} instead"
        )


def _named_padding(
    w: Sizes, stride: Sizes, padding: str, dilation: Sizes
) -> tuple[Pair, tuple[int, int]]:
    """``valid`` or ``same``; what is odd of the latter goes to the bottom and right."""
    if padding == "valid":
        return (0, 0), (0, 0)
    if padding != "same":
        raise RuntimeError(f"Invalid padding string: '{padding}'; it is 'valid' or 'same'")
    if max(stride) != 1:
        raise RuntimeError(f"padding='same' is not supported for strided convolutions: {stride}")
    down, across = (dilation[i] * (w[2 + i] - 1) for i in range(2))
    return (down // 2, across // 2), (down % 2, across % 2)


def _check_extent(x: Sizes, w: Sizes, pads: Sizes, dilation: Sizes) -> None:
    if min(w[1:]) == 0:
        raise RuntimeError(f"weight should have no dimension of size 0, but has {list(w)}")
    padded = [x[2 + i] + 2 * pads[i] for i in range(2)]
    reach = [dilation[i] * (w[2 + i] - 1) + 1 for i in range(2)]
    if padded[0] < reach[0] or padded[1] < reach[1]:
        raise RuntimeError(
            f"Calculated padded input size per channel: ({padded[0]} x {padded[1]}). "
            f"Kernel size: ({reach[0]} x {reach[1]}). "
            "Kernel size can't be greater than actual input size"
        )
    if x[0] != 0 and 0 in x:  # padding alone would give a result, but torch gives none
        raise RuntimeError(
            f"Only zero batch or zero channel inputs are supported, but got input shape: {list(x)}"
        )


_known = lru_cache(maxsize=4096)(check_conv2d)


def check_residual(residual: Sizes, y: Sizes) -> None:
    """A residual is added element by element."""
    if tuple(residual) != tuple(y):
        raise RuntimeError(
            f"expected residual of the size of the result, {list(y)}, but got {list(residual)}"
        )


def check_types(x: Tensor, w: Tensor, bias: Tensor | None, residual: Tensor | None = None) -> None:
    """One dtype and one device for all, and a dtype that the kernels know."""
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
    """A batch normalization's weight, bias, mean and variance: a number for each channel."""
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
