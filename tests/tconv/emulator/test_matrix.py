"""Tests of matrix fragments, swizzles and descriptors against NumPy products."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tconv.emulator.tensor_map import TensorMap, swizzled
from tests.tconv.emulator.ptx_of import run

F16, F32 = np.float16, np.float32


def load(name: str, pointer: int, count: int, size: int) -> str:
    """Return PTX that loads the thread's ``count`` registers from an array (threads, count)."""
    kind, prefix = ("b64", "%d") if size == 8 else ("b32", "%r")
    lines = [f"mad.wide.u32 %a{20 + pointer}, %t, {count * size}, %a{pointer};"]
    return "\n".join(lines) + "".join(
        f"\nld.global.{kind} {prefix}{name}{n}, [%a{20 + pointer}+{n * size}];"
        for n in range(count)
    )


MMA = {  # type: shape, items a register, registers of A, B and C
    "f32.f16.f16.f32": ((16, 8, 16), 2, (4, 2, 4)),
    "f32.bf16.bf16.f32": ((16, 8, 16), 2, (4, 2, 4)),
    "f32.tf32.tf32.f32": ((16, 8, 8), 1, (4, 2, 4)),
    "s32.s8.s8.s32": ((16, 8, 32), 4, (4, 2, 4)),
    "f64.f64.f64.f64": ((8, 8, 4), 1, (1, 1, 2)),
}


def fragment_places(kind: str) -> tuple[Any, Any, Any]:
    """Return (row, column) of each item of A, B and C by lane, register and item, as in the ISA."""
    (rows, _, _), per, _ = MMA[kind]
    high = rows // 8

    def a(lane: int, register: int, item: int) -> tuple[int, int]:
        column = (register // high) * 4 * per + lane % 4 * per + item
        return lane // 4 + 8 * (register % high), column

    def b(lane: int, register: int, item: int) -> tuple[int, int]:
        return register * 4 * per + lane % 4 * per + item, lane // 4

    def c(lane: int, register: int, _: int) -> tuple[int, int]:
        return lane // 4 + 8 * (register // 2), lane % 4 * 2 + register % 2

    return a, b, c


@pytest.mark.parametrize("kind", MMA)
def test_a_warp_multiplies(kind: str) -> None:
    (rows, columns, depth), per, counts = MMA[kind]
    random = np.random.default_rng(0)
    wide = kind.startswith("f64")
    size = 8 if wide else 4
    word = np.uint64 if wide else np.uint32
    shapes = ((rows, depth), (depth, columns), (rows, columns))
    matrices = [random.integers(-4, 5, shape).astype(float) for shape in shapes]
    element = {"f16": F16, "tf32": F32, "s8": np.int8, "f64": np.float64}

    def raw(matrix: Any, name: str) -> Any:
        if name == "bf16":
            return (matrix.astype(F32).view(np.uint32) >> 16).astype(np.uint16)
        made = matrix.astype(element.get(name, {"f32": F32, "s32": np.int32}.get(name)))
        return made.view(f"u{made.itemsize}")

    names = kind.split(".")
    fragments = []
    for matrix, name, place, count in zip(
        matrices, (names[1], names[2], names[3]), fragment_places(kind), counts, strict=True
    ):
        items = per if len(fragments) < 2 else 1
        values = raw(matrix, name)
        out = np.zeros((32, count, items), values.dtype)
        for lane, register, item in np.ndindex(32, count, items):
            out[lane, register, item] = values[place(lane, register, item)]
        fragments.append(np.ascontiguousarray(out).view(word).reshape(32, count))
    prefix = "%d" if wide else "%r"
    starts = ("1", "2", "3")
    body = "\n".join(load(starts[n], n, counts[n], size) for n in range(3))
    groups = [
        "{" + ", ".join(f"{prefix}{starts[n]}{r}" for r in range(counts[n])) + "}" for n in range(3)
    ]
    shape = f"m{rows}n{columns}k{depth}"
    body = body.replace("%d", "%q") if wide else body
    groups = [group.replace("%d", "%q") for group in groups] if wide else groups
    body = "    .reg .b64 %q<64>;\n" + body
    operands = f"{groups[2]}, {groups[0]}, {groups[1]}, {groups[2]}"
    body += f"\nmma.sync.aligned.{shape}.row.col.{kind} {operands};"
    body += f"\nmad.wide.u32 %a29, %t, {counts[2] * size}, %a3;"
    for n in range(counts[2]):
        register = f"{'%q' if wide else '%r'}3{n}"
        body += f"\nst.global.b{8 * size} [%a29+{n * size}], {register};"
    out = run(body, [*fragments, np.zeros((32, counts[2]), word)])[-1]
    result = out.view({"f32": F32, "s32": np.int32, "f64": np.float64}[names[0]])
    wanted = matrices[0] @ matrices[1] + matrices[2]
    place = fragment_places(kind)[2]
    for lane, register in np.ndindex(32, counts[2]):
        assert result[lane, register] == wanted[place(lane, register, 0)]


@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix_and_stmatrix(transposed: bool) -> None:
    """Matrix i has its rows at the addresses of lanes 8 i to 8 i + 7."""
    trans = ".trans" if transposed else ""
    data = np.arange(4 * 64, dtype=np.uint16)
    body = f"""
    mov.b32 %r1, global_smem;
    shl.b32 %r2, %t, 4;
    add.s32 %r3, %r1, %r2;
    cvt.u64.u32 %d1, %r2;
    add.s64 %d2, %a0, %d1;
    ld.global.v4.b32 {{%r4, %r5, %r6, %r7}}, [%d2];
    st.shared.v4.b32 [%r3], {{%r4, %r5, %r6, %r7}};
    ldmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 {{%r10, %r11, %r12, %r13}}, [%r3];
    add.s64 %d3, %a1, %d1;
    st.global.v4.b32 [%d3], {{%r10, %r11, %r12, %r13}};
    stmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 [%r3+512], {{%r10, %r11, %r12, %r13}};
    ld.shared.v4.b32 {{%r4, %r5, %r6, %r7}}, [%r3+512];
    add.s64 %d4, %a2, %d1;
    st.global.v4.b32 [%d4], {{%r4, %r5, %r6, %r7}};
"""
    _, loaded, back = run(body, [data, np.zeros_like(data), np.zeros_like(data)], shared_bytes=1024)
    matrices = data.reshape(4, 8, 8)
    pairs = loaded.reshape(32, 4, 2)
    for lane, matrix, item in np.ndindex(32, 4, 2):
        row, column = lane // 4, lane % 4 * 2 + item
        place = (column, row) if transposed else (row, column)
        assert pairs[lane, matrix, item] == matrices[matrix][place]
    assert (back == data).all()


LAYOUTS = [(mode, a, b) for mode in (0, 1, 2, 3) for a in (False, True) for b in (False, True)]


def operand(matrix: Any, mode: int, across: bool) -> tuple[bytes, int, int]:
    """Return the bytes of a (rows, 64) matrix in a descriptor's layout, and the two offsets.

    Rows of the swizzle's width lie in atoms of 8; without a swizzle an atom is 8 rows of 16 bytes.
    """
    lines = matrix.T if across else matrix
    width = (16 << mode) // 2
    out = np.zeros(1 << 16, np.uint16)
    count, length = lines.shape
    atom = 8 * width  # items
    line, place = np.arange(count)[:, None], np.arange(length)[None, :]
    # atoms follow each other along the lines first, then along the places
    linear = (
        (place // width) * (count // 8) * atom + line // 8 * atom + line % 8 * width + place % width
    )
    out[swizzled((linear * 2).astype(np.int64), mode) // 2] = lines.view(np.uint16)
    along_places, along_lines = (count // 8) * atom * 2, atom * 2
    if mode == 0 and across:
        return out[: matrix.size].tobytes(), along_lines, along_places
    return out[: matrix.size].tobytes(), along_places, along_lines


@pytest.mark.parametrize(("mode", "a_across", "b_across"), LAYOUTS)
def test_a_warpgroup_multiplies(mode: int, a_across: bool, b_across: bool) -> None:
    """One product of depth 16 in every swizzle, operands along K or along the other axis."""
    random = np.random.default_rng(mode)
    depth = 16
    reach = max(depth, (16 << mode) // 2)
    a, b = (random.integers(-3, 4, (64, reach)).astype(F16) for _ in range(2))
    first, a_leading, a_stride = operand(a, mode, a_across)
    second, b_leading, b_stride = operand(b, mode, b_across)
    data = np.frombuffer(first + second, np.uint32).copy()
    layout = {0: 0, 1: 3, 2: 2, 3: 1}[mode] << 62

    def descriptor(leading: int, stride: int) -> int:
        value = (leading >> 4) << 16 | (stride >> 4) << 32 | layout
        return value - (1 << 64) if value >> 63 else value

    registers = ", ".join(f"%r{40 + n}" for n in range(32))
    words = len(data)
    copies = "\n".join(
        f"ld.global.b32 %r4, [%d2+{n * 512}];\nst.shared.b32 [%r3+{n * 512}], %r4;"
        for n in range(words // 128)
    )
    stores = "\n".join(f"st.global.b32 [%d5+{4 * n}], %r{40 + n};" for n in range(32))
    rest = f"%d3, %d4, %p1, 1, 1, {int(a_across)}, {int(b_across)}"
    body = f"""
    mov.b32 %r1, global_smem;
    shl.b32 %r2, %t, 2;
    add.s32 %r3, %r1, %r2;
    cvt.u64.u32 %d1, %r2;
    add.s64 %d2, %a0, %d1;
    {copies}
    fence.proxy.async.shared::cta;
    bar.sync 0;
    mov.b64 %d3, {descriptor(a_leading, a_stride)};
    mov.b64 %d4, {descriptor(b_leading, b_stride)};
    add.s64 %d4, %d4, {len(first) // 16};
    wgmma.fence.sync.aligned;
    mov.pred %p1, 0;
    wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {{{registers}}}, {rest};
    wgmma.commit_group.sync.aligned;
    wgmma.wait_group.sync.aligned 0;
    mad.wide.u32 %d5, %t, 128, %a1;
    {stores}
"""
    out = run(body, [data, np.zeros((128, 32), F32)], 128, shared_bytes=32768)[-1]
    wanted = a[:, :depth].astype(float) @ b[:, :depth].astype(float).T
    for thread, register in np.ndindex(128, 32):
        row = thread // 32 * 16 + thread % 32 // 4 + 8 * (register % 4 // 2)
        column = register // 4 * 8 + thread % 4 * 2 + register % 2
        assert out[thread, register] == wanted[row, column]


def test_swizzles_are_permutations_of_16_byte_chunks() -> None:
    for mode in (0, 1, 2, 3):
        address = np.arange(0, 1024, 16, dtype=np.int64)
        moved = swizzled(address, mode)
        assert sorted(moved.tolist()) == address.tolist()
        assert (moved // 128 == address // 128).all()
    assert swizzled(np.array([0x80, 0x100, 0x380]), 3).tolist() == [0x90, 0x120, 0x3F0]
    assert swizzled(np.array([0x80, 0x100, 0x380]), 1).tolist() == [0x90, 0x100, 0x390]


RULES = [
    ({"address": 8}, "not a multiple of 16"),
    ({"strides": [36, 1]}, "stride of 72 bytes"),
    ({"strides": [64, 2]}, "not contiguous"),
    ({"box": [257, 32]}, "between 1 and 256"),
    ({"box": [16, 4]}, "not a multiple of 16"),
    ({"box": [16, 64], "swizzle": 2}, "wider than the swizzle"),
    ({"swizzle": 4}, "swizzle mode 4"),
    ({"shape": [1] * 6, "strides": [8] * 5 + [1], "box": [1] * 5 + [8]}, "rank 6"),
    ({"shape": [0, 64]}, "between 1 and 2"),
    ({"strides": [1 << 40, 1]}, "not below 2"),
]


@pytest.mark.parametrize(("change", "message"), RULES)
def test_rules_of_tensor_maps(change: dict[str, Any], message: str) -> None:
    from tconv.emulator import Fault

    right: dict[str, Any] = {
        "address": 0, "shape": [32, 64], "strides": [64, 1], "box": [16, 32], "itemsize": 2,
        "swizzle": 2,
    }  # fmt: skip
    TensorMap(**right)
    with pytest.raises(Fault, match=message) as caught:
        TensorMap(**right | change)
    assert caught.value.kind == "tensor map"
