"""Compile one launch for a GPU that may be absent, under the key by which a launch finds it.

Runs in worker processes without ``TRITON_INTERPRET``. Triton's disk cache makes recompiling the
same source a matter of milliseconds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from tconv import kernel_cache
from tconv.launch import Launch
from tconv.target import Target

# What changes in a compiling worker's environment; None removes a variable.
ENVIRONMENT: dict[str, str | None] = {
    "TRITON_INTERPRET": None, "TCONV_EMULATE": None, "TCONV_BACKGROUND": None,
}  # fmt: skip


@dataclass(frozen=True)
class Built:
    """A compiled kernel in Triton's cache."""

    key: str  # Triton's hash of source, target and options
    hit: bool  # whether the cache held it before


class _Driver:
    """A Triton driver for a GPU that may be absent: it knows its target but cannot launch.

    The "device" is the target itself, so that Triton's JIT keeps the kernels of each target apart.
    """

    def __init__(self, target: Any) -> None:
        self._target = target

    def get_current_device(self) -> Any:
        return self._target

    def get_current_target(self) -> Any:
        return self._target

    def get_current_stream(self, device: Any) -> int:
        return 0


def gpu_target(target: Target) -> Any:
    """Return Triton's description of ``target``."""
    return GPUTarget(target.backend, target.capability, target.warp_size)


@contextlib.contextmanager
def _compiling_for(gpu: Any) -> Iterator[None]:
    """Make Triton's JIT compile for ``gpu`` without querying this machine's driver."""
    before = driver._active  # reading ``driver.active`` would look for a GPU
    driver.set_active(_Driver(gpu))
    try:
        yield
    finally:
        driver._active = before


def build(launch: Launch, target: Target) -> Any:
    """Compile the kernel of ``launch`` with Triton's JIT, so that a later launch hits the cache.

    The key of Triton's disk cache depends on how each argument is specialised, which differs
    between versions of Triton. The JIT decides this here exactly as in a launch. Empty tensors
    stand in for the operands: their address, 0, is as aligned as freshly allocated memory.
    """
    kernel_cache.guard()
    gpu = gpu_target(target)
    tensors = {
        operand.tensor: torch.empty(0, dtype=getattr(torch, operand.dtype))
        for operand in launch.operands.values()
    }
    with _compiling_for(gpu):
        arguments = launch.arguments(tensors, target.backend)
        compiled = launch.function.warmup(grid=launch.grid, **arguments)
    # The JIT would keep every candidate's code until the process ends.
    launch.function.device_caches.pop(gpu, None)
    return compiled


def ensure(launch: Launch, target: Target) -> Built:
    """Compile the kernel of ``launch`` unless Triton's cache holds it; a task for a worker."""
    hits: list[bool] = []

    def note(*, cache_hit: bool, **_: Any) -> None:
        hits.append(cache_hit)

    before = triton.knobs.compilation.listener
    triton.knobs.compilation.listener = note
    try:
        compiled = build(launch, target)
    finally:
        triton.knobs.compilation.listener = before
    return Built(compiled.hash, all(hits))
