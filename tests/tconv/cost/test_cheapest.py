"""The choice for an untuned layer: near the best of the whole space, by the model's own account."""

from __future__ import annotations

import math

import pytest

from autotune.suites import suite
from tconv.cost.cheapest import burden_allows, cheapest, merits
from tconv.cost.space import RULES, all_tiles, broken_rule, case_of, legal_tiles
from tconv.families import serving
from tconv.geometry import PASSES, ConvGeometry
from tconv.problem import Layout, Problem
from tconv.target import TARGETS
from tconv.tile import FIELDS, Choice

H200 = TARGETS["sm_90"]
LAYERS = {
    "lenet5": ("c1", "c3", "c5"),
    "vgg16": ("features.0", "features.24"),
    "resnet50": ("layer1.0.conv1",),
    "mobilenet_v2": ("features.1.conv.0.0", "features.5.conv.1.0"),
}


@pytest.mark.parametrize("name", ["sm_80", "sm_90"])
def test_the_choice_is_near_the_best_of_the_space(name: str) -> None:
    """Of the tiles that are known not to spill, by the model's own account."""
    target, shares = TARGETS[name], {}
    for network, layers in LAYERS.items():
        for layer in suite(network):
            for direction in PASSES if layer.name in layers else ():
                problem = Problem(layer.geometry, direction)
                allowed = []
                for family in serving(problem, target):
                    case = case_of(problem, family, target)
                    tiles = all_tiles(family.axes(problem))
                    for _, allows in RULES:
                        tiles = tiles.take(allows(tiles, case))
                    thumb = family.heuristic(problem, target)
                    tiles = tiles.take(burden_allows(tiles, thumb, case))
                    allowed += [Choice(family.name, tiles.tile(n)) for n in range(len(tiles))]
                best = min(merits(problem, allowed, target))
                found = merits(problem, [cheapest(problem, target)], target)[0]
                shares[f"{network} {layer.name} {direction}"] = best[1] / found[1]
    assert len(shares) == 3 * sum(map(len, LAYERS.values()))
    assert min(shares.values()) > 0.98, shares
    assert math.exp(sum(map(math.log, shares.values())) / len(shares)) > 0.995, shares


ODD = ConvGeometry(3, 6, 13, 11, 9, 3, 2, 2, 1, 1, 0, 1, 2, groups=3)


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("name", ["sm_80", "sm_90", "gfx942"])
def test_the_legal_space_is_what_the_rules_leave(name: str, layout: Layout) -> None:
    """Filtering blocks first, and shares of their work after, leaves the same tiles."""
    for layer in [*suite("resnet50")[:2], *suite("mobilenet_v2")[1:2], *suite("grouped")[:1]]:
        for geometry in (layer.geometry, ODD):
            for direction in PASSES:
                problem = Problem(geometry, direction, "float16", layout)
                for family in serving(problem, TARGETS[name]):
                    case = case_of(problem, family, TARGETS[name])
                    tiles = all_tiles(family.axes(problem))
                    for _, allows in RULES:
                        tiles = tiles.take(allows(tiles, case))
                    found = legal_tiles(case)
                    for field in FIELDS:
                        assert (getattr(found, field) == getattr(tiles, field)).all()


@pytest.mark.parametrize("name", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_what_is_chosen_keeps_the_rules(name: str) -> None:
    target = TARGETS[name]
    for layer in [*suite("lenet5"), *suite("mobilenet_v2")[:6]]:
        for direction in PASSES:
            problem = Problem(layer.geometry, direction)
            assert broken_rule(cheapest(problem, target), problem, target) is None


def test_a_layer_of_one_pixel_finds_a_choice() -> None:
    problem = Problem(ConvGeometry(1, 1, 1, 1, 1, 1, 1), "wgrad")
    assert cheapest(problem, H200) == cheapest(problem, H200)
