"""Changes of layout as a GPU makes them: many programs, where the interpreter would take one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tconv.families.relayout import Operands
from tconv.launch import Plan
from tconv.problem import Layout
from tconv.target import TARGETS
from tests.devices import DEVICE

TARGET = TARGETS["sm_90"]


def random(*size: int, layout: Layout = "nchw") -> Tensor:
    values = torch.randn(size, generator=torch.Generator().manual_seed(sum(size))).to(DEVICE)
    last = torch.channels_last if layout == "nhwc" else torch.contiguous_format
    return values.contiguous(memory_format=last)


def run(operands: Operands, x: Tensor, made: str) -> Tensor:
    tensors = {"x": x}
    Plan(tuple(operands.launches), operands.buffers).run(tensors)
    return tensors[made]


@pytest.mark.parametrize("size", [(2, 65, 9, 8), (3, 5, 57, 31), (2, 128, 3, 1)], ids=str)
def test_to_channels_last(size: tuple[int, int, int, int]) -> None:
    x, operands = random(*size), Operands(TARGET, "float32")
    images, channels, rows, columns = size
    made = operands.channels_last("x", "nchw", images, channels, rows * columns)
    assert operands.launches[0].grid[0] > images
    assert_close(
        run(operands, x, made).view(images, rows, columns, channels), x.permute(0, 2, 3, 1)
    )


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_widened(layout: Layout) -> None:
    x, operands = random(2, 3, 11, 9, layout=layout), Operands(TARGET, "float32")
    made = operands.widened("x", layout, (2, 3, 11, 9), 4, pad=(1, 2))
    assert operands.launches[0].grid[0] > 1
    exact = torch.nn.functional.pad(x.permute(0, 2, 3, 1), (0, 1, 2, 2, 1, 1))
    assert_close(run(operands, x, made).view(2, 13, 13, 4), exact)
