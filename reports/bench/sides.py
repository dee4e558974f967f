"""A case as timeable calls: our kernels, and torch's on both memory formats."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from autotune.gate import expected
from autotune.measure import inputs
from reports.bench.cases import Case, ConvCase, PoolCase
from tconv import functional, reference
from tconv.geometry import ConvGeometry

Call = Callable[[], Tensor]


@dataclass(frozen=True)
class Sides:
    """The same work on the same numbers three times, and the correct result."""

    ours: Call
    nhwc: Call  # torch's operators on channels_last tensors
    nchw: Call  # torch's operators on contiguous tensors
    wanted: Call  # the result in fp64


def sides(case: Case, device: torch.device, seed: int) -> Sides:
    """Return the calls of ``case`` on inputs of unit variance drawn from ``seed``."""
    if isinstance(case, PoolCase):
        return _pool(case, device, seed)
    tensors = inputs(case.problem, str(device), seed)
    return _ended(case, tensors, device) if case.epilogue else _plain(case, tensors)


@contextlib.contextmanager
def torchs_precision(dtype: str) -> Iterator[None]:
    """Set torch's switches for a row's dtype: cuDNN benchmark on, tf32 only for "tf32"."""
    matmul, allowed = torch.backends.cuda.matmul, dtype == "tf32"
    before = matmul.allow_tf32
    matmul.allow_tf32 = allowed
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=allowed):
            yield
    finally:
        matmul.allow_tf32 = before


def _window(shape: ConvGeometry) -> tuple[list[int], list[int], list[int]]:
    return (
        [shape.stride_h, shape.stride_w],
        [shape.pad_h, shape.pad_w],
        [shape.dilation_h, shape.dilation_w],
    )


def _in_format(tensors: dict[str, Tensor], layout: torch.memory_format) -> dict[str, Tensor]:
    return {
        name: tensor.contiguous(memory_format=layout) if tensor.dim() == 4 else tensor
        for name, tensor in tensors.items()
    }


def _both(call: Callable[[dict[str, Tensor]], Tensor], tensors: dict[str, Tensor]) -> list[Call]:
    """Return ``call`` on channels_last tensors, and on contiguous ones."""
    formats = (torch.channels_last, torch.contiguous_format)
    return [partial(call, _in_format(tensors, layout)) for layout in formats]


def _plain(case: ConvCase, tensors: dict[str, Tensor]) -> Sides:
    problem, shape = case.problem, case.problem.geometry
    ours, operators = _ours(case, tensors), torch.ops.aten
    window = (*_window(shape), False, [0, 0], shape.groups)
    if problem.direction == "fprop":

        def theirs(held: dict[str, Tensor]) -> Tensor:
            result: Tensor = operators.convolution(held["x"], held["w"], None, *window)
            return result

    else:
        place = 0 if problem.direction == "dgrad" else 1
        mask = [place == 0, place == 1, False]
        lacking = "x" if place == 0 else "w"
        tensors = {**tensors, lacking: _shell(shape, lacking, tensors["dy"])}

        def theirs(held: dict[str, Tensor]) -> Tensor:
            operands = (held["dy"], held["x"], held["w"], None)
            result: Tensor = operators.convolution_backward(*operands, *window, mask)[place]
            return result

    nhwc, nchw = _both(theirs, tensors)
    return Sides(ours, nhwc, nchw, partial(expected, problem, tensors))


def _shell(shape: ConvGeometry, name: str, like: Tensor) -> Tensor:
    """Return an operand that torch requires although a gradient does not read its values."""
    size = {
        "x": (shape.batch, shape.in_channels, shape.in_h, shape.in_w),
        "w": (shape.out_channels, shape.group_in_channels, shape.filter_h, shape.filter_w),
    }[name]
    return like.new_zeros(size)


def _ours(case: ConvCase, tensors: dict[str, Tensor]) -> Call:
    """Return the operator that computes a plain pass on channels_last tensors."""
    problem, shape = case.problem, case.problem.geometry
    window = [n for pair in _window(shape) for n in pair] + [shape.groups]
    precision, operators = _precision(case), torch.ops.tconv
    if problem.direction == "fprop":
        return partial(operators.conv2d, tensors["x"], tensors["w"], None, window, precision)
    if problem.direction == "dgrad":
        size = [shape.batch, shape.in_channels, shape.in_h, shape.in_w]
        pair = (tensors["dy"], tensors["w"])
        return partial(operators.conv2d_input_grad, *pair, size, window, True, precision)
    size = [shape.out_channels, shape.group_in_channels, shape.filter_h, shape.filter_w]
    pair = (tensors["x"], tensors["dy"])
    return partial(operators.conv2d_weight_grad, *pair, size, window, True, precision)


def _precision(case: ConvCase) -> str | None:
    return case.problem.precision if case.problem.dtype == "float32" else None


def _ended(case: ConvCase, tensors: dict[str, Tensor], device: torch.device) -> Sides:
    """Return calls with bias, ReLU and optional pool: one kernel of ours, several of torch's."""
    shape, pooled = case.problem.geometry, case.epilogue.endswith("+pool")
    generator = torch.Generator(device).manual_seed(1)
    bias = torch.randn(shape.out_channels, generator=generator, device=device)
    held = {**tensors, "bias": bias.to(tensors["x"].dtype)}
    ours = functional.conv2d_pool if pooled else functional.conv2d
    stride, pad, dilation = _window(shape)

    def theirs(held: dict[str, Tensor]) -> Tensor:
        plain, operands = torch.nn.functional, (held["x"], held["w"], held["bias"])
        y = plain.relu(plain.conv2d(*operands, stride, pad, dilation, shape.groups))
        return plain.max_pool2d(y, 2) if pooled else y

    def wanted() -> Tensor:
        y = reference.conv2d(held["x"], held["w"], held["bias"], shape).relu()
        return torch.nn.functional.max_pool2d(y, 2) if pooled else y

    nhwc, nchw = _both(theirs, held)
    operands = (held["x"], held["w"], held["bias"], stride, pad, dilation, shape.groups)
    mine = partial(ours, *operands, activation="relu", precision=_precision(case))
    return Sides(mine, nhwc, nchw, wanted)


def _pool(case: PoolCase, device: torch.device, seed: int) -> Sides:
    """Return calls of a max-pool as in training, with its offsets, or of its gradient."""
    problem, shape = case.problem, case.problem.geometry
    generator = torch.Generator(device).manual_seed(seed)
    drawn = torch.randn(
        (shape.batch, shape.channels, shape.in_h, shape.in_w), generator=generator, device=device
    )
    x = drawn.to(getattr(torch, problem.dtype)).to(memory_format=torch.channels_last)
    window = (
        [shape.window_h, shape.window_w], [shape.stride_h, shape.stride_w],
        [shape.pad_h, shape.pad_w], [shape.dilation_h, shape.dilation_w], shape.ceil_mode,
    )  # fmt: skip
    ours, operators = torch.ops.tconv, torch.ops.aten
    if problem.direction == "fprop":

        def forward(held: dict[str, Tensor]) -> Tensor:
            result: Tensor = operators.max_pool2d_with_indices(held["x"], *window)[0]
            return result

        nhwc, nchw = _both(forward, {"x": x})
        return Sides(
            lambda: ours.max_pool2d(x, *window)[0], nhwc, nchw,
            lambda: reference.max_pool2d(x, shape)[0],
        )  # fmt: skip
    y, offsets = ours.max_pool2d(x, *window)
    indices = operators.max_pool2d_with_indices(x, *window)[1]
    dy = torch.randn(y.shape, generator=generator, device=device).to(x.dtype)
    dy = dy.contiguous(memory_format=torch.channels_last)

    def backward(held: dict[str, Tensor]) -> Tensor:
        operands = (held["dy"], held["x"], *window, held["indices"])
        result: Tensor = operators.max_pool2d_with_indices_backward(*operands)
        return result

    nhwc, nchw = _both(backward, {"dy": dy, "x": x, "indices": indices})
    return Sides(
        partial(ours.max_pool2d_input_grad, dy, offsets, list(x.shape), *window, True), nhwc, nchw,
        lambda: reference.max_pool2d_dgrad(dy, indices, shape),
    )  # fmt: skip
