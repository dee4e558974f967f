"""Convolution with what follows it, in one kernel: residual, ReLU, 2x2 max-pool.

    conv2d_ended   (x, w, bias, residual) -> y = relu(x * w + bias + residual)
    conv2d_pooled  (x, w, bias) -> y = pool(relu(x * w + bias)), and where its maxima lay

Their gradients begin with one pass over dy that undoes the ending: it masks dy, or sends it to
the maxima, and sums the bias's gradient on the way. What remains is a plain convolution's.

    conv2d_relu_grad  (dy, y) -> dz, dbias         conv2d_pool_grad  (dy, offsets) -> dz, dbias

Both are linear in dy, so that gradients of gradients exist.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from tconv.launch import runs_triton
from tconv.ops.arguments import overridden
from tconv.ops.conv2d import (
    _ops,
    _y_layout,
    conv2d_tangent,
    fprop_call,
    is_relu,
    torchs_window,
    window_gradients,
    windowed,
    y_size,
)
from tconv.ops.conv_check import check_residual, check_types
from tconv.ops.conv_run import prepared_ending, prepared_pool_ending
from tconv.ops.layout import dense, empty, layout_of, prefers_channels_last
from tconv.ops.pool_check import pool_geometry
from tconv.ops.registration import differentiates, linear, register, register_autocast
from tconv.problem import Epilogue

# ---- operators ------------------------------------------------------------------------------

_library = torch.library.Library("tconv", "FRAGMENT")
_library.define(
    "conv2d_ended(Tensor x, Tensor w, Tensor? bias, Tensor? residual, int[] window, bool relu, "
    "str? precision) -> Tensor"
)
_library.define(
    "conv2d_pooled(Tensor x, Tensor w, Tensor? bias, int[] window, bool relu, bool offsets, "
    "str? precision) -> (Tensor, Tensor)"
)
_library.define("conv2d_relu_grad(Tensor dy, Tensor y, bool sums) -> (Tensor, Tensor)")
_library.define(
    "conv2d_pool_grad(Tensor dy, Tensor offsets, SymInt[] z_size, bool channels_last, bool sums) "
    "-> (Tensor, Tensor)"
)
_library.define("conv2d_pool_pick(Tensor z, Tensor offsets) -> Tensor")

Sizes = Sequence[int]


def _conv2d_ended(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    window: Sizes,
    relu: bool,
    precision: str | None,
) -> Tensor:
    check_types(x, w, bias, residual)
    if residual is not None:
        check_residual(residual.shape, y_size(x, w, window))
    if not runs_triton(x.device):
        y = torch.ops.aten.convolution(x, w, bias, *torchs_window(window))
        y = y if residual is None else y + residual
        return dense(y.relu() if relu else y, _y_layout(x, w))
    epilogue = Epilogue(bias is not None, residual is not None, relu)
    operands = {"x": x, "w": w, "bias": bias, "residual": residual}
    call = fprop_call(x, w, window, precision, epilogue)
    return call.run({name: tensor for name, tensor in operands.items() if tensor is not None})


def _conv2d_pooled(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    window: Sizes,
    relu: bool,
    offsets: bool,
    precision: str | None,
) -> tuple[Tensor, Tensor]:
    check_types(x, w, bias)
    if not runs_triton(x.device):
        z = torch.ops.aten.convolution(x, w, bias, *torchs_window(window))
        y, places = _torchs_pool(z.relu() if relu else z, relu)
        layout = _y_layout(x, w)
        return dense(y, layout), dense(places, layout) if offsets else places.new_empty(0)
    epilogue = Epilogue(bias is not None, relu=relu, pool=True, offsets=offsets)
    tensors = {"x": x, "w": w} if bias is None else {"x": x, "w": w, "bias": bias}
    y = fprop_call(x, w, window, precision, epilogue).run(tensors)
    return y, tensors.get("offsets", x.new_empty(0, dtype=torch.int8))


def _torchs_pool(z: Tensor, relu: bool) -> tuple[Tensor, Tensor]:
    """y and the offsets of its maxima, by torch's own operators."""
    y, indices = torch.ops.aten.max_pool2d_with_indices(z, [2, 2], [2, 2])
    columns = z.shape[-1]
    places = indices // columns % 2 * 2 + indices % columns % 2
    return y, torch.where(y <= 0, -1, places).to(torch.int8) if relu else places.to(torch.int8)


def _conv2d_relu_grad(dy: Tensor, y: Tensor, sums: bool) -> tuple[Tensor, Tensor]:
    if not runs_triton(dy.device):
        dz = torch.where(y <= 0, 0.0, dy)
        return dz, dz.sum((0, 2, 3)) if sums else dy.new_empty(0)
    layout = layout_of(prefers_channels_last(y))
    tensors = {"dy": dy, "y": y}
    dz = prepared_ending(dy.shape, layout, dy.dtype, dy.device, True, sums).run(tensors)
    return dz, tensors["dbias"] if sums else dy.new_empty(0)


def _conv2d_pool_grad(
    dy: Tensor, offsets: Tensor, z_size: Sizes, channels_last: bool, sums: bool
) -> tuple[Tensor, Tensor]:
    layout = layout_of(channels_last)
    if not runs_triton(dy.device):
        dz = dense(_torchs_unpool(dy, offsets, z_size), layout)
        return dz, dz.sum((0, 2, 3)) if sums else dy.new_empty(0)
    tensors = {"dy": dy, "offsets": offsets}
    dz = prepared_pool_ending(tuple(z_size), layout, dy.dtype, dy.device, sums).run(tensors)
    return dz, tensors["dbias"] if sums else dy.new_empty(0)


def _torchs_unpool(dy: Tensor, offsets: Tensor, z_size: Sizes) -> Tensor:
    dz = dy.new_zeros(tuple(z_size))
    rows, columns = 2 * dy.shape[2], 2 * dy.shape[3]
    for place in range(4):
        part = torch.where(offsets == place, dy, 0.0)
        dz[:, :, place // 2 : rows : 2, place % 2 : columns : 2] = part
    return dz


def _conv2d_pool_pick(z: Tensor, offsets: Tensor) -> Tensor:
    """z where the maxima lay, 0 where there was none: only gradients of gradients come here."""
    rows, columns = 2 * offsets.shape[2], 2 * offsets.shape[3]
    places = [z[:, :, place // 2 : rows : 2, place % 2 : columns : 2] for place in range(4)]
    picked = sum(torch.where(offsets == place, part, 0.0) for place, part in enumerate(places))
    return picked  # type: ignore[return-value]


@torch.library.register_fake("tconv::conv2d_ended", lib=_library)
def _(x: Tensor, w: Tensor, bias: Any, residual: Any, window: Sizes, relu: Any, _: Any) -> Tensor:
    check_types(x, w, bias, residual)
    size = y_size(x, w, window)
    if residual is not None:
        check_residual(residual.shape, size)
    return empty(x, size, _y_layout(x, w))


@torch.library.register_fake("tconv::conv2d_pooled", lib=_library)
def _(
    x: Tensor, w: Tensor, bias: Any, window: Sizes, relu: Any, offsets: bool, _: Any
) -> tuple[Tensor, Tensor]:
    check_types(x, w, bias)
    *image, out_h, out_w = y_size(x, w, window)
    y = empty(x, (*image, out_h // 2, out_w // 2), _y_layout(x, w))
    size = y.shape if offsets else (0,)
    places = torch.empty_like(y, dtype=torch.int8) if offsets else y.new_empty(size)
    return y, places.to(torch.int8)


@torch.library.register_fake("tconv::conv2d_relu_grad", lib=_library)
def _(dy: Tensor, y: Tensor, sums: bool) -> tuple[Tensor, Tensor]:
    layout = layout_of(prefers_channels_last(y))
    return empty(dy, dy.shape, layout), dy.new_empty(dy.shape[1] if sums else 0)


@torch.library.register_fake("tconv::conv2d_pool_grad", lib=_library)
def _(
    dy: Tensor, offsets: Tensor, z_size: Sizes, channels_last: bool, sums: bool
) -> tuple[Tensor, Tensor]:
    dz = empty(dy, z_size, layout_of(channels_last))
    return dz, dy.new_empty(dy.shape[1] if sums else 0)


@torch.library.register_fake("tconv::conv2d_pool_pick", lib=_library)
def _(z: Tensor, offsets: Tensor) -> Tensor:
    return torch.empty_like(offsets, dtype=z.dtype)


# ---- gradients ------------------------------------------------------------------------------


def _save_ended(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, w, _, _, ctx.window, ctx.relu, ctx.precision = inputs
    ctx.save_for_backward(x, w, *([output] if ctx.relu else []))


def _ended_backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    x, w, *y = ctx.saved_tensors
    dz, dbias = dy, None
    if ctx.relu:
        dz, dbias = _ops.conv2d_relu_grad(dy, y[0], ctx.needs_input_grad[2])
    elif ctx.needs_input_grad[2]:
        dbias = _ops.conv2d_bias_grad(dy)
    dx, dw = window_gradients(ctx, x, w, dz)
    dresidual = dz if ctx.needs_input_grad[3] else None
    return dx, dw, dbias if ctx.needs_input_grad[2] else None, dresidual, None, None, None


def _save_pooled(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, w, _, ctx.window, _, _, ctx.precision = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, w, output[1])


def _pooled_backward(ctx: Any, dy: Tensor | None, _: Any) -> tuple[Any, ...]:
    x, w, offsets = ctx.saved_tensors
    if dy is None:
        return (None,) * 7
    if offsets.shape != dy.shape:
        raise RuntimeError("conv2d_pooled kept no offsets, and has no gradient without them")
    channels_last = prefers_channels_last(offsets)
    size = y_size(x, w, ctx.window)
    sums = ctx.needs_input_grad[2]
    dz, dbias = _ops.conv2d_pool_grad(dy, offsets, size, channels_last, sums)
    dx, dw = window_gradients(ctx, x, w, dz)
    return dx, dw, dbias if sums else None, None, None, None, None


def _save_relu_grad(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(inputs[1])


def _relu_grad_backward(ctx: Any, ddz: Tensor | None, ddbias: Tensor | None) -> tuple[Any, ...]:
    (y,) = ctx.saved_tensors
    return _ops.conv2d_relu_grad(_with_bias(ddz, ddbias, y.shape), y, False)[0], None, None


def _with_bias(ddz: Tensor | None, ddbias: Tensor | None, size: Sizes) -> Tensor:
    """What both results of an ending's gradient, each of which may be None, ask of its input."""
    if ddbias is None or not ddbias.numel():
        assert ddz is not None
        return ddz
    each = ddbias[None, :, None, None].expand(tuple(size))
    return each if ddz is None else ddz + each


def _save_pool_grad(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.size = inputs[2]
    ctx.save_for_backward(inputs[1])


def _pool_grad_backward(ctx: Any, ddz: Tensor | None, ddbias: Tensor | None) -> tuple[Any, ...]:
    (offsets,) = ctx.saved_tensors
    dz = _with_bias(ddz, ddbias, ctx.size)
    return _ops.conv2d_pool_pick(dz, offsets), None, None, None, None


def _save_pick(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    z, offsets = inputs
    ctx.size, ctx.channels_last = z.shape, prefers_channels_last(z)
    ctx.save_for_backward(offsets)


def _pick_backward(ctx: Any, ddy: Tensor) -> tuple[Any, ...]:
    (offsets,) = ctx.saved_tensors
    return _ops.conv2d_pool_grad(ddy, offsets, ctx.size, ctx.channels_last, False)[0], None


# ---- tangents -------------------------------------------------------------------------------


def _ended_jvp(inputs: tuple[Any, ...], y: Tensor, tangents: tuple[Any, ...]) -> Any:
    x, w, _, _, window, relu, precision = inputs
    z = conv2d_tangent(x, w, window, precision, tangents[:3])
    if tangents[3] is not None:
        z = tangents[3] if z is None else z + tangents[3]
    return _ops.conv2d_relu_grad(z, y, False)[0] if relu else z


def _pooled_jvp(inputs: tuple[Any, ...], output: Any, tangents: tuple[Any, ...]) -> Any:
    x, w, _, window, _, _, precision = inputs
    z = conv2d_tangent(x, w, window, precision, tangents[:3])
    return _ops.conv2d_pool_pick(z, output[1]), None


for _name, _run, _gradient, _save, _jvp in (
    ("conv2d_ended", _conv2d_ended, _ended_backward, _save_ended, _ended_jvp),
    ("conv2d_pooled", _conv2d_pooled, _pooled_backward, _save_pooled, _pooled_jvp),
    ("conv2d_relu_grad", _conv2d_relu_grad, _relu_grad_backward, _save_relu_grad,
     linear("conv2d_relu_grad")),
    ("conv2d_pool_grad", _conv2d_pool_grad, _pool_grad_backward, _save_pool_grad,
     linear("conv2d_pool_grad")),
    ("conv2d_pool_pick", _conv2d_pool_pick, _pick_backward, _save_pick,
     linear("conv2d_pool_pick")),
):  # fmt: skip
    register(_library, _name, _run, _gradient, _save, _jvp)
register_autocast(_library, "conv2d_ended")
register_autocast(_library, "conv2d_pooled")


# ---- public function ------------------------------------------------------------------------


def conv2d_pool(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    activation: str | None = None,
    precision: str | None = None,
) -> Tensor:
    """Convolution, ReLU and 2x2 max-pool at stride 2 in one kernel.

        y = max_pool2d(conv2d(input, weight, bias, ...), 2)

    with ``activation="relu"`` between the two. Only y is written, a quarter of what the
    convolution computes; where a gradient will be asked for, a byte for each of its elements too.

    Arguments, result and errors are those of ``conv2d``.

    >>> import torch
    >>> conv2d_pool(torch.zeros(1, 3, 32, 32), torch.zeros(10, 3, 5, 5), padding=2).shape
    torch.Size([1, 10, 16, 16])
    """
    tensors = (input, weight, bias)
    if has_torch_function_variadic(*tensors):
        form = (stride, padding, dilation, groups)
        how = {"activation": activation, "precision": precision}
        return overridden(conv2d_pool, tensors, *tensors, *form, **how)  # type: ignore[no-any-return]
    x, window = windowed(input, weight, bias, stride, padding, dilation, groups)
    pool_geometry(y_size(x, weight, window), (2, 2), (2, 2), (0, 0), (1, 1), False)
    operands = [x, weight] if bias is None else [x, weight, bias]
    offsets = differentiates(*operands)
    relu = is_relu(activation)
    y, _ = _ops.conv2d_pooled(x, weight, bias, window, relu, offsets, precision)
    return y if input.dim() != 3 else y.squeeze(0)
