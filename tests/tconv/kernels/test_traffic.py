"""Bytes that memory-bound kernels move, against the least possible: counted, not claimed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tconv.functional import avg_pool2d, conv2d, conv2d_pool, max_pool2d
from tconv.geometry import ConvGeometry
from tconv.ops.conv_run import prepare
from tconv.problem import Problem
from tconv.target import INTERPRETER
from tconv.tile import Choice, Tile
from tests.tconv.traffic import traffic

pytestmark = pytest.mark.interpreter
FORMATS = {"nhwc": torch.channels_last, "nchw": torch.contiguous_format}
LAYOUTS = pytest.mark.parametrize("layout", FORMATS)


def size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def random(*shape: int, layout: str = "nchw") -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0)).half()
    return values.contiguous(memory_format=FORMATS[layout])


@LAYOUTS
def test_max_pool_moves_the_least(layout: str) -> None:
    x = random(2, 16, 12, 20, layout=layout).requires_grad_()
    with traffic() as forward:
        y = max_pool2d(x, 2)
    assert isinstance(y, Tensor)
    assert forward.requested(x) == size(x)  # every element once, and none twice
    assert forward.stored(y) == size(y)
    every = sum(addresses.size for found in forward.stores.values() for addresses in found)
    assert every == 2 * y.numel()  # y, and one byte of offset each
    offsets = next(t for t in y.grad_fn.saved_tensors if t.dtype == torch.int8)  # type: ignore[union-attr]
    assert forward.stored(offsets) == y.numel()
    dy = torch.ones_like(y)
    with traffic() as backward:
        (dx,) = torch.autograd.grad(y, x, dy)
    assert (backward.loaded(dy), backward.loaded(offsets)) == (size(dy), size(offsets))
    assert backward.stored(dx) == size(dx)
    with torch.no_grad(), traffic() as inference:
        y = max_pool2d(x, 2)  # type: ignore[assignment]
    every = sum(addresses.size for found in inference.stores.values() for addresses in found)
    assert every == y.numel()  # no offsets at all


@LAYOUTS
def test_overlapping_windows_load_each_element_once_a_program(layout: str) -> None:
    x = random(2, 16, 13, 21, layout=layout)
    with torch.no_grad(), traffic() as moved:
        y = max_pool2d(x, 3, 2, 1)
    assert moved.loaded(x) == size(x)
    assert moved.stored(y) == size(y)  # type: ignore[arg-type]


@LAYOUTS
def test_average_pool_moves_the_least(layout: str) -> None:
    x = random(2, 16, 12, 20, layout=layout).requires_grad_()
    with traffic() as forward:
        y = avg_pool2d(x, 2)
    assert (forward.requested(x), forward.stored(y)) == (size(x), size(y))
    dy = torch.ones_like(y)
    with traffic() as backward:
        (dx,) = torch.autograd.grad(y, x, dy)
    assert (backward.loaded(dy), backward.stored(dx)) == (size(dy), size(dx))


@pytest.mark.parametrize("direction", ["fprop", "dgrad"])
@pytest.mark.parametrize("extent", [3, 5, 7])
@LAYOUTS
def test_depthwise_stays_within_the_halo(layout: Any, extent: int, direction: Any) -> None:
    pad, side, channels = extent // 2, 16, 8
    shape = ConvGeometry(1, channels, side, side, channels, extent, extent, 1, 1, pad, pad,
                         groups=channels)  # fmt: skip
    problem, tile = Problem(shape, direction, "float16", layout), Tile(8, 4, 4)
    image, w = random(1, channels, side, side, layout=layout), random(channels, 1, extent, extent)
    names = ("x", "w") if direction == "fprop" else ("dy", "w")
    call = prepare(problem, Choice("depthwise", tile), INTERPRETER, w_layout="nchw")
    with traffic() as moved:
        result = call(dict(zip(names, (image, w), strict=True)))
    programs = len(moved.stores)
    assert programs == (side // 8) * (side // 4) * (channels // 4)
    halo = (8 + extent - 1) * (4 + extent - 1) * 4 * image.element_size()
    assert size(image) < moved.loaded(image) <= programs * halo
    # A thread asks for a place once for each line of the filter, and not for each tap.
    assert moved.requested(image) <= programs * 8 * extent * (4 + extent - 1) * 4 * 2
    assert moved.stored(result) == size(result)


@LAYOUTS
def test_depthwise_wgrad_reads_x_and_dy_once_a_program(layout: Any) -> None:
    shape = ConvGeometry(2, 8, 16, 16, 8, 3, 3, 1, 1, 1, 1, groups=8)
    problem = Problem(shape, "wgrad", "float16", layout)
    x, dy = (random(2, 8, 16, 16, layout=layout) for _ in range(2))
    dy = dy.clone(memory_format=torch.preserve_format)
    call = prepare(problem, Choice("depthwise", Tile(256, 8, 4)), INTERPRETER, w_layout="nchw")
    with traffic() as moved:
        call({"x": x, "dy": dy})
    assert (moved.loaded(x), moved.requested(dy)) == (size(x), size(dy))


@LAYOUTS
def test_a_fused_epilogue_writes_the_pooled_result_alone(layout: str) -> None:
    x, w = random(1, 8, 12, 12, layout=layout), random(16, 8, 3, 3, layout=layout)
    bias = random(16)
    with torch.no_grad(), traffic() as moved:
        y = conv2d_pool(x, w, bias, padding=1, activation="relu")
    assert moved.stored(y) == size(y)
    assert size(y) == 16 * 6 * 6 * 2


@LAYOUTS
def test_a_fused_backward_reads_dy_once_before_the_products(layout: str) -> None:
    x, w = random(1, 8, 12, 12, layout=layout), random(16, 8, 3, 3, layout=layout)
    bias = random(16).requires_grad_()  # alone: dgrad and wgrad are not asked for
    y = conv2d(x, w, bias, padding=1, activation="relu")
    dy = torch.randn_like(y)
    with traffic() as moved:
        torch.autograd.grad(y, bias, dy)
    assert (moved.requested(dy), moved.requested(y)) == (size(dy), size(y))
