"""Which graphs a report lists for a model, and what it says where there is none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import tconv
from tests.tconv.compiler.test_architectures import compiled_twin


class Halves(nn.Module):
    """A pool on each side of a graph break; no parameter and no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.MaxPool2d(2), nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        torch._dynamo.graph_break()
        return self.second(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("model", "lines"),
    [
        (nn.Sequential(nn.MaxPool2d(2)), [["0: max_pool2d"]]),
        (Halves(), [["first: max_pool2d"], ["second: avg_pool2d"]]),
    ],
    ids=["sequential", "broken"],
)
def test_a_model_without_parameters_is_found_by_its_module(
    model: nn.Module, lines: list[list[str]]
) -> None:
    twin, compiled = compiled_twin(model)
    compiled(torch.randn(1, 1, 8, 8))
    for each in (twin, compiled):
        graphs = tconv.report(each).graphs
        assert [list(map(str, graph.entries)) for graph in graphs] == lines
    assert not tconv.report(nn.MaxPool2d(2)).graphs


class Branched(nn.Module):
    """Its forward branches on a value, in a loop, which Dynamo does not capture at all."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            if x.sum() > 0:
                x = self.conv(x)
        return x


def test_where_no_graph_was_captured_the_graph_breaks_are_named() -> None:
    torch._dynamo.utils.counters.clear()
    twin, compiled = compiled_twin(Branched())
    assert str(tconv.report(twin)).startswith("nothing was compiled: call the compiled model first")
    assert "graph break" not in str(tconv.report(twin))
    compiled(torch.zeros(1, 1, 8, 8))
    (_, reason) = str(tconv.report(twin)).splitlines()
    assert reason.startswith("  graph break in this process: Data-dependent branching")
