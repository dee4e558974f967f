"""Triton's driver for an emulated GPU: CPU tensors, compiled kernels, no device.

Triton asks a driver for four things: which architecture to compile for, a handle for a compiled
kernel, a launcher for its arguments, and the device's limits. Everything before (specialisation,
compilation by ptxas included, caching) is Triton's own code and runs as on a real GPU.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime import driver as drivers

from tconv.emulator.counters import Counters
from tconv.emulator.launcher import Copies, Launcher
from tconv.emulator.machine import MOST_THREADS
from tconv.emulator.ptx import Program
from tconv.target import TARGETS, Target


@dataclass(frozen=True)
class Launched:
    """One launch that the emulated GPU ran to its end."""

    kernel: str
    grid: tuple[int, int, int]
    counters: Counters


class Kernel:
    """A compiled kernel as the emulated GPU has loaded it."""

    def __init__(self, name: str, ptx: Path) -> None:
        self.name = name
        self._ptx = ptx

    @cached_property
    def program(self) -> Program:
        return Program.parse(self._ptx.read_text(encoding="utf-8"))


class Utils:
    """Stand-in for a driver's C module: the functions that Triton calls."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._loading = threading.local()
        triton.knobs.runtime.kernel_load_start_hook.add(self._note_files)

    def _note_files(
        self, module: Any, function: Any, name: str, files: Mapping[str, str], key: str
    ) -> None:
        """Triton's hook before ``load_binary``, which receives only the cubin."""
        self._loading.files = files

    def load_binary(
        self, name: str, binary: bytes, shared: int, device: int
    ) -> tuple[Kernel, Kernel, int, int, int]:
        """Module, function, registers and spills (0: ptxas is not run), most threads."""
        (ptx,) = (Path(path) for file, path in self._loading.files.items() if file.endswith(".ptx"))
        kernel = Kernel(name, ptx)
        return kernel, kernel, 0, 0, MOST_THREADS

    def unload_module(self, module: Kernel) -> None:
        """Do nothing: Python frees everything that was allocated."""

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {
            "max_shared_mem": self._target.shared_per_program,
            "max_num_regs": self._target.registers_per_processor,
            "multiprocessor_count": self._target.processors,
            "warpSize": self._target.warp_size,
        }

    def set_printf_fifo_size(self, size: int) -> None:
        """Do nothing: there is no buffer for what a kernel prints."""


class Driver(DriverBase):
    """The driver of one emulated GPU."""

    def __init__(self, target: Target, copies: Copies) -> None:
        self.target = target
        self.copies: Copies = copies  # when the target of an asynchronous copy is filled
        self.utils = Utils(target)
        self.logs: list[list[Launched]] = []
        self._turn = threading.RLock()  # one launch at a time, as in a stream

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        """The function that Triton calls to launch the kernel compiled from ``source``."""
        launcher = Launcher(source, metadata)

        def launch(
            x: int, y: int, z: int, stream: int, kernel: Kernel, packed: Any, about: Any,
            enter: Any, leave: Any, *arguments: Any,
        ) -> None:  # fmt: skip
            grid = (x, y, z)
            with self._turn:
                if enter is not None:
                    enter(about)
                counters = launcher.run(kernel.name, kernel.program, grid, arguments, self.copies)
                if leave is not None:
                    leave(about)
                if counters is not None:
                    for log in self.logs:
                        log.append(Launched(kernel.name, grid, counters))

        return launch

    @classmethod
    def is_active(cls) -> bool:
        return False  # never selected by Triton, only installed

    def map_python_to_cpp_type(self, ty: str) -> str:
        from triton.backends.nvidia.driver import ty_to_cpp

        return str(ty_to_cpp(ty))

    def get_current_device(self) -> int:
        return 0

    def set_current_device(self, device: int) -> None:
        """The number of devices: one."""

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_capability(self, device: int = 0) -> tuple[int, int]:
        return divmod(self.target.sm, 10)

    def get_current_target(self) -> GPUTarget:
        return GPUTarget(self.target.backend, self.target.sm, self.target.warp_size)

    def get_device_interface(self) -> Any:
        return torch.cpu

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_empty_cache_for_benchmark(self) -> Any:
        return self.get_benchmarker()

    def get_benchmarker(self) -> Any:
        raise RuntimeError(
            f"the emulated {self.target.name} has no clock: it cannot choose among the "
            "configurations of @triton.autotune; give the kernel one"
        )


def activate(name: str, copies: Copies) -> Driver:
    """Make the emulated ``name`` the GPU of this process."""
    active = drivers._active
    if isinstance(active, Driver):
        if active.target.name != name:
            raise RuntimeError(
                f"this process emulates {active.target.name} already, and cannot become {name}: "
                "compiled kernels are cached by device; use another process"
            )
        active.copies = copies
        return active
    made = Driver(TARGETS[name], copies)
    drivers.set_active(made)
    return made


@contextmanager
def launched(driver: Driver) -> Iterator[list[Launched]]:
    """The launches within the ``with`` block, in order."""
    log: list[Launched] = []
    driver.logs.append(log)
    try:
        yield log
    finally:
        driver.logs[:] = [other for other in driver.logs if other is not log]
