"""The ranked strategy, on a space whose times are made up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest

from autotune.model import predict
from autotune.search import SAME_SHAPE, STRATEGIES, shortlist
from autotune.space import candidates
from autotune.trial import Trial
from tconv.geometry import PASSES, ConvGeometry, Pass
from tconv.problem import Problem
from tconv.select import heuristic
from tconv.target import TARGETS
from tconv.tile import Tile

H200 = TARGETS["sm_90"]
VGG = ConvGeometry(64, 256, 56, 56, 256, 3, 3, pad_h=1, pad_w=1)


@pytest.mark.parametrize("name", sorted(STRATEGIES))
@pytest.mark.parametrize("budget", [0, 1, 8, 10_000])
def test_a_strategy_stays_within_its_budget_and_space(name: str, budget: int) -> None:
    problem = Problem(VGG, "fprop")
    tiles = candidates(problem, H200)
    tried: list[Tile] = []

    def evaluate(wanted: Sequence[Tile]) -> list[Trial]:
        tried.extend(wanted)
        return [
            Trial("sm_90", problem, "implicit_gemm", tile, "predicted", "ok", 1.0)
            for tile in wanted
        ]

    trials = STRATEGIES[name](problem, H200, tiles, evaluate, budget)
    assert [trial.tile for trial in trials] == tried
    assert len(tried) == len(set(tried)) <= budget
    assert set(tried) <= {*tiles, heuristic(problem, H200).tile}


@pytest.mark.parametrize("direction", PASSES)
def test_the_rule_of_thumb_is_tried_and_shapes_differ(direction: Pass) -> None:
    problem = Problem(VGG, direction)
    tiles = candidates(problem, H200)
    chosen = shortlist(problem, H200, tiles, 8)
    assert len(chosen) == 8
    assert heuristic(problem, H200).tile in chosen
    shapes = Counter((tile.block_m, tile.block_n, tile.block_k) for tile in chosen[1:])
    assert max(shapes.values()) <= SAME_SHAPE
    best = min(predict(problem, tile, H200).milliseconds for tile in chosen)
    middle = predict(problem, tiles[len(tiles) // 2], H200).milliseconds
    assert best <= middle
