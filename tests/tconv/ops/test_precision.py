"""Tests that float32 as three tf32 products is as accurate as float32 sums.

The interpreter ignores the precision and multiplies exactly. The arithmetic is therefore emulated
here in torch, and the kernel itself is compared with cuDNN on a GPU.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tconv.ops.conv2d import conv2d

TF32_BITS = 13  # bits of float32's 23-bit fraction that tf32 drops


def rounded(x: Tensor) -> Tensor:
    """Return ``x`` rounded to tf32, ties away from zero, as the matrix unit converts it."""
    bits = x.view(torch.int32) + (1 << (TF32_BITS - 1))
    return (bits & ~((1 << TF32_BITS) - 1)).view(torch.float32)


def product(a: Tensor, b: Tensor) -> Tensor:
    """Return a b from exact products, summed in float32 in steps of eight."""
    total = torch.zeros(a.shape[0], b.shape[1])
    for k in range(0, a.shape[1], 8):
        total += (a[:, k : k + 8].double() @ b[k : k + 8].double()).float()
    return total


def tf32x3(a: Tensor, b: Tensor) -> Tensor:
    """Return a b from tf32 parts, without the product of the two small parts."""
    big_a, big_b = rounded(a), rounded(b)
    small_a, small_b = rounded(a - big_a), rounded(b - big_b)
    return product(big_a, big_b) + (product(big_a, small_b) + product(small_a, big_b))


@pytest.mark.parametrize("reduction", [27, 576, 4608])
def test_three_products_are_as_accurate_as_float32(reduction: int) -> None:
    generator = torch.Generator().manual_seed(reduction)
    a = torch.randn(64, reduction, generator=generator)
    b = torch.randn(reduction, 64, generator=generator)
    exact = a.double() @ b.double()

    def error(result: Tensor) -> float:
        return float((result.double() - exact).abs().max())

    one = error(product(rounded(a), rounded(b)))
    assert error(tf32x3(a, b)) < 2 * error(product(a, b))
    assert error(tf32x3(a, b)) < one / 50


@pytest.mark.device
@pytest.mark.parametrize("channels", [64, 256])
@pytest.mark.parametrize("direction", ["fprop", "dgrad", "wgrad"])
def test_the_kernels_are_as_accurate_as_cudnn(direction: str, channels: int) -> None:
    x = torch.randn(8, channels, 28, 28, device="cuda").to(memory_format=torch.channels_last)
    w = torch.randn(channels, channels, 3, 3, device="cuda") / (3 * channels**0.5)
    x.requires_grad_(), w.requires_grad_()
    dy = torch.randn_like(x)
    operand = {"fprop": None, "dgrad": x, "wgrad": w}[direction]

    def result(y: Tensor, dy: Tensor) -> Tensor:
        return y if operand is None else torch.autograd.grad(y, operand, dy)[0]

    assert not torch.backends.cudnn.allow_tf32
    ours = result(conv2d(x, w, padding=1), dy)
    theirs = result(torch.nn.functional.conv2d(x, w, padding=1), dy)
    y = torch.nn.functional.conv2d(x.double(), w.double(), padding=1)
    exact = result(y, dy.double()).double()
    error, limit = ((each.double() - exact).abs().max() for each in (ours, theirs))
    assert error <= 2 * limit
