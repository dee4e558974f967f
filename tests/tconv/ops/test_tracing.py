"""Tests of torch's older tracers and its FLOP counter on a model of our modules."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import tconv
from tconv.launch import recorded


def model(ours: bool) -> nn.Module:
    source: Any = tconv if ours else nn
    torch.manual_seed(0)
    return nn.Sequential(
        source.Conv2d(3, 4, 3, padding=1, groups=1),
        nn.ReLU(),
        source.MaxPool2d(2),
        source.AvgPool2d(2),
        *([tconv.ConvReLUPool2d(4, 4, 1)] if ours else
          [nn.Conv2d(4, 4, 1), nn.ReLU(), nn.MaxPool2d(2)]),
    )  # fmt: skip


def image() -> Tensor:
    return torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.filterwarnings("error", "ignore:`torch.jit.trace:DeprecationWarning")
def test_jit_trace_records_our_operators() -> None:
    """There is no warning, so no size becomes a constant."""
    layers, x = model(ours=True), image()
    traced = torch.jit.trace(layers, x)
    called = [node.kind() for node in traced.inlined_graph.nodes()]
    names = ["conv2d", "max_pool2d", "avg_pool2d", "conv2d_fused"]
    assert [kind for kind in called if "tconv" in kind] == [f"tconv::{name}" for name in names]
    with recorded() as launches:
        torch.testing.assert_close(traced(x), layers(x))
    assert launches
    torch.testing.assert_close(*(
        torch.autograd.grad(compute(x).sum(), layers[0].weight) for compute in (traced, layers)
    ))  # fmt: skip


def test_symbolic_trace_records_our_functions() -> None:
    layers, x = model(ours=True), image()
    graph = torch.fx.symbolic_trace(layers)
    targets = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    functional = tconv.functional
    assert targets == [functional.conv2d, functional.max_pool2d, functional.avg_pool2d,
                       functional.conv2d_fused]  # fmt: skip
    torch.testing.assert_close(graph(x), layers(x))


class Override:
    """An operand whose ``__torch_function__`` returns the call."""

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return function, inspect.signature(function).bind(*args, **kwargs or {}).arguments


@pytest.mark.parametrize("name", tconv.functional.__all__)
def test_any_tensor_overrides_a_function_and_gets_all_its_arguments(name: str) -> None:
    function = getattr(tconv.functional, name)
    parameters = inspect.signature(function).parameters
    tensors = [name for name, each in parameters.items() if "Tensor" in str(each.annotation)]
    for alone in tensors:
        given = {name: None if name in tensors else object() for name in parameters}
        given[alone] = Override()
        assert function(**given) == (function, given)


@pytest.mark.parametrize("backward", [False, True])
def test_flops_are_counted_as_torch_counts_its_own(backward: bool) -> None:
    counts = []
    for ours in (True, False):
        with FlopCounterMode(display=False) as counter:
            y = model(ours)(image().requires_grad_())
            if backward:
                y.sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize(
    "layer", [tconv.Conv2d(3, 4, 3), tconv.MaxPool2d(2), tconv.AvgPool2d(2), tconv.Subsample2d(3)],
    ids=lambda layer: type(layer).__name__,
)  # fmt: skip
def test_jit_script_is_refused_by_name(layer: nn.Module) -> None:
    with pytest.raises(NotImplementedError, match=rf"compile tconv.{type(layer).__name__};"):
        torch.jit.script(nn.Sequential(layer))


def test_an_export_does_not_record_the_reading_of_arguments() -> None:
    """NumPy's integers are read by torch's own parser, in a call that must not be recorded."""
    two = np.int64(2)

    class Strided(nn.Module):
        def forward(self, x: Tensor, w: Tensor) -> Tensor:
            y = tconv.functional.conv2d(x, w, None, (two, two))
            y = tconv.functional.conv_transpose2d(y, w, None, two)
            return tconv.functional.avg_pool2d(y, two)

    program = torch.export.export(Strided(), (image(), torch.ones(3, 3, 3, 3)))
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    names = ["conv2d", "conv_transpose2d", "avg_pool2d"]
    assert [name for name in called if "getitem" not in name] == [
        f"tconv.{name}.default" for name in names
    ]
