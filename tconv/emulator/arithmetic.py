"""Arithmetic of PTX instructions on NumPy arrays, as NVIDIA's PTX ISA defines it.

Functions take and give arrays (or scalars) of the NumPy type that the instruction names; bfloat16
travels as its 16 bits. Rounding is to nearest even unless a function says otherwise.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
U1, U2, U4, U8 = np.uint8, np.uint16, np.uint32, np.uint64
I1, I2, I4, I8 = np.int8, np.int16, np.int32, np.int64
F2, F4, F8 = np.float16, np.float32, np.float64
CANONICAL_NAN: dict[str, Any] = {
    "f2": U2(0x7FFF),
    "f4": U4(0x7FFFFFFF),
    "f8": U8(0x7FFFFFFFFFFFFFFF),
}


# -- integers


def divide(x: Array, y: Array) -> Array:
    """Quotient rounded towards zero; division by zero sets all bits, as the hardware does."""
    x, y = np.broadcast_arrays(x, y)
    kind = x.dtype.type
    safe = np.where(y == 0, kind(1), y)
    if x.dtype.kind == "u":
        return np.where(y == 0, ~kind(0), x // safe)
    if x.min() >= 0 and safe.min() > 0:
        quotient = x // safe
    else:
        unsigned = f"u{x.dtype.itemsize}"
        size = np.abs(x).view(unsigned) // np.abs(safe).view(unsigned)
        quotient = np.where((x < 0) != (safe < 0), -size.view(x.dtype), size.view(x.dtype))
    return np.where(y == 0, kind(-1), quotient)


def remainder(x: Array, y: Array) -> Array:
    """Remainder with the sign of ``x``; of a division by zero: ``x``."""
    x, y = np.broadcast_arrays(x, y)
    safe = np.where(y == 0, x.dtype.type(1), y)
    if x.dtype.kind == "u":
        return np.where(y == 0, x, x % safe)
    minus_one = safe == -1  # the least integer by -1 overflows
    return np.where(y == 0, x, np.fmod(x, np.where(minus_one, x.dtype.type(1), safe)))


def multiply_high(x: Array, y: Array) -> Array:
    """Upper half of the product."""
    width = x.dtype.itemsize
    if width < 8:
        wide = np.dtype(f"{x.dtype.kind}{2 * width}").type
        return ((x.astype(wide) * y.astype(wide)) >> wide(8 * width)).astype(x.dtype)
    a, b = x.view(U8), y.view(U8)
    half, low = U8(32), U8(0xFFFFFFFF)
    a0, a1, b0, b1 = a & low, a >> half, b & low, b >> half
    middle = a1 * b0 + ((a0 * b0) >> half)
    carry = a0 * b1 + (middle & low)
    high = a1 * b1 + (middle >> half) + (carry >> half)
    if x.dtype.kind == "i":
        high = high - np.where(x < 0, b, U8(0)) - np.where(y < 0, a, U8(0))
    return high.view(x.dtype)


def saturating_add(x: Array, y: Array) -> Array:
    """Sum of 32-bit integers, clamped to their range."""
    total = x.astype(I8) + y.astype(I8)
    return np.clip(total, np.iinfo(I4).min, np.iinfo(I4).max).astype(I4)


def saturating_subtract(x: Array, y: Array) -> Array:
    """Difference of 32-bit integers, clamped to their range."""
    total = x.astype(I8) - y.astype(I8)
    return np.clip(total, np.iinfo(I4).min, np.iinfo(I4).max).astype(I4)


def shift_left(x: Array, count: Array) -> Array:
    """``x << count``; a count of the width and more gives 0."""
    bits = 8 * x.dtype.itemsize
    moved = x << np.minimum(count, U4(bits - 1)).astype(x.dtype)
    return np.where(count >= bits, x.dtype.type(0), moved)


def shift_right(x: Array, count: Array) -> Array:
    """``x >> count``: of signed types the sign fills up, of others zero."""
    bits = 8 * x.dtype.itemsize
    moved = x >> np.minimum(count, U4(bits - 1)).astype(x.dtype)
    if x.dtype.kind == "i":
        return moved
    return np.where(count >= bits, x.dtype.type(0), moved)


def funnel_shift(low: Array, high: Array, count: Array, left: bool, wrap: bool) -> Array:
    """32 bits of the 64 of ``high:low`` after a shift; the count wraps at 32 or stops there."""
    count = (count & U4(31)) if wrap else np.minimum(count, U4(32))
    both = (high.astype(U8) << U8(32)) | low.astype(U8)
    wide = count.astype(U8)
    return ((both << wide) >> U8(32)).astype(U4) if left else (both >> wide).astype(U4)


def bit_field_extract(x: Array, position: Array, length: Array) -> Array:
    """``length`` bits from ``position`` on; signed types extend the field's highest bit.

    A signed field that ends beyond the highest bit is filled with the highest bit.
    """
    bits = 8 * x.dtype.itemsize
    unsigned = UNSIGNED[x.dtype.itemsize]
    position = np.asarray(position) & U4(0xFF)
    length = np.asarray(length) & U4(0xFF)
    whole = x.view(unsigned) if x.dtype.kind == "i" else x
    mask = np.where(
        length >= bits,
        ~unsigned(0),
        (unsigned(1) << np.minimum(length, U4(bits - 1)).astype(unsigned)) - unsigned(1),
    )
    field = shift_right(np.asarray(whole), position) & mask
    if x.dtype.kind == "u":
        return field
    top = np.minimum(position.astype(I8) + length - 1, bits - 1)
    top = np.maximum(top, 0).astype(unsigned)
    sign = (whole >> top) & unsigned(1)
    # the field's own width within the register decides which bits the sign fills
    filled = np.where((sign == 1) & (length > 0), field | ~_valid(position, length, bits), field)
    return filled.astype(unsigned).view(x.dtype)


def _valid(position: Array, length: Array, bits: int) -> Array:
    unsigned = UNSIGNED[bits // 8]
    inside = np.clip(bits - position.astype(I8), 0, bits)
    count = np.minimum(length.astype(I8), inside)
    return np.where(
        count >= bits,
        ~unsigned(0),
        (unsigned(1) << np.minimum(count, bits - 1).astype(unsigned)) - unsigned(1),
    )


def bit_field_insert(x: Array, into: Array, position: Array, length: Array) -> Array:
    """``into`` with ``length`` bits from ``position`` on replaced by the lowest of ``x``."""
    kind = x.dtype.type
    bits = 8 * x.dtype.itemsize
    position = np.asarray(position) & U4(0xFF)
    length = np.asarray(length) & U4(0xFF)
    ones = np.where(
        length >= bits,
        ~kind(0),
        (kind(1) << np.minimum(length, U4(bits - 1)).astype(x.dtype)) - kind(1),
    )
    mask = shift_left(ones, position)
    return (into & ~mask) | (shift_left(np.asarray(x), position) & mask)


def three_input_logic(x: Array, y: Array, z: Array, table: int) -> Array:
    """``lop3``: bit i of the result is bit (4x + 2y + z) of ``table``."""
    result: Array = np.zeros_like(x)
    for row in range(8):
        if table >> row & 1:
            term = (x if row & 4 else ~x) & (y if row & 2 else ~y) & (z if row & 1 else ~z)
            result = result | term
    return result


PRMT_MODES = {
    "f4e": [[0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5], [3, 4, 5, 6]],
    "b4e": [[0, 7, 6, 5], [1, 0, 7, 6], [2, 1, 0, 7], [3, 2, 1, 0]],
    "rc8": [[0, 0, 0, 0], [1, 1, 1, 1], [2, 2, 2, 2], [3, 3, 3, 3]],
    "ecl": [[0, 1, 2, 3], [1, 1, 2, 3], [2, 2, 2, 3], [3, 3, 3, 3]],
    "ecr": [[0, 0, 0, 0], [0, 1, 1, 1], [0, 1, 2, 2], [0, 1, 2, 3]],
    "rc16": [[0, 1, 0, 1], [2, 3, 2, 3], [0, 1, 0, 1], [2, 3, 2, 3]],
}


def permute_bytes(x: Array, y: Array, selector: Array, mode: str = "") -> Array:
    """``prmt``: four bytes of the eight of ``y:x``; selector bit 3 replicates the sign instead."""
    both = (np.asarray(y).astype(U8) << U8(32)) | np.asarray(x).astype(U8)
    result: Array = np.zeros((), U4)
    for place in range(4):
        if mode:
            rows = np.array(PRMT_MODES[mode], U8)[:, place]
            chosen, replicate = rows[np.asarray(selector) & U4(3)], np.bool_(False)
        else:
            nibble = np.asarray(selector) >> U4(4 * place)
            chosen, replicate = (nibble & U4(7)).astype(U8), (nibble & U4(8)) != 0
        byte = ((both >> (chosen * U8(8))) & U8(0xFF)).astype(U4)
        if np.any(replicate):
            byte = np.where(replicate, np.where(byte & U4(0x80), U4(0xFF), U4(0)), byte)
        result = result | (byte << U4(8 * place))
    return result


def count_leading_zeros(x: Array) -> Array:
    """Zeros above the highest set bit; all of them for 0."""
    bits = 8 * x.dtype.itemsize
    return (U4(bits) - (find_leading(x) + U4(1))).astype(U4)


def find_leading(x: Array, shift_amount: bool = False) -> Array:
    """``bfind``: place of the highest bit that is not the sign; 0xFFFFFFFF if there is none."""
    unsigned = UNSIGNED[x.dtype.itemsize]
    bits = 8 * x.dtype.itemsize
    if x.dtype.kind == "i":
        value = np.where(x < 0, ~x, x).view(unsigned)
    else:
        value = np.array(x, unsigned)
    step = bits // 2
    smeared = value
    shift = 1
    while shift < bits:
        smeared = smeared | (smeared >> unsigned(shift))
        shift *= 2
    del step
    place = np.bitwise_count(smeared).astype(U4) - U4(1)
    if shift_amount:
        return np.where(place == U4(0xFFFFFFFF), place, U4(bits - 1) - place)
    return place


def reverse_bits(x: Array) -> Array:
    """The bits in opposite order."""
    order = np.unpackbits(np.ascontiguousarray(np.atleast_1d(x)).view(U1), bitorder="little")
    bits = 8 * x.dtype.itemsize
    return np.packbits(order.reshape(-1, bits)[:, ::-1], axis=1, bitorder="little").view(x.dtype)[
        :, 0
    ]


def dot_bytes(x: Array, y: Array, total: Array, signed_x: bool, signed_y: bool) -> Array:
    """``dp4a``: sum of the products of four bytes, added to ``total``."""
    a = np.ascontiguousarray(x).view(I1 if signed_x else U1).reshape(-1, 4).astype(I8)
    b = np.ascontiguousarray(y).view(I1 if signed_y else U1).reshape(-1, 4).astype(I8)
    return ((a * b).sum(1) + np.asarray(total).astype(I8)).astype(U4)


UNSIGNED: dict[int, Any] = {1: U1, 2: U2, 4: U4, 8: U8}


# -- floats


def from_bfloat16(bits: Array) -> Array:
    """float32 of the 16 bits of a bfloat16."""
    return (bits.astype(U4) << U4(16)).view(F4)


def to_bfloat16(value: Array, mode: str = "rn") -> Array:
    """16 bits of the bfloat16 nearest to a float32, or towards zero (``rz``)."""
    bits = np.asarray(value).view(U4)
    if mode == "rz":
        rounded = (bits >> U4(16)).astype(U2)
    else:
        rounded = ((bits + (((bits >> U4(16)) & U4(1)) + U4(0x7FFF))) >> U4(16)).astype(U2)
    return np.where(np.isnan(value), U2(0x7FFF), rounded)


def to_bfloat16_odd(value: Array) -> Array:
    """16 bits of the bfloat16 nearest to a float64."""
    return to_bfloat16(round_to_odd(value, np.zeros_like(value), 29))


def to_tf32(value: Array, mode: str = "rna") -> Array:
    """float32 rounded to 10 bits of fraction: ties away (``rna``), to even, or towards zero."""
    bits = np.asarray(value).view(U4)
    if mode == "rna":
        rounded = (bits + U4(0x1000)) & U4(0xFFFFE000)
    elif mode == "rz":
        rounded = bits & U4(0xFFFFE000)
    else:
        rounded = (bits + (((bits >> U4(13)) & U4(1)) + U4(0xFFF))) & U4(0xFFFFE000)
    special = (bits & U4(0x7F800000)) == U4(0x7F800000)
    return np.where(special, np.where(np.isnan(value), U4(0x7FFFFFFF), bits), rounded).view(F4)


def flush(value: Array) -> Array:
    """Subnormal float32 become zero of the same sign (``.ftz``)."""
    small = np.abs(value) < F4(1.1754944e-38)
    return np.where(small, np.copysign(F4(0), value), value)


def saturate(value: Array) -> Array:
    """Clamp to [0, 1]; NaN becomes 0 (``.sat``)."""
    kind = value.dtype.type
    return np.where(np.isnan(value), kind(0), np.clip(value, kind(0), kind(1)))


def relu(value: Array) -> Array:
    """Negative values become 0; NaN stays (``.relu``)."""
    kind = value.dtype.type
    return np.where(value < kind(0), kind(0), value)


def relu_bfloat16(bits: Array) -> Array:
    """`relu` of the 16 bits of a bfloat16."""
    return np.where((bits > U2(0x8000)) & (bits <= U2(0xFF80)), U2(0), bits)


def round_to_odd(value: Array, error: Array, dropped: int) -> Array:
    """float32 of float64 ``value + error`` such that a later rounding to fewer bits is right.

    The value is cut to float32 towards zero; where bits are lost its last bit is set.
    """
    del dropped
    with np.errstate(all="ignore"):
        cut = np.asarray(value).astype(F4)
    back = cut.astype(F8)
    beyond = np.abs(back) > np.abs(value)
    bits = cut.view(U4) - np.where(beyond & np.isfinite(value), U4(1), U4(0))
    back = bits.view(F4).astype(F8)
    inexact = ((back != value) | (error != 0)) & np.isfinite(value)
    return (bits | inexact.astype(U4)).view(F4)


def fused_multiply_add_f32(x: Array, y: Array, z: Array) -> Array:
    """``x * y + z`` rounded once to float32."""
    product = np.asarray(x).astype(F8) * np.asarray(y).astype(F8)  # exact
    addend = np.asarray(z).astype(F8)
    total = product + addend
    result = total.astype(F4)
    # float64 rounded the sum; that matters only next to a tie of float32 or among subnormals
    tie = (total.view(U8) & U8(0x1FFFFFFF)) == U8(0x10000000)
    risky = tie | (np.abs(total) < 2.3509887e-38)
    if not risky.any():
        return result
    product, addend, total = np.broadcast_arrays(product, addend, total)
    head = total - product
    error = (product - (total - head)) + (addend - head)
    bits = total.view(U8) if total.flags.c_contiguous else total.copy().view(U8)
    odd = (bits & U8(1)) == 1
    adjust = (error != 0) & np.isfinite(total) & ~odd & np.isfinite(error)
    # towards the side of the exact sum: the even neighbour becomes the odd one
    away = (error > 0) == (total > 0)
    nudged = np.where(away, bits + U8(1), bits - U8(1)).view(F8)
    return np.where(adjust, nudged, total).astype(F4)


def fused_multiply_add_half(x: Array, y: Array, z: Array) -> Array:
    """``x * y + z`` of float16 rounded once: float64 holds the sum well enough."""
    return (x.astype(F8) * y.astype(F8) + z.astype(F8)).astype(F2)


def fused_multiply_add_bfloat16(x: Array, y: Array, z: Array) -> Array:
    """``x * y + z`` of bfloat16 bits rounded once."""
    a, b, c = (from_bfloat16(v).astype(F8) for v in (x, y, z))
    product = a * b
    total = product + c
    head = total - product
    error = (product - (total - head)) + (c - head)
    error = np.where(np.isfinite(error), error, 0.0)
    down = np.where((error != 0) & ((error > 0) != (total > 0)), np.nextafter(total, 0.0), total)
    return to_bfloat16(round_to_odd(down, error, 16))


def _libm_fma() -> Any:
    name = ctypes.util.find_library("m")
    function = ctypes.CDLL(name).fma
    function.restype = ctypes.c_double
    function.argtypes = [ctypes.c_double] * 3
    return np.frompyfunc(function, 3, 1)


_FMA: list[Any] = []
SPLIT = F8(134217729.0)  # 2^27 + 1


def _two_product(x: Array, y: Array) -> tuple[Array, Array]:
    product = x * y
    a, b = x * SPLIT, y * SPLIT
    x1, y1 = a - (a - x), b - (b - y)
    x0, y0 = x - x1, y - y1
    return product, ((x1 * y1 - product) + x1 * y0 + x0 * y1) + x0 * y0


def _two_sum(x: Array, y: Array) -> tuple[Array, Array]:
    total = x + y
    head = total - x
    return total, (x - (total - head)) + (y - head)


def fused_multiply_add_f64(x: Array, y: Array, z: Array) -> Array:
    """``x * y + z`` rounded once to float64 (Boldo and Melquiond, 2008); libm's at extremes."""
    x, y, z = (np.asarray(v, F8) for v in np.broadcast_arrays(x, y, z))
    high, low = _two_product(x, y)
    upper, lower = _two_sum(z, low)
    head, tail = _two_sum(high, upper)
    rest, lost = _two_sum(tail, lower)
    bits = rest.view(U8)
    even = ((bits & U8(1)) == 0) & (lost != 0)
    nudged = np.where((lost > 0) == (rest > 0), bits + U8(1), bits - U8(1)).view(F8)
    result = head + np.where(even & (rest != 0), nudged, rest)
    sizes = np.abs(np.stack(np.broadcast_arrays(x, y, z, high)))
    extreme = ~((sizes < 1e290) & ((sizes > 1e-250) | (sizes == 0))).all(axis=0)
    underflow = (high == 0) & (x != 0) & (y != 0)
    extreme = extreme | underflow
    if extreme.any():
        if not _FMA:
            _FMA.append(_libm_fma())
        result = np.array(result)
        result[extreme] = _FMA[0](x[extreme], y[extreme], z[extreme]).astype(F8)
    return result


def minimum(x: Array, y: Array, nan: bool = False, xorsign: bool = False) -> Array:
    """The lesser; -0 is below +0. One NaN loses, or wins with ``nan``."""
    return _extreme(x, y, np.fmin, nan, xorsign)


def maximum(x: Array, y: Array, nan: bool = False, xorsign: bool = False) -> Array:
    """The greater; -0 is below +0. One NaN loses, or wins with ``nan``."""
    return _extreme(x, y, np.fmax, nan, xorsign)


def _extreme(x: Array, y: Array, function: Any, nan: bool, xorsign: bool) -> Array:
    x, y = np.broadcast_arrays(x, y)
    x, y = np.ascontiguousarray(x), np.ascontiguousarray(y)
    unsigned = UNSIGNED[x.dtype.itemsize]
    a, b = x.view(unsigned), y.view(unsigned)
    sign = (a ^ b) & unsigned(1 << (8 * x.dtype.itemsize - 1))
    if xorsign:
        x, y = np.abs(x), np.abs(y)
        a, b = x.view(unsigned), y.view(unsigned)
    result = function(x, y)
    equal = x == y
    same = (a | b) if function is np.fmin else (a & b)
    bits = np.where(equal, same, result.view(unsigned))
    missing = (np.isnan(x) | np.isnan(y)) if nan else (np.isnan(x) & np.isnan(y))
    if xorsign:
        bits = bits | sign
    canonical = CANONICAL_NAN[f"f{x.dtype.itemsize}"]
    return np.where(missing, canonical, bits).view(x.dtype)


def compare(x: Array, y: Array, relation: str) -> Array:
    """``setp``'s relation; of floats, ``u`` at the end makes NaN count as true."""
    names = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
    if x.dtype.kind != "f":
        return COMPARE[names.get(relation, relation)](x, y)
    unordered = np.isnan(x) | np.isnan(y)
    if relation == "nan":
        return unordered
    if relation == "num":
        return ~unordered
    if len(relation) == 3:  # equ, neu, ltu, leu, gtu, geu
        return COMPARE[relation[:2]](x, y) | unordered
    return COMPARE[relation](x, y) & ~unordered


COMPARE: dict[str, Any] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}


def reciprocal_root(x: Array) -> Array:
    """``1 / sqrt(x)``, rounded once from float64."""
    return (F8(1) / np.sqrt(x.astype(F8))).astype(x.dtype)


def test_float(x: Array, property_: str) -> Array:
    """``testp``."""
    size = np.abs(x)
    least = np.finfo(x.dtype).tiny
    return {
        "finite": np.isfinite(x),
        "infinite": np.isinf(x),
        "number": ~np.isnan(x),
        "notanumber": np.isnan(x),
        "normal": np.isfinite(x) & (size >= least),
        "subnormal": (size < least) & (x != 0),
    }[property_]
