"""Every family on windows of few pixels in which nothing comes out even: what kernels get wrong.

Height and width differ in every number, so that neither can stand for the other; every axis takes
several tiles and leaves a rest; and each window is there for one turn in the code that it names.
``nox -s mutate`` says what these and the drawn windows leave unseen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from autotune.gate import reduction_length
from tconv import reference
from tconv.families import FAMILIES, serves
from tconv.geometry import PASSES, ConvGeometry, Pass
from tconv.launch import interpreting
from tconv.ops.conv_run import prepare
from tconv.problem import BIAS, PLAIN, Epilogue, Layout, Problem
from tconv.target import INTERPRETER, TARGETS, Target
from tconv.tile import Choice, Tile
from tests.devices import DEVICE, TARGET
from tests.tconv.families.test_families import LAYOUTS, check, random

FUSED = Epilogue(bias=True, residual=True, activation="relu")
POOLED = Epilogue(bias=True, activation="relu", pool=True, offsets=True)
SMALL = Tile(32, 16, 16, swizzle=2)


def window(
    groups: int,
    channels: tuple[int, int],  # of one group, in and out
    size: tuple[int, int],
    extent: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    pad: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    batch: int = 2,
) -> ConvGeometry:
    ins, outs = channels[0] * groups, channels[1] * groups
    return ConvGeometry(batch, ins, *size, outs, *extent, *stride, *pad, *dilation, groups)


@dataclass(frozen=True)
class Edge:
    """One window, who computes which passes of it, how it is cut, and what ends it."""

    families: tuple[str, ...]
    passes: str
    shape: ConvGeometry
    tile: Tile = SMALL
    epilogue: Epilogue = PLAIN


GATHERED = ("implicit_gemm", "implicit_gemm_in_place")
EDGES = {
    "gathered-rests": Edge(
        GATHERED, "fprop dgrad wgrad", window(2, (17, 18), (5, 4), (3, 2), (1, 1), (1, 2), (1, 2)),
        epilogue=FUSED,
    ),
    "gathered-splits": Edge(
        GATHERED, "fprop dgrad wgrad", window(2, (17, 18), (5, 3), (4, 2), (1, 1), (0, 1), (1, 2)),
        Tile(32, 16, 16, swizzle=3, splits=3), FUSED,  # 16 steps: 6, 6 and 4
    ),
    "gathered-persistent": Edge(
        GATHERED, "fprop dgrad", window(1, (3, 17), (9, 8), (2, 3), (1, 1), (0, 1)),
        Tile(32, 16, 16, swizzle=2, persistent=2),
    ),
    "gathered-even-channels": Edge(
        GATHERED, "fprop dgrad wgrad", window(1, (32, 16), (4, 5), (2, 3), (1, 1), (1, 0)),
        epilogue=BIAS,
    ),
    "gathered-even-reduction": Edge(
        ("implicit_gemm",), "fprop dgrad", window(1, (32, 24), (4, 5), (2, 3), (1, 1), (1, 0))
    ),
    "gathered-one-tap": Edge(
        GATHERED, "fprop dgrad wgrad", window(2, (34, 33), (5, 3), (1, 1), (2, 1))
    ),
    "gathered-strides": Edge(
        GATHERED, "fprop dgrad wgrad", window(2, (3, 16), (7, 8), (3, 2), (2, 3), (1, 2))
    ),
    "gathered-strides-and-dilation": Edge(
        GATHERED, "dgrad", window(1, (16, 17), (9, 10), (3, 2), (4, 3), (3, 1), (2, 3))
    ),
    "gathered-far-taps": Edge(  # the first of some phases reads a row before its own
        ("implicit_gemm",), "dgrad", window(1, (3, 4), (9, 8), (3, 2), (4, 3), (3, 1), (3, 4))
    ),
    "gathered-stride-beyond-filter": Edge(
        ("implicit_gemm",), "dgrad", window(1, (3, 4), (5, 7), (1, 2), (3, 4), (1, 0))
    ),
    "gathered-32-taps": Edge(
        ("implicit_gemm",), "fprop dgrad", window(1, (3, 4), (5, 8), (4, 8), (1, 1), (1, 2))
    ),
    "gathered-35-taps": Edge(
        ("implicit_gemm",), "fprop", window(1, (17, 16), (6, 7), (7, 5), (1, 2), (3, 1))
    ),
    "gathered-33-rows": Edge(
        ("implicit_gemm",), "fprop dgrad", window(1, (2, 3), (33, 3), (33, 2), (1, 1), (1, 0)),
        Tile(128, 16, 16),
    ),
    "gathered-33-columns": Edge(
        ("implicit_gemm",), "fprop dgrad", window(1, (2, 3), (3, 33), (2, 33), (1, 1), (0, 1)),
        Tile(128, 16, 16),
    ),
    "gathered-65-rows": Edge(
        ("implicit_gemm",), "fprop dgrad", window(1, (2, 3), (3, 2), (65, 1), (1, 1), (32, 0))
    ),
    "gathered-whole-boxes": Edge(  # three of them, of all 16 pixels of an image
        GATHERED, "wgrad", window(1, (16, 32), (4, 4), (2, 3), (1, 1), (1, 1), (2, 1), batch=3),
        Tile(16, 16, 16, splits=2),
    ),
    "gathered-along-batch": Edge(  # boxes of 8 images
        GATHERED, "wgrad", window(1, (3, 16), (2, 2), (2, 3), (1, 1), (0, 1), batch=20),
        Tile(16, 16, 16),
    ),
    "gathered-wide": Edge(
        GATHERED, "wgrad", window(1, (3, 4), (2, 35), (2, 3), (1, 1), (1, 2), (1, 2)),
        Tile(16, 16, 16),
    ),
    "gathered-pooled": Edge(
        GATHERED, "fprop", window(1, (3, 18), (8, 7), (3, 2), (2, 1), (1, 0)), epilogue=POOLED
    ),
    "few-channels": Edge(
        ("few_channels",), "fprop wgrad",
        window(1, (3, 18), (7, 6), (3, 2), (2, 1), (1, 2), (2, 1)),
        epilogue=FUSED,
    ),
    "few-channels-split": Edge(
        ("few_channels",), "fprop wgrad", window(1, (3, 18), (6, 5), (3, 2), (1, 1), (1, 2)),
        Tile(32, 16, 16, splits=2),
    ),
    "direct": Edge(
        ("direct",), "fprop dgrad", window(2, (2, 5), (5, 4), (3, 2), (1, 1), (1, 2), (1, 2)),
        Tile(32, 4, 1), FUSED,
    ),
    "direct-one-group": Edge(
        ("direct",), "fprop dgrad", window(1, (3, 5), (5, 4), (3, 2), (1, 1), (1, 2)),
        Tile(16, 4, 1), FUSED,
    ),
    "direct-strides": Edge(
        ("direct",), "fprop",
        window(2, (2, 3), (7, 8), (3, 2), (2, 3), (1, 2)), Tile(16, 4, 1), BIAS
    ),
    "direct-wgrad": Edge(
        ("direct",), "wgrad", window(2, (2, 5), (5, 4), (3, 2), (1, 1), (1, 2), (1, 2)),
        Tile(4, 8, 32),
    ),
    "direct-wgrad-split": Edge(
        ("direct",), "wgrad", window(2, (3, 2), (7, 8), (2, 3), (2, 3), (1, 2)),
        Tile(2, 16, 8, splits=2),
    ),
    "direct-pooled": Edge(
        ("direct",), "fprop", window(2, (2, 3), (7, 4), (3, 2), (1, 1), (1, 2)), Tile(16, 2, 4),
        POOLED,
    ),
    "grouped": Edge(
        ("grouped",), "fprop dgrad wgrad",
        window(6, (3, 4), (5, 4), (3, 2), (1, 1), (1, 2), (1, 2)),
        epilogue=FUSED,
    ),
    "grouped-strides": Edge(
        ("grouped",), "fprop dgrad wgrad", window(4, (3, 8), (7, 8), (3, 2), (2, 3), (1, 2)),
        Tile(32, 32, 16),
    ),
    "grouped-empty-phase": Edge(
        ("grouped",), "dgrad", window(4, (4, 3), (1, 1), (3, 3), (2, 2), (1, 1))
    ),
    "grouped-strides-and-dilation": Edge(
        ("grouped",), "dgrad", window(4, (4, 3), (9, 10), (3, 2), (4, 3), (3, 1), (2, 3))
    ),
    "grouped-far-taps": Edge(
        ("grouped",), "dgrad", window(4, (4, 3), (9, 8), (3, 2), (4, 3), (3, 1), (3, 4))
    ),
    "grouped-pooled": Edge(
        ("grouped",), "fprop", window(4, (3, 5), (6, 4), (3, 2), (1, 1), (1, 2)), epilogue=POOLED
    ),
    "boxes": Edge(
        ("implicit_gemm_tma",), "fprop dgrad",
        window(1, (24, 20), (5, 4), (3, 2), (1, 1), (1, 2), (1, 2)),
        epilogue=FUSED,
    ),
    "boxes-of-groups": Edge(
        ("implicit_gemm_tma",), "fprop dgrad", window(2, (16, 32), (5, 4), (2, 3), (1, 1), (1, 2)),
        epilogue=FUSED,
    ),
    "boxes-stride-2": Edge(
        ("implicit_gemm_tma",), "fprop", window(2, (16, 8), (6, 4), (4, 5), (2, 2), (1, 2))
    ),
    "boxes-pooled": Edge(
        ("implicit_gemm_tma",), "fprop",
        window(2, (16, 24), (5, 4), (3, 2), (1, 1), (1, 2)), epilogue=POOLED
    ),
    "boxes-many": Edge(  # 3 x 2 x 3 of them, of 8 x 2 pixels
        ("implicit_gemm_tma",), "fprop dgrad",
        window(1, (16, 24), (13, 6), (3, 1), (1, 1), (1, 0), batch=3),
        Tile(16, 16, 16, swizzle=2), FUSED,
    ),
    "boxes-pooled-many": Edge(
        ("implicit_gemm_tma",), "fprop",
        window(1, (16, 24), (27, 14), (1, 2), batch=3), Tile(64, 16, 16), POOLED
    ),
    "boxes-odd-filters": Edge(
        ("implicit_gemm_tma",), "fprop", window(1, (16, 17), (5, 4), (2, 1)), epilogue=FUSED
    ),
    "boxes-split": Edge(
        ("implicit_gemm_tma",), "fprop dgrad", window(1, (16, 24), (7, 4), (4, 2), (1, 1), (1, 2)),
        Tile(64, 16, 16, swizzle=2, splits=3), FUSED,  # 8 and 16 steps, not thirds
    ),
    "boxes-wgrad": Edge(
        ("implicit_gemm_tma",), "wgrad",
        window(2, (24, 20), (4, 8), (3, 2), (1, 1), (1, 1), (1, 2), batch=3),
        Tile(16, 16, 16, swizzle=2),
    ),
    "boxes-wgrad-packed": Edge(
        ("implicit_gemm_tma",), "wgrad",
        window(4, (8, 4), (4, 8), (3, 2), (1, 1), (1, 1), (1, 2), batch=3),
        Tile(16, 16, 16, swizzle=2, splits=2),
    ),
    "boxes-wgrad-odd-groups": Edge(
        ("implicit_gemm_tma",), "wgrad", window(4, (17, 5), (4, 8), (1, 2), (1, 1), (0, 1), (1, 2)),
        Tile(16, 16, 16),
    ),
    "boxes-wgrad-flat": Edge(
        ("implicit_gemm_tma",), "wgrad",
        window(1, (16, 20), (5, 7), (1, 1)), Tile(16, 16, 16, splits=5)
    ),
    "boxes-wgrad-rows-of-two": Edge(  # 3, 3 and 2 boxes, of half a row each
        ("implicit_gemm_tma",), "wgrad",
        window(1, (16, 20), (5, 32), (2, 1), batch=1), Tile(16, 16, 16, splits=3)
    ),
    "boxes-wgrad-stride-2": Edge(
        ("implicit_gemm_tma",), "wgrad",
        window(2, (16, 4), (8, 16), (2, 4), (2, 2), (0, 1), batch=3),
        Tile(16, 16, 16, swizzle=2),
    ),
    "boxes-wgrad-along-batch": Edge(
        ("implicit_gemm_tma",), "wgrad",
        window(1, (8, 20), (2, 3), (2, 3), (1, 1), (0, 1), batch=40),
        Tile(16, 16, 16, splits=4),
    ),
    "boxes-wgrad-along-batch-stride-2": Edge(
        ("implicit_gemm_tma",), "wgrad",
        window(1, (8, 4), (4, 6), (4, 2), (2, 2), (1, 0), batch=20),
        Tile(16, 16, 16),
    ),
    "depthwise": Edge(
        ("depthwise",), "fprop dgrad wgrad",
        window(5, (1, 1), (6, 5), (3, 2), (1, 1), (1, 2), (1, 2)), Tile(8, 4, 4), FUSED,
    ),
    "depthwise-strides": Edge(
        ("depthwise",), "fprop dgrad wgrad",
        window(3, (1, 2), (9, 8), (3, 4), (2, 3), (1, 2), (1, 2)), Tile(8, 8, 4, splits=2),
    ),
    "depthwise-pooled": Edge(
        ("depthwise",), "fprop", window(3, (1, 2), (6, 4), (2, 3), (1, 1), (1, 2), batch=3),
        Tile(4, 4, 4), POOLED,
    ),
    "depthwise-far-taps": Edge(
        ("depthwise",), "dgrad", window(3, (1, 1), (9, 8), (3, 2), (4, 3), (3, 1), (3, 4)),
        Tile(8, 4, 4),
    ),
    "depthwise-empty-phase": Edge(
        ("depthwise",), "dgrad", window(3, (1, 1), (1, 1), (3, 3), (2, 2), (1, 1)), Tile(4, 4, 2)
    ),
    "depthwise-large": Edge(
        ("depthwise",), "fprop dgrad", window(2, (1, 1), (3, 4), (6, 5), (1, 1), (3, 2)),
        Tile(8, 4, 2),
    ),
}  # fmt: skip


COPYING = ("implicit_gemm", "few_channels", "grouped", "implicit_gemm_tma")


# How a GPU's matrix units compute what the interpreter is given in float32.
ARITHMETICS = ("float32", "tf32", "float16")


def posed(
    edge: Edge, family: str, direction: Pass, layout: Layout, target: Target
) -> Problem | None:
    """An edge's problem in the first arithmetic that the family serves on ``target``."""
    for arithmetic in ARITHMETICS:
        problem = Problem.of(edge.shape, direction, arithmetic, layout)
        if serves(family, problem, target):
            return problem
    return None


def runs(names: Iterable[str] = EDGES, target: Target = TARGET) -> Iterator[Any]:
    """Each edge with all that it names, in both layouts where the family serves both.

    Where a family copies contiguous tensors into the other, its kernels see a difference at most
    in how they store: that is left to the thorough tests.
    """
    for name in names:
        edge = EDGES[name]
        for family in edge.families:
            for direction in edge.passes.split():
                for layout in LAYOUTS:
                    problem = posed(edge, family, direction, layout, target)  # type: ignore[arg-type]
                    if problem is None:
                        continue
                    label = f"{direction}-{name}-{family}-{layout}"
                    copied = layout == "nchw" and family in COPYING
                    marks = [pytest.mark.thorough] if copied else []
                    yield pytest.param(edge, family, problem, id=label, marks=marks)


def named(runs: Iterable[Any]) -> set[tuple[str, str, str]]:
    """The edges, families and passes of ``runs``."""
    edges = {id(edge): name for name, edge in EDGES.items()}
    found = (run.values for run in runs)
    return {(edges[id(edge)], family, problem.direction) for edge, family, problem in found}


def test_every_edge_is_served_by_whom_it_names() -> None:
    """By the interpreter all of them; a GPU has no boxes of 20 channels in half precision."""
    wanted = {
        (name, family, direction)
        for name, edge in EDGES.items()
        for family in edge.families
        for direction in edge.passes.split()
    }
    assert named(runs(target=INTERPRETER)) == wanted
    missing = wanted - named(runs(target=TARGETS["sm_90"]))
    assert {family for _, family, _ in missing} <= {"implicit_gemm_tma"}
    assert len(missing) < len([run for run in wanted if run[1] == "implicit_gemm_tma"]) / 2
    on_gpu = {run.values[2].direction for run in runs(target=TARGETS["sm_90"])
              if run.values[1] == "implicit_gemm_tma"}  # fmt: skip
    assert on_gpu == set(PASSES)


@pytest.mark.filterwarnings("error:divide by zero:RuntimeWarning")
@pytest.mark.parametrize(("edge", "family", "problem"), list(runs()))
def test_edge(edge: Edge, family: str, problem: Problem) -> None:
    w_layout: Layout = "nchw" if problem.layout == "nhwc" else "nhwc"
    in_turn = interpreting()  # programs, so that twice the same is no wonder
    check(family, problem, edge.tile, w_layout, edge.epilogue, twice=not in_turn)


# ---- infinity -------------------------------------------------------------------------------

SHARED = [
    "gathered-rests", "gathered-splits", "few-channels-split", "direct", "direct-wgrad-split",
    "grouped", "boxes-of-groups", "boxes-split", "boxes-wgrad", "depthwise-strides",
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize(
    ("edge", "family", "problem"),
    [run for run in runs(SHARED) if run.values[2].layout == "nhwc"],
)
def test_infinity_reaches_its_own_windows_alone(edge: Edge, family: str, problem: Problem) -> None:
    """Lanes, steps and filters that do not exist must not meet it: zero times infinity is NaN."""
    shape = edge.shape
    form: dict[str, Any] = {"dtype": getattr(torch, problem.dtype), "layout": problem.layout}
    x = random(shape.batch, shape.in_channels, shape.in_h, shape.in_w, **form, seed=1)
    w = random(*w_size(shape), **form, seed=2)
    dy = random(shape.batch, shape.out_channels, shape.out_h, shape.out_w, **form, seed=3)
    struck = dy if problem.direction == "dgrad" else x
    struck[-1, -1, struck.shape[2] // 2, struck.shape[3] // 2] = torch.inf
    if problem.direction == "fprop":
        given, exact = {"x": x, "w": w}, reference.conv2d(x, w, None, shape)
    elif problem.direction == "dgrad":
        given, exact = {"dy": dy, "w": w}, reference.conv2d_dgrad(dy, w, shape)
    else:
        given, exact = {"x": x, "dy": dy}, reference.conv2d_wgrad(x, dy, shape)
    call = prepare(problem, Choice(family, edge.tile), TARGET, PLAIN, problem.layout)
    got = call(given)
    rtol, atol = reference.tolerance(problem.dtype, reduction_length(problem), problem.precision)
    torch.testing.assert_close(got.double(), exact, rtol=rtol, atol=atol, equal_nan=True)
    assert got.isfinite().any()
    assert not got.isfinite().all()


def w_size(shape: ConvGeometry) -> tuple[int, int, int, int]:
    return shape.out_channels, shape.group_in_channels, shape.filter_h, shape.filter_w


# ---- as a GPU cuts it -----------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_depthwise_filters_line_by_line(layout: Layout) -> None:
    """On a GPU a program's threads cannot keep the sums of a whole filter."""
    shape = window(20, (1, 1), (6, 5), (5, 3), (1, 1), (1, 2))
    problem = Problem(shape, "wgrad", "float32", layout)
    form: dict[str, Any] = {"dtype": torch.float32, "layout": layout}
    x = random(shape.batch, 20, shape.in_h, shape.in_w, **form, seed=1)
    dy = random(shape.batch, 20, shape.out_h, shape.out_w, **form, seed=2)
    family, tile = FAMILIES["depthwise"], Tile(32, 16, 4, warps=1)
    plan = family.plan(problem, tile, TARGETS["sm_90"], PLAIN, "nchw")
    assert plan.launches[0].grid[0] > 3
    tensors = {"x": x, "dy": dy, "dw": torch.full(w_size(shape), torch.nan, device=DEVICE)}
    plan.run(tensors)
    exact = reference.conv2d_wgrad(x, dy, shape)
    torch.testing.assert_close(tensors["dw"].double(), exact, rtol=1e-4, atol=1e-4)


# ---- equal maxima ---------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("relu", [True, False], ids=["relu", "plain"])
@pytest.mark.parametrize(
    "family", ["implicit_gemm", "direct", "depthwise", "grouped", "implicit_gemm_tma"]
)
def test_first_of_equal_maxima(family: str, relu: bool, layout: Layout) -> None:
    """Of whole numbers, many are equal and many zero: the first wins, and behind a ReLU no zero."""
    groups, channels = (8, 1) if family == "depthwise" else (2, 16)
    shape = window(groups, (channels, channels), (6, 8), (1, 1))
    problem = posed(Edge((family,), "fprop", shape), family, "fprop", layout, TARGET)
    assert problem is not None
    numbers = torch.Generator().manual_seed(0)
    x, w = (
        torch.randint(-1, 2, size, generator=numbers).to(DEVICE, getattr(torch, problem.dtype))
        for size in ((2, groups * channels, 6, 8), (groups * channels, channels, 1, 1))
    )
    epilogue = Epilogue(activation="relu" if relu else None, pool=True, offsets=True)
    call = prepare(problem, Choice(family, Tile(32, 16, 16)), TARGET, epilogue, "nchw")
    tensors = {"x": x, "w": w}
    y = call(tensors)
    exact = torch.nn.functional.conv2d(x, w, groups=shape.groups)
    windows = exact.unfold(2, 2, 2).unfold(3, 2, 2).flatten(-2)
    best = windows.amax(-1)
    assert ((windows == best[..., None]).sum(-1) > 1).any()
    first = (windows == best[..., None]).int().argmax(-1)
    if relu:
        assert (best == 0).any()
        first = torch.where(best > 0, first, -1)
        best = best.relu()
    torch.testing.assert_close(y, best)
    assert tensors["offsets"].tolist() == first.tolist()
