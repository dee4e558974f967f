"""Two-dimensional max-pool: launches, operators, and ``max_pool2d``, torch's counterpart.

It consists of three operators. ``tconv::max_pool2d`` (and ``max_pool2d_values``, without offsets)
returns the maximum of each window and its place. ``max_pool2d_input_grad`` adds a gradient at the
places of the maxima, and ``max_pool2d_pick`` reads at these places. The last two are linear and
each other's gradient, so gradients of any order exist. ``max_pool2d_indices`` converts one-byte
offsets to torch's eight-byte indices, on request only.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.overrides import has_torch_function_unary

from tconv.geometry import PoolGeometry, cdiv
from tconv.launch import Launch, runs_triton
from tconv.ops.arguments import overridden
from tconv.ops.layout import dense, empty, layout_of, prefers_channels_last
from tconv.ops.pool_check import check_dtype, max_pool_arguments, pool_geometry
from tconv.ops.pool_launch import pool_launch, tile_for, window_constants
from tconv.ops.registration import differentiates, implement, linear, register, register_vmap
from tconv.plan_caches import when_forgotten
from tconv.problem import PoolProblem, dtype_name
from tconv.tile import Tile

# Loops of more steps are not unrolled. Unrolled, a float16 maximum over 10 or more elements spills
# registers on sm_80 and sm_90; sums over 25 windows do not yet.
TAP_LIMIT, WINDOW_LIMIT = 9, 32

# ---- launches -------------------------------------------------------------------------------


def _launch(
    kernel: str, problem: PoolProblem, tile: Tile, tensors: str, constants: dict[str, Any],
    over_x: bool = False,
) -> Launch:  # fmt: skip
    from tconv.families.common import index_type

    shape = problem.geometry
    constants = {
        **window_constants(shape),
        "DILATION_H": shape.dilation_h,
        "DILATION_W": shape.dilation_w,
        "INDEX": index_type(shape.x_elements, shape.y_elements),
        **constants,
    }
    dtypes = {"indices": "int64", "offsets": dtype_name(offsets_dtype(shape))}
    kernel = f"max_pool.{kernel}"
    return pool_launch(kernel, problem, tile, tensors, constants, over_x=over_x, dtypes=dtypes)


@lru_cache(maxsize=4096)
def fprop_launch(problem: PoolProblem, tile: Tile, write_offsets: bool) -> Launch:
    """Return the launch that computes y, and optionally the offsets, from x."""
    from tconv.families.common import accumulator_type

    shape = problem.geometry
    # The last element of the last window; the first window starts at -pad.
    last_h = (shape.out_h - 1) * shape.stride_h - shape.pad_h
    last_w = (shape.out_w - 1) * shape.stride_w - shape.pad_w
    last_h += shape.dilation_h * (shape.window_h - 1)
    last_w += shape.dilation_w * (shape.window_w - 1)
    padded = shape.pad_h > 0 or shape.pad_w > 0
    constants = {
        "EDGES": padded or last_h >= shape.in_h or last_w >= shape.in_w,
        "UNROLL": shape.window_h * shape.window_w <= TAP_LIMIT,
        "WRITE_OFFSETS": write_offsets,
        "COMPUTE": accumulator_type(problem.dtype),
    }
    if not write_offsets:
        constants["offsets"] = None
    tensors = "x y offsets" if write_offsets else "x y"
    return _launch("max_pool_fprop", problem, tile, tensors, constants)


@lru_cache(maxsize=4096)
def dgrad_launch(problem: PoolProblem, tile: Tile) -> Launch:
    """Return the launch that computes dx from dy and the offsets."""
    from tconv.families.common import accumulator_type

    shape = problem.geometry
    windows_h = cdiv(shape.dilation_h * (shape.window_h - 1) + 1, shape.stride_h)
    windows_w = cdiv(shape.dilation_w * (shape.window_w - 1) + 1, shape.stride_w)
    constants = {
        "WINDOWS_H": windows_h,
        "WINDOWS_W": windows_w,
        "UNROLL": windows_h * windows_w <= WINDOW_LIMIT,
        "COMPUTE": accumulator_type(problem.dtype),
    }
    return _launch("max_pool_dgrad", problem, tile, "dy offsets dx", constants, over_x=True)


@lru_cache(maxsize=4096)
def pick_launch(problem: PoolProblem, tile: Tile, indices: bool = False) -> Launch:
    """Return the launch that computes y from x and offsets, or torch's indices from offsets."""
    tensors = "offsets indices" if indices else "x offsets y"
    absent: dict[str, Any] = dict.fromkeys({"x", "y", "indices"} - set(tensors.split()))
    return _launch("max_pool_pick", problem, tile, tensors, absent)


def offsets_dtype(shape: PoolGeometry) -> torch.dtype:
    """Return the narrowest integer type for a window's offsets: a byte, up to 11 x 11."""
    taps = shape.window_h * shape.window_w
    fitting = (dtype for dtype in (torch.int8, torch.int16) if taps - 1 <= torch.iinfo(dtype).max)
    return next(fitting, torch.int32)


def _launch_inputs(
    shape: PoolGeometry, direction: Literal["fprop", "dgrad"], x: Tensor, channels_last: bool
) -> tuple[PoolProblem, Tile]:
    """Return the problem of pooling a tensor, and the tile chosen for it."""
    problem = PoolProblem(shape, direction, dtype_name(x.dtype), layout_of(channels_last))
    return problem, tile_for(problem, x.device)


# ---- operators ------------------------------------------------------------------------------

_WINDOW = "SymInt[2] window, SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation"
_library = torch.library.Library("tconv", "FRAGMENT")
_ops = torch.ops.tconv
_library.define(f"max_pool2d(Tensor x, {_WINDOW}, bool ceil_mode) -> (Tensor, Tensor)")
_library.define(f"max_pool2d_values(Tensor x, {_WINDOW}, bool ceil_mode) -> Tensor")
_library.define(
    f"max_pool2d_input_grad(Tensor dy, Tensor offsets, SymInt[] input_size, {_WINDOW}, "
    "bool ceil_mode, bool channels_last) -> Tensor"
)
_library.define(
    f"max_pool2d_pick(Tensor x, Tensor offsets, {_WINDOW}, bool ceil_mode, bool channels_last)"
    " -> Tensor"
)
_library.define(
    f"max_pool2d_indices(Tensor offsets, SymInt[] input_size, {_WINDOW}, bool ceil_mode) -> Tensor"
)


def _outputs(
    x: Tensor, *arguments: Any, write_offsets: bool
) -> tuple[PoolGeometry, bool, Tensor, Tensor | None]:
    """Return geometry, layout, and the fresh y and offsets of a forward call, real or fake."""
    shape = pool_geometry(x.shape, *arguments)
    check_dtype(x)
    channels_last = prefers_channels_last(x)
    size = (*x.shape[:-2], shape.out_h, shape.out_w)
    y = empty(x, size, layout_of(channels_last))
    layout, dtype = layout_of(channels_last), offsets_dtype(shape)
    offsets = empty(x, size, layout, dtype) if write_offsets else None
    return shape, channels_last, y, offsets


def _fprop(x: Tensor, *arguments: Any, write_offsets: bool) -> tuple[Tensor, Tensor | None]:
    shape, channels_last, y, offsets = _outputs(x, *arguments, write_offsets=write_offsets)
    x = dense(x, layout_of(channels_last))
    launch = _cached_fprop_launch(shape, x.dtype, x.device, channels_last, write_offsets)
    launch.run({"x": x, "y": y} if offsets is None else {"x": x, "y": y, "offsets": offsets})
    return y, offsets


@lru_cache(maxsize=4096)
def _cached_fprop_launch(
    shape: PoolGeometry,
    dtype: torch.dtype,
    device: torch.device,
    channels_last: bool,
    write_offsets: bool,
) -> Launch:
    """Return the forward launch as chosen for ``device``, cached after the first call."""
    problem = PoolProblem(shape, "fprop", dtype_name(dtype), layout_of(channels_last))
    return fprop_launch(problem, tile_for(problem, device), write_offsets)


when_forgotten(_cached_fprop_launch.cache_clear)


def _max_pool2d(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    if not runs_triton(x.device):
        shape, channels_last, _, _ = _outputs(x, *arguments, write_offsets=False)
        y, indices = torch.ops.aten.max_pool2d_with_indices(x, *arguments)
        row, column = (indices // shape.in_w, indices % shape.in_w)
        top, left = (start.to(x.device) for start in _window_starts(shape))
        taps = (row - top[:, None]) // shape.dilation_h * shape.window_w
        taps = taps + (column - left) // shape.dilation_w
        return y, dense(taps.to(offsets_dtype(shape)), layout_of(channels_last))
    y, offsets = _fprop(x, *arguments, write_offsets=True)
    assert offsets is not None
    return y, offsets


def _window_starts(shape: PoolGeometry) -> tuple[Tensor, Tensor]:
    """Return the row and the column at which each window begins; negative in the padding."""
    top = torch.arange(shape.out_h) * shape.stride_h - shape.pad_h
    return top, torch.arange(shape.out_w) * shape.stride_w - shape.pad_w


def _max_pool2d_values(x: Tensor, *arguments: Any) -> Tensor:
    if not runs_triton(x.device):
        _outputs(x, *arguments, write_offsets=False)  # for its checks
        return torch.ops.aten.max_pool2d_with_indices(x, *arguments)[0]  # type: ignore[no-any-return]
    return _fprop(x, *arguments, write_offsets=False)[0]


def _input_grad(dy: Tensor, offsets: Tensor, input_size: Sequence[int], *arguments: Any) -> Tensor:
    *window, channels_last = arguments
    dx = empty(dy, input_size, layout_of(channels_last))
    shape = pool_geometry(input_size, *window)
    if not runs_triton(dy.device):
        indices = _torchs_indices(offsets, shape)
        dx = torch.ops.aten.max_pool2d_with_indices_backward(dy, dx, *window, indices)
        return dense(dx, layout_of(channels_last))
    dy = dense(dy, layout_of(channels_last))
    offsets = dense(offsets, layout_of(channels_last))
    launch = dgrad_launch(*_launch_inputs(shape, "dgrad", dy, channels_last))
    launch.run({"dy": dy, "offsets": offsets, "dx": dx})
    return dx


def _torchs_indices(offsets: Tensor, shape: PoolGeometry) -> Tensor:
    top, left = (start.to(offsets.device) for start in _window_starts(shape))
    taps = offsets.long()
    row = top[:, None] + taps // shape.window_w * shape.dilation_h
    return row * shape.in_w + left + taps % shape.window_w * shape.dilation_w


def _pick(x: Tensor, offsets: Tensor, *arguments: Any) -> Tensor:
    *window, channels_last = arguments
    shape = pool_geometry(x.shape, *window)
    if not runs_triton(x.device):
        indices = _torchs_indices(offsets, shape)
        y = x.flatten(-2).gather(-1, indices.flatten(-2)).view(indices.shape)
        return dense(y, layout_of(channels_last))
    y = empty(x, offsets.shape, layout_of(channels_last))
    x = dense(x, layout_of(channels_last))
    offsets = dense(offsets, layout_of(channels_last))
    launch = pick_launch(*_launch_inputs(shape, "fprop", x, channels_last))
    launch.run({"x": x, "offsets": offsets, "y": y})
    return y


def _indices(offsets: Tensor, input_size: Sequence[int], *window: Any) -> Tensor:
    shape, channels_last = pool_geometry(input_size, *window), prefers_channels_last(offsets)
    if not runs_triton(offsets.device):
        return dense(_torchs_indices(offsets, shape), layout_of(channels_last))
    indices = empty(offsets, offsets.shape, layout_of(channels_last), torch.int64)
    offsets = dense(offsets, layout_of(channels_last))
    problem = PoolProblem(shape, "fprop", "float32", layout_of(channels_last))
    tile = tile_for(problem, offsets.device)
    pick_launch(problem, tile, indices=True).run({"offsets": offsets, "indices": indices})
    return indices


@torch.library.register_fake("tconv::max_pool2d", lib=_library)
def _(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor | None]:
    return _outputs(x, *arguments, write_offsets=True)[2:]


@torch.library.register_fake("tconv::max_pool2d_values", lib=_library)
def _(x: Tensor, *arguments: Any) -> Tensor:
    return _outputs(x, *arguments, write_offsets=False)[2]


@torch.library.register_fake("tconv::max_pool2d_input_grad", lib=_library)
def _(dy: Tensor, offsets: Tensor, input_size: Sequence[int], *arguments: Any) -> Tensor:
    return empty(dy, input_size, layout_of(arguments[-1]))


@torch.library.register_fake("tconv::max_pool2d_pick", lib=_library)
def _(x: Tensor, offsets: Tensor, *arguments: Any) -> Tensor:
    return empty(x, offsets.shape, layout_of(arguments[-1]))


@torch.library.register_fake("tconv::max_pool2d_indices", lib=_library)
def _(offsets: Tensor, input_size: Sequence[int], *window: Any) -> Tensor:
    return empty(offsets, offsets.shape, layout_of(prefers_channels_last(offsets)), torch.int64)


# ---- gradients ------------------------------------------------------------------------------


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, *ctx.window = inputs
    offsets = output[1]
    ctx.mark_non_differentiable(offsets)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(offsets)
    ctx.input_size = x.shape
    ctx.channels_last = prefers_channels_last(x)


def _forward_gradient(ctx: Any, dy: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 6
    (offsets,) = ctx.saved_tensors
    dx = _ops.max_pool2d_input_grad(dy, offsets, ctx.input_size, *ctx.window, ctx.channels_last)
    return dx, *(None,) * 5


def _save_values(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, *ctx.window = inputs
    ctx.save_for_backward(x)


def _values_gradient(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    """Pool again: ``max_pool2d`` only gets here if no gradient was expected."""
    (x,) = ctx.saved_tensors
    offsets = _ops.max_pool2d(x.detach(), *ctx.window)[1]
    channels_last = prefers_channels_last(x)
    dx = _ops.max_pool2d_input_grad(dy, offsets, x.shape, *ctx.window, channels_last)
    return dx, *(None,) * 5


def _save_input_grad(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, offsets, _, *ctx.arguments = inputs
    ctx.save_for_backward(offsets)


def _input_grad_gradient(ctx: Any, ddx: Tensor) -> tuple[Tensor | None, ...]:
    (offsets,) = ctx.saved_tensors
    return _ops.max_pool2d_pick(ddx, offsets, *ctx.arguments), *(None,) * 8


def _save_pick(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, offsets, *ctx.arguments = inputs
    ctx.save_for_backward(offsets)
    ctx.input_size = x.shape


def _pick_gradient(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    (offsets,) = ctx.saved_tensors
    dx = _ops.max_pool2d_input_grad(dy, offsets, ctx.input_size, *ctx.arguments)
    return dx, *(None,) * 7


# ---- tangents -------------------------------------------------------------------------------


def _forward_jvp(inputs: tuple[Any, ...], output: Any, tangents: tuple[Any, ...]) -> Any:
    """Return the tangent of x at each maximum."""
    x, *window = inputs
    return _ops.max_pool2d_pick(tangents[0], output[1], *window, prefers_channels_last(x)), None


def _values_jvp(inputs: tuple[Any, ...], y: Tensor, tangents: tuple[Any, ...]) -> Any:
    """Pool again: ``max_pool2d`` only gets here if no tangent was expected."""
    x, *window = inputs
    offsets = _ops.max_pool2d(x.detach(), *window)[1]
    return _ops.max_pool2d_pick(tangents[0], offsets, *window, prefers_channels_last(x))


for _name, _run, _gradient, _save, _jvp in (
    ("max_pool2d", _max_pool2d, _forward_gradient, _save_forward, _forward_jvp),
    ("max_pool2d_values", _max_pool2d_values, _values_gradient, _save_values, _values_jvp),
    ("max_pool2d_input_grad", _input_grad, _input_grad_gradient, _save_input_grad,
     linear("max_pool2d_input_grad")),
    ("max_pool2d_pick", _pick, _pick_gradient, _save_pick, linear("max_pool2d_pick")),
):  # fmt: skip
    register(_library, _name, _run, _gradient, _save, _jvp)
implement(_library, "max_pool2d_indices", _indices)  # integers have no gradient
register_vmap(_library, "max_pool2d_indices")


# ---- public function ------------------------------------------------------------------------


def max_pool2d(
    input: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The greatest element of each window; ``torch.nn.functional.max_pool2d`` by Triton.

        y[n, c, p, q] = max over r, s of
            x[n, c, p stride - padding + r dilation, q stride - padding + s dilation]

    Padding counts as -inf. NaN propagates. Gradients of any order are defined and are
    deterministic.

    Args:
        input: (batch, channels, in_h, in_w) or (channels, in_h, in_w), of float16, bfloat16,
            float32 or float64. Contiguous and channels_last memory is read in place, and results
            have its format; any other memory is copied first.
        kernel_size: window size, one number for both axes or (height, width); also for the next
            three.
        stride: step between windows; None means ``kernel_size``.
        padding: at most half of ``kernel_size``.
        dilation: distance between the elements of a window.
        ceil_mode: round the output size up, so that the last window may overhang.
        return_indices: return (y, indices), int64: ``row * in_w + column`` of the first maximum.

    Raises:
        RuntimeError, TypeError, NotImplementedError: as torch does, with its messages.

    >>> x = torch.tensor([[[1.0, 5.0, 2.0], [4.0, 3.0, 9.0]]])
    >>> max_pool2d(x, 2, stride=1, return_indices=True)
    (tensor([[[5., 9.]]]), tensor([[[1, 5]]]))
    """
    window = (kernel_size, stride, padding, dilation, ceil_mode)
    if has_torch_function_unary(input):
        return overridden(max_pool2d, (input,), input, *window, return_indices)  # type: ignore[no-any-return]
    arguments = max_pool_arguments(input, *window, with_indices=bool(return_indices))
    if return_indices or differentiates(input):
        y, offsets = _ops.max_pool2d(input, *arguments)
        if not return_indices:
            return y
        return y, _ops.max_pool2d_indices(offsets, input.shape, *arguments)
    return _ops.max_pool2d_values(input, *arguments)
