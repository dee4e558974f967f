"""The ConvNetJS demo's network for CIFAR-10, which learnt in a browser (Karpathy 2014)."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from tconv.models.registry import network
from tconv.modules import Conv2d, MaxPool2d


@network((3, 32, 32))
def convnetjs_cifar10(num_classes: int = 10) -> nn.Sequential:
    """Three convolutions 5x5, each with ReLU and a 2x2 max-pool, and one fully connected layer.

    From (batch, 3, 32, 32) to (batch, num_classes) scores. It was trained with Adadelta on images
    flipped and shifted by up to 2 pixels: ``--optimizer adadelta --augment`` of the trainer.

    >>> sum(parameter.numel() for parameter in convnetjs_cifar10().parameters())
    22466
    """
    layers: list[tuple[str, nn.Module]] = []
    in_channels = 3
    for number, filters in enumerate((16, 20, 20), start=1):
        layers += [
            (f"conv{number}", Conv2d(in_channels, filters, 5, padding=2)),
            (f"relu{number}", nn.ReLU()),
            (f"pool{number}", MaxPool2d(2)),
        ]
        in_channels = filters
    layers += [("flatten", nn.Flatten()), ("output", nn.Linear(20 * 4 * 4, num_classes))]
    return nn.Sequential(OrderedDict(layers))
