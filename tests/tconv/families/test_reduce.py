"""The sum of a split reduction's parts, alone: many programs, every layout and epilogue."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from tconv.families.reduce import WORKSPACE, add_parts, parts_buffer
from tconv.geometry import ConvGeometry
from tconv.problem import ACTIVATIONS, PLAIN, BatchNorm, Epilogue, Layout, Problem
from tests.devices import DEVICE
from tests.tconv.families.test_epilogues import SLOPE, activated, normalized, terms

FUSED = Epilogue(bias=True, residual=True, activation="relu")


@pytest.mark.parametrize("width", [None, 8], ids=["dense", "widened"])
@pytest.mark.parametrize("epilogue", [PLAIN, FUSED], ids=["plain", "fused"])
@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_parts_are_added(layout: Layout, epilogue: Epilogue, width: int | None) -> None:
    shape = ConvGeometry(2, 3, 16, 15, 5, 1, 1)
    problem = Problem(shape, "fprop", "float32", layout)
    buffer = parts_buffer(problem, "y", 3, width)
    generator = torch.Generator().manual_seed(0)
    parts = torch.randn(buffer.elements, generator=generator).to(DEVICE)
    size = (3, 2, 16, 15, width or 5)
    exact = parts.double().view(size).sum(0)[..., :5].permute(0, 3, 1, 2)
    last = torch.channels_last if layout == "nhwc" else torch.contiguous_format
    tensors = {WORKSPACE: parts, "y": torch.empty(exact.shape, device=DEVICE, memory_format=last)}
    if epilogue is FUSED:
        bias = torch.randn(5, generator=generator).to(DEVICE)
        residual = torch.randn(exact.shape, generator=generator).to(DEVICE)
        tensors |= {"bias": bias, "residual": residual.contiguous(memory_format=last)}
        exact = (exact + bias[:, None, None] + residual).relu()
    launch = add_parts(problem, "y", layout, 3, epilogue, width)
    assert launch.grid[0] > 1
    launch.run(tensors)
    assert_close(tensors["y"].double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_of_the_sum(activation: str, after: bool) -> None:
    """With batch normalization, the residual on either side, and the argument kept."""
    shape = ConvGeometry(2, 3, 4, 5, 7, 1, 1)
    problem = Problem(shape, "fprop", "float32", "nchw")
    generator = torch.Generator().manual_seed(2)
    parts, residual = (
        3 * torch.randn(*size, 7, 4, 5, generator=generator).to(DEVICE) for size in ((3, 2), (2,))
    )
    norm = BatchNorm("float32", 0.25, weight=not after, bias=not after)
    slope = SLOPE if activation == "leaky_relu" else 0.0
    ending = Epilogue(True, norm, True, activation, slope, after, kept=True)
    given = {**terms(7), "bias": torch.arange(-3.0, 4.0, device=DEVICE), "residual": residual}
    z = normalized(parts.double().sum(0) + given["bias"][:, None, None], norm, given)
    exact = {"kept": z if after else z + residual}
    exact["y"] = activated(exact["kept"], activation) + (residual if after else 0.0)
    assert exact["kept"].min() < -4 < 4 < exact["kept"].max()
    given |= {name: torch.empty_like(residual) for name in exact}
    given[WORKSPACE] = parts.permute(0, 1, 3, 4, 2).contiguous()
    add_parts(problem, "y", "nchw", 3, ending).run(given)
    for name, expected in exact.items():
        assert_close(given[name].double(), expected, rtol=1e-4, atol=1e-4)
