"""Convolution and max-pool for PyTorch, forward and backward, as Triton kernels.

    import tconv
    layer = tconv.Conv2d(3, 64, 3, padding=1)  # replaces torch.nn.Conv2d

Triton kernels compute on CUDA tensors. They also compute on CPU tensors if ``TRITON_INTERPRET=1``
(Triton's interpreter) or ``TCONV_EMULATE=sm_90`` (compiled kernels on an emulated GPU) was set
before the import; otherwise torch's own CPU operators do.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

from tconv import functional
from tconv.convert import Conversion, convert
from tconv.explain import Explanation, explain
from tconv.geometry import ConvGeometry, PoolGeometry
from tconv.modules import (
    AdaptiveAvgPool2d,
    AdaptiveMaxPool2d,
    AvgPool1d,
    AvgPool2d,
    Conv1d,
    Conv2d,
    ConvReLU2d,
    ConvReLUPool2d,
    ConvTranspose1d,
    ConvTranspose2d,
    LazyConv1d,
    LazyConv2d,
    LazyConvTranspose1d,
    LazyConvTranspose2d,
    MaxPool1d,
    MaxPool2d,
    MaxUnpool2d,
    Subsample2d,
)
from tconv.problem import PoolProblem, Problem
from tconv.tile import Tile

if TYPE_CHECKING:
    from tconv.aot.background import compile_in_background
    from tconv.aot.carry import KernelsError, load_kernels, save_kernels
    from tconv.aot.warm_up import WarmUp, warm_up
    from tconv.compiler.export import export
    from tconv.compiler.report import Report, report
    from tconv.graphs import graphed

__version__ = "0.1.0"

__all__ = [
    "AdaptiveAvgPool2d",
    "AdaptiveMaxPool2d",
    "AvgPool1d",
    "AvgPool2d",
    "Conv1d",
    "Conv2d",
    "ConvGeometry",
    "ConvReLU2d",
    "ConvReLUPool2d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "Conversion",
    "Explanation",
    "KernelsError",
    "LazyConv1d",
    "LazyConv2d",
    "LazyConvTranspose1d",
    "LazyConvTranspose2d",
    "MaxPool1d",
    "MaxPool2d",
    "MaxUnpool2d",
    "PoolGeometry",
    "PoolProblem",
    "Problem",
    "Report",
    "Subsample2d",
    "Tile",
    "WarmUp",
    "compile_in_background",
    "convert",
    "explain",
    "export",
    "functional",
    "graphed",
    "load_kernels",
    "report",
    "save_kernels",
    "warm_up",
]

# Names and their modules, imported at first use: a program may need none of them.
_LATE = {
    "KernelsError": "aot.carry",
    "Report": "compiler.report",
    "WarmUp": "aot.warm_up",
    "compile_in_background": "aot.background",
    "export": "compiler.export",
    "graphed": "graphs",
    "load_kernels": "aot.carry",
    "report": "compiler.report",
    "save_kernels": "aot.carry",
    "warm_up": "aot.warm_up",
}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"tconv.{_LATE[name]}"), name)


if os.environ.get("TCONV_BACKGROUND") == "1":
    __getattr__("compile_in_background")()

if os.environ.get("TCONV_EMULATE"):
    from tconv import emulator

    emulator.install_asked()
