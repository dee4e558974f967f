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


class Conv1d(_Unscripted, torch.nn.Conv1d):
    """``torch.nn.Conv1d`` on Triton kernels: the same arguments, parameters and ``state_dict``.

    >>> Conv1d(3, 10, kernel_size=5, padding="same")(torch.zeros(1, 3, 100)).shape
    torch.Size([1, 10, 100])
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding = self.padding
        if self.padding_mode != "zeros":
            border = self._reversed_padding_repeated_twice
            input, padding = torch.nn.functional.pad(input, border, mode=self.padding_mode), (0,)
        window = (self.stride, padding, self.dilation, self.groups)
        return functional.conv1d(input, weight, bias, *window)


class ConvTranspose2d(_Unscripted, torch.nn.ConvTranspose2d):
    """``torch.nn.ConvTranspose2d`` on Triton kernels: the same arguments and ``state_dict``.

    >>> layer = ConvTranspose2d(8, 4, kernel_size=3, stride=2, padding=1)
    >>> layer(torch.zeros(1, 8, 7, 7), output_size=[14, 14]).shape
    torch.Size([1, 4, 14, 14])
    """

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        window = _transposed_window(self, input, output_size, axes=2)
        return functional.conv_transpose2d(input, self.weight, self.bias, *window)


class ConvTranspose1d(_Unscripted, torch.nn.ConvTranspose1d):
    """``torch.nn.ConvTranspose1d`` on Triton kernels: the same arguments and ``state_dict``.

    >>> ConvTranspose1d(8, 4, kernel_size=4, stride=2, padding=1)(torch.zeros(1, 8, 25)).shape
    torch.Size([1, 4, 50])
    """

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        window = _transposed_window(self, input, output_size, axes=1)
        return functional.conv_transpose1d(input, self.weight, self.bias, *window)


def _transposed_window(
    layer: Any, input: Tensor, output_size: list[int] | None, axes: int
) -> tuple[Any, ...]:
    """Return stride, padding, output padding, groups and dilation of a transposed layer's call."""
    sizes = (layer.stride, layer.padding, layer.kernel_size)
    more = layer._output_padding(input, output_size, *sizes, axes, layer.dilation)
    return layer.stride, layer.padding, more, layer.groups, layer.dilation


class LazyConv2d(torch.nn.LazyConv2d, Conv2d):  # type: ignore[misc]
    """``torch.nn.LazyConv2d`` on Triton kernels: a ``Conv2d`` from its first call on.

    >>> layer = LazyConv2d(10, kernel_size=5)
    >>> layer(torch.zeros(1, 3, 32, 32)).shape, type(layer).__name__
    (torch.Size([1, 10, 28, 28]), 'Conv2d')
    """

    cls_to_become = Conv2d  # type: ignore[assignment]


class LazyConv1d(torch.nn.LazyConv1d, Conv1d):  # type: ignore[misc]
    """``torch.nn.LazyConv1d`` on Triton kernels: a ``Conv1d`` from its first call on."""

    cls_to_become = Conv1d  # type: ignore[assignment]


class LazyConvTranspose2d(torch.nn.LazyConvTranspose2d, ConvTranspose2d):  # type: ignore[misc]
    """``torch.nn.LazyConvTranspose2d`` on Triton kernels: ours from its first call on."""

    cls_to_become = ConvTranspose2d  # type: ignore[assignment]


class LazyConvTranspose1d(torch.nn.LazyConvTranspose1d, ConvTranspose1d):  # type: ignore[misc]
    """``torch.nn.LazyConvTranspose1d`` on Triton kernels: ours from its first call on."""

    cls_to_become = ConvTranspose1d  # type: ignore[assignment]


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


class MaxPool1d(_Unscripted, torch.nn.MaxPool1d):
    """``torch.nn.MaxPool1d`` on Triton kernels: the same arguments.

    >>> MaxPool1d(2)(torch.zeros(1, 64, 100)).shape
    torch.Size([1, 64, 50])
    """

    def forward(self, input: Tensor) -> Tensor:
        window = (self.kernel_size, self.stride, self.padding, self.dilation)
        flags = (self.ceil_mode, self.return_indices)
        return functional.max_pool1d(input, *window, *flags)  # type: ignore[return-value, arg-type]


class AvgPool1d(_Unscripted, torch.nn.AvgPool1d):
    """``torch.nn.AvgPool1d`` on Triton kernels: the same arguments.

    >>> AvgPool1d(2)(torch.zeros(1, 64, 100)).shape
    torch.Size([1, 64, 50])
    """

    def forward(self, input: Tensor) -> Tensor:
        window = (self.kernel_size, self.stride, self.padding)
        return functional.avg_pool1d(input, *window, self.ceil_mode, self.count_include_pad)


class AdaptiveAvgPool2d(_Unscripted, torch.nn.AdaptiveAvgPool2d):
    """``torch.nn.AdaptiveAvgPool2d`` on Triton kernels: the same arguments.

    >>> AdaptiveAvgPool2d((1, None))(torch.zeros(1, 6, 7, 9)).shape
    torch.Size([1, 6, 1, 9])
    """

    def forward(self, input: Tensor) -> Tensor:
        return functional.adaptive_avg_pool2d(input, self.output_size)


class AdaptiveMaxPool2d(_Unscripted, torch.nn.AdaptiveMaxPool2d):
    """``torch.nn.AdaptiveMaxPool2d`` on Triton kernels: the same arguments.

    >>> AdaptiveMaxPool2d(3)(torch.zeros(1, 6, 7, 9)).shape
    torch.Size([1, 6, 3, 3])
    """

    def forward(self, input: Tensor) -> Tensor:
        arguments = (self.output_size, self.return_indices)
        return functional.adaptive_max_pool2d(input, *arguments)  # type: ignore[return-value]


class MaxUnpool2d(_Unscripted, torch.nn.MaxUnpool2d):
    """``torch.nn.MaxUnpool2d`` on Triton kernels: the same arguments.

    >>> y, indices = MaxPool2d(2, return_indices=True)(torch.ones(1, 3, 8, 8))
    >>> MaxUnpool2d(2)(y, indices).sum()
    tensor(48.)
    """

    def forward(
        self, input: Tensor, indices: Tensor, output_size: list[int] | None = None
    ) -> Tensor:
        window = (self.kernel_size, self.stride, self.padding)
        return functional.max_unpool2d(input, indices, *window, output_size)


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
