"""How many sectors of global memory and passes over the banks a warp's access takes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
SECTOR_BITS, BANKS = 5, 32


def sectors_of(at: Array, lanes: Array | None) -> tuple[int, int]:
    """(requests, sectors): warps with a lane in the access, and 32-byte sectors they touch."""
    sector = (at >> np.uint64(SECTOR_BITS)).astype(np.int64)
    if lanes is None:
        rows = sector.reshape(-1, 32)
        step = rows[:, 1:] - rows[:, :-1]
        if (step < 0).any():
            rows = np.sort(rows, axis=1)
            step = rows[:, 1:] - rows[:, :-1]
        return len(rows), len(rows) + int(np.count_nonzero(step))
    warp = lanes // 32
    key = np.sort((warp << 44) + (sector & ((1 << 44) - 1)))
    return (
        1 + int(np.count_nonzero(warp[1:] != warp[:-1])),
        1 + int(np.count_nonzero(key[1:] != key[:-1])),
    )


def wavefronts_of(
    at: Array,
    width: int,
    lanes: Array | None,
    threads: int,
    patterns: dict[int, tuple[Array, tuple[int, int, int]]],
    index: int,
) -> tuple[int, int, int]:
    """(requests, wavefronts, least wavefronts) of an access to shared memory.

    A wavefront gives each of 32 banks one 4-byte word. Accesses of 8 and 16 bytes go by half and
    quarter warps. Blocks of ``threads`` that access alike are counted once and multiplied;
    ``patterns`` remembers what instruction ``index`` did last.
    """
    if lanes is not None:
        return _wavefronts(at, width, lanes)
    by_block = at.reshape(-1, threads)
    first = by_block[0]
    if len(by_block) > 1 and not (by_block == first).all():
        return _wavefronts(at, width, np.arange(len(at)))
    pattern = first - (first[0] & ~np.int64(127))
    known = patterns.get(index)
    if known is not None and np.array_equal(known[0], pattern):
        found = known[1]
    else:
        found = _wavefronts(first, width, np.arange(len(first)))
        patterns[index] = (pattern, found)
    requests, waves, least = found
    return requests * len(by_block), waves * len(by_block), least * len(by_block)


def _wavefronts(at: Array, width: int, lanes: Array) -> tuple[int, int, int]:
    words = max(1, width // 4)
    group = 32 // words  # lanes of a pass
    phase = lanes // group
    word = (at >> 2)[:, None] + np.arange(words)
    key = np.unique((np.repeat(phase, words) << 32) | word.ravel())
    phases = key >> 32
    first = np.concatenate([[True], phases[1:] != phases[:-1]])
    dense = np.cumsum(first) - 1
    banks = np.bincount(dense * BANKS + (key & (BANKS - 1)), minlength=BANKS * int(first.sum()))
    waves = int(banks.reshape(-1, BANKS).max(axis=1).sum())
    requests = len(np.unique(lanes // 32))
    return requests, waves, int(first.sum())
