"""Every family's forward kernel ends in every activation and in each other part of an epilogue."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tconv.families.epilogue import NORM as TERMS
from tconv.ops.conv_run import prepare
from tconv.problem import ACTIVATIONS, BatchNorm, Epilogue, Problem
from tconv.tile import Choice, Tile
from tests.devices import DEVICE, TARGET
from tests.tconv.families.test_edges import EDGES, posed

SHAPES = {
    "implicit_gemm": "gathered-pooled",
    "direct": "direct-pooled",
    "grouped": "grouped-pooled",
    "depthwise": "depthwise-pooled",
    "implicit_gemm_tma": "boxes-pooled",
}
# Few programs for each activation's launches; the small tiles of the edges take ten times as long.
LARGE = {"direct": Tile(128, 4, 4), "depthwise": Tile(32, 8, 4)}
SLOPE = 0.3
TORCHS: dict[str, Callable[[Tensor], Tensor]] = {
    "leaky_relu": lambda z: functional.leaky_relu(z, SLOPE),
    "gelu_tanh": lambda z: functional.gelu(z, approximate="tanh"),
}


def activated(z: Tensor, name: str) -> Tensor:
    compute = TORCHS.get(name) or getattr(functional, name)
    return compute(z)  # type: ignore[no-any-return]


def posed_on_this_device(family: str, layout: str) -> tuple[Problem, Tile]:
    """Return a family's forward problem and its tile; skip if the device does not serve it."""
    edge = EDGES[SHAPES[family]]
    problem = posed(edge, family, "fprop", layout, TARGET)  # type: ignore[arg-type]
    if problem is None:
        pytest.skip(f"{family} does not serve it")
    return problem, edge.tile


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


def bounds(problem: Problem) -> dict[str, float]:
    bound = 1e-3 if problem.arithmetic == "float32" else 2e-2
    return {"rtol": bound, "atol": bound}


@pytest.mark.parametrize("layout", ["nhwc", pytest.param("nchw", marks=pytest.mark.thorough)])
@pytest.mark.parametrize("family", SHAPES)
def test_every_activation_pooled_or_not(family: str, layout: str) -> None:
    problem, _ = posed_on_this_device(family, layout)
    tile = LARGE.get(family, Tile(128, 32, 16))
    x, w, bias, z = operands(problem)
    close = bounds(problem)
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
            found = prepare(problem, Choice(family, tile), TARGET, ending, "nchw")(tensors)
            torch.testing.assert_close(found.double(), expected, **close)
            if kept:
                at_best = z.flatten(2).gather(2, places.flatten(2)).view_as(pooled)
                torch.testing.assert_close(tensors["kept"].double(), at_best, **close)


NORM, BARE = BatchNorm("float32", 1.0), BatchNorm("float32", 1.0, weight=False, bias=False)
ENDINGS = {
    "norm": Epilogue(True, NORM, residual=True, activation="silu", kept=True),
    "bare-norm": Epilogue(False, BARE, True, "relu", 0.0, True, pool=True, offsets=True, kept=True),
    "residual": Epilogue(residual=True, pool=True, offsets=True),
}


def terms(channels: int) -> dict[str, Tensor]:
    """Tensors of a batch normalization, [channels] each; the variance is at least 1."""
    generator = torch.Generator().manual_seed(1)
    found = {name: torch.randn(channels, generator=generator).to(DEVICE) for name in TERMS}
    return found | {"norm_var": found["norm_var"].abs() + 1}


def normalized(z: Tensor, norm: BatchNorm | None, given: dict[str, Tensor]) -> Tensor:
    """Compute a batch normalization in fp64, in elementary operations."""
    if norm is None:
        return z
    weight, bias, mean, var = (given[name].double()[:, None, None] for name in TERMS)
    z = (z - mean) / (var + norm.eps).sqrt()
    return (z * weight if norm.weight else z) + (bias if norm.bias else 0.0)


@pytest.mark.parametrize("layout", ["nhwc", pytest.param("nchw", marks=pytest.mark.thorough)])
@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
@pytest.mark.parametrize("family", SHAPES)
def test_norm_and_residual(family: str, ending: Epilogue, layout: str) -> None:
    problem, tile = posed_on_this_device(family, layout)
    x, w, bias, z = operands(problem)
    z = z if ending.bias else z - bias.double()[:, None, None]
    given = {"x": x, "w": w, "bias": bias, **terms(len(w)), "residual": z.flip(1).to(x) / 2}
    residual = given["residual"].double()
    argument = normalized(z, ending.norm, given)
    argument = argument if ending.residual_after else argument + residual
    y = activated(argument, ending.activation) if ending.activation else argument
    y = y + residual if ending.residual_after else y
    prepare(problem, Choice(family, tile), TARGET, ending, "nchw")(given)
    wanted = {"y": y, "kept": argument}
    if ending.pool:  # rounding decides between places of about the same value
        best = given["offsets"].long()[..., None]
        for name, tensor in wanted.items():
            windows = tensor.unfold(2, 2, 2).unfold(3, 2, 2).flatten(-2)
            wanted[name] = windows.gather(-1, best)[..., 0]
        torch.testing.assert_close(wanted["y"], functional.max_pool2d(y, 2), **bounds(problem))
    for name in wanted.keys() & given.keys():
        torch.testing.assert_close(given[name].double(), wanted[name], **bounds(problem))
