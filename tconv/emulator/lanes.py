"""Thread blocks executed together, a lane for each thread: control flow and memory accesses."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tconv.emulator.atomics import Atomics
from tconv.emulator.barriers import Barriers
from tconv.emulator.copies import Copies
from tconv.emulator.counters import Counters
from tconv.emulator.faults import Fault
from tconv.emulator.made_maps import MadeMaps
from tconv.emulator.matrix import MatrixUnits
from tconv.emulator.ptx import Instruction
from tconv.emulator.requests import sectors_of
from tconv.emulator.state import DONE, RUNNING, UNDEFINED, Launch, State
from tconv.emulator.tensor_copies import TensorCopies
from tconv.emulator.translate import Run
from tconv.emulator.warps import Warps
from tconv.emulator.wgmma import WarpGroups

Array = NDArray[Any]
MOST_RUNS = 20_000_000


class Lanes(State):
    """A group of blocks in execution; generated code calls its methods as ``M``."""

    def __init__(
        self,
        launch: Launch,
        runs: list[Run],
        blocks: list[tuple[int, int, int]],
        counters: Counters,
    ) -> None:
        super().__init__(launch, blocks, counters)
        self.runs = runs
        self.executed = np.zeros(len(runs) + 1, np.int64)
        self.order = np.array([*(run.order for run in runs), len(runs)])
        self.warps = Warps(self)
        self.barriers = Barriers(self, self.warps)
        self.copies = Copies(self)
        self.made_maps = MadeMaps(self)
        self.tensor_copies = TensorCopies(self, self.barriers, self.made_maps)
        self.matrix = MatrixUnits(self, self.warps)
        self.wgmma = WarpGroups(self)
        self.atomics = Atomics(self)

    def load_global(self, index: int, mask: Array | None, at: Array, unit: int, count: int) -> Any:
        """``ld.global``: one array for each word."""
        lanes = self.select(index, mask)
        if lanes is not None:
            if not len(lanes):
                return self._nothing(unit, count)
            at = at[lanes]
        rows = self.memory.load(at, unit, count)
        requests, sectors = sectors_of(at, lanes)
        self.counters.global_load_requests += requests
        self.counters.global_load_sectors += sectors
        self.counters.global_load_bytes += len(at) * unit * count
        return self.spread(rows, lanes)

    def _nothing(self, unit: int, count: int) -> Any:
        return (np.zeros(self.lanes, UNDEFINED[unit].dtype),) * count

    def store_global(
        self, index: int, mask: Array | None, at: Array, values: tuple[Any, ...]
    ) -> None:
        """``st.global``."""
        lanes = self.select(index, mask)
        if lanes is not None and not len(lanes):
            return
        rows = self._rows(values, lanes)
        if lanes is not None:
            at = at[lanes]
        self.memory.store(at, rows)
        requests, sectors = sectors_of(at, lanes)
        self.counters.global_store_requests += requests
        self.counters.global_store_sectors += sectors
        self.counters.global_store_bytes += rows.size * rows.dtype.itemsize

    def _rows(self, values: tuple[Any, ...], lanes: Array | None) -> Array:
        count = self.lanes if lanes is None else len(lanes)
        rows = np.empty((count, len(values)), np.asarray(values[0]).dtype)
        for column, value in enumerate(values):
            rows[:, column] = value if lanes is None or np.ndim(value) == 0 else value[lanes]
        return rows

    def load_shared(self, index: int, mask: Array | None, at: Array, unit: int, count: int) -> Any:
        """``ld.shared``: one array for each word."""
        lanes = self.select(index, mask)
        if lanes is not None:
            if not len(lanes):
                return self._nothing(unit, count)
            at = at[lanes]
        at = at.astype(np.int64)
        rows = self.shared.read(at, unit, count, lanes)
        self.count_shared(at, unit * count, lanes, store=False)
        return self.spread(rows, lanes)

    def store_shared(
        self, index: int, mask: Array | None, at: Array, values: tuple[Any, ...]
    ) -> None:
        """``st.shared``."""
        lanes = self.select(index, mask)
        if lanes is not None:
            if not len(lanes):
                return
            at = at[lanes]
        rows = self._rows(values, lanes)
        at = at.astype(np.int64)
        self.shared.write(at, rows, lanes)
        self.count_shared(at, rows.shape[1] * rows.dtype.itemsize, lanes, store=True)

    def fence_proxy(self, index: int, mask: Array | None) -> None:
        """``fence.proxy.async``."""
        self.shared.proxy_fence(self.select(index, mask))

    # -- control flow

    def run(self) -> None:
        """Execute the blocks to their end."""
        try:
            with np.errstate(all="ignore"):
                self._run()
                self.copies.finish()
                self.tensor_copies.finish()
                self.wgmma.finish()
        except Fault as fault:
            raise self.located(fault) from None
        for place, run in enumerate(self.runs):
            count = int(self.executed[place])
            if count:
                for opcode, times in run.opcodes.items():
                    self.counters.instructions[opcode] += count * times

    def _run(self) -> None:
        registers, warps = self.registers, self.lanes // 32
        place: int | None = 0  # the run of all lanes; None after they parted ways
        for _ in range(MOST_RUNS):
            if place is None:
                mask, here = self._choose()
                if here < 0:
                    return
            else:
                mask, here = None, place
            if here >= len(self.runs):
                raise Fault("deadlock", "control runs past the end of the kernel")
            run = self.runs[here]
            self.mask = mask
            run.function(registers, mask, self)
            self.executed[here] += (
                warps if mask is None else int(mask.reshape(-1, 32).any(axis=1).sum())
            )
            self.at = run.terminator.index if run.terminator else self.at
            self.active = None if mask is None else np.flatnonzero(mask)
            place = self._advance(run, mask)
        raise Fault(
            "deadlock", f"{MOST_RUNS} runs of instructions were not enough: an endless loop?"
        )

    def _choose(self) -> tuple[Array | None, int]:
        """The lanes that run next, those furthest behind, and their run; -1 at the end."""
        while True:
            live = self.state == RUNNING
            if live.any():
                places = self.pc[live]
                here = int(places[self.order[places].argmin()])
                mask = live & (self.pc == here)
                return (None if mask.all() else mask), here
            if (self.state == DONE).all():
                return None, -1
            if not self.barriers.retry():
                raise self.barriers.deadlock()

    def _move(self, mask: Array | None, following: int) -> int | None:
        """Send lanes to a run; gives it if all lanes go there together."""
        if mask is None:
            return following
        self.pc[mask] = following
        return None

    def _part(self, mask: Array | None, taken: Array, target: int, following: int) -> None:
        where = np.where(taken, target, following)
        if mask is None:
            self.pc[:] = where
        else:
            self.pc[mask] = where[mask]

    def _advance(self, run: Run, mask: Array | None) -> int | None:
        """Carry out how a run ends; gives the next run of all lanes, or None if they part."""
        last = run.terminator
        if last is None:
            return self._move(mask, run.following)
        name = last.parts[0]
        guard = self._guard(last)
        if name == "bra":
            if guard is None:
                return self._move(mask, run.target)
            live = guard if mask is None else guard[mask]
            if live.all():
                return self._move(mask, run.target)
            if not live.any():
                return self._move(mask, run.following)
            self._part(mask, guard, run.target, run.following)
            return None
        if name in ("ret", "exit"):
            self._finish(run, mask, guard)
            return None
        if name == "trap":
            if guard is None or (guard if mask is None else guard & mask).any():
                raise Fault("trap", "the kernel stopped itself")
            return self._move(mask, run.following)
        if guard is not None:
            mask = guard if mask is None else guard & mask
            self.pc[self.state == RUNNING] = run.following
            if not mask.any():
                return None
        if name == "wgmma":
            self.wgmma.wait(last.index, mask, last.operands[0].bits)
            return self._move(mask, run.following)
        if name == "mbarrier":
            return self.barriers.wait(run, mask)
        return self.barriers.sync(run, mask)

    def _guard(self, instruction: Instruction) -> Array | None:
        if instruction.guard is None:
            return None
        value = self.registers[instruction.guard.index]
        return ~value if instruction.negated else value

    def _finish(self, run: Run, mask: Array | None, guard: Array | None) -> None:
        gone = mask if guard is None else guard if mask is None else guard & mask
        if mask is None:
            self.pc[:] = run.following
        else:
            self.pc[mask] = run.following
        if gone is None:
            self.state[:] = DONE
        else:
            self.state[gone] = DONE
        self.barriers.check_exits()
