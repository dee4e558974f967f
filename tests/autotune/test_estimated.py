"""Tests that the cost model's counts stay near what the emulated GPU executes."""

from __future__ import annotations

import pytest

from autotune.counted import WARP
from autotune.emulate import emulate
from autotune.estimated import Row, count
from benchmarks.counts import CASES
from tconv.cost.work import work_of
from tconv.families import FAMILIES
from tconv.geometry import PASSES, ConvGeometry
from tconv.problem import Problem
from tconv.target import TARGETS
from tconv.tile import Choice, Tile, Tiles

# Executed / estimated warp instructions. The executed ones are those of the PTX, with the prologue
# and stores that the estimate leaves out: a large part of what these short programs execute.
BOUNDS = {
    "fprop implicit_gemm": (1.1, 1.4),
    "fprop grouped": (1.4, 2.0),
    "fprop depthwise": (1.4, 2.0),
    "wgrad depthwise": (1.0, 1.4),
    "wgrad direct": (1.1, 1.5),
    "wgrad implicit_gemm": (1.6, 2.1),
    "fprop few_channels": (1.0, 1.4),
}
BYTES = (0.85, 1.1)  # executed / estimated; the border and masked pixels lie between
BYTES_OF = {
    "fprop grouped": (1.3, 1.5),  # reads neighbouring groups' channels with its own
    "wgrad depthwise": (1.5, 1.9),  # asks for a line of x for each line of the filter: L1 has it
}


@pytest.fixture(scope="module")
def rows() -> dict[str, Row]:
    wanted = {
        f"{problem.direction} {choice.family}": (problem, choice) for problem, choice in CASES
    }
    return dict(zip(BOUNDS, count([wanted[name] for name in BOUNDS], TARGETS["sm_90"]),
                    strict=True))  # fmt: skip


@pytest.mark.parametrize("name", BOUNDS)
def test_instructions_and_bytes_are_near_the_estimates(name: str, rows: dict[str, Row]) -> None:
    least, most = BOUNDS[name]
    assert least <= rows[name].instruction_ratio <= most
    least, most = BYTES_OF.get(name, BYTES)
    assert least <= rows[name].byte_ratio <= most


def test_the_model_orders_two_families_as_their_executed_counts(rows: dict[str, Row]) -> None:
    """LeNet-5's C3: direct sums issue several times the instructions of the matrix product."""
    direct, product = rows["wgrad direct"], rows["wgrad implicit_gemm"]
    assert direct.problem == product.problem
    assert direct.instructions > 4 * product.instructions
    assert direct.estimated_instructions > 4 * product.estimated_instructions


def test_the_benchmark_covers_every_family_and_its_passes() -> None:
    covered = {(choice.family, problem.direction) for problem, choice in CASES}
    target = TARGETS["sm_90"]
    for problem, choice in CASES:
        assert FAMILIES[choice.family].unserved(problem, target) is None
    assert {family for family, _ in covered} == set(FAMILIES)
    missing = {(family, each) for family in FAMILIES for each in PASSES} - covered
    assert missing == {("few_channels", "dgrad")}  # which that family does not serve


def test_only_a_forward_pass_in_float32_has_filters_that_share_banks() -> None:
    """Its wavefronts are those of the estimated conflicting reads, 16 threads to a bank."""
    target, choice = TARGETS["sm_80"], Choice("implicit_gemm", Tile(64, 64, 32, 3, 4))
    shape = ConvGeometry(1, 64, 8, 8, 64, 1, 1)
    problems = [Problem(shape, direction, "float32") for direction in PASSES]
    for found in emulate([(problem, choice) for problem in problems], target):
        assert found.verdict.passed, found.verdict
        assert found.verdict.counters is not None
        work = work_of(found.problem, FAMILIES[choice.family], Tiles.of([choice.tile]), target)
        reads = float((work.conflicting_reads * work.steps * work.programs)[0])
        wavefronts = found.verdict.counters["shared_load_wavefronts"]
        if found.problem.direction == "fprop":
            assert 14 < wavefronts / reads < 18
        else:
            assert reads == 0
            assert wavefronts < 0.6 * shape.flops / (2 * WARP)  # of the multiply-adds
