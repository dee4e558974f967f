"""Layers at the limits of a GPU: offsets past 2^31 within one image, long strides, many groups."""

from __future__ import annotations

import mmap
from dataclasses import replace
from itertools import product
from math import prod
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tconv.families import FAMILIES, serves
from tconv.geometry import ConvGeometry, Pass
from tconv.launch import GRID_LIMITS, Launch, interpreting
from tconv.ops.avg_pool2d import avg_pool2d
from tconv.ops.conv_run import prepare
from tconv.ops.layout import memory_format
from tconv.ops.max_pool2d import max_pool2d
from tconv.problem import Layout, Problem
from tconv.target import INTERPRETER, TARGETS, Target
from tconv.tile import Choice, Tile

SIDE, FAR = 8192, 8191  # FAR: from the first to the last row and column
pytestmark = pytest.mark.overflow
virtual = pytest.mark.skipif(not interpreting(), reason="memory is reserved and never filled")


def zeros(*size: int) -> Tensor:
    """Zeros in half precision that take memory where they are touched, a small page at a time."""
    kind = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    memory = mmap.mmap(-1, 2 * prod(size), flags=kind)
    memory.madvise(mmap.MADV_NOHUGEPAGE)  # of 2 MiB each, whose zeroing takes seconds
    return torch.frombuffer(memory, dtype=torch.float16).reshape(size)


def reserved(
    corners: Tensor,
    layout: Layout,
    size: tuple[int, int] = (SIDE, SIDE),
    step: tuple[int, int] = (FAR, FAR),
) -> Tensor:
    """An image of zeros that takes memory only where ``corners`` are put, ``step`` apart."""
    channels = corners.shape[1]
    if layout == "nhwc":
        image = zeros(1, *size, channels).permute(0, 3, 1, 2)
    else:
        image = zeros(1, channels, *size)
    image[:, :, :: step[0], :: step[1]] = corners
    return image


def numbers(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).half()


@virtual
@pytest.mark.parametrize("dilated", [False, True], ids=["stride", "dilation"])
@pytest.mark.parametrize(
    ("family", "layout", "groups"),
    [
        ("implicit_gemm", "nhwc", 1),
        ("implicit_gemm_in_place", "nchw", 1),
        ("implicit_gemm_in_place", "nchw", 2),
        ("direct", "nhwc", 1),
        ("direct", "nchw", 1),
        ("grouped", "nhwc", 10),
    ],
)
def test_offsets_past_32_bits(family: str, layout: Layout, groups: int, dilated: bool) -> None:
    """The four corners of an image of 2.7e9 elements, by a stride or by a filter's taps."""
    extent = 2 if dilated else 1
    apart = (
        {"dilation_h": FAR, "dilation_w": FAR} if dilated else {"stride_h": FAR, "stride_w": FAR}
    )
    shape = ConvGeometry(1, 40, SIDE, SIDE, 40, extent, extent, groups=groups, **apart)
    corners = numbers(1, 40, 2, 2)
    w = numbers(40, 40 // groups, extent, extent, seed=1)
    x = reserved(corners, layout)
    problem = Problem(shape, "fprop", "float16", layout)
    call = prepare(problem, Choice(family, Tile(16, 16, 16)), INTERPRETER, w_layout="nchw")
    exact = functional.conv2d(corners.float(), w.float(), groups=groups)
    torch.testing.assert_close(call({"x": x, "w": w}).float(), exact, rtol=1e-2, atol=1e-2)
    dy = numbers(*exact.shape, seed=2)
    problem = Problem(shape, "wgrad", "float16", layout)
    if family == "grouped" or dilated:
        return
    call = prepare(problem, Choice(family, Tile(16, 16, 16)), INTERPRETER, w_layout="nchw")
    given = {"x": x, "dy": dy.contiguous(memory_format=memory_format(layout))}
    _, exact, _ = torch.ops.aten.convolution_backward(
        dy.float(), corners.float(), w.float(), None, [1, 1], [0, 0], [1, 1], False, [0, 0],
        groups, [False, True, False],
    )  # fmt: skip
    torch.testing.assert_close(call(given).float(), exact, rtol=1e-2, atol=1e-2)


@virtual
@pytest.mark.parametrize("direction", ["fprop", "wgrad"])
@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_strips_past_32_bits(layout: Layout, direction: Pass) -> None:
    """Depthwise: strips lie along the short side, and a stride spans the long one."""
    long, short = 1 << 20, 56
    size, step = (
        ((long, short), (long - 1, 1)) if layout == "nhwc" else ((short, long), (1, long - 1))
    )
    window = (1, 1, *step)
    shape = ConvGeometry(1, 40, *size, 40, *window, groups=40)
    corners = numbers(1, 40, shape.out_h, shape.out_w)
    w, dy = numbers(40, 1, 1, 1, seed=1), numbers(*corners.shape, seed=2)
    x = reserved(corners, layout, size, step)
    dy = dy.contiguous(memory_format=memory_format(layout))
    problem = Problem(shape, direction, "float16", layout)
    call = prepare(problem, Choice("depthwise", Tile(256, 64, 4)), INTERPRETER, w_layout="nchw")
    if direction == "fprop":
        got, exact = call({"x": x, "w": w}), corners.float() * w.float()[:, 0]
    else:
        got = call({"x": x, "dy": dy})
        exact = (corners.float() * dy.float()).sum((0, 2, 3))[:, None, None, None]
    torch.testing.assert_close(got.float(), exact, rtol=1e-2, atol=1e-2)


@virtual
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_past_32_bits(stride: int, groups: int) -> None:
    """One pixel of x under much padding: a dy of 2.7e9 elements, of which one pixel counts."""
    middle = SIDE // 2
    pad = stride * middle
    shape = ConvGeometry(1, 8, 1, 1, 40, 1, 1, stride, stride, pad, pad, groups=groups)
    centre, w = numbers(1, 40, 1, 1), numbers(40, 8 // groups, 1, 1, seed=1)
    dy = zeros(1, 40, SIDE + 1, SIDE + 1)
    dy[:, :, middle : middle + 1, middle : middle + 1] = centre
    problem = Problem(shape, "dgrad", "float16", "nchw")
    choice = Choice("implicit_gemm_in_place", Tile(16, 16, 16))
    dx = prepare(problem, choice, INTERPRETER, w_layout="nchw")({"dy": dy, "w": w})
    exact = functional.conv_transpose2d(centre.float(), w.float(), groups=groups)
    torch.testing.assert_close(dx.float(), exact, rtol=1e-2, atol=1e-2)


@virtual
@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_pools_past_32_bits(layout: Layout) -> None:
    corners = numbers(1, 40, 2, 2)
    x = reserved(corners, layout)
    torch.testing.assert_close(max_pool2d(x, 1, FAR), corners)
    torch.testing.assert_close(avg_pool2d(x, 1, FAR), corners)
    far = max_pool2d(x, 2, 1, dilation=FAR)
    torch.testing.assert_close(far, corners.amax((2, 3), keepdim=True))


@pytest.mark.parametrize("family", ["implicit_gemm", "grouped", "depthwise"])
def test_phases_that_no_row_has_take_no_programs(family: str) -> None:
    """A stride beyond the image: as many phases as rows and columns, and the right gradient."""
    groups = {"implicit_gemm": 1, "grouped": 2, "depthwise": 4}[family]
    channels = 4
    for stride, side, pad in ((64, 4, 0), (7, 5, 3), (3, 8, 1)):
        if family == "depthwise" and stride == 64:
            continue  # a strip is at most 64 places long
        shape = ConvGeometry(2, channels, side, side, channels, 1, 1, stride, stride, pad, pad,
                             groups=groups)  # fmt: skip
        problem = Problem(shape, "dgrad", "float32", "nhwc")
        call = prepare(problem, Choice(family, Tile(64, 16, 16)), INTERPRETER, w_layout="nchw")
        w = numbers(channels, channels // groups, 1, 1, seed=1).float()
        dy = numbers(2, channels, shape.out_h, shape.out_w).float()
        exact, _, _ = torch.ops.aten.convolution_backward(
            dy, torch.zeros(2, channels, side, side), w, None, [stride] * 2, [pad] * 2, [1, 1],
            False, [0, 0], groups, [True, False, False],
        )  # fmt: skip
        got = call({"dy": dy.contiguous(memory_format=torch.channels_last), "w": w})
        torch.testing.assert_close(got, exact)
        programs = call.plan.launches[call.plan.product].grid
        assert np.prod(programs) <= side * side * 4


@pytest.mark.parametrize("target", [INTERPRETER, TARGETS["sm_90"]], ids=lambda each: each.name)
def test_many_groups_and_long_strides_stay_within_a_grid(target: Target) -> None:
    """Extents without a bound lie on the first axis, in every family that serves the layer."""
    layers = [
        ConvGeometry(2, channels * 70_000, 8, 8, channels * 70_000, 1, 1, groups=70_000)
        for channels in (1, 2, 16)
    ]
    layers.append(ConvGeometry(1, 3, 600, 600, 8, 2, 2, 300, 300))
    planned = set()
    formats = get_args(Layout)
    for shape, direction, family, layout in product(layers, get_args(Pass), FAMILIES, formats):
        problem = Problem(shape, direction, "float16", layout)
        if not serves(family, problem, target):
            continue
        tile = FAMILIES[family].heuristic(problem, target)
        for splits in (1, 4) if direction == "wgrad" or "gemm" in family else (1,):
            plan = FAMILIES[family].plan(problem, replace(tile, splits=splits), target)
            planned.add((family, direction))
            for launch in plan.launches:
                assert all(n <= most for n, most in zip(launch.grid, GRID_LIMITS, strict=False))
    assert planned >= {(family, "wgrad") for family in FAMILIES}


def test_a_grid_that_no_gpu_takes_is_refused() -> None:
    launch = Launch("reduce.add_splits", (1, 70_000), {}, {}, {})
    with pytest.raises(RuntimeError, match="needs 70,000 programs on axis y of its grid; a GPU"):
        launch._first_run({}, torch.device("cpu"))
