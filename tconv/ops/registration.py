"""How an operator is tied to its implementation and its derivatives, in reverse and forward."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad as fwAD
from torch.nn import Parameter

Inputs = tuple[Any, ...]
Jvp = Callable[[Inputs, Any, Inputs], Any]
DEVICES = ("cpu", "cuda")  # the interpreter's, or torch's own operators; Triton's


def register(
    library: torch.library.Library,
    name: str,
    implementation: Callable[..., Any],
    backward: Callable[..., Any],
    save: Callable[[Any, tuple[Any, ...], Any], None],
    jvp: Jvp | None = None,
) -> None:
    """Give ``tconv::name`` its implementation and its derivatives.

    ``torch.library.register_autograd`` does the same at three times the cost for each call, and
    without forward mode: a network of small layers spends more of its time on the host than on
    the GPU.

    Args:
        library: where the operator is defined.
        name: of the operator.
        implementation: what computes it.
        backward: the gradient of the inputs from that of the output, as ``torch.autograd.Function``
            has it; a gradient is None where it is zero for want of one.
        save: keeps what ``backward`` will need.
        jvp: the tangent of the output (one for each, None for integers) from the inputs, the
            output, and the tangents of the inputs, None where an input has none. It is composed
            of differentiable operators, so that it can itself be differentiated. Without it, a
            tangent raises NotImplementedError.
    """
    operator = getattr(torch.ops.tconv, name).default
    arguments = len(operator._schema.arguments)

    class Differentiable(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            output = below(*inputs)
            ctx.set_materialize_grads(False)
            save(ctx, inputs, output)
            if fwAD._current_level >= 0:
                # Detached, since a context that held its own output would never be freed.
                ctx.primals = inputs, _detached(output)
            return output

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            if all(gradient is None for gradient in gradients):
                return (None,) * arguments
            return backward(ctx, *gradients)

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> Any:
            inputs, output = ctx.primals
            del ctx.primals
            if jvp is None:
                raise NotImplementedError(f"tconv::{name} has no derivative in forward mode")
            return jvp(inputs, output, tangents)

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
        if (torch.is_grad_enabled() and torch._C._any_requires_grad(*inputs)) or (
            fwAD._current_level >= 0 and any(map(_has_tangent, inputs))
        ):
            return Differentiable.apply(*inputs)  # type: ignore[no-untyped-call]
        return below(*inputs)

    for device in DEVICES:
        library.impl(name, implementation, device.upper())
    library.impl(name, dispatch, "Autograd")
    register_vmap(library, name)


def register_vmap(library: torch.library.Library, name: str) -> None:
    """Under ``torch.func.vmap`` the operator computes one sample after the other."""
    operator = getattr(torch.ops.tconv, name).default
    torch.library.register_vmap(operator, partial(_each, operator), lib=library)


def _each(operator: Any, info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> Any:
    """The operator under ``vmap``: of each sample in turn; of none, the result is empty."""
    samples: list[Any] = []
    for index in range(info.batch_size):
        operands = [
            value.select(dim, index) if isinstance(value, Tensor) and dim is not None else value
            for value, dim in zip(inputs, in_dims, strict=True)
        ]
        samples.append(operator(*operands))
    if not samples:
        one = operator(*map(_meta_sample, inputs, in_dims))
        device = next(value.device for value in inputs if isinstance(value, Tensor))
        parts = (one,) if isinstance(one, Tensor) else one
        empty = [torch.empty((0, *part.shape), dtype=part.dtype, device=device) for part in parts]
        return (empty[0], 0) if isinstance(one, Tensor) else (tuple(empty), (0,) * len(empty))
    if isinstance(samples[0], Tensor):
        return torch.stack(samples), 0
    stacked = tuple(torch.stack(parts) for parts in zip(*samples, strict=True))
    return stacked, (0,) * len(stacked)


def _meta_sample(value: Any, dim: int | None) -> Any:
    """A sample of a batch that has none, for its size alone."""
    if not isinstance(value, Tensor):
        return value
    size = [extent for place, extent in enumerate(value.shape) if place != dim]
    return torch.empty(size, dtype=value.dtype, device="meta")


def _detached(output: Any) -> Any:
    return output.detach() if isinstance(output, Tensor) else tuple(map(Tensor.detach, output))


def _has_tangent(value: Any) -> bool:
    return isinstance(value, Tensor) and fwAD.unpack_dual(value).tangent is not None


def differentiates(*tensors: Tensor | None) -> bool:
    """Whether a derivative of these may be asked for, in reverse or forward.

    Of a traced call it may: the graph is used with gradients and without.
    """
    if fwAD._current_level >= 0 or torch._C._get_tracing_state() is not None:
        return True
    if torch.compiler.is_compiling():  # Dynamo traces attributes, not this C function
        return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    return torch.is_grad_enabled() and torch._C._any_requires_grad(*tensors)


def linear(name: str) -> Jvp:
    """The tangent of ``tconv::name``, linear in its first input and constant in the others."""

    def jvp(inputs: Inputs, output: Any, tangents: Inputs) -> Any:
        if tangents[0] is None:
            one = isinstance(output, Tensor)
            return torch.zeros_like(output) if one else tuple(map(torch.zeros_like, output))
        return getattr(torch.ops.tconv, name)(tangents[0], *inputs[1:])

    return jvp


def bilinear(name: str) -> Jvp:
    """The tangent of ``tconv::name``, which is linear in each of its first two inputs."""

    def jvp(inputs: Inputs, output: Any, tangents: Inputs) -> Any:
        operator = getattr(torch.ops.tconv, name)
        (first, second, *rest), parts = inputs, []
        if tangents[0] is not None:
            parts.append(operator(tangents[0], second, *rest))
        if tangents[1] is not None:
            parts.append(operator(first, tangents[1], *rest))
        return sum(parts[1:], parts[0])

    return jvp


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
