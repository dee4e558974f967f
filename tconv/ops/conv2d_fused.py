"""Convolution with everything that follows it in a network's block, in one kernel.

    conv2d_fused (x, w, bias, residual, batch norm) -> y, kept, offsets

        z = norm(x * w + bias) + residual
        y = pool(activation(z))

with each part optional. The batch normalization is that of evaluation: the kernel reads the
normalization's own tensors at every call, so that nothing is folded and nothing can be out of
date. ``kept`` is the activation's argument at each element of y, and ``offsets`` the place of
each pooled maximum; both are empty unless a gradient will need them.

The gradient begins with one pass over dy that undoes the activation or the pool, and sums the
gradient of the bias on the way. What remains is a plain convolution's.

    conv2d_activation_grad  (dy, value) -> dz, dbias
    conv2d_pool_grad        (dy, offsets) -> dz, dbias

The derivative is taken from y where it is a function of y. Otherwise the forward kernel writes
the argument beside y: one tensor written and read, where computing it again would read x, w and
the residual besides.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from tconv.launch import runs_triton
from tconv.ops import activations
from tconv.ops.arguments import overridden, untraced
from tconv.ops.conv2d import (
    _ops,
    _y_layout,
    conv2d_tangent,
    fprop_call,
    torchs_window,
    window_gradients,
    windowed,
    y_size,
)
from tconv.ops.conv_check import check_norm, check_residual, check_types
from tconv.ops.conv_run import epilogue_grad_call, pool_grad_call
from tconv.ops.layout import dense, empty, layout_of, prefers_channels_last
from tconv.ops.pool_check import pool_geometry
from tconv.ops.registration import differentiates, linear, register, register_autocast
from tconv.problem import BatchNorm, Epilogue, dtype_name

# ---- operators ------------------------------------------------------------------------------

_library = torch.library.Library("tconv", "FRAGMENT")
_library.define(
    "conv2d_fused(Tensor x, Tensor w, Tensor? bias, Tensor? residual, Tensor? norm_weight, "
    "Tensor? norm_bias, Tensor? norm_mean, Tensor? norm_var, float eps, int[] window, "
    "str? activation, float slope, bool residual_after, bool pool, bool keep, str? precision) "
    "-> (Tensor, Tensor, Tensor)"
)
_library.define(
    "conv2d_activation_grad(Tensor dy, Tensor value, str activation, float slope, "
    "bool from_result, bool sums) -> (Tensor, Tensor)"
)
_library.define(
    "conv2d_pool_grad(Tensor dy, Tensor offsets, SymInt[] z_size, bool channels_last, bool sums) "
    "-> (Tensor, Tensor)"
)
_library.define("conv2d_pool_pick(Tensor z, Tensor offsets) -> Tensor")

Sizes = Sequence[int]
OperandTensors = tuple[Tensor | None, ...]
NAMES = ("x", "w", "bias", "residual", "norm_weight", "norm_bias", "norm_mean", "norm_var")


@lru_cache(maxsize=4096)
def _epilogue(
    there: tuple[bool, ...],
    norm_dtype: str | None,
    eps: float,
    activation: str | None,
    slope: float,
    residual_after: bool,
    pool: bool,
    keep: bool,
) -> Epilogue:
    """The epilogue of a call; ``there`` says which tensors from the bias on are given."""
    bias, residual, norm_weight, norm_bias = there
    norm = None if norm_dtype is None else BatchNorm(norm_dtype, eps, norm_weight, norm_bias)
    slope = slope if activation == "leaky_relu" else 0.0
    after = residual and residual_after and activation is not None
    made = Epilogue(bias, norm, residual, activation, slope, after, pool)
    kept = keep and activation is not None and not made.from_result
    return Epilogue(bias, norm, residual, activation, slope, after, pool, keep and pool, kept)


def _epilogue_of(operands: OperandTensors, *how: Any) -> Epilogue:
    """The same from the operator's arguments: the eight tensors, then eps and what follows."""
    there = tuple(tensor is not None for tensor in operands[2:6])
    mean = operands[6]
    return _epilogue(there, None if mean is None else dtype_name(mean.dtype), *how)


def _conv2d_fused(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    operands = _of_one_dtype(inputs[:8])
    x, w = operands[:2]
    eps, window, activation, slope, residual_after, pool, keep, precision = inputs[8:]
    epilogue = _epilogue_of(operands, eps, activation, slope, residual_after, pool, keep)
    check_types(*operands[:4])
    check_norm(operands[4:], w.shape[0], x.device)
    if operands[3] is not None:
        check_residual(operands[3].shape, y_size(x, w, window))
    if not runs_triton(x.device):
        return _by_torch(operands, window, epilogue)
    tensors = {
        name: tensor for name, tensor in zip(NAMES, operands, strict=True) if tensor is not None
    }
    y = fprop_call(x, w, window, precision, epilogue)(tensors)
    kept = tensors["kept"] if epilogue.kept else x.new_empty(0)
    offsets = tensors["offsets"] if epilogue.offsets else x.new_empty(0, dtype=torch.int8)
    return y, kept, offsets


def _of_one_dtype(operands: OperandTensors) -> tuple[Any, ...]:
    """The operands; tensors of a batch normalization that differ in dtype become float32."""
    norm = [tensor for tensor in operands[4:] if tensor is not None]
    if len({tensor.dtype for tensor in norm}) < 2 or any(not t.is_floating_point() for t in norm):
        return tuple(operands)
    wide = torch.float64 if operands[0].dtype == torch.float64 else torch.float32  # type: ignore[union-attr]
    return (*operands[:4], *(None if t is None else t.to(wide) for t in operands[4:]))


def _by_torch(
    operands: tuple[Any, ...], window: Sizes, epilogue: Epilogue
) -> tuple[Tensor, Tensor, Tensor]:
    """The same by torch's own operators, for the CPU without the interpreter."""
    x, w, bias, residual, norm_weight, norm_bias, norm_mean, norm_var = operands
    z = torch.ops.aten.convolution(x, w, bias, *torchs_window(window))
    if epilogue.norm is not None:
        scale = torch.rsqrt(norm_var.to(_wide(x)) + epilogue.norm.eps)
        scale = scale if norm_weight is None else scale * norm_weight
        z = (z - norm_mean[:, None, None]) * scale[:, None, None]
        z = (z if norm_bias is None else z + norm_bias[:, None, None]).to(x.dtype)
    if residual is not None and not epilogue.residual_after:
        z = z + residual
    y = z if epilogue.activation is None else activations.apply(z, *_named(epilogue))
    if epilogue.residual_after:
        y = y + residual
    layout, none = _y_layout(x, w), x.new_empty(0)
    places = x.new_empty(0, dtype=torch.int8)
    if epilogue.pool:
        y, indices = torch.ops.aten.max_pool2d_with_indices(y, [2, 2], [2, 2])
        columns = z.shape[-1]
        places = (indices // columns % 2 * 2 + indices % columns % 2).to(torch.int8)
        z = _conv2d_pool_pick(z, places)
        if _masks(epilogue.activation, epilogue.residual_after):
            places = torch.where(y <= 0, -1, places).to(torch.int8)
    kept = dense(z, layout) if epilogue.kept else none
    return (
        dense(y, layout),
        kept,
        dense(places, layout) if epilogue.offsets else none.to(torch.int8),
    )


def _wide(x: Tensor) -> torch.dtype:
    """The dtype in which a normalization is computed."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _named(epilogue: Epilogue) -> tuple[str, float]:
    assert epilogue.activation is not None
    return epilogue.activation, epilogue.slope


def _masks(activation: str | None, residual_after: bool) -> bool:
    """Whether the offsets of a pool name the windows that a ReLU closed as well."""
    return activation == "relu" and not residual_after


def _conv2d_activation_grad(
    dy: Tensor, value: Tensor, activation: str, slope: float, from_result: bool, sums: bool
) -> tuple[Tensor, Tensor]:
    if not runs_triton(dy.device):
        dz = dy * activations.derivative(value, activation, slope, from_result)
        return dz, dz.sum((0, 2, 3)) if sums else dy.new_empty(0)
    layout = layout_of(prefers_channels_last(value))
    tensors = {"dy": dy, "value": value}
    how = (activation, slope, from_result)
    dz = epilogue_grad_call(dy.shape, layout, dy.dtype, dy.device, how, sums)(tensors)
    return dz, tensors["dbias"] if sums else dy.new_empty(0)


def _conv2d_pool_grad(
    dy: Tensor, offsets: Tensor, z_size: Sizes, channels_last: bool, sums: bool
) -> tuple[Tensor, Tensor]:
    layout = layout_of(channels_last)
    if not runs_triton(dy.device):
        dz = dense(_torchs_unpool(dy, offsets, z_size), layout)
        return dz, dz.sum((0, 2, 3)) if sums else dy.new_empty(0)
    tensors = {"dy": dy, "offsets": offsets}
    dz = pool_grad_call(tuple(z_size), layout, dy.dtype, dy.device, sums)(tensors)
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


@torch.library.register_fake("tconv::conv2d_fused", lib=_library)
def _(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    operands, window = inputs[:8], inputs[9]
    x, w, _, residual = operands[:4]
    epilogue = _epilogue_of(operands, inputs[8], *inputs[10:15])
    check_types(*operands[:4])
    check_norm(operands[4:], w.shape[0], x.device)
    *image, out_h, out_w = size = y_size(x, w, window)
    if residual is not None:
        check_residual(residual.shape, size)
    if epilogue.pool:
        size = (*image, out_h // 2, out_w // 2)
    layout = _y_layout(x, w)
    y = empty(x, size, layout)
    kept = empty(x, size, layout) if epilogue.kept else x.new_empty(0)
    int8 = torch.int8
    offsets = empty(x, size, layout, int8) if epilogue.offsets else x.new_empty(0, dtype=int8)
    return y, kept, offsets


@torch.library.register_fake("tconv::conv2d_activation_grad", lib=_library)
def _(dy: Tensor, value: Tensor, a: Any, s: Any, f: Any, sums: bool) -> tuple[Tensor, Tensor]:
    layout = layout_of(prefers_channels_last(value))
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


def _save_fused(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, w, bias, residual, norm_weight, _, norm_mean, norm_var = inputs[:8]
    ctx.eps, ctx.window, ctx.activation, ctx.slope, after, ctx.pool, _, ctx.precision = inputs[8:]
    y, kept, offsets = output
    ctx.residual_after = after and residual is not None and ctx.activation is not None
    epilogue = Epilogue(residual=residual is not None, activation=ctx.activation, slope=ctx.slope,
                        residual_after=ctx.residual_after)  # fmt: skip
    ctx.from_result = epilogue.from_result
    ctx.norm = norm_mean is not None
    ctx.mark_non_differentiable(*([offsets] if kept.dim() == 4 else [kept, offsets]))
    ctx.set_materialize_grads(False)
    value = None
    if ctx.activation is not None and not (ctx.pool and _masks(ctx.activation, ctx.residual_after)):
        value = y if ctx.from_result else kept
    norm = (norm_weight, norm_mean, norm_var, bias) if ctx.norm else (None,) * 4
    ctx.save_for_backward(x, w, value, offsets if ctx.pool else None, *norm)


def _fused_backward(ctx: Any, dy: Tensor | None, dkept: Tensor | None, _: Any) -> tuple[Any, ...]:
    if dy is None and dkept is None:
        return (None,) * 16
    x, w, value, offsets, *norm = ctx.saved_tensors
    needs = ctx.needs_input_grad
    sums = needs[2] or any(needs[4:8])
    dz, dbias = _argument_grad(ctx, dy, dkept, value, offsets, sums)
    dresidual = None
    if needs[3]:
        dresidual = dz
        if ctx.residual_after:
            dresidual = dy
            if ctx.pool and dy is not None:
                dresidual = _unpooled(ctx, dy, offsets, False)[0]
    if ctx.norm:
        grads = _norm_backward(ctx, x, w, dz, dbias, *norm)
    else:
        grads = (*window_gradients(ctx, x, w, dz), dbias, *(None,) * 4)
    dx, dw, dbias, *dnorm = grads
    found = (dx, dw, dbias, dresidual, *dnorm)
    asked = (g if needed else None for g, needed in zip(found, needs[:8], strict=True))
    return (*asked, *(None,) * 8)


def _argument_grad(
    ctx: Any, dy: Tensor | None, dkept: Tensor | None, value: Tensor | None,
    offsets: Tensor | None, sums: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """The gradient of the activation's argument, and its sum for each channel if asked for."""
    dz, total = dy, None
    if dy is not None and value is not None:
        if value.shape != dy.shape:
            raise RuntimeError("conv2d_fused has no gradient here: it was called with keep=False")
        direct = sums and not ctx.pool and dkept is None
        how = (ctx.activation, ctx.slope, ctx.from_result, direct)
        dz, total = _ops.conv2d_activation_grad(dy, value, *how)
    if dkept is not None:
        dz = dkept if dz is None else dz + dkept
    assert dz is not None
    if ctx.pool:
        return _unpooled(ctx, dz, offsets, sums)
    if sums and (total is None or not total.numel()):
        total = _ops.conv2d_bias_grad(dz)
    return dz, total if sums else None


def _unpooled(
    ctx: Any, dy: Tensor, offsets: Tensor | None, sums: bool
) -> tuple[Tensor, Tensor | None]:
    """dy at the maxima of its windows, 0 elsewhere; and its sums."""
    if offsets is None or offsets.shape != dy.shape:
        raise RuntimeError("conv2d_fused has no gradient here: it was called with keep=False")
    x, w = ctx.saved_tensors[:2]
    size = y_size(x, w, ctx.window)
    dz, total = _ops.conv2d_pool_grad(dy, offsets, size, prefers_channels_last(offsets), sums)
    return dz, total if sums else None


def _norm_backward(
    ctx: Any, x: Tensor, w: Tensor, dz: Tensor, total: Tensor | None, weight: Tensor | None,
    mean: Tensor, var: Tensor, bias: Tensor | None,
) -> tuple[Any, ...]:  # fmt: skip
    """dx, dw, dbias and those of the normalization's weight, bias, mean and variance.

    With u = x * w, s = weight / sqrt(var + eps) and dz the gradient of (u + bias - mean) s + b:
    dx is the gradient by the filters w s, and sum(dz u) = sum(w dv) over each filter, where dv
    is the gradient of the filters by dz. So the tensors of the size of x are read no more often
    than without the normalization.
    """
    needs, wide = ctx.needs_input_grad, _wide(x)
    inverse = torch.rsqrt(var.to(wide) + ctx.eps)
    scale = inverse if weight is None else inverse * weight
    dx = dw = dv = dbias = dweight = dmean = dvar = None
    if needs[0]:
        scaled = (w * scale[:, None, None, None]).to(w.dtype)
        dx = window_gradients(ctx, x, scaled, dz, (True, False))[0]
    if needs[1] or needs[4] or needs[7]:
        dv = window_gradients(ctx, x, w, dz, (False, True))[1]
    if needs[1]:
        dw = (dv * scale[:, None, None, None]).to(w.dtype)  # type: ignore[operator]
    if total is not None:
        total = total.to(wide)
        dbias, dmean = total * scale, -total * scale
    if needs[4] or needs[7]:
        products = (w.to(wide) * dv.to(wide)).sum((1, 2, 3))  # type: ignore[union-attr]
        centre = -mean.to(wide) if bias is None else bias.to(wide) - mean.to(wide)
        assert total is not None
        dweight = (products + centre * total) * inverse
        dvar = dweight * scale * inverse * -0.5
    found = ((dbias, bias), (dweight, weight), (total, mean), (dmean, mean), (dvar, var))
    cast = (None if g is None or like is None else g.to(like.dtype) for g, like in found)
    return (dx, dw, *cast)


def _save_activation_grad(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    dy, value, *ctx.how, _ = inputs
    ctx.save_for_backward(dy, value)


def _activation_grad_backward(
    ctx: Any, ddz: Tensor | None, ddbias: Tensor | None
) -> tuple[Any, ...]:
    dy, value = ctx.saved_tensors
    asked = _with_bias(ddz, ddbias, dy.shape)
    dvalue = None
    if ctx.needs_input_grad[1]:
        second = activations.second_derivative(value, *ctx.how)
        dvalue = None if second is None else dy * asked * second
    return _ops.conv2d_activation_grad(asked, value, *ctx.how, False)[0], dvalue, *(None,) * 4


def _with_bias(ddz: Tensor | None, ddbias: Tensor | None, size: Sizes) -> Tensor:
    """The gradient of dz, with that of its sums over each channel added; one may be None."""
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


def _fused_jvp(inputs: tuple[Any, ...], output: Any, tangents: tuple[Any, ...]) -> Any:
    """The tangents of y and kept: those of the activation's argument, carried on as dz is back."""
    activation, slope, after, pool = inputs[10:14]
    after = after and inputs[3] is not None and activation is not None
    y, kept, offsets = output
    if pool and offsets.shape != y.shape:
        raise RuntimeError("conv2d_fused has no tangent here: it was called with keep=False")

    def pooled(tangent: Tensor | None) -> Tensor | None:
        return _ops.conv2d_pool_pick(tangent, offsets) if pool and tangent is not None else tangent

    dresidual = tangents[3]
    dz = _normalized_tangent(inputs, tangents)
    if dresidual is not None and not after:
        dz = dresidual if dz is None else dz + dresidual
    dy = dz = pooled(dz)
    if dz is not None and activation is not None and not (pool and _masks(activation, after)):
        from_result = Epilogue(residual=inputs[3] is not None, activation=activation, slope=slope,
                               residual_after=after).from_result  # fmt: skip
        value = y if from_result else kept
        if value.shape != y.shape:
            raise RuntimeError("conv2d_fused has no tangent here: it was called with keep=False")
        dy = _ops.conv2d_activation_grad(dz, value, activation, slope, from_result, False)[0]
    if dresidual is not None and after:
        beside = pooled(dresidual)
        dy = beside if dy is None else dy + beside  # type: ignore[operator]
    return dy, dz if kept.dim() == 4 else None, None


def _normalized_tangent(inputs: tuple[Any, ...], tangents: tuple[Any, ...]) -> Tensor | None:
    """The tangent of norm(x * w + bias)."""
    x, w, bias, _, weight, _, mean, var, eps, window = inputs[:10]
    precision = inputs[-1]
    du = conv2d_tangent(x, w, window, precision, tangents[:3])
    if mean is None:
        return du
    dweight, dshift, dmean, dvar = tangents[4:8]
    inverse = torch.rsqrt(var.to(_wide(x)) + eps)
    scale = inverse if weight is None else inverse * weight
    parts = [] if du is None else [du * scale[:, None, None]]
    if dweight is not None or dvar is not None:
        dscale = torch.zeros_like(scale) if dweight is None else inverse * dweight
        dscale = dscale if dvar is None else dscale - 0.5 * scale * inverse * inverse * dvar
        u = _ops.conv2d(x, w, bias, window, precision)
        parts.append((u - mean[:, None, None]) * dscale[:, None, None])
    each = [] if dmean is None else [-dmean * scale]
    each += [] if dshift is None else [dshift]
    size = y_size(x, w, window)
    parts += [channel[:, None, None].expand(size) for channel in each]
    return sum(parts[1:], parts[0]).to(x.dtype) if parts else None


def _activation_grad_jvp(inputs: tuple[Any, ...], output: Any, tangents: tuple[Any, ...]) -> Any:
    """By dy, in which dz is linear, and by the value at which the derivative is taken."""
    dy, value, *how, sums = inputs
    dz, dbias = map(torch.zeros_like, output)
    if tangents[0] is not None:
        dz, dbias = _ops.conv2d_activation_grad(tangents[0], value, *how, sums)
    second = None
    if tangents[1] is not None:
        second = activations.second_derivative(value, *how)
    if second is not None:
        dz = dz + dy * tangents[1] * second
        dbias = dz.sum((0, 2, 3)) if sums else dbias
    return dz, dbias


for _name, _run, _gradient, _save, _jvp in (
    ("conv2d_fused", _conv2d_fused, _fused_backward, _save_fused, _fused_jvp),
    ("conv2d_activation_grad", _conv2d_activation_grad, _activation_grad_backward,
     _save_activation_grad, _activation_grad_jvp),
    ("conv2d_pool_grad", _conv2d_pool_grad, _pool_grad_backward, _save_pool_grad,
     linear("conv2d_pool_grad")),
    ("conv2d_pool_pick", _conv2d_pool_pick, _pick_backward, _save_pick,
     linear("conv2d_pool_pick")),
):  # fmt: skip
    register(_library, _name, _run, _gradient, _save, _jvp)
register_autocast(_library, "conv2d_fused", cast=4)  # a normalization keeps its own dtype


# ---- public functions -----------------------------------------------------------------------


def conv2d_fused(
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
    negative_slope: float = 0.01,
    pool: bool = False,
    precision: str | None = None,
) -> Tensor:
    """Convolution, batch normalization, residual, activation and 2x2 max-pool in one kernel.

        z = (conv2d(input, weight, bias, ...) - mean) g / sqrt(var + eps) + b
        y = activation(z + residual), or activation(z) + residual with ``residual_after``
        y = max_pool2d(y, 2) with ``pool``

    each part only where it is given. The normalization is that of evaluation: statistics are
    read, not updated. It is computed in float32 (of float64 in float64) from the tensors as they
    are at this call.

    Args:
        input, weight, bias, stride, padding, dilation, groups, precision: as for ``conv2d``.
        running_mean: (out_channels,), or None for no normalization.
        running_var: likewise; both or neither.
        norm_weight: g, (out_channels,), or None for 1.
        norm_bias: b, (out_channels,), or None for 0.
        eps: added to the variance.
        residual: of the size of the convolution's result, before any pooling.
        residual_after: whether it is added to the activation's result, not to its argument.
        activation: ``"relu"``, ``"relu6"``, ``"leaky_relu"``, ``"silu"``, ``"hardswish"``,
            ``"hardsigmoid"``, ``"gelu"``, ``"gelu_tanh"``, ``"sigmoid"``, ``"tanh"`` or None.
        negative_slope: of ``"leaky_relu"``.
        pool: whether to take the maxima of 2x2 windows at stride 2.

    Returns:
        y, (batch, out_channels, out_h, out_w), with half the height and width if pooled.

    Gradients reach every tensor that requires one, the running statistics included, and have
    gradients themselves.

    Raises:
        RuntimeError: for shapes, dtypes or devices that do not go together.
        ValueError: for an activation that does not exist, or one running statistic alone.

    >>> import torch
    >>> x, w = torch.randn(2, 3, 32, 32), torch.randn(10, 3, 5, 5)
    >>> conv2d_fused(x, w, padding=2, activation="silu", pool=True).shape
    torch.Size([2, 10, 16, 16])
    """
    norm = (norm_weight, norm_bias, running_mean, running_var)
    tensors = (input, weight, bias, residual, *norm)
    if has_torch_function_variadic(*tensors):
        form = (stride, padding, dilation, groups)
        how = {
            "running_mean": running_mean,
            "running_var": running_var,
            "norm_weight": norm_weight,
            "norm_bias": norm_bias,
            "eps": eps,
            "residual": residual,
            "residual_after": residual_after,
            "activation": activation,
            "negative_slope": negative_slope,
            "pool": pool,
            "precision": precision,
        }
        return overridden(conv2d_fused, tensors, *tensors[:3], *form, **how)  # type: ignore[no-any-return]
    x, window = windowed(input, weight, bias, stride, padding, dilation, groups)
    if (running_mean is None) != (running_var is None):
        raise ValueError("running_mean and running_var are given together, or neither is")
    if running_mean is None and (norm_weight is not None or norm_bias is not None):
        raise ValueError("norm_weight and norm_bias need running_mean and running_var")
    if pool:
        tracing = torch._C._get_tracing_state() is not None
        with untraced() if tracing else contextlib.nullcontext():
            pool_geometry(y_size(x, weight, window), (2, 2), (2, 2), (0, 0), (1, 1), False)
    if residual is not None and input.dim() == 3:
        residual = residual.unsqueeze(0)
    operands = (x, weight, bias, residual, *norm)
    keep = differentiates(*operands)
    ending = (activation, negative_slope, residual_after, pool, keep, precision)
    y = _ops.conv2d_fused.default(*operands, eps, window, *ending)[0]
    return y if input.dim() != 3 else y.squeeze(0)


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
    """Convolution, activation and 2x2 max-pool at stride 2 in one kernel.

        y = max_pool2d(conv2d(input, weight, bias, ...), 2)

    with the activation between the two. Only y is written, a quarter of what the
    convolution computes; where a gradient will be asked for, a byte for each of its elements too.

    Arguments, result and errors are those of ``conv2d``.

    >>> import torch
    >>> conv2d_pool(torch.zeros(1, 3, 32, 32), torch.zeros(10, 3, 5, 5), padding=2).shape
    torch.Size([1, 10, 16, 16])
    """
    tensors = (input, weight, bias)
    form: tuple[Any, ...] = (stride, padding, dilation, groups)
    how: dict[str, Any] = {"activation": activation, "precision": precision}
    if has_torch_function_variadic(*tensors):
        return overridden(conv2d_pool, tensors, *tensors, *form, **how)  # type: ignore[no-any-return]
    return conv2d_fused(*tensors, *form, pool=True, **how)
