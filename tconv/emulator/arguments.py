"""Conversion of a launch's arguments to PTX parameters, with the checks of the CUDA driver.

Triton passes a pointer as an address, a scalar as its bits, a tensor descriptor as a tensor map
(where the kernel uses TMA) or as a pointer, followed by its shape and strides. A tuple's members
are parameters of their own; compile-time constants are none.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from triton.tools.tensor_descriptor import TensorDescriptor

from tconv.emulator.memory import Memory

FLOAT_BITS = {"fp32": "<f", "f32": "<f", "fp64": "<d", "fp16": "<e"}
BFLOAT16_SHIFT = 16  # bfloat16 is float32's upper half
BYTES = {"i8": 1, "u8": 1, "i16": 2, "u16": 2, "fp16": 2, "bf16": 2, "i32": 4, "u32": 4, "fp32": 4,
         "i64": 8, "u64": 8, "fp64": 8, "fp8e4nv": 1, "fp8e5": 1}  # fmt: skip
SKEW = 64  # bytes: torch's CPU allocations begin at multiples, and so keep a GPU's alignment


def flat(kinds: Sequence[Any], values: Sequence[Any], path: tuple[int, ...] = ()) -> Iterator[
    tuple[tuple[int, ...], str, Any]
]:  # fmt: skip
    """The arguments of a kernel with their positions; members of tuples count one by one."""
    for place, (kind, value) in enumerate(zip(kinds, values, strict=True)):
        here = (*path, place)
        if isinstance(kind, tuple):
            yield from flat(kind, value, here)
        else:
            yield here, kind, value


def scalar_bits(kind: str, value: Any) -> int:
    """The bits that the driver passes for a scalar of Triton's type ``kind``.

    >>> scalar_bits("i32", -1) == 0xFFFFFFFF, hex(scalar_bits("fp32", 1.0))
    (True, '0x3f800000')
    """
    if kind in FLOAT_BITS:
        return int.from_bytes(struct.pack(FLOAT_BITS[kind], value), "little")
    if kind == "bf16":
        bits = int.from_bytes(struct.pack("<f", value), "little")
        rounding = ((bits >> BFLOAT16_SHIFT) & 1) + 0x7FFF
        return (bits + rounding) >> BFLOAT16_SHIFT
    width = int(kind.lstrip("iu"))
    least, most = (-(1 << width - 1), 1 << width - 1) if kind[0] == "i" else (0, 1 << width)
    number = int(value)
    if width > 1 and not least <= number < most:
        raise OverflowError(f"{number} is no {kind}")
    return number & ((1 << width) - 1)


@dataclass(frozen=True)
class Region:
    """Memory of this process that a launch may reach, normally an allocation of torch."""

    start: int
    end: int
    name: str  # of the argument that leads here
    owner: Any = None  # keeps it allocated

    def bytes(self) -> NDArray[np.uint8]:
        """Return a view of the region's bytes."""
        size = self.end - self.start
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(self.start))


def region_of(name: str, value: Any) -> Region | None:
    """The allocation that a pointer argument points into; None if only its address is known.

    Raises:
        ValueError: for a tensor that is not on the CPU.
    """
    tensor = value
    while not isinstance(tensor, torch.Tensor):  # Triton's TensorWrapper reinterprets one
        tensor = getattr(tensor, "base", None)
        if tensor is None:
            return None
    if tensor.device.type != "cpu":
        raise ValueError(
            f"argument {name} is on {tensor.device}; the emulated GPU computes on CPU tensors"
        )
    storage = tensor.untyped_storage()
    start = storage.data_ptr()
    return Region(start, start + storage.nbytes(), name, storage)


def described_region(name: str, kind: str, descriptor: TensorDescriptor) -> Region:
    """The memory that a descriptor of Triton's type ``kind`` covers, if its base is an address."""
    itemsize = BYTES[kind.removeprefix("tensordesc<").partition("[")[0]]
    spans = zip(descriptor.shape, descriptor.strides, strict=True)
    elements = 1 + sum((extent - 1) * stride for extent, stride in spans)
    start = int(descriptor.base.data_ptr())
    return Region(start, start + elements * itemsize, name, descriptor)


def merged(regions: Sequence[Region]) -> list[Region]:
    """The regions without overlaps, in the order of their addresses."""
    found: list[Region] = []
    for region in sorted(regions, key=lambda region: region.start):
        if found and region.start < found[-1].end:
            last = found.pop()
            name = (
                last.name if region.name in last.name.split(", ") else f"{last.name}, {region.name}"
            )
            end = max(last.end, region.end)
            found.append(Region(last.start, end, name, (last.owner, region.owner)))
        elif region.end > region.start:
            found.append(region)
    return found


class Spaces:
    """The memory that one launch may reach, mapped into the emulated GPU's memory.

    Allocations keep their order and distances within, but lie apart from each other, so that an
    access past the end of one hits nobody's memory. Tensors that share storage share a region.
    """

    def __init__(self, regions: Sequence[Region]) -> None:
        self.memory = Memory()
        self._placed: list[tuple[Region, int]] = []
        for region in merged(regions):
            self.memory.top += -self.memory.top % SKEW
            address = self.memory.top + region.start % SKEW
            self.memory.add(region.bytes(), region.name, address)
            self._placed.append((region, address))

    def address(self, pointer: int) -> int:
        """Address in the emulated GPU's memory for a pointer of this process."""
        for region, address in self._placed:
            if region.start <= pointer <= region.end:
                return address + pointer - region.start
        return pointer  # belongs to nobody: using it is a fault
