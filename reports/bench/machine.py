"""The measuring machine: its identity, its settings, and its measured ceilings."""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import partial

import torch

from autotune import provenance
from autotune.measure import measure
from reports.bench.layers import DRAWS, effort_on, timer_of
from reports.bench.sides import torchs_precision
from tconv.problem import ARITHMETICS, ITEMSIZE
from tconv.source import source_hash
from tconv.target import Target

COPIED = 1 << 30  # bytes: far beyond any L2
SIDE = 8192  # side of the square matrices, larger than any product of a layer
CLOCKS = {"clocks.sm": "SM", "clocks.max.sm": "of at most", "clocks.mem": "memory",
          "power.limit": "power limit", "temperature.gpu": "temperature"}  # fmt: skip


def facts(device: torch.device) -> dict[str, str]:
    """Return the facts a reader needs, besides torch's and Triton's versions."""
    found = {"Python": platform.python_version(), "Code": source_hash()}
    if device.type != "cuda":
        return {**found, "Device": f"CPU, {torch.get_num_threads()} threads"}
    version = torch.backends.cudnn.version() or 0
    parts = (version // 10000, version // 100 % 100, version % 100)
    return {
        **found,
        "Device": torch.cuda.get_device_name(device),
        "Driver": provenance.driver_version() or "unknown",
        "CUDA": str(torch.version.cuda or torch.version.hip),
        "cuDNN": ".".join(map(str, parts)),
        "Clocks": _clocks(),
        "Precision": "each row's dtype, the same on all sides; TF32 off but in rows of dtype tf32",
        "cuDNN's choice": "torch.backends.cudnn.benchmark=True",
    }


def _clocks() -> str:
    """Return the current clocks, power limit and temperature that the driver reports."""
    lines = provenance.nvidia_smi(f"--query-gpu={','.join(CLOCKS)}")
    values = lines[0].split(",") if lines else []
    named = [
        f"{word} {value.strip()}" for word, value in zip(CLOCKS.values(), values, strict=False)
    ]
    return ", ".join(named) or "unknown"


def ceilings(device: torch.device, target: Target, side: int = SIDE) -> dict[str, float]:
    """Measure this machine's ceilings on random data.

    ``copy`` is the GB/s of a large device-to-device copy, reads plus writes. Each arithmetic has
    the TFLOP/s of torch's product of two square matrices.
    """
    effort = effort_on(device)
    size = COPIED if device.type == "cuda" else COPIED >> 10
    sources = [torch.randn(size // 4, device=device) for _ in range(DRAWS)]
    sink = torch.empty_like(sources[0])
    copies: list[Callable[[], object]] = [partial(sink.copy_, source) for source in sources]
    timing = measure(timer_of(copies, device, target.l2_bytes), effort)
    found = {"copy": 2 * size / timing.median / 1e6}
    del sources, sink, copies
    for arithmetic in ARITHMETICS:
        if arithmetic == "tf32x3":
            continue  # torch has no such product: tf32x3 is three tf32 products
        dtype = getattr(torch, arithmetic if arithmetic in ITEMSIZE else "float32")
        pairs = [
            (torch.randn(side, side, device=device).to(dtype),
             torch.randn(side, side, device=device).to(dtype))
            for _ in range(DRAWS)
        ]  # fmt: skip
        products = [partial(torch.mm, *pair) for pair in pairs]
        with torchs_precision(arithmetic):
            timing = measure(timer_of(products, device, target.l2_bytes), effort)
        found[arithmetic] = 2 * side**3 / timing.median / 1e9
    return {name: float(f"{value:.4g}") for name, value in found.items()}
