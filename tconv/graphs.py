"""CUDA graphs of a model's inference or of a training step: one launch instead of hundreds.

A small network is limited by its launches: a LeNet-5 training step takes a hundred, each of which
costs the host more time than the GPU. A graph replays them all at the cost of one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

WARM_UPS = 3  # runs before capture, which compile kernels and allocate memory
Loss = Callable[[Tensor, Tensor], Tensor]


def graphed(
    model: nn.Module,
    example: Tensor,
    *,
    target: Tensor | None = None,
    loss: Loss | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    autocast: torch.dtype | None = None,
) -> Callable[..., Tensor]:
    """Return a function that replays ``model`` as one CUDA graph, for inputs like ``example``.

    Without further arguments it is inference in evaluation mode: ``run(x)`` returns what
    ``model(x)`` would. With ``target``, ``loss`` and ``optimizer`` it is a training step: ``step(x,
    target)`` computes the loss and the gradients, updates the weights, and returns the loss before
    the update. The result is a copy that later calls do not overwrite.

    The graph reads the weights in place, so changes by an optimizer or ``load_state_dict`` take
    effect. A model that is moved, converted or given new parameters must be captured again.
    Capturing a step changes nothing: weights, buffers and the optimizer's state are restored.

    Args:
        model: a model on a CUDA device.
        example: an input; inputs must have its shape, dtype, device and memory format.
        target: the target of ``example``, for ``loss``.
        loss: a function of the model's output and the target that returns a scalar.
        optimizer: an optimizer of the model's parameters; Adam and its variants need
            ``capturable=True``.
        autocast: the dtype in which the model computes; None for the dtype of its weights.

    Raises:
        ValueError: if ``example`` or the model is not on a CUDA device, or if only some of
            ``target``, ``loss`` and ``optimizer`` are given. The returned function raises it for an
            input of another shape, dtype or device.
    """
    given = [value is not None for value in (target, loss, optimizer)]
    if any(given) and not all(given):
        raise ValueError("a training step takes target, loss and optimizer, all three")
    for name, device in _devices(model, example, target):
        if device.type != "cuda":
            raise ValueError(f"{name} is on {device}: a CUDA graph needs it on a CUDA device")
    if optimizer is not None:
        for group in optimizer.param_groups:
            if group.get("capturable") is False:
                raise ValueError(
                    f"{type(optimizer).__name__} was made with capturable=False, so that no graph "
                    f"can hold its step: make it with capturable=True"
                )
    if target is None or loss is None or optimizer is None:
        return _inference(model, example, autocast)
    return _training_step(model, example, target, loss, optimizer, autocast)


def _devices(
    model: nn.Module, example: Tensor, target: Tensor | None
) -> list[tuple[str, torch.device]]:
    named = [("example", example.device)]
    if target is not None:
        named.append(("target", target.device))
    return named + [(f"parameter {name}", p.device) for name, p in model.named_parameters()]


class Replay:
    """A captured call with fixed input and result tensors, which each call copies to and from."""

    def __init__(self, call: Callable[..., Tensor], examples: tuple[Tensor, ...]) -> None:
        self._inputs = tuple(example.detach().clone() for example in examples)
        self._replay, self._output = captured(lambda: call(*self._inputs), examples[0].device)

    def __call__(self, *inputs: Tensor) -> Tensor:
        if len(inputs) != len(self._inputs):
            wanted = len(self._inputs)
            raise ValueError(f"{len(inputs)} inputs were given, the graph takes {wanted}")
        for given, held in zip(inputs, self._inputs, strict=True):
            if (given.shape, given.dtype, given.device) != (held.shape, held.dtype, held.device):
                raise ValueError(
                    f"input is {_described(given)}, the graph was captured for {_described(held)}"
                )
            held.copy_(given)
        self._replay()
        return self._output.clone()


def _described(tensor: Tensor) -> str:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return f"{tuple(tensor.shape)} {dtype} on {tensor.device}"


def captured(call: Callable[[], Tensor], device: torch.device) -> tuple[Callable[[], Any], Tensor]:
    """Capture ``call`` on any ``device``; return its replay function and its result tensor."""
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = call()
    return graph.replay, output


def _inference(
    model: nn.Module, example: Tensor, autocast: torch.dtype | None
) -> Callable[..., Tensor]:
    def call(x: Tensor) -> Tensor:
        # A weight cast cached at capture would never be updated, so the autocast cache must be off.
        casting = torch.autocast(
            x.device.type, autocast, enabled=autocast is not None, cache_enabled=False
        )
        with torch.no_grad(), casting:
            result: Tensor = model(x)
        return result

    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        return Replay(call, (example,))
    finally:
        for module, mode in training.items():
            module.training = mode


def _training_step(
    model: nn.Module,
    example: Tensor,
    target: Tensor,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    autocast: torch.dtype | None,
) -> Callable[..., Tensor]:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def step(x: Tensor, wanted: Tensor) -> Tensor:
        casting = torch.autocast(
            x.device.type, autocast, enabled=autocast is not None, cache_enabled=False
        )
        # so that the graph overwrites gradients instead of accumulating them
        for parameter in parameters:
            parameter.grad = None
        with casting:
            value = loss(model(x), wanted)
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return value.detach()

    with torch.no_grad():
        kept = {name: value.clone() for name, value in model.state_dict().items()}
    fresh = not optimizer.state
    before = [] if fresh else [
        {name: value.clone() for name, value in optimizer.state[parameter].items()
         if isinstance(value, Tensor)}
        for parameter in parameters
    ]  # fmt: skip
    replay = Replay(step, (example, target))
    with torch.no_grad():
        for name, value in model.state_dict().items():
            value.copy_(kept[name])
        for place, parameter in enumerate(parameters):
            for name, value in optimizer.state[parameter].items():
                if isinstance(value, Tensor) and fresh:
                    value.zero_()
                elif isinstance(value, Tensor):
                    value.copy_(before[place][name])
    return replay
