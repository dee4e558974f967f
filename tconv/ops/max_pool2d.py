"""Two-dimensional max-pool: launches, operators, and ``max_pool2d``, torch's drop-in twin.

Three operators carry it. ``tconv::max_pool2d`` (and ``max_pool2d_values``, which keeps no
indices) is the maximum; ``max_pool2d_input_grad`` spreads a gradient to the winners; and
``max_pool2d_pick`` reads at the winners. The last two are linear and each other's gradient,
so gradients of any order exist.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from tconv.algorithms.common import accumulator_type, index_type
from tconv.geometry import PoolGeometry
from tconv.ops.launch import Launch, Pointer, cdiv, runs_triton, target_for
from tconv.ops.layout import dense, empty, layout_of, prefers_channels_last
from tconv.ops.pool_check import as_pair, check_dtype, pool_geometry
from tconv.ops.registration import register
from tconv.problem import PoolProblem, dtype_name
from tconv.select import choose
from tconv.tile import Tile

# Beyond these many steps a loop is kept a loop. Unrolled, the float16 maximum over 10 elements
# and more spills registers on sm_80 and sm_90; sums over 25 windows do not yet.
TAP_LIMIT, WINDOW_LIMIT = 9, 32

# ---- launches -------------------------------------------------------------------------------


def _constants(problem: PoolProblem, tile: Tile) -> dict[str, Any]:
    """The compile-time values that all kernels share.

    Sizes are among them: each element costs divisions by them, and max-pool does little else.
    """
    shape = problem.geometry
    nhwc = problem.layout == "nhwc"
    return {
        "CHANNELS": shape.channels if nhwc else 1,
        "IN_H": shape.in_h,
        "IN_W": shape.in_w,
        "OUT_H": shape.out_h,
        "OUT_W": shape.out_w,
        "STRIDE_W": shape.stride_w,
        "PAD_W": shape.pad_w,
        "DILATION_W": shape.dilation_w,
        "INDEX": index_type(shape.x_elements, shape.y_elements),
        "BLOCK_M": tile.block_m if nhwc else tile.block_m * tile.block_n,
        "BLOCK_N": tile.block_n if nhwc else 1,
    }


def _launch(
    kernel: str,
    problem: PoolProblem,
    tile: Tile,
    tensors: str,
    pixels: int,
    constants: dict[str, Any],
) -> Launch:
    """A launch over ``pixels`` of ``batch`` images of one layout's pixels."""
    images = problem.geometry.batch
    if problem.layout == "nchw":
        images *= problem.geometry.channels
    constants = {**_constants(problem, tile), **constants}
    programs = cdiv(images * pixels, constants["BLOCK_M"])
    programs *= cdiv(constants["CHANNELS"], constants["BLOCK_N"])
    dtypes = {name: "int64" if name == "indices" else problem.dtype for name in tensors.split()}
    operands = {name: Pointer(name, dtype) for name, dtype in dtypes.items()}
    scalars = {"pixels": images * pixels}
    grid = (programs,)
    return Launch(kernel, grid, operands, scalars, constants, tile.warps, tile.stages)


@lru_cache(maxsize=4096)
def fprop_launch(problem: PoolProblem, tile: Tile, write_indices: bool) -> Launch:
    """y, and where asked for the indices, from x."""
    shape = problem.geometry
    # The last element of the last window; the first of the first is at -pad.
    last_h = (shape.out_h - 1) * shape.stride_h - shape.pad_h
    last_w = (shape.out_w - 1) * shape.stride_w - shape.pad_w
    last_h += shape.dilation_h * (shape.window_h - 1)
    last_w += shape.dilation_w * (shape.window_w - 1)
    padded = shape.pad_h > 0 or shape.pad_w > 0
    constants = {
        "WINDOW_H": shape.window_h,
        "WINDOW_W": shape.window_w,
        "STRIDE_H": shape.stride_h,
        "PAD_H": shape.pad_h,
        "DILATION_H": shape.dilation_h,
        "EDGES": padded or last_h >= shape.in_h or last_w >= shape.in_w,
        "UNROLL": shape.window_h * shape.window_w <= TAP_LIMIT,
        "WRITE_INDICES": write_indices,
        "COMPUTE": accumulator_type(problem.dtype),
    }
    if not write_indices:
        constants["indices"] = None
    tensors = "x y indices" if write_indices else "x y"
    pixels = shape.out_h * shape.out_w
    return _launch("max_pool.max_pool_fprop", problem, tile, tensors, pixels, constants)


@lru_cache(maxsize=4096)
def dgrad_launch(problem: PoolProblem, tile: Tile) -> Launch:
    """dx from dy and the indices."""
    shape = problem.geometry
    windows_h = cdiv(shape.dilation_h * (shape.window_h - 1) + 1, shape.stride_h)
    windows_w = cdiv(shape.dilation_w * (shape.window_w - 1) + 1, shape.stride_w)
    constants = {
        "STRIDE_H": shape.stride_h,
        "PAD_H": shape.pad_h,
        "WINDOWS_H": windows_h,
        "WINDOWS_W": windows_w,
        "UNROLL": windows_h * windows_w <= WINDOW_LIMIT,
        "COMPUTE": accumulator_type(problem.dtype),
    }
    pixels = shape.in_h * shape.in_w
    return _launch("max_pool.max_pool_dgrad", problem, tile, "dy indices dx", pixels, constants)


@lru_cache(maxsize=4096)
def pick_launch(problem: PoolProblem, tile: Tile) -> Launch:
    """y from x and the indices."""
    pixels = problem.geometry.out_h * problem.geometry.out_w
    return _launch("max_pool.max_pool_pick", problem, tile, "x indices y", pixels, {})


def _launch_inputs(
    shape: PoolGeometry, direction: Literal["fprop", "dgrad"], x: Tensor, channels_last: bool
) -> tuple[PoolProblem, Tile]:
    """The problem that a tensor of values poses, and the tile that is chosen for it."""
    problem = PoolProblem(shape, direction, dtype_name(x.dtype), layout_of(channels_last))
    return problem, choose(problem, target_for(x.device)).tile


# ---- operators ------------------------------------------------------------------------------

_WINDOW = "SymInt[2] window, SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation"
_library = torch.library.Library("tconv", "FRAGMENT")
_ops = torch.ops.tconv
_library.define(f"max_pool2d(Tensor x, {_WINDOW}, bool ceil_mode) -> (Tensor, Tensor)")
_library.define(f"max_pool2d_values(Tensor x, {_WINDOW}, bool ceil_mode) -> Tensor")
_library.define(
    f"max_pool2d_input_grad(Tensor dy, Tensor indices, SymInt[] input_size, {_WINDOW}, "
    "bool ceil_mode, bool channels_last) -> Tensor"
)
_library.define(
    f"max_pool2d_pick(Tensor x, Tensor indices, {_WINDOW}, bool ceil_mode, bool channels_last)"
    " -> Tensor"
)


def _outputs(
    x: Tensor, *arguments: Any, write_indices: bool
) -> tuple[PoolGeometry, bool, Tensor, Tensor | None]:
    """Geometry, layout, and the fresh y and indices of a forward call, real or fake."""
    shape = pool_geometry(x.shape, *arguments)
    check_dtype(x)
    channels_last = prefers_channels_last(x)
    size = (*x.shape[:-2], shape.out_h, shape.out_w)
    y = empty(x, size, layout_of(channels_last))
    indices = empty(x, size, layout_of(channels_last), torch.int64) if write_indices else None
    return shape, channels_last, y, indices


def _fprop(x: Tensor, *arguments: Any, write_indices: bool) -> tuple[Tensor, Tensor | None]:
    shape, channels_last, y, indices = _outputs(x, *arguments, write_indices=write_indices)
    x = dense(x, layout_of(channels_last))
    problem, tile = _launch_inputs(shape, "fprop", x, channels_last)
    launch = fprop_launch(problem, tile, write_indices)
    launch.run({"x": x, "y": y} | ({} if indices is None else {"indices": indices}))
    return y, indices


def _max_pool2d(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    if not runs_triton(x.device):
        _outputs(x, *arguments, write_indices=False)  # for its checks
        return torch.ops.aten.max_pool2d_with_indices(x, *arguments)
    y, indices = _fprop(x, *arguments, write_indices=True)
    assert indices is not None
    return y, indices


def _max_pool2d_values(x: Tensor, *arguments: Any) -> Tensor:
    if not runs_triton(x.device):
        return _max_pool2d(x, *arguments)[0]
    return _fprop(x, *arguments, write_indices=False)[0]


def _input_grad(dy: Tensor, indices: Tensor, input_size: Sequence[int], *arguments: Any) -> Tensor:
    *window, channels_last = arguments
    dx = empty(dy, input_size, layout_of(channels_last))
    if not runs_triton(dy.device):
        dx = torch.ops.aten.max_pool2d_with_indices_backward(dy, dx, *window, indices)
        return dense(dx, layout_of(channels_last))
    dy = dense(dy, layout_of(channels_last))
    indices = dense(indices, layout_of(channels_last))
    shape = pool_geometry(input_size, *window)
    launch = dgrad_launch(*_launch_inputs(shape, "dgrad", dy, channels_last))
    launch.run({"dy": dy, "indices": indices, "dx": dx})
    return dx


def _pick(x: Tensor, indices: Tensor, *arguments: Any) -> Tensor:
    *window, channels_last = arguments
    if not runs_triton(x.device):
        y = x.flatten(-2).gather(-1, indices.flatten(-2)).view(indices.shape)
        return dense(y, layout_of(channels_last))
    y = empty(x, indices.shape, layout_of(channels_last))
    x = dense(x, layout_of(channels_last))
    indices = dense(indices, layout_of(channels_last))
    shape = pool_geometry(x.shape, *window)
    launch = pick_launch(*_launch_inputs(shape, "fprop", x, channels_last))
    launch.run({"x": x, "indices": indices, "y": y})
    return y


@torch.library.register_fake("tconv::max_pool2d", lib=_library)
def _(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor | None]:
    return _outputs(x, *arguments, write_indices=True)[2:]


@torch.library.register_fake("tconv::max_pool2d_values", lib=_library)
def _(x: Tensor, *arguments: Any) -> Tensor:
    return _outputs(x, *arguments, write_indices=False)[2]


@torch.library.register_fake("tconv::max_pool2d_input_grad", lib=_library)
def _(dy: Tensor, indices: Tensor, input_size: Sequence[int], *arguments: Any) -> Tensor:
    return empty(dy, input_size, layout_of(arguments[-1]))


@torch.library.register_fake("tconv::max_pool2d_pick", lib=_library)
def _(x: Tensor, indices: Tensor, *arguments: Any) -> Tensor:
    return empty(x, indices.shape, layout_of(arguments[-1]))


# ---- gradients ------------------------------------------------------------------------------


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, *ctx.window = inputs
    indices = output[1]
    ctx.mark_non_differentiable(indices)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(indices)
    ctx.input_size = x.shape
    ctx.channels_last = prefers_channels_last(x)


def _forward_gradient(ctx: Any, dy: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 6
    (indices,) = ctx.saved_tensors
    dx = _ops.max_pool2d_input_grad(dy, indices, ctx.input_size, *ctx.window, ctx.channels_last)
    return dx, *(None,) * 5


def _save_values(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, *ctx.window = inputs
    ctx.save_for_backward(x)


def _values_gradient(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    """Pools once more: ``max_pool2d`` comes here only when no gradient was foreseen."""
    (x,) = ctx.saved_tensors
    indices = _ops.max_pool2d(x.detach(), *ctx.window)[1]
    channels_last = prefers_channels_last(x)
    dx = _ops.max_pool2d_input_grad(dy, indices, x.shape, *ctx.window, channels_last)
    return dx, *(None,) * 5


def _save_input_grad(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, indices, _, *ctx.arguments = inputs
    ctx.save_for_backward(indices)


def _input_grad_gradient(ctx: Any, ddx: Tensor) -> tuple[Tensor | None, ...]:
    (indices,) = ctx.saved_tensors
    return _ops.max_pool2d_pick(ddx, indices, *ctx.arguments), *(None,) * 8


def _save_pick(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, indices, *ctx.arguments = inputs
    ctx.save_for_backward(indices)
    ctx.input_size = x.shape


def _pick_gradient(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    (indices,) = ctx.saved_tensors
    dx = _ops.max_pool2d_input_grad(dy, indices, ctx.input_size, *ctx.arguments)
    return dx, *(None,) * 7


for _name, _run, _gradient, _save in (
    ("max_pool2d", _max_pool2d, _forward_gradient, _save_forward),
    ("max_pool2d_values", _max_pool2d_values, _values_gradient, _save_values),
    ("max_pool2d_input_grad", _input_grad, _input_grad_gradient, _save_input_grad),
    ("max_pool2d_pick", _pick, _pick_gradient, _save_pick),
):
    register(_library, _name, _run, _gradient, _save)


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

    Padding counts as -inf. NaN propagates. Gradients of any order are defined, and are the
    same from run to run.

    Args:
        input: (batch, channels, in_h, in_w) or (channels, in_h, in_w), of float16, bfloat16,
            float32 or float64. Contiguous and channels_last memory is read in place, and the
            results take its format; anything else is copied first.
        kernel_size: extent of the window, for both axes or (height, width), as all that follow.
        stride: step of the window; ``kernel_size`` when it is None.
        padding: at most half of ``kernel_size``.
        dilation: distance between the elements of a window.
        ceil_mode: round the output size up, so that the last window may overhang.
        return_indices: return (y, indices), int64: ``row * in_w + column`` of the first maximum.

    Raises:
        RuntimeError, TypeError, NotImplementedError: as torch does and in its words.

    >>> x = torch.tensor([[[1.0, 5.0, 2.0], [4.0, 3.0, 9.0]]])
    >>> max_pool2d(x, 2, stride=1, return_indices=True)
    (tensor([[[5., 9.]]]), tensor([[[1, 5]]]))
    """
    if not isinstance(input, Tensor):
        kind = type(input).__name__
        raise TypeError(f"max_pool2d(): argument 'input' (position 1) must be Tensor, not {kind}")
    window = as_pair("kernel_size", kernel_size)
    # torch takes an empty stride for an absent one.
    absent = stride is None or (isinstance(stride, (tuple, list)) and len(stride) == 0)
    steps = window if absent else as_pair("stride", stride)
    pads, gaps = as_pair("padding", padding), as_pair("dilation", dilation)
    arguments = (window, steps, pads, gaps, ceil_mode)
    if return_indices or (input.requires_grad and torch.is_grad_enabled()):
        y, indices = _ops.max_pool2d(input, *arguments)
        return (y, indices) if return_indices else y
    return _ops.max_pool2d_values(input, *arguments)
