"""Kernel launches as values, and the only code that makes them.

A ``Launch`` describes one kernel launch without tensors: the kernel, its grid, its compile-time
constants, its integers. A ``Plan`` is the launches that compute one result, in order, and the
buffers that pass data between them. An operator runs a plan on tensors; the tuner compiles it,
which needs no GPU.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import threading
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import torch
import triton
from triton.compiler import CompiledKernel
from triton.runtime import driver
from triton.runtime.interpreter import InterpretedFunction
from triton.tools.tensor_descriptor import TensorDescriptor

from tconv import interpreter_bfloat16, kernel_cache
from tconv.target import INTERPRETER, Target, target_of

BACKEND = "hip" if torch.version.hip else "cuda"  # Triton's, for the GPUs of this torch
MOST_REGISTERS, REGISTER_FILE = 255, 65536  # of a thread, of a processor (NVIDIA)
GRID_LIMITS = (2**31 - 1, 65535, 65535)  # programs on each axis of a grid (CUDA; AMD takes more)
_one_at_a_time = threading.Lock()  # Triton's interpreter keeps the running program in globals
ALIGNMENT = 16  # bytes: kernels are compiled for pointers that are multiples of this


@dataclass(frozen=True)
class Pointer:
    """An operand passed to a kernel by its address."""

    tensor: str  # which tensor of the plan
    dtype: str  # of its elements

    def on(self, tensor: torch.Tensor) -> torch.Tensor:
        """The kernel's argument for ``tensor``: the tensor itself."""
        return tensor


@dataclass(frozen=True)
class Descriptor:
    """An operand that a kernel reads or writes in boxes, by tensor memory access (TMA)."""

    tensor: str
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements
    box: tuple[int, ...]

    _last: list[tuple[int, Any]] = field(
        default_factory=lambda: [(0, None)], init=False, repr=False, compare=False
    )

    def __reduce__(self) -> tuple[Any, ...]:
        return Descriptor, (self.tensor, self.dtype, self.shape, self.strides, self.box)

    def on(self, tensor: torch.Tensor) -> TensorDescriptor:
        """Triton's descriptor of ``tensor``, made from attributes that were validated once."""
        made = TensorDescriptor.__new__(TensorDescriptor)
        made.__dict__.update(self._attributes, base=tensor)
        return made

    def at(self, address: int) -> TensorDescriptor:
        """Triton's descriptor of the memory at ``address``, for a launch without the JIT.

        The last descriptor is cached: filters do not move, and an allocator returns the same memory
        again. It holds an address instead of a tensor, so that the cache keeps no tensor alive.
        """
        last = self._last[0]
        if last[0] != address:
            made = TensorDescriptor.__new__(TensorDescriptor)
            made.__dict__.update(self._attributes, base=_Address(address))
            last = self._last[0] = address, made  # one assignment: other threads may read it
        return last[1]

    @cached_property
    def _attributes(self) -> dict[str, Any]:
        """Attributes that Triton's constructor validates once, on an empty tensor."""
        sample = torch.empty(0, dtype=getattr(torch, self.dtype))
        lists = (list(self.shape), list(self.strides), list(self.box))
        return dict(vars(TensorDescriptor(sample, *lists)))


def _specialised(value: int, plain: bool) -> tuple[bool, bool, bool]:
    """Return Triton's specialisation of an integer: needs 64 bits, is 1, is a multiple of 16."""
    return value >= 1 << 31, not plain and value == 1, not plain and value % ALIGNMENT == 0


class _Address:
    """Stand-in for a descriptor's base tensor: a launch reads only its address."""

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

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the description alone, without the kernels compiled in this process."""
        described = (self.kernel, self.grid, self.operands, self.scalars, self.constants)
        return Launch, (*described, self.warps, self.stages)

    @cached_property
    def function(self) -> Any:
        module, name = self.kernel.split(".")
        return getattr(importlib.import_module(f"tconv.kernels.{module}"), name)

    def options(self, backend: str = BACKEND) -> dict[str, Any]:
        """Compiler options; fused multiply-add is explicit, since Triton's default will change."""
        chosen = {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}
        if backend != "cuda":
            return chosen
        # Without a limit ptxas halves the registers of some kernels for sm_100, and they spill.
        return chosen | {"maxnreg": min(MOST_REGISTERS, REGISTER_FILE // (32 * self.warps))}

    @property
    def identity(self) -> Hashable:
        """Key of the compiled kernel: launches with equal keys share one binary.

        Like the key of Triton's cache, for aligned operands, it has the types of the operands, the
        constants and options, and for each integer its width and, unless the kernel turns that
        off, whether it is 1 or a multiple of 16.
        """
        operands = sorted(
            (name, each.dtype, each.box if isinstance(each, Descriptor) else None)
            for name, each in self.operands.items()
        )
        if isinstance(self.function, InterpretedFunction):
            plain = set(self.function.kwargs.get("do_not_specialize") or ())
        else:
            plain = {param.name for param in self.function.params if param.do_not_specialize}
        scalars = sorted(
            (name, *_specialised(value, name in plain)) for name, value in self.scalars.items()
        )
        constants = sorted((name, str(value)) for name, value in self.constants.items())
        return self.kernel, (*operands,), (*scalars,), (*constants,), self.warps, self.stages

    def run(self, tensors: dict[str, torch.Tensor]) -> None:
        """Run on ``tensors``, by the operands' tensor names; other names are ignored."""
        if 0 not in self.grid:
            _launch_all((self,), tensors)

    def arguments(
        self, tensors: Mapping[str, torch.Tensor], backend: str = BACKEND
    ) -> dict[str, Any]:
        """Keyword arguments of Triton's JIT for ``tensors``: operands, constants and options."""
        values = {
            name: operand.on(tensors[operand.tensor]) for name, operand in self.operands.items()
        }
        return {**values, **self.scalars, **self.constants, **self.options(backend)}

    def _first_run(self, tensors: dict[str, torch.Tensor], device: torch.device) -> None:
        """Run through Triton's JIT, and keep the compiled kernel for later runs."""
        for axis, programs, most in zip("xyz", self.grid, GRID_LIMITS, strict=False):
            if programs > most:
                raise RuntimeError(
                    f"{self.kernel} needs {programs:,} programs on axis {axis} of its grid; "
                    f"a GPU takes at most {most:,}"
                )
        for operand in self.operands.values():
            if isinstance(operand, Descriptor):
                _aligned(tensors, operand.tensor)
        if interpreting():
            interpreter_bfloat16.mend()
            with _one_at_a_time:
                self.function[self.grid](**self.arguments(tensors))
            return
        kernel_cache.guard()
        compiled = self.function[self.grid](**self.arguments(tensors))
        names = {operand.tensor for operand in self.operands.values()}
        aligned = all(tensors[name].data_ptr() % ALIGNMENT == 0 for name in names)
        if isinstance(compiled, CompiledKernel) and aligned:
            self._compiled[device] = compiled

    def _arguments_on(self, tensors: dict[str, torch.Tensor]) -> list[Any] | None:
        """The kernel's arguments in order; None if memory is less aligned than compiled for."""
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
        """The kernel's arguments in order, None in the place of each operand."""
        known = {**self.scalars, **self.constants}
        return [known.get(name) for name in self.function.arg_names]

    @cached_property
    def _places(self) -> list[tuple[int, str, Descriptor | None]]:
        """(argument index, tensor name, descriptor or None) of each operand."""
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
    """Temporary memory that passes data between the launches of one plan."""

    elements: int
    dtype: str


@dataclass(frozen=True)
class Plan:
    """The launches that compute one result, in order."""

    launches: tuple[Launch, ...]
    buffers: Mapping[str, Buffer] = field(default_factory=dict)
    product: int = 0  # index of the launch that multiplies; the others prepare and finish

    def run(self, tensors: dict[str, torch.Tensor]) -> None:
        """Run on ``tensors``, the inputs and the result; this adds the plan's buffers to them."""
        if self._fresh:
            device = next(iter(tensors.values())).device
            for name, elements, dtype in self._fresh:
                tensors[name] = torch.empty(elements, dtype=dtype, device=device)
        _launch_all(self._at_work, tensors)

    @cached_property
    def _at_work(self) -> tuple[Launch, ...]:
        """The launches that have programs: none for an empty batch."""
        return tuple(launch for launch in self.launches if 0 not in launch.grid)

    @cached_property
    def _fresh(self) -> list[tuple[str, int, torch.dtype]]:
        return [
            (name, buffer.elements, getattr(torch, buffer.dtype))
            for name, buffer in self.buffers.items()
        ]


class _Planning(threading.local):
    """The target for which a thread plans instead of launching, and its plans; see ``planning``."""

    target: Target | None = None
    plans: list[tuple[Launch, ...]] | None = None


_logs: list[list[Launch]] = []
_planning = _Planning()


def _aligned(tensors: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """Tensor ``name``; a copy replaces it if its address is not aligned for boxes."""
    if tensors[name].data_ptr() % ALIGNMENT:
        tensors[name] = tensors[name].clone()
    return tensors[name]


def _launch_all(launches: tuple[Launch, ...], tensors: dict[str, torch.Tensor]) -> None:
    """Make ``launches`` in order, on the tensors' device."""
    if not launches:
        return
    if _planning.plans is not None:
        _planning.plans.append(launches)
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
    """Launch through the driver; the JIT's look-up of a compiled kernel costs ten microseconds."""
    stream = enter = leave = None
    for launch in launches:
        compiled = launch._compiled.get(device)
        arguments = None if compiled is None else launch._arguments_on(tensors)
        if compiled is None or arguments is None:
            launch._first_run(tensors, device)
            continue
        if stream is None:  # one for all launches; there is no driver to ask in the interpreter
            active, hooks = driver.active, triton.knobs.runtime
            stream = active.get_current_stream(active.get_current_device())
            if hooks.launch_enter_hook.calls or hooks.launch_exit_hook.calls:  # a profiler
                enter, leave = hooks.launch_enter_hook, hooks.launch_exit_hook
        metadata = None
        if enter is not None:
            metadata = compiled.launch_metadata(launch._grid, stream, *arguments)
        compiled.run(*launch._grid, stream, compiled.function, compiled.packed_metadata,
                     metadata, enter, leave, *arguments)  # fmt: skip


@contextlib.contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Context manager: the list of launches made within the ``with`` block, in order."""
    log: list[Launch] = []
    _logs.append(log)
    try:
        yield log
    finally:
        # By identity: two empty logs are equal.
        _logs[:] = [other for other in _logs if other is not log]


@contextlib.contextmanager
def planning(target: Target, plans: list[tuple[Launch, ...]]) -> Iterator[None]:
    """Context manager: this thread plans for ``target``, and lists launches in ``plans`` instead.

    Operators then take tensors without memory, on any device.
    """
    before = _planning.target, _planning.plans
    _planning.target, _planning.plans = target, plans
    try:
        yield
    finally:
        _planning.target, _planning.plans = before


def is_planning() -> bool:
    """Whether this thread plans instead of launching."""
    return _planning.target is not None


@lru_cache(maxsize=1)  # kernels are decorated once; a call asks several times
def interpreting() -> bool:
    """Whether kernels run in Triton's interpreter (``TRITON_INTERPRET=1`` at import)."""
    from tconv.kernels import fprop

    return isinstance(fprop.implicit_gemm_fprop, InterpretedFunction)


def emulated() -> Target | None:
    """Target of the emulated GPU (``TCONV_EMULATE``) that computes CPU tensors, or None."""
    emulator = sys.modules.get("tconv.emulator")  # imported only if a GPU is emulated
    return None if emulator is None else emulator.installed()


def runs_triton(device: torch.device) -> bool:
    """Whether Triton kernels, and not torch's CPU operators, compute tensors on ``device``."""
    if _planning.target is not None:
        return True
    if device.type == "cpu":
        return interpreting() or emulated() is not None
    return device.type == "cuda"


def target_for(device: torch.device) -> Target:
    """The target that kernels for tensors on ``device`` are compiled for."""
    if _planning.target is not None:
        return _planning.target
    if interpreting():
        return INTERPRETER
    if device.type != "cuda":
        return emulated() or INTERPRETER
    index = device.index if device.index is not None else torch.cuda.current_device()
    return target_of(index)
