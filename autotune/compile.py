"""Compile a choice for a GPU that need not be there, and read what the code takes.

Runs in worker processes without ``TRITON_INTERPRET``. Triton's own disk cache makes a second
compilation of the same source a matter of milliseconds.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune.disassembly import amd_loop_instructions, matrix_loop_instructions
from tconv import kernel_cache
from tconv.cost.estimate import Resources
from tconv.problem import Problem
from tconv.target import Target
from tconv.tile import Choice

if TYPE_CHECKING:
    from tconv.launch import Launch

ENVIRONMENT: dict[str, str | None] = {"TRITON_INTERPRET": None, "TCONV_EMULATE": None}


@dataclass(frozen=True)
class Compiled:
    """What the code of one choice takes: its matrix kernel, and the worst of its helpers."""

    resources: Resources
    helper_spill_bytes: int = 0


def _gpu_target(target: Target) -> Any:
    from triton.backends.compiler import GPUTarget

    return GPUTarget(target.backend, target.capability, target.warp_size)


class _Driver:
    """A Triton driver of a GPU that need not be there: it knows its target and can launch nothing.

    Its "device" is the target itself, so that Triton's JIT keeps the kernels of each target apart.
    """

    def __init__(self, target: Any) -> None:
        self._target = target

    def get_current_device(self) -> Any:
        return self._target

    def get_current_target(self) -> Any:
        return self._target

    def get_current_stream(self, device: Any) -> int:
        return 0


@contextlib.contextmanager
def _compiling_for(gpu: Any) -> Iterator[None]:
    """Let Triton's JIT compile for ``gpu`` without asking for the machine's own driver."""
    from triton.runtime import driver

    before = driver._active  # ``driver.active`` would look for a GPU
    driver.set_active(_Driver(gpu))
    try:
        yield
    finally:
        driver._active = before


def _tool(name: str) -> str:
    """Path of one of the CUDA tools that Triton ships."""
    import triton

    knob = getattr(triton.knobs.nvidia, name, None) if hasattr(triton, "knobs") else None
    if knob is not None:
        return str(knob.path)
    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


def _cuda_resources(compiled: Any, steps: int) -> Resources:
    usage = _cubin_told(compiled, "cuobjdump", "--dump-resource-usage")
    counted = matrix_loop_instructions(listing_of(compiled), steps) if steps else 0
    match = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if match is None:
        raise RuntimeError("cuobjdump told no registers")
    return Resources(
        registers=int(match[1]),
        spill_bytes=int(match[2]),  # LOCAL stays 0: spills go to the stack
        shared_bytes=compiled.metadata.shared,
        instructions=counted,
    )


def listing_of(compiled: Any) -> str:
    """The SASS of a kernel compiled for NVIDIA."""
    return _cubin_told(compiled, "nvdisasm", "-c")


def _cubin_told(compiled: Any, tool: str, option: str) -> str:
    """What one of the CUDA tools prints of a kernel."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        return _output(_tool(tool), option, str(cubin))


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _hip_resources(compiled: Any, steps: int) -> Resources:
    text = compiled.asm["amdgcn"]

    def number(name: str) -> int:
        match = re.search(rf"\.{name}:\s*(\d+)", text)
        return int(match[1]) if match else 0

    # .vgpr_count includes the accumulation registers on CDNA3, which has one file for both.
    return Resources(
        registers=number("vgpr_count"),
        spill_bytes=4 * number("vgpr_spill_count"),
        shared_bytes=compiled.metadata.shared,
        instructions=amd_loop_instructions(text, steps) if steps else 0,
    )


Reader = Callable[[Any, int], Resources]
READERS: dict[str, Reader] = {"cuda": _cuda_resources, "hip": _hip_resources}


def build(launch: Launch, target: Target) -> Any:
    """The kernel of ``launch``, compiled by Triton's JIT, so that a launch finds it in the cache.

    The key of Triton's disk cache covers how each argument is specialised, which differs between
    versions of Triton: the JIT itself decides it, here as in a launch. Empty tensors stand for
    the operands: their address, 0, is aligned as fresh memory is.
    """
    import torch

    kernel_cache.guard()
    gpu = _gpu_target(target)
    tensors = {
        operand.tensor: torch.empty(0, dtype=getattr(torch, operand.dtype))
        for operand in launch.operands.values()
    }
    with _compiling_for(gpu):
        arguments = launch.arguments(tensors, target.backend)
        compiled = launch.function.warmup(grid=launch.grid, **arguments)
    # The JIT would keep every candidate's code for the life of the process.
    launch.function.device_caches.pop(gpu, None)
    return compiled


def compile_launch(launch: Launch, target: Target, steps: int = 1) -> Resources:
    """Compile one kernel; ``steps`` is how often its loop runs, should it be unrolled.

    With 0 its instructions are not counted: disassembling takes longer than compiling.
    """
    return READERS[target.backend](build(launch, target), steps)


def compile_choice(problem: Problem, choice: Choice, target: Target) -> Compiled:
    """Compile every kernel of ``choice``."""
    from tconv.families import FAMILIES, matmul_shape

    steps = int(matmul_shape(problem, choice.family).steps(choice.tile))
    plan = FAMILIES[choice.family].plan(problem, choice.tile, target)
    found = [
        compile_launch(launch, target, max(1, steps) if place == plan.product else 0)
        for place, launch in enumerate(plan.launches)
    ]
    product = found.pop(plan.product)
    return Compiled(product, max((helper.spill_bytes for helper in found), default=0))
