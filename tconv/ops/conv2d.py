"""Convolution: launchers, the operators and their gradients, the public function.

Three operators close under differentiation. With * for convolution, y = x * w, and

    conv2d              (x, w)  -> y     gradients: conv2d_input_grad, conv2d_weight_grad
    conv2d_input_grad   (dy, w) -> dx    gradients: conv2d, conv2d_weight_grad
    conv2d_weight_grad  (x, dy) -> dw    gradients: conv2d_input_grad, conv2d

so that gradients of gradients, of any order, run on the same kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from tconv.launch import runs_triton
from tconv.ops import vmap
from tconv.ops.arguments import overridden
from tconv.ops.conv_check import check_types, conv_window
from tconv.ops.conv_run import (
    Call,
    cached_call,
    cached_fprop_call,
    epilogue_grad_call,
    precision_of,
)
from tconv.ops.layout import dense, empty, layout_of, prefers_channels_last
from tconv.ops.products import Convolution, result_size, y_channels_last
from tconv.ops.registration import bilinear, differentiates, linear, register, register_autocast
from tconv.problem import BIAS, PLAIN, Epilogue, Layout

# ---- operators ------------------------------------------------------------------------------

_library = torch.library.Library("tconv", "FRAGMENT")
# A window is one list, (stride, padding, dilation) for height and width each, then groups: every
# argument costs the dispatcher half a microsecond.
_library.define("conv2d(Tensor x, Tensor w, Tensor? bias, int[] window, str? precision) -> Tensor")
_GRADIENT = "int[] window, bool channels_last, str? precision"
_library.define(f"conv2d_input_grad(Tensor dy, Tensor w, SymInt[] x_size, {_GRADIENT}) -> Tensor")
_library.define(f"conv2d_weight_grad(Tensor x, Tensor dy, SymInt[] w_size, {_GRADIENT}) -> Tensor")
_library.define("conv2d_bias_grad(Tensor dy) -> Tensor")
_ops = torch.ops.tconv

Sizes = Sequence[int]
NEGATIVE_SLOPE = 0.01  # torch's default for leaky_relu


def _layout(tensor: Tensor) -> Layout:
    return layout_of(prefers_channels_last(tensor))


def y_layout(x: Tensor, w: Tensor) -> Layout:
    """Return the format of x * w in memory."""
    return layout_of(y_channels_last(x, w))


def _conv2d(
    x: Tensor, w: Tensor, bias: Tensor | None, window: Sizes, precision: str | None
) -> Tensor:
    check_types(x, w, bias)
    if not runs_triton(x.device):
        pairs = torchs_window(window)
        return dense(torch.ops.aten.convolution(x, w, bias, *pairs), y_layout(x, w))
    call = fprop_call(x, w, window, precision, PLAIN if bias is None else BIAS)
    return call({"x": x, "w": w} if bias is None else {"x": x, "w": w, "bias": bias})


def fprop_call(
    x: Tensor, w: Tensor, window: Sizes, precision: str | None, epilogue: Epilogue
) -> Call:
    """The forward pass that x and w ask for."""
    return cached_fprop_call(
        x.shape,
        x.stride(),
        w.shape,
        w.stride(),
        tuple(window),
        x.dtype,
        x.device,
        precision_of(x, precision),
        epilogue,
    )


def _conv2d_input_grad(
    dy: Tensor,
    w: Tensor,
    x_size: Sizes,
    window: Sizes,
    channels_last: bool,
    precision: str | None,
) -> Tensor:
    layout = layout_of(channels_last)
    if not runs_triton(dy.device):
        return dense(_torch_gradient(0, dy, dy.new_empty(x_size), w, window), layout)
    shapes = (tuple(x_size), w.shape, tuple(window))
    places = (layout, _layout(w), dy.dtype, dy.device)
    call = cached_call("dgrad", *shapes, *places, precision_of(dy, precision))
    return call({"dy": dy, "w": w})


def _conv2d_weight_grad(
    x: Tensor,
    dy: Tensor,
    w_size: Sizes,
    window: Sizes,
    channels_last: bool,
    precision: str | None,
) -> Tensor:
    layout = layout_of(channels_last)
    if not runs_triton(x.device):
        return dense(_torch_gradient(1, dy, x, x.new_empty(w_size), window), layout)
    shapes = (x.shape, tuple(w_size), tuple(window))
    places = (_layout(x), layout, x.dtype, x.device)
    call = cached_call("wgrad", *shapes, *places, precision_of(x, precision))
    return call({"x": x, "dy": dy})


def torchs_window(window: Sizes) -> tuple[Any, ...]:
    """aten's stride, padding, dilation, transposed, output_padding, groups."""
    return window[0:2], window[2:4], window[4:6], False, [0, 0], window[6]


def _torch_gradient(which: int, dy: Tensor, x: Tensor, w: Tensor, window: Sizes) -> Tensor:
    """torch's own gradient of a convolution on the CPU: 0 for dx, 1 for dw."""
    mask = [which == 0, which == 1, False]
    operands = (dy, x, w, None)
    both = torch.ops.aten.convolution_backward(*operands, *torchs_window(window), mask)
    return both[which]  # type: ignore[no-any-return]


def _conv2d_bias_grad(dy: Tensor) -> Tensor:
    if not runs_triton(dy.device):
        return dy.sum((0, 2, 3))
    return epilogue_grad_call(dy.shape, _layout(dy), dy.dtype, dy.device)({"dy": dy})


def y_size(x: Tensor, w: Tensor, window: Sizes) -> tuple[int, ...]:
    """The size of x * w."""
    return result_size(x.shape, w.shape, window)


@torch.library.register_fake("tconv::conv2d", lib=_library)
def _(x: Tensor, w: Tensor, bias: Tensor | None, window: Sizes, precision: str | None) -> Tensor:
    check_types(x, w, bias)
    return empty(x, y_size(x, w, window), y_layout(x, w))


@torch.library.register_fake("tconv::conv2d_input_grad", lib=_library)
def _(
    dy: Tensor, w: Tensor, x_size: Sizes, window: Sizes, channels_last: bool, precision: str | None
) -> Tensor:
    return empty(dy, x_size, layout_of(channels_last))


@torch.library.register_fake("tconv::conv2d_weight_grad", lib=_library)
def _(
    x: Tensor, dy: Tensor, w_size: Sizes, window: Sizes, channels_last: bool, precision: str | None
) -> Tensor:
    return empty(x, w_size, layout_of(channels_last))


@torch.library.register_fake("tconv::conv2d_bias_grad", lib=_library)
def _(dy: Tensor) -> Tensor:
    return dy.new_empty(dy.shape[1])


# ---- gradients ------------------------------------------------------------------------------


def _save_conv2d(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, w, _, ctx.window, ctx.precision = inputs
    ctx.save_for_backward(x, w)


def _conv2d_backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    x, w = ctx.saved_tensors
    dx, dw = Convolution(ctx.window, ctx.precision).gradients(dy, x, w, ctx.needs_input_grad)
    dbias = _ops.conv2d_bias_grad(dy) if ctx.needs_input_grad[2] else None
    return dx, dw, dbias, None, None


def _save_gradient(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Of conv2d_input_grad (dy, w) and conv2d_weight_grad (x, dy) alike."""
    first, second, _, ctx.window, _, ctx.precision = inputs
    ctx.save_for_backward(first, second)


def _input_grad_backward(ctx: Any, ddx: Tensor) -> tuple[Any, ...]:
    dy, w = ctx.saved_tensors
    ddy = dw = None
    if ctx.needs_input_grad[0]:
        ddy = _ops.conv2d(ddx, w, None, ctx.window, ctx.precision)
    if ctx.needs_input_grad[1]:
        dw = Convolution(ctx.window, ctx.precision).weight_grad(dy, ddx, w)
    return ddy, dw, None, None, None, None


def _weight_grad_backward(ctx: Any, ddw: Tensor) -> tuple[Any, ...]:
    x, dy = ctx.saved_tensors
    dx = ddy = None
    if ctx.needs_input_grad[0]:
        window = (ctx.window, prefers_channels_last(x), ctx.precision)
        dx = _ops.conv2d_input_grad(dy, ddw, x.shape, *window)
    if ctx.needs_input_grad[1]:
        ddy = _ops.conv2d(x, ddw, None, ctx.window, ctx.precision)
    return dx, ddy, None, None, None, None


def _save_bias_grad(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.shape = inputs[0].shape


def _bias_grad_backward(ctx: Any, ddbias: Tensor) -> Tensor:
    return ddbias[None, :, None, None].expand(ctx.shape)


def _conv2d_jvp(inputs: tuple[Any, ...], y: Tensor, tangents: tuple[Any, ...]) -> Any:
    x, w, _, window, precision = inputs
    return Convolution(window, precision).tangent(x, w, tangents[:3])


for _name, _run, _gradient, _save, _jvp, _fold in (
    ("conv2d", _conv2d, _conv2d_backward, _save_conv2d, _conv2d_jvp, vmap.conv2d),
    ("conv2d_input_grad", _conv2d_input_grad, _input_grad_backward, _save_gradient,
     bilinear("conv2d_input_grad"), vmap.input_grad),
    ("conv2d_weight_grad", _conv2d_weight_grad, _weight_grad_backward, _save_gradient,
     bilinear("conv2d_weight_grad"), vmap.weight_grad),
    ("conv2d_bias_grad", _conv2d_bias_grad, _bias_grad_backward, _save_bias_grad,
     linear("conv2d_bias_grad"), vmap.bias_grad),
):  # fmt: skip
    register(_library, _name, _run, _gradient, _save, _jvp, _fold)


# ---- autocast -------------------------------------------------------------------------------


register_autocast(_library, "conv2d")


# ---- public function ------------------------------------------------------------------------


def windowed(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
) -> tuple[Tensor, tuple[int, ...]]:
    """x with a batch and the padding that ``"same"`` adds on one side, and the window in full."""
    arguments = (stride, padding, dilation, groups)
    window, (rows, columns) = conv_window(input, weight, bias, *arguments)
    x = input if input.dim() != 3 else input.unsqueeze(0)
    if rows or columns:
        x = torch.nn.functional.pad(x, (0, columns, 0, rows))
    return x, window


def convolved(
    operands: Sequence[Any],
    eps: float,
    window: Sizes,
    activation: str | None,
    slope: float,
    residual_after: bool,
    precision: str | None,
) -> Tensor:
    """Return activation(norm(x * w + bias) + residual) of batched images with a checked window.

    ``operands`` are x, w, bias, residual, and the batch normalization's weight, bias, mean and
    variance. With ``residual_after`` the residual is added to the activation's result.
    """
    if activation is None and operands[3] is None and operands[6] is None:
        return _ops.conv2d.default(*operands[:3], window, precision)  # type: ignore[no-any-return]
    epilogue = (activation, slope, residual_after, False, differentiates(*operands), precision)
    y: Tensor = _ops.conv2d_fused.default(*operands, eps, window, *epilogue)[0]
    return y


def conv2d(
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
    """Two-dimensional convolution, as ``torch.nn.functional.conv2d``.

        y[n, k, p, q] = bias[k] + sum over c, r, s of
            x[n, c, p S - P + r D, q S - P + s D] w[k, c, r, s]

    and, in the same kernel where they are asked for, ``activation(y + residual)``.

    Args:
        input: x, (batch, in_channels, in_h, in_w), or without batch.
        weight: w, (out_channels, in_channels / groups, filter_h, filter_w).
        bias: (out_channels,), or None.
        stride: S, one number or one for each of height and width.
        padding: P, likewise, or ``"valid"`` (none) or ``"same"`` (keeps the size at stride 1).
        dilation: D, distance between the taps of a filter.
        groups: layers side by side that share the channels out among them.
        activation: ``"relu"``, another name that ``conv2d_fused`` takes, or None.
        residual: of the size of y; it is added before the activation.
        precision: how float32 products are formed: ``"tf32"`` (operands rounded to 10 bits),
            ``"tf32x3"`` (three such products, near float32), ``"ieee"`` (exact, without the
            matrix unit); None follows ``torch.backends.cudnn.conv.fp32_precision``.

    Returns:
        y, (batch, out_channels, out_h, out_w) with out = (in - D (F - 1) - 1 + 2 P) // S + 1;
        channels_last where the input or the weight is.

    Raises:
        RuntimeError: for shapes, dtypes or devices that do not go together, in torch's words.
        ValueError: for an activation that is not known.

    NaN and infinities go where torch sends them. A filter that holds one spoils those elements of
    dx as well whose windows overhang dy, as in every implicit matrix product, cuDNN's among them.

    float16 and bfloat16 are summed in float32, float64 in float64; float32 is rounded to tf32
    where torch's switch allows it, and else formed as tf32x3. Repeated calls give the same bits.

    >>> import torch
    >>> conv2d(torch.zeros(1, 3, 32, 32), torch.zeros(10, 3, 5, 5), padding=2).shape
    torch.Size([1, 10, 32, 32])
    """
    if has_torch_function_variadic(input, weight, bias, residual):
        tensors = (input, weight, bias, residual)
        form = (stride, padding, dilation, groups)
        how = {"activation": activation, "residual": residual, "precision": precision}
        return overridden(conv2d, tensors, *tensors[:3], *form, **how)  # type: ignore[no-any-return]
    x, window = windowed(input, weight, bias, stride, padding, dilation, groups)
    batched = input.dim() != 3
    if residual is not None and not batched:
        residual = residual.unsqueeze(0)
    operands = (x, weight, bias, residual, *(None,) * 4)
    y = convolved(operands, 0.0, window, activation, NEGATIVE_SLOPE, False, precision)
    return y if batched else y.squeeze(0)
