"""One-dimensional operators: those of images, on sequences seen as images of one row.

A sequence (batch, channels, length) is a view of an image (batch, channels, 1, length): nothing is
copied, and every kernel, tuned choice and derivative of the two-dimensional operators serves.
Sequences whose channels vary fastest in memory, as a transposed (batch, length, channels) tensor
has them, are channels_last images, which the kernels read as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from tconv.ops.arguments import overridden
from tconv.ops.conv2d import convolved
from tconv.ops.conv_check import conv_window
from tconv.ops.conv_transpose2d import transposed
from tconv.ops.conv_transpose_check import conv_transpose_window


def as_image(sequence: Tensor) -> Tensor:
    """(batch, channels, 1, length) of a sequence, with a batch of one where it has none."""
    image = sequence.unsqueeze(-2)
    return image if sequence.dim() == 3 else image.unsqueeze(0)


def as_sequence(image: Tensor, like: Tensor) -> Tensor:
    """(batch, channels, length) of an image of one row, without a batch where ``like`` has none."""
    sequence = image.squeeze(-2)
    return sequence if like.dim() == 3 else sequence.squeeze(0)


def of_one_row(window: Sequence[int]) -> list[int]:
    """The window (stride, padding, dilation, groups) of a sequence, as that of an image."""
    stride, pad, dilation, groups = window
    return [1, stride, 0, pad, 1, dilation, groups]


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
    precision: str | None = None,
) -> Tensor:
    """One-dimensional convolution, as ``torch.nn.functional.conv1d``.

        y[n, k, q] = bias[k] + sum over c, s of x[n, c, q S - P + s D] w[k, c, s]

    and, in the same kernel where they are asked for, ``activation(y + residual)``. For causal
    padding, pad the left with ``torch.nn.functional.pad`` first.

    Args:
        input: x, (batch, in_channels, length), or without batch.
        weight: w, (out_channels, in_channels / groups, filter_length).
        bias, stride, padding, dilation, groups, activation, residual, precision: as for
            ``conv2d``, with one number each.

    Returns:
        y, (batch, out_channels, out_length) with out = (length - D (F - 1) - 1 + 2 P) // S + 1.
        It lies in memory as x does: channels vary fastest where those of x do.

    Raises:
        RuntimeError: for shapes, dtypes or devices that do not go together, in torch's words.
        ValueError: for an activation that is not known.

    >>> import torch
    >>> conv1d(torch.zeros(1, 3, 100), torch.zeros(10, 3, 5), padding="same").shape
    torch.Size([1, 10, 100])
    """
    tensors = (input, weight, bias)
    form = (stride, padding, dilation, groups)
    if has_torch_function_variadic(*tensors, residual):
        how = {"activation": activation, "residual": residual, "precision": precision}
        operands = (*tensors, residual)
        return overridden(conv1d, operands, *tensors, *form, **how)  # type: ignore[no-any-return]
    window, (more,) = conv_window(*tensors, *form, axes=1)
    x = as_image(torch.nn.functional.pad(input, (0, more)) if more else input)
    if residual is not None:
        residual = as_image(residual)
    operands = (x, weight.unsqueeze(-2), bias, residual)
    y = convolved(*operands, of_one_row(window), activation, precision)
    return as_sequence(y, input)


def conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
    *,
    activation: str | None = None,
    precision: str | None = None,
) -> Tensor:
    """One-dimensional transposed convolution, as ``torch.nn.functional.conv_transpose1d``.

        y[n, k, v] = bias[k] + sum over c, s with q S = v + P - s D of x[n, c, q] w[c, k, s]

    Args:
        input: x, (batch, in_channels, length), or without batch.
        weight: w, (in_channels, out_channels / groups, filter_length).
        bias, stride, padding, output_padding, groups, dilation, activation, precision: as for
            ``conv_transpose2d``, with one number each.

    Returns:
        y, (batch, out_channels, out_length) with
        out = (length - 1) S - 2 P + D (F - 1) + output_padding + 1.

    Raises:
        RuntimeError: for shapes, dtypes or devices that do not go together, in torch's words.
        ValueError: for an activation that is not known.

    >>> import torch
    >>> conv_transpose1d(torch.zeros(1, 8, 25), torch.zeros(8, 4, 4), stride=2, padding=1).shape
    torch.Size([1, 4, 50])
    """
    tensors = (input, weight, bias)
    form = (stride, padding, output_padding, groups, dilation)
    if has_torch_function_variadic(*tensors):
        how: dict[str, Any] = {"activation": activation, "precision": precision}
        return overridden(conv_transpose1d, tensors, *tensors, *form, **how)  # type: ignore[no-any-return]
    window, extent, more = conv_transpose_window(*tensors, *form, axes=1)
    shape = ((1, *extent), (0, *more), of_one_row(window))
    operands = (as_image(input), weight.unsqueeze(-2), bias)
    return as_sequence(transposed(*operands, *shape, activation, precision), input)
