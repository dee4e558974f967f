"""Tensor memory access: copies of boxes between a tensor map and shared memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tconv.emulator.barriers import Barriers
from tconv.emulator.faults import Fault
from tconv.emulator.made_maps import MadeMaps
from tconv.emulator.state import State
from tconv.emulator.tensor_map import TensorMap, swizzled

Array = NDArray[Any]
CHUNK = 16  # bytes that a swizzle keeps together
BOX_ALIGNMENT, PERIOD = 128, 1024


@dataclass
class Box:
    """A copy under way: rows of 16 bytes in shared memory, and the data of a load."""

    rows: Array
    granules: Array
    data: Array | None
    bytes: int
    landed: bool = False


@dataclass
class Store:
    """A store under way."""

    box: Box
    map: TensorMap
    coordinates: list[int]
    group: int
    written: bool = False
    read: bool = False


class TensorCopies:
    """Box copies under way: loads by the mbarrier that counts them, stores by their thread."""

    def __init__(self, machine: State, barriers: Barriers, made_maps: MadeMaps) -> None:
        self.machine, self.barriers, self.made_maps = machine, barriers, made_maps
        barriers.landing = self
        self.queue: dict[tuple[int, int], list[Box]] = {}
        self.stores: dict[int, list[Store]] = {}
        self.committed: dict[int, int] = {}
        self.patterns: dict[tuple[int, int, int], Array] = {}

    def _rows(self, map_: TensorMap, at: int, lane: int) -> Array:
        shared = self.machine.shared
        if at % BOX_ALIGNMENT:
            raise self._fault(
                "misaligned access",
                f"a box at shared address {at:#x} is not aligned to 128 bytes",
                lane,
                at,
            )
        if at + map_.box_bytes > shared.size:
            raise self._fault(
                "out of bounds",
                f"a box of {map_.box_bytes} bytes at {at:#x}; the block has {shared.size} bytes",
                lane, at,
            )  # fmt: skip
        offset = at % PERIOD
        key = map_.box_bytes, map_.swizzle, offset
        if key not in self.patterns:
            linear = offset + np.arange(0, map_.box_bytes, CHUNK, dtype=np.int64)
            self.patterns[key] = swizzled(linear, map_.swizzle) // CHUNK
        base = int(shared.lane_base[lane]) + at - offset
        return self.patterns[key] + base // CHUNK

    def _fault(self, kind: str, message: str, lane: int, address: int) -> Fault:
        return Fault(kind, message, thread=self.machine.thread_name(lane), address=address)

    def _each(
        self,
        index: int,
        mask: Array | None,
        at: Any,
        description: Any,
        coordinates: tuple[Any, ...],
    ) -> list[tuple[int, int, TensorMap, list[int]]]:
        def pick(value: Any, lane: int) -> int:
            return int(value if np.ndim(value) == 0 else value[lane])

        lanes = self.machine.select(index, mask)
        found = []
        for lane in range(self.machine.lanes) if lanes is None else lanes:
            lane = int(lane)
            place = pick(description, lane)
            map_ = self.machine.launch.maps.get(place)
            if map_ is None:
                map_ = self.made_maps.find(place, self.machine.thread_name(lane))
            if len(coordinates) != len(map_.shape):
                raise self._fault(
                    "tensor map",
                    f"{len(coordinates)} coordinates for a map of rank {len(map_.shape)}",
                    lane, place,
                )  # fmt: skip
            found.append((lane, pick(at, lane), map_, [pick(c, lane) for c in coordinates]))
        return found

    def _region(
        self, map_: TensorMap, coordinates: list[int], lane: int
    ) -> tuple[tuple[slice, ...], Array | None, Array | None]:
        """The part of a box that is inside the tensor: its place, values and written flags."""
        start = [max(0, c) for c in coordinates]
        stop = [
            min(extent, c + size)
            for c, extent, size in zip(coordinates, map_.shape, map_.box, strict=True)
        ]
        sizes = [last - first for first, last in zip(start, stop, strict=True)]
        if any(size <= 0 for size in sizes):
            return (), None, None
        place = tuple(
            slice(first - c, last - c)
            for first, last, c in zip(start, stop, coordinates, strict=True)
        )[::-1]
        offset = sum(first * stride for first, stride in zip(start, map_.strides, strict=True))
        try:
            values, written = self.machine.memory.box(
                map_.address, offset, sizes[::-1], map_.strides[::-1], map_.itemsize
            )
        except Fault as fault:
            fault.thread = self.machine.thread_name(lane)
            raise
        return place, values, written

    def load(
        self, index: int, mask: Array | None, at: Any, description: Any,
        coordinates: tuple[Any, ...], barrier: Any,
    ) -> None:  # fmt: skip
        """``cp.async.bulk.tensor`` from global to shared memory."""
        machine, shared = self.machine, self.machine.shared
        for lane, place, map_, corner in self._each(index, mask, at, description, coordinates):
            block, warp = lane // machine.threads, int(shared.lane_warp[lane])
            rows = self._rows(map_, place, lane)
            granules = shared.granules(rows, CHUNK).reshape(1, -1)
            machine.active = np.array([lane])
            shared.check_write(granules, machine.active, by_copy=True)
            shared.begin_arrival(granules)
            data = self._fetch(map_, corner, lane)
            address = int(barrier if np.ndim(barrier) == 0 else barrier[lane])
            self.barriers.find(block, warp, address, lane)
            box = Box(rows, granules, data, map_.box_bytes)
            machine.counters.tma_load_bytes += map_.box_bytes
            machine.counters.tma_copies += 1
            view = shared.rows(4, 4)
            view[rows] = np.uint32(0xFFFFFFFF)
            self.queue.setdefault((block, address), []).append(box)
            if not machine.late:
                view[rows] = data
                self._complete(block, address, box)

    def _fetch(self, map_: TensorMap, corner: list[int], lane: int) -> Array:
        shape = (*map_.box[::-1], map_.itemsize)
        data = np.zeros(shape, np.uint8)
        if map_.fill_nan:
            data[:] = 0xFF
        place, values, written = self._region(map_, corner, lane)
        if values is not None:
            if written is not None and not written.all():
                raise self._fault(
                    "uninitialised read",
                    "a box has bytes that were never written",
                    lane,
                    map_.address,
                )
            data[place] = values
        return data.reshape(-1).view(np.uint32).reshape(-1, 4)

    def _complete(self, block: int, address: int, box: Box) -> None:
        """A box has arrived: its barrier counts the bytes."""
        box.landed = True
        barriers = self.barriers
        barrier = barriers.objects[block, address]
        barrier.bytes -= box.bytes
        shared = self.machine.shared
        clock = np.zeros(shared.warps + 1, np.int64)
        clock[shared.async_actor] = shared.now
        barriers.gather(barrier, clock, np.zeros_like(clock))
        if barrier.bytes < 0 and barrier.pending == 0:
            raise Fault(
                "barrier misuse",
                f"{-barrier.bytes} bytes more arrived at an mbarrier than it expects",
                thread=f"block {self.machine.blocks[block]}", address=address,
            )  # fmt: skip
        barriers.advance(barrier)

    def outstanding(self, block: int, address: int) -> bool:
        """Whether an mbarrier counts copies that nobody waited for yet."""
        return bool(self.queue.get((block, address)))

    def land(self, block: int, address: int) -> None:
        """Somebody waits: boxes that this barrier counts arrive until its phase is complete."""
        view = self.machine.shared.rows(4, 4)
        barrier = self.barriers.objects[block, address]
        phase = barrier.phase
        for box in self.queue.get((block, address), ()):
            if not box.landed and barrier.phase == phase:
                view[box.rows] = box.data
                self._complete(block, address, box)

    def settle(self, block: int, address: int) -> None:
        """Complete a phase: waiting threads may now read the copied data."""
        shared = self.machine.shared
        boxes = self.queue.get((block, address))
        if not boxes:
            return
        self.queue[block, address] = [box for box in boxes if not box.landed]
        for box in boxes:
            if box.landed:
                shared.note_write(box.granules, shared.async_actor, generic=False)
        barrier = self.barriers.objects[block, address]
        if barrier.clock is not None:
            barrier.clock[shared.async_actor] = shared.now
        shared.tick()

    def store(
        self,
        index: int,
        mask: Array | None,
        at: Any,
        description: Any,
        coordinates: tuple[Any, ...],
    ) -> None:
        """``cp.async.bulk.tensor`` from shared to global memory."""
        machine, shared = self.machine, self.machine.shared
        for lane, place, map_, corner in self._each(index, mask, at, description, coordinates):
            block, warp = lane // machine.threads, int(shared.lane_warp[lane])
            rows = self._rows(map_, place, lane)
            granules = shared.granules(rows, CHUNK).reshape(1, -1)
            machine.active = np.array([lane])
            shared.check_async_read(granules, np.array([block]), np.array([warp]), "a tensor store")
            shared.begin_async_read(granules, [(slice(None), slice(warp, warp + 1))])
            machine.counters.tma_store_bytes += map_.box_bytes
            machine.counters.tma_copies += 1
            store = Store(
                Box(rows, granules, None, map_.box_bytes), map_, corner, self.committed.get(lane, 0)
            )
            self._region(map_, corner, lane)  # bounds are checked where the copy is issued
            self.stores.setdefault(lane, []).append(store)
            if not machine.late:
                self._write(store, lane)

    def _write(self, store: Store, lane: int) -> None:
        place, values, written = self._region(store.map, store.coordinates, lane)
        store.written = True
        if values is None:
            return
        data = self.machine.shared.rows(4, 4)[store.box.rows].view(np.uint8)
        box = data.reshape((*store.map.box[::-1], store.map.itemsize))
        values[...] = box[place]
        if written is not None:
            written[...] = 0xFF

    def commit(self, index: int, mask: Array | None) -> None:
        """``cp.async.bulk.commit_group``."""
        lanes = self.machine.select(index, mask)
        for lane in self.stores:
            if lanes is None or lane in lanes:
                self.committed[lane] = self.committed.get(lane, 0) + 1

    def wait(self, index: int, mask: Array | None, most: int, reading: bool) -> None:
        """``cp.async.bulk.wait_group``: all but the last ``most`` groups of a thread are done."""
        lanes = self.machine.select(index, mask)
        for lane, stores in self.stores.items():
            if lanes is not None and lane not in lanes:
                continue
            limit = self.committed.get(lane, 0) - most
            for store in stores:
                if store.group < limit:
                    self._end(store, lane)
            self.stores[lane] = [store for store in stores if not store.read]

    def _end(self, store: Store, lane: int) -> None:
        if not store.written:
            self._write(store, lane)
        shared = self.machine.shared
        warp = int(shared.lane_warp[lane])
        shared.end_async_read(store.box.granules, [(slice(None), slice(warp, warp + 1))])
        store.read = True

    def finish(self) -> None:
        """The blocks end: their shared memory must not be in use any more."""
        for lane, stores in self.stores.items():
            for store in stores:
                raise self._fault(
                    "missing wait",
                    "the block ends while a tensor store may still read its shared memory",
                    lane, store.map.address,
                )  # fmt: skip
        for (block, address), boxes in self.queue.items():
            if any(not box.landed for box in boxes):
                raise Fault(
                    "missing wait",
                    "the block ends while a tensor load into its shared memory is under way",
                    thread=f"block {self.machine.blocks[block]}", address=address,
                )  # fmt: skip
