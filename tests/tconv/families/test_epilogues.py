"""Every family's forward kernel ends in every part of an epilogue."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tconv.ops.conv_run import prepare
from tconv.problem import ACTIVATIONS, BatchNorm, Epilogue, Problem
from tconv.tile import Choice
from tests.devices import DEVICE, TARGET
from tests.tconv.families.test_edges import EDGES, posed

SHAPES = {
    "implicit_gemm": "gathered-pooled",
    "direct": "direct-pooled",
    "grouped": "grouped-pooled",
    "depthwise": "depthwise-pooled",
    "implicit_gemm_tma": "boxes-pooled",
}
SLOPE = 0.3
TORCHS: dict[str, Callable[[Tensor], Tensor]] = {
    "leaky_relu": lambda z: functional.leaky_relu(z, SLOPE),
    "gelu_tanh": lambda z: functional.gelu(z, approximate="tanh"),
}


def activated(z: Tensor, name: str) -> Tensor:
    compute = TORCHS.get(name) or getattr(functional, name)
    return compute(z)  # type: ignore[no-any-return]


def operands(problem: Problem) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, w, bias and the convolution, with values on both sides of every activation's bends."""
    shape, generator = problem.geometry, torch.Generator().manual_seed(0)

    def random(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).to(DEVICE, getattr(torch, problem.dtype))

    x = random(shape.batch, shape.in_channels, shape.in_h, shape.in_w)
    if problem.layout == "nhwc":
        x = x.contiguous(memory_format=torch.channels_last)
    w = random(shape.out_channels, shape.group_in_channels, shape.filter_h, shape.filter_w)
    bias = 4 * random(shape.out_channels)
    window = ((shape.stride_h, shape.stride_w), (shape.pad_h, shape.pad_w),
              (shape.dilation_h, shape.dilation_w))  # fmt: skip
    z = functional.conv2d(x.double(), w.double(), bias.double(), *window, shape.groups)
    assert z.min() < -4 < 4 < z.max()
    return x, w, bias, z


@pytest.mark.parametrize("layout", ["nhwc", pytest.param("nchw", marks=pytest.mark.thorough)])
@pytest.mark.parametrize("family", SHAPES)
def test_every_activation_pooled_or_not(family: str, layout: str) -> None:
    edge = EDGES[SHAPES[family]]
    problem = posed(edge, family, "fprop", layout, TARGET)  # type: ignore[arg-type]
    if problem is None:
        pytest.skip(f"{family} does not serve it")
    x, w, bias, z = operands(problem)
    bound = 2e-2 if problem.dtype == "float16" else 1e-3
    close = {"rtol": bound, "atol": bound}
    for name in ACTIVATIONS:
        y = activated(z, name)
        pooled, places = functional.max_pool2d(y, 2, return_indices=True)
        for pool, expected in ((False, y), (True, pooled)):
            slope = SLOPE if name == "leaky_relu" else 0.0
            kept = pool and name == "silu"
            ending = Epilogue(
                True, activation=name, slope=slope, pool=pool, offsets=pool, kept=kept
            )
            tensors = {"x": x, "w": w, "bias": bias}
            found = prepare(problem, Choice(family, edge.tile), TARGET, ending, "nchw")(tensors)
            torch.testing.assert_close(found.double(), expected, **close)
            if kept:
                at_best = z.flatten(2).gather(2, places.flatten(2)).view_as(pooled)
                torch.testing.assert_close(tensors["kept"].double(), at_best, **close)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("family", SHAPES)
def test_batch_norm_and_a_residual_after_the_activation(family: str, bias: bool) -> None:
    edge = EDGES[SHAPES[family]]
    problem = posed(edge, family, "fprop", "nhwc", TARGET)
    assert problem is not None
    x, w, offset, z = operands(problem)
    if not bias:
        z = z - offset.double()[:, None, None]
    weight, shift, mean = torch.randn(3, len(offset), device=DEVICE).to(offset.dtype)
    variance = torch.rand(len(offset), device=DEVICE).to(offset.dtype) + 1
    norm = {"norm_weight": weight, "norm_bias": shift, "norm_mean": mean, "norm_var": variance}
    doubles = (each.double() for each in (mean, variance, weight, shift))
    residual = torch.randn(z.shape, device=DEVICE).to(offset.dtype)
    expected = functional.silu(functional.batch_norm(z, *doubles)) + residual.double()
    known = BatchNorm(problem.dtype, 1e-5, True, True)
    ending = Epilogue(bias, known, residual=True, activation="silu", residual_after=True)
    tensors = {"x": x, "w": w, "residual": residual, **norm}
    if bias:
        tensors["bias"] = offset
    y = prepare(problem, Choice(family, edge.tile), TARGET, ending, "nchw")(tensors)
    bound = 3e-2 if problem.dtype == "float16" else 1e-3
    torch.testing.assert_close(y.double(), expected, rtol=bound, atol=bound)
