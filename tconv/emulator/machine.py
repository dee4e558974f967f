"""A kernel's launch on the emulated GPU: its limits, its arguments, and its blocks in groups."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from tconv.emulator.counters import Counters
from tconv.emulator.emitter import parameter_address
from tconv.emulator.faults import Fault
from tconv.emulator.lanes import Lanes
from tconv.emulator.memory import Memory
from tconv.emulator.ptx import Program
from tconv.emulator.state import Launch
from tconv.emulator.tensor_map import TensorMap
from tconv.emulator.translate import translate

MOST_GRID = ((1 << 31) - 1, 65535, 65535)  # CUDA C++ Programming Guide, "Compute Capabilities"
MOST_THREADS = 1024
MOST_SHARED = {"80": 166912, "86": 101376, "89": 101376, "90": 232448}  # bytes a block may take
LANES = 2048  # threads executed together: enough to amortise the cost of a NumPy call


class Machine:
    """One launch of ``program``.

    ``arguments`` are integers, floats or `TensorMap` for the kernel's parameters, in order.
    ``shared_bytes`` is the shared memory of a block (Triton's ``metadata.shared``).
    ``copies`` says when data of an asynchronous copy arrives: as late as a wait allows, or at
    once. A correct kernel gives the same values either way.

    Raises `Fault` ("launch limit") for what the hardware refuses, and `NotCovered` with its name
    for an instruction that the emulated GPU does not know.
    """

    def __init__(
        self,
        program: Program,
        memory: Memory,
        arguments: Sequence[Any],
        grid: Sequence[int],
        shared_bytes: int = 0,
        copies: Literal["late", "early"] = "late",
        lanes: int = LANES,
    ) -> None:
        self.program, self.memory = program, memory
        self.grid = (*(int(extent) for extent in grid), 1, 1)[:3]
        self.shared_bytes = max(int(shared_bytes), program.static_bytes, 16)
        self.copies = copies
        self.side_by_side = max(1, lanes // max(1, program.threads))
        self.values: dict[str, int] = {}
        self.maps: dict[int, TensorMap] = {}
        self.runs = translate(program)
        self._check_limits()
        self._take(arguments)

    def _check_limits(self) -> None:
        def refuse(message: str) -> None:
            raise Fault("launch limit", message, kernel=self.program.name)

        for axis, (extent, most) in enumerate(zip(self.grid, MOST_GRID, strict=True)):
            if not 1 <= extent <= most:
                refuse(f"grid axis {axis} of {extent} blocks is not between 1 and {most}")
        if not 1 <= self.program.threads <= MOST_THREADS:
            refuse(f"{self.program.threads} threads a block are not between 1 and {MOST_THREADS}")
        most_shared = MOST_SHARED.get(self.program.target[3:5], 101376)
        if self.shared_bytes > most_shared:
            refuse(
                f"{self.shared_bytes} bytes of shared memory a block are more than the "
                f"{most_shared} of {self.program.target}"
            )

    def _take(self, arguments: Sequence[Any]) -> None:
        parameters = self.program.parameters
        if len(parameters) != len(arguments):
            raise ValueError(f"the kernel has {len(parameters)} parameters, not {len(arguments)}")
        for place, (parameter, value) in enumerate(zip(parameters, arguments, strict=True)):
            if parameter.is_tensor_map != isinstance(value, TensorMap):
                raise TypeError(f"parameter {place} and its argument {value!r} do not agree")
            if isinstance(value, TensorMap):
                self.maps[parameter_address(place)] = value
            elif isinstance(value, float | np.floating):
                code = {"f32": "<f", "b32": "<f", "u32": "<f"}.get(parameter.type, "<d")
                self.values[parameter.name] = int.from_bytes(struct.pack(code, value), "little")
            else:
                self.values[parameter.name] = int(value) & ((1 << 8 * parameter.bytes) - 1)

    def run(self) -> Counters:
        """Execute all blocks and give the counts; raises `Fault` at the first broken rule."""
        counters = Counters(launches=1, blocks=math.prod(self.grid))
        counters.warps = counters.blocks * -(-self.program.threads // 32)
        launch = Launch(
            self.program,
            self.memory,
            self.grid,
            self.shared_bytes,
            self.copies == "late",
            self.values,
            self.maps,
        )
        wide, high, _ = self.grid
        total = counters.blocks
        for first in range(0, total, self.side_by_side):
            numbers = range(first, min(first + self.side_by_side, total))
            blocks = [(n % wide, n // wide % high, n // (wide * high)) for n in numbers]
            Lanes(launch, self.runs, blocks, counters).run()
        return counters
