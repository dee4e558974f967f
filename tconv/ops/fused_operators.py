"""Operators of a convolution with everything that follows it in a network's block.

    conv2d_fused            (x, w, bias, residual, batch norm) -> y, kept, offsets
    conv2d_activation_grad  (dy, value) -> dz, dbias
    conv2d_pool_grad        (dy, offsets) -> dz, dbias
    conv2d_pool_pick        (z, offsets) -> z at the maxima of the windows

``kept`` is the activation's argument at each element of y, and ``offsets`` the place of each pooled
maximum; both are empty unless a gradient needs them. ``value`` is y where the derivative is a
function of y, and otherwise ``kept``: one tensor written and read, where computing the argument
again would read x, w and the residual.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from tconv.launch import runs_triton
from tconv.ops import activations
from tconv.ops.conv2d import fprop_call, torchs_window, y_layout, y_size
from tconv.ops.conv_check import check_norm, check_residual, check_types
from tconv.ops.conv_run import epilogue_grad_call, pool_grad_call
from tconv.ops.layout import dense, empty, layout_of, prefers_channels_last
from tconv.problem import BatchNorm, Epilogue, Layout, dtype_name

library = torch.library.Library("tconv", "FRAGMENT")
library.define(
    "conv2d_fused(Tensor x, Tensor w, Tensor? bias, Tensor? residual, Tensor? norm_weight, "
    "Tensor? norm_bias, Tensor? norm_mean, Tensor? norm_var, float eps, int[] window, "
    "str? activation, float slope, bool residual_after, bool pool, bool keep, str? precision) "
    "-> (Tensor, Tensor, Tensor)"
)
library.define(
    "conv2d_activation_grad(Tensor dy, Tensor value, str activation, float slope, "
    "bool from_result, bool sums) -> (Tensor, Tensor)"
)
library.define(
    "conv2d_pool_grad(Tensor dy, Tensor offsets, SymInt[] z_size, bool channels_last, bool sums) "
    "-> (Tensor, Tensor)"
)
library.define("conv2d_pool_pick(Tensor z, Tensor offsets) -> Tensor")

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


def epilogue_of(operands: OperandTensors, *how: Any) -> Epilogue:
    """Return the epilogue of an operator's arguments: its eight tensors, then eps to ``keep``."""
    there = tuple(tensor is not None for tensor in operands[2:6])
    mean = operands[6]
    return _epilogue(there, None if mean is None else dtype_name(mean.dtype), *how)


def conv2d_fused(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    operands = of_one_dtype(inputs[:8])
    x, w = operands[:2]
    eps, window, activation, slope, residual_after, pool, keep, precision = inputs[8:]
    epilogue = epilogue_of(operands, eps, activation, slope, residual_after, pool, keep)
    check_operands(operands, w.shape[0])
    if operands[3] is not None:
        check_residual(operands[3].shape, y_size(x, w, window))
    if not runs_triton(x.device):
        z = torch.ops.aten.convolution(*operands[:3], *torchs_window(window))
        return ended(z, operands, epilogue, y_layout(x, w))
    tensors = present(NAMES, operands)
    y = fprop_call(x, w, window, precision, epilogue)(tensors)
    kept = tensors["kept"] if epilogue.kept else x.new_empty(0)
    offsets = tensors["offsets"] if epilogue.offsets else x.new_empty(0, dtype=torch.int8)
    return y, kept, offsets


def of_one_dtype(operands: OperandTensors) -> tuple[Any, ...]:
    """Return the operands; a batch normalization's tensors of several dtypes become float32."""
    norm = [tensor for tensor in operands[4:] if tensor is not None]
    if len({tensor.dtype for tensor in norm}) < 2 or any(not t.is_floating_point() for t in norm):
        return tuple(operands)
    wide = torch.float64 if operands[0].dtype == torch.float64 else torch.float32  # type: ignore[union-attr]
    return (*operands[:4], *(None if t is None else t.to(wide) for t in operands[4:]))


def check_operands(operands: OperandTensors, channels: int) -> None:
    """Check that dtypes and devices match, and that a normalization has ``channels`` elements."""
    check_types(*operands[:4])  # type: ignore[arg-type]
    check_norm(operands[4:], channels, operands[0].device)  # type: ignore[union-attr]


def present(names: Sequence[str], operands: OperandTensors) -> dict[str, Tensor]:
    """Return the operands that are not None, by name."""
    pairs = zip(names, operands, strict=True)
    return {name: tensor for name, tensor in pairs if tensor is not None}


def ended(
    z: Tensor, operands: tuple[Any, ...], epilogue: Epilogue, layout: Layout
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, kept and offsets of z = x * w + bias, computed by torch's own operators."""
    x, _, _, residual, norm_weight, norm_bias, norm_mean, norm_var = operands
    if epilogue.norm is not None:
        scale = torch.rsqrt(norm_var.to(wide_dtype(x)) + epilogue.norm.eps)
        scale = scale if norm_weight is None else scale * norm_weight
        z = (z - norm_mean[:, None, None]) * scale[:, None, None]
        z = (z if norm_bias is None else z + norm_bias[:, None, None]).to(x.dtype)
    if residual is not None and not epilogue.residual_after:
        z = z + residual
    y = z if epilogue.activation is None else activations.apply(z, *_named(epilogue))
    if epilogue.residual_after:
        y = y + residual
    none = x.new_empty(0)
    places = x.new_empty(0, dtype=torch.int8)
    if epilogue.pool:
        y, indices = torch.ops.aten.max_pool2d_with_indices(y, [2, 2], [2, 2])
        columns = z.shape[-1]
        places = (indices // columns % 2 * 2 + indices % columns % 2).to(torch.int8)
        z = pool_pick(z, places)
        if masks(epilogue.activation, epilogue.residual_after):
            places = torch.where(y <= 0, -1, places).to(torch.int8)
    kept = dense(z, layout) if epilogue.kept else none
    return (
        dense(y, layout),
        kept,
        dense(places, layout) if epilogue.offsets else none.to(torch.int8),
    )


def wide_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which a normalization is computed."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _named(epilogue: Epilogue) -> tuple[str, float]:
    assert epilogue.activation is not None
    return epilogue.activation, epilogue.slope


def masks(activation: str | None, residual_after: bool) -> bool:
    """Whether a pool's offsets also mark (by -1) the windows in which a ReLU gave only zeros."""
    return activation == "relu" and not residual_after


def activation_grad(
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


def pool_grad(
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


def pool_pick(z: Tensor, offsets: Tensor) -> Tensor:
    """z where the maxima lay, 0 where there was none: only gradients of gradients come here."""
    rows, columns = 2 * offsets.shape[2], 2 * offsets.shape[3]
    places = [z[:, :, place // 2 : rows : 2, place % 2 : columns : 2] for place in range(4)]
    picked = sum(torch.where(offsets == place, part, 0.0) for place, part in enumerate(places))
    return picked  # type: ignore[return-value]


@torch.library.register_fake("tconv::conv2d_fused", lib=library)
def _(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    operands, window = inputs[:8], inputs[9]
    x, w, _, residual = operands[:4]
    epilogue = epilogue_of(operands, inputs[8], *inputs[10:15])
    check_operands(operands, w.shape[0])
    *image, out_h, out_w = size = y_size(x, w, window)
    if residual is not None:
        check_residual(residual.shape, size)
    if epilogue.pool:
        size = (*image, out_h // 2, out_w // 2)
    layout = y_layout(x, w)
    y = empty(x, size, layout)
    kept = empty(x, size, layout) if epilogue.kept else x.new_empty(0)
    int8 = torch.int8
    offsets = empty(x, size, layout, int8) if epilogue.offsets else x.new_empty(0, dtype=int8)
    return y, kept, offsets


@torch.library.register_fake("tconv::conv2d_activation_grad", lib=library)
def _(dy: Tensor, value: Tensor, a: Any, s: Any, f: Any, sums: bool) -> tuple[Tensor, Tensor]:
    layout = layout_of(prefers_channels_last(value))
    return empty(dy, dy.shape, layout), dy.new_empty(dy.shape[1] if sums else 0)


@torch.library.register_fake("tconv::conv2d_pool_grad", lib=library)
def _(
    dy: Tensor, offsets: Tensor, z_size: Sizes, channels_last: bool, sums: bool
) -> tuple[Tensor, Tensor]:
    dz = empty(dy, z_size, layout_of(channels_last))
    return dz, dy.new_empty(dy.shape[1] if sums else 0)


@torch.library.register_fake("tconv::conv2d_pool_pick", lib=library)
def _(z: Tensor, offsets: Tensor) -> Tensor:
    return torch.empty_like(offsets, dtype=z.dtype)
