"""Barriers of a block (``bar.sync``) and barriers in shared memory (``mbarrier``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tconv.emulator.faults import Fault, NotCovered
from tconv.emulator.ptx import Instruction, Register
from tconv.emulator.state import AT_BARRIER, DONE, RUNNING, WAITING, State
from tconv.emulator.translate import Run
from tconv.emulator.warps import Warps

Array = NDArray[Any]
MOST_BARRIERS, MOST_COUNT, MOST_BYTES = 16, (1 << 20) - 1, (1 << 20) - 1


class Landing(Protocol):
    """The copies that an mbarrier at (block, address) counts."""

    def outstanding(self, block: int, address: int) -> bool:
        """Whether some copies have yet to be waited for."""

    def land(self, block: int, address: int) -> None:
        """Let copies arrive until the barrier's phase is complete."""

    def settle(self, block: int, address: int) -> None:
        """Make the copied data readable, since the phase is complete and a thread waited for it."""


@dataclass
class SharedBarrier:
    """State of an mbarrier: arrivals and bytes that its current phase still expects."""

    count: int
    pending: int
    born: tuple[int, int]  # the warp that initialised it, and when
    bytes: int = 0
    phase: int = 0
    gathering: Array | None = None  # merged clocks of the warps that arrived
    gathered_fences: Array | None = None
    clock: Array | None = None  # of the last complete phase
    fences: Array | None = None
    used: Array | None = None  # stamp of each warp's last use


class Barriers:
    """All barriers of the blocks that are executed together."""

    def __init__(self, machine: State, warps: Warps) -> None:
        self.machine, self.warps = machine, warps
        self.landing: Landing | None = None  # set by the copies that barriers count
        self.shared = machine.shared
        self.objects: dict[tuple[int, int], SharedBarrier] = {}
        self.number = np.zeros(machine.lanes, np.int64)  # of the block barrier a lane waits at
        self.expected = np.zeros(machine.lanes, np.int64)
        self.arrived: dict[tuple[int, int], tuple[int, Array]] = {}  # by bar.arrive: threads, warps
        self.waiting: list[tuple[Array, Run]] = []

    # -- bar.sync

    def sync(self, run: Run, mask: Array | None) -> int | None:
        """``bar.sync``: lanes wait here; returns the next run if all pass at once."""
        last = run.terminator
        assert last is not None
        if last.parts[0] == "bar" and last.parts[1] == "red":
            raise NotCovered("the instruction bar.red is not covered")
        machine = self.machine
        self.warps.whole(last.index, mask)
        operands = last.operands
        number = machine.value(operands[0]).astype(np.int64)
        count = (
            machine.value(operands[1]).astype(np.int64)
            if len(operands) > 1
            else np.full(machine.lanes, machine.threads)
        )
        if (number >= MOST_BARRIERS).any():
            raise Fault(
                "barrier misuse", f"barrier {int(number.max())} is not below {MOST_BARRIERS}"
            )
        if (count % 32).any():
            raise Fault("barrier misuse", "a barrier's thread count is not a multiple of 32")
        simple = mask is None and not self.arrived and (number == number[0]).all()
        if simple and (count == machine.threads).all():
            self.shared.full_barrier(slice(None))
            machine.counters.block_barriers += len(machine.blocks)
            return run.following
        here = slice(None) if mask is None else mask
        machine.state[here] = AT_BARRIER
        machine.pc[here] = run.following
        self.number[here] = number[here]
        self.expected[here] = count[here]
        self._release()
        return None

    def arrive(self, index: int, mask: Array | None, number: Any, count: Any) -> None:
        """``bar.arrive``: warps are counted at a barrier and continue."""
        machine = self.machine
        lanes = self.warps.whole(index, mask)
        every = np.arange(machine.lanes) if lanes is None else lanes
        numbers = machine.lane_array(number)
        for block in np.unique(every // machine.threads):
            mine = every[every // machine.threads == block]
            key = int(block), int(numbers[mine[0]])
            threads, warps = self.arrived.get(key, (0, np.zeros(0, np.int64)))
            fresh = np.unique(self.shared.lane_warp[mine])
            self.arrived[key] = threads + len(mine), np.concatenate([warps, fresh])
        self._release()

    def _release(self) -> bool:
        machine, moved = self.machine, False
        stopped = np.flatnonzero(machine.state == AT_BARRIER)
        if not len(stopped):
            return False
        block = stopped // machine.threads
        for key in np.unique(block * MOST_BARRIERS + self.number[stopped]):
            here, number = divmod(int(key), MOST_BARRIERS)
            lanes = stopped[(block == here) & (self.number[stopped] == number)]
            expected = self.expected[lanes]
            if (expected != expected[0]).any():
                raise Fault(
                    "barrier misuse",
                    f"threads at barrier {number} expect different numbers of threads",
                    thread=machine.thread_name(int(lanes[0])),
                )
            others, warps = self.arrived.get((here, number), (0, np.zeros(0, np.int64)))
            count = len(lanes) + others
            if count > expected[0]:
                raise Fault(
                    "barrier misuse",
                    f"{count} threads are at barrier {number}, which expects {int(expected[0])}",
                    thread=machine.thread_name(int(lanes[0])),
                )
            if count < expected[0]:
                continue
            self.arrived.pop((here, number), None)
            machine.state[lanes] = RUNNING
            machine.counters.block_barriers += 1
            moved = True
            if len(lanes) == machine.threads:
                self.shared.full_barrier(slice(here, here + 1))
            else:
                joined = np.concatenate([np.unique(self.shared.lane_warp[lanes]), warps])
                self.shared.partial_barrier(here, joined)
        return moved

    def check_exits(self) -> None:
        """Fault if threads ended while others of their block wait at a barrier for them."""
        self._release()

    # -- mbarriers

    def _each(self, index: int, mask: Array | None, at: Any) -> list[tuple[int, int, int, int]]:
        machine = self.machine
        lanes = machine.select(index, mask)
        found = []
        for lane in range(machine.lanes) if lanes is None else lanes:
            address = int(at if np.ndim(at) == 0 else at[lane])
            found.append(
                (int(lane), int(lane) // machine.threads, int(self.shared.lane_warp[lane]), address)
            )
        return found

    def _fault(self, kind: str, message: str, lane: int, address: int) -> Fault:
        return Fault(kind, message, thread=self.machine.thread_name(lane), address=address)

    def _known(self, block: int, warp: int, other: int, stamp: int) -> bool:
        return other == warp or int(self.shared.known[block, warp, other]) >= stamp

    def find(self, block: int, warp: int, address: int, lane: int) -> SharedBarrier:
        """The barrier at an address, after checks that the warp may use it."""
        barrier = self.objects.get((block, address))
        if barrier is None:
            raise self._fault(
                "barrier misuse", "there is no initialised mbarrier at this address", lane, address
            )
        if not self._known(block, warp, *barrier.born):
            raise self._fault(
                "barrier misuse",
                "an mbarrier is used with no barrier between its initialisation and this use",
                lane, address,
            )  # fmt: skip
        assert barrier.used is not None
        barrier.used[warp] = self.shared.now
        return barrier

    def init(self, index: int, mask: Array | None, at: Any, count: Any) -> None:
        """``mbarrier.init``."""
        for lane, block, warp, address in self._each(index, mask, at):
            value = int(count if np.ndim(count) == 0 else count[lane])
            if address % 8:
                raise self._fault(
                    "misaligned access", "an mbarrier needs 8-byte alignment", lane, address
                )
            if address + 8 > self.shared.size:
                raise self._fault(
                    "out of bounds", "an mbarrier lies outside shared memory", lane, address
                )
            if not 1 <= value <= MOST_COUNT:
                raise self._fault(
                    "barrier misuse", f"an mbarrier for {value} arrivals", lane, address
                )
            if (block, address) in self.objects:
                self._retire(lane, block, warp, address)
            self.objects[block, address] = SharedBarrier(
                value, value, (warp, self.shared.now), used=np.zeros(self.shared.warps, np.int64)
            )
        self.shared.tick()

    def _retire(self, lane: int, block: int, warp: int, address: int) -> None:
        barrier = self.find(block, warp, address, lane)
        assert barrier.used is not None
        for other, stamp in enumerate(barrier.used):
            if not self._known(block, warp, other, int(stamp)):
                raise self._fault(
                    "barrier misuse",
                    f"an mbarrier ends while warp {other} may still use it: no barrier between",
                    lane, address,
                )  # fmt: skip
        if self.landing is not None and self.landing.outstanding(block, address):
            raise self._fault(
                "barrier misuse", "an mbarrier ends while copies that it counts are under way",
                lane, address,
            )  # fmt: skip
        del self.objects[block, address]

    def inval(self, index: int, mask: Array | None, at: Any) -> None:
        """``mbarrier.inval``."""
        for lane, block, warp, address in self._each(index, mask, at):
            self.find(block, warp, address, lane)
            self._retire(lane, block, warp, address)

    def expect_tx(self, index: int, mask: Array | None, at: Any, count: Any) -> None:
        """``mbarrier.expect_tx``."""
        for lane, block, warp, address in self._each(index, mask, at):
            value = int(count if np.ndim(count) == 0 else count[lane])
            self._expect(self.find(block, warp, address, lane), value, lane, address)

    def _expect(self, barrier: SharedBarrier, value: int, lane: int, address: int) -> None:
        barrier.bytes += value
        if abs(barrier.bytes) > MOST_BYTES:
            raise self._fault(
                "barrier misuse", f"an mbarrier expects {barrier.bytes} bytes", lane, address
            )

    def arrive_expecting(self, index: int, mask: Array | None, at: Any, count: Any) -> None:
        """``mbarrier.arrive.expect_tx``."""
        for lane, block, warp, address in self._each(index, mask, at):
            value = int(count if np.ndim(count) == 0 else count[lane])
            barrier = self.find(block, warp, address, lane)
            self._expect(barrier, value, lane, address)
            self._arrive(barrier, block, warp, lane, address, 1)

    def arrive_at(self, index: int, mask: Array | None, at: Any, count: Any) -> None:
        """``mbarrier.arrive``."""
        for lane, block, warp, address in self._each(index, mask, at):
            value = int(count if np.ndim(count) == 0 else count[lane])
            barrier = self.find(block, warp, address, lane)
            self._arrive(barrier, block, warp, lane, address, value)

    def _arrive(
        self, barrier: SharedBarrier, block: int, warp: int, lane: int, address: int, count: int
    ) -> None:
        barrier.pending -= count
        if barrier.pending < 0:
            raise self._fault(
                "barrier misuse",
                f"more arrivals at an mbarrier than the {barrier.count} of its phase",
                lane, address,
            )  # fmt: skip
        self.gather(barrier, self.shared.release(block, warp), self.shared.fenced[block, warp])
        self.advance(barrier)

    def gather(self, barrier: SharedBarrier, clock: Array, fences: Array) -> None:
        """Merge a clock into the current phase."""
        if barrier.gathering is None or barrier.gathered_fences is None:
            barrier.gathering, barrier.gathered_fences = clock.copy(), fences.copy()
        else:
            np.maximum(barrier.gathering, clock, out=barrier.gathering)
            np.maximum(barrier.gathered_fences, fences, out=barrier.gathered_fences)

    def advance(self, barrier: SharedBarrier) -> None:
        """Complete the phase if no arrival and no byte is outstanding."""
        if barrier.pending == 0 and barrier.bytes == 0:
            barrier.phase ^= 1
            barrier.pending = barrier.count
            barrier.clock, barrier.fences = barrier.gathering, barrier.gathered_fences
            barrier.gathering = barrier.gathered_fences = None

    # -- waiting

    def wait(self, run: Run, mask: Array | None) -> int | None:
        """``mbarrier.try_wait``: lanes go on when their phase is complete."""
        last = run.terminator
        assert last is not None
        if last.parts[1] == "test_wait":
            raise NotCovered("the instruction mbarrier.test_wait is not covered")
        if not any(part == "parity" for part in last.parts):
            raise NotCovered("mbarrier.try_wait without .parity is not covered")
        self.machine.counters.mbarrier_waits += (
            self.machine.lanes if mask is None else int(mask.sum())
        ) // 32
        ready = self._ready(last, mask)
        target = last.operands[0]
        assert isinstance(target, Register)
        old = self.machine.registers[target.index]
        self.machine.registers[target.index] = old | ready
        here = np.ones(self.machine.lanes, bool) if mask is None else mask
        late = here & ~ready
        if mask is None and not late.any():
            return run.following
        self.machine.pc[here] = run.following
        if late.any():
            self.machine.state[late] = WAITING
            self.waiting.append((late, run))
        return None

    def _ready(self, last: Instruction, mask: Array | None) -> Array:
        machine, shared = self.machine, self.shared
        at = machine.value(last.operands[1]).astype(np.int64)
        parity = machine.value(last.operands[2]).astype(np.int64) & 1
        ready = np.zeros(machine.lanes, bool)
        threads = machine.threads
        for block in range(len(machine.blocks)):
            span = slice(block * threads, (block + 1) * threads)
            here = None if mask is None else mask[span]
            if here is not None and not here.any():
                continue
            key = at[span] * 2 + parity[span]
            if here is None and (key == key[0]).all():
                every: Any = slice(None)
                groups = [(int(key[0]), np.arange(shared.warps), every)]
            else:
                lanes = np.arange(threads) if here is None else np.flatnonzero(here)
                groups = [
                    (
                        int(value),
                        np.unique(lanes[key[lanes] == value] // 32),
                        lanes[key[lanes] == value],
                    )
                    for value in np.unique(key[lanes])
                ]
            for value, warps, lanes in groups:
                first = block * threads + int(warps[0]) * 32
                if self._passes(block, warps, value // 2, value & 1, first):
                    ready[span][lanes] = True
        return ready

    def _passes(self, block: int, warps: Array, address: int, parity: int, lane: int) -> bool:
        for warp in warps:
            barrier = self.find(block, int(warp), address, lane)
        assert self.landing is not None
        if barrier.phase & 1 == parity:
            self.landing.land(block, address)
        if barrier.phase & 1 == parity:
            return False
        self.landing.settle(block, address)
        if barrier.clock is not None and barrier.fences is not None:
            known, fenced = self.shared.known, self.shared.fenced
            known[block, warps] = np.maximum(known[block, warps], barrier.clock)
            fenced[block, warps] = np.maximum(fenced[block, warps], barrier.fences)
        return True

    def retry(self) -> bool:
        """Check all waiting lanes again; returns whether any can continue."""
        moved = self._release()
        waiting, self.waiting = self.waiting, []
        for lanes, run in waiting:
            last = run.terminator
            assert last is not None
            ready = self._ready(last, lanes) & lanes
            target = last.operands[0]
            self.machine.registers[target.index] = self.machine.registers[target.index] | ready
            self.machine.state[ready] = RUNNING
            moved = moved or bool(ready.any())
            if (lanes & ~ready).any():
                self.waiting.append((lanes & ~ready, run))
        return moved

    def deadlock(self) -> Fault:
        """The deadlock fault, with a line for each waiting warp."""
        machine = self.machine
        if self.waiting:
            lanes, run = self.waiting[0]
            last = run.terminator
            assert last is not None
            lane = int(lanes.argmax())
            machine.at, machine.active = last.index, None
            address = int(machine.value(last.operands[1])[lane])
            barrier = self.objects[lane // machine.threads, address]
            parity = int(machine.value(last.operands[2])[lane]) & 1
            return self._fault(
                "deadlock",
                f"a wait for parity {parity} never ends: the mbarrier is in phase "
                f"{barrier.phase}, {barrier.pending} arrivals and {barrier.bytes} bytes short",
                lane, address,
            )  # fmt: skip
        stopped = np.flatnonzero(machine.state == AT_BARRIER)
        lane = int(stopped[0])
        block = lane // machine.threads
        mine = stopped[stopped // machine.threads == block]
        gone = int((machine.state[block * machine.threads :][: machine.threads] == DONE).sum())
        machine.active = None
        return self._fault(
            "deadlock",
            f"{len(mine)} threads wait at barrier {int(self.number[lane])} for "
            f"{int(self.expected[lane])}; {gone} threads of the block have ended",
            lane, int(self.number[lane]),
        )  # fmt: skip
