"""Run convolutions on tensors: a problem and a choice become a plan, made once and reused.

What makes plans is imported by the first one: torch's own operators need none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from tconv.geometry import ConvGeometry, Pass
from tconv.launch import Launch, Plan, target_for
from tconv.ops.conv_check import Window
from tconv.ops.layout import (
    layout_of,
    memory_format,
    strides_of,
    strides_prefer_channels_last,
)
from tconv.plan_caches import when_forgotten
from tconv.problem import (
    BIAS,
    PLAIN,
    PRECISIONS,
    Epilogue,
    Layout,
    Precision,
    Problem,
    dtype_name,
)
from tconv.target import Target
from tconv.tile import Choice


@dataclass(frozen=True)
class Call:
    """A plan with everything a call needs besides its tensors."""

    plan: Plan
    result: str  # y, dx, dw or dbias
    size: tuple[int, ...]  # of the result
    strides: tuple[int, ...]
    reads: tuple[tuple[str, torch.memory_format], ...]  # the format that operands must have
    beside: tuple[str, ...] = ()  # other results: "offsets" of pooled maxima, "kept", "dbias"

    def __call__(self, tensors: dict[str, Tensor]) -> Tensor:
        """Return the result in fresh memory; ``tensors`` are the operands by name.

        Additional results are added to ``tensors``.
        """
        for name, form in self.reads:
            tensor = tensors[name]
            if not tensor.is_contiguous(memory_format=form):
                tensors[name] = tensor.contiguous(memory_format=form)
        like = next(iter(tensors.values()))
        result = torch.empty_strided(self.size, self.strides, dtype=like.dtype, device=like.device)
        tensors[self.result] = result
        for name in self.beside:
            if name == "dbias":
                tensors[name] = result.new_empty(self.size[1])
            else:
                dtype = torch.int8 if name == "offsets" else None
                tensors[name] = torch.empty_like(result, dtype=dtype)
        self.plan.run(tensors)
        return result


def prepare(
    problem: Problem,
    choice: Choice,
    target: Target,
    epilogue: Epilogue = PLAIN,
    w_layout: Layout = "nhwc",
) -> Call:
    """Prepare one pass with a given choice; ``w_layout`` is that of the filter or its gradient."""
    from tconv.families import FAMILIES
    from tconv.families.epilogue import NORM, epilogue_operands

    shape, layout = problem.geometry, problem.layout
    plan = FAMILIES[choice.family].plan(problem, choice.tile, target, epilogue, w_layout)
    x_size = (shape.batch, shape.in_channels, shape.in_h, shape.in_w)
    w_size = (shape.out_channels, shape.group_in_channels, shape.filter_h, shape.filter_w)
    y_size = (shape.batch, shape.out_channels, shape.out_h, shape.out_w)
    w = ("w", memory_format(w_layout))
    x, dy = (("x", memory_format(layout)), ("dy", memory_format(layout)))
    given = epilogue_operands(epilogue, problem.dtype)
    beside = tuple(name for name in ("kept", "offsets") if name in given)
    epilogue_inputs = [(name, torch.contiguous_format) for name in ("bias", *NORM) if name in given]
    if epilogue.residual:
        epilogue_inputs.append(("residual", memory_format(layout)))
    if problem.direction == "fprop":
        if epilogue.pool:
            y_size = (*y_size[:2], y_size[2] // 2, y_size[3] // 2)
        return Call(plan, "y", y_size, strides_of(y_size, layout), (x, w, *epilogue_inputs), beside)
    if problem.direction == "dgrad":  # with an epilogue, where it is a transposed convolution
        return Call(
            plan, "dx", x_size, strides_of(x_size, layout), (dy, w, *epilogue_inputs), beside
        )
    return Call(plan, "dw", w_size, strides_of(w_size, w_layout), (x, dy))


def compute(problem: Problem, choice: Choice, **tensors: Tensor) -> Tensor:
    """Compute one pass with a given choice: (x, w, bias) -> y, (dy, w) -> dx, or (x, dy) -> dw."""
    target = target_for(next(iter(tensors.values())).device)
    epilogue = BIAS if "bias" in tensors else PLAIN
    return prepare(problem, choice, target, epilogue)(tensors)


def precision_of(tensor: Tensor, requested: str | None) -> Precision:
    """Return how products of ``tensor`` are formed: as ``requested``, or else by torch's switch.

    Only float32 has a choice. If torch does not allow tf32, three tf32 products replace one: their
    error is that of float32 sums, and the matrix unit can compute them. AMD's compiler does not
    support this, and the interpreter is exact in any case.
    """
    if requested is not None and requested not in PRECISIONS:
        known = ", ".join(PRECISIONS)
        raise ValueError(f"precision is {requested!r}; it is one of {known}, or None")
    if tensor.dtype != torch.float32:
        return "ieee"
    if requested is not None:
        return requested  # type: ignore[return-value]
    target = target_for(tensor.device)
    if target.backend == "interpreter":
        return "ieee"
    if torch.backends.cudnn.conv.fp32_precision == "tf32":  # type: ignore[attr-defined]
        return "tf32"
    return "tf32x3" if target.backend == "cuda" else "ieee"


def geometry_of(x_size: Sequence[int], w_size: Sequence[int], window: Window) -> ConvGeometry:
    batch, in_channels, in_h, in_w = x_size
    out_channels, _, filter_h, filter_w = w_size
    return ConvGeometry(batch, in_channels, in_h, in_w, out_channels, filter_h, filter_w, *window)


@lru_cache(maxsize=4096)
def cached_call(
    direction: Pass,
    x_size: tuple[int, ...],
    w_size: tuple[int, ...],
    window: Window,
    layout: Layout,
    w_layout: Layout,
    dtype: torch.dtype,
    device: torch.device,
    precision: Precision,
    epilogue: Epilogue = PLAIN,
) -> Call:
    """Return the plan of a pass as chosen for ``device``, cached after the first call."""
    from tconv.aot.background import request_better
    from tconv.select import choose

    geometry = geometry_of(x_size, w_size, window)
    problem = Problem(geometry, direction, dtype_name(dtype), layout, precision)
    target = target_for(device)
    call = prepare(problem, choose(problem, target), target, epilogue, w_layout)

    def launches(choice: Choice) -> tuple[Launch, ...]:
        return prepare(problem, choice, target, epilogue, w_layout).plan.launches

    request_better(problem, target, launches)
    return call


@lru_cache(maxsize=4096)
def cached_fprop_call(
    x_size: tuple[int, ...],
    x_strides: tuple[int, ...],
    w_size: tuple[int, ...],
    w_strides: tuple[int, ...],
    window: Window,
    dtype: torch.dtype,
    device: torch.device,
    precision: Precision,
    epilogue: Epilogue,
) -> Call:
    """Return the plan of the forward pass; as in torch, y is channels_last if x or w is."""
    w_last = strides_prefer_channels_last(w_size, w_strides)
    layout = layout_of(w_last or strides_prefer_channels_last(x_size, x_strides))
    sizes = (x_size, w_size, window, layout, layout_of(w_last))
    call = cached_call("fprop", *sizes, dtype, device, precision, epilogue)
    # Formats known from the strides need no check at each call.
    known = {"x": (x_size, x_strides), "w": (w_size, w_strides)}
    reads = tuple((name, form) for name, form in call.reads
                  if name not in known or not _is_dense(*known[name], form))  # fmt: skip
    return replace(call, reads=reads)


def _is_dense(size: Sequence[int], strides: Sequence[int], form: torch.memory_format) -> bool:
    tensor = torch.empty_strided(size, strides, device="meta")
    return tensor.is_contiguous(memory_format=form)


@lru_cache(maxsize=4096)
def epilogue_grad_call(
    size: tuple[int, ...],
    layout: Layout,
    dtype: torch.dtype,
    device: torch.device,
    how: tuple[str, float, bool] | None = None,
    sums: bool = True,
) -> Call:
    """Return the plan for dbias from dy, and for an activation also dz, its argument's gradient.

    ``how`` is the activation's name, its slope, and whether its result is given (or its argument).
    """
    from tconv.families import epilogue_grad

    batch, channels, out_h, out_w = size
    target = target_for(device)
    form = memory_format(layout)
    image = (batch, channels, out_h * out_w)
    activation = None if how is None else epilogue_grad.Activation(*how)
    plan = epilogue_grad.plan(dtype_name(dtype), layout, image, target, activation, sums)
    if activation is None:
        return Call(plan, "dbias", (channels,), (1,), (("dy", form),))
    reads = (("dy", form), ("value", form))
    beside = ("dbias",) if sums else ()
    return Call(plan, "dz", size, strides_of(size, layout), reads, beside)


@lru_cache(maxsize=4096)
def pool_grad_call(
    size: tuple[int, ...], layout: Layout, dtype: torch.dtype, device: torch.device, sums: bool
) -> Call:
    """Return the plan for dz (of ``size``) and dbias from dy and the offsets of maxima."""
    from tconv.families import epilogue_grad

    form = memory_format(layout)
    plan = epilogue_grad.pool_plan(dtype_name(dtype), layout, size, target_for(device), sums)
    reads = (("dy", form), ("offsets", form))
    beside = ("dbias",) if sums else ()
    return Call(plan, "dz", size, strides_of(size, layout), reads, beside)


for _cached in (cached_call, cached_fprop_call, epilogue_grad_call, pool_grad_call):
    when_forgotten(_cached.cache_clear)
