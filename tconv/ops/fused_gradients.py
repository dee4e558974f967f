"""Gradients and tangents of the operators of a fused convolution.

The gradient begins with one pass over dy that undoes the activation or the pool and sums the
gradient of the bias on the way. The rest is the gradient of a plain convolution.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tconv.ops import activations
from tconv.ops.conv2d import _ops, conv2d_tangent, window_gradients, y_size
from tconv.ops.fused_operators import Sizes, masks, wide_dtype
from tconv.ops.layout import prefers_channels_last
from tconv.problem import Epilogue


def save_fused(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
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
    if ctx.activation is not None and not (ctx.pool and masks(ctx.activation, ctx.residual_after)):
        value = y if ctx.from_result else kept
    norm = (norm_weight, norm_mean, norm_var, bias) if ctx.norm else (None,) * 4
    ctx.save_for_backward(x, w, value, offsets if ctx.pool else None, *norm)


def fused_backward(ctx: Any, dy: Tensor | None, dkept: Tensor | None, _: Any) -> tuple[Any, ...]:
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
    wanted = (g if needed else None for g, needed in zip(found, needs[:8], strict=True))
    return (*wanted, *(None,) * 8)


def _argument_grad(
    ctx: Any, dy: Tensor | None, dkept: Tensor | None, value: Tensor | None,
    offsets: Tensor | None, sums: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Return the gradient of the activation's argument, and if wanted its sum by channel."""
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
    needs, wide = ctx.needs_input_grad, wide_dtype(x)
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


def save_activation_grad(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    dy, value, *ctx.how, _ = inputs
    ctx.save_for_backward(dy, value)


def activation_grad_backward(
    ctx: Any, ddz: Tensor | None, ddbias: Tensor | None
) -> tuple[Any, ...]:
    dy, value = ctx.saved_tensors
    total = _with_bias(ddz, ddbias, dy.shape)
    dvalue = None
    if ctx.needs_input_grad[1]:
        second = activations.second_derivative(value, *ctx.how)
        dvalue = None if second is None else dy * total * second
    return _ops.conv2d_activation_grad(total, value, *ctx.how, False)[0], dvalue, *(None,) * 4


def _with_bias(ddz: Tensor | None, ddbias: Tensor | None, size: Sizes) -> Tensor:
    """The gradient of dz, with that of its sums over each channel added; one may be None."""
    if ddbias is None or not ddbias.numel():
        assert ddz is not None
        return ddz
    each = ddbias[None, :, None, None].expand(tuple(size))
    return each if ddz is None else ddz + each


def save_pool_grad(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.size = inputs[2]
    ctx.save_for_backward(inputs[1])


def pool_grad_backward(ctx: Any, ddz: Tensor | None, ddbias: Tensor | None) -> tuple[Any, ...]:
    (offsets,) = ctx.saved_tensors
    dz = _with_bias(ddz, ddbias, ctx.size)
    return _ops.conv2d_pool_pick(dz, offsets), None, None, None, None


def save_pick(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    z, offsets = inputs
    ctx.size, ctx.channels_last = z.shape, prefers_channels_last(z)
    ctx.save_for_backward(offsets)


def pick_backward(ctx: Any, ddy: Tensor) -> tuple[Any, ...]:
    (offsets,) = ctx.saved_tensors
    return _ops.conv2d_pool_grad(ddy, offsets, ctx.size, ctx.channels_last, False)[0], None


# ---- tangents -------------------------------------------------------------------------------


def fused_jvp(inputs: tuple[Any, ...], output: Any, tangents: tuple[Any, ...]) -> Any:
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
    if dz is not None and activation is not None and not (pool and masks(activation, after)):
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
    inverse = torch.rsqrt(var.to(wide_dtype(x)) + eps)
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


def activation_grad_jvp(inputs: tuple[Any, ...], output: Any, tangents: tuple[Any, ...]) -> Any:
    """Return the tangents of dz and dbias, from those of dy and of the activation's argument."""
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
