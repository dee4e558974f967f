"""VGG-16 (Simonyan and Zisserman 2014), with torchvision's names for its parameters."""

from __future__ import annotations

import torch
from torch import nn

from tconv.modules import Conv2d, MaxPool2d

# Filters of each 3x3 convolution, a stage a row; a 2x2 max-pool ends each stage.
VGG16_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG(nn.Module):
    """[(CONV-RELU)*n - POOL]*5 - (FC-RELU)*2 - FC.

    x is (batch, 3, height, width), each side at least 32; the result is
    (batch, num_classes) scores. ``state_dict`` keys are torchvision's, so its weights load.
    """

    def __init__(
        self,
        stages: tuple[tuple[int, ...], ...],
        num_classes: int = 1000,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.features = _features(stages)
        self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
        self.classifier = nn.Sequential(
            nn.Linear(stages[-1][-1] * 7 * 7, 4096),
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


def _features(stages: tuple[tuple[int, ...], ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    in_channels = 3
    for stage in stages:
        for filters in stage:
            layers += [Conv2d(in_channels, filters, 3, padding=1), nn.ReLU(inplace=True)]
            in_channels = filters
        layers.append(MaxPool2d(2, 2))
    return nn.Sequential(*layers)


def vgg16(num_classes: int = 1000) -> VGG:
    """VGG-16: thirteen 3x3 convolutions and three fully connected layers.

    >>> with torch.device("meta"):
    ...     model = vgg16()
    >>> sum(parameter.numel() for parameter in model.parameters())
    138357544
    """
    return VGG(VGG16_STAGES, num_classes)
