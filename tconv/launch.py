"""The one place where kernels are launched.

A ``Launch`` says all of it without a tensor in sight: the kernel, its grid, its compile-time
constants, its integers. A ``Plan`` is the launches that compute one result, in order, and the
memory that they hand on to each other. An operator runs a plan on tensors; the tuner compiles
it for a GPU that is not there.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import triton
from triton.compiler import CompiledKernel
from triton.runtime import driver
from triton.runtime.interpreter import InterpretedFunction
from triton.tools.tensor_descriptor import TensorDescriptor

from tconv import kernel_cache
from tconv.target import INTERPRETER, Target, target_of

BACKEND = "hip" if torch.version.hip else "cuda"  # Triton's, for the GPUs of this torch
MOST_REGISTERS, REGISTER_FILE = 255, 65536  # of a thread, of a processor (NVIDIA)
GRID_LIMITS = (2**31 - 1, 65535, 65535)  # programs on each axis of a grid (CUDA; AMD takes more)
ALIGNMENT = 16  # bytes: what Triton takes for granted of a pointer that was so at first


@dataclass(frozen=True)
class Pointer:
    """An operand that a kernel takes by its address."""

    tensor: str  # which tensor of the plan
    dtype: str  # of its elements

    def on(self, tensor: torch.Tensor) -> torch.Tensor:
        """What the kernel is given: the tensor itself."""
        return tensor


@dataclass(frozen=True)
class Descriptor:
    """An operand of which a kernel takes boxes, by tensor memory access (TMA)."""

    tensor: str
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements
    box: tuple[int, ...]

    _last: list[tuple[int, Any]] = field(
        default_factory=lambda: [(0, None)], init=False, repr=False, compare=False
    )

    def on(self, tensor: torch.Tensor) -> TensorDescriptor:
        """Triton's descriptor of ``tensor``: a dozen attributes, already known to be sound."""
        made = TensorDescriptor.__new__(TensorDescriptor)
        made.__dict__.update(self._attributes, base=tensor)
        return made

    def at(self, address: int) -> TensorDescriptor:
        """The same for the driver alone, which asks for no more than the address.

        Filters stay where they are, and an allocator gives the same memory again: the last
        descriptor is kept. It must not keep a tensor alive, so that it holds none.
        """
        last = self._last[0]
        if last[0] != address:
            made = TensorDescriptor.__new__(TensorDescriptor)
            made.__dict__.update(self._attributes, base=_Address(address))
            last = self._last[0] = address, made  # at once: another thread may be here
        return last[1]

    @cached_property
    def _attributes(self) -> dict[str, Any]:
        """Checked once, by Triton's own constructor, on memory that is never touched."""
        sample = torch.empty(0, dtype=getattr(torch, self.dtype))
        lists = (list(self.shape), list(self.strides), list(self.box))
        return dict(vars(TensorDescriptor(sample, *lists)))


def _specialised(value: int, plain: bool) -> tuple[bool, bool, bool]:
    """What Triton compiles a kernel for of an integer: its width, whether it is 1, or 16 divides it."""
    return value >= 1 << 31, not plain and value == 1, not plain and value % ALIGNMENT == 0


class _Address:
    """What a descriptor's base must know of itself when it is launched."""

    __slots__ = ("address",)

    def __init__(self, address: int) -> None:
        self.address = address

    def data_ptr(self) -> int:
        return self.address


Operand = Pointer | Descriptor


@dataclass(frozen=True)
class Launch:
    """One kernel launch: ``kernel`` is ``module.function`` within ``tconv.kernels``."""

    kernel: str
    grid: tuple[int, ...]
    operands: Mapping[str, Operand]  # by kernel argument
    scalars: Mapping[str, int]  # run-time integers
    constants: Mapping[str, Any]  # compile-time values
    warps: int = 4
    stages: int = 1
    _compiled: dict[torch.device, CompiledKernel] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @cached_property
    def function(self) -> Any:
        module, name = self.kernel.split(".")
        return getattr(importlib.import_module(f"tconv.kernels.{module}"), name)

    def options(self, backend: str = BACKEND) -> dict[str, Any]:
        """Compiler options. Fused multiply-add is asked for: Triton's default is to change."""
        chosen = {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}
        if backend != "cuda":
            return chosen
        # Unasked, ptxas halves the registers of some kernels for sm_100, and spills.
        return chosen | {"maxnreg": min(MOST_REGISTERS, REGISTER_FILE // (32 * self.warps))}

    @property
    def identity(self) -> Hashable:
        """What the compiled kernel depends on: launches with equal ones share one binary.

        That is what Triton keys its cache by, of operands aligned as fresh memory is: the types of
        the operands, constants and options, and of integers their width and, unless the kernel
        asks for none, whether they are 1 or multiples of 16.
        """
        operands = sorted(
            (name, each.dtype, each.box if isinstance(each, Descriptor) else None)
            for name, each in self.operands.items()
        )
        plain = {param.name for param in self.function.params if param.do_not_specialize}
        scalars = sorted(
            (name, *_specialised(value, name in plain)) for name, value in self.scalars.items()
        )
        constants = sorted((name, str(value)) for name, value in self.constants.items())
        return self.kernel, (*operands,), (*scalars,), (*constants,), self.warps, self.stages

    def run(self, tensors: dict[str, torch.Tensor]) -> None:
        """Run on ``tensors``, by the names that the operands give them; others are ignored."""
        if 0 not in self.grid:
            _launch_all((self,), tensors)

    def arguments(
        self, tensors: Mapping[str, torch.Tensor], backend: str = BACKEND
    ) -> dict[str, Any]:
        """What Triton's JIT is called with on ``tensors``: arguments, constants and options."""
        values = {
            name: operand.on(tensors[operand.tensor]) for name, operand in self.operands.items()
        }
        return {**values, **self.scalars, **self.constants, **self.options(backend)}

    def _first_run(self, tensors: dict[str, torch.Tensor], device: torch.device) -> None:
        """By way of Triton's JIT, which compiles; what it compiled is kept for next time."""
        for axis, programs, most in zip("xyz", self.grid, GRID_LIMITS, strict=False):
            if programs > most:
                raise RuntimeError(
                    f"{self.kernel} needs {programs:,} programs on axis {axis} of its grid; "
                    f"a GPU takes at most {most:,}"
                )
        for operand in self.operands.values():
            if isinstance(operand, Descriptor):
                _aligned(tensors, operand.tensor)
        if not interpreting():
            kernel_cache.guard()
        compiled = self.function[self.grid](**self.arguments(tensors))
        names = {operand.tensor for operand in self.operands.values()}
        aligned = all(tensors[name].data_ptr() % ALIGNMENT == 0 for name in names)
        if isinstance(compiled, CompiledKernel) and aligned:
            self._compiled[device] = compiled

    def _arguments_on(self, tensors: dict[str, torch.Tensor]) -> list[Any] | None:
        """The kernel's arguments in order; None where memory is not aligned, as kernels take it."""
        arguments = self._arguments.copy()
        addresses = 0
        for place, name, descriptor in self._places:
            tensor = tensors[name]
            address = tensor.data_ptr()
            if descriptor is None:
                arguments[place] = tensor
            else:
                if address % ALIGNMENT:
                    address = _aligned(tensors, name).data_ptr()
                arguments[place] = descriptor.at(address)
            addresses |= address
        return None if addresses % ALIGNMENT else arguments

    @cached_property
    def _anchor(self) -> str:
        return next(iter(self.operands.values())).tensor

    @cached_property
    def _grid(self) -> tuple[int, ...]:
        return (*self.grid, 1, 1)[:3]

    @cached_property
    def _arguments(self) -> list[Any]:
        """The kernel's arguments in order, with gaps where the operands go."""
        known = {**self.scalars, **self.constants}
        return [known.get(name) for name in self.function.arg_names]

    @cached_property
    def _places(self) -> list[tuple[int, str, Descriptor | None]]:
        """Of each operand: its argument's place, its tensor, how it is described."""
        names = self.function.arg_names
        return [
            (
                names.index(name),
                operand.tensor,
                operand if isinstance(operand, Descriptor) else None,
            )
            for name, operand in self.operands.items()
        ]


@dataclass(frozen=True)
class Buffer:
    """Memory that launches of one plan hand on to each other."""

    elements: int
    dtype: str


@dataclass(frozen=True)
class Plan:
    """The launches that compute one result, in order."""

    launches: tuple[Launch, ...]
    buffers: Mapping[str, Buffer] = field(default_factory=dict)
    product: int = 0  # which of the launches multiplies; the others bring its operands into shape

    def run(self, tensors: dict[str, torch.Tensor]) -> None:
        """Run on ``tensors``, inputs and result alike; buffers are added to them here."""
        if self._fresh:
            device = next(iter(tensors.values())).device
            for name, elements, dtype in self._fresh:
                tensors[name] = torch.empty(elements, dtype=dtype, device=device)
        _launch_all(self._at_work, tensors)

    @cached_property
    def _at_work(self) -> tuple[Launch, ...]:
        """The launches that have programs: of an empty batch, none."""
        return tuple(launch for launch in self.launches if 0 not in launch.grid)

    @cached_property
    def _fresh(self) -> list[tuple[str, int, torch.dtype]]:
        return [
            (name, buffer.elements, getattr(torch, buffer.dtype))
            for name, buffer in self.buffers.items()
        ]


_logs: list[list[Launch]] = []


def _aligned(tensors: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """Tensor ``name``, copied (and kept) where it begins between two places that a box may."""
    if tensors[name].data_ptr() % ALIGNMENT:
        tensors[name] = tensors[name].clone()
    return tensors[name]


def _launch_all(launches: tuple[Launch, ...], tensors: dict[str, torch.Tensor]) -> None:
    """Make ``launches`` in order, on the device that the tensors are on."""
    if not launches:
        return
    device = tensors[launches[0]._anchor].device
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        # Triton launches on the current device.
        with torch.cuda.device(device):
            _launch_here(launches, tensors, device)
    else:
        _launch_here(launches, tensors, device)
    for log in _logs:
        log.extend(launches)


def _launch_here(
    launches: tuple[Launch, ...], tensors: dict[str, torch.Tensor], device: torch.device
) -> None:
    """Straight to the driver: the JIT would find the same kernels in ten microseconds each."""
    stream = enter = leave = None
    for launch in launches:
        compiled = launch._compiled.get(device)
        arguments = None if compiled is None else launch._arguments_on(tensors)
        if compiled is None or arguments is None:
            launch._first_run(tensors, device)
            continue
        if stream is None:  # the same for all; and not to be asked where there is no driver
            active, hooks = driver.active, triton.knobs.runtime
            stream = active.get_current_stream(active.get_current_device())
            if hooks.launch_enter_hook.calls or hooks.launch_exit_hook.calls:  # a profiler
                enter, leave = hooks.launch_enter_hook, hooks.launch_exit_hook
        told = None
        if enter is not None:
            told = compiled.launch_metadata(launch._grid, stream, *arguments)
        compiled.run(*launch._grid, stream, compiled.function, compiled.packed_metadata, told,
                     enter, leave, *arguments)  # fmt: skip


@contextlib.contextmanager
def recorded() -> Iterator[list[Launch]]:
    """The launches that are made within the ``with`` block, in order."""
    log: list[Launch] = []
    _logs.append(log)
    try:
        yield log
    finally:
        # By identity: two empty logs are equal.
        _logs[:] = [other for other in _logs if other is not log]


def interpreting() -> bool:
    """Whether kernels run in Triton's interpreter (``TRITON_INTERPRET=1`` at import)."""
    from tconv.kernels import fprop

    return isinstance(fprop.implicit_gemm_fprop, InterpretedFunction)


def emulated() -> Target | None:
    """The GPU that CPU tensors are computed on, where one is emulated (``TCONV_EMULATE``)."""
    emulator = sys.modules.get("tconv.emulator")  # imported only where somebody asked for it
    return None if emulator is None else emulator.installed()


def runs_triton(device: torch.device) -> bool:
    """Whether tensors on ``device`` go to Triton kernels, rather than to torch's CPU operators."""
    if device.type == "cpu":
        return interpreting() or emulated() is not None
    return device.type == "cuda"


def target_for(device: torch.device) -> Target:
    """The target that tensors on ``device`` are computed on."""
    if interpreting():
        return INTERPRETER
    if device.type != "cuda":
        return emulated() or INTERPRETER
    index = device.index if device.index is not None else torch.cuda.current_device()
    return target_of(index)
