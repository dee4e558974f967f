"""Triton's cache keys of each family's kernels, from the tuner and from a launch.

    python -m tests.autotune.cache_keys

prints a JSON object, "family pass" -> [keys of the tuner, keys of a launch]. Under "compiled" it
states whether a launch found what the tuner had really compiled, and under "sizes" the ``identity``
and key of each launch at several image sizes. It runs in a separate process, because Triton's
interpreter and compiler cannot share one. A fake driver replaces CUDA's.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime import driver

from tconv.aot.build import build
from tconv.families import FAMILIES
from tconv.geometry import PASSES, ConvGeometry
from tconv.launch import Plan
from tconv.problem import Problem
from tconv.target import TARGETS

TARGET = TARGETS["sm_90"]
# Each family serves at least one of these layers.
LAYERS = (
    ConvGeometry(2, 64, 14, 14, 64, 3, 3, pad_h=1, pad_w=1),
    ConvGeometry(2, 3, 16, 16, 16, 3, 3, 2, 2, 1, 1),
    ConvGeometry(2, 32, 14, 14, 32, 3, 3, pad_h=1, pad_w=1, groups=8),
    ConvGeometry(1, 24, 13, 11, 24, 3, 3, pad_h=1, pad_w=1, groups=24),
)


class _Utils:
    """Driver calls of a GPU that accepts every binary."""

    def load_binary(self, *_: Any) -> tuple[int, int, int, int, int]:
        return 1, 1, 64, 0, 1024

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": TARGET.shared_per_program}


class _Launcher:
    """Launcher that does nothing."""

    def __init__(self, *_: Any) -> None:
        pass

    def __call__(self, *_: Any) -> None:
        pass


class GpuDriver:
    """The part of Triton's CUDA driver that a launch uses, on a machine without a GPU."""

    utils, launcher_cls = _Utils(), _Launcher

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", TARGET.capability, TARGET.warp_size)


class _Kernel:
    """Stand-in for a compiled kernel."""

    function = packed_metadata = 0

    def launch_metadata(self, *_: Any) -> None:
        pass

    def run(self, *_: Any) -> None:
        pass


def plans() -> dict[str, Plan]:
    """Return a plan for each family and pass."""
    found: dict[str, Plan] = {}
    for name, family in FAMILIES.items():
        for direction in PASSES:
            for layer in LAYERS:
                for layout in ("nhwc", "nchw"):
                    problem = Problem(layer, direction, "float16", layout)  # type: ignore[arg-type]
                    label = f"{name} {direction}"
                    if label in found or family.unserved(problem, TARGET) is not None:
                        continue
                    tile = family.heuristic(problem, TARGET)
                    found[label] = family.plan(problem, tile, TARGET)
    return found


def tensors(plan: Plan) -> dict[str, torch.Tensor]:
    """Return aligned tensors for the operands; nothing reads them."""
    return {
        operand.tensor: torch.zeros(64, dtype=getattr(torch, operand.dtype))
        for launch in plan.launches
        for operand in launch.operands.values()
    }


def keys_of(plan: Plan) -> list[list[str]]:
    """Return the cache keys of a plan's kernels, from the tuner and from a launch."""
    recorded: list[str] = []

    def compile(src: Any, target: Any = None, options: Any = None, **_: Any) -> _Kernel:
        parsed = make_backend(target).parse_options(dict(options or {}))
        recorded.append(f"{src.hash()} {parsed.hash()} {target}")
        return _Kernel()

    plain: Callable[..., Any] = triton.compiler.compile
    triton.compiler.compile = triton.compile = compile
    try:
        for launch in plan.launches:
            build(launch, TARGET)
        built = recorded.copy()
        recorded.clear()
        for launch in plan.launches:
            launch.function.device_caches.clear()
            launch.run(tensors(plan))
            launch.function.device_caches.clear()
    finally:
        triton.compiler.compile = triton.compile = plain
    return [built, recorded]


def found_when_launched(plan: Plan) -> list[bool]:
    """Return for each launch whether it finds the tuner's kernel in a fresh cache."""
    hits: list[bool] = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        for launch in plan.launches:
            build(launch, TARGET)
        triton.knobs.compilation.listener = lambda *, cache_hit, **_: hits.append(cache_hit)
        for launch in plan.launches:
            launch.run(tensors(plan))
    return hits


def sizes() -> list[tuple[str, str]]:
    """Return identity and key of each launch of layers at several sizes, with one size's tile."""
    found = []
    for name, family in FAMILIES.items():
        for direction in PASSES:
            for layer in LAYERS:
                tile = None
                for size in (16, 17, 32, 46):
                    geometry = replace(layer, batch=size // 16, in_h=size, in_w=size)
                    problem = Problem(geometry, direction, "float16")
                    if family.unserved(problem, TARGET) is not None:
                        continue
                    tile = tile or family.heuristic(problem, TARGET)
                    plan = FAMILIES[name].plan(problem, tile, TARGET)
                    _, launched = keys_of(plan)
                    identities = (str(launch.identity) for launch in plan.launches)
                    found += zip(identities, launched, strict=True)
    return found


def main() -> None:
    driver.set_active(GpuDriver())
    made = plans()
    found: dict[str, Any] = {label: keys_of(plan) for label, plan in made.items()}
    found["compiled"] = found_when_launched(made["few_channels wgrad"])
    found["sizes"] = sizes()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
