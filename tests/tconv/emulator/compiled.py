"""Test kernels compiled for the emulated GPU in a separate process.

``python -m tests.tconv.emulator.compiled`` prints a JSON object: kernel and target to PTX,
shared memory and tensor-map layouts. Triton's interpreter and compiler cannot share a process.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import triton

from tests.tconv.emulator import kernels


def cases(sm: int) -> dict[str, tuple[Any, dict[str, str], dict[str, int], dict[str, int]]]:
    """Return by name: kernel, types of its arguments, constants, options."""
    tile = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32}
    sizes = {"m": "i32", "n": "i32", "k": "i32"}
    halves = {"a": "*fp16", "b": "*fp16", "c": "*fp32"}
    found: dict[str, Any] = {
        "matmul": (kernels.matmul, halves | sizes, tile, {"num_stages": 3}),
        "matmul_tf32": (
            kernels.matmul, {"a": "*fp32", "b": "*fp32", "c": "*fp32"} | sizes, tile,
            {"num_stages": 2},
        ),
        "softmax": (
            kernels.softmax, {"x": "*fp32", "y": "*fp32", "length": "i32"}, {"BLOCK": 512}, {}
        ),
        "layer_norm": (
            kernels.layer_norm,
            {"x": "*fp16", "weight": "*fp32", "bias": "*fp32", "y": "*fp16", "length": "i32"},
            {"BLOCK": 1024}, {},
        ),
        "histogram": (
            kernels.histogram, {"x": "*i32", "counts": "*i32", "total": "*fp32", "length": "i32"},
            {"BLOCK": 256}, {},
        ),
        "column_sums": (
            kernels.column_sums, {"x": "*fp32", "y": "*fp32", "rows": "i32", "columns": "i32"},
            {"BLOCK_R": 64, "BLOCK_C": 32}, {},
        ),
        "attention": (
            kernels.attention_of_one_head,
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
        found["matmul_boxes"] = (
            kernels.matmul_boxes,
            boxes,
            tile | {"BLOCK_K": 64},
            {"num_stages": 3},
        )
    return found


def compile_one(
    sm: int, case: tuple[Any, dict[str, str], dict[str, int], dict[str, int]]
) -> dict[str, Any]:
    """Return a case's PTX, shared bytes and tensor maps."""
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
