"""Explain which kernel and tile would run, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tconv.geometry import PASSES, AdaptiveGeometry, ConvGeometry, PoolGeometry
from tconv.launch import emulated, interpreting, runs_triton, target_for
from tconv.modules import Subsample2d
from tconv.ops.conv_check import conv_window
from tconv.ops.conv_run import geometry_of, precision_of
from tconv.ops.conv_transpose_check import conv_transpose_window
from tconv.ops.layout import layout_of, prefers_channels_last
from tconv.ops.pool_check import max_pool_arguments, pool_geometry
from tconv.ops.sequences import of_one_row
from tconv.problem import AdaptiveProblem, Layout, PoolProblem, Problem, dtype_name
from tconv.tile import Choice

Geometry = ConvGeometry | PoolGeometry | AdaptiveGeometry


@dataclass(frozen=True)
class Explanation:
    """The kernels that would run for each pass of a layer.

    ``choices`` is empty if torch's CPU operators compute the layer. The geometry of a transposed
    convolution is that of the convolution whose input gradient it computes.
    """

    geometry: Geometry
    device: str
    choices: tuple[tuple[str, Choice], ...]
    # pass, kernel family, why it cannot compute the pass
    passed_over: tuple[tuple[str, str, str], ...] = ()
    # pass, and the choice whose kernel waits to be compiled in the background
    wanted: tuple[tuple[str, Choice], ...] = ()
    transposed: bool = False

    def __str__(self) -> str:
        if not self.choices:
            return f"{self.geometry.key} on {self.device}: torch's own CPU operators"
        lines = [f"{self.geometry.key} on {self.device}:"]
        if self.transposed:
            lines.append("  transposed: its forward pass is dgrad, its input's gradient fprop")
        for direction, choice in self.choices:
            ground = f"{choice.ground} at {choice.at}" if choice.at else choice.ground
            lines.append(f"  {direction}: {choice.family}, tile {choice.tile} ({ground})")
            for other, better in self.wanted:
                if other == direction:
                    words = f"{better.family}, tile {better.tile}"
                    lines.append(f"    to be compiled in the background, as a better one: {words}")
            for other, family, reason in self.passed_over:
                if other == direction:
                    lines.append(f"    not {family}: {reason}")
        return "\n".join(lines)


def explain(what: torch.nn.Module | Geometry, input: Tensor | None = None) -> Explanation:
    """Return the kernel and tile that would run for each pass of a layer, and the reason.

    Args:
        what: a convolution, a transposed one or a pool, one- or two-dimensional, or a geometry.
        input: the module's input tensor. A geometry does not need one, but takes dtype, device and
            memory format from it.

    The reasons are ``tuned`` (the user's measurements), ``shipped`` (our measurements for this
    GPU), ``predicted`` (by the tuner's model) and ``heuristic``. Kernel families that cannot
    compute a pass are listed with the reason. On a CPU without ``TRITON_INTERPRET=1`` and without
    an emulated GPU no Triton kernel runs, and the explanation says so.

    Raises:
        TypeError: if a module is of another kind, or has no input.
    """
    from tconv.families import passed_over
    from tconv.select import choose
    from tconv.shared_kernels import wanted

    module = None if isinstance(what, Geometry) else what
    geometry = what if isinstance(what, Geometry) else _geometry(what, input)
    if input is not None:
        layout = layout_of(prefers_channels_last(input))
    else:
        here = torch.cuda.is_available() and not emulated()
        input = torch.empty(0, device="cuda" if here else "cpu")
        layout = "nhwc"
    device = input.device
    if not runs_triton(device):
        return Explanation(geometry, str(device), ())
    target = target_for(device)
    where = target.product
    if device.type == "cpu":
        where = "cpu, in Triton's interpreter" if interpreting() else f"cpu, emulated {target.name}"
    problems = _problems(geometry, input, layout)
    choices = tuple((each.direction, _named(choose(each, target), module)) for each in problems)
    reasons = tuple(
        (problem.direction, family, reason)
        for problem in problems
        if isinstance(problem, Problem)
        for family, reason in passed_over(problem, target).items()
    )
    better = tuple(
        (problem.direction, choice)
        for problem in problems
        if isinstance(problem, Problem) and (choice := wanted(problem, target)) is not None
    )
    return Explanation(geometry, where, choices, reasons, better, isinstance(module, TRANSPOSED))


def _named(choice: Choice, module: torch.nn.Module | None) -> Choice:
    """Return a pool's choice with the name of its kernels; all pools share their tiles."""
    if isinstance(module, AVERAGE):
        return replace(choice, family="avg_pool")
    if isinstance(module, ADAPTIVE):
        return replace(choice, family="adaptive_pool")
    return choice


def _problems(
    geometry: Geometry, like: Tensor, layout: Layout
) -> tuple[Problem | PoolProblem | AdaptiveProblem, ...]:
    name = dtype_name(like.dtype)
    if isinstance(geometry, PoolGeometry):
        return (
            PoolProblem(geometry, "fprop", name, layout),
            PoolProblem(geometry, "dgrad", name, layout),
        )
    if isinstance(geometry, AdaptiveGeometry):
        return (
            AdaptiveProblem(geometry, "fprop", name, layout),
            AdaptiveProblem(geometry, "dgrad", name, layout),
        )
    precision = precision_of(like, None)
    return tuple(Problem(geometry, direction, name, layout, precision) for direction in PASSES)


# ---- geometry of a module's call ------------------------------------------------------------


def _geometry(module: torch.nn.Module, input: Tensor | None) -> Geometry:
    """Return the geometry of the kernels that compute ``module(input)``."""
    kind = next((kind for kind in GEOMETRIES if isinstance(module, kind)), None)
    if kind is None:
        known = ", ".join(each.__name__ for each in GEOMETRIES)
        raise TypeError(f"explain takes a geometry or one of {known}, not {type(module).__name__}")
    if input is None:
        raise TypeError(f"explain({type(module).__name__}) needs the input that it would be given")
    return GEOMETRIES[kind](module, torch.empty_like(input, device="meta"))


def _image(x: Tensor, axes: int) -> tuple[int, ...]:
    """Return the size of a batch of images; a sequence is an image of one row."""
    sizes = tuple(x.shape) if x.dim() == axes + 2 else (1, *x.shape)
    return sizes if axes == 2 else (*sizes[:2], 1, sizes[2])


def _filters(module: Any, axes: int) -> tuple[int, ...]:
    sizes = tuple(module.weight.shape)
    return sizes if axes == 2 else (*sizes[:2], 1, sizes[2])


def _conv(module: Any, x: Tensor, axes: int) -> ConvGeometry:
    padding = module.padding
    if module.padding_mode != "zeros":  # the module pads before it convolves
        border = module._reversed_padding_repeated_twice
        x, padding = torch.nn.functional.pad(x, border, mode=module.padding_mode), 0
    form = (module.stride, padding, module.dilation, module.groups)
    window, more = conv_window(x, module.weight, module.bias, *form, axes=axes)
    rows, columns = more if axes == 2 else (0, *more)
    batch, channels, in_h, in_w = _image(x, axes)
    size = (batch, channels, in_h + rows, in_w + columns)
    full = window if axes == 2 else tuple(of_one_row(window))
    return geometry_of(size, _filters(module, axes), full)


def _transposed(module: Any, x: Tensor, axes: int) -> ConvGeometry:
    """Return the geometry of the convolution whose input gradient the module computes."""
    form = (module.stride, module.padding, module.output_padding, module.groups, module.dilation)
    window, extent, _ = conv_transpose_window(x, module.weight, module.bias, *form, axes=axes)
    full = window if axes == 2 else tuple(of_one_row(window))
    out_h, out_w = extent if axes == 2 else (1, *extent)
    size = (_image(x, axes)[0], module.out_channels, out_h, out_w)
    return geometry_of(size, _filters(module, axes), full)


def _max_pool(module: Any, x: Tensor, axes: int) -> PoolGeometry:
    given = (module.kernel_size, module.stride, module.padding, module.dilation)
    return _pool(x, axes, given, module.ceil_mode)


def _avg_pool(module: Any, x: Tensor, axes: int) -> PoolGeometry:
    return _pool(x, axes, (module.kernel_size, module.stride, module.padding, 1), module.ceil_mode)


def _pool(x: Tensor, axes: int, given: tuple[Any, ...], ceil_mode: bool) -> PoolGeometry:
    if axes == 1:
        numbers = (each[0] if isinstance(each, tuple) else each for each in given)
        given = tuple(zip((1, 1, 0, 1), numbers, strict=True))
    image = torch.empty(_image(x, axes), device="meta")
    window, stride, padding, dilation = given
    form = max_pool_arguments(image, window, stride, padding, dilation, ceil_mode)
    return pool_geometry(image.shape, *form)


def _adaptive(module: Any, x: Tensor) -> AdaptiveGeometry:
    sizes = _image(x, 2)
    y = module(x)
    extent = (y[0] if isinstance(y, tuple) else y).shape[-2:]
    return AdaptiveGeometry(*sizes, *extent)


def _subsample(module: Any, x: Tensor) -> ConvGeometry:
    """Return the depthwise convolution of equal taps as which a subsampling runs."""
    extent, channels = module.kernel_size, module.weight.numel()
    window = (extent, extent, 0, 0, 1, 1, channels)
    return geometry_of(_image(x, 2), (channels, 1, extent, extent), window)


def _unpool(module: Any, x: Tensor) -> AdaptiveGeometry:
    """Return the planes of x and y, between which elements move by their indices."""
    y = module(x, torch.zeros_like(x, dtype=torch.int64))
    return AdaptiveGeometry(*_image(x, 2), *y.shape[-2:])


TRANSPOSED = (torch.nn.ConvTranspose2d, torch.nn.ConvTranspose1d)
# Their kernels, and those that move elements by their indices, are in one file.
ADAPTIVE = (torch.nn.AdaptiveAvgPool2d, torch.nn.AdaptiveMaxPool2d, torch.nn.MaxUnpool2d)
AVERAGE = (torch.nn.AvgPool2d, torch.nn.AvgPool1d)
GEOMETRIES: dict[type[torch.nn.Module], Callable[[Any, Tensor], Geometry]] = {
    torch.nn.Conv2d: partial(_conv, axes=2),
    torch.nn.Conv1d: partial(_conv, axes=1),
    torch.nn.ConvTranspose2d: partial(_transposed, axes=2),
    torch.nn.ConvTranspose1d: partial(_transposed, axes=1),
    torch.nn.MaxPool2d: partial(_max_pool, axes=2),
    torch.nn.MaxPool1d: partial(_max_pool, axes=1),
    torch.nn.AvgPool2d: partial(_avg_pool, axes=2),
    torch.nn.AvgPool1d: partial(_avg_pool, axes=1),
    torch.nn.AdaptiveAvgPool2d: _adaptive,
    torch.nn.AdaptiveMaxPool2d: _adaptive,
    torch.nn.MaxUnpool2d: _unpool,
    Subsample2d: _subsample,
}
