"""Two-dimensional average-pool: launches, operators, and the public functions.

``tconv::avg_pool2d`` and ``tconv::avg_pool2d_input_grad`` are linear, and each is the other's
gradient, so gradients of any order exist.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.overrides import has_torch_function_unary, has_torch_function_variadic

from tconv.geometry import PoolGeometry
from tconv.launch import Launch, runs_triton
from tconv.ops.arguments import overridden
from tconv.ops.conv2d import conv2d
from tconv.ops.layout import dense, empty, layout_of, prefers_channels_last
from tconv.ops.pool_check import avg_pool_arguments, check_dtype, pool_geometry
from tconv.ops.pool_launch import pool_launch, tile_for, window_constants
from tconv.ops.registration import linear, register
from tconv.problem import PoolProblem, dtype_name
from tconv.tile import Tile

# ---- launches -------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def avg_pool_launch(problem: PoolProblem, tile: Tile, count_pad: bool, divisor: int) -> Launch:
    """Return the launch that computes y from x, or dx from dy."""
    from tconv.families.common import accumulator_type, index_type

    shape, forward = problem.geometry, problem.direction == "fprop"
    constants = {
        **window_constants(shape),
        "COUNT_PAD": count_pad,
        "DIVISOR": divisor,
        "COMPUTE": accumulator_type(problem.dtype),
        "INDEX": index_type(shape.x_elements, shape.y_elements),
    }
    kernel, tensors = f"avg_pool.avg_pool_{problem.direction}", "x y" if forward else "dy dx"
    return pool_launch(kernel, problem, tile, tensors, constants, over_x=not forward)


# ---- operators ------------------------------------------------------------------------------

_library = torch.library.Library("tconv", "FRAGMENT")
_ops = torch.ops.tconv
# A window is one list: size, stride and padding, each for height and width; whether output sizes
# are rounded up; whether padding counts; and the divisor that overrides the count (or 0).
_library.define("avg_pool2d(Tensor x, int[] window) -> Tensor")
_library.define(
    "avg_pool2d_input_grad(Tensor dy, SymInt[] x_size, int[] window, bool channels_last) -> Tensor"
)


def _geometry(x_size: Sequence[int], window: Sequence[int]) -> PoolGeometry:
    extent, stride, pad = window[0:2], window[2:4], window[4:6]
    return pool_geometry(x_size, extent, stride, pad, (1, 1), bool(window[6]))


def _torchs(window: Sequence[int]) -> tuple[Any, ...]:
    """Return the window as aten's arguments."""
    extent, stride, pad = (list(window[i : i + 2]) for i in (0, 2, 4))
    return extent, stride, pad, bool(window[6]), bool(window[7]), window[8] or None


def _launch(
    shape: PoolGeometry, direction: Any, like: Tensor, channels_last: bool, window: Sequence[int]
) -> Launch:
    problem = PoolProblem(shape, direction, dtype_name(like.dtype), layout_of(channels_last))
    tile = tile_for(problem, like.device)
    return avg_pool_launch(problem, tile, bool(window[7]), window[8])


def _avg_pool2d(x: Tensor, window: Sequence[int]) -> Tensor:
    shape, channels_last = _geometry(x.shape, window), prefers_channels_last(x)
    check_dtype(x, "avg_pool2d")
    if not runs_triton(x.device):
        y = torch.ops.aten.avg_pool2d(x, *_torchs(window))
        return dense(y, layout_of(channels_last))
    x = dense(x, layout_of(channels_last))
    y = empty(x, (*x.shape[:-2], shape.out_h, shape.out_w), layout_of(channels_last))
    _launch(shape, "fprop", x, channels_last, window).run({"x": x, "y": y})
    return y


def _input_grad(
    dy: Tensor, x_size: Sequence[int], window: Sequence[int], channels_last: bool
) -> Tensor:
    dx = empty(dy, x_size, layout_of(channels_last))
    if not runs_triton(dy.device):
        torchs = torch.ops.aten.avg_pool2d_backward(dy, dx, *_torchs(window))
        return dense(torchs, layout_of(channels_last))
    dy = dense(dy, layout_of(channels_last))
    shape = _geometry(x_size, window)
    _launch(shape, "dgrad", dy, channels_last, window).run({"dy": dy, "dx": dx})
    return dx


@torch.library.register_fake("tconv::avg_pool2d", lib=_library)
def _(x: Tensor, window: Sequence[int]) -> Tensor:
    shape = _geometry(x.shape, window)
    check_dtype(x, "avg_pool2d")
    size = (*x.shape[:-2], shape.out_h, shape.out_w)
    return empty(x, size, layout_of(prefers_channels_last(x)))


@torch.library.register_fake("tconv::avg_pool2d_input_grad", lib=_library)
def _(dy: Tensor, x_size: Sequence[int], window: Sequence[int], channels_last: bool) -> Tensor:
    return empty(dy, x_size, layout_of(channels_last))


# ---- gradients ------------------------------------------------------------------------------


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.window = inputs
    ctx.x_size, ctx.channels_last = x.shape, prefers_channels_last(x)


def _forward_gradient(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    return _ops.avg_pool2d_input_grad(dy, ctx.x_size, ctx.window, ctx.channels_last), None


def _save_input_grad(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.window = inputs[2]


def _input_grad_gradient(ctx: Any, ddx: Tensor) -> tuple[Any, ...]:
    return _ops.avg_pool2d(ddx, ctx.window), None, None, None


for _name, _run, _gradient, _save in (
    ("avg_pool2d", _avg_pool2d, _forward_gradient, _save_forward),
    ("avg_pool2d_input_grad", _input_grad, _input_grad_gradient, _save_input_grad),
):
    register(_library, _name, _run, _gradient, _save, linear(_name))


# ---- public functions -----------------------------------------------------------------------


def avg_pool2d(
    input: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The mean of each window; ``torch.nn.functional.avg_pool2d`` by Triton.

        y[n, c, p, q] = 1 / count * sum over r, s of
            x[n, c, p stride - padding + r, q stride - padding + s]

    Args:
        input: (batch, channels, in_h, in_w) or (channels, in_h, in_w), of a floating type.
        kernel_size: window size, one number for both axes or (height, width); also for the next
            two.
        stride: step between windows; None means ``kernel_size``.
        padding: zeros on each side, at most half of ``kernel_size``.
        ceil_mode: round the output size up, so that the last window may overhang.
        count_include_pad: count padding among a window's elements.
        divisor_override: divisor to use instead of the number of elements.

    Raises:
        RuntimeError, TypeError, NotImplementedError: as torch does, with its messages.

    >>> avg_pool2d(torch.tensor([[[1.0, 5.0, 2.0], [4.0, 2.0, 8.0]]]), 2, stride=1)
    tensor([[[3.0000, 4.2500]]])
    """
    window = (kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    if has_torch_function_unary(input):
        return overridden(avg_pool2d, (input,), input, *window)  # type: ignore[no-any-return]
    extent, steps, pads, *flags, divisor = avg_pool_arguments(input, *window)
    if divisor == 0:
        raise RuntimeError("divisor must be not zero")
    numbers = [*extent, *steps, *pads, *map(int, flags), divisor or 0]
    return _ops.avg_pool2d(input, numbers)  # type: ignore[no-any-return]


def subsample2d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, kernel_size: int = 2
) -> Tensor:
    """LeNet's trainable subsampling: the mean of each window, times a weight, plus a bias.

        y[n, c, p, q] = bias[c] + weight[c] * mean over r, s of
            x[n, c, p kernel_size + r, q kernel_size + s]

    Each map has two parameters, as in the layers S2 and S4 of LeCun et al. (1998). The operation is
    a depthwise convolution with equal weights, and runs as one.

    Args:
        input: (batch, channels, in_h, in_w) or (channels, in_h, in_w).
        weight: (channels,).
        bias: (channels,), or None.
        kernel_size: extent and stride of the windows.

    >>> subsample2d(torch.ones(1, 2, 4, 4), torch.tensor([1.0, 2.0]), torch.zeros(2))[0, :, 0, 0]
    tensor([1., 2.])
    """
    if has_torch_function_variadic(input, weight, bias):
        tensors = (input, weight, bias)
        return overridden(subsample2d, tensors, *tensors, kernel_size)  # type: ignore[no-any-return]
    if weight.dim() != 1 or weight.shape[0] != input.shape[-3]:
        raise RuntimeError(
            f"expected weight of size [{input.shape[-3]}], one for each channel, "
            f"but got {list(weight.shape)}"
        )
    taps = (weight / kernel_size**2).view(-1, 1, 1, 1)
    filters = taps.expand(-1, 1, kernel_size, kernel_size)
    return conv2d(input, filters, bias, stride=kernel_size, groups=weight.shape[0])
