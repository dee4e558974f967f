"""Tests of the correctness gate: right results pass, wrong ones do not."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from autotune import gate
from autotune.gate import check, compare, scaled_down
from autotune.suites import names, suite
from tconv.cost.space import candidates
from tconv.families import FAMILIES, serves
from tconv.geometry import PASSES, ConvGeometry, Pass
from tconv.launch import Launch
from tconv.ops import conv_run
from tconv.problem import Layout, Problem
from tconv.target import TARGETS
from tconv.tile import Choice, Tile
from tests.interpreter_memory import unwatched

VGG = ConvGeometry(64, 256, 56, 56, 256, 3, 3, pad_h=1, pad_w=1)
C3 = ConvGeometry(64, 6, 14, 14, 16, 5, 5)
STRIDED = ConvGeometry(64, 48, 15, 13, 40, 3, 5, 2, 3, 1, 2, 1, 1, groups=4)
SHAPES = {"vgg": VGG, "c3": C3, "strided": STRIDED}
PASSING = Choice("implicit_gemm", Tile(64, 32, 16, splits=1))


@pytest.mark.interpreter
@pytest.mark.parametrize("direction", PASSES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_right_results_pass(shape: ConvGeometry, direction: Pass) -> None:
    problem = Problem(shape, direction)
    tiles = candidates(problem, TARGETS["sm_90"])
    verdict = check(problem, tiles[len(tiles) // 2])
    assert verdict.passed, verdict
    assert 0 < verdict.error < 1e-2


@pytest.mark.interpreter
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_other_dtypes(dtype: str) -> None:
    assert check(Problem(C3, "fprop", dtype), PASSING).passed


@pytest.mark.interpreter
@pytest.mark.parametrize("direction", PASSES)
def test_an_image_that_no_program_computed_fails(
    direction: Pass, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Launch._first_run

    def lazy(self: Launch, tensors: dict[str, torch.Tensor], device: torch.device) -> None:
        fewer = {"batch": self.scalars["batch"] - 1} if "batch" in self.scalars else {}
        grid = (self.grid[0] - 1, *self.grid[1:]) if direction == "wgrad" else self.grid
        plain(replace(self, grid=grid, scalars={**self.scalars, **fewer}), tensors, device)

    assert check(Problem(VGG, direction), PASSING).passed
    monkeypatch.setattr(Launch, "_first_run", lazy)
    with unwatched():
        verdict = check(Problem(VGG, direction), PASSING)
    assert not verdict.passed
    assert "values beyond" in verdict.detail


@pytest.mark.interpreter
def test_a_wrong_tap_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = conv_run.compute

    def wrong(problem: Problem, choice: Choice, **tensors: Any) -> torch.Tensor:
        tensors["w"] = tensors["w"].flip(3)
        return plain(problem, choice, **tensors)

    monkeypatch.setattr(conv_run, "compute", wrong)
    assert not check(Problem(VGG, "fprop"), PASSING).passed


def test_nan_and_one_wrong_value_fail() -> None:
    problem = Problem(C3, "fprop")
    wanted = torch.randn(2, 16, 10, 10, dtype=torch.float64)
    assert compare(wanted.half(), wanted, problem).passed
    for value in (float("nan"), float("inf"), 100.0):
        broken = wanted.half()
        broken[1, 3, 4, 5] = value
        assert not compare(broken, wanted, problem).passed


@pytest.mark.parametrize("direction", PASSES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_small_geometry_takes_the_same_branches(shape: ConvGeometry, direction: Pass) -> None:
    problem = Problem(shape, direction)
    for choice in candidates(problem, TARGETS["sm_90"])[::53]:
        tile = choice.tile
        posed, cut = scaled_down(problem, choice)
        small = posed.geometry
        small.validate()
        assert small.dropped == shape.dropped
        blocks = (tile.block_k, tile.block_n) if direction == "fprop" else (tile.block_n,)
        for block in blocks[:1]:
            if direction != "dgrad" or block == tile.block_n:
                left = shape.group_in_channels % block
                assert small.group_in_channels % block == left
        assert small.flops <= shape.flops
        assert cut.splits <= tile.splits
        assert replace(cut, splits=tile.splits) == tile


FEW_SUITES = ("lenet5", "alexnet", "depthwise", "grouped")


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("direction", PASSES)
@pytest.mark.parametrize(
    "suites", [FEW_SUITES, pytest.param(None, marks=pytest.mark.thorough)], ids=["few", "all"]
)
def test_the_small_geometry_is_served_by_the_family(
    suites: tuple[str, ...] | None, direction: Pass, layout: Layout
) -> None:
    """Every layer with every family; shrinking changes layers with narrow groups most."""
    target = TARGETS["sm_90"]
    seen: Counter[str] = Counter()
    for shape in {layer.geometry for name in suites or names() for layer in suite(name)}:
        problem = Problem(shape, direction, "float16", layout)
        for kind, family in FAMILIES.items():
            if family.unserved(problem, target) is not None:
                continue
            for tile in (Tile(16, 16, 16), Tile(128, 64, 32, splits=2)):
                posed, _ = scaled_down(problem, Choice(kind, tile))
                small = posed.geometry
                assert serves(kind, posed, target), (problem.key, kind, tile, posed.key)
                assert small.flops <= max(shape.flops, 1)
                assert small.flops < 1e9, (problem.key, kind, tile, posed.key)
                seen[kind] += 1
    assert len(seen) >= len(FAMILIES) - 2  # TMA does not serve strided gradients, ...


def test_scaled_down_groups_keep_strides_that_tma_allows() -> None:
    deep = Problem(ConvGeometry(64, 32, 14, 14, 32, 3, 3, pad_h=1, pad_w=1, groups=32), "wgrad")
    choice = Choice("implicit_gemm_tma", Tile(64, 16, 64))
    posed, _ = scaled_down(deep, choice)
    assert posed.geometry.groups == 8  # of one channel each: 16 bytes to the next pixel
    assert posed.geometry.flops < deep.geometry.flops / 100


@pytest.mark.device
@pytest.mark.parametrize("direction", PASSES)
def test_real_geometry_on_a_gpu(direction: Pass) -> None:
    assert gate.check_on_gpu(Problem(C3, direction), PASSING).passed
