"""Registration of operators: implementation, and derivatives in reverse and forward mode."""

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
Fold = Callable[..., Tensor | None]
DEVICES = ("cpu", "cuda")  # "cpu" is the interpreter or torch's own operators, "cuda" is Triton
IMPLEMENTATIONS: dict[Any, Callable[..., Any]] = {}  # of each operator, for tensors on a device


def implement(
    library: torch.library.Library, name: str, implementation: Callable[..., Any]
) -> None:
    """Register ``implementation`` of ``tconv::name`` for all devices."""
    IMPLEMENTATIONS[getattr(torch.ops.tconv, name).default] = implementation
    for device in DEVICES:
        library.impl(name, implementation, device.upper())


def register(
    library: torch.library.Library,
    name: str,
    implementation: Callable[..., Any],
    backward: Callable[..., Any],
    save: Callable[[Any, tuple[Any, ...], Any], None],
    jvp: Jvp | None = None,
    fold: Fold | None = None,
) -> None:
    """Register an implementation and derivatives for ``tconv::name``.

    ``torch.library.register_autograd`` does the same at three times the cost per call and without
    forward mode. A network of small layers spends more time on the host than on the GPU.

    Args:
        library: the library that defines the operator.
        name: the operator's name.
        implementation: the function that computes it.
        backward: the inputs' gradients from that of the output, as in ``torch.autograd.Function``;
            None stands for a zero gradient.
        save: stores what ``backward`` needs.
        jvp: the outputs' tangents (None for integer outputs) from the inputs, the output, and the
            inputs' tangents (None if an input has none). It is composed of differentiable
            operators, so that it can itself be differentiated. Without it, a tangent raises
            NotImplementedError.
        fold: computes all samples of ``torch.func.vmap`` in one call, see ``register_vmap``.
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
                # Detached, because a context that holds its own output is never freed.
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
        """The implementation that the dispatcher calls below autograd."""
        with torch._C._AutoDispatchBelowAutograd():
            if torch._C._are_functorch_transforms_active():
                # This level's gradient is recorded; lower levels still need theirs.
                with torch.enable_grad(), fwAD._set_fwd_grad_enabled(True):
                    return operator(*inputs)
            # Dispatch again only if a mode or a subclass may be listening.
            return implementation(*inputs) if _plain(inputs) else operator(*inputs)

    def dispatch(*inputs: Any) -> Any:
        if torch._C._are_functorch_transforms_active():
            # Inside a functorch transform the gradient belongs to one level, which torch's own
            # ``apply`` does not know.
            with enable_single_level_autograd_function():
                return super(torch.autograd.Function, Differentiable).apply(*inputs)  # type: ignore[no-untyped-call]
        if (torch.is_grad_enabled() and torch._C._any_requires_grad(*inputs)) or (
            fwAD._current_level >= 0 and any(map(_has_tangent, inputs))
        ):
            return Differentiable.apply(*inputs)  # type: ignore[no-untyped-call]
        return below(*inputs)

    implement(library, name, implementation)
    library.impl(name, dispatch, "Autograd")
    register_vmap(library, name, fold)


def register_vmap(library: torch.library.Library, name: str, fold: Fold | None = None) -> None:
    """Define the operator under ``torch.func.vmap``: by ``fold``, or sample by sample.

    ``fold`` takes the number of samples, which inputs have samples, and the inputs with the samples
    as first axis. It returns the result with the samples as first axis, or None to have them
    computed one by one.
    """
    operator = getattr(torch.ops.tconv, name).default
    rule = partial(_each, operator) if fold is None else partial(_folded, operator, fold)
    torch.library.register_vmap(operator, rule, lib=library)


def _folded(
    operator: Any, fold: Fold, info: Any, in_dims: tuple[Any, ...], *inputs: Any
) -> tuple[Any, Any]:
    """Apply the operator to all samples at once where ``fold`` can, otherwise to each of them."""
    if info.batch_size:
        batched = tuple(dim is not None for dim in in_dims)
        moved = (
            value.movedim(dim, 0) if isinstance(value, Tensor) and dim is not None else value
            for value, dim in zip(inputs, in_dims, strict=True)
        )
        if (found := fold(info.batch_size, batched, *moved)) is not None:
            return found, 0
    return _each(operator, info, in_dims, *inputs)  # type: ignore[no-any-return]


def _each(operator: Any, info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> Any:
    """Apply the operator to each sample under ``vmap``; an empty batch has an empty result."""
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
    """Return a meta sample of an empty batch, which only provides the size."""
    if not isinstance(value, Tensor):
        return value
    size = [extent for place, extent in enumerate(value.shape) if place != dim]
    return torch.empty(size, dtype=value.dtype, device="meta")


def _detached(output: Any) -> Any:
    return output.detach() if isinstance(output, Tensor) else tuple(map(Tensor.detach, output))


def _has_tangent(value: Any) -> bool:
    return isinstance(value, Tensor) and fwAD.unpack_dual(value).tangent is not None


def differentiates(*tensors: Tensor | None) -> bool:
    """Return whether a reverse or forward derivative of these tensors may be requested.

    A traced call always may: its graph is used with and without gradients.
    """
    if fwAD._current_level >= 0 or torch._C._get_tracing_state() is not None:
        return True
    if not torch.is_grad_enabled():
        return False
    if torch.compiler.is_compiling():  # Dynamo traces attributes, not the C function
        return any(tensor is not None and tensor.requires_grad for tensor in tensors)
    return torch._C._any_requires_grad(*tensors)


def linear(name: str) -> Jvp:
    """Return a function for the tangent of ``tconv::name``, linear in its first input only."""

    def jvp(inputs: Inputs, output: Any, tangents: Inputs) -> Any:
        if tangents[0] is None:
            one = isinstance(output, Tensor)
            return torch.zeros_like(output) if one else tuple(map(torch.zeros_like, output))
        return getattr(torch.ops.tconv, name)(tangents[0], *inputs[1:])

    return jvp


def bilinear(name: str) -> Jvp:
    """Return a function for the tangent of ``tconv::name``, linear in its first two inputs."""

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
    """Make autocast cast the operands to its dtype, except float64, as for torch's operators.

    With ``cast``, only the first ``cast`` operands are cast.
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
    """True if all inputs are plain device memory and no mode (tracing, counting) is active."""
    if torch._C._len_torch_dispatch_stack():
        return False
    for value in inputs:  # a loop is fastest, and every call of the operator waits for this
        kind = type(value)
        if kind is Tensor or kind is Parameter:
            if value.device.type not in DEVICES:
                return False
        elif isinstance(value, Tensor):
            return False
    return True
