"""Find the kernels that a model needs by running a copy of it on tensors without memory."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from tconv.geometry import Pass
from tconv.launch import Launch, planning
from tconv.ops.registration import IMPLEMENTATIONS
from tconv.plan_caches import forget_plans
from tconv.target import Target

GRADIENTS: dict[str, Pass] = {"dx": "dgrad", "dw": "wgrad"}  # a launch's result, and its pass

Plans = list[tuple[Launch, ...]]


def shell(model: nn.Module, of: Callable[[Tensor], Tensor]) -> nn.Module:
    """Return a copy of ``model`` with ``of(tensor)`` for each parameter and buffer.

    No weights are copied, so that a copy on the meta device takes no memory.
    """
    memo: dict[int, object] = {}
    for parameter in model.parameters():
        made = nn.Parameter(of(parameter.detach()), requires_grad=parameter.requires_grad)
        memo[id(parameter)] = made
    for buffer in model.buffers():
        memo[id(buffer)] = of(buffer)
    return copy.deepcopy(model, memo)


class _Planner(TorchDispatchMode):
    """Has each of our operators plan its launches for ``target``; runs all others as they are."""

    def __init__(self, target: Target, fake: FakeTensorMode) -> None:
        super().__init__()
        self.plans: Plans = []
        self._target, self._fake = target, fake

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        implementation = IMPLEMENTATIONS.get(func)
        if implementation is None:
            return func(*args, **(kwargs or {}))
        # A tensor that the model holds beside its parameters and buffers is a real one.
        inputs = tree_map_only(Tensor, self._fake.from_tensor, args)
        with planning(self._target, self.plans):
            return implementation(*inputs)


def plans_of(
    model: nn.Module,
    size: Sequence[int],
    passes: Sequence[Pass],
    target: Target,
    dtype: torch.dtype | None = None,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Plans:
    """Return the plans of one call of ``model``, and of its backward pass where ``passes`` ask.

    Nothing is computed, and the model stays as it is.

    Args:
        model: any module that takes one tensor.
        size: the input's shape.
        passes: ``fprop`` is the call; ``dgrad`` and ``wgrad`` are the parts of its backward pass
            that lead to gradients of inputs and of filters.
        target: the GPU to plan for.
        dtype: of parameters, buffers and input; None for the model's own.
        memory_format: the input's.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    gradients = any(direction != "fprop" for direction in passes)

    def converted(tensor: Tensor) -> Tensor:
        if tensor.is_meta:  # a model without memory is planned as one on the CPU
            with fake:
                tensor = torch.empty_like(tensor, device="cpu")
        found = fake.from_tensor(tensor)
        return found.to(dtype) if dtype is not None and found.is_floating_point() else found

    ghost = shell(model, converted)
    with fake, _Planner(target, fake) as planner, torch.set_grad_enabled(gradients):
        like = next((p for p in ghost.parameters() if p.is_floating_point()), None)
        given = torch.get_default_dtype() if like is None else like.dtype
        device = "cpu" if like is None else like.device
        x = torch.empty(tuple(size), dtype=dtype or given, device=device)
        if len(size) == 4:
            x = x.contiguous(memory_format=memory_format)
        y = ghost(x.requires_grad_("dgrad" in passes))
        forward = list(planner.plans) if "fprop" in passes else []
        planner.plans.clear()
        if gradients:
            _run_backward(y, [x, *ghost.parameters()])
    return forward + list(_of_passes(planner.plans, passes))


def _run_backward(result: Any, inputs: Iterable[Tensor]) -> None:
    outputs = [each for each in tree_leaves(result) if isinstance(each, Tensor)]
    outputs = [each for each in outputs if each.requires_grad]
    wanted = [each for each in inputs if each.requires_grad]
    if outputs and wanted:
        ones = [torch.ones_like(each) for each in outputs]
        torch.autograd.grad(outputs, wanted, ones, allow_unused=True)


def _of_passes(plans: Plans, passes: Sequence[Pass]) -> Iterator[tuple[Launch, ...]]:
    """Yield the plans that ``passes`` need; those of a bias or an activation serve both."""
    for plan in plans:
        results = {operand.tensor for launch in plan for operand in launch.operands.values()}
        needed = {GRADIENTS[name] for name in results & GRADIENTS.keys()}
        if not needed or needed & set(passes):
            yield plan


def launches_of(plans: Plans) -> list[Launch]:
    """Return one launch for each different kernel of ``plans``, in order."""
    found = {launch.identity: launch for plan in plans for launch in plan}
    return list(found.values())


def planned(
    model: nn.Module,
    sizes: Sequence[Sequence[int]],
    dtypes: Sequence[torch.dtype | None],
    passes: Sequence[Pass],
    target: Target,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> list[Launch]:
    """Return one launch for each kernel that ``model`` needs at ``sizes``; see ``plans_of``."""
    plans: Plans = []
    forget_plans()  # those kept for a device are of the GPU that is there
    try:
        for dtype in dtypes:
            for size in sizes:
                plans += plans_of(model, size, passes, target, dtype, memory_format)
    finally:
        forget_plans()
    return launches_of(plans)
