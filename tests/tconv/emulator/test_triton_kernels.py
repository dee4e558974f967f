"""Tests that Triton kernels launched in the usual way run on an emulated GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from tests.devices import DEVICE
from tests.tconv.emulator import kernels

pytestmark = pytest.mark.gpu


def random(*size: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=generator).to(DEVICE, dtype)


def close(ours: Tensor, exact: Tensor, rtol: float = 1e-5, atol: float = 1e-5) -> None:
    torch.testing.assert_close(ours.double(), exact.double(), rtol=rtol, atol=atol)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float16, 2e-2), (torch.bfloat16, 1e-1), (torch.float32, 2e-2)]
)
@pytest.mark.parametrize("warps", [4, 8])
def test_matmul_by_address(dtype: torch.dtype, tolerance: float, warps: int) -> None:
    m, n, k = 150, 72, 88
    a, b = random(m, k, dtype=dtype), random(k, n, dtype=dtype, seed=1)
    c = torch.empty(m, n, dtype=dtype, device=DEVICE)
    blocks = {"BLOCK_M": 64, "BLOCK_N": 32, "BLOCK_K": 32}
    grid = (triton.cdiv(m, 64), triton.cdiv(n, 32))
    kernels.matmul[grid](a, b, c, m, n, k, **blocks, num_warps=warps, num_stages=3)
    close(c, a.double() @ b.double(), tolerance, tolerance)


def test_matmul_by_the_hosts_descriptors() -> None:
    m, n, k = 200, 96, 136
    a, b = random(m, k, dtype=torch.float16), random(k, n, dtype=torch.float16, seed=1)
    c = torch.empty(m, n, dtype=torch.float16, device=DEVICE)
    boxes = [TensorDescriptor.from_tensor(t, box)
             for t, box in ((a, [64, 64]), (b, [64, 32]), (c, [64, 32]))]  # fmt: skip
    grid = (triton.cdiv(m, 64), triton.cdiv(n, 32))
    kernels.matmul_boxes[grid](*boxes, k, 64, 32, 64, num_stages=3)
    close(c, a.double() @ b.double(), 1e-2, 2e-2)


def test_matmul_by_the_kernels_own_descriptors() -> None:
    def allocate(size: int, alignment: int, stream: int | None) -> Tensor:
        return torch.empty(size, dtype=torch.int8, device=DEVICE)

    triton.set_allocator(allocate)
    m, n, k = 128, 64, 96
    a, b = random(m, k, dtype=torch.float16), random(k, n, dtype=torch.float16, seed=1)
    c = torch.empty(m, n, dtype=torch.float16, device=DEVICE)
    kernels.matmul_describing[(2, 2)](a, b, c, m, n, k, 64, 32, 32)
    close(c, a.double() @ b.double(), 1e-2, 2e-2)


@pytest.mark.parametrize("columns", [7, 500, 1024])
def test_softmax(columns: int) -> None:
    x = random(5, columns)
    y = torch.empty_like(x)
    kernels.softmax[(5,)](x, y, columns, BLOCK=triton.next_power_of_2(columns))
    close(y, x.double().softmax(1), atol=1e-6)


@pytest.mark.parametrize("warps", [1, 4, 8])
def test_reduction(warps: int) -> None:
    x = random(3, 1000)
    y = torch.empty(3, device=DEVICE)
    kernels.row_sums[(3,)](x, y, 1000, BLOCK=256, num_warps=warps)
    close(y, x.double().sum(1), 1e-5, 1e-4)


def test_atomic_additions() -> None:
    x = torch.randint(0, 13, (3000,), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    counts = torch.zeros(13, dtype=torch.int32, device=DEVICE)
    total = torch.zeros(1, device=DEVICE)
    kernels.histogram[(12,)](x.int(), counts, total, 3000, BLOCK=256)
    assert torch.equal(counts.long(), torch.bincount(x, minlength=13))
    assert total.item() == x.sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_layer_norm(dtype: torch.dtype) -> None:
    x, w, b = random(6, 300, dtype=dtype), random(300, seed=1), random(300, seed=2)
    y = torch.empty_like(x)
    kernels.layer_norm[(6,)](x, w, b, y, 300, BLOCK=512)
    exact = torch.nn.functional.layer_norm(x.double(), (300,), w.double(), b.double())
    tolerance = 1e-5 if dtype is torch.float32 else 4e-3
    close(y, exact, tolerance, tolerance)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("depth", [32, 64])
def test_attention(depth: int, causal: bool) -> None:
    heads, length = 2, 150
    q, k, v = (random(heads, length, depth, dtype=torch.float16, seed=seed) for seed in range(3))
    o = torch.empty_like(q)
    grid = (triton.cdiv(length, 64), heads)
    kernels.attention[grid](q, k, v, o, length, depth**-0.5, depth, 64, 32, causal, num_stages=2)
    exact = torch.nn.functional.scaled_dot_product_attention(
        *(t.double() for t in (q, k, v)), is_causal=causal
    )
    close(o, exact, 5e-3, 5e-3)


def scale(x: Any, y: Any, elements: int, factor: float = 2.0, block: int = 64) -> Any:
    return kernels.scaled[(triton.cdiv(elements, block),)](x, y, elements, factor, BLOCK=block)


def test_views_offsets_and_shared_storage() -> None:
    """Input and output are unaligned parts of one tensor."""
    whole = random(301)
    before = whole.clone()
    scale(whole[1:101], whole[151:251], 100)
    assert torch.equal(whole[151:251], 2 * before[1:101])
    assert torch.equal(whole[:151], before[:151])
    assert torch.equal(whole[251:], before[251:])


def test_in_place() -> None:
    x = random(100)
    exact = 3 * x
    scale(x, x, 100, 3.0)
    assert torch.equal(x, exact)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_scalar_is_passed_in_its_own_type(dtype: torch.dtype) -> None:
    x = random(40, dtype=dtype)
    y = torch.empty_like(x)
    scale(x, y, 40, -0.15625)
    close(y, (x.double() * -0.15625).to(dtype))


def test_a_tuple_is_an_argument() -> None:
    x, y = random(64), torch.empty(64, device=DEVICE)
    kernels.sum_of_pair[(1,)]((x, 5.0), y, BLOCK=64)
    close(y, x.double() + 5.0)


def test_one_and_large_integers_are_specialised_and_right() -> None:
    x, y = random(8), torch.zeros(8, device=DEVICE)
    scale(x, y, 1)
    assert y[0] == 2 * x[0]
    assert not y[1:].any()
    scale(x, y, 2**33 if DEVICE.type == "meta" else 8)
    assert torch.equal(y, 2 * x)


def test_an_empty_grid_runs_nothing() -> None:
    y = torch.ones(4, device=DEVICE)
    kernels.scaled[(0,)](y, y, 4, 2.0, BLOCK=64)
    assert torch.equal(y, torch.ones_like(y))


def test_several_host_threads() -> None:
    import threading

    whole = random(4, 256)
    exact, errors = 2 * whole, []

    def work(row: Tensor) -> None:
        try:
            scale(row, row, 256)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(row,)) for row in whole]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert torch.equal(whole, exact)
