"""Tests that every function accepts and refuses the same arguments as torch's parser.

They use the meta device, where nothing is computed; an accepted value shows in the result's shape.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tconv
from tconv import functional as ours
from tconv.ops.arguments import read

theirs = nn.functional
SHAPE, FILTER = torch.empty(1, 4, 9, 9, device="meta"), torch.empty(4, 2, 3, 3, device="meta")
X = torch.randn(1, 4, 9, 9, generator=torch.Generator().manual_seed(0))
W = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(1))


class Two:
    """An object that is not a number but has ``__index__``."""

    def __index__(self) -> int:
        return 2


# By name, since most values look alike in test ids.
VALUES: dict[str, Any] = {
    "2": 2, "0": 0, "-1": -1, "2.0": 2.0, "True": True, "None": None, "2**40": 2**40,
    "2**70": 2**70, "'same'": "same", "'other'": "other", "bytes": b"valid", "set": {2},
    "range": range(2, 4), "iterator": iter([2, 2]), "dict": {}, "complex": 2j,
    "(2, 2)": (2, 2), "[2, 2]": [2, 2], "(2,)": (2,), "[2]": [2], "()": (), "(2, 2, 2)": (2, 2, 2),
    "Size": torch.Size([2, 2]), "(2.0, 2.0)": (2.0, 2.0), "(2, 2.0)": (2, 2.0),
    "(2.0, 2)": (2.0, 2), "(True, 2)": (True, 2), "(2, True)": (2, True), "(2**70, 2)": (2**70, 2),
    "(2, None)": (2, None), "((2,), 2)": ((2,), 2),
    "int64": np.int64(2), "int32": np.int32(2), "uint8": np.uint8(2), "float64": np.float64(2),
    "bool_": np.bool_(True), "array([2, 2])": np.array([2, 2]), "array([2.0])": np.array([2.0]),
    "(int64, 2)": (np.int64(2), 2), "(2, int64)": (2, np.int64(2)), "(int64,)": (np.int64(2),),
    "(float64, 2)": (np.float64(2), 2), "(2, bool_)": (2, np.bool_(True)),
    "tensor(2)": torch.tensor(2), "tensor(2.0)": torch.tensor(2.0),
    "tensor([2])": torch.tensor([2]), "tensor([1, 1])": torch.tensor([1, 1]),
    "(tensor(2), 2)": (torch.tensor(2), 2),
    "(2, tensor(2))": (2, torch.tensor(2)), "(2, tensor(2.0))": (2, torch.tensor(2.0)),
    "(2, tensor([2, 2]))": (2, torch.tensor([2, 2])), "(Two(), 2)": (Two(), 2),
}  # fmt: skip

Compute = Callable[[Any, Any], Any]
ARGUMENTS: dict[str, Compute] = {
    "conv2d stride": lambda f, v: f.conv2d(SHAPE, FILTER, None, v, 1, 1, 2),
    "conv2d padding": lambda f, v: f.conv2d(SHAPE, FILTER, None, 1, v, 1, 2),
    "conv2d dilation": lambda f, v: f.conv2d(SHAPE, FILTER, None, 1, 1, v, 2),
    "conv2d groups": lambda f, v: f.conv2d(SHAPE, FILTER, groups=v),
    "conv2d input": lambda f, v: f.conv2d(v, FILTER, groups=2),
    "conv2d weight": lambda f, v: f.conv2d(SHAPE, v, groups=2),
    "conv2d bias": lambda f, v: f.conv2d(SHAPE, FILTER, v, groups=2),
    "max_pool2d kernel_size": lambda f, v: f.max_pool2d(SHAPE, v),
    "max_pool2d stride": lambda f, v: f.max_pool2d(SHAPE, 3, v),
    "max_pool2d padding": lambda f, v: f.max_pool2d(SHAPE, 5, 2, v),
    "max_pool2d dilation": lambda f, v: f.max_pool2d(SHAPE, 3, 2, 0, v),
    "max_pool2d ceil_mode": lambda f, v: f.max_pool2d(SHAPE, 2, ceil_mode=v),
    "max_pool2d return_indices": lambda f, v: f.max_pool2d(SHAPE, 2, return_indices=v),
    "max_pool2d indices' ceil_mode": lambda f, v: f.max_pool2d(SHAPE, 2, 2, 0, 1, v, True),
    "max_pool2d input": lambda f, v: f.max_pool2d(v, 2),
    "avg_pool2d kernel_size": lambda f, v: f.avg_pool2d(SHAPE, v),
    "avg_pool2d stride": lambda f, v: f.avg_pool2d(SHAPE, 3, v),
    "avg_pool2d padding": lambda f, v: f.avg_pool2d(SHAPE, 5, 2, v),
    "avg_pool2d ceil_mode": lambda f, v: f.avg_pool2d(SHAPE, 2, ceil_mode=v),
    "avg_pool2d count_include_pad": lambda f, v: f.avg_pool2d(SHAPE, 3, 1, 1, False, v),
    "avg_pool2d divisor_override": lambda f, v: f.avg_pool2d(SHAPE, 2, divisor_override=v),
    "avg_pool2d input": lambda f, v: f.avg_pool2d(v, 2),
}  # fmt: skip


def outcome(compute: Compute, functions: Any, value: Any) -> Any:
    try:
        return compute(functions, value)
    except Exception as error:
        return error


def shapes(result: Any) -> list[torch.Size]:
    return [tensor.shape for tensor in (result if isinstance(result, tuple) else (result,))]


def opening(error: Exception) -> str:
    """Return an error's message without argument position, argument list and torch's stack."""
    first = str(error).splitlines()[0].split(" - got")[0]
    return re.sub(r" \(position \d+\)", "", first)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_accepts_what_torch_accepts(name: str) -> None:
    compute = ARGUMENTS[name]
    for label, value in VALUES.items():
        if isinstance(value, Tensor) and name.split()[1] in ("input", "weight", "bias"):
            continue  # an operand of a wrong shape
        if label == "2**40" and "pool" in name:
            continue  # refused by torch's kernels, not by its parser
        if label in ("0", "-1", "()", "(2, 2, 2)") and name.startswith("conv2d"):
            continue  # not checked by torch's meta implementation
        result, wanted = (outcome(compute, functions, value) for functions in (ours, theirs))
        if not isinstance(wanted, Exception):
            assert not isinstance(result, Exception), f"{label}: torch computes, not {result!r}"
            assert shapes(result) == shapes(wanted), label
            continue
        assert type(result) is type(wanted), f"{label}: torch raises {wanted!r}, not {result!r}"
        if isinstance(wanted, (TypeError, ValueError)):  # its message without the long list
            assert opening(result) == opening(wanted), label


@pytest.mark.parametrize("value", [Two(), np.array(2)], ids=["Two()", "array(2)"])
def test_scalars_that_torchs_parser_fails_on_are_accepted(value: Any) -> None:
    """torch 2.13 fails an internal assertion on them where it expects several numbers."""
    torch.testing.assert_close(ours.conv2d(X, W, None, value, groups=2),
                               theirs.conv2d(X, W, None, 2, groups=2))  # fmt: skip
    torch.testing.assert_close(ours.max_pool2d(X, value), theirs.max_pool2d(X, 2))


@pytest.mark.parametrize(("good", "bad"), [(2, 2.0), ((2, 2), (2.0, 2.0)), (1, True)], ids=str)
def test_a_refused_call_does_not_affect_the_next(good: Any, bad: Any) -> None:
    """2 == 2.0 and 1 == True, so a cache that compares keys with == must get only ints."""
    calls: list[Compute] = [
        lambda f, v: f.conv2d(SHAPE, FILTER, stride=v, groups=2),
        lambda f, v: f.conv2d(SHAPE, FILTER, padding=v, groups=2),
        lambda f, v: f.conv2d(SHAPE, FILTER, dilation=v, groups=2),
        lambda f, v: f.conv2d_pool(SHAPE, FILTER, stride=v, groups=2),
        lambda f, v: f.max_pool2d(SHAPE, v),
        lambda f, v: f.avg_pool2d(SHAPE, v),
    ]
    for call in calls:
        for _ in range(2):
            with pytest.raises(TypeError):
                call(ours, bad)
            assert isinstance(call(ours, good), Tensor)


@pytest.mark.parametrize("stride", [10, 2**31, 2**40, 2**62], ids=str)
def test_huge_strides_equal_the_smallest_stride_with_one_output(stride: int) -> None:
    x, w = X[..., :4, :4].clone().requires_grad_(), W.clone().requires_grad_()
    expected = theirs.conv2d(x, w, None, 3, 0, 1, 2)
    y = ours.conv2d(x, w, None, stride, 0, 1, 2)
    torch.testing.assert_close(y, expected)
    for mine, wanted in zip(torch.autograd.grad(y.sum(), (x, w)),
                            torch.autograd.grad(expected.sum(), (x, w)), strict=True):  # fmt: skip
        torch.testing.assert_close(mine, wanted)


@pytest.mark.parametrize("name", ["max_pool2d", "avg_pool2d"])
def test_pools_take_numbers_of_31_bits(name: str) -> None:
    for functions in (ours, theirs):
        with pytest.raises(RuntimeError, match="cannot be converted to type int without overflow"):
            getattr(functions, name)(X, 2, 2**40)


@pytest.mark.parametrize("value", [(), (2, 2, 2), 0, -1], ids=str)
@pytest.mark.parametrize("name", ["stride", "padding", "dilation"])
def test_convolutions_take_one_number_or_two(name: str, value: Any) -> None:
    if (name, value) == ("padding", 0):
        return
    pairs = "to be a single integer value or a list of 2"
    words = pairs if isinstance(value, tuple) else "positive|greater|negative"
    for functions in (ours, theirs):
        with pytest.raises(RuntimeError, match=words):
            functions.conv2d(X, W, groups=2, **{name: value})


def test_a_filter_of_one_element_has_no_gaps() -> None:
    one = W[..., :1, :1]
    torch.testing.assert_close(ours.conv2d(X, one, dilation=2**40, groups=2),
                               theirs.conv2d(X, one, groups=2))  # fmt: skip


def test_errors_name_the_function() -> None:
    for name in ("max_pool2d", "avg_pool2d"):
        with pytest.raises(TypeError, match=rf"^{name}\(\): argument 'kernel_size'"):
            getattr(ours, name)(X, 2.0)
    with pytest.raises(RuntimeError, match=r"^avg_pool2d: padding must either be a single int"):
        ours.avg_pool2d(X, 3, padding=(1, 1, 1))


def test_modules_accept_what_torchs_accept() -> None:
    two = np.int64(2)
    layers = [
        (tconv.MaxPool2d(two, stride=two), nn.MaxPool2d(2)),
        (tconv.AvgPool2d((two, 2)), nn.AvgPool2d(2)),
    ]
    for mine, wanted in layers:
        torch.testing.assert_close(mine(X), wanted(X))
    convolution = tconv.Conv2d(4, 4, 3, stride=two, padding=(np.int32(1), 1))
    plain = nn.Conv2d(4, 4, 3, stride=2, padding=1)
    plain.load_state_dict(convolution.state_dict())
    torch.testing.assert_close(convolution(X), plain(X))


def test_parsing_computes_nothing() -> None:
    """The parser's stand-in tensors are empty, so torch computes no convolution."""
    numbers = read(torch.conv2d, X, W, None, np.int64(2), (1, torch.tensor(0)), 1, np.int32(2))
    assert numbers == [[2, 2], [1, 0], [1, 1], False, [0, 0], 2]
    assert read(torch.max_pool2d, X, 2, (), 0, 1, True) == [[2, 2], [], [0, 0], [1, 1], True]
