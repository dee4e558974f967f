"""Compile a choice for a GPU that may be absent, and read the resources its code uses.

Runs in worker processes without ``TRITON_INTERPRET``.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotune.disassembly import amd_loop_instructions, matrix_loop_instructions
from tconv.aot.build import build
from tconv.cost.estimate import Resources
from tconv.families import FAMILIES, matmul_shape
from tconv.families.demand import matrix_instructions
from tconv.launch import Launch
from tconv.problem import Problem
from tconv.target import Target
from tconv.tile import Choice


@dataclass(frozen=True)
class Compiled:
    """Resources of one choice's matrix kernel, and the largest spill of its helper kernels."""

    resources: Resources
    helper_spill_bytes: int = 0


def _tool_path(name: str) -> str:
    """Return the path of a CUDA tool that Triton ships."""
    import triton

    knob = getattr(triton.knobs.nvidia, name, None) if hasattr(triton, "knobs") else None
    if knob is not None:
        return str(knob.path)
    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


def _cuda_resources(compiled: Any, steps: int, products: float) -> Resources:
    usage = _cubin_tool_output(compiled, "cuobjdump", "--dump-resource-usage")
    counted = matrix_loop_instructions(listing_of(compiled), steps, products) if steps else 0
    match = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if match is None:
        raise RuntimeError("cuobjdump reported no registers")
    return Resources(
        registers=int(match[1]),
        spill_bytes=int(match[2]),  # spills go to the stack; LOCAL stays 0
        shared_bytes=compiled.metadata.shared,
        instructions=counted,
    )


def listing_of(compiled: Any) -> str:
    """Return the SASS of a kernel compiled for NVIDIA."""
    return _cubin_tool_output(compiled, "nvdisasm", "-c")


def _cubin_tool_output(compiled: Any, tool: str, option: str) -> str:
    """Return a CUDA tool's output for a compiled kernel."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        return _output(_tool_path(tool), option, str(cubin))


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _hip_resources(compiled: Any, steps: int, _products: float) -> Resources:
    text = compiled.asm["amdgcn"]

    def number(name: str) -> int:
        match = re.search(rf"\.{name}:\s*(\d+)", text)
        return int(match[1]) if match else 0

    # .vgpr_count includes accumulation registers: CDNA3 has one register file for both.
    return Resources(
        registers=number("vgpr_count"),
        spill_bytes=4 * number("vgpr_spill_count"),
        shared_bytes=compiled.metadata.shared,
        instructions=amd_loop_instructions(text, steps) if steps else 0,
    )


Reader = Callable[[Any, int, float], Resources]
READERS: dict[str, Reader] = {"cuda": _cuda_resources, "hip": _hip_resources}


def compile_launch(
    launch: Launch, target: Target, steps: int = 1, products: float = 0
) -> Resources:
    """Compile one kernel and return its resources.

    Args:
        launch: the kernel and its arguments.
        target: the GPU to compile for.
        steps: trip count of the kernel's loop, used if the loop is unrolled. With 0 the
            instructions are not counted: disassembling takes longer than compiling.
        products: multiply instructions of a warp in one step; 0 if unknown.
    """
    return READERS[target.backend](build(launch, target), steps, products)


def products_of_step(problem: Problem, choice: Choice, target: Target) -> float:
    """Return the multiply instructions that a warp issues in one step; 0 if unknown.

    >>> from tconv.geometry import ConvGeometry
    >>> from tconv.target import TARGETS
    >>> from tconv.tile import Tile
    >>> problem = Problem(ConvGeometry(8, 256, 28, 28, 128, 3, 3), "fprop")
    >>> shared = Choice("implicit_gemm", Tile(64, 128, 32, warps=8))
    >>> products_of_step(problem, shared, TARGETS["sm_90"])
    2.0
    """
    family = FAMILIES[choice.family]
    if not family.matrix_unit or problem.arithmetic == "float64":  # its shape differs between GPUs
        return 0.0
    return float(matrix_instructions(family.issued(problem, choice.tile), problem, target))


def compile_choice(problem: Problem, choice: Choice, target: Target) -> Compiled:
    """Compile every kernel of ``choice``."""
    steps = int(matmul_shape(problem, choice.family).steps(choice.tile))
    products = products_of_step(problem, choice, target)
    plan = FAMILIES[choice.family].plan(problem, choice.tile, target)
    found = [
        compile_launch(launch, target, max(1, steps), products)
        if place == plan.product
        else compile_launch(launch, target, 0)
        for place, launch in enumerate(plan.launches)
    ]
    product = found.pop(plan.product)
    return Compiled(product, max((helper.spill_bytes for helper in found), default=0))
