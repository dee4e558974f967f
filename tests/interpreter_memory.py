"""For tests alone: in Triton's interpreter, every access of a launch to memory is looked at.

A launch may read only the tensors that it is given, and none of what it writes itself. Of a tensor
that it writes, it writes each element, and each only once: programs run in any order, so that an
element written twice would have the value of chance. What a masked load leaves out has a value that
the kernel names. The interpreter itself knows none of this: it reads whatever lies at an address.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from triton.runtime import interpreter
from triton.tools.tensor_descriptor import TensorDescriptor

Addresses = NDArray[np.uint64]
NOT_YET = -1
LOOKING: ContextVar[bool] = ContextVar("LOOKING", default=True)


class AccessError(AssertionError):
    """An access that a kernel should not make."""


class Operand:
    """The memory of one tensor, and by which lane of the last store each element was written."""

    def __init__(self, name: str, tensor: torch.Tensor) -> None:
        self.name, self.size = name, tensor.element_size()
        spans = zip(tensor.shape, tensor.stride(), strict=True)
        self.elements = 1 + sum((extent - 1) * stride for extent, stride in spans)
        self.first = tensor.data_ptr()
        self.end = self.first + self.elements * self.size
        self.writers: NDArray[np.int32] | None = None

    def places(self, addresses: Addresses) -> NDArray[np.int64]:
        return (addresses - np.uint64(self.first)).astype(np.int64) // self.size

    def read(self, addresses: Addresses) -> None:
        if self.writers is None:
            return
        if (self.writers[self.places(addresses)] != NOT_YET).any():
            raise AccessError(f"{self.name} is read where the same launch has written it")

    def write(self, addresses: Addresses) -> None:
        if self.writers is None:
            self.writers = np.full(self.elements, NOT_YET, np.int32)
        places, lanes = self.places(addresses), np.arange(addresses.size, dtype=np.int32)
        twice = (self.writers[places] != NOT_YET).any()
        self.writers[places] = lanes
        if twice or (self.writers[places] != lanes).any():
            raise AccessError(f"an element of {self.name} is written twice")

    def finish(self) -> None:
        if self.writers is not None and (gaps := int((self.writers == NOT_YET).sum())):
            raise AccessError(f"{gaps} of {self.elements} elements of {self.name} are not written")


class Launched:
    """The operands of the launch that is under way."""

    def __init__(self, arguments: Iterable[tuple[str, Any]]) -> None:
        self.operands = []
        for name, value in arguments:
            tensor = value.base if isinstance(value, TensorDescriptor) else value
            if isinstance(tensor, torch.Tensor) and tensor.numel():
                self.operands.append(Operand(name, tensor))

    def touched(self, pointers: Any, mask: Any) -> tuple[Operand, Addresses] | None:
        """The operand that holds all addresses of one access; they must lie in one."""
        addresses = pointers.data[np.broadcast_to(mask.data, pointers.data.shape)]
        if not addresses.size:
            return None
        low, high = int(addresses.min()), int(addresses.max())
        for operand in self.operands:
            if operand.first <= low and high < operand.end:
                return operand, addresses
        raise AccessError(f"memory is touched that no operand holds, {self._nearest(low, high)}")

    def _nearest(self, low: int, high: int) -> str:
        """In words, how far the addresses are from the operand that they begin or end in."""
        for operand in self.operands:
            if operand.first <= low < operand.end or operand.first <= high < operand.end:
                before = max(0, operand.first - low) // operand.size
                beyond = max(0, high - operand.end + operand.size) // operand.size
                return f"{before} elements before {operand.name} and {beyond} beyond it"
        return "far from each"


@contextmanager
def unwatched() -> Iterator[None]:
    """For launches that a test breaks on purpose, to see who else finds out."""
    token = LOOKING.set(False)
    try:
        yield
    finally:
        LOOKING.reset(token)


def watch() -> None:
    """Have the interpreter look, in every launch from now on."""
    builder, function = interpreter.InterpreterBuilder, interpreter.InterpretedFunction
    plain_run = function.run
    plain_load, plain_store = builder.create_masked_load, builder.create_masked_store
    under_way: list[Launched | None] = []

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        given = [*zip(self.arg_names, args, strict=False), *kwargs.items()]
        launched = Launched(given) if LOOKING.get() else None
        under_way.append(launched)
        try:
            result = plain_run(self, *args, grid=grid, warmup=warmup, **kwargs)
        finally:
            under_way.pop()
        for operand in launched.operands if launched else ():
            operand.finish()
        return result

    def load(self: Any, pointers: Any, mask: Any, other: Any, *rest: Any, **named: Any) -> Any:
        if launched := under_way[-1]:
            if other is None and not mask.data.all():
                raise AccessError("a masked load does not say what it leaves out")
            if found := launched.touched(pointers, mask):
                found[0].read(found[1])
        return plain_load(self, pointers, mask, other, *rest, **named)

    def store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        if (launched := under_way[-1]) and (found := launched.touched(pointers, mask)):
            found[0].write(found[1])
        return plain_store(self, pointers, value, mask, *rest)

    function.run, builder.create_masked_load = run, load
    builder.create_masked_store = store
