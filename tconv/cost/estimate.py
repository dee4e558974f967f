"""Estimated resources of compiled code, and how many programs of it a processor holds."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tconv.cost.space import REGISTERS_PER_THREAD, shared_bytes
from tconv.families import FAMILIES
from tconv.problem import Problem
from tconv.target import Target
from tconv.tile import Choice

# Hardware facts: CUDA C++ Programming Guide ("Compute Capabilities"), CDNA3 ISA guide.
REGISTER_GRAIN = {"cuda": 8, "hip": 8}  # a thread's registers are allotted in eights
SCHEDULERS = 4  # a processor's register file and warps are shared among four, evenly
RESERVED_SHARED = {"cuda": 1024, "hip": 0}  # bytes a program, for the system
SHARED_GRAIN = 128  # bytes


@dataclass(frozen=True)
class Resources:
    """What the compiled code takes, read from the binary."""

    registers: int  # a thread
    spill_bytes: int  # a thread, on the stack
    shared_bytes: int  # a program
    instructions: int  # of the innermost matrix loop; 0 where it could not be read


def estimated_resources(choice: Choice, problem: Problem, target: Target) -> Resources:
    """Resources before compilation, as the kernel family estimates them."""
    limit = REGISTERS_PER_THREAD.get(target.backend, 255)
    demand = FAMILIES[choice.family].demand(problem, choice.tile, target)
    least = demand.registers if demand.least_registers is None else demand.least_registers
    return Resources(
        registers=min(limit, demand.registers),
        spill_bytes=max(0, least - limit) * 4,
        shared_bytes=shared_bytes(choice, problem, target),
        instructions=round(demand.instructions),
    )


def resident_programs(resources: Resources, warps: int, target: Target) -> int:
    """Programs that one processor holds at once; 0 where one alone is too large."""
    if resources.shared_bytes > target.shared_per_program:
        return 0
    grain = REGISTER_GRAIN.get(target.backend, 8)
    registers = math.ceil(max(resources.registers, 1) / grain) * grain * target.warp_size
    # Each scheduler serves its own quarter of the register file.
    warps_by_registers = target.registers_per_processor // SCHEDULERS // registers * SCHEDULERS
    taken = resources.shared_bytes + RESERVED_SHARED.get(target.backend, 0)
    taken = math.ceil(taken / SHARED_GRAIN) * SHARED_GRAIN
    by_shared = target.shared_per_processor // taken if taken else target.programs_per_processor
    by_warps = target.warps_per_processor // warps
    return min(by_warps, warps_by_registers // warps, by_shared, target.programs_per_processor)
