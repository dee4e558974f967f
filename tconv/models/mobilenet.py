"""MobileNetV2 (Sandler et al. 2018), with torchvision's names for its parameters."""

from __future__ import annotations

from torch import Tensor, nn

from tconv.models.registry import IMAGENET, network
from tconv.modules import Conv2d

# t, c, n, s of the paper's table 2: expansion, channels, blocks, stride of the first.
BLOCKS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def conv_norm_relu6(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """A convolution that keeps the size but for its stride, batch norm, and ReLU6."""
    window = (kernel_size, stride, (kernel_size - 1) // 2)
    conv = Conv2d(in_channels, out_channels, *window, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU6(inplace=True))


class InvertedResidual(nn.Module):
    """1x1 to widen, 3x3 depthwise, 1x1 to narrow; added to its input if shapes agree."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(conv_norm_relu6(in_channels, hidden, 1))
        layers += [
            conv_norm_relu6(hidden, hidden, 3, stride, groups=hidden),
            Conv2d(hidden, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        ]
        self.conv = nn.Sequential(*layers)
        self.adds = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return x + y if self.adds else y


class MobileNetV2(nn.Module):
    """Inverted residuals between two plain convolutions, and one fully connected layer.

    x is (batch, 3, height, width), each side at least 32; the result is (batch, num_classes)
    scores.
    """

    def __init__(self, num_classes: int = 1000, dropout: float = 0.2) -> None:
        super().__init__()
        in_channels, last = 32, 1280
        features: list[nn.Module] = [conv_norm_relu6(3, in_channels, 3, stride=2)]
        for expansion, channels, count, stride in BLOCKS:
            for block in range(count):
                step = 1 if block else stride
                features.append(InvertedResidual(in_channels, channels, step, expansion))
                in_channels = channels
        features.append(conv_norm_relu6(in_channels, last, 1))
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(last, num_classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return scores


@network(IMAGENET)
def mobilenet_v2(num_classes: int = 1000) -> MobileNetV2:
    """MobileNetV2 at width 1: depthwise 3x3 between 1x1 convolutions.

    >>> import torch
    >>> with torch.device("meta"):
    ...     model = mobilenet_v2()
    >>> sum(parameter.numel() for parameter in model.parameters())
    3504872
    """
    return MobileNetV2(num_classes)
