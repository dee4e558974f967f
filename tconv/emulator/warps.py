"""Exchanges among the threads of a warp: shuffles, votes, reductions, matches, elections."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tconv.emulator.arithmetic import maximum, minimum
from tconv.emulator.faults import Fault
from tconv.emulator.state import State

Array = NDArray[Any]
BITS = np.uint32(1) << np.arange(32, dtype=np.uint32)


class Warps:
    """The warps of the blocks that run side by side."""

    def __init__(self, machine: State) -> None:
        self.machine = machine
        self.count = machine.lanes // 32
        self.lane = np.arange(machine.lanes) % 32
        self.base = np.arange(machine.lanes) - self.lane

    def members(self, index: int, mask: Array | None, members: Any) -> Array:
        """(warps, 32) lanes that take part; each named lane has to be there."""
        self.machine.select(index, mask)
        here = np.ones((self.count, 32), bool) if mask is None else mask.reshape(-1, 32)
        if np.ndim(members) == 0:
            if int(members) == 0xFFFFFFFF and mask is None:
                return here
            members = np.full(self.machine.lanes, members)
        named = (members.reshape(-1, 32)[:, :, None] & BITS) != 0  # by warp, lane, named lane
        missing = (here[:, :, None] & named & ~here[:, None, :]).any(axis=(1, 2))
        if missing.any():
            warp = int(missing.argmax())
            lane = int((here[warp, :, None] & named[warp] & ~here[warp]).any(axis=1).argmax())
            raise Fault(
                "divergent warp",
                "lanes that the membership mask names are not at this instruction",
                thread=self.machine.thread_name(32 * warp + lane),
            )
        return here

    def whole(self, index: int, mask: Array | None) -> Array | None:
        """Lanes of an instruction that whole warps execute together; None for all."""
        lanes = self.machine.select(index, mask)
        if lanes is not None and mask is not None:
            rows = mask.reshape(-1, 32)
            partly = rows.any(axis=1) & ~rows.all(axis=1)
            if partly.any():
                warp = int(partly.argmax())
                raise Fault(
                    "divergent warp",
                    "only some lanes of a warp are at an instruction for whole warps",
                    thread=self.machine.thread_name(32 * warp + int(rows[warp].argmax())),
                )
        return lanes

    def shuffle(
        self,
        index: int,
        mask: Array | None,
        mode: str,
        value: Any,
        other: Any,
        clamp: Any,
        members: Any,
    ) -> tuple[Array, Array]:
        """``shfl.sync``: (values, whether the source lane was in range)."""
        here = self.members(index, mask, members).ravel()
        value = self.machine.lane_array(value)
        other = np.asarray(other).astype(np.int64) & 31
        control = np.asarray(clamp).astype(np.int64)
        bound, segment = control & 31, (control >> 8) & 31
        low = self.lane & segment
        high = low | (bound & ~segment)
        if mode == "up":
            source = self.lane - other
            valid = source >= high
        else:
            source = {
                "down": self.lane + other,
                "bfly": self.lane ^ other,
                "idx": low | (other & ~segment),
            }[mode]
            valid = source <= high
        source = np.where(valid, source, self.lane)
        place = self.base + source
        if mask is not None and not here[place][here].all():
            wrong = int((here & ~here[place]).argmax())
            raise Fault(
                "divergent warp", f"a shuffle reads lane {int(source[wrong])}, which is not there",
                thread=self.machine.thread_name(wrong),
            )  # fmt: skip
        return value[place], valid

    def vote(self, index: int, mask: Array | None, mode: str, value: Any, members: Any) -> Array:
        """``vote.sync``: of the lanes that the mask names."""
        here = self.members(index, mask, members)
        if np.ndim(members):
            here = here & ((members.reshape(-1, 32)[:, :1] & BITS) != 0)
        else:
            here = here & ((np.uint32(members) & BITS) != 0)
        rows = self.machine.lane_array(value).reshape(-1, 32)
        if mode == "ballot":
            return np.repeat(((rows & here) * BITS).sum(axis=1, dtype=np.uint32), 32)
        if mode == "any":
            return np.repeat((rows & here).any(axis=1), 32)
        if mode == "all":
            return np.repeat((rows | ~here).all(axis=1), 32)
        return np.repeat((rows | ~here).all(axis=1) | (~rows | ~here).all(axis=1), 32)  # uni

    def reduce(
        self,
        index: int,
        mask: Array | None,
        mode: str,
        value: Any,
        members: Any,
        nan: bool,
        absolute: bool,
    ) -> Array:
        """``redux.sync``: of the lanes that the mask names."""
        here = self.members(index, mask, members)
        names = (
            np.asarray(members).reshape(-1, 32)[:, :1] if np.ndim(members) else np.uint32(members)
        )
        here = here & ((names & BITS) != 0)
        rows = self.machine.lane_array(value).reshape(-1, 32)
        if absolute:
            rows = np.abs(rows)
        if rows.dtype.kind == "f":
            function = minimum if mode == "min" else maximum
            empty = np.inf if mode == "min" else -np.inf
            rows = np.where(here, rows, rows.dtype.type(empty))
            result = rows[:, 0]
            for lane in range(1, 32):
                result = function(result, rows[:, lane], nan)
            return np.repeat(result, 32)
        limits = np.iinfo(rows.dtype)
        functions: dict[str, tuple[Any, int]] = {
            "add": (np.add, 0),
            "min": (np.minimum, limits.max),
            "max": (np.maximum, limits.min),
            "and": (np.bitwise_and, -1 if limits.min else limits.max),
            "or": (np.bitwise_or, 0),
            "xor": (np.bitwise_xor, 0),
        }
        ufunc, empty_value = functions[mode]
        rows = np.where(here, rows, rows.dtype.type(empty_value))
        return np.repeat(ufunc.reduce(rows, axis=1, dtype=rows.dtype), 32)

    def match(
        self, index: int, mask: Array | None, mode: str, value: Any, members: Any
    ) -> tuple[Array, Array]:
        """``match.sync``: lanes with the same value (``any``), or all if all have it."""
        here = self.members(index, mask, members)
        rows = self.machine.lane_array(value).reshape(-1, 32)
        same = (rows[:, :, None] == rows[:, None, :]) & here[:, None, :]
        found = (same * BITS).sum(axis=2, dtype=np.uint32)
        if mode == "any":
            return found.ravel(), np.ones(self.machine.lanes, bool)
        full = (here * BITS).sum(axis=1, dtype=np.uint32)[:, None]
        every = np.broadcast_to(((found == full) | ~here).all(axis=1)[:, None], here.shape)
        return np.where(every, full, np.uint32(0)).ravel(), every.ravel().copy()

    def active(self, mask: Array | None) -> Array:
        """``activemask``."""
        if mask is None:
            return np.full(self.machine.lanes, np.uint32(0xFFFFFFFF))
        return np.repeat((mask.reshape(-1, 32) * BITS).sum(axis=1, dtype=np.uint32), 32)

    def elect(self, index: int, mask: Array | None) -> tuple[Array, Array]:
        """``elect.sync``: the first lane of each warp that is there."""
        here = np.ones((self.count, 32), bool) if mask is None else mask.reshape(-1, 32)
        first = here.argmax(axis=1)
        elected = (np.arange(32) == first[:, None]) & here
        return np.repeat(first.astype(np.uint32), 32), elected.ravel()
