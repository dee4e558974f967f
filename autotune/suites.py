"""Suites: the distinct convolution layers of known models, and of some kinds of layers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from tconv.geometry import ConvGeometry, PoolGeometry

SUITES = ("lenet5", "vgg16")  # what ``tune`` tunes by default
DEFAULT_BATCH = 64


class UnknownSuiteError(ValueError):
    """No suite has the given name; the message lists the existing ones."""


@dataclass(frozen=True)
class Layer:
    """One geometry of a suite, named after the first layer that has it."""

    suite: str
    name: str
    geometry: ConvGeometry
    repeats: int = 1  # number of the model's layers with this geometry
    pooled: bool = False  # whether a 2x2 pool follows one of them


@dataclass(frozen=True)
class PoolLayer:
    """One max-pool of a suite, named after the first layer that has it."""

    suite: str
    name: str
    geometry: PoolGeometry


# Layers by kind rather than by model: (name, input volume, K, F, S, P, groups).
KINDS: dict[str, tuple[tuple[str, str, int, int, int, int, int], ...]] = {
    # Depthwise: each filter size on a large image and on a small one with many channels.
    "depthwise": (
        ("3x3 wide", "128x56x56", 128, 3, 1, 1, 128),
        ("3x3 deep", "512x14x14", 512, 3, 1, 1, 512),
        ("3x3 stride 2", "128x56x56", 128, 3, 2, 1, 128),
        ("5x5 wide", "128x56x56", 128, 5, 1, 2, 128),
        ("5x5 deep", "512x14x14", 512, 5, 1, 2, 512),
        ("7x7 wide", "128x56x56", 128, 7, 1, 3, 128),
        ("7x7 deep", "512x14x14", 512, 7, 1, 3, 512),
    ),
    # The 3x3 layers of ResNeXt-50 32x4d, and AlexNet's layers that were split over two GPUs.
    "grouped": (
        ("resnext layer1", "128x56x56", 128, 3, 1, 1, 32),
        ("resnext layer2.0", "256x56x56", 256, 3, 2, 1, 32),
        ("resnext layer2", "256x28x28", 256, 3, 1, 1, 32),
        ("resnext layer3", "512x14x14", 512, 3, 1, 1, 32),
        ("resnext layer4", "1024x7x7", 1024, 3, 1, 1, 32),
        ("alexnet conv2", "96x27x27", 256, 5, 1, 2, 2),
        ("alexnet conv4", "384x13x13", 384, 3, 1, 1, 2),
        ("alexnet conv5", "384x13x13", 256, 3, 1, 1, 2),
    ),
}


def names() -> tuple[str, ...]:
    """Return all suites: the models with a known input volume, and the kinds of layers."""
    from tconv.models import BUILDERS

    return (*BUILDERS, *KINDS)


@lru_cache(maxsize=64)
def suite(name: str, batch: int = DEFAULT_BATCH) -> tuple[Layer, ...]:
    """Return the distinct layers of suite ``name``, in the model's order.

    >>> [layer.name for layer in suite("lenet5")]
    ['c1', 'c3', 'c5']
    """
    if name in KINDS:
        return tuple(
            Layer(name, layer, ConvGeometry.from_lecture(volume, k, f, s, p, batch, groups=groups))
            for layer, volume, k, f, s, p, groups in KINDS[name]
        )
    found: dict[ConvGeometry, Layer] = {}
    calls = _calls(name, batch)
    for (place, geometry), (_, after) in zip(calls, [*calls[1:], ("", None)], strict=True):
        if isinstance(geometry, ConvGeometry):
            first = found.get(geometry, Layer(name, place, geometry, repeats=0))
            pooled = first.pooled or (isinstance(after, PoolGeometry) and _halves(after))
            found[geometry] = replace(first, repeats=first.repeats + 1, pooled=pooled)
    return tuple(found.values())


@lru_cache(maxsize=64)
def pools(name: str, batch: int = DEFAULT_BATCH) -> tuple[PoolLayer, ...]:
    """Return the distinct max-pools of model ``name`` in order; kinds of layers have none.

    >>> [pool.geometry.window_h for pool in pools("resnet50")]
    [3]
    """
    if name in KINDS:
        return ()
    found: dict[PoolGeometry, PoolLayer] = {}
    for place, geometry in _calls(name, batch):
        if isinstance(geometry, PoolGeometry):
            found.setdefault(geometry, PoolLayer(name, place, geometry))
    return tuple(found.values())


def _halves(pool: PoolGeometry) -> bool:
    """True if a convolution's kernel can compute this pool as well: 2x2 at stride 2."""
    window = (pool.window_h, pool.window_w, pool.stride_h, pool.stride_w)
    return window == (2, 2, 2, 2) and (pool.pad_h, pool.pad_w) == (0, 0)


def _calls(name: str, batch: int) -> list[tuple[str, ConvGeometry | PoolGeometry]]:
    """Return the convolutions and pools of a model, in order."""
    import torch

    from tconv.models import BUILDERS, INPUT_VOLUMES, traced

    if name not in BUILDERS:
        raise UnknownSuiteError(f"no suite {name!r}; there are {', '.join(names())}")
    with torch.device("meta"):
        model = BUILDERS[name]()
    return traced(model, (batch, *INPUT_VOLUMES[name]))
