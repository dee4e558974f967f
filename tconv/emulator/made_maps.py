"""Tensor maps that a kernel makes itself, with ``tensormap.replace``.

A kernel fills the 128 bytes of a tensor map field by field, mostly in shared memory, copies them to
global memory (``tensormap.cp_fenceproxy``) and makes them visible to the copy engine
(``fence.proxy.tensormap``). NVIDIA does not publish where each field lies. ``LAYOUT`` is a layout
of our own, which suffices because only these instructions write or read a tensor map.
Source: PTX ISA, "tensormap.replace" and "tensormap.cp_fenceproxy".
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tconv.emulator.faults import Fault, NotCovered
from tconv.emulator.state import State
from tconv.emulator.tensor_map import TensorMap

Array = NDArray[Any]
MAP_BYTES, WARP, MOST_STEP = 128, 32, 8
LAYOUT = np.dtype({
    "names": ["global_address", "global_stride", "global_dim", "box_dim", "element_stride",
              "rank", "elemtype", "interleave_layout", "swizzle_mode", "fill_mode"],
    "formats": ["<u8", ("<u8", 4), ("<u4", 5), ("<u4", 5), ("<u4", 5), *["<u4"] * 5],
    "itemsize": MAP_BYTES,
})  # fmt: skip
ELEMENT_BYTES = {0: 1, 1: 2, 2: 4, 3: 4, 4: 8, 5: 8, 6: 2, 7: 4, 8: 4, 9: 8, 10: 2, 11: 4, 12: 4}


def place_of(field: str, ordinal: int = 0) -> int:
    """Where a field of a tensor map lies, in bytes from its start.

    Raises:
        KeyError: for a field that does not exist, or an ordinal beyond its axes.
    """
    fields = LAYOUT.fields
    assert fields is not None
    kind, start = fields[field][:2]
    if ordinal and ordinal >= (kind.shape or (1,))[0]:
        raise KeyError(f"{field} {ordinal}")
    return int(start) + ordinal * kind.base.itemsize


class MadeMaps:
    """Tensor maps in the global memory of a launch, and whether the copy engine may see them."""

    def __init__(self, machine: State) -> None:
        self.machine = machine
        self.unfenced: set[int] = set()  # addresses of maps written since the last acquire
        self.known: dict[bytes, TensorMap] = {}

    def publish(self, index: int, mask: Array | None, to: Array, source: Array) -> None:
        """``tensormap.cp_fenceproxy``: each warp copies a map from shared to global memory."""
        machine = self.machine
        lanes = machine.select(index, mask)
        if lanes is not None and not len(lanes):
            return
        every = np.arange(machine.lanes) if lanes is None else lanes
        if len(every) % WARP:
            raise Fault(
                "barrier misuse", "tensormap.cp_fenceproxy is executed by a part of a warp",
                thread=machine.thread_name(int(every[0])),
            )  # fmt: skip
        offset = 4 * (every % WARP)
        words = machine.shared.read(source[every].astype(np.int64) + offset, 4, 1, lanes)
        machine.memory.store(to[every] + offset.astype(np.uint64), words)
        self.unfenced |= _addresses(to, lanes)

    def note_written(self, index: int, mask: Array | None, at: Array) -> None:
        """Maps at these addresses are changed: the copy engine may still see the old ones."""
        self.unfenced |= _addresses(at, self.machine.select(index, mask))

    def acquire(self, index: int, mask: Array | None, at: Array) -> None:
        """``fence.proxy.tensormap::generic.acquire``: the copy engine sees the map as it is now."""
        self.unfenced -= _addresses(at, self.machine.select(index, mask))

    def find(self, address: int, thread: str) -> TensorMap:
        """The tensor map at ``address`` in global memory.

        Raises:
            Fault: where there is none, or the copy engine may not see it yet.
            NotCovered: for element strides, interleaved layouts and elements below a byte.
        """
        memory = self.machine.memory
        try:
            raw = memory.get(address, np.uint8, (MAP_BYTES,))
        except (Fault, ValueError):  # no allocation, or one that ends before the map does
            raise Fault(
                "tensor map", "there is no tensor map at this address", thread=thread,
                address=address,
            ) from None  # fmt: skip
        if not memory.written(address, MAP_BYTES):
            raise Fault(
                "uninitialised read", "a tensor map has bytes that were never written",
                thread=thread, address=address,
            )  # fmt: skip
        if address in self.unfenced:
            raise Fault(
                "missing fence",
                "a tensor map is used with no fence.proxy.tensormap after it was written",
                thread=thread, address=address,
            )  # fmt: skip
        key = raw.tobytes()
        if key not in self.known:
            self.known[key] = _decoded(raw.view(LAYOUT)[0], address, thread)
        return self.known[key]


def _addresses(at: Array, lanes: Array | None) -> set[int]:
    """The different addresses of the given lanes, or of all."""
    return set(map(int, np.unique(at if lanes is None else at[lanes])))


def _decoded(fields: Any, address: int, thread: str) -> TensorMap:
    rank = int(fields["rank"]) + 1  # the instruction writes the rank less one
    itemsize = ELEMENT_BYTES.get(int(fields["elemtype"]))
    if itemsize is None or fields["interleave_layout"] or fields["swizzle_mode"] > 3:
        raise NotCovered("tensor maps of elements below a byte or of interleaved layouts")
    steps = fields["element_stride"][:rank]
    if not ((steps >= 1) & (steps <= MOST_STEP)).all():
        raise Fault(
            "tensor map", f"element strides {steps} are not between 1 and {MOST_STEP}",
            thread=thread, address=address,
        )  # fmt: skip
    if (steps != 1).any():
        raise NotCovered(f"tensor maps of element strides {steps}")
    strides = [itemsize, *map(int, fields["global_stride"][: rank - 1])]
    if any(stride % itemsize for stride in strides):
        raise Fault(
            "tensor map", f"strides of {strides} bytes are not multiples of {itemsize}",
            thread=thread, address=address,
        )  # fmt: skip
    try:
        return TensorMap(
            int(fields["global_address"]),
            list(map(int, fields["global_dim"][:rank]))[::-1],
            [stride // itemsize for stride in reversed(strides)],
            list(map(int, fields["box_dim"][:rank]))[::-1],
            itemsize,
            int(fields["swizzle_mode"]),
            bool(fields["fill_mode"]),
        )
    except Fault as fault:
        fault.thread = thread
        raise
