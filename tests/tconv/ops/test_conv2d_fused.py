"""Tests of convolution with a fused epilogue: values, gradients, launches, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close

import tconv
from tconv.families import epilogue_grad
from tconv.functional import conv2d, conv2d_fused, conv2d_pool
from tconv.geometry import ConvGeometry
from tconv.launch import interpreting, recorded
from tconv.ops import activations
from tconv.ops.conv_run import compute
from tconv.ops.layout import memory_format
from tconv.problem import ACTIVATIONS, FROM_RESULT, Layout, Problem
from tconv.target import TARGETS
from tconv.tile import Choice, Tile
from tests.devices import DEVICE, written

RELU = epilogue_grad.Activation("relu")
CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "plain": ((2, 16, 8, 8), (24, 16, 3, 3), {"padding": 1}),
    "odd": ((2, 5, 9, 11), (7, 5, 3, 3), {"padding": 1}),
    "stride-2": ((2, 3, 13, 12), (8, 3, 5, 5), {"stride": 2, "padding": 2}),
    "grouped": ((2, 12, 7, 9), (18, 2, 3, 3), {"padding": 1, "groups": 6}),
    "depthwise": ((2, 6, 9, 8), (12, 1, 3, 3), {"padding": 1, "groups": 6}),
}


def random(*size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(size))
    return torch.randn(size, generator=generator, dtype=torch.float64).to(DEVICE)


def operands(name: str, channels_last: bool) -> tuple[list[Tensor], dict[str, Any]]:
    x_size, w_size, window = CASES[name]
    x, w, bias = random(*x_size), random(*w_size, seed=1), random(w_size[0], seed=2)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    return [tensor.requires_grad_() for tensor in (x, w, bias)], window


def assert_same(ours: Tensor, theirs: Tensor, tensors: list[Tensor]) -> None:
    """Compare values, strides and gradients."""
    assert_close(ours, theirs, equal_nan=True)
    assert ours.stride() == theirs.stride()
    dy = random(*theirs.shape, seed=7)
    got = torch.autograd.grad(ours, tensors, dy)
    assert_close(got, torch.autograd.grad(theirs, tensors, dy, retain_graph=True), equal_nan=True)


@pytest.mark.parametrize("channels_last", [True, False], ids=["nhwc", "nchw"])
@pytest.mark.parametrize("name", CASES)
def test_relu_and_residual(name: str, channels_last: bool) -> None:
    tensors, window = operands(name, channels_last)
    z = functional.conv2d(*tensors, **window)
    with recorded() as log:
        y = conv2d(*tensors, **window, activation="relu")
    named = [launch.constants["ACTIVATION"] for launch in log if "ACTIVATION" in launch.constants]
    assert named == ["relu"]
    assert_same(y, z.relu(), tensors)
    residual = random(*z.shape, seed=5).requires_grad_()
    for activation in ("relu", None):
        total = z + residual
        expected = total.relu() if activation else total
        y = conv2d(*tensors, **window, residual=residual, activation=activation)
        assert_same(y, expected, [*tensors, residual])


@pytest.mark.parametrize("channels_last", [True, False], ids=["nhwc", "nchw"])
@pytest.mark.parametrize("name", CASES)
def test_pool(name: str, channels_last: bool) -> None:
    tensors, window = operands(name, channels_last)
    z = functional.conv2d(*tensors, **window)
    for activation in ("relu", None):
        expected = functional.max_pool2d(z.relu() if activation else z, 2)
        assert_same(conv2d_pool(*tensors, **window, activation=activation), expected, tensors)


def test_one_kernel_forward_and_one_pass_over_dy() -> None:
    tensors, window = operands("plain", True)
    for fused in (conv2d, conv2d_pool):
        with recorded() as log:
            y = fused(*tensors, **window, activation="relu")
        products = [launch for launch in log if "relayout" not in launch.kernel]
        assert written(log) == {"y"}
        assert products[-1].constants["ACTIVATION"] == "relu"
        if interpreting():  # on a GPU a reduction may be split and summed
            assert [launch.kernel for launch in products] == ["fprop.implicit_gemm_fprop"]
        with recorded() as log:
            torch.autograd.grad(y.sum(), tensors)
        readers = [launch for launch in log if "dy" in {o.tensor for o in launch.operands.values()}]
        unfused = 4  # gradients of ReLU and bias, dgrad, wgrad
        assert len(readers) < unfused
        assert "epilogue_grad" in log[0].kernel


def test_offsets_are_stored_only_for_gradients() -> None:
    tensors, window = operands("plain", True)
    with torch.no_grad(), recorded() as log:
        conv2d_pool(*tensors, **window)
    assert "offsets" not in log[-1].operands
    with recorded() as log:
        conv2d_pool(*tensors, **window)
    assert log[-1].operands["offsets"].dtype == "int8"


def test_nan_and_infinity_propagate_as_in_torch() -> None:
    tensors, window = operands("odd", True)
    with torch.no_grad():
        tensors[0][0, 0, 2, 3], tensors[0][1, 1, 5, 5] = float("nan"), -float("inf")
    z = functional.conv2d(*tensors, **window)
    assert_same(conv2d(*tensors, **window, activation="relu"), z.relu(), tensors)
    y, expected = conv2d_pool(*tensors, **window), functional.max_pool2d(z, 2)
    assert_close(y, expected, equal_nan=True)


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
def test_groups_do_not_meet(value: float) -> None:
    """Packed groups share a tile, where zero times infinity would give NaN."""
    shape = ConvGeometry(2, 24, 6, 6, 24, 3, 3, pad_h=1, pad_w=1, groups=6)
    x, w, dy = random(2, 24, 6, 6), random(24, 4, 3, 3, seed=1), random(2, 24, 6, 6, seed=2)
    x[0, 5, 2, 2] = value
    dy[1, 9, 3, 3] = value
    arguments = (None, 1, 1, 1, 6)
    gradients = torch.ops.aten.convolution_backward(
        dy, x, w, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 6, [True, True, False]
    )
    expected = {"fprop": functional.conv2d(x, w, *arguments), "dgrad": gradients[0],
                "wgrad": gradients[1]}  # fmt: skip
    given = {"fprop": {"x": x, "w": w}, "dgrad": {"dy": dy, "w": w}, "wgrad": {"x": x, "dy": dy}}
    for direction, exact in expected.items():
        problem = Problem(shape, direction, "float64", "nchw")  # type: ignore[arg-type]
        got = compute(problem, Choice("grouped", Tile(128, 32, 32)), **given[direction])
        assert_close(got, exact, equal_nan=True)
        assert got.isfinite().any()


# About the smallest sizes that a GPU's plan splits; in the second, the last share has one pixel.
SPLIT: list[tuple[Layout, tuple[int, int, int, int]]] = [
    ("nhwc", (2, 130, 13, 11)),
    ("nhwc", (1, 130, 17, 17)),
    ("nchw", (2, 3, 95, 91)),
]


@pytest.mark.parametrize("pooled", [False, True], ids=["relu", "pool"])
@pytest.mark.parametrize(("layout", "size"), SPLIT, ids=str)
def test_gradients_in_shares(layout: Layout, size: tuple[int, int, int, int], pooled: bool) -> None:
    """With a GPU's plan: pixels in shares, and more channels than one program holds."""
    batch, channels, rows, columns = size
    if pooled:  # as many windows as pixels before
        rows, columns = 2 * rows - 1, 2 * columns - 1
    z = random(batch, channels, rows, columns).contiguous(memory_format=memory_format(layout))
    z.requires_grad_()
    exact = functional.max_pool2d(z.relu(), 2) if pooled else z.relu()
    dy = random(*exact.shape, seed=1).contiguous(memory_format=memory_format(layout))
    (dz,) = torch.autograd.grad(exact, z, dy)
    target, image = TARGETS["sm_90"], (batch, channels, rows * columns)
    if pooled:
        plan = epilogue_grad.pool_plan("float64", layout, tuple(z.shape), target, sums=True)
        last = functional.pad(z.detach(), (0, -(columns % 2), 0, -(rows % 2)))
        quarters = last.unfold(2, 2, 2).unfold(3, 2, 2).flatten(-2)
        best = torch.where(quarters.amax(-1) > 0, quarters.argmax(-1), -1).to(torch.int8)
        given = {"offsets": best.contiguous(memory_format=memory_format(layout))}
    else:
        plan, given = epilogue_grad.plan("float64", layout, image, target, RELU), {"value": exact}
    tensors = {"dy": dy, **given, "dz": torch.empty_like(dz), "dbias": torch.empty(channels)}
    tensors["dbias"] = tensors["dbias"].to(dz)
    plan.run(tensors)
    assert plan.launches[0].grid[1] > 1
    assert (plan.launches[1].grid[0] > 1) == (layout == "nhwc")
    assert_close((tensors["dz"], tensors["dbias"]), (dz, dz.sum((0, 2, 3))))


def test_second_gradients() -> None:
    x, w, bias = (random(*size).requires_grad_() for size in ((1, 2, 5, 6), (3, 2, 3, 3), (3,)))

    def relu(*tensors: Tensor) -> Tensor:
        return conv2d(*tensors, padding=1, activation="relu")

    def pool(*tensors: Tensor) -> Tensor:
        return conv2d_pool(*tensors, padding=1, activation="relu")

    for fused in (relu, pool):
        assert torch.autograd.gradcheck(fused, (x, w, bias), fast_mode=True)
        assert torch.autograd.gradgradcheck(fused, (x, w, bias), fast_mode=True)


def test_operators_pass_opcheck() -> None:
    ops = torch.ops.tconv
    x, w, bias = (random(*size).requires_grad_() for size in ((2, 3, 6, 6), (4, 3, 3, 3), (4,)))
    window = [1, 1, 1, 1, 1, 1, 1]
    residual = random(2, 4, 6, 6).requires_grad_()
    norm = (*(random(4, seed=i).requires_grad_() for i in (1, 2)), random(4, seed=3))
    norm = (*norm, random(4, seed=4).abs() + 0.1)
    for how in (
        ("relu", 0.0, False, False, True, None),
        ("silu", 0.0, True, True, True, None),
        (None, 0.0, False, False, False, None),
    ):
        operands = (x, w, bias, residual, *norm, 1e-5, window, *how)
        torch.library.opcheck(ops.conv2d_fused.default, operands)
    y = random(2, 4, 6, 6)
    operands = (residual, y, "silu", 0.0, False, True)
    torch.library.opcheck(ops.conv2d_activation_grad.default, operands)
    offsets = torch.randint(-1, 4, (2, 4, 3, 3)).to(DEVICE, torch.int8)
    dy = random(2, 4, 3, 3).requires_grad_()
    arguments = (dy, offsets, [2, 4, 6, 6], False, True)
    torch.library.opcheck(ops.conv2d_pool_grad.default, arguments)
    torch.library.opcheck(ops.conv2d_pool_pick.default, (residual, offsets))


def test_autocast() -> None:
    tensors, window = operands("plain", True)
    x, w, bias = (tensor.detach().float() for tensor in tensors)
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        assert conv2d(x, w, bias, **window, activation="relu").dtype == torch.bfloat16
        assert conv2d_pool(x, w, bias, **window).dtype == torch.bfloat16


def test_bad_arguments() -> None:
    (x, w, bias), window = operands("plain", True)
    with pytest.raises(ValueError, match="activation is 'elu'; it is one of 'relu', 'relu6',"):
        conv2d(x, w, bias, **window, activation="elu")
    with pytest.raises(RuntimeError, match=r"residual of the size of the result, \[2, 24, 8, 8\]"):
        conv2d(x, w, bias, **window, residual=random(2, 24, 7, 7))
    with pytest.raises(RuntimeError, match="Output size is too small"):
        conv2d_pool(x[:, :, :1], w, bias, **window)


@pytest.mark.parametrize("name", ["ConvReLU2d", "ConvReLUPool2d"])
def test_modules_equal_torchs(name: str) -> None:
    ours = getattr(tconv, name)(3, 8, 3, padding=1).to(DEVICE)
    theirs = torch.nn.Conv2d(3, 8, 3, padding=1).to(DEVICE)
    theirs.load_state_dict(ours.state_dict())
    x = random(2, 3, 9, 8).float()
    expected = theirs(x).relu()
    if name == "ConvReLUPool2d":
        expected = functional.max_pool2d(expected, 2)
    assert_close(ours(x), expected)


# ---- batch normalization --------------------------------------------------------------------


def normed(channels: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Return the tensors of a batch normalization."""
    named = {
        "running_mean": random(channels, seed=11),
        "running_var": random(channels, seed=12).abs() + 0.25,
        "norm_weight": random(channels, seed=13),
        "norm_bias": random(channels, seed=14),
    }
    return {name: tensor.to(dtype) for name, tensor in named.items()}


def torchs_norm(z: Tensor, norm: dict[str, Tensor], eps: float = 1e-5) -> Tensor:
    """Compute a batch norm in elementary operations, with gradients for the statistics."""
    mean, var = norm["running_mean"], norm["running_var"]
    scale = norm.get("norm_weight", 1.0) / torch.sqrt(var + eps)
    z = (z - mean[:, None, None]) * scale[:, None, None]
    return z + norm["norm_bias"][:, None, None] if "norm_bias" in norm else z


@pytest.mark.parametrize("absent", ["", "norm_weight", "norm_bias"])
@pytest.mark.parametrize("name", ["odd", "depthwise"])
def test_batch_norm(name: str, absent: str) -> None:
    tensors, window = operands(name, True)
    norm = normed(tensors[1].shape[0])
    norm.pop(absent, None)
    for tensor in norm.values():
        tensor.requires_grad_()
    z = torchs_norm(functional.conv2d(*tensors, **window), norm)
    with recorded() as log:
        y = conv2d_fused(*tensors, **window, **norm, activation="relu")
    assert "norm_mean" in log[-1].operands  # one kernel does it all
    assert_same(y, z.relu(), [*tensors, *norm.values()])
    residual = random(*z.shape, seed=5).requires_grad_()
    exact = functional.max_pool2d(functional.silu(z) + residual, 2)
    how: dict[str, Any] = {"residual": residual, "residual_after": True, "pool": True}
    y = conv2d_fused(*tensors, **window, **norm, **how, activation="silu")
    assert_same(y, exact, [*tensors, *norm.values(), residual])


def test_a_channel_without_variance_stays_finite_in_half_precision() -> None:
    (x, w, bias), window = operands("plain", True)
    norm = normed(w.shape[0], torch.float16)
    norm["running_var"][3] = 0.0
    with torch.no_grad():
        w[3], bias[3] = 0.0, 0.5
        norm["running_mean"][3] = 0.5
        half = [tensor.half() for tensor in (x, w, bias)]
        y = conv2d_fused(*half, **window, **norm, eps=1e-8)
    assert y.isfinite().all()
    assert_close(y[:, 3], norm["norm_bias"][3].expand_as(y[:, 3]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_batch_norm_keeps_its_own_dtype(dtype: torch.dtype) -> None:
    (x, w, bias), window = operands("plain", True)
    norm = normed(w.shape[0], torch.float32)
    exact = torchs_norm(functional.conv2d(x, w, bias, **window), norm)
    with torch.no_grad(), torch.autocast(DEVICE.type, dtype=dtype, enabled=dtype != torch.float32):
        y = conv2d_fused(x.float(), w.float(), bias.float(), **window, **norm)
        mixed = {**norm, "norm_bias": norm["norm_bias"].to(torch.float64)}
        assert_close(conv2d_fused(x.float(), w.float(), bias.float(), **window, **mixed), y)
    assert y.dtype == dtype
    rounding = 16 * torch.finfo(dtype).eps  # of the operands, in a sum of 144 products
    assert_close(y.double(), exact, rtol=rounding, atol=4 * rounding)


# ---- activations ----------------------------------------------------------------------------

EDGES = [0.0, -0.0, 3.0, -3.0, 6.0, 1e-8, -40.0, 90.0, float("nan"), float("inf"), -float("inf")]


def through(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return x and w of a 1x1 layer whose sums are ``values``, [channels, pixels]."""
    x = values[None, :, :, None].contiguous()
    return x, torch.ones(values.shape[0], 1, 1, 1, dtype=x.dtype, device=x.device)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation(activation: str, after: bool) -> None:
    """Values and gradients equal torch's, also at kinks, NaN and infinities."""
    row = torch.cat([torch.tensor(EDGES, dtype=torch.float64), torch.linspace(-7, 7, 57).double()])
    x, w = through(row.expand(2, -1).to(DEVICE))
    x.requires_grad_()
    how: dict[str, Any] = {"groups": 2, "activation": activation, "negative_slope": 0.2}
    z = functional.conv2d(x, w, groups=2)
    y = conv2d_fused(x, w, **how)
    exact = activations.apply(z, activation, 0.2)
    assert_close(y, exact, equal_nan=True)
    dy = random(*y.shape, seed=3)
    (theirs,) = torch.autograd.grad(exact, z, dy)
    (ours,) = torch.autograd.grad(y, x, dy)
    if activation in ("relu6", "hardswish"):  # of NaN torch's CPU gives either 0, NaN or dy
        ours, theirs = (torch.where(z.isnan(), 0.0, found) for found in (ours, theirs))
    assert_close(ours, theirs, equal_nan=True)
    residual = random(*y.shape, seed=4).requires_grad_()
    finite = x.detach().nan_to_num(1.0, 2.0, -2.0).requires_grad_()
    z = functional.conv2d(finite, w, groups=2)
    y = conv2d_fused(finite, w, **how, residual=residual, residual_after=after)
    total = z if after else z + residual
    exact = activations.apply(total, activation, 0.2)
    assert_same(y, exact + residual if after else exact, [finite, residual])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_pooled_activation(activation: str) -> None:
    tensors, window = operands("odd", False)
    z = functional.conv2d(*tensors, **window)
    residual = random(*z.shape, seed=5).requires_grad_()
    exact = functional.max_pool2d(activations.apply(z + residual, activation, 0.2), 2)
    how: dict[str, Any] = {"activation": activation, "negative_slope": 0.2, "pool": True}
    y = conv2d_fused(*tensors, **window, residual=residual, **how)
    assert_same(y, exact, [*tensors, residual])


def test_the_derivative_is_computed_from_y_if_possible() -> None:
    tensors, window = operands("plain", True)
    for activation in ACTIVATIONS:
        with recorded() as log:
            conv2d_fused(*tensors, **window, activation=activation)
        assert ("kept" in log[-1].operands) == (activation not in FROM_RESULT)
        with torch.no_grad(), recorded() as log:
            conv2d_fused(*tensors, **window, activation=activation)
        assert "kept" not in log[-1].operands


@pytest.mark.parametrize("activation", sorted({*ACTIVATIONS} - {"relu", "relu6", "hardsigmoid"}))
def test_second_derivatives(activation: str) -> None:
    """Second derivatives of the pass over dy, from the result and from the argument."""
    value = torch.tensor([[-4.2, -1.3, -0.4, 0.3, 0.7, 2.1, 3.9]], dtype=torch.float64)
    value = value.expand(2, -1)[None, :, :, None].to(DEVICE)
    dy = random(*value.shape)
    for from_result in {False, activation in FROM_RESULT}:
        at = activations.apply(value, activation, 0.2) if from_result else value.clone()

        def grad(dy: Tensor, value: Tensor, from_result: bool = from_result) -> Tensor:
            how = (activation, 0.2, from_result, False)
            return torch.ops.tconv.conv2d_activation_grad(dy, value, *how)[0]

        given = (dy.requires_grad_(), at.requires_grad_())
        assert torch.autograd.gradcheck(grad, given, fast_mode=True)


def test_a_gradient_without_its_stored_tensors_is_refused() -> None:
    tensors, _ = operands("plain", True)
    how = ("silu", 0.0, False, False, False, None)
    window_list = [1, 1, 1, 1, 1, 1, 1]
    arguments = (*tensors, *(None,) * 5, 0.0, window_list, *how)
    y = torch.ops.tconv.conv2d_fused(*arguments)[0]
    with pytest.raises(RuntimeError, match="called with keep=False"):
        y.sum().backward()


def test_bad_norms() -> None:
    (x, w, bias), window = operands("plain", True)
    norm = normed(w.shape[0])
    with pytest.raises(ValueError, match="running_mean and running_var must be given together"):
        conv2d_fused(x, w, bias, **window, running_mean=norm["running_mean"])
    with pytest.raises(ValueError, match="norm_weight and norm_bias need running_mean"):
        conv2d_fused(x, w, bias, **window, norm_weight=norm["norm_weight"])
    short = {**norm, "norm_bias": norm["norm_bias"][:-1]}
    with pytest.raises(RuntimeError, match=r"expected norm_bias .* 24 elements, but got size \[23"):
        conv2d_fused(x, w, bias, **window, **short)
    whole = {**norm, "running_var": norm["running_var"].long()}
    with pytest.raises(RuntimeError, match="expected running_var of a floating dtype"):
        conv2d_fused(x, w, bias, **window, **whole)
