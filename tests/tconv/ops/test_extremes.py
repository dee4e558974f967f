"""Tests of values and shapes at the limits of what torch accepts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import tconv
from tconv.functional import avg_pool2d, conv2d, conv2d_pool, max_pool2d
from tconv.launch import recorded
from tests.devices import DEVICE, written

plain = torch.nn.functional
HALVES = (torch.float16, torch.bfloat16)
REPEATS = 100


def random(*size: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=generator).to(DEVICE, dtype)


SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "a thousand channels, 1x1": ((2, 1000, 3, 5), (24, 1000, 1, 1), {}),
    "to a thousand filters, 1x1": ((2, 24, 3, 5), (1000, 24, 1, 1), {}),
    "filter as large as the padded image": ((2, 5, 4, 6), (7, 5, 6, 8), {"padding": 1}),
    "dilation as far as the image": ((2, 3, 9, 9), (4, 3, 3, 3), {"dilation": 4}),
    "all but one tap in the padding": ((2, 3, 1, 1), (4, 3, 5, 5), {"padding": 2, "stride": 3}),
    "one row": ((1, 4, 1, 40), (4, 4, 1, 7), {"padding": (0, 3)}),
    "stride beyond the filter": ((2, 3, 11, 13), (4, 3, 2, 2), {"stride": 5}),
}


@pytest.mark.parametrize("channels_last", [True, False], ids=["nhwc", "nchw"])
@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name: str, channels_last: bool) -> None:
    x_size, w_size, window = SHAPES[name]
    form = torch.channels_last if channels_last else torch.contiguous_format
    x, w = (random(*size, seed=seed).contiguous(memory_format=form).requires_grad_()
            for seed, size in enumerate((x_size, w_size)))  # fmt: skip
    y = conv2d(x, w, **window)
    exact = plain.conv2d(x.double(), w.double(), **window)
    dy = random(*y.shape, seed=3)
    torch.testing.assert_close(y.double(), exact, rtol=1e-4, atol=1e-4)
    ours = torch.autograd.grad(y, (x, w), dy)
    theirs = torch.autograd.grad(exact, (x, w), dy.double())
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32, torch.float64], ids=str)
def test_subnormal_numbers_are_kept(dtype: torch.dtype) -> None:
    tiny = torch.finfo(dtype).smallest_normal / 4
    x = torch.full((1, 2, 4, 4), tiny, dtype=dtype, device=DEVICE)
    w = torch.ones(3, 2, 1, 1, dtype=dtype, device=DEVICE)
    y = conv2d(x, w)
    assert bool((y == 2 * tiny).all())
    assert bool((max_pool2d(x, 2) == tiny).all())
    assert bool((avg_pool2d(x, 2) == tiny).all())


def test_negative_zero() -> None:
    """Sums start at +0 as in torch; a maximum is the first of equal values, with its sign."""
    zeros = torch.tensor([[-0.0, 0.0], [0.0, -0.0]], device=DEVICE)[None, None]
    w = torch.ones(1, 1, 1, 1, device=DEVICE)
    assert torch.equal(conv2d(zeros, w), plain.conv2d(zeros, w))
    for x in (zeros, zeros.flip(-1)):
        ours, theirs = max_pool2d(x, 2), plain.max_pool2d(x, 2)
        assert torch.equal(ours, theirs)
        assert torch.equal(torch.signbit(ours), torch.signbit(theirs))
    relu = conv2d(-zeros.abs(), w, activation="relu")
    assert torch.equal(relu, torch.zeros_like(relu))


def test_sums_beyond_the_range_are_infinite() -> None:
    x = torch.full((1, 64, 2, 2), 60000.0, dtype=torch.float16, device=DEVICE)
    w = torch.ones(2, 64, 1, 1, dtype=torch.float16, device=DEVICE)
    w[1] = -1
    y = conv2d(x, w)
    assert bool((y[:, 0] == torch.inf).all())
    assert bool((y[:, 1] == -torch.inf).all())


@pytest.mark.parametrize("batch", [0, 1])
def test_empty_batches_have_empty_results_and_zero_gradients(batch: int) -> None:
    x = random(batch, 3, 8, 8).requires_grad_()
    w, bias = random(4, 3, 3, 3).requires_grad_(), random(4).requires_grad_()
    y = conv2d_pool(x, w, bias, padding=1, activation="relu")
    assert y.shape == (batch, 4, 4, 4)
    grads = torch.autograd.grad(y.sum(), (x, w, bias))
    theirs = plain.max_pool2d(plain.conv2d(x, w, bias, padding=1).relu(), 2)
    torch.testing.assert_close(grads, torch.autograd.grad(theirs.sum(), (x, w, bias)))
    if batch == 0:
        assert not grads[1].any()
        assert not grads[2].any()


@pytest.mark.parametrize("size", [(1, 3, 0, 6), (1, 3, 6, 0)], ids=str)
def test_images_of_no_size_are_refused_as_torch_does(size: tuple[int, ...]) -> None:
    x = torch.zeros(size, device=DEVICE)
    w = torch.zeros(4, 3, 1, 1, device=DEVICE)
    for padding in (0, 1):
        with pytest.raises(RuntimeError) as theirs:
            plain.conv2d(x, w, padding=padding)
        with pytest.raises(RuntimeError) as ours:
            conv2d(x, w, padding=padding)
        assert str(ours.value) == str(theirs.value)
    for compute in (max_pool2d, plain.max_pool2d):
        with pytest.raises(RuntimeError):
            compute(x, 1)


def test_a_hundred_runs_give_the_same_bits() -> None:
    x = random(1, 4, 6, 6, dtype=torch.float16).requires_grad_()
    w = random(8, 4, 3, 3, dtype=torch.float16, seed=1).requires_grad_()
    bias = random(8, dtype=torch.float16, seed=2).requires_grad_()

    def step() -> tuple[Tensor, ...]:
        y = conv2d_pool(x, w, bias, padding=1, activation="relu")
        return y, *torch.autograd.grad(y.float().square().sum(), (x, w, bias))

    first = step()
    for _ in range(REPEATS - 1):
        assert all(torch.equal(one, other) for one, other in zip(first, step(), strict=True))


def test_a_batch_may_grow_under_compile_and_export() -> None:
    layer = tconv.ConvReLUPool2d(3, 8, 3, padding=1).to(DEVICE)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    batch = torch.export.Dim("batch", min=2, max=64)
    shapes = {"input": {0: batch}}
    exported = torch.export.export(layer, (random(3, 3, 8, 8),), dynamic_shapes=shapes).module()
    for size in (2, 5, 7):
        x = random(size, 3, 8, 8, seed=size)
        with recorded() as launches:
            found = compiled(x), exported(x)
        assert len(launches) >= 2
        for y in found:
            torch.testing.assert_close(y, layer(x))


def test_state_dicts_are_exchanged_and_frozen_parts_cost_nothing() -> None:
    theirs = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.MaxPool2d(2)).to(DEVICE)
    ours = torch.nn.Sequential(tconv.Conv2d(3, 4, 3), tconv.MaxPool2d(2)).to(DEVICE)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    x = random(2, 3, 8, 8)
    torch.testing.assert_close(ours(x), theirs(x))
    ours.requires_grad_(False)
    with recorded() as launches:
        ours(x)
    assert written(launches) == {"y"}
    assert not ours(x).requires_grad
    with recorded() as launches:
        torch.autograd.grad(ours(x.requires_grad_()).sum(), x)
    assert "dx" in written(launches)
    assert "dw" not in written(launches)
