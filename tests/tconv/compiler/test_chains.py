"""Finding chains: the work grows with the graph, and fused writes no longer stand in the way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx

from tconv.compiler import backend, calls, chains


def tower(convolutions: int) -> fx.GraphModule:
    """A captured graph of so many convolutions, each with an in-place ReLU after it."""
    graph, value = fx.Graph(), torch.empty(1, 4, 8, 8)
    weight = torch.empty(4, 4, 1, 1)
    x, w = graph.placeholder("x"), graph.placeholder("w")
    x.meta["val"], w.meta["val"] = value, weight
    for _ in range(convolutions):
        x = graph.call_function(torch.conv2d, (x, w))
        x.meta["val"] = value = torch.empty_like(value)
        x = graph.call_function(F.relu, (x,), {"inplace": True})
        x.meta["val"] = value
    graph.output(x)
    return fx.GraphModule({}, graph)


def operations(convolutions: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Nodes that fusing looks at: visited in the graph, read, or asked whether they write."""
    count = 0

    def counted(function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            nonlocal count
            count += 1
            return function(*arguments)

        return call

    nodes = fx.graph._node_list
    visit = nodes.__iter__

    def visited(self: Any) -> Iterator[fx.Node]:
        nonlocal count
        for node in visit(self):
            count += 1
            yield node

    graph = tower(convolutions)
    with monkeypatch.context() as patch:
        patch.setattr(nodes, "__iter__", visited)
        patch.setattr(chains, "mutates", counted(calls.mutates))
        patch.setattr(chains, "read", counted(calls.read))
        entries = backend.fuse(graph)
    assert [entry.fused for entry in entries] == [("relu",)] * convolutions
    return count


def test_the_work_grows_with_the_graph_and_not_with_its_square(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few, many = operations(50, monkeypatch), operations(400, monkeypatch)
    assert few > 50
    assert many < 9 * few


def test_a_fused_write_does_not_keep_another_chain_apart() -> None:
    """Two branches in turn: one's in-place ReLU lies between the other's links."""
    graph, value = fx.Graph(), torch.empty(1, 4, 8, 8)
    x, w = graph.placeholder("x"), graph.placeholder("w")
    x.meta["val"], w.meta["val"] = value, torch.empty(4, 4, 1, 1)
    first, second = (graph.call_function(torch.conv2d, (x, w)) for _ in range(2))
    results = [graph.call_function(F.relu, (y,), {"inplace": True}) for y in (first, second)]
    for node in (first, second, *results):
        node.meta["val"] = value
    graph.output(tuple(results))
    entries = backend.fuse(fx.GraphModule({}, graph))
    assert [entry.fused for entry in entries] == [("relu",), ("relu",)]


@pytest.mark.parametrize("write", [True, False])
def test_a_write_between_links_keeps_them_apart(write: bool) -> None:
    graph, value = fx.Graph(), torch.empty(1, 4, 8, 8)
    x, w = graph.placeholder("x"), graph.placeholder("w")
    x.meta["val"], w.meta["val"] = value, torch.empty(4, 4, 1, 1)
    y = graph.call_function(torch.conv2d, (x, w))
    between = graph.call_method("mul_" if write else "mul", (x, 2.0))
    z = graph.call_function(F.relu, (y,))
    for node in (y, between, z):
        node.meta["val"] = value
    graph.output((z, between))
    (entry,) = backend.fuse(fx.GraphModule({}, graph))
    assert entry.fused == (() if write else ("relu",))
