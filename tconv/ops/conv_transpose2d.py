"""Transposed convolution: the input-gradient kernels as a forward pass.

    conv_transpose2d        (x, w, bias) -> y
    conv_transpose2d_fused  (x, w, bias, residual, batch norm) -> y, kept

y is the input gradient of a convolution, with x in place of dy and y in place of dx, so that its
own gradients, of any order, are a convolution (for x) and that convolution's filter gradient (for
w). The fused operator then applies batch normalization, residual and activation, as
``conv2d_fused`` does, and has the same gradients. Its ``kept`` is the activation's argument if a
gradient needs it, and empty otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from tconv.launch import runs_triton
from tconv.ops import fused_gradients as gradients
from tconv.ops.arguments import fused_options, overridden
from tconv.ops.conv2d import NEGATIVE_SLOPE, y_layout
from tconv.ops.conv_check import check_norm_given, check_residual, check_types
from tconv.ops.conv_run import Call, cached_call, precision_of
from tconv.ops.conv_transpose_check import conv_transpose_window
from tconv.ops.fused_operators import (
    NAMES,
    check_operands,
    ended,
    epilogue_of,
    of_one_dtype,
    present,
)
from tconv.ops.layout import dense, empty, layout_of, prefers_channels_last
from tconv.ops.products import TransposedConvolution, transposed_size
from tconv.ops.registration import differentiates, register, register_autocast
from tconv.problem import BIAS, PLAIN, Epilogue

# ---- operators ------------------------------------------------------------------------------

_library = torch.library.Library("tconv", "FRAGMENT")
_ops = torch.ops.tconv
# ``extent`` is y's height and width; ``window`` is as for conv2d.
_library.define(
    "conv_transpose2d(Tensor x, Tensor w, Tensor? bias, SymInt[] extent, int[] window, "
    "str? precision) -> Tensor"
)
_library.define(
    "conv_transpose2d_fused(Tensor x, Tensor w, Tensor? bias, Tensor? residual, "
    "Tensor? norm_weight, Tensor? norm_bias, Tensor? norm_mean, Tensor? norm_var, float eps, "
    "SymInt[] extent, int[] window, str? activation, float slope, bool residual_after, bool keep, "
    "str? precision) -> (Tensor, Tensor)"
)

Sizes = Sequence[int]
_NAMES = ("dy", *NAMES[1:])  # the kernels' names of the operands


def _conv_transpose2d(
    x: Tensor, w: Tensor, bias: Tensor | None, extent: Sizes, window: Sizes, precision: str | None
) -> Tensor:
    check_types(x, w, bias)
    if not runs_triton(x.device):
        return dense(_by_torch(x, w, bias, extent, window), y_layout(x, w))
    call = _dgrad_call(x, w, extent, window, precision, PLAIN if bias is None else BIAS)
    return call({"dy": x, "w": w} if bias is None else {"dy": x, "w": w, "bias": bias})


def _conv_transpose2d_fused(*inputs: Any) -> tuple[Tensor, Tensor]:
    operands = of_one_dtype(inputs[:8])
    x, w, bias = operands[:3]
    eps, extent, window, activation, slope, residual_after, keep, precision = inputs[8:]
    epilogue = epilogue_of(operands, eps, activation, slope, residual_after, False, keep)
    check_operands(operands, w.shape[1] * window[6])
    if operands[3] is not None:
        check_residual(operands[3].shape, transposed_size(x.shape, w.shape, extent, window))
    if not runs_triton(x.device):
        z = _by_torch(x, w, bias, extent, window)
        return ended(z, operands, epilogue, y_layout(x, w))[:2]
    tensors = present(_NAMES, operands)
    y = _dgrad_call(x, w, extent, window, precision, epilogue)(tensors)
    return y, tensors["kept"] if epilogue.kept else x.new_empty(0)


def _dgrad_call(
    x: Tensor, w: Tensor, extent: Sizes, window: Sizes, precision: str | None, epilogue: Epilogue
) -> Call:
    """Return the call of the dgrad kernels; y is channels_last where conv2d's y would be."""
    w_last = prefers_channels_last(w)
    layout = layout_of(w_last or prefers_channels_last(x))
    size = transposed_size(x.shape, w.shape, extent, window)
    places = (layout, layout_of(w_last), x.dtype, x.device, precision_of(x, precision), epilogue)
    return cached_call("dgrad", size, tuple(w.shape), tuple(window), *places)


def _by_torch(x: Tensor, w: Tensor, bias: Tensor | None, extent: Sizes, window: Sizes) -> Tensor:
    """Return y computed by torch, for a CPU without the interpreter."""
    stride, pad, gap, groups = window[0:2], window[2:4], window[4:6], window[6]
    least = [(x.shape[2 + i] - 1) * stride[i] - 2 * pad[i] + gap[i] * (w.shape[2 + i] - 1) + 1
             for i in range(2)]  # fmt: skip
    more = [extent[i] - least[i] for i in range(2)]
    return torch.ops.aten.convolution(x, w, bias, stride, pad, gap, True, more, groups)  # type: ignore[no-any-return]


@torch.library.register_fake("tconv::conv_transpose2d", lib=_library)
def _(
    x: Tensor, w: Tensor, bias: Tensor | None, extent: Sizes, window: Sizes, precision: str | None
) -> Tensor:
    check_types(x, w, bias)
    return empty(x, transposed_size(x.shape, w.shape, extent, window), y_layout(x, w))


@torch.library.register_fake("tconv::conv_transpose2d_fused", lib=_library)
def _(*inputs: Any) -> tuple[Tensor, Tensor]:
    operands, (eps, extent, window, *how, keep, _) = inputs[:8], inputs[8:]
    x, w, _, residual = operands[:4]
    layout, size = y_layout(x, w), transposed_size(x.shape, w.shape, extent, window)
    check_operands(operands, size[1])
    if residual is not None:
        check_residual(residual.shape, size)
    kept = epilogue_of(operands, eps, *how, False, keep).kept
    return empty(x, size, layout), empty(x, size, layout) if kept else x.new_empty(0)


# ---- gradients ------------------------------------------------------------------------------


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, w, _, ctx.extent, ctx.window, ctx.precision = inputs
    ctx.save_for_backward(x, w)


def _backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    x, w = ctx.saved_tensors
    product = TransposedConvolution(ctx.window, ctx.precision, ctx.extent)
    dx, dw = product.gradients(dy, x, w, ctx.needs_input_grad)
    dbias = _ops.conv2d_bias_grad(dy) if ctx.needs_input_grad[2] else None
    return dx, dw, dbias, None, None, None


def _jvp(inputs: tuple[Any, ...], y: Tensor, tangents: tuple[Any, ...]) -> Any:
    x, w, _, extent, window, precision = inputs
    return TransposedConvolution(window, precision, extent).tangent(x, w, tangents[:3])


register(_library, "conv_transpose2d", _conv_transpose2d, _backward, _save, _jvp)
register_autocast(_library, "conv_transpose2d")
register(_library, "conv_transpose2d_fused", _conv_transpose2d_fused, gradients.fused_backward,
         gradients.save_transposed, gradients.transposed_jvp)  # fmt: skip
register_autocast(_library, "conv_transpose2d_fused", cast=4)  # a norm keeps its own dtype


# ---- public function ------------------------------------------------------------------------


def transposed(
    operands: Sequence[Any],
    eps: float,
    extent: Sizes,
    more: Sizes,
    window: Sizes,
    activation: str | None,
    slope: float,
    residual_after: bool,
    precision: str | None,
) -> Tensor:
    """Return y of batched images, for arguments that ``conv_transpose_window`` has checked.

    Args:
        operands: x, w, bias, residual, and the batch normalization's weight, bias, mean and
            variance.
        eps: added to the variance.
        extent: y's height and width.
        more: rows and columns of zeros that x lacks at the bottom and right.
        window: as for conv2d's operator.
        activation, slope, residual_after, precision: as for ``conv2d_fused``.
    """
    check_norm_given(*operands[4:])
    if any(more):
        x = torch.nn.functional.pad(operands[0], (0, more[1], 0, more[0]))
        operands = (x, *operands[1:])
    if activation is None and operands[3] is None and operands[6] is None:
        form = (extent, window, precision)
        return _ops.conv_transpose2d.default(*operands[:3], *form)  # type: ignore[no-any-return]
    how = (activation, slope, residual_after, differentiates(*operands), precision)
    y: Tensor = _ops.conv_transpose2d_fused.default(*operands, eps, extent, window, *how)[0]
    return y


def conv_transpose2d(
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
    """Two-dimensional transposed convolution, as ``torch.nn.functional.conv_transpose2d``.

        y[n, k, h, v] = bias[k] + sum of x[n, c, p, q] w[c, k, r, s]
            over all c, r, s with a pixel (p, q) at p S = h + P - r D and q S = v + P - s D

    This is the gradient of ``conv2d`` with respect to its input, computed by the same kernels. They
    also compute batch normalization (evaluation), residual and activation where these are given, as
    in ``conv2d_fused``.

    Args:
        input: x, (batch, in_channels, in_h, in_w), or without batch.
        weight: w, (in_channels, out_channels / groups, filter_h, filter_w).
        bias: (out_channels,), or None.
        stride: S, one number for both axes or (height, width); the same holds for padding,
            output_padding and dilation.
        padding: P, rows and columns removed from each side of the full result.
        output_padding: rows and columns added at the bottom and right; less than the stride or the
            dilation.
        groups: number of independent layers that the channels are divided among.
        dilation: D, distance between the taps of a filter.
        running_mean, running_var, norm_weight, norm_bias, eps, residual, residual_after,
            activation, negative_slope: as for ``conv2d_fused``.
        precision: as for ``conv2d``.

    Returns:
        y, (batch, out_channels, out_h, out_w) with
        out = (in - 1) S - 2 P + D (F - 1) + output_padding + 1;
        channels_last if the input or the weight is.

    Raises:
        RuntimeError: if shapes, dtypes or devices do not match, with torch's message.
        ValueError: if the activation is unknown, or the batch normalization lacks a statistic.

    NaN or infinity in a filter also reaches the elements of y whose windows overhang x, because the
    filter is multiplied by the zeros around x. The same holds for ``conv2d``'s dx.

    >>> import torch
    >>> conv_transpose2d(torch.zeros(1, 8, 7, 7), torch.zeros(8, 4, 2, 2), stride=2).shape
    torch.Size([1, 4, 14, 14])
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
        return overridden(conv_transpose2d, everything, *tensors, *form, **how)  # type: ignore[no-any-return]
    window, extent, more = conv_transpose_window(*tensors, *form)
    batched = input.dim() != 3
    x = input if batched else input.unsqueeze(0)
    if residual is not None and not batched:
        residual = residual.unsqueeze(0)
    operands = (x, weight, bias, residual, *norm)
    how_fused = (activation, negative_slope, residual_after, precision)
    y = transposed(operands, eps, extent, more, window, *how_fused)
    return y if batched else y.squeeze(0)
