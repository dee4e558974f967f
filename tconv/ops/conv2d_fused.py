"""Convolution with everything that follows it in a network's block, in one kernel.

        z = norm(x * w + bias) + residual
        y = pool(activation(z))

with each part optional. The batch normalization is that of evaluation: the kernel reads the
normalization's own tensors at every call, so that nothing is folded and nothing can be out of date.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from torch import Tensor
from torch.overrides import has_torch_function_variadic

from tconv.ops import fused_gradients as gradients
from tconv.ops import fused_operators as operators
from tconv.ops.arguments import fused_options, overridden
from tconv.ops.conv2d import _ops, windowed
from tconv.ops.conv_check import check_norm_given, checked
from tconv.ops.fused_operators import Sizes, library
from tconv.ops.pool_check import pool_geometry
from tconv.ops.products import result_size
from tconv.ops.registration import differentiates, linear, register, register_autocast

# ---- registration ----------------------------------------------------------------------------

for _name, _run, _gradient, _save, _jvp in (
    ("conv2d_fused", operators.conv2d_fused, gradients.fused_backward, gradients.save_conv2d,
     gradients.conv2d_jvp),
    ("conv2d_activation_grad", operators.activation_grad, gradients.activation_grad_backward,
     gradients.save_activation_grad, gradients.activation_grad_jvp),
    ("conv2d_pool_grad", operators.pool_grad, gradients.pool_grad_backward,
     gradients.save_pool_grad, linear("conv2d_pool_grad")),
    ("conv2d_pool_pick", operators.pool_pick, gradients.pick_backward, gradients.save_pick,
     linear("conv2d_pool_pick")),
):  # fmt: skip
    register(library, _name, _run, _gradient, _save, _jvp)
register_autocast(library, "conv2d_fused", cast=4)  # a normalization keeps its own dtype


# ---- public functions -----------------------------------------------------------------------


def _check_pool(x_size: Sizes, w_size: Sizes, window: Sizes) -> None:
    """Raise torch's error if the convolution's result is too small for a 2x2 window."""
    pool_geometry(result_size(x_size, w_size, window), (2, 2), (2, 2), (0, 0), (1, 1), False)


_known_pool = lru_cache(maxsize=4096)(_check_pool)


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
        running_var: likewise; given exactly if running_mean is.
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
        ValueError: if the activation is unknown, or the batch normalization lacks a statistic.

    >>> import torch
    >>> x, w = torch.randn(2, 3, 32, 32), torch.randn(10, 3, 5, 5)
    >>> conv2d_fused(x, w, padding=2, activation="silu", pool=True).shape
    torch.Size([2, 10, 16, 16])
    """
    norm = (norm_weight, norm_bias, running_mean, running_var)
    tensors = (input, weight, bias, residual, *norm)
    if has_torch_function_variadic(*tensors):
        form = (stride, padding, dilation, groups)
        how = fused_options(
            running_mean, running_var, norm_weight, norm_bias, eps, residual, residual_after,
            activation, negative_slope, precision,
        )  # fmt: skip
        return overridden(conv2d_fused, tensors, *tensors[:3], *form, pool=pool, **how)  # type: ignore[no-any-return]
    x, window = windowed(input, weight, bias, stride, padding, dilation, groups)
    check_norm_given(*norm)
    if pool:
        checked(_check_pool, _known_pool, (x, weight), window)
    if residual is not None and input.dim() == 3:
        residual = residual.unsqueeze(0)
    operands = (x, weight, bias, residual, *norm)
    keep = differentiates(*operands)
    epilogue = (activation, negative_slope, residual_after, pool, keep, precision)
    y = _ops.conv2d_fused.default(*operands, eps, window, *epilogue)[0]
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
