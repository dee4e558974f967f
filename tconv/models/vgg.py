"""VGG-11 to VGG-19 (Simonyan and Zisserman 2014), with torchvision's names for parameters."""

from __future__ import annotations

import torch
from torch import nn

from tconv.models.registry import IMAGENET, network
from tconv.modules import Conv2d, MaxPool2d

# Convolutions of each stage, all 3x3; a 2x2 max-pool ends each stage. The paper's table 1.
DEPTHS = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
FILTERS = (64, 128, 256, 512, 512)  # of a stage's convolutions


class VGG(nn.Module):
    """[(CONV-RELU)*n - POOL]*5 - (FC-RELU)*2 - FC; with ``batch_norm`` CONV-BN-RELU.

    x is (batch, 3, height, width), each side at least 32; the result is
    (batch, num_classes) scores. ``state_dict`` keys are torchvision's, so its weights load.
    """

    def __init__(
        self,
        depth: int,
        num_classes: int = 1000,
        batch_norm: bool = False,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.features = _features(DEPTHS[depth], batch_norm)
        self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
        self.classifier = nn.Sequential(
            nn.Linear(FILTERS[-1] * 7 * 7, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4096, num_classes),
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """He's normal initialisation for filters, a narrow normal for the classifier."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
            if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.avgpool(self.features(x))
        scores: torch.Tensor = self.classifier(torch.flatten(x, 1))
        return scores


def _features(counts: tuple[int, ...], batch_norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    in_channels = 3
    for count, filters in zip(counts, FILTERS, strict=True):
        for _ in range(count):
            layers.append(Conv2d(in_channels, filters, 3, padding=1))
            if batch_norm:
                layers.append(nn.BatchNorm2d(filters))
            layers.append(nn.ReLU(inplace=True))
            in_channels = filters
        layers.append(MaxPool2d(2, 2))
    return nn.Sequential(*layers)


@network(IMAGENET)
def vgg11(num_classes: int = 1000) -> VGG:
    """VGG-11: eight 3x3 convolutions and three fully connected layers."""
    return VGG(11, num_classes)


@network(IMAGENET)
def vgg13(num_classes: int = 1000) -> VGG:
    """VGG-13: ten 3x3 convolutions and three fully connected layers."""
    return VGG(13, num_classes)


@network(IMAGENET)
def vgg16(num_classes: int = 1000) -> VGG:
    """VGG-16: thirteen 3x3 convolutions and three fully connected layers.

    >>> with torch.device("meta"):
    ...     model = vgg16()
    >>> sum(parameter.numel() for parameter in model.parameters())
    138357544
    """
    return VGG(16, num_classes)


@network(IMAGENET)
def vgg19(num_classes: int = 1000) -> VGG:
    """VGG-19: sixteen 3x3 convolutions and three fully connected layers."""
    return VGG(19, num_classes)


@network(IMAGENET)
def vgg11_bn(num_classes: int = 1000) -> VGG:
    """VGG-11 with batch norm after every convolution."""
    return VGG(11, num_classes, batch_norm=True)


@network(IMAGENET)
def vgg13_bn(num_classes: int = 1000) -> VGG:
    """VGG-13 with batch norm after every convolution."""
    return VGG(13, num_classes, batch_norm=True)


@network(IMAGENET)
def vgg16_bn(num_classes: int = 1000) -> VGG:
    """VGG-16 with batch norm after every convolution."""
    return VGG(16, num_classes, batch_norm=True)


@network(IMAGENET)
def vgg19_bn(num_classes: int = 1000) -> VGG:
    """VGG-19 with batch norm after every convolution."""
    return VGG(19, num_classes, batch_norm=True)
