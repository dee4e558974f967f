"""Tests of instructions' results against the PTX ISA, edge cases first."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from tconv.emulator.arithmetic import (
    from_bfloat16,
    fused_multiply_add_bfloat16,
    fused_multiply_add_f32,
    fused_multiply_add_f64,
    fused_multiply_add_half,
)
from tests.tconv.emulator.ptx_of import apply

U32, S32, U64, S64 = np.uint32, np.int32, np.uint64, np.int64
F16, F32, F64 = np.float16, np.float32, np.float64
EDGES = np.array([0, 1, 2, 31, 32, 33, 63, 64, 255, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF], U32)
PAIRS = np.stack(np.meshgrid(EDGES, EDGES)).reshape(2, -1)
FLOATS = np.array(
    [0.0, -0.0, 1.0, -1.5, np.inf, -np.inf, np.nan, 1e-40, -3e38, 2.0**31, -(2.0**31), 0.5, 2.5],
    F32,
)  # fmt: skip
FLOAT_PAIRS = np.stack(np.meshgrid(FLOATS, FLOATS)).reshape(2, -1)


def signed(value: int, bits: int = 32) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


INTEGERS: dict[str, Any] = {
    "add.s32": lambda x, y: x + y,
    "sub.s32": lambda x, y: x - y,
    "add.sat.s32": lambda x, y: max(-(2**31), min(2**31 - 1, signed(x) + signed(y))),
    "mul.lo.s32": lambda x, y: x * y,
    "mul.hi.u32": lambda x, y: x * y >> 32,
    "mul.hi.s32": lambda x, y: signed(x) * signed(y) >> 32,
    "div.u32": lambda x, y: x // y if y else -1,
    "div.s32": lambda x, y: math.trunc(Fraction(signed(x), signed(y))) if y else -1,
    "rem.u32": lambda x, y: x % y if y else x,
    "rem.s32": lambda x, y: (
        int(math.copysign(1, signed(x))) * (abs(signed(x)) % abs(signed(y))) if y else x
    ),
    "min.s32": lambda x, y: min(signed(x), signed(y)),
    "max.u32": max,
    "and.b32": lambda x, y: x & y,
    "or.b32": lambda x, y: x | y,
    "xor.b32": lambda x, y: x ^ y,
    "shl.b32": lambda x, y: x << y if y < 32 else 0,
    "shr.u32": lambda x, y: x >> y if y < 32 else 0,
    "shr.s32": lambda x, y: signed(x) >> min(y, 31),
}


@pytest.mark.parametrize("opcode", INTEGERS)
def test_integers(opcode: str) -> None:
    got = apply(opcode + " {d}, {0}, {1}", list(PAIRS), U32)
    wanted = [INTEGERS[opcode](int(x), int(y)) & 0xFFFFFFFF for x, y in PAIRS.T]
    assert got.tolist() == wanted


@pytest.mark.parametrize("opcode", ["mul.hi.u64", "mul.hi.s64"])
def test_upper_half_of_a_64_bit_product(opcode: str) -> None:
    edges = [0, 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1, 0x123456789ABCDEF0]
    x, y = (np.array(v, U64) for v in zip(*[(a, b) for a in edges for b in edges], strict=True))
    got = apply(opcode + " {d}, {0}, {1}", [x, y], U64)
    number = int if opcode.endswith("u64") else lambda v: signed(int(v), 64)
    assert got.tolist() == [
        (number(a) * number(b) >> 64) & (2**64 - 1) for a, b in zip(x, y, strict=True)
    ]


def test_wide_products() -> None:
    got = apply("mul.wide.s32 {d}, {0}, {1}", list(PAIRS), S64)
    assert got.tolist() == [signed(int(x)) * signed(int(y)) for x, y in PAIRS.T]
    got = apply("mad.wide.u32 {d}, {0}, {1}, {2}", [*PAIRS, PAIRS[0].astype(U64)], U64)
    assert got.tolist() == [int(x) * int(y) + int(x) for x, y in PAIRS.T]


@pytest.mark.parametrize("mode", ["l.wrap", "l.clamp", "r.wrap", "r.clamp"])
def test_funnel_shifts(mode: str) -> None:
    low, high = np.full(12, 0x89ABCDEF, U32), np.full(12, 0x01234567, U32)
    got = apply(f"shf.{mode}.b32 {{d}}, {{0}}, {{1}}, {{2}}", [low, high, EDGES], U32)
    both = 0x0123456789ABCDEF
    for value, count in zip(got.tolist(), EDGES.tolist(), strict=True):
        by = count % 32 if "wrap" in mode else min(count, 32)
        assert value == ((both << by >> 32) if mode[0] == "l" else both >> by) & 0xFFFFFFFF


def bit_field(value: int, position: int, length: int, is_signed: bool) -> int:
    """Return the bit field, by the pseudocode of the PTX ISA."""
    position, length = position & 0xFF, length & 0xFF
    top = 31
    if not is_signed or length == 0:
        sign = 0
    else:
        sign = value >> min(position + length - 1, top) & 1
    result = 0
    for bit in range(32):
        inside = bit < length and position + bit <= top
        result |= (value >> (position + bit) & 1 if inside else sign) << bit
    return result


@pytest.mark.parametrize("kind", ["u32", "s32"])
def test_bit_field_extract(kind: str) -> None:
    cases = [(v, p, n) for v in (0, 0x80000000, 0xFFFFFFFF, 0x89ABCDEF, 0x00F0F0F0)
             for p in (0, 1, 4, 31, 32, 255, 256) for n in (0, 1, 4, 31, 32, 40, 255)]  # fmt: skip
    columns = [np.array(column, U32) for column in zip(*cases, strict=True)]
    got = apply(f"bfe.{kind} {{d}}, {{0}}, {{1}}, {{2}}", columns, U32)
    assert got.tolist() == [bit_field(*case, kind == "s32") for case in cases]
    got = apply(f"bfe.{kind} {{d}}, {{0}}, 4, 3", [columns[0]], U32)
    assert got.tolist() == [bit_field(value, 4, 3, kind == "s32") for value, _, _ in cases]


def test_bit_field_insert() -> None:
    cases = [(p, n) for p in (0, 4, 31, 32, 300) for n in (0, 1, 8, 32, 255)]
    position, length = (np.array(column, U32) for column in zip(*cases, strict=True))
    x, into = np.full(len(cases), 0xA5A5A5A5, U32), np.full(len(cases), 0x0F0F0F0F, U32)
    got = apply("bfi.b32 {d}, {0}, {1}, {2}, {3}", [x, into, position, length], U32)
    for value, (p, n) in zip(got.tolist(), cases, strict=True):
        wanted = 0x0F0F0F0F
        for bit in range(min(n & 0xFF, 32)):
            place = (p & 0xFF) + bit
            if place < 32:
                wanted = wanted & ~(1 << place) | (0xA5A5A5A5 >> bit & 1) << place
        assert value == wanted


def test_permuted_bytes_and_their_signs() -> None:
    x, y = np.full(4, 0x83428100, U32), np.full(4, 0x17F65504, U32)
    selector = np.array([0x3210, 0x7654, 0x5410, 0xBA98], U32)
    got = apply("prmt.b32 {d}, {0}, {1}, {2}", [x, y, selector], U32)
    assert got.tolist() == [0x83428100, 0x17F65504, 0x55048100, 0xFF00FF00]
    modes = {"f4e": 0x04834281, "b4e": 0xF6170081, "rc8": 0x81818181, "rc16": 0x83428342}
    for mode, wanted in modes.items():
        one = np.full(4, 1, U32)
        got = apply(f"prmt.b32.{mode} {{d}}, {{0}}, {{1}}, {{2}}", [x, y, one], U32)
        assert int(got[0]) == wanted, mode


def test_counting_bits() -> None:
    values = np.array([0, 1, 0x80000000, 0xFFFFFFFF, 0x00F00000], U32)
    assert apply("popc.b32 {d}, {0}", [values], U32).tolist() == [
        v.bit_count() for v in values.tolist()
    ]
    assert apply("clz.b32 {d}, {0}", [values], U32).tolist() == [32, 31, 0, 0, 8]
    assert apply("bfind.u32 {d}, {0}", [values], U32).tolist() == [0xFFFFFFFF, 0, 31, 31, 23]
    assert apply("bfind.s32 {d}, {0}", [values], U32).tolist() == [
        0xFFFFFFFF,
        0,
        30,
        0xFFFFFFFF,
        23,
    ]
    assert apply("brev.b32 {d}, {0}", [values], U32).tolist() == [
        int(f"{v:032b}"[::-1], 2) for v in values.tolist()
    ]
    got = apply("lop3.b32 {d}, {0}, {1}, {2}, 0x96", [values, values[::-1], values], U32)
    assert got.tolist() == (values ^ values[::-1] ^ values).tolist()


def bits(array: Any) -> list[int]:
    return np.asarray(array).view(f"u{np.asarray(array).dtype.itemsize}").tolist()


@pytest.mark.parametrize("name", ["min", "max"])
@pytest.mark.parametrize("variant", ["", ".NaN", ".xorsign.abs"])
def test_extremes(name: str, variant: str) -> None:
    x, y = FLOAT_PAIRS
    got = apply(f"{name}{variant}.f32 {{d}}, {{0}}, {{1}}", [x, y], F32)
    pick = min if name == "min" else max
    for value, a, b in zip(got, x, y, strict=True):
        one = np.isnan(a) != np.isnan(b)
        if (np.isnan(a) and np.isnan(b)) or (one and variant == ".NaN"):
            assert bits(value) & 0x7FFFFFFF == 0x7FFFFFFF
            continue
        left, right = (abs(a), abs(b)) if "abs" in variant else (a, b)
        if one:
            wanted = right if np.isnan(left) else left
        else:  # -0 is below +0
            wanted = pick(left, right, key=lambda v: (v, not np.signbit(v)))
        if "abs" in variant:
            wanted = -wanted if np.signbit(a) != np.signbit(b) else wanted
        assert bits(F32(value)) == bits(F32(wanted)), (a, b)


@pytest.mark.parametrize("relation", ["eq", "ne", "lt", "le", "gt", "ge"])
def test_comparisons_of_nan(relation: str) -> None:
    x, y = FLOAT_PAIRS
    test = {"eq": x == y, "ne": x != y, "lt": x < y, "le": x <= y, "gt": x > y, "ge": x >= y}[
        relation
    ]
    nan = np.isnan(x) | np.isnan(y)
    got = apply(f"setp.{relation}.f32 {{d}}, {{0}}, {{1}}", [x, y], U32, predicate=True)
    assert (got.astype(bool) == (test & ~nan)).all()
    got = apply(f"setp.{relation}u.f32 {{d}}, {{0}}, {{1}}", [x, y], U32, predicate=True)
    assert (got.astype(bool) == (test | nan)).all()


def exact_fma(x: Any, y: Any, z: Any, precision: int, least: int) -> Fraction:
    """Return x y + z, rounded to nearest-even in a format with ``precision`` bits."""
    value = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
    if value == 0:
        return value
    exponent = max(value.numerator.bit_length() - value.denominator.bit_length(), least) - precision
    for _ in range(3):
        unit = Fraction(2) ** exponent
        if abs(value) / unit >= 2**precision:
            exponent += 1
        elif abs(value) / unit < 2 ** (precision - 1) and exponent > least - precision + 1:
            exponent -= 1
    return round(value / Fraction(2) ** exponent) * Fraction(2) ** exponent


def near_ties(random: np.random.Generator, dtype: Any, count: int) -> list[np.ndarray]:
    """Return products that are almost ties in the format, and addends that break the tie."""
    fraction = np.finfo(dtype).nmant
    x = (1 + random.integers(0, 2**fraction, count) / 2**fraction).astype(dtype)
    y = (1 + random.integers(0, 2**3, count) / 2**3).astype(dtype)
    z = (random.choice([-1, 1], count) * 2.0 ** random.integers(-60, 4, count)).astype(dtype)
    return [x, y, z]


def test_fma_of_float32_rounds_once() -> None:
    random = np.random.default_rng(1)
    x, y, z = near_ties(random, F32, 4000)
    tiny = random.standard_normal((3, 1000)).astype(F32) * F32(1e-20)
    x, y, z = (np.concatenate([a, b]) for a, b in zip((x, y, z), tiny, strict=True))
    z[-1000:] *= F32(1e-20)
    got = fused_multiply_add_f32(x, y, z)
    for value, *operands in zip(got, x, y, z, strict=True):
        assert Fraction(float(value)) == exact_fma(*operands, 24, -125), operands
    # rounding to float64 first would give a tie, and then the even neighbour
    one = fused_multiply_add_f32(F32(1 + 2**-12), F32(1 + 2**-12), F32(2.0**-70))
    assert float(one) == 1 + 2**-11 + 2**-23


def test_fma_of_other_floats_rounds_once() -> None:
    random = np.random.default_rng(2)
    x, y, z = near_ties(random, F64, 1000)
    for value, *operands in zip(fused_multiply_add_f64(x, y, z), x, y, z, strict=True):
        assert Fraction(float(value)) == exact_fma(*operands, 53, -1021), operands
    with np.errstate(all="ignore"):
        assert fused_multiply_add_f64(F64([1e300]), F64([1e300]), F64([-np.inf]))[0] == -np.inf
    x, y, z = near_ties(random, F16, 1000)
    for value, *operands in zip(fused_multiply_add_half(x, y, z), x, y, z, strict=True):
        assert Fraction(float(value)) == exact_fma(*operands, 11, -13), operands
    raw = random.integers(0x3F00, 0x4000, (3, 1000)).astype(np.uint16)
    raw[2] = random.integers(0x3000, 0x4000, 1000)
    for value, *operands in zip(
        from_bfloat16(fused_multiply_add_bfloat16(*raw)),
        *(from_bfloat16(r) for r in raw),
        strict=True,
    ):
        assert Fraction(float(value)) == exact_fma(*operands, 8, -125), operands


CONVERSIONS = {
    ("cvt.rzi.s32.f32", F32, S32): [
        (2.7, 2), (-2.7, -2), (3e9, 2**31 - 1), (-3e9, -(2**31)), (np.nan, 0)
    ],
    ("cvt.rni.s32.f32", F32, S32): [(2.5, 2), (3.5, 4), (-0.5, 0)],
    ("cvt.rmi.s32.f32", F32, S32): [(-2.1, -3), (2.9, 2)],
    ("cvt.rpi.u32.f32", F32, U32): [(2.1, 3), (-5.0, 0), (5e9, 2**32 - 1)],
    ("cvt.rzi.s64.f32", F32, S64): [(np.nan, -(2**63)), (1e30, 2**63 - 1)],
    ("cvt.rn.f32.s32", S32, F32): [(16777217, 16777216.0), (16777219, 16777220.0)],
    ("cvt.rz.f32.s32", S32, F32): [(16777219, 16777218.0), (-16777219, -16777218.0)],
    ("cvt.rn.f16.f32", F32, F16): [(65519.0, 65504.0), (65520.0, np.inf), (2.0**-25, 0.0)],
    ("cvt.rz.f16.f32", F32, F16): [(65535.0, 65504.0), (1.0009, 1.0)],
    ("cvt.sat.f32.f32", F32, F32): [(2.0, 1.0), (-1.0, 0.0), (np.nan, 0.0)],
    ("cvt.rni.f32.f32", F32, F32): [(2.5, 2.0), (-1.5, -2.0)],
    ("cvt.rna.tf32.f32", F32, F32): [(1 + 2.0**-11, 1 + 2.0**-10), (1 + 2.0**-12, 1.0)],
    ("cvt.rn.f32.f64", F64, F32): [(1 + 2.0**-24, 1.0), (1 + 3 * 2.0**-24, 1 + 2.0**-22)],
    ("cvt.sat.s32.s64", S64, S32): [(2**40, 2**31 - 1), (-(2**40), -(2**31))],
    ("cvt.u32.u64", U64, U32): [(2**40 + 5, 5)],
}  # fmt: skip


@pytest.mark.parametrize("case", CONVERSIONS, ids=lambda case: case[0])
def test_conversions(case: tuple[str, Any, Any]) -> None:
    opcode, source, result = case
    values, wanted = zip(*CONVERSIONS[case], strict=True)
    got = apply(opcode + " {d}, {0}", [np.array(values, source)], result)
    assert got.tolist() == list(wanted)


def test_small_integers_are_extended_by_their_type() -> None:
    values = np.array([0x80, 0x7F, 0xFF], np.uint16)
    assert apply("cvt.s32.s8 {d}, {0}", [values], S32).tolist() == [-128, 127, -1]
    assert apply("cvt.u32.u8 {d}, {0}", [values], U32).tolist() == [128, 127, 255]


def test_packed_halves() -> None:
    high, low = np.array([1.5, np.nan], F32), np.array([-2.25, 70000.0], F32)
    got = apply("cvt.rn.f16x2.f32 {d}, {0}, {1}", [high, low], U32)
    assert got.tolist() == [0x3E00C080, 0x7FFF7C00]
    got = apply("cvt.rn.bf16x2.f32 {d}, {0}, {1}", [high, low], U32)
    assert got.tolist() == [0x3FC0C010, 0x7FFF4789]
    got = apply("cvt.rn.relu.f16x2.f32 {d}, {0}, {1}", [high[:1], low[:1]], U32)
    assert got.tolist() == [0x3E000000]
    pair = np.array([[1.0, -2.0], [60000.0, 0.5]], F16).view(U32).ravel()
    got = apply("add.f16x2 {d}, {0}, {1}", [pair, pair], U32).view(F16).tolist()
    assert got == [2.0, -4.0, np.inf, 1.0]


def test_float8() -> None:
    high, low = np.array([1.0, 500.0], F32), np.array([-0.0625, 2.0**-10], F32)
    got = apply("cvt.rn.satfinite.e4m3x2.f32 {d}, {0}, {1}", [high, low], np.uint16)
    assert got.tolist() == [0x3898, 0x7E00]
    got = apply("cvt.rn.f16x2.e4m3x2 {d}, {0}", [np.array([0x3898], np.uint16)], U32)
    assert got.view(F16).tolist() == [-0.0625, 1.0]


def test_functions() -> None:
    x = np.array([4.0, 2.0, 0.0, np.inf], F32)
    assert apply("rcp.approx.ftz.f32 {d}, {0}", [x], F32).tolist() == [0.25, 0.5, np.inf, 0.0]
    assert apply("rsqrt.approx.f32 {d}, {0}", [x], F32).tolist()[0] == 0.5
    assert apply("ex2.approx.f32 {d}, {0}", [x], F32).tolist() == [16.0, 4.0, 1.0, np.inf]
    assert apply("lg2.approx.f32 {d}, {0}", [x], F32).tolist() == [2.0, 1.0, -np.inf, np.inf]
    tiny = np.array([1e-40], F32)
    assert apply("mul.ftz.f32 {d}, {0}, {1}", [tiny, x[:1]], F32).tolist() == [0.0]
    assert apply("mul.f32 {d}, {0}, {1}", [tiny, x[:1]], F32)[0] > 0
