"""Keras's convolutions and ``MaxPooling2D`` on tconv's kernels, for Keras 3 with its torch backend.

    import os
    os.environ["KERAS_BACKEND"] = "torch"  # before Keras is imported
    import tconv.keras
    layer = tconv.keras.Conv2D(32, 3, padding="same", activation="relu")

``Conv1D``, ``Conv2D``, ``Conv2DTranspose``, ``DepthwiseConv2D``, ``SeparableConv2D`` and
``MaxPooling2D`` are Keras's own layers, with the same arguments, weights and files; only the method
that computes is replaced. ``padding="same"`` follows Keras: the output has ceil(size / stride)
pixels, and an odd total padding puts the extra zero at the bottom and right.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as torch_functional

from tconv import functional

try:
    import keras
except ImportError as error:
    if importlib.util.find_spec("keras") is None:
        raise ImportError("Keras is not installed: python -m pip install 'tconv[keras]'") from error
    raise ImportError(
        f"Keras cannot load its backend ({error}); tconv computes with Keras's torch backend: "
        "set KERAS_BACKEND=torch before Keras is imported"
    ) from error

if keras.backend.backend() != "torch":
    raise ImportError(
        f"Keras runs on its {keras.backend.backend()} backend; tconv computes with its torch "
        "backend: set KERAS_BACKEND=torch before Keras is imported"
    )

CHANNELS_LAST_TO_TORCH, TORCH_TO_CHANNELS_LAST = (0, 3, 1, 2), (0, 2, 3, 1)
KERAS_FILTER_TO_TORCH = (3, 2, 0, 1)  # (height, width, in_channels, filters) -> torch's order


def same_padding(size: int, extent: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """Return the padding before and after with which ``ceil(size / stride)`` windows fit.

    >>> same_padding(7, extent=3, stride=1)
    (1, 1)
    >>> same_padding(8, extent=3, stride=2)  # torch has no such padding: it is not the same twice
    (0, 1)
    """
    reach = dilation * (extent - 1) + 1
    total = max(0, (-(-size // stride) - 1) * stride + reach - size)
    return total // 2, total - total // 2


def _padded(
    x: Tensor, layer: Any, extents: tuple[int, int], dilations: tuple[int, int], value: float
) -> tuple[Tensor, tuple[int, int]]:
    """Pad ``x`` where the two sides differ; return it and the symmetric padding still to apply."""
    if layer.padding != "same":
        return x, (0, 0)
    windows = zip(x.shape[2:], extents, layer.strides, dilations, strict=True)
    (top, bottom), (left, right) = (same_padding(*window) for window in windows)
    if (top, left) == (bottom, right):
        return x, (top, left)
    return torch_functional.pad(x, (left, right, top, bottom), value=value), (0, 0)


def _floating(x: Tensor) -> Tensor:
    """Convert x to a type that the kernels compare; float64 holds 32-bit integers exactly."""
    if x.dtype == torch.int64:
        raise NotImplementedError("tconv cannot pool int64: cast to int32, which it pools exactly")
    return x if x.is_floating_point() or x.dtype == torch.bool else x.double()


@keras.saving.register_keras_serializable(package="tconv")
class Conv2D(keras.layers.Conv2D):  # type: ignore[misc]
    """``keras.layers.Conv2D``, computed by tconv's kernels.

    Volumes are (batch, height, width, channels), or with ``data_format="channels_first"`` (batch,
    channels, height, width), which is slower.
    """

    def convolution_op(self, inputs: Any, kernel: Any) -> Tensor:
        x, w = keras.ops.convert_to_tensor(inputs), keras.ops.convert_to_tensor(kernel)
        last = self.data_format == "channels_last"
        x = x.permute(CHANNELS_LAST_TO_TORCH) if last else x
        x, padding = _padded(x, self, self.kernel_size, self.dilation_rate, 0.0)
        window = (self.strides, padding, self.dilation_rate, self.groups)
        y = functional.conv2d(x, w.permute(KERAS_FILTER_TO_TORCH), None, *window)
        return y.permute(TORCH_TO_CHANNELS_LAST) if last else y


def _value(variable: Any) -> Tensor | None:
    """Return a layer's weight as torch's tensor, or None if the layer does not have it."""
    return None if variable is None else keras.ops.convert_to_tensor(variable)


def _channels_first(layer: Any, inputs: Any) -> Tensor:
    """Return a layer's input as a view in torch's order."""
    x = keras.ops.convert_to_tensor(inputs)
    return x.movedim(-1, 1) if layer.data_format == "channels_last" else x


def _finished(layer: Any, y: Tensor) -> Any:
    """Return ``y`` in the layer's own order, with its activation applied."""
    y = y.movedim(1, -1) if layer.data_format == "channels_last" else y
    return y if layer.activation is None else layer.activation(y)


@keras.saving.register_keras_serializable(package="tconv")
class Conv1D(keras.layers.Conv1D):  # type: ignore[misc]
    """``keras.layers.Conv1D``, computed by tconv's kernels; ``"causal"`` padding too."""

    def call(self, inputs: Any) -> Any:
        x, w = _channels_first(self, inputs), _value(self.kernel)
        stride, dilation = self.strides[0], self.dilation_rate[0]
        before = after = 0
        if self.padding == "causal":
            before = dilation * (self.kernel_size[0] - 1)
        elif self.padding == "same":
            before, after = same_padding(x.shape[-1], self.kernel_size[0], stride, dilation)
        if before != after:
            x, before = torch_functional.pad(x, (before, after)), 0
        assert w is not None
        window = (stride, before, dilation, self.groups)
        filters = w.permute(2, 1, 0)
        return _finished(self, functional.conv1d(x, filters, _value(self.bias), *window))


@keras.saving.register_keras_serializable(package="tconv")
class Conv2DTranspose(keras.layers.Conv2DTranspose):  # type: ignore[misc]
    """``keras.layers.Conv2DTranspose``, computed by tconv's kernels."""

    def call(self, inputs: Any) -> Any:
        x, w = _channels_first(self, inputs), _value(self.kernel)
        assert w is not None
        more = self.output_padding
        more = more if isinstance(more, (tuple, list)) else (more, more)
        windows = zip(self.kernel_size, self.strides, self.dilation_rate, more, strict=True)
        (top, bottom), (left, right) = (
            transposed_crops(*window, same=self.padding == "same") for window in windows
        )
        below, beyond = max(0, bottom - top), max(0, right - left)  # rows and columns too many
        extra = (max(0, top - bottom), max(0, left - right))
        window = (self.strides, (top, left), extra, 1, self.dilation_rate)
        filters = w.permute(KERAS_FILTER_TO_TORCH)
        y = functional.conv_transpose2d(x, filters, _value(self.bias), *window)
        return _finished(self, y[..., : y.shape[-2] - below, : y.shape[-1] - beyond])


def transposed_crops(
    extent: int, stride: int, dilation: int, output_padding: int | None, same: bool
) -> tuple[int, int]:
    """Return what Keras cuts off the full result of a transposed convolution, before and after.

    The full result has ``(size - 1) stride + reach`` pixels, with reach the extent of a dilated
    filter. ``same`` leaves ``size stride`` of them, and else nothing is cut: a negative number
    adds pixels.

    >>> transposed_crops(3, stride=2, dilation=1, output_padding=None, same=True)
    (0, 1)
    """
    reach = dilation * (extent - 1) + 1
    if not same:
        more = max(reach, stride) - reach if output_padding is None else output_padding
        return 0, -more
    padding = reach + stride - 2
    if output_padding is not None:
        padding = reach + reach % 2 - 2 + output_padding
    before = min(-(-padding // 2), reach - 1)
    return reach - 1 - before, reach - 1 - (padding - before)


def _depthwise(layer: Any, x: Tensor, kernel: Any, bias: Tensor | None) -> Tensor:
    """Convolve each channel of ``x`` with its own filters, with the window of ``layer``."""
    w = keras.ops.convert_to_tensor(kernel)
    filters = w.permute(2, 3, 0, 1).reshape(-1, 1, *w.shape[:2])
    x, padding = _padded(x, layer, layer.kernel_size, layer.dilation_rate, 0.0)
    window = (layer.strides, padding, layer.dilation_rate, x.shape[1])
    return functional.conv2d(x, filters, bias, *window)


@keras.saving.register_keras_serializable(package="tconv")
class DepthwiseConv2D(keras.layers.DepthwiseConv2D):  # type: ignore[misc]
    """``keras.layers.DepthwiseConv2D``, computed by tconv's kernels."""

    def call(self, inputs: Any) -> Any:
        x = _channels_first(self, inputs)
        return _finished(self, _depthwise(self, x, self.kernel, _value(self.bias)))


@keras.saving.register_keras_serializable(package="tconv")
class SeparableConv2D(keras.layers.SeparableConv2D):  # type: ignore[misc]
    """``keras.layers.SeparableConv2D``, computed by tconv's kernels: depthwise, then 1x1."""

    def call(self, inputs: Any) -> Any:
        x = _depthwise(self, _channels_first(self, inputs), self.depthwise_kernel, None)
        w = _value(self.pointwise_kernel)
        assert w is not None
        return _finished(
            self, functional.conv2d(x, w.permute(KERAS_FILTER_TO_TORCH), _value(self.bias))
        )


@keras.saving.register_keras_serializable(package="tconv")
class MaxPooling2D(keras.layers.MaxPooling2D):  # type: ignore[misc]
    """``keras.layers.MaxPooling2D``, computed by tconv's kernels."""

    def call(self, inputs: Any) -> Tensor:
        x = keras.ops.convert_to_tensor(inputs)
        last = self.data_format == "channels_last"
        x = x.permute(CHANNELS_LAST_TO_TORCH) if last else x
        least = -torch.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
        x, padding = _padded(x, self, self.pool_size, (1, 1), least)
        y = functional.max_pool2d(_floating(x), self.pool_size, self.strides, padding)
        assert isinstance(y, Tensor)  # without indices the result is a tensor
        y = y.to(x.dtype)
        return y.permute(TORCH_TO_CHANNELS_LAST) if last else y
