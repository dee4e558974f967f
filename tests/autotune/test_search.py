"""Tests of search over a problem's candidates with made-up times."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest

from autotune.search import SAME_SHAPE, explore, shortlist
from autotune.strategies import STRATEGIES
from autotune.suites import suite
from autotune.trial import Trial
from tconv.cost.model import predict
from tconv.cost.space import candidates
from tconv.geometry import PASSES, ConvGeometry, Pass
from tconv.problem import Problem
from tconv.select import heuristic
from tconv.target import TARGETS
from tconv.tile import Choice

H200 = TARGETS["sm_90"]
VGG = ConvGeometry(64, 256, 56, 56, 256, 3, 3, pad_h=1, pad_w=1)


@pytest.mark.parametrize("name", sorted(STRATEGIES))
@pytest.mark.parametrize("budget", [0, 1, 8])
def test_a_strategy_stays_within_its_budget_and_space(name: str, budget: int) -> None:
    problem = Problem(VGG, "fprop")
    tiles = candidates(problem, H200)
    tried: list[Choice] = []

    def evaluate(wanted: Sequence[Choice]) -> list[Trial]:
        tried.extend(wanted)
        return [
            Trial("sm_90", problem, choice.family, choice.tile, "predicted", "ok", 1.0)
            for choice in wanted
        ]

    trials = explore(name, problem, H200, tiles, evaluate, budget)
    assert [trial.choice for trial in trials] == tried
    assert len(tried) == len(set(tried)) == budget
    assert set(tried) <= {*tiles, heuristic(problem, H200)}


@pytest.mark.parametrize("direction", PASSES)
def test_the_heuristic_is_tried_and_shapes_differ(direction: Pass) -> None:
    problem = Problem(VGG, direction)
    tiles = candidates(problem, H200)
    chosen = shortlist(problem, H200, tiles, 8)
    assert len(chosen) == 8
    assert heuristic(problem, H200) in chosen
    shapes = Counter(
        (choice.family, choice.tile.block_m, choice.tile.block_n, choice.tile.block_k)
        for choice in chosen[1:]
    )
    assert max(shapes.values()) <= SAME_SHAPE
    best = min(predict(problem, choice, H200).milliseconds for choice in chosen)
    middle = predict(problem, tiles[len(tiles) // 2], H200).milliseconds
    assert best <= middle


def test_every_family_near_the_best_is_tried() -> None:
    """Otherwise a family that the model underrates would never be measured."""
    (layer,) = (each for each in suite("mobilenet_v2") if each.name == "features.12.conv.0.0")
    problem = Problem(layer.geometry, "wgrad")
    found = candidates(problem, H200)
    chosen = shortlist(problem, H200, found, 16)
    assert {choice.family for choice in chosen[:8]} >= {"implicit_gemm", "implicit_gemm_tma"}
    quickest = min(predict(problem, choice, H200).milliseconds for choice in found)
    assert min(predict(problem, choice, H200).milliseconds for choice in chosen) <= quickest * 1.01
