"""AlexNet: torchvision's one-tower variant, and the two groups of 2012."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tconv.models.registry import IMAGENET, network
from tconv.modules import Conv2d, MaxPool2d


class AlexNet(nn.Module):
    """Five convolutions and three fully connected layers (Krizhevsky 2014, "one weird trick").

    x is (batch, 3, height, width), each side at least 63; the result is (batch, num_classes)
    scores. ``state_dict`` keys are torchvision's, so that its weights load.
    """

    def __init__(self, num_classes: int = 1000, dropout: float = 0.5) -> None:
        super().__init__()
        self.features = nn.Sequential(
            Conv2d(3, 64, 11, stride=4, padding=2),
            nn.ReLU(inplace=True),
            MaxPool2d(3, 2),
            Conv2d(64, 192, 5, padding=2),
            nn.ReLU(inplace=True),
            MaxPool2d(3, 2),
            Conv2d(192, 384, 3, padding=1),
            nn.ReLU(inplace=True),
            Conv2d(384, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            Conv2d(256, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            MaxPool2d(3, 2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d((6, 6))
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(256 * 6 * 6, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))
        return scores


@network(IMAGENET)
def alexnet(num_classes: int = 1000) -> AlexNet:
    """AlexNet as torchvision builds it.

    >>> with torch.device("meta"):
    ...     model = alexnet()
    >>> sum(parameter.numel() for parameter in model.parameters())
    61100840
    """
    return AlexNet(num_classes)


def _normalised() -> nn.LocalResponseNorm:
    """Over five neighbouring maps, with the paper's constants (section 3.3); by torch."""
    return nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2.0)


@network((3, 227, 227))
def alexnet_2012(num_classes: int = 1000, dropout: float = 0.5) -> nn.Sequential:
    """AlexNet of Krizhevsky, Sutskever and Hinton (2012), for (batch, 3, 227, 227).

    Its second, fourth and fifth convolutions are in two groups, which were two GPUs.

    >>> with torch.device("meta"):
    ...     model = alexnet_2012()
    >>> sum(parameter.numel() for parameter in model.parameters())
    60965224
    """
    model = nn.Sequential(
        Conv2d(3, 96, 11, stride=4),
        nn.ReLU(inplace=True),
        _normalised(),
        MaxPool2d(3, 2),
        Conv2d(96, 256, 5, padding=2, groups=2),
        nn.ReLU(inplace=True),
        _normalised(),
        MaxPool2d(3, 2),
        Conv2d(256, 384, 3, padding=1),
        nn.ReLU(inplace=True),
        Conv2d(384, 384, 3, padding=1, groups=2),
        nn.ReLU(inplace=True),
        Conv2d(384, 256, 3, padding=1, groups=2),
        nn.ReLU(inplace=True),
        MaxPool2d(3, 2),
        nn.Flatten(),
        nn.Linear(256 * 6 * 6, 4096),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(4096, 4096),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(4096, num_classes),
    )
    biased = (4, 10, 12)  # the paper's: their ReLUs are to begin with positive inputs
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.normal_(module.weight, std=0.01)
            assert module.bias is not None
            ones = isinstance(module, nn.Linear) or int(name) in biased
            nn.init.constant_(module.bias, float(ones))
    return model
