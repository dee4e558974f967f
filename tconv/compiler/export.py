"""``torch.export`` with our kernels in the exported graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tconv.compiler.backend import fuse


def export(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None, **options: Any
) -> torch.export.ExportedProgram:
    """Export a model whose convolutions and pools, with what follows them, are our operators.

    The program is that of ``torch.export.export``, with each chain that one kernel computes in
    place of its operations. It can be saved and loaded by ``torch.export.save`` and ``load``
    where tconv is imported. What cannot be exported is what torch cannot: a model whose graph
    breaks. The kernels need Python to be launched, so that AOTInductor cannot package them.

    Args:
        model: in evaluation mode, for batch norms to be fused.
        args: the model's example arguments.
        kwargs: by name, likewise.
        options: those of ``torch.export.export``, for instance ``dynamic_shapes``.

    Returns:
        The exported program.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2))
    >>> "tconv.conv2d_fused" in str(export(model, (torch.zeros(1, 3, 8, 8),)).graph)
    True
    """
    captured = torch.export.export(model, args, kwargs, **options).module()
    fuse(captured)
    return torch.export.export(captured, args, kwargs, **options)
