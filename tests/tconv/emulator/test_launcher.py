"""Tests of launches that the emulated GPU refuses, and of their messages."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.errors import OutOfResources
from triton.tools.tensor_descriptor import TensorDescriptor

from tconv.launch import emulated
from tests.tconv.emulator import kernels

if emulated() is None:
    pytest.skip("needs an emulated GPU", allow_module_level=True)

from tconv import emulator
from tconv.emulator.arguments import Region, merged, scalar_bits

X = torch.arange(64, dtype=torch.float32)


def scale(x: Any, y: Any, elements: Any = 64, factor: Any = 2.0, **options: Any) -> Any:
    return kernels.scaled[(1,)](x, y, elements, factor, BLOCK=64, **options)


def again(compiled: Any, *arguments: Any, grid: tuple[int, int, int] = (1, 1, 1)) -> None:
    """Launch a compiled kernel directly, without Triton's specialisation."""
    compiled[grid](*arguments)


def test_a_launch_is_counted() -> None:
    with emulator.launches() as launched:
        scale(X, torch.empty(64), num_warps=2)  # one thread per element
        scale(X, torch.empty(64), num_warps=2)
    assert [each.kernel for each in launched] == ["scaled", "scaled"]
    assert launched[0].grid == (1, 1, 1)
    assert launched[0].counters.global_load_bytes == X.nbytes
    assert launched[0].counters.global_store_bytes == X.nbytes
    assert launched[0].counters.as_dict() == launched[1].counters.as_dict()


def test_access_beyond_an_argument_is_refused() -> None:
    with pytest.raises(emulator.Fault, match=r"out of bounds.*x_ptr") as raised:
        kernels.scaled_unmasked[(2,)](X, torch.empty(128), 2.0, BLOCK=64)
    fault = raised.value
    assert fault.kernel == "scaled_unmasked"
    assert "kernels.py" in fault.source
    assert "block (1, 0, 0)" in fault.thread
    assert fault.address is not None


def test_an_unaligned_argument_is_refused() -> None:
    """The kernel was compiled for pointers aligned to 16 bytes but gets an unaligned one."""
    y, whole = torch.empty(64), torch.arange(65, dtype=torch.float32)
    compiled = scale(X, y)
    again(compiled, X, y, 64, 2.0, 64)
    assert torch.equal(y, 2 * X)
    with pytest.raises(
        emulator.Fault, match=r"argument x_ptr.*compiled for multiples of 16"
    ) as raised:
        again(compiled, whole[1:], y, 64, 2.0, 64)
    assert raised.value.kind == "divisibility hint"
    with pytest.raises(emulator.Fault, match=r"argument elements is 0x3c"):
        again(compiled, X, y, 60, 2.0, 64)


def test_another_value_for_a_specialised_one_is_refused() -> None:
    y = torch.empty(64)
    compiled = scale(X, y, 1)
    with pytest.raises(emulator.Fault, match=r"argument elements is 7, .* compiled for 1"):
        again(compiled, X, y, 7, 2.0, 64)


def test_an_integer_that_is_too_large_is_refused() -> None:
    compiled = scale(X, torch.empty(64))
    with pytest.raises(emulator.Fault, match=r"argument elements: 8589934592 is no i32"):
        again(compiled, X, torch.empty(64), 2**33, 2.0, 64)


@pytest.mark.parametrize("grid", [(1, 65536, 1), (1, 1, 65536), (2**31, 1, 1)])
def test_a_grid_beyond_the_limits_is_refused(grid: tuple[int, int, int]) -> None:
    compiled = scale(X, torch.empty(64))
    with pytest.raises(emulator.Fault, match="launch limit"):
        again(compiled, X, torch.empty(64), 64, 2.0, 64, grid=grid)


def test_too_many_threads_are_refused() -> None:
    with pytest.raises((OutOfResources, emulator.Fault), match="threads"):
        scale(X, torch.empty(64), num_warps=64)


def test_too_much_shared_memory_is_refused() -> None:
    a = torch.zeros(256, 256)
    blocks = {"BLOCK_M": 256, "BLOCK_N": 256, "BLOCK_K": 64}
    with pytest.raises(OutOfResources, match="shared memory"):
        kernels.matmul[(1, 1)](a, a, a, 256, 256, 256, **blocks, num_stages=4, num_warps=8)


def test_tensors_on_other_devices_and_without_storage_are_refused() -> None:
    with pytest.raises(ValueError, match=r"argument x_ptr is on meta"):
        scale(torch.empty(64, device="meta"), torch.empty(64))


def test_a_tensor_map_that_the_cuda_driver_refuses_is_refused() -> None:
    if emulated().sm < 90:  # type: ignore[union-attr]
        pytest.skip("needs tensor memory access")
    square = torch.zeros(64, 64, dtype=torch.float16)
    boxes = ([64, 32], [32, 32], [64, 32])
    odd, b, c = (TensorDescriptor.from_tensor(square, box) for box in boxes)
    odd.strides = [68, 1]  # Triton checks strides when a descriptor is made
    with pytest.raises(emulator.Fault, match="a stride of 136 bytes is not a multiple of 16"):
        kernels.matmul_boxes[(1, 1)](odd, b, c, 64, 64, 32, 32)


@triton.autotune([triton.Config({"BLOCK": 32}), triton.Config({"BLOCK": 64})], key=["elements"])
@triton.jit
def tuned(x_ptr, elements, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(x_ptr + at, 1.0, mask=at < elements)


def test_triton_autotune_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"no clock.*autotune"):
        tuned[(1,)](torch.empty(64), 64)


def test_clusters_are_refused() -> None:
    if emulated().sm < 90:  # type: ignore[union-attr]
        pytest.skip("sm_80 has no clusters")
    with pytest.raises(emulator.NotCovered, match="num_ctas"):
        scale(X, torch.empty(64), num_ctas=2)


def test_another_gpu_in_the_same_process_is_refused() -> None:
    here = emulator.installed()
    assert here is not None
    emulator.install(here.name)
    other = "sm_80" if here.name == "sm_90" else "sm_90"
    with pytest.raises(RuntimeError, match=f"emulates {here.name} already"):
        emulator.install(other)
    for name, words in (
        ("gfx942", "not covered"),
        ("sm_100", "not covered"),
        ("h100", "not an emulated GPU"),
    ):
        with pytest.raises(ValueError, match=f"{words}.*sm_80, sm_90"):
            emulator.install(name)


def test_a_launch_hook_sees_launches() -> None:
    names: list[str] = []

    def note(metadata: Any) -> None:
        names.append(metadata.get()["name"])

    triton.knobs.runtime.launch_enter_hook.add(note)
    try:
        scale(X, torch.empty(64))
    finally:
        triton.knobs.runtime.launch_enter_hook.remove(note)
    assert names == ["scaled"]


def test_scalars_are_encoded_as_the_driver_passes_them() -> None:
    assert scalar_bits("i64", -2) == 2**64 - 2
    assert scalar_bits("u8", 255) == 255
    assert scalar_bits("i1", True) == 1
    assert scalar_bits("fp16", 1.0) == 0x3C00
    assert scalar_bits("bf16", 1.0) == 0x3F80
    assert scalar_bits("bf16", 1.0 + 2**-8) == 0x3F80  # a tie goes to even
    assert scalar_bits("bf16", 1.0 + 3 * 2**-8) == 0x3F82
    with pytest.raises(OverflowError, match="-1 is no u32"):
        scalar_bits("u32", -1)


def test_regions_that_share_storage_are_merged() -> None:
    found = merged([Region(100, 200, "b"), Region(0, 50, "a"), Region(150, 300, "c"),
                    Region(60, 60, "none")])  # fmt: skip
    assert [(each.start, each.end, each.name) for each in found] == [
        (0, 50, "a"),
        (100, 300, "b, c"),
    ]


def test_copies_fill_early_within_a_block() -> None:
    a = torch.randn(64, 64, dtype=torch.float16)
    blocks = {"BLOCK_M": 32, "BLOCK_N": 32, "BLOCK_K": 16}
    results: list[Tensor] = []
    for when in ("late", "early"):
        c = torch.empty_like(a)
        with emulator.copies_filled(when):  # type: ignore[arg-type]
            kernels.matmul[(2, 2)](a, a, c, 64, 64, 64, **blocks, num_stages=3)
        results.append(c)
    assert torch.equal(*results)
