"""The sum of a split reduction's parts, alone: many programs, every layout and epilogue."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from tconv.families.reduce import WORKSPACE, add_parts, parts_buffer
from tconv.geometry import ConvGeometry
from tconv.problem import PLAIN, Epilogue, Layout, Problem
from tests.devices import DEVICE

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
