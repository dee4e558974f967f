"""Drop-in modules: torch's own classes with our kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tconv import functional


class _Unscripted:
    """A module that ``torch.jit.script`` rejects by name; ``torch.jit.trace`` accepts it."""

    def __prepare_scriptable__(self) -> Any:
        raise NotImplementedError(
            f"torch.jit.script cannot compile tconv.{type(self).__name__}; use torch.compile, "
            "torch.export or torch.jit.trace"
        )


class Conv2d(_Unscripted, torch.nn.Conv2d):
    """``torch.nn.Conv2d`` on Triton kernels: the same arguments, parameters and ``state_dict``.

    >>> layer = Conv2d(3, 10, kernel_size=5, padding=2)
    >>> layer(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 10, 32, 32])
    """

    activation: str | None = None  # the kernel's activation; ``pool`` adds a 2x2 max-pool
    pool = False

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # torch's module computes through this method alone; parametrizations and hooks sit above it
        # and keep working.
        return self.fused(input, weight, bias, activation=self.activation, pool=self.pool)

    def fused(self, input: Tensor, weight: Tensor, bias: Tensor | None, **epilogue: Any) -> Tensor:
        """Convolve with the epilogue options of ``functional.conv2d_fused``."""
        padding = self.padding
        if self.padding_mode != "zeros":
            border = self._reversed_padding_repeated_twice
            input = torch.nn.functional.pad(input, border, mode=self.padding_mode)
            padding = (0, 0)
        window = (self.stride, padding, self.dilation, self.groups)
        if all(value is None or value is False for value in epilogue.values()):
            return functional.conv2d(input, weight, bias, *window)
        return functional.conv2d_fused(input, weight, bias, *window, **epilogue)


class ConvReLU2d(Conv2d):
    """``Conv2d`` and ``ReLU`` in one kernel: the arguments and parameters of ``Conv2d``.

    >>> bool((ConvReLU2d(3, 10, 5)(torch.randn(1, 3, 32, 32)) >= 0).all())
    True
    """

    activation = "relu"


class ConvReLUPool2d(ConvReLU2d):
    """``Conv2d``, ``ReLU`` and ``MaxPool2d(2)`` in one kernel: the parameters of ``Conv2d``.

    >>> ConvReLUPool2d(3, 10, 5, padding=2)(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 10, 16, 16])
    """

    pool = True


class MaxPool2d(_Unscripted, torch.nn.MaxPool2d):
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


class AvgPool2d(_Unscripted, torch.nn.AvgPool2d):
    """``torch.nn.AvgPool2d`` on Triton kernels: the same arguments.

    >>> AvgPool2d(2)(torch.zeros(1, 6, 28, 28)).shape
    torch.Size([1, 6, 14, 14])
    """

    def forward(self, input: Tensor) -> Tensor:
        return functional.avg_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )


class Subsample2d(_Unscripted, torch.nn.Module):
    """LeNet's trainable subsampling: each window's mean, times a weight, plus a bias.

    Args:
        channels: number of channels of the input and of the result.
        kernel_size: size and stride of the windows.

    >>> layer = Subsample2d(6)
    >>> layer(torch.zeros(1, 6, 28, 28)).shape, sum(p.numel() for p in layer.parameters())
    (torch.Size([1, 6, 14, 14]), 12)
    """

    def __init__(self, channels: int, kernel_size: int = 2) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.weight = torch.nn.Parameter(torch.ones(channels))
        self.bias = torch.nn.Parameter(torch.zeros(channels))

    def forward(self, input: Tensor) -> Tensor:
        return functional.subsample2d(input, self.weight, self.bias, self.kernel_size)

    def extra_repr(self) -> str:
        return f"{self.weight.numel()}, kernel_size={self.kernel_size}"
