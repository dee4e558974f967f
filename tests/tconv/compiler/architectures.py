"""Small networks of many public architectures, written in torch's modules alone.

Each has the structure of its namesake, a few channels and images of 16 pixels, so that all of them
run in Triton's interpreter. ``ARCHITECTURES`` maps a name to a builder and the shape of its input.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_bn_act(
    inputs: int, outputs: int, extent: int = 3, stride: int = 1, groups: int = 1,
    act: Callable[[], nn.Module] = nn.ReLU,
) -> nn.Sequential:  # fmt: skip
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, extent, stride, extent // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        act(),
    )


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv_bn_act(3, 8), conv_bn_act(8, 16)
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.last = conv_bn_act(16, 8)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.first(x)
        deep = self.up(self.second(self.pool(skip)))
        return self.head(self.last(torch.cat([skip, deep], 1)))


class DCGAN(nn.Module):
    """A generator: from one pixel of noise to an image, doubled by each transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.ConvTranspose2d(8, 12, 4, 1, 0, bias=False), nn.BatchNorm2d(12), nn.ReLU(True),
            nn.ConvTranspose2d(12, 6, 4, 2, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU(True),
            nn.ConvTranspose2d(6, 3, 4, 2, 1, bias=False), nn.Tanh(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x)


class LinkNet(nn.Module):
    """A decoder whose stages end in the addition of the encoder's features."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv_bn_act(3, 4, 3, 2), conv_bn_act(4, 8, 3, 2)
        self.narrow = conv_bn_act(8, 4, 1)
        self.full = nn.ConvTranspose2d(4, 4, 3, 2, 1, output_padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.wide = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4))
        self.up = nn.Sequential(nn.ConvTranspose2d(4, 3, 2, 2), nn.BatchNorm2d(3))
        self.last = nn.ConvTranspose2d(3, 2, 2, stride=1, groups=1, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        low = self.first(x)
        y = self.narrow(self.second(low))
        y = F.relu(self.norm(self.full(y))) + low  # the skip after the activation
        y = F.relu(self.up(self.wide(y)) + x)  # and before it
        return self.last(y)


class WaveDecoder(nn.Module):
    """A vocoder's stage: a transposed convolution of a sequence, and residual blocks behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.up_norm = nn.ConvTranspose1d(6, 4, 4, 2, 1), nn.BatchNorm1d(4)
        self.block, self.block_norm = nn.Conv1d(4, 4, 3, padding=1), nn.BatchNorm1d(4)
        self.gate = nn.Conv1d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.up_norm(self.up(x)), 0.1)
        x = F.silu(self.block_norm(self.block(x)) + x)
        return x + torch.tanh(self.gate(x))


class ConvNeXtBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.depthwise = nn.Conv2d(8, 8, 7, padding=3, groups=8)
        self.norm = nn.LayerNorm(8)
        self.wide, self.narrow = nn.Linear(8, 32), nn.Linear(32, 8)
        self.scale = nn.Parameter(torch.full((8,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.narrow(F.gelu(self.wide(y))) * self.scale
        return x + y.permute(0, 3, 1, 2)


class MBConvSE(nn.Module):
    """An inverted bottleneck with squeeze and excitation, as in EfficientNet."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = conv_bn_act(8, 16, 1, act=nn.SiLU)
        self.depthwise = conv_bn_act(16, 16, 3, groups=16, act=nn.SiLU)
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.project, self.norm = nn.Conv2d(16, 8, 1, bias=False), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(self.expand(x))
        gate = torch.sigmoid(self.excite(F.silu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        return self.norm(self.project(y * gate)) + x


class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(8 + 4 * i), nn.ReLU(True), nn.Conv2d(8 + 4 * i, 4, 3, padding=1)
            )
            for i in range(3)
        )
        self.transition = nn.Sequential(nn.Conv2d(20, 8, 1), nn.AvgPool2d(2))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return self.transition(x)


class Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_bn_act(3, 8, 3, 2), nn.MaxPool2d(3, 2, ceil_mode=True))
        self.one, self.three = conv_bn_act(8, 4, 1), conv_bn_act(8, 4, 3)
        self.pooled = nn.Sequential(
            nn.MaxPool2d(3, 1, padding=1, ceil_mode=True), nn.Conv2d(8, 4, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return torch.cat([self.one(x), self.three(x), F.relu(self.pooled(x))], 1)


class ShuffleNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            conv_bn_act(4, 4, 1),
            nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False),
            nn.BatchNorm2d(4),
            conv_bn_act(4, 4, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        y = torch.cat([left, self.branch(right)], 1)
        batch, channels, rows, columns = y.shape
        y = y.view(batch, 2, channels // 2, rows, columns).transpose(1, 2)
        return y.reshape(batch, channels, rows, columns)


class SqueezeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(inplace=True), nn.MaxPool2d(2))
        self.squeeze = nn.Conv2d(8, 4, 1)
        self.one, self.three = nn.Conv2d(4, 8, 1), nn.Conv2d(4, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu_(self.squeeze(self.stem(x)))
        return torch.cat([self.one(x).relu(), self.three(x).relu_()], 1)


class ASPP(nn.Module):
    """Dilated convolutions side by side, as in DeepLab."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(4, 4, 3, padding=rate, dilation=rate, bias=False),
                nn.BatchNorm2d(4),
                nn.ReLU(),
            )
            for rate in (1, 2, 3)
        )
        self.project = nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(torch.cat([branch(x) for branch in self.branches], 1))


class VAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.LeakyReLU(0.2))
        self.mean, self.spread = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)
        self.decode = nn.Sequential(
            nn.ConvTranspose2d(4, 8, 3, 2, 1, output_padding=1), nn.LeakyReLU(0.2),
            nn.Conv2d(8, 3, 3, padding=1), nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.encode(x)
        mean, spread = self.mean(hidden), self.spread(hidden)
        return self.decode(mean + torch.exp(0.5 * spread))


class ReflectionGenerator(nn.Module):
    """Reflection-padded residual blocks, as in image translation."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(3, 8, 7), nn.ReLU(True))
        self.block = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), nn.InstanceNorm2d(8),
            nn.ReLU(True),
            nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), nn.InstanceNorm2d(8),
        )  # fmt: skip
        self.last = nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(8, 3, 7), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x + self.block(x))


class Siamese(nn.Module):
    """One module that two inputs share."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3)
        )

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.tower(x), self.tower(x.flip(-1))
        return F.cosine_similarity(first.flatten(1), second.flatten(1))


class FPN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = conv_bn_act(3, 8, 3, 2), conv_bn_act(8, 16, 3, 2)
        self.side_low, self.side_high = nn.Conv2d(8, 8, 1), nn.Conv2d(16, 8, 1)
        self.smooth = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        low = self.low(x)
        high = self.side_high(self.high(low))
        return self.smooth(self.side_low(low) + F.interpolate(high, scale_factor=2.0)), high


class ResNeXt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.reduce, self.grouped = conv_bn_act(8, 8, 1), conv_bn_act(8, 8, 3, groups=4)
        self.widen = nn.Sequential(nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16))
        self.shortcut = nn.Sequential(nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16))

    def forward(self, x: Tensor) -> Tensor:
        y = self.widen(self.grouped(self.reduce(x)))
        y += self.shortcut(x)
        return F.relu(y, inplace=True)


class RepLKNetBlock(nn.Module):
    """A large depthwise filter beside a small one."""

    def __init__(self) -> None:
        super().__init__()
        self.large = nn.Conv2d(4, 4, 9, padding=4, groups=4, bias=False)
        self.small = nn.Conv2d(4, 4, 5, padding=2, groups=4, bias=False)
        self.large_norm, self.small_norm = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.point = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.large_norm(self.large(x)) + self.small_norm(self.small(x))
        return x + self.point(F.relu(y))


class MobileNetV2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.expand = conv_bn_act(8, 16, 1, act=nn.ReLU6)
        self.depthwise = conv_bn_act(16, 16, 3, groups=16, act=nn.ReLU6)
        self.project = nn.Sequential(nn.Conv2d(16, 8, 1, bias=False), nn.BatchNorm2d(8))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.project(self.depthwise(self.expand(x)))


class MobileNetV3(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.expand = conv_bn_act(8, 16, 1, act=nn.Hardswish)
        self.depthwise = conv_bn_act(16, 16, 5, 2, groups=16, act=nn.Hardswish)
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.project = nn.Sequential(nn.Conv2d(16, 8, 1, bias=False), nn.BatchNorm2d(8))

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(self.expand(x))
        gate = F.hardsigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return self.project(gate * y)


class VGGBN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(True), nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(True), nn.MaxPool2d(2),
        )  # fmt: skip
        self.classifier = nn.Linear(16 * 4 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))


class LeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c3, self.c5 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5), nn.Conv2d(16, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.c1(x)), 2)
        x = torch.sigmoid(self.c3(x))
        return torch.tanh(self.c5(F.avg_pool2d(x, 2)))


ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "unet": (UNet, (2, 3, 16, 16)),
    "dcgan": (DCGAN, (2, 8, 1, 1)),
    "linknet": (LinkNet, (2, 3, 16, 16)),
    "wave_decoder": (WaveDecoder, (2, 6, 7)),
    "convnext_block": (ConvNeXtBlock, (2, 3, 16, 16)),
    "mbconv_se": (MBConvSE, (2, 8, 8, 8)),
    "densenet": (DenseNet, (2, 8, 8, 8)),
    "inception": (Inception, (2, 3, 16, 16)),
    "shufflenet": (ShuffleNet, (2, 8, 8, 8)),
    "squeezenet": (SqueezeNet, (2, 3, 16, 16)),
    "aspp": (ASPP, (2, 4, 12, 12)),
    "vae": (VAE, (2, 3, 16, 16)),
    "reflection_generator": (ReflectionGenerator, (2, 3, 16, 16)),
    "siamese": (Siamese, (2, 3, 16, 16)),
    "fpn": (FPN, (2, 3, 16, 16)),
    "resnext": (ResNeXt, (2, 8, 8, 8)),
    "replknet_block": (RepLKNetBlock, (2, 4, 9, 9)),
    "mobilenet_v2": (MobileNetV2, (2, 8, 8, 8)),
    "mobilenet_v3": (MobileNetV3, (2, 8, 8, 8)),
    "vgg_bn": (VGGBN, (2, 3, 16, 16)),
    "lenet": (LeNet, (2, 1, 16, 16)),
}
