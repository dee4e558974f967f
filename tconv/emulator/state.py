"""What blocks that run side by side share: registers, memory, counters, the place of a fault."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tconv.emulator.counters import Counters
from tconv.emulator.faults import Fault
from tconv.emulator.memory import Memory
from tconv.emulator.ptx import WIDTHS, Address, Immediate, Program, Register
from tconv.emulator.requests import wavefronts_of
from tconv.emulator.shared_memory import SharedMemory
from tconv.emulator.tensor_map import TensorMap

Array = NDArray[Any]
RUNNING, AT_BARRIER, WAITING, DONE = 0, 1, 2, 3  # of a lane
UNDEFINED = {0: np.bool_(True), 1: np.uint8(0xFF), 2: np.uint16(0xFFFF), 4: np.uint32(0xFFFFFFFF),
             8: np.uint64(0xFFFFFFFFFFFFFFFF)}  # fmt: skip


@dataclass
class Launch:
    """State shared by all blocks of a launch."""

    program: Program
    memory: Memory
    grid: tuple[int, ...]
    shared_bytes: int
    late: bool  # asynchronous copies arrive as late as a wait allows
    values: dict[str, int]  # of parameters
    maps: dict[int, TensorMap]  # by address


class State:
    """A group of blocks as lanes of arrays, one lane for each thread."""

    def __init__(
        self, launch: Launch, blocks: list[tuple[int, int, int]], counters: Counters
    ) -> None:
        self.launch, self.blocks, self.counters = launch, blocks, counters
        self.program, self.memory, self.late = launch.program, launch.memory, launch.late
        self.threads = self.program.threads
        self.lanes = len(blocks) * self.threads
        self.shared = SharedMemory(
            len(blocks), launch.shared_bytes, self.threads, granule_of(self.program)
        )
        self.special = self._special()
        self.registers = self._undefined()
        self.at = 0  # the instruction in execution, for faults
        self.active: Array | None = None  # its lanes
        self.mask: Array | None = None  # the lanes of the run in execution
        self.state = np.zeros(self.lanes, np.int8)
        self.pc = np.zeros(self.lanes, np.int64)
        self.parameters: dict[tuple[str, int], Array] = {}
        self.patterns: dict[int, tuple[Array, tuple[int, int, int]]] = {}

    def _special(self) -> dict[str, Array]:
        count = len(self.blocks)
        thread = np.tile(np.arange(self.threads, dtype=np.uint32), count)
        places = np.repeat(np.array(self.blocks, np.uint32), self.threads, axis=0)

        def constant(value: int) -> Array:
            return np.full(self.lanes, value, np.uint32)

        zero, one = constant(0), constant(1)
        found = {"%tid.x": thread, "%tid.y": zero, "%tid.z": zero, "%laneid": thread % 32,
                 "%warpid": thread // 32, "%ntid.x": constant(self.threads), "%ntid.y": one,
                 "%ntid.z": one, "%cluster_ctaid.x": zero, "%cluster_ctarank": zero,
                 "%cluster_nctaid.x": one, "%cluster_nctarank": one, "%smid": zero,
                 "%nwarpid": constant(self.threads // 32),
                 "%dynamic_smem_size": constant(self.launch.shared_bytes)}  # fmt: skip
        for axis, name in enumerate("xyz"):
            found[f"%ctaid.{name}"] = np.ascontiguousarray(places[:, axis])
            found[f"%nctaid.{name}"] = constant(self.launch.grid[axis])
            found[f"%clusterid.{name}"] = found[f"%ctaid.{name}"]
        lane = thread % 32
        found["%lanemask_eq"] = np.uint32(1) << lane
        found["%lanemask_lt"] = found["%lanemask_eq"] - np.uint32(1)
        found["%lanemask_le"] = found["%lanemask_lt"] | found["%lanemask_eq"]
        found["%lanemask_gt"] = ~found["%lanemask_le"]
        found["%lanemask_ge"] = ~found["%lanemask_lt"]
        return found

    def _undefined(self) -> list[Any]:
        values = {width: np.full(self.lanes, value) for width, value in UNDEFINED.items()}
        return [values[register.width] for register in self.program.registers]

    def lane_array(self, value: Any) -> Array:
        """A contiguous array with an element for each lane."""
        if getattr(value, "ndim", 0) == 1:
            return np.ascontiguousarray(value)
        return np.full(self.lanes, value)

    def parameter(self, name: str, width: int) -> Array:
        """The value of a kernel parameter in all lanes."""
        key = name, width
        if key not in self.parameters:
            dtype = UNDEFINED[width].dtype.type
            value = self.launch.values[name] & ((1 << 8 * width) - 1)
            self.parameters[key] = np.full(self.lanes, dtype(value))
        return self.parameters[key]

    def select(self, index: int, mask: Array | None) -> Array | None:
        """Note the instruction in execution; its lanes, or None for all."""
        self.at = index
        if mask is None:
            self.active = None
            return None
        lanes = np.flatnonzero(mask)
        self.active = None if len(lanes) == self.lanes else lanes
        return self.active

    def spread(self, rows: Array, lanes: Array | None) -> Any:
        """Columns of ``rows`` as arrays of all lanes; other lanes hold 0."""
        count = rows.shape[1]
        if lanes is None:
            return (rows.reshape(-1),) if count == 1 else tuple(np.ascontiguousarray(rows.T))
        out = np.zeros((count, self.lanes), rows.dtype)
        out[:, lanes] = rows.T
        return tuple(out)

    def count_shared(self, at: Array, width: int, lanes: Array | None, store: bool) -> None:
        """Count the requests, wavefronts and least wavefronts of an access."""
        requests, waves, least = wavefronts_of(
            at, width, lanes, self.threads, self.patterns, self.at
        )
        if store:
            self.counters.shared_store_requests += requests
            self.counters.shared_store_wavefronts += waves
        else:
            self.counters.shared_load_requests += requests
            self.counters.shared_load_wavefronts += waves
        self.counters.shared_ideal_wavefronts += least

    def value(self, operand: Any, width: int = 4) -> Array:
        """An operand of a terminator in all lanes."""
        dtype = UNDEFINED[width].dtype.type
        if isinstance(operand, Register):
            return self.registers[operand.index]
        if isinstance(operand, Address):
            return self.value(operand.base, width) + dtype(operand.offset)
        if isinstance(operand, Immediate):
            return np.full(self.lanes, dtype(operand.bits & ((1 << 8 * width) - 1)))
        return np.full(self.lanes, dtype(self.program.statics[operand.name]))

    def thread_name(self, lane: int) -> str:
        """The words for a lane's block and thread."""
        return f"block {self.blocks[lane // self.threads]} thread {lane % self.threads}"

    def located(self, fault: Fault) -> Fault:
        instruction = self.program.instructions[min(self.at, len(self.program.instructions) - 1)]
        position = getattr(fault, "position", None)
        if not fault.thread:
            lane: int | None = None
            if position is not None:
                lane = int(position if self.active is None else self.active[position])
            elif self.active is not None and len(self.active):
                lane = int(self.active[0])
            fault.thread = self.thread_name(lane) if lane is not None else self.thread_name(0)
        return fault.at(self.program.name, instruction.source, instruction.text)


def granule_of(program: Program) -> int:
    """Bytes of the smallest access to shared memory that a program may make."""
    least = 16
    for instruction in program.instructions:
        parts = instruction.parts
        if parts[0] in ("ld", "st", "atom", "red") and any(p.startswith("shared") for p in parts):
            vector = instruction.operands[0 if parts[0] == "ld" else 1]
            count = len(getattr(vector, "items", (0,))) if parts[0] in ("ld", "st") else 1
            width = max(WIDTHS[part] for part in parts if part in WIDTHS)
            least = min(least, width * count)
        elif parts[0] == "tensormap":
            least = min(least, 4)
        elif parts[:2] == ("cp", "async") and parts[2] in ("ca", "cg"):
            least = min(least, instruction.operands[2].bits)
    return least
