"""Matrix units of a warp: ``ldmatrix``, ``stmatrix`` and ``mma.sync``.

Fragments follow the PTX ISA, "Matrix Fragments for mma": lane ``l`` of a warp is in group
``l // 4`` at place ``l % 4``; a register holds neighbours along the reduction.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tconv.emulator.arithmetic import from_bfloat16
from tconv.emulator.conversions import FLOAT8
from tconv.emulator.faults import NotCovered
from tconv.emulator.state import State
from tconv.emulator.warps import Warps

Array = NDArray[Any]
ITEM = {"f16": 2, "bf16": 2, "tf32": 4, "f64": 8, "s8": 1, "u8": 1, "e4m3": 1, "e5m2": 1}
TF32_BITS = np.uint32(0xFFFFE000)
HALF = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)


def to_values(raw: Array, kind: str) -> Array:
    """Numbers of raw words (unsigned, of the item's width), in the type that products use."""
    if kind == "f16":
        return HALF.take(raw)
    if kind == "bf16":
        return from_bfloat16(raw)
    if kind == "tf32":
        return (raw & TF32_BITS).view(np.float32)
    if kind == "f64":
        return raw.view(np.float64)
    if kind in ("e4m3", "e5m2"):
        return FLOAT8[kind + "x2"].take(raw)
    return raw.view(np.int8 if kind == "s8" else np.uint8).astype(np.float64)


def sizes(shape: str) -> tuple[int, int, int]:
    """(M, N, K) of a name such as ``m16n8k16``."""
    m, n, k = (int(number) for number in re.findall(r"\d+", shape))
    return m, n, k


def left_fragment(registers: list[Array], kind: str, rows: int, depth: int) -> Array:
    """(warps, rows, depth) of the registers that hold A."""
    width = max(4, ITEM[kind])
    per = width // ITEM[kind]
    high = rows // 8
    words = np.stack(registers)
    items = words.view(f"u{ITEM[kind]}").reshape(len(registers) // high, high, -1, 8, 4, per)
    return items.transpose(2, 1, 3, 0, 4, 5).reshape(-1, rows, depth)


def right_fragment(registers: list[Array], kind: str, columns: int, depth: int) -> Array:
    """(warps, columns, depth) of the registers that hold B: the transposed matrix."""
    width = max(4, ITEM[kind])
    per = width // ITEM[kind]
    items = np.stack(registers).view(f"u{ITEM[kind]}").reshape(len(registers), -1, 8, 4, per)
    return items.transpose(1, 2, 0, 3, 4).reshape(-1, columns, depth)


def accumulator_values(registers: list[Array], rows: int, columns: int) -> Array:
    """(warps, rows, columns) of registers that hold C, one item each."""
    items = np.stack(registers).reshape(rows // 8, 2, -1, 8, 4)
    return items.transpose(2, 0, 3, 4, 1).reshape(-1, rows, columns)


def accumulator_registers(values: Array, rows: int, columns: int) -> Array:
    """(registers, lanes) of (warps, rows, columns)."""
    items = values.reshape(-1, rows // 8, 8, columns // 2, 2)
    return np.ascontiguousarray(items.transpose(1, 4, 0, 2, 3)).reshape(rows // 8 * 2, -1)


class MatrixUnits:
    """Matrix instructions of the warps that run side by side."""

    def __init__(self, machine: State, warps: Warps) -> None:
        self.machine, self.warps = machine, warps

    def _row_lanes(self, lanes: Array | None, count: int) -> Array:
        """The lanes whose addresses an instruction of ``count`` matrices takes."""
        every = np.arange(self.machine.lanes) if lanes is None else lanes
        return every.reshape(-1, 32)[:, : 8 * count].ravel()

    def load(
        self, index: int, mask: Array | None, at: Array, count: int, transposed: bool
    ) -> tuple[Array, ...]:
        """``ldmatrix``: ``count`` matrices of 8 rows of 16 bytes a warp, one register each."""
        machine = self.machine
        lanes = self.warps.whole(index, mask)
        if lanes is not None and not len(lanes):
            return (np.zeros(machine.lanes, np.uint32),) * count
        rows_of = self._row_lanes(lanes, count) if lanes is not None or count < 4 else None
        machine.active = rows_of
        where = (at if rows_of is None else at[rows_of]).astype(np.int64)
        rows = machine.shared.read(where, 4, 4, rows_of)
        machine.count_shared(where, 16, rows_of, store=False)
        matrices = rows.reshape(-1, count, 8, 4)
        if transposed:
            items = matrices.view(np.uint16).reshape(-1, count, 8, 8).swapaxes(-1, -2)
            matrices = np.ascontiguousarray(items).view(np.uint32)
        words = np.ascontiguousarray(matrices.reshape(-1, count, 32).swapaxes(0, 1))
        words = words.reshape(count, -1)
        if lanes is None:
            return tuple(words)
        out = np.zeros((count, machine.lanes), np.uint32)
        out[:, lanes] = words
        return tuple(out)

    def store(
        self, index: int, mask: Array | None, at: Array, values: tuple[Any, ...], transposed: bool
    ) -> None:
        """``stmatrix``: the opposite of ``ldmatrix``."""
        machine, count = self.machine, len(values)
        lanes = self.warps.whole(index, mask)
        if lanes is not None and not len(lanes):
            return
        rows_of = self._row_lanes(lanes, count) if lanes is not None or count < 4 else None
        machine.active = rows_of
        words = np.stack([machine.lane_array(value) for value in values])
        if lanes is not None:
            words = words[:, lanes]
        matrices = np.ascontiguousarray(words.reshape(count, -1, 32).swapaxes(0, 1))
        if transposed:
            items = matrices.view(np.uint16).reshape(-1, count, 8, 8).swapaxes(-1, -2)
            matrices = np.ascontiguousarray(items).view(np.uint32)
        where = (at if rows_of is None else at[rows_of]).astype(np.int64)
        machine.shared.write(where, matrices.reshape(-1, 4), rows_of)
        machine.count_shared(where, 16, rows_of, store=True)

    def multiply(
        self, index: int, mask: Array | None, shape: str, kinds: tuple[str, ...],
        a: tuple[Any, ...], b: tuple[Any, ...], c: tuple[Any, ...],
    ) -> tuple[Array, ...]:  # fmt: skip
        """``mma.sync``: A times B plus C in every warp; kinds are those of D, A, B and C."""
        machine = self.machine
        lanes = self.warps.whole(index, mask)
        rows, columns, depth = sizes(shape)
        if kinds[1] not in ITEM or kinds[2] not in ITEM:
            raise NotCovered(f"mma.sync of {kinds[1]} and {kinds[2]} is not covered")
        arrays = [[machine.lane_array(value) for value in part] for part in (a, b, c)]
        left = to_values(left_fragment(arrays[0], kinds[1], rows, depth), kinds[1])
        right = to_values(right_fragment(arrays[1], kinds[2], columns, depth), kinds[2])
        warps = machine.lanes // 32 if lanes is None else len(lanes) // 32
        machine.counters.matrix_flops += 2 * rows * columns * depth * warps
        product = np.matmul(left, right.swapaxes(1, 2))
        if kinds[3] == "f16":
            halves = np.stack(arrays[2]).view(np.float16).reshape(rows // 8, -1, 8, 4, 2)
            start = halves.transpose(1, 0, 2, 3, 4).reshape(-1, rows, columns)
            total = (product + start.astype(np.float32)).astype(np.float16)
            items = total.reshape(-1, rows // 8, 8, columns // 2, 2).transpose(1, 0, 2, 3, 4)
            return tuple(np.ascontiguousarray(items).view(np.uint32).reshape(rows // 8, -1))
        kind = {"f32": "f4", "s32": "i4", "f64": "f8"}[kinds[3]]
        start = accumulator_values(arrays[2], rows, columns).view(kind)
        total = (
            product.astype(np.int64).astype(np.int32) + start if kind == "i4" else product + start
        )
        unsigned = f"u{kind[1]}"
        return tuple(
            accumulator_registers(total.astype(kind, copy=False).view(unsigned), rows, columns)
        )
