"""Counter of the bytes that a launch moves in the interpreter, from the launch's own masks."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
from triton.runtime.interpreter import InterpreterBuilder

Program = tuple[int, ...]


@dataclass
class Traffic:
    """Addresses that programs load and store where their masks allow, with repetitions."""

    loads: dict[Program, list[Any]] = field(default_factory=lambda: defaultdict(list))
    stores: dict[Program, list[Any]] = field(default_factory=lambda: defaultdict(list))

    def loaded(self, tensor: Any) -> int:
        """Return the bytes of ``tensor`` that programs load, each address once per program."""
        return self._bytes(self.loads, tensor, once=True)

    def requested(self, tensor: Any) -> int:
        """Return the bytes that programs request of ``tensor``, with repetitions: L1 traffic."""
        return self._bytes(self.loads, tensor, once=False)

    def stored(self, tensor: Any) -> int:
        """Return the bytes stored to ``tensor``, with repetitions (there should be none)."""
        return self._bytes(self.stores, tensor, once=False)

    def _bytes(self, log: dict[Program, list[Any]], tensor: Any, once: bool) -> int:
        first, itemsize = tensor.data_ptr(), tensor.element_size()
        last, total = first + tensor.numel() * itemsize, 0
        for addresses in log.values():
            found = np.concatenate(addresses)
            found = found[(found >= first) & (found < last)]
            total += (np.unique(found) if once else found).size * itemsize
        return int(total)


@contextlib.contextmanager
def traffic() -> Iterator[Traffic]:
    """Record the traffic of the launch in the ``with`` block."""
    counted = Traffic()
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def addresses(ptrs: Any, mask: Any) -> Any:
        allowed = np.broadcast_to(mask.data.astype(bool), ptrs.data.shape)
        return ptrs.data[allowed].ravel()

    def counted_load(self: Any, ptrs: Any, mask: Any, *rest: Any) -> Any:
        counted.loads[tuple(self.grid_idx)].append(addresses(ptrs, mask))
        return load(self, ptrs, mask, *rest)

    def counted_store(self: Any, ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
        counted.stores[tuple(self.grid_idx)].append(addresses(ptrs, mask))
        return store(self, ptrs, value, mask, *rest)

    with (
        mock.patch.object(InterpreterBuilder, "create_masked_load", counted_load),
        mock.patch.object(InterpreterBuilder, "create_masked_store", counted_store),
    ):
        yield counted
