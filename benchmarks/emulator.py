"""Benchmark the emulated GPU on the kernels of a few problems, with its time by module.

    python -m benchmarks.emulator --target sm_90 --limit 4

Each row is one launch on a scaled-down geometry: its warp instructions, its seconds beyond
compiling, and the shares of translating PTX to Python and of the engine's modules.
"""

from __future__ import annotations

import cProfile
import os
import pstats
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

if os.environ.get("TRITON_INTERPRET"):
    sys.exit("unset TRITON_INTERPRET: this runs compiled code")

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from tconv.aot.build import build
from tconv.command_line import command_line
from tconv.emulator import Machine, Memory, Program, TensorMap
from tconv.emulator.translate import translate
from tconv.families import FAMILIES
from tconv.geometry import ConvGeometry
from tconv.launch import Descriptor, Launch
from tconv.problem import Problem
from tconv.select import choose
from tconv.target import TARGETS, Target

PROBLEMS = [
    Problem(ConvGeometry(2, 32, 12, 12, 48, 3, 3, pad_h=1, pad_w=1), "fprop", "float16"),
    Problem(ConvGeometry(2, 64, 16, 16, 64, 3, 3, pad_h=1, pad_w=1), "dgrad", "float16"),
    Problem(ConvGeometry(2, 64, 16, 16, 64, 3, 3, pad_h=1, pad_w=1), "wgrad", "float16"),
    Problem(ConvGeometry(2, 32, 16, 16, 32, 3, 3, pad_h=1, pad_w=1, groups=32), "fprop", "float16"),
]
WIDTHS = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8, "int8": 1}


def arguments_of(launch: Launch, compiled: Any, memory: Memory) -> list[Any]:
    """Return a launch's arguments as the driver passes them, with zeroed tensors."""
    maps = iter(getattr(compiled.metadata, "tensordesc_meta", None) or [])
    found: list[Any] = []
    for parameter in launch.function.params:
        operand = launch.operands.get(parameter.name)
        if operand is None:
            value = launch.scalars.get(parameter.name)
            if value is not None and (value != 1 or parameter.do_not_specialize):
                found.append(value)
        elif isinstance(operand, Descriptor):
            meta, shape, strides = next(maps), list(operand.shape), list(operand.strides)
            count = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
            address = memory.put(np.zeros(count * meta["elem_size"], np.uint8), name=parameter.name)
            box, size, swizzle = meta["block_size"], meta["elem_size"], meta["swizzle"]
            found += [TensorMap(address, shape, strides, box, size, swizzle), *shape, *strides]
        else:
            found.append(memory.put(np.zeros(1 << 23, np.uint8), name=parameter.name))
    return found


def measure(launch: Launch, target: Target) -> dict[str, Any]:
    """Return the seconds and counts of one launch."""
    compiled = build(launch, target)
    start = time.perf_counter()
    program = Program.parse(compiled.asm["ptx"])
    translate(program)
    translated = time.perf_counter() - start
    memory = Memory()
    arguments = arguments_of(launch, compiled, memory)
    arguments += [0] * (len(program.parameters) - len(arguments))
    options = {"shared_bytes": compiled.metadata.shared}
    start = time.perf_counter()
    counters = Machine(program, memory, arguments, launch.grid, **options).run()
    seconds = time.perf_counter() - start
    profile = cProfile.Profile()
    profile.runcall(Machine(program, memory, arguments, launch.grid, **options).run)
    parts: Counter[str] = Counter()
    for (file, _, name), row in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        inner = row[2]
        parts["NumPy's calls" if file == "~" or "numpy" in file else _part(file, name)] += inner
    whole = sum(parts.values())
    return {
        "seconds": seconds,
        "translating": translated,
        "instructions": sum(counters.instructions.values()),
        "blocks": counters.blocks,
        "parts": {name: value / whole for name, value in parts.most_common(4)},
    }


def _part(file: str, name: str) -> str:
    return "generated code" if file.startswith("<") and name == "run" else Path(file).stem


def main(
    target: Annotated[str, typer.Option(help="sm_80 or sm_90")] = "sm_90",
    limit: Annotated[int, typer.Option(help="problems to take")] = len(PROBLEMS),
) -> None:
    """Print one row for each launch."""
    table = Table(title=f"emulated {target}; seconds beyond compiling")
    for heading in ("kernel", "blocks", "instructions", "s", "k instr/s", "translating s", "parts"):
        table.add_column(heading)
    machine = TARGETS[target]
    for problem in PROBLEMS[:limit]:
        choice = choose(problem, machine)
        plan = FAMILIES[choice.family].plan(problem, choice.tile, machine)
        for launch in plan.launches:
            row = measure(launch, machine)
            table.add_row(
                f"{launch.kernel} {problem.direction}",
                str(row["blocks"]), str(row["instructions"]),
                f"{row['seconds']:.2f}", f"{row['instructions'] / row['seconds'] / 1e3:.0f}",
                f"{row['translating']:.2f}",
                ", ".join(f"{name} {part:.0%}" for name, part in row["parts"].items()),
            )  # fmt: skip
    Console(width=180).print(table)


if __name__ == "__main__":
    with command_line():
        typer.run(main)
