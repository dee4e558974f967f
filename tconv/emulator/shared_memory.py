"""Shared memory of the blocks that run side by side, and who may touch which byte when.

Order is kept as in vector-clock race detectors (FastTrack; Flanagan and Freund, 2009), with warps
as the actors and one more, ``ASYNC``, for the copy engine. Each access carries a time stamp. A
warp knows, of every actor, up to which stamp its accesses are ordered before its own; barriers
join what their participants know. An access to bytes that another actor touched at a stamp that
the warp does not know of is a race. Bytes are tracked in granules as small as the program's
smallest access.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tconv.emulator.faults import Fault
from tconv.emulator.memory import UNSIGNED, positioned

Array = NDArray[Any]
Readers = list[tuple[Any, slice]]
NEVER = np.int64(1) << 62  # stamp of bytes that may not be read: fresh, or a copy is under way
FRESH, HELD, ARRIVING = 0, 1, 2  # states of a granule
PITCH = 1024  # the swizzle patterns repeat after 1024 bytes


class SharedMemory:
    """``blocks`` times ``size`` bytes; addresses count from the start of a block's own."""

    def __init__(self, blocks: int, size: int, threads: int, granule: int) -> None:
        self.blocks, self.size, self.threads = blocks, size, threads
        self.warps = -(-threads // 32)
        self.async_actor = self.warps
        self.granule = granule
        self.pitch = -(-max(size, 1) // PITCH) * PITCH
        total = blocks * self.pitch
        self.data = np.full(total, 0xFF, np.uint8)
        granules = total // granule
        self.state = np.zeros(granules, np.uint8)
        self.write_stamp = np.full(granules, NEVER)
        self.write_actor = np.zeros(granules, np.int16)
        self.generic = np.zeros(granules, bool)  # last written by a thread, not by the copy engine
        self.touched = np.zeros(granules, np.int64)
        self.read_stamp = np.zeros((granules, self.warps), np.int64)
        self.being_read = np.zeros(granules, np.int16)
        self.async_reads = 0
        self.now = 1
        actors = self.warps + 1
        self.known = np.zeros((blocks, self.warps, actors), np.int64)
        self.fenced = np.zeros((blocks, self.warps, actors), np.int64)
        self.floor = np.zeros(blocks, np.int64)
        self.fence_floor = np.zeros(blocks, np.int64)
        lanes = np.arange(blocks * threads)
        self.lane_block = lanes // threads
        self.lane_base = self.lane_block * self.pitch
        self.lane_warp = lanes % threads // 32
        self.views: dict[tuple[int, int], Array] = {}

    def rows(self, unit: int, count: int) -> Array:
        """The bytes as rows of ``count`` words of ``unit`` bytes."""
        key = unit, count
        if key not in self.views:
            self.views[key] = self.data.view(UNSIGNED[unit]).reshape(-1, count)
        return self.views[key]

    # -- order

    def tick(self) -> int:
        """End the present stamp; accesses from here on carry a later one."""
        self.now += 1
        return self.now - 1

    def full_barrier(self, blocks: Any) -> None:
        """All warps of these blocks have met: each knows all that any of them knows."""
        stamp = self.tick()
        self._join(self.known, blocks, stamp)
        fenced = self.fenced[blocks].max(axis=1)
        self.fenced[blocks] = fenced[:, None, :]
        self.fence_floor[blocks] = fenced[:, : self.warps].min(axis=1)
        self.floor[blocks] = stamp

    def _join(self, known: Array, blocks: Any, stamp: int) -> None:
        arrived = known[blocks, :, self.async_actor].max(axis=1)
        known[blocks] = stamp
        known[blocks, :, self.async_actor] = np.asarray(arrived)[:, None]

    def partial_barrier(self, block: int, warps: Array) -> None:
        """Some warps of a block have met."""
        stamp = self.tick()
        joined = self.known[block, warps].max(axis=0)
        joined[warps] = stamp
        self.known[block, warps] = joined
        self.fenced[block, warps] = self.fenced[block, warps].max(axis=0)

    def release(self, block: int, warp: int) -> Array:
        """Return the vector clock of ``warp`` at this moment, including its own accesses."""
        clock = self.known[block, warp].copy()
        clock[warp] = self.tick()
        return clock

    def acquire(self, block: int, warp: int, clock: Array, fenced: Array) -> None:
        """``warp`` learns what a barrier carries."""
        np.maximum(self.known[block, warp], clock, out=self.known[block, warp])
        np.maximum(self.fenced[block, warp], fenced, out=self.fenced[block, warp])

    def proxy_fence(self, lanes: Array | None) -> None:
        """``fence.proxy.async``: writes that a warp knows of become visible to the copy engine."""
        stamp = self.tick()
        for block, warp in self.warps_of(lanes):
            clock = self.known[block, warp].copy()
            clock[warp] = stamp
            np.maximum(self.fenced[block, warp], clock, out=self.fenced[block, warp])

    def warps_of(self, lanes: Array | None) -> list[tuple[int, int]]:
        """(block, warp) of each warp with a lane among ``lanes``."""
        if lanes is None:
            return [(b, w) for b in range(self.blocks) for w in range(self.warps)]
        keys = np.unique(self.lane_block[lanes] * self.warps + self.lane_warp[lanes])
        return [(int(key) // self.warps, int(key) % self.warps) for key in keys]

    # -- places

    def place(self, at: Array, width: int, lanes: Array | None) -> Array:
        """Row numbers (of ``width`` bytes) of one access by each lane; checks address and end."""
        if width > 1:
            wrong = (at & (width - 1)) != 0
            if wrong.any():
                position = int(wrong.argmax())
                address = int(at[position])
                raise positioned(
                    "misaligned access",
                    f"shared address {address:#x} is not a multiple of {width} bytes",
                    address,
                    position,
                )
        if at.max() + width > self.size or at.min() < 0:
            wrong = (at + width > self.size) | (at < 0)
            position = int(wrong.argmax())
            address = int(at[position])
            raise positioned(
                "out of bounds",
                f"{width} bytes at shared address {address:#x}; the block has {self.size} bytes",
                address,
                position,
            )
        base = self.lane_base if lanes is None else self.lane_base[lanes]
        return (at + base) // width

    def granules(self, rows: Array, width: int) -> Array:
        """Granule numbers of rows of ``width`` bytes, one row each: (accesses, granules)."""
        count = width // self.granule
        if count <= 1:
            return rows[:, None]
        return rows[:, None] * count + np.arange(count)

    # -- accesses by threads

    def read(self, at: Array, unit: int, count: int, lanes: Array | None) -> Array:
        """Rows of ``count`` words at the address of each lane."""
        rows = self.place(at, unit * count, lanes)
        granules = self.granules(rows, unit * count)
        self.check_read(granules, lanes)
        return self.rows(unit, count).take(rows, axis=0)

    def check_read(self, granules: Array, lanes: Array | None) -> None:
        """Check that each lane may read its row of granules, and note that it did."""
        stamps = self.write_stamp.take(granules)
        warp = self.lane_warp if lanes is None else self.lane_warp[lanes]
        if stamps.max() > self._least(self.floor):
            self._refuse_read(granules, stamps, lanes, warp)
        self.touched[granules] = self.now
        self.read_stamp.reshape(-1)[granules * self.warps + warp[:, None]] = self.now

    def _least(self, floor: Array) -> Any:
        return floor[0] if self.blocks == 1 else floor.min()

    def _refuse_read(
        self, granules: Array, stamps: Array, lanes: Array | None, warp: Array
    ) -> None:
        block = self.lane_block if lanes is None else self.lane_block[lanes]
        state = self.state.take(granules)
        if (state != HELD).any():
            position, column = _first(state != HELD)
            if state[position, column] == ARRIVING:
                raise self._at(
                    "missing wait", "shared memory is read while a copy into it is under way",
                    granules, position, column,
                )  # fmt: skip
            raise self._at(
                "uninitialised read", "shared memory is read that was never written",
                granules, position, column,
            )  # fmt: skip
        actor = self.write_actor.take(granules)
        known = self.known[block[:, None], warp[:, None], actor]
        wrong = (actor != warp[:, None]) & (stamps > known)
        if wrong.any():
            position, column = _first(wrong)
            writer = int(actor[position, column])
            if writer == self.async_actor:
                raise self._at(
                    "missing wait",
                    f"warp {int(warp[position])} reads what a copy wrote without a wait",
                    granules, position, column,
                )  # fmt: skip
            raise self._at(
                "shared memory race",
                f"warp {int(warp[position])} reads what warp {writer} wrote, no barrier between",
                granules, position, column,
            )  # fmt: skip

    def write(self, at: Array, values: Array, lanes: Array | None) -> None:
        """Write each lane's row of words at its address."""
        unit, count = values.dtype.itemsize, values.shape[1]
        rows = self.place(at, unit * count, lanes)
        granules = self.granules(rows, unit * count)
        self.check_write(granules, lanes)
        self.rows(unit, count)[rows] = values
        warp = self.lane_warp if lanes is None else self.lane_warp[lanes]
        self.note_write(granules, warp[:, None])

    def check_write(self, granules: Array, lanes: Array | None, by_copy: bool = False) -> None:
        """Check that each lane may overwrite its row of granules."""
        if self.async_reads:
            busy = self.being_read.take(granules) > 0
            if busy.any():
                position, column = _first(busy)
                raise self._at(
                    "buffer reused too soon",
                    "shared memory is overwritten while an asynchronous operation reads it",
                    granules, position, column,
                )  # fmt: skip
        touched = self.touched.take(granules)
        if touched.max() > self._least(self.floor):
            self._refuse_write(granules, lanes, by_copy)

    def _refuse_write(self, granules: Array, lanes: Array | None, by_copy: bool) -> None:
        warp = self.lane_warp if lanes is None else self.lane_warp[lanes]
        block = self.lane_block if lanes is None else self.lane_block[lanes]
        arriving = self.state.take(granules) == ARRIVING
        kind = "buffer reused too soon" if by_copy else "shared memory race"
        if arriving.any():
            position, column = _first(arriving)
            raise self._at(
                "buffer reused too soon",
                "shared memory is overwritten while a copy into it is under way",
                granules, position, column,
            )  # fmt: skip
        stamps, actor = self.write_stamp.take(granules), self.write_actor.take(granules)
        stamps = np.where(stamps == NEVER, 0, stamps)
        me = warp[:, None]
        wrong = (actor != me) & (stamps > self.known[block[:, None], me, actor])
        if wrong.any():
            position, column = _first(wrong)
            raise self._at(
                kind,
                f"warp {int(warp[position])} overwrites what "
                f"{self.name(int(actor[position, column]))} wrote, with no barrier between",
                granules, position, column,
            )  # fmt: skip
        reads = self.read_stamp[granules]  # (accesses, granules, warps)
        known = self.known[block, warp, : self.warps]
        wrong3 = reads > known[:, None, :]
        wrong3 &= np.arange(self.warps) != warp[:, None, None]
        if wrong3.any():
            position, column, reader = (int(v[0]) for v in np.nonzero(wrong3))
            raise self._at(
                kind,
                f"warp {int(warp[position])} overwrites what warp {reader} reads, "
                "with no barrier between",
                granules, position, column,
            )  # fmt: skip

    def note_write(self, granules: Array, actor: Any, generic: bool = True) -> None:
        """Note that granules hold a value, written now by ``actor``."""
        self.state[granules] = HELD
        self.write_stamp[granules] = self.now
        self.touched[granules] = self.now
        self.write_actor[granules] = actor
        self.generic[granules] = generic

    # -- accesses by copies and matrix units

    def begin_arrival(self, granules: Array) -> None:
        """A copy into these granules is under way: nobody may touch them."""
        self.state[granules] = ARRIVING
        self.write_stamp[granules] = NEVER
        self.touched[granules] = NEVER

    def check_async_read(self, granules: Array, block: Array, warp: Array, what: str) -> None:
        """Check what an asynchronous reader takes, issued by (block, warp) of each row."""
        state = self.state.take(granules)
        if (state != HELD).any():
            position, column = _first(state != HELD)
            arriving = state[position, column] == ARRIVING
            raise self._at(
                "missing wait" if arriving else "uninitialised read",
                f"{what} reads shared memory "
                + ("while a copy into it is under way" if arriving else "that was never written"),
                granules, position, column,
            )  # fmt: skip
        stamps = self.write_stamp.take(granules)
        generic = self.generic.take(granules)
        if stamps.max() <= self._least(self.floor) and (
            not generic.any() or stamps[generic].max() <= self._least(self.fence_floor)
        ):
            return
        actor = self.write_actor.take(granules)
        known = self.known[block[:, None], warp[:, None], actor]
        wrong = (actor != warp[:, None]) & (stamps > known)
        if wrong.any():
            position, column = _first(wrong)
            by_copy = int(actor[position, column]) == self.async_actor
            raise self._at(
                "missing wait" if by_copy else "shared memory race",
                f"{what} of warp {int(warp[position])} reads what "
                f"{self.name(int(actor[position, column]))} wrote, with no barrier between",
                granules, position, column,
            )  # fmt: skip
        fenced = self.fenced[block[:, None], warp[:, None], actor]
        wrong = generic & (stamps > fenced)
        if wrong.any():
            position, column = _first(wrong)
            raise self._at(
                "missing fence",
                f"{what} reads what {self.name(int(actor[position, column]))} wrote, with no "
                "fence.proxy.async between",
                granules, position, column,
            )  # fmt: skip

    def begin_async_read(self, granules: Array, readers: Readers) -> None:
        """An asynchronous operation reads rows of granules until `end_async_read`."""
        for rows, _ in readers:
            self.being_read[granules[rows]] += 1
        self.async_reads += len(granules)

    def end_async_read(self, granules: Array, readers: Readers) -> None:
        """The operation has read them, and its warps know that.

        ``readers`` pairs rows of ``granules`` that do not overlap with the warps that read them.
        """
        for rows, warps in readers:
            mine = granules[rows]
            self.being_read[mine] -= 1
            self.touched[mine] = np.maximum(self.touched[mine], self.now)
            self.read_stamp[mine, warps] = self.now
        self.async_reads -= len(granules)

    # -- messages

    def name(self, actor: int) -> str:
        """The words for an actor."""
        return "a copy" if actor == self.async_actor else f"warp {actor}"

    def _at(self, kind: str, message: str, granules: Array, position: int, column: int) -> Fault:
        address = int(granules[position, column]) * self.granule % self.pitch
        return positioned(kind, message, address, position)


def _first(wrong: Array) -> tuple[int, int]:
    row, column = np.nonzero(wrong)
    return int(row[0]), int(column[0])
