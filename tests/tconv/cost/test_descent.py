"""The choice for an untuned layer: near the best of the whole space, by the model's own account."""

from __future__ import annotations

import math

import pytest

from autotune.suites import suite
from tconv.cost.descent import cheapest, merit
from tconv.cost.space import broken_rule, candidates
from tconv.geometry import PASSES, ConvGeometry
from tconv.problem import Problem
from tconv.target import TARGETS

H200 = TARGETS["sm_90"]
LAYERS = {
    "lenet5": ("c1", "c3", "c5"),
    "vgg16": ("features.0", "features.24"),
    "resnet50": ("layer1.0.conv1",),
    "mobilenet_v2": ("features.1.conv.0.0", "features.5.conv.1.0"),
}


def test_a_descent_comes_near_the_best_of_the_space() -> None:
    """Of whole networks, computed once: 0.966 (LeNet-5), 1.022 (VGG-16), 1.011, 0.977."""
    shares = {}
    for network, layers in LAYERS.items():
        for layer in suite(network):
            for direction in PASSES if layer.name in layers else ():
                problem = Problem(layer.geometry, direction)
                best = min(merit(problem, each, H200) for each in candidates(problem, H200))
                found = merit(problem, cheapest(problem, H200), H200)
                shares[f"{network} {layer.name} {direction}"] = best[1] / found[1]
    assert len(shares) == 3 * sum(map(len, LAYERS.values()))
    assert min(shares.values()) > 0.7, shares
    assert math.exp(sum(map(math.log, shares.values())) / len(shares)) > 0.95, shares


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
