"""Arguments of the public functions, read as torch reads those of its own.

Whole numbers, and tuples or lists of them, are taken as they are. Any other value goes through
torch's own argument parser: ``read`` calls torch's function with it on an empty ``meta`` tensor
and stops before anything is computed. So the same values are accepted (a NumPy integer, a tensor
of one element) and the same refused, with torch's error type and words, whatever its version.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function
from torch.utils._python_dispatch import TorchDispatchMode

Pair = tuple[int, int]
Numbers = tuple[int, ...]  # one for each axis of an image, or of a sequence
INT, INT64 = range(-(2**31), 2**31), range(-(2**63), 2**63)

_aten = torch.ops.aten
# torch's function: the operator that it reaches, where that operator's first number stands, and
# the dimensions of its tensors.
_REACHED: dict[Callable[..., Any], tuple[Any, int, int]] = {
    torch.conv1d: (_aten.convolution.default, 3, 3),
    torch.conv2d: (_aten.convolution.default, 3, 4),
    torch.conv_transpose1d: (_aten.convolution.default, 3, 3),
    torch.conv_transpose2d: (_aten.convolution.default, 3, 4),
    torch.max_pool2d: (_aten.max_pool2d_with_indices.default, 1, 4),
    torch._C._nn.max_pool2d_with_indices: (_aten.max_pool2d_with_indices.default, 1, 4),
    torch._C._nn.avg_pool2d: (_aten.avg_pool2d.default, 1, 4),
}


def pair(value: Any) -> Pair | None:
    """The numbers for height and width of an int, or of a tuple or list of one or two ints.

    None for every other value, which ``read`` must look at.

    >>> pair(3), pair([1, 2]), pair((2,)), pair(2.0), pair((True, 1))
    ((3, 3), (1, 2), (2, 2), None, None)
    """
    kind = type(value)
    if kind is int:
        return value, value
    if kind is tuple and len(value) == 2:  # every call comes here three times
        first, last = value
        return value if type(first) is int is type(last) else None
    if (kind is tuple and len(value) == 1) or (kind is list and len(value) in (1, 2)):
        return pair((value[0], value[-1]))
    return None


def single(value: Any) -> tuple[int] | None:
    """The same for an operator of one axis: an int, or a tuple or list of one int.

    >>> single(3), single([2]), single((1, 2)), single(True)
    ((3,), (2,), None, None)
    """
    kind = type(value)
    if (kind is tuple or kind is list) and len(value) == 1:
        value = value[0]
    return (value,) if type(value) is int else None


# How the plain arguments of an operator of so many axes are taken.
TAKE: dict[int, Callable[[Any], Numbers | None]] = {1: single, 2: pair}


def read(function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """The numbers and lists of numbers with which torch's ``function`` reaches its operator.

    Args:
        function: one of torch's, as ``torch.conv2d``.
        arguments: all of the call's, tensors first.

    Raises:
        TypeError, ValueError, RuntimeError: whatever torch raises for these arguments.
    """
    reached, first, dimensions = _REACHED[function]
    recorder = _Recorder(reached)
    empty = torch.empty((1,) * dimensions, device="meta")
    given = [empty if isinstance(value, Tensor) and place < first else value
             for place, value in enumerate(arguments)]  # fmt: skip
    with recorder:
        try:
            function(*given)
        except RuntimeError as error:
            if "INTERNAL ASSERT" not in str(error):
                raise
            function(*map(_number, given))
    return list(recorder.arguments[first:])


def overridden(function: Any, tensors: Sequence[Any], *arguments: Any, **options: Any) -> Any:
    """What an operand's ``__torch_function__`` makes of a call; torch.fx has such operands."""
    return handle_torch_function(function, tensors, *arguments, **options)


@contextlib.contextmanager
def untraced() -> Iterator[None]:
    """Within it ``torch.jit.trace``, for which sizes are tensors, sees plain sizes."""
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch._C._set_tracing_state(state)  # type: ignore[attr-defined]


class _Recorder(TorchDispatchMode):
    """Keeps the arguments of one operator's call, which is not made."""

    def __init__(self, operator: Any) -> None:
        super().__init__()
        self.operator = operator
        self.arguments: Sequence[Any] = ()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not self.operator:
            return func(*args, **(kwargs or {}))
        # Trailing arguments that have their default values are left out.
        defaults = [argument.default_value for argument in func._schema.arguments]
        self.arguments = [*args, *defaults[len(args) :]]
        values = [args[0]] * len(func._schema.returns)
        return values[0] if len(values) == 1 else tuple(values)


def _number(value: Any) -> Any:
    """The int of a scalar that has ``__index__``: on some of them torch's parser fails."""
    if isinstance(value, (int, Tensor)) or not hasattr(type(value), "__index__"):
        return value
    try:
        return operator.index(value)
    except TypeError:  # an array of several elements; torch refuses it by name
        return value


def conv_numbers(name: str, numbers: Sequence[int], axes: int) -> Numbers:
    """One number for all axes, or one for each, as torch's convolutions take them."""
    if len(numbers) not in (1, axes):
        raise RuntimeError(
            f"expected {name} to be a single integer value or a list of {axes} values to match "
            f"the convolution dimensions, but got {name}={list(numbers)}"
        )
    return tuple(numbers) * (axes // len(numbers))


# torch's words for a wrong number of values.
_MUST_BE = {
    "kernel_size": "must either be a single int, or a tuple of two ints",
    "stride": "must either be omitted, a single int, or a tuple of two ints",
    "padding": "must either be a single int, or a tuple of two ints",
    "dilation": "must be either a single int, or a tuple of two ints",
}


def pool_pair(operation: str, name: str, numbers: Sequence[int]) -> Pair:
    """One number for both axes, or one for each, as torch's pools take them."""
    if len(numbers) not in (1, 2):
        raise RuntimeError(f"{operation}: {name} {_MUST_BE[name]}")
    return numbers[0], numbers[-1]
