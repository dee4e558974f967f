"""``cp.async``: copies of a few bytes by each thread from global to shared memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tconv.emulator.memory import UNSIGNED, positioned
from tconv.emulator.requests import sectors_of
from tconv.emulator.state import State

Array = NDArray[Any]


@dataclass
class Copy:
    """Copies of one instruction in flight."""

    rows: Array  # row numbers in shared memory
    values: Array
    granules: Array
    lanes: Array
    group: Array  # of each lane: the number of its commit group


class Copies:
    """Copies in flight, by each thread's commit groups."""

    def __init__(self, machine: State) -> None:
        self.machine = machine
        self.pending: list[Copy] = []
        self.committed = np.zeros(machine.lanes, np.int64)
        self.everyone = np.arange(machine.lanes)

    def start(
        self, index: int, mask: Array | None, target: Array, source: Array, size: int, held: Any
    ) -> None:
        """Begin a copy of ``size`` bytes a lane; beyond ``held`` of them zeros are written."""
        machine, shared = self.machine, self.machine.shared
        lanes = machine.select(index, mask)
        every = self.everyone if lanes is None else lanes
        if not len(every):
            return
        to = (target if lanes is None else target[lanes]).astype(np.int64)
        at = source if lanes is None else source[lanes]
        unit = min(size, 4)
        if held is None:
            values = machine.memory.load(at, unit, size // unit)
        else:
            count = held if lanes is None or np.ndim(held) == 0 else held[lanes]
            values = self._partly(at, size, np.broadcast_to(count, len(every)))
        rows = shared.place(to, size, lanes)
        granules = shared.granules(rows, size)
        shared.check_write(granules, lanes, by_copy=True)
        shared.begin_arrival(granules)
        if machine.late:
            shared.rows(unit, size // unit)[rows] = ~UNSIGNED[unit](0)
        else:
            shared.rows(unit, size // unit)[rows] = values
        machine.count_shared(to, size, lanes, store=True)
        self.pending.append(Copy(rows, values, granules, every, self.committed[every]))

    def _partly(self, at: Array, size: int, held: Array) -> Array:
        machine = self.machine
        unit = min(size, 4)
        values = np.zeros((len(at), size // unit), UNSIGNED[unit])
        if (held > size).any():
            position = int((held > size).argmax())
            raise positioned(
                "out of bounds", f"cp.async of {size} bytes takes {int(held[position])}",
                int(at[position]), position,
            )  # fmt: skip
        full = np.flatnonzero(held == size)
        active = machine.active
        if len(full):
            base = self.everyone if active is None else active
            machine.active = base[full] if len(full) < len(at) else active
            values[full] = machine.memory.load(at[full], unit, size // unit)
            requests, sectors = sectors_of(at[full], machine.active)
            machine.counters.global_load_requests += requests
            machine.counters.global_load_sectors += sectors
            machine.counters.global_load_bytes += len(full) * size
        some = np.flatnonzero((held > 0) & (held < size))
        for position in some.tolist():
            base = self.everyone if active is None else active
            machine.active = base[position : position + 1].repeat(int(held[position]))
            bytes_at = at[position] + np.arange(int(held[position]), dtype=np.uint64)
            taken = machine.memory.load(bytes_at, 1, 1)
            values[position].view(np.uint8)[: int(held[position])] = taken[:, 0]
        machine.active = active
        return values

    def commit(self, index: int, mask: Array | None) -> None:
        """``cp.async.commit_group``: copies since the last become one group."""
        lanes = self.machine.select(index, mask)
        self.committed[slice(None) if lanes is None else lanes] += 1

    def wait(self, index: int, mask: Array | None, most: int, everything: bool = False) -> None:
        """``cp.async.wait_group``: all but the last ``most`` groups of a thread have arrived."""
        machine, shared = self.machine, self.machine.shared
        lanes = machine.select(index, mask)
        limit = self.committed - most
        if everything:
            limit = limit + 1
        if lanes is not None:
            absent = np.ones(machine.lanes, bool)
            absent[lanes] = False
            limit = np.where(absent, -1, limit)
        left = []
        for copy in self.pending:
            done = copy.group < limit[copy.lanes]
            if not done.any():
                left.append(copy)
                continue
            if not done.all():
                rest = ~done
                left.append(
                    Copy(
                        copy.rows[rest],
                        copy.values[rest],
                        copy.granules[rest],
                        copy.lanes[rest],
                        copy.group[rest],
                    )
                )
                copy = Copy(
                    copy.rows[done],
                    copy.values[done],
                    copy.granules[done],
                    copy.lanes[done],
                    copy.group[done],
                )
            unit, count = copy.values.dtype.itemsize, copy.values.shape[1]
            shared.rows(unit, count)[copy.rows] = copy.values
            shared.note_write(copy.granules, shared.lane_warp[copy.lanes][:, None], generic=False)
        self.pending = left

    def finish(self) -> None:
        """Drop the copies in flight when their blocks end."""
        self.pending = []
