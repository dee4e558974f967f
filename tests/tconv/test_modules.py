"""Tests that the modules are drop-in replacements for torch's."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

import tconv
from tconv.launch import recorded
from tests.devices import DEVICE, written

ARGUMENTS: dict[str, dict[str, Any]] = {
    "plain": {"in_channels": 3, "out_channels": 5, "kernel_size": 3},
    "all": {
        "in_channels": 4, "out_channels": 6, "kernel_size": (3, 2), "stride": (2, 1),
        "padding": (1, 0), "dilation": (1, 2), "groups": 2, "bias": False,
    },
    "same": {"in_channels": 2, "out_channels": 3, "kernel_size": 4, "padding": "same"},
    "reflect": {
        "in_channels": 2, "out_channels": 3, "kernel_size": 3, "padding": 1,
        "padding_mode": "reflect",
    },
    "circular-same": {
        "in_channels": 2, "out_channels": 3, "kernel_size": 4, "padding": "same",
        "padding_mode": "circular",
    },
    "float64": {"in_channels": 2, "out_channels": 3, "kernel_size": 3, "dtype": torch.float64},
}  # fmt: skip


@pytest.mark.parametrize("name", ARGUMENTS)
def test_conv2d_is_torchs(name: str) -> None:
    arguments = ARGUMENTS[name]
    theirs, ours = (
        torch.nn.Conv2d(**arguments, device=DEVICE),
        tconv.Conv2d(**arguments, device=DEVICE),
    )
    assert isinstance(ours, torch.nn.Conv2d)
    assert ours.load_state_dict(theirs.state_dict()) == theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, arguments["in_channels"], 7, 9, dtype=theirs.weight.dtype, device=DEVICE)
    with recorded() as log:
        y = ours(x)
        y.square().sum().backward()
    assert written(log) == {"y", "dw"}
    expected = theirs(x)
    expected.square().sum().backward()
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-5, atol=1e-4)


def test_max_pool2d_is_torchs() -> None:
    for arguments in ({"kernel_size": 2}, {"kernel_size": 3, "stride": 2, "padding": 1}):
        x = torch.randn(2, 3, 9, 8, device=DEVICE)
        with recorded() as log:
            y = tconv.MaxPool2d(**arguments)(x)
        assert log
        assert torch.equal(y, torch.nn.MaxPool2d(**arguments)(x))
    y, indices = tconv.MaxPool2d(2, return_indices=True)(x)
    assert torch.equal(indices, torch.nn.MaxPool2d(2, return_indices=True)(x)[1])


def test_copies_and_pickles() -> None:
    layer = tconv.Conv2d(2, 3, 3, device=DEVICE)
    x = torch.randn(1, 2, 5, 5, device=DEVICE)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))


def test_exports() -> None:
    layer = torch.nn.Sequential(tconv.Conv2d(2, 3, 3), torch.nn.ReLU(), tconv.MaxPool2d(2)).to(
        DEVICE
    )
    x = torch.randn(1, 2, 8, 8, device=DEVICE)
    program = torch.export.export(layer, (x,))
    assert "tconv.conv2d.default" in str(program.graph)
    torch.testing.assert_close(program.module()(x), layer(x))


def test_parametrized_pruned_and_hooked() -> None:
    layer = torch.nn.utils.parametrizations.weight_norm(tconv.Conv2d(2, 3, 3, device=DEVICE))
    seen: list[torch.Size] = []
    layer.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    layer(torch.randn(1, 2, 5, 5, device=DEVICE)).sum().backward()
    assert seen == [torch.Size([1, 3, 3, 3])]
