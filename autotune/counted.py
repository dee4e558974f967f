"""Ratios of an emulated GPU's counters that do not depend on the problem's size.

Counters come from running a scaled-down copy of the layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

WARP = 32  # threads
COUNTERS_TITLE = "checked: compiled code, emulated; counts of a scaled-down copy of each layer"
KINDS = 4  # most frequent kinds of instructions that a table lists
MOVED = ("global_load_bytes", "global_store_bytes", "tma_load_bytes", "tma_store_bytes")


@dataclass(frozen=True)
class Counted:
    """Ratios for one choice; None where the denominator is zero.

    >>> found = Counted.of({"results": 64, "instructions_by_class": {"matrix": 2, "integer": 8}})
    >>> found.instructions, found.kinds
    (5.0, 'integer 4, matrix 1')
    """

    instructions: float | None  # thread instructions per result
    kinds: str  # most frequent kinds of instructions, each per result
    global_bytes: float | None  # bytes moved to and from global memory, TMA included, per result
    sectors: float | None  # 32-byte sectors touched per warp request to global memory
    bank_conflicts: float | None  # excess shared-memory wavefronts over necessary ones
    tma_bytes: float | None  # bytes per result
    barriers: float | None  # warp waits at a barrier or for a copy, per program

    @classmethod
    def of(cls, counters: Mapping[str, Any]) -> Counted:
        """Compute the ratios from the emulator's ``counters`` and the number of results."""

        def total(*names: str) -> int:
            return sum(counters.get(name, 0) for name in names)

        results = total("results")
        by_kind = counters.get("instructions_by_class", {})
        often = sorted(by_kind.items(), key=lambda item: -item[1])[:KINDS]
        return cls(
            _ratio(WARP * sum(by_kind.values()), results),
            ", ".join(f"{kind} {_text(_ratio(WARP * count, results))}" for kind, count in often),
            _ratio(total(*MOVED), results),
            _ratio(
                total("global_load_sectors", "global_store_sectors"),
                total("global_load_requests", "global_store_requests"),
            ),
            _ratio(total("bank_conflicts"), total("shared_ideal_wavefronts")),
            _ratio(total("tma_load_bytes", "tma_store_bytes"), results),
            _ratio(total("block_barriers", "mbarrier_waits"), total("blocks")),
        )

    def cells(self) -> tuple[str, ...]:
        """Return the ratios as text, in the order of ``HEADINGS``."""
        conflicts = "" if self.bank_conflicts is None else f"{self.bank_conflicts:.0%}"
        instructions = f"{_text(self.instructions)} ({self.kinds})"
        moved = (_text(self.global_bytes), _text(self.sectors))
        return instructions, *moved, conflicts, _text(self.tma_bytes), _text(self.barriers)


HEADINGS = (
    "instructions per result",
    "global bytes per result",
    "sectors per request",
    "bank conflicts",
    "TMA bytes per result",
    "barriers per program",
)


def _ratio(value: float, over: float) -> float | None:
    return value / over if over else None


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
