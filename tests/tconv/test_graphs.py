"""Tests of CUDA graphs: errors, restored state, and on a GPU the results.

Without a GPU the capture is replaced by a replay that calls the function again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import MagicMock, Mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import tconv
from tconv import graphs
from tconv.compiler import tconv_backend
from tconv.launch import recorded
from tconv.models import lenet5

OPTIMIZERS: list[Callable[..., torch.optim.Optimizer]] = [
    lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),  # has state after the first step
    lambda p: torch.optim.Adagrad(p, lr=0.01),  # has state from the beginning
]


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def captured(
        call: Callable[[], Tensor], device: torch.device
    ) -> tuple[Callable[[], Any], Tensor]:
        for _ in range(graphs.WARM_UPS):
            call()
        output = call()  # a real capture runs nothing; this is an extra run

        def replay() -> None:
            output.copy_(call())

        return replay, output

    monkeypatch.setattr(graphs, "captured", captured)
    monkeypatch.setattr(graphs, "_devices", lambda *_: [])


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 5))


@pytest.mark.usefixtures("without_gpu")
def test_inference_uses_evaluation_mode_and_restores_the_mode() -> None:
    model = network().train()
    model[1].eval()
    run = tconv.graphed(model, torch.zeros(2, 1, 8, 8))
    assert [module.training for module in model] == [True, False, True, True]
    x, other = torch.randn(2, 2, 1, 8, 8)
    first = run(x)
    second = run(other)
    model.eval()
    torch.testing.assert_close(first, model(x))  # a copy that the second call does not change
    torch.testing.assert_close(second, model(other))


@pytest.mark.usefixtures("without_gpu")
def test_a_model_on_our_compiler_backend_is_graphed() -> None:
    model = network().eval()
    compiled = torch.compile(model, backend=tconv_backend, options={"rest": "eager"})
    run = tconv.graphed(compiled, torch.zeros(2, 1, 8, 8))
    x = torch.randn(2, 1, 8, 8)
    with recorded() as launches:
        y = run(x)
    assert launches
    torch.testing.assert_close(y, model(x), atol=1e-5, rtol=1e-4)


@pytest.mark.usefixtures("without_gpu")
@pytest.mark.parametrize("made", range(len(OPTIMIZERS)))
@pytest.mark.parametrize("begun", [False, True])
def test_a_graphed_step_equals_the_step_and_capture_changes_nothing(made: int, begun: bool) -> None:
    x, y = torch.randn(6, 3, 1, 8, 8), torch.randint(0, 5, (6, 3))
    curves = []
    for by_graph in (False, True):
        model = network()
        optimizer = OPTIMIZERS[made](model.parameters())

        def eager(inputs: Tensor, wanted: Tensor, model: nn.Module = model,
                  optimizer: torch.optim.Optimizer = optimizer) -> Tensor:  # fmt: skip
            optimizer.zero_grad()
            value = functional.cross_entropy(model(inputs), wanted)
            value.backward()
            optimizer.step()
            return value.detach()

        losses = [eager(x[place], y[place]) for place in range(2 if begun else 0)]
        step = eager
        if by_graph:
            before = {key: value.clone() for key, value in model.state_dict().items()}
            step = tconv.graphed(
                model, x[0], target=y[0], loss=functional.cross_entropy, optimizer=optimizer
            )
            for key, value in model.state_dict().items():
                assert torch.equal(value, before[key]), key
        losses += [step(x[place], y[place]) for place in range(len(losses), 6)]
        curves.append(torch.stack(losses))
    torch.testing.assert_close(curves[1], curves[0])


def test_models_that_cannot_be_captured_are_refused() -> None:
    model, x = network(), torch.zeros(2, 1, 8, 8)
    with pytest.raises(ValueError, match="example is on cpu: a CUDA graph needs"):
        tconv.graphed(model, x)
    with pytest.raises(ValueError, match="target, loss and optimizer, all three"):
        tconv.graphed(model, x, loss=functional.cross_entropy)


@pytest.mark.usefixtures("without_gpu")
def test_other_inputs_and_optimizers_are_refused() -> None:
    model, x = network(), torch.zeros(2, 1, 8, 8)
    run = tconv.graphed(model, x)
    with pytest.raises(ValueError, match=r"\(3, 1, 8, 8\) float32 on cpu.*\(2, 1, 8, 8\)"):
        run(torch.zeros(3, 1, 8, 8))
    with pytest.raises(ValueError, match="float64"):
        run(x.double())
    with pytest.raises(ValueError, match="2 inputs were given"):
        run(x, x)
    adam = torch.optim.Adam(model.parameters())
    target = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="capturable=True"):
        tconv.graphed(model, x, target=target, loss=functional.cross_entropy, optimizer=adam)


def test_a_graph_is_captured_on_the_models_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams and graphs are made on the current device, which may be another GPU."""
    current, seen = [torch.device("cuda", 0)], []

    @contextlib.contextmanager
    def device(chosen: torch.device) -> Iterator[None]:
        current.append(chosen)
        yield
        current.pop()

    def made(*_: object) -> Mock:
        seen.append(current[-1])
        return MagicMock()

    for name in ("Stream", "current_stream", "stream", "CUDAGraph", "graph"):
        monkeypatch.setattr(torch.cuda, name, made)
    monkeypatch.setattr(torch.cuda, "device", device)
    second = torch.device("cuda", 1)
    graphs.captured(lambda: made() and torch.zeros(1), second)
    assert len(seen) == 6 + graphs.WARM_UPS + 1
    assert set(seen) == {second}
    assert current == [torch.device("cuda", 0)]


@pytest.mark.device
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_graphs_on_a_gpu_equal_eager_results(autocast: torch.dtype | None) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    x = torch.randn(5, 64, 1, 32, 32, device="cuda").to(memory_format=torch.contiguous_format)
    y = torch.randint(0, 10, (5, 64), device="cuda")
    curves = []
    for by_graph in (False, True):
        torch.manual_seed(0)
        model = lenet5().cuda()
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3, capturable=True)

        def eager(inputs: Tensor, wanted: Tensor, model: nn.Module = model,
                  optimizer: torch.optim.Optimizer = optimizer) -> Tensor:  # fmt: skip
            optimizer.zero_grad()
            with torch.autocast("cuda", autocast, enabled=autocast is not None):
                value = functional.cross_entropy(model(inputs), wanted)
            value.backward()
            optimizer.step()
            return value.detach()

        step = eager
        if by_graph:
            step = tconv.graphed(model, x[0], target=y[0], loss=functional.cross_entropy,
                                 optimizer=optimizer, autocast=autocast)  # fmt: skip
        curves.append(torch.stack([step(x[place], y[place]) for place in range(5)]))
        if by_graph:
            run = tconv.graphed(model, x[0])
            with torch.no_grad():
                torch.testing.assert_close(run(x[1]), model.eval()(x[1]), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(curves[1], curves[0], rtol=2e-3, atol=2e-3)
