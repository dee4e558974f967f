"""Tests of the order in which lanes that parted ways are run."""

from __future__ import annotations

import pytest

from tconv.emulator.order import execution_order


@pytest.mark.parametrize(
    ("successors", "blocks"),
    [
        ([[1], [2], []], [0, 1, 2]),
        ([[2, 3], [], [1], [1]], [0, 2, 3, 1]),  # the branches meet in block 1
        ([[1], [2, 3], [1], []], [0, 1, 2, 3]),
        ([[1], [2, 3], [], [1]], [0, 1, 3, 2]),  # what follows the loop is written before its body
        ([[1], [2, 5], [3], [2, 4], [1], []], [0, 1, 2, 3, 4, 5]),  # a loop in a loop
        ([[2], [], [3], [3, 4], [2, 1]], [0, 2, 3, 4, 1]),
        ([[0, 1], []], [0, 1]),
    ],
    ids=["line", "join", "loop", "body last", "nested", "nested, end first", "itself"],
)
def test_a_block_comes_after_all_that_lead_to_it(
    successors: list[list[int]], blocks: list[int]
) -> None:
    order = execution_order(successors)
    assert sorted(range(len(order)), key=order.__getitem__) == blocks
