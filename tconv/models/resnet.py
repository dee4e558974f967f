"""ResNet-50 (He et al. 2015), with torchvision's names for its parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tconv.models.registry import IMAGENET, network
from tconv.modules import Conv2d, MaxPool2d

EXPANSION = 4  # a block's last 1x1 convolution widens by it
STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))  # width, blocks, stride of the first


class Bottleneck(nn.Module):
    """1x1 to narrow, 3x3, 1x1 to widen, added to what came in; the stride is the 3x3's."""

    def __init__(self, in_channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        out_channels = width * EXPANSION
        self.conv1 = Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)
        result: Tensor = self.relu(y)
        return result


class ResNet(nn.Module):
    """A 7x7 convolution and a pool, stages of bottlenecks, and one fully connected layer.

    x is (batch, 3, height, width), each side at least 32; the result is (batch, num_classes)
    scores.
    """

    def __init__(self, stages: tuple[tuple[int, int, int], ...], num_classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = MaxPool2d(3, 2, padding=1)
        in_channels = 64
        for number, (width, blocks, stride) in enumerate(stages, start=1):
            layers = []
            for block in range(blocks):
                layers.append(Bottleneck(in_channels, width, 1 if block else stride))
                in_channels = width * EXPANSION
            self.add_module(f"layer{number}", nn.Sequential(*layers))
        self.stages = len(stages)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(in_channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for number in range(1, self.stages + 1):
            x = self.get_submodule(f"layer{number}")(x)
        scores: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return scores


@network(IMAGENET)
def resnet50(num_classes: int = 1000) -> ResNet:
    """ResNet-50: fifty layers, most of them 1x1.

    >>> with torch.device("meta"):
    ...     model = resnet50()
    >>> sum(parameter.numel() for parameter in model.parameters())
    25557032
    """
    return ResNet(STAGES, num_classes)
