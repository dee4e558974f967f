"""``torch.func.vmap`` of a convolution: samples become images or groups of one convolution.

    x alone is batched    [samples, batch, ...] are samples * batch images
    w is batched          the filters of a sample are groups of their own

A gradient of the filters sums over the images, so that its samples are always groups. Each function
takes the number of samples and the operands with the samples as their first axis (or without, where
``batched`` says so); the result has the samples as its first axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_ops = torch.ops.tconv
Batched = tuple[bool, ...]
Sizes = Sequence[int]


def _beside(samples: int, tensor: Tensor, batched: bool) -> Tensor:
    """[images, samples * channels, ...] of [samples, images, channels, ...]."""
    if not batched:
        tensor = tensor.expand(samples, *tensor.shape)
    return tensor.movedim(0, 1).flatten(1, 2)


def _apart(samples: int, tensor: Tensor) -> Tensor:
    """[samples, images, channels, ...] of [images, samples * channels, ...]."""
    return tensor.unflatten(1, (samples, tensor.shape[1] // samples)).movedim(1, 0)


def _in_front(samples: int, tensor: Tensor, batched: bool) -> Tensor:
    """[samples * filters, ...] of [samples, filters, ...]."""
    return (tensor if batched else tensor.expand(samples, *tensor.shape)).flatten(0, 1)


def _grouped(window: Sizes, samples: int) -> list[int]:
    return [*window[:6], window[6] * samples]


def conv2d(samples: int, batched: Batched, *inputs: Any) -> Tensor | None:
    """y of each sample."""
    x, w, bias, window, precision = inputs
    if not batched[1]:
        if batched[2]:
            return None  # a bias of each sample: added in the kernel, it is rounded once
        y = _ops.conv2d(x.flatten(0, 1), w, bias, window, precision)
        return y.unflatten(0, (samples, -1)) if x.shape[1] else None  # type: ignore[no-any-return]
    if bias is not None:
        bias = _in_front(samples, bias, batched[2])
    if not batched[0] and window[6] == 1:  # all filters read the same image
        y = _ops.conv2d(x, w.flatten(0, 1), bias, window, precision)
    else:
        operands = _beside(samples, x, batched[0]), w.flatten(0, 1), bias
        y = _ops.conv2d(*operands, _grouped(window, samples), precision)
    return _apart(samples, y)


def input_grad(samples: int, batched: Batched, *inputs: Any) -> Tensor | None:
    """dx of each sample."""
    dy, w, x_size, window, channels_last, precision = inputs
    batch, channels, *image = x_size
    if not batched[1]:
        if not batch:
            return None
        size = (samples * batch, channels, *image)
        dx = _ops.conv2d_input_grad(dy.flatten(0, 1), w, size, window, channels_last, precision)
        return dx.unflatten(0, (samples, batch))  # type: ignore[no-any-return]
    size = (batch, samples * channels, *image)
    operands = _beside(samples, dy, batched[0]), w.flatten(0, 1), size
    window = _grouped(window, samples)
    return _apart(samples, _ops.conv2d_input_grad(*operands, window, channels_last, precision))


def weight_grad(samples: int, batched: Batched, *inputs: Any) -> Tensor:
    """dw of each sample."""
    x, dy, w_size, window, channels_last, precision = inputs
    operands = _beside(samples, x, batched[0]), _beside(samples, dy, batched[1])
    size = (samples * w_size[0], *w_size[1:])
    window = _grouped(window, samples)
    dw = _ops.conv2d_weight_grad(*operands, size, window, channels_last, precision)
    return dw.unflatten(0, (samples, w_size[0]))  # type: ignore[no-any-return]


def bias_grad(samples: int, batched: Batched, dy: Tensor) -> Tensor:
    """dbias of each sample."""
    dbias = _ops.conv2d_bias_grad(_beside(samples, dy, True))
    return dbias.unflatten(0, (samples, dy.shape[2]))  # type: ignore[no-any-return]
