"""Graphs within a graph, and torch's function transforms, compiled by our backend."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import tconv
from tconv.compiler.calls import mutates
from tconv.launch import recorded
from tests.tconv.compiler.test_architectures import compiled_twin, trained_alike


class Checkpointed(nn.Module):
    """The first convolution is computed again in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = checkpoint(lambda x: F.relu(self.first(x)), x, use_reentrant=False)
        return self.second(y)  # type: ignore[no-any-return]


def test_what_a_checkpoint_computes_again_is_served() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    twin = trained_alike(Checkpointed().double(), x, lambda y: y.square().sum())
    (graph,) = tconv.report(twin).graphs
    assert {str(entry) for entry in graph.entries} == {"first: conv2d + relu", "second: conv2d"}


class Either(nn.Module):
    """A branch on a value, each side with a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(  # type: ignore[no-any-return]
            x.sum() > 0, lambda x: F.relu(self.one(x)), lambda x: torch.tanh(self.two(x)), (x,)
        )


@torch.no_grad()
def test_both_sides_of_a_branch_are_served() -> None:
    torch.manual_seed(0)
    model = Either().double()
    twin, compiled = compiled_twin(model)
    x = torch.rand(2, 3, 6, 6, dtype=torch.float64)
    for each, expected in ((x, "relu"), (-x, "tanh")):
        with recorded() as launches:
            y = compiled(each)
        torch.testing.assert_close(y, model(each))
        fused = [launch.constants.get("ACTIVATION") for launch in launches]
        assert [name for name in fused if name] == [expected]
    (graph,) = tconv.report(twin).graphs
    assert [str(entry) for entry in graph.entries] == ["one: conv2d + relu", "two: conv2d + tanh"]


def test_an_inner_graph_writes_if_one_of_its_nodes_does() -> None:
    def graph_of(body: Callable[[Tensor], Tensor]) -> torch.fx.Graph:
        inner = torch.fx.symbolic_trace(body)
        outer = torch.fx.Graph(nn.ModuleDict({"body": inner}))
        x = outer.placeholder("x")
        operator = torch.ops.higher_order.wrap
        outer.output(outer.call_function(operator, (outer.get_attr("body"), x)))
        return outer

    for body, writes in ((lambda x: x.relu(), False), (lambda x: x.relu_(), True)):
        (node,) = [node for node in graph_of(body).nodes if node.op == "call_function"]
        assert mutates(node) == writes


def test_gradients_and_maps_inside_a_compiled_function_equal_torchs() -> None:
    """Per-sample gradients: ``vmap`` of ``grad``, captured as one graph."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LeakyReLU(), nn.Conv2d(4, 2, 3)).double()
    weights = {name: each.detach() for name, each in model.named_parameters()}

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(model, weights, (x[None],)).square().sum()  # type: ignore[no-any-return]

    per_sample = torch.func.vmap(torch.func.grad(loss), (None, 0))
    x = torch.randn(3, 3, 7, 7, dtype=torch.float64)
    compiled = torch.compile(per_sample, backend="tconv", options={"rest": "eager"})
    with recorded() as launches:
        got = compiled(weights, x)
    assert launches
    torch.testing.assert_close(got, per_sample(weights, x))
    assert [entry.fused for entry in tconv.report().graphs[-1].entries] == [("leaky_relu",), ()]


class WriteUnderGrad(nn.Module):
    """As a view of a fused activation's result is overwritten, under ``torch.func.grad``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        def loss(x: Tensor) -> Tensor:
            y = F.leaky_relu(self.conv(x))
            y.view(y.shape)[:, :2].add_(1.0)
            return (y * y).sum()

        return torch.func.grad(loss)(x)  # type: ignore[no-any-return]


def test_a_view_is_recognised_under_a_transform() -> None:
    torch.manual_seed(0)
    model = WriteUnderGrad().double().requires_grad_(False)
    twin, compiled = compiled_twin(model)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(compiled(x), model(x))
    (entry,) = tconv.report(twin).graphs[0].entries
    assert entry.note == "leaky_relu is not fused: its result is overwritten later"
