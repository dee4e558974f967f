"""Reading of calls: every spelling of an operation has one name."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import tconv
from tconv.compiler.calls import mutates, read
from tconv.compiler.chains import unserved
from tests.tconv.compiler.test_architectures import trained_alike

Function = Callable[..., Any]
SPELLINGS: dict[str, list[Function]] = {
    "relu": [F.relu, torch.relu, lambda x: x.relu(), torch.ops.aten.relu.default],
    "sigmoid": [F.sigmoid, torch.sigmoid, torch.special.expit, lambda x: x.sigmoid()],
    "tanh": [F.tanh, torch.tanh, lambda x: x.tanh()],
    "relu6": [
        F.relu6,
        lambda x: F.hardtanh(x, 0, 6),
        lambda x: F.hardtanh(x, max_val=6, min_val=0),
    ],
    "hardtanh": [F.hardtanh, lambda x: F.hardtanh(x, 0, 5)],
    "silu": [F.silu, torch.ops.aten.silu.default],
    "add": [operator.add, torch.add, lambda x, y: x.add(y), lambda x, y: x + y],
    "leaky_relu": [F.leaky_relu, lambda x: F.leaky_relu(x, negative_slope=0.3)],
    "gelu": [F.gelu, lambda x: F.gelu(x, approximate="tanh")],
}
IN_PLACE: dict[str, list[Function]] = {
    "relu": [torch.relu_, lambda x: x.relu_(), lambda x: F.relu(x, inplace=True)],
    "sigmoid": [torch.sigmoid_, lambda x: x.sigmoid_()],
    "silu": [lambda x: F.silu(x, inplace=True), torch.ops.aten.silu_.default],
    "add": [operator.iadd, lambda x, y: x.add_(y)],
    "leaky_relu": [F.leaky_relu_, lambda x: F.leaky_relu(x, 0.1, True)],
}


def traced(function: Function, operands: int) -> fx.Node:
    """The node of the one call that ``function`` makes."""
    graph = fx.Graph()
    tracer = fx.proxy.GraphAppendingTracer(graph)
    proxies = [fx.Proxy(graph.placeholder(f"x{i}"), tracer) for i in range(operands)]
    plain = isinstance(function, torch._ops.OpOverload) or function in (operator.add, operator.iadd)
    if plain:
        return graph.call_function(function, tuple(proxy.node for proxy in proxies))
    node: fx.Node = function(*proxies).node
    return node


@pytest.mark.parametrize("inplace", [False, True])
def test_every_spelling_has_one_name(inplace: bool) -> None:
    for name, ways in (IN_PLACE if inplace else SPELLINGS).items():
        for way in ways:
            node = traced(way, 2 if name == "add" else 1)
            call = read(node)
            assert call is not None, (name, node.target)
            assert (call.name, bool(call["inplace"])) == (name, inplace), node.target
            assert mutates(node) == inplace


class Written(nn.Module):
    """The same kinds of links as functions, methods and operators, partly in place."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(2, 2, 3, padding=1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu_(self.convs[0](x))
        x = (self.convs[1](x) + x).tanh()
        x = torch.add(x, self.convs[2](x)).sigmoid_()
        y = self.convs[3](x)
        y += x  # as in ResNet: it does not overwrite x, the result of the last chain
        return F.silu(y, inplace=True)


def test_links_are_fused_however_they_are_written() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    twin = trained_alike(Written().double(), x, lambda y: y.square().sum())
    (graph,) = tconv.report(twin).graphs
    assert [entry.fused for entry in graph.entries] == [
        ("relu",), ("add", "tanh"), ("add", "sigmoid"), ("add", "silu")
    ]  # fmt: skip


def quantized() -> Tensor:
    with warnings.catch_warnings():  # deprecated in torch, but still possible
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.zeros(1, 1, 3, 3), 0.1, 0, torch.quint8)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (torch.zeros(1, 1, 3, 3).to_sparse(), "its input is torch.sparse_coo"),
        (quantized(), "its input is torch.quint8"),
        (torch.zeros(1, 1, 3, 3, dtype=torch.complex64), "its input is torch.complex64"),
        (torch.zeros(1, 1, 3, 3, dtype=torch.int8), "its input is torch.int8"),
        (torch.zeros(1, 1, 3, 3, device="meta"), "its input is on meta"),
        (torch.zeros(1, 1, 3, 3), None),
    ],
    ids=["sparse", "quantized", "complex", "integer", "meta", "float"],
)
def test_tensors_that_are_not_served_are_named(value: Tensor, reason: str | None) -> None:
    node = traced(lambda x, w: torch.conv2d(x, w), 2)
    for operand, shown in zip(node.args, (value, torch.zeros(1, 1, 3, 3)), strict=True):
        assert isinstance(operand, fx.Node)
        operand.meta["val"] = shown
    call = read(node)
    assert call is not None
    assert unserved(call, node) == reason
