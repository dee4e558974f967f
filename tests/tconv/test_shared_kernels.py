"""Sizes of one layer share kernels, and a tuned winner serves its neighbours."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tconv.cost.cheapest import cheapest, cheapest_beside
from tconv.cost.model import predict_all
from tconv.cost.space import broken_rule
from tconv.geometry import ConvGeometry
from tconv.problem import Problem
from tconv.select import choose, forget
from tconv.shared_kernels import (
    FORGONE,
    TOLERATED,
    UNSERVED,
    _fastest,
    _lasting,
    _resized,
    identity,
    size_of,
)
from tconv.target import TARGETS
from tconv.tile import Tile
from tconv.winners import Winner, user_table, write_table

H200 = TARGETS["sm_90"]
LAYER = ConvGeometry(1, 256, 40, 40, 512, 1, 1)


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TCONV_HOME", str(tmp_path))
    forget()
    yield
    forget()


def at(size: int, batch: int = 1, layer: ConvGeometry = LAYER) -> Problem:
    return Problem(replace(layer, batch=batch, in_h=size, in_w=size), "fprop")


def test_neighbours_share_a_kernel_and_say_whose_it_is() -> None:
    first = choose(at(40), H200)
    assert first == cheapest(at(40), H200)
    assert not first.at
    for size in (41, 39, 43):
        other = choose(at(size), H200)
        assert identity(at(size), other, H200) == identity(at(40), first, H200)
        assert other.at == "40x40, batch 1"
        assert broken_rule(other, at(size), H200) is None


def test_few_kernels_serve_a_range_of_sizes_and_lose_little() -> None:
    problems = [at(size, batch) for batch in (1, 4) for size in range(20, 84, 9)]
    chosen = [choose(problem, H200) for problem in problems]
    alone = [cheapest(problem, H200) for problem in problems]
    kernels = {identity(*each, H200) for each in zip(problems, chosen, strict=True)}
    assert len(kernels) < len({identity(*each, H200) for each in zip(problems, alone, strict=True)})
    for problem, mine, best in zip(problems, chosen, alone, strict=True):
        time, least = predict_all(problem, [mine, best], H200)
        assert time < (1 + 3 * TOLERATED) * least, (problem.key, mine, best)


def test_a_size_far_away_is_considered_anew() -> None:
    choose(at(8), H200)
    large = at(256)
    time, least = predict_all(large, [choose(large, H200), cheapest(large, H200)], H200)
    assert time <= (1 + TOLERATED) * least


def test_a_further_kernel_is_the_one_that_loses_least_over_more_sizes() -> None:
    """A layer of ResNet-50, whose best kernel at a size may serve others badly."""
    layer = ConvGeometry(1, 128, 90, 90, 128, 3, 3, 2, 2, 1, 1)
    differ = 0
    for size in range(80, 161, 8):
        problem = at(size, 1, layer)
        best = cheapest_beside((), problem, H200)
        lasting = _lasting(problem, best, H200)
        (here,) = predict_all(problem, [lasting], H200)
        assert here <= (1 + FORGONE) * best.milliseconds
        kernels = [identity(problem, choice, H200) for choice in (lasting, best.choice)]
        if kernels[0] == kernels[1]:
            continue
        differ += 1
        lost = [0.0, 0.0]
        for other in (problem, *_resized(problem)):
            least = cheapest_beside((), other, H200).milliseconds
            for place, choice in enumerate((lasting, best.choice)):
                there = _fastest(choice, kernels[place], other, H200)
                lost[place] += UNSERVED if there is None else math.log(there.milliseconds / least)
        assert lost[0] < lost[1]
    assert differ


def test_sizes_that_the_filter_does_not_fit_into_are_left_out() -> None:
    layer = ConvGeometry(1, 8, 5, 7, 8, 5, 5)
    (larger,) = _resized(Problem(layer, "fprop"))
    assert (larger.geometry.in_h, larger.geometry.in_w) == (7, 10)


def test_what_was_chosen_is_forgotten() -> None:
    choose(at(40), H200)
    forget()
    assert not choose(at(44), H200).at


@pytest.mark.parametrize(("size", "found"), [(256, True), (200, True), (1024, False)])
def test_a_tuned_winner_serves_neighbouring_sizes(size: int, found: bool) -> None:
    layer = replace(LAYER, in_channels=64, out_channels=64)
    tile = Tile(128, 64, 32, stages=2, warps=4)
    winner = Winner("implicit_gemm", tile, "measured", 1.0)
    far = Winner("implicit_gemm", replace(tile, block_m=64), "measured", 1.0)
    table = {at(224, 1, layer).key: winner, at(120, 1, layer).key: far}
    write_table(user_table(H200.name), H200.name, table)
    choice = choose(at(size, 1, layer), H200)
    assert (choice.tile == tile and choice.ground == "tuned") == found
    assert choice.at == (size_of(at(224)) if found else "")
    assert not choose(at(224, 1, layer), H200).at  # its own
