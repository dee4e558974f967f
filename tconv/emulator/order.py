"""The order in which lanes that parted ways are run, so that they meet again.

Lanes that are behind others run first. Behind means earlier in an order of the control flow in
which each loop is finished before what follows it (F. Bourdoncle, "Efficient chaotic iteration
strategies with widenings", 1993). The order of the text would not do: a compiler may place the
block where two branches meet before one of them.
"""

from __future__ import annotations

from collections.abc import Sequence


def execution_order(successors: Sequence[Sequence[int]]) -> list[int]:
    """Return the place of each block in the order, given the blocks that may follow each.

    Block 0 is the entry. Blocks that reach each other form a loop, which begins with its entry and
    has an order of its own for the rest.

    >>> execution_order([[2, 3], [], [1], [1]])  # block 1, where branches 2 and 3 meet, is last
    [0, 3, 1, 2]
    """
    found: list[int] = []
    _append(found, list(range(len(successors))), successors)
    order = [0] * len(successors)
    for place, block in enumerate(found):
        order[block] = place
    return order


def _append(found: list[int], blocks: list[int], successors: Sequence[Sequence[int]]) -> None:
    """Append ``blocks`` in order; only the edges among them count."""
    reached = _reached(blocks, successors)
    # A block reaches more blocks than any later one does, unless both are in one loop.
    blocks = sorted(blocks, key=lambda block: (-reached[block].bit_count(), block))
    while blocks:
        first = blocks[0]
        loop = [b for b in blocks if b == first or reached[first] >> b & reached[b] >> first & 1]
        blocks = [block for block in blocks if block not in loop]
        inside = set(loop)
        entries = [b for b in loop if any(b in successors[p] for p in found if p not in inside)]
        entry = min(entries, default=first)
        found.append(entry)
        rest = [block for block in loop if block != entry]
        if rest:
            _append(found, rest, successors)


def _reached(blocks: list[int], successors: Sequence[Sequence[int]]) -> dict[int, int]:
    """Return for each block the set, as bits, of those that it reaches by one edge or more."""
    inside = set(blocks)
    reached = dict.fromkeys(blocks, 0)
    changed = True
    while changed:
        changed = False
        for block in reversed(blocks):
            bits = reached[block]
            for following in successors[block]:
                if following in inside:
                    bits |= 1 << following | reached[following]
            if bits != reached[block]:
                reached[block], changed = bits, True
    return reached
