"""Explain which kernel and tile would run, and why."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tconv.families import passed_over
from tconv.geometry import PASSES, ConvGeometry, PoolGeometry
from tconv.launch import emulated, interpreting, runs_triton, target_for
from tconv.ops.conv_check import conv_window
from tconv.ops.conv_run import geometry_of, precision_of
from tconv.ops.layout import layout_of, prefers_channels_last
from tconv.ops.pool_check import max_pool_arguments, pool_geometry
from tconv.problem import Layout, PoolProblem, Problem, dtype_name
from tconv.select import choose
from tconv.shared_kernels import wanted
from tconv.tile import Choice


@dataclass(frozen=True)
class Explanation:
    """The kernels that would run for each pass of a layer.

    ``choices`` is empty if torch's CPU operators compute the layer.
    """

    geometry: ConvGeometry | PoolGeometry
    device: str
    choices: tuple[tuple[str, Choice], ...]
    # pass, kernel family, why it cannot compute the pass
    passed_over: tuple[tuple[str, str, str], ...] = ()
    # pass, and the choice whose kernel waits to be compiled in the background
    wanted: tuple[tuple[str, Choice], ...] = ()

    def __str__(self) -> str:
        if not self.choices:
            return f"{self.geometry.key} on {self.device}: torch's own CPU operators"
        lines = [f"{self.geometry.key} on {self.device}:"]
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


def explain(
    what: torch.nn.Module | ConvGeometry | PoolGeometry, input: Tensor | None = None
) -> Explanation:
    """Return the kernel and tile that would run for each pass of a layer, and the reason.

    Args:
        what: a Conv2d or MaxPool2d module, or a geometry.
        input: the module's input tensor. A geometry does not need one, but takes dtype, device and
            memory format from it.

    The reasons are ``tuned`` (the user's measurements), ``shipped`` (our measurements for this
    GPU), ``predicted`` (by the tuner's model) and ``heuristic``. Kernel families that cannot
    compute a pass are listed with the reason. On a CPU without ``TRITON_INTERPRET=1`` and without
    an emulated GPU no Triton kernel runs, and the explanation says so.

    Raises:
        TypeError: if a module is neither a convolution nor a max-pool, or has no input.
    """
    geometry = what if isinstance(what, (ConvGeometry, PoolGeometry)) else _geometry(what, input)
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
    choices = tuple((problem.direction, choose(problem, target)) for problem in problems)
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
    return Explanation(geometry, where, choices, reasons, better)


def _problems(
    geometry: ConvGeometry | PoolGeometry, like: Tensor, layout: Layout
) -> tuple[Problem | PoolProblem, ...]:
    name = dtype_name(like.dtype)
    if isinstance(geometry, PoolGeometry):
        return (
            PoolProblem(geometry, "fprop", name, layout),
            PoolProblem(geometry, "dgrad", name, layout),
        )
    precision = precision_of(like, None)
    return tuple(Problem(geometry, direction, name, layout, precision) for direction in PASSES)


def _geometry(module: torch.nn.Module, input: Tensor | None) -> ConvGeometry | PoolGeometry:
    if input is None:
        raise TypeError(f"explain({type(module).__name__}) needs the input that it would be given")
    x = input.unsqueeze(0) if input.dim() == 3 else input
    if isinstance(module, torch.nn.Conv2d):
        window = (module.stride, module.padding, module.dilation, module.groups)
        full, (rows, columns) = conv_window(x, module.weight, module.bias, *window)
        size = (*x.shape[:2], x.shape[2] + rows, x.shape[3] + columns)
        return geometry_of(size, module.weight.shape, full)
    if isinstance(module, torch.nn.MaxPool2d):
        form = (module.kernel_size, module.stride, module.padding, module.dilation)
        numbers = max_pool_arguments(x, *form, module.ceil_mode)
        return pool_geometry(x.shape, *numbers)
    raise TypeError(f"{type(module).__name__} is neither a Conv2d, a MaxPool2d nor a geometry")
