"""What a convolution refuses, in torch's own error types and words."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from tconv.problem import ITEMSIZE, dtype_name

Pair = list[int]


def as_pair(value: int | Sequence[int], name: str) -> Pair:
    """One number or one for each of height and width."""
    numbers = [value, value] if isinstance(value, (int, torch.SymInt)) else list(value)
    if len(numbers) == 1:
        numbers *= 2
    if len(numbers) != 2:
        raise RuntimeError(f"expected {name} to be a single integer value or a list of 2 values")
    return numbers


def check_conv2d(
    input: Tensor,
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    stride: int | Sequence[int],
    padding: int | Sequence[int] | str,
    dilation: int | Sequence[int],
    groups: int,
) -> tuple[Tensor, tuple[Pair, Pair, Pair, int]]:
    """The batched input and the window in full, or an error that names what does not fit."""
    if w.dim() != 4 or x.dim() != 4:
        if w.dim() in (3, 4):
            raise RuntimeError(
                f"Expected {w.dim()}-dimensional input for {w.dim()}-dimensional weight "
                f"{list(w.shape)}, but got {input.dim()}-dimensional input of size "
                f"{list(input.shape)} instead"
            )
        raise RuntimeError(f"weight should have 4 dimensions, but has size {list(w.shape)}")
    if groups <= 0:
        raise RuntimeError(f"non-positive groups is not supported: groups={groups}")
    stride, dilation = as_pair(stride, "stride"), as_pair(dilation, "dilation")
    if min(stride) <= 0:
        raise RuntimeError(f"non-positive stride is not supported: stride={stride}")
    if min(dilation) <= 0:
        raise RuntimeError(f"dilation should be greater than zero: dilation={dilation}")
    pads = [0, 0] if isinstance(padding, str) else as_pair(padding, "padding")
    if min(pads) < 0:
        raise RuntimeError(f"negative padding is not supported: padding={pads}")
    _check_channels(x, w, bias, groups)
    if isinstance(padding, str):
        x, pads = _named_padding(x, w, stride, padding, dilation)
    _check_extent(x, w, pads, dilation)
    return x, (stride, pads, dilation, groups)


def _check_channels(x: Tensor, w: Tensor, bias: Tensor | None, groups: int) -> None:
    filters = w.shape[0]
    if filters < groups:
        raise RuntimeError(
            f"Given groups={groups}, expected weight to be at least {groups} at dimension 0, "
            f"but got weight of size {list(w.shape)} instead"
        )
    if filters % groups:
        raise RuntimeError(
            f"Given groups={groups}, expected weight to be divisible by {groups} at dimension 0, "
            f"but got weight of size {list(w.shape)} instead"
        )
    if x.shape[1] != w.shape[1] * groups:
        raise RuntimeError(
            f"Given groups={groups}, weight of size {list(w.shape)}, "
            f"expected input{list(x.shape)} to have {w.shape[1] * groups} channels, "
            f"but got {x.shape[1]} channels instead"
        )
    if bias is not None and (bias.dim() != 1 or bias.shape[0] != filters):
        raise RuntimeError(
            f"Given weight of size {list(w.shape)}, expected bias to be 1-dimensional with "
            f"{filters} elements, but got bias of size {list(bias.shape)} instead"
        )


def _named_padding(
    x: Tensor, w: Tensor, stride: Pair, padding: str, dilation: Pair
) -> tuple[Tensor, Pair]:
    """``valid`` or ``same``; what is odd of the latter is padded at the bottom and right."""
    if padding == "valid":
        return x, [0, 0]
    if padding != "same":
        raise RuntimeError(f"Invalid padding string: '{padding}'; it is 'valid' or 'same'")
    if max(stride) != 1:
        raise RuntimeError(f"padding='same' is not supported for strided convolutions: {stride}")
    totals = [dilation[i] * (w.shape[2 + i] - 1) for i in range(2)]
    if totals[0] % 2 or totals[1] % 2:
        x = pad(x, (0, totals[1] % 2, 0, totals[0] % 2))
    return x, [total // 2 for total in totals]


def _check_extent(x: Tensor, w: Tensor, pads: Pair, dilation: Pair) -> None:
    if min(w.shape[1:]) == 0:
        raise RuntimeError(f"weight should have no dimension of size 0, but has {list(w.shape)}")
    if x.shape[1] == 0 or (min(x.shape[2:]) == 0 and max(pads) == 0):
        raise RuntimeError(
            f"non-empty 3D or 4D input tensor expected but got a tensor with sizes {list(x.shape)}"
        )
    padded = [x.shape[2 + i] + 2 * pads[i] for i in range(2)]
    reach = [dilation[i] * (w.shape[2 + i] - 1) + 1 for i in range(2)]
    if padded[0] < reach[0] or padded[1] < reach[1]:
        raise RuntimeError(
            f"Calculated padded input size per channel: ({padded[0]} x {padded[1]}). "
            f"Kernel size: ({reach[0]} x {reach[1]}). "
            "Kernel size can't be greater than actual input size"
        )


def check_types(x: Tensor, w: Tensor, bias: Tensor | None) -> None:
    """One dtype and one device for all, and a dtype that the kernels know."""
    for name, other in (("weight", w), ("bias", bias)):
        if other is None:
            continue
        if other.dtype != x.dtype:
            raise RuntimeError(
                f"Input type ({dtype_name(x.dtype)}) and {name} type ({dtype_name(other.dtype)}) "
                "should be the same"
            )
        if other.device != x.device:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but input is on {x.device} "
                f"and {name} is on {other.device}"
            )
    if dtype_name(x.dtype) not in ITEMSIZE:
        raise NotImplementedError(f"\"tconv::conv2d\" not implemented for '{dtype_name(x.dtype)}'")
