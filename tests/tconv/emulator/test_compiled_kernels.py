"""Tests of common Triton kernels on both targets, with late and early asynchronous copies."""

from __future__ import annotations

from typing import Any

import pytest

from tests.tconv.emulator.launches import MOST_ERROR, RUN, Launched

CASES = [f"{name} sm_{sm}" for sm in (80, 90) for name in RUN if sm == 90 or name != "matmul_boxes"]


@pytest.mark.parametrize("case", CASES)
def test_values(case: str, compiled: dict[str, dict[str, Any]]) -> None:
    name = case.split()[0]
    for copies in ("late", "early") if name.startswith("matmul") else ("late",):
        launch = Launched(compiled[case], copies=copies)
        assert RUN[name](launch) <= MOST_ERROR[name]
        assert launch.counters.instructions


def test_counts_of_a_matmul(compiled: dict[str, dict[str, Any]]) -> None:
    """FLOPs and TMA bytes follow from the sizes."""
    launch = Launched(compiled["matmul_boxes sm_90"])
    RUN["matmul_boxes"](launch)
    counts = launch.counters.as_dict()
    blocks, steps, box = 2, 5, 64 * 64 * 2
    assert counts["matrix_flops"] == 2 * 128 * 64 * 320
    assert counts["tma_load_bytes"] == blocks * steps * 2 * box
    assert counts["tma_store_bytes"] == blocks * box
    assert counts["instructions_by_opcode"]["ret"] == blocks * 4
    assert counts["blocks"] == blocks
    assert counts["warps"] == blocks * 4
