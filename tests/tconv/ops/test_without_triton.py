"""Test that CPU tensors without the interpreter are computed by torch, with the same errors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
PROBE = """
import torch
from torch.nn import functional as torchs
from tconv import functional as ours
from tconv.launch import recorded

draw = torch.Generator().manual_seed(0)
leaf = lambda *size: torch.randn(size, generator=draw, dtype=torch.float64)
x, w, bias, residual = leaf(2, 4, 9, 8), leaf(6, 4, 3, 3), leaf(6), leaf(2, 6, 9, 8)

CASES = {
    "conv2d": (
        lambda x, w, b: ours.conv2d(x, w, b, padding=1),
        lambda x, w, b: torchs.conv2d(x, w, b, padding=1), (x, w, bias)),
    "relu": (
        lambda x, w, b: ours.conv2d(x, w, b, padding=1, activation="relu"),
        lambda x, w, b: torchs.conv2d(x, w, b, padding=1).relu(), (x, w, bias)),
    "residual": (
        lambda x, w, b, r: ours.conv2d(x, w, b, padding=1, activation="relu", residual=r),
        lambda x, w, b, r: (torchs.conv2d(x, w, b, padding=1) + r).relu(), (x, w, bias, residual)),
    "pooled": (
        lambda x, w, b: ours.conv2d_pool(x, w, b, padding=1, activation="relu"),
        lambda x, w, b: torchs.max_pool2d(torchs.conv2d(x, w, b, padding=1).relu(), 2),
        (x, w, bias)),
    "pooled, no relu": (
        lambda x, w: ours.conv2d_pool(x, w, padding=1),
        lambda x, w: torchs.max_pool2d(torchs.conv2d(x, w, padding=1), 2), (x, w)),
    "conv_transpose2d": (
        lambda x, w, b: ours.conv_transpose2d(x, w.mT, b[:4], 2, 1, 1),
        lambda x, w, b: torchs.conv_transpose2d(x, w.mT, b[:4], 2, 1, 1), (residual, w, bias)),
    "conv_transpose2d, fused": (
        lambda x, w, b, r: ours.conv_transpose2d(
            x, w, b[:4], padding=1, running_mean=b[:4], running_var=b[:4].exp(), norm_bias=b[2:],
            residual=r, residual_after=True, activation="silu"),
        lambda x, w, b, r: torchs.silu(
            (torchs.conv_transpose2d(x, w, b[:4], padding=1) - b[:4, None, None])
            / (b[:4].exp() + 1e-5).sqrt()[:, None, None] + b[2:, None, None]) + r,
        (residual, w, bias, x)),
    "conv1d, fused": (
        lambda x, w, b: ours.conv1d(
            x[:, :, 0], w[:, :, 0], running_mean=b.detach(), running_var=b.detach().exp(),
            norm_weight=b),
        lambda x, w, b: torchs.batch_norm(
            torchs.conv1d(x[:, :, 0], w[:, :, 0]), b.detach(), b.detach().exp(), b),
        (x, w, bias)),
    "max_pool2d": (
        lambda x: ours.max_pool2d(x, 3, 2, 1), lambda x: torchs.max_pool2d(x, 3, 2, 1), (x,)),
    "max_pool2d, indices": (
        lambda x: ours.max_pool2d(x, 3, 2, 1, return_indices=True)[1],
        lambda x: torchs.max_pool2d(x, 3, 2, 1, return_indices=True)[1], (x,)),
    "avg_pool2d": (
        lambda x: ours.avg_pool2d(x, 3, 2, 1), lambda x: torchs.avg_pool2d(x, 3, 2, 1), (x,)),
}
for name, (our, their, tensors) in CASES.items():
    for layout in (torch.contiguous_format, torch.channels_last):
        results = []
        for function in (our, their):
            leaves = [t.clone().requires_grad_() for t in tensors]
            leaves[0] = leaves[0].detach().to(memory_format=layout).requires_grad_()
            with recorded() as log:
                y = function(*leaves)
                if y.is_floating_point():
                    y.square().sum().backward()
            assert log == [], name
            results.append([y.detach(), *(t.grad for t in leaves if t.grad is not None)])
        for mine, theirs in zip(*results, strict=True):
            torch.testing.assert_close(mine, theirs, msg=lambda text: f"{name}: {text}")
print(len(CASES), "cases")
"""


def test_torch_computes_the_same() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "11 cases\n"
