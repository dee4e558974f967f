"""``torch.func``: derivatives in reverse and forward mode, nested, of single samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, func

import tconv
from tconv.functional import avg_pool2d, conv2d, conv2d_pool, max_pool2d
from tconv.launch import recorded

torch.manual_seed(0)
X, W = torch.randn(2, 3, 6, 6, dtype=torch.float64), torch.randn(4, 3, 3, 3, dtype=torch.float64)
BIAS = torch.randn(4, dtype=torch.float64)
plain = torch.nn.functional
Function = Callable[[Tensor], Tensor]
PAIRS: dict[str, tuple[Function, Function]] = {
    "conv2d": (
        lambda w: conv2d(X, w, BIAS, padding=1).pow(3).sum(),
        lambda w: plain.conv2d(X, w, BIAS, padding=1).pow(3).sum(),
    ),
    "relu": (
        lambda w: conv2d(X, w, BIAS, padding=1, activation="relu").pow(3).sum(),
        lambda w: plain.conv2d(X, w, BIAS, padding=1).relu().pow(3).sum(),
    ),
    "pooled": (
        lambda w: conv2d_pool(X, w, BIAS, padding=1, activation="relu").pow(3).sum(),
        lambda w: plain.max_pool2d(plain.conv2d(X, w, BIAS, padding=1).relu(), 2).pow(3).sum(),
    ),
    "max_pool2d": (
        lambda w: max_pool2d(w, 2).pow(3).sum(),
        lambda w: plain.max_pool2d(w, 2).pow(3).sum(),
    ),
    "avg_pool2d": (
        lambda w: avg_pool2d(w, 2).pow(3).sum(),
        lambda w: plain.avg_pool2d(w, 2).pow(3).sum(),
    ),
}


def twice(f: Function) -> Function:
    """The gradient of the squared gradient: each level's gradient must see the one below."""
    return func.grad(lambda w: func.grad(f)(w).square().sum())


TRANSFORMS: dict[str, Callable[[Function], Function]] = {
    "grad": func.grad,
    "grad of grad": twice,
    "vjp": lambda f: lambda w: func.vjp(f, w)[1](torch.ones((), dtype=w.dtype))[0],
    "jacrev": func.jacrev,
    "jvp": lambda f: lambda w: func.jvp(f, (w,), (w.cos(),)),
    "linearize": lambda f: lambda w: func.linearize(f, w)[1](w.cos()),
    "forward over reverse": lambda f: lambda w: func.jvp(func.grad(f), (w,), (w.cos(),)),
    "reverse over forward": lambda f: func.grad(lambda w: func.jvp(f, (w,), (w.cos(),))[1]),
    "forward over forward": lambda f: (
        lambda w: func.jvp(lambda v: func.jvp(f, (v,), (v.cos(),))[1], (w,), (w.sin(),))
    ),
}


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("name", PAIRS)
def test_transforms_give_torchs_gradients(name: str, transform: Callable[..., Any]) -> None:
    ours, theirs = PAIRS[name]
    with recorded() as launches:
        result = transform(ours)(W)
    assert launches
    torch.testing.assert_close(result, transform(theirs)(W))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_gradients_of_single_samples() -> None:
    x = torch.randn(3, 1, 3, 6, 6, dtype=torch.float64)

    def of_samples(compute: Callable[..., Tensor]) -> Tensor:
        def loss(w: Tensor, sample: Tensor) -> Tensor:
            return compute(sample, w, BIAS).square().sum()

        result: Tensor = func.vmap(func.grad(loss), (None, 0))(W, x)
        return result

    torch.testing.assert_close(of_samples(conv2d), of_samples(plain.conv2d))


def test_a_module_as_a_function_of_its_parameters() -> None:
    layer = tconv.Conv2d(3, 4, 3, padding=1, dtype=torch.float64)
    parameters = dict(layer.named_parameters())

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return func.functional_call(layer, parameters, X).square().sum()

    found = func.grad(loss)(parameters)
    layer(X).square().sum().backward()
    for name, parameter in parameters.items():
        torch.testing.assert_close(found[name], parameter.grad)


# Each element's derivative is a call of its own: small tensors, and the interpreter is slow.
SMALL_X, SMALL_W = X[:1, :1, :4, :4], W[:2, :1, :2, :2]


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("transform", [func.jacfwd, func.hessian], ids=["jacfwd", "hessian"])
def test_jacobians_in_forward_mode(transform: Callable[[Function], Function]) -> None:
    def f(w: Tensor) -> Tensor:
        return max_pool2d(conv2d(SMALL_X, w, padding=1), 2).pow(3).sum()  # type: ignore[union-attr]

    def wanted(w: Tensor) -> Tensor:
        return plain.max_pool2d(plain.conv2d(SMALL_X, w, padding=1), 2).pow(3).sum()

    torch.testing.assert_close(transform(f)(SMALL_W), transform(wanted)(SMALL_W))
