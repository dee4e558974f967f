"""The one reference for each operator: fp64, in the fewest words, none of our kernels in it."""

from __future__ import annotations

import torch
from torch import Tensor

from tconv.geometry import ConvGeometry


def _arguments(geometry: ConvGeometry) -> tuple[list[int], list[int], list[int]]:
    return (
        [geometry.stride_h, geometry.stride_w],
        [geometry.pad_h, geometry.pad_w],
        [geometry.dilation_h, geometry.dilation_w],
    )


def conv2d(x: Tensor, w: Tensor, bias: Tensor | None, geometry: ConvGeometry) -> Tensor:
    """y in fp64, on the device of the tensors: torch's own convolution of the inputs raised to fp64."""
    bias64 = None if bias is None else bias.double()
    stride, padding, dilation = _arguments(geometry)
    return torch.nn.functional.conv2d(
        x.double(), w.double(), bias64, stride, padding, dilation, geometry.groups
    )


def _gradient(
    x: Tensor, w: Tensor, dy: Tensor, geometry: ConvGeometry, mask: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    stride, padding, dilation = _arguments(geometry)
    tensors = (dy.double(), x.double(), w.double())
    return torch.ops.aten.convolution_backward(
        *tensors, None, stride, padding, dilation, False, [0, 0], geometry.groups, mask
    )  # type: ignore[no-any-return]


def conv2d_dgrad(dy: Tensor, w: Tensor, geometry: ConvGeometry) -> Tensor:
    """dx in fp64 on the device of the tensors."""
    shape = (geometry.batch, geometry.in_channels, geometry.in_h, geometry.in_w)
    x = dy.new_empty(shape, dtype=torch.float64)
    return _gradient(x, w, dy, geometry, [True, False, False])[0]


def conv2d_wgrad(x: Tensor, dy: Tensor, geometry: ConvGeometry) -> Tensor:
    """dw in fp64 on the device of the tensors."""
    shape = (geometry.out_channels, geometry.group_in_channels)
    w = x.new_empty((*shape, geometry.filter_h, geometry.filter_w), dtype=torch.float64)
    return _gradient(x, w, dy, geometry, [False, True, False])[1]


def tolerance(dtype: str, reduction: int, precision: str = "ieee") -> tuple[float, float]:
    """(rtol, atol) within which a sum of ``reduction`` products of unit-variance numbers lies.

    For 16-bit types the bounds that AMD's AITER uses: atol = max(8 eps, 10 eps
    sqrt(reduction)), rtol 6e-3, 8e-3 or 1.2e-2 below 1024, 4096, and above. eps is that of
    the dtype, or of tf32 (2^-11), over a scale of one.
    """
    if dtype in ("float16", "bfloat16"):
        eps = torch.finfo(getattr(torch, dtype)).eps
        rtol = 6e-3 if reduction < 1024 else 8e-3 if reduction < 4096 else 1.2e-2
        return max(rtol, eps), max(8 * eps, 10 * eps * reduction**0.5)
    eps = 2.0**-11 if precision == "tf32" else torch.finfo(getattr(torch, dtype)).eps
    return 16 * eps, 10 * eps * max(reduction, 1) ** 0.5
