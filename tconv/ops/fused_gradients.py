"""Gradients and tangents of the operators of a fused convolution, plain or transposed.

The gradient begins with one pass over dy that undoes the activation or the pool and sums the
gradient of the bias on the way. The rest is the gradient of a plain convolution.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from tconv.ops import activations
from tconv.ops.conv2d import _ops
from tconv.ops.fused_operators import Sizes, epilogue_of, masks, wide_dtype
from tconv.ops.layout import prefers_channels_last
from tconv.ops.products import Convolution, TransposedConvolution
from tconv.problem import Epilogue


class Fused(NamedTuple):
    """A call of a fused operator: its tensors, its convolution and its epilogue."""

    name: str
    operands: tuple[Any, ...]  # in the order of ``NAMES``
    product: Convolution
    epilogue: Epilogue

    @property
    def masked(self) -> bool:
        """Whether the call pools, and its offsets mark the windows in which a ReLU gave zeros."""
        return self.epilogue.pool and masks(self.epilogue.activation, self.epilogue.residual_after)


def _of_conv2d(inputs: tuple[Any, ...]) -> Fused:
    """Read the arguments of ``conv2d_fused``."""
    operands, (eps, window, *how) = inputs[:8], inputs[8:]
    product, epilogue = Convolution(window, how[-1]), epilogue_of(operands, eps, *how[:-1])
    return Fused("conv2d_fused", operands, product, epilogue)


def _of_transposed(inputs: tuple[Any, ...]) -> Fused:
    """Read the arguments of ``conv_transpose2d_fused``."""
    operands, (eps, extent, window, *how, keep, precision) = inputs[:8], inputs[8:]
    product = TransposedConvolution(window, precision, extent)
    epilogue = epilogue_of(operands, eps, *how, False, keep)
    return Fused("conv_transpose2d_fused", operands, product, epilogue)


def save_conv2d(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _save(ctx, _of_conv2d(inputs), output)


def save_transposed(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _save(ctx, _of_transposed(inputs), output)


def _save(ctx: Any, fused: Fused, output: tuple[Tensor, ...]) -> None:
    x, w, bias, _, norm_weight, _, norm_mean, norm_var = fused.operands
    ctx.name, _, ctx.product, ctx.epilogue = fused
    y, kept, *offsets = output
    ctx.mark_non_differentiable(*([] if kept.dim() == 4 else [kept]), *offsets)
    ctx.set_materialize_grads(False)
    value = None
    if ctx.epilogue.activation is not None and not fused.masked:
        value = y if ctx.epilogue.from_result else kept
    norm = (None,) * 4 if norm_mean is None else (norm_weight, norm_mean, norm_var, bias)
    ctx.save_for_backward(x, w, value, offsets[0] if ctx.epilogue.pool else None, *norm)


def fused_backward(ctx: Any, dy: Tensor | None, dkept: Tensor | None, *_: Any) -> tuple[Any, ...]:
    if dy is None and dkept is None:
        return (None,) * 16
    x, w, value, offsets, *norm = ctx.saved_tensors
    needs = ctx.needs_input_grad
    sums = needs[2] or any(needs[4:8])
    dz, dbias = _argument_grad(ctx, dy, dkept, value, offsets, sums)
    dresidual = None
    if needs[3]:
        dresidual = dz
        if ctx.epilogue.residual_after:
            dresidual = dy
            if ctx.epilogue.pool and dy is not None:
                dresidual = _unpooled(ctx, dy, offsets, False)[0]
    if ctx.epilogue.norm is not None:
        grads = _norm_backward(ctx, x, w, dz, dbias, *norm)
    else:
        grads = (*ctx.product.gradients(dz, x, w, needs), dbias, *(None,) * 4)
    dx, dw, dbias, *dnorm = grads
    found = (dx, dw, dbias, dresidual, *dnorm)
    wanted = (g if needed else None for g, needed in zip(found, needs[:8], strict=True))
    return (*wanted, *(None,) * 8)


def _argument_grad(
    ctx: Any, dy: Tensor | None, dkept: Tensor | None, value: Tensor | None,
    offsets: Tensor | None, sums: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Return the gradient of the activation's argument, and if wanted its sum by channel."""
    dz, total, epilogue = dy, None, ctx.epilogue
    if dy is not None and value is not None:
        if value.shape != dy.shape:
            raise _unkept(ctx.name, "gradient")
        direct = sums and not epilogue.pool and dkept is None
        how = (epilogue.activation, epilogue.slope, epilogue.from_result, direct)
        dz, total = _ops.conv2d_activation_grad(dy, value, *how)
    if dkept is not None:
        dz = dkept if dz is None else dz + dkept
    assert dz is not None
    if epilogue.pool:
        return _unpooled(ctx, dz, offsets, sums)
    if sums and (total is None or not total.numel()):
        total = _ops.conv2d_bias_grad(dz)
    return dz, total if sums else None


def _unpooled(
    ctx: Any, dy: Tensor, offsets: Tensor | None, sums: bool
) -> tuple[Tensor, Tensor | None]:
    """dy at the maxima of its windows, 0 elsewhere; and its sums."""
    if offsets is None or offsets.shape != dy.shape:
        raise _unkept(ctx.name, "gradient")
    size = ctx.product.size(*ctx.saved_tensors[:2])
    dz, total = _ops.conv2d_pool_grad(dy, offsets, size, prefers_channels_last(offsets), sums)
    return dz, total if sums else None


def _unkept(name: str, derivative: str) -> RuntimeError:
    return RuntimeError(f"{name} has no {derivative} here: it was called with keep=False")


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
    product: Convolution = ctx.product
    inverse = torch.rsqrt(var.to(wide) + ctx.epilogue.norm.eps)
    scale = inverse if weight is None else inverse * weight
    dx = dw = dv = dbias = dweight = dmean = dvar = None
    if needs[0]:
        dx = product.input_grad(dz, x, (w * product.over_filters(scale, w)).to(w.dtype))
    if needs[1] or needs[4] or needs[7]:
        dv = product.weight_grad(dz, x, w)
    if needs[1]:
        dw = (dv * product.over_filters(scale, w)).to(w.dtype)
    if total is not None:
        total = total.to(wide)
        dbias, dmean = total * scale, -total * scale
    if needs[4] or needs[7]:
        assert dv is not None
        products = product.filter_sums(w.to(wide) * dv.to(wide))
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


def conv2d_jvp(inputs: tuple[Any, ...], output: Any, tangents: tuple[Any, ...]) -> Any:
    return _jvp(_of_conv2d(inputs), output, tangents)


def transposed_jvp(inputs: tuple[Any, ...], output: Any, tangents: tuple[Any, ...]) -> Any:
    return _jvp(_of_transposed(inputs), output, tangents)


def _jvp(fused: Fused, output: tuple[Tensor, ...], tangents: tuple[Any, ...]) -> Any:
    """Return the tangents of y and of ``kept``, which is dz; offsets have none."""
    y, kept, *offsets = output
    epilogue = fused.epilogue
    if epilogue.pool and offsets[0].shape != y.shape:
        raise _unkept(fused.name, "tangent")

    def pooled(tangent: Tensor | None) -> Tensor | None:
        if not epilogue.pool or tangent is None:
            return tangent
        return _ops.conv2d_pool_pick(tangent, offsets[0])  # type: ignore[no-any-return]

    dresidual = tangents[3]
    dz = _normalized_tangent(fused, tangents)
    if dresidual is not None and not epilogue.residual_after:
        dz = dresidual if dz is None else dz + dresidual
    dy = dz = pooled(dz)
    if dz is not None and epilogue.activation is not None and not fused.masked:
        value = y if epilogue.from_result else kept
        if value.shape != y.shape:
            raise _unkept(fused.name, "tangent")
        how = (epilogue.activation, epilogue.slope, epilogue.from_result, False)
        dy = _ops.conv2d_activation_grad(dz, value, *how)[0]
    if dresidual is not None and epilogue.residual_after:
        beside = pooled(dresidual)
        dy = beside if dy is None else dy + beside  # type: ignore[operator]
    return dy, dz if kept.dim() == 4 else None, *(None for _ in offsets)


def _normalized_tangent(fused: Fused, tangents: tuple[Any, ...]) -> Tensor | None:
    """The tangent of norm(x * w + bias)."""
    x, w, bias, _, weight, _, mean, var = fused.operands
    du = fused.product.tangent(x, w, tangents[:3])
    if fused.epilogue.norm is None:
        return du
    dweight, dshift, dmean, dvar = tangents[4:8]
    inverse = torch.rsqrt(var.to(wide_dtype(x)) + fused.epilogue.norm.eps)
    scale = inverse if weight is None else inverse * weight
    parts = [] if du is None else [du * scale[:, None, None]]
    if dweight is not None or dvar is not None:
        dscale = torch.zeros_like(scale) if dweight is None else inverse * dweight
        dscale = dscale if dvar is None else dscale - 0.5 * scale * inverse * inverse * dvar
        u = fused.product(x, w, bias)
        parts.append((u - mean[:, None, None]) * dscale[:, None, None])
    each = [] if dmean is None else [-dmean * scale]
    each += [] if dshift is None else [dshift]
    size = fused.product.size(x, w)
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
