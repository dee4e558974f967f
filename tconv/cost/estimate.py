"""Estimated resources of compiled code, and how many of its programs fit on a processor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tconv.cost.space import buffers_of, resident_by_shared, shared_bytes
from tconv.families import FAMILIES, Family
from tconv.families.demand import REGISTERS_PER_THREAD, Demand
from tconv.problem import Problem
from tconv.target import Target
from tconv.tile import Choice, Count, Tiles

# Hardware facts: CUDA C++ Programming Guide ("Compute Capabilities"), CDNA3 ISA guide.
REGISTER_GRAIN = {"cuda": 8, "hip": 8}  # registers are allocated to a thread in eights
SCHEDULERS = 4  # a processor's register file and warps are divided evenly among four


ASYNCHRONOUS_BYTES = 4  # the narrowest load directly to shared memory (cp.async)


@dataclass(frozen=True)
class Resources:
    """Resources of compiled code, read from the binary or estimated for many tiles at once."""

    registers: Count  # per thread
    spill_bytes: Count  # per thread, on the stack
    shared_bytes: Count  # per program
    instructions: Count  # of the innermost matrix loop; 0 if it could not be read


def estimated_resources(choice: Choice, problem: Problem, target: Target) -> Resources:
    """Return the kernel family's estimate of a choice's resources before compilation."""
    family, tiles = FAMILIES[choice.family], Tiles.of([choice.tile])
    found = estimate(problem, family, tiles, target, family.demand(problem, tiles, target))
    return Resources(*(int(np.ravel(getattr(found, name))[0]) for name in (
        "registers", "spill_bytes", "shared_bytes", "instructions")))  # fmt: skip


def estimate(
    problem: Problem, family: Family, tiles: Tiles, target: Target, demand: Demand
) -> Resources:
    """Estimate the resources of many tiles from the demands of their threads.

    An operand loaded two bytes at a time is stored by the threads, so it takes one buffer however
    deep the pipeline is.
    """
    limit = REGISTERS_PER_THREAD.get(target.backend, 255)
    least = demand.registers if demand.least_registers is None else demand.least_registers
    shared = shared_bytes(problem, family, tiles, target)
    if family.matrix_unit:
        spared = (buffers_of(tiles, target) - 1) * problem.itemsize * tiles.block_k
        first, second = (np.less(each, ASYNCHRONOUS_BYTES) for each in demand.load_bytes)
        shared = shared - spared * (first * tiles.block_m + second * tiles.block_n)
    return Resources(
        registers=np.minimum(limit, demand.registers),
        spill_bytes=np.maximum(0, least - limit) * 4,
        shared_bytes=shared,
        instructions=np.rint(demand.instructions),
    )


def resident_programs(resources: Resources, warps: Count, target: Target) -> Count:
    """Return how many programs one processor holds at once; 0 if a single one is too large."""
    grain = REGISTER_GRAIN.get(target.backend, 8)
    registers = -(-np.maximum(resources.registers, 1) // grain) * grain * target.warp_size
    # Each scheduler uses its own quarter of the register file.
    warps_by_registers = target.registers_per_processor // SCHEDULERS // registers * SCHEDULERS
    by_shared = resident_by_shared(resources.shared_bytes, target)
    found = np.minimum(target.warps_per_processor // warps, warps_by_registers // warps)
    found = np.minimum(np.minimum(found, by_shared), target.programs_per_processor)
    return np.where(resources.shared_bytes > target.shared_per_program, 0, found)
