"""How an operator is tied to its implementation and its gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad as fwAD
from torch.nn import Parameter

DEVICES = ("cpu", "cuda")  # the interpreter's, or torch's own operators; Triton's


def register(
    library: torch.library.Library,
    name: str,
    implementation: Callable[..., Any],
    backward: Callable[..., Any],
    save: Callable[[Any, tuple[Any, ...], Any], None],
) -> None:
    """Give ``tconv::name`` its implementation and its gradient.

    ``save`` keeps what ``backward`` will need. As ``torch.library.register_autograd``, at a
    third of its cost for each call: a network of small layers spends more of its time on the
    host than on the GPU.
    """
    operator = getattr(torch.ops.tconv, name).default

    class Differentiable(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            output = below(*inputs)
            save(ctx, inputs, output)
            return output

    Differentiable.backward = staticmethod(backward)  # type: ignore[method-assign]

    def below(*inputs: Any) -> Any:
        """What the dispatcher comes to below autograd."""
        with torch._C._AutoDispatchBelowAutograd():
            if torch._C._are_functorch_transforms_active():
                # This level's gradient is taken; those of the levels below are still to be.
                with torch.enable_grad(), fwAD._set_fwd_grad_enabled(True):
                    return operator(*inputs)
            # A second round through the dispatcher, only where something may be listening.
            return implementation(*inputs) if _plain(inputs) else operator(*inputs)

    def dispatch(*inputs: Any) -> Any:
        if torch._C._are_functorch_transforms_active():
            # The dispatcher is at one level of a transform: the gradient is that level's alone,
            # which torch's own ``apply`` does not know.
            with enable_single_level_autograd_function():
                return super(torch.autograd.Function, Differentiable).apply(*inputs)  # type: ignore[no-untyped-call]
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*inputs):
            return Differentiable.apply(*inputs)  # type: ignore[no-untyped-call]
        return below(*inputs)

    for device in DEVICES:
        library.impl(name, implementation, device.upper())
    library.impl(name, dispatch, "Autograd")


def register_autocast(library: torch.library.Library, name: str, cast: int | None = None) -> None:
    """Under autocast the operands are cast to its dtype, all but float64, as for torch's own.

    With ``cast``, only so many of the first.
    """
    operator = getattr(torch.ops.tconv, name).default
    for device in DEVICES:
        key = f"Autocast{device.upper()}"
        excluded = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

        def dispatch(*inputs: Any, device: str = device, excluded: Any = excluded) -> Any:
            dtype = torch.get_autocast_dtype(device)
            with torch._C._ExcludeDispatchKeyGuard(excluded):
                first = (_cast(value, dtype) for value in inputs[:cast])
                return operator(*first, *(() if cast is None else inputs[cast:]))

        library.impl(name, dispatch, key)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    return value if value.dtype == torch.float64 else value.to(dtype)


def _plain(inputs: tuple[Any, ...]) -> bool:
    """Whether these are memory on a device and no mode (tracing, counting) is active."""
    if torch._C._len_torch_dispatch_stack():
        return False
    for value in inputs:  # a loop: each call of the operator waits for this
        kind = type(value)
        if kind is Tensor or kind is Parameter:
            if value.device.type not in DEVICES:
                return False
        elif isinstance(value, Tensor):
            return False
    return True
