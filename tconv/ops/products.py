"""The convolution u = x * w inside an operator, plain or transposed, with its derivatives.

u is linear in the image x and in the filters w. Both gradients are convolutions, and the tangent is
the sum of two convolutions. For a gradient dz of u, let dv be the filters' gradient: the sum of
dz u over all pixels of an output channel then equals the sum of w dv over that channel's filters.
Batch normalization takes its gradients from this, so that u need not be stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tconv.geometry import out_size
from tconv.ops.layout import prefers_channels_last

_ops = torch.ops.tconv
Sizes = Sequence[int]


def y_channels_last(x: Tensor, w: Tensor) -> bool:
    """torch's rule: the result is channels_last where the input or the filter is."""
    return prefers_channels_last(x) or prefers_channels_last(w)


def result_size(x_size: Sizes, w_size: Sizes, window: Sizes) -> tuple[int, ...]:
    """Return the size of x * w from the sizes of x and w."""
    stride, pad, dilation = window[0:2], window[2:4], window[4:6]
    sizes = [
        out_size(x_size[2 + i], w_size[2 + i], stride[i], pad[i], dilation[i]) for i in range(2)
    ]
    return (x_size[0], w_size[0], *sizes)


def transposed_size(x_size: Sizes, w_size: Sizes, extent: Sizes, window: Sizes) -> tuple[int, ...]:
    """Return the size of a transposed convolution's result of height and width ``extent``."""
    return (x_size[0], w_size[1] * window[6], *extent)


@dataclass(slots=True)
class Convolution:
    """u = x * w, with filters (out_channels, in_channels / groups, filter_h, filter_w)."""

    window: Sizes  # stride, padding and dilation for height and width each, then groups
    precision: str | None

    def __call__(self, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
        return _ops.conv2d(x, w, bias, self.window, self.precision)  # type: ignore[no-any-return]

    def size(self, x: Tensor, w: Tensor) -> tuple[int, ...]:
        """Return the size of u."""
        return result_size(x.shape, w.shape, self.window)

    def input_grad(self, du: Tensor, x: Tensor, w: Tensor) -> Tensor:
        """Return dx, channels_last where u is."""
        form = (x.shape, self.window, y_channels_last(x, w), self.precision)
        return _ops.conv2d_input_grad(du, w, *form)  # type: ignore[no-any-return]

    def weight_grad(self, du: Tensor, x: Tensor, w: Tensor) -> Tensor:
        """Return dw, in the format of w."""
        form = (w.shape, self.window, prefers_channels_last(w), self.precision)
        return _ops.conv2d_weight_grad(x, du, *form)  # type: ignore[no-any-return]

    def over_filters(self, channel: Tensor, w: Tensor) -> Tensor:
        """Return one value per output channel, shaped to broadcast over w."""
        return channel[:, None, None, None]

    def filter_sums(self, products: Tensor) -> Tensor:
        """Sum ``products``, of the size of w, over each output channel's filters."""
        return products.sum((1, 2, 3))

    def gradients(
        self, du: Tensor, x: Tensor, w: Tensor, needed: Sequence[bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return dx and dw, as far as they are ``needed``."""
        dx = self.input_grad(du, x, w) if needed[0] else None
        return dx, self.weight_grad(du, x, w) if needed[1] else None

    def tangent(self, x: Tensor, w: Tensor, tangents: Sequence[Any]) -> Tensor | None:
        """Return the tangent of u + bias from those of x, w and the bias; None stands for 0."""
        dx, dw, dbias = tangents
        du = None
        if dx is not None:
            du, dbias = self(dx, w, dbias), None
        if dw is not None:
            by_w = self(x, dw, dbias)
            du, dbias = by_w if du is None else du + by_w, None
        if dbias is not None:
            return dbias[None, :, None, None].expand(self.size(x, w))  # type: ignore[no-any-return]
        return du


@dataclass(slots=True)
class TransposedConvolution(Convolution):
    """A convolution's input gradient as a forward pass: u is its dx, computed from x as its dy.

    Filters are (in_channels, out_channels / groups, filter_h, filter_w).
    """

    extent: Sizes  # u's height and width

    def __call__(self, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
        form = (self.extent, self.window, self.precision)
        return _ops.conv_transpose2d(x, w, bias, *form)  # type: ignore[no-any-return]

    def size(self, x: Tensor, w: Tensor) -> tuple[int, ...]:
        return transposed_size(x.shape, w.shape, self.extent, self.window)

    def input_grad(self, du: Tensor, x: Tensor, w: Tensor) -> Tensor:
        return _ops.conv2d(du, w, None, self.window, self.precision)  # type: ignore[no-any-return]

    def weight_grad(self, du: Tensor, x: Tensor, w: Tensor) -> Tensor:
        form = (w.shape, self.window, prefers_channels_last(w), self.precision)
        return _ops.conv2d_weight_grad(du, x, *form)  # type: ignore[no-any-return]

    def over_filters(self, channel: Tensor, w: Tensor) -> Tensor:
        groups, filters = self.window[6], w.shape[0]
        each = channel.view(groups, 1, -1).expand(-1, filters // groups, -1)
        return each.reshape(filters, -1)[:, :, None, None]

    def filter_sums(self, products: Tensor) -> Tensor:
        return products.sum((2, 3)).unflatten(0, (self.window[6], -1)).sum(1).flatten()
