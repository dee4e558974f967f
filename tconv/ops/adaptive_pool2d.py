"""Adaptive average- and max-pool, and max-unpool: launches, operators, public functions.

The mean and its gradient are linear, and each is the other's gradient. The maximum keeps torch's
indices; its gradient gathers at them, and the second gradient reads at them.

    adaptive_avg_pool2d  (x) -> y              adaptive_avg_pool2d_input_grad  (dy) -> dx
    adaptive_max_pool2d  (x) -> y, indices     adaptive_max_pool2d_input_grad  (dy, indices) -> dx
    max_unpool2d         (x, indices) -> y     pool_pick                       (x, indices) -> y
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import _unpool_output_size
from torch.nn.modules.utils import _list_with_default, _pair
from torch.overrides import has_torch_function_variadic

from tconv.geometry import AdaptiveGeometry, most_covered
from tconv.launch import Launch, runs_triton
from tconv.ops.arguments import overridden
from tconv.ops.layout import dense, empty, layout_of, prefers_channels_last
from tconv.ops.pool_check import check_dtype
from tconv.ops.pool_launch import pool_launch, tile_for
from tconv.ops.registration import linear, register
from tconv.problem import AdaptiveProblem, dtype_name
from tconv.tile import Tile

# ---- launches -------------------------------------------------------------------------------


def _launch(
    kernel: str, problem: AdaptiveProblem, tile: Tile, tensors: str, constants: dict[str, Any],
    over_x: bool,
) -> Launch:  # fmt: skip
    from tconv.families.common import index_type

    shape = problem.geometry
    # Products of places and sizes need the same integer type as offsets.
    products = (shape.in_h * (shape.out_h + 1), shape.in_w * (shape.out_w + 1),
                (shape.in_h + 1) * shape.out_h, (shape.in_w + 1) * shape.out_w)  # fmt: skip
    constants = constants | {"INDEX": index_type(shape.x_elements, shape.y_elements, *products)}
    dtypes, kernel = {"indices": "int64", "claims": "int64"}, f"adaptive_pool.{kernel}"
    return pool_launch(kernel, problem, tile, tensors, constants, over_x=over_x, dtypes=dtypes)


@lru_cache(maxsize=4096)
def adaptive_launch(problem: AdaptiveProblem, tile: Tile, maximum: bool) -> Launch:
    """Return the launch for y (and indices of maxima) from x, or dx from dy (and indices)."""
    from tconv.families.common import accumulator_type

    shape, forward = problem.geometry, problem.direction == "fprop"
    sizes = ((shape.in_h, shape.out_h), (shape.in_w, shape.out_w))
    most_h, most_w = (most_covered(*(size if forward else size[::-1])) for size in sizes)
    constants = {
        "IN_H": shape.in_h,
        "IN_W": shape.in_w,
        "OUT_H": shape.out_h,
        "OUT_W": shape.out_w,
        "MOST_H": most_h,
        "MOST_W": most_w,
        "COMPUTE": accumulator_type(problem.dtype),
    }
    tensors = "x y indices" if forward else "dy indices dx"
    tensors = tensors if maximum else tensors.replace("indices", "")
    kernel = f"adaptive_{'max' if maximum else 'avg'}_{problem.direction}"
    return _launch(kernel, problem, tile, tensors, constants, over_x=not forward)


@lru_cache(maxsize=4096)
def index_launch(problem: AdaptiveProblem, tile: Tile, claim: bool) -> Launch:
    """Return the launch that reads a source at indices or, with ``claim``, inverts the indices."""
    shape = problem.geometry
    constants = {"OWN_PLANE": shape.out_h * shape.out_w, "PLANE": shape.in_h * shape.in_w}
    kernel, tensors = "pick_by_index", "source indices target"
    if claim:
        kernel, tensors = "claim_by_index", "indices claims"
    return _launch(kernel, problem, tile, tensors, constants, over_x=False)


def _problem(
    x_size: Sequence[int], extent: Sequence[int], direction: Literal["fprop", "dgrad"],
    like: Tensor, channels_last: bool,
) -> tuple[AdaptiveProblem, Tile]:  # fmt: skip
    batch = x_size[0] if len(x_size) == 4 else 1
    shape = AdaptiveGeometry(batch, *x_size[-3:], *extent)
    layout, dtype = layout_of(channels_last), dtype_name(like.dtype)
    problem = AdaptiveProblem(shape, direction, dtype, layout)
    return problem, tile_for(problem, like.device)


# ---- operators ------------------------------------------------------------------------------

_library = torch.library.Library("tconv", "FRAGMENT")
_ops = torch.ops.tconv
_library.define("adaptive_avg_pool2d(Tensor x, SymInt[] extent) -> Tensor")
_library.define(
    "adaptive_avg_pool2d_input_grad(Tensor dy, SymInt[] x_size, bool channels_last) -> Tensor"
)
_library.define("adaptive_max_pool2d(Tensor x, SymInt[] extent) -> (Tensor, Tensor)")
_library.define(
    "adaptive_max_pool2d_input_grad(Tensor dy, Tensor indices, SymInt[] x_size, "
    "bool channels_last) -> Tensor"
)
# ``windows`` says whether indices lie within adaptive windows, so that a gradient can gather.
_library.define("pool_pick(Tensor x, Tensor indices, bool windows) -> Tensor")
_library.define("max_unpool2d(Tensor x, Tensor indices, SymInt[] extent) -> Tensor")

Sizes = Sequence[int]


def _fresh(x: Tensor, extent: Sizes, dtype: torch.dtype | None = None) -> Tensor:
    """Return a fresh tensor in x's memory format, with planes of another extent."""
    return empty(x, (*x.shape[:-2], *extent), layout_of(prefers_channels_last(x)), dtype)


def _adaptive_avg_pool2d(x: Tensor, extent: Sizes) -> Tensor:
    check_dtype(x, "adaptive_avg_pool2d")
    channels_last = prefers_channels_last(x)
    if not runs_triton(x.device):
        y = torch.ops.aten._adaptive_avg_pool2d(x, extent)
        return dense(y, layout_of(channels_last))
    y = _fresh(x, extent)
    launch = adaptive_launch(*_problem(x.shape, extent, "fprop", x, channels_last), False)
    launch.run({"x": dense(x, layout_of(channels_last)), "y": y})
    return y


def _avg_input_grad(dy: Tensor, x_size: Sizes, channels_last: bool) -> Tensor:
    dx = empty(dy, x_size, layout_of(channels_last))
    if not runs_triton(dy.device):
        dx = torch.ops.aten._adaptive_avg_pool2d_backward(dy, dx)
        return dense(dx, layout_of(channels_last))
    extent = tuple(dy.shape[-2:])
    launch = adaptive_launch(*_problem(x_size, extent, "dgrad", dy, channels_last), False)
    launch.run({"dy": dense(dy, layout_of(channels_last)), "dx": dx})
    return dx


def _adaptive_max_pool2d(x: Tensor, extent: Sizes) -> tuple[Tensor, Tensor]:
    check_dtype(x, "adaptive_max_pool2d")
    channels_last = prefers_channels_last(x)
    if not runs_triton(x.device):
        found = torch.ops.aten.adaptive_max_pool2d(x, extent)
        y, indices = (dense(each, layout_of(channels_last)) for each in found)
        return y, indices
    y, indices = _fresh(x, extent), _fresh(x, extent, torch.int64)
    launch = adaptive_launch(*_problem(x.shape, extent, "fprop", x, channels_last), True)
    launch.run({"x": dense(x, layout_of(channels_last)), "y": y, "indices": indices})
    return y, indices


def _max_input_grad(dy: Tensor, indices: Tensor, x_size: Sizes, channels_last: bool) -> Tensor:
    dx = empty(dy, x_size, layout_of(channels_last))
    if not runs_triton(dy.device):
        dx = torch.ops.aten.adaptive_max_pool2d_backward(dy, dx, indices)
        return dense(dx, layout_of(channels_last))
    operands = {"dy": dense(dy, layout_of(channels_last)), "dx": dx}
    operands["indices"] = dense(indices, layout_of(channels_last))
    extent = tuple(dy.shape[-2:])
    launch = adaptive_launch(*_problem(x_size, extent, "dgrad", dy, channels_last), True)
    launch.run(operands)
    return dx


def _pick(x: Tensor, indices: Tensor, windows: bool) -> Tensor:
    channels_last = prefers_channels_last(x)
    if not runs_triton(x.device):
        y = x.flatten(-2).gather(-1, indices.flatten(-2)).view(indices.shape)
        return dense(y, layout_of(channels_last))
    y = _fresh(x, indices.shape[-2:])
    problem = _problem(x.shape, indices.shape[-2:], "fprop", x, channels_last)
    source, where = (dense(each, layout_of(channels_last)) for each in (x, indices))
    index_launch(*problem, claim=False).run({"source": source, "indices": where, "target": y})
    return y


def _max_unpool2d(x: Tensor, indices: Tensor, extent: Sizes) -> Tensor:
    check_dtype(x, "max_unpool2d")
    channels_last = prefers_channels_last(x)
    _check_indices(indices, extent)
    if not runs_triton(x.device):
        y = torch.ops.aten.max_unpool2d(x, indices, extent)
        return dense(y, layout_of(channels_last))
    layout = layout_of(channels_last)
    y, claims = _fresh(x, extent), _fresh(x, extent, torch.int64).fill_(-1)
    claimed = _problem(y.shape, x.shape[-2:], "fprop", x, channels_last)
    index_launch(*claimed, claim=True).run({"indices": dense(indices, layout), "claims": claims})
    picked = _problem(x.shape, extent, "fprop", x, channels_last)
    operands = {"source": dense(x, layout), "indices": claims, "target": y}
    index_launch(*picked, claim=False).run(operands)
    return y


def _check_indices(indices: Tensor, extent: Sizes) -> None:
    """Check that each index lies in the plane; skipped on a GPU, where it would have to wait."""
    if indices.device.type != "cpu" or not indices.numel():
        return
    least, most = indices.aminmax()
    wrong = int(least) if least < 0 else int(most)
    if not 0 <= wrong < extent[0] * extent[1]:
        raise RuntimeError(
            f"Found an invalid max index: {wrong} (output volumes are of size "
            f"{extent[0]}x{extent[1]})"
        )


@torch.library.register_fake("tconv::adaptive_avg_pool2d", lib=_library)
def _(x: Tensor, extent: Sizes) -> Tensor:
    check_dtype(x, "adaptive_avg_pool2d")
    return _fresh(x, extent)


@torch.library.register_fake("tconv::adaptive_avg_pool2d_input_grad", lib=_library)
def _(dy: Tensor, x_size: Sizes, channels_last: bool) -> Tensor:
    return empty(dy, x_size, layout_of(channels_last))


@torch.library.register_fake("tconv::adaptive_max_pool2d", lib=_library)
def _(x: Tensor, extent: Sizes) -> tuple[Tensor, Tensor]:
    check_dtype(x, "adaptive_max_pool2d")
    return _fresh(x, extent), _fresh(x, extent, torch.int64)


@torch.library.register_fake("tconv::adaptive_max_pool2d_input_grad", lib=_library)
def _(dy: Tensor, indices: Tensor, x_size: Sizes, channels_last: bool) -> Tensor:
    return empty(dy, x_size, layout_of(channels_last))


@torch.library.register_fake("tconv::pool_pick", lib=_library)
def _(x: Tensor, indices: Tensor, windows: bool) -> Tensor:
    return _fresh(x, indices.shape[-2:])


@torch.library.register_fake("tconv::max_unpool2d", lib=_library)
def _(x: Tensor, indices: Tensor, extent: Sizes) -> Tensor:
    check_dtype(x, "max_unpool2d")
    return _fresh(x, extent)


# ---- gradients ------------------------------------------------------------------------------


def _save_x(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Save the size and format of x, and the indices of a maximum or a read by index."""
    x = inputs[0]
    ctx.x_size, ctx.channels_last = x.shape, prefers_channels_last(x)
    if isinstance(output, tuple):
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])
    elif isinstance(inputs[1], Tensor):
        ctx.save_for_backward(inputs[1])
        ctx.windows = inputs[2]


def _avg_gradient(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    return _ops.adaptive_avg_pool2d_input_grad(dy, ctx.x_size, ctx.channels_last), None


def _save_avg_input_grad(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.extent = inputs[0].shape[-2:]


def _avg_input_grad_gradient(ctx: Any, ddx: Tensor) -> tuple[Any, ...]:
    return _ops.adaptive_avg_pool2d(ddx, ctx.extent), None, None


def _max_gradient(ctx: Any, dy: Tensor | None, _: Any) -> tuple[Any, ...]:
    if dy is None:
        return None, None
    (indices,) = ctx.saved_tensors
    where = (indices, ctx.x_size, ctx.channels_last)
    return _ops.adaptive_max_pool2d_input_grad(dy, *where), None


def _save_indices(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _max_input_grad_gradient(ctx: Any, ddx: Tensor) -> tuple[Any, ...]:
    (indices,) = ctx.saved_tensors
    return _ops.pool_pick(ddx, indices, True), None, None, None


def _pick_gradient(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    """Compute with the kernel of adaptive windows; other indices (second gradients) use torch."""
    (indices,) = ctx.saved_tensors
    if ctx.windows:
        where = (indices, ctx.x_size, ctx.channels_last)
        return _ops.adaptive_max_pool2d_input_grad(dy, *where), None, None
    rows, columns = ctx.x_size[-2:]
    flat = dy.new_zeros((*ctx.x_size[:-2], rows * columns))
    flat = flat.scatter_add(-1, indices.flatten(-2), dy.flatten(-2))
    return flat.unflatten(-1, (rows, columns)), None, None


def _unpool_gradient(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    (indices,) = ctx.saved_tensors
    return _ops.pool_pick(dy, indices, False), None, None


def _max_jvp(inputs: tuple[Any, ...], output: Any, tangents: tuple[Any, ...]) -> Any:
    """Return the tangent of x at each maximum."""
    return _ops.pool_pick(tangents[0], output[1], True), None


for _name, _run, _gradient, _save, _jvp in (
    ("adaptive_avg_pool2d", _adaptive_avg_pool2d, _avg_gradient, _save_x,
     linear("adaptive_avg_pool2d")),
    ("adaptive_avg_pool2d_input_grad", _avg_input_grad, _avg_input_grad_gradient,
     _save_avg_input_grad, linear("adaptive_avg_pool2d_input_grad")),
    ("adaptive_max_pool2d", _adaptive_max_pool2d, _max_gradient, _save_x, _max_jvp),
    ("adaptive_max_pool2d_input_grad", _max_input_grad, _max_input_grad_gradient, _save_indices,
     linear("adaptive_max_pool2d_input_grad")),
    ("pool_pick", _pick, _pick_gradient, _save_x, linear("pool_pick")),
    ("max_unpool2d", _max_unpool2d, _unpool_gradient, _save_indices, linear("max_unpool2d")),
):  # fmt: skip
    register(_library, _name, _run, _gradient, _save, _jvp)


# ---- public functions -----------------------------------------------------------------------


def _extent(function: Any, input: Tensor, output_size: Any) -> tuple[int, ...]:
    """Return height and width of the result; unusual values are left for torch to judge.

    Raises:
        ValueError, RuntimeError, TypeError: as torch's adaptive pools do.
    """
    sizes = list(input.shape)
    full = _list_with_default(output_size, sizes)
    extent = (full, full) if type(full) is int else tuple(full)
    plain = len(extent) == 2 and all(type(each) is int and each >= 0 for each in extent)
    if plain and len(sizes) in (3, 4) and 0 not in sizes[-3:]:
        return extent
    found = function(torch.empty(sizes, device="meta"), full)
    found = found if isinstance(found, Tensor) else found[0]
    return tuple(found.shape[-2:])


def adaptive_avg_pool2d(input: Tensor, output_size: Any) -> Tensor:
    """Mean of windows that divide the image; ``torch.nn.functional.adaptive_avg_pool2d`` by Triton.

        y[n, c, p, q] = mean over h, v of x[n, c, h, v],
            p in_h // out_h <= h < ((p + 1) in_h + out_h - 1) // out_h, and v likewise

    Args:
        input: (batch, channels, in_h, in_w) or (channels, in_h, in_w), of a floating type.
        output_size: (out_h, out_w) or one number for both; None keeps the size of an axis.

    Raises:
        RuntimeError, ValueError, TypeError, NotImplementedError: as torch does, with its messages.

    >>> adaptive_avg_pool2d(torch.tensor([[[1.0, 5.0, 3.0]]]), (None, 2))
    tensor([[[3., 4.]]])
    """
    if has_torch_function_variadic(input):
        return overridden(adaptive_avg_pool2d, (input,), input, output_size)  # type: ignore[no-any-return]
    extent = _extent(torch._C._nn.adaptive_avg_pool2d, input, output_size)
    return _ops.adaptive_avg_pool2d(input, extent)  # type: ignore[no-any-return]


def adaptive_max_pool2d(
    input: Tensor, output_size: Any, return_indices: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Maximum of windows that divide the image; ``torch.nn.functional.adaptive_max_pool2d``.

    Args:
        input, output_size: as for ``adaptive_avg_pool2d``.
        return_indices: return (y, indices), int64: ``row * in_w + column`` of the first maximum.

    Raises:
        RuntimeError, ValueError, TypeError, NotImplementedError: as torch does, with its messages.

    >>> adaptive_max_pool2d(torch.tensor([[[1.0, 5.0, 3.0]]]), (1, 2), return_indices=True)
    (tensor([[[5., 5.]]]), tensor([[[1, 1]]]))
    """
    if has_torch_function_variadic(input):
        arguments = (input, output_size, return_indices)
        return overridden(adaptive_max_pool2d, (input,), *arguments)  # type: ignore[no-any-return]
    extent = _extent(torch._C._nn.adaptive_max_pool2d, input, output_size)
    y, indices = _ops.adaptive_max_pool2d(input, extent)
    return (y, indices) if return_indices else y


def max_unpool2d(
    input: Tensor,
    indices: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """Put maxima back where a max-pool took them, zeros elsewhere; ``max_unpool2d`` by Triton.

        y[n, c, indices[n, c, p, q]] = x[n, c, p, q]

    If several indices are equal, the last of their elements stays.

    Args:
        input: x, (batch, channels, h, w) or (channels, h, w).
        indices: int64 of x's size: ``row * out_w + column``, as the max-pools return them. On a GPU
            an index outside the result is dropped.
        kernel_size, stride, padding: those of the max-pool to undo.
        output_size: size of y if several fit; by default the smallest, (h - 1) stride + kernel_size
            - 2 padding.

    Raises:
        RuntimeError, ValueError, NotImplementedError: as torch does, with its messages.

    >>> max_unpool2d(torch.tensor([[[5.0]]]), torch.tensor([[[2]]]), 2)
    tensor([[[0., 0.],
             [5., 0.]]])
    """
    if has_torch_function_variadic(input, indices):
        arguments = (input, indices, kernel_size, stride, padding, output_size)
        return overridden(max_unpool2d, (input, indices), *arguments)  # type: ignore[no-any-return]
    window = _pair(kernel_size)
    form = (window, window if stride is None else _pair(stride), _pair(padding))
    extent = _unpool_output_size(input, *form, output_size)  # type: ignore[arg-type]
    if input.dim() not in (3, 4) or indices.shape != input.shape or indices.dtype != torch.int64:
        meta = (torch.empty(t.shape, dtype=t.dtype, device="meta") for t in (input, indices))
        torch._C._nn.max_unpool2d(*meta, extent)
        raise RuntimeError(
            f"Expected int64 indices of the size of input, {list(input.shape)}, but got "
            f"{indices.dtype} of size {list(indices.shape)}"
        )
    return _ops.max_unpool2d(input, indices, extent)  # type: ignore[no-any-return]
