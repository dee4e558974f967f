"""Tests of average-pool and trainable subsampling against torch: values, gradients, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close

import tconv
from tconv.functional import avg_pool2d, subsample2d
from tconv.launch import recorded
from tconv.ops.avg_pool2d import avg_pool_launch
from tconv.ops.layout import memory_format
from tconv.ops.pool_check import pool_geometry
from tconv.problem import Layout, PoolProblem
from tconv.tile import Tile
from tests.devices import DEVICE

CASES: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "lenet": ((2, 6, 28, 28), {"kernel_size": 2}),
    "odd": ((2, 5, 11, 13), {"kernel_size": 3, "stride": 2}),
    "tall": ((2, 3, 9, 8), {"kernel_size": (5, 2), "stride": (2, 1), "padding": (2, 1)}),
    "wide": ((2, 3, 8, 9), {"kernel_size": (2, 5), "stride": (1, 2), "padding": (1, 2)}),
    "padded": ((2, 5, 11, 13), {"kernel_size": 3, "stride": 2, "padding": 1}),
    "padding-does-not-count": (
        (2, 5, 9, 10), {"kernel_size": (3, 5), "stride": 1, "padding": (1, 2),
                        "count_include_pad": False},
    ),
    "ceil": ((2, 3, 8, 7), {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
    "ceil-without-padding": (
        (1, 3, 8, 7), {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True,
                       "count_include_pad": False},
    ),
    "divisor": ((1, 3, 8, 8), {"kernel_size": 2, "divisor_override": 3}),
    "gaps": ((1, 3, 9, 8), {"kernel_size": 2, "stride": 3}),
    "global": ((2, 5, 7, 9), {"kernel_size": (7, 9)}),
    "unbatched": ((5, 9, 11), {"kernel_size": 3}),
    "zero-batch": ((0, 3, 8, 8), {"kernel_size": 2}),
}  # fmt: skip


def random(*size: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(sum(size))
    return torch.randn(size, generator=generator, dtype=torch.float64).to(DEVICE, dtype)


@pytest.mark.parametrize("channels_last", [True, False], ids=["nhwc", "nchw"])
@pytest.mark.parametrize("name", CASES)
def test_as_torch(name: str, channels_last: bool) -> None:
    shape, window = CASES[name]
    x = random(*shape)
    if channels_last and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    with recorded() as log:
        y = avg_pool2d(x, **window)
        dy = random(*y.shape)
        (dx,) = torch.autograd.grad(y, x, dy)
    expected = functional.avg_pool2d(x, **window)
    assert_close(y, expected)
    assert y.stride() == expected.stride()
    assert_close(dx, torch.autograd.grad(expected, x, dy)[0])
    ran = [launch.kernel for launch in log]
    assert ran == ["avg_pool.avg_pool_fprop", "avg_pool.avg_pool_dgrad"] * bool(x.numel())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    x = random(2, 8, 12, 12, dtype=dtype)
    exact = functional.avg_pool2d(x.double(), 3, 2, 1)
    bound = torch.finfo(dtype).eps
    assert_close(avg_pool2d(x, 3, 2, 1).double(), exact, rtol=bound, atol=bound)


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("counted", [True, False], ids=["padding-counts", "it-does-not"])
def test_many_programs(layout: Layout, counted: bool) -> None:
    """Small tiles that divide no axis, so that every edge of the grid is tested."""
    x = random(2, 7, 9, 8).contiguous(memory_format=memory_format(layout)).requires_grad_()
    exact = functional.avg_pool2d(x, (4, 3), (2, 1), (2, 1), True, counted)
    dy = random(*exact.shape).contiguous(memory_format=memory_format(layout))
    (exact_dx,) = torch.autograd.grad(exact, x, dy)
    shape = pool_geometry(x.shape, (4, 3), (2, 1), (2, 1), (1, 1), True)
    y, dx = torch.full_like(exact, torch.nan), torch.full_like(x, torch.nan)
    for direction, tensors in (("fprop", {"x": x, "y": y}), ("dgrad", {"dy": dy, "dx": dx})):
        problem = PoolProblem(shape, direction, "float64", layout)  # type: ignore[arg-type]
        launch = avg_pool_launch(problem, Tile(16, 4, 1), counted, 0)
        assert launch.grid[0] > 3
        launch.run(tensors)
    assert_close((y, dx), (exact, exact_dx))


def test_second_gradients() -> None:
    x = random(1, 2, 6, 5).requires_grad_()

    def pool(x: Tensor) -> Tensor:
        return avg_pool2d(x, 3, 2, 1)

    assert torch.autograd.gradcheck(pool, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(pool, x, fast_mode=True)


def test_operators_pass_opcheck() -> None:
    window = [3, 3, 2, 2, 1, 1, 0, 1, 0]
    x = random(2, 3, 8, 8).requires_grad_()
    torch.library.opcheck(torch.ops.tconv.avg_pool2d.default, (x, window))
    dy = random(2, 3, 4, 4).requires_grad_()
    gradient = torch.ops.tconv.avg_pool2d_input_grad.default
    torch.library.opcheck(gradient, (dy, [2, 3, 8, 8], window, True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel_size": 2, "divisor_override": 0}, "divisor must be not zero"),
        ({"kernel_size": 2, "padding": 2}, "pad should be at most half"),
        ({"kernel_size": 0, "stride": 1}, "kernel size should be greater than zero"),
        ({"kernel_size": 9}, "Output size is too small"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    for pool in (avg_pool2d, functional.avg_pool2d):
        with pytest.raises(RuntimeError, match=message):
            pool(random(1, 2, 6, 6), **arguments)


def test_integers_are_refused() -> None:
    with pytest.raises(NotImplementedError, match='"avg_pool2d" not implemented'):
        avg_pool2d(torch.ones(1, 1, 4, 4, dtype=torch.long, device=DEVICE), 2)


def test_module_is_torchs() -> None:
    arguments = {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False}
    x = random(2, 3, 9, 9)
    theirs = torch.nn.AvgPool2d(**arguments)  # type: ignore[arg-type]
    assert_close(tconv.AvgPool2d(**arguments)(x), theirs(x))  # type: ignore[arg-type]


def test_subsampling_is_a_mean_times_a_weight_plus_a_bias() -> None:
    x, w, b = (random(*size).requires_grad_() for size in ((2, 6, 28, 28), (6,), (6,)))
    with recorded() as log:
        y = subsample2d(x, w, b)
        dy = random(*y.shape)
        ours = torch.autograd.grad(y, (x, w, b), dy)
    expected = functional.avg_pool2d(x, 2) * w[:, None, None] + b[:, None, None]
    assert_close(y, expected)
    assert_close(ours, torch.autograd.grad(expected, (x, w, b), dy))
    assert len(log) >= 3
    with pytest.raises(RuntimeError, match="one for each channel"):
        subsample2d(x, w[:3], b)
