"""Drop-in modules: torch's own, with the computation replaced."""

from __future__ import annotations

import torch
from torch import Tensor

from tconv import functional


class Conv2d(torch.nn.Conv2d):
    """``torch.nn.Conv2d`` on Triton kernels: the same arguments, parameters and ``state_dict``.

    >>> layer = Conv2d(3, 10, kernel_size=5, padding=2)
    >>> layer(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 10, 32, 32])
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # The one method through which torch's module computes; parametrizations and hooks
        # sit above it and keep working.
        padding = self.padding
        if self.padding_mode != "zeros":
            border = self._reversed_padding_repeated_twice
            input = torch.nn.functional.pad(input, border, mode=self.padding_mode)
            padding = (0, 0)
        return functional.conv2d(
            input, weight, bias, self.stride, padding, self.dilation, self.groups
        )


class MaxPool2d(torch.nn.MaxPool2d):
    """``torch.nn.MaxPool2d`` on Triton kernels: the same arguments.

    >>> MaxPool2d(2)(torch.zeros(1, 64, 224, 224)).shape
    torch.Size([1, 64, 112, 112])
    """

    def forward(self, input: Tensor) -> Tensor:
        return functional.max_pool2d(  # type: ignore[return-value]
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            ceil_mode=self.ceil_mode,
            return_indices=self.return_indices,
        )
