"""Where tests put their tensors: on the GPU, or on the CPU where kernels are interpreted or run on
an emulated GPU.

A test that needs the interpreter itself bears the marker ``interpreter``, one that needs compiled
kernels ``gpu``, one that needs a real GPU ``device``.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from tconv.launch import Launch, emulated, interpreting, target_for

DEVICE = torch.device("cpu" if interpreting() or emulated() else "cuda")
TARGET = target_for(DEVICE)
RESULTS = {"y", "dx", "dw"}


def written(launches: Iterable[Launch]) -> set[str]:
    """Which results of a convolution ``launches`` compute, whatever kernel family they are of."""
    return RESULTS & {operand.tensor for launch in launches for operand in launch.operands.values()}
