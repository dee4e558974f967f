"""Arguments of the public functions, parsed as torch parses its own.

Whole numbers, and tuples or lists of them, are read directly. Any other value goes through torch's
own argument parser: ``read`` calls torch's function with it on an empty ``meta`` tensor and stops
before anything is computed. The same values are therefore accepted (a NumPy integer, a tensor of
one element) and the same rejected as in torch, with its error type and message, in every version.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.overrides import handle_torch_function
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

T = TypeVar("T")
Pair = tuple[int, int]
Numbers = tuple[int, ...]  # one for each axis of an image, or of a sequence
INT, INT64 = range(-(2**31), 2**31), range(-(2**63), 2**63)


def fits(number: Any, kind: range) -> bool:
    """True unless ``number`` is an integer outside ``INT`` or ``INT64``.

    It is compared, not looked up in the range: a size that Dynamo traces is not a constant.
    """
    return type(number) is not int or kind.start <= number < kind.stop


_aten = torch.ops.aten
# torch's function: the operator that it calls, the position of that operator's first number, and
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
    """Return the numbers for height and width of an int, or of one or two ints in a tuple or list.

    Return None for every other value, which ``read`` must parse.

    >>> pair(3), pair([1, 2]), pair((2,)), pair(2.0), pair((True, 1))
    ((3, 3), (1, 2), (2, 2), None, None)
    """
    kind = type(value)
    if kind is int:
        return value, value
    if kind is tuple and len(value) == 2:  # the common case: every call passes here three times
        first, last = value
        return value if type(first) is int is type(last) else None
    if isinstance(value, (tuple, list)) and len(value) in (1, 2):  # torch.Size, fx's lists as well
        return pair((value[0], value[-1]))
    return None


def single(value: Any) -> tuple[int] | None:
    """Return the number of an int, or of one int in a tuple or list, for an operator of one axis.

    >>> single(3), single([2]), single((1, 2)), single(True)
    ((3,), (2,), None, None)
    """
    if isinstance(value, (tuple, list)) and len(value) == 1:
        value = value[0]
    return (value,) if type(value) is int else None


# The function that reads plain arguments, by the number of axes.
TAKE: dict[int, Callable[[Any], Numbers | None]] = {1: single, 2: pair}


def read(function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Return the numbers and lists of numbers that torch's ``function`` passes to its operator.

    Args:
        function: one of torch's functions, such as ``torch.conv2d``.
        arguments: all arguments of the call, tensors first.

    Raises:
        TypeError, ValueError, RuntimeError: any error of torch for these arguments.
    """
    reached, first, dimensions = _REACHED[function]
    recorder = _Recorder(reached)
    with _disable_current_modes():  # an export would record the calls of this function
        empty = torch.empty((1,) * dimensions, device="meta")
    given = [empty if isinstance(value, Tensor) and place < first else value
             for place, value in enumerate(arguments)]  # fmt: skip
    with _disable_current_modes(), recorder:
        try:
            function(*given)
        except RuntimeError as error:
            if "INTERNAL ASSERT" not in str(error):
                raise
            function(*map(_number, given))
    return list(recorder.arguments[first:])


def overridden(function: Any, tensors: Sequence[Any], *arguments: Any, **options: Any) -> Any:
    """Call an operand's ``__torch_function__``, which torch.fx's proxies have."""
    return handle_torch_function(function, tensors, *arguments, **options)


# The options of a convolution that its kernel also applies, in the order of the signatures.
FUSED_OPTIONS = (
    "running_mean", "running_var", "norm_weight", "norm_bias", "eps", "residual", "residual_after",
    "activation", "negative_slope", "precision",
)  # fmt: skip


def fused_options(*values: Any) -> dict[str, Any]:
    """Return ``FUSED_OPTIONS`` by name, for ``overridden``."""
    return dict(zip(FUSED_OPTIONS, values, strict=True))


@contextlib.contextmanager
def untraced() -> Iterator[None]:
    """Suspend ``torch.jit.trace`` in the block, so that sizes are plain numbers, not tensors."""
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch._C._set_tracing_state(state)  # type: ignore[attr-defined]


def cached_unless_symbolic(check: Callable[..., T], known: Callable[..., T], *sizes: Any) -> T:
    """Call ``known``, the cached version of ``check``; ``check`` itself while torch compiles.

    The sizes must be plain numbers: to the cache 2.0 and True would equal 2 and 1.
    """
    try:
        return (check if torch.compiler.is_compiling() else known)(*sizes)
    except TypeError:  # a symbolic size is not hashable
        return check(*sizes)


class _Recorder(TorchDispatchMode):
    """Records the arguments of an operator's call instead of making it."""

    def __init__(self, operator: Any) -> None:
        super().__init__()
        self.operator = operator
        self.arguments: Sequence[Any] = ()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not self.operator:
            return func(*args, **(kwargs or {}))
        # Trailing arguments with default values are omitted.
        defaults = [argument.default_value for argument in func._schema.arguments]
        self.arguments = [*args, *defaults[len(args) :]]
        values = [args[0]] * len(func._schema.returns)
        return values[0] if len(values) == 1 else tuple(values)


def _number(value: Any) -> Any:
    """Return the int of a scalar with ``__index__``; torch's parser fails on some of them."""
    if isinstance(value, (int, Tensor)) or not hasattr(type(value), "__index__"):
        return value
    try:
        return operator.index(value)
    except TypeError:  # an array of several elements; torch rejects it by name
        return value


def conv_numbers(name: str, numbers: Sequence[int], axes: int) -> Numbers:
    """Return one number per axis from one number or one per axis, as torch's convolutions do."""
    if len(numbers) not in (1, axes):
        raise RuntimeError(
            f"expected {name} to be a single integer value or a list of {axes} values to match "
            f"the convolution dimensions, but got {name}={list(numbers)}"
        )
    return tuple(numbers) * (axes // len(numbers))


# torch's messages for a wrong number of values.
_MUST_BE = {
    "kernel_size": "must either be a single int, or a tuple of two ints",
    "stride": "must either be omitted, a single int, or a tuple of two ints",
    "padding": "must either be a single int, or a tuple of two ints",
    "dilation": "must be either a single int, or a tuple of two ints",
}


def pool_pair(operation: str, name: str, numbers: Sequence[int]) -> Pair:
    """Return one number per axis from one number or one per axis, as torch's pools do."""
    if len(numbers) not in (1, 2):
        raise RuntimeError(f"{operation}: {name} {_MUST_BE[name]}")
    return numbers[0], numbers[-1]
