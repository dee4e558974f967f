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

from tconv.geometry import ConvGeometry, Pass, out_size
from tconv.ops.conv_check import check_conv2d, check_types
from tconv.ops.conv_launch import bias_launches, launches
from tconv.ops.launch import runs_triton, target_for
from tconv.ops.layout import dense, empty, layout_of, nhwc, prefers_channels_last
from tconv.problem import Precision, Problem, dtype_name
from tconv.select import Choice, choose

# ---- launchers ------------------------------------------------------------------------------


def run(problem: Problem, choice: Choice, **tensors: Any) -> Tensor:
    """One pass with a given choice: (x, w, bias) -> y, (dy, w) -> dx, or (x, dy) -> dw."""
    if problem.direction == "fprop":
        return run_fprop(problem, choice, **tensors)
    if problem.direction == "dgrad":
        return run_dgrad(problem, choice, **tensors)
    return run_wgrad(problem, choice, **tensors)


def run_fprop(
    problem: Problem, choice: Choice, x: Tensor, w: Tensor, bias: Tensor | None = None
) -> Tensor:
    shape = problem.geometry
    size = (shape.batch, shape.out_channels, shape.out_h, shape.out_w)
    y = empty(x, size, problem.layout)
    tensors = {"x": nhwc(x), "w": nhwc(w)}
    if bias is not None:
        tensors["bias"] = bias.contiguous()
    (launch,) = launches(problem, choice, has_bias=bias is not None)
    launch.run(**tensors, y=y)
    return y


def run_dgrad(problem: Problem, choice: Choice, dy: Tensor, w: Tensor) -> Tensor:
    shape = problem.geometry
    size = (shape.batch, shape.in_channels, shape.in_h, shape.in_w)
    dx = empty(dy, size, problem.layout)
    (launch,) = launches(problem, choice)
    launch.run(dy=nhwc(dy), w=nhwc(w), dx=dx)
    return dx


def run_wgrad(
    problem: Problem, choice: Choice, x: Tensor, dy: Tensor, channels_last: bool = True
) -> Tensor:
    """dw, which follows the filter's own format rather than that of the activations."""
    shape = problem.geometry
    size = (shape.out_channels, shape.group_in_channels, shape.filter_h, shape.filter_w)
    dw = empty(x, size, layout_of(channels_last))
    product, total = launches(problem, choice, taps_first=channels_last)
    workspace = _workspace(product.grid[2] * shape.w_elements, x)
    product.run(x=nhwc(x), dy=nhwc(dy), workspace=workspace)
    total.run(workspace=workspace, total=dw)
    return dw


def _workspace(elements: int, like: Tensor) -> Tensor:
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return torch.empty(elements, dtype=dtype, device=like.device)


def run_bias_grad(dy: Tensor) -> Tensor:
    """The gradient of the bias: dy summed over all but its channels."""
    batch, channels, out_h, out_w = dy.shape
    parts, total = bias_launches(
        dtype_name(dy.dtype), batch * out_h * out_w, channels, target_for(dy.device)
    )
    workspace = _workspace(parts.grid[1] * channels, dy)
    parts.run(dy=nhwc(dy), workspace=workspace)
    dbias = torch.empty(channels, dtype=dy.dtype, device=dy.device)
    total.run(workspace=workspace, total=dbias)
    return dbias


# ---- operators ------------------------------------------------------------------------------

_library = torch.library.Library("tconv", "FRAGMENT")
_WINDOW = "SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, SymInt groups"
_library.define(f"conv2d(Tensor x, Tensor w, Tensor? bias, {_WINDOW}) -> Tensor")
_library.define(
    f"conv2d_input_grad(Tensor dy, Tensor w, SymInt[] x_size, {_WINDOW}, bool channels_last)"
    " -> Tensor"
)
_library.define(
    f"conv2d_weight_grad(Tensor x, Tensor dy, SymInt[] w_size, {_WINDOW}, bool channels_last)"
    " -> Tensor"
)
_library.define("conv2d_bias_grad(Tensor dy) -> Tensor")
_ops = torch.ops.tconv

Window = tuple[Sequence[int], Sequence[int], Sequence[int], int]


def float32_precision(dtype: torch.dtype, device: torch.device) -> Precision:
    """torch's own switch for convolutions decides whether float32 may be rounded to tf32."""
    allowed = dtype == torch.float32 and device.type == "cuda"
    return "tf32" if allowed and torch.backends.cudnn.allow_tf32 else "ieee"


def _chosen(
    direction: Pass,
    x_size: Sequence[int],
    w_size: Sequence[int],
    window: Window,
    tensor: Tensor,
    channels_last: bool,
) -> tuple[Problem, Choice]:
    """The problem that ``tensor`` poses, and the choice for its device."""
    geometry = ConvGeometry.from_torch(x_size, w_size, *window)
    problem = Problem(
        geometry,
        direction,
        dtype_name(tensor.dtype),
        layout_of(channels_last),
        float32_precision(tensor.dtype, tensor.device),
    )
    return problem, choose(problem, target_for(tensor.device))


def _y_channels_last(x: Tensor, w: Tensor) -> bool:
    """torch's rule: the result is channels_last where the input or the filter is."""
    return prefers_channels_last(x) or prefers_channels_last(w)


def _conv2d(x: Tensor, w: Tensor, bias: Tensor | None, *window: Any) -> Tensor:
    check_types(x, w, bias)
    channels_last = _y_channels_last(x, w)
    if runs_triton(x.device):
        problem, choice = _chosen("fprop", x.shape, w.shape, window, x, channels_last)
        return run_fprop(problem, choice, x, w, bias)
    stride, padding, dilation, groups = window
    y = torch.ops.aten.convolution(x, w, bias, stride, padding, dilation, False, [0, 0], groups)
    return dense(y, layout_of(channels_last))


def _conv2d_input_grad(
    dy: Tensor, w: Tensor, x_size: Sequence[int], *window_and_format: Any
) -> Tensor:
    *window, channels_last = window_and_format
    if runs_triton(dy.device):
        problem, choice = _chosen("dgrad", x_size, w.shape, tuple(window), dy, channels_last)
        return run_dgrad(problem, choice, dy, w)
    dx, _, _ = _torch_gradients(dy, dy.new_empty(x_size), w, window, [True, False, False])
    return dense(dx, layout_of(channels_last))


def _conv2d_weight_grad(
    x: Tensor, dy: Tensor, w_size: Sequence[int], *window_and_format: Any
) -> Tensor:
    *window, channels_last = window_and_format
    if runs_triton(x.device):
        x_channels_last = prefers_channels_last(x)
        problem, choice = _chosen("wgrad", x.shape, w_size, tuple(window), x, x_channels_last)
        return run_wgrad(problem, choice, x, dy, channels_last)
    _, dw, _ = _torch_gradients(dy, x, x.new_empty(w_size), window, [False, True, False])
    return dense(dw, layout_of(channels_last))


def _torch_gradients(
    dy: Tensor, x: Tensor, w: Tensor, window: Sequence[Any], mask: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    stride, padding, dilation, groups = window
    return torch.ops.aten.convolution_backward(
        dy, x, w, None, stride, padding, dilation, False, [0, 0], groups, mask
    )  # type: ignore[no-any-return]


def _conv2d_bias_grad(dy: Tensor) -> Tensor:
    return run_bias_grad(dy) if runs_triton(dy.device) else dy.sum((0, 2, 3))


for _key in ("CPU", "CUDA"):
    _library.impl("conv2d", _conv2d, _key)
    _library.impl("conv2d_input_grad", _conv2d_input_grad, _key)
    _library.impl("conv2d_weight_grad", _conv2d_weight_grad, _key)
    _library.impl("conv2d_bias_grad", _conv2d_bias_grad, _key)


@torch.library.register_fake("tconv::conv2d", lib=_library)
def _(x: Tensor, w: Tensor, bias: Tensor | None, *window: Any) -> Tensor:
    check_types(x, w, bias)
    stride, padding, dilation, _ = window
    sizes = [
        out_size(x.shape[2 + i], w.shape[2 + i], stride[i], padding[i], dilation[i])
        for i in range(2)
    ]
    return empty(x, (x.shape[0], w.shape[0], *sizes), layout_of(_y_channels_last(x, w)))


@torch.library.register_fake("tconv::conv2d_input_grad", lib=_library)
def _(dy: Tensor, w: Tensor, x_size: Sequence[int], *window_and_format: Any) -> Tensor:
    return empty(dy, x_size, layout_of(window_and_format[-1]))


@torch.library.register_fake("tconv::conv2d_weight_grad", lib=_library)
def _(x: Tensor, dy: Tensor, w_size: Sequence[int], *window_and_format: Any) -> Tensor:
    return empty(x, w_size, layout_of(window_and_format[-1]))


@torch.library.register_fake("tconv::conv2d_bias_grad", lib=_library)
def _(dy: Tensor) -> Tensor:
    return dy.new_empty(dy.shape[1])


# ---- gradients ------------------------------------------------------------------------------


def _save_conv2d(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, w, _, *ctx.window = inputs
    ctx.save_for_backward(x, w)


def _conv2d_backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    x, w = ctx.saved_tensors
    dx = dw = dbias = None
    if ctx.needs_input_grad[0]:
        dx = _ops.conv2d_input_grad(dy, w, x.shape, *ctx.window, _y_channels_last(x, w))
    if ctx.needs_input_grad[1]:
        dw = _ops.conv2d_weight_grad(x, dy, w.shape, *ctx.window, prefers_channels_last(w))
    if ctx.needs_input_grad[2]:
        dbias = _ops.conv2d_bias_grad(dy)
    return dx, dw, dbias, None, None, None, None


def _save_input_grad(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    dy, w, _, *ctx.window, _ = inputs
    ctx.save_for_backward(dy, w)


def _input_grad_backward(ctx: Any, ddx: Tensor) -> tuple[Any, ...]:
    dy, w = ctx.saved_tensors
    ddy = dw = None
    if ctx.needs_input_grad[0]:
        ddy = _ops.conv2d(ddx, w, None, *ctx.window)
    if ctx.needs_input_grad[1]:
        dw = _ops.conv2d_weight_grad(ddx, dy, w.shape, *ctx.window, prefers_channels_last(w))
    return ddy, dw, None, None, None, None, None, None


def _save_weight_grad(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, dy, _, *ctx.window, _ = inputs
    ctx.save_for_backward(x, dy)


def _weight_grad_backward(ctx: Any, ddw: Tensor) -> tuple[Any, ...]:
    x, dy = ctx.saved_tensors
    dx = ddy = None
    if ctx.needs_input_grad[0]:
        dx = _ops.conv2d_input_grad(dy, ddw, x.shape, *ctx.window, prefers_channels_last(x))
    if ctx.needs_input_grad[1]:
        ddy = _ops.conv2d(x, ddw, None, *ctx.window)
    return dx, ddy, None, None, None, None, None, None


def _save_bias_grad(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.shape = inputs[0].shape


def _bias_grad_backward(ctx: Any, ddbias: Tensor) -> Tensor:
    return ddbias[None, :, None, None].expand(ctx.shape)


for _name, _backward, _save in (
    ("conv2d", _conv2d_backward, _save_conv2d),
    ("conv2d_input_grad", _input_grad_backward, _save_input_grad),
    ("conv2d_weight_grad", _weight_grad_backward, _save_weight_grad),
    ("conv2d_bias_grad", _bias_grad_backward, _save_bias_grad),
):
    torch.library.register_autograd(f"tconv::{_name}", _backward, setup_context=_save, lib=_library)


# ---- autocast -------------------------------------------------------------------------------


def _register_autocast(device_type: str, key: str) -> None:
    """Under autocast the operands are cast to its dtype, all but float64, as for torch's own."""
    excluded = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def cast(tensor: Tensor | None) -> Tensor | None:
        if tensor is None or not tensor.is_floating_point() or tensor.dtype == torch.float64:
            return tensor
        return tensor.to(torch.get_autocast_dtype(device_type))

    def conv2d(x: Tensor, w: Tensor, bias: Tensor | None, *window: Any) -> Tensor:
        with torch._C._ExcludeDispatchKeyGuard(excluded):
            return _ops.conv2d(cast(x), cast(w), cast(bias), *window)  # type: ignore[no-any-return]

    _library.impl("conv2d", conv2d, key)


_register_autocast("cpu", "AutocastCPU")
_register_autocast("cuda", "AutocastCUDA")


# ---- public function ------------------------------------------------------------------------


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """Two-dimensional convolution, as ``torch.nn.functional.conv2d``.

        y[n, k, p, q] = bias[k] + sum over c, r, s of
            x[n, c, p S - P + r D, q S - P + s D] w[k, c, r, s]

    Args:
        input: x, (batch, in_channels, in_h, in_w), or without batch.
        weight: w, (out_channels, in_channels / groups, filter_h, filter_w).
        bias: (out_channels,), or None.
        stride: S, one number or one for each of height and width.
        padding: P, likewise, or ``"valid"`` (none) or ``"same"`` (keeps the size at stride 1).
        dilation: D, distance between the taps of a filter.
        groups: layers side by side that share the channels out among them.

    Returns:
        y, (batch, out_channels, out_h, out_w) with out = (in - D (F - 1) - 1 + 2 P) // S + 1;
        channels_last where the input or the weight is.

    Raises:
        RuntimeError: for shapes, dtypes or devices that do not go together, in torch's words.

    float16 and bfloat16 are summed in float32, float64 exactly; float32 is rounded to tf32
    where ``torch.backends.cudnn.allow_tf32`` says so. Repeated calls give the same bits.

    >>> import torch
    >>> conv2d(torch.zeros(1, 3, 32, 32), torch.zeros(10, 3, 5, 5), padding=2).shape
    torch.Size([1, 10, 32, 32])
    """
    batched = input.dim() != 3
    x = input if batched else input.unsqueeze(0)
    x, window = check_conv2d(input, x, weight, bias, stride, padding, dilation, groups)
    y = _ops.conv2d(x, weight, bias, *window)
    return y if batched else y.squeeze(0)
