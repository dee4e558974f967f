"""Tensor maps: the descriptors of tensor memory access, with the CUDA driver's rules."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tconv.emulator.faults import Fault

SWIZZLE_BYTES = {0: 0, 1: 32, 2: 64, 3: 128}  # Triton's numbers of cuTensorMapEncodeTiled's modes
MOST_RANK, MOST_BOX = 5, 256
MOST_SIZE, MOST_STRIDE = 1 << 32, 1 << 40


def swizzled(address: NDArray[np.int64], mode: int) -> NDArray[np.int64]:
    """Address after the swizzle: bits 4.. are xor-ed with bits 7.. (``mode`` bits of them)."""
    return address ^ (((address >> 7) & ((1 << mode) - 1)) << 4)


class TensorMap:
    """A box-wise view of a tensor in global memory.

    ``shape``, ``strides`` (in elements) and ``box`` run from the outermost axis to the innermost,
    as in Triton's descriptors. ``swizzle`` is Triton's number: 0 none, 1, 2 and 3 for 32, 64 and
    128 bytes. ``fill_nan`` makes elements outside the tensor NaN instead of zero.

    Raises `Fault` ("tensor map") where cuTensorMapEncodeTiled would refuse.
    Source: CUDA driver API, "Tensor Map Object Management".
    """

    def __init__(
        self,
        address: int,
        shape: Sequence[int],
        strides: Sequence[int],
        box: Sequence[int],
        itemsize: int,
        swizzle: int,
        fill_nan: bool = False,
    ) -> None:
        self.address, self.itemsize, self.swizzle = int(address), itemsize, swizzle
        self.fill_nan = fill_nan
        # innermost axis first from here on
        self.shape = [int(extent) for extent in reversed(shape)]
        self.strides = [int(stride) * itemsize for stride in reversed(strides)]
        self.box = [int(extent) for extent in reversed(box)]
        self._check()
        self.box_bytes = math.prod(self.box) * itemsize

    def _check(self) -> None:
        def refuse(message: str) -> None:
            raise Fault("tensor map", message, address=self.address)

        rank = len(self.shape)
        if not 1 <= rank <= MOST_RANK:
            refuse(f"rank {rank} is not between 1 and {MOST_RANK}")
        if len(self.strides) != rank or len(self.box) != rank:
            refuse(f"{rank} sizes, {len(self.strides)} strides and {len(self.box)} box sizes")
        if self.swizzle not in SWIZZLE_BYTES:
            refuse(f"swizzle mode {self.swizzle} is not 0, 1, 2 or 3")
        if self.address % 16:
            refuse("the address is not a multiple of 16 bytes")
        if any(not 1 <= extent <= MOST_SIZE for extent in self.shape):
            refuse(f"sizes {self.shape[::-1]} are not between 1 and 2^32")
        if self.strides[0] != self.itemsize:
            refuse("the innermost axis is not contiguous")
        for stride in self.strides[1:]:
            if stride % 16:
                refuse(f"a stride of {stride} bytes is not a multiple of 16")
            if not 0 <= stride < MOST_STRIDE:
                refuse(f"a stride of {stride} bytes is not below 2^40")
        if any(not 1 <= extent <= MOST_BOX for extent in self.box):
            refuse(f"box {self.box[::-1]} has sizes that are not between 1 and {MOST_BOX}")
        inner = self.box[0] * self.itemsize
        if inner % 16:
            refuse(f"the box's innermost {inner} bytes are not a multiple of 16")
        span = SWIZZLE_BYTES[self.swizzle]
        if span and inner > span:
            refuse(f"the box's innermost {inner} bytes are wider than the swizzle's {span}")
