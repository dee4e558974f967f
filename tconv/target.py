"""Target machines: their limits, and the rates that bound a kernel."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal


@dataclass(frozen=True)
class Target:
    """The properties of a GPU that tiles and rooflines need.

    Rates are the vendor's dense peaks; ``peak_tflops`` is by arithmetic. ``name`` is the GPU's own
    (``nvidia-h200``) or, without a GPU, its architecture's (``sm_90``).
    """

    name: str
    arch: str
    backend: Literal["cuda", "hip", "interpreter"]
    product: str  # the product that the figures describe
    warp_size: int = 32
    processors: int = 1  # SMs, or compute units
    clock_ghz: float = 1.0
    shared_per_program: int = 0  # most bytes for one program
    shared_per_processor: int = 0
    registers_per_processor: int = 65536
    warps_per_processor: int = 64
    programs_per_processor: int = 32
    bandwidth_gbps: float = 1.0  # DRAM, 1e9 bytes per second
    l2_gbps: float = 1.0
    l2_bytes: int = 0
    peak_tflops: dict[str, float] = field(default_factory=dict, hash=False)

    @property
    def capability(self) -> int | str:
        """Triton's name of the architecture: 90, or ``gfx942``."""
        return self.sm or self.arch

    @property
    def sm(self) -> int:
        """The number in NVIDIA's sm_90; 0 for other GPUs.

        90 added the tensor memory accelerator and matrix instructions that read shared memory; 100
        added matrix instructions that keep their sums in tensor memory.
        """
        return int(self.arch[3:]) if self.backend == "cuda" else 0

    def roofline_seconds(self, flops: float, bytes_moved: float, arithmetic: str) -> float:
        """Return the least time in seconds that the machine's peaks allow."""
        return max(self.compute_seconds(flops, arithmetic), self.memory_seconds(bytes_moved))

    def compute_seconds(self, flops: float, arithmetic: str) -> float:
        return flops / (self.peak_tflops[arithmetic] * 1e12)

    def memory_seconds(self, bytes_moved: float) -> float:
        return bytes_moved / (self.bandwidth_gbps * 1e9)


def _peaks(half: float, tf32: float, single: float, double: float) -> dict[str, float]:
    return {
        "float16": half,
        "bfloat16": half,
        "tf32": tf32,
        "tf32x3": tf32 / 3,  # each product takes three
        "float32": single,
        "float64": double,
    }


# Limits: CUDA C++ Programming Guide, "Compute Capabilities"; AMD CDNA3 ISA guide. Rates: the
# vendors' data sheets for the named products. L2 rates are assumed to be about 60% of 64 bytes per
# clock and SM (gfx942: 2 KiB per clock for each of 8 dies) until measurements refit them.
TARGETS = {
    "sm_80": Target(
        "sm_80",
        "sm_80",
        "cuda",
        "NVIDIA A100 80GB SXM",
        processors=108,
        clock_ghz=1.41,
        shared_per_program=166912,
        shared_per_processor=167936,
        bandwidth_gbps=2039.0,
        l2_gbps=6000.0,
        l2_bytes=40 << 20,
        peak_tflops=_peaks(312.0, 156.0, 19.5, 19.5),
    ),
    "sm_90": Target(
        "sm_90",
        "sm_90",
        "cuda",
        "NVIDIA H200 SXM",
        processors=132,
        clock_ghz=1.98,
        shared_per_program=232448,
        shared_per_processor=233472,
        bandwidth_gbps=4800.0,
        l2_gbps=10000.0,
        l2_bytes=50 << 20,
        peak_tflops=_peaks(989.0, 494.0, 67.0, 67.0),
    ),
    "sm_100": Target(
        "sm_100",
        "sm_100",
        "cuda",
        "NVIDIA B200",
        processors=148,
        clock_ghz=1.96,
        shared_per_program=232448,
        shared_per_processor=233472,
        bandwidth_gbps=8000.0,
        l2_gbps=11000.0,
        l2_bytes=126 << 20,
        peak_tflops=_peaks(2250.0, 1125.0, 75.0, 37.0),
    ),
    "gfx942": Target(
        "gfx942",
        "gfx942",
        "hip",
        "AMD Instinct MI300X",
        warp_size=64,
        processors=304,
        clock_ghz=2.1,
        shared_per_program=65536,
        shared_per_processor=65536,
        registers_per_processor=131072,
        warps_per_processor=32,
        programs_per_processor=32,
        bandwidth_gbps=5300.0,
        l2_gbps=20000.0,
        l2_bytes=256 << 20,
        peak_tflops=_peaks(1307.0, 654.0, 163.4, 163.4),
    ),
}
DEFAULT_TARGET = "sm_90"
EMULATED = ("sm_80", "sm_90")  # architectures whose compiled code tconv.emulator runs
# GPUs with the architecture but not the memory of a target: GB/s from the vendors' data sheets.
BANDWIDTHS = {
    "H100 PCIe": 2000.0,
    "H100": 3350.0,
    "A100-SXM4-40GB": 1555.0,
    "A100-PCIE-40GB": 1555.0,
}

# Triton's interpreter runs programs one after another on the CPU, without resource limits.
INTERPRETER = Target("interpreter", "interpreter", "interpreter", "Triton's interpreter")


@lru_cache
def named_target(name: str) -> Target:
    """Return the target of an architecture.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in TARGETS:
        raise ValueError(f"unknown target {name!r}; there are: {', '.join(TARGETS)}")
    return TARGETS[name]


def target_of(device_index: int) -> Target:
    """Return the target of CUDA (or ROCm) device ``device_index``."""
    import torch

    properties = torch.cuda.get_device_properties(device_index)
    name = re.sub(r"[^a-z0-9]+", "-", properties.name.lower()).strip("-")
    if torch.version.hip:
        nearest = TARGETS["gfx942"]
        arch = properties.gcnArchName.split(":")[0]
    else:
        arch = f"sm_{properties.major}{properties.minor}"
        known = [key for key in ("sm_80", "sm_90", "sm_100") if int(key[3:]) <= int(arch[3:])]
        nearest = TARGETS[known[-1] if known else "sm_80"]
    shared = getattr(properties, "shared_memory_per_block_optin", nearest.shared_per_program)
    return replace(
        nearest,
        name=name,
        arch=arch,
        product=properties.name,
        processors=properties.multi_processor_count,
        shared_per_program=shared,
        bandwidth_gbps=bandwidth_of(properties.name, nearest),
    )


def bandwidth_of(product: str, nearest: Target) -> float:
    """Return a GPU's DRAM bandwidth by its name, or the architecture's if the name is unknown.

    >>> bandwidth_of("NVIDIA H100 80GB HBM3", TARGETS["sm_90"])
    3350.0
    >>> bandwidth_of("NVIDIA H200", TARGETS["sm_90"])
    4800.0
    """
    known = (rate for name, rate in BANDWIDTHS.items() if name in product)
    return next(known, nearest.bandwidth_gbps)
