"""LeNet-5 as it is built today: max-pool, ReLU, and a C3 that sees all six maps."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from tconv.modules import Conv2d, MaxPool2d


def lenet5(num_classes: int = 10) -> nn.Sequential:
    """LeNet-5 after LeCun et al. (1998), with max-pool and ReLU.

    From (batch, 1, 32, 32) to (batch, num_classes) scores. Output volumes and parameters:

        C1  6 filters 5x5    6x28x28     156    S2  2x2 max-pool  6x14x14
        C3  16 filters 5x5   16x10x10    2,416  S4  2x2 max-pool  16x5x5
        C5  120 filters 5x5  120x1x1     48,120
        F6  84               84          10,164
        output               10          850

    >>> sum(parameter.numel() for parameter in lenet5().parameters())
    61706
    """
    layers: list[tuple[str, nn.Module]] = [
        ("c1", Conv2d(1, 6, 5)),
        ("relu1", nn.ReLU()),
        ("s2", MaxPool2d(2)),
        ("c3", Conv2d(6, 16, 5)),
        ("relu3", nn.ReLU()),
        ("s4", MaxPool2d(2)),
        ("c5", Conv2d(16, 120, 5)),
        ("relu5", nn.ReLU()),
        ("flatten", nn.Flatten()),
        ("f6", nn.Linear(120, 84)),
        ("relu6", nn.ReLU()),
        ("output", nn.Linear(84, num_classes)),
    ]
    return nn.Sequential(OrderedDict(layers))
