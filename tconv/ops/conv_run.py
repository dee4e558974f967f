"""Convolution on tensors: a problem and a choice become a plan, made once and run often."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from tconv.algorithms import ALGORITHMS, bias
from tconv.geometry import ConvGeometry, Pass
from tconv.ops.launch import Plan, target_for
from tconv.ops.layout import dense, empty
from tconv.problem import PRECISIONS, Layout, Precision, Problem, dtype_name
from tconv.select import Choice, choose, when_forgotten
from tconv.target import Target


@dataclass(frozen=True)
class Prepared:
    """A plan with all that a call needs besides its tensors."""

    plan: Plan
    result: str  # y, dx or dw
    size: tuple[int, ...]  # of the result
    layout: Layout  # of the result
    reads: dict[str, Layout]  # the format that each operand must have

    def run(self, **tensors: Tensor) -> Tensor:
        """The result, in fresh memory."""
        operands = {name: dense(tensors[name], layout) for name, layout in self.reads.items()}
        if "bias" in tensors:
            operands["bias"] = tensors["bias"].contiguous()
        result = empty(next(iter(operands.values())), self.size, self.layout)
        self.plan.run(**operands, **{self.result: result})
        return result


def prepare(
    problem: Problem,
    choice: Choice,
    target: Target,
    has_bias: bool = False,
    w_layout: Layout = "nhwc",
) -> Prepared:
    """One pass with a given choice; ``w_layout`` is the filter's, or that of its gradient."""
    shape, layout = problem.geometry, problem.layout
    plan = ALGORITHMS[choice.algorithm].plan(problem, choice.tile, target, has_bias, w_layout)
    x_size = (shape.batch, shape.in_channels, shape.in_h, shape.in_w)
    w_size = (shape.out_channels, shape.group_in_channels, shape.filter_h, shape.filter_w)
    y_size = (shape.batch, shape.out_channels, shape.out_h, shape.out_w)
    if problem.direction == "fprop":
        return Prepared(plan, "y", y_size, layout, {"x": "nhwc", "w": "nhwc"})
    if problem.direction == "dgrad":
        return Prepared(plan, "dx", x_size, layout, {"dy": "nhwc", "w": "nhwc"})
    return Prepared(plan, "dw", w_size, w_layout, {"x": "nhwc", "dy": "nhwc"})


def run(problem: Problem, choice: Choice, **tensors: Tensor) -> Tensor:
    """One pass with a given choice: (x, w, bias) -> y, (dy, w) -> dx, or (x, dy) -> dw."""
    target = target_for(next(iter(tensors.values())).device)
    return prepare(problem, choice, target, has_bias="bias" in tensors).run(**tensors)


def precision_of(tensor: Tensor, asked: str | None) -> Precision:
    """How a product of ``tensor`` is formed: as ``asked``, or else by torch's switch.

    Only float32 has a choice. Where torch does not allow tf32, three tf32 products stand in
    for one: their error is that of float32 sums, and the matrix unit computes them. AMD's
    compiler knows no such sum, and the interpreter is exact in any case.
    """
    if asked is not None and asked not in PRECISIONS:
        raise ValueError(f"precision is {asked!r}; it is one of {', '.join(PRECISIONS)}, or None")
    if tensor.dtype != torch.float32:
        return "ieee"
    if asked is not None:
        return asked  # type: ignore[return-value]
    target = target_for(tensor.device)
    if target.backend == "interpreter":
        return "ieee"
    if torch.backends.cudnn.conv.fp32_precision == "tf32":  # type: ignore[attr-defined]
        return "tf32"
    return "tf32x3" if target.backend == "cuda" else "ieee"


@lru_cache(maxsize=4096)
def prepared(
    direction: Pass,
    x_size: tuple[int, ...],
    w_size: tuple[int, ...],
    window: tuple[Any, ...],
    layout: Layout,
    w_layout: Layout,
    dtype: torch.dtype,
    device: torch.device,
    precision: Precision,
    has_bias: bool = False,
) -> Prepared:
    """The plan of a pass, as chosen for ``device``; made at the first call, then found here."""
    geometry = ConvGeometry.from_torch(x_size, w_size, *window)
    problem = Problem(geometry, direction, dtype_name(dtype), layout, precision)
    target = target_for(device)
    return prepare(problem, choose(problem, target), target, has_bias, w_layout)


when_forgotten(prepared.cache_clear)


@lru_cache(maxsize=4096)
def prepared_bias_grad(
    size: tuple[int, ...], layout: Layout, dtype: torch.dtype, device: torch.device
) -> Prepared:
    batch, channels, out_h, out_w = size
    target = target_for(device)
    plan = bias.plan(dtype_name(dtype), layout, batch, channels, out_h * out_w, target)
    return Prepared(plan, "dbias", (channels,), layout, {"dy": layout})
