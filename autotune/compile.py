"""Compile a choice for a GPU that need not be there, and read what the code takes.

Runs in worker processes without ``TRITON_INTERPRET``. Triton's own disk cache makes a second
compilation of the same source a matter of milliseconds.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune.disassembly import amd_loop_instructions, matrix_loop_instructions
from tconv import kernel_cache
from tconv.choice import Choice
from tconv.cost.estimate import Resources
from tconv.cost.product import product_of
from tconv.problem import Problem
from tconv.target import Target

if TYPE_CHECKING:
    from tconv.launch import Launch

ENVIRONMENT: dict[str, str | None] = {"TRITON_INTERPRET": None}
LARGEST_INT32 = (1 << 31) - 1
DIVISIBLE = [["tt.divisibility", 16]]  # what Triton's JIT notes of aligned pointers and integers


@dataclass(frozen=True)
class Compiled:
    """What the code of one choice takes: its matrix kernel, and the worst of its helpers."""

    resources: Resources
    helper_spill_bytes: int = 0


def _gpu_target(target: Target) -> Any:
    from triton.backends.compiler import GPUTarget

    return GPUTarget(target.backend, target.capability, target.warp_size)


def source_of(launch: Launch) -> Any:
    """Triton's description of ``launch``, specialised as its JIT would on aligned tensors."""
    from triton.compiler import ASTSource

    from tconv.launch import TRITON_DTYPE, Pointer

    function = launch.function
    signature: dict[str, str] = {}
    constants = dict(launch.constants)
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for position, parameter in enumerate(function.params):
        name = parameter.name
        operand = launch.operands.get(name)
        if isinstance(operand, Pointer):
            signature[name] = f"*{TRITON_DTYPE[operand.dtype]}"
            attributes[(position,)] = DIVISIBLE
        elif operand is not None:
            box = ",".join(map(str, operand.box))
            signature[name] = f"tensordesc<{TRITON_DTYPE[operand.dtype]}[{box}]>"
        elif name in launch.scalars:
            value = launch.scalars[name]
            signature[name] = "i32" if abs(value) <= LARGEST_INT32 else "i64"
            if parameter.do_not_specialize:
                continue
            if value == 1:
                signature[name], constants[name] = "constexpr", 1
            elif value % 16 == 0:
                attributes[(position,)] = DIVISIBLE
        else:
            signature[name] = "constexpr"
    return ASTSource(function, signature, constexprs=constants, attrs=attributes)


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
    """The compiled kernel, as Triton hands it out."""
    import triton

    kernel_cache.guard()
    return triton.compile(source_of(launch), target=_gpu_target(target), options=launch.options)


def compile_launch(launch: Launch, target: Target, steps: int = 1) -> Resources:
    """Compile one kernel; ``steps`` is how often its loop runs, should it be unrolled.

    With 0 its instructions are not counted: disassembling takes longer than compiling.
    """
    return READERS[target.backend](build(launch, target), steps)


def compile_choice(problem: Problem, choice: Choice, target: Target) -> Compiled:
    """Compile every kernel of ``choice``."""
    from tconv.algorithms import ALGORITHMS

    steps = int(product_of(problem, choice.algorithm).steps(choice.tile))
    plan = ALGORITHMS[choice.algorithm].plan(problem, choice.tile, target)
    found = [
        compile_launch(launch, target, max(1, steps) if place == plan.product else 0)
        for place, launch in enumerate(plan.launches)
    ]
    product = found.pop(plan.product)
    return Compiled(product, max((helper.spill_bytes for helper in found), default=0))
