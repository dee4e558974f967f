"""The one place where kernels are launched.

A ``Launch`` says all of it without a tensor in sight: the kernel, its grid, its compile-time
constants, its integers. A launcher runs it on tensors; the tuner compiles it for a GPU that
is not there.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import triton
from triton.runtime.interpreter import InterpretedFunction

from tconv.target import INTERPRETER, Target, target_of

# Triton's names for the element types.
TRITON_DTYPE = {
    "float16": "fp16",
    "bfloat16": "bf16",
    "float32": "fp32",
    "float64": "fp64",
    "int8": "i8",
    "int64": "i64",
}


@dataclass(frozen=True)
class Launch:
    """One kernel launch: ``kernel`` is ``module.function`` within ``tconv.kernels``."""

    kernel: str
    grid: tuple[int, ...]
    pointers: Mapping[str, str]  # argument -> dtype of its elements
    scalars: Mapping[str, int]  # run-time integers
    constants: Mapping[str, Any]  # compile-time values
    warps: int = 4
    stages: int = 1

    @property
    def function(self) -> Any:
        module, name = self.kernel.split(".")
        return getattr(importlib.import_module(f"tconv.kernels.{module}"), name)

    @property
    def options(self) -> dict[str, Any]:
        """Compiler options. Fused multiply-add is asked for: Triton's default is to change."""
        return {
            "num_warps": self.warps,
            "num_stages": self.stages,
            "enable_fp_fusion": True,
        }

    def run(self, **tensors: torch.Tensor) -> None:
        """Run on ``tensors``, one for each of ``pointers``."""
        assert tensors.keys() == self.pointers.keys(), (tensors.keys(), self.pointers.keys())
        if 0 in self.grid:
            return
        arguments = {**tensors, **self.scalars, **self.constants, **self.options}
        anchor = next(iter(tensors.values()))
        with _device(anchor):
            self.function[self.grid](**arguments)
        for log in _logs:
            log.append(self)


_logs: list[list[Launch]] = []


@contextlib.contextmanager
def recorded() -> Iterator[list[Launch]]:
    """The launches that are made within the ``with`` block, in order."""
    log: list[Launch] = []
    _logs.append(log)
    try:
        yield log
    finally:
        # By identity: two empty logs are equal.
        _logs[:] = [other for other in _logs if other is not log]


def _device(tensor: torch.Tensor) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be the tensor's."""
    if tensor.is_cuda and tensor.device.index != torch.cuda.current_device():
        return torch.cuda.device(tensor.device)
    return contextlib.nullcontext()


def interpreting() -> bool:
    """Whether kernels run in Triton's interpreter (``TRITON_INTERPRET=1`` at import)."""
    from tconv.kernels import fprop

    return isinstance(fprop.implicit_gemm_fprop, InterpretedFunction)


def runs_triton(device: torch.device) -> bool:
    """Whether tensors on ``device`` go to Triton kernels, rather than to torch's CPU operators."""
    return device.type == "cuda" or (device.type == "cpu" and interpreting())


def target_for(device: torch.device) -> Target:
    """The target that tensors on ``device`` are computed on."""
    if device.type != "cuda" or interpreting():
        return INTERPRETER
    index = device.index if device.index is not None else torch.cuda.current_device()
    return target_of(index)


cdiv = triton.cdiv
