"""``cvt``: conversions between PTX types, with rounding and saturation."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tconv.emulator.arithmetic import (
    F2,
    F4,
    F8,
    I8,
    U1,
    U2,
    U4,
    U8,
    from_bfloat16,
    maximum,
    saturate,
    to_bfloat16,
    to_tf32,
)

Array = NDArray[Any]
WHOLE: dict[str, Any] = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def float_to_integer(x: Array, to: str, mode: str) -> Array:
    """Rounded to an integer and clamped to the range of ``to`` (a NumPy type such as ``i4``).

    NaN becomes 0, or the highest bit alone where one of the types has 64 bits.
    """
    dtype = np.dtype(to)
    limits = np.iinfo(dtype)
    rounded = WHOLE[mode](x.astype(F8))
    wide = dtype.itemsize == 8
    below, above = rounded <= float(limits.min), rounded >= float(limits.max)
    inside = np.where(np.isnan(x) | below | above, 0.0, rounded)
    result = inside.astype(dtype)
    result = np.where(below, dtype.type(limits.min), result)
    result = np.where(above, dtype.type(limits.max), result)
    if wide or x.dtype.itemsize == 8:
        top = (
            dtype.type(limits.min)
            if dtype.kind == "i"
            else dtype.type(1 << (8 * dtype.itemsize - 1))
        )
        result = np.where(np.isnan(x), top, result)
    return result


def integer_to_integer(x: Array, to: str, clamp: bool) -> Array:
    """Cut to the type, or clamped to its range (``.sat``)."""
    dtype = np.dtype(to)
    if not clamp:
        return x.astype(dtype)
    limits = np.iinfo(dtype)
    if x.dtype.kind == "u":
        return np.minimum(x, U8(limits.max)).astype(dtype)
    wide = x.astype(I8)
    if dtype == np.dtype(U8):
        return np.maximum(wide, 0).astype(dtype)
    return np.clip(wide, limits.min, limits.max).astype(dtype)


def towards(exact: Array, dtype: Any, mode: str) -> Array:
    """float64 (or an integer) to ``dtype`` by ``rn``, ``rz``, ``rm`` or ``rp``."""
    near = exact.astype(dtype)
    if mode in ("rn", ""):
        return near
    back = near.astype(F8)
    value = exact.astype(F8)
    zero, up, down = dtype(0), dtype(np.inf), dtype(-np.inf)
    if mode == "rz":
        wrong, goal = np.abs(back) > np.abs(value), zero
    elif mode == "rm":
        wrong, goal = back > value, down
    else:
        wrong, goal = back < value, up
    return np.where(wrong & np.isfinite(value), np.nextafter(near, goal), near)


def float_to_float(x: Array, dtype: Any, mode: str, clamp: bool) -> Array:
    """To a narrower or wider float, or (``rni`` and its kin) to a whole number of the same."""
    if mode in WHOLE:
        result = WHOLE[mode](x).astype(dtype)
    elif np.dtype(dtype).itemsize >= x.dtype.itemsize:
        result = x.astype(dtype)
    else:
        result = towards(x, dtype, mode)
    return saturate(result) if clamp else result


def integer_to_float(x: Array, dtype: Any, mode: str) -> Array:
    """The float nearest to an integer, or by another rounding."""
    if np.dtype(dtype).itemsize == 2:
        return towards(x.astype(F8), dtype, mode)
    if mode in ("rn", "") or x.dtype.itemsize <= 4:
        return towards(x, dtype, mode)
    return towards_exactly(x, dtype, mode)


def towards_exactly(x: Array, dtype: Any, mode: str) -> Array:
    """64-bit integers by a directed rounding: compared as Python integers."""
    near = x.astype(dtype)
    goal = {"rz": 0.0, "rm": -np.inf, "rp": np.inf}[mode]
    out = near.copy()
    for place, (value, rounded) in enumerate(zip(x.tolist(), near.tolist(), strict=True)):
        over, under = int(rounded) > value, int(rounded) < value
        wrong = {"rz": (over and value > 0) or (under and value < 0), "rm": over, "rp": under}[mode]
        if wrong:
            out[place] = np.nextafter(near[place], dtype(goal))
    return out


def to_bfloat16_from(x: Array, mode: str) -> Array:
    """bfloat16 bits of a float32 or float64 array."""
    return to_bfloat16(x.astype(F4), mode)


def pack_halves(high: Array, low: Array, kind: str, mode: str, relu: bool, finite: bool) -> Array:
    """Two float32 as one word of two float16 or bfloat16; the first operand is the upper half."""
    parts = []
    for value in (low, high):
        if relu:
            value = np.where(np.isnan(value), value, np.maximum(value, F4(0)))
        if kind == "f16x2":
            half = towards(value, F2, mode)
            if finite:
                half = np.where(np.isinf(half), np.copysign(F2(65504), half), half)
            half = np.where(np.isnan(half), U2(0x7FFF), half.view(U2))
        else:
            half = to_bfloat16(value, mode)
        parts.append(half.astype(U4))
    return parts[0] | (parts[1] << U4(16))


def _float8_table(exponent_bits: int) -> Array:
    fraction_bits = 7 - exponent_bits
    bias = (1 << (exponent_bits - 1)) - 1
    table = np.zeros(256, F4)
    for code in range(256):
        exponent = code >> fraction_bits & ((1 << exponent_bits) - 1)
        fraction = code & ((1 << fraction_bits) - 1)
        scale = 2.0 ** (max(exponent, 1) - bias)
        value = scale * ((exponent > 0) + fraction / (1 << fraction_bits))
        if exponent_bits == 5 and exponent == 31:
            value = np.nan if fraction else np.inf
        if exponent_bits == 4 and code & 0x7F == 0x7F:
            value = np.nan
        table[code] = -value if code & 0x80 else value
    return table


FLOAT8 = {"e4m3x2": _float8_table(4), "e5m2x2": _float8_table(5)}


def from_float8(pair: Array, kind: str) -> Array:
    """Two float16 of the two bytes of ``pair``, as one word."""
    table = FLOAT8[kind].astype(F2).view(U2).astype(U4)
    return table[pair & U2(0xFF)] | (table[pair >> U2(8)] << U4(16))


def to_float8(high: Array, low: Array, kind: str, relu: bool) -> Array:
    """Two floats as a pair of bytes, to nearest even, clamped to finite values."""
    bytes_ = []
    for value in (low, high):
        if relu:
            value = maximum(value, np.zeros_like(value))
        bytes_.append(_nearest_float8(np.asarray(value, F8), kind))
    return bytes_[0].astype(U2) | (bytes_[1].astype(U2) << U2(8))


def _nearest_float8(value: Array, kind: str) -> Array:
    positive = FLOAT8[kind][: 0x7F if kind == "e4m3x2" else 0x7C].astype(F8)
    size = np.minimum(np.abs(value), positive[-1])
    upper = np.searchsorted(positive, size)
    upper = np.clip(upper, 0, len(positive) - 1)
    lower = np.maximum(upper - 1, 0)
    to_upper, to_lower = positive[upper] - size, size - positive[lower]
    take_upper = (to_upper < to_lower) | ((to_upper == to_lower) & (upper % 2 == 0))
    code = np.where(take_upper, upper, lower).astype(U1)
    code = np.where(np.isnan(value), U1(0x7F), code)
    return code | np.where(np.signbit(value) & ~np.isnan(value), U1(0x80), U1(0))


__all__ = [
    "float_to_float",
    "float_to_integer",
    "from_bfloat16",
    "from_float8",
    "integer_to_float",
    "integer_to_integer",
    "pack_halves",
    "to_bfloat16_from",
    "to_float8",
    "to_tf32",
]
