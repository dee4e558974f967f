"""Legal tiles, and nothing that would only fail at launch."""

from __future__ import annotations

import math

import pytest

from tconv.cost.estimate import estimated_resources
from tconv.cost.space import (
    broken_rule,
    candidates,
    rules_report,
    shared_bytes,
)
from tconv.families import FAMILIES, matmul_shape
from tconv.families.demand import accumulator_registers
from tconv.geometry import PASSES, ConvGeometry, Pass
from tconv.problem import Problem
from tconv.target import TARGETS
from tconv.tile import Choice, Tile

H200 = TARGETS["sm_90"]
VGG = ConvGeometry(64, 256, 56, 56, 256, 3, 3, pad_h=1, pad_w=1)
C1 = ConvGeometry(64, 1, 32, 32, 6, 5, 5)
RGB = ConvGeometry(32, 3, 64, 64, 64, 7, 7, 2, 2, 3, 3)
STRIDED = ConvGeometry(8, 48, 15, 13, 40, 3, 5, 2, 3, 1, 2, 1, 1, groups=4)


def general(*tile: int) -> Choice:
    return Choice("implicit_gemm", Tile(*tile))


# (M, N, K, stages, warps) that are known to be worth having.
WORTH_HAVING = [
    (128, 128, 64, 3, 8),
    (64, 128, 64, 4, 4),
    (128, 64, 64, 4, 4),
    (256, 128, 64, 2, 8),
    (128, 256, 64, 2, 8),
    (128, 128, 128, 2, 8),
    (64, 256, 32, 2, 4),
    (256, 64, 32, 4, 4),
]


@pytest.mark.parametrize("tile", WORTH_HAVING, ids=str)
def test_tiles_worth_having_are_in_the_space(tile: tuple[int, ...]) -> None:
    assert general(*tile) in candidates(Problem(VGG, "fprop"), H200)


def test_the_tall_tile_serves_few_filters() -> None:
    few = ConvGeometry(64, 16, 64, 64, 16, 3, 3, pad_h=1, pad_w=1)
    assert general(1024, 16, 16, 1, 8) in candidates(Problem(few, "fprop"), H200)


@pytest.mark.parametrize(
    ("tile", "rule"),
    [
        (Tile(128, 128, 8), "dot extents"),
        (Tile(128, 512, 64), "within the geometry"),
        (Tile(16, 16, 64, warps=8), "threads"),
        (Tile(256, 256, 64, stages=2, warps=4), "accumulator registers"),
        (Tile(256, 128, 128, stages=3, warps=8), "shared memory"),
        (Tile(128, 128, 64, splits=2), None),
    ],
    ids=str,
)
def test_the_rule_that_is_broken_is_named(tile: Tile, rule: str | None) -> None:
    problem = Problem(VGG, "wgrad" if tile.splits > 1 else "fprop")
    assert broken_rule(Choice("implicit_gemm", tile), problem, H200) == rule


def test_shared_memory_is_that_of_the_compiled_kernel() -> None:
    assert (
        shared_bytes(Problem(VGG, "fprop"), FAMILIES["implicit_gemm"], Tile(128, 128, 64, 3), H200)
        == 98304
    )


@pytest.mark.parametrize("direction", PASSES)
@pytest.mark.parametrize("shape", [VGG, C1, RGB, STRIDED], ids=["vgg", "c1", "rgb", "strided"])
@pytest.mark.parametrize("name", ["sm_80", "sm_90", "gfx942"])
def test_every_candidate_keeps_the_limits(name: str, shape: ConvGeometry, direction: Pass) -> None:
    target, problem = TARGETS[name], Problem(shape, direction)
    found = candidates(problem, target)
    assert found
    for choice in found:
        tile = choice.tile
        assert (
            shared_bytes(problem, FAMILIES[choice.family], choice.tile, target)
            <= target.shared_per_program
        )
        assert tile.warps * target.warp_size <= 1024
        sums = FAMILIES[choice.family].sums(problem, tile)
        assert accumulator_registers(problem, tile, target, sums) <= 512
        assert broken_rule(choice, problem, target) is None


@pytest.mark.parametrize("shape", [VGG, C1, RGB, STRIDED], ids=["vgg", "c1", "rgb", "strided"])
def test_no_split_of_a_reduction_is_empty(shape: ConvGeometry) -> None:
    problem = Problem(shape, "wgrad")
    for choice in candidates(problem, H200):
        plan = FAMILIES[choice.family].plan(problem, choice.tile, H200)
        assert plan.launches[plan.product].grid[-1] == choice.tile.splits


@pytest.mark.parametrize("direction", PASSES)
@pytest.mark.parametrize("shape", [VGG, C1, RGB, STRIDED], ids=["vgg", "c1", "rgb", "strided"])
def test_programs_are_those_of_the_launch(shape: ConvGeometry, direction: Pass) -> None:
    problem = Problem(shape, direction)
    for choice in candidates(problem, H200)[::97]:
        plan = FAMILIES[choice.family].plan(problem, choice.tile, H200)
        programs = math.prod(plan.launches[plan.product].grid)
        counted = matmul_shape(problem, choice.family).programs(choice.tile)
        if choice.tile.persistent:
            assert programs <= choice.tile.persistent * H200.processors < counted
        else:
            assert programs == counted


def test_the_report_ends_with_the_candidates() -> None:
    problem = Problem(VGG, "dgrad")
    counts = [count for _, count in rules_report(problem, H200)]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == len(candidates(problem, H200))


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("direction", PASSES)
def test_a_reduction_of_one_step_has_candidates(batch: int, direction: Pass) -> None:
    """LeNet-5's C5: wgrad's reduction is as long as the batch, the pipeline at least two deep."""
    problem = Problem(ConvGeometry(batch, 16, 5, 5, 120, 5, 5), direction)
    assert candidates(problem, TARGETS["sm_90"])


def test_three_products_hold_the_small_parts_of_a_steps_boxes() -> None:
    """The emulator refused the model's choice: Triton 3.7 compiles this tile to 245,784 bytes."""
    problem = Problem.of(ConvGeometry(8, 256, 14, 14, 512, 1, 1), "fprop", "tf32x3")
    choice = Choice("implicit_gemm_tma", Tile(128, 64, 64, stages=4, warps=8))
    assert estimated_resources(choice, problem, TARGETS["sm_90"]).shared_bytes == 245_824
    assert broken_rule(choice, problem, TARGETS["sm_90"]) == "shared memory"


@pytest.mark.parametrize(
    ("layer", "direction", "arithmetic", "family", "tile", "compiled"),
    [
        ("n16c512h14w14-k512f3x3-s1x1-p1x1-d1x1-g1", "fprop", "tf32x3", "implicit_gemm_tma",
         "256x64x16 s6 w8 g4 k1", 200_744),
        ("n16c64h56w56-k128f3x3-s2x2-p1x1-d1x1-g1", "wgrad", "float16", "implicit_gemm",
         "128x128x64 s4 w4 g8 k4", 131_072),
    ],
    ids=["small parts beside a stored box", "wide loads of a tile that spans taps"],
)  # fmt: skip
def test_shared_memory_is_not_estimated_below_what_triton_compiles(
    layer: str, direction: Pass, arithmetic: str, family: str, tile: str, compiled: int
) -> None:
    """Triton 3.7 compiles these tiles to ``compiled`` bytes on sm_90."""
    problem = Problem.of(ConvGeometry.from_key(layer), direction, arithmetic)
    choice = Choice(family, Tile.parse(tile))
    found = estimated_resources(choice, problem, TARGETS["sm_90"]).shared_bytes
    assert compiled <= found <= 1.1 * compiled
