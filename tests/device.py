"""Where the tests' kernels run: on the GPU of this machine; without one on the CPU.

There Triton's interpreter runs them, or what stands in for a GPU. A test that needs the
interpreter itself bears the marker ``interpreter``, one that needs a real GPU ``gpu``; every other
makes its tensors on ``DEVICE``.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from tconv.launch import Launch, target_for

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TARGET = target_for(DEVICE)
RESULTS = {"y", "dx", "dw"}


def written(launches: Iterable[Launch]) -> set[str]:
    """Which results of a convolution ``launches`` compute, whatever kernel family they are of."""
    return RESULTS & {operand.tensor for launch in launches for operand in launch.operands.values()}
