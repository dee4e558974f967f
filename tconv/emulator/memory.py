"""Global memory: allocations that know their owner, their bounds and which bytes were written."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tconv.emulator.faults import Fault

Array = NDArray[Any]
UNSIGNED: dict[int, Any] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
FIRST_ADDRESS, ALIGNMENT, GAP = 0x10_0000_0000, 512, 4096


def rows_of(data: Array, skew: int, unit: int, count: int) -> Array:
    """Bytes from ``skew`` on as rows of ``count`` words of ``unit`` bytes; a tail is left out."""
    width = unit * count
    usable = max(0, len(data) - skew) // width * width
    return data[skew : skew + usable].view(UNSIGNED[unit]).reshape(-1, count)


@dataclass
class Allocation:
    """One tensor's bytes. ``written`` has a byte of 255 for each that holds a value."""

    name: str
    address: int
    data: Array
    written: Array | None  # None: all
    views: dict[tuple[bool, int, int], Array] = field(default_factory=dict)

    @property
    def end(self) -> int:
        return self.address + len(self.data)

    def rows(self, unit: int, count: int, written: bool = False) -> tuple[Array, int]:
        """A view of aligned rows, and the address of row 0."""
        skew = -self.address % (unit * count)
        key = (written, unit, count)
        if key not in self.views:
            source = self.written if written else self.data
            assert source is not None
            self.views[key] = rows_of(source, skew, unit, count)
        return self.views[key], self.address + skew


class Memory:
    """Global memory of the emulated GPU.

    ``add`` puts a byte array at an address without copying it: what the kernel stores is seen
    in the array. Between allocations lie gaps, so that an access past an end hits nobody's bytes.
    """

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.allocations: list[Allocation] = []
        self.top = FIRST_ADDRESS

    def add(
        self, data: Array, name: str = "", address: int | None = None, written: bool = True
    ) -> int:
        """Place ``data`` (a contiguous array) and give its address.

        ``written=False`` marks its bytes as fresh: reading one before it is written is a fault.
        """
        raw = data.reshape(-1).view(np.uint8)
        if len(raw) and not np.shares_memory(raw, data):
            raise ValueError("the array is not contiguous: its bytes would be copied")
        if address is None:
            address = -(-self.top // ALIGNMENT) * ALIGNMENT
        place = bisect_right(self.starts, address)
        before = self.allocations[place - 1] if place else None
        after = self.allocations[place] if place < len(self.allocations) else None
        if (before and before.end > address) or (after and address + len(raw) > after.address):
            raise ValueError(f"{name or 'allocation'} at {address:#x} overlaps another")
        flags = None if written else np.zeros(len(raw), np.uint8)
        self.starts.insert(place, address)
        self.allocations.insert(place, Allocation(name, address, raw, flags))
        self.top = max(self.top, address + len(raw) + GAP)
        return address

    def put(
        self,
        array: Array | None = None,
        nbytes: int | None = None,
        name: str = "",
        skew: int = 0,
    ) -> int:
        """Copy an array in, or reserve fresh bytes filled with 0xFF; gives the address.

        ``skew`` moves the address away from the alignment of 512 bytes.
        """
        fresh = array is None
        data = np.full(nbytes or 0, 0xFF, np.uint8) if array is None else np.array(array, order="C")
        address = -(-self.top // ALIGNMENT) * ALIGNMENT + skew
        return self.add(data, name, address, written=not fresh)

    def get(self, address: int, dtype: Any, shape: tuple[int, ...]) -> Array:
        """A copy of the values at ``address``."""
        found = self.find(address)
        start = address - found.address
        count = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return found.data[start : start + count].copy().view(dtype).reshape(shape)

    def written(self, address: int, nbytes: int) -> bool:
        """Whether all of these bytes hold a value."""
        found = self.find(address)
        start = address - found.address
        return found.written is None or bool(found.written[start : start + nbytes].all())

    def find(self, address: int) -> Allocation:
        """The allocation that owns ``address``."""
        place = bisect_right(self.starts, address) - 1
        found = self.allocations[place] if place >= 0 else None
        if found is None or address >= max(found.end, found.address + 1):
            raise Fault("out of bounds", self._whose(address, 1), address=address)
        return found

    def _whose(self, address: int, width: int) -> str:
        place = bisect_right(self.starts, address) - 1
        if place < 0:
            return f"{width} bytes at {address:#x} belong to no allocation"
        owner = self.allocations[place]
        return (
            f"{width} bytes at {address:#x} belong to no allocation: "
            f"{owner.name or hex(owner.address)} of {len(owner.data)} bytes ends "
            f"{address + width - owner.end} bytes before their end"
        )

    # -- accesses of many threads at once

    def _owner(self, addresses: Array, width: int) -> Allocation | None:
        """The one allocation that all accesses hit; None if there are several.

        Raises `Fault` with ``position`` set where an access is not aligned or hits no allocation.
        """
        if width > 1:
            wrong = (addresses & np.uint64(width - 1)) != 0
            if wrong.any():
                position = int(wrong.argmax())
                address = int(addresses[position])
                raise positioned(
                    "misaligned access",
                    f"address {address:#x} is not a multiple of {width} bytes",
                    address,
                    position,
                )
        low, high = int(addresses.min()), int(addresses.max())
        place = bisect_right(self.starts, low) - 1
        if place >= 0 and high + width <= self.allocations[place].end:
            return self.allocations[place]
        starts = np.array(self.starts, np.uint64)
        ends = np.array([owner.end for owner in self.allocations], np.uint64)
        places = np.searchsorted(starts, addresses, "right") - 1
        wrong = places < 0
        if len(ends):
            wrong |= addresses + np.uint64(width) > ends[places]
        else:
            wrong[:] = True
        if wrong.any():
            position = int(wrong.argmax())
            address = int(addresses[position])
            raise positioned("out of bounds", self._whose(address, width), address, position)
        return None

    def _groups(self, addresses: Array, width: int) -> list[tuple[Allocation, Any]]:
        owner = self._owner(addresses, width)
        if owner is not None:
            return [(owner, slice(None))]
        places = np.searchsorted(np.array(self.starts, np.uint64), addresses, "right") - 1
        return [
            (self.allocations[int(place)], np.flatnonzero(places == place))
            for place in np.unique(places)
        ]

    def load(self, addresses: Array, unit: int, count: int) -> Array:
        """Rows of ``count`` words of ``unit`` bytes at each address: (accesses, count)."""
        width = unit * count
        groups = self._groups(addresses, width)
        out = None if len(groups) == 1 else np.empty((len(addresses), count), UNSIGNED[unit])
        for owner, which in groups:
            rows, first = owner.rows(unit, count)
            at = ((addresses[which] - np.uint64(first)) // np.uint64(width)).astype(np.intp)
            self._check_written(owner, at, unit, count, which)
            if out is None:
                return rows.take(at, axis=0)
            out[which] = rows.take(at, axis=0)
        assert out is not None
        return out

    def _check_written(
        self, owner: Allocation, at: Array, unit: int, count: int, which: Any
    ) -> None:
        if owner.written is None:
            return
        flags, first = owner.rows(unit, count, written=True)
        held = flags.take(at, axis=0) == ~UNSIGNED[unit](0)
        if not held.all():
            wrong = int((~held).any(axis=1).argmax())
            address = first + int(at[wrong]) * unit * count
            position = wrong if isinstance(which, slice) else int(which[wrong])
            raise positioned(
                "uninitialised read",
                f"bytes of {owner.name or hex(owner.address)} are read that were never written",
                address,
                position,
            )

    def store(self, addresses: Array, values: Array) -> None:
        """Write rows of words; of equal addresses the last wins."""
        unit, count = values.dtype.itemsize, values.shape[1]
        for owner, which in self._groups(addresses, unit * count):
            rows, first = owner.rows(unit, count)
            at = ((addresses[which] - np.uint64(first)) // np.uint64(unit * count)).astype(np.intp)
            rows[at] = values[which]
            if owner.written is not None:
                owner.rows(unit, count, written=True)[0][at] = ~UNSIGNED[unit](0)

    def box(
        self, address: int, offset: int, sizes: list[int], strides: list[int], itemsize: int
    ) -> tuple[Array, Array | None]:
        """Strided views (values, written flags) of a box of a tensor, outermost axis first."""
        owner = self.find(address)
        start = address - owner.address + offset
        last = start + sum((n - 1) * s for n, s in zip(sizes, strides, strict=True)) + itemsize
        if start < 0 or last > len(owner.data):
            where = owner.address + (last if start >= 0 else start)
            raise Fault("out of bounds", self._whose(where, itemsize), address=where)
        shape, steps = (*sizes, itemsize), (*strides, 1)
        values = np.lib.stride_tricks.as_strided(owner.data[start:], shape, steps)
        if owner.written is None:
            return values, None
        return values, np.lib.stride_tricks.as_strided(owner.written[start:], shape, steps)


def positioned(kind: str, message: str, address: int, position: int) -> Fault:
    """A fault of one of many accesses; the machine turns ``position`` into a thread."""
    fault = Fault(kind, message, address=address)
    fault.position = position  # type: ignore[attr-defined]
    return fault
