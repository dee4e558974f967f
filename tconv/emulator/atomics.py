"""Atomic operations on global and shared memory: lanes take their turns in order."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tconv.emulator import arithmetic
from tconv.emulator.requests import sectors_of
from tconv.emulator.state import State

Array = NDArray[Any]
TYPES = {"u32": "u4", "s32": "i4", "b32": "u4", "f32": "f4", "u64": "u8", "s64": "i8", "b64": "u8",
         "f64": "f8", "f16": "f2", "f16x2": "f2", "bf16": "u2", "bf16x2": "u2", "b16": "u2",
         "u16": "u2"}  # fmt: skip
WIDTHS = {"u32": 4, "s32": 4, "b32": 4, "f32": 4, "u64": 8, "s64": 8, "b64": 8, "f64": 8, "f16": 2,
          "f16x2": 4, "bf16": 2, "bf16x2": 4, "b16": 2, "u16": 2}  # fmt: skip


def combine(operation: str, kind: str, old: Array, values: list[Array]) -> Array:
    """The new contents of memory, as raw words; ``old`` and ``values`` are raw words too."""
    raw = old.dtype
    view = TYPES[kind]

    def typed(words: Array) -> Array:
        parts = np.ascontiguousarray(words).view(view)
        return arithmetic.from_bfloat16(parts) if kind.startswith("bf16") else parts

    held, value = typed(old), typed(values[0])
    if operation == "exch":
        result = value
    elif operation == "cas":
        result = np.where(old == values[0], values[1], old).view(view)
    elif operation == "add":
        result = held + value
    elif operation == "min":
        result = (
            arithmetic.minimum(held, value) if held.dtype.kind == "f" else np.minimum(held, value)
        )
    elif operation == "max":
        result = (
            arithmetic.maximum(held, value) if held.dtype.kind == "f" else np.maximum(held, value)
        )
    elif operation == "inc":
        result = np.where(held >= value, held.dtype.type(0), held + held.dtype.type(1))
    elif operation == "dec":
        wraps = (held == 0) | (held > value)
        result = np.where(wraps, value, held - held.dtype.type(1))
    else:
        bitwise = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}[operation]
        result = bitwise(held, value)
    if kind.startswith("bf16") and operation not in ("exch", "cas"):
        result = arithmetic.to_bfloat16(result)
    elif kind.startswith("bf16"):
        result = arithmetic.to_bfloat16(result) if operation == "exch" else result
    return np.ascontiguousarray(result).view(raw)


class Atomics:
    """Atomic operations of all lanes."""

    def __init__(self, machine: State) -> None:
        self.machine = machine

    def on_global(
        self, index: int, mask: Array | None, at: Array, operation: str, kind: str,
        values: tuple[Any, ...], count: int,
    ) -> tuple[Array, ...]:  # fmt: skip
        """``atom.global`` and ``red.global``: the old words of each lane."""
        machine = self.machine
        lanes = machine.select(index, mask)
        width = WIDTHS[kind]
        if lanes is not None and not len(lanes):
            return (np.zeros(machine.lanes, f"u{width}"),) * count
        memory = machine.memory
        where = at if lanes is None else at[lanes]
        requests, sectors = sectors_of(where, lanes)
        machine.counters.atomic_requests += requests
        machine.counters.global_store_sectors += sectors
        machine.counters.global_store_requests += requests
        machine.counters.global_store_bytes += len(where) * width * count

        def access(places: Array, words: Array | None) -> Array:
            if words is None:
                return memory.load(places, width, 1)[:, 0]
            memory.store(places, words[:, None])
            return words

        return self._each(where, lanes, operation, kind, values, count, access)

    def on_shared(
        self, index: int, mask: Array | None, at: Array, operation: str, kind: str,
        values: tuple[Any, ...], count: int,
    ) -> tuple[Array, ...]:  # fmt: skip
        """``atom.shared``: the old words of each lane."""
        machine = self.machine
        lanes = machine.select(index, mask)
        width = WIDTHS[kind]
        if lanes is not None and not len(lanes):
            return (np.zeros(machine.lanes, f"u{width}"),) * count
        shared = machine.shared
        where = (at if lanes is None else at[lanes]).astype(np.int64)
        rows = shared.place(where, width, lanes)
        granules = shared.granules(rows, width)
        shared.check_read(granules, lanes)
        machine.count_shared(where, width, lanes, store=True)
        view = shared.rows(width, 1)

        def access(places: Array, words: Array | None) -> Array:
            if words is None:
                return view[places, 0]
            view[places, 0] = words
            return words

        return self._each(rows, lanes, operation, kind, values, count, access)

    def _each(
        self, where: Array, lanes: Array | None, operation: str, kind: str,
        values: tuple[Any, ...], count: int, access: Any,
    ) -> tuple[Array, ...]:  # fmt: skip
        machine, width = self.machine, WIDTHS[kind]
        arrays = [machine.lane_array(value) for value in values]
        if lanes is not None:
            arrays = [array[lanes] for array in arrays]
        results = []
        for part in range(count):
            operands = arrays[part::count] if operation == "cas" else [arrays[part]]
            places = where + where.dtype.type(part * width) if count > 1 else where
            old = np.empty(len(places), f"u{width}")
            for turn in turns_of(places):
                before = access(places[turn], None)
                old[turn] = before
                access(places[turn], combine(operation, kind, before, [v[turn] for v in operands]))
            full = np.zeros(machine.lanes, f"u{width}")
            full[slice(None) if lanes is None else lanes] = old
            results.append(full)
        return tuple(results)


def turns_of(places: Array) -> list[Array]:
    """Groups of positions without two equal places; equal ones keep their order."""
    order = np.argsort(places, kind="stable")
    ordered = places[order]
    start = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    first = np.maximum.accumulate(np.where(start, np.arange(len(order)), 0))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order)) - first
    return [np.flatnonzero(rank == turn) for turn in range(int(rank.max()) + 1)]
