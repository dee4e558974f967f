"""The fp64 reference of each operator, short and independent of our kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from tconv.geometry import ConvGeometry, PoolGeometry


def _arguments(geometry: ConvGeometry) -> tuple[list[int], list[int], list[int]]:
    return (
        [geometry.stride_h, geometry.stride_w],
        [geometry.pad_h, geometry.pad_w],
        [geometry.dilation_h, geometry.dilation_w],
    )


def conv2d(x: Tensor, w: Tensor, bias: Tensor | None, geometry: ConvGeometry) -> Tensor:
    """Return y in fp64 on the tensors' device, by torch's own convolution."""
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
    """Return dx in fp64 on the tensors' device."""
    shape = (geometry.batch, geometry.in_channels, geometry.in_h, geometry.in_w)
    x = dy.new_empty(shape, dtype=torch.float64)
    return _gradient(x, w, dy, geometry, [True, False, False])[0]


def conv2d_wgrad(x: Tensor, dy: Tensor, geometry: ConvGeometry) -> Tensor:
    """Return dw in fp64 on the tensors' device."""
    shape = (geometry.out_channels, geometry.group_in_channels)
    w = x.new_empty((*shape, geometry.filter_h, geometry.filter_w), dtype=torch.float64)
    return _gradient(x, w, dy, geometry, [False, True, False])[1]


def tolerance(dtype: str, reduction: int, precision: str = "ieee") -> tuple[float, float]:
    """Return (rtol, atol) for a sum of ``reduction`` products of unit-variance numbers.

    16-bit types use the bounds of AMD's AITER: atol = max(8 eps, 10 eps sqrt(reduction)), rtol
    6e-3, 8e-3 or 1.2e-2 for reductions below 1024, below 4096, and above. eps is that of the dtype,
    or of tf32 (2^-11), on a scale of one. For wider types the rounding of the sums counts too, as
    does that of the fp64 reference: each addition errs by up to eps/2 of a partial sum of about
    sqrt(reduction), in total a fraction of eps reduction.
    """
    if dtype in ("float16", "bfloat16"):
        eps = torch.finfo(getattr(torch, dtype)).eps
        rtol = 6e-3 if reduction < 1024 else 8e-3 if reduction < 4096 else 1.2e-2
        return max(rtol, eps), max(8 * eps, 10 * eps * reduction**0.5)
    sums = torch.finfo(getattr(torch, dtype)).eps
    eps = 2.0**-11 if precision == "tf32" else sums
    return 16 * eps, 10 * eps * max(reduction, 1) ** 0.5 + sums * reduction


# ---- max-pool -------------------------------------------------------------------------------


def _window_places(
    in_size: int, out: int, extent: int, stride: int, pad: int, dilation: int
) -> tuple[Tensor, Tensor]:
    """Return (places, inside), each (out, extent), of the windows on an axis, places clamped."""
    start = torch.arange(out)[:, None] * stride - pad
    places = start + torch.arange(extent) * dilation
    return places.clamp(0, in_size - 1), (places >= 0) & (places < in_size)


def max_pool2d(x: Tensor, geometry: PoolGeometry) -> tuple[Tensor, Tensor]:
    """Return (y, indices) of x (batch, channels, in_h, in_w): y in fp64, indices as torch's.

    The first maximum wins. A NaN wins over any number, and the last of several NaN wins. A window
    with nothing but -inf has the index of its first element, one with nothing but padding has -1.
    """
    shape = geometry
    down = (shape.in_h, shape.out_h, shape.window_h, shape.stride_h, shape.pad_h, shape.dilation_h)
    across = (
        shape.in_w, shape.out_w, shape.window_w, shape.stride_w, shape.pad_w, shape.dilation_w
    )  # fmt: skip
    rows, row_inside = (t.to(x.device)[:, None, :, None] for t in _window_places(*down))
    columns, column_inside = (t.to(x.device)[None, :, None, :] for t in _window_places(*across))
    # (..., out_h, out_w, taps), taps in the order of comparison
    inside = (row_inside & column_inside).flatten(-2)
    places = (rows * shape.in_w + columns).flatten(-2)
    taken = x.double()[..., rows, columns].flatten(-2)
    values = torch.where(inside, taken, -torch.inf)
    y = values.amax(-1)
    first_maximum = ((values == y[..., None]) & inside).long().argmax(-1)
    last_nan = values.shape[-1] - 1 - values.isnan().flip(-1).long().argmax(-1)
    winner = torch.where(y.isnan(), last_nan, first_maximum)
    indices = places.expand(values.shape).gather(-1, winner[..., None]).squeeze(-1)
    return y, torch.where(inside.any(-1), indices, -1)


def max_pool2d_dgrad(dy: Tensor, indices: Tensor, geometry: PoolGeometry) -> Tensor:
    """Return dx in fp64: each element of dy is added at its index; index -1 is dropped."""
    dx = dy.new_zeros((*dy.shape[:-2], geometry.in_h * geometry.in_w), dtype=torch.float64)
    spread = torch.where(indices >= 0, dy.double(), 0.0).flatten(-2)
    dx.scatter_add_(-1, indices.clamp(min=0).flatten(-2), spread)
    return dx.unflatten(-1, (geometry.in_h, geometry.in_w))
