"""What a convolution refuses, in torch's own error types and words."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from tconv.problem import ITEMSIZE, dtype_name


def as_pair(value: int | Sequence[int], name: str) -> list[int]:
    """One number or one for each of height and width."""
    numbers = [value, value] if isinstance(value, (int, torch.SymInt)) else list(value)
    if len(numbers) == 1:
        numbers *= 2
    if len(numbers) != 2:
        raise RuntimeError(f"expected {name} to be a single integer value or a list of 2 values")
    return numbers


Window = tuple[int, ...]  # stride, padding, dilation, for height and width each; groups
Sizes = Sequence[int]
DTYPES = frozenset(getattr(torch, name) for name in ITEMSIZE)


def check_conv2d(
    input: Sizes,
    weight: Sizes,
    bias: Sizes | None,
    stride: int | Sizes,
    padding: int | Sizes | str,
    dilation: int | Sizes,
    groups: int,
) -> tuple[Window, tuple[int, int]]:
    """The window in full, or an error that names what does not fit.

    Beside it: by how many rows at the bottom and columns at the right x must grow first, since
    ``"same"`` may pad by an odd number.
    """
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
    strides, dilations = as_pair(stride, "stride"), as_pair(dilation, "dilation")
    if min(strides) <= 0:
        raise RuntimeError(f"non-positive stride is not supported: stride={strides}")
    if min(dilations) <= 0:
        raise RuntimeError(f"dilation should be greater than zero: dilation={dilations}")
    pads = [0, 0] if isinstance(padding, str) else as_pair(padding, "padding")
    if min(pads) < 0:
        raise RuntimeError(f"negative padding is not supported: padding={pads}")
    _check_channels(x, weight, bias, groups)
    more = (0, 0)
    if isinstance(padding, str):
        pads, more = _named_padding(weight, strides, padding, dilations)
    grown = (*x[:2], x[2] + more[0], x[3] + more[1])
    _check_extent(grown, weight, pads, dilations)
    return (*strides, *pads, *dilations, groups), more


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
) -> tuple[list[int], tuple[int, int]]:
    """``valid`` or ``same``; what is odd of the latter goes to the bottom and right."""
    if padding == "valid":
        return [0, 0], (0, 0)
    if padding != "same":
        raise RuntimeError(f"Invalid padding string: '{padding}'; it is 'valid' or 'same'")
    if max(stride) != 1:
        raise RuntimeError(f"padding='same' is not supported for strided convolutions: {stride}")
    totals = [dilation[i] * (w[2 + i] - 1) for i in range(2)]
    return [total // 2 for total in totals], (totals[0] % 2, totals[1] % 2)


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


def checked(*sizes_and_window: Any) -> tuple[Window, tuple[int, int]]:
    """``check_conv2d``, found again where the same was asked before."""
    if torch.compiler.is_compiling():
        return check_conv2d(*sizes_and_window)
    try:
        return _known(*sizes_and_window)
    except TypeError:  # a list or a symbolic size has no hash
        return check_conv2d(*sizes_and_window)


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
