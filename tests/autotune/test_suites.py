"""Tests of the suites, which hold each distinct layer once."""

from __future__ import annotations

import pytest

from autotune import suites
from autotune.suites import suite


def test_lenet5_has_the_lectures_volumes() -> None:
    found = [(layer.name, layer.geometry.output_volume) for layer in suite("lenet5")]
    assert found == [("c1", "6x28x28"), ("c3", "16x10x10"), ("c5", "120x1x1")]


def test_vgg16_counts_its_repeats() -> None:
    found = suite("vgg16", 2)
    assert len(found) == 9
    assert sum(layer.repeats for layer in found) == 13
    assert {layer.geometry.batch for layer in found} == {2}
    assert (found[0].name, found[0].geometry.input_volume) == ("features.0", "3x224x224")


def test_unknown_suite_lists_those_that_exist() -> None:
    with pytest.raises(suites.UnknownSuiteError, match=r"lenet5, .*vgg16"):
        suite("lenet6")


@pytest.mark.parametrize("name", ["unet", "audio"])
def test_transposed_layers_are_gradients_of_convolutions_without_dropped_borders(name: str) -> None:
    found = suite(name, 1)
    for layer in found:
        layer.geometry.validate()
    transposed = [layer.geometry for layer in found if "transposed" in layer.name]
    assert transposed
    assert {shape.dropped for shape in transposed} == {(0, 0)}
    assert all(shape.out_w * shape.stride_w == shape.in_w for shape in transposed)
    assert {layer.geometry.in_h for layer in found} == {1} or name == "unet"
    assert not suites.pools(name)
