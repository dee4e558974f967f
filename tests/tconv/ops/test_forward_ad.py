"""Tests of forward-mode derivatives of every operator: dual tensors, launches, gradcheck."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from tconv import functional
from tconv.functional import conv2d, conv2d_pool, max_pool2d
from tconv.launch import recorded

plain = torch.nn.functional
ops = torch.ops.tconv
generator = torch.Generator().manual_seed(0)


def random(*size: int) -> Tensor:
    return torch.randn(size, generator=generator, dtype=torch.float64)


X, W, BIAS, RESIDUAL = random(1, 2, 4, 4), random(2, 1, 3, 3), random(2), random(1, 2, 4, 4)
NORM = (random(2), random(2), random(2), random(2).square() + 0.5)
WINDOW = [1, 1, 1, 1, 1, 1, 2]  # stride 1, padding 1, dilation 1, two groups
FORM: dict[str, Any] = {"padding": 1, "groups": 2}
POOL: tuple[Any, ...] = ((2, 2), (2, 2), (0, 0), (1, 1), False)
OFFSETS = torch.randint(4, (1, 2, 2, 2), generator=generator, dtype=torch.int8)
HALF = random(1, 2, 2, 2)
Compute = Callable[..., Any]

# Every operator with a derivative: its function and operands.
OPERATORS: dict[str, tuple[Compute, tuple[Tensor, ...]]] = {
    "conv2d": (lambda x, w, b: conv2d(x, w, b, **FORM), (X, W, BIAS)),
    "conv2d activation": (
        lambda x, w, b: conv2d(x, w, b, **FORM, activation="relu"), (X, W, BIAS)),
    "conv2d residual": (
        lambda x, w, b, r: conv2d(x, w, b, **FORM, activation="relu", residual=r),
        (X, W, BIAS, RESIDUAL)),
    "conv2d_pool": (
        lambda x, w, b: conv2d_pool(x, w, b, **FORM, activation="relu"), (X, W, BIAS)),
    "conv2d_fused": (
        lambda x, w, b, r, g, s, m, v: functional.conv2d_fused(
            x, w, b, **FORM, residual=r, norm_weight=g, norm_bias=s, running_mean=m, running_var=v,
            activation="silu", pool=True),
        (X, W, BIAS, RESIDUAL, *NORM)),
    "conv2d_fused residual after": (
        lambda x, w, r: functional.conv2d_fused(
            x, w, **FORM, residual=r, activation="tanh", residual_after=True, pool=True),
        (X, W, RESIDUAL)),
    "conv2d_fused norm": (
        lambda m, v: functional.conv2d_fused(X, W, BIAS, **FORM, running_mean=m, running_var=v),
        NORM[2:]),
    "conv_transpose2d": (
        lambda x, w, b: functional.conv_transpose2d(x, w, b, **FORM), (X, W, BIAS)),
    "conv_transpose2d fused": (
        lambda x, w, b, r, g, s, m, v: functional.conv_transpose2d(
            x, w, b, **FORM, residual=r, norm_weight=g, norm_bias=s, running_mean=m, running_var=v,
            activation="silu"),
        (X, W, BIAS, RESIDUAL, *NORM)),
    "conv_transpose2d residual after": (
        lambda w, r, v: functional.conv_transpose2d(
            X, w, **FORM, residual=r, running_mean=NORM[2], running_var=v, activation="relu",
            residual_after=True),
        (W, RESIDUAL, NORM[3])),
    "conv2d_activation_grad": (
        lambda dy, value: ops.conv2d_activation_grad(dy, value, "gelu", 0.0, False, True)[1],
        (X, X.sin())),
    "conv2d_pool_grad": (
        lambda dy: ops.conv2d_pool_grad(dy, OFFSETS, X.shape, False, True)[0], (HALF,)),
    "conv2d_pool_pick": (lambda z: ops.conv2d_pool_pick(z, OFFSETS), (X,)),
    "max_pool2d": (lambda x: max_pool2d(x, 2), (X,)),
    "avg_pool2d": (lambda x: functional.avg_pool2d(x, 3, 2, 1), (X,)),
    "conv2d_input_grad": (
        lambda dy, w: ops.conv2d_input_grad(dy, w, X.shape, WINDOW, False, None), (X, W)),
    "conv2d_weight_grad": (
        lambda x, dy: ops.conv2d_weight_grad(x, dy, W.shape, WINDOW, False, None), (X, X.cos())),
    "conv2d_bias_grad": (lambda dy: ops.conv2d_bias_grad(dy), (X,)),
    "max_pool2d_values": (lambda x: ops.max_pool2d_values(x, *POOL), (X,)),
    "max_pool2d_input_grad": (
        lambda dy: ops.max_pool2d_input_grad(dy, OFFSETS, X.shape, *POOL, False), (HALF,)),
    "max_pool2d_pick": (lambda x: ops.max_pool2d_pick(x, OFFSETS, *POOL, False), (X,)),
    "avg_pool2d_input_grad": (
        lambda dy: ops.avg_pool2d_input_grad(dy, X.shape, [2, 2, 2, 2, 0, 0, 0, 1, 0], False),
        (HALF,)),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATORS)
def test_tangents_equal_finite_differences(name: str) -> None:
    """Like gradcheck with a hundredth of the launches: all operands change at once."""
    compute, operands = OPERATORS[name]
    tangents, step = [operand.cos() for operand in operands], 1e-6
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(*both) for both in zip(operands, tangents, strict=True)]
        found = forward_ad.unpack_dual(compute(*duals)).tangent
    ahead, behind = (
        compute(*(operand + sign * step * tangent
                  for operand, tangent in zip(operands, tangents, strict=True)))
        for sign in (1, -1)
    )  # fmt: skip
    torch.testing.assert_close(found, (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-7)


def test_gradcheck_in_both_modes() -> None:
    leaves = [operand.clone().requires_grad_() for operand in (X[..., :2, :2], W[..., :2, :2])]
    torch.autograd.gradcheck(lambda x, w: conv2d(x, w, groups=2), leaves, check_forward_ad=True,
                             fast_mode=True)  # fmt: skip


def test_a_dual_tensor_without_a_gradient_keeps_its_tangent() -> None:
    tangent = random(*X.shape)
    with forward_ad.dual_level(), torch.no_grad():
        y = conv2d(forward_ad.make_dual(X, tangent), W, **FORM)
        _, found = forward_ad.unpack_dual(y)
    torch.testing.assert_close(found, plain.conv2d(tangent, W, **FORM))


@pytest.mark.parametrize(("dual", "convolutions"), [("x", 2), ("w", 2), ("xw", 3), ("", 1)])
def test_a_tangent_costs_one_convolution(dual: str, convolutions: int) -> None:
    """An operand without a tangent costs no convolution."""
    with forward_ad.dual_level():
        x = forward_ad.make_dual(X, X.cos()) if "x" in dual else X
        w = forward_ad.make_dual(W, W.cos()) if "w" in dual else W
        conv2d(X, W, **FORM)
        with recorded() as launches:
            conv2d(X, W, **FORM)
        once = len(launches)
        with recorded() as launches:
            conv2d(x, w, **FORM)
    assert len(launches) == convolutions * once > 0


def test_the_tangent_of_a_max_pool_is_a_gather() -> None:
    with forward_ad.dual_level():
        x = forward_ad.make_dual(X, X.cos())
        with recorded() as launches:
            max_pool2d(x, 2)
    kernels = [launch.kernel for launch in launches]
    assert kernels == ["max_pool.max_pool_fprop", "max_pool.max_pool_pick"]


def test_the_bias_alone_has_a_tangent() -> None:
    with forward_ad.dual_level():
        y = conv2d(X, W, forward_ad.make_dual(BIAS, BIAS.cos()), **FORM)
        tangent = forward_ad.unpack_dual(y).tangent
    assert tangent is not None
    torch.testing.assert_close(tangent, BIAS.cos()[:, None, None].expand(y.shape))


def test_tensors_kept_for_forward_mode_are_freed() -> None:
    with forward_ad.dual_level():
        x = X.clone().requires_grad_()
        with_tangent = conv2d(forward_ad.make_dual(x, X.cos()), W, **FORM)
        without = conv2d(x, W, **FORM)
        last = [weakref.ref(with_tangent), weakref.ref(without)]
        gc.disable()  # a cycle would outlive its last use
        try:
            del with_tangent, without
            assert [each() for each in last] == [None, None]
        finally:
            gc.enable()
