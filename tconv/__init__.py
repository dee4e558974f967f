"""Convolution and max-pool for PyTorch, forward and backward, as Triton kernels.

    import tconv
    layer = tconv.Conv2d(3, 64, 3, padding=1)  # wherever torch.nn.Conv2d stood

CUDA tensors are computed by Triton kernels. CPU tensors are too where ``TRITON_INTERPRET=1``
was set before the import, and by torch's own CPU operators otherwise.
"""

from tconv import functional
from tconv.explain import Explanation, explain
from tconv.geometry import ConvGeometry, PoolGeometry
from tconv.modules import Conv2d, MaxPool2d
from tconv.problem import PoolProblem, Problem
from tconv.tile import Tile

__version__ = "0.1.0"

__all__ = [
    "Conv2d",
    "ConvGeometry",
    "Explanation",
    "MaxPool2d",
    "PoolGeometry",
    "PoolProblem",
    "Problem",
    "Tile",
    "explain",
    "functional",
]
