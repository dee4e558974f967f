"""Public kinds of Triton kernels, compiled for the virtual GPU in a process of their own.

``python -m tests.tconv.emulator.triton_kernels`` prints a JSON object: kernel and target to PTX,
shared memory and tensor-map layouts. Triton's interpreter and compiler share no process.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import triton
import triton.language as tl


@triton.jit
def matmul_pointers(
    a, b, c, m, n, k, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr
):
    """C = A B by addresses: a pipelined loop of masked loads."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    depth = tl.arange(0, BLOCK_K)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, k, BLOCK_K):
        inside = start + depth < k
        left = tl.load(
            a + rows[:, None] * k + (start + depth)[None, :],
            mask=(rows < m)[:, None] & inside[None, :], other=0.0,
        )  # fmt: skip
        right = tl.load(
            b + (start + depth)[:, None] * n + columns[None, :],
            mask=inside[:, None] & (columns < n)[None, :], other=0.0,
        )  # fmt: skip
        total = tl.dot(left, right, total)
    where = c + rows[:, None] * n + columns[None, :]
    tl.store(where, total.to(c.dtype.element_ty), mask=(rows < m)[:, None] & (columns < n)[None, :])


@triton.jit
def matmul_boxes(a, b, c, k, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """C = A B by boxes of tensor maps, stored by a box too."""
    row, column = tl.program_id(0) * BLOCK_M, tl.program_id(1) * BLOCK_N
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, k, BLOCK_K):
        total = tl.dot(a.load([row, start]), b.load([start, column]), total)
    c.store([row, column], total.to(tl.float16))


@triton.jit
def softmax_rows(x, y, length, BLOCK: tl.constexpr):
    """Softmax of one row a program."""
    place = tl.arange(0, BLOCK)
    row = tl.program_id(0) * length
    value = tl.load(x + row + place, mask=place < length, other=float("-inf"))
    shifted = tl.exp(value - tl.max(value, axis=0))
    tl.store(y + row + place, shifted / tl.sum(shifted, axis=0), mask=place < length)


@triton.jit
def layer_norm(x, weight, bias, y, length, BLOCK: tl.constexpr):
    """Layer norm of one row a program."""
    place = tl.arange(0, BLOCK)
    row = tl.program_id(0) * length
    inside = place < length
    value = tl.load(x + row + place, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(value, axis=0) / length
    centred = tl.where(inside, value - mean, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, axis=0) / length + 1e-5)
    result = centred * scale * tl.load(weight + place, mask=inside) + tl.load(
        bias + place, mask=inside
    )
    tl.store(y + row + place, result, mask=inside)


@triton.jit
def histogram(x, counts, total, length, BLOCK: tl.constexpr):
    """Counts of values below 16 and their sum, by atomic additions."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < length
    value = tl.load(x + place, mask=inside, other=0)
    tl.atomic_add(counts + value, 1, mask=inside)
    tl.atomic_add(total, tl.sum(value.to(tl.float32), axis=0))


@triton.jit
def column_sums(x, y, rows, columns, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Sums down the columns and a transposed copy, through shared memory."""
    row, column = tl.arange(0, BLOCK_R), tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    value = tl.load(x + row[:, None] * columns + column[None, :], mask=inside, other=0.0)
    tl.store(y + column, tl.sum(value, axis=0), mask=column < columns)


@triton.jit
def attention(
    q, k, v, out, length, scale, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, DEPTH: tl.constexpr
):
    """Flash attention's forward pass of one head."""
    rows, depth = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, DEPTH)
    query = tl.load(
        q + rows[:, None] * DEPTH + depth[None, :], mask=(rows < length)[:, None], other=0.0
    )
    best = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    weight = tl.zeros((BLOCK_M,), tl.float32)
    total = tl.zeros((BLOCK_M, DEPTH), tl.float32)
    for start in range(0, length, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        key = tl.load(
            k + keys[None, :] * DEPTH + depth[:, None], mask=(keys < length)[None, :], other=0.0
        )
        score = tl.where((keys < length)[None, :], tl.dot(query, key) * scale, float("-inf"))
        now = tl.maximum(best, tl.max(score, axis=1))
        part, fade = tl.exp(score - now[:, None]), tl.exp(best - now)
        weight = weight * fade + tl.sum(part, axis=1)
        value = tl.load(
            v + keys[:, None] * DEPTH + depth[None, :], mask=(keys < length)[:, None], other=0.0
        )
        total = total * fade[:, None] + tl.dot(part.to(tl.float16), value)
        best = now
    where = out + rows[:, None] * DEPTH + depth[None, :]
    tl.store(where, total / weight[:, None], mask=(rows < length)[:, None])


def cases(sm: int) -> dict[str, tuple[Any, dict[str, str], dict[str, int], dict[str, int]]]:
    """Name: kernel, types of its arguments, constants, options."""
    tile = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32}
    sizes = {"m": "i32", "n": "i32", "k": "i32"}
    halves = {"a": "*fp16", "b": "*fp16", "c": "*fp32"}
    found: dict[str, Any] = {
        "matmul": (matmul_pointers, halves | sizes, tile, {"num_stages": 3}),
        "matmul_tf32": (
            matmul_pointers, {"a": "*fp32", "b": "*fp32", "c": "*fp32"} | sizes, tile,
            {"num_stages": 2},
        ),
        "softmax": (
            softmax_rows, {"x": "*fp32", "y": "*fp32", "length": "i32"}, {"BLOCK": 512}, {}
        ),
        "layer_norm": (
            layer_norm,
            {"x": "*fp16", "weight": "*fp32", "bias": "*fp32", "y": "*fp16", "length": "i32"},
            {"BLOCK": 1024}, {},
        ),
        "histogram": (
            histogram, {"x": "*i32", "counts": "*i32", "total": "*fp32", "length": "i32"},
            {"BLOCK": 256}, {},
        ),
        "column_sums": (
            column_sums, {"x": "*fp32", "y": "*fp32", "rows": "i32", "columns": "i32"},
            {"BLOCK_R": 64, "BLOCK_C": 32}, {},
        ),
        "attention": (
            attention,
            {"q": "*fp16", "k": "*fp16", "v": "*fp16", "out": "*fp32", "length": "i32",
             "scale": "fp32"},
            {"BLOCK_M": 64, "BLOCK_N": 32, "DEPTH": 32}, {"num_stages": 2},
        ),
    }  # fmt: skip
    if sm >= 90:
        boxes = {
            "a": "tensordesc<fp16[64,64]>", "b": "tensordesc<fp16[64,64]>",
            "c": "tensordesc<fp16[64,64]>", "k": "i32",
        }  # fmt: skip
        found["matmul_boxes"] = (matmul_boxes, boxes, tile | {"BLOCK_K": 64}, {"num_stages": 3})
    return found


def compile_one(
    sm: int, case: tuple[Any, dict[str, str], dict[str, int], dict[str, int]]
) -> dict[str, Any]:
    """PTX, shared bytes and tensor maps of a case."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function, types, constants, options = case
    signature = {name: types.get(name, "constexpr") for name in function.arg_names}
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(function.arg_names)
        if signature[name].startswith("*") or (name in ("n", "k") and sm)
    }
    source = ASTSource(function, signature, constexprs=constants, attrs=aligned)
    made = triton.compile(source, target=GPUTarget("cuda", sm, 32), options=options)
    maps = [
        {"box": list(each["block_size"]), "swizzle": each["swizzle"], "itemsize": each["elem_size"]}
        for each in getattr(made.metadata, "tensordesc_meta", None) or []
    ]
    return {"ptx": made.asm["ptx"], "shared": made.metadata.shared, "maps": maps}


def main() -> None:
    """Compile every case for sm_80 and sm_90."""
    found = {
        f"{name} sm_{sm}": compile_one(sm, case)
        for sm in (80, 90)
        for name, case in cases(sm).items()
    }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
