"""Measure the host's cost of one convolution call, without a GPU: the driver is faked.

    python -m benchmarks.host_call --limit 15

Kernels are really compiled, for sm_90, and every layer of the call runs as on a GPU, up to the
launch itself, which does nothing. The figures are therefore the host's cost above the driver's own
launch. For comparison the table has ``torch.nn.functional.conv2d`` on a one-element tensor, whose
cost on the CPU is mostly torch's dispatch of the operator.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Annotated, Any

if os.environ.get("TRITON_INTERPRET"):
    sys.exit("unset TRITON_INTERPRET: this measures the compiled path")

import torch
import triton
import typer
from rich.console import Console
from rich.table import Table
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from tconv import functional, launch
from tconv.command_line import command_line
from tconv.families import FAMILIES
from tconv.geometry import ConvGeometry
from tconv.launch import Launch, recorded
from tconv.problem import BIAS, Problem
from tconv.select import choose
from tconv.target import TARGETS

TARGET = TARGETS["sm_90"]
ROUNDS = 15
LAYERS = {
    "LeNet-5 C1": ConvGeometry(64, 1, 32, 32, 6, 5, 5),
    "VGG-16 conv5, batch 1": ConvGeometry(1, 512, 14, 14, 512, 3, 3, pad_h=1, pad_w=1),
}


class FakeUtils:
    """Fake driver calls, which return immediately."""

    launched = 0

    def load_binary(self, *_: Any) -> tuple[int, ...]:
        return 1, 1, 90, 0, 1024  # module, function, registers, spills, threads

    def get_device_properties(self, _: int) -> dict[str, int]:
        return {"max_shared_mem": TARGET.shared_per_program, "warpSize": 32,
                "multiprocessor_count": TARGET.processors}  # fmt: skip

    def launch(self, *_: Any) -> None:
        FakeUtils.launched += 1

    def fill_tma_descriptor(self, *_: Any) -> int:
        return 1

    fill_tma_descriptor_tiled = fill_tma_descriptor  # the name in Triton 3.7

    def build_signature_metadata(self, *_: Any) -> bytes:
        return b""


class FakeDriver:
    """A driver with one sm_90 device, with the interface that Triton's runtime expects."""

    utils = FakeUtils()

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_device_interface(self) -> Any:
        return torch.cpu

    @property
    def launcher_cls(self) -> Any:
        from triton.backends.nvidia.driver import CudaLauncher

        return CudaLauncher

    def is_active(self) -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty


def install() -> None:
    """Make Triton launch on the fake driver, and tconv accept CPU tensors."""
    import triton.backends.nvidia.driver as nvidia

    driver.set_active(FakeDriver())
    # Normally provided by the C helper, which needs CUDA headers to build.
    nvidia.PyKernelArg = lambda **fields: fields
    for name in ("ARG_KERNEL", "ARG_CONSTEXPR", "ARG_TUPLE"):
        setattr(nvidia, name, 0)
    # Triton 3.6 builds a launcher in C for each kernel.
    nvidia.library_dirs = list
    nvidia.compile_module_from_src = lambda **_: SimpleNamespace(launch=FakeDriver.utils.launch)
    for name, value in (("runs_triton", True), ("target_for", TARGET)):
        real = getattr(launch, name)
        for module in list(sys.modules.values()):  # an operator's module has its own reference
            if getattr(module, "__dict__", {}).get(name) is real:
                setattr(module, name, lambda _, value=value: value)


def mean_of(call: Callable[[], Any], calls: int) -> float:
    """Return the mean microseconds of ``calls`` calls, in CPU time of this process."""
    begin = time.process_time()  # excludes other work on the machine
    for _ in range(calls):
        call()
    return (time.process_time() - begin) / calls * 1e6


def microseconds(call: Callable[[], Any], calls: int) -> float:
    """Return the mean of many calls in the fastest round; other load only adds time."""
    for _ in range(calls // 10):
        call()
    return min(mean_of(call, calls) for _ in range(ROUNDS))


def ready(launch: Launch, tensors: dict[str, Any]) -> tuple[Callable[..., Any], list[Any]]:
    """Return the driver's launch function for a launch, and its arguments."""
    compiled = next(iter(launch._compiled.values()))
    given = launch._arguments_on(tensors) or []
    head = [*launch._grid, 0, compiled.function, compiled.packed_metadata, None, None, None]
    return compiled.run, [*head, *given]


def measure(shape: ConvGeometry, calls: int) -> dict[str, float]:
    """Return the microseconds of each way to compute a channels_last float16 convolution."""
    size = (shape.batch, shape.in_channels, shape.in_h, shape.in_w)
    filters = (shape.out_channels, shape.in_channels, shape.filter_h, shape.filter_w)
    x = torch.zeros(size, dtype=torch.float16).to(memory_format=torch.channels_last)
    w = torch.zeros(filters, dtype=torch.float16).to(memory_format=torch.channels_last)
    bias = torch.zeros(shape.out_channels, dtype=torch.float16)
    padding = (shape.pad_h, shape.pad_w)

    def ours() -> Any:
        return functional.conv2d(x, w, bias, padding=padding)

    problem = Problem(shape, "fprop")
    choice = choose(problem, TARGET)
    plan = FAMILIES[choice.family].plan(problem, choice.tile, TARGET, BIAS)
    tensors = {"x": x, "w": w, "bias": bias, "y": ours()}
    plan.run(tensors)
    before = FakeUtils.launched
    with recorded() as log:
        ours()
    assert FakeUtils.launched - before == len(log) > 0, "no kernel was launched"
    made = [ready(launch, tensors) for launch in log]

    def driver_alone() -> None:
        for run, arguments in made:
            run(*arguments)

    # On one element torch computes almost nothing, which leaves its dispatch cost.
    small = torch.zeros(1, 1, 1, 1)

    def torchs() -> Any:
        return torch.nn.functional.conv2d(small, small, small[0, 0, 0])

    with torch.inference_mode():
        figures = {
            "the driver's own launches": microseconds(driver_alone, calls),
            "tconv's plan": microseconds(lambda: plan.run(tensors), calls),
            "tconv, no gradient": microseconds(ours, calls),
            "torch, no gradient": microseconds(torchs, calls),
        }
    w.requires_grad_()
    small.requires_grad_()
    figures["tconv, recorded for backward"] = microseconds(ours, calls)
    figures["torch, recorded for backward"] = microseconds(torchs, calls)
    return figures | {"launches": float(len(log))}


def main(
    calls: Annotated[int, typer.Option(help="calls per round, in fifteen rounds")] = 1000,
    limit: Annotated[
        float | None, typer.Option(help="exit with 1 if a call of one launch takes more us")
    ] = None,
) -> None:
    """Print the table; with a limit, fail if an eager call of one launch takes longer."""
    install()
    found = {name: measure(shape, calls) for name, shape in LAYERS.items()}
    versions = f"torch {torch.__version__}, triton {triton.__version__}"
    table = Table("microseconds a call", *found, title=f"Host cost, driver faked ({versions})")
    for row in next(iter(found.values())):
        table.add_row(row, *(f"{figures[row]:.1f}" for figures in found.values()))
    Console().print(table)
    if limit is None:
        return
    over = {name: figures["tconv, no gradient"] for name, figures in found.items()
            if figures["launches"] == 1 and figures["tconv, no gradient"] > limit}  # fmt: skip
    for name, figure in over.items():
        print(f"{name}: a call takes the host {figure:.1f} us, over the limit of {limit:g} us")
    if over:
        raise typer.Exit(1)


if __name__ == "__main__":
    with command_line():
        typer.run(main)
