"""Profiler counters of emulated kernels."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

CLASSES = {
    "integer": ("add.s", "add.u", "sub.s", "sub.u", "mul.lo", "mul.hi", "mul.wide", "mad.",
                "div.s", "div.u", "rem.", "min.s", "min.u", "max.s", "max.u", "neg.s", "abs.s",
                "and.", "or.", "xor.", "not.", "shl.", "shr.", "shf.", "bfe.", "bfi.", "lop3.",
                "prmt.", "popc.", "clz.", "bfind.", "brev.", "dp4a.", "sad.", "mul24.", "mad24."),
    "float": ("add.", "sub.", "mul.", "fma.", "min.", "max.", "neg.", "abs.", "div.", "rcp.",
              "sqrt.", "rsqrt.", "ex2.", "lg2.", "sin.", "cos.", "tanh.", "copysign.", "testp."),
    "convert": ("cvt.", "cvta."),
    "move": ("mov.", "selp.", "setp.", "set.", "slct."),
    "matrix": ("mma.", "wgmma.mma_async"),
    "global memory": ("ld.global", "st.global", "atom.global", "red.global", "cp.async.c",
                      "cp.async.bulk.tensor", "prefetch"),
    "shared memory": ("ld.shared", "st.shared", "ldmatrix", "stmatrix", "atom.shared"),
    "warp": ("shfl.", "vote.", "redux.", "match.", "elect.", "activemask"),
    "synchronise": ("bar.", "barrier.", "mbarrier.", "fence.", "membar", "cp.async.wait",
                    "cp.async.commit", "cp.async.bulk.wait", "cp.async.bulk.commit", "wgmma.fence",
                    "wgmma.commit", "wgmma.wait"),
    "control": ("bra", "ret", "exit", "griddepcontrol", "nanosleep", "setmaxnreg"),
}  # fmt: skip


def instruction_class(opcode: str) -> str:
    """The class of an opcode: a key of `CLASSES`, or ``other``."""
    for name, prefixes in CLASSES.items():
        if opcode.startswith(prefixes):
            return name
    return "other"


@dataclass
class Counters:
    """Counts of one or more launches.

    ``instructions`` counts by opcode what warps issue, instructions with a false predicate
    included. A request is one warp's access by one instruction; a sector is 32 bytes of global
    memory; a wavefront is one pass over the 32 banks of shared memory. ``ideal_wavefronts`` is
    what the same requests would take without bank conflicts. Bytes are those that the threads
    requested; TMA bytes are counted apart.
    """

    launches: int = 0
    blocks: int = 0
    warps: int = 0
    instructions: Counter[str] = field(default_factory=Counter)
    global_load_bytes: int = 0
    global_store_bytes: int = 0
    global_load_requests: int = 0
    global_store_requests: int = 0
    global_load_sectors: int = 0
    global_store_sectors: int = 0
    atomic_requests: int = 0
    shared_load_requests: int = 0
    shared_store_requests: int = 0
    shared_load_wavefronts: int = 0
    shared_store_wavefronts: int = 0
    shared_ideal_wavefronts: int = 0
    tma_load_bytes: int = 0
    tma_store_bytes: int = 0
    tma_copies: int = 0
    block_barriers: int = 0
    mbarrier_waits: int = 0
    matrix_flops: int = 0

    def add(self, other: Counters) -> None:
        """Add the counts of another launch."""
        for name, value in vars(other).items():
            if isinstance(value, Counter):
                getattr(self, name).update(value)
            else:
                setattr(self, name, getattr(self, name) + value)

    def by_class(self) -> dict[str, int]:
        """Instructions that warps issue, by class."""
        totals: Counter[str] = Counter()
        for opcode, count in self.instructions.items():
            totals[instruction_class(opcode)] += count
        return dict(totals)

    def as_dict(self) -> dict[str, Any]:
        """All counts and their ratios as plain numbers, for JSON."""
        plain = {
            name: int(value) for name, value in vars(self).items() if not isinstance(value, Counter)
        }
        requests = self.global_load_requests + self.global_store_requests
        sectors = self.global_load_sectors + self.global_store_sectors
        waves = self.shared_load_wavefronts + self.shared_store_wavefronts
        total = sum(self.instructions.values())
        return {
            **plain,
            "instructions": total,
            "instructions_by_opcode": {k: int(v) for k, v in sorted(self.instructions.items())},
            "instructions_by_class": {k: int(v) for k, v in sorted(self.by_class().items())},
            "instructions_per_warp": total / max(1, self.warps),
            "sectors_per_request": sectors / max(1, requests),
            "wavefronts_per_ideal": waves / max(1, self.shared_ideal_wavefronts),
            "bank_conflicts": waves - self.shared_ideal_wavefronts,
        }
