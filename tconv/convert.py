"""Replace a model's modules by ours in place: ``convert(model)``.

Parameters, buffers, hooks, names and training state are kept, so the ``state_dict`` stays
compatible with torch. To also fuse the operations after a convolution, use ``torch.compile(model,
backend="tconv")``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from tconv import modules
from tconv.problem import ITEMSIZE, dtype_name

# A lazy module's counterpart becomes our module when its first call creates parameters. It is
# listed before its base class.
NAMES = ("LazyConv2d", "LazyConvTranspose2d", "LazyConv1d", "LazyConvTranspose1d", "Conv2d",
         "ConvTranspose2d", "Conv1d", "ConvTranspose1d", "MaxPool2d", "AvgPool2d",
         "AdaptiveAvgPool2d", "AdaptiveMaxPool2d", "MaxPool1d", "AvgPool1d",
         "MaxUnpool2d")  # fmt: skip
TWINS: dict[type[nn.Module], type[nn.Module]] = {
    getattr(nn, name): getattr(modules, name) for name in NAMES
}
OURS = tuple(TWINS.values())

# ---- the report -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """One module by its name in the model, and what ``convert`` did with it."""

    name: str
    note: str

    def __str__(self) -> str:
        return f"{self.name or '(the model)'}: {self.note}"


@dataclass
class Conversion:
    """The result of ``convert``: the model, the changed modules, and the others with reasons."""

    model: nn.Module
    changed: list[Entry] = field(default_factory=list)
    left: list[Entry] = field(default_factory=list)

    def __str__(self) -> str:
        if not (self.changed or self.left):
            return "nothing to convert: the model has no convolution and no pool"
        parts = (("changed", self.changed), ("left as it was", self.left))
        return "\n".join(
            line
            for title, entries in parts
            if entries
            for line in (f"{title} ({len(entries)}):", *(f"  {entry}" for entry in entries))
        )


# ---- changing modules -----------------------------------------------------------------------


def _reason_to_leave(module: nn.Module) -> str | None:
    """Return why a convolution or pool is not replaced; None for our own and other modules."""
    kind = type(module).__name__
    if isinstance(module, torch.jit.ScriptModule):
        return "it is scripted: its code is fixed"
    if isinstance(module, OURS) or type(module) in TWINS:
        return None
    if "quantized" in type(module).__module__ and "Conv" in kind:
        return f"{kind} computes in integers"
    if isinstance(module, tuple(TWINS)):
        return f"{kind} is a subclass that may compute otherwise"
    if isinstance(module, nn.modules.conv._ConvNd):
        return f"{kind} has three dimensions; there is no kernel for them"
    if type(module).__module__ == "torch.nn.modules.pooling":
        return f"{kind} has no kernel here"
    return None


def _visited(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield each module once with its name, without the submodules of scripted ones."""
    scripted: list[str] = []
    for name, module in model.named_modules():
        if any(not inside or name.startswith(f"{inside}.") for inside in scripted):
            continue
        if isinstance(module, torch.jit.ScriptModule):
            scripted.append(name)
        yield name, module


def convert(model: nn.Module) -> Conversion:
    """Replace the convolutions and pools of ``model`` by ours, in place.

    Every ``Conv2d``, ``ConvTranspose2d``, ``MaxPool2d``, ... with a tconv counterpart is replaced
    by it and keeps its parameters, hooks, training state and name in the ``state_dict``. This
    includes lazy modules, which stay ours when their first call creates parameters.

    Args:
        model: any module; one without convolutions and pools stays unchanged.

    Returns:
        A printable report: ``.model`` is the model, ``.changed`` lists the replaced modules,
        ``.left`` the others, each with the reason.

    Raises:
        TypeError: if ``model`` is not a ``torch.nn.Module``.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.LPPool2d(2, 2))
    >>> print(convert(model))
    changed (1):
      0: Conv2d
    left as it was (1):
      2: LPPool2d has no kernel here
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"convert takes a torch.nn.Module, not {type(model).__name__}")
    report = Conversion(model)
    for name, module in _visited(model):
        reason = _reason_to_leave(module)
        kind = type(module)
        if reason is None and kind in TWINS:
            weight = getattr(module, "weight", None)
            if weight is not None and dtype_name(weight.dtype) not in ITEMSIZE:
                reason = f"its parameters are {dtype_name(weight.dtype)}"
            else:
                module.__class__ = TWINS[kind]
                report.changed.append(Entry(name, kind.__name__))
        if reason is not None:
            report.left.append(Entry(name, reason))
    return report
