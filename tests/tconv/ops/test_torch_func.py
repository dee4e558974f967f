"""Tests with ``torch.func``: reverse, forward and nested derivatives, single samples."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, func

import tconv
from tconv.functional import avg_pool2d, conv2d, conv2d_pool, max_pool2d
from tconv.launch import recorded
from tests.devices import DEVICE


@cache
def operands() -> tuple[Tensor, Tensor, Tensor]:
    """Return x, w and the bias."""
    torch.manual_seed(0)
    sizes = ((2, 3, 6, 6), (4, 3, 3, 3), (4,))
    x, w, bias = (torch.randn(size, dtype=torch.float64).to(DEVICE) for size in sizes)
    return x, w, bias


def layer(compute: Callable[..., Tensor], w: Tensor, **options: Any) -> Tensor:
    """Return a layer's output as a function of its weights."""
    x, _, bias = operands()
    return compute(x, w, bias, padding=1, **options)


plain = torch.nn.functional
Function = Callable[[Tensor], Tensor]
PAIRS: dict[str, tuple[Function, Function]] = {
    "conv2d": (
        lambda w: layer(conv2d, w).pow(3).sum(),
        lambda w: layer(plain.conv2d, w).pow(3).sum(),
    ),
    "relu": (
        lambda w: layer(conv2d, w, activation="relu").pow(3).sum(),
        lambda w: layer(plain.conv2d, w).relu().pow(3).sum(),
    ),
    "pooled": (
        lambda w: layer(conv2d_pool, w, activation="relu").pow(3).sum(),
        lambda w: plain.max_pool2d(layer(plain.conv2d, w).relu(), 2).pow(3).sum(),
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
    """Return the gradient of the squared gradient, which needs nested derivatives."""
    return func.grad(lambda w: func.grad(f)(w).square().sum())


TRANSFORMS: dict[str, Callable[[Function], Function]] = {
    "grad": func.grad,
    "grad of grad": twice,
    "vjp": lambda f: lambda w: func.vjp(f, w)[1](torch.ones((), dtype=w.dtype, device=w.device))[0],
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
        result = transform(ours)(operands()[1])
    assert launches
    torch.testing.assert_close(result, transform(theirs)(operands()[1]))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_gradients_of_single_samples() -> None:
    _, w, bias = operands()
    x = torch.randn(3, 1, 3, 6, 6, dtype=torch.float64, device=DEVICE)

    def of_samples(compute: Callable[..., Tensor]) -> Tensor:
        def loss(w: Tensor, sample: Tensor) -> Tensor:
            return compute(sample, w, bias).square().sum()

        result: Tensor = func.vmap(func.grad(loss), (None, 0))(w, x)
        return result

    torch.testing.assert_close(of_samples(conv2d), of_samples(plain.conv2d))


def test_a_module_as_a_function_of_its_parameters() -> None:
    x, _, _ = operands()
    module = tconv.Conv2d(3, 4, 3, padding=1, dtype=torch.float64, device=DEVICE)
    parameters = dict(module.named_parameters())

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return func.functional_call(module, parameters, x).square().sum()

    found = func.grad(loss)(parameters)
    module(x).square().sum().backward()
    for name, parameter in parameters.items():
        torch.testing.assert_close(found[name], parameter.grad)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("transform", [func.jacfwd, func.hessian], ids=["jacfwd", "hessian"])
def test_jacobians_in_forward_mode(transform: Callable[[Function], Function]) -> None:
    # Each element's derivative is a separate call and the interpreter is slow: small tensors.
    x, small_w = operands()[0][:1, :1, :4, :4], operands()[1][:2, :1, :2, :2]

    def f(w: Tensor) -> Tensor:
        return max_pool2d(conv2d(x, w, padding=1), 2).pow(3).sum()  # type: ignore[union-attr]

    def wanted(w: Tensor) -> Tensor:
        return plain.max_pool2d(plain.conv2d(x, w, padding=1), 2).pow(3).sum()

    torch.testing.assert_close(transform(f)(small_w), transform(wanted)(small_w))


@pytest.mark.parametrize("name", ["conv2d", "relu", "pooled", "max_pool2d", "avg_pool2d"])
def test_vmap_over_nothing_is_empty(name: str) -> None:
    """An empty batch gives an empty result as in torch; other batches give each sample's result."""
    x, w = operands()[0][:1], operands()[1]
    compute: dict[str, Callable[..., Any]] = {
        "conv2d": lambda x: conv2d(x, w, padding=1),
        "relu": lambda x: conv2d(x, w, activation="relu"),
        "pooled": lambda x: conv2d_pool(x, w),
        "max_pool2d": lambda x: max_pool2d(x, 2, return_indices=True)[1],
        "avg_pool2d": lambda x: avg_pool2d(x, 2),
    }
    one = compute[name](x)
    nothing = func.vmap(compute[name], in_dims=1)(x.new_empty(1, 0, *x.shape[1:]))
    assert nothing.shape == (0, *one.shape)
    assert nothing.dtype == one.dtype
    two = func.vmap(compute[name], in_dims=1)(torch.stack([x, x], 1))
    torch.testing.assert_close(two, torch.stack([one, one]))


def of_samples(batched: str) -> dict[str, tuple[Tensor, int | None]]:
    """Return x, w and bias in two groups; those in ``batched`` have an axis of three samples."""
    generator = torch.Generator().manual_seed(0)
    sizes = {"x": (2, 4, 5, 5), "w": (6, 2, 3, 3), "b": (6,)}
    found: dict[str, tuple[Tensor, int | None]] = {}
    for place, (name, size) in enumerate(sizes.items()):
        dim = min(place, len(size)) if name in batched else None
        shape = list(size) if dim is None else [*size[:dim], 3, *size[dim:]]
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
        found[name] = drawn.to(DEVICE), dim
    return found


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("batched", ["x", "w", "b", "xw", "wb", "xb", "xwb"])
def test_vmap_is_one_convolution_of_more_images_or_groups(batched: str, groups: int) -> None:
    operands = of_samples(batched)
    w = operands["w"][0]
    if groups == 1:
        operands["w"] = torch.cat([w, w.flip(-1)], -3), operands["w"][1]
    tensors = tuple(tensor for tensor, _ in operands.values())
    dims = tuple(dim for _, dim in operands.values())

    def result(compute: Callable[..., Tensor]) -> Any:
        def loss(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            y = compute(x, w, b, padding=1, stride=2, groups=groups)
            return y.square().sum(), y

        return func.vmap(func.grad(loss, (0, 1, 2), has_aux=True), dims)(*tensors)

    with recorded() as launches:
        found = result(conv2d)
    torch.testing.assert_close(found, result(plain.conv2d))
    if "b" not in batched or "w" in batched:
        products = [launch for launch in launches if "implicit_gemm" in launch.kernel]
        assert len(products) == 3  # one per pass, for any number of samples
