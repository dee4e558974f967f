"""``torch.export`` with our operators in the exported graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tconv.compiler.backend import fuse


def export(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None, **options: Any
) -> torch.export.ExportedProgram:
    """Export a model with its convolutions, pools and fused chains as our operators.

    The program is that of ``torch.export.export``, with each chain that one kernel computes
    replaced by one operator. ``torch.export.save`` and ``load`` work where tconv is imported. A
    model whose graph breaks cannot be exported, as in torch. AOTInductor packages the program, but
    the kernels need Python for their launch: a package runs in a process that imports tconv.

    Args:
        model: the model, in evaluation mode if batch norms are to be fused.
        args: example arguments of the model.
        kwargs: example keyword arguments.
        options: options of ``torch.export.export``, for instance ``dynamic_shapes``.

    Returns:
        The exported program.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2))
    >>> "tconv.conv2d_fused" in str(export(model, (torch.zeros(1, 3, 8, 8),)).graph)
    True
    """
    captured = torch.export.export(model, args, kwargs, **options).module()
    fuse(captured)
    return torch.export.export(captured, args, kwargs, **options)
