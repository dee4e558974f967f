"""Keras's ``Conv2D`` and ``MaxPooling2D`` on tconv's kernels, for Keras 3 with its torch backend.

    import os
    os.environ["KERAS_BACKEND"] = "torch"  # before Keras is imported
    import tconv.keras
    layer = tconv.keras.Conv2D(32, 3, padding="same", activation="relu")

They are Keras's own layers, with the same arguments, weights and files; only the method that
computes is replaced. ``padding="same"`` follows Keras: the output has ceil(size / stride) pixels,
and an odd total padding puts the extra zero at the bottom and right.
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
