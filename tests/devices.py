"""The device of the tests' tensors: the GPU, or the CPU for interpreted or emulated kernels.

The marker ``interpreter`` is for tests that need the interpreter, ``gpu`` for those that need
compiled kernels, and ``device`` for those that need a real GPU.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from tconv.launch import Launch, emulated, interpreting, target_for

DEVICE = torch.device("cpu" if interpreting() or emulated() else "cuda")
TARGET = target_for(DEVICE)
RESULTS = {"y", "dx", "dw"}


def written(launches: Iterable[Launch]) -> set[str]:
    """Return which results of a convolution ``launches`` compute, for any kernel family."""
    return RESULTS & {operand.tensor for launch in launches for operand in launch.operands.values()}
