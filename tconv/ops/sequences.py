"""One-dimensional operators: the two-dimensional ones, on sequences as images of one row.

A sequence (batch, channels, length) is a view of an image (batch, channels, 1, length). Nothing is
copied, and every kernel, tuned choice and derivative of the two-dimensional operators applies.
Sequences whose channels vary fastest in memory, such as a transposed (batch, length, channels)
tensor, are channels_last images, which the kernels read in place.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import has_torch_function_unary, has_torch_function_variadic

from tconv.ops.arguments import fused_options, overridden
from tconv.ops.avg_pool2d import avg_pool2d
from tconv.ops.conv2d import NEGATIVE_SLOPE, convolved
from tconv.ops.conv_check import check_norm_given, conv_window
from tconv.ops.conv_transpose2d import transposed
from tconv.ops.conv_transpose_check import conv_transpose_window
from tconv.ops.max_pool2d import max_pool2d


def as_image(sequence: Tensor) -> Tensor:
    """Return a sequence as (batch, channels, 1, length), with a batch of one if it has none."""
    image = sequence.unsqueeze(-2)
    return image if sequence.dim() == 3 else image.unsqueeze(0)


def as_sequence(image: Tensor, like: Tensor) -> Tensor:
    """Return an image of one row as a sequence, without a batch if ``like`` has none."""
    sequence = image.squeeze(-2)
    return sequence if like.dim() == 3 else sequence.squeeze(0)


def of_one_row(window: Sequence[int]) -> list[int]:
    """Return a sequence's window (stride, padding, dilation, groups) as that of an image."""
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
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    residual_after: bool = False,
    activation: str | None = None,
    negative_slope: float = NEGATIVE_SLOPE,
    precision: str | None = None,
) -> Tensor:
    """One-dimensional convolution, as ``torch.nn.functional.conv1d``.

        y[n, k, q] = bias[k] + sum over c, s of x[n, c, q S - P + s D] w[k, c, s]

    and optionally, in the same kernel, batch normalization (evaluation), residual and activation
    as in ``conv2d_fused``. For causal padding, pad the left with ``torch.nn.functional.pad`` first.

    Args:
        input: x, (batch, in_channels, length), or without batch.
        weight: w, (out_channels, in_channels / groups, filter_length).
        bias, stride, padding, dilation, groups, precision: as for ``conv2d``, with one number each.
        running_mean, running_var, norm_weight, norm_bias, eps, residual, residual_after,
            activation, negative_slope: as for ``conv2d_fused``.

    Returns:
        y, (batch, out_channels, out_length) with out = (length - D (F - 1) - 1 + 2 P) // S + 1. Its
        memory format is that of x: channels vary fastest if those of x do.

    Raises:
        RuntimeError: if shapes, dtypes or devices do not match, with torch's message.
        ValueError: if the activation is unknown, or the batch normalization lacks a statistic.

    >>> import torch
    >>> conv1d(torch.zeros(1, 3, 100), torch.zeros(10, 3, 5), padding="same").shape
    torch.Size([1, 10, 100])
    """
    norm = (norm_weight, norm_bias, running_mean, running_var)
    tensors = (input, weight, bias)
    form = (stride, padding, dilation, groups)
    if has_torch_function_variadic(*tensors, residual, *norm):
        how = fused_options(
            running_mean, running_var, norm_weight, norm_bias, eps, residual, residual_after,
            activation, negative_slope, precision,
        )  # fmt: skip
        everything = (*tensors, residual, *norm)
        return overridden(conv1d, everything, *tensors, *form, **how)  # type: ignore[no-any-return]
    window, (more,) = conv_window(*tensors, *form, axes=1)
    padded = torch.nn.functional.pad(input, (0, more)) if more else input
    check_norm_given(*norm)
    beside = None if residual is None else as_image(residual)
    operands = (as_image(padded), weight.unsqueeze(-2), bias, beside, *norm)
    how_fused = (activation, negative_slope, residual_after, precision)
    y = convolved(operands, eps, of_one_row(window), *how_fused)
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
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    residual_after: bool = False,
    activation: str | None = None,
    negative_slope: float = NEGATIVE_SLOPE,
    precision: str | None = None,
) -> Tensor:
    """One-dimensional transposed convolution, as ``torch.nn.functional.conv_transpose1d``.

        y[n, k, v] = bias[k] + sum over c, s with q S = v + P - s D of x[n, c, q] w[c, k, s]

    Args:
        input: x, (batch, in_channels, length), or without batch.
        weight: w, (in_channels, out_channels / groups, filter_length).
        bias, stride, padding, output_padding, groups, dilation, precision: as for
            ``conv_transpose2d``, with one number each.
        running_mean, running_var, norm_weight, norm_bias, eps, residual, residual_after,
            activation, negative_slope: as for ``conv2d_fused``.

    Returns:
        y, (batch, out_channels, out_length) with
        out = (length - 1) S - 2 P + D (F - 1) + output_padding + 1.

    Raises:
        RuntimeError: if shapes, dtypes or devices do not match, with torch's message.
        ValueError: if the activation is unknown, or the batch normalization lacks a statistic.

    >>> import torch
    >>> conv_transpose1d(torch.zeros(1, 8, 25), torch.zeros(8, 4, 4), stride=2, padding=1).shape
    torch.Size([1, 4, 50])
    """
    norm = (norm_weight, norm_bias, running_mean, running_var)
    tensors = (input, weight, bias)
    form = (stride, padding, output_padding, groups, dilation)
    if has_torch_function_variadic(*tensors, residual, *norm):
        how = fused_options(
            running_mean, running_var, norm_weight, norm_bias, eps, residual, residual_after,
            activation, negative_slope, precision,
        )  # fmt: skip
        everything = (*tensors, residual, *norm)
        return overridden(conv_transpose1d, everything, *tensors, *form, **how)  # type: ignore[no-any-return]
    window, extent, more = conv_transpose_window(*tensors, *form, axes=1)
    beside = None if residual is None else as_image(residual)
    operands = (as_image(input), weight.unsqueeze(-2), bias, beside, *norm)
    how_fused = (activation, negative_slope, residual_after, precision)
    y = transposed(operands, eps, (1, *extent), (0, *more), of_one_row(window), *how_fused)
    return as_sequence(y, input)


# ---- pools ----------------------------------------------------------------------------------


def _row(input: Tensor) -> Tensor:
    """Return a sequence to be pooled as an image."""
    if not isinstance(input, Tensor) or input.dim() not in (2, 3) or 0 in input.shape[-2:]:
        raise RuntimeError("Expected 2D or 3D (batch mode) tensor with optional 0 dim batch size")
    return as_image(input)


def _along(value: Any) -> Any:
    """Return the number for a sequence's axis; ``max_pool2d`` will reject invalid values."""
    return value[0] if isinstance(value, (tuple, list)) and len(value) == 1 else value


@contextlib.contextmanager
def _refusing_as(function: Any, input: Any, *arguments: Any) -> Iterator[None]:
    """Replace the block's errors by those of torch's ``function`` for the arguments."""
    try:
        yield
    except (RuntimeError, TypeError, ValueError):
        if isinstance(input, Tensor):
            input = torch.empty(input.shape, dtype=input.dtype, device="meta")
        function(input, *arguments)
        raise


def max_pool1d(
    input: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The greatest element of each window; ``torch.nn.functional.max_pool1d`` by Triton.

        y[n, c, q] = max over s of x[n, c, q stride - padding + s dilation]

    Args:
        input: (batch, channels, length) or (channels, length).
        kernel_size, stride, padding, dilation, ceil_mode, return_indices: as for ``max_pool2d``,
            with one number each; an index is the place of the first maximum in its sequence.

    Raises:
        RuntimeError, TypeError, NotImplementedError: as torch does, with its messages.

    >>> max_pool1d(torch.tensor([[1.0, 5.0, 2.0, 7.0]]), 2, return_indices=True)
    (tensor([[5., 7.]]), tensor([[1, 3]]))
    """
    window = (kernel_size, stride, padding, dilation, ceil_mode)
    if has_torch_function_unary(input):
        return overridden(max_pool1d, (input,), input, *window, return_indices)  # type: ignore[no-any-return]
    steps = kernel_size if stride is None else stride
    given = (kernel_size, steps, padding, dilation)
    function = torch.max_pool1d_with_indices if return_indices else torch.max_pool1d
    with _refusing_as(function, input, *given, ceil_mode):
        pairs = zip((1, 1, 0, 1), map(_along, given), strict=True)
        y = max_pool2d(_row(input), *pairs, ceil_mode, return_indices)  # type: ignore[arg-type, call-arg]
    if isinstance(y, tuple):
        return as_sequence(y[0], input), as_sequence(y[1], input)
    return as_sequence(y, input)


def avg_pool1d(
    input: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """The mean of each window; ``torch.nn.functional.avg_pool1d`` by Triton.

        y[n, c, q] = 1 / count * sum over s of x[n, c, q stride - padding + s]

    Args:
        input: (batch, channels, length) or (channels, length).
        kernel_size, stride, padding, ceil_mode, count_include_pad: as for ``avg_pool2d``, with one
            number each.

    Raises:
        RuntimeError, TypeError, NotImplementedError: as torch does, with its messages.

    >>> avg_pool1d(torch.tensor([[1.0, 5.0, 2.0, 7.0]]), 2)
    tensor([[3.0000, 4.5000]])
    """
    window = (kernel_size, stride, padding, ceil_mode, count_include_pad)
    if has_torch_function_unary(input):
        return overridden(avg_pool1d, (input,), input, *window)  # type: ignore[no-any-return]
    given = (kernel_size, kernel_size if stride is None else stride, padding)
    with _refusing_as(torch.avg_pool1d, input, *given, ceil_mode, count_include_pad):
        pairs = zip((1, 1, 0), map(_along, given), strict=True)
        y = avg_pool2d(_row(input), *pairs, ceil_mode, count_include_pad)  # type: ignore[arg-type, call-arg]
    return as_sequence(y, input)
