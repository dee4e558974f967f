"""U-Net (Ronneberger et al. 2015), small: it gives each pixel of an image a class.

Two 3x3 convolutions a level, halved by a pool on the way down and doubled by a transposed
convolution on the way up, where the level's own result from the way down is put beside it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tconv.modules import Conv2d, ConvTranspose2d, MaxPool2d


def level(in_channels: int, out_channels: int) -> nn.Sequential:
    """Two 3x3 convolutions that keep the size, each with a batch norm and a ReLU."""
    layers: list[nn.Module] = []
    for channels in (in_channels, out_channels):
        layers.append(Conv2d(channels, out_channels, 3, padding=1, bias=False))
        layers += [nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """A U-Net of ``depth`` levels besides the lowest.

    x is (batch, in_channels, height, width), each side a multiple of 2 to the power ``depth``; the
    result is (batch, classes, height, width), a score for each pixel and class.

    >>> UNet(1, 3, width=4, depth=2)(torch.zeros(2, 1, 16, 16)).shape
    torch.Size([2, 3, 16, 16])
    """

    def __init__(self, in_channels: int, classes: int, width: int = 16, depth: int = 2) -> None:
        super().__init__()
        widths = [width << number for number in range(depth + 1)]
        self.down = nn.ModuleList(
            level(before, after)
            for before, after in zip([in_channels, *widths], widths[:-1], strict=False)
        )
        self.pool = MaxPool2d(2)
        self.bottom = level(widths[-2], widths[-1])
        self.up = nn.ModuleList(ConvTranspose2d(2 * w, w, 2, stride=2) for w in widths[-2::-1])
        self.joined = nn.ModuleList(level(2 * w, w) for w in widths[-2::-1])
        self.head = Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skipped = []
        for down in self.down:
            x = down(x)
            skipped.append(x)
            x = self.pool(x)
        x = self.bottom(x)
        for up, joined in zip(self.up, self.joined, strict=True):
            x = joined(torch.cat([skipped.pop(), up(x)], 1))
        scores: Tensor = self.head(x)
        return scores
