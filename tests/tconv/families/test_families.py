"""Every kernel family against the fp64 reference, over drawn geometries, dtypes and layouts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from torch import Tensor
from torch.nn import functional

from tconv import reference
from tconv.families import FAMILIES
from tconv.families.epilogue import NORM, epilogue_operands
from tconv.geometry import PASSES, ConvGeometry, Pass
from tconv.launch import recorded
from tconv.ops import activations
from tconv.ops.conv_run import prepare
from tconv.problem import BIAS, PLAIN, BatchNorm, Epilogue, Layout, Problem
from tconv.target import TARGETS
from tconv.tile import Choice, Tile
from tests.devices import DEVICE, TARGET

DTYPES = ("float16", "bfloat16", "float32", "float64")
LAYOUTS: tuple[Layout, ...] = ("nhwc", "nchw")
EPILOGUES = [
    PLAIN,
    BIAS,
    Epilogue(bias=True, residual=True, activation="relu"),
    Epilogue(bias=True, activation="relu", pool=True, offsets=True),
    Epilogue(pool=True),
    Epilogue(norm=BatchNorm("float32", 1e-5), activation="silu", kept=True),
    Epilogue(
        bias=True,
        norm=BatchNorm("float16", 1e-3, weight=False),
        residual=True,
        activation="tanh",
        residual_after=True,
        kept=True,
    ),
    Epilogue(
        norm=BatchNorm("float64", 1e-3, bias=False),
        residual=True,
        activation="hardswish",
        pool=True,
        offsets=True,
        kept=True,
    ),
    Epilogue(
        bias=True, residual=True, activation="relu", residual_after=True, pool=True, kept=True
    ),
]


def extent(most: int) -> st.SearchStrategy[int]:
    return st.integers(1, most)


@st.composite
def geometries(draw: st.DrawFn, drawn: Drawn) -> ConvGeometry:
    """Windows of every kind; images as small as one pixel, filters as large as the image."""
    filter_h, filter_w = draw(extent(5)), draw(extent(5))
    stride = draw(st.sampled_from(drawn.strides))
    pad = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    dilation = draw(st.sampled_from([(1, 1), (1, 1), (2, 1), (2, 3)]))
    spans = [d * (f - 1) + 1 for d, f in zip(dilation, (filter_h, filter_w), strict=True)]
    size = [draw(extent(9)), draw(extent(9))]
    assume(all(s + 2 * p >= span for s, p, span in zip(size, pad, spans, strict=True)))
    groups = draw(st.integers(drawn.least_groups, drawn.most_groups))
    in_channels, out_channels = (draw(st.sampled_from(drawn.channels)) * groups for _ in range(2))
    in_channels = groups if drawn.depthwise else in_channels
    batch = draw(st.integers(0, 3))
    window = (*stride, *pad, *dilation, groups)
    return ConvGeometry(batch, in_channels, *size, out_channels, filter_h, filter_w, *window)


@st.composite
def tiles(draw: st.DrawFn, drawn: Drawn) -> Tile:
    """Small ones, so that many programs run, overhang, take turns and share reductions."""
    blocks = [draw(st.sampled_from(sides)) for sides in ([32, 64], [16, 32], drawn.steps)]
    shared = draw(st.sampled_from([{}, {"splits": 3}, {"splits": 5}, {"persistent": 2}]))
    return Tile(*blocks, swizzle=draw(extent(3)), **shared)


def random(*size: int, dtype: torch.dtype, layout: Layout, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(size, generator=generator, dtype=torch.float64).to(DEVICE, dtype)
    last = torch.channels_last if layout == "nhwc" else torch.contiguous_format
    return values.contiguous(memory_format=last) if len(size) == 4 else values


def viewed(tensor: Tensor) -> Tensor:
    """The same values in a slice of something larger, at an address that is aligned to nothing."""
    size = [extent + 1 for extent in tensor.shape]
    larger = torch.zeros(size, dtype=tensor.dtype, device=tensor.device)
    view = larger[tuple(slice(1, None) for _ in size)]
    return view.copy_(tensor)


def with_epilogue(
    z: Tensor, operands: dict[str, Tensor], epilogue: Epilogue, form: dict[str, Any]
) -> Tensor:
    """What an epilogue makes of ``z`` before a pool, by torch; its tensors join the operands."""
    if epilogue.norm is not None:
        kind = {"dtype": getattr(torch, epilogue.norm.dtype), "layout": "nhwc"}
        norm = {name: random(z.shape[1], **kind, seed=6 + i) for i, name in enumerate(NORM)}
        norm["norm_var"] = norm["norm_var"].abs() + 0.25
        given = epilogue_operands(epilogue, "float32")
        operands |= {name: tensor for name, tensor in norm.items() if name in given}
        weight, bias, mean, variance = (
            norm[name].double() if name in given else None for name in NORM
        )
        z = functional.batch_norm(z, mean, variance, weight, bias, eps=epilogue.norm.eps)
    if not epilogue.residual:
        return z if epilogue.activation is None else named(z, epilogue)
    operands["residual"] = random(*z.shape, **form, seed=5)
    residual = operands["residual"].double()
    if epilogue.residual_after:
        return named(z, epilogue) + residual
    return z + residual if epilogue.activation is None else named(z + residual, epilogue)


def named(z: Tensor, epilogue: Epilogue) -> Tensor:
    assert epilogue.activation is not None
    return activations.apply(z, epilogue.activation, epilogue.slope)


def check(
    family: str,
    problem: Problem,
    tile: Tile,
    w_layout: Layout,
    epilogue: Epilogue = PLAIN,
    views: bool = False,
    twice: bool = True,
) -> set[str]:
    """One pass with one family: the right values, twice the same bits; the kernels that ran."""
    shape = problem.geometry
    form: dict[str, Any] = {"dtype": getattr(torch, problem.dtype), "layout": problem.layout}
    x = random(shape.batch, shape.in_channels, shape.in_h, shape.in_w, **form, seed=1)
    dy = random(shape.batch, shape.out_channels, shape.out_h, shape.out_w, **form, seed=2)
    form["layout"] = w_layout
    taps = (shape.filter_h, shape.filter_w)
    w = random(shape.out_channels, shape.group_in_channels, *taps, **form, seed=3)
    if problem.direction == "fprop":
        operands = {"x": x, "w": w}
        if epilogue.bias:
            operands["bias"] = random(shape.out_channels, **form, seed=4)
        exact = reference.conv2d(x, w, operands.get("bias"), shape)
        form["layout"] = problem.layout
        unpooled = exact = with_epilogue(exact, operands, epilogue, form)
        if epilogue.pool:
            exact = torch.nn.functional.max_pool2d(exact, 2)
        reduction = shape.taps * shape.group_in_channels
    elif problem.direction == "dgrad":
        operands = {"dy": dy, "w": w}
        exact = reference.conv2d_dgrad(dy, w, shape)
        reduction = shape.taps * shape.group_out_channels
    else:
        operands = {"x": x, "dy": dy}
        exact = reference.conv2d_wgrad(x, dy, shape)
        reduction = shape.batch * shape.out_h * shape.out_w
    if views:
        operands = {name: viewed(tensor) for name, tensor in operands.items()}
    epilogue = epilogue if problem.direction == "fprop" else PLAIN
    call = prepare(problem, Choice(family, tile), TARGET, epilogue, w_layout)
    tensors = dict(operands)
    with recorded() as log:
        ours = call(tensors)
    rtol, atol = reference.tolerance(problem.dtype, reduction, problem.precision)
    torch.testing.assert_close(ours.double(), exact, rtol=rtol, atol=atol)
    if epilogue.offsets:
        picked = torch.ops.tconv.conv2d_pool_pick(unpooled, tensors["offsets"])
        torch.testing.assert_close(picked, exact, rtol=rtol, atol=atol)
        assert ((tensors["offsets"] < 0) == (ours <= 0)).all() or epilogue.activation != "relu"
    if epilogue.kept and not (epilogue.pool and epilogue.residual_after):
        again = named(tensors["kept"].double(), epilogue)
        again += operands["residual"].double() if epilogue.residual_after else 0.0
        torch.testing.assert_close(ours.double(), again, rtol=rtol, atol=atol)
    assert not twice or torch.equal(ours, call(dict(operands)))
    return {launch.kernel for launch in log}


@dataclass(frozen=True)
class Drawn:
    """What a family is drawn for: most of it should be what it serves."""

    channels: tuple[int, ...]  # of a group
    most_groups: int = 1
    least_groups: int = 1
    layouts: tuple[Layout, ...] = LAYOUTS
    strides: tuple[tuple[int, int], ...] = ((1, 1), (2, 2), (1, 2), (3, 2))
    kernel: str = "implicit_gemm"  # what its launches are recognised by
    steps: tuple[int, ...] = (16, 32)  # block_k
    examples: int = 12
    depthwise: bool = False  # as many groups as channels, and a multiple of filters


DRAWN = {
    "implicit_gemm": Drawn((1, 3, 16, 19, 33), 3),
    "implicit_gemm_in_place": Drawn((1, 3, 16, 19, 33), 3, layouts=("nchw",)),
    "direct": Drawn((1, 3, 6, 16), 3, kernel="direct"),
    "depthwise": Drawn(
        (1, 1, 2), 19, kernel="depthwise", steps=(1, 2, 4), examples=10, depthwise=True
    ),
    "few_channels": Drawn((1, 2, 3, 4, 7)),
    "grouped": Drawn((2, 3, 4, 8, 12), 6, kernel="group", least_groups=2),
    "implicit_gemm_tma": Drawn((8, 16, 24, 48), 2, strides=((1, 1), (1, 1), (2, 2))),
}


def test_every_family_is_drawn() -> None:
    assert DRAWN.keys() == FAMILIES.keys()


@pytest.mark.parametrize("direction", PASSES)
@pytest.mark.parametrize("family", DRAWN)
def test_family(family: str, direction: Pass) -> None:
    drawn, served = DRAWN[family], 0
    if (family, direction) == ("few_channels", "dgrad"):
        return  # it serves none

    @settings(
        max_examples=drawn.examples,
        deadline=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],  # a case costs a second: it is not shrunk
        suppress_health_check=[HealthCheck.filter_too_much],
    )
    @given(
        geometries(drawn),
        st.sampled_from(DTYPES),
        st.sampled_from(drawn.layouts),
        st.sampled_from(LAYOUTS),
        tiles(drawn),
        st.sampled_from(EPILOGUES if direction == "fprop" else [PLAIN]),
    )
    def agrees(
        shape: ConvGeometry,
        dtype: str,
        layout: Layout,
        w_layout: Layout,
        tile: Tile,
        epilogue: Epilogue,
    ) -> None:
        nonlocal served
        problem = Problem(shape, direction, dtype, layout)
        assume(FAMILIES[family].unserved(problem, TARGET) is None)
        if epilogue.pool:
            assume(min(shape.out_h, shape.out_w) > 1)
        kernels = check(family, problem, tile, w_layout, epilogue, twice=not served)
        result = {"fprop": shape.y_elements, "dgrad": shape.x_elements, "wgrad": shape.w_elements}
        if result[direction]:
            served += 1
            assert any(drawn.kernel in kernel for kernel in kernels) or (
                (family, direction) == ("grouped", "wgrad")
            )

    agrees()
    assert served >= 4


WINDOWS = {
    "plain": ConvGeometry(2, 16, 9, 7, 24, 3, 3, pad_h=1, pad_w=1),
    "one pixel": ConvGeometry(3, 16, 1, 1, 16, 3, 3, pad_h=1, pad_w=1),
    "1x1": ConvGeometry(2, 16, 5, 5, 16, 1, 1),
    "whole image": ConvGeometry(2, 16, 5, 4, 16, 5, 4),
    "RGB": ConvGeometry(2, 3, 11, 11, 8, 3, 3, 2, 2, 1, 1),
    "nothing": ConvGeometry(0, 16, 5, 5, 16, 3, 3),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("direction", PASSES)
@pytest.mark.parametrize("window", WINDOWS)
def test_views_of_larger_tensors(window: str, direction: Pass, layout: Layout) -> None:
    problem = Problem(WINDOWS[window], direction, "float32", layout)
    for name, family in FAMILIES.items():
        if family.unserved(problem, TARGET) is None:
            check(name, problem, Tile(64, 16, 32), "nchw", BIAS, views=True)


@pytest.mark.parametrize("direction", PASSES)
@pytest.mark.parametrize("channels", [(3, 40), (33, 96), (64, 64)], ids=str)
def test_eight_warps_on_a_flattened_reduction(channels: tuple[int, int], direction: Pass) -> None:
    """Taps and channels in one loop: compilers have got it wrong with eight warps, elsewhere."""
    shape = ConvGeometry(2, channels[0], 12, 12, channels[1], 3, 3, 1, 1, 1, 1)
    problem = Problem(shape, direction)
    for family in (
        "implicit_gemm",
        "implicit_gemm_in_place",
        "few_channels",
        "implicit_gemm_tma",
    ):
        if FAMILIES[family].unserved(problem, TARGET) is None:
            check(family, problem, Tile(128, 128, 64, stages=2, warps=8), "nhwc")


def test_deterministic_algorithms_change_nothing() -> None:
    shape = ConvGeometry(4, 16, 12, 12, 32, 3, 3, pad_h=1, pad_w=1)
    for direction in PASSES:
        problem = Problem(shape, direction)
        results = []
        for asked in (False, True):
            torch.use_deterministic_algorithms(asked)
            try:
                with recorded() as log:
                    check("implicit_gemm", problem, Tile(128, 32, 64, splits=2), "nhwc")
            finally:
                torch.use_deterministic_algorithms(False)
            results.append([launch.kernel for launch in log])
        assert results[0] == results[1]


@pytest.mark.parametrize("direction", ["fprop", "wgrad"])
@pytest.mark.parametrize(("batch", "index"), [(1000, "int32"), (2100, "int64")])
def test_offsets_are_counted_in_what_pixels_were_widened_to(
    direction: Pass, batch: int, index: str
) -> None:
    # x has fewer than 2^31 elements, its widened copy of 4 channels more.
    shape = ConvGeometry(batch, 3, 512, 512, 8, 7, 7, 4, 4)
    assert max(shape.x_elements, shape.y_elements) < 2**31 - 2**22
    problem = Problem(shape, direction)
    target = TARGETS["sm_90"]
    family = FAMILIES["few_channels"]
    plan = family.plan(problem, family.heuristic(problem, target), target)
    assert plan.buffers["x_wide"].elements == batch * 512 * 512 * 4
    widen = next(launch for launch in plan.launches if launch.kernel == "relayout.widen")
    product = plan.launches[plan.product]
    assert [widen.constants["INDEX"].name, product.constants["INDEX"].name] == [index, index]
