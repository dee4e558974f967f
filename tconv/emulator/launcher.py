"""Launches one compiled kernel on the emulated GPU, with the checks of the CUDA driver."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from triton.runtime import _allocation
from triton.tools.tensor_descriptor import TensorDescriptor

from tconv.emulator.arguments import Region, Spaces, described_region, flat, region_of, scalar_bits
from tconv.emulator.counters import Counters
from tconv.emulator.faults import Fault, NotCovered
from tconv.emulator.machine import Machine
from tconv.emulator.ptx import Program
from tconv.emulator.tensor_map import TensorMap

Copies = Literal["late", "early"]
DIVISIBILITY = "tt.divisibility"  # attribute of arguments that Triton assumed divisible


class Launcher:
    """Launches one compiled kernel: ``source`` and ``metadata`` are Triton's descriptions of it."""

    def __init__(self, source: Any, metadata: Any) -> None:
        self._metadata = metadata
        self._kinds = tuple(source.signature.values())
        self._names = tuple(map(str, source.signature))
        self._maps = list(getattr(metadata, "tensordesc_meta", None) or ())
        self._divisors = {
            tuple(path): number
            for path, hints in (getattr(source, "attrs", None) or {}).items()
            for hint, number in hints
            if hint == DIVISIBILITY
        }
        self._constants = {
            self._path(path): value
            for path, value in (getattr(source, "constants", None) or {}).items()
        }

    def _path(self, path: Any) -> tuple[int, ...]:
        return (self._names.index(path),) if isinstance(path, str) else tuple(path)

    def run(
        self,
        name: str,
        program: Program,
        grid: tuple[int, int, int],
        values: Sequence[Any],
        copies: Copies,
    ) -> Counters | None:
        """Run all programs of ``grid``; None for an empty grid, which no GPU launches either."""
        if 0 in grid:
            return None
        self._check_covered(name)
        arguments = list(flat(self._kinds, values))
        self._check_hints(name, arguments)
        scratch = self._scratch(grid)
        spaces = Spaces([*self._regions(arguments), *scratch])
        parameters = list(self._parameters(name, arguments, spaces))
        parameters += [spaces.address(region.start) for region in scratch] or [0, 0]
        if not 0 <= len(parameters) - len(program.parameters) <= 2:
            raise RuntimeError(
                f"{name} has {len(program.parameters)} parameters, a launch {len(parameters)}"
            )
        machine = Machine(
            program,
            spaces.memory,
            parameters[: len(program.parameters)],
            grid,
            shared_bytes=self._metadata.shared,
            copies=copies,
        )
        return machine.run()

    def _check_covered(self, name: str) -> None:
        if getattr(self._metadata, "num_ctas", 1) > 1:
            raise NotCovered(f"{name}: clusters of programs (num_ctas > 1) are not emulated")
        if getattr(self._metadata, "launch_cooperative_grid", False):
            raise NotCovered(f"{name}: programs that wait for one another are not emulated")

    def _check_hints(self, name: str, arguments: Sequence[tuple[Any, str, Any]]) -> None:
        """Check that the arguments fulfil the assumptions that the code was compiled with."""
        for path, kind, value in arguments:
            divisor = self._divisors.get(path)
            if divisor is not None and not kind.startswith("tensordesc"):
                number = value.data_ptr() if hasattr(value, "data_ptr") else int(value)
                if number % divisor:
                    what = f"argument {self._names[path[0]]} is {number:#x}"
                    message = f"{what}, the kernel was compiled for multiples of {divisor}"
                    raise Fault("divisibility hint", message, kernel=name, address=number)
            wanted = self._constants.get(path)
            known = isinstance(wanted, int) and isinstance(value, int)
            if kind == "constexpr" and known and value != wanted:
                what = f"argument {self._names[path[0]]} is {value}"
                message = f"{what}, the kernel was compiled for {wanted}"
                raise Fault("divisibility hint", message, kernel=name)

    def _scratch(self, grid: tuple[int, int, int]) -> list[Region]:
        """Scratch memory of the kernel, which holds descriptors that it makes."""
        programs = grid[0] * grid[1] * grid[2]
        found = []
        for space, allocator in (
            ("global", _allocation._allocator),
            ("profile", _allocation._profile_allocator),
        ):
            each = int(getattr(self._metadata, f"{space}_scratch_size", 0) or 0)
            if not each:
                found.append(Region(0, 0, f"{space} scratch"))
                continue
            alignment = int(getattr(self._metadata, f"{space}_scratch_align", 1))
            buffer = allocator.get()(programs * each, alignment, 0)
            region = region_of(f"{space} scratch", buffer)
            if region is None:
                raise TypeError(f"the allocator of {space} scratch gave {buffer!r}, not a tensor")
            start = buffer.data_ptr()
            found.append(Region(start, region.end, region.name, region.owner))
        return found

    def _regions(self, arguments: Sequence[tuple[Any, str, Any]]) -> Iterator[Region]:
        """The memory that the arguments point to."""
        for path, kind, value in arguments:
            where = self._names[path[0]]
            if kind.startswith("tensordesc"):
                yield region_of(where, value.base) or described_region(where, kind, value)
            elif kind.startswith("*") and (region := region_of(where, value)) is not None:
                yield region

    def _parameters(
        self, name: str, arguments: Sequence[tuple[Any, str, Any]], spaces: Spaces
    ) -> Iterator[Any]:
        """The values of the PTX's parameters, in order, the scratch pointers excepted."""
        maps = iter(self._maps)
        for path, kind, value in arguments:
            if kind == "constexpr":
                continue
            if kind.startswith("tensordesc"):
                yield from _described(value, next(maps, None), spaces)
            elif kind.startswith("*"):
                pointer = value.data_ptr() if hasattr(value, "data_ptr") else int(value or 0)
                yield spaces.address(pointer)
            else:
                try:
                    yield scalar_bits(kind, value)
                except OverflowError as error:
                    message = f"argument {self._names[path[0]]}: {error}"
                    raise Fault("launch limit", message, kernel=name) from None


def _described(
    descriptor: TensorDescriptor, tma: dict[str, Any] | None, spaces: Spaces
) -> list[Any]:
    """A descriptor's parameters: its tensor map or its parts, then its shape and strides."""
    address = spaces.address(descriptor.base.data_ptr())
    shape = [scalar_bits("i32", extent) for extent in descriptor.shape]
    strides = [scalar_bits("i64", stride) for stride in descriptor.strides]
    fill_nan = descriptor.padding == "nan"
    if tma is not None:
        rounding = getattr(descriptor, "round_f32_to_tf32", False)
        if tma.get("is_im2col") or tma.get("fp4_padded") or rounding:
            raise NotCovered("tensor maps of images, of 4-bit floats or that round to tf32")
        box, itemsize, swizzle = tma["block_size"], tma["elem_size"], tma["swizzle"]
        extents = (descriptor.shape, descriptor.strides)
        return [TensorMap(address, *extents, box, itemsize, swizzle, fill_nan), *shape, *strides]
    parts = [address, *(scalar_bits("i64", extent) for extent in descriptor.shape), *strides]
    parts.append(int(fill_nan))
    if hasattr(descriptor, "round_f32_to_tf32"):  # Triton 3.7 and later
        parts.append(int(descriptor.round_f32_to_tf32))
    return [*parts, *shape, *strides]
