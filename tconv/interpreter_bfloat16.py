"""Corrects what Triton's interpreter gets wrong in bfloat16.

Its ``dot`` multiplies the raw bits, its cast from float32 cuts off instead of rounding to nearest
even, and its cast to float32 loses subnormal numbers. The compiled kernels have none of these
faults.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

EXPONENT_AND_SIGN = np.uint16(0x7FC0)  # a quiet NaN


def _as_float32(handle: Any) -> Any:
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    bits = handle.data.astype(np.uint32) << 16
    return interpreter.TensorHandle(bits.view(np.float32), tl.float32)


def _rounded(values: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(values).view(np.uint32)
    to_even = (bits >> 16) & 1
    rounded = ((bits + to_even + np.uint32(0x7FFF)) >> 16).astype(np.uint16)
    rounded[np.isnan(values)] = EXPONENT_AND_SIGN
    return rounded


@cache
def mend() -> None:
    """Replace the faulty operations in the interpreter's builder, once in a process."""
    builder = interpreter.InterpreterBuilder
    plain_dot, plain_cast = builder.create_dot, builder.cast_impl

    def create_dot(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        return plain_dot(self, _as_float32(a), _as_float32(b), d, *rest)

    def cast_impl(self: Any, source: Any, target: Any) -> Any:
        if source.dtype.scalar == tl.float32 and target.scalar == tl.bfloat16:
            return interpreter.TensorHandle(_rounded(source.data), tl.bfloat16)
        if source.dtype.scalar == tl.bfloat16 and target.scalar == tl.float32:
            return _as_float32(source)
        return plain_cast(self, source, target)

    builder.create_dot, builder.cast_impl = create_dot, cast_impl
