"""Suites: the distinct convolution layers of known models."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from tconv.geometry import ConvGeometry

SUITES = ("lenet5", "vgg16")  # what a plain ``tune`` tunes
DEFAULT_BATCH = 64


class UnknownSuiteError(ValueError):
    """No suite of that name; the message lists those that exist."""


@dataclass(frozen=True)
class Layer:
    """One geometry of a suite, under the name of the first layer that has it."""

    suite: str
    name: str
    geometry: ConvGeometry
    repeats: int = 1  # layers of the model that share it


def names() -> tuple[str, ...]:
    """The suites that exist: every model whose input volume is known."""
    from tconv.models import BUILDERS

    return tuple(BUILDERS)


@lru_cache(maxsize=64)
def suite(name: str, batch: int = DEFAULT_BATCH) -> tuple[Layer, ...]:
    """The distinct layers of suite ``name``, in the model's order.

    >>> [layer.name for layer in suite("lenet5")]
    ['c1', 'c3', 'c5']
    """
    import torch

    from tconv.models import BUILDERS, INPUT_VOLUMES, conv_layers

    if name not in BUILDERS:
        raise UnknownSuiteError(f"no suite {name!r}; there are {', '.join(BUILDERS)}")
    with torch.device("meta"):
        model = BUILDERS[name]()
    found: dict[ConvGeometry, Layer] = {}
    for place, geometry in conv_layers(model, (batch, *INPUT_VOLUMES[name])):
        first = found.get(geometry, Layer(name, place, geometry, repeats=0))
        found[geometry] = replace(first, repeats=first.repeats + 1)
    return tuple(found.values())
