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
    # U-Net with the widths of Ronneberger et al., on images of 256x256. A transposed layer is the
    # convolution whose input gradient it computes: its forward pass is dgrad, on y as the input.
    "unet": (
        ("down1.0", "3x256x256", 64, 3, 1, 1, 1),
        ("down1.1", "64x256x256", 64, 3, 1, 1, 1),
        ("down2.0", "64x128x128", 128, 3, 1, 1, 1),
        ("down2.1", "128x128x128", 128, 3, 1, 1, 1),
        ("down3.0", "128x64x64", 256, 3, 1, 1, 1),
        ("down3.1", "256x64x64", 256, 3, 1, 1, 1),
        ("down4.0", "256x32x32", 512, 3, 1, 1, 1),
        ("down4.1", "512x32x32", 512, 3, 1, 1, 1),
        ("bottom.0", "512x16x16", 1024, 3, 1, 1, 1),
        ("bottom.1", "1024x16x16", 1024, 3, 1, 1, 1),
        ("up1 transposed", "512x32x32", 1024, 2, 2, 0, 1),
        ("joined1.0", "1024x32x32", 512, 3, 1, 1, 1),
        ("up2 transposed", "256x64x64", 512, 2, 2, 0, 1),
        ("joined2.0", "512x64x64", 256, 3, 1, 1, 1),
        ("up3 transposed", "128x128x128", 256, 2, 2, 0, 1),
        ("joined3.0", "256x128x128", 128, 3, 1, 1, 1),
        ("up4 transposed", "64x256x256", 128, 2, 2, 0, 1),
        ("joined4.0", "128x256x256", 64, 3, 1, 1, 1),
        ("head", "64x256x256", 2, 1, 1, 0, 1),
    ),
}

# Layers of sequences: (name, channels, length, K, F, S, P, dilation, groups). A causal layer's
# length includes the zeros on its left.
SEQUENCES: dict[str, tuple[tuple[str, int, int, int, int, int, int, int, int], ...]] = {
    # A second of sound at 16 kHz: the encoder of wav2vec 2.0, a causal layer of WaveNet, and the
    # transposed layers of HiFi-GAN that widen 100 frames.
    "audio": (
        ("wav2vec conv0", 1, 16000, 512, 10, 5, 0, 1, 1),
        ("wav2vec conv1", 512, 3199, 512, 3, 2, 0, 1, 1),
        ("wav2vec conv4", 512, 399, 512, 3, 2, 0, 1, 1),
        ("wav2vec conv6", 512, 99, 512, 2, 2, 0, 1, 1),
        ("wav2vec positions", 768, 49, 768, 128, 1, 64, 1, 16),
        ("wavenet dilation 1", 64, 16001, 128, 2, 1, 0, 1, 1),
        ("wavenet dilation 512", 64, 16512, 128, 2, 1, 0, 512, 1),
        ("hifigan up1 transposed", 256, 800, 512, 16, 8, 4, 1, 1),
        ("hifigan up4 transposed", 32, 25600, 64, 4, 2, 1, 1, 1),
        ("hifigan resblock", 128, 6400, 128, 11, 1, 25, 5, 1),
    ),
}


def names() -> tuple[str, ...]:
    """Return all suites: the models with a known input volume, and the kinds of layers."""
    from tconv.models import BUILDERS

    return (*BUILDERS, *KINDS, *SEQUENCES)


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
    if name in SEQUENCES:
        return tuple(
            Layer(name, layer, _sequence_layer(batch, *numbers))
            for layer, *numbers in SEQUENCES[name]
        )
    found: dict[ConvGeometry, Layer] = {}
    calls = _calls(name, batch)
    for (place, geometry), (_, after) in zip(calls, [*calls[1:], ("", None)], strict=True):
        if isinstance(geometry, ConvGeometry):
            first = found.get(geometry, Layer(name, place, geometry, repeats=0))
            pooled = first.pooled or (isinstance(after, PoolGeometry) and _fusible(after))
            found[geometry] = replace(first, repeats=first.repeats + 1, pooled=pooled)
    return tuple(found.values())


@lru_cache(maxsize=64)
def pools(name: str, batch: int = DEFAULT_BATCH) -> tuple[PoolLayer, ...]:
    """Return the distinct max-pools of model ``name`` in order; kinds of layers have none.

    >>> [pool.geometry.window_h for pool in pools("resnet50")]
    [3]
    """
    if name in KINDS or name in SEQUENCES:
        return ()
    found: dict[PoolGeometry, PoolLayer] = {}
    for place, geometry in _calls(name, batch):
        if isinstance(geometry, PoolGeometry):
            found.setdefault(geometry, PoolLayer(name, place, geometry))
    return tuple(found.values())


def _sequence_layer(
    batch: int, channels: int, length: int, filters: int, extent: int, stride: int, pad: int,
    dilation: int, groups: int,
) -> ConvGeometry:  # fmt: skip
    """Return a layer of sequences as the kernels compute it: on images of one row."""
    window = (1, stride, 0, pad, 1, dilation)
    return ConvGeometry(batch, channels, 1, length, filters, 1, extent, *window, groups)


def _fusible(pool: PoolGeometry) -> bool:
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
