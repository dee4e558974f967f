"""Tests of convolution against torch in fp64: values, gradients, formats, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tconv import functional, reference
from tconv.families import FAMILIES
from tconv.families.common import index_type
from tconv.geometry import PASSES, ConvGeometry, Pass
from tconv.launch import recorded
from tconv.ops.conv2d import conv2d
from tconv.ops.conv_run import compute
from tconv.problem import Problem
from tconv.target import INTERPRETER
from tconv.tile import Choice, Tile
from tests.devices import DEVICE, written

# id -> x, w and the window; odd sizes first.
CASES: dict[str, dict[str, Any]] = {
    "7x5-odd-channels": {"x": (2, 3, 7, 5), "w": (5, 3, 3, 3), "padding": 1},
    "stride-3-does-not-fit": {"x": (1, 3, 7, 7), "w": (2, 3, 3, 3), "stride": 3},
    "strides-differ": {
        "x": (2, 17, 9, 13), "w": (19, 17, 3, 5), "stride": (2, 1), "padding": (1, 2),
    },
    "1x1": {"x": (2, 33, 5, 7), "w": (17, 33, 1, 1)},
    "1x1-stride-2": {"x": (2, 6, 7, 8), "w": (5, 6, 1, 1), "stride": 2},
    "stride-beyond-filter": {"x": (1, 2, 11, 13), "w": (3, 2, 2, 2), "stride": 3},
    "stride-and-dilation-share-a-factor": {
        "x": (2, 5, 13, 11), "w": (3, 5, 3, 3), "stride": 4, "dilation": 2, "padding": 3,
    },
    "stride-and-dilation-do-not": {
        "x": (2, 3, 14, 9), "w": (4, 3, 3, 2), "stride": (3, 2), "dilation": (2, 3), "padding": 2,
    },
    "padding-beyond-filter": {"x": (1, 2, 3, 4), "w": (3, 2, 2, 2), "padding": 4},
    "filter-as-large-as-image": {"x": (2, 3, 6, 5), "w": (4, 3, 6, 5)},
    "7x7-two-words-of-taps": {"x": (1, 3, 17, 15), "w": (4, 3, 7, 7), "stride": 2, "padding": 3},
    "33x2-more-taps-than-bits": {"x": (1, 2, 36, 4), "w": (2, 2, 33, 2), "padding": (1, 0)},
    "groups-2": {"x": (2, 6, 6, 5), "w": (4, 3, 3, 3), "groups": 2, "padding": 1},
    "depthwise": {"x": (2, 5, 6, 7), "w": (5, 1, 3, 3), "groups": 5, "padding": 1},
    "depthwise-multiplier": {"x": (2, 3, 6, 7), "w": (6, 1, 3, 3), "groups": 3, "stride": 2},
    "one-pixel": {"x": (3, 4, 1, 1), "w": (2, 4, 3, 3), "padding": 1},
}  # fmt: skip
IDS = list(CASES)


def random(*size: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=generator, dtype=torch.float64).to(DEVICE, dtype)


def tensors(case: dict[str, Any], dtype: torch.dtype, channels_last: bool) -> tuple[Tensor, ...]:
    form = torch.channels_last if channels_last else torch.contiguous_format
    x = random(*case["x"], dtype=dtype).contiguous(memory_format=form)
    w = random(*case["w"], dtype=dtype, seed=1).contiguous(memory_format=form)
    return x, w, random(case["w"][0], dtype=dtype, seed=2)


def window(case: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in case.items() if name not in ("x", "w")}


def geometry(case: dict[str, Any]) -> ConvGeometry:
    def pair(name: str, default: int) -> tuple[int, int]:
        value = case.get(name, default)
        return value if isinstance(value, tuple) else (value, value)

    arguments = (pair("stride", 1), pair("padding", 0), pair("dilation", 1))
    return ConvGeometry.from_torch(case["x"], case["w"], *arguments, case.get("groups", 1))


@pytest.mark.parametrize("channels_last", [True, False], ids=["nhwc", "nchw"])
@pytest.mark.parametrize("name", IDS)
def test_values_and_gradients(name: str, channels_last: bool) -> None:
    case = CASES[name]
    inputs = [t.requires_grad_() for t in tensors(case, torch.float64, channels_last)]
    expected = torch.nn.functional.conv2d(*inputs, **window(case))
    dy = random(*expected.shape, seed=3)
    with recorded() as log:
        y = conv2d(*inputs, **window(case))
        gradients = torch.autograd.grad(y, inputs, dy)
    assert y.stride() == expected.stride()
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    for ours, torchs in zip(gradients, torch.autograd.grad(expected, inputs, dy), strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-12, atol=1e-12)
    assert written(log) == {"y", "dx", "dw"}


# Small tiles, so that many programs run, tiles overhang at every border, and a reduction has
# several steps and splits.
SMALL = {
    "16x16x16": Tile(16, 16, 16, swizzle=2, splits=3),
    "32x16x16": Tile(32, 16, 16, swizzle=1, splits=1),
    "16x32x32": Tile(16, 32, 32, swizzle=3, splits=7),
}


@pytest.mark.parametrize("direction", PASSES)
@pytest.mark.parametrize("tile", SMALL)
@pytest.mark.parametrize(
    "name", ["strides-differ", "stride-and-dilation-do-not", "7x7-two-words-of-taps", "groups-2"]
)
def test_small_tiles(name: str, tile: str, direction: Pass) -> None:
    shape = geometry(CASES[name])
    check_pass(shape, direction, torch.float32, SMALL[tile])


def check_pass(
    shape: ConvGeometry, direction: Pass, dtype: torch.dtype, tile: Tile, layout: str = "nhwc"
) -> Tensor:
    """Compare one pass with a given tile with the fp64 reference."""
    problem = Problem(shape, direction, str(dtype).removeprefix("torch."), layout)  # type: ignore[arg-type]
    x = random(shape.batch, shape.in_channels, shape.in_h, shape.in_w, dtype=dtype)
    filters = (shape.out_channels, shape.group_in_channels, shape.filter_h, shape.filter_w)
    w = random(*filters, dtype=dtype, seed=1)
    dy = random(shape.batch, shape.out_channels, shape.out_h, shape.out_w, dtype=dtype, seed=2)
    choice = Choice("implicit_gemm", tile)
    if direction == "fprop":
        ours, exact = compute(problem, choice, x=x, w=w), reference.conv2d(x, w, None, shape)
        reduction = shape.taps * shape.group_in_channels
    elif direction == "dgrad":
        ours, exact = compute(problem, choice, dy=dy, w=w), reference.conv2d_dgrad(dy, w, shape)
        reduction = shape.taps * shape.group_out_channels
    else:
        ours, exact = compute(problem, choice, x=x, dy=dy), reference.conv2d_wgrad(x, dy, shape)
        reduction = shape.batch * shape.out_h * shape.out_w
    rtol, atol = reference.tolerance(problem.dtype, reduction)
    torch.testing.assert_close(ours.double(), exact, rtol=rtol, atol=atol)
    return ours


@pytest.mark.parametrize("direction", PASSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64],
                         ids=str)  # fmt: skip
def test_dtypes(dtype: torch.dtype, direction: Pass) -> None:
    check_pass(ConvGeometry(2, 19, 9, 11, 21, 3, 3, 2, 1, 1, 1), direction, dtype, Tile(64, 32, 32))


def test_splits_are_never_empty() -> None:
    for batch in range(1, 40):
        problem = Problem(ConvGeometry(batch, 4, 5, 5, 4, 3, 3), "wgrad")
        plan = FAMILIES["implicit_gemm"].plan(problem, Tile(16, 16, 16, splits=13), INTERPRETER)
        product = plan.launches[plan.product]
        boxes, share = product.scalars["boxes"], product.scalars["split_boxes"]
        splits = product.grid[1]  # groups share the first axis with the tiles
        assert (splits - 1) * share < boxes <= splits * share


def test_offsets_widen_at_the_boundary() -> None:
    # batch 63 of this layer stays below 2^31 elements, batch 64 passes it (pytorch 128936)
    def index(batch: int) -> str:
        problem = Problem(ConvGeometry(batch, 128, 512, 512, 8, 3, 3, pad_h=1, pad_w=1), "fprop")
        (launch,) = FAMILIES["implicit_gemm"].plan(problem, Tile(128, 16, 64), INTERPRETER).launches
        return str(launch.constants["INDEX"])

    assert (index(63), index(64)) == ("int32", "int64")
    assert str(index_type(2**31 - 2**22 - 1)) == "int32"
    assert str(index_type(2**31 - 2**22)) == "int64"


@pytest.mark.parametrize("direction", PASSES)
def test_wide_offsets_compute_the_same(direction: Pass, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = ConvGeometry(2, 5, 9, 7, 6, 3, 3, 2, 2, 1, 1)
    narrow = check_pass(shape, direction, torch.float32, SMALL["16x16x16"])
    monkeypatch.setattr("tconv.families.common.OFFSET_LIMIT", 1)
    wide = check_pass(shape, direction, torch.float32, SMALL["16x16x16"])
    assert torch.equal(narrow, wide)


@pytest.mark.parametrize("view", ["sliced", "expanded", "transposed", "strided"])
def test_views(view: str) -> None:
    base = random(4, 6, 10, 9)
    x = {
        "sliced": base[1:3, 1:5, 2:9, 1:8],
        "expanded": base[:1, :4].expand(3, 4, 10, 9),
        "transposed": base[:, :4].transpose(2, 3),
        "strided": base[:, :4, ::2, ::2],
    }[view].requires_grad_()
    w = random(3, 8, 3, 3)[:, ::2].requires_grad_()
    y, expected = conv2d(x, w, padding=1), torch.nn.functional.conv2d(x, w, padding=1)
    dy = random(*expected.shape).mT.contiguous().mT
    torch.testing.assert_close(y, expected)
    ours, torchs = torch.autograd.grad(y, (x, w), dy), torch.autograd.grad(expected, (x, w), dy)
    torch.testing.assert_close(ours, torchs)


def test_zero_batch() -> None:
    x = random(0, 3, 6, 6).requires_grad_()
    w, bias = random(4, 3, 3, 3).requires_grad_(), random(4).requires_grad_()
    y = conv2d(x, w, bias)
    assert y.shape == (0, 4, 4, 4)
    dx, dw, dbias = torch.autograd.grad(y.sum(), (x, w, bias))
    assert dx.shape == x.shape
    assert not dw.any()
    assert not dbias.any()


def test_nan_and_infinity_propagate() -> None:
    x, w = random(1, 2, 6, 6), random(3, 2, 3, 3, seed=1)
    x[0, 0, 2, 3], x[0, 1, 5, 5] = float("nan"), float("inf")
    expected = torch.nn.functional.conv2d(x, w, padding=1)
    torch.testing.assert_close(conv2d(x, w, padding=1), expected, equal_nan=True)


def test_runs_are_bitwise_reproducible() -> None:
    shape = ConvGeometry(2, 9, 9, 9, 7, 3, 3, pad_h=1, pad_w=1)
    for direction in PASSES:
        first = check_pass(shape, direction, torch.float32, SMALL["16x16x16"])
        assert torch.equal(first, check_pass(shape, direction, torch.float32, SMALL["16x16x16"]))


def test_frozen_tensors_cost_no_launch() -> None:
    x, w = random(1, 3, 6, 6), random(4, 3, 3, 3).requires_grad_()
    with recorded() as log:
        conv2d(x, w).sum().backward()
    assert written(log) == {"y", "dw"}
    x, w = x.requires_grad_(), w.detach()
    with recorded() as log:
        conv2d(x, w).sum().backward()
    assert written(log) == {"y", "dx"}


SMALL_CASE = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 2}


def small_inputs() -> list[Tensor]:
    sizes = ((2, 4, 5, 6), (6, 2, 3, 2), (6,))
    return [random(*size, seed=i).requires_grad_() for i, size in enumerate(sizes)]


def test_gradcheck_and_gradgradcheck() -> None:
    def layer(*inputs: Tensor) -> Tensor:
        return conv2d(*inputs, **SMALL_CASE)  # type: ignore[arg-type]

    assert torch.autograd.gradcheck(layer, small_inputs(), fast_mode=True)
    assert torch.autograd.gradgradcheck(layer, small_inputs(), fast_mode=True)


def operator_samples() -> dict[str, tuple[Any, tuple[Any, ...]]]:
    x, w, bias = small_inputs()
    rest = ([2, 1, 1, 2, 1, 2, 2],)
    dy = torch.randn_like(conv2d(x, w, bias, (2, 1), (1, 2), (1, 2), 2)).requires_grad_()
    ops = torch.ops.tconv
    return {
        "conv2d": (ops.conv2d, (x, w, bias, *rest, None)),
        "conv2d-no-bias": (ops.conv2d, (x, w, None, *rest, "tf32x3")),
        "conv2d_input_grad": (ops.conv2d_input_grad, (dy, w, list(x.shape), *rest, False, None)),
        "conv2d_weight_grad": (ops.conv2d_weight_grad, (x, dy, list(w.shape), *rest, True, "ieee")),
        "conv2d_bias_grad": (ops.conv2d_bias_grad, (dy,)),
    }


@pytest.mark.parametrize(
    "name",
    ["conv2d", "conv2d-no-bias", "conv2d_input_grad", "conv2d_weight_grad", "conv2d_bias_grad"],
)
def test_opcheck(name: str) -> None:
    operator, arguments = operator_samples()[name]
    results = torch.library.opcheck(operator.default, arguments)
    assert set(results.values()) == {"SUCCESS"}


def test_compiles_as_one_graph() -> None:
    x, w, bias = small_inputs()
    compiled = torch.compile(conv2d, fullgraph=True, backend="aot_eager", dynamic=True)
    with recorded() as log:
        y = compiled(x, w, bias, **SMALL_CASE)
        ours = torch.autograd.grad(y.sum(), (x, w, bias))
    torch.testing.assert_close(y, torch.conv2d(x, w, bias, **SMALL_CASE))  # type: ignore[arg-type]
    torch.testing.assert_close(
        ours, torch.autograd.grad(conv2d(x, w, bias, **SMALL_CASE).sum(), (x, w, bias))
    )  # type: ignore[arg-type]
    assert written(log) == {"y", "dx", "dw"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype: torch.dtype) -> None:
    x, w, bias = (t.detach().float().requires_grad_() for t in small_inputs())
    with torch.autocast(DEVICE.type, dtype=dtype):
        y = conv2d(x, w, bias, **SMALL_CASE)  # type: ignore[arg-type]
    assert y.dtype == dtype
    y.float().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32
    exact = torch.conv2d(x.double(), w.double(), bias.double(), **SMALL_CASE)  # type: ignore[arg-type]
    torch.testing.assert_close(y.double(), exact, rtol=0.02, atol=0.1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"stride": 0}, "non-positive stride is not supported: stride=\\[0, 0\\]"),
        ({"padding": -1}, "negative padding is not supported: padding=\\[-1, -1\\]"),
        ({"dilation": 0}, "dilation should be greater than zero"),
        ({"groups": 0}, "non-positive groups is not supported: groups=0"),
        ({"groups": 3}, "expected weight to be divisible by 3"),
        ({"groups": 2}, "to have 6 channels, but got 3 channels"),
        ({"padding": "even"}, "Invalid padding string: 'even'"),
        ({"padding": "same", "stride": 2}, "not supported for strided convolutions"),
        ({"bias": torch.zeros(3)}, "1-dimensional with 4 elements"),
        ({"bias": torch.zeros(4, dtype=torch.float64)}, "bias type \\(float64\\)"),
        ({"weight": torch.zeros(4, 3, 9, 3)}, r"\(6 x 6\). Kernel size: \(9 x 3\)"),
        ({"weight": torch.zeros(4, 3, 3, 3), "dilation": 3}, r"Kernel size: \(7 x 7\)"),
        ({"input": torch.zeros(1, 3, 0, 6)}, r"\(0 x 6\). Kernel size: \(3 x 3\)"),
        ({"input": torch.zeros(1, 3, 0, 6), "padding": 2}, "Only zero batch or zero channel"),
        ({"weight": torch.zeros(4, 3, 3)}, "for 3-dimensional weight"),
        ({"input": torch.zeros(2, 5, 3, 6, 6)}, "5-dimensional input"),
        ({"weight": torch.zeros(4, 3, 3, 3, device="meta")}, "same device"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_refuses_what_torch_refuses(change: dict[str, Any], words: str) -> None:
    good = {"input": torch.zeros(1, 3, 6, 6), "weight": torch.zeros(4, 3, 3, 3)}
    with pytest.raises(RuntimeError, match=words):
        conv2d(**(good | change))
    if "same device" not in words:  # torch accepts a meta tensor among others
        with pytest.raises(RuntimeError):
            torch.conv2d(**(good | change))


def test_refuses_integers_by_name() -> None:
    whole = torch.zeros(1, 3, 6, 6, dtype=torch.int64)
    with pytest.raises(NotImplementedError, match="not implemented for 'int64'"):
        conv2d(whole, torch.zeros(4, 3, 3, 3, dtype=torch.int64))


def test_functional_calls_the_operator() -> None:
    assert functional.conv2d is conv2d


@pytest.mark.gpu
@pytest.mark.parametrize("channels_last", [True, False], ids=["nhwc", "nchw"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64],
                         ids=str)  # fmt: skip
@pytest.mark.parametrize("name", IDS)
def test_on_a_gpu(name: str, dtype: torch.dtype, channels_last: bool) -> None:
    case, shape = CASES[name], geometry(CASES[name])
    x, w, bias = (t.requires_grad_() for t in tensors(case, dtype, channels_last))
    y = conv2d(x, w, bias, **window(case))
    dy = random(*y.shape, dtype=dtype, seed=3)
    dx, dw, dbias = torch.autograd.grad(y, (x, w, bias), dy)
    tf32 = "tf32" if dtype == torch.float32 else "ieee"
    exact = (
        reference.conv2d(x, w, bias, shape),
        reference.conv2d_dgrad(dy, w, shape),
        reference.conv2d_wgrad(x, dy, shape),
        dy.double().sum((0, 2, 3)),
    )
    reductions = (
        shape.taps * shape.group_in_channels,
        shape.taps * shape.group_out_channels,
        shape.batch * shape.out_h * shape.out_w,
        shape.batch * shape.out_h * shape.out_w,
    )
    name_ = str(dtype).removeprefix("torch.")
    for ours, theirs, reduction in zip((y, dx, dw, dbias), exact, reductions, strict=True):
        rtol, atol = reference.tolerance(name_, reduction, tf32)
        torch.testing.assert_close(ours.double(), theirs, rtol=rtol, atol=atol)
