"""Read the calls of a captured graph: every spelling of an operation gets one name and signature.

A ReLU may be written as a module, ``F.relu(x)``, ``torch.relu_(x)``, ``x.relu()`` or, in an
exported graph, ``aten.relu.default``. ``read`` returns the same ``Call`` for all of them.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx


@dataclass(frozen=True)
class Call:
    """One operation of a graph: its name, and its arguments by name."""

    name: str
    arguments: dict[str, Any]

    def __getitem__(self, argument: str) -> Any:
        return self.arguments[argument]


# ---- signatures -----------------------------------------------------------------------------
# torch's own parameter names and defaults; ``inplace`` is positional where it is in torch.


def _conv(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):  # type: ignore[no-untyped-def]
    """Signature of ``torch.conv1d``, ``conv2d`` and ``conv3d``."""


def _conv_transpose(  # type: ignore[no-untyped-def]
    input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1
):
    """Signature of ``torch.conv_transpose1d``, ``conv_transpose2d`` and ``conv_transpose3d``."""


def _own_conv(x, w, bias, window, precision):  # type: ignore[no-untyped-def]
    """Signature of ``torch.ops.tconv.conv2d``."""


def _own_conv_transpose(x, w, bias, extent, window, precision):  # type: ignore[no-untyped-def]
    """Signature of ``torch.ops.tconv.conv_transpose2d``."""


def _batch_norm(  # type: ignore[no-untyped-def]
    input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5
):
    """Signature of ``torch.nn.functional.batch_norm``."""


def _builtin_batch_norm(  # type: ignore[no-untyped-def]
    input, weight, bias, running_mean, running_var, training, momentum, eps, cudnn_enabled=True
):
    """Signature of ``torch.batch_norm`` and ``aten.batch_norm``."""


def _max_pool(  # type: ignore[no-untyped-def]
    input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False
):
    """Signature of ``torch.nn.functional.max_pool2d`` and ``max_pool1d``."""


def _avg_pool(  # type: ignore[no-untyped-def]
    input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True,
    divisor_override=None,
):  # fmt: skip
    """Signature of ``torch.nn.functional.avg_pool2d``."""


def _avg_pool1d(  # type: ignore[no-untyped-def]
    input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True
):
    """Signature of ``torch.nn.functional.avg_pool1d``."""


def _adaptive_avg_pool(input, output_size):  # type: ignore[no-untyped-def]
    """Signature of ``torch.nn.functional.adaptive_avg_pool2d``."""


def _adaptive_max_pool(input, output_size, return_indices=False):  # type: ignore[no-untyped-def]
    """Signature of ``torch.nn.functional.adaptive_max_pool2d``."""


def _adaptive_max_pool_exported(input, output_size, return_indices=True):  # type: ignore[no-untyped-def]
    """Signature of ``aten.adaptive_max_pool2d``, which always returns the indices."""


def _max_unpool(  # type: ignore[no-untyped-def]
    input, indices, kernel_size, stride=None, padding=0, output_size=None
):
    """Signature of ``torch.nn.functional.max_unpool2d``."""


def _add(input, other, *, alpha=1):  # type: ignore[no-untyped-def]
    """Signature of ``torch.add``, ``x + y`` and ``x += y``."""


def _unary(input, inplace=False):  # type: ignore[no-untyped-def]
    """Signature of an activation without a parameter."""


def _leaky_relu(input, negative_slope=0.01, inplace=False):  # type: ignore[no-untyped-def]
    """Signature of ``torch.nn.functional.leaky_relu``."""


def _gelu(input, *, approximate="none"):  # type: ignore[no-untyped-def]
    """Signature of ``torch.nn.functional.gelu``."""


def _hardtanh(input, min_val=-1.0, max_val=1.0, inplace=False):  # type: ignore[no-untyped-def]
    """Signature of ``torch.nn.functional.hardtanh``, which is ReLU6 for the limits 0 and 6."""


_aten = torch.ops.aten
_UNARY = ("relu", "relu6", "silu", "hardswish", "hardsigmoid", "sigmoid", "tanh")


def _spellings() -> dict[Any, tuple[str, Callable[..., Any], bool]]:
    """Map each callable or method name to operation, signature, and whether it is in place."""
    found: dict[Any, tuple[str, Callable[..., Any], bool]] = {}

    def name(
        operation: str, signature: Callable[..., Any], *ways: Any, inplace: bool = False
    ) -> None:
        for way in ways:
            found[way] = (operation, signature, inplace)

    for rank in ("1d", "2d", "3d"):
        name(f"conv{rank}", _conv, getattr(torch, f"conv{rank}"), getattr(F, f"conv{rank}"))
        name(f"conv{rank}", _conv, getattr(_aten, f"conv{rank}").default,
             getattr(_aten, f"conv{rank}").padding)  # fmt: skip
        transposed = f"conv_transpose{rank}"
        packet = getattr(_aten, transposed)
        exported = [getattr(packet, overload) for overload in packet.overloads()]
        name(transposed, _conv_transpose, getattr(torch, transposed), *exported)
    name("batch_norm", _batch_norm, F.batch_norm)
    name("batch_norm", _builtin_batch_norm, torch.batch_norm, _aten.batch_norm.default)
    name("max_pool2d", _max_pool, F.max_pool2d, torch.max_pool2d, _aten.max_pool2d.default)
    name("avg_pool2d", _avg_pool, F.avg_pool2d, _aten.avg_pool2d.default)
    name("max_pool1d", _max_pool, F.max_pool1d, torch.max_pool1d, _aten.max_pool1d.default)
    name("avg_pool1d", _avg_pool1d, F.avg_pool1d, _aten.avg_pool1d.default)
    name("adaptive_avg_pool2d", _adaptive_avg_pool, F.adaptive_avg_pool2d,
         _aten.adaptive_avg_pool2d.default)  # fmt: skip
    name("adaptive_max_pool2d", _adaptive_max_pool, F.adaptive_max_pool2d)
    name("adaptive_max_pool2d", _adaptive_max_pool_exported, _aten.adaptive_max_pool2d.default)
    name("max_unpool2d", _max_unpool, F.max_unpool2d)
    name("add", _add, torch.add, operator.add, "add", _aten.add.Tensor)
    name("add", _add, operator.iadd, "add_", _aten.add_.Tensor, inplace=True)
    for activation in _UNARY:
        for owner in (torch, F):
            if callable(way := getattr(owner, activation, None)):
                name(activation, _unary, way)
            if callable(way := getattr(owner, f"{activation}_", None)):
                name(activation, _unary, way, inplace=True)
        if hasattr(Tensor, activation):
            name(activation, _unary, activation)
        if hasattr(Tensor, f"{activation}_"):
            name(activation, _unary, f"{activation}_", inplace=True)
        if hasattr(_aten, activation):
            name(activation, _unary, getattr(_aten, activation).default)
        if hasattr(_aten, f"{activation}_"):
            name(activation, _unary, getattr(_aten, f"{activation}_").default, inplace=True)
    name("sigmoid", _unary, torch.special.expit)
    name("leaky_relu", _leaky_relu, F.leaky_relu, _aten.leaky_relu.default)
    name("leaky_relu", _leaky_relu, F.leaky_relu_, _aten.leaky_relu_.default, inplace=True)
    name("gelu", _gelu, F.gelu, _aten.gelu.default)
    name("hardtanh", _hardtanh, F.hardtanh, _aten.hardtanh.default)
    name("hardtanh", _hardtanh, F.hardtanh_, _aten.hardtanh_.default, inplace=True)
    return found


@lru_cache(maxsize=1)
def spellings() -> dict[Any, tuple[str, Callable[..., Any], bool]]:
    """Return the cached table; our own operators must be registered before."""
    ops = torch.ops.tconv
    return {
        **_spellings(),
        ops.conv2d.default: ("own_conv2d", _own_conv, False),
        ops.conv_transpose2d.default: ("own_conv_transpose2d", _own_conv_transpose, False),
    }


def read(node: fx.Node) -> Call | None:
    """Return the operation of a graph's node, or None if the table does not have it."""
    if node.op not in ("call_function", "call_method"):
        return None
    found = spellings().get(node.target)
    if found is None:
        return None
    name, signature, inplace = found
    try:
        bound = _bind(signature, node)
    except TypeError:
        return None  # an overload with other arguments, for instance ``out=``
    bound["inplace"] = inplace or bool(bound.get("inplace"))
    return _relu6(Call(name, bound))


# Our forward operators, as they stand in the graph of a model with our modules.
_OWN = {
    "conv2d_fused": "conv2d_fused",
    "conv_transpose2d_fused": "conv_transpose2d",
    "max_pool2d": "max_pool2d",
    "max_pool2d_values": "max_pool2d",
    "avg_pool2d": "avg_pool2d",
    "adaptive_avg_pool2d": "adaptive_avg_pool2d",
    "adaptive_max_pool2d": "adaptive_max_pool2d",
    "max_unpool2d": "max_unpool2d",
}


def own_operation(node: fx.Node) -> str | None:
    """Return which operation a node computes if its target is a forward operator of ours."""
    if not isinstance(node.target, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return None
    library, name = str(node.target).split(".")[:2]
    return _OWN.get(name) if library == "tconv" else None


def _bind(signature: Callable[..., Any], node: fx.Node) -> dict[str, Any]:
    bound = _signature(signature).bind(*node.args, **node.kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


@lru_cache(maxsize=64)
def _signature(function: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(function)


def _relu6(call: Call) -> Call:
    """Read ``hardtanh`` to [0, 6] as ReLU6, unlike ``clamp``, whose gradient at 0 and 6 is 1."""
    if call.name == "hardtanh" and (call["min_val"], call["max_val"]) == (0, 6):
        return Call("relu6", call.arguments)
    return call


# ---- what a call does besides returning a value -----------------------------------------------


def mutates(node: fx.Node) -> bool:
    """Return whether a node may write to a tensor or change a state of later nodes."""
    if node.op in ("placeholder", "get_attr", "output"):
        return False
    if node.op == "call_module":
        return True
    if node.op == "call_method":
        name = str(node.target)
        return (name.endswith("_") and not name.endswith("__")) or name == "__setitem__"
    if (call := read(node)) is not None:
        return bool(call["inplace"]) or bool(call.arguments.get("training"))
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        return any(map(mutates, _inner_nodes(node)))
    if "out" in node.kwargs:
        return True
    if isinstance(node.target, torch._ops.OpOverload):
        return bool(node.target._schema.is_mutable)
    if node.target in _INPLACE_OPERATORS:
        return True
    if _inplace_argument(node):
        return True
    name = getattr(node.target, "__name__", "")
    if name.startswith("_") and not name.startswith("__"):
        return True  # _set_grad_enabled, _enter_autocast and similar functions
    return name.endswith("_") and not name.endswith("__")


def _inner_nodes(node: fx.Node) -> list[fx.Node]:
    """Return the nodes of the graphs that a higher-order operator is given."""
    owner = node.graph.owning_module
    named = [str(each.target) for each in node.all_input_nodes if each.op == "get_attr"]
    graphs = [owner.get_submodule(name) for name in named if owner and hasattr(owner, name)]
    return [
        inner for each in graphs if isinstance(each, fx.GraphModule) for inner in each.graph.nodes
    ]


_INPLACE_OPERATORS = {
    operator.setitem, operator.iadd, operator.isub, operator.imul, operator.itruediv,
    operator.ifloordiv, operator.imod, operator.ipow, operator.iand, operator.ior, operator.ixor,
    operator.ilshift, operator.irshift, operator.imatmul,
}  # fmt: skip


def _inplace_argument(node: fx.Node) -> bool:
    if node.kwargs.get("inplace"):
        return True
    try:
        bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False  # a builtin without a signature takes no ``inplace``
    return bool(bound.arguments.get("inplace"))
